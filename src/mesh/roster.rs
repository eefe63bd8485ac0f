//! The roster: every peer we know of, where it can be dialled, and its present connections.
//!
//! # Invariants
//! 1. A peer has at most one admitted session. Of two, a new incarnation beats an old one; of two dialled from different
//!    ends, the one dialled by the lower id stays, so both ends decide alike; of two dialled from one end, the newer.
//! 2. Strangers (who failed the proof and are not known otherwise) are kept only to show why, at most [`STRANGERS_MAX`].
//!    Who proved the key is one until its hello: it may only ask whether its ticket holds.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iroh::endpoint::Connection;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::bundle::BundleId;
use crate::mesh::budget::{Budget, Purse};
use crate::mesh::lane::Lane;
use crate::mesh::limits::{Kind, Meter};
use crate::mesh::member::{CloseCode, MemberError};
use crate::peer::{PeerId, PeerName};
use crate::protocol::session::Input;

/// Strangers remembered, so that a flood of them costs nothing.
const STRANGERS_MAX: usize = 32;

/// How many members' words on where a peer is are kept, and how many addresses of each, so that no member can crowd out
/// the others' words.
const TELLERS_MAX: usize = 4;
const TOLD_ADDRS_MAX: usize = 8;

/// Control connections of one peer that wait for its hello: both ends may dial at once, and dial again.
const GREETERS_MAX: usize = 4;

/// How long a member's word counts after its session ended.
const TOLD_KEEP: Duration = Duration::from_secs(3600);

/// One peer.
pub(crate) struct Peer {
    pub id: PeerId,
    /// Whether it has a session.
    pub up: watch::Sender<bool>,
    /// Whether it ended a session because we are no member any more.
    pub put_us_out: watch::Sender<bool>,
    /// The bulk connection, whoever dialled it.
    pub bulk: watch::Sender<Option<Connection>>,
    /// Rung when it should be dialled now.
    pub wake: Notify,
    /// Its offers that are taken without fetching, in order. Bounded by the session's byte budget.
    pub intake: Lane,
    /// The same for urgent ones.
    pub express: Lane,
    /// Its offers that are fetched or wait for it.
    pub fetching: AtomicUsize,
    /// Bytes it asked for on this session, by bundle.
    pub served: Mutex<HashMap<BundleId, u64>>,
    /// The highest epoch we told it since we started.
    pub epoch_told: AtomicU64,
    /// The highest epoch it told us, or that we saw in a bundle of its own, since we started.
    pub epoch_seen: AtomicU64,
    /// Held from an accepted proof until the session is admitted, so that we do not dial meanwhile.
    pub greeting: tokio::sync::Mutex<()>,
    /// Its proved control connections that have not exchanged hellos yet.
    pub greeters: Semaphore,
    /// How much it makes us work.
    pub meter: Meter,
    /// What it may make us hold, while it is connected or something of it is held; and what of that waits to be fetched.
    purses: Mutex<[Weak<Purse>; 2]>,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    name: Option<PeerName>,
    configured: Vec<SocketAddr>,
    /// Where its announcement on the local network says that it is.
    found: Vec<SocketAddr>,
    /// What the journal knows: what it said itself last time, or what we were told when it was introduced.
    learned: Vec<SocketAddr>,
    /// What other members said since, newest first.
    told: Vec<Told>,
    last_seen: u64,
    error: Option<String>,
    stranger: bool,
    session: Option<SessionHandle>,
}

/// Where a peer is, by another member's word.
struct Told {
    by: PeerId,
    addrs: Vec<SocketAddr>,
    /// Set when that member is gone itself: what it said is no longer renewed.
    until: Option<Instant>,
}

/// How the rest of the mesh reaches a session.
#[derive(Clone)]
pub(crate) struct SessionHandle {
    /// The control connection.
    pub conn: Connection,
    /// Whether we dialled it.
    pub dialled: bool,
    /// The peer's incarnation.
    pub incarnation: [u8; 16],
    /// Its inbox.
    pub inputs: mpsc::Sender<Input>,
    /// Set when a ring did not fit.
    pub missed: Arc<AtomicBool>,
}

impl SessionHandle {
    /// Rings without waiting; a ring that does not fit makes the session look by itself.
    pub(crate) fn ring(&self, input: Input) {
        if self.inputs.try_send(input).is_err() {
            self.missed.store(true, Ordering::Relaxed);
        }
    }
}

impl Peer {
    fn new(id: PeerId, stranger: bool) -> Arc<Self> {
        Arc::new(Self {
            id,
            up: watch::Sender::new(false),
            put_us_out: watch::Sender::new(false),
            bulk: watch::Sender::new(None),
            wake: Notify::new(),
            intake: Lane::default(),
            express: Lane::default(),
            fetching: AtomicUsize::new(0),
            served: Mutex::new(HashMap::new()),
            epoch_told: AtomicU64::new(0),
            epoch_seen: AtomicU64::new(0),
            greeting: tokio::sync::Mutex::new(()),
            greeters: Semaphore::new(GREETERS_MAX),
            meter: Meter::default(),
            purses: Mutex::default(),
            facts: Mutex::new(Facts {
                stranger,
                ..Facts::default()
            }),
        })
    }

    /// Counts one of `kind`; how long to wait before dealing with it.
    pub(crate) fn take(&self, kind: Kind, now: Instant) -> Duration {
        let (wait, news) = self.meter.take(kind, now);
        if news && let Some(why) = self.meter.limited(now) {
            tracing::warn!("{} sends {why}", self.label());
        }
        wait
    }

    /// Its purse for what is soon dealt with. Whoever keeps it keeps the peer's share from the others: a connection, or
    /// what was taken from it.
    pub(crate) fn purse(&self, budget: &Arc<Budget>) -> Arc<Purse> {
        self.purse_at(0, budget)
    }

    /// Its purse for what is fetched: it may be held for long, and must not keep its frames from being read.
    pub(crate) fn fetch_purse(&self, budget: &Arc<Budget>) -> Arc<Purse> {
        self.purse_at(1, budget)
    }

    fn purse_at(&self, at: usize, budget: &Arc<Budget>) -> Arc<Purse> {
        let purse = &mut self.purses.lock()[at];
        purse.upgrade().unwrap_or_else(|| {
            let new = budget.purse();
            *purse = Arc::downgrade(&new);
            new
        })
    }

    /// Its name, or the beginning of its id.
    pub(crate) fn label(&self) -> String {
        self.facts
            .lock()
            .name
            .as_ref()
            .map_or_else(|| self.id.short(), ToString::to_string)
    }

    /// Its name, if known.
    pub(crate) fn name(&self) -> Option<PeerName> {
        self.facts.lock().name.clone()
    }

    /// Why it is not connected, if known.
    pub(crate) fn error(&self) -> Option<String> {
        self.facts.lock().error.clone()
    }

    /// When it was last heard, in seconds since 1970; 0 if never since start.
    pub(crate) fn last_seen(&self) -> u64 {
        self.facts.lock().last_seen
    }

    /// Where to dial it, the freshest and surest first.
    pub(crate) fn addrs(&self) -> Vec<SocketAddr> {
        let facts = self.facts.lock();
        let told = facts.told.iter().flat_map(|told| &told.addrs);
        let all = [&facts.found, &facts.configured, &facts.learned];
        let mut addrs: Vec<SocketAddr> = Vec::new();
        for addr in all.into_iter().flatten().chain(told) {
            if !addrs.contains(addr) {
                addrs.push(*addr);
            }
        }
        addrs
    }

    /// Where it is on the local network; empty: nowhere any more. Wakes the dialler when an address is new.
    pub(crate) fn found(&self, addrs: &[SocketAddr]) {
        let mut facts = self.facts.lock();
        let new = addrs.iter().any(|addr| !facts.found.contains(addr));
        facts.found = addrs.to_vec();
        drop(facts);
        if new {
            self.wake.notify_one();
        }
    }

    /// Where it is by the word of `by`, in place of what that member said before. Wakes the dialler when an address is
    /// new.
    pub(crate) fn told(&self, by: PeerId, addrs: &[SocketAddr]) {
        let known = self.addrs();
        let mut facts = self.facts.lock();
        facts.told.retain(|told| told.by != by);
        let addrs: Vec<SocketAddr> = addrs.iter().take(TOLD_ADDRS_MAX).copied().collect();
        let new = addrs.iter().any(|addr| !known.contains(addr));
        if !addrs.is_empty() {
            let until = None;
            facts.told.insert(0, Told { by, addrs, until });
            facts.told.truncate(TELLERS_MAX);
        }
        drop(facts);
        if new {
            self.wake.notify_one();
        }
    }

    /// The session with `by` ended at `now`: what it said of this peer counts for [`TOLD_KEEP`] more.
    pub(crate) fn teller_gone(&self, by: PeerId, now: Instant) {
        let mut facts = self.facts.lock();
        for told in facts.told.iter_mut().filter(|told| told.by == by) {
            told.until.get_or_insert(now + TOLD_KEEP);
        }
    }

    /// The user gave it up: it is dialled nowhere any more, unless it is configured.
    pub(crate) fn unlearn(&self) {
        let mut facts = self.facts.lock();
        facts.found.clear();
        facts.learned.clear();
        facts.told.clear();
    }

    /// Drops what is told no more.
    pub(crate) fn forget_told(&self, now: Instant) {
        let over = |told: &Told| told.until.is_some_and(|until| now >= until);
        self.facts.lock().told.retain(|told| !over(told));
    }

    /// Adds a configured address and wakes the dialler.
    pub(crate) fn configure(&self, addr: SocketAddr) {
        let mut facts = self.facts.lock();
        if !facts.configured.contains(&addr) {
            facts.configured.push(addr);
        }
        drop(facts);
        self.wake.notify_one();
    }

    /// What the journal knows of it; wakes the dialler when an address is new.
    pub(crate) fn learn(&self, name: &PeerName, addrs: &[SocketAddr], last_seen: u64) {
        let mut facts = self.facts.lock();
        facts.name = Some(name.clone());
        facts.last_seen = facts.last_seen.max(last_seen);
        let new = addrs.iter().any(|a| !facts.learned.contains(a));
        facts.learned = addrs.to_vec();
        drop(facts);
        if new {
            self.wake.notify_one();
        }
    }

    /// Notes why there is no connection. What a person has to act on is a warning, once until it changes.
    pub(crate) fn failed(&self, error: &MemberError, at: Option<SocketAddr>) {
        let serious = match error {
            MemberError::WrongKey
            | MemberError::RefusedUs
            | MemberError::Version(_)
            | MemberError::Protocol
            | MemberError::Wire(_)
            | MemberError::Unexpected(_)
            | MemberError::Stalled
            | MemberError::Removed
            | MemberError::Unlisted => true,
            MemberError::Rekeyed
            | MemberError::OlderKey
            | MemberError::Timeout
            | MemberError::Offline
            | MemberError::Lost(_)
            | MemberError::Myself => false,
            MemberError::Duplicate => return,
        };
        let text = match error {
            MemberError::Version(_) => format!("peer {} {error}", self.label()),
            _ => error.to_string(),
        };
        let mut facts = self.facts.lock();
        // Who said goodbye is expected not to answer.
        let silent = matches!(error, MemberError::Timeout | MemberError::Lost(_));
        let offline = MemberError::Offline.to_string();
        if silent && facts.error.as_ref() == Some(&offline) {
            return;
        }
        let changed = facts.error.as_ref() != Some(&text);
        facts.error = Some(text.clone());
        drop(facts);
        let at = at.map_or_else(|| "unknown address".to_owned(), |a| a.to_string());
        if serious && changed {
            tracing::warn!(
                "no connection with {} ({}) at {at}: {text}",
                self.label(),
                self.id.short()
            );
        } else if changed {
            tracing::debug!("no connection with {} at {at}: {text}", self.label());
        }
    }

    /// The session, if there is one.
    pub(crate) fn session(&self) -> Option<SessionHandle> {
        self.facts.lock().session.clone()
    }

    /// Makes `new` the session unless a better one exists; `me` is our own id. The other one is closed.
    pub(crate) fn admit(&self, me: PeerId, new: SessionHandle) -> bool {
        let mut facts = self.facts.lock();
        if let Some(old) = &facts.session {
            let old_dialler_is_lower = old.dialled == (me < self.id);
            let keep_old = old.conn.close_reason().is_none()
                && old.incarnation == new.incarnation
                && old.dialled != new.dialled
                && old_dialler_is_lower;
            if keep_old {
                drop(facts);
                new.conn
                    .close(CloseCode::Duplicate.code(), b"another connection is in use");
                return false;
            }
            old.conn
                .close(CloseCode::Duplicate.code(), b"another connection is in use");
        }
        facts.session = Some(new);
        facts.error = None;
        facts.last_seen = now();
        drop(facts);
        self.up.send_replace(true);
        true
    }

    /// The session over `conn` ended.
    pub(crate) fn ended(&self, conn: &Connection) {
        let mut facts = self.facts.lock();
        if facts
            .session
            .as_ref()
            .is_some_and(|s| s.conn.stable_id() == conn.stable_id())
        {
            facts.session = None;
            facts.last_seen = now();
            drop(facts);
            self.served.lock().clear();
            self.up.send_replace(false);
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// All peers.
#[derive(Default)]
pub(crate) struct Roster(Mutex<HashMap<PeerId, Arc<Peer>>>);

impl Roster {
    /// Everybody.
    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.0.lock().values().cloned().collect()
    }

    /// The peer of that id.
    pub(crate) fn get(&self, id: PeerId) -> Option<Arc<Peer>> {
        self.0.lock().get(&id).cloned()
    }

    /// The known peer of that id, and whether it is new: then the caller starts its dialler.
    pub(crate) fn known(&self, id: PeerId) -> (Arc<Peer>, bool) {
        let mut peers = self.0.lock();
        let peer = peers
            .entry(id)
            .or_insert_with(|| Peer::new(id, true))
            .clone();
        let new = std::mem::take(&mut peer.facts.lock().stranger);
        (peer, new)
    }

    /// The peer of that id, made as a stranger when unknown; `None` when there are too many of those.
    pub(crate) fn or_stranger(&self, id: PeerId) -> Option<Arc<Peer>> {
        let mut peers = self.0.lock();
        if let Some(peer) = peers.get(&id) {
            return Some(peer.clone());
        }
        if peers.values().filter(|p| p.facts.lock().stranger).count() >= STRANGERS_MAX {
            return None;
        }
        let peer = Peer::new(id, true);
        peers.insert(id, peer.clone());
        Some(peer)
    }

    /// A connection with a stranger has ended: it is forgotten when no other connection with it is left. Gives the peer back
    /// if it is none.
    pub(crate) fn forget_stranger(&self, peer: Arc<Peer>) -> Option<Arc<Peer>> {
        let mut peers = self.0.lock();
        if !peer.facts.lock().stranger {
            return Some(peer);
        }
        // The roster's and ours. Nobody gets another one while the roster is locked.
        let is_known = |known: &Arc<Peer>| Arc::ptr_eq(known, &peer);
        if Arc::strong_count(&peer) == 2 && peers.get(&peer.id).is_some_and(is_known) {
            peers.remove(&peer.id);
        }
        // Under the lock, so that of two that end at once the second one sees that it is the last.
        drop(peer);
        None
    }

    /// Every session.
    pub(crate) fn sessions(&self) -> Vec<(Arc<Peer>, SessionHandle)> {
        self.all()
            .into_iter()
            .filter_map(|p| p.session().map(|s| (p, s)))
            .collect()
    }

    /// Rings the session of that peer, if it has one.
    pub(crate) fn ring(&self, peer: PeerId, input: Input) {
        if let Some(session) = self.get(peer).and_then(|p| p.session()) {
            session.ring(input);
        }
    }

    /// Rings every session.
    pub(crate) fn ring_all(&self, input: impl Fn() -> Input) {
        for (_, session) in self.sessions() {
            session.ring(input());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(ports: &[u16]) -> Vec<SocketAddr> {
        let addr = |port: &u16| SocketAddr::from(([10, 0, 0, 1], *port));
        ports.iter().map(addr).collect()
    }

    fn id(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    #[test]
    fn found_addresses_come_first_and_go_when_they_are_found_no_more() {
        let peer = Peer::new(id(1), false);
        peer.configure(addrs(&[1])[0]);
        peer.learn(&PeerName::parse("alder").unwrap(), &addrs(&[1, 2]), 0);
        peer.told(id(2), &addrs(&[2, 3]));
        peer.found(&addrs(&[4]));
        assert_eq!(peer.addrs(), addrs(&[4, 1, 2, 3]));
        peer.found(&[]);
        assert_eq!(peer.addrs(), addrs(&[1, 2, 3]));
    }

    #[test]
    fn a_stranger_is_kept_as_long_as_one_of_its_connections_is_there() {
        let roster = Roster::default();
        let [first, second] = [(); 2].map(|()| roster.or_stranger(id(1)).unwrap());
        assert!(roster.forget_stranger(first).is_none());
        // The other one says its hello.
        assert!(Arc::ptr_eq(&roster.known(id(1)).0, &second));
        assert!(roster.forget_stranger(second).is_some(), "no stranger");
        assert!(roster.get(id(1)).is_some());

        let [first, second] = [(); 2].map(|()| roster.or_stranger(id(2)).unwrap());
        assert!(roster.forget_stranger(first).is_none());
        assert!(roster.forget_stranger(second).is_none());
        assert!(roster.get(id(2)).is_none());
    }

    #[test]
    fn what_a_member_says_replaces_what_it_said_before() {
        let peer = Peer::new(id(1), false);
        peer.told(id(2), &addrs(&[1, 2]));
        peer.told(id(3), &addrs(&[3]));
        peer.told(id(2), &addrs(&[4]));
        assert_eq!(peer.addrs(), addrs(&[4, 3]));
        peer.told(id(3), &[]);
        assert_eq!(peer.addrs(), addrs(&[4]));
    }

    #[test]
    fn the_word_of_a_member_that_is_gone_counts_for_a_while() {
        let (peer, now) = (Peer::new(id(1), false), Instant::now());
        peer.told(id(2), &addrs(&[1]));
        peer.told(id(3), &addrs(&[2]));
        peer.teller_gone(id(2), now);
        peer.forget_told(now + TOLD_KEEP / 2);
        assert_eq!(peer.addrs().len(), 2);
        peer.teller_gone(id(2), now + TOLD_KEEP / 2);
        peer.forget_told(now + TOLD_KEEP);
        assert_eq!(peer.addrs(), addrs(&[2]));
        peer.teller_gone(id(3), now);
        peer.told(id(3), &addrs(&[3]));
        peer.forget_told(now + TOLD_KEEP);
        assert_eq!(peer.addrs(), addrs(&[3]), "it came back and said so");
    }

    #[test]
    fn one_member_cannot_crowd_out_the_words_of_the_others() {
        let peer = Peer::new(id(1), false);
        peer.told(id(2), &addrs(&[1]));
        for port in 100..999 {
            peer.told(id(3), &addrs(&[port]).repeat(50));
        }
        let many: Vec<u16> = (1000..1100).collect();
        peer.told(id(3), &addrs(&many));
        let known = peer.addrs();
        assert_eq!(known.len(), 1 + TOLD_ADDRS_MAX);
        assert!(known.contains(&addrs(&[1])[0]));
        (4..200).for_each(|n| peer.told(id(n), &addrs(&many)));
        assert!(peer.addrs().len() <= TELLERS_MAX * TOLD_ADDRS_MAX);
    }
}
