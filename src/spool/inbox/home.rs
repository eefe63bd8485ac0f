//! Names on the way home: `~` names that were given only because an older tree of the same origin stood in the way.
//!
//! `mv d e; echo x >d`: while files below `d` are still shown, the new file is `d~origin`. That name is provisional, and
//! is given up for `d` when nothing is left of the tree but empty directories: with the last file that is renamed away,
//! when the user removes the directory, when the next version comes, or by the look that is taken now and then.
//!
//! # Invariants
//! 1. A name is provisional only if all that was shown below the directory in its way was of its own origin; one that was
//!    chosen because of another origin's file is kept for ever.
//! 2. Only empty directories are removed, and at most [`STEP`] of them under one hold of the decision lock.
//!
//! # Crash behaviour
//! There is no intent: a rename without its rows is undone at the next start, as any name without a record whose inode has
//! one, and done again.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::bundle::RelPath;
use crate::peer::PeerId;
use crate::spool::inbox::naming::Choosing;
use crate::spool::inbox::tables::{CHOSEN, IN_NAMES, InName, OWNED, PROVISIONAL};
use crate::spool::inbox::under_way::Note;
use crate::spool::journal::Batch;
use crate::spool::keys::Beneath;
use crate::spool::{Spool, SpoolError, durable};

/// Names looked at, and directories removed, at once.
const STEP: usize = 256;

/// A directory that changed so recently may be about to be removed by the user, who would be told that it is not there.
const QUIET: Duration = Duration::from_secs(2);

impl Spool {
    /// `chosen` is about to be the name of (origin, path); it is provisional if only a tree of its own stood in the way.
    pub(in crate::spool) fn note_provisional(
        &self,
        path: &RelPath,
        chosen: &RelPath,
        choosing: &mut Choosing,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if let Some(wanted) = choosing.blocked.take()
            && wanted != *chosen
            && self.is_own_tree(choosing.origin, &wanted)?
        {
            let whose = (choosing.origin, path.clone());
            batch.insert(PROVISIONAL, &wanted, &whose);
            self.provisional.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether something is shown below a directory, all of it, as far as it is looked at, of this origin.
    fn is_own_tree(&self, origin: PeerId, directory: &RelPath) -> Result<bool, SpoolError> {
        let below = IN_NAMES.below(&Beneath(directory));
        let rows = self.journal.rows(below, STEP)?;
        let publishing = &self.inbox.publishing;
        let is_something = !rows.is_empty() || publishing.shows_below(origin, directory);
        Ok(is_something
            && rows.iter().all(|(_, row)| row.origin == origin)
            && !publishing.others_show_below(origin, directory))
    }

    /// The next version of (origin, path) looks for its name: the one before it may go home now.
    pub(in crate::spool) fn go_home_before(
        &self,
        path: &RelPath,
        chosen: &RelPath,
    ) -> Result<bool, SpoolError> {
        let wanted = match chosen.parent() {
            Some(above) => above.child(path.file_name()),
            None => RelPath::parse(path.file_name()),
        };
        match wanted {
            Ok(wanted) if wanted != *chosen => self.go_home(&wanted),
            Ok(_) | Err(_) => Ok(false),
        }
    }

    /// The file that waits for the name `wanted`, if there is one, gets it as soon as the way is clear. Call with the
    /// decision lock held.
    pub(in crate::spool) fn go_home(&self, wanted: &RelPath) -> Result<bool, SpoolError> {
        let waiting: Option<(PeerId, RelPath)> = self.journal.row(PROVISIONAL, wanted)?;
        let Some((origin, path)) = waiting else {
            return Ok(false);
        };
        let mut batch = Batch::default();
        batch.remove(PROVISIONAL, wanted);
        let chosen = self.chosen(origin, &path)?;
        let Some(chosen) = chosen.filter(|chosen| chosen != wanted) else {
            self.journal.submit(batch)?;
            return Ok(false);
        };
        self.record_pending(&chosen)?;
        let row: Option<InName> = self.journal.row(IN_NAMES, &chosen)?;
        let row = row.filter(|row| row.origin == origin && row.path == path);
        if let Some(row) = &row
            && self.inbox().inode(&chosen)? != Some(row.ino)
        {
            // Looked at before it is shown again.
            return Ok(false);
        }
        let owner = self.owner(wanted)?;
        if owner.is_some_and(|owner| !owner.is(origin, &path, wanted)) || !self.clear(wanted)? {
            return Ok(false);
        }
        if row.is_some() && !self.link_may_move(&chosen, wanted)? {
            return Ok(false);
        }
        batch.remove(OWNED, &chosen);
        let Some(row) = row else {
            // Consumed meanwhile: the next version chooses anew.
            batch.remove(CHOSEN, &(origin, &path));
            self.journal.submit(batch)?;
            return Ok(true);
        };
        durable::rename_no_replace(&self.inbox().at(&chosen)?, &self.inbox().at(wanted)?)?;
        let publishing = &self.inbox.publishing;
        publishing.note(|| Note::Given(wanted.clone()));
        batch.remove(IN_NAMES, &chosen);
        batch.insert(IN_NAMES, wanted, &row);
        batch.remove(CHOSEN, &(origin, &path));
        self.choose(origin, &path, wanted, true, &mut batch);
        // The row of its old name may have said which version it is.
        if let Some(version) = self.version(origin, &path)? {
            self.shows_version(&row, wanted, version, &mut batch);
        }
        self.record_shown(wanted, row.origin, row.digest, row.ino, &mut batch)?;
        self.ledger
            .show_moved(row.bundle, &chosen, wanted, &mut batch)?;
        batch.sync(self.inbox().sync_above(wanted));
        self.journal.submit(batch)?;
        if let Some(observer) = self.observer.read().clone() {
            observer.renamed(&chosen, wanted, None);
        }
        tracing::info!(from = %chosen, to = %wanted, "the way is clear: renamed in the inbox");
        Ok(true)
    }

    /// Removes a directory in which there are only directories, or nothing; `false`: something is in the way still.
    pub(in crate::spool) fn clear(&self, directory: &RelPath) -> Result<bool, SpoolError> {
        if self.inbox().overlay.is_below(directory) {
            return Ok(false);
        }
        match self.inbox().look(directory)? {
            None => return Ok(true),
            Some(meta) if !meta.is_dir() => return Ok(false),
            Some(_) => {}
        }
        let (mut found, mut open) = (Vec::new(), VecDeque::from([directory.clone()]));
        while let Some(next) = open.pop_front() {
            if found.len() < STEP {
                let Ok(names) = self.inbox().list(Some(&next)) else {
                    return Ok(false);
                };
                for entry in names.take(STEP) {
                    match entry {
                        Ok((path, meta)) if meta.is_dir() => open.push_back(path),
                        Ok(_) | Err(_) => return Ok(false),
                    }
                }
            }
            found.push(next);
            if found.len() > 2 * STEP {
                break;
            }
        }
        let observer = self.observer.read().clone();
        let mut all = true;
        for path in found.iter().rev() {
            all = self.remove_inbox_directory(path).is_ok();
            if let Some(observer) = observer.as_ref().filter(|_| all) {
                observer.removed(path);
            }
        }
        Ok(all)
    }

    /// Looks after all that waits, in slices; `quietly`: leaves directories alone that change just now.
    pub(in crate::spool) fn look_home(&self, quietly: bool) -> Result<(), SpoolError> {
        if !self.provisional.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let mut after: Option<RelPath> = None;
        loop {
            let _decide = self.decide();
            let waiting = PROVISIONAL.all().after(after.as_ref());
            let rows = self.journal.keys(waiting, STEP / 8)?;
            for wanted in &rows {
                // Whatever waits still is looked at again.
                self.provisional.store(true, Ordering::Release);
                let changed = self
                    .inbox()
                    .look(wanted)?
                    .and_then(|meta| meta.modified().ok());
                let recent = changed.is_some_and(|at| at.elapsed().is_ok_and(|ago| ago < QUIET));
                if !(quietly && recent)
                    && let Err(error) = self.go_home(wanted)
                {
                    tracing::warn!(%error, %wanted, "a file cannot get its name now");
                }
            }
            match rows.into_iter().next_back() {
                Some(wanted) => after = Some(wanted),
                None => return Ok(()),
            }
        }
    }
}
