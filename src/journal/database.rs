//! The journal's database on the disk: opening, checking and compacting it.
//!
//! A database that is damaged is refused, with the steps in the error: what to do about it is the user's decision, and
//! what is there is the user's to keep.
//!
//! To know that it is whole, all of it has to be read: redb 4.6 looks at no checksum when it reads a page. After a run that
//! was killed, redb does that by itself when it opens the file. After a clean stop it trusts the file, and so do we as
//! long as it is the very file that was closed ([`Seal`]): then only the medium can have changed it. For that it is read
//! once in [`SEAL_HOLDS`]. What comes of a page that went bad in between is an error or a panic, and with that a start after
//! a kill, at which it is found.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redb::{Database, DatabaseError, TableDefinition};

use super::JournalError;
use crate::disk::{DiskError, OnPath, durable};

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

/// For how long nothing of a database is read to find damage that nobody but the medium can have done: some days, since
/// reading takes a second or two for each million bundles.
const SEAL_HOLDS: u64 = 7 * 24 * 3600;

/// What a file was when it was closed, and when all of it had last been read, in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seal {
    ino: u64,
    len: u64,
    /// Of its last change, of bytes and of anything else.
    times: [(i64, i64); 2],
    read: u64,
}

impl Seal {
    /// Of the database in `state`, which is closed.
    pub(super) fn of(state: &Path, read: u64) -> Result<Self, DiskError> {
        let path = database_path(state);
        let meta = std::fs::metadata(&path).on("stat", &path)?;
        Ok(Self {
            ino: meta.ino(),
            len: meta.len(),
            times: [
                (meta.mtime(), meta.mtime_nsec()),
                (meta.ctime(), meta.ctime_nsec()),
            ],
            read,
        })
    }

    /// As a line.
    pub(crate) fn write(&self) -> String {
        let [(modified, modified_nanos), (changed, changed_nanos)] = self.times;
        format!(
            "{} {} {modified} {modified_nanos} {changed} {changed_nanos} {}",
            self.ino, self.len, self.read
        )
    }

    /// What [`Self::write`] wrote.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let numbers: Option<Vec<i64>> = line.split(' ').map(|n| n.parse().ok()).collect();
        let [ino, len, m, m_nanos, c, c_nanos, read] = *numbers?.first_chunk::<7>()?;
        Some(Self {
            ino: ino.cast_unsigned(),
            len: len.cast_unsigned(),
            times: [(m, m_nanos), (c, c_nanos)],
            read: read.cast_unsigned(),
        })
    }

    /// Whether it is of what is in `state` at `now`, and counts.
    fn holds(&self, state: &Path, now: u64) -> bool {
        let same = Self::of(state, self.read).is_ok_and(|seal| seal == *self);
        same && now
            .checked_sub(self.read)
            .is_some_and(|age| age < SEAL_HOLDS)
    }
}

/// Where it is.
pub(super) fn database_path(state: &Path) -> PathBuf {
    state.join("journal.redb")
}

/// Opens or makes it; waits so long for another that closes it.
pub(super) fn open_database(path: &Path, patience: Duration) -> Result<Database, JournalError> {
    let (database, _) = open_file(path, patience)?;
    make_table(&database)?;
    Ok(database)
}

fn make_table(database: &Database) -> Result<(), JournalError> {
    let write = database.begin_write().map_err(JournalError::database)?;
    write.open_table(ROWS).map_err(JournalError::database)?;
    write.commit().map_err(JournalError::database)
}

/// Says too whether redb read all of it, since it had not been closed.
fn open_file(path: &Path, patience: Duration) -> Result<(Database, bool), JournalError> {
    // redb would make it readable for all.
    drop(durable::open_or_make(path)?);
    let until = Instant::now() + patience;
    let read = Arc::new(AtomicBool::new(false));
    loop {
        let reads = Arc::clone(&read);
        let opened = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_repair_callback(move |_| reads.store(true, Ordering::Relaxed))
            .create(path);
        match opened {
            Ok(database) => return Ok((database, read.load(Ordering::Relaxed))),
            // We hold the state's lock, so whoever has it open is about to close it.
            Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < until => {
                std::thread::sleep(OPEN_INTERVAL);
            }
            Err(error) => return Err(JournalError::of_database(path, error)),
        }
    }
}

/// Opens the database in `state` and reads all of it, unless `seal` says that it need not be: what a disk or a program did
/// to it shows now, and not in the middle of something. Says when all of it was read.
pub(super) fn open_whole(
    state: &Path,
    seal: Option<Seal>,
    now: u64,
) -> Result<(Database, u64), JournalError> {
    let path = database_path(state);
    let sealed = seal.filter(|seal| seal.holds(state, now));
    let open = || {
        let (mut database, is_read) = open_file(&path, OPEN_PATIENCE)?;
        let read = match sealed {
            Some(seal) if !is_read => seal.read,
            Some(_) | None => {
                if !is_read {
                    read_all(&mut database, &path)?;
                }
                now
            }
        };
        make_table(&database)?;
        Ok((database, read))
    };
    // It is another's code, which in debug builds panics at some of what it finds.
    match std::panic::catch_unwind(open) {
        Ok(opened) => opened,
        Err(_) => Err(JournalError::damaged(&path, "it cannot be read")),
    }
}

fn read_all(database: &mut Database, path: &Path) -> Result<(), JournalError> {
    let checked = database.check_integrity();
    if checked.map_err(|error| JournalError::of_database(path, error))? {
        Ok(())
    } else {
        Err(JournalError::damaged(
            path,
            "it does not agree with its checksums",
        ))
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    /// Opens what is in `state` a day later and closes it; whether all of it was read.
    fn is_read(state: &Path, seal: Option<Seal>) -> bool {
        let day_later = NOW + 24 * 3600;
        let (database, read) = open_whole(state, seal, day_later).unwrap();
        drop(database);
        read == day_later
    }

    #[test]
    fn a_database_is_read_unless_it_is_the_very_one_that_was_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (state, path) = (dir.path(), database_path(dir.path()));
        let (database, read) = open_whole(state, None, NOW).unwrap();
        assert_eq!(read, NOW);
        let unclosed = std::fs::read(&path).unwrap();
        drop(database);
        let seal = || Some(Seal::of(state, NOW).unwrap());
        let line = seal().unwrap().write();
        assert_eq!(Seal::read(&line), seal());
        assert_eq!(Seal::read("clean"), None);
        assert!(is_read(state, None), "no seal");
        let good = seal();
        assert!(!is_read(state, good));
        assert!(is_read(state, good), "it was opened since");
        // Read long ago, or by a clock that was wrong.
        for read in [NOW - SEAL_HOLDS, NOW + SEAL_HOLDS] {
            assert!(is_read(state, Some(Seal::of(state, read).unwrap())));
        }
        // Somebody wrote to it: the same bytes, and it was as long ago.
        let (before, bytes) = (seal(), std::fs::read(&path).unwrap());
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(modified).unwrap();
        drop(file);
        assert!(is_read(state, before));
        // A run that was killed: redb reads it, whatever is said of it.
        std::fs::write(&path, &unclosed).unwrap();
        assert!(is_read(state, seal()));
    }
}
