//! Healing: at start, rows that break a rule of what is signed are dropped.
//!
//! What peers gave us was checked before it was written. Should a row break a rule all the same, it must not be passed
//! on: others would close the connection on it each time, and the two could never speak again. Statements of the group
//! are looked at where they are loaded.

use crate::spool::SpoolError;
use crate::spool::journal::Batch;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::tables::{CANCELS, CANCELS_OWED};

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
