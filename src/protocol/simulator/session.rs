//! One end of a connection: the real core, and around it what `mesh::session` is around it: lanes, a mailbox, a clock, and
//! a disk on which its jobs are done.

use super::disk::{Ending, Fate, Row};
use super::oracle::{Flaw, Rule};
use super::world::{
    Conn, Ev, Letter, Node, Queue, Said, Session, World, bundle_id, bundle_of, cancel, is_genuine,
    member_of, peer_id, receipt,
};
use super::{Bundle, Member, Time};
use crate::bundle::{BundleId, Cancel, DeliveryState, Priority, Receipt};
use crate::delivery::custody::Event as OriginSays;
use crate::delivery::{Delivery, Verdict};
use crate::peer::PeerId;
use crate::protocol::frame::Frame;
use crate::protocol::offers::{Offered, Standing};
use crate::protocol::session::{Action, Done, Heard, Input, Job, Lane, Saying, SessionCore, Word};

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

impl Session {
    fn lane(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Express => &mut self.express,
            Lane::Now | Lane::Desk => &mut self.desk,
        }
    }
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
        let delivery = Delivery::with_limits(self.random.next(), self.plan.limits);
        let session = Session {
            conn,
            started: self.now,
            core: SessionCore::new(peer_id(peer), Vec::new(), delivery),
            desk: Queue::default(),
            express: Queue::default(),
            missed: false,
            tick_at: None,
            letters_at: [0; 2],
            passed_over: 0,
        };
        self.nodes[member].sessions.insert(peer, session);
        self.stats.sessions += 1;
        self.drive(member, peer, |core, now, _, out| core.begin(now, out));
    }

    pub(super) fn session_ends(&mut self, member: Member, peer: Member, conn: Conn) {
        let node = &mut self.nodes[member];
        let Some(session) = node.sessions.get_mut(&peer).filter(|s| s.conn == conn) else {
            return;
        };
        // What is to be shown is shown; the rest is left.
        let desk = session.desk.jobs.drain(..);
        let mut out: Vec<Action> = desk
            .filter(|job| matches!(job, Job::Show(..)))
            .map(|job| Action::Do(Lane::Desk, job))
            .collect();
        session.core.ended(std::time::Duration::MAX, &mut out);
        node.sessions.remove(&peer);
        for action in out {
            match action {
                Action::Do(_, Job::Show(id, state)) => {
                    self.set_delivery(member, peer, bundle_of(id), state);
                }
                Action::Do(..)
                | Action::Send(_)
                | Action::Take(..)
                | Action::Tell(_)
                | Action::Close(_) => {
                    self.breaks(Rule::Stalls, "a session acts without connection".into());
                }
            }
        }
        self.check_shown(member, peer);
        if self.link(member, peer).conn == Some(conn) {
            self.link_mut(member, peer).conn = None;
            self.dial_soon(member, peer, 500);
        }
    }

    /// Carries out what the core says.
    pub(super) fn act(&mut self, member: Member, peer: Member, action: Action) {
        match action {
            Action::Send(frame) => self.send(member, peer, Said::Frame(frame), false),
            Action::Do(Lane::Now, job) => {
                if let Some(done) = self.job(member, peer, job, Lane::Now) {
                    self.drive(member, peer, |core, now, care, out| {
                        core.done(now, done, care, out);
                    });
                }
            }
            Action::Do(lane, job) => {
                if let Job::Offer(id, _) = &job {
                    self.check_turn(member, peer, *id);
                }
                self.push_job(member, peer, lane, job);
            }
            Action::Take(way, offered) => {
                self.take(member, peer, way, bundle_of(offered.bundle));
            }
            Action::Tell(Word::Deferred(..)) => self.stats.deferrals += 1,
            Action::Tell(_) => {}
            Action::Close(why) => self.breaks(Rule::Stalls, format!("{member} hears {why}")),
        }
    }

    fn push_job(&mut self, member: Member, peer: Member, lane: Lane, job: Job) {
        let Some(session) = self.nodes[member].sessions.get_mut(&peer) else {
            return;
        };
        let conn = session.conn;
        let queue = session.lane(lane);
        queue.jobs.push_back(job);
        let waiting = queue.jobs.len();
        if !std::mem::replace(&mut queue.runs, true) {
            self.work_on(member, peer, conn, lane);
        }
        self.check_desk(member, peer, waiting);
    }

    fn work_on(&mut self, member: Member, peer: Member, conn: Conn, lane: Lane) {
        let delay = self.disk_time(member);
        let ev = Ev::Job {
            member,
            peer,
            conn,
            lane,
        };
        self.at(delay, ev);
    }

    /// Does one job of a lane.
    pub(super) fn work(&mut self, member: Member, peer: Member, conn: Conn, lane: Lane) {
        let sessions = &mut self.nodes[member].sessions;
        let Some(session) = sessions.get_mut(&peer).filter(|s| s.conn == conn) else {
            return;
        };
        let queue = session.lane(lane);
        let Some(job) = queue.jobs.pop_front() else {
            queue.runs = false;
            return;
        };
        if let Some(done) = self.job(member, peer, job, lane) {
            self.post(member, peer, Letter::Done(done));
        }
        self.work_on(member, peer, conn, lane);
    }

    /// What came of a job.
    fn job(&mut self, member: Member, peer: Member, job: Job, lane: Lane) -> Option<Done> {
        match job {
            // Groups do not change here.
            Job::Group => return Some(Done::Group(Vec::new(), None)),
            Job::Roll(theirs) => return Some(Done::Roll { ours: None, theirs }),
            Job::Statements | Job::Members(_) | Job::TakeStatements(_) => {}
            Job::Page(after) => return Some(self.page(member, peer, after)),
            Job::Offer(id, _) => {
                if !self.owes(member, peer, bundle_of(id)) {
                    return Some(Done::Gone(id));
                }
                self.set_delivery(member, peer, bundle_of(id), DeliveryState::Offered);
                self.send(member, peer, Said::Offer(id), lane == Lane::Express);
            }
            Job::Show(id, state) => self.set_delivery(member, peer, bundle_of(id), state),
            Job::Answer(ids) => {
                let standing = |id| (id, self.standing(member, peer, bundle_of(id)));
                return Some(Done::Standing(ids.into_iter().map(standing).collect()));
            }
            Job::Receipts(receipts) => {
                return Some(Done::Receipts(self.take_receipts(member, receipts)));
            }
            Job::Owed(mut ids) => {
                ids.retain(|id| !self.owes(member, peer, bundle_of(*id)));
                return Some(Done::NotOwed(ids));
            }
            Job::Withdrawn(ids) => {
                for bundle in ids.into_iter().map(bundle_of) {
                    self.withdrawn(member, peer, bundle);
                }
            }
            Job::Cancels(list) => return Some(Done::Ended(self.take_cancels(member, list))),
            Job::CancelsSeen(ids) => {
                for bundle in ids.into_iter().map(bundle_of) {
                    if self.nodes[member].disk.rows.ended.contains_key(&bundle) {
                        self.submit(member, Row::Seen(bundle, peer));
                    }
                }
            }
            Job::TellCancels => self.tell_cancels(member, peer),
            Job::Unfinished => return Some(Done::Unfinished(self.unfinished_of(member, peer))),
            Job::HandOver => self.custody_connected(member, peer),
            Job::OriginSays(ids, Saying::Closed) => {
                self.origin_says(member, peer, &ids, OriginSays::OriginClosed);
            }
            Job::OriginSays(ids, Saying::Unknown) => {
                self.origin_says(member, peer, &ids, OriginSays::OriginUnknown);
            }
            Job::Open(ids) => return Some(self.asked_open(member, peer, ids)),
        }
        None
    }

    fn owes(&self, member: Member, peer: Member, bundle: Bundle) -> bool {
        let rows = &self.nodes[member].disk.rows;
        rows.pending.contains(&(peer, bundle))
    }

    /// What the journal and the rings say of it.
    pub(super) fn priority_of(&self, bundle: Bundle) -> Priority {
        if self.flawed(Flaw::NoPriority) {
            return Priority::Routine;
        }
        self.truths[bundle].priority
    }

    fn page(&self, member: Member, peer: Member, after: Option<u64>) -> Done {
        let page = self.plan.limits.page;
        let pending = &self.nodes[member].disk.rows.pending;
        let pending = pending.range((peer, 0)..=(peer, Bundle::MAX));
        let ranked = pending.map(|(_, b)| (rank(self.priority_of(*b), *b), *b));
        let mut rows: Vec<(u64, Bundle)> = ranked
            .filter(|(rank, _)| after.is_none_or(|after| *rank > after))
            .collect();
        rows.sort_unstable();
        rows.truncate(page);
        Done::Page {
            cursor: rows.last().map(|(rank, _)| *rank).or(after),
            end: rows.len() < page,
            rows: rows
                .iter()
                .map(|(_, b)| (bundle_id(*b), self.priority_of(*b)))
                .collect(),
        }
    }

    /// Bundles of `peer` that began to arrive.
    fn unfinished_of(&self, member: Member, peer: Member) -> Vec<BundleId> {
        let node = &self.nodes[member];
        let unfinished = node.disk.bytes.keys().filter(|b| {
            let of_peer = self.truths[**b].origin == peer;
            of_peer && !node.disk.rows.settled.contains(b) && !node.arriving.contains(b)
        });
        unfinished.map(|b| bundle_id(*b)).collect()
    }

    /// Tells the peer what ended, as far as it is durable here and not known there.
    fn tell_cancels(&mut self, member: Member, peer: Member) {
        let rows = &self.nodes[member].disk.durable;
        let ended = rows.ended.keys().copied();
        let ours = ended.filter(|b| self.truths[*b].origin == member);
        let list: Vec<Cancel> = ours
            .filter(|b| self.truths[*b].recipients.contains(&peer))
            .filter(|b| !rows.seen.contains(&(*b, peer)))
            .map(|b| cancel(b, member))
            .collect();
        if !list.is_empty() {
            self.send(member, peer, Said::Frame(Frame::Cancels(list)), false);
        }
    }

    /// Which of these ended, as far as the origin has said so.
    fn take_cancels(&mut self, member: Member, list: Vec<Cancel>) -> Vec<BundleId> {
        let mut seen = Vec::new();
        for told in list {
            let bundle = bundle_of(told.bundle);
            let genuine = |origin| told == cancel(bundle, origin);
            if self.truths.get(bundle).is_some_and(|t| genuine(t.origin))
                && self.told_ended(member, bundle)
            {
                seen.push(told.bundle);
            }
        }
        seen
    }

    /// Puts something into the mailbox of the session that there is now.
    pub(super) fn tell(&mut self, member: Member, peer: Member, input: Input) {
        self.post(member, peer, Letter::Input(input));
    }

    fn post(&mut self, member: Member, peer: Member, letter: Letter) {
        let delay = self.random.below(3);
        if let Some(session) = self.nodes[member].sessions.get_mut(&peer) {
            let at = match letter {
                Letter::Input(_) => &mut session.letters_at[0],
                Letter::Done(_) => &mut session.letters_at[1],
            };
            *at = (*at).max(self.now + delay);
            let (conn, delay) = (session.conn, *at - self.now);
            let ev = Ev::Letter {
                member,
                peer,
                conn,
                letter,
            };
            self.at(delay, ev);
        }
    }

    /// Tells something if there is room in the mailbox; else the session is to look by itself. A deaf member loses even
    /// that.
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

    pub(super) fn letter(&mut self, member: Member, peer: Member, conn: Conn, letter: Letter) {
        let sessions = &self.nodes[member].sessions;
        if sessions.get(&peer).is_none_or(|s| s.conn != conn) {
            return;
        }
        self.drive(member, peer, |core, now, care, out| match letter {
            Letter::Input(input) => core.input(now, input, out),
            Letter::Done(done) => core.done(now, done, care, out),
        });
    }

    /// Sets the clock of a session to the next second at which something is due. Seconds in which nothing is would be
    /// ticks without effect.
    pub(super) fn plan_tick(&mut self, member: Member, peer: Member) {
        let Node { sessions, disk, .. } = &mut self.nodes[member];
        let Some(session) = sessions.get_mut(&peer) else {
            return;
        };
        let mut due = session.core.delivery().next_due();
        let owes = || disk.rows.pending.range((peer, 0)..).next();
        if session.core.delivery().tracked() == 0 && owes().is_none_or(|(p, _)| *p != peer) {
            // It would read an empty page; whoever adds to it comes here again.
            due = None;
        }
        if session.missed {
            due = Some(std::time::Duration::ZERO);
        }
        let Some(due) = due else { return };
        let due = (due.as_millis() as Time).max(self.now + 1) - session.started;
        let at = session.started + due.div_ceil(1_000) * 1_000;
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
            self.drive(member, peer, |core, now, _, out| {
                core.input(now, Input::Rescan, out);
                core.input(now, Input::Members, out);
            });
        }
        if self.flawed(Flaw::NoRescan)
            && let Some(session) = self.nodes[member].sessions.get_mut(&peer)
        {
            session.core.delivery().never_rescan();
        }
        self.drive(member, peer, |core, now, _, out| core.tick(now, out));
    }

    /// A frame is here.
    pub(super) fn arrives(&mut self, conn: Option<Conn>, from: Member, to: Member, said: Said) {
        let known = self.nodes[to].sessions.get(&from).map(|s| s.conn);
        if known.is_none() || conn.is_some_and(|conn| Some(conn) != known) {
            return;
        }
        let heard = match said {
            Said::Frame(frame) => {
                if self.flawed(Flaw::PartOfBatch) {
                    self.acknowledge_all(to, from, &frame);
                }
                if self.flawed(Flaw::AnyReceipt) {
                    self.take_any_receipt(to, from, &frame);
                }
                Heard::Frame(frame)
            }
            Said::Offer(id) => self.weigh(id),
        };
        self.drive(to, from, |core, now, care, out| {
            core.heard(now, heard, care, out);
        });
    }

    /// What the reader makes of an offer.
    fn weigh(&self, id: BundleId) -> Heard {
        let Some(truth) = self.truths.get(bundle_of(id)) else {
            // Nothing decodes to it.
            return Heard::BadOffer(id, "bad signature".into());
        };
        Heard::Offer(Offered {
            bundle: id,
            origin: peer_id(truth.origin),
            priority: truth.priority,
            renames: false,
            absent: !truth.inline,
        })
    }

    /// A mistake: one receipt in a batch counts for all of it.
    fn acknowledge_all(&mut self, member: Member, peer: Member, frame: &Frame) {
        let Frame::Verdicts(list) = frame else { return };
        let settled = |(_, verdict): &(BundleId, Verdict)| matches!(verdict, Verdict::Settled(_));
        if list.iter().any(settled) {
            for (id, _) in list {
                self.finish(member, peer, bundle_of(*id), Fate::Delivered);
            }
        }
    }

    /// A mistake: it does not matter who brings a receipt, nor for what.
    fn take_any_receipt(&mut self, member: Member, peer: Member, frame: &Frame) {
        let Frame::Verdicts(list) = frame else { return };
        let receipt = |(_, verdict): &(BundleId, Verdict)| match verdict {
            Verdict::Settled(receipt) => Some((**receipt).clone()),
            _ => None,
        };
        let receipts: Vec<Receipt> = list.iter().filter_map(receipt).collect();
        self.push_job(member, peer, Lane::Desk, Job::Receipts(receipts));
    }

    /// Of which bundles a receipt was recorded, and whose.
    fn take_receipts(&mut self, member: Member, receipts: Vec<Receipt>) -> Vec<(BundleId, PeerId)> {
        let mut taken = Vec::new();
        for receipt in receipts {
            let flawed = self.flawed(Flaw::AnyReceipt);
            if !flawed && !is_genuine(&receipt) {
                self.stats.forgeries += 1;
                continue;
            }
            let bundle = bundle_of(receipt.bundle);
            let recipient = member_of(receipt.recipient);
            if self.finish(member, recipient, bundle, Fate::Delivered) {
                taken.push((receipt.bundle, receipt.recipient));
            }
        }
        taken
    }

    /// Whether `peer` may know that there is such a bundle.
    pub(super) fn concerns(&self, peer: Member, bundle: Bundle) -> bool {
        let truth = self.truths.get(bundle);
        truth.is_some_and(|t| t.origin == peer || t.recipients.contains(&peer))
    }

    /// How `member` stands to a bundle that `peer` says it owes it.
    fn standing(&self, member: Member, peer: Member, bundle: Bundle) -> Standing {
        if !self.concerns(peer, bundle) {
            return Standing::Unknown;
        }
        let node = &self.nodes[member];
        if let Some(truth) = self.truths.get(bundle)
            && node.disk.rows.settled.contains(&bundle)
            && !node.volatile.contains(&bundle)
        {
            Standing::Settled(receipt(bundle, truth.origin, member))
        } else if let Some(why) = self.ended_here(member, bundle) {
            Standing::Ended(why)
        } else if node.fetches.contains_key(&bundle) {
            Standing::Fetching
        } else {
            Standing::Unknown
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
