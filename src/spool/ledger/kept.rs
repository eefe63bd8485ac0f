//! Bundles of others that are kept here for further recipients.
//!
//! # Invariants
//! 1. A row and its deadline go together; that of a long manifest has a row of its own.

use crate::bundle::{BundleId, DeliveryState, SignedManifest, VerifiedManifest};
use crate::journal::{Batch, JournalError};
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::keys::Ends;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::tables::{
    DEADLINES, DELIVERIES, KEPT, KeptHead, KeptRow, PENDING, SMALL,
};

/// Orders of bundles of others in `PENDING` have this bit: they come after ours.
const OF_OTHERS: u64 = 1 << 55;

/// Whether a place in `PENDING` is that of a bundle of ours.
pub(super) fn is_ours(order: u64) -> bool {
    order & OF_OTHERS == 0
}

impl Ledger {
    /// The manifest of a bundle of another that is kept.
    pub(in crate::spool) fn kept(
        &self,
        bundle: BundleId,
    ) -> Result<Option<VerifiedManifest>, SpoolError> {
        let row = self.journal.row(KEPT, &bundle)?;
        row.map(|row| row.signed.verify_own())
            .transpose()
            .map_err(|e| SpoolError::Corrupted(e.to_string()))
    }

    pub(in crate::spool) fn kept_rank(&self, bundle: BundleId) -> Result<Option<Rank>, SpoolError> {
        let row = self.journal.row(KEPT, &bundle)?;
        Ok(row.map(|row| Rank::of(row.signed.priority(), row.head.order)))
    }

    /// Whom a bundle of ours is for.
    pub(crate) fn recipients(&self, bundle: BundleId) -> Vec<PeerId> {
        let deliveries = self.deliveries_of(bundle).unwrap_or_default();
        deliveries.into_iter().map(|(peer, _)| peer).collect()
    }

    /// A bundle of another, which is `order`th of those that came, is kept from now on, for as long as its lifetime says.
    pub(in crate::spool) fn keep(
        &self,
        manifest: &VerifiedManifest,
        order: u64,
        batch: &mut Batch,
    ) {
        let signed = manifest.signed();
        let order = OF_OTHERS | order;
        let (bundle, ends) = (manifest.id(), self.age_kept(manifest));
        if manifest.encoded_len() > SMALL {
            batch.insert(DEADLINES, &Ends::Bundle(bundle), &ends);
        }
        let row = KeptRow {
            head: KeptHead { order, ends },
            signed,
        };
        batch.insert(KEPT, &bundle, &row);
    }

    /// It is kept no longer.
    pub(in crate::spool) fn keep_no_more(&self, bundle: BundleId, batch: &mut Batch) {
        batch.remove(KEPT, &bundle);
        batch.remove(DEADLINES, &Ends::Bundle(bundle));
    }

    /// What is kept, as it was signed, in the order of the ids.
    pub(in crate::spool) fn all_kept(
        &self,
        after: Option<&BundleId>,
        limit: usize,
    ) -> Result<Vec<(BundleId, SignedManifest)>, JournalError> {
        let rows = self.journal.rows(KEPT.all().after(after), limit)?;
        let signed = |(bundle, row): (BundleId, KeptRow)| (bundle, row.signed);
        Ok(rows.into_iter().map(signed).collect())
    }

    /// The bundle is for `peer`, which is not owed it yet.
    pub(in crate::spool) fn promise(&self, bundle: BundleId, peer: PeerId, batch: &mut Batch) {
        batch.insert(DELIVERIES, &(bundle, peer), &DeliveryState::Queued);
    }

    /// Undoes [`Self::promise`], and what was owed, if anything.
    pub(in crate::spool) fn take_back(
        &self,
        bundle: BundleId,
        peer: PeerId,
        rank: Option<Rank>,
        batch: &mut Batch,
    ) {
        batch.remove(DELIVERIES, &(bundle, peer));
        if let Some(rank) = rank {
            batch.remove(PENDING, &(peer, rank));
        }
        self.moves_no_more(bundle, peer);
    }
}
