//! What the inbox looks like to other users: modes and owner of what is published, and where things are on disk.
//!
//! Of the metadata of a file only its times and one bit travel, executable or not; everything else is decided here, by
//! the receiver's settings. So no peer can give a file setuid, setgid or sticky, or somebody's name.
//!
//! # Invariants
//! 1. Modes are set explicitly; the umask of the daemon decides nothing.
//! 2. A path below a root that is too long for an absolute call is reached through the root's descriptor.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::durable::OnPath;
use super::{Layout, Spool, SpoolError};

/// Files in the inbox where nothing else is said.
const FILE_MODE: u32 = 0o644;

/// What a umask is taken off where no mode is given.
const UMASK_BASE: u32 = 0o666;

/// What a system call takes as a path, less its NUL.
const SYSTEM_PATH_MAX: usize = 4095;

/// Modes and owner of what the mount shows. `None` is the default: 0644, and whoever runs the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dress {
    /// Permission bits of files in the inbox, without execute bits.
    pub mode: Option<u32>,
    /// Owner of the inbox and the top directories.
    pub uid: Option<u32>,
    /// Group of the same.
    pub gid: Option<u32>,
    /// Bits taken off in the inbox and the top directories.
    pub umask: Option<u32>,
}

impl Dress {
    fn plain(&self) -> u32 {
        let base = match (self.mode, self.umask) {
            (Some(mode), _) => mode & 0o666,
            (None, Some(_)) => UMASK_BASE,
            (None, None) => FILE_MODE,
        };
        base & !self.umask.unwrap_or(0)
    }

    /// The mode of a file in the inbox. Who may read an executable file may execute it.
    pub fn file_mode(&self, executable: bool) -> u32 {
        let mode = self.plain();
        if executable {
            mode | (mode & 0o444) >> 2
        } else {
            mode
        }
    }

    /// The mode of a directory in the inbox. The owner can always remove what is in it.
    pub fn directory_mode(&self) -> u32 {
        let mode = self.plain() | 0o600;
        mode | (mode & 0o444) >> 2
    }

    /// Gives an open file its mode and owner.
    pub(super) fn put_on(&self, file: &File, mode: u32) -> io::Result<()> {
        // Owner first: changing it may take bits of the mode away.
        if self.uid.is_some() || self.gid.is_some() {
            std::os::unix::fs::fchown(file, self.uid, self.gid)?;
        }
        file.set_permissions(Permissions::from_mode(mode))
    }

    /// Gives the roots of the two trees their modes and owner, as far as settings say so. Where the state directory is
    /// open to others, its parts stay closed.
    pub(super) fn put_on_roots(&self, layout: &Layout) -> Result<(), SpoolError> {
        let state = layout.state();
        let private = state.metadata().on("look at", state)?.mode() & 0o077 == 0;
        let inbox = (self.mode.is_some() || self.umask.is_some()).then(|| self.directory_mode());
        let outbox = self.umask.map(|mask| 0o777 & !mask);
        for (root, mode) in [(layout.inbox(), inbox), (layout.outbox(), outbox)] {
            if self.uid.is_some() || self.gid.is_some() {
                std::os::unix::fs::chown(&root, self.uid, self.gid)
                    .on("set the owner of", &root)?;
            }
            if let Some(mode) = mode.filter(|_| private) {
                fs::set_permissions(&root, Permissions::from_mode(mode))
                    .on("set the mode of", &root)?;
            }
        }
        Ok(())
    }
}

/// The roots of the trees, open for paths that are too long for absolute calls.
#[derive(Debug)]
pub(super) struct Roots {
    outbox: (PathBuf, OwnedFd),
    inbox: (PathBuf, OwnedFd),
    unverified: (PathBuf, OwnedFd),
}

impl Roots {
    pub(super) fn open(layout: &Layout) -> Result<Self, SpoolError> {
        let open = |path: PathBuf| -> Result<_, SpoolError> {
            let root = OwnedFd::from(File::open(&path).on("open", &path)?);
            Ok((path, root))
        };
        Ok(Self {
            outbox: open(layout.outbox())?,
            inbox: open(layout.inbox())?,
            unverified: open(layout.unverified())?,
        })
    }

    /// The root of the outbox.
    pub(super) fn outbox(&self) -> &OwnedFd {
        &self.outbox.1
    }
}

fn below((root, open): &(PathBuf, OwnedFd), path: &Path) -> PathBuf {
    let absolute = root.join(path);
    if absolute.as_os_str().as_bytes().len() <= SYSTEM_PATH_MAX {
        absolute
    } else {
        // Shorter than any state directory that makes a difference, and understood by every call.
        Path::new("/proc/self/fd")
            .join(open.as_raw_fd().to_string())
            .join(path)
    }
}

impl Spool {
    /// Where a path of the outbox is, for system calls of this process.
    pub fn at_outbox(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.roots.outbox, path.as_ref())
    }

    /// Where a path of the inbox is, for system calls of this process.
    pub fn at_inbox(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.roots.inbox, path.as_ref())
    }

    /// Where a path of the inbox is while its file is in doubt.
    pub(super) fn at_unverified(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.roots.unverified, path.as_ref())
    }

    /// Makes a directory of the inbox and those on the way to it, unless they are there.
    pub(super) fn make_inbox_directory(&self, at: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(at) {
            Ok(()) => self
                .dress
                .put_on(&File::open(at)?, self.dress.directory_mode()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::symlink_metadata(at)?.is_dir() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => match at.parent() {
                Some(parent) => {
                    self.make_inbox_directory(parent)?;
                    self.make_inbox_directory(at)
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dress(mode: Option<u32>, umask: Option<u32>) -> (u32, u32, u32) {
        let dress = Dress {
            mode,
            umask,
            ..Dress::default()
        };
        (
            dress.file_mode(false),
            dress.file_mode(true),
            dress.directory_mode(),
        )
    }

    #[test]
    fn modes_follow_from_one_another() {
        assert_eq!(dress(None, None), (0o644, 0o755, 0o755));
        assert_eq!(dress(Some(0o640), None), (0o640, 0o750, 0o750));
        assert_eq!(dress(Some(0o660), None), (0o660, 0o770, 0o770));
        assert_eq!(dress(Some(0o400), None), (0o400, 0o500, 0o700));
        assert_eq!(dress(None, Some(0o002)), (0o664, 0o775, 0o775));
        assert_eq!(dress(None, Some(0o077)), (0o600, 0o700, 0o700));
        assert_eq!(dress(Some(0o666), Some(0o027)), (0o640, 0o750, 0o750));
    }
}
