//! Fetching: what an offer did not carry, by range requests to whoever offered the bundle.
//!
//! A bundle is fetched by one task, from one holder at a time. Requests are pipelined but read strictly in order, so
//! that the spool's running SHA-256 sees the bytes in order; the next range is already in flight when one ends.
//! A holder that sends wrong bytes is not used again for that bundle; when no other is known, the bundle is deferred
//! with the reason, and its origin asked whether it still owes it. When the connection is lost, what arrived stays
//! parked.
//!
//! # Limits
//! Per peer and in all, a few large fetches and more small ones run at once ([`Slots`]), so that a small bundle never
//! waits behind a large one, and urgent ones have places of their own. Memory per fetch: [`AHEAD`] chunks, and what the stream windows hold.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, RecvStream};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::bundle::{BundleId, Priority, VerifiedManifest};
use crate::delivery::{Verdict, is_urgent};
use crate::digest::chunk_size;
use crate::mesh::member::CloseCode;
use crate::mesh::roster::Peer;
use crate::mesh::session::Input;
use crate::mesh::store::Arriving;
use crate::mesh::wire::{Frame, RangeRequest, RangeStatus};
use crate::mesh::{Hub, offer};
use crate::peer::PeerId;
use crate::spool::IntakeError;

/// Bytes of one request, rounded to whole chunks.
const RANGE: u64 = 8 * 1024 * 1024;

/// Requests in flight for one bundle.
const PIPELINE: usize = 4;

/// Chunks between network and disk for one bundle.
const AHEAD: usize = 4;

/// A bundle up to this size counts as small.
const SMALL: u64 = 4 * 1024 * 1024;

/// Offers of one peer waiting to be fetched, and bytes of their manifests.
const QUEUED_MAX: (usize, usize) = (1024, 16 * 1024 * 1024);

/// Holders remembered for a bundle being fetched.
const HOLDERS_MAX: usize = 16;

/// How long a holder may send nothing.
const STALL: Duration = Duration::from_secs(20);

/// How long to wait for the bulk connection.
const BULK_WAIT: Duration = Duration::from_secs(10);

/// Lost connections in a row before a bundle is deferred.
const LOSSES_MAX: u32 = 3;

/// What may run at once.
pub(crate) struct Slots {
    small: Semaphore,
    large: Semaphore,
    urgent: Semaphore,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
}

impl Slots {
    /// For one peer. With [`PIPELINE`] below the limit of streams.
    pub(crate) fn of_peer() -> Self {
        Self::new(8, 3, 2)
    }

    /// For all peers together.
    fn of_all() -> Self {
        Self::new(24, 8, 4)
    }

    fn new(small: usize, large: usize, urgent: usize) -> Self {
        let [small, large, urgent] = [small, large, urgent].map(Semaphore::new);
        Self {
            small,
            large,
            urgent,
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
        }
    }

    fn class(&self, size: u64, priority: Priority) -> &Semaphore {
        if is_urgent(priority) {
            &self.urgent
        } else if size <= SMALL {
            &self.small
        } else {
            &self.large
        }
    }
}

/// The fetches that run or wait.
pub(crate) struct Fetches {
    running: Mutex<HashMap<BundleId, Vec<PeerId>>>,
    slots: Slots,
}

impl Default for Fetches {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            slots: Slots::of_all(),
        }
    }
}

impl Fetches {
    /// Whether the bundle is being fetched, or waits for it.
    pub(crate) fn is_running(&self, bundle: BundleId) -> bool {
        self.running.lock().contains_key(&bundle)
    }

    fn holders(&self, bundle: BundleId) -> Vec<PeerId> {
        self.running
            .lock()
            .get(&bundle)
            .cloned()
            .unwrap_or_default()
    }

    /// Whether this offer begins a fetch; else `peer` is noted as another holder.
    fn begin(&self, bundle: BundleId, peer: PeerId) -> bool {
        let mut running = self.running.lock();
        match running.get_mut(&bundle) {
            Some(holders) => {
                if !holders.contains(&peer) && holders.len() < HOLDERS_MAX {
                    holders.push(peer);
                }
                false
            }
            None => {
                running.insert(bundle, vec![peer]);
                true
            }
        }
    }
}

/// Starts fetching what is missing of an offer, and tells the peer so. Call within the runtime.
pub(crate) fn start(
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    manifest: VerifiedManifest,
    inline: Vec<Option<Bytes>>,
) {
    let bundle = manifest.id();
    let weight =
        manifest.signed().bytes.len() + inline.iter().flatten().map(Bytes::len).sum::<usize>();
    let full = peer.slots.queued.load(Ordering::Relaxed) >= QUEUED_MAX.0
        || peer.slots.queued_bytes.load(Ordering::Relaxed) > QUEUED_MAX.1;
    let first = !full && hub.fetches.begin(bundle, peer.id);
    if first {
        peer.slots.queued.fetch_add(1, Ordering::Relaxed);
        peer.slots.queued_bytes.fetch_add(weight, Ordering::Relaxed);
    }
    tokio::spawn(async move {
        let answer = if full {
            Verdict::Deferred("too many offers at once".into())
        } else {
            Verdict::Working
        };
        tell(&peer, bundle, answer).await;
        if !first {
            return;
        }
        let verdict = fetch(&hub, &peer, &manifest, inline).await;
        peer.slots.queued.fetch_sub(1, Ordering::Relaxed);
        peer.slots.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
        let holders = hub
            .fetches
            .running
            .lock()
            .remove(&bundle)
            .unwrap_or_default();
        for holder in holders {
            if let Some(holder) = hub.roster.get(holder) {
                tell(&holder, bundle, verdict.clone()).await;
            }
        }
    });
}

async fn tell(peer: &Peer, bundle: BundleId, verdict: Verdict) {
    if let Some(session) = peer.session() {
        drop(session.inputs.send(Input::Verdict(bundle, verdict)).await);
    }
}

/// How an attempt with one holder ended.
enum Outcome {
    Complete,
    /// Our disk, or bytes that do not fit.
    Intake(IntakeError),
    /// The holder does not serve it.
    Unserved(RangeStatus),
    Lost(String),
}

async fn fetch(
    hub: &Arc<Hub>,
    peer: &Arc<Peer>,
    manifest: &VerifiedManifest,
    inline: Vec<Option<Bytes>>,
) -> Verdict {
    let size = manifest
        .manifest()
        .entries
        .iter()
        .map(|e| e.size())
        .fold(0, u64::saturating_add);
    let priority = manifest.manifest().priority;
    let (Ok(_mine), Ok(_all)) = (
        peer.slots.class(size, priority).acquire().await,
        hub.fetches.slots.class(size, priority).acquire().await,
    ) else {
        return Verdict::Deferred("stopping".into());
    };
    let opened = blocking({
        let (hub, peer, manifest) = (hub.clone(), peer.clone(), manifest.clone());
        move || {
            let mut arriving = offer::open(&hub, &peer, &manifest)?;
            match offer::feed_inline(&hub, &manifest, arriving.as_mut(), &inline) {
                Ok(()) => Ok(arriving),
                Err(error) => Err(offer::wrong_or_disk(
                    &hub, &peer, &manifest, arriving, &error,
                )),
            }
        }
    });
    let mut arriving = match opened.await {
        Some(Ok(arriving)) => arriving,
        Some(Err(verdict)) => return verdict,
        None => return Verdict::Deferred("the receiver failed".into()),
    };
    let mut unusable = HashSet::new();
    let mut losses = 0;
    let mut why = "no holder is connected".to_owned();
    loop {
        let holders = hub.fetches.holders(manifest.id());
        let usable = |id: &PeerId| {
            !unusable.contains(id) && hub.roster.get(*id).is_some_and(|p| p.session().is_some())
        };
        let source = holders
            .into_iter()
            .find(usable)
            .and_then(|id| hub.roster.get(id));
        let Some(source) = source.filter(|_| losses < LOSSES_MAX && !hub.is_stopping()) else {
            let (bundle, origin) = (manifest.id(), hub.roster.get(manifest.manifest().origin));
            let (hub, manifest) = (hub.clone(), manifest.clone());
            let parked = blocking(move || offer::defer(&hub, &manifest, arriving, why)).await;
            // The origin may have replaced it meanwhile: then nobody waits for it any more.
            if let Some(session) = origin.and_then(|origin| origin.session()) {
                session.ring(Input::Owed(vec![bundle]));
            }
            return parked.unwrap_or(Verdict::Deferred("the receiver failed".into()));
        };
        let Some((back, outcome)) = attempt(hub, &source, manifest, arriving).await else {
            return Verdict::Deferred("the receiver failed".into());
        };
        arriving = back;
        match outcome {
            Outcome::Complete => {
                let (hub, manifest) = (hub.clone(), manifest.clone());
                let done = blocking(move || offer::publish(&hub, &source, &manifest, arriving));
                return done
                    .await
                    .unwrap_or(Verdict::Deferred("the receiver failed".into()));
            }
            Outcome::Intake(error @ IntakeError::WrongBytes { .. }) => {
                why = format!("{} sent wrong bytes: {error}", source.label());
                tracing::warn!("{why}");
                hub.blames.add(manifest.id(), source.id, &why);
                unusable.insert(source.id);
            }
            Outcome::Intake(error @ IntakeError::Disk(_)) => {
                let (hub, manifest) = (hub.clone(), manifest.clone());
                let parked = blocking(move || {
                    offer::wrong_or_disk(&hub, &source, &manifest, arriving, &error)
                });
                return parked
                    .await
                    .unwrap_or(Verdict::Deferred("the receiver's disk failed".into()));
            }
            Outcome::Unserved(status) => {
                why = format!("{}: {}", source.label(), status.reason());
                unusable.insert(source.id);
            }
            Outcome::Lost(reason) => {
                why = format!("transfer from {} interrupted: {reason}", source.label());
                tracing::debug!("{why}");
                losses += 1;
            }
        }
    }
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    spawn_blocking(job)
        .await
        .map_err(|error| tracing::error!("a job of the mesh failed: {error}"))
        .ok()
}

/// One range to ask for.
#[derive(Clone, Copy)]
struct Piece {
    entry: usize,
    offset: u64,
    len: u64,
    chunk: u64,
}

/// What to ask for, in order: the missing ranges cut at multiples of [`RANGE`] rounded to whole chunks.
fn plan(arriving: &dyn Arriving, manifest: &VerifiedManifest) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (entry, says) in manifest.manifest().entries.iter().enumerate() {
        let chunk = chunk_size(says.size());
        let step = RANGE.max(chunk) / chunk * chunk;
        for range in arriving.missing(entry) {
            let mut at = range.start;
            while at < range.end {
                let len = step.min(range.end - at);
                pieces.push(Piece {
                    entry,
                    offset: at,
                    len,
                    chunk,
                });
                at += len;
            }
        }
    }
    pieces
}

/// Fetches all that is missing from `source`. Gives the bundle back with how it went.
async fn attempt(
    hub: &Arc<Hub>,
    source: &Peer,
    manifest: &VerifiedManifest,
    arriving: Box<dyn Arriving>,
) -> Option<(Box<dyn Arriving>, Outcome)> {
    let Some(conn) = bulk(source).await else {
        return Some((arriving, Outcome::Lost("no bulk connection".into())));
    };
    let (arriving, pieces) = blocking({
        let manifest = manifest.clone();
        move || {
            let pieces = plan(arriving.as_ref(), &manifest);
            (arriving, pieces)
        }
    })
    .await?;
    let (chunks, feed) = mpsc::channel(AHEAD);
    let feeder = spawn_blocking(move || drink(arriving, feed));
    let pumped = pump(hub, &conn, manifest.id(), pieces, chunks).await;
    let (arriving, fed) = feeder.await.ok()?;
    let outcome = match (fed, pumped) {
        (Err(error), _) => Outcome::Intake(error),
        (Ok(()), Ok(())) => Outcome::Complete,
        (Ok(()), Err(outcome)) => outcome,
    };
    Some((arriving, outcome))
}

/// A chunk with its entry and offset.
type Chunk = (usize, u64, Bytes);

/// Hands chunks to the spool until there are no more or one is not taken. Blocks.
fn drink(
    mut arriving: Box<dyn Arriving>,
    mut feed: mpsc::Receiver<Chunk>,
) -> (Box<dyn Arriving>, Result<(), IntakeError>) {
    while let Some((entry, offset, bytes)) = feed.blocking_recv() {
        if let Err(error) = arriving.accept_chunk(entry, offset, &bytes) {
            return (arriving, Err(error));
        }
    }
    (arriving, Ok(()))
}

async fn bulk(source: &Peer) -> Option<Connection> {
    let mut bulk = source.bulk.subscribe();
    let live =
        |conn: &Option<Connection>| conn.as_ref().is_some_and(|c| c.close_reason().is_none());
    let conn = timeout(BULK_WAIT, bulk.wait_for(live)).await.ok()?.ok()?;
    conn.clone()
}

async fn pump(
    hub: &Hub,
    conn: &Connection,
    bundle: BundleId,
    pieces: Vec<Piece>,
    chunks: mpsc::Sender<Chunk>,
) -> Result<(), Outcome> {
    let mut ahead: VecDeque<(Piece, RecvStream)> = VecDeque::new();
    let mut pieces = pieces.into_iter();
    loop {
        while ahead.len() < PIPELINE
            && let Some(piece) = pieces.next()
        {
            ahead.push_back((piece, request(conn, bundle, piece).await?));
        }
        let Some((piece, mut recv)) = ahead.pop_front() else {
            return Ok(());
        };
        let ended = read_piece(hub, &mut recv, piece, &chunks).await;
        if ended.is_err() || chunks.is_closed() {
            for (_, recv) in &mut ahead {
                let _ = recv.stop(CloseCode::Stopping.code());
            }
            return ended;
        }
    }
}

async fn request(conn: &Connection, bundle: BundleId, piece: Piece) -> Result<RecvStream, Outcome> {
    let ask = async {
        let (mut send, recv) = conn.open_bi().await.map_err(|e| e.to_string())?;
        let entry = piece.entry as u32;
        let frame = Frame::Range(RangeRequest {
            bundle,
            entry,
            offset: piece.offset,
            len: piece.len,
        });
        send.write_all(&frame.to_bytes())
            .await
            .map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        Ok(recv)
    };
    timeout(STALL, ask)
        .await
        .unwrap_or(Err("stalled".into()))
        .map_err(Outcome::Lost)
}

/// Reads one answer and passes its chunks on; stops quietly when nobody takes them.
async fn read_piece(
    hub: &Hub,
    recv: &mut RecvStream,
    piece: Piece,
    chunks: &mpsc::Sender<Chunk>,
) -> Result<(), Outcome> {
    let mut status = [0];
    timeout(STALL, recv.read_exact(&mut status))
        .await
        .map_err(|_| Outcome::Lost("stalled".into()))?
        .map_err(|e| Outcome::Lost(e.to_string()))?;
    match RangeStatus::from_byte(status[0]) {
        Some(RangeStatus::Ok) => {}
        Some(status @ (RangeStatus::NotHeld | RangeStatus::Range | RangeStatus::Disk)) => {
            return Err(Outcome::Unserved(status));
        }
        None => return Err(Outcome::Unserved(RangeStatus::NotHeld)),
    }
    let (mut at, end) = (piece.offset, piece.offset + piece.len);
    while at < end {
        let want = piece.chunk.min(end - at) as usize;
        let mut chunk = BytesMut::with_capacity(want);
        while chunk.len() < want {
            match timeout(STALL, recv.read_chunk(want - chunk.len())).await {
                Ok(Ok(Some(bytes))) => chunk.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Err(Outcome::Lost("the answer is too short".into())),
                Ok(Err(error)) => return Err(Outcome::Lost(error.to_string())),
                Err(_) => return Err(Outcome::Lost("stalled".into())),
            }
        }
        hub.store.count_bytes(0, want as u64);
        if chunks
            .send((piece.entry, at, chunk.freeze()))
            .await
            .is_err()
        {
            return Ok(());
        }
        at += want as u64;
    }
    Ok(())
}
