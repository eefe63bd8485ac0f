//! Resolves a path to its real one without ever touching a FUSE mount of ours.
//!
//! `realpath` asks the file system at every step. On a dead mount that fails with ENOTCONN, on a hung one it does not
//! return. So each step is looked up in the mount table first, and only what is not a mount is asked for symlinks.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::info::MountTable;

/// As many symlinks as the kernel follows in one lookup.
const MAX_SYMLINKS: usize = 40;

/// A path without symlinks, `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

/// What is at the end of a resolved path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something is mounted exactly there. It was not touched.
    Mount,
    Directory,
    /// A file, device, socket or FIFO.
    NotADirectory,
    /// It, and maybe some directories above it, do not exist.
    Missing,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ResolveError {
    /// The path leads through a Meshbox mount.
    #[error("inside the Meshbox mount {0}")]
    InsideMeshbox(PathBuf),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(super) fn resolve(path: &Path, table: &MountTable) -> Result<Resolved, ResolveError> {
    let mut todo: VecDeque<OsString> = names(&std::path::absolute(path)?);
    let mut current = PathBuf::from("/");
    let mut kind = Kind::Directory;
    if todo.is_empty() {
        kind = Kind::Mount;
    }
    let mut symlinks = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            if kind == Kind::Missing {
                return Err(io::Error::from(io::ErrorKind::NotFound).into());
            }
            current.pop();
            kind = Kind::Directory;
            continue;
        }
        let next = current.join(&name);
        if kind == Kind::Missing {
            current = next;
            continue;
        }
        if let Some(mount) = table.top_at(&next) {
            if mount.is_meshbox() && !todo.is_empty() {
                return Err(ResolveError::InsideMeshbox(next));
            }
            current = next;
            kind = Kind::Mount;
            continue;
        }
        kind = match fs::symlink_metadata(&next) {
            Ok(meta) if meta.is_symlink() => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    current = PathBuf::from("/");
                }
                for part in names(&target).into_iter().rev() {
                    todo.push_front(part);
                }
                if todo.is_empty() {
                    // A link to `/` or to `.`: what we stand on is the end.
                    kind_of(&current, table)
                } else {
                    Kind::Directory
                }
            }
            Ok(meta) => {
                current = next;
                if meta.is_dir() {
                    Kind::Directory
                } else if todo.is_empty() {
                    Kind::NotADirectory
                } else {
                    return Err(io::Error::from_raw_os_error(libc::ENOTDIR).into());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                current = next;
                Kind::Missing
            }
            Err(e) => return Err(e.into()),
        };
    }
    if kind == Kind::Directory {
        kind = kind_of(&current, table);
    }
    Ok(Resolved {
        path: current,
        kind,
    })
}

/// The kind of a directory that was already walked through.
fn kind_of(directory: &Path, table: &MountTable) -> Kind {
    match table.top_at(directory) {
        Some(_) => Kind::Mount,
        None => Kind::Directory,
    }
}

/// The names of a path, `..` among them.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn real(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().canonicalize().unwrap()
    }

    #[test]
    fn links_dots_and_missing_tails_resolve_as_the_kernel_would() {
        let dir = tempfile::tempdir().unwrap();
        let top = real(&dir);
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        symlink("a/b", top.join("relative")).unwrap();
        symlink(top.join("a"), top.join("absolute")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        symlink("/", top.join("root")).unwrap();
        let table = MountTable::default();
        let check = |name: &str, want: &str, kind| {
            let got = resolve(&top.join(name), &table).unwrap();
            assert_eq!(
                got,
                Resolved {
                    path: top.join(want),
                    kind
                },
                "{name}"
            );
        };
        check("relative", "a/b", Kind::Directory);
        check("absolute/b/../../a/./b", "a/b", Kind::Directory);
        check("relative/..", "a", Kind::Directory);
        check("file", "file", Kind::NotADirectory);
        check("absolute/x/y", "a/x/y", Kind::Missing);
        for bad in ["loop", "file/x", "none/../a"] {
            assert!(resolve(&top.join(bad), &table).is_err(), "{bad}");
        }
        assert_eq!(
            resolve(&top.join("root"), &table).unwrap().path,
            Path::new("/")
        );
    }

    /// A mount of ours must never be stat'ed, so an entry of the table decides, whatever is on disk.
    #[test]
    fn a_mount_in_the_table_is_not_touched() {
        let text = "1 0 0:9 / /nowhere/box rw - fuse.meshbox x rw\n2 0 0:8 / /nowhere/tmp rw - tmpfs x rw\n";
        let table = MountTable::parse(text.as_bytes());
        let dir = tempfile::tempdir().unwrap();
        let link = real(&dir).join("link");
        symlink("/nowhere/box", &link).unwrap();
        // `/nowhere` does not exist here: reaching the table's entry needs a link that skips it.
        let table_with_parent = {
            let text = format!("1 0 0:9 / {} rw - fuse.meshbox x rw\n", link.display());
            MountTable::parse(text.as_bytes())
        };
        let got = resolve(&link, &table_with_parent).unwrap();
        assert_eq!((got.path, got.kind), (link.clone(), Kind::Mount));
        assert!(matches!(
            resolve(&link.join("outbox"), &table_with_parent),
            Err(ResolveError::InsideMeshbox(at)) if at == link
        ));
        assert_eq!(resolve(&link, &table).unwrap().kind, Kind::Missing);
    }
}
