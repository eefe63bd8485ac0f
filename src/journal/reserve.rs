//! The reserve: space and inodes set aside on the journal's file system, so that what must be written can be when others
//! have filled it: the log and the database, and the few files that are written at a start.
//!
//! It is a handful of files full of nothing. Whoever meets ENOSPC gives them up and tries again; they are made again when
//! there is room for twice as much.
//!
//! # Crash behaviour
//! Nothing is in it. A start on a full disk gives it up first.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::disk::durable;

/// Bytes set aside; of a small file system only this part.
const BYTES: u64 = 8 << 20;
const PART: u64 = 32;

/// In so many files, since inodes may run out too.
const FILES: u64 = 4;

/// How often it is tried to make it again.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Reserve {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    is_whole: bool,
    tried: Option<Instant>,
}

impl Reserve {
    /// The reserve of a directory, as an earlier start left it. On a file system that is full it is given up.
    pub(crate) fn open(parent: &Path) -> Self {
        let directory = parent.join("reserve");
        let reserve = Self {
            state: Mutex::new(State {
                is_whole: (0..FILES).any(|n| directory.join(n.to_string()).exists()),
                tried: None,
            }),
            directory,
        };
        if let Ok(stat) = statvfs(parent) {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let inodes = stat.f_files == 0 || stat.f_favail >= FILES;
            if (free < size(&stat) || !inodes) && reserve.give_up() {
                tracing::warn!("the disk is full: starting on what was set aside for that");
            }
        }
        reserve
    }

    /// Makes room. `false`: there was nothing set aside.
    pub(crate) fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        let mut freed = false;
        if state.is_whole {
            for n in 0..FILES {
                freed |= durable::remove(&self.directory.join(n.to_string())).unwrap_or(false);
            }
            state.is_whole = false;
            state.tried = Some(Instant::now());
        }
        freed
    }

    /// Sets aside what is not, if there is room for it. Cheap when there is nothing to do.
    pub(crate) fn refill(&self) {
        let mut state = self.state.lock();
        if state.is_whole || state.tried.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        state.tried = Some(Instant::now());
        match self.fill() {
            Ok(whole) => state.is_whole = whole,
            Err(error) => {
                state.is_whole = true;
                tracing::debug!(%error, "no space is set aside for the log");
                drop(state);
                self.give_up();
            }
        }
    }

    fn fill(&self) -> io::Result<bool> {
        let Some(parent) = self.directory.parent() else {
            return Ok(false);
        };
        let stat = statvfs(parent)?;
        let size = size(&stat);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < 2 * size || (stat.f_files > 0 && stat.f_favail < 2 * FILES) {
            return Ok(false);
        }
        durable::make_directory(&self.directory).map_err(io::Error::other)?;
        for n in 0..FILES {
            let file: File = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(self.directory.join(n.to_string()))?;
            fallocate(&file, FallocateFlags::empty(), 0, (size / FILES).max(1))?;
        }
        Ok(true)
    }
}

fn size(stat: &rustix::fs::StatVfs) -> u64 {
    BYTES.min(stat.f_blocks.saturating_mul(stat.f_frsize) / PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_given_up_once_and_known_again_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(dir.path());
        assert!(!reserve.give_up(), "nothing is there yet");
        reserve.state.lock().tried = None;
        reserve.refill();
        let again = Reserve::open(dir.path());
        assert!(again.give_up());
        assert!(!again.give_up());
        again.refill();
        assert!(!again.state.lock().is_whole, "not at once");
    }
}
