//! The reader of a session: cuts what arrives on the control stream into frames, verifies offers, and counts.
//!
//! A frame is read only when there is room in the peer's purse for it and for what is made of it; the room goes with it
//! until it is dealt with. While the answers to what was heard are not sent, nothing further is read. So a peer holds no
//! more than its part of the budget, and no thread waits for it.
//!
//! noq 1.4.0 closes a connection when more than 2,048 pieces of one stream are unread, and 2,048 small messages are
//! soon sent. So while a frame waits, because there is no room or because the peer is slowed ([`crate::mesh::limits`]), the
//! stream is drained all the same, up to [`AHEAD_MAX`]. Beyond that flow control holds the peer back; a member that sends
//! on in small pieces then loses its own connection.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::RecvStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::budget::Held;
use crate::mesh::hub::Hub;
use crate::mesh::intake;
use crate::mesh::limits::Kind;
use crate::mesh::member::MemberError;
use crate::mesh::out::Out;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Decoder, FRAME_MAX, Frame, Head, MemberFrame, Offer, WireError};

/// Bytes read ahead of a frame that waits.
const AHEAD_MAX: usize = 256 * 1024;

/// Taken from the stream at once.
const CHUNK: usize = 64 * 1024;

/// A longer frame of which nothing more comes for [`SILENCE`] is not waited for, since others may want the room.
const SHORT: usize = 64 * 1024;
const SILENCE: Duration = Duration::from_secs(20);

/// Offers with longer manifests are read one at a time, whoever makes them: for a moment they take several times as much.
const HEAVY: usize = 256 * 1024;

/// What the reader hands to the session.
pub(super) enum Heard {
    Frame(Frame),
    /// With its age in milliseconds.
    Offer(VerifiedManifest, Vec<Option<Bytes>>, u64),
    BadOffer(BundleId, String),
    /// There is no room for it now.
    Later(BundleId),
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
            let room = !self.over && self.decoder.buffered() < AHEAD_MAX;
            tokio::select! {
                biased;
                value = &mut done => return value,
                _ = self.more(), if room => {}
            }
        }
    }

    /// What comes next; `None` at the end of the stream.
    async fn head(&mut self) -> Result<Option<Head>, WireError> {
        loop {
            if let Some(head) = self.decoder.head()? {
                return Ok(Some(head));
            }
            if !self.more().await {
                return Ok(None);
            }
        }
    }

    /// Reads that frame; `None` when it is of a kind that we do not know.
    async fn frame(&mut self, head: Head) -> Result<Option<Frame>, MemberError> {
        while !self.decoder.has(head) {
            let going_on = if head.len > SHORT {
                let more = timeout(SILENCE, self.more()).await;
                more.map_err(|_| MemberError::Stalled)?
            } else {
                self.more().await
            };
            if !going_on {
                return Err(MemberError::Lost("the stream ended".into()));
            }
        }
        Ok(self.decoder.pop(head)?)
    }
}

/// Reads frames until the stream ends or breaks a rule; then says which.
pub(super) async fn read(
    (hub, peer): (Arc<Hub>, Arc<Peer>),
    recv: RecvStream,
    mut decoder: Decoder,
    out: Out,
    heard: mpsc::Sender<(Heard, Held)>,
) -> Option<MemberError> {
    decoder.set_limit(FRAME_MAX);
    let purse = peer.purse(&hub.budget);
    let mut stream = Stream {
        recv,
        decoder,
        over: false,
    };
    loop {
        let head = match stream.head().await {
            Ok(head) => head?,
            Err(error) => return Some(error.into()),
        };
        for kind in [Some(Kind::Frame), head.counts_as()].into_iter().flatten() {
            let wait = peer.take(kind, Instant::now());
            if !wait.is_zero() {
                stream.until(sleep(wait)).await;
            }
        }
        stream.until(out.room()).await;
        let mut held = stream.until(purse.take(head.weight())).await;
        let frame = match stream.frame(head).await {
            Ok(Some(frame)) => frame,
            Ok(None) => continue,
            Err(MemberError::Lost(_)) => return None,
            Err(error) => return Some(error),
        };
        let next = match frame {
            Frame::Offer(offer) => {
                let _one = if head.len > HEAVY {
                    Some(stream.until(hub.heavy.lock()).await)
                } else {
                    None
                };
                weigh(*offer, &mut held)
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
        if stream.until(heard.send((next, held))).await.is_err() {
            return None;
        }
    }
}

/// Verifies an offer, and holds room for what it is in memory.
fn weigh(offer: Offer, held: &mut Held) -> Heard {
    let id = offer.signed.id();
    let manifest = match offer.signed.verify() {
        Ok(manifest) => manifest,
        Err(error) => return Heard::BadOffer(id, error.to_string()),
    };
    if held.resize(intake::weight(&manifest, &offer.inline)) {
        Heard::Offer(manifest, offer.inline, offer.age)
    } else {
        Heard::Later(id)
    }
}
