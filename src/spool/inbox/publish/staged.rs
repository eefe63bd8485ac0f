//! The steps of publishing a bundle of many; what they mean is said in [`super`].

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{BundleId, DirectoryTime, RelPath};
use crate::journal::Batch;
use crate::spool::beneath::Root;
use crate::spool::decision::handles_name;
use crate::spool::directories::{set_times, times_in_inbox};
use crate::spool::durable::{self, OnPath, Sync};
use crate::spool::inbox::Left;
use crate::spool::inbox::forward::is_in_the_way;
use crate::spool::inbox::intake::Verified;
use crate::spool::inbox::naming::{Choosing, Naming, SLICE};
use crate::spool::inbox::publish::{
    Given, INTENT_NAMES, InboxObserver, NewName, are_synced_singly, directory_made, given,
};
use crate::spool::inbox::tables::INTENTS;
#[cfg(test)]
use crate::spool::inbox::under_way::Step;
use crate::spool::inbox::under_way::{Begun, Means, Note, Shown, Since, UnderWay};
use crate::spool::overlay::{Layer, Moved, MovedKind};
use crate::spool::{Published, Spool, SpoolError};

/// A bundle whose names are chosen.
struct Staged<'a> {
    verified: &'a Verified,
    namings: Vec<Naming>,
    /// The renames that give the names.
    layer: Arc<Layer>,
    /// Directories that are missing.
    missing: HashSet<RelPath>,
    /// What the names show now.
    replaced: HashMap<RelPath, u64>,
    /// Older files, and empty directories, that give way.
    cleared: Arc<Vec<RelPath>>,
    /// In how many rows its names are.
    slices: u64,
    /// Times of directories that are there.
    above: Arc<Vec<DirectoryTime>>,
    /// What it is to be announced with.
    new: Vec<NewName>,
    /// Ended when the names are given.
    prepared: Vec<Prepared>,
}

/// The kernel has forgotten some names and remembers none, for as long as this lives.
struct Prepared(Arc<dyn InboxObserver>);

impl Drop for Prepared {
    fn drop(&mut self) {
        self.0.unprepare();
    }
}

impl Staged<'_> {
    fn given(&self) -> Vec<Given> {
        let given = |naming| given(self.verified, naming);
        let mut names: Vec<Given> = self.namings.iter().map(given).collect();
        names.sort_by(|a, b| a.1.cmp(&b.1));
        names
    }

    /// Whether a file is in a directory that is built.
    fn is_built(&self, naming: &Naming) -> bool {
        let directory = naming.name.parent();
        directory.is_some_and(|directory| self.missing.contains(&directory))
    }

    /// What is to be on the disk before the names are.
    fn syncs(&self) -> Vec<Sync> {
        let entries = self.namings.iter().map(|naming| naming.entry);
        if !are_synced_singly(self.verified, entries) {
            return vec![Sync::Everything];
        }
        let files = self.namings.iter();
        let files = files.filter_map(|naming| self.verified.files[naming.entry].as_ref());
        let kept = files.filter_map(|file| file.kept.as_ref());
        kept.map(|kept| Sync::File(Arc::clone(kept))).collect()
    }
}

/// The steps up to the switch.
impl Spool {
    /// Shows a bundle; `false`: something came in between, and nothing is shown.
    pub(super) fn show(&self, verified: &Verified, way: &UnderWay) -> Result<bool, SpoolError> {
        let mut staged = self.plan(verified)?;
        #[cfg(test)]
        self.inbox.publishing.reached(Step::Chosen);
        let shown = self
            .note_intent(&mut staged)
            .and_then(|()| self.build(&mut staged))
            .and_then(|()| self.switch(&mut staged, way));
        if way.shown().is_none() {
            self.take_apart(&staged);
            return shown;
        }
        if let Some(observer) = self.observer.read().clone() {
            observer.published(&staged.new);
        }
        // Of these a newer version is here: their bytes are not shown.
        let named: HashSet<usize> = staged.namings.iter().map(|naming| naming.entry).collect();
        for (index, file) in verified.files.iter().enumerate() {
            if let Some(file) = file.as_ref().filter(|_| !named.contains(&index)) {
                durable::remove(&file.at)?;
            }
        }
        drop(staged);
        #[cfg(test)]
        self.inbox.publishing.reached(Step::Shown);
        shown
    }

    /// Chooses the names, and finds by which renames they are given.
    fn plan<'a>(&self, verified: &'a Verified) -> Result<Staged<'a>, SpoolError> {
        let manifest = &verified.manifest;
        let mut choosing = Choosing::of(manifest);
        let namings = self.choose_in_slices(manifest, &mut choosing)?;
        let (mut moved, mut new) = (Vec::new(), Vec::new());
        let mut replaced = HashMap::new();
        // Whether a directory is missing.
        let mut known: HashMap<RelPath, bool> = HashMap::new();
        for naming in &namings {
            let file = verified.files[naming.entry].as_ref();
            let directory = match file {
                Some(_) => naming.name.parent(),
                None => Some(naming.name.clone()),
            };
            let is_missing = self.find_missing(directory, &mut known, &mut moved, &mut new)?;
            let Some(file) = file else {
                continue;
            };
            let before = self.inbox.row_of(&naming.name)?.map(|row| row.ino);
            replaced.extend(before.map(|ino| (naming.name.clone(), ino)));
            new.push(NewName {
                path: naming.name.clone(),
                directory: false,
                replaced: before,
            });
            if !is_missing {
                let entry = &manifest.manifest().entries[naming.entry];
                moved.push(Moved {
                    name: naming.name.clone(),
                    kind: match entry.target() {
                        Some(_) => MovedKind::Link,
                        None => MovedKind::File,
                    },
                    ino: file.ino,
                    number: naming.entry as u32,
                });
            }
        }
        let missing = known.into_iter().filter(|(_, is_missing)| *is_missing);
        let mut cleared = choosing.cleared;
        cleared.sort_unstable();
        cleared.dedup();
        Ok(Staged {
            verified,
            layer: self.layer(manifest.id(), moved),
            missing: missing.map(|(path, _)| path).collect(),
            namings,
            replaced,
            cleared: Arc::new(cleared),
            slices: 0,
            above: Arc::default(),
            new,
            prepared: Vec::new(),
        })
    }

    /// Whether a directory is missing in the inbox. Those above it that are, and are not `known` yet, are added to `new`, and
    /// the topmost to `moved`.
    fn find_missing(
        &self,
        directory: Option<RelPath>,
        known: &mut HashMap<RelPath, bool>,
        moved: &mut Vec<Moved>,
        new: &mut Vec<NewName>,
    ) -> Result<bool, SpoolError> {
        let (mut unknown, mut is_missing) = (Vec::new(), false);
        for path in std::iter::successors(directory, RelPath::parent) {
            if let Some(found) = known.get(&path) {
                is_missing = *found;
                break;
            }
            unknown.push(path);
        }
        for path in unknown.into_iter().rev() {
            let found = match is_missing {
                true => None,
                false => self.inbox().look(&path)?.filter(|meta| meta.is_dir()),
            };
            if found.is_none() {
                new.push(directory_made(&path));
                if !is_missing {
                    moved.push(Moved {
                        name: path.clone(),
                        kind: MovedKind::Directory,
                        ino: 0,
                        number: 0,
                    });
                }
            }
            is_missing = found.is_none();
            known.insert(path, is_missing);
        }
        Ok(is_missing)
    }

    /// The renames that give the names of a bundle.
    fn layer(&self, bundle: BundleId, moved: Vec<Moved>) -> Arc<Layer> {
        let (inbox, partial) = (Arc::downgrade(self.inbox()), self.layout.partial());
        let tree = self.staging_tree(bundle);
        let rename = move |moved: &Moved| {
            let inbox = inbox.upgrade().ok_or(rustix::io::Errno::IO)?;
            let directory = moved.kind == MovedKind::Directory;
            let from = match directory {
                true => tree.join(moved.name.as_path()),
                false => partial.join(format!("{bundle}.{}", moved.number)),
            };
            let to = inbox.place_of(&moved.name)?;
            durable::rename_into_place(&from, &to, directory).map_err(|error| {
                let errno = rustix::io::Errno::from_io_error(error.cause());
                errno.unwrap_or(rustix::io::Errno::IO)
            })
        };
        Arc::new(Layer::new(moved, Box::new(rename)))
    }

    /// The rows by which the next start finds the files.
    fn note_intent(&self, staged: &mut Staged<'_>) -> Result<(), SpoolError> {
        let bundle = staged.verified.manifest.id();
        for (number, slice) in staged.namings.chunks(SLICE).enumerate() {
            let names: Vec<Given> = slice
                .iter()
                .map(|naming| given(staged.verified, naming))
                .collect();
            let mut batch = Batch::default();
            batch.insert(INTENT_NAMES, &(bundle, number as u64), &names);
            self.journal.submit(batch)?;
            staged.slices = number as u64 + 1;
        }
        Ok(())
    }

    /// Builds the missing directories beside the inbox.
    fn build(&self, staged: &mut Staged<'_>) -> Result<(), SpoolError> {
        let manifest = &staged.verified.manifest;
        let at = self.staging_tree(manifest.id());
        durable::remove_all(&at)?;
        for directory in staged.new.iter().filter(|new| new.directory) {
            self.make_staged_directory(&at.join(directory.path.as_path()))?;
        }
        for naming in &staged.namings {
            let Some(file) = &staged.verified.files[naming.entry] else {
                continue;
            };
            if staged.is_built(naming) {
                durable::rename(&file.at, &at.join(naming.name.as_path()))?;
            } else {
                // Nothing is shown of a bundle that cannot be shown whole.
                std::fs::symlink_metadata(&file.at).on("find", &file.at)?;
            }
        }
        let mut moved = staged.layer.moved().to_vec();
        for moved in &mut moved {
            if moved.kind == MovedKind::Directory {
                let built = at.join(moved.name.as_path());
                moved.ino = std::fs::symlink_metadata(&built).on("stat", &built)?.ino();
            }
        }
        staged.layer = self.layer(manifest.id(), moved);
        let names = staged
            .namings
            .iter()
            .map(|naming| (naming.entry, &naming.name));
        let times = times_in_inbox(manifest.manifest(), names);
        let (inside, above): (Vec<_>, Vec<_>) = times
            .into_iter()
            .partition(|(path, _)| staged.missing.contains(path));
        if let Ok(tree) = Root::open_at(at) {
            set_times(&tree, &inside);
        }
        staged.above = Arc::new(above);
        #[cfg(test)]
        self.inbox.publishing.reached(Step::Built);
        Ok(())
    }

    /// The kernel forgets names that will show something else.
    fn prepare(&self, staged: &mut Staged<'_>, names: &[RelPath]) {
        if names.is_empty() {
            return;
        }
        if let Some(observer) = self.observer.read().clone() {
            observer.prepare(names);
            staged.prepared.push(Prepared(observer));
        }
    }

    /// The instant at which all names are shown; `false`: something came in between.
    fn switch(&self, staged: &mut Staged<'_>, way: &UnderWay) -> Result<bool, SpoolError> {
        let manifest = &staged.verified.manifest;
        let (bundle, of) = (manifest.id(), manifest.manifest());
        let replaced = staged.replaced.keys().chain(staged.cleared.iter());
        let disturbed: Vec<RelPath> = replaced.cloned().collect();
        self.prepare(staged, &disturbed);
        let decide = loop {
            let names = Arc::new(staged.given());
            let pending = names.iter().map(|(entry, ..)| *entry).collect();
            self.keep_proof(manifest, &names);
            let decide = self.decide();
            if let Some(reason) = self.ledger.ended(bundle, of.origin) {
                return Err(SpoolError::Ended(reason));
            }
            let since = way.take_since();
            if since.is_empty() {
                let shown = Shown {
                    layer: Arc::clone(&staged.layer),
                    names,
                    cleared: Arc::clone(&staged.cleared),
                    above: Arc::clone(&staged.above),
                };
                way.show(shown, pending);
                break decide;
            }
            drop(decide);
            if !self.keep_up(staged, since)? {
                return Ok(false);
            }
        };
        let given = self.give_all(staged, way);
        drop(decide);
        given
    }

    /// Takes in what came in between; `false`: the names are to be chosen anew.
    fn keep_up(&self, staged: &mut Staged<'_>, since: Since) -> Result<bool, SpoolError> {
        let manifest = &staged.verified.manifest;
        let (bundle, origin) = (manifest.id(), manifest.manifest().origin);
        let mut disturbed = Vec::new();
        let (files, namings) = (&staged.verified.files, staged.namings.iter());
        let directories = namings.filter(|naming| files[naming.entry].is_none());
        let directories: HashSet<&RelPath> = directories.map(|naming| &naming.name).collect();
        for note in &since.notes {
            // It was there when the names were chosen, so that nothing of the layer makes it.
            if matches!(note, Note::Directory(path) if directories.contains(path)) {
                return Ok(false);
            }
            match note.means(origin, &staged.layer) {
                Means::Nothing => {}
                Means::Replaces(name) => disturbed.push(name),
                Means::Upset => return Ok(false),
            }
        }
        if since.overflown {
            return Ok(false);
        }
        if !since.outdated.is_empty() {
            // A newer version was published meanwhile: these bytes are not shown.
            let is_past = |naming: &Naming| since.outdated.contains(&(naming.entry as u32));
            let mut past = HashSet::new();
            for naming in staged.namings.iter().filter(|naming| is_past(naming)) {
                if let Some(file) = &staged.verified.files[naming.entry] {
                    let built = self.staging_tree(bundle).join(naming.name.as_path());
                    let at = if staged.is_built(naming) {
                        &built
                    } else {
                        &file.at
                    };
                    durable::remove(at)?;
                    past.insert(naming.name.clone());
                }
            }
            staged.namings.retain(|naming| !past.contains(&naming.name));
            staged.new.retain(|new| !past.contains(&new.path));
            let moved = staged.layer.moved().iter();
            let still = moved.filter(|moved| !past.contains(&moved.name)).cloned();
            staged.layer = self.layer(bundle, still.collect());
        }
        let mut rows = HashMap::new();
        for name in &disturbed {
            rows.insert(name, self.inbox.row_of(name)?.map(|row| row.ino));
        }
        for new in &mut staged.new {
            if let Some(before) = rows.get(&new.path) {
                new.replaced = *before;
            }
        }
        self.prepare(staged, &disturbed);
        Ok(true)
    }

    /// The row that says that there is only forward, and the renames, or what stands for them. Call with the decision lock
    /// held.
    fn give_all(&self, staged: &Staged<'_>, way: &UnderWay) -> Result<bool, SpoolError> {
        let manifest = &staged.verified.manifest;
        let mut batch = Batch::default();
        Self::intend(manifest, Vec::new(), staged.slices, &mut batch);
        for sync in staged.syncs() {
            batch.sync(sync);
        }
        if let Err(error) = self.journal.submit(batch) {
            way.hide();
            return Err(error.into());
        }
        let layer = &staged.layer;
        let mut given = Ok(());
        let mut give = || {
            self.inbox().overlay.add(Arc::clone(layer));
            // More than a few are given one by one, when the lock is free.
            if layer.moved().len() <= SLICE {
                given = self.perform(layer);
            }
        };
        match self.observer.read().clone() {
            Some(observer) if layer.moved().len() > 1 || !staged.prepared.is_empty() => {
                observer.switch(&mut give);
            }
            Some(_) | None => give(),
        }
        let forward = given.is_ok() || !layer.withdraw();
        if forward {
            let publishing = &self.inbox.publishing;
            publishing.note(|| Note::Shown(Arc::clone(layer)));
        }
        if let Err(error) = given {
            if forward {
                return Err(error);
            }
            self.inbox().overlay.remove(layer);
            way.hide();
            let mut batch = Batch::default();
            batch.remove(INTENTS, &manifest.id());
            self.journal.submit(batch)?;
            return match error {
                SpoolError::Io { source, .. } if is_in_the_way(&source) => Ok(false),
                error => Err(error),
            };
        }
        Ok(true)
    }

    /// Does the renames that are not done.
    fn perform(&self, layer: &Layer) -> Result<(), SpoolError> {
        for (at, moved) in layer.moved().iter().enumerate() {
            handles_name();
            layer
                .perform(at)
                .on("rename", &self.inbox().shown(&moved.name))?;
        }
        Ok(())
    }

    /// Nothing is visible. What was moved goes back to where the next attempt looks for it.
    fn take_apart(&self, staged: &Staged<'_>) {
        let bundle = staged.verified.manifest.id();
        let at = self.staging_tree(bundle);
        for naming in &staged.namings {
            if let Some(file) = &staged.verified.files[naming.entry]
                && staged.is_built(naming)
                && !file.at.exists()
                && let Err(error) = durable::rename(&at.join(naming.name.as_path()), &file.at)
            {
                tracing::debug!(%error, "it will be fetched again");
            }
        }
        if let Err(error) = durable::remove_all(&at) {
            tracing::debug!(%error, "empty directories stay until the next start");
        }
        if let Err(error) = self.forget_intent(bundle) {
            tracing::warn!(%error, "the next start forgets a publish that failed");
        }
    }
}

/// The steps after it.
impl Spool {
    /// Removes the rows of the names of an intent.
    pub(in crate::spool::inbox) fn forget_intent(
        &self,
        bundle: BundleId,
    ) -> Result<(), SpoolError> {
        loop {
            let rows = self.journal.keys(INTENT_NAMES.below(&bundle), SLICE)?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            rows.iter().for_each(|row| batch.remove(INTENT_NAMES, row));
            self.journal.submit(batch)?;
        }
    }

    /// The renames and rows of a bundle that is shown.
    pub(super) fn finish(&self, begun: &mut Begun<'_>) -> Result<Published, SpoolError> {
        let way = Arc::clone(&begun.way);
        let (manifest, bundle) = (&way.manifest, way.manifest.id());
        let Some(shown) = way.shown() else {
            return Err(SpoolError::Corrupted("nothing is shown of it".into()));
        };
        self.perform(&shown.layer)?;
        self.inbox().overlay.remove(&shown.layer);
        set_times(self.inbox(), &*shown.above);
        for slice in shown.cleared.chunks(SLICE) {
            let _decide = self.decide();
            for path in slice {
                handles_name();
                self.record_gave_way(manifest.manifest().origin, path)?;
            }
        }
        for slice in shown.names.chunks(SLICE) {
            let decide = self.decide();
            self.record_given(&way, &way.pending_of(slice))?;
            drop(decide);
            #[cfg(test)]
            self.inbox.publishing.reached(Step::Recorded);
        }
        {
            let _decide = self.decide();
            let mut batch = Batch::default();
            let of = manifest.manifest();
            self.former_rows(bundle, of, !shown.names.is_empty(), &mut batch)?;
            self.settle_rows(manifest, &shown.names, &mut batch)?;
            self.journal.submit(batch)?;
            begun.settled = true;
        }
        self.forget_intent(bundle)?;
        if let Err(error) = durable::remove_all(&self.staging_tree(bundle)) {
            tracing::debug!(%error, "an empty directory stays until the next start");
        }
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        let names = shown
            .names
            .iter()
            .map(|(_, name, _)| name.clone())
            .collect();
        Ok(Published { bundle, names })
    }

    /// The rows of an older file of `origin` that gave way to a directory. Call with the decision lock held.
    pub(in crate::spool::inbox) fn record_gave_way(
        &self,
        origin: crate::peer::PeerId,
        path: &RelPath,
    ) -> Result<(), SpoolError> {
        match self.inbox.row_of(path)? {
            Some(row) if row.origin == origin && self.inbox().inode(path)? != Some(row.ino) => {
                self.drop_name(path, Left::GaveWay, |_| {})
            }
            Some(_) | None => Ok(()),
        }
    }
}
