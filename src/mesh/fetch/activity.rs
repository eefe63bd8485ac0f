//! Activity: how quick each peer was of late, over all fetches.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::peer::PeerId;

/// What a peer did of late.
#[derive(Clone, Copy, Default)]
pub(super) struct Did {
    /// When it last sent something of what it was asked for.
    pub(super) heard: Option<Instant>,
    /// How quick it was, in bytes a second; 0 while that is not known.
    pub(super) rate: f64,
}

pub(super) type Heard = Arc<Mutex<Did>>;

/// That of every peer, over all fetches.
#[derive(Default)]
pub(super) struct Activity(Mutex<HashMap<PeerId, Heard>>);

impl Activity {
    pub(super) fn of(&self, peer: PeerId) -> Heard {
        self.0.lock().entry(peer).or_default().clone()
    }
}
