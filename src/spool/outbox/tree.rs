//! A directory of the outbox that is sent as one bundle.
//!
//! # Invariants
//! 1. The row of a tree is in the journal before the rename that makes it one, and goes in the batch that seals it.
//! 2. A tree is sealed with all its gates locked: what the manifest says of each member was true at one instant.
//! 3. The time of a directory is the one it has at the seal.
//! 4. A member that is gone by then is left out. One that cannot be read holds the whole tree up; nothing is left out
//!    silently.
//!
//! # Crash behaviour
//!
//! | killed | then |
//! |---|---|
//! | after the row, before the rename | the row is dropped: the directory still has its ignored name |
//! | after the rename, before the seal | the tree is fed to `ready` again: what was in it (by inode) and is below it now |
//! | while it is sealed: content links made, rows not | the same; links without rows are looked at by recovery |
//! | after the rows are submitted | it is a bundle, with the same id |
//! | between a later rename of the tree and its row | the row of before the rename says where it was and where it went |
//! | at any of these, and the state was then copied | the same, by the names of the directory and of what was in it |
//!
//! After a power loss the rows of the last moments are gone: its files are incomplete like any others that were not
//! sealed, and without the row each is a file of its own.
//!
//! # Threads
//! One sealer at a time is at a tree, slice by slice; the last one does the seal. The gates are held while rows and links are made, some tens of microseconds per
//! file, so a writer that comes back then waits in the blocking pool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{DirectoryTime, Entry, EntryKind, Listing, Mtime, Priority, RelPath};
use crate::spool::beneath::Root;
use crate::spool::directories::split;
use crate::spool::durable::SYNC_EACH_MAX;
use crate::spool::group::route::Terms;
use crate::spool::journal::Batch;
use crate::spool::outbox::Outbox;
use crate::spool::outbox::gate::Gate;
use crate::spool::outbox::hashing::Slice;
use crate::spool::outbox::jobs::Step;
use crate::spool::outbox::seal::{Earlier, Gates, Looked, Member, Plan, Taken, gates_of, mtime_of};
use crate::spool::outbox::tables::{TREES, TreeFile, TreeRow, name_in_tree};
use crate::spool::{RecoveredFile, SealOutcome, Spool, SpoolError};

/// A directory to be sealed as one bundle: what `ready` found complete.
pub(crate) struct TreeRequest {
    /// The number from [`Outbox::tree_renaming`].
    pub tree: u64,
    /// The directory.
    pub root: RelPath,
    /// Its members with their present names.
    pub files: Vec<(u64, RelPath)>,
    /// The directory itself and those below it; the ones with nothing in them travel as such, of the others the times.
    pub directories: Vec<RelPath>,
    /// Urgency.
    pub priority: Priority,
    /// Called once, on a sealer thread, with what came of it.
    pub done: Box<dyn FnOnce(SealOutcome) + Send>,
}

impl std::fmt::Debug for TreeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeRequest")
            .field("tree", &self.tree)
            .field("root", &self.root)
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

/// A directory of the outbox that was to be sent as one bundle when the daemon last ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoveredTree {
    /// Its number.
    pub tree: u64,
    /// Where it is.
    pub root: RelPath,
    /// Its members that are still below it.
    pub files: Vec<RecoveredFile>,
    /// The directory itself and its directories.
    pub directories: Vec<RelPath>,
}

/// How often members that changed while they were hashed are hashed again before `ready` is asked to wait.
const ROUNDS: usize = 3;

/// What looking at a member costs at least, and sealing it, as bytes to hash.
const MEMBER_BYTES: u64 = 16 * 1024;

/// A tree between two slices of hashing.
pub(in crate::spool) struct TreeWork {
    pub(in crate::spool) request: TreeRequest,
    /// Members to be hashed, the next one last.
    todo: Vec<(u64, RelPath)>,
    /// The gate of a member that is hashed in part: the hash of its beginning stands there.
    begun: Option<Arc<Gate>>,
    members: Vec<Member>,
    /// How often some had changed in the end.
    round: usize,
}

impl TreeWork {
    pub(in crate::spool) fn new(mut request: TreeRequest) -> Self {
        let mut todo = std::mem::take(&mut request.files);
        todo.reverse();
        Self {
            request,
            members: Vec::with_capacity(todo.len()),
            todo,
            begun: None,
            round: 0,
        }
    }

    /// About how much is left, as bytes to hash: `of_next` of the next member, of the others as of those before, and the
    /// seal of all of them.
    fn left(&self, of_next: u64) -> u64 {
        let hashed = self.members.iter().map(|member| member.hashed.len);
        let bytes = hashed.fold(0, u64::saturating_add);
        let mean = bytes / self.members.len().max(1) as u64;
        let others = (self.todo.len() as u64).saturating_mul(mean.max(MEMBER_BYTES));
        let seal = self.members.len() as u64 * MEMBER_BYTES;
        of_next.saturating_add(others).saturating_add(seal)
    }
}

impl Outbox {
    /// A directory is about to be renamed from an ignored name to an ordinary one. To be called before the rename; gives
    /// the number of the tree. `files` are its members, under the names they have before; `directories` those below it,
    /// relative to it.
    pub(crate) fn tree_renaming(
        &self,
        from: &RelPath,
        to: &RelPath,
        ino: u64,
        files: &[(u64, RelPath)],
        directories: Vec<RelPath>,
    ) -> Result<u64, SpoolError> {
        let tree = self.next_tree.fetch_add(1, Ordering::Relaxed);
        let member = |(ino, path): &(u64, RelPath)| TreeFile {
            ino: *ino,
            name: name_in_tree(path.below(from).unwrap_or_default()),
        };
        let row = TreeRow {
            from: from.clone(),
            root: to.clone(),
            ino,
            begun: false,
            files: files.iter().map(member).collect(),
            directories,
        };
        let mut batch = Batch::default();
        batch.insert(TREES, &tree, &row);
        self.journal.submit(batch)?;
        Ok(tree)
    }

    /// A tree that is not sealed yet is about to be renamed.
    pub(crate) fn tree_moving(
        &self,
        tree: u64,
        from: &RelPath,
        to: &RelPath,
    ) -> Result<(), SpoolError> {
        let Some(mut row) = self.journal.row(TREES, &tree)? else {
            return Ok(());
        };
        (row.from, row.root, row.begun) = (from.clone(), to.clone(), true);
        let mut batch = Batch::default();
        batch.insert(TREES, &tree, &row);
        Ok(self.journal.submit(batch)?)
    }

    /// The rename did not happen, or the directory has an ignored name again.
    pub(crate) fn tree_dropped(&self, tree: u64) {
        let mut batch = Batch::default();
        batch.remove(TREES, &tree);
        if let Err(error) = self.journal.submit(batch) {
            tracing::error!(%error, tree, "cannot forget a directory");
        }
    }
}

impl Spool {
    /// Hashes a slice of the tree, and seals it when that was the last.
    pub(in crate::spool) fn seal_tree_step(
        &self,
        work: &mut TreeWork,
        slice: &mut Slice<'_>,
    ) -> Step {
        let root = &work.request.root.clone();
        match self.seal_tree_now(work, slice) {
            Ok(step) => {
                if let (Step::Done(_), Ok(Some(ino))) = (&step, self.outbox.root.inode(root)) {
                    self.seal_ended(ino);
                }
                step
            }
            Err(error) => {
                tracing::warn!(%root, %error, "cannot seal a directory");
                self.seal_failed(root, &error);
                Step::done(SealOutcome::Failed(Arc::new(error)))
            }
        }
    }

    fn seal_tree_now(
        &self,
        work: &mut TreeWork,
        slice: &mut Slice<'_>,
    ) -> Result<Step, SpoolError> {
        loop {
            if let Some(step) = self.look_at_members(work, slice)? {
                return Ok(step);
            }
            let gates = gates_of(&work.members);
            let mut gates = Gates::lock(&gates);
            if gates.are_written() {
                return Ok(Step::done(SealOutcome::Changed));
            }
            let (members, changed): (Vec<Member>, Vec<Member>) = std::mem::take(&mut work.members)
                .into_iter()
                .partition(|member| gates.is_as_hashed(member));
            work.members = members;
            if changed.is_empty() {
                let linked = gates.link(self, &work.members)?;
                let sealed = self.seal_members(&work.request, &work.members, linked.plan(self))?;
                return Ok(Step::done(sealed));
            }
            work.round += 1;
            if work.round == ROUNDS {
                return Ok(Step::done(SealOutcome::Changed));
            }
            let again = changed.into_iter().map(|m| (m.gate.ino(), m.path));
            work.todo.extend(again);
        }
    }

    /// Hashes members for a slice; `None` when that was all of them.
    fn look_at_members(
        &self,
        work: &mut TreeWork,
        slice: &mut Slice<'_>,
    ) -> Result<Option<Step>, SpoolError> {
        while let Some((ino, path)) = work.todo.last() {
            let gate = self.outbox.gate(*ino);
            match self.look_at_member(&gate, path, slice)? {
                Looked::Member(member) => work.members.push(Member {
                    file: None,
                    ..*member
                }),
                Looked::Gone => {}
                Looked::Open => return Ok(Some(Step::done(SealOutcome::Changed))),
                Looked::Later(left) => {
                    work.begun = Some(gate);
                    return Ok(Some(Step::Later(work.left(left))));
                }
            }
            work.begun = None;
            work.todo.pop();
            if !work.todo.is_empty() && slice.is_late() {
                return Ok(Some(Step::Later(work.left(0))));
            }
        }
        Ok(None)
    }

    /// What is announced of the members that are there.
    fn seal_members(
        &self,
        request: &TreeRequest,
        members: &[Member],
        mut plan: Plan<'_>,
    ) -> Result<SealOutcome, SpoolError> {
        let mut sealed: Vec<(&Member, Metadata)> = Vec::with_capacity(members.len());
        for member in members {
            match plan.take_in(member)? {
                Taken::Here(meta) => sealed.push((member, meta)),
                Taken::Gone => {}
                Taken::Changed => return Ok(SealOutcome::Changed),
            }
        }
        plan.batch.remove(TREES, &request.tree);
        let (entries, times) = entries_of(&self.outbox.root, &sealed, &request.directories);
        if entries.is_empty() {
            plan.commit(false)?;
            return Ok(SealOutcome::Gone);
        }
        let mut bundles = Vec::new();
        for (terms, listing) in self.parts(request, entries, &times) {
            // Nobody is told where single files of a tree were before.
            let replaces = plan.replaced_by(&listing.entries, true)?;
            let manifest = plan.announce(&terms, listing, Earlier::default(), replaces)?;
            bundles.push(manifest.id());
        }
        if bundles.len() > 1 {
            tracing::warn!(
                root = %request.root,
                bundles = bundles.len(),
                "a directory goes to different recipients, or has more in it than fits one bundle: it is sent as several"
            );
        }
        plan.show_each(&sealed);
        if members.len() <= SYNC_EACH_MAX {
            for directory in &request.directories {
                let names = self.outbox.root.sync(Some(directory.clone()));
                plan.batch.sync(names);
            }
            plan.batch.sync(self.outbox.root.sync_above(&request.root));
        }
        plan.commit(false)?;
        tracing::debug!(root = %request.root, files = sealed.len(), "sealed");
        Ok(SealOutcome::Sealed(bundles[0]))
    }

    /// As few bundles as their recipients and the limits allow.
    fn parts(
        &self,
        request: &TreeRequest,
        mut entries: Vec<Entry>,
        times: &[DirectoryTime],
    ) -> Vec<(Terms, Listing)> {
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut parts: Vec<(Terms, Vec<Entry>)> = Vec::new();
        for entry in entries {
            let terms = self.group.terms_of(&entry.path, request.priority);
            match parts.iter_mut().find(|(other, _)| *other == terms) {
                Some((_, entries)) => entries.push(entry),
                None => parts.push((terms, vec![entry])),
            }
        }
        let mut listings = Vec::new();
        for (mut terms, entries) in parts {
            self.group.last_word(&entries, &mut terms);
            let fitting = split(entries, times).into_iter();
            listings.extend(fitting.map(|listing| (terms.clone(), listing)));
        }
        listings
    }
}

/// The files, and the directories that none of them implies; and the times of the others, in order.
fn entries_of(
    outbox: &Root,
    sealed: &[(&Member, Metadata)],
    directories: &[RelPath],
) -> (Vec<Entry>, Vec<DirectoryTime>) {
    let mut implied: BTreeSet<RelPath> = BTreeSet::new();
    let mut imply = |path: &RelPath| {
        let mut above = path.parent();
        while let Some(directory) = above {
            above = directory.parent();
            if !implied.insert(directory) {
                break;
            }
        }
    };
    let mut entries: Vec<Entry> = Vec::with_capacity(sealed.len());
    for (member, meta) in sealed {
        imply(&member.path);
        entries.push(member.entry(&member.path, meta));
    }
    let mut there: Vec<(&RelPath, Metadata)> = Vec::new();
    for directory in directories {
        match outbox.metadata(directory) {
            Ok(meta) if meta.is_dir() => there.push((directory, meta)),
            Ok(_) | Err(_) => {}
        }
    }
    for (directory, _) in &there {
        imply(directory);
    }
    let mut times: BTreeMap<RelPath, Mtime> = BTreeMap::new();
    for (directory, meta) in there {
        if implied.contains(directory) {
            times.insert(directory.clone(), mtime_of(&meta));
        } else {
            entries.push(Entry {
                path: directory.clone(),
                mtime: mtime_of(&meta),
                kind: EntryKind::Directory,
            });
        }
    }
    (entries, times.into_iter().collect())
}
