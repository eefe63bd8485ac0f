//! The net: our endpoint, for as long as there is one, and the addresses it is bound to.
//!
//! An endpoint ends when the address it is bound to goes away (a VPN that is made anew, a link that flaps, a lease that
//! runs out). [`crate::mesh::keeper`] builds it again, with back-off, until it holds; until then dialling fails, what is queued stays
//! queued, and status says what is missing. An address that is not there yet when we start is waited for in the same way
//! ([`Net::start`]); one that is there is used meanwhile.
//!
//! # Invariants
//! 1. Whoever is given an endpoint holds it no longer than one attempt to dial, so that its ports become free.
//! 2. A port that somebody else has is an error at the start, and trouble later; never waited for at the start.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use iroh::{Endpoint, RelayUrl};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::mesh::congestion::Paths;
use crate::mesh::endpoint::{self, With};
use crate::mesh::error::MeshError;
use crate::mesh::windows::Windows;
use crate::peer::Identity;

/// How often it is looked whether the addresses to listen on are there.
const LOOK: Duration = Duration::from_secs(1);

/// Our side of the network.
pub(crate) struct Net {
    /// Addresses to listen on; empty: all interfaces.
    listen: Vec<SocketAddr>,
    /// Through which members are reached that cannot be reached directly.
    pub(super) relays: Vec<RelayUrl>,
    /// What paths showed, for the controller of the next connection.
    pub(crate) paths: Paths,
    pub(super) windows: Windows,
    endpoint: RwLock<Option<Endpoint>>,
    trouble: Mutex<Option<String>>,
    /// Rung when there is another endpoint.
    pub(crate) changed: Notify,
}

/// What there is at the start.
pub(super) struct Bound {
    endpoint: Option<Endpoint>,
    missing: Vec<SocketAddr>,
}

impl Bound {
    /// The sockets that are bound, when all are that should be.
    pub(super) fn whole(&self) -> Option<Vec<SocketAddr>> {
        let endpoint = self.endpoint.as_ref().filter(|_| self.missing.is_empty())?;
        Some(endpoint.bound_sockets())
    }
}

/// Of these the addresses that the machine does not have now.
fn missing(listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let absent = |addr: &SocketAddr| {
        let mut any_port = *addr;
        any_port.set_port(0);
        let error = UdpSocket::bind(any_port).err();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
    };
    let fixed = listen.iter().filter(|addr| !addr.ip().is_unspecified());
    fixed.copied().filter(|addr| absent(addr)).collect()
}

fn list(addrs: &[SocketAddr]) -> String {
    let words: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// Binds what is there of `listen`.
async fn bind(
    identity: &Identity,
    listen: &[SocketAddr],
    remembered: &[SocketAddr],
    relays: &[RelayUrl],
) -> Result<Bound, MeshError> {
    let missing = missing(listen);
    let mut there = listen.to_vec();
    there.retain(|addr| !missing.contains(addr));
    let endpoint = if there.is_empty() && !listen.is_empty() {
        None
    } else {
        Some(endpoint::bind_again(identity, &there, remembered, relays).await?)
    };
    Ok(Bound { endpoint, missing })
}

/// Binds at the start. Addresses that are missing are waited for if `may_wait` or if they were bound before; else they
/// are an error.
pub(super) async fn bind_first(
    identity: &Identity,
    listen: &[SocketAddr],
    remembered: &[SocketAddr],
    relays: &[RelayUrl],
    may_wait: bool,
) -> Result<Bound, MeshError> {
    let bound = bind(identity, listen, remembered, relays).await?;
    let known = |addr: &&SocketAddr| remembered.iter().any(|known| known.ip() == addr.ip());
    if let Some(addr) = bound.missing.iter().find(|addr| !may_wait && !known(addr)) {
        if let Some(endpoint) = bound.endpoint {
            endpoint.close().await;
        }
        let why = "this machine does not have that address".to_owned();
        return Err(MeshError::Bind(addr.to_string(), why));
    }
    Ok(bound)
}

impl Net {
    pub(super) fn start(
        bound: Bound,
        listen: Vec<SocketAddr>,
        relays: Vec<RelayUrl>,
        paths: Paths,
    ) -> Self {
        let net = Self {
            listen,
            relays,
            paths,
            windows: Windows::default(),
            endpoint: RwLock::new(None),
            trouble: Mutex::new(None),
            changed: Notify::new(),
        };
        net.set(bound);
        net
    }

    fn set(&self, bound: Bound) {
        self.note_missing(&bound.missing);
        *self.endpoint.write() = bound.endpoint;
    }

    fn note_missing(&self, missing: &[SocketAddr]) {
        let trouble = (!missing.is_empty()).then(|| {
            format!(
                "this machine does not have the address {} to listen on; it is looked for every second",
                list(missing)
            )
        });
        self.note(trouble);
    }

    fn note(&self, trouble: Option<String>) {
        let mut known = self.trouble.lock();
        if *known != trouble {
            match &trouble {
                Some(why) => tracing::error!("{why}"),
                None => tracing::info!("listening again"),
            }
            *known = trouble;
        }
    }

    /// The endpoint, if there is one now.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.read().clone()
    }

    /// What a connection to or from one of `addrs` is made with.
    pub(super) fn with(&self, addrs: &[SocketAddr]) -> With {
        With {
            controller: self.paths.choose(addrs, std::time::Instant::now()),
            unacknowledged: self.windows.unacknowledged(),
        }
    }

    /// What is bound, or would be.
    pub(crate) fn sockets(&self) -> Vec<SocketAddr> {
        let endpoint = self.endpoint.read();
        let bound = endpoint.as_ref().map(Endpoint::bound_sockets);
        bound.unwrap_or_else(|| self.listen.clone())
    }

    /// The addresses bound, as others can dial them.
    pub(crate) fn listen_addrs(&self) -> Vec<SocketAddr> {
        let endpoint = self.endpoint.read();
        endpoint
            .as_ref()
            .map_or_else(Vec::new, endpoint::listen_addrs)
    }

    /// What is wrong, for the user.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Binds anew; whether there is an endpoint now.
    pub(super) async fn bind_again(&self, identity: &Identity, remembered: &[SocketAddr]) -> bool {
        match bind(identity, &self.listen, remembered, &self.relays).await {
            Ok(bound) if bound.endpoint.is_some() => {
                self.set(bound);
                self.changed.notify_waiters();
                return true;
            }
            Ok(bound) => self.note_missing(&bound.missing),
            Err(error) => self.note(Some(format!("{error}; it is tried again"))),
        }
        false
    }

    /// There is no endpoint any more.
    pub(super) fn forget(&self) {
        self.endpoint.write().take();
    }

    /// Ends when an address that was missing is there: then all is bound anew.
    pub(super) async fn wait_for_addresses(&self) {
        let mut gone = missing(&self.listen);
        loop {
            sleep(LOOK).await;
            let now = missing(&self.listen);
            if gone.iter().any(|addr| !now.contains(addr)) {
                return;
            }
            self.note_missing(&now);
            gone = now;
        }
    }
}
