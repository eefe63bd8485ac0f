//! The ledger: bundles, who is still to get them, and how each delivery ended.

pub(in crate::spool) mod cancel;
pub(in crate::spool) mod custody;
pub(in crate::spool) mod deliver;
pub(in crate::spool) mod expiry;
pub(in crate::spool) mod heal;
pub(in crate::spool) mod history;
pub(in crate::spool) mod policy;
pub(in crate::spool) mod rank;

use std::sync::Arc;

use crate::journal::Journal;

/// Bundles, their recipients and what became of each delivery.
pub(in crate::spool) struct Ledger {
    #[allow(dead_code, reason = "the tables move to their owners one by one")]
    journal: Arc<Journal>,
}

impl Ledger {
    pub(in crate::spool) fn new(journal: &Arc<Journal>) -> Self {
        Self {
            journal: Arc::clone(journal),
        }
    }
}
