//! Renames: a file that its origin renamed gets the new name here too, instead of being shown twice.
//!
//! A manifest lists the names its file had before ([`Former`]). Both halves are here: the origin finds them by its own
//! rows, which survive a restart; the receiver changes its name for the file in one step, without any byte.
//!
//! # Rules
//! 1. A name is changed only if it shows this very version of the former path, and the origin has no other file there by
//!    now that is still to come. Anything else is published as usual, beside what is shown.
//! 2. Of the former names, the newest whose bundle was settled here decides. If its file was consumed ([`crate::spool::inbox::taken`]),
//!    the bundle is settled and nothing is shown, unless the target's name shows at this moment an older file of that origin
//!    that was replaced there, of which this is then a new version. If it was replaced meanwhile, it is published as any
//!    other.
//! 3. An older file was replaced, unless it moved on to another name that others are told of: the manifest says up to which
//!    version of the name that is so ([`crate::spool::outbox::moved_on`]). What moved on is left where it is shown, for the bundle that
//!    says where to.
//! 4. A name that shows what has its new name too, or an older version of that, waits for what its origin has there by now
//!    ([`InName::left`]): whatever comes takes its place, and it goes when that was consumed.
//! 5. A former version that arrives late is settled and not shown. So is a rename whose own name has a newer file; that its
//!    file was consumed is kept for the next rename.
//! 6. A former path that is the entry's own says that only mode or time are new: they are changed in place. The origin
//!    announces them only if they were set within [`DRESSED_SECS`] of the seal.
//! 7. Directories that are gone at the origin too go with the last file in them, and the empty ones in them; others stay,
//!    for who watches them. A file that waits for such a name gets it ([`crate::spool::inbox::home`]).
//!
//! # Order
//! None is needed between the bundles of an origin: whether they come by one peer or several, the urgent ones first, after a
//! restart, or as an exchange, which has no order of two bundles that suits both names, nothing that was consumed is shown
//! but by rule 2, and each file has its name when all are here. In the order in which they happened the least has to be
//! fetched; so `ready` and [`crate::spool::outbox::jobs`] seal them in it where they can.
//!
//! What is still shown again: a file that is renamed to where more may see it is a new one for all, since they are not to
//! learn its former name ([`crate::spool::group::route`]); and so is all in a directory that is sent as one once more.
//!
//! # What a lying origin gains
//! It can have its own consumed files shown again, as by sending them anew, and its own names stay or go.
//!
//! # Crash behaviour
//! The row in [`RENAMES`] is in the journal's log before the rename; after a crash of the daemon the rename is completed.
//! After a power loss the rename may have reached the disk without any row: the inode of a recorded name found under an
//! unrecorded one goes back, if its bytes are those of the record, and the bundle is offered again.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::bundle::{
    BundleId, DeliveryState, Entry, EntryKind, FORMERS_MAX, Former, Manifest, RelPath,
    VerifiedManifest, link,
};
use crate::digest::Digest;
use crate::peer::PeerId;
use crate::spool::beneath::is_nothing;
use crate::spool::durable::{self, OnPath, Sync};
use crate::spool::inbox::Left;
use crate::spool::inbox::intake::set_mtime;
use crate::spool::inbox::naming::Choosing;
use crate::spool::inbox::tables::{IN_NAMES, InName, RENAMES, Renaming, Version};
use crate::spool::inbox::taken::Which;
use crate::spool::journal::Batch;
use crate::spool::ledger::inbound::InboundState;
use crate::spool::outbox::OutName;
use crate::spool::outbox::hashing::hash_file;
use crate::spool::outbox::seal::{is_executable, mtime_of};
use crate::spool::symlinks::set_link_mtime;
use crate::spool::{Event, InboxObserver, NewName, Spool, SpoolError};

/// A mode or time set so soon after the seal belongs to the file's making: `install` and others close first.
const DRESSED_SECS: u64 = 10;

/// Where a renamed file is here.
enum Here {
    /// Shown under this name; so many directories above it are gone at the origin.
    Shown(RelPath, Box<InName>, u16),
    /// The user consumed it.
    Consumed,
}

/// Whether what is shown under the name that a file gets by `of` is an older file that it replaces. One that the origin
/// moved on is not: it waits for the bundle that says where to. Nor is what waits there for this very bundle.
fn was_replaced(of: &Manifest, shown: &InName) -> bool {
    !shown.left && Some(shown.which.order()) > of.moved_on
}

/// The former names that the file has no more.
fn other_names(of: &Manifest) -> impl Iterator<Item = &Former> {
    let own = |former: &&Former| of.entries.iter().any(|entry| entry.path == former.path);
    of.renamed_from.iter().filter(move |former| !own(former))
}

/// What is announced of a file: the one entry of its manifest.
struct Announced<'a> {
    entry: &'a Entry,
    digest: Digest,
    size: u64,
    executable: bool,
}

impl<'a> Announced<'a> {
    fn of(manifest: &'a Manifest) -> Option<Self> {
        let [entry] = manifest.entries.as_slice() else {
            return None;
        };
        match &entry.kind {
            EntryKind::File {
                size,
                executable,
                digest,
                ..
            } => Some(Self {
                entry,
                digest: *digest,
                size: *size,
                executable: *executable,
            }),
            EntryKind::Link { target } => Some(Self {
                entry,
                digest: link::digest(target),
                size: target.len() as u64,
                executable: false,
            }),
            EntryKind::Directory => None,
        }
    }
}

/// The origin's half.
impl Spool {
    /// Whether the file at `path` is what `row` says was announced there, but for its mode or time, and these are to be
    /// announced: because that is what is `asked`, or because they were set so soon that a program was still at it when
    /// the daemon ended. Call with the decision lock held.
    pub(in crate::spool) fn dressed(
        &self,
        row: &OutName,
        path: &RelPath,
        meta: &Metadata,
        asked: bool,
    ) -> Result<bool, SpoolError> {
        if row.formerly.is_some() || row.stat.ino != meta.ino() {
            return Ok(false);
        }
        let Some(manifest) = self.ledger.shared_manifest(row.bundle)? else {
            return Ok(false);
        };
        let entries = &manifest.manifest().entries;
        let Some(entry) = entries.iter().find(|entry| entry.path == *path) else {
            return Ok(false);
        };
        let as_announced = entry.mtime == mtime_of(meta)
            && match &entry.kind {
                EntryKind::File { executable, .. } => *executable == is_executable(meta),
                EntryKind::Link { .. } => true,
                EntryKind::Directory => false,
            };
        if as_announced || asked {
            return Ok(!as_announced);
        }
        let sealed = self.ledger.sealed_at(row.bundle)?;
        Ok(sealed.is_some_and(|sealed_at| {
            let until = sealed_at.saturating_add(DRESSED_SECS);
            u64::try_from(meta.ctime()).is_ok_and(|changed| changed <= until)
        }))
    }

    /// The names under which what is now sealed was announced before; `row` is what is recorded under its present name.
    /// `dressed` is that name, if only mode or time are new. Call with the decision lock held.
    pub(in crate::spool) fn formers(
        &self,
        row: Option<&OutName>,
        digest: Digest,
        dressed: Option<&RelPath>,
    ) -> Result<Vec<Former>, SpoolError> {
        let Some(row) = row.filter(|row| row.digest == digest) else {
            return Ok(Vec::new());
        };
        let Some(manifest) = self.ledger.manifest(row.bundle)? else {
            return Ok(Vec::new());
        };
        let of = manifest.manifest();
        let mut formers = Vec::new();
        if let Some(path) = row.formerly.as_ref().or(dressed) {
            let at = of.entries.iter().position(|entry| entry.path == *path);
            formers.push(Former {
                path: path.clone(),
                epoch: of.epoch,
                incarnation: of.incarnation,
                seq: of.seq,
                entry: at
                    .filter(|_| of.entries.len() > 1)
                    .and_then(|at| u32::try_from(at).ok()),
                bundle: row.bundle,
                gone: self.gone_of(path),
            });
        }
        // Who missed that bundle still shows the name before it.
        let deliveries = self.ledger.deliveries_of(row.bundle)?;
        if deliveries
            .iter()
            .any(|(_, state)| *state != DeliveryState::Delivered)
        {
            formers.extend(of.renamed_from.iter().map(|former| Former {
                gone: self.gone_of(&former.path),
                ..former.clone()
            }));
        }
        self.thin_out(&mut formers)?;
        Ok(formers)
    }

    /// Drops former names beyond the limit: those first that nobody had, then those in the middle. The oldest is what who was
    /// away all the time shows, or consumed.
    fn thin_out(&self, formers: &mut Vec<Former>) -> Result<(), SpoolError> {
        let mut at = 1;
        while formers.len() > FORMERS_MAX && at + 1 < formers.len() {
            let deliveries = self.ledger.deliveries_of(formers[at].bundle)?;
            let had = |(_, state): &(PeerId, DeliveryState)| *state == DeliveryState::Delivered;
            // Of one that is forgotten it is not known.
            if deliveries.is_empty() || deliveries.iter().any(had) {
                at += 1;
            } else {
                formers.remove(at);
            }
        }
        while formers.len() > FORMERS_MAX {
            formers.remove(formers.len() / 2);
        }
        Ok(())
    }

    /// How many components of a path of the outbox, from its end, are gone: the name as that of a file, what is above it as
    /// directories.
    fn gone_of(&self, path: &RelPath) -> u16 {
        let mut gone = 0;
        let mut at = Some(path.clone());
        while let Some(path) = at.filter(|path| match self.outbox.root.metadata(path) {
            Ok(meta) => meta.is_dir() == (gone == 0),
            // Only what is surely gone: where that cannot be told the receiver keeps its directory.
            Err(error) => Errno::from_io_error(&error).is_some_and(is_nothing),
        }) {
            gone += 1;
            at = path.parent();
        }
        gone
    }
}

/// The receiver's half.
impl Spool {
    /// An offer that may only rename what is here: whether that settled it. Otherwise nothing was done. To be asked before
    /// anything is fetched; offers of one origin in their order, where that costs nothing.
    pub(crate) fn renamed_only(&self, manifest: &VerifiedManifest) -> Result<bool, SpoolError> {
        Ok(self.unfit(manifest).is_none() && self.follow_offer(manifest)?)
    }

    /// [`Self::follow_rename`] for an offer, before anything is fetched.
    pub(in crate::spool) fn follow_offer(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<bool, SpoolError> {
        if manifest.manifest().renamed_from.is_empty() {
            return Ok(false);
        }
        let bundle = manifest.id();
        let _decide = self.decide();
        if self.ledger.receipt_again(manifest)?.is_some()
            || self.ledger.arriving.lock().contains_key(&bundle)
            || self
                .ledger
                .ended(bundle, manifest.manifest().origin)
                .is_some()
        {
            return Ok(false);
        }
        if self.follow_rename(manifest)?.is_none() {
            return Ok(false);
        }
        // What an earlier attempt fetched of it.
        durable::remove(&self.staged_alone(bundle, 0))?;
        Ok(true)
    }

    /// Settles a bundle that only gives a new name to a file which is, or was, shown here. Gives the names it has now;
    /// `None`: it is to be published as any other. Call with the decision lock held.
    pub(in crate::spool) fn follow_rename(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<Option<Vec<RelPath>>, SpoolError> {
        let of = manifest.manifest();
        let Some(announced) = Announced::of(of).filter(|_| !of.renamed_from.is_empty()) else {
            return Ok(None);
        };
        let newest = self.version(of.origin, &announced.entry.path)?;
        if newest.is_some_and(|newest| newest.order >= of.order()) {
            // Its name has a newer file; but the next rename of this one names this bundle.
            if self.shown_former(of, &announced)?.is_none() && self.was_consumed(of)? {
                self.settle_consumed(manifest, &announced, true)?;
                return Ok(Some(Vec::new()));
            }
            return Ok(None);
        }
        let names = match self.where_here(of, &announced)? {
            None => return Ok(None),
            Some(Here::Consumed) => {
                self.settle_consumed(manifest, &announced, false)?;
                Vec::new()
            }
            Some(Here::Shown(from, row, emptied)) => {
                let to = self.rename_shown(manifest, &announced, from, &row, emptied)?;
                self.drop_outdated(of)?;
                vec![to]
            }
        };
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        Ok(Some(names))
    }

    /// The name in the inbox that shows what `origin` calls `path`, if one does.
    fn shown_as(
        &self,
        origin: PeerId,
        path: &RelPath,
    ) -> Result<Option<(RelPath, InName)>, SpoolError> {
        let Some(name) = self.chosen(origin, path)? else {
            return Ok(None);
        };
        self.record_pending(&name)?;
        let row: Option<InName> = self.journal.row(IN_NAMES, &name)?;
        Ok(row
            .filter(|row| row.origin == origin && row.path == *path)
            .map(|row| (name, row)))
    }

    /// The former name that shows the file.
    fn shown_former<'a>(
        &self,
        of: &'a Manifest,
        announced: &Announced<'_>,
    ) -> Result<Option<(&'a Former, RelPath, InName)>, SpoolError> {
        for former in &of.renamed_from {
            if let Some((name, row)) = self.shown_as(of.origin, &former.path)?
                && row.which == Which::former(former)
                && row.digest == announced.digest
                && row.size == announced.size
                && self.inbox().inode(&name)? == Some(row.ino)
            {
                return Ok(Some((former, name, row)));
            }
        }
        Ok(None)
    }

    fn where_here(
        &self,
        of: &Manifest,
        announced: &Announced<'_>,
    ) -> Result<Option<Here>, SpoolError> {
        let path = &announced.entry.path;
        if let Some((former, name, row)) = self.shown_former(of, announced)? {
            // A file cannot become a directory on the way to itself in one step.
            let nested = former.path != *path && path.starts_with(&former.path);
            return Ok(match former.gone {
                0 if former.path != *path && !self.has_newer(of, former)? => None,
                _ if nested => None,
                gone => Some(Here::Shown(name, Box::new(row), gone.saturating_sub(1))),
            });
        }
        let shown = self.shown_as(of.origin, path)?;
        let replaces = shown.is_some_and(|(_, row)| was_replaced(of, &row));
        Ok((!replaces && self.was_consumed(of)?).then_some(Here::Consumed))
    }

    /// Whether something newer than the former version was heard of under its name.
    fn has_newer(&self, of: &Manifest, former: &Former) -> Result<bool, SpoolError> {
        let newest = self.version(of.origin, &former.path)?;
        Ok(newest.is_some_and(|newest| newest.order > former.order()))
    }

    /// Whether the file was consumed under the newest of its former names that was heard of here.
    fn was_consumed(&self, of: &Manifest) -> Result<bool, SpoolError> {
        for former in &of.renamed_from {
            if self.was_taken(of.origin, Which::former(former))? {
                return Ok(true);
            }
            if self.ledger.was_former_settled(of.origin, former)? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    fn settle_consumed(
        &self,
        manifest: &VerifiedManifest,
        announced: &Announced<'_>,
        outdated: bool,
    ) -> Result<(), SpoolError> {
        let (of, bundle) = (manifest.manifest(), manifest.id());
        let shown = self.shown_as(of.origin, &announced.entry.path)?;
        if let Some((left, _)) = shown.filter(|(_, row)| row.left && !outdated) {
            self.remove_name(&left, Left::GaveWay)?;
            if let Some(observer) = self.observer.read().clone() {
                observer.removed(&left);
            }
        }
        let mut batch = Batch::default();
        self.settle(manifest, &[], &mut batch)?;
        // So that the next rename of it finds that it was consumed.
        self.note_taken(of.origin, [Which::of(of, 0)], &mut batch)?;
        if !outdated {
            let version = Version { order: of.order() };
            self.is_version(
                bundle,
                of.origin,
                &announced.entry.path,
                version,
                &mut batch,
            );
        }
        self.journal.submit(batch)?;
        let mut batch = Batch::default();
        self.ledger
            .show_as(bundle, InboundState::Consumed, &mut batch)?;
        self.journal.submit(batch)?;
        for former in &of.renamed_from {
            let chosen = self.chosen(of.origin, &former.path)?;
            let name = chosen.unwrap_or_else(|| former.path.clone());
            self.remove_emptied(&name, former.gone.saturating_sub(1))?;
        }
        tracing::info!(path = %announced.entry.path, bundle = %bundle.short(), "renamed by its origin after it was consumed here: not shown again");
        self.doorbell.ring(&Event::StatusChanged);
        Ok(())
    }

    fn rename_shown(
        &self,
        manifest: &VerifiedManifest,
        announced: &Announced<'_>,
        from: RelPath,
        row: &InName,
        emptied: u16,
    ) -> Result<RelPath, SpoolError> {
        let bundle = manifest.id();
        let mut choosing = Choosing::of(manifest);
        let to = self.choose_name(&announced.entry.path, &mut choosing)?;
        self.clear_the_way(&choosing)?;
        if announced.entry.target().is_some() {
            self.may_show(announced.entry, &to)?;
            let mut batch = Batch::default();
            self.claim_top(row.origin, &announced.entry.path, &to, &mut batch)?;
            self.journal.submit(batch)?;
        }
        let replaced: Option<InName> = self.journal.row(IN_NAMES, &to)?;
        let replaced = replaced.map(|row| row.ino).filter(|ino| *ino != row.ino);
        let renaming = Renaming {
            signed: manifest.signed(),
            from,
            to,
            ino: row.ino,
            emptied,
        };
        let mut intent = Batch::default();
        intent.insert(RENAMES, &bundle, &renaming);
        self.journal.submit(intent)?;
        let mut made = Vec::new();
        let observer = self.observer.read().clone();
        let dressed = self.dress_shown(&renaming, announced, observer.as_deref());
        let moved = dressed.and_then(|()| self.give_new_name(&renaming, &mut made));
        if let Err(error) = moved {
            let mut batch = Batch::default();
            batch.remove(RENAMES, &bundle);
            self.journal.submit(batch)?;
            return Err(error);
        }
        // If this fails, the row has the next start complete it.
        self.record_rename(manifest, &renaming)?;
        if let Some(ino) = replaced {
            self.content.last_name_gone(ino, Batch::default())?;
        }
        // Under the lock, so that whoever looks hears of two renames of one file in their order.
        if let Some(observer) = observer.as_ref().filter(|_| renaming.from != renaming.to) {
            observer.published(&made);
            observer.renamed(&renaming.from, &renaming.to, replaced);
        }
        self.remove_emptied(&renaming.from, renaming.emptied)?;
        tracing::info!(from = %renaming.from, to = %renaming.to, bundle = %bundle.short(), "renamed or changed in the inbox, as its origin did");
        Ok(renaming.to)
    }

    /// Where the name stays, nobody who looks through the mount sees another file in it.
    fn dress_shown(
        &self,
        renaming: &Renaming,
        announced: &Announced<'_>,
        observer: Option<&dyn InboxObserver>,
    ) -> Result<(), SpoolError> {
        let Some(observer) = observer.filter(|_| renaming.from == renaming.to) else {
            return self.follow_dress(&renaming.from, announced);
        };
        let mut dressed = Ok(());
        observer.switch(&mut || {
            dressed = self.follow_dress(&renaming.from, announced);
            observer.renamed(&renaming.from, &renaming.to, None);
        });
        dressed
    }

    /// The mode and time that the file has at its origin now.
    fn follow_dress(&self, name: &RelPath, announced: &Announced<'_>) -> Result<(), SpoolError> {
        let at = self.inbox().shown(name);
        if announced.entry.target().is_some() {
            let spot = self.inbox().at(name)?;
            return set_link_mtime(&spot, announced.entry.mtime).on("set the time of", &at);
        }
        let file = self.inbox().read(name).on("open", &at)?;
        let mode = self.dress.file_mode(announced.executable);
        self.dress.put_on(&file, mode).on("set the mode of", &at)?;
        set_mtime(&file, announced.entry.mtime).on("set the time of", &at)
    }

    /// The directories that had to be made on the way are added to `made`.
    fn give_new_name(
        &self,
        renaming: &Renaming,
        made: &mut Vec<NewName>,
    ) -> Result<(), SpoolError> {
        if renaming.from == renaming.to {
            return Ok(());
        }
        if let Some(parent) = renaming.to.parent() {
            self.make_directories(&parent, made)?;
        }
        let (from, to) = (&renaming.from, &renaming.to);
        Ok(durable::rename(
            &self.inbox().at(from)?,
            &self.inbox().at(to)?,
        )?)
    }

    /// The journal's side of a rename that the disk shows.
    fn record_rename(
        &self,
        manifest: &VerifiedManifest,
        renaming: &Renaming,
    ) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        batch.remove(RENAMES, &manifest.id());
        let mut left: Option<InName> = None;
        if renaming.from != renaming.to {
            left = self.journal.row(IN_NAMES, &renaming.from)?;
            if let Some(before) = &left {
                self.custodian.shown_no_more(
                    before.origin,
                    before.bundle,
                    before.size,
                    &mut batch,
                )?;
            }
            batch.remove(IN_NAMES, &renaming.from);
        }
        let names = [(0, renaming.to.clone(), renaming.ino)];
        self.settle(manifest, &names, &mut batch)?;
        if let Some(row) = left {
            let formers = &manifest.manifest().renamed_from;
            let version = formers.iter().find(|former| former.path == row.path);
            let newest = self.version(row.origin, &row.path)?;
            let orders = newest.map(|newest| newest.order).into_iter();
            let order = orders.chain(version.map(Former::order)).max();
            let version = order.map(|order| Version { order });
            self.name_consumed(row.origin, &row.path, &renaming.from, version, &mut batch)?;
        }
        // Its mode and time are to be as durable as the receipt.
        if manifest.manifest().entries[0].target().is_none() {
            let file = self.inbox().read(&renaming.to);
            let file = file.on("open", &self.inbox().shown(&renaming.to))?;
            batch.sync(Sync::File(Arc::new(file)));
        }
        for name in [&renaming.from, &renaming.to] {
            batch.sync(self.inbox().sync_above(name));
        }
        Ok(self.journal.submit(batch)?)
    }

    /// Removes the directories above an old name that are gone at the origin too, as far as there are no files in them. What
    /// waited for their names gets them.
    fn remove_emptied(&self, from: &RelPath, emptied: u16) -> Result<(), SpoolError> {
        let above = std::iter::successors(from.parent(), RelPath::parent);
        let above: Vec<RelPath> = above.take(emptied.into()).collect();
        for directory in &above {
            if !self.clear(directory)? {
                break;
            }
        }
        above
            .iter()
            .try_for_each(|directory| self.go_home(directory).map(drop))
    }

    /// What a bundle that is published, or only settled, does to the names its file had before. To be put before the
    /// bundle's own versions.
    pub(in crate::spool) fn former_rows(
        &self,
        bundle: BundleId,
        of: &Manifest,
        published: bool,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.outdate_formers(bundle, of, batch)?;
        self.leave_formers(of, published, batch)
    }

    /// Former names that still show this file wait for the other one that the origin has there by now; those that show an
    /// older version of it, which was never replaced here, for whatever comes there. So does a name that shows the file when
    /// it is not `published` under its new one, since something newer has that.
    fn leave_formers(
        &self,
        of: &Manifest,
        published: bool,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for former in other_names(of) {
            let Some((name, row)) = self.shown_as(of.origin, &former.path)? else {
                continue;
            };
            let waits = match row.which == Which::former(former) {
                true => former.gone == 0 || !published,
                false => published && row.which.order() < former.order(),
            };
            // Not the name that it had until now.
            if waits && self.inbox().inode(&name)? == Some(row.ino) {
                batch.insert(IN_NAMES, &name, &InName { left: true, ..row });
            }
        }
        Ok(())
    }

    /// A former name that shows an older version of the file goes if what the origin has there by now was heard of before,
    /// and is not shown. Call with the decision lock held, when the file has its new name.
    pub(in crate::spool) fn drop_outdated(&self, of: &Manifest) -> Result<(), SpoolError> {
        for former in other_names(of) {
            if let Some((name, row)) = self.shown_as(of.origin, &former.path)?
                && row.which.order() < former.order()
                && self.has_newer(of, former)?
            {
                self.remove_name(&name, Left::GaveWay)?;
                if let Some(observer) = self.observer.read().clone() {
                    observer.removed(&name);
                }
            }
        }
        Ok(())
    }

    /// The versions that `manifest` carries on under another name are past: one that comes late is not shown.
    fn outdate_formers(
        &self,
        bundle: BundleId,
        of: &Manifest,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for former in &of.renamed_from {
            let version = self.version(of.origin, &former.path)?;
            if version.is_none_or(|version| version.order <= former.order()) {
                let order = former.order();
                self.is_version(bundle, of.origin, &former.path, Version { order }, batch);
            }
        }
        Ok(())
    }
}

/// Recovery.
impl Spool {
    /// Completes renames that had begun when the daemon was killed.
    pub(in crate::spool) fn recover_renames(&self, same_boot: bool) -> Result<(), SpoolError> {
        for (bundle, renaming) in self.journal.rows(RENAMES.all(), usize::MAX)? {
            if same_boot && let Err(error) = self.complete_rename(&renaming) {
                tracing::warn!(from = %renaming.from, to = %renaming.to, %error, "a rename that had begun is given up");
            }
            let mut batch = Batch::default();
            batch.remove(RENAMES, &bundle);
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    fn complete_rename(&self, renaming: &Renaming) -> Result<(), SpoolError> {
        let manifest = renaming
            .signed
            .clone()
            .verify_own()
            .map_err(|e| SpoolError::Corrupted(e.to_string()))?;
        let of = manifest.manifest();
        let newest = self.version(of.origin, &of.entries[0].path)?;
        if newest.is_some_and(|newest| newest.order >= of.order()) {
            return Ok(());
        }
        let inode = |name: &RelPath| self.inbox().inode(name);
        if inode(&renaming.from)? == Some(renaming.ino) {
            self.give_new_name(renaming, &mut Vec::new())?;
        }
        if inode(&renaming.to)? == Some(renaming.ino) {
            if let Some(announced) = Announced::of(of) {
                self.follow_dress(&renaming.to, &announced)?;
            }
            self.record_rename(&manifest, renaming)?;
            self.remove_emptied(&renaming.from, renaming.emptied)?;
            self.drop_outdated(of)?;
        }
        Ok(())
    }

    /// Recorded names of the inbox that do not show their inode, by that.
    pub(in crate::spool) fn names_gone(
        &self,
    ) -> Result<HashMap<u64, (RelPath, InName)>, SpoolError> {
        let mut gone = HashMap::new();
        self.each_row(IN_NAMES, |spool, name, row| {
            if spool.inbox().inode(name)? != Some(row.ino) {
                gone.insert(row.ino, (name.clone(), row.clone()));
            }
            Ok(())
        })?;
        Ok(gone)
    }

    /// The file at `found`, which has no record, has the inode of a recorded name that shows nothing: it gets that name
    /// back, if it has the bytes. `false`: it is another file.
    pub(in crate::spool) fn take_back(
        &self,
        found: &RelPath,
        name: &RelPath,
        row: &InName,
    ) -> Result<bool, SpoolError> {
        let at = &self.inbox().shown(found);
        let meta = self.inbox().metadata(found).on("stat", at)?;
        if self.inbox().inode(name)?.is_some() || meta.len() != row.size {
            return Ok(false);
        }
        let digest = if meta.is_symlink() {
            link::digest(&self.inbox().read_link(found).on("read", at)?)
        } else {
            let file = self.inbox().read(found).on("open", at)?;
            hash_file(&file).on("read", at)?.digest
        };
        if digest != row.digest {
            return Ok(false);
        }
        if let Some(parent) = name.parent() {
            self.make_inbox_directories(&parent)?;
        }
        durable::rename(&self.inbox().at(found)?, &self.inbox().at(name)?)?;
        let syncs = [found, name].map(|name| self.inbox().sync_above(name));
        durable::sync_all(self.layout.state(), &syncs)?;
        tracing::warn!(path = %name, "a rename cut off by a power loss was undone");
        Ok(true)
    }
}
