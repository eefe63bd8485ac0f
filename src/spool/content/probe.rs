//! What tests ask of content that no program does.

use super::Content;
use super::tables::USERS;

impl Content {
    /// How many needs there are, of all bundles together.
    pub(in crate::spool) fn needs(&self) -> usize {
        self.journal.keys(USERS.all(), usize::MAX).unwrap().len()
    }
}
