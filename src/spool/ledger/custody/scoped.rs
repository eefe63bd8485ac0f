//! Who may know that a bundle is settled here.

use crate::bundle::{BundleId, Receipt, Scope, VerifiedManifest};
use crate::peer::PeerId;
use crate::spool::Spool;
use crate::spool::journal::Batch;
use crate::spool::tables::SCOPED;

impl Spool {
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

    fn may_know(&self, receipt: &Receipt, peer: PeerId) -> bool {
        let scope = self.journal.row(SCOPED, &receipt.bundle);
        let scoped = |ids: Option<Vec<PeerId>>| ids.is_none_or(|ids| ids.contains(&peer));
        receipt.origin == peer || scope.is_ok_and(scoped)
    }

    /// Remembers for whom a settled bundle is that is not for everybody.
    pub(in crate::spool) fn note_scope(&self, manifest: &VerifiedManifest, batch: &mut Batch) {
        if let Scope::Ids(ids) = &manifest.manifest().scope {
            batch.insert(SCOPED, &manifest.id(), ids);
        }
    }
}
