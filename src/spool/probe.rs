//! What tests of the rooms above look at and do that no program does.

use std::sync::Arc;

use super::outbox::MarkKind;
use super::tables::Stat;
use super::{Layout, Spool, SpoolConfig, SpoolError, StateLock, durable};
use crate::bundle::RelPath;

impl Spool {
    /// Takes the lock of the state, which is made if need be, and opens it.
    pub(crate) fn open(config: SpoolConfig) -> Result<Arc<Self>, SpoolError> {
        let layout = Layout::new(config.state.clone());
        durable::make_directory(layout.state())?;
        let lock = StateLock::take(&layout)?;
        Self::open_locked(config, lock)
    }

    /// Every mark of the outbox.
    pub(crate) fn marks(&self) -> Vec<(MarkKind, RelPath)> {
        let marks = self.outbox.all_marks().into_iter();
        marks.map(|(_, mark)| (mark.kind, mark.path)).collect()
    }

    /// Whether there is a record of a file of the outbox that holds.
    pub(crate) fn has_record(&self, path: &RelPath) -> bool {
        let stat = Stat::of(&self.outbox.root.metadata(path).unwrap());
        let record = self.content.record_of(stat.ino).unwrap();
        record.is_some_and(|record| record.stat.is(&stat))
    }
}
