//! A session: the control connection with one peer, from the accepted hello to its end.
//!
//! Three tasks: a reader that cuts and verifies what arrives, the session itself, which never waits for disk or network,
//! and a writer that sends everything that has gathered in one write. What touches the disk runs in lanes.
//!
//! # Limits
//! What the peer's frames hold until they are dealt with is taken from its purse ([`crate::mesh::budget`]); when that has no
//! more, or too much of what it asked for is unsent, its stream is not read (`reader`, `out`). noq 1.4.0 closes a
//! connection with more than 2,048 unread pieces on a stream: the reader reads ahead and the writer sends few large
//! pieces, so that is met only by who goes on all the same, and harms nobody else.

mod roll;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iroh::endpoint::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::bundle::{BundleId, Priority, Receipt};
use crate::delivery::{Action, Delivery, Event, PAGE, Verdict, is_urgent};
use crate::mesh::budget::Held;
use crate::mesh::hub::Hub;
use crate::mesh::input::Input;
use crate::mesh::lane::Lane;
use crate::mesh::member::{Channel, CloseCode, MemberError, closed_by_peer};
use crate::mesh::out::Out;
use crate::mesh::reader::{self, Heard};
use crate::mesh::roster::{Peer, SessionHandle};
use crate::mesh::wire::{Frame, Hello, LIST_MAX, reason};
use crate::mesh::{cancel, custody, intake, offer};
use crate::spool::OriginSays;
use crate::spool::rank::Rank;

/// What an offer counts for the pacer: what it is not known to be, small.
const OFFER: usize = 64 * 1024;

/// Rings and results waiting for the session; a ring that does not fit leads to a rescan.
const INPUTS: usize = 1024;

/// Frames between reader and session.
const HEARD: usize = 256;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Time for the reader to say what it ended of, when the session is over.
const READER_ENDS: Duration = Duration::from_secs(1);

/// One running session.
struct Session {
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    out: Out,
    /// Reads of the journal and of content for offers, in order. Bounded by the delivery window and by the budget.
    desk: Lane,
    /// The same for offers of urgent bundles, which wait for nothing else.
    express: Lane,
    inputs: mpsc::Sender<Input>,
    delivery: Delivery,
    started: Instant,
    members_told: Vec<crate::mesh::wire::Told>,
    /// The roll that the peer knows to be ours.
    roll_told: Option<[u8; 32]>,
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
    let (inputs, mut input) = mpsc::channel(INPUTS);
    let missed = Arc::new(AtomicBool::new(false));
    let incarnation = hello.incarnation;
    let handle = SessionHandle {
        conn: conn.clone(),
        dialled,
        incarnation,
        inputs: inputs.clone(),
        missed: missed.clone(),
    };
    if !peer.admit(hub.me, handle) {
        return MemberError::Duplicate;
    }
    drop(greeting);
    tracing::info!("connected with {} ({})", peer.label(), peer.id.short());
    let out = Out::new(conn.clone());
    let (heard_tx, mut heard) = mpsc::channel(HEARD);
    let Channel {
        send,
        recv,
        decoder,
    } = channel;
    let writer = tokio::spawn(out.clone().write(send));
    let whose = (hub.clone(), peer.clone());
    let reader = tokio::spawn(reader::read(whose, recv, decoder, out.clone(), heard_tx));
    let seed = u64::from_le_bytes(crate::peer::random());
    let mut session = Session {
        hub,
        peer,
        out,
        desk: Lane::default(),
        express: Lane::default(),
        inputs,
        delivery: Delivery::new(seed),
        started: Instant::now(),
        members_told: hello.members,
        roll_told: None,
    };
    session.begin();
    session.serve(&conn, &mut heard, &mut input, &missed).await;
    writer.abort();
    // Nobody takes what was heard any more: a reader that waits for room in the queue, or for the budget of what is in
    // it, would wait for ever, and this peer would be connected for ever.
    drop(heard);
    let broken = last_word(reader).await;
    if let Some(error) = &broken {
        let why = reason(&error.to_string());
        conn.close(CloseCode::Protocol.code(), why.as_bytes());
    }
    session.end(&conn);
    let told = conn
        .close_reason()
        .map(|r| closed_by_peer(&r).unwrap_or(MemberError::Lost(r.to_string())));
    let why = broken
        .or(told)
        .unwrap_or(MemberError::Lost("the stream ended".into()));
    tracing::info!("disconnected from {}: {why}", session.peer.label());
    conn.close(CloseCode::Stopping.code(), b"session ended");
    why
}

/// What the reader ended of, if the peer broke a rule.
async fn last_word(reader: JoinHandle<Option<MemberError>>) -> Option<MemberError> {
    let abort = reader.abort_handle();
    let ended = timeout(READER_ENDS, reader).await;
    abort.abort();
    ended.ok().and_then(Result::ok).flatten()
}

impl Session {
    /// Says all that a peer is to hear first.
    fn begin(&mut self) {
        self.hub.check(&self.peer);
        self.compare_rolls();
        self.tell_cancels();
        self.event(Event::Connected);
        self.ask_about_unfinished();
        self.hand_over_custody();
    }

    /// Takes what comes until the connection or its stream ends.
    async fn serve(
        &mut self,
        conn: &Connection,
        heard: &mut mpsc::Receiver<(Heard, Held)>,
        input: &mut mpsc::Receiver<Input>,
        missed: &AtomicBool,
    ) {
        let mut ticker = interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = async { conn.closed().await; } => return,
                next = heard.recv() => match next {
                    Some((heard, permit)) => self.heard(heard, permit),
                    None => return,
                },
                Some(input) = input.recv() => self.input(input),
                _ = ticker.tick() => {
                    if missed.swap(false, Ordering::Relaxed) {
                        self.input(Input::Rescan);
                        self.input(Input::Members);
                    }
                    self.event(Event::Tick);
                }
            }
        }
    }

    /// Lets go of what the session held.
    fn end(&mut self, conn: &Connection) {
        self.peer.ended(conn);
        self.hub.teller_gone(&self.peer);
        self.hub.store.custody_nudge();
        self.desk.clear();
        self.express.clear();
        self.event(Event::Disconnected);
    }

    fn heard(&mut self, heard: Heard, permit: Held) {
        match heard {
            Heard::Offer(manifest, inline, age) => {
                self.hub.store.hear_age(&manifest, self.peer.id, age);
                let (hub, peer) = (self.hub.clone(), self.peer.clone());
                offer::receive(hub, peer, manifest, inline, permit);
            }
            Heard::Later(bundle) => {
                let verdict = Verdict::Deferred(intake::NO_ROOM.into());
                self.out.push(&Frame::Verdicts(vec![(bundle, verdict)]));
            }
            Heard::BadOffer(bundle, why) => {
                tracing::warn!("refused offer {bundle:?} of {}: {why}", self.peer.label());
                self.out
                    .push(&Frame::Verdicts(vec![(bundle, Verdict::Refused(why))]));
            }
            Heard::Frame(frame) => self.heard_frame(frame, permit),
        }
    }

    fn heard_frame(&mut self, frame: Frame, permit: Held) {
        match frame {
            Frame::Pending(ids) => {
                let (hub, peer, out) = (self.hub.clone(), self.peer.id, self.out.clone());
                self.desk.push(move || {
                    let answer = |id| (id, offer::answer(&hub, id, peer));
                    out.push(&Frame::Verdicts(ids.into_iter().map(answer).collect()));
                    drop(permit);
                });
            }
            Frame::Verdicts(list) => self.verdicts(list, permit),
            Frame::Receipts(receipts) => self.take_receipts(receipts, permit),
            Frame::Members(told) => {
                let (hub, peer) = (self.hub.clone(), self.peer.id);
                self.desk.push(move || {
                    hub.told(&told, peer);
                    drop(permit);
                });
            }
            Frame::Member(frame) => self.heard_member(frame, permit),
            Frame::Owed(ids) => self.answer_owed(ids, permit),
            Frame::Withdrawn(ids) => {
                let (hub, peer) = (self.hub.clone(), self.peer.id);
                self.desk.push(move || {
                    for bundle in ids {
                        hub.fetches.withdrawn(bundle, peer);
                        if let Err(error) = hub.store.withdrawn(bundle, peer) {
                            tracing::error!("{bundle:?} cannot be given up: {error}");
                        }
                    }
                    drop(permit);
                });
            }
            Frame::Cancels(list) => {
                cancel::take(&self.hub, &self.peer, &self.desk, &self.out, list, permit);
            }
            Frame::CancelsSeen(ids) => {
                cancel::seen(&self.hub, &self.peer, &self.desk, ids, permit);
            }
            Frame::Have(have) => {
                let store = self.hub.store.as_ref();
                self.hub.fetches.told(store, &self.peer, have);
            }
            Frame::Gone(ids) => self.hub.fetches.gone(self.peer.id, &ids),
            Frame::Closed(ids) => {
                let (hub, peer) = (self.hub.clone(), self.peer.clone());
                self.desk.push(move || {
                    custody::heard(&hub, &peer, &ids, OriginSays::Closed);
                    drop(permit);
                });
            }
            Frame::Twin(run) => self.hub.told_of_twin(&self.peer, run),
            Frame::Unknown(ids) => {
                let (hub, peer) = (self.hub.clone(), self.peer.clone());
                self.desk.push(move || {
                    custody::heard(&hub, &peer, &ids, OriginSays::Unknown);
                    drop(permit);
                });
            }
            Frame::Open(ids) => {
                let (hub, peer, out) = (self.hub.clone(), self.peer.clone(), self.out.clone());
                self.desk.push(move || {
                    custody::heard_open(&hub, &peer, &ids, &out);
                    drop(permit);
                });
            }
            // The reader lets nothing else through.
            Frame::Proof { .. } | Frame::Hello(_) | Frame::Offer(_) | Frame::Range(_) => {}
        }
    }

    /// Says which of `ids` the peer need not wait for.
    fn answer_owed(&self, mut ids: Vec<BundleId>, permit: Held) {
        let (hub, peer, out) = (self.hub.clone(), self.peer.id, self.out.clone());
        let inputs = self.inputs.clone();
        self.desk.push(move || {
            ids.retain(|bundle| !hub.store.is_pending(*bundle, peer));
            for bundle in &ids {
                drop(inputs.blocking_send(Input::Event(Event::Gone(*bundle))));
            }
            if !ids.is_empty() {
                out.push(&Frame::Withdrawn(ids));
            }
            drop(permit);
        });
    }

    /// Asks the peer about bundles of its own that began to arrive in an earlier session.
    fn ask_about_unfinished(&self) {
        let (hub, peer, out) = (self.hub.clone(), self.peer.id, self.out.clone());
        self.desk.push(move || {
            for page in hub.store.unfinished(peer).chunks(LIST_MAX) {
                out.push(&Frame::Owed(page.to_vec()));
            }
        });
    }

    /// Tells the peer what became of bundles of its own that we keep for others.
    fn hand_over_custody(&self) {
        let (hub, peer, out) = (self.hub.clone(), self.peer.clone(), self.out.clone());
        self.desk
            .push(move || custody::connected(&hub, &peer, &out));
    }

    fn verdicts(&mut self, list: Vec<(BundleId, Verdict)>, permit: Held) {
        let mut settled = Vec::new();
        for (bundle, verdict) in list {
            match verdict {
                Verdict::Settled(receipt)
                    if receipt.bundle == bundle && receipt.recipient == self.peer.id =>
                {
                    settled.push(*receipt);
                }
                Verdict::Settled(_) => {
                    tracing::warn!(
                        "{} sent a receipt for {bundle:?} that is not its own",
                        self.peer.label()
                    );
                }
                Verdict::Want
                | Verdict::Working
                | Verdict::Taken
                | Verdict::Refused(_)
                | Verdict::Deferred(_) => {
                    self.log_verdict(bundle, &verdict);
                    self.event(Event::Verdict(bundle, verdict));
                }
            }
        }
        if !settled.is_empty() {
            self.take_receipts(settled, permit);
        }
    }

    fn log_verdict(&self, bundle: BundleId, verdict: &Verdict) {
        match verdict {
            Verdict::Refused(why) => {
                tracing::warn!("{} refused {bundle:?}: {why}", self.peer.label());
            }
            Verdict::Deferred(why) => {
                tracing::info!("{} deferred {bundle:?}: {why}", self.peer.label());
            }
            Verdict::Want | Verdict::Working | Verdict::Taken | Verdict::Settled(_) => {}
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Sealed(bundle, priority) => self.event(Event::SealedAs(bundle, priority)),
            Input::Receipt(receipt) => self.out.push(&Frame::Receipts(vec![receipt])),
            Input::Rescan => {
                self.tell_cancels();
                self.event(Event::Rescan);
            }
            Input::Members => {
                self.tell_roll();
                self.tell_members();
            }
            Input::Owed(ids) => self.out.push(&Frame::Owed(ids)),
            Input::Say(frame) => self.out.push(&frame),
            Input::Verdict(bundle, verdict) => {
                self.out.push(&Frame::Verdicts(vec![(bundle, verdict)]));
            }
            Input::Event(event) => self.event(event),
        }
    }

    fn tell_cancels(&self) {
        cancel::tell(&self.hub, &self.peer, &self.desk, &self.out);
    }

    fn tell_members(&mut self) {
        let mut members = self.hub.members_to_tell();
        members.retain(|m| m.id != self.peer.id);
        members.sort();
        if members != self.members_told {
            self.out.push(&Frame::Members(members.clone()));
            self.members_told = members;
        }
    }

    fn take_receipts(&mut self, receipts: Vec<Receipt>, permit: Held) {
        let (hub, peer, inputs) = (self.hub.clone(), self.peer.clone(), self.inputs.clone());
        self.desk.push(move || {
            for receipt in receipts {
                let bundle = receipt.bundle;
                let owed = hub.store.is_pending(bundle, receipt.recipient);
                let what = if owed {
                    offer::describe_held(&hub, bundle)
                } else {
                    None
                };
                match hub.store.take_receipt(&receipt) {
                    Ok(true) => {
                        if let Some(what) = what {
                            tracing::info!(
                                "delivered {what} to {}",
                                hub.label_of(receipt.recipient)
                            );
                        }
                        if receipt.recipient == peer.id {
                            drop(inputs.blocking_send(Input::Event(Event::Receipt(bundle))));
                        }
                    }
                    Ok(false) => {
                        tracing::warn!(
                            "{} sent a receipt for {bundle:?} that is not genuine",
                            peer.label()
                        );
                    }
                    Err(error) => tracing::error!("receipt of {bundle:?} not recorded: {error}"),
                }
            }
            drop(permit);
        });
    }

    /// Feeds the machine and carries out what it answers.
    fn event(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.delivery
            .handle(self.started.elapsed(), event, &mut actions);
        for action in actions {
            let (hub, peer, inputs) = (self.hub.clone(), self.peer.clone(), self.inputs.clone());
            match action {
                Action::Page(after) => self.desk.push(move || {
                    let rows = hub
                        .store
                        .pending(peer.id, after, PAGE)
                        .unwrap_or_else(|error| {
                            tracing::error!("the journal cannot be read: {error}");
                            Vec::new()
                        });
                    let cursor = rows.last().map(|r| r.0).or(after);
                    let end = rows.len() < PAGE;
                    let ranked: Vec<(BundleId, Priority)> = rows
                        .iter()
                        .map(|(rank, bundle)| (*bundle, Rank(*rank).priority()))
                        .filter(|(_, priority)| *priority != Priority::default())
                        .collect();
                    let bundles = rows.into_iter().map(|r| r.1).collect();
                    drop(inputs.blocking_send(Input::Event(Event::Page {
                        cursor,
                        bundles,
                        end,
                    })));
                    for (bundle, priority) in ranked {
                        drop(inputs.blocking_send(Input::Event(Event::Ranked(bundle, priority))));
                    }
                }),
                Action::Ask(ids) => self.out.push(&Frame::Pending(ids)),
                Action::Offer(bundle) => {
                    let (out, priority) = (self.out.clone(), self.delivery.priority(bundle));
                    let urgent = is_urgent(priority);
                    let lane = if urgent { &self.express } else { &self.desk };
                    lane.push(move || {
                        if !urgent {
                            out.wait_room();
                        }
                        if !offer::send(&hub, &peer, bundle, &out, urgent) {
                            drop(inputs.blocking_send(Input::Event(Event::Gone(bundle))));
                            return;
                        }
                        hub.pacer.note(out.conn(), priority, OFFER);
                    });
                }
                // Kept: else status shows it on its way, or the journal owes it, after the connection is gone.
                Action::Show(bundle, state) => self.desk.push_kept(move || {
                    if let Err(error) = hub.store.set_delivery(bundle, peer.id, state) {
                        tracing::error!("state of {bundle:?} not recorded: {error}");
                    }
                }),
            }
        }
    }
}
