//! What the user decides about bundles (who gets them, how urgently, for how long, and when not any more), as far as it
//! is kept in memory. The work is in `route`, `expiry` and `cancel`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::spool::group::route::Routing;
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
    /// Whether there is a route in the configuration.
    pub(in crate::spool) any_route: AtomicBool,
    /// Whether a directory may have an attribute that routes.
    pub(in crate::spool) any_routed: AtomicBool,
    /// Whether a bundle for some only was ever sealed.
    pub(in crate::spool) scoped: AtomicBool,
    /// Whether bundles have limits.
    pub(in crate::spool) limited: AtomicBool,
    pub(in crate::spool) routing: RwLock<Arc<Routing>>,
    /// Inodes of directories that may have such an attribute; the directory itself has the last word.
    pub(in crate::spool) routed: RwLock<BTreeSet<u64>>,
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
