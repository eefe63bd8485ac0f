//! One entry of a bundle: a file, a directory or a symbolic link.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::link;
use super::path::RelPath;
use crate::digest::{ChunkList, Digest, Holds};

/// Most entries one bundle may hold.
pub(crate) const MAX_ENTRIES: usize = 100_000;

/// Seconds since 1970 and nanoseconds.
pub(crate) type Mtime = (i64, u32);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum EntryKind {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Whether the executable bit is set.
        executable: bool,
        /// SHA-256 of the bytes.
        digest: Digest,
        /// Its chunks, each with its hash, and runs of zeros; empty when the content travels inline.
        chunks: ChunkList,
    },
    /// A directory, listed so that empty ones travel too.
    Directory,
    /// A symbolic link, which has nothing to fetch: the signature is over its target.
    Link {
        /// Where it points; see [`link::stays`].
        target: Vec<u8>,
    },
}

/// One file, directory or symbolic link of a bundle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Path in the sender's outbox and, save for conflicts, in the receiver's inbox.
    pub path: RelPath,
    /// Modification time.
    pub mtime: Mtime,
    /// File or directory.
    pub kind: EntryKind,
}

impl Entry {
    /// Length in bytes; 0 for a directory.
    pub(crate) fn size(&self) -> u64 {
        match &self.kind {
            EntryKind::File { size, .. } => *size,
            EntryKind::Directory => 0,
            EntryKind::Link { target } => target.len() as u64,
        }
    }

    /// What a receiver has to ask for of it, in order; zeros do not travel.
    pub(crate) fn pieces(&self) -> Vec<Range<u64>> {
        match &self.kind {
            EntryKind::File { size, chunks, .. } => chunks.pieces(*size),
            EntryKind::Directory | EntryKind::Link { .. } => Vec::new(),
        }
    }

    /// Whether the first of its bytes are zeros that do not travel.
    pub(crate) fn begins_with_zeros(&self) -> bool {
        match &self.kind {
            EntryKind::File { size, chunks, .. } => {
                let first = chunks.stretches(*size).next();
                first.is_some_and(|first| first.holds == Holds::Zeros)
            }
            EntryKind::Directory | EntryKind::Link { .. } => false,
        }
    }

    /// Digest of a file's bytes.
    pub(crate) fn digest(&self) -> Option<Digest> {
        match &self.kind {
            EntryKind::File { digest, .. } => Some(*digest),
            EntryKind::Directory | EntryKind::Link { .. } => None,
        }
    }

    /// What tells two versions of a name apart: the digest of a file, or what stands for a link.
    pub(crate) fn mark(&self) -> Option<Digest> {
        match &self.kind {
            EntryKind::File { digest, .. } => Some(*digest),
            EntryKind::Link { target } => Some(link::digest(target)),
            EntryKind::Directory => None,
        }
    }

    /// Where it points, if it is a symbolic link.
    pub(crate) fn target(&self) -> Option<&[u8]> {
        match &self.kind {
            EntryKind::Link { target } => Some(target),
            EntryKind::File { .. } | EntryKind::Directory => None,
        }
    }
}
