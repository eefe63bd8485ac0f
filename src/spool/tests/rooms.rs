//! Room for what arrives: given to parts as they come, never set aside for whole bundles.

use super::*;
use crate::digest::LEAF;
use crate::spool::PartRoom;

/// A receiver with room for eight chunks, and three origins.
fn crowd() -> (Node, [Node; 3]) {
    let mut birch = Node::new();
    birch.stop();
    birch.limits.max_bytes = Some(8 * LEAF + LEAF / 2);
    birch.start();
    let origins = [Node::new(), Node::new(), Node::new()];
    for (n, origin) in origins.iter().enumerate() {
        origin.knows(&birch, "birch");
        birch.knows(origin, &format!("origin{n}"));
    }
    (birch, origins)
}

fn chunks(count: u64, seed: u8) -> Vec<u8> {
    let mut bytes = pattern((count * LEAF) as usize);
    bytes[0] = seed;
    bytes
}

fn offered(node: &Node, origin: &Node, bundle: BundleId) -> Offered {
    let manifest = origin.manifest(bundle).signed().clone().verify().unwrap();
    node.spool().offered(manifest, origin.id()).unwrap()
}

fn wanted(node: &Node, origin: &Node, bundle: BundleId) -> Box<Incoming> {
    match offered(node, origin, bundle) {
        Offered::Wanted(incoming) => incoming,
        other => panic!("{other:?}"),
    }
}

/// Fetches up to `most` chunks, as far as there is room; says how many, and what was said in the end.
fn fetch_some(
    (node, origin): (&Node, &Node),
    bundle: BundleId,
    incoming: &mut Incoming,
    most: usize,
) -> (usize, Option<PartRoom>) {
    let mut reader = origin.spool().open_content(bundle, 0, node.id()).unwrap();
    let missing = incoming.missing(0);
    let starts = missing
        .into_iter()
        .flat_map(|range| range.step_by(LEAF as usize));
    for (got, at) in starts.take(most).enumerate() {
        match node.spool().part_room(bundle, LEAF, LEAF) {
            PartRoom::Given(bytes) => assert_eq!(bytes, LEAF),
            other => return (got, Some(other)),
        }
        let bytes = reader.read(at, LEAF as usize).unwrap();
        incoming.accept_chunk(0, at, &bytes).unwrap();
        node.spool().content.part_over(bundle, LEAF);
    }
    (most, None)
}

#[test]
fn a_large_arrival_that_has_only_begun_keeps_no_other_one_out() {
    let (birch, [alder, cedar, _]) = crowd();
    let slow = alder.drop_file("slow", &chunks(7, 1));
    let fast = cedar.drop_file("fast", &chunks(6, 2));
    let mut slowly = wanted(&birch, &alder, slow);
    fetch_some((&birch, &alder), slow, &mut slowly, 1);
    // What is under way is set aside, and what is here counts.
    assert_eq!(
        birch.spool().part_room(slow, LEAF, LEAF),
        PartRoom::Given(LEAF)
    );
    let mut quickly = wanted(&birch, &cedar, fast);
    let (got, _) = fetch_some((&birch, &cedar), fast, &mut quickly, 6);
    assert_eq!(got, 6);
    quickly.finish().unwrap().publish().unwrap();
    assert!(birch.inbox("fast").exists());
}

#[test]
fn of_arrivals_that_fill_the_room_the_one_that_is_done_first_goes_on_and_another_makes_way() {
    let (birch, [alder, cedar, _]) = crowd();
    let far = alder.drop_file("far", &chunks(8, 1));
    let near = cedar.drop_file("near", &chunks(7, 2));
    let mut first = wanted(&birch, &alder, far);
    let mut second = wanted(&birch, &cedar, near);
    fetch_some((&birch, &alder), far, &mut first, 3);
    fetch_some((&birch, &cedar), near, &mut second, 5);
    // Neither fits beside what is here of the other.
    assert!(matches!(
        birch.spool().part_room(near, LEAF, LEAF),
        PartRoom::Later(_)
    ));
    match birch.spool().part_room(far, LEAF, LEAF) {
        PartRoom::Never(why) => assert!(why.contains("no room here"), "{why}"),
        other => panic!("{other:?}"),
    }
    first.park("no room here".into());
    let (got, said) = fetch_some((&birch, &cedar), near, &mut second, 2);
    assert_eq!((got, said), (2, None));
    second.finish().unwrap().publish().unwrap();
    let left = fs::read_dir(birch.state().join("partial")).unwrap().count();
    assert_eq!(left, 0, "what made way is gone");
    // Offered again, it is taken.
    birch.consume("near");
    birch.fetch(&alder, far);
}

#[test]
fn three_halves_do_not_block_each_other_for_ever() {
    let (birch, origins) = crowd();
    let halves: Vec<BundleId> = origins
        .iter()
        .enumerate()
        .map(|(n, origin)| origin.drop_file(&format!("half{n}"), &chunks(5, n as u8)))
        .collect();
    let all = origins.iter().zip(&halves);
    let mut arriving: Vec<Box<Incoming>> = all
        .map(|(origin, bundle)| wanted(&birch, origin, *bundle))
        .collect();
    for (n, incoming) in arriving.iter_mut().enumerate() {
        fetch_some((&birch, &origins[n]), halves[n], incoming, 2);
    }
    for incoming in arriving {
        incoming.park("interrupted".into());
    }
    // Six of eight and a half are used, and each needs three.
    for (n, (origin, bundle)) in origins.iter().zip(&halves).enumerate() {
        birch.fetch(origin, *bundle);
        birch.consume(&format!("half{n}"));
    }
}

#[test]
fn what_is_longer_than_all_the_room_there_is_takes_nobody_elses_away() {
    let (birch, [alder, cedar, _]) = crowd();
    let parked = alder.drop_file("parked", &chunks(5, 1));
    let mut incoming = wanted(&birch, &alder, parked);
    fetch_some((&birch, &alder), parked, &mut incoming, 2);
    incoming.park("interrupted".into());
    let longer = cedar.drop_file("longer", &chunks(9, 2));
    match offered(&birch, &cedar, longer) {
        Offered::Deferred(why) => assert!(why.contains("no room here"), "{why}"),
        other => panic!("{other:?}"),
    }
    let incoming = wanted(&birch, &alder, parked);
    let left = 2 * LEAF..5 * LEAF;
    assert_eq!(
        incoming.missing(0),
        std::slice::from_ref(&left),
        "as it was"
    );
}
