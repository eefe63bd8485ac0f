//! Seals that fail before they hold: nothing of them is left.

use super::*;
use crate::spool::outbox::hashing::{READ_BYTES, Slice};
use crate::spool::outbox::seal::{Gates, Looked, Taken, gates_of};

/// Nothing can be sealed while this lives: what a node writes before its first bundle cannot be written.
struct Blocked(PathBuf);

impl Blocked {
    fn of(node: &Node) -> Self {
        let at = node.state().join("bound.new");
        fs::create_dir(&at).unwrap();
        Self(at)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

/// The digests that `content/` has.
fn contents(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for first in fs::read_dir(node.state().join("content")).unwrap() {
        let entries = fs::read_dir(first.unwrap().path()).unwrap();
        found.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
    }
    found
}

fn link_of(node: &Node, bytes: &[u8]) -> PathBuf {
    node.spool().layout.content(Digest::of(bytes))
}

fn assert_failed(outcome: &SealOutcome) {
    assert!(matches!(outcome, SealOutcome::Failed(_)), "{outcome:?}");
}

#[test]
fn a_seal_that_fails_leaves_no_link_whose_bytes_a_writer_could_change() {
    let alder = Node::new();
    let blocked = Blocked::of(&alder);
    alder.open("a", b"one");
    alder.close("a");
    assert_failed(&alder.seal("a"));
    assert_eq!(contents(&alder), [""; 0]);
    assert_eq!(alder.spool().counts().sealed, 0);
    drop(blocked);
    alder.open("a", b"two");
    alder.close("a");
    assert!(matches!(alder.seal("a"), SealOutcome::Sealed(_)));
    assert_eq!(fs::read(link_of(&alder, b"two")).unwrap(), b"two");
    assert_eq!(contents(&alder).len(), 1);
}

#[test]
fn a_directory_that_cannot_be_sealed_leaves_no_links_and_is_sealed_later() {
    let alder = Node::new();
    let blocked = Blocked::of(&alder);
    alder.fill(".d", &[("a", b"1"), ("b/c", b"2")]);
    let tree = alder.announce_tree(".d", "d");
    alder.rename_directory(".d", "d");
    assert_failed(&alder.seal_tree(tree, "d"));
    assert_eq!(contents(&alder), [""; 0]);
    drop(blocked);
    assert!(matches!(alder.seal_tree(tree, "d"), SealOutcome::Sealed(_)));
    assert_eq!(contents(&alder).len(), 2);
}

#[test]
fn files_that_cannot_be_sent_leave_no_links_and_no_id() {
    let alder = Node::new();
    let blocked = Blocked::of(&alder);
    alder.fill(".stage", &[("0", b"one")]);
    let request = SendRequest {
        files: vec![(rel(".stage/0"), rel("a"))],
        id: Some("mine".into()),
        ..SendRequest::default()
    };
    alder.spool().send_files(&request).unwrap_err();
    assert_eq!(contents(&alder), [""; 0]);
    assert_eq!(alder.spool().outbox.sent_as("mine"), None);
    drop(blocked);
    let sent = alder.spool().send_files(&request).unwrap();
    assert!(matches!(sent, Sent::Sealed(_)), "{sent:?}");
    assert_eq!(contents(&alder).len(), 1);
}

#[test]
fn a_link_of_a_failed_seal_that_another_bundle_needs_is_not_written_through() {
    let (alder, _birch) = pair();
    alder.drop_file("a", b"one");
    let (link, digest) = (link_of(&alder, b"one"), Digest::of(b"one"));
    // The seal of b made the link, that of a found it, and only that of b failed.
    fs::write(alder.outbox("b"), b"one").unwrap();
    fs::remove_file(&link).unwrap();
    fs::hard_link(alder.outbox("b"), &link).unwrap();
    let decide = alder.spool().decide();
    decide.content.unhold(digest, alder.ino("b")).unwrap();
    drop(decide);
    alder.open("b", b"two");
    assert_eq!(fs::read(&link).unwrap(), b"one");
}

#[test]
fn a_seal_that_leaves_a_member_out_leaves_no_link_of_it() {
    let alder = Node::new();
    let spool = alder.spool();
    let mut buffer = vec![0; READ_BYTES];
    let mut slice = Slice::new(&mut buffer, true);
    let members = ["a", "b"].map(|name| {
        fs::write(alder.outbox(name), name).unwrap();
        let gate = spool.outbox.gate(alder.ino(name));
        match spool.look_at_member(&gate, &rel(name), &mut slice) {
            Ok(Looked::Member(member)) => *member,
            _ => panic!("{name}"),
        }
    });
    let gates = gates_of(&members);
    let linked = Gates::lock(&gates).link(spool, &members).unwrap();
    let mut plan = linked.plan(spool);
    assert_eq!(contents(&alder).len(), 2);
    assert!(matches!(plan.take_in(&members[0]), Ok(Taken::Here(_))));
    plan.commit(false).unwrap();
    assert!(link_of(&alder, b"a").exists());
    assert!(!link_of(&alder, b"b").exists());
}
