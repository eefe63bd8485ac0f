//! The receiver: from an offer to a name in the inbox and a receipt, as `mesh::intake`, `mesh::fetch` and `spool` do it.
//! Between any two steps the member may crash.

use std::collections::BTreeSet;

use super::disk::{Chunk, Row};
use super::oracle::{Flaw, Rule};
use super::world::{Conn, Ev, World, bundle_id, receipt};
use super::{Bundle, Member, Time};
use crate::delivery::{Event, Verdict};
use crate::protocol::offers::Way;
use crate::protocol::session::{Input, NO_ROOM};

/// How long an offer from a peer that served wrong bytes for it is not even looked at.
const BLAME_PAUSE: Time = 1_000;

/// Holders remembered for a bundle being fetched.
const HOLDERS_MAX: usize = 16;

/// Lost connections in a row before a bundle is deferred.
const LOSSES_MAX: u32 = 3;

/// A source without an answer is given up after that.
const STALL: Time = 20_000;

/// Offers of one peer waiting to be fetched.
const QUEUED_MAX: usize = 1024;

/// A bundle being fetched, or waiting for it.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    pub(super) first: Member,
    pub(super) holders: Vec<Member>,
    pub(super) running: bool,
    losses: u32,
    unusable: BTreeSet<Member>,
}

impl World {
    /// Takes an offer the way that the session says.
    pub(super) fn take(&mut self, member: Member, from: Member, way: Way, bundle: Bundle) {
        let truth = &self.truths[bundle];
        // Before it joins others in a fetch: what it is told must not be told to them.
        if !truth.recipients.contains(&member) || !self.concerns(from, bundle) {
            let refusal = Verdict::Refused("not among its recipients".into());
            self.answer(member, from, bundle, refusal);
            return;
        }
        let lane = match way {
            Way::Fetch => return self.fetch(member, from, bundle),
            Way::Intake => 0,
            Way::Express => 1,
        };
        // Lanes of a peer, which outlive the session.
        let time = 1 + self.disk_time(member);
        let node = &mut self.nodes[member];
        let at = node.intake_at.entry((from, lane)).or_default();
        *at = (*at).max(self.now) + time;
        let (delay, run) = (*at - self.now, node.run);
        let ev = Ev::Intake {
            member,
            run,
            peer: from,
            bundle,
        };
        self.at(delay, ev);
    }

    /// What became of an offer of `peer`.
    fn answer(&mut self, member: Member, peer: Member, bundle: Bundle, verdict: Verdict) {
        self.tell(member, peer, Input::Verdict(bundle_id(bundle), verdict));
    }

    /// Asks the spool for a place to put the bundle; `Err` is what to answer instead.
    fn open(&mut self, member: Member, from: Member, bundle: Bundle) -> Result<(), Verdict> {
        let truth = &self.truths[bundle];
        let node = &mut self.nodes[member];
        let blamed = node.blames.get(&(bundle, from));
        if blamed.is_some_and(|since| self.now - since < BLAME_PAUSE) {
            return Err(Verdict::Deferred("sent wrong bytes".into()));
        }
        if node.arriving.contains(&bundle) {
            return Err(Verdict::Working);
        }
        let settled = node.disk.rows.settled.contains(&bundle);
        if settled && self.plan.flaw != Some(Flaw::Republish) {
            return Err(if node.volatile.contains(&bundle) {
                Verdict::Taken
            } else {
                Verdict::Settled(Box::new(receipt(bundle, truth.origin, member)))
            });
        }
        if node.disk.rows.bad.contains(&bundle) {
            return Err(Verdict::Refused("manifest contradicts itself".into()));
        }
        if let Some(why) = self.ended_here(member, bundle)
            && !self.flawed(Flaw::IgnoreCancel)
        {
            return Err(Verdict::Refused(why));
        }
        let node = &mut self.nodes[member];
        if node.full_until > self.now {
            return Err(Verdict::Deferred("no room".into()));
        }
        node.arriving.insert(bundle);
        node.disk.recount(bundle);
        Ok(())
    }

    /// A bundle whose content came with the offer.
    pub(super) fn intake(&mut self, member: Member, from: Member, bundle: Bundle) {
        if let Err(verdict) = self.open(member, from, bundle) {
            self.answer(member, from, bundle, verdict);
            return;
        }
        let wrong = self.sends_wrong_bytes(from);
        if !self.take_chunk(member, bundle, 0, wrong) {
            self.blame(member, from, bundle);
            self.nodes[member].arriving.remove(&bundle);
            let deferred = Verdict::Deferred("wrong bytes".into());
            self.answer(member, from, bundle, deferred);
            return;
        }
        self.publish(member, bundle, 0, vec![from]);
    }

    /// Takes a chunk if its hash is right.
    fn take_chunk(&mut self, member: Member, bundle: Bundle, index: usize, wrong: bool) -> bool {
        if wrong && !self.flawed(Flaw::NoHash) {
            return false;
        }
        let chunks = self.nodes[member].disk.bytes.entry(bundle).or_default();
        chunks[index] = if wrong { Chunk::Wrong } else { Chunk::Right };
        true
    }

    fn blame(&mut self, member: Member, from: Member, bundle: Bundle) {
        self.stats.wrong_bytes += 1;
        let now = self.now;
        self.nodes[member].blames.insert((bundle, from), now);
    }

    fn fetch(&mut self, member: Member, from: Member, bundle: Bundle) {
        let node = &mut self.nodes[member];
        if node.fetches.len() >= QUEUED_MAX {
            let full = Verdict::Deferred(NO_ROOM.into());
            self.answer(member, from, bundle, full);
            return;
        }
        match node.fetches.get_mut(&bundle) {
            Some(fetch) => {
                if !fetch.holders.contains(&from) && fetch.holders.len() < HOLDERS_MAX {
                    fetch.holders.push(from);
                }
            }
            None => {
                let fetch = Fetch {
                    first: from,
                    holders: vec![from],
                    running: false,
                    losses: 0,
                    unusable: BTreeSet::new(),
                };
                node.fetches.insert(bundle, fetch);
                node.waiting.push_back(bundle);
            }
        }
        self.answer(member, from, bundle, Verdict::Working);
        self.start_fetches(member);
    }

    /// Starts what the slots admit.
    fn start_fetches(&mut self, member: Member) {
        let (of_peer, of_all) = self.plan.slots;
        let mut index = 0;
        while let Some(bundle) = self.nodes[member].waiting.get(index).copied() {
            let node = &self.nodes[member];
            let Some(first) = node.fetches.get(&bundle).map(|f| f.first) else {
                self.nodes[member].waiting.remove(index);
                continue;
            };
            let running = || node.fetches.values().filter(|f| f.running);
            if running().count() >= of_all {
                return;
            }
            if running().filter(|f| f.first == first).count() >= of_peer {
                index += 1;
                continue;
            }
            self.nodes[member].waiting.remove(index);
            // The fifth is given up, and nobody is told.
            if self.flawed(Flaw::DropBeyondCap) && index > 0 {
                self.nodes[member].fetches.remove(&bundle);
                continue;
            }
            match self.open(member, first, bundle) {
                Ok(()) => {
                    if let Some(fetch) = self.nodes[member].fetches.get_mut(&bundle) {
                        fetch.running = true;
                    }
                    self.fetch_on(member, bundle);
                }
                Err(verdict) => self.fetched(member, bundle, verdict),
            }
            // Other bundles may have come to their end meanwhile.
            index = 0;
        }
    }

    /// Asks for the next chunk, publishes, or gives up for now.
    pub(super) fn fetch_on(&mut self, member: Member, bundle: Bundle) {
        let count = self.truths[bundle].chunks;
        let node = &self.nodes[member];
        let Some(fetch) = node.fetches.get(&bundle).filter(|f| f.running) else {
            return;
        };
        let have = node.disk.bytes.get(&bundle).copied().unwrap_or_default();
        if have[..count].iter().all(|c| *c != Chunk::Missing) {
            self.publish(member, bundle, 0, Vec::new());
            return;
        }
        let usable = |p: &&Member| !fetch.unusable.contains(p) && node.sessions.contains_key(p);
        let source = fetch.holders.iter().find(usable).copied();
        let Some(source) = source.filter(|_| fetch.losses < LOSSES_MAX) else {
            self.nodes[member].arriving.remove(&bundle);
            self.fetched(member, bundle, Verdict::Deferred("no holder".into()));
            // The origin may have replaced it meanwhile: then nobody waits for it any more.
            let origin = self.truths[bundle].origin;
            self.tell(member, origin, Input::Owed(vec![bundle_id(bundle)]));
            return;
        };
        let (conn, run) = (node.sessions[&source].conn, node.run);
        let slow = self.nodes[source].slow * if self.honest(source) { 1 } else { 5 };
        let delay = (self.random.between(2, 400) * slow).min(STALL);
        let ev = Ev::Chunk {
            member,
            run,
            bundle,
            source,
            conn,
        };
        self.at(delay, ev);
    }

    /// A chunk arrives, or does not.
    pub(super) fn chunk(&mut self, member: Member, bundle: Bundle, source: Member, conn: Conn) {
        let node = &self.nodes[member];
        let Some(fetch) = node.fetches.get(&bundle) else {
            return;
        };
        if !node.arriving.contains(&bundle) || !fetch.running {
            return;
        }
        let session = |a: Member, b: Member| self.nodes[a].sessions.get(&b).map(|s| s.conn);
        let other = &self.nodes[source];
        let fails = node.bulk_until.max(other.bulk_until) > self.now
            || other.frozen_until > self.now
            || self.link(member, source).cut_until > self.now
            || session(member, source) != Some(conn)
            || session(source, member) != Some(conn);
        let have = node.disk.bytes.get(&bundle).copied().unwrap_or_default();
        let index = have.iter().position(|c| *c == Chunk::Missing);
        let run = node.run;
        let wrong = self.sends_wrong_bytes(source);
        if fails {
            self.stats.losses += 1;
            let delay = self.random.between(10, 10_000);
            if let Some(fetch) = self.nodes[member].fetches.get_mut(&bundle) {
                fetch.losses += 1;
            }
            let ev = Ev::Retry {
                member,
                run,
                bundle,
            };
            self.at(delay, ev);
            return;
        }
        let index = index.unwrap_or(0);
        if !self.serves(source, member, bundle) {
            self.unusable(member, bundle, source);
        } else {
            let served = Event::Serving(bundle_id(bundle), index as u64 + 1);
            self.tell(source, member, Input::Event(served));
            if !self.take_chunk(member, bundle, index, wrong) {
                self.blame(member, source, bundle);
                self.unusable(member, bundle, source);
            }
        }
        self.fetch_on(member, bundle);
    }

    fn unusable(&mut self, member: Member, bundle: Bundle, source: Member) {
        if let Some(fetch) = self.nodes[member].fetches.get_mut(&bundle) {
            fetch.unusable.insert(source);
        }
    }

    /// Whether `source` gives the bytes of this bundle to `member`.
    fn serves(&self, source: Member, member: Member, bundle: Bundle) -> bool {
        let rows = &self.nodes[source].disk.rows;
        let holds = rows.own.contains(&bundle) || rows.settled.contains(&bundle);
        holds && rows.fates.contains_key(&(bundle, member)) && !rows.ended.contains_key(&bundle)
    }

    /// The fetch is over: everybody who offered it is told.
    fn fetched(&mut self, member: Member, bundle: Bundle, verdict: Verdict) {
        let Some(fetch) = self.nodes[member].fetches.remove(&bundle) else {
            return;
        };
        for holder in fetch.holders {
            self.answer(member, holder, bundle, verdict.clone());
        }
        self.start_fetches(member);
    }

    /// What became of a publish goes to whoever offered the bundle.
    fn published(&mut self, member: Member, bundle: Bundle, offerers: Vec<Member>, says: Verdict) {
        self.nodes[member].arriving.remove(&bundle);
        for peer in offerers {
            self.answer(member, peer, bundle, says.clone());
        }
        self.fetched(member, bundle, says);
    }

    /// The steps of a publish. `offerers` of a bundle that came with its offer; those of a fetch are known.
    pub(super) fn publish(
        &mut self,
        member: Member,
        bundle: Bundle,
        step: u8,
        offerers: Vec<Member>,
    ) {
        if self.dies(member, step) {
            return;
        }
        let truth = &self.truths[bundle];
        match step {
            0 => {
                if truth.contradicts && !self.flawed(Flaw::NoHash) {
                    self.submit(member, Row::Bad(bundle));
                    let refused = Verdict::Refused("manifest contradicts itself".into());
                    self.published(member, bundle, offerers, refused);
                    return;
                }
                // It may have been ended while it arrived.
                if let Some(why) = self.ended_here(member, bundle)
                    && !self.flawed(Flaw::IgnoreCancel)
                {
                    self.published(member, bundle, offerers, Verdict::Refused(why));
                    return;
                }
                self.check_ended(member, bundle);
                self.submit(member, Row::Intent(bundle));
            }
            1 => self.give_name(member, bundle),
            2 => {
                self.settle(member, bundle);
                self.published(member, bundle, offerers, Verdict::Taken);
                return;
            }
            _ => {
                self.breaks(Rule::Stalls, "a publish has three steps".into());
                return;
            }
        }
        let (delay, run) = (self.disk_time(member), self.run_of(member));
        let ev = Ev::Publish {
            member,
            run,
            bundle,
            step: step + 1,
            holders: offerers,
        };
        self.at(delay, ev);
    }

    /// The rename into the inbox, unless a newer version is there.
    fn give_name(&mut self, member: Member, bundle: Bundle) {
        let truth = &self.truths[bundle];
        let (origin, path, order) = (truth.origin, truth.path, truth.order);
        let newest = &self.nodes[member].disk.rows.newest;
        let newer = newest.get(&(origin, path)).is_some_and(|n| *n > order);
        if !newer || self.flawed(Flaw::OldOverNew) {
            self.check_name(member, bundle);
            self.submit(member, Row::Shown(bundle));
            self.submit(member, Row::Newest(origin, path, order));
        }
    }

    /// The rows that make it settled; the receipt is sent when they are durable.
    fn settle(&mut self, member: Member, bundle: Bundle) {
        self.submit(member, Row::Settled(bundle));
        self.nodes[member].volatile.insert(bundle);
        self.begin_custody(member, bundle);
        if self.flawed(Flaw::EarlyReceipt) {
            self.send_receipt(member, bundle);
        }
    }

    fn send_receipt(&mut self, member: Member, bundle: Bundle) {
        let origin = self.truths[bundle].origin;
        let receipt = receipt(bundle, origin, member);
        self.ring(member, origin, Input::Receipt(receipt));
    }

    /// What was written is durable now.
    pub(super) fn commit(&mut self, member: Member) {
        if self.dies(member, 3) {
            return;
        }
        self.nodes[member].commit_due = false;
        let rows = self.nodes[member].disk.commit();
        for row in rows {
            match row {
                Row::Settled(bundle) => {
                    self.nodes[member].volatile.remove(&bundle);
                    self.send_receipt(member, bundle);
                }
                Row::Own(bundle) => self.truths[bundle].durable = true,
                // Not before: who was told refuses it for good, and the origin would not know why.
                Row::Ended(bundle, _) if self.truths[bundle].origin == member => {
                    self.tell_ended(member, bundle);
                }
                _ => {}
            }
        }
    }

    /// After a kill: publishes that had begun are completed before anything else. After a power loss they are not.
    pub(super) fn recover(&mut self, member: Member, same_boot: bool) {
        let intents: Vec<Bundle> = self.nodes[member]
            .disk
            .rows
            .intents
            .iter()
            .copied()
            .collect();
        for bundle in intents {
            self.stats.recovered += 1;
            if !same_boot {
                self.submit(member, Row::NoIntent(bundle));
                continue;
            }
            let given = self.nodes[member].disk.rows.shown.contains_key(&bundle);
            if !given || self.flawed(Flaw::RecoverTwice) {
                self.give_name(member, bundle);
            }
            self.settle(member, bundle);
        }
    }

    /// The origin says that it does not owe us this bundle.
    pub(super) fn withdrawn(&mut self, member: Member, origin: Member, bundle: Bundle) {
        let node = &mut self.nodes[member];
        let of_origin = self.truths.get(bundle).is_some_and(|t| t.origin == origin);
        let ends = !node.arriving.contains(&bundle) && !node.disk.rows.settled.contains(&bundle);
        if of_origin && ends && node.disk.bytes.remove(&bundle).is_some() {
            self.stats.withdrawn += 1;
        }
    }

    /// The origin's signed word that it ended a bundle, whoever brings it. Whether the bundle has ended here.
    pub(super) fn told_ended(&mut self, member: Member, bundle: Bundle) -> bool {
        let origin = self.truths[bundle].origin;
        // The signature is the origin's, which gives it to others only when it is durable.
        let said = self.nodes[origin].disk.durable.ended.get(&bundle);
        let Some(ending) = said.copied().filter(|_| origin != member) else {
            return false;
        };
        let rows = &self.nodes[member].disk.rows;
        if rows.ended.contains_key(&bundle) {
            return true;
        }
        let settled = rows.settled.contains(&bundle);
        self.submit(member, Row::Ended(bundle, ending));
        self.custody_ended(member, bundle);
        let node = &mut self.nodes[member];
        if settled || node.disk.rows.intents.contains(&bundle) {
            return true;
        }
        // A fetch of it stops; what arrived goes away.
        node.arriving.remove(&bundle);
        node.disk.bytes.remove(&bundle);
        let why = self.ended_here(member, bundle).unwrap_or_default();
        self.fetched(member, bundle, Verdict::Refused(why));
        self.stats.stopped += 1;
        true
    }
}
