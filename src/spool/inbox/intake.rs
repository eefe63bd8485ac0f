//! Inbound bytes: from the first accepted chunk to a verified bundle.
//!
//! `mesh` gets an [`Incoming`] for an offer it may take and feeds it chunks; `finish` turns it into a [`Verified`],
//! `publish` (in [`crate::spool::inbox`]) into a [`crate::spool::Published`]. Nothing here knows connections or FUSE.
//!
//! # Invariants
//! 1. A `Verified` exists only after the SHA-256 over all bytes of every file was the manifest's.
//! 2. One `Incoming` per bundle at a time.
//!
//! # Crash behaviour
//! Arriving bytes lie in `partial/<bundle>.<entry>`. What a later attempt finds there is hashed again, chunk by chunk,
//! before it counts.
//!
//! # Threads
//! An `Incoming` belongs to one fetch and takes no lock while bytes flow. All calls block on local disk.

use std::collections::hash_map::Entry as MapEntry;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::bundle::{BundleId, Entry, EntryKind, PATH_MAX, Receipt, VerifiedManifest};
use crate::digest::{Digest, INLINE_MAX, LEAF};
use crate::peer::PeerId;
use crate::spool::beneath::Spot;
use crate::spool::content::zeros;
use crate::spool::durable::{self, OnPath};
use crate::spool::inbox::part::{Followed, Leaf, PartFile, joined};
use crate::spool::ledger::inbound::{InboundShown, InboundState};
use crate::spool::{Event, FinishError, IntakeError, Offered, Quarantined, Spool, SpoolError};

/// The files of a bundle of more entries than this are not all kept open while it arrives.
const KEPT_OPEN: usize = 64;

/// Bytes kept for `~name-` and a number of nine digits, the name having at most 63: what is offered fits also when its name is taken.
pub(super) const CONFLICT_ROOM: usize = 1 + 63 + 10;

/// What a bundle is refused with whose chunks are right and whose digest is wrong.
pub(crate) const CONTRADICTS: &str = "manifest contradicts itself";

/// A bundle that is arriving. One fetch owns it. All calls block on local disk; call from a blocking thread.
#[derive(Debug)]
pub(crate) struct Incoming {
    arrival: Arrival,
    /// How many cancels there were when it was last looked for one of this bundle.
    cancels: u64,
    manifest: VerifiedManifest,
    parts: Vec<Part>,
    /// Of so many parts the SHA-256 is at its end.
    hashed: usize,
}

/// Keeps a bundle in the list of what is arriving, for as long as it lives.
#[derive(Debug)]
pub(in crate::spool) struct Arrival {
    pub(in crate::spool) spool: Arc<Spool>,
    bundle: BundleId,
    /// What arrived is of no use to a later attempt.
    useless: bool,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut arriving = self.spool.ledger.arriving.lock();
        let row = arriving.remove(&self.bundle);
        let removed = self.spool.content.arrival_ended(self.bundle);
        let ended = |row: InboundShown| self.spool.ledger.ended(self.bundle, row.origin).is_some();
        // Under the lock: a fetch that begins anew must not lose what it writes. What is shown of it gets its names.
        if (removed || self.useless || row.is_some_and(ended))
            && !self.spool.inbox.publishing.is_shown(self.bundle)
            && let Err(error) = self.spool.content.discard_partial(self.bundle)
        {
            tracing::warn!(%error, "bytes of a bundle that is given up stay until the next start");
        }
        drop(arriving);
        self.spool.doorbell.ring(&Event::StatusChanged);
    }
}

/// What is here of one entry. Small, since a bundle may have 100,000 of them of which few are on their way at once.
#[derive(Debug)]
enum Part {
    /// Nothing, or nothing that was looked at; also of a directory and of a link.
    Nothing,
    /// Something.
    Some(Box<PartFile>),
    /// All of it, and its SHA-256 is right.
    Whole,
}

impl Incoming {
    /// What is being received.
    #[cfg(test)]
    pub(crate) fn manifest(&self) -> &VerifiedManifest {
        &self.manifest
    }

    /// Byte ranges of `entry` that are still to be fetched, in order, aligned to chunks; empty when all is here
    /// (equal content known locally, or left from an earlier attempt). A file that travels inline is one range.
    pub(crate) fn missing(&self, entry: usize) -> Vec<Range<u64>> {
        match self.parts.get(entry) {
            Some(Part::Some(part)) => part.missing(),
            Some(Part::Nothing) => joined(self.manifest.manifest().entries[entry].pieces()),
            Some(Part::Whole) | None => Vec::new(),
        }
    }

    /// Entries of which more is remembered than whether they are here.
    #[cfg(test)]
    pub(in crate::spool) fn in_memory(&self) -> usize {
        let some = |part: &&Part| matches!(part, Part::Some(_));
        self.parts.iter().filter(some).count()
    }

    /// The file of an entry; `None` if it is none.
    fn file(&mut self, entry: usize) -> Option<&mut PartFile> {
        let part = self.parts.get_mut(entry)?;
        if !matches!(part, Part::Some(_)) {
            let spool = &self.arrival.spool;
            let says = &self.manifest.manifest().entries[entry];
            let file = spool.new_part(self.arrival.bundle, entry, says)?;
            *part = Part::Some(Box::new(file));
        }
        match part {
            Part::Some(file) => Some(file),
            Part::Nothing | Part::Whole => None,
        }
    }

    /// If the entry is whole and right, nothing but that is remembered of it.
    fn put_away(&mut self, entry: usize) {
        if let Some(part) = self.parts.get_mut(entry)
            && let Part::Some(file) = part
            && file.kept.is_none()
            && file.found() == Some(file.digest)
        {
            *part = Part::Whole;
        }
    }

    /// Lets the SHA-256 go over zeros that did not travel, once all that did is here: for a moment, and not more than all
    /// bundles together may. `None`: that is done; else how long to wait before the next call.
    pub(crate) fn hash_zeros(&mut self) -> Result<Option<Duration>, IntakeError> {
        let spool = Arc::clone(&self.arrival.spool);
        let whole = |this: &Self| match this.parts.get(this.hashed) {
            Some(Part::Some(part)) => part.is_hashed(),
            Some(Part::Nothing) => {
                let kind = &this.manifest.manifest().entries[this.hashed].kind;
                !matches!(kind, EntryKind::File { size: 1.., .. })
            }
            Some(Part::Whole) => true,
            None => false,
        };
        while whole(self) {
            self.hashed += 1;
        }
        for index in self.hashed..self.parts.len() {
            let says = &self.manifest.manifest().entries[index];
            let begins = match &self.parts[index] {
                Part::Some(part) => part.waits_at_zeros(),
                Part::Nothing => says.begins_with_zeros(),
                Part::Whole => false,
            };
            if !begins {
                continue;
            }
            let Some(part) = self.file(index) else {
                continue;
            };
            let followed = zeros::follow(&spool, part)?;
            if followed == Followed::AtZeros {
                self.check_wanted()?;
                return Ok(Some(spool.content.zeros.wait()));
            }
            self.put_away(index);
        }
        Ok(None)
    }

    /// Whether its origin still wants it delivered, and nothing newer is here.
    fn check_wanted(&mut self) -> Result<(), IntakeError> {
        self.check_ended()?;
        if self.arrival.spool.is_older(&self.manifest)? {
            self.arrival.useless = true;
            return Err(IntakeError::Superseded);
        }
        Ok(())
    }

    fn check_ended(&mut self) -> Result<(), IntakeError> {
        let spool = &self.arrival.spool;
        let cancels = spool.ledger.cancels.load(Ordering::Acquire);
        if std::mem::replace(&mut self.cancels, cancels) == cancels {
            return Ok(());
        }
        match spool
            .ledger
            .ended(self.arrival.bundle, self.manifest.manifest().origin)
        {
            Some(reason) => Err(IntakeError::Ended(reason)),
            None => Ok(()),
        }
    }

    /// Takes one whole chunk (the last may be short), or all of a file that travels inline. Checks it before writing.
    pub(crate) fn accept_chunk(
        &mut self,
        entry: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), IntakeError> {
        self.check_ended()?;
        let wrong = self.wrong(entry, offset);
        if matches!(self.parts.get(entry), Some(Part::Whole)) {
            return Ok(());
        }
        let Some(part) = self.file(entry) else {
            return Err(wrong);
        };
        let end = offset.saturating_add(bytes.len() as u64);
        let piece = part.piece_at(offset);
        let Some((number, piece)) = piece.filter(|(_, piece)| piece.range.end == end) else {
            return Err(wrong);
        };
        if part.have[number] {
            return Ok(());
        }
        if bytes.len() as u64 > LEAF {
            for (at, leaf) in (offset..)
                .step_by(LEAF as usize)
                .zip(bytes.chunks(LEAF as usize))
            {
                self.accept_leaf((entry, offset), at, leaf, 0)?;
            }
            return Ok(());
        }
        // Nothing is made for what is wrong.
        if !part.matches(&piece, bytes) {
            return Err(wrong);
        }
        let file = part.open()?;
        let put = part.put(&file, (number, &piece), bytes);
        put.on("write", &part.at)?;
        self.arrival
            .spool
            .content
            .arrival_wrote(self.arrival.bundle, bytes.len() as u64);
        self.followed(entry)
    }

    /// Takes one leaf of the chunk of `entry` that begins at `offset` and is longer than one; `by` tells who brings it
    /// from others. Says whether that was the last one and the chunk is right; else there is more to come, or another
    /// brings it now.
    pub(crate) fn accept_leaf(
        &mut self,
        (entry, offset): (usize, u64),
        at: u64,
        bytes: &[u8],
        by: u64,
    ) -> Result<bool, IntakeError> {
        self.check_ended()?;
        let wrong = self.wrong(entry, offset);
        if matches!(self.parts.get(entry), Some(Part::Whole)) {
            return Ok(true);
        }
        let Some(part) = self.file(entry) else {
            return Err(wrong);
        };
        let Some((number, piece)) = part.piece_at(offset) else {
            return Err(wrong);
        };
        if part.have[number] {
            return Ok(true);
        }
        let file = part.open()?;
        let leaf = part.put_leaf(&file, (number, &piece), at, bytes, by);
        match leaf.on("write", &part.at)? {
            Leaf::Taken | Leaf::Stale => return Ok(false),
            Leaf::Wrong => return Err(wrong),
            Leaf::Whole => {}
        }
        let len = piece.range.end - piece.range.start;
        self.arrival
            .spool
            .content
            .arrival_wrote(self.arrival.bundle, len);
        self.followed(entry)?;
        Ok(true)
    }

    fn wrong(&self, entry: usize, offset: u64) -> IntakeError {
        let entries = &self.manifest.manifest().entries;
        let entry = entries.get(entry).unwrap_or(&entries[0]);
        IntakeError::WrongBytes {
            path: entry.path.clone(),
            index: offset / LEAF,
        }
    }

    /// A chunk of `entry` came.
    fn followed(&mut self, entry: usize) -> Result<(), IntakeError> {
        let spool = Arc::clone(&self.arrival.spool);
        if let Some(part) = self.file(entry) {
            zeros::follow(&spool, part)?;
        }
        self.put_away(entry);
        Ok(())
    }

    /// Checks length and SHA-256 of every entry, which is over all of it when [`Self::hash_zeros`] says so. On failure the bytes are in quarantine, nothing is visible.
    pub(crate) fn finish(mut self) -> Result<Verified, FinishError> {
        let mut files = Vec::with_capacity(self.parts.len());
        for index in 0..self.parts.len() {
            files.push(self.finish_entry(index)?);
        }
        Ok(Verified {
            arrival: self.arrival,
            manifest: self.manifest,
            files,
        })
    }

    fn finish_entry(&mut self, index: usize) -> Result<Option<Staged>, FinishError> {
        let (spool, bundle) = (Arc::clone(&self.arrival.spool), self.arrival.bundle);
        let whole = matches!(self.parts[index], Part::Whole);
        let manifest = self.manifest.clone();
        let entry = &manifest.manifest().entries[index];
        let Some(part) = self.file(index) else {
            let at = spool.staged_alone(bundle, index as u32);
            return Ok(spool.stage_link(&at, entry)?);
        };
        if !whole && part.have.contains(&false) {
            return Err(FinishError::Incomplete(entry.path.clone()));
        }
        let file = part.open()?;
        let found = if whole {
            part.digest
        } else {
            part.follow(&file, &mut |_, _| 0).on("read", &part.at)?;
            let found = part.found();
            found.ok_or_else(|| FinishError::Incomplete(entry.path.clone()))?
        };
        part.stretch(&file).on("stretch", &part.at)?;
        let meta = file.metadata().on("stat", &part.at)?;
        if found != part.digest || meta.len() != part.size {
            return Err(self.quarantine(index, found)?.into());
        }
        if let EntryKind::File { executable, .. } = entry.kind {
            spool
                .dress
                .put_on(&file, spool.dress.file_mode(executable))
                .on("set the mode of", &part.at)?;
            set_mtime(&file, entry.mtime).on("set the time of", &part.at)?;
        }
        let staged = Staged {
            at: part.at.clone(),
            ino: meta.ino(),
            kept: part.kept.clone(),
        };
        // A bundle of very many files is not kept twice.
        self.parts[index] = Part::Whole;
        Ok(Some(staged))
    }

    fn quarantine(&mut self, index: usize, found: Digest) -> Result<Quarantined, SpoolError> {
        let spool = Arc::clone(&self.arrival.spool);
        let path = self.manifest.manifest().entries[index].path.clone();
        let (bundle, origin) = (self.manifest.id(), self.manifest.manifest().origin);
        let Some(file) = self.file(index) else {
            return Err(SpoolError::Corrupted(
                "a directory cannot be quarantined".into(),
            ));
        };
        let why = format!(
            "bundle {bundle}\norigin {origin}\npath {path}\nsha256 announced {}\nsha256 found {found}\n",
            file.digest,
        );
        let at = spool.quarantine_file(&file.at, &why)?;
        // Every chunk was checked on arrival, so a file with chunks whose digest is wrong has a manifest at odds with
        // itself; an inline file was checked against the digest, so only our own disk can be at fault.
        let contradicts = file.has_chunks();
        Ok(Quarantined {
            path,
            at,
            manifest_contradicts_itself: contradicts,
        })
    }

    /// Gives up for now: what arrived stays in `partial/` for a later attempt; `why` shows in status.
    pub(crate) fn park(self, why: String) {
        let manifest = self.manifest.clone();
        let spool = Arc::clone(&self.arrival.spool);
        drop(self);
        spool.ledger.note_inbound(
            manifest.manifest(),
            manifest.id(),
            InboundState::Deferred,
            Some(why),
        );
    }
}

pub(in crate::spool) fn set_mtime(
    file: &File,
    (secs, nanos): (i64, u32),
) -> rustix::io::Result<()> {
    let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
    let mtime = time(secs, i64::from(nanos.min(999_999_999)));
    let times = rustix::fs::Timestamps {
        last_access: time(0, rustix::fs::UTIME_NOW),
        last_modification: mtime,
    };
    rustix::fs::futimens(file, &times)
}

/// A bundle all of whose bytes hashed to the digests in its manifest. The only way to a name in the inbox.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(in crate::spool) arrival: Arrival,
    pub(in crate::spool) manifest: VerifiedManifest,
    /// For each entry its staged file or link; `None` for a directory.
    pub(in crate::spool) files: Vec<Option<Staged>>,
}

impl From<SpoolError> for FinishError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Ended(reason) => Self::Ended(reason),
            error => Self::Disk(error),
        }
    }
}

/// A whole file that waits for its name.
#[derive(Debug)]
pub(in crate::spool) struct Staged {
    pub(in crate::spool) at: PathBuf,
    pub(in crate::spool) ino: u64,
    /// Open, in a bundle of few files.
    pub(in crate::spool) kept: Option<Arc<File>>,
}

impl Spool {
    /// A peer offers a bundle (its own, or one it holds).
    pub(crate) fn offered(
        self: &Arc<Self>,
        manifest: VerifiedManifest,
        from: PeerId,
    ) -> Result<Offered, SpoolError> {
        let bundle = manifest.id();
        if let Some(why) = self.unfit(&manifest) {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(Offered::Refused(why));
        }
        if self.journal.still_keeps().is_err() {
            return Ok(Offered::Deferred(self.content.sync_refusal()));
        }
        if self.renames_doubted(manifest.manifest())? {
            return Ok(Offered::Deferred(
                "it renames a file that is being checked after a restore".into(),
            ));
        }
        if self.follow_offer(&manifest)? {
            return Ok(Offered::AwaitingDurable);
        }
        if let Some(known) = self.known_offer(&manifest)? {
            return Ok(known);
        }
        // There is only forward, whether its end was said since or the disk is full: it was fetched before.
        if self.inbox.publishing.is_shown(bundle) {
            let Some(_arrival) = self.arrive(&manifest) else {
                return Ok(Offered::Busy);
            };
            if let Some(published) = self.published_meanwhile(bundle)? {
                return Ok(published);
            }
        }
        let note = |state, why| {
            self.ledger
                .note_inbound(manifest.manifest(), bundle, state, why);
        };
        let cancels = self.ledger.cancels.load(Ordering::Acquire);
        if let Some(reason) = self.ledger.ended(bundle, manifest.manifest().origin) {
            note(InboundState::Ended(reason), None);
            return Ok(Offered::Refused(reason.refusal().into()));
        }
        if let Some(why) = self.longer_than_disk(&manifest)? {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            note(InboundState::Refused, Some(why.clone()));
            return Ok(Offered::Refused(why));
        }
        if let Some(answer) = self.no_room_for(&manifest)? {
            if matches!(answer, Offered::Refused(_)) {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(answer);
        }
        let Some(arrival) = self.arrive(&manifest) else {
            return Ok(Offered::Busy);
        };
        if let Some(published) = self.published_meanwhile(bundle)? {
            return Ok(published);
        }
        self.journal.make_room();
        let origin = manifest.manifest().origin;
        tracing::debug!(bundle = %bundle.short(), from = %from.short(), "wanted");
        let keep = manifest.manifest().entries.len() <= KEPT_OPEN;
        let mut parts = Vec::with_capacity(manifest.manifest().entries.len());
        for (index, entry) in manifest.manifest().entries.iter().enumerate() {
            parts.push(self.part(bundle, index, entry, origin, keep)?);
        }
        let incoming = Incoming {
            arrival,
            cancels,
            manifest,
            parts,
            hashed: 0,
        };
        let ranges = (0..incoming.parts.len()).flat_map(|entry| incoming.missing(entry));
        let left: u64 = ranges.map(|range| range.end - range.start).sum();
        let here = incoming.manifest.manifest().total_size() - left;
        self.content.arrival_begins(bundle, origin, (here, left));
        Ok(Offered::Wanted(Box::new(incoming)))
    }

    /// Why an offer is not even looked at, by who made it and what it says itself.
    pub(in crate::spool) fn unfit(&self, manifest: &VerifiedManifest) -> Option<String> {
        let of = manifest.manifest();
        if let Some(why) = self.group.refuses_origin(of.origin) {
            return Some(why);
        }
        if !of.is_for(self.identity.id()) {
            return Some("this node is not among its recipients".into());
        }
        let lengths = of.entries.iter().map(|entry| entry.path.as_bytes().len());
        let longest = lengths.max().unwrap_or(0);
        (longest + CONFLICT_ROOM > PATH_MAX)
            .then(|| format!("a path of {longest} bytes is too long here"))
    }

    /// What to answer to an offer of a bundle that is here, on its way, or refused for good.
    fn known_offer(&self, manifest: &VerifiedManifest) -> Result<Option<Offered>, SpoolError> {
        let bundle = manifest.id();
        if self.ledger.arriving.lock().contains_key(&bundle) {
            return Ok(Some(Offered::Busy));
        }
        if let Some(receipt) = self.ledger.receipt_again(manifest)? {
            return Ok(Some(self.settled_answer(bundle, receipt)));
        }
        // What its origin contradicts itself in is never looked at again: each time would cost the transfer, and room in
        // quarantine.
        Ok(self.ledger.was_refused_for_good(manifest)?.then(|| {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            Offered::Refused(CONTRADICTS.into())
        }))
    }

    /// The bundle is taken in for as long as what this gives lives; `None`: another session was faster.
    fn arrive(self: &Arc<Self>, manifest: &VerifiedManifest) -> Option<Arrival> {
        match self.ledger.arriving.lock().entry(manifest.id()) {
            MapEntry::Occupied(_) => return None,
            MapEntry::Vacant(entry) => entry.insert(shown(manifest)),
        };
        Some(Arrival {
            spool: Arc::clone(self),
            bundle: manifest.id(),
            useless: false,
        })
    }

    /// The answer if a fetch before this one published the bundle and left, or showed it and failed then.
    fn published_meanwhile(&self, bundle: BundleId) -> Result<Option<Offered>, SpoolError> {
        if self.resume(bundle)? {
            return Ok(Some(Offered::AwaitingDurable));
        }
        let settled = self.ledger.settled(bundle)?;
        Ok(settled.map(|receipt| self.settled_answer(bundle, receipt)))
    }

    fn settled_answer(&self, bundle: BundleId, receipt: Receipt) -> Offered {
        if self.ledger.volatile.lock().contains(&bundle) {
            Offered::AwaitingDurable
        } else {
            Offered::Settled(receipt)
        }
    }

    fn new_part(&self, bundle: BundleId, index: usize, entry: &Entry) -> Option<PartFile> {
        let EntryKind::File {
            size,
            digest,
            chunks,
            ..
        } = &entry.kind
        else {
            return None;
        };
        let at = self.staged_alone(bundle, index as u32);
        Some(PartFile::new(at, *size, *digest, chunks))
    }

    /// What is here of an entry already.
    fn part(
        &self,
        bundle: BundleId,
        index: usize,
        entry: &Entry,
        origin: PeerId,
        keep: bool,
    ) -> Result<Part, SpoolError> {
        let Some(mut part) = self.new_part(bundle, index, entry) else {
            return Ok(Part::Nothing);
        };
        let found = part.at.exists();
        if !found && part.size > INLINE_MAX {
            self.reuse_content(part.digest, origin, &part.at)?;
        }
        if keep {
            part.kept = Some(part.open()?);
        }
        if found || keep || part.at.exists() {
            let file = part.open()?;
            part.recount(&file)?;
        }
        if part.size > INLINE_MAX && part.have.contains(&false) {
            self.take_from_older(&mut part, origin, &entry.path)?;
        }
        Ok(if !keep && part.found() == Some(part.digest) {
            Part::Whole
        } else if keep || part.have.contains(&true) {
            Part::Some(Box::new(part))
        } else {
            Part::Nothing
        })
    }

    /// Equal content that is here already is copied instead of fetched, but only if this origin once gave or got it:
    /// otherwise a digest alone would tell a stranger what we hold.
    fn reuse_content(
        &self,
        digest: Digest,
        origin: PeerId,
        to: &std::path::Path,
    ) -> Result<(), SpoolError> {
        let entitled =
            self.content.was_given_by(origin, digest)? || self.content.peer_has(origin, digest);
        if !entitled {
            return Ok(());
        }
        let path = self.layout.content(digest);
        match File::open(&path) {
            Ok(file) => Ok(durable::copy(&file, to).map(drop)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).on("open", &path),
        }
    }

    /// Moves a file to quarantine, with the reason beside it. Returns where it is.
    pub(in crate::spool) fn quarantine_file(
        &self,
        from: &(impl Spot + ?Sized),
        why: &str,
    ) -> Result<PathBuf, SpoolError> {
        let (name, at) = loop {
            let number = self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}-{number}", crate::spool::now_secs());
            let at = self.layout.quarantine().join(&name);
            if !at.exists() {
                break (name, at);
            }
        };
        durable::write_file(
            &self.layout.quarantine().join(format!("{name}.why")),
            why.as_bytes(),
        )?;
        durable::rename(from, &at)?;
        durable::sync_directory(&self.layout.quarantine())?;
        Ok(at)
    }
}

/// What status shows of a bundle that is arriving.
pub(in crate::spool) fn shown(manifest: &VerifiedManifest) -> InboundShown {
    let of = manifest.manifest();
    let path = of.title().unwrap_or_else(|| of.entries[0].path.clone());
    InboundShown {
        bundle: manifest.id(),
        origin: of.origin,
        path,
        digest: of.single_digest(),
        size: of.total_size(),
        state: InboundState::Incoming,
        error: None,
        at: 0,
    }
}
