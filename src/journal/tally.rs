//! Counts what is submitted, for tests that bound it.

use parking_lot::Mutex;

use super::Journal;
use super::batch::{FullKey, Value};

/// The rows of one batch: the number of each one's table, and whether it was removed.
pub(crate) type Submitted = Vec<(u8, bool)>;

/// What was submitted while somebody counts.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Option<Vec<Submitted>>>);

impl Tally {
    pub(super) fn note(&self, rows: &[(FullKey, Value)]) {
        if let Some(batches) = self.0.lock().as_mut() {
            let rows = rows.iter();
            batches.push(rows.map(|(key, value)| (key[0], value.is_none())).collect());
        }
    }
}

impl Journal {
    /// Gives what was submitted since the last call, batch by batch; nothing the first time.
    pub(crate) fn submitted(&self) -> Vec<Submitted> {
        let before = self.tally.0.lock().replace(Vec::new());
        before.unwrap_or_default()
    }
}
