//! The pace of hashing zeros that did not travel.
//!
//! A run of zeros costs its origin one item of a manifest, however long it is, and its receiver the SHA-256 over all of
//! it. So a receiver does this at its leisure: with a twentieth of one core, all bundles together, of which three seconds
//! may be saved up; and ends when the bundle is cancelled, expired, or older than what is published here.
//!
//! # Invariants
//! 1. One thread at a time goes over zeros. Over any time it runs at most a twentieth of it, and three seconds.
//!
//! # Threads
//! Whoever brings chunks, as far as what is saved goes; then who asks for it slice by slice ([`crate::spool::Incoming::hash_zeros`]).

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::Sha256;

use crate::bundle::VerifiedManifest;
use crate::digest::{LEAF, sha_zeros};
use crate::spool::durable::OnPath;
use crate::spool::inbox::part::{Followed, PartFile};
use crate::spool::{Spool, SpoolError};

/// What of a core zeros may take: one of so many.
const SHARE: u32 = 20;

/// What may be saved up: enough for a file with a GiB or more of holes now and then.
const SAVED: Duration = Duration::from_secs(3);

/// What one call goes over: long enough to be worth a change of threads, short for whoever waits for the next chunk.
const SLICE: Duration = Duration::from_millis(10);

/// How long to wait for another thread that is at it.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// When zeros may be hashed. Time is passed in.
#[derive(Debug, Default)]
struct Pace {
    /// All that was done is paid for at this time.
    paid: Duration,
}

impl Pace {
    fn wait(&self, now: Duration) -> Duration {
        self.paid.saturating_sub(now)
    }

    fn ran(&mut self, took: Duration, now: Duration) {
        let saved = now.saturating_sub(SAVED * SHARE);
        self.paid = self
            .paid
            .max(saved)
            .saturating_add(took.saturating_mul(SHARE));
    }
}

/// The pace of all bundles together.
#[derive(Debug)]
pub(in crate::spool) struct Zeros {
    pace: Mutex<Pace>,
    begun: Instant,
}

impl Default for Zeros {
    fn default() -> Self {
        Self {
            pace: Mutex::default(),
            begun: Instant::now(),
        }
    }
}

impl Zeros {
    /// At the start as much is saved as may be.
    fn now(&self) -> Duration {
        SAVED * SHARE + self.begun.elapsed()
    }

    /// Goes over at most `len` zeros, as far as it may; gives how far.
    pub(in crate::spool) fn hash(&self, sha: &mut Sha256, len: u64) -> u64 {
        let Some(mut pace) = self.pace.try_lock() else {
            return 0;
        };
        let (begun, mut done) = (Instant::now(), 0);
        while done < len && pace.wait(self.now()).is_zero() && begun.elapsed() < SLICE {
            let (some, since) = ((len - done).min(LEAF), Instant::now());
            sha_zeros(sha, some);
            pace.ran(since.elapsed(), self.now());
            done += some;
        }
        done
    }

    /// How long until it may go on.
    pub(in crate::spool) fn wait(&self) -> Duration {
        let pace = self.pace.try_lock();
        pace.map_or(LOOK_AGAIN, |pace| pace.wait(self.now()))
    }
}

/// Lets the SHA-256 of a file follow what is here of it.
pub(in crate::spool) fn follow(spool: &Spool, part: &mut PartFile) -> Result<Followed, SpoolError> {
    let file = part.open()?;
    let followed = part.follow(&file, &mut |sha, len| spool.content.zeros.hash(sha, len));
    followed.on("read", &part.at)
}

impl Spool {
    /// Whether a bundle could never be here: with its holes it is longer than the whole file system.
    pub(in crate::spool) fn longer_than_disk(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<Option<String>, SpoolError> {
        let (size, most) = (manifest.manifest().total_size(), self.content.room.whole()?);
        let why = || format!("no room here ever: {size} bytes, and the file system has {most}");
        Ok((size > most).then(why))
    }

    /// Whether of every file of the bundle something newer was published here.
    pub(in crate::spool) fn is_older(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<bool, SpoolError> {
        let of = manifest.manifest();
        for entry in &of.entries {
            let newest = self.version(of.origin, &entry.path)?;
            if newest.is_none_or(|newest| newest.order < of.order()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_take_a_twentieth_of_a_core_and_what_was_saved() {
        let mut pace = Pace::default();
        let (mut now, mut ran) = (SAVED * SHARE, Duration::ZERO);
        let begun = now;
        let step = Duration::from_millis(3);
        while now < begun + Duration::from_secs(1000) {
            if pace.wait(now).is_zero() {
                now += step;
                pace.ran(step, now);
                ran += step;
            } else {
                now += Duration::from_millis(1);
            }
            let most = (now - begun) / SHARE + SAVED + 2 * step;
            assert!(ran <= most, "{ran:?} of {most:?}");
        }
        assert!(ran >= Duration::from_secs(50), "{ran:?}");
    }

    #[test]
    fn no_more_than_some_seconds_are_saved() {
        let mut pace = Pace::default();
        let day = Duration::from_secs(86_400);
        pace.ran(SAVED, day);
        assert!(pace.wait(day).is_zero());
        pace.ran(Duration::from_millis(1), day);
        assert_eq!(pace.wait(day), Duration::from_millis(20));
    }

    #[test]
    fn what_is_hashed_is_zeros() {
        use sha2::Digest as _;
        let zeros = Zeros::default();
        let (mut sha, len) = (Sha256::new(), 5 * LEAF + 7);
        let mut done = 0;
        while done < len {
            done += zeros.hash(&mut sha, len - done);
        }
        let found = crate::digest::Digest(sha.finalize().into());
        assert_eq!(found, crate::digest::Digest::of(&vec![0; len as usize]));
    }
}
