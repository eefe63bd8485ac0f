//! Whether a FUSE mount is alive.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

/// How long a Meshbox mount has to answer a statfs, which no cache answers for a daemon that is gone. A healthy one
/// answers at once.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Whether somebody serves a FUSE mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It answered, if only with "permission denied".
    Alive,
    /// The connection is over.
    Dead,
    /// No answer in time.
    Hung,
}

/// Asks a mount for its root. Asked in a thread of its own, which stays behind if there is never an answer.
pub(super) fn probe(at: &Path, limit: Duration) -> Life {
    // One answer from one asker.
    let (answer, answered) = mpsc::sync_channel(1);
    let path = at.to_owned();
    let asker = thread::Builder::new()
        .name("mount-probe".to_owned())
        .spawn(move || {
            // The main thread may have given up, then nobody wants to know.
            let _ = answer.send(rustix::fs::statfs(&path).map(drop));
        });
    if asker.is_err() {
        // No thread, no answer: leave the mount alone.
        return Life::Alive;
    }
    match answered.recv_timeout(limit) {
        Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Life::Dead,
        Ok(Ok(()) | Err(_)) => Life::Alive,
        Err(_) => Life::Hung,
    }
}
