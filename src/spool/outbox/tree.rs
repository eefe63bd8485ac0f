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

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{
    BundleId, DirectoryTime, Entry, EntryKind, Mtime, Priority, RelPath, VerifiedManifest,
};
use crate::digest::{Digest, Hashed};
use crate::spool::beneath::Root;
use crate::spool::directories::split;
use crate::spool::durable::{OnPath, SYNC_EACH_MAX, Sync};
use crate::spool::group::route::Terms;
use crate::spool::journal::Batch;
use crate::spool::outbox::gate::{Gate, GateGuard};
use crate::spool::outbox::hashing::{Look, Slice};
use crate::spool::outbox::jobs::Step;
use crate::spool::outbox::seal::{Earlier, file_entry, mtime_of};
use crate::spool::symlinks::{hashed, link_entry};
use crate::spool::tables::{
    LATEST, MARKS, OUT_NAMES, OutName, Stat, TREES, TreeFile, TreeRow, name_in_tree,
};
use crate::spool::{Event, RecoveredFile, SealOutcome, Spool, SpoolError};

/// A directory to be sealed as one bundle: what `ready` found complete.
pub(crate) struct TreeRequest {
    /// The number from [`Spool::tree_renaming`].
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

/// Content links made under one hold of the decision lock.
const LINK_PAGE: usize = 128;

/// One file of a tree that is being sealed.
pub(in crate::spool) struct Member {
    pub(in crate::spool) path: RelPath,
    pub(in crate::spool) gate: Arc<Gate>,
    pub(in crate::spool) generation: u64,
    pub(in crate::spool) hashed: Hashed,
    pub(in crate::spool) meta: Metadata,
    /// Where it points, if it is a symbolic link.
    pub(in crate::spool) target: Option<Vec<u8>>,
}

impl Member {
    fn entry(&self) -> Entry {
        match &self.target {
            Some(target) => link_entry(&self.path, &self.meta, target.clone()),
            None => file_entry(&self.path, &self.meta, self.hashed.clone()),
        }
    }
}

/// What hashing a member came to.
pub(in crate::spool) enum Looked {
    Member(Box<Member>),
    Gone,
    Open,
    /// So many bytes of it are left for other slices.
    Later(u64),
}

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

impl Spool {
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

    /// Hashes a slice of the tree, and seals it when that was the last.
    pub(in crate::spool) fn seal_tree_step(
        &self,
        work: &mut TreeWork,
        slice: &mut Slice<'_>,
    ) -> Step {
        let root = &work.request.root.clone();
        match self.seal_tree_now(work, slice) {
            Ok(step) => {
                if let (Step::Done(_), Ok(Some(ino))) = (&step, self.outbox().inode(root)) {
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
            let gates: BTreeMap<u64, Arc<Gate>> = work
                .members
                .iter()
                .map(|member| (member.gate.ino(), Arc::clone(&member.gate)))
                .collect();
            // In the order of the inodes, so that two trees never wait for each other.
            let mut guards: HashMap<u64, GateGuard<'_>> = gates
                .iter()
                .map(|(ino, gate)| (*ino, gate.lock()))
                .collect();
            if guards.values().any(|guard| guard.writers() > 0) {
                return Ok(Step::done(SealOutcome::Changed));
            }
            let mut same = |member: &Member| {
                let guard = guards.get_mut(&member.gate.ino());
                guard.map(|guard| guard.state().generation) == Some(member.generation)
            };
            let (members, changed): (Vec<Member>, Vec<Member>) = std::mem::take(&mut work.members)
                .into_iter()
                .partition(&mut same);
            work.members = members;
            if changed.is_empty() {
                let sealed = self.seal_members(&work.request, &work.members, &mut guards)?;
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
            let gate = self.gate(*ino);
            match self.look_at_member(*ino, path, slice)? {
                Looked::Member(member) => work.members.push(*member),
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

    pub(in crate::spool) fn look_at_member(
        &self,
        ino: u64,
        path: &RelPath,
        slice: &mut Slice<'_>,
    ) -> Result<Looked, SpoolError> {
        let at = self.outbox().shown(path);
        let gate = self.gate(ino);
        let Some(file) = self.open_member(path, ino)? else {
            let Some((link, target)) = self.open_link(path, ino)? else {
                return Ok(Looked::Gone);
            };
            let generation = gate.lock().state().generation;
            return Ok(Looked::Member(Box::new(Member {
                path: path.clone(),
                gate,
                generation,
                hashed: hashed(&target),
                meta: link.metadata().on("stat", &at)?,
                target: Some(target),
            })));
        };
        let (hashed, generation) = match self.hash_slice(&gate, &file, path, slice)? {
            Look::Whole(hashed, generation) => (hashed, generation),
            Look::Later(left) => return Ok(Looked::Later(left)),
            Look::Open => return Ok(Looked::Open),
        };
        let meta = file.metadata().on("stat", &at)?;
        Ok(Looked::Member(Box::new(Member {
            path: path.clone(),
            gate,
            generation,
            hashed,
            meta,
            target: None,
        })))
    }

    /// Links, rows and manifests, with all gates locked.
    fn seal_members(
        &self,
        request: &TreeRequest,
        members: &[Member],
        guards: &mut HashMap<u64, GateGuard<'_>>,
    ) -> Result<SealOutcome, SpoolError> {
        self.journal.still_keeps()?;
        let mut batch = Batch::default();
        let mut files = Vec::new();
        let few = members.len() <= SYNC_EACH_MAX;
        // The links first, page by page: file operations need the decision lock too. A link cannot go again while its
        // inode has a visible name.
        for page in members.chunks(LINK_PAGE) {
            let _decide = self.decide();
            for member in page {
                let Some(file) = self.open_member(&member.path, member.gate.ino())? else {
                    continue;
                };
                self.content.hold(&file, member.hashed.digest, &mut batch)?;
                if few {
                    files.push(file);
                }
            }
        }

        let decide = self.decide();
        let mut sealed: Vec<(&Member, Stat)> = Vec::with_capacity(members.len());
        for member in members {
            let Some(meta) = self.outbox().look(&member.path)? else {
                continue;
            };
            let ino = member.gate.ino();
            let kind = meta.is_file() || (meta.is_symlink() && member.target.is_some());
            let there = meta.ino() == ino && kind && !member.gate.is_retired();
            if !there {
                continue;
            }
            if meta.len() != member.hashed.len {
                return Ok(SealOutcome::Changed);
            }
            // Its link may have been another member's that is gone since.
            let digest = member.hashed.digest;
            if member.target.is_none() && !self.content.has(digest) {
                let Some(file) = self.open_member(&member.path, ino)? else {
                    continue;
                };
                self.content.hold(&file, digest, &mut batch)?;
            }
            let meta = self.outbox().metadata(&member.path);
            let meta = meta.on("stat", &self.outbox().shown(&member.path))?;
            sealed.push((member, Stat::of(&meta)));
        }
        let (mut entries, times) = entries_of(self.outbox(), &sealed, &request.directories);
        if entries.is_empty() {
            batch.remove(TREES, &request.tree);
            self.journal.submit(batch)?;
            return Ok(SealOutcome::Gone);
        }
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let mut parts: Vec<(Terms, Vec<Entry>)> = Vec::new();
        for entry in entries {
            let terms = self.terms_of(&entry.path, request.priority);
            match parts.iter_mut().find(|(other, _)| *other == terms) {
                Some((_, entries)) => entries.push(entry),
                None => parts.push((terms, vec![entry])),
            }
        }
        let mut manifests: Vec<(Terms, VerifiedManifest)> = Vec::new();
        for (mut terms, entries) in parts {
            self.last_word(&entries, &mut terms);
            for listing in split(entries, &times) {
                let manifest = self.manifest_under(&terms, listing, Earlier::default());
                manifests.push((terms.clone(), manifest));
            }
        }
        if manifests.len() > 1 {
            tracing::warn!(
                root = %request.root,
                bundles = manifests.len(),
                "a directory goes to different recipients, or has more in it than fits one bundle: it is sent as several"
            );
        }
        let freed = self.tree_rows(&sealed, &manifests, &mut batch)?;
        batch.remove(TREES, &request.tree);
        if few {
            for (member, _) in &sealed {
                batch.sync(self.outbox().sync_above(&member.path));
            }
            for directory in &request.directories {
                batch.sync(self.outbox().sync(Some(directory.clone())));
            }
            batch.sync(self.outbox().sync_above(&request.root));
            for file in files {
                batch.sync(Sync::File(Arc::new(file)));
            }
        } else {
            batch.sync(Sync::Everything);
        }
        let bundles: Vec<BundleId> = manifests.iter().map(|(_, m)| m.id()).collect();
        // A route may make it more urgent than was asked for.
        let urgency: Vec<Priority> = manifests
            .iter()
            .map(|(_, sealed)| sealed.manifest().priority)
            .collect();
        self.volatile.lock().extend(bundles.iter().copied());
        let me = self.me.clone();
        let durable = bundles.clone();
        batch.on_durable(move || {
            if let Some(spool) = me.upgrade() {
                for bundle in &durable {
                    spool.volatile.lock().remove(bundle);
                }
                spool.free_later(freed);
                spool.ring(&Event::StatusChanged);
            }
        });
        {
            // Whoever renames a member does not move a mark that goes by this.
            let guards = guards.values();
            let _marking: Vec<_> = guards.map(|guard| guard.shared().marking()).collect();
            for (member, _) in &sealed {
                member.gate.set_marked(false);
            }
            self.journal.submit(batch)?;
        }
        for (member, _) in &sealed {
            if let Some(guard) = guards.get_mut(&member.gate.ino()) {
                guard.state().sealed = Some(member.hashed.digest);
            }
            self.recheck.lock().remove(&member.gate.ino());
        }
        drop(decide);
        self.counters
            .sealed
            .fetch_add(bundles.len() as u64, Ordering::Relaxed);
        for (bundle, priority) in bundles.iter().zip(urgency) {
            tracing::debug!(root = %request.root, bundle = %bundle.short(), files = sealed.len(), "sealed");
            self.ring(&Event::Sealed(*bundle, priority));
        }
        Ok(SealOutcome::Sealed(bundles[0]))
    }

    /// The rows of all bundles of a tree and of its files. Gives content that nobody needs once they are durable. Call
    /// with the decision lock held.
    fn tree_rows(
        &self,
        sealed: &[(&Member, Stat)],
        manifests: &[(Terms, VerifiedManifest)],
        batch: &mut Batch,
    ) -> Result<Vec<Digest>, SpoolError> {
        let mut bundle_of: HashMap<&RelPath, (BundleId, (u64, u64))> = HashMap::new();
        let mut freed = Vec::new();
        for (terms, manifest) in manifests {
            self.rows_under(terms, manifest, batch)?;
            let mut superseded = BTreeSet::new();
            for entry in &manifest.manifest().entries {
                let path = &entry.path;
                bundle_of.insert(&entry.path, (manifest.id(), manifest.manifest().order()));
                superseded.extend(self.journal.row(LATEST, path)?);
                let before: Option<OutName> = self.journal.row(OUT_NAMES, path)?;
                if let Some(before) = before {
                    // Nobody is told where single files of a tree were before.
                    self.file_gone(&before)?;
                    superseded.insert(before.bundle);
                }
            }
            for old in superseded {
                freed.extend(self.supersede(old, manifest, batch)?);
            }
        }
        for (path, (bundle, _)) in &bundle_of {
            batch.insert(LATEST, path, bundle);
        }
        for (member, stat) in sealed {
            let digest = member.hashed.digest;
            let Some((bundle, order)) = bundle_of.get(&member.path).copied() else {
                continue;
            };
            let row = OutName {
                stat: *stat,
                digest,
                bundle,
                order,
                formerly: None,
            };
            batch.insert(OUT_NAMES, &member.path, &row);
            self.content.record(digest, stat, batch);
            batch.remove(MARKS, &stat.ino);
        }
        Ok(freed)
    }
}

/// The files, and the directories that none of them implies; and the times of the others, in order.
fn entries_of(
    outbox: &Root,
    sealed: &[(&Member, Stat)],
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
    for (member, _) in sealed {
        imply(&member.path);
        entries.push(member.entry());
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
