//! Names in the inbox at a start: as recorded, in doubt, or without a record.

use super::forward::is_in_the_way;
use super::tables::IN_NAMES;
use crate::journal::Batch;
use crate::spool::durable;
use crate::spool::recover::{Found, walk};
use crate::spool::start::LastRun;
use crate::spool::{Spool, SpoolError};

/// Files without a row that are looked for among the proofs: a kill leaves one, a power loss those of its last moment.
const UNRECORDED_MAX: usize = 10_000;

impl Spool {
    /// Names in the inbox: as recorded, in doubt, or without a record.
    pub(in crate::spool) fn recover_inbox(&self, last: LastRun) -> Result<(), SpoolError> {
        // What a start before this one put aside is looked at again, unless its name is not recorded any more.
        walk(self.unverified(), &mut |found| {
            let row = self.inbox.row_of(&found.path)?;
            match row {
                Some(_) => Ok(()),
                None => Ok(durable::remove(&self.unverified().at(&found.path)?).map(drop)?),
            }
        })?;
        let (mut gone, mut unrecorded) = (None, Vec::new());
        walk(self.inbox(), &mut |found| {
            let row = self.inbox.row_of(&found.path)?;
            if let Some(row) = &row {
                return match self.is_as_recorded(row, &found)? {
                    true => Ok(()),
                    false => self.doubt(&found),
                };
            }
            let gone = match &gone {
                Some(gone) => gone,
                None => gone.insert(self.names_gone()?),
            };
            if let Some((name, row)) = gone.get(&found.stat.ino) {
                match self.take_back(&found.path, name, row) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(SpoolError::Io { source, .. }) if is_in_the_way(&source) => {}
                    Err(error) => return Err(error),
                }
            }
            if unrecorded.len() < UNRECORDED_MAX {
                unrecorded.push(found);
                return Ok(());
            }
            self.put_aside(&found)
        })?;
        // What a journal that is made again knows, it has of the proofs already.
        if !self.is_rebuilt() {
            unrecorded = self.publish_proved(unrecorded, last)?;
        }
        for found in unrecorded {
            self.put_aside(&found)?;
        }
        self.each_row(IN_NAMES, |spool, name, row| {
            let is_there = spool.inbox().inode(name)? == Some(row.ino);
            if is_there || spool.is_doubted(name) {
                return Ok(());
            }
            let mut batch = Batch::default();
            batch.remove(IN_NAMES, name);
            // Moved to the outbox, the inode may still be the one behind its digest.
            if spool.content.linked(row.ino).is_none() {
                self.content.forget_record(row.ino, &mut batch);
            }
            spool.row_consumed(row, name, &mut batch)?;
            Ok(spool.journal.submit(batch)?)
        })
    }

    /// A file of the inbox that no row and no proof knows.
    fn put_aside(&self, found: &Found) -> Result<(), SpoolError> {
        let why = if self.is_rebuilt() {
            "the journal was missing, and nothing that its origin signed says what this is"
        } else {
            "no durable record of this name in the inbox"
        };
        let why = format!("path {}\n{why}\n", found.path);
        let at = self.quarantine_file(&self.inbox().at(&found.path)?, &why)?;
        tracing::warn!(path = %found.path, at = %at.display(), "a file in the inbox without a record was quarantined");
        Ok(())
    }
}
