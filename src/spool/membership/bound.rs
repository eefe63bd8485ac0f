//! Whether a node is bound to its group, or alone in it and free to go to another.
//!
//! Whoever mounts without a ticket founds a group, often by mistake: the ticket comes later. As long as no ticket was made,
//! nobody else ever proved the key or is spoken of in a statement, and nothing was sealed, no one could tell that the group
//! was there, and the node may leave it without ceremony.
//!
//! # Invariants
//! The file `bound` is durable before what binds is: before a ticket is printed, a member recorded, a bundle signed. It never
//! goes away again.
//!
//! # Crash behaviour
//! Killed between the two, a node is bound that need not be; it says so when it is told to join another group.

use std::sync::atomic::Ordering;

use super::super::journal::{Batch, Table};
use super::super::tables::{FORGOTTEN, JOINING, MEMBERS, META, NAMES};
use super::super::{Layout, Spool, SpoolError, durable};
use super::{LEFT_OUT, META_CHARTER, META_GENERATION, STATEMENTS, State};

/// Whether the node of this state can leave its group, if it has one.
pub fn is_alone(layout: &Layout) -> bool {
    !layout.bound().exists()
}

impl Spool {
    /// From now on this node stays in its group. Durable when this returns.
    pub fn bind_to_group(&self) -> Result<(), SpoolError> {
        if self.group.bound.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _one = self.group.binding.lock();
        if is_alone(&self.layout) {
            durable::write_file(&self.layout.bound(), b"")?;
        }
        self.group.bound.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets the group that the journal has, and who was said to be in it. For a node that is alone: another group is
    /// entered next, or none was.
    pub fn forget_group(&self) -> Result<(), SpoolError> {
        let _one = self.group.change.lock();
        let mut batch = Batch::default();
        for (table, keys) in [
            (STATEMENTS, self.keys_of(STATEMENTS)?),
            (LEFT_OUT, self.keys_of(LEFT_OUT)?),
            (MEMBERS, self.keys_of(MEMBERS)?),
            (JOINING, self.keys_of(JOINING)?),
            (NAMES, self.keys_of(NAMES)?),
            (FORGOTTEN, self.keys_of(FORGOTTEN)?),
        ] {
            for key in keys {
                batch.delete(table, &key);
            }
        }
        batch.delete(META, META_CHARTER);
        batch.delete(META, META_GENERATION);
        self.journal.submit(batch)?;
        self.journal.flush()?;
        *self.group.state.write() = State::default();
        self.member_ids.write().clear();
        Ok(())
    }

    fn keys_of(&self, table: Table) -> Result<Vec<Vec<u8>>, SpoolError> {
        // A value that is passed over when it is read as something else is looked at as no value at all.
        let rows = self.journal.scan::<()>(table, &[], None, usize::MAX)?;
        Ok(rows.into_iter().map(|(key, ())| key).collect())
    }

    /// Keeps what belongs to the node for its next start: the text of `node.toml`.
    pub fn keep(&self, text: &str) -> Result<(), SpoolError> {
        let path = self.layout.node();
        if std::fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        Ok(durable::write_file(&path, text.as_bytes())?)
    }
}
