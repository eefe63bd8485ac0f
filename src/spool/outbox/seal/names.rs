//! The decision on an inode that was hashed: one bundle for each of its names that is to be sent, all in one batch.
//!
//! # Invariants
//! 1. All names of a request are decided with the gate and the decision lock held: all of them or none have the new
//!    bytes. A name that shows another file by then drops out by itself.
//! 2. The mark goes in the batch that seals the last name.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Earlier, file_entry};
use crate::bundle::{BundleId, Priority, link};
use crate::digest::{Digest, Hashed};
use crate::peer::PeerId;
use crate::spool::durable::{OnPath, Sync};
use crate::spool::group::route::Terms;
use crate::spool::journal::Batch;
use crate::spool::outbox::gate::GateGuard;
use crate::spool::symlinks::link_entry;
use crate::spool::tables::{LATEST, MARKS, Mark, MarkKind, OUT_NAMES, OutName, Stat};
use crate::spool::{Event, Recheck, SealName, SealOutcome, SealRequest, Spool, SpoolError};

/// An inode that was hashed while nothing was locked.
pub(super) struct Looked {
    pub(super) file: File,
    /// Where it was found, for messages.
    pub(super) at: PathBuf,
    pub(super) hashed: Hashed,
    /// The write generation before it was hashed.
    pub(super) generation: u64,
    /// Where it points, if it is a symbolic link.
    pub(super) target: Option<Vec<u8>>,
}

/// What the batch of a decision holds so far, and what is to be done once it is submitted.
struct Deciding<'a> {
    looked: &'a Looked,
    ino: u64,
    recheck: Option<Recheck>,
    batch: Batch,
    /// Bundles that a newer one of this batch replaced already.
    replaced: BTreeSet<BundleId>,
    freed: Vec<Digest>,
    sealed: Vec<(BundleId, Priority)>,
    owed: Vec<PeerId>,
    /// Of the inode, after the last link.
    stat: Option<Stat>,
}

impl Spool {
    /// Seals `looked` under every name of the request that still shows it; one outcome for each.
    pub(super) fn seal_names(
        &self,
        request: &SealRequest,
        looked: &Looked,
    ) -> Result<Vec<SealOutcome>, SpoolError> {
        self.journal.still_keeps()?;
        let SealRequest {
            gate,
            names,
            priority,
            ..
        } = request;
        let all = |outcome: SealOutcome| vec![outcome; names.len()];
        let terms: Vec<Terms> = names
            .iter()
            .map(|name| self.terms_of(&name.path, *priority))
            .collect();
        let mut guard = gate.lock();
        let len = looked.file.metadata().on("stat", &looked.at)?.len();
        let changed = guard.state().generation != looked.generation || len != looked.hashed.len;
        if guard.writers() > 0 || changed {
            return Ok(all(SealOutcome::Changed));
        }
        let decide = self.decide();
        // A name may have gone or moved while the bytes were hashed, and the inode's number to another file with it.
        let shows = |name: &SealName| {
            let there = self.outbox().inode(&name.path)?;
            Ok(!gate.is_retired() && there == Some(gate.ino()))
        };
        let shown: Vec<bool> = names.iter().map(shows).collect::<Result<_, SpoolError>>()?;
        if !shown.contains(&true) {
            return Ok(all(SealOutcome::Gone));
        }
        let mut deciding = Deciding {
            looked,
            ino: gate.ino(),
            recheck: self.recheck.lock().remove(&gate.ino()),
            batch: Batch::default(),
            replaced: BTreeSet::new(),
            freed: Vec::new(),
            sealed: Vec::new(),
            owed: Vec::new(),
            stat: None,
        };
        let here = || names.iter().zip(&shown).filter(|(_, shows)| **shows);
        if !self.is_not_torn(&mut deciding, here().map(|(name, _)| name))? {
            return Ok(all(SealOutcome::Incomplete));
        }
        let mut outcomes = Vec::with_capacity(names.len());
        for ((name, shows), terms) in names.iter().zip(&shown).zip(terms) {
            let sealed = match shows {
                true => self.seal_name(&mut deciding, name, terms)?,
                false => None,
            };
            outcomes.push(sealed.map_or(SealOutcome::Gone, SealOutcome::Sealed));
        }
        if let Some(stat) = deciding.stat {
            self.commit_names(request, deciding, stat, &mut guard)?;
        }
        drop(decide);
        Ok(outcomes)
    }

    /// Of an inode that is looked at again: whether it may be sent. What is recorded of bytes that it does not have is
    /// dropped; where a power loss may have torn those, it is held back.
    fn is_not_torn<'a>(
        &self,
        deciding: &mut Deciding<'_>,
        names: impl Iterator<Item = &'a SealName>,
    ) -> Result<bool, SpoolError> {
        let Some(recheck) = deciding.recheck else {
            return Ok(true);
        };
        let digest = deciding.looked.hashed.digest;
        for SealName { path, .. } in names {
            let before: Option<OutName> = self.journal.row(OUT_NAMES, path)?;
            let Some(before) = before.filter(|before| before.digest != digest) else {
                continue;
            };
            self.content.disown(before.digest, deciding.ino)?;
            if recheck == Recheck::KeepIfChanged {
                let mark = Mark {
                    kind: MarkKind::Torn,
                    path: path.clone(),
                };
                let mut batch = Batch::default();
                batch.insert(MARKS, &deciding.ino, &mark);
                self.journal.submit(batch)?;
                tracing::warn!(%path, "its bytes are not those that were sealed: held back as incomplete");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rows of one name; `None` if the file has no name any more.
    fn seal_name(
        &self,
        deciding: &mut Deciding<'_>,
        name: &SealName,
        mut terms: Terms,
    ) -> Result<Option<BundleId>, SpoolError> {
        let SealName { path, renamed_from } = name;
        let Looked {
            file,
            at,
            hashed,
            target,
            ..
        } = deciding.looked;
        let digest = hashed.digest;
        if target
            .as_ref()
            .is_some_and(|target| !link::stays(path, target))
        {
            return Ok(None);
        }
        let before: Option<OutName> = self.journal.row(OUT_NAMES, path)?;
        let asked = renamed_from.as_ref() == Some(path);
        let again = asked || deciding.recheck.is_some();
        let meta = file.metadata().on("stat", at)?;
        let unchanged = before.as_ref().filter(|row| again && row.digest == digest);
        let dressed = match unchanged {
            Some(row) => self.dressed(row, path, &meta, asked)?,
            None => false,
        };
        if target.is_none() && !self.content.hold(file, digest, &mut deciding.batch)? {
            return Ok(None);
        }
        // After the link, which changes the change time.
        let stat = Stat::of(&file.metadata().on("stat", at)?);
        deciding.stat = Some(stat);
        if let Some(before) = unchanged.filter(|row| !dressed && row.formerly.is_none()) {
            // Found at start with other times but the same bytes, or dressed as it was announced: nothing to send.
            let row = OutName {
                stat,
                ..before.clone()
            };
            deciding.batch.insert(OUT_NAMES, path, &row);
            if self.late_joiners() {
                let owed = self.owe_everybody(row.bundle, &mut deciding.batch)?;
                deciding.owed.extend(owed);
            }
            return Ok(Some(row.bundle));
        }
        // What had this path last, although renamed over or removed since, and what this file was before its rename.
        let latest: Option<BundleId> = self.journal.row(LATEST, path)?;
        let formers = self.formers(before.as_ref(), digest, dressed.then_some(path))?;
        let moved_on = match formers.is_empty() {
            true => None,
            false => self.moved_on(path)?,
        };
        let superseded = before.as_ref().map(|row| row.bundle);
        let superseded: BTreeSet<BundleId> = superseded.into_iter().chain(latest).collect();
        let entry = match target {
            Some(target) => link_entry(path, &meta, target.clone()),
            None => file_entry(path, &meta, hashed.clone()),
        };
        tracing::trace!(%path, ?renamed_from, ?formers, "sealing");
        self.last_word(std::slice::from_ref(&entry), &mut terms);
        let earlier = Earlier {
            supersedes: latest,
            renamed_from: formers,
            moved_on,
            ..Earlier::default()
        };
        let manifest = self.manifest_under(&terms, vec![entry], earlier);
        let bundle = manifest.id();
        let batch = &mut deciding.batch;
        self.rows_under(&terms, &manifest, batch)?;
        if let Some(before) = &before {
            self.file_gone(before)?;
        }
        for old in superseded {
            if deciding.replaced.insert(old) {
                deciding
                    .freed
                    .extend(self.supersede(old, &manifest, batch)?);
            }
        }
        self.tells_moves(&manifest, batch);
        batch.insert(LATEST, path, &bundle);
        let row = OutName {
            stat,
            digest,
            bundle,
            order: manifest.manifest().order(),
            formerly: None,
        };
        batch.insert(OUT_NAMES, path, &row);
        batch.sync(self.outbox().sync_above(path));
        deciding.sealed.push((bundle, manifest.manifest().priority));
        tracing::debug!(%path, bundle = %bundle.short(), "sealed");
        Ok(Some(bundle))
    }

    /// Call with the decision lock held.
    fn commit_names(
        &self,
        request: &SealRequest,
        deciding: Deciding<'_>,
        stat: Stat,
        guard: &mut GateGuard<'_>,
    ) -> Result<(), SpoolError> {
        let Deciding {
            looked,
            ino,
            mut batch,
            mut freed,
            sealed,
            owed,
            ..
        } = deciding;
        let digest = looked.hashed.digest;
        self.content.record(digest, &stat, &mut batch);
        // Also of what was sealed before: restored or copied with the state, it need not be on the disk yet.
        if looked.target.is_none() {
            let file = looked.file.try_clone().on("duplicate", &looked.at)?;
            batch.sync(Sync::File(Arc::new(file)));
        }
        for (bundle, _) in &sealed {
            self.sealed_when_durable(*bundle, std::mem::take(&mut freed), &mut batch);
        }
        let gate = guard.shared();
        {
            let _marking = gate.marking();
            if !request.more {
                batch.remove(MARKS, &ino);
                gate.set_marked(false);
            }
            self.journal.submit(batch)?;
        }
        guard.state().sealed = Some(digest);
        self.counters
            .sealed
            .fetch_add(sealed.len() as u64, Ordering::Relaxed);
        for (bundle, priority) in sealed {
            self.ring(&Event::Sealed(bundle, priority));
        }
        for peer in owed {
            self.ring(&Event::PendingChanged(peer));
        }
        Ok(())
    }
}
