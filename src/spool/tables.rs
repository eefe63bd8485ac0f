//! The rows of the journal that several files share: tables, keys and values. A table that one file owns stands there, and
//! its number is taken all the same (search for `Table::new(`). A change here is a change of the state's format.

use serde::{Deserialize, Serialize};

use super::journal::Table;
use super::keys::Newest;
use crate::bundle::{BundleId, DeliveryState, RelPath, SignedManifest};
use crate::digest::Digest;
use crate::peer::PeerId;
pub(super) use crate::spool::content::record::Stat;
use crate::spool::group::route::HeldRow;
use crate::spool::inbox::taken::Which;
use crate::spool::ledger::rank::Rank;
use crate::spool::outbox::send::SentRow;

/// Inbox path → (origin, its path): whose name it is, also while nothing is there.
pub(super) const OWNED: Table<RelPath, (PeerId, RelPath)> = Table::new(21);
/// Outbox path → bundle id: the newest bundle of ours with this path, also when the name is gone, until it is complete.
pub(super) const LATEST: Table<RelPath, BundleId> = Table::new(22);
/// The number of the tables of one row, which are told apart by their names.
pub(super) const META: u8 = 1;
/// Bundle id → [`BundleRow`]: bundles of ours.
pub(super) const BUNDLES: Table<BundleId, BundleRow> = Table::new(2);
/// Descending order → bundle id: bundles of ours, newest first.
pub(super) const OUT_ORDER: Table<Newest, BundleId> = Table::new(3);
/// Peer, [`Rank`] → bundle id: what we owe the peer.
pub(super) const PENDING: Table<(PeerId, Rank), BundleId> = Table::new(4);
/// Bundle id, peer → `DeliveryState`: one row for each recipient of a bundle of ours.
pub(super) const DELIVERIES: Table<(BundleId, PeerId), DeliveryState> = Table::new(5);
/// Outbox path → [`OutName`]: the version last sealed under each name that is still there.
pub(super) const OUT_NAMES: Table<RelPath, OutName> = Table::new(7);
/// Backing inode, outbox path → [`OutName`]: at a start, rows of [`OUT_NAMES`] whose name does not show their inode.
pub(super) const DISPLACED: Table<(u64, RelPath), OutName> = Table::new(27);
/// Backing inode → [`Mark`]: what is open, closed but not sealed, or torn in the outbox.
pub(super) const MARKS: Table<u64, Mark> = Table::new(9);
/// Outbox path → backing inode: names of inodes that have more than one.
pub(super) const LINKS: Table<RelPath, u64> = Table::new(24);
/// Backing inode, outbox path → (): the same by inode.
pub(super) const NAMES_OF: Table<(u64, RelPath), ()> = Table::new(25);
/// Inbox path → [`InName`]: what each name in the inbox shows.
pub(super) const IN_NAMES: Table<RelPath, InName> = Table::new(10);
/// Origin, its path → inbox path: the name chosen for it, once.
pub(super) const CHOSEN: Table<(PeerId, RelPath), RelPath> = Table::new(11);
/// Origin, its path → [`Version`]: the newest version published here.
pub(super) const VERSIONS: Table<(PeerId, RelPath), Version> = Table::new(12);
/// Bundle id → [`Intent`]: bundles whose names are being given right now.
pub(super) const INTENTS: Table<BundleId, Intent> = Table::new(14);
/// Ascending order → bundle id: bundles of ours sealed when there was no other member.
pub(super) const ORPHANS: Table<u64, BundleId> = Table::new(20);

/// Number → [`TreeRow`]: directories of the outbox that are to be sent as one bundle and are not sealed yet.
pub(super) const TREES: Table<u64, TreeRow> = Table::new(30);

/// Bundle id → `HeldRow`: bundles of ours that go to nobody yet.
pub(super) const HELD: Table<BundleId, HeldRow> = Table::new(35);
/// The user's own name of a bundle → `SentRow`.
pub(super) const SENT_IDS: Table<String, SentRow> = Table::new(37);

/// Bundle id → [`Renaming`]: names of the inbox that are being changed right now, as their origin changed them.
pub(super) const RENAMES: Table<BundleId, Renaming> = Table::new(40);

/// Inbox path → (origin, its path): a name that a file is to get when what stands in its way is gone.
pub(super) const PROVISIONAL: Table<RelPath, (PeerId, RelPath)> = Table::new(65);
/// Name in the inbox → inode of a file that is being removed.
pub(super) const LEAVING: Table<RelPath, u64> = Table::new(72);

/// Epoch of the last start: u64.
pub(super) const META_EPOCH: Table<(), u64> = Table::named(META, "epoch");

/// A bundle of ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BundleRow {
    pub(super) signed: SignedManifest,
    /// Place among all bundles of ours.
    pub(super) order: u64,
    /// Seconds since 1970.
    pub(super) sealed_at: u64,
    /// The bundle with the same content before it.
    pub(super) same_content: Option<BundleId>,
}

impl BundleRow {
    /// Its place in the queue of each recipient.
    pub(super) fn rank(&self) -> Rank {
        Rank::of(self.signed.priority(), self.order)
    }
}

/// What was last sealed under an outbox name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutName {
    pub(super) stat: Stat,
    pub(super) digest: Digest,
    pub(super) bundle: BundleId,
    /// (epoch, seq) of the bundle.
    pub(super) order: (u64, u64),
    /// The name under which the bundle announces it, when the file was renamed since; its own if it came back.
    pub(super) formerly: Option<RelPath>,
}

impl OutName {
    /// The row of the same file under another name. That it was away is kept also when it is back: another file may have
    /// been announced there meanwhile, and who consumed this one is not to see it again.
    pub(super) fn moved(mut self, from: &RelPath) -> Self {
        self.formerly.get_or_insert_with(|| from.clone());
        self
    }
}

/// A directory that is to be sent as one bundle. Written before the rename that makes it one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeRow {
    /// Where it was before its last rename.
    pub(super) from: RelPath,
    /// Where it is, if that rename was done.
    pub(super) root: RelPath,
    /// Its own inode.
    pub(super) ino: u64,
    /// It was to be sent before its last rename already.
    pub(super) begun: bool,
    /// What was in it then.
    pub(super) files: Vec<TreeFile>,
    /// Directories that were in it, relative to it.
    pub(super) directories: Vec<RelPath>,
}

/// A file that was in it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeFile {
    pub(super) ino: u64,
    /// What it was called then ([`name_in_tree`]): a copy of the state has that, and other inodes.
    pub(super) name: u64,
}

/// Stands for a path below a tree's root. Two that meet have one file more in a bundle that was restored, at worst.
pub(super) fn name_in_tree(path: &[u8]) -> u64 {
    let hash = blake3::hash(path);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Where an outbox inode stands between its first modification and its seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) kind: MarkKind,
    pub(super) path: RelPath,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MarkKind {
    Open,
    Closed,
    Torn,
    /// Found at a start: incomplete unless its digest is the recorded one, which is still to be found out.
    Doubted,
}

/// What an inbox name shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InName {
    pub(super) origin: PeerId,
    /// Its path at the origin.
    pub(super) path: RelPath,
    pub(super) bundle: BundleId,
    /// Which file of it.
    pub(super) which: Which,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) ino: u64,
    /// Its origin has moved the file, which has its new name here too, or a newer version of it; this one waits for what its
    /// origin has there now.
    pub(super) left: bool,
}

/// The newest version of a path of an origin that was published here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) order: (u64, u64),
}

/// A publish that has begun.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Intent {
    pub(super) signed: SignedManifest,
    /// For each entry that gets a name: its index, the name, and the inode that gets it (0 for a directory).
    pub(super) names: Vec<(u32, RelPath, u64)>,
}

/// A file of the inbox is getting another name, because its origin renamed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Renaming {
    /// What announces the new name.
    pub(super) signed: SignedManifest,
    /// The old name in the inbox.
    pub(super) from: RelPath,
    /// The new one.
    pub(super) to: RelPath,
    /// The inode.
    pub(super) ino: u64,
    /// How many directories above the old name go too, if they are empty.
    pub(super) emptied: u16,
}
