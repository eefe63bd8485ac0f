//! Cancels and retries between spools joined by function calls.

use super::*;
use crate::bundle::{Cancel, CancelReason, Scope};
use crate::spool::ledger::inbound::InboundState;
use crate::spool::ledger::probe::{CANCELS, CANCELS_OWED, DEADLINES};

/// Tells `to` every cancel that `from` owes it, as a connection would; gives how many were taken.
fn tell(from: &Node, to: &Node) -> usize {
    let owed = from.spool().ledger.cancels_owed(to.id(), None, 99).unwrap();
    let taken = |cancel: &&Cancel| to.spool().take_cancel(cancel, from.id()).unwrap();
    let seen: Vec<BundleId> = owed.iter().filter(taken).map(|c| c.bundle).collect();
    from.spool().ledger.cancels_seen(to.id(), &seen).unwrap();
    seen.len()
}

fn cancel(node: &Node, bundle: BundleId) -> Cancelled {
    node.spool().cancel(bundle).unwrap()
}

fn outbound(node: &Node, bundle: BundleId) -> OutboundRow {
    let rows = node.spool().outbound(None, 99);
    rows.into_iter()
        .find(|r| r.bundle == bundle.to_string())
        .unwrap()
}

fn inbound(node: &Node, bundle: BundleId) -> Option<InboxStage> {
    let rows = node.spool().inbound(None, 99);
    let row = rows.into_iter().find(|r| r.bundle == bundle.to_string());
    row.map(|row| row.state)
}

fn three() -> (Node, Node, Node) {
    let (alder, birch) = pair();
    let cedar = Node::new();
    for (one, other, name) in [
        (&alder, &cedar, "cedar"),
        (&birch, &cedar, "cedar"),
        (&cedar, &alder, "alder"),
        (&cedar, &birch, "birch"),
    ] {
        one.knows(other, name);
    }
    (alder, birch, cedar)
}

#[test]
fn what_a_session_notes_of_a_bundle_does_not_undo_its_cancel() {
    let (alder, birch) = pair();
    let state = |state| (state, Some("no room".to_owned()));
    for round in 0..200 {
        let bundle = alder.drop_file(&format!("{round}"), b"some bytes");
        let manifest = alder.manifest(bundle);
        let note = || {
            let (state, why) = state(InboundState::Deferred);
            let says = manifest.manifest();
            birch.spool().ledger.note_inbound(says, bundle, state, why);
        };
        note();
        cancel(&alder, bundle);
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                note();
            });
            start.wait();
            assert_eq!(tell(&alder, &birch), 1);
        });
        let shown = birch.spool().ledger.inbound_shown(bundle);
        let shown = shown.unwrap().unwrap().state;
        assert!(
            matches!(shown, InboundState::Ended(_)),
            "round {round}: {shown:?}"
        );
    }
}

#[test]
fn s12_a_cancel_ends_it_for_all_but_those_who_have_it() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", &pattern(100_000));
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert_eq!(cancel(&alder, bundle), Cancelled::Ended(1));
    let row = outbound(&alder, bundle);
    let mut states: Vec<&str> = row.recipients.iter().map(|r| r.state.word()).collect();
    states.sort_unstable();
    assert_eq!(
        (row.state.word(), states),
        ("cancelled", vec!["cancelled", "delivered"])
    );
    let shown = alder.spool().outbox_state(&rel("f"), alder.ino("f"));
    assert_eq!(shown.word(), "cancelled");
    assert!(!alder.spool().ledger.is_pending(bundle, cedar.id()));
    assert!(matches!(
        alder.spool().open_content(bundle, 0, cedar.id()),
        Err(ServeError::NotHeld)
    ));
    assert_eq!((tell(&alder, &birch), tell(&alder, &cedar)), (1, 1));
    assert_eq!(tell(&alder, &cedar), 0, "once seen, not told again");
    assert_eq!(inbound(&birch, bundle), Some(InboxStage::Received));
    assert!(birch.inbox("f").exists());
    // Cedar takes it from nobody, and shows what was offered.
    for from in [&alder, &birch] {
        let offered = cedar
            .spool()
            .offered(alder.manifest(bundle), from.id())
            .unwrap();
        assert!(
            matches!(&offered, Offered::Refused(why) if why == "cancelled by its origin"),
            "{offered:?}"
        );
    }
    assert_eq!(inbound(&cedar, bundle), Some(InboxStage::Cancelled));
    assert_eq!(cancel(&alder, bundle), Cancelled::Over);
}

#[test]
fn s12_what_is_arriving_when_its_cancel_comes_is_dropped_and_never_shown() {
    for size in [3 * LEAF as usize, 100] {
        let (alder, birch) = pair();
        let bundle = alder.drop_file("d/f", &pattern(size));
        let Offered::Wanted(mut incoming) = birch
            .spool()
            .offered(alder.manifest(bundle), alder.id())
            .unwrap()
        else {
            panic!("not wanted")
        };
        let bytes = pattern(size);
        let first = size.min(LEAF as usize);
        incoming.accept_chunk(0, 0, &bytes[..first]).unwrap();
        cancel(&alder, bundle);
        assert_eq!(tell(&alder, &birch), 1);
        if first < size {
            let next = incoming.accept_chunk(0, LEAF, &bytes[first..2 * first]);
            assert!(
                matches!(next, Err(IntakeError::Ended(CancelReason::Cancelled))),
                "{next:?}"
            );
            drop(incoming);
        } else {
            let shown = incoming.finish().unwrap().publish();
            assert!(matches!(shown, Err(SpoolError::Ended(_))), "{shown:?}");
        }
        assert!(!birch.inbox("d").exists());
        assert_eq!(
            fs::read_dir(birch.state().join("partial")).unwrap().count(),
            0
        );
        assert_eq!(inbound(&birch, bundle), Some(InboxStage::Cancelled));
    }
}

#[test]
fn a_receiver_that_published_answers_a_cancel_with_its_receipt() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("f", b"published already");
    birch.fetch(&alder, bundle);
    let lost = birch.receipt();
    cancel(&alder, bundle);
    assert_eq!(outbound(&alder, bundle).state, "cancelled");
    assert_eq!(tell(&alder, &birch), 1);
    let again = birch.receipt();
    assert_eq!(again, lost);
    assert!(alder.spool().take_receipt(&again).unwrap());
    assert_eq!(outbound(&alder, bundle).state, "delivered");
    assert!(birch.inbox("f").exists());
}

#[test]
fn a_cancel_passes_from_recipient_to_recipient_and_reaches_nobody_else() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    cancel(&alder, bundle);
    assert_eq!(tell(&alder, &birch), 1);
    assert_eq!(tell(&birch, &cedar), 1, "alder is away");
    let offered = cedar
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap();
    assert!(matches!(offered, Offered::Refused(_)));
    assert_eq!(tell(&birch, &alder), 0, "its origin knows");
    // One for birch alone is told to birch, and by birch to nobody.
    let secret = Cancel::sign(
        &alder.identity,
        BundleId([7; 32]),
        CancelReason::Cancelled,
        Scope::Ids(vec![birch.id()]),
        60,
    );
    assert!(birch.spool().take_cancel(&secret, alder.id()).unwrap());
    assert_eq!(
        birch
            .spool()
            .ledger
            .cancels_owed(cedar.id(), None, 9)
            .unwrap(),
        []
    );
    assert!(!cedar.spool().take_cancel(&secret, birch.id()).unwrap());
    assert_eq!(
        cedar.spool().ledger.ended(BundleId([7; 32]), alder.id()),
        None
    );
}

#[test]
fn who_keeps_a_bundle_for_others_gives_it_to_nobody_once_it_is_cancelled() {
    for promoted in [true, false] {
        let (alder, birch, cedar) = three();
        let bundle = alder.drop_file("f", b"x");
        birch.fetch(&alder, bundle);
        birch.receipt();
        birch.spool().custodian.set_custody_delay(Duration::ZERO);
        if promoted {
            birch.spool().custodian.custody_pass(&|_| false).unwrap();
            assert!(birch.spool().ledger.is_pending(bundle, cedar.id()));
        }
        // A lie ends nothing.
        let lie = Cancel::sign(
            &cedar.identity,
            bundle,
            CancelReason::Cancelled,
            Scope::All { generation: 1 },
            60,
        );
        birch.spool().take_cancel(&lie, cedar.id()).unwrap();
        assert_eq!(
            birch.spool().ledger.is_pending(bundle, cedar.id()),
            promoted
        );
        cancel(&alder, bundle);
        assert_eq!(tell(&alder, &birch), 1);
        birch.spool().custodian.custody_pass(&|_| false).unwrap();
        assert!(!birch.spool().ledger.is_pending(bundle, cedar.id()));
        assert!(matches!(
            birch.spool().open_content(bundle, 0, cedar.id()),
            Err(ServeError::NotHeld)
        ));
        let late = Node::new();
        birch.knows(&late, "late");
        birch.spool().custodian.custody_pass(&|_| false).unwrap();
        assert_eq!(
            birch.spool().ledger.pending(late.id(), None, 9).unwrap(),
            []
        );
        assert!(birch.inbox("f").exists());
        assert_eq!(tell(&birch, &cedar), 1, "the lie came from cedar itself");
    }
}

#[test]
fn a_cancel_for_more_than_any_bundle_may_have_is_not_taken_and_strangers_take_no_room() {
    let (alder, birch) = pair();
    let rows = || {
        let journal = &birch.spool().journal;
        let cancels = journal.keys(CANCELS.all(), usize::MAX).unwrap();
        let owed = journal.keys(CANCELS_OWED.all(), usize::MAX).unwrap();
        (cancels.len(), owed.len())
    };
    let give = |strangers: usize, bundle: u8| {
        let mut ids: Vec<PeerId> = (0..strangers).map(|_| Identity::generate().id()).collect();
        ids.extend([alder.id(), birch.id()]);
        ids.sort_unstable();
        let (id, why) = (BundleId([bundle; 32]), CancelReason::Cancelled);
        let cancel = Cancel::sign(&alder.identity, id, why, Scope::Ids(ids), u64::MAX);
        birch.spool().take_cancel(&cancel, alder.id()).unwrap()
    };
    assert!(!give(2000, 1));
    assert_eq!(rows(), (0, 0));
    assert!(give(500, 2));
    assert_eq!(rows(), (1, 0));
    let until = birch.spool().journal.rows(DEADLINES.all(), 9);
    assert!(until.unwrap()[0].1 < 20 * 365 * 24 * 3600 * 1000);
}

#[test]
fn a_forged_cancel_changes_nothing() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    let scope = Scope::All { generation: 1 };
    let mut forged = Cancel::sign(
        &cedar.identity,
        bundle,
        CancelReason::Cancelled,
        scope.clone(),
        60,
    );
    forged.origin = alder.id();
    assert!(!birch.spool().take_cancel(&forged, cedar.id()).unwrap());
    // Its own signature under its own name: about a bundle that is not its own, so of no effect for alder's.
    let own = Cancel::sign(&cedar.identity, bundle, CancelReason::Cancelled, scope, 60);
    for node in [&alder, &birch] {
        node.spool().take_cancel(&own, cedar.id()).unwrap();
    }
    assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
    assert_eq!(birch.fetch(&alder, bundle), 1);
    assert_eq!(birch.spool().cancel(bundle).unwrap(), Cancelled::Unknown);
}

#[test]
fn a_cancel_survives_a_crash_on_both_sides_and_goes_to_no_one_who_joins_later() {
    let (mut alder, mut birch) = pair();
    let bundle = alder.drop_file("f", b"x");
    cancel(&alder, bundle);
    alder.power_loss();
    assert_eq!(outbound(&alder, bundle).state, "cancelled");
    assert_eq!(tell(&alder, &birch), 1);
    birch.stop();
    birch.start();
    assert_eq!(
        birch.spool().ledger.ended(bundle, alder.id()),
        Some(CancelReason::Cancelled)
    );
    let cedar = Node::new();
    alder.knows(&cedar, "cedar");
    assert!(!alder.spool().ledger.is_pending(bundle, cedar.id()));
}

#[test]
fn a_bundle_sealed_while_alone_can_be_cancelled_and_frees_its_content() {
    let alder = Node::new();
    let bundle = alder.drop_file("f", &pattern(100_000));
    let ino = alder.ino("f");
    fs::remove_file(alder.outbox("f")).unwrap();
    alder.spool().outbox_removed(&rel("f"), ino, 0);
    assert!(alder.spool().content.held_bytes() > 0);
    assert_eq!(cancel(&alder, bundle), Cancelled::Ended(0));
    assert_eq!(outbound(&alder, bundle).state, "cancelled");
    assert_eq!(alder.spool().content.held_bytes(), 0);
    let birch = Node::new();
    alder.knows(&birch, "birch");
    assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
}

#[test]
fn s14_what_was_refused_is_shown_and_asked_again_only_when_somebody_says_so() {
    let (alder, mut birch) = pair();
    birch.limits.max_file_bytes = Some(10);
    birch.stop();
    birch.start();
    let bundle = alder.drop_file("f", &pattern(100));
    let Offered::Refused(why) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("not refused")
    };
    let refused = DeliveryState::Refused(why.clone());
    alder
        .spool()
        .set_delivery(bundle, birch.id(), refused)
        .unwrap();
    let row = outbound(&alder, bundle);
    assert_eq!(
        (row.state.word(), row.recipients[0].error.as_ref()),
        ("refused", Some(&why))
    );
    assert!(
        !alder.spool().ledger.is_pending(bundle, birch.id()),
        "not for ever"
    );
    birch.limits.max_file_bytes = None;
    birch.stop();
    birch.start();
    let (send, rung) = crossbeam_channel::unbounded();
    alder
        .spool()
        .doorbell
        .subscribe(move |event| send.send(event.clone()).unwrap());
    assert_eq!(
        alder.spool().retry(bundle, None).unwrap(),
        Retried::Asked(1)
    );
    assert!(
        rung.try_iter()
            .any(|event| event == Event::Retry(bundle, birch.id()))
    );
    assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert_eq!(outbound(&alder, bundle).state, "delivered");
    assert_eq!(alder.spool().retry(bundle, None).unwrap(), Retried::Nothing);
}

#[test]
fn s16_one_recipient_that_refuses_ends_nothing_for_the_others() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"for both");
    let refused = DeliveryState::Refused("no".into());
    alder
        .spool()
        .set_delivery(bundle, birch.id(), refused)
        .unwrap();
    alder.spool().journal.flush().unwrap();
    assert_eq!(
        outbound(&alder, bundle).state,
        "queued",
        "cedar still gets it"
    );
    assert!(alder.spool().ledger.is_pending(bundle, cedar.id()));
    assert_eq!(cedar.fetch(&alder, bundle), 8);
    alder.spool().take_receipt(&cedar.receipt()).unwrap();
    let row = outbound(&alder, bundle);
    let state = |id: PeerId| {
        let recipient = row.recipients.iter().find(|r| r.id == id.to_string());
        recipient.unwrap().state
    };
    assert_eq!(
        (state(birch.id()).word(), state(cedar.id()).word()),
        ("refused", "delivered")
    );
}

#[test]
fn a_bundle_whose_content_is_gone_cannot_be_retried_and_says_so() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("f", &pattern(1000));
    let refused = DeliveryState::Refused("no".into());
    alder
        .spool()
        .set_delivery(bundle, birch.id(), refused)
        .unwrap();
    let ino = alder.ino("f");
    fs::remove_file(alder.outbox("f")).unwrap();
    alder.spool().outbox_removed(&rel("f"), ino, 0);
    assert_eq!(
        alder.spool().retry(bundle, None).unwrap(),
        Retried::ContentGone
    );
}
