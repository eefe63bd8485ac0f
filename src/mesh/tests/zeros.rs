//! Runs of zeros that cost their origin nothing, against a mesh over a real spool.

use super::faults::{alone, range_of};
use super::*;
use crate::bundle::{Entry, EntryKind, Manifest, VerifiedManifest};
use crate::digest::{ChunkList, LEAF};

/// Hashing it takes a minute or more, at the pace of zeros.
const LONG: u64 = 12 << 30;

/// A file of so many zeros, with the digest of something else.
fn zeros(origin: &Scripted, path: &str, seq: u64, size: u64) -> VerifiedManifest {
    let mut says: Manifest = manifest_of(origin.id(), path, b"x");
    says.seq = seq;
    let Entry {
        kind: EntryKind::File {
            size: is, chunks, ..
        },
        ..
    } = &mut says.entries[0]
    else {
        panic!("a file")
    };
    *is = size;
    *chunks = ChunkList::of_zeros(size.div_ceil(LEAF));
    says.sign(&origin.identity)
}

fn say(origin: &Scripted, channel: &mut Channel, manifest: &VerifiedManifest) {
    let offer = Offer {
        age: 0,
        signed: manifest.signed().clone(),
        inline: vec![],
    };
    origin.say(channel, &Frame::Offer(Box::new(offer)));
}

#[test]
fn zeros_without_end_hold_up_nothing_that_travels_and_end_when_superseded() {
    let (group, alder, a) = alone();
    let hostile = Scripted::new();
    let (_conn, mut channel) = hostile.join(&a, &group);
    let content = pattern(8 << 20);
    let served = content.clone();
    let _bulk = hostile.serve(&a, &group, move |request| range_of(&served, request));
    let one = zeros(&hostile, "z0", 2, LONG);
    let refused = zeros(&hostile, "huge", 1, 1 << 60);
    let verdict = hostile.offer(&mut channel, refused.signed());
    assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}");
    say(&hostile, &mut channel, &one);
    // More than there are places for large fetches, of one peer or in all; the last ones have to wait.
    for n in 1..20 {
        let more = zeros(&hostile, &format!("z{n}"), 2, LONG / 32);
        say(&hostile, &mut channel, &more);
    }
    eventually("it arrives", || {
        alder
            .row(one.id())
            .is_some_and(|row| row.state == "incoming")
    });
    let honest = hostile.sign("honest", &content);
    let verdict = hostile.offer(&mut channel, honest.signed());
    assert_eq!(verdict, Verdict::Taken);
    assert!(std::fs::read(alder.inbox("honest")).unwrap() == content);

    let mut newer = manifest_of(hostile.id(), "z0", b"newer");
    newer.seq = 3;
    let newer = newer.sign(&hostile.identity);
    let offer = Offer {
        age: 0,
        signed: newer.signed().clone(),
        inline: vec![Some(Bytes::from_static(b"newer"))],
    };
    assert_eq!(hostile.offer_inline(&mut channel, offer), Verdict::Taken);
    eventually("its zeros are given up", || {
        alder
            .row(one.id())
            .is_none_or(|row| row.state != "incoming")
    });
    assert_eq!(std::fs::read(alder.inbox("z0")).unwrap(), b"newer");
}

#[test]
fn zeros_of_what_its_origin_does_not_owe_any_more_are_given_up() {
    let (group, alder, a) = alone();
    let origin = Scripted::new();
    let (_conn, mut channel) = origin.join(&a, &group);
    let long = zeros(&origin, "z", 2, LONG);
    say(&origin, &mut channel, &long);
    // While it is hashed, and once it was given up for now.
    for _ in 0..2 {
        while !origin.hear_owed(&mut channel).contains(&long.id()) {}
        origin.say(&mut channel, &Frame::Withdrawn(vec![long.id()]));
    }
    alder.wait_row(long.id(), "withdrawn");
    assert!(alder.names_in("partial").is_empty());
}
