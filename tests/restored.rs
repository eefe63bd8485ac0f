//! A state that was moved, restored, or lost its journal, and the daemon that is started on it.

mod common;

use std::fs;
use std::process::Command;

use common::*;

/// Stops the daemon, makes its state anew with `script` (`$1` is the old one, `$2` the new), and starts it again.
fn moves(node: &Node, script: &str) {
    node.stop();
    let old = node.root().join("old");
    fs::rename(node.state(), &old).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-ec", script, "sh"])
        .arg(&old)
        .arg(node.state());
    run(&mut command, COMMAND).ok();
    fs::remove_dir_all(&old).unwrap();
    node.restart();
}

fn checked(node: &Node) {
    wait_until("nothing is in doubt", ARRIVES, || {
        node.count("unverified") == 0
    });
}

#[test]
fn a_moved_state_keeps_its_inbox_and_sends_nothing_twice() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let large = bytes(1, 5 << 20);
    let sha = alder.put("d/large", &large);
    let there = birch.put("back", b"from birch");
    let small = alder.put("small", b"small");
    alder.put("eaten", b"eaten");
    birch.wait_arrived("d/large", &sha);
    birch.wait_arrived("small", &small);
    alder.wait_delivered("eaten");
    alder.wait_delivered("small");
    alder.wait_delivered("d/large");
    birch.wait_delivered("back");
    fs::remove_file(birch.inbox("eaten")).unwrap();
    for script in [
        "rsync -aHX \"$1/\" \"$2/\"",
        "cp -a \"$1\" \"$2\"",
        "mkdir -m 700 \"$2\"; tar -C \"$1\" --exclude=control.sock -cf - . | tar -C \"$2\" -xf -",
    ] {
        moves(&birch, script);
        checked(&birch);
        assert_eq!(
            sha256_file(&birch.inbox("d/large")).unwrap(),
            sha,
            "{script}"
        );
        assert_eq!(fs::read(birch.inbox("small")).unwrap(), b"small");
        assert!(!birch.inbox("eaten").exists(), "{script}");
        let status = birch.status();
        assert!(status["trouble"].is_null(), "{script}: {status:#}");
        assert_eq!(birch.count("quarantined"), 0, "{script}");
        birch.wait_connected(&alder);
        // What comes after it comes as ever; nothing of before came again.
        birch.marker(&format!("marker-{}", script.len()), &alder);
        assert_eq!(alder.count("published"), birch_sent(&alder), "{script}");
        assert_eq!(sha256_file(&alder.inbox("back")).unwrap(), there);
    }
}

/// How many files of the other side the inbox shows.
fn birch_sent(alder: &Node) -> u64 {
    files_below(&alder.mountpoint().join("inbox")).len() as u64
}

#[test]
fn a_damaged_journal_is_refused_and_without_it_the_inbox_comes_back() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("a", &bytes(2, 300_000));
    birch.wait_arrived("a", &sha);
    alder.wait_delivered("a");
    let sent = birch.put("mine", b"sent once");
    alder.wait_arrived("mine", &sent);
    birch.wait_delivered("mine");
    fs::remove_file(alder.inbox("mine")).unwrap();
    birch.stop();
    let journal = birch.state().join("journal.redb");
    let half = fs::metadata(&journal).unwrap().len() / 2;
    let file = fs::File::options().write(true).open(&journal).unwrap();
    file.set_len(half).unwrap();
    drop(file);
    let step = format!("mv {0} {0}.damaged", journal.display());
    birch.mount(&[]).fails_saying(&["is damaged", &step]);
    run(Command::new("sh").args(["-ec", &step]), COMMAND).ok();
    birch.restart();
    checked(&birch);
    assert_eq!(sha256_file(&birch.inbox("a")).unwrap(), sha);
    let status = birch.status();
    let trouble = status["trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("the journal was missing"), "{status:#}");
    // What was sent is not sent again by itself; what is written now is.
    birch.wait_connected(&alder);
    birch.marker("marker", &alder);
    assert!(!alder.inbox("mine").exists());
    let again = Node::attribute(&birch.outbox("mine"), "state");
    assert!(again.starts_with("incomplete"), "{again}");
}
