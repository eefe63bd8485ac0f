//! Deliveries: how each bundle stands with each of its recipients.
//!
//! # Invariants
//! 1. A delivery ends once. Ends that compete for it (a receipt, a cancel, a newer version, its age, a member that is given
//!    up) meet in [`Ledger::end_delivery`]; only a receipt may come after another end, since it tells the truth.
//! 2. What is owed has a row in [`PENDING`], which goes with the end.

use crate::bundle::{BundleId, DeliveryState};
use crate::journal::Batch;
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::tables::{DELIVERIES, PENDING};

/// Most recipients of one bundle that are looked at.
const RECIPIENTS_MAX: usize = 100_000;

impl Ledger {
    /// The bundle is owed to `peer`, at this place in its queue.
    pub(in crate::spool) fn queue(
        &self,
        bundle: BundleId,
        peer: PeerId,
        rank: Rank,
        batch: &mut Batch,
    ) {
        batch.insert(DELIVERIES, &(bundle, peer), &DeliveryState::Queued);
        batch.insert(PENDING, &(peer, rank), &bundle);
    }

    /// A delivery that is at `known` comes to `end`, unless it has come to one before: `false`. Nothing undoes a receipt; a
    /// receipt itself counts whatever came before it.
    pub(in crate::spool) fn end_delivery(
        &self,
        delivery: (BundleId, PeerId),
        rank: Option<Rank>,
        known: &DeliveryState,
        end: &DeliveryState,
        batch: &mut Batch,
    ) -> bool {
        let ends = match known {
            DeliveryState::Delivered => false,
            known => !known.is_final() || *end == DeliveryState::Delivered,
        };
        if ends {
            batch.insert(DELIVERIES, &delivery, end);
            if let Some(rank) = rank {
                batch.remove(PENDING, &(delivery.1, rank));
            }
        }
        ends
    }

    /// It is not in motion any more.
    pub(in crate::spool) fn moves_no_more(&self, bundle: BundleId, peer: PeerId) {
        self.progress.lock().remove(&(bundle, peer));
    }

    /// How a bundle stands with `peer`; `None`: it is not promised to it.
    pub(in crate::spool) fn delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
    ) -> Result<Option<DeliveryState>, SpoolError> {
        Ok(self.journal.row(DELIVERIES, &(bundle, peer))?)
    }

    /// Every recipient of a bundle of ours with its state.
    pub(in crate::spool) fn deliveries_of(
        &self,
        bundle: BundleId,
    ) -> Result<Vec<(PeerId, DeliveryState)>, SpoolError> {
        let rows = self
            .journal
            .rows(DELIVERIES.below(&bundle), RECIPIENTS_MAX)?;
        let rows = rows.into_iter();
        Ok(rows.map(|((_, peer), state)| (peer, state)).collect())
    }

    /// The same as users are shown it: what is in motion, and nothing that the next start would not know.
    pub(in crate::spool) fn deliveries_shown(
        &self,
        bundle: BundleId,
    ) -> Result<Vec<(PeerId, DeliveryState)>, SpoolError> {
        let mut deliveries = self.deliveries_of(bundle)?;
        for (peer, state) in &mut deliveries {
            if self.journal.is_lost(DELIVERIES, &(bundle, *peer)) {
                *state = DeliveryState::Queued;
            }
            if !state.is_final()
                && let Some(moving) = self.progress.lock().get(&(bundle, *peer))
            {
                *state = moving.clone();
            }
        }
        Ok(deliveries)
    }
}
