//! Delivery: what to do next for every bundle one peer is owed. Pure: events in, actions out, time passed in.
//!
//! `mesh` keeps one [`Delivery`] per connected peer, feeds it what happens ([`Event`]) and carries out what it answers
//! ([`Action`]). Nothing here reads a clock, a disk or a socket.
//!
//! ```text
//!              ask            Want               Working
//! (journal) ────────► Asked ────────► Ready ─► Offered ────────► Fetching
//!     │   sealed now                    ▲         │ Taken            │ Taken
//!     └─────────────────────────────────┘         ▼                  ▼
//!                                               Taken ─── receipt ─► (settled, forgotten)
//!      any ── Deferred ─► Waiting(until) ─► Asked     any ── Refused ─► (shown, forgotten)
//! ```
//!
//! # Invariants
//! 1. Memory is bounded: at most [`TRACKED_MAX`] bundles are known here. All others stay in the journal and are paged
//!    in as room comes; what does not fit is found by the next scan, never lost.
//! 2. At most [`WINDOW`] offers are unanswered, and [`RESERVED`] urgent ones beyond, so the receiver's queue is bounded
//!    too. What is offered next is the most urgent; no priority starves (`ready`).
//! 3. A bundle leaves only by receipt, refusal, the journal not owing it any more, or the end of the connection; in the
//!    last case the next connection finds it in the journal again.
//! 4. The live push is an optimisation: every state has a time after which the bundle is asked about again.

mod ready;

use std::collections::HashMap;
use std::time::Duration;

use self::ready::Ready;
use crate::bundle::{BundleId, DeliveryState, Priority, Receipt};

/// Offers sent and not answered. With content of 64 KiB each that is 16 MiB at the receiver; measured to keep a
/// loopback connection busy with files of 4 KiB.
pub const WINDOW: usize = 256;

/// Offers of urgent bundles that may be unanswered beyond [`WINDOW`], so that these never wait for lesser ones.
pub const RESERVED: usize = 32;

/// Ids asked about in one message, and rows read from the journal at once.
pub const PAGE: usize = 256;

/// Ids asked about and not answered, or answered and waiting for the window.
const AHEAD_MAX: usize = 4 * PAGE;

/// Bundles tracked for one peer in all states: about 1 MiB.
pub const TRACKED_MAX: usize = 8192;

/// Without an answer to a question or an offer for this long, it is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Published by the peer but no receipt for this long: ask, the receipt may have been lost with an event.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// A fetch without a sign of life for this long is asked about.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the journal is read again though nothing rang.
pub const RESCAN: Duration = Duration::from_secs(5);

/// First and longest pause after a deferral.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// What a peer says about a bundle it was asked about or offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It does not have it: offer it.
    Want,
    /// It is fetching it.
    Working,
    /// It is published there; the receipt follows when it is durable.
    Taken,
    /// It was settled; here is the receipt (whose genuineness the caller has checked and recorded).
    Settled(Box<Receipt>),
    /// It will never take it.
    Refused(String),
    /// Not now.
    Deferred(String),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The peer's hello was accepted.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// A bundle the peer is owed was sealed just now, with routine priority.
    Sealed(BundleId),
    /// The same, with this priority.
    SealedAs(BundleId, Priority),
    /// The priority of a bundle that a page told of.
    Ranked(BundleId, Priority),
    /// More may be owed than was seen: read the journal again.
    Rescan,
    /// The page that [`Action::Page`] asked for; `end` when there is no further one.
    Page {
        /// The cursor to go on from.
        cursor: Option<u64>,
        /// The bundles owed.
        bundles: Vec<BundleId>,
        /// Nothing follows.
        end: bool,
    },
    /// The peer said something about a bundle.
    Verdict(BundleId, Verdict),
    /// The peer's receipt was taken.
    Receipt(BundleId),
    /// The peer has now asked for so many bytes of it.
    Serving(BundleId, u64),
    /// The journal does not owe it to the peer any more, or cannot offer it.
    Gone(BundleId),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read a page of what is owed, after this cursor, and answer with [`Event::Page`].
    Page(Option<u64>),
    /// Ask the peer what it has of these.
    Ask(Vec<BundleId>),
    /// Send the offer; if that is impossible, answer [`Event::Gone`].
    Offer(BundleId),
    /// Show this state.
    Show(BundleId, DeliveryState),
}

/// Where one bundle stands on this connection. Those not here are in the journal only.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    Asked,
    Ready,
    Offered,
    Fetching,
    Taken,
    Waiting,
}

#[derive(Clone, Debug)]
struct Track {
    phase: Phase,
    /// When this phase is given up and the bundle asked about again.
    until: Duration,
    /// Deferrals in a row.
    deferrals: u32,
    priority: Priority,
}

/// Where the reading of the journal stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scan {
    /// Nothing to read until then.
    Idle(Duration),
    /// A page may be asked for as soon as there is room.
    Due(Option<u64>),
    /// A page is being read.
    Reading,
}

/// The delivery of everything to one peer.
#[derive(Debug)]
pub struct Delivery {
    connected: bool,
    tracks: HashMap<BundleId, Track>,
    ready: Ready,
    asked: usize,
    offered: usize,
    scan: Scan,
    /// Something was dropped or rang during a scan: begin again at its end.
    again: bool,
    /// State of the jitter generator.
    seed: u64,
}

impl Delivery {
    /// A machine that knows nothing yet. `seed` makes its jitter reproducible.
    pub fn new(seed: u64) -> Self {
        Self {
            connected: false,
            tracks: HashMap::new(),
            ready: Ready::default(),
            asked: 0,
            offered: 0,
            scan: Scan::Idle(Duration::ZERO),
            again: false,
            seed: seed | 1,
        }
    }

    /// Bundles tracked now.
    pub fn tracked(&self) -> usize {
        self.tracks.len()
    }

    /// Offers not answered yet.
    pub fn outstanding(&self) -> usize {
        self.offered
    }

    /// How urgent a bundle is, as far as known.
    pub fn priority(&self, bundle: BundleId) -> Priority {
        let track = self.tracks.get(&bundle);
        track.map_or_else(Priority::default, |track| track.priority)
    }

    /// Takes one event at time `now` (of any monotonic clock) and appends what is to be done to `out`.
    pub fn handle(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Connected => {
                self.forget_all();
                self.connected = true;
                self.scan = Scan::Due(None);
            }
            Event::Disconnected => self.disconnected(out),
            Event::Sealed(bundle) => self.sealed(now, bundle, Priority::Routine),
            Event::SealedAs(bundle, priority) => self.sealed(now, bundle, priority),
            Event::Ranked(bundle, priority) => self.rank(bundle, priority),
            Event::Rescan => self.rescan(),
            Event::Page {
                cursor,
                bundles,
                end,
            } => self.page(now, cursor, bundles, end, out),
            Event::Verdict(bundle, verdict) => self.verdict(now, bundle, verdict, out),
            Event::Receipt(bundle) | Event::Gone(bundle) => self.drop_track(bundle),
            Event::Serving(bundle, bytes) => self.serving(now, bundle, bytes, out),
            Event::Tick => self.tick(now, out),
        }
        if self.connected {
            self.advance(now, out);
        }
    }

    fn disconnected(&mut self, out: &mut Vec<Action>) {
        for (bundle, track) in &self.tracks {
            match track.phase {
                Phase::Offered | Phase::Fetching | Phase::Taken => {
                    out.push(Action::Show(*bundle, DeliveryState::Queued));
                }
                Phase::Asked | Phase::Ready | Phase::Waiting => {}
            }
        }
        self.forget_all();
    }

    fn forget_all(&mut self) {
        self.connected = false;
        self.tracks.clear();
        self.ready.clear();
        (self.asked, self.offered, self.again) = (0, 0, false);
        self.scan = Scan::Idle(Duration::ZERO);
    }

    fn sealed(&mut self, now: Duration, bundle: BundleId, priority: Priority) {
        if !self.connected || self.tracks.contains_key(&bundle) {
            return;
        }
        let ahead = if is_urgent(priority) {
            2 * AHEAD_MAX
        } else {
            AHEAD_MAX
        };
        if self.ready.len() >= ahead || self.tracks.len() >= TRACKED_MAX {
            self.again = true;
            return;
        }
        self.enter(now, bundle, Phase::Ready, priority);
    }

    /// The priority of a bundle became known.
    fn rank(&mut self, bundle: BundleId, priority: Priority) {
        if let Some(track) = self.tracks.get_mut(&bundle)
            && track.priority != priority
        {
            track.priority = priority;
            if track.phase == Phase::Ready {
                self.ready.push(bundle, priority);
            }
        }
    }

    fn rescan(&mut self) {
        match self.scan {
            Scan::Idle(_) if self.connected => self.scan = Scan::Due(None),
            Scan::Idle(_) => {}
            Scan::Due(_) | Scan::Reading => self.again = true,
        }
    }

    fn page(
        &mut self,
        now: Duration,
        cursor: Option<u64>,
        bundles: Vec<BundleId>,
        end: bool,
        out: &mut Vec<Action>,
    ) {
        if self.scan != Scan::Reading {
            return;
        }
        let new: Vec<BundleId> = bundles
            .into_iter()
            .filter(|b| !self.tracks.contains_key(b))
            .collect();
        for bundle in &new {
            self.set(now, *bundle, Phase::Asked);
        }
        for page in new.chunks(PAGE) {
            out.push(Action::Ask(page.to_vec()));
        }
        self.scan = match (end, std::mem::take(&mut self.again)) {
            (false, again) => {
                self.again = again;
                Scan::Due(cursor)
            }
            (true, true) => Scan::Due(None),
            (true, false) => Scan::Idle(now + RESCAN),
        };
    }

    fn verdict(
        &mut self,
        now: Duration,
        bundle: BundleId,
        verdict: Verdict,
        out: &mut Vec<Action>,
    ) {
        let Some(phase) = self.tracks.get(&bundle).map(|t| t.phase.clone()) else {
            return;
        };
        match (verdict, phase) {
            // A second "want" for what is on its way means that the offer was lost: only a new question gets here.
            (Verdict::Want, Phase::Asked) => self.set(now, bundle, Phase::Ready),
            (
                Verdict::Want,
                Phase::Ready | Phase::Offered | Phase::Fetching | Phase::Taken | Phase::Waiting,
            ) => {}
            (Verdict::Working, Phase::Ready | Phase::Waiting) => {}
            (Verdict::Working, Phase::Asked | Phase::Offered | Phase::Fetching) => {
                self.set(now, bundle, Phase::Fetching);
            }
            // Answers overtake each other only when the peer lies; what was published stays so.
            (Verdict::Working, Phase::Taken) => {}
            (Verdict::Taken, Phase::Ready | Phase::Waiting) => {}
            (Verdict::Taken, Phase::Asked | Phase::Offered | Phase::Fetching | Phase::Taken) => {
                self.set(now, bundle, Phase::Taken);
            }
            (
                Verdict::Settled(_),
                Phase::Asked
                | Phase::Ready
                | Phase::Offered
                | Phase::Fetching
                | Phase::Taken
                | Phase::Waiting,
            ) => self.drop_track(bundle),
            (
                Verdict::Refused(why),
                Phase::Asked
                | Phase::Ready
                | Phase::Offered
                | Phase::Fetching
                | Phase::Taken
                | Phase::Waiting,
            ) => {
                self.drop_track(bundle);
                out.push(Action::Show(bundle, DeliveryState::Refused(why)));
            }
            (
                Verdict::Deferred(why),
                Phase::Asked | Phase::Offered | Phase::Fetching | Phase::Taken,
            ) => {
                self.set(now, bundle, Phase::Waiting);
                out.push(Action::Show(bundle, DeliveryState::Deferred(why)));
            }
            (Verdict::Deferred(_), Phase::Ready | Phase::Waiting) => {}
        }
    }

    fn serving(&mut self, now: Duration, bundle: BundleId, bytes: u64, out: &mut Vec<Action>) {
        match self.tracks.get(&bundle).map(|t| t.phase.clone()) {
            Some(Phase::Offered | Phase::Fetching) => {
                self.set(now, bundle, Phase::Fetching);
                out.push(Action::Show(bundle, DeliveryState::Sending(bytes)));
            }
            Some(Phase::Asked | Phase::Ready | Phase::Taken | Phase::Waiting) | None => {}
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        let overdue = |t: &Track| t.phase != Phase::Ready && t.until <= now;
        let due: Vec<BundleId> = self
            .tracks
            .iter()
            .filter(|(_, t)| overdue(t))
            .map(|(b, _)| *b)
            .collect();
        for bundle in &due {
            self.set(now, *bundle, Phase::Asked);
        }
        for page in due.chunks(PAGE) {
            out.push(Action::Ask(page.to_vec()));
        }
        if let Scan::Idle(until) = self.scan
            && self.connected
            && until <= now
        {
            self.scan = Scan::Due(None);
        }
    }

    /// Sends what the window admits, and reads on in the journal when there is room.
    fn advance(&mut self, now: Duration, out: &mut Vec<Action>) {
        loop {
            let least = if self.offered < WINDOW {
                Priority::Bulk
            } else if self.offered < WINDOW + RESERVED {
                Priority::Priority
            } else {
                break;
            };
            let Some(bundle) = self.ready.pop(least) else {
                break;
            };
            if self
                .tracks
                .get(&bundle)
                .is_some_and(|t| t.phase == Phase::Ready)
            {
                self.set(now, bundle, Phase::Offered);
                out.push(Action::Offer(bundle));
            }
        }
        if self.again
            && let Scan::Idle(_) = self.scan
        {
            self.again = false;
            self.scan = Scan::Due(None);
        }
        let room = self.asked + self.ready.len() + PAGE <= AHEAD_MAX
            && self.tracks.len() + PAGE <= TRACKED_MAX;
        if let Scan::Due(after) = self.scan
            && room
        {
            self.scan = Scan::Reading;
            out.push(Action::Page(after));
        }
    }

    fn set(&mut self, now: Duration, bundle: BundleId, phase: Phase) {
        let priority = self
            .tracks
            .get(&bundle)
            .map_or_else(Priority::default, |t| t.priority);
        self.enter(now, bundle, phase, priority);
    }

    fn enter(&mut self, now: Duration, bundle: BundleId, phase: Phase, priority: Priority) {
        let deferrals = self.tracks.get(&bundle).map_or(0, |t| t.deferrals);
        let (deferrals, wait) = match phase {
            Phase::Asked | Phase::Offered => (deferrals, ANSWER_TIMEOUT),
            Phase::Ready => (deferrals, Duration::MAX),
            Phase::Fetching => (deferrals, FETCH_TIMEOUT),
            Phase::Taken => (0, RECEIPT_TIMEOUT),
            Phase::Waiting => (deferrals + 1, self.backoff(deferrals)),
        };
        self.count(&bundle, false);
        if phase == Phase::Ready {
            self.ready.push(bundle, priority);
        }
        self.tracks.insert(
            bundle,
            Track {
                phase,
                until: now.saturating_add(wait),
                deferrals,
                priority,
            },
        );
        self.count(&bundle, true);
    }

    fn drop_track(&mut self, bundle: BundleId) {
        self.count(&bundle, false);
        self.tracks.remove(&bundle);
    }

    /// Keeps the two counters in step with the phase of `bundle`.
    fn count(&mut self, bundle: &BundleId, entering: bool) {
        let counter = match self.tracks.get(bundle).map(|t| &t.phase) {
            Some(Phase::Asked) => &mut self.asked,
            Some(Phase::Offered) => &mut self.offered,
            Some(Phase::Ready | Phase::Fetching | Phase::Taken | Phase::Waiting) | None => return,
        };
        *counter = if entering { *counter + 1 } else { *counter - 1 };
    }

    fn backoff(&mut self, deferrals: u32) -> Duration {
        let (first, most) = BACKOFF;
        let base = first.saturating_mul(1 << deferrals.min(16)).min(most);
        jittered(base, &mut self.seed)
    }
}

/// Whether places are kept free for bundles of that priority.
pub fn is_urgent(priority: Priority) -> bool {
    priority >= Priority::Priority
}

/// `base` plus or minus a quarter of it, by the next number of the generator in `seed` (xorshift; not for secrets).
pub fn jittered(base: Duration, seed: &mut u64) -> Duration {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    let per_mille = 750 + (*seed >> 32) % 500;
    base.saturating_mul(per_mille as u32) / 1000
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::peer::{PeerId, Signature};

    const T0: Duration = Duration::from_secs(1000);

    fn id(n: u64) -> BundleId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        BundleId(bytes)
    }

    fn receipt(bundle: BundleId) -> Box<Receipt> {
        let peer = PeerId::from_bytes([1; 32]);
        Box::new(Receipt {
            bundle,
            origin: peer,
            recipient: peer,
            signature: Signature([0; 64]),
        })
    }

    fn step(machine: &mut Delivery, now: Duration, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        machine.handle(now, event, &mut out);
        out
    }

    /// A machine that is connected and has read an empty journal.
    fn idle() -> Delivery {
        let mut machine = Delivery::new(7);
        assert_eq!(
            step(&mut machine, T0, Event::Connected),
            [Action::Page(None)]
        );
        assert_eq!(
            step(
                &mut machine,
                T0,
                Event::Page {
                    cursor: None,
                    bundles: vec![],
                    end: true
                }
            ),
            []
        );
        machine
    }

    /// A machine that tracks bundle 1 in `phase` and nothing else.
    fn in_phase(phase: Option<Phase>) -> Delivery {
        let mut machine = idle();
        let b = id(1);
        let verdict = |v| Event::Verdict(b, v);
        let steps: Vec<Event> = match phase {
            None => vec![],
            Some(Phase::Asked) => {
                vec![
                    Event::Rescan,
                    Event::Page {
                        cursor: Some(1),
                        bundles: vec![b],
                        end: true,
                    },
                ]
            }
            Some(Phase::Offered) => vec![Event::Sealed(b)],
            Some(Phase::Fetching) => vec![Event::Sealed(b), verdict(Verdict::Working)],
            Some(Phase::Taken) => vec![Event::Sealed(b), verdict(Verdict::Taken)],
            Some(Phase::Waiting) => {
                vec![Event::Sealed(b), verdict(Verdict::Deferred("full".into()))]
            }
            Some(Phase::Ready) => {
                // Ready lasts only while the window is full of others.
                machine.offered = WINDOW;
                vec![Event::Sealed(b)]
            }
        };
        for event in steps {
            step(&mut machine, T0, event);
        }
        assert_eq!(machine.tracks.get(&b).map(|t| t.phase.clone()), phase);
        machine
    }

    #[test]
    fn every_state_and_every_event() {
        use Phase::*;
        let b = id(1);
        let show = |state| Action::Show(b, state);
        let queued = || vec![show(DeliveryState::Queued)];
        let why = || "why".to_owned();
        let all = [
            None,
            Some(Asked),
            Some(Ready),
            Some(Offered),
            Some(Fetching),
            Some(Taken),
            Some(Waiting),
        ];
        // For each event: the phase it leads to and the actions, per phase in the order of `all`.
        type Row = (Event, [(Option<Phase>, Vec<Action>); 7]);
        let page = || vec![Action::Page(None)];
        let rows: Vec<Row> = vec![
            (Event::Connected, [0; 7].map(|_| (None, page()))),
            (
                Event::Disconnected,
                [
                    (None, vec![]),
                    (None, vec![]),
                    (None, vec![]),
                    (None, queued()),
                    (None, queued()),
                    (None, queued()),
                    (None, vec![]),
                ],
            ),
            (
                Event::Sealed(b),
                [
                    (Some(Offered), vec![Action::Offer(b)]),
                    (Some(Asked), vec![]),
                    (Some(Ready), vec![]),
                    (Some(Offered), vec![]),
                    (Some(Fetching), vec![]),
                    (Some(Taken), vec![]),
                    (Some(Waiting), vec![]),
                ],
            ),
            (Event::Rescan, all.clone().map(|p| (p, page()))),
            // No page was asked for: ignored.
            (
                Event::Page {
                    cursor: None,
                    bundles: vec![b],
                    end: true,
                },
                all.clone().map(|p| (p, vec![])),
            ),
            (
                Event::Verdict(b, Verdict::Want),
                [
                    (None, vec![]),
                    (Some(Offered), vec![Action::Offer(b)]),
                    (Some(Ready), vec![]),
                    (Some(Offered), vec![]),
                    (Some(Fetching), vec![]),
                    (Some(Taken), vec![]),
                    (Some(Waiting), vec![]),
                ],
            ),
            (
                Event::Verdict(b, Verdict::Working),
                [
                    None,
                    Some(Fetching),
                    Some(Ready),
                    Some(Fetching),
                    Some(Fetching),
                    Some(Taken),
                    Some(Waiting),
                ]
                .map(|p| (p, vec![])),
            ),
            (
                Event::Verdict(b, Verdict::Taken),
                [
                    None,
                    Some(Taken),
                    Some(Ready),
                    Some(Taken),
                    Some(Taken),
                    Some(Taken),
                    Some(Waiting),
                ]
                .map(|p| (p, vec![])),
            ),
            (
                Event::Verdict(b, Verdict::Settled(receipt(b))),
                [0; 7].map(|_| (None, vec![])),
            ),
            (Event::Verdict(b, Verdict::Refused(why())), {
                let mut row = [0; 7].map(|_| (None, vec![show(DeliveryState::Refused(why()))]));
                row[0].1.clear();
                row
            }),
            (Event::Verdict(b, Verdict::Deferred(why())), {
                let shown = || vec![show(DeliveryState::Deferred(why()))];
                [
                    (None, vec![]),
                    (Some(Waiting), shown()),
                    (Some(Ready), vec![]),
                    (Some(Waiting), shown()),
                    (Some(Waiting), shown()),
                    (Some(Waiting), shown()),
                    (Some(Waiting), vec![]),
                ]
            }),
            (Event::Receipt(b), [0; 7].map(|_| (None, vec![]))),
            (Event::Gone(b), [0; 7].map(|_| (None, vec![]))),
            (Event::Serving(b, 9), {
                let shown = || vec![show(DeliveryState::Sending(9))];
                [
                    (None, vec![]),
                    (Some(Asked), vec![]),
                    (Some(Ready), vec![]),
                    (Some(Fetching), shown()),
                    (Some(Fetching), shown()),
                    (Some(Taken), vec![]),
                    (Some(Waiting), vec![]),
                ]
            }),
            (Event::Tick, all.clone().map(|p| (p, vec![]))),
        ];
        for (event, expected) in rows {
            for (phase, (after, actions)) in all.iter().zip(expected) {
                let mut machine = in_phase(phase.clone());
                assert_eq!(
                    step(&mut machine, T0, event.clone()),
                    actions,
                    "{phase:?} {event:?}"
                );
                assert_eq!(
                    machine.tracks.get(&b).map(|t| t.phase.clone()),
                    after,
                    "{phase:?} {event:?}"
                );
            }
        }
    }

    #[test]
    fn every_state_is_asked_about_again_in_the_end() {
        let cases = [
            (Phase::Asked, ANSWER_TIMEOUT),
            (Phase::Offered, ANSWER_TIMEOUT),
            (Phase::Fetching, FETCH_TIMEOUT),
            (Phase::Taken, RECEIPT_TIMEOUT),
            (Phase::Waiting, BACKOFF.0 * 2),
        ];
        for (phase, after) in cases {
            let mut machine = in_phase(Some(phase.clone()));
            machine.scan = Scan::Idle(Duration::MAX);
            assert_eq!(
                step(&mut machine, T0 + Duration::from_millis(1), Event::Tick),
                [],
                "{phase:?}"
            );
            assert_eq!(
                step(&mut machine, T0 + after, Event::Tick),
                [Action::Ask(vec![id(1)])],
                "{phase:?}"
            );
        }
    }

    #[test]
    fn the_journal_is_read_again_after_the_rescan_interval() {
        let mut machine = idle();
        assert_eq!(step(&mut machine, T0 + RESCAN / 2, Event::Tick), []);
        assert_eq!(
            step(&mut machine, T0 + RESCAN, Event::Tick),
            [Action::Page(None)]
        );
    }

    #[test]
    fn deferrals_back_off_with_jitter_and_a_new_connection_forgets_them() {
        let mut machine = Delivery::new(7);
        let pauses: Vec<Duration> = (0..12).map(|n| machine.backoff(n)).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let base = BACKOFF.0.saturating_mul(1 << n).min(BACKOFF.1);
            assert!(
                *pause >= base * 3 / 4 && *pause <= base * 5 / 4,
                "{n}: {pause:?}"
            );
        }
        assert_ne!(pauses[10], pauses[11], "jitter");

        let mut machine = in_phase(Some(Phase::Waiting));
        step(&mut machine, T0, Event::Disconnected);
        step(&mut machine, T0, Event::Connected);
        let page = Event::Page {
            cursor: Some(1),
            bundles: vec![id(1)],
            end: true,
        };
        assert_eq!(step(&mut machine, T0, page), [Action::Ask(vec![id(1)])]);
    }

    /// Ten thousand and more bundles flow through bounded memory, and every one is delivered though rings are lost.
    #[test]
    fn memory_stays_bounded_while_everything_is_delivered() {
        const ALL: u64 = 20_000;
        let mut journal: std::collections::BTreeMap<u64, BundleId> =
            (0..ALL).map(|n| (n, id(n))).collect();
        let mut machine = Delivery::new(3);
        let mut queue: VecDeque<Event> = VecDeque::from([Event::Connected]);
        // Seals ring while the scan runs; most do not fit and must be found again.
        queue.extend((0..ALL).map(|n| Event::Sealed(id(n))));
        let mut now = T0;
        let mut steps = 0;
        while !journal.is_empty() {
            let event = queue.pop_front().unwrap_or_else(|| {
                now += Duration::from_secs(1);
                Event::Tick
            });
            for action in step(&mut machine, now, event) {
                match action {
                    Action::Page(after) => {
                        let from = after.map_or(0, |c| c + 1);
                        let rows: Vec<(u64, BundleId)> = journal
                            .range(from..)
                            .take(PAGE)
                            .map(|(n, b)| (*n, *b))
                            .collect();
                        queue.push_back(Event::Page {
                            cursor: rows.last().map(|r| r.0).or(after),
                            end: rows.len() < PAGE,
                            bundles: rows.into_iter().map(|r| r.1).collect(),
                        });
                    }
                    Action::Ask(ids) => {
                        assert!(ids.len() <= PAGE);
                        queue.extend(ids.into_iter().map(|b| Event::Verdict(b, Verdict::Want)));
                    }
                    Action::Offer(bundle) => {
                        journal.retain(|_, b| *b != bundle || journal_keeps(bundle));
                        queue.push_back(Event::Verdict(bundle, Verdict::Taken));
                        queue.push_back(Event::Receipt(bundle));
                    }
                    Action::Show(..) => panic!("nothing is refused here"),
                }
            }
            assert!(machine.outstanding() <= WINDOW && machine.tracked() <= TRACKED_MAX);
            assert!(machine.ready.len() <= AHEAD_MAX + PAGE);
            steps += 1;
            assert!(steps < 200 * ALL, "no progress: {} left", journal.len());
        }
        fn journal_keeps(_: BundleId) -> bool {
            false
        }
    }
}
