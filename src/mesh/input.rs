//! What a session is told: the letters in its mailbox.

use crate::bundle::{BundleId, Priority, Receipt};
use crate::delivery::{Event, Verdict};
use crate::mesh::wire::Frame;

/// What the rest of the program tells a session.
#[derive(Debug)]
pub(crate) enum Input {
    /// A bundle was sealed.
    Sealed(BundleId, Priority),
    /// A receipt for a bundle that this peer sealed or offered is ready.
    Receipt(Receipt),
    /// Read the journal again.
    Rescan,
    /// Members changed: tell the peer.
    Members,
    /// Ask whether the peer still owes us these.
    Owed(Vec<BundleId>),
    /// Say this.
    Say(Frame),
    /// What became of the peer's offer.
    Verdict(BundleId, Verdict),
    /// For the delivery machine.
    Event(Event),
}
