//! Large files, and what does not wait for them. They are sparse: hashing one to its end would take longer than any test.

use super::*;

const LARGE: u64 = 4 << 40;

/// A closed file of that size.
fn sparse(node: &Node, path: &str) {
    let file = fs::File::create(node.outbox(path)).unwrap();
    file.set_len(LARGE).unwrap();
    node.spool().outbox.mark_closed(node.ino(path), &rel(path));
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn soon(outcome: &crossbeam_channel::Receiver<SealOutcome>) -> SealOutcome {
    outcome.recv_timeout(Duration::from_secs(60)).unwrap()
}

#[test]
fn a_small_file_does_not_wait_for_large_ones_that_are_being_hashed() {
    let alder = Node::new();
    let names = ["w", "x", "y", "z"];
    let large = names.map(|name| {
        sparse(&alder, name);
        let gate = alder.spool().outbox.gate(alder.ino(name));
        (gate, alder.ask_seal(name))
    });
    // All get on, and none is done.
    for (gate, _) in &large {
        wait_until("it is being hashed", || gate.lock().tail_len() > 0);
    }
    for turn in 0..50 {
        alder.drop_file(&format!("small/{turn}"), b"x");
    }
    let done = large.iter().filter(|(_, outcome)| !outcome.is_empty());
    assert_eq!(done.count(), 0);
}

#[test]
fn a_file_that_loses_its_name_is_not_hashed_any_further() {
    let alder = Node::new();
    sparse(&alder, "a");
    sparse(&alder, "b");
    let [a, b] = ["a", "b"].map(|name| alder.ask_seal(name));
    fs::remove_file(alder.outbox("a")).unwrap();
    fs::rename(alder.outbox("b"), alder.outbox(".b")).unwrap();
    for outcome in [a, b] {
        assert!(matches!(soon(&outcome), SealOutcome::Gone));
    }
}

#[test]
fn a_file_that_is_renamed_while_it_is_hashed_is_not_hashed_again_from_its_start() {
    let alder = Node::new();
    sparse(&alder, "a");
    let ino = alder.ino("a");
    let outcome = alder.ask_seal("a");
    wait_until("it is being hashed", || {
        alder.spool().outbox.gate(ino).lock().tail_len() > 0
    });
    fs::rename(alder.outbox("a"), alder.outbox("b")).unwrap();
    assert!(matches!(soon(&outcome), SealOutcome::Gone));
    assert!(alder.spool().outbox.gate(ino).lock().tail_len() > 0);
}

#[test]
fn a_file_that_is_written_while_it_is_hashed_is_sealed_when_it_is_closed() {
    let alder = Node::new();
    sparse(&alder, "a");
    let gate = alder.spool().outbox.gate(alder.ino("a"));
    let outcome = alder.ask_seal("a");
    wait_until("it is being hashed", || gate.lock().tail_len() > 0);
    gate.lock().add_writer();
    assert!(matches!(soon(&outcome), SealOutcome::Changed));
    let file = File::options().write(true).open(alder.outbox("a")).unwrap();
    file.set_len(10 << 20).unwrap();
    gate.lock().reshaped();
    gate.lock().remove_writer();
    let SealOutcome::Sealed(bundle) = soon(&alder.ask_seal("a")) else {
        panic!("not sealed")
    };
    let zeros = Digest::of(&vec![0; 10 << 20]);
    assert_eq!(
        alder.manifest(bundle).manifest().single_digest(),
        Some(zeros)
    );
}

#[test]
fn a_stop_does_not_wait_for_large_files_and_the_next_start_hashes_them() {
    let mut alder = Node::new();
    for name in ["w", "x", "y", "z"] {
        sparse(&alder, name);
        alder.ask_seal(name);
    }
    let gate = alder.spool().outbox.gate(alder.ino("w"));
    wait_until("it is being hashed", || gate.lock().tail_len() > 0);
    alder.stop();
    drop(gate);
    alder.start();
    let recovered = alder.spool().outbox.recovered();
    assert_eq!(recovered.len(), 4);
    assert!(recovered.iter().all(|file| !file.incomplete));
}

#[test]
fn a_directory_with_a_large_file_holds_up_nobody_and_ends_with_its_member() {
    let mut alder = Node::new();
    fs::create_dir(alder.outbox(".d")).unwrap();
    fs::write(alder.outbox(".d/a"), b"a").unwrap();
    sparse(&alder, ".d/large");
    let file = |path: &str| (alder.ino(path), rel(path));
    let files = [file(".d/a"), file(".d/large")];
    let ino = alder.ino(".d");
    let moved = alder
        .spool()
        .outbox
        .tree_renaming(&rel(".d"), &rel("d"), ino, &files, Vec::new());
    fs::rename(alder.outbox(".d"), alder.outbox("d")).unwrap();
    let (done, outcome) = crossbeam_channel::bounded(1);
    alder.spool().outbox.seal_tree(TreeRequest {
        tree: moved.unwrap(),
        root: rel("d"),
        files: vec![(files[0].0, rel("d/a")), (files[1].0, rel("d/large"))],
        directories: vec![rel("d")],
        priority: Priority::Routine,
        done: Box::new(move |outcome| drop(done.send(outcome))),
    });
    let gate = alder.spool().outbox.gate(files[1].0);
    wait_until("it is being hashed", || gate.lock().tail_len() > 0);
    alder.drop_file("small", b"x");
    assert!(outcome.is_empty());
    fs::remove_file(alder.outbox("d/large")).unwrap();
    let SealOutcome::Sealed(bundle) = soon(&outcome) else {
        panic!("not sealed")
    };
    assert_eq!(alder.manifest(bundle).manifest().entries.len(), 1);
    alder.stop();
}

#[test]
fn a_large_file_that_is_being_sent_by_hand_does_not_hold_up_the_end() {
    let alder = Node::new();
    sparse(&alder, ".large");
    let (spool, request) = (
        Arc::clone(alder.spool()),
        SendRequest {
            files: vec![(rel(".large"), rel("large"))],
            ..SendRequest::default()
        },
    );
    let sending = std::thread::spawn(move || spool.send_files(&request).unwrap());
    let gate = alder.spool().outbox.gate(alder.ino(".large"));
    wait_until("it is being hashed", || gate.lock().tail_len() > 0);
    assert!(!sending.is_finished());
    alder.spool().outbox.end_large_hashing();
    let sent = sending.join().unwrap();
    assert!(
        matches!(&sent, Sent::Refused(why) if why.contains("ending")),
        "{sent:?}"
    );
    // What is small is sealed all the same.
    alder.drop_file("small", b"x");
}

/// Takes several slices to be hashed, and a second or so in all.
const MANY_SLICES: u64 = 512 << 20;

/// What a slice hashed stands in the file's gate, which went with the slice: the next one began anew, for ever.
#[test]
fn a_file_that_nobody_has_open_is_hashed_to_its_end_over_many_slices() {
    let alder = Node::new();
    fs::create_dir(alder.outbox(".d")).unwrap();
    for name in [".d/a", ".sent"] {
        let file = File::create(alder.outbox(name)).unwrap();
        file.set_len(MANY_SLICES).unwrap();
    }
    let (ino, member) = (alder.ino(".d"), alder.ino(".d/a"));
    let spool = Arc::clone(alder.spool());
    let files = [(member, rel(".d/a"))];
    let tree = spool
        .outbox
        .tree_renaming(&rel(".d"), &rel("d"), ino, &files, Vec::new());
    fs::rename(alder.outbox(".d"), alder.outbox("d")).unwrap();
    let (done, outcome) = crossbeam_channel::bounded(1);
    spool.outbox.seal_tree(TreeRequest {
        tree: tree.unwrap(),
        root: rel("d"),
        files: vec![(member, rel("d/a"))],
        directories: vec![rel("d")],
        priority: Priority::Routine,
        done: Box::new(move |outcome| drop(done.send(outcome))),
    });
    let outcome = soon(&outcome);
    assert!(matches!(outcome, SealOutcome::Sealed(_)), "{outcome:?}");
    let (done, outcome) = crossbeam_channel::bounded(1);
    let sending = std::thread::spawn(move || {
        let sent = spool.send_files(&SendRequest {
            files: vec![(rel(".sent"), rel("sent"))],
            ..SendRequest::default()
        });
        drop(done.send(sent.unwrap()));
    });
    let sent = outcome.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(sent, Sent::Sealed(_)), "{sent:?}");
    sending.join().unwrap();
}
