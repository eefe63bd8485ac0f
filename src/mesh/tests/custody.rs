//! Three members over real spools and real connections: any of them away, any link cut.

use std::fs;

use super::super::offer;
use super::super::wire::{RangeRequest, RangeStatus};
use super::faults::{Real, alone};
use super::*;
use crate::bundle::{Manifest, Scope, Stage};
use crate::protocol::offers::Standing;

/// Three members that know each other, all connected.
struct Three {
    group: GroupKey,
    reals: [Real; 3],
    meshes: [Option<Mesh>; 3],
}

const NAMES: [&str; 3] = ["alder", "birch", "cedar"];
const ALDER: usize = 0;
const BIRCH: usize = 1;
const CEDAR: usize = 2;

impl Three {
    /// `cut`: these two never get a connection with each other.
    fn new(cut: Option<(usize, usize)>) -> Self {
        let mut three = Self {
            group: GroupKey::generate(),
            reals: [Real::new(), Real::new(), Real::new()],
            meshes: [None, None, None],
        };
        // The one that has both links first: the others learn of each other through it.
        let hub = match cut {
            Some(cut) => 3 - cut.0 - cut.1,
            None => ALDER,
        };
        three.start(hub);
        for n in (0..3).filter(|n| *n != hub) {
            three.join(n, hub);
            if let Some(cut) = cut {
                let other = three.id(3 - hub - n);
                assert!(hub == 3 - cut.0 - cut.1);
                three.mesh(n).hub.care.cut.lock().insert(other);
            }
        }
        for n in [ALDER, BIRCH, CEDAR] {
            eventually("all are known to all", || {
                three.reals[n].spool().group.members().len() == 2
            });
        }
        three
    }

    fn mesh(&self, n: usize) -> &Mesh {
        self.meshes[n].as_ref().unwrap()
    }

    fn id(&self, n: usize) -> PeerId {
        self.reals[n].id()
    }

    fn start(&mut self, n: usize) {
        self.meshes[n] = Some(self.reals[n].start(config(NAMES[n], &self.group)));
    }

    fn join(&mut self, n: usize, by: usize) {
        let ticket = Ticket {
            group: self.group.clone(),
            inviter: self.id(by),
            name: name(NAMES[by]),
            addrs: self.mesh(by).listen_addrs(),
            charter: None,
            generation: 0,
        };
        let invited = MeshConfig {
            ticket: Some(ticket),
            ..config(NAMES[n], &self.group)
        };
        self.meshes[n] = Some(self.reals[n].start(invited));
        self.wait_connected(n, by);
    }

    fn stop(&mut self, n: usize) {
        self.meshes[n].take().unwrap().stop();
        for other in (0..3).filter(|other| *other != n) {
            if let Some(mesh) = &self.meshes[other] {
                eventually("noticed", || !connected(mesh, self.id(n)));
            }
        }
    }

    fn wait_connected(&self, one: usize, other: usize) {
        eventually("connected", || {
            connected(self.mesh(one), self.id(other)) && connected(self.mesh(other), self.id(one))
        });
    }

    fn hurry(&self) {
        for real in &self.reals {
            real.spool().custodian.set_custody_delay(Duration::ZERO);
        }
    }

    fn wait_file(&self, n: usize, path: &str, content: &[u8]) {
        eventually(path, || {
            fs::read(self.reals[n].inbox(path)).is_ok_and(|found| found == content)
        });
    }

    fn states(&self, n: usize, bundle: BundleId) -> Vec<Stage> {
        let rows = self.reals[n].spool().outbound(None, 999);
        let row = rows
            .into_iter()
            .find(|row| row.bundle == bundle.to_string());
        let recipients = row.map(|row| row.recipients).unwrap_or_default();
        recipients.into_iter().map(|r| r.state).collect()
    }

    fn wait_delivered(&self, n: usize, bundle: BundleId, to: usize) {
        eventually("delivered", || {
            self.states(n, bundle) == vec!["delivered"; to]
        });
    }

    fn wait_not_pending(&self, n: usize, bundle: BundleId, to: usize) {
        eventually("settled", || {
            !self.reals[n].spool().ledger.is_pending(bundle, self.id(to))
        });
    }

    /// Nothing is left of custody anywhere.
    fn wait_nothing_left(&self) {
        for n in (0..3).filter(|n| self.meshes[*n].is_some()) {
            eventually("nothing is in custody", || {
                self.reals[n].spool().custodian.custody_rows() == 0
            });
        }
    }
}

#[test]
fn with_the_origin_away_another_holder_gives_it_and_the_origin_hears_of_it_later() {
    let mut three = Three::new(None);
    three.stop(CEDAR);
    let (small, large) = (b"small".to_vec(), pattern(5 << 20));
    let bundles = [
        three.reals[ALDER].put("small", &small),
        three.reals[ALDER].put("large", &large),
    ];
    three.wait_file(BIRCH, "small", &small);
    three.wait_file(BIRCH, "large", &large);
    three.stop(ALDER);
    three.join(CEDAR, BIRCH);
    three.wait_file(CEDAR, "small", &small);
    three.wait_file(CEDAR, "large", &large);
    for bundle in bundles {
        three.wait_not_pending(BIRCH, bundle, CEDAR);
    }
    three.stop(CEDAR);
    three.start(ALDER);
    for bundle in bundles {
        three.wait_delivered(ALDER, bundle, 2);
    }
    three.join(CEDAR, BIRCH);
    three.wait_nothing_left();
}

#[test]
fn a_member_that_joins_while_the_origin_is_away_gets_what_a_holder_shows() {
    let group = GroupKey::generate();
    let [alder, birch, cedar] = [Real::new(), Real::new(), Real::new()];
    let b = birch.start(config("birch", &group));
    let invited = |called| MeshConfig {
        peers: vec![(birch.id(), b.listen_addrs()[0])],
        ..config(called, &group)
    };
    let a = alder.start(invited("alder"));
    eventually("connected", || connected(&b, alder.id()));
    let bundle = alder.put("f", b"hello");
    let arrived = |real: &Real| fs::read(real.inbox("f")).is_ok_and(|found| found == b"hello");
    eventually("birch has it", || arrived(&birch));
    eventually("alder knows", || {
        !alder.spool().ledger.is_pending(bundle, birch.id())
    });
    a.stop();
    eventually("noticed", || !connected(&b, alder.id()));
    let _c = cedar.start(invited("cedar"));
    eventually("cedar has it", || arrived(&cedar));
    let _a = alder.start(invited("alder"));
    eventually("alder knows of both", || {
        let rows = alder.spool().outbound(None, 9);
        let recipients = &rows[0].recipients;
        recipients.len() == 2 && recipients.iter().all(|r| r.state == "delivered")
    });
}

#[test]
fn any_one_link_may_be_cut_and_everything_arrives_everywhere() {
    for cut in [(ALDER, BIRCH), (ALDER, CEDAR), (BIRCH, CEDAR)] {
        let three = Three::new(Some(cut));
        three.hurry();
        let mut bundles = Vec::new();
        for n in [ALDER, BIRCH, CEDAR] {
            for size in [10, 2 << 20] {
                let path = format!("{}.{size}", NAMES[n]);
                bundles.push((
                    n,
                    path.clone(),
                    size,
                    three.reals[n].put(&path, &pattern(size)),
                ));
            }
        }
        for (origin, path, size, _) in &bundles {
            for n in [ALDER, BIRCH, CEDAR] {
                if n != *origin {
                    three.wait_file(n, path, &pattern(*size));
                }
            }
        }
        for (origin, _, _, bundle) in bundles {
            three.wait_delivered(origin, bundle, 2);
        }
        assert!(!connected(three.mesh(cut.0), three.id(cut.1)), "{cut:?}");
        three.wait_nothing_left();
    }
}

#[test]
fn when_all_are_there_nobody_but_the_origin_sends_anything() {
    let three = Three::new(None);
    three.wait_connected(BIRCH, CEDAR);
    let mut bundles = Vec::new();
    for n in 0..50 {
        bundles.push(three.reals[ALDER].put(&format!("f{n}"), &pattern(1000)));
    }
    for bundle in bundles {
        three.wait_delivered(ALDER, bundle, 2);
    }
    three.wait_nothing_left();
    for n in [BIRCH, CEDAR] {
        assert_eq!(three.reals[n].spool().counts().bytes_sent, 0);
    }
}

#[test]
fn with_two_holders_the_bytes_go_over_the_wire_once() {
    let mut three = Three::new(None);
    three.hurry();
    three.stop(CEDAR);
    let bundles: Vec<BundleId> = (0..50)
        .map(|n| three.reals[ALDER].put(&format!("f{n}"), &pattern(1000)))
        .collect();
    for bundle in &bundles {
        eventually("birch carries it", || {
            three.reals[BIRCH]
                .spool()
                .ledger
                .is_pending(*bundle, three.id(CEDAR))
        });
    }
    let sent = || {
        let sent = |n: usize| three.reals[n].spool().counts().bytes_sent;
        sent(ALDER) + sent(BIRCH)
    };
    let before = sent();
    let addrs = [ALDER, BIRCH].map(|n| (three.id(n), three.mesh(n).listen_addrs()[0]));
    let both = MeshConfig {
        peers: addrs.to_vec(),
        ..config("cedar", &three.group)
    };
    let _c = three.reals[CEDAR].start(both);
    for bundle in bundles {
        three.wait_delivered(ALDER, bundle, 2);
    }
    // Both dial, so one connection may take the place of another, and what was on its way then is sent again. All of it
    // twice would be 100,000.
    let sent = sent() - before;
    assert!((50 * 1000..75 * 1000).contains(&sent), "{sent} bytes");
}

#[test]
fn what_is_being_taken_or_is_published_is_known_to_be() {
    let (_, alder, a) = alone();
    let (birch, cedar) = (Scripted::new(), Scripted::new());
    let manifest = birch.sign("f", b"hello");
    let bundle = manifest.id();
    let standing = || offer::standing(&a.hub, bundle, cedar.id());
    let taking = a.hub.care.taking(bundle);
    assert_eq!(standing(), Standing::Taking);
    drop(taking);
    assert_eq!(standing(), Standing::Unknown);
    let offered = alder.spool().offered(manifest, birch.id()).unwrap();
    let crate::spool::Offered::Wanted(mut incoming) = offered else {
        panic!("not wanted")
    };
    incoming.accept_chunk(0, 0, b"hello").unwrap();
    incoming.finish().unwrap().publish().unwrap();
    // Durable or not yet.
    let here = standing();
    assert!(matches!(here, Standing::Published | Standing::Settled(_)));
}

#[test]
fn s05_who_has_it_already_says_so_to_every_holder() {
    let mut three = Three::new(None);
    three.stop(CEDAR);
    let bundle = three.reals[ALDER].put("f", b"hello");
    three.wait_file(BIRCH, "f", b"hello");
    three.wait_not_pending(ALDER, bundle, BIRCH);
    three.stop(BIRCH);
    // From its origin first, so that the other holder finds it there.
    three.join(CEDAR, ALDER);
    three.wait_delivered(ALDER, bundle, 2);
    three.stop(ALDER);
    three.join(BIRCH, CEDAR);
    eventually("birch owes it no more", || {
        !three.reals[BIRCH]
            .spool()
            .ledger
            .is_pending(bundle, three.id(CEDAR))
    });
    three.start(ALDER);
    three.wait_connected(ALDER, BIRCH);
    three.wait_connected(ALDER, CEDAR);
    three.wait_nothing_left();
}

#[test]
fn s02_a_member_that_is_away_for_long_delays_nobody_and_gets_everything_in_the_end() {
    let mut three = Three::new(None);
    three.stop(CEDAR);
    let mut bundles = Vec::new();
    for round in 0..3 {
        for n in 0..10 {
            let path = format!("f{round}.{n}");
            bundles.push(three.reals[ALDER].put(&path, path.as_bytes()));
        }
        for n in 0..10 {
            let path = format!("f{round}.{n}");
            three.wait_file(BIRCH, &path, path.as_bytes());
        }
        // Both ends start again in between.
        for n in [ALDER, BIRCH] {
            three.stop(n);
            three.reals[n].reopen(|_| {});
        }
        three.start(ALDER);
        three.join(BIRCH, ALDER);
    }
    three.reals[CEDAR].reopen(|_| {});
    three.join(CEDAR, BIRCH);
    for bundle in bundles {
        three.wait_delivered(ALDER, bundle, 2);
    }
    three.wait_nothing_left();
}

#[test]
fn s03_what_was_sealed_while_alone_and_removed_reaches_the_first_member() {
    let (group, alder, a) = alone();
    let content = pattern(2 << 20);
    let bundle = alder.put("f", &content);
    alder.remove("f");
    assert!(alder.spool().content.held_bytes() > 0);
    let birch = Real::new();
    let invited = MeshConfig {
        peers: vec![(alder.id(), a.listen_addrs()[0])],
        ..config("birch", &group)
    };
    let _b = birch.start(invited);
    eventually("it arrives", || {
        fs::read(birch.inbox("f")).is_ok_and(|found| found == content)
    });
    eventually("delivered", || {
        !alder.spool().ledger.is_pending(bundle, birch.id())
    });
    eventually("freed", || alder.spool().content.held_bytes() == 0);
}

#[test]
fn s17_a_peer_that_is_down_at_start_is_dialled_until_it_is_there() {
    let (group, alder, a) = alone();
    let at = a.listen_addrs()[0];
    a.stop();
    let birch = Real::new();
    let b = birch.start(MeshConfig {
        peers: vec![(alder.id(), at)],
        ..config("birch", &group)
    });
    eventually("it was tried", || error_of(&b, alder.id()).is_some());
    birch.put("f", b"hello");
    let _a = alder.start(MeshConfig {
        listen: vec![at],
        ..config("alder", &group)
    });
    eventually("it arrives", || {
        fs::read(alder.inbox("f")).is_ok_and(|found| found == b"hello")
    });
}

impl Scripted {
    /// Waits until it is told that it is owed this.
    fn hear_pending(&self, channel: &mut Channel, bundle: BundleId) {
        loop {
            if let Frame::Pending(ids) = self.hear(channel)
                && ids.contains(&bundle)
            {
                return;
            }
        }
    }

    /// Asks for the first bytes of a bundle; gives the status byte.
    fn first_bytes(&self, of: &Mesh, group: &GroupKey, bundle: BundleId) -> u8 {
        let conn = self.connect(of, BULK_ALPN);
        self.runtime.block_on(async {
            prove(&conn, group, self.id(), Role::Dialer).await.unwrap();
            let (mut send, mut recv) = conn.open_bi().await.unwrap();
            let request = RangeRequest {
                bundle,
                entry: 0,
                offset: 0,
                len: 10,
            };
            send.write_all(&Frame::Range(request).to_bytes())
                .await
                .unwrap();
            send.finish().unwrap();
            recv.read_to_end(100).await.unwrap()[0]
        })
    }

    /// Everything but the members' list that is said until what was said before is dealt with.
    fn heard_until_settled(&self, channel: &mut Channel) -> Vec<Frame> {
        let last = BundleId([5; 32]);
        self.say(channel, &Frame::Pending(vec![last]));
        let mut heard = Vec::new();
        loop {
            match self.hear(channel) {
                Frame::Verdicts(list) if list.iter().any(|(bundle, _)| *bundle == last) => {
                    return heard;
                }
                Frame::Members(_) => {}
                other => heard.push(other),
            }
        }
    }
}

/// A member that is no recipient knows the id and the digest of a bundle that a recipient carries.
#[test]
fn who_is_no_recipient_gets_nothing_of_a_bundle_that_is_carried() {
    let (group, birch, b) = alone();
    let (origin, cedar, dogwood) = (Scripted::new(), Scripted::new(), Scripted::new());
    let content = pattern(200_000);
    let manifest = Manifest {
        scope: Scope::Ids(vec![birch.id(), cedar.id()]),
        ..origin.sign("f", &content).manifest().clone()
    }
    .sign(&origin.identity);
    let (conn, mut channel) = origin.join(&b, &group);
    let served = content.clone();
    let bulk = origin.serve(&b, &group, move |request| {
        super::faults::range_of(&served, request)
    });
    assert_eq!(
        origin.offer(&mut channel, manifest.signed()),
        Verdict::Taken
    );
    eventually("settled", || {
        birch
            .spool()
            .ledger
            .receipt_for(manifest.id(), origin.id())
            .is_some()
    });
    for conn in [conn, bulk] {
        conn.close(0u32.into(), b"away");
    }
    let (_conn, mut others) = dogwood.join(&b, &group);
    let (_conn2, mut theirs) = cedar.join(&b, &group);
    eventually("carried", || {
        birch.spool().ledger.is_pending(manifest.id(), cedar.id())
    });
    // To a recipient it is announced …
    cedar.hear_pending(&mut theirs, manifest.id());
    assert_eq!(
        cedar.first_bytes(&b, &group, manifest.id()),
        RangeStatus::Ok as u8
    );
    // … and to another member it is as if it did not exist, whatever that one asks.
    let verdicts = dogwood.ask(&mut others, &Frame::Pending(vec![manifest.id()]));
    assert_eq!(verdicts, [(manifest.id(), Verdict::Want)], "as for any id");
    let not_held = RangeStatus::NotHeld as u8;
    assert_eq!(dogwood.first_bytes(&b, &group, manifest.id()), not_held);
    dogwood.say(&mut others, &Frame::Closed(vec![manifest.id()]));
    dogwood.say(&mut others, &Frame::Open(vec![manifest.id()]));
    let heard = dogwood.heard_until_settled(&mut others);
    let unknown = Frame::Unknown(vec![manifest.id()]);
    assert_eq!(
        heard,
        [unknown],
        "as for any id: neither offers, nor questions, nor receipts"
    );
    assert!(
        birch.spool().ledger.is_pending(manifest.id(), cedar.id()),
        "only its origin may close it"
    );
}
