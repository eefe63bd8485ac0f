//! The way of every seal from hashed files to a bundle: gates, links, plan, one batch, rings.
//!
//! | step | held from then on | what an error leaves |
//! |---|---|---|
//! | [`Gates::lock`] | the gates of all members: nobody changes their bytes | nothing |
//! | [`Gates::link`] | the content links of many | nothing: the links go again |
//! | [`Linked::plan`] | the decision lock | the same |
//! | [`Plan::take_in`] | the content link of a single file | the same |
//! | [`Plan::commit`] | | before its batch is in the journal the same; after it there are no errors |
//!
//! # Invariants
//! 1. Nobody writes to a member, and it has the generation that it was hashed with, from before its link is made.
//! 2. Whose link is made has the digest in its gate: before its bytes change the link goes, or a copy is made.
//! 3. The mark of an inode goes in the batch of the seal, with the mark locks held.
//!
//! # Crash behaviour
//! Killed before the batch: links without rows, which the next start looks at. After it: the bundles are there.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::plan::{Member, Plan};
use crate::bundle::{BundleId, Priority, VerifiedManifest};
use crate::digest::Digest;
use crate::spool::durable::{SYNC_EACH_MAX, Sync};
use crate::spool::journal::Batch;
use crate::spool::outbox::gate::{Gate, GateGuard};
use crate::spool::outbox::tables::{LATEST, MARKS};
use crate::spool::{Event, Spool, SpoolError};

/// Content links made, or undone, under one hold of the decision lock: file operations need it too.
const LINK_PAGE: usize = 128;

/// The gates of all members of a seal, locked.
pub(in crate::spool) struct Gates<'a>(BTreeMap<u64, GateGuard<'a>>);

impl<'a> Gates<'a> {
    /// In the order of the inodes, so that two seals never wait for each other.
    pub(in crate::spool) fn lock(gates: &'a BTreeMap<u64, Arc<Gate>>) -> Self {
        Self(
            gates
                .iter()
                .map(|(ino, gate)| (*ino, gate.lock()))
                .collect(),
        )
    }

    pub(in crate::spool) fn are_written(&self) -> bool {
        self.0.values().any(|guard| guard.writers() > 0)
    }

    pub(in crate::spool) fn is_as_hashed(&mut self, member: &Member) -> bool {
        let guard = self.0.get_mut(&member.gate.ino());
        guard.is_some_and(|guard| guard.state().generation == member.generation)
    }

    /// Makes the content links of members that are as they were hashed, if what is promised of them can be kept. One that is not there any more gets none.
    pub(in crate::spool) fn link(
        self,
        spool: &'a Spool,
        members: &[Member],
    ) -> Result<Linked<'a>, SpoolError> {
        spool.journal.still_keeps()?;
        let mut batch = Batch::default();
        let mut linked = Linked {
            spool,
            gates: self,
            made: Vec::new(),
            are_few: members.len() <= SYNC_EACH_MAX,
            files: Vec::new(),
            batch: Batch::default(),
        };
        for page in members.chunks(LINK_PAGE) {
            let _decide = spool.decide();
            for member in page.iter().filter(|member| member.target.is_none()) {
                linked.hold(member, &mut batch)?;
            }
        }
        linked.batch = batch;
        Ok(linked)
    }
}

/// Content links of a seal; those that it made go again unless it is committed.
pub(in crate::spool) struct Linked<'a> {
    spool: &'a Spool,
    gates: Gates<'a>,
    made: Vec<(Digest, u64)>,
    /// Each is synced for itself; else everything is.
    pub(super) are_few: bool,
    files: Vec<Arc<File>>,
    pub(super) batch: Batch,
}

impl Linked<'_> {
    /// Makes the link of a file, with the decision lock held. `false`: the file has no name any more.
    pub(super) fn hold(&mut self, member: &Member, batch: &mut Batch) -> Result<bool, SpoolError> {
        let (spool, ino, digest) = (self.spool, member.gate.ino(), member.digest());
        let opened = match &member.file {
            Some(file) => Some(Arc::clone(file)),
            None => spool.outbox.open_member(&member.path, ino)?.map(Arc::new),
        };
        let Some(file) = opened else { return Ok(false) };
        let is_new = !spool.content.has(digest);
        if !spool.content.hold(&file, digest, batch)? {
            return Ok(false);
        }
        if is_new {
            self.made.push((digest, ino));
        }
        self.gates.seal(ino, digest);
        if self.are_few {
            self.files.push(file);
        }
        Ok(true)
    }
}

impl Drop for Linked<'_> {
    fn drop(&mut self) {
        for page in self.made.chunks(LINK_PAGE) {
            let decide = self.spool.decide();
            for (digest, ino) in page {
                if let Err(error) = decide.content.unhold(*digest, *ino) {
                    tracing::warn!(%error, "content that nobody needs stays until the next start");
                }
            }
        }
    }
}

impl Gates<'_> {
    fn seal(&mut self, ino: u64, digest: Digest) {
        if let Some(guard) = self.0.get_mut(&ino) {
            guard.state().sealed = Some(digest);
        }
    }
}

impl Plan<'_> {
    /// After what became of older bundles: where these had a path, it is a newer one's. Names that show it say so
    /// themselves.
    fn latest_rows(&self, batch: &mut Batch) -> Result<(), SpoolError> {
        for manifest in &self.announced {
            for entry in &manifest.manifest().entries {
                let path = &entry.path;
                if !self.shows || entry.mark().is_none() {
                    batch.insert(LATEST, path, &manifest.id());
                } else if self.spool.journal.row(LATEST, path)?.is_some() {
                    batch.remove(LATEST, path);
                }
            }
        }
        Ok(())
    }

    /// Makes it hold, and tells of it. `marked`: further names of the inodes follow, so their marks stay.
    pub(in crate::spool) fn commit(mut self, marked: bool) -> Result<(), SpoolError> {
        let spool = self.spool;
        let mut batch = std::mem::take(&mut self.batch);
        let mut sent: HashMap<Digest, BundleId> = HashMap::new();
        for manifest in &self.announced {
            let digests = manifest.manifest().digests();
            sent.extend(digests.map(|digest| (digest, manifest.id())));
        }
        for (ino, (digest, stat)) in &self.records {
            let content = &spool.content;
            match sent.get(digest) {
                Some(bundle) => content.record_sent(*bundle, *digest, stat, &mut batch)?,
                None => content.record(*digest, stat, &mut batch)?,
            }
            if !marked {
                batch.remove(MARKS, ino);
            }
        }
        self.latest_rows(&mut batch)?;
        match self.linked.are_few {
            true => self
                .linked
                .files
                .drain(..)
                .for_each(|file| batch.sync(Sync::File(file))),
            false => batch.sync(Sync::Everything),
        }
        let told = |manifest: &VerifiedManifest| (manifest.id(), manifest.manifest().priority);
        let sealed: Vec<(BundleId, Priority)> = self.announced.iter().map(told).collect();
        let bundles = sealed.iter().map(|(bundle, _)| *bundle).collect();
        spool.sealed_when_durable(bundles, std::mem::take(&mut self.freed), &mut batch);
        {
            // Whoever renames a member does not move a mark that goes by this.
            let guards = self.linked.gates.0.values();
            let gates: Vec<&Gate> = guards.map(GateGuard::shared).collect();
            let _marking: Vec<_> = gates.iter().map(|gate| gate.marking()).collect();
            if !marked {
                let sealed = gates
                    .iter()
                    .filter(|gate| self.records.contains_key(&gate.ino()));
                sealed.for_each(|gate| gate.set_marked(false));
            }
            spool.journal.submit(batch)?;
        }
        // A member that was not taken in has no record: its link goes.
        let records = &self.records;
        self.linked
            .made
            .retain(|(_, ino)| !records.contains_key(ino));
        for (ino, (digest, _)) in &self.records {
            self.linked.gates.seal(*ino, *digest);
            if !marked {
                spool.outbox.recheck.lock().remove(ino);
            }
        }
        drop(self.decision);
        let count = sealed.len() as u64;
        spool.counters.sealed.fetch_add(count, Ordering::Relaxed);
        for (bundle, priority) in sealed {
            tracing::debug!(bundle = %bundle.short(), "sealed");
            spool.doorbell.ring(&Event::Sealed(bundle, priority));
        }
        for peer in std::mem::take(&mut self.owed) {
            spool.doorbell.ring(&Event::PendingChanged(peer));
        }
        Ok(())
    }
}
