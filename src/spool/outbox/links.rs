//! Names of an inode: what of the outbox shows the same file, where that has more than one name.
//!
//! Bytes, mode and times belong to the inode, so each of its names that is sent has to be sent again when they change,
//! whatever name they were changed through.
//!
//! # Invariants
//! 1. Both tables have the same pairs: [`LINKS`] by name, so that a renamed directory takes along what is below it,
//!    [`NAMES_OF`] by inode. An inode with one name has no row.
//! 2. The rows go in the batch of the link, the rename or the removal, with the decision lock held.
//!
//! # Crash behaviour
//! Killed between a system call and its batch, the rows are as before it. Recovery goes through all names anyway, and
//! makes the rows that are missing and drops those that are wrong.

use std::sync::atomic::Ordering;

use super::Outbox;
use crate::bundle::RelPath;
use crate::spool::SpoolError;
use crate::spool::decision::Guard;
use crate::spool::journal::Batch;
use crate::spool::keys::Beneath;
use crate::spool::outbox::tables::{LINKS, NAMES_OF};

/// Rows moved in one batch when a directory is renamed.
const LINKS_PAGE: usize = 1000;

fn add(ino: u64, path: &RelPath, batch: &mut Batch) {
    batch.insert(LINKS, path, &ino);
    batch.insert(NAMES_OF, &(ino, path), &());
}

fn take(ino: u64, path: &RelPath, batch: &mut Batch) {
    batch.remove(LINKS, path);
    batch.remove(NAMES_OF, &(ino, path));
}

impl Outbox {
    /// The names of an inode of the outbox, if it has more than one, in their order.
    pub(crate) fn names_of(&self, ino: u64) -> Vec<RelPath> {
        if !self.any_links.load(Ordering::Acquire) {
            return Vec::new();
        }
        let names = self.journal.keys(NAMES_OF.below(&ino), usize::MAX);
        let names = names.unwrap_or_else(|error| {
            tracing::error!(%error, ino, "cannot look up the names of a file");
            Vec::new()
        });
        names.into_iter().map(|(_, path)| path).collect()
    }
}

impl Guard<'_, Outbox> {
    /// A name is gone; `left` are.
    pub(in crate::spool) fn unlink_row(
        &self,
        ino: u64,
        path: &RelPath,
        left: u64,
        batch: &mut Batch,
    ) {
        if !self.any_links.load(Ordering::Acquire) {
            return;
        }
        take(ino, path, batch);
        if left <= 1 {
            for last in self.names_of(ino) {
                take(ino, &last, batch);
            }
        }
    }

    /// A name moved.
    pub(in crate::spool) fn move_link(
        &self,
        from: &RelPath,
        to: &RelPath,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if self.any_links.load(Ordering::Acquire)
            && let Some(ino) = self.journal.row(LINKS, from)?
        {
            take(ino, from, batch);
            add(ino, to, batch);
        }
        Ok(())
    }

    /// A directory moved.
    pub(in crate::spool) fn move_links_below(
        &self,
        from: &RelPath,
        to: &RelPath,
    ) -> Result<(), SpoolError> {
        if !self.any_links.load(Ordering::Acquire) {
            return Ok(());
        }
        loop {
            // What was moved is not met again.
            let below = LINKS.below(&Beneath(from));
            let rows = self.journal.rows(below, LINKS_PAGE)?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            for (old, ino) in rows {
                take(ino, &old, &mut batch);
                if let Some(new) = old.rebase(from, to) {
                    add(ino, &new, &mut batch);
                }
            }
            self.journal.submit(batch)?;
        }
    }

    /// Two names changed places, with everything below them.
    pub(in crate::spool) fn exchange_links(
        &self,
        a: &RelPath,
        b: &RelPath,
    ) -> Result<(), SpoolError> {
        if !self.any_links.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut pairs = Vec::new();
        for (from, to) in [(a, b), (b, a)] {
            let own = self.journal.row(LINKS, from)?;
            pairs.extend(own.map(|ino| (ino, from.clone(), to.clone())));
            let below = LINKS.below(&Beneath(from));
            for (old, ino) in self.journal.rows(below, usize::MAX)? {
                let new = old.rebase(from, to);
                pairs.extend(new.map(|new| (ino, old, new)));
            }
        }
        let mut batch = Batch::default();
        for (ino, old, _) in &pairs {
            take(*ino, old, &mut batch);
        }
        for (ino, _, new) in &pairs {
            add(*ino, new, &mut batch);
        }
        Ok(self.journal.submit(batch)?)
    }
}

impl Outbox {
    /// The inode at `from` has the name `to` too.
    pub(crate) fn linked(&self, ino: u64, from: &RelPath, to: &RelPath) {
        // First: who looks for names from here on looks.
        self.any_links.store(true, Ordering::Release);
        let _decide = self.decide();
        let mut batch = Batch::default();
        add(ino, from, &mut batch);
        add(ino, to, &mut batch);
        if let Err(error) = self.journal.submit(batch) {
            tracing::error!(%error, %from, %to, "cannot record a hard link; the next start finds it");
        }
    }

    /// At start: drops rows of names that show another inode by now.
    pub(in crate::spool) fn recover_links(&self) -> Result<(), SpoolError> {
        for row in self.journal.each(LINKS) {
            let (path, ino) = row?;
            if self.root.inode(&path)? == Some(ino) {
                self.any_links.store(true, Ordering::Release);
                continue;
            }
            let mut batch = Batch::default();
            take(ino, &path, &mut batch);
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    /// At start: a file was found that has `nlink` links, of which one may be that in `content/`.
    pub(in crate::spool) fn found_link(
        &self,
        ino: u64,
        path: &RelPath,
        nlink: u64,
    ) -> Result<(), SpoolError> {
        let several = nlink > 2 || (nlink == 2 && self.visible_links(ino, nlink) == 2);
        let known = || self.journal.row(LINKS, path);
        let mut batch = Batch::default();
        if several {
            self.any_links.store(true, Ordering::Release);
            if known()? != Some(ino) {
                add(ino, path, &mut batch);
            }
        } else if self.any_links.load(Ordering::Acquire) && known()?.is_some() {
            take(ino, path, &mut batch);
        }
        Ok(self.journal.submit(batch)?)
    }
}
