//! Many plans at once: receivers behind one uplink, on a simulated clock and network.

use std::collections::HashMap;

use super::tests::{CHUNK, at, bits, id, pieces};
use super::*;

/// Milliseconds of a step, and what the uplink carries in it: 100 Mbit/s.
const STEP: u64 = 10;
const UPLINK: u64 = 125_000;

/// What one receiver gives to others in a step.
const LAN: u64 = 1_000_000;

/// How often receivers tell each other what they have.
const TELL_EVERY: u64 = 250;

struct Receiver {
    plan: Plan,
    have: Vec<u64>,
    /// What was asked of whom, and how much of it came.
    open: HashMap<(usize, PeerId), u64>,
}

impl Receiver {
    /// Gives `budget` bytes of what was asked of `from`, the oldest question first; returns what was given.
    fn give(&mut self, from: PeerId, mut budget: u64, now: Duration) -> u64 {
        let mut keys: Vec<usize> = self
            .open
            .keys()
            .filter(|key| key.1 == from)
            .map(|key| key.0)
            .collect();
        keys.sort_by_key(|number| self.plan.asked.get(number).map(|asked| asked[0].1));
        let mut given = 0;
        for number in keys {
            let Some(came) = self.open.get_mut(&(number, from)) else {
                continue;
            };
            let take = budget.min(CHUNK - *came);
            *came += take;
            budget -= take;
            given += take;
            if take > 0 {
                self.plan.heard(from, now);
            }
            if *came == CHUNK {
                let mut stop = Vec::new();
                self.open.remove(&(number, from));
                if self.plan.landed(number, from, now, &mut stop) {
                    self.plan.done(number, from);
                    self.have.push(self.plan.piece(number).index.into());
                }
                self.open.retain(|key, _| !stop.contains(key));
            }
        }
        given
    }
}

/// Seconds until `receivers` have a file of `chunks`, and what left the origin, as a multiple of the file.
fn spread(receivers: u8, chunks: u64) -> (f64, f64) {
    let origin = id(1);
    let ids: Vec<PeerId> = (50..50 + receivers).map(id).collect();
    let mut all: Vec<Receiver> = ids
        .iter()
        .map(|me| {
            let mut plan = Plan::new(*me, chunks, pieces(chunks));
            plan.source(origin, true, true, at(0));
            for other in ids.iter().filter(|other| *other != me) {
                plan.source(*other, false, false, at(0));
            }
            plan.others(ids.iter().copied());
            Receiver {
                plan,
                have: Vec::new(),
                open: HashMap::new(),
            }
        })
        .collect();
    let (mut now, mut left) = (0, 0);
    while all.iter().any(|receiver| !receiver.plan.is_complete()) {
        now += STEP;
        assert!(now < 3_600_000, "no end");
        if now % TELL_EVERY == 0 {
            let told: Vec<Bits> = all.iter().map(|r| bits(r.have.iter().copied())).collect();
            for (number, receiver) in all.iter_mut().enumerate() {
                for (other, told) in ids.iter().zip(&told).filter(|told| *told.0 != ids[number]) {
                    receiver.plan.told(*other, 0, told.clone(), at(now));
                }
            }
        }
        for receiver in &mut all {
            let mut stop = Vec::new();
            assert!(receiver.plan.stalls(at(now), &mut stop).is_empty());
            receiver.open.retain(|key, _| !stop.contains(key));
            for peer in receiver.plan.idle(at(now)) {
                while let Some(number) = receiver.plan.next(peer, at(now)) {
                    receiver.open.insert((number, peer), 0);
                }
            }
        }
        // Whoever gives shares what it has fairly among those that ask.
        for (from, budget) in
            std::iter::once((origin, UPLINK)).chain(ids.iter().map(|id| (*id, LAN)))
        {
            let asking: Vec<usize> = (0..all.len())
                .filter(|n| all[*n].open.keys().any(|key| key.1 == from))
                .collect();
            for number in &asking {
                let given = all[*number].give(from, budget / asking.len() as u64, at(now));
                left += if from == origin { given } else { 0 };
            }
        }
    }
    (now as f64 / 1000.0, left as f64 / (chunks * CHUNK) as f64)
}

#[test]
fn receivers_behind_one_uplink_load_it_little_more_than_one_does() {
    let (alone, once) = spread(1, 256);
    assert!((once - 1.0).abs() < 1e-9);
    for receivers in [2, 4, 8] {
        let (took, left) = spread(receivers, 256);
        assert!(
            took <= 1.5 * alone && left <= 1.5,
            "{receivers} receivers: {took} s for {alone} s, {left} x left the origin"
        );
    }
}
