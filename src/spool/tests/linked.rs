//! Symbolic links that travel: as files do, checked at every name, and never a way out of their tree.

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::*;
use crate::bundle::{Entry, EntryKind, Former, ManifestError, Scope};

impl Node {
    pub(super) fn ask(&self, path: &str, renamed_from: Option<&str>) -> SealOutcome {
        let ino = fs::symlink_metadata(self.outbox(path)).unwrap().ino();
        let (done, outcome) = crossbeam_channel::bounded(1);
        let name = SealName {
            path: rel(path),
            renamed_from: renamed_from.map(rel),
        };
        let done = move |outcome| done.send(outcome).unwrap();
        let gate = self.spool().outbox.gate(ino);
        self.spool()
            .outbox
            .seal(SealRequest::alone(gate, name, done));
        outcome.recv().unwrap()
    }

    pub(super) fn drop_link(&self, path: &str, target: &str) -> BundleId {
        let at = self.outbox(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(target, at).unwrap();
        match self.ask(path, None) {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    fn link_at(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.inbox(path)).ok()?;
        Some(target.to_str().unwrap().to_owned())
    }

    /// Sends everything below a directory of the outbox as one bundle.
    fn drop_tree(&self, root: &str) -> BundleId {
        let (mut files, mut directories) = (Vec::new(), vec![rel(root)]);
        let mut open = vec![rel(root)];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(self.outbox(&directory.to_string())).unwrap() {
                let entry = entry.unwrap();
                let path = directory
                    .child(entry.file_name().as_encoded_bytes())
                    .unwrap();
                if entry.file_type().unwrap().is_dir() {
                    directories.push(path.clone());
                    open.push(path);
                } else {
                    files.push((entry.metadata().unwrap().ino(), path));
                }
            }
        }
        let (done, outcome) = crossbeam_channel::bounded(1);
        self.spool().outbox.seal_tree(TreeRequest {
            tree: 1,
            root: rel(root),
            files,
            directories,
            priority: Priority::Routine,
            done: Box::new(move |outcome| done.send(outcome).unwrap()),
        });
        match outcome.recv().unwrap() {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_link_travels_alone_is_consumed_and_never_comes_back() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_link("t/l", "x/y");
    assert_eq!(birch.fetch(&alder, bundle), 0, "it has nothing to fetch");
    assert_eq!(birch.link_at("t/l").as_deref(), Some("x/y"));
    assert!(alder.spool().take_receipt(&birch.receipt()).unwrap());
    let row = alder.spool().outbound_of(&rel("t/l")).unwrap();
    assert_eq!(row.state, "delivered");
    for _ in 0..2 {
        birch.stop();
        birch.start();
        assert_eq!(birch.link_at("t/l").as_deref(), Some("x/y"), "known");
    }
    birch.power_loss();
    assert_eq!(birch.link_at("t/l").as_deref(), Some("x/y"), "as recorded");
    birch.spool().inbox_unlink(&rel("t/l")).unwrap();
    birch.stop();
    birch.start();
    let again = birch.spool().offered(alder.manifest(bundle), alder.id());
    assert!(matches!(again, Ok(Offered::Settled(_))), "{again:?}");
    assert_eq!(birch.link_at("t/l"), None);
    // Another target is a new version.
    fs::remove_file(alder.outbox("t/l")).unwrap();
    alder.spool().outbox_removed(&rel("t/l"), 1, 0);
    let bundle = alder.drop_link("t/l", "other");
    birch.fetch(&alder, bundle);
    assert_eq!(birch.link_at("t/l").as_deref(), Some("other"));
}

#[test]
fn a_directory_with_links_travels_as_one_and_its_links_lead_where_they_did() {
    let (alder, birch) = pair();
    fs::create_dir_all(alder.outbox("p/bin")).unwrap();
    fs::create_dir_all(alder.outbox("p/lib/pkg")).unwrap();
    fs::write(alder.outbox("p/lib/pkg/cli.js"), b"run").unwrap();
    symlink("../lib/pkg/cli.js", alder.outbox("p/bin/cli")).unwrap();
    symlink("pkg", alder.outbox("p/lib/current")).unwrap();
    symlink("nowhere", alder.outbox("p/broken")).unwrap();
    symlink("../../outside", alder.outbox("p/bin/out")).unwrap();
    let bundle = alder.drop_tree("p");
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("p/bin/cli")).unwrap(), b"run");
    assert_eq!(
        fs::read(birch.inbox("p/lib/current/cli.js")).unwrap(),
        b"run"
    );
    assert_eq!(birch.link_at("p/broken").as_deref(), Some("nowhere"));
    assert_eq!(
        birch.link_at("p/bin/out"),
        None,
        "what leads out is not sent"
    );
    assert!(alder.spool().take_receipt(&birch.receipt()).unwrap());
    // A second version of one file and one link merges into what is there.
    fs::remove_file(alder.outbox("p/lib/current")).unwrap();
    symlink("other", alder.outbox("p/lib/current")).unwrap();
    let bundle = alder.drop_tree("p/lib");
    birch.fetch(&alder, bundle);
    assert_eq!(birch.link_at("p/lib/current").as_deref(), Some("other"));
}

#[test]
fn a_renamed_link_is_renamed_in_the_inbox() {
    let (alder, birch) = pair();
    let bundle = alder.drop_link("t/a/l", "../x");
    birch.fetch(&alder, bundle);
    let ino = fs::symlink_metadata(birch.inbox("t/a/l")).unwrap().ino();
    fs::create_dir(alder.outbox("t/b")).unwrap();
    fs::rename(alder.outbox("t/a/l"), alder.outbox("t/b/m")).unwrap();
    alder
        .spool()
        .outbox_renamed(&rel("t/a/l"), &rel("t/b/m"), false);
    let SealOutcome::Sealed(bundle) = alder.ask("t/b/m", Some("t/a/l")) else {
        panic!("not sealed")
    };
    birch.fetch(&alder, bundle);
    assert_eq!(birch.link_at("t/a/l"), None);
    assert_eq!(birch.link_at("t/b/m").as_deref(), Some("../x"));
    let now = fs::symlink_metadata(birch.inbox("t/b/m")).unwrap().ino();
    assert_eq!(now, ino, "the same link");
    // Consumed there, a further rename shows it no more.
    birch.spool().inbox_unlink(&rel("t/b/m")).unwrap();
    fs::rename(alder.outbox("t/b/m"), alder.outbox("t/b/n")).unwrap();
    alder
        .spool()
        .outbox_renamed(&rel("t/b/m"), &rel("t/b/n"), false);
    let SealOutcome::Sealed(bundle) = alder.ask("t/b/n", Some("t/b/m")) else {
        panic!("not sealed")
    };
    birch.fetch(&alder, bundle);
    assert_eq!(birch.link_at("t/b/n"), None);
}

#[test]
fn a_link_becomes_a_file_and_a_file_a_link() {
    let (alder, birch) = pair();
    let bundle = alder.drop_link("t/x", "y");
    birch.fetch(&alder, bundle);
    fs::remove_file(alder.outbox("t/x")).unwrap();
    alder.spool().outbox_removed(&rel("t/x"), 1, 0);
    let large = pattern(3 * LEAF as usize);
    let bundle = alder.drop_file("t/x", &large);
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("t/x")).unwrap(), large);
    fs::remove_file(alder.outbox("t/x")).unwrap();
    alder.spool().outbox_removed(&rel("t/x"), 1, 0);
    let bundle = alder.drop_link("t/x", "z");
    birch.fetch(&alder, bundle);
    assert_eq!(birch.link_at("t/x").as_deref(), Some("z"));
}

#[test]
fn a_link_that_leads_out_is_not_sealed_and_a_manifest_with_one_is_refused() {
    let (alder, _birch) = pair();
    fs::create_dir_all(alder.outbox("t/a")).unwrap();
    for (path, target) in [
        ("t/l", "/etc/passwd"),
        ("t/m", "../x"),
        ("top", "t"),
        ("t/a/n", "../../x"),
    ] {
        symlink(target, alder.outbox(path)).unwrap();
        assert!(matches!(alder.ask(path, None), SealOutcome::Gone), "{path}");
    }
    let bundle = alder.drop_link("t/a/fine", "../x");
    let mut lie = alder.manifest(bundle).manifest().clone();
    lie.entries[0].path = rel("t/fine");
    let signed = lie.sign(&alder.identity).signed().clone();
    assert_eq!(signed.verify(), Err(ManifestError::Link(rel("t/fine"))));
}

#[test]
fn a_link_of_which_a_publish_had_begun_is_there_after_a_crash() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_link("t/l", "x");
    let manifest = alder.manifest(bundle).signed().clone().verify().unwrap();
    let staged = birch.spool().staged_alone(bundle, 0);
    symlink("x", &staged).unwrap();
    let ino = fs::symlink_metadata(&staged).unwrap().ino();
    let mut batch = journal::Batch::default();
    batch.insert(
        crate::spool::inbox::probe::INTENTS,
        &bundle,
        &crate::spool::inbox::probe::Intent {
            signed: manifest.signed().clone(),
            slices: 0,
            names: vec![(0, rel("t/l"), ino)],
        },
    );
    birch.spool().journal.submit(batch).unwrap();
    birch.stop();
    birch.start();
    assert_eq!(birch.link_at("t/l").as_deref(), Some("x"));
    assert!(birch.spool().ledger.receipt(bundle).is_some());
}

#[test]
fn links_of_a_copied_state_are_looked_at_and_shown() {
    let (alder, mut birch) = pair();
    for (path, target) in [("t/l", "x"), ("t/m", "y")] {
        let bundle = alder.drop_link(path, target);
        birch.fetch(&alder, bundle);
    }
    birch.stop();
    // Another inode with the right target, and one with a wrong one.
    for (path, target) in [("t/l", "x"), ("t/m", "wrong")] {
        let at = birch.inbox(path);
        symlink(target, birch.inbox("t/new")).unwrap();
        fs::rename(birch.inbox("t/new"), at).unwrap();
    }
    birch.start();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while birch.link_at("t/l").is_none() {
        assert!(std::time::Instant::now() < deadline, "not shown again");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(birch.link_at("t/l").as_deref(), Some("x"));
    assert_eq!(birch.link_at("t/m"), None, "in quarantine");
}

#[test]
fn a_top_directory_with_links_belongs_to_one_origin() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&alder, alder.drop_link("t/l", "secrets"));
    // Another's file does not come to lie where that link leads.
    birch.fetch(&cedar, cedar.drop_file("t/secrets", b"of cedar"));
    assert!(!birch.inbox("t/secrets").exists());
    assert_eq!(
        fs::read(birch.inbox("t~cedar/secrets")).unwrap(),
        b"of cedar"
    );
    // Nor a link where others already are: the whole tree has a name of its own, what comes later too.
    birch.fetch(&alder, alder.drop_file("u/f", b"of alder"));
    birch.fetch(&cedar, cedar.drop_link("u/l", "f"));
    assert_eq!(birch.link_at("u/l"), None);
    assert_eq!(birch.link_at("u~cedar/l").as_deref(), Some("f"));
    birch.fetch(&cedar, cedar.drop_file("u/f", b"of cedar"));
    assert_eq!(fs::read(birch.inbox("u/f")).unwrap(), b"of alder");
    assert_eq!(fs::read(birch.inbox("u~cedar/f")).unwrap(), b"of cedar");
    birch.fetch(&alder, alder.drop_file("u/g", b"of alder"));
    assert_eq!(fs::read(birch.inbox("u/g")).unwrap(), b"of alder");
}

/// Every link of the inbox, resolved by the kernel, stays below its own top directory.
fn assert_none_leads_out(node: &Node) {
    for top in fs::read_dir(node.inbox("")).unwrap() {
        let top = top.unwrap().path();
        assert!(!top.is_symlink(), "no link directly in the inbox");
        if !top.is_dir() {
            continue;
        }
        let root: OwnedFd =
            rustix::fs::open(&top, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut open = vec![PathBuf::new()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(top.join(&directory)).unwrap() {
                let entry = entry.unwrap();
                let path = directory.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    open.push(path);
                    continue;
                }
                let led = openat2(
                    &root,
                    &path,
                    OFlags::PATH,
                    Mode::empty(),
                    ResolveFlags::BENEATH,
                );
                let out = led.err() == Some(rustix::io::Errno::XDEV);
                assert!(!out, "{path:?} leads out of {top:?}");
            }
        }
    }
}

/// Two members who sign whatever they like: links, renames of them, files and directories in their way.
#[test]
fn no_manifests_of_two_hostile_origins_have_a_link_lead_out() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    birch.knows(&cedar, "cedar");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let template = alder
        .manifest(alder.drop_link("t/seed", "x"))
        .manifest()
        .clone();
    let mut sent: Vec<(PeerId, RelPath, u64, BundleId, Vec<u8>)> = Vec::new();
    let mut taken = 0;
    for seq in 1..400 {
        let from = [&alder, &cedar][random(2)];
        let parts: Vec<&str> = (0..1 + random(4))
            .map(|_| ["t", "u", "a", "b"][random(4)])
            .collect();
        let path = rel(&parts.join("/"));
        let target = (0..1 + random(5))
            .map(|_| ["..", "..", "..", ".", "a", "b", "t", "u"][random(8)])
            .collect::<Vec<_>>()
            .join("/");
        let mut target = target.into_bytes();
        let mut formers = Vec::new();
        let earlier: Vec<_> = sent.iter().filter(|row| row.0 == from.id()).collect();
        if random(2) == 0 && !earlier.is_empty() {
            let (_, former, seq, bundle, to) = earlier[random(earlier.len())];
            target.clone_from(to);
            formers.push(Former {
                path: former.clone(),
                epoch: template.epoch,
                seq: *seq,
                bundle: *bundle,
                gone: 1,
                entry: None,
                incarnation: template.incarnation,
            });
        }
        let kind = match random(5) {
            0 => EntryKind::Directory,
            _ => EntryKind::Link {
                target: target.clone(),
            },
        };
        let mut lie = template.clone();
        (lie.origin, lie.seq, lie.scope) = (from.id(), seq, Scope::All { generation: 1 });
        lie.renamed_from = if kind == EntryKind::Directory {
            Vec::new()
        } else {
            formers
        };
        lie.directories = Vec::new();
        lie.entries = vec![Entry {
            path: path.clone(),
            mtime: (0, 0),
            kind,
        }];
        let Ok(verified) = lie.sign(&from.identity).signed().clone().verify() else {
            continue;
        };
        let bundle = verified.id();
        match birch.spool().offered(verified, from.id()) {
            Ok(Offered::Wanted(incoming)) => {
                if incoming.finish().unwrap().publish().is_ok() {
                    taken += 1;
                }
            }
            Ok(Offered::AwaitingDurable) => taken += 1,
            Ok(_) | Err(_) => {}
        }
        sent.push((from.id(), path, seq, bundle, target));
        assert_none_leads_out(&birch);
    }
    assert!(taken > 50, "{taken} were shown");
}
