//! The disk of one fetch: pieces that came are checked and written in a lane, in the order in which they came. A piece that
//! is longer than a leaf is written leaf by leaf while it comes, so that no more of it is in memory than two.
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
use crate::digest::LEAF;
use crate::mesh::lane::Lane;
use crate::peer::PeerId;
use crate::spool::{Incoming, IntakeError};

/// A piece for the disk.
pub(super) struct Landed {
    pub(super) number: usize,
    pub(super) peer: PeerId,
    pub(super) piece: Piece,
    pub(super) came: Came,
    pub(super) tally: Tally,
}

/// All bytes of a piece, or the last leaf of one of which the others are written.
pub(super) struct Came {
    pub(super) bytes: Bytes,
    /// Where they are in the file.
    pub(super) at: u64,
    /// Who brought them.
    pub(super) by: u64,
}

/// What the disk says of it; nothing if the job failed.
pub(super) type Written = (usize, PeerId, Option<Result<(), IntakeError>>);

/// The bundle on the disk, and the lane of what is to be written to it. Copies share it.
#[derive(Clone)]
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

    /// Checks and writes one piece, or the last leaf of it, after all earlier ones. The plan bounds how many wait.
    pub(super) fn put(&self, landed: Landed) {
        let this = self.clone();
        self.lane.push(move || {
            if this.failed.load(Ordering::Relaxed) {
                return;
            }
            let result = this.write(landed.piece, &landed.came);
            let result = match result {
                Some(Ok(true)) => {
                    landed.tally.keep();
                    Some(Ok(()))
                }
                Some(Err(error @ IntakeError::WrongBytes { .. })) => Some(Err(error)),
                Some(Err(error)) => {
                    this.failed.store(true, Ordering::Relaxed);
                    Some(Err(error))
                }
                // What came of a piece is all that came.
                Some(Ok(false)) | None => {
                    this.failed.store(true, Ordering::Relaxed);
                    None
                }
            };
            // Fails only when nobody fetches any more.
            this.written.send((landed.number, landed.peer, result)).ok();
        });
    }

    /// Writes a leaf that is not the last of its piece. `false` comes when it is of no use to read on.
    pub(super) fn put_leaf(
        &self,
        (number, peer): (usize, PeerId),
        piece: Piece,
        came: Came,
    ) -> oneshot::Receiver<bool> {
        let (say, said) = oneshot::channel();
        let this = self.clone();
        self.lane.push(move || {
            if this.failed.load(Ordering::Relaxed) {
                return;
            }
            // Whether it is taken shows with the next one.
            let goes_on = match this.write(piece, &came) {
                Some(Ok(_)) => true,
                Some(Err(IntakeError::WrongBytes { .. })) => false,
                Some(Err(error)) => {
                    this.failed.store(true, Ordering::Relaxed);
                    this.written.send((number, peer, Some(Err(error)))).ok();
                    false
                }
                None => {
                    this.failed.store(true, Ordering::Relaxed);
                    this.written.send((number, peer, None)).ok();
                    false
                }
            };
            // Fails only when nobody reads any more.
            say.send(goes_on).ok();
        });
        said
    }

    /// `None`: the job failed. Else whether the piece is whole now.
    fn write(&self, piece: Piece, came: &Came) -> Option<Result<bool, IntakeError>> {
        let accept = || {
            let mut arriving = self.arriving.lock();
            let arriving = arriving.as_mut()?;
            let (entry, offset) = (piece.entry as usize, piece.offset);
            Some(if piece.len <= LEAF {
                let accepted = arriving.accept_chunk(entry, offset, &came.bytes);
                accepted.map(|()| true)
            } else {
                arriving.accept_leaf((entry, offset), came.at, &came.bytes, came.by)
            })
        };
        catch_unwind(AssertUnwindSafe(accept)).ok().flatten()
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
