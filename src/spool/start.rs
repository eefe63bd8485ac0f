//! The first and last steps on a state directory: its lock, its format, and which boot it was last used in.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::durable::{self, OnPath};
use super::{Layout, SpoolError};

/// Version of the state directory's format written here.
const FORMAT: u32 = 1;

/// What `boot` says after a clean stop: everything is on the disk, whatever happens to the machine.
const CLEAN: &str = "clean\n";

/// A daemon that was killed holds its lock until its last system call is done: a sync on a slow disk.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How often the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

pub(super) fn take_lock(layout: &Layout) -> Result<File, SpoolError> {
    let path = layout.lock();
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .on("open", &path)?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SpoolError::InUse(layout.state().to_path_buf()));
            }
            Err(e) => return Err(e).on("lock", &path),
        }
    }
}

pub(super) fn check_format(state: &Path) -> Result<(), SpoolError> {
    let path = state.join("format");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return durable::write_file(&path, format!("{FORMAT}\n").as_bytes());
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
        Ok(()) => durable::remove(&to).map(drop),
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

/// Whether what the page cache had when the state was last in use is there: the kernel has been up since, or the stop
/// was clean. Also for fresh state.
pub(super) fn same_boot(state: &Path) -> Result<bool, SpoolError> {
    let path = state.join("boot");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text == CLEAN || text == boot_id()?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).on("read", &path),
    }
}

/// Everything becomes durable, then the word for it.
pub(super) fn save_clean(state: &Path) -> Result<(), SpoolError> {
    durable::sync_all(state, &[durable::Sync::Everything])?;
    durable::write_file(&state.join("boot"), CLEAN.as_bytes())
}

pub(super) fn save_boot(state: &Path) -> Result<(), SpoolError> {
    let path = state.join("boot");
    let boot = boot_id()?;
    if std::fs::read_to_string(&path).is_ok_and(|saved| saved == boot) {
        return Ok(());
    }
    durable::write_file(&path, boot.as_bytes())
}
