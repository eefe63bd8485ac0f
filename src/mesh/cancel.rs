//! Cancels between peers: told before any bundle is offered, on every connection, until the peer says that it has seen
//! them. What a cancel does is the spool's.
//!
//! Both directions are the same: the origin tells its recipients, and they tell each other what the origin could not.
//! All of it blocks on disk.

use crate::bundle::{BundleId, Cancel};
use crate::mesh::hub::Hub;
use crate::mesh::out::Out;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Frame, pages};

/// Cancels read at once; with the longest list of recipients that is some 8 MiB.
const BATCH: usize = 64;

/// Tells the peer what it may not know yet. In the session's desk, so that it comes before what is offered after it.
pub(crate) fn tell(hub: &Hub, peer: &Peer, out: &Out) {
    let mut after: Option<Cancel> = None;
    loop {
        out.wait_room();
        let owed = match hub
            .store
            .ledger
            .cancels_owed(peer.id, after.as_ref(), BATCH)
        {
            Ok(owed) => owed,
            Err(error) => {
                tracing::error!("cancels cannot be read: {error}");
                return;
            }
        };
        let Some(last) = owed.last() else { return };
        after = Some(last.clone());
        for page in pages(owed) {
            out.push(&Frame::Cancels(page));
        }
    }
}

/// Takes what the peer told; which of these bundles are known to have ended.
pub(crate) fn take(hub: &Hub, peer: &Peer, cancels: Vec<Cancel>) -> Vec<BundleId> {
    let mut seen = Vec::with_capacity(cancels.len());
    for cancel in cancels {
        match hub.store.take_cancel(&cancel, peer.id) {
            Ok(true) => seen.push(cancel.bundle),
            Ok(false) => tracing::warn!(
                "{} told of a cancel of {:?} that is not genuine or not for both of us",
                peer.label(),
                cancel.bundle
            ),
            Err(error) => {
                tracing::error!("cancel of {:?} not recorded: {error}", cancel.bundle);
            }
        }
    }
    seen
}

/// The peer has seen these.
pub(crate) fn seen(hub: &Hub, peer: &Peer, bundles: &[BundleId]) {
    if let Err(error) = hub.store.ledger.cancels_seen(peer.id, bundles) {
        tracing::error!(
            "it is not recorded which cancels {} has: {error}",
            peer.label()
        );
    }
}
