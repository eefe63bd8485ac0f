//! Publishing a bundle of many files: all names at one instant.
//!
//! Where the topmost name is free, the tree is built in `partial/` and appears by one rename ([`tree`]). Else the names are
//! given one by one, and nobody who looks through the mount sees it half done: see [`crate::spool::InboxObserver`]. The
//! times of directories are set before that instant where it is a rename, else with the names.
//!
//! A merge still holds the decision lock from its first name to its last.
//!
//! # Crash behaviour
//!
//! Of a merge:
//!
//! | killed | then |
//! |---|---|
//! | before the intent | nothing is visible; the bundle is offered again, its bytes are in `partial/` |
//! | after the intent, before a rename | recovery gives all names, before anything is mounted |
//! | in the middle of the renames of a merge | the same; names that are gone again were removed by the user |
//! | after the renames, before the rows | recovery writes the rows |
//!
//! When our own disk fails in the middle, the names that were given keep their rows, and the bundle, which is not
//! settled, gives the others when it is offered again.
//!
//! # Threads
//! Called by whoever finished the bundle. The decision lock is not held while the kernel is asked to forget names: it may
//! be waiting for a file operation that waits for the lock.

mod tree;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{BundleId, DirectoryTime, EntryKind, RelPath, VerifiedManifest};
use crate::spool::decision::handles_name;
use crate::spool::directories::{set_times, times_in_inbox};
use crate::spool::durable::{self, SYNC_EACH_MAX, Sync};
use crate::spool::inbox::intake::Verified;
use crate::spool::inbox::naming::{Choosing, Naming};
use crate::spool::inbox::publish::tree::Attempt;
use crate::spool::inbox::tables::{IN_NAMES, INTENTS, InName, Intent};
use crate::spool::journal::{Batch, Table};
use crate::spool::{Published, Spool, SpoolError};

/// A name that a publish gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewName {
    /// Path below `inbox/`.
    pub path: RelPath,
    /// A directory that was not there before; else a file.
    pub directory: bool,
    /// The inode the name showed before.
    pub replaced: Option<u64>,
}

/// Told by the spool when names in `inbox/` change other than through the mount. Implemented by `fs`; must not call back
/// into the spool.
pub(crate) trait InboxObserver: Send + std::marker::Sync {
    /// The names of `replaced` will soon show something else, together with other names: from here to
    /// [`Self::unprepare`] the kernel must not remember any name of the inbox, and it must have forgotten these when
    /// this returns. Called with no lock held; waits for the kernel.
    fn prepare(&self, replaced: &[RelPath]);
    /// Ends what [`Self::prepare`] began; called once for each.
    fn unprepare(&self);
    /// Runs `give`, which gives names by renames on the local disk: nobody who looks at the inbox through the mount sees
    /// a part of what it does.
    fn switch(&self, give: &mut dyn FnMut());
    /// These names were given; directories before what is in them. Must not block.
    fn published(&self, names: &[NewName]);
    /// The file at `from` is now at `to`, where the inode `replaced` was before, if one was. The same name: the file has
    /// another mode or time; called within [`Self::switch`]. Called with the decision lock held, so that two renames of
    /// one file are told in their order. Must not block.
    fn renamed(&self, from: &RelPath, to: &RelPath, replaced: Option<u64>);
    /// `path`, a file or a directory, is gone. Called with the decision lock held. Must not block.
    fn removed(&self, path: &RelPath);
}

/// A name that an entry gets: the number of the entry, the name, and the inode (0 for a directory).
pub(in crate::spool) type Given = (u32, RelPath, u64);

/// Bundle, number of a slice → the names of a publish that has begun, where there are many. They count if the bundle has a
/// row in [`INTENTS`], and as many as that says.
pub(in crate::spool) const INTENT_NAMES: Table<(BundleId, u64), Vec<Given>> = Table::new(93);

/// How often a tree is built anew because something else took its topmost name meanwhile.
const TREE_ATTEMPTS: usize = 4;

/// How often names are chosen anew because others came in between while the kernel was asked to forget some.
const PREPARE_ATTEMPTS: usize = 4;

/// The names of a bundle, and what they meet in the inbox.
struct Plan {
    namings: Vec<Naming>,
    /// What was chosen last; they come with the intent.
    rows: Batch,
    /// What the names show now.
    replaced: HashMap<RelPath, u64>,
    /// Names that the kernel may remember wrongly: those replaced and those that were in the way.
    disturbed: HashSet<RelPath>,
}

impl Plan {
    /// The times of the directories in which the first `done` names are.
    fn times(&self, manifest: &VerifiedManifest, done: usize) -> Vec<DirectoryTime> {
        let names = self.namings.iter().take(done);
        let names = names.map(|naming| (naming.entry, &naming.name));
        times_in_inbox(manifest.manifest(), names)
    }
}

/// The kernel has forgotten these names and remembers none, for as long as this lives.
struct Prepared {
    observer: Arc<dyn InboxObserver>,
    names: HashSet<RelPath>,
}

impl Prepared {
    fn new(observer: &Arc<dyn InboxObserver>, names: HashSet<RelPath>) -> Self {
        let list: Vec<RelPath> = names.iter().cloned().collect();
        observer.prepare(&list);
        Self {
            observer: Arc::clone(observer),
            names,
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.observer.unprepare();
    }
}

impl Spool {
    /// Where the bytes of one entry of a bundle arrive.
    pub(in crate::spool) fn staged_alone(&self, bundle: BundleId, index: u32) -> PathBuf {
        self.layout.partial().join(format!("{bundle}.{index}"))
    }

    /// Where the tree of a bundle is built. Each file has its chosen name below.
    pub(in crate::spool) fn staging_tree(&self, bundle: BundleId) -> PathBuf {
        self.layout.partial().join(format!("{bundle}.tree"))
    }

    pub(in crate::spool) fn publish_many(
        &self,
        verified: &Verified,
    ) -> Result<Published, SpoolError> {
        let mut begun = self.inbox.publishing.begin(&verified.manifest);
        if begun.way.shown().is_some() {
            // An attempt before this one could not write all rows.
            for staged in verified.files.iter().flatten() {
                durable::remove(&staged.at)?;
            }
            return self.finish_tree(&mut begun);
        }
        let mut cleared = HashSet::new();
        for _ in 0..TREE_ATTEMPTS {
            match self.publish_tree(verified, &mut begun, &mut cleared)? {
                Attempt::Published(published) => return Ok(published),
                Attempt::Taken => {}
                Attempt::NotFree => break,
            }
        }
        self.merge(verified, cleared)
    }

    /// Gives the names among others that are there. `cleared` were in the way.
    fn merge(
        &self,
        verified: &Verified,
        cleared: HashSet<RelPath>,
    ) -> Result<Published, SpoolError> {
        let manifest = &verified.manifest;
        let bundle = manifest.id();
        let observer = self.observer.read().clone();
        let mut prepared: Option<Prepared> = None;
        let mut attempts = 0;
        let (decide, mut plan) = loop {
            let decide = self.decide();
            if let Some(reason) = self.ledger.ended(bundle, manifest.manifest().origin) {
                return Err(SpoolError::Ended(reason));
            }
            let mut plan = self.plan(manifest)?;
            plan.disturbed.extend(cleared.iter().cloned());
            attempts += 1;
            let Some(observer) = &observer else {
                break (decide, plan);
            };
            let known = prepared.as_ref().map(|prepared| &prepared.names);
            let covered = known.is_some_and(|known| plan.disturbed.is_subset(known));
            if plan.disturbed.is_empty() || covered || attempts > PREPARE_ATTEMPTS {
                break (decide, plan);
            }
            drop(decide);
            plan.disturbed.extend(known.into_iter().flatten().cloned());
            let before = prepared.replace(Prepared::new(observer, plan.disturbed));
            drop(before);
        };

        let names = plan.namings.iter().map(|naming| given(verified, naming));
        let mut names: Vec<Given> = names.collect();
        let mut intent = std::mem::take(&mut plan.rows);
        intent.insert(
            INTENTS,
            &bundle,
            &Intent {
                signed: manifest.signed(),
                names: names.clone(),
                slices: 0,
            },
        );
        self.journal.submit(intent)?;

        let mut given = Vec::with_capacity(names.len());
        let outcome = match &observer {
            None => self.give_each(verified, &plan, &mut given),
            Some(observer) => {
                let mut outcome = Ok(0);
                observer.switch(&mut || {
                    outcome = self.give_each(verified, &plan, &mut given);
                });
                outcome
            }
        };
        let (done, failed) = match outcome {
            Ok(done) => (done, None),
            Err((done, error)) => (done, Some(error)),
        };
        names.truncate(done);
        let batch = self.rows_of(verified, &plan, &names, failed.is_none())?;
        self.journal.submit(batch)?;
        for ino in given.iter().filter_map(|name| name.replaced) {
            self.content.last_name_gone(ino, Batch::default())?;
        }
        drop(decide);

        if let Some(observer) = &observer {
            observer.published(&given);
        }
        drop(prepared);
        if let Some(error) = failed {
            return Err(error);
        }
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        let names = plan.namings.into_iter().map(|naming| naming.name).collect();
        Ok(Published { bundle, names })
    }

    /// Chooses the names. Call with the decision lock held.
    fn plan(&self, manifest: &VerifiedManifest) -> Result<Plan, SpoolError> {
        let mut choosing = Choosing::of(manifest);
        let mut rows = Batch::default();
        let namings = self.choose_names(manifest, &mut choosing, &mut rows)?;
        let mut replaced = HashMap::new();
        for naming in &namings {
            let row: Option<InName> = self.journal.row(IN_NAMES, &naming.name)?;
            replaced.extend(row.map(|row| (naming.name.clone(), row.ino)));
        }
        let disturbed = choosing
            .cleared
            .into_iter()
            .chain(replaced.keys().cloned())
            .collect();
        Ok(Plan {
            namings,
            rows,
            replaced,
            disturbed,
        })
    }

    /// The topmost name that is not there yet, if all others are below it.
    fn fresh_root(&self, namings: &[Naming]) -> Result<Option<RelPath>, SpoolError> {
        let Some(first) = namings.first() else {
            return Ok(None);
        };
        let mut above: Vec<RelPath> =
            std::iter::successors(Some(first.name.clone()), RelPath::parent).collect();
        above.reverse();
        for path in above {
            if self.inbox().look(&path)?.is_none() {
                let is_root = |naming: &Naming| naming.name.starts_with(&path);
                // All but a directory of its own would be one file.
                let holds = namings.len() > 1 && namings.iter().all(is_root);
                return Ok(holds.then_some(path));
            }
        }
        Ok(None)
    }

    /// Gives names one by one, in order. Gives how many names are given.
    fn give_each(
        &self,
        verified: &Verified,
        plan: &Plan,
        given: &mut Vec<NewName>,
    ) -> Result<usize, (usize, SpoolError)> {
        let times = |done| set_times(self.inbox(), &plan.times(&verified.manifest, done));
        for (done, naming) in plan.namings.iter().enumerate() {
            handles_name();
            let mut give = || {
                let Some(staged) = &verified.files[naming.entry] else {
                    return self.make_directories(&naming.name, given);
                };
                if let Some(directory) = naming.name.parent() {
                    self.make_directories(&directory, given)?;
                }
                durable::rename(&staged.at, &self.inbox().at(&naming.name)?)?;
                given.push(NewName {
                    path: naming.name.clone(),
                    directory: false,
                    replaced: plan.replaced.get(&naming.name).copied(),
                });
                Ok(())
            };
            if let Err(error) = give() {
                times(done);
                return Err((done, error));
            }
        }
        times(plan.namings.len());
        Ok(plan.namings.len())
    }

    /// Makes a directory of the inbox and those above it; notes those that were not there.
    pub(in crate::spool) fn make_directories(
        &self,
        path: &RelPath,
        made: &mut Vec<NewName>,
    ) -> Result<(), SpoolError> {
        let mut missing = Vec::new();
        for path in std::iter::successors(Some(path.clone()), RelPath::parent) {
            if self.inbox().look(&path)?.is_some_and(|meta| meta.is_dir()) {
                break;
            }
            missing.push(path);
        }
        while let Some(directory) = missing.pop() {
            self.make_inbox_directory(&directory)?;
            made.push(directory_made(&directory));
        }
        Ok(())
    }

    /// The rows of what was given; those that settle the bundle, if that was all.
    fn rows_of(
        &self,
        verified: &Verified,
        plan: &Plan,
        names: &[(u32, RelPath, u64)],
        all: bool,
    ) -> Result<Batch, SpoolError> {
        let manifest = &verified.manifest;
        let mut batch = Batch::default();
        let few = are_synced_singly(verified, names.iter().map(|(index, ..)| *index as usize));
        for (index, name, _) in names {
            let index = *index as usize;
            if few {
                if manifest.manifest().entries[index].kind == EntryKind::Directory {
                    batch.sync(self.inbox().sync(Some(name.clone())));
                }
                for directory in std::iter::successors(name.parent(), RelPath::parent) {
                    batch.sync(self.inbox().sync(Some(directory)));
                }
                batch.sync(self.inbox().sync(None));
            }
            let (Some(file), Some(digest)) = (
                &verified.files[index],
                manifest.manifest().entries[index].digest(),
            ) else {
                continue;
            };
            if let Some(kept) = file.kept.as_ref().filter(|_| few) {
                batch.sync(Sync::File(Arc::clone(kept)));
            }
            let link = self.layout.content(digest);
            if crate::spool::content::inode_at(&link).is_none() {
                durable::link(&self.inbox().at(name)?, &link)?;
                if few && let Some(directory) = link.parent() {
                    batch.sync(Sync::Directory(directory.to_path_buf()));
                }
            }
        }
        if !few {
            batch.sync(Sync::Everything);
        }
        if !all {
            let (bundle, of) = (manifest.id(), manifest.manifest());
            self.former_rows(bundle, of, !names.is_empty(), &mut batch)?;
            self.name_rows(manifest, names, &mut batch)?;
            batch.remove(INTENTS, &manifest.id());
            return Ok(batch);
        }
        let named: HashSet<usize> = plan.namings.iter().map(|naming| naming.entry).collect();
        for (index, file) in verified.files.iter().enumerate() {
            // A newer version was published meanwhile: these bytes are not shown.
            if let Some(staged) = file.as_ref().filter(|_| !named.contains(&index)) {
                durable::remove(&staged.at)?;
            }
        }
        self.settle(manifest, names, &mut batch)?;
        Ok(batch)
    }

    /// What status calls a published bundle of many: the directory its title became.
    pub(in crate::spool) fn shown_root(
        &self,
        manifest: &VerifiedManifest,
        names: &[(u32, RelPath, u64)],
    ) -> Option<RelPath> {
        let title = manifest.manifest().title()?;
        let (index, name, _) = names.first()?;
        let said = &manifest.manifest().entries.get(*index as usize)?.path;
        let deeper =
            said.components().count() - title.components().count().min(said.components().count());
        std::iter::successors(Some(name.clone()), RelPath::parent).nth(deeper)
    }
}

/// Whether the files of these entries are synced one by one: they are few, and all of them are open. None is in a bundle
/// of many entries, however few of these get a name.
fn are_synced_singly(
    verified: &Verified,
    mut entries: impl ExactSizeIterator<Item = usize>,
) -> bool {
    let of = verified.manifest.manifest();
    entries.len() <= SYNC_EACH_MAX
        && entries.all(|entry| {
            let file = verified.files[entry].as_ref();
            of.entries[entry].digest().is_none() || file.is_none_or(|file| file.kept.is_some())
        })
}

pub(super) fn given(verified: &Verified, naming: &Naming) -> Given {
    let file = verified.files[naming.entry].as_ref();
    let ino = file.map_or(0, |file| file.ino);
    (naming.entry as u32, naming.name.clone(), ino)
}

fn directory_made(path: &RelPath) -> NewName {
    NewName {
        path: path.clone(),
        directory: true,
        replaced: None,
    }
}
