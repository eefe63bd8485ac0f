//! (to be written; the entry points below are a contract with `daemon`, `fuse` and `control`)

use std::sync::Arc;
use std::time::Duration;

use crate::spool::Spool;

/// What the file system is told at start.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Quiet time after the last close of an ordinary writer before a file is sent.
    pub settle: Duration,
    /// Whether the daemon may give files to their writer's uid and gid (root only).
    pub chown_to_writer: bool,
    /// Whether every access is the daemon's own user (no allow_other).
    pub ignore_extra: Vec<String>,
    /// Patterns to take off the default ignore list.
    pub ignore_except: Vec<String>,
}

/// Makes the generated files under `.meshbox/`.
pub trait StatusFiles: Send + Sync {
    /// `status.json`.
    fn status(&self) -> Vec<u8>;
    /// `peers.json`.
    fn peers(&self) -> Vec<u8>;
    /// `metrics`, in Prometheus text format.
    fn metrics(&self) -> Vec<u8>;
}

/// The file system, on our own types.
#[derive(Debug)]
pub struct Fs {}

impl Fs {
    /// Builds the tree over the spool, feeds `ready` what recovery found, and starts the timer and blocking threads.
    pub fn new(
        spool: Arc<Spool>,
        config: FsConfig,
        status: Arc<dyn StatusFiles>,
    ) -> std::io::Result<Arc<Self>> {
        let _ = (spool, config, status);
        todo!()
    }

    /// Ends its threads; files that are only settling are left to their `closed` mark.
    pub fn stop(&self) {
        todo!()
    }

    /// `meshbox send`: sends a path below `outbox/` now, whatever `ready` says (incomplete, ignored).
    pub fn send_now(&self, path: &crate::bundle::RelPath) -> Result<(), String> {
        let _ = path;
        todo!()
    }
}
