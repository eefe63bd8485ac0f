//! Two threads, or two files, at one inode, one name or one content.

use super::*;
use crate::spool::ledger::inbound::InboundState;

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Whether some descriptor of this process shows `path`.
fn is_open(path: &Path) -> bool {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|shown| shown == path))
}

#[test]
fn a_seal_that_waited_does_not_touch_the_file_that_got_its_inode_number() {
    let alder = Node::new();
    fs::write(alder.outbox("a"), b"first").unwrap();
    let ino = alder.ino("a");
    let old = alder.spool().outbox.gate(ino);
    let held = old.lock();
    let outcome = alder.ask_seal("a");
    wait_until("the sealer opens the file", || is_open(&alder.outbox("a")));
    // Removed, and at once there is a file with the same number, which somebody writes.
    let aside = alder.state().join("aside");
    fs::rename(alder.outbox("a"), &aside).unwrap();
    alder.spool().outbox_removed(&rel("a"), ino, 0);
    fs::rename(&aside, alder.outbox("a")).unwrap();
    let new = alder.spool().outbox.gate(ino);
    new.lock().add_writer();
    drop(held);
    let outcome = outcome.recv().unwrap();
    assert!(
        matches!(outcome, SealOutcome::Gone | SealOutcome::Changed),
        "{outcome:?}"
    );
}

#[test]
fn a_file_renamed_while_it_is_hashed_is_not_recorded_under_its_old_name() {
    let alder = Node::new();
    fs::write(alder.outbox("a"), b"x").unwrap();
    let gate = alder.spool().outbox.gate(alder.ino("a"));
    let held = gate.lock();
    let outcome = alder.ask_seal("a");
    wait_until("the sealer opens the file", || is_open(&alder.outbox("a")));
    fs::rename(alder.outbox("a"), alder.outbox("b")).unwrap();
    alder.spool().outbox_renamed(&rel("a"), &rel("b"), false);
    drop(held);
    let outcome = outcome.recv().unwrap();
    assert!(matches!(outcome, SealOutcome::Gone), "{outcome:?}");
    assert_eq!(alder.spool().outbox.name(&rel("a")).unwrap(), None);
    assert!(matches!(alder.seal("b"), SealOutcome::Sealed(_)));
}

#[test]
fn what_a_session_notes_of_a_bundle_does_not_undo_that_another_settled_it() {
    let (alder, birch) = pair();
    for round in 0..200 {
        let bundle = alder.drop_file(&format!("{round}"), b"some bytes");
        let manifest = alder.manifest(bundle);
        let verified = super::limits::verified(&birch, &alder, bundle);
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                let why = Some("no room".to_owned());
                let says = manifest.manifest();
                birch
                    .spool()
                    .ledger
                    .note_inbound(says, bundle, InboundState::Deferred, why);
            });
            start.wait();
            verified.publish().unwrap();
        });
        let ledger = &birch.spool().ledger;
        assert!(ledger.settled(bundle).unwrap().is_some(), "round {round}");
        let shown = ledger.inbound_shown(bundle).unwrap().unwrap();
        assert_eq!(shown.state, InboundState::Received, "round {round}");
    }
}

#[test]
fn a_file_that_is_being_sealed_never_has_a_name_too_many() {
    let alder = Node::new();
    for round in 0..200 {
        let name = format!("{round}");
        alder.open(&name, name.as_bytes());
        alder.close(&name);
        let outcome = alder.ask_seal(&name);
        while outcome.is_empty() {
            let spool = alder.spool();
            let names = spool.while_nobody_decides(|| {
                let meta = fs::metadata(alder.outbox(&name)).unwrap();
                spool.outbox.visible_links(meta.ino(), meta.nlink())
            });
            assert_eq!(names, 1, "round {round}");
        }
        assert!(matches!(outcome.recv().unwrap(), SealOutcome::Sealed(_)));
    }
}

#[test]
fn of_two_files_with_equal_bytes_the_one_that_is_left_goes_to_who_joins_later() {
    let (alder, birch) = pair();
    let bytes = pattern(100_000);
    for name in ["a", "b"] {
        let bundle = alder.drop_file(name, &bytes);
        birch.fetch(&alder, bundle);
        alder.spool().take_receipt(&birch.receipt()).unwrap();
    }
    let ino = alder.ino("a");
    fs::remove_file(alder.outbox("a")).unwrap();
    alder.spool().outbox_removed(&rel("a"), ino, 0);
    let cedar = Node::new();
    cedar.knows(&alder, "alder");
    alder.knows(&cedar, "cedar");
    let pending = || alder.spool().ledger.pending(cedar.id(), None, 9).unwrap();
    wait_until("b is owed to cedar", || pending().len() == 1);
    cedar.fetch(&alder, pending()[0].1);
    assert_eq!(fs::read(cedar.inbox("b")).unwrap(), bytes);
    assert!(!alder.spool().ledger.is_pending(pending()[0].1, birch.id()));
}

#[test]
fn content_of_a_superseded_version_stays_until_its_successor_is_durable() {
    let (alder, _birch) = pair();
    let old = pattern(100_000);
    alder.drop_file("a", &old);
    alder.spool().journal.flush().unwrap();
    // From here on nothing becomes durable.
    let _hold = alder.keep_writer_busy();
    alder.drop_file("a", b"new");
    assert_eq!(alder.spool().outbound(None, 9)[1].state, "superseded");
    assert!(alder.spool().layout().content(Digest::of(&old)).exists());
}

#[test]
fn content_of_a_superseded_version_goes_in_the_end() {
    let (alder, _birch) = pair();
    let old = pattern(100_000);
    alder.drop_file("a", &old);
    alder.drop_file("a", b"new");
    let content = alder.spool().layout().content(Digest::of(&old));
    alder.spool().journal.flush().unwrap();
    wait_until("the old content goes", || !content.exists());
}

#[test]
fn a_lying_peer_cannot_push_the_epoch_to_its_end() {
    let mut alder = Node::new();
    let (epoch, _) = alder.spool().epoch();
    for lie in [u64::MAX, u64::MAX - 1] {
        alder.spool().raise_epoch(lie).unwrap();
    }
    assert_eq!(alder.spool().epoch().0, epoch);
    alder.stop();
    alder.start();
    assert_eq!(alder.spool().epoch().0, epoch + 1);
}

#[test]
fn a_path_without_room_for_the_suffix_of_a_conflict_is_refused_for_good() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    let mut manifest = alder.manifest(bundle).manifest().clone();
    let long = [[b'n'; 250].as_slice(); 16].join(&b'/');
    manifest.entries[0].path = RelPath::parse([long, vec![b'm'; 40]].join(&b'/')).unwrap();
    let offered = birch
        .spool()
        .offered(manifest.sign(&alder.identity), alder.id());
    assert!(
        matches!(offered, Ok(Offered::Refused(_))),
        "{:?}",
        offered.map(|_| ())
    );
}

#[test]
fn a_state_reported_after_the_end_of_a_delivery_is_not_kept() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    alder
        .spool()
        .set_delivery(bundle, birch.id(), DeliveryState::Sending(1))
        .unwrap();
    assert_eq!(alder.spool().ledger.moving(), 0);
}

#[test]
fn renames_are_sealed_in_the_order_in_which_they_happened_and_hold_up_nothing_else() {
    let (alder, _birch) = pair();
    for path in ["t", "c"] {
        alder.drop_file(path, path.as_bytes());
    }
    alder.move_file("t", "t2");
    alder.move_file("c", "t");
    let gate = alder.spool().outbox.gate(alder.ino("t2"));
    let held = gate.lock();
    let first = alder.ask_seal("t2");
    wait_until("a sealer opens the file", || is_open(&alder.outbox("t2")));
    let second = alder.ask_seal("t");
    alder.drop_file("other", b"new");
    assert!(second.try_recv().is_err(), "the second rename was sealed");
    drop(held);
    let seqs = [first, second].map(|outcome| match outcome.recv().unwrap() {
        SealOutcome::Sealed(bundle) => alder.manifest(bundle).manifest().seq,
        other => panic!("{other:?}"),
    });
    assert!(seqs[0] < seqs[1], "{seqs:?}");
}
