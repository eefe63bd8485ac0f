//! Tables of the ledger, for tests that count rows or put some there.

use super::Ledger;
use super::inbound::Inbound;
use super::rank::Rank;
use super::settled::{Block, BlockKey};
use super::tables;
use crate::bundle::{BundleId, Cancel, DeliveryState, SignedManifest};
use crate::journal::{Batch, Table};
use crate::peer::PeerId;
use crate::spool::keys::Ends;

use super::tables::{BundleRow, KeptHead, KeptRow};

pub(in crate::spool) const BUNDLES: Table<BundleId, BundleRow> = tables::BUNDLES;
pub(in crate::spool) const DELIVERIES: Table<(BundleId, PeerId), DeliveryState> =
    tables::DELIVERIES;
pub(in crate::spool) const PENDING: Table<(PeerId, Rank), (BundleId, u64)> = tables::PENDING;
pub(in crate::spool) const SETTLED_BITS: Table<BlockKey, Block> = tables::SETTLED_BITS;
pub(in crate::spool) const REFUSED_BITS: Table<BlockKey, Block> = tables::REFUSED_BITS;
pub(in crate::spool) const SCOPED: Table<BundleId, Vec<PeerId>> = tables::SCOPED;
pub(in crate::spool) const INBOUND: Table<BundleId, Inbound> = tables::INBOUND;
pub(in crate::spool) const CANCELS: Table<(BundleId, PeerId), Cancel> = tables::CANCELS;
pub(in crate::spool) const CANCELS_OWED: Table<(PeerId, BundleId, PeerId), ()> =
    tables::CANCELS_OWED;
pub(in crate::spool) const DEADLINES: Table<Ends, u64> = tables::DEADLINES;
pub(in crate::spool) const KEPT: Table<BundleId, KeptRow> = tables::KEPT;

/// A row of [`KEPT`].
pub(in crate::spool) fn kept_row(signed: SignedManifest, order: u64) -> KeptRow {
    KeptRow {
        head: KeptHead {
            order,
            ends: u64::MAX,
        },
        signed,
    }
}

impl Ledger {
    /// All bundles of ours were sealed when `clock` says, which is told when they were.
    pub(in crate::spool) fn reclock(&self, clock: impl Fn(u64) -> u64) {
        let mut batch = Batch::default();
        for (key, mut row) in self.journal.rows(BUNDLES.all(), usize::MAX).unwrap() {
            row.head.sealed_at = clock(row.head.sealed_at);
            batch.insert(BUNDLES, &key, &row);
        }
        self.journal.submit(batch).unwrap();
    }

    /// How many deliveries are in motion.
    pub(in crate::spool) fn moving(&self) -> usize {
        self.progress.lock().len()
    }
}
