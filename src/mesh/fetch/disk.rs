//! The disk of one fetch: pieces that came are checked and written in a lane, in the order in which they came.
//!
//! A lane has no thread while there is nothing to write, so that a fetch that waits for its source holds none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::plan::Piece;
use super::tally::Tally;
use crate::mesh::lane::Lane;
use crate::peer::PeerId;
use crate::spool::{Incoming, IntakeError};

/// A piece for the disk.
pub(super) struct Landed {
    pub(super) number: usize,
    pub(super) peer: PeerId,
    pub(super) piece: Piece,
    pub(super) bytes: Bytes,
    pub(super) tally: Tally,
}

/// What the disk says of it; nothing if the job failed.
pub(super) type Written = (usize, PeerId, Option<Result<(), IntakeError>>);

/// The bundle on the disk, and the lane of what is to be written to it.
pub(super) struct Disk {
    lane: Lane,
    arriving: Arc<Mutex<Option<Box<Incoming>>>>,
    written: mpsc::UnboundedSender<Written>,
    /// Nothing is written any more.
    failed: Arc<AtomicBool>,
}

impl Disk {
    pub(super) fn new(arriving: Box<Incoming>, written: mpsc::UnboundedSender<Written>) -> Self {
        Self {
            lane: Lane::default(),
            arriving: Arc::new(Mutex::new(Some(arriving))),
            written,
            failed: Arc::default(),
        }
    }

    /// Checks and writes one piece, after all earlier ones. The plan bounds how many wait.
    pub(super) fn put(&self, landed: Landed) {
        let (arriving, written) = (self.arriving.clone(), self.written.clone());
        let failed = self.failed.clone();
        self.lane.push(move || {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let (entry, offset) = (landed.piece.entry, landed.piece.offset);
            let accept = || {
                let mut arriving = arriving.lock();
                let arriving = arriving.as_mut()?;
                Some(arriving.accept_chunk(entry, offset, &landed.bytes))
            };
            let result = catch_unwind(AssertUnwindSafe(accept)).ok().flatten();
            match &result {
                Some(Ok(())) => landed.tally.keep(),
                Some(Err(IntakeError::WrongBytes { .. })) => {}
                Some(Err(_)) | None => {
                    failed.store(true, Ordering::Relaxed);
                }
            }
            // Fails only when nobody fetches any more.
            written.send((landed.number, landed.peer, result)).ok();
        });
    }

    /// Gives the bundle back when all is written. `None` when a job failed.
    pub(super) async fn end(self) -> Option<Box<Incoming>> {
        let (give, given) = oneshot::channel();
        let arriving = self.arriving.clone();
        self.lane.push(move || {
            let arriving = arriving.lock().take();
            // Fails only when the runtime ends.
            give.send(arriving).ok();
        });
        given.await.ok()?
    }
}
