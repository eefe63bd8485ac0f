//! The first and last steps on a state directory: its lock, its format, and which boot it was last used in.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::durable::{self, OnPath};
use super::tables::Stat;
use super::{Layout, SpoolError};
use crate::disk::DiskError;
use crate::journal::{Journal, Seal};

/// Version of the state directory's format written here.
const FORMAT: u32 = 1;

/// What `boot` says after a clean stop: everything is on the disk, whatever happens to the machine.
const CLEAN: &str = "clean\n";

/// What `boot` says after a failed sync.
const SYNC_FAILED: &str = "a sync failed\n";

/// A daemon that was killed holds its lock until its last system call is done: a sync on a slow disk.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How often the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// The lock of a state directory: no other daemon uses it while this is held.
#[derive(Debug)]
pub(crate) struct StateLock {
    _held: File,
}

impl StateLock {
    /// Takes it; waits a moment for a daemon that was killed. The directory is there.
    pub(crate) fn take(layout: &Layout) -> Result<Self, SpoolError> {
        Ok(Self {
            _held: take_lock(layout)?,
        })
    }
}

fn take_lock(layout: &Layout) -> Result<File, SpoolError> {
    let path = layout.lock();
    let mut file = durable::open_or_make(&path)?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, &path)? => return Ok(file),
            // Whoever held it was refused, and has taken its traces away.
            Ok(()) => file = durable::open_or_make(&path)?,
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SpoolError::InUse {
                    state: layout.state().to_path_buf(),
                    process: holder(&file),
                });
            }
            Err(e) => return Err(e).on("lock", &path),
        }
    }
}

fn is_at(file: &File, path: &Path) -> Result<bool, SpoolError> {
    let ours = file.metadata().on("look at", path)?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).on("look at", path),
    }
}

/// The process that holds the lock, in words. The device is not compared: some file systems show another one there.
fn holder(lock: &File) -> String {
    let unknown = || "a process that cannot be seen from here".to_owned();
    let (Ok(meta), Ok(table)) = (lock.metadata(), std::fs::read_to_string("/proc/locks")) else {
        return unknown();
    };
    let Some(pid) = holder_in(&table, meta.ino()) else {
        return unknown();
    };
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid}: {}", command.trim())
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF`, see proc_locks(5). Who only waits has an arrow before the kind.
fn holder_in(table: &str, ino: u64) -> Option<u32> {
    let place = format!(":{ino}");
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        if fields.next() != Some("FLOCK") {
            return None;
        }
        let (pid, at) = (fields.nth(2)?, fields.next()?);
        // In another pid namespace it has no number here.
        let pid = pid.parse().ok().filter(|pid| *pid > 0);
        pid.filter(|_| at.ends_with(&place))
    })
}

pub(super) fn check_format(state: &Path) -> Result<(), SpoolError> {
    let path = state.join("format");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            durable::write_file(&path, format!("{FORMAT}\n").as_bytes())?;
            return Ok(());
        }
        Err(e) => return Err(e).on("read", &path),
    };
    let found: u32 = text
        .trim()
        .parse()
        .map_err(|_| SpoolError::Corrupted(format!("{} says {text:?}", path.display())))?;
    if found > FORMAT {
        return Err(SpoolError::NewerFormat {
            path: state.to_path_buf(),
            found,
            known: FORMAT,
        });
    }
    Ok(())
}

pub(super) fn check_hard_links(layout: &Layout) -> Result<(), SpoolError> {
    let (from, to) = (layout.lock(), layout.partial().join("link-probe"));
    durable::remove(&to)?;
    match std::fs::hard_link(&from, &to) {
        Ok(()) => Ok(durable::remove(&to).map(drop)?),
        Err(_) => Err(SpoolError::Unsupported {
            path: layout.state().to_path_buf(),
            what: "hard links",
        }),
    }
}

pub(super) fn boot_id() -> Result<String, SpoolError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    std::fs::read_to_string(path).on("read", path)
}

/// How the last run on a state ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastRun {
    /// All it left is there: the kernel has been up since, or the stop was clean. Also for fresh state.
    Whole,
    /// By a power loss: there is what had reached the disk.
    PowerLost,
    /// After a failed sync: what can be read may be in memory only, and gone tomorrow.
    SyncFailed,
}

/// How the last run ended, by what `boot` says.
pub(super) fn last_run(state: &Path) -> Result<LastRun, SpoolError> {
    last_run_by(state, witness(state, runtime_directory()).as_deref())
}

fn last_run_by(state: &Path, witness: Option<&Path>) -> Result<LastRun, SpoolError> {
    let path = state.join("boot");
    match std::fs::read_to_string(&path) {
        Ok(text) if text.starts_with(CLEAN) => Ok(LastRun::Whole),
        Ok(text) if text == boot_id()? => {
            let said = witness.and_then(|witness| std::fs::read_to_string(witness).ok());
            Ok(match said {
                Some(said) if said == text => LastRun::SyncFailed,
                Some(_) | None => LastRun::Whole,
            })
        }
        // Where the disk was full, it could be emptied only.
        Ok(text) if text == SYNC_FAILED || text.is_empty() => Ok(LastRun::SyncFailed),
        Ok(_) => Ok(LastRun::PowerLost),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(LastRun::Whole),
        Err(e) => Err(e).on("read", &path),
    }
}

/// Makes the next start one after a failed sync, though this kernel may still run. Written in place, since a disk that is
/// full has no room for a new file: empty is as good. A disk that turned read-only takes not even that, and one that fails
/// may lose it: so it is said in memory, too, for as long as this kernel runs.
pub(super) fn distrust_page_cache(state: &Path) -> Result<(), DiskError> {
    distrust_by(state, witness(state, runtime_directory()).as_deref())
}

fn distrust_by(state: &Path, witness: Option<&Path>) -> Result<(), DiskError> {
    let on_disk = durable::overwrite(&state.join("boot"), SYNC_FAILED.as_bytes());
    let (Some(witness), Ok(boot)) = (witness, boot_id()) else {
        return on_disk;
    };
    durable::write_file(witness, boot.as_bytes()).or_else(|error| {
        tracing::debug!(%error, "only on the disk can be said that a sync failed");
        on_disk
    })
}

/// Where our user's files of this boot are: in memory.
fn runtime_directory() -> Option<PathBuf> {
    // A test that fails syncs leaves nothing behind.
    if cfg!(test) {
        return None;
    }
    let user = rustix::process::geteuid();
    let directory = match user.is_root() {
        true => PathBuf::from("/run"),
        false => PathBuf::from(format!("/run/user/{}", user.as_raw())),
    };
    directory.is_dir().then_some(directory)
}

/// The file there that speaks of this state: by its inode, wherever it is mounted next.
fn witness(state: &Path, directory: Option<PathBuf>) -> Option<PathBuf> {
    let Stat { ino, born, .. } = Stat::of(&std::fs::metadata(state).ok()?);
    let (secs, nanos) = born.unwrap_or_default();
    Some(directory?.join(format!("meshbox-sync-failed-{ino}-{secs}-{nanos}")))
}

/// Whether there is a file in one of the two trees.
pub(super) fn is_in_use(layout: &Layout) -> Result<bool, SpoolError> {
    let mut open = vec![layout.outbox(), layout.inbox()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).on("read", &directory)? {
            let entry = entry.on("read", &directory)?;
            if !entry.file_type().on("stat", &directory)?.is_dir() {
                return Ok(true);
            }
            open.push(entry.path());
        }
    }
    Ok(false)
}

/// Everything becomes durable, then the word for it, with what the database of the journal, which is closed, is now.
pub(super) fn save_clean(state: &Path, journal: &Journal) -> Result<(), SpoolError> {
    durable::sync_all(state, &[durable::Sync::Everything])?;
    let seal = journal.seal()?.write();
    let text = format!("{CLEAN}{seal}");
    Ok(durable::write_file(&state.join("boot"), text.as_bytes())?)
}

/// What the last run said of the journal's database, if it came to its end.
pub(super) fn seal(state: &Path) -> Option<Seal> {
    let text = std::fs::read_to_string(state.join("boot")).ok()?;
    Seal::read(text.strip_prefix(CLEAN)?)
}

pub(super) fn save_boot(state: &Path) -> Result<(), SpoolError> {
    save_boot_by(state, witness(state, runtime_directory()).as_deref())
}

fn save_boot_by(state: &Path, witness: Option<&Path>) -> Result<(), SpoolError> {
    let path = state.join("boot");
    let boot = boot_id()?;
    if !std::fs::read_to_string(&path).is_ok_and(|saved| saved == boot) {
        durable::write_file(&path, boot.as_bytes())?;
    }
    match witness {
        Some(witness) => Ok(durable::remove(witness).map(drop)?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_taken_away_while_it_was_waited_for_is_taken_anew() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let first = take_lock(&layout).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| take_lock(&layout).unwrap());
            std::fs::remove_file(layout.lock()).unwrap();
            drop(first);
            let second = second.join().unwrap();
            assert!(is_at(&second, &layout.lock()).unwrap());
        });
    }

    #[test]
    fn a_failed_sync_is_known_at_the_next_start_though_the_disk_took_no_word_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir().unwrap();
        let state = dir.path();
        let witness = witness(state, Some(memory.path().to_owned())).unwrap();
        let last = || last_run_by(state, Some(&witness)).unwrap();
        save_boot_by(state, Some(&witness)).unwrap();
        assert_eq!(last(), LastRun::Whole);
        distrust_by(state, Some(&witness)).unwrap();
        assert_eq!(last(), LastRun::SyncFailed);
        // The disk lost it, or was read-only.
        std::fs::write(state.join("boot"), boot_id().unwrap()).unwrap();
        assert_eq!(last(), LastRun::SyncFailed);
        save_boot_by(state, Some(&witness)).unwrap();
        assert_eq!(last(), LastRun::Whole);
        // Of another boot, which its own words tell of.
        std::fs::write(&witness, "another").unwrap();
        assert_eq!(last(), LastRun::Whole);
        assert_eq!(last_run(state).unwrap(), LastRun::Whole);
    }

    #[test]
    fn the_holder_of_a_lock_is_found_and_one_that_waits_is_not() {
        let table = "\
1: POSIX  ADVISORY  WRITE 11 08:01:131 0 EOF
2: -> FLOCK  ADVISORY  WRITE 12 08:01:131 0 EOF
3: FLOCK  ADVISORY  WRITE 13 08:01:1311 0 EOF
4: FLOCK  ADVISORY  WRITE 14 00:2f:131 0 EOF
5: FLOCK  ADVISORY  WRITE 0 00:2f:132 0 EOF
";
        assert_eq!(holder_in(table, 131), Some(14));
        assert_eq!(holder_in(table, 1311), Some(13));
        assert_eq!(holder_in(table, 132), None);
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let held = take_lock(&layout).unwrap();
        let me = format!("process {}: ", std::process::id());
        assert!(holder(&held).starts_with(&me), "{}", holder(&held));
    }
}
