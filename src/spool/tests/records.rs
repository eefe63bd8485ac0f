//! Records: what a start believes of a state whose files are not, or not all, what its rows say. The states are those
//! that a power loss, a restore or a copy leaves, put on the disk by hand.

use std::os::unix::fs::FileExt;
use std::process::Command;

use super::super::journal::Batch;
use super::super::tables::Stat;
use super::trees::seal_recovered_trees;
use super::*;
use crate::spool::inbox::InName;
use crate::spool::inbox::probe::{IN_NAMES, INTENTS, Intent};

fn row(node: &Node, name: &str) -> InName {
    let row = node.spool().journal.row(IN_NAMES, &rel(name));
    row.unwrap().unwrap()
}

fn submit(node: &Node, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    fill(&mut batch);
    node.spool().journal.submit(batch).unwrap();
}

/// The number of the inode of `row` is another file's by now, as where a file system gives it to the next one at once: the
/// record is left as it was.
fn reuse_number(node: &Node, name: &str, ino: u64) {
    let before = row(node, name);
    let record = node.spool().content.record_of(before.ino).unwrap().unwrap();
    submit(node, |batch| {
        let stat = Stat { ino, ..record.stat };
        let content = &node.spool().content;
        content.forget_record(before.ino, batch);
        content.record(record.digest, &stat, batch).unwrap();
        batch.insert(IN_NAMES, &rel(name), &InName { ino, ..before });
    });
}

/// What lies in quarantine, without the reasons.
fn quarantined(node: &Node) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(node.state().join("quarantine")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_none());
    files.map(|path| fs::read(path).unwrap()).collect()
}

/// Moves the state to another directory with `copy`, which is run as `copy FROM TO`, and starts it there.
fn moves(node: &mut Node, script: &str) {
    node.stop();
    let old = node.dir.path().join("old");
    fs::rename(node.state(), &old).unwrap();
    let status = Command::new("sh")
        .args(["-ec", script, "sh"])
        .args([&old, &node.state()])
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
    fs::remove_dir_all(old).unwrap();
    node.start();
}

const WAYS: [&str; 4] = [
    "cp -a \"$1\" \"$2\"",
    "mkdir \"$2\" && tar -C \"$1\" -cf - . | tar -C \"$2\" -xf -",
    // Without the hard links.
    "cp -r --preserve=mode \"$1\" \"$2\"",
    "command -v rsync >/dev/null || exec cp -a \"$1\" \"$2\"; rsync -aHX \"$1/\" \"$2/\"",
];

#[test]
fn an_inode_number_used_again_does_not_make_lost_bytes_a_received_file() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    assert_eq!(birch.receipt().origin, alder.id());
    // The user consumed it, the next version got its inode number; its metadata reached the disk, its bytes did not.
    fs::remove_file(birch.inbox("a")).unwrap();
    fs::write(birch.inbox("a"), b"").unwrap();
    let ino = birch.inbox_ino("a");
    reuse_number(&birch, "a", ino);
    birch.power_loss();
    assert!(!birch.inbox("a").exists(), "hidden before it is hashed");
    birch.checked();
    assert!(!birch.inbox("a").exists());
    assert_eq!(quarantined(&birch), [b""]);
    let trouble = birch.spool().trouble().unwrap();
    assert!(
        trouble.contains("inbox/a") && trouble.contains("quarantine"),
        "{trouble}"
    );
    // The next version mends it.
    birch.fetch(&alder, alder.drop_file("a", b"two"));
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
    assert_eq!(birch.spool().trouble(), None);
}

#[test]
fn an_inode_number_used_again_with_the_same_length_and_time_is_hashed() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    let time = fs::metadata(birch.inbox("a")).unwrap().modified().unwrap();
    fs::remove_file(birch.inbox("a")).unwrap();
    fs::write(birch.inbox("a"), [0; 3]).unwrap();
    let file = File::options().write(true).open(birch.inbox("a")).unwrap();
    file.set_modified(time).unwrap();
    reuse_number(&birch, "a", birch.inbox_ino("a"));
    birch.power_loss();
    birch.checked();
    assert!(!birch.inbox("a").exists());
}

#[test]
fn content_with_a_number_used_again_does_not_stand_for_its_digest() {
    let (alder, mut birch) = pair();
    let bytes = pattern(100_000);
    birch.fetch(&alder, alder.drop_file("a", &bytes));
    birch.receipt();
    let content = birch.spool().layout().content(Digest::of(&bytes));
    for at in [&content, &birch.inbox("a")] {
        fs::remove_file(at).unwrap();
    }
    fs::write(&content, vec![0; bytes.len()]).unwrap();
    fs::hard_link(&content, birch.inbox("a")).unwrap();
    reuse_number(&birch, "a", birch.inbox_ino("a"));
    birch.power_loss();
    birch.checked();
    assert!(!content.exists() && !birch.inbox("a").exists());
    // What is dropped here with these bytes is sent with them.
    alder.fetch(&birch, birch.drop_file("b", &bytes));
    assert_eq!(fs::read(alder.inbox("b")).unwrap(), bytes);
}

#[test]
fn a_whole_file_whose_intent_reached_the_disk_is_published_after_a_power_loss() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    let second = alder.drop_file("a", b"two, which is longer");
    let manifest = alder.manifest(second);
    birch.stop();
    fs::write(birch.state().join("new"), b"two, which is longer").unwrap();
    fs::rename(birch.state().join("new"), birch.inbox("a")).unwrap();
    let intent = Intent {
        signed: manifest.signed().clone(),
        slices: 0,
        names: vec![(0, rel("a"), birch.inbox_ino("a"))],
    };
    let mut batch = Batch::default();
    batch.insert(INTENTS, &second, &intent);
    journal::append_to_log(&birch.state(), &batch);
    birch.lost_power();
    birch.start();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two, which is longer");
    assert!(birch.spool().ledger.receipt(second).is_some());
    assert!(quarantined(&birch).is_empty());
    assert_eq!(birch.spool().trouble(), None);
    assert_eq!(row(&birch, "a").bundle, second);
}

#[test]
fn of_a_bundle_that_a_power_loss_tore_only_what_is_lost_is_fetched_again() {
    let (alder, mut birch) = pair();
    let (lost, whole) = (pattern(200_000), pattern(300_000));
    fs::create_dir_all(alder.outbox("d")).unwrap();
    fs::write(alder.outbox("d/lost"), &lost).unwrap();
    fs::write(alder.outbox("d/whole"), &whole).unwrap();
    let request = SendRequest {
        files: vec![
            (rel("d/lost"), rel("d/lost")),
            (rel("d/whole"), rel("d/whole")),
        ],
        to: Vec::new(),
        priority: None,
        id: None,
    };
    let Sent::Sealed(bundle) = alder.spool().send_files(&request).unwrap() else {
        panic!("not sealed")
    };
    let manifest = alder.manifest(bundle);
    birch.stop();
    fs::create_dir(birch.inbox("d")).unwrap();
    fs::write(birch.inbox("d/lost"), &lost[..9]).unwrap();
    fs::write(birch.inbox("d/whole"), &whole).unwrap();
    let names = [(0, "d/lost"), (1, "d/whole")];
    let intent = Intent {
        signed: manifest.signed().clone(),
        slices: 0,
        names: names
            .map(|(index, name)| (index, rel(name), birch.inbox_ino(name)))
            .to_vec(),
    };
    let mut batch = Batch::default();
    batch.insert(INTENTS, &bundle, &intent);
    journal::append_to_log(&birch.state(), &batch);
    birch.lost_power();
    birch.start();
    assert!(!birch.inbox("d/lost").exists() && !birch.inbox("d/whole").exists());
    assert_eq!(quarantined(&birch), [&lost[..9]]);
    assert_eq!(birch.fetch(&alder, bundle), lost.len() as u64);
    assert_eq!(fs::read(birch.inbox("d/whole")).unwrap(), whole);
}

#[test]
fn a_whole_file_without_an_intent_is_fetched_again() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    let second = alder.drop_file("a", b"two, which is longer");
    birch.stop();
    fs::write(birch.state().join("new"), b"two, which is longer").unwrap();
    fs::rename(birch.state().join("new"), birch.inbox("a")).unwrap();
    birch.lost_power();
    birch.start();
    birch.checked();
    assert!(!birch.inbox("a").exists(), "nobody vouches for it");
    birch.fetch(&alder, second);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two, which is longer");
    assert_eq!(birch.spool().trouble(), None);
}

#[test]
fn after_a_failed_sync_an_intent_is_not_believed() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("a", b"one");
    let manifest = alder.manifest(bundle);
    birch.stop();
    fs::write(birch.inbox("a"), b"one").unwrap();
    let intent = Intent {
        signed: manifest.signed().clone(),
        slices: 0,
        names: vec![(0, rel("a"), birch.inbox_ino("a"))],
    };
    let mut batch = Batch::default();
    batch.insert(INTENTS, &bundle, &intent);
    journal::append_to_log(&birch.state(), &batch);
    start::distrust_page_cache(&birch.state()).unwrap();
    birch.start();
    assert!(!birch.inbox("a").exists());
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"one");
}

#[test]
fn a_moved_state_keeps_its_inbox() {
    for way in WAYS {
        let (alder, mut birch) = pair();
        let large = pattern(3 * LEAF as usize);
        birch.fetch(&alder, alder.drop_file("d/small", b"small"));
        birch.fetch(&alder, alder.drop_file("large", &large));
        birch.fetch(&alder, alder.drop_file("same", &large));
        birch.receipt();
        moves(&mut birch, way);
        birch.checked();
        assert_eq!(fs::read(birch.inbox("d/small")).unwrap(), b"small", "{way}");
        assert_eq!(fs::read(birch.inbox("large")).unwrap(), large, "{way}");
        assert_eq!(fs::read(birch.inbox("same")).unwrap(), large, "{way}");
        assert!(quarantined(&birch).is_empty(), "{way}");
        assert_eq!(birch.spool().trouble(), None, "{way}");
        let state = birch
            .spool()
            .inbox_state(&rel("large"), birch.inbox_ino("large"));
        assert_eq!(state.word(), "received", "{way}");
        // What was moved once is as good as new: believed, consumed, served.
        birch.stop();
        birch.start();
        assert_eq!(birch.spool().counts().unverified, 0, "{way}");
        birch.spool().inbox_unlink(&rel("large")).unwrap();
        let inbound = birch.spool().inbound(None, 9);
        let state = |name: &str| {
            let row = inbound.iter().find(|row| row.path == name);
            row.unwrap().state
        };
        assert_eq!(state("large"), "consumed", "{way}");
        assert_eq!(state("d/small"), "received", "{way}");
    }
}

#[test]
fn a_moved_state_sends_nothing_twice_and_loses_nothing_queued() {
    for way in WAYS {
        let (mut alder, birch) = pair();
        let (waits, removed) = (pattern(200_000), pattern(250_000));
        let given = alder.drop_file("given", b"given");
        birch.fetch(&alder, given);
        alder.spool().take_receipt(&birch.receipt()).unwrap();
        let queued = alder.drop_file("waits", &waits);
        let without_name = alder.drop_file("removed", &removed);
        let ino = alder.ino("removed");
        fs::remove_file(alder.outbox("removed")).unwrap();
        alder.spool().outbox_removed(&rel("removed"), ino, 0);
        moves(&mut alder, way);
        for file in alder.spool().outbox.recovered() {
            assert!(!file.incomplete, "{way}: {file:?}");
            let outcome = alder.seal(&file.path.to_string());
            let same = if file.path == rel("given") {
                given
            } else {
                queued
            };
            assert!(
                matches!(outcome, SealOutcome::Sealed(bundle) if bundle == same),
                "{way}: {outcome:?}"
            );
        }
        birch.fetch(&alder, queued);
        birch.fetch(&alder, without_name);
        assert_eq!(fs::read(birch.inbox("waits")).unwrap(), waits, "{way}");
        assert_eq!(fs::read(birch.inbox("removed")).unwrap(), removed, "{way}");
        alder.stop();
        alder.start();
        assert!(
            alder.spool().outbox.recovered().is_empty(),
            "{way}: once is enough"
        );
    }
}

#[test]
fn a_moved_state_sends_a_waiting_directory_as_one() {
    for way in WAYS {
        // Before and after the first rename, and on either side of a later one.
        for (at, moving) in [(".d", false), ("d", false), ("d", true), ("e", true)] {
            let (mut alder, birch) = pair();
            alder.fill(".d", &[("a", b"a"), (".hidden", b"h"), ("sub/b", b"b")]);
            fs::create_dir(alder.outbox(".d/empty")).unwrap();
            let tree = alder.announce_tree(".d", "d");
            if moving {
                let spool = alder.spool();
                spool
                    .outbox
                    .tree_moving(tree, &rel("d"), &rel("e"))
                    .unwrap();
            }
            if at != ".d" {
                fs::rename(alder.outbox(".d"), alder.outbox(at)).unwrap();
            }
            fs::write(alder.outbox(at).join("later"), b"l").unwrap();
            moves(&mut alder, way);
            let sealed = seal_recovered_trees(&alder);
            if at == ".d" {
                assert!(sealed.is_empty(), "{way}: {sealed:?}");
                continue;
            }
            let [(root, 3, SealOutcome::Sealed(bundle))] = &sealed[..] else {
                panic!("{way}: {sealed:?}")
            };
            assert_eq!(root, at, "{way}");
            let alone = alder.spool().outbox.recovered();
            let [later] = &alone[..] else {
                panic!("{way}: {alone:?}")
            };
            assert_eq!(later.path.file_name(), b"later", "{way}");
            birch.fetch(&alder, *bundle);
            for (name, bytes) in [("a", "a"), (".hidden", "h"), ("sub/b", "b")] {
                let name = format!("{at}/{name}");
                assert_eq!(fs::read(birch.inbox(&name)).unwrap(), bytes.as_bytes());
            }
            assert!(birch.inbox(&format!("{at}/empty")).is_dir(), "{way}");
            // It is sealed for good.
            alder.stop();
            alder.start();
            assert!(alder.spool().outbox.recovered_trees().is_empty(), "{way}");
        }
    }
}

#[test]
fn a_changed_file_of_a_moved_outbox_does_not_change_what_waits() {
    let (mut alder, birch) = pair();
    let bytes = pattern(200_000);
    let queued = alder.drop_file("a", &bytes);
    moves(&mut alder, WAYS[0]);
    // Before it was hashed again.
    alder.drop_file("a", b"another version");
    let content = alder.spool().layout().content(Digest::of(&bytes));
    assert!(!content.exists() || fs::read(content).unwrap() == bytes);
    let served = alder.spool().open_content(queued, 0, birch.id());
    assert!(served.is_err() || served.unwrap().read(0, 100).unwrap() == bytes[..100]);
}

#[test]
fn a_name_that_a_restore_lost_is_consumed_and_one_it_changed_is_trouble() {
    let (alder, mut birch) = pair();
    for name in ["kept", "lost", "changed"] {
        birch.fetch(&alder, alder.drop_file(name, name.as_bytes()));
        birch.receipt();
    }
    moves(
        &mut birch,
        "cp -a \"$1\" \"$2\"; rm \"$2/inbox/lost\"; echo CHANGED >\"$2/inbox/changed\"",
    );
    birch.checked();
    assert!(birch.inbox("kept").exists());
    assert!(!birch.inbox("lost").exists() && !birch.inbox("changed").exists());
    assert_eq!(quarantined(&birch), [b"CHANGED\n"]);
    let inbound = birch.spool().inbound(None, 9);
    let state = |name: &str| {
        let row = inbound.iter().find(|row| row.path == name);
        row.unwrap().state
    };
    assert_eq!(
        ["kept", "lost", "changed"].map(state),
        ["received", "consumed", "damaged"]
    );
    let trouble = birch.spool().trouble().unwrap();
    assert!(trouble.contains("inbox/changed"), "{trouble}");
    // It is said until somebody has seen to it, also after another start.
    birch.stop();
    birch.start();
    assert_eq!(birch.spool().trouble(), Some(trouble));
    let quarantine = birch.state().join("quarantine");
    fs::remove_dir_all(&quarantine).unwrap();
    fs::create_dir(quarantine).unwrap();
    assert_eq!(birch.spool().trouble(), None);
}

#[test]
fn files_in_doubt_are_checked_to_the_end_after_a_start_that_did_not_get_there() {
    let (alder, mut birch) = pair();
    let bytes = pattern(5 * LEAF as usize);
    birch.fetch(&alder, alder.drop_file("d/a", &bytes));
    birch.receipt();
    birch.stop();
    // A start that was killed right after it put the file aside.
    let aside = birch.state().join("unverified/d");
    fs::create_dir_all(&aside).unwrap();
    fs::copy(birch.inbox("d/a"), aside.join("a")).unwrap();
    fs::remove_file(birch.inbox("d/a")).unwrap();
    birch.start();
    birch.checked();
    assert_eq!(fs::read(birch.inbox("d/a")).unwrap(), bytes);
}

#[test]
fn a_newer_version_of_a_file_in_doubt_is_shown_in_its_place() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    birch.stop();
    let aside = birch.state().join("unverified");
    fs::rename(birch.inbox("a"), aside.join("a")).unwrap();
    birch.start();
    birch.fetch(&alder, alder.drop_file("a", b"two"));
    birch.checked();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
    assert_eq!(fs::read_dir(aside).unwrap().count(), 0);
    birch.stop();
    birch.start();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
}

#[test]
fn a_file_of_the_inbox_whose_owner_was_changed_behind_our_back_is_hashed_and_shown() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    birch.stop();
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(birch.inbox("a"), mode).unwrap();
    birch.start();
    birch.checked();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"one");
    assert!(quarantined(&birch).is_empty());
}

/// Something that changes no byte of the file at a path, and what it is called.
type Done = (&'static str, fn(&Path));

/// What a user does through the mount that changes no byte.
const DONE: [Done; 6] = [
    ("chmod", |at| {
        fs::set_permissions(at, fs::Permissions::from_mode(0o640)).unwrap();
    }),
    ("chown", |at| {
        let meta = fs::metadata(at).unwrap();
        std::os::unix::fs::chown(at, Some(meta.uid()), Some(meta.gid())).unwrap();
    }),
    ("setxattr", |at| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(at, "user.note", b"x", flags).unwrap();
    }),
    ("utimens", |at| {
        let times = fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
        let file = File::options().write(true).open(at).unwrap();
        file.set_times(times).unwrap();
    }),
    ("link", |at| {
        fs::hard_link(at, at.with_file_name(".other")).unwrap();
    }),
    ("unlink", |at| {
        let other = at.with_file_name(".other");
        fs::hard_link(at, &other).unwrap();
        fs::remove_file(other).unwrap();
    }),
];

/// As `fs` does it.
fn do_recorded(node: &Node, path: &str, act: fn(&Path)) {
    let at = node.outbox(path);
    let spool = node.spool();
    spool.keep_record(node.ino(path), &rel(path), || act(&at));
}

/// Files of the outbox that the start found not as they were recorded.
fn found_at_start(node: &Node) -> Vec<String> {
    let found = node.spool().outbox.recovered();
    let names = found.iter().map(|file| file.path.to_string());
    names.filter(|name| name != ".other").collect()
}

#[test]
fn what_a_user_did_to_a_sealed_file_through_the_mount_leaves_it_as_recorded() {
    for power_loss in [false, true] {
        for (name, act) in DONE {
            let mut alder = Node::new();
            alder.drop_file("a", b"one");
            do_recorded(&alder, "a", act);
            do_recorded(&alder, "a", DONE[1].1);
            alder.spool().journal.flush().unwrap();
            if power_loss {
                alder.power_loss();
            } else {
                alder.stop();
                alder.start();
            }
            let found = found_at_start(&alder);
            assert!(
                found.is_empty(),
                "{name}, power loss {power_loss}: {found:?}"
            );
        }
    }
}

#[test]
fn nothing_that_a_user_does_has_other_bytes_taken_for_the_recorded_ones() {
    // Behind our back, with size and time as they were, or by somebody who still has it open.
    for open in [false, true] {
        for (name, act) in DONE {
            let (mut alder, birch) = pair();
            let bundle = alder.drop_file("a", b"one");
            birch.take_all(&alder);
            let at = alder.outbox("a");
            let ino = alder.ino("a");
            let gate = alder.spool().outbox.gate(ino);
            if open {
                gate.lock().add_writer();
            } else {
                let time = fs::metadata(&at).unwrap().modified().unwrap();
                let file = File::options().write(true).open(&at).unwrap();
                file.write_all_at(b"two", 0).unwrap();
                file.set_modified(time).unwrap();
            }
            do_recorded(&alder, "a", act);
            drop(gate);
            alder.spool().journal.flush().unwrap();
            alder.stop();
            alder.start();
            assert_eq!(found_at_start(&alder), ["a"], "{name}, open {open}");
            let sealed = alder.sealed("a");
            assert_eq!(sealed == bundle, open, "{name}: its bytes decide");
        }
    }
}

#[test]
fn another_file_under_that_name_is_not_recorded_for_it() {
    let alder = Node::new();
    alder.drop_file("a", b"one");
    let ino = alder.ino("a");
    let at = alder.outbox("a");
    // Another inode than the one that was meant has the name.
    fs::write(alder.outbox("b"), b"two").unwrap();
    let before = alder.spool().content.record_of(ino).unwrap();
    let spool = alder.spool();
    spool.keep_record(ino, &rel("b"), || {
        fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).unwrap();
    });
    assert_eq!(spool.content.record_of(ino).unwrap(), before);
    assert_eq!(spool.content.record_of(alder.ino("b")).unwrap(), None);
}

#[test]
fn a_record_that_went_meanwhile_is_not_written_again() {
    let alder = Node::new();
    alder.drop_file("a", b"one");
    let (ino, at) = (alder.ino("a"), alder.outbox("a"));
    let spool = alder.spool();
    spool.keep_record(ino, &rel("a"), || {
        fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).unwrap();
        submit(&alder, |batch| spool.content.forget_record(ino, batch));
    });
    assert_eq!(spool.content.record_of(ino).unwrap(), None);
}
