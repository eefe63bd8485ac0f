//! Bundles of others that are over here: settled, or refused for good.
//!
//! A receipt is kept as long as status shows its bundle; then one bit stands for it, under (origin, epoch, incarnation,
//! seq).
//!
//! # Invariants
//! 1. A bundle that was settled here is known as such for ever, by its receipt or by its bit.
//! 2. One block of bits has at most [`BLOCK`] of them, so a row stays small whatever is missing in between.

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, Former, Manifest, Receipt, Rest, Scope, VerifiedManifest};
use crate::journal::{Batch, Table};
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::inbound::{InboundShown, InboundState};
use crate::spool::ledger::tables::{REFUSED_BITS, SCOPED, SETTLED_BITS};

/// Bundles of one block of bits.
pub(super) const BLOCK: u64 = 4096;

/// Which bundle of an origin it is: what its bit is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct Seq {
    epoch: u64,
    incarnation: [u8; 16],
    seq: u64,
}

impl Seq {
    pub(in crate::spool) fn of(manifest: &Manifest) -> Self {
        Self {
            epoch: manifest.epoch,
            incarnation: manifest.incarnation,
            seq: manifest.seq,
        }
    }

    /// The bundle that had a former name.
    pub(in crate::spool) fn of_former(former: &Former) -> Self {
        Self {
            epoch: former.epoch,
            incarnation: former.incarnation,
            seq: former.seq,
        }
    }

    /// (epoch, seq): what is newer is greater.
    pub(in crate::spool) fn order(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }

    /// The bundle that a rest is of.
    pub(in crate::spool) fn of_whole(rest: &Rest) -> Self {
        Self {
            epoch: rest.epoch,
            incarnation: rest.incarnation,
            seq: rest.seq,
        }
    }

    #[cfg(test)]
    pub(in crate::spool) fn test(seq: u64) -> Self {
        Self {
            epoch: 1,
            incarnation: [7; 16],
            seq,
        }
    }

    /// The key of its block of so many bundles, and its place in it.
    pub(in crate::spool) fn block(&self, origin: PeerId, size: u64) -> (BlockKey, usize) {
        let key = (origin, self.epoch, self.incarnation, self.seq / size);
        (key, (self.seq % size) as usize)
    }
}

/// Origin, epoch, incarnation, number of a block.
pub(in crate::spool) type BlockKey = (PeerId, u64, [u8; 16], u64);

/// A bit for each bundle of a block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::spool) enum Block {
    /// All.
    Full,
    /// Those whose bit is set; what lies beyond the end is not.
    Bits(Vec<u8>),
}

impl Default for Block {
    fn default() -> Self {
        Self::Bits(Vec::new())
    }
}

impl Block {
    pub(super) fn has(&self, at: usize) -> bool {
        match self {
            Self::Full => true,
            Self::Bits(bits) => bits
                .get(at / 8)
                .is_some_and(|byte| byte & (1 << (at % 8)) != 0),
        }
    }

    pub(super) fn set(&mut self, at: usize) {
        let Self::Bits(bits) = self else {
            return;
        };
        if bits.len() <= at / 8 {
            bits.resize(at / 8 + 1, 0);
        }
        bits[at / 8] |= 1 << (at % 8);
        if bits.len() as u64 == BLOCK / 8 && bits.iter().all(|byte| *byte == u8::MAX) {
            *self = Self::Full;
        }
    }
}

impl Ledger {
    /// Our receipt for a bundle that is settled here, durable or not, while its row is there.
    pub(in crate::spool) fn settled(
        &self,
        bundle: BundleId,
    ) -> Result<Option<Receipt>, SpoolError> {
        Ok(self.inbound_row(bundle)?.and_then(|known| known.receipt))
    }

    /// The bundle is settled with `batch`, and shown like this. Gives its place among all that status shows.
    pub(in crate::spool) fn settle(
        &self,
        manifest: &VerifiedManifest,
        receipt: &Receipt,
        shown: &InboundShown,
        batch: &mut Batch,
    ) -> Result<u64, SpoolError> {
        let of = manifest.manifest();
        if let Scope::Ids(ids) = &of.scope {
            batch.insert(SCOPED, &manifest.id(), ids);
        }
        self.end_inbound(shown, of, Some(receipt), batch)
    }

    /// Our receipt for `bundle`, if it is settled and durable here.
    pub(crate) fn receipt(&self, bundle: BundleId) -> Option<Receipt> {
        let receipt = self.settled(bundle).ok().flatten()?;
        (!self.volatile.lock().contains(&bundle)).then_some(receipt)
    }

    /// Our receipt for `bundle`, if it is durable and `peer` may know of the bundle.
    pub(crate) fn receipt_for(&self, bundle: BundleId, peer: PeerId) -> Option<Receipt> {
        let receipt = self.receipt(bundle)?;
        self.may_know(&receipt, peer).then_some(receipt)
    }

    /// Whether `bundle` is published here, durable or not, and `peer` may know of it.
    pub(crate) fn is_published_for(&self, bundle: BundleId, peer: PeerId) -> bool {
        let receipt = self.settled(bundle).ok().flatten();
        receipt.is_some_and(|receipt| self.may_know(&receipt, peer))
    }

    /// Whether `peer` may know that a bundle is settled here.
    fn may_know(&self, receipt: &Receipt, peer: PeerId) -> bool {
        let scope = self.journal.row(SCOPED, &receipt.bundle);
        let scoped = |ids: Option<Vec<PeerId>>| ids.is_none_or(|ids| ids.contains(&peer));
        receipt.origin == peer || scope.is_ok_and(scoped)
    }

    fn has_bit(
        &self,
        table: Table<BlockKey, Block>,
        origin: PeerId,
        seq: Seq,
    ) -> Result<bool, SpoolError> {
        let (key, at) = seq.block(origin, BLOCK);
        let block: Option<Block> = self.journal.row(table, &key)?;
        Ok(block.is_some_and(|block| block.has(at)))
    }

    /// Whether a bundle with this manifest was published here, as far as its rows are gone.
    pub(in crate::spool) fn was_settled(&self, of: &Manifest) -> Result<bool, SpoolError> {
        self.has_bit(SETTLED_BITS, of.origin, Seq::of(of))
    }

    /// Whether the bundle that had a former name was settled here, in whatever way.
    pub(in crate::spool) fn was_former_settled(
        &self,
        origin: PeerId,
        former: &Former,
    ) -> Result<bool, SpoolError> {
        Ok(self.settled(former.bundle)?.is_some()
            || self.has_bit(SETTLED_BITS, origin, Seq::of_former(former))?)
    }

    /// Whether a bundle with this manifest was refused for good, also when its row is gone.
    pub(in crate::spool) fn was_refused_for_good(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<bool, SpoolError> {
        let row = self.inbound_shown(manifest.id())?;
        Ok(
            row.is_some_and(|row| row.state == InboundState::Contradicts)
                || self.has_bit(
                    REFUSED_BITS,
                    manifest.manifest().origin,
                    Seq::of(manifest.manifest()),
                )?,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_remembers_what_was_set_and_shrinks_when_it_is_full() {
        let mut block = Block::default();
        assert!(!block.has(0) && !block.has(4095));
        for at in (0..4096).rev().step_by(2) {
            block.set(at);
        }
        assert!(block.has(4095) && !block.has(4094) && block.has(1) && !block.has(0));
        for at in (0..4096).step_by(2) {
            assert_ne!(block, Block::Full);
            block.set(at);
        }
        assert_eq!(block, Block::Full);
        assert!((0..4096).all(|at| block.has(at)));
        assert_eq!(postcard::to_stdvec(&block).unwrap().len(), 1);
    }
}
