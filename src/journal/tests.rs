//! The journal on tables of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use super::database::{COMPACT_FROM, open_database};
use super::writer::reopen;
use super::*;

const T: Table = Table(7);
const U: Table = Table(8);

fn open(directory: &Path, replay: bool) -> Result<Journal, JournalError> {
    Journal::open(directory, replay, || Ok(()))
}

fn put(journal: &Journal, table: Table, key: &str, value: u32) {
    let mut batch = Batch::default();
    batch.put(table, key.as_bytes(), &value);
    journal.submit(batch).unwrap();
}

fn keys(journal: &Journal, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(String, u32)> {
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
    let journal = open(dir.path(), true).unwrap();
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
        let journal = open(dir.path(), true).unwrap();
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
    let journal = open(dir.path(), true).unwrap();
    assert_eq!(journal.get(T, b"a").unwrap(), Some(39_u32));
    assert_eq!(journal.get::<u32>(T, b"b").unwrap(), None);
    journal.close();
}

#[test]
fn what_others_could_read_is_closed_to_them() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let path = database_path(dir.path());
    open(dir.path(), true).unwrap().close();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    open(dir.path(), true).unwrap().close();
    for entry in [path, log_directory(dir.path())] {
        let mode = std::fs::metadata(&entry).unwrap().mode();
        assert_eq!(mode & 0o077, 0, "{}", entry.display());
    }
}

#[test]
fn a_journal_whose_rows_are_gone_gives_their_room_back_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let size = || std::fs::metadata(database_path(dir.path())).unwrap().len();
    let journal = open(dir.path(), true).unwrap();
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
    let journal = open(dir.path(), true).unwrap();
    assert!(size() < COMPACT_FROM, "{}", size());
    assert_eq!(journal.get(U, b"kept").unwrap(), Some(5_u32));
    journal.close();
}

#[test]
fn a_scan_merges_fresh_and_committed_rows_of_its_prefix_only() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
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
        let journal = open(dir.path(), true).unwrap();
        put(&journal, T, "a", 1);
        journal.flush().unwrap();
        // What a kill leaves: the database as it was, and the log with one more record.
        std::fs::copy(
            dir.path().join("journal.redb"),
            saved.path().join("journal.redb"),
        )
        .unwrap();
        journal.close();
        let mut log = Log::open(&log_directory(saved.path())).unwrap();
        let rows = vec![(
            full_key(T, b"a"),
            Some(Arc::from(postcard::to_stdvec(&2_u32).unwrap())),
        )];
        log.append(&LogRecord(&rows).to_record().unwrap()).unwrap();
        drop(log);
        let journal = open(saved.path(), replay).unwrap();
        assert_eq!(journal.get(T, b"a").unwrap(), expected);
        journal.close();
    }
}

#[test]
fn durability_is_announced_in_order_of_submission() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
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
    let told = Arc::new(AtomicBool::new(false));
    let distrust = {
        let told = Arc::clone(&told);
        move || {
            told.store(true, Ordering::Release);
            Ok(())
        }
    };
    let journal = Journal::open(dir.path(), true, distrust).unwrap();
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
    assert!(told.load(Ordering::Acquire), "the next start");

    let again = open(dir.path(), false).unwrap();
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
    let journal = open(dir.path(), true).unwrap();
    let reader = journal.shared.database.read().clone();
    reopen(&journal.shared);
    put(&journal, T, "a", 1);
    settled(&journal);
    drop(reader);
    journal.flush().unwrap();
    journal.close();
    drop(journal);
    let again = open(dir.path(), true).unwrap();
    assert_eq!(again.get(T, b"a").unwrap(), Some(1_u32));
    again.close();
}

#[test]
fn a_directory_that_became_a_file_does_not_hold_up_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
    std::fs::write(dir.path().join("was-directory"), b"").unwrap();
    let mut batch = Batch::default();
    batch.put(T, b"a", &1_u32);
    batch.sync(Sync::Directory(dir.path().join("was-directory/below")));
    journal.submit(batch).unwrap();
    settled(&journal);
    assert_eq!(journal.trouble(), None);
    journal.close();
}
