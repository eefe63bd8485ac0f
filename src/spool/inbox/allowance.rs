//! Allowance: how many bytes of one member this node stores, so that none can fill the disk of the others.
//!
//! Counted is what the inbox shows of a member and what arrives from it. An offer above [`Limits::max_peer_bytes`] is
//! deferred and says so on both sides; it is taken when the user has consumed enough.
//!
//! # Crash behaviour
//! Nothing is stored; the rows of the inbox are counted at each start.
//!
//! [`Limits::max_peer_bytes`]: crate::spool::Limits::max_peer_bytes

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::bundle::Manifest;
use crate::peer::PeerId;
use crate::spool::inbox::tables::IN_NAMES;
use crate::spool::{Spool, SpoolError};

/// Bytes in the inbox by origin; `None` before they are counted.
#[derive(Debug, Default)]
pub(in crate::spool) struct Allowance(Mutex<Option<HashMap<PeerId, u64>>>);

impl Allowance {
    /// A name shows so many bytes of `origin` now.
    pub(in crate::spool) fn more(&self, origin: PeerId, bytes: u64) {
        if let Some(shown) = &mut *self.0.lock() {
            *shown.entry(origin).or_default() += bytes;
        }
    }

    /// A name shows so many bytes of `origin` no more.
    pub(in crate::spool) fn less(&self, origin: PeerId, bytes: u64) {
        if let Some(shown) = &mut *self.0.lock()
            && let Some(known) = shown.get_mut(&origin)
        {
            *known = known.saturating_sub(bytes);
        }
    }
}

impl Spool {
    /// Counts what the inbox shows, also where there is no limit: a reload may set one. Once, after recovery.
    pub(in crate::spool) fn count_allowance(&self) -> Result<(), SpoolError> {
        let mut shown: HashMap<PeerId, u64> = HashMap::new();
        self.each_row(IN_NAMES, |_, _, row| {
            *shown.entry(row.origin).or_default() += row.size;
            Ok(())
        })?;
        *self.content.room.allowance().0.lock() = Some(shown);
        Ok(())
    }

    /// Why a bundle of so many bytes cannot be taken from its origin now, if it cannot.
    pub(in crate::spool) fn over_allowance(&self, of: &Manifest, bytes: u64) -> Option<String> {
        let max = self.content.room.limits().max_peer_bytes?;
        let shown = self.content.room.allowance().0.lock();
        let shown = shown.as_ref()?.get(&of.origin).copied().unwrap_or(0);
        let arriving: u64 = {
            let arriving = self.ledger.arriving.lock();
            let of_it = arriving.values().filter(|row| row.origin == of.origin);
            of_it.map(|row| row.size).fold(0, u64::saturating_add)
        };
        let used = shown.saturating_add(arriving);
        (used.saturating_add(bytes) > max).then(|| {
            format!(
                "no room here: {used} bytes of {} are in the inbox or arrive, max_peer_bytes is {max}",
                self.group.name_of(of.origin)
            )
        })
    }
}
