//! What is left of rows that belong to no owner: the epoch of a start, and the number under which tables of one row stand.
//! A change here is a change of the state's format.

use super::journal::Table;
pub(super) use crate::spool::content::record::Stat;

/// The number of the tables of one row, which are told apart by their names.
pub(super) const META: u8 = 1;

/// Epoch of the last start: u64.
pub(super) const META_EPOCH: Table<(), u64> = Table::named(META, "epoch");
