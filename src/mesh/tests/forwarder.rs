//! A link between two endpoints, for tests: it carries UDP between an address that one side dials and the other side,
//! with delay, loss by a seeded generator, a rate with a short queue, silence, and a change of the sender's address.
//!
//! Iroh finds direct ways where there are any. So the dialling side is bound to IPv4 and the other one to IPv6: only
//! the forwarder has both.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a link does to packets, in each direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quality {
    /// One way.
    pub delay: Duration,
    /// Packets lost of a million.
    pub lost_ppm: u64,
    /// Bytes a second; 0: any.
    pub rate: u64,
    /// Bytes that wait for the rate; more are lost.
    pub queue: u64,
}

/// How often the threads look whether the link is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// Packets on their way in one direction: more than any test's delay times its rate.
const ON_THE_WAY: usize = 65_536;

struct Shared {
    quality: Quality,
    target: SocketAddr,
    front: UdpSocket,
    back: Mutex<Arc<UdpSocket>>,
    client: Mutex<Option<SocketAddr>>,
    silent: AtomicBool,
    over: AtomicBool,
    passed: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    seed: AtomicU64,
}

/// The running link; ends when dropped.
pub(crate) struct Forwarder(Arc<Shared>);

impl Forwarder {
    /// To `target`, which is an IPv6 address.
    pub(crate) fn to(target: SocketAddr, quality: Quality, seed: u64) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_read_timeout(Some(LOOK)).unwrap();
        let shared = Arc::new(Shared {
            quality,
            target,
            front,
            back: Mutex::new(Arc::new(back())),
            client: Mutex::new(None),
            silent: AtomicBool::new(false),
            over: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            seed: AtomicU64::new(seed | 1),
        });
        let (there, back) = (shared.clone(), shared.clone());
        thread::spawn(move || {
            there.carry(
                |link, buffer| {
                    let (len, from) = link.front.recv_from(buffer).ok()?;
                    *link.client.lock() = Some(from);
                    Some(len)
                },
                |link, packet| {
                    let socket = link.back.lock().clone();
                    socket.send_to(packet, link.target).ok();
                },
            );
        });
        thread::spawn(move || {
            back.carry(
                |link, buffer| {
                    let socket = link.back.lock().clone();
                    socket.recv(buffer).ok()
                },
                |link, packet| {
                    let client = *link.client.lock();
                    if let Some(client) = client {
                        link.front.send_to(packet, client).ok();
                    }
                },
            );
        });
        Self(shared)
    }

    /// What to dial.
    pub(crate) fn front(&self) -> SocketAddr {
        self.0.front.local_addr().unwrap()
    }

    /// Whether to lose everything.
    pub(crate) fn silence(&self, silent: bool) {
        self.0.silent.store(silent, Ordering::Relaxed);
    }

    /// The target sees another sender from now on.
    pub(crate) fn move_sender(&self) {
        *self.0.back.lock() = Arc::new(back());
    }

    /// Bytes carried, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Packets carried and lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.0.passed), read(&self.0.lost))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn back() -> UdpSocket {
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    socket
}

impl Shared {
    fn carry(
        self: &Arc<Self>,
        receive: impl Fn(&Self, &mut [u8]) -> Option<usize>,
        send: impl Fn(&Self, &[u8]) + Send + 'static,
    ) {
        let (put, take) = crossbeam_channel::bounded::<(Instant, Vec<u8>)>(ON_THE_WAY);
        let link = self.clone();
        let sender = thread::spawn(move || {
            for (due, packet) in take {
                if let Some(wait) = due.checked_duration_since(Instant::now()) {
                    thread::sleep(wait);
                }
                send(&link, &packet);
            }
        });
        let mut buffer = vec![0; 65_536];
        let mut free_at = Instant::now();
        while !self.over.load(Ordering::Relaxed) {
            let Some(len) = receive(self, &mut buffer) else {
                continue;
            };
            let now = Instant::now();
            let Quality {
                delay, rate, queue, ..
            } = self.quality;
            let mut due = now;
            if rate > 0 {
                let time = |bytes: u64| Duration::from_nanos(bytes * 1_000_000_000 / rate);
                let begins = free_at.max(now);
                if self.is_lost() || begins - now > time(queue) {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                free_at = begins + time(len as u64);
                due = free_at;
            } else if self.is_lost() {
                self.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            self.passed.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(len as u64, Ordering::Relaxed);
            put.try_send((due + delay, buffer[..len].to_vec())).ok();
        }
        drop(put);
        sender.join().unwrap();
    }

    fn is_lost(&self) -> bool {
        if self.silent.load(Ordering::Relaxed) {
            return true;
        }
        let next = |seed: u64| {
            let seed = seed ^ (seed << 13);
            let seed = seed ^ (seed >> 7);
            Some(seed ^ (seed << 17))
        };
        let order = Ordering::Relaxed;
        let seed = self.seed.fetch_update(order, order, next).unwrap();
        (seed >> 20) % 1_000_000 < self.quality.lost_ppm
    }
}
