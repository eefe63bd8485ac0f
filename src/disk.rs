//! The disk: the system calls that make, sync, rename, copy and remove what is ours, and how they fail.
//!
//! This lies below the journal and the spool, since both keep files that must survive a crash. Nothing here knows what a
//! file is for.
//!
//! | part | what it has |
//! |---|---|
//! | [`durable`] | every sync, rename and removal of state |
//! | [`beneath`] | names below a root, reached without resolving a symbolic link |
//! | [`overlay`] | names that are given before their renames |
//! | [`extents`] | where a file has bytes, and where only holes |

pub(crate) mod beneath;
pub(crate) mod durable;
pub(crate) mod extents;
pub(crate) mod overlay;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

/// A system call failed on a path of ours.
#[derive(Debug, Error)]
pub(crate) enum DiskError {
    /// The disk itself refused to make something durable; not that something could not be opened for it. Then the bytes
    /// may be lost for good, even for a full disk (it found no room for them when they were to be written): Linux says so
    /// once, takes the pages for clean, and the next sync of the same bytes succeeds.
    #[error("cannot sync {path}: {source}")]
    Sync {
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Any other call.
    #[error("cannot {action} {path}: {source}")]
    Call {
        /// What was tried, as a verb: "open", "rename".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl DiskError {
    /// What the system said.
    pub(crate) fn cause(&self) -> &io::Error {
        match self {
            Self::Sync { source, .. } | Self::Call { source, .. } => source,
        }
    }

    /// Whether there is no room, of whatever kind.
    pub(crate) fn is_full(&self) -> bool {
        is_full(self.cause())
    }
}

/// Whether an error says that there is no room, of whatever kind.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// What is read through `file` from now on leaves its access time alone: the daemon hashes, copies and serves files of
/// users, who may have set that time, or want to know when a program last read them. Best effort: the kernel lets only the
/// owner of a file ask for it, and root.
pub(crate) fn keep_access_time(file: &File) {
    let asked = rustix::fs::fcntl_getfl(file).and_then(|flags| {
        if flags.contains(OFlags::NOATIME) {
            return Ok(());
        }
        rustix::fs::fcntl_setfl(file, flags | OFlags::NOATIME)
    });
    if let Err(error) = asked {
        tracing::debug!(%error, "reading a file changes its access time");
    }
}

/// Adds the path to an I/O error.
pub(crate) trait OnPath<T> {
    /// `action` is a verb: "open", "rename".
    fn on(self, action: &'static str, path: &Path) -> Result<T, DiskError>;

    /// Of a call that makes something durable.
    fn on_sync(self, path: &Path) -> Result<T, DiskError>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|source| DiskError::Call {
            action,
            path: path.to_path_buf(),
            source,
        })
    }

    fn on_sync(self, path: &Path) -> Result<T, DiskError> {
        self.map_err(|source| DiskError::Sync {
            path: path.to_path_buf(),
            source,
        })
    }
}

impl<T> OnPath<T> for rustix::io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(io::Error::from).on(action, path)
    }

    fn on_sync(self, path: &Path) -> Result<T, DiskError> {
        self.map_err(io::Error::from).on_sync(path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;
    use std::io::Read as _;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A read sets the access time of a file whose access time is older than its modification time, on nearly every mount.
    #[test]
    fn a_file_that_is_read_for_ourselves_keeps_its_access_time() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("f");
        std::fs::write(&at, "bytes").unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        File::options()
            .write(true)
            .open(&at)
            .unwrap()
            .set_times(FileTimes::new().set_accessed(old))
            .unwrap();
        let mut file = File::open(&at).unwrap();
        keep_access_time(&file);
        keep_access_time(&file);
        assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), 5);
        assert_eq!(std::fs::metadata(&at).unwrap().accessed().unwrap(), old);
    }
}
