//! Names below `outbox/` and `inbox/` (and `unverified/`, where names of the inbox wait), reached without resolving a symbolic link.
//!
//! Users make links in the outbox, and whoever has the state directory can put one anywhere. So no path below either
//! tree is ever given to the kernel as it is: what is opened is opened with `openat2` and `RESOLVE_NO_SYMLINKS`, and
//! names are made, moved, removed and looked at relative to the directory they are in, which was opened that way. A
//! link in the middle of a path is an error (`ELOOP`), a link at its end is the link itself, and nothing can lead out of
//! the tree. The path of a tree's root is the user's own, and may have links in it.
//!
//! # Invariants
//! 1. A [`Root`] gives no path for system calls; [`Root::shown`] is for messages.
//! 2. An [`At`] is a directory of the tree and one component.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, chmodat, mkdirat, openat, openat2, readlinkat,
    statat,
};
use rustix::io::Errno;

use super::overlay::Overlay;
use super::{DiskError, OnPath};
use crate::bundle::RelPath;

/// Opens what is at `path` below `root`; a link at its end only as such, with [`OFlags::PATH`].
pub(crate) fn open_beneath(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    openat2(
        root,
        if path.is_empty() { b"." } else { path },
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Whether an error says that there is nothing at a path: a part of it is missing, or no directory but a file or link.
pub(crate) fn is_nothing(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// A place for a name: what system calls that take a directory and a name are given.
pub(crate) trait Spot {
    /// The directory, and the name in it; or the working directory and a path that is wholly ours.
    fn spot(&self) -> (BorrowedFd<'_>, &[u8]);
    /// For messages.
    fn shown(&self) -> &Path;
}

impl Spot for Path {
    fn spot(&self) -> (BorrowedFd<'_>, &[u8]) {
        (CWD, self.as_os_str().as_bytes())
    }
    fn shown(&self) -> &Path {
        self
    }
}

impl Spot for PathBuf {
    fn spot(&self) -> (BorrowedFd<'_>, &[u8]) {
        self.as_path().spot()
    }
    fn shown(&self) -> &Path {
        self
    }
}

#[derive(Debug)]
enum Directory<'r> {
    Root(BorrowedFd<'r>),
    Below(OwnedFd),
}

/// A name in a directory of one of the trees. It stays the name in that very directory, wherever that is moved.
#[derive(Debug)]
pub(crate) struct At<'r> {
    directory: Directory<'r>,
    name: Vec<u8>,
    shown: PathBuf,
}

impl<'r> At<'r> {
    /// The place of `path` below `root`; the directory it is in must be there.
    pub(crate) fn find(
        root: BorrowedFd<'r>,
        path: &[u8],
        shown: PathBuf,
    ) -> rustix::io::Result<Self> {
        let (directory, name) = match path.iter().rposition(|b| *b == b'/') {
            None => (Directory::Root(root), path),
            Some(at) => {
                let above = open_beneath(root, &path[..at], OFlags::PATH | OFlags::DIRECTORY)?;
                (Directory::Below(above), &path[at + 1..])
            }
        };
        let name = if name.is_empty() { b"." } else { name }.to_vec();
        Ok(Self {
            directory,
            name,
            shown,
        })
    }

    /// The name in [`Self::as_fd`].
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// What is there, a link as such.
    pub(crate) fn stat(&self) -> rustix::io::Result<Stat> {
        statat(self, self.name(), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Opens what is there, unless it is a link.
    pub(crate) fn open(&self, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self, self.name(), flags, Mode::empty())
    }

    /// Changes the mode of what is there, unless it is a link.
    pub(crate) fn chmod(&self, mode: Mode) -> rustix::io::Result<()> {
        // The kernel has no chmod that follows no link before 6.6; it has one of what a descriptor refers to.
        let there = self.open(OFlags::PATH)?;
        if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode).is_symlink() {
            return Err(Errno::LOOP);
        }
        let by_descriptor = format!("/proc/self/fd/{}", there.as_raw_fd());
        chmodat(CWD, by_descriptor, mode, AtFlags::empty())
    }
}

impl AsFd for At<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.directory {
            Directory::Root(root) => *root,
            Directory::Below(directory) => directory.as_fd(),
        }
    }
}

impl Spot for At<'_> {
    fn spot(&self) -> (BorrowedFd<'_>, &[u8]) {
        (self.as_fd(), &self.name)
    }
    fn shown(&self) -> &Path {
        &self.shown
    }
}

/// The root of one of the trees that the mount shows.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    open: OwnedFd,
    /// Names that are given and not renamed to yet. Every way to a name here goes through [`Root::perform`].
    pub(crate) overlay: Overlay,
}

impl Root {
    pub(crate) fn open_at(path: PathBuf) -> Result<Arc<Self>, DiskError> {
        let open = OwnedFd::from(File::open(&path).on("open", &path)?);
        Ok(Arc::new(Self {
            path,
            open,
            overlay: Overlay::default(),
        }))
    }

    /// What is given at `path`, or above it, comes to be there on the disk.
    pub(crate) fn perform(&self, path: &[u8]) -> rustix::io::Result<()> {
        self.overlay.perform(path)
    }

    /// [`Self::at`] for a rename that gives one of these names.
    pub(crate) fn place_of(&self, path: &RelPath) -> rustix::io::Result<At<'_>> {
        At::find(self.open.as_fd(), path.as_bytes(), self.shown(path))
    }

    /// Where `path` is, for messages.
    pub(crate) fn shown(&self, path: &RelPath) -> PathBuf {
        self.path.join(path.as_path())
    }

    /// [`Self::shown`]; `None`: the root.
    pub(crate) fn shown_at(&self, path: Option<&RelPath>) -> PathBuf {
        path.map_or_else(|| self.path.clone(), |path| self.shown(path))
    }

    /// Opens what is at `path`; see [`open_beneath`].
    pub(crate) fn open(&self, path: &RelPath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.perform(path.as_bytes())?;
        open_beneath(&self.open, path.as_bytes(), flags)
    }

    /// Opens what is at `path` to be read. A FIFO or device that was put there keeps nobody waiting.
    pub(crate) fn read(&self, path: &RelPath) -> io::Result<File> {
        let opened = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK);
        Ok(File::from(opened?))
    }

    /// What is at `path`, a link as such.
    pub(crate) fn metadata(&self, path: &RelPath) -> io::Result<Metadata> {
        File::from(self.open(path, OFlags::PATH)?).metadata()
    }

    /// Where the link at `path` points.
    pub(crate) fn read_link(&self, path: &RelPath) -> io::Result<Vec<u8>> {
        let link = self.open(path, OFlags::PATH)?;
        Ok(readlinkat(&link, c"", Vec::new())?.into_bytes())
    }

    /// What is at `path`; `None`: nothing.
    pub(crate) fn look(&self, path: &RelPath) -> Result<Option<Metadata>, DiskError> {
        match self.open(path, OFlags::PATH) {
            Ok(there) => Ok(Some(
                File::from(there).metadata().on("stat", &self.shown(path))?,
            )),
            Err(error) if is_nothing(error) => Ok(None),
            Err(error) => Err(error).on("stat", &self.shown(path)),
        }
    }

    /// The inode at `path`; `None`: nothing is there.
    pub(crate) fn inode(&self, path: &RelPath) -> Result<Option<u64>, DiskError> {
        Ok(self.look(path)?.map(|meta| meta.ino()))
    }

    /// The place of `path`, whose directory must be there.
    pub(crate) fn at(&self, path: &RelPath) -> Result<At<'_>, DiskError> {
        self.perform(path.as_bytes())
            .and_then(|()| self.place_of(path))
            .map_err(io::Error::from)
            .on("find", &self.shown(path))
    }

    /// The names in a directory with what they show; `None`: the root. The first error ends it. Names that are given below
    /// it and not on the disk yet are not among them.
    pub(crate) fn list(
        &self,
        directory: Option<&RelPath>,
    ) -> io::Result<impl Iterator<Item = io::Result<(RelPath, Metadata)>>> {
        let fd = self.open_directory(directory)?;
        let by_descriptor = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let names = std::fs::read_dir(by_descriptor)?;
        let directory = directory.cloned();
        Ok(names.filter_map(move |entry| {
            let found = entry.map(|entry| {
                let name = entry.file_name();
                let path = match &directory {
                    Some(above) => above.child(name.as_bytes()),
                    None => RelPath::parse(name.as_bytes()),
                };
                (path, entry.metadata())
            });
            match found {
                Ok((Ok(path), Ok(meta))) => Some(Ok((path, meta))),
                // Removed meanwhile.
                Ok((_, Err(error))) if error.kind() == io::ErrorKind::NotFound => None,
                Ok((Err(error), _)) => {
                    tracing::warn!(%error, "a name that is too long is passed over");
                    None
                }
                Ok((_, Err(error))) | Err(error) => Some(Err(error)),
            }
        }))
    }

    /// Opens a directory; `None`: the root.
    pub(crate) fn open_directory(&self, directory: Option<&RelPath>) -> rustix::io::Result<File> {
        let at = directory.map_or(&b""[..], RelPath::as_bytes);
        self.perform(at)?;
        open_beneath(&self.open, at, OFlags::RDONLY | OFlags::DIRECTORY).map(File::from)
    }

    /// Makes a directory for us alone and those on the way to it, unless they are there.
    pub(crate) fn make_directories(&self, path: &RelPath) -> Result<(), DiskError> {
        if self.look(path)?.is_some_and(|meta| meta.is_dir()) {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.make_directories(&above)?;
        }
        self.make_directory(path, |_made| Ok(())).map(drop)
    }

    /// Makes one directory; `false`: it was there. `dress` gives it mode and owner.
    pub(crate) fn make_directory(
        &self,
        path: &RelPath,
        dress: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<bool, DiskError> {
        let at = self.at(path)?;
        match mkdirat(&at, at.name(), Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                let made = at.open(OFlags::RDONLY | OFlags::DIRECTORY);
                made.map_err(io::Error::from)
                    .and_then(|made| dress(&File::from(made)))
                    .on("set the mode of", &at.shown)?;
                Ok(true)
            }
            Err(Errno::EXIST) if self.metadata(path).is_ok_and(|meta| meta.is_dir()) => Ok(false),
            Err(error) => Err(error).on("create directory", &at.shown),
        }
    }
}
