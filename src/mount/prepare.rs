//! The checks before a mount.
//!
//! All refusals happen before anything is created or unmounted, except that a dead mount of our own is taken away first,
//! since nothing can be said about what lies under it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::info::{MountEntry, MountTable};
use super::probe::{ANSWER_LIMIT, Life, probe};
use super::resolve::{Kind, ResolveError, resolve};
use super::sys::{self, UnmountError};

/// So many dead mounts stacked on one path are taken away. More than one is rare: an older start that did not look.
const MAX_STACKED: usize = 8;

/// A mountpoint that may be mounted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// The mountpoint without symlinks. It exists.
    pub mountpoint: PathBuf,
    /// The state directory without symlinks. It may not exist yet.
    pub state: PathBuf,
    /// Dead mounts of an earlier daemon that were taken away.
    pub recovered: usize,
    /// Directories that were made for the mountpoint, the deepest first.
    pub made: Vec<PathBuf>,
}

/// Why a mountpoint is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// A daemon serves it.
    #[error("{at} is already mounted; `meshbox status` shows it, `meshbox umount {at}` ends it", at = at.display())]
    AlreadyMounted {
        /// The mountpoint.
        at: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{at} is already a mount of type {fs_type} ({source_name}); unmount it first, or choose another directory", at = at.display())]
    Foreign {
        /// The mountpoint.
        at: PathBuf,
        fs_type: String,
        source_name: String,
    },
    /// Not a directory.
    #[error("{at} is not a directory; choose a directory, or a name that does not exist yet", at = at.display())]
    NotADirectory {
        /// The mountpoint.
        at: PathBuf,
    },
    /// More than the last part of its path is missing.
    #[error("there is no directory {parent} to make a mountpoint in; if {at} is what you mean: `mkdir -p {parent}`", at = at.display(), parent = parent.display())]
    NoParent {
        /// The mountpoint.
        at: PathBuf,
        /// The directory that is missing.
        parent: PathBuf,
    },
    /// The directory holds something that the mount would hide.
    #[error("{at} is not empty ({example} is in it, and would be hidden); move its contents away, or choose another directory", at = at.display())]
    NotEmpty {
        /// The mountpoint.
        at: PathBuf,
        /// One name in it.
        example: String,
    },
    /// The mountpoint lies in a Meshbox mount.
    #[error("{path} is inside the Meshbox mount {at}; choose a directory outside of it", path = path.display(), at = at.display())]
    InsideMeshbox {
        /// The mountpoint or state directory asked for.
        path: PathBuf,
        /// The mount it lies in.
        at: PathBuf,
    },
    /// The mount would hide its own state.
    #[error("the state directory {state} is inside the mountpoint {at}; choose another mountpoint, or another --state", state = state.display(), at = at.display())]
    StateInside {
        /// The state directory.
        state: PathBuf,
        /// The mountpoint.
        at: PathBuf,
    },
    /// The mount would lie in the middle of its own state.
    #[error("the mountpoint {at} is inside the state directory {state}; choose another mountpoint, or another --state", state = state.display(), at = at.display())]
    InsideState {
        /// The state directory.
        state: PathBuf,
        /// The mountpoint.
        at: PathBuf,
    },
    /// A dead mount could not be taken away.
    #[error("a dead Meshbox mount is in the way; `umount -l {at}` as root removes it: {source}", at = at.display())]
    Stuck {
        /// The mountpoint.
        at: PathBuf,
        /// What the unmount said.
        source: UnmountError,
    },
    /// The mountpoint is missing, and cannot be made.
    #[error("cannot make the mountpoint {at}: {source}", at = at.display())]
    NotMade {
        /// The mountpoint.
        at: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system said no.
    #[error("cannot use {at}: {source}", at = at.display())]
    Io {
        /// The path.
        at: PathBuf,
        /// Its words.
        source: io::Error,
    },
}

/// Checks and creates `mountpoint`, but not the directory it is in, for a daemon whose state is in `state`.
pub(crate) fn prepare(mountpoint: &Path, state: &Path) -> Result<Prepared, PrepareError> {
    let (mut recovered, mut made) = (0, Vec::new());
    loop {
        let table = MountTable::read().map_err(io_at(mountpoint))?;
        let at = find(mountpoint, &table)?;
        let state = find(state, &table)?;
        if state.path.starts_with(&at.path) {
            return Err(PrepareError::StateInside {
                state: state.path,
                at: at.path,
            });
        }
        if at.path.starts_with(&state.path) {
            return Err(PrepareError::InsideState {
                state: state.path,
                at: at.path,
            });
        }
        if let Some(entry) = table.top_at(&state.path).filter(|e| e.is_meshbox()) {
            let at = entry.mountpoint.clone();
            return Err(PrepareError::InsideMeshbox {
                path: state.path,
                at,
            });
        }
        let top = match at.kind {
            Kind::NotADirectory => return Err(PrepareError::NotADirectory { at: at.path }),
            Kind::Mount => table.top_at(&at.path),
            Kind::Directory | Kind::Missing => None,
        };
        match top {
            Some(top) if top.is_meshbox() => {
                recover(top, ANSWER_LIMIT)?;
                recovered += 1;
                if recovered <= MAX_STACKED {
                    continue;
                }
                return Err(PrepareError::AlreadyMounted { at: at.path });
            }
            // The trigger of an automount is there to be mounted on; looking into it would wait for ourselves.
            Some(top) if top.fs_type == "autofs" => {}
            Some(top) => {
                return Err(PrepareError::Foreign {
                    fs_type: top.fs_type.clone(),
                    source_name: top.source.to_string_lossy().into_owned(),
                    at: at.path,
                });
            }
            None if at.kind == Kind::Mount => {
                // Only the root directory can be a mount that the table does not show.
                return Err(PrepareError::NotADirectory { at: at.path });
            }
            None => {
                let missing = at.path.ancestors().take_while(|path| !path.exists());
                made = missing.map(Path::to_owned).collect();
                // A mistyped path would be a new mailbox, and its sender would never hear of it.
                if let Some(parent) = made.get(1).cloned() {
                    return Err(PrepareError::NoParent {
                        at: at.path,
                        parent,
                    });
                }
                check_nesting(&at.path, &state.path)?;
                fs::create_dir_all(&at.path).map_err(|source| PrepareError::NotMade {
                    at: at.path.clone(),
                    source,
                })?;
                check_empty(&at.path)?;
            }
        }
        return Ok(Prepared {
            mountpoint: at.path,
            state: state.path,
            recovered,
            made,
        });
    }
}

fn io_at(at: &Path) -> impl FnOnce(io::Error) -> PrepareError {
    let at = at.to_owned();
    move |source| PrepareError::Io { at, source }
}

fn find(path: &Path, table: &MountTable) -> Result<super::resolve::Resolved, PrepareError> {
    resolve(path, table).map_err(|e| match e {
        ResolveError::InsideMeshbox(at) => PrepareError::InsideMeshbox {
            path: path.to_owned(),
            at,
        },
        ResolveError::Io(source) => PrepareError::Io {
            at: path.to_owned(),
            source,
        },
    })
}

fn check_empty(at: &Path) -> Result<(), PrepareError> {
    let mut entries = fs::read_dir(at).map_err(io_at(at))?;
    match entries.next() {
        None => Ok(()),
        Some(Err(e)) => Err(io_at(at)(e)),
        Some(Ok(entry)) => Err(PrepareError::NotEmpty {
            at: at.to_owned(),
            example: entry.file_name().to_string_lossy().into_owned(),
        }),
    }
}

/// Bind mounts give one directory several paths, so names alone do not show every nesting.
fn check_nesting(at: &Path, state: &Path) -> Result<(), PrepareError> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let below = |inner: &Path, outer: &Path| {
        let outer = identity(outer);
        outer.is_some() && inner.ancestors().any(|a| identity(a) == outer)
    };
    let (at_owned, state_owned) = (at.to_owned(), state.to_owned());
    if below(state, at) {
        Err(PrepareError::StateInside {
            state: state_owned,
            at: at_owned,
        })
    } else if below(at, state) {
        Err(PrepareError::InsideState {
            state: state_owned,
            at: at_owned,
        })
    } else {
        Ok(())
    }
}

/// Takes a dead mount away, or says that it is alive.
pub(super) fn recover(top: &MountEntry, limit: Duration) -> Result<(), PrepareError> {
    let at = top.mountpoint.clone();
    match probe(&at, limit) {
        Life::Alive => return Err(PrepareError::AlreadyMounted { at }),
        Life::Dead => {}
        // Its daemon holds a request and does not answer. Ending the connection frees everybody who waits for it, the thread
        // that has just asked among them. Best effort: the control file system need not be mounted.
        Life::Hung => {
            let abort = format!("/sys/fs/fuse/connections/{}/abort", top.device.1);
            if let Err(error) = fs::write(&abort, "1") {
                tracing::debug!(%error, abort, "cannot abort the hung connection");
            }
        }
    }
    tracing::warn!(mountpoint = %at.display(), "taking away the dead mount of an earlier daemon");
    sys::detach(&at).map_err(|source| PrepareError::Stuck { at, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::trial::scratch;
    use super::*;

    #[test]
    fn of_a_missing_mountpoint_the_last_part_is_created() {
        let (_dir, top) = scratch();
        let refused = prepare(&top.join("a/b/share"), &top.join("state")).unwrap_err();
        assert!(refused.to_string().contains("mkdir -p"), "{refused}");
        assert!(!top.join("a").exists());
        fs::create_dir_all(top.join("a/b")).unwrap();
        let got = prepare(&top.join("a/b/share"), &top.join("state")).unwrap();
        assert_eq!(got.mountpoint, top.join("a/b/share"));
        assert!(got.mountpoint.is_dir());
        assert!(
            !top.join("state").exists(),
            "the state is the spool's to create"
        );
        assert_eq!(got.made, [top.join("a/b/share")]);
        assert_eq!(
            prepare(&top.join("a/b/share"), &top.join("state")).unwrap(),
            Prepared {
                made: Vec::new(),
                ..got
            }
        );
    }

    #[test]
    fn what_would_hide_files_is_refused_and_nothing_is_created() {
        let (_dir, top) = scratch();
        fs::create_dir(top.join("full")).unwrap();
        fs::write(top.join("full/report.txt"), "x").unwrap();
        let state = top.join("state");
        let error = prepare(&top.join("full"), &state).unwrap_err();
        assert!(error.to_string().contains("report.txt"), "{error}");
        let file = top.join("full/report.txt");
        assert!(matches!(
            prepare(&file, &state),
            Err(PrepareError::NotADirectory { .. })
        ));
        assert!(matches!(
            prepare(&file.join("x"), &state),
            Err(PrepareError::Io { .. })
        ));
        assert!(matches!(
            prepare(Path::new("/"), &state),
            Err(PrepareError::StateInside { .. })
        ));
    }

    #[test]
    fn state_and_mountpoint_must_not_lie_in_each_other_through_any_link() {
        let (_dir, top) = scratch();
        fs::create_dir_all(top.join("s")).unwrap();
        symlink(top.join("s"), top.join("link")).unwrap();
        for (mountpoint, state, inside) in [
            ("m", "m/state", true),
            ("m", "m", true),
            ("s/new", "link/new/deep", true),
            ("s/share", "s", false),
            ("link/x/share", "s/x", false),
        ] {
            let error = prepare(&top.join(mountpoint), &top.join(state)).unwrap_err();
            match (&error, inside) {
                (PrepareError::StateInside { .. }, true)
                | (PrepareError::InsideState { .. }, false) => {}
                _ => panic!("{mountpoint} {state}: {error}"),
            }
        }
        assert!(!top.join("m").exists());
        prepare(&top.join("share"), &top.join("share-state")).unwrap();
    }
}
