//! Who may know that a bundle is settled here.

use crate::bundle::{BundleId, Receipt};
use crate::peer::PeerId;
use crate::spool::Spool;

impl Spool {
    /// Our receipt for `bundle`, if it is durable and `peer` may know of the bundle.
    pub(crate) fn receipt_for(&self, bundle: BundleId, peer: PeerId) -> Option<Receipt> {
        let receipt = self.receipt(bundle)?;
        self.ledger.may_know(&receipt, peer).then_some(receipt)
    }

    /// Whether `bundle` is published here, durable or not, and `peer` may know of it.
    pub(crate) fn is_published_for(&self, bundle: BundleId, peer: PeerId) -> bool {
        let receipt = self.ledger.settled(bundle).ok().flatten();
        receipt.is_some_and(|receipt| self.ledger.may_know(&receipt, peer))
    }
}
