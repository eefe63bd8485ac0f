//! Files with several names, and marks that are made before an operation is answered.

use super::*;

fn drain(t: &TestFs) -> Vec<Saw> {
    std::iter::from_fn(|| t.saw.try_recv().ok()).collect()
}

/// Waits until nothing is left to be sealed; what was, sorted.
fn sealed(t: &TestFs) -> Vec<String> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while t.fs.overview(0).unsealed > 0 {
        assert!(std::time::Instant::now() < deadline, "not sealed");
        thread::yield_now();
    }
    let saw = drain(t).into_iter();
    let mut sealed: Vec<String> = saw
        .filter_map(|saw| match saw {
            Saw::Seal(path, _) => Some(path),
            _ => None,
        })
        .collect();
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
    assert_eq!(t.fs.file_state(x).unwrap().state, "open");
    t.fs.release(opened.fh);
    assert_eq!(sealed(&t), ["f"]);
    assert_eq!(t.fs.file_state(x).unwrap().state, "queued");
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
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"123").unwrap();
    drain(&t);
    t.fs.release(opened.fh);
    assert!(drain(&t).contains(&Saw::Closed("f".into())));
    sealed(&t);
    let set = SetAttr {
        size: Some(1),
        ..SetAttr::default()
    };
    t.setattr(entry.attr.node, set).unwrap();
    assert!(drain(&t).contains(&Saw::Closed("f".into())));
}

#[test]
fn a_rename_mends_a_mark_and_makes_none() {
    let t = test_fs();
    t.put(NodeId::OUTBOX, "f", b"1");
    sealed(&t);
    let (from, to) = (at(NodeId::OUTBOX, "f"), at(NodeId::OUTBOX, "g"));
    t.rename(from, to, RenameFlags::empty()).unwrap();
    let saw = drain(&t);
    assert!(saw.contains(&Saw::Mended), "{saw:?}");
    assert!(!saw.contains(&Saw::Closed("g".into())), "{saw:?}");
}
