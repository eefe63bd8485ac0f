//! What befalls the members, and what their users do.

use super::disk::{Ending, Fate, Row};
use super::oracle::{Flaw, Rule};
use super::random::Random;
use super::world::{DEAD_AFTER, Ev, Plan, Truth, World, bundle_id};
use super::{Bundle, CHUNKS_MAX, Member, Time};
use crate::bundle::{DeliveryState, Priority};
use crate::delivery::Limits;
use crate::protocol::care::Care;
use crate::protocol::session::Input;

/// Paths that one member uses: few, so that versions replace each other.
const PATHS: u64 = 4;

/// How often an origin looks whether a lifetime is over.
const AGE_LOOK: Time = 5_000;

/// The longest trouble.
const TROUBLE_MAX: Time = 40_000;

/// A clock on the wall: 1970, a month ahead, or nearly right.
fn clock(random: &mut Random) -> i128 {
    const MONTH: i128 = 30 * 24 * 3_600 * 1_000;
    match random.below(3) {
        0 => -680 * MONTH,
        1 => MONTH,
        _ => i128::from(random.below(5_000)),
    }
}

impl Plan {
    /// A schedule of up to `members_max` members.
    pub(super) fn new(seed: u64, members_max: usize) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let members = random.between(2, members_max as u64) as usize;
        let liars = match random.below(3) {
            0 if members > 3 => random.between(1, members as u64 / 3) as usize,
            _ => 0,
        };
        let small = random.chance(500);
        let page = if small {
            random.between(1, 3) as usize
        } else {
            256
        };
        let limits = if small {
            let ahead = page * random.between(1, 3) as usize;
            Limits {
                window: random.between(1, 4) as usize,
                page,
                ahead,
                tracked: ahead.max(page) + random.below(6) as usize,
            }
        } else {
            Limits::default()
        };
        Self {
            seed,
            members,
            liars,
            bundles: random.between(2, 16) as usize,
            hubs: None,
            troubles: random.below(14) as usize,
            trouble_ends: random.between(1_000, 60_000),
            patience: 800_000,
            limits,
            slots: (
                random.between(1, 8) as usize,
                random.between(1, 24) as usize,
            ),
            custody: random.chance(500),
            lifetimes: random.chance(250),
            flaw: None,
        }
    }

    /// A schedule of that many members, a few of whom send to all.
    pub(super) fn large(seed: u64, members: usize) -> Self {
        Self {
            members,
            liars: members / 20,
            bundles: 16,
            hubs: Some(6),
            troubles: members / 10,
            trouble_ends: 60_000,
            limits: Limits::default(),
            slots: (11, 32),
            custody: true,
            ..Self::new(seed, 2)
        }
    }

    /// Members that behave, without trouble and with nothing to do yet.
    pub(super) fn quiet(members: usize) -> Self {
        Self {
            members,
            liars: 0,
            bundles: 0,
            troubles: 0,
            // Nobody looks whether all is done.
            trouble_ends: Time::MAX / 2,
            limits: Limits::default(),
            slots: (11, 32),
            custody: false,
            lifetimes: false,
            ..Self::new(1, 2)
        }
    }

    /// Whether these two connect at all.
    pub(super) fn linked(&self, a: Member, b: Member) -> bool {
        match self.hubs {
            None => true,
            Some(hubs) => a < hubs || b < hubs || a.abs_diff(b) == 1,
        }
    }
}

impl Truth {
    /// A small file of no special kind.
    pub(super) fn small(origin: Member, recipients: Vec<Member>) -> Self {
        Self {
            origin,
            recipients,
            path: 0,
            priority: Priority::Routine,
            order: (0, 0),
            chunks: 1,
            inline: true,
            sealed: 0,
            sealed_age: 0,
            sealed_wall: 0,
            lifetime: None,
            contradicts: false,
            durable: false,
        }
    }
}

impl World {
    /// Puts everything that will happen from outside into the queue.
    pub(super) fn begin(&mut self) {
        let plan = self.plan.clone();
        for member in 0..plan.members {
            let slow = if self.random.chance(100) { 20 } else { 1 };
            let node = &mut self.nodes[member];
            node.lies = member >= plan.members - plan.liars;
            node.slow = slow;
            let late = plan.troubles > 0 && self.random.chance(150);
            let delay = if late {
                self.random.below(plan.trouble_ends)
            } else {
                self.random.below(1_000)
            };
            self.at(delay, Ev::Start(member));
            if member >= plan.members - plan.liars {
                self.at(1_000, Ev::Lie(member));
            }
            for other in 0..member {
                if plan.linked(other, member) {
                    let delay = self.random.below(3_000);
                    self.dial_soon(other, member, delay);
                }
            }
        }
        for _ in 0..plan.troubles {
            let delay = self.random.below(plan.trouble_ends);
            self.at(delay, Ev::Trouble);
        }
        for _ in 0..plan.bundles + plan.bundles / 3 {
            let delay = self.random.below(plan.trouble_ends);
            self.at(delay, Ev::User);
        }
        self.at(plan.trouble_ends, Ev::Heal);
    }

    /// The daemon of a member starts.
    pub(super) fn start(&mut self, member: Member) {
        let now = self.now;
        let node = &mut self.nodes[member];
        if node.up {
            return;
        }
        (node.up, node.started) = (true, now);
        // Nothing may come of it.
        node.wall = clock(&mut self.random);
        self.submit(member, Row::Epoch);
        // Epoch and incarnation are durable before the first offer.
        self.commit(member);
        self.recover_custody(member);
    }

    /// The daemon is killed, or with it the machine.
    pub(super) fn crash(&mut self, member: Member, power: bool, pause: Time) {
        if !self.nodes[member].up {
            return;
        }
        self.stats.crashes += 1;
        let now = self.now;
        let node = &mut self.nodes[member];
        // What the machine was down counts for nobody's age; what the daemon was, may.
        node.ran += now - node.started;
        node.up = false;
        node.run += 1;
        node.sessions.clear();
        node.fetches.clear();
        node.waiting.clear();
        node.arriving.clear();
        node.volatile.clear();
        node.blames.clear();
        node.progress.clear();
        node.intake_at.clear();
        node.care = Care::default();
        node.commit_due = false;
        if power {
            node.disk.lost_power(&mut self.random);
        } else {
            node.disk.killed();
            let rows = node.disk.rows.own.clone();
            for bundle in rows {
                self.truths[bundle].durable = true;
            }
        }
        if self.flawed(Flaw::ForgetOnCrash) {
            let pending: Vec<_> = self.nodes[member]
                .disk
                .rows
                .pending
                .iter()
                .copied()
                .collect();
            for (peer, bundle) in pending {
                self.nodes[member].disk.rows.pending.remove(&(peer, bundle));
            }
        }
        self.recover(member, !power);
        self.nodes[member].disk.commit();
        self.nodes[member].volatile.clear();
        self.nodes[member].commit_due = false;
        // Also with those that were just connecting.
        for peer in (0..self.nodes.len()).filter(|peer| *peer != member) {
            let word = self.random.chance(300);
            let noticed = if word {
                50
            } else {
                self.random.between(5_000, DEAD_AFTER)
            };
            self.disconnect(member, peer, [0, noticed]);
        }
        self.at(pause, Ev::Start(member));
    }

    /// Whether it dies just now, at this step.
    pub(super) fn dies(&mut self, member: Member, step: u8) -> bool {
        let Some((at, power)) = self.nodes[member].dies_at.filter(|_| self.troubled) else {
            return false;
        };
        if at == step {
            self.nodes[member].dies_at = None;
            let pause = self.random.between(100, TROUBLE_MAX);
            self.crash(member, power, pause);
        }
        at == step
    }

    fn cut(&mut self, a: Member, b: Member, span: Time) {
        let until = self.now + span;
        let link = self.link_mut(a, b);
        link.cut_until = link.cut_until.max(until);
        if span > DEAD_AFTER {
            let noticed = [0, 0].map(|_: Time| DEAD_AFTER + self.random.below(2_000));
            self.disconnect(a, b, noticed);
        }
    }

    /// One trouble.
    pub(super) fn trouble(&mut self) {
        let count = self.nodes.len() as u64;
        let member = self.random.below(count) as Member;
        let span = match self.random.below(3) {
            0 => self.random.between(1, 500),
            1 => self.random.between(500, 12_000),
            _ => self.random.between(12_000, TROUBLE_MAX),
        };
        let until = self.now + span;
        let peers: Vec<Member> = self.nodes[member].sessions.keys().copied().collect();
        let peer = self.random.pick(&peers);
        self.stats.troubles += 1;
        match self.random.below(14) {
            0 => self.crash(member, false, span),
            1 => self.crash(member, true, span),
            2 => {
                let step = self.random.below(4) as u8;
                self.nodes[member].dies_at = Some((step, self.random.chance(500)));
            }
            3 => {
                if let Some(peer) = peer {
                    self.cut(member, peer, span);
                }
            }
            4 => {
                // Two halves.
                let side: Vec<bool> = (0..count).map(|_| self.random.chance(500)).collect();
                for a in 0..self.nodes.len() {
                    for b in 0..a {
                        if side[a] != side[b] && self.plan.linked(a, b) {
                            self.cut(a, b, span);
                        }
                    }
                }
            }
            5 => {
                // Alone.
                for other in 0..self.nodes.len() {
                    if other != member && self.plan.linked(member, other) {
                        self.cut(member, other, span);
                    }
                }
            }
            6 => {
                self.nodes[member].frozen_until = until;
                if span > DEAD_AFTER {
                    for peer in peers {
                        self.disconnect(member, peer, [span, DEAD_AFTER]);
                    }
                }
            }
            7 => {
                if let Some(peer) = peer {
                    let noticed = [0, 0].map(|_: Time| self.random.below(100));
                    self.disconnect(member, peer, noticed);
                }
            }
            8 => {
                // Both dialled at once.
                if let Some(peer) = peer.filter(|peer| self.nodes[*peer].up) {
                    self.connect(member, peer);
                }
            }
            9 => self.nodes[member].full_until = until,
            10 => self.nodes[member].stuck_until = until,
            11 => self.nodes[member].deaf_until = until,
            12 => self.nodes[member].wall = clock(&mut self.random),
            _ => self.nodes[member].bulk_until = until,
        }
    }

    /// The time of trouble is over: who is down comes up; cuts and full disks end by themselves, soon.
    pub(super) fn heal(&mut self) {
        self.troubled = false;
        for member in 0..self.nodes.len() {
            self.at(TROUBLE_MAX, Ev::Start(member));
        }
        self.at(1_000, Ev::Watch);
    }

    /// Somebody uses it.
    pub(super) fn user(&mut self) {
        let member = self.random.below(self.origins() as u64) as Member;
        if !self.nodes[member].up || self.nodes[member].frozen_until > self.now {
            return;
        }
        let own = &self.nodes[member].disk.rows.own;
        let own: Vec<Bundle> = own.iter().copied().collect();
        if self.truths.len() > 2 && self.random.chance(150) {
            if let Some(bundle) = self.random.pick(&own) {
                self.end(member, bundle, Ending::Cancelled);
            }
        } else {
            self.seal(member);
        }
    }

    /// Who has users that send.
    pub(super) fn origins(&self) -> usize {
        self.plan.hubs.unwrap_or(self.nodes.len())
    }

    /// A file was closed in the outbox.
    pub(super) fn seal(&mut self, member: Member) {
        let mut recipients: Vec<Member> = (0..self.nodes.len()).filter(|m| *m != member).collect();
        if self.random.chance(300) {
            let random = &mut self.random;
            recipients.retain(|_| random.chance(500));
        }
        if recipients.is_empty() {
            return;
        }
        let path = self.random.below(PATHS) as u32;
        let inline = self.random.chance(600);
        let chunks = if inline {
            1
        } else {
            self.random.between(1, CHUNKS_MAX as u64) as usize
        };
        let lies = self.nodes[member].lies;
        let lifetime = self.random.between(5_000, 300_000);
        let lifetime = (self.plan.lifetimes && self.random.chance(500)).then_some(lifetime);
        let contradicts = lies && self.random.chance(300);
        let priority = match self.random.below(4) {
            0 => Priority::Bulk,
            1 => Priority::Critical,
            _ => Priority::Routine,
        };
        self.seal_as(Truth {
            path,
            priority,
            chunks,
            inline,
            lifetime,
            contradicts,
            ..Truth::small(member, recipients)
        });
    }

    /// Seals a bundle of that kind.
    pub(super) fn seal_as(&mut self, kind: Truth) -> Bundle {
        let (bundle, member) = (self.truths.len(), kind.origin);
        let (recipients, path, lifetime) = (kind.recipients.clone(), kind.path, kind.lifetime);
        self.truths.push(Truth {
            order: (self.nodes[member].disk.rows.epoch, bundle as u64),
            sealed: self.now,
            sealed_age: self.age_of(member),
            sealed_wall: i128::from(self.now) + self.nodes[member].wall,
            ..kind
        });
        self.stats.sealed += 1;
        let latest = self.nodes[member].disk.rows.latest.get(&path).copied();
        if let Some(old) = latest {
            self.supersede(member, old, &recipients);
        }
        self.submit(member, Row::Own(bundle));
        self.submit(member, Row::Latest(path, bundle));
        for recipient in recipients {
            self.submit(member, Row::Fate(bundle, recipient, Fate::Pending));
        }
        if lifetime.is_some() {
            self.at(AGE_LOOK, Ev::Expire(bundle));
        }
        let peers: Vec<Member> = self.nodes[member].sessions.keys().copied().collect();
        for peer in peers {
            let owed = self.nodes[member]
                .disk
                .rows
                .pending
                .contains(&(peer, bundle));
            if owed {
                let priority = self.priority_of(bundle);
                self.ring(member, peer, Input::Sealed(bundle_id(bundle), priority));
            }
        }
        bundle
    }

    /// Who gets the newer version need not get the older one, unless its transfer has begun.
    fn supersede(&mut self, member: Member, old: Bundle, recipients: &[Member]) {
        for peer in self.truths[old].recipients.clone() {
            let node = &self.nodes[member];
            let begun = matches!(
                node.progress.get(&(old, peer)),
                Some(DeliveryState::Sending(_))
            );
            let pending = node.disk.rows.pending.contains(&(peer, old));
            if pending && !begun && recipients.contains(&peer) {
                self.stats.superseded += 1;
                self.submit(member, Row::Fate(old, peer, Fate::Superseded));
            }
        }
        self.maybe_closed(member, old);
    }

    /// The origin ends a bundle, and says so.
    fn end(&mut self, member: Member, bundle: Bundle, ending: Ending) {
        let rows = &self.nodes[member].disk.rows;
        if !rows.own.contains(&bundle) || rows.ended.contains_key(&bundle) {
            return;
        }
        let truth = self.truths[bundle].clone();
        let fate = match ending {
            Ending::Cancelled => Fate::Cancelled,
            Ending::Expired => Fate::Expired,
        };
        self.submit(member, Row::Ended(bundle, ending));
        for peer in &truth.recipients {
            if self.nodes[member]
                .disk
                .rows
                .pending
                .contains(&(*peer, bundle))
            {
                self.stats.ended += 1;
                self.submit(member, Row::Fate(bundle, *peer, fate));
            }
        }
        self.maybe_closed(member, bundle);
    }

    /// The statement that ends a bundle of ours is durable.
    pub(super) fn tell_ended(&mut self, member: Member, bundle: Bundle) {
        for peer in self.truths[bundle].recipients.clone() {
            self.ring(member, peer, Input::Rescan);
        }
    }

    /// The lifetime of a bundle may be over.
    pub(super) fn expire(&mut self, bundle: Bundle) {
        let truth = self.truths[bundle].clone();
        let (origin, Some(lifetime)) = (truth.origin, truth.lifetime) else {
            return;
        };
        if !self.nodes[origin].up || self.nodes[origin].frozen_until > self.now {
            self.at(AGE_LOOK, Ev::Expire(bundle));
            return;
        }
        let age = if self.flawed(Flaw::WallClock) {
            let wall = i128::from(self.now) + self.nodes[origin].wall - truth.sealed_wall;
            wall.clamp(0, i128::from(Time::MAX)) as Time
        } else {
            self.age_of(origin).saturating_sub(truth.sealed_age)
        };
        if age < lifetime {
            self.at(AGE_LOOK, Ev::Expire(bundle));
            return;
        }
        if self.now - truth.sealed < lifetime {
            self.breaks(Rule::EndsEarly, format!("bundle {bundle} expired early"));
        }
        self.end(origin, bundle, Ending::Expired);
    }
}
