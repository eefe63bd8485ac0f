//! What `meshbox send` copies into the outbox: the named files, and the regular files below named directories.
//!
//! A named argument is followed if it is a symbolic link, as by every program. Below it nothing is: a directory means
//! what is in it, and a link in it that leads elsewhere would send what nobody named. Links are skipped and named, and
//! so are FIFOs, sockets and devices, which have no bytes to send; none of them keeps the rest from being sent.
//!
//! Directories are walked by descriptors, and files opened without following a link, so that whoever may write to the
//! directory cannot lead us elsewhere meanwhile either.

use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, linkat, openat, statat};

use super::bar::Bar;
use super::exit::Failure;
use crate::bundle::RelPath;
use crate::control::WirePath;
use crate::peer;

/// Something to be sent.
pub(super) struct Place {
    pub(super) at: PathBuf,
    /// What it is called in the bundle.
    pub(super) name: RelPath,
    pub(super) in_outbox: bool,
}

/// Where a walk is: a directory, one name in it, and how that is called here and in the bundle.
struct Found<'a> {
    directory: BorrowedFd<'a>,
    name: &'a [u8],
    /// For messages.
    at: PathBuf,
    path: RelPath,
    in_outbox: bool,
}

/// A directory of the outbox with an ignored name, for files that are to be sent as a bundle. Removed when it is dropped.
pub(super) struct Stage {
    at: PathBuf,
    name: RelPath,
    staged: Vec<(WirePath, WirePath)>,
    bar: Bar,
}

impl Stage {
    pub(super) fn new(outbox: &Path) -> Result<Self, Failure> {
        let random = data_encoding::HEXLOWER.encode(&peer::random::<8>());
        let name = format!(".meshbox-send-{random}");
        let at = outbox.join(&name);
        fs::create_dir(&at).map_err(|err| said(&at, &err))?;
        let name = RelPath::parse(name).map_err(Failure::failed)?;
        Ok(Self {
            at,
            name,
            staged: Vec::new(),
            bar: Bar::of_copying(),
        })
    }

    /// Copies what is at a named place here, or links it if it is in the outbox already.
    pub(super) fn take(&mut self, place: &Place) -> Result<(), Failure> {
        let meta = fs::metadata(&place.at).map_err(|err| said(&place.at, &err))?;
        if !meta.is_dir() && !meta.is_file() {
            return Err(Failure::failed(format!(
                "{} is not a file; only files and directories are sent",
                place.at.display()
            )));
        }
        // What the name leads to, not the link that it may be.
        let at = fs::canonicalize(&place.at).map_err(|err| said(&place.at, &err))?;
        let found = Found {
            directory: CWD,
            name: at.as_os_str().as_bytes(),
            at: place.at.clone(),
            path: place.name.clone(),
            in_outbox: place.in_outbox,
        };
        if meta.is_dir() {
            self.take_directory(&found)
        } else {
            self.take_file(&found)
        }
    }

    fn take_directory(&mut self, found: &Found<'_>) -> Result<(), Failure> {
        let directory = found.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        let listed = Dir::read_from(&directory).map_err(|err| said(&found.at, &err.into()))?;
        for entry in listed {
            let entry = entry.map_err(|err| said(&found.at, &err.into()))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        for name in names {
            let at = found.at.join(std::ffi::OsStr::from_bytes(&name));
            let path = found.path.child(&name);
            let inner = Found {
                directory: directory.as_fd(),
                name: &name,
                path: path.map_err(|err| Failure::failed(format!("{}: {err}", at.display())))?,
                at,
                in_outbox: found.in_outbox,
            };
            let stat = statat(inner.directory, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|err| said(&inner.at, &err.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => self.take_file(&inner)?,
                FileType::Directory => self.take_directory(&inner)?,
                FileType::Symlink => inner.skipped("symbolic links are not followed"),
                FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => inner.skipped("only files and directories are sent"),
            }
        }
        Ok(())
    }

    fn take_file(&mut self, found: &Found<'_>) -> Result<(), Failure> {
        let number = self.staged.len().to_string();
        let to = self.at.join(&number);
        let link = || linkat(found.directory, found.name, CWD, &to, AtFlags::empty());
        let linked = found.in_outbox && link().is_ok();
        if !linked {
            let file = File::from(found.open(OFlags::RDONLY | OFlags::NONBLOCK)?);
            let meta = file.metadata().map_err(|err| said(&found.at, &err))?;
            if !meta.is_file() {
                found.skipped("it is no file any more");
                return Ok(());
            }
            copy(file, &to, &meta, found, &self.bar).map_err(|err| said(&found.at, &err))?;
        }
        let from = self.name.child(number.as_bytes());
        let from = from.map_err(Failure::failed)?;
        self.staged
            .push((WirePath::from(&from), WirePath::from(&found.path)));
        Ok(())
    }

    /// Where each file is below the outbox, and its path in the bundle.
    pub(super) fn staged(&self) -> Vec<(WirePath, WirePath)> {
        self.staged.clone()
    }
}

impl Found<'_> {
    fn open(&self, flags: OFlags) -> Result<OwnedFd, Failure> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(self.directory, self.name, flags, Mode::empty())
            .map_err(|err| said(&self.at, &err.into()))
    }

    fn skipped(&self, why: &str) {
        super::output::complain(&format!("skipped {}: {why}", self.at.display()));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.at) {
            super::output::complain(&format!("cannot remove {}: {err}", self.at.display()));
        }
    }
}

/// Copies with mode and time.
fn copy(
    mut from: File,
    to: &Path,
    meta: &Metadata,
    found: &Found<'_>,
    bar: &Bar,
) -> io::Result<()> {
    let mut new = File::create(to)?;
    if bar.is_shown() {
        let name = found.path.to_string();
        io::copy(&mut bar.reading(&name, from), &mut new)?;
    } else {
        // From file to file the kernel copies.
        io::copy(&mut from, &mut new)?;
    }
    new.set_permissions(meta.permissions())?;
    new.set_times(FileTimes::new().set_modified(meta.modified()?))
}

fn said(at: &Path, err: &io::Error) -> Failure {
    Failure::failed(format!("{}: {err}", at.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What of `at`, as it was named, would be sent: path and bytes.
    fn taken(outbox: &Path, at: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut stage = Stage::new(outbox).map_err(|failure| failure.message)?;
        let name = RelPath::parse(at.file_name().unwrap().as_bytes()).unwrap();
        let place = Place {
            at: at.to_path_buf(),
            name,
            in_outbox: false,
        };
        stage.take(&place).map_err(|failure| failure.message)?;
        let mut taken = Vec::new();
        for (number, (_, path)) in stage.staged().into_iter().enumerate() {
            let bytes = fs::read(stage.at.join(number.to_string())).unwrap();
            let path = RelPath::try_from(&path).unwrap();
            taken.push((path.to_string(), bytes));
        }
        Ok(taken)
    }

    #[test]
    fn below_a_named_directory_links_and_what_is_no_file_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, source) = (dir.path().join("outbox"), dir.path().join("source"));
        let elsewhere = dir.path().join("elsewhere");
        for at in [&outbox, &source.join("sub"), &elsewhere] {
            fs::create_dir_all(at).unwrap();
        }
        fs::write(elsewhere.join("secret"), b"secret").unwrap();
        fs::write(source.join("one"), b"1").unwrap();
        fs::write(source.join("sub/two"), b"2").unwrap();
        symlink("no/where", source.join("broken")).unwrap();
        symlink(&elsewhere, source.join("directory")).unwrap();
        symlink(elsewhere.join("secret"), source.join("sub/file")).unwrap();
        symlink("one", source.join("inside")).unwrap();
        let _socket = UnixListener::bind(source.join("socket")).unwrap();
        rustix::fs::mknodat(
            CWD,
            source.join("fifo"),
            FileType::Fifo,
            Mode::from(0o600),
            0,
        )
        .unwrap();
        let wanted = |top: &str| {
            vec![
                (format!("{top}/one"), b"1".to_vec()),
                (format!("{top}/sub/two"), b"2".to_vec()),
            ]
        };
        assert_eq!(taken(&outbox, &source), Ok(wanted("source")));
        assert_eq!(
            fs::read_dir(&outbox).unwrap().count(),
            0,
            "nothing stays in the outbox"
        );

        // What is named itself is followed.
        let named = dir.path().join("named");
        symlink(&source, &named).unwrap();
        assert_eq!(taken(&outbox, &named), Ok(wanted("named")));
        let file = dir.path().join("file");
        symlink(source.join("one"), &file).unwrap();
        assert_eq!(
            taken(&outbox, &file),
            Ok(vec![("file".into(), b"1".to_vec())])
        );
        assert!(taken(&outbox, &source.join("broken")).is_err());
        assert!(
            taken(&outbox, &source.join("fifo"))
                .unwrap_err()
                .contains("is not a file")
        );
    }
}
