//! What is over takes no room (S20): rows, content and names after many bundles.

use std::collections::BTreeMap;

use super::journal::Table;
use super::*;
use crate::spool::CONTRADICTS;
use crate::spool::inbox::consumed::CONSUMED;
use crate::spool::inbox::probe::VERSIONS;
use crate::spool::ledger::probe::{BUNDLES, INBOUND, REFUSED_BITS, SETTLED_BITS};

const HISTORY: usize = 8;

impl Node {
    fn with_history() -> Self {
        let mut node = Self::new();
        node.stop();
        node.limits.history = Some(HISTORY as u64);
        node.start();
        node
    }

    /// Rows of every table.
    fn rows(&self) -> BTreeMap<u8, usize> {
        let journal = &self.spool().journal;
        let count = |table| {
            let any: Table<Vec<u8>, ()> = Table::new(table);
            let rows = journal.keys(any.all(), usize::MAX);
            rows.unwrap().len()
        };
        (0..=u8::MAX)
            .map(|table| (table, count(table)))
            .filter(|(_, rows)| *rows > 0)
            .collect()
    }

    fn swept(&self) {
        self.spool().journal.flush().unwrap();
        // One round looks at a number of pages; the second begins anew.
        for _ in 0..3 {
            self.spool().sweep_history().unwrap();
        }
        self.spool().journal.flush().unwrap();
    }

    fn contents(&self) -> usize {
        let root = self.state().join("content");
        let directories = fs::read_dir(root).unwrap();
        directories
            .map(|directory| fs::read_dir(directory.unwrap().path()).unwrap().count())
            .sum()
    }
}

fn historic_pair() -> (Node, Node) {
    let (alder, birch) = (Node::with_history(), Node::with_history());
    alder.knows(&birch, "birch");
    birch.knows(&alder, "alder");
    (alder, birch)
}

/// Sent, received, its receipt taken, removed on both sides.
fn whole_life(alder: &Node, birch: &Node, path: &str, bytes: &[u8]) -> VerifiedManifest {
    let bundle = alder.drop_file(path, bytes);
    let manifest = alder.manifest(bundle);
    birch.fetch(alder, bundle);
    assert!(alder.spool().take_receipt(&birch.receipt()).unwrap());
    alder.remove(path);
    birch.consume(path);
    manifest
}

#[test]
fn s20_what_is_over_is_forgotten_down_to_a_bit_and_a_hash() {
    let (alder, birch) = historic_pair();
    let live = |node: &Node| {
        node.swept();
        let mut rows = node.rows();
        let consumed = rows.remove(&CONSUMED.number()).unwrap_or(0);
        let bits = rows.remove(&SETTLED_BITS.number()).unwrap_or(0);
        (rows, consumed, bits)
    };
    let some = |from: usize, to: usize| {
        for n in from..to {
            whole_life(&alder, &birch, &format!("d/{n}"), format!("{n}").as_bytes());
        }
    };
    some(0, 40);
    let before = (live(&alder).0, live(&birch).0);
    some(40, 240);
    let ((sent, ..), (received, consumed, bits)) = (live(&alder), live(&birch));
    assert_eq!((sent, received), before, "rows do not grow");
    assert!(before.1.values().sum::<usize>() < 6 * HISTORY, "{before:?}");
    assert_eq!((consumed, bits), (240, 1));
    assert_eq!((alder.contents(), birch.contents()), (0, 0));
    let row = birch.spool().journal.rows(CONSUMED.all(), 1);
    assert_eq!(row.unwrap()[0].0.len(), 16);
}

/// As every program does that writes under a temporary name first.
#[test]
fn a_rename_that_is_followed_leaves_the_small_row_of_a_consumed_name_and_no_version() {
    let (alder, birch) = historic_pair();
    birch.take(&alder, alder.drop_file("a.part", b"x"));
    birch.take(&alder, alder.rename("a.part", "a"));
    assert!(birch.inbox("a").exists());
    let versions = birch.spool().journal.keys(VERSIONS.all(), 1).unwrap();
    assert_eq!(versions, []);
    let consumed = birch.spool().journal.keys(CONSUMED.all(), 9).unwrap();
    assert_eq!(consumed.len(), 1);
}

#[test]
fn s20_versions_that_nobody_fetches_are_forgotten_without_a_receipt() {
    let (alder, _birch) = historic_pair();
    for n in 0..200 {
        alder.drop_file("same", format!("{n}").as_bytes());
    }
    // Nobody asks for a sweep: what is superseded has to wake the sweeper itself.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while alder.rows()[&BUNDLES.number()] > 2 * HISTORY {
        assert!(std::time::Instant::now() < deadline, "{:?}", alder.rows());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn s20_what_was_not_durable_at_the_last_sweep_has_it_wake_again_when_it_is() {
    let (alder, _birch) = historic_pair();
    // Nothing becomes durable until the sender is dropped.
    let hold = alder.keep_writer_busy();
    for n in 0..100 {
        alder.drop_file("same", format!("{n}").as_bytes());
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while alder.spool().ledger.history.is_rung() {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    alder.spool().sweep_history().unwrap();
    assert!(alder.rows()[&BUNDLES.number()] >= 100);
    drop(hold);
    while alder.rows()[&BUNDLES.number()] > 2 * HISTORY {
        assert!(std::time::Instant::now() < deadline, "{:?}", alder.rows());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn what_is_renamed_during_a_sweep_is_kept_and_the_rest_forgotten() {
    let (alder, birch) = historic_pair();
    let shown = alder.drop_file("before", b"moved");
    birch.fetch(&alder, shown);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    for n in 0..50 {
        whole_life(&alder, &birch, &format!("{n}"), format!("{n}").as_bytes());
    }
    let history = &alder.spool().ledger.history;
    history.name_moved(shown);
    alder.swept();
    assert!(
        alder.rows()[&BUNDLES.number()] <= HISTORY + 1,
        "{:?}",
        alder.rows()
    );
    assert!(alder.spool().ledger.manifest(shown).unwrap().is_some());
}

#[test]
fn what_was_forgotten_is_never_shown_again_and_gets_its_receipt_again() {
    let (mut alder, mut birch) = historic_pair();
    let life = |n: usize| whole_life(&alder, &birch, "same", format!("{n}").as_bytes());
    let manifests: Vec<VerifiedManifest> = (0..60).map(life).collect();
    birch.swept();
    for _ in 0..2 {
        for manifest in &manifests {
            let offered = birch.spool().offered(manifest.clone(), alder.id()).unwrap();
            match offered {
                Offered::Settled(receipt) => {
                    assert!(receipt.is_genuine() && receipt.bundle == manifest.id());
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(!birch.inbox("same").exists());
        // A power loss, after which only what is durable counts.
        birch.power_loss();
    }
    // The next one is new.
    let bundle = alder.drop_file("same", b"new");
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("same")).unwrap(), b"new");
    alder.stop();
}

#[test]
fn what_was_refused_for_good_stays_refused_when_nobody_remembers_its_row() {
    let (alder, mut birch) = historic_pair();
    let refuse = |name: &str| {
        let manifest = alder.manifest(alder.drop_file(name, name.as_bytes()));
        let why = Some(CONTRADICTS.to_owned());
        let says = manifest.manifest();
        let spool = birch.spool();
        spool
            .ledger
            .note_inbound(says, manifest.id(), InboundState::Contradicts, why);
        manifest
    };
    let (lie, other) = (refuse("lie"), refuse("other"));
    birch.fetch(&alder, alder.drop_file("truth", b"truth"));
    for n in 0..50 {
        whole_life(&alder, &birch, &format!("{n}"), format!("{n}").as_bytes());
    }
    birch.swept();
    assert!(
        birch
            .spool()
            .ledger
            .inbound_shown(lie.id())
            .unwrap()
            .is_none()
    );
    assert_eq!(
        birch.rows()[&REFUSED_BITS.number()],
        1,
        "one block for both"
    );
    assert_eq!(birch.rows().get(&INBOUND.number()), Some(&HISTORY));
    for _ in 0..2 {
        for manifest in [&lie, &other] {
            let offered = birch.spool().offered(manifest.clone(), alder.id());
            let Offered::Refused(why) = offered.unwrap() else {
                panic!("wanted again");
            };
            assert_eq!(why, CONTRADICTS);
        }
        birch.power_loss();
    }
    birch.fetch(&alder, alder.drop_file("lie", b"told in truth"));
}

#[test]
fn an_older_version_that_comes_late_is_not_shown_over_a_consumed_name() {
    let (alder, birch) = historic_pair();
    let cedar = Node::with_history();
    cedar.knows(&alder, "alder");
    alder.knows(&cedar, "cedar");
    let old = alder.drop_file("a", b"old");
    let manifest = alder.manifest(old);
    let newer = alder.drop_file("a", b"newer");
    birch.fetch(&alder, newer);
    birch.consume("a");
    birch.swept();
    let Offered::Wanted(mut incoming) = birch.spool().offered(manifest, alder.id()).unwrap() else {
        panic!("not wanted")
    };
    incoming.accept_chunk(0, 0, b"old").unwrap();
    assert!(
        incoming
            .finish()
            .unwrap()
            .publish()
            .unwrap()
            .names
            .is_empty()
    );
    assert!(!birch.inbox("a").exists());
}

#[test]
fn a_consumed_name_stays_its_origins() {
    let (alder, birch) = historic_pair();
    let cedar = Node::with_history();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    whole_life(&alder, &birch, "report.pdf", b"1");
    whole_life(&alder, &birch, "d/e", b"2");
    for path in ["report.pdf", "d"] {
        let bundle = cedar.drop_file(path, b"cedar's");
        birch.fetch(&cedar, bundle);
    }
    assert!(birch.inbox("report~cedar.pdf").exists());
    let again = alder.drop_file("report.pdf", b"3");
    birch.fetch(&alder, again);
    assert_eq!(fs::read(birch.inbox("report.pdf")).unwrap(), b"3");
    let again = alder.drop_file("d/e", b"4");
    birch.fetch(&alder, again);
    let shown = [birch.inbox("d/e"), birch.inbox("d~alder/e")];
    assert_eq!(shown.iter().filter(|at| at.exists()).count(), 1);
}

#[test]
fn what_is_not_over_is_kept_however_old() {
    let (alder, birch) = historic_pair();
    let waits = alder.drop_file("waits", b"nobody has it");
    alder.remove("waits");
    let shown = alder.drop_file("shown", b"the outbox shows it");
    birch.fetch(&alder, shown);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let moved = alder.drop_file("before", b"moved");
    birch.fetch(&alder, moved);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    for n in 0..50 {
        whole_life(&alder, &birch, &format!("{n}"), format!("{n}").as_bytes());
    }

    fs::rename(alder.outbox("before"), alder.outbox("after")).unwrap();
    alder
        .spool()
        .outbox_renamed(&rel("before"), &rel("after"), false);
    alder.swept();
    birch.swept();
    assert!(alder.spool().ledger.is_pending(waits, birch.id()));
    let state = alder
        .spool()
        .outbox_state(&rel("shown"), alder.ino("shown"));
    assert_eq!(state.word(), "delivered 1/1");
    assert!(alder.spool().ledger.manifest(moved).unwrap().is_some());
    assert_eq!(birch.fetch(&alder, waits), 13);
    // Consumed long after its bundle was forgotten.
    birch.consume("shown");
    assert!(!birch.inbox("shown").exists());
}

#[test]
fn a_bundle_sealed_while_alone_is_kept_for_the_first_member() {
    let alder = Node::with_history();
    let bundles: Vec<BundleId> = (0..30)
        .map(|n| {
            let path = format!("{n}");
            let bundle = alder.drop_file(&path, path.as_bytes());
            alder.remove(&path);
            bundle
        })
        .collect();
    alder.swept();
    let birch = Node::with_history();
    alder.knows(&birch, "birch");
    birch.knows(&alder, "alder");
    for (n, bundle) in bundles.into_iter().enumerate() {
        birch.fetch(&alder, bundle);
        assert!(birch.inbox(&n.to_string()).exists());
    }
}
