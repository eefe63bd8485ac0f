//! Runs of zeros: not read, not asked for, not stored; and what they may cost.

use std::os::unix::fs::FileExt;

use super::*;
use crate::bundle::{Cancel, EntryKind, Manifest};
use crate::digest::ChunkList;

const MIB: u64 = LEAF;

/// A file of `size` bytes with a MiB of data, or what fits, at each of these places.
fn sparse(node: &Node, path: &str, size: u64, data: &[u64]) -> Vec<u8> {
    let file = File::create(node.outbox(path)).unwrap();
    let mut bytes = vec![0; size as usize];
    for at in data.iter().filter(|at| **at < size) {
        let len = MIB.min(size - at) as usize;
        bytes[*at as usize..][..len].copy_from_slice(&pattern(len + 1)[1..]);
        file.write_all_at(&bytes[*at as usize..][..len], *at)
            .unwrap();
    }
    file.set_len(size).unwrap();
    bytes
}

fn sealed(node: &Node, path: &str) -> BundleId {
    match node.seal(path) {
        SealOutcome::Sealed(bundle) => bundle,
        other => panic!("{other:?}"),
    }
}

/// Bytes that a file takes on the disk.
fn stored(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn wanted(node: &Node, manifest: &VerifiedManifest) -> Box<Incoming> {
    let from = manifest.manifest().origin;
    match node.spool().offered(manifest.clone(), from).unwrap() {
        Offered::Wanted(incoming) => incoming,
        other => panic!("{other:?}"),
    }
}

/// What `node` would say of the bundle if it lied.
fn lie(node: &Node, bundle: BundleId, lie: impl FnOnce(&mut Manifest)) -> VerifiedManifest {
    let mut manifest = node.manifest(bundle).manifest().clone();
    manifest.seq += 1000;
    lie(&mut manifest);
    manifest
        .sign(&node.identity)
        .signed()
        .clone()
        .verify()
        .unwrap()
}

/// That the bundle is a file of so many zeros.
fn says_zeros(size: u64) -> impl FnOnce(&mut Manifest) {
    move |manifest| {
        if let EntryKind::File {
            size: s, chunks, ..
        } = &mut manifest.entries[0].kind
        {
            *s = size;
            *chunks = ChunkList::of_zeros(size.div_ceil(LEAF));
        }
    }
}

/// Half of what is free.
fn half_of_disk(node: &Node) -> u64 {
    let stat = rustix::fs::statvfs(node.state()).unwrap();
    stat.f_bavail * stat.f_frsize / 2
}

#[test]
fn holes_are_neither_asked_for_nor_stored() {
    let (alder, birch) = pair();
    let size = 40 * MIB + 7;
    let bytes = sparse(&alder, "a", size, &[3 * MIB, 20 * MIB]);
    let bundle = sealed(&alder, "a");
    assert_eq!(birch.fetch(&alder, bundle), 2 * MIB);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    assert!(stored(&birch.inbox("a")) <= 2 * MIB + 64 * 1024);
    let receipt = birch.receipt();
    assert!(alder.spool().take_receipt(&receipt).unwrap());
}

#[test]
fn zeros_that_were_written_count_as_holes() {
    let (alder, birch) = pair();
    let mut bytes = vec![0; 10 * MIB as usize];
    bytes[(5 * MIB) as usize] = 1;
    let bundle = alder.drop_file("a", &bytes);
    assert!(stored(&alder.outbox("a")) >= 10 * MIB);
    assert_eq!(birch.fetch(&alder, bundle), MIB);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    assert!(stored(&birch.inbox("a")) <= MIB + 64 * 1024);
}

#[test]
fn every_layout_of_holes_arrives_exact() {
    let (alder, birch) = pair();
    let sizes = [
        0,
        1,
        INLINE_MAX,
        INLINE_MAX + 1,
        MIB - 1,
        MIB,
        MIB + 1,
        2 * MIB,
        5 * MIB - 1,
        5 * MIB + 1,
    ];
    let layouts: [&[u64]; 7] = [
        &[],
        &[0],
        &[MIB],
        &[4 * MIB],
        &[0, 2 * MIB],
        &[MIB / 2],
        &[MIB - 4096, 3 * MIB],
    ];
    for (size, data) in sizes
        .iter()
        .flat_map(|size| layouts.map(|data| (*size, data)))
    {
        let name = format!("{size}-{data:?}").replace([' ', '['], "");
        let bytes = sparse(&alder, &name, size, data);
        let bundle = sealed(&alder, &name);
        let pieces = alder.manifest(bundle).manifest().entries[0].pieces();
        let data: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        // Less where the same was sent under another name.
        assert!(birch.fetch(&alder, bundle) <= data, "{name}");
        assert!(fs::read(birch.inbox(&name)).unwrap() == bytes, "{name}");
        assert!(stored(&birch.inbox(&name)) <= data + 64 * 1024, "{name}");
        let all_zeros = bytes.iter().all(|byte| *byte == 0);
        assert!(data == 0 || !all_zeros || size <= INLINE_MAX, "{name}");
    }
}

#[test]
fn a_new_version_costs_what_is_neither_zeros_nor_there_already() {
    let (alder, birch) = pair();
    sparse(&alder, "a", 12 * MIB, &[0, 4 * MIB, 8 * MIB]);
    assert_eq!(birch.fetch(&alder, sealed(&alder, "a")), 3 * MIB);
    // Zeros where there was something, something where there were zeros.
    let file = File::options().write(true).open(alder.outbox("a")).unwrap();
    let gate = alder.spool().outbox.gate(alder.ino("a"));
    {
        let mut gate = gate.lock();
        if !alder
            .spool()
            .outbox
            .before_modify(&mut gate, &rel("a"))
            .unwrap()
        {
            alder.spool().copy_out(&mut gate, &file, &rel("a")).unwrap();
        }
        file.write_all_at(&vec![0; MIB as usize], 4 * MIB).unwrap();
        file.write_all_at(&[9; 10], 6 * MIB).unwrap();
        gate.reshaped();
    }
    let bytes = fs::read(alder.outbox("a")).unwrap();
    assert_eq!(birch.fetch(&alder, sealed(&alder, "a")), MIB);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    assert!(stored(&birch.inbox("a")) <= 3 * MIB + 64 * 1024);
}

#[test]
fn what_an_earlier_attempt_left_counts_and_what_lies_in_its_holes_is_punched_out() {
    let (alder, mut birch) = pair();
    let bytes = sparse(&alder, "a", 9 * MIB, &[MIB, 5 * MIB]);
    let manifest = alder.manifest(sealed(&alder, "a"));
    let mut incoming = wanted(&birch, &manifest);
    assert_eq!(incoming.missing(0), [MIB..2 * MIB, 5 * MIB..6 * MIB]);
    let second = &bytes[(5 * MIB) as usize..][..MIB as usize];
    incoming.accept_chunk(0, 5 * MIB, second).unwrap();
    drop(incoming);
    birch.stop();
    let partial = birch.state().join(format!("partial/{}.0", manifest.id()));
    let file = File::options().write(true).open(&partial).unwrap();
    file.write_all_at(&[7; 100_000], 3 * MIB).unwrap();
    file.write_all_at(&[7; 10], 7 * MIB).unwrap();
    birch.start();
    assert_eq!(birch.fetch(&alder, manifest.id()), MIB);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    assert!(stored(&birch.inbox("a")) <= 2 * MIB + 64 * 1024);
}

#[test]
fn a_file_of_more_chunks_than_a_list_takes_goes_in_longer_ones() {
    let (alder, birch) = pair();
    // Sparse, and in more places than there may be items: every other MiB begins with a byte.
    let file = File::create(alder.outbox("a")).unwrap();
    let places = crate::digest::MAX_CHUNKS as u64 / 2 + 1;
    for place in 0..places {
        file.write_all_at(b"x", place * 2 * MIB).unwrap();
    }
    file.set_len(places * 2 * MIB).unwrap();
    let manifest = alder.manifest(sealed(&alder, "a"));
    let incoming = wanted(&birch, &manifest);
    assert_eq!(incoming.missing(0).first(), Some(&(0..places * 2 * MIB)));
    let pieces = manifest.manifest().entries[0].pieces();
    assert_eq!(pieces[0], 0..2 * MIB);
    assert_eq!(pieces.len() as u64, places);
}

#[test]
fn what_is_longer_than_the_file_system_is_refused_for_good() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(100));
    for size in [1 << 60, u64::MAX - 5] {
        let huge = lie(&alder, bundle, says_zeros(size));
        assert!(huge.signed().bytes.len() < 400, "one item");
        let answer = birch.spool().offered(huge, alder.id()).unwrap();
        assert!(
            matches!(&answer, Offered::Refused(why) if why.contains("file system")),
            "{answer:?}"
        );
    }
    // Many that are not longer one by one.
    let many = lie(&alder, bundle, |manifest| {
        says_zeros(half_of_disk(&alder))(manifest);
        let one = manifest.entries[0].clone();
        for n in 0..100 {
            let path = rel(&format!("a{n}"));
            manifest.entries.push(crate::bundle::Entry {
                path,
                ..one.clone()
            });
        }
    });
    let answer = birch.spool().offered(many, alder.id()).unwrap();
    assert!(matches!(answer, Offered::Refused(_)), "{answer:?}");
}

/// Calls until what is saved is used up: then there is a wait each time.
fn hash_until_it_waits(incoming: &mut Incoming) {
    let mut waits = 0;
    while waits < 3 {
        let wait = incoming.hash_zeros().unwrap().unwrap();
        if wait > Duration::from_millis(20) {
            waits += 1;
        }
    }
}

#[test]
fn zeros_without_end_end_when_something_newer_is_here() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(100));
    let huge = lie(&alder, bundle, says_zeros(half_of_disk(&alder)));
    let mut incoming = wanted(&birch, &huge);
    hash_until_it_waits(&mut incoming);
    let partial = birch.state().join(format!("partial/{}.0", huge.id()));
    assert!(partial.exists() && stored(&partial) == 0);
    // Others are not held up.
    let other = alder.drop_file("other", &pattern(100_000));
    birch.fetch(&alder, other);
    let newer = lie(&alder, bundle, |manifest| manifest.seq += 1);
    let mut small = wanted(&birch, &newer);
    small.accept_chunk(0, 0, &pattern(100)).unwrap();
    small.finish().unwrap().publish().unwrap();
    assert!(matches!(
        incoming.hash_zeros(),
        Err(IntakeError::Superseded)
    ));
    drop(incoming);
    assert!(!partial.exists());
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), pattern(100));
}

#[test]
fn zeros_without_end_end_when_they_are_cancelled() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(100));
    let huge = lie(&alder, bundle, says_zeros(half_of_disk(&alder)));
    let mut incoming = wanted(&birch, &huge);
    hash_until_it_waits(&mut incoming);
    let (reason, scope) = (CancelReason::Cancelled, huge.manifest().scope.clone());
    let cancel = Cancel::sign(&alder.identity, huge.id(), reason, scope, 3600);
    birch.spool().take_cancel(&cancel, alder.id()).unwrap();
    assert!(matches!(
        incoming.hash_zeros(),
        Err(IntakeError::Ended(found)) if found == reason
    ));
}

#[test]
fn zeros_that_are_said_to_be_something_else_are_refused_for_good() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(100));
    let wrong = lie(&alder, bundle, says_zeros(3 * MIB + 1));
    let mut incoming = wanted(&birch, &wrong);
    assert!(incoming.missing(0).is_empty());
    assert!(incoming.accept_chunk(0, 0, &vec![0; MIB as usize]).is_err());
    while let Some(wait) = incoming.hash_zeros().unwrap() {
        std::thread::sleep(wait);
    }
    match incoming.finish() {
        Err(FinishError::Quarantined(bad)) => assert!(bad.manifest_contradicts_itself),
        other => panic!("{other:?}"),
    }
    assert!(!birch.inbox("a").exists());
}

#[test]
fn a_copy_for_who_waits_has_the_holes_of_the_file() {
    let (alder, birch) = pair();
    let bytes = sparse(&alder, "a", 30 * MIB, &[7 * MIB]);
    let bundle = sealed(&alder, "a");
    let file = File::options().write(true).open(alder.outbox("a")).unwrap();
    let gate = alder.spool().outbox.gate(alder.ino("a"));
    alder
        .spool()
        .copy_out(&mut gate.lock(), &file, &rel("a"))
        .unwrap();
    let copy = alder.spool().layout().content(Digest::of(&bytes));
    assert_ne!(fs::metadata(&copy).unwrap().ino(), alder.ino("a"));
    assert!(stored(&copy) <= MIB + 64 * 1024);
    assert!(fs::read(&copy).unwrap() == bytes);
    assert_eq!(birch.fetch(&alder, bundle), MIB);
}
