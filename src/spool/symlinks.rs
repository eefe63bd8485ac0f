//! Symbolic links that travel, on both sides: read and checked in the outbox, made and checked again in the inbox.
//!
//! A link goes every way that a file goes, as one whose bytes are its target: the manifest has these ([`EntryKind::Link`]),
//! so there is nothing to hash, to hold as content or to fetch. Where rows need a digest it has [`link::digest`].
//!
//! # Invariants
//! 1. A link is sealed, and shown, only if it cannot lead out of its tree by the very name it has there
//!    ([`link::stays`]): checked when the outbox makes or renames it, at the seal, in every manifest, and for every name
//!    that the inbox gives it.
//! 2. No link leads to what somebody else sent, or will send ([`crate::spool::inbox`], `tops`).
//!
//! # Crash behaviour
//! That of a file; a link is never half written. The directory it is in is synced, and the link with it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, readlinkat, utimensat};
use rustix::io::Errno;

use super::beneath::{Spot, is_nothing};
use super::durable::{self, OnPath};
use super::{Spool, SpoolError};
use crate::bundle::{Entry, EntryKind, RelPath, link};
use crate::digest::{ChunkList, Hashed};
use crate::spool::inbox::intake::Staged;

/// What is known of a link's target where a file has its hashes.
pub(super) fn hashed(target: &[u8]) -> Hashed {
    Hashed {
        digest: link::digest(target),
        len: target.len() as u64,
        chunks: ChunkList::default(),
    }
}

/// What a manifest says of a link.
pub(super) fn link_entry(path: &RelPath, meta: &Metadata, target: Vec<u8>) -> Entry {
    Entry {
        path: path.clone(),
        mtime: crate::spool::outbox::seal::mtime_of(meta),
        kind: EntryKind::Link { target },
    }
}

/// Gives a link the time that it has at its origin.
pub(super) fn set_link_mtime(
    spot: &(impl Spot + ?Sized),
    (secs, nanos): (i64, u32),
) -> rustix::io::Result<()> {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(0, UTIME_NOW),
        last_modification: time(secs, i64::from(nanos.min(999_999_999))),
    };
    let (directory, name) = spot.spot();
    utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// The outbox.
impl Spool {
    /// The link that has this name and inode, opened as a mere reference, with its target; `None` if there is none that may
    /// be sent.
    pub(super) fn open_link(
        &self,
        path: &RelPath,
        ino: u64,
    ) -> Result<Option<(File, Vec<u8>)>, SpoolError> {
        let at = self.outbox.root.shown(path);
        let there = match self.outbox.root.open(path, OFlags::PATH) {
            Ok(there) => File::from(there),
            Err(error) if is_nothing(error) => return Ok(None),
            // It was moved during the walk.
            Err(Errno::XDEV | Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error).on("open", &at),
        };
        let meta = there.metadata().on("stat", &at)?;
        if !meta.is_symlink() || meta.ino() != ino {
            return Ok(None);
        }
        let target = readlinkat(&there, c"", Vec::new()).on("read", &at)?;
        let target = target.into_bytes();
        if !link::stays(path, &target) {
            tracing::debug!(%path, "a symbolic link that could lead out of its tree is not sent");
            return Ok(None);
        }
        Ok(Some((there, target)))
    }
}

/// The inbox.
impl Spool {
    /// Makes the link of an entry where it waits for its name.
    pub(super) fn stage_link(
        &self,
        at: &Path,
        entry: &Entry,
    ) -> Result<Option<Staged>, SpoolError> {
        let Some(target) = entry.target() else {
            return Ok(None);
        };
        durable::remove(at)?;
        rustix::fs::symlinkat(target, CWD, at).on("make a link at", at)?;
        if self.dress.uid.is_some() || self.dress.gid.is_some() {
            std::os::unix::fs::lchown(at, self.dress.uid, self.dress.gid)
                .on("set the owner of", at)?;
        }
        set_link_mtime(at, entry.mtime).on("set the time of", at)?;
        let ino = std::fs::symlink_metadata(at).on("stat", at)?.ino();
        Ok(Some(Staged {
            at: at.to_path_buf(),
            ino,
            kept: None,
        }))
    }

    /// A link may have `name`: checked again for the name that it gets here.
    pub(super) fn may_show(&self, entry: &Entry, name: &RelPath) -> Result<(), SpoolError> {
        match entry.target() {
            Some(target) if !link::stays(name, target) => {
                Err(io::Error::from_raw_os_error(libc::EPERM))
                    .on("make a link at", &self.inbox().shown(name))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether what the inbox shows at `from` may have the name `to`, if it is a link.
    pub(super) fn link_may_move(&self, from: &RelPath, to: &RelPath) -> Result<bool, SpoolError> {
        if !self
            .inbox()
            .look(from)?
            .is_some_and(|meta| meta.is_symlink())
        {
            return Ok(true);
        }
        let target = self.inbox().read_link(from);
        let target = target.on("read", &self.inbox().shown(from))?;
        Ok(link::stays(to, &target))
    }
}
