//! Names of the outbox: what was last sealed under each, and the newest bundle with it.

use super::Outbox;
use super::send::SentRow;
use super::tables::{LATEST, OUT_NAMES, OutName, SENT_IDS};
use crate::bundle::{BundleId, Manifest, RelPath, VerifiedManifest};
use crate::journal::{Batch, JournalError};
use crate::spool::SpoolError;

/// Names looked at at once.
const PAGE: usize = 1000;

impl Outbox {
    /// What was last sealed under a name that is still there.
    pub(in crate::spool) fn name(&self, path: &RelPath) -> Result<Option<OutName>, JournalError> {
        self.journal.row(OUT_NAMES, path)
    }

    /// Some of the names, in their order.
    pub(in crate::spool) fn names(
        &self,
        after: Option<&RelPath>,
        most: usize,
    ) -> Result<Vec<(RelPath, OutName)>, JournalError> {
        self.journal.rows(OUT_NAMES.all().after(after), most)
    }

    /// Shows every name, page by page; one that moves meanwhile may be missed.
    pub(in crate::spool) fn each_name(
        &self,
        mut look: impl FnMut(&OutName),
    ) -> Result<(), JournalError> {
        let mut after = None;
        loop {
            let page = self.names(after.as_ref(), PAGE)?;
            page.iter().for_each(|(_, name)| look(name));
            match page.into_iter().next_back() {
                Some((path, _)) => after = Some(path),
                None => return Ok(()),
            }
        }
    }

    /// The newest bundle of ours with this path, whatever the outbox shows there now, until it is complete.
    pub(in crate::spool) fn latest(&self, path: &RelPath) -> Result<Option<BundleId>, SpoolError> {
        if let Some(bundle) = self.journal.row(LATEST, path)? {
            return Ok(Some(bundle));
        }
        // One that came here from another name has that one's bundle.
        match self.name(path)?.filter(|row| row.formerly.is_none()) {
            Some(row) if self.content.ledger.is_open(row.bundle)? => Ok(Some(row.bundle)),
            Some(_) | None => Ok(None),
        }
    }

    /// `row` is no longer that of the name `path`, and nothing newer is sealed there: what it said of the newest bundle is
    /// kept, unless that is complete. Call with the decision lock held.
    pub(in crate::spool) fn leaves(
        &self,
        path: &RelPath,
        row: &OutName,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if row.formerly.is_none()
            && self.journal.row(LATEST, path)?.is_none()
            && self.content.ledger.is_open(row.bundle)?
        {
            batch.insert(LATEST, path, &row.bundle);
        }
        Ok(())
    }

    /// A bundle is complete: no newer one is to supersede it. Call with the decision lock held.
    pub(in crate::spool) fn completed(
        &self,
        bundle: BundleId,
        of: &Manifest,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        for entry in &of.entries {
            if self.journal.row(LATEST, &entry.path)? == Some(bundle) {
                batch.remove(LATEST, &entry.path);
            }
        }
        Ok(())
    }

    /// What was sealed as `old` is `new` from now on, under its names and the user's id. Call with the decision lock held.
    pub(in crate::spool) fn sealed_anew(
        &self,
        old: BundleId,
        new: &VerifiedManifest,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        let (of, bundle) = (new.manifest(), new.id());
        for entry in &of.entries {
            let path = &entry.path;
            if self.journal.row(LATEST, path)? == Some(old) {
                batch.insert(LATEST, path, &bundle);
            }
            if let Some(name) = self.name(path)?.filter(|name| name.bundle == old) {
                let order = of.order();
                let row = OutName {
                    bundle,
                    order,
                    ..name
                };
                batch.insert(OUT_NAMES, path, &row);
            }
        }
        for (id, row) in self.journal.rows(SENT_IDS.all(), usize::MAX)? {
            if row.bundle == old {
                batch.insert(SENT_IDS, &id, &SentRow { bundle, ..row });
            }
        }
        Ok(())
    }
}
