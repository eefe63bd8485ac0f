//! Membership: both ends of a connection prove that they know the group key before anything else is said.
//!
//! The proof is HMAC-SHA256 under the group key over a label, the prover's role, the protocol name (ALPN), the version
//! the prover states, the ids of dialer and acceptor as TLS proved them, and keying material exported from this TLS
//! session. The dialer proves first; the acceptor answers only after verifying. So a stranger learns nothing, not even
//! a MAC to think about, and a proof is worth nothing on another connection, in the other direction, or under another
//! protocol name.
//!
//! # Invariants
//! 1. [`prove_any`] returns `Ok` only when both proofs were verified in constant time and both sides speak the same version.
//! 2. Each step has a time limit, and before the proof no frame is longer than [`PREFACE_MAX`].
//! 3. 0-RTT is never used.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use iroh::endpoint::{
    Connection, ConnectionError, RecvStream, SendStream, TransportErrorCode, VarInt,
};
use sha2::Sha256;
use thiserror::Error;
use tokio::time::timeout;

use crate::mesh::wire::{Decoder, Frame, PREFACE_MAX, PROTOCOL, WireError};
use crate::peer::{GroupKey, PeerId};
use crate::spool::Admission;

/// Time for each step of the proof.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection was closed by its other end; on the wire as the QUIC application error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum CloseCode {
    /// The daemon ends.
    Stopping = 0,
    /// The group key is not ours.
    WrongKey = 1,
    /// Another protocol version; the reason is its number.
    Version = 2,
    /// The pair has a better connection.
    Duplicate = 3,
    /// Frames that cannot be understood, or too many.
    Protocol = 4,
    /// The peer was removed from the group.
    Removed = 24,
    /// The peer is not on our list of members.
    Unlisted = 25,
    /// The group has a new key: try again.
    Rekeyed = 26,
}

impl CloseCode {
    /// As QUIC wants it.
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Which end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// Opened it.
    Dialer,
    /// Accepted it.
    Acceptor,
}

/// Why there is no session with a peer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum MemberError {
    /// Its proof is wrong.
    #[error("wrong group key: it is not a member of this group")]
    WrongKey,
    /// It says that our proof is wrong.
    #[error("it refused our group key: this node is not a member of its group")]
    RefusedUs,
    /// It speaks another version.
    #[error("speaks protocol {0}, this program {PROTOCOL}: update meshbox on {older}", older = older(*.0))]
    Version(u16),
    /// It speaks none of our protocols.
    #[error("speaks no protocol of this program: update meshbox on the older side")]
    Protocol,
    /// It sent what cannot be understood.
    #[error("sent {0}")]
    Wire(#[from] WireError),
    /// It sent something else than it should at this step.
    #[error("sent no {0} where one is due")]
    Unexpected(&'static str),
    /// It stopped in the middle of a long frame.
    #[error("stopped in the middle of a frame")]
    Stalled,
    /// A step took too long.
    #[error("no answer")]
    Timeout,
    /// The pair has another connection that is kept.
    #[error("another connection is in use")]
    Duplicate,
    /// Its daemon has ended, or is about to.
    #[error("offline")]
    Offline,
    /// The connection was lost.
    #[error("connection lost: {0}")]
    Lost(String),
    /// One of the two was removed, or left.
    #[error("removed from the group by its admin, or left it")]
    Removed,
    /// One of the two is not on the other's list.
    #[error(
        "not on the list of members: `members = \"listed\"` is set, and neither `member` nor the admin names it"
    )]
    Unlisted,
    /// It has a new group key, and so have we now.
    #[error("the group has a new key; trying again with that")]
    Rekeyed,
    /// It had an older key, and was given the new one.
    #[error("it had an older group key, and was given the new one")]
    OlderKey,
    /// A connection of the node to itself.
    #[error("it is this node itself")]
    Myself,
}

impl MemberError {
    /// What to close the connection with.
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Self::WrongKey | Self::Myself => CloseCode::WrongKey,
            Self::Version(_) => CloseCode::Version,
            Self::Removed => CloseCode::Removed,
            Self::Unlisted => CloseCode::Unlisted,
            Self::Rekeyed | Self::OlderKey => CloseCode::Rekeyed,
            Self::RefusedUs
            | Self::Protocol
            | Self::Wire(_)
            | Self::Unexpected(_)
            | Self::Stalled
            | Self::Timeout
            | Self::Duplicate
            | Self::Offline
            | Self::Lost(_) => CloseCode::Protocol,
        }
    }
}

/// Why `id` is refused whatever it proves, if so.
pub(super) fn refusal(admission: Admission) -> Option<MemberError> {
    match admission {
        Admission::Removed | Admission::Left => Some(MemberError::Removed),
        Admission::Unlisted => Some(MemberError::Unlisted),
        Admission::Welcome | Admission::LeftOut => None,
    }
}

fn older(theirs: u16) -> &'static str {
    if theirs > PROTOCOL {
        "this node"
    } else {
        "that node"
    }
}

/// What is known of a connection before the proof.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    /// The protocol's name.
    pub alpn: &'a [u8],
    /// Who dialled.
    pub dialer: PeerId,
    /// Who accepted.
    pub acceptor: PeerId,
    /// Exported from the TLS session.
    pub exporter: &'a [u8; 32],
}

fn mac(group: &GroupKey, role: Role, version: u16, ends: Ends<'_>) -> Hmac<Sha256> {
    // HMAC takes keys of every length.
    #[allow(clippy::expect_used)]
    let mut mac =
        <Hmac<Sha256> as KeyInit>::new_from_slice(group.as_bytes()).expect("any key length");
    mac.update(b"meshbox member 1\0");
    mac.update(match role {
        Role::Dialer => b"D",
        Role::Acceptor => b"A",
    });
    mac.update(&(ends.alpn.len() as u64).to_be_bytes());
    mac.update(ends.alpn);
    mac.update(&version.to_be_bytes());
    mac.update(ends.dialer.as_bytes());
    mac.update(ends.acceptor.as_bytes());
    mac.update(ends.exporter);
    mac
}

/// The proof of `role`.
pub(super) fn proof(group: &GroupKey, role: Role, version: u16, ends: Ends<'_>) -> [u8; 32] {
    mac(group, role, version, ends)
        .finalize()
        .into_bytes()
        .into()
}

/// Whether `claimed` is the proof of `role`; takes the same time whatever differs.
pub(super) fn is_proof(
    claimed: &[u8; 32],
    group: &GroupKey,
    role: Role,
    version: u16,
    ends: Ends<'_>,
) -> bool {
    mac(group, role, version, ends)
        .verify_slice(claimed)
        .is_ok()
}

/// The two directions of the first stream of a connection, and what was read ahead.
#[derive(Debug)]
pub(super) struct Channel {
    /// To the peer.
    pub send: SendStream,
    /// From the peer.
    pub recv: RecvStream,
    /// Bytes on their way to be frames.
    pub decoder: Decoder,
}

impl Channel {
    /// Sends one frame.
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), MemberError> {
        self.send
            .write_all(&frame.to_bytes())
            .await
            .map_err(|e| MemberError::Lost(e.to_string()))
    }

    /// The next frame, within [`STEP_TIMEOUT`].
    pub(super) async fn frame(&mut self) -> Result<Frame, MemberError> {
        let read = async {
            loop {
                if let Some((frame, _)) = self.decoder.next_frame()? {
                    return Ok(frame);
                }
                match self.recv.read_chunk(64 * 1024).await {
                    Ok(Some(bytes)) => self.decoder.push(&bytes),
                    Ok(None) => return Err(MemberError::Lost("the stream ended".into())),
                    Err(e) => return Err(MemberError::Lost(e.to_string())),
                }
            }
        };
        timeout(STEP_TIMEOUT, read)
            .await
            .unwrap_or(Err(MemberError::Timeout))
    }
}

/// The peer's id as TLS proved it.
pub(super) fn remote(conn: &Connection) -> PeerId {
    PeerId::from_bytes(*conn.remote_id().as_bytes())
}

/// With what, and for whom, membership is proved.
pub(super) struct Proving<'a> {
    /// The keys a peer may prove, ours first. An acceptor answers under the one that was proved.
    pub keys: &'a [GroupKey],
    /// Our own id.
    pub me: PeerId,
    /// Refuse the peer for this, once it has proved a key.
    pub refuse: Option<MemberError>,
}

/// Does the mutual proof on the first stream of `conn`; also says which key it was. On failure the connection is closed
/// with the reason.
pub(super) async fn prove_any(
    conn: &Connection,
    role: Role,
    proving: Proving<'_>,
) -> Result<(Channel, usize), MemberError> {
    prove_as(conn, role, proving, PROTOCOL).await
}

/// [`prove_any`] with one key.
#[cfg(test)]
pub(super) async fn prove(
    conn: &Connection,
    group: &GroupKey,
    me: PeerId,
    role: Role,
) -> Result<Channel, MemberError> {
    prove_version(conn, group, me, role, PROTOCOL).await
}

/// [`prove`] for a node that speaks `version`.
#[cfg(test)]
pub(super) async fn prove_version(
    conn: &Connection,
    group: &GroupKey,
    me: PeerId,
    role: Role,
    version: u16,
) -> Result<Channel, MemberError> {
    let proving = Proving {
        keys: std::slice::from_ref(group),
        me,
        refuse: None,
    };
    let proved = prove_as(conn, role, proving, version).await;
    proved.map(|(channel, _)| channel)
}

async fn prove_as(
    conn: &Connection,
    role: Role,
    proving: Proving<'_>,
    version: u16,
) -> Result<(Channel, usize), MemberError> {
    let result = handshake(conn, role, proving, version).await;
    result.map_err(|error| {
        let told = conn
            .close_reason()
            .and_then(|reason| closed_by_peer(&reason));
        close_for(conn, &error, version);
        told.unwrap_or(error)
    })
}

/// Closes the connection and says why; does nothing on one that is closed.
fn close_for(conn: &Connection, error: &MemberError, version: u16) {
    let code = error.close_code();
    let number = version.to_string();
    let why: &[u8] = match code {
        CloseCode::WrongKey => b"wrong group key",
        CloseCode::Version => number.as_bytes(),
        CloseCode::Removed => b"removed from the group",
        CloseCode::Unlisted => b"not on the list of members",
        CloseCode::Stopping | CloseCode::Duplicate | CloseCode::Protocol | CloseCode::Rekeyed => {
            b"proof failed"
        }
    };
    conn.close(code.code(), why);
}

async fn handshake(
    conn: &Connection,
    role: Role,
    proving: Proving<'_>,
    version: u16,
) -> Result<(Channel, usize), MemberError> {
    let Proving { keys, me, refuse } = proving;
    let peer = remote(conn);
    if peer == me {
        return Err(MemberError::Myself);
    }
    let first = keys.first().ok_or(MemberError::WrongKey)?;
    let mut exporter = [0; 32];
    conn.export_keying_material(&mut exporter, b"meshbox member proof", b"")
        .map_err(|_| MemberError::Lost("no keying material".into()))?;
    let (dialer, acceptor) = match role {
        Role::Dialer => (me, peer),
        Role::Acceptor => (peer, me),
    };
    let ends = Ends {
        alpn: conn.alpn(),
        dialer,
        acceptor,
        exporter: &exporter,
    };
    let ours = |key: &GroupKey| Frame::Proof {
        version,
        mac: proof(key, role, version, ends),
    };
    let stream = async {
        match role {
            Role::Dialer => conn.open_bi().await,
            Role::Acceptor => conn.accept_bi().await,
        }
    };
    let (send, recv) = timeout(STEP_TIMEOUT, stream)
        .await
        .map_err(|_| MemberError::Timeout)?
        .map_err(|e| closed_by_peer(&e).unwrap_or(MemberError::Lost(e.to_string())))?;
    let mut channel = Channel {
        send,
        recv,
        decoder: Decoder::new(PREFACE_MAX),
    };
    let exchange = async {
        let (theirs, which) = match role {
            Role::Dialer => {
                channel.send(&ours(first)).await?;
                let (theirs, _) = verify(&mut channel, &keys[..1], Role::Acceptor, ends).await?;
                refuse.map_or(Ok((theirs, 0)), Err)?
            }
            Role::Acceptor => {
                let (theirs, which) = verify(&mut channel, keys, Role::Dialer, ends).await?;
                if let Some(error) = refuse {
                    return Err(error);
                }
                if theirs == version {
                    channel.send(&ours(&keys[which])).await?;
                }
                (theirs, which)
            }
        };
        if theirs == version {
            Ok(which)
        } else {
            Err(MemberError::Version(theirs))
        }
    };
    match exchange.await {
        Ok(which) => Ok((channel, which)),
        Err(error) => {
            // While the stream is there: its end, if that comes first, would be all that the peer sees. What the peer
            // said before goes first.
            if conn.close_reason().is_none() {
                close_for(conn, &error, version);
            }
            Err(error)
        }
    }
}

/// Reads a proof; says of which version, and which of `keys` it proves.
async fn verify(
    channel: &mut Channel,
    keys: &[GroupKey],
    role: Role,
    ends: Ends<'_>,
) -> Result<(u16, usize), MemberError> {
    let Frame::Proof { version, mac } = channel.frame().await? else {
        return Err(MemberError::Unexpected("membership proof"));
    };
    let proves = |key: &GroupKey| is_proof(&mac, key, role, version, ends);
    let which = keys.iter().position(proves).ok_or(MemberError::WrongKey)?;
    Ok((version, which))
}

/// What the other end said when it closed the connection, if it said something we know.
pub(super) fn closed_by_peer(reason: &ConnectionError) -> Option<MemberError> {
    let ConnectionError::ApplicationClosed(close) = reason else {
        return None;
    };
    let is = |code: CloseCode| close.error_code == code.code();
    if is(CloseCode::WrongKey) {
        Some(MemberError::RefusedUs)
    } else if is(CloseCode::Version) {
        let version = std::str::from_utf8(&close.reason)
            .ok()
            .and_then(|text| text.parse().ok());
        Some(version.map_or(MemberError::Protocol, MemberError::Version))
    } else if is(CloseCode::Duplicate) {
        Some(MemberError::Duplicate)
    } else if is(CloseCode::Removed) {
        Some(MemberError::Removed)
    } else if is(CloseCode::Unlisted) {
        Some(MemberError::Unlisted)
    } else if is(CloseCode::Rekeyed) {
        Some(MemberError::Rekeyed)
    } else {
        None
    }
}

/// Why a connection is over, or could not be made. A daemon that ends closes its connections, and its transport refuses
/// further ones until the port is closed.
pub(super) fn why_closed(reason: &ConnectionError) -> Option<MemberError> {
    let leaves = match reason {
        ConnectionError::ApplicationClosed(close) => close.error_code == CloseCode::Stopping.code(),
        ConnectionError::ConnectionClosed(close) => {
            close.error_code == TransportErrorCode::CONNECTION_REFUSED
        }
        _ => false,
    };
    closed_by_peer(reason).or(leaves.then_some(MemberError::Offline))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::wire::{BULK_ALPN, CTL_ALPN};

    #[test]
    fn a_proof_holds_for_its_role_protocol_version_ends_and_session_only() {
        let group = GroupKey::generate();
        let (a, b) = (PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32]));
        let ends = Ends {
            alpn: CTL_ALPN,
            dialer: a,
            acceptor: b,
            exporter: &[3; 32],
        };
        let good = proof(&group, Role::Dialer, 1, ends);
        assert!(is_proof(&good, &group, Role::Dialer, 1, ends));
        assert!(
            !is_proof(&good, &group, Role::Acceptor, 1, ends),
            "reflected"
        );
        assert!(!is_proof(&good, &group, Role::Dialer, 2, ends));
        assert!(!is_proof(
            &good,
            &GroupKey::generate(),
            Role::Dialer,
            1,
            ends
        ));
        for other in [
            Ends {
                alpn: BULK_ALPN,
                ..ends
            },
            Ends {
                dialer: b,
                acceptor: a,
                ..ends
            },
            Ends {
                acceptor: PeerId::from_bytes([9; 32]),
                ..ends
            },
            Ends {
                exporter: &[4; 32],
                ..ends
            },
        ] {
            assert!(!is_proof(&good, &group, Role::Dialer, 1, other));
        }
    }

    #[test]
    fn a_version_error_says_who_is_to_update() {
        assert_eq!(
            MemberError::Version(2).to_string(),
            "speaks protocol 2, this program 1: update meshbox on this node"
        );
        assert!(
            MemberError::Version(0)
                .to_string()
                .ends_with("on that node")
        );
    }
}
