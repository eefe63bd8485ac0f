//! (to be written; the entry points below are a contract with `daemon` and `control`)

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::peer::{GroupKey, PeerId, PeerName, Ticket};
use crate::spool::Spool;

/// What the mesh is told at start.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// What we call ourselves.
    pub name: PeerName,
    /// The group's secret.
    pub group: GroupKey,
    /// Addresses to bind; empty: all interfaces, any port, both families.
    pub listen: Vec<SocketAddr>,
    /// Static peers.
    pub peers: Vec<(PeerId, SocketAddr)>,
    /// The ticket we were invited with, if this start has one.
    pub ticket: Option<Ticket>,
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
}

/// Why the mesh did not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// An address could not be bound.
    #[error("cannot listen on {0}: {1}")]
    Bind(String, String),
    /// The runtime could not be made.
    #[error("cannot start the network threads: {0}")]
    Runtime(std::io::Error),
}

/// The running mesh.
#[derive(Debug)]
pub struct Mesh {}

impl Mesh {
    /// Binds the endpoint, starts accepting and dialling. Returns when the endpoint is bound.
    pub fn start(spool: Arc<Spool>, config: MeshConfig) -> Result<Self, MeshError> {
        let _ = (spool, config);
        todo!()
    }

    /// The addresses really bound, as others can dial them: for an unspecified address those of the interfaces,
    /// loopback included only when that is what is bound.
    pub fn listen_addrs(&self) -> Vec<SocketAddr> {
        todo!()
    }

    /// Every known peer.
    pub fn peers(&self) -> Vec<PeerStatus> {
        todo!()
    }

    /// Closes all connections and ends the runtime, within a few seconds.
    pub fn stop(self) {
        todo!()
    }
}
