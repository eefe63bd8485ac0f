//! Links: accepting connections, and the supervised dial loop of every known peer.
//!
//! A dial loop runs from the first second until the mesh stops, whatever an attempt gave. Who dialled the control
//! connection also dials the bulk connection, since it knows a way. After a failure it waits, at most
//! [`PAUSE_MAX`], or until an address is learned.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use iroh::Endpoint;
use iroh::endpoint::{Connection, Incoming, IncomingAddr};
use tokio::time::{Instant, sleep, timeout};

use crate::delivery::jittered;
use crate::mesh::congestion::{self, Controller};
use crate::mesh::door::{Door, Place};
use crate::mesh::endpoint::With;
use crate::mesh::hub::Hub;
use crate::mesh::member::{Channel, CloseCode, MemberError, Role, STEP_TIMEOUT, remote};
use crate::mesh::roster::Peer;
use crate::mesh::windows::Carries;
use crate::mesh::wire::{BULK_ALPN, CTL_ALPN, Frame, HELLO_MAX, Hello, JOIN_ALPN, MemberFrame};
use crate::mesh::{endpoint, join, serve, session};

/// First and longest pause between attempts.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How much later the higher id dials at the start, so that two that start together do not dial each other twice.
const POLITE: Duration = Duration::from_millis(100);

/// A session that lasted less does not reset the pause.
const LASTED: Duration = Duration::from_secs(5);

/// Accepts until the endpoint has ended. Who has not proved membership waits at the door.
pub(crate) async fn accept(hub: &Arc<Hub>, endpoint: &Endpoint) {
    let door = Arc::new(Door::default());
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_addr();
        let proven = incoming.remote_addr_validated() || !matches!(from, IncomingAddr::Ip(_));
        let incoming = if door.is_pressed() && !proven {
            match incoming.retry() {
                Ok(()) => continue,
                Err(error) => error.into_incoming(),
            }
        } else {
            incoming
        };
        let place = door.enter(&from);
        tokio::spawn(accepted(hub.clone(), incoming, from, place));
    }
}

async fn handshake(hub: &Hub, incoming: Incoming, with: With) -> Option<Connection> {
    let accepting = match endpoint::accept(&hub.net.endpoint()?, incoming, with) {
        Ok(accepting) => accepting,
        Err(error) => {
            tracing::debug!("incoming connection failed: {error}");
            return None;
        }
    };
    match timeout(STEP_TIMEOUT, accepting).await {
        Ok(Ok(conn)) => Some(conn),
        Ok(Err(error)) => {
            tracing::debug!("incoming connection failed: {}", endpoint::chain(&error));
            None
        }
        Err(_) => None,
    }
}

async fn accepted(hub: Arc<Hub>, incoming: Incoming, from: IncomingAddr, place: Place) {
    let at = match from {
        IncomingAddr::Ip(addr) => Some(addr),
        _ => None,
    };
    let at_once: Vec<SocketAddr> = at.into_iter().collect();
    let with = hub.net.with(&at_once);
    let controller = with.controller;
    let conn = tokio::select! {
        conn = handshake(&hub, incoming, with) => conn,
        () = place.lost() => None,
    };
    let Some(conn) = conn else { return };
    let proved = tokio::select! {
        proved = meet(&hub, &conn, at) => proved,
        () = place.lost() => {
            conn.close(CloseCode::Stopping.code(), b"others are waiting");
            None
        }
    };
    drop(place);
    let Some((peer, channel)) = proved else {
        return;
    };
    if conn.alpn() == BULK_ALPN {
        run_bulk(hub, peer, conn, controller).await;
    } else if let Err(error) = run_control(&hub, &peer, conn, channel, false).await {
        // Who only asks whether its ticket holds leaves without a hello, and is nobody's member.
        let only_asked = matches!(error, MemberError::Lost(_) | MemberError::Offline);
        let known = match only_asked {
            true => hub.roster.forget_stranger(peer),
            false => Some(peer),
        };
        if let Some(peer) = known {
            peer.failed(&error, at);
        }
    }
}

/// Finds out whether the other end is a member.
async fn meet(
    hub: &Arc<Hub>,
    conn: &Connection,
    at: Option<SocketAddr>,
) -> Option<(Arc<Peer>, Channel)> {
    let id = remote(conn);
    if conn.alpn() == JOIN_ALPN {
        if let Err(error) = join::answer(hub, conn.clone()).await {
            tracing::warn!("{} did not join: {error}", id.short());
        }
        return None;
    }
    match hub.prove(conn, Role::Acceptor).await {
        Ok(channel) => {
            let peer = hub.roster.or_stranger(id).unwrap_or_else(|| hub.known(id));
            Some((peer, channel))
        }
        Err(error) => {
            if let Some(peer) = hub.roster.or_stranger(id) {
                peer.failed(&error, at);
            }
            None
        }
    }
}

/// Exchanges hellos, then runs the session to its end.
async fn run_control(
    hub: &Arc<Hub>,
    peer: &Arc<Peer>,
    conn: Connection,
    mut channel: Channel,
    dialled: bool,
) -> Result<MemberError, MemberError> {
    #[cfg(test)]
    if hub.care.cut.lock().contains(&peer.id) {
        conn.close(0u32.into(), b"cut by a test");
        return Err(MemberError::Lost("cut by a test".into()));
    }
    let Ok(before_hello) = peer.greeters.try_acquire() else {
        let code = CloseCode::Duplicate.code();
        conn.close(code, b"others of yours have not said hello yet");
        return Err(MemberError::Duplicate);
    };
    let _window = hub.net.windows.open(&conn, Carries::Control);
    let greeting = if dialled {
        None
    } else {
        Some(peer.greeting.lock().await)
    };
    let via = dialled.then(|| endpoint::reached_at(&conn)).flatten();
    let greeted = greet(hub, peer, &mut channel, via).await;
    drop(before_hello);
    let hello = match greeted {
        Ok(hello) => hello,
        Err(error) => {
            conn.close(CloseCode::Protocol.code(), b"no hello");
            return Err(error);
        }
    };
    Ok(session::run(
        hub.clone(),
        peer.clone(),
        conn,
        channel,
        hello,
        dialled,
        greeting,
    )
    .await)
}

async fn greet(
    hub: &Arc<Hub>,
    peer: &Arc<Peer>,
    channel: &mut Channel,
    via: Option<SocketAddr>,
) -> Result<Hello, MemberError> {
    channel.decoder.set_limit(HELLO_MAX);
    let ours = hub.hello(peer.id);
    let told = peer.epoch_told.fetch_max(ours.epoch, Ordering::Relaxed);
    channel.send(&Frame::Hello(Box::new(ours))).await?;
    let hello = match channel.frame().await? {
        Frame::Hello(hello) => hello,
        Frame::Member(MemberFrame::Statements(told)) => return Err(hub.rekeyed(told).await),
        _ => return Err(MemberError::Unexpected("hello")),
    };
    let (hub, id, said) = (hub.clone(), peer.id, hello.clone());
    let noted = tokio::task::spawn_blocking(move || hub.greeted(id, &said, told, via)).await;
    noted.map_err(|_| MemberError::Lost("the hello could not be recorded".into()))?;
    Ok(*hello)
}

/// Serves a proved bulk connection until it ends. A peer has one: the newest, since who opens it may have lost the other
/// without our knowledge.
async fn run_bulk(hub: Arc<Hub>, peer: Arc<Peer>, conn: Connection, controller: Controller) {
    let _window = hub.net.windows.open(&conn, Carries::Bulk);
    if let Some(before) = peer.bulk.send_replace(Some(conn.clone())) {
        before.close(CloseCode::Duplicate.code(), b"another connection is in use");
    }
    hub.check(&peer);
    tokio::join!(
        serve::serve(hub.clone(), peer.clone(), conn.clone()),
        congestion::watch(&hub.net.paths, &conn, controller)
    );
    peer.bulk.send_if_modified(|bulk| {
        let ours = bulk
            .as_ref()
            .is_some_and(|b| b.stable_id() == conn.stable_id());
        if ours {
            *bulk = None;
        }
        ours
    });
}

/// Dials `peer` for ever.
pub(crate) async fn dial(hub: Arc<Hub>, peer: Arc<Peer>) {
    let mut seed = u64::from_le_bytes(crate::peer::random()) | 1;
    let mut pause = PAUSE;
    let mut hurried = false;
    let mut up = peer.up.subscribe();
    hub.opened().await;
    if hub.me > peer.id {
        sleep(POLITE).await;
    }
    loop {
        if up.wait_for(|up| !up).await.is_err() || hub.is_stopping() || hub.is_out(peer.id) {
            return;
        }
        peer.forget_told(std::time::Instant::now());
        let addrs = peer.addrs();
        if addrs.is_empty() && hub.net.relays.is_empty() {
            tokio::select! {
                () = peer.wake.notified() => {}
                _ = up.wait_for(|up| *up) => {}
            }
            continue;
        }
        drop(peer.greeting.lock().await);
        if *up.borrow() {
            continue;
        }
        let begun = Instant::now();
        let connected = tokio::select! {
            connected = dial_once(&hub, &peer, &addrs, CTL_ALPN) => connected.map(|c| c.0),
            // An address was learned meanwhile. Once only, so that no stream of news starves the attempts.
            () = peer.wake.notified(), if !hurried => {
                hurried = true;
                continue;
            }
            // The peer was faster: a second connection would only take the place of the first.
            _ = up.wait_for(|up| *up) => continue,
        };
        hurried = false;
        let ended = match connected {
            Ok(conn) => talk(&hub, &peer, conn).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            peer.failed(&error, addrs.first().copied());
        }
        if begun.elapsed() > LASTED && peer.error().is_none() {
            pause = PAUSE;
        }
        tokio::select! {
            () = sleep(jittered(pause, &mut seed)) => pause = (pause * 2).min(PAUSE_MAX),
            () = peer.wake.notified() => pause = PAUSE,
            _ = up.wait_for(|up| *up) => pause = PAUSE,
        }
    }
}

/// One attempt, with the controller for these addresses.
async fn dial_once(
    hub: &Hub,
    peer: &Peer,
    addrs: &[SocketAddr],
    alpn: &[u8],
) -> Result<(Connection, Controller), MemberError> {
    let with = hub.net.with(addrs);
    let endpoint = hub.net.endpoint();
    let endpoint = endpoint.ok_or_else(|| MemberError::Lost("we are not on the network".into()))?;
    let relays = &hub.net.relays;
    let conn = endpoint::connect_as(&endpoint, peer.id, addrs, relays, alpn, with).await?;
    Ok((conn, with.controller))
}

/// Proves membership on a connection that we dialled, and runs its session.
async fn talk(hub: &Arc<Hub>, peer: &Arc<Peer>, conn: Connection) -> Result<(), MemberError> {
    let proved = hub.prove(&conn, Role::Dialer).await;
    if matches!(proved, Err(MemberError::RefusedUs)) {
        hub.bring_along(peer).await;
    }
    let channel = proved?;
    let bulk = tokio::spawn(dial_bulk(hub.clone(), peer.clone()));
    let ended = run_control(hub, peer, conn, channel, true).await;
    bulk.abort();
    ended.map(|_| ())
}

/// Keeps a bulk connection up as long as the session that we dialled lasts.
async fn dial_bulk(hub: Arc<Hub>, peer: Arc<Peer>) {
    let mut seed = u64::from_le_bytes(crate::peer::random()) | 1;
    let mut pause = PAUSE;
    let mut up = peer.up.subscribe();
    let mut bulk = peer.bulk.subscribe();
    while up.wait_for(|up| *up).await.is_ok() {
        // One that the other end opened will do.
        if bulk.wait_for(Option::is_none).await.is_err() {
            return;
        }
        let begun = Instant::now();
        let result = async {
            let (conn, controller) = dial_once(&hub, &peer, &peer.addrs(), BULK_ALPN).await?;
            hub.prove(&conn, Role::Dialer).await?;
            Ok::<_, MemberError>((conn, controller))
        };
        match result.await {
            // In a task of its own: ending the control session must not cut a transfer.
            Ok((conn, controller)) => {
                let bulk = run_bulk(hub.clone(), peer.clone(), conn, controller);
                drop(tokio::spawn(bulk).await);
            }
            Err(error) => tracing::debug!("no bulk connection with {}: {error}", peer.label()),
        }
        pause = if begun.elapsed() > LASTED {
            PAUSE
        } else {
            (pause * 2).min(PAUSE_MAX / 3)
        };
        sleep(jittered(pause, &mut seed)).await;
    }
}
