//! Turns without a network: who gets one, however slow the others are.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn file(n: u8) -> BundleId {
    BundleId([n; 32])
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Asks for pieces of 1 MiB until there is no room; how many there were.
fn fill(turns: &mut Turns, bundle: BundleId, from: PeerId, now: Duration) -> usize {
    (0..100)
        .take_while(|_| turns.fly(bundle, from, MIB, now))
        .count()
}

/// `peers` that send nothing of what they are asked for, with `files` each of that size, and all that they may be asked.
fn stuck(turns: &mut Turns, peers: u8, files: u8, size: u64, priority: Priority) -> Vec<BundleId> {
    let mut all = Vec::new();
    for n in 0..peers {
        for m in 0..files {
            let bundle = file(100 + n * files + m);
            turns.offered(bundle, peer(100 + n), size, priority);
            all.push((bundle, peer(100 + n)));
        }
    }
    let running: HashSet<BundleId> = turns.begin().into_iter().collect();
    all.retain(|(bundle, _)| running.contains(bundle));
    for now in 0..4 {
        for (bundle, from) in &all {
            fill(turns, *bundle, *from, at(now * 100));
        }
    }
    all.into_iter().map(|(bundle, _)| bundle).collect()
}

#[test]
fn three_slow_peers_with_large_files_keep_no_large_file_of_another_from_beginning_or_from_its_share()
 {
    let mut turns = Turns::default();
    stuck(&mut turns, 3, 3, 12 * MIB, Priority::Routine);
    turns.offered(file(1), peer(1), 8 * MIB, Priority::Routine);
    assert_eq!(turns.begin(), [file(1)]);
    // Beside three others: enough to fill a path of 100 ms at 200 Mbit/s.
    assert!(fill(&mut turns, file(1), peer(1), at(1000)) >= 3);
}

#[test]
fn a_critical_file_waits_for_no_slow_critical_ones_of_its_own_sender_or_of_others() {
    for peers in [1, 2, 3, 9] {
        let mut turns = Turns::default();
        stuck(&mut turns, peers, 2, 12 * MIB, Priority::Critical);
        for (bundle, from) in [(file(1), peer(100)), (file(2), peer(1))] {
            if peers == 9 && from == peer(100) {
                continue;
            }
            turns.offered(bundle, from, MIB, Priority::Critical);
            assert_eq!(turns.begin(), [bundle], "{peers}");
            assert!(turns.fly(bundle, from, MIB, at(1000)), "{peers}");
        }
    }
}

#[test]
fn a_small_file_waits_for_no_large_ones_and_a_large_one_for_none_that_is_much_larger() {
    let mut turns = Turns::default();
    for n in 0..20 {
        turns.offered(file(100 + n), peer(1), 1 << 40, Priority::Routine);
    }
    assert_eq!(turns.begin().len(), 2);
    fill(&mut turns, file(100), peer(1), at(0));
    fill(&mut turns, file(101), peer(1), at(0));
    for (n, size) in [(1, 70_000), (2, 12 * MIB), (3, 200 * MIB)] {
        turns.offered(file(n), peer(1), size, Priority::Routine);
        assert_eq!(turns.begin(), [file(n)], "{size}");
        assert!(turns.fly(file(n), peer(1), 70_000, at(100)), "{size}");
    }
}

#[test]
fn a_file_that_a_slow_peer_offered_begins_when_another_one_offers_it_too() {
    let mut turns = Turns::default();
    for n in 1..=3 {
        turns.offered(file(n), peer(1), 12 * MIB, Priority::Routine);
    }
    assert_eq!(turns.begin(), [file(1), file(2)]);
    turns.offered(file(3), peer(2), 12 * MIB, Priority::Routine);
    assert_eq!(turns.begin(), [file(3)]);
    assert!(turns.fly(file(3), peer(2), MIB, at(0)));
    turns.ended(file(1));
    assert_eq!(turns.begin(), [], "it waits nowhere any more");
}

#[test]
fn of_one_peer_the_most_urgent_begins_first_then_who_came_first() {
    let mut turns = Turns::default();
    for n in 1..=2 {
        turns.offered(file(n), peer(1), 12 * MIB, Priority::Routine);
    }
    assert_eq!(turns.begin().len(), 2);
    turns.offered(file(3), peer(1), 12 * MIB, Priority::Bulk);
    turns.offered(file(4), peer(1), 12 * MIB, Priority::Routine);
    turns.offered(file(5), peer(1), 12 * MIB, Priority::Routine);
    assert_eq!(turns.begin(), []);
    for (ends, begins) in [(1, 4), (2, 5), (4, 3)] {
        turns.ended(file(ends));
        assert_eq!(turns.begin(), [file(begins)]);
    }
}

#[test]
fn when_very_many_slow_peers_have_all_there_is_the_next_piece_that_lands_makes_room_for_who_has_none()
 {
    let mut turns = Turns::default();
    let slow = stuck(&mut turns, 60, 1, 100 * MIB, Priority::Routine);
    assert!(turns.flying[Class::Large as usize] <= MOST[Class::Large as usize]);
    turns.offered(file(1), peer(1), 8 * MIB, Priority::Routine);
    assert_eq!(turns.begin(), [file(1)]);
    assert!(!turns.fly(file(1), peer(1), MIB, at(1000)));
    let has = |turns: &Turns, bundle: &BundleId| !turns.fetches[bundle].flying.is_empty();
    let mut landed = 0;
    let mut now = 1000;
    for bundle in slow.iter().cycle() {
        let from = turns.fetches[bundle].holders[0];
        if !has(&turns, bundle) {
            continue;
        }
        now += 100;
        turns.landed(*bundle, from, MIB, at(now));
        landed += 1;
        // It asks again at once, before anybody else does.
        turns.fly(*bundle, from, MIB, at(now));
        for other in slow.iter().filter(|other| *other != bundle) {
            let from = turns.fetches[other].holders[0];
            turns.fly(*other, from, MIB, at(now));
        }
        if turns.fly(file(1), peer(1), MIB, at(now)) {
            break;
        }
    }
    assert!(landed <= 60, "{landed}");
}

#[test]
fn who_found_no_room_and_does_not_ask_again_holds_up_nobody() {
    let mut turns = Turns::default();
    for n in 1..=2 {
        turns.offered(file(n), peer(1), 12 * MIB, Priority::Routine);
    }
    turns.begin();
    let many = fill(&mut turns, file(1), peer(1), at(0));
    while turns.fly(file(2), peer(1), MIB, at(0)) {}
    assert!(many > 4);
    for _ in 0..many {
        turns.landed(file(1), peer(1), MIB, at(10));
    }
    assert!(fill(&mut turns, file(1), peer(1), at(1000)) > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Offer(u8, u8, u64, u8),
    Fly(u8, u8, u64),
    Land(u8, u8, u64),
    End(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let (bundle, from) = (0_u8..12, 0_u8..5);
    prop_oneof![
        (bundle.clone(), from.clone(), 0_u64..400, 0_u8..5)
            .prop_map(|(b, p, size, priority)| Step::Offer(b, p, size * MIB / 4, priority)),
        (bundle.clone(), from.clone(), 1..=MIB).prop_map(|(b, p, len)| Step::Fly(b, p, len)),
        (bundle.clone(), from, 1..=MIB).prop_map(|(b, p, len)| Step::Land(b, p, len)),
        bundle.prop_map(Step::End),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_budgets_hold_and_nothing_is_left_at_the_end(
        steps in prop::collection::vec(step(), 1..300)
    ) {
        let priorities = [
            Priority::Bulk,
            Priority::Low,
            Priority::Routine,
            Priority::Priority,
            Priority::Critical,
        ];
        let mut turns = Turns::default();
        let mut running = HashSet::new();
        for (n, step) in steps.into_iter().enumerate() {
            let now = at(n as u64 * 10);
            match step {
                Step::Offer(b, p, size, priority) => {
                    turns.offered(file(b), peer(p), size, priorities[priority as usize]);
                }
                Step::Fly(b, p, len) => {
                    if running.contains(&file(b)) {
                        turns.fly(file(b), peer(p), len, now);
                    }
                }
                Step::Land(b, p, len) => {
                    turns.landed(file(b), peer(p), len, now);
                }
                Step::End(b) => {
                    turns.ended(file(b));
                    running.remove(&file(b));
                }
            }
            for begun in turns.begin() {
                prop_assert!(running.insert(begun), "begun once");
            }
            for class in [Class::Urgent, Class::Small, Class::Large] {
                let sides = turns.sides.iter().filter(|((of, _), _)| *of == class);
                prop_assert_eq!(sides.clone().count() as u64, turns.parties[class as usize]);
                let flying: u64 = sides.map(|(_, side)| side.flying).sum();
                prop_assert_eq!(flying, turns.flying[class as usize]);
                prop_assert!(flying <= MOST[class as usize]);
            }
        }
        for b in 0..12 {
            turns.ended(file(b));
            turns.begin().into_iter().for_each(|_| {});
        }
        for b in 0..12 {
            turns.ended(file(b));
        }
        prop_assert!(turns.sides.is_empty() && turns.fetches.is_empty() && turns.hungry.is_empty());
        prop_assert_eq!((turns.flying, turns.running), ([0; 3], 0));
        prop_assert_eq!(turns.parties, [0; 3]);
    }
}
