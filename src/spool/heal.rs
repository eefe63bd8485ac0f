//! Healing: at start, rows that break a rule of what is signed are dropped.
//!
//! What peers gave us was checked before it was written. Should a row break a rule all the same, it must not be passed
//! on: others would close the connection on it each time, and the two could never speak again. Statements of the group
//! are looked at where they are loaded.

use super::journal::Batch;
use super::rank::{Rank, priority_of};
use super::tables::{
    CANCELS, CANCELS_OWED, CARRIED, DEADLINES, DELIVERIES, KEPT, KeptRow, PENDING, RELAYS, USERS,
    WATCHED, pending_key,
};
use super::{Spool, SpoolError};
use crate::bundle::{Cancel, DeliveryState};
use crate::peer::PeerId;

impl Spool {
    /// Drops cancels that nobody would take.
    pub(super) fn drop_bad_cancels(&self) -> Result<(), SpoolError> {
        for key in self.journal.unreadable::<Cancel>(CANCELS)? {
            tracing::error!("a cancel in the journal is dropped: it cannot be read");
            let mut batch = Batch::default();
            batch.delete(CANCELS, &key);
            self.each_row::<()>(CANCELS_OWED, |_, owed, ()| {
                if owed.ends_with(&key) {
                    batch.delete(CANCELS_OWED, owed);
                }
                Ok(())
            })?;
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    /// Drops a bundle of another that was kept for further recipients, without its manifest: with all rows whose keys
    /// name it.
    pub(super) fn drop_kept(&self, bundle: &[u8], row: &KeptRow) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        batch.delete(KEPT, bundle);
        batch.delete(DEADLINES, bundle);
        batch.delete(WATCHED, bundle);
        let rank = Rank::of(priority_of(&row.signed), row.order);
        let deliveries =
            self.journal
                .scan::<DeliveryState>(DELIVERIES, bundle, None, usize::MAX)?;
        for (key, _) in deliveries {
            if let Some(peer) = key.last_chunk::<32>() {
                let peer = PeerId::from_bytes(*peer);
                batch.delete(PENDING, &pending_key(peer, rank));
            }
            batch.delete(DELIVERIES, &key);
        }
        for table in [CARRIED, USERS, RELAYS] {
            // The bundle's id comes second in all of these.
            self.each_row::<()>(table, |_, key, ()| {
                if key.get(32..64) == Some(bundle) {
                    batch.delete(table, key);
                }
                Ok(())
            })?;
        }
        Ok(self.journal.submit(batch)?)
    }
}
