//! The journal on tables of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use super::database::{COMPACT_FROM, open_database};
use super::writer::reopen;
use super::*;

const T: Table<String, u32> = Table::new(7);
const U: Table<String, u32> = Table::new(8);
const PAIRS: Table<([u8; 1], String), u32> = Table::new(10);
const OTHER_PAIRS: Table<([u8; 1], String), u32> = Table::new(11);
const BLOBS: Table<(u64, u64), Vec<u8>> = Table::new(9);

fn open(directory: &Path, replay: bool) -> Result<Journal, JournalError> {
    Journal::open(directory, replay, None, || Ok(()))
}

fn put(journal: &Journal, table: Table<String, u32>, key: &str, value: u32) {
    let mut batch = Batch::default();
    batch.insert(table, &key, &value);
    journal.submit(batch).unwrap();
}

#[test]
fn a_row_is_read_back_at_once_and_after_its_commit() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
    put(&journal, T, "a", 1);
    assert_eq!(journal.row(T, &"a").unwrap(), Some(1_u32));
    journal.flush().unwrap();
    assert!(journal.shared.fresh.read().overlay.is_empty());
    assert_eq!(journal.row(T, &"a").unwrap(), Some(1_u32));
    let mut batch = Batch::default();
    batch.remove(T, &"a");
    journal.submit(batch).unwrap();
    assert_eq!(journal.row(T, &"a").unwrap(), None);
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
                scope.spawn(|| while journal.row(T, &"a").is_ok() {});
            }
            journal.close();
            open_database(&database_path(dir.path()), Duration::ZERO).unwrap();
        });
        let mut late = Batch::default();
        late.insert(T, &"b", &round);
        assert!(journal.submit(late).is_err(), "the log is another's by now");
    }
    let journal = open(dir.path(), true).unwrap();
    assert_eq!(journal.row(T, &"a").unwrap(), Some(39_u32));
    assert_eq!(journal.row(T, &"b").unwrap(), None);
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
        for part in 0..8 {
            let mut batch = Batch::default();
            for n in 0..100 {
                match &bytes {
                    Some(bytes) => batch.insert(BLOBS, &(part, n), bytes),
                    None => batch.remove(BLOBS, &(part, n)),
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
    assert_eq!(journal.row(U, &"kept").unwrap(), Some(5_u32));
    journal.close();
}

#[test]
fn rows_below_a_prefix_are_those_that_are_fresh_and_those_that_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
    let put = |table: Table<([u8; 1], String), u32>, key: (&[u8; 1], &str), value| {
        let mut batch = Batch::default();
        batch.insert(table, &key, &value);
        journal.submit(batch).unwrap();
    };
    let rows = |after: Option<(&[u8; 1], &str)>, limit| {
        let rows = PAIRS.below(b"p").after(after.as_ref());
        let rows = journal.rows(rows, limit).unwrap().into_iter();
        rows.map(|((first, rest), value)| {
            assert_eq!(first, *b"p");
            (rest, value)
        })
        .collect::<Vec<_>>()
    };
    put(PAIRS, (b"p", "1"), 1);
    put(PAIRS, (b"p", "3"), 3);
    put(PAIRS, (b"q", ""), 9);
    journal.flush().unwrap();
    put(PAIRS, (b"p", "2"), 2);
    put(PAIRS, (b"p", "3"), 33);
    put(OTHER_PAIRS, (b"p", "4"), 4);
    let row = |key: &str, value| (key.to_owned(), value);
    assert_eq!(rows(None, 9), [row("1", 1), row("2", 2), row("3", 33)]);
    assert_eq!(rows(Some((b"p", "1")), 1), [row("2", 2)]);
    let mut batch = Batch::default();
    batch.remove(PAIRS, &(b"p", "1"));
    journal.submit(batch).unwrap();
    assert_eq!(rows(None, 1), [row("2", 2)]);
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
        let mut batch = Batch::default();
        batch.insert(T, &"a", &2);
        log.append(&LogRecord(&batch.rows).to_record().unwrap())
            .unwrap();
        drop(log);
        let journal = open(saved.path(), replay).unwrap();
        assert_eq!(journal.row(T, &"a").unwrap(), expected);
        journal.close();
    }
}

#[test]
fn a_log_that_ends_at_any_byte_gives_the_batches_that_are_whole() {
    let saved = tempfile::tempdir().unwrap();
    let base = saved.path().join("base");
    std::fs::create_dir(&base).unwrap();
    open(&base, true).unwrap().close();
    let mut ends = Vec::new();
    let mut log = Log::open(&log_directory(saved.path())).unwrap();
    for number in 0..3_u32 {
        // Two rows that belong together, and one that the batch before it wrote.
        let mut batch = Batch::default();
        batch.insert(T, &format!("left {number}"), &number);
        batch.insert(U, &format!("right {number}"), &number);
        batch.insert(T, &"last", &number);
        if number == 2 {
            batch.remove(T, &"left 0");
        }
        let record = LogRecord(&batch.rows).to_record().unwrap();
        log.append(&record).unwrap();
        ends.push(ends.last().copied().unwrap_or(0) + record.len());
    }
    let written = std::fs::read(log::name(&log_directory(saved.path()), 0)).unwrap();
    drop(log);
    assert_eq!(written.len(), ends[2]);
    for cut in 0..=written.len() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(base.join("journal.redb"), dir.path().join("journal.redb")).unwrap();
        let log = log_directory(dir.path());
        std::fs::create_dir(&log).unwrap();
        std::fs::write(log::name(&log, 0), &written[..cut]).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count() as u32;
        // A kill in the middle of what follows is the same once more.
        for start in 0..2 {
            let journal = open(dir.path(), true).unwrap();
            for number in 0..3_u32 {
                let there = (number < whole).then_some(number);
                let kept = there.filter(|number| !(*number == 0 && whole == 3));
                let (left, right) = (format!("left {number}"), format!("right {number}"));
                let at = format!("cut at {cut}, start {start}");
                assert_eq!(journal.row(T, &left).unwrap(), kept, "{at}");
                assert_eq!(journal.row(U, &right).unwrap(), there, "{at}");
            }
            assert_eq!(journal.row(T, &"last").unwrap(), whole.checked_sub(1));
            journal.close();
        }
    }
}

#[test]
fn durability_is_announced_in_order_of_submission() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for number in 0..100_u32 {
        let mut batch = Batch::default();
        batch.insert(T, &number.to_string(), &number);
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
    let journal = Journal::open(dir.path(), true, None, distrust).unwrap();
    put(&journal, T, "before", 1);
    journal.flush().unwrap();
    let called = Arc::new(AtomicBool::new(false));
    let submit = |key: &str, sync: Option<Sync>| {
        let mut batch = Batch::default();
        batch.insert(T, &key, &2_u32);
        sync.into_iter().for_each(|sync| batch.sync(sync));
        let called = Arc::clone(&called);
        batch.on_durable(move || called.store(true, Ordering::Release));
        journal.submit(batch).unwrap();
    };
    let failed = Arc::new(AtomicBool::new(false));
    submit("lost", Some(Sync::FailsOnce(Arc::clone(&failed))));
    journal.flush().unwrap_err();
    submit("later", None);
    let error = journal.flush().unwrap_err().to_string();
    assert!(error.contains("a sync failed"), "{error}");
    let trouble = journal.trouble().unwrap();
    assert!(
        trouble.contains("a sync failed") && trouble.contains("restart the daemon"),
        "{trouble}"
    );
    assert_eq!(journal.row(T, &"lost").unwrap(), Some(2_u32), "readable");
    journal.still_keeps().unwrap_err();
    assert!(journal.is_lost(T, &"lost") && !journal.is_lost(T, &"before"));
    // A whole backlog later nobody is made to wait for room that does not come.
    for _ in 0..2 {
        let mut batch = Batch::default();
        batch.insert(BLOBS, &(0, 0), &vec![0_u8; BACKLOG_BYTES]);
        journal.submit(batch).unwrap();
    }
    journal.make_room();
    journal.close();
    drop(journal);
    assert!(failed.load(Ordering::Acquire) && !called.load(Ordering::Acquire));
    assert!(told.load(Ordering::Acquire), "the next start");

    let again = open(dir.path(), false).unwrap();
    assert_eq!(again.row(T, &"before").unwrap(), Some(1_u32));
    for key in ["lost", "later"] {
        assert_eq!(again.row(T, &key).unwrap(), None, "{key}");
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
    assert_eq!(again.row(T, &"a").unwrap(), Some(1_u32));
    again.close();
}

#[test]
fn a_directory_that_became_a_file_does_not_hold_up_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path(), true).unwrap();
    std::fs::write(dir.path().join("was-directory"), b"").unwrap();
    let mut batch = Batch::default();
    batch.insert(T, &"a", &1_u32);
    batch.sync(Sync::Directory(dir.path().join("was-directory/below")));
    journal.submit(batch).unwrap();
    settled(&journal);
    assert_eq!(journal.trouble(), None);
    journal.close();
}
