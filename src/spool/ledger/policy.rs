//! What is kept in memory of how long bundles live and which were cancelled. The work is in `expiry` and `cancel`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::spool::ledger::expiry::Ageing;
use crate::spool::ledger::tables::CANCELS;
use crate::spool::{Spool, SpoolError};

/// In memory. The flags spare those who use none of it a look into the journal.
#[derive(Debug, Default)]
pub(in crate::spool) struct Policy {
    /// Whether any cancel is recorded.
    pub(in crate::spool) any_cancel: AtomicBool,
    /// Cancels recorded since start: who is in the middle of a bundle looks again when it changed.
    pub(in crate::spool) cancels: AtomicU64,
    /// Seconds of age, as last looked at.
    pub(in crate::spool) age: AtomicU64,
    /// The first deadline, or one before it.
    pub(in crate::spool) next_deadline: AtomicU64,
    pub(in crate::spool) ageing: Mutex<Ageing>,
    /// Held by who ends what is due.
    pub(in crate::spool) expiring: Mutex<()>,
}

impl Spool {
    /// Takes up what was decided in earlier starts.
    pub(in crate::spool) fn begin_policy(&self) -> Result<(), SpoolError> {
        let any = self.journal.rows(CANCELS.all(), 1)?;
        self.policy
            .any_cancel
            .store(!any.is_empty(), Ordering::Release);
        self.begin_routes()?;
        self.begin_age()
    }
}
