//! The ledger: bundles, who is still to get them, and how each delivery ended.

pub(in crate::spool) mod cancel;
pub(in crate::spool) mod custody;
pub(in crate::spool) mod deliver;
pub(in crate::spool) mod expiry;
pub(in crate::spool) mod heal;
pub(in crate::spool) mod history;
pub(in crate::spool) mod inbound;
pub(in crate::spool) mod policy;
#[cfg(test)]
pub(in crate::spool) mod probe;
pub(in crate::spool) mod rank;
pub(in crate::spool) mod sealed;
pub(in crate::spool) mod settled;
mod tables;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::journal::Journal;
use crate::spool::SpoolError;
use crate::spool::keys::Newest;

use self::tables::IN_ORDER;

/// Bundles, their recipients and what became of each delivery.
pub(in crate::spool) struct Ledger {
    journal: Arc<Journal>,
    /// The place of the next bundle of another that status shows.
    next_in: AtomicU64,
}

impl Ledger {
    pub(in crate::spool) fn load(journal: &Arc<Journal>) -> Result<Self, SpoolError> {
        let inbound = journal.keys(IN_ORDER.all(), 1)?;
        Ok(Self {
            journal: Arc::clone(journal),
            next_in: AtomicU64::new(Newest::next(inbound.first())),
        })
    }
}
