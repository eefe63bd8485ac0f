//! Pulling: carries a [`Plan`] out over streams, and hands what comes to the disk.
//!
//! One task decides; one task per piece reads; a lane checks and writes. Whoever decides waits for none of them, so that
//! one stalled source never holds up another, and a fetch that waits for its source holds no thread.
//!
//! Before a piece is asked for, there must be room for it on the disk, which the store gives in portions, and a turn
//! ([`super::turns`]). A fetch that gets no room for [`ROOM_WAIT`] is given up, and deferred.
//!
//! Every byte taken from a stream is counted; those of a piece that was cut off, wrong or not needed any more are
//! counted as come in vain. A piece is one chunk, so a cut costs at most one chunk for each piece that was open. A chunk of
//! several leaves is written leaf by leaf while it comes; the next one is not read before the last but one is written.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, RecvStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::activity::Heard;
use super::disk::{Came, Disk, Landed, Written};
use super::plan::{Piece, Plan};
use super::share::Share;
use super::tally::Tally;
use crate::bundle::{BundleId, VerifiedManifest};
use crate::digest::LEAF;
use crate::mesh::budget::Held;
use crate::mesh::hub::Hub;
use crate::mesh::lane::blocking;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Frame, RangeRequest, RangeStatus};
use crate::peer::PeerId;
use crate::spool::{Incoming, IntakeError, PartRoom};

/// How often sources are looked at though nothing happened.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How long to wait for a bulk connection of a holder with a session, when there is nothing else to do.
const BULK_WAIT: Duration = Duration::from_secs(10);

/// How long a fetch waits for room on the disk.
const ROOM_WAIT: Duration = Duration::from_secs(10);

/// Room asked for at once, unless a piece needs more.
const ROOM_PORTION: u64 = 8 * 1024 * 1024;

/// A fetch with a manifest that fills the room for the longest goes on if it is as quick as this, in bytes a second,
/// though another wants the room.
const QUICK: f64 = 1024.0 * 1024.0;

/// Why it does not go on.
pub(super) const GIVES_WAY: &str = "the memory for its long manifest is wanted for another";

/// Answers on their way. The plan bounds what is asked for; this only lets the readers go on.
const ANSWERS: usize = 64;

/// How it ended.
pub(super) enum End {
    Complete,
    /// Our disk.
    Disk(IntakeError),
    /// Our disk has no room for it now.
    NoRoom(String),
    /// Nobody can be asked for what is missing; the last thing that went wrong.
    Stuck(String),
}

/// Why a piece did not come.
enum Fail {
    Unserved(RangeStatus),
    Lost(String),
}

struct Answer {
    number: usize,
    peer: PeerId,
    result: Result<(Came, Tally), Fail>,
}

/// Room on the disk that was given to a fetch and is not used yet.
struct Room {
    given: u64,
    asking: bool,
    answers: mpsc::UnboundedSender<PartRoom>,
    /// Since when there is none, and why.
    none: Option<(Instant, String)>,
}

struct Pull {
    hub: Arc<Hub>,
    manifest: VerifiedManifest,
    share: Arc<Share>,
    plan: Plan,
    begun: Instant,
    conns: HashMap<PeerId, (Connection, Heard)>,
    /// What reads a piece, and how much of it is here.
    tasks: HashMap<(usize, PeerId), (AbortHandle, Arc<AtomicU64>)>,
    /// Rung when a piece is nearly here.
    nearly: Arc<Notify>,
    answers: mpsc::Sender<Answer>,
    disk: Disk,
    room: Room,
    why: String,
    stuck_since: Option<Instant>,
    /// Readers so far, by which they are told apart.
    readers: u64,
    /// Bytes on the disk.
    wrote: u64,
}

/// Fetches all that is missing. Gives the bundle back with how it went; `None` when a task failed.
pub(super) async fn pull(
    hub: &Arc<Hub>,
    manifest: &VerifiedManifest,
    arriving: Box<Incoming>,
    share: &Arc<Share>,
    held: &Held,
) -> Option<(Box<Incoming>, End)> {
    let (arriving, (places, pieces), first) = stock(hub, manifest, arriving, share).await?;
    if pieces.is_empty() {
        return Some((arriving, End::Complete));
    }
    // Unbounded in type only: the plan lets so much be on its way and no more.
    let (written, mut wrote) = mpsc::unbounded_channel();
    let (answers, mut answered) = mpsc::channel(ANSWERS);
    // One question at a time.
    let (room, mut roomed) = mpsc::unbounded_channel();
    let mut pull = Pull {
        hub: hub.clone(),
        manifest: manifest.clone(),
        share: share.clone(),
        plan: Plan::new(hub.me, places, pieces),
        begun: Instant::now(),
        conns: HashMap::new(),
        tasks: HashMap::new(),
        nearly: Arc::default(),
        answers,
        disk: Disk::new(arriving, written),
        room: Room {
            given: 0,
            asking: false,
            answers: room,
            none: None,
        },
        why: "no holder is connected".to_owned(),
        stuck_since: None,
        readers: 0,
        wrote: 0,
    };
    let mut ticker = interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ended = pull.roomed(first);
    let nearly = pull.nearly.clone();
    let end = loop {
        if let Some(end) = ended.take() {
            break end;
        }
        tokio::select! {
            Some(answer) = answered.recv() => pull.answered(answer),
            Some(word) = wrote.recv() => ended = pull.written(word),
            Some(room) = roomed.recv() => ended = pull.roomed(room),
            () = share.bell.notified() => pull.look(),
            () = nearly.notified() => {}
            _ = ticker.tick() => {
                pull.look();
                share.tell(&hub.store, &hub.roster);
                let ends = pull.stuck().or_else(|| pull.without_room());
                ended = ends.or_else(|| pull.gives_way(held));
            }
        }
        if pull.plan.is_complete() {
            break End::Complete;
        }
        pull.ask();
    };
    pull.stop_all();
    let Pull { disk, .. } = pull;
    let arriving = disk.end().await?;
    Some((arriving, end))
}

/// What is here already, what is missing of how many chunks, and whether there is room for the first of it.
async fn stock(
    hub: &Arc<Hub>,
    manifest: &VerifiedManifest,
    arriving: Box<Incoming>,
    share: &Arc<Share>,
) -> Option<(Box<Incoming>, (u64, Vec<Piece>), PartRoom)> {
    let (hub, manifest, share) = (hub.clone(), manifest.clone(), share.clone());
    blocking(move || {
        share.begin(arriving.as_ref());
        let (places, pieces) = missing(arriving.as_ref(), &manifest);
        let least = pieces.first().map_or(0, |piece| piece.len);
        let all: u64 = pieces.iter().map(|piece| piece.len).sum();
        let portion = all.min(ROOM_PORTION).max(least);
        let first = hub.store.part_room(manifest.id(), least, portion);
        (arriving, (places, pieces), first)
    })
    .await
}

/// What to ask for, in order; and how many chunks of the bundle travel in all.
fn missing(arriving: &Incoming, manifest: &VerifiedManifest) -> (u64, Vec<Piece>) {
    let (mut places, mut missing) = (0_u32, Vec::new());
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
                    entry: entry as u32,
                    index,
                    place: places + index,
                    offset: range.start,
                    len: range.end - range.start,
                });
            }
        }
        places += pieces.len() as u32;
    }
    (places.into(), missing)
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
            let rate = activity.lock().rate;
            self.plan.known(id, rate);
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
            if let Some(at) = heard.lock().heard {
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

    /// How much of each piece is here.
    fn look_at_pieces(&mut self) {
        for ((number, peer), (_, came)) in &self.tasks {
            let came = came.load(Ordering::Relaxed);
            self.plan.comes(*number, *peer, came);
        }
    }

    /// Asks every source for as much as it may be asked for.
    fn ask(&mut self) {
        let bundle = self.manifest.id();
        self.look_at_pieces();
        loop {
            let now = self.now();
            let mut asked = false;
            for peer in self.plan.idle(now) {
                let Some((conn, heard)) = self.conns.get(&peer) else {
                    continue;
                };
                let Some((number, len)) = self.plan.choose(peer, now) else {
                    continue;
                };
                if self.room.given < len {
                    self.ask_room(len);
                    return;
                }
                let piece = self.plan.piece(number);
                if !self.hub.fetches.fly(bundle, peer, piece.held()) {
                    continue;
                }
                asked = true;
                self.plan.ask(number, peer, now);
                self.room.given -= len;
                self.readers += 1;
                let read = Read {
                    conn: conn.clone(),
                    bundle,
                    piece,
                    asked: (number, peer),
                    by: self.readers,
                    disk: self.disk.clone(),
                    heard: heard.clone(),
                    nearly: (self.plan.nearly(number, peer, now), self.nearly.clone()),
                };
                let tally = Tally::begin(&self.hub, bundle, peer, piece);
                let came = tally.came();
                let answers = self.answers.clone();
                let task = tokio::spawn(async move {
                    let result = read.run(&tally).await.map(|came| (came, tally));
                    let answer = Answer {
                        number,
                        peer,
                        result,
                    };
                    drop(answers.send(answer).await);
                });
                let task = (task.abort_handle(), came);
                self.tasks.insert((number, peer), task);
            }
            if !asked {
                return;
            }
        }
    }

    /// Asks the disk for room, once at a time.
    fn ask_room(&mut self, least: u64) {
        if std::mem::replace(&mut self.room.asking, true) {
            return;
        }
        let (hub, bundle) = (self.hub.clone(), self.manifest.id());
        let least = least - self.room.given;
        let portion = self.plan.unasked().min(ROOM_PORTION).max(least);
        let answers = self.room.answers.clone();
        spawn_blocking(move || {
            let room = hub.store.part_room(bundle, least, portion);
            // Fails only when the fetch is over; then all that was given to it is free again.
            answers.send(room).ok();
        });
    }

    /// What the disk says to that.
    fn roomed(&mut self, room: PartRoom) -> Option<End> {
        match room {
            PartRoom::Given(bytes) => {
                self.room.asking = false;
                self.room.given += bytes;
                self.room.none = None;
                None
            }
            PartRoom::Later(why) => {
                // Asked again at the next tick.
                let since = self.room.none.take().map(|(since, _)| since);
                self.room.none = Some((since.unwrap_or_else(Instant::now), why));
                None
            }
            PartRoom::Never(why) => Some(End::NoRoom(why)),
        }
    }

    /// Gives up when there was no room for too long.
    fn without_room(&mut self) -> Option<End> {
        let (since, why) = self.room.none.as_ref()?;
        if since.elapsed() >= ROOM_WAIT {
            return Some(End::NoRoom(why.clone()));
        }
        self.room.asking = false;
        None
    }

    /// Makes room for another manifest as long, if it makes little use of its own.
    fn gives_way(&self, held: &Held) -> Option<End> {
        let pace = self.wrote as f64 / self.begun.elapsed().as_secs_f64();
        (held.is_wanted() && pace < QUICK).then(|| End::NoRoom(GIVES_WAY.into()))
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
        self.look_at_pieces();
        let label = || self.hub.label_of(peer);
        match result {
            Ok((came, tally)) => {
                let mut stop = Vec::new();
                let now = self.now();
                if self.plan.landed(number, peer, now, &mut stop) {
                    let piece = self.plan.piece(number);
                    self.disk.put(Landed {
                        number,
                        peer,
                        piece,
                        came,
                        tally,
                    });
                }
                if let Some((_, did)) = self.conns.get(&peer) {
                    did.lock().rate = self.plan.rate(peer);
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
            if let Some((task, _)) = self.tasks.remove(&key) {
                task.abort();
            }
        }
    }

    fn stop_all(&mut self) {
        self.tasks.drain().for_each(|(_, (task, _))| task.abort());
    }

    /// What the disk says of a piece.
    fn written(&mut self, (number, peer, result): Written) -> Option<End> {
        match result {
            Some(Ok(())) => {
                let piece = self.plan.piece(number);
                self.wrote += piece.len;
                self.plan.done(number, peer);
                self.share.got(piece.entry as usize, piece.index.into());
            }
            Some(Err(error @ IntakeError::WrongBytes { .. })) => {
                self.why = format!("{} sent wrong bytes: {error}", self.hub.label_of(peer));
                tracing::warn!("{}", self.why);
                self.hub.blames.add(self.manifest.id(), peer, &self.why);
                let mut stop = Vec::new();
                self.plan.wrong(number, peer, &mut stop);
                self.stop(stop);
            }
            Some(Err(
                error @ (IntakeError::Disk(_) | IntakeError::Ended(_) | IntakeError::Superseded),
            )) => {
                return Some(End::Disk(error));
            }
            None => return Some(End::Stuck("the receiver failed".into())),
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

fn live_bulk(peer: &Peer) -> Option<Connection> {
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
    asked: (usize, PeerId),
    /// Which reader it is.
    by: u64,
    disk: Disk,
    heard: Heard,
    /// What to ring when so much is left.
    nearly: (u64, Arc<Notify>),
}

impl Read {
    async fn run(self, tally: &Tally) -> Result<Came, Fail> {
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
        let (mut at, end) = (self.piece.offset, self.piece.offset + self.piece.len);
        let mut writing: Option<oneshot::Receiver<bool>> = None;
        loop {
            let bytes = self.leaf(&mut recv, (at, end), tally).await?;
            if let Some(before) = writing.take() {
                if !before.await.unwrap_or(false) {
                    return Err(Fail::Lost("it is of no use any more".into()));
                }
                // Silence was our disk's.
                self.note();
            }
            let (len, by) = (bytes.len() as u64, self.by);
            let came = Came { bytes, at, by };
            at += len;
            if at == end {
                return Ok(came);
            }
            writing = Some(self.disk.put_leaf(self.asked, self.piece, came));
        }
    }

    /// The next bytes of the answer, which goes from `at` to `end`.
    async fn leaf(
        &self,
        recv: &mut RecvStream,
        (at, end): (u64, u64),
        tally: &Tally,
    ) -> Result<Bytes, Fail> {
        let len = LEAF.min(end - at);
        let (want, after) = (len as usize, end - at - len);
        let mut leaf = BytesMut::with_capacity(want);
        while leaf.len() < want {
            match recv.read_chunk(want - leaf.len()).await {
                Ok(Some(bytes)) => {
                    let before = after + (want - leaf.len()) as u64;
                    tally.add(bytes.len() as u64);
                    self.note();
                    leaf.extend_from_slice(&bytes);
                    let left = after + (want - leaf.len()) as u64;
                    if left <= self.nearly.0 && self.nearly.0 < before {
                        self.nearly.1.notify_one();
                    }
                }
                Ok(None) => return Err(Fail::Lost("the answer is too short".into())),
                Err(error) => return Err(Fail::Lost(error.to_string())),
            }
        }
        Ok(leaf.freeze())
    }

    fn note(&self) {
        self.heard.lock().heard = Some(Instant::now());
    }

    async fn request(&self) -> Result<RecvStream, String> {
        let (mut send, recv) = self.conn.open_bi().await.map_err(|e| e.to_string())?;
        let frame = Frame::Range(RangeRequest {
            bundle: self.bundle,
            entry: self.piece.entry,
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
