//! Names of the outbox whose files moved on: which versions of a name were renamed away, until all who may still show them
//! have heard of it.
//!
//! A file that its origin renames over a name replaces what others show there; also if they had consumed it, since it is a
//! new version of that name. But it must not replace a file that went elsewhere itself: that one is to get its new name, and
//! what was consumed is to stay so. Others cannot see the difference, and may hear of the two renames in any order, so a
//! manifest that renames a file says up to which version the files of its name moved on
//! ([`Manifest::moved_on`](crate::bundle::Manifest)). Then no order between bundles matters.
//!
//! # Invariants
//! 1. A row is put by the batch that moves a version to another name that is sent. It goes when nobody is to hear of that
//!    any more: the bundle that says so is over, or there will be none, since the file was changed or removed, or has an
//!    ignored name or its old one again. A bundle that is over still counts while its own file waits for its seal under yet
//!    another name, since that seal says where it was all along. What others show there from then on was replaced, as far as they will ever know.
//! 2. So there are at most as many rows as files that wait for their seal, and former names in bundles that are not over.
//!
//! # Crash behaviour
//! The rows go in one batch with those of the names ([`OUT_NAMES`]) and of the bundles, so what is
//! found after a crash fits. Whatever is in doubt counts as moved on: then a consumed file stays consumed, and an older file
//! may stay where it is.

use super::Outbox;
use crate::bundle::{BundleId, Manifest, RelPath, VerifiedManifest};
use crate::spool::journal::{Batch, Below, Key};
use crate::spool::keys::Newest;
use crate::spool::outbox::tables::{LEFT, OUT_NAMES, OutName};
use crate::spool::{Spool, SpoolError};

/// A version of a name. Those of one name sort the newest first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::spool) struct LeftKey {
    path: RelPath,
    order: (u64, u64),
}

impl LeftKey {
    fn of(path: &RelPath, order: (u64, u64)) -> Self {
        let path = path.clone();
        Self { path, order }
    }
}

impl Key for LeftKey {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        let (epoch, seq) = self.order;
        Versions(&self.path).write(to);
        (Newest(epoch), Newest(seq)).write(to);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let end = from.iter().position(|byte| *byte == 0)?;
        let (path, rest) = from.split_at(end);
        *from = &rest[1..];
        let (epoch, seq) = <(Newest, Newest)>::read(from)?;
        Some(Self {
            path: RelPath::parse(path).ok()?,
            order: (epoch.0, seq.0),
        })
    }
}

/// All versions of a name, to be looked for by that. No name has the byte 0 in it.
struct Versions<'a>(&'a RelPath);

/// What [`Versions`] is read back as: never, since it is no key but the beginning of some.
enum Name {}

impl Key for Versions<'_> {
    type Read = Name;

    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        to.push(0);
    }

    fn read(_from: &mut &[u8]) -> Option<Name> {
        None
    }
}

impl Below<Name> for LeftKey {}

/// Tells which names are not sent.
pub(in crate::spool) type IsUnsent = Box<dyn Fn(&RelPath) -> bool + Send + Sync>;

/// The newest version of a name that moved on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::spool) struct MovedOn {
    pub(in crate::spool) order: (u64, u64),
    /// What announced it there.
    pub(in crate::spool) bundle: BundleId,
}

/// A version of a name that moved on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(in crate::spool) struct Left {
    /// What announced it there.
    bundle: BundleId,
    /// What says where it is; `None`: it is not sealed under its new name yet.
    told_by: Option<BundleId>,
}

impl Outbox {
    /// The row of a file that has the name `to` now.
    pub(in crate::spool) fn put_moved(&self, row: OutName, to: &RelPath, batch: &mut Batch) {
        self.file_moved(&row, to, batch);
        batch.insert(OUT_NAMES, to, &row);
    }

    /// Which names of the outbox are not sent: what is moved there is told to nobody. None are, until this is called.
    pub(crate) fn set_unsent(&self, is_unsent: impl Fn(&RelPath) -> bool + Send + Sync + 'static) {
        *self.unsent.write() = Some(Box::new(is_unsent));
    }

    fn is_unsent(&self, path: &RelPath) -> bool {
        let unsent = self.unsent.read();
        unsent.as_ref().is_some_and(|is_unsent| is_unsent(path))
    }

    /// A file was moved: `row`, by which it is known from now on, is that of the name `to`. Call with the decision lock held.
    pub(in crate::spool) fn file_moved(&self, row: &OutName, to: &RelPath, batch: &mut Batch) {
        let Some(from) = &row.formerly else { return };
        let key = LeftKey::of(from, row.order);
        if from == to || self.is_unsent(to) {
            batch.remove(LEFT, &key);
            return;
        }
        let left = Left {
            bundle: row.bundle,
            told_by: None,
        };
        batch.insert(LEFT, &key, &left);
    }

    /// The newest version of a name that moved on, of those that somebody may still show. Call with the decision lock held.
    pub(in crate::spool) fn moved_on(&self, path: &RelPath) -> Result<Option<MovedOn>, SpoolError> {
        let rows = self.journal.rows(LEFT.below(&Versions(path)), 1)?;
        let newest = rows.into_iter().next();
        Ok(newest.map(|(version, left)| MovedOn {
            order: version.order,
            bundle: left.bundle,
        }))
    }

    /// A new bundle says where files went. To be put after what it supersedes. Call with the decision lock held.
    pub(in crate::spool) fn tells_moves(&self, manifest: &VerifiedManifest, batch: &mut Batch) {
        let of = manifest.manifest();
        for former in &of.renamed_from {
            let key = LeftKey::of(&former.path, former.order());
            if of.entries.iter().any(|entry| entry.path == former.path) {
                // It is back.
                batch.remove(LEFT, &key);
                continue;
            }
            let left = Left {
                bundle: former.bundle,
                told_by: Some(manifest.id()),
            };
            batch.insert(LEFT, &key, &left);
        }
    }

    /// A bundle is over: who has not heard by it where files went never will, unless its own file waits under yet another
    /// name. Call with the decision lock held.
    pub(in crate::spool) fn tells_no_more(
        &self,
        bundle: BundleId,
        of: &Manifest,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let (Some(entry), false) = (of.entries.first(), of.renamed_from.is_empty()) else {
            return Ok(());
        };
        let own: Option<Left> = self
            .journal
            .row(LEFT, &LeftKey::of(&entry.path, of.order()))?;
        match own.is_some_and(|left| left.told_by.is_none()) {
            true => Ok(()),
            false => self.forget_told(bundle, of, batch),
        }
    }

    fn forget_told(
        &self,
        bundle: BundleId,
        of: &Manifest,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for former in &of.renamed_from {
            let key = LeftKey::of(&former.path, former.order());
            let left: Option<Left> = self.journal.row(LEFT, &key)?;
            if left.is_some_and(|left| left.told_by == Some(bundle)) {
                batch.remove(LEFT, &key);
            }
        }
        Ok(())
    }
}

impl Spool {
    /// The file of a row that goes will not be announced by what the row says. At once: the bundle of the row may come to
    /// its end in the batch that takes the row away. Call with the decision lock held.
    pub(in crate::spool) fn file_gone(&self, row: &OutName) -> Result<(), SpoolError> {
        let Some(from) = &row.formerly else {
            return Ok(());
        };
        let mut batch = Batch::default();
        batch.remove(LEFT, &LeftKey::of(from, row.order));
        // Who never heard of the name before this one would have heard of it, too.
        if let Some(manifest) = self.ledger.shared_manifest(row.bundle)? {
            let of = manifest.manifest();
            if !of.renamed_from.is_empty() && self.is_over_for_all(row.bundle)? {
                self.outbox.forget_told(row.bundle, of, &mut batch)?;
            }
        }
        Ok(self.journal.submit(batch)?)
    }

    fn is_over_for_all(&self, bundle: BundleId) -> Result<bool, SpoolError> {
        let deliveries = self.ledger.deliveries_of(bundle)?;
        Ok(deliveries.iter().all(|(_, state)| state.is_final())
            && !self.ledger.is_orphan(bundle)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_a_name_comes_first_and_reads_back() {
        let path = RelPath::parse("a/b").unwrap();
        let bytes = |order| {
            let mut bytes = Vec::new();
            LeftKey::of(&path, order).write(&mut bytes);
            bytes
        };
        let mut keys: Vec<Vec<u8>> = [(1, 9), (3, 0), (2, u64::MAX), (2, 1)].map(bytes).to_vec();
        keys.sort();
        let read = |key: &Vec<u8>| LeftKey::read(&mut key.as_slice()).unwrap();
        assert!(keys.iter().all(|key| read(key).path == path));
        let orders: Vec<_> = keys.iter().map(|key| read(key).order).collect();
        assert_eq!(orders, [(3, 0), (2, u64::MAX), (2, 1), (1, 9)]);
    }
}
