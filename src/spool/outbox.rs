//! The outbox: what is being written, what waits for its seal, and the names under which things were sealed.
//!
//! [`Outbox`] owns the rows in [`tables`], the write gates, the queue of the sealers and the tail hasher. `fs` makes the
//! user's system calls on the outbox tree and tells it around them. Marks, which outlive a crash, are in [`marks`]; the
//! names of files that have several are in [`links`]; every seal goes the way in [`seal`].
//!
//! # Invariants
//! 1. What is sealed was closed, and is whole and unchanged; nothing is sent twice.
//!
//! # Crash behaviour
//! What the next start makes of the rows, and of files without any, is in [`recover`].
//!
//! # Threads
//! Any, FUSE loops among them; none waits here for the hasher or a commit. `sealer-N` and `tail-hasher` are its own.

mod forget;
pub(in crate::spool) mod gate;
pub(in crate::spool) mod hashing;
pub(in crate::spool) mod jobs;
pub(in crate::spool) mod links;
pub(in crate::spool) mod marks;
pub(in crate::spool) mod moved_on;
mod names;
#[cfg(test)]
mod probe;
mod recover;
pub(in crate::spool) mod reseal;
pub(in crate::spool) mod seal;
pub(in crate::spool) mod send;
mod tables;
pub(in crate::spool) mod tail;
pub(in crate::spool) mod tree;
mod unfinished;

use self::jobs::Jobs;
use self::moved_on::IsUnsent;
pub(crate) use self::tables::MarkKind;
pub(in crate::spool) use self::tables::OutName;
use self::tables::{MARKS, OUT_NAMES};
use self::tail::TailHasher;
pub(crate) use self::unfinished::Unfinished;
use crate::journal::Journal;
use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::beneath::Root;
use super::content::Content;
use super::durable::OnPath;
use super::journal::Batch;
use super::keys::{At, Beneath};
use super::ledger::Ledger;
use super::{
    FileStage, FileState, Gate, GateGuard, Recheck, RecoveredFile, RecoveredTree, Spool, SpoolError,
};
use crate::bundle::{RelPath, Stage};

/// Gates are looked through for dead ones each time their number has doubled past this.
const GATES_SWEEP: usize = 4096;

/// Rows moved in one batch when a directory is renamed.
const RENAME_PAGE: usize = 1000;

/// What is in the outbox and what was sent of it.
pub(crate) struct Outbox {
    journal: Arc<Journal>,
    pub(in crate::spool) content: Arc<Content>,
    ledger: Arc<Ledger>,
    /// The tree that the mount shows.
    pub(in crate::spool) root: Arc<Root>,
    gates: Mutex<HashMap<u64, Weak<Gate>>>,
    /// Inodes whose digest is to be compared with the recorded one.
    recheck: Mutex<HashMap<u64, Recheck>>,
    recovered: Mutex<Vec<RecoveredFile>>,
    recovered_trees: Mutex<Vec<RecoveredTree>>,
    next_tree: AtomicU64,
    /// Whether any inode of the outbox has, or had since the start, more than one name.
    any_links: AtomicBool,
    /// See [`Self::set_unsent`].
    unsent: RwLock<Option<IsUnsent>>,
    jobs: Arc<Jobs>,
    tails: TailHasher,
}

impl Outbox {
    /// Starts the tail hasher; the sealers wait for [`Self::start_sealing`].
    pub(in crate::spool) fn new(
        journal: &Arc<Journal>,
        content: &Arc<Content>,
        root: &Arc<Root>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            journal: Arc::clone(journal),
            content: Arc::clone(content),
            ledger: Arc::clone(&content.ledger),
            root: Arc::clone(root),
            gates: Mutex::default(),
            recheck: Mutex::default(),
            recovered: Mutex::default(),
            recovered_trees: Mutex::default(),
            next_tree: AtomicU64::new(1),
            any_links: AtomicBool::new(false),
            unsent: RwLock::default(),
            jobs: Arc::new(Jobs::new()),
            tails: TailHasher::start()?,
        })
    }

    /// Starts the sealers.
    pub(in crate::spool) fn start_sealing(
        &self,
        spool: &Arc<Spool>,
        sealers: usize,
    ) -> std::io::Result<()> {
        self.jobs.start(spool, sealers)
    }

    /// Ends the tail hasher. What it did not get to is hashed at the close, or at the next start.
    pub(in crate::spool) fn stop_hashing(&self) {
        self.tails.stop();
    }

    /// Finishes small seals, drops the others, and ends the sealers.
    pub(in crate::spool) fn stop_sealing(&self) {
        self.jobs.stop();
    }

    /// Waits until no descriptor of a removed file is held here; not for long. Says whether one was.
    pub(in crate::spool) fn let_go(&self) -> bool {
        self.tails.let_go()
    }

    /// Whether the inode is to be compared with what is recorded of it.
    pub(in crate::spool) fn is_to_be_compared(&self, ino: u64) -> bool {
        self.recheck.lock().contains_key(&ino)
    }

    fn live_gate(&self, ino: u64) -> Option<Arc<Gate>> {
        self.gates.lock().get(&ino).and_then(Weak::upgrade)
    }

    /// The write gate of a backing inode; the same one for everybody while anybody holds it.
    pub(crate) fn gate(&self, ino: u64) -> Arc<Gate> {
        let mut gates = self.gates.lock();
        if gates.len() >= gates.capacity().max(GATES_SWEEP) {
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        match gates.entry(ino) {
            MapEntry::Occupied(mut entry) => {
                if let Some(gate) = entry.get().upgrade() {
                    return gate;
                }
                let gate = Arc::new(Gate::new(ino, self.content.linked(ino)));
                entry.insert(Arc::downgrade(&gate));
                gate
            }
            MapEntry::Vacant(entry) => {
                let gate = Arc::new(Gate::new(ino, self.content.linked(ino)));
                entry.insert(Arc::downgrade(&gate));
                gate
            }
        }
    }

    /// What a name shows, a link as such.
    pub(crate) fn metadata(&self, path: &RelPath) -> std::io::Result<Metadata> {
        self.root.metadata(path)
    }

    /// Opens a file of the outbox to hash it; `None` when the name shows another inode by now, or nothing.
    pub(in crate::spool) fn open_member(
        &self,
        path: &RelPath,
        ino: u64,
    ) -> Result<Option<File>, SpoolError> {
        let at = self.root.shown(path);
        let file = match self.root.open(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            // The last two: it was moved during the walk.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::AGAIN) => {
                return Ok(None);
            }
            Err(e) => return Err(e).on("open", &at),
        };
        let meta = file.metadata().on("stat", &at)?;
        Ok((meta.ino() == ino && meta.is_file()).then_some(file))
    }

    /// `st_nlink` as the user should see it: without the link in `content/`, which may be the last one left.
    pub(crate) fn visible_links(&self, ino: u64, st_nlink: u64) -> u64 {
        if st_nlink > 0 && self.content.linked(ino).is_some() {
            st_nlink - 1
        } else {
            st_nlink
        }
    }

    /// To be called with the gate locked, before any modifying operation on the inode (WRITE, size change, FALLOCATE,
    /// O_TRUNC). Cheap: two flag tests, after the first call since the last seal. Marks the inode `open`. `false`: the
    /// old bytes are still needed, call [`Spool::copy_out`] first, on a thread that may block.
    pub(crate) fn before_modify(
        &self,
        gate: &mut GateGuard<'_>,
        path: &RelPath,
    ) -> Result<bool, SpoolError> {
        let ino = gate.gate().ino();
        let mut batch = Batch::default();
        // Held until the rows are in: whoever decides sees an inode either sealed, or without a digest.
        let mut decide = None;
        if let Some(digest) = gate.state().sealed {
            let content = decide.insert(self.decide().content());
            if !content.before_change(digest, ino, &mut batch)? {
                return Ok(false);
            }
            gate.state().sealed = None;
        }
        self.mark_open(gate, path, batch)?;
        drop(decide);
        Ok(true)
    }

    /// To be called with the gate locked when the operation that [`Self::before_modify`] admitted failed without changing
    /// anything: a file of which nothing else was changed since is as it was before, and is not to be taken for one whose
    /// writer was killed.
    pub(crate) fn not_modified(&self, gate: &mut GateGuard<'_>) {
        if !std::mem::take(&mut gate.state().untouched) {
            return;
        }
        self.unmark(gate.gate().ino());
    }

    /// Files that recovery found closed but not sealed, and incomplete ones: to be fed to `ready` at start. Once.
    pub(crate) fn recovered(&self) -> Vec<RecoveredFile> {
        std::mem::take(&mut *self.recovered.lock())
    }

    /// Directories that recovery found committed as one bundle and not sealed. Once.
    pub(crate) fn recovered_trees(&self) -> Vec<RecoveredTree> {
        std::mem::take(&mut *self.recovered_trees.lock())
    }
}

impl Spool {
    /// A name in the outbox moved; `directory` says that everything below moved with it.
    pub(crate) fn outbox_renamed(&self, from: &RelPath, to: &RelPath, directory: bool) {
        let moved = if directory {
            self.move_names_below(from, to)
        } else {
            self.move_name(from, to)
        };
        if let Err(error) = moved {
            tracing::error!(%error, %from, %to, "cannot record a rename; the file is hashed again at the next start");
        }
    }

    fn move_name(&self, from: &RelPath, to: &RelPath) -> Result<(), SpoolError> {
        let decide = self.decide();
        let mut batch = Batch::default();
        if let Some(before) = self.outbox.name(to)? {
            self.file_gone(&before)?;
            self.outbox.leaves(to, &before, &mut batch)?;
        }
        match self.outbox.name(from)? {
            Some(row) => {
                batch.remove(OUT_NAMES, from);
                self.outbox.leaves(from, &row, &mut batch)?;
                self.ledger.history.name_moved(row.bundle);
                self.outbox.put_moved(row.moved(from), to, &mut batch);
            }
            None => batch.remove(OUT_NAMES, to),
        }
        decide.outbox.move_link(from, to, &mut batch)?;
        self.journal.submit(batch)?;
        self.outbox.move_mark(from, to)
    }

    fn move_names_below(&self, from: &RelPath, to: &RelPath) -> Result<(), SpoolError> {
        let decide = self.decide();
        decide.outbox.move_links_below(from, to)?;
        self.outbox.move_marks(|path| path.rebase(from, to))?;
        let mut after: Option<RelPath> = None;
        loop {
            let below = OUT_NAMES.below(&Beneath(from)).after(after.as_ref());
            let rows = self.journal.rows(below, RENAME_PAGE)?;
            let mut batch = Batch::default();
            for (old, row) in &rows {
                batch.remove(OUT_NAMES, old);
                self.outbox.leaves(old, row, &mut batch)?;
                if let Some(new) = old.rebase(from, to) {
                    self.ledger.history.name_moved(row.bundle);
                    self.outbox
                        .put_moved(row.clone().moved(old), &new, &mut batch);
                }
            }
            self.journal.submit(batch)?;
            match rows.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// Two names in the outbox changed places, with everything below them where they are directories.
    pub(crate) fn outbox_exchanged(&self, a: &RelPath, b: &RelPath) {
        if let Err(error) = self.exchange_names(a, b) {
            tracing::error!(%error, %a, %b, "cannot record an exchange; the files are hashed again at the next start");
        }
    }

    /// Row by row in the order of what follows the two names, so that what was exchanged is not met again: memory does not
    /// grow with the size of the directories.
    fn exchange_names(&self, a: &RelPath, b: &RelPath) -> Result<(), SpoolError> {
        let decide = self.decide();
        decide.outbox.exchange_links(a, b)?;
        self.outbox
            .move_marks(|path| path.rebase(a, b).or_else(|| path.rebase(b, a)))?;
        let mut batch = Batch::default();
        self.exchange_rows(a, b, &mut batch)?;
        self.journal.submit(batch)?;
        let mut after: Vec<u8> = Vec::new();
        loop {
            let tails = self.tails_below(a, b, &after)?;
            let mut batch = Batch::default();
            for tail in &tails {
                let below = |name: &RelPath| {
                    RelPath::parse([name.as_bytes(), b"/", tail.as_slice()].concat()).ok()
                };
                if let (Some(a), Some(b)) = (below(a), below(b)) {
                    self.exchange_rows(&a, &b, &mut batch)?;
                }
            }
            self.journal.submit(batch)?;
            match tails.into_iter().next_back() {
                Some(tail) => after = tail,
                None => return Ok(()),
            }
        }
    }

    /// What follows the two names in the next rows: complete up to the last that is given.
    fn tails_below(
        &self,
        a: &RelPath,
        b: &RelPath,
        after: &[u8],
    ) -> Result<BTreeSet<Vec<u8>>, SpoolError> {
        let mut tails = BTreeSet::new();
        let mut complete_to: Option<Vec<u8>> = None;
        for name in [a, b] {
            let last = (!after.is_empty()).then_some(At(name, after));
            let below = OUT_NAMES.below(&Beneath(name)).after(last.as_ref());
            let rows = self.journal.keys(below, RENAME_PAGE)?;
            let full = rows.len() == RENAME_PAGE;
            let tail = name.as_bytes().len() + 1;
            let found: Vec<Vec<u8>> = rows
                .into_iter()
                .map(|path| path.as_bytes()[tail..].to_vec())
                .collect();
            if full {
                complete_to = complete_to.into_iter().chain(found.last().cloned()).min();
            }
            tails.extend(found);
        }
        if let Some(complete_to) = complete_to {
            tails.retain(|tail| *tail <= complete_to);
        }
        Ok(tails)
    }

    fn exchange_rows(&self, a: &RelPath, b: &RelPath, batch: &mut Batch) -> Result<(), SpoolError> {
        let row = |name: &RelPath| self.outbox.name(name);
        for (row, from, to) in [(row(a)?, a, b), (row(b)?, b, a)] {
            match row {
                Some(row) => {
                    self.ledger.history.name_moved(row.bundle);
                    self.outbox.leaves(from, &row, batch)?;
                    self.outbox.put_moved(row.moved(from), to, batch);
                }
                None => batch.remove(OUT_NAMES, to),
            }
        }
        Ok(())
    }

    /// A name in the outbox is gone. `ino` had `visible_links` visible names left after that. What is queued stays
    /// queued.
    pub(crate) fn outbox_removed(&self, path: &RelPath, ino: u64, visible_links: u64) {
        if let Err(error) = self.try_outbox_removed(path, ino, visible_links) {
            tracing::error!(%error, %path, "cannot record that a file was removed");
        }
    }

    fn try_outbox_removed(
        &self,
        path: &RelPath,
        ino: u64,
        visible_links: u64,
    ) -> Result<(), SpoolError> {
        let decide = self.decide();
        let mut batch = Batch::default();
        let row = self.outbox.name(path)?;
        if let Some(row) = row.filter(|row| row.stat.ino == ino) {
            batch.remove(OUT_NAMES, path);
            self.outbox.leaves(path, &row, &mut batch)?;
            self.file_gone(&row)?;
        }
        decide
            .outbox
            .unlink_row(ino, path, visible_links, &mut batch);
        if visible_links == 0 {
            batch.remove(MARKS, &ino);
            let gate = self.outbox.gates.lock().remove(&ino);
            if let Some(gate) = gate.and_then(|gate| gate.upgrade()) {
                gate.retire();
            }
            return self.content.last_name_gone(ino, batch);
        }
        Ok(self.journal.submit(batch)?)
    }

    /// What is known of the file shown at `path` in the outbox.
    pub(crate) fn outbox_state(&self, path: &RelPath, ino: u64) -> FileState {
        let row = self.outbox.name(path).ok().flatten();
        let Some(row) = row.filter(|row| row.stat.ino == ino && self.is_current(row)) else {
            let mark = self.outbox.mark_of(ino).ok().flatten();
            let state = match mark.map(|mark| mark.kind) {
                Some(MarkKind::Open) => Stage::Open,
                Some(MarkKind::Closed | MarkKind::Doubted) => Stage::Settling,
                Some(MarkKind::Torn) => Stage::Incomplete,
                None => Stage::NotSent,
            };
            return FileState {
                state: Some(FileStage::At(state)),
                ..FileState::default()
            };
        };
        self.bundle_state(row.bundle, row.digest)
    }

    /// Whether the bundle of a name is of the bytes that its inode has: another name of it may have been sealed since.
    pub(super) fn is_current(&self, row: &OutName) -> bool {
        let sealed = self.content.record_of(row.stat.ino).ok().flatten();
        sealed.is_none_or(|sealed| sealed.digest == row.digest)
    }

    /// Counts a file that was removed before it was sent.
    pub(crate) fn count_removed(&self) {
        self.counters
            .removed
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Counts a name that was not sent because it matches the ignore list.
    pub(crate) fn count_ignored(&self) {
        self.counters
            .ignored
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
