//! Who is let in, over real iroh and on every protocol: members, and those who were members.

use super::super::join;
use super::super::wire::MemberFrame;
use super::faults::Real;
use super::*;
use crate::bundle::Stage;
use crate::peer::invitation::JoinSecret;
use crate::peer::roll::{SignedStatement, Statement, What};
use crate::peer::{Charter, Invitation};
use crate::spool::Denied;

/// A founded group with its admin.
pub(super) struct Club {
    pub key: GroupKey,
    charter: Charter,
    pub alder: Real,
    pub a: Mesh,
}

pub(super) fn found() -> Club {
    let (key, alder) = (GroupKey::generate(), Real::new());
    let charter = Charter::of(&key, alder.id());
    alder
        .spool()
        .group
        .enter(key.clone(), Some(charter))
        .unwrap();
    let a = alder.start(config("alder", &key));
    Club {
        key,
        charter,
        alder,
        a,
    }
}

impl Club {
    /// A member with a spool of its own, connected.
    pub(super) fn join(&self, called: &str) -> (Real, Mesh) {
        let member = Real::new();
        let entered = member
            .spool()
            .group
            .enter(self.key.clone(), Some(self.charter));
        entered.unwrap();
        let mesh = self.start(called, &member);
        (member, mesh)
    }

    fn start(&self, called: &str, member: &Real) -> Mesh {
        let mesh = member.start(MeshConfig {
            peers: vec![(self.alder.id(), self.a.listen_addrs()[0])],
            ..config(called, &self.key)
        });
        self.wait(member, &mesh);
        mesh
    }

    fn wait(&self, member: &Real, mesh: &Mesh) {
        eventually("connected", || {
            connected(&self.a, member.id()) && connected(mesh, self.alder.id())
        });
    }

    fn newest(&self) -> GroupKey {
        self.alder.spool().group.keys().swap_remove(0)
    }

    pub(super) fn say(&self, by: &Identity, what: What) -> SignedStatement {
        let (group, id) = (self.charter.root, by.id());
        Statement {
            group,
            by: id,
            what,
        }
        .sign(by)
    }
}

impl Scripted {
    /// What comes of proving `key` to `to` under `alpn`.
    fn tries(&self, to: &Mesh, key: &GroupKey, alpn: &[u8]) -> Result<(), MemberError> {
        let conn = self.connect(to, alpn);
        let proof = prove(&conn, key, self.id(), Role::Dialer);
        self.runtime.block_on(proof).map(drop)
    }

    fn is_refused(&self, to: &Mesh, key: &GroupKey, why: &MemberError) {
        for alpn in [CTL_ALPN, BULK_ALPN] {
            assert_eq!(self.tries(to, key, alpn).as_ref(), Err(why), "{alpn:?}");
        }
    }

    /// Sends raw bytes as the first on a new connection; the error it is closed with.
    fn first_words(&self, conn: &Connection, words: &Frame) -> MemberError {
        self.runtime.block_on(async {
            let (send, recv) = conn.open_bi().await.unwrap();
            let decoder = Decoder::new(FRAME_MAX);
            let mut channel = Channel {
                send,
                recv,
                decoder,
            };
            channel.send(words).await.unwrap();
            assert!(channel.frame().await.is_err());
        });
        super::super::member::closed_by_peer(&self.closed(conn)).unwrap()
    }
}

/// The proof that `who` makes on `conn`, as a frame.
fn proof_on(conn: &Connection, who: &Scripted, to: PeerId, key: &GroupKey) -> Frame {
    let mut exporter = [0; 32];
    conn.export_keying_material(&mut exporter, b"meshbox member proof", b"")
        .unwrap();
    let ends = super::super::member::Ends {
        alpn: conn.alpn(),
        dialer: who.id(),
        acceptor: to,
        exporter: &exporter,
    };
    let mac = super::super::member::proof(key, Role::Dialer, PROTOCOL, ends);
    let version = PROTOCOL;
    Frame::Proof { version, mac }
}

#[test]
fn s18_a_right_proof_is_worth_nothing_on_another_connection_or_protocol() {
    let club = found();
    let member = Scripted::new();
    for (made_on, sent_on) in [
        (CTL_ALPN, CTL_ALPN),
        (BULK_ALPN, BULK_ALPN),
        (CTL_ALPN, BULK_ALPN),
        (BULK_ALPN, CTL_ALPN),
    ] {
        let first = member.connect(&club.a, made_on);
        let proof = proof_on(&first, &member, club.alder.id(), &club.key);
        let second = member.connect(&club.a, sent_on);
        assert_eq!(member.first_words(&second, &proof), MemberError::RefusedUs);
    }
    // The same frame is good where it was made.
    assert_eq!(member.tries(&club.a, &club.key, CTL_ALPN), Ok(()));
}

#[test]
fn s18_a_removed_member_is_refused_on_every_protocol_also_with_a_new_id_after_a_new_key() {
    let club = found();
    let (birch, b) = club.join("birch");
    let mallory = Scripted::new();
    let (conn, _channel) = mallory.join(&club.a, &club.key);
    let (at_birch, _other) = mallory.join(&b, &club.key);
    eventually("known", || {
        let known = |real: &Real| {
            real.spool()
                .group
                .members()
                .iter()
                .any(|m| m.id == mallory.id())
        };
        known(&club.alder) && known(&birch)
    });
    let bundle = club.alder.put("f", b"for all of them");
    let who = [mallory.id().to_string()];
    club.alder.spool().group.remove_members(&who, true).unwrap();

    // Its sessions end, with everybody.
    for conn in [&conn, &at_birch] {
        let closed = mallory.closed(conn);
        let why = super::super::member::closed_by_peer(&closed);
        assert_eq!(why, Some(MemberError::Removed));
    }
    for mesh in [&club.a, &b] {
        mallory.is_refused(mesh, &club.key, &MemberError::Removed);
        assert!(
            !mesh
                .peers()
                .iter()
                .any(|p| p.id == mallory.id().to_string())
        );
    }
    for real in [&club.alder, &birch] {
        assert!(
            !real
                .spool()
                .group
                .members()
                .iter()
                .any(|m| m.id == mallory.id())
        );
    }
    // Nothing is owed to it any more, and birch gets everything.
    let row = || {
        let rows = club.alder.spool().outbound(None, 10);
        rows.into_iter()
            .find(|r| r.bundle == bundle.to_string())
            .unwrap()
    };
    let state = |id: PeerId| {
        let of = row()
            .recipients
            .into_iter()
            .find(|r| r.id == id.to_string());
        of.map(|r| r.state)
    };
    eventually("delivered", || state(birch.id()) == Some(Stage::Delivered));
    assert_eq!(state(mallory.id()), Some(Stage::Cancelled));

    // Whoever still has the key comes in under a new id: that is what the new key is for.
    let again = Scripted::new();
    assert_eq!(again.tries(&club.a, &club.key, CTL_ALPN), Ok(()));
    club.alder.spool().group.rekey().unwrap();
    eventually("birch has the new key", || {
        birch.spool().group.keys()[0] == club.newest()
    });
    let fresh = Scripted::new();
    for mesh in [&club.a, &b] {
        // An old ticket is an old key.
        for id in [&again, &fresh] {
            id.is_refused(mesh, &club.key, &MemberError::RefusedUs);
        }
        // And its old id is no use with any key.
        mallory.is_refused(mesh, &club.key, &MemberError::Removed);
        mallory.is_refused(mesh, &club.newest(), &MemberError::Removed);
        mallory.is_refused(mesh, &GroupKey::generate(), &MemberError::RefusedUs);
    }
    // Those who remain are still connected, and go on.
    club.wait(&birch, &b);
    birch.put("g", b"from birch");
    eventually("arrived", || std::fs::read(club.alder.inbox("g")).is_ok());
}

/// Whatever connections it opened before, and although it knows the bundle and was a recipient.
#[test]
fn s18_nothing_is_served_to_a_removed_member_on_connections_it_has() {
    let club = found();
    let mallory = Scripted::new();
    let (_conn, _channel) = mallory.join(&club.a, &club.key);
    let bundle = club.alder.put("f", b"secret");
    let bulk: Vec<Connection> = (0..3)
        .map(|_| {
            let conn = mallory.connect(&club.a, BULK_ALPN);
            let proof = prove(&conn, &club.key, mallory.id(), Role::Dialer);
            mallory.runtime.block_on(proof).unwrap();
            conn
        })
        .collect();
    let (entry, offset, len) = (0, 0, 6);
    let request = super::super::wire::RangeRequest {
        bundle,
        entry,
        offset,
        len,
    };
    let answer = |conn: &Connection| {
        mallory.runtime.block_on(async {
            let (mut send, mut recv) = conn.open_bi().await.ok()?;
            send.write_all(&Frame::Range(request).to_bytes())
                .await
                .ok()?;
            recv.read_to_end(100).await.ok()
        })
    };
    // A peer has one bulk connection: the newest.
    let (newest, others) = bulk.split_last().unwrap();
    assert_eq!(answer(newest).as_deref(), Some(b"\0secret".as_slice()));
    for conn in others {
        assert_eq!(answer(conn), None);
    }
    let who = [mallory.id().to_string()];
    club.alder.spool().group.remove_members(&who, true).unwrap();
    let refused = [super::super::wire::RangeStatus::NotHeld as u8];
    for conn in &bulk {
        let answer = answer(conn);
        assert!(
            answer.as_deref().is_none_or(|said| said == refused),
            "{answer:?}"
        );
    }
}

#[test]
fn s18_what_a_removed_member_signed_is_refused_whoever_offers_it() {
    let club = found();
    let (mallory, friend) = (Identity::generate(), Scripted::new());
    let who = [mallory.id().to_string()];
    club.alder.spool().group.remove_members(&who, true).unwrap();
    let (_conn, mut channel) = friend.join(&club.a, &club.key);
    let manifest = manifest_of(mallory.id(), "f", b"x").sign(&mallory);
    let offer = Offer {
        age: 0,
        signed: manifest.signed().clone(),
        inline: vec![Some(Bytes::from_static(b"x"))],
    };
    let verdicts = friend.ask(&mut channel, &Frame::Offer(Box::new(offer)));
    assert!(
        matches!(&verdicts[..], [(_, Verdict::Refused(why))] if why.contains("removed")),
        "{verdicts:?}"
    );
}

#[test]
fn forged_removals_and_keys_change_nothing() {
    let club = found();
    let (birch, b) = club.join("birch");
    let mallory = Scripted::new();
    let (_conn, mut channel) = mallory.join(&club.a, &club.key);
    let removed = What::Removed {
        id: birch.id(),
        generation: 1,
    };
    let usurped = club.say(&mallory.identity, removed.clone());
    let mut forged = club.say(&mallory.identity, removed);
    let statement = Statement {
        group: club.charter.root,
        by: club.alder.id(),
        what: What::Removed {
            id: birch.id(),
            generation: 1,
        },
    };
    forged.bytes = statement.sign(&mallory.identity).bytes;
    let frame = Frame::Member(MemberFrame::Statements(vec![usurped, forged]));
    mallory.runtime.block_on(channel.send(&frame)).unwrap();
    mallory.ask(&mut channel, &Frame::Pending(vec![BundleId([5; 32])]));
    assert!(club.alder.spool().group.statements().is_empty());
    assert!(connected(&club.a, birch.id()) && connected(&b, club.alder.id()));
}

#[test]
fn an_older_key_gets_the_statement_with_the_new_one_and_nothing_else() {
    let club = found();
    let (birch, b) = club.join("birch");
    b.stop();
    let stranger = Scripted::new();
    club.alder.spool().group.rekey().unwrap();
    // Under birch's id, by hand.
    let away = Scripted::with(birch.identity());
    let conn = away.connect(&club.a, CTL_ALPN);
    let frame = away.runtime.block_on(async {
        let mut channel = prove(&conn, &club.key, away.id(), Role::Dialer)
            .await
            .unwrap();
        channel.decoder.set_limit(FRAME_MAX);
        channel.send(&away.hello()).await.unwrap();
        let frame = channel.heard().await;
        assert!(channel.frame().await.is_err(), "nothing follows");
        frame
    });
    let Frame::Member(MemberFrame::Statements(told)) = frame else {
        panic!("{frame:?}");
    };
    assert_eq!(told, [club.alder.spool().group.rekey_statement().unwrap()]);
    assert_eq!(
        away.tries(&club.a, &club.key, BULK_ALPN),
        Err(MemberError::RefusedUs)
    );
    stranger.is_refused(&club.a, &club.key, &MemberError::RefusedUs);
}

#[test]
fn a_member_that_was_away_follows_the_new_key_when_it_dials() {
    let club = found();
    let (birch, b) = club.join("birch");
    b.stop();
    eventually("gone", || !connected(&club.a, birch.id()));
    club.alder.spool().group.rekey().unwrap();
    club.alder.spool().group.rekey().unwrap();
    let _b = club.start("birch", &birch);
    assert_eq!(birch.spool().group.keys()[0], club.newest());
    assert_eq!(birch.spool().group.generation(), 3);
    club.alder.put("f", b"under the new key");
    eventually("arrived", || std::fs::read(birch.inbox("f")).is_ok());
}

#[test]
fn a_member_that_was_away_is_given_the_new_key_when_it_is_dialled() {
    let club = found();
    let (birch, b) = club.join("birch");
    b.stop();
    eventually("gone", || !connected(&club.a, birch.id()));
    club.alder.spool().group.rekey().unwrap();
    // It never hears where alder is: it only listens, where alder last knew it.
    let away = Scripted::with(birch.identity());
    let addr = endpoint::listen_addrs(&away.endpoint)[0];
    club.a.hub.known(birch.id()).configure(addr);
    let (tell, told) = std::sync::mpsc::channel();
    let (endpoint, key, id) = (away.endpoint.clone(), club.key.clone(), away.id());
    away.runtime.spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(conn) = incoming.await else { continue };
            if let Ok(mut channel) = prove(&conn, &key, id, Role::Acceptor).await {
                channel.decoder.set_limit(FRAME_MAX);
                drop(tell.send(channel.frame().await));
                return;
            }
        }
    });
    let frame = told.recv_timeout(PATIENCE).unwrap().unwrap();
    let statement = club.alder.spool().group.rekey_statement().unwrap();
    assert_eq!(
        frame,
        Frame::Member(MemberFrame::Statements(vec![statement]))
    );
}

#[test]
fn whom_the_new_key_leaves_out_must_prove_it() {
    let club = found();
    let (birch, b) = club.join("birch");
    let dora = Scripted::new();
    // The admin is away when dora comes, and changes the key before it hears of her.
    club.a.stop();
    let (conn, _channel) = dora.join(&b, &club.key);
    eventually("known", || {
        birch
            .spool()
            .group
            .members()
            .iter()
            .any(|m| m.id == dora.id())
    });
    club.alder.spool().group.rekey().unwrap();
    let told = club.alder.spool().group.statements();
    birch.spool().group.take_statements(told).unwrap();
    dora.closed(&conn);
    assert!(
        !birch
            .spool()
            .group
            .members()
            .iter()
            .any(|m| m.id == dora.id())
    );
    dora.is_refused(&b, &club.key, &MemberError::RefusedUs);
    let newest = club.alder.spool().group.keys().swap_remove(0);
    let (_conn, _channel) = dora.join(&b, &newest);
    eventually("back", || {
        birch
            .spool()
            .group
            .members()
            .iter()
            .any(|m| m.id == dora.id())
    });
}

#[test]
fn in_listed_mode_the_key_alone_is_not_enough() {
    let club = found();
    let (birch, _b) = club.join("birch");
    let listed = Scripted::new();
    let ids = [birch.id(), listed.id()].into();
    club.alder.spool().group.set_listed(Some(ids));
    let mallory = Scripted::new();
    mallory.is_refused(&club.a, &club.key, &MemberError::Unlisted);
    for alpn in [CTL_ALPN, BULK_ALPN] {
        assert_eq!(listed.tries(&club.a, &club.key, alpn), Ok(()));
    }
    // Nor is she a member because another one says so, nor by her own word that she was admitted.
    let told = vec![super::super::wire::Told {
        id: mallory.id(),
        name: name("mallory"),
        addrs: vec!["127.0.0.1:9".parse().unwrap()],
    }];
    club.a.hub.told(&told, birch.id());
    let own = What::Admitted {
        id: mallory.id(),
        generation: 1,
    };
    let own = club.say(&mallory.identity, own);
    club.alder.spool().group.take_statements(vec![own]).unwrap();
    mallory.is_refused(&club.a, &club.key, &MemberError::Unlisted);
    assert!(
        !club
            .alder
            .spool()
            .group
            .members()
            .iter()
            .any(|m| m.id == mallory.id())
    );
    // The admin's word is as good as the list.
    let admitted = What::Admitted {
        id: mallory.id(),
        generation: 1,
    };
    let admitted = club.say(&club.alder.identity(), admitted);
    club.alder
        .spool()
        .group
        .take_statements(vec![admitted])
        .unwrap();
    assert_eq!(mallory.tries(&club.a, &club.key, CTL_ALPN), Ok(()));
}

impl Club {
    fn invitation(&self, secret: JoinSecret) -> Invitation {
        Invitation {
            secret,
            group: self.charter.root,
            inviter: self.alder.id(),
            name: name("alder"),
            addrs: self.a.listen_addrs(),
        }
    }

    fn ask(&self, who: &Scripted, invitation: &Invitation) -> Result<GroupKey, Option<Denied>> {
        let asked = join::ask(&who.endpoint, who.id(), invitation);
        match who.runtime.block_on(asked) {
            Ok(Ok(welcome)) => Ok(welcome.key),
            Ok(Err(denied)) => Err(Some(denied)),
            Err(error) => {
                assert_eq!(error, MemberError::RefusedUs);
                Err(None)
            }
        }
    }
}

#[test]
fn a_ticket_for_one_admits_one() {
    let club = found();
    let once = club.alder.spool().group.invite(None, true).unwrap();
    let once = club.invitation(once);
    let (first, second) = (Scripted::new(), Scripted::new());
    assert_eq!(club.ask(&first, &once), Ok(club.key.clone()));
    assert_eq!(
        club.ask(&first, &once),
        Ok(club.key.clone()),
        "it may not have heard"
    );
    assert_eq!(club.ask(&second, &once), Err(Some(Denied::Used)));
    let admitted = club.alder.spool().group.statements();
    assert_eq!(admitted.len(), 1, "and that is on record");
    // Two at the same time: one of them.
    let contested = club.alder.spool().group.invite(None, true).unwrap();
    let contested = club.invitation(contested);
    let got = std::thread::scope(|scope| {
        let (club, contested) = (&club, &contested);
        let ask = |who| scope.spawn(move || club.ask(who, contested));
        let both = [ask(&first), ask(&second)];
        both.map(|one| one.join().unwrap())
    });
    assert_eq!(got.iter().filter(|one| one.is_ok()).count(), 1, "{got:?}");
    // Removed, she gets nothing for a ticket that would still be good.
    let many = club.alder.spool().group.invite(None, false).unwrap();
    let many = club.invitation(many);
    assert!(club.ask(&first, &many).is_ok() && club.ask(&second, &many).is_ok());
    let who = [first.id().to_string()];
    club.alder
        .spool()
        .group
        .remove_members(&who, false)
        .unwrap();
    assert_eq!(club.ask(&first, &many), Err(Some(Denied::Removed)));
    assert_eq!(
        club.ask(&second, &many),
        Ok(club.newest()),
        "the present key"
    );
}

#[test]
fn without_the_secret_a_ticket_buys_nothing() {
    let club = found();
    let secret = club.alder.spool().group.invite(None, false).unwrap();
    let stranger = Scripted::new();
    let made_up = club.invitation(JoinSecret::generate());
    assert_eq!(club.ask(&stranger, &made_up), Err(Some(Denied::Unknown)));
    // The name of a real one with a proof of another: as from another connection.
    for mac in [[0; 32], [7; 32]] {
        let name = secret.name();
        let conn = stranger.connect(&club.a, super::super::wire::JOIN_ALPN);
        let words = Frame::Member(MemberFrame::Redeem { name, mac });
        assert_eq!(stranger.first_words(&conn, &words), MemberError::RefusedUs);
    }
    // A proof of membership is none of an invitation, nor the other way round.
    let conn = stranger.connect(&club.a, super::super::wire::JOIN_ALPN);
    let words = proof_on(&conn, &stranger, club.alder.id(), &club.key);
    assert_eq!(stranger.first_words(&conn, &words), MemberError::RefusedUs);
    stranger.is_refused(&club.a, &secret.key().unwrap(), &MemberError::RefusedUs);
}

#[test]
fn redeeming_says_clearly_why_it_did_not_work() {
    let club = found();
    let secret = club.alder.spool().group.invite(None, true).unwrap();
    let invitation = club.invitation(secret);
    let listen = ["127.0.0.1:0".parse().unwrap()];
    let redeem = |id: &Identity| join::redeem(id, &listen, &invitation);
    let (first, second) = (Identity::generate(), Identity::generate());
    let ticket = redeem(&first).unwrap();
    assert_eq!(
        (ticket.group, ticket.charter),
        (club.key.clone(), Some(club.charter))
    );
    let error = redeem(&second).unwrap_err().to_string();
    assert!(error.contains("has been used already"), "{error}");
}
