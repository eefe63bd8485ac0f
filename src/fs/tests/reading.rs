//! Who reads the bytes of an inbox file: the ways the kernel must never mix.

use std::io;
use std::sync::Weak;

use super::*;
use crate::fs::Registration;

/// What the kernel answers when it is asked to read a file by itself.
#[derive(Clone, Copy)]
enum Kernel {
    Grants,
    Refuses,
}

impl TestFs {
    /// Opens for reading and settles as the adapter does.
    fn open_settled(&self, id: NodeId, kernel: Kernel) -> (u64, Option<Registration>) {
        let opened = self.open(id, libc::O_RDONLY).unwrap();
        (opened.fh, self.settle(opened.fh, kernel))
    }

    fn open_by(&self, tid: u32, id: NodeId, flags: i32) -> Result<Opened, FsError> {
        let caller = Caller { tid, ..ME };
        answer(|done| self.fs.open(id, flags, caller, done))
    }

    fn settle(&self, fh: u64, kernel: Kernel) -> Option<Registration> {
        self.fs.settle_reading(fh, |_file| match kernel {
            Kernel::Grants => Ok(Arc::new("a number of the kernel")),
            Kernel::Refuses => Err(io::ErrorKind::OutOfMemory.into()),
        })
    }

    fn mv_out(&self, name: &str, to: &str) {
        let moved = self.rename(
            at(NodeId::INBOX, name),
            at(NodeId::OUTBOX, to),
            RenameFlags::empty(),
        );
        moved.unwrap();
    }

    fn node_in_outbox(&self, name: &str) -> NodeId {
        let entry = self.fs.lookup(NodeId::OUTBOX, name.as_bytes()).unwrap();
        entry.attr.node
    }
}

#[test]
fn all_handles_of_a_node_share_one_registration_until_the_last_is_released() {
    let t = test_fs();
    let id = t.put_inbox("f", b"bytes").attr.node;
    let (first, registration) = t.open_settled(id, Kernel::Grants);
    let registration = registration.unwrap();
    let (second, same) = t.open_settled(id, Kernel::Refuses);
    assert!(Arc::ptr_eq(&registration, &same.unwrap()));
    let kept: Weak<_> = Arc::downgrade(&registration);
    drop(registration);
    t.fs.release(first);
    assert!(kept.upgrade().is_some());
    t.fs.release(second);
    assert!(kept.upgrade().is_none());
    assert!(t.open_settled(id, Kernel::Refuses).1.is_none());
}

#[test]
fn who_was_refused_first_has_all_others_read_through_us_until_the_last_is_released() {
    let t = test_fs();
    let id = t.put_inbox("f", b"bytes").attr.node;
    let (first, registration) = t.open_settled(id, Kernel::Refuses);
    assert!(registration.is_none());
    let (second, registration) = t.open_settled(id, Kernel::Grants);
    assert!(registration.is_none());
    t.fs.release(first);
    let (third, registration) = t.open_settled(id, Kernel::Grants);
    assert!(registration.is_none());
    t.fs.release(second);
    t.fs.release(third);
    assert!(t.open_settled(id, Kernel::Grants).1.is_some());
}

#[test]
fn two_that_ask_the_kernel_at_the_same_time_take_the_answer_of_the_first() {
    for (first, second) in [
        (Kernel::Grants, Kernel::Refuses),
        (Kernel::Grants, Kernel::Grants),
        (Kernel::Refuses, Kernel::Grants),
    ] {
        let t = test_fs();
        let id = t.put_inbox("f", b"bytes").attr.node;
        let late = t.open(id, libc::O_RDONLY).unwrap();
        let mut settled_between = None;
        let late = t.fs.settle_reading(late.fh, |_file| {
            settled_between = t.open_settled(id, first).1;
            match second {
                Kernel::Grants => Ok(Arc::new("another number")),
                Kernel::Refuses => Err(io::ErrorKind::OutOfMemory.into()),
            }
        });
        match (settled_between, late) {
            (Some(between), Some(late)) => assert!(Arc::ptr_eq(&between, &late)),
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => panic!("two ways at once"),
        }
    }
}

#[test]
fn the_kernel_is_never_asked_for_files_of_the_outbox_or_generated_ones() {
    let t = test_fs();
    let id = t.put(NodeId::OUTBOX, "f", b"bytes").attr.node;
    let status = t.fs.lookup(NodeId::STATUS_DIR, b"status.json").unwrap();
    for (id, flags) in [
        (id, libc::O_RDONLY),
        (id, libc::O_RDWR),
        (status.attr.node, libc::O_RDONLY),
    ] {
        let opened = t.open(id, flags).unwrap();
        let settled = t.fs.settle_reading(opened.fh, |_file| panic!("asked"));
        assert!(settled.is_none());
    }
}

#[test]
fn a_file_moved_out_while_the_kernel_reads_it_gets_another_node() {
    let t = test_fs();
    let id = t.put_inbox("f", b"old").attr.node;
    let (reader, _registration) = t.open_settled(id, Kernel::Grants);
    t.mv_out("f", "g");
    assert_eq!(
        errno(t.open_by(1, id, libc::O_RDONLY)),
        libc::ESTALE,
        "the kernel looks the new name up again"
    );
    assert_eq!(errno(t.open_by(2, id, libc::O_WRONLY)), libc::ESTALE);
    let again = t.open_by(1, id, libc::O_RDONLY).expect("not by a name");
    let same = t.settle(again.fh, Kernel::Refuses);
    assert!(same.is_some(), "as the handle that is open");
    t.fs.release(again.fh);
    assert_eq!(errno(t.fs.link(id, at(NodeId::OUTBOX, "h"))), libc::ESTALE);
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(errno(t.setattr(id, set)), libc::ESTALE);
    assert_eq!(
        t.fs.getattr(id, None).unwrap().size,
        3,
        "of the open handle"
    );

    let new = t.node_in_outbox("g");
    assert_ne!(new, id);
    let writer = t.open(new, libc::O_WRONLY).unwrap();
    assert!(t.settle(writer.fh, Kernel::Grants).is_none());
    t.write(writer.fh, 0, b"new").unwrap();
    t.fs.release(writer.fh);
    assert_eq!(t.read(reader), b"new", "it is the same file");
    t.fs.release(reader);
    t.fs.forget(id, 1);
    assert_eq!(errno(t.fs.getattr(id, None)), libc::ESTALE);
    assert_eq!(t.node_in_outbox("g"), new);
}

#[test]
fn a_file_moved_out_while_it_is_read_through_us_keeps_its_node() {
    let t = test_fs();
    let id = t.put_inbox("f", b"old").attr.node;
    let (reader, registration) = t.open_settled(id, Kernel::Refuses);
    assert!(registration.is_none());
    t.mv_out("f", "g");
    assert_eq!(t.node_in_outbox("g"), id);
    let (other, registration) = t.open_settled(id, Kernel::Grants);
    assert!(registration.is_none(), "never in the outbox");
    t.fs.release(reader);
    t.fs.release(other);
    assert!(t.open_settled(id, Kernel::Grants).1.is_none());
}

#[test]
fn an_open_that_is_under_way_while_the_file_is_moved_out_is_read_through_us() {
    let t = test_fs();
    let id = t.put_inbox("f", b"bytes").attr.node;
    let under_way = t.open(id, libc::O_RDONLY).unwrap();
    t.mv_out("f", "g");
    assert!(t.settle(under_way.fh, Kernel::Grants).is_none());
    let asked = t.put_inbox("k", b"bytes").attr.node;
    let under_way = t.open(asked, libc::O_RDONLY).unwrap();
    let settled = t.fs.settle_reading(under_way.fh, |_file| {
        t.mv_out("k", "l");
        Ok(Arc::new("granted too late"))
    });
    assert!(settled.is_none());
    assert_eq!(t.node_in_outbox("l"), asked);
}

#[test]
fn closing_what_was_only_read_needs_no_flush() {
    let t = test_fs();
    let inbox = t.put_inbox("f", b"bytes").attr.node;
    let outbox = t.put(NodeId::OUTBOX, "f", b"bytes").attr.node;
    assert!(t.open(inbox, libc::O_RDONLY).unwrap().reads_only);
    assert!(t.open(outbox, libc::O_RDONLY).unwrap().reads_only);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert!(!t.open(outbox, flags).unwrap().reads_only);
    }
    assert!(!t.create(NodeId::OUTBOX, "g").unwrap().1.reads_only);
}

/// The kernel believes a name for a moment after the spool renamed a new version over it.
#[test]
fn an_open_right_after_a_new_version_sees_it_although_the_old_one_is_open() {
    let t = test_fs();
    let old = t.put_inbox("f", b"old").attr.node;
    let (reader, _registration) = t.open_settled(old, Kernel::Grants);
    t.publish("f", b"new");
    assert_eq!(errno(t.open_by(1, old, libc::O_RDONLY)), libc::ESTALE);
    let new = t.fs.lookup(NodeId::INBOX, b"f").unwrap().attr.node;
    assert_ne!(new, old);
    let opened = t.open_by(1, new, libc::O_RDONLY).unwrap();
    assert_eq!(t.read(opened.fh), b"new");
    let by_descriptor = [2, 2].map(|tid| t.open_by(tid, old, libc::O_RDONLY));
    let [Err(FsError::Stale), Ok(by_descriptor)] = by_descriptor else {
        panic!("{by_descriptor:?}");
    };
    assert_eq!(t.read(by_descriptor.fh), b"old");
    assert_eq!(t.read(reader), b"old");
}

#[test]
fn a_file_renamed_by_its_origin_while_the_kernel_reads_it_keeps_its_node_and_its_way() {
    let t = test_fs();
    let id = t.put_inbox("f", b"bytes").attr.node;
    let (reader, _registration) = t.open_settled(id, Kernel::Grants);
    let root = t.inbox_root();
    disk::rename(root.join("f"), root.join("g")).unwrap();
    let observer = t.observer();
    observer.renamed(&rel("f"), &rel("g"), None);
    assert_eq!(
        errno(t.open_by(1, id, libc::O_RDONLY)),
        libc::ESTALE,
        "the kernel may have come by the old name, and looks it up again"
    );
    assert_eq!(errno(t.fs.lookup(NodeId::INBOX, b"f")), libc::ENOENT);
    let found = t.fs.lookup(NodeId::INBOX, b"g").unwrap();
    assert_eq!(found.attr.node, id);
    let (again, registration) = t.open_settled(id, Kernel::Refuses);
    assert!(registration.is_some(), "as the handle that is open");
    t.fs.release(again);
    t.fs.release(reader);
}

/// Between the rename on disk and the word of it, the name must not be missing for anybody.
#[test]
fn an_open_while_a_file_is_renamed_over_another_finds_one_of_the_two() {
    let t = test_fs();
    let moving = t.put_inbox("f", b"moving").attr.node;
    let replaced = t.put_inbox("g", b"replaced").attr.node;
    let root = t.inbox_root();
    let before = disk::metadata(root.join("g")).unwrap().ino();
    disk::rename(root.join("f"), root.join("g")).unwrap();
    let by = |tid, id| t.open_by(tid, id, libc::O_RDONLY);
    let gone = t.fs.getattr(moving, None);
    assert_eq!(errno(gone), libc::ESTALE);
    assert_eq!(errno(by(1, moving)), libc::ESTALE, "by its old name");
    assert_eq!(errno(by(1, replaced)), libc::ESTALE);
    assert_eq!(errno(t.fs.lookup(NodeId::INBOX, b"f")), libc::ENOENT);
    let found = t.fs.lookup(NodeId::INBOX, b"g").unwrap().attr.node;
    assert_eq!(found, moving);
    let opened = by(1, found).unwrap();
    assert_eq!(t.read(opened.fh), b"moving");
    let observer = t.observer();
    observer.renamed(&rel("f"), &rel("g"), Some(before));
    let opened = by(1, found).unwrap();
    assert_eq!(t.read(opened.fh), b"moving");
}
