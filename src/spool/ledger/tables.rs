//! The rows of the ledger. Nobody else reads or writes them: others call methods of [`super::Ledger`]. A change here is a
//! change of the state's format.

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, Cancel, DeliveryState, SignedManifest};
use crate::journal::Table;
use crate::peer::PeerId;
use crate::spool::group::route::HeldRow;
use crate::spool::keys::{Ends, Newest};
use crate::spool::ledger::inbound::{Inbound, InboundShown};
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::settled::{Block, BlockKey};

/// Bundle id → [`BundleRow`]: bundles of ours.
pub(super) const BUNDLES: Table<BundleId, BundleRow> = Table::new(2);
/// Descending order → bundle id: bundles of ours, newest first.
pub(super) const OUT_ORDER: Table<Newest, BundleId> = Table::new(3);
/// Bundle id, peer → `DeliveryState`: one row for each recipient of a bundle of ours. Without any it is owed to those whom the
/// row of the bundle names ([`BundleHead::to`]).
pub(super) const DELIVERIES: Table<(BundleId, PeerId), DeliveryState> = Table::new(5);
/// Peer, [`Rank`] → bundle id, and its [`BundleHead::ends`] if it is ours: what we owe the peer.
pub(super) const PENDING: Table<(PeerId, Rank), (BundleId, u64)> = Table::new(4);
/// Ascending order → bundle id: bundles of ours sealed when there was no other member.
pub(super) const ORPHANS: Table<u64, BundleId> = Table::new(20);
/// Bundle id → `HeldRow`: bundles of ours that go to nobody yet.
pub(super) const HELD: Table<BundleId, HeldRow> = Table::new(35);
/// Bundle id → [`Inbound`]: bundles of others, as long as status shows them.
pub(super) const INBOUND: Table<BundleId, Inbound> = Table::new(16);
/// Origin, epoch, incarnation, number of a block → `Block`: bundles that were settled, and are no longer in [`INBOUND`].
pub(super) const SETTLED_BITS: Table<BlockKey, Block> = Table::new(61);
/// Origin, epoch, incarnation, number of a block → `Block`: bundles that were refused for good, and are no longer shown.
pub(super) const REFUSED_BITS: Table<BlockKey, Block> = Table::new(38);
/// Bundle id → its recipients: bundles settled here that are not for everybody.
pub(super) const SCOPED: Table<BundleId, Vec<PeerId>> = Table::new(46);
/// Descending order → [`InboundShown`]: bundles of others as status shows them, newest first.
pub(super) const IN_ORDER: Table<Newest, InboundShown> = Table::new(15);
/// Bundle id, origin → `Cancel`: bundles that their origin has ended, ours and those of others that are for us.
pub(super) const CANCELS: Table<(BundleId, PeerId), Cancel> = Table::new(32);
/// Peer, bundle id, origin → (): whom we have not told of a cancel yet, as far as we know.
pub(super) const CANCELS_OWED: Table<(PeerId, BundleId, PeerId), ()> = Table::new(33);
/// Bundle id, or key of a cancel → our age in milliseconds at which it ends: bundles with long manifests, those that were
/// owed again after they were complete, and what is still remembered. When others end stands in [`BundleHead::ends`] and
/// [`KeptHead::ends`].
pub(super) const DEADLINES: Table<Ends, u64> = Table::new(36);
/// Bundle id → [`KeptRow`]: bundles of others that are, or may have to be, given to further recipients.
pub(super) const KEPT: Table<BundleId, KeptRow> = Table::new(41);

/// A bundle of another that is kept for further recipients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct KeptRow {
    /// First, so that the manifest need not be decoded with it.
    pub(super) head: KeptHead,
    pub(super) signed: SignedManifest,
}

/// What is known of a kept bundle besides its manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct KeptHead {
    /// Place in `PENDING`, after all bundles of ours.
    pub(super) order: u64,
    /// Our age in milliseconds from which on it is given to nobody.
    pub(super) ends: u64,
}

/// A bundle of ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct BundleRow {
    /// First, so that the manifest need not be decoded with it.
    pub(super) head: BundleHead,
    pub(super) signed: SignedManifest,
}

/// Bytes of a manifest up to which its bundle is small: its row is read often, for what stands in it beside the manifest.
pub(super) const SMALL: usize = 4096;

/// What is known of a bundle of ours besides its manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct BundleHead {
    /// Place among all bundles of ours.
    pub(super) order: u64,
    /// Seconds since 1970.
    pub(super) sealed_at: u64,
    /// Our age in milliseconds at which it ends.
    pub(super) ends: u64,
    /// The bundle with the same content before it.
    pub(super) same_content: Option<BundleId>,
    /// Whom it was for when it was sealed, unless these are many, or its manifest is long: then all have rows in
    /// [`DELIVERIES`] at once.
    pub(super) to: Vec<PeerId>,
}

impl BundleRow {
    /// Its place in the queue of each recipient.
    pub(super) fn rank(&self) -> Rank {
        Rank::of(self.signed.priority(), self.head.order)
    }
}
