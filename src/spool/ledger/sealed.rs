//! Bundles of ours, from their seal until they are forgotten.

use crate::bundle::{BundleId, DeliveryState};
use crate::journal::Batch;
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::keys::{Ends, Newest};
use crate::spool::ledger::Ledger;
use crate::spool::ledger::tables::DEADLINES;
use crate::spool::tables::{BUNDLES, DELIVERIES, HELD, OUT_ORDER};

/// Most recipients of one bundle that are looked at.
const RECIPIENTS_MAX: usize = 100_000;

impl Ledger {
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

    /// All rows of a bundle of ours go, which has this place among them and which nobody waits for.
    pub(in crate::spool) fn forget(
        &self,
        bundle: BundleId,
        order: u64,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for (peer, _) in self.deliveries_of(bundle)? {
            batch.remove(DELIVERIES, &(bundle, peer));
        }
        batch.remove(HELD, &bundle);
        batch.remove(BUNDLES, &bundle);
        batch.remove(OUT_ORDER, &Newest(order));
        batch.remove(DEADLINES, &Ends::Bundle(bundle));
        Ok(())
    }
}
