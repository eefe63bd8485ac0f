//! Congestion control: which controller a new connection gets, by what the path to that address showed before.
//!
//! CUBIC fills wired links, but takes every lost packet for congestion: at 50 ms and 1 % it is left with 3 Mbit/s.
//! BBR3 measures the bandwidth instead, at the price of some percent on fast clean links. `auto` begins with CUBIC and
//! watches ([`watch`]): where the losses seen would keep CUBIC below [`SUFFERING`], the address is remembered, and the
//! bulk connection is closed, upon which it is dialled again with BBR3; what was being fetched goes on at the next chunk.
//! Each side decides for what it sends.
//!
//! In memory only: after a restart the path shows it again.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::TransportAddr;
use iroh::endpoint::{Connection, ControllerFactory};
use parking_lot::Mutex;

use crate::mesh::member::CloseCode;

/// The setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Congestion {
    /// By what the path shows.
    #[default]
    Auto,
    /// Always CUBIC.
    Cubic,
    /// Always BBR3.
    Bbr3,
}

impl FromStr for Congestion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cubic" => Ok(Self::Cubic),
            "bbr3" if bbr3().is_some() => Ok(Self::Bbr3),
            "bbr3" => Err("this program was built without bbr3; use auto or cubic".into()),
            _ => Err(format!("{text:?} is none of auto, cubic, bbr3")),
        }
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cubic => "cubic",
            Self::Bbr3 => "bbr3",
        })
    }
}

/// What one connection uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Controller {
    /// What iroh does of itself.
    Cubic,
    /// What [`bbr3`] makes.
    Bbr3,
}

/// Makes controllers of that kind.
pub(crate) type Factory = Arc<dyn ControllerFactory + Send + Sync>;

/// BBR3, if this program has it.
pub(crate) fn bbr3() -> Option<Factory> {
    Some(Arc::new(noq_proto::congestion::Bbr3Config::default()))
}

/// A path on which losses keep CUBIC below this, in bytes a second, is one for BBR3: half of 100 Mbit/s. On slower clean
/// links CUBIC's own losses look the same, and BBR3 does as well there.
const SUFFERING: f64 = 6_250_000.0;

/// Below this round-trip time losses are short queues and full socket buffers, which are CUBIC's own doing: a busy
/// machine loses 5 % of the packets on its own loopback.
const NEAR: Duration = Duration::from_millis(5);

/// Packets sent before a path is judged.
const ENOUGH: u64 = 1000;

/// Share of packets below which losses are the sender's own doing.
const CLEAN: f64 = 0.0005;

/// How often a path is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long a verdict holds, and of how many addresses.
const KEEP: Duration = Duration::from_secs(3600);
const KEEP_MAX: usize = 1024;

/// Payload of a packet, for the estimate.
const PACKET: f64 = 1400.0;

/// What was seen of paths.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    setting: Congestion,
    suffering: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Paths {
    /// Nothing seen yet.
    pub(crate) fn new(setting: Congestion) -> Self {
        Self {
            setting,
            suffering: Mutex::default(),
        }
    }

    /// What a connection with a peer at any of `addrs` is to use.
    pub(crate) fn choose(&self, addrs: &[SocketAddr], now: Instant) -> Controller {
        let lossy = || {
            let mut suffering = self.suffering.lock();
            suffering.retain(|_, until| *until > now);
            addrs.iter().any(|addr| suffering.contains_key(addr))
        };
        match self.setting {
            Congestion::Cubic => Controller::Cubic,
            Congestion::Bbr3 => Controller::Bbr3,
            Congestion::Auto if lossy() && bbr3().is_some() => Controller::Bbr3,
            Congestion::Auto => Controller::Cubic,
        }
    }

    /// Whether CUBIC suffered on the path to `addr`.
    #[cfg(test)]
    pub(crate) fn is_suffering(&self, addr: SocketAddr) -> bool {
        self.suffering.lock().contains_key(&addr)
    }

    /// A path showed this. Whether CUBIC suffers on it.
    fn seen(&self, addr: SocketAddr, seen: Seen, now: Instant) -> bool {
        let suffers = suffers(seen);
        if suffers {
            let mut suffering = self.suffering.lock();
            if suffering.len() >= KEEP_MAX {
                suffering.clear();
            }
            suffering.insert(addr, now + KEEP);
        }
        suffers
    }
}

/// What a path showed since it is watched.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Seen {
    /// The shortest: what is more is queues.
    rtt: Duration,
    sent: u64,
    lost: u64,
}

/// Whether losses like these keep CUBIC far below what links carry: by the square root law, since at such rates CUBIC
/// does as Reno does.
fn suffers(seen: Seen) -> bool {
    let loss = seen.lost as f64 / seen.sent.max(1) as f64;
    if seen.sent < ENOUGH || loss < CLEAN || seen.rtt < NEAR {
        return false;
    }
    PACKET * 1.22 / (seen.rtt.as_secs_f64() * loss.sqrt()) < SUFFERING
}

fn look(conn: &Connection) -> Option<(SocketAddr, Seen)> {
    let paths = conn.paths();
    let path = paths.iter().find(|path| path.is_selected())?;
    let TransportAddr::Ip(addr) = path.remote_addr() else {
        return None;
    };
    let stats = path.stats();
    let seen = Seen {
        rtt: path.rtt(),
        sent: stats.sent_packets,
        lost: stats.lost_packets,
    };
    Some((*addr, seen))
}

/// Watches a bulk connection that uses `controller`, until it ends or should be made again with another one.
pub(crate) async fn watch(paths: &Paths, conn: &Connection, controller: Controller) {
    let mut nearest = look(conn).map(|(addr, seen)| (addr, seen.rtt));
    loop {
        tokio::select! {
            _ = conn.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let Some((addr, mut seen)) = look(conn) else {
            continue;
        };
        if let Some((_, rtt)) = nearest.filter(|(before, _)| *before == addr) {
            seen.rtt = seen.rtt.min(rtt);
        }
        nearest = Some((addr, seen.rtt));
        let suffers = paths.seen(addr, seen, Instant::now());
        if suffers && paths.choose(&[addr], Instant::now()) != controller {
            tracing::info!(
                "{addr} loses packets ({} of {}, {:?}): bulk goes on with BBR3",
                seen.lost,
                seen.sent,
                seen.rtt
            );
            conn.close(CloseCode::Duplicate.code(), b"another congestion control");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rtt_ms: u64, sent: u64, lost: u64) -> Seen {
        let rtt = Duration::from_millis(rtt_ms);
        Seen { rtt, sent, lost }
    }

    #[test]
    fn cubic_suffers_where_losses_meet_distance() {
        assert!(suffers(seen(50, 10_000, 100)));
        assert!(suffers(seen(20, 100_000, 100)));
        assert!(suffers(seen(300, 10_000, 10)));
        assert!(!suffers(seen(50, 500, 50)), "too early to tell");
        assert!(!suffers(seen(300, 1_000_000, 0)), "far and clean");
        assert!(!suffers(seen(1, 100_000, 200)), "a LAN with a short queue");
        assert!(!suffers(seen(4, 1700, 85)), "a loopback on a busy machine");
    }

    #[test]
    fn s25_a_verdict_on_a_path_ends_of_itself_and_is_about_one_address() {
        let paths = Paths::new(Congestion::Auto);
        let addr = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let now = Instant::now();
        assert!(!paths.seen(addr(1), seen(1, 10_000, 0), now));
        assert!(paths.seen(addr(1), seen(50, 10_000, 100), now));
        let bad = if bbr3().is_some() {
            Controller::Bbr3
        } else {
            Controller::Cubic
        };
        assert_eq!(paths.choose(&[addr(2), addr(1)], now), bad);
        assert_eq!(paths.choose(&[addr(2)], now), Controller::Cubic);
        assert_eq!(paths.choose(&[addr(1)], now + KEEP), Controller::Cubic);
        assert!(paths.suffering.lock().is_empty());
        let fixed = Paths::new(Congestion::Cubic);
        fixed.seen(addr(1), seen(50, 10_000, 100), now);
        assert_eq!(fixed.choose(&[addr(1)], now), Controller::Cubic);
        for port in 0..3 * KEEP_MAX as u16 {
            paths.seen(addr(port), seen(50, 10_000, 100), now);
        }
        assert!(paths.suffering.lock().len() <= KEEP_MAX);
    }

    #[test]
    fn the_setting_has_three_values_and_an_error_that_names_them() {
        for text in ["auto", "cubic"] {
            assert_eq!(text.parse::<Congestion>().unwrap().to_string(), text);
        }
        assert_eq!("bbr3".parse::<Congestion>().is_ok(), bbr3().is_some());
        let error = "reno".parse::<Congestion>().unwrap_err();
        assert!(error.contains("auto, cubic, bbr3"), "{error}");
    }
}
