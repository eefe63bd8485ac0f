//! Rolling forward: publishes that had begun when the daemon ended.
//!
//! | the last run ended by | then |
//! |---|---|
//! | a kill | every intent is in the journal: what has no name yet gets it; a name that is gone was consumed |
//! | a kill, and a single file had a free name | there is no intent: its proof says that the name shows it ([`crate::spool::inbox::proofs`]); without the name nothing was shown |
//! | a power loss | intents that reached the disk count, also those of the log that is dropped: their manifest is signed, so bytes that hash to what it says need no other proof. A bundle that is whole, and all of whose names reached the disk, is published; what is there of another goes back to `partial/`, where the next attempt looks for it |
//! | a failed sync | no intent counts: what can be read may be in memory only |
//!
//! A number of an inode is believed on the same boot only; in a state that was copied every file has another, and is found
//! by its bytes.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bundle::{
    BundleId, Entry, EntryKind, Manifest, RelPath, SignedManifest, VerifiedManifest, link,
};
use crate::digest::Digest;
use crate::spool::durable::{self, OnPath, Sync};
use crate::spool::inbox::publish::{Given, INTENT_NAMES};
use crate::spool::inbox::tables::{INTENTS, InName, Intent, Version};
use crate::spool::inbox::taken::Which;
use crate::spool::journal::Batch;
use crate::spool::outbox::hashing::hash_file;
use crate::spool::start::LastRun;
use crate::spool::{Spool, SpoolError};

/// A file of an intent, found.
struct Member {
    index: u32,
    name: RelPath,
    /// Its inode; 0 for a directory, `None` for a file that is nowhere.
    ino: Option<u64>,
    at: Where,
}

/// Where a file of an intent may be.
#[derive(Clone, PartialEq, Eq)]
enum Where {
    /// In `partial/`, alone or in a tree.
    Aside(PathBuf),
    /// Under its name in the inbox.
    Shown,
    /// It had its name, and has its rows.
    Recorded,
    /// A directory that was there, or was moved with the one above it; the user may have removed it since.
    Given,
}

impl Spool {
    pub(in crate::spool) fn recover_intents(&self, last: LastRun) -> Result<(), SpoolError> {
        let mut intents = self.journal.rows(INTENTS.all(), usize::MAX)?;
        let mut slices: BTreeMap<(BundleId, u64), Vec<Given>> = BTreeMap::new();
        if last == LastRun::PowerLost {
            slices.extend(self.journal.dropped(INTENT_NAMES));
        }
        slices.extend(self.journal.rows(INTENT_NAMES.all(), usize::MAX)?);
        if last == LastRun::PowerLost {
            let known: HashSet<BundleId> = intents.iter().map(|(bundle, _)| *bundle).collect();
            let dropped = self.journal.dropped(INTENTS);
            intents.extend(
                dropped
                    .into_iter()
                    .filter(|(bundle, _)| !known.contains(bundle)),
            );
        }
        for (bundle, mut intent) in intents {
            let of_bundle = slices.extract_if((bundle, 0)..=(bundle, u64::MAX), |_, _| true);
            // Of an attempt before it there may be more.
            let of_intent = of_bundle.filter(|((_, number), _)| *number < intent.slices);
            let of_intent: Vec<_> = of_intent.map(|(_, names)| names).collect();
            let all = of_intent.len() as u64 == intent.slices;
            intent.names.extend(of_intent.into_iter().flatten());
            let mut batch = Batch::default();
            batch.remove(INTENTS, &bundle);
            match intent.signed.clone().verify_own() {
                Ok(manifest) if last != LastRun::SyncFailed => {
                    match self.forward(&manifest, &intent, all, last) {
                        Ok(Some(rows)) => batch = rows,
                        Ok(None) => {}
                        // Something else took the place meanwhile: the bundle is not settled, and will be offered again.
                        Err(SpoolError::Io {
                            source,
                            path,
                            action,
                        }) if is_in_the_way(&source) => {
                            tracing::warn!(path = %path.display(), %source, "cannot {action}: a publish that had begun is given up");
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "a publish that had begun cannot be read");
                }
            }
            self.journal.submit(batch)?;
            self.forget_intent(bundle)?;
        }
        for ((bundle, _), names) in slices {
            self.take_apart_again(bundle, names)?;
        }
        Ok(())
    }

    /// A tree that was being built goes back to where the next attempt looks for it.
    fn take_apart_again(&self, bundle: BundleId, names: Vec<Given>) -> Result<(), SpoolError> {
        for (index, name, _) in names {
            let at = self.staging_tree(bundle).join(name.as_path());
            let is_there = fs::symlink_metadata(&at).is_ok_and(|meta| !meta.is_dir());
            if is_there {
                durable::rename(&at, &self.staged_alone(bundle, index))?;
            }
        }
        self.forget_intent(bundle)
    }

    /// The rows of the publish, if it is to be completed. `all`: the intent has all its names.
    fn forward(
        &self,
        manifest: &VerifiedManifest,
        intent: &Intent,
        all: bool,
        last: LastRun,
    ) -> Result<Option<Batch>, SpoolError> {
        let origin = manifest.manifest().origin;
        let lost = !all || last != LastRun::Whole;
        if lost
            && (self.ledger.receipt_again(manifest)?.is_some()
                || self.ledger.ended(manifest.id(), origin).is_some())
        {
            return Ok(None);
        }
        let members = self.members_of(manifest, intent, last)?;
        if !all || lost && members.iter().any(|member| member.ino.is_none()) {
            self.give_back(manifest.id(), &members)?;
            return Ok(None);
        }
        self.complete_publish(manifest, &members).map(Some)
    }

    /// Completes the publish of a single file that has no intent but a proof: its name shows it, and has no row. `false`:
    /// what the name shows is something else.
    pub(super) fn forward_proved(
        &self,
        signed: SignedManifest,
        names: Vec<Given>,
        last: LastRun,
    ) -> Result<bool, SpoolError> {
        let (Ok(manifest), [(_, name, _)]) = (signed.verify(), &names[..]) else {
            return Ok(false);
        };
        let of = manifest.manifest();
        let [entry] = &of.entries[..] else {
            return Ok(false);
        };
        let newest = self.version(of.origin, &entry.path)?;
        let owner = self.owner(name)?;
        if entry.digest().is_none()
            || !of.is_for(self.identity.id())
            || newest.is_some_and(|newest| newest.order >= of.order())
            || owner.is_some_and(|owner| !owner.is(of.origin, &entry.path, name))
            || self.ledger.receipt_again(&manifest)?.is_some()
            || self.ledger.ended(manifest.id(), of.origin).is_some()
        {
            return Ok(false);
        }
        let intent = Intent {
            signed: manifest.signed(),
            names,
            slices: 0,
        };
        let members = self.members_of(&manifest, &intent, last)?;
        let is_shown = |member: &Member| member.at == Where::Shown && member.ino.is_some();
        if members.is_empty() || !members.iter().all(is_shown) {
            return Ok(false);
        }
        let batch = self.complete_publish(&manifest, &members)?;
        self.journal.submit(batch)?;
        Ok(true)
    }

    fn members_of(
        &self,
        manifest: &VerifiedManifest,
        intent: &Intent,
        last: LastRun,
    ) -> Result<Vec<Member>, SpoolError> {
        let of = manifest.manifest();
        let mut members = Vec::with_capacity(intent.names.len());
        for (index, name, ino) in &intent.names {
            let Some(entry) = of.entries.get(*index as usize) else {
                continue;
            };
            if let Some(newest) = self.version(of.origin, &entry.path)?
                && newest.order >= of.order()
            {
                if newest.order == of.order() {
                    members.push(Member {
                        index: *index,
                        name: name.clone(),
                        ino: Some(*ino),
                        at: Where::Recorded,
                    });
                }
                continue;
            }
            let in_tree = self.staging_tree(manifest.id()).join(name.as_path());
            let Some(digest) = entry.mark() else {
                let is_new = last != LastRun::Whole || intent.slices == 0 || in_tree.is_dir();
                members.push(Member {
                    index: *index,
                    name: name.clone(),
                    ino: Some(0),
                    at: if is_new { Where::Shown } else { Where::Given },
                });
                continue;
            };
            let alone = self.staged_alone(manifest.id(), *index);
            let places = [Where::Aside(alone), Where::Aside(in_tree), Where::Shown];
            let mut found = None;
            for at in places.iter().filter(|_| last == LastRun::Whole) {
                if self
                    .look_at(at, name)?
                    .is_some_and(|meta| meta.ino() == *ino)
                {
                    found = Some(at.clone());
                    break;
                }
            }
            if found.is_none() {
                for at in &places {
                    if self.hashes_to(at, name, entry.size(), digest)? {
                        found = Some(at.clone());
                        break;
                    }
                }
            }
            let there = match &found {
                Some(at) => self.look_at(at, name)?,
                None => None,
            };
            members.push(Member {
                index: *index,
                name: name.clone(),
                ino: there.map(|meta| meta.ino()),
                at: found.unwrap_or(Where::Shown),
            });
        }
        Ok(members)
    }

    fn look_at(&self, at: &Where, name: &RelPath) -> Result<Option<fs::Metadata>, SpoolError> {
        match at {
            Where::Aside(at) => Ok(fs::symlink_metadata(at).ok()),
            Where::Shown | Where::Recorded | Where::Given => Ok(self.inbox().look(name)?),
        }
    }

    fn open_at(&self, at: &Where, name: &RelPath) -> Result<File, SpoolError> {
        match at {
            Where::Aside(at) => File::open(at).on("open", at),
            Where::Shown | Where::Recorded | Where::Given => {
                let opened = self.inbox().read(name);
                opened.on("open", &self.inbox().shown(name))
            }
        }
    }

    /// Whether there is a file with these bytes.
    fn hashes_to(
        &self,
        at: &Where,
        name: &RelPath,
        size: u64,
        digest: Digest,
    ) -> Result<bool, SpoolError> {
        let Some(meta) = self.look_at(at, name)?.filter(|meta| meta.len() == size) else {
            return Ok(false);
        };
        if meta.is_symlink() {
            let target = match at {
                Where::Aside(at) => fs::read_link(at).map(|to| to.into_os_string().into_vec()),
                Where::Shown | Where::Recorded | Where::Given => self.inbox().read_link(name),
            };
            let target = target.on("read", &self.inbox().shown(name))?;
            return Ok(link::digest(&target) == digest);
        }
        if !meta.is_file() {
            return Ok(false);
        }
        let file = self.open_at(at, name)?;
        let hashed = hash_file(&file).on("read", &self.inbox().shown(name))?;
        Ok(hashed.digest == digest)
    }

    /// What is whole of a bundle that is not goes to where its next attempt looks for it.
    fn give_back(&self, bundle: BundleId, members: &[Member]) -> Result<(), SpoolError> {
        for member in members {
            let to = self.staged_alone(bundle, member.index);
            if member.ino.unwrap_or(0) == 0 || self.is_recorded(member)? {
                continue;
            }
            match &member.at {
                Where::Recorded | Where::Given => {}
                Where::Aside(at) if *at == to => {}
                Where::Aside(at) => durable::rename(at, &to)?,
                Where::Shown => durable::rename(&self.inbox().at(&member.name)?, &to)?,
            }
        }
        Ok(())
    }

    /// Whether the member is shown as an older version with the same bytes.
    fn is_recorded(&self, member: &Member) -> Result<bool, SpoolError> {
        let row: Option<InName> = self
            .journal
            .row(crate::spool::inbox::tables::IN_NAMES, &member.name)?;
        Ok(row.is_some_and(|row| Some(row.ino) == member.ino) && member.at == Where::Shown)
    }

    fn complete_publish(
        &self,
        manifest: &VerifiedManifest,
        members: &[Member],
    ) -> Result<Batch, SpoolError> {
        let mut batch = Batch::default();
        let of = manifest.manifest();
        let (mut shown, mut taken) = (Vec::new(), Vec::new());
        self.give_way(of, members)?;
        let few = members.len() <= durable::SYNC_EACH_MAX;
        if !few {
            batch.sync(Sync::Everything);
        }
        let mut settled = Vec::with_capacity(members.len());
        for member in members {
            if member.at == Where::Recorded {
                settled.extend(
                    member
                        .ino
                        .map(|ino| (member.index, member.name.clone(), ino)),
                );
                continue;
            }
            let entry = &of.entries[member.index as usize];
            if member.at == Where::Given {
                continue;
            }
            if entry.kind == EntryKind::Directory {
                self.make_inbox_directories(&member.name)?;
                batch.sync(self.inbox().sync_above(&member.name));
                continue;
            };
            let Some(ino) = member.ino else {
                // The user has removed it since.
                taken.push(Which::of(of, member.index));
                let path = &of.entries[member.index as usize].path;
                let version = Version { order: of.order() };
                self.never_shown(of.origin, path, &member.name, version, &mut batch)?;
                continue;
            };
            self.roll_forward(member, entry, few, &mut batch)?;
            // What was chosen in a conflict may be lost with the log.
            self.choose(of.origin, &entry.path, &member.name, true, &mut batch);
            shown.push((member.index, member.name.clone(), ino));
        }
        let names = members.iter().filter(|member| member.ino.is_some());
        let names = names.map(|member| (member.index as usize, &member.name));
        self.set_inbox_times(manifest, names, &mut batch);
        self.note_taken(of.origin, taken, &mut batch)?;
        self.keep_proof(manifest, &shown);
        self.former_rows(manifest.id(), of, !shown.is_empty(), &mut batch)?;
        self.name_rows(manifest, &shown, &mut batch)?;
        settled.extend(shown);
        self.settle_rows(manifest, &settled, &mut batch)?;
        tracing::info!(bundle = %manifest.id().short(), "a publish that had begun is complete");
        Ok(batch)
    }

    /// Older files of the origin that are in the way of directories go, with their rows.
    fn give_way(&self, of: &Manifest, members: &[Member]) -> Result<(), SpoolError> {
        let mut seen = HashSet::new();
        for member in members.iter().filter(|member| member.ino.is_some()) {
            let directory = match member.ino {
                Some(0) => Some(member.name.clone()),
                Some(_) | None => member.name.parent(),
            };
            for path in std::iter::successors(directory, RelPath::parent) {
                if !seen.insert(path.clone()) {
                    break;
                }
                let row = self.inbox.row_of(&path)?;
                // A newer one may have taken the name after the user removed the directory.
                let is_older =
                    |row: &InName| row.origin == of.origin && row.which.order() < of.order();
                if let Some(row) = row.filter(is_older) {
                    if self.inbox().inode(&path)? == Some(row.ino) {
                        durable::remove(&self.inbox().at(&path)?)?;
                    }
                    self.record_gave_way(of.origin, &path)?;
                }
            }
        }
        Ok(())
    }

    /// The name shows the file.
    fn roll_forward(
        &self,
        member: &Member,
        entry: &Entry,
        few: bool,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.may_show(entry, &member.name)?;
        let file = match entry.digest() {
            Some(digest) => Some((self.open_at(&member.at, &member.name)?, digest)),
            None => None,
        };
        if let Where::Aside(at) = &member.at {
            if let Some(parent) = member.name.parent() {
                self.make_inbox_directories(&parent)?;
            }
            durable::rename_into_place(at, &self.inbox().at(&member.name)?, false)?;
        }
        if let Some((file, digest)) = file {
            self.content.hold(&file, digest, batch)?;
            if few {
                batch.sync(Sync::File(Arc::new(file)));
            }
        }
        if few {
            batch.sync(self.inbox().sync_above(&member.name));
        }
        Ok(())
    }
}

/// What says that another kind of file is where a directory or a file should go.
pub(in crate::spool) fn is_in_the_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTDIR | libc::EEXIST | libc::EISDIR | libc::ENOTEMPTY | libc::ELOOP)
    )
}
