//! Deliveries: how each bundle stands with each of its recipients.
//!
//! # Invariants
//! 1. A delivery ends once. Ends that compete for it (a receipt, a cancel, a newer version, its age, a member that is given
//!    up) meet in [`Ledger::end_delivery`]; only a receipt may come after another end, since it tells the truth.
//! 2. What is owed has a row in [`PENDING`], which goes with the end.
//! 3. Of few recipients the row of a small bundle says that they are owed it, until something else becomes of one delivery:
//!    then all have rows in [`DELIVERIES`]. So a bundle has rows for all its recipients, or for none.

use crate::bundle::{BundleId, DeliveryState};
use crate::journal::Batch;
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::tables::{BUNDLES, BundleHead, DELIVERIES, PENDING};

/// Most recipients of one bundle that are looked at.
const RECIPIENTS_MAX: usize = 100_000;

/// Most recipients that the row of a bundle names.
const NAMED_MAX: usize = 16;

impl Ledger {
    /// The bundle is owed to `peer`, at this place in its queue. Of one of ours: `ends` is what its row says.
    pub(in crate::spool) fn queue(
        &self,
        (bundle, peer): (BundleId, PeerId),
        rank: Rank,
        ends: u64,
        batch: &mut Batch,
    ) {
        batch.insert(DELIVERIES, &(bundle, peer), &DeliveryState::Queued);
        batch.insert(PENDING, &(peer, rank), &(bundle, ends));
    }

    /// A new bundle of ours is owed to `recipients`. Gives whom its row is to name: if it is `small`, few recipients need
    /// nothing else.
    pub(super) fn queue_first(
        &self,
        (bundle, small): (BundleId, bool),
        recipients: &[PeerId],
        rank: Rank,
        ends: u64,
        batch: &mut Batch,
    ) -> Vec<PeerId> {
        let named = small && recipients.len() <= NAMED_MAX;
        for peer in recipients {
            match named {
                true => batch.insert(PENDING, &(*peer, rank), &(bundle, ends)),
                false => self.queue((bundle, *peer), rank, ends, batch),
            }
        }
        match named {
            true => recipients.to_vec(),
            false => Vec::new(),
        }
    }

    /// Something becomes of a delivery of this bundle: from now on each recipient has a row, but for `except`, which is about
    /// to get another.
    pub(super) fn unfold(
        &self,
        bundle: BundleId,
        except: Option<PeerId>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for peer in self.named(bundle)? {
            if Some(peer) != except {
                batch.insert(DELIVERIES, &(bundle, peer), &DeliveryState::Queued);
            }
        }
        Ok(())
    }

    /// Whom a bundle of ours is owed to by its own row alone.
    fn named(&self, bundle: BundleId) -> Result<Vec<PeerId>, SpoolError> {
        if !self.journal.keys(DELIVERIES.below(&bundle), 1)?.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.head(bundle)?.map(|head| head.to).unwrap_or_default())
    }

    /// What is known of a bundle of ours besides its manifest.
    pub(super) fn head(&self, bundle: BundleId) -> Result<Option<BundleHead>, SpoolError> {
        Ok(self.journal.row(BUNDLES.heads::<BundleHead>(), &bundle)?)
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
        if let Some(state) = self.journal.row(DELIVERIES, &(bundle, peer))? {
            return Ok(Some(state));
        }
        let is_named = self.named(bundle)?.contains(&peer);
        Ok(is_named.then_some(DeliveryState::Queued))
    }

    /// Every recipient of a bundle of ours with its state.
    pub(in crate::spool) fn deliveries_of(
        &self,
        bundle: BundleId,
    ) -> Result<Vec<(PeerId, DeliveryState)>, SpoolError> {
        let rows = self
            .journal
            .rows(DELIVERIES.below(&bundle), RECIPIENTS_MAX)?;
        if rows.is_empty() {
            let named = self.named(bundle)?.into_iter();
            return Ok(named.map(|peer| (peer, DeliveryState::Queued)).collect());
        }
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
