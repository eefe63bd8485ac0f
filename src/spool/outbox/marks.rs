//! Marks: where an inode of the outbox stands between its first modification and its seal.
//!
//! A row of the log for each such inode: `open` from before CREATE or the first modifying operation is answered, `closed`
//! from the RELEASE of the last writer on, or `torn` if that was killed or had a write fail. It goes in the batch of the
//! seal, when that covers the last of the names that are to be sent. It has the path of one of the inode's names, and
//! moves with it.
//!
//! # Invariants
//! 1. A mark is made, moved and taken away with the mark lock of the inode's gate held.
//! 2. Only who holds the gate itself makes another mark out of an `open` one. Who renames, links or removes a name must not
//!    wait for the gate: it moves a mark, mends a `torn` one, or takes away one that is not `open`.
//! 3. Nothing is marked any more once the inode has no name: its number may be another file's by then.
//!
//! # Crash behaviour
//! What the next start makes of marks is in `outbox/recover.rs`.

use super::Outbox;
use crate::bundle::RelPath;
use crate::journal::JournalError;
use crate::spool::SpoolError;
use crate::spool::journal::Batch;
use crate::spool::outbox::gate::GateGuard;
use crate::spool::outbox::tables::{MARKS, Mark, MarkKind};

/// Marks looked at at once when a directory moves.
const MARKS_PAGE: usize = 1000;

impl Outbox {
    /// Where an inode stands, unless it is sealed or nothing was ever written to it.
    pub(in crate::spool) fn mark_of(&self, ino: u64) -> Result<Option<Mark>, JournalError> {
        self.journal.row(MARKS, &ino)
    }

    /// Some of the marks, by their inodes.
    pub(in crate::spool) fn marks(
        &self,
        after: Option<u64>,
        most: usize,
    ) -> Result<Vec<(u64, Mark)>, JournalError> {
        self.journal.rows(MARKS.all().after(after.as_ref()), most)
    }

    /// A file is about to come here from the inbox: killed right after the rename, it is sealed at the next start.
    pub(in crate::spool) fn expect(&self, ino: u64, path: &RelPath) -> Result<(), JournalError> {
        let mark = Mark {
            kind: MarkKind::Closed,
            path: path.clone(),
        };
        let mut batch = Batch::default();
        batch.insert(MARKS, &ino, &mark);
        self.journal.submit(batch)
    }

    /// It did not come.
    pub(in crate::spool) fn expect_no_more(&self, ino: u64) -> Result<(), JournalError> {
        let mut batch = Batch::default();
        batch.remove(MARKS, &ino);
        self.journal.submit(batch)
    }

    /// The row of an `open` mark, unless the journal has it. Call with the gate locked, and `batch` submitted at once.
    pub(in crate::spool) fn mark_open(
        &self,
        gate: &mut GateGuard<'_>,
        path: &RelPath,
        mut batch: Batch,
    ) -> Result<(), SpoolError> {
        let shared = gate.shared();
        if shared.is_marked() {
            return Ok(self.journal.submit(batch)?);
        }
        let _marking = shared.marking();
        let ino = shared.ino();
        let before: Option<Mark> = self.journal.row(MARKS, &ino)?;
        gate.state().untouched = before.is_none();
        // What is written from here on is to be sent, whatever was to be found out of the bytes before.
        self.recheck.lock().remove(&ino);
        if !shared.is_retired() {
            let mark = Mark {
                kind: MarkKind::Open,
                path: path.clone(),
            };
            batch.insert(MARKS, &ino, &mark);
        }
        self.journal.submit(batch)?;
        shared.set_marked(true);
        Ok(())
    }

    /// The last writer closed: after a crash of the daemon the file is sealed at start. Call with the gate locked.
    pub(crate) fn mark_closed(&self, ino: u64, path: &RelPath) {
        self.mark(ino, Some((MarkKind::Closed, path)));
    }

    /// Its writer was killed, or a write failed: shown as `incomplete`, not sent, also after a restart. Call with the gate
    /// locked.
    pub(crate) fn mark_torn(&self, ino: u64, path: &RelPath) {
        self.mark(ino, Some((MarkKind::Torn, path)));
    }

    /// Nothing is to be sent of this inode after all. Call with the gate locked.
    pub(crate) fn unmark(&self, ino: u64) {
        self.mark(ino, None);
    }

    fn mark(&self, ino: u64, mark: Option<(MarkKind, &RelPath)>) {
        let gate = self.live_gate(ino);
        let _marking = gate.as_ref().map(|gate| gate.marking());
        if let Some(gate) = &gate {
            gate.set_marked(false);
        }
        let retired = gate.as_ref().is_some_and(|gate| gate.is_retired());
        let mut batch = Batch::default();
        match mark {
            Some((kind, path)) if !retired => {
                let path = path.clone();
                batch.insert(MARKS, &ino, &Mark { kind, path });
            }
            Some(_) | None => batch.remove(MARKS, &ino),
        }
        if let Err(error) = self.journal.submit(batch) {
            tracing::error!(%error, ino, "cannot mark a file of the outbox");
        }
    }

    /// A name of the inode was renamed or linked, and it is to be sent although it was incomplete. For those who do not
    /// hold the gate: an inode that is open stays marked as such.
    pub(crate) fn mend_mark(&self, ino: u64) {
        let mended = self.remark(ino, |mark| {
            (mark.kind == MarkKind::Torn).then_some(Some(Mark {
                kind: MarkKind::Closed,
                ..mark
            }))
        });
        if let Err(error) = mended {
            tracing::error!(%error, ino, "cannot mark a file of the outbox");
        }
    }

    /// [`Self::unmark`] for those who do not hold the gate: an inode that is open stays marked.
    pub(crate) fn unmark_closed(&self, ino: u64) {
        let unmarked = self.remark(ino, |mark| (mark.kind != MarkKind::Open).then_some(None));
        if let Err(error) = unmarked {
            tracing::error!(%error, ino, "cannot unmark a file of the outbox");
        }
    }

    /// Makes another mark out of the one there is: `change` says which; `None`: it stays.
    fn remark(
        &self,
        ino: u64,
        change: impl FnOnce(Mark) -> Option<Option<Mark>>,
    ) -> Result<(), SpoolError> {
        if self.journal.row(MARKS, &ino)?.is_none() {
            return Ok(());
        }
        let gate = self.gate(ino);
        let _marking = gate.marking();
        let Some(changed) = self.journal.row(MARKS, &ino)?.and_then(change) else {
            return Ok(());
        };
        let mut batch = Batch::default();
        match changed {
            Some(mark) => batch.insert(MARKS, &ino, &mark),
            None => batch.remove(MARKS, &ino),
        }
        Ok(self.journal.submit(batch)?)
    }

    /// The file that is at `to` now was at `from`.
    pub(in crate::spool) fn move_mark(
        &self,
        from: &RelPath,
        to: &RelPath,
    ) -> Result<(), SpoolError> {
        let Some(ino) = self.root.inode(to)? else {
            return Ok(());
        };
        self.remark(ino, |mark| {
            (mark.path == *from).then(|| {
                Some(Mark {
                    path: to.clone(),
                    ..mark
                })
            })
        })
    }

    /// Names moved, each as `moved` says. Few inodes are marked at a time.
    pub(in crate::spool) fn move_marks(
        &self,
        moved: impl Fn(&RelPath) -> Option<RelPath>,
    ) -> Result<(), SpoolError> {
        let mut after: Option<u64> = None;
        loop {
            let page = self
                .journal
                .rows(MARKS.all().after(after.as_ref()), MARKS_PAGE)?;
            for (ino, mark) in &page {
                if moved(&mark.path).is_some() {
                    self.remark(*ino, |mark| {
                        moved(&mark.path).map(|path| Some(Mark { path, ..mark }))
                    })?;
                }
            }
            match page.into_iter().next_back() {
                Some((ino, _)) => after = Some(ino),
                None => return Ok(()),
            }
        }
    }
}
