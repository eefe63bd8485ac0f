//! Bundles with the longest manifests: there is room for one at a time, and everybody gets it in turn.

use super::super::budget::TAKE_MAX;
use super::sources::Reply;
use super::*;
use crate::bundle::{Entry, EntryKind, RelPath, VerifiedManifest};
use crate::digest::{ChunkList, Digest};

/// One file that has to be fetched, and very many that are empty.
fn long(of: &Scripted, content: &[u8]) -> VerifiedManifest {
    let mut says = manifest_of(of.id(), "f", content);
    let empty = |n: u32| Entry {
        path: RelPath::parse(format!("d/{n}-{}", "n".repeat(70))).unwrap(),
        mtime: (0, 0),
        kind: EntryKind::File {
            size: 0,
            executable: false,
            digest: Digest::of(b""),
            chunks: ChunkList::default(),
        },
    };
    says.entries.extend((0..60_000).map(empty));
    let manifest = says.sign(&of.identity);
    assert!(manifest.memory() > TAKE_MAX, "it is long");
    manifest
}

#[test]
fn one_of_the_longest_manifests_is_taken() {
    let (group, alder) = (GroupKey::generate(), Real::new());
    let a = start(&alder, config("alder", &group));
    let origin = Scripted::new();
    let (_conn, mut channel) = origin.join(&a, &group);
    let content = pattern(100_000);
    let manifest = long(&origin, &content);
    let _bulk = origin.serve(&a, &group, move |request| {
        super::faults::range_of(&content, request)
    });
    origin.offers(&mut channel, &manifest);
    let verdict = origin.verdict(&mut channel, manifest.id());
    assert_eq!(verdict, Verdict::Taken);
    alder.wait_inbox_len(60_001);
}

#[test]
fn who_makes_nothing_of_the_room_for_a_long_manifest_gives_way() {
    let (group, alder) = (GroupKey::generate(), Real::new());
    let a = start(&alder, config("alder", &group));
    let [slow, quick] = [(); 2].map(|()| Scripted::new());
    let content = pattern(100_000);
    let (_conn, mut channel) = slow.join(&a, &group);
    let first = long(&slow, &content);
    let _bulk = slow.hold(&a, &group, |_| Reply::Drip);
    slow.offers(&mut channel, &first);
    let is_working = |list: &[(BundleId, Verdict)]| list.contains(&(first.id(), Verdict::Working));
    while !matches!(slow.hear(&mut channel), Frame::Verdicts(list) if is_working(&list)) {}

    let (_conn, mut other) = quick.join(&a, &group);
    let second = long(&quick, &content);
    let _serving = quick.serve(&a, &group, move |request| {
        super::faults::range_of(&content, request)
    });
    quick.offers(&mut other, &second);
    // What else it has to say does not wait for that.
    quick.settle(&mut other);
    assert_eq!(quick.verdict(&mut other, second.id()), Verdict::Taken);
    let verdict = slow.verdict(&mut channel, first.id());
    let gave_way = |why: &str| why.contains("is wanted for another");
    assert!(
        matches!(&verdict, Verdict::Deferred(why) if gave_way(why)),
        "{verdict:?}"
    );
}
