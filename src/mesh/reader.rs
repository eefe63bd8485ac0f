//! The reader of a session: cuts what arrives on the control stream into frames, verifies offers, and counts.
//!
//! A frame is read only when there is room in the peer's purse for it and for what is made of it; the room goes with it
//! until it is dealt with. While the answers to what was heard are not sent, nothing further is read. So a peer holds no
//! more than its part of the budget, and no thread waits for it.
//!
//! The room is taken for what a frame announces, since frames of which each has a part and waits for the rest would wait for
//! ever. So that nobody keeps it by announcing: a long frame has to come at [`FLOOR`] at least, else the session ends; and
//! while others want more than there is, an offer that does not come at [`PACE`] is passed over. Its bytes are read and
//! not kept, the room goes back, and the answer is "later": who has a slow link keeps its session.
//!
//! What an offer weighs is known before it is decoded. One of the longest manifests waits, aside from the reader, for the
//! room that there is for one of them ([`crate::mesh::budget`]).
//!
//! noq 1.4.0 closes a connection when more than 2,048 pieces of one stream are unread, and 2,048 small messages are
//! soon sent. So while a frame waits, because there is no room or because the peer is slowed ([`crate::mesh::limits`]), the
//! stream is drained all the same, up to [`AHEAD_MAX`]. Beyond that flow control holds the peer back; a member that sends
//! on in small pieces then loses its own connection.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iroh::endpoint::RecvStream;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::budget::{Budget, Held, TAKE_MAX};
use crate::mesh::hub::{HEAVY, Hub};
use crate::mesh::intake;
use crate::mesh::limits::Kind;
use crate::mesh::member::MemberError;
use crate::mesh::out::Out;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Decoder, FRAME_MAX, Frame, Head, MemberFrame, Offer, Passed, WireError};

/// Bytes read ahead of a frame that waits.
const AHEAD_MAX: usize = 256 * 1024;

/// Taken from the stream at once.
const CHUNK: usize = 64 * 1024;

/// A longer frame of which nothing more comes for [`SILENCE`] is not waited for, since others may want the room.
const SHORT: usize = 64 * 1024;
const SILENCE: Duration = Duration::from_secs(20);

/// What a longer frame than [`SHORT`] has to come at, in bytes a second, after [`SILENCE`]: less than any link has that
/// carries a session.
const FLOOR: f64 = 4.0 * 1024.0;

/// What an offer has to come at while others want room, after [`GRACE`].
const PACE: f64 = 256.0 * 1024.0;
const GRACE: Duration = Duration::from_secs(5);

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

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

    /// Reads that frame, or over it when it is slow and others want its room.
    async fn frame(&mut self, head: Head, budget: &Budget) -> Result<Came, MemberError> {
        let mut pace = Pace::new(head);
        while !self.decoder.has(head) {
            self.some(&mut pace).await?;
            if pace.gives_way(self.decoder.buffered()) && budget.is_wanted() {
                return Ok(Came::Slowly(pace));
            }
        }
        let frame = self.decoder.pop(head)?;
        Ok(frame.map_or(Came::Unknown, Came::Frame))
    }

    /// Reads over an offer.
    async fn pass_over(&mut self, mut pace: Pace) -> Result<BundleId, MemberError> {
        let mut passed = Passed::new(pace.head);
        loop {
            pace.passed += self.decoder.buffered();
            if let Some(id) = self.decoder.pass_over(&mut passed) {
                return Ok(id);
            }
            self.some(&mut pace).await?;
        }
    }

    /// Reads what comes next of a frame; an error when it comes too slowly.
    async fn some(&mut self, pace: &mut Pace) -> Result<(), MemberError> {
        let going_on = if pace.head.len > SHORT {
            tokio::select! {
                more = self.more() => {
                    pace.heard = Instant::now();
                    more
                }
                () = sleep(LOOK) => true,
            }
        } else {
            self.more().await
        };
        if !going_on {
            return Err(MemberError::Lost("the stream ended".into()));
        }
        if pace.is_stalled(self.decoder.buffered()) {
            return Err(MemberError::Stalled);
        }
        Ok(())
    }
}

/// What there is instead of a frame.
enum Came {
    Frame(Frame),
    /// Of a kind that we do not know.
    Unknown,
    /// An offer that is to be passed over.
    Slowly(Pace),
}

/// How quickly a frame comes.
struct Pace {
    head: Head,
    begun: Instant,
    heard: Instant,
    /// Bytes of it that were read over.
    passed: usize,
}

impl Pace {
    fn new(head: Head) -> Self {
        let now = Instant::now();
        Self {
            head,
            begun: now,
            heard: now,
            passed: 0,
        }
    }

    /// Whether so many bytes are too few by now, where it has to come at `rate`.
    fn is_below(&self, rate: f64, after: Duration, buffered: usize) -> bool {
        let age = self.begun.elapsed();
        let came = (self.passed + buffered) as f64;
        self.head.len > SHORT && age > after && came < rate * age.as_secs_f64()
    }

    fn is_stalled(&self, buffered: usize) -> bool {
        let silent = self.head.len > SHORT && self.heard.elapsed() > SILENCE;
        silent || self.is_below(FLOOR, SILENCE, buffered)
    }

    fn gives_way(&self, buffered: usize) -> bool {
        self.head.is_offer() && self.is_below(PACE, GRACE, buffered)
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
            let wait = peer.take(kind, std::time::Instant::now());
            if !wait.is_zero() {
                stream.until(sleep(wait)).await;
            }
        }
        stream.until(out.room()).await;
        let mut held = stream.until(purse.take(head.weight())).await;
        let frame = match stream.frame(head, &hub.budget).await {
            Ok(Came::Frame(frame)) => frame,
            Ok(Came::Unknown) => continue,
            Ok(Came::Slowly(pace)) => {
                held.resize(0);
                match stream.pass_over(pace).await {
                    Ok(id) => {
                        tracing::debug!("an offer of {} came too slowly", peer.label());
                        let later = (Heard::Later(id), held);
                        if stream.until(heard.send(later)).await.is_err() {
                            return None;
                        }
                        continue;
                    }
                    Err(MemberError::Lost(_)) => return None,
                    Err(error) => return Some(error),
                }
            }
            Err(MemberError::Lost(_)) => return None,
            Err(error) => return Some(error),
        };
        let next = match frame {
            Frame::Offer(offer) if head.len > HEAVY => {
                match heavy(&mut stream, &hub, &heard, *offer, held).await {
                    Ok(Some(next)) => next,
                    Ok(None) => continue,
                    Err(_) => return None,
                }
            }
            Frame::Offer(offer) => (weigh(*offer, &mut held), held),
            frame => match of_session(frame) {
                Ok(next) => (next, held),
                Err(error) => return Some(error),
            },
        };
        if stream.until(heard.send(next)).await.is_err() {
            return None;
        }
    }
}

/// An offer that takes long to look through, while others are to be heard. `None`: it is one of the longest, and is looked
/// through beside the reader, so that what else the peer says does not wait for that. It fails if a task did.
async fn heavy(
    stream: &mut Stream,
    hub: &Arc<Hub>,
    heard: &mpsc::Sender<(Heard, Held)>,
    offer: Offer,
    mut held: Held,
) -> Result<Option<(Heard, Held)>, JoinError> {
    let look = spawn_blocking(move || (need(&offer), offer));
    let (need, offer) = stream.until(look).await?;
    if need > TAKE_MAX {
        tokio::spawn(weigh_long(hub.clone(), offer, held, heard.downgrade()));
        return Ok(None);
    }
    if !held.resize(need) {
        return Ok(Some((Heard::Later(offer.signed.id()), held)));
    }
    let _one = stream.until(hub.heavy.lock()).await;
    let weighed = spawn_blocking(move || (weigh(offer, &mut held), held));
    stream.until(weighed).await.map(Some)
}

/// What is heard of a frame that is no offer, if it belongs into a session.
fn of_session(frame: Frame) -> Result<Heard, MemberError> {
    match &frame {
        Frame::Pending(_)
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
        | Frame::Member(MemberFrame::Statements(_) | MemberFrame::Roll(_)) => {
            Ok(Heard::Frame(frame))
        }
        Frame::Offer(_)
        | Frame::Proof { .. }
        | Frame::Hello(_)
        | Frame::Range(_)
        | Frame::Member(_) => Err(MemberError::Unexpected("control frame")),
    }
}

/// What an offer takes while it is verified, and after that.
fn need(offer: &Offer) -> usize {
    offer.signed.bytes.len() + offer.signed.memory_verified() + intake::of_inline(&offer.inline)
}

/// Verifies an offer, and holds room for what it is in memory.
fn weigh(offer: Offer, held: &mut Held) -> Heard {
    let id = offer.signed.id();
    let manifest = match offer.signed.verify() {
        Ok(manifest) => manifest,
        Err(error) => return Heard::BadOffer(id, error.to_string()),
    };
    if held.is_long() || held.resize(intake::weight(&manifest, &offer.inline)) {
        Heard::Offer(manifest, offer.inline, offer.age)
    } else {
        Heard::Later(id)
    }
}

/// The same for one of the longest manifests, when there is room for it. What was held for the frame is held meanwhile.
async fn weigh_long(
    hub: Arc<Hub>,
    offer: Offer,
    mut held: Held,
    heard: mpsc::WeakSender<(Heard, Held)>,
) {
    let next = if held.lengthen().await {
        let _one = hub.heavy.lock().await;
        let weighed = spawn_blocking(move || (weigh(offer, &mut held), held));
        // A panic has said so, and there is nothing to answer.
        let Ok(next) = weighed.await else { return };
        next
    } else {
        (Heard::Later(offer.signed.id()), held)
    };
    if let Some(heard) = heard.upgrade() {
        // Fails when the session is over.
        heard.send(next).await.ok();
    }
}
