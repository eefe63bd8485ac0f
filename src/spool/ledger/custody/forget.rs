//! Members that the user gave up: nobody waits for them any more.
//!
//! What is owed to a forgotten member is cancelled, ours and what we keep for others; what others say of it is not
//! believed; only when it comes itself it is a member again, a new one.
//!
//! # Crash behaviour
//! The row in [`FORGOTTEN`] comes first; what is then still owed is ended at the next start.

use crate::bundle::{BundleId, DeliveryState};
use crate::delivery::custody;
use crate::peer::{PeerId, PeerName};
use crate::spool::journal::Batch;
use crate::spool::tables::{FORGOTTEN, JOINING, MEMBERS};
use crate::spool::{Event, Spool, SpoolError};

/// Bundles ended between two looks at what is pending.
const PAGE: usize = 256;

impl Spool {
    /// Ends what is owed to `peer`, for good. Gives how many bundles that were; `None`: there is no such member.
    pub(crate) fn forget(&self, peer: PeerId) -> Result<Option<u64>, SpoolError> {
        let decide = self.decide();
        let member: Option<crate::spool::Member> = self.journal.row(MEMBERS, &peer)?;
        let Some(member) = member else {
            return Ok(None);
        };
        let mut batch = Batch::default();
        batch.insert(FORGOTTEN, &peer, &member.name);
        batch.remove(MEMBERS, &peer);
        batch.remove(JOINING, &peer);
        self.release_names(peer, &mut batch)?;
        self.journal.submit(batch)?;
        self.member_ids.write().remove(&peer);
        drop(decide);
        let ended = self.end_all(peer)?;
        self.journal.flush()?;
        tracing::info!(peer = %member.name, id = %peer.short(), bundles = ended, "forgotten");
        self.ring(&Event::MembersChanged);
        Ok(Some(ended))
    }

    /// At start: goes on where forgetting was cut off.
    pub(in crate::spool) fn resume_forgetting(&self) -> Result<(), SpoolError> {
        let forgotten = self.journal.keys(FORGOTTEN.all(), usize::MAX)?;
        forgotten
            .into_iter()
            .try_for_each(|peer| self.end_all(peer).map(drop))
    }

    /// Ends all that is owed to `peer` or carried for it. Gives how many bundles were owed.
    pub(in crate::spool) fn end_all(&self, peer: PeerId) -> Result<u64, SpoolError> {
        let mut ended = 0;
        let mut after = None;
        loop {
            let page = self.pending(peer, after, PAGE)?;
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
            let page = self.carried(peer, after, PAGE)?;
            for bundle in &page {
                let complete = self.recipients_open(*bundle)?.is_empty();
                if complete {
                    self.custody_events(Some(peer), &[*bundle], custody::Event::Cancelled)?;
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

    /// Why a delivery to `peer` was cancelled, if it was because the user gave the member up.
    pub(in crate::spool) fn why_cancelled(&self, peer: PeerId) -> Option<String> {
        let forgotten = self.is_forgotten(peer).ok()?;
        let forgotten = forgotten.then(|| "forgotten".to_owned());
        forgotten.or_else(|| self.why_out(peer))
    }

    /// What a forgotten member was called.
    pub(in crate::spool) fn forgotten_name(&self, peer: PeerId) -> Option<PeerName> {
        self.journal.row(FORGOTTEN, &peer).ok().flatten()
    }

    /// Whether the user gave this member up.
    pub(crate) fn is_forgotten(&self, peer: PeerId) -> Result<bool, SpoolError> {
        Ok(self.journal.row(FORGOTTEN, &peer)?.is_some())
    }
}
