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

use super::super::tables::{FORGOTTEN, JOINING, MEMBERS, NAMES};
use super::{Group, LEFT_OUT, META_CHARTER, META_GENERATION, META_KNOWN_BEFORE, STATEMENTS, State};
use crate::spool::journal::{Batch, Key, Table};
use crate::spool::{Layout, SpoolError, durable};

/// Whether the node of this state can leave its group, if it has one.
pub(crate) fn is_alone(layout: &Layout) -> bool {
    !layout.bound().exists()
}

impl Group {
    /// From now on this node stays in its group. Durable when this returns.
    pub(crate) fn bind(&self) -> Result<(), SpoolError> {
        if self.bound.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _one = self.binding.lock();
        if is_alone(&self.layout) {
            durable::write_file(&self.layout.bound(), b"")?;
        }
        self.bound.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets the group that the journal has, and who was said to be in it. For a node that is alone: another group is
    /// entered next, or none was.
    pub(crate) fn leave(&self) -> Result<(), SpoolError> {
        let _one = self.change.lock();
        let mut batch = Batch::default();
        self.empty(STATEMENTS, &mut batch)?;
        self.empty(LEFT_OUT, &mut batch)?;
        self.empty(MEMBERS, &mut batch)?;
        self.empty(JOINING, &mut batch)?;
        self.empty(NAMES, &mut batch)?;
        self.empty(FORGOTTEN, &mut batch)?;
        batch.remove(META_CHARTER, &());
        batch.remove(META_GENERATION, &());
        batch.remove(META_KNOWN_BEFORE, &());
        self.journal.submit(batch)?;
        self.journal.flush()?;
        *self.state.write() = State::default();
        self.known.ids.write().clear();
        Ok(())
    }

    /// Removes all rows of a table.
    fn empty<K: Key<Read = K>, V>(
        &self,
        table: Table<K, V>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for key in self.journal.keys(table.all(), usize::MAX)? {
            batch.remove(table, &key);
        }
        Ok(())
    }

    /// Keeps what belongs to the node for its next start: the text of `node.toml`.
    pub(crate) fn keep(&self, text: &str) -> Result<(), SpoolError> {
        let path = self.layout.node();
        if std::fs::read_to_string(&path).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        Ok(durable::write_file(&path, text.as_bytes())?)
    }
}
