//! Files with several names, and marks that are made before an operation is answered.

use super::*;

/// Waits until nothing is left to be sealed; what was, sorted.
fn sealed(t: &TestFs) -> Vec<String> {
    let sealed = t
        .all_sealed()
        .into_iter()
        .filter_map(|sealed| match sealed {
            Sealed::One(path, _) => Some(path),
            Sealed::Tree(..) => None,
        });
    let mut sealed: Vec<String> = sealed.collect();
    sealed.sort();
    sealed
}

#[test]
fn what_is_written_through_one_name_is_sealed_under_all() {
    let t = test_fs();
    let f = t.put(NodeId::OUTBOX, "f", b"1").attr.node;
    for name in ["g", ".x"] {
        t.fs.link(f, at(NodeId::OUTBOX, name)).unwrap();
    }
    assert_eq!(sealed(&t), ["f", "g"]);
    let opened = t.open(f, libc::O_WRONLY).unwrap();
    t.write(opened.fh, 0, b"2").unwrap();
    t.fs.release(opened.fh);
    assert_eq!(sealed(&t), ["f", "g"]);
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    let opened = t.open(f, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    t.fs.release(opened.fh);
    assert_eq!(sealed(&t), ["g"]);
}

#[test]
fn what_was_first_known_under_an_ignored_name_is_sealed_under_the_other() {
    let t = test_fs();
    let x = t.put(NodeId::OUTBOX, ".x", b"1").attr.node;
    t.fs.link(x, at(NodeId::OUTBOX, "f")).unwrap();
    assert_eq!(sealed(&t), ["f"]);
    let opened = t.open(x, libc::O_WRONLY).unwrap();
    t.write(opened.fh, 1, b"2").unwrap();
    assert_eq!(t.fs.file_state(x).unwrap().word(), "open");
    t.fs.release(opened.fh);
    assert_eq!(sealed(&t), ["f"]);
    t.wait_queued(x);
}

#[test]
fn a_mode_set_through_one_name_is_sealed_under_all() {
    let t = test_fs();
    let f = t.put(NodeId::OUTBOX, "f", b"1").attr.node;
    t.fs.link(f, at(NodeId::OUTBOX, "g")).unwrap();
    assert_eq!(sealed(&t), ["f", "g"]);
    let set = SetAttr {
        mode: Some(0o755),
        ..SetAttr::default()
    };
    t.setattr(f, set).unwrap();
    assert_eq!(sealed(&t), ["f", "g"]);
}

#[test]
fn a_close_and_a_truncation_have_made_their_mark_when_they_are_answered() {
    let t = unsettled_fs();
    let closed = [(MarkKind::Closed, "f".to_owned())];
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"123").unwrap();
    t.fs.release(opened.fh);
    assert_eq!(t.marks(), closed);
    t.send("f");
    assert_eq!(sealed(&t), [""; 0]);
    assert_eq!(t.marks(), []);
    let set = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    t.setattr(entry.attr.node, set).unwrap();
    assert_eq!(t.marks(), closed);
}

#[test]
fn a_rename_mends_a_mark_and_makes_none() {
    let t = unsettled_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"1");
    t.send("f");
    assert_eq!(sealed(&t), [""; 0]);
    let mv = |from, to| {
        let (from, to) = (at(NodeId::OUTBOX, from), at(NodeId::OUTBOX, to));
        t.rename(from, to, RenameFlags::empty()).unwrap();
    };
    mv("f", "g");
    assert_eq!(t.marks(), []);
    let opened = t.open(entry.attr.node, libc::O_WRONLY).unwrap();
    assert_eq!(t.write(opened.fh, MAX_FILE_BYTES - 1, b"xy").unwrap(), 1);
    t.fs.release(opened.fh);
    assert_eq!(t.marks(), [(MarkKind::Torn, "g".into())]);
    mv("g", "h");
    assert_eq!(t.marks(), [(MarkKind::Closed, "h".into())]);
}
