//! The inbox: names are given here (those of a bundle of many in `publish.rs`), once everything behind them is verified, and taken away when the user consumes.
//!
//! # Invariants
//! 1. A name appears by rename of a whole, verified file; [`Verified::publish`] is the only way.
//! 2. The name of (origin, path) is chosen once and kept for all its versions; no other origin's file ever gets it.
//! 3. A receipt is handed out only when bytes, names and journal are durable.
//!
//! # Crash behaviour
//! The intent (bundle, names, inodes) is in the journal's log before the first rename. After a crash of the daemon a
//! staged file that is gone was published, and a published name that is gone was consumed. A single file whose name is free
//! has no intent but its proof ([`proofs`]), written before the rename: from then on the name shows the file, and
//! the next start completes the publish; before, nothing was shown, and the bundle is offered again. After a power loss a name
//! without a durable row, and without a proof that its bytes agree with, goes to quarantine before anything is mounted, and the
//! bundle is fetched again.

pub(in crate::spool) mod allowance;
pub(in crate::spool) mod arrived;
pub(in crate::spool) mod consumed;
pub(in crate::spool) mod delta;
pub(in crate::spool) mod doubt;
pub(in crate::spool) mod forward;
pub(in crate::spool) mod home;
pub(in crate::spool) mod intake;
pub(in crate::spool) mod naming;
pub(in crate::spool) mod part;
#[cfg(test)]
pub(in crate::spool) mod probe;
pub(in crate::spool) mod proofs;
pub(in crate::spool) mod publish;
mod recover;
pub(in crate::spool) mod renamed;
mod tables;
pub(in crate::spool) mod taken;
mod tops;
pub(in crate::spool) mod under_way;
pub(in crate::spool) mod withdrawn;

pub(in crate::spool) use self::tables::InName;
use crate::journal::Journal;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::tables::{CHOSEN, IN_NAMES, INTENTS, LEAVING, Version};
use self::under_way::Note;
use super::decision::handles_name;
use super::durable::{self, OnPath, Sync};
use super::journal::Batch;
use super::{Event, FileStage, FileState, NewName, Published, Spool, SpoolError};
use crate::bundle::{InboxStage, Receipt, RelPath, VerifiedManifest};
use crate::spool::inbox::intake::{Verified, shown};
use crate::spool::inbox::naming::{Choosing, Naming};
use crate::spool::inbox::taken::Which;
use crate::spool::ledger::inbound::InboundState;

/// Why a file leaves the inbox.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// The user took it.
    Consumed,
    /// A newer bundle of its origin has something else there: nobody consumed it.
    GaveWay,
}

impl Verified {
    /// Gives every entry its name in the inbox. The receipt follows as [`Event::ReceiptReady`] once all is durable.
    pub(crate) fn publish(self) -> Result<Published, SpoolError> {
        let spool = Arc::clone(&self.arrival.spool);
        spool.publish(&self)
    }
}

/// What the inbox shows, of whom, and what its user took away.
pub(in crate::spool) struct Inbox {
    journal: Arc<Journal>,
    pub(in crate::spool) publishing: under_way::Publishing,
}

impl Inbox {
    pub(in crate::spool) fn new(journal: &Arc<Journal>) -> Self {
        Self {
            journal: Arc::clone(journal),
            publishing: under_way::Publishing::default(),
        }
    }

    /// What `name` shows, as far as rows say.
    pub(in crate::spool) fn row_of(&self, name: &RelPath) -> Result<Option<InName>, SpoolError> {
        Ok(self.journal.row(IN_NAMES, name)?)
    }

    /// Whether a name still shows something of the bundle.
    pub(in crate::spool) fn still_shows(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<bool, SpoolError> {
        let of = manifest.manifest();
        for entry in &of.entries {
            let key = (of.origin, &entry.path);
            let chosen = self.journal.row(CHOSEN, &key)?;
            let row = self.row_of(chosen.as_ref().unwrap_or(&entry.path))?;
            if row.is_some_and(|row| row.bundle == manifest.id()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Spool {
    fn publish(&self, verified: &Verified) -> Result<Published, SpoolError> {
        let manifest = &verified.manifest;
        if manifest.manifest().entries.len() > 1 {
            return self.publish_many(verified);
        }
        let bundle = manifest.id();
        let decide = self.decide();
        if let Some(reason) = self.ledger.ended(bundle, manifest.manifest().origin) {
            return Err(SpoolError::Ended(reason));
        }
        if let Some(names) = self.follow_rename(manifest)? {
            for staged in verified.files.iter().flatten() {
                durable::remove(&staged.at)?;
            }
            return Ok(Published { bundle, names });
        }
        let mut choosing = Choosing::of(manifest);
        let mut intent = Batch::default();
        let namings = self.choose_names(manifest, &mut choosing, &mut intent)?;

        let names = namings
            .iter()
            .map(|naming| publish::given(verified, naming));
        let names: Vec<_> = names.collect();
        // Of a free name the proof says to the next start all that an intent would.
        let proved = choosing.cleared.is_empty()
            && self.is_free(manifest, &names)?
            && self.keep_proof(manifest, &names);
        if !proved {
            Self::intend(manifest, names.clone(), 0, &mut intent);
        }
        self.journal.submit(intent)?;

        let mut given = Vec::new();
        let settled = self
            .clear_the_way(&choosing)
            .and_then(|()| self.give(verified, &namings, (&names, proved), &mut given))
            .and_then(|batch| Ok(self.journal.submit(batch)?));
        let failed = settled.err();
        if failed.is_some() {
            self.unpublish(verified, &namings, &mut given);
        } else {
            for ino in given.iter().filter_map(|name| name.replaced) {
                self.content.last_name_gone(ino, Batch::default())?;
            }
            self.drop_outdated(manifest.manifest())?;
        }
        drop(decide);

        if let Some(observer) = self.observer.read().clone() {
            observer.published(&given);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        Ok(Published {
            bundle,
            names: namings.into_iter().map(|naming| naming.name).collect(),
        })
    }

    /// Whether the bundle is one file, and its name shows nothing yet.
    fn is_free(
        &self,
        manifest: &VerifiedManifest,
        names: &[publish::Given],
    ) -> Result<bool, SpoolError> {
        let [(index, name, _)] = names else {
            return Ok(false);
        };
        let entry = manifest.manifest().entries.get(*index as usize);
        let is_file = entry.is_some_and(|entry| entry.digest().is_some());
        Ok(is_file && self.inbox.row_of(name)?.is_none())
    }

    /// Gives the name of a bundle of one; returns the rows that settle it. What may find no room on the disk comes before
    /// the rename. `names` come with whether there is a proof of them already.
    fn give(
        &self,
        verified: &Verified,
        namings: &[Naming],
        (names, proved): (&[publish::Given], bool),
        given: &mut Vec<NewName>,
    ) -> Result<Batch, SpoolError> {
        let manifest = &verified.manifest;
        let mut batch = Batch::default();
        for (index, file) in verified.files.iter().enumerate() {
            // A newer version was published meanwhile: these bytes are not shown.
            if let Some(staged) = file
                && !namings.iter().any(|naming| naming.entry == index)
            {
                durable::remove(&staged.at)?;
            }
        }
        for naming in namings {
            match &verified.files[naming.entry] {
                None => self.make_directories(&naming.name, given)?,
                Some(staged) => {
                    if let Some(directory) = naming.name.parent() {
                        self.make_directories(&directory, given)?;
                    }
                    if let Some(file) = &staged.kept {
                        if let Some(digest) = manifest.manifest().entries[naming.entry].digest() {
                            self.content.hold(file, digest, &mut batch)?;
                        }
                        batch.sync(Sync::File(Arc::clone(file)));
                    }
                    let replaced = self.journal.row(IN_NAMES, &naming.name)?.map(|row| row.ino);
                    durable::rename(&staged.at, &self.inbox().at(&naming.name)?)?;
                    given.push(NewName {
                        path: naming.name.clone(),
                        directory: false,
                        replaced,
                    });
                }
            }
            batch.sync(self.inbox().sync_above(&naming.name));
        }
        let given = namings.iter().map(|naming| (naming.entry, &naming.name));
        self.set_inbox_times(manifest, given, &mut batch);
        if !proved {
            self.keep_proof(manifest, names);
        }
        self.settle_proved(manifest, names, &mut batch)?;
        Ok(batch)
    }

    /// After an error: a new name goes back to where the next attempt looks for the bytes. It has no row, so the next
    /// attempt would not know it for its own, and show the file a second time. What replaced an older version has that
    /// one's row, and stays, with the intent by which the next start completes it. `given` keeps what is visible.
    fn unpublish(&self, verified: &Verified, namings: &[Naming], given: &mut Vec<NewName>) {
        let bundle = verified.manifest.id();
        self.ledger.volatile.lock().remove(&bundle);
        for naming in namings {
            let Some(staged) = &verified.files[naming.entry] else {
                continue;
            };
            let shown = |new: &NewName| !new.directory && new.path == naming.name;
            let Some(at) = given.iter().position(shown) else {
                continue;
            };
            if given[at].replaced.is_some() {
                return;
            }
            let from = self.inbox().at(&naming.name);
            let back = from.and_then(|from| durable::rename_no_replace(&from, &staged.at));
            if let Err(error) = back {
                tracing::error!(%error, "a name whose publish failed stays until the next start");
                return;
            }
            given.remove(at);
        }
        let mut batch = Batch::default();
        batch.remove(INTENTS, &bundle);
        if let Err(error) = self.journal.submit(batch) {
            tracing::warn!(%error, "the next start gives a name whose publish failed");
        }
    }

    /// The rows that make a published bundle settled; its receipt is announced when they are durable.
    pub(super) fn settle(
        &self,
        manifest: &VerifiedManifest,
        names: &[(u32, RelPath, u64)],
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.keep_proof(manifest, names);
        self.settle_proved(manifest, names, batch)
    }

    /// [`Self::settle`] of a bundle whose proof is kept.
    fn settle_proved(
        &self,
        manifest: &VerifiedManifest,
        names: &[(u32, RelPath, u64)],
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.former_rows(manifest.id(), manifest.manifest(), !names.is_empty(), batch)?;
        self.name_rows(manifest, names, batch)?;
        for (_, name, _) in names {
            let publishing = &self.inbox.publishing;
            publishing.note(|| Note::Given(name.clone()));
        }
        self.settle_rows(manifest, names, batch)
    }

    /// [`Self::settle`] of a bundle whose names have their rows.
    pub(super) fn settle_rows(
        &self,
        manifest: &VerifiedManifest,
        names: &[(u32, RelPath, u64)],
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let bundle = manifest.id();
        let of = manifest.manifest();
        let receipt = Receipt::sign(&self.identity, bundle, of.origin);
        if self.journal.row(INTENTS, &bundle)?.is_some() {
            batch.remove(INTENTS, &bundle);
        }
        let mut row = shown(manifest);
        row.state = InboundState::Received;
        if let [(_, name, _)] = names
            && of.entries.len() == 1
        {
            row.path = name.clone();
        } else if let Some(root) = self.shown_root(manifest, names) {
            row.path = root;
        }
        let order = self.ledger.settle(manifest, &receipt, &row, batch)?;
        // A name that was shown before its rows may have been consumed since, and its origin may have ended the bundle.
        if names.len() == of.entries.len()
            && self.content.has_all(of)
            && self.ledger.ended(bundle, of.origin).is_none()
        {
            self.custodian.keep_for_others(manifest, order, batch)?;
        }
        self.ledger.volatile.lock().insert(bundle);
        let me = self.me.clone();
        batch.on_durable(move || {
            if let Some(spool) = me.upgrade() {
                spool.ledger.volatile.lock().remove(&bundle);
                spool.ledger.history.ended();
                spool.doorbell.ring(&Event::ReceiptReady(receipt));
            }
        });
        Ok(())
    }

    /// The rows of names that were given, and the records of their files: nothing is done to these any more.
    pub(super) fn name_rows(
        &self,
        manifest: &VerifiedManifest,
        names: &[(u32, RelPath, u64)],
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let bundle = manifest.id();
        let of = manifest.manifest();
        for (index, name, ino) in names {
            handles_name();
            let Some(entry) = of.entries.get(*index as usize) else {
                continue;
            };
            let Some(digest) = entry.mark() else {
                continue;
            };
            let row = InName {
                origin: of.origin,
                path: entry.path.clone(),
                bundle,
                which: Which::of(of, *index),
                digest,
                size: entry.size(),
                ino: *ino,
                left: false,
            };
            let before: Option<InName> = self.journal.row(IN_NAMES, name)?;
            if before.as_ref().is_none_or(|row| row.bundle != bundle) {
                self.content.room.allowance().more(of.origin, entry.size());
            }
            if let Some(before) = before.filter(|before| before.bundle != bundle) {
                self.custodian
                    .shown_no_more(before.origin, before.bundle, before.size, batch)?;
            }
            batch.insert(IN_NAMES, name, &row);
            self.record_shown(name, of.origin, digest, *ino, batch)?;
            let version = Version { order: of.order() };
            self.shows_version(&row, name, version, batch);
        }
        Ok(())
    }

    /// Takes a file's name out of the inbox. Call with the decision lock held.
    pub(super) fn remove_name(&self, path: &RelPath, left: Left) -> Result<(), SpoolError> {
        self.record_pending(path)?;
        if !durable::remove(&self.inbox().at(path)?)? {
            let gone = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(gone).on("remove", &self.inbox().shown(path));
        }
        self.drop_name(path, left, |_| {})
    }

    /// The journal's side of a file that left the inbox, with what belongs to it.
    fn drop_name(
        &self,
        path: &RelPath,
        left: Left,
        with: impl FnOnce(&mut Batch),
    ) -> Result<(), SpoolError> {
        let row: Option<InName> = self.journal.row(IN_NAMES, path)?;
        let mut batch = Batch::default();
        with(&mut batch);
        batch.remove(IN_NAMES, path);
        batch.sync(self.inbox().sync_above(path));
        if let Some(row) = &row {
            match left {
                Left::Consumed => self.row_consumed(row, path, &mut batch)?,
                Left::GaveWay => {
                    self.name_consumed(row.origin, &row.path, path, None, &mut batch)?;
                    self.custodian
                        .shown_no_more(row.origin, row.bundle, row.size, &mut batch)?;
                }
            }
        }
        match row {
            Some(row) => self.content.last_name_gone(row.ino, batch),
            None => Ok(self.journal.submit(batch)?),
        }
    }

    /// Removes a file from the inbox: consumed, never shown again. In the journal before it is gone, so that an error
    /// means that it is still there.
    pub(crate) fn inbox_unlink(&self, path: &RelPath) -> Result<(), SpoolError> {
        let _decide = self.decide();
        self.record_pending(path)?;
        let row: Option<InName> = self.journal.row(IN_NAMES, path)?;
        let forget = |batch: &mut Batch| batch.remove(LEAVING, path);
        if let Some(row) = &row {
            let mut batch = Batch::default();
            batch.insert(LEAVING, path, &row.ino);
            self.journal.submit(batch)?;
        }
        let removed = durable::remove(&self.inbox().at(path)?);
        if row.is_some() && !matches!(removed, Ok(true)) {
            let mut batch = Batch::default();
            forget(&mut batch);
            self.journal.submit(batch)?;
        }
        if !removed? {
            let gone = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(gone).on("remove", &self.inbox().shown(path));
        }
        let dropped = self.drop_name(path, Left::Consumed, forget);
        if let Err(error) = dropped {
            // It is gone, and what it says of itself was written before. The next start does the rest.
            tracing::error!(%path, %error, "removed from the inbox, but not from the journal");
        }
        self.doorbell.ring(&Event::StatusChanged);
        Ok(())
    }

    /// Removals that a crash cut short come to their end: nobody was told that they failed.
    pub(super) fn recover_leaving(&self) -> Result<(), SpoolError> {
        let mut leaving = Vec::new();
        self.each_row(LEAVING, |_, path, ino| {
            leaving.push((path.clone(), *ino));
            Ok(())
        })?;
        for (path, ino) in leaving {
            if self.inbox().inode(&path)? == Some(ino) {
                durable::remove(&self.inbox().at(&path)?)?;
            }
            let mut batch = Batch::default();
            batch.remove(LEAVING, &path);
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    /// Removes an empty directory from the inbox.
    pub(crate) fn inbox_rmdir(&self, path: &RelPath) -> Result<(), SpoolError> {
        let _decide = self.decide();
        self.remove_inbox_directory(path)?;
        if let Err(error) = self.go_home(path) {
            tracing::warn!(%error, %path, "what waits for this name has it at the next start");
        }
        Ok(())
    }

    /// Moves a file from the inbox to the outbox: consumed there, a new file here. The caller then tells `ready`.
    /// `no_replace` fails with EEXIST when `to` exists.
    pub(crate) fn inbox_to_outbox(
        &self,
        from: &RelPath,
        to: &RelPath,
        no_replace: bool,
    ) -> Result<(), SpoolError> {
        let _decide = self.decide();
        self.record_pending(from)?;
        let (old, new) = (self.inbox().at(from)?, self.outbox.root.at(to)?);
        let row: Option<InName> = self.journal.row(IN_NAMES, from)?;
        if let Some(row) = &row {
            self.outbox.expect(row.ino, to)?;
        }
        let renamed = if no_replace {
            durable::rename_no_replace(&old, &new)
        } else {
            durable::rename(&old, &new)
        };
        if let Err(error) = renamed {
            if let Some(row) = &row {
                self.outbox.expect_no_more(row.ino)?;
            }
            return Err(error.into());
        }
        let mut batch = Batch::default();
        batch.remove(IN_NAMES, from);
        batch.sync(self.inbox().sync_above(from));
        batch.sync(self.outbox.root.sync_above(to));
        if let Some(row) = row {
            self.row_consumed(&row, from, &mut batch)?;
        }
        if let Err(error) = self.journal.submit(batch) {
            // It is moved, and its mark was written before. The next start does the rest.
            tracing::error!(path = %from, %error, "moved out of the inbox, but not in the journal");
        }
        self.doorbell.ring(&Event::StatusChanged);
        Ok(())
    }

    /// What is known of the file with the inode `ino` shown at `path` in the inbox.
    pub(crate) fn inbox_state(&self, path: &RelPath, ino: u64) -> FileState {
        let row = self.journal.row(IN_NAMES, path);
        let Some(row) = row.ok().flatten().filter(|row| row.ino == ino) else {
            // Visible a moment before it is recorded: what is recorded may be said of the version before it.
            return FileState {
                state: Some(FileStage::Inbox(InboxStage::Published)),
                ..FileState::default()
            };
        };
        let stage = match self.ledger.volatile.lock().contains(&row.bundle) {
            true => InboxStage::Published,
            false => InboxStage::Received,
        };
        FileState {
            state: Some(FileStage::Inbox(stage)),
            sha256: Some(row.digest),
            bundle: Some(row.bundle),
            from: Some(self.group.name_of(row.origin)),
            error: None,
            progress: Some((row.size, row.size)),
        }
    }
}
