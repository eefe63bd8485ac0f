//! The tables of content. Nobody else names them.

use super::record::InodeRow;
use crate::bundle::BundleId;
use crate::digest::Digest;
use crate::journal::Table;

/// Digest, bundle id → (): bundles for which the content must be kept.
pub(super) const USERS: Table<(Digest, BundleId), ()> = Table::new(6);
/// Backing inode → [`InodeRow`]: the record of each inode with sealed or received bytes.
pub(super) const INODES: Table<u64, InodeRow> = Table::new(8);
