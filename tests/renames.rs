//! Renames between real daemons: the receiver's name changes in one step and without bytes.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use common::{ARRIVES, Node, bytes, files_below, wait_until};

const SIZE: u64 = 3 << 20;

fn names(node: &Node) -> Vec<String> {
    let found = files_below(&node.inbox(""));
    found
        .into_iter()
        .map(|path| path.to_str().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn wait_names(node: &Node, want: &[&str]) {
    let mut seen = Vec::new();
    wait_until(&format!("{} shows {want:?}", node.name()), ARRIVES, || {
        let now = names(node);
        let there = now == want;
        seen = now;
        there
    });
}

fn ino(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn a_rename_moves_the_name_and_nothing_else() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("a", &bytes(1, SIZE));
    birch.wait_arrived("a", &sha);
    alder.wait_delivered("a");
    let (sent, number) = (alder.count("bytes_sent"), ino(&birch.inbox("a")));
    let mut reader = File::open(birch.inbox("a")).unwrap();
    let mut first = [0; 4096];
    reader.read_exact(&mut first).unwrap();

    // Looks at the listing all the time: it shows the file under one name, never under two or none.
    let stop = Arc::new(AtomicBool::new(false));
    let (looks, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let watcher = thread::spawn({
        let (stop, looks, wrong) = (stop.clone(), looks.clone(), wrong.clone());
        let inbox = birch.inbox("");
        move || {
            while !stop.load(Ordering::Relaxed) {
                if fs::read_dir(&inbox).unwrap().count() != 1 {
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
                looks.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    wait_until("the watcher looks", ARRIVES, || {
        looks.load(Ordering::Relaxed) > 10
    });
    for (from, to) in [("a", "b"), ("b", "c")] {
        fs::rename(alder.outbox(from), alder.outbox(to)).unwrap();
        wait_names(&birch, &[to]);
        alder.wait_delivered(to);
        assert_eq!(ino(&birch.inbox(to)), number);
        wait_until("the kernel has forgotten the old name", ARRIVES, || {
            !birch.inbox(from).exists()
        });
    }
    stop.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    assert_eq!(wrong.load(Ordering::Relaxed), 0);

    birch.wait_arrived("c", &sha);
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!([first.as_slice(), &rest].concat(), bytes(1, SIZE));
    assert_eq!(alder.count("bytes_sent"), sent, "no byte moved");

    // What is renamed is consumed as any other, and the old name is free for a new file.
    fs::remove_file(birch.inbox("c")).unwrap();
    let again = alder.put("a", b"again");
    birch.wait_arrived("a", &again);
    wait_names(&birch, &["a"]);
}

#[test]
fn a_mode_and_a_time_set_after_the_seal_change_the_file_in_place() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("tool", &bytes(1, SIZE));
    birch.wait_arrived("tool", &sha);
    alder.wait_delivered("tool");
    let (sent, number) = (alder.count("bytes_sent"), ino(&birch.inbox("tool")));
    let mut reader = File::open(birch.inbox("tool")).unwrap();
    let mut first = [0; 4096];
    reader.read_exact(&mut first).unwrap();

    let tool = alder.outbox("tool");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let time = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    // As `touch -d`: through a handle that could write.
    let handle = File::options().write(true).open(&tool).unwrap();
    handle.set_modified(time).unwrap();
    drop(handle);
    wait_until("the peer's file has both", ARRIVES, || {
        let meta = fs::metadata(birch.inbox("tool")).unwrap();
        meta.mode() & 0o777 == 0o755 && meta.modified().unwrap() == time
    });
    alder.wait_delivered("tool");
    assert_eq!(names(&birch), ["tool"]);
    assert_eq!(ino(&birch.inbox("tool")), number);
    assert_eq!(alder.count("bytes_sent"), sent, "no byte moved");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!([first.as_slice(), &rest].concat(), bytes(1, SIZE));

    // Consumed stays consumed.
    fs::remove_file(birch.inbox("tool")).unwrap();
    let settled = birch.count("published");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o644)).unwrap();
    wait_until("it is settled", ARRIVES, || {
        birch.count("published") > settled
    });
    assert_eq!(names(&birch), [""; 0]);
}

#[test]
fn who_was_away_gets_the_last_name_only_and_restarts_change_nothing() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let had = alder.put("had", &bytes(1, SIZE));
    birch.wait_arrived("had", &had);
    alder.wait_delivered("had");
    let number = ino(&birch.state().join("inbox/had"));
    birch.stop();
    let new = alder.put("new", &bytes(2, SIZE));
    wait_until("it is queued", ARRIVES, || {
        alder.outbound_state("new") == "queued"
    });
    for (from, to) in [("had", "x"), ("new", "n1"), ("x", "y"), ("n1", "n2")] {
        fs::rename(alder.outbox(from), alder.outbox(to)).unwrap();
        wait_until("the new name is queued", ARRIVES, || {
            alder.outbound_state(to) == "queued"
        });
    }
    alder.stop();
    alder.restart();
    birch.restart();
    birch.wait_arrived("n2", &new);
    birch.wait_arrived("y", &had);
    alder.wait_delivered("n2");
    alder.wait_delivered("y");
    assert_eq!(names(&birch), ["n2", "y"]);
    assert_eq!(ino(&birch.state().join("inbox/y")), number);
    // Its counters began with its restart. What was sent twice on the way depends on how busy the machine is.
    wait_until("only what it never had was kept", ARRIVES, || {
        birch.count("bytes_received") - birch.count("bytes_twice") == SIZE
    });
    assert_eq!(alder.outbound_state("had"), "delivered");
    assert_eq!(alder.outbound_state("new"), "superseded");
}

#[test]
fn directories_exchanges_and_what_was_consumed() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    for name in ["d/x", "d/sub/y", "one", "two"] {
        let sha = alder.put(name, name.as_bytes());
        birch.wait_arrived(name, &sha);
        alder.wait_delivered(name);
    }
    fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
    wait_names(&birch, &["e/sub/y", "e/x", "one", "two"]);
    wait_until("the emptied directories are gone", ARRIVES, || {
        !birch.inbox("d").exists()
    });

    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let at = rustix::fs::CWD;
    rustix::fs::renameat_with(at, alder.outbox("one"), at, alder.outbox("two"), flags).unwrap();
    wait_until("both changed places", ARRIVES, || {
        fs::read(birch.inbox("one")).is_ok_and(|text| text == b"two")
            && fs::read(birch.inbox("two")).is_ok_and(|text| text == b"one")
    });

    fs::remove_file(birch.inbox("e/x")).unwrap();
    fs::rename(alder.outbox("e/x"), alder.outbox("z")).unwrap();
    alder.wait_delivered("z");
    // Replaced by a file that was there before: no name of its own is left.
    fs::rename(alder.outbox("one"), alder.outbox("two")).unwrap();
    wait_names(&birch, &["e/sub/y", "two"]);
    assert_eq!(fs::read(birch.inbox("two")).unwrap(), b"two");
    assert_eq!(birch.status()["counts"]["quarantined"], 0);
}

/// As a deployment does that keeps two generations: the new one is built aside and exchanged with the one that shows.
#[test]
fn what_is_exchanged_is_sent_as_if_renamed() {
    needs_mounts!();
    let exchange = |node: &Node, a: &str, b: &str| {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (a, b) = (node.outbox(a), node.outbox(b));
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
    };
    let (alder, birch) = Node::pair();
    for dir in [".h", "g", "one", "two"] {
        fs::create_dir(alder.outbox(dir)).unwrap();
    }
    for (name, text) in [
        (".h/a", "new"),
        (".h/.b", "hidden"),
        ("g/a", "old"),
        ("one/x", "1"),
        ("two/x", "2"),
        ("f", "f"),
        (".p", "p"),
    ] {
        fs::write(alder.outbox(name), text).unwrap();
    }
    wait_names(&birch, &["f", "g/a", "one/x", "two/x"]);
    alder.wait_sealed();
    exchange(&alder, ".h", "g");
    exchange(&alder, "one", "two");
    exchange(&alder, ".p", "f");
    let want = [
        ("g/a", "new"),
        ("g/.b", "hidden"),
        ("one/x", "2"),
        ("two/x", "1"),
        ("f", "p"),
    ];
    for (name, text) in want {
        wait_until(&format!("{name} is {text}"), ARRIVES, || {
            fs::read_to_string(birch.inbox(name)).is_ok_and(|found| found == text)
        });
        alder.wait_delivered(if name.starts_with("g/") { "g" } else { name });
    }
    alder.wait_sealed();
    // The other way round, and what is a directory becomes a file's name.
    exchange(&alder, "g", ".h");
    wait_until("the old generation is back", ARRIVES, || {
        fs::read_to_string(birch.inbox("g/a")).is_ok_and(|found| found == "old")
    });
}

#[test]
fn what_was_consumed_does_not_come_back_by_a_rename_over_a_name_used_before() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let put = |name: &str, text: &str| {
        let sha = alder.put(name, text.as_bytes());
        birch.wait_arrived(name, &sha);
        alder.wait_delivered(name);
    };
    let mv = |from: &str, to: &str| {
        fs::rename(alder.outbox(from), alder.outbox(to)).unwrap();
        alder.wait_delivered(to);
    };
    put("t", "old");
    mv("t", "t2");
    put("c", "job");
    fs::remove_file(birch.inbox("c")).unwrap();
    mv("c", "t");
    wait_names(&birch, &["t2"]);

    // A log that is rotated, as logrotate does it, and consumed at each turn.
    for turn in 0..4 {
        let rotated = [("l.1", "l.2"), ("l", "l.1")].map(|(from, to)| {
            let there = alder.outbox(from).exists();
            if there {
                fs::rename(alder.outbox(from), alder.outbox(to)).unwrap();
            }
            (there, to)
        });
        for (_, to) in rotated.iter().filter(|(there, _)| *there) {
            alder.wait_delivered(to);
        }
        put("l", &format!("turn {turn}"));
        wait_names(&birch, &["l", "t2"]);
        fs::remove_file(birch.inbox("l")).unwrap();
        wait_names(&birch, &["t2"]);
    }
    assert_eq!(birch.status()["counts"]["quarantined"], 0);
}

/// Of two bundles that exchange two names none is the first, and a file that others hold up is renamed late.
#[test]
fn what_was_consumed_does_not_come_back_by_an_exchange_or_a_rename_that_overtakes_another() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    for name in ["a", "b", "t", "c"] {
        let sha = alder.put(name, name.as_bytes());
        birch.wait_arrived(name, &sha);
        alder.wait_delivered(name);
    }
    fs::remove_file(birch.inbox("a")).unwrap();
    fs::remove_file(birch.inbox("c")).unwrap();
    for _ in 0..2 {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (a, b) = (alder.outbox("a"), alder.outbox("b"));
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
        for name in ["a", "b"] {
            alder.wait_sealed();
            alder.wait_delivered(name);
        }
    }
    wait_names(&birch, &["b", "t"]);

    // It is not sent under its new name while it is open for writing.
    let open = File::options().append(true).open(alder.outbox("t"));
    fs::rename(alder.outbox("t"), alder.outbox("t2")).unwrap();
    fs::rename(alder.outbox("c"), alder.outbox("t")).unwrap();
    alder.wait_delivered("t");
    wait_names(&birch, &["b", "t"]);
    assert_eq!(fs::read(birch.inbox("t")).unwrap(), b"t");
    drop(open);
    alder.wait_delivered("t2");
    wait_names(&birch, &["b", "t2"]);
    assert_eq!(birch.status()["counts"]["quarantined"], 0);
}

#[test]
fn the_name_of_a_directory_becomes_a_files_and_back() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let put = |name: &str, text: &str| {
        let sha = alder.put(name, text.as_bytes());
        birch.wait_arrived(name, &sha);
        alder.wait_delivered(name);
    };
    let mv = |from: &str, to: &str| fs::rename(alder.outbox(from), alder.outbox(to)).unwrap();
    fs::create_dir(alder.outbox("d")).unwrap();
    for n in 0..150 {
        fs::write(alder.outbox(&format!("d/{n}")), format!("{n}")).unwrap();
    }
    let below = |directory: &str| {
        let mut names: Vec<String> = (0..150).map(|n| format!("{directory}/{n}")).collect();
        names.push("d".to_owned());
        names.sort();
        names
    };
    wait_until("all are there", ARRIVES, || names(&birch).len() == 150);
    alder.wait_sealed();
    mv("d", "e");
    fs::write(alder.outbox("d"), "x").unwrap();
    let is_there = |want: Vec<String>| {
        wait_until("all have their names", ARRIVES, || names(&birch) == want);
    };
    is_there(below("e"));
    assert_eq!(fs::read(birch.inbox("d")).unwrap(), b"x");

    // They change places.
    alder.wait_sealed();
    mv("d", "t");
    mv("e", "d");
    mv("t", "e");
    let mut swapped = below("d");
    swapped.retain(|name| name != "d");
    swapped.push("e".to_owned());
    is_there(swapped);
    assert!(birch.inbox("d").is_dir());
    assert_eq!(fs::read(birch.inbox("e")).unwrap(), b"x");

    put("p/p", "file");
    fs::rename(alder.outbox("p"), alder.outbox("q")).unwrap();
    fs::rename(alder.outbox("q/p"), alder.outbox("p")).unwrap();
    fs::remove_dir(alder.outbox("q")).unwrap();
    wait_until("it has the name of its directory", ARRIVES, || {
        fs::read(birch.inbox("p")).is_ok_and(|text| text == b"file")
    });
    assert!(names(&birch).iter().all(|name| !name.contains('~')));
}

/// Bytes and mode belong to the file, whatever name it is changed through.
#[test]
fn what_changes_a_file_with_several_names_is_sent_under_each() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    fs::write(alder.outbox("f"), "1").unwrap();
    fs::hard_link(alder.outbox("f"), alder.outbox("g")).unwrap();
    fs::write(alder.outbox(".x"), "1").unwrap();
    fs::hard_link(alder.outbox(".x"), alder.outbox("h")).unwrap();
    wait_names(&birch, &["f", "g", "h"]);
    for name in ["f", "g", "h"] {
        alder.wait_delivered(name);
    }
    let append = |name: &str| {
        use std::io::Write;
        let file = File::options().append(true).open(alder.outbox(name));
        file.unwrap().write_all(b"2").unwrap();
    };
    append("g");
    append("h");
    let asked = [alder.outbox("g"), alder.outbox("h")];
    let asked = asked.each_ref().map(|path| path.to_str().unwrap());
    alder.run("wait", &asked).ok();
    for name in ["f", "g", "h"] {
        wait_until(&format!("{name} is new"), ARRIVES, || {
            fs::read_to_string(birch.inbox(name)).is_ok_and(|text| text == "12")
        });
    }
    wait_until("it is delivered under its least name", ARRIVES, || {
        Node::attribute(&alder.outbox("h"), "state") == "delivered 1/1"
    });
    fs::set_permissions(alder.outbox("g"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["f", "g"] {
        wait_until(&format!("{name} is executable"), ARRIVES, || {
            fs::metadata(birch.inbox(name)).is_ok_and(|meta| meta.mode() & 0o111 != 0)
        });
    }
}
