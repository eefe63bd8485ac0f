//! Large files between real daemons: what a kill costs, what a change moves, and that receivers help each other.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{ARRIVES, Node, Seeded, bytes, sha256_file, wait_until};

const MIB: u64 = 1 << 20;

/// Chunks that are on their way at once: what a kill can cost.
const FLIGHT: u64 = 12 * MIB;

/// Waits until so much of a file that is `size` long has arrived in `node`, or all.
fn wait_partial(node: &Node, least: u64, path: &str) {
    let partial = node.state().join("partial");
    wait_until("some bytes", ARRIVES, || {
        let blocks = |entry: std::io::Result<std::fs::DirEntry>| {
            use std::os::unix::fs::MetadataExt;
            entry.ok()?.metadata().ok().map(|meta| meta.blocks() * 512)
        };
        let entries = std::fs::read_dir(&partial).into_iter().flatten();
        let arrived: u64 = entries.filter_map(blocks).sum();
        arrived >= least || node.inbox(path).exists()
    });
}

/// Every byte that came was kept once or counted as come in vain. What was cut off is counted a moment later.
fn wait_kept(nodes: &[&Node], size: u64) {
    let sum = |name: &str| nodes.iter().map(|node| node.count(name)).sum::<u64>();
    wait_until("all is counted", ARRIVES, || {
        sum("bytes_received") - sum("bytes_twice") == size
    });
}

/// Large enough that it is not there before a kill.
const SIZE: u64 = 96 * MIB;

const KILLS: u64 = 3;

#[test]
fn a_killed_receiver_fetches_at_most_the_open_ranges_again() {
    needs_mounts!();
    let mut random = Seeded::new();
    let (alder, birch) = Node::pair();
    let sha = alder.put("large", &bytes(7, SIZE));
    for _ in 0..KILLS {
        wait_partial(&birch, random.below(SIZE / 2), "large");
        birch.kill9();
        birch.restart();
    }
    birch.wait_arrived("large", &sha);
    let sent = alder.count("bytes_sent");
    assert!(
        (SIZE..=SIZE + KILLS * FLIGHT).contains(&sent),
        "{sent} bytes sent for {SIZE}"
    );
}

#[test]
fn a_killed_sender_gives_at_most_the_open_ranges_again() {
    needs_mounts!();
    let mut random = Seeded::new();
    let (alder, birch) = Node::pair();
    let sha = alder.put("large", &bytes(8, SIZE));
    for _ in 0..KILLS {
        wait_partial(&birch, random.below(SIZE / 2), "large");
        alder.kill9();
        alder.restart();
    }
    birch.wait_arrived("large", &sha);
    wait_kept(&[&birch], SIZE);
    let twice = birch.count("bytes_twice");
    assert!(twice <= KILLS * FLIGHT, "{twice} bytes in vain");
}

#[test]
fn a_change_in_place_of_a_gibibyte_moves_less_than_16_mib() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    // Sparse, for the sake of the disk: every byte of it is hashed, sent and written all the same.
    let at = alder.outbox("image");
    let file = File::create(&at).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"end", (1 << 30) - 3).unwrap();
    drop(file);
    let patience = Duration::from_secs(120);
    let same = |node: &Node| sha256_file(&node.inbox("image")).ok() == sha256_file(&at).ok();
    wait_until("the first version", patience, || {
        birch.inbox("image").exists()
    });
    let before = birch.count("bytes_received");
    let file = File::options().write(true).open(&at).unwrap();
    file.write_all_at(&bytes(1, MIB), (300 << 20) + 4321)
        .unwrap();
    drop(file);
    let changed = || {
        let shown = File::open(birch.inbox("image")).ok()?;
        let mut piece = vec![0; MIB as usize];
        shown.read_exact_at(&mut piece, (300 << 20) + 4321).ok()?;
        Some(piece == bytes(1, MIB))
    };
    wait_until("the second version", patience, || {
        changed().unwrap_or(false)
    });
    assert!(same(&birch));
    let moved = birch.count("bytes_received") - before;
    assert_eq!(moved, 2 * MIB, "the two chunks that it touches");
}

#[test]
fn receivers_of_one_file_give_each_other_what_they_have() {
    needs_mounts!();
    let alder = Node::start("alder");
    let receivers: Vec<Node> = ["birch", "cedar"]
        .into_iter()
        .map(|name| Node::join(name, &alder))
        .collect();
    receivers[0].wait_connected(&receivers[1]);
    let size = 64 * MIB;
    let sha = alder.put("large", &bytes(9, size));
    for node in &receivers {
        node.wait_arrived("large", &sha);
    }
    wait_kept(&[&receivers[0], &receivers[1]], 2 * size);
    for node in &receivers {
        let twice = node.count("bytes_twice");
        // A source that falls silent on a busy machine is not waited for: how often that is has no bound.
        assert!(twice <= size / 4, "{}: {twice} in vain", node.name());
    }
}
