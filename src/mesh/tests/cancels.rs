//! Cancels on the real wire, between real spools.

use std::fs;

use super::super::wire::RangeStatus;
use super::faults::{Real, alone};
use super::*;
use crate::bundle::{Cancel, CancelReason, Scope};
use crate::digest::LEAF;

/// A cancel of something of `peer`'s.
fn signed(peer: &Scripted, bundle: BundleId, scope: Scope) -> Cancel {
    Cancel::sign(&peer.identity, bundle, CancelReason::Cancelled, scope, 60)
}

fn all() -> Scope {
    Scope::All { generation: 1 }
}

#[test]
fn s12_a_transfer_stops_when_its_origin_cancels_it_and_nothing_of_it_stays() {
    let (group, alder, a) = alone();
    let origin = Scripted::new();
    let (_conn, mut channel) = origin.join(&a, &group);
    let content = pattern(64 * LEAF as usize);
    let (asked, first) = crossbeam_channel::unbounded();
    let (go, went) = crossbeam_channel::bounded::<()>(0);
    let mut go = Some(go);
    let _bulk = origin.serve(&a, &group, {
        let content = content.clone();
        move |request| {
            asked.send(()).ok();
            // Held until the cancel was sent and taken.
            went.recv().ok();
            let range = request.offset as usize..(request.offset + request.len) as usize;
            let mut bytes = vec![RangeStatus::Ok as u8];
            bytes.extend_from_slice(&content[range]);
            bytes
        }
    });
    let manifest = origin.sign("f", &content);
    let offer = Offer {
        age: 0,
        signed: manifest.signed().clone(),
        inline: vec![],
    };
    origin.say(&mut channel, &Frame::Offer(Box::new(offer)));
    first.recv_timeout(PATIENCE).unwrap();
    let cancel = signed(&origin, manifest.id(), all());
    origin.say(&mut channel, &Frame::Cancels(vec![cancel]));
    let refused = loop {
        match origin.hear(&mut channel) {
            Frame::CancelsSeen(ids) => {
                assert_eq!(ids, [manifest.id()]);
                // From here on all ranges are answered.
                drop(go.take());
            }
            Frame::Verdicts(list) => {
                if let Some((_, Verdict::Refused(why))) = list.into_iter().next_back() {
                    break why;
                }
            }
            _ => {}
        }
    };
    assert!(go.is_none(), "refused before the cancel was seen");
    assert_eq!(refused, "cancelled by its origin");
    eventually("removed", || alder.names_in("partial").is_empty());
    assert_eq!(alder.row(manifest.id()).unwrap().state, "cancelled");
    assert_eq!(alder.names_in("inbox"), [""; 0]);
}

#[test]
fn s12_a_cancelled_bundle_is_refused_whoever_offers_it_and_asks() {
    let (group, alder, a) = alone();
    let origin = Scripted::new();
    let manifest = origin.sign("f", b"never mind");
    let (conn, mut channel) = origin.join(&a, &group);
    let cancel = signed(&origin, manifest.id(), all());
    origin.say(&mut channel, &Frame::Cancels(vec![cancel]));
    while !matches!(origin.hear(&mut channel), Frame::CancelsSeen(_)) {}
    let refusal = Verdict::Refused("cancelled by its origin".into());
    assert_eq!(origin.offer(&mut channel, manifest.signed()), refusal);
    conn.close(0u32.into(), b"");
    let other = Scripted::new();
    let (_conn, mut channel) = other.join(&a, &group);
    let pending = Frame::Pending(vec![manifest.id()]);
    assert_eq!(
        other.ask(&mut channel, &pending),
        [(manifest.id(), refusal.clone())]
    );
    // Who signs a cancel of what is not its own ends nothing.
    let (bystander, third) = (Scripted::new(), origin.sign("g", b"g"));
    let (_conn, mut theirs) = bystander.join(&a, &group);
    let lie = signed(&bystander, third.id(), all());
    bystander.say(&mut theirs, &Frame::Cancels(vec![lie]));
    while !matches!(bystander.hear(&mut theirs), Frame::CancelsSeen(_)) {}
    let inline = vec![Some(Bytes::from_static(b"g"))];
    let signed = third.signed().clone();
    assert_eq!(
        other.offer_inline(
            &mut channel,
            Offer {
                age: 0,
                signed,
                inline
            }
        ),
        Verdict::Taken
    );
    let offer = Offer {
        age: 0,
        signed: manifest.signed().clone(),
        inline: vec![Some(Bytes::from_static(b"never mind"))],
    };
    assert_eq!(other.offer_inline(&mut channel, offer), refusal);
    assert_eq!(alder.names_in("inbox"), ["g"]);
}

#[test]
fn a_cancel_is_told_before_anything_is_offered_until_it_is_seen_and_to_recipients_only() {
    let (group, alder, a) = alone();
    let (birch, cedar) = (Scripted::new(), Scripted::new());
    // Both are members when it is sealed.
    drop((birch.join(&a, &group), cedar.join(&a, &group)));
    let gone = alder.put("gone", b"x");
    alder.put("there", b"y");
    alder.spool().cancel(gone).unwrap();
    for connection in 0..3 {
        let (conn, mut channel) = birch.join(&a, &group);
        let mut told = false;
        loop {
            match birch.hear(&mut channel) {
                Frame::Cancels(list) => {
                    assert!(list.len() == 1 && list[0].bundle == gone && list[0].is_genuine());
                    told = true;
                    if connection > 0 {
                        birch.say(&mut channel, &Frame::CancelsSeen(vec![gone]));
                    }
                }
                Frame::Pending(ids) => {
                    assert!(!ids.contains(&gone));
                    break;
                }
                _ => {}
            }
        }
        assert_eq!(told, connection < 2, "connection {connection}");
        birch.settle(&mut channel);
        conn.close(0u32.into(), b"");
    }
    let late = Scripted::new();
    let (_conn, mut channel) = late.join(&a, &group);
    loop {
        match late.hear(&mut channel) {
            Frame::Cancels(list) => panic!("a newcomer heard of {list:?}"),
            Frame::Pending(ids) => {
                assert!(!ids.contains(&gone) && !ids.is_empty());
                break;
            }
            _ => {}
        }
    }
}

#[test]
fn a_cancel_between_two_nodes_stops_what_waits_and_a_retry_asks_at_once() {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let a = alder.start(config("alder", &group));
    let invited = || MeshConfig {
        peers: vec![(alder.id(), a.listen_addrs()[0])],
        ..config("birch", &group)
    };
    let b = birch.start(invited());
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
    b.stop();
    eventually("disconnected", || !connected(&a, birch.id()));
    let gone = alder.put("gone", &pattern(100_000));
    alder.spool().cancel(gone).unwrap();
    let kept = alder.put("kept", b"kept");
    let refused = crate::bundle::DeliveryState::Refused("no reason".into());
    alder
        .spool()
        .set_delivery(kept, birch.id(), refused)
        .unwrap();
    let _b = birch.start(invited());
    let mark = alder.put("mark", b"mark");
    birch.wait_row(mark, "received");
    assert!(birch.row(kept).is_none() && birch.row(gone).is_none());
    assert_eq!(
        birch.spool().ledger.ended(gone, alder.id()),
        Some(CancelReason::Cancelled)
    );
    eventually("seen", || {
        alder
            .spool()
            .ledger
            .cancels_owed(birch.id(), None, 9)
            .unwrap()
            .is_empty()
    });
    alder.spool().retry(kept, None).unwrap();
    eventually("delivered", || {
        !alder.spool().ledger.is_pending(kept, birch.id())
    });
    assert_eq!(fs::read(birch.inbox("kept")).unwrap(), b"kept");
    assert!(!birch.inbox("gone").exists());
}
