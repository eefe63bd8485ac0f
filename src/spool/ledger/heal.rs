//! Healing: at start, rows that break a rule of what is signed are dropped.
//!
//! What peers gave us was checked before it was written. Should a row break a rule all the same, it must not be passed
//! on: others would close the connection on it each time, and the two could never speak again. Statements of the group
//! are looked at where they are loaded.

use crate::bundle::BundleId;
use crate::spool::journal::Batch;
use crate::spool::keys::Ends;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::tables::{
    CANCELS, CANCELS_OWED, CARRIED, DEADLINES, DELIVERIES, KEPT, KeptRow, PENDING, RELAYS, WATCHED,
};
use crate::spool::{Spool, SpoolError};

impl Spool {
    /// Drops a bundle of another that was kept for further recipients, without its manifest: with all rows whose keys
    /// name it.
    pub(in crate::spool) fn drop_kept(
        &self,
        bundle: BundleId,
        row: &KeptRow,
    ) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        batch.remove(KEPT, &bundle);
        batch.remove(DEADLINES, &Ends::Bundle(bundle));
        batch.remove(WATCHED, &bundle);
        let rank = Rank::of(row.signed.priority(), row.order);
        for (peer, _) in self.ledger.deliveries_of(bundle)? {
            batch.remove(PENDING, &(peer, rank));
            batch.remove(DELIVERIES, &(bundle, peer));
        }
        self.each_key(CARRIED, |key| {
            if key.1 == bundle {
                batch.remove(CARRIED, key);
            }
        })?;
        self.content.end_all_needs(bundle, &mut batch)?;
        self.each_key(RELAYS, |key| {
            if key.1 == bundle {
                batch.remove(RELAYS, key);
            }
        })?;
        Ok(self.journal.submit(batch)?)
    }
}
impl Ledger {
    /// Drops cancels that nobody would take.
    pub(in crate::spool) fn drop_bad_cancels(&self) -> Result<(), SpoolError> {
        for key in self.journal.unreadable(CANCELS)? {
            tracing::error!("a cancel in the journal is dropped: it cannot be read");
            let mut batch = Batch::default();
            batch.remove(CANCELS, &key);
            for row in self.journal.each(CANCELS_OWED) {
                let (owed, ()) = row?;
                if (owed.1, owed.2) == key {
                    batch.remove(CANCELS_OWED, &owed);
                }
            }
            self.journal.submit(batch)?;
        }
        Ok(())
    }
}
