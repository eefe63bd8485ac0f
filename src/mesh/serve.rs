//! Serving: ranges of content to a peer, each on a stream of its own on the bulk connection.
//!
//! The spool decides whether the peer may have the content; every refusal for that reason looks the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::endpoint::{Connection, RecvStream, SendStream};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use crate::bundle::{BundleId, Priority};
use crate::delivery::{Event, is_urgent};
use crate::mesh::budget::Purse;
use crate::mesh::hub::Hub;
use crate::mesh::limits::Kind;
use crate::mesh::member::{Channel, CloseCode};
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Decoder, Frame, PREFACE_MAX, RangeRequest, RangeStatus};
use crate::protocol::session::Input;
use crate::spool::{Admission, ContentReader, ServeError};

/// Most bytes of one request: a chunk of the largest file there can be. Nothing is allocated for it.
pub(crate) const RANGE_MAX: u64 = 1 << 40;

/// Read from disk and handed to the stream at once; two are in memory per request being served, and taken from the
/// peer's purse for it.
const PIECE: usize = 256 * 1024;

/// The same where the budget has no more: that much is there for every peer.
const PIECE_MIN: usize = 32 * 1024;

/// Requests of one connection served at a time; more wait.
const AT_ONCE: usize = 16;

/// Requests for urgent content beyond those, so that it never waits for the rest.
const URGENT_AT_ONCE: usize = 4;

/// Requests beyond both, each the first of its bundle, so that a slow bundle never makes another one wait.
const FIRST_AT_ONCE: usize = 8;

/// A peer that takes no byte for this long is not waited for.
const STALL: Duration = Duration::from_secs(30);

/// Bundles whose progress is counted per peer.
const COUNTED_MAX: usize = 1024;

/// Answers range requests until the connection ends.
pub(crate) async fn serve(hub: Arc<Hub>, peer: Arc<Peer>, conn: Connection) {
    let slots = Arc::new(Slots {
        of_class: [AT_ONCE, URGENT_AT_ONCE].map(Semaphore::new),
        first: Semaphore::new(FIRST_AT_ONCE),
        busy: Mutex::default(),
    });
    let purse = peer.purse(&hub.budget);
    while let Ok((send, recv)) = conn.accept_bi().await {
        let (hub, peer, slots) = (hub.clone(), peer.clone(), slots.clone());
        let (conn, purse) = (conn.clone(), purse.clone());
        tokio::spawn(async move {
            answer(&hub, (&peer, &purse), &conn, &slots, send, recv).await;
        });
    }
}

/// What one connection is served at once.
struct Slots {
    of_class: [Semaphore; 2],
    first: Semaphore,
    /// Requests of each bundle that are served or wait.
    busy: Mutex<HashMap<BundleId, usize>>,
}

/// One request that is served.
struct Slot<'a> {
    slots: &'a Slots,
    bundle: BundleId,
    _permit: Option<SemaphorePermit<'a>>,
}

impl Slots {
    async fn enter(&self, bundle: BundleId, urgent: bool) -> Option<Slot<'_>> {
        let before = {
            let mut busy = self.busy.lock();
            let count = busy.entry(bundle).or_default();
            *count += 1;
            *count - 1
        };
        // Counted from here on, also while it waits.
        let mut slot = Slot {
            slots: self,
            bundle,
            _permit: None,
        };
        let first = if before == 0 {
            self.first.try_acquire().ok()
        } else {
            None
        };
        slot._permit = match first {
            Some(permit) => Some(permit),
            None => Some(self.of_class[usize::from(urgent)].acquire().await.ok()?),
        };
        Some(slot)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut busy = self.slots.busy.lock();
        if let Some(count) = busy.get_mut(&self.bundle) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.bundle);
            }
        }
    }
}

async fn answer(
    hub: &Arc<Hub>,
    (peer, purse): (&Peer, &Arc<Purse>),
    conn: &Connection,
    slots: &Slots,
    send: SendStream,
    recv: RecvStream,
) {
    let mut channel = Channel {
        send,
        recv,
        decoder: Decoder::new(PREFACE_MAX),
    };
    let Ok(Frame::Range(request)) = channel.frame().await else {
        let _ = channel.send.reset(CloseCode::Protocol.code());
        return;
    };
    // What else it sends on this stream is not kept.
    let _ = channel.recv.stop(CloseCode::Stopping.code());
    let wait = peer.take(Kind::Range, Instant::now());
    if !wait.is_zero() {
        sleep(wait).await;
    }
    let priority = priority_of(hub, request.bundle).await;
    let _ = channel.send.set_priority(priority as i32);
    let Some(slot) = slots.enter(request.bundle, is_urgent(priority)).await else {
        return;
    };
    match open(hub, peer, request).await {
        Ok(content) => {
            note(peer, request.bundle, request.len);
            let held = match purse.try_take(2 * PIECE) {
                Some(held) => held,
                None => purse.take(2 * PIECE_MIN).await,
            };
            let paced = (conn, priority, held.bytes() as u64 / 2);
            let serving = async {
                let served = stream(hub, paced, &mut channel.send, content, request).await;
                drop(held);
                if served.is_none() || channel.send.finish().is_err() {
                    let _ = channel.send.reset(CloseCode::Stopping.code());
                    return;
                }
                // Others are served meanwhile; it stays under way until the peer has it.
                drop(slot);
                drop(timeout(STALL, channel.send.stopped()).await);
            };
            tokio::select! {
                () = serving => {}
                () = hub.pacer.keep(conn, priority) => {}
            }
            return;
        }
        Err(error) => {
            let status = match error {
                ServeError::NotHeld => RangeStatus::NotHeld,
                ServeError::Range => RangeStatus::Range,
                ServeError::Disk(error) => {
                    tracing::error!("content of {:?} cannot be read: {error}", request.bundle);
                    RangeStatus::Disk
                }
            };
            drop(channel.send.write_all(&[status as u8]).await);
        }
    }
    let _ = channel.send.finish();
}

/// How urgent a bundle is; of one that is not held it does not matter.
async fn priority_of(hub: &Arc<Hub>, bundle: BundleId) -> Priority {
    let hub = hub.clone();
    let read = move || hub.store.ledger.priority(bundle);
    let priority = tokio::task::spawn_blocking(read).await.ok().flatten();
    priority.unwrap_or_default()
}

async fn open(
    hub: &Arc<Hub>,
    peer: &Peer,
    request: RangeRequest,
) -> Result<ContentReader, ServeError> {
    let (hub, peer) = (hub.clone(), peer.id);
    let opened = tokio::task::spawn_blocking(move || {
        // A peer may have other bulk connections than the one we know.
        if hub.store.group.admission(peer) != Admission::Welcome {
            return Err(ServeError::NotHeld);
        }
        let own = hub
            .store
            .open_content(request.bundle, request.entry as usize, peer);
        let content = match own {
            Err(ServeError::NotHeld) => hub.fetches.open(&hub.store, peer, &request)?,
            own => own?,
        };
        let end = request.offset.checked_add(request.len);
        let inside = end.is_some_and(|end| end <= content.len()) && request.len <= RANGE_MAX;
        if inside {
            Ok(content)
        } else {
            Err(ServeError::Range)
        }
    });
    opened.await.unwrap_or(Err(ServeError::NotHeld))
}

/// Sends the range, reading ahead by one piece; `None` when disk or stream failed.
async fn stream(
    hub: &Arc<Hub>,
    (conn, priority, piece): (&Connection, Priority, u64),
    send: &mut SendStream,
    content: ContentReader,
    request: RangeRequest,
) -> Option<()> {
    let (mut at, end) = (request.offset, request.offset + request.len);
    let read = |mut content: ContentReader, at: u64| {
        let len = piece.min(end - at) as usize;
        tokio::task::spawn_blocking(move || {
            let bytes = content.read(at, len);
            (content, bytes)
        })
    };
    timeout(
        STALL,
        send.write_chunk(Bytes::from_static(&[RangeStatus::Ok as u8])),
    )
    .await
    .ok()?
    .ok()?;
    let mut next = (at < end).then(|| read(content, at));
    while let Some(reading) = next.take() {
        let (content, bytes) = reading.await.ok()?;
        let mut bytes = match bytes {
            Ok(bytes) => bytes,
            Err(ServeError::NotHeld) => {
                tracing::debug!("{:?} is not given any more", request.bundle);
                return None;
            }
            Err(error) => {
                tracing::error!("content of {:?} cannot be read: {error}", request.bundle);
                return None;
            }
        };
        at += bytes.len() as u64;
        if at < end {
            next = Some(read(content, at));
        }
        hub.store.count_bytes(bytes.len() as u64, 0);
        while !bytes.is_empty() {
            let now = hub.pacer.acquire(conn, priority, bytes.len()).await;
            let write = send.write_chunk(bytes.split_to(now));
            timeout(STALL, write).await.ok()?.ok()?;
        }
    }
    Some(())
}

/// Counts what the peer asked for, for status.
fn note(peer: &Peer, bundle: BundleId, bytes: u64) {
    let Some(session) = peer.session() else {
        return;
    };
    let mut served = peer.served.lock();
    if served.len() >= COUNTED_MAX {
        served.clear();
    }
    let total = served.entry(bundle).or_default();
    *total += bytes;
    session.ring(Input::Event(Event::Serving(bundle, *total)));
}
