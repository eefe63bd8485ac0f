//! The hub: what all parts of the mesh share.
//!
//! It stands below everything that does something: links, sessions, fetches and custody know it, and it knows none of
//! them. What one of them needs alone, that one keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use crate::mesh::blames::Blames;
use crate::mesh::budget::Budget;
use crate::mesh::care::Care;
use crate::mesh::fetch::Fetches;
use crate::mesh::member::refusal;
use crate::mesh::net::Net;
use crate::mesh::pacer::Pacer;
use crate::mesh::roster::{Peer, Roster};
use crate::mesh::twins::Twins;
use crate::peer::{PeerId, PeerName};
use crate::spool::Spool;

/// Offers with longer manifests are made and read one at a time ([`Hub::heavy`]), whoever they are of: for a moment they take
/// several times as much. Unsent they are taken from the peer's purse.
pub(crate) const HEAVY: usize = 256 * 1024;

/// What all parts of the mesh share.
pub(crate) struct Hub {
    pub(crate) store: Arc<Spool>,
    pub(crate) me: PeerId,
    pub(super) name: PeerName,
    pub(crate) net: Net,
    pub(crate) roll: RollSeen,
    pub(crate) roster: Roster,
    pub(crate) budget: Arc<Budget>,
    /// Held while a long manifest is made of bytes, or bytes of it.
    pub(crate) heavy: tokio::sync::Mutex<()>,
    pub(crate) fetches: Fetches,
    pub(crate) blames: Blames,
    pub(crate) pacer: Pacer,
    pub(crate) care: Care,
    pub(crate) twins: Twins,
    /// Starts the dial loop of a peer that is new. Links stand above the hub, which cannot name them.
    pub(super) dial: fn(Arc<Hub>, Arc<Peer>),
    pub(super) runtime: Handle,
    /// Whether we speak with anybody yet.
    pub(super) open: watch::Sender<bool>,
    pub(super) stopping: AtomicBool,
}

/// The roll that the connections were last held against.
#[derive(Default)]
pub(crate) struct RollSeen {
    pub(super) digest: Mutex<Option<[u8; 32]>>,
    /// Rung when it is another one.
    pub(crate) changed: Notify,
}

impl Hub {
    /// Waits until nobody is kept out any more.
    pub(super) async fn opened(&self) {
        let mut open = self.open.subscribe();
        // The sender lives as long as the hub, so there is no error.
        drop(open.wait_for(|open| *open).await);
    }

    /// Whether the mesh is about to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The peer of that id, with its dial loop running.
    pub(crate) fn known(self: &Arc<Self>, id: PeerId) -> Arc<Peer> {
        let (peer, new) = self.roster.known(id);
        if new && id != self.me && !self.is_out(id) {
            (self.dial)(self.clone(), peer.clone());
        }
        peer
    }

    /// Whether `id` is never to be talked to.
    pub(super) fn is_out(&self, id: PeerId) -> bool {
        refusal(self.store.group.admission(id)).is_some()
    }

    /// What to call a peer in logs.
    pub(crate) fn label_of(&self, id: PeerId) -> String {
        self.roster
            .get(id)
            .map_or_else(|| id.short(), |p| p.label())
    }

    /// Remembers when the session with `peer` ended. Blocks on disk.
    pub(crate) fn saw_last(&self, peer: PeerId) {
        if let Err(error) = self.store.group.note_gone(peer) {
            tracing::debug!("when {} went is not recorded: {error}", self.label_of(peer));
        }
    }

    /// Remembers the epoch of `peer`, to tell it should it ever fall behind. Blocks on disk when it is new.
    pub(crate) fn saw_epoch(&self, peer: &Peer, epoch: u64) {
        if peer.epoch_seen.fetch_max(epoch, Ordering::Relaxed) < epoch
            && let Err(error) = self.store.group.note_epoch(peer.id, epoch)
        {
            tracing::error!("the epoch of {} not recorded: {error}", peer.label());
        }
    }
}
