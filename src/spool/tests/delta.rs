//! What a new version has in common with the one that is shown is not fetched, and nothing else is taken for it.

use super::*;

const MIB: usize = LEAF as usize;

fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    while at < len {
        let end = len.min(at + MIB);
        reader.fill(&mut bytes[at..end]);
        at = end;
    }
    bytes
}

#[test]
fn a_change_in_place_costs_the_chunks_it_touches() {
    let (alder, birch) = pair();
    let mut bytes = random(20 * MIB + 5, 1);
    assert_eq!(
        birch.fetch(&alder, alder.drop_file("a", &bytes)),
        bytes.len() as u64
    );
    // Not at a chunk's border: two are touched.
    bytes[7 * MIB + 100..8 * MIB + 100].fill(0);
    let bundle = alder.drop_file("a", &bytes);
    assert_eq!(birch.fetch(&alder, bundle), 2 * LEAF);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    // Longer: the old last chunk, which was short, and what is new.
    bytes.extend_from_slice(&random(MIB, 2));
    let bundle = alder.drop_file("a", &bytes);
    assert_eq!(birch.fetch(&alder, bundle), LEAF + 5);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    // Shorter.
    bytes.truncate(3 * MIB + 9);
    let bundle = alder.drop_file("a", &bytes);
    assert_eq!(birch.fetch(&alder, bundle), 0);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
}

#[test]
fn an_older_version_that_was_damaged_or_removed_is_not_used() {
    let (alder, birch) = pair();
    let mut bytes = random(4 * MIB, 3);
    birch.fetch(&alder, alder.drop_file("a", &bytes));
    let shown = File::options().write(true).open(birch.inbox("a")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&shown, b"damage", LEAF).unwrap();
    bytes[3 * MIB] ^= 1;
    let bundle = alder.drop_file("a", &bytes);
    assert_eq!(birch.fetch(&alder, bundle), 2 * LEAF);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
    fs::remove_file(birch.inbox("a")).unwrap();
    bytes[0] ^= 1;
    let bundle = alder.drop_file("a", &bytes);
    assert_eq!(birch.fetch(&alder, bundle), 4 * LEAF);
}

#[test]
fn another_origins_file_of_the_same_name_gives_nothing() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    let bytes = random(3 * MIB, 4);
    birch.fetch(&alder, alder.drop_file("a", &bytes));
    let bundle = cedar.drop_file("a", &bytes);
    assert_eq!(
        birch.fetch(&cedar, bundle),
        3 * LEAF,
        "a digest buys nothing"
    );
}

#[test]
fn a_delta_that_is_interrupted_goes_on_where_it_was() {
    let (alder, mut birch) = pair();
    let mut bytes = random(6 * MIB, 5);
    birch.fetch(&alder, alder.drop_file("a", &bytes));
    bytes[MIB] ^= 1;
    bytes[4 * MIB] ^= 1;
    let bundle = alder.drop_file("a", &bytes);
    let offered = birch.spool().offered(alder.manifest(bundle), alder.id());
    let Offered::Wanted(mut incoming) = offered.unwrap() else {
        panic!("not wanted")
    };
    assert_eq!(incoming.missing(0), [LEAF..2 * LEAF, 4 * LEAF..5 * LEAF]);
    incoming
        .accept_chunk(0, LEAF, &bytes[MIB..2 * MIB])
        .unwrap();
    drop(incoming);
    birch.stop();
    birch.start();
    assert_eq!(birch.fetch(&alder, bundle), LEAF);
    assert!(fs::read(birch.inbox("a")).unwrap() == bytes);
}

#[test]
fn what_arrived_is_opened_for_recipients_only_while_it_arrives_and_after() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    let bytes = random(3 * MIB, 6);
    let bundle = alder.drop_file("a", &bytes);
    let manifest = alder.manifest(bundle);
    let open = |peer| birch.spool().open_arrived(&manifest, 0, peer, u64::MAX);
    assert!(matches!(open(cedar.id()), Err(ServeError::NotHeld)));
    let offered = birch.spool().offered(manifest.clone(), alder.id());
    let Offered::Wanted(mut incoming) = offered.unwrap() else {
        panic!("not wanted")
    };
    incoming
        .accept_chunk(0, LEAF, &bytes[MIB..2 * MIB])
        .unwrap();
    let mut reader = open(cedar.id()).unwrap();
    assert!(reader.read(LEAF, MIB).unwrap() == bytes[MIB..2 * MIB]);
    drop(incoming);
    birch.fetch(&alder, bundle);
    let mut whole = open(cedar.id()).unwrap();
    assert!(whole.read(0, bytes.len()).unwrap() == bytes);
    // What began to read before is not lost: it is asked for again.
    assert!(matches!(reader.read(0, MIB), Err(ServeError::NotHeld)));
    assert!(
        matches!(open(alder.id()), Err(ServeError::NotHeld)),
        "origin"
    );
    fs::remove_file(birch.inbox("a")).unwrap();
    let mut scoped = manifest.manifest().clone();
    scoped.scope = crate::bundle::Scope::Ids(vec![birch.id()]);
    let scoped = scoped.sign(&alder.identity);
    let refused = birch.spool().open_arrived(&scoped, 0, cedar.id(), u64::MAX);
    assert!(matches!(refused, Err(ServeError::NotHeld)));
}
