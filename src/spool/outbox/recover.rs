//! Recovery of the outbox: what was written and not sealed when the daemon ended.
//!
//! # What a file that is found becomes
//!
//! | mark | same boot | after a power loss |
//! |---|---|---|
//! | `open`, `torn` | incomplete | incomplete |
//! | `closed` | sealed | incomplete |
//! | none, and it is as recorded | it is done | it is done |
//! | none, and its times or its inode are not as recorded | hashed; sent if its digest is another | hashed; incomplete if its digest is another, unless only times are |
//! | being compared with its record when the daemon ended again | the same | the same |
//! | none, and another name of a file that is as recorded | sealed | sealed |
//! | none, and no record | sealed; incomplete if it is empty: its open may never have succeeded | incomplete |
//!
//! A mark is of the inode, under whatever name. Where the path that it has shows another inode (the state was moved, or
//! the kill came between a rename and its rows), it counts for both, unless the digest is the recorded one.
//!
//! What is incomplete keeps a mark, so that it stays incomplete at the start after this one. Names of files that have several
//! are compared with the tables by the way.

mod displaced;
mod trees;

use std::collections::HashSet;

use crate::bundle::RelPath;
use crate::spool::content::inode_at;
use crate::spool::journal::Batch;
use crate::spool::outbox::tables::{MARKS, Mark, MarkKind, OutName};
use crate::spool::recover::{Found, walk};
use crate::spool::{Recheck, RecoveredFile, Spool, SpoolError};

/// What the marks say of one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Says {
    Nothing,
    Closed,
    Unfinished,
    /// It may be what the mark is of, or may have taken its place.
    Doubt(MarkKind),
}

/// Marks of which the path shows another inode, or nothing.
#[derive(Default)]
struct Astray {
    paths: HashSet<RelPath>,
    inodes: HashSet<u64>,
}

impl Spool {
    /// Runs all of it; what is found is for [`super::Outbox::recovered`].
    pub(in crate::spool) fn recover_outbox(&self, same_boot: bool) -> Result<(), SpoolError> {
        self.note_displaced()?;
        self.outbox.recover_links()?;
        let astray = self.marks_astray()?;
        let mut recovered = Vec::new();
        let mut live_marks = HashSet::new();
        walk(&self.outbox.root, &mut |found| {
            // One that cannot be sent is nobody's business, as while the mount serves.
            if found.link && self.open_link(&found.path, found.stat.ino)?.is_none() {
                return Ok(());
            }
            self.outbox
                .found_link(found.stat.ino, &found.path, found.nlink)?;
            let says = self.says(&found, &astray)?;
            if says != Says::Nothing {
                live_marks.insert(found.stat.ino);
            }
            if let Some(file) = self.recover_file(found, says, same_boot)? {
                live_marks.insert(file.ino);
                recovered.push(file);
            }
            Ok(())
        })?;
        self.drop_displaced()?;
        self.each_row(MARKS, |spool, ino, _| {
            if live_marks.contains(ino) {
                return Ok(());
            }
            let mut batch = Batch::default();
            batch.remove(MARKS, ino);
            Ok(spool.journal.submit(batch)?)
        })?;
        self.recover_trees(&mut recovered)?;
        if !recovered.is_empty() {
            tracing::info!(
                files = recovered.len(),
                "found files in the outbox that were not sealed"
            );
        }
        *self.outbox.recovered.lock() = recovered;
        Ok(())
    }

    fn marks_astray(&self) -> Result<Astray, SpoolError> {
        let mut astray = Astray::default();
        self.each_row(MARKS, |spool, ino, mark| {
            if spool.outbox.root.inode(&mark.path)? != Some(*ino) {
                astray.paths.insert(mark.path.clone());
                astray.inodes.insert(*ino);
            }
            Ok(())
        })?;
        Ok(astray)
    }

    fn says(&self, found: &Found, astray: &Astray) -> Result<Says, SpoolError> {
        let ino = found.stat.ino;
        let mark: Option<Mark> = self.outbox.mark_of(ino)?;
        let kind = mark.map(|mark| mark.kind);
        if let Some(kind) = kind {
            return Ok(match kind {
                kind if astray.inodes.contains(&ino) => Says::Doubt(kind),
                MarkKind::Closed => Says::Closed,
                MarkKind::Open | MarkKind::Torn => Says::Unfinished,
                MarkKind::Doubted => Says::Doubt(kind),
            });
        }
        // Another file than the one that was marked: what its bytes are nobody knows.
        let taken = astray.paths.contains(&found.path);
        Ok(if taken {
            Says::Doubt(MarkKind::Torn)
        } else {
            Says::Nothing
        })
    }

    /// `None`: there is nothing to do about it.
    fn recover_file(
        &self,
        found: Found,
        says: Says,
        same_boot: bool,
    ) -> Result<Option<RecoveredFile>, SpoolError> {
        let ino = found.stat.ino;
        // A link is there as it was made, or not at all.
        let same_boot = same_boot || found.link;
        let row: Option<OutName> = self.outbox.name(&found.path)?;
        let row = self.give_row_back(&found, row)?;
        let file = |incomplete| {
            Ok(Some(RecoveredFile {
                ino,
                path: found.path.clone(),
                incomplete,
            }))
        };
        let unchanged = row
            .as_ref()
            .is_some_and(|row| row.stat.same_bytes(&found.stat));
        let content = row.as_ref().map(|row| self.layout.content(row.digest));
        let holds = content.as_deref().and_then(inode_at) == Some(ino);
        // Its times differ, or it is another inode, as after a restore. What changes bytes through the mount leaves a
        // mark; without one the file is looked at again in the background, and its content link stays meanwhile.
        let may_be_it = |row: &&OutName| row.stat.size == found.stat.size && says == Says::Nothing;
        if let Some(row) = row.as_ref().filter(may_be_it) {
            let record = self.content.record_of(ino)?;
            let is_it = row.stat.is(&found.stat)
                || record
                    .as_ref()
                    .is_some_and(|record| record.vouches(row.digest, &found.stat));
            if is_it && row.formerly.is_none() && !self.is_to_be_dressed(row, &found)? {
                return Ok(None);
            }
            if holds && record.is_none_or(|record| record.digest != row.digest) {
                // Until then a change of the file is to leave the content as it is.
                let mut batch = Batch::default();
                self.content
                    .record_doubted(row.digest, &found.stat, &mut batch)?;
                self.journal.submit(batch)?;
            }
            let recheck = if same_boot || unchanged {
                Recheck::SendIfChanged
            } else {
                Recheck::KeepIfChanged
            };
            self.compare(&found, recheck)?;
            return file(false);
        }
        if !unchanged
            && holds
            && let Some(row) = &row
        {
            // Changed behind our back: the link no longer shows what its name says.
            self.decide().content.disown(row.digest, ino)?;
        }
        let (incomplete, recheck) = match says {
            Says::Unfinished => (true, None),
            Says::Closed => (!same_boot, Some(Recheck::SendIfChanged)),
            Says::Doubt(MarkKind::Closed) if same_boot => (false, Some(Recheck::SendIfChanged)),
            Says::Doubt(_) => (row.is_none(), Some(Recheck::KeepIfChanged)),
            Says::Nothing if same_boot && found.stat.size == 0 => {
                // At the next start it is what it is now: no mark, and as many starts as there are empty ignored files.
                return file(true);
            }
            // Another name of a file whose bytes are on the disk is as good as that.
            Says::Nothing => {
                let record = self.content.record_of(ino)?;
                let is_known = record.is_some_and(|record| record.stat.is(&found.stat));
                (!same_boot && !is_known, Some(Recheck::SendIfChanged))
            }
        };
        if incomplete {
            self.mark_incomplete(ino, &found.path)?;
        } else if let Some(recheck) = recheck.filter(|_| row.is_some()) {
            self.compare(&found, recheck)?;
        }
        file(incomplete)
    }

    /// It is not sent, after the next start neither.
    fn mark_incomplete(&self, ino: u64, path: &RelPath) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        let mark = Mark {
            kind: MarkKind::Torn,
            path: path.clone(),
        };
        batch.insert(MARKS, &ino, &mark);
        self.journal.submit(batch)?;
        Ok(())
    }

    /// Whether a mode or time was set so soon after the seal that it is to be announced, and was not yet.
    fn is_to_be_dressed(&self, row: &OutName, found: &Found) -> Result<bool, SpoolError> {
        if row.stat.is(&found.stat) {
            return Ok(false);
        }
        let meta = self.outbox.root.look(&found.path)?;
        meta.map_or(Ok(false), |meta| {
            self.dressed(row, &found.path, &meta, false)
        })
    }

    /// The file is to be compared with what is recorded; a mark says so until that is done.
    fn compare(&self, found: &Found, recheck: Recheck) -> Result<(), SpoolError> {
        let ino = found.stat.ino;
        self.outbox.recheck.lock().insert(ino, recheck);
        let mark = Mark {
            kind: match recheck {
                Recheck::SendIfChanged => MarkKind::Closed,
                Recheck::KeepIfChanged => MarkKind::Doubted,
            },
            path: found.path.clone(),
        };
        let mut batch = Batch::default();
        batch.insert(MARKS, &ino, &mark);
        Ok(self.journal.submit(batch)?)
    }
}
