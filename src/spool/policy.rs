//! What the user decides about bundles (who gets them, how urgently, for how long, and when not any more), as far as it
//! is kept in memory. The work is in `cancel`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::tables::CANCELS;
use super::{Spool, SpoolError};
use crate::bundle::Cancel;

/// In memory.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// Whether any cancel is recorded: most nodes never look further.
    pub(super) any_cancel: AtomicBool,
    /// Cancels recorded since start: who is in the middle of a bundle looks again when it changed.
    pub(super) cancels: AtomicU64,
}

impl Spool {
    /// Takes up what was decided in earlier starts.
    pub(super) fn begin_policy(&self) -> Result<(), SpoolError> {
        let any = self.journal.scan::<Cancel>(CANCELS, &[], None, 1)?;
        self.policy
            .any_cancel
            .store(!any.is_empty(), Ordering::Release);
        Ok(())
    }
}
