//! Members that the user gave up: nobody waits for them any more.
//!
//! What is owed to a forgotten member is cancelled, ours and what we keep for others; what others say of it is not
//! believed; only when it comes itself it is a member again, a new one.
//!
//! # Crash behaviour
//! That it is forgotten is recorded first; what is then still owed is ended at the next start.

use crate::bundle::{BundleId, DeliveryState};
use crate::delivery::custody;
use crate::peer::PeerId;
use crate::spool::{Event, Spool, SpoolError};

/// Bundles ended between two looks at what is pending.
const PAGE: usize = 256;

impl Spool {
    /// Ends what is owed to `peer`, for good. Gives how many bundles that were; `None`: there is no such member.
    pub(crate) fn forget(&self, peer: PeerId) -> Result<Option<u64>, SpoolError> {
        let Some(name) = self.decide().group.forget(peer)? else {
            return Ok(None);
        };
        let ended = self.end_all(peer)?;
        self.journal.flush()?;
        tracing::info!(peer = %name, id = %peer.short(), bundles = ended, "forgotten");
        self.doorbell.ring(&Event::MembersChanged);
        Ok(Some(ended))
    }

    /// At start: goes on where forgetting was cut off.
    pub(in crate::spool) fn resume_forgetting(&self) -> Result<(), SpoolError> {
        let forgotten = self.group.forgotten()?;
        forgotten
            .into_iter()
            .try_for_each(|peer| self.end_all(peer).map(drop))
    }

    /// Ends all that is owed to `peer` or carried for it. Gives how many bundles were owed.
    pub(in crate::spool) fn end_all(&self, peer: PeerId) -> Result<u64, SpoolError> {
        let mut ended = 0;
        let mut after = None;
        loop {
            let page = self.ledger.pending(peer, after, PAGE)?;
            for (_, bundle) in &page {
                self.set_delivery(*bundle, peer, DeliveryState::Cancelled)?;
                ended += 1;
            }
            match page.last() {
                Some((order, _)) => after = Some(*order),
                None => break,
            }
        }
        // Receipts that wait for it as the origin wait for nobody.
        let mut after: Option<BundleId> = None;
        loop {
            let page = self.custodian.carried(peer, after, PAGE)?;
            for bundle in &page {
                let complete = self.recipients_open(*bundle)?.is_empty();
                if complete {
                    self.custodian.custody_events(
                        Some(peer),
                        &[*bundle],
                        custody::Event::Cancelled,
                    )?;
                }
            }
            match page.last() {
                Some(bundle) => after = Some(*bundle),
                None => return Ok(ended),
            }
        }
    }

    fn recipients_open(&self, bundle: BundleId) -> Result<Vec<PeerId>, SpoolError> {
        let deliveries = self.ledger.deliveries_of(bundle)?;
        let open = deliveries
            .into_iter()
            .filter(|(_, state)| !state.is_final());
        Ok(open.map(|(peer, _)| peer).collect())
    }
}
