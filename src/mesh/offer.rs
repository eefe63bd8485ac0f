//! Offers: built from what the spool holds, and taken from a peer.
//!
//! An offer carries the content of entries up to 64 KiB, unless the peer is known to have it. A received offer with
//! all its content is taken at once, in a lane of its peer; one with more to fetch goes to `fetch`. Offers that rename are
//! looked at in the lane first, one after another, whatever their priority: in their order the least is to be fetched.

use std::sync::Arc;

use bytes::Bytes;

use crate::bundle::{BundleId, DeliveryState, EntryKind, VerifiedManifest};
use crate::delivery::Verdict;
use crate::digest::INLINE_MAX;
use crate::mesh::budget::Held;
use crate::mesh::fetch;
use crate::mesh::hub::{HEAVY, Hub};
use crate::mesh::intake::{describe, feed_inline, open, publish, wrong_or_disk};
use crate::mesh::out::Out;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Frame, INLINE_TOTAL, Offer};
use crate::peer::PeerId;
use crate::protocol::offers::{Offered, Standing, Way};
use crate::protocol::session::Input;

/// Builds the offer of `bundle` and hands it to the writer; `false` when it is not owed or not held any more. Blocks on
/// disk, and for a long manifest until there is memory for it.
pub(crate) fn send(hub: &Hub, peer: &Peer, bundle: BundleId, out: &Out, urgent: bool) -> bool {
    if !hub.store.ledger.is_pending(bundle, peer.id) {
        return false;
    }
    let manifest = match hub.store.ledger.manifest(bundle) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return false,
        Err(error) => {
            tracing::error!("{bundle:?} cannot be offered: {error}");
            return false;
        }
    };
    let len = manifest.encoded_len();
    let held = (len > HEAVY).then(|| {
        let purse = peer.purse(&hub.budget);
        hub.runtime.block_on(purse.take(len + INLINE_TOTAL))
    });
    let _one = held.as_ref().map(|_| hub.heavy.blocking_lock());
    let Some(frame) = build(hub, bundle, &manifest, peer.id) else {
        return false;
    };
    // Else a long one would be in memory three times over.
    drop(manifest);
    out.push_held(&frame, urgent, held);
    true
}

/// The offer of `bundle` for `peer`; `None` when it is not owed any more. Blocks on disk.
fn build(hub: &Hub, bundle: BundleId, manifest: &VerifiedManifest, peer: PeerId) -> Option<Frame> {
    // It may have ended while there was no room.
    if !hub.store.ledger.is_pending(bundle, peer) {
        return None;
    }
    let (mut inline, mut total) = (Vec::new(), 0);
    for (index, entry) in manifest.manifest().entries.iter().enumerate() {
        let EntryKind::File { size, digest, .. } = &entry.kind else {
            inline.push(None);
            continue;
        };
        let fits = *size <= INLINE_MAX && total + *size as usize <= INLINE_TOTAL;
        let content = if fits && !hub.store.content.peer_has(peer, *digest) {
            let read = hub
                .store
                .open_content(bundle, index, peer)
                .and_then(|mut c| c.read(0, *size as usize));
            read.map_err(|error| {
                tracing::warn!("{} of {bundle:?} cannot be read: {error}", entry.path);
            })
            .ok()
        } else {
            None
        };
        total += content.as_ref().map_or(0, Bytes::len);
        inline.push(content);
    }
    if let Err(error) = hub.store.set_delivery(bundle, peer, DeliveryState::Offered) {
        tracing::error!("state of {bundle:?} not recorded: {error}");
    }
    hub.store.count_bytes(total as u64, 0);
    Some(Frame::Offer(Box::new(Offer {
        age: hub.store.ledger.age_of(manifest),
        signed: manifest.signed(),
        inline,
    })))
}

/// How we stand to a bundle that `peer` could offer. Blocks on disk, briefly.
pub(crate) fn standing(hub: &Hub, bundle: BundleId, peer: PeerId) -> Standing {
    #[cfg(test)]
    drop(hub.care.stuck.lock());
    if let Some(receipt) = hub.store.ledger.receipt_for(bundle, peer) {
        Standing::Settled(receipt)
    } else if let Some(reason) = hub.store.ledger.ended_as_named(bundle, peer) {
        Standing::Ended(reason.refusal().into())
    } else if hub.fetches.is_running(bundle) {
        Standing::Fetching
    } else if hub.care.is_taken(bundle) {
        Standing::Taking
    } else if hub.store.ledger.is_published_for(bundle, peer) {
        Standing::Published
    } else {
        Standing::Unknown
    }
}

/// What a session has to know of an offer.
pub(crate) fn describe_offer(manifest: &VerifiedManifest, inline: &[Option<Bytes>]) -> Offered {
    let says = manifest.manifest();
    let has = |index: usize| inline.get(index).is_some_and(Option::is_some);
    let absent = |(index, entry): (usize, &crate::bundle::Entry)| entry.size() > 0 && !has(index);
    Offered {
        bundle: manifest.id(),
        origin: says.origin,
        priority: says.priority,
        renames: !says.renamed_from.is_empty(),
        absent: says.entries.iter().enumerate().any(absent),
    }
}

/// Takes an offer: at once in the peer's lane, or by fetching what is missing.
pub(crate) fn receive(
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    (way, offered): (Way, Offered),
    manifest: VerifiedManifest,
    inline: Vec<Option<Bytes>>,
    permit: Held,
) {
    let Offered {
        renames,
        absent: fetches,
        ..
    } = offered;
    let lane = match way {
        Way::Fetch => {
            fetch::start(hub, peer, manifest, inline, permit);
            return;
        }
        Way::Express => peer.express.clone(),
        Way::Intake => peer.intake.clone(),
    };
    // Whoever else has it need not offer it meanwhile.
    let taking = hub.care.taking(manifest.id());
    lane.push(move || {
        let bundle = manifest.id();
        // What was taken for it goes with it, or back before the answer.
        let verdict = if renames && renamed_only(&hub, &manifest) {
            drop(permit);
            Some(Verdict::Taken)
        } else if fetches {
            fetch::start(hub, peer.clone(), manifest, inline, permit);
            None
        } else {
            take_inline(&hub, &peer, manifest, &inline, permit)
        };
        drop(taking);
        if let Some(verdict) = verdict
            && let Some(session) = peer.session()
        {
            drop(
                session
                    .inputs
                    .blocking_send(Input::Verdict(bundle, verdict)),
            );
        }
    });
}

/// Whether the offer only gave a new name to what is, or was, here. Blocks on disk.
fn renamed_only(hub: &Hub, manifest: &VerifiedManifest) -> bool {
    hub.store.renamed_only(manifest).unwrap_or_else(|error| {
        tracing::error!(
            "{} cannot be renamed: {error}",
            describe(manifest.manifest())
        );
        false
    })
}

/// `None` when a fetch has taken over.
fn take_inline(
    hub: &Arc<Hub>,
    peer: &Arc<Peer>,
    manifest: VerifiedManifest,
    inline: &[Option<Bytes>],
    permit: Held,
) -> Option<Verdict> {
    let mut arriving = match open(hub, peer, &manifest) {
        Ok(arriving) => arriving,
        Err(verdict) => return Some(verdict),
    };
    if let Err(error) = feed_inline(hub, &manifest, arriving.as_mut(), inline) {
        return Some(wrong_or_disk(hub, peer, &manifest, arriving, &error));
    }
    let absent = |entry| !arriving.missing(entry).is_empty();
    let is_absent = (0..manifest.manifest().entries.len()).any(absent);
    let has_zeros = match arriving.hash_zeros() {
        Ok(left) => left.is_some(),
        Err(error) => return Some(wrong_or_disk(hub, peer, &manifest, arriving, &error)),
    };
    if is_absent || has_zeros {
        // The peer thought that we had it, or it takes its time.
        arriving.park("waiting to be fetched".into());
        fetch::start(hub.clone(), peer.clone(), manifest, Vec::new(), permit);
        return None;
    }
    Some(publish(hub, peer, &manifest, *arriving))
}

/// [`describe`] of a bundle we hold. Blocks on disk, briefly.
pub(crate) fn describe_held(hub: &Hub, bundle: BundleId) -> Option<String> {
    Some(describe(
        hub.store.ledger.manifest(bundle).ok()??.manifest(),
    ))
}
