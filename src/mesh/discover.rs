//! Discovery: members on one local network find each other without knowing an address (mDNS, DNS-SD).
//!
//! Every node announces one service of the type [`SERVICE`] on each interface over IPv4 and IPv6, with or without a
//! default route, and listens for others. Where a member listens is in the closed part of its announcement ([`mod@seal`]);
//! `book` decides which announcement of a member counts. What is found goes to the peer's dial loop, which is woken.
//! Link-local IPv6 carries announcements, but iroh cannot dial it, so a member needs some other address.
//!
//! # Who learns what
//! An outsider on the network sees that there is a Meshbox at this address and port, no name, no group, no id; labels
//! are random and change at each start and each change of the network. It cannot write an announcement, only repeat
//! one. A wrong address costs an attempt to dial, no more: who answers must own the peer's key, and the group's.
//!
//! # Invariants
//! 1. Nothing is sent or heard when only loopback addresses are bound, and only on the interfaces bound otherwise.
//! 2. Members unknown to the roster that are dialled for an announcement: at most [`NEWCOMERS_MAX`] in one run.
//! 3. What an outsider can make the mDNS service remember is thrown away at [`RECORDS_MAX`].
//!
//! # Threads
//! The mDNS service has a thread of its own, which looks for new interfaces every five seconds; the task here is all
//! that speaks to it. Nothing here touches the disk.

mod book;
mod seal;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use if_addrs::Interface;
use mdns_sd::{
    DaemonEvent, IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo, TxtProperty,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use self::book::Book;
use self::seal::{Announced, Label, open, reaches_others, seal};
use crate::mesh::hub::Hub;
use crate::mesh::wire::ADDRS_MAX;
use crate::peer::{PeerId, random};

/// The type every Meshbox announces, whatever its group.
const SERVICE: &str = "_meshbox._udp.local.";

/// Bytes of the closed part in one TXT string, which holds 255 with its key.
const PIECE: usize = 240;

/// Keys of the pieces, more than the longest announcement needs.
const KEYS: [&str; 5] = ["m0", "m1", "m2", "m3", "m4"];

/// Members we never heard of otherwise and dial all the same. They have proved the group key, but any member can make
/// up ids.
const NEWCOMERS_MAX: usize = 64;

/// Records of others that the mDNS service may remember: hundreds of members.
const RECORDS_MAX: i64 = 10_000;

/// How often expiry and bounds are looked at.
const ROUND: Duration = Duration::from_secs(60);

/// Rest between a change of the network and the new announcement: addresses come in groups.
const CALM: Duration = Duration::from_millis(300);

/// Rest before the mDNS service is started again.
const AGAIN: Duration = Duration::from_secs(30);

/// After a withdrawal others are asked again, at most this often.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Time to take our announcement back at the end.
const FAREWELL: Duration = Duration::from_millis(300);

/// The running discovery.
pub(super) struct Discovery {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Discovery {
    /// Starts it, unless only loopback is bound.
    pub(super) fn start(hub: &Arc<Hub>) -> Option<Self> {
        let bound = hub.net.sockets();
        if !bound.is_empty() && bound.iter().all(|addr| addr.ip().is_loopback()) {
            return None;
        }
        let (stop, stopped) = watch::channel(false);
        let task = hub.runtime.spawn(run(hub.clone(), bound, stopped));
        Some(Self { stop, task })
    }

    /// Takes our announcement back and ends.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        drop(timeout(2 * FAREWELL, self.task).await);
    }
}

async fn run(hub: Arc<Hub>, bound: Vec<SocketAddr>, mut stopped: watch::Receiver<bool>) {
    let mut finder = Finder {
        hub,
        bound,
        book: Book::default(),
        newcomers: HashSet::new(),
        turn: 0,
    };
    let mut warned = false;
    loop {
        let ended = tokio::select! {
            ended = finder.serve() => ended,
            _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
        };
        if *stopped.borrow() {
            return;
        }
        if let Err(error) = ended
            && !std::mem::replace(&mut warned, true)
        {
            tracing::warn!("members on the local network are not looked for: {error}");
        }
        tokio::select! {
            () = sleep(AGAIN) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

/// The mDNS service; ends, with a farewell to the network, when dropped.
struct Service(ServiceDaemon);

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(ended) = self.0.shutdown() {
            drop(ended.recv_timeout(FAREWELL));
        }
    }
}

struct Finder {
    hub: Arc<Hub>,
    bound: Vec<SocketAddr>,
    book: Book,
    newcomers: HashSet<PeerId>,
    turn: u32,
}

impl Finder {
    /// Announces and listens until something is wrong with the service.
    async fn serve(&mut self) -> Result<(), mdns_sd::Error> {
        let service = Service(ServiceDaemon::new()?);
        service
            .0
            .disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
        let only = only_on(&self.bound);
        if !only.is_empty() {
            service.0.disable_interface(IfKind::All)?;
            service.0.enable_interface(only)?;
        }
        let network = service.0.monitor()?;
        let mut heard = service.0.browse(SERVICE)?;
        let mut asked = Instant::now();
        let mut told: Option<(String, Vec<SocketAddr>)> = None;
        let mut under = self.hub.group();
        let mut look = true;
        let mut round = tokio::time::interval(ROUND);
        loop {
            if std::mem::take(&mut look) {
                self.bound = self.hub.net.sockets();
                let addrs = reachable(&self.bound, &interfaces());
                let changed = std::mem::replace(&mut under, self.hub.group()) != under;
                if changed || told.as_ref().is_none_or(|(_, before)| *before != addrs) {
                    let new = self.announce(&service.0, &addrs)?;
                    if let Some((old, _)) = told.replace((new, addrs)) {
                        service.0.unregister(&old)?;
                    }
                }
            }
            tokio::select! {
                event = heard.recv_async() => match event {
                    Ok(ServiceEvent::ServiceResolved(found)) => self.found(&found),
                    Ok(ServiceEvent::ServiceRemoved(_, name)) => {
                        // Whoever is still there says so when asked.
                        if self.gone(&name) && asked.elapsed() > ASK_AGAIN {
                            heard = service.0.browse(SERVICE)?;
                            asked = Instant::now();
                        }
                    }
                    Ok(_) => {}
                    // More at once than there is room for: the service gave up on us.
                    Err(_) => return Ok(()),
                },
                event = network.recv_async() => match event {
                    Ok(DaemonEvent::IpAdd(_) | DaemonEvent::IpDel(_)) => {
                        sleep(CALM).await;
                        look = true;
                    }
                    Ok(DaemonEvent::Error(error)) => tracing::debug!("mDNS: {error}"),
                    Ok(_) => {}
                    Err(_) => return Ok(()),
                },
                () = self.hub.roll.changed.notified() => look = true,
                () = self.hub.net.changed.notified() => look = true,
                _ = round.tick() => {
                    look = true;
                    for id in self.book.expire(Instant::now()) {
                        self.tell(id);
                    }
                    let records = service.0.get_metrics()?.recv_async().await;
                    let cached = |(name, count): (&String, &i64)| {
                        if name.starts_with("cached") { *count } else { 0 }
                    };
                    if records.is_ok_and(|all| all.iter().map(cached).sum::<i64>() > RECORDS_MAX) {
                        tracing::warn!("mDNS: the local network is flooded with announcements");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Announces `addrs` under a new label; gives its full name.
    fn announce(
        &mut self,
        service: &ServiceDaemon,
        addrs: &[SocketAddr],
    ) -> Result<String, mdns_sd::Error> {
        self.turn += 1;
        let label: Label = random();
        let announced = Announced {
            id: self.hub.me,
            rank: (self.hub.store.epoch().0, self.turn),
            addrs: addrs.to_vec(),
        };
        let sealed = seal(
            &self.hub.group(),
            self.hub.store.identity(),
            &label,
            announced,
        )
        .ok_or_else(|| mdns_sd::Error::Msg("the announcement cannot be written".into()))?;
        let pieces = KEYS.iter().zip(sealed.chunks(PIECE));
        let text: Vec<TxtProperty> = pieces.map(TxtProperty::from).collect();
        let name = data_encoding::HEXLOWER.encode(&label);
        let host = format!("{name}.local.");
        // The record wants one port; ours can differ between families, so members take theirs from the closed part.
        let port = addrs.first().or(self.bound.first()).map_or(0, |a| a.port());
        let mut info = ServiceInfo::new(SERVICE, &name, &host, "", port, text)?.enable_addr_auto();
        let only = only_on(&self.bound);
        if !only.is_empty() {
            info.set_interfaces(only);
        }
        // 128 random bits are nobody else's.
        info.set_requires_probe(false);
        let full = info.get_fullname().to_owned();
        service.register(info)?;
        tracing::debug!("announced on the local network: {addrs:?}");
        Ok(full)
    }

    fn found(&mut self, found: &ResolvedService) {
        let Some((label, sealed)) = closed_part(found) else {
            return;
        };
        // A member that was away announces itself under an older key.
        let keys = self.hub.store.group.keys();
        let opened = |(n, key)| Some((n, open(key, &label, &sealed)?));
        let Some((which, said)) = keys.iter().enumerate().find_map(opened) else {
            return;
        };
        let entitled = which == 0 || !self.hub.store.group.older_keys_for(said.id).is_empty();
        if !entitled || said.id == self.hub.me || !self.is_welcome(said.id) {
            return;
        }
        let usable = |addr: &SocketAddr| reaches_others(addr.ip()) && addr.port() != 0;
        let addrs = said.addrs.into_iter().filter(usable).collect();
        self.book.heard(said.id, label, said.rank, addrs);
        self.tell(said.id);
    }

    fn gone(&mut self, name: &str) -> bool {
        let gone = label_of(name).and_then(|label| self.book.gone(&label, Instant::now()));
        if let Some(id) = gone {
            self.tell(id);
        }
        gone.is_some()
    }

    fn tell(&self, id: PeerId) {
        self.hub.known(id).found(self.book.addrs(id));
    }

    fn is_welcome(&mut self, id: PeerId) -> bool {
        if self.hub.is_out(id) {
            return false;
        }
        let named = self
            .hub
            .roster
            .get(id)
            .is_some_and(|peer| peer.name().is_some());
        if named || self.newcomers.contains(&id) {
            return true;
        }
        self.newcomers.len() < NEWCOMERS_MAX && self.newcomers.insert(id)
    }
}

/// The interfaces of this machine; none when they cannot be read.
fn interfaces() -> Vec<Interface> {
    if_addrs::get_if_addrs().unwrap_or_default()
}

/// Where others on the network reach the sockets in `bound`. Point-to-point interfaces have no neighbours.
fn reachable(bound: &[SocketAddr], interfaces: &[Interface]) -> Vec<SocketAddr> {
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for interface in interfaces.iter().filter(|i| i.is_oper_up() && !i.is_p2p()) {
        let ip = interface.ip();
        if !reaches_others(ip) {
            continue;
        }
        for socket in bound {
            let any = socket.ip().is_unspecified() && socket.is_ipv4() == ip.is_ipv4();
            if any || socket.ip() == ip {
                addrs.push(SocketAddr::new(ip, socket.port()));
            }
        }
    }
    addrs.sort_unstable();
    addrs.dedup();
    addrs.truncate(ADDRS_MAX);
    addrs
}

/// The interfaces to keep to; empty: all.
fn only_on(bound: &[SocketAddr]) -> Vec<IfKind> {
    if bound.iter().any(|addr| addr.ip().is_unspecified()) {
        return Vec::new();
    }
    let others = bound
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| reaches_others(*ip));
    others.map(IfKind::Addr).collect()
}

/// The label in the full name of a service.
fn label_of(name: &str) -> Option<Label> {
    let label = name.split('.').next()?;
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(label.as_bytes());
    bytes.ok()?.try_into().ok()
}

fn closed_part(found: &ResolvedService) -> Option<(Label, Vec<u8>)> {
    let label = label_of(found.get_fullname())?;
    let pieces = KEYS
        .iter()
        .map_while(|key| found.get_property_val(key).flatten());
    Some((label, pieces.flatten().copied().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn listening_at_some_addresses_keeps_to_their_interfaces() {
        assert!(only_on(&addrs(&["0.0.0.0:7", "[::]:8"])).is_empty());
        let some = only_on(&addrs(&["10.0.0.1:7", "127.0.0.1:7"]));
        assert!(matches!(some[..], [IfKind::Addr(ip)] if ip.to_string() == "10.0.0.1"));
    }

    #[test]
    fn only_what_is_bound_is_told_and_loopback_never() {
        let here = interfaces();
        assert_eq!(reachable(&addrs(&["127.0.0.1:7", "[::1]:7"]), &here), []);
        let any = reachable(&addrs(&["0.0.0.0:7"]), &here);
        assert!(
            any.iter()
                .all(|a| a.is_ipv4() && a.port() == 7 && !a.ip().is_loopback())
        );
        assert!(any.len() <= ADDRS_MAX);
    }

    #[test]
    fn labels_are_read_from_names_and_nothing_else_is_one() {
        let label: Label = random();
        let name = format!("{}.{SERVICE}", data_encoding::HEXLOWER.encode(&label));
        assert_eq!(label_of(&name), Some(label));
        for bad in ["", "x", "printer._meshbox._udp.local.", "00.", "é."] {
            assert_eq!(label_of(bad), None, "{bad}");
        }
    }
}
