//! What custody needs of the store.

use std::sync::Arc;

use crate::bundle::{BundleId, Receipt};
use crate::peer::PeerId;
use crate::spool::{OriginSays, Spool, SpoolError};

/// What custody needs of the store; each call is the one of that name of [`Spool`]. By default nothing is kept.
#[allow(missing_docs)]
pub(crate) trait Custodian {
    fn custody_due(&self) -> bool {
        false
    }
    fn custody_nudge(&self) {}
    fn custody_pass(
        &self,
        _connected: &dyn Fn(PeerId) -> bool,
    ) -> Result<Vec<(PeerId, Vec<BundleId>)>, SpoolError> {
        Ok(Vec::new())
    }
    fn carried(
        &self,
        _origin: PeerId,
        _after: Option<BundleId>,
        _limit: usize,
    ) -> Result<Vec<BundleId>, SpoolError> {
        Ok(Vec::new())
    }
    fn relays(
        &self,
        _origin: PeerId,
        _after: Option<&Receipt>,
        _limit: usize,
    ) -> Result<Vec<Receipt>, SpoolError> {
        Ok(Vec::new())
    }
    fn origin_says(
        &self,
        _origin: PeerId,
        _bundles: &[BundleId],
        _says: OriginSays,
    ) -> Result<Vec<BundleId>, SpoolError> {
        Ok(Vec::new())
    }
    fn closed_of(
        &self,
        _asker: PeerId,
        _bundles: &[BundleId],
    ) -> Result<(Vec<BundleId>, Vec<BundleId>), SpoolError> {
        Ok((Vec::new(), Vec::new()))
    }
    fn recipients(&self, _bundle: BundleId) -> Vec<PeerId> {
        Vec::new()
    }
    fn given_by(&self, _bundle: BundleId, _holders: &[PeerId]) -> Result<(), SpoolError> {
        Ok(())
    }
    fn receipt_for(&self, bundle: BundleId, peer: PeerId) -> Option<Receipt>;
    fn is_published_for(&self, _bundle: BundleId, _peer: PeerId) -> bool {
        false
    }
    fn is_forgotten(&self, _peer: PeerId) -> bool {
        false
    }
}

impl Custodian for Arc<Spool> {
    fn custody_due(&self) -> bool {
        Spool::custody_due(self)
    }
    fn custody_nudge(&self) {
        Spool::custody_nudge(self);
    }
    fn custody_pass(
        &self,
        connected: &dyn Fn(PeerId) -> bool,
    ) -> Result<Vec<(PeerId, Vec<BundleId>)>, SpoolError> {
        Spool::custody_pass(self, connected)
    }
    fn carried(
        &self,
        origin: PeerId,
        after: Option<BundleId>,
        limit: usize,
    ) -> Result<Vec<BundleId>, SpoolError> {
        Spool::carried(self, origin, after, limit)
    }
    fn relays(
        &self,
        origin: PeerId,
        after: Option<&Receipt>,
        limit: usize,
    ) -> Result<Vec<Receipt>, SpoolError> {
        Spool::relays(self, origin, after, limit)
    }
    fn origin_says(
        &self,
        origin: PeerId,
        bundles: &[BundleId],
        says: OriginSays,
    ) -> Result<Vec<BundleId>, SpoolError> {
        Spool::origin_says(self, origin, bundles, says)
    }
    fn closed_of(
        &self,
        asker: PeerId,
        bundles: &[BundleId],
    ) -> Result<(Vec<BundleId>, Vec<BundleId>), SpoolError> {
        Spool::closed_of(self, asker, bundles)
    }
    fn recipients(&self, bundle: BundleId) -> Vec<PeerId> {
        Spool::recipients(self, bundle)
    }
    fn given_by(&self, bundle: BundleId, holders: &[PeerId]) -> Result<(), SpoolError> {
        Spool::given_by(self, bundle, holders)
    }
    fn receipt_for(&self, bundle: BundleId, peer: PeerId) -> Option<Receipt> {
        Spool::receipt_for(self, bundle, peer)
    }
    fn is_published_for(&self, bundle: BundleId, peer: PeerId) -> bool {
        Spool::is_published_for(self, bundle, peer)
    }
    fn is_forgotten(&self, peer: PeerId) -> bool {
        Spool::is_forgotten(self, peer).unwrap_or(false)
    }
}
