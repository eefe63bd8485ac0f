//! A session: the control connection with one peer, from the accepted hello to its end.
//!
//! What to do is decided in [`crate::protocol::session`]; this drives it. Three tasks: a reader that cuts and verifies what
//! arrives, the session itself, which waits for no network and reads no more of the disk than the members, and a writer that sends everything that has
//! gathered in one write. What touches the disk runs in lanes (`jobs`).
//!
//! # Limits
//! What the peer's frames hold until they are dealt with is taken from its purse ([`crate::mesh::budget`]); when that has no
//! more, or too much of what it asked for is unsent, its stream is not read (`reader`, `out`). noq 1.4.0 closes a
//! connection with more than 2,048 unread pieces on a stream: the reader reads ahead and the writer sends few large
//! pieces, so that is met only by who goes on all the same, and harms nobody else.

mod jobs;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use iroh::endpoint::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::jobs::Jobs;
use crate::bundle::VerifiedManifest;
use crate::delivery::Delivery;
use crate::mesh::budget::Held;
use crate::mesh::hub::Hub;
use crate::mesh::lane;
use crate::mesh::member::{Channel, CloseCode, MemberError, why_closed};
use crate::mesh::offer;
use crate::mesh::out::Out;
use crate::mesh::reader::{self, Heard};
use crate::mesh::roster::{Peer, SessionHandle};
use crate::mesh::wire::{Hello, reason};
use crate::protocol::session::{Action, Done, Heard as Said, Input, Job, Lane, SessionCore, Word};

/// Rings waiting for the session; a ring that does not fit leads to a rescan.
const INPUTS: usize = 1024;

/// Results of jobs waiting for the session; a lane waits for room.
const RESULTS: usize = 64;

/// Frames between reader and session.
const HEARD: usize = 256;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Time for the reader to say what it ended of, when the session is over.
const READER_ENDS: Duration = Duration::from_secs(1);

/// What came of a job, with the room of the frame that it was about.
type Result = (Done, Option<Held>);

/// One running session.
struct Session {
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    out: Out,
    /// Reads of the journal and of content for offers, in order. Bounded by the delivery window and by the budget.
    desk: lane::Lane,
    /// The same for offers of urgent bundles, which wait for nothing else.
    express: lane::Lane,
    results: mpsc::Sender<Result>,
    core: SessionCore,
}

/// Where what happens to a session comes from.
struct Sources {
    heard: mpsc::Receiver<(Heard, Held)>,
    inputs: mpsc::Receiver<Input>,
    results: mpsc::Receiver<Result>,
    /// Set when an input did not fit.
    missed: Arc<AtomicBool>,
}

/// What the frame being heard brought, until an action takes it.
#[derive(Default)]
struct Brought {
    room: Option<Held>,
    offer: Option<(VerifiedManifest, Vec<Option<Bytes>>)>,
}

/// Runs the session until the connection ends, and says why.
pub(crate) async fn run(
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    conn: Connection,
    channel: Channel,
    hello: Hello,
    dialled: bool,
    greeting: Option<tokio::sync::MutexGuard<'_, ()>>,
) -> MemberError {
    let (ring, inputs) = mpsc::channel(INPUTS);
    let missed = Arc::new(AtomicBool::new(false));
    let incarnation = hello.incarnation;
    let handle = SessionHandle {
        conn: conn.clone(),
        dialled,
        incarnation,
        inputs: ring,
        missed: missed.clone(),
    };
    if !peer.admit(hub.me, handle) {
        return MemberError::Duplicate;
    }
    drop(greeting);
    tracing::info!("connected with {} ({})", peer.label(), peer.id.short());
    let out = Out::new(conn.clone());
    let (heard_tx, heard) = mpsc::channel(HEARD);
    let Channel {
        send,
        recv,
        decoder,
    } = channel;
    let writer = tokio::spawn(out.clone().write(send));
    let whose = (hub.clone(), peer.clone());
    let reader = tokio::spawn(reader::read(whose, recv, decoder, out.clone(), heard_tx));
    let delivery = Delivery::new(u64::from_le_bytes(crate::peer::random()));
    let core = SessionCore::new(peer.id, hello.members, delivery);
    let (results_tx, results) = mpsc::channel(RESULTS);
    let mut session = Session {
        hub,
        peer,
        out,
        desk: lane::Lane::default(),
        express: lane::Lane::default(),
        results: results_tx,
        core,
    };
    let mut sources = Sources {
        heard,
        inputs,
        results,
        missed,
    };
    session.hub.check(&session.peer);
    session.drive(Brought::default(), SessionCore::begin);
    session.serve(&conn, &mut sources).await;
    writer.abort();
    // Nobody takes what was heard any more: a reader that waits for room in the queue, or for the budget of what is in
    // it, would wait for ever, and this peer would be connected for ever. The same goes for a lane.
    drop(sources);
    let broken = last_word(reader).await;
    if let Some(error) = &broken {
        let why = reason(&error.to_string());
        conn.close(CloseCode::Protocol.code(), why.as_bytes());
    }
    session.end(&conn);
    let why = why_over(&conn, broken).await;
    tracing::info!("disconnected from {}: {why}", session.peer.label());
    if why == MemberError::Offline && session.peer.session().is_none() {
        session.peer.failed(&why, None);
    }
    conn.close(CloseCode::Stopping.code(), b"session ended");
    session.note_end(&why).await;
    why
}

/// Why the session is over: what the peer broke, or else what the end of the connection says.
async fn why_over(conn: &Connection, broken: Option<MemberError>) -> MemberError {
    let told = match conn.close_reason() {
        // The end of the stream may be here before the word that says why.
        None if broken.is_none() => timeout(READER_ENDS, conn.closed()).await.ok(),
        known => known,
    };
    let told = told.map(|r| why_closed(&r).unwrap_or(MemberError::Lost(r.to_string())));
    broken
        .or(told)
        .unwrap_or(MemberError::Lost("the stream ended".into()))
}

/// What the reader ended of, if the peer broke a rule.
async fn last_word(reader: JoinHandle<Option<MemberError>>) -> Option<MemberError> {
    let abort = reader.abort_handle();
    let ended = timeout(READER_ENDS, reader).await;
    abort.abort();
    ended.ok().and_then(std::result::Result::ok).flatten()
}

impl Session {
    /// Remembers when it ended, and whether because we are no member any more.
    async fn note_end(&self, why: &MemberError) {
        if *why == MemberError::Removed {
            self.peer.put_us_out.send_replace(true);
        }
        // Whoever stops the mesh does it for all.
        if !self.hub.is_stopping() {
            let (hub, peer) = (self.hub.clone(), self.peer.id);
            drop(tokio::task::spawn_blocking(move || hub.saw_last(peer)).await);
        }
    }

    /// Takes what comes until the connection or its stream ends.
    async fn serve(&mut self, conn: &Connection, sources: &mut Sources) {
        let mut ticker = interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = async { conn.closed().await; } => return,
                next = sources.heard.recv() => match next {
                    Some((heard, room)) => self.heard(heard, room),
                    None => return,
                },
                Some(input) = sources.inputs.recv() => self.input(input),
                Some((done, room)) = sources.results.recv() => {
                    self.done(done);
                    drop(room);
                }
                _ = ticker.tick() => {
                    if sources.missed.swap(false, Ordering::Relaxed) {
                        self.input(Input::Rescan);
                        self.input(Input::Members);
                    }
                    self.drive(Brought::default(), SessionCore::tick);
                }
            }
        }
    }

    /// Lets go of what the session held.
    fn end(&mut self, conn: &Connection) {
        self.peer.ended(conn);
        self.hub.teller_gone(&self.peer);
        if self.peer.session().is_none() {
            let now = self.hub.care.now();
            self.hub.care.state().gone(self.peer.id, now);
        }
        self.hub.store.custodian.custody_nudge();
        self.desk.clear();
        self.express.clear();
        self.drive(Brought::default(), SessionCore::ended);
    }

    fn heard(&mut self, heard: Heard, room: Held) {
        let mut brought = Brought {
            room: Some(room),
            offer: None,
        };
        let said = match heard {
            Heard::Frame(frame) => Said::Frame(frame),
            Heard::Offer(manifest, inline, age) => {
                self.hub.store.ledger.hear_age(&manifest, self.peer.id, age);
                let offered = offer::describe_offer(&manifest, &inline);
                brought.offer = Some((manifest, inline));
                Said::Offer(offered)
            }
            Heard::BadOffer(bundle, why) => Said::BadOffer(bundle, why),
            Heard::Later(bundle) => Said::Later(bundle),
        };
        let hub = self.hub.clone();
        self.drive(brought, |core, now, out| {
            core.heard(now, said, &mut hub.care.state(), out);
        });
    }

    fn input(&mut self, input: Input) {
        let brought = Brought::default();
        self.drive(brought, |core, now, out| core.input(now, input, out));
    }

    fn done(&mut self, done: Done) {
        let hub = self.hub.clone();
        self.drive(Brought::default(), |core, now, out| {
            core.done(now, done, &mut hub.care.state(), out);
        });
    }

    /// Lets the core decide, and carries out what it says.
    fn drive(
        &mut self,
        mut brought: Brought,
        decide: impl FnOnce(&mut SessionCore, Duration, &mut Vec<Action>),
    ) {
        let mut actions = Vec::new();
        decide(&mut self.core, self.hub.care.now(), &mut actions);
        for action in actions {
            self.act(action, &mut brought);
        }
    }

    fn act(&mut self, action: Action, brought: &mut Brought) {
        match action {
            Action::Send(frame) => self.out.push(&frame),
            Action::Do(Lane::Now, job) => {
                if let Some(done) = self.jobs().run(job, Lane::Now) {
                    self.done(done);
                }
            }
            Action::Do(lane, job) => {
                let room = brought.room.take_if(|_| job.is_heard());
                self.start(lane, job, room);
            }
            Action::Take(way, offered) => {
                if let (Some((manifest, inline)), Some(room)) =
                    (brought.offer.take(), brought.room.take())
                {
                    let (hub, peer) = (self.hub.clone(), self.peer.clone());
                    offer::receive(hub, peer, (way, offered), manifest, inline, room);
                }
            }
            Action::Tell(word) => self.tell(word),
            Action::Close(why) => {
                let code = CloseCode::Protocol.code();
                self.out.conn().close(code, why.as_bytes());
            }
        }
    }

    fn start(&self, lane: Lane, job: Job, room: Option<Held>) {
        let (jobs, results) = (self.jobs(), self.results.clone());
        // Kept: else status shows it on its way, or the journal owes it, after the connection is gone.
        let kept = matches!(job, Job::Show(..));
        let run = move || {
            if let Some(done) = jobs.run(job, lane) {
                // Fails when the session is over.
                drop(results.blocking_send((done, room)));
            }
        };
        let lane = match lane {
            Lane::Express => &self.express,
            Lane::Now | Lane::Desk => &self.desk,
        };
        if kept {
            lane.push_kept(run);
        } else {
            lane.push(run);
        }
    }

    fn jobs(&self) -> Jobs {
        Jobs {
            hub: self.hub.clone(),
            peer: self.peer.clone(),
            out: self.out.clone(),
        }
    }

    fn tell(&self, word: Word) {
        let (hub, peer) = (&self.hub, &self.peer);
        match word {
            Word::Have(have) => hub.fetches.told(&hub.store, peer, have),
            Word::Gone(ids) => hub.fetches.gone(peer.id, &ids),
            Word::Twin(run) => hub.told_of_twin(peer, run),
            Word::Refused(bundle, why) => {
                tracing::warn!("{} refused {bundle:?}: {why}", peer.label());
            }
            Word::Deferred(bundle, why) => {
                tracing::info!("{} deferred {bundle:?}: {why}", peer.label());
            }
            Word::ForeignReceipt(bundle) => {
                tracing::warn!(
                    "{} sent a receipt for {bundle:?} that is not its own",
                    peer.label()
                );
            }
            Word::BadOffer(bundle, why) => {
                tracing::warn!("refused offer {bundle:?} of {}: {why}", peer.label());
            }
        }
    }
}
