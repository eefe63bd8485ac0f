//! Joining by an invitation: a protocol of its own, in which the group key itself is handed over.
//!
//! The dialler is no member. It proves, bound to this TLS session and both ids, that it knows the secret of the
//! invitation, and to nobody but the inviter, whose id the ticket names. The inviter answers after the use is durable:
//! with the group's key, or with why not. Who knows no secret learns nothing: its connection is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iroh::endpoint::Connection;
use thiserror::Error;
use tokio::time::{sleep, timeout};

use crate::mesh::endpoint;
use crate::mesh::error::MeshError;
use crate::mesh::hub::Hub;
use crate::mesh::member::{
    Channel, CloseCode, Ends, MemberError, Proving, Role, STEP_TIMEOUT, is_proof, proof, prove_any,
    remote,
};
use crate::mesh::wire::{
    CTL_ALPN, Decoder, Frame, HELLO_MAX, JOIN_ALPN, MemberFrame, PREFACE_MAX, PROTOCOL,
};
use crate::peer::{Identity, Invitation, PeerId, Ticket};
use crate::spool::{Denied, Welcome};

/// How long whoever made a ticket is tried before the mount: it may just be starting.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an endpoint that was only used to ask may take to close.
const CLOSE: Duration = Duration::from_millis(500);

/// Rest between two attempts.
const AGAIN: Duration = Duration::from_millis(500);

/// Why an invitation did not let us in.
#[derive(Debug, Error)]
pub(crate) enum JoinError {
    /// Our own end.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// Nobody answers.
    #[error(
        "{name} ({id}) cannot be reached at {addrs} to redeem the ticket: {why}; it must run, since only whoever made \
         the ticket can redeem it"
    )]
    Unreachable {
        /// The inviter's name.
        name: String,
        /// Its id, shortened.
        id: String,
        /// Where it was looked for.
        addrs: String,
        /// What the last attempt gave.
        why: String,
    },
    /// It said no.
    #[error("{0}")]
    Denied(Denied),
    /// Its group has another key by now.
    #[error(
        "{name} ({id}) does not take the ticket: {why}. The group may have a new key since the ticket was made; ask for a new \
         one. Nothing was changed here"
    )]
    Refused {
        /// The inviter's name.
        name: String,
        /// Its id, shortened.
        id: String,
        /// Its words.
        why: String,
    },
    /// This node's id is out for good.
    #[error(
        "{name} ({id}) does not let this node in, whatever the ticket: its id was removed from the group. Under a new id it can \
         join again: mount with another --state, or with another --name where `identity = \"derived\"`. Nothing was changed here"
    )]
    Removed {
        /// The inviter's name.
        name: String,
        /// Its id, shortened.
        id: String,
    },
}

/// What asking whoever made a ticket came to, where it did not say no.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    /// It takes our key for that of its group.
    Proved,
    /// There was no answer that counts; why, in words.
    Unanswered(String),
}

fn ends<'a>(conn: &'a Connection, role: Role, me: PeerId, exporter: &'a [u8; 32]) -> Ends<'a> {
    let (dialer, acceptor) = match role {
        Role::Dialer => (me, remote(conn)),
        Role::Acceptor => (remote(conn), me),
    };
    Ends {
        alpn: conn.alpn(),
        dialer,
        acceptor,
        exporter,
    }
}

fn exported(conn: &Connection) -> Result<[u8; 32], MemberError> {
    let mut exporter = [0; 32];
    conn.export_keying_material(&mut exporter, b"meshbox join", b"")
        .map_err(|_| MemberError::Lost("no keying material".into()))?;
    Ok(exporter)
}

/// Answers on a connection of the join protocol.
pub(super) async fn answer(hub: &Arc<Hub>, conn: Connection) -> Result<(), MemberError> {
    let stream = timeout(STEP_TIMEOUT, conn.accept_bi()).await;
    let (send, recv) = stream
        .map_err(|_| MemberError::Timeout)?
        .map_err(|e| MemberError::Lost(e.to_string()))?;
    let mut channel = Channel {
        send,
        recv,
        decoder: Decoder::new(PREFACE_MAX),
    };
    let answered = redeemed(hub, &conn, &mut channel).await;
    if answered.is_err() {
        // While the stream is there: its end would be all that the other side sees.
        conn.close(CloseCode::WrongKey.code(), b"no such invitation");
    }
    answered
}

async fn redeemed(
    hub: &Arc<Hub>,
    conn: &Connection,
    channel: &mut Channel,
) -> Result<(), MemberError> {
    let exporter = exported(conn)?;
    let Frame::Member(MemberFrame::Redeem { name, mac }) = channel.frame().await? else {
        return Err(MemberError::Unexpected("invitation"));
    };
    let joiner = remote(conn);
    let lookup = hub.clone();
    let key = tokio::task::spawn_blocking(move || lookup.store.group.invitation_key(name)).await;
    let known = key.unwrap_or(None);
    let ends = ends(conn, Role::Acceptor, hub.me, &exporter);
    let said = match known {
        // The name alone is worth nothing, so nothing is hidden here.
        None => Err(Denied::Unknown),
        Some(key) if is_proof(&mac, &key, Role::Dialer, PROTOCOL, ends) => {
            let hub = hub.clone();
            let used =
                tokio::task::spawn_blocking(move || hub.store.group.redeem(name, joiner)).await;
            used.unwrap_or(Err(Denied::Disk))
        }
        Some(_) => return Err(MemberError::WrongKey),
    };
    let frame = match said {
        Ok(welcome) => {
            tracing::info!("admitted {} by invitation", joiner.short());
            MemberFrame::Welcome(welcome)
        }
        Err(why) => {
            tracing::warn!(
                "an invitation was not redeemed for {}: {why}",
                joiner.short()
            );
            MemberFrame::Denied(why)
        }
    };
    channel.send(&Frame::Member(frame)).await?;
    let _ = channel.send.finish();
    drop(timeout(STEP_TIMEOUT, conn.closed()).await);
    Ok(())
}

/// Redeems `invitation` with its inviter; gives a ticket with the group's key. Blocks for at most [`PATIENCE`] and a
/// little. `listen` says which addresses of ours to use.
pub(crate) fn redeem(
    identity: &Identity,
    listen: &[SocketAddr],
    invitation: &Invitation,
) -> Result<Ticket, JoinError> {
    let said = run(async {
        let endpoint = endpoint::bind(identity, &any_port(listen), &[]).await?;
        let until = Instant::now() + PATIENCE;
        let said = loop {
            match ask(&endpoint, identity.id(), invitation).await {
                Ok(said) => break Ok(said),
                Err(error) if Instant::now() >= until || !passes(&error) => break Err(error),
                Err(_) => sleep(AGAIN).await,
            }
        };
        drop(timeout(CLOSE, endpoint.close()).await);
        Ok::<_, MeshError>(said)
    })?;
    let Invitation {
        inviter,
        name,
        addrs,
        ..
    } = invitation.clone();
    match said {
        Ok(Ok(Welcome {
            key,
            charter,
            generation,
        })) => Ok(Ticket {
            group: key,
            inviter,
            name,
            addrs,
            charter,
            generation,
        }),
        Ok(Err(denied)) => Err(JoinError::Denied(denied)),
        Err(MemberError::RefusedUs) => Err(JoinError::Denied(Denied::Unknown)),
        Err(error) => {
            let shown: Vec<String> = addrs.iter().map(ToString::to_string).collect();
            Err(JoinError::Unreachable {
                name: name.to_string(),
                id: inviter.short(),
                addrs: shown.join(", "),
                why: error.to_string(),
            })
        }
    }
}

/// Asks the inviter of a plain ticket whether the key in it holds, by proving it. An error only if it says no: whoever
/// cannot be reached may be reached later. Blocks for at most [`PATIENCE`] and a little.
pub(crate) fn knock(
    identity: &Identity,
    listen: &[SocketAddr],
    ticket: &Ticket,
) -> Result<Asked, JoinError> {
    let unanswered = |why: &str| Ok(Asked::Unanswered(why.to_owned()));
    if ticket.inviter == identity.id() {
        return unanswered("the ticket is this node's own");
    }
    if ticket.addrs.is_empty() {
        return unanswered("the ticket says no address of it");
    }
    let said = run(async {
        let endpoint = endpoint::bind(identity, &any_port(listen), &[]).await?;
        let mut last = MemberError::Timeout;
        let proved = async {
            loop {
                match prove_to(&endpoint, identity.id(), ticket).await {
                    Err(error) if passes(&error) => last = error,
                    said => break said,
                }
                sleep(AGAIN).await;
            }
        };
        let said = timeout(PATIENCE, proved).await;
        drop(timeout(CLOSE, endpoint.close()).await);
        Ok::<_, MeshError>(said.unwrap_or(Err(last)))
    });
    // An address that is not there yet is the mesh's to wait for, or to complain of.
    let said = said.unwrap_or_else(|error| Err(MemberError::Lost(error.to_string())));
    let (name, id) = (ticket.name.to_string(), ticket.inviter.short());
    match said {
        Ok(()) => Ok(Asked::Proved),
        Err(MemberError::Removed) => Err(JoinError::Removed { name, id }),
        Err(why @ (MemberError::RefusedUs | MemberError::WrongKey)) => Err(JoinError::Refused {
            name,
            id,
            why: why.to_string(),
        }),
        Err(error) => {
            tracing::info!("{name} did not say whether the ticket holds: {error}");
            Ok(Asked::Unanswered(error.to_string()))
        }
    }
}

async fn prove_to(
    endpoint: &iroh::Endpoint,
    me: PeerId,
    ticket: &Ticket,
) -> Result<(), MemberError> {
    let conn = endpoint::connect(endpoint, ticket.inviter, &ticket.addrs, CTL_ALPN).await?;
    let proving = Proving {
        keys: std::slice::from_ref(&ticket.group),
        me,
        refuse: None,
    };
    let proved = prove_any(&conn, Role::Dialer, proving).await;
    conn.close(CloseCode::Stopping.code(), b"only asking");
    proved.map(drop)
}

/// Runs `work` on a runtime of its own: there is none yet before the mesh starts.
fn run<T>(work: impl Future<Output = Result<T, MeshError>>) -> Result<T, MeshError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(MeshError::Runtime)?;
    runtime.block_on(work)
}

/// The addresses of ours to use; their ports are not needed yet.
fn any_port(listen: &[SocketAddr]) -> Vec<SocketAddr> {
    listen.iter().map(|a| SocketAddr::new(a.ip(), 0)).collect()
}

/// Whether another attempt may go better.
fn passes(error: &MemberError) -> bool {
    matches!(
        error,
        MemberError::Lost(_) | MemberError::Offline | MemberError::Timeout
    )
}

/// One attempt.
pub(super) async fn ask(
    endpoint: &iroh::Endpoint,
    me: PeerId,
    invitation: &Invitation,
) -> Result<Result<Welcome, Denied>, MemberError> {
    let (inviter, addrs) = (invitation.inviter, &invitation.addrs);
    let conn = endpoint::connect(endpoint, inviter, addrs, JOIN_ALPN).await?;
    let said = tell(&conn, me, invitation).await;
    let told = conn
        .close_reason()
        .and_then(|reason| crate::mesh::member::closed_by_peer(&reason));
    conn.close(CloseCode::Stopping.code(), b"thank you");
    said.map_err(|error| told.unwrap_or(error))
}

async fn tell(
    conn: &Connection,
    me: PeerId,
    invitation: &Invitation,
) -> Result<Result<Welcome, Denied>, MemberError> {
    let exporter = exported(conn)?;
    let key = invitation.secret.key().ok_or(MemberError::WrongKey)?;
    let ends = ends(conn, Role::Dialer, me, &exporter);
    let mac = proof(&key, Role::Dialer, PROTOCOL, ends);
    let (send, recv) = timeout(STEP_TIMEOUT, conn.open_bi())
        .await
        .map_err(|_| MemberError::Timeout)?
        .map_err(|e| MemberError::Lost(e.to_string()))?;
    let mut channel = Channel {
        send,
        recv,
        decoder: Decoder::new(HELLO_MAX),
    };
    let name = invitation.secret.name();
    channel
        .send(&Frame::Member(MemberFrame::Redeem { name, mac }))
        .await?;
    match channel.frame().await? {
        Frame::Member(MemberFrame::Welcome(welcome)) => Ok(Ok(welcome)),
        Frame::Member(MemberFrame::Denied(why)) => Ok(Err(why)),
        _ => Err(MemberError::Unexpected("welcome")),
    }
}
