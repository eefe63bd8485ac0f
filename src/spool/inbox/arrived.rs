//! What has arrived, for other recipients: pieces of bundles that are still arriving, and whole bundles of others.
//!
//! # Invariants
//! 1. Only a recipient of the bundle gets a reader, and none from the end of its lifetime on. The caller lets it read
//!    chunks only whose hash was checked.
//!
//! A reader finds out by itself when what it reads from is moved away or taken out of the inbox.

use std::sync::atomic::Ordering;

use crate::bundle::{EntryKind, VerifiedManifest};
use crate::peer::PeerId;
use crate::spool::content::{ContentReader, inode_at};
use crate::spool::{ServeError, Spool};

impl Spool {
    /// Opens what is here of an entry of a bundle that this node is receiving, or has received, for `peer`. `end` is
    /// what [`Ledger::end_of`](crate::spool::ledger::Ledger::end_of) said when it began to arrive: of what has ended no row may be left.
    pub(crate) fn open_arrived(
        &self,
        manifest: &VerifiedManifest,
        entry: usize,
        peer: PeerId,
        end: u64,
    ) -> Result<ContentReader, ServeError> {
        let (bundle, says) = (manifest.id(), manifest.manifest());
        let Some(EntryKind::File { size, digest, .. }) = says.entries.get(entry).map(|e| &e.kind)
        else {
            return Err(ServeError::NotHeld);
        };
        if !says.is_for(peer) || !says.is_for(self.identity.id()) {
            return Err(ServeError::NotHeld);
        }
        let partial = self.staged_alone(bundle, entry as u32);
        if inode_at(&partial).is_some() {
            return self.open_until(partial, *size, Some(end));
        }
        if self.ledger.settled(bundle)?.is_none() {
            return Err(ServeError::NotHeld);
        }
        self.open_until(self.layout.content(*digest), *size, Some(end))
    }

    /// Adds to the bytes that came in vain.
    pub(crate) fn count_twice(&self, bytes: u64) {
        self.counters
            .bytes_twice
            .fetch_add(bytes, Ordering::Relaxed);
    }
}
