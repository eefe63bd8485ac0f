//! What holds, and each layer's part of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::value::IdentityKind;
use crate::fs::FsConfig;
use crate::mesh::{Congestion, MeshConfig};
use crate::peer::{Identity, Invitation, PeerId, PeerName, Ticket};
use crate::spool::{Dress, Limits, Routing, SpoolConfig};

/// What holds, typed.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The state directory, absolute.
    pub state: PathBuf,
    /// Where it is to be mounted, as in [`super::Inputs::mountpoint`].
    pub place: Option<PathBuf>,
    /// The directory with the states of all mounts, if this one's is there because nobody said otherwise.
    pub states: Option<PathBuf>,
    /// What the state is to keep when it serves.
    pub keep: String,
    /// Found a group though a state with this mountpoint's name waits for its own.
    pub new: bool,
    /// What we call ourselves.
    pub name: PeerName,
    /// The ticket to join with.
    pub ticket: Option<Ticket>,
    /// The ticket to redeem, if it is one of those that expire or hold once.
    pub invitation: Option<Invitation>,
    /// How this node gets its key pair at its first start.
    pub identity: IdentityKind,
    /// Whether only listed ids are members.
    pub listed: bool,
    /// The list.
    pub member: Vec<PeerId>,
    /// Addresses to bind.
    pub listen: Vec<SocketAddr>,
    /// Static peers.
    pub peers: Vec<(PeerId, SocketAddr)>,
    /// Whether to look for members on the local network.
    pub mdns: bool,
    /// Congestion control.
    pub congestion: Congestion,
    /// URLs of relays.
    pub relay: Vec<String>,
    /// Quiet time before a file is sent.
    pub settle: Duration,
    /// How long a bundle waits for its recipients.
    pub lifetime: Duration,
    /// Whether members that join later get what is still shown.
    pub late_joiners: bool,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Let other users use the mount.
    pub allow_other: bool,
    /// What is logged, as tracing directives.
    pub log: String,
    /// More patterns to ignore.
    pub ignore: Vec<String>,
    /// Default patterns not to ignore.
    pub ignore_except: Vec<String>,
    /// How much of the disk may be used.
    pub limits: Limits,
    /// Modes and owner of what the mount shows.
    pub dress: Dress,
    /// Whom bundles go to, and how large they may be.
    pub routing: Routing,
    pub(super) root: bool,
    pub(super) sealers: usize,
}

impl Config {
    /// The file system's part.
    pub(crate) fn fs(&self) -> FsConfig {
        FsConfig {
            settle: self.settle,
            chown_to_writer: self.root,
            ignore_extra: self.ignore.clone(),
            ignore_except: self.ignore_except.clone(),
            dress: self.dress,
            max_file_bytes: self.limits.max_file_bytes,
        }
    }

    /// The spool's part.
    pub(crate) fn spool(&self, identity: Identity) -> SpoolConfig {
        SpoolConfig {
            state: self.state.clone(),
            lifetime: self.lifetime,
            sealers: self.sealers,
            limits: self.limits,
            dress: self.dress,
            identity,
        }
    }

    /// The mesh's part.
    pub(crate) fn mesh(&self) -> MeshConfig {
        MeshConfig {
            name: self.name.clone(),
            listen: self.listen.clone(),
            wait_for_addresses: false,
            peers: self.peers.clone(),
            ticket: self.ticket.clone(),
            mdns: self.mdns,
            congestion: self.congestion,
            relays: self.relay.clone(),
        }
    }
}
