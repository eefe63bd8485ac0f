//! Tables of the inbox, for tests that make the rows which a crash leaves.

use super::tables;
use crate::bundle::{BundleId, RelPath};
use crate::journal::Table;
use crate::peer::PeerId;

pub(in crate::spool) use super::tables::{Intent, Renaming};

pub(in crate::spool) const IN_NAMES: Table<RelPath, tables::InName> = tables::IN_NAMES;
pub(in crate::spool) const INTENTS: Table<BundleId, Intent> = tables::INTENTS;
pub(in crate::spool) const LEAVING: Table<RelPath, u64> = tables::LEAVING;
pub(in crate::spool) const RENAMES: Table<BundleId, Renaming> = tables::RENAMES;
pub(in crate::spool) const VERSIONS: Table<(PeerId, RelPath), tables::Version> = tables::VERSIONS;
