//! What the user decides about bundles (who gets them, how urgently, for how long, and when not any more), as far as it
//! is kept in memory. The work is in `route`, `expiry` and `cancel`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::expiry::Ageing;
use super::route::Routing;
use super::tables::CANCELS;
use super::{Spool, SpoolError};

/// In memory. The flags spare those who use none of it a look into the journal.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// Whether any cancel is recorded.
    pub(super) any_cancel: AtomicBool,
    /// Cancels recorded since start: who is in the middle of a bundle looks again when it changed.
    pub(super) cancels: AtomicU64,
    /// Whether there is a route in the configuration.
    pub(super) any_route: AtomicBool,
    /// Whether a directory may have an attribute that routes.
    pub(super) any_routed: AtomicBool,
    /// Whether a bundle for some only was ever sealed.
    pub(super) scoped: AtomicBool,
    /// Whether bundles have limits.
    pub(super) limited: AtomicBool,
    pub(super) routing: RwLock<Arc<Routing>>,
    /// Inodes of directories that may have such an attribute; the directory itself has the last word.
    pub(super) routed: RwLock<BTreeSet<u64>>,
    /// Seconds of age, as last looked at.
    pub(super) age: AtomicU64,
    /// The first deadline, or one before it.
    pub(super) next_deadline: AtomicU64,
    pub(super) ageing: Mutex<Ageing>,
    /// Held by who ends what is due.
    pub(super) expiring: Mutex<()>,
}

impl Spool {
    /// Takes up what was decided in earlier starts.
    pub(super) fn begin_policy(&self) -> Result<(), SpoolError> {
        let any = self.journal.rows(CANCELS.all(), 1)?;
        self.policy
            .any_cancel
            .store(!any.is_empty(), Ordering::Release);
        self.begin_routes()?;
        self.begin_age()
    }
}
