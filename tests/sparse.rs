//! Large and sparse files between real daemons.

mod common;

use std::fs::{self, File};

use common::{COMMAND, Node, wait_until};

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
