//! Bundles of others as status shows them.
//!
//! # Invariants
//! 1. A row keeps its place among all of them from the first offer on, whatever becomes of its bundle.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, CancelReason, Manifest, Receipt, RelPath};
use crate::digest::Digest;
use crate::journal::Batch;
use crate::peer::PeerId;
use crate::spool::keys::Newest;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::settled::Seq;
use crate::spool::ledger::tables::{IN_ORDER, INBOUND};
use crate::spool::{SpoolError, now_secs};

/// How far a bundle of another is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum InboundState {
    Incoming,
    Deferred,
    /// What came does not hash to what its manifest says.
    Quarantined,
    Refused,
    /// Refused, and never to be looked at again: its origin contradicts itself in it.
    Contradicts,
    /// Its origin does not owe it to us any more.
    Withdrawn,
    /// Its origin ended it.
    Ended(CancelReason),
    Received,
    /// The user removed what it showed.
    Consumed,
    /// Its file has other bytes than were received.
    Damaged,
}

/// A bundle of another as status shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct InboundShown {
    pub(in crate::spool) bundle: BundleId,
    pub(in crate::spool) origin: PeerId,
    pub(in crate::spool) path: RelPath,
    pub(in crate::spool) digest: Option<Digest>,
    pub(in crate::spool) size: u64,
    pub(in crate::spool) state: InboundState,
    pub(in crate::spool) error: Option<String>,
    /// When it was recorded, in seconds since 1970.
    pub(in crate::spool) at: u64,
}

/// What is known of a bundle of another besides what status shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct Inbound {
    /// Its place in [`IN_ORDER`].
    pub(super) order: u64,
    /// What it is found by when this row is gone, if it was settled or refused for good.
    pub(super) seq: Option<Seq>,
    /// Ours, if it is settled here.
    pub(super) receipt: Option<Receipt>,
}

impl InboundShown {
    /// All its bytes came.
    pub(in crate::spool) fn is_here(&self) -> bool {
        matches!(self.state, InboundState::Received | InboundState::Consumed)
    }

    /// It may be asked for again without being offered anew.
    pub(in crate::spool) fn is_open(&self) -> bool {
        match self.state {
            InboundState::Incoming | InboundState::Deferred | InboundState::Quarantined => true,
            InboundState::Refused
            | InboundState::Contradicts
            | InboundState::Withdrawn
            | InboundState::Ended(_)
            | InboundState::Received
            | InboundState::Consumed
            | InboundState::Damaged => false,
        }
    }
}

/// Puts the row at its place, with the present time.
fn show(order: u64, row: &InboundShown, batch: &mut Batch) {
    let row = InboundShown {
        at: now_secs(),
        ..row.clone()
    };
    batch.insert(IN_ORDER, &Newest(order), &row);
}

impl Ledger {
    /// Puts or replaces the row that status shows of a bundle of another. Gives its place among all of them.
    pub(in crate::spool) fn show_inbound(
        &self,
        row: &InboundShown,
        batch: &mut Batch,
    ) -> Result<u64, SpoolError> {
        let known = self.inbound_row(row.bundle)?;
        let order = known.as_ref().map(|known| known.order);
        let order = order.unwrap_or_else(|| self.next_in.fetch_add(1, Ordering::Relaxed));
        if known.is_none() {
            let known = Inbound {
                order,
                seq: None,
                receipt: None,
            };
            batch.insert(INBOUND, &row.bundle, &known);
        }
        show(order, row, batch);
        Ok(order)
    }

    /// The same of one that is over, with our receipt if it was settled. Nothing of it is looked at again, and a bit
    /// stands for it when its rows are gone.
    pub(in crate::spool) fn end_inbound(
        &self,
        row: &InboundShown,
        of: &Manifest,
        receipt: Option<&Receipt>,
        batch: &mut Batch,
    ) -> Result<u64, SpoolError> {
        let order = self.inbound_row(row.bundle)?.map(|known| known.order);
        let order = order.unwrap_or_else(|| self.next_in.fetch_add(1, Ordering::Relaxed));
        let known = Inbound {
            order,
            seq: Some(Seq::of(of)),
            receipt: receipt.cloned(),
        };
        batch.insert(INBOUND, &row.bundle, &known);
        show(order, row, batch);
        Ok(order)
    }

    /// What is known of a bundle of another.
    pub(super) fn inbound_row(&self, bundle: BundleId) -> Result<Option<Inbound>, SpoolError> {
        Ok(self.journal.row(INBOUND, &bundle)?)
    }

    /// The row that status shows of a bundle of another.
    pub(in crate::spool) fn inbound_shown(
        &self,
        bundle: BundleId,
    ) -> Result<Option<InboundShown>, SpoolError> {
        match self.inbound_row(bundle)? {
            Some(known) => Ok(self.journal.row(IN_ORDER, &Newest(known.order))?),
            None => Ok(None),
        }
    }

    /// What status says of a bundle of another that was received.
    pub(in crate::spool) fn show_as(
        &self,
        bundle: BundleId,
        state: InboundState,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.reshow(bundle, batch, |row| {
            row.state = state;
            row.at = now_secs();
            true
        })
    }

    /// Status names the file as the inbox does, which showed it as `from`.
    pub(in crate::spool) fn show_moved(
        &self,
        bundle: BundleId,
        from: &RelPath,
        to: &RelPath,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.reshow(bundle, batch, |row| {
            let moved = row.path == *from;
            if moved {
                row.path = to.clone();
            }
            moved
        })
    }

    /// Replaces the row that status shows, if there is one that `change` changes.
    fn reshow(
        &self,
        bundle: BundleId,
        batch: &mut Batch,
        change: impl FnOnce(&mut InboundShown) -> bool,
    ) -> Result<(), SpoolError> {
        let Some(known) = self.inbound_row(bundle)? else {
            return Ok(());
        };
        let place = Newest(known.order);
        if let Some(mut row) = self.journal.row(IN_ORDER, &place)?
            && change(&mut row)
        {
            batch.insert(IN_ORDER, &place, &row);
        }
        Ok(())
    }

    /// How many rows there are, counted up to `most`.
    pub(in crate::spool) fn inbound_rows(&self, most: usize) -> usize {
        let keys = self.journal.keys(IN_ORDER.all(), most);
        keys.map_or(0, |keys| keys.len())
    }

    /// The newest rows first, at most `limit`, after the one at the place `before`.
    pub(in crate::spool) fn inbound(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<InboundShown>, SpoolError> {
        let after = before.map(Newest);
        let rows = self
            .journal
            .rows(IN_ORDER.all().after(after.as_ref()), limit)?;
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }
}
