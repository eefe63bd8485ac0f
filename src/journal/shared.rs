//! What whoever submits and the writer share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, RwLock};
use redb::Database;

use super::JournalError;
use super::batch::{Call, Key, Value};
use super::log::Log;
use super::reserve::Reserve;
use crate::disk::DiskError;
use crate::disk::durable::Sync;

/// Rows waiting for their commit beyond which whoever submits many pauses ([`super::Journal::make_room`]): 32 MiB.
pub(super) const BACKLOG_BYTES: usize = 32 << 20;

/// How the next start is told that the page cache has bytes that the disk has not, so that it drops the log.
pub(super) type Distrust = Box<dyn Fn() -> Result<(), DiskError> + Send + std::marker::Sync>;

/// A batch that is not committed yet.
pub(super) struct Waiting {
    pub(super) rows: Vec<(Key, Value)>,
    pub(super) syncs: Vec<Sync>,
    pub(super) on_durable: Vec<Call>,
}

/// What is not in the database yet.
pub(super) struct Fresh {
    pub(super) log: Log,
    /// Rows not yet committed, with the number of the batch that wrote them last.
    pub(super) overlay: BTreeMap<Key, (u64, Value)>,
    pub(super) queue: Vec<Waiting>,
    pub(super) queued_bytes: usize,
    pub(super) batches: u64,
    pub(super) hurry: bool,
    pub(super) stopping: bool,
    /// A sync failed: rows are still readable, but nothing is queued.
    pub(super) halted: bool,
    /// The log is not ours to write any more.
    pub(super) closed: bool,
}

/// What the journal and its writer share.
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
