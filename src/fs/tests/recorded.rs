//! What changes a file of the outbox but not its bytes goes by the spool, which keeps what it recorded of it.

use super::*;

#[test]
fn owner_mode_times_and_attributes_are_set_with_the_record_in_mind() {
    let t = test_fs();
    t.put(NodeId::OUTBOX, "f", b"x");
    t.all_sealed();
    assert!(t.is_recorded("f"));
    let id = t.fs.lookup(NodeId::OUTBOX, b"f").unwrap().attr.node;
    let time = Some(SetTime::At(Time { secs: 5, nanos: 0 }));
    let none = SetAttr::default();
    for set in [
        SetAttr {
            mode: Some(0o600),
            ..none
        },
        SetAttr {
            uid: Some(ME.uid),
            ..none
        },
        SetAttr {
            gid: Some(ME.gid),
            ..none
        },
        SetAttr {
            mtime: time,
            ..none
        },
        SetAttr {
            atime: time,
            ..none
        },
    ] {
        t.setattr(id, set).unwrap();
        assert!(t.is_recorded("f"), "{set:?}");
    }
    t.fs.setxattr(id, b"user.note", b"v", 0).unwrap();
    assert!(t.is_recorded("f"));
    t.fs.removexattr(id, b"user.note").unwrap();
    assert!(t.is_recorded("f"));
    assert_eq!(errno(t.fs.removexattr(id, b"user.note")), libc::ENODATA);
    assert!(t.is_recorded("f"));
}

#[test]
fn a_name_more_or_less_is_too_unless_it_is_the_last() {
    let t = test_fs();
    t.put(NodeId::OUTBOX, "f", b"x");
    t.put(NodeId::OUTBOX, "other", b"y");
    t.all_sealed();
    let id = t.fs.lookup(NodeId::OUTBOX, b"f").unwrap().attr.node;
    for name in [".a", ".b", ".c"] {
        t.fs.link(id, at(NodeId::OUTBOX, name)).unwrap();
        assert!(t.is_recorded("f"), "linked to {name}");
    }
    t.unlink(NodeId::OUTBOX, ".a").unwrap();
    assert!(t.is_recorded("f"));
    let over = |from, to, flags| t.rename(at(NodeId::OUTBOX, from), at(NodeId::OUTBOX, to), flags);
    over("other", ".b", RenameFlags::empty()).unwrap();
    assert!(t.is_recorded("f"), "one of its names went");
    over(".b", ".c", RenameFlags::EXCHANGE).unwrap();
    assert!(t.is_recorded("f"));
    over("f", ".c", RenameFlags::empty()).unwrap();
    let gate = t.gate(".b");
    t.unlink(NodeId::OUTBOX, ".b").unwrap();
    t.unlink(NodeId::OUTBOX, ".c").unwrap();
    assert!(t.is_removed(&gate), "the last");
    assert!(t.names(NodeId::OUTBOX).is_empty());
}
