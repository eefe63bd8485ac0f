//! One end of a connection, as `mesh::session` does it: the machine, the desk, and what frames lead to.

use std::collections::VecDeque;

use super::disk::{Ending, Fate, Row};
use super::oracle::{Flaw, Rule};
use super::world::{
    Conn, Ev, Frame, Input, Job, Session, World, bundle_id, bundle_of, is_genuine, member_of,
    peer_id, receipt,
};
use super::{Bundle, Member, Time};
use crate::bundle::{BundleId, DeliveryState, Priority, Receipt};
use crate::delivery::{Action, Delivery, Event, Scan, Verdict};

/// How long whoever was told to offer a bundle is believed to be about to.
const PROMISE: Time = 5_000;

/// The order in which the journal gives what is owed: the most urgent first.
fn rank(priority: Priority, bundle: Bundle) -> u64 {
    let class: u64 = match priority {
        Priority::Critical => 0,
        Priority::Priority => 1,
        Priority::Routine => 2,
        Priority::Low => 3,
        Priority::Bulk => 4,
    };
    (class << 32) | bundle as u64
}

impl World {
    pub(super) fn session_begins(&mut self, member: Member, peer: Member, conn: Conn) {
        let current = self.link(member, peer).conn == Some(conn);
        if !self.nodes[member].up || !current {
            return;
        }
        if let Some(old) = self.nodes[member].sessions.get(&peer).map(|s| s.conn) {
            self.session_ends(member, peer, old);
        }
        let mut delivery = Delivery::new(self.random.next());
        delivery.limits = self.plan.limits;
        let session = Session {
            conn,
            started: self.now,
            delivery,
            desk: VecDeque::new(),
            desk_runs: false,
            missed: false,
            tick_at: None,
            channel_at: 0,
        };
        self.nodes[member].sessions.insert(peer, session);
        self.stats.sessions += 1;
        // What we ended goes before everything else.
        let rows = &self.nodes[member].disk.durable;
        let ended: Vec<BundleId> = rows
            .ended
            .keys()
            .filter(|b| self.truths[**b].origin == member)
            .filter(|b| self.truths[**b].recipients.contains(&peer))
            .map(|b| bundle_id(*b))
            .collect();
        if !ended.is_empty() {
            self.send(member, peer, Frame::Ended(ended));
        }
        self.machine(member, peer, Event::Connected);
        self.push_job(member, peer, Job::Unfinished);
        self.custody_connected(member, peer);
    }

    pub(super) fn session_ends(&mut self, member: Member, peer: Member, conn: Conn) {
        let node = &mut self.nodes[member];
        let Some(session) = node.sessions.get_mut(&peer).filter(|s| s.conn == conn) else {
            return;
        };
        // What is to be shown is shown; the rest is left.
        let mut out: Vec<Action> = Vec::new();
        for job in session.desk.drain(..) {
            if let Job::Show(id, state) = job {
                out.push(Action::Show(id, state));
            }
        }
        session
            .delivery
            .handle(std::time::Duration::MAX, Event::Disconnected, &mut out);
        node.sessions.remove(&peer);
        for action in out {
            match action {
                Action::Show(id, state) => self.set_delivery(member, peer, bundle_of(id), state),
                Action::Page(_) | Action::Ask(_) | Action::Offer(_) => {
                    self.breaks(Rule::Stalls, "the machine acts without connection".into());
                }
            }
        }
        self.check_shown(member, peer);
        if self.link(member, peer).conn == Some(conn) {
            self.link_mut(member, peer).conn = None;
            self.dial_soon(member, peer, 500);
        }
    }

    /// Carries out what the machine says.
    pub(super) fn act(&mut self, member: Member, peer: Member, action: Action) {
        match action {
            Action::Page(after) => self.push_job(member, peer, Job::Page(after)),
            Action::Ask(ids) => self.send(member, peer, Frame::Pending(ids)),
            Action::Offer(id) => self.push_job(member, peer, Job::Offer(id)),
            Action::Show(id, state) => self.push_job(member, peer, Job::Show(id, state)),
        }
    }

    fn push_job(&mut self, member: Member, peer: Member, job: Job) {
        let Some(session) = self.nodes[member].sessions.get_mut(&peer) else {
            return;
        };
        session.desk.push_back(job);
        let (conn, waiting) = (session.conn, session.desk.len());
        if !std::mem::replace(&mut session.desk_runs, true) {
            let delay = self.disk_time(member);
            self.at(delay, Ev::Desk { member, peer, conn });
        }
        self.check_desk(member, peer, waiting);
    }

    /// Does one job of the desk.
    pub(super) fn desk(&mut self, member: Member, peer: Member, conn: Conn) {
        let node = &mut self.nodes[member];
        let Some(session) = node.sessions.get_mut(&peer).filter(|s| s.conn == conn) else {
            return;
        };
        let Some(job) = session.desk.pop_front() else {
            session.desk_runs = false;
            return;
        };
        match job {
            Job::Page(after) => {
                let page = self.plan.limits.page;
                let pending = node
                    .disk
                    .rows
                    .pending
                    .range((peer, 0)..=(peer, Bundle::MAX));
                let ranked = pending.map(|(_, b)| (rank(self.truths[*b].priority, *b), *b));
                let mut rows: Vec<(u64, Bundle)> = ranked
                    .filter(|(rank, _)| after.is_none_or(|after| *rank > after))
                    .collect();
                rows.sort_unstable();
                rows.truncate(page);
                let event = Event::Page {
                    cursor: rows.last().map(|(rank, _)| *rank).or(after),
                    end: rows.len() < page,
                    bundles: rows.iter().map(|(_, b)| bundle_id(*b)).collect(),
                };
                self.event_soon(member, peer, event);
                for (_, bundle) in rows {
                    let priority = self.truths[bundle].priority;
                    self.event_soon(member, peer, Event::Ranked(bundle_id(bundle), priority));
                }
            }
            Job::Offer(id) => {
                let bundle = bundle_of(id);
                if node.disk.rows.pending.contains(&(peer, bundle)) {
                    self.set_delivery(member, peer, bundle, DeliveryState::Offered);
                    self.send(member, peer, Frame::Offer(id));
                } else {
                    self.event_soon(member, peer, Event::Gone(id));
                }
            }
            Job::Show(id, state) => self.set_delivery(member, peer, bundle_of(id), state),
            Job::Answer(ids) => {
                let mut verdicts = Vec::with_capacity(ids.len());
                for id in ids {
                    verdicts.push((id, self.answer(member, peer, bundle_of(id))));
                }
                self.send(member, peer, Frame::Verdicts(verdicts));
            }
            Job::Receipts(receipts) => self.take_receipts(member, peer, receipts),
            Job::Owed(mut ids) => {
                ids.retain(|id| !node.disk.rows.pending.contains(&(peer, bundle_of(*id))));
                for id in &ids {
                    self.event_soon(member, peer, Event::Gone(*id));
                }
                if !ids.is_empty() {
                    self.send(member, peer, Frame::Withdrawn(ids));
                }
            }
            Job::Withdrawn(ids) => {
                for bundle in ids.into_iter().map(bundle_of) {
                    self.withdrawn(member, peer, bundle);
                }
            }
            Job::Unfinished => {
                let rows = &node.disk.rows;
                let unfinished = node.disk.bytes.keys().filter(|b| {
                    let of_peer = self.truths[**b].origin == peer;
                    of_peer && !rows.settled.contains(b) && !node.arriving.contains(b)
                });
                let ids: Vec<BundleId> = unfinished.map(|b| bundle_id(*b)).collect();
                if !ids.is_empty() {
                    self.send(member, peer, Frame::Owed(ids));
                }
            }
        }
        let delay = self.disk_time(member);
        self.at(delay, Ev::Desk { member, peer, conn });
    }

    /// Puts something into the channel of the session that there is now.
    pub(super) fn tell(&mut self, member: Member, peer: Member, input: Input) {
        let delay = self.random.below(3);
        if let Some(session) = self.nodes[member].sessions.get_mut(&peer) {
            session.channel_at = session.channel_at.max(self.now + delay);
            let (conn, delay) = (session.conn, session.channel_at - self.now);
            let ev = Ev::Input {
                member,
                peer,
                conn,
                input,
            };
            self.at(delay, ev);
        }
    }

    fn event_soon(&mut self, member: Member, peer: Member, event: Event) {
        self.tell(member, peer, Input::Event(event));
    }

    /// The same, if there is room in the channel; else the session is to look by itself. A deaf member loses even that.
    pub(super) fn ring(&mut self, member: Member, peer: Member, input: Input) {
        if self.nodes[member].deaf_until > self.now {
            self.stats.rings_lost += 1;
            return;
        }
        if self.troubled && self.random.chance(50) {
            self.stats.rings_lost += 1;
            if let Some(session) = self.nodes[member].sessions.get_mut(&peer) {
                session.missed = true;
            }
            self.plan_tick(member, peer);
            return;
        }
        self.tell(member, peer, input);
    }

    pub(super) fn input(&mut self, member: Member, peer: Member, conn: Conn, input: Input) {
        let sessions = &self.nodes[member].sessions;
        if sessions.get(&peer).is_none_or(|s| s.conn != conn) {
            return;
        }
        match input {
            Input::Sealed(bundle) => {
                let priority = self.truths[bundle].priority;
                self.machine(member, peer, Event::SealedAs(bundle_id(bundle), priority));
            }
            Input::Rescan => self.machine(member, peer, Event::Rescan),
            Input::Verdict(bundle, verdict) => {
                let verdicts = vec![(bundle_id(bundle), verdict)];
                self.send(member, peer, Frame::Verdicts(verdicts));
            }
            Input::Receipt(receipt) => self.send(member, peer, Frame::Receipts(vec![receipt])),
            Input::Owed(bundle) => self.send(member, peer, Frame::Owed(vec![bundle_id(bundle)])),
            Input::Event(event) => self.machine(member, peer, event),
        }
    }

    /// Sets the clock of a session to the next second at which something is due. Seconds in which nothing is would be
    /// ticks without effect.
    pub(super) fn plan_tick(&mut self, member: Member, peer: Member) {
        let node = &self.nodes[member];
        let Some(session) = node.sessions.get(&peer) else {
            return;
        };
        let mut due = session.delivery.next_due();
        let owes = || node.disk.rows.pending.range((peer, 0)..).next();
        if session.delivery.tracked() == 0 && owes().is_none_or(|(p, _)| *p != peer) {
            // It would read an empty page; whoever adds to it comes here again.
            due = None;
        }
        if session.missed {
            due = Some(std::time::Duration::ZERO);
        }
        let Some(due) = due else { return };
        let passed = self.now - session.started;
        let due = (due.as_millis() as Time).max(passed + 1).div_ceil(1_000) * 1_000;
        let at = session.started + due;
        if session
            .tick_at
            .is_none_or(|known| known > at || known <= self.now)
        {
            let conn = session.conn;
            let delay = at - self.now;
            if let Some(session) = self.nodes[member].sessions.get_mut(&peer) {
                session.tick_at = Some(at);
            }
            let tick = Ev::Tick {
                member,
                peer,
                conn,
                at,
            };
            self.at(delay, tick);
        }
    }

    pub(super) fn tick(&mut self, member: Member, peer: Member, conn: Conn, at: Time) {
        let node = &mut self.nodes[member];
        let Some(session) = node.sessions.get_mut(&peer).filter(|s| s.conn == conn) else {
            return;
        };
        if session.tick_at != Some(at) {
            return;
        }
        session.tick_at = None;
        let missed = std::mem::take(&mut session.missed);
        if self.flawed(Flaw::NoClock) {
            return;
        }
        if missed {
            self.machine(member, peer, Event::Rescan);
        }
        if self.flawed(Flaw::NoRescan)
            && let Some(session) = self.nodes[member].sessions.get_mut(&peer)
            && let Scan::Idle(until) = &mut session.delivery.scan
        {
            *until = std::time::Duration::from_secs(1_000_000);
        }
        self.machine(member, peer, Event::Tick);
    }

    /// A frame is here.
    pub(super) fn arrives(&mut self, conn: Option<Conn>, from: Member, to: Member, frame: Frame) {
        let known = self.nodes[to].sessions.get(&from).map(|s| s.conn);
        if known.is_none() || conn.is_some_and(|conn| Some(conn) != known) {
            return;
        }
        match frame {
            Frame::Pending(ids) => self.push_job(to, from, Job::Answer(ids)),
            Frame::Verdicts(list) => self.verdicts(to, from, list),
            Frame::Receipts(receipts) => self.push_job(to, from, Job::Receipts(receipts)),
            Frame::Offer(id) => self.offered(to, from, bundle_of(id)),
            Frame::Owed(ids) => self.push_job(to, from, Job::Owed(ids)),
            Frame::Withdrawn(ids) => self.push_job(to, from, Job::Withdrawn(ids)),
            Frame::Ended(ids) => {
                for bundle in ids.into_iter().map(bundle_of) {
                    self.told_ended(to, bundle);
                }
            }
            Frame::Open(ids) => self.asked_open(to, from, &ids),
            Frame::Closed(ids) => self.told_closed(to, from, &ids, true),
            Frame::StillOpen(ids) => self.told_closed(to, from, &ids, false),
        }
    }

    fn verdicts(&mut self, member: Member, peer: Member, list: Vec<(BundleId, Verdict)>) {
        let mut settled = Vec::new();
        for (id, verdict) in list {
            match verdict {
                Verdict::Settled(receipt) => {
                    let fits = receipt.bundle == id && receipt.recipient == peer_id(peer);
                    if fits || self.flawed(Flaw::AnyReceipt) {
                        settled.push(*receipt);
                    }
                }
                Verdict::Want
                | Verdict::Working
                | Verdict::Taken
                | Verdict::Refused(_)
                | Verdict::Deferred(_) => {
                    if let Verdict::Deferred(_) = verdict {
                        self.stats.deferrals += 1;
                    }
                    self.machine(member, peer, Event::Verdict(id, verdict));
                }
            }
        }
        if !settled.is_empty() {
            self.push_job(member, peer, Job::Receipts(settled));
        }
    }

    fn take_receipts(&mut self, member: Member, peer: Member, receipts: Vec<Receipt>) {
        for receipt in receipts {
            let flawed = self.flawed(Flaw::AnyReceipt);
            if !flawed && !is_genuine(&receipt) {
                self.stats.forgeries += 1;
                continue;
            }
            let bundle = bundle_of(receipt.bundle);
            let recipient = member_of(receipt.recipient);
            let taken = self.finish(member, recipient, bundle, Fate::Delivered);
            if taken && recipient == peer {
                self.event_soon(member, peer, Event::Receipt(receipt.bundle));
            }
        }
    }

    /// Whether `peer` is to wait because another one was told to offer this bundle. Once only: that one may not.
    fn put_off(&mut self, member: Member, peer: Member, bundle: Bundle) -> bool {
        let until = self.now + PROMISE;
        let promises = &mut self.nodes[member].promises;
        let promise = promises.entry(bundle).or_insert((peer, until, Vec::new()));
        if promise.1 <= self.now || promise.0 == peer {
            (promise.0, promise.1) = (peer, until);
            return false;
        }
        let first = !promise.2.contains(&peer);
        if first {
            promise.2.push(peer);
        }
        first
    }

    /// Whether `peer` may know that there is such a bundle.
    pub(super) fn concerns(&self, peer: Member, bundle: Bundle) -> bool {
        let truth = self.truths.get(bundle);
        truth.is_some_and(|t| t.origin == peer || t.recipients.contains(&peer))
    }

    /// The answer to "I owe you this".
    fn answer(&mut self, member: Member, peer: Member, bundle: Bundle) -> Verdict {
        if !self.concerns(peer, bundle) {
            return Verdict::Want;
        }
        let node = &self.nodes[member];
        if let Some(truth) = self.truths.get(bundle)
            && node.disk.rows.settled.contains(&bundle)
            && !node.volatile.contains(&bundle)
        {
            Verdict::Settled(Box::new(receipt(bundle, truth.origin, member)))
        } else if let Some(why) = self.ended_here(member, bundle) {
            Verdict::Refused(why)
        } else if node.fetches.contains_key(&bundle) {
            Verdict::Working
        } else if self.plan.custody && self.put_off(member, peer, bundle) {
            Verdict::Deferred("another member is about to give it".into())
        } else {
            Verdict::Want
        }
    }

    pub(super) fn ended_here(&self, member: Member, bundle: Bundle) -> Option<String> {
        let ended = self.nodes[member].disk.rows.ended.get(&bundle)?;
        Some(match ended {
            Ending::Cancelled => "cancelled by its origin".into(),
            Ending::Expired => "expired".into(),
        })
    }

    /// How a delivery stands: final states are recorded, others only shown.
    pub(super) fn set_delivery(
        &mut self,
        member: Member,
        peer: Member,
        bundle: Bundle,
        state: DeliveryState,
    ) {
        match state {
            DeliveryState::Refused(_) => {
                self.stats.refusals += 1;
                self.finish(member, peer, bundle, Fate::Refused);
            }
            DeliveryState::Queued => {
                self.nodes[member].progress.remove(&(bundle, peer));
            }
            DeliveryState::Offered | DeliveryState::Sending(_) | DeliveryState::Deferred(_) => {
                let node = &mut self.nodes[member];
                if node.disk.rows.pending.contains(&(peer, bundle)) {
                    node.progress.insert((bundle, peer), state);
                }
            }
            DeliveryState::Delivered
            | DeliveryState::Cancelled
            | DeliveryState::Superseded
            | DeliveryState::Expired => {
                self.breaks(Rule::WrongFate, format!("the machine says {state:?}"));
            }
        }
    }

    /// Records a final state. `false`: it is no bundle that this member owes that one.
    pub(super) fn finish(
        &mut self,
        member: Member,
        recipient: Member,
        bundle: Bundle,
        fate: Fate,
    ) -> bool {
        let known = self.nodes[member].disk.rows.fates.get(&(bundle, recipient));
        let own = self.nodes[member].disk.rows.own.contains(&bundle);
        let Some(known) = known.copied() else {
            self.nodes[member].progress.remove(&(bundle, recipient));
            if fate == Fate::Delivered {
                self.custody_receipt(member, recipient, bundle);
            }
            return false;
        };
        if fate == Fate::Delivered {
            self.check_delivered(member, recipient, bundle);
        }
        // A receipt that comes after another end still tells the truth; nothing undoes a receipt, and a refusal undoes
        // nothing that the origin decided.
        let yields = match (known, fate) {
            (Fate::Delivered, _) => false,
            (Fate::Pending, _) | (_, Fate::Delivered) => known != fate,
            (Fate::Refused | Fate::Cancelled | Fate::Superseded | Fate::Expired, _) => false,
        };
        if yields {
            self.stats.fates += 1;
            self.submit(member, Row::Fate(bundle, recipient, fate));
            if own {
                self.maybe_closed(member, bundle);
            }
        }
        self.nodes[member].progress.remove(&(bundle, recipient));
        match fate {
            Fate::Delivered => self.custody_receipt(member, recipient, bundle),
            Fate::Refused => self.custody_gone(member, recipient, bundle),
            Fate::Pending | Fate::Cancelled | Fate::Superseded | Fate::Expired => {}
        }
        true
    }

    /// Writes a row, which is durable soon.
    pub(super) fn submit(&mut self, member: Member, row: Row) {
        let gather = self.random.between(8, 60) * self.nodes[member].slow;
        let stuck = self.nodes[member].stuck_until.saturating_sub(self.now);
        let node = &mut self.nodes[member];
        node.disk.submit(row);
        if !std::mem::replace(&mut node.commit_due, true) {
            let run = node.run;
            self.at(gather + stuck, Ev::Commit { member, run });
        }
        if let Row::Fate(_, recipient, Fate::Pending) = row {
            self.plan_tick(member, recipient);
        }
    }
}
