//! The rules, looked at from outside: what every member has on disk is known here, whatever it says.

use super::disk::{Chunk, Fate};
use super::world::{Ev, Said, World, bundle_of, member_of};
use super::{Bundle, Member, Time};
use crate::bundle::{BundleId, DeliveryState, Receipt};
use crate::delivery::{RESERVED, Verdict};
use crate::protocol::frame::Frame;

/// What must never happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rule {
    /// A bundle is delivered to its user at most once.
    ShownTwice,
    /// What is shown is what was sent, to whom it was sent.
    WrongBytes,
    /// A receipt is given only when the bytes are durable.
    EarlyReceipt,
    /// Delivered means that the recipient has it.
    FalseReceipt,
    /// A bundle whose origin it ended is not shown by who knows.
    ShownAfterEnd,
    /// An older version never replaces a newer one.
    OldOverNew,
    /// A bundle ends by age not before its time.
    EndsEarly,
    /// Memory is bounded.
    Memory,
    /// What was sealed and durable is known until it is final.
    Forgotten,
    /// Everybody gets everything in time: no peer starves, nothing stalls.
    Stalls,
    /// A final state says what happened.
    WrongFate,
    /// What is urgent does not wait for what is not, but for the turns of those that waited long.
    Priority,
}

/// A deliberate mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flaw {
    /// The receipt is sent when the bundle is published, not when it is durable.
    EarlyReceipt,
    /// The signature of a receipt is not looked at, nor who brings it.
    AnyReceipt,
    /// What was settled is taken again.
    Republish,
    /// A cancel is not looked at.
    IgnoreCancel,
    /// Chunks are not checked.
    NoHash,
    /// Fetches beyond the cap are dropped (S1).
    DropBeyondCap,
    /// Versions are not compared.
    OldOverNew,
    /// Recovery gives a name that was given.
    RecoverTwice,
    /// Age is told by the clock on the wall.
    WallClock,
    /// A crash takes what is pending.
    ForgetOnCrash,
    /// The journal is read once, and when something rings.
    NoRescan,
    /// Nothing is asked or read a second time (S25: a lossy trigger is the only one).
    NoClock,
    /// What is urgent is taken for routine.
    NoPriority,
    /// A batch that is acknowledged in part counts as acknowledged.
    PartOfBatch,
}

/// Offers in a row that may be made while a more urgent one could be: of each lesser priority that waited long, and such
/// as were on their way when it came.
const TURNS: u32 = 4;

/// A rule that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) rule: Rule,
    pub(super) text: String,
    pub(super) at: Time,
    pub(super) seed: u64,
}

/// What went on, so that a schedule in which nothing does is seen.
#[derive(Clone, Default, Debug)]
pub(super) struct Stats {
    pub(super) events: u64,
    pub(super) connections: u64,
    pub(super) sessions: u64,
    pub(super) sealed: u64,
    pub(super) fates: u64,
    pub(super) delivered: u64,
    pub(super) superseded: u64,
    pub(super) ended: u64,
    pub(super) stopped: u64,
    pub(super) deferrals: u64,
    pub(super) refusals: u64,
    pub(super) forgeries: u64,
    pub(super) lies: u64,
    pub(super) wrong_bytes: u64,
    pub(super) losses: u64,
    pub(super) withdrawn: u64,
    pub(super) rings_lost: u64,
    pub(super) echoes: u64,
    pub(super) troubles: u64,
    pub(super) crashes: u64,
    pub(super) recovered: u64,
    pub(super) carried: u64,
    pub(super) relayed: u64,
    /// Most bundles that one machine tracked.
    pub(super) tracked: u64,
    /// When the last recipient had it, after the end of trouble.
    pub(super) settled_after: Time,
}

impl World {
    fn rule(&mut self, holds: bool, rule: Rule, text: impl FnOnce() -> String) {
        if !holds {
            let text = text();
            self.breaks(rule, text);
        }
    }

    pub(super) fn check_machine(&mut self, member: Member, peer: Member) {
        let limits = self.plan.limits;
        let Some(session) = self.nodes[member].sessions.get_mut(&peer) else {
            return;
        };
        let machine = session.core.delivery();
        let (tracked, outstanding, ready) =
            (machine.tracked(), machine.outstanding(), machine.queued());
        self.stats.tracked = self.stats.tracked.max(tracked as u64);
        let within = tracked <= limits.tracked
            && outstanding <= limits.window + RESERVED
            && ready <= 2 * limits.tracked + limits.ahead;
        self.rule(within, Rule::Memory, || {
            format!("{member} tracks {tracked}, {outstanding} offered, {ready} ready for {peer}")
        });
    }

    pub(super) fn check_desk(&mut self, member: Member, peer: Member, waiting: usize) {
        let bound = 4 * self.plan.limits.tracked + 256;
        self.rule(waiting <= bound, Rule::Memory, || {
            format!("{waiting} jobs of {member} for {peer}")
        });
    }

    /// Before an offer of `id` is made: could a more urgent one be?
    pub(super) fn check_turn(&mut self, member: Member, peer: Member, id: BundleId) {
        let Self { nodes, truths, .. } = self;
        let Some(session) = nodes[member].sessions.get_mut(&peer) else {
            return;
        };
        let priority = truths[bundle_of(id)].priority;
        let urgent = |other: &BundleId| truths[bundle_of(*other)].priority > priority;
        let waits = session.core.delivery().ready().find(urgent);
        session.passed_over = waits.map_or(0, |_| session.passed_over + 1);
        let holds = session.passed_over <= TURNS;
        self.rule(holds, Rule::Priority, || {
            format!("{member} offers {peer} bundle {id:?} while {waits:?} waits, again")
        });
    }

    /// Without a connection nothing is on its way.
    pub(super) fn check_shown(&mut self, member: Member, peer: Member) {
        let shown = self.nodes[member].progress.iter().find(|((_, to), state)| {
            *to == peer && matches!(state, DeliveryState::Sending(_) | DeliveryState::Offered)
        });
        if let Some(((bundle, _), state)) = shown {
            let text = format!("{member} shows bundle {bundle} to {peer} as {state:?} offline");
            self.breaks(Rule::WrongFate, text);
        }
    }

    /// What an honest member says of bytes must be so.
    pub(super) fn check_frame(&mut self, from: Member, to: Member, said: &Said) {
        if !self.honest(from) {
            return;
        }
        match said {
            Said::Frame(Frame::Receipts(receipts)) => {
                for receipt in receipts {
                    self.check_receipt(from, to, receipt);
                }
            }
            Said::Frame(Frame::Verdicts(list)) => {
                for (_, verdict) in list {
                    if let Verdict::Settled(receipt) = verdict {
                        self.check_receipt(from, to, receipt);
                    }
                }
            }
            Said::Frame(Frame::Pending(ids)) => {
                let page = self.plan.limits.page;
                self.rule(ids.len() <= page, Rule::Memory, || {
                    format!("{from} asks {to} about {} bundles at once", ids.len())
                });
            }
            Said::Frame(_) | Said::Offer(_) => {}
        }
    }

    fn check_receipt(&mut self, from: Member, to: Member, receipt: &Receipt) {
        let (bundle, recipient) = (bundle_of(receipt.bundle), member_of(receipt.recipient));
        let truth = &self.truths[bundle];
        let knows = to == truth.origin || truth.recipients.contains(&to);
        let safe =
            !self.honest(recipient) || self.nodes[recipient].disk.is_safe(bundle, truth.chunks);
        self.rule(safe && knows, Rule::EarlyReceipt, || {
            format!("{from} gives {to} a receipt of {recipient} for bundle {bundle}")
        });
    }

    /// A receipt of `recipient` counts at `member`.
    pub(super) fn check_delivered(&mut self, member: Member, recipient: Member, bundle: Bundle) {
        self.stats.delivered += 1;
        if !self.honest(recipient) || !self.honest(member) {
            return;
        }
        let chunks = self.truths[bundle].chunks;
        let safe = self.nodes[recipient].disk.is_safe(bundle, chunks);
        self.rule(safe, Rule::FalseReceipt, || {
            format!("{member} takes bundle {bundle} for delivered to {recipient}")
        });
    }

    /// Before a publish that `member` would not begin if it knew better.
    pub(super) fn check_ended(&mut self, member: Member, bundle: Bundle) {
        let ended = self.nodes[member].disk.rows.ended.contains_key(&bundle);
        let holds = !ended || !self.honest(member);
        self.rule(holds, Rule::ShownAfterEnd, || {
            format!("{member} publishes bundle {bundle} though it was ended")
        });
    }

    /// Before the name is given.
    pub(super) fn check_name(&mut self, member: Member, bundle: Bundle) {
        if !self.honest(member) {
            return;
        }
        let truth = &self.truths[bundle];
        let disk = &self.nodes[member].disk;
        let chunks = disk.bytes.get(&bundle).copied().unwrap_or_default();
        let right = chunks[..truth.chunks].iter().all(|c| *c == Chunk::Right)
            && !truth.contradicts
            && truth.recipients.contains(&member);
        let again = disk.rows.shown.contains_key(&bundle);
        let newest = disk.rows.newest.get(&(truth.origin, truth.path)).copied();
        let older = !again && newest.is_some_and(|newest| newest > truth.order);
        let text = || format!("{member} shows bundle {bundle}");
        self.rule(!again, Rule::ShownTwice, text);
        self.rule(right, Rule::WrongBytes, text);
        self.rule(!older, Rule::OldOverNew, text);
    }

    /// Who still owes what to whom, among those who behave.
    fn unfinished(&self) -> Option<(Member, Member, Bundle)> {
        for (member, node) in self.nodes.iter().enumerate().filter(|(_, n)| !n.lies) {
            for (peer, bundle) in &node.disk.rows.pending {
                let truth = &self.truths[*bundle];
                let ends =
                    self.honest(*peer) || (truth.lifetime.is_some() && truth.origin == member);
                if ends && self.plan.linked(member, *peer) {
                    return Some((member, *peer, *bundle));
                }
            }
        }
        None
    }

    /// Once a second when trouble is over: is all done, and is it late?
    pub(super) fn watch(&mut self) {
        let healed = self.plan.trouble_ends;
        let all_up = self.nodes.iter().all(|node| node.up);
        let dirty = self.nodes.iter().any(|node| node.disk.is_dirty());
        match self.unfinished() {
            None if all_up && !dirty => {
                self.stats.settled_after = self.now - healed;
                self.check_end();
                self.done = true;
            }
            None => {}
            Some((member, peer, bundle)) if self.now > healed + self.plan.patience => {
                let session = self.nodes[member].sessions.get(&peer);
                let session = session.map(|s| format!("{:?}", s.core));
                let text = format!(
                    "{member} still owes bundle {bundle} {:?} to {peer}: {session:?}",
                    self.truths[bundle]
                );
                self.breaks(Rule::Stalls, text);
            }
            Some(_) => {}
        }
        self.at(1_000, Ev::Watch);
    }

    /// What the journals of the honest say in the end.
    fn check_end(&mut self) {
        for bundle in 0..self.truths.len() {
            let truth = self.truths[bundle].clone();
            if !self.honest(truth.origin) {
                continue;
            }
            let rows = &self.nodes[truth.origin].disk.rows;
            let (known, ended) = (rows.own.contains(&bundle), rows.ended.contains_key(&bundle));
            let fates = rows.fates.clone();
            self.rule(known || !truth.durable, Rule::Forgotten, || {
                format!("{} forgot bundle {bundle}", truth.origin)
            });
            if !known {
                continue;
            }
            for recipient in truth.recipients {
                let fate = fates.get(&(bundle, recipient)).copied();
                if !self.honest(recipient) || !self.plan.linked(truth.origin, recipient) {
                    continue;
                }
                let disk = &self.nodes[recipient].disk;
                let safe = disk.is_safe(bundle, truth.chunks);
                let shown = disk.rows.shown.contains_key(&bundle);
                let newest = disk.rows.newest.get(&(truth.origin, truth.path));
                let holds = match fate {
                    Some(Fate::Delivered) => {
                        safe && (shown || newest.is_some_and(|newest| *newest > truth.order))
                    }
                    Some(Fate::Cancelled | Fate::Expired) => ended,
                    Some(Fate::Superseded) => rows_have_newer(&self.truths, bundle, recipient),
                    Some(Fate::Pending | Fate::Refused) | None => false,
                };
                self.rule(holds, Rule::WrongFate, || {
                    format!("bundle {bundle} for {recipient} ended as {fate:?}, ended {ended}")
                });
            }
        }
    }
}

/// Whether the recipient is also to get a newer version.
fn rows_have_newer(truths: &[super::world::Truth], bundle: Bundle, recipient: Member) -> bool {
    let old = &truths[bundle];
    truths[bundle + 1..].iter().any(|newer| {
        newer.origin == old.origin
            && newer.path == old.path
            && newer.recipients.contains(&recipient)
    })
}
