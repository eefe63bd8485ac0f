//! The journal's writer: the one thread that syncs and commits, and the replay of a log at the start.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::Database;

use super::batch::{Batch, FullKey, Value};
use super::database::{ROWS, database_path, open_database};
use super::error::JournalError;
use super::log::{self, Log, Segment};
use super::shared::{Distrust, Shared, log_directory};
use crate::disk::durable::{self, Sync};

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

/// What the log's rows speak of is in the page cache only; it becomes durable before they do. When it cannot, the next
/// start drops them.
pub(super) fn replay_log(
    database: &Database,
    directory: &Path,
    distrust: &Distrust,
) -> Result<(), JournalError> {
    let records = log::read(&log_directory(directory))?;
    if records.is_empty() {
        return Ok(());
    }
    tracing::info!(
        batches = records.len(),
        "replaying the journal's log after a crash"
    );
    if let Err(error) = durable::sync_all(directory, &[Sync::Everything]) {
        let error = JournalError::from(error);
        if error.is_failed_sync()
            && let Err(error) = distrust()
        {
            tracing::error!(%error, "the next start cannot be told that a sync failed");
        }
        return Err(error);
    }
    let write = database.begin_write().map_err(JournalError::database)?;
    {
        let mut rows = write.open_table(ROWS).map_err(JournalError::database)?;
        for record in records {
            let decoded: Vec<(FullKey, Option<Vec<u8>>)> =
                postcard::from_bytes(&record).map_err(|e| JournalError::Record(e.to_string()))?;
            for (key, value) in decoded {
                match value {
                    Some(value) => drop(
                        rows.insert(key.as_slice(), value.as_slice())
                            .map_err(JournalError::database)?,
                    ),
                    None => drop(
                        rows.remove(key.as_slice())
                            .map_err(JournalError::database)?,
                    ),
                }
            }
        }
    }
    write.commit().map_err(JournalError::database)
}

pub(super) fn write_loop(shared: &Shared) {
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
                (false, _) => fresh.log.segment(),
            }
        };
        let next = Segment::after(&log_directory(&shared.directory), written);
        let (queue, number, ended) = {
            let mut fresh = shared.fresh.write();
            fresh.hurry = false;
            let queue = std::mem::take(&mut fresh.queue);
            fresh.queued_bytes = 0;
            let ended = next.map(|next| fresh.log.rotate(next));
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
                if let Err(error) = Log::release(&log_directory(&shared.directory), ended) {
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
fn commit_until_it_holds(shared: &Shared, queue: &[Batch]) -> bool {
    loop {
        match commit(shared, queue) {
            Ok(()) => {
                if shared.trouble.lock().take().is_some() {
                    tracing::info!("the journal works again");
                }
                shared.reserve.refill();
                return true;
            }
            Err(error) if error.is_failed_sync() => {
                halt(shared, &error);
                return false;
            }
            Err(error) if error.is_full() && shared.reserve.give_up() => {
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
fn halt(shared: &Shared, error: &JournalError) {
    let restart = match (shared.distrust)() {
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

fn commit(shared: &Shared, queue: &[Batch]) -> Result<(), JournalError> {
    let syncs: Vec<Sync> = queue
        .iter()
        .flat_map(|waiting| waiting.syncs.iter().cloned())
        .collect();
    durable::sync_all(&shared.directory, &syncs)?;
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
    let write = database.begin_write().map_err(JournalError::database)?;
    {
        let mut rows = write.open_table(ROWS).map_err(JournalError::database)?;
        for (key, value) in sorted {
            match value {
                Some(value) => drop(
                    rows.insert(key, value.as_ref())
                        .map_err(JournalError::database)?,
                ),
                None => drop(rows.remove(key).map_err(JournalError::database)?),
            }
        }
    }
    write.commit().map_err(JournalError::database)
}

/// redb latches after an I/O error; a new handle starts from the last commit. Not possible while a reader still holds
/// the old one, since redb locks its file: then there is no database until the next attempt.
pub(super) fn reopen(shared: &Shared) {
    let mut held = shared.database.write();
    drop(held.take());
    match open_database(&database_path(&shared.directory), Duration::ZERO) {
        Ok(database) => *held = Some(Arc::new(database)),
        Err(error) => tracing::error!(%error, "the journal's database cannot be opened again"),
    }
}
