//! What is on its way, for those who wait for all of it or for a directory.

use std::collections::BTreeSet;

use crate::bundle::{BundleId, RelPath};
use crate::spool::SpoolError;
use crate::spool::journal::Table;
use crate::spool::keys::Beneath;
use crate::spool::outbox::Outbox;
use crate::spool::outbox::tables::{LATEST, MarkKind, OUT_NAMES};

/// Rows read at once.
const PAGE: usize = 4096;

/// What is on its way.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    /// Bundles of ours that are not complete; of a directory also those of the names that it shows.
    pub bundles: BTreeSet<BundleId>,
    /// Files that are open for writing or closed and not sealed yet; of a directory also those that are incomplete.
    pub unsealed: Vec<RelPath>,
}

impl Outbox {
    /// What is on its way, of all or below a directory of the outbox. Takes memory for each of them.
    pub(crate) fn unfinished(&self, directory: Option<&RelPath>) -> Result<Unfinished, SpoolError> {
        let mut found = Unfinished::default();
        // Before the bundles: what is sealed meanwhile is then found there, or in both.
        let mut after = None;
        loop {
            let page = self.marks(after, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            for (_, mark) in page {
                let inside = directory.is_none_or(|above| mark.path.below(above).is_some());
                if inside && (directory.is_some() || mark.kind != MarkKind::Torn) {
                    found.unsealed.push(mark.path);
                }
            }
        }
        self.each(LATEST, directory, |_, bundle| {
            found.bundles.insert(bundle);
        })?;
        if directory.is_none() {
            // What a newer bundle for fewer recipients took the place of is the latest of nothing.
            self.ledger.each_open(|bundle| {
                found.bundles.insert(bundle);
            })?;
        } else {
            self.each(OUT_NAMES, directory, |_, row| {
                found.bundles.insert(row.bundle);
            })?;
        }
        Ok(found)
    }

    /// Every row of a table whose keys are paths, of all or of those below a directory.
    fn each<V: serde::de::DeserializeOwned>(
        &self,
        table: Table<RelPath, V>,
        directory: Option<&RelPath>,
        mut row: impl FnMut(&RelPath, V),
    ) -> Result<(), SpoolError> {
        let mut after: Option<RelPath> = None;
        loop {
            let rows = match directory {
                Some(directory) => table.below(&Beneath(directory)),
                None => table.all(),
            };
            let page = self.journal.rows(rows.after(after.as_ref()), PAGE)?;
            let Some(last) = page.last().map(|(path, _)| path.clone()) else {
                return Ok(());
            };
            for (path, value) in page {
                row(&path, value);
            }
            after = Some(last);
        }
    }
}
