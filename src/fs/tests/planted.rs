//! Links planted in every component of both trees, behind the daemon's back: no operation resolves one.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

const COMPONENTS: [&str; 3] = ["a", "a/b", "a/b/f"];

/// All that is below, with everything that any change of it changes.
fn picture(at: &Path) -> String {
    let meta = disk::symlink_metadata(at).unwrap();
    let (changed, nanos) = (meta.ctime(), meta.ctime_nsec());
    let (mode, nlink, len) = (meta.mode(), meta.nlink(), meta.len());
    let mut all = format!(
        "{} {mode:o} {nlink} {len} {changed}.{nanos}\n",
        at.display()
    );
    if meta.is_dir() {
        let mut below: Vec<_> = disk::read_dir(at).unwrap().map(|e| e.unwrap()).collect();
        below.sort_by_key(disk::DirEntry::file_name);
        for entry in below {
            all += &picture(&entry.path());
        }
    }
    all
}

fn make_tree(at: &Path) {
    disk::create_dir_all(at.join("a/b/d")).unwrap();
    disk::write(at.join("a/b/f"), b"secret").unwrap();
    disk::write(at.join("a/b/g"), b"secret").unwrap();
}

/// Every operation on `d`, the directory that was `a/b`, and `f`, the file in it. Gives what was read.
fn try_everything(t: &TestFs, d: NodeId, f: NodeId) -> Vec<u8> {
    let mut read = Vec::new();
    for name in ["f", "g", "d", "new"] {
        drop(t.fs.lookup(d, name.as_bytes()));
    }
    let set = SetAttr {
        mode: Some(0o604),
        uid: Some(7),
        gid: Some(7),
        mtime: Some(SetTime::Now),
        atime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let size = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    for id in [d, f] {
        drop(t.fs.getattr(id, None));
        drop(t.setattr(id, set));
        drop(t.setattr(id, size));
        drop(t.fs.readlink(id));
        drop(t.fs.setxattr(id, b"user.k", b"v", 0));
        drop(t.fs.removexattr(id, b"user.k"));
        read.extend(t.fs.getxattr(id, b"user.k").unwrap_or_default());
        drop(t.fs.listxattr(id));
        drop(t.fs.link(id, at(NodeId::OUTBOX, "linked")));
        drop(answer(|done| t.fs.fsyncdir(id, done)));
    }
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
        if let Ok(opened) = t.open(f, flags) {
            read.extend(
                t.fs.read(opened.fh, 0, 99, &mut Vec::new(), <[u8]>::to_vec)
                    .unwrap_or_default(),
            );
            drop(t.write(opened.fh, 0, b"written"));
            t.fs.release(opened.fh);
        }
    }
    let opened = t.fs.opendir(d).unwrap();
    drop(t.fs.readdir(opened.fh, 0, |item| {
        read.extend(&item.name);
        false
    }));
    drop(t.fs.readdirplus(opened.fh, 0, |_, _| false));
    for name in ["f", "new"] {
        if let Ok((_, opened)) = t.create(d, name) {
            t.fs.release(opened.fh);
        }
        let device = Device::default();
        drop(t.fs.mknod(at(d, name), 0o644, device, ME));
        drop(t.fs.mkdir(at(d, name), 0o755, ME));
        drop(t.fs.symlink(at(d, &format!(".{name}")), b"x", ME));
    }
    t.put(NodeId::OUTBOX, "top", b"x");
    for (from, to) in [("top", "in"), ("top", "f")] {
        drop(t.rename(at(NodeId::OUTBOX, from), at(d, to), RenameFlags::empty()));
    }
    for flags in [RenameFlags::EXCHANGE, RenameFlags::empty()] {
        drop(t.rename(at(d, "g"), at(NodeId::OUTBOX, "out"), flags));
        drop(t.rename(at(d, "g"), at(d, "h"), flags));
    }
    let sent = t.fs.send_now(&RelPath::parse("a/b/g").unwrap());
    assert!(sent.is_err());
    drop(t.rmdir(d, "d"));
    drop(t.unlink(d, "f"));
    drop(t.unlink(d, "g"));
    read
}

#[test]
fn no_link_in_any_component_of_the_outbox_is_resolved() {
    for component in COMPONENTS {
        let t = test_fs();
        let outside = t._dir.path().join("outside");
        make_tree(&outside);
        make_tree(&t.outbox(""));
        let a = t.fs.lookup(NodeId::OUTBOX, b"a").unwrap().attr.node;
        let d = t.fs.lookup(a, b"b").unwrap().attr.node;
        let f = t.fs.lookup(d, b"f").unwrap().attr.node;
        let before = picture(&outside);
        disk::rename(t.outbox(component), t.outbox("moved")).unwrap();
        symlink(outside.join(component), t.outbox(component)).unwrap();
        if component != "a/b/f" {
            let read = try_everything(&t, d, f);
            assert_eq!(String::from_utf8_lossy(&read), "", "{component}");
        } else {
            assert!(t.open(f, libc::O_RDONLY).is_err());
            assert!(t.open(f, libc::O_RDWR).is_err());
            drop(t.setattr(
                f,
                SetAttr {
                    mode: Some(0o600),
                    ..SetAttr::default()
                },
            ));
            drop(t.fs.setxattr(f, b"user.k", b"v", 0));
            drop(t.unlink(d, "f"));
        }
        assert_eq!(picture(&outside), before, "{component}");
    }
}

#[test]
fn no_link_in_any_component_of_the_inbox_is_resolved() {
    for component in COMPONENTS {
        let t = test_fs();
        let outside = t._dir.path().join("outside");
        make_tree(&outside);
        make_tree(&t.inbox_root());
        let a = t.fs.lookup(NodeId::INBOX, b"a").unwrap().attr.node;
        let d = t.fs.lookup(a, b"b").unwrap().attr.node;
        let f = t.fs.lookup(d, b"f").unwrap().attr.node;
        let before = picture(&outside);
        disk::rename(t.inbox_file(component), t.inbox_file("moved")).unwrap();
        symlink(outside.join(component), t.inbox_file(component)).unwrap();
        assert!(t.open(f, libc::O_RDONLY).is_err(), "{component}");
        assert!(t.fs.lookup(d, b"f").is_err(), "{component}");
        if component != "a/b/f" {
            let opened = t.fs.opendir(d).unwrap();
            let mut names = 0;
            drop(t.fs.readdir(opened.fh, 0, |_| {
                names += 1;
                false
            }));
            assert_eq!(names, 0, "{component}");
            assert!(t.fs.lookup(d, b"g").is_err(), "{component}");
        }
        drop(t.fs.getattr(f, None));
        assert_eq!(picture(&outside), before, "{component}");
    }
}
