//! Expiry: the end of a bundle's lifetime, by age and not by clock.
//!
//! Age is how long the machine has been up while this state was in use: the boot-time clock within one boot, and what
//! was written down of earlier boots. A clock on the wall that says 1970, or is a month ahead, changes nothing. While
//! the machine is off nobody ages, so a bundle may live longer than its lifetime, never shorter.
//!
//! # Invariants
//! 1. Only the origin ends a bundle for its age, by the same signed word as a cancel. Who keeps it for others adds its own
//!    time to the age it was offered with, and gives it to nobody when that reaches the lifetime.
//! 2. A deadline is never before the seal's age plus the lifetime. From it on nothing is offered or served, also in the
//!    moment before the end is recorded, and also to who began to read before: all content goes out through
//!    `open_until` of the spool.
//! 3. A deadline is among the next ones before its row is there, and both come under the decision lock: who takes what is
//!    due holds it too.
//!
//! # Crash behaviour
//! The age is written down every [`SAVE_EVERY`] seconds and at a clean stop. In the same boot nothing is lost; after a
//! power loss bundles are younger by what was not written.
//!
//! # Threads
//! `ager` looks once every [`TICK`]; nearly always it asks whether the disk is still writable, and compares two numbers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};
use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, Cancel, VerifiedManifest};
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::journal::{Batch, Table};
use crate::spool::keys::Ends;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::kept::is_ours;
use crate::spool::ledger::tables::{CANCELS, DEADLINES, KEPT, KeptHead, ORPHANS, PENDING};
use crate::spool::start::boot_id;
use crate::spool::tables::META;

/// How often the age is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Milliseconds of age between two times that it is written down.
const SAVE_EVERY: u64 = 600_000;

/// Bundles on offer whose age is known. Of more than these the age counts from their arrival.
const HEARD_MAX: usize = 16 * 1024;

/// Deadlines kept in memory: the next ones.
const NEAR: usize = 1024;

/// A cancel is kept for twice the lifetime of its bundle, and at least so many seconds: 60 days.
const CANCEL_KEPT_MIN: u64 = 60 * 24 * 3600;

/// And at most, in seconds: its lifetime is what another says.
const CANCEL_KEPT_MAX: u64 = 10 * 365 * 24 * 3600;

/// The age as it was written down last.
const META_AGE: Table<(), Age> = Table::named(META, "age");

/// What the machine says: which boot, and milliseconds since it, sleep included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::spool) struct Reading {
    pub(in crate::spool) boot: String,
    pub(in crate::spool) uptime: u64,
}

impl Reading {
    fn take() -> Result<Self, SpoolError> {
        static BOOT: OnceLock<String> = OnceLock::new();
        let boot = match BOOT.get() {
            Some(boot) => boot,
            None => {
                let boot = boot_id()?.trim().to_owned();
                BOOT.get_or_init(|| boot)
            }
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let secs = u64::try_from(now.tv_sec).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
        Ok(Self {
            boot: boot.clone(),
            uptime: secs.saturating_mul(1000).saturating_add(millis),
        })
    }
}

/// The age at one reading.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(in crate::spool) struct Age {
    boot: String,
    uptime: u64,
    /// Milliseconds.
    age: u64,
}

impl Age {
    /// Goes on from here to `now`. What lies between two boots is unknown, and counts as nothing.
    pub(in crate::spool) fn advance(&mut self, now: Reading) -> u64 {
        if self.boot == now.boot {
            self.age = self
                .age
                .saturating_add(now.uptime.saturating_sub(self.uptime));
            self.uptime = self.uptime.max(now.uptime);
        } else {
            (self.boot, self.uptime) = (now.boot, now.uptime);
        }
        self.age
    }
}

/// The age in memory.
#[derive(Debug, Default)]
pub(in crate::spool) struct Ageing {
    age: Age,
    saved: u64,
    near: Near,
    /// When bundles end that were offered, by what who offered them said.
    heard: HashMap<BundleId, u64>,
    /// What the machine is to have said.
    #[cfg(test)]
    pub(in crate::spool) fixed: Option<Reading>,
    ager: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The next deadlines, with what ends then. A row that went meanwhile is found out when it is due.
#[derive(Debug, Default)]
struct Near {
    all: BTreeSet<(u64, Ends)>,
    /// Every row up to here is among them.
    to: u64,
}

impl Near {
    fn add(&mut self, at: u64, ends: Ends) {
        if at > self.to {
            return;
        }
        self.all.insert((at, ends));
        while self.all.len() > NEAR
            && let Some((last, _)) = self.all.pop_last()
        {
            self.to = last.saturating_sub(1);
            self.all.split_off(&(last, Ends::FIRST));
        }
    }

    fn take_due(&mut self, age: u64) -> Vec<(u64, Ends)> {
        let later = self.all.split_off(&(age.saturating_add(1), Ends::FIRST));
        std::mem::replace(&mut self.all, later)
            .into_iter()
            .collect()
    }

    /// When there is something to do: an end, or rows to be looked through.
    fn next(&self) -> u64 {
        let first = self.all.first().map(|(at, _)| *at);
        first.unwrap_or(self.to.saturating_add(1))
    }
}

impl Ledger {
    /// When a bundle ends, in our age: one of ours, or one that is kept.
    pub(in crate::spool) fn deadline_of(
        &self,
        bundle: BundleId,
    ) -> Result<Option<u64>, SpoolError> {
        if let Some(at) = self.journal.row(DEADLINES, &Ends::Bundle(bundle))? {
            return Ok(Some(at));
        }
        if let Some(head) = self.head(bundle)? {
            return Ok(Some(head.ends));
        }
        let kept = self.journal.row(KEPT.heads::<KeptHead>(), &bundle)?;
        Ok(kept.map(|kept| kept.ends))
    }

    /// Whether this is still to end at that age.
    fn is_due(&self, ends: &Ends, at: u64) -> Result<bool, SpoolError> {
        if let Some(row) = self.journal.row(DEADLINES, ends)? {
            return Ok(row == at);
        }
        let Ends::Bundle(bundle) = *ends else {
            return Ok(false);
        };
        if self.deadline_of(bundle)? != Some(at) {
            return Ok(false);
        }
        Ok(self.head(bundle)?.is_none() || self.is_open(bundle)?)
    }

    /// All deadlines, in no order; one may come several times.
    fn each_deadline(&self, mut look: impl FnMut(u64, Ends)) -> Result<(), SpoolError> {
        for row in self.journal.each(DEADLINES) {
            let (ends, at) = row?;
            look(at, ends);
        }
        // In the order in which a bundle goes from one table to the next.
        for bundle in self.all_held()? {
            if let Some(head) = self.head(bundle)? {
                look(head.ends, Ends::Bundle(bundle));
            }
        }
        for row in self.journal.each(ORPHANS) {
            let (_, bundle) = row?;
            if let Some(head) = self.head(bundle)? {
                look(head.ends, Ends::Bundle(bundle));
            }
        }
        for row in self.journal.each(PENDING) {
            let ((_, rank), (bundle, at)) = row?;
            if is_ours(rank.0) {
                look(at, Ends::Bundle(bundle));
            }
        }
        for row in self.journal.each(KEPT.heads::<KeptHead>()) {
            let (bundle, kept) = row?;
            look(kept.ends, Ends::Bundle(bundle));
        }
        Ok(())
    }

    /// When a bundle of another ends, in our age, by what was said of it when it was offered.
    pub(crate) fn end_of(&self, manifest: &VerifiedManifest) -> u64 {
        let heard = self.ageing.lock().heard.get(&manifest.id()).copied();
        let known = heard.or_else(|| self.deadline_of(manifest.id()).ok().flatten());
        known.unwrap_or_else(|| {
            let whole = manifest.manifest().lifetime_secs.saturating_mul(1000);
            self.age_now().saturating_add(whole)
        })
    }

    /// Whether our age has come so far.
    pub(crate) fn is_past(&self, end: u64) -> bool {
        self.age_now() >= end
    }

    /// What the machine says now.
    fn reading(&self) -> Result<Reading, SpoolError> {
        #[cfg(test)]
        if let Some(fixed) = self.ageing.lock().fixed.clone() {
            return Ok(fixed);
        }
        Reading::take()
    }

    /// The age now, in milliseconds.
    fn age_now(&self) -> u64 {
        let now = self.reading();
        let mut ageing = self.ageing.lock();
        let age = match now {
            Ok(now) => ageing.age.advance(now),
            Err(error) => {
                tracing::warn!(%error, "the age is not known now");
                ageing.age.age
            }
        };
        self.age.store(age, Ordering::Release);
        age
    }

    /// Whether the lifetime of a bundle is over, also in the moment before that is recorded.
    pub(in crate::spool) fn is_over_age(&self, bundle: BundleId) -> bool {
        let age = self.age_now();
        if age < self.next_deadline.load(Ordering::Acquire) {
            return false;
        }
        let at = self.deadline_of(bundle).ok().flatten();
        at.is_some_and(|at| at <= age)
    }

    /// The age is what it is at `now`.
    pub(in crate::spool) fn advance_age(&self, now: Reading, save: bool) -> Result<(), SpoolError> {
        let mut ageing = self.ageing.lock();
        let age = ageing.age.advance(now);
        self.age.store(age, Ordering::Release);
        if save || age >= ageing.saved.saturating_add(SAVE_EVERY) {
            let mut batch = Batch::default();
            batch.insert(META_AGE, &(), &ageing.age);
            self.journal.submit(batch)?;
            ageing.saved = age;
        }
        Ok(())
    }

    /// From now on the bundle has this long.
    pub(in crate::spool) fn set_deadline(
        &self,
        bundle: BundleId,
        lifetime: u64,
        batch: &mut Batch,
    ) {
        self.deadline(Ends::Bundle(bundle), lifetime, batch);
    }

    /// A cancel is kept for longer than anybody may still offer its bundle.
    pub(in crate::spool) fn keep_cancel(&self, cancel: &Cancel, batch: &mut Batch) {
        let long = cancel.lifetime_secs.saturating_mul(2);
        let long = long.clamp(CANCEL_KEPT_MIN, CANCEL_KEPT_MAX);
        let ends = Ends::Cancel(cancel.bundle, cancel.origin);
        self.deadline(ends, long, batch);
    }

    fn deadline(&self, ends: Ends, after: u64, batch: &mut Batch) {
        self.deadline_in(ends, after.saturating_mul(1000), batch);
    }

    fn deadline_in(&self, ends: Ends, millis: u64, batch: &mut Batch) {
        let at = self.deadline_after(ends, millis);
        batch.insert(DEADLINES, &ends, &at);
    }

    /// The deadline of what ends so many milliseconds from now. The row that says so is to follow under the same hold of the
    /// decision lock.
    pub(super) fn deadline_after(&self, ends: Ends, millis: u64) -> u64 {
        let at = self.age_now().saturating_add(millis);
        let mut ageing = self.ageing.lock();
        ageing.near.add(at, ends);
        self.next_deadline.fetch_min(at, Ordering::AcqRel);
        at
    }

    /// The walk over all deadlines comes to this one, even if the row that says so moves from where the walk has yet to go to
    /// where it was.
    pub(super) fn look_out_for(&self, bundle: BundleId) -> Result<(), SpoolError> {
        let Some(at) = self.deadline_of(bundle)? else {
            return Ok(());
        };
        self.ageing.lock().near.add(at, Ends::Bundle(bundle));
        self.next_deadline.fetch_min(at, Ordering::AcqRel);
        Ok(())
    }

    /// When a bundle of another ends that is kept for as long as its lifetime says.
    pub(super) fn age_kept(&self, manifest: &VerifiedManifest) -> u64 {
        let heard = self.ageing.lock().heard.remove(&manifest.id());
        let whole = manifest.manifest().lifetime_secs.saturating_mul(1000);
        let left = heard.map_or(whole, |at| at.saturating_sub(self.age_now()));
        self.deadline_after(Ends::Bundle(manifest.id()), left)
    }

    /// How old a bundle is that we have, in milliseconds.
    pub(crate) fn age_of(&self, manifest: &VerifiedManifest) -> u64 {
        let at = self.deadline_of(manifest.id()).ok().flatten();
        let whole = manifest.manifest().lifetime_secs.saturating_mul(1000);
        at.map_or(0, |at| {
            whole.saturating_sub(at.saturating_sub(self.age_now()))
        })
    }

    /// A peer says how old the bundle is that it offers. The origin knows best, then who offered it first.
    pub(crate) fn hear_age(&self, manifest: &VerifiedManifest, from: PeerId, age: u64) {
        let whole = manifest.manifest().lifetime_secs.saturating_mul(1000);
        let at = self.age_now().saturating_add(whole.saturating_sub(age));
        let mut ageing = self.ageing.lock();
        if ageing.heard.len() >= HEARD_MAX {
            ageing.heard.clear();
        }
        let known = ageing.heard.entry(manifest.id()).or_insert(at);
        if from == manifest.manifest().origin {
            *known = at;
        }
    }

    /// What is due, and no longer among the next deadlines.
    fn take_due(&self, age: u64) -> Result<Vec<Ends>, SpoolError> {
        let mut due = self.take_near(age);
        let read_to = self.ageing.lock().near.to;
        if age > read_to {
            // What gets a deadline from here on is added by itself.
            self.ageing.lock().near.to = u64::MAX;
            self.each_deadline(|at, ends| {
                self.ageing.lock().near.add(at, ends);
            })?;
            due.extend(self.take_near(age));
            due.sort_unstable();
            due.dedup();
        }
        let mut keys = Vec::with_capacity(due.len());
        for (at, key) in due {
            if self.is_due(&key, at)? {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// What is due of the next deadlines. What has no row after this has ended or was put off.
    fn take_near(&self, age: u64) -> Vec<(u64, Ends)> {
        let _decide = self.decide();
        self.ageing.lock().near.take_due(age)
    }

    /// Takes up the age; what came due while nothing ran is to be ended then.
    pub(in crate::spool) fn begin_age(&self) -> Result<(), SpoolError> {
        let known = self.journal.row(META_AGE, &())?;
        self.ageing.lock().age = known.unwrap_or_default();
        self.advance_age(Reading::take()?, true)?;
        self.next_deadline.store(0, Ordering::Release);
        Ok(())
    }

    /// Starts the thread that looks at the age. It ends when `look` gives `None`.
    pub(in crate::spool) fn start_ager(
        &self,
        look: impl Fn() -> Option<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(1);
        let thread = std::thread::Builder::new().name("ager".to_owned());
        let handle = thread.spawn(move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) && look().is_some() {
            }
        })?;
        self.ageing.lock().ager = Some((stop, handle));
        Ok(())
    }

    /// The age is what it is now.
    pub(in crate::spool) fn grow_older(&self) -> Result<(), SpoolError> {
        self.advance_age(self.reading()?, false)
    }

    /// Ends the thread, and writes the age down.
    pub(in crate::spool) fn stop_ager(&self) {
        let ager = self.ageing.lock().ager.take();
        if let Some((stop, handle)) = ager {
            drop(stop);
            // The last owner of the spool may be that thread itself.
            if handle.thread().id() != std::thread::current().id() && handle.join().is_err() {
                tracing::error!("the thread that looks at the age had panicked");
            }
        }
        let aged = Reading::take().and_then(|now| self.advance_age(now, true));
        if let Err(error) = aged {
            tracing::warn!(%error, "the age is not written down");
        }
    }

    /// Ends what is too old: `end` ends a bundle, ours or one that is kept.
    pub(in crate::spool) fn expire_due(
        &self,
        end: impl Fn(BundleId) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let _one = self.expiring.lock();
        let age = self.age.load(Ordering::Acquire);
        if age < self.next_deadline.load(Ordering::Acquire) {
            return Ok(());
        }
        let due = self.take_due(age)?;
        let cancel = |ends: &Ends| match ends {
            Ends::Cancel(bundle, origin) => Some((*bundle, *origin)),
            Ends::Bundle(_) => None,
        };
        let cancels: HashSet<(BundleId, PeerId)> = due.iter().filter_map(cancel).collect();
        if !cancels.is_empty() {
            self.forget_owed(&cancels)?;
        }
        for key in &due {
            match *key {
                Ends::Bundle(bundle) => {
                    end(bundle)?;
                    let mut batch = Batch::default();
                    batch.remove(DEADLINES, key);
                    self.journal.submit(batch)?;
                }
                // A cancel: by now nobody offers its bundle any more.
                Ends::Cancel(bundle, origin) => {
                    let mut batch = Batch::default();
                    batch.remove(CANCELS, &(bundle, origin));
                    batch.remove(DEADLINES, key);
                    self.journal.submit(batch)?;
                }
            }
        }
        // Not before: until then what is due is not offered by its row.
        let ageing = self.ageing.lock();
        let next = ageing.near.next();
        self.next_deadline.store(next, Ordering::Release);
        drop(ageing);
        Ok(self.journal.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: &str, uptime: u64) -> Reading {
        Reading {
            boot: boot.to_owned(),
            uptime,
        }
    }

    #[test]
    fn age_is_time_that_the_machine_was_up() {
        let mut age = Age::default();
        assert_eq!(age.advance(at("a", 1000)), 0, "nothing is known of before");
        assert_eq!(age.advance(at("a", 1010)), 10);
        // It slept: the boot-time clock goes on.
        assert_eq!(age.advance(at("a", 5010)), 4010);
        // The daemon was restarted from what was written down.
        let saved = postcard::to_stdvec(&age).unwrap();
        let mut age: Age = postcard::from_bytes(&saved).unwrap();
        assert_eq!(age.advance(at("a", 5020)), 4020);
    }

    #[test]
    fn another_boot_adds_nothing_and_never_takes_away() {
        let mut age = Age::default();
        age.advance(at("a", 0));
        assert_eq!(age.advance(at("a", 100)), 100);
        for uptime in [0, 50, 99, 100, 1_000_000] {
            let mut age = age.clone();
            assert_eq!(age.advance(at("b", uptime)), 100, "{uptime}");
            assert_eq!(age.advance(at("b", uptime + 7)), 107, "{uptime}");
        }
        // A reading that goes back is none.
        assert_eq!(age.advance(at("a", 90)), 100);
        assert_eq!(age.advance(at("a", 101)), 101);
    }
}
