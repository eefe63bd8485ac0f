//! What is remembered of one tree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::bundle::RelPath;
use crate::ready::event::{Ino, Shown};

/// A directory that is sent as one, and has not been yet.
#[derive(Debug)]
pub(in crate::ready) struct Tree {
    pub(super) root: RelPath,
    pub(super) files: BTreeMap<RelPath, Ino>,
    pub(super) directories: BTreeSet<RelPath>,
    /// Members that are open for writing or incomplete, with a name of each.
    pub(super) blockers: BTreeMap<Ino, RelPath>,
    /// Not before then.
    pub(super) not_before: Duration,
    pub(super) due: Option<Duration>,
    pub(in crate::ready) sealing: bool,
    pub(super) failures: u32,
}

impl Tree {
    /// What to show of it, and of those of its members that do not hold it up themselves.
    pub(in crate::ready) fn shown(&self) -> Shown {
        if self.sealing {
            Shown::Sealing
        } else if let Some(path) = self.blockers.values().min() {
            Shown::Waiting(path.clone())
        } else if self.failures > 0 {
            Shown::Retrying
        } else {
            Shown::Settling
        }
    }
}
