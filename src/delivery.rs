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
//! 3. A bundle leaves only by receipt, refusal, the journal not owing it any more, a question without answer, or the end
//!    of the connection; in the last two cases it is found in the journal again.
//! 4. The live push is an optimisation: every state has a time after which the bundle is asked about again. A question
//!    that is not answered is forgotten, so that it keeps no room from others, and comes again with the next scan; so do
//!    bundles that are deferred again and again, where there is no room for what was not read yet.

pub(crate) mod custody;

mod ready;

use std::collections::HashMap;
use std::time::Duration;

use self::ready::Ready;
use crate::bundle::{BundleId, DeliveryState, Priority, Receipt};

/// Offers sent and not answered. With content of 64 KiB each that is 16 MiB at the receiver; measured to keep a
/// loopback connection busy with files of 4 KiB.
pub(crate) const WINDOW: usize = 256;

/// Offers of urgent bundles that may be unanswered beyond [`WINDOW`], so that these never wait for lesser ones.
pub(crate) const RESERVED: usize = 32;

/// This part of the window is left to bundles that are not urgent.
const OTHERS_PART: usize = 8;

/// Ids asked about in one message, and rows read from the journal at once.
pub(crate) const PAGE: usize = 256;

/// Ids asked about and not answered, or answered and waiting for the window.
const AHEAD_MAX: usize = 4 * PAGE;

/// Bundles tracked for one peer in all states: about 1 MiB.
pub(crate) const TRACKED_MAX: usize = 8192;

/// Without an answer to a question or an offer for this long, it is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Published by the peer but no receipt for this long: ask, the receipt may have been lost with an event.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);

/// A fetch without a sign of life for this long is asked about.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the journal is read again though nothing rang.
pub(crate) const RESCAN: Duration = Duration::from_secs(5);

/// First and longest pause after a deferral.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(300));

/// How much one machine holds. There is one set of limits; tests use smaller ones, to meet them often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    pub(crate) window: usize,
    pub(crate) page: usize,
    pub(crate) ahead: usize,
    pub(crate) tracked: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: WINDOW,
            page: PAGE,
            ahead: AHEAD_MAX,
            tracked: TRACKED_MAX,
        }
    }
}

/// What a peer says about a bundle it was asked about or offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
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
pub(crate) enum Event {
    /// The peer's hello was accepted.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// A bundle of this priority that the peer is owed was sealed just now.
    Sealed(BundleId, Priority),
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
pub(crate) enum Action {
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
    /// Something was shown of it on this connection.
    begun: bool,
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
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    limits: Limits,
    connected: bool,
    tracks: HashMap<BundleId, Track>,
    ready: Ready,
    asked: usize,
    offered: usize,
    /// Of those the urgent ones.
    urgent: usize,
    scan: Scan,
    /// Something was dropped or rang during a scan: begin again at its end.
    again: bool,
    /// Until then no room is made for others.
    keep: Duration,
    /// State of the jitter generator.
    seed: u64,
}

impl Delivery {
    /// A machine that knows nothing yet. `seed` makes its jitter reproducible.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_limits(seed, Limits::default())
    }

    /// The same, with limits of its own.
    pub(crate) fn with_limits(seed: u64, limits: Limits) -> Self {
        Self {
            limits,
            connected: false,
            tracks: HashMap::new(),
            ready: Ready::default(),
            asked: 0,
            offered: 0,
            urgent: 0,
            scan: Scan::Idle(Duration::ZERO),
            again: false,
            keep: Duration::ZERO,
            seed: seed | 1,
        }
    }

    /// Bundles tracked now.
    #[cfg(test)]
    pub(crate) fn tracked(&self) -> usize {
        self.tracks.len()
    }

    /// Offers not answered yet.
    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> usize {
        self.offered
    }

    /// When a tick next does something, if nothing else happens before: then it does at every tick.
    #[cfg(test)]
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let tracks = self.tracks.values().filter(|t| t.phase != Phase::Ready);
        let scan = match self.scan {
            Scan::Idle(until) => Some(until),
            Scan::Due(_) | Scan::Reading => None,
        };
        tracks.map(|t| t.until).chain(scan).min()
    }

    /// How many wait to be offered, with those that are gone and were not noticed yet.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.ready.len()
    }

    /// What could be offered next.
    #[cfg(test)]
    pub(crate) fn ready(&self) -> impl Iterator<Item = BundleId> {
        let is_ready = |b: &BundleId| self.tracks.get(b).is_some_and(|t| t.phase == Phase::Ready);
        self.ready.iter().filter(is_ready)
    }

    /// A mistake, to see that it is found: the journal is not read again by itself.
    #[cfg(test)]
    pub(crate) fn never_rescan(&mut self) {
        if let Scan::Idle(until) = &mut self.scan {
            *until = Duration::from_secs(1_000_000_000);
        }
    }

    /// How urgent a bundle is, as far as known.
    pub(crate) fn priority(&self, bundle: BundleId) -> Priority {
        let track = self.tracks.get(&bundle);
        track.map_or_else(Priority::default, |track| track.priority)
    }

    /// Takes one event at time `now` (of any monotonic clock) and appends what is to be done to `out`.
    pub(crate) fn handle(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Connected => {
                self.forget_all();
                self.connected = true;
                self.scan = Scan::Due(None);
            }
            Event::Disconnected => self.disconnected(out),
            Event::Sealed(bundle, priority) => self.sealed(now, bundle, priority),
            Event::Ranked(bundle, priority) => self.rank(bundle, priority),
            Event::Rescan => self.rescan(),
            Event::Page {
                cursor,
                bundles,
                end,
            } => self.page(now, cursor, bundles, end, out),
            Event::Verdict(bundle, verdict) => self.verdict(now, bundle, verdict, out),
            Event::Receipt(bundle) => self.drop_track(bundle),
            Event::Gone(bundle) => self.give_up(bundle, out),
            Event::Serving(bundle, bytes) => self.serving(now, bundle, bytes, out),
            Event::Tick => self.tick(now, out),
        }
        if self.connected {
            self.advance(now, out);
        }
    }

    fn disconnected(&mut self, out: &mut Vec<Action>) {
        let begun = self.tracks.iter().filter(|(_, t)| t.begun);
        let mut queued: Vec<BundleId> = begun.map(|(b, _)| *b).collect();
        queued.sort_unstable();
        let show = |bundle| Action::Show(bundle, DeliveryState::Queued);
        out.extend(queued.into_iter().map(show));
        self.forget_all();
    }

    fn forget_all(&mut self) {
        self.connected = false;
        self.tracks.clear();
        self.ready.clear();
        (self.asked, self.offered, self.urgent, self.again) = (0, 0, 0, false);
        self.scan = Scan::Idle(Duration::ZERO);
    }

    fn sealed(&mut self, now: Duration, bundle: BundleId, priority: Priority) {
        if !self.connected || self.tracks.contains_key(&bundle) {
            return;
        }
        let ahead = if is_urgent(priority) {
            2 * self.limits.ahead
        } else {
            self.limits.ahead
        };
        if self.ready.len() >= ahead || self.tracks.len() >= self.limits.tracked {
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
            let before = std::mem::replace(&mut track.priority, priority);
            match track.phase {
                Phase::Ready => self.ready.move_to(bundle, before, priority),
                Phase::Offered => {
                    self.urgent -= usize::from(is_urgent(before));
                    self.urgent += usize::from(is_urgent(priority));
                }
                Phase::Asked | Phase::Fetching | Phase::Taken | Phase::Waiting => {}
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
        let mut new: Vec<BundleId> = bundles
            .into_iter()
            .filter(|b| !self.tracks.contains_key(b))
            .collect();
        // What was sealed while the page was read may have taken the room for it.
        let room = self.limits.tracked - self.tracks.len();
        if new.len() > room {
            new.truncate(room);
            self.again = true;
        }
        for bundle in &new {
            self.set(now, *bundle, Phase::Asked);
        }
        for page in new.chunks(self.limits.page) {
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
        let (mut due, mut unanswered) = (Vec::new(), Vec::new());
        for (bundle, track) in self.tracks.iter().filter(|(_, t)| t.until <= now) {
            match track.phase {
                Phase::Ready => {}
                Phase::Asked => unanswered.push(*bundle),
                Phase::Offered | Phase::Fetching | Phase::Taken | Phase::Waiting => {
                    due.push(*bundle);
                }
            }
        }
        // A given order of events gives one order of actions.
        due.sort_unstable();
        unanswered.sort_unstable();
        // It may not be owed any more, or the peer does not want to say: that must not keep others out. If it is owed,
        // the journal says so at the next scan.
        for bundle in unanswered {
            self.give_up(bundle, out);
        }
        for bundle in &due {
            self.set(now, *bundle, Phase::Asked);
        }
        for page in due.chunks(self.limits.page) {
            out.push(Action::Ask(page.to_vec()));
        }
        self.make_room(now);
        if let Scan::Idle(until) = self.scan
            && self.connected
            && until <= now
        {
            self.scan = Scan::Due(None);
        }
    }

    /// Where deferred ones take all the room, those deferred most often leave it to what was not read yet. The journal
    /// has them, and the next scan finds them. Not too often: each of them costs an offer.
    fn make_room(&mut self, now: Duration) {
        let Limits { page, tracked, .. } = self.limits;
        let full = self.tracks.len() + page > tracked;
        if !full || !matches!(self.scan, Scan::Due(_)) || now < self.keep {
            return;
        }
        self.keep = now + RESCAN;
        let waiting = self
            .tracks
            .iter()
            .filter(|(_, t)| t.phase == Phase::Waiting);
        let mut waiting: Vec<(u32, BundleId)> = waiting.map(|(b, t)| (t.deferrals, *b)).collect();
        waiting.sort_unstable();
        for (_, bundle) in waiting.into_iter().rev().take(page) {
            self.drop_track(bundle);
        }
    }

    /// Sends what the window admits, and reads on in the journal when there is room.
    fn advance(&mut self, now: Duration, out: &mut Vec<Action>) {
        loop {
            // Where urgent ones hold nearly all places, those kept for them are for the others' turn too: else a constant
            // urgent load, which fills each place as it becomes free, would leave the window to nobody else.
            let few_others = self.offered - self.urgent < self.limits.window.div_ceil(OTHERS_PART);
            let within = self.offered < self.limits.window + RESERVED;
            let least = if self.offered < self.limits.window || (few_others && within) {
                Priority::Bulk
            } else if within {
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
        let Limits {
            page,
            ahead,
            tracked,
            ..
        } = self.limits;
        // Not counting urgent ones: a queue that these keep full would never let the others be read.
        let waiting = self.asked + self.ready.len_of_others();
        let room = waiting + page <= ahead && self.tracks.len() + page <= tracked;
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
        let known = self.tracks.get(&bundle);
        let (deferrals, begun) = known.map_or((0, false), |t| (t.deferrals, t.begun));
        let begun = match phase {
            Phase::Asked | Phase::Ready => begun,
            Phase::Offered | Phase::Fetching | Phase::Taken | Phase::Waiting => true,
        };
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
                begun,
                priority,
            },
        );
        self.count(&bundle, true);
    }

    /// Forgets a bundle without an end to record: what was shown of its way is not so any more.
    fn give_up(&mut self, bundle: BundleId, out: &mut Vec<Action>) {
        if self.tracks.get(&bundle).is_some_and(|t| t.begun) {
            out.push(Action::Show(bundle, DeliveryState::Queued));
        }
        self.drop_track(bundle);
    }

    fn drop_track(&mut self, bundle: BundleId) {
        self.count(&bundle, false);
        self.tracks.remove(&bundle);
    }

    /// Keeps the counters in step with the phase of `bundle`.
    fn count(&mut self, bundle: &BundleId, entering: bool) {
        let Some(track) = self.tracks.get(bundle) else {
            return;
        };
        let urgent = usize::from(is_urgent(track.priority));
        let change = |counter: &mut usize, by: usize| {
            *counter = if entering {
                *counter + by
            } else {
                *counter - by
            };
        };
        match track.phase {
            Phase::Asked => change(&mut self.asked, 1),
            Phase::Offered => {
                change(&mut self.offered, 1);
                change(&mut self.urgent, urgent);
            }
            Phase::Ready | Phase::Fetching | Phase::Taken | Phase::Waiting => {}
        }
    }

    fn backoff(&mut self, deferrals: u32) -> Duration {
        let (first, most) = BACKOFF;
        let base = first.saturating_mul(1 << deferrals.min(16)).min(most);
        jittered(base, &mut self.seed)
    }
}

/// Whether places are kept free for bundles of that priority.
pub(crate) fn is_urgent(priority: Priority) -> bool {
    priority >= Priority::Priority
}

/// `base` plus or minus a quarter of it, by the next number of the generator in `seed` (xorshift; not for secrets).
pub(crate) fn jittered(base: Duration, seed: &mut u64) -> Duration {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    let per_mille = 750 + (*seed >> 32) % 500;
    base.saturating_mul(per_mille as u32) / 1000
}

#[cfg(test)]
mod tests;
