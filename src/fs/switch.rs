//! The switch of the inbox: many names at one instant.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard};

use super::attr::INBOX_TTL;

/// A look at the inbox takes `lock` for reading, a publish for writing while it renames; both
/// use the local disk only. While a publish is prepared, what the kernel is told is valid for no time, so that it asks
/// again and meets the lock.
#[derive(Default)]
pub(crate) struct Switch {
    pub(super) lock: RwLock<()>,
    pub(super) prepared: AtomicUsize,
}

impl Switch {
    /// Held around every look at inbox names.
    pub(crate) fn look(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read()
    }

    /// How long the kernel may believe an inbox name. To be asked after the node table knows the name: either the publish
    /// finds it there and has the kernel forget it, or this sees the publish.
    pub(crate) fn ttl(&self) -> Duration {
        match self.prepared.load(Ordering::SeqCst) {
            0 => INBOX_TTL,
            _ => Duration::ZERO,
        }
    }
}
