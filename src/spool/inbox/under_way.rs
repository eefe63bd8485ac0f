//! Publishes under way: what is known of a bundle of many files while its names are given.
//!
//! A bundle of many is published in slices. Between two of them the decision lock is free, and whatever else concerns the
//! same names may be decided. So it is noted here, where it is found by name and by path.
//!
//! # Invariants
//! 1. A bundle is here from before its first name is chosen until it is settled. What is decided about one of its paths
//!    before it is shown, something newer for instance, is noted: the switch leaves that entry out.
//! 2. A name that is shown and has no rows yet is here. Whoever does something with a name of the inbox has its rows written
//!    first ([`Spool::record_pending`]).
//! 3. Once a bundle is shown there is only forward. If our disk fails then, it stays here, and the next attempt goes on.
//!
//! # Crash behaviour
//! Memory only; the rows of the intent ([`crate::spool::inbox::forward`]) say the same to the next start.
//!
//! # Threads
//! Any; changed with the decision lock held. Its locks are leaves.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bundle::{BundleId, Manifest, RelPath, VerifiedManifest};
use crate::peer::PeerId;
use crate::spool::durable::{OnPath, SYNC_EACH_MAX};
use crate::spool::inbox::publish::Given;
use crate::spool::journal::Batch;
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

/// One of them.
pub(in crate::spool) struct UnderWay {
    pub(super) manifest: VerifiedManifest,
    /// The numbers of the entries, in the order of their paths.
    by_path: Vec<u32>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Entries of which something newer is here by now.
    outdated: BTreeSet<u32>,
    shown: Option<Shown>,
    /// Entries that are shown without rows.
    pending: HashSet<u32>,
}

/// What is shown of it.
#[derive(Clone)]
pub(super) struct Shown {
    /// The topmost name.
    pub(super) root: RelPath,
    /// All names, in their order.
    pub(super) names: Arc<Vec<Given>>,
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

    /// Entries of which something newer is here since the last call.
    pub(super) fn take_outdated(&self) -> BTreeSet<u32> {
        std::mem::take(&mut self.state.lock().outdated)
    }

    /// From now on this is shown.
    pub(super) fn show(&self, shown: Shown) {
        let mut state = self.state.lock();
        state.pending = shown.names.iter().map(|(entry, ..)| *entry).collect();
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
    pub(super) fn recorded(&self, names: &[Given]) {
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
        let first = names.partition_point(|(_, name, _)| name < directory);
        let below = names.get(first);
        below.is_some_and(|(_, name, _)| name.starts_with(directory))
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
    /// Notes a bundle, or finds what an attempt left that failed after the switch.
    pub(super) fn begin(&self, manifest: &VerifiedManifest) -> Begun<'_> {
        let mut bundles = self.bundles.lock();
        let known = bundles
            .iter()
            .find(|way| way.manifest.id() == manifest.id());
        let way = known.cloned().unwrap_or_else(|| {
            let entries = &manifest.manifest().entries;
            let mut by_path: Vec<u32> = (0..entries.len() as u32).collect();
            by_path.sort_by(|a, b| entries[*a as usize].path.cmp(&entries[*b as usize].path));
            let way = Arc::new(UnderWay {
                manifest: manifest.clone(),
                by_path,
                state: Mutex::default(),
            });
            bundles.push(Arc::clone(&way));
            way
        });
        Begun {
            publishing: self,
            way,
            settled: false,
        }
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
                way.state.lock().outdated.insert(entry);
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
        let mut batch = Batch::default();
        let mut above: BTreeSet<RelPath> =
            std::iter::successors(shown.root.parent(), RelPath::parent).collect();
        // What is in a tree of many was synced before it was shown; what is new since is the name of the tree.
        if shown.names.len() <= SYNC_EACH_MAX {
            for (_, name, ino) in names {
                let directory = (*ino == 0).then(|| name.clone()).or_else(|| name.parent());
                above.extend(std::iter::successors(directory, RelPath::parent));
            }
        }
        let above = above.into_iter().map(Some).chain([None]);
        above.for_each(|directory| batch.sync(self.inbox().sync(directory)));
        for given in names {
            self.hold_given(way, given, &mut batch)?;
        }
        self.name_rows(&way.manifest, names, &mut batch)?;
        self.journal.submit(batch)?;
        way.recorded(names);
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
