//! The one place that syncs, renames and removes state.
//!
//! Every call names the path in its error. What survives a crash is said at each call: after a crash of the daemon
//! alone everything that a call returned from is there (the page cache lives on); after a power loss only what was
//! synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, RenameFlags, Stat};

use super::beneath::{Root, Spot, is_nothing};
use super::extents::Extents;
use super::{DiskError, OnPath, keep_access_time};
use crate::bundle::RelPath;

/// Something that must be on the disk before what speaks of it may be.
#[derive(Clone, Debug)]
pub(crate) enum Sync {
    /// The bytes of a file.
    File(Arc<File>),
    /// The names in a directory of ours, not of the two trees.
    Directory(PathBuf),
    /// The names in a directory of one of the two trees; `None`: its root.
    Names(Arc<Root>, Option<RelPath>),
    /// All of the state's file system.
    Everything,
    /// Fails the first time and never again, as Linux tells of a writeback error.
    #[cfg(test)]
    FailsOnce(Arc<std::sync::atomic::AtomicBool>),
}

impl Root {
    /// Makes the names in a directory durable, with a batch; `None`: the root.
    pub(crate) fn sync(self: &Arc<Self>, directory: Option<RelPath>) -> Sync {
        Sync::Names(Arc::clone(self), directory)
    }

    /// [`Self::sync`] of the directory that `path` is in.
    pub(crate) fn sync_above(self: &Arc<Self>, path: &RelPath) -> Sync {
        self.sync(path.parent())
    }
}

/// Past this many, one syncfs(2) is cheaper than the single calls; 200 small files were 3 to 5 times as fast with it.
pub(crate) const SYNC_EACH_MAX: usize = 24;

/// Makes all of `syncs` durable. A directory that is gone by now, or a file instead, needs no sync.
pub(crate) fn sync_all(state: &Path, syncs: &[Sync]) -> Result<(), DiskError> {
    let mut directories: Vec<&Path> = Vec::new();
    let mut names: Vec<(&Root, Option<&RelPath>)> = Vec::new();
    let mut files = Vec::new();
    let mut everything = false;
    for sync in syncs {
        match sync {
            Sync::File(file) => files.push(file),
            Sync::Directory(path) => directories.push(path),
            Sync::Names(root, directory) => names.push((root, directory.as_ref())),
            Sync::Everything => everything = true,
            #[cfg(test)]
            Sync::FailsOnce(failed) => {
                if !failed.swap(true, std::sync::atomic::Ordering::AcqRel) {
                    return Err(io::Error::from_raw_os_error(libc::EIO)).on_sync(state);
                }
            }
        }
    }
    directories.sort_unstable();
    directories.dedup();
    names.sort_unstable_by_key(|(root, directory)| (std::ptr::from_ref(*root), *directory));
    names.dedup_by_key(|(root, directory)| (std::ptr::from_ref(*root), *directory));
    if everything || files.len() + directories.len() + names.len() > SYNC_EACH_MAX {
        let root = File::open(state).on("open", state)?;
        // An interrupted sync has told nothing yet.
        return rustix::io::retry_on_intr(|| rustix::fs::syncfs(&root)).on_sync(state);
    }
    for file in files {
        rustix::io::retry_on_intr(|| rustix::fs::fdatasync(file)).on_sync(state)?;
    }
    for directory in directories {
        match sync_directory(directory) {
            Err(DiskError::Call { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            other => other?,
        }
    }
    for (root, directory) in names {
        sync_names(root, directory)?;
    }
    Ok(())
}

/// What is read next of a file comes from the disk, as far as it is not to be written still: after a failed sync the page
/// cache has bytes that the disk has not.
pub(crate) fn read_from_disk(file: &File) {
    // Best effort.
    let _kept = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Makes the names in a directory of one of the two trees durable, unless it is gone, or a file or link by now.
fn sync_names(root: &Root, directory: Option<&RelPath>) -> Result<(), DiskError> {
    match root.open_directory(directory) {
        Ok(open) => open.sync_all().on_sync(&root.shown_at(directory)),
        Err(error) if is_nothing(error) => Ok(()),
        Err(error) => Err(error).on("open", &root.shown_at(directory)),
    }
}

/// Makes the bytes of a file durable; `path` is for the error.
pub(crate) fn sync(file: &File, path: &Path) -> Result<(), DiskError> {
    file.sync_all().on_sync(path)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), DiskError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)
        .on("open", path)?
        .sync_all()
        .on_sync(path)
}

/// Makes a directory with mode 0700 unless it is there, parents too.
pub(crate) fn make_directory(path: &Path) -> Result<(), DiskError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .on("create directory", path)
}

/// Opens a file to be written, made if it is missing; afterwards nobody else may open it.
pub(crate) fn open_or_make(path: &Path) -> Result<File, DiskError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .on("open", path)?;
    let mode = file.metadata().on("look at", path)?.mode();
    if mode & 0o077 != 0 {
        let closed = file.set_permissions(fs::Permissions::from_mode(0o600));
        closed.on("set the mode of", path)?;
    }
    Ok(file)
}

/// Replaces what a file holds, in place: an error means that it still holds what it did. What is written may be cut or
/// empty after a power loss.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let mut file = File::create(path).on("empty", path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "emptied, but not written");
    }
    Ok(())
}

/// Replaces a small file: either the old or the new bytes survive any crash, never a mixture.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let temp = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)
        .on("create", &temp)?;
    file.write_all(bytes).on("write", &temp)?;
    file.sync_all().on_sync(&temp)?;
    fs::rename(&temp, path).on("rename", path)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Renames, replacing `to`. Durable after a sync of both directories.
pub(crate) fn rename(
    from: &(impl Spot + ?Sized),
    to: &(impl Spot + ?Sized),
) -> Result<(), DiskError> {
    let ((old, from), (new, name)) = (from.spot(), to.spot());
    rustix::fs::renameat(old, from, new, name).on("rename", to.shown())
}

/// Renames, failing with EEXIST when `to` is there.
pub(crate) fn rename_no_replace(
    from: &(impl Spot + ?Sized),
    to: &(impl Spot + ?Sized),
) -> Result<(), DiskError> {
    let ((old, from), (new, name)) = (from.spot(), to.spot());
    rustix::fs::renameat_with(old, from, new, name, RenameFlags::NOREPLACE).on("rename", to.shown())
}

/// Renames a file, replacing a file or an empty directory at `to`; or a directory, replacing a file. If that fails, a file at
/// `to` is still there.
pub(crate) fn rename_into_place(
    from: &(impl Spot + ?Sized),
    to: &(impl Spot + ?Sized),
    directory: bool,
) -> Result<(), DiskError> {
    if !directory {
        return match rename(from, to) {
            Err(error) if error.cause().raw_os_error() == Some(libc::EISDIR) => {
                remove_directory(to)?;
                rename(from, to)
            }
            done => done,
        };
    }
    match rename_no_replace(from, to) {
        Err(error) if error.cause().raw_os_error() == Some(libc::EEXIST) => {
            let ((old, from_name), (new, name)) = (from.spot(), to.spot());
            let there = rustix::fs::statat(new, name, AtFlags::SYMLINK_NOFOLLOW);
            let is_directory = |stat: Stat| FileType::from_raw_mode(stat.st_mode).is_dir();
            if there.is_ok_and(is_directory) {
                return Err(error);
            }
            rustix::fs::renameat_with(old, from_name, new, name, RenameFlags::EXCHANGE)
                .on("rename", to.shown())?;
            if let Err(error) = remove(from) {
                tracing::debug!(%error, "a file that gave way stays beside");
            }
            Ok(())
        }
        done => done,
    }
}

/// Removes a file. `false`: it was not there.
pub(crate) fn remove(spot: &(impl Spot + ?Sized)) -> Result<bool, DiskError> {
    let (directory, name) = spot.spot();
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e).on("remove", spot.shown()),
    }
}

/// Removes a file, or a directory with all that is in it; it may be gone already.
pub(crate) fn remove_all(path: &Path) -> Result<(), DiskError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", path),
    }
}

/// Removes an empty directory.
pub(crate) fn remove_directory(spot: &(impl Spot + ?Sized)) -> Result<(), DiskError> {
    let (directory, name) = spot.spot();
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR).on("remove directory", spot.shown())
}

/// Gives an open file one more name. ENOENT when it has none left: somebody removed it meanwhile.
pub(crate) fn link_open_file(file: &File, to: &Path) -> Result<(), DiskError> {
    use std::os::fd::AsRawFd;
    let from = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::linkat(CWD, from, CWD, to, AtFlags::SYMLINK_FOLLOW).on("link", to)
}

/// Copies all of `from` into the new file `to`: shared extents where the file system can, else a copy inside the kernel,
/// of what is not a hole.
pub(crate) fn copy(from: &File, to: &Path) -> Result<File, DiskError> {
    let new = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(to)
        .on("create", to)?;
    keep_access_time(from);
    if rustix::fs::ioctl_ficlone(&new, from).is_ok() {
        return Ok(new);
    }
    let len = from.metadata().on("stat", to)?.len();
    new.set_len(len).on("stretch", to)?;
    let (mut extents, mut at) = (Extents::of(from), 0_u64);
    while at < len {
        let bytes = extents.bytes_from(at);
        let (begin, end) = (bytes.start.max(at), bytes.end.min(len));
        at = copy_range(from, &new, begin..end).on("copy to", to)?;
        if at < end {
            return Err(rustix::io::Errno::IO).on("copy all of", to);
        }
    }
    Ok(new)
}

/// Gives how far it came.
fn copy_range(from: &File, to: &File, range: Range<u64>) -> rustix::io::Result<u64> {
    let (mut read_at, mut write_at) = (range.start, range.start);
    while read_at < range.end {
        let left = usize::try_from(range.end - read_at).unwrap_or(usize::MAX);
        let want = left.min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_could_open_is_closed_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mode = |path| fs::metadata(path).unwrap().mode() & 0o7777;
        open_or_make(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        fs::write(&path, "kept").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        open_or_make(&path).unwrap();
        assert_eq!(
            (mode(&path), fs::read(&path).unwrap()),
            (0o600, b"kept".to_vec())
        );
    }

    #[test]
    fn a_file_stays_where_a_directory_cannot_take_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("tree");
        let to = from.join("d/f");
        fs::create_dir_all(from.join("d")).unwrap();
        fs::write(&to, "old").unwrap();
        // No directory goes below itself.
        rename_into_place(&from, &to, true).unwrap_err();
        assert_eq!(fs::read_to_string(&to).unwrap(), "old");
    }

    #[test]
    fn a_directory_takes_the_place_of_a_file_and_not_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("tree"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(&to, "old").unwrap();
        rename_into_place(&from, &to, true).unwrap();
        assert!(to.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::create_dir(&from).unwrap();
        rename_into_place(&from, &to, true).unwrap_err();
        assert!(from.is_dir() && to.is_dir());
    }
}
