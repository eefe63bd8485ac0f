//! Custody: bundles of another that are kept for, given to and settled with further recipients.

use super::*;
use crate::bundle::Scope;
use crate::spool::custody::probe::{CARRIED, RELAYS, WATCHED};
use crate::spool::journal::{Key, Table};
use crate::spool::ledger::probe::{DELIVERIES, KEPT, PENDING};

const NOBODY: fn(PeerId) -> bool = |_| false;
const EVERYBODY: fn(PeerId) -> bool = |_| true;

/// Three members that know each other.
fn three() -> (Node, Node, Node) {
    let (alder, birch) = pair();
    let cedar = Node::new();
    alder.knows(&cedar, "cedar");
    birch.knows(&cedar, "cedar");
    cedar.knows(&alder, "alder");
    cedar.knows(&birch, "birch");
    (alder, birch, cedar)
}

impl Node {
    fn keys<K: Key<Read = K>, V>(&self, table: Table<K, V>) -> usize {
        let keys = self.spool().journal.keys(table.all(), 999);
        keys.unwrap().len()
    }

    fn put_watched(&self, bundle: BundleId, row: &(PeerId, crate::delivery::custody::Stage)) {
        let mut batch = journal::Batch::default();
        batch.insert(WATCHED, &bundle, row);
        self.spool().journal.submit(batch).unwrap();
    }

    /// What is left of custody: watched, carried, receipts, deliveries, pending, content needed.
    fn left(&self) -> [usize; 6] {
        [
            self.keys(WATCHED),
            self.keys(CARRIED),
            self.keys(RELAYS),
            self.keys(DELIVERIES),
            self.keys(PENDING),
            self.spool().content.needs(),
        ]
    }

    fn pass(&self, connected: fn(PeerId) -> bool) -> Vec<(PeerId, Vec<BundleId>)> {
        self.spool().custodian.set_custody_delay(Duration::ZERO);
        self.spool().custodian.custody_pass(&connected).unwrap()
    }

    fn owes(&self, peer: &Self) -> Vec<BundleId> {
        let rows = self.spool().ledger.pending(peer.id(), None, 99).unwrap();
        rows.into_iter().map(|(_, bundle)| bundle).collect()
    }

    fn gives_receipt_to(&self, other: &Self) {
        assert!(other.spool().take_receipt(&self.receipt()).unwrap());
    }

    fn state_of(&self, bundle: BundleId, peer: &Self) -> Stage {
        let rows = self.spool().outbound(None, 99);
        let row = rows
            .into_iter()
            .find(|row| row.bundle == bundle.to_string());
        let recipients = row.unwrap().recipients;
        let found = recipients
            .into_iter()
            .find(|r| r.id == peer.id().to_string());
        found.unwrap().state
    }

    /// Takes a small bundle whose bytes are at hand.
    fn take_bytes(&self, manifest: &VerifiedManifest, bytes: &[u8], from: &Self) {
        let Offered::Wanted(mut incoming) =
            self.spool().offered(manifest.clone(), from.id()).unwrap()
        else {
            panic!("not wanted")
        };
        if !incoming.missing(0).is_empty() {
            incoming.accept_chunk(0, 0, bytes).unwrap();
        }
        incoming.finish().unwrap().publish().unwrap();
    }

    fn removes(&self, path: &str) {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(self.inbox(path)).unwrap();
        self.spool().may_remove(meta.ino(), meta.len()).unwrap();
        self.spool().inbox_unlink(&rel(path)).unwrap();
    }
}

#[test]
fn s11_another_holder_gives_it_and_the_receipt_finds_its_way_back() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", &pattern(100_000));
    birch.fetch(&alder, bundle);
    birch.gives_receipt_to(&alder);
    assert_eq!(birch.owes(&cedar), [], "its origin may close it first");
    assert_eq!(birch.pass(NOBODY), []);
    assert_eq!(birch.owes(&cedar), [bundle]);

    assert_eq!(cedar.fetch(&birch, bundle), 100_000);
    let receipt = cedar.receipt();
    assert!(birch.spool().take_receipt(&receipt).unwrap());
    assert_eq!(birch.owes(&cedar), []);
    assert_eq!(birch.pass(NOBODY), [(alder.id(), vec![bundle])]);
    assert_eq!(
        birch.spool().content.needs(),
        0,
        "nobody needs the content any more"
    );
    assert_eq!(
        birch
            .spool()
            .custodian
            .carried(alder.id(), None, 9)
            .unwrap(),
        [bundle]
    );

    let relays = birch.spool().custodian.relays(alder.id(), None, 9).unwrap();
    assert_eq!(relays, [receipt]);
    assert_eq!(alder.state_of(bundle, &cedar), "queued");
    assert!(alder.spool().take_receipt(&relays[0]).unwrap());
    assert_eq!(alder.state_of(bundle, &cedar), "delivered");
    let (closed, open) = alder
        .spool()
        .ledger
        .closed_of(birch.id(), &[bundle])
        .unwrap();
    assert_eq!((closed, open), (vec![bundle], vec![]));
    birch
        .spool()
        .custodian
        .origin_says(alder.id(), &[bundle], OriginSays::Closed)
        .unwrap();
    assert_eq!(birch.left(), [0; 6]);
    assert_eq!(birch.keys(KEPT), 1, "still shown: for who joins later");
    birch.removes("f");
    assert_eq!(birch.keys(KEPT), 0);
}

#[test]
fn a_bundle_that_its_origin_closes_in_time_leaves_nothing() {
    let (alder, birch, _cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    assert_eq!(birch.left(), [1, 0, 0, 0, 0, 1]);
    birch.spool().custodian.custody_pass(&EVERYBODY).unwrap();
    assert_eq!(birch.left(), [1, 0, 0, 0, 0, 1], "not due yet");
    birch
        .spool()
        .custodian
        .origin_says(alder.id(), &[bundle], OriginSays::Closed)
        .unwrap();
    assert_eq!(birch.left(), [0; 6]);
    assert!(birch.inbox("f").exists());
}

#[test]
fn between_two_members_nothing_is_watched() {
    let (alder, birch) = pair();
    birch.fetch(&alder, alder.drop_file("f", b"x"));
    assert_eq!((birch.left(), birch.keys(KEPT)), ([0; 6], 1));
    birch.spool().custodian.set_late_joiners(false);
    birch.fetch(&alder, alder.drop_file("g", b"y"));
    assert_eq!((birch.left(), birch.keys(KEPT)), ([0; 6], 1));
}

#[test]
fn an_origin_that_is_there_is_asked_and_one_that_does_not_answer_is_not_waited_for() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    assert_eq!(birch.pass(EVERYBODY), []);
    // The delay counts from the settling, and was the usual one then.
    let row = (
        alder.id(),
        crate::delivery::custody::Stage::Watching(Duration::ZERO),
    );
    birch.put_watched(bundle, &row);
    assert_eq!(birch.pass(EVERYBODY), [(alder.id(), vec![bundle])]);
    assert_eq!(birch.owes(&cedar), []);
    let row = (
        alder.id(),
        crate::delivery::custody::Stage::Asked(Duration::ZERO),
    );
    birch.put_watched(bundle, &row);
    assert_eq!(birch.pass(EVERYBODY), []);
    assert_eq!(birch.owes(&cedar), [bundle]);
}

#[test]
fn an_origin_that_says_open_has_it_carried_at_once() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    let (closed, open) = alder
        .spool()
        .ledger
        .closed_of(birch.id(), &[bundle])
        .unwrap();
    assert_eq!((closed, open), (vec![], vec![bundle]));
    birch
        .spool()
        .custodian
        .origin_says(cedar.id(), &[bundle], OriginSays::Open)
        .unwrap();
    birch
        .spool()
        .custodian
        .origin_says(cedar.id(), &[bundle], OriginSays::Closed)
        .unwrap();
    assert_eq!(
        birch.left(),
        [1, 0, 0, 0, 0, 1],
        "only its origin may say so"
    );
    birch
        .spool()
        .custodian
        .origin_says(alder.id(), &[bundle], OriginSays::Open)
        .unwrap();
    assert_eq!(birch.owes(&cedar), [bundle]);
}

#[test]
fn what_the_user_removes_is_still_kept_for_the_others() {
    for early in [true, false] {
        let (alder, birch, cedar) = three();
        let bundle = alder.drop_file("f", &pattern(100_000));
        birch.fetch(&alder, bundle);
        if early {
            birch.removes("f");
        }
        birch.pass(NOBODY);
        if !early {
            birch.removes("f");
        }
        assert_eq!(birch.spool().content.held_bytes(), 100_000);
        assert_eq!(cedar.fetch(&birch, bundle), 100_000);
        cedar.gives_receipt_to(&birch);
        assert_eq!(birch.spool().content.held_bytes(), 0);
        birch
            .spool()
            .custodian
            .origin_says(alder.id(), &[bundle], OriginSays::Closed)
            .unwrap();
        assert_eq!((birch.left(), birch.keys(KEPT)), ([0; 6], 0));
    }
}

#[test]
fn without_room_custody_ends_visibly_and_the_user_gets_no_error() {
    let (alder, mut birch, cedar) = three();
    birch.stop();
    birch.limits.max_bytes = Some(150_000);
    birch.start();
    let (one, two) = (
        alder.drop_file("one", &pattern(100_000)),
        alder.drop_file("two", &pattern(100_001)),
    );
    birch.fetch(&alder, one);
    birch.fetch(&alder, two);
    birch.pass(NOBODY);
    assert_eq!(birch.owes(&cedar), [one, two]);
    birch.removes("one");
    assert_eq!(birch.spool().content.held_bytes(), 100_000);
    birch.removes("two");
    assert_eq!(birch.owes(&cedar), [one]);
    let rows = birch.spool().inbound(None, 9);
    let row = |bundle: BundleId| rows.iter().find(|row| row.bundle == bundle.to_string());
    let shown = row(two).unwrap();
    assert_eq!(shown.state, "consumed");
    assert!(
        shown
            .error
            .as_ref()
            .unwrap()
            .contains("not kept for the other members")
    );
    assert_eq!(row(one).unwrap().error, None);
    assert!(
        alder.spool().ledger.is_pending(two, cedar.id()),
        "its origin still owes it"
    );
}

#[test]
fn what_is_kept_for_others_makes_room_for_what_arrives_and_for_our_own() {
    let (alder, mut birch, cedar) = three();
    birch.stop();
    birch.limits.max_bytes = Some(150_000);
    birch.start();
    let one = alder.drop_file("one", &pattern(100_000));
    birch.fetch(&alder, one);
    birch.pass(NOBODY);
    birch.removes("one");
    assert_eq!(birch.spool().content.held_bytes(), 100_000);
    birch.drop_file("own", &pattern(120_000));
    let ino = birch.ino("own");
    birch.spool().may_remove(ino, 120_000).unwrap();
    assert_eq!(
        (birch.spool().content.held_bytes(), birch.owes(&cedar).len()),
        (0, 1)
    );

    let two = alder.drop_file("two", &pattern(100_002));
    birch.fetch(&alder, two);
    birch.pass(NOBODY);
    birch.removes("two");
    assert_eq!(birch.spool().content.held_bytes(), 100_002);
    let three = alder.drop_file("three", &pattern(110_000));
    birch.fetch(&alder, three);
    assert!(birch.inbox("three").exists());
    assert_eq!(birch.spool().content.held_bytes(), 0);
}

#[test]
fn a_newer_version_ends_custody_of_the_older_which_never_shows_over_it() {
    let (alder, birch, cedar) = three();
    let old = alder.drop_file("f", b"old");
    birch.fetch(&alder, old);
    let manifest = alder.manifest(old);
    let new = alder.drop_file("f", b"newer");
    cedar.fetch(&alder, new);
    cedar.take_bytes(&manifest, b"old", &birch);
    assert_eq!(fs::read(cedar.inbox("f")).unwrap(), b"newer");

    birch.pass(NOBODY);
    assert_eq!(birch.owes(&cedar), [old]);
    birch.fetch(&alder, new);
    assert_eq!(birch.owes(&cedar), []);
    birch.pass(NOBODY);
    assert_eq!(birch.owes(&cedar), [new]);
    assert_eq!(birch.keys(KEPT), 1);
}

/// Each recipient that was gone waited again at the next look, if there was another one.
#[test]
fn a_newer_version_ends_custody_of_the_older_for_all_who_wait_for_it() {
    for carried in [true, false] {
        let (alder, birch, cedar) = three();
        let dogwood = Node::new();
        alder.knows(&dogwood, "dogwood");
        birch.knows(&dogwood, "dogwood");
        let old = alder.drop_file("f", b"old");
        birch.fetch(&alder, old);
        if carried {
            birch.pass(NOBODY);
            assert_eq!(birch.owes(&cedar), [old]);
            assert_eq!(birch.owes(&dogwood), [old]);
        }
        let new = alder.drop_file("f", b"newer");
        birch.fetch(&alder, new);
        for other in [&cedar, &dogwood] {
            assert_eq!(birch.owes(other), []);
            assert!(!birch.spool().ledger.is_pending(old, other.id()));
        }
        assert_eq!(birch.left(), [1, 0, 0, 0, 0, 1], "the new one is watched");
        assert_eq!(birch.keys(KEPT), 1);
        birch.pass(NOBODY);
        assert_eq!(birch.owes(&cedar), [new]);
        assert_eq!(birch.owes(&dogwood), [new]);
    }
}

#[test]
fn a_bundle_settled_once_is_never_shown_again_whoever_offers_it() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    cedar.fetch(&birch, bundle);
    cedar.receipt();
    cedar.removes("f");
    for from in [&alder, &birch] {
        let manifest = birch.manifest(bundle);
        let again = cedar.spool().offered(manifest, from.id()).unwrap();
        assert!(matches!(again, Offered::Settled(_)), "{again:?}");
    }
    assert!(!cedar.inbox("f").exists());
}

#[test]
fn custody_survives_restarts_at_every_stage() {
    let (alder, mut birch, cedar) = three();
    let bundle = alder.drop_file("f", &pattern(100_000));
    birch.fetch(&alder, bundle);
    birch.removes("f");
    birch.stop();
    birch.start();
    assert_eq!(birch.left(), [1, 0, 0, 0, 0, 1]);
    birch.pass(NOBODY);
    birch.stop();
    birch.start();
    assert_eq!(birch.owes(&cedar), [bundle]);
    assert_eq!(cedar.fetch(&birch, bundle), 100_000);
    cedar.gives_receipt_to(&birch);
    birch.stop();
    birch.start();
    assert_eq!(
        birch
            .spool()
            .custodian
            .relays(alder.id(), None, 9)
            .unwrap()
            .len(),
        1
    );
    assert_eq!(birch.spool().content.held_bytes(), 0);
}

#[test]
fn nobody_outside_the_scope_learns_anything_of_a_bundle_that_is_carried() {
    let (alder, birch, cedar) = three();
    let dogwood = Node::new();
    for node in [&alder, &birch, &cedar] {
        node.knows(&dogwood, "dogwood");
    }
    let all = alder
        .manifest(alder.drop_file("f", b"secret"))
        .manifest()
        .clone();
    let scoped = crate::bundle::Manifest {
        scope: Scope::Ids(vec![birch.id(), cedar.id()]),
        ..all
    };
    let manifest = scoped.sign(&alder.identity);
    let bundle = manifest.id();
    birch.take_bytes(&manifest, b"secret", &alder);
    let receipt = birch.receipt();
    birch.pass(NOBODY);
    assert_eq!(
        (birch.owes(&cedar), birch.owes(&dogwood)),
        (vec![bundle], vec![])
    );
    assert!(birch.spool().open_content(bundle, 0, cedar.id()).is_ok());
    let refused = birch.spool().open_content(bundle, 0, dogwood.id());
    assert!(matches!(refused, Err(ServeError::NotHeld)), "{refused:?}");
    for knows in [alder.id(), cedar.id()] {
        assert_eq!(
            birch.spool().ledger.receipt_for(bundle, knows),
            Some(receipt.clone())
        );
    }
    assert_eq!(birch.spool().ledger.receipt_for(bundle, dogwood.id()), None);
    // Nor may it say that it has it, and so end what others are owed.
    let forged = Receipt::sign(&dogwood.identity, bundle, alder.id());
    birch.spool().take_receipt(&forged).unwrap();
    assert_eq!(birch.keys(RELAYS), 0);
    let newcomer = Node::new();
    birch.knows(&newcomer, "elm");
    assert_eq!(birch.owes(&newcomer), []);
    birch.pass(NOBODY);
    assert_eq!(birch.owes(&newcomer), []);
}

#[test]
fn what_is_published_and_not_durable_is_known_to_those_who_may_know_of_it() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"hello");
    let published = |to: PeerId| birch.spool().ledger.is_published_for(bundle, to);
    assert!(!published(alder.id()));
    birch.fetch(&alder, bundle);
    birch.spool().ledger.volatile.lock().insert(bundle);
    assert!(
        birch
            .spool()
            .ledger
            .receipt_for(bundle, alder.id())
            .is_none()
    );
    assert!(published(alder.id()) && published(cedar.id()));
    let mut scoped = journal::Batch::default();
    scoped.insert(ledger::probe::SCOPED, &bundle, &vec![birch.id()]);
    birch.spool().journal.submit(scoped).unwrap();
    assert!(published(alder.id()) && !published(cedar.id()));
}

#[test]
fn a_receipt_counts_only_if_its_recipient_signed_it() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    let mut forged = Receipt::sign(&birch.identity, bundle, alder.id());
    forged.recipient = cedar.id();
    assert!(!birch.spool().take_receipt(&forged).unwrap());
    let stranger = Receipt::sign(&Identity::generate(), bundle, alder.id());
    birch.spool().take_receipt(&stranger).unwrap();
    assert_eq!((birch.owes(&cedar), birch.keys(RELAYS)), (vec![bundle], 0));
    assert!(!alder.spool().take_receipt(&stranger).unwrap());
}

#[test]
fn who_joins_later_gets_what_a_holder_still_shows_and_nothing_that_was_consumed() {
    let (alder, birch) = pair();
    let shown = alder.drop_file("shown", b"shown");
    let consumed = alder.drop_file("consumed", b"consumed");
    let both = [shown, consumed];
    both.iter().for_each(|bundle| {
        birch.fetch(&alder, *bundle);
    });
    birch.removes("consumed");
    let cedar = Node::new();
    birch.knows(&cedar, "cedar");
    assert_eq!(birch.owes(&cedar), [], "its origin may be there");
    birch.pass(NOBODY);
    assert_eq!(birch.owes(&cedar), [shown]);
    cedar.knows(&birch, "birch");
    cedar.fetch(&birch, shown);
    cedar.gives_receipt_to(&birch);
    alder.knows(&cedar, "cedar");
    let relays = birch.spool().custodian.relays(alder.id(), None, 9).unwrap();
    assert!(alder.spool().take_receipt(&relays[0]).unwrap());
    assert_eq!(alder.state_of(shown, &cedar), "delivered");
    birch
        .spool()
        .custodian
        .origin_says(alder.id(), &both, OriginSays::Closed)
        .unwrap();
    assert_eq!((birch.left(), birch.keys(KEPT)), ([0; 6], 1));
}

/// The row of the first said that it was for nobody else.
#[test]
fn two_who_join_while_the_origin_may_still_give_it_both_get_it() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    let (cedar, dogwood) = (Node::new(), Node::new());
    birch.knows(&cedar, "cedar");
    birch.knows(&dogwood, "dogwood");
    assert_eq!((birch.owes(&cedar), birch.owes(&dogwood)), (vec![], vec![]));
    birch.stop();
    birch.start();
    birch.pass(NOBODY);
    assert_eq!(birch.owes(&cedar), [bundle]);
    assert_eq!(birch.owes(&dogwood), [bundle]);
}

#[test]
fn without_late_joiners_who_joins_later_gets_only_what_waited_for_a_first_member() {
    let alder = Node::new();
    alder.spool().custodian.set_late_joiners(false);
    let orphan = alder.drop_file("orphan", b"sealed while alone");
    let birch = Node::new();
    alder.knows(&birch, "birch");
    assert_eq!(alder.owes(&birch), [orphan]);
    birch.knows(&alder, "alder");
    birch.spool().custodian.set_late_joiners(false);
    birch.fetch(&alder, orphan);
    birch.gives_receipt_to(&alder);
    alder.drop_file("f", b"for birch");
    let cedar = Node::new();
    alder.knows(&cedar, "cedar");
    birch.knows(&cedar, "cedar");
    birch.pass(NOBODY);
    assert_eq!((alder.owes(&cedar), birch.owes(&cedar)), (vec![], vec![]));
    let later = alder.drop_file("g", b"for both");
    assert_eq!(alder.owes(&cedar), [later]);
}

#[test]
fn a_forgotten_member_is_owed_nothing_and_blocks_nothing() {
    let (mut alder, birch, cedar) = three();
    let theirs = birch.drop_file("theirs", b"from birch");
    let bundle = alder.drop_file("f", &pattern(100_000));
    birch.fetch(&alder, bundle);
    birch.gives_receipt_to(&alder);
    alder.fetch(&birch, theirs);
    alder.pass(NOBODY);
    assert_eq!(alder.owes(&cedar).len(), 2);
    fs::remove_file(alder.outbox("f")).unwrap();

    assert_eq!(
        alder.spool().forget(Identity::generate().id()).unwrap(),
        None
    );
    assert_eq!(alder.spool().forget(cedar.id()).unwrap(), Some(2));
    for _ in 0..2 {
        assert_eq!(alder.owes(&cedar), []);
        let row = &alder.spool().outbound(None, 9)[0];
        let recipient = row
            .recipients
            .iter()
            .find(|r| r.id == cedar.id().to_string())
            .unwrap();
        assert_eq!(
            (recipient.name.as_str(), recipient.state.word()),
            ("cedar", "cancelled")
        );
        assert_eq!(recipient.error.as_deref(), Some("forgotten"));
        assert!(recipient.gone);
        assert_eq!(row.state, "delivered", "all who are left have it");
        let digest = Digest::of(&pattern(100_000));
        let shown = alder.spool().bundle_state(bundle, digest);
        assert_eq!(
            (shown.word().as_str(), shown.error),
            ("delivered 1/1", None)
        );
        assert_eq!(
            alder
                .spool()
                .ledger
                .closed_of(birch.id(), &[bundle])
                .unwrap()
                .0,
            [bundle]
        );
        assert_eq!(alder.spool().content.held_bytes(), 0);
        assert_eq!(alder.spool().group.members().len(), 1);
        alder.stop();
        alder.start();
    }
    let cedar_is_called = PeerName::parse("cedar").unwrap();
    let told = |contact| {
        alder
            .spool()
            .member_seen(cedar.id(), &cedar_is_called, &[], contact)
    };
    told(false).unwrap();
    assert_eq!(
        alder.spool().group.members().len(),
        1,
        "hearsay does not bring it back"
    );
    let later = alder.drop_file("g", b"x");
    assert_eq!(alder.spool().ledger.recipients(later), [birch.id()]);
    told(true).unwrap();
    assert_eq!(alder.spool().group.members().len(), 2);
    assert_eq!(
        alder.owes(&cedar),
        [later],
        "as a new member it gets what is still shown"
    );
}

#[test]
fn receipts_for_a_forgotten_origin_are_dropped() {
    let (alder, birch, cedar) = three();
    let dogwood = Node::new();
    birch.knows(&dogwood, "dogwood");
    let (one, two) = (alder.drop_file("one", b"1"), alder.drop_file("two", b"2"));
    for bundle in [one, two] {
        birch.fetch(&alder, bundle);
    }
    birch.pass(NOBODY);
    dogwood.knows(&birch, "birch");
    for bundle in [one, two] {
        cedar.fetch(&birch, bundle);
        cedar.gives_receipt_to(&birch);
    }
    dogwood.fetch(&birch, one);
    dogwood.gives_receipt_to(&birch);
    birch.spool().forget(alder.id()).unwrap();
    assert_eq!(
        birch
            .spool()
            .custodian
            .carried(alder.id(), None, 9)
            .unwrap(),
        [two]
    );
    dogwood.fetch(&birch, two);
    dogwood.gives_receipt_to(&birch);
    assert_eq!(birch.left(), [0; 6]);
}

#[test]
fn who_refuses_a_bundle_of_another_is_not_offered_it_again() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    let refused = DeliveryState::Refused("too large".into());
    birch
        .spool()
        .set_delivery(bundle, cedar.id(), refused)
        .unwrap();
    assert_eq!(birch.owes(&cedar), []);
    assert_eq!(birch.left(), [0; 6]);
    assert!(
        alder.spool().ledger.is_pending(bundle, cedar.id()),
        "that is its origin's to know"
    );
}

#[test]
fn who_refuses_a_bundle_of_another_is_remembered_while_others_wait_for_it() {
    let (alder, birch, cedar) = three();
    let dogwood = Node::new();
    birch.knows(&dogwood, "dogwood");
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    let refused = DeliveryState::Refused("too large".into());
    let ended = birch
        .spool()
        .set_delivery(bundle, cedar.id(), refused.clone());
    ended.unwrap();
    let mut states = birch.spool().ledger.deliveries_of(bundle).unwrap();
    states.retain(|(peer, _)| *peer == cedar.id());
    assert_eq!(states, [(cedar.id(), refused)]);
    assert_eq!(
        (birch.owes(&cedar), birch.owes(&dogwood)),
        (vec![], vec![bundle])
    );
}

#[test]
fn a_cancelled_bundle_is_given_to_nobody_any_more() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    birch
        .spool()
        .custodian
        .end_custody(bundle, cedar.id())
        .unwrap();
    assert_eq!(birch.owes(&cedar), [bundle], "not its word");
    birch
        .spool()
        .custodian
        .end_custody(bundle, alder.id())
        .unwrap();
    assert_eq!((birch.owes(&cedar), birch.left()), (vec![], [0; 6]));
    assert_eq!(birch.spool().counts().outbound_pending, 0);
}

#[test]
fn bundles_of_others_come_after_ours_and_do_not_count_as_ours() {
    let (alder, birch, cedar) = three();
    let theirs = alder.drop_file("theirs", b"x");
    birch.fetch(&alder, theirs);
    birch.pass(NOBODY);
    assert_eq!(birch.spool().counts().outbound_pending, 0);
    let ours = birch.drop_file("ours", b"y");
    assert_eq!(birch.owes(&cedar), [ours, theirs]);
    assert_eq!(birch.spool().counts().outbound_pending, 1);
    assert!(
        birch
            .spool()
            .outbound(None, 9)
            .iter()
            .all(|row| row.path == "ours")
    );
}

#[test]
fn who_gave_it_is_not_offered_it() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch
        .spool()
        .custodian
        .given_by(bundle, &[cedar.id()])
        .unwrap();
    assert_eq!(birch.left(), [0; 6], "nobody else is left");

    let asked = alder.drop_file("h", b"y");
    birch.fetch(&alder, asked);
    cedar.fetch(&alder, asked);
    birch.pass(NOBODY);
    cedar.gives_receipt_to(&birch);
    birch
        .spool()
        .custodian
        .given_by(asked, &[cedar.id()])
        .unwrap();
    assert_eq!(birch.left(), [0; 6], "it tells the origin itself");

    let dogwood = Node::new();
    birch.knows(&dogwood, "dogwood");
    for carried in [false, true] {
        let bundle = alder.drop_file("g", format!("{carried}").as_bytes());
        birch.fetch(&alder, bundle);
        if carried {
            birch.pass(NOBODY);
        }
        birch
            .spool()
            .custodian
            .given_by(bundle, &[cedar.id()])
            .unwrap();
        birch.pass(NOBODY);
        assert_eq!(birch.owes(&cedar), []);
        assert!(birch.owes(&dogwood).contains(&bundle));
    }
}

#[test]
fn an_origin_that_has_forgotten_the_bundle_ends_what_waits_for_it_but_not_what_others_wait_for() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", b"x");
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    let unknown = || {
        birch
            .spool()
            .custodian
            .origin_says(alder.id(), &[bundle], OriginSays::Unknown)
    };
    unknown().unwrap();
    assert_eq!(birch.owes(&cedar), [bundle]);
    cedar.fetch(&birch, bundle);
    cedar.gives_receipt_to(&birch);
    unknown().unwrap();
    assert_eq!(birch.left(), [0; 6]);
    let nothing =
        birch
            .spool()
            .custodian
            .origin_says(alder.id(), &[BundleId([1; 32])], OriginSays::Open);
    assert_eq!(nothing.unwrap(), [BundleId([1; 32])]);
}

#[test]
fn a_cancel_by_the_origin_ends_custody_whoever_tells_of_it() {
    let (alder, birch, cedar) = three();
    let bundle = alder.drop_file("f", &pattern(100_000));
    birch.fetch(&alder, bundle);
    birch.pass(NOBODY);
    birch.removes("f");
    alder.spool().cancel(bundle).unwrap();
    let cancel = alder
        .spool()
        .ledger
        .cancels_owed(cedar.id(), None, 9)
        .unwrap()
        .remove(0);
    birch.spool().take_cancel(&cancel, cedar.id()).unwrap();
    assert_eq!((birch.owes(&cedar), birch.left()), (vec![], [0; 6]));
    assert_eq!(birch.spool().content.held_bytes(), 0);
}

/// It said when it is due before it had a row: a pass in between found nothing, and put the next one off for ever.
#[test]
fn what_is_settled_while_all_is_looked_through_is_looked_at_too() {
    let (alder, birch, _cedar) = three();
    birch.spool().custodian.set_custody_delay(Duration::ZERO);
    birch.spool().custodian.custody_pass(&EVERYBODY).unwrap();
    let manifest = alder.manifest(alder.drop_file("f", b"hello"));
    let mut batch = journal::Batch::default();
    let decide = birch.spool().decide();
    birch
        .spool()
        .custodian
        .keep_for_others(&manifest, 1, &mut batch)
        .unwrap();
    assert!(birch.spool().custodian.custody_due());
    std::thread::scope(|scope| {
        let pass = scope.spawn(|| birch.spool().custodian.custody_pass(&EVERYBODY).unwrap());
        // It waits for the lock; one that does not would have looked by now.
        for _ in 0..10_000 {
            if !birch.spool().custodian.custody_due() {
                break;
            }
            std::thread::yield_now();
        }
        birch.spool().journal.submit(batch).unwrap();
        drop(decide);
        pass.join().unwrap();
    });
    assert!(birch.keys(WATCHED) == 0 || birch.spool().custodian.custody_due());
}
