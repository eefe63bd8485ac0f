//! Custody between real daemons: a member that has a file gives it to the others while its sender is away.

mod common;

use std::fs;
use std::process::Command;

use common::{ARRIVES, COMMAND, Node, bytes, meshbox, run, wait_until};

/// alder and birch know each other, and cedar, which was there once and is away.
fn three() -> (Node, Node, Node) {
    let (alder, birch) = Node::pair();
    let cedar = Node::join("cedar", &alder);
    birch.wait_connected(&cedar);
    cedar.stop();
    (alder, birch, cedar)
}

fn wait_for(node: &Node, path: &str, timeout: &str) -> common::Ran {
    let mut wait: Command = meshbox(&["wait", "--timeout", timeout]);
    run(wait.arg(node.outbox(path)), COMMAND + ARRIVES)
}

#[test]
fn a_file_goes_from_member_to_member_while_its_sender_is_away_and_the_sender_hears_of_it() {
    needs_mounts!();
    let (alder, birch, cedar) = three();
    let small = alder.put("d/small", b"small");
    let large = alder.put("large", &bytes(21, 5 << 20));
    birch.wait_arrived("d/small", &small);
    birch.wait_arrived("large", &large);
    wait_until("birch's receipts are there", ARRIVES, || {
        ["d/small", "large"]
            .iter()
            .all(|path| Node::attribute(&alder.outbox(path), "state") == "delivered 1/2")
    });
    alder.stop();
    // What its user removes, birch still keeps for cedar.
    fs::remove_file(birch.inbox("large")).unwrap();

    cedar.restart();
    cedar.wait_arrived("d/small", &small);
    cedar.wait_arrived("large", &large);
    assert_eq!(Node::attribute(&cedar.inbox("large"), "from"), "alder");
    wait_until("birch keeps nothing any more", ARRIVES, || {
        birch.count("held_bytes") == 0
    });
    cedar.stop();

    alder.restart();
    for path in ["d/small", "large"] {
        wait_for(&alder, path, "60s").ok();
        assert_eq!(
            Node::attribute(&alder.outbox(path), "state"),
            "delivered 2/2"
        );
    }
    cedar.restart();
    assert!(!birch.inbox("large").exists(), "removed is removed");
}

#[test]
fn a_member_that_is_gone_is_forgotten_and_nothing_waits_for_it() {
    needs_mounts!();
    let (alder, birch, _cedar) = three();
    let sha = alder.put("f", &bytes(22, 300_000));
    birch.wait_arrived("f", &sha);
    wait_until("birch's receipt is there", ARRIVES, || {
        Node::attribute(&alder.outbox("f"), "state") == "delivered 1/2"
    });
    wait_for(&alder, "f", "100ms").fails_saying(&["delivered 1/2"]);
    alder
        .run("forget", &["birch"])
        .fails_saying(&["birch is connected", "meshbox remove"]);
    alder
        .run("forget", &["nobody"])
        .fails_saying(&["no member nobody"]);
    let said = alder.run("forget", &["cedar"]).ok();
    assert!(said.stdout.contains("forgotten: cedar"), "{}", said.stdout);
    // Everybody who is still a member has it.
    wait_for(&alder, "f", "60s").ok();
    assert_eq!(
        Node::attribute(&alder.outbox("f"), "state"),
        "delivered 1/1"
    );
    assert!(!alder.run("peers", &[]).ok().stdout.contains("cedar"));
    let later = alder.put("g", b"g");
    birch.wait_arrived("g", &later);
    wait_for(&alder, "g", "60s").ok();
}
