//! The mesh: everything that speaks to other machines, over iroh.
//!
//! Two connections per pair. *Control* carries hellos, offers with small content, answers and receipts; *bulk* carries
//! ranges of larger content, each on a stream of its own, so that trouble in bulk never takes control down. Every
//! connection begins with a mutual proof of the group key (`member`). Frames and what follows from
//! them are in [`crate::protocol`]; `wire` encodes them, `session` carries out what the core decides, `link` dials and accepts.
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

mod blames;
mod budget;
mod cancel;
mod care;
mod congestion;
mod custody;
mod discover;
mod door;
mod endpoint;
mod error;
mod fetch;
mod hello;
mod hub;
mod intake;
mod join;
mod keeper;
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
mod rings;
mod roster;
mod serve;
mod session;
mod twins;
mod windows;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::timeout;

use self::blames::Blames;
use self::care::Care;
pub(crate) use self::congestion::Congestion;
use self::congestion::Paths;
use self::discover::Discovery;
use self::endpoint::STOP;
pub(crate) use self::error::MeshError;
use self::fetch::Fetches;
use self::hello::usable;
use self::hub::{Hub, RollSeen};
pub(crate) use self::join::{Asked, knock, redeem};
use self::member::CloseCode;
use self::net::Net;
use self::pacer::Pacer;
use self::rings::Rings;
use self::roster::{Peer, Roster};
use self::twins::Twins;
use crate::peer::{PeerId, PeerName, Ticket};
use crate::spool::{Member, Spool};

/// Threads that run the network; disk work has threads of its own.
const WORKERS: usize = 2;

/// Most threads that block on disk at once: fetches (32), two lanes for each of some dozen peers, and reads.
const BLOCKING_MAX: usize = 160;

/// [`STOP`] when no peer is connected: only attempts to dial are given up, and nobody waits to hear of it.
const STOP_ALONE: Duration = Duration::from_millis(100);

/// What the mesh is told at start.
#[derive(Clone, Debug)]
pub(crate) struct MeshConfig {
    /// What we call ourselves.
    pub name: PeerName,
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

/// Since when a peer is not connected, in seconds since 1970 (0: it never was), and why, if that is known.
pub(crate) type Gone = (u64, Option<String>);

/// One peer as `status` and `peers` show it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PeerStatus {
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

/// Who took the word of a node that leaves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Farewell {
    /// Names of the members that have taken it. They pass it on.
    pub told: Vec<String>,
    /// Names of those that were away.
    pub untold: Vec<String>,
}

fn join_words(error: Option<String>, mark: Option<&str>) -> Option<String> {
    match (error, mark) {
        (Some(error), Some(mark)) => Some(format!("{error}; {mark}")),
        (error, mark) => error.or_else(|| mark.map(str::to_owned)),
    }
}

/// The running mesh. Stopped by [`Mesh::stop`], or when dropped.
pub(crate) struct Mesh {
    hub: Arc<Hub>,
    /// Whether to look for members on the local network.
    mdns: bool,
    discovery: Option<Discovery>,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh({})", self.hub.me.short())
    }
}

impl Mesh {
    /// Binds the endpoint. Nobody is dialled or let in before [`Self::open`]: a start that fails in between was nobody's
    /// member. `store` has entered its group.
    pub(crate) fn bind(store: Arc<Spool>, config: MeshConfig) -> Result<Self, MeshError> {
        if store.group.keys().is_empty() {
            return Err(MeshError::NoGroup);
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_MAX)
            .thread_name("mesh")
            .enable_all()
            .build()
            .map_err(MeshError::Runtime)?;
        let relays = endpoint::parse_relays(&config.relays)?;
        let remembered = store.group.remembered_listen();
        let (identity, listen) = (store.identity(), &config.listen);
        let may_wait = config.wait_for_addresses;
        let bound = net::bind_first(identity, listen, &remembered, &relays, may_wait);
        let bound = runtime.block_on(bound)?;
        if let Some(sockets) = bound.whole()
            && let Err(error) = store.group.remember_listen(&sockets)
        {
            tracing::warn!("the ports cannot be remembered: {error}");
        }
        let paths = Paths::new(config.congestion);
        let hub = Arc::new(Hub {
            me: store.identity().id(),
            store,
            name: config.name,
            net: Net::start(bound, config.listen, relays, paths),
            roll: RollSeen::default(),
            roster: Roster::default(),
            budget: Arc::default(),
            heavy: tokio::sync::Mutex::new(()),
            fetches: Fetches::default(),
            blames: Blames::default(),
            pacer: Pacer::default(),
            care: Care::default(),
            twins: Twins::default(),
            dial: |hub, peer| {
                let runtime = hub.runtime.clone();
                runtime.spawn(link::dial(hub, peer));
            },
            runtime: runtime.handle().clone(),
            open: watch::Sender::new(false),
            stopping: AtomicBool::new(false),
        });
        let rings = Rings::of(&hub.store);
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
        runtime.spawn(rings.pass_on(hub.clone()));
        runtime.spawn(keeper::keep(hub.clone()));
        runtime.spawn(custody::run(hub.clone()));
        Ok(Self {
            hub,
            mdns: config.mdns,
            discovery: None,
            runtime: Some(runtime),
        })
    }

    /// Starts accepting and dialling.
    pub(crate) fn open(&mut self) {
        if !self.hub.open.send_replace(true) && self.mdns {
            self.discovery = Discovery::start(&self.hub);
        }
    }

    /// The addresses really bound, as others can dial them: for an unspecified address those of the interfaces,
    /// loopback included only when that is what is bound.
    pub(crate) fn listen_addrs(&self) -> Vec<SocketAddr> {
        self.hub.net.listen_addrs()
    }

    /// What the user should know: addresses that are missing, and copies of states that are in use.
    pub(crate) fn notices(&self) -> Vec<String> {
        let mut notices = self.hub.twins.notices();
        notices.extend(self.hub.net.trouble());
        notices
    }

    /// Every known peer.
    pub(crate) fn peers(&self) -> Vec<PeerStatus> {
        let members: HashMap<PeerId, Member> = self
            .hub
            .store
            .group
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
                pending: self.hub.store.ledger.pending_count(peer.id),
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

    /// Each known peer, and since when it is not connected, in seconds since 1970 (0: ever), with the reason where it is
    /// known; `None`: it is.
    pub(crate) fn links(&self) -> Vec<(PeerId, Option<Gone>)> {
        let all = self.hub.roster.all().into_iter();
        let since = |peer: &Peer| match peer.session() {
            Some(_) => None,
            None => Some((peer.last_seen(), peer.error())),
        };
        all.map(|peer| (peer.id, since(&peer))).collect()
    }

    /// Says by `say` that this node leaves the group, and waits until the members that are connected have taken it, at most
    /// for `limit`: each ends the connection then. Not to be called from a thread of the mesh.
    pub(crate) fn leave<E>(
        &self,
        limit: Duration,
        say: impl FnOnce() -> Result<(), E>,
    ) -> Result<Farewell, E> {
        let connected: Vec<Arc<Peer>> = {
            let sessions = self.hub.roster.sessions().into_iter();
            sessions.map(|(peer, _)| peer).collect()
        };
        let mut farewell = Farewell::default();
        let away = self.peers().into_iter().filter(|peer| !peer.connected);
        farewell.untold.extend(away.map(|peer| peer.name));
        say()?;
        if let Some(runtime) = &self.runtime {
            let taken = async {
                for peer in &connected {
                    // The sender lives as long as the peer, so there is no error.
                    drop(peer.put_us_out.subscribe().wait_for(|out| *out).await);
                }
            };
            // Who has not answered by then is among those that were not told.
            drop(runtime.block_on(async { timeout(limit, taken).await }));
        }
        for peer in connected {
            match *peer.put_us_out.borrow() {
                true => farewell.told.push(peer.label()),
                false => farewell.untold.push(peer.label()),
            }
        }
        Ok(farewell)
    }

    /// Waits until there is a session with `id`, at most for `limit`; says whether there is one. Not to be called from a
    /// thread of the mesh.
    pub(crate) fn wait_connected(&self, id: PeerId, limit: Duration) -> bool {
        let (Some(runtime), Some(peer)) = (&self.runtime, self.hub.roster.get(id)) else {
            return false;
        };
        let mut up = peer.up.subscribe();
        let connected = async { timeout(limit, up.wait_for(|up| *up)).await.is_ok() };
        runtime.block_on(connected)
    }

    /// How often lesser content made way for something more urgent.
    #[cfg(test)]
    pub(crate) fn paced(&self) -> u64 {
        self.hub.pacer.held()
    }

    /// Closes all connections and ends the runtime, within a few seconds.
    pub(crate) fn stop(mut self) {
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
            self.hub.saw_last(peer.id);
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
