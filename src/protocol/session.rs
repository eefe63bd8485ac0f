//! A session with one peer, from the accepted hello to its end: what is heard and what happens goes in ([`Heard`],
//! [`Input`], [`Done`]), what is to be done comes out ([`Action`]).
//!
//! Whoever drives it does each [`Job`] in the lane named for it, one after another within a lane, and gives back what came
//! of it. Nothing that a session needs is lost with it: a new one with the same peer begins from the disk again.
//!
//! # Invariants
//! 1. What is urgent is said and looked up before what is not, and never waits in the lane of the rest.
//! 2. A frame leads to at most one job that keeps what the frame brought ([`Job::is_heard`]).
//! 3. A receipt counts only from its recipient here, and is checked by the job that records it.

use std::time::Duration;

use crate::bundle::{BundleId, Cancel, DeliveryState, Priority, Receipt};
use crate::delivery::{self, Delivery, Event, Verdict, is_urgent};
use crate::peer::PeerId;
use crate::peer::roll::SignedStatement;
use crate::protocol::care::Care;
use crate::protocol::frame::{Frame, Have, LIST_MAX, MemberFrame, Told};
use crate::protocol::offers::{Offered, Standing, Way};

/// Why an offer is put off that there is no memory for.
pub(crate) const NO_ROOM: &str = "too many offers at once";

/// What the peer says.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Any frame but an offer.
    Frame(Frame),
    /// An offer whose signature is right; the driver keeps the rest of it.
    Offer(Offered),
    /// An offer that is none, and why.
    BadOffer(BundleId, String),
    /// An offer for which there is no room now.
    Later(BundleId),
}

/// What the rest of the program tells a session.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// A bundle was sealed.
    Sealed(BundleId, Priority),
    /// A receipt for a bundle that this peer sealed or offered is ready.
    Receipt(Receipt),
    /// Read the journal again.
    Rescan,
    /// Members changed: tell the peer.
    Members,
    /// Ask whether the peer still owes us these.
    Owed(Vec<BundleId>),
    Say(Frame),
    /// What became of the peer's offer.
    Verdict(BundleId, Verdict),
    /// For the delivery machine.
    Event(Event),
}

/// Where a job is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Before anything else happens. It never waits for the network; of the disk it reads the members at most.
    Now,
    /// Reads and writes of the disk, in order.
    Desk,
    /// The same for urgent offers, which wait for nothing else.
    Express,
}

/// What the origin of bundles says of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Saying {
    /// They are final for every recipient.
    Closed,
    /// It knows nothing of them.
    Unknown,
}

/// What is to be looked up or written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Job {
    /// What do we believe the group to be? [`Done::Group`].
    Group,
    /// The same, and the peer's roll has this hash. [`Done::Roll`].
    Roll(Option<[u8; 32]>),
    /// Say all statements of our roll.
    Statements,
    /// A page of what the peer is owed, after this rank. [`Done::Page`].
    Page(Option<u64>),
    /// Make an offer and say it; [`Done::Gone`] if that is impossible.
    Offer(BundleId, Priority),
    /// Record how a delivery stands. Done even if the session is over.
    Show(BundleId, DeliveryState),
    /// How do we stand to these? [`Done::Standing`].
    Answer(Vec<BundleId>),
    /// Check and record receipts. [`Done::Receipts`].
    Receipts(Vec<Receipt>),
    /// Which of these do we not owe the peer? [`Done::NotOwed`].
    Owed(Vec<BundleId>),
    /// The peer does not owe us these.
    Withdrawn(Vec<BundleId>),
    /// Check and record ends of bundles. [`Done::Ended`].
    Cancels(Vec<Cancel>),
    /// The peer knows that these ended.
    CancelsSeen(Vec<BundleId>),
    /// Say which bundles ended, as far as the peer may not know.
    TellCancels,
    /// Which bundles of the peer began to arrive, and did not come to an end? [`Done::Unfinished`].
    Unfinished,
    /// Say what became of bundles of the peer that we keep for others, and ask which of them are closed.
    HandOver,
    /// The peer says this of bundles of its own.
    OriginSays(Vec<BundleId>, Saying),
    /// Are these closed, or not, if they are ours? If they are the peer's, they are not. [`Done::Open`].
    Open(Vec<BundleId>),
    /// The peer's word on who is a member and where.
    Members(Vec<Told>),
    /// Check and record statements.
    TakeStatements(Vec<SignedStatement>),
}

impl Job {
    /// Whether it keeps what a frame brought, and with it the room that was taken for the frame.
    pub(crate) fn is_heard(&self) -> bool {
        match self {
            Self::Answer(_)
            | Self::Receipts(_)
            | Self::Owed(_)
            | Self::Withdrawn(_)
            | Self::Cancels(_)
            | Self::CancelsSeen(_)
            | Self::OriginSays(..)
            | Self::Open(_)
            | Self::Members(_)
            | Self::TakeStatements(_) => true,
            Self::Group
            | Self::Roll(_)
            | Self::Statements
            | Self::Page(_)
            | Self::Offer(..)
            | Self::Show(..)
            | Self::TellCancels
            | Self::Unfinished
            | Self::HandOver => false,
        }
    }
}

/// What came of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// Members that the peer may be told of, and the hash of our roll.
    Group(Vec<Told>, Option<[u8; 32]>),
    /// The hash of our roll, and of the peer's if it said so.
    Roll {
        /// `None`: we have none.
        ours: Option<[u8; 32]>,
        /// `None`: it did not say.
        theirs: Option<[u8; 32]>,
    },
    /// What the peer is owed.
    Page {
        /// The rank to go on from.
        cursor: Option<u64>,
        /// In order.
        rows: Vec<(BundleId, Priority)>,
        /// Nothing follows.
        end: bool,
    },
    /// It is not owed any more, or cannot be offered.
    Gone(BundleId),
    /// How we stand to what the peer could offer.
    Standing(Vec<(BundleId, Standing)>),
    /// Receipts that were recorded: of which bundle, and whose.
    Receipts(Vec<(BundleId, PeerId)>),
    /// The peer is not owed these.
    NotOwed(Vec<BundleId>),
    /// These are known to have ended.
    Ended(Vec<BundleId>),
    /// The peer's bundles that began to arrive.
    Unfinished(Vec<BundleId>),
    /// Answers to what the peer asked.
    Open {
        /// Final for every recipient.
        closed: Vec<BundleId>,
        /// Not yet.
        open: Vec<BundleId>,
        /// Not known here.
        unknown: Vec<BundleId>,
    },
}

/// A word for the layer that fetches, or for the operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// The peer has these parts of a bundle.
    Have(Have),
    /// The peer does not serve parts of these any more.
    Gone(Vec<BundleId>),
    /// Another run of our node is alive.
    Twin([u8; 16]),
    /// The peer refuses a bundle.
    Refused(BundleId, String),
    /// The peer puts a bundle off.
    Deferred(BundleId, String),
    /// The peer brought a receipt as its own that is not.
    ForeignReceipt(BundleId),
    /// An offer of the peer is none.
    BadOffer(BundleId, String),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Say this.
    Send(Frame),
    /// Do this, after all that was put into that lane before.
    Do(Lane, Job),
    /// Take the offer that is being heard.
    Take(Way, Offered),
    /// Pass this on.
    Tell(Word),
    /// Close the connection: the peer broke the rules.
    Close(&'static str),
}

/// One session.
#[derive(Debug)]
pub(crate) struct SessionCore {
    peer: PeerId,
    delivery: Delivery,
    members_told: Vec<Told>,
    /// The roll that the peer knows to be ours.
    roll_told: Option<[u8; 32]>,
}

impl SessionCore {
    /// With `peer`, to which `members` were told in the hello. `delivery` is a new machine.
    pub(crate) fn new(peer: PeerId, members: Vec<Told>, delivery: Delivery) -> Self {
        Self {
            peer,
            delivery,
            members_told: members,
            roll_told: None,
        }
    }

    /// Both hellos were accepted.
    pub(crate) fn begin(&mut self, now: Duration, out: &mut Vec<Action>) {
        out.push(Action::Do(Lane::Now, Job::Roll(None)));
        // What ended comes before what is offered.
        out.push(Action::Do(Lane::Desk, Job::TellCancels));
        self.event(now, Event::Connected, out);
        out.push(Action::Do(Lane::Desk, Job::Unfinished));
        out.push(Action::Do(Lane::Desk, Job::HandOver));
    }

    /// The peer said something.
    pub(crate) fn heard(
        &mut self,
        now: Duration,
        heard: Heard,
        care: &mut Care,
        out: &mut Vec<Action>,
    ) {
        match heard {
            Heard::Frame(frame) => self.frame(now, frame, out),
            Heard::Offer(offered) => {
                if offered.origin != self.peer {
                    care.offered(offered.bundle, self.peer);
                }
                out.push(Action::Take(offered.way(), offered));
            }
            Heard::BadOffer(bundle, why) => {
                out.push(Action::Tell(Word::BadOffer(bundle, why.clone())));
                out.push(verdict(bundle, Verdict::Refused(why)));
            }
            Heard::Later(bundle) => out.push(verdict(bundle, Verdict::Deferred(NO_ROOM.into()))),
        }
    }

    fn frame(&mut self, now: Duration, frame: Frame, out: &mut Vec<Action>) {
        let job = match frame {
            Frame::Pending(ids) => Job::Answer(ids),
            Frame::Verdicts(list) => return self.verdicts(now, list, out),
            Frame::Receipts(receipts) => Job::Receipts(receipts),
            Frame::Members(told) => Job::Members(told),
            Frame::Owed(ids) => Job::Owed(ids),
            Frame::Withdrawn(ids) => Job::Withdrawn(ids),
            Frame::Cancels(list) => Job::Cancels(list),
            Frame::CancelsSeen(ids) => Job::CancelsSeen(ids),
            Frame::Closed(ids) => Job::OriginSays(ids, Saying::Closed),
            Frame::Unknown(ids) => Job::OriginSays(ids, Saying::Unknown),
            Frame::Open(ids) => Job::Open(ids),
            Frame::Member(MemberFrame::Statements(told)) => Job::TakeStatements(told),
            Frame::Member(MemberFrame::Roll(theirs)) => {
                return out.push(Action::Do(Lane::Now, Job::Roll(Some(theirs))));
            }
            Frame::Have(have) => return out.push(Action::Tell(Word::Have(have))),
            Frame::Gone(ids) => return out.push(Action::Tell(Word::Gone(ids))),
            Frame::Twin(run) => return out.push(Action::Tell(Word::Twin(run))),
            Frame::Proof { .. }
            | Frame::Hello(_)
            | Frame::Offer(_)
            | Frame::Range(_)
            | Frame::Member(
                MemberFrame::Redeem { .. } | MemberFrame::Welcome(_) | MemberFrame::Denied(_),
            ) => return out.push(Action::Close("unexpected control frame")),
        };
        out.push(Action::Do(Lane::Desk, job));
    }

    fn verdicts(&mut self, now: Duration, list: Vec<(BundleId, Verdict)>, out: &mut Vec<Action>) {
        let mut settled = Vec::new();
        for (bundle, verdict) in list {
            match &verdict {
                Verdict::Settled(receipt) => {
                    if receipt.bundle == bundle && receipt.recipient == self.peer {
                        settled.push((**receipt).clone());
                    } else {
                        out.push(Action::Tell(Word::ForeignReceipt(bundle)));
                    }
                    continue;
                }
                Verdict::Refused(why) => {
                    out.push(Action::Tell(Word::Refused(bundle, why.clone())));
                }
                Verdict::Deferred(why) => {
                    out.push(Action::Tell(Word::Deferred(bundle, why.clone())));
                }
                Verdict::Want | Verdict::Working | Verdict::Taken => {}
            }
            self.event(now, Event::Verdict(bundle, verdict), out);
        }
        if !settled.is_empty() {
            out.push(Action::Do(Lane::Desk, Job::Receipts(settled)));
        }
    }

    /// The rest of the program says something.
    pub(crate) fn input(&mut self, now: Duration, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Sealed(bundle, priority) => {
                self.event(now, Event::Sealed(bundle, priority), out);
            }
            Input::Receipt(receipt) => out.push(Action::Send(Frame::Receipts(vec![receipt]))),
            Input::Rescan => {
                out.push(Action::Do(Lane::Desk, Job::TellCancels));
                self.event(now, Event::Rescan, out);
            }
            Input::Members => out.push(Action::Do(Lane::Now, Job::Group)),
            Input::Owed(ids) => out.push(Action::Send(Frame::Owed(ids))),
            Input::Say(frame) => out.push(Action::Send(frame)),
            Input::Verdict(bundle, says) => out.push(verdict(bundle, says)),
            Input::Event(event) => self.event(now, event, out),
        }
    }

    /// A job was done.
    pub(crate) fn done(
        &mut self,
        now: Duration,
        done: Done,
        care: &mut Care,
        out: &mut Vec<Action>,
    ) {
        match done {
            Done::Group(members, roll) => {
                self.tell_roll(roll, out);
                self.tell_members(members, out);
            }
            Done::Roll { ours, theirs: None } => {
                // In a group that did not change nothing more is said.
                self.roll_told = ours;
                let said = ours.map(|digest| Frame::Member(MemberFrame::Roll(digest)));
                out.extend(said.map(Action::Send));
            }
            Done::Roll { ours, theirs } => {
                if ours.is_some() && ours != theirs {
                    self.roll_told = None;
                    self.tell_roll(ours, out);
                }
            }
            Done::Page { cursor, rows, end } => {
                let bundles = rows.iter().map(|(bundle, _)| *bundle).collect();
                let page = Event::Page {
                    cursor,
                    bundles,
                    end,
                };
                self.event(now, page, out);
                let ranked = rows.into_iter();
                for (bundle, priority) in ranked.filter(|(_, p)| *p != Priority::default()) {
                    self.event(now, Event::Ranked(bundle, priority), out);
                }
            }
            Done::Gone(bundle) => self.event(now, Event::Gone(bundle), out),
            Done::Standing(list) => {
                let answer = |(bundle, standing): (BundleId, Standing)| {
                    if standing == Standing::Published {
                        care.has_too(bundle, self.peer);
                    }
                    let put_off = || care.put_off(bundle, self.peer, now);
                    (bundle, standing.verdict(put_off))
                };
                let verdicts = list.into_iter().map(answer).collect();
                out.push(Action::Send(Frame::Verdicts(verdicts)));
            }
            Done::Receipts(list) => {
                let of_peer = list.into_iter().filter(|(_, whose)| *whose == self.peer);
                let bundles: Vec<BundleId> = of_peer.map(|(bundle, _)| bundle).collect();
                for bundle in bundles {
                    self.event(now, Event::Receipt(bundle), out);
                }
            }
            Done::NotOwed(ids) => {
                for bundle in &ids {
                    self.event(now, Event::Gone(*bundle), out);
                }
                say(ids, Frame::Withdrawn, out);
            }
            Done::Ended(ids) => say(ids, Frame::CancelsSeen, out),
            Done::Unfinished(ids) => {
                for page in ids.chunks(LIST_MAX) {
                    say(page.to_vec(), Frame::Owed, out);
                }
            }
            Done::Open {
                closed,
                open,
                unknown,
            } => {
                say(closed, Frame::Closed, out);
                say(open, Frame::Open, out);
                say(unknown, Frame::Unknown, out);
            }
        }
    }

    /// Time went by.
    pub(crate) fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.event(now, Event::Tick, out);
    }

    /// The connection is gone: what was shown of deliveries on their way is so no more. It may begin again.
    pub(crate) fn ended(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.event(now, Event::Disconnected, out);
        self.roll_told = None;
    }

    /// Tells our roll if it is not the one that the peer knows.
    fn tell_roll(&mut self, ours: Option<[u8; 32]>, out: &mut Vec<Action>) {
        if ours != self.roll_told {
            self.roll_told = ours;
            out.push(Action::Do(Lane::Now, Job::Statements));
        }
    }

    fn tell_members(&mut self, mut members: Vec<Told>, out: &mut Vec<Action>) {
        members.retain(|member| member.id != self.peer);
        members.sort();
        if members != self.members_told {
            out.push(Action::Send(Frame::Members(members.clone())));
            self.members_told = members;
        }
    }

    /// Feeds the delivery machine.
    fn event(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        let mut wanted = Vec::new();
        self.delivery.handle(now, event, &mut wanted);
        for action in wanted {
            out.push(match action {
                delivery::Action::Page(after) => Action::Do(Lane::Desk, Job::Page(after)),
                delivery::Action::Ask(ids) => Action::Send(Frame::Pending(ids)),
                delivery::Action::Offer(bundle) => {
                    let priority = self.delivery.priority(bundle);
                    let lane = if is_urgent(priority) {
                        Lane::Express
                    } else {
                        Lane::Desk
                    };
                    Action::Do(lane, Job::Offer(bundle, priority))
                }
                delivery::Action::Show(bundle, state) => {
                    Action::Do(Lane::Desk, Job::Show(bundle, state))
                }
            });
        }
    }

    /// What it owes the peer, for the simulator to look at.
    #[cfg(test)]
    pub(crate) fn delivery(&mut self) -> &mut Delivery {
        &mut self.delivery
    }
}

fn verdict(bundle: BundleId, verdict: Verdict) -> Action {
    Action::Send(Frame::Verdicts(vec![(bundle, verdict)]))
}

/// Says something of these, if there are any.
fn say(ids: Vec<BundleId>, frame: impl Fn(Vec<BundleId>) -> Frame, out: &mut Vec<Action>) {
    if !ids.is_empty() {
        out.push(Action::Send(frame(ids)));
    }
}

#[cfg(test)]
mod tests;
