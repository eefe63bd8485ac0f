//! Directories that are one bundle: sealed as one, published as one, and what a crash leaves of either.

use super::super::journal::Batch;
use super::tree_times::{age, assert_ages};
use super::*;
use crate::bundle::EntryKind;
use crate::spool::inbox::probe::{INTENTS, Intent};

/// What is in a directory of the outbox: inodes with paths, and directories, relative to it.
fn contents(root: &Path) -> (Vec<(u64, RelPath)>, Vec<RelPath>) {
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let at = entry.unwrap().path();
            let below = at.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let meta = fs::symlink_metadata(&at).unwrap();
            if meta.is_dir() {
                directories.push(rel(&below));
                open.push(at);
            } else {
                files.push((meta.ino(), rel(&below)));
            }
        }
    }
    (files, directories)
}

impl Node {
    pub(super) fn fill(&self, directory: &str, files: &[(&str, &[u8])]) {
        fs::create_dir_all(self.outbox(directory)).unwrap();
        for (name, bytes) in files {
            let at = self.outbox(directory).join(name);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, bytes).unwrap();
        }
    }

    /// What `fs` does before it renames a directory to an ordinary name.
    pub(super) fn announce_tree(&self, from: &str, to: &str) -> u64 {
        let (files, directories) = contents(&self.outbox(from));
        let ino = fs::metadata(self.outbox(from)).unwrap().ino();
        let file = |(ino, path)| (ino, rel(&format!("{from}/{path}")));
        let files: Vec<(u64, RelPath)> = files.into_iter().map(file).collect();
        let spool = self.spool();
        spool
            .outbox
            .tree_renaming(&rel(from), &rel(to), ino, &files, directories)
            .unwrap()
    }

    pub(super) fn rename_directory(&self, from: &str, to: &str) {
        fs::rename(self.outbox(from), self.outbox(to)).unwrap();
        self.spool().outbox_renamed(&rel(from), &rel(to), true);
    }

    pub(super) fn seal_tree(&self, tree: u64, root: &str) -> SealOutcome {
        let (files, directories) = contents(&self.outbox(root));
        let path = |below: RelPath| rel(&format!("{root}/{below}"));
        let files = files.into_iter().map(|(ino, p)| (ino, path(p))).collect();
        let directories = directories.into_iter().map(path);
        let directories = std::iter::once(rel(root)).chain(directories).collect();
        self.ask_seal_tree(tree, root, files, directories)
    }

    fn ask_seal_tree(
        &self,
        tree: u64,
        root: &str,
        files: Vec<(u64, RelPath)>,
        directories: Vec<RelPath>,
    ) -> SealOutcome {
        let (done, outcome) = crossbeam_channel::bounded(1);
        self.spool().outbox.seal_tree(TreeRequest {
            tree,
            root: rel(root),
            files,
            directories,
            priority: Priority::Routine,
            done: Box::new(move |outcome| done.send(outcome).unwrap()),
        });
        outcome.recv().unwrap()
    }

    /// `mv FROM TO`, and what follows.
    pub(super) fn commit(&self, from: &str, to: &str) -> BundleId {
        let tree = self.announce_tree(from, to);
        self.rename_directory(from, to);
        match self.seal_tree(tree, to) {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    fn trees(&self) -> usize {
        self.spool().outbox.trees()
    }

    fn names(&self, bundle: BundleId) -> Vec<String> {
        let manifest = self.manifest(bundle);
        let entries = manifest.manifest().entries.iter();
        entries
            .map(|entry| match entry.kind {
                EntryKind::File { .. } | EntryKind::Link { .. } => entry.path.to_string(),
                EntryKind::Directory => format!("{}/", entry.path),
            })
            .collect()
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8(fs::read(self.inbox(path)).unwrap()).unwrap()
    }
}

/// Seals what recovery found of trees, as `ready` would.
pub(super) fn seal_recovered_trees(node: &Node) -> Vec<(String, usize, SealOutcome)> {
    let found = node.spool().outbox.recovered_trees();
    let seal = |tree: RecoveredTree| {
        assert!(tree.files.iter().all(|file| !file.incomplete));
        let files: Vec<_> = tree.files.into_iter().map(|f| (f.ino, f.path)).collect();
        let (root, count) = (tree.root.to_string(), files.len());
        let outcome = node.ask_seal_tree(tree.tree, &root, files, tree.directories);
        (root, count, outcome)
    };
    found.into_iter().map(seal).collect()
}

/// What the spool told of the inbox, in order.
#[derive(Default)]
struct Watched {
    said: Mutex<Vec<String>>,
    /// Names to look at before and after a switch, below this inbox.
    look: Vec<PathBuf>,
}

impl Watched {
    fn seen(&self) -> String {
        let read = |at: &PathBuf| fs::read_to_string(at).unwrap_or_else(|_| "-".into());
        self.look.iter().map(read).collect::<Vec<_>>().join(" ")
    }
}

impl InboxObserver for Watched {
    fn prepare(&self, replaced: &[RelPath]) {
        let mut names: Vec<String> = replaced.iter().map(ToString::to_string).collect();
        names.sort();
        self.said
            .lock()
            .push(format!("prepare {}", names.join(" ")));
    }
    fn unprepare(&self) {
        self.said.lock().push("unprepare".into());
    }
    fn switch(&self, give: &mut dyn FnMut()) {
        let before = self.seen();
        give();
        let said = format!("switch from {before} to {}", self.seen());
        self.said.lock().push(said);
    }
    fn published(&self, names: &[NewName]) {
        let name = |new: &NewName| match (new.directory, new.replaced) {
            (true, _) => format!("{}/", new.path),
            (false, None) => new.path.to_string(),
            (false, Some(_)) => format!("{}!", new.path),
        };
        let names: Vec<String> = names.iter().map(name).collect();
        self.said
            .lock()
            .push(format!("published {}", names.join(" ")));
    }
    fn renamed(&self, from: &RelPath, to: &RelPath, _replaced: Option<u64>) {
        self.said.lock().push(format!("renamed {from} to {to}"));
    }
    fn removed(&self, path: &RelPath) {
        self.said.lock().push(format!("removed {path}"));
    }
}

fn watch(node: &Node, look: &[&str]) -> Arc<Watched> {
    let look = look.iter().map(|path| node.inbox(path)).collect();
    let watched = Arc::new(Watched {
        look,
        ..Watched::default()
    });
    node.spool().observe_inbox(watched.clone());
    watched
}

#[test]
fn a_directory_is_one_bundle_of_everything_in_it() {
    let (alder, birch) = pair();
    alder.fill(
        ".d",
        &[
            ("a", b"a"),
            (".hidden", b"h"),
            ("sub/b.part", &pattern(100_000)),
        ],
    );
    fs::create_dir_all(alder.outbox(".d/sub/empty")).unwrap();
    let bundle = alder.commit(".d", "d");
    assert_eq!(
        alder.names(bundle),
        ["d/.hidden", "d/a", "d/sub/b.part", "d/sub/empty/"]
    );
    assert_eq!(alder.trees(), 0);
    assert_eq!(alder.spool().outbound(None, 9).len(), 1);
    assert_eq!(alder.spool().outbound(None, 9)[0].path, "d");
    let watched = watch(&birch, &[]);
    assert_eq!(birch.fetch(&alder, bundle), 100_002);
    assert_eq!(birch.read("d/.hidden"), "h");
    assert_eq!(
        fs::read(birch.inbox("d/sub/b.part")).unwrap(),
        pattern(100_000)
    );
    assert!(birch.inbox("d/sub/empty").is_dir());
    assert_eq!(
        *watched.said.lock(),
        ["published d/ d/.hidden d/a d/sub/ d/sub/b.part d/sub/empty/"],
        "a new directory appears by one rename"
    );
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert_eq!(alder.spool().outbound(None, 9)[0].state, "delivered");
    assert_eq!(birch.spool().inbound(None, 9)[0].path, "d");
    let left: Vec<_> = fs::read_dir(birch.state().join("partial"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_empty_directory_travels() {
    let (alder, birch) = pair();
    alder.fill(".d", &[]);
    birch.fetch(&alder, alder.commit(".d", "d"));
    assert!(birch.inbox("d").is_dir());
}

#[test]
fn over_a_directory_that_is_there_all_names_change_in_one_switch() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("b", b"b1"), ("keep", b"k1")]);
    birch.fetch(&alder, alder.commit(".d", "d"));
    fs::rename(alder.outbox("d"), alder.outbox("aside")).unwrap();
    alder.fill(".d", &[("a", b"a2"), ("b", b"b2"), ("sub/c", b"c2")]);
    let bundle = alder.commit(".d", "d");
    let watched = watch(&birch, &["d/a", "d/b", "d/sub/c", "d/keep"]);
    birch.fetch(&alder, bundle);
    assert_eq!(
        *watched.said.lock(),
        [
            "prepare d/a d/b",
            "switch from a1 b1 - k1 to a2 b2 c2 k1",
            "published d/a! d/b! d/sub/ d/sub/c",
            "unprepare",
        ]
    );
}

#[test]
fn a_file_in_the_way_of_a_newer_directory_is_forgotten_before_the_switch() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("x", b"a file")]);
    birch.fetch(&alder, alder.commit(".d", "d"));
    fs::rename(alder.outbox("d"), alder.outbox("aside")).unwrap();
    alder.fill(".d", &[("a", b"a2"), ("x/y", b"below")]);
    let bundle = alder.commit(".d", "d");
    let watched = watch(&birch, &["d/a", "d/x/y"]);
    birch.fetch(&alder, bundle);
    let said = watched.said.lock().clone();
    assert_eq!(
        said[..2],
        ["prepare d/a d/x", "switch from a1 - to a2 below"]
    );
}

#[test]
fn a_directory_that_meets_another_origins_file_is_kept_together_beside_it() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&cedar, cedar.drop_file("d", b"a file of cedar's"));
    alder.fill(".d", &[("a", b"a"), ("sub/b", b"b")]);
    birch.fetch(&alder, alder.commit(".d", "d"));
    assert_eq!(birch.read("d"), "a file of cedar's");
    assert_eq!(
        (birch.read("d~alder/a"), birch.read("d~alder/sub/b")),
        ("a".into(), "b".into())
    );
    // And what changes later goes where the first version went.
    birch.fetch(&alder, alder.drop_file("d/a", b"a2"));
    assert_eq!(birch.read("d~alder/a"), "a2");
}

#[test]
fn an_older_bundle_that_comes_late_gives_only_what_is_still_newest() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("b", b"b1"), ("x/y", b"y1")]);
    let old = alder.commit(".d", "d");
    let newer = alder.drop_file("d/a", b"a2");
    fs::remove_dir_all(alder.outbox("d/x")).unwrap();
    let file = alder.drop_file("d/x", b"a file now");
    for bundle in [newer, file, old] {
        birch.fetch(&alder, bundle);
    }
    let read = ["d/a", "d/b", "d/x"].map(|path| birch.read(path));
    assert_eq!(read, ["a2", "b1", "a file now"]);
}

#[test]
fn of_a_hundred_files_of_which_one_changed_the_others_are_still_delivered() {
    let (alder, birch) = pair();
    let names: Vec<String> = (0..100).map(|n| format!("f{n}")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|n| (n.as_str(), b"one".as_slice()))
        .collect();
    alder.fill(".d", &files);
    let bundle = alder.commit(".d", "d");
    let newer = alder.drop_file("d/f7", b"two");
    assert!(
        alder.spool().ledger.is_pending(bundle, birch.id()),
        "99 are still wanted"
    );
    for bundle in [bundle, newer] {
        birch.fetch(&alder, bundle);
        alder.spool().take_receipt(&birch.receipt()).unwrap();
    }
    for name in &names {
        let want = if name == "f7" { "two" } else { "one" };
        assert_eq!(birch.read(&format!("d/{name}")), want);
    }
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
}

#[test]
fn a_bundle_of_many_is_superseded_when_all_of_its_files_are() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("b", b"b1"), ("c", b"c1")]);
    let bundle = alder.commit(".d", "d");
    for (at, path) in ["d/a", "d/c", "d/b"].iter().enumerate() {
        assert!(
            alder.spool().ledger.is_pending(bundle, birch.id()),
            "after {at} changes"
        );
        alder.drop_file(path, b"changed");
    }
    assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        3
    );
    // By another tree at once, too.
    alder.fill(".e", &[("a", b"a1"), ("b", b"b1")]);
    let first = alder.commit(".e", "e");
    fs::rename(alder.outbox("e"), alder.outbox("aside")).unwrap();
    alder.fill(".e", &[("a", b"a2"), ("b", b"b2")]);
    alder.commit(".e", "e");
    assert!(!alder.spool().ledger.is_pending(first, birch.id()));
}

#[test]
fn who_joins_later_gets_what_is_left_of_a_bundle_whose_other_files_were_replaced() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("b", b"b1"), ("c", b"c1")]);
    let whole = alder.commit(".d", "d");
    birch.fetch(&alder, whole);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let changed = alder.drop_file("d/a", b"a2");
    birch.fetch(&alder, changed);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let cedar = Node::new();
    cedar.knows(&alder, "alder");
    alder.knows(&cedar, "cedar");
    let pending = alder.spool().ledger.pending(cedar.id(), None, 9).unwrap();
    assert_eq!(pending.len(), 2, "{pending:?}");
    for (_, bundle) in pending {
        cedar.fetch(&alder, bundle);
        alder.spool().take_receipt(&cedar.receipt()).unwrap();
    }
    let read = ["d/a", "d/b", "d/c"].map(|path| cedar.read(path));
    assert_eq!(read, ["a2", "b1", "c1"]);
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
}

#[test]
fn a_member_that_is_open_makes_the_seal_wait_and_one_that_is_gone_is_left_out() {
    let alder = Node::new();
    alder.fill(".d", &[("a", b"a"), ("b", b"b")]);
    let tree = alder.announce_tree(".d", "d");
    alder.rename_directory(".d", "d");
    let gate = alder.spool().outbox.gate(alder.ino("d/a"));
    gate.lock().add_writer();
    assert!(matches!(alder.seal_tree(tree, "d"), SealOutcome::Changed));
    assert_eq!(alder.trees(), 1);
    gate.lock().remove_writer();
    let (mut files, _) = contents(&alder.outbox("d"));
    for (_, path) in &mut files {
        *path = rel(&format!("d/{path}"));
    }
    fs::remove_file(alder.outbox("d/b")).unwrap();
    let SealOutcome::Sealed(bundle) = alder.ask_seal_tree(tree, "d", files, vec![rel("d")]) else {
        panic!("not sealed")
    };
    assert_eq!(alder.names(bundle), ["d/a"]);
}

#[test]
fn killed_before_the_rename_nothing_is_sent_and_killed_after_it_all_is() {
    for renamed in [false, true] {
        let (mut alder, birch) = pair();
        alder.fill(".d", &[("a", b"a"), (".hidden", b"h"), ("sub/b", b"b")]);
        fs::create_dir(alder.outbox(".d/empty")).unwrap();
        alder.announce_tree(".d", "d");
        if renamed {
            fs::rename(alder.outbox(".d"), alder.outbox("d")).unwrap();
        }
        // Made in it after the rename: no member.
        fs::write(
            alder.outbox(if renamed { "d" } else { ".d" }).join("later"),
            b"l",
        )
        .unwrap();
        alder.stop();
        alder.start();
        let sealed = seal_recovered_trees(&alder);
        assert_eq!(alder.trees(), 0);
        if !renamed {
            assert!(sealed.is_empty(), "{sealed:?}");
            continue;
        }
        let [(root, 3, SealOutcome::Sealed(bundle))] = &sealed[..] else {
            panic!("{sealed:?}")
        };
        assert_eq!(root, "d");
        assert_eq!(
            alder.names(*bundle),
            ["d/.hidden", "d/a", "d/empty/", "d/sub/b"]
        );
        let alone: Vec<String> = alder
            .spool()
            .outbox
            .recovered()
            .iter()
            .map(|file| file.path.to_string())
            .collect();
        assert_eq!(alone, ["d/later"]);
        birch.fetch(&alder, *bundle);
        assert_eq!(birch.read("d/.hidden"), "h");
    }
}

#[test]
fn killed_at_a_later_rename_the_tree_is_found_on_either_side_of_it() {
    for renamed in [false, true] {
        let mut alder = Node::new();
        alder.fill(".d", &[("a", b"a"), ("b", b"b")]);
        let tree = alder.announce_tree(".d", "d");
        alder.rename_directory(".d", "d");
        alder
            .spool()
            .outbox
            .tree_moving(tree, &rel("d"), &rel("e"))
            .unwrap();
        if renamed {
            fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
        }
        alder.stop();
        alder.start();
        let sealed = seal_recovered_trees(&alder);
        let root = if renamed { "e" } else { "d" };
        assert!(
            matches!(&sealed[..], [(found, 2, SealOutcome::Sealed(_))] if found == root),
            "{sealed:?}"
        );
    }
}

#[test]
fn after_a_power_loss_a_tree_that_was_not_sealed_is_incomplete() {
    let mut alder = Node::new();
    alder.fill(".d", &[("a", b"a"), ("b", b"b")]);
    alder.announce_tree(".d", "d");
    alder.rename_directory(".d", "d");
    alder.power_loss();
    let trees = alder.spool().outbox.recovered_trees();
    let files = trees.iter().flat_map(|tree| tree.files.clone());
    let found: Vec<RecoveredFile> = files.chain(alder.spool().outbox.recovered()).collect();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|file| file.incomplete), "{found:?}");
}

#[test]
fn a_sealed_tree_is_not_sealed_again() {
    let (mut alder, birch) = pair();
    alder.fill(".d", &[("a", b"a"), (".b", b"b")]);
    let bundle = alder.commit(".d", "d");
    alder.stop();
    alder.start();
    assert!(
        alder.spool().outbox.recovered_trees().is_empty()
            && alder.spool().outbox.recovered().is_empty()
    );
    birch.fetch(&alder, bundle);
    assert_eq!(birch.read("d/.b"), "b");
}

/// Staged as after `finish`, in the given places; then killed.
fn crash_in_publish(over_existing: bool, given: usize, in_tree: usize) {
    let (alder, mut birch) = pair();
    if over_existing {
        birch.fetch(&alder, alder.drop_file("d/a", b"old"));
    }
    alder.fill(
        ".d",
        &[("a", b"new a"), ("b", b"new b"), ("sub/c", b"new c")],
    );
    if over_existing {
        fs::rename(alder.outbox("d"), alder.outbox("aside")).unwrap();
    }
    fs::create_dir(alder.outbox(".d/empty")).unwrap();
    let times = [("", (10, 1)), ("sub", (-20, 2)), ("empty", (30, 3))];
    age(&alder.outbox(".d"), &times);
    let bundle = alder.commit(".d", "d");
    let manifest = alder.manifest(bundle);
    let partial = birch.state().join("partial");
    let mut names = Vec::new();
    for (index, entry) in manifest.manifest().entries.iter().enumerate() {
        let name = entry.path.clone();
        if entry.digest().is_none() {
            names.push((index as u32, name, 0));
            continue;
        }
        let at = if index < given {
            birch.inbox(&name.to_string())
        } else if index < given + in_tree {
            partial.join(format!("{bundle}.tree")).join(name.as_path())
        } else {
            partial.join(format!("{bundle}.{index}"))
        };
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let staged = partial.join("staged");
        fs::copy(alder.outbox(&name.to_string()), &staged).unwrap();
        let ino = fs::metadata(&staged).unwrap().ino();
        fs::rename(staged, at).unwrap();
        names.push((index as u32, name, ino));
    }
    let mut batch = Batch::default();
    let intent = Intent {
        signed: manifest.signed().clone(),
        slices: 0,
        names,
    };
    batch.insert(INTENTS, &bundle, &intent);
    birch.spool().journal.submit(batch).unwrap();
    birch.stop();
    birch.start();
    let read = ["d/a", "d/b", "d/sub/c"].map(|path| birch.read(path));
    assert_eq!(
        read,
        ["new a", "new b", "new c"],
        "{given} given, {in_tree} in the tree"
    );
    assert_ages(&birch.inbox("d"), &times);
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(bundle).is_some());
    let left: Vec<_> = fs::read_dir(&partial).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_publish_cut_off_anywhere_is_completed_at_the_next_start() {
    for given in [0, 1, 2, 4] {
        crash_in_publish(true, given, 0);
    }
    for in_tree in [0, 1, 4] {
        crash_in_publish(false, 0, in_tree);
    }
    crash_in_publish(false, 4, 0);
}

#[test]
fn a_merge_that_our_disk_cannot_show_whole_is_invisible_and_comes_later() {
    let (alder, birch) = pair();
    birch.fetch(
        &alder,
        alder.drop_file("d/old", b"so that the directory is there"),
    );
    alder.fill(".d", &[("a", b"a"), ("b", b"b"), ("c", b"c")]);
    alder.rename_directory("d", "aside");
    let bundle = alder.commit(".d", "d");
    let manifest = alder.manifest(bundle);
    let Offered::Wanted(mut incoming) =
        birch.spool().offered(manifest.clone(), alder.id()).unwrap()
    else {
        panic!("not wanted")
    };
    for (entry, bytes) in [b"a", b"b", b"c"].iter().enumerate() {
        incoming.accept_chunk(entry, 0, *bytes).unwrap();
    }
    let verified = incoming.finish().unwrap();
    let partial = birch.state().join("partial");
    fs::remove_file(partial.join(format!("{bundle}.1"))).unwrap();
    verified.publish().unwrap_err();
    for name in ["d/a", "d/b", "d/c"] {
        assert!(!birch.inbox(name).exists(), "{name}");
    }
    assert!(birch.spool().ledger.receipt(bundle).is_none());
    assert_eq!(birch.fetch(&alder, bundle), 1, "what was whole is here");
    let read = ["d/a", "d/b", "d/c"].map(|name| birch.read(name));
    assert_eq!(read, ["a", "b", "c"]);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
}

#[test]
fn a_tree_that_cannot_be_built_is_invisible_and_comes_later() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a"), ("b", b"b")]);
    let bundle = alder.commit(".d", "d");
    let Offered::Wanted(mut incoming) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("not wanted")
    };
    for (entry, bytes) in [b"a", b"b"].iter().enumerate() {
        incoming.accept_chunk(entry, 0, *bytes).unwrap();
    }
    let verified = incoming.finish().unwrap();
    let partial = birch.state().join("partial");
    fs::remove_file(partial.join(format!("{bundle}.1"))).unwrap();
    verified.publish().unwrap_err();
    assert!(!birch.inbox("d").exists());
    assert_eq!(
        birch.fetch(&alder, bundle),
        1,
        "what was whole is not fetched again"
    );
    assert_eq!(
        (birch.read("d/a"), birch.read("d/b")),
        ("a".into(), "b".into())
    );
}

#[test]
fn a_thousand_files_need_no_thousand_descriptors() {
    let (alder, birch) = pair();
    let names: Vec<String> = (0..1000).map(|n| format!("{}/f{n}", n % 10)).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
    alder.fill(".d", &files);
    let bundle = alder.commit(".d", "d");
    let Offered::Wanted(mut incoming) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("not wanted")
    };
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    for entry in 0..1000 {
        let mut reader = alder
            .spool()
            .open_content(bundle, entry, birch.id())
            .unwrap();
        let len = reader.len() as usize;
        incoming
            .accept_chunk(entry, 0, &reader.read(0, len).unwrap())
            .unwrap();
    }
    assert!(open() < 500, "{} descriptors", open());
    incoming.finish().unwrap().publish().unwrap();
    for name in &names {
        assert_eq!(birch.read(&format!("d/{name}")), *name);
    }
    alder.spool().take_receipt(&birch.receipt()).unwrap();
}

#[test]
fn marks_of_members_go_with_the_seal() {
    let alder = Node::new();
    alder.fill(".d", &[("a", b"a"), ("b", b"b")]);
    let tree = alder.announce_tree(".d", "d");
    alder.rename_directory(".d", "d");
    alder
        .spool()
        .outbox
        .mark_torn(alder.ino("d/a"), &rel("d/a"));
    assert_eq!(alder.spool().counts().incomplete, 1);
    assert!(matches!(alder.seal_tree(tree, "d"), SealOutcome::Sealed(_)));
    let marks = alder.spool().outbox.all_marks();
    assert!(
        marks.iter().all(|(_, mark)| mark.kind != MarkKind::Torn),
        "{marks:?}"
    );
    let state = alder.spool().outbox_state(&rel("d/a"), alder.ino("d/a"));
    assert!(state.bundle.is_some(), "{state:?}");
}
