//! States that hold what nobody would take: it goes at the next start, and nothing else.

use super::journal::{Batch, Key, Table};
use super::*;
use crate::bundle::{Cancel, CancelReason, MANIFEST_MAX, SCOPE_MAX, Scope, SignedManifest};
use crate::delivery::custody::Stage;
use crate::digest::Digest;
use crate::peer::roll::{SignedStatement, Statement, What};
use crate::peer::{Charter, GroupKey};
use crate::spool::Rank;
use crate::spool::custody::probe::CARRIED;
use crate::spool::ledger::probe::{CANCELS, CANCELS_OWED, DELIVERIES, KEPT, PENDING, kept_row};
use crate::spool::outbox::send::{SendRequest, Sent};

/// The key is a letter, then a peer.
const STATEMENTS: Table<([u8; 1], PeerId), SignedStatement> = Table::new(48);

fn rows<K: Key<Read = K>, V>(node: &Node, table: Table<K, V>) -> usize {
    let rows = node.spool().journal.keys(table.all(), 999);
    rows.unwrap().len()
}

#[test]
fn what_nobody_would_take_goes_at_the_next_start_and_the_rest_stays() {
    let (mut alder, birch) = pair();
    let key = GroupKey::generate();
    let charter = Charter::of(&key, alder.id());
    alder.spool().group.enter(key, Some(charter)).unwrap();
    let statement = |n: u8, more: usize| {
        let (id, generation) = (PeerId::from_bytes([n; 32]), 1);
        let statement = Statement {
            group: charter.root,
            by: alder.id(),
            what: What::Admitted { id, generation },
        };
        let SignedStatement { mut bytes, .. } = statement.sign(&alder.identity);
        bytes.resize(bytes.len() + more, 0);
        let signature = alder.identity.sign(b"meshbox membership 1\0", &bytes);
        SignedStatement { bytes, signature }
    };
    let good = statement(1, 0);
    let mut batch = Batch::default();
    let admitted = |n| (*b"a", PeerId::from_bytes([n; 32]));
    batch.insert(STATEMENTS, &admitted(1), &good);
    batch.insert(STATEMENTS, &admitted(2), &statement(2, 9));
    batch.insert(STATEMENTS, &admitted(3), &statement(3, 20 << 20));
    // A bundle kept for birch whose manifest is over the limit.
    let (bundle, order) = (BundleId([5; 32]), 1 << 55 | 7);
    let signed = SignedManifest {
        bytes: vec![1; MANIFEST_MAX + 1],
        signature: crate::peer::Signature([1; 64]),
    };
    let rank = Rank::of(signed.priority(), order);
    batch.insert(PENDING, &(birch.id(), rank), &(bundle, u64::MAX));
    batch.insert(KEPT, &bundle, &kept_row(signed, order));
    let carried = (PeerId::from_bytes([6; 32]), bundle);
    batch.insert(CARRIED, &carried, &Stage::Carrying);
    let queued = &DeliveryState::Queued;
    batch.insert(DELIVERIES, &(bundle, birch.id()), queued);
    alder
        .spool()
        .content
        .begin_need(bundle, [Digest([8; 32])], &mut batch);
    // And a cancel for more than a scope may name.
    let ids = vec![birch.id(); SCOPE_MAX + 1];
    let cancel = Cancel::sign(
        &birch.identity,
        bundle,
        CancelReason::Cancelled,
        Scope::Ids(ids),
        60,
    );
    let of = (bundle, birch.id());
    batch.insert(CANCELS, &of, &cancel);
    let owed = (birch.id(), bundle, birch.id());
    batch.insert(CANCELS_OWED, &owed, &());
    alder.spool().journal.submit(batch).unwrap();
    alder.spool().journal.flush().unwrap();
    let sent = alder.drop_file("f", b"x");
    alder.stop();
    alder.start();
    assert_eq!(alder.spool().group.statements(), [good]);
    let statements = alder.spool().journal.keys(STATEMENTS.all(), 9);
    assert_eq!(statements.unwrap(), [admitted(1)]);
    assert_eq!(rows(&alder, KEPT), 0);
    assert_eq!(rows(&alder, CARRIED), 0);
    assert_eq!(rows(&alder, CANCELS), 0);
    assert_eq!(rows(&alder, CANCELS_OWED), 0);
    let pending = alder.spool().ledger.pending(birch.id(), None, 99).unwrap();
    let owed: Vec<BundleId> = pending.into_iter().map(|(_, bundle)| bundle).collect();
    assert_eq!(owed, [sent]);
    assert_eq!(alder.spool().content.needs(), 1);
    assert_eq!(
        rows(&alder, DELIVERIES),
        0,
        "its own row says whom it is for"
    );
    assert_eq!(rows(&alder, PENDING), 1);
    alder
        .spool()
        .ledger
        .cancels_owed(birch.id(), None, 9)
        .unwrap();
}

#[test]
fn what_is_sent_by_hand_fits_a_manifest_or_is_refused() {
    let alder = Node::new();
    let (long, at) = ("n".repeat(250), alder.outbox("f"));
    alder.drop_file("f", b"x");
    assert!(at.exists());
    let files: Vec<(RelPath, RelPath)> = (0..28_000)
        .map(|n| (rel("f"), rel(&format!("{long}/{n}"))))
        .collect();
    let sent = alder.spool().send_files(&SendRequest {
        files,
        to: Vec::new(),
        priority: None,
        id: None,
    });
    match sent.unwrap() {
        Sent::Refused(why) => assert!(why.contains("send them as several"), "{why}"),
        other => panic!("{other:?}"),
    }
}
