//! Times that a user set while pages of a mapping were not written back yet.
//!
//! Stores into a mapping reach us as WRITEs of whole pages, when the kernel thinks fit: perhaps long after a time was
//! set. On a local file system such write-back changes no time (the store did), so it must not overwrite what was set
//! here either. The kernel says which WRITEs are its own (`FUSE_WRITE_CACHE`), but not when the store was made. So a time
//! set while somebody has the file open for writing stays through write-back, until the next write(2) or change of size,
//! a sync (after which all pages that were stored before are written), or the last close.
//!
//! # Invariants
//! 1. Only inodes that are open for writing are remembered, so the table is as large as their number at most.
//! 2. The lock is held around the system call that sets a time, so that no time replaces one that was set later.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Stat, Timespec, Timestamps, UTIME_OMIT, futimens};

use super::error::FsError;

/// The modification times to keep through write-back, by backing inode.
#[derive(Debug, Default)]
pub(crate) struct SetTimes {
    kept: Mutex<HashMap<u64, Timespec>>,
    /// So that a WRITE costs one look where there is none, which is nearly always.
    count: AtomicUsize,
}

impl SetTimes {
    /// Runs `set`, which sets the modification time of `ino`, and keeps what `mtime` then says, if `written` says
    /// afterwards that somebody has it open for writing.
    pub(crate) fn set(
        &self,
        ino: u64,
        set: impl FnOnce() -> Result<(), FsError>,
        mtime: impl FnOnce() -> Result<Timespec, FsError>,
        written: impl FnOnce() -> bool,
    ) -> Result<(), FsError> {
        let mut kept = self.kept.lock();
        set()?;
        // Looked at last: who stops writing after this lets go of what is kept here.
        kept.insert(ino, mtime()?);
        if !written() {
            kept.remove(&ino);
        }
        self.count.store(kept.len(), Ordering::SeqCst);
        Ok(())
    }

    /// The file was changed in another way than by write-back, or nobody can any more.
    pub(crate) fn over(&self, ino: u64) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut kept = self.kept.lock();
        kept.remove(&ino);
        self.count.store(kept.len(), Ordering::SeqCst);
    }

    /// The kernel wrote pages back.
    pub(crate) fn written_back(&self, ino: u64, file: &File) -> Result<(), FsError> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let kept = self.kept.lock();
        if let Some(time) = kept.get(&ino) {
            futimens(
                file,
                &Timestamps {
                    last_access: Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_OMIT,
                    },
                    last_modification: *time,
                },
            )?;
        }
        Ok(())
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.kept.lock().len()
    }
}

/// A file's modification time.
pub(crate) fn mtime_of(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
    }
}
