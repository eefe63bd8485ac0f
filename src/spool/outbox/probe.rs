//! What tests ask of the outbox, and put into it, that no program does.

use super::Outbox;
use super::moved_on::LeftKey;
use super::tables::{DISPLACED, LEFT, LINKS, Mark, NAMES_OF, OUT_NAMES, OutName, TREES};
use crate::bundle::RelPath;
use crate::journal::Batch;
use crate::spool::keys::Beneath;

impl Outbox {
    pub(in crate::spool) fn all_marks(&self) -> Vec<(u64, Mark)> {
        self.marks(None, usize::MAX).unwrap()
    }

    /// How many pairs of an inode and one of its names there are, by name and by inode.
    pub(in crate::spool) fn link_rows(&self) -> (usize, usize) {
        let by_name = self.journal.keys(LINKS.all(), usize::MAX).unwrap().len();
        let by_inode = self.journal.keys(NAMES_OF.all(), usize::MAX).unwrap().len();
        (by_name, by_inode)
    }

    pub(in crate::spool) fn trees(&self) -> usize {
        self.journal.rows(TREES.all(), usize::MAX).unwrap().len()
    }

    pub(in crate::spool) fn displaced(&self) -> Vec<(u64, RelPath)> {
        self.journal.keys(DISPLACED.all(), usize::MAX).unwrap()
    }

    pub(in crate::spool) fn left(&self) -> Vec<LeftKey> {
        self.journal.keys(LEFT.all(), usize::MAX).unwrap()
    }

    pub(in crate::spool) fn put_name(&self, path: &RelPath, row: &OutName) {
        let mut batch = Batch::default();
        batch.insert(OUT_NAMES, path, row);
        self.journal.submit(batch).unwrap();
    }

    pub(in crate::spool) fn names_below(&self, directory: &RelPath) -> Vec<(RelPath, OutName)> {
        let below = OUT_NAMES.below(&Beneath(directory));
        self.journal.rows(below, usize::MAX).unwrap()
    }
}
