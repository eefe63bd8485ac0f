//! The rows of the inbox that its parts share. A table that one file owns stands there. A change here is a change of the
//! state's format.

use serde::{Deserialize, Serialize};

use super::taken::Which;
use crate::bundle::{BundleId, RelPath, SignedManifest};
use crate::digest::Digest;
use crate::journal::Table;
use crate::peer::PeerId;

/// Inbox path → (origin, its path): whose name it is, also while nothing is there.
pub(super) const OWNED: Table<RelPath, (PeerId, RelPath)> = Table::new(21);
/// Inbox path → [`InName`]: what each name in the inbox shows.
pub(super) const IN_NAMES: Table<RelPath, InName> = Table::new(10);
/// Origin, its path → inbox path: the name chosen for it, once.
pub(super) const CHOSEN: Table<(PeerId, RelPath), RelPath> = Table::new(11);
/// Origin, its path → [`Version`]: the newest version published here.
pub(super) const VERSIONS: Table<(PeerId, RelPath), Version> = Table::new(12);
/// Bundle id → [`Intent`]: bundles whose names are being given right now.
pub(super) const INTENTS: Table<BundleId, Intent> = Table::new(14);
/// Bundle id → [`Renaming`]: names of the inbox that are being changed right now, as their origin changed them.
pub(super) const RENAMES: Table<BundleId, Renaming> = Table::new(40);
/// Inbox path → (origin, its path): a name that a file is to get when what stands in its way is gone.
pub(super) const PROVISIONAL: Table<RelPath, (PeerId, RelPath)> = Table::new(65);
/// Name in the inbox → inode of a file that is being removed.
pub(super) const LEAVING: Table<RelPath, u64> = Table::new(72);

/// What an inbox name shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct InName {
    pub(in crate::spool) origin: PeerId,
    /// Its path at the origin.
    pub(in crate::spool) path: RelPath,
    pub(in crate::spool) bundle: BundleId,
    /// Which file of it.
    pub(in crate::spool) which: Which,
    pub(in crate::spool) digest: Digest,
    pub(in crate::spool) size: u64,
    pub(in crate::spool) ino: u64,
    /// Its origin has moved the file, which has its new name here too, or a newer version of it; this one waits for what its
    /// origin has there now.
    pub(in crate::spool) left: bool,
}

/// The newest version of a path of an origin that was published here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct Version {
    pub(in crate::spool) order: (u64, u64),
}

/// A publish that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct Intent {
    pub(in crate::spool) signed: SignedManifest,
    /// For each entry that gets a name: its index, the name, and the inode that gets it (0 for a directory).
    pub(in crate::spool) names: Vec<(u32, RelPath, u64)>,
    /// In how many rows beside this one the names are instead, where there are many.
    pub(in crate::spool) slices: u64,
}

/// A file of the inbox is getting another name, because its origin renamed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct Renaming {
    /// What announces the new name.
    pub(in crate::spool) signed: SignedManifest,
    /// The old name in the inbox.
    pub(in crate::spool) from: RelPath,
    /// The new one.
    pub(in crate::spool) to: RelPath,
    /// The inode.
    pub(in crate::spool) ino: u64,
    /// How many directories above the old name go too, if they are empty.
    pub(in crate::spool) emptied: u16,
}
