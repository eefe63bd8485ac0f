//! A tally: what a piece that is on its way takes up, and what of it came.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::Piece;
use crate::bundle::BundleId;
use crate::mesh::hub::Hub;
use crate::peer::PeerId;

/// From the question to the disk: counts the bytes of a piece; if they are not kept in the end, as come in vain.
pub(super) struct Tally {
    hub: Arc<Hub>,
    bundle: BundleId,
    peer: PeerId,
    /// What was asked for: the room on the disk that it may take, and the memory.
    len: u64,
    held: u64,
    came: Arc<AtomicU64>,
    kept: bool,
}

impl Tally {
    /// Of a piece that was let fly and has room.
    pub(super) fn begin(hub: &Arc<Hub>, bundle: BundleId, peer: PeerId, piece: Piece) -> Self {
        Self {
            hub: hub.clone(),
            bundle,
            peer,
            len: piece.len,
            held: piece.held(),
            came: Arc::default(),
            kept: false,
        }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.hub.store.count_bytes(0, bytes);
        self.came.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How much came, as it comes.
    pub(super) fn came(&self) -> Arc<AtomicU64> {
        self.came.clone()
    }

    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let bytes = self.came.load(Ordering::Relaxed);
        if bytes > 0 && !self.kept {
            self.hub.store.count_twice(bytes);
        }
        self.hub.store.content.part_over(self.bundle, self.len);
        let fetches = &self.hub.fetches;
        fetches.landed(self.bundle, self.peer, self.held);
    }
}
