//! Directories that are sent as one bundle: what the other side sees, and what it never sees.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{ARRIVES, COMMAND, Node, Seeded, bytes, run, wait_until};

/// Every file below a directory with its content, and every directory with none.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let at = entry.path();
            let below = at.strip_prefix(root).unwrap().to_path_buf();
            if at.is_dir() {
                found.insert(below, None);
                todo.push(at);
            } else {
                found.insert(below, fs::read(at).ok());
            }
        }
    }
    found
}

/// Copies `from` to an ignored name in the outbox and commits it as `name`.
#[track_caller]
fn commit(node: &Node, from: &Path, name: &str) {
    let hidden = node.outbox(&format!(".{name}"));
    run(Command::new("cp").arg("-a").arg(from).arg(&hidden), ARRIVES).ok();
    fs::rename(hidden, node.outbox(name)).unwrap();
}

/// A directory of `count` files, all with the same text, in some directories.
fn same_text(root: &Path, count: usize, text: &str) {
    fs::remove_dir_all(root).ok();
    for n in 0..count {
        let at = root.join(format!("s{}/f{n}", n % 7));
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, text).unwrap();
    }
}

/// Looks at files of one directory again and again, in random order, and notes when it saw an older version of one after
/// a newer version of another.
struct Walker {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Walker {
    /// `version` reads a file and says which version it shows; 0 if it is not there.
    fn over(files: Vec<PathBuf>, directory: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let thread = thread::spawn({
            let (stop, rounds) = (stop.clone(), rounds.clone());
            move || {
                let mut random = Seeded::new();
                let (mut newest, mut wrong) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    // The kernel is to remember as much as it can: a whole listing with attributes, now and then.
                    if random.below(50) == 0 {
                        run(Command::new("ls").arg("-lR").arg(&directory), COMMAND);
                    }
                    for _ in 0..50 {
                        let file = &files[random.below(files.len() as u64) as usize];
                        let seen = version(file);
                        if seen < newest && wrong.len() < 20 {
                            wrong.push(format!("{} shows {seen} after {newest}", file.display()));
                        }
                        newest = newest.max(seen);
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            }
        });
        Self {
            stop,
            rounds,
            thread,
        }
    }

    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let wrong = self.thread.join().unwrap();
        assert!(self.rounds.load(Ordering::Relaxed) > 0, "it never looked");
        assert!(wrong.is_empty(), "a part of a bundle was seen: {wrong:#?}");
    }
}

/// The number a file holds; 0 when there is none.
fn version(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[test]
fn a_directory_is_sent_as_one_bundle_with_all_that_is_in_it() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("src").join("d");
    for (name, len) in [
        ("plain", 10),
        (".hidden", 20),
        ("half.part", 70_000),
        ("sub/big", 3_000_000),
        ("sub/none", 0),
    ] {
        fs::create_dir_all(source.join(name).parent().unwrap()).unwrap();
        fs::write(source.join(name), bytes(len, len)).unwrap();
    }
    fs::create_dir_all(source.join("empty/deeper")).unwrap();
    fs::set_permissions(source.join("plain"), fs::Permissions::from_mode(0o755)).unwrap();
    for (at, secs) in [("empty/deeper", -5), ("empty", 10), ("sub", 20), ("", 30)] {
        let touch = format!("touch -d @{secs}.123456789 \"$0\"");
        run(
            Command::new("sh").arg("-c").arg(touch).arg(source.join(at)),
            COMMAND,
        )
        .ok();
    }
    commit(&alder, &source, "d");
    wait_until("the directory is there", ARRIVES, || {
        birch.inbox("d").exists()
    });
    // Whole at the first sight of it.
    assert_eq!(tree(&birch.inbox("d")), tree(&source));
    for at in ["", "sub", "empty", "empty/deeper"] {
        let time = |of: &Path| {
            let meta = fs::metadata(of.join(at)).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        };
        assert_eq!(time(&birch.inbox("d")), time(&source), "{at}");
    }
    let mode = fs::metadata(birch.inbox("d/plain"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o111, 0o111);
    alder.wait_delivered("d");
    let status = alder.status();
    assert_eq!(
        status["outbound"].as_array().unwrap().len(),
        1,
        "{status:#}"
    );
    assert_eq!(
        Node::attribute(&alder.outbox("d/.hidden"), "state"),
        "delivered 1/1"
    );
    // A later change of one file is a bundle of that file.
    let sha = alder.put("d/plain", b"changed");
    birch.wait_arrived("d/plain", &sha);
    assert_eq!(alder.status()["outbound"].as_array().unwrap().len(), 2);
}

#[test]
fn the_bundle_waits_for_a_file_that_is_open() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    fs::create_dir(alder.outbox(".d")).unwrap();
    fs::write(alder.outbox(".d/done"), b"done").unwrap();
    let mut open = File::create(alder.outbox(".d/f")).unwrap();
    open.write_all(b"first half, ").unwrap();
    fs::rename(alder.outbox(".d"), alder.outbox("d")).unwrap();
    assert_eq!(Node::attribute(&alder.outbox("d"), "state"), "waiting: d/f");
    assert_eq!(
        Node::attribute(&alder.outbox("d/done"), "state"),
        "waiting: d/f"
    );
    alder.marker("marker", &birch);
    assert!(!birch.inbox("d").exists());
    open.write_all(b"second half").unwrap();
    drop(open);
    wait_until("the directory is there", ARRIVES, || {
        birch.inbox("d").exists()
    });
    assert_eq!(
        fs::read(birch.inbox("d/f")).unwrap(),
        b"first half, second half"
    );
    assert_eq!(fs::read(birch.inbox("d/done")).unwrap(), b"done");
}

#[test]
fn a_walker_never_sees_a_part_of_a_new_directory() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("src").join("d");
    same_text(&source, 2000, "1");
    let files: Vec<PathBuf> = (0..2000)
        .map(|n| birch.inbox(&format!("d/s{}/f{n}", n % 7)))
        .collect();
    let walker = Walker::over(files.clone(), birch.inbox(""));
    commit(&alder, &source, "d");
    wait_until("the directory is there", ARRIVES, || {
        birch.inbox("d").exists()
    });
    assert_eq!(common::files_below(&birch.inbox("d")).len(), 2000);
    alder.wait_delivered("d");
    walker.finish();
}

#[test]
fn a_walker_never_sees_an_older_file_after_a_newer_one_of_the_same_bundle() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("src").join("d");
    let count = 300;
    let files: Vec<PathBuf> = (0..count)
        .map(|n| birch.inbox(&format!("d/s{}/f{n}", n % 7)))
        .collect();
    let walker = Walker::over(files.clone(), birch.inbox(""));
    for round in 1..=6 {
        same_text(&source, count, &round.to_string());
        if round > 1 {
            fs::rename(alder.outbox("d"), alder.outbox(".old")).unwrap();
        }
        commit(&alder, &source, "d");
        let last = files.last().unwrap();
        wait_until("the round is there", ARRIVES, || version(last) == round);
        for file in &files {
            assert_eq!(version(file), round, "{}", file.display());
        }
        fs::remove_dir_all(alder.outbox(".old")).ok();
    }
    walker.finish();
}

#[test]
fn the_sender_is_killed_between_the_rename_and_the_seal() {
    needs_mounts!();
    let mut random = Seeded::new();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("src").join("d");
    same_text(&source, 200, "x");
    fs::write(source.join(".hidden"), b"h").unwrap();
    fs::create_dir(source.join("empty")).unwrap();
    let want = tree(&source);
    for round in 0..4 {
        let name = format!("d{round}");
        commit(&alder, &source, &name);
        let after = random.pause(Duration::from_millis(15));
        alder.kill9();
        alder.restart();
        eprintln!("round {round}: killed {after:?} after the rename");
        wait_until("the directory is there", ARRIVES, || {
            birch.inbox(&name).exists()
        });
        assert_eq!(tree(&birch.inbox(&name)), want, "round {round}");
    }
}

#[test]
fn the_receiver_is_killed_while_it_publishes() {
    needs_mounts!();
    let mut random = Seeded::new();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("src").join("d");
    for round in 1..=5 {
        same_text(&source, 300, &round.to_string());
        if round > 1 {
            fs::rename(alder.outbox("d"), alder.outbox(".old")).unwrap();
        }
        commit(&alder, &source, "d");
        fs::remove_dir_all(alder.outbox(".old")).ok();
        let after = random.pause(Duration::from_millis(150));
        birch.kill9();
        birch.restart();
        eprintln!("round {round}: killed {after:?} after the rename");
        let last = birch.inbox("d/s5/f299");
        wait_until("the round is there", ARRIVES, || version(&last) == round);
        assert_eq!(tree(&birch.inbox("d")), tree(&source), "round {round}");
    }
    alder.wait_delivered("d");
}

#[test]
fn a_bundle_of_a_hundred_of_which_one_changed_reaches_a_peer_that_was_away() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    birch.stop();
    let source = alder.root().join("src").join("d");
    same_text(&source, 100, "1");
    commit(&alder, &source, "d");
    wait_until("it is queued", ARRIVES, || {
        alder.outbound_state("d") == "queued"
    });
    fs::write(alder.outbox("d/s3/f3"), b"2").unwrap();
    wait_until("the change is queued", ARRIVES, || {
        alder.outbound_state("d/s3/f3") == "queued"
    });
    birch.restart();
    let version_of = |n: usize| version(&birch.inbox(&format!("d/s{}/f{n}", n % 7)));
    let all = || (0..100).all(|n| version_of(n) == if n == 3 { 2 } else { 1 });
    wait_until("all are there in their newest version", ARRIVES, all);
    alder.wait_delivered("d");
    alder.wait_delivered("d/s3/f3");
}
