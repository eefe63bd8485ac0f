//! The ledger: bundles, who is still to get them, and how each delivery ended.

pub(in crate::spool) mod cancel;
pub(in crate::spool) mod deliver;
mod deliveries;
pub(in crate::spool) mod expiry;
pub(in crate::spool) mod heal;
pub(in crate::spool) mod history;
pub(in crate::spool) mod inbound;
mod kept;
#[cfg(test)]
pub(in crate::spool) mod probe;
pub(in crate::spool) mod rank;
pub(in crate::spool) mod sealed;
pub(in crate::spool) mod settled;
mod tables;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::Mutex;

use crate::bundle::{BundleId, DeliveryState, VerifiedManifest};
use crate::journal::Journal;
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::doorbell::Doorbell;
use crate::spool::group::Group;
use crate::spool::keys::Newest;

use self::expiry::Ageing;
use self::history::History;
use self::inbound::InboundShown;
use self::tables::{CANCELS, IN_ORDER, OUT_ORDER};

/// Bundles, their recipients and what became of each delivery.
pub(crate) struct Ledger {
    journal: Arc<Journal>,
    pub(in crate::spool) group: Arc<Group>,
    doorbell: Arc<Doorbell>,
    pub(in crate::spool) history: Arc<History>,
    /// Bundles of others that are being fetched, as status shows them.
    pub(in crate::spool) arriving: Mutex<HashMap<BundleId, InboundShown>>,
    /// The bundles of many files that were used last; a few, so that it is bounded.
    large_manifests: Mutex<Vec<Arc<VerifiedManifest>>>,
    /// The place of the next bundle of ours.
    next_out: AtomicU64,
    /// The place of the next bundle of another that status shows.
    next_in: AtomicU64,
    /// Deliveries in motion. Bounded by the windows of the sessions that report them.
    progress: Mutex<HashMap<(BundleId, PeerId), DeliveryState>>,
    /// Sealed or published, and not durable yet.
    pub(in crate::spool) volatile: Mutex<HashSet<BundleId>>,
    /// Whether any cancel is recorded.
    any_cancel: AtomicBool,
    /// Cancels recorded since start: who is in the middle of a bundle looks again when it changed.
    pub(in crate::spool) cancels: AtomicU64,
    /// Milliseconds of age, as last looked at.
    age: AtomicU64,
    /// The first deadline, or one before it.
    next_deadline: AtomicU64,
    pub(in crate::spool) ageing: Mutex<Ageing>,
    /// Held by who ends what is due.
    expiring: Mutex<()>,
}

impl Ledger {
    pub(in crate::spool) fn load(
        journal: &Arc<Journal>,
        group: &Arc<Group>,
        doorbell: &Arc<Doorbell>,
        history: History,
    ) -> Result<Self, SpoolError> {
        let outbound = journal.keys(OUT_ORDER.all(), 1)?;
        let inbound = journal.keys(IN_ORDER.all(), 1)?;
        Ok(Self {
            journal: Arc::clone(journal),
            group: Arc::clone(group),
            doorbell: Arc::clone(doorbell),
            history: Arc::new(history),
            arriving: Mutex::default(),
            large_manifests: Mutex::default(),
            next_out: AtomicU64::new(Newest::next(outbound.first())),
            next_in: AtomicU64::new(Newest::next(inbound.first())),
            progress: Mutex::default(),
            volatile: Mutex::default(),
            any_cancel: AtomicBool::new(!journal.keys(CANCELS.all(), 1)?.is_empty()),
            cancels: AtomicU64::new(0),
            age: AtomicU64::new(0),
            next_deadline: AtomicU64::new(0),
            ageing: Mutex::default(),
            expiring: Mutex::default(),
        })
    }
}
