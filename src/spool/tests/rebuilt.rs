//! A journal that is damaged or missing.

use super::super::tables::META_EPOCH;
use super::*;

fn journal_of(node: &Node) -> PathBuf {
    node.state().join("journal.redb")
}

fn try_start(node: &Node) -> Result<Arc<Spool>, SpoolError> {
    Spool::open(SpoolConfig {
        state: node.state(),
        lifetime: Duration::from_secs(3600),
        sealers: 1,
        limits: node.limits,
        dress: node.dress,
        identity: node.identity.clone(),
    })
}

#[test]
fn a_damaged_journal_is_refused_with_the_steps_and_left_where_it_is() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    birch.stop();
    let whole = fs::read(journal_of(&birch)).unwrap();
    let mut flipped = whole.clone();
    flipped[0] ^= 1;
    let damages = [
        whole[..100].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        flipped,
    ];
    for damaged in damages {
        fs::write(journal_of(&birch), &damaged).unwrap();
        let error = try_start(&birch).unwrap_err().to_string();
        let at = journal_of(&birch);
        let step = format!("mv {0} {0}.damaged", at.display());
        assert!(
            error.contains("is damaged") && error.contains(&step),
            "{error}"
        );
        assert!(at.exists() && birch.inbox("a").exists());
    }
    // The steps.
    fs::rename(
        journal_of(&birch),
        birch.state().join("journal.redb.damaged"),
    )
    .unwrap();
    birch.start();
    birch.checked();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"one");
    assert!(birch.state().join("journal.redb.damaged").exists());
}

#[test]
fn a_bit_that_flipped_in_the_journal_is_found_or_harms_nothing() {
    let (alder, mut birch) = pair();
    for number in 0..40 {
        let name = format!("d/{number}");
        birch.fetch(&alder, alder.drop_file(&name, name.as_bytes()));
        birch.receipt();
    }
    birch.stop();
    let whole = fs::read(journal_of(&birch)).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let (mut found, mut harmless) = (0, 0);
    let positions = (0..320).step_by(5).chain((320..used).step_by(used / 60));
    for at in positions {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(journal_of(&birch), &flipped).unwrap();
        match try_start(&birch) {
            Ok(spool) => {
                harmless += 1;
                let shown = spool.inbound(None, 99);
                assert_eq!(shown.len(), 40, "byte {at}");
                assert!(shown.iter().all(|row| row.state == "received"), "byte {at}");
                assert_eq!(spool.counts().quarantined, 0, "byte {at}");
                spool.close();
            }
            Err(SpoolError::Damaged { .. }) => found += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(
        found > 20 && harmless > 5,
        "{found} found, {harmless} harmless"
    );
}

#[test]
fn an_inbox_whose_journal_is_missing_comes_back_as_its_origins_signed_it() {
    let (alder, mut birch) = pair();
    let large = pattern(3 * LEAF as usize);
    birch.fetch(&alder, alder.drop_file("d/kept", b"kept"));
    birch.fetch(&alder, alder.drop_file("large", &large));
    let eaten = alder.drop_file("eaten", b"eaten");
    birch.fetch(&alder, eaten);
    birch.fetch(&alder, alder.drop_file("again", b"one"));
    birch.fetch(&alder, alder.drop_file("again", b"two"));
    for _ in 0..5 {
        birch.receipt();
    }
    birch.spool().inbox_unlink(&rel("eaten")).unwrap();
    birch.stop();
    fs::remove_file(journal_of(&birch)).unwrap();
    fs::write(birch.inbox("stranger"), b"nobody signed this").unwrap();
    birch.start();
    birch.checked();
    assert_eq!(fs::read(birch.inbox("d/kept")).unwrap(), b"kept");
    assert_eq!(fs::read(birch.inbox("large")).unwrap(), large);
    assert_eq!(fs::read(birch.inbox("again")).unwrap(), b"two");
    assert!(!birch.inbox("stranger").exists());
    assert_eq!(birch.spool().counts().quarantined, 1);
    let trouble = birch.spool().trouble().unwrap();
    assert!(trouble.contains("the journal was missing"), "{trouble}");
    // What was consumed does not come back, and a newer version takes its place.
    let offered = birch.spool().offered(alder.manifest(eaten), alder.id());
    assert!(matches!(offered.unwrap(), Offered::Settled(_)));
    birch.fetch(&alder, alder.drop_file("large", b"small"));
    assert_eq!(fs::read(birch.inbox("large")).unwrap(), b"small");
    birch.stop();
    birch.start();
    assert_eq!(birch.spool().trouble(), None);
    assert!(birch.inbox("d/kept").exists());
}

#[test]
fn an_outbox_whose_journal_is_missing_is_kept_back_and_not_sent_again() {
    let (mut alder, birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    let (before, _) = alder.spool().epoch();
    alder.stop();
    fs::remove_file(journal_of(&alder)).unwrap();
    alder.start();
    alder.knows(&birch, "birch");
    let recovered = alder.spool().outbox.recovered();
    assert!(
        recovered.len() == 1 && recovered[0].incomplete,
        "{recovered:?}"
    );
    assert!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .is_empty()
    );
    assert_eq!(fs::read(alder.outbox("a")).unwrap(), b"one");
    // What is sent from now on counts as newer than all before.
    assert!(alder.spool().epoch().0 > before);
    birch.fetch(&alder, alder.drop_file("a", b"two"));
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
}

#[test]
fn a_start_without_a_journal_that_was_cut_off_is_done_again() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"one"));
    birch.receipt();
    birch.stop();
    fs::remove_file(journal_of(&birch)).unwrap();
    birch.start();
    // As if it had been killed before it wrote its epoch.
    let mut batch = journal::Batch::default();
    batch.remove(META_EPOCH, &());
    birch.spool().journal.submit(batch).unwrap();
    birch.stop();
    birch.start();
    birch.checked();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"one");
    assert_eq!(birch.spool().counts().quarantined, 0);
}

#[test]
fn proofs_of_what_is_shown_no_more_are_let_go() {
    let (alder, mut birch) = pair();
    for number in 0..20 {
        let name = number.to_string();
        birch.fetch(&alder, alder.drop_file(&name, name.as_bytes()));
        birch.receipt();
    }
    let size = |node: &Node| {
        let segments = fs::read_dir(node.state().join("proofs")).unwrap();
        let sizes = segments.map(|entry| entry.unwrap().metadata().unwrap().len());
        sizes.sum::<u64>()
    };
    let before = size(&birch);
    for number in 0..19 {
        birch
            .spool()
            .inbox_unlink(&rel(&number.to_string()))
            .unwrap();
    }
    birch.spool().proofs.sweep_now();
    birch.spool().sweep_proofs().unwrap();
    assert!(
        size(&birch) <= before / 20 + 20,
        "{} of {before}",
        size(&birch)
    );
    birch.fetch(&alder, alder.drop_file("later", b"later"));
    birch.receipt();
    birch.stop();
    fs::remove_file(journal_of(&birch)).unwrap();
    birch.start();
    birch.checked();
    assert!(birch.inbox("19").exists() && birch.inbox("later").exists());
}
