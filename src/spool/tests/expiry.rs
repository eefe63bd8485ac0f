//! Bundles whose lifetime ends.

use super::super::expiry::Reading;
use super::*;

impl Node {
    /// The machine has been up for so long, in this boot.
    fn up(&self, boot: &str, uptime: u64) {
        let reading = Reading {
            boot: boot.to_owned(),
            uptime,
        };
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

/// The lifetime these nodes give, and what the age is rounded up by.
const LIFE: u64 = 3600;
const SLACK: u64 = 61;

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
