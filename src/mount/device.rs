//! The `/dev/fuse` descriptor: opening it, and asking whether its connection is over.
#![allow(unsafe_code)] // poll(2); rustix has it only behind a feature that nothing else here needs

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Opens a new FUSE connection, not yet mounted. The descriptor is closed on exec and never 0, 1 or 2.
pub(super) fn open() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/fuse")?;
    above_stdio(file.into())
}

/// Moves a descriptor out of the range of stdin, stdout and stderr, where a library would take it for one of them.
pub(super) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(
        &fd,
        libc::STDERR_FILENO + 1,
    )?)
}

/// Whether the connection has ended: unmounted, or aborted. A connection that was never mounted counts as ended.
pub(super) fn is_over(fd: &impl AsFd) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_fd().as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd on our stack, and the descriptor in it is borrowed for the whole call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0
}
