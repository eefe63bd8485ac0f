//! Who gets what, and what does not go any more: routes, `send`, `cancel` and `retry` with real daemons.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use common::{ARRIVES, COMMAND, Node, bytes, run, sha256, wait_until};

/// The code a command ends with, and what it says.
fn ends(node: &Node, command: &str, more: &[&str], with: i32) -> String {
    let ran = node.run(command, more);
    assert_eq!(
        ran.code,
        Some(with),
        "{command} {more:?}: {}{}",
        ran.stdout,
        ran.stderr
    );
    ran.stderr
}

/// Names of what the newest bundle from `path` goes to.
fn goes_to(node: &Node, path: &str) -> Vec<String> {
    let status = node.status();
    let rows = status["outbound"].as_array().unwrap();
    let row = rows.iter().find(|row| row["path"] == path).unwrap();
    let names = row["recipients"].as_array().unwrap().iter();
    names
        .map(|r| r["name"].as_str().unwrap().to_owned())
        .collect()
}

fn setfattr(at: &std::path::Path, name: &str, value: &str) -> common::Ran {
    let mut command = Command::new("setfattr");
    run(command.args(["-n", name, "-v", value]).arg(at), COMMAND)
}

#[test]
fn what_is_routed_reaches_those_it_is_for_and_nobody_else() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let cedar = Node::join("cedar", &alder);
    alder.wait_connected(&cedar);
    let directory = alder.outbox("for-cedar");
    fs::create_dir(&directory).unwrap();
    setfattr(&directory, "user.meshbox.to", "cedar").ok();
    setfattr(&directory, "user.meshbox.priority", "critical").ok();
    setfattr(&directory, "user.meshbox.to", "@nowhere").fails_saying(&["invalid argument"]);
    assert_eq!(Node::attribute(&directory, "to"), "cedar");
    fs::create_dir(directory.join("deep")).unwrap();
    let sha = alder.put("for-cedar/deep/f", b"for cedar alone");
    cedar.wait_arrived("for-cedar/deep/f", &sha);
    // A name nobody has: shown, and sent to nobody.
    setfattr(&directory, "user.meshbox.to", "dogwood").ok();
    alder.put("for-cedar/held", b"for dogwood");
    wait_until("held", ARRIVES, || {
        Node::attribute(&alder.outbox("for-cedar/held"), "state") == "waiting"
    });
    assert!(
        Node::attribute(&alder.outbox("for-cedar/held"), "error")
            .contains("nobody known as dogwood")
    );
    alder.stop();
    alder.restart();
    alder.wait_connected(&birch);
    alder.wait_connected(&cedar);
    setfattr(&directory, "user.meshbox.to", "birch").ok();
    let sha = alder.put("for-cedar/g", b"for birch now");
    birch.wait_arrived("for-cedar/g", &sha);
    alder.marker("mark", &birch);
    alder.marker("mark2", &cedar);
    assert!(!birch.inbox("for-cedar/deep/f").exists() && !cedar.inbox("for-cedar/g").exists());
    for node in [&birch, &cedar] {
        assert!(!node.inbox("for-cedar/held").exists());
    }
    assert_eq!(goes_to(&alder, "for-cedar/deep/f"), ["cedar"]);
}

#[test]
fn a_directory_is_sent_without_what_its_links_lead_to() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("source");
    fs::create_dir_all(source.join("d/sub")).unwrap();
    fs::write(source.join("secret"), b"secret").unwrap();
    fs::write(source.join("d/one"), b"1").unwrap();
    fs::write(source.join("d/sub/two"), b"2").unwrap();
    symlink("nowhere", source.join("d/broken")).unwrap();
    symlink("../secret", source.join("d/out")).unwrap();
    symlink("..", source.join("d/sub/up")).unwrap();
    let d = source.join("d");
    let said = ends(&alder, "send", &["--to", "birch", d.to_str().unwrap()], 0);
    for link in ["d/broken", "d/out", "d/sub/up"] {
        assert!(said.contains(&format!("{link}: symbolic links")), "{said}");
    }
    birch.wait_arrived("d/one", &sha256(b"1"));
    birch.wait_arrived("d/sub/two", &sha256(b"2"));
    let names = |at: &str| {
        let names = fs::read_dir(birch.inbox(at)).unwrap();
        names
            .map(|entry| entry.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    assert_eq!((names("d").len(), names("d/sub").len()), (2, 1));
}

#[test]
fn files_are_sent_as_one_bundle_with_an_id_and_cancelled_by_it() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("source");
    fs::create_dir_all(source.join("d")).unwrap();
    let content = bytes(7, 100_000);
    fs::write(source.join("d/one"), &content).unwrap();
    fs::write(source.join("two"), b"2").unwrap();
    let (d, two) = (source.join("d"), source.join("two"));
    let (d, two) = (d.to_str().unwrap(), two.to_str().unwrap());
    let sent = [
        "--to",
        "birch",
        "--priority",
        "low",
        "--bundle",
        "batch-1",
        d,
        two,
    ];
    ends(&alder, "send", &sent, 0);
    birch.wait_arrived("d/one", &sha256(&content));
    birch.wait_arrived("two", &sha256(b"2"));
    assert!(
        fs::read_dir(alder.outbox("")).unwrap().next().is_none(),
        "nothing stays in the outbox"
    );
    assert!(ends(&alder, "send", &sent, 0).contains("before"));
    fs::write(source.join("two"), b"other").unwrap();
    assert!(ends(&alder, "send", &sent, 6).contains("something else"));
    assert!(ends(&alder, "send", &["--to", "@hq", two], 1).contains("no group @hq"));
    ends(&alder, "send", &["--priority", "urgent", two], 2);
    // While birch is away it can be cancelled, by the id too, and never arrives.
    birch.stop();
    wait_until("gone", ARRIVES, || {
        alder.status()["peers"]
            .as_array()
            .unwrap()
            .iter()
            .all(|peer| peer["connected"] == false)
    });
    ends(&alder, "send", &["--bundle", "batch-2", d, two], 0);
    let sha = alder.put("kept", b"kept");
    alder.put("gone", b"gone");
    alder.wait_sealed();
    let gone = alder.outbox("gone");
    ends(&alder, "cancel", &[gone.to_str().unwrap()], 0);
    ends(&alder, "cancel", &["batch-2"], 0);
    assert_eq!(alder.outbound_state("gone"), "cancelled");
    assert_eq!(Node::attribute(&gone, "state"), "cancelled");
    ends(&alder, "wait", &[gone.to_str().unwrap()], 5);
    assert!(ends(&alder, "cancel", &["nothing-like-it"], 1).contains("nothing was sent"));
    birch.restart();
    birch.wait_arrived("kept", &sha);
    assert!(!birch.inbox("gone").exists());
    assert_eq!(
        fs::read(birch.inbox("two")).unwrap(),
        b"2",
        "not the cancelled one"
    );
    let kept = alder.outbox("kept");
    alder.wait_delivered("kept");
    assert!(ends(&alder, "cancel", &[kept.to_str().unwrap()], 1).contains("nothing left"));
    assert!(ends(&alder, "retry", &[kept.to_str().unwrap()], 1).contains("nobody to ask"));
}

#[test]
fn s22_routes_of_the_configuration_file_hold_and_what_was_refused_goes_when_asked_again() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    fs::create_dir_all(alder.state()).unwrap();
    fs::set_permissions(
        alder.state(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let config = "[groups]\nhq = [\"birch\"]\n[[route]]\npath = \"hq\"\nto = [\"@hq\"]\npriority = \"bulk\"\nlifetime = \"1h\"\n";
    fs::write(alder.state().join("config.toml"), config).unwrap();
    alder.mount(&[]).ok();
    let birch = Node::prepare("birch", &[]);
    birch
        .mount(&["--join", &alder.ticket(), "--max-bundle-bytes", "1KiB"])
        .ok();
    let cedar = Node::join("cedar", &alder);
    alder.wait_connected(&birch);
    alder.wait_connected(&cedar);
    fs::create_dir(alder.outbox("hq")).unwrap();
    let content = bytes(3, 2000);
    let sha = alder.put("hq/f", &content);
    wait_until("refused", ARRIVES, || {
        alder.outbound_state("hq/f") == "refused"
    });
    let file = alder.outbox("hq/f");
    let why = Node::attribute(&file, "error");
    assert!(why.contains("max_bundle_bytes"), "{why}");
    assert_eq!(goes_to(&alder, "hq/f"), ["birch"]);
    birch.stop();
    birch.mount(&["--max-bundle-bytes", "1MiB"]).ok();
    alder.wait_connected(&birch);
    ends(
        &alder,
        "retry",
        &[file.to_str().unwrap(), "--for", "birch"],
        0,
    );
    birch.wait_arrived("hq/f", &sha);
    alder.marker("mark", &cedar);
    assert!(!cedar.inbox("hq").exists());
}

#[test]
fn a_bundle_ends_when_its_lifetime_does_and_who_comes_back_later_does_not_get_it() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    alder.mount(&["--lifetime", "3s"]).ok();
    let birch = Node::join("birch", &alder);
    alder.wait_connected(&birch);
    birch.stop();
    alder.put("brief", b"for now");
    wait_until("it has expired", ARRIVES, || {
        alder.outbound_state("brief") == "expired"
    });
    birch.restart();
    alder.wait_connected(&birch);
    let sha = alder.put("after", b"later");
    birch.wait_arrived("after", &sha);
    assert!(!birch.inbox("brief").exists());
}
