//! Chunks of more than one leaf, which files have that are longer than 4 GiB: written as they come, and right only whole.

use std::ops::Range;

use super::*;
use crate::bundle::EntryKind;
use crate::digest::ChunkList;

const MIB: usize = LEAF as usize;

/// Bytes, and what their origin says of them in chunks of 4 MiB.
fn long(origin: &Node, path: &str, len: usize) -> (Vec<u8>, VerifiedManifest) {
    let bytes = pattern(len);
    let bundle = origin.drop_file(path, &bytes);
    let mut says = origin.manifest(bundle).manifest().clone();
    says.seq += 1000;
    let EntryKind::File { chunks, .. } = &mut says.entries[0].kind else {
        panic!("a file");
    };
    *chunks = ChunkList::of_chunks(2, &bytes);
    (bytes, says.sign(&origin.identity))
}

fn wanted(node: &Node, origin: &Node, manifest: &VerifiedManifest) -> Box<Incoming> {
    match node.spool().offered(manifest.clone(), origin.id()).unwrap() {
        Offered::Wanted(incoming) => incoming,
        other => panic!("{other:?}"),
    }
}

fn only(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

/// Gives a chunk leaf by leaf, of which `wrong` is not right; whether it was taken.
fn give(
    incoming: &mut Incoming,
    bytes: &[u8],
    chunk: Range<u64>,
    wrong: Option<u64>,
    by: u64,
) -> Result<bool, IntakeError> {
    let mut whole = false;
    for at in chunk.clone().step_by(MIB) {
        let mut leaf = bytes[at as usize..(at + LEAF).min(chunk.end) as usize].to_vec();
        if wrong == Some(at) {
            leaf[7] ^= 1;
        }
        whole = incoming.accept_leaf((0, chunk.start), at, &leaf, by)?;
    }
    Ok(whole)
}

#[test]
fn a_long_chunk_counts_when_all_of_it_is_here_and_right() {
    let (alder, birch) = pair();
    let (bytes, manifest) = long(&alder, "f", 14 * MIB + 9);
    let end = bytes.len() as u64;
    let mut incoming = wanted(&birch, &alder, &manifest);
    let chunk = |n: u64| n * 4 * LEAF..((n + 1) * 4 * LEAF).min(end);
    // Out of order, one leaf of it wrong, then right.
    let wrong = give(&mut incoming, &bytes, chunk(1), Some(5 * LEAF), 1);
    assert!(
        matches!(wrong, Err(IntakeError::WrongBytes { .. })),
        "{wrong:?}"
    );
    assert_eq!(incoming.missing(0), only(0..end));
    assert!(give(&mut incoming, &bytes, chunk(1), None, 2).unwrap());
    assert_eq!(incoming.missing(0), [chunk(0), 8 * LEAF..end]);
    // A leaf that is missing, too short, or of no chunk.
    assert!(!incoming.accept_leaf((0, 0), 0, &bytes[..MIB], 3).unwrap());
    let later = &bytes[2 * MIB..3 * MIB];
    assert!(!incoming.accept_leaf((0, 0), 2 * LEAF, later, 3).unwrap());
    let short = incoming.accept_leaf((0, 0), LEAF, &bytes[MIB..MIB + 9], 3);
    assert!(short.is_err());
    assert!(
        incoming
            .accept_leaf((0, LEAF), LEAF, &bytes[MIB..2 * MIB], 3)
            .is_err()
    );
    // Half a chunk, and a new start: what came of it is asked for again, the whole ones are not.
    give(&mut incoming, &bytes, 8 * LEAF..10 * LEAF, None, 4).ok();
    incoming.park("later".into());
    let mut incoming = wanted(&birch, &alder, &manifest);
    assert_eq!(incoming.missing(0), [chunk(0), 8 * LEAF..end]);
    for n in [3, 0, 2] {
        assert!(give(&mut incoming, &bytes, chunk(n), None, n).unwrap());
    }
    assert!(incoming.missing(0).is_empty());
    incoming.finish().unwrap().publish().unwrap();
    assert!(fs::read(birch.inbox("f")).unwrap() == bytes);
}

/// Two readers may be at one chunk for a moment, when it is taken from the one and given to the other.
#[test]
fn what_one_reader_brings_of_a_long_chunk_is_never_mixed_with_what_another_brings() {
    let (alder, birch) = pair();
    let (bytes, manifest) = long(&alder, "f", 4 * MIB);
    let mut incoming = wanted(&birch, &alder, &manifest);
    let leaf = |n: usize| &bytes[n * MIB..(n + 1) * MIB];
    let mut lies = leaf(1).to_vec();
    lies[0] ^= 1;
    let mut put = |by: u64, at: usize, bytes: &[u8]| {
        let at = at as u64 * LEAF;
        incoming.accept_leaf((0, 0), at, bytes, by).unwrap()
    };
    put(1, 0, leaf(0));
    put(2, 0, leaf(0));
    put(2, 1, leaf(1));
    // The first one is late, and lies.
    put(1, 1, &lies);
    put(2, 2, leaf(2));
    assert!(put(2, 3, leaf(3)));
    // It does not spoil what is whole either.
    put(1, 1, &lies);
    incoming.finish().unwrap().publish().unwrap();
    assert!(fs::read(birch.inbox("f")).unwrap() == bytes);
}

#[test]
fn long_chunks_that_did_not_change_are_taken_from_the_older_version() {
    let (alder, birch) = pair();
    let mut bytes = pattern(12 * MIB);
    birch.fetch(&alder, alder.drop_file("f", &bytes));
    bytes[5 * MIB] ^= 1;
    let bundle = alder.drop_file("f", &bytes);
    let mut says = alder.manifest(bundle).manifest().clone();
    let EntryKind::File { chunks, .. } = &mut says.entries[0].kind else {
        panic!("a file");
    };
    *chunks = ChunkList::of_chunks(2, &bytes);
    says.seq += 1000;
    let manifest = says.sign(&alder.identity);
    let mut incoming = wanted(&birch, &alder, &manifest);
    assert_eq!(incoming.missing(0), only(4 * LEAF..8 * LEAF));
    assert!(give(&mut incoming, &bytes, 4 * LEAF..8 * LEAF, None, 1).unwrap());
    incoming.finish().unwrap().publish().unwrap();
    assert!(fs::read(birch.inbox("f")).unwrap() == bytes);
}

/// A bundle may have 100,000 files, and all of them may be here from an earlier attempt.
#[test]
fn what_is_whole_is_remembered_by_that_alone() {
    let (alder, birch) = pair();
    let files: Vec<(String, Vec<u8>)> = (0..200)
        .map(|n| (format!("d/{n}"), pattern(100 + n)))
        .collect();
    let mut entries = Vec::new();
    for (path, bytes) in &files {
        let bundle = alder.drop_file(path, bytes);
        entries.extend(alder.manifest(bundle).manifest().entries.clone());
    }
    let mut says = alder
        .manifest(alder.drop_file("x", b"x"))
        .manifest()
        .clone();
    says.entries = entries;
    says.seq += 1000;
    let manifest = says.sign(&alder.identity);
    let mut incoming = wanted(&birch, &alder, &manifest);
    for (entry, (_, bytes)) in files.iter().enumerate().take(150) {
        incoming.accept_chunk(entry, 0, bytes).unwrap();
        incoming.accept_chunk(entry, 0, bytes).unwrap();
    }
    assert_eq!(incoming.in_memory(), 0);
    incoming.park("later".into());
    let mut incoming = wanted(&birch, &alder, &manifest);
    assert_eq!(incoming.in_memory(), 0);
    for (entry, (_, bytes)) in files.iter().enumerate() {
        assert_eq!(incoming.missing(entry).is_empty(), entry < 150);
        incoming.accept_chunk(entry, 0, bytes).unwrap();
    }
    incoming.finish().unwrap().publish().unwrap();
    for (path, bytes) in &files {
        assert_eq!(&fs::read(birch.inbox(path)).unwrap(), bytes);
    }
}
