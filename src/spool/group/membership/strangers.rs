//! Strangers: members whom we never met, and know by another's word only. Each is owed all that is sealed, and a member
//! that lies could invent any number of them, so there is a bound.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::spool::tables::MEMBERS;
use crate::spool::{Spool, SpoolError};

/// So many, whoever speaks of them.
const STRANGERS_MAX: usize = 1024;

/// How long it holds that there are too many of them.
const COUNT_AGAIN: Duration = Duration::from_secs(10);

/// When there were too many.
#[derive(Debug, Default)]
pub(in crate::spool) struct Strangers(Mutex<Option<Instant>>);

impl Spool {
    /// Whether another's word makes no more members. Call with the decision lock held.
    pub(in crate::spool) fn is_full_of_strangers(&self) -> Result<bool, SpoolError> {
        if self.member_ids.read().len() < STRANGERS_MAX {
            return Ok(false);
        }
        // Not counted for each of the thousands whom one frame may name: others wait for the decision lock.
        let mut full = self.strangers.0.lock();
        if full.is_some_and(|since| since.elapsed() < COUNT_AGAIN) {
            return Ok(true);
        }
        let mut strangers = 0;
        self.each_row(MEMBERS, |_, _, member| {
            strangers += usize::from(member.last_seen == 0);
            Ok(())
        })?;
        *full = (strangers >= STRANGERS_MAX).then(Instant::now);
        Ok(full.is_some())
    }
}
