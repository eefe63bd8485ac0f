//! Pulling: carries a [`Plan`] out over streams, and hands what comes to the disk.
//!
//! One task decides; one task per piece reads; one blocking thread checks and writes. Whoever decides waits for none of
//! them, so that one stalled source never holds up another.
//!
//! Every byte taken from a stream is counted; those of a piece that was cut off, wrong or not needed any more are
//! counted as come in vain. A piece is one chunk, so a cut costs at most one chunk for each piece that was open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, RecvStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::plan::{Piece, Plan};
use super::share::Share;
use super::{Fetches, blocking};
use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::Hub;
use crate::mesh::store::Arriving;
use crate::mesh::wire::{Frame, RangeRequest, RangeStatus};
use crate::peer::PeerId;
use crate::spool::IntakeError;

/// How often sources are looked at though nothing happened.
const TICK: Duration = Duration::from_millis(100);

/// How long to wait for a bulk connection of a holder with a session, when there is nothing else to do.
const BULK_WAIT: Duration = Duration::from_secs(10);

/// Bytes asked for and not on the disk yet, over all fetches; beyond it each goes on with two pieces.
const FLIGHT_ALL: u64 = 24 * 1024 * 1024;

/// Answers on their way. The plan bounds what is asked for; this only lets the readers go on.
const ANSWERS: usize = 64;

/// How it ended.
pub(super) enum End {
    Complete,
    /// Our disk.
    Disk(IntakeError),
    /// Nobody can be asked for what is missing; the last thing that went wrong.
    Stuck(String),
}

/// When a peer last sent something of what it was asked for.
type Heard = Arc<Mutex<Option<Instant>>>;

/// That of every peer, over all fetches.
#[derive(Default)]
pub(super) struct Activity(Mutex<HashMap<PeerId, Heard>>);

impl Activity {
    fn of(&self, peer: PeerId) -> Heard {
        self.0.lock().entry(peer).or_default().clone()
    }
}

/// From the question to the disk: counts the bytes of a piece; if they are not kept in the end, as come in vain.
struct Tally {
    hub: Arc<Hub>,
    /// What was asked for; memory that it may take.
    len: u64,
    came: AtomicU64,
}

impl Tally {
    fn begin(hub: &Arc<Hub>, len: u64) -> Self {
        hub.fetches.flight.fetch_add(len, Ordering::Relaxed);
        Self {
            hub: hub.clone(),
            len,
            came: AtomicU64::new(0),
        }
    }

    fn add(&self, bytes: u64) {
        self.hub.store.count_bytes(0, bytes);
        self.came.fetch_add(bytes, Ordering::Relaxed);
    }

    fn keep(self) {
        self.came.store(0, Ordering::Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.hub
            .fetches
            .flight
            .fetch_sub(self.len, Ordering::Relaxed);
        let bytes = self.came.load(Ordering::Relaxed);
        if bytes > 0 {
            self.hub.store.count_twice(bytes);
        }
    }
}

/// Why a piece did not come.
enum Fail {
    Unserved(RangeStatus),
    Lost(String),
}

struct Answer {
    number: usize,
    peer: PeerId,
    result: Result<(Bytes, Tally), Fail>,
}

/// A piece for the disk.
struct Landed {
    number: usize,
    peer: PeerId,
    piece: Piece,
    bytes: Bytes,
    tally: Tally,
}

/// What the disk says of it.
type Written = (usize, PeerId, Result<(), IntakeError>);

struct Pull {
    hub: Arc<Hub>,
    manifest: VerifiedManifest,
    share: Arc<Share>,
    plan: Plan,
    begun: Instant,
    conns: HashMap<PeerId, (Connection, Heard)>,
    tasks: HashMap<(usize, PeerId), AbortHandle>,
    answers: mpsc::Sender<Answer>,
    disk: mpsc::UnboundedSender<Landed>,
    why: String,
    stuck_since: Option<Instant>,
}

/// Fetches all that is missing. Gives the bundle back with how it went; `None` when a task failed.
pub(super) async fn pull(
    hub: &Arc<Hub>,
    manifest: &VerifiedManifest,
    arriving: Box<dyn Arriving>,
    share: &Arc<Share>,
) -> Option<(Box<dyn Arriving>, End)> {
    let (arriving, places, pieces) = blocking({
        let (manifest, share) = (manifest.clone(), share.clone());
        move || {
            share.begin(arriving.as_ref());
            let (places, pieces) = missing(arriving.as_ref(), &manifest);
            (arriving, places, pieces)
        }
    })
    .await?;
    if pieces.is_empty() {
        return Some((arriving, End::Complete));
    }
    // Unbounded in type only: the plan lets so much be on its way and no more.
    let (disk, landed) = mpsc::unbounded_channel();
    let (written, mut wrote) = mpsc::unbounded_channel();
    let writer = spawn_blocking(move || write(arriving, landed, &written));
    let (answers, mut answered) = mpsc::channel(ANSWERS);
    let mut pull = Pull {
        hub: hub.clone(),
        manifest: manifest.clone(),
        share: share.clone(),
        plan: Plan::new(hub.me, places, pieces),
        begun: Instant::now(),
        conns: HashMap::new(),
        tasks: HashMap::new(),
        answers,
        disk,
        why: "no holder is connected".to_owned(),
        stuck_since: None,
    };
    let mut ticker = interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        tokio::select! {
            Some(answer) = answered.recv() => pull.answered(answer),
            Some(word) = wrote.recv() => if let Some(end) = pull.written(word) {
                break end;
            },
            () = share.bell.notified() => pull.look(),
            _ = ticker.tick() => {
                pull.look();
                share.tell(hub);
                if let Some(end) = pull.stuck() {
                    break end;
                }
            }
        }
        if pull.plan.is_complete() {
            break End::Complete;
        }
        pull.ask();
    };
    drop(pull);
    let arriving = writer.await.ok()?;
    Some((arriving, end))
}

/// What to ask for, in order; and how many chunks of the bundle travel in all.
fn missing(arriving: &dyn Arriving, manifest: &VerifiedManifest) -> (u64, Vec<Piece>) {
    let (mut places, mut missing) = (0, Vec::new());
    for (entry, says) in manifest.manifest().entries.iter().enumerate() {
        let pieces = says.pieces();
        let mut absent = arriving.missing(entry).into_iter().peekable();
        for (index, range) in (0..).zip(&pieces) {
            while absent.next_if(|absent| absent.end <= range.start).is_some() {}
            if absent
                .peek()
                .is_some_and(|absent| absent.start <= range.start)
            {
                missing.push(Piece {
                    entry,
                    index,
                    offset: range.start,
                    len: range.end - range.start,
                    place: places + index,
                });
            }
        }
        places += pieces.len() as u64;
    }
    (places, missing)
}

/// Checks and writes until there is no more, or the disk fails. Blocks.
fn write(
    mut arriving: Box<dyn Arriving>,
    mut landed: mpsc::UnboundedReceiver<Landed>,
    written: &mpsc::UnboundedSender<Written>,
) -> Box<dyn Arriving> {
    while let Some(next) = landed.blocking_recv() {
        let (entry, offset) = (next.piece.entry, next.piece.offset);
        let result = arriving.accept_chunk(entry, offset, &next.bytes);
        let disk = matches!(
            result,
            Err(IntakeError::Disk(_) | IntakeError::Ended(_) | IntakeError::Superseded)
        );
        if result.is_ok() {
            next.tally.keep();
        }
        if written.send((next.number, next.peer, result)).is_err() || disk {
            break;
        }
    }
    arriving
}

impl Drop for Pull {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

impl Pull {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Who is there, and what they have.
    fn look(&mut self) {
        let now = self.now();
        let bundle = self.manifest.id();
        let holders = self.hub.fetches.holders(bundle);
        let (tellers, fetching) = self.share.tellers();
        let mut all: Vec<(PeerId, bool)> = holders.iter().map(|id| (*id, true)).collect();
        all.extend(tellers.iter().map(|id| (*id, false)));
        let mut up = Vec::new();
        for (id, whole) in all {
            let Some(conn) = self.hub.roster.get(id).and_then(|peer| live_bulk(&peer)) else {
                continue;
            };
            let origin = id == self.manifest.manifest().origin;
            let known = self.conns.get(&id).map(|(conn, _)| conn.stable_id());
            if known.is_some_and(|known| known != conn.stable_id()) {
                self.lost(id, "connection lost");
            }
            self.plan.source(id, origin, whole, now);
            let activity = self.hub.fetches.activity.of(id);
            self.conns.entry(id).or_insert((conn, activity));
            up.push(id);
        }
        let down: Vec<PeerId> = self.conns.keys().copied().collect();
        for id in down.into_iter().filter(|id| !up.contains(id)) {
            self.lost(id, "connection lost");
        }
        for (id, says) in self.share.news(|id| self.conns.contains_key(id)) {
            let origin = id == self.manifest.manifest().origin;
            if says.whole {
                self.plan.source(id, origin, true, now);
            }
            for (entry, bits) in says.entries {
                self.plan.told(id, entry, bits, now);
            }
        }
        let fetching = fetching.into_iter().filter(|id| up.contains(id));
        self.plan.others(fetching);
        for (id, (conn, heard)) in &self.conns {
            let paths = conn.paths();
            let used = paths.iter().filter(|path| path.is_selected());
            if let Some(rtt) = used.map(|path| path.rtt()).min() {
                self.plan.far(*id, rtt);
            }
            if let Some(at) = *heard.lock() {
                self.plan
                    .heard(*id, at.saturating_duration_since(self.begun));
            }
        }
        let mut stop = Vec::new();
        for id in self.plan.stalls(now, &mut stop) {
            self.lost(id, "stalled");
        }
        self.stop(stop);
    }

    /// Asks every source for as much as it may be asked for.
    fn ask(&mut self) {
        loop {
            // Two pieces go on in any case, so that no fetch waits for another.
            let flying = self.hub.fetches.flight.load(Ordering::Relaxed);
            if flying >= FLIGHT_ALL && self.plan.flying() >= 2 {
                return;
            }
            let now = self.now();
            let mut asked = false;
            for peer in self.plan.idle(now) {
                let Some((conn, heard)) = self.conns.get(&peer) else {
                    continue;
                };
                let Some(number) = self.plan.next(peer, now) else {
                    continue;
                };
                asked = true;
                let read = Read {
                    conn: conn.clone(),
                    bundle: self.manifest.id(),
                    piece: self.plan.piece(number),
                    heard: heard.clone(),
                };
                let tally = Tally::begin(&self.hub, read.piece.len);
                let answers = self.answers.clone();
                let task = tokio::spawn(async move {
                    let result = read.run(&tally).await.map(|bytes| (bytes, tally));
                    let answer = Answer {
                        number,
                        peer,
                        result,
                    };
                    drop(answers.send(answer).await);
                });
                self.tasks.insert((number, peer), task.abort_handle());
            }
            if !asked {
                return;
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        let Answer {
            number,
            peer,
            result,
        } = answer;
        // One that was stopped may have been on its way.
        if self.tasks.remove(&(number, peer)).is_none() {
            return;
        }
        let label = || self.hub.label_of(peer);
        match result {
            Ok((bytes, tally)) => {
                let mut stop = Vec::new();
                let now = self.now();
                if self.plan.landed(number, peer, now, &mut stop) {
                    let piece = self.plan.piece(number);
                    let landed = Landed {
                        number,
                        peer,
                        piece,
                        bytes,
                        tally,
                    };
                    // Fails only after a failure of the disk, which is being told.
                    self.disk.send(landed).ok();
                }
                self.stop(stop);
            }
            Err(Fail::Unserved(status)) => {
                let holds = self.hub.fetches.holders(self.manifest.id()).contains(&peer);
                if holds {
                    self.why = format!("{}: {}", label(), status.reason());
                    let mut stop = Vec::new();
                    self.plan.lacks(number, peer);
                    self.plan.ban(peer, &mut stop);
                    self.stop(stop);
                } else {
                    self.plan.lacks(number, peer);
                }
            }
            Err(Fail::Lost(reason)) => self.lost(peer, &reason),
        }
    }

    fn lost(&mut self, peer: PeerId, reason: &str) {
        self.conns.remove(&peer);
        let label = self.hub.label_of(peer);
        self.why = format!("transfer from {label} interrupted: {reason}");
        tracing::debug!("{}", self.why);
        let mut stop = Vec::new();
        if self.plan.lost(peer, &mut stop) {
            tracing::debug!("{label} is not asked any more for this bundle");
        }
        self.stop(stop);
    }

    fn stop(&mut self, stop: Vec<(usize, PeerId)>) {
        for key in stop {
            if let Some(task) = self.tasks.remove(&key) {
                task.abort();
            }
        }
    }

    /// What the disk says of a piece.
    fn written(&mut self, (number, peer, result): Written) -> Option<End> {
        match result {
            Ok(()) => {
                let piece = self.plan.piece(number);
                self.plan.done(number, peer);
                self.share.got(piece.entry, piece.index);
            }
            Err(error @ IntakeError::WrongBytes { .. }) => {
                self.why = format!("{} sent wrong bytes: {error}", self.hub.label_of(peer));
                tracing::warn!("{}", self.why);
                self.hub.blames.add(self.manifest.id(), peer, &self.why);
                let mut stop = Vec::new();
                self.plan.wrong(number, peer, &mut stop);
                self.stop(stop);
            }
            Err(
                error @ (IntakeError::Disk(_) | IntakeError::Ended(_) | IntakeError::Superseded),
            ) => {
                return Some(End::Disk(error));
            }
        }
        None
    }

    fn stuck(&mut self) -> Option<End> {
        if self.hub.is_stopping() {
            return Some(End::Stuck(self.why.clone()));
        }
        if !self.plan.is_stuck() {
            self.stuck_since = None;
            return None;
        }
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        let waits = |id: &PeerId| {
            let peer = self.hub.roster.get(*id);
            let coming = peer.is_some_and(|p| p.session().is_some() && live_bulk(&p).is_none());
            coming && !self.plan.is_banned(*id)
        };
        let holders = self.hub.fetches.holders(self.manifest.id());
        let hope = holders.iter().any(waits) && since.elapsed() < BULK_WAIT;
        (!hope).then(|| End::Stuck(self.why.clone()))
    }
}

fn live_bulk(peer: &crate::mesh::roster::Peer) -> Option<Connection> {
    let bulk = peer.bulk.borrow();
    bulk.as_ref()
        .filter(|conn| conn.close_reason().is_none())
        .cloned()
}

/// One question and its answer.
struct Read {
    conn: Connection,
    bundle: BundleId,
    piece: Piece,
    heard: Heard,
}

impl Read {
    async fn run(self, tally: &Tally) -> Result<Bytes, Fail> {
        let mut recv = self.request().await.map_err(Fail::Lost)?;
        let mut status = [0];
        recv.read_exact(&mut status)
            .await
            .map_err(|e| Fail::Lost(e.to_string()))?;
        self.note();
        match RangeStatus::from_byte(status[0]) {
            Some(RangeStatus::Ok) => {}
            Some(status @ (RangeStatus::NotHeld | RangeStatus::Range | RangeStatus::Disk)) => {
                return Err(Fail::Unserved(status));
            }
            None => return Err(Fail::Unserved(RangeStatus::NotHeld)),
        }
        let want = self.piece.len as usize;
        let mut chunk = BytesMut::with_capacity(want);
        while chunk.len() < want {
            match recv.read_chunk(want - chunk.len()).await {
                Ok(Some(bytes)) => {
                    tally.add(bytes.len() as u64);
                    self.note();
                    chunk.extend_from_slice(&bytes);
                }
                Ok(None) => return Err(Fail::Lost("the answer is too short".into())),
                Err(error) => return Err(Fail::Lost(error.to_string())),
            }
        }
        Ok(chunk.freeze())
    }

    fn note(&self) {
        *self.heard.lock() = Some(Instant::now());
    }

    async fn request(&self) -> Result<RecvStream, String> {
        let (mut send, recv) = self.conn.open_bi().await.map_err(|e| e.to_string())?;
        let frame = Frame::Range(RangeRequest {
            bundle: self.bundle,
            entry: self.piece.entry as u32,
            offset: self.piece.offset,
            len: self.piece.len,
        });
        send.write_all(&frame.to_bytes())
            .await
            .map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        Ok(recv)
    }
}

impl Fetches {
    /// What is told about the bundle, if it is being fetched.
    pub(super) fn share(&self, bundle: BundleId) -> Option<Arc<Share>> {
        let running = self.running.lock();
        running.get(&bundle).map(|running| running.share.clone())
    }
}
