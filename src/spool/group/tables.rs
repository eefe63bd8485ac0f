//! The tables of the group that several of its files share. Nobody else names them.

use crate::journal::Table;
use crate::peer::{PeerId, PeerName};
use crate::spool::Member;

/// Peer → `Member`.
pub(super) const MEMBERS: Table<PeerId, Member> = Table::new(19);
/// Peer → (): a new member that has not been given all yet of what is current.
pub(super) const JOINING: Table<PeerId, ()> = Table::new(23);
/// Name → peer: who was the first to claim it itself.
pub(super) const NAMES: Table<String, PeerId> = Table::new(34);
/// Peer → its name: members that the user gave up.
pub(super) const FORGOTTEN: Table<PeerId, PeerName> = Table::new(45);
