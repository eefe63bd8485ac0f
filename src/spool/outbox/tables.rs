//! The tables of the outbox, and their rows. Nobody else names the tables.

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, RelPath};
use crate::digest::Digest;
use crate::journal::Table;
use crate::spool::content::record::Stat;
use crate::spool::outbox::moved_on::{Left, LeftKey};
use crate::spool::outbox::send::SentRow;

/// Outbox path → [`OutName`]: the version last sealed under each name that is still there.
pub(super) const OUT_NAMES: Table<RelPath, OutName> = Table::new(7);
/// Outbox path → bundle id: the newest bundle of ours with this path, until it is complete, where no row of [`OUT_NAMES`]
/// says so: the name is gone, or shows what was sealed under another, or was never there.
pub(super) const LATEST: Table<RelPath, BundleId> = Table::new(22);
/// Backing inode → [`Mark`]: what is open, closed but not sealed, or torn in the outbox.
pub(super) const MARKS: Table<u64, Mark> = Table::new(9);
/// Outbox path → backing inode: names of inodes that have more than one.
pub(super) const LINKS: Table<RelPath, u64> = Table::new(24);
/// Backing inode, outbox path → (): the same by inode.
pub(super) const NAMES_OF: Table<(u64, RelPath), ()> = Table::new(25);
/// Versions of a name of the outbox whose files moved on to other names.
pub(super) const LEFT: Table<LeftKey, Left> = Table::new(26);
/// Backing inode, outbox path → [`OutName`]: at a start, rows of [`OUT_NAMES`] whose name does not show their inode.
pub(super) const DISPLACED: Table<(u64, RelPath), OutName> = Table::new(27);
/// Number → [`TreeRow`]: directories of the outbox that are to be sent as one bundle and are not sealed yet.
pub(super) const TREES: Table<u64, TreeRow> = Table::new(30);
/// The user's own name of a bundle → `SentRow`.
pub(super) const SENT_IDS: Table<String, SentRow> = Table::new(37);

/// What was last sealed under an outbox name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct OutName {
    pub(in crate::spool) stat: Stat,
    pub(in crate::spool) digest: Digest,
    pub(in crate::spool) bundle: BundleId,
    /// (epoch, seq) of the bundle.
    pub(in crate::spool) order: (u64, u64),
    /// The name under which the bundle announces it, when the file was renamed since; its own if it came back.
    pub(in crate::spool) formerly: Option<RelPath>,
}

impl OutName {
    /// The row of the same file under another name. That it was away is kept also when it is back: another file may have
    /// been announced there meanwhile, and who consumed this one is not to see it again.
    pub(in crate::spool) fn moved(mut self, from: &RelPath) -> Self {
        self.formerly.get_or_insert_with(|| from.clone());
        self
    }
}

/// A directory that is to be sent as one bundle. Written before the rename that makes it one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct TreeRow {
    /// Where it was before its last rename.
    pub(in crate::spool) from: RelPath,
    /// Where it is, if that rename was done.
    pub(in crate::spool) root: RelPath,
    /// Its own inode.
    pub(in crate::spool) ino: u64,
    /// It was to be sent before its last rename already.
    pub(in crate::spool) begun: bool,
    /// What was in it then.
    pub(in crate::spool) files: Vec<TreeFile>,
    /// Directories that were in it, relative to it.
    pub(in crate::spool) directories: Vec<RelPath>,
}

/// A file that was in it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct TreeFile {
    pub(in crate::spool) ino: u64,
    /// What it was called then ([`name_in_tree`]): a copy of the state has that, and other inodes.
    pub(in crate::spool) name: u64,
}

/// Stands for a path below a tree's root. Two that meet have one file more in a bundle that was restored, at worst.
pub(in crate::spool) fn name_in_tree(path: &[u8]) -> u64 {
    let hash = blake3::hash(path);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Where an outbox inode stands between its first modification and its seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct Mark {
    pub(in crate::spool) kind: MarkKind,
    pub(in crate::spool) path: RelPath,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MarkKind {
    Open,
    Closed,
    Torn,
    /// Found at a start: incomplete unless its digest is the recorded one, which is still to be found out.
    Doubted,
}
