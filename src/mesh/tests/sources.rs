//! Fetching from many sources on the real wire: who is asked, who is told, what is given to whom, and what a cut costs.

use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;

use super::super::wire::{Have, RangeRequest, RangeStatus};
use super::faults::Real;
use super::*;
use crate::bundle::{Scope, VerifiedManifest};
use crate::digest::LEAF;

const MIB: usize = LEAF as usize;

/// Chunks that one source is asked for at once, at most: what a cut can cost.
const OPEN_MAX: u64 = 8;

/// Chunks asked for and not yet checked, of all sources: what one that lies can be asked for before it is found out.
const FLIGHT_MAX: usize = 12;

/// What a scripted holder does with a request.
pub(super) enum Reply {
    Bytes(Vec<u8>),
    /// Nothing, for ever.
    Silence,
    /// A byte now and then, for ever.
    Drip,
    /// Some bytes, then the end of the connection.
    Cut(Vec<u8>),
}

fn good(content: &[u8], request: RangeRequest) -> Vec<u8> {
    let from = request.offset as usize;
    let mut answer = vec![RangeStatus::Ok as u8];
    answer.extend_from_slice(&content[from..from + request.len as usize]);
    answer
}

impl Scripted {
    /// A bulk connection on which every request gets its reply, at once and beside the others.
    pub(super) fn hold(
        &self,
        to: &impl Reached,
        group: &GroupKey,
        reply: impl Fn(RangeRequest) -> Reply + Send + Sync + 'static,
    ) -> Connection {
        let conn = self.bulk(to, group);
        let (serving, reply) = (conn.clone(), Arc::new(reply));
        self.runtime.spawn(async move {
            while let Ok((send, recv)) = serving.accept_bi().await {
                let (reply, serving) = (reply.clone(), serving.clone());
                tokio::spawn(async move {
                    let decoder = Decoder::new(100);
                    let mut channel = Channel {
                        send,
                        recv,
                        decoder,
                    };
                    let Ok(Frame::Range(request)) = channel.frame().await else {
                        return;
                    };
                    match tokio::task::block_in_place(|| reply(request)) {
                        Reply::Bytes(bytes) => {
                            if channel.send.write_all(&bytes).await.is_ok() {
                                channel.send.finish().unwrap();
                            }
                        }
                        Reply::Silence => std::future::pending().await,
                        Reply::Drip => {
                            while channel.send.write_all(&[0]).await.is_ok() {
                                tokio::time::sleep(Duration::from_millis(300)).await;
                            }
                        }
                        Reply::Cut(bytes) => {
                            channel.send.write_all(&bytes).await.ok();
                            serving.close(99u32.into(), b"cut by a test");
                        }
                    }
                });
            }
        });
        conn
    }

    pub(super) fn offers(&self, channel: &mut Channel, manifest: &VerifiedManifest) {
        let offer = Offer {
            age: 0,
            signed: manifest.signed().clone(),
            inline: vec![],
        };
        self.say(channel, &Frame::Offer(Box::new(offer)));
    }

    /// What becomes of an offer, in the end.
    pub(super) fn verdict(&self, channel: &mut Channel, bundle: BundleId) -> Verdict {
        loop {
            if let Frame::Verdicts(list) = self.runtime.block_on(channel.heard()) {
                let ends = |(about, verdict): &(BundleId, Verdict)| {
                    *about == bundle && *verdict != Verdict::Working
                };
                if let Some((_, verdict)) = list.into_iter().find(ends) {
                    return verdict;
                }
            }
        }
    }

    /// The next thing said of what another one has.
    fn hear_have(&self, channel: &mut Channel) -> Have {
        let heard = async {
            loop {
                if let Frame::Have(have) = channel.heard().await {
                    return have;
                }
            }
        };
        let heard = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, heard).await });
        heard.expect("a word on what is here")
    }

    /// Everything that is said until an answer to a question shows that the peer has dealt with all before.
    fn hear_all(&self, channel: &mut Channel) -> Vec<Frame> {
        let probe = BundleId([5; 32]);
        self.say(channel, &Frame::Pending(vec![probe]));
        let mut heard = Vec::new();
        loop {
            let frame = self.runtime.block_on(channel.heard());
            let answered =
                matches!(&frame, Frame::Verdicts(list) if list.iter().any(|v| v.0 == probe));
            if answered {
                return heard;
            }
            heard.push(frame);
        }
    }

    fn range(&self, bulk: &Connection, request: RangeRequest) -> Vec<u8> {
        self.runtime.block_on(async {
            let (send, recv) = bulk.open_bi().await.unwrap();
            let decoder = Decoder::new(100);
            let mut channel = Channel {
                send,
                recv,
                decoder,
            };
            channel.send(&Frame::Range(request)).await.unwrap();
            channel.send.finish().unwrap();
            channel.recv.read_to_end(5 * MIB).await.unwrap()
        })
    }
}

fn counts(node: &Real) -> (u64, u64) {
    let counts = node.spool().counts();
    (counts.bytes_received, counts.bytes_twice)
}

/// Every byte of it was kept once; gives what came in vain. What was cut off is counted a moment later.
fn kept(node: &Real, content: &[u8]) -> u64 {
    eventually("all is counted", || {
        let (received, twice) = counts(node);
        received - twice == content.len() as u64
    });
    counts(node).1
}

fn arrived(node: &Real, path: &str, content: &[u8]) {
    eventually("visible", || node.inbox(path).exists());
    assert!(std::fs::read(node.inbox(path)).unwrap() == content);
}

#[test]
fn a_receiver_fetches_from_several_holders_at_once() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(12 * MIB);
    let origin = Scripted::new();
    let manifest = manifest_of(origin.id(), "f", &content).sign(&origin.identity);
    let second = Scripted::new();
    // Neither says anything before both were asked: who waits for one of them first waits for ever.
    let both = Arc::new(std::sync::Barrier::new(2));
    let mut open = Vec::new();
    for holder in [&origin, &second] {
        let (conn, mut channel) = holder.join(&mesh, &group);
        let (content, both) = (content.clone(), both.clone());
        let first = Mutex::new(true);
        let bulk = holder.hold(&mesh, &group, move |request| {
            if std::mem::take(&mut *first.lock()) {
                both.wait();
            }
            Reply::Bytes(good(&content, request))
        });
        holder.offers(&mut channel, &manifest);
        open.push((conn, channel, bulk));
    }
    arrived(&node, "f", &content);
    kept(&node, &content);
}

#[test]
fn a_stalled_source_is_not_waited_for_while_another_is_free() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(10 * MIB);
    let (stalled, free) = (Scripted::new(), Scripted::new());
    let manifest = manifest_of(stalled.id(), "f", &content).sign(&stalled.identity);
    let (_c1, mut first) = stalled.join(&mesh, &group);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let _b1 = stalled.hold(&mesh, &group, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Reply::Silence
    });
    stalled.offers(&mut first, &manifest);
    eventually("asked", || asked.load(Ordering::Relaxed) > 0);
    let (_c2, mut second) = free.join(&mesh, &group);
    let served = content.clone();
    let _b2 = free.hold(&mesh, &group, move |request| {
        Reply::Bytes(good(&served, request))
    });
    free.offers(&mut second, &manifest);
    arrived(&node, "f", &content);
    assert!(asked.load(Ordering::Relaxed) <= 6, "it is left alone");
    assert_eq!(counts(&node).1, 0);
}

#[test]
fn a_source_of_wrong_bytes_is_dropped_and_reported_and_the_rest_comes_from_others() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(24 * MIB);
    let (liar, honest) = (Scripted::new(), Scripted::new());
    let manifest = manifest_of(honest.id(), "f", &content).sign(&honest.identity);
    let mut open = Vec::new();
    let lies = Arc::new(AtomicUsize::new(0));
    for (holder, lying) in [(&liar, true), (&honest, false)] {
        let (conn, mut channel) = holder.join(&mesh, &group);
        let (content, lies) = (content.clone(), lies.clone());
        let bulk = holder.hold(&mesh, &group, move |request| {
            let mut bytes = good(&content, request);
            if lying {
                lies.fetch_add(1, Ordering::Relaxed);
                bytes[7] ^= 1;
            } else {
                // Not before the liar was asked.
                eventually("a lie", || lies.load(Ordering::Relaxed) > 0);
            }
            Reply::Bytes(bytes)
        });
        holder.offers(&mut channel, &manifest);
        open.push((conn, channel, bulk));
    }
    arrived(&node, "f", &content);
    assert!(lies.load(Ordering::Relaxed) <= FLIGHT_MAX);
    let blamed = mesh.hub.blames.active(manifest.id(), liar.id());
    assert!(blamed.is_none_or(|why| why.contains("sent wrong bytes")));
    let twice = kept(&node, &content);
    assert!(twice >= LEAF, "what was wrong is counted");
}

/// So many chunks, each of them after two that are zeros, and zeros at the end.
fn holey(chunks: usize) -> Vec<u8> {
    let mut content = vec![0; (3 * chunks + 5) * MIB];
    for chunk in 0..chunks {
        content[(3 * chunk + 2) * MIB..][..MIB].copy_from_slice(&pattern(MIB + 1)[1..]);
    }
    content
}

#[test]
fn receivers_help_each_other_when_the_origin_gives_every_chunk_once() {
    help_each_other(&pattern(16 * MIB), 16);
}

#[test]
fn receivers_of_a_file_with_holes_help_each_other_with_what_travels() {
    help_each_other(&holey(16), 16);
}

fn help_each_other(content: &[u8], chunks: usize) {
    let group = GroupKey::generate();
    let (birch, cedar) = (Real::new(), Real::new());
    let b = birch.start(config("birch", &group));
    let ticket = Ticket {
        group: group.clone(),
        inviter: birch.id(),
        name: name("birch"),
        addrs: b.listen_addrs(),
        charter: None,
        generation: 0,
    };
    let c = cedar.start(MeshConfig {
        ticket: Some(ticket),
        ..config("cedar", &group)
    });
    eventually("connected", || {
        connected(&b, cedar.id()) && connected(&c, birch.id())
    });
    let origin = Scripted::new();
    let manifest = manifest_of(origin.id(), "f", content).sign(&origin.identity);
    let given = Arc::new(Mutex::new(HashSet::new()));
    let mut open = Vec::new();
    for mesh in [&b, &c] {
        let (conn, mut channel) = origin.join(mesh, &group);
        let (content, given) = (content.to_vec(), given.clone());
        let bulk = origin.hold(mesh, &group, move |request| {
            if given.lock().insert(request.offset) {
                Reply::Bytes(good(&content, request))
            } else {
                Reply::Silence
            }
        });
        origin.offers(&mut channel, &manifest);
        open.push((conn, channel, bulk));
    }
    arrived(&birch, "f", content);
    arrived(&cedar, "f", content);
    let sent = |node: &Real| node.spool().counts().bytes_sent;
    assert!(sent(&birch) + sent(&cedar) >= (chunks * MIB) as u64);
    assert_eq!(given.lock().len(), chunks);
}

#[test]
fn a_bundle_whose_origin_left_is_completed_from_what_the_others_have() {
    completed_from_others(&pattern(8 * MIB), |chunk| chunk);
}

#[test]
fn what_others_tell_of_a_file_with_holes_leaves_the_holes_out() {
    completed_from_others(&holey(8), |chunk| {
        assert_eq!(chunk % 3, 2, "no zeros are asked for");
        chunk / 3
    });
}

/// `number`: of the chunk at so many MiB among those that travel.
fn completed_from_others(content: &[u8], number: fn(u64) -> u64) {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let origin = Scripted::new();
    let manifest = manifest_of(origin.id(), "f", content).sign(&origin.identity);
    let mut open = Vec::new();
    for half in 0..2u8 {
        let peer = Scripted::new();
        let (conn, channel) = peer.join(&mesh, &group);
        let content = content.to_vec();
        let bulk = peer.hold(&mesh, &group, move |request| {
            let index = number(request.offset / LEAF);
            assert_eq!(index / 4, u64::from(half), "asked for what it has only");
            Reply::Bytes(good(&content, request))
        });
        open.push((peer, conn, channel, bulk, half));
    }
    let (_conn, mut channel) = origin.join(&mesh, &group);
    let bulk = origin.hold(&mesh, &group, |_| Reply::Silence);
    origin.offers(&mut channel, &manifest);
    for (peer, _, channel, _, half) in &mut open {
        // It is fetched by now, since others are told of it.
        assert_eq!(peer.hear_have(channel).bundle, manifest.id());
        let bits = if *half == 0 { 0x0f } else { 0xf0 };
        let have = Have {
            bundle: manifest.id(),
            whole: false,
            entries: vec![(0, vec![bits])],
        };
        peer.say(channel, &Frame::Have(have));
    }
    drop(bulk);
    arrived(&node, "f", content);
}

#[test]
fn what_arrived_is_told_and_given_to_recipients_only() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(6 * MIB);
    let (origin, friend, outsider) = (Scripted::new(), Scripted::new(), Scripted::new());
    let mut says = manifest_of(origin.id(), "f", &content);
    says.scope = Scope::Ids(vec![node.id(), friend.id()]);
    let manifest = says.sign(&origin.identity);
    let (_c1, mut hears) = friend.join(&mesh, &group);
    let (_c2, mut spies) = outsider.join(&mesh, &group);
    let b1 = friend.hold(&mesh, &group, |_| Reply::Silence);
    let b2 = outsider.hold(&mesh, &group, |_| Reply::Silence);
    let (_c3, mut channel) = origin.join(&mesh, &group);
    let served = content.clone();
    let b3 = origin.hold(&mesh, &group, move |request| {
        // The last two are never given, so that it stays on its way.
        if request.offset < 4 * LEAF {
            Reply::Bytes(good(&served, request))
        } else {
            Reply::Silence
        }
    });
    origin.offers(&mut channel, &manifest);
    loop {
        let have = friend.hear_have(&mut hears);
        assert_eq!((have.bundle, have.whole), (manifest.id(), false));
        assert!(have.entries.iter().all(|(entry, _)| *entry == 0));
        if have.entries[0].1 == [0x0f] {
            break;
        }
    }
    let request = |chunk: u64, chunks: u64| RangeRequest {
        bundle: manifest.id(),
        entry: 0,
        offset: chunk * LEAF,
        len: chunks * LEAF,
    };
    let refused = [RangeStatus::NotHeld as u8];
    let all = good(&content, request(0, 4));
    assert!(friend.range(&b1, request(0, 4)) == all);
    for (chunk, chunks) in [(3, 2), (4, 1), (6, 1), (u64::MAX / LEAF, 1)] {
        assert_eq!(
            friend.range(&b1, request(chunk, chunks)),
            refused,
            "{chunk}"
        );
    }
    // What the outsider says changes nothing, and it learns nothing, though it knows the bundle's id.
    for chunk in 0..6 {
        assert_eq!(outsider.range(&b2, request(chunk, 1)), refused);
    }
    let boast = Have {
        bundle: manifest.id(),
        whole: true,
        entries: vec![],
    };
    outsider.say(&mut spies, &Frame::Have(boast.clone()));
    origin.say(&mut channel, &Frame::Have(boast));
    outsider.say(&mut spies, &Frame::Gone(vec![manifest.id()]));
    let told = |frames: Vec<Frame>| {
        let about = |frame: &Frame| matches!(frame, Frame::Have(_) | Frame::Gone(_));
        frames.iter().any(about)
    };
    assert!(!told(outsider.hear_all(&mut spies)));
    assert!(!told(origin.hear_all(&mut channel)), "the origin has it");
    assert_eq!(origin.range(&b3, request(0, 1)), refused);
}

#[test]
fn what_arrived_is_told_and_given_to_nobody_from_the_end_of_its_lifetime_on() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(6 * MIB);
    let (origin, friend) = (Scripted::new(), Scripted::new());
    let (_c1, mut hears) = friend.join(&mesh, &group);
    let b1 = friend.hold(&mesh, &group, |_| Reply::Silence);
    let (_c2, mut channel) = origin.join(&mesh, &group);
    let served = content.clone();
    let _b2 = origin.hold(&mesh, &group, move |request| {
        // The last two are never given, so that it stays on its way.
        if request.offset < 4 * LEAF {
            Reply::Bytes(good(&served, request))
        } else {
            Reply::Silence
        }
    });
    let [over, young] = ["over", "young"].map(|path| {
        let manifest = manifest_of(origin.id(), path, &content).sign(&origin.identity);
        let lifetime = manifest.manifest().lifetime_secs * 1000;
        let offer = Offer {
            age: if path == "over" { lifetime } else { 0 },
            signed: manifest.signed().clone(),
            inline: vec![],
        };
        origin.say(&mut channel, &Frame::Offer(Box::new(offer)));
        manifest.id()
    });
    eventually("four chunks of each", || counts(&node).0 >= 8 * LEAF);
    // By then the other one would have been told too: it began before.
    loop {
        let have = friend.hear_have(&mut hears);
        assert_eq!(have.bundle, young);
        if have.entries[0].1 == [0x0f] {
            break;
        }
    }
    let request = |bundle| RangeRequest {
        bundle,
        entry: 0,
        offset: 0,
        len: LEAF,
    };
    assert!(friend.range(&b1, request(young)) == good(&content, request(young)));
    assert_eq!(
        friend.range(&b1, request(over)),
        [RangeStatus::NotHeld as u8]
    );
}

#[test]
fn whole_bundles_are_given_to_those_that_fetch_them_still() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(5 * MIB);
    let (origin, late, outsider) = (Scripted::new(), Scripted::new(), Scripted::new());
    let mut says = manifest_of(origin.id(), "f", &content);
    says.scope = Scope::Ids(vec![node.id(), late.id()]);
    let manifest = says.sign(&origin.identity);
    let (_c1, mut channel) = origin.join(&mesh, &group);
    let served = content.clone();
    let _b1 = origin.hold(&mesh, &group, move |request| {
        Reply::Bytes(good(&served, request))
    });
    origin.offers(&mut channel, &manifest);
    arrived(&node, "f", &content);
    let request = RangeRequest {
        bundle: manifest.id(),
        entry: 0,
        offset: 0,
        len: LEAF,
    };
    for (peer, gets) in [(&late, true), (&outsider, false)] {
        let (_conn, mut channel) = peer.join(&mesh, &group);
        let bulk = peer.hold(&mesh, &group, |_| Reply::Silence);
        let begins = Have {
            bundle: manifest.id(),
            whole: false,
            entries: vec![],
        };
        peer.say(&mut channel, &Frame::Have(begins));
        if gets {
            assert!(peer.hear_have(&mut channel).whole);
            assert!(peer.range(&bulk, request) == good(&content, request));
        } else {
            let heard = peer.hear_all(&mut channel);
            assert!(!heard.iter().any(|f| matches!(f, Frame::Have(_))));
            assert_eq!(peer.range(&bulk, request), [RangeStatus::NotHeld as u8]);
        }
    }
}

#[test]
fn cuts_at_random_points_cost_at_most_one_chunk_for_each_open_range() {
    let seed = u64::from_le_bytes(crate::peer::random());
    println!("seed {seed}");
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(24 * MIB);
    let origin = Scripted::new();
    let manifest = manifest_of(origin.id(), "f", &content).sign(&origin.identity);
    let cuts = 5;
    for round in 0..=cuts {
        let (conn, mut channel) = origin.join(&mesh, &group);
        let left = AtomicUsize::new((seed >> (8 * round)) as usize % 5);
        let (served, last) = (content.clone(), round == cuts);
        let bulk = origin.hold(&mesh, &group, move |request| {
            let bytes = good(&served, request);
            let none_left = left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_err();
            if none_left && !last {
                let cut = (seed >> 3) as usize % bytes.len();
                Reply::Cut(bytes[..cut].to_vec())
            } else {
                Reply::Bytes(bytes)
            }
        });
        origin.offers(&mut channel, &manifest);
        if last {
            arrived(&node, "f", &content);
        } else {
            origin.closed(&bulk);
            conn.close(99u32.into(), b"cut by a test");
            eventually("parked", || !mesh.hub.fetches.is_running(manifest.id()));
            eventually("gone", || !connected(&mesh, origin.id()));
        }
    }
    let twice = kept(&node, &content);
    assert!(twice <= cuts * OPEN_MAX * LEAF, "{twice} bytes twice");
}

#[test]
fn s11_a_file_whose_only_holder_failed_again_and_again_is_shown_and_arrives_in_the_end() {
    let (group, node) = (GroupKey::generate(), Real::new());
    let mesh = node.start(config("alder", &group));
    let content = pattern(6 * MIB);
    let origin = Scripted::new();
    let manifest = manifest_of(origin.id(), "f", &content).sign(&origin.identity);
    let (_conn, mut channel) = origin.join(&mesh, &group);
    for attempt in 0..4 {
        origin.offers(&mut channel, &manifest);
        for _ in 0..3 {
            // Cut at the first request.
            let bulk = origin.hold(&mesh, &group, |_| Reply::Cut(vec![]));
            origin.closed(&bulk);
        }
        let verdict = origin.verdict(&mut channel, manifest.id());
        assert!(
            matches!(&verdict, Verdict::Deferred(why) if why.contains("interrupted")),
            "attempt {attempt}: {verdict:?}"
        );
        let rows = node.spool().inbound(None, 1);
        assert_eq!(rows[0].state, "deferred");
        assert!(rows[0].error.is_some());
    }
    let served = content.clone();
    let _bulk = origin.hold(&mesh, &group, move |request| {
        Reply::Bytes(good(&served, request))
    });
    origin.offers(&mut channel, &manifest);
    arrived(&node, "f", &content);
}
