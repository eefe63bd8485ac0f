//! Rations: who may write next when the disk is nearly full. Pure: what is free and the time are passed in.
//!
//! Room is set aside for the parts that are under way, never for whole bundles that were announced: what is slow may
//! never need it. As long as every part finds room there is nothing to decide. When one does not, only the arrival that
//! will be done first goes on, among those that moved within [`MOVED`]; the others wait. When that one cannot finish
//! either, what is farthest from done makes room for it: first of those that have more here than their share. It is
//! offered again, and taken when all that is missing of it fits. So of three halves that fill the disk one is finished.
//!
//! # Invariants
//! 1. What is given and not written yet is never more than what was free.
//! 2. While anything that fits moves, something is given room.
//! 3. Nothing is removed unless that lets another one finish.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::bundle::BundleId;
use crate::peer::PeerId;

/// An arrival that was given nothing new for this long is not waited for.
const MOVED: Duration = Duration::from_secs(10);

/// Time over which the speed of an arrival is taken.
const SPEED_OVER: f64 = 5.0;

/// One bundle that is arriving.
#[derive(Debug)]
struct Row {
    origin: PeerId,
    /// Bytes on the disk.
    here: u64,
    /// Bytes that are missing.
    left: u64,
    /// Of these, what it was given room for.
    given: u64,
    moved: Duration,
    /// Bytes in a second.
    speed: f64,
    /// It makes room for another one.
    removed: bool,
}

/// A bundle of which a part is on the disk, and that does not arrive now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) struct Parked {
    pub bundle: BundleId,
    pub origin: PeerId,
    pub here: u64,
    pub left: u64,
}

/// What is said to a wish for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) enum Ration {
    /// So many bytes may be written.
    Given(u64),
    /// Not now.
    Wait,
    /// It would be the first to be done, and does not fit; see [`Rations::make_room`].
    Short,
    /// It made room for another one, and ends.
    Removed,
}

/// All arrivals.
#[derive(Debug, Default)]
pub(in crate::spool) struct Rations {
    rows: HashMap<BundleId, Row>,
    /// A part found no room, and not all that is missing fits.
    tight: bool,
}

impl Rations {
    /// A bundle begins to arrive.
    pub(in crate::spool) fn begin(
        &mut self,
        bundle: BundleId,
        origin: PeerId,
        (here, left): (u64, u64),
        now: Duration,
    ) {
        let row = Row {
            origin,
            here,
            left,
            given: 0,
            moved: now,
            speed: 0.0,
            removed: false,
        };
        self.rows.insert(bundle, row);
    }

    /// Bytes of it that are here, and those that come in a second.
    pub(in crate::spool) fn progress(&self, bundle: BundleId, now: Duration) -> Option<(u64, u64)> {
        let row = self.rows.get(&bundle)?;
        let idle = now.saturating_sub(row.moved).as_secs_f64();
        let speed = row.speed * (-idle / SPEED_OVER).exp();
        Some((row.here, speed as u64))
    }

    /// It does not arrive any more. Says whether it made room for another one.
    pub(in crate::spool) fn end(&mut self, bundle: BundleId) -> bool {
        self.rows.remove(&bundle).is_some_and(|row| row.removed)
    }

    /// Room that is given and not written yet.
    pub(in crate::spool) fn given(&self) -> u64 {
        let given = self.rows.values().map(|row| row.given);
        given.fold(0, u64::saturating_add)
    }

    /// Whether anything moved of late that is given room.
    pub(in crate::spool) fn moves(&self, now: Duration) -> bool {
        let mut rows = self.rows.values().filter(|row| !row.removed);
        rows.any(|row| now < row.moved + MOVED)
    }

    /// A part is written, or does not come; it had been given room.
    pub(in crate::spool) fn over(&mut self, bundle: BundleId, bytes: u64) {
        if let Some(row) = self.rows.get_mut(&bundle) {
            row.given = row.given.saturating_sub(bytes);
        }
    }

    /// Bytes are on the disk.
    pub(in crate::spool) fn wrote(&mut self, bundle: BundleId, bytes: u64, now: Duration) {
        if let Some(row) = self.rows.get_mut(&bundle) {
            row.left = row.left.saturating_sub(bytes);
            row.here = row.here.saturating_add(bytes);
            let passed = now.saturating_sub(row.moved).as_secs_f64();
            row.speed = row.speed * (-passed / SPEED_OVER).exp() + bytes as f64 / SPEED_OVER;
            row.moved = now;
        }
    }

    /// Asks for room for at least `least` bytes, better `most`; so much is free, with what is given and not written.
    pub(in crate::spool) fn ask(
        &mut self,
        bundle: BundleId,
        (least, most): (u64, u64),
        free: u64,
        now: Duration,
    ) -> Ration {
        let room = free.saturating_sub(self.given());
        let Some(row) = self.rows.get(&bundle) else {
            return Ration::Removed;
        };
        if row.removed {
            return Ration::Removed;
        }
        let missing = self.rows.values().filter(|row| !row.removed);
        let missing = missing.map(|row| row.left.saturating_sub(row.given));
        if missing.fold(0, u64::saturating_add) <= room {
            self.tight = false;
        }
        self.tight |= room < least;
        if self.tight {
            match self.first(room, now) {
                Some(first) if first == bundle => {}
                Some(first) if self.missing_of(first) + self.missing_of(bundle) <= room => {}
                Some(_) => return Ration::Wait,
                None => return Ration::Short,
            }
            if self.missing_of(bundle) > room {
                return Ration::Short;
            }
        }
        let bytes = most.min(room).max(least);
        if bytes > room {
            return Ration::Wait;
        }
        if let Some(row) = self.rows.get_mut(&bundle) {
            row.given += bytes;
        }
        Ration::Given(bytes)
    }

    fn missing_of(&self, bundle: BundleId) -> u64 {
        let row = self.rows.get(&bundle);
        row.map_or(0, |row| row.left.saturating_sub(row.given))
    }

    /// The arrival that will be done first, of those that move, and could be if the others made room.
    fn first(&self, room: u64, now: Duration) -> Option<BundleId> {
        let others = |row: &Row| {
            let here: u64 = self.rows.values().map(|row| row.here).sum();
            room.saturating_add(here - row.here)
        };
        let rows = self.rows.iter().filter(|(_, row)| {
            let missing = row.left.saturating_sub(row.given);
            !row.removed && now < row.moved + MOVED && missing <= others(row)
        });
        let takes = |row: &Row| {
            // Who has only begun is as quick as anybody.
            let idle = now.saturating_sub(row.moved).as_secs_f64();
            let speed = row.speed * (-idle / SPEED_OVER).exp();
            if row.here == 0 || row.speed == 0.0 {
                row.left as f64 / 1e6
            } else {
                row.left as f64 / speed.max(1.0)
            }
        };
        rows.min_by(|(a, x), (b, y)| takes(x).total_cmp(&takes(y)).then(a.cmp(b)))
            .map(|(bundle, _)| *bundle)
    }

    /// What is to be removed so that `bundle` finds room for all that is missing of it: of what arrives and what is
    /// parked, the farthest from done first, and before all others what is of somebody who has more here than the share of
    /// each. Empty when that would not help. What is arriving counts as removed from now on and ends by itself; its room
    /// is not free before that.
    pub(in crate::spool) fn make_room(
        &mut self,
        bundle: BundleId,
        free: u64,
        parked: &[Parked],
    ) -> Vec<BundleId> {
        let room = free.saturating_sub(self.given());
        let leaving = self.rows.values().filter(|row| row.removed);
        let leaving: u64 = leaving.map(|row| row.here + row.given).sum();
        let missing = self.missing_of(bundle);
        let mut short = missing.saturating_sub(room.saturating_add(leaving));
        if short == 0 {
            return Vec::new();
        }
        let arriving = self.rows.iter().map(|(bundle, row)| Parked {
            bundle: *bundle,
            origin: row.origin,
            here: if row.removed { 0 } else { row.here + row.given },
            left: row.left,
        });
        let mut all: Vec<Parked> = arriving.collect();
        all.extend(parked.iter().filter(|p| !self.rows.contains_key(&p.bundle)));
        let mut victims = Vec::new();
        for victim in by_distance(all) {
            if short == 0 {
                break;
            }
            if victim.bundle != bundle && victim.here > 0 && victim.left > 0 {
                short = short.saturating_sub(victim.here);
                victims.push(victim.bundle);
            }
        }
        if short > 0 {
            return Vec::new();
        }
        for victim in &victims {
            if let Some(row) = self.rows.get_mut(victim) {
                row.removed = true;
            }
        }
        victims
    }
}

/// The farthest from done first, those of members that have more than their share before all others.
fn by_distance(mut all: Vec<Parked>) -> Vec<Parked> {
    let mut of: HashMap<PeerId, u64> = HashMap::new();
    for one in &all {
        *of.entry(one.origin).or_default() += one.here;
    }
    let total: u64 = of.values().sum();
    let share = total / of.len().max(1) as u64;
    let over: HashSet<PeerId> = of
        .into_iter()
        .filter(|(_, here)| *here > share)
        .map(|(origin, _)| origin)
        .collect();
    all.sort_by_key(|one| {
        let first = over.contains(&one.origin);
        (std::cmp::Reverse((first, one.left)), one.bundle)
    });
    all
}

/// Which of what is parked makes room for a bundle that is offered and of which `left` is missing, while nothing else
/// moves: what is farther from done than that, farthest first; empty when that would not help.
pub(in crate::spool) fn give_way(left: u64, short: u64, parked: Vec<Parked>) -> Vec<BundleId> {
    let (mut victims, mut freed) = (Vec::new(), 0_u64);
    for victim in by_distance(parked) {
        if freed < short && victim.left >= left && victim.here > 0 {
            freed = freed.saturating_add(victim.here);
            victims.push(victim.bundle);
        }
    }
    if freed < short { Vec::new() } else { victims }
}
