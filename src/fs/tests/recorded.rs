//! What changes a file of the outbox but not its bytes goes by the spool, which keeps what it recorded of it.

use super::*;

impl TestFs {
    fn kept(&self) -> Vec<String> {
        std::mem::take(&mut *self.spool.kept.lock())
    }
}

#[test]
fn owner_mode_times_and_attributes_are_set_with_the_record_in_mind() {
    let t = test_fs();
    t.put(NodeId::OUTBOX, "f", b"x");
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
        assert_eq!(t.kept(), ["f"], "{set:?}");
    }
    t.fs.setxattr(id, b"user.note", b"v", 0).unwrap();
    assert_eq!(t.kept(), ["f"]);
    t.fs.removexattr(id, b"user.note").unwrap();
    assert_eq!(t.kept(), ["f"]);
    assert_eq!(errno(t.fs.removexattr(id, b"user.note")), libc::ENODATA);
}

#[test]
fn a_name_more_or_less_is_too_unless_it_is_the_last() {
    let t = test_fs();
    t.put(NodeId::OUTBOX, "f", b"x");
    t.put(NodeId::OUTBOX, "other", b"x");
    let id = t.fs.lookup(NodeId::OUTBOX, b"f").unwrap().attr.node;
    for name in [".a", ".b", ".c"] {
        t.fs.link(id, at(NodeId::OUTBOX, name)).unwrap();
    }
    assert_eq!(t.kept(), ["f", "f", "f"]);
    t.unlink(NodeId::OUTBOX, ".a").unwrap();
    assert_eq!(t.kept(), [".a"]);
    let over = |from, to, flags| t.rename(at(NodeId::OUTBOX, from), at(NodeId::OUTBOX, to), flags);
    over("other", ".b", RenameFlags::empty()).unwrap();
    assert_eq!(t.kept(), [".b"], "one of its names went");
    over(".b", ".c", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(t.kept(), [".c"]);
    over("f", ".c", RenameFlags::empty()).unwrap();
    t.unlink(NodeId::OUTBOX, ".b").unwrap();
    t.unlink(NodeId::OUTBOX, ".c").unwrap();
    assert!(!t.kept().contains(&".c".to_owned()), "the last");
    assert!(t.names(NodeId::OUTBOX).is_empty());
}
