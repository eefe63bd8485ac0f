//! What a kill, a reboot or a power loss leaves, put on the disk by hand, and what the next start makes of it.

use std::time::SystemTime;

use super::super::journal::Batch;
use super::*;
use crate::spool::inbox::probe::{INTENTS, Intent};

/// Feeds what recovery found to the sealer, as `ready` does.
fn seal_recovered(node: &Node) -> Vec<SealOutcome> {
    let found = node.spool().outbox.recovered();
    found
        .iter()
        .filter(|file| !file.incomplete)
        .map(|file| node.seal(&file.path.to_string()))
        .collect()
}

fn touch(path: &Path, secs: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(secs))
        .unwrap();
}

fn submit(node: &Node, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    fill(&mut batch);
    node.spool().journal.submit(batch).unwrap();
}

#[test]
fn a_queued_file_that_was_touched_is_delivered_after_a_reboot() {
    let (mut alder, birch) = pair();
    let bytes = pattern(100_000);
    let bundle = alder.drop_file("a", &bytes);
    touch(&alder.outbox("a"), 1_000_000_000);
    alder.an_hour_passes();
    alder.power_loss();
    assert!(alder.spool().layout().content(Digest::of(&bytes)).exists());
    let sealed = seal_recovered(&alder);
    assert!(
        matches!(&sealed[..], [SealOutcome::Sealed(same)] if *same == bundle),
        "{sealed:?}"
    );
    assert_eq!(alder.spool().counts().incomplete, 0);
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), bytes);
}

#[test]
fn a_file_that_nobody_touched_is_not_hashed_again_at_the_next_start() {
    let (mut alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    for _ in 0..2 {
        alder.stop();
        alder.start();
        assert!(alder.spool().outbox.recovered().is_empty());
    }
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    alder.stop();
    alder.start();
    assert!(alder.spool().outbox.recovered().is_empty());
}

#[test]
fn a_sealed_file_whose_bytes_a_power_loss_changed_is_incomplete_and_not_served() {
    let (mut alder, birch) = pair();
    let bytes = pattern(100_000);
    let bundle = alder.drop_file("a", &bytes);
    let file = File::options().write(true).open(alder.outbox("a")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF; 4096], 0).unwrap();
    touch(&alder.outbox("a"), 1_000_000_000);
    alder.power_loss();
    let sealed = seal_recovered(&alder);
    assert!(
        !sealed.iter().any(|o| matches!(o, SealOutcome::Sealed(_))),
        "{sealed:?}"
    );
    assert_eq!(alder.spool().counts().incomplete, 1);
    let served = alder.spool().open_content(bundle, 0, birch.id());
    let read = served.and_then(|mut content| content.read(0, 10));
    assert!(matches!(read, Err(ServeError::NotHeld)), "{read:?}");
}

#[test]
fn a_content_link_without_its_rows_never_stands_for_later_bytes() {
    let (mut alder, birch) = pair();
    let bytes = pattern(100_000);
    fs::write(alder.outbox("a"), &bytes).unwrap();
    alder.spool().outbox.mark_closed(alder.ino("a"), &rel("a"));
    // Killed between the link and the rows of the seal.
    let content = alder.spool().layout().content(Digest::of(&bytes));
    fs::hard_link(alder.outbox("a"), &content).unwrap();
    alder.stop();
    alder.start();
    alder.drop_file("a", b"written again before the seal");
    let bundle = alder.drop_file("b", &bytes);
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("b")).unwrap(), bytes);
}

#[test]
fn a_content_link_to_bytes_that_a_power_loss_tore_is_not_believed() {
    let (mut alder, birch) = pair();
    let bytes = pattern(100_000);
    fs::write(birch.inbox("torn"), &bytes[..5000]).unwrap();
    let content = birch.spool().layout().content(Digest::of(&bytes));
    fs::hard_link(birch.inbox("torn"), content).unwrap();
    let mut birch = birch;
    birch.power_loss();
    let bundle = birch.drop_file("b", &bytes);
    alder.fetch(&birch, bundle);
    assert_eq!(fs::read(alder.inbox("b")).unwrap(), bytes);
    alder.stop();
}

#[test]
fn a_move_out_of_the_inbox_cut_off_by_a_kill_keeps_content_honest() {
    let (alder, mut birch) = pair();
    let bytes = pattern(100_000);
    let bundle = alder.drop_file("a", &bytes);
    birch.fetch(&alder, bundle);
    let ino = fs::metadata(birch.inbox("a")).unwrap().ino();
    // Killed right after the rename.
    birch.spool().outbox.expect(ino, &rel("b")).unwrap();
    fs::rename(birch.inbox("a"), birch.outbox("b")).unwrap();
    birch.stop();
    birch.start();
    birch.drop_file("b", b"written before it was sealed");
    let again = birch.drop_file("c", &bytes);
    alder.fetch(&birch, again);
    assert_eq!(fs::read(alder.inbox("c")).unwrap(), bytes);
}

#[test]
fn a_publish_that_had_failed_is_not_rolled_forward_over_a_newer_version() {
    let (alder, mut birch) = pair();
    let first = alder.drop_file("a", b"one");
    let old = alder.manifest(first);
    let second = alder.drop_file("a", b"two");
    let staged = birch.state().join("partial").join(format!("{first}.0"));
    fs::write(&staged, b"one").unwrap();
    let ino = fs::metadata(&staged).unwrap().ino();
    submit(&birch, |batch| {
        let intent = Intent {
            signed: old.signed().clone(),
            slices: 0,
            names: vec![(0, rel("a"), ino)],
        };
        batch.insert(INTENTS, &first, &intent);
    });
    birch.fetch(&alder, second);
    birch.stop();
    birch.start();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
    birch.stop();
    birch.start();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
}

/// The daemon is killed when a file of one byte, `x`, has its intent and not its name.
fn cut_off_with_intent(origin: &Node, node: &mut Node, bundle: BundleId, name: &str) {
    let staged = node.state().join("partial").join(format!("{bundle}.0"));
    fs::write(&staged, b"x").unwrap();
    let ino = fs::metadata(&staged).unwrap().ino();
    submit(node, |batch| {
        let intent = Intent {
            signed: origin.manifest(bundle).signed().clone(),
            slices: 0,
            names: vec![(0, rel(name), ino)],
        };
        batch.insert(INTENTS, &bundle, &intent);
    });
    node.stop();
    node.start();
}

#[test]
fn a_publish_that_cannot_be_rolled_forward_does_not_keep_the_daemon_from_starting() {
    let (alder, mut birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&cedar, cedar.drop_file("d", b"a file"));
    let bundle = alder.drop_file("d/x", b"x");
    cut_off_with_intent(&alder, &mut birch, bundle, "d/x");
    assert_eq!(fs::read(birch.inbox("d")).unwrap(), b"a file");
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("d~alder/x")).unwrap(), b"x");
}

/// Its own older file gives way: after the row of the intent there is only forward.
#[test]
fn a_publish_of_one_that_was_cut_off_has_an_older_file_give_way() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("d", b"a file"));
    fs::remove_file(alder.outbox("d")).unwrap();
    let bundle = alder.drop_file("d/x", b"x");
    cut_off_with_intent(&alder, &mut birch, bundle, "d/x");
    assert_eq!(fs::read(birch.inbox("d/x")).unwrap(), b"x");
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(bundle).is_some());
}

#[test]
fn a_join_cut_off_by_a_kill_is_completed_at_the_next_start() {
    let (mut alder, birch) = (Node::new(), Node::new());
    alder.drop_file("a", b"x");
    let name = PeerName::parse("birch").unwrap();
    let seen = alder
        .spool()
        .decide()
        .group
        .seen(birch.id(), &name, &[], true);
    assert!(seen.unwrap().is_some());
    alder.stop();
    alder.start();
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_path_that_only_relative_calls_reach_does_not_keep_the_daemon_from_starting() {
    let mut alder = Node::new();
    alder.drop_file("a", b"x");
    let name = "n".repeat(250);
    let mut directory = File::open(alder.outbox("")).unwrap();
    for _ in 0..16 {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        mkdirat(&directory, &*name, Mode::RWXU).unwrap();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        directory = File::from(openat(&directory, &*name, flags, Mode::empty()).unwrap());
    }
    alder.stop();
    alder.start();
    assert!(alder.spool().outbox.recovered().is_empty());
}

#[test]
fn after_a_clean_stop_and_a_reboot_a_closed_file_is_sealed() {
    let mut alder = Node::new();
    fs::write(alder.outbox("a"), b"x").unwrap();
    alder.spool().outbox.mark_closed(alder.ino("a"), &rel("a"));
    alder.stop();
    assert!(
        last_run(&alder.state()).unwrap() == LastRun::Whole
            && !fs::read_to_string(alder.state().join("boot"))
                .unwrap()
                .contains(boot_id().unwrap().trim()),
        "nothing that only this boot knows"
    );
    alder.start();
    let outcomes = seal_recovered(&alder);
    assert!(
        matches!(&outcomes[..], [SealOutcome::Sealed(_)]),
        "{outcomes:?}"
    );
}

#[test]
fn a_directory_renamed_right_before_a_kill_is_sent_under_its_new_name() {
    let (mut alder, birch) = pair();
    let old = alder.drop_file("d/f", b"x");
    birch.fetch(&alder, old);
    fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
    alder.spool().outbox_renamed(&rel("d"), &rel("e"), true);
    alder.stop();
    alder.start();
    let outcomes = seal_recovered(&alder);
    let [SealOutcome::Sealed(new)] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_ne!(new, old);
    birch.fetch(&alder, new);
    assert_eq!(fs::read(birch.inbox("e/f")).unwrap(), b"x");
    alder.stop();
    alder.start();
    assert!(
        alder.spool().outbox.recovered().is_empty(),
        "once is enough"
    );
}

#[test]
fn what_is_put_aside_never_overwrites_what_was_put_aside_before() {
    let mut alder = Node::new();
    for _ in 0..3 {
        fs::write(alder.inbox("unrecorded"), b"x").unwrap();
        alder.stop();
        alder.start();
    }
    assert_eq!(alder.spool().counts().quarantined, 3);
}

#[test]
fn a_file_that_arrived_whole_is_not_fetched_again_because_its_own_time_is_old() {
    let (alder, mut birch) = pair();
    let bytes = pattern(3 * LEAF as usize);
    let bundle = alder.drop_file("a", &bytes);
    let Offered::Wanted(mut incoming) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("not wanted")
    };
    for (index, chunk) in bytes.chunks(LEAF as usize).enumerate() {
        incoming
            .accept_chunk(0, index as u64 * LEAF, chunk)
            .unwrap();
    }
    // Killed after the check, which gives the file its time, and before the publish.
    drop(incoming.finish().unwrap());
    touch(
        &birch.state().join("partial").join(format!("{bundle}.0")),
        1_000_000_000,
    );
    birch.stop();
    birch.start();
    assert_eq!(birch.fetch(&alder, bundle), 0);
}

impl Node {
    /// The journal as it is, to be put back by [`Self::rows_lost`].
    fn keep_rows(&mut self) {
        self.stop();
        fs::copy(
            self.state().join("journal.redb"),
            self.dir.path().join("kept"),
        )
        .unwrap();
        self.start();
    }

    /// The daemon is killed, and what was submitted since [`Self::keep_rows`] did not reach the journal.
    fn rows_lost(&mut self) {
        self.stop();
        fs::copy(
            self.dir.path().join("kept"),
            self.state().join("journal.redb"),
        )
        .unwrap();
    }
}

#[test]
fn a_file_that_got_its_free_name_right_before_a_kill_is_published_at_the_next_start() {
    for power_lost in [false, true] {
        for consumed in [false, true] {
            let (alder, mut birch) = pair();
            birch.keep_rows();
            let bundle = alder.drop_file("d/a", b"x");
            birch.fetch(&alder, bundle);
            birch.rows_lost();
            if power_lost {
                birch.lost_power();
            }
            birch.start();
            assert_eq!(fs::read(birch.inbox("d/a")).unwrap(), b"x");
            assert_eq!(birch.spool().counts().quarantined, 0);
            birch.spool().journal.flush().unwrap();
            let receipt = birch.spool().ledger.receipt(bundle).unwrap();
            assert!(alder.spool().take_receipt(&receipt).unwrap());
            if consumed {
                birch.consume("d/a");
            }
            birch.stop();
            birch.start();
            let again = birch.spool().offered(alder.manifest(bundle), alder.id());
            assert!(matches!(again, Ok(Offered::Settled(_))), "{again:?}");
            assert_eq!(birch.inbox("d/a").exists(), !consumed);
        }
    }
}

#[test]
fn bytes_that_a_proof_does_not_speak_of_are_put_aside_and_the_bundle_is_fetched_again() {
    for (power_lost, bytes) in [(false, &b"another length"[..]), (true, b"y")] {
        let (alder, mut birch) = pair();
        birch.keep_rows();
        let bundle = alder.drop_file("a", b"x");
        birch.fetch(&alder, bundle);
        birch.rows_lost();
        fs::remove_file(birch.inbox("a")).unwrap();
        fs::write(birch.inbox("a"), bytes).unwrap();
        if power_lost {
            birch.lost_power();
        }
        birch.start();
        assert!(!birch.inbox("a").exists());
        assert_eq!(birch.spool().counts().quarantined, 1);
        birch.fetch(&alder, bundle);
        assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"x");
    }
}

#[test]
fn proofs_that_cannot_be_read_keep_nothing_from_starting() {
    let (alder, mut birch) = pair();
    birch.keep_rows();
    let bundle = alder.drop_file("a", b"x");
    birch.fetch(&alder, bundle);
    birch.rows_lost();
    let segment = fs::read_dir(birch.state().join("proofs")).unwrap().next();
    let segment = segment.unwrap().unwrap().path();
    fs::remove_file(&segment).unwrap();
    // A read of it fails.
    fs::create_dir(&segment).unwrap();
    birch.start();
    assert!(!birch.inbox("a").exists());
    assert_eq!(birch.spool().counts().quarantined, 1);
    fs::remove_dir(&segment).unwrap();
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"x");
}

#[test]
fn a_proof_is_no_leave_to_show_again_what_was_consumed() {
    let (alder, mut birch) = pair();
    birch.fetch(&alder, alder.drop_file("a", b"x"));
    birch.consume("a");
    birch.stop();
    // Put there behind our back.
    fs::write(birch.inbox("a"), b"x").unwrap();
    birch.start();
    assert!(!birch.inbox("a").exists());
    assert_eq!(birch.spool().counts().quarantined, 1);
}

#[test]
fn killed_before_its_rename_a_file_that_arrived_has_no_name_and_is_not_fetched_again() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    let offered = birch.spool().offered(alder.manifest(bundle), alder.id());
    let Ok(Offered::Wanted(mut incoming)) = offered else {
        panic!("not wanted")
    };
    incoming.accept_chunk(0, 0, b"x").unwrap();
    let verified = incoming.finish().unwrap();
    let ino = verified.files[0].as_ref().unwrap().ino;
    birch
        .spool()
        .keep_proof(&alder.manifest(bundle), &[(0, rel("a"), ino)]);
    drop(verified);
    birch.stop();
    birch.start();
    assert!(!birch.inbox("a").exists());
    assert_eq!(birch.fetch(&alder, bundle), 0);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"x");
}
