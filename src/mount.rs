//! The mountpoint: everything between the command line and a served `/dev/fuse` descriptor.
//!
//! | part | what it owns |
//! |---|---|
//! | [`info`] | what `/proc/self/mountinfo` says: which mounts exist, which are ours |
//! | [`place`] | what a mountpoint is called, and what became of an earlier one |
//! | [`prepare`] | the checks before a mount, and recovery of a stale mount of our own |
//! | [`sys`] | mount(2) as root, fusermount3 as a plain user, and the way back |
//! | [`holders`] | who holds a mount in another mount namespace |
//! | `namespaces` | the other mount namespaces, with and without processes |
//! | [`options`] | `-o` strings, and the calling conventions of mount(8) helpers |
//! | [`background`] | start in the background, with a pipe that says when it serves; systemd's notify socket |
//! | [`announcer`] | the process that enters the mount on the daemon's behalf, for inotify |
//! | [`watchers`] | who watches the mount |
//! | [`signals`] | stop signals, delivered to a plain thread; the limit of open files |
//!
//! # Invariants
//! 1. A path that may be a FUSE mount is looked up in mountinfo before it is ever stat'ed: a stat of a hung mount does not
//!    return, not even for SIGKILL.
//! 2. Nothing is unmounted unless mountinfo says that it is a Meshbox mount, and, for our own, that it is this very one.
//! 3. `unsafe` appears only in `allocator.rs`, `background.rs`, `device.rs`, `namespaces.rs` and `signals.rs`.
//!
//! # Crash behaviour
//! Killed with a mount in place, the mount stays and every access to it fails with ENOTCONN until somebody unmounts it;
//! [`prepare::prepare`] does so at the next start.

pub(crate) mod allocator;
pub(crate) mod announcer;
pub(crate) mod background;
mod device;
pub(crate) mod holders;
pub(crate) mod info;
mod namespaces;
pub(crate) mod options;
pub(crate) mod place;
pub(crate) mod prepare;
pub(crate) mod probe;
mod resolve;
pub(crate) mod signals;
pub(crate) mod sys;
pub(crate) mod watchers;

#[cfg(test)]
mod trial;

/// The type findmnt and mountinfo show for our mounts.
pub(crate) const FS_TYPE: &str = "fuse.meshbox";
