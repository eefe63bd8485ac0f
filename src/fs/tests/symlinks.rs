//! Symbolic links that are sent: none that leads out of its tree ever has a name there.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::*;

impl TestFs {
    fn dir(&self, parent: NodeId, name: &str) -> NodeId {
        let made = self.fs.mkdir(at(parent, name), 0o755, ME).unwrap();
        made.attr.node
    }
    fn ln(&self, parent: NodeId, name: &str, target: &str) -> Result<NodeId, FsError> {
        let made = self.fs.symlink(at(parent, name), target.as_bytes(), ME)?;
        Ok(made.attr.node)
    }
    fn mv_to(&self, from: (NodeId, &str), to: (NodeId, &str)) -> Result<(), FsError> {
        self.rename(at(from.0, from.1), at(to.0, to.1), RenameFlags::empty())
    }
    fn exchange(&self, a: (NodeId, &str), b: (NodeId, &str)) -> Result<(), FsError> {
        self.rename(at(a.0, a.1), at(b.0, b.1), RenameFlags::EXCHANGE)
    }
    fn wait_sealed_as(&self, path: &str) {
        self.wait_sealed(|sealed| matches!(sealed, Sealed::One(sealed, _) if sealed == path));
    }
}

#[test]
fn a_link_that_stays_in_its_tree_is_sent_and_any_other_is_refused() {
    let t = test_fs();
    let a = t.dir(NodeId::OUTBOX, "a");
    let b = t.dir(a, "b");
    let link = t.ln(a, "l", "b/x").unwrap();
    t.wait_sealed_as("a/l");
    assert_eq!(t.fs.readlink(link).unwrap(), b"b/x");
    t.ln(b, "up", "../x").unwrap();
    t.wait_sealed_as("a/b/up");
    for (parent, target) in [
        (NodeId::OUTBOX, "a/b"),
        (a, ".."),
        (a, "../a/b"),
        (a, "/etc"),
        (b, "../../a"),
        (b, "x/../.."),
    ] {
        assert_eq!(errno(t.ln(parent, "bad", target)), libc::EPERM, "{target}");
    }
    assert_eq!(t.names(NodeId::OUTBOX), ["a"]);
    let gate = t.gate("a/l");
    t.unlink(a, "l").unwrap();
    assert!(t.is_removed(&gate));
}

/// As `touch -h`, and `cp -a` and `tar` where the machine is busy.
#[test]
fn the_time_of_a_link_that_is_set_after_its_seal_is_announced() {
    let t = test_fs();
    let a = t.dir(NodeId::OUTBOX, "a");
    let ignored = t.ln(a, ".l", "x").unwrap();
    let link = t.ln(a, "l", "x").unwrap();
    t.wait_sealed_as("a/l");
    let time = |secs| SetAttr {
        mtime: Some(SetTime::At(Time { secs, nanos: 5 })),
        ..SetAttr::default()
    };
    t.setattr(ignored, time(7)).unwrap();
    let shown = t.setattr(link, time(-9)).unwrap();
    assert_eq!(shown.mtime, Time { secs: -9, nanos: 5 });
    assert_eq!(t.wait_seal(), Sealed::One("a/l".into(), Some("a/l".into())));
    // A link has no mode of its own, and who owns it is nobody else's business.
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(errno(t.setattr(link, mode)), libc::EOPNOTSUPP);
    t.put(a, "f", b"x");
    t.wait_sealed_as("a/f");
}

#[test]
fn no_rename_link_or_exchange_has_a_link_lead_out() {
    let t = test_fs();
    let out = NodeId::OUTBOX;
    let a = t.dir(out, "a");
    let b = t.dir(a, "b");
    let up = t.ln(b, "up", "../x").unwrap();
    t.put(a, "f", b"x");
    t.put(out, "top", b"x");
    assert_eq!(errno(t.mv_to((b, "up"), (a, "up"))), libc::EPERM);
    assert_eq!(errno(t.mv_to((b, "up"), (out, "up"))), libc::EPERM);
    assert_eq!(errno(t.fs.link(up, at(a, "up2"))), libc::EPERM);
    assert_eq!(errno(t.exchange((b, "up"), (a, "f"))), libc::EPERM);
    assert_eq!(errno(t.exchange((a, "f"), (b, "up"))), libc::EPERM);
    // The directory that it is in, alone and by an exchange in either order.
    assert_eq!(errno(t.mv_to((a, "b"), (out, "b"))), libc::EPERM);
    assert_eq!(errno(t.exchange((a, "b"), (out, "top"))), libc::EPERM);
    assert_eq!(errno(t.exchange((out, "top"), (a, "b"))), libc::EPERM);
    // Where it may be.
    let deep = t.dir(b, "deep");
    t.mv_to((b, "up"), (deep, "up")).unwrap();
    t.fs.link(up, at(b, "again")).unwrap();
    t.wait_sealed_as("a/b/again");
    t.mv_to((a, "b"), (a, "c")).unwrap();
    t.wait_sealed_as("a/c/deep/up");
    assert_eq!(t.fs.readlink(up).unwrap(), b"../x");
}

#[test]
fn a_directory_with_links_is_one_bundle_unless_one_of_them_leads_out() {
    let t = test_fs();
    let out = NodeId::OUTBOX;
    let d = t.dir(out, ".d");
    let bin = t.dir(d, ".bin");
    t.put(d, "f", b"x");
    // Below an ignored name a link may be anything; it is looked at when its directory is to be sent.
    t.ln(bin, "tool", "../f").unwrap();
    t.ln(bin, "out", "../../f").unwrap();
    assert_eq!(errno(t.mv_to((out, ".d"), (out, "d"))), libc::EPERM);
    t.unlink(bin, "out").unwrap();
    t.mv_to((out, ".d"), (out, "d")).unwrap();
    t.wait_sealed(|sealed| {
        matches!(sealed, Sealed::Tree(files, _) if files.len() == 2 && files.contains(&"d/.bin/tool".to_owned()))
    });
}

#[test]
fn the_inbox_shows_links_that_stay_and_no_others() {
    let t = test_fs();
    t.publish_link("a/b/l", "../f");
    std::os::unix::fs::symlink("../../f", t.inbox_file("a/b/out")).unwrap();
    let a = t.fs.lookup(NodeId::INBOX, b"a").unwrap().attr.node;
    let b = t.fs.lookup(a, b"b").unwrap().attr.node;
    assert_eq!(t.names(b), ["l"]);
    assert_eq!(errno(t.fs.lookup(b, b"out")), libc::ENOENT);
    let link = t.fs.lookup(b, b"l").unwrap().attr;
    assert_eq!(link.kind, Kind::Symlink);
    assert_eq!(t.fs.readlink(link.node).unwrap(), b"../f");
    let moved = t.mv_to((b, "l"), (NodeId::OUTBOX, "l"));
    assert_eq!(errno(moved), libc::EXDEV);
    t.unlink(b, "l").unwrap();
    assert!(t.is_consumed("a/b/l"));
}

/// The kernel resolves every link at a sent name below `top`, and says when one leaves it.
fn assert_none_leads_out(top: &Path) {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let root: OwnedFd = rustix::fs::open(top, flags, rustix::fs::Mode::empty()).unwrap();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in disk::read_dir(top.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() && !path.to_str().unwrap().contains('.') {
                let led = openat2(
                    &root,
                    &path,
                    OFlags::PATH,
                    rustix::fs::Mode::empty(),
                    ResolveFlags::BENEATH,
                );
                assert_ne!(
                    led.err(),
                    Some(Errno::XDEV),
                    "{path:?} leads out of {top:?}"
                );
            }
        }
    }
}

#[test]
fn random_links_renames_and_exchanges_never_lead_out() {
    let t = test_fs();
    let mut state = 0x5851_f42d_4c95_7f2d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let tops = ["t", "u"];
    let mut directories = vec![NodeId::OUTBOX];
    for top in tops {
        directories.push(t.dir(NodeId::OUTBOX, top));
    }
    let names = ["a", "b", "c", "l", ".i"];
    let (mut made, mut moved) = (0, 0);
    for _ in 0..3000 {
        let parent = directories[random(directories.len())];
        let name = names[random(names.len())];
        match random(6) {
            0 => {
                if let Ok(entry) = t.fs.mkdir(at(parent, name), 0o755, ME) {
                    directories.push(entry.attr.node);
                }
            }
            1 | 2 => {
                let count = 1 + random(5);
                let parts: Vec<&str> = (0..count)
                    .map(|_| ["..", "..", "..", ".", "", "a", "b", "c", "l", "t", "u"][random(11)])
                    .collect();
                let target = parts.join("/");
                if !target.is_empty() && t.ln(parent, name, &target).is_ok() {
                    made += 1;
                }
            }
            3 => {
                drop(t.unlink(parent, name));
                drop(t.rmdir(parent, name));
            }
            kind => {
                let (other, new) = (
                    directories[random(directories.len())],
                    names[random(names.len())],
                );
                if tops.contains(&name) || parent == NodeId::OUTBOX && random(4) > 0 {
                    continue;
                }
                let (from, to) = ((parent, name), (other, new));
                let done = match kind {
                    4 => t.mv_to(from, to),
                    _ => t.exchange(from, to),
                };
                moved += usize::from(done.is_ok());
            }
        }
        for entry in disk::read_dir(t.outbox("")).unwrap() {
            let at = entry.unwrap().path();
            if at.is_dir() && !at.is_symlink() && !at.ends_with(".i") {
                assert_none_leads_out(&at);
            }
            let name = at.file_name().unwrap().to_str().unwrap();
            assert!(
                !at.is_symlink() || name == ".i",
                "no link directly in the outbox"
            );
        }
    }
    assert!(made > 100 && moved > 100, "{made} links, {moved} moves");
}
