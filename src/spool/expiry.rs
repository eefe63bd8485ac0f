//! Expiry: the end of a bundle's lifetime, by age and not by clock.
//!
//! Age is how long the machine has been up while this state was in use: the boot-time clock within one boot, and what
//! was written down of earlier boots. A clock on the wall that says 1970, or is a month ahead, changes nothing. While
//! the machine is off nobody ages, so a bundle may live longer than its lifetime, never shorter.
//!
//! # Invariants
//! 1. Only the origin ends a bundle for its age, by the same signed word as a cancel.
//! 2. A deadline is never before the seal's age plus the lifetime: the age that is known is rounded up.
//!
//! # Crash behaviour
//! The age is written down every [`SAVE_EVERY`] seconds and at a clean stop. In the same boot nothing is lost; after a
//! power loss bundles are younger by what was not written.
//!
//! # Threads
//! `ager` looks once every [`TICK`]; nearly always it compares two numbers.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};
use serde::{Deserialize, Serialize};

use super::cancel::key_of;
use super::durable::OnPath;
use super::journal::Batch;
use super::start::boot_id;
use super::tables::{CANCELS, DEADLINES, META, ORPHANS, PENDING};
use super::{Spool, SpoolError};
use crate::bundle::{BundleId, Cancel, CancelReason};

/// How often the age is looked at.
const TICK: Duration = Duration::from_secs(60);

/// Seconds of age between two times that it is written down.
const SAVE_EVERY: u64 = 600;

/// A cancel is kept for twice the lifetime of its bundle, and at least so many seconds: 60 days.
const CANCEL_KEPT_MIN: u64 = 60 * 24 * 3600;

/// And at most, in seconds: its lifetime is what another says.
const CANCEL_KEPT_MAX: u64 = 10 * 365 * 24 * 3600;

/// The age as it was written down last.
const META_AGE: &[u8] = b"age";

/// Rows that get a deadline at the first start that knows of deadlines.
const FIRST_MAX: usize = 1_000_000;

/// What the machine says: which boot, and seconds since it, sleep included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Reading {
    pub(super) boot: String,
    pub(super) uptime: u64,
}

impl Reading {
    fn take() -> Result<Self, SpoolError> {
        let path = std::path::Path::new("/proc/uptime");
        let text = std::fs::read_to_string(path).on("read", path)?;
        let uptime = text.split(['.', ' ']).next().and_then(|t| t.parse().ok());
        Ok(Self {
            boot: boot_id()?.trim().to_owned(),
            uptime: uptime.ok_or_else(|| SpoolError::Corrupted("/proc/uptime".to_owned()))?,
        })
    }
}

/// The age at one reading.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Age {
    boot: String,
    uptime: u64,
    /// Seconds.
    age: u64,
}

impl Age {
    /// Goes on from here to `now`. What lies between two boots is unknown, and counts as nothing.
    pub(super) fn advance(&mut self, now: Reading) -> u64 {
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
pub(super) struct Ageing {
    age: Age,
    saved: u64,
    ager: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Spool {
    /// Takes up the age, and gives a deadline to what was sealed before there were any.
    pub(super) fn begin_age(&self) -> Result<(), SpoolError> {
        let known: Option<Age> = self.journal.get(META, META_AGE)?;
        let first = known.is_none();
        self.policy.ageing.lock().age = known.unwrap_or_default();
        self.advance_age(Reading::take()?, true)?;
        if first {
            let mut batch = Batch::default();
            for table in [PENDING, ORPHANS] {
                for (_, bundle) in self.journal.scan::<BundleId>(table, &[], None, FIRST_MAX)? {
                    let lifetime = match self.shared_manifest(bundle)? {
                        Some(manifest) => manifest.manifest().lifetime_secs,
                        None => self.lifetime.as_secs(),
                    };
                    self.set_deadline(bundle, lifetime, &mut batch);
                }
            }
            if !batch.is_empty() {
                self.journal.submit(batch)?;
            }
        }
        self.policy.next_deadline.store(0, Ordering::Release);
        self.expire_due()
    }

    /// Starts the thread that looks at the age.
    pub(super) fn start_ager(self: &Arc<Self>) -> std::io::Result<()> {
        let (stop, stopped) = crossbeam_channel::bounded::<()>(1);
        let spool = Arc::downgrade(self);
        let thread = std::thread::Builder::new().name("ager".to_owned());
        let handle = thread.spawn(move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let Some(spool) = spool.upgrade() else { return };
                let aged = Reading::take().and_then(|now| spool.advance_age(now, false));
                if let Err(error) = spool.look_home(true) {
                    tracing::warn!(%error, "names that wait are looked at again later");
                }
                if let Err(error) = aged.and_then(|()| spool.expire_due()) {
                    tracing::error!(%error, "bundles whose lifetime is over stay for now");
                }
            }
        })?;
        self.policy.ageing.lock().ager = Some((stop, handle));
        Ok(())
    }

    /// Ends the thread, and writes the age down.
    pub(super) fn stop_ager(&self) {
        let ager = self.policy.ageing.lock().ager.take();
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

    /// The age is what it is at `now`.
    pub(super) fn advance_age(&self, now: Reading, save: bool) -> Result<(), SpoolError> {
        let mut ageing = self.policy.ageing.lock();
        let age = ageing.age.advance(now);
        self.policy.age.store(age, Ordering::Release);
        if save || age >= ageing.saved.saturating_add(SAVE_EVERY) {
            let mut batch = Batch::default();
            batch.put(META, META_AGE, &ageing.age);
            self.journal.submit(batch)?;
            ageing.saved = age;
        }
        Ok(())
    }

    /// From now on the bundle has this long.
    pub(super) fn set_deadline(&self, bundle: BundleId, lifetime: u64, batch: &mut Batch) {
        self.deadline(&bundle.0, lifetime, batch);
    }

    /// A cancel is kept for longer than anybody may still offer its bundle.
    pub(super) fn keep_cancel(&self, cancel: &Cancel, batch: &mut Batch) {
        let long = cancel.lifetime_secs.saturating_mul(2);
        let long = long.clamp(CANCEL_KEPT_MIN, CANCEL_KEPT_MAX);
        self.deadline(&key_of(cancel), long, batch);
    }

    fn deadline(&self, key: &[u8], after: u64, batch: &mut Batch) {
        let age = self.policy.age.load(Ordering::Acquire);
        let at = age.saturating_add(TICK.as_secs()).saturating_add(after);
        batch.put(DEADLINES, key, &at);
        self.policy.next_deadline.fetch_min(at, Ordering::AcqRel);
    }

    /// Ends what is too old.
    pub(super) fn expire_due(&self) -> Result<(), SpoolError> {
        let age = self.policy.age.load(Ordering::Acquire);
        if age < self.policy.next_deadline.load(Ordering::Acquire) {
            return Ok(());
        }
        // What gets a deadline from here on lowers it again.
        self.policy.next_deadline.store(u64::MAX, Ordering::Release);
        let mut due = Vec::new();
        let mut next = u64::MAX;
        self.each_row::<u64>(DEADLINES, |_, key, at| {
            if *at <= age {
                due.push(key.to_vec());
            } else {
                next = next.min(*at);
            }
            Ok(())
        })?;
        self.policy.next_deadline.fetch_min(next, Ordering::AcqRel);
        let cancels: HashSet<&[u8]> = due
            .iter()
            .filter(|key| key.len() > 32)
            .map(Vec::as_slice)
            .collect();
        if !cancels.is_empty() {
            self.forget_owed(&cancels)?;
        }
        for key in &due {
            match <[u8; 32]>::try_from(key.as_slice()) {
                Ok(bundle) => {
                    self.end_bundle(BundleId(bundle), CancelReason::Expired)?;
                    let mut batch = Batch::default();
                    batch.delete(DEADLINES, key);
                    self.journal.submit(batch)?;
                }
                // A cancel: by now nobody offers its bundle any more.
                Err(_) => {
                    let mut batch = Batch::default();
                    batch.delete(CANCELS, key);
                    batch.delete(DEADLINES, key);
                    self.journal.submit(batch)?;
                }
            }
        }
        self.journal.flush()
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
