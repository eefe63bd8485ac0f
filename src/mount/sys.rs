//! Mounting and unmounting: by system call as root, through fusermount3 as a plain user.
//!
//! We mount ourselves, and hand the FUSE library a finished descriptor, because its own way loses the subtype, lets the
//! source inject options, and may unmount somebody else's mount at the end.
//!
//! # Invariants
//! A [`Mounted`] unmounts exactly its own mount, once, lazily, at the latest when it is dropped. It keeps a duplicate of the
//! descriptor for one question: has this connection ended already? Ids of mounts are used again at once, so after an
//! `umount` from outside the next daemon's mount at the same place may carry ours.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::announcer::MountPlace;
use super::info::MountTable;
use super::probe::{Life, probe};
use super::resolve::{self, ResolveError};
use super::{FS_TYPE, device, options};

/// How long a mount that may not be ours any more gets to answer before it counts as dead.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// What to mount, where.
#[derive(Debug, Clone)]
pub(crate) struct MountRequest {
    /// A directory, as [`super::prepare::prepare`] returned it.
    pub mountpoint: PathBuf,
    /// The source shown by findmnt.
    pub fs_name: OsString,
    /// Let other users in. For a plain user, /etc/fuse.conf must allow it.
    pub allow_other: bool,
    /// Refuse every change through the mount.
    pub read_only: bool,
    /// Refuse to run programs.
    pub no_exec: bool,
    /// Keep access times.
    pub no_atime: bool,
}

impl MountRequest {
    /// A request with the defaults: writable, for its owner only.
    pub(crate) fn new(mountpoint: PathBuf, fs_name: impl Into<OsString>) -> MountRequest {
        MountRequest {
            mountpoint,
            fs_name: fs_name.into(),
            allow_other: false,
            read_only: false,
            no_exec: false,
            no_atime: false,
        }
    }
}

/// Why a mount failed. Nothing is left mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// No `/dev/fuse`.
    #[error(
        "cannot open /dev/fuse: {0}; load it with `modprobe fuse`, or start the container with `--device /dev/fuse`"
    )]
    NoDevice(#[source] io::Error),
    /// mount(2) refused.
    #[error("may not mount at {at}: {source}; in a container this needs `--cap-add SYS_ADMIN`", at = at.display())]
    Denied {
        /// The mountpoint.
        at: PathBuf,
        /// EPERM or EACCES.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("cannot mount at {at}: {source}", at = at.display())]
    Failed {
        /// The mountpoint.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No helper for plain users.
    #[error(
        "fusermount3 is not installed, and only root can mount without it; `apt install fuse3`"
    )]
    NoFusermount,
    /// fusermount3 refused; these are its own words.
    #[error("cannot mount at {at}: {said}", at = at.display())]
    Fusermount {
        /// The mountpoint.
        at: PathBuf,
        /// Its standard error.
        said: String,
    },
    /// The mount is not in mountinfo.
    #[error("mounted at {at}, but no mount is there; is the path in another mount namespace, or changed meanwhile?", at = at.display())]
    Vanished {
        /// The mountpoint.
        at: PathBuf,
    },
    /// Anything else on the way.
    #[error("cannot mount: {0}")]
    Io(#[from] io::Error),
}

/// Why an unmount failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnmountError {
    /// Nothing is mounted there.
    #[error("nothing is mounted at {at}", at = at.display())]
    NotMounted {
        /// The path, resolved.
        at: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{at} is a mount of type {fs_type}, not of Meshbox; use `umount`", at = at.display())]
    NotOurs {
        /// The path, resolved.
        at: PathBuf,
        fs_type: String,
    },
    /// Files are open, or somebody's working directory is in it.
    #[error("{at} is in use; close what uses it (`fuser -vm {at}` shows it), or detach it now with `--lazy`", at = at.display())]
    Busy {
        /// The mountpoint.
        at: PathBuf,
    },
    /// The kernel or fusermount3 said no.
    #[error("cannot unmount {at}: {said}", at = at.display())]
    Failed {
        /// The mountpoint.
        at: PathBuf,
        /// The reason in its own words.
        said: String,
    },
    /// The path could not be resolved, or mountinfo not be read.
    #[error("cannot look at the mounts: {0}")]
    Io(#[from] io::Error),
}

/// A mount of ours in place. Unmounts it when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    mountpoint: PathBuf,
    id: u64,
    device: (u32, u32),
    /// Only ever asked whether the connection is over.
    connection: OwnedFd,
    done: AtomicBool,
}

/// Mounts, and returns the descriptor to serve. The kernel's first request is waiting on it.
pub(crate) fn mount(request: &MountRequest) -> Result<(Mounted, OwnedFd), MountError> {
    let fd = if rustix::process::geteuid().is_root() {
        mount_by_syscall(request)?
    } else {
        mount_by_helper(request)?
    };
    Ok((identify(&request.mountpoint, &fd)?, fd))
}

fn identify(at: &Path, fd: &OwnedFd) -> Result<Mounted, MountError> {
    let table = MountTable::read()?;
    let entry = table
        .top_at(at)
        .filter(|e| e.is_meshbox())
        .ok_or_else(|| MountError::Vanished { at: at.to_owned() })?;
    Ok(Mounted {
        mountpoint: at.to_owned(),
        id: entry.id,
        device: entry.device,
        connection: rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(io::Error::from)?,
        done: AtomicBool::new(false),
    })
}

fn mount_by_syscall(request: &MountRequest) -> Result<OwnedFd, MountError> {
    use std::os::fd::AsRawFd;

    let fd = device::open().map_err(MountError::NoDevice)?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,subtype=meshbox",
        fd.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if request.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(io::Error::from)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, request.read_only);
    flags.set(MountFlags::NOEXEC, request.no_exec);
    flags.set(MountFlags::NOATIME, request.no_atime);
    let at = request.mountpoint.clone();
    match rustix::mount::mount(
        request.fs_name.as_os_str(),
        &request.mountpoint,
        "fuse",
        flags,
        data.as_c_str(),
    ) {
        Ok(()) => Ok(fd),
        Err(e @ (Errno::PERM | Errno::ACCESS)) => Err(MountError::Denied {
            at,
            source: e.into(),
        }),
        Err(Errno::NODEV) => Err(MountError::NoDevice(Errno::NODEV.into())),
        Err(e) => Err(MountError::Failed {
            at,
            source: e.into(),
        }),
    }
}

/// fusermount3 opens the device and mounts with root's rights, then passes the descriptor over a socket, which it gets as
/// its standard input: so no descriptor number has to survive an exec.
fn mount_by_helper(request: &MountRequest) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut words = vec![b"nosuid,nodev,default_permissions,subtype=meshbox,fsname=".to_vec()];
    words.push(options::escape(&request.fs_name).into_vec());
    for (wanted, word) in [
        (request.allow_other, ",allow_other"),
        (request.read_only, ",ro"),
        (request.no_exec, ",noexec"),
        (request.no_atime, ",noatime"),
    ] {
        if wanted {
            words.push(word.into());
        }
    }
    let output = fusermount(|command| {
        command
            .arg("-o")
            .arg(OsStr::from_bytes(&words.concat()))
            .arg("--")
            .arg(&request.mountpoint)
            .env("_FUSE_COMMFD", "0")
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)));
        Ok(())
    })?
    .ok_or(MountError::NoFusermount)?;
    drop(theirs);
    if !output.status.success() {
        let at = request.mountpoint.clone();
        return Err(MountError::Fusermount {
            at,
            said: said(&output),
        });
    }
    device::above_stdio(receive_fd(&ours)?).map_err(MountError::Io)
}

fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        // The helper has exited: what it sent is here, and nothing else will come.
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::other(
        "fusermount3 succeeded, but passed no descriptor",
    ))
}

/// Runs fusermount3. `None` if there is none, also not where systems that clear PATH keep it.
fn fusermount(prepare: impl Fn(&mut Command) -> io::Result<()>) -> io::Result<Option<Output>> {
    for program in ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"] {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env("LC_ALL", "C");
        prepare(&mut command)?;
        match command.spawn() {
            Ok(child) => return child.wait_with_output().map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    match text.trim() {
        "" => format!("fusermount3 failed ({})", output.status),
        text if text.contains("/dev/fuse: Permission denied") => {
            format!("{text}; `chmod 666 /dev/fuse` as root lets every user mount")
        }
        text => text.to_owned(),
    }
}

impl Mounted {
    /// What tells it from every other mount.
    pub(crate) fn place(&self) -> MountPlace {
        MountPlace {
            mountpoint: self.mountpoint.clone(),
            id: self.id,
            device: self.device,
        }
    }

    /// Detaches the mount from the tree, if it is still there and still this one. Whoever has files open in it keeps them
    /// until they are closed, and the session must be served until then; everybody else sees the bare directory. Without
    /// users, the connection ends and the session's loops return. A second call does nothing.
    pub(crate) fn unmount(&self) -> Result<(), UnmountError> {
        if self.done.swap(true, Ordering::AcqRel) || !self.is_in_place()? {
            return Ok(());
        }
        detach(&self.mountpoint)
    }

    /// Whether this mount is what a lookup of the mountpoint reaches.
    pub(crate) fn is_in_place(&self) -> io::Result<bool> {
        let table = MountTable::read()?;
        let same = table
            .top_at(&self.mountpoint)
            .is_some_and(|top| top.is_meshbox() && top.id == self.id && top.device == self.device);
        if !same || !device::is_over(&self.connection) {
            return Ok(same);
        }
        // Our connection is over: either it was aborted and the mount is a dead shell, or all ids have been used again.
        Ok(match probe(&self.mountpoint, PROBE_LIMIT) {
            Life::Dead => true,
            Life::Alive | Life::Hung => false,
        })
    }

    /// Leaves the mount as a kill -9 of the daemon would.
    #[cfg(test)]
    pub(super) fn abandon(self) {
        self.done.store(true, Ordering::Release);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "left mounted");
        }
    }
}

/// Takes the top mount off `at`, in use or not. The caller has made sure that it is ours.
pub(super) fn detach(at: &Path) -> Result<(), UnmountError> {
    unmount(at, true)
}

fn unmount(at: &Path, lazy: bool) -> Result<(), UnmountError> {
    let owned = || at.to_owned();
    if rustix::process::geteuid().is_root() {
        let mut flags = UnmountFlags::NOFOLLOW;
        flags.set(UnmountFlags::DETACH, lazy);
        return match rustix::mount::unmount(at, flags) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(UnmountError::Busy { at: owned() }),
            Err(e) => Err(UnmountError::Failed {
                at: owned(),
                said: e.to_string(),
            }),
        };
    }
    let output = fusermount(|command| {
        command
            .args(if lazy {
                &["-u", "-z", "--"][..]
            } else {
                &["-u", "--"]
            })
            .arg(at);
        Ok(())
    })?;
    let Some(output) = output else {
        let said = MountError::NoFusermount.to_string();
        return Err(UnmountError::Failed { at: owned(), said });
    };
    let said = said(&output);
    if output.status.success() {
        Ok(())
    } else if said.contains("busy") {
        Err(UnmountError::Busy { at: owned() })
    } else {
        Err(UnmountError::Failed { at: owned(), said })
    }
}

/// Unmounts a Meshbox mount by its path: `meshbox umount`. Its daemon notices, and ends. With `lazy` it is detached though in
/// use. Returns the resolved mountpoint.
pub(crate) fn umount(mountpoint: &Path, lazy: bool) -> Result<PathBuf, UnmountError> {
    let table = MountTable::read()?;
    let at = match resolve::resolve(mountpoint, &table) {
        Ok(resolved) => resolved.path,
        Err(ResolveError::InsideMeshbox(_)) => {
            return Err(UnmountError::NotMounted {
                at: mountpoint.to_owned(),
            });
        }
        Err(ResolveError::Io(e)) => return Err(e.into()),
    };
    match table.top_at(&at) {
        None => Err(UnmountError::NotMounted { at }),
        Some(top) if top.fs_type != FS_TYPE => {
            let fs_type = top.fs_type.clone();
            Err(UnmountError::NotOurs { at, fs_type })
        }
        Some(_) => unmount(&at, lazy).map(|()| at),
    }
}
