//! Bundles of others that will never be complete: their origin replaced or cancelled them while they were arriving.
//!
//! Whether a bundle is still owed only its origin knows, so it is asked (by `mesh`); what began to arrive is found by
//! the files in `partial/`.
//!
//! # Crash behaviour
//! The row is shown as withdrawn before the bytes are removed; bytes that are left over are asked about again.

use std::collections::BTreeSet;

use crate::bundle::BundleId;
use crate::peer::PeerId;
use crate::spool::journal::Batch;
use crate::spool::ledger::inbound::InboundState;
use crate::spool::{Event, Spool, SpoolError};

/// Most unfinished bundles of one origin that it is asked about at once; the others are asked about next time.
const UNFINISHED_MAX: usize = 4096;

impl Spool {
    /// Bundles of `origin` that began to arrive, are not complete, and are not being fetched now.
    pub(crate) fn unfinished(&self, origin: PeerId) -> Vec<BundleId> {
        let Ok(entries) = std::fs::read_dir(self.layout.partial()) else {
            return Vec::new();
        };
        let bundles: BTreeSet<BundleId> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                BundleId::from_hex(name.split('.').next()?)
            })
            .collect();
        let waits = |bundle: &BundleId| {
            let row = self.ledger.inbound_shown(*bundle).ok().flatten();
            row.is_some_and(|row| row.origin == origin)
                && !self.ledger.arriving.lock().contains_key(bundle)
        };
        bundles
            .into_iter()
            .filter(waits)
            .take(UNFINISHED_MAX)
            .collect()
    }

    /// `origin` says that it does not owe us this bundle: what arrived of it is removed, and status says so. `false`:
    /// it is not a bundle of that origin, or it is settled or being fetched.
    pub(crate) fn withdrawn(&self, bundle: BundleId, origin: PeerId) -> Result<bool, SpoolError> {
        let decide = self.decide();
        // Held to the end, so that no fetch of it begins meanwhile.
        let arriving = self.ledger.arriving.lock();
        let Some(mut row) = self.ledger.inbound_shown(bundle)? else {
            return Ok(false);
        };
        let ends = matches!(
            row.state,
            InboundState::Deferred | InboundState::Quarantined
        );
        if row.origin != origin
            || !ends
            || arriving.contains_key(&bundle)
            || self.inbox.publishing.is_shown(bundle)
            || self.ledger.settled(bundle)?.is_some()
        {
            return Ok(false);
        }
        row.state = InboundState::Withdrawn;
        row.error = None;
        let mut batch = Batch::default();
        self.ledger.show_inbound(&row, &mut batch)?;
        self.journal.submit(batch)?;
        self.content.discard_partial(bundle)?;
        drop((arriving, decide));
        self.doorbell.ring(&Event::StatusChanged);
        Ok(true)
    }
}
