//! The tables of content. Nobody else names them.

use super::record::InodeRow;
use crate::bundle::BundleId;
use crate::digest::Digest;
use crate::journal::Table;
use crate::peer::PeerId;

/// Digest, bundle id → (): bundles for which the content must be kept.
pub(super) const USERS: Table<(Digest, BundleId), ()> = Table::new(6);
/// Backing inode → [`InodeRow`]: the record of each inode with sealed or received bytes.
pub(super) const INODES: Table<u64, InodeRow> = Table::new(8);
/// Digest, origin → (): content we got under a bundle of that origin, so a digest alone buys nothing.
pub(super) const GOT_FROM: Table<(Digest, PeerId), ()> = Table::new(17);
/// Digest → bundle id: the newest bundle of ours with that content.
pub(super) const SENT_AS: Table<Digest, BundleId> = Table::new(18);
