//! After a sync has failed, until the next start and after it.

use std::sync::atomic::AtomicBool;

use super::super::durable::Sync;
use super::super::journal::{Batch, Table};
use super::*;
use crate::spool::ledger::probe::DELIVERIES;

/// A table of one row, of no use.
const A_TEST: Table<(), u8> = Table::named(tables::META, "a test");

/// The next sync of the node's disk fails; what was submitted before is durable.
fn fail_a_sync(node: &Node) {
    let journal = &node.spool().journal;
    journal.flush().unwrap();
    let mut batch = Batch::default();
    batch.insert(A_TEST, &(), &1_u8);
    batch.sync(Sync::FailsOnce(Arc::new(AtomicBool::new(false))));
    journal.submit(batch).unwrap();
    journal.flush().unwrap_err();
    let last = super::super::start::last_run(&node.state()).unwrap();
    assert_eq!(last, super::super::start::LastRun::SyncFailed);
}

/// Holds the journal's writer where it is; what is submitted from then on is committed together, if it is.
fn hold_the_writer(node: &Node) -> crossbeam_channel::Sender<()> {
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let (here, is_here) = crossbeam_channel::bounded(1);
    let mut batch = Batch::default();
    batch.on_durable(move || {
        here.send(()).unwrap();
        // Until the sender is dropped.
        released.recv().unwrap_err();
    });
    node.spool().journal.submit(batch).unwrap();
    is_here.recv().unwrap();
    release
}

fn state_of(node: &Node, path: &str) -> Stage {
    let row = node.spool().outbound_last(&rel(path)).unwrap();
    row.recipients[0].state
}

#[test]
fn no_receipt_is_taken_after_a_failed_sync_and_it_is_taken_after_the_restart() {
    let (mut alder, birch) = pair();
    let bundle = alder.drop_file("a", b"one");
    birch.fetch(&alder, bundle);
    let receipt = birch.receipt();
    fail_a_sync(&alder);
    let error = alder.spool().take_receipt(&receipt).unwrap_err();
    assert!(error.to_string().contains("a sync failed"), "{error}");
    assert_eq!(state_of(&alder, "a"), "queued");
    alder.stop();
    alder.start();
    assert_eq!(state_of(&alder, "a"), "queued");
    assert!(alder.spool().take_receipt(&receipt).unwrap());
    assert_eq!(state_of(&alder, "a"), "delivered");
    assert_eq!(birch.spool().counts().published, 1);
}

#[test]
fn a_receipt_that_a_failed_sync_lost_is_not_shown_as_delivered() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"one");
    birch.fetch(&alder, bundle);
    birch.receipt();
    fail_a_sync(&alder);
    // Taken in the moment before.
    let mut batch = Batch::default();
    let key = (bundle, birch.id());
    batch.insert(DELIVERIES, &key, &DeliveryState::Delivered);
    alder.spool().journal.submit(batch).unwrap();
    assert_eq!(state_of(&alder, "a"), "queued");
}

#[test]
fn what_is_closed_after_a_failed_sync_is_sent_once_and_only_after_the_restart() {
    let (mut alder, birch) = pair();
    fail_a_sync(&alder);
    for name in ["a", "d/b"] {
        fs::create_dir_all(alder.outbox(name).parent().unwrap()).unwrap();
        fs::write(alder.outbox(name), name).unwrap();
        alder
            .spool()
            .outbox
            .mark_closed(alder.ino(name), &rel(name));
        let outcome = alder.seal(name);
        assert!(matches!(outcome, SealOutcome::Failed(_)), "{outcome:?}");
    }
    assert!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .is_empty()
    );
    alder.stop();
    alder.start();
    let recovered = alder.spool().outbox.recovered();
    assert!(recovered.len() == 2 && recovered.iter().all(|file| file.incomplete));
    birch.fetch(&alder, alder.drop_file("a", b"a"));
    assert_eq!(birch.spool().counts().published, 1);
}

#[test]
fn nothing_is_taken_from_others_after_a_failed_sync() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("a", b"one");
    fail_a_sync(&birch);
    let offered = birch.spool().offered(alder.manifest(bundle), alder.id());
    assert!(matches!(offered.unwrap(), Offered::Deferred(_)));
    birch.stop();
    birch.start();
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"one");
}

#[test]
fn what_was_offered_before_a_failed_sync_lost_its_rows_is_not_sent_a_second_time() {
    let (mut alder, birch) = pair();
    let bytes = pattern(200_000);
    let held = hold_the_writer(&alder);
    let one = alder.drop_file("a", b"one");
    let two = alder.drop_file("d/b", &bytes);
    let torn = alder.drop_file("torn", b"these bytes the disk does not have");
    for bundle in [one, two] {
        birch.fetch(&alder, bundle);
    }
    let receipt = birch.receipt();
    assert!(alder.spool().take_receipt(&receipt).unwrap());
    let mut batch = Batch::default();
    batch.insert(A_TEST, &(), &1_u8);
    batch.sync(Sync::FailsOnce(Arc::new(AtomicBool::new(false))));
    alder.spool().journal.submit(batch).unwrap();
    drop(held);
    alder.spool().journal.flush().unwrap_err();
    assert_eq!(
        alder.spool().outbound_last(&rel("a")).unwrap().state,
        "sealed"
    );
    alder.stop();
    fs::write(alder.outbox("torn"), b"these bytes").unwrap();
    alder.start();
    let recovered = alder.spool().outbox.recovered();
    assert!(
        recovered.len() == 1 && recovered[0].path == rel("torn") && recovered[0].incomplete,
        "{recovered:?}"
    );
    assert!(alder.spool().ledger.manifest(torn).unwrap().is_none());
    assert_eq!(state_of(&alder, "a"), "delivered");
    assert_eq!(state_of(&alder, "d/b"), "queued");
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        1,
        "the same bundle"
    );
    assert!(alder.spool().take_receipt(&birch.receipt()).unwrap());
    assert_eq!(state_of(&alder, "d/b"), "delivered");
    // What is sent now comes after it.
    birch.fetch(&alder, alder.drop_file("a", b"two"));
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
    let newest = &alder.spool().outbound(None, 1)[0];
    assert_eq!(newest.path, "a");
}
