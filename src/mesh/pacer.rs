//! The pacer: on one interface, content of a lesser priority makes way while something more urgent is under way.
//!
//! QUIC shares a link fairly between connections and knows nothing of what is in them. So before every piece that is
//! served, and after every offer, [`Pacer`] is told of its priority. While anything more urgent went out over the same
//! interface less than a moment ago (two round trips: time for the peer to ask for more), lesser ranges are let through
//! in small pieces only: an eighth of what the urgent ones take, or one piece every [`TRICKLE_EVERY`], whichever is
//! more. What is buffered for a connection counts as under way as long as packets go out ([`Pacer::keep`]); a peer that
//! stops to acknowledge stops that too, so nobody can hold the others back by doing nothing.
//!
//! # Invariants
//! 1. Nothing waits for ever: a piece is let through every [`TRICKLE_EVERY`].
//! 2. Priorities that are equal never wait for each other.
//!
//! Nothing here is durable. Interfaces are told apart by the local address the kernel routes by; where that is not
//! known, all share one.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iroh::TransportAddr;
use iroh::endpoint::Connection;
use parking_lot::Mutex;

use crate::bundle::Priority;

/// What is let through at once while something more urgent is under way: 1.3 ms of a link of 100 Mbit/s.
const TRICKLE: usize = 16 * 1024;

/// How often that is, whatever else goes on.
const TRICKLE_EVERY: Duration = Duration::from_millis(50);

/// The share of what the urgent take that the others get.
const SHARE: u64 = 8;

/// Most of that share that is saved up.
const CREDIT_MAX: u64 = 256 * 1024;

/// Least and longest time for which something urgent counts as under way. The first covers what the other side needs to
/// ask for more on a LAN, the second bounds what one member with a bad path costs the others.
const HOLD: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// What was not served for so long is not held back any more by looking after it.
const LATELY: Duration = Duration::from_secs(5);

/// How long the interface of an address is remembered, and of how many.
const ROUTE_KEEP: Duration = Duration::from_secs(5);
const ROUTES_MAX: usize = 1024;

/// The number of priorities.
const CLASSES: usize = 5;

/// One interface.
#[derive(Debug, Default)]
struct Way {
    /// Until when each priority counts as under way.
    until: [Option<Instant>; CLASSES],
    /// When the next piece is let through in any case.
    trickle: Option<Instant>,
    /// What the lesser priorities may take as their share.
    credit: u64,
    /// When each priority last asked.
    asked: [Option<Instant>; CLASSES],
}

impl Way {
    /// Something of that priority went out.
    fn note(&mut self, class: usize, bytes: u64, rtt: Duration, now: Instant) {
        if class > 0 {
            let until = now + (2 * rtt).clamp(HOLD.0, HOLD.1);
            self.until[class] = self.until[class].max(Some(until));
            self.credit = (self.credit + bytes / SHARE).min(CREDIT_MAX);
        }
    }

    /// How much of `wanted` may go now; or how long to wait before asking again.
    fn ask(&mut self, class: usize, wanted: usize, now: Instant) -> Result<usize, Duration> {
        self.asked[class] = Some(now);
        let higher = self.until[class + 1..].iter().flatten().max();
        let Some(until) = higher.filter(|until| **until > now) else {
            self.trickle = None;
            return Ok(wanted);
        };
        let most = wanted.min(TRICKLE);
        if self.credit >= most as u64 {
            self.credit -= most as u64;
            return Ok(most);
        }
        let next = *self.trickle.get_or_insert(now + TRICKLE_EVERY);
        if next <= now {
            self.trickle = Some(now + TRICKLE_EVERY);
            return Ok(most);
        }
        Err(next.min(*until) - now)
    }
}

impl Way {
    /// Whether anything lesser was served lately.
    fn matters(&self, class: usize, now: Instant) -> bool {
        let lesser = self.asked[..class].iter().flatten().max();
        lesser.is_some_and(|at| now.saturating_duration_since(*at) < LATELY)
    }
}

/// All interfaces.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    ways: Mutex<HashMap<IpAddr, Arc<Mutex<Way>>>>,
    routes: Mutex<HashMap<SocketAddr, (Instant, IpAddr)>>,
    /// How often a piece had to wait.
    held: AtomicU64,
}

impl Pacer {
    /// Content or an offer of that priority went out on `conn`.
    pub(crate) fn note(&self, conn: &Connection, priority: Priority, bytes: usize) {
        let (way, rtt) = self.way_of(conn);
        way.lock()
            .note(priority as usize, bytes as u64, rtt, Instant::now());
    }

    /// Waits until content of that priority may go out on `conn`, and says how much of `wanted`: at least one byte.
    pub(crate) async fn acquire(
        &self,
        conn: &Connection,
        priority: Priority,
        wanted: usize,
    ) -> usize {
        let (way, rtt) = self.way_of(conn);
        let class = priority as usize;
        let mut waited = false;
        loop {
            let now = Instant::now();
            let asked = {
                let mut way = way.lock();
                let asked = way.ask(class, wanted, now);
                if let Ok(bytes) = asked {
                    way.note(class, bytes as u64, rtt, now);
                }
                asked
            };
            match asked {
                Ok(bytes) => return bytes,
                Err(pause) => {
                    if !std::mem::replace(&mut waited, true) {
                        self.held.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Never ends: as long as it is polled, and packets go out on `conn`, what was written there with that priority
    /// counts as under way.
    pub(crate) async fn keep(&self, conn: &Connection, priority: Priority) {
        let class = priority as usize;
        let mut before = packets(conn);
        loop {
            tokio::time::sleep(HOLD.0 / 2).await;
            let (way, rtt) = self.way_of(conn);
            if class == 0 || !way.lock().matters(class, Instant::now()) {
                continue;
            }
            let now = packets(conn);
            if now > before {
                before = now;
                way.lock().note(class, 0, rtt, Instant::now());
            }
        }
    }

    /// How many pieces had to wait since the start.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn way_of(&self, conn: &Connection) -> (Arc<Mutex<Way>>, Duration) {
        let paths = conn.paths();
        let path = paths.iter().find(|path| path.is_selected());
        let rtt = path.as_ref().map_or(HOLD.0, |path| path.rtt());
        let local = match path.as_ref().map(|path| path.remote_addr()) {
            Some(TransportAddr::Ip(remote)) => self.local(*remote),
            _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        (self.ways.lock().entry(local).or_default().clone(), rtt)
    }

    /// The address from which the kernel sends to `remote`.
    fn local(&self, remote: SocketAddr) -> IpAddr {
        let now = Instant::now();
        let mut routes = self.routes.lock();
        if let Some((until, local)) = routes.get(&remote)
            && *until > now
        {
            return *local;
        }
        let local = route(remote).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        if routes.len() >= ROUTES_MAX {
            routes.clear();
        }
        routes.insert(remote, (now + ROUTE_KEEP, local));
        local
    }
}

/// Packets sent on the path in use.
fn packets(conn: &Connection) -> u64 {
    let paths = conn.paths();
    let path = paths.iter().find(|path| path.is_selected());
    path.map_or(0, |path| path.stats().sent_packets)
}

/// Asks the routing table; sends nothing.
fn route(remote: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const BULK: usize = Priority::Bulk as usize;
    const LOW: usize = Priority::Low as usize;
    const CRITICAL: usize = Priority::Critical as usize;
    const PIECE: usize = 256 * 1024;

    #[test]
    fn equal_priorities_never_wait_and_lesser_ones_only_while_something_urgent_moves() {
        let (mut way, t0) = (Way::default(), Instant::now());
        way.note(BULK, 1 << 30, MS, t0);
        assert_eq!(way.ask(BULK, PIECE, t0), Ok(PIECE));
        way.note(CRITICAL, 0, MS, t0);
        assert_eq!(way.ask(CRITICAL, PIECE, t0), Ok(PIECE));
        assert_eq!(way.ask(BULK, PIECE, t0), Err(HOLD.0));
        assert_eq!(way.ask(LOW, PIECE, t0 + HOLD.0 / 2), Err(HOLD.0 / 2));
        assert_eq!(way.ask(BULK, PIECE, t0 + HOLD.0), Ok(PIECE));
        // Low holds back bulk, and not the other way round.
        way.note(LOW, 0, MS, t0 + 99 * MS);
        assert_eq!(way.ask(LOW, PIECE, t0 + 99 * MS), Ok(PIECE));
        assert!(way.ask(BULK, PIECE, t0 + 99 * MS).is_err());
    }

    #[test]
    fn a_long_way_is_kept_free_for_two_round_trips_but_no_path_may_cost_more_than_the_bound() {
        let (mut way, t0) = (Way::default(), Instant::now());
        way.note(CRITICAL, 0, 50 * MS, t0);
        // By then the trickle came through once.
        assert_eq!(way.ask(BULK, 1, t0), Err(TRICKLE_EVERY));
        assert_eq!(way.ask(BULK, 1, t0 + 50 * MS), Ok(1));
        assert_eq!(way.ask(BULK, PIECE, t0 + 99 * MS), Err(MS));
        assert_eq!(way.ask(BULK, PIECE, t0 + 100 * MS), Ok(PIECE));
        way.note(CRITICAL, 0, 10_000 * MS, t0);
        assert_eq!(way.ask(BULK, PIECE, t0 + HOLD.1), Ok(PIECE));
    }

    #[test]
    fn bulk_gets_through_under_constant_critical_load() {
        // A little at a time: the trickle. Much: a share of it.
        for (bytes, least, most) in [(0, 19, 21), (1 << 20, 800, 820)] {
            let (mut way, t0) = (Way::default(), Instant::now());
            let mut through = 0;
            for ms in 0..1000 {
                let now = t0 + ms * MS;
                if ms % 10 == 0 {
                    way.note(CRITICAL, bytes / 2, MS, now);
                    way.note(CRITICAL, bytes / 2, MS, now);
                }
                while let Ok(n) = way.ask(BULK, PIECE, now) {
                    assert!(n <= TRICKLE);
                    through += n / TRICKLE;
                }
            }
            assert!((least..=most).contains(&through), "{through} of {bytes}");
        }
    }

    #[test]
    fn an_address_is_reached_from_the_interface_that_routes_to_it() {
        let (pacer, port) = (Pacer::default(), 9);
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for _ in 0..2 {
            assert_eq!(pacer.local((loopback, port).into()), loopback);
        }
        for n in 0..3 * ROUTES_MAX as u16 {
            pacer.local((loopback, n.max(1)).into());
        }
        assert!(pacer.routes.lock().len() <= ROUTES_MAX);
    }
}
