//! The mesh: everything that speaks to other machines, over iroh.
//!
//! Two connections per pair. *Control* carries hellos, offers with small content, answers and receipts; *bulk* carries
//! ranges of larger content, each on a stream of its own, so that trouble in bulk never takes control down. Every
//! connection begins with a mutual proof of the group key (`member`). What is said is defined in `wire`, who dials and
//! accepts in `link`, what is to be sent in [`crate::delivery`].
//!
//! # Goals
//! - Delivery depends on the exchange of pending ids at every connection and on rescans, never on the live push.
//! - One peer that is offline, slow or hostile costs the others nothing: every queue it can fill is its own and bounded.
//! - Nobody without the group key gets an answer; nobody but a recipient gets content, names or ids of a bundle.
//!
//! # Non-goals
//! Relays, DNS and public discovery: peers are dialled at configured, told or ticketed addresses, and at those they
//! announce on the local network (`discover`). Who is
//! offered what is the spool's to say; beside its origin also holders offer a bundle (`custody`).
//!
//! # Threads
//! One tokio runtime of two workers, owned by [`Mesh`]. Disk is touched on its blocking threads only.
//! Nothing here is durable; a crash loses connections, and the next exchange of pending ids repairs the rest.

mod budget;
mod cancel;
mod congestion;
mod custody;
mod discover;
mod door;
mod endpoint;
mod fetch;
mod join;
mod lane;
mod limits;
mod link;
mod member;
mod membership;
mod net;
mod offer;
mod out;
mod pacer;
mod reader;
mod roster;
mod serve;
mod session;
pub(crate) mod store;
mod twins;
mod windows;
mod wire;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iroh::RelayUrl;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::budget::Budget;
pub use self::congestion::Congestion;
use self::congestion::Paths;
use self::custody::Care;
use self::discover::Discovery;
use self::fetch::Fetches;
pub use self::join::{JoinError, knock, redeem};
use self::member::CloseCode;
use self::net::Net;
use self::offer::Blames;
use self::pacer::Pacer;
use self::roster::{Peer, Roster};
use self::session::Input;
use self::store::Store;
use self::twins::Twins;
use self::windows::Windows;
use self::wire::{ADDRS_MAX, Hello, MEMBERS_MAX, Told};
use crate::peer::{GroupKey, PeerId, PeerName, Ticket};
use crate::spool::{Event, Member, Spool};

/// Threads that run the network; disk work has threads of its own.
const WORKERS: usize = 2;

/// Most threads that block on disk at once: fetches (32), two lanes for each of some dozen peers, and reads.
const BLOCKING_MAX: usize = 160;

/// Events of the spool waiting to be passed on. More than a full delivery window of every kind; a ring that does not
/// fit leads to a rescan.
const RINGS: usize = 4096;

/// How often a lost ring is looked for.
const LOST_RING: Duration = Duration::from_secs(1);

/// How long peers may take to hear that we end: milliseconds when they live, more only where one is silent.
const STOP: Duration = Duration::from_secs(1);

/// The same when no peer is connected: only attempts to dial are given up, and nobody waits to hear of it.
const STOP_ALONE: Duration = Duration::from_millis(100);

/// What the mesh is told at start.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// What we call ourselves.
    pub name: PeerName,
    /// The group's secret.
    pub group: GroupKey,
    /// Addresses to bind; empty: all interfaces, any port, both families.
    pub listen: Vec<SocketAddr>,
    /// Whether to wait for addresses that the machine does not have yet, as when it starts us before its network. Those
    /// that were bound before are waited for in any case.
    pub wait_for_addresses: bool,
    /// Static peers.
    pub peers: Vec<(PeerId, SocketAddr)>,
    /// The ticket we were invited with, if this start has one.
    pub ticket: Option<Ticket>,
    /// Whether to announce ourselves and look for members on the local network.
    pub mdns: bool,
    /// Congestion control.
    pub congestion: Congestion,
    /// URLs of relays through which members are reached that cannot be reached directly; the same ones at all members.
    pub relays: Vec<String>,
}

/// One peer as `status` and `peers` show it.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its id as hex.
    pub id: String,
    /// Its name, if it ever said.
    pub name: String,
    /// Whether its hello was accepted on a connection that is up.
    pub connected: bool,
    /// Bundles we owe it.
    pub pending: u64,
    /// Seconds since 1970 of the last contact; 0 if never.
    pub last_seen: u64,
    /// Addresses known.
    pub addrs: Vec<SocketAddr>,
    /// Why it is not connected, in words, if known (wrong group key, newer version, no route…).
    pub error: Option<String>,
    /// Why it is slowed, if it is.
    pub limited: Option<String>,
    /// How often it was slowed.
    pub slowed: u64,
}

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// An address could not be bound.
    #[error("cannot listen on {0}: {1}")]
    Bind(String, String),
    /// What is configured as a relay is no URL.
    #[error("{0:?} is not the URL of a relay, such as http://10.0.0.1:3340")]
    Relay(String),
    /// The runtime could not be made.
    #[error("cannot start the network threads: {0}")]
    Runtime(std::io::Error),
}

/// What all parts of the mesh share.
pub(crate) struct Hub {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) me: PeerId,
    /// Through which members are reached that cannot be reached directly.
    pub(crate) relays: Vec<RelayUrl>,
    pub(crate) net: Net,
    /// The key at the start, for a store without a roll; see [`Hub::group`].
    group: GroupKey,
    /// Rung when the roll changed.
    pub(crate) rekeyed: Notify,
    /// The roll that the connections were last held against.
    roll_seen: Mutex<Option<[u8; 32]>>,
    pub(crate) roster: Roster,
    pub(crate) budget: Arc<Budget>,
    windows: Windows,
    /// Held while a long manifest is made of bytes, or bytes of it.
    pub(crate) heavy: tokio::sync::Mutex<()>,
    pub(crate) fetches: Fetches,
    pub(crate) blames: Blames,
    pub(crate) pacer: Pacer,
    pub(crate) paths: Paths,
    pub(crate) care: Care,
    pub(crate) twins: Twins,
    name: PeerName,
    runtime: Handle,
    stopping: AtomicBool,
}

impl Hub {
    /// Whether the mesh is about to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The peer of that id, with its dial loop running.
    pub(crate) fn known(self: &Arc<Self>, id: PeerId) -> Arc<Peer> {
        let (peer, new) = self.roster.known(id);
        if new && id != self.me && !self.is_out(id) {
            self.runtime.spawn(link::dial(self.clone(), peer.clone()));
        }
        peer
    }

    /// What to call a peer in logs.
    pub(crate) fn label_of(&self, id: PeerId) -> String {
        self.roster
            .get(id)
            .map_or_else(|| id.short(), |p| p.label())
    }

    /// Our side of the hello.
    pub(crate) fn hello(&self, to: PeerId) -> Hello {
        let (epoch, incarnation) = self.store.epoch();
        Hello {
            name: self.name.clone(),
            epoch,
            incarnation,
            seen: self.store.epoch_seen_of(to),
            addrs: first(self.net.listen_addrs()),
            members: self.members_to_tell(),
        }
    }

    /// All members we know, as told to others.
    pub(crate) fn members_to_tell(&self) -> Vec<Told> {
        let told = |m: Member| Told {
            id: m.id,
            name: m.name,
            addrs: first(m.addrs),
        };
        self.store
            .members()
            .into_iter()
            .take(MEMBERS_MAX)
            .map(told)
            .collect()
    }

    /// Records what a member said of itself and of others; `told` is the highest epoch we had told it before, `via`
    /// where we reached it, if we dialled. Blocks on disk.
    pub(crate) fn greeted(
        self: &Arc<Self>,
        id: PeerId,
        hello: &Hello,
        told: u64,
        via: Option<SocketAddr>,
    ) {
        // It saw an epoch that this start never told it: our state is an old copy, and another start had that epoch.
        let taken = hello.seen >= self.store.epoch().0 && hello.seen > told;
        if taken && let Err(error) = self.store.raise_epoch(hello.seen) {
            tracing::error!("the epoch cannot be raised: {error}");
        }
        if taken {
            let (name, seen) = (&hello.name, hello.seen);
            let text = format!(
                "this state is an older copy (a restored backup?): {name} has seen epoch {seen} of this node; what is sent from now on counts as newer"
            );
            self.twins.notice(self.me, "restored", text);
        }
        if self.twins.hello(id, hello.incarnation) {
            let text = format!(
                "{} ({}) runs twice: two daemons use copies of one state; stop one of them, and give it a state of its own",
                hello.name,
                id.short()
            );
            self.twins.notice(id, "twin", text);
            self.twins
                .mark(id, "runs twice: two daemons use copies of its state");
        }
        // Behind a forwarded port it does not know the address at which we found it.
        let mut addrs = usable(&hello.addrs);
        addrs.extend(via.filter(|via| !addrs.is_empty() && !addrs.contains(via)));
        if let Err(error) = self.store.member_seen(id, &hello.name, &addrs, true) {
            tracing::error!("member {} not recorded: {error}", hello.name);
        }
        self.saw_epoch(&self.known(id), hello.epoch);
        self.told(&hello.members, id);
        self.refresh();
    }

    /// `peer` has seen another run of this node.
    pub(crate) fn told_of_twin(&self, peer: &Peer, run: [u8; 16]) {
        if run != self.store.epoch().1 {
            let text = format!(
                "another daemon uses a copy of this state, says {}: stop one of them, and give it a state of its own",
                peer.label()
            );
            self.twins.notice(self.me, "twin", text);
            let words = "has met another daemon that uses a copy of this node's state";
            self.twins.mark(peer.id, words);
        }
    }

    /// Remembers the epoch of `peer`, to tell it should it ever fall behind. Blocks on disk when it is new.
    pub(crate) fn saw_epoch(&self, peer: &Peer, epoch: u64) {
        if peer.epoch_seen.fetch_max(epoch, Ordering::Relaxed) < epoch
            && let Err(error) = self.store.note_epoch(peer.id, epoch)
        {
            tracing::error!("the epoch of {} not recorded: {error}", peer.label());
        }
    }

    /// Takes the word of `from` on who is a member and where. New members are recorded; where a known one is by
    /// another's word is not, since it says so itself when it is reached. Blocks on disk.
    pub(crate) fn told(self: &Arc<Self>, told: &[Told], from: PeerId) {
        let known: HashSet<PeerId> = self.store.members().iter().map(|m| m.id).collect();
        let mut changed = false;
        for member in told {
            if member.id == self.me || member.id == from || self.is_out(member.id) {
                continue;
            }
            let addrs = usable(&member.addrs);
            if known.contains(&member.id) {
                self.known(member.id).told(from, &addrs);
                continue;
            }
            match self
                .store
                .member_seen(member.id, &member.name, &addrs, false)
            {
                Ok(()) => changed = true,
                Err(error) => tracing::error!("member {} not recorded: {error}", member.name),
            }
        }
        if changed {
            self.refresh();
        }
    }

    /// A session ended: unless there is another, that peer's word on the others counts for a while only.
    pub(crate) fn teller_gone(&self, teller: &Peer) {
        if teller.session().is_none() {
            let now = Instant::now();
            for peer in self.roster.all() {
                peer.teller_gone(teller.id, now);
            }
        }
    }

    /// Takes over what the journal knows of the members, and dials new ones.
    fn refresh(self: &Arc<Self>) {
        for member in self.store.members() {
            if member.id != self.me {
                self.known(member.id)
                    .learn(&member.name, &member.addrs, member.last_seen);
            }
        }
        for peer in self.roster.all() {
            if self.is_given_up(&peer) {
                peer.unlearn();
            }
        }
    }

    /// Whether the user gave up a peer that is not there.
    fn is_given_up(&self, peer: &Peer) -> bool {
        peer.session().is_none() && self.store.is_forgotten(peer.id)
    }

    /// Passes the spool's events on to the sessions.
    async fn dispatch(self: Arc<Self>, mut rings: mpsc::Receiver<Event>, lost: Arc<AtomicBool>) {
        let mut ticker = interval(LOST_RING);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ring = rings.recv() => match ring {
                    Some(event) => self.pass(event).await,
                    None => return,
                },
                _ = ticker.tick() => {
                    if lost.swap(false, Ordering::Relaxed) {
                        self.ring_all(|| Input::Rescan);
                    }
                }
            }
        }
    }

    async fn pass(self: &Arc<Self>, event: Event) {
        match event {
            Event::Sealed(bundle, priority) => self.ring_all(|| Input::Sealed(bundle, priority)),
            Event::ReceiptReady(receipt) => {
                if receipt.recipient == self.me {
                    custody::settled(self, &receipt).await;
                }
                self.ring(receipt.origin, Input::Receipt(receipt));
            }
            Event::Closed(bundle) => self.care.closed(bundle),
            Event::PendingChanged(peer) => self.ring(peer, Input::Rescan),
            Event::Retry(bundle, peer) => {
                // What it said before counts no more: the journal still owes it, so the scan finds it as new.
                self.ring(peer, Input::Event(crate::delivery::Event::Gone(bundle)));
                self.ring(peer, Input::Rescan);
            }
            Event::MembersChanged => {
                let hub = self.clone();
                drop(tokio::task::spawn_blocking(move || hub.refresh()).await);
                self.keep_out();
                self.ring_all(|| Input::Members);
            }
            Event::StatusChanged => {}
        }
    }

    fn ring(&self, peer: PeerId, input: Input) {
        if let Some(session) = self.roster.get(peer).and_then(|p| p.session()) {
            session.ring(input);
        }
    }

    fn ring_all(&self, input: impl Fn() -> Input) {
        for (_, session) in self.roster.sessions() {
            session.ring(input());
        }
    }
}

/// As many as may be told.
fn first(mut addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addrs.truncate(ADDRS_MAX);
    addrs
}

fn join_words(error: Option<String>, mark: Option<&str>) -> Option<String> {
    match (error, mark) {
        (Some(error), Some(mark)) => Some(format!("{error}; {mark}")),
        (error, mark) => error.or_else(|| mark.map(str::to_owned)),
    }
}

/// Addresses that can be dialled at all, and not too many.
fn usable(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let dialable = |a: &&SocketAddr| {
        let ip = a.ip();
        let nowhere = ip.is_unspecified() || ip.is_multicast() || endpoint::is_link_local(ip);
        a.port() != 0 && !nowhere
    };
    addrs
        .iter()
        .filter(dialable)
        .take(ADDRS_MAX)
        .copied()
        .collect()
}

/// The running mesh. Stopped by [`Mesh::stop`], or when dropped.
pub struct Mesh {
    hub: Arc<Hub>,
    discovery: Option<Discovery>,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh({})", self.hub.me.short())
    }
}

impl Mesh {
    /// Binds the endpoint, starts accepting and dialling. Returns when the endpoint is bound.
    pub fn start(spool: Arc<Spool>, config: MeshConfig) -> Result<Self, MeshError> {
        Self::start_on(Arc::new(spool), config)
    }

    /// [`Mesh::start`] on any store.
    pub(crate) fn start_on(store: Arc<dyn Store>, config: MeshConfig) -> Result<Self, MeshError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_MAX)
            .thread_name("mesh")
            .enable_all()
            .build()
            .map_err(MeshError::Runtime)?;
        let relays = endpoint::parse_relays(&config.relays)?;
        let remembered = store.remembered_listen();
        let (identity, listen) = (store.identity(), &config.listen);
        let may_wait = config.wait_for_addresses;
        let bound = net::bind_first(identity, listen, &remembered, &relays, may_wait);
        let bound = runtime.block_on(bound)?;
        if let Some(sockets) = bound.whole()
            && let Err(error) = store.remember_listen(&sockets)
        {
            tracing::warn!("the ports cannot be remembered: {error}");
        }
        let hub = Arc::new(Hub {
            me: store.identity().id(),
            store,
            group: config.group,
            rekeyed: Notify::new(),
            roll_seen: Mutex::default(),
            net: Net::start(bound, config.listen, relays.clone()),
            roster: Roster::default(),
            budget: Arc::default(),
            windows: Windows::default(),
            heavy: tokio::sync::Mutex::new(()),
            fetches: Fetches::default(),
            blames: Blames::default(),
            pacer: Pacer::default(),
            paths: Paths::new(config.congestion),
            relays,
            care: Care::default(),
            twins: Twins::default(),
            name: config.name,
            runtime: runtime.handle().clone(),
            stopping: AtomicBool::new(false),
        });
        let (ring, rings) = mpsc::channel(RINGS);
        let lost = Arc::new(AtomicBool::new(false));
        let flag = lost.clone();
        hub.store.subscribe(Box::new(move |event| {
            if *event != Event::StatusChanged && ring.try_send(event.clone()).is_err() {
                flag.store(true, Ordering::Relaxed);
            }
        }));
        for (id, addr) in config.peers {
            if id != hub.me {
                hub.known(id).configure(addr);
            }
        }
        if let Some(ticket) = config.ticket.filter(|t| t.inviter != hub.me)
            && let Err(error) =
                hub.store
                    .member_seen(ticket.inviter, &ticket.name, &usable(&ticket.addrs), false)
        {
            tracing::error!("member {} not recorded: {error}", ticket.name);
        }
        hub.refresh();
        runtime.spawn(hub.clone().dispatch(rings, lost));
        runtime.spawn(net::keep(hub.clone()));
        runtime.spawn(custody::run(hub.clone()));
        let discovery = if config.mdns {
            Discovery::start(&hub)
        } else {
            None
        };
        Ok(Self {
            hub,
            discovery,
            runtime: Some(runtime),
        })
    }

    /// The addresses really bound, as others can dial them: for an unspecified address those of the interfaces,
    /// loopback included only when that is what is bound.
    pub fn listen_addrs(&self) -> Vec<SocketAddr> {
        self.hub.net.listen_addrs()
    }

    /// What the user should know: addresses that are missing, and copies of states that are in use.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = self.hub.twins.notices();
        notices.extend(self.hub.net.trouble());
        notices
    }

    /// Every known peer.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let members: HashMap<PeerId, Member> = self
            .hub
            .store
            .members()
            .into_iter()
            .map(|m| (m.id, m))
            .collect();
        let status = |peer: Arc<Peer>| {
            let member = members.get(&peer.id);
            let connected = peer.session().is_some();
            let name = peer.name().or_else(|| member.map(|m| m.name.clone()));
            PeerStatus {
                id: peer.id.to_string(),
                name: name.map(String::from).unwrap_or_default(),
                connected,
                pending: self.hub.store.pending_count(peer.id),
                last_seen: if connected {
                    roster::now()
                } else {
                    peer.last_seen()
                },
                addrs: peer.addrs(),
                error: join_words(
                    if connected { None } else { peer.error() },
                    self.hub.twins.mark_of(peer.id),
                ),
                limited: peer.meter.limited(Instant::now()),
                slowed: peer.meter.slowed(),
            }
        };
        let all = self.hub.roster.all().into_iter();
        let mut all: Vec<PeerStatus> = all
            .filter(|peer| !self.hub.is_given_up(peer) && !self.hub.is_out(peer.id))
            .map(status)
            .collect();
        all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        all
    }

    /// How often lesser content made way for something more urgent.
    pub fn paced(&self) -> u64 {
        self.hub.pacer.held()
    }

    /// Closes all connections and ends the runtime, within a few seconds.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        self.hub.stopping.store(true, Ordering::Relaxed);
        if let Some(discovery) = self.discovery.take() {
            runtime.block_on(discovery.stop());
        }
        let sessions = self.hub.roster.sessions();
        for (peer, session) in &sessions {
            session.conn.close(CloseCode::Stopping.code(), b"stopping");
            if let Some(bulk) = peer.bulk.borrow().as_ref() {
                bulk.close(CloseCode::Stopping.code(), b"stopping");
            }
        }
        let patience = if sessions.is_empty() {
            STOP_ALONE
        } else {
            STOP
        };
        if let Some(endpoint) = self.hub.net.endpoint() {
            let closed = runtime.block_on(async { timeout(patience, endpoint.close()).await });
            if closed.is_err() {
                // All was sent that can be; what is waited for is the answer of somebody who is gone. An endpoint
                // dropped in this state logs an error, so it is left to the end of the process.
                std::mem::forget(endpoint);
            }
        }
        runtime.shutdown_timeout(STOP);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.end();
    }
}
