//! Publishing a bundle of many where its topmost name is free: the tree is built beside the inbox, and appears by one
//! rename.
//!
//! | step | decision lock | an error, or a kill, leaves |
//! |---|---|---|
//! | 1. names are chosen | for each slice | chosen names, as for any bundle that comes later |
//! | 2. rows of the intent say which file gets which name | no | those rows: the next start removes them |
//! | 3. the tree is built | no | the same, and files that go back to where they arrived |
//! | 4. the switch: the row that says so, and the rename | once | after the row there is only forward |
//! | 5. the rows of the names, and the links to their content | for each slice | the bundle half recorded: the next attempt, or start, goes on |
//! | 6. the row that settles it | once | a settled bundle |
//!
//! # What comes in between
//! - Something newer for one of the paths, before 4: noted ([`crate::spool::inbox::under_way`]), and left out. After 4: the
//!   rows of the name are written first.
//! - The user, or its origin, removes, moves or renames a name between 4 and 6: the same.
//! - Another bundle takes the topmost name before 4: the rename fails, and the names are chosen anew; what is in the way
//!   then makes it a merge.
//! - A file of the same origin in the way of the tree: it gives way as the names are chosen, so the names are merged at once
//!   instead.
//! - A cancel, or the end of its lifetime, before 4: nothing is shown. After it: too late.
//! - Links of others that could lead into the tree: its top directory is claimed with the switch.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bundle::{BundleId, DirectoryTime, RelPath};
use crate::spool::beneath::Root;
use crate::spool::decision::handles_name;
use crate::spool::directories::{set_times, times_in_inbox};
use crate::spool::durable::{self, Sync};
use crate::spool::inbox::forward::is_in_the_way;
use crate::spool::inbox::intake::Verified;
use crate::spool::inbox::naming::{Choosing, Naming, SLICE};
use crate::spool::inbox::publish::{
    Given, INTENT_NAMES, NewName, are_synced_singly, directory_made, given,
};
use crate::spool::inbox::tables::{INTENTS, Intent};
#[cfg(test)]
use crate::spool::inbox::under_way::Step;
use crate::spool::inbox::under_way::{Begun, Shown, UnderWay};
use crate::spool::journal::Batch;
use crate::spool::{Published, Spool, SpoolError};

/// A tree that is built.
struct Staged<'a> {
    verified: &'a Verified,
    namings: Vec<Naming>,
    /// The topmost name, which is free.
    fresh: RelPath,
    /// In how many rows its names are.
    slices: u64,
    /// Times of directories above it.
    above: Vec<DirectoryTime>,
    /// What it is to be announced with.
    new: Vec<NewName>,
}

impl Staged<'_> {
    fn given(&self) -> Vec<Given> {
        let mut names: Vec<Given> = self
            .namings
            .iter()
            .map(|naming| given(self.verified, naming))
            .collect();
        names.sort_by(|a, b| a.1.cmp(&b.1));
        names
    }
}

/// What became of an attempt.
pub(super) enum Attempt {
    Published(Published),
    /// No name above all of it is free.
    NotFree,
    /// One was, until something else took it.
    Taken,
}

/// What an error says of the topmost name: `false`, something else took it, or one above it, meanwhile.
fn taken_or(error: SpoolError) -> Result<bool, SpoolError> {
    match error {
        SpoolError::Io { source, .. } if is_in_the_way(&source) => Ok(false),
        error => Err(error),
    }
}

impl Spool {
    /// Publishes the bundle if the topmost of its names is free. Files that were in the way are gone, and added to
    /// `cleared`; nothing else is done then.
    pub(super) fn publish_tree(
        &self,
        verified: &Verified,
        begun: &mut Begun<'_>,
        cleared: &mut HashSet<RelPath>,
    ) -> Result<Attempt, SpoolError> {
        let manifest = &verified.manifest;
        let mut choosing = Choosing::of(manifest);
        let namings = self.choose_in_slices(manifest, &mut choosing)?;
        cleared.extend(choosing.cleared);
        if !cleared.is_empty() {
            return Ok(Attempt::NotFree);
        }
        let Some(fresh) = self.fresh_root(&namings)? else {
            return Ok(Attempt::NotFree);
        };
        #[cfg(test)]
        self.inbox.publishing.reached(Step::Chosen);
        let mut staged = Staged {
            verified,
            namings,
            fresh,
            slices: 0,
            above: Vec::new(),
            new: Vec::new(),
        };
        let shown = self
            .note_intent(&mut staged)
            .and_then(|()| self.build(&mut staged))
            .and_then(|()| self.show_tree(&mut staged, &begun.way));
        match shown {
            Ok(true) => {}
            Ok(false) => {
                self.take_apart(&staged);
                return Ok(Attempt::Taken);
            }
            Err(error) => {
                self.take_apart(&staged);
                return Err(error);
            }
        }
        if let Some(observer) = self.observer.read().clone() {
            observer.published(&staged.new);
        }
        #[cfg(test)]
        self.inbox.publishing.reached(Step::Shown);
        self.finish_tree(begun).map(Attempt::Published)
    }

    /// The rows by which the next start finds the files in the tree.
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

    /// Builds the tree beside the inbox.
    fn build(&self, staged: &mut Staged<'_>) -> Result<(), SpoolError> {
        let manifest = &staged.verified.manifest;
        let (at, fresh) = (self.staging_tree(manifest.id()), &staged.fresh);
        durable::remove_all(&at)?;
        self.make_staged_directory(&at.join(fresh.as_path()))?;
        let mut made = HashSet::new();
        for naming in &staged.namings {
            handles_name();
            let file = &staged.verified.files[naming.entry];
            let directory = match file {
                Some(_) => naming.name.parent(),
                None => Some(naming.name.clone()),
            };
            let mut missing = Vec::new();
            for path in std::iter::successors(directory, RelPath::parent) {
                if !path.starts_with(fresh) || made.contains(&path) {
                    break;
                }
                missing.push(path);
            }
            while let Some(directory) = missing.pop() {
                if directory != *fresh {
                    self.make_staged_directory(&at.join(directory.as_path()))?;
                }
                staged.new.push(directory_made(&directory));
                made.insert(directory);
            }
            let Some(file) = file else {
                continue;
            };
            let to = at.join(naming.name.as_path());
            durable::rename(&file.at, &to)?;
            staged.new.push(NewName {
                path: naming.name.clone(),
                directory: false,
                replaced: None,
            });
        }
        let names = staged
            .namings
            .iter()
            .map(|naming| (naming.entry, &naming.name));
        let times = times_in_inbox(manifest.manifest(), names);
        // Above the tree are directories that the inbox has already.
        let (inside, above): (Vec<_>, Vec<_>) = times
            .into_iter()
            .partition(|(path, _)| path.starts_with(fresh));
        if let Ok(tree) = Root::open_at(at) {
            set_times(&tree, &inside);
        }
        staged.above = above;
        #[cfg(test)]
        self.inbox.publishing.reached(Step::Built);
        Ok(())
    }

    /// The instant at which all names are shown; `false`: something else has the topmost one by now.
    fn show_tree(&self, staged: &mut Staged<'_>, way: &UnderWay) -> Result<bool, SpoolError> {
        let manifest = &staged.verified.manifest;
        let (bundle, of) = (manifest.id(), manifest.manifest());
        let at = self.staging_tree(bundle);
        let syncs = Self::syncs_of(staged);
        let decide = loop {
            let names = Arc::new(staged.given());
            self.keep_proof(manifest, &names);
            let decide = self.decide();
            if let Some(reason) = self.ledger.ended(bundle, of.origin) {
                return Err(SpoolError::Ended(reason));
            }
            let outdated = way.take_outdated();
            if outdated.is_empty() {
                if names.is_empty() {
                    return Ok(false);
                }
                let root = staged.fresh.clone();
                way.show(Shown { root, names });
                break decide;
            }
            drop(decide);
            // A newer version was published meanwhile: these bytes are not shown.
            let (past, still): (Vec<_>, Vec<_>) = std::mem::take(&mut staged.namings)
                .into_iter()
                .partition(|naming| outdated.contains(&(naming.entry as u32)));
            staged.namings = still;
            for naming in &past {
                durable::remove_all(&at.join(naming.name.as_path()))?;
            }
            let past: HashSet<RelPath> = past.into_iter().map(|naming| naming.name).collect();
            staged.new.retain(|new| !past.contains(&new.path));
        };
        let shown = self.switch_to(staged, &at, syncs);
        if !matches!(shown, Ok(true)) {
            way.hide();
        }
        drop(decide);
        shown
    }

    /// The row that says that there is only forward, and the rename. Call with the decision lock held.
    fn switch_to(
        &self,
        staged: &mut Staged<'_>,
        at: &Path,
        syncs: Vec<Sync>,
    ) -> Result<bool, SpoolError> {
        let manifest = &staged.verified.manifest;
        let (bundle, of) = (manifest.id(), manifest.manifest());
        let is_link = |naming: &&Naming| of.entries[naming.entry].target().is_some();
        let link = staged.namings.iter().find(is_link);
        let top = staged.fresh.components().next().unwrap_or_default();
        if let Ok(top) = RelPath::parse(top.to_vec())
            && !self.may_use_top(of.origin, &top, link.is_some())?
        {
            return Ok(false);
        }
        let mut made = Vec::new();
        if let Some(above) = staged.fresh.parent()
            && let Err(error) = self.make_directories(&above, &mut made)
        {
            return taken_or(error);
        }
        let mut batch = Batch::default();
        batch.insert(
            INTENTS,
            &bundle,
            &Intent {
                signed: manifest.signed(),
                names: Vec::new(),
                slices: staged.slices,
            },
        );
        for sync in syncs {
            batch.sync(sync);
        }
        if let Some(link) = link {
            let path = &of.entries[link.entry].path;
            self.claim_top(of.origin, path, &link.name, &mut batch)?;
        }
        self.journal.submit(batch)?;
        let root = at.join(staged.fresh.as_path());
        let to = self.inbox().at(&staged.fresh);
        let renamed = to.and_then(|to| durable::rename_no_replace(&root, &to));
        let taken = match renamed {
            Ok(()) => {
                set_times(self.inbox(), &staged.above);
                staged.new.splice(0..0, made);
                return Ok(true);
            }
            Err(error) => SpoolError::from(error),
        };
        let mut batch = Batch::default();
        batch.remove(INTENTS, &bundle);
        self.journal.submit(batch)?;
        taken_or(taken)
    }

    /// What is to be on the disk before the names are.
    fn syncs_of(staged: &Staged<'_>) -> Vec<Sync> {
        let entries = staged.namings.iter().map(|naming| naming.entry);
        if !are_synced_singly(staged.verified, entries) {
            return vec![Sync::Everything];
        }
        let files = staged.namings.iter();
        let files = files.filter_map(|naming| staged.verified.files[naming.entry].as_ref());
        let kept = files.filter_map(|file| file.kept.as_ref());
        kept.map(|kept| Sync::File(Arc::clone(kept))).collect()
    }

    /// Nothing is visible. What was moved goes back to where the next attempt looks for it.
    fn take_apart(&self, staged: &Staged<'_>) {
        let bundle = staged.verified.manifest.id();
        let at = self.staging_tree(bundle);
        for naming in &staged.namings {
            if let Some(file) = &staged.verified.files[naming.entry]
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

    /// The rows of a bundle whose names are shown.
    pub(super) fn finish_tree(&self, begun: &mut Begun<'_>) -> Result<Published, SpoolError> {
        let way = Arc::clone(&begun.way);
        let manifest = &way.manifest;
        let bundle = manifest.id();
        let names = way.shown().map(|shown| shown.names).unwrap_or_default();
        for slice in names.chunks(SLICE) {
            let decide = self.decide();
            self.record_given(&way, &way.pending_of(slice))?;
            drop(decide);
            #[cfg(test)]
            self.inbox.publishing.reached(Step::Recorded);
        }
        {
            let _decide = self.decide();
            let mut batch = Batch::default();
            self.former_rows(bundle, manifest.manifest(), true, &mut batch)?;
            self.settle_rows(manifest, &names, &mut batch)?;
            self.journal.submit(batch)?;
            begun.settled = true;
        }
        self.forget_intent(bundle)?;
        if let Err(error) = durable::remove_all(&self.staging_tree(bundle)) {
            tracing::debug!(%error, "an empty directory stays until the next start");
        }
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        let names = names.iter().map(|(_, name, _)| name.clone()).collect();
        Ok(Published { bundle, names })
    }
}
