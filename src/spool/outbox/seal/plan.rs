//! What one seal announces and records, gathered while everything it speaks of is held; nothing of it holds yet.
//!
//! # Invariants
//! 1. An error, or a plan that is dropped, leaves no row, and no link that was not there before ([`Linked`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::commit::Linked;
use super::{Earlier, file_entry};
use crate::bundle::{BundleId, Entry, Listing, RelPath, VerifiedManifest};
use crate::digest::{Digest, Hashed};
use crate::peer::PeerId;
use crate::spool::decision::Decision;
use crate::spool::durable::OnPath;
use crate::spool::group::route::Terms;
use crate::spool::journal::Batch;
use crate::spool::outbox::gate::Gate;
use crate::spool::outbox::hashing::{Look, Slice};
use crate::spool::outbox::tables::{OUT_NAMES, OutName};
use crate::spool::symlinks::{hashed, link_entry};
use crate::spool::tables::Stat;
use crate::spool::{Spool, SpoolError};

/// A file or symbolic link of the outbox that was hashed while nothing was locked.
pub(in crate::spool) struct Member {
    /// Where it was found.
    pub(in crate::spool) path: RelPath,
    pub(in crate::spool) gate: Arc<Gate>,
    /// The write generation before it was hashed.
    pub(in crate::spool) generation: u64,
    pub(in crate::spool) hashed: Hashed,
    pub(in crate::spool) meta: Metadata,
    /// Where it points, if it is a symbolic link.
    pub(in crate::spool) target: Option<Vec<u8>>,
    /// Not of each of many: descriptors are few.
    pub(in crate::spool) file: Option<Arc<File>>,
}

/// What looking at a file came to.
pub(in crate::spool) enum Looked {
    Member(Box<Member>),
    Gone,
    Open,
    /// So many bytes of it are left for other slices.
    Later(u64),
}

impl Member {
    pub(in crate::spool) fn digest(&self) -> Digest {
        self.hashed.digest
    }

    /// What a manifest says of it under a name.
    pub(in crate::spool) fn entry(&self, path: &RelPath, meta: &Metadata) -> Entry {
        match &self.target {
            Some(target) => link_entry(path, meta, target.clone()),
            None => file_entry(path, meta, self.hashed.clone()),
        }
    }
}

/// The gates of members, by inode.
pub(in crate::spool) fn gates_of(members: &[Member]) -> BTreeMap<u64, Arc<Gate>> {
    let gate = |member: &Member| (member.gate.ino(), Arc::clone(&member.gate));
    members.iter().map(gate).collect()
}

/// Where a member is by the time its seal is decided.
pub(in crate::spool) enum Taken {
    /// As it was hashed; the stat is that after the last link.
    Here(Metadata),
    /// Its name shows another inode, or nothing.
    Gone,
    /// It is longer or shorter than what was hashed, behind our back.
    Changed,
}

/// What a new bundle takes the place of.
#[derive(Default)]
pub(in crate::spool) struct Replaces {
    /// The rows of its names.
    pub(in crate::spool) names: Vec<OutName>,
    pub(in crate::spool) bundles: BTreeSet<BundleId>,
}

/// See the head of this file.
pub(in crate::spool) struct Plan<'a> {
    pub(super) spool: &'a Spool,
    // Before the links, which are undone when the lock is free again.
    pub(super) decision: Decision<'a>,
    pub(super) linked: Linked<'a>,
    /// A kind of seal adds to it what only it has.
    pub(in crate::spool) batch: Batch,
    pub(super) records: BTreeMap<u64, (Digest, Stat)>,
    pub(super) announced: Vec<VerifiedManifest>,
    /// What is announced of files is what their names show.
    pub(super) shows: bool,
    /// Bundles that a newer one of this plan replaced already.
    replaced: BTreeSet<BundleId>,
    pub(super) freed: Vec<Digest>,
    /// Who is owed more than what is announced.
    pub(in crate::spool) owed: Vec<PeerId>,
}

impl<'a> Linked<'a> {
    /// Takes the decision lock, and keeps it until the plan is committed or dropped.
    pub(in crate::spool) fn plan(mut self, spool: &'a Spool) -> Plan<'a> {
        Plan {
            spool,
            decision: spool.decide(),
            batch: std::mem::take(&mut self.batch),
            linked: self,
            records: BTreeMap::new(),
            announced: Vec::new(),
            shows: false,
            replaced: BTreeSet::new(),
            freed: Vec::new(),
            owed: Vec::new(),
        }
    }
}

impl Plan<'_> {
    /// Records that a member has the bytes that were hashed, if it is still there.
    pub(in crate::spool) fn take_in(&mut self, member: &Member) -> Result<Taken, SpoolError> {
        let (spool, ino) = (self.spool, member.gate.ino());
        let look = || match &member.file {
            Some(file) => Ok(Some(
                file.metadata()
                    .on("stat", &spool.outbox.root.shown(&member.path))?,
            )),
            None => Ok::<_, SpoolError>(spool.outbox.root.look(&member.path)?),
        };
        let is_it = |meta: &Metadata| {
            let kind = meta.is_file() || (meta.is_symlink() && member.target.is_some());
            meta.ino() == ino && kind && !member.gate.is_retired()
        };
        let Some(mut meta) = look()?.filter(is_it) else {
            return Ok(Taken::Gone);
        };
        if meta.len() != member.hashed.len {
            return Ok(Taken::Changed);
        }
        // That of a single file is made here. Of many it may have been another file's that is gone since.
        let is_single = member.file.is_some();
        if member.target.is_none() && (is_single || !spool.content.has(member.digest())) {
            if !self.linked.hold(member, &mut self.batch)? {
                return Ok(Taken::Gone);
            }
            // The link changes the change time.
            match look()? {
                Some(after) => meta = after,
                None => return Ok(Taken::Gone),
            }
        }
        let record = (member.digest(), Stat::of(&meta));
        self.records.insert(ino, record);
        Ok(Taken::Here(meta))
    }

    /// What bundles and, if `names`, rows of names stand where these entries will.
    pub(in crate::spool) fn replaced_by(
        &self,
        entries: &[Entry],
        names: bool,
    ) -> Result<Replaces, SpoolError> {
        let mut replaces = Replaces::default();
        for Entry { path, .. } in entries {
            let latest = self.spool.outbox.latest(path)?;
            replaces.bundles.extend(latest);
            if names && let Some(before) = self.spool.outbox.name(path)? {
                replaces.bundles.insert(before.bundle);
                replaces.names.push(before);
            }
        }
        Ok(replaces)
    }

    /// A new bundle: its rows, and what becomes of those that it replaces.
    pub(in crate::spool) fn announce(
        &mut self,
        terms: &Terms,
        listing: impl Into<Listing>,
        earlier: Earlier,
        replaces: Replaces,
    ) -> Result<&VerifiedManifest, SpoolError> {
        let spool = self.spool;
        let manifest = spool.manifest_under(terms, listing, earlier);
        spool.rows_under(terms, &manifest, &mut self.batch)?;
        for before in &replaces.names {
            spool.file_gone(before)?;
        }
        for old in replaces.bundles {
            if self.replaced.insert(old) {
                let freed = spool.supersede(old, &manifest, &mut self.batch)?;
                self.freed.extend(freed);
            }
        }
        spool.outbox.tells_moves(&manifest, &mut self.batch);
        self.announced.push(manifest);
        Ok(&self.announced[self.announced.len() - 1])
    }

    /// The name of a member shows what `bundle` announces.
    pub(in crate::spool) fn show(&mut self, path: &RelPath, member: &Member, of: Announced) {
        let Some((digest, stat)) = self.records.get(&member.gate.ino()).copied() else {
            return;
        };
        let row = OutName {
            stat,
            digest,
            bundle: of.bundle,
            order: of.order,
            formerly: None,
        };
        self.batch.insert(OUT_NAMES, path, &row);
        self.shows = true;
        if self.linked.are_few {
            self.batch.sync(self.spool.outbox.root.sync_above(path));
        }
    }

    /// [`Self::show`] of many members, each under the bundle that has its path.
    pub(in crate::spool) fn show_each(&mut self, members: &[(&Member, Metadata)]) {
        let announced = std::mem::take(&mut self.announced);
        let mut by_path: HashMap<&RelPath, Announced> = HashMap::new();
        for manifest in &announced {
            let entries = manifest.manifest().entries.iter();
            by_path.extend(entries.map(|entry| (&entry.path, Announced::from(manifest))));
        }
        for (member, _) in members {
            if let Some(of) = by_path.get(&member.path) {
                self.show(&member.path, member, *of);
            }
        }
        self.announced = announced;
    }
}

/// A bundle by its names.
#[derive(Clone, Copy)]
pub(in crate::spool) struct Announced {
    pub(in crate::spool) bundle: BundleId,
    order: (u64, u64),
}

impl From<&VerifiedManifest> for Announced {
    fn from(manifest: &VerifiedManifest) -> Self {
        Self {
            bundle: manifest.id(),
            order: manifest.manifest().order(),
        }
    }
}

impl Spool {
    /// Hashes a slice of what a name shows, without a lock; `gate` is that of the inode it is to show.
    pub(in crate::spool) fn look_at_member(
        &self,
        gate: &Arc<Gate>,
        path: &RelPath,
        slice: &mut Slice<'_>,
    ) -> Result<Looked, SpoolError> {
        let at = self.outbox.root.shown(path);
        let member = |file: File, hashed, generation, target: Option<Vec<u8>>| {
            Ok(Looked::Member(Box::new(Member {
                path: path.clone(),
                gate: Arc::clone(gate),
                generation,
                hashed,
                meta: file.metadata().on("stat", &at)?,
                target,
                file: Some(Arc::new(file)),
            })))
        };
        let Some(file) = self.outbox.open_member(path, gate.ino())? else {
            let Some((link, target)) = self.open_link(path, gate.ino())? else {
                return Ok(Looked::Gone);
            };
            let generation = gate.lock().state().generation;
            return member(link, hashed(&target), generation, Some(target));
        };
        match self.hash_slice(gate, &file, path, slice)? {
            Look::Whole(hashed, generation) => member(file, hashed, generation, None),
            Look::Later(left) => Ok(Looked::Later(left)),
            Look::Open => Ok(Looked::Open),
        }
    }
}
