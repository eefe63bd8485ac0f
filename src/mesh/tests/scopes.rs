//! What a member outside a bundle's scope learns of it on the wire: nothing.

use super::super::wire::{RangeRequest, RangeStatus};
use super::faults::{Real, alone};
use super::*;
use crate::bundle::{Cancel, CancelReason, Receipt, RelPath, Scope};
use crate::digest::LEAF;
use crate::spool::{Route, Routing};

/// Whatever goes to `d/` goes to these only.
fn scoped(alder: &Real, to: &[PeerId]) {
    let route = Route {
        path: Some(RelPath::parse("d").unwrap()),
        to: to.iter().map(PeerId::to_string).collect(),
        priority: None,
        lifetime: None,
    };
    let routes = vec![route];
    let routing = Routing {
        routes,
        ..Routing::default()
    };
    std::fs::create_dir_all(alder.state().join("outbox/d")).unwrap();
    alder.spool().set_routing(routing).unwrap();
}

/// Asks for a range as a member; gives the answer.
fn range(peer: &Scripted, of: &Mesh, group: &GroupKey, bundle: BundleId) -> Vec<u8> {
    let conn = peer.connect(of, BULK_ALPN);
    peer.runtime.block_on(async {
        prove(&conn, group, peer.id(), Role::Dialer).await.unwrap();
        let (send, recv) = conn.open_bi().await.unwrap();
        let mut channel = Channel {
            send,
            recv,
            decoder: Decoder::new(100),
        };
        let request = RangeRequest {
            bundle,
            entry: 0,
            offset: 0,
            len: 6,
        };
        channel.send(&Frame::Range(request)).await.unwrap();
        channel.recv.read_to_end(100).await.unwrap()
    })
}

/// Everything that is said on the channel until the answer to a question about `mark`.
fn hear_all(peer: &Scripted, channel: &mut Channel, mark: BundleId) -> String {
    peer.say(channel, &Frame::Owed(vec![mark]));
    let mut said = String::new();
    loop {
        let frame = peer.hear(channel);
        let done = matches!(&frame, Frame::Withdrawn(ids) if ids.contains(&mark));
        said.push_str(&format!("{frame:?}\n"));
        if done {
            return said;
        }
    }
}

#[test]
fn a_member_outside_the_scope_learns_neither_name_nor_bytes_nor_existence() {
    let (group, alder, a) = alone();
    let (birch, mallet) = (Scripted::new(), Scripted::new());
    let (_mallet, mut theirs) = mallet.join(&a, &group);
    scoped(&alder, &[birch.id()]);
    let secret = alder.put("d/secret-plan", &pattern(100_000));
    let cancelled = alder.put("d/secret-past", b"never mind");
    alder.spool().cancel(cancelled).unwrap();
    // Birch is offered it, also when it joins later, and hears of the cancel.
    let (_birch, mut ours) = birch.join(&a, &group);
    let (mut asked, mut told) = (false, false);
    while !(asked && told) {
        match birch.hear(&mut ours) {
            Frame::Pending(ids) => asked |= ids == [secret],
            Frame::Cancels(list) => told |= list[0].bundle == cancelled,
            _ => {}
        }
    }
    assert_eq!(range(&birch, &a, &group, secret)[0], RangeStatus::Ok as u8);

    // The other hears of neither, on the open connection and on a new one.
    let unknown = BundleId([9; 32]);
    let mut said = hear_all(&mallet, &mut theirs, unknown);
    let (_again, mut again) = mallet.join(&a, &group);
    said.push_str(&hear_all(&mallet, &mut again, unknown));
    for word in [
        "secret",
        &secret.to_string(),
        &cancelled.to_string(),
        &secret.short(),
        &cancelled.short(),
    ] {
        assert!(!said.contains(word), "{word} in {said}");
    }
    // What it asks about by id is answered as what nobody knows.
    assert_eq!(
        range(&mallet, &a, &group, secret),
        range(&mallet, &a, &group, unknown)
    );
    for id in [secret, cancelled] {
        let of = mallet.ask(&mut again, &Frame::Pending(vec![id, unknown]));
        assert_eq!(of, [(id, Verdict::Want), (unknown, Verdict::Want)]);
        mallet.say(&mut again, &Frame::Owed(vec![id, unknown]));
        loop {
            if let Frame::Withdrawn(ids) = mallet.hear(&mut again) {
                assert_eq!(ids, [id, unknown]);
                break;
            }
        }
    }
    // Nor can it speak for birch, or end it.
    let receipt = Receipt::sign(&mallet.identity, secret, alder.id());
    mallet.say(&mut again, &Frame::Receipts(vec![receipt]));
    let all = Scope::All { generation: 1 };
    let cancel = Cancel::sign(&mallet.identity, secret, CancelReason::Cancelled, all, 60);
    mallet.say(&mut again, &Frame::Cancels(vec![cancel]));
    mallet.settle(&mut again);
    assert!(alder.spool().ledger.is_pending(secret, birch.id()));
    let row = &alder.spool().outbound(None, 9);
    let row = row
        .iter()
        .find(|row| row.bundle == secret.to_string())
        .unwrap();
    assert_eq!(row.recipients.len(), 1);
}

#[test]
fn a_bundle_signed_with_a_digest_one_merely_knows_buys_nothing() {
    let (group, alder, a) = alone();
    let (birch, mallet) = (Scripted::new(), Scripted::new());
    let (_birch, mut ours) = birch.join(&a, &group);
    scoped(&alder, &[birch.id()]);
    let content = pattern(2 * LEAF as usize);
    // Alder sends it to birch, and received the like from birch.
    let secret = alder.put("d/secret", &content);
    let from_birch = pattern(2 * LEAF as usize + 1);
    let gift = from_birch.clone();
    let _bulk = birch.serve(&a, &group, move |request| {
        let range = request.offset as usize..(request.offset + request.len) as usize;
        [&[RangeStatus::Ok as u8][..], &gift[range]].concat()
    });
    let manifest = birch.sign("gift", &from_birch);
    assert_eq!(birch.offer(&mut ours, manifest.signed()), Verdict::Taken);
    let receipt = alder.wait_row(manifest.id(), "received");
    assert_eq!(receipt.state, "received");

    // Mallet knows the digests, signs bundles of them, and claims birch's name as well.
    let (_mallet, mut theirs) = mallet.join(&a, &group);
    let (asked, requests) = crossbeam_channel::unbounded();
    let _bulk = mallet.serve(&a, &group, move |request| {
        asked.send(request.bundle).ok();
        vec![RangeStatus::NotHeld as u8]
    });
    let mut named = vec![secret];
    for content in [&content, &from_birch] {
        let manifest = mallet.sign("mine", content);
        // Who has none of the bytes is asked for all of them, as for a digest that nobody ever saw.
        let answer = mallet.offer(&mut theirs, manifest.signed());
        assert!(matches!(answer, Verdict::Deferred(_)), "{answer:?}");
        // Ranges are asked for several at a time.
        while requests.recv_timeout(PATIENCE).unwrap() != manifest.id() {}
        named.push(manifest.id());
    }
    for bundle in named {
        let answer = range(&mallet, &a, &group, bundle);
        assert_eq!(answer, [RangeStatus::NotHeld as u8]);
    }
    assert!(!alder.inbox("mine").exists());
}

#[test]
fn a_receipt_of_a_bundle_for_some_is_shown_to_those_only() {
    let (group, alder, a) = alone();
    let (birch, cedar, mallet) = (Scripted::new(), Scripted::new(), Scripted::new());
    let (_birch, mut ours) = birch.join(&a, &group);
    let mut says = birch.sign("f", b"hello").manifest().clone();
    says.scope = Scope::Ids(vec![alder.id(), cedar.id()]);
    let manifest = says.sign(&birch.identity);
    let offer = Offer {
        age: 0,
        signed: manifest.signed().clone(),
        inline: vec![Some(Bytes::from_static(b"hello"))],
    };
    assert_eq!(birch.offer_inline(&mut ours, offer), Verdict::Taken);
    alder.wait_row(manifest.id(), "received");
    for (peer, may) in [(&birch, true), (&cedar, true), (&mallet, false)] {
        let (_conn, mut channel) = peer.join(&a, &group);
        let answer = peer.ask(&mut channel, &Frame::Pending(vec![manifest.id()]));
        assert_eq!(
            matches!(answer[0].1, Verdict::Settled(_)),
            may,
            "{answer:?}"
        );
    }
}
