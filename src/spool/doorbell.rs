//! The doorbell: whoever changed something rings, and who listens looks at the disk. Losing a ring costs a rescan
//! interval, never a file.
//!
//! # Threads
//! Any; a leaf. Whoever rings may hold any lock of the spool, so a bell must neither block nor call back.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::bundle::{BundleId, Priority, Receipt};
use crate::peer::PeerId;

/// Something changed that a listener may want to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A bundle of ours was sealed; its recipients have it pending.
    Sealed(BundleId, Priority),
    /// A receipt is ready to go to the bundle's origin: ours, or one of another recipient that we keep the bundle for.
    ReceiptReady(Receipt),
    /// A bundle of ours is final for every recipient.
    Closed(BundleId),
    /// Something new is pending for this peer beyond a single seal (it joined, a deferral ended): rescan.
    PendingChanged(PeerId),
    /// The set of members or their addresses changed.
    MembersChanged,
    /// Ask this peer about this bundle again at once, whatever it said before.
    Retry(BundleId, PeerId),
    /// Something `status` shows changed.
    StatusChanged,
}

/// Bell for every event.
pub(crate) type Bell = Box<dyn Fn(&Event) + Send + Sync>;

/// All bells, and the mark for who waits for a change of status.
pub(crate) struct Doorbell {
    bells: RwLock<Vec<Bell>>,
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self {
            bells: RwLock::default(),
            changes: Mutex::new(1),
            changed: Condvar::new(),
        }
    }
}

impl Doorbell {
    /// Calls `bell` at every event, from whatever thread. It must not block and not call back.
    pub(crate) fn subscribe(&self, bell: impl Fn(&Event) + Send + Sync + 'static) {
        self.bells.write().push(Box::new(bell));
    }

    /// Tells every listener.
    pub(super) fn ring(&self, event: &Event) {
        for bell in self.bells.read().iter() {
            bell(event);
        }
        *self.changes.lock() += 1;
        self.changed.notify_all();
    }

    /// Blocks until something that status shows has changed since `seen`, or the time is over; gives the new mark.
    pub(crate) fn wait_change(&self, seen: u64, at_most: Duration) -> u64 {
        let deadline = Instant::now() + at_most;
        let mut changes = self.changes.lock();
        while *changes == seen {
            if self.changed.wait_until(&mut changes, deadline).timed_out() {
                break;
            }
        }
        *changes
    }

    /// From now on nobody hears of events.
    #[cfg(test)]
    pub(crate) fn ring_nobody(&self) -> Vec<Bell> {
        std::mem::take(&mut self.bells.write())
    }

    /// Undoes [`Self::ring_nobody`].
    #[cfg(test)]
    pub(crate) fn ring_again(&self, bells: Vec<Bell>) {
        self.bells.write().extend(bells);
    }
}
