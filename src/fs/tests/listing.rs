//! Listings that go on where another descriptor stopped.

use super::*;

/// One piece of a listing, of at most `most` names, through a descriptor of its own: the names, and where to go on.
fn piece(t: &TestFs, id: NodeId, offset: u64, most: usize, plus: bool) -> (Vec<String>, u64) {
    let opened = t.fs.opendir(id).unwrap();
    let (mut names, mut at) = (Vec::new(), offset);
    let mut take = |item: &crate::fs::attr::Item| {
        if names.len() == most {
            return true;
        }
        names.push(String::from_utf8(item.name.clone()).unwrap());
        at = item.offset;
        false
    };
    if plus {
        t.fs.readdirplus(opened.fh, offset, |item, _| take(item))
            .unwrap();
    } else {
        t.fs.readdir(opened.fh, offset, take).unwrap();
    }
    t.fs.releasedir(opened.fh);
    (names, at)
}

#[test]
fn a_listing_goes_on_through_new_descriptors_while_names_come_and_go() {
    for plus in [false, true] {
        let t = test_fs();
        let d = t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME).unwrap();
        let d = d.attr.node;
        for n in 0..30 {
            t.put(d, &format!("stays{n}"), b"x");
            t.put(d, &format!("goes{n}"), b"x");
        }
        let (mut seen, mut offset) = (Vec::new(), 0);
        for round in 0.. {
            let (names, next) = piece(&t, d, offset, 3, plus);
            if names.is_empty() {
                break;
            }
            assert!(next > offset, "offsets grow");
            (offset, seen) = (next, [seen, names].concat());
            if round < 30 {
                t.unlink(d, &format!("goes{round}")).unwrap();
                t.put(d, &format!("comes{round}"), b"x");
            }
        }
        let mut once = seen.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), seen.len(), "nothing is listed twice");
        let stayed = seen.iter().filter(|name| name.starts_with("stays"));
        assert_eq!(stayed.count(), 30, "what was there all the time is listed");
        assert_eq!(seen[..2], [".", ".."]);
    }
}

#[test]
fn the_generated_directories_and_the_inbox_are_listed_in_pieces_too() {
    let t = test_fs();
    for n in 0..5 {
        t.put_inbox(&format!("i{n}"), b"x");
    }
    for (id, names) in [
        (NodeId::ROOT, 5),
        (NodeId::STATUS_DIR, 6),
        (NodeId::INBOX, 7),
        (NodeId::OUTBOX, 2),
    ] {
        let (mut seen, mut offset) = (HashSet::new(), 0);
        loop {
            let (one, next) = piece(&t, id, offset, 1, true);
            let Some(name) = one.first() else { break };
            assert!(seen.insert(name.clone()), "{id:?}: {name} twice");
            offset = next;
        }
        assert_eq!(seen.len(), names, "{id:?}: {seen:?}");
    }
}

#[test]
fn two_dots_have_the_number_of_the_directory_above() {
    let t = test_fs();
    let mkdir = |parent, name| t.fs.mkdir(at(parent, name), 0o755, ME).unwrap().attr.node;
    let a = mkdir(NodeId::OUTBOX, "a");
    let (b, other) = (mkdir(a, "b"), mkdir(NodeId::OUTBOX, "other"));
    let above = |id| {
        let opened = t.fs.opendir(id).unwrap();
        let mut number = 0;
        t.fs.readdir(opened.fh, 0, |item| {
            if item.name == b".." {
                number = item.number;
            }
            false
        })
        .unwrap();
        t.fs.readdirplus(opened.fh, 0, |item, entry| {
            if item.name == b".." {
                assert_eq!(entry.attr.node.0, number, "both ways of listing");
            }
            false
        })
        .unwrap();
        NodeId(number)
    };
    assert_eq!(above(b), a);
    assert_eq!(above(a), NodeId::OUTBOX);
    for top in [NodeId::OUTBOX, NodeId::INBOX, NodeId::STATUS_DIR] {
        assert_eq!(above(top), NodeId::ROOT);
    }
    t.rename(at(a, "b"), at(other, "b"), RenameFlags::empty())
        .unwrap();
    assert_eq!(above(b), other);
}
