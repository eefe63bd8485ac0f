//! Whom we owe what: members, pending bundles, receipts, and content for those who may have it.
//!
//! # Invariants
//! 1. `PENDING` has a row for exactly the (peer, bundle) pairs whose delivery is not final.
//! 2. Bytes are opened only for a recipient of a bundle of ours with that content.
//! 3. A bundle all of whose deliveries are final needs its content no longer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{
    BundleId, DeliveryState, Manifest, Priority, Receipt, Scope, VerifiedManifest,
};
use crate::digest::Digest;
use crate::peer::{PeerId, PeerName};
use crate::spool::journal::Batch;
use crate::spool::keys::Ends;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::inbound::{InboundShown, InboundState};
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::tables::{BUNDLES, DEADLINES, PENDING};
use crate::spool::{Event, Spool, SpoolError};

/// A manifest with more entries than this is kept decoded while it is in use.
const LARGE_MANIFEST: usize = 16;

/// One with more bytes is, too.
const LARGE_BYTES: usize = 4096;

fn is_large(manifest: &VerifiedManifest) -> bool {
    manifest.manifest().entries.len() > LARGE_MANIFEST
}

/// How many of those are kept.
const LARGE_KEPT: usize = 4;

impl Ledger {
    /// What is owed again after it was final for everybody has its whole lifetime from now on: its deadline went then.
    pub(in crate::spool) fn renew_deadline(
        &self,
        bundle: BundleId,
        lifetime: u64,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if self.is_open(bundle)? {
            return self.look_out_for(bundle);
        }
        self.set_deadline(bundle, lifetime, batch);
        Ok(())
    }

    /// Bundles we owe `peer`, oldest first, with a cursor: pass the last one's to go on. At most `limit`.
    pub(crate) fn pending(
        &self,
        peer: PeerId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, BundleId)>, SpoolError> {
        let mut rows = Vec::new();
        let after = after.unwrap_or(Rank::FIRST - 1);
        let begun = after >= Rank::FIRST - 1;
        if begun {
            rows = self.pending_rows(peer, Some(after), limit)?;
        }
        if rows.len() < limit {
            let after = (!begun).then_some(after);
            let mut rest = self.pending_rows(peer, after, limit - rows.len())?;
            rest.retain(|(rank, _)| !Rank(*rank).is_urgent());
            rows.append(&mut rest);
        }
        Ok(rows)
    }

    /// What is owed in the order of the keys.
    fn pending_rows(
        &self,
        peer: PeerId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, BundleId)>, SpoolError> {
        let after = after.map(|rank| (peer, Rank(rank)));
        let rows = self
            .journal
            .rows(PENDING.below(&peer).after(after.as_ref()), limit)?;
        let rows = rows.into_iter();
        Ok(rows
            .map(|((_, rank), (bundle, _))| (rank.0, bundle))
            .collect())
    }

    /// How many bundles we owe `peer`, counted up to 10,000.
    pub(crate) fn pending_count(&self, peer: PeerId) -> u64 {
        self.pending(peer, None, 10_000)
            .map_or(0, |rows| rows.len() as u64)
    }

    /// Whether we still owe this bundle to `peer`.
    pub(crate) fn is_pending(&self, bundle: BundleId, peer: PeerId) -> bool {
        let state = self.delivery(bundle, peer);
        state.ok().flatten().is_some_and(|state| !state.is_final()) && !self.is_over_age(bundle)
    }

    /// The manifest of a bundle of ours, or of one of another that is kept.
    pub(crate) fn manifest(
        &self,
        bundle: BundleId,
    ) -> Result<Option<VerifiedManifest>, SpoolError> {
        let shared = self.shared_manifest(bundle)?;
        Ok(shared.map(Arc::unwrap_or_clone))
    }

    /// How urgent a bundle is that is held here.
    pub(crate) fn priority(&self, bundle: BundleId) -> Option<Priority> {
        let manifest = self.shared_manifest(bundle).ok().flatten()?;
        Some(manifest.manifest().priority)
    }

    /// [`Self::manifest`] without a copy. The last large ones are kept: its files are asked for one by one.
    pub(in crate::spool) fn shared_manifest(
        &self,
        bundle: BundleId,
    ) -> Result<Option<Arc<VerifiedManifest>>, SpoolError> {
        if let Some(kept) = self.kept_manifest(bundle) {
            return Ok(Some(kept));
        }
        let found = self.read_manifest(bundle)?.map(Arc::new);
        // Also one of many chunks: each of them is a request.
        if let Some(manifest) = &found
            && (is_large(manifest) || manifest.encoded_len() > LARGE_BYTES)
        {
            let mut kept = self.large_manifests.lock();
            kept.truncate(LARGE_KEPT - 1);
            kept.insert(0, Arc::clone(manifest));
        }
        Ok(found)
    }

    fn kept_manifest(&self, bundle: BundleId) -> Option<Arc<VerifiedManifest>> {
        let kept = self.large_manifests.lock();
        kept.iter().find(|kept| kept.id() == bundle).cloned()
    }

    fn read_manifest(&self, bundle: BundleId) -> Result<Option<VerifiedManifest>, SpoolError> {
        let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
            return self.kept(bundle);
        };
        row.signed
            .verify_own()
            .map(Some)
            .map_err(|e| SpoolError::Corrupted(e.to_string()))
    }

    /// Shows in status that an offer was refused, deferred or quarantined. Waits for who decides.
    pub(crate) fn note_inbound(
        &self,
        manifest: &Manifest,
        bundle: BundleId,
        state: InboundState,
        error: Option<String>,
    ) {
        let Some(path) = manifest.title() else {
            return;
        };
        // Another session may settle or end it at this moment, and that stands in the same row.
        let decide = self.decide();
        let ended = self
            .ended(bundle, manifest.origin)
            .map(|reason| (InboundState::Ended(reason), None));
        let (state, error) = ended.unwrap_or((state, error));
        let row = InboundShown {
            bundle,
            origin: manifest.origin,
            path,
            digest: manifest.single_digest(),
            size: manifest.total_size(),
            state,
            error,
            at: 0,
        };
        if self.settled(bundle).is_ok_and(|receipt| receipt.is_some()) {
            return;
        }
        let mut batch = Batch::default();
        let shown = match row.state == InboundState::Contradicts {
            true => self.end_inbound(&row, manifest, None, &mut batch),
            false => self.show_inbound(&row, &mut batch),
        };
        if let Err(error) = shown.and_then(|_| Ok(self.journal.submit(batch)?)) {
            tracing::error!(%error, "cannot record the state of an offer");
        }
        drop(decide);
        if !row.is_open() {
            self.history.ended();
        }
        self.doorbell.ring(&Event::StatusChanged);
    }

    /// Of bundles of ours that `asker` may know of, those that are final for everybody, and those that are not.
    pub(crate) fn closed_of(
        &self,
        asker: PeerId,
        bundles: &[BundleId],
    ) -> Result<(Vec<BundleId>, Vec<BundleId>), SpoolError> {
        let (mut closed, mut open) = (Vec::new(), Vec::new());
        for bundle in bundles {
            let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
                continue;
            };
            let manifest = row.signed.verify_own();
            if !manifest.is_ok_and(|manifest| manifest.manifest().is_for(asker)) {
                continue;
            }
            let deliveries = self.deliveries_of(*bundle)?;
            if !deliveries.is_empty() && deliveries.iter().all(|(_, state)| state.is_final()) {
                closed.push(*bundle);
            } else {
                open.push(*bundle);
            }
        }
        Ok((closed, open))
    }

    /// Whether it is a bundle of many files that was used of late.
    pub(in crate::spool) fn has_large(&self, bundle: BundleId) -> bool {
        self.kept_manifest(bundle).is_some_and(|m| is_large(&m))
    }

    /// The bundle of ours before this one with the content of its one file.
    pub(in crate::spool) fn same_content(
        &self,
        bundle: BundleId,
    ) -> Result<Option<BundleId>, SpoolError> {
        let head = self.head(bundle)?;
        Ok(head.and_then(|head| head.same_content))
    }
}

impl Spool {
    /// A peer proved membership (`contact`), or a member told us of one. A new member gets what is current pending.
    /// Addresses replace the known ones on contact, and add to them otherwise.
    pub(crate) fn member_seen(
        &self,
        id: PeerId,
        name: &PeerName,
        addrs: &[SocketAddr],
        contact: bool,
    ) -> Result<(), SpoolError> {
        if id == self.identity.id() || self.group.is_out(id) {
            return Ok(());
        }
        if contact {
            self.group.bind()?;
        }
        let decide = self.decide();
        let Some(seen) = decide.group.seen(id, name, addrs, contact)? else {
            return Ok(());
        };
        drop(decide);
        if seen.claimed {
            self.release_held()?;
        }
        if seen.new {
            self.give_current(id)?;
        }
        if seen.told {
            self.doorbell.ring(&Event::MembersChanged);
        }
        if seen.new {
            tracing::info!(peer = %name, id = %id.short(), "new member");
            self.doorbell.ring(&Event::PendingChanged(id));
        }
        Ok(())
    }

    /// Owes the bundle to every member that it was not promised to yet; gives those. Call with the decision lock held.
    pub(in crate::spool) fn owe_everybody(
        &self,
        bundle: BundleId,
        batch: &mut Batch,
    ) -> Result<Vec<PeerId>, SpoolError> {
        let members = self.group.ids();
        let mut owed = Vec::new();
        for peer in members {
            if self.owe(peer, bundle, batch)? {
                owed.push(peer);
            }
        }
        Ok(owed)
    }

    /// `false`: it was promised before, or is not for everybody.
    pub(in crate::spool) fn owe(
        &self,
        peer: PeerId,
        bundle: BundleId,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        if self.group.is_out(peer) {
            return Ok(false);
        }
        let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
            return Ok(false);
        };
        if self.ledger.delivery(bundle, peer)?.is_some() {
            return Ok(false);
        }
        let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
            return Ok(false);
        };
        if !matches!(manifest.manifest().scope, Scope::All { .. })
            || self.ledger.ended(bundle, self.identity.id()).is_some()
        {
            return Ok(false);
        }
        let (rank, ends) = (row.rank(), row.head.ends);
        self.ledger.unfold(bundle, None, batch)?;
        self.ledger.queue((bundle, peer), rank, ends, batch);
        self.content
            .begin_need(bundle, manifest.manifest().digests(), batch);
        self.ledger
            .renew_deadline(bundle, manifest.manifest().lifetime_secs, batch)?;
        Ok(true)
    }

    /// A recipient's receipt arrived, from whoever had it. `false`: it is forged, or nobody waits for it. After a failed
    /// sync none is taken, since it could not be kept; who gave it gives it again after the next start.
    pub(crate) fn take_receipt(&self, receipt: &Receipt) -> Result<bool, SpoolError> {
        self.journal.still_keeps()?;
        if receipt.origin != self.identity.id() {
            return self.custodian.take_others_receipt(receipt);
        }
        if !receipt.is_genuine() {
            return Ok(false);
        }
        let taken =
            self.finish_delivery(receipt.bundle, receipt.recipient, DeliveryState::Delivered)?;
        if taken {
            self.counters.receipts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(taken)
    }

    /// How a delivery stands, other than delivered. Final states are made durable, others only shown.
    pub(crate) fn set_delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
        state: DeliveryState,
    ) -> Result<(), SpoolError> {
        if state.is_final() {
            return self.finish_delivery(bundle, peer, state).map(drop);
        }
        let mut progress = self.ledger.progress.lock();
        if state == DeliveryState::Queued {
            progress.remove(&(bundle, peer))
        } else {
            progress.insert((bundle, peer), state)
        };
        drop(progress);
        // It may have come to its end meanwhile; that is recorded before the entry is taken away.
        if !self.ledger.is_pending(bundle, peer) {
            self.ledger.progress.lock().remove(&(bundle, peer));
        }
        self.doorbell.ring(&Event::StatusChanged);
        Ok(())
    }

    fn finish_delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
        state: DeliveryState,
    ) -> Result<bool, SpoolError> {
        let decide = self.decide();
        let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
            drop(decide);
            return self.custodian.carried_ended(bundle, peer, state);
        };
        let key = (bundle, peer);
        let known = match self.ledger.delivery(bundle, peer)? {
            Some(known) => known,
            // Another holder gave it to a member that joined later.
            None if state == DeliveryState::Delivered && self.may_have(bundle, peer)? => {
                DeliveryState::Queued
            }
            None => return Ok(false),
        };
        let mut closed = false;
        let mut batch = Batch::default();
        self.ledger.unfold(bundle, Some(peer), &mut batch)?;
        if self
            .ledger
            .end_delivery(key, Some(row.rank()), &known, &state, &mut batch)
        {
            let others = self.ledger.deliveries_of(bundle)?;
            let complete = others
                .iter()
                .all(|(other, state)| *other == peer || state.is_final());
            closed = complete && others.len() > 1;
            // In one batch: a kill in between would keep the content for ever.
            let freed = if complete {
                self.release_rows(bundle, &mut batch)?
            } else {
                Vec::new()
            };
            self.journal.submit(batch)?;
            freed
                .into_iter()
                .try_for_each(|digest| self.content.free(digest))?;
        }
        self.ledger.progress.lock().remove(&(bundle, peer));
        drop(decide);
        self.doorbell.ring(&Event::StatusChanged);
        if closed {
            self.doorbell.ring(&Event::Closed(bundle));
        }
        Ok(true)
    }

    /// Whether a member that a bundle of ours was not promised to may have it.
    fn may_have(&self, bundle: BundleId, peer: PeerId) -> Result<bool, SpoolError> {
        let manifest = self.ledger.shared_manifest(bundle)?;
        let is_for = manifest.is_some_and(|manifest| manifest.manifest().is_for(peer));
        Ok(is_for && self.group.is_member(peer))
    }

    /// The rows that say that a bundle, all of whose deliveries are final, needs its content no longer. Gives that
    /// content. Call with the decision lock held.
    pub(in crate::spool) fn release_rows(
        &self,
        bundle: BundleId,
        batch: &mut Batch,
    ) -> Result<Vec<Digest>, SpoolError> {
        let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
            return Ok(Vec::new());
        };
        self.ledger.ends_with(batch);
        if self
            .journal
            .row(DEADLINES, &Ends::Bundle(bundle))?
            .is_some()
        {
            batch.remove(DEADLINES, &Ends::Bundle(bundle));
        }
        self.outbox
            .tells_no_more(bundle, manifest.manifest(), batch)?;
        self.outbox.completed(bundle, manifest.manifest(), batch)?;
        Ok(self
            .content
            .end_need(bundle, manifest.manifest().digests(), batch))
    }

    /// Adds to the byte counters.
    pub(crate) fn count_bytes(&self, sent: u64, received: u64) {
        self.counters.bytes_sent.fetch_add(sent, Ordering::Relaxed);
        self.counters
            .bytes_received
            .fetch_add(received, Ordering::Relaxed);
    }
}
