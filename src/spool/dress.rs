//! What the inbox looks like to other users: modes and owner of what is published, and the roots of the two trees.
//!
//! Of the metadata of a file only its times and one bit travel, executable or not; everything else is decided here, by
//! the receiver's settings. So no peer can give a file setuid, setgid or sticky, or somebody's name.
//!
//! # Invariants
//! Modes are set explicitly; the umask of the daemon decides nothing.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::beneath::Root;
use super::durable::{self, OnPath};
use super::inbox::under_way::Note;
use super::{Layout, Spool, SpoolError};
use crate::bundle::RelPath;

/// Files in the inbox where nothing else is said.
const FILE_MODE: u32 = 0o644;

/// What a umask is taken off where no mode is given.
const UMASK_BASE: u32 = 0o666;

/// Modes and owner of what the mount shows. `None` is the default: 0644, and whoever runs the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dress {
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
    pub(crate) fn file_mode(&self, executable: bool) -> u32 {
        let mode = self.plain();
        if executable {
            mode | (mode & 0o444) >> 2
        } else {
            mode
        }
    }

    /// The mode of a directory in the inbox. The owner can always remove what is in it.
    pub(crate) fn directory_mode(&self) -> u32 {
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

/// The roots of the trees.
#[derive(Debug)]
pub(super) struct Roots {
    inbox: Arc<Root>,
    unverified: Arc<Root>,
}

impl Roots {
    pub(super) fn open(layout: &Layout) -> Result<Self, SpoolError> {
        Ok(Self {
            inbox: Root::open_at(layout.inbox())?,
            unverified: Root::open_at(layout.unverified())?,
        })
    }
}

impl Spool {
    /// The tree of the inbox.
    pub(crate) fn inbox(&self) -> &Arc<Root> {
        &self.roots.inbox
    }

    /// The tree of files of the inbox that are in doubt.
    pub(super) fn unverified(&self) -> &Arc<Root> {
        &self.roots.unverified
    }

    /// Makes a directory of the inbox and those on the way to it, unless they are there.
    pub(super) fn make_inbox_directories(&self, path: &RelPath) -> Result<(), SpoolError> {
        if self.inbox().look(path)?.is_some_and(|meta| meta.is_dir()) {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.make_inbox_directories(&above)?;
        }
        self.make_inbox_directory(path).map(drop)
    }

    /// Makes a directory of the inbox; `false`: it was there.
    pub(super) fn make_inbox_directory(&self, path: &RelPath) -> Result<bool, SpoolError> {
        let mode = self.dress.directory_mode();
        let dress = |made: &File| self.dress.put_on(made, mode);
        let is_new = self.inbox().make_directory(path, dress)?;
        if is_new {
            let publishing = &self.inbox.publishing;
            publishing.note(|| Note::Directory(path.clone()));
        }
        Ok(is_new)
    }

    /// Whether a directory of the inbox is empty, and nothing is about to come there.
    pub(super) fn is_empty_in_inbox(&self, path: &RelPath) -> bool {
        // In this order: what is given comes to be on the disk.
        let names = || self.inbox().list(Some(path));
        !self.inbox().overlay.is_below(path)
            && names().is_ok_and(|mut names| names.next().is_none())
    }

    /// Removes an empty directory of the inbox. Call with the decision lock held.
    pub(super) fn remove_inbox_directory(&self, path: &RelPath) -> Result<(), SpoolError> {
        if self.inbox().overlay.is_below(path) {
            let there = io::Error::from_raw_os_error(libc::ENOTEMPTY);
            return Err(there).on("remove directory", &self.inbox().shown(path));
        }
        durable::remove_directory(&self.inbox().at(path)?)?;
        let publishing = &self.inbox.publishing;
        publishing.note(|| Note::Directory(path.clone()));
        Ok(())
    }

    /// Makes a directory that is to be one of the inbox, where it is built; those on the way to it must be there.
    pub(super) fn make_staged_directory(&self, at: &Path) -> Result<(), SpoolError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(at)
            .and_then(|()| {
                self.dress
                    .put_on(&File::open(at)?, self.dress.directory_mode())
            })
            .on("create directory", at)
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
