//! The reader of a session: cuts what arrives on the control stream into frames, verifies offers, and counts.
//!
//! noq 1.4.0 closes a connection when more than 2,048 pieces of one stream are unread, and 2,048 small messages are
//! soon sent. So the stream is drained whatever happens, into one buffer: also while a frame waits because too much is
//! being dealt with, or because the peer is slowed ([`crate::mesh::limits`]). Only at [`UNREAD_MAX`] it is not, and
//! flow control holds the peer back; a member that sends on in small pieces then loses its own connection.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use iroh::endpoint::RecvStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;

use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::limits::Kind;
use crate::mesh::member::MemberError;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Decoder, FRAME_MAX, Frame, MemberFrame};

/// Bytes of frames read and not yet dealt with.
pub(super) const INBOUND_BUDGET: usize = 32 * 1024 * 1024;

/// What a frame weighs at least, so that many small ones count too.
const FRAME_WEIGHT_MIN: usize = 512;

/// Bytes read ahead of a frame that waits. A frame of the greatest length fits besides.
const UNREAD_MAX: usize = FRAME_MAX + 8 * 1024 * 1024;

/// Taken from the stream at once.
const CHUNK: usize = 256 * 1024;

/// What the reader hands to the session.
pub(super) enum Heard {
    Frame(Frame),
    Offer(Box<VerifiedManifest>, Vec<Option<Bytes>>),
    BadOffer(BundleId, String),
}

/// The stream and what was read of it.
struct Stream {
    recv: RecvStream,
    decoder: Decoder,
    over: bool,
}

impl Stream {
    /// Reads what there is; `false` when nothing more will come.
    async fn more(&mut self) -> bool {
        match self.recv.read_chunk(CHUNK).await {
            Ok(Some(bytes)) => self.decoder.push(&bytes),
            Ok(None) | Err(_) => self.over = true,
        }
        !self.over
    }

    /// Waits for `done`, and goes on reading meanwhile.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            let room = !self.over && self.decoder.buffered() < UNREAD_MAX;
            tokio::select! {
                biased;
                value = &mut done => return value,
                _ = self.more(), if room => {}
            }
        }
    }
}

/// Reads frames until the stream ends or breaks a rule; then says which.
pub(super) async fn read(
    peer: Arc<Peer>,
    recv: RecvStream,
    mut decoder: Decoder,
    heard: mpsc::Sender<(Heard, OwnedSemaphorePermit)>,
) -> Option<MemberError> {
    decoder.set_limit(FRAME_MAX);
    let budget = Arc::new(Semaphore::new(INBOUND_BUDGET));
    let mut stream = Stream {
        recv,
        decoder,
        over: false,
    };
    loop {
        let (frame, len) = match stream.decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) if stream.more().await => continue,
            Ok(None) => return None,
            Err(error) => return Some(error.into()),
        };
        for kind in [Some(Kind::Frame), kind_of(&frame)].into_iter().flatten() {
            let wait = peer.take(kind, Instant::now());
            if !wait.is_zero() {
                stream.until(sleep(wait)).await;
            }
        }
        let weight = len.max(FRAME_WEIGHT_MIN) as u32;
        let permit = budget.clone().acquire_many_owned(weight);
        let permit = stream.until(permit).await.ok()?;
        let next = match frame {
            Frame::Offer(offer) => {
                let id = offer.signed.id();
                match offer.signed.verify() {
                    Ok(manifest) => Heard::Offer(Box::new(manifest), offer.inline),
                    Err(error) => Heard::BadOffer(id, error.to_string()),
                }
            }
            Frame::Proof { .. } | Frame::Hello(_) | Frame::Range(_) => {
                return Some(MemberError::Unexpected("control frame"));
            }
            frame @ (Frame::Pending(_)
            | Frame::Verdicts(_)
            | Frame::Receipts(_)
            | Frame::Members(_)
            | Frame::Owed(_)
            | Frame::Withdrawn(_)
            | Frame::Cancels(_)
            | Frame::CancelsSeen(_)
            | Frame::Have(_)
            | Frame::Gone(_)
            | Frame::Closed(_)
            | Frame::Open(_)
            | Frame::Unknown(_)
            | Frame::Twin(_)
            | Frame::Member(MemberFrame::Statements(_) | MemberFrame::Roll(_))) => {
                Heard::Frame(frame)
            }
            Frame::Member(_) => return Some(MemberError::Unexpected("control frame")),
        };
        if stream.until(heard.send((next, permit))).await.is_err() {
            return None;
        }
    }
}

/// What a frame counts as, besides as a frame.
fn kind_of(frame: &Frame) -> Option<Kind> {
    match frame {
        Frame::Offer(_) => Some(Kind::Offer),
        Frame::Members(_) | Frame::Member(_) => Some(Kind::Announcement),
        Frame::Proof { .. }
        | Frame::Hello(_)
        | Frame::Range(_)
        | Frame::Pending(_)
        | Frame::Verdicts(_)
        | Frame::Receipts(_)
        | Frame::Owed(_)
        | Frame::Withdrawn(_)
        | Frame::Cancels(_)
        | Frame::CancelsSeen(_)
        | Frame::Have(_)
        | Frame::Gone(_)
        | Frame::Closed(_)
        | Frame::Open(_)
        | Frame::Unknown(_)
        | Frame::Twin(_) => None,
    }
}
