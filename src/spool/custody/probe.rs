//! Tables of custody, for tests that count rows or put some there.

use super::tables;
use crate::bundle::{BundleId, Receipt};
use crate::delivery::custody::Stage;
use crate::journal::Table;
use crate::peer::PeerId;

pub(in crate::spool) const WATCHED: Table<BundleId, (PeerId, Stage)> = tables::WATCHED;
pub(in crate::spool) const CARRIED: Table<(PeerId, BundleId), Stage> = tables::CARRIED;
pub(in crate::spool) const RELAYS: Table<(PeerId, BundleId, PeerId), Receipt> = tables::RELAYS;
