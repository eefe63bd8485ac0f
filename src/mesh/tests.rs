//! Whole meshes over real iroh on loopback; and peers that break the rules, on the real wire.

#[cfg(test)]
mod cancels;
#[cfg(test)]
mod custody;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod forwarder;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod links;
#[cfg(test)]
mod long;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod moves;
#[cfg(test)]
mod real;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod restored;
#[cfg(test)]
mod scopes;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod sources;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod zeros;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use iroh::Endpoint;
use iroh::endpoint::{Connection, ConnectionError};
use tokio::runtime::Runtime;

use self::faults::Real;
use self::real::manifest_of;
use super::member::{Channel, MemberError, Role, prove, prove_version};
use super::wire::{BULK_ALPN, CTL_ALPN, Decoder, FRAME_MAX, Frame, Hello, Offer, PROTOCOL};
use super::{Congestion, Mesh, MeshError, endpoint};
use crate::bundle::BundleId;
use crate::delivery::Verdict;
use crate::peer::{GroupKey, Identity, PeerId, PeerName, Ticket};

fn name(text: &str) -> PeerName {
    PeerName::parse(text).unwrap()
}

/// Longest wait for anything in these tests; they fail then.
const PATIENCE: Duration = Duration::from_secs(60);

/// A [`super::MeshConfig`], with the group that the spool is to be in.
#[derive(Clone)]
struct MeshConfig {
    group: GroupKey,
    name: PeerName,
    listen: Vec<std::net::SocketAddr>,
    peers: Vec<(PeerId, std::net::SocketAddr)>,
    ticket: Option<Ticket>,
    congestion: Congestion,
    relays: Vec<String>,
}

impl From<MeshConfig> for super::MeshConfig {
    fn from(config: MeshConfig) -> Self {
        Self {
            name: config.name,
            listen: config.listen,
            wait_for_addresses: false,
            peers: config.peers,
            ticket: config.ticket,
            mdns: false,
            congestion: config.congestion,
            relays: config.relays,
        }
    }
}

fn config(called: &str, group: &GroupKey) -> MeshConfig {
    MeshConfig {
        group: group.clone(),
        name: name(called),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        peers: vec![],
        ticket: None,
        // What is sent twice would depend on how busy the machine is.
        congestion: Congestion::Cubic,
        relays: vec![],
    }
}

fn start(member: &Real, config: MeshConfig) -> Mesh {
    member.start(config)
}

fn ticket(inviter: &Real, called: &str, mesh: &Mesh, group: &GroupKey) -> Ticket {
    Ticket {
        group: group.clone(),
        inviter: inviter.id(),
        name: name(called),
        addrs: mesh.listen_addrs(),
        charter: None,
        generation: 0,
    }
}

/// Waits for what nothing announces; for states that come of themselves, so the interval decides nothing.
fn eventually(what: &str, test: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !test() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn connected(mesh: &Mesh, peer: PeerId) -> bool {
    mesh.peers()
        .iter()
        .any(|p| p.id == peer.to_string() && p.connected)
}

fn error_of(mesh: &Mesh, peer: PeerId) -> Option<String> {
    mesh.peers()
        .into_iter()
        .find(|p| p.id == peer.to_string())?
        .error
}

impl Channel {
    /// The next frame. The product gives a peer less time than a busy machine may need.
    async fn heard(&mut self) -> Frame {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.frame().await {
                Err(MemberError::Timeout) if Instant::now() < deadline => {}
                heard => return heard.unwrap(),
            }
        }
    }
}

/// A spool and the mesh over it.
type Member = (Real, Mesh);

/// Two members that know each other, connected.
fn pair() -> (GroupKey, Member, Member) {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let a = start(&alder, config("alder", &group));
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("birch", &group)
    };
    let b = start(&birch, invited);
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
    (group, (alder, a), (birch, b))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 % 251) as u8 ^ (i >> 16) as u8)
        .collect()
}

#[test]
fn bundles_of_every_size_arrive_in_both_directions_with_receipts() {
    let (_, (alder, _a), (birch, _b)) = pair();
    let sizes = [
        0,
        1,
        65_535,
        65_536,
        65_537,
        1 << 20,
        (1 << 20) + 1,
        20 << 20,
    ];
    // What one has sent the other need not send.
    let other = |size| pattern(size).iter().map(|byte| !byte).collect::<Vec<u8>>();
    for size in sizes {
        alder.send(&format!("a/{size}"), &pattern(size), &[birch.id()]);
        birch.send(&format!("b/{size}"), &other(size), &[alder.id()]);
    }
    for size in sizes {
        assert!(
            birch.wait_inbox(&format!("a/{size}")) == pattern(size),
            "{size}"
        );
        assert!(
            alder.wait_inbox(&format!("b/{size}")) == other(size),
            "{size}"
        );
    }
    alder.wait_delivered(birch.id());
    birch.wait_delivered(alder.id());
    let total: usize = sizes.iter().sum();
    assert_eq!(alder.bytes(), (total as u64, total as u64));
}

#[test]
fn what_was_sent_while_the_peer_was_away_arrives_when_it_starts() {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let a = start(&alder, config("alder", &group));
    for n in 0..600 {
        alder.send(&format!("n{n}"), &pattern(n), &[birch.id()]);
    }
    alder.send("large", &pattern(3 << 20), &[birch.id()]);
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("birch", &group)
    };
    let _b = start(&birch, invited);
    birch.wait_inbox_len(601);
    alder.wait_delivered(birch.id());
}

#[test]
fn a_lost_ring_costs_a_rescan_and_no_bundle() {
    let (_, (alder, _a), (birch, _b)) = pair();
    alder.spool().doorbell.ring_nobody();
    alder.send("quiet", b"x", &[birch.id()]);
    birch.wait_inbox("quiet");
}

#[test]
fn a_third_member_learns_addresses_from_the_first_and_speaks_to_the_second() {
    let (group, (alder, a), (birch, b)) = pair();
    let cedar = Real::new();
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("cedar", &group)
    };
    let c = start(&cedar, invited);
    eventually("birch and cedar", || {
        connected(&b, cedar.id()) && connected(&c, birch.id())
    });
    birch.send("from/birch", b"hello", &[cedar.id()]);
    assert_eq!(cedar.wait_inbox("from/birch"), "hello");
}

/// It was shown with "connection lost: the server refused to accept a new connection".
#[test]
fn a_peer_that_stopped_is_offline_and_nothing_worse() {
    let (_, (_alder, a), (birch, b)) = pair();
    let id = birch.id();
    b.stop();
    eventually("offline", || {
        !connected(&a, id) && error_of(&a, id).as_deref() == Some("offline")
    });
}

/// So that a start which fails before its mount serves was nobody's member.
#[test]
fn nobody_is_dialled_or_let_in_before_the_mesh_is_opened() {
    let group = GroupKey::generate();
    let (a, dials, listens, c) = (Real::new(), Real::new(), Real::new(), Real::new());
    let to = |member: &Real, mesh: &Mesh| (member.id(), mesh.listen_addrs()[0]);
    let mesh_a = start(&a, config("a", &group));
    let peers = vec![to(&a, &mesh_a)];
    let dialling = MeshConfig {
        peers,
        ..config("dials", &group)
    };
    let mut mesh_dials = dials.bind(dialling).unwrap();
    let mut mesh_listens = listens.bind(config("listens", &group)).unwrap();
    let peers = vec![to(&listens, &mesh_listens), to(&a, &mesh_a)];
    let mesh_c = start(
        &c,
        MeshConfig {
            peers,
            ..config("c", &group)
        },
    );
    eventually("those that are open meet", || connected(&mesh_a, c.id()));
    for mesh in [&mesh_a, &mesh_c, &mesh_dials, &mesh_listens] {
        for closed in [&dials, &listens] {
            assert!(!connected(mesh, closed.id()));
        }
    }
    mesh_dials.open();
    mesh_listens.open();
    eventually("it dials", || connected(&mesh_a, dials.id()));
    eventually("it accepts", || connected(&mesh_c, listens.id()));
}

#[test]
fn who_only_asks_whether_its_ticket_holds_is_nobodys_member() {
    let group = GroupKey::generate();
    let (a, b, asks) = (Real::new(), Real::new(), Identity::generate());
    let mesh_a = start(&a, config("a", &group));
    let ticket = ticket(&a, "a", &mesh_a, &group);
    let listen = ["127.0.0.1:0".parse().unwrap()];
    for _ in 0..3 {
        let said = super::knock(&asks, &listen, &ticket).unwrap();
        assert_eq!(said, super::Asked::Proved);
    }
    let invited = MeshConfig {
        ticket: Some(ticket),
        ..config("b", &group)
    };
    let _b = start(&b, invited);
    eventually("a member is all there is", || {
        let peers = mesh_a.peers();
        peers.len() == 1 && peers[0].id == b.id().to_string()
    });
}

#[test]
fn a_peer_that_went_away_and_came_back_gets_the_rest() {
    let (group, (alder, a), (birch, b)) = pair();
    alder.send("one", b"1", &[birch.id()]);
    birch.wait_inbox("one");
    let session = a.hub.roster.get(birch.id()).unwrap().session().unwrap();
    b.stop();
    eventually("disconnected", || !connected(&a, birch.id()));
    let reason = session.conn.close_reason();
    assert_ne!(reason, Some(ConnectionError::TimedOut), "not told");
    alder.send("two", b"2", &[birch.id()]);
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("birch", &group)
    };
    let _b = start(&birch, invited);
    birch.wait_inbox("two");
    alder.wait_delivered(birch.id());
}

#[test]
fn two_members_that_both_restart_find_each_other_again() {
    let (group, (alder, a), (birch, b)) = pair();
    a.stop();
    b.stop();
    let a = start(&alder, config("alder", &group));
    let b = start(&birch, config("birch", &group));
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
}

#[test]
fn losing_the_bulk_connection_takes_nothing_else_down() {
    let (_, (alder, a), (birch, b)) = pair();
    let session = |mesh: &Mesh, id| {
        mesh.hub
            .roster
            .get(id)
            .unwrap()
            .session()
            .unwrap()
            .conn
            .stable_id()
    };
    let before = session(&b, alder.id());
    let content = pattern(64 << 20);
    let bundle = alder.send("large", &content, &[birch.id()]);
    alder.wait_delivery(bundle, birch.id(), "sending");
    let bulk = a
        .hub
        .roster
        .get(birch.id())
        .unwrap()
        .bulk
        .borrow()
        .clone()
        .unwrap();
    bulk.close(99u32.into(), b"killed by a test");
    assert!(birch.wait_inbox("large") == content);
    alder.wait_delivered(birch.id());
    assert_eq!(session(&b, alder.id()), before);
}

/// alder and birch in a new group; alder owes birch a file, and its disk has damaged it meanwhile. A good holder beside it is
/// in `faults.rs`.
fn damaged(path: &str, content: &[u8]) -> (BundleId, Member, Member) {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let bundle = alder.send(path, content, &[birch.id()]);
    alder.damage(content);
    let a = start(&alder, config("alder", &group));
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("birch", &group)
    };
    let b = start(&birch, invited);
    (bundle, (alder, a), (birch, b))
}

#[test]
fn a_holder_of_wrong_bytes_is_deferred_with_the_reason() {
    let content = pattern(5 << 20);
    let (bundle, (alder, _a), (birch, _b)) = damaged("f", &content);
    let why = alder.wait_delivery(bundle, birch.id(), "deferred");
    assert!(why.contains("alder sent wrong bytes"), "{why}");
    let row = birch.wait_row(bundle, "deferred");
    assert!(row.error.unwrap().contains("alder sent wrong bytes"));
    assert_eq!(birch.inbox_len(), 0);
    alder.damage(&content);
    assert!(birch.wait_inbox("f") == content);
}

#[test]
fn wrong_inline_bytes_are_deferred_too() {
    let (bundle, (alder, _a), (birch, _b)) = damaged("small", b"hello");
    alder.wait_delivery(bundle, birch.id(), "deferred");
    assert_eq!(birch.inbox_len(), 0);
    alder.damage(b"hello");
    assert_eq!(birch.wait_inbox("small"), "hello");
}

#[test]
fn another_group_is_refused_and_shown_on_both_sides() {
    let (_, (alder, a), (birch, _b)) = pair();
    let other = GroupKey::generate();
    let mallory = Real::new();
    let peers = vec![(alder.id(), a.listen_addrs()[0])];
    let m = start(
        &mallory,
        MeshConfig {
            peers,
            ..config("mallory", &other)
        },
    );
    eventually("refused", || {
        error_of(&m, alder.id()).is_some_and(|e| e.contains("refused our group key"))
    });
    eventually("shown", || {
        error_of(&a, mallory.id()).is_some_and(|e| e.contains("wrong group key"))
    });
    assert!(!connected(&a, mallory.id()) && !connected(&m, alder.id()));
    alder.send("still", b"fine", &[birch.id()]);
    birch.wait_inbox("still");
}

/// A peer written in the test: an endpoint, and whatever the test does with it.
struct Scripted {
    runtime: Runtime,
    endpoint: Endpoint,
    identity: Identity,
}

/// Whatever a scripted peer can connect to.
trait Reached {
    /// Its id, and where it listens.
    fn at(&self) -> (PeerId, Vec<std::net::SocketAddr>);
}

impl Reached for Mesh {
    fn at(&self) -> (PeerId, Vec<std::net::SocketAddr>) {
        (self.hub.me, self.listen_addrs())
    }
}

impl Scripted {
    fn new() -> Self {
        Self::with(Identity::generate())
    }

    fn with(identity: Identity) -> Self {
        let runtime = Runtime::new().unwrap();
        let listen = ["127.0.0.1:0".parse().unwrap()];
        let endpoint = runtime
            .block_on(endpoint::bind(&identity, &listen, &[]))
            .unwrap();
        Self {
            runtime,
            endpoint,
            identity,
        }
    }

    fn id(&self) -> PeerId {
        self.identity.id()
    }

    fn connect(&self, to: &impl Reached, alpn: &[u8]) -> Connection {
        let (id, addrs) = to.at();
        let deadline = Instant::now() + PATIENCE;
        // One dial gives up soon, which on a busy machine says nothing of the other side.
        loop {
            let dial = endpoint::connect(&self.endpoint, id, &addrs, alpn);
            match self.runtime.block_on(dial) {
                Err(MemberError::Timeout) if Instant::now() < deadline => {}
                dialled => return dialled.unwrap(),
            }
        }
    }

    /// Waits until `conn` is closed; gives the reason.
    fn closed(&self, conn: &Connection) -> ConnectionError {
        let closed = async { tokio::time::timeout(PATIENCE, conn.closed()).await };
        let closed = self.runtime.block_on(closed);
        closed.expect("the connection stays open")
    }

    /// Connected to `to` as a member, hello exchanged.
    fn join(&self, to: &impl Reached, group: &GroupKey) -> (Connection, Channel) {
        let conn = self.connect(to, CTL_ALPN);
        let channel = self.runtime.block_on(async {
            let mut channel = prove(&conn, group, self.id(), Role::Dialer).await.unwrap();
            channel.decoder.set_limit(FRAME_MAX);
            channel.send(&self.hello()).await.unwrap();
            assert!(matches!(channel.heard().await, Frame::Hello(_)));
            channel
        });
        (conn, channel)
    }

    fn hello(&self) -> Frame {
        Frame::Hello(Box::new(Hello {
            name: name("scripted"),
            epoch: 1,
            incarnation: [9; 16],
            seen: 0,
            addrs: vec![],
            members: vec![],
        }))
    }

    /// Sends `frame` and waits for verdicts.
    fn ask(&self, channel: &mut Channel, frame: &Frame) -> Vec<(BundleId, Verdict)> {
        self.runtime.block_on(async {
            channel.send(frame).await.unwrap();
            loop {
                if let Frame::Verdicts(list) = channel.heard().await {
                    return list;
                }
            }
        })
    }
}

#[test]
fn a_stranger_gets_no_proof_back_on_either_protocol() {
    let (_, (alder, a), (birch, _b)) = pair();
    let stranger = Scripted::new();
    for alpn in [CTL_ALPN, BULK_ALPN] {
        let conn = stranger.connect(&a, alpn);
        let other = GroupKey::generate();
        let proof = prove(&conn, &other, stranger.id(), Role::Dialer);
        let error = stranger.runtime.block_on(proof).map(|_| ()).unwrap_err();
        assert_eq!(error, MemberError::RefusedUs);
    }
    // Without a word of proof, and with a hello instead of one.
    let conn = stranger.connect(&a, CTL_ALPN);
    stranger.runtime.block_on(async {
        let (send, recv) = conn.open_bi().await.unwrap();
        let mut channel = Channel {
            send,
            recv,
            decoder: Decoder::new(FRAME_MAX),
        };
        channel.send(&stranger.hello()).await.unwrap();
        assert!(matches!(channel.frame().await, Err(MemberError::Lost(_))));
    });
    assert!(error_of(&a, stranger.id()).is_some());
    alder.send("still", b"fine", &[birch.id()]);
    birch.wait_inbox("still");
}

#[test]
fn a_reflected_proof_fails() {
    let group = GroupKey::generate();
    let mirror = Scripted::new();
    let addr = endpoint::listen_addrs(&mirror.endpoint)[0];
    let alder = Real::new();
    let a = start(
        &alder,
        MeshConfig {
            peers: vec![(mirror.id(), addr)],
            ..config("alder", &group)
        },
    );
    mirror.runtime.block_on(async {
        let conn = mirror.endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, mut recv) = conn.accept_bi().await.unwrap();
        let proof = recv.read_chunk(1000).await.unwrap().unwrap();
        send.write_chunk(proof).await.unwrap();
        assert!(conn.closed().await.to_string().contains("wrong group key"));
    });
    eventually("shown", || {
        error_of(&a, mirror.id()).is_some_and(|e| e.contains("wrong group key"))
    });
    assert!(!connected(&a, mirror.id()));
}

#[test]
fn another_protocol_version_is_told_clearly_on_both_sides() {
    let group = GroupKey::generate();
    let newer = Scripted::new();
    let addr = endpoint::listen_addrs(&newer.endpoint)[0];
    let alder = Real::new();
    let a = start(
        &alder,
        MeshConfig {
            peers: vec![(newer.id(), addr)],
            ..config("alder", &group)
        },
    );
    // Dialled by us: the newer side accepts, as often as it is tried.
    let (tell, told) = std::sync::mpsc::channel();
    let (endpoint, key, id) = (newer.endpoint.clone(), group.clone(), newer.id());
    newer.runtime.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            if let Ok(conn) = incoming.await {
                let proved = prove_version(&conn, &key, id, Role::Acceptor, PROTOCOL + 1).await;
                drop(tell.send(proved.map(|_| ()).unwrap_err()));
            }
        }
    });
    let told = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(told, MemberError::Version(PROTOCOL));
    let clear =
        |e: String| e.contains("speaks protocol 2, this program 1: update meshbox on this node");
    eventually("shown", || error_of(&a, newer.id()).is_some_and(clear));
    // And the other way round.
    let conn = newer.connect(&a, CTL_ALPN);
    let proof = prove_version(&conn, &group, newer.id(), Role::Dialer, PROTOCOL + 1);
    assert_eq!(
        newer.runtime.block_on(proof).map(|_| ()).unwrap_err(),
        MemberError::Version(PROTOCOL)
    );
}

#[test]
fn a_protocol_name_nobody_knows_is_a_clear_error() {
    let (_, (alder, a), _b) = pair();
    let newer = Scripted::new();
    let (id, addrs) = (alder.id(), a.listen_addrs());
    let dial = endpoint::connect(&newer.endpoint, id, &addrs, b"meshbox/ctl/2");
    assert_eq!(
        newer.runtime.block_on(dial).map(|_| ()).unwrap_err(),
        MemberError::Protocol
    );
}

#[test]
fn an_unknown_frame_is_skipped_and_a_frame_too_long_ends_the_session() {
    let (group, (alder, a), (birch, _b)) = pair();
    let odd = Scripted::new();
    let (conn, mut channel) = odd.join(&a, &group);
    odd.runtime
        .block_on(channel.send.write_all(&[0, 0, 0, 3, 200, 1, 2]))
        .unwrap();
    let id = BundleId([5; 32]);
    assert_eq!(
        odd.ask(&mut channel, &Frame::Pending(vec![id])),
        [(id, Verdict::Want)]
    );
    odd.runtime.block_on(async {
        channel
            .send
            .write_all(&u32::MAX.to_be_bytes())
            .await
            .unwrap();
        assert!(
            conn.closed().await.to_string().contains("the limit is"),
            "told why"
        );
    });
    eventually("disconnected", || !connected(&a, odd.id()));
    alder.send("still", b"fine", &[birch.id()]);
    birch.wait_inbox("still");
}

#[test]
fn forged_manifests_and_receipts_change_nothing() {
    let (group, (alder, a), (birch, _b)) = pair();
    let forger = Scripted::new();
    let (_conn, mut channel) = forger.join(&a, &group);
    let mut signed = birch.bundle("f", b"x").signed().clone();
    signed.signature.0[3] ^= 1;
    let offer = Offer {
        age: 0,
        signed,
        inline: vec![Some(Bytes::from_static(b"x"))],
    };
    let verdicts = forger.ask(&mut channel, &Frame::Offer(Box::new(offer)));
    assert!(
        matches!(&verdicts[..], [(_, Verdict::Refused(why))] if why.contains("signature")),
        "{verdicts:?}"
    );
    // Somebody else's bundle, correctly signed but with other bytes.
    let signed = birch.bundle("g", b"x").signed().clone();
    let offer = Offer {
        age: 0,
        signed,
        inline: vec![Some(Bytes::from_static(b"y"))],
    };
    let verdicts = forger.ask(&mut channel, &Frame::Offer(Box::new(offer)));
    assert!(
        matches!(&verdicts[..], [(_, Verdict::Deferred(_))]),
        "{verdicts:?}"
    );
    assert_eq!(alder.inbox_len(), 0);
    // A receipt in another's name does not settle what is owed to that one.
    let absent = Identity::generate().id();
    let bundle = alder.send("owed", b"x", &[absent]);
    let mut receipt = crate::bundle::Receipt::sign(&forger.identity, bundle, alder.id());
    receipt.recipient = absent;
    forger
        .runtime
        .block_on(channel.send(&Frame::Receipts(vec![receipt])))
        .unwrap();
    // An answer after it shows that it was looked at.
    let id = BundleId([5; 32]);
    forger.ask(&mut channel, &Frame::Pending(vec![id]));
    assert!(alder.spool().ledger.is_pending(bundle, absent));
}

#[test]
fn content_is_served_to_recipients_only() {
    let (group, (alder, a), (birch, _b)) = pair();
    let secret = alder.send("f", b"secret", &[birch.id()]);
    let curious = Scripted::new();
    let (_conn, _channel) = curious.join(&a, &group);
    let conn = curious.connect(&a, BULK_ALPN);
    let status = curious.runtime.block_on(async {
        prove(&conn, &group, curious.id(), Role::Dialer)
            .await
            .unwrap();
        let (send, recv) = conn.open_bi().await.unwrap();
        let mut channel = Channel {
            send,
            recv,
            decoder: Decoder::new(100),
        };
        let request = super::wire::RangeRequest {
            bundle: secret,
            entry: 0,
            offset: 0,
            len: 6,
        };
        channel.send(&Frame::Range(request)).await.unwrap();
        channel.recv.read_to_end(100).await.unwrap()
    });
    assert_eq!(status, [super::wire::RangeStatus::NotHeld as u8]);
}

/// Measures spool and wire; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let (_, (alder, _a), (birch, _b)) = pair();
    let content = pattern(4096);
    let begun = Instant::now();
    for n in 0..10_000 {
        alder.send(&format!("n{n}"), &content, &[birch.id()]);
    }
    birch.wait_inbox_len(10_000);
    println!("10,000 x 4 KiB: {:?} to inbox", begun.elapsed());
    alder.wait_delivered(birch.id());
    println!("10,000 x 4 KiB: {:?} to the last receipt", begun.elapsed());
    let content = pattern(512 << 20);
    let begun = Instant::now();
    alder.send("large", &content, &[birch.id()]);
    birch.wait_inbox("large");
    println!("512 MiB: {:?}", begun.elapsed());
    let mut times: Vec<Duration> = (0..200)
        .map(|n| {
            let (path, begun) = (format!("l{n}"), Instant::now());
            alder.send(&path, b"x", &[birch.id()]);
            birch.wait_inbox(&path);
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!("1 B: p50 {:?} p99 {:?}", times[100], times[198]);
}
