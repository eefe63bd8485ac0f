//! The door: connections whose other end has not proved yet that it belongs to the group.
//!
//! Anybody who reaches our port can open connections, and a member that comes for the first time looks like a stranger
//! until its proof. So there are few places before the door, and whoever wants one always gets it: when all are taken,
//! or those of its source, another one goes, the oldest of the source that has the most. A member needs its place for two
//! round trips; who is silent keeps it until others come.
//!
//! Under pressure ([`PRESSURE`]) a source must first show that it receives what is sent to its address (QUIC's retry),
//! which costs us no memory, so that nobody takes places under addresses that are not its own.
//!
//! # Invariants
//! 1. At most [`PLACES`] connections wait, at most [`PLACES_OF_SOURCE`] of one source.
//! 2. The newest comer is never the one that goes.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use iroh::endpoint::IncomingAddr;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Connections that have not proved membership yet.
const PLACES: usize = 64;

/// Those of one source: several members behind one address, each with all its connections.
const PLACES_OF_SOURCE: usize = 16;

/// With so many waiting, addresses are asked to show that they are genuine.
const PRESSURE: usize = 16;

/// Where connections come from, as far as one and the same stranger can choose it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Source {
    V4([u8; 4]),
    /// The network of one link: whoever has one address of it has all.
    V6([u8; 8]),
    /// Whoever comes by a relay or otherwise, by its whole address.
    Other(String),
}

impl Source {
    fn of(addr: &IncomingAddr) -> Self {
        match addr {
            IncomingAddr::Ip(addr) => Self::of_ip(addr),
            other => Self::Other(format!("{other:?}")),
        }
    }

    fn of_ip(addr: &SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    source: Source,
    sent_away: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    waiting: Vec<Waiting>,
    last: u64,
}

impl State {
    /// Who goes for one that comes from `source`, if somebody has to.
    fn to_go(&self, source: &Source) -> Option<usize> {
        let mut of_source: HashMap<&Source, usize> = HashMap::new();
        for waiting in &self.waiting {
            *of_source.entry(&waiting.source).or_default() += 1;
        }
        let from = if of_source.get(source).copied() >= Some(PLACES_OF_SOURCE) {
            source
        } else if self.waiting.len() >= PLACES {
            let most = of_source.values().copied().max();
            // Of several with as many, the one whose oldest is the oldest.
            let mut oldest = self.waiting.iter().map(|waiting| &waiting.source);
            oldest.find(|source| of_source.get(source).copied() == most)?
        } else {
            return None;
        };
        let oldest = |waiting: &Waiting| waiting.source == *from;
        self.waiting.iter().position(oldest)
    }
}

/// The places before the door.
#[derive(Debug, Default)]
pub(super) struct Door(Mutex<State>);

impl Door {
    /// Whether so many wait that a source must show its address to be genuine.
    pub(super) fn is_pressed(&self) -> bool {
        self.0.lock().waiting.len() >= PRESSURE
    }

    /// A place for one that comes from `addr`. Somebody else may have to go for it.
    pub(super) fn enter(self: &Arc<Self>, addr: &IncomingAddr) -> Place {
        self.enter_from(Source::of(addr))
    }

    fn enter_from(self: &Arc<Self>, source: Source) -> Place {
        let mut state = self.0.lock();
        if let Some(at) = state.to_go(&source) {
            let gone = state.waiting.remove(at);
            gone.sent_away.notify_one();
        }
        state.last += 1;
        let number = state.last;
        let sent_away = Arc::new(Notify::new());
        state.waiting.push(Waiting {
            number,
            source,
            sent_away: sent_away.clone(),
        });
        Place {
            door: self.clone(),
            number,
            sent_away,
        }
    }
}

/// One place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    door: Arc<Door>,
    number: u64,
    sent_away: Arc<Notify>,
}

impl Place {
    /// Ends when the place was given to another.
    pub(super) async fn lost(&self) {
        self.sent_away.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.door.0.lock();
        state
            .waiting
            .retain(|waiting| waiting.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn from(text: &str) -> Source {
        Source::of_ip(&text.parse().unwrap())
    }

    fn v4(n: usize) -> Source {
        Source::V4([10, 0, (n >> 8) as u8, n as u8])
    }

    fn is_lost(place: &Place) -> bool {
        let mut lost = pin!(place.lost());
        let mut look = Context::from_waker(Waker::noop());
        lost.as_mut().poll(&mut look).is_ready()
    }

    #[test]
    fn one_source_has_few_places_and_its_oldest_goes_for_its_newest() {
        let door = Arc::new(Door::default());
        let other = door.enter_from(v4(1));
        let places: Vec<Place> = (0..PLACES_OF_SOURCE + 3)
            .map(|_| door.enter_from(v4(2)))
            .collect();
        let lost: Vec<bool> = places.iter().map(is_lost).collect();
        assert_eq!(lost.iter().filter(|lost| **lost).count(), 3);
        assert_eq!(lost[..3], [true; 3]);
        assert!(!is_lost(&other));
        assert!(door.is_pressed());
        drop(places);
        assert!(!door.is_pressed());
    }

    #[test]
    fn when_all_places_are_taken_the_greediest_source_gives_way_and_never_the_newest() {
        let door = Arc::new(Door::default());
        let member = door.enter_from(v4(9000));
        let mut flood: Vec<Place> = (0..PLACES_OF_SOURCE)
            .map(|_| door.enter_from(v4(0)))
            .collect();
        flood.extend((1..4 * PLACES).map(|n| door.enter_from(v4(n))));
        assert!(!is_lost(flood.last().unwrap()));
        let left = flood.iter().filter(|place| !is_lost(place)).count();
        assert!(left <= PLACES && door.0.lock().waiting.len() == PLACES);
        // With one place each, age decides at last.
        assert!(is_lost(&member));
        let newcomer = door.enter_from(v4(9001));
        assert!(!is_lost(&newcomer));
    }

    #[test]
    fn a_source_is_what_one_stranger_can_choose_at_will() {
        assert_eq!(from("10.0.0.1:1"), from("10.0.0.1:2"));
        assert_ne!(from("10.0.0.1:1"), from("10.0.0.2:1"));
        assert_eq!(from("[::ffff:10.0.0.1]:1"), from("10.0.0.1:2"));
        assert_eq!(from("[fd00:1:2:3::1]:1"), from("[fd00:1:2:3:9:9:9:9]:2"));
        assert_ne!(from("[fd00:1:2:3::1]:1"), from("[fd00:1:2:4::1]:1"));
    }
}
