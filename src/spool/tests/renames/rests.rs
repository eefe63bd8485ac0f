//! Renames of files of which a member got only the rest of their bundle.

use super::*;
use crate::bundle::VerifiedManifest;

/// birch had the whole of `d`, of which one file was replaced before cedar joined. What cedar is owed.
fn joined_late() -> (Node, Node, Node, BundleId, Vec<BundleId>) {
    let (alder, birch) = pair();
    alder.fill(".d", &[("a", b"a1"), ("b", b"b1"), ("c", b"c1")]);
    let whole = alder.commit(".d", "d");
    birch.take(&alder, whole);
    alder.drop_file("d/a", b"a2");
    birch.take_all(&alder);
    let cedar = Node::new();
    cedar.knows(&alder, "alder");
    alder.knows(&cedar, "cedar");
    let owed = alder.spool().ledger.pending(cedar.id(), None, 9).unwrap();
    let owed = owed.into_iter().map(|(_, bundle)| bundle).collect();
    (alder, birch, cedar, whole, owed)
}

impl Node {
    /// Takes a bundle that any holder may offer, whose bytes these are.
    pub(super) fn feed(&self, manifest: &VerifiedManifest, bytes: &[&[u8]]) {
        let manifest = manifest.signed().clone().verify().unwrap();
        let origin = manifest.manifest().origin;
        match self.spool().offered(manifest, origin).unwrap() {
            Offered::Wanted(mut incoming) => {
                for (entry, bytes) in bytes.iter().enumerate() {
                    if !incoming.missing(entry).is_empty() {
                        incoming.accept_chunk(entry, 0, bytes).unwrap();
                    }
                }
                incoming.finish().unwrap().publish().unwrap();
            }
            Offered::AwaitingDurable | Offered::Settled(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn who_got_the_rest_of_a_bundle_follows_renames_and_what_it_consumed_stays_consumed() {
    for (restart, chain) in [(false, false), (true, false), (false, true)] {
        let (alder, birch, mut cedar, _, _) = joined_late();
        cedar.take_all(&alder);
        assert_eq!(cedar.shows(), ["d/a", "d/b", "d/c"]);
        let ino = cedar.inbox_ino("d/c");
        cedar.consume("d/b");
        if restart {
            cedar.stop();
            cedar.start();
        }
        for (from, to) in [("d/b", "b"), ("d/c", "c")] {
            alder.rename(from, to);
            if chain {
                alder.rename(to, &format!("{to}2"));
            }
        }
        birch.take_all(&alder);
        assert_eq!(cedar.take_all(&alder), 0, "no bytes");
        let c = if chain { "c2" } else { "c" };
        assert_eq!(cedar.shows(), [c, "d/a"], "restart {restart}");
        assert_eq!(cedar.inbox_ino(c), ino);
    }
}

#[test]
fn of_a_rest_of_one_file_the_same_holds() {
    let (alder, birch, cedar, _, _) = joined_late();
    alder.drop_file("d/b", b"b2");
    birch.take_all(&alder);
    cedar.take_all(&alder);
    let dogwood = Node::new();
    dogwood.knows(&alder, "alder");
    alder.knows(&dogwood, "dogwood");
    dogwood.take_all(&alder);
    assert_eq!(dogwood.shows(), ["d/a", "d/b", "d/c"]);
    dogwood.consume("d/c");
    for to in ["c", "c2", "d/c"] {
        let from = if to == "c" { "d/c" } else { "c" };
        let from = if to == "d/c" { "c2" } else { from };
        alder.rename(from, to);
        assert_eq!(dogwood.take_all(&alder), 0, "{to}");
        assert_eq!(dogwood.shows(), ["d/a", "d/b"], "{to}");
    }
}

#[test]
fn a_file_that_comes_with_the_whole_and_with_its_rest_is_shown_once() {
    for whole_first in [true, false] {
        let (alder, birch, cedar, whole, owed) = joined_late();
        let rest = owed
            .iter()
            .map(|bundle| alder.manifest(*bundle))
            .find(|manifest| manifest.manifest().rest_of.is_some())
            .unwrap();
        let (whole, files): (_, [&[u8]; 3]) = (alder.manifest(whole), [b"a1", b"b1", b"c1"]);
        let whole_comes = || cedar.feed(&whole, &files);
        let rest_comes = || cedar.feed(&rest, &files[1..]);
        if whole_first {
            whole_comes();
        } else {
            rest_comes();
        }
        cedar.consume("d/b");
        let ino = cedar.inbox_ino("d/c");
        if whole_first {
            rest_comes();
        } else {
            whole_comes();
        }
        assert_eq!(cedar.shows(), ["d/a", "d/c"], "whole first {whole_first}");
        assert_eq!(cedar.inbox_ino("d/c"), ino);
        cedar.spool().journal.flush().unwrap();
        assert!(cedar.spool().ledger.receipt(whole.id()).is_some());
        let receipt = cedar.spool().ledger.receipt(rest.id()).unwrap();
        assert!(alder.spool().take_receipt(&receipt).unwrap());
        alder.rename("d/b", "b");
        alder.rename("d/c", "c");
        cedar.take_all(&alder);
        birch.take_all(&alder);
        assert_eq!(cedar.shows(), ["c", "d/a"]);
        assert_eq!(birch.shows(), ["b", "c", "d/a"]);
    }
}

#[test]
fn a_rest_that_comes_after_a_rename_of_its_files_shows_them_once() {
    let (alder, _birch, cedar, _, owed) = joined_late();
    let moved = alder.rename("d/b", "b");
    cedar.take(&alder, moved);
    cedar.consume("b");
    for bundle in owed {
        cedar.take(&alder, bundle);
    }
    assert_eq!(cedar.shows(), ["d/a", "d/c"]);
}

#[test]
fn a_rest_keeps_what_it_is_when_the_journal_is_made_again() {
    let (alder, _birch, mut cedar, _, _) = joined_late();
    cedar.take_all(&alder);
    cedar.stop();
    fs::remove_file(cedar.state().join("journal.redb")).unwrap();
    cedar.start();
    cedar.knows(&alder, "alder");
    cedar.checked();
    assert_eq!(cedar.shows(), ["d/a", "d/b", "d/c"]);
    cedar.consume("d/b");
    alder.rename("d/b", "b");
    alder.rename("d/c", "c");
    cedar.take_all(&alder);
    assert_eq!(cedar.shows(), ["c", "d/a"]);
}
