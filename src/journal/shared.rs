//! What the journal, its readers and its writer share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, RwLock};
use redb::Database;

use super::batch::{Batch, FullKey, Value};
use super::error::JournalError;
use super::log::Log;
use super::reserve::Reserve;
use crate::disk::DiskError;

/// Rows waiting for their commit beyond which whoever submits many pauses ([`super::Journal::make_room`]): 32 MiB.
pub(super) const BACKLOG_BYTES: usize = 32 << 20;

/// How the next start is told that the page cache has bytes that the disk has not, so that it drops the log.
pub(super) type Distrust = Box<dyn Fn() -> Result<(), DiskError> + Send + std::marker::Sync>;

/// What changes with each batch.
pub(super) struct Fresh {
    pub(super) log: Log,
    /// Rows not yet committed, with the number of the batch that wrote them last.
    pub(super) overlay: BTreeMap<FullKey, (u64, Value)>,
    pub(super) queue: Vec<Batch>,
    pub(super) queued_bytes: usize,
    pub(super) batches: u64,
    pub(super) hurry: bool,
    pub(super) stopping: bool,
    /// A sync failed: rows are still readable, but nothing is queued.
    pub(super) halted: bool,
    /// The log is not ours to write any more.
    pub(super) closed: bool,
}

/// The rest.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) distrust: Distrust,
    pub(super) fresh: RwLock<Fresh>,
    /// Pairs with `bell` and `room`; never held while `fresh` is.
    pub(super) bell_lock: Mutex<()>,
    pub(super) bell: Condvar,
    pub(super) room: Condvar,
    /// `None` between an I/O error and the next successful opening.
    pub(super) database: RwLock<Option<Arc<Database>>>,
    pub(super) trouble: Mutex<Option<String>>,
    pub(super) reserve: Reserve,
}

impl Shared {
    pub(super) fn is_in_a_hurry(&self) -> bool {
        let fresh = self.fresh.read();
        fresh.hurry || fresh.stopping || fresh.queued_bytes >= BACKLOG_BYTES / 2
    }

    pub(super) fn database(&self) -> Result<Arc<Database>, JournalError> {
        let open = self.database.read().clone();
        open.ok_or(JournalError::NotOpen)
    }
}

/// Where the log is.
pub(super) fn log_directory(directory: &Path) -> PathBuf {
    directory.join("wal")
}
