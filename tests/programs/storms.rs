//! Writers that take their time, and writers that never stop.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::watcher::Watcher;
use crate::common::{Node, bytes, sha256};
use crate::needs_mounts;

/// How long a program may stop in the middle of a file and still be understood: the subject of the test.
const PAUSE: Duration = Duration::from_secs(10);

/// Sealed versions of `path`.
fn versions(node: &Node, path: &str) -> u64 {
    let status = node.status();
    let rows = status["outbound"].as_array().unwrap();
    rows.iter().filter(|row| row["path"] == path).count() as u64
}

#[test]
fn a_writer_that_pauses_for_ten_seconds_sends_once_and_whole() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let watcher = Watcher::over(&birch);
    let content = bytes(1, 200_000);
    let mut file = File::create(alder.outbox("slow")).unwrap();
    file.write_all(&content[..100_000]).unwrap();
    // What is written is synced, and one of two descriptors is closed: both say nothing about the end.
    file.sync_all().unwrap();
    drop(file.try_clone().unwrap());
    thread::sleep(PAUSE);
    assert_eq!(Node::attribute(&alder.outbox("slow"), "state"), "open");
    assert_eq!(alder.count("unsealed"), 1);
    file.write_all(&content[100_000..]).unwrap();
    drop(file);
    birch.wait_arrived("slow", &sha256(&content));
    alder.wait_sealed();
    alder.marker("marker", &birch);
    assert_eq!(versions(&alder, "slow"), 1);
    let seen = watcher.finish_seen();
    let whole = ("slow".into(), sha256(&content));
    let slow: BTreeSet<_> = seen
        .into_iter()
        .filter(|(path, _)| path.as_os_str() == "slow")
        .collect();
    assert_eq!(slow, BTreeSet::from([whole]), "seen at the receiver");
}

/// A save, or a line of a log, every 100 ms. `MESHBOX_TEST_STORM` is its length in seconds.
#[test]
fn a_version_storm_is_a_few_transfers_and_the_last_content_arrives() {
    needs_mounts!();
    let seconds = std::env::var("MESHBOX_TEST_STORM").map_or(12, |s| s.parse().unwrap());
    let (alder, birch) = Node::pair();
    let mut content = Vec::new();
    let start = Instant::now();
    let mut last = start;
    // On a busy machine there may be pauses long enough to be taken for the end.
    let mut pauses = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        let line = format!("line {}\n", content.len());
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(alder.outbox("log"))
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
        drop(file);
        content.extend_from_slice(line.as_bytes());
        if last.elapsed() > Duration::from_millis(900) {
            pauses += 1;
        }
        last = Instant::now();
        thread::sleep(Duration::from_millis(100));
    }
    birch.wait_arrived("log", &sha256(&content));
    alder.wait_sealed();
    // The first, one for each 30 s in which the file was never left alone, and the last.
    let most = 2 + seconds / 30 + pauses;
    let sent = versions(&alder, "log");
    assert!(
        (2..=most).contains(&sent),
        "{sent} versions in {seconds} s with {pauses} pauses"
    );
    eprintln!(
        "{sent} versions sent of {} written",
        content.split(|b| *b == b'\n').count() - 1
    );
}
