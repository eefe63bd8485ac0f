//! `content/`: one link per digest to an inode with those bytes, for as long as somebody may need them.
//!
//! # Invariants
//! 1. `content/<digest>` shows bytes with that digest: the link is made under the inode's gate right after hashing, and
//!    before the first modification of that inode the link is removed or moved to a copy.
//! 2. It stays while a bundle needs it, since some recipient waits for that, or a visible name shows the inode.
//!
//! A reader checks after each read that the link still shows the inode it read from: the link moves before the first
//! byte changes, so what was read is from before. All decisions are taken under the spool's decision lock.

#[cfg(test)]
mod probe;
pub(in crate::spool) mod ration;
pub(in crate::spool) mod record;
pub(in crate::spool) mod room;
mod tables;
mod uses;
pub(in crate::spool) mod zeros;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Weak;

use bytes::Bytes;

use self::record::InodeRow;
use self::room::Room;
use self::tables::INODES;
use self::zeros::Zeros;
use super::decision::Guard;
use super::durable::{self, OnPath, Sync};
use super::journal::Batch;
use super::ledger::Ledger;
use super::tables::Stat;
use super::{GateGuard, Layout, ServeError, Spool, SpoolError};
use crate::bundle::{BundleId, DeliveryState, EntryKind, Manifest, RelPath};
use crate::digest::Digest;
use crate::disk::keep_access_time;
use crate::journal::Journal;
use crate::peer::PeerId;

/// Inode of what `path` shows, or `None`.
pub(super) fn inode_at(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|meta| meta.ino())
}

/// What is kept by digest: hard links, who needs them, and the room for them.
pub(crate) struct Content {
    journal: Arc<Journal>,
    pub(in crate::spool) ledger: Arc<Ledger>,
    layout: Layout,
    pub(in crate::spool) room: Room,
    pub(in crate::spool) zeros: Zeros,
}

impl Content {
    pub(in crate::spool) fn new(
        journal: &Arc<Journal>,
        layout: &Layout,
        ledger: &Arc<Ledger>,
        room: Room,
    ) -> Self {
        Self {
            journal: Arc::clone(journal),
            ledger: Arc::clone(ledger),
            layout: layout.clone(),
            room,
            zeros: Zeros::default(),
        }
    }

    /// Whether it is here.
    pub(in crate::spool) fn has(&self, digest: Digest) -> bool {
        inode_at(&self.layout.content(digest)).is_some()
    }

    /// Whether it is here, and no visible name shows it.
    pub(in crate::spool) fn is_unseen(&self, digest: Digest) -> bool {
        let meta = fs::symlink_metadata(self.layout.content(digest));
        meta.is_ok_and(|meta| meta.nlink() == 1)
    }

    /// Whether the content of all files of a bundle is here.
    pub(in crate::spool) fn has_all(&self, of: &Manifest) -> bool {
        of.digests().all(|digest| self.has(digest))
    }

    /// The digest of the inode's bytes, if they are sealed and this inode is the one that `content/` shows.
    pub(in crate::spool) fn linked(&self, ino: u64) -> Option<Digest> {
        let row = self.record_of(ino).ok().flatten()?;
        (inode_at(&self.layout.content(row.digest)) == Some(ino)).then_some(row.digest)
    }

    /// Gives `file`, whose bytes have this digest, a link in `content/`, unless another inode holds them already.
    /// Call with the decision lock held. `false`: the file has no name any more.
    pub(in crate::spool) fn hold(
        &self,
        file: &File,
        digest: Digest,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        let link = self.layout.content(digest);
        if inode_at(&link).is_some() {
            return Ok(true);
        }
        match durable::link_open_file(file, &link) {
            Ok(()) => {}
            Err(error) if error.cause().kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if let Some(directory) = link.parent() {
            batch.sync(Sync::Directory(directory.to_path_buf()));
        }
        Ok(true)
    }

    /// Removes the link when no bundle needs it and no visible name shows its inode; counts it as kept for others when
    /// one does. Call with the decision lock held.
    pub(in crate::spool) fn free(&self, digest: Digest) -> Result<(), SpoolError> {
        let link = self.layout.content(digest);
        match fs::symlink_metadata(&link) {
            Ok(meta) if meta.nlink() == 1 => {
                if self.is_needed(digest)? {
                    self.room.count(digest, meta.len());
                    return Ok(());
                }
                durable::remove(&link)?;
                self.room.uncount(digest, meta.len());
                let mut batch = Batch::default();
                self.forget_record(meta.ino(), &mut batch);
                Ok(self.journal.submit(batch)?)
            }
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e).on("stat", &link),
        }
    }

    /// The last visible name of this inode is gone, as `batch` says, which is submitted. Call with the decision lock
    /// held.
    pub(in crate::spool) fn last_name_gone(
        &self,
        ino: u64,
        mut batch: Batch,
    ) -> Result<(), SpoolError> {
        let linked = self.linked(ino);
        if linked.is_none() {
            self.forget_record(ino, &mut batch);
        }
        self.journal.submit(batch)?;
        linked.map_or(Ok(()), |digest| self.free(digest))
    }
}

/// What only one at a time may decide.
impl Guard<'_, Content> {
    /// Undoes [`Content::hold`] for this inode, which is not recorded. If others count on the link by now it is recorded
    /// instead, so that nobody writes through it; only until the next start, since what failed may not be durable.
    pub(in crate::spool) fn unhold(&self, digest: Digest, ino: u64) -> Result<(), SpoolError> {
        let link = self.layout.content(digest);
        let Ok(meta) = fs::symlink_metadata(&link) else {
            return Ok(());
        };
        if meta.ino() != ino {
            return Ok(());
        }
        if !self.is_needed(digest)? {
            durable::remove(&link)?;
            return Ok(());
        }
        let mut batch = Batch::default();
        self.record_doubted(digest, &Stat::of(&meta), &mut batch)?;
        Ok(self.journal.submit(batch)?)
    }

    /// The inode is about to lose these bytes: it does not stand for them any more. `false`: somebody needs them, and
    /// [`Spool::copy_out`] comes first. The lock is kept until the batch is submitted.
    pub(in crate::spool) fn before_change(
        &self,
        digest: Digest,
        ino: u64,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        let link = self.layout.content(digest);
        if inode_at(&link) == Some(ino) && self.is_needed(digest)? {
            return Ok(false);
        }
        self.unlink(digest, ino, batch)?;
        Ok(true)
    }

    /// The inode turned out not to have these bytes: it does not stand for them.
    pub(in crate::spool) fn disown(&self, digest: Digest, ino: u64) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        self.unlink(digest, ino, &mut batch)?;
        Ok(self.journal.submit(batch)?)
    }

    fn unlink(&self, digest: Digest, ino: u64, batch: &mut Batch) -> Result<(), SpoolError> {
        let link = self.layout.content(digest);
        if let Ok(meta) = fs::symlink_metadata(&link)
            && meta.ino() == ino
        {
            durable::remove(&link)?;
            self.room.uncount(digest, meta.len());
        }
        self.forget_record(ino, batch);
        Ok(())
    }

    /// Puts a copy of the inode's bytes in its place, if they are still needed. `false`: they are not. The
    /// directory of the link is to be synced afterwards.
    fn put_copy(&self, copy: &Path, digest: Digest, ino: u64) -> Result<bool, SpoolError> {
        let link = self.layout.content(digest);
        if inode_at(&link) != Some(ino) || !self.is_needed(digest)? {
            return Ok(false);
        }
        let uses = self.uses_of(digest)?;
        durable::rename(copy, &link)?;
        let meta = fs::symlink_metadata(&link).on("stat", &link)?;
        let mut batch = Batch::default();
        let stat = Stat::of(&meta);
        batch.insert(INODES, &stat.ino, &InodeRow { digest, stat, uses });
        self.journal.submit(batch)?;
        self.room.count(digest, meta.len());
        Ok(true)
    }
}

impl Spool {
    /// Opens content for `peer`, which must be a recipient of `bundle`; `entry` is the index in its manifest.
    pub(crate) fn open_content(
        &self,
        bundle: BundleId,
        entry: usize,
        peer: PeerId,
    ) -> Result<ContentReader, ServeError> {
        let state = self.ledger.delivery(bundle, peer)?;
        // Who is done needs nothing more, and of what is final for all nobody knows when it ends. What is superseded may
        // be under way.
        let over = |state: DeliveryState| state.is_final() && state != DeliveryState::Superseded;
        if state.is_none_or(over) {
            return Err(ServeError::NotHeld);
        }
        let end = self.ledger.deadline_of(bundle)?;
        let manifest = self
            .ledger
            .shared_manifest(bundle)?
            .ok_or(ServeError::NotHeld)?;
        match manifest
            .manifest()
            .entries
            .get(entry)
            .map(|entry| &entry.kind)
        {
            Some(EntryKind::File { size, digest, .. }) => {
                self.open_until(self.layout.content(*digest), *size, end)
            }
            Some(EntryKind::Directory | EntryKind::Link { .. }) | None => Err(ServeError::NotHeld),
        }
    }

    /// The one way out for content: nothing is given from `end` on, also to who began before.
    pub(super) fn open_until(
        &self,
        path: PathBuf,
        len: u64,
        end: Option<u64>,
    ) -> Result<ContentReader, ServeError> {
        let spool = self.me.clone();
        let until = Until { spool, end };
        if until.is_over() {
            return Err(ServeError::NotHeld);
        }
        Ok(ContentReader::new(path, len, until))
    }

    /// Saves the sealed bytes of the inode to a content inode of their own, then lets the modification go on. Blocks.
    pub(crate) fn copy_out(
        &self,
        gate: &mut GateGuard<'_>,
        file: &File,
        path: &RelPath,
    ) -> Result<(), SpoolError> {
        // Between the copy and the modification somebody may begin to need the bytes: then once more.
        while let Some(digest) = gate.state().sealed {
            self.copy_sealed(gate, file, digest)?;
            if self.outbox.before_modify(gate, path)? {
                return Ok(());
            }
        }
        self.outbox.before_modify(gate, path).map(drop)
    }

    fn copy_sealed(
        &self,
        gate: &GateGuard<'_>,
        file: &File,
        digest: Digest,
    ) -> Result<(), SpoolError> {
        let link = self.layout.content(digest);
        let len = file.metadata().on("stat", &link)?.len();
        self.custodian.make_hold(digest, len)?;
        self.room_for(len)?;
        let temp = self
            .layout
            .partial()
            .join(format!("copy-out.{}", gate.gate().ino()));
        // The gate keeps the bytes as they are; the decision lock is not held while copying.
        let readable = reopen(file)?;
        let copied = durable::copy(&readable, &temp).and_then(|copy| durable::sync(&copy, &temp));
        if let Err(error) = copied {
            durable::remove(&temp)?;
            return Err(error.into());
        }
        let decide = self.decide();
        if decide.content.put_copy(&temp, digest, gate.gate().ino())? {
            drop(decide);
            if let Some(directory) = link.parent() {
                durable::sync_directory(directory)?;
            }
        } else {
            durable::remove(&temp)?;
        }
        Ok(())
    }
}

/// A descriptor of the same file that may be read, whatever `file` was opened for.
fn reopen(file: &File) -> Result<File, SpoolError> {
    use std::os::fd::AsRawFd;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    File::open(&path).on("open", &path)
}

/// Until when content may be read for others.
#[derive(Debug)]
struct Until {
    spool: Weak<Spool>,
    end: Option<u64>,
}

impl Until {
    /// Whether that time is over.
    fn is_over(&self) -> bool {
        let spool = self.spool.upgrade();
        spool.is_none_or(|spool| self.end.is_some_and(|end| spool.ledger.is_past(end)))
    }
}

/// Reads content for a peer that may have it. Cheap to make; holds no lock.
#[derive(Debug)]
pub(crate) struct ContentReader {
    path: PathBuf,
    file: Option<(File, u64)>,
    len: u64,
    until: Until,
}

/// How often a read starts again because the link moved under it. It moves at most once per version.
const READ_ATTEMPTS: usize = 8;

impl ContentReader {
    fn new(path: PathBuf, len: u64, until: Until) -> Self {
        Self {
            path,
            file: None,
            len,
            until,
        }
    }

    /// Length of the content in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Reads exactly `len` bytes at `offset`; never bytes of a later version of the file, and none when the lifetime of
    /// the bundle is over. Blocks on local disk.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, ServeError> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(ServeError::Range);
        }
        if self.until.is_over() {
            return Err(ServeError::NotHeld);
        }
        let mut buffer = vec![0; len];
        for _ in 0..READ_ATTEMPTS {
            let (file, ino) = match self.file.take() {
                Some(open) => open,
                None => {
                    let file = match File::open(&self.path) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {
                            return Err(ServeError::NotHeld);
                        }
                        opened => opened.on("open", &self.path)?,
                    };
                    keep_access_time(&file);
                    let ino = file.metadata().on("stat", &self.path)?.ino();
                    (file, ino)
                }
            };
            let read = file.read_exact_at(&mut buffer, offset);
            if inode_at(&self.path) == Some(ino) {
                read.on("read", &self.path)?;
                self.file = Some((file, ino));
                return Ok(buffer.into());
            }
        }
        Err(ServeError::NotHeld)
    }
}
