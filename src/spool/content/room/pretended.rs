//! A disk that has as much room as a test says.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::spool::SpoolError;
use crate::spool::content::Content;

/// Bytes that are free; asked whenever room is needed, on the thread that needs it.
type Free = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What is free instead of what the disk says, if a test says anything.
#[derive(Default)]
pub(super) struct Pretended(Mutex<Option<Free>>);

impl fmt::Debug for Pretended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pretended")
    }
}

impl Pretended {
    pub(super) fn take(&self, len: u64) -> Option<Result<(), SpoolError>> {
        let ask = self.0.lock().clone()?;
        let free = ask();
        let none = SpoolError::NoRoom { free, min_free: 0 };
        Some((free >= len).then_some(()).ok_or(none))
    }
}

impl Content {
    /// From now on room is taken from what `free` says; `free` may wait or panic.
    pub(crate) fn pretend_free(&self, free: impl Fn() -> u64 + Send + Sync + 'static) {
        *self.room.pretended.0.lock() = Some(Arc::new(free));
    }

    /// Room is taken from the disk again.
    pub(crate) fn pretend_no_more(&self) {
        *self.room.pretended.0.lock() = None;
    }
}
