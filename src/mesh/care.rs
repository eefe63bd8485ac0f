//! What custody remembers while the mesh runs: bundles of ours to be called closed, offers that are being taken, and what
//! sessions remember together of bundles of others ([`crate::protocol::care`]), with the clock that this goes by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::bundle::BundleId;
use crate::protocol::care;

/// Closed bundles waiting to be told. What does not fit is asked for by those who keep it.
const CLOSING_MAX: usize = 65_536;

/// Bundles whose content came with an offer, while that is taken; more than once when several offers wait.
type Taken = Arc<Mutex<HashMap<BundleId, usize>>>;

/// An offer that is taken, until this is dropped.
pub(crate) struct Taking {
    taken: Taken,
    bundle: BundleId,
}

impl Drop for Taking {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        if let Some(count) = taken.get_mut(&self.bundle) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.bundle);
            }
        }
    }
}

/// What is remembered while the mesh runs.
pub(crate) struct Care {
    started: Instant,
    closing: Mutex<Vec<BundleId>>,
    state: Mutex<care::Care>,
    taken: Taken,
    /// Peers that a test keeps from us.
    #[cfg(test)]
    pub(crate) cut: Mutex<std::collections::HashSet<crate::peer::PeerId>>,
    /// Held by a test: no question is answered meanwhile.
    #[cfg(test)]
    pub(crate) stuck: Mutex<()>,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            closing: Mutex::default(),
            state: Mutex::default(),
            taken: Taken::default(),
            #[cfg(test)]
            cut: Mutex::default(),
            #[cfg(test)]
            stuck: Mutex::default(),
        }
    }
}

impl Care {
    /// How long the mesh runs: the time of all sessions, and of what is remembered across them.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// What sessions remember together. Not to be held while anything blocks.
    pub(crate) fn state(&self) -> MutexGuard<'_, care::Care> {
        self.state.lock()
    }

    /// An offer of the bundle is taken from now on.
    pub(crate) fn taking(&self, bundle: BundleId) -> Taking {
        *self.taken.lock().entry(bundle).or_default() += 1;
        let taken = self.taken.clone();
        Taking { taken, bundle }
    }

    /// Whether an offer of the bundle is taken now. When not, it is published, or was not taken.
    pub(crate) fn is_taken(&self, bundle: BundleId) -> bool {
        self.taken.lock().contains_key(&bundle)
    }

    /// A bundle of ours is closed: it will be told.
    pub(crate) fn closed(&self, bundle: BundleId) {
        let mut closing = self.closing.lock();
        if closing.len() < CLOSING_MAX {
            closing.push(bundle);
        }
    }

    /// Those that are to be told now.
    pub(crate) fn take_closing(&self) -> Vec<BundleId> {
        std::mem::take(&mut *self.closing.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_counts_as_taken_until_the_last_of_them_is() {
        let (care, bundle) = (Care::default(), BundleId([1; 32]));
        let (one, other) = (care.taking(bundle), care.taking(bundle));
        assert!(care.is_taken(bundle) && !care.is_taken(BundleId([2; 32])));
        drop(one);
        assert!(care.is_taken(bundle));
        drop(other);
        assert!(!care.is_taken(bundle));
        assert!(care.taken.lock().is_empty());
    }
}
