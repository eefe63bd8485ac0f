//! Limits of space and size, and files whose write failed.

use super::*;

fn error_shown(t: &TestFs, id: NodeId) -> String {
    let value = t.fs.getxattr(id, b"user.meshbox.error").unwrap();
    String::from_utf8(value).unwrap()
}

fn state_shown(t: &TestFs, id: NodeId) -> Vec<u8> {
    t.fs.getxattr(id, b"user.meshbox.state").unwrap()
}

#[test]
fn a_write_past_the_limit_is_cut_then_refused_and_the_file_held_back() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    let last = MAX_FILE_BYTES - 10;
    assert_eq!(t.write(opened.fh, last, &[1; 30]).unwrap(), 10);
    assert_eq!(
        errno(t.write(opened.fh, MAX_FILE_BYTES, &[1; 20])),
        libc::EFBIG
    );
    t.fs.release(opened.fh);
    t.wait_torn("f");
    assert_eq!(state_shown(&t, entry.attr.node), b"incomplete");
    assert!(error_shown(&t, entry.attr.node).contains("File too large"));
    assert_eq!(
        t.fs.getattr(entry.attr.node, None).unwrap().size,
        MAX_FILE_BYTES
    );
}

#[test]
fn a_program_that_ignores_the_short_count_is_held_back_too() {
    let t = test_fs();
    let (_, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    assert_eq!(t.write(opened.fh, MAX_FILE_BYTES - 1, b"xy").unwrap(), 1);
    t.fs.release(opened.fh);
    t.wait_torn("f");
}

#[test]
fn no_call_makes_a_file_larger_than_the_limit() {
    // The largest file there may be takes hours to be hashed.
    let t = unsettled_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"x");
    let id = entry.attr.node;
    t.send("f");
    t.wait_queued(id);
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert_eq!(errno(t.setattr(id, size(MAX_FILE_BYTES + 1))), libc::EFBIG);
    assert_eq!(
        state_shown(&t, id),
        b"queued",
        "it is what its writer meant"
    );
    let opened = t.open(id, libc::O_WRONLY).unwrap();
    let allocate = |offset, length, mode| {
        answer(|done| t.fs.fallocate(opened.fh, offset, length, mode, ME, done))
    };
    assert_eq!(errno(allocate(MAX_FILE_BYTES, 1, 0)), libc::EFBIG);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    if let Err(error) = allocate(MAX_FILE_BYTES, 4096, punch) {
        assert_eq!(error.errno(), libc::EOPNOTSUPP, "it makes nothing larger");
    }
    t.fs.release(opened.fh);
    t.setattr(id, size(MAX_FILE_BYTES)).unwrap();
}

#[test]
fn a_full_disk_fails_writes_and_names_and_the_short_file_is_not_sent() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    let id = entry.attr.node;
    t.write(opened.fh, 0, b"first").unwrap();
    t.spool.content.pretend_free(|| 10);
    assert_eq!(errno(t.write(opened.fh, 5, &[0; 100])), libc::ENOSPC);
    assert_eq!(errno(t.create(NodeId::OUTBOX, "g")), libc::ENOSPC);
    let made = t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME);
    assert_eq!(errno(made), libc::ENOSPC);
    // A little more fits, and the program closes as if nothing had been.
    t.write(opened.fh, 5, b"more").unwrap();
    t.fs.release(opened.fh);
    t.wait_torn("f");
    assert_eq!(state_shown(&t, id), b"incomplete");
    assert!(error_shown(&t, id).contains("No space left"));

    t.spool.content.pretend_no_more();
    let again = t.open(id, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    t.write(again.fh, 0, b"whole").unwrap();
    t.fs.release(again.fh);
    assert_eq!(t.wait_seal(), Sealed::One("f".into(), None));
    assert_eq!(
        errno(t.fs.getxattr(id, b"user.meshbox.error")),
        libc::ENODATA
    );
}

#[test]
fn a_program_that_starts_over_after_a_full_disk_is_believed() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"first").unwrap();
    t.spool.content.pretend_free(|| 0);
    assert_eq!(errno(t.write(opened.fh, 5, b"x")), libc::ENOSPC);
    t.spool.content.pretend_no_more();
    let empty = SetAttr {
        size: Some(0),
        fh: Some(opened.fh),
        ..SetAttr::default()
    };
    t.setattr(entry.attr.node, empty).unwrap();
    t.write(opened.fh, 0, b"whole").unwrap();
    t.fs.release(opened.fh);
    assert_eq!(t.wait_seal(), Sealed::One("f".into(), None));
}

/// A spool that keeps nothing for others as large as what [`put_kept`] makes.
fn keeps_little() -> TestFs {
    test_fs_of(Setup {
        limits: Limits {
            max_bytes: Some(64 << 10),
            ..Limits::default()
        },
        ..Setup::default()
    })
}

/// A sealed file that birch still waits for.
fn put_kept(t: &TestFs, name: &str) -> Entry {
    let entry = t.put(NodeId::OUTBOX, name, &[b'x'; 100 << 10]);
    t.wait_seal();
    entry
}

#[test]
fn a_file_that_must_be_kept_and_cannot_be_is_not_removed() {
    let t = keeps_little();
    let entry = put_kept(&t, "f");
    assert_eq!(errno(t.unlink(NodeId::OUTBOX, "f")), libc::EDQUOT);
    assert!(t.outbox("f").exists());
    t.fs.link(entry.attr.node, at(NodeId::OUTBOX, "g")).unwrap();
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    assert_eq!(
        errno(t.unlink(NodeId::OUTBOX, "g")),
        libc::EDQUOT,
        "the last name"
    );
}

#[test]
fn a_file_that_must_be_kept_and_cannot_be_is_not_replaced_by_a_rename() {
    let t = keeps_little();
    put_kept(&t, "f");
    t.put(NodeId::OUTBOX, "g", b"other");
    t.put_inbox("i", b"arrived");
    for from in [at(NodeId::OUTBOX, "g"), at(NodeId::INBOX, "i")] {
        let over = |flags| t.rename(from, at(NodeId::OUTBOX, "f"), flags);
        assert_eq!(errno(over(RenameFlags::empty())), libc::EDQUOT);
        assert_eq!(errno(over(RenameFlags::NOREPLACE)), libc::EEXIST);
    }
    assert_eq!(disk::read(t.outbox("f")).unwrap(), [b'x'; 100 << 10]);
    let (f, g) = (at(NodeId::OUTBOX, "f"), at(NodeId::OUTBOX, "g"));
    t.rename(g, f, RenameFlags::EXCHANGE).unwrap();
}
