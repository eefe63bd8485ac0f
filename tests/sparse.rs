//! Large and sparse files between real daemons.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{COMMAND, Node, sha256_file, wait_until};

const MIB: u64 = 1 << 20;

/// Bytes that a file takes on the disk.
fn stored(path: &std::path::Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn large_files_that_are_being_hashed_hold_up_neither_small_ones_nor_the_end() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let large = ["w", "x", "y", "z"];
    for name in large {
        let file = File::create(alder.outbox(name)).unwrap();
        // Takes longer to hash than this test may take.
        file.set_len(1 << 40).unwrap();
    }
    let state = |name| Node::attribute(&alder.outbox(name), "state");
    for name in large {
        wait_until("it is being hashed", COMMAND, || state(name) == "sealing");
    }
    alder.marker("small", &birch);
    fs::remove_file(alder.outbox("w")).unwrap();
    fs::rename(alder.outbox("x"), alder.outbox(".x")).unwrap();
    wait_until("what is removed or ignored is not hashed", COMMAND, || {
        alder.count("unsealed") == 2
    });
    // Which ends within its own limit of 30 s.
    alder.stop();
    alder.restart();
    alder.wait_connected(&birch);
    wait_until("it is begun again", COMMAND, || {
        ["y", "z"].iter().all(|name| state(name) == "sealing")
    });
    alder.marker("after", &birch);
}

#[test]
fn a_file_with_holes_costs_its_bytes_on_the_way_and_in_the_inbox() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let image = alder.root().join("image");
    let file = File::create(&image).unwrap();
    for at in [0, 100, 400] {
        file.write_all_at(b"a block", at * MIB).unwrap();
    }
    file.set_len(512 * MIB).unwrap();
    let sha = sha256_file(&image).unwrap();
    // As `cp` copies it: seeks over holes, or writes zeros.
    for (name, how) in [("holes", "always"), ("zeros", "never")] {
        let sparse = format!("--sparse={how}");
        let mut cp = std::process::Command::new("cp");
        let to = alder.outbox(name);
        common::run(cp.arg(sparse).arg(&image).arg(to), COMMAND).ok();
        birch.wait_arrived(name, &sha);
        alder.wait_delivered(name);
        assert!(stored(&birch.inbox(name)) <= 4 * MIB, "{name}");
    }
    let received = birch.count("bytes_received");
    assert!(received <= 6 * MIB, "{received} bytes received");
    let all = alder.outbox("nothing");
    File::create(&all).unwrap().set_len(512 * MIB).unwrap();
    alder.wait_delivered("nothing");
    assert_eq!(
        fs::metadata(birch.inbox("nothing")).unwrap().len(),
        512 * MIB
    );
    assert_eq!(stored(&birch.inbox("nothing")), 0);
    assert_eq!(birch.count("bytes_received"), received);
}
