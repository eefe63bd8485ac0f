//! Care: what custody remembers while the mesh runs: bundles of ours to be called closed, and what sessions remember
//! together of bundles of others ([`crate::protocol::care`]).

use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::bundle::BundleId;
use crate::protocol::care;

/// Closed bundles waiting to be told. What does not fit is asked for by those who keep it.
const CLOSING_MAX: usize = 65_536;

/// What is remembered while the mesh runs.
pub(crate) struct Care {
    started: Instant,
    closing: Mutex<Vec<BundleId>>,
    state: Mutex<care::Care>,
    /// Peers that a test keeps from us.
    #[cfg(test)]
    pub(crate) cut: Mutex<std::collections::HashSet<crate::peer::PeerId>>,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            closing: Mutex::default(),
            state: Mutex::default(),
            #[cfg(test)]
            cut: Mutex::default(),
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
