//! Room, modes and long paths.

use super::*;
use crate::spool::journal::Table;

fn removed(node: &Node, path: &str) {
    let ino = node.ino(path);
    fs::remove_file(node.outbox(path)).unwrap();
    node.spool().outbox_removed(&rel(path), ino, 0);
}

#[test]
fn what_is_removed_and_still_waited_for_has_a_quota() {
    let (mut alder, birch) = pair();
    alder.stop();
    alder.limits.max_bytes = Some(150_000);
    alder.start();
    let first = alder.drop_file("a", &pattern(100_000));
    alder.drop_file("b", &pattern(100_001));
    let (a, b) = (alder.ino("a"), alder.ino("b"));
    alder.spool().may_remove(a, 100_000).unwrap();
    removed(&alder, "a");
    assert_eq!(alder.spool().content.held_bytes(), 100_000);

    let error = alder.spool().may_remove(b, 100_001).unwrap_err();
    assert_eq!(error.errno(), libc::EDQUOT);
    assert!(error.to_string().contains("birch"), "{error}");
    let shown = alder.spool().outbox_state(&rel("b"), b).error.unwrap();
    assert!(shown.contains("birch"), "{shown}");
    let file = File::options()
        .read(true)
        .write(true)
        .open(alder.outbox("b"))
        .unwrap();
    let gate = alder.spool().outbox.gate(b);
    let changed = alder.spool().copy_out(&mut gate.lock(), &file, &rel("b"));
    assert_eq!(changed.unwrap_err().errno(), libc::EDQUOT);
    drop(gate);

    alder.stop();
    alder.start();
    assert_eq!(
        alder.spool().content.held_bytes(),
        100_000,
        "counted again at start"
    );
    birch.fetch(&alder, first);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert_eq!(alder.spool().content.held_bytes(), 0);
    alder.spool().may_remove(b, 100_001).unwrap();
    assert_eq!(alder.spool().outbox_state(&rel("b"), b).error, None);
}

#[test]
fn a_copy_made_for_who_waits_is_counted_until_it_is_freed() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(100_000));
    alder.drop_file("a", b"new");
    // The old version is superseded, unless its transfer has begun.
    assert!(alder.spool().content.held_bytes() <= 100_000);
    let _superseded = alder.spool().open_content(bundle, 0, birch.id());
    let newer = alder.drop_file("a", b"newer");
    birch.fetch(&alder, newer);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    alder.stop_and_start_counts_nothing();
}

impl Node {
    fn stop_and_start_counts_nothing(mut self) {
        self.stop();
        self.start();
        assert_eq!(self.spool().content.held_bytes(), 0);
    }
}

#[test]
fn an_offer_that_has_no_room_is_deferred_and_shown() {
    for limits in [
        Limits {
            min_free: Some(1 << 60),
            ..Limits::default()
        },
        Limits {
            max_bytes: Some(10),
            ..Limits::default()
        },
    ] {
        let (alder, mut birch) = pair();
        birch.stop();
        birch.limits = limits;
        birch.start();
        let bundle = alder.drop_file("a", &pattern(100));
        let manifest = alder.manifest(bundle);
        match birch.spool().offered(manifest, alder.id()).unwrap() {
            Offered::Deferred(why) => assert!(why.contains("no room here"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(birch.spool().inbound(None, 9)[0].state, "deferred");
        birch.stop();
        birch.limits = Limits::default();
        birch.start();
        assert_eq!(birch.fetch(&alder, bundle), 100, "with room it is taken");
        birch.receipt();
    }
}

#[test]
fn an_offer_of_a_larger_file_than_allowed_is_refused_and_shown() {
    let (alder, mut birch) = pair();
    birch.stop();
    birch.limits.max_file_bytes = Some(99);
    birch.start();
    let bundle = alder.drop_file("a", &pattern(100));
    match birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    {
        Offered::Refused(why) => assert!(why.contains("max_file_bytes here is 99"), "{why}"),
        other => panic!("{other:?}"),
    }
    let row = &birch.spool().inbound(None, 9)[0];
    assert_eq!(row.state, "refused");
    assert_eq!(birch.spool().counts().refused, 1);
    let bundle = alder.drop_file("b", &pattern(99));
    birch.fetch(&alder, bundle);
}

#[test]
fn below_min_free_nothing_more_is_written_and_status_says_so() {
    let mut node = Node::new();
    assert!(node.spool().room_for(1 << 40 << 10).is_err());
    node.spool().room_for(1).unwrap();
    node.stop();
    node.limits.min_free = Some(1 << 60);
    node.start();
    let error = node.spool().room_for(1).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(node.spool().trouble().unwrap().contains("min_free"));
}

#[test]
fn of_a_mode_only_the_executable_bit_travels() {
    let (alder, mut birch) = pair();
    birch.stop();
    let root = rustix::process::geteuid().is_root();
    birch.dress = Dress {
        mode: Some(0o640),
        uid: root.then_some(12345),
        gid: root.then_some(54321),
        umask: None,
    };
    birch.start();
    for (path, mode) in [("d/plain", 0o6644), ("d/run", 0o7777)] {
        fs::create_dir_all(alder.outbox("d")).unwrap();
        fs::write(alder.outbox(path), path).unwrap();
        fs::set_permissions(alder.outbox(path), fs::Permissions::from_mode(mode)).unwrap();
        let SealOutcome::Sealed(bundle) = alder.seal(path) else {
            panic!("not sealed")
        };
        birch.fetch(&alder, bundle);
    }
    let facts = |path: &str| {
        let meta = fs::metadata(birch.inbox(path)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    let (uid, gid) = if root {
        (12345, 54321)
    } else {
        let mine = fs::metadata(birch.state()).unwrap();
        (mine.uid(), mine.gid())
    };
    assert_eq!(facts("d/plain"), (0o640, uid, gid));
    assert_eq!(facts("d/run"), (0o750, uid, gid));
    assert_eq!(facts("d"), (0o750, uid, gid));
    assert_eq!(facts(""), (0o750, uid, gid), "the inbox itself");
}

#[test]
fn a_path_as_long_as_paths_go_travels_and_is_found_again_at_start() {
    let (mut alder, birch) = pair();
    let deep = [vec!["d".repeat(255); 15].join("/"), "f".repeat(160)].join("/");
    assert_eq!(deep.len(), 4000);
    let path = rel(&deep);
    // Too long for an absolute path below a state directory.
    let below = |root: &fs::File| {
        let root = PathBuf::from(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(root)
        ));
        root.join(path.as_path())
    };
    let outbox = fs::File::open(alder.spool().layout().outbox()).unwrap();
    let at = below(&outbox);
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    fs::write(&at, b"deep").unwrap();
    let ino = fs::metadata(&at).unwrap().ino();
    let (done, outcome) = crossbeam_channel::bounded(1);
    let name = SealName {
        path: path.clone(),
        renamed_from: None,
    };
    let done = move |outcome| done.send(outcome).unwrap();
    let gate = alder.spool().outbox.gate(ino);
    alder
        .spool()
        .outbox
        .seal(SealRequest::alone(gate, name, done));
    let SealOutcome::Sealed(bundle) = outcome.recv().unwrap() else {
        panic!("not sealed")
    };
    birch.fetch(&alder, bundle);
    let inbox = fs::File::open(birch.spool().layout().inbox()).unwrap();
    assert_eq!(fs::read(below(&inbox)).unwrap(), b"deep");
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    alder.stop();
    alder.start();
    assert!(
        alder.spool().outbox.recovered().is_empty(),
        "known as it was"
    );
    assert_eq!(alder.spool().outbound_of(&path).unwrap().state, "delivered");
    birch.spool().inbox_unlink(&path).unwrap();
}

#[test]
fn a_member_that_fills_the_inbox_is_deferred_and_shown_and_others_are_not() {
    let (alder, mut birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.stop();
    birch.limits.max_peer_bytes = Some(150_000);
    birch.start();
    birch.knows(&cedar, "cedar");
    let first = alder.drop_file("a", &pattern(100_000));
    birch.fetch(&alder, first);
    let second = alder.drop_file("b", &pattern(60_000));
    let offer = |birch: &Node| {
        let manifest = alder.manifest(second);
        birch.spool().offered(manifest, alder.id()).unwrap()
    };
    for _ in 0..2 {
        match offer(&birch) {
            Offered::Deferred(why) => {
                assert!(
                    why.contains("max_peer_bytes") && why.contains("alder"),
                    "{why}"
                );
            }
            other => panic!("{other:?}"),
        }
        let shown = birch.spool().inbound(None, 9);
        assert!(
            shown
                .iter()
                .any(|row| row.path == "b" && row.state == "deferred")
        );
        // Counted again at the start.
        birch.stop();
        birch.start();
    }
    let other = cedar.drop_file("c", &pattern(140_000));
    birch.fetch(&cedar, other);
    // A new version takes the place of the old one.
    let smaller = alder.drop_file("a", &pattern(50_000));
    birch.fetch(&alder, smaller);
    birch.fetch(&alder, second);
    birch.consume("a");
    birch.consume("b");
    let third = alder.drop_file("d", &pattern(150_000));
    birch.fetch(&alder, third);
}

#[test]
fn a_limit_for_a_member_that_is_set_later_counts_what_was_there_before() {
    let (alder, birch) = pair();
    let first = alder.drop_file("a", &pattern(100_000));
    birch.fetch(&alder, first);
    let mut limits = birch.limits;
    limits.max_peer_bytes = Some(150_000);
    birch.spool().content.set_limits(limits);
    let second = alder.drop_file("b", &pattern(60_000));
    let offered = birch.spool().offered(alder.manifest(second), alder.id());
    let offered = offered.unwrap();
    assert!(
        matches!(&offered, Offered::Deferred(why) if why.contains("max_peer_bytes")),
        "{offered:?}"
    );
}

/// What `node` fetched of a bundle of one small file, not yet published.
pub(super) fn verified(
    node: &Node,
    origin: &Node,
    bundle: BundleId,
) -> crate::spool::inbox::intake::Verified {
    let manifest = origin.manifest(bundle).signed().clone().verify().unwrap();
    let offered = node.spool().offered(manifest, origin.id()).unwrap();
    let Offered::Wanted(mut incoming) = offered else {
        panic!("{offered:?}");
    };
    let mut reader = origin.spool().open_content(bundle, 0, node.id()).unwrap();
    for range in incoming.missing(0) {
        let bytes = reader.read(range.start, (range.end - range.start) as usize);
        incoming
            .accept_chunk(0, range.start, &bytes.unwrap())
            .unwrap();
    }
    incoming.finish().unwrap()
}

fn names_in_inbox(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(node.spool().layout().inbox()).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_publish_that_finds_no_room_for_its_content_shows_the_file_once() {
    let (alder, birch) = pair();
    let bytes = b"some bytes";
    let bundle = alder.drop_file("f", bytes);
    let verified = verified(&birch, &alder, bundle);
    let content = birch.spool().layout().content(Digest::of(bytes));
    let room = content.parent().unwrap();
    fs::remove_dir(room).unwrap();
    fs::write(room, b"no directory").unwrap();
    verified.publish().unwrap_err();
    assert!(names_in_inbox(&birch).is_empty());
    fs::remove_file(room).unwrap();
    fs::create_dir(room).unwrap();
    assert_eq!(birch.fetch(&alder, bundle), 0, "the bytes were kept");
    birch.receipt();
    assert_eq!(names_in_inbox(&birch), ["f"]);
    assert!(content.exists());
}

#[test]
fn a_publish_that_fails_after_the_rename_takes_the_name_back() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("f", b"some bytes");
    let verified = verified(&birch, &alder, bundle);
    // A row that cannot be read stands for a database that cannot be read at the moment.
    let mut batch = Batch::default();
    let unreadable: Table<BundleId, ()> = Table::new(ledger::probe::INBOUND.number());
    batch.insert(unreadable, &bundle, &());
    birch.spool().journal.submit(batch).unwrap();
    verified.publish().unwrap_err();
    assert!(names_in_inbox(&birch).is_empty());
    assert_eq!(birch.spool().ledger.receipt(bundle), None);
    let intent: Option<crate::spool::inbox::probe::Intent> = birch
        .spool()
        .journal
        .row(crate::spool::inbox::probe::INTENTS, &bundle)
        .unwrap();
    assert!(intent.is_none());
    let mut batch = Batch::default();
    batch.remove(ledger::probe::INBOUND, &bundle);
    birch.spool().journal.submit(batch).unwrap();
    assert_eq!(birch.fetch(&alder, bundle), 0, "the bytes were kept");
    birch.receipt();
    assert_eq!(names_in_inbox(&birch), ["f"]);
    birch.stop();
    birch.start();
    assert_eq!(names_in_inbox(&birch), ["f"]);
}
