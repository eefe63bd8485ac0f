//! Reaching a place without following a link.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::FsError;
use super::node::Place;
use crate::spool::beneath::open_beneath;

/// Opens what is at a place below `root`, without following a symbolic link anywhere on the way.
pub(crate) fn beneath(root: impl AsFd, place: &Place, flags: OFlags) -> Result<OwnedFd, FsError> {
    open_beneath(root, &place.path, flags).map_err(moved)
}

/// The error of a look beneath a root.
pub(crate) fn moved(error: Errno) -> FsError {
    match error {
        // Found, and moved to the other tree before it was open: who asked is to look again.
        Errno::XDEV | Errno::AGAIN => FsError::Stale,
        other => FsError::Os(other),
    }
}
