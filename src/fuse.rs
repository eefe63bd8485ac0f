//! (to be written; the entry points below are a contract with `daemon`)

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::fs::Fs;

/// A served mount.
#[derive(Debug)]
pub struct Serving {}

impl Serving {
    /// Blocks until the mount is gone (unmounted from outside, or by us) and every loop has ended.
    pub fn join(self) -> io::Result<()> {
        todo!()
    }
}

/// Serves `fs` on an already mounted `/dev/fuse` descriptor with `threads` loops, in the background. `all_users` must
/// be true exactly when the mount has `allow_other`.
pub fn serve(fs: Arc<Fs>, fd: OwnedFd, threads: usize, all_users: bool) -> io::Result<Serving> {
    let _ = (fs, fd, threads, all_users);
    todo!()
}
