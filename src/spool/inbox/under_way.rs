//! Publishes under way: what is known of a bundle of many files while its names are given.
//!
//! A bundle of many is published in slices. Between two of them the decision lock is free, and whatever else concerns the
//! same names may be decided. So it is noted here, where it is found by name and by path.
//!
//! # Invariants
//! 1. A bundle is here from before its first name is chosen until it is settled. What is decided meanwhile about its paths,
//!    or about names of the inbox, is noted ([`Note`]): its switch comes only when it knows of all of it.
//! 2. A name that is shown and has no rows yet is here. Whoever does something with a name of the inbox has its rows written
//!    first ([`Spool::record_pending`]).
//! 3. Once a bundle is shown there is only forward. If our disk fails then, it stays here, and the next offer goes on.
//!
//! # Crash behaviour
//! Memory only; the rows of the intent ([`crate::spool::inbox::forward`]) say the same to the next start.
//!
//! # Threads
//! Any; changed with the decision lock held. Its locks are leaves.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bundle::{BundleId, DirectoryTime, Manifest, RelPath, VerifiedManifest};
use crate::peer::PeerId;
use crate::spool::durable::{OnPath, SYNC_EACH_MAX, Sync};
use crate::spool::inbox::publish::Given;
use crate::spool::journal::Batch;
use crate::spool::overlay::Layer;
use crate::spool::{Spool, SpoolError};

/// The bundles of many whose names are being given. As many as publish at once.
#[derive(Default)]
pub(in crate::spool) struct Publishing {
    bundles: Mutex<Vec<Arc<UnderWay>>>,
    #[cfg(test)]
    pause: Mutex<Option<Pause>>,
}

/// Where a publish stands without the decision lock.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) enum Step {
    Chosen,
    Built,
    Shown,
    Recorded,
}

#[cfg(test)]
type Pause = Box<dyn FnMut(Step) + Send>;

#[cfg(test)]
impl Publishing {
    /// Calls `pause` at each step; what that publishes itself is not paused.
    pub(in crate::spool) fn pause(&self, pause: impl FnMut(Step) + Send + 'static) {
        *self.pause.lock() = Some(Box::new(pause));
    }

    pub(super) fn reached(&self, step: Step) {
        let pause = self.pause.lock().take();
        if let Some(mut pause) = pause {
            pause(step);
            self.pause.lock().get_or_insert(pause);
        }
    }
}

/// What was decided about names of the inbox while a bundle was not shown yet.
#[derive(Clone)]
pub(in crate::spool) enum Note {
    /// This name shows another file.
    Given(RelPath),
    /// This directory was made or removed.
    Directory(RelPath),
    /// All these names were given.
    Shown(Arc<Layer>),
    /// From now on this top directory is this origin's alone.
    Claimed(PeerId, RelPath),
}

/// What a note means for names that are about to be given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Means {
    Nothing,
    /// This one replaces something else than it did.
    Replaces(RelPath),
    /// They are to be chosen anew.
    Upset,
}

impl Note {
    pub(super) fn means(&self, origin: PeerId, names: &Layer) -> Means {
        let upset = match self {
            Self::Given(name) => match names.at_or_above(name.as_bytes()) {
                Some(at) if names.is_file(at, name) => return Means::Replaces(name.clone()),
                Some(_) => true,
                None => names.is_below(name),
            },
            Self::Directory(path) => names.touches(path),
            Self::Shown(others) => {
                let (few, many) = match others.moved().len() < names.moved().len() {
                    true => (&**others, names),
                    false => (names, &**others),
                };
                few.moved().iter().any(|moved| many.touches(&moved.name))
            }
            Self::Claimed(by, top) => *by != origin && names.touches(top),
        };
        if upset { Means::Upset } else { Means::Nothing }
    }
}

/// Notes of one bundle. With more of them its names are chosen anew.
const NOTES_MAX: usize = 1 << 16;

/// One of them.
pub(in crate::spool) struct UnderWay {
    pub(super) manifest: VerifiedManifest,
    /// The numbers of the entries, in the order of their paths.
    by_path: Vec<u32>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: Since,
    /// Top directories of which it has said that they are its origin's alone.
    claimed: BTreeSet<RelPath>,
    shown: Option<Shown>,
    /// Entries that are shown without rows.
    pending: HashSet<u32>,
}

/// What was noted since it was last looked at.
#[derive(Default)]
pub(super) struct Since {
    /// Entries of which something newer is here.
    pub(super) outdated: BTreeSet<u32>,
    pub(super) notes: Vec<Note>,
    /// There were too many.
    pub(super) overflown: bool,
}

impl Since {
    pub(super) fn is_empty(&self) -> bool {
        self.outdated.is_empty() && self.notes.is_empty() && !self.overflown
    }
}

/// What is shown of it.
#[derive(Clone)]
pub(super) struct Shown {
    /// The renames by which it is shown.
    pub(super) layer: Arc<Layer>,
    /// All names, in their order.
    pub(super) names: Arc<Vec<Given>>,
    /// Older files, and empty directories, that gave way.
    pub(super) cleared: Arc<Vec<RelPath>>,
    /// Times of directories that were there before.
    pub(super) above: Arc<Vec<DirectoryTime>>,
}

impl UnderWay {
    fn of(&self) -> &Manifest {
        self.manifest.manifest()
    }

    fn entry_of(&self, path: &RelPath) -> Option<u32> {
        let entries = &self.of().entries;
        let path_at = |entry: &u32| &entries[*entry as usize].path;
        let at = self
            .by_path
            .binary_search_by(|entry| path_at(entry).cmp(path));
        Some(self.by_path[at.ok()?])
    }

    /// Forgets what was noted: what is chosen from now on is chosen with it.
    pub(super) fn begin_anew(&self) {
        self.state.lock().since = Since::default();
    }

    /// What was noted since the last call.
    pub(super) fn take_since(&self) -> Since {
        std::mem::take(&mut self.state.lock().since)
    }

    fn note(&self, note: &Note) {
        let mut state = self.state.lock();
        if state.shown.is_some() {
            return;
        }
        if state.since.notes.len() < NOTES_MAX {
            state.since.notes.push(note.clone());
        } else {
            state.since.overflown = true;
        }
    }

    /// From now on this is shown, and these entries have no rows.
    pub(super) fn show(&self, shown: Shown, pending: HashSet<u32>) {
        let mut state = self.state.lock();
        state.pending = pending;
        state.shown = Some(shown);
    }

    /// The switch failed: nothing is shown.
    pub(super) fn hide(&self) {
        let mut state = self.state.lock();
        state.pending.clear();
        state.shown = None;
    }

    pub(super) fn shown(&self) -> Option<Shown> {
        self.state.lock().shown.clone()
    }

    /// Those of `names` that have no rows yet.
    pub(super) fn pending_of(&self, names: &[Given]) -> Vec<Given> {
        let state = self.state.lock();
        let is_pending = |(entry, ..): &&Given| state.pending.contains(entry);
        names.iter().filter(is_pending).cloned().collect()
    }

    /// These names have their rows.
    fn recorded(&self, names: &[Given]) {
        let mut state = self.state.lock();
        for (entry, ..) in names {
            state.pending.remove(entry);
        }
    }

    fn pending_at(&self, name: &RelPath) -> Option<Given> {
        let state = self.state.lock();
        let names = &state.shown.as_ref()?.names;
        let at = names.binary_search_by(|(_, shown, _)| shown.cmp(name));
        let given = &names[at.ok()?];
        state.pending.contains(&given.0).then(|| given.clone())
    }

    fn shows_below(&self, directory: &RelPath) -> bool {
        let state = self.state.lock();
        let Some(Shown { names, .. }) = &state.shown else {
            return false;
        };
        let below = [directory.as_bytes(), b"/"].concat();
        let first = names.partition_point(|(_, name, _)| name.as_bytes() < below.as_slice());
        let there = names.get(first);
        there.is_some_and(|(_, name, _)| name.as_bytes().starts_with(&below))
    }
}

/// A bundle is here as long as this lives, and longer if it is shown and not settled.
pub(super) struct Begun<'a> {
    publishing: &'a Publishing,
    pub(super) way: Arc<UnderWay>,
    pub(super) settled: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.settled || self.way.shown().is_none() {
            let mut bundles = self.publishing.bundles.lock();
            bundles.retain(|way| !Arc::ptr_eq(way, &self.way));
        }
    }
}

impl Publishing {
    /// Notes a bundle.
    pub(super) fn begin(&self, manifest: &VerifiedManifest) -> Begun<'_> {
        let entries = &manifest.manifest().entries;
        let mut by_path: Vec<u32> = (0..entries.len() as u32).collect();
        by_path.sort_by(|a, b| entries[*a as usize].path.cmp(&entries[*b as usize].path));
        let way = Arc::new(UnderWay {
            manifest: manifest.clone(),
            by_path,
            state: Mutex::default(),
        });
        self.bundles.lock().push(Arc::clone(&way));
        Begun {
            publishing: self,
            way,
            settled: false,
        }
    }

    /// What an attempt left that failed after the switch.
    pub(super) fn resume(&self, bundle: BundleId) -> Option<Begun<'_>> {
        let bundles = self.bundles.lock();
        let mut shown = bundles
            .iter()
            .filter(|way| way.manifest.id() == bundle && way.shown().is_some());
        Some(Begun {
            publishing: self,
            way: Arc::clone(shown.next()?),
            settled: false,
        })
    }

    /// Tells all bundles that are not shown yet.
    pub(in crate::spool) fn note(&self, note: impl FnOnce() -> Note) {
        let bundles = self.bundles.lock();
        if !bundles.is_empty() {
            let note = note();
            bundles.iter().for_each(|way| way.note(&note));
        }
    }

    /// A top directory is `origin`'s alone from now on.
    pub(in crate::spool) fn claim(&self, origin: PeerId, top: &RelPath) {
        self.note(|| Note::Claimed(origin, top.clone()));
        for way in self.bundles.lock().iter() {
            if way.of().origin == origin {
                way.state.lock().claimed.insert(top.clone());
            }
        }
    }

    /// Whether a bundle of `origin` under way has claimed a top directory.
    pub(in crate::spool) fn has_claimed(&self, origin: PeerId, top: &RelPath) -> bool {
        let bundles = self.bundles.lock();
        let mut own = bundles.iter().filter(|way| way.of().origin == origin);
        own.any(|way| way.state.lock().claimed.contains(top))
    }

    /// `bundle` has the newest version of a path, up to `order`.
    pub(super) fn outdate(
        &self,
        bundle: BundleId,
        origin: PeerId,
        path: &RelPath,
        order: (u64, u64),
    ) {
        for way in self.bundles.lock().iter() {
            let of = way.of();
            if of.origin == origin
                && of.order() <= order
                && way.manifest.id() != bundle
                && let Some(entry) = way.entry_of(path)
            {
                way.state.lock().since.outdated.insert(entry);
            }
        }
    }

    /// The order of the version of a path that is shown and has no rows yet.
    pub(super) fn pending_order(&self, origin: PeerId, path: &RelPath) -> Option<(u64, u64)> {
        let bundles = self.bundles.lock();
        let way = bundles.iter().find(|way| {
            let entry = (way.of().origin == origin).then(|| way.entry_of(path));
            entry
                .flatten()
                .is_some_and(|entry| way.state.lock().pending.contains(&entry))
        });
        way.map(|way| way.of().order())
    }

    fn pending(&self, name: &RelPath) -> Option<(Arc<UnderWay>, Given)> {
        let bundles = self.bundles.lock();
        let mut pending = bundles.iter().filter_map(|way| {
            let given = way.pending_at(name)?;
            Some((Arc::clone(way), given))
        });
        pending.next()
    }

    /// Whether a bundle of another origin is being shown below a directory.
    pub(in crate::spool) fn others_show_below(&self, origin: PeerId, directory: &RelPath) -> bool {
        let bundles = self.bundles.lock();
        let mut others = bundles.iter().filter(|way| way.of().origin != origin);
        others.any(|way| way.shows_below(directory))
    }

    /// Whether a bundle of this origin is being shown below a directory.
    pub(in crate::spool) fn shows_below(&self, origin: PeerId, directory: &RelPath) -> bool {
        let bundles = self.bundles.lock();
        let mut own = bundles.iter().filter(|way| way.of().origin == origin);
        own.any(|way| way.shows_below(directory))
    }

    /// Whether a bundle is being published.
    pub(in crate::spool) fn has(&self, bundle: BundleId) -> bool {
        let bundles = self.bundles.lock();
        bundles.iter().any(|way| way.manifest.id() == bundle)
    }

    /// Whether the names of a bundle are shown: too late to end it.
    pub(in crate::spool) fn is_shown(&self, bundle: BundleId) -> bool {
        let bundles = self.bundles.lock();
        let mut ways = bundles.iter().filter(|way| way.manifest.id() == bundle);
        ways.any(|way| way.shown().is_some())
    }
}

impl Spool {
    /// The rows of what a name shows, if a publish under way has not written them yet. Call with the decision lock held,
    /// before anything is done with a name of the inbox.
    pub(in crate::spool) fn record_pending(&self, name: &RelPath) -> Result<(), SpoolError> {
        match self.inbox.publishing.pending(name) {
            Some((way, given)) => self.record_given(&way, &[given]),
            None => Ok(()),
        }
    }

    /// The rows of names that are shown, and the links to their content. Call with the decision lock held.
    pub(super) fn record_given(&self, way: &UnderWay, names: &[Given]) -> Result<(), SpoolError> {
        let Some(shown) = way.shown() else {
            return Ok(());
        };
        let (mut batch, mut replaced) = (Batch::default(), Vec::new());
        // What is in a tree of many was synced before it was shown; what is new since is the name of the tree.
        let few = shown.names.len() <= SYNC_EACH_MAX;
        let mut changed = BTreeSet::new();
        for (_, name, ino) in names {
            self.inbox()
                .perform(name.as_bytes())
                .on("rename", &self.inbox().shown(name))?;
            let before = self.inbox.row_of(name)?;
            replaced.extend(before.map(|row| row.ino).filter(|before| before != ino));
            let moved = shown.layer.at_or_above(name.as_bytes());
            let moved = moved.map(|at| &shown.layer.moved()[at].name);
            let mut directory = match moved {
                Some(moved) if !few => moved.parent(),
                Some(_) | None if *ino == 0 => Some(name.clone()),
                Some(_) | None => name.parent(),
            };
            while let Some(path) = directory {
                directory = path.parent();
                if !changed.insert(path) {
                    break;
                }
            }
        }
        if changed.len() > SYNC_EACH_MAX {
            batch.sync(Sync::Everything);
        } else {
            let changed = changed.into_iter().map(Some).chain([None]);
            changed.for_each(|directory| batch.sync(self.inbox().sync(directory)));
        }
        for given in names {
            self.hold_given(way, given, &mut batch)?;
        }
        self.name_rows(&way.manifest, names, &mut batch)?;
        self.journal.submit(batch)?;
        way.recorded(names);
        for ino in replaced {
            self.content.last_name_gone(ino, Batch::default())?;
        }
        Ok(())
    }

    /// The link to the content of a name that is shown, unless the name is gone.
    fn hold_given(
        &self,
        way: &UnderWay,
        (entry, name, ino): &Given,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let Some(digest) = way.of().entries[*entry as usize].digest() else {
            return Ok(());
        };
        if self.content.has(digest) || self.inbox().inode(name)? != Some(*ino) {
            return Ok(());
        }
        let shown = self.inbox().shown(name);
        let file = self.inbox().read(name).on("open", &shown)?;
        self.content.hold(&file, digest, batch).map(drop)
    }
}
