//! Recipients keep bundles for other recipients: the rules are the real ones of [`crate::delivery::custody`]; here is
//! what they are fed and what is done about it.

use std::time::Duration;

use super::disk::{Fate, Row};
use super::world::{Ev, World, bundle_id, bundle_of, member_of, peer_id, receipt};
use super::{Bundle, Member, Time};
use crate::bundle::BundleId;
use crate::delivery::custody::{self, Custody, Stage};
use crate::protocol::frame::Frame;
use crate::protocol::session::{Done, Input};

/// How often custody looks at its deadlines.
const LOOK: Time = 1_000;

impl World {
    fn others(&self, member: Member, bundle: Bundle) -> Vec<Member> {
        let truth = &self.truths[bundle];
        let others = truth.recipients.iter().copied();
        let others = others.filter(|m| *m != member && *m != truth.origin);
        // Whom it never meets it need not count.
        others.filter(|m| self.plan.linked(member, *m)).collect()
    }

    fn custody_now(&self, member: Member) -> Duration {
        Duration::from_millis(self.age_of(member))
    }

    /// A bundle was settled here.
    pub(super) fn begin_custody(&mut self, member: Member, bundle: Bundle) {
        let others = self.others(member, bundle);
        if !self.plan.custody || others.is_empty() {
            return;
        }
        let now = self.custody_now(member);
        let custody = Custody::settled(now, others.into_iter().map(peer_id));
        self.nodes[member].custody.insert(bundle, custody);
        self.look_later(member, bundle, custody::DELAY.as_millis() as Time);
    }

    fn look_later(&mut self, member: Member, bundle: Bundle, delay: Time) {
        let (run, jitter) = (self.run_of(member), self.random.below(2_000));
        let ev = Ev::Custody {
            member,
            run,
            bundle,
        };
        self.at(delay + jitter, ev);
    }

    /// After a start: rows say what was carried; the rest is watched anew.
    pub(super) fn recover_custody(&mut self, member: Member) {
        self.nodes[member].custody.clear();
        if !self.plan.custody {
            return;
        }
        let now = self.custody_now(member);
        let settled: Vec<Bundle> = self.nodes[member]
            .disk
            .rows
            .settled
            .iter()
            .copied()
            .collect();
        for bundle in settled {
            let rows = &self.nodes[member].disk.rows;
            if rows.ended.contains_key(&bundle) {
                continue;
            }
            let kept = |m: &Member| rows.kept.contains(&(bundle, *m));
            let others = self.others(member, bundle);
            let receipts: Vec<Member> = others.iter().copied().filter(kept).collect();
            let gone = |m: &Member| {
                let fate = rows.fates.get(&(bundle, *m));
                kept(m) || fate.is_some_and(|fate| *fate != Fate::Pending)
            };
            let waiting: Vec<Member> = others.iter().copied().filter(|m| !gone(m)).collect();
            let carried = others
                .iter()
                .any(|m| rows.fates.contains_key(&(bundle, *m)));
            let stage = match (carried, waiting.is_empty()) {
                (_, true) if receipts.is_empty() => continue,
                (_, true) => Stage::Relaying,
                (true, false) => Stage::Carrying,
                (false, false) => Stage::Watching(now + custody::DELAY),
            };
            let ids = |of: Vec<Member>| of.into_iter().map(peer_id);
            let custody = Custody::recorded(stage, ids(waiting), ids(receipts));
            self.nodes[member].custody.insert(bundle, custody);
            self.look_later(member, bundle, custody::DELAY.as_millis() as Time);
        }
    }

    fn custody_event(&mut self, member: Member, bundle: Bundle, event: custody::Event) {
        let now = self.custody_now(member);
        let Some(custody) = self.nodes[member].custody.get_mut(&bundle) else {
            return;
        };
        let mut out = Vec::new();
        custody.handle(now, event, &mut out);
        let origin = self.truths[bundle].origin;
        for action in out {
            match action {
                custody::Action::Ask => {
                    self.tell(
                        member,
                        origin,
                        Input::Say(Frame::Open(vec![bundle_id(bundle)])),
                    );
                    self.look_later(member, bundle, custody::ANSWER.as_millis() as Time);
                }
                custody::Action::Owe(peers) => {
                    for peer in peers.into_iter().map(member_of) {
                        let key = (bundle, peer);
                        if !self.nodes[member].disk.rows.fates.contains_key(&key) {
                            self.stats.carried += 1;
                            self.submit(member, Row::Fate(bundle, peer, Fate::Pending));
                            self.ring(member, peer, Input::Rescan);
                        }
                    }
                }
                custody::Action::Relay(peer) => {
                    let receipt = receipt(bundle, origin, member_of(peer));
                    self.tell(member, origin, Input::Receipt(receipt));
                    self.stats.relayed += 1;
                }
                custody::Action::Release(_) => {}
                custody::Action::Forget => {
                    self.nodes[member].custody.remove(&bundle);
                    self.submit(member, Row::NoCustody(bundle));
                }
            }
        }
    }

    pub(super) fn custody_tick(&mut self, member: Member, bundle: Bundle) {
        let origin = self.truths[bundle].origin;
        let origin_connected = self.nodes[member].sessions.contains_key(&origin);
        self.custody_event(member, bundle, custody::Event::Tick { origin_connected });
        let stage = self.nodes[member].custody.get(&bundle).map(Custody::stage);
        match stage {
            Some(Stage::Watching(_) | Stage::Asked(_)) => self.look_later(member, bundle, LOOK),
            Some(Stage::Carrying | Stage::Relaying | Stage::Ended) | None => {}
        }
    }

    /// A session with `peer` began.
    pub(super) fn custody_connected(&mut self, member: Member, peer: Member) {
        let of_peer = |b: &&Bundle| self.truths[**b].origin == peer;
        let bundles: Vec<Bundle> = self.nodes[member]
            .custody
            .keys()
            .filter(of_peer)
            .copied()
            .collect();
        for bundle in bundles {
            self.custody_event(member, bundle, custody::Event::OriginConnected);
        }
    }

    /// A receipt of `recipient` was checked.
    pub(super) fn custody_receipt(&mut self, member: Member, recipient: Member, bundle: Bundle) {
        if self.nodes[member].custody.contains_key(&bundle) {
            if !self.nodes[member]
                .disk
                .rows
                .kept
                .contains(&(bundle, recipient))
            {
                self.submit(member, Row::Kept(bundle, recipient));
            }
            self.custody_event(member, bundle, custody::Event::Receipt(peer_id(recipient)));
        }
    }

    pub(super) fn custody_gone(&mut self, member: Member, recipient: Member, bundle: Bundle) {
        self.custody_event(member, bundle, custody::Event::Gone(peer_id(recipient)));
    }

    pub(super) fn custody_ended(&mut self, member: Member, bundle: Bundle) {
        self.custody_event(member, bundle, custody::Event::Cancelled);
    }

    fn is_closed(&self, origin: Member, bundle: Bundle) -> bool {
        let fates = &self.nodes[origin].disk.rows.fates;
        let mut of = fates.range((bundle, Member::MIN)..=(bundle, Member::MAX));
        of.all(|(_, fate)| *fate != Fate::Pending)
    }

    /// Another recipient asks whether bundles of ours are final everywhere, or an origin says that its own are not.
    pub(super) fn asked_open(&mut self, member: Member, from: Member, ids: Vec<BundleId>) -> Done {
        let (mut closed, mut open, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for id in ids {
            let bundle = bundle_of(id);
            let truth = self.truths.get(bundle);
            let rows = &self.nodes[member].disk.rows;
            if truth.is_some_and(|t| t.origin == from)
                && self.nodes[member].custody.contains_key(&bundle)
            {
                self.custody_event(member, bundle, custody::Event::OriginOpen);
            } else if !rows.own.contains(&bundle)
                || truth.is_none_or(|t| !t.recipients.contains(&from))
            {
                unknown.push(id);
            } else if self.is_closed(member, bundle) {
                closed.push(id);
            } else {
                open.push(id);
            }
        }
        Done::Open {
            closed,
            open,
            unknown,
        }
    }

    /// A delivery of a bundle of ours came to its end: if it was the last, who holds the bundle is told.
    pub(super) fn maybe_closed(&mut self, member: Member, bundle: Bundle) {
        if !self.plan.custody || !self.is_closed(member, bundle) {
            return;
        }
        for peer in self.truths[bundle].recipients.clone() {
            self.tell(
                member,
                peer,
                Input::Say(Frame::Closed(vec![bundle_id(bundle)])),
            );
        }
    }

    /// The origin says this of bundles of its own.
    pub(super) fn origin_says(
        &mut self,
        member: Member,
        from: Member,
        ids: &[BundleId],
        event: custody::Event,
    ) {
        for bundle in ids.iter().map(|id| bundle_of(*id)) {
            if self.truths.get(bundle).is_some_and(|t| t.origin == from) {
                self.custody_event(member, bundle, event);
            }
        }
    }
}
