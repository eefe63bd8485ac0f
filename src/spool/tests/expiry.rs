//! Bundles whose lifetime ends.

use super::*;
use crate::spool::ledger::expiry::Reading;

impl Node {
    /// The machine says so from now on, and nobody has looked yet.
    fn reads(&self, boot: &str, uptime: u64) -> Reading {
        let reading = Reading {
            boot: boot.to_owned(),
            uptime,
        };
        self.spool().ledger.ageing.lock().fixed = Some(reading.clone());
        reading
    }

    /// The machine has been up for so long, in this boot.
    fn up(&self, boot: &str, uptime: u64) {
        let reading = self.reads(boot, uptime * 1000);
        self.spool().ledger.advance_age(reading, false).unwrap();
        self.spool().expire_due().unwrap();
    }

    fn shown_state(&self, bundle: BundleId) -> Stage {
        let rows = self.spool().outbound(None, 99);
        let row = rows.into_iter().find(|r| r.bundle == bundle.to_string());
        row.unwrap().state
    }

    fn recipient_state(&self, bundle: BundleId, peer: &Self) -> Stage {
        let rows = self.spool().outbound(None, 99);
        let row = rows.into_iter().find(|r| r.bundle == bundle.to_string());
        let mut recipients = row.unwrap().recipients.into_iter();
        let found = recipients.find(|r| r.id == peer.id().to_string());
        found.unwrap().state
    }
}

/// The lifetime these nodes give, and a second more than none.
const LIFE: u64 = 3600;
const SLACK: u64 = 1;

#[test]
fn nothing_is_offered_or_served_from_the_end_on_also_before_somebody_looked() {
    let (alder, birch) = pair();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", &pattern(1000));
    alder.reads("x", LIFE * 1000 - 1);
    assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
    assert!(alder.spool().open_content(bundle, 0, birch.id()).is_ok());
    alder.reads("x", LIFE * 1000);
    assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
    assert!(alder.spool().open_content(bundle, 0, birch.id()).is_err());
    alder.up("x", LIFE);
    assert_eq!(alder.shown_state(bundle), "expired");
}

#[test]
fn each_of_many_bundles_ends_at_its_time() {
    let (alder, _birch) = pair();
    let mut bundles = Vec::new();
    for n in 0..1100 {
        alder.reads("x", n * 1000);
        let id = BundleId(Digest::of(&n.to_be_bytes()).0);
        let mut batch = journal::Batch::default();
        alder.spool().ledger.set_deadline(id, LIFE, &mut batch);
        alder.spool().journal.submit(batch).unwrap();
        bundles.push(id);
    }
    let left = || {
        let rows = alder
            .spool()
            .journal
            .rows(ledger::probe::DEADLINES.all(), 9999);
        rows.unwrap().len()
    };
    for n in [0, 1, 500, 1050, 1099] {
        alder.up("x", LIFE + n - 1);
        assert_eq!(left() as u64, 1100 - n, "before {n}");
        alder.up("x", LIFE + n);
        assert_eq!(left() as u64, 1100 - n - 1, "at {n}");
    }
}

#[test]
fn a_bundle_expires_by_age_and_its_recipients_are_told() {
    let (alder, birch) = pair();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", &pattern(1000));
    alder.up("x", LIFE - 1);
    assert!(
        alder.spool().ledger.is_pending(bundle, birch.id()),
        "not a second early"
    );
    alder.up("x", LIFE + SLACK);
    assert_eq!(alder.shown_state(bundle), "expired");
    assert_eq!(
        alder.spool().outbox_state(&rel("f"), alder.ino("f")).word(),
        "expired"
    );
    assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
    let told = alder
        .spool()
        .ledger
        .cancels_owed(birch.id(), None, 9)
        .unwrap();
    assert!(birch.spool().take_cancel(&told[0], alder.id()).unwrap());
    let offered = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap();
    assert!(
        matches!(&offered, Offered::Refused(why) if why == "expired at its origin"),
        "{offered:?}"
    );
    let rows = birch.spool().inbound(None, 9);
    assert_eq!(rows[0].state, "expired");
}

#[test]
fn what_was_delivered_or_has_expired_is_not_ended_again() {
    let (alder, birch) = pair();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    alder.up("x", LIFE + SLACK);
    assert_eq!(alder.shown_state(bundle), "delivered");
    assert_eq!(
        alder
            .spool()
            .ledger
            .cancels_owed(birch.id(), None, 9)
            .unwrap(),
        []
    );
}

/// The deadline goes when all is final: a bundle that was owed again lived for ever.
#[test]
fn what_a_late_joiner_is_owed_expires() {
    let (alder, birch) = pair();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let joined = LIFE + SLACK;
    alder.up("x", joined);
    let cedar = Node::new();
    alder.knows(&cedar, "cedar");
    alder.up("x", joined + LIFE - 1);
    assert!(
        alder.spool().ledger.is_pending(bundle, cedar.id()),
        "it has its whole lifetime from then on"
    );
    alder.up("x", joined + LIFE + SLACK);
    assert_eq!(alder.recipient_state(bundle, &cedar), "expired");
    assert_eq!(alder.recipient_state(bundle, &birch), "delivered");
    assert_eq!(
        alder.spool().ledger.pending(cedar.id(), None, 9).unwrap(),
        []
    );
}

#[test]
fn what_is_tried_again_after_its_end_expires() {
    let (alder, birch) = pair();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", b"x");
    let refused = DeliveryState::Refused("too large".into());
    alder
        .spool()
        .set_delivery(bundle, birch.id(), refused)
        .unwrap();
    let tried = LIFE + SLACK;
    alder.up("x", tried);
    assert_eq!(alder.recipient_state(bundle, &birch), "refused");
    let again = alder.spool().retry(bundle, None).unwrap();
    assert_eq!(again, crate::spool::ledger::cancel::Retried::Asked(1));
    alder.up("x", tried + LIFE - 1);
    assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
    alder.up("x", tried + LIFE + SLACK);
    assert_eq!(alder.recipient_state(bundle, &birch), "expired");
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
}

#[test]
fn another_boot_and_a_wrong_clock_make_no_bundle_older() {
    let (alder, birch) = pair();
    alder.up("x", 1000);
    let bundle = alder.drop_file("f", b"x");
    // Sealed in 1970 or next month by the clock on the wall: it is shown, and counts for nothing.
    for clock in [0, now_secs() + 31 * 24 * 3600] {
        alder.spool().ledger.reclock(|_| clock);
        alder.up("x", 1000 + LIFE - 1);
        assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
    }
    // An uptime of years in another boot says nothing of the time between.
    alder.up("y", 1_000_000_000);
    assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
    alder.up("y", 1_000_000_000 + SLACK);
    assert_eq!(alder.shown_state(bundle), "expired");
}

#[test]
fn the_age_goes_on_after_a_restart_and_an_orphan_expires_too() {
    let mut alder = Node::new();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", b"x");
    alder.up("x", 3000);
    alder.stop();
    alder.start();
    alder.up("x", 0);
    alder.up("x", LIFE - 3000 - 120);
    assert_eq!(alder.shown_state(bundle), "queued");
    alder.up("x", LIFE - 3000 + SLACK);
    assert_eq!(alder.shown_state(bundle), "expired");
    let birch = Node::new();
    alder.knows(&birch, "birch");
    assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
}

#[test]
fn a_cancel_is_remembered_for_longer_than_its_bundle_could_live() {
    let (alder, birch) = pair();
    birch.up("x", 0);
    let bundle = alder.drop_file("f", b"x");
    alder.spool().cancel(bundle).unwrap();
    let told = alder
        .spool()
        .ledger
        .cancels_owed(birch.id(), None, 9)
        .unwrap();
    birch.spool().take_cancel(&told[0], alder.id()).unwrap();
    birch.up("x", 59 * 24 * 3600);
    assert!(birch.spool().ledger.ended(bundle, alder.id()).is_some());
    birch.up("x", 60 * 24 * 3600 + SLACK);
    assert!(
        birch.spool().ledger.ended(bundle, alder.id()).is_none(),
        "no growth"
    );
}

#[test]
fn who_keeps_a_bundle_for_others_gives_it_to_nobody_after_its_end() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    birch.knows(&cedar, "cedar");
    alder.knows(&cedar, "cedar");
    alder.up("x", 0);
    birch.up("y", 50);
    let bundle = alder.drop_file("f", b"x");
    let manifest = alder.manifest(bundle);
    alder.reads("x", 3_000_000);
    assert_eq!(alder.spool().ledger.age_of(&manifest), 3_000_000);
    // A third says what it likes; the origin's word counts.
    for (from, age) in [(cedar.id(), 0), (alder.id(), 3_000_000), (cedar.id(), 1)] {
        birch.spool().ledger.hear_age(&manifest, from, age);
    }
    birch.fetch(&alder, bundle);
    birch.up("y", 50 + 599);
    assert!(birch.spool().ledger.kept(bundle).unwrap().is_some());
    assert_eq!(birch.spool().ledger.age_of(&manifest), 3_599_000);
    birch.up("y", 50 + 600);
    assert!(birch.spool().ledger.kept(bundle).unwrap().is_none());
    assert_eq!(fs::read(birch.inbox("f")).unwrap(), b"x", "it is shown on");
    let rows = birch
        .spool()
        .journal
        .rows(ledger::probe::DEADLINES.all(), 9);
    assert_eq!(rows.unwrap().len(), 0);
}

fn is_refused<T>(given: &Result<T, ServeError>) -> bool {
    matches!(given, Err(ServeError::NotHeld))
}

/// A slow peer reads one chunk for minutes.
#[test]
fn who_began_to_read_before_the_end_gets_nothing_after_it() {
    let (alder, birch) = pair();
    alder.up("x", 0);
    let bundle = alder.drop_file("f", &pattern(1000));
    let mut reader = alder.spool().open_content(bundle, 0, birch.id()).unwrap();
    alder.reads("x", LIFE * 1000 - 1);
    assert!(reader.read(0, 10).is_ok());
    alder.reads("x", LIFE * 1000);
    assert!(is_refused(&reader.read(10, 10)));
    alder.up("x", LIFE);
    assert!(is_refused(&reader.read(10, 10)), "nor when it is recorded");
}

/// Birch is offered a file of three chunks by alder, of which cedar is to have it too, 600 s before its end.
fn offered_late() -> (Node, Node, Node, VerifiedManifest, Vec<u8>) {
    let (alder, birch) = pair();
    let cedar = Node::new();
    birch.knows(&cedar, "cedar");
    alder.knows(&cedar, "cedar");
    alder.up("x", 0);
    birch.up("y", 50);
    let bytes = pattern(3 * 1024 * 1024);
    let manifest = alder.manifest(alder.drop_file("f", &bytes));
    birch
        .spool()
        .ledger
        .hear_age(&manifest, alder.id(), 3_000_000);
    (alder, birch, cedar, manifest, bytes)
}

#[test]
fn what_arrives_is_passed_on_to_nobody_from_the_end_on() {
    let (alder, birch, cedar, manifest, bytes) = offered_late();
    let end = birch.spool().ledger.end_of(&manifest);
    let offered = birch.spool().offered(manifest.clone(), alder.id());
    let Offered::Wanted(mut incoming) = offered.unwrap() else {
        panic!("not wanted")
    };
    let first = 1024 * 1024;
    incoming.accept_chunk(0, 0, &bytes[..first]).unwrap();
    let open = || birch.spool().open_arrived(&manifest, 0, cedar.id(), end);
    birch.reads("y", 650_000 - 1);
    let mut early = open().unwrap();
    assert!(early.read(0, first).is_ok());
    birch.reads("y", 650_000);
    assert!(is_refused(&open()) && is_refused(&early.read(0, first)));
    // It may arrive all the same: its origin has not ended it.
    incoming
        .accept_chunk(0, 1024 * 1024, &bytes[first..2 * first])
        .unwrap();
}

/// Its origin closes it, the user removes it: then no row says when it ends.
#[test]
fn what_has_arrived_is_passed_on_to_nobody_from_the_end_on_though_no_deadline_is_left() {
    let (alder, birch, cedar, manifest, bytes) = offered_late();
    let end = birch.spool().ledger.end_of(&manifest);
    birch.fetch(&alder, manifest.id());
    assert_eq!(
        birch.spool().ledger.end_of(&manifest),
        end,
        "as old as before"
    );
    let open = || birch.spool().open_arrived(&manifest, 0, cedar.id(), end);
    birch.reads("y", 650_000 - 1);
    let says = crate::spool::OriginSays::Closed;
    birch
        .spool()
        .custodian
        .origin_says(alder.id(), &[manifest.id()], says)
        .unwrap();
    let mut whole = open().unwrap();
    assert!(whole.read(0, bytes.len()).is_ok());
    birch
        .spool()
        .custodian
        .end_custody(manifest.id(), alder.id())
        .unwrap();
    let mut rows = journal::Batch::default();
    rows.remove(ledger::probe::KEPT, &manifest.id());
    birch.spool().journal.submit(rows).unwrap();
    birch.reads("y", 650_000);
    assert!(is_refused(&open()) && is_refused(&whole.read(0, bytes.len())));
}

#[test]
fn who_has_it_is_given_nothing_more_of_it() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    assert!(alder.spool().open_content(bundle, 0, birch.id()).is_ok());
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let again = alder.spool().open_content(bundle, 0, birch.id());
    assert!(is_refused(&again));
}

/// A deadline is known before its row is there: who took it then found nothing to end, and nobody looked again.
#[test]
fn a_deadline_that_is_due_before_its_row_is_there_is_not_lost() {
    let node = Node::new();
    node.up("x", 0);
    let id = BundleId([7; 32]);
    let mut batch = journal::Batch::default();
    let decide = node.spool().decide();
    node.spool().ledger.set_deadline(id, 0, &mut batch);
    std::thread::scope(|scope| {
        let ends = scope.spawn(|| node.spool().expire_due().unwrap());
        // It waits for the lock; one that does not would be through by now.
        for _ in 0..10_000 {
            if ends.is_finished() {
                break;
            }
            std::thread::yield_now();
        }
        node.spool().journal.submit(batch).unwrap();
        assert!(node.spool().ledger.is_over_age(id), "at once");
        drop(decide);
        ends.join().unwrap();
    });
    node.spool().expire_due().unwrap();
    assert_eq!(node.spool().ledger.deadline_of(id).unwrap(), None);
}

#[test]
fn after_a_restart_what_is_owed_and_what_is_kept_for_others_ends_at_its_time() {
    let (mut alder, mut birch) = pair();
    alder.up("x", 0);
    birch.up("y", 0);
    let given = alder.drop_file("given", b"x");
    birch.fetch(&alder, given);
    let owed = alder.drop_file("owed", b"y");
    for node in [&mut alder, &mut birch] {
        node.stop();
        node.start();
    }
    // Another boot to these clocks: what was before counts, the time between does not.
    alder.up("x", 10);
    birch.up("y", 10);
    alder.up("x", 10 + LIFE - 60);
    birch.up("y", 10 + LIFE - 60);
    assert_eq!(alder.shown_state(owed), "queued");
    assert!(birch.spool().ledger.kept(given).unwrap().is_some());
    alder.up("x", 10 + LIFE + SLACK);
    birch.up("y", 10 + LIFE + SLACK);
    assert_eq!(alder.shown_state(owed), "expired");
    assert!(birch.spool().ledger.kept(given).unwrap().is_none());
}
