//! Files of the outbox that were renamed, and whose rows were not: the daemon was killed between the two.
//!
//! Such a file is found under a name without a row, or with that of another file, while the name of its own row shows
//! nothing, or another file. It gets its row back, as if the rename had been recorded; else it would be sent as a new file,
//! and shown again to who had consumed it.
//!
//! # Crash behaviour
//! [`DISPLACED`] is of one start: what a start that was killed left of it goes first.

use crate::bundle::RelPath;
use crate::spool::journal::Batch;
use crate::spool::outbox::tables::{DISPLACED, OUT_NAMES, OutName};
use crate::spool::recover::Found;
use crate::spool::{Spool, SpoolError};

impl Spool {
    /// Notes the rows of names that do not show their inode, by that.
    pub(super) fn note_displaced(&self) -> Result<(), SpoolError> {
        let mut old = Batch::default();
        self.each_key(DISPLACED, |key| old.remove(DISPLACED, key))?;
        self.journal.submit(old)?;
        self.each_row(OUT_NAMES, |spool, path, row| {
            let mut batch = Batch::default();
            if spool.outbox.root.inode(path)? != Some(row.stat.ino) {
                batch.insert(DISPLACED, &(row.stat.ino, path), row);
            }
            Ok(spool.journal.submit(batch)?)
        })
    }

    /// Gives a file that was found the row that is displaced, if it is surely its own. `there` is the row of its name.
    pub(super) fn give_row_back(
        &self,
        found: &Found,
        there: Option<OutName>,
    ) -> Result<Option<OutName>, SpoolError> {
        let is_like = |row: &OutName| {
            row.stat.ino == found.stat.ino
                || (row.stat.size == found.stat.size && row.stat.mtime == found.stat.mtime)
        };
        if there.as_ref().is_some_and(is_like) {
            return Ok(there);
        }
        let Some((from, row)) = self.displaced_row(found)? else {
            return Ok(there);
        };
        let mut batch = Batch::default();
        batch.remove(DISPLACED, &(found.stat.ino, &from));
        let old: Option<OutName> = self.outbox.name(&from)?;
        if let Some(old) = old.filter(|old| old.stat.ino == found.stat.ino) {
            batch.remove(OUT_NAMES, &from);
            self.outbox.leaves(&from, &old, &mut batch)?;
        }
        if let Some(there) = &there {
            self.outbox.leaves(&found.path, there, &mut batch)?;
        }
        let row = row.moved(&from);
        tracing::info!(%from, to = %found.path, "a rename that was cut off is taken up again");
        self.outbox.put_moved(row.clone(), &found.path, &mut batch);
        self.journal.submit(batch)?;
        Ok(Some(row))
    }

    /// A row of the file that no other name of it has taken: of several that of the same name, if a directory was renamed.
    fn displaced_row(&self, found: &Found) -> Result<Option<(RelPath, OutName)>, SpoolError> {
        let rows = self
            .journal
            .rows(DISPLACED.below(&found.stat.ino), usize::MAX)?;
        let mut own: Vec<_> = rows
            .into_iter()
            .map(|((_, from), row)| (from, row))
            .collect();
        own.retain(|(_, row)| row.stat.same_bytes(&found.stat));
        let is_same = |(from, _): &(RelPath, OutName)| from.file_name() == found.path.file_name();
        let at = own.iter().position(is_same).unwrap_or(0);
        Ok(own.into_iter().nth(at))
    }

    /// Rows whose files were not found go, if their names show nothing, or have another row by now.
    pub(super) fn drop_displaced(&self) -> Result<(), SpoolError> {
        self.each_row(DISPLACED, |spool, key, row| {
            let (_, path) = key;
            let mut batch = Batch::default();
            batch.remove(DISPLACED, key);
            let there: Option<OutName> = spool.outbox.name(path)?;
            let own = there.filter(|there| there.stat.ino == row.stat.ino);
            let shows = spool.outbox.root.look(path)?.is_some();
            if let Some(own) = own.as_ref().filter(|_| !shows) {
                batch.remove(OUT_NAMES, path);
                spool.outbox.leaves(path, own, &mut batch)?;
            }
            let own = own.is_some();
            if !own || !shows {
                spool.file_gone(row)?;
            }
            spool.journal.submit(batch)?;
            match own && shows {
                true => Ok(()),
                false => spool.content.free(row.digest),
            }
        })
    }
}
