//! The journal's database on the disk: opening, checking and compacting it.
//!
//! A database that is damaged is refused, with the steps in the error: what to do about it is the user's decision, and
//! what is there is the user's to keep.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, TableDefinition};

use super::JournalError;
use crate::disk::{OnPath, durable};

/// All rows of all tables; the first byte of a key is its table.
pub(super) const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows-1");

/// redb's page cache. Small: the overlay answers for what is fresh, the page cache of the kernel for the rest.
const CACHE_BYTES: usize = 8 << 20;

/// A journal file below this size is left as it is.
pub(super) const COMPACT_FROM: u64 = 16 << 20;

/// It is compacted at start when its rows fill less than one part of so many.
const COMPACT_BELOW: u64 = 2;

/// How long a database that is still open in a process that was killed is waited for: its last system call may be a sync.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried.
const OPEN_INTERVAL: Duration = Duration::from_millis(10);

/// Where it is.
pub(super) fn database_path(state: &Path) -> PathBuf {
    state.join("journal.redb")
}

/// Opens or makes it; waits so long for another that closes it.
pub(super) fn open_database(path: &Path, patience: Duration) -> Result<Database, JournalError> {
    let database = open_file(path, patience)?;
    make_table(&database)?;
    Ok(database)
}

fn make_table(database: &Database) -> Result<(), JournalError> {
    let write = database.begin_write().map_err(JournalError::database)?;
    write.open_table(ROWS).map_err(JournalError::database)?;
    write.commit().map_err(JournalError::database)
}

fn open_file(path: &Path, patience: Duration) -> Result<Database, JournalError> {
    // redb would make it readable for all.
    drop(durable::open_or_make(path)?);
    let until = Instant::now() + patience;
    loop {
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        match opened {
            Ok(database) => return Ok(database),
            // We hold the state's lock, so whoever has it open is about to close it.
            Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < until => {
                std::thread::sleep(OPEN_INTERVAL);
            }
            Err(error) => return Err(JournalError::of_database(path, error)),
        }
    }
}

/// Opens the database and reads all of it: what a disk or a program did to it shows now, and not in the middle of
/// something.
pub(super) fn open_whole(path: &Path) -> Result<Database, JournalError> {
    let open = || {
        let mut database = open_file(path, OPEN_PATIENCE)?;
        let checked = database.check_integrity();
        if !checked.map_err(|error| JournalError::of_database(path, error))? {
            return Err(JournalError::damaged(
                path,
                "it does not agree with its checksums",
            ));
        }
        make_table(&database)?;
        Ok(database)
    };
    // It is another's code, which in debug builds panics at some of what it finds.
    match std::panic::catch_unwind(open) {
        Ok(opened) => opened,
        Err(_) => Err(JournalError::damaged(path, "it cannot be read")),
    }
}

/// Gives back the room of rows that are gone. While the daemon runs, new rows use it.
pub(super) fn compact(database: &mut Database, path: &Path) -> Result<(), JournalError> {
    let size = std::fs::metadata(path).on("look at", path)?.len();
    if size < COMPACT_FROM {
        return Ok(());
    }
    let write = database.begin_write().map_err(JournalError::database)?;
    let stats = write.stats().map_err(JournalError::database)?;
    write.abort().map_err(JournalError::database)?;
    if stats.stored_bytes().saturating_mul(COMPACT_BELOW) > size {
        return Ok(());
    }
    database.compact().map_err(JournalError::database)?;
    let now = std::fs::metadata(path).on("look at", path)?.len();
    tracing::info!(before = size, after = now, "the journal was compacted");
    Ok(())
}
