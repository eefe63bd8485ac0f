//! Turns: which fetches run, and whose bytes may be on their way. Pure: events in, decisions out, time passed in.
//!
//! Urgent, small and large bundles have budgets of their own ([`ALL`]), in bytes asked for and not yet on the disk. In
//! each, the share of a peer is what would be left for one more if all took the same; a part of it is kept for those of
//! its bundles that have nothing on their way. A peer that has nothing on its way at all may ask for one piece even when
//! the budget is used up ([`MOST`]), and when that is used up too, in turn. So what is slow
//! holds its own share at most, for as long as it likes.
//!
//! How many bundles of one peer are fetched beside each other depends on their size ([`Step`]): a few of each, so that
//! none waits for a larger one, and the first are not late for the last. A bundle that several peers offered begins as
//! soon as one of them may give it.
//!
//! This bounds the memory of fetching by itself; it does not draw on [`crate::mesh::budget`], of which a peer that does
//! nothing may have much more than others need to go on.
//!
//! # Invariants
//! 1. No count of fetches is shared by peers. What they share is counted in bytes, [`FETCH`] for a fetch at least.
//! 2. A peer with nothing on its way in a class gets its turn there after at most one piece of every other peer.
//! 3. Of one peer, a bundle with nothing on its way goes before one that has.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::bundle::{BundleId, Priority};
use crate::delivery::is_urgent;
use crate::peer::PeerId;

const MIB: u64 = 1024 * 1024;

/// A bundle up to this size counts as small.
const SMALL: u64 = 4 * MIB;

/// What is asked for in each class, of all peers together, before only those get more who have nothing.
const ALL: [u64; 3] = [8 * MIB, 6 * MIB, 20 * MIB];

/// What is asked for in each class at most, unless a single piece is more.
const MOST: [u64; 3] = [12 * MIB, 8 * MIB, 26 * MIB];

/// What a fetch costs that has nothing on its way: its tasks, its manifest, its open files.
const FETCH: u64 = 64 * 1024;

/// Fetches of all peers together, before only those begin another one who have none.
const FETCHES: usize = 256;

/// How long a bundle that found no room for a piece is thought to want it still, unless it asks again.
const HUNGER: Duration = Duration::from_millis(350);

/// What must not wait for each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Class {
    Urgent,
    Small,
    Large,
}

/// Sizes of one class whose fetches wait for each other: none waits for one that is eight times as large.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Step(u8);

impl Step {
    fn of(size: u64) -> Self {
        let times = size / SMALL;
        Self(if times == 0 || size == SMALL {
            0
        } else {
            (times.ilog2() / 3 + 1).min(5) as u8
        })
    }

    /// How many of one peer run beside each other.
    fn most(self) -> usize {
        if self.0 == 0 { 8 } else { 2 }
    }
}

/// One fetch that waits or runs.
#[derive(Debug)]
struct Fetch {
    class: Class,
    step: Step,
    priority: Priority,
    /// When it came, compared with the others.
    ticket: u64,
    holders: Vec<PeerId>,
    /// Whose place it has, once it runs.
    runs_for: Option<PeerId>,
    /// What is on its way, by whom it was asked of.
    flying: HashMap<PeerId, u64>,
}

/// What one peer has of one class.
#[derive(Debug, Default)]
struct Side {
    /// Bundles it could give, by step: the most urgent first, then in order.
    waiting: BTreeMap<Step, BTreeSet<(Reverse<Priority>, u64, BundleId)>>,
    running: BTreeMap<Step, usize>,
    flying: u64,
}

impl Side {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.flying == 0
    }

    fn costs(&self) -> u64 {
        let running: usize = self.running.values().sum();
        self.flying + FETCH * running as u64
    }
}

/// A bundle that has nothing on its way from a peer, and found no room.
#[derive(Debug)]
struct Hungry {
    ticket: u64,
    until: Duration,
}

/// All fetches.
#[derive(Debug, Default)]
pub(super) struct Turns {
    fetches: HashMap<BundleId, Fetch>,
    sides: HashMap<(Class, PeerId), Side>,
    /// How many sides a class has; what is on its way in it.
    parties: [u64; 3],
    flying: [u64; 3],
    /// Fetches that run.
    running: usize,
    hungry: HashMap<(BundleId, PeerId), Hungry>,
    tickets: u64,
}

impl Turns {
    /// `peer` offers a bundle with so much of content. Say [`Turns::begin`] afterwards.
    pub(super) fn offered(
        &mut self,
        bundle: BundleId,
        peer: PeerId,
        size: u64,
        priority: Priority,
    ) {
        self.tickets += 1;
        let ticket = self.tickets;
        let class = if is_urgent(priority) {
            Class::Urgent
        } else if size <= SMALL {
            Class::Small
        } else {
            Class::Large
        };
        let fetch = Fetch {
            class,
            step: Step::of(size),
            priority,
            ticket,
            holders: Vec::new(),
            runs_for: None,
            flying: HashMap::new(),
        };
        self.fetches.entry(bundle).or_insert(fetch);
        self.offered_too(bundle, peer);
    }

    /// Another peer offers a bundle; nothing happens if it is not known, or not any more.
    pub(super) fn offered_too(&mut self, bundle: BundleId, peer: PeerId) {
        let Some(fetch) = self.fetches.get_mut(&bundle) else {
            return;
        };
        if fetch.holders.contains(&peer) {
            return;
        }
        fetch.holders.push(peer);
        if fetch.runs_for.is_none() {
            let (class, step) = (fetch.class, fetch.step);
            let place = (Reverse(fetch.priority), fetch.ticket, bundle);
            let side = self.side(class, peer);
            side.waiting.entry(step).or_default().insert(place);
        }
    }

    /// The fetches that may begin now; they count as running.
    pub(super) fn begin(&mut self) -> Vec<BundleId> {
        let mut begun = Vec::new();
        // Who has least comes first.
        let mut sides: Vec<(u64, Class, PeerId)> = self
            .sides
            .iter()
            .filter(|(_, side)| !side.waiting.is_empty())
            .map(|((class, peer), side)| (side.costs(), *class, *peer))
            .collect();
        sides.sort_unstable();
        for (_, class, peer) in sides {
            while let Some(bundle) = self.next_of(class, peer) {
                self.run(bundle, peer);
                begun.push(bundle);
            }
        }
        begun
    }

    /// A bundle that this peer may give now.
    fn next_of(&self, class: Class, peer: PeerId) -> Option<BundleId> {
        let side = self.sides.get(&(class, peer))?;
        let free = |step: &Step| side.running.get(step).copied().unwrap_or(0) < step.most();
        let first = side.waiting.iter().filter(|(step, _)| free(step));
        let first = first.filter_map(|(_, waiting)| waiting.first()).min()?;
        // A first one in any case.
        let fits = side.running.is_empty() || self.running < FETCHES;
        fits.then_some(first.2)
    }

    fn run(&mut self, bundle: BundleId, peer: PeerId) {
        self.leave_queues(bundle);
        let Some(fetch) = self.fetches.get_mut(&bundle) else {
            return;
        };
        fetch.runs_for = Some(peer);
        self.running += 1;
        let (class, step) = (fetch.class, fetch.step);
        *self.side(class, peer).running.entry(step).or_default() += 1;
    }

    fn leave_queues(&mut self, bundle: BundleId) {
        let Some(fetch) = self.fetches.get(&bundle) else {
            return;
        };
        let (class, step) = (fetch.class, fetch.step);
        let place = (Reverse(fetch.priority), fetch.ticket, bundle);
        for peer in fetch.holders.clone() {
            if let Some(side) = self.sides.get_mut(&(class, peer))
                && let Some(waiting) = side.waiting.get_mut(&step)
            {
                waiting.remove(&place);
                if waiting.is_empty() {
                    side.waiting.remove(&step);
                }
            }
            self.tidy(class, peer);
        }
    }

    /// What a peer may have in a class: as if there was one more.
    fn share(&self, class: Class) -> u64 {
        ALL[class as usize] / (self.parties[class as usize] + 1)
    }

    /// Whether a piece of so many bytes may be asked of `peer` now; then it counts as on its way.
    pub(super) fn fly(&mut self, bundle: BundleId, peer: PeerId, len: u64, now: Duration) -> bool {
        let Some(fetch) = self.fetches.get(&bundle) else {
            return false;
        };
        let class = fetch.class;
        let has = fetch.flying.get(&peer).copied().unwrap_or(0);
        self.side(class, peer);
        if !self.may_fly(class, bundle, peer, (has, len), now) {
            if has == 0 {
                self.tickets += 1;
                let ticket = self.tickets;
                let hungry = self.hungry.entry((bundle, peer));
                hungry.or_insert(Hungry { ticket, until: now }).until = now + HUNGER;
            }
            self.tidy(class, peer);
            return false;
        }
        self.hungry.remove(&(bundle, peer));
        if let Some(fetch) = self.fetches.get_mut(&bundle) {
            *fetch.flying.entry(peer).or_default() += len;
        }
        self.side(class, peer).flying += len;
        self.flying[class as usize] += len;
        true
    }

    fn may_fly(
        &self,
        class: Class,
        bundle: BundleId,
        peer: PeerId,
        (has, len): (u64, u64),
        now: Duration,
    ) -> bool {
        let side = self.sides.get(&(class, peer));
        let (of_peer, costs) = side.map_or((0, 0), |side| (side.flying, side.costs()));
        let flying = self.flying[class as usize];
        if flying == 0 {
            return true;
        }
        let after = flying + len;
        let ours = self.hungry.get(&(bundle, peer)).map(|hungry| hungry.ticket);
        // Those that wait for the same, in the order in which they began to.
        let earlier = |of_peer_only: bool| {
            self.hungry.iter().any(|((other, of), hungry)| {
                let same = if of_peer_only {
                    *of == peer
                } else {
                    *of != peer
                };
                let class = self.fetches.get(other).is_some_and(|f| f.class == class);
                let first = ours.is_none_or(|ours| hungry.ticket < ours);
                let starves =
                    of_peer_only || !self.has_something(class_of(&self.fetches, *other), *of);
                same && class && first && starves && *other != bundle && now < hungry.until
            })
        };
        if of_peer == 0 {
            return after <= MOST[class as usize]
                && (after <= ALL[class as usize] || !earlier(false));
        }
        let share = self.share(class);
        let within = if has == 0 {
            costs + len <= 2 * share
        } else {
            // The rest is for those of its bundles that have nothing yet.
            of_peer + len <= share / 4 * 3
        };
        within && after <= ALL[class as usize] && !earlier(true) && !earlier(false)
    }

    fn has_something(&self, class: Option<Class>, peer: PeerId) -> bool {
        let side = class.and_then(|class| self.sides.get(&(class, peer)));
        side.is_some_and(|side| side.flying > 0)
    }

    /// So much of it came from `peer` and is dealt with, or does not come. Returns a bundle that waits for room.
    pub(super) fn landed(
        &mut self,
        bundle: BundleId,
        peer: PeerId,
        len: u64,
        now: Duration,
    ) -> Option<BundleId> {
        let class = self.land(bundle, peer, len)?;
        self.hungry.retain(|_, hungry| now < hungry.until);
        let mut hungry: Vec<_> = self
            .hungry
            .iter()
            .filter(|((other, _), _)| class_of(&self.fetches, *other) == Some(class))
            .map(|((other, of), hungry)| {
                (self.has_something(Some(class), *of), hungry.ticket, *other)
            })
            .collect();
        hungry.sort_unstable();
        hungry.first().map(|(_, _, other)| *other)
    }

    fn land(&mut self, bundle: BundleId, peer: PeerId, len: u64) -> Option<Class> {
        let fetch = self.fetches.get_mut(&bundle)?;
        let class = fetch.class;
        let has = fetch.flying.get_mut(&peer)?;
        let len = len.min(*has);
        *has -= len;
        if *has == 0 {
            fetch.flying.remove(&peer);
        }
        self.side(class, peer).flying -= len;
        self.flying[class as usize] -= len;
        self.tidy(class, peer);
        Some(class)
    }

    /// The fetch is over. Say [`Turns::begin`] afterwards.
    pub(super) fn ended(&mut self, bundle: BundleId) {
        self.leave_queues(bundle);
        let Some(fetch) = self.fetches.get(&bundle) else {
            return;
        };
        let (class, step, runs_for) = (fetch.class, fetch.step, fetch.runs_for);
        for (peer, len) in fetch.flying.clone() {
            self.land(bundle, peer, len);
        }
        if let Some(peer) = runs_for {
            self.running -= 1;
            let running = &mut self.side(class, peer).running;
            if let Some(count) = running.get_mut(&step) {
                *count -= 1;
                if *count == 0 {
                    running.remove(&step);
                }
            }
            self.tidy(class, peer);
        }
        self.hungry.retain(|(other, _), _| *other != bundle);
        self.fetches.remove(&bundle);
    }

    fn side(&mut self, class: Class, peer: PeerId) -> &mut Side {
        let parties = &mut self.parties[class as usize];
        self.sides.entry((class, peer)).or_insert_with(|| {
            *parties += 1;
            Side::default()
        })
    }

    fn tidy(&mut self, class: Class, peer: PeerId) {
        if self.sides.get(&(class, peer)).is_some_and(Side::is_idle) {
            self.sides.remove(&(class, peer));
            self.parties[class as usize] -= 1;
        }
    }
}

fn class_of(fetches: &HashMap<BundleId, Fetch>, bundle: BundleId) -> Option<Class> {
    fetches.get(&bundle).map(|fetch| fetch.class)
}
