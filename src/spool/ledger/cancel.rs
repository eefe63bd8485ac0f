//! Cancels: ending a bundle of our own, honouring the end of those of others, and asking again.
//!
//! # Invariants
//! 1. A bundle whose cancel is in [`CANCELS`] is taken from nobody and published never: both are decided under the
//!    decision lock. What was published before stays, and its receipt is given again.
//! 2. Only a bundle's recipients and its origin are told of its cancel, and only if its signature is the origin's.
//! 3. [`CANCELS_OWED`] has a row for each of them until it says that it has seen the cancel.
//!
//! # Crash behaviour
//! The cancel, the deliveries it ends and who is to be told of it are one batch; [`Spool::cancel`] returns when that is
//! durable. Bytes of a cancelled bundle that are left over are removed when the cancel or an offer is seen again, and
//! at the next start.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;

use crate::bundle::{BundleId, Cancel, CancelReason, DeliveryState, Scope};
use crate::digest::Digest;
use crate::peer::PeerId;
use crate::spool::journal::{Batch, JournalError};
use crate::spool::ledger::Ledger;
use crate::spool::ledger::inbound::{InboundShown, InboundState};
use crate::spool::ledger::tables::{BUNDLES, CANCELS, CANCELS_OWED, HELD, ORPHANS};
use crate::spool::{Event, Spool, SpoolError};

/// What came of a wish to cancel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cancelled {
    /// It goes to so many recipients no more.
    Ended(usize),
    /// It had come to its end with everyone.
    Over,
    /// There is no such bundle of ours.
    Unknown,
}

/// What came of a wish to try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Retried {
    /// So many recipients are asked again.
    Asked(usize),
    /// Nobody waits for it, or is left that refused it.
    Nothing,
    /// Its content is gone, as nobody waited for it any more.
    ContentGone,
    /// There is no such bundle of ours.
    Unknown,
}

impl Ledger {
    /// Why the bundle of `origin` goes no further, if that said so.
    pub(crate) fn ended(&self, bundle: BundleId, origin: PeerId) -> Option<CancelReason> {
        if !self.any_cancel.load(Ordering::Acquire) {
            return None;
        }
        self.cancel_of(bundle, origin)
            .ok()
            .flatten()
            .map(|cancel| cancel.reason)
    }

    /// The same of a bundle that `peer` only names: its own, or one whose origin is known here.
    pub(crate) fn ended_as_named(&self, bundle: BundleId, peer: PeerId) -> Option<CancelReason> {
        if !self.any_cancel.load(Ordering::Acquire) {
            return None;
        }
        let origin = || Some(self.inbound_shown(bundle).ok().flatten()?.origin);
        self.ended(bundle, peer)
            .or_else(|| self.ended(bundle, origin()?))
    }

    /// Anybody can sign a cancel of any id: it counts only together with who signed it.
    fn cancel_of(&self, bundle: BundleId, origin: PeerId) -> Result<Option<Cancel>, SpoolError> {
        Ok(self.journal.row(CANCELS, &(bundle, origin))?)
    }

    fn note_cancel(&self) {
        self.any_cancel.store(true, Ordering::Release);
        self.cancels.fetch_add(1, Ordering::AcqRel);
    }

    /// Cancels that `peer` may not know yet, after this one, at most `limit`.
    pub(crate) fn cancels_owed(
        &self,
        peer: PeerId,
        after: Option<&Cancel>,
        limit: usize,
    ) -> Result<Vec<Cancel>, SpoolError> {
        if !self.any_cancel.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let after = after.map(|cancel| (peer, cancel.bundle, cancel.origin));
        let rows = self
            .journal
            .rows(CANCELS_OWED.below(&peer).after(after.as_ref()), limit)?;
        let mut owed = Vec::with_capacity(rows.len());
        for ((_, bundle, origin), ()) in rows {
            match self.journal.row(CANCELS, &(bundle, origin)) {
                Ok(found) => owed.extend(found),
                // The next start drops it.
                Err(error @ JournalError::Row { .. }) => {
                    tracing::error!("a cancel is passed over: {error}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(owed)
    }

    /// `peer` has these cancels.
    pub(crate) fn cancels_seen(
        &self,
        peer: PeerId,
        bundles: &[BundleId],
    ) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        for bundle in bundles {
            let rows = self
                .journal
                .rows(CANCELS_OWED.below(&(peer, *bundle)), usize::MAX)?;
            for (key, ()) in rows {
                batch.remove(CANCELS_OWED, &key);
            }
        }
        Ok(self.journal.submit(batch)?)
    }

    /// Notes whom we are to tell of a cancel: whom it concerns, but for its origin and who told us. Gives them.
    fn owe_cancel(
        &self,
        cancel: &Cancel,
        from: Option<PeerId>,
        deliveries: &[(PeerId, DeliveryState)],
        batch: &mut Batch,
    ) -> BTreeSet<PeerId> {
        let mut told: BTreeSet<PeerId> = deliveries.iter().map(|(peer, _)| *peer).collect();
        match &cancel.scope {
            Scope::All { .. } => told.extend(self.group.ids()),
            // Whoever is no member here cannot be told by us.
            Scope::Ids(ids) => {
                told.extend(ids.iter().filter(|id| self.group.is_member(**id)));
            }
        }
        told.retain(|peer| {
            let known =
                *peer == self.group.identity.id() || *peer == cancel.origin || Some(*peer) == from;
            !known && cancel.concerns(*peer)
        });
        for peer in &told {
            batch.insert(CANCELS_OWED, &(*peer, cancel.bundle, cancel.origin), &());
        }
        told
    }

    fn coming(&self, bundle: BundleId) -> Option<InboundShown> {
        self.arriving.lock().get(&bundle).cloned()
    }

    /// Nobody is told of these cancels any more; given by their keys.
    pub(in crate::spool) fn forget_owed(
        &self,
        cancels: &HashSet<(BundleId, PeerId)>,
    ) -> Result<(), SpoolError> {
        for row in self.journal.each(CANCELS_OWED) {
            let (key, ()) = row?;
            if cancels.contains(&(key.1, key.2)) {
                let mut batch = Batch::default();
                batch.remove(CANCELS_OWED, &key);
                self.journal.submit(batch)?;
            }
        }
        Ok(())
    }
}

impl Spool {
    /// Ends a bundle of ours: recipients that have not published it never will. Blocks until that is durable.
    pub(crate) fn cancel(&self, bundle: BundleId) -> Result<Cancelled, SpoolError> {
        let outcome = self.end_bundle(bundle, CancelReason::Cancelled)?;
        self.journal.flush()?;
        Ok(outcome)
    }

    /// [`Self::cancel`] without waiting for the disk.
    pub(in crate::spool) fn end_bundle(
        &self,
        bundle: BundleId,
        reason: CancelReason,
    ) -> Result<Cancelled, SpoolError> {
        let decide = self.decide();
        let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
            return Ok(Cancelled::Unknown);
        };
        let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
            return Ok(Cancelled::Unknown);
        };
        let of = manifest.manifest();
        if of.origin != self.identity.id() {
            return Ok(Cancelled::Unknown);
        }
        let orphan: Option<BundleId> = self.journal.row(ORPHANS, &row.head.order)?;
        let deliveries = self.ledger.deliveries_of(bundle)?;
        let open = deliveries
            .iter()
            .filter(|(_, state)| !state.is_final())
            .count();
        let waiting = orphan.is_some() || self.ledger.held_for(bundle).is_some();
        if open == 0 && !waiting {
            return Ok(Cancelled::Over);
        }
        let (scope, lifetime) = (of.scope.clone(), of.lifetime_secs);
        let cancel = Cancel::sign(&self.identity, bundle, reason, scope, lifetime);
        let mut batch = Batch::default();
        batch.insert(CANCELS, &(cancel.bundle, cancel.origin), &cancel);
        self.ledger.keep_cancel(&cancel, &mut batch);
        let told = self
            .ledger
            .owe_cancel(&cancel, None, &deliveries, &mut batch);
        let freed = self.end_deliveries(bundle, &reason.state(), &mut batch)?;
        // Not before: a word that a power loss took back here would still hold there.
        let me = self.me.clone();
        batch.on_durable(move || {
            if let Some(spool) = me.upgrade() {
                for peer in told {
                    spool.doorbell.ring(&Event::PendingChanged(peer));
                }
            }
        });
        self.journal.submit(batch)?;
        self.ledger.note_cancel();
        self.free_ended(freed)?;
        drop(decide);
        tracing::info!(bundle = %bundle.short(), open, "{}", reason.stage());
        self.doorbell.ring(&Event::StatusChanged);
        Ok(Cancelled::Ended(open))
    }

    /// Ends every delivery of a bundle that is open. Gives content that nobody needs then. Call with the decision lock
    /// held.
    fn end_deliveries(
        &self,
        bundle: BundleId,
        state: &DeliveryState,
        batch: &mut Batch,
    ) -> Result<Vec<Digest>, SpoolError> {
        let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
            return Ok(Vec::new());
        };
        batch.remove(ORPHANS, &row.head.order);
        batch.remove(HELD, &bundle);
        self.ledger.unfold(bundle, None, batch)?;
        for (peer, known) in self.ledger.deliveries_of(bundle)? {
            self.ledger
                .end_delivery((bundle, peer), Some(row.rank()), &known, state, batch);
            self.ledger.progress.lock().remove(&(bundle, peer));
        }
        self.release_rows(bundle, batch)
    }

    fn free_ended(&self, freed: Vec<Digest>) -> Result<(), SpoolError> {
        freed
            .into_iter()
            .try_for_each(|digest| self.content.free(digest))
    }

    /// `from` shows us a cancel. `false`: it is forged, or none of our business.
    pub(crate) fn take_cancel(&self, cancel: &Cancel, from: PeerId) -> Result<bool, SpoolError> {
        let me = self.identity.id();
        if !cancel.concerns(me) || !cancel.concerns(from) || !cancel.is_genuine() {
            return Ok(false);
        }
        // No bundle for so many was taken here, so none has to be ended.
        if self.group.too_many_recipients(&cancel.scope).is_some() {
            return Ok(false);
        }
        let bundle = cancel.bundle;
        let decide = self.decide();
        let settled = self.ledger.settled(bundle)?;
        let known = self.ledger.cancel_of(bundle, cancel.origin)?.is_some();
        let shown = self
            .ledger
            .inbound_shown(bundle)?
            .or_else(|| self.ledger.coming(bundle));
        let too_late = settled.is_some() || self.inbox.publishing.is_shown(bundle);
        let shown = shown.filter(|row| row.origin == cancel.origin && !too_late);
        let mut told = BTreeSet::new();
        if !known {
            let mut batch = Batch::default();
            batch.insert(CANCELS, &(cancel.bundle, cancel.origin), cancel);
            self.ledger.keep_cancel(cancel, &mut batch);
            let held = self.ledger.shared_manifest(bundle)?;
            let held = held.is_some_and(|held| held.manifest().origin == cancel.origin);
            let (mut deliveries, mut freed) = (Vec::new(), Vec::new());
            if held {
                deliveries = self.ledger.deliveries_of(bundle)?;
                freed = self.end_deliveries(bundle, &cancel.reason.state(), &mut batch)?;
            }
            told = self
                .ledger
                .owe_cancel(cancel, Some(from), &deliveries, &mut batch);
            if let Some(mut row) = shown.clone() {
                row.state = InboundState::Ended(cancel.reason);
                row.error = None;
                self.ledger.show_inbound(&row, &mut batch)?;
            }
            self.journal.submit(batch)?;
            self.ledger.note_cancel();
            self.free_ended(freed)?;
        }
        // Whoever publishes it finds that it has ended, and removes what arrived.
        if shown.is_some() && !self.inbox.publishing.has(bundle) {
            self.content.discard_partial(bundle)?;
        }
        let volatile = self.ledger.volatile.lock().contains(&bundle);
        drop(decide);
        self.give_to_nobody(cancel)?;
        for peer in told {
            self.doorbell.ring(&Event::PendingChanged(peer));
        }
        // Too late: the origin is to hear of the receipt, whatever it has heard before.
        if let Some(receipt) = settled.filter(|r| !volatile && r.origin == from) {
            self.doorbell.ring(&Event::ReceiptReady(receipt));
        }
        self.doorbell.ring(&Event::StatusChanged);
        Ok(true)
    }

    /// What we keep of it for others is given to none of them, nor to who joins later.
    fn give_to_nobody(&self, cancel: &Cancel) -> Result<(), SpoolError> {
        let bundle = cancel.bundle;
        let kept = self.ledger.kept(bundle)?;
        if kept.is_none_or(|kept| kept.manifest().origin != cancel.origin) {
            return Ok(());
        }
        self.custodian.give_no_more(bundle, cancel.origin)
    }

    /// Asks recipients again that refused or put off the bundle, or only `peer`.
    pub(crate) fn retry(
        &self,
        bundle: BundleId,
        peer: Option<PeerId>,
    ) -> Result<Retried, SpoolError> {
        let decide = self.decide();
        let Some(row) = self.journal.row(BUNDLES, &bundle)? else {
            return Ok(Retried::Unknown);
        };
        if self.ledger.cancel_of(bundle, self.identity.id())?.is_some() {
            return Ok(Retried::Nothing);
        }
        let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
            return Ok(Retried::Unknown);
        };
        let wanted = |state: &DeliveryState| match state {
            DeliveryState::Queued
            | DeliveryState::Offered
            | DeliveryState::Sending(_)
            | DeliveryState::Deferred(_)
            | DeliveryState::Refused(_) => true,
            DeliveryState::Delivered
            | DeliveryState::Cancelled
            | DeliveryState::Superseded
            | DeliveryState::Expired => false,
        };
        let again: Vec<(PeerId, DeliveryState)> = self
            .ledger
            .deliveries_of(bundle)?
            .into_iter()
            .filter(|(id, state)| peer.is_none_or(|peer| peer == *id) && wanted(state))
            .collect();
        if again.is_empty() {
            return Ok(Retried::Nothing);
        }
        if !self.content.has_all(manifest.manifest()) {
            return Ok(Retried::ContentGone);
        }
        let mut batch = Batch::default();
        for (id, state) in &again {
            if state.is_final() {
                let (rank, ends) = (row.rank(), row.head.ends);
                self.ledger.queue((bundle, *id), rank, ends, &mut batch);
            }
            self.ledger.progress.lock().remove(&(bundle, *id));
        }
        let needs = manifest.manifest().digests();
        self.content.begin_need(bundle, needs, &mut batch);
        self.ledger
            .renew_deadline(bundle, manifest.manifest().lifetime_secs, &mut batch)?;
        self.journal.submit(batch)?;
        drop(decide);
        for (id, _) in &again {
            self.doorbell.ring(&Event::Retry(bundle, *id));
        }
        self.doorbell.ring(&Event::StatusChanged);
        Ok(Retried::Asked(again.len()))
    }
}
