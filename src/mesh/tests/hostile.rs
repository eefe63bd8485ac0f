//! A member that breaks every rule of the wire it can, between two that keep them: it loses its own connection, and the
//! two others notice nothing.

use super::super::wire::{HELLO_MAX, MemberFrame, RangeRequest, longest};
use super::faults::Real;
use super::membership::{Club, found};
use super::*;
use crate::bundle::{
    Cancel, CancelReason, Entry, EntryKind, MANIFEST_MAX, RelPath, SCOPE_MAX, Scope, SignedManifest,
};
use crate::peer::roll::{SignedStatement, What};

/// What ends in the connection of who sent it; by name, as bytes.
struct Wrong(&'static str, Vec<u8>);

/// A frame of that kind and length, with zeros in it.
fn raw(kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = (len as u32).to_be_bytes().to_vec();
    bytes.push(kind);
    bytes.resize(4 + len, 0);
    bytes
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.to_bytes().to_vec()
}

const OFFER: u8 = 5;
const STATEMENTS: u8 = 24;

/// A signed manifest of `mallory` with these bytes.
fn signed(mallory: &Scripted, bytes: Vec<u8>) -> SignedManifest {
    let id = crate::digest::Digest::of(&bytes);
    let signature = mallory.identity.sign(b"meshbox manifest 1\0", &id.0);
    SignedManifest { bytes, signature }
}

fn wrongs(mallory: &Scripted) -> Vec<Wrong> {
    let ids = vec![BundleId([1; 32]); 257];
    let cancel = Cancel::sign(
        &mallory.identity,
        BundleId([1; 32]),
        CancelReason::Cancelled,
        Scope::Ids(vec![mallory.id(); SCOPE_MAX + 1]),
        60,
    );
    let range = RangeRequest {
        bundle: BundleId([1; 32]),
        entry: 0,
        offset: 0,
        len: 1,
    };
    // As many lengths of nothing as fit a frame: a gigabyte, once.
    let mut absent = bytes(&Frame::Offer(Box::new(Offer {
        age: 0,
        signed: signed(mallory, vec![1]),
        inline: vec![],
    })));
    let len = longest(OFFER);
    assert_eq!(absent.pop(), Some(0), "no lengths");
    let mut count = len - (absent.len() - 4) - 4;
    while count > 0 {
        absent.push((count & 0x7f) as u8 | if count > 0x7f { 0x80 } else { 0 });
        count >>= 7;
    }
    absent.resize(4 + len, 0);
    absent[..4].copy_from_slice(&(len as u32).to_be_bytes());
    let large = vec![Some(Bytes::from(vec![0; 65_537]))];
    let list = [
        Wrong("a list of 257", bytes(&Frame::Pending(ids))),
        Wrong(
            "a scope that is too long",
            bytes(&Frame::Cancels(vec![cancel])),
        ),
        Wrong("a range on the control stream", bytes(&Frame::Range(range))),
        Wrong("a hello in the middle", bytes(&mallory.hello())),
        Wrong("a proof in the middle", raw(1, 35)),
        Wrong("an invitation in the middle", raw(27, 49)),
        Wrong("an empty frame", vec![0; 4]),
        Wrong("lengths without end", absent),
        Wrong(
            "content that is too long to travel so",
            bytes(&Frame::Offer(Box::new(Offer {
                age: 0,
                signed: mallory.sign("f", b"x").signed().clone(),
                inline: large,
            }))),
        ),
    ];
    let mut wrongs = Vec::from(list);
    // Every kind there is: of nonsense as long as it may be, and said to be longer.
    for kind in (1..=10).chain([16, 17, 20, 21, 22, 23, 24, 25, 27, 28, 29, 32, 33]) {
        let over = raw(kind, longest(kind) + 1);
        wrongs.push(Wrong("a frame over its limit", over[..5].to_vec()));
        let mut nonsense = raw(kind, longest(kind).min(HELLO_MAX));
        nonsense[5..].fill(0xff);
        // Fixed bytes are never nonsense.
        if ![23, 25].contains(&kind) {
            wrongs.push(Wrong("nonsense", nonsense));
        }
    }
    wrongs
}

/// What is refused by a word, and the session goes on.
fn refused(mallory: &Scripted, channel: &mut Channel) {
    let good = manifest_of(mallory.id(), "f", b"x");
    let encoded = postcard::to_stdvec(&good).unwrap();
    let mut junk = encoded.clone();
    junk.extend_from_slice(&[0; 1000]);
    let mut long = encoded.clone();
    long.resize(MANIFEST_MAX + 1, 0);
    // The salt comes last; before it the number of entries, which is one.
    let mut padded = encoded;
    assert_eq!(padded[33], 1, "the epoch");
    padded.splice(33..34, [0x81, 0]);
    for (bytes, why) in [
        (junk, "canonical"),
        (padded, "canonical"),
        (long, "are allowed"),
    ] {
        let verdict = mallory.offer(channel, signed(mallory, bytes));
        assert!(
            matches!(&verdict, Verdict::Refused(said) if said.contains(why)),
            "{verdict:?}"
        );
    }
}

fn session(of: &Mesh, with: PeerId) -> usize {
    let session = of.hub.roster.get(with).and_then(|peer| peer.session());
    session.expect("connected").conn.stable_id()
}

/// A statement with more in it than it says was kept and passed on in frames that the receiver's limit refused: it and
/// who passed it on reconnected for ever. So did a manifest over the limit, by way of custody.
#[test]
fn a_member_that_breaks_the_rules_cuts_off_nobody_but_itself() {
    let club = found();
    let (birch, b) = club.join("birch");
    let before = (session(&club.a, birch.id()), session(&b, club.alder.id()));
    let mallory = Scripted::new();
    let all = wrongs(&mallory);
    for Wrong(what, bytes) in &all {
        let (conn, mut channel) = mallory.join(&club.a, &club.key);
        // It may be closed before all of it is sent.
        drop(mallory.runtime.block_on(channel.send.write_all(bytes)));
        let closed = mallory.closed(&conn);
        assert!(
            matches!(closed, ConnectionError::ApplicationClosed(_)),
            "{what}: {closed}"
        );
    }
    let (_conn, mut channel) = mallory.join(&club.a, &club.key);
    refused(&mallory, &mut channel);
    let statement = |more: usize| {
        let id = PeerId::from_bytes([more as u8; 32]);
        let generation = 1;
        let SignedStatement { mut bytes, .. } =
            club.say(&mallory.identity, What::Admitted { id, generation });
        bytes.resize(bytes.len() + more, 0);
        let signature = mallory.identity.sign(b"meshbox membership 1\0", &bytes);
        SignedStatement { bytes, signature }
    };
    let said = vec![statement(1), statement(500_000), statement(0)];
    mallory.say(&mut channel, &Frame::Member(MemberFrame::Statements(said)));
    mallory.settle(&mut channel);
    let kept = |spool: &crate::spool::Spool| spool.group.statements();
    eventually("the good one is passed on, and no other", || {
        kept(birch.spool()) == [statement(0)] && kept(club.alder.spool()) == [statement(0)]
    });
    // Over its limit as a frame, it ends the session of its maker.
    let (conn, mut channel) = mallory.join(&club.a, &club.key);
    let eight = vec![statement(400_000); 8];
    let frame = bytes(&Frame::Member(MemberFrame::Statements(eight)));
    assert_eq!(frame[4], STATEMENTS);
    drop(mallory.runtime.block_on(channel.send.write_all(&frame)));
    assert!(mallory.closed(&conn).to_string().contains("the limit is"));
    goes_on(&club, &birch);
    let after = (session(&club.a, birch.id()), session(&b, club.alder.id()));
    assert_eq!(before, after, "the two others never lost each other");
}

/// Both directions between the members that keep the rules.
fn goes_on(club: &Club, birch: &Real) {
    club.alder.put("from alder", b"a");
    birch.put("from birch", b"b");
    eventually("arrived", || {
        birch.inbox("from alder").exists() && club.alder.inbox("from birch").exists()
    });
}

#[test]
fn a_peer_has_one_bulk_connection_and_few_that_have_not_said_hello() {
    let club = found();
    let mallory = Scripted::new();
    let (_conn, _channel) = mallory.join(&club.a, &club.key);
    let bulk: Vec<Connection> = (0..20).map(|_| mallory.bulk(&club.a, &club.key)).collect();
    let open = |conns: &[Connection]| {
        let open = conns.iter().filter(|conn| conn.close_reason().is_none());
        open.count()
    };
    eventually("one is left", || open(&bulk) == 1);
    assert!(bulk.last().unwrap().close_reason().is_none(), "the newest");
    let silent: Vec<Connection> = (0..20)
        .map(|_| {
            let conn = mallory.connect(&club.a, CTL_ALPN);
            let proof = prove(&conn, &club.key, mallory.id(), Role::Dialer);
            mallory.runtime.block_on(proof).map(drop).unwrap();
            conn
        })
        .collect();
    eventually("few are left", || open(&silent) <= 4);
}

/// Half a long frame keeps its sender's part of the memory and nobody else's.
#[test]
fn who_stops_in_the_middle_of_a_long_frame_holds_up_nobody() {
    let club = found();
    let (birch, _b) = club.join("birch");
    let mallory = Scripted::new();
    let (_conn, mut channel) = mallory.join(&club.a, &club.key);
    let half = raw(OFFER, longest(OFFER));
    let half = &half[..half.len() / 2];
    drop(mallory.runtime.block_on(channel.send.write_all(half)));
    goes_on(&club, &birch);
}

/// Members that announce the longest frames, and send a byte of them now and then, had what is for all of them.
#[test]
fn who_announces_much_and_sends_little_keeps_no_memory_from_others() {
    let club = found();
    let drip = raw(OFFER, longest(OFFER));
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mallory = Scripted::new();
        let (conn, mut channel) = mallory.join(&club.a, &club.key);
        let sent = mallory
            .runtime
            .block_on(channel.send.write_all(&drip[..100]));
        sent.unwrap();
        slow.push((mallory, conn, channel));
    }
    let honest = Scripted::new();
    let (_conn, mut channel) = honest.join(&club.a, &club.key);
    let mut says = manifest_of(honest.id(), "f", b"x");
    let name = |n: u32| RelPath::parse(format!("d/{n}-{}", "n".repeat(200))).unwrap();
    says.entries.extend((0..30_000).map(|n| Entry {
        path: name(n),
        mtime: (0, 0),
        kind: EntryKind::Directory,
    }));
    // For somebody else: what it is does not matter, but that it is looked at.
    says.scope = Scope::Ids(vec![honest.id()]);
    let verdict = honest.offer(&mut channel, says.sign(&honest.identity).signed());
    assert!(matches!(verdict, Verdict::Refused(_)), "{verdict:?}");
    // They were slow, and are still connected.
    for (_, conn, _) in &slow {
        assert!(conn.close_reason().is_none());
    }
}
