//! Names that move, here and in the inbox, and what stays with their files: nodes, gates, modes, marks.

use super::*;

fn told_by(t: &TestFs) -> Receiver<(NodeId, Vec<u8>)> {
    let (sender, told) = channel();
    let tell = Arc::new(move |parent, name: &[u8]| sender.send((parent, name.to_vec())).unwrap());
    t.fs.set_invalidator(tell).unwrap();
    told
}

#[test]
fn a_renamed_inbox_file_keeps_its_number_and_its_readers_and_the_kernel_forgets_the_old_name() {
    let t = test_fs();
    let told = told_by(&t);
    let file = t.put_inbox("f", b"bytes").attr;
    let opened = t.open(file.node, libc::O_RDONLY).unwrap();
    t.publish_rename("f", "d/e/g");
    assert_eq!(
        told.recv_timeout(PATIENCE).unwrap(),
        (NodeId::INBOX, b"f".to_vec())
    );
    assert_eq!(t.read(opened.fh), b"bytes");
    assert_eq!(errno(t.fs.lookup(NodeId::INBOX, b"f")), libc::ENOENT);
    let d = t.fs.lookup(NodeId::INBOX, b"d").unwrap().attr.node;
    let e = t.fs.lookup(d, b"e").unwrap().attr.node;
    let found = t.fs.lookup(e, b"g").unwrap().attr;
    assert_eq!(found.node, file.node);
    assert_eq!(t.fs.getattr(file.node, None).unwrap().size, 5);
    // Opened by the number that the kernel knows.
    let again = t.open(file.node, libc::O_RDONLY).unwrap();
    assert_eq!(t.read(again.fh), b"bytes");
    for fh in [opened.fh, again.fh] {
        t.fs.release(fh);
    }
    for (node, lookups) in [(file.node, 2), (e, 1), (d, 1)] {
        t.fs.forget(node, lookups);
    }
    assert_eq!(t.fs.nodes.lock().len(), 0, "nothing is left behind");
}

#[test]
fn a_renamed_inbox_file_that_nobody_looks_at_later_leaves_nothing_behind() {
    let t = test_fs();
    let file = t.put_inbox("f", b"bytes").attr;
    t.publish_rename("f", "d/g");
    t.fs.forget(file.node, 1);
    assert_eq!(t.fs.nodes.lock().len(), 0);
}

#[test]
fn an_inbox_file_renamed_over_another_is_told_for_both_names() {
    let t = test_fs();
    let told = told_by(&t);
    let old = t.put_inbox("b", b"old").attr;
    let new = t.put_inbox("a", b"newer").attr;
    let reader = t.open(old.node, libc::O_RDONLY).unwrap();
    t.publish_rename("a", "b");
    let mut names: Vec<_> = (0..2)
        .map(|_| told.recv_timeout(PATIENCE).unwrap().1)
        .collect();
    names.sort();
    assert_eq!(names, [b"a", b"b"]);
    assert_eq!(
        t.fs.lookup(NodeId::INBOX, b"b").unwrap().attr.node,
        new.node
    );
    assert_eq!(t.read(reader.fh), b"old");
}

#[test]
fn a_file_that_gave_way_is_told_to_the_kernel() {
    let t = test_fs();
    let told = told_by(&t);
    let file = t.put_inbox("d", b"a file").attr;
    disk::remove_file(t.inbox_root().join("d")).unwrap();
    disk::create_dir(t.inbox_root().join("d")).unwrap();
    let observer = t.observer();
    observer.removed(&rel("d"));
    assert_eq!(
        told.recv_timeout(PATIENCE).unwrap(),
        (NodeId::INBOX, b"d".to_vec())
    );
    let found = t.fs.lookup(NodeId::INBOX, b"d").unwrap().attr;
    assert_eq!(found.kind, Kind::Directory);
    assert_ne!(found.node, file.node);
}

/// The bundle that the spool says a name was sent in; it forgets that of a name whose rename it is told twice.
fn bundle_at(t: &TestFs, name: &str) -> Option<BundleId> {
    t.spool.outbox_state(&rel(name), t.ino(name)).bundle
}

#[test]
fn each_rename_is_told_to_the_spool_once() {
    let t = unsettled_fs();
    let out = NodeId::OUTBOX;
    t.put(out, "f", b"f");
    for directory in ["d", "e"] {
        let made = t.fs.mkdir(at(out, directory), 0o755, ME).unwrap();
        t.put(made.attr.node, directory, directory.as_bytes());
    }
    let [f, d, e] = ["f", "d/d", "e/e"].map(|name| {
        t.send(name);
        let bundle = bundle_at(&t, name);
        assert!(bundle.is_some(), "{name}");
        bundle
    });
    t.rename(at(out, "f"), at(out, "g"), RenameFlags::empty())
        .unwrap();
    assert_eq!(bundle_at(&t, "g"), f);
    t.rename(at(out, "d"), at(out, "e"), RenameFlags::EXCHANGE)
        .unwrap();
    assert_eq!((bundle_at(&t, "d/e"), bundle_at(&t, "e/d")), (e, d));
    t.rename(at(out, "d"), at(out, "h"), RenameFlags::empty())
        .unwrap();
    assert_eq!(bundle_at(&t, "h/e"), e);
}

#[test]
fn an_exchange_is_told_to_the_spool_as_one() {
    let t = unsettled_fs();
    let d = t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME).unwrap();
    t.put(NodeId::OUTBOX, "f", b"f");
    t.put(NodeId::OUTBOX, "g", b"g");
    t.put(d.attr.node, "h", b"h");
    let [f, g, h] = ["f", "g", "d/h"].map(|name| {
        t.send(name);
        bundle_at(&t, name)
    });
    let exchange = |from, to| {
        let (from, to) = (at(NodeId::OUTBOX, from), at(NodeId::OUTBOX, to));
        t.rename(from, to, RenameFlags::EXCHANGE).unwrap();
    };
    exchange("f", "g");
    assert_eq!((bundle_at(&t, "f"), bundle_at(&t, "g")), (g, f));
    exchange("f", "d");
    assert_eq!((bundle_at(&t, "f/h"), bundle_at(&t, "d")), (h, g));
}

#[test]
fn a_file_without_names_that_is_opened_again_has_the_same_gate() {
    let t = test_fs();
    let (entry, first) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    let ino = t.fs.nodes.lock().backing(entry.attr.node).unwrap().ino;
    t.spool.outbox_removed(&rel("f"), ino, 0);
    let again = t.open(entry.attr.node, libc::O_RDWR).unwrap();
    let gate = |fh| t.fs.handles.file(fh).unwrap().gate.clone().unwrap();
    assert!(Arc::ptr_eq(&gate(first.fh), &gate(again.fh)));
}

#[test]
fn an_operation_that_changed_nothing_is_told_to_the_spool() {
    let t = test_fs();
    let file = t.put(NodeId::OUTBOX, "f", b"x").attr.node;
    t.wait_seal();
    let opened = t.open(file, libc::O_RDWR).unwrap();
    // No file system shifts a part of a block.
    let shift = libc::FALLOC_FL_COLLAPSE_RANGE;
    answer(|done| t.fs.fallocate(opened.fh, 1, 3, shift, ME, done)).unwrap_err();
    assert_eq!(t.marks(), [], "a kill would have it incomplete");
    let beyond = i64::MAX.cast_unsigned() - 4;
    t.write(opened.fh, beyond, b"12345678").unwrap_err();
    assert_eq!(t.marks(), []);
    let too_long = SetAttr {
        size: Some(beyond),
        ..SetAttr::default()
    };
    t.setattr(file, too_long).unwrap_err();
    assert_eq!(t.marks(), []);
}

#[test]
fn a_mode_that_would_lock_a_plain_users_daemon_out_is_shown_and_not_kept() {
    let t = test_fs_of(Setup {
        owner: (1000, 1000),
        ..Setup::default()
    });
    let mode = |name: &str| disk::metadata(t.outbox(name)).unwrap().mode() & 0o7777;
    let file = t.put(NodeId::OUTBOX, "f", b"x").attr.node;
    let dir = t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME).unwrap();
    let set = |id, mode| {
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        t.setattr(id, set).unwrap().perm
    };
    for (asked, kept) in [(0o000, 0o400), (0o4222, 0o4622), (0o044, 0o444)] {
        assert_eq!(u32::from(set(file, asked)), asked);
        assert_eq!(mode("f"), kept);
        let found = t.fs.lookup(NodeId::OUTBOX, b"f").unwrap().attr;
        assert_eq!(u32::from(found.perm), asked);
    }
    assert_eq!(set(dir.attr.node, 0o000), 0o000);
    assert_eq!(mode("d"), 0o500);
    assert_eq!(t.fs.listxattr(file).unwrap(), b"");
    assert_eq!(
        errno(t.fs.getxattr(file, b"user.meshbox.kept")),
        libc::ENODATA
    );
    assert_eq!(set(file, 0o640), 0o640);
    assert_eq!(mode("f"), 0o640);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let made = at(NodeId::OUTBOX, "made");
    let (entry, _) = answer(|done| t.fs.create(made, 0o222, flags, ME, done)).unwrap();
    assert_eq!(entry.attr.perm, 0o222);
    assert_eq!(mode("made"), 0o622);
    let made = t.fs.mkdir(at(NodeId::OUTBOX, "made-d"), 0o333, ME).unwrap();
    assert_eq!(made.attr.perm, 0o333);
    assert_eq!(mode("made-d"), 0o733);
    assert_eq!(t.names(made.attr.node), [""; 0]);
}

#[test]
fn a_directory_that_the_spool_removed_is_empty_for_who_has_it_open() {
    let t = test_fs();
    let root = t.inbox_root();
    disk::create_dir(root.join("d")).unwrap();
    let directory = t.fs.lookup(NodeId::INBOX, b"d").unwrap().attr.node;
    let fh = t.fs.opendir(directory).unwrap().fh;
    disk::remove_dir(root.join("d")).unwrap();
    let observer = t.observer();
    observer.removed(&rel("d"));
    let mut names = 0;
    let listed = t.fs.readdirplus(fh, 0, |_, _| {
        names += 1;
        false
    });
    assert!(listed.is_ok(), "{listed:?}");
    assert_eq!(names, 0);
}
