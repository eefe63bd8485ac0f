//! The journal: every durable row, readable the moment it is submitted, durable a moment later.
//!
//! A [`Batch`] goes, under one lock, to the write-ahead log ([`super::wal`]) and to an overlay in memory; from then on
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

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use redb::{Database, ReadableDatabase};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::database::{ROWS, compact, database_path, open_database, open_whole};
use super::durable::{self, Sync};
use super::reserve::{self, Reserve};
use super::wal::{self, Record, Segment, Wal};
use super::{SpoolError, start};

/// How long the writer lets batches gather, so that a burst shares its syncs and the first file's way is not disturbed.
const GATHER: Duration = Duration::from_millis(8);

/// In a burst the writer gathers this many times as long as its last commit took: while the disk commits, every create
/// and rename on that file system waits for it, so a commit after each few files slows all of them down.
const GATHER_PER_COMMIT: u32 = 3;

/// The longest the writer gathers: state shows `queued` this much later, at most, than the disk could.
const GATHER_MAX: Duration = Duration::from_millis(300);

/// Pause before a failed commit is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// After a commit the overlay drops the rows of so many batches at a time; file operations wait meanwhile.
const BATCHES_FORGOTTEN: usize = 16;

/// Rows waiting for their commit beyond which sealers and intake pause ([`Journal::make_room`]): 32 MiB.
const BACKLOG_BYTES: usize = 32 << 20;

/// How often a closing journal looks whether its last readers are done.
const READERS_GO: Duration = Duration::from_millis(1);

/// What is said after [`Journal::close`].
const CLOSED: &str = "the daemon ends: the journal is closed";

/// A table's number; part of the format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Table(pub(super) u8);

type Key = Vec<u8>;
type Value = Option<Arc<[u8]>>;

/// Rows that become durable together.
#[derive(Default)]
pub(super) struct Batch {
    rows: Vec<(Key, Value)>,
    syncs: Vec<Sync>,
    on_durable: Vec<Box<dyn FnOnce() + Send + std::marker::Sync>>,
}

impl Batch {
    pub(super) fn put<V: Serialize>(&mut self, table: Table, key: &[u8], value: &V) {
        // Postcard of plain owned data into a growing vector has no error to give.
        #[allow(clippy::expect_used)]
        let bytes = postcard::to_stdvec(value).expect("a row always encodes");
        self.rows.push((full_key(table, key), Some(bytes.into())));
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) {
        self.rows.push((full_key(table, key), None));
    }

    /// Bytes or names that must be durable before these rows.
    pub(super) fn sync(&mut self, sync: Sync) {
        self.syncs.push(sync);
    }

    /// Called on the writer thread once the rows are durable.
    pub(super) fn on_durable(&mut self, call: impl FnOnce() + Send + std::marker::Sync + 'static) {
        self.on_durable.push(Box::new(call));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.on_durable.is_empty()
    }
}

fn full_key(table: Table, key: &[u8]) -> Key {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table.0);
    full.extend_from_slice(key);
    full
}

struct Waiting {
    rows: Vec<(Key, Value)>,
    syncs: Vec<Sync>,
    on_durable: Vec<Box<dyn FnOnce() + Send + std::marker::Sync>>,
}

struct Fresh {
    wal: Wal,
    /// Rows not yet committed, with the number of the batch that wrote them last.
    overlay: BTreeMap<Key, (u64, Value)>,
    queue: Vec<Waiting>,
    queued_bytes: usize,
    batches: u64,
    hurry: bool,
    stopping: bool,
    /// A sync failed: rows are still readable, but nothing is queued.
    halted: bool,
    /// The log is not ours to write any more.
    closed: bool,
}

struct Shared {
    state: PathBuf,
    fresh: RwLock<Fresh>,
    /// Pairs with `bell` and `room`; never held while `fresh` is.
    bell_lock: Mutex<()>,
    bell: Condvar,
    room: Condvar,
    /// `None` between an I/O error and the next successful opening.
    database: RwLock<Option<Arc<Database>>>,
    trouble: Mutex<Option<String>>,
    reserve: Reserve,
}

impl Shared {
    fn is_in_a_hurry(&self) -> bool {
        let fresh = self.fresh.read();
        fresh.hurry || fresh.stopping || fresh.queued_bytes >= BACKLOG_BYTES / 2
    }

    fn database(&self) -> Result<Arc<Database>, SpoolError> {
        let open = self.database.read().clone();
        open.ok_or_else(|| SpoolError::Journal("the database is not open after an error".into()))
    }
}

/// The journal.
pub(super) struct Journal {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Rows of a log that was not replayed, the last of each key.
    dropped: Mutex<BTreeMap<Key, Vec<u8>>>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("state", &self.shared.state)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens or makes `state/journal.redb`. The log in `state/wal` is replayed if `replay`, else dropped; also if what it
    /// builds on is missing.
    pub(super) fn open(state: &Path, replay: bool) -> Result<Self, SpoolError> {
        let path = database_path(state);
        let is_there = std::fs::metadata(&path).is_ok_and(|meta| meta.len() > 0);
        let mut database = open_whole(&path)?;
        let directory = state.join("wal");
        let dropped = if replay && is_there {
            replay_log(&database, state, &directory)?;
            BTreeMap::new()
        } else {
            rows_put(&wal::read(&directory)?)
        };
        Wal::release(&directory, u64::MAX)?;
        if let Err(error) = compact(&mut database, &path) {
            tracing::warn!(%error, "the journal's file stays larger than it need be");
        }
        let wal = Wal::open(&directory)?;
        let shared = Arc::new(Shared {
            state: state.to_path_buf(),
            fresh: RwLock::new(Fresh {
                wal,
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
            reserve: Reserve::open(state),
        });
        let writer = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("journal".into())
                .spawn(move || write_loop(&shared))
                .map_err(|e| SpoolError::Journal(format!("cannot start its thread: {e}")))?
        };
        Ok(Self {
            shared,
            writer: Mutex::new(Some(writer)),
            dropped: Mutex::new(dropped),
        })
    }

    /// Rows of `table` that the log had put when it was dropped at [`Journal::open`], whatever it said of them later. They
    /// may speak of bytes that are lost.
    pub(super) fn dropped<V: DeserializeOwned>(&self, table: Table) -> Vec<(Vec<u8>, V)> {
        let dropped = self.dropped.lock();
        let rows = dropped.range(vec![table.0]..vec![table.0 + 1]);
        rows.filter_map(|(key, value)| Some((key[1..].to_vec(), decode(table, value).ok()?)))
            .collect()
    }

    /// What was dropped is needed no more.
    pub(super) fn forget_dropped(&self) {
        self.dropped.lock().clear();
    }

    /// Makes the batch visible at once, and durable soon.
    pub(super) fn submit(&self, batch: Batch) -> Result<(), SpoolError> {
        if batch.is_empty() {
            return Ok(());
        }
        let Batch {
            rows,
            syncs,
            on_durable,
        } = batch;
        // Encoding a vector of bytes has no error to give either.
        let record = LogRecord(&rows)
            .to_record()
            .map_err(|e| SpoolError::Journal(e.to_string()))?;
        let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
        let first;
        {
            let mut fresh = self.shared.fresh.write();
            if fresh.closed {
                return Err(SpoolError::Journal(CLOSED.into()));
            }
            if let Err(error) = fresh.wal.append(&record) {
                // What is set aside is for this.
                if !reserve::is_full(&error) || !self.shared.reserve.give_up() {
                    return Err(error);
                }
                fresh.wal.append(&record)?;
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
            fresh.queue.push(Waiting {
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
    pub(super) fn make_room(&self) {
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
    pub(super) fn flush(&self) -> Result<(), SpoolError> {
        if self.writer.lock().is_none() {
            return Err(SpoolError::Journal("the writer has ended".into()));
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
            SpoolError::Journal(trouble.unwrap_or_else(|| "the writer has ended".into()))
        })
    }

    /// What the last commit failed with, while it does; or that a sync failed, for good.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().clone()
    }

    /// Fails once a sync has failed: nothing becomes durable any more, so nothing further may be promised.
    pub(super) fn still_keeps(&self) -> Result<(), SpoolError> {
        match self.shared.fresh.read().halted {
            true => Err(SpoolError::Journal(self.trouble().unwrap_or_default())),
            false => Ok(()),
        }
    }

    /// Whether what was last put or deleted there is readable, but lost at the next start, since a sync failed.
    pub(super) fn is_lost(&self, table: Table, key: &[u8]) -> bool {
        let fresh = self.shared.fresh.read();
        fresh.halted && fresh.overlay.contains_key(&full_key(table, key))
    }

    /// The row, or `None`.
    pub(super) fn get<V: DeserializeOwned>(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<V>, SpoolError> {
        let key = full_key(table, key);
        if let Some((_, value)) = self.shared.fresh.read().overlay.get(&key) {
            return value
                .as_deref()
                .map(|bytes| decode(table, bytes))
                .transpose();
        }
        let database = self.shared.database()?;
        let rows = database
            .begin_read()
            .map_err(journal)?
            .open_table(ROWS)
            .map_err(journal)?;
        let found = rows.get(key.as_slice()).map_err(journal)?;
        found.map(|guard| decode(table, guard.value())).transpose()
    }

    /// Rows of `table` whose key starts with `prefix` and comes after `after`, in key order, at most `limit`.
    /// Keys are given without the table byte. A row that cannot be read is passed over and logged.
    pub(super) fn scan<V: DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, V)>, SpoolError> {
        let prefix = full_key(table, prefix);
        let start = after.map_or(Bound::Included(prefix.clone()), |key| {
            Bound::Excluded(full_key(table, key))
        });
        // The overlay first: a row that moves to the database in between is then seen twice, never missed.
        let mut fresh: BTreeMap<Key, Value> = BTreeMap::new();
        {
            let held = self.shared.fresh.read();
            let mut live = 0;
            for (key, (_, value)) in held.overlay.range((start.clone(), Bound::Unbounded)) {
                if !key.starts_with(&prefix) || live == limit {
                    break;
                }
                live += usize::from(value.is_some());
                fresh.insert(key.clone(), value.clone());
            }
        }
        let database = self.shared.database()?;
        let rows = database
            .begin_read()
            .map_err(journal)?
            .open_table(ROWS)
            .map_err(journal)?;
        let from = match &start {
            Bound::Included(key) => Bound::Included(key.as_slice()),
            Bound::Excluded(key) => Bound::Excluded(key.as_slice()),
            Bound::Unbounded => Bound::Unbounded,
        };
        let mut merged: BTreeMap<Key, Arc<[u8]>> = BTreeMap::new();
        for row in rows
            .range::<&[u8]>((from, Bound::Unbounded))
            .map_err(journal)?
        {
            let (key, value) = row.map_err(journal)?;
            if !key.value().starts_with(&prefix) || merged.len() == limit {
                break;
            }
            if !fresh.contains_key(key.value()) {
                merged.insert(key.value().to_vec(), value.value().into());
            }
        }
        for (key, value) in fresh {
            if let Some(value) = value {
                merged.insert(key, value);
            }
        }
        let mut found = Vec::new();
        for (key, value) in merged.into_iter().take(limit) {
            match decode(table, &value) {
                Ok(value) => found.push((key[1..].to_vec(), value)),
                Err(error) => {
                    tracing::error!(table = table.0, %error, "a journal row is passed over");
                }
            }
        }
        Ok(found)
    }

    /// Keys of the rows of `table` that are not what they should be; without the table byte.
    pub(super) fn unreadable<V: DeserializeOwned>(
        &self,
        table: Table,
    ) -> Result<Vec<Vec<u8>>, SpoolError> {
        let mut bad = Vec::new();
        for (key, ()) in self.scan::<()>(table, &[], None, usize::MAX)? {
            match self.get::<V>(table, &key) {
                Ok(_) => {}
                Err(SpoolError::Corrupted(_)) => bad.push(key),
                Err(error) => return Err(error),
            }
        }
        Ok(bad)
    }

    /// Commits what is left, ends the writer and closes the database. Nothing is read or written any more when this
    /// returns: the state may be another daemon's by then.
    pub(super) fn close(&self) {
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

#[derive(Serialize)]
struct LogRecord<'a>(&'a [(Key, Value)]);

impl LogRecord<'_> {
    fn to_record(&self) -> postcard::Result<Record> {
        Record::new(|header| postcard::to_extend(self, header))
    }
}

fn decode<V: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<V, SpoolError> {
    postcard::from_bytes(bytes)
        .map_err(|e| SpoolError::Corrupted(format!("table {}: {e}", table.0)))
}

pub(super) fn journal(error: impl fmt::Display) -> SpoolError {
    SpoolError::Journal(error.to_string())
}

/// What some records put, without what they deleted. One that cannot be read ends it: what follows may build on it.
fn rows_put(records: &[Vec<u8>]) -> BTreeMap<Key, Vec<u8>> {
    let mut put = BTreeMap::new();
    for record in records {
        let Ok(rows) = postcard::from_bytes::<Vec<(Key, Option<Vec<u8>>)>>(record) else {
            break;
        };
        let rows = rows.into_iter();
        put.extend(rows.filter_map(|(key, value)| Some((key, value?))));
    }
    put
}

/// What the log's rows speak of is in the page cache only; it becomes durable before they do. When it cannot, the next
/// start drops them.
fn replay_log(database: &Database, state: &Path, directory: &Path) -> Result<(), SpoolError> {
    let records = wal::read(directory)?;
    if records.is_empty() {
        return Ok(());
    }
    tracing::info!(
        batches = records.len(),
        "replaying the journal's log after a crash"
    );
    if let Err(error) = durable::sync_all(state, &[Sync::Everything]) {
        if durable::sync_failed(&error)
            && let Err(error) = start::distrust_page_cache(state)
        {
            tracing::error!(%error, "the next start cannot be told that a sync failed");
        }
        return Err(error);
    }
    let write = database.begin_write().map_err(journal)?;
    {
        let mut rows = write.open_table(ROWS).map_err(journal)?;
        for record in records {
            let decoded: Vec<(Key, Option<Vec<u8>>)> =
                postcard::from_bytes(&record).map_err(|e| SpoolError::Corrupted(e.to_string()))?;
            for (key, value) in decoded {
                match value {
                    Some(value) => drop(
                        rows.insert(key.as_slice(), value.as_slice())
                            .map_err(journal)?,
                    ),
                    None => drop(rows.remove(key.as_slice()).map_err(journal)?),
                }
            }
        }
    }
    write.commit().map_err(journal)
}

fn write_loop(shared: &Shared) {
    let mut gather = GATHER;
    loop {
        let stopping = {
            let mut held = shared.bell_lock.lock();
            loop {
                let (idle, stopping) = {
                    let fresh = shared.fresh.read();
                    (fresh.queue.is_empty(), fresh.stopping)
                };
                if !idle || stopping {
                    break stopping;
                }
                shared.bell.wait(&mut held);
            }
        };
        if !stopping {
            let until = Instant::now() + gather;
            let mut held = shared.bell_lock.lock();
            while !shared.is_in_a_hurry() && !shared.bell.wait_until(&mut held, until).timed_out() {
            }
        }
        let written = {
            let fresh = shared.fresh.read();
            // Only this thread empties the queue.
            match (fresh.queue.is_empty(), fresh.stopping) {
                (true, true) => return,
                (true, false) => continue,
                (false, _) => fresh.wal.segment(),
            }
        };
        let next = Segment::after(&shared.state.join("wal"), written);
        let (queue, number, ended) = {
            let mut fresh = shared.fresh.write();
            fresh.hurry = false;
            let queue = std::mem::take(&mut fresh.queue);
            fresh.queued_bytes = 0;
            let ended = next.map(|next| fresh.wal.rotate(next));
            (queue, fresh.batches, ended)
        };
        {
            let _held = shared.bell_lock.lock();
            shared.room.notify_all();
        }
        let started = Instant::now();
        if !commit_until_it_holds(shared, &queue) {
            return;
        }
        gather = match shared.fresh.read().queue.is_empty() {
            true => GATHER,
            false => (started.elapsed() * GATHER_PER_COMMIT).clamp(GATHER, GATHER_MAX),
        };
        for some in queue.chunks(BATCHES_FORGOTTEN) {
            let mut fresh = shared.fresh.write();
            for (key, _) in some.iter().flat_map(|waiting| &waiting.rows) {
                let held = fresh.overlay.get(key);
                if held.is_some_and(|(written, _)| *written <= number) {
                    fresh.overlay.remove(key);
                }
            }
        }
        // A segment that could not be ended or removed is replayed once more at the next start: rows are idempotent
        // as long as the order holds, so nothing after it is removed either.
        match ended {
            Ok(ended) => {
                if let Err(error) = Wal::release(&shared.state.join("wal"), ended) {
                    tracing::warn!(%error, "cannot remove an old log segment");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot start a new log segment"),
        }
        for call in queue.into_iter().flat_map(|waiting| waiting.on_durable) {
            call();
        }
    }
}

/// `false`: the daemon is stopping and the disk still fails, or a sync failed; the log keeps what is not committed.
fn commit_until_it_holds(shared: &Shared, queue: &[Waiting]) -> bool {
    loop {
        match commit(shared, queue) {
            Ok(()) => {
                if shared.trouble.lock().take().is_some() {
                    tracing::info!("the journal works again");
                }
                shared.reserve.refill();
                return true;
            }
            Err(error) if durable::sync_failed(&error) => {
                halt(shared, &error);
                return false;
            }
            Err(error) if reserve::is_full(&error) && shared.reserve.give_up() => {
                tracing::warn!(%error, "the disk is full: the journal goes on in what was set aside");
                reopen(shared);
                continue;
            }
            Err(error) => {
                let text = format!("{error}; it is tried again");
                let mut trouble = shared.trouble.lock();
                if trouble.as_deref() != Some(text.as_str()) {
                    tracing::error!(%error, "the journal cannot be committed; it is tried again");
                }
                *trouble = Some(text);
            }
        }
        if shared.fresh.read().stopping {
            return false;
        }
        {
            let mut held = shared.bell_lock.lock();
            shared.bell.wait_for(&mut held, RETRY);
        }
        reopen(shared);
    }
}

/// From now on nothing becomes durable. The next start is told first: were the daemon killed before, it would replay the
/// log over bytes that are lost.
fn halt(shared: &Shared, error: &SpoolError) {
    let restart = match start::distrust_page_cache(&shared.state) {
        Ok(()) => "the daemon",
        Err(error) => {
            tracing::error!(%error, "the next start cannot be told that a sync failed");
            "the machine, not only the daemon"
        }
    };
    tracing::error!(%error, "a sync failed: nothing is committed any more");
    *shared.trouble.lock() = Some(format!(
        "a sync failed ({error}): nothing further counts as delivered; check the disk, then restart {restart}"
    ));
    let unsaid = {
        let mut fresh = shared.fresh.write();
        fresh.halted = true;
        fresh.queued_bytes = 0;
        std::mem::take(&mut fresh.queue)
    };
    // Whoever waits for durability learns here that it does not come; not under the lock, since that is their code.
    drop(unsaid);
    let _held = shared.bell_lock.lock();
    shared.room.notify_all();
}

fn commit(shared: &Shared, queue: &[Waiting]) -> Result<(), SpoolError> {
    let syncs: Vec<Sync> = queue
        .iter()
        .flat_map(|waiting| waiting.syncs.iter().cloned())
        .collect();
    durable::sync_all(&shared.state, &syncs)?;
    let mut last: HashMap<&[u8], &Value> = HashMap::new();
    for (key, value) in queue.iter().flat_map(|waiting| &waiting.rows) {
        last.insert(key, value);
    }
    if last.is_empty() {
        return Ok(());
    }
    let mut sorted: Vec<_> = last.into_iter().collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    let database = shared.database()?;
    let write = database.begin_write().map_err(journal)?;
    {
        let mut rows = write.open_table(ROWS).map_err(journal)?;
        for (key, value) in sorted {
            match value {
                Some(value) => drop(rows.insert(key, value.as_ref()).map_err(journal)?),
                None => drop(rows.remove(key).map_err(journal)?),
            }
        }
    }
    write.commit().map_err(journal)
}

/// redb latches after an I/O error; a new handle starts from the last commit. Not possible while a reader still holds
/// the old one, since redb locks its file: then there is no database until the next attempt.
fn reopen(shared: &Shared) {
    let mut held = shared.database.write();
    drop(held.take());
    match open_database(&database_path(&shared.state), Duration::ZERO) {
        Ok(database) => *held = Some(Arc::new(database)),
        Err(error) => tracing::error!(%error, "the journal's database cannot be opened again"),
    }
}

/// What a run that was killed, or lost its power, has submitted and not committed.
#[cfg(test)]
pub(super) fn append_to_log(state: &Path, batch: &Batch) {
    let record = LogRecord(&batch.rows).to_record().unwrap();
    Wal::open(&state.join("wal"))
        .and_then(|mut wal| wal.append(&record))
        .unwrap();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::database::COMPACT_FROM;
    use super::super::start;
    use super::*;

    const T: Table = Table(7);
    const U: Table = Table(8);

    fn put(journal: &Journal, table: Table, key: &str, value: u32) {
        let mut batch = Batch::default();
        batch.put(table, key.as_bytes(), &value);
        journal.submit(batch).unwrap();
    }

    fn keys(
        journal: &Journal,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(String, u32)> {
        let rows = journal
            .scan(T, prefix.as_bytes(), after.map(str::as_bytes), limit)
            .unwrap();
        rows.into_iter()
            .map(|(key, value)| (String::from_utf8(key).unwrap(), value))
            .collect()
    }

    #[test]
    fn a_row_is_read_back_at_once_and_after_its_commit() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), true).unwrap();
        put(&journal, T, "a", 1);
        assert_eq!(journal.get(T, b"a").unwrap(), Some(1_u32));
        journal.flush().unwrap();
        assert!(journal.shared.fresh.read().overlay.is_empty());
        assert_eq!(journal.get(T, b"a").unwrap(), Some(1_u32));
        let mut batch = Batch::default();
        batch.delete(T, b"a");
        journal.submit(batch).unwrap();
        assert_eq!(journal.get::<u32>(T, b"a").unwrap(), None);
        journal.close();
    }

    #[test]
    fn a_closed_journal_can_be_opened_at_once_whoever_was_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..40_u32 {
            let journal = Journal::open(dir.path(), true).unwrap();
            put(&journal, T, "a", round);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| while journal.get::<u32>(T, b"a").is_ok() {});
                }
                journal.close();
                open_database(&database_path(dir.path()), Duration::ZERO).unwrap();
            });
            let mut late = Batch::default();
            late.put(T, b"b", &round);
            assert!(journal.submit(late).is_err(), "the log is another's by now");
        }
        let journal = Journal::open(dir.path(), true).unwrap();
        assert_eq!(journal.get(T, b"a").unwrap(), Some(39_u32));
        assert_eq!(journal.get::<u32>(T, b"b").unwrap(), None);
        journal.close();
    }

    #[test]
    fn what_others_could_read_is_closed_to_them() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let path = database_path(dir.path());
        Journal::open(dir.path(), true).unwrap().close();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        Journal::open(dir.path(), true).unwrap().close();
        for entry in [path, dir.path().join("wal")] {
            let mode = std::fs::metadata(&entry).unwrap().mode();
            assert_eq!(mode & 0o077, 0, "{}", entry.display());
        }
    }

    #[test]
    fn a_journal_whose_rows_are_gone_gives_their_room_back_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let size = || std::fs::metadata(database_path(dir.path())).unwrap().len();
        let journal = Journal::open(dir.path(), true).unwrap();
        let fill = |bytes: Option<Vec<u8>>| {
            for part in 0..8_u32 {
                let mut batch = Batch::default();
                for n in 0..100_u32 {
                    let key = [part.to_be_bytes(), n.to_be_bytes()].concat();
                    match &bytes {
                        Some(bytes) => batch.put(T, &key, bytes),
                        None => batch.delete(T, &key),
                    }
                }
                journal.submit(batch).unwrap();
            }
            put(&journal, U, "kept", 5);
            journal.flush().unwrap();
        };
        fill(Some(vec![7; 30_000]));
        fill(None);
        journal.close();
        drop(journal);
        assert!(size() > COMPACT_FROM, "{}", size());
        let journal = Journal::open(dir.path(), true).unwrap();
        assert!(size() < COMPACT_FROM, "{}", size());
        assert_eq!(journal.get(U, b"kept").unwrap(), Some(5_u32));
        journal.close();
    }

    #[test]
    fn a_scan_merges_fresh_and_committed_rows_of_its_prefix_only() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), true).unwrap();
        for (key, value) in [("p1", 1), ("p3", 3), ("q", 9)] {
            put(&journal, T, key, value);
        }
        journal.flush().unwrap();
        put(&journal, T, "p2", 2);
        put(&journal, T, "p3", 33);
        put(&journal, U, "p4", 4);
        let row = |key: &str, value| (key.to_owned(), value);
        assert_eq!(
            keys(&journal, "p", None, 9),
            [row("p1", 1), row("p2", 2), row("p3", 33)]
        );
        assert_eq!(keys(&journal, "p", Some("p1"), 1), [row("p2", 2)]);
        let mut batch = Batch::default();
        batch.delete(T, b"p1");
        journal.submit(batch).unwrap();
        assert_eq!(keys(&journal, "p", None, 1), [row("p2", 2)]);
        journal.close();
    }

    #[test]
    fn a_killed_daemon_keeps_what_it_submitted_and_a_power_loss_what_was_committed() {
        for (replay, expected) in [(true, Some(2_u32)), (false, Some(1))] {
            let dir = tempfile::tempdir().unwrap();
            let saved = tempfile::tempdir().unwrap();
            let journal = Journal::open(dir.path(), true).unwrap();
            put(&journal, T, "a", 1);
            journal.flush().unwrap();
            // What a kill leaves: the database as it was, and the log with one more record.
            std::fs::copy(
                dir.path().join("journal.redb"),
                saved.path().join("journal.redb"),
            )
            .unwrap();
            journal.close();
            let mut wal = Wal::open(&saved.path().join("wal")).unwrap();
            let rows = vec![(
                full_key(T, b"a"),
                Some(Arc::from(postcard::to_stdvec(&2_u32).unwrap())),
            )];
            wal.append(&LogRecord(&rows).to_record().unwrap()).unwrap();
            drop(wal);
            let journal = Journal::open(saved.path(), replay).unwrap();
            assert_eq!(journal.get(T, b"a").unwrap(), expected);
            journal.close();
        }
    }

    #[test]
    fn durability_is_announced_in_order_of_submission() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), true).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..100_u32 {
            let mut batch = Batch::default();
            batch.put(T, &number.to_be_bytes(), &number);
            let seen = Arc::clone(&seen);
            batch.on_durable(move || seen.lock().push(number));
            journal.submit(batch).unwrap();
        }
        journal.flush().unwrap();
        assert_eq!(*seen.lock(), (0..100).collect::<Vec<_>>());
        journal.close();
    }

    #[test]
    fn a_sync_that_failed_is_not_believed_when_it_succeeds_later() {
        let dir = tempfile::tempdir().unwrap();
        start::save_boot(dir.path()).unwrap();
        let journal = Journal::open(dir.path(), true).unwrap();
        put(&journal, T, "before", 1);
        journal.flush().unwrap();
        let called = Arc::new(AtomicBool::new(false));
        let submit = |key: &[u8], sync: Option<Sync>| {
            let mut batch = Batch::default();
            batch.put(T, key, &2_u32);
            sync.into_iter().for_each(|sync| batch.sync(sync));
            let called = Arc::clone(&called);
            batch.on_durable(move || called.store(true, Ordering::Release));
            journal.submit(batch).unwrap();
        };
        let failed = Arc::new(AtomicBool::new(false));
        submit(b"lost", Some(Sync::FailsOnce(Arc::clone(&failed))));
        journal.flush().unwrap_err();
        submit(b"later", None);
        let error = journal.flush().unwrap_err().to_string();
        assert!(error.contains("a sync failed"), "{error}");
        let trouble = journal.trouble().unwrap();
        assert!(
            trouble.contains("a sync failed") && trouble.contains("restart the daemon"),
            "{trouble}"
        );
        assert_eq!(journal.get(T, b"lost").unwrap(), Some(2_u32), "readable");
        journal.still_keeps().unwrap_err();
        assert!(journal.is_lost(T, b"lost") && !journal.is_lost(T, b"before"));
        // A whole backlog later nobody is made to wait for room that does not come.
        for _ in 0..2 {
            let mut batch = Batch::default();
            batch.put(U, b"large", &vec![0_u8; BACKLOG_BYTES]);
            journal.submit(batch).unwrap();
        }
        journal.make_room();
        journal.close();
        drop(journal);
        assert!(failed.load(Ordering::Acquire) && !called.load(Ordering::Acquire));

        let last = start::last_run(dir.path()).unwrap();
        assert_eq!(last, start::LastRun::SyncFailed);
        let again = Journal::open(dir.path(), false).unwrap();
        assert_eq!(again.get(T, b"before").unwrap(), Some(1_u32));
        for key in ["lost", "later"] {
            assert_eq!(again.get::<u32>(T, key.as_bytes()).unwrap(), None, "{key}");
        }
        assert_eq!(again.trouble(), None);
        again.close();
    }

    /// Waits until the writer has taken what was submitted, or has failed to.
    fn settled(journal: &Journal) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while journal.trouble().is_none() && !journal.shared.fresh.read().overlay.is_empty() {
            assert!(std::time::Instant::now() < deadline, "the writer is stuck");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_database_that_cannot_be_opened_again_at_once_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), true).unwrap();
        let reader = journal.shared.database.read().clone();
        reopen(&journal.shared);
        put(&journal, T, "a", 1);
        settled(&journal);
        drop(reader);
        journal.flush().unwrap();
        journal.close();
        drop(journal);
        let again = Journal::open(dir.path(), true).unwrap();
        assert_eq!(again.get(T, b"a").unwrap(), Some(1_u32));
        again.close();
    }

    #[test]
    fn a_directory_that_became_a_file_does_not_hold_up_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), true).unwrap();
        std::fs::write(dir.path().join("was-directory"), b"").unwrap();
        let mut batch = Batch::default();
        batch.put(T, b"a", &1_u32);
        batch.sync(Sync::Directory(dir.path().join("was-directory/below")));
        journal.submit(batch).unwrap();
        settled(&journal);
        assert_eq!(journal.trouble(), None);
        journal.close();
    }
}
