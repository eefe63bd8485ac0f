//! What may be offered now, by priority.
//!
//! The most urgent goes first, within one priority the oldest. So that no priority starves, one that was passed over
//! [`PATIENCE`] times in a row is served next, whatever else waits.
//!
//! The queue may hold bundles that are gone; the machine skips what is not ready any more.

use std::collections::VecDeque;

use crate::bundle::{BundleId, Priority};

/// How often a priority is passed over before its turn comes: under constant urgent load the rest has a ninth at least.
pub(super) const PATIENCE: u32 = 8;

/// From the least to the most urgent.
const ALL: [Priority; 5] = [
    Priority::Bulk,
    Priority::Low,
    Priority::Routine,
    Priority::Priority,
    Priority::Critical,
];

/// The queues, one for each priority.
#[derive(Clone, Debug, Default)]
pub(super) struct Ready {
    queues: [VecDeque<BundleId>; ALL.len()],
    /// How often each was passed over since it was last served, while something waited in it.
    passed: [u32; ALL.len()],
}

impl Ready {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    /// How many wait that are not urgent.
    pub(super) fn len_of_others(&self) -> usize {
        let urgent = index(Priority::Priority);
        self.queues[..urgent].iter().map(VecDeque::len).sum()
    }

    /// Adds a bundle behind all of its priority.
    pub(super) fn push(&mut self, bundle: BundleId, priority: Priority) {
        self.queues[index(priority)].push_back(bundle);
    }

    /// Its priority became known: moves it behind all of that.
    pub(super) fn move_to(&mut self, bundle: BundleId, from: Priority, to: Priority) {
        let queue = &mut self.queues[index(from)];
        if let Some(at) = queue.iter().position(|b| *b == bundle) {
            queue.remove(at);
        }
        self.push(bundle, to);
    }

    /// The next one, if it is at least as urgent as `least`.
    pub(super) fn pop(&mut self, least: Priority) -> Option<BundleId> {
        let floor = index(least);
        let waiting = |at: &usize| !self.queues[*at].is_empty();
        let first = (floor..ALL.len()).rev().find(waiting)?;
        let tired = |at: &usize| waiting(at) && self.passed[*at] >= PATIENCE;
        // Of two that waited too long, the one that did so longer.
        let next = (floor..first)
            .filter(tired)
            .max_by_key(|at| self.passed[*at])
            .unwrap_or(first);
        for at in floor..ALL.len() {
            if at == next || self.queues[at].is_empty() {
                self.passed[at] = 0;
            } else {
                self.passed[at] += 1;
            }
        }
        self.queues[next].pop_front()
    }

    /// All that wait, in no order that matters.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = BundleId> {
        self.queues.iter().flatten().copied()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn index(priority: Priority) -> usize {
    match priority {
        Priority::Bulk => 0,
        Priority::Low => 1,
        Priority::Routine => 2,
        Priority::Priority => 3,
        Priority::Critical => 4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{AHEAD_MAX, Action, Delivery, Event, RESERVED, Verdict, WINDOW};
    use super::*;

    fn id(n: usize) -> BundleId {
        BundleId([n as u8; 32])
    }

    #[test]
    fn the_most_urgent_goes_first_and_within_one_priority_the_oldest() {
        let mut ready = Ready::default();
        for (n, priority) in ALL.into_iter().enumerate() {
            ready.push(id(n), priority);
            ready.push(id(n + 10), priority);
        }
        assert_eq!(ready.len(), 10);
        let order: Vec<_> = std::iter::from_fn(|| ready.pop(Priority::Bulk)).collect();
        assert_eq!(order, [4, 14, 3, 13, 2, 12, 1, 11, 0, 10].map(id));
        ready.push(id(1), Priority::Routine);
        assert_eq!(ready.pop(Priority::Priority), None);
        assert_eq!(ready.pop(Priority::Routine), Some(id(1)));
    }

    #[test]
    fn s25_strict_priority_starves_nobody() {
        let mut ready = Ready::default();
        let mut served = [0; ALL.len()];
        for n in 0..1000 {
            // Something of every priority waits all the time.
            for (at, priority) in ALL.into_iter().enumerate() {
                ready.push(id(at), priority);
            }
            let next = ready.pop(Priority::Bulk).unwrap();
            served[usize::from(next.0[0])] += 1;
            let waits = ready.passed.iter().max().unwrap();
            assert!(*waits <= PATIENCE + ALL.len() as u32, "{waits} at {n}");
        }
        assert!(served[..4].iter().all(|n| *n >= 75), "{served:?}");
        assert!(served[4] >= 500, "{served:?}");
    }

    fn step(machine: &mut Delivery, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        machine.handle(Duration::from_secs(1), event, &mut out);
        out
    }

    fn number(n: usize) -> BundleId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        BundleId(bytes)
    }

    /// Connected, with a journal that is read and empty.
    fn idle() -> Delivery {
        let mut machine = Delivery::new(1);
        step(&mut machine, Event::Connected);
        let page = Event::Page {
            cursor: None,
            bundles: vec![],
            end: true,
        };
        assert!(step(&mut machine, page).is_empty());
        machine
    }

    #[test]
    fn an_urgent_bundle_passes_a_window_and_a_queue_full_of_bulk() {
        let mut machine = idle();
        for n in 0..4 * AHEAD_MAX {
            step(&mut machine, Event::Sealed(number(n), Priority::Bulk));
        }
        assert_eq!(machine.outstanding(), WINDOW);
        for n in 0..RESERVED {
            let urgent = number(1_000_000 + n);
            let done = step(&mut machine, Event::Sealed(urgent, Priority::Critical));
            assert_eq!(done, [Action::Offer(urgent)], "{n}");
        }
        // Not without bound: then it waits, and is the next.
        let (late, more) = (number(2_000_000), number(2_000_001));
        assert!(step(&mut machine, Event::Sealed(late, Priority::Critical)).is_empty());
        assert!(step(&mut machine, Event::Sealed(more, Priority::Routine)).is_empty());
        let taken = |n| Event::Verdict(number(n), Verdict::Taken);
        assert_eq!(step(&mut machine, taken(0)), [Action::Offer(late)]);
    }

    #[test]
    fn what_a_page_brings_is_offered_by_priority_and_bulk_gets_its_share() {
        let mut machine = idle();
        for n in 0..WINDOW {
            step(&mut machine, Event::Sealed(number(n), Priority::Routine));
        }
        step(&mut machine, Event::Rescan);
        let bundles: Vec<BundleId> = (1000..1200).map(number).collect();
        let page = Event::Page {
            cursor: None,
            bundles: bundles.clone(),
            end: true,
        };
        step(&mut machine, page);
        // Odd ones are bulk; half of the ranks come after the answer.
        for (at, bundle) in bundles.iter().enumerate() {
            let ranked = Event::Ranked(*bundle, [Priority::Low, Priority::Bulk][at % 2]);
            let wanted = Event::Verdict(*bundle, Verdict::Want);
            let both = if at < 100 {
                [ranked, wanted]
            } else {
                [wanted, ranked]
            };
            for event in both {
                assert!(step(&mut machine, event).is_empty());
            }
        }
        let mut offered = Vec::new();
        for n in 0..WINDOW {
            for action in step(&mut machine, Event::Receipt(number(n))) {
                if let Action::Offer(bundle) = action {
                    offered.push(bundle);
                }
            }
        }
        assert_eq!(offered.len(), bundles.len(), "each once");
        let is_low = |b: &&BundleId| bundles.iter().position(|x| x == *b).unwrap() % 2 == 0;
        let low = offered[..90].iter().filter(is_low).count();
        assert!(
            (75..90).contains(&low),
            "low first, bulk not starved: {low}"
        );
    }
}
