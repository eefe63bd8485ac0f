//! Bundles whose lifetime ends.

use super::super::expiry::Reading;
use super::*;

impl Node {
    /// The machine says so from now on, and nobody has looked yet.
    fn reads(&self, boot: &str, uptime: u64) -> Reading {
        let reading = Reading {
            boot: boot.to_owned(),
            uptime,
        };
        self.spool().policy.ageing.lock().fixed = Some(reading.clone());
        reading
    }

    /// The machine has been up for so long, in this boot.
    fn up(&self, boot: &str, uptime: u64) {
        let reading = self.reads(boot, uptime * 1000);
        self.spool().advance_age(reading, false).unwrap();
        self.spool().expire_due().unwrap();
    }

    fn shown_state(&self, bundle: BundleId) -> String {
        let rows = self.spool().outbound(None, 99);
        let row = rows.into_iter().find(|r| r.bundle == bundle.to_string());
        row.unwrap().state
    }

    fn recipient_state(&self, bundle: BundleId, peer: &Self) -> String {
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
    assert!(alder.spool().is_pending(bundle, birch.id()));
    assert!(alder.spool().open_content(bundle, 0, birch.id()).is_ok());
    alder.reads("x", LIFE * 1000);
    assert!(!alder.spool().is_pending(bundle, birch.id()));
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
        alder.spool().set_deadline(id, LIFE, &mut batch);
        alder.spool().journal.submit(batch).unwrap();
        bundles.push(id);
    }
    let left = || {
        let rows = alder
            .spool()
            .journal
            .scan::<u64>(tables::DEADLINES, &[], None, 9999);
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
        alder.spool().is_pending(bundle, birch.id()),
        "not a second early"
    );
    alder.up("x", LIFE + SLACK);
    assert_eq!(alder.shown_state(bundle), "expired");
    assert_eq!(
        alder.spool().outbox_state(&rel("f"), alder.ino("f")).state,
        "expired"
    );
    assert!(!alder.spool().is_pending(bundle, birch.id()));
    let told = alder.spool().cancels_owed(birch.id(), None, 9).unwrap();
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
    assert_eq!(alder.spool().cancels_owed(birch.id(), None, 9).unwrap(), []);
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
        alder.spool().is_pending(bundle, cedar.id()),
        "it has its whole lifetime from then on"
    );
    alder.up("x", joined + LIFE + SLACK);
    assert_eq!(alder.recipient_state(bundle, &cedar), "expired");
    assert_eq!(alder.recipient_state(bundle, &birch), "delivered");
    assert_eq!(alder.spool().pending(cedar.id(), None, 9).unwrap(), []);
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
    assert_eq!(again, cancel::Retried::Asked(1));
    alder.up("x", tried + LIFE - 1);
    assert!(alder.spool().is_pending(bundle, birch.id()));
    alder.up("x", tried + LIFE + SLACK);
    assert_eq!(alder.recipient_state(bundle, &birch), "expired");
    assert_eq!(alder.spool().pending(birch.id(), None, 9).unwrap(), []);
}

#[test]
fn another_boot_and_a_wrong_clock_make_no_bundle_older() {
    let (alder, birch) = pair();
    alder.up("x", 1000);
    let bundle = alder.drop_file("f", b"x");
    // Sealed in 1970 or next month by the clock on the wall: it is shown, and counts for nothing.
    let journal = &alder.spool().journal;
    for clock in [0, now_secs() + 31 * 24 * 3600] {
        let mut row: tables::BundleRow = journal.get(tables::BUNDLES, &bundle.0).unwrap().unwrap();
        row.sealed_at = clock;
        let mut batch = journal::Batch::default();
        batch.put(tables::BUNDLES, &bundle.0, &row);
        journal.submit(batch).unwrap();
        alder.up("x", 1000 + LIFE - 1);
        assert!(alder.spool().is_pending(bundle, birch.id()));
    }
    // An uptime of years in another boot says nothing of the time between.
    alder.up("y", 1_000_000_000);
    assert!(alder.spool().is_pending(bundle, birch.id()));
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
    assert!(!alder.spool().is_pending(bundle, birch.id()));
}

#[test]
fn a_cancel_is_remembered_for_longer_than_its_bundle_could_live() {
    let (alder, birch) = pair();
    birch.up("x", 0);
    let bundle = alder.drop_file("f", b"x");
    alder.spool().cancel(bundle).unwrap();
    let told = alder.spool().cancels_owed(birch.id(), None, 9).unwrap();
    birch.spool().take_cancel(&told[0], alder.id()).unwrap();
    birch.up("x", 59 * 24 * 3600);
    assert!(birch.spool().ended(bundle, alder.id()).is_some());
    birch.up("x", 60 * 24 * 3600 + SLACK);
    assert!(
        birch.spool().ended(bundle, alder.id()).is_none(),
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
    assert_eq!(alder.spool().age_of(&manifest), 3_000_000);
    // A third says what it likes; the origin's word counts.
    for (from, age) in [(cedar.id(), 0), (alder.id(), 3_000_000), (cedar.id(), 1)] {
        birch.spool().hear_age(&manifest, from, age);
    }
    birch.fetch(&alder, bundle);
    birch.up("y", 50 + 599);
    assert!(birch.spool().kept(bundle).unwrap().is_some());
    assert_eq!(birch.spool().age_of(&manifest), 3_599_000);
    birch.up("y", 50 + 600);
    assert!(birch.spool().kept(bundle).unwrap().is_none());
    assert_eq!(fs::read(birch.inbox("f")).unwrap(), b"x", "it is shown on");
    let rows = birch
        .spool()
        .journal
        .scan::<u64>(tables::DEADLINES, &[], None, 9);
    assert_eq!(rows.unwrap().len(), 0);
}
