//! The modification times of directories that are sent as one.

use super::*;
use crate::bundle::Mtime;
use crate::spool::inbox::intake::set_mtime;
use crate::spool::outbox::seal::mtime_of;

/// Gives a directory below `root` a modification time.
pub(super) fn age(root: &Path, times: &[(&str, Mtime)]) {
    for (at, time) in times {
        set_mtime(&File::open(root.join(at)).unwrap(), *time).unwrap();
    }
}

#[track_caller]
pub(super) fn assert_ages(root: &Path, times: &[(&str, Mtime)]) {
    for (at, time) in times {
        let meta = fs::symlink_metadata(root.join(at)).unwrap();
        assert!(meta.is_dir());
        assert_eq!(mtime_of(&meta), *time, "{at}");
    }
}

#[test]
fn directories_of_a_new_tree_have_the_times_they_had_at_the_seal() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a"), ("sub/deep/b", b"b")]);
    fs::create_dir_all(alder.outbox(".d/sub/empty")).unwrap();
    let times = [
        ("", (1_000_000_000, 123_456_789)),
        ("sub", (-86_400, 999_999_999)),
        ("sub/deep", (0, 0)),
        ("sub/empty", (1, 1)),
    ];
    age(&alder.outbox(".d"), &times);
    let bundle = alder.commit(".d", "d");
    let manifest = alder.manifest(bundle);
    assert_eq!(manifest.manifest().entries.len(), 3, "no more than before");
    birch.fetch(&alder, bundle);
    assert_ages(&birch.inbox("d"), &times);
}

#[test]
fn directories_that_are_there_already_have_them_too() {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("sub/b", b"b1")]);
    birch.fetch(&alder, alder.commit(".d", "d"));
    fs::rename(alder.outbox("d"), alder.outbox("aside")).unwrap();
    alder.fill(".d", &[("a", b"a2"), ("sub/c", b"c2"), ("new/e", b"e2")]);
    fs::create_dir_all(alder.outbox(".d/empty")).unwrap();
    let times = [
        ("", (10, 1)),
        ("sub", (20, 2)),
        ("new", (-30, 3)),
        ("empty", (40, 4)),
    ];
    age(&alder.outbox(".d"), &times);
    birch.fetch(&alder, alder.commit(".d", "d"));
    assert_ages(&birch.inbox("d"), &times);
}

#[test]
fn a_tree_of_one_file_or_of_none_has_them_below_whatever_name_it_got() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&cedar, cedar.drop_file("d", b"a file of cedar's"));
    alder.fill(".d", &[("sub/b", b"b")]);
    let times = [("", (10, 1)), ("sub", (20, 2))];
    age(&alder.outbox(".d"), &times);
    birch.fetch(&alder, alder.commit(".d", "d"));
    assert_ages(&birch.inbox("d~alder"), &times);
    alder.fill(".e", &[]);
    age(&alder.outbox(".e"), &times[..1]);
    birch.fetch(&alder, alder.commit(".e", "e"));
    assert_ages(&birch.inbox("e"), &times[..1]);
    // A directory above the tree is not of it.
    fs::create_dir_all(alder.outbox("above/.t")).unwrap();
    alder.fill("above/.t", &[("a", b"a"), ("b", b"b")]);
    age(&alder.outbox("above"), &[("", (5, 5)), (".t", (6, 6))]);
    let bundle = alder.commit("above/.t", "above/t");
    let said = alder.manifest(bundle).manifest().directories.clone();
    assert_eq!(said, [(rel("above/t"), (6, 6))]);
    birch.fetch(&alder, bundle);
    assert_ages(&birch.inbox("above"), &[("t", (6, 6))]);
}

#[test]
fn who_joins_later_gets_the_times_of_what_is_left() {
    let (alder, _) = pair();
    alder.fill(".d", &[("a", b"a1"), ("x/b", b"b1"), ("y/c", b"c1")]);
    age(&alder.outbox(".d"), &[("x", (10, 1)), ("y", (20, 2))]);
    alder.commit(".d", "d");
    alder.drop_file("d/a", b"a2");
    alder.drop_file("d/x/b", b"b2");
    let cedar = Node::new();
    cedar.knows(&alder, "alder");
    alder.knows(&cedar, "cedar");
    for (_, bundle) in alder.spool().ledger.pending(cedar.id(), None, 9).unwrap() {
        cedar.fetch(&alder, bundle);
        alder.spool().take_receipt(&cedar.receipt()).unwrap();
    }
    assert_eq!(fs::read(cedar.inbox("d/x/b")).unwrap(), b"b2");
    assert_ages(&cedar.inbox("d"), &[("y", (20, 2))]);
}
