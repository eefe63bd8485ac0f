//! Directories that are committed by a rename, and inbox names that change together.

use super::*;
use crate::spool::overlay::{Layer, Moved, MovedKind};

fn mv(t: &TestFs, from: &str, to: &str) -> Result<(), FsError> {
    let (from, to) = (at(NodeId::OUTBOX, from), at(NodeId::OUTBOX, to));
    t.rename(from, to, RenameFlags::empty())
}

#[test]
fn a_directory_that_gets_an_ordinary_name_is_sealed_whole() {
    let t = test_fs();
    let d = t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME).unwrap();
    let sub = t.fs.mkdir(at(d.attr.node, "sub"), 0o755, ME).unwrap();
    t.put(d.attr.node, "f", b"x");
    t.put(sub.attr.node, ".hidden", b"x");
    mv(&t, ".d", "d").unwrap();
    let files = vec!["d/f".to_owned(), "d/sub/.hidden".to_owned()];
    assert_eq!(
        t.wait_seal(),
        Sealed::Tree(files, vec!["d".into(), "d/sub".into()])
    );
}

/// A kill right after the rename finds it in the journal.
#[test]
fn a_directory_is_not_committed_before_the_spool_knows() {
    let t = test_fs();
    t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME).unwrap();
    t.spool.close();
    mv(&t, ".d", "d").unwrap_err();
    assert_eq!(t.names(NodeId::OUTBOX), [".d"]);
}

#[test]
fn a_rename_that_fails_leaves_no_tree() {
    let mut t = test_fs();
    t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME).unwrap();
    let full = t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME).unwrap();
    t.put(full.attr.node, "f", b"x");
    assert_eq!(errno(mv(&t, ".d", "d")), libc::ENOTEMPTY);
    t.reopen();
    assert_eq!(t.spool.outbox.recovered_trees(), []);
}

#[test]
fn an_open_member_holds_its_directory_and_is_shown() {
    let t = test_fs();
    let d = t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME).unwrap();
    let (_, open) = t.create(d.attr.node, "f").unwrap();
    let other = t.put(d.attr.node, ".other", b"x");
    mv(&t, ".d", "d").unwrap();
    let state = |id| t.fs.file_state(id).unwrap().word();
    assert_eq!(state(d.attr.node), "waiting: d/f");
    assert_eq!(state(other.attr.node), "waiting: d/f");
    t.write(open.fh, 0, b"the end").unwrap();
    t.fs.release(open.fh);
    assert!(matches!(t.wait_seal(), Sealed::Tree(files, _) if files.len() == 2));
}

#[test]
fn a_committed_directory_that_moves_again_is_told_each_time() {
    let names = [".d", "d", "e", ".e"];
    // What the next start finds after so many renames.
    for (renames, found) in [(1, &["d"][..]), (2, &["e"]), (3, &[])] {
        let mut t = test_fs();
        let d = t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME).unwrap();
        let (_, open) = t.create(d.attr.node, "f").unwrap();
        t.write(open.fh, 0, b"x").unwrap();
        for pair in names.windows(2).take(renames) {
            mv(&t, pair[0], pair[1]).unwrap();
        }
        t.reopen();
        let trees = t.spool.outbox.recovered_trees().into_iter();
        let roots: Vec<String> = trees.map(|tree| tree.root.to_string()).collect();
        assert_eq!(roots, found, "after {renames}");
    }
}

#[test]
fn a_committed_directory_does_not_move_before_the_spool_knows() {
    let t = test_fs();
    let d = t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME).unwrap();
    t.create(d.attr.node, "f").unwrap();
    mv(&t, ".d", "d").unwrap();
    t.spool.close();
    mv(&t, "d", "e").unwrap_err();
    assert_eq!(t.names(NodeId::OUTBOX), ["d"]);
}

#[test]
fn while_names_are_about_to_change_together_the_kernel_is_told_to_remember_none() {
    let t = test_fs();
    let (sender, told) = channel();
    let sender = Mutex::new(sender);
    let invalidate = move |parent: NodeId, name: &[u8]| {
        let told = (parent, name.to_vec());
        sender.lock().send(told).unwrap();
    };
    t.fs.set_invalidator(Arc::new(invalidate)).unwrap();
    t.put_inbox("known", b"old");
    disk::write(t.inbox_root().join("unknown"), b"old").unwrap();
    let observer = t.observer();
    observer.prepare(&[rel("known"), rel("unknown")]);
    // At once: who prepares waits until the kernel has forgotten.
    assert_eq!(told.try_recv().unwrap(), (NodeId::INBOX, b"known".to_vec()));
    assert!(told.try_recv().is_err(), "the kernel never knew the other");
    let ttl = |name: &[u8]| t.fs.lookup(NodeId::INBOX, name).unwrap().ttl;
    assert_eq!(
        (ttl(b"known"), ttl(b"unknown")),
        (Duration::ZERO, Duration::ZERO)
    );
    let opened = t.fs.opendir(NodeId::INBOX).unwrap();
    t.fs.readdirplus(opened.fh, 0, |_, entry| {
        assert_eq!(entry.ttl, Duration::ZERO);
        false
    })
    .unwrap();
    observer.unprepare();
    assert!(!ttl(b"known").is_zero());
}

#[test]
fn nobody_looks_at_the_inbox_in_the_middle_of_a_switch() {
    let t = test_fs();
    for name in ["a", "b"] {
        t.put_inbox(name, b"0");
    }
    let observer = t.observer();
    let fs = t.fs.clone();
    let stop = AtomicBool::new(false);
    let (root, state) = (t.inbox_root(), t.spool.layout().state().to_path_buf());
    let rounds = thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut rounds = 0_u64;
            // The size of a file is the round it is from.
            let size = |name: &[u8]| fs.lookup(NodeId::INBOX, name).unwrap().attr.size;
            while !stop.load(Ordering::SeqCst) {
                let (first, second) = (size(b"a"), size(b"b"));
                assert!(
                    first <= second,
                    "a of round {first}, then b of round {second}"
                );
                rounds += 1;
            }
            rounds
        });
        for round in 2..200 {
            let staged = ["a", "b"].map(|name| (state.join(name), root.join(name)));
            for (from, _) in &staged {
                disk::write(from, vec![0; round]).unwrap();
            }
            observer.switch(&mut || {
                for (from, to) in &staged {
                    disk::rename(from, to).unwrap();
                    thread::yield_now();
                }
            });
            // Parking a lock wakes nobody who never came to wait.
            thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
        looker.join().unwrap()
    });
    assert!(rounds > 0, "nobody looked");
}

/// Names that are given, with the renames still to come: two files, one of which replaces another, and a directory.
fn given(t: &TestFs) -> Arc<Layer> {
    let state = t.spool.layout().state().to_path_buf();
    let root = t.inbox_root();
    disk::create_dir(root.join("d")).unwrap();
    for name in ["known", "d/new"] {
        disk::write(state.join(name.replace('/', ".")), b"new").unwrap();
    }
    disk::create_dir(state.join("tree")).unwrap();
    disk::write(state.join("tree/below"), b"new").unwrap();
    let moved = |name: &str, kind| {
        let at = state.join(name.replace('/', "."));
        Moved {
            name: rel(name),
            kind,
            ino: std::os::unix::fs::MetadataExt::ino(&disk::metadata(at).unwrap()),
            number: 0,
        }
    };
    let moved = vec![
        moved("known", MovedKind::File),
        moved("d/new", MovedKind::File),
        moved("tree", MovedKind::Directory),
    ];
    let rename = move |moved: &Moved| {
        let name = moved.name.to_string();
        disk::rename(state.join(name.replace('/', ".")), root.join(name)).unwrap();
        Ok(())
    };
    let layer = Arc::new(Layer::new(moved, Box::new(rename)));
    t.spool.inbox().overlay.add(Arc::clone(&layer));
    layer
}

#[test]
fn names_that_are_given_are_listed_and_found_before_they_are_renamed() {
    let t = test_fs();
    t.put_inbox("known", b"old one");
    let size = |name: &[u8]| t.fs.lookup(NodeId::INBOX, name).unwrap().attr.size;
    assert_eq!(size(b"known"), 7);
    given(&t);
    let names = || {
        let mut names = t.names(NodeId::INBOX);
        names.sort();
        names
    };
    assert_eq!(names(), ["d", "known", "tree"]);
    let d = t.fs.lookup(NodeId::INBOX, b"d").unwrap().attr.node;
    assert_eq!(t.names(d), ["new"]);
    // Nothing was renamed for that.
    assert!(!t.inbox_root().join("d/new").exists());
    assert!(!t.inbox_root().join("tree").exists());
    assert_eq!(size(b"known"), 3);
    let tree = t.fs.lookup(NodeId::INBOX, b"tree").unwrap().attr.node;
    assert_eq!(t.names(tree), ["below"]);
    assert_eq!(t.fs.lookup(d, b"new").unwrap().attr.size, 3);
    assert_eq!(names(), ["d", "known", "tree"]);
    assert_eq!(t.names(d), ["new"]);
}

#[test]
fn a_directory_in_which_a_name_is_given_is_not_empty() {
    let t = test_fs();
    given(&t);
    let removed = t.spool.inbox_rmdir(&rel("d")).unwrap_err();
    assert!(removed.to_string().contains("not empty"), "{removed}");
    let d = t.fs.lookup(NodeId::INBOX, b"d").unwrap().attr.node;
    t.fs.lookup(d, b"new").unwrap();
    disk::remove_file(t.inbox_root().join("d/new")).unwrap();
    t.spool.inbox_rmdir(&rel("d")).unwrap();
}
