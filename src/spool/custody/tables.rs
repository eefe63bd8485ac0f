//! The rows of custody. Nobody else reads or writes them. A change here is a change of the state's format.

use crate::bundle::{BundleId, Receipt};
use crate::delivery::custody::Stage;
use crate::journal::Table;
use crate::peer::PeerId;

/// Bundle id → (origin, `Stage`): of those kept that their origin may still close by itself.
pub(super) const WATCHED: Table<BundleId, (PeerId, Stage)> = Table::new(42);
/// Origin, bundle id → `Stage`: of those kept that we owe to others, or whose receipts wait for the origin.
pub(super) const CARRIED: Table<(PeerId, BundleId), Stage> = Table::new(43);
/// Origin, bundle id, recipient → `Receipt`: receipts of others to be handed to the origin.
pub(super) const RELAYS: Table<(PeerId, BundleId, PeerId), Receipt> = Table::new(44);
