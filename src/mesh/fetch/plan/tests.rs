//! The plan without a network: rules one by one, then whole fetches from random sources on a simulated clock.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

pub(super) const CHUNK: u64 = 1 << 20;

pub(super) fn id(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

pub(super) fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) fn pieces(count: u64) -> Vec<Piece> {
    let piece = |index: u32| Piece {
        entry: 0,
        index,
        place: index,
        offset: u64::from(index) * CHUNK,
        len: CHUNK,
    };
    (0..count as u32).map(piece).collect()
}

fn plan(count: u64) -> Plan {
    Plan::new(id(50), count, pieces(count))
}

pub(super) fn bits(chunks: impl IntoIterator<Item = u64>) -> Bits {
    let mut bits = Bits::default();
    chunks.into_iter().for_each(|chunk| bits.set(chunk));
    bits
}

impl Plan {
    /// Asks at once for what is chosen.
    pub(super) fn next(&mut self, peer: PeerId, now: Duration) -> Option<usize> {
        let (number, _) = self.choose(peer, now)?;
        self.ask(number, peer, now);
        Some(number)
    }
}

/// A source that is known to fill its path with four chunks.
fn known(plan: &mut Plan, peer: PeerId) {
    plan.known(peer, 3.5 * CHUNK as f64 / 0.01);
}

/// All that `peer` is asked for now.
fn asked(plan: &mut Plan, peer: PeerId, now: Duration) -> Vec<usize> {
    std::iter::from_fn(|| plan.next(peer, now)).collect()
}

fn finish(plan: &mut Plan, number: usize, peer: PeerId, now: Duration) -> Vec<(usize, PeerId)> {
    let mut stop = Vec::new();
    assert!(plan.landed(number, peer, now, &mut stop));
    plan.done(number, peer);
    stop
}

#[test]
fn one_source_is_asked_in_order_and_for_as_much_as_fills_the_path_twice() {
    let mut plan = plan(40);
    plan.source(id(1), true, true, at(0));
    plan.known(id(1), 40.0 * CHUNK as f64);
    plan.far(id(1), at(38));
    assert_eq!(asked(&mut plan, id(1), at(0)), [0, 1, 2, 3]);
    // Over a short path two are enough to keep it busy.
    plan.far(id(1), at(1));
    for number in 0..3 {
        finish(&mut plan, number, id(1), at(25 * (number as u64 + 1)));
    }
    assert_eq!(asked(&mut plan, id(1), at(75)), [4]);
    // The same over a long one.
    plan.far(id(1), at(50));
    finish(&mut plan, 3, id(1), at(100));
    assert_eq!(asked(&mut plan, id(1), at(100)).len(), 4);
    plan.far(id(1), at(5000));
    asked(&mut plan, id(1), at(100));
    assert_eq!(plan.sources[&id(1)].open.len(), 8, "and no more ever");
    assert!(!plan.is_complete() && !plan.is_stuck());
}

#[test]
fn a_source_that_is_not_known_shows_with_its_first_chunk_how_much_it_may_be_asked_for() {
    // 40 MiB/s: two chunks at once. 1 MiB/s: the next one when the first is nearly here.
    for (chunk, when_quarter, when_nearly) in [(24, 1, 0), (1000, 0, 1)] {
        let mut plan = plan(40);
        plan.source(id(1), true, true, at(0));
        plan.far(id(1), at(1));
        assert_eq!(asked(&mut plan, id(1), at(0)), [0]);
        plan.comes(0, id(1), CHUNK / 4 - 1);
        assert_eq!(asked(&mut plan, id(1), at(chunk / 4)), [0; 0]);
        plan.comes(0, id(1), CHUNK / 4 * 3);
        let quick = asked(&mut plan, id(1), at(1 + chunk / 4 * 3));
        assert_eq!(quick.len(), when_quarter);
        plan.comes(0, id(1), CHUNK - 10_000);
        assert_eq!(asked(&mut plan, id(1), at(chunk)).len(), when_nearly);
    }
}

#[test]
fn small_chunks_of_a_source_that_is_not_known_do_not_wait_for_each_other() {
    let mut small = pieces(40);
    small.iter_mut().for_each(|piece| piece.len = CHUNK / 10);
    let mut plan = Plan::new(id(50), 40, small);
    plan.source(id(1), true, true, at(0));
    assert_eq!(asked(&mut plan, id(1), at(0)), [0, 1, 2]);
}

#[test]
fn receivers_begin_at_different_places_with_the_origin() {
    let mut begins = Vec::new();
    for me in 50..54 {
        let mut plan = Plan::new(id(me), 100, pieces(100));
        plan.source(id(1), true, true, at(0));
        plan.others((50..54).map(id));
        begins.push(asked(&mut plan, id(1), at(0))[0]);
    }
    assert_eq!(begins, [0, 25, 50, 75]);
}

#[test]
fn the_origin_is_asked_last_for_what_others_have() {
    let mut plan = plan(6);
    plan.source(id(1), true, true, at(0));
    plan.source(id(2), false, false, at(0));
    plan.told(id(2), 0, bits(0..4), at(0));
    known(&mut plan, id(1));
    known(&mut plan, id(2));
    assert_eq!(asked(&mut plan, id(1), at(0)), [4, 5]);
    // It is free, but what is left is known to be elsewhere.
    assert_eq!(asked(&mut plan, id(1), at(900)), [0; 0]);
    assert_eq!(asked(&mut plan, id(2), at(900)), [0, 1, 2, 3]);

    let mut plan = self::plan(6);
    plan.source(id(1), true, true, at(0));
    plan.source(id(2), false, false, at(0));
    plan.told(id(2), 0, bits(0..6), at(0));
    known(&mut plan, id(1));
    assert_eq!(asked(&mut plan, id(1), at(999)), [0; 0]);
    let late = asked(&mut plan, id(1), at(1000));
    assert_eq!(late.len(), 4, "it does not idle for ever");
}

#[test]
fn the_origin_is_asked_at_once_when_the_one_who_had_it_is_gone() {
    let mut plan = plan(2);
    plan.source(id(1), true, true, at(0));
    plan.source(id(2), false, true, at(0));
    known(&mut plan, id(1));
    assert_eq!(asked(&mut plan, id(1), at(10)), [0; 0]);
    plan.lost(id(2), &mut Vec::new());
    assert_eq!(asked(&mut plan, id(1), at(10)), [0, 1]);
}

#[test]
fn the_rarest_piece_is_asked_for_first() {
    let mut plan = plan(3);
    for peer in [1, 2, 3] {
        plan.source(id(peer), false, false, at(0));
        known(&mut plan, id(peer));
    }
    plan.told(id(1), 0, bits([0, 1, 2]), at(0));
    plan.told(id(2), 0, bits([0, 1]), at(0));
    plan.told(id(3), 0, bits([0]), at(0));
    assert_eq!(asked(&mut plan, id(1), at(0)), [2, 1, 0]);
}

#[test]
fn a_silent_source_loses_its_pieces_to_a_free_one_and_rests() {
    let mut plan = plan(4);
    plan.source(id(1), false, true, at(0));
    plan.source(id(2), false, true, at(0));
    let first = plan.next(id(1), at(0)).unwrap();
    let mut stop = Vec::new();
    plan.heard(id(2), at(1500));
    assert!(plan.stalls(at(1999), &mut stop).is_empty() && stop.is_empty());
    assert!(plan.stalls(at(2000), &mut stop).is_empty());
    assert_eq!(stop, [(first, id(1))]);
    assert_eq!(plan.next(id(1), at(2000)), None, "it rests");
    assert!(asked(&mut plan, id(2), at(2000)).contains(&first));
}

#[test]
fn a_silent_source_alone_is_waited_for_and_given_up_in_the_end() {
    let mut plan = plan(2);
    plan.source(id(1), true, true, at(0));
    asked(&mut plan, id(1), at(0));
    let mut stop = Vec::new();
    assert!(plan.stalls(at(19_999), &mut stop).is_empty());
    assert_eq!(plan.stalls(at(20_000), &mut stop), [id(1)]);
    for (round, banned) in [(1, false), (2, false), (3, true)] {
        assert_eq!(plan.lost(id(1), &mut stop), banned, "round {round}");
        plan.source(id(1), true, true, at(20_000 + round));
        assert_eq!(plan.is_stuck(), banned);
        asked(&mut plan, id(1), at(20_000 + round));
    }
}

#[test]
fn a_source_of_wrong_bytes_is_not_asked_again() {
    let mut plan = plan(8);
    plan.source(id(1), false, true, at(0));
    known(&mut plan, id(1));
    let numbers = asked(&mut plan, id(1), at(0));
    let mut stop = Vec::new();
    assert!(plan.landed(numbers[1], id(1), at(1), &mut stop));
    plan.wrong(numbers[1], id(1), &mut stop);
    assert_eq!(stop.len(), 3, "the rest is not waited for");
    assert!(plan.is_stuck());
    plan.source(id(1), false, true, at(2));
    assert_eq!(plan.next(id(1), at(2)), None);
    plan.source(id(2), false, true, at(2));
    known(&mut plan, id(2));
    assert_eq!(asked(&mut plan, id(2), at(2)), [0, 1, 2, 3]);
}

#[test]
fn at_the_end_a_slow_piece_is_asked_of_a_second_source_and_of_no_third() {
    let mut plan = plan(2);
    for peer in [1, 2, 3] {
        plan.source(id(peer), false, true, at(0));
    }
    assert_eq!(plan.next(id(1), at(0)), Some(0));
    assert_eq!(plan.next(id(2), at(0)), Some(1));
    finish(&mut plan, 1, id(2), at(100));
    assert_eq!(plan.next(id(2), at(600)), None, "not slow yet");
    assert_eq!(plan.next(id(2), at(700)), Some(0));
    assert_eq!(plan.next(id(3), at(5000)), None);
    let stop = finish(&mut plan, 0, id(2), at(5000));
    assert_eq!(stop, [(0, id(1))]);
    assert!(plan.is_complete());
    assert_eq!((plan.flight, plan.flight_bytes), (0, 0));
}

#[test]
fn a_piece_that_a_source_lacks_is_asked_of_it_again_only_after_news() {
    let mut plan = plan(1);
    plan.source(id(1), false, false, at(0));
    plan.told(id(1), 0, bits([0]), at(0));
    assert_eq!(plan.next(id(1), at(0)), Some(0));
    plan.lacks(0, id(1));
    assert_eq!(plan.next(id(1), at(0)), None);
    assert!(plan.is_stuck());
    plan.told(id(1), 0, bits([0]), at(1));
    assert_eq!(plan.next(id(1), at(1)), Some(0));
}

/// How a simulated source behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Milliseconds for each piece.
    Honest(u64),
    Liar,
    Silent,
    /// Loses its connection at each n-th piece.
    Flaky(u64),
    /// Says that it has what it does not serve.
    Boaster,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (1u64..3000).prop_map(Kind::Honest),
        Just(Kind::Liar),
        Just(Kind::Silent),
        (2u64..9).prop_map(Kind::Flaky),
        Just(Kind::Boaster),
    ]
}

proptest! {
    #[test]
    fn every_fetch_with_one_honest_holder_ends(
        count in 1u64..60,
        pace in 1u64..1500,
        kinds in prop::collection::vec((kinds(), any::<bool>(), any::<u64>()), 0..6),
    ) {
        let mut plan = plan(count);
        let mut all = vec![(id(1), Kind::Honest(pace), true)];
        plan.source(id(1), true, true, at(0));
        for (n, (kind, whole, mask)) in kinds.into_iter().enumerate() {
            let peer = id(n as u8 + 2);
            all.push((peer, kind, false));
            plan.source(peer, false, whole, at(0));
            if !whole {
                plan.told(peer, 0, bits((0..count).filter(|n| mask >> (n % 64) & 1 == 1)), at(0));
            }
        }
        plan.others(all.iter().skip(1).map(|s| s.0));
        let mut open: Vec<(usize, PeerId, u64)> = Vec::new();
        let (mut wrong, mut served): (HashSet<PeerId>, u64) = (HashSet::new(), 0);
        let mut now = 0;
        while !plan.is_complete() {
            now += 50;
            prop_assert!(now < 3_600_000, "no end: {all:?}");
            let mut stop = Vec::new();
            for given_up in plan.stalls(at(now), &mut stop) {
                plan.lost(given_up, &mut stop);
                plan.source(given_up, given_up == id(1), false, at(now));
            }
            open.retain(|(n, p, _)| !stop.contains(&(*n, *p)));
            for peer in all.iter().map(|s| s.0) {
                while let Some(number) = plan.next(peer, at(now)) {
                    prop_assert!(!wrong.contains(&peer), "asked after a lie");
                    open.push((number, peer, now));
                }
            }
            // Nobody idles who has something that is asked of nobody.
            let room = plan.flight < FLIGHT_PIECES && plan.flight_bytes + CHUNK <= FLIGHT_BYTES;
            for peer in plan.idle(at(now)).into_iter().filter(|p| room && *p != id(1)) {
                let source = &plan.sources[&peer];
                prop_assert!(!plan.todo.iter().any(|n| source.has(*n, &plan.slots[*n].piece)));
            }
            let mut times: HashMap<usize, usize> = HashMap::new();
            open.iter().for_each(|o| *times.entry(o.0).or_default() += 1);
            prop_assert!(times.values().all(|n| *n <= 2));
            prop_assert!(times.values().filter(|n| **n > 1).count() <= TWICE_MAX);
            prop_assert_eq!(open.len(), plan.flight);
            let mut stop = Vec::new();
            for (number, peer, since) in open.clone() {
                if stop.contains(&(number, peer)) || !open.contains(&(number, peer, since)) {
                    continue;
                }
                let kind = all.iter().find(|s| s.0 == peer).unwrap().1;
                let took = now - since;
                let mut ends = true;
                match kind {
                    Kind::Honest(pace) if took < pace => ends = false,
                    Kind::Honest(_) => {
                        plan.heard(peer, at(now));
                        if plan.landed(number, peer, at(now), &mut stop) {
                            plan.done(number, peer);
                        }
                    }
                    Kind::Liar => {
                        plan.heard(peer, at(now));
                        if plan.landed(number, peer, at(now), &mut stop) {
                            plan.wrong(number, peer, &mut stop);
                            wrong.insert(peer);
                        }
                    }
                    Kind::Silent => ends = false,
                    Kind::Flaky(nth) => {
                        served += 1;
                        plan.heard(peer, at(now));
                        if served % nth == 0 {
                            plan.lost(peer, &mut stop);
                            plan.source(peer, false, false, at(now));
                        } else if plan.landed(number, peer, at(now), &mut stop) {
                            plan.done(number, peer);
                        }
                    }
                    Kind::Boaster => plan.lacks(number, peer),
                }
                if ends {
                    open.retain(|(n, p, _)| (*n, *p) != (number, peer));
                }
                open.retain(|(n, p, _)| !stop.contains(&(*n, *p)));
            }
            prop_assert!(!plan.is_stuck() || plan.is_complete());
        }
        prop_assert_eq!((plan.flight, plan.flight_bytes), (0, 0));
    }
}
