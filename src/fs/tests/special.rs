//! What does not travel (FIFOs, devices, links that lead out): works where nothing does, is refused elsewhere, is never followed, and nobody hears of it.

use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use super::*;

const FIFO: u32 = libc::S_IFIFO | 0o640;

impl TestFs {
    fn mkdir(&self, parent: NodeId, name: &str) -> NodeId {
        let made = self.fs.mkdir(at(parent, name), 0o755, ME).unwrap();
        made.attr.node
    }
    fn mknod(&self, parent: NodeId, name: &str, mode: u32) -> Result<Entry, FsError> {
        let device = Device { major: 1, minor: 3 };
        self.fs.mknod(at(parent, name), mode, device, ME)
    }
    fn symlink(&self, parent: NodeId, name: &str, target: &str) -> Result<Entry, FsError> {
        self.fs.symlink(at(parent, name), target.as_bytes(), ME)
    }
    fn mv(&self, from: (NodeId, &str), to: (NodeId, &str)) -> Result<(), FsError> {
        self.rename(at(from.0, from.1), at(to.0, to.1), RenameFlags::empty())
    }
    /// Nothing was sent, counted or marked, or is about to be. A file is sealed to be sure that nothing is still on its way.
    #[track_caller]
    fn assert_unheard(&self) {
        self.put(NodeId::OUTBOX, "mark", b"x");
        assert_eq!(self.wait_seal(), Sealed::One("mark".into(), None));
        assert_eq!(self.all_sealed(), []);
        assert_eq!(self.marks(), []);
        assert_eq!(self.spool.counts().ignored, 0);
    }
}

#[test]
fn below_an_ignored_name_they_are_made_and_shown_and_nobody_hears_of_it() {
    let t = test_fs();
    let d = t.mkdir(NodeId::OUTBOX, ".d");
    let link = t.symlink(d, "link", "no/where").unwrap().attr;
    assert_eq!((link.kind, link.size), (Kind::Symlink, 8));
    assert_eq!(t.fs.readlink(link.node).unwrap(), b"no/where");
    let fifo = t.mknod(d, "fifo", FIFO).unwrap().attr;
    assert_eq!((fifo.kind, fifo.perm), (Kind::Fifo, 0o640));
    assert_eq!(errno(t.fs.readlink(fifo.node)), libc::EINVAL);
    let socket = t.mknod(d, "socket", libc::S_IFSOCK | 0o755).unwrap().attr;
    assert_eq!(socket.kind, Kind::Socket);
    t.symlink(NodeId::OUTBOX, ".#f", "me@here").unwrap();
    let mut wanted = vec![
        ("link", Kind::Symlink),
        ("fifo", Kind::Fifo),
        ("socket", Kind::Socket),
    ];
    if rustix::process::geteuid().is_root() {
        for (name, kind, mode) in [
            ("char", Kind::CharDevice, libc::S_IFCHR),
            ("block", Kind::BlockDevice, libc::S_IFBLK),
        ] {
            let made = t.mknod(d, name, mode | 0o600).unwrap().attr;
            let device = Device { major: 1, minor: 3 };
            assert_eq!((made.kind, made.device), (kind, device));
            wanted.push((name, kind));
        }
    }
    let opened = t.fs.opendir(d).unwrap();
    let mut listed = Vec::new();
    let page = |item: &crate::fs::attr::Item, entry: &Entry| {
        assert_eq!(item.kind, entry.attr.kind);
        listed.push((String::from_utf8(item.name.clone()).unwrap(), item.kind));
        false
    };
    t.fs.readdirplus(opened.fh, 0, page).unwrap();
    for (name, kind) in wanted {
        assert!(listed.contains(&(name.into(), kind)), "{name}: {listed:?}");
        let linked = format!("{name}2");
        let node = t.fs.lookup(d, name.as_bytes()).unwrap().attr.node;
        t.fs.link(node, at(d, &linked)).unwrap();
        assert_eq!(t.fs.getattr(node, None).unwrap().nlink, 2);
        t.mv((d, &linked), (d, "renamed")).unwrap();
        t.unlink(d, "renamed").unwrap();
        t.unlink(d, name).unwrap();
    }
    t.assert_unheard();
}

#[test]
fn elsewhere_they_are_refused() {
    let t = test_fs();
    let d = t.mkdir(NodeId::OUTBOX, "d");
    for parent in [NodeId::OUTBOX, d] {
        assert_eq!(errno(t.symlink(parent, "l", "../x")), libc::EPERM);
        for kind in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK] {
            assert_eq!(errno(t.mknod(parent, "n", kind | 0o644)), libc::EPERM);
        }
    }
    let made = t.mknod(d, "f", libc::S_IFREG | 0o644).unwrap();
    assert_eq!((made.attr.kind, made.attr.size), (Kind::File, 0));
    assert_eq!(t.names(NodeId::OUTBOX), ["d"]);
    assert_eq!(errno(t.symlink(NodeId::INBOX, ".l", "x")), libc::EROFS);
    assert_eq!(errno(t.mknod(NodeId::ROOT, ".n", FIFO)), libc::EROFS);
}

#[test]
fn none_crosses_to_a_name_that_is_sent() {
    let t = test_fs();
    let out = NodeId::OUTBOX;
    let link = t.symlink(out, ".l", "x").unwrap().attr.node;
    assert_eq!(errno(t.mv((out, ".l"), (out, "l"))), libc::EPERM);
    assert_eq!(errno(t.fs.link(link, at(out, "l"))), libc::EPERM);
    t.put(out, "f", b"x");
    t.wait_seal();
    let exchange = |from, to| t.rename(at(out, from), at(out, to), RenameFlags::EXCHANGE);
    assert_eq!(errno(exchange(".l", "f")), libc::EPERM);
    assert_eq!(errno(exchange("f", ".l")), libc::EPERM);
    t.mv((out, ".l"), (out, ".m")).unwrap();
    assert_eq!(t.fs.readlink(link).unwrap(), b"x");
}

#[test]
fn a_directory_that_holds_one_anywhere_keeps_its_ignored_name() {
    let t = test_fs();
    let out = NodeId::OUTBOX;
    let d = t.mkdir(out, ".d");
    let deep = t.mkdir(t.mkdir(d, "a"), ".git");
    t.put(d, "f", b"x");
    t.mknod(deep, "fifo", FIFO).unwrap();
    assert_eq!(errno(t.mv((out, ".d"), (out, "d"))), libc::EPERM);
    let e = t.mkdir(out, "e");
    let exchanged = t.rename(at(out, "e"), at(out, ".d"), RenameFlags::EXCHANGE);
    assert_eq!(errno(exchanged), libc::EPERM);
    assert_eq!(t.names(d).len(), 2, "nothing is lost");
    t.mv((out, ".d"), (out, ".still")).unwrap();
    t.mv((out, ".still"), (e, ".still")).unwrap();
    t.unlink(deep, "fifo").unwrap();
    t.mv((e, ".still"), (out, "d")).unwrap();
    t.wait_sealed(|sealed| matches!(sealed, Sealed::Tree(files, _) if *files == ["d/f"]));
    // What is ignored by a name of its own stays where it was.
    t.symlink(deep, "l", "x").unwrap();
    t.mv((out, "d"), (out, "d2")).unwrap();
    t.mv((out, "d2"), (out, ".d")).unwrap();
}

#[test]
fn a_file_that_one_replaces_is_told_as_removed() {
    let t = test_fs();
    let out = NodeId::OUTBOX;
    let link = t.symlink(out, ".l", "x").unwrap().attr.node;
    t.put(out, ".f", b"x");
    t.wait_ignored();
    let replaced = t.gate(".f");
    t.mv((out, ".l"), (out, ".f")).unwrap();
    assert!(t.is_removed(&replaced));
    assert_eq!(t.fs.lookup(out, b".f").unwrap().attr.node, link);
    t.put_inbox("from-birch", b"x");
    let moved = t.mv((NodeId::INBOX, "from-birch"), (out, ".f"));
    moved.unwrap();
    let now = t.fs.lookup(out, b".f").unwrap().attr;
    assert_eq!((now.kind, now.size), (Kind::File, 1));
}

#[test]
fn what_was_removed_while_it_is_in_use_still_has_attributes() {
    let t = test_fs();
    let d = t.mkdir(NodeId::OUTBOX, ".d");
    let fifo = t.mknod(d, "fifo", FIFO).unwrap().attr.node;
    let link = t.symlink(d, "link", "x").unwrap().attr.node;
    t.unlink(d, "fifo").unwrap();
    t.mv((d, "link"), (d, "gone")).unwrap();
    t.unlink(d, "gone").unwrap();
    t.rmdir(NodeId::OUTBOX, ".d").unwrap();
    for (node, kind) in [
        (fifo, Kind::Fifo),
        (link, Kind::Symlink),
        (d, Kind::Directory),
    ] {
        let attr = t.fs.getattr(node, None).unwrap();
        assert_eq!((attr.kind, attr.nlink), (kind, 0));
        t.fs.forget(node, 1);
    }
    assert_eq!(errno(t.fs.getattr(link, None)), libc::ESTALE);
}

#[test]
fn attributes_are_set_on_a_link_and_never_through_it() {
    let t = test_fs();
    let target = t._dir.path().join("target");
    disk::write(&target, b"x").unwrap();
    let before = disk::metadata(&target).unwrap();
    let out = NodeId::OUTBOX;
    let made = t.symlink(out, ".l", target.to_str().unwrap()).unwrap();
    let link = made.attr.node;
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(errno(t.setattr(link, mode)), libc::EOPNOTSUPP);
    let times = SetAttr {
        mtime: Some(SetTime::At(Time { secs: 7, nanos: 0 })),
        uid: Some(before.uid()),
        gid: Some(before.gid()),
        ..SetAttr::default()
    };
    assert_eq!(t.setattr(link, times).unwrap().mtime.secs, 7);
    let size = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    assert!(t.setattr(link, size).is_err());
    assert!(t.open(link, libc::O_RDONLY).is_err());
    assert_eq!(errno(t.fs.setxattr(link, b"user.k", b"v", 0)), libc::EPERM);
    assert_eq!(errno(t.fs.getxattr(link, b"user.k")), libc::ENODATA);
    assert_eq!(t.fs.listxattr(link).unwrap(), b"");
    let fifo = t.mknod(out, ".fifo", FIFO).unwrap().attr.node;
    let mode = SetAttr {
        mode: Some(0o600),
        ..times
    };
    assert_eq!(t.setattr(fifo, mode).unwrap().perm, 0o600);
    let after = disk::metadata(&target).unwrap();
    assert_eq!(after.mtime(), before.mtime());
    assert_eq!((after.mode(), after.len()), (before.mode(), before.len()));
}

#[test]
fn s24_no_link_in_any_component_leads_out_of_the_outbox() {
    let t = test_fs();
    let elsewhere = t._dir.path().join("elsewhere");
    disk::create_dir(&elsewhere).unwrap();
    disk::write(elsewhere.join("secret"), b"x").unwrap();
    t.symlink(NodeId::OUTBOX, ".l", elsewhere.to_str().unwrap())
        .unwrap();
    for path in [".l/secret", ".l"] {
        let refused = t.fs.send_now(&RelPath::parse(path).unwrap());
        assert!(refused.is_err(), "{path}: {refused:?}");
    }
    // A directory of the outbox whose name became a link, behind our back.
    let d = t.mkdir(NodeId::OUTBOX, ".d");
    t.put(d, "secret", b"own");
    let file = t.fs.lookup(d, b"secret").unwrap().attr.node;
    disk::rename(t.outbox(".d"), t.outbox("moved")).unwrap();
    symlink(&elsewhere, t.outbox(".d")).unwrap();
    assert_eq!(errno(t.open(file, libc::O_RDONLY)), libc::ELOOP);
    assert_eq!(errno(t.fs.listxattr(file)), libc::ELOOP);
    let opened = t.fs.opendir(d).unwrap();
    let listed = t.fs.readdir(opened.fh, 0, |_| false);
    assert_eq!(errno(listed), libc::ENOTDIR);
}

#[test]
fn found_at_an_ordinary_name_they_are_shown_so_that_they_can_be_removed() {
    let t = test_fs();
    let out = NodeId::OUTBOX;
    symlink("/etc/passwd", t.outbox("behind")).unwrap();
    symlink("/etc/passwd", t.inbox_root().join("behind")).unwrap();
    assert_eq!(t.names(out), ["behind"]);
    assert_eq!(t.names(NodeId::INBOX), Vec::<String>::new());
    assert_eq!(errno(t.fs.lookup(NodeId::INBOX, b"behind")), libc::ENOENT);
    let found = t.fs.lookup(out, b"behind").unwrap().attr;
    assert_eq!(found.kind, Kind::Symlink);
    assert_eq!(errno(t.mv((out, "behind"), (out, "b"))), libc::EPERM);
    assert!(t.fs.send_now(&RelPath::parse("behind").unwrap()).is_err());
    t.unlink(out, "behind").unwrap();
    t.assert_unheard();
    let kept = disk::symlink_metadata(t.inbox_root().join("behind")).unwrap();
    assert!(kept.is_symlink() && !kept.file_type().is_fifo());
}
