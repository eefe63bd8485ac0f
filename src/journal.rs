//! The journal: a durable store of rows, readable the moment they are submitted, durable a moment later.
//!
//! It does not know what the rows mean. A [`Batch`] goes, under one lock, to the write-ahead log ([`log`]) and to an overlay in memory; from then on
//! every read sees it, and a killed daemon keeps it. The writer thread takes what has gathered, syncs the files the
//! batches speak of, commits all of it to redb in one transaction, and calls back whoever waits for durability.
//!
//! # Invariants
//! 1. A row is durable only after the bytes and names it speaks of ([`Batch::sync`]).
//! 2. Batches become durable in the order of submission, each whole.
//! 3. A failed commit loses nothing: the rows stay in overlay and log, the database is opened anew, and the commit is
//!    tried again; [`Journal::trouble`] says so meanwhile.
//! 4. A failed sync is never tried again, since the second one succeeds without the lost bytes: nothing is committed and
//!    nobody called back any more, and the next start is one after a power loss. Whoever promises something to others
//!    asks first ([`Journal::still_keeps`]).
//!
//! # Crash behaviour
//! Daemon killed: the log is replayed at [`Journal::open`]. Power lost (the boot id changed), or a sync failed: the log
//! is dropped, since the bytes its rows speak of may be missing; recovery then goes by what the database has, and may
//! ask for what was dropped ([`Journal::dropped`]), to check it against the bytes.
//!
//! # Threads
//! `journal` is the one writer. Readers never wait for a commit. Callbacks run on the writer; they must be short.

mod batch;
mod database;
mod error;
mod key;
pub(crate) mod log;
mod read;
mod reserve;
mod shared;
mod table;
#[cfg(test)]
mod tally;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, RwLock};

pub(crate) use self::batch::Batch;
use self::batch::{FullKey, LogRecord, rows_put};
pub(crate) use self::database::Seal;
use self::database::{compact, database_path, open_whole};
pub(crate) use self::error::JournalError;
pub(crate) use self::key::{Below, Fixed, Key};
use self::log::Log;
#[cfg(test)]
pub(crate) use self::read::reads_here;
pub(crate) use self::reserve::Reserve;
use self::shared::{BACKLOG_BYTES, Distrust, Fresh, Shared, log_directory};
pub(crate) use self::table::Table;
#[cfg(test)]
pub(crate) use self::tally::Submitted;
use self::writer::{replay_log, write_loop};
use crate::disk::DiskError;
use crate::disk::durable::{self, Sync};

/// How often a closing journal looks whether its last readers are done.
const READERS_GO: Duration = Duration::from_millis(1);

pub(crate) struct Journal {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Rows of a log that was not replayed, the last of each key.
    dropped: Mutex<BTreeMap<FullKey, Vec<u8>>>,
    /// When all of the database was last read, in seconds since 1970.
    read: u64,
    #[cfg(test)]
    tally: tally::Tally,
}

fn now_secs() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("directory", &self.shared.directory)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens or makes the journal in a directory, where it has `journal.redb`, `wal` and `reserve`. The log is replayed if
    /// `replay`, else dropped; also if what it builds on is missing. `distrust` is called when a sync has failed: the next
    /// opening must be one without `replay`. With the `seal` of the last closing the database may be trusted.
    pub(crate) fn open(
        directory: &Path,
        replay: bool,
        seal: Option<Seal>,
        distrust: impl Fn() -> Result<(), DiskError> + Send + std::marker::Sync + 'static,
    ) -> Result<Self, JournalError> {
        let distrust: Distrust = Box::new(distrust);
        let path = database_path(directory);
        let is_there = std::fs::metadata(&path).is_ok_and(|meta| meta.len() > 0);
        let (mut database, read) = open_whole(directory, seal, now_secs())?;
        let log_directory = log_directory(directory);
        let dropped = if replay && is_there {
            replay_log(&database, directory, &distrust)?;
            BTreeMap::new()
        } else {
            rows_put(&log::read(&log_directory)?)
        };
        Log::release(&log_directory, u64::MAX)?;
        if let Err(error) = compact(&mut database, &path) {
            tracing::warn!(%error, "the journal's file stays larger than it need be");
        }
        let log = Log::open(&log_directory)?;
        let shared = Arc::new(Shared {
            directory: directory.to_path_buf(),
            distrust,
            fresh: RwLock::new(Fresh {
                log,
                overlay: BTreeMap::new(),
                queue: Vec::new(),
                queued_bytes: 0,
                batches: 0,
                hurry: false,
                stopping: false,
                halted: false,
                closed: false,
            }),
            bell_lock: Mutex::new(()),
            bell: Condvar::new(),
            room: Condvar::new(),
            database: RwLock::new(Some(Arc::new(database))),
            trouble: Mutex::new(None),
            reserve: Reserve::open(directory),
        });
        let writer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("journal".into())
                .spawn(move || write_loop(&shared))
                .map_err(JournalError::NoThread)?
        };
        Ok(Self {
            shared,
            writer: Mutex::new(Some(writer)),
            dropped: Mutex::new(dropped),
            read,
            #[cfg(test)]
            tally: tally::Tally::default(),
        })
    }

    /// What the database is, after [`Self::close`].
    pub(crate) fn seal(&self) -> Result<Seal, DiskError> {
        Seal::of(&self.shared.directory, self.read)
    }

    /// What was dropped is needed no more.
    pub(crate) fn forget_dropped(&self) {
        self.dropped.lock().clear();
    }

    /// Makes the batch visible at once, and durable soon.
    pub(crate) fn submit(&self, batch: Batch) -> Result<(), JournalError> {
        if batch.is_empty() {
            return Ok(());
        }
        let Batch {
            rows,
            syncs,
            on_durable,
        } = batch;
        #[cfg(test)]
        self.tally.note(&rows);
        let record = LogRecord(&rows).to_record()?;
        let keys: Vec<FullKey> = rows.iter().map(|(key, _)| key.clone()).collect();
        let first;
        {
            let mut fresh = self.shared.fresh.write();
            if fresh.closed {
                return Err(JournalError::Closed);
            }
            if let Err(error) = fresh.log.append(&record) {
                // What is set aside is for this.
                if !error.is_full() || !self.shared.reserve.give_up() {
                    return Err(error.into());
                }
                fresh.log.append(&record)?;
            }
            fresh.batches += 1;
            let number = fresh.batches;
            for (key, (_, value)) in keys.into_iter().zip(&rows) {
                fresh.overlay.insert(key, (number, value.clone()));
            }
            if fresh.halted {
                return Ok(());
            }
            fresh.queued_bytes += record.len();
            // A burst is synced as a whole anyway; its descriptors need not stay open until then.
            first = fresh.queue.is_empty() || fresh.queued_bytes >= BACKLOG_BYTES / 2;
            let whole = fresh.queue.len() > durable::SYNC_EACH_MAX && !syncs.is_empty();
            let syncs = if whole { vec![Sync::Everything] } else { syncs };
            fresh.queue.push(Batch {
                rows,
                syncs,
                on_durable,
            });
        }
        // While it gathers, the writer need not be woken for each batch.
        if first {
            self.ring();
        }
        Ok(())
    }

    fn ring(&self) {
        let _held = self.shared.bell_lock.lock();
        self.shared.bell.notify_all();
    }

    /// Pauses the caller while the disk is far behind. Never called by a file operation.
    pub(crate) fn make_room(&self) {
        let mut held = self.shared.bell_lock.lock();
        loop {
            {
                let fresh = self.shared.fresh.read();
                if fresh.queued_bytes < BACKLOG_BYTES || fresh.stopping {
                    return;
                }
            }
            self.shared
                .room
                .wait_for(&mut held, Duration::from_millis(100));
        }
    }

    /// Waits until everything submitted so far is durable. Never called by a file operation.
    pub(crate) fn flush(&self) -> Result<(), JournalError> {
        if self.writer.lock().is_none() {
            return Err(JournalError::NoWriter);
        }
        let (done, wait) = crossbeam_channel::bounded(1);
        let mut batch = Batch::default();
        batch.on_durable(move || {
            let _gone_if_the_waiter_is = done.send(());
        });
        self.submit(batch)?;
        self.shared.fresh.write().hurry = true;
        self.ring();
        wait.recv().map_err(|_| {
            let trouble = self.trouble();
            trouble.map_or(JournalError::NoWriter, JournalError::Halted)
        })
    }

    /// What the last commit failed with, while it does; or that a sync failed, for good.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().clone()
    }

    /// Fails once a sync has failed: nothing becomes durable any more, so nothing further may be promised.
    pub(crate) fn still_keeps(&self) -> Result<(), JournalError> {
        match self.shared.fresh.read().halted {
            true => Err(JournalError::Halted(self.trouble().unwrap_or_default())),
            false => Ok(()),
        }
    }

    /// Commits what is left, ends the writer and closes the database. Nothing is read or written any more when this
    /// returns: the directory may be another's by then.
    pub(crate) fn close(&self) {
        self.shared.fresh.write().stopping = true;
        self.ring();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!(
                "the journal writer had panicked; its log is replayed at the next start"
            );
        }
        self.shared.fresh.write().closed = true;
        let mut open = self.shared.database.write().take();
        while let Some(database) = open {
            // A reader that is at work on it keeps it open, for some milliseconds.
            open = Arc::try_unwrap(database).map(drop).err();
            if open.is_some() {
                std::thread::sleep(READERS_GO);
            }
        }
    }
}

/// What a run that was killed, or lost its power, has submitted and not committed.
#[cfg(test)]
pub(crate) fn append_to_log(directory: &Path, batch: &Batch) {
    let record = LogRecord(&batch.rows).to_record().unwrap();
    Log::open(&log_directory(directory))
        .and_then(|mut log| log.append(&record))
        .unwrap();
}
