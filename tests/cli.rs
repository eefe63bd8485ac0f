//! The command contract other programs rely on: exit codes, output, errors that say what to do, ways to stop.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    ARRIVES, BIN, COMMAND, Node, bytes, is_running, meshbox, mounted_type, processes_of, run,
    sha256_file, signal, wait_child, wait_until,
};
use rustix::process::Signal;

/// Exit codes, as README.md and `--help` list them.
const USAGE: i32 = 2;
const NO_DAEMON: i32 = 3;
const TIMEOUT: i32 = 4;
const NOT_AS_ASKED: i32 = 5;

/// A refused `mount` leaves nothing behind.
#[track_caller]
fn nothing_left(node: &Node) {
    assert_eq!(mounted_type(&node.mountpoint()), None);
    assert_eq!(processes_of(node.root()), Vec::<i32>::new());
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_command_explains_itself() {
    run(&mut meshbox(&["--help"]), COMMAND).ok();
    run(&mut meshbox(&["--version"]), COMMAND).ok();
    for command in [
        "mount", "umount", "status", "peers", "ticket", "wait", "send", "config", "id",
    ] {
        let help = run(&mut meshbox(&[command, "--help"]), COMMAND).ok();
        assert!(help.stdout.contains("--"), "{help:?}");
    }
}

#[test]
fn a_mistyped_flag_is_a_usage_error() {
    for args in [
        &["mount", "--nonsense", "/mnt"][..],
        &["nonsense"],
        &["mount"],
    ] {
        let ran = run(&mut meshbox(args), COMMAND);
        assert_eq!(ran.code, Some(USAGE), "{args:?}: {ran:?}");
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn mount_says_who_we_are_and_keeps_the_secret() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    let ran = alder.mount(&[]).ok();
    assert!(
        ran.stdout.contains("ready:") && ran.stdout.contains("alder"),
        "{ran:?}"
    );
    assert!(
        !ran.stdout.contains("meshbox1"),
        "a ticket is a secret: {ran:?}"
    );
    assert_eq!(
        mounted_type(&alder.mountpoint()).as_deref(),
        Some("fuse.meshbox")
    );
    for dir in ["outbox", "inbox", ".meshbox"] {
        assert!(alder.mountpoint().join(dir).is_dir(), "{dir}");
    }
    for key in ["identity.key", "group.key"] {
        let mode = fs::metadata(alder.state().join(key))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn ticket_prints_exactly_one_line() {
    needs_mounts!();
    let alder = Node::start("alder");
    let ran = alder.run("ticket", &[]).ok();
    assert!(
        ran.stdout.starts_with("meshbox1") && ran.stdout.ends_with('\n'),
        "{ran:?}"
    );
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
}

#[test]
fn status_has_the_promised_shape() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("a/b.txt", b"hello");
    birch.wait_arrived("a/b.txt", &sha);
    alder.wait_delivered("a/b.txt");
    let status = alder.status();
    for key in ["version", "id", "name", "group", "mountpoint"] {
        assert!(
            status[key].as_str().is_some_and(|s| !s.is_empty()),
            "{key} in {status:#}"
        );
    }
    assert_eq!(status["name"], "alder");
    assert_eq!(status["mountpoint"], text(&alder.mountpoint()));
    let listen = status["listen"].as_array().unwrap();
    assert!(listen.iter().all(|a| {
        a.as_str()
            .is_some_and(|a| a.starts_with("127.0.0.1:") && !a.ends_with(":0"))
    }));
    let peer = &status["peers"][0];
    assert_eq!(peer["name"], "birch");
    assert_eq!(peer["connected"], true);
    assert!(
        peer["id"].is_string() && peer["pending"].is_u64() && peer["last_seen"].is_u64(),
        "{status:#}"
    );
    let row = &status["outbound"][0];
    assert_eq!(row["path"], "a/b.txt");
    assert_eq!(row["sha256"], sha.as_str());
    assert_eq!(row["size"], 5);
    assert_eq!(row["state"], "delivered");
    assert_eq!(row["recipients"][0]["name"], "birch");
    assert_eq!(row["recipients"][0]["state"], "delivered");
    assert!(status["counts"]["bytes_sent"].is_u64(), "{status:#}");
    let row = &birch.status()["inbound"][0];
    assert_eq!(
        (&row["path"], &row["from"]),
        (&"a/b.txt".into(), &"alder".into())
    );

    let file = fs::read(alder.mountpoint().join(".meshbox/status.json")).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(file["id"], status["id"]);
    assert!(alder.run("peers", &[]).ok().stdout.contains("birch"));
    assert!(alder.run("status", &[]).ok().stdout.contains("birch"));
    serde_json::from_str::<serde_json::Value>(&alder.run("peers", &["--json"]).ok().stdout)
        .unwrap();
}

#[test]
fn wait_tells_delivered_from_timed_out() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    alder.put("now", b"at once");
    alder
        .run("wait", &[text(&alder.outbox("now")), "--timeout", "60s"])
        .ok();
    birch.stop();
    alder.put("later", b"not yet");
    let ran = alder.run(
        "wait",
        &[text(&alder.outbox("later")), "--timeout", "300ms"],
    );
    assert_eq!(ran.code, Some(TIMEOUT), "{ran:?}");
    let ran = alder.run(
        "wait",
        &[text(&alder.outbox("never-written")), "--timeout", "300ms"],
    );
    assert!(!matches!(ran.code, None | Some(0 | TIMEOUT)), "{ran:?}");
    birch.restart();
    alder
        .run(
            "wait",
            &[
                text(&alder.outbox("later")),
                "--for",
                "birch",
                "--timeout",
                "60s",
            ],
        )
        .ok();
}

#[test]
fn wait_ends_at_once_for_what_is_not_sent_and_follows_what_was_removed() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    fs::write(alder.outbox("f.part"), b"x").unwrap();
    let ran = alder.run("wait", &[text(&alder.outbox("f.part")), "--timeout", "60s"]);
    assert_eq!(ran.code, Some(NOT_AS_ASKED), "{ran:?}");
    ran.fails_saying(&["ignored", "*.part"]);
    birch.stop();
    alder.put("gone", b"dropped");
    wait_until("it is queued", COMMAND, || {
        alder.outbound_state("gone") == "queued"
    });
    fs::remove_file(alder.outbox("gone")).unwrap();
    let wait = |limit| alder.run("wait", &[text(&alder.outbox("gone")), "--timeout", limit]);
    assert_eq!(wait("300ms").code, Some(TIMEOUT));
    birch.restart();
    wait("60s").ok();
    wait("60s").ok();
}

/// A full disk or a limit was told as a killed writer, and a missing file as an error of the backing file system.
#[test]
fn what_holds_a_file_back_and_what_is_missing_is_said() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    alder.mount(&["--max-file-bytes", "1KiB"]).ok();
    assert!(fs::write(alder.outbox("large"), bytes(1, 4096)).is_err());
    wait_until("it is held back", COMMAND, || {
        Node::attribute(&alder.outbox("large"), "state") == "incomplete"
    });
    alder.run("wait", &["large"]).fails_saying(&[
        "incomplete: a write failed",
        "too large",
        "meshbox send",
    ]);
    alder.run("send", &["nowhere"]).fails_saying(&[
        "nowhere: there is no such file",
        "neither here nor in outbox/",
    ]);
    let gone = alder.outbox("gone");
    alder
        .run("send", &[text(&gone)])
        .fails_saying(&["there is no such file"]);
    alder.stop();
}

#[test]
fn where_nobody_else_is_wait_says_so_or_waits_for_the_first() {
    needs_mounts!();
    let alder = Node::start("alder");
    let nothing = alder.run("wait", &[]).ok().stdout;
    assert!(nothing.contains("nothing is on its way"), "{nothing}");
    alder.put("f", b"x");
    for more in [&[][..], &["f"], &["--for", "1", "f"]] {
        let ran = alder.run("wait", &[more, &["--timeout", "60s"]].concat());
        assert_eq!(ran.code, Some(NOT_AS_ASKED), "{more:?}: {ran:?}");
        ran.fails_saying(&["no other member", "meshbox ticket", "--for-first"]);
    }
    let mut first = meshbox(&["wait", "--for-first", "--timeout", "60s", "--state"]);
    let mut first = first.arg(alder.state()).spawn().unwrap();
    let _birch = Node::join("birch", &alder);
    assert_eq!(wait_child(&mut first, COMMAND), Some(0));
    alder.run("wait", &["--timeout", "60s"]).ok();
}

#[test]
fn wait_takes_directories_bundles_and_all_and_names_who_is_missing() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    birch.stop();
    for path in ["d/a", "d/sub/b", "d/c.part", "e"] {
        alder.put(path, b"12345");
    }
    // Held back because of its name, which is no failure of the directory it is in.
    let wait = |more: &[&str]| alder.run("wait", &[more, &["--timeout", "1s"]].concat());
    let directory = alder.outbox("d");
    let mountpoint = alder.mountpoint();
    for (what, files) in [
        (Some(directory.as_path()), 2),
        (Some(Path::new("d/sub")), 1),
        (Some(mountpoint.as_path()), 3),
        (None, 3),
    ] {
        let named: Vec<&str> = what.into_iter().map(text).collect();
        let ran = wait(&named);
        assert_eq!(ran.code, Some(TIMEOUT), "{ran:?}");
        let some = if files == 1 { "file" } else { "files" };
        let missing = format!("missing: birch: {files} {some}, ");
        ran.fails_saying(&[&missing, "offline since 20", " ago"]);
    }
    let json = wait(&["--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["outcome"], "timeout");
    assert_eq!(json["missing"][0]["name"], "birch");
    assert_eq!(json["missing"][0]["files"], 3);
    assert!(json["missing"][0]["offline_since"].as_u64() > Some(1 << 30));
    let rows = alder.status()["outbound"].as_array().unwrap().clone();
    let row = rows.iter().find(|row| row["path"] == "e").unwrap();
    let bundle = row["bundle"].as_str().unwrap();
    wait(&[bundle]).fails_saying(&[bundle, "delivered 0/1", "missing: birch: 1 file"]);
    let unknown = wait(&[&"0".repeat(64)]);
    assert_eq!(unknown.code, Some(NOT_AS_ASKED), "{unknown:?}");

    birch.restart();
    for named in [&[][..], &[bundle], &[text(&directory), "e"], &["d"]] {
        let ran = alder.run("wait", &[named, &["--timeout", "60s"]].concat());
        assert_eq!(ran.code, Some(0), "{named:?}: {ran:?}");
        assert_eq!(ran.stderr, "", "nothing is shown but on a terminal");
    }
    alder
        .run("wait", &[text(&alder.inbox("x"))])
        .fails_saying(&["is not below"]);
}

#[test]
fn umount_and_send_can_wait_for_the_delivery() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("src/report");
    fs::write(&source, b"sent").unwrap();
    alder
        .run("send", &["--wait", "--timeout", "60s", text(&source)])
        .ok();
    birch.wait_arrived("report", &common::sha256(b"sent"));
    birch.stop();
    let late = alder.run(
        "send",
        &["--wait", "--timeout", "1s", "--to", "birch", text(&source)],
    );
    assert_eq!(late.code, Some(TIMEOUT), "{late:?}");
    assert_eq!(
        late.stdout.trim().len(),
        64,
        "the bundle is there: {late:?}"
    );
    late.fails_saying(&["missing: birch"]);
    let umount = |limit| {
        let mut umount = meshbox(&["umount", "--wait", "--timeout", limit]);
        run(umount.arg(alder.mountpoint()), COMMAND)
    };
    let ran = umount("1s");
    assert_eq!(ran.code, Some(TIMEOUT), "{ran:?}");
    ran.fails_saying(&["missing: birch", "stays mounted"]);
    assert!(mounted_type(&alder.mountpoint()).is_some());
    birch.restart();
    umount("60s").ok();
    assert_eq!(mounted_type(&alder.mountpoint()), None);
}

#[test]
fn on_a_terminal_a_bar_says_how_far_it_is_and_who_is_missing() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    birch.stop();
    alder.put("f", &bytes(1, 4096));
    let command = format!(
        "{BIN} wait --timeout 2s --state {}",
        alder.state().display()
    );
    // Runs it on a terminal of its own, and ends with its code.
    let mut script = Command::new("script");
    script
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm");
    let shown = run(script.env("COLUMNS", "200"), COMMAND);
    assert_eq!(shown.code, Some(TIMEOUT), "{shown:?}");
    for words in [
        "/4.00 KiB",
        "ETA",
        "0 of 1 files",
        "waiting for birch (offline",
    ] {
        assert!(shown.stdout.contains(words), "{words}: {shown:?}");
    }
}

#[test]
fn a_ticket_can_come_from_a_file() {
    needs_mounts!();
    let alder = Node::start("alder");
    let birch = Node::prepare("birch", &[]);
    let file = birch.root().join("ticket");
    let ran = alder.run("ticket", &["--out", text(&file)]).ok();
    assert_eq!(ran.stdout, "", "it is a secret");
    let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ran = birch.mount(&["--join-file", text(&file)]).ok();
    assert!(!ran.stderr.contains("warning"), "{ran:?}");
    birch.wait_connected(&alder);
    assert_eq!(alder.status()["group"], birch.status()["group"]);

    // Whoever else can read it can join too.
    mode(0o644);
    birch.stop();
    let ran = birch.mount(&["--join-file", text(&file)]).ok();
    let remedy = format!("run: chmod 600 {}", file.display());
    assert!(
        ran.stderr.contains("warning: ") && ran.stderr.contains(&remedy),
        "{ran:?}"
    );
}

/// The error alone ("Read-only file system") says nothing of where files go.
#[test]
fn the_mount_says_where_files_go() {
    needs_mounts!();
    let alder = Node::start("alder");
    let refused = fs::write(alder.mountpoint().join("x"), b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30), "EROFS: {refused}");
    let readme = fs::read_to_string(alder.mountpoint().join(".meshbox/README")).unwrap();
    assert!(
        readme.contains("outbox/") && readme.contains("Read-only file system"),
        "{readme}"
    );

    // Removed before it was sent: counted, and not sent.
    let stays = alder.count("sealed");
    fs::write(alder.outbox("gone"), b"x").unwrap();
    fs::remove_file(alder.outbox("gone")).unwrap();
    wait_until("counted or sent", COMMAND, || {
        alder.count("removed") + alder.count("sealed") - stays == 1
    });
}

#[test]
fn a_damaged_ticket_is_refused_and_nothing_is_left() {
    needs_mounts!();
    let birch = Node::prepare("birch", &[]);
    birch
        .mount(&["--join", "meshbox1abc"])
        .fails_saying(&["ticket"]);
    birch
        .mount(&["--join", "something"])
        .fails_saying(&["ticket", "meshbox ticket"]);
    nothing_left(&birch);
}

#[test]
fn s21_state_inside_the_mountpoint_and_the_other_way_round_are_refused() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let inside = node.mountpoint().join("state");
    let mut command = meshbox(&[
        "mount",
        text(&node.mountpoint()),
        "--state",
        text(&inside),
        "--no-mdns",
    ]);
    run(&mut command, COMMAND).fails_saying(&["inside"]);
    let inside = node.state().join("mnt");
    fs::create_dir_all(&inside).unwrap();
    let mut command = meshbox(&[
        "mount",
        text(&inside),
        "--state",
        text(&node.state()),
        "--no-mdns",
    ]);
    run(&mut command, COMMAND).fails_saying(&["inside"]);
    assert_eq!(mounted_type(&inside), None);
    nothing_left(&node);
}

#[test]
fn a_mountpoint_that_is_not_empty_is_refused() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    fs::write(node.mountpoint().join("precious"), b"").unwrap();
    node.mount(&[]).fails_saying(&["empty"]);
    assert!(node.mountpoint().join("precious").exists());
    nothing_left(&node);
}

#[test]
fn a_missing_mountpoint_or_a_file_is_refused() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let file = node.root().join("file");
    fs::write(&file, b"").unwrap();
    let mut command = meshbox(&[
        "mount",
        text(&file),
        "--state",
        text(&node.state()),
        "--no-mdns",
    ]);
    run(&mut command, COMMAND).fails_saying(&["director"]);
    nothing_left(&node);
}

#[test]
fn state_in_use_by_another_daemon_is_refused_and_the_first_lives_on() {
    needs_mounts!();
    let node = Node::start("alder");
    let second = node.root().join("second");
    fs::create_dir(&second).unwrap();
    let mut command = meshbox(&[
        "mount",
        text(&second),
        "--state",
        text(&node.state()),
        "--no-mdns",
    ]);
    run(&mut command, COMMAND).fails_saying(&["in use", "--state"]);
    assert_eq!(mounted_type(&second), None);
    assert!(node.mountpoint().join("outbox").is_dir());
    assert_eq!(node.status()["name"], "alder");
}

#[test]
fn a_mountpoint_in_use_is_refused_and_the_first_lives_on() {
    needs_mounts!();
    let node = Node::start("alder");
    let other = node.root().join("other-state");
    let mut command = meshbox(&[
        "mount",
        text(&node.mountpoint()),
        "--state",
        text(&other),
        "--no-mdns",
    ]);
    run(&mut command, COMMAND).fails_saying(&["mounted"]);
    assert_eq!(node.status()["name"], "alder");
    assert!(node.mountpoint().join("outbox").is_dir());
}

/// Unmounts a foreign file system that a test mounted.
struct Foreign<'a>(&'a Path);

impl Drop for Foreign<'_> {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.0), COMMAND);
    }
}

#[test]
fn a_foreign_mount_is_refused_and_left_alone() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    run(
        Command::new("mount")
            .args(["-t", "tmpfs", "foreign"])
            .arg(node.mountpoint()),
        COMMAND,
    )
    .ok();
    let mountpoint = node.mountpoint();
    let foreign = Foreign(&mountpoint);
    node.mount(&[]).fails_saying(&["mount"]);
    assert_eq!(mounted_type(&mountpoint).as_deref(), Some("tmpfs"));
    drop(foreign);
    nothing_left(&node);
}

#[test]
fn keys_that_others_can_read_are_refused_with_the_remedy() {
    needs_mounts!();
    let node = Node::start("alder");
    node.stop();
    for key in ["identity.key", "group.key"] {
        let path = node.state().join(key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        node.mount(&[]).fails_saying(&[key, "chmod 600"]);
        nothing_left(&node);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    node.restart();
}

#[test]
fn state_of_a_newer_format_is_refused() {
    needs_mounts!();
    let node = Node::start("alder");
    node.stop();
    let format = node.state().join("format");
    assert!(format.is_file(), "the state says its format");
    fs::write(&format, "1000000\n").unwrap();
    node.mount(&[]).fails_saying(&["format", "1000000"]);
    nothing_left(&node);
}

#[test]
fn a_mistyped_mount_option_is_refused() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let ran = node
        .mount(&["-o", "allow_othr"])
        .fails_saying(&["allow_othr", "did you mean `allow_other`?"]);
    assert_eq!(ran.code, Some(USAGE), "{ran:?}");
    nothing_left(&node);
}

/// Each of these was taken silently, or refused without a word on what to write instead.
#[test]
fn a_slip_in_a_setting_is_named_with_what_may_be_meant() {
    let node = Node::prepare("alder", &[]);
    let file = node.root().join("site.toml");
    fs::write(
        &file,
        "name = \"alder\"\nlisten_on = \"127.0.0.1:0\"\nliften = []\n",
    )
    .unwrap();
    let place = node.mountpoint();
    let config = |args: &[&str], env: (&str, &str)| {
        let mut command = meshbox(&["config", text(&place)]);
        let ran = run(command.args(args).env(env.0, env.1), COMMAND);
        assert_eq!(ran.code, Some(USAGE), "{ran:?}");
        ran.stderr
    };
    let none = ("MESHBOX_SETTLE", "");
    let said = config(&["--config", text(&file)], none);
    assert!(
        said.contains(&format!("({}, line", file.display())),
        "{said}"
    );
    let said = config(&["--setle", "1s"], none);
    assert!(said.contains("--settle"), "{said}");
    let said = config(&["--log", "inof"], none);
    assert!(said.contains("did you mean `info`?"), "{said}");
    let said = config(&[], ("MESHBOX_SETLE", "1s"));
    assert!(said.contains("did you mean `MESHBOX_SETTLE`?"), "{said}");
}

/// What cannot be read was told twice: "Permission denied (os error 13): Permission denied (os error 13)".
#[test]
fn an_error_says_its_cause_once() {
    let node = Node::prepare("alder", &[]);
    let missing = node.root().join("missing");
    let asked = [
        meshbox(&["config", "--config", text(&missing), "/x"]),
        meshbox(&["config", "--join-file", text(&missing), "/x"]),
        meshbox(&["status", "--state", text(&missing)]),
    ];
    for mut command in asked {
        let ran = run(&mut command, COMMAND);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stderr.matches("os error").count() <= 1, "{ran:?}");
    }
    needs_mounts!();
    // A log that cannot be opened, a socket that cannot be bound.
    for in_the_way in ["meshbox.log", "control.sock"] {
        let node = Node::prepare("alder", &[]);
        fs::create_dir_all(node.state().join(in_the_way).join("x")).unwrap();
        fs::set_permissions(node.state(), fs::Permissions::from_mode(0o700)).unwrap();
        let ran = node.mount(&[]);
        assert_ne!(ran.code, Some(0), "{in_the_way}: {ran:?}");
        assert_eq!(ran.stderr.matches("os error").count(), 1, "{ran:?}");
        nothing_left(&node);
    }
}

#[test]
fn a_bad_node_name_is_refused() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let mut command = meshbox(&[
        "mount",
        text(&node.mountpoint()),
        "--state",
        text(&node.state()),
    ]);
    run(command.args(["--no-mdns", "--name", "not a name"]), COMMAND).fails_saying(&["name"]);
    nothing_left(&node);
}

#[test]
fn an_address_that_cannot_be_bound_is_refused_and_nothing_is_left() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    // 192.0.2.0/24 is for documentation: no interface has it
    let mut command = meshbox(&[
        "mount",
        text(&node.mountpoint()),
        "--state",
        text(&node.state()),
        "--no-mdns",
    ]);
    run(command.args(["--listen", "192.0.2.1:0"]), COMMAND).fails_saying(&["192.0.2.1"]);
    nothing_left(&node);
}

#[test]
fn every_way_of_unmounting_ends_the_daemon() {
    needs_mounts!();
    let node = Node::start("alder");
    let mountpoint = node.mountpoint();
    let command = |program: &str, args: &[&str]| {
        run(Command::new(program).args(args).arg(&mountpoint), COMMAND).ok();
    };
    type Way<'a> = (&'a str, Box<dyn Fn(i32) + 'a>);
    let ways: [Way; 6] = [
        ("meshbox umount", Box::new(|_| command(BIN, &["umount"]))),
        ("umount", Box::new(|_| command("umount", &[]))),
        ("umount -l", Box::new(|_| command("umount", &["-l"]))),
        (
            "fusermount3 -u",
            Box::new(|_| command("fusermount3", &["-u"])),
        ),
        ("SIGTERM", Box::new(|pid| signal(pid, Signal::TERM))),
        ("SIGINT", Box::new(|pid| signal(pid, Signal::INT))),
    ];
    for (name, unmount) in &ways {
        eprintln!("by {name}");
        let pid = node.pid().expect("the daemon holds its lock");
        unmount(pid);
        node.assert_gone(Some(pid));
        node.restart();
    }
}

/// `cd share/inbox; meshbox umount ../../share` said that nothing was mounted there.
#[test]
fn umount_takes_a_path_that_leads_through_the_mount() {
    needs_mounts!();
    let alder = Node::start("alder");
    let pid = alder.pid().unwrap();
    let name = alder.mountpoint().file_name().unwrap().to_owned();
    let through = alder.mountpoint().join("inbox/../..").join(name);
    run(meshbox(&["umount"]).arg(through), COMMAND).ok();
    wait_until("the daemon has ended", COMMAND, || !is_running(pid));
    assert_eq!(mounted_type(&alder.mountpoint()), None);
}

/// A mount that lies over ours is not ours to remove.
#[test]
fn umount_of_something_else_is_refused() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    run(meshbox(&["umount"]).arg(node.mountpoint()), COMMAND).fails_saying(&["mount"]);
}

#[test]
fn a_stale_mount_of_our_own_is_recovered_at_start() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    alder.kill9();
    assert_eq!(
        mounted_type(&alder.mountpoint()).as_deref(),
        Some("fuse.meshbox"),
        "the dead mount stays"
    );
    alder.restart();
    birch.wait_connected(&alder);
    alder.marker("again", &birch);
}

#[test]
fn umount_with_a_stale_mount_cleans_up() {
    needs_mounts!();
    let node = Node::start("alder");
    node.kill9();
    run(meshbox(&["umount"]).arg(node.mountpoint()), COMMAND).ok();
    assert_eq!(mounted_type(&node.mountpoint()), None);
}

#[test]
fn in_foreground_it_stays_and_ends_with_zero_at_ctrl_c() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let log = fs::File::create(node.root().join("stderr")).unwrap();
    let mut child = meshbox(&[
        "mount",
        text(&node.mountpoint()),
        "--state",
        text(&node.state()),
        "--foreground",
    ])
    .args(["--listen", "127.0.0.1:0", "--no-mdns"])
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .stderr(log)
    .spawn()
    .unwrap();
    wait_until("it serves", COMMAND, || {
        mounted_type(&node.mountpoint()).is_some()
    });
    wait_until("it answers", COMMAND, || node.status()["id"].is_string());
    signal(child.id() as i32, Signal::INT);
    assert_eq!(wait_child(&mut child, COMMAND), Some(0));
    nothing_left(&node);
}

#[test]
fn status_shows_one_file_and_follows_what_changes() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("a/b", b"hello");
    birch.wait_arrived("a/b", &sha);
    alder.wait_delivered("a/b");
    // The unfinished first, whatever is newer.
    let of = |node: &Node, place: &Path| {
        let ran = run(&mut meshbox(&["status", text(place)]), COMMAND).ok();
        assert!(ran.stdout.contains(&sha), "{}: {ran:?}", node.name());
        ran.stdout
    };
    let shown = of(&alder, &alder.outbox("a/b"));
    assert!(
        shown.contains("a/b: delivered, 5 B, sealed") && shown.contains("birch"),
        "{shown}"
    );
    assert!(of(&alder, &alder.outbox("a")).contains("a/b: delivered"));
    assert!(of(&birch, &birch.inbox("a/b")).contains("from alder"));

    let mut watching = meshbox(&[
        "status",
        "--watch",
        "--json",
        "--state",
        text(&alder.state()),
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    let mut values = lines
        .map_while(Result::ok)
        .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap());
    assert_eq!(values.next().unwrap()["snapshot"]["name"], "alder");
    alder.put("c", b"news");
    let told = values.find(|value| {
        let rows = value["changes"]["outbound"].as_array();
        rows.is_some_and(|rows| {
            rows.iter()
                .any(|row| row["path"] == "c" && row["state"] == "delivered")
        })
    });
    assert!(told.is_some());
    signal(watching.id() as i32, Signal::TERM);
    watching.wait().unwrap();

    birch.stop();
    alder.put("late", b"x");
    alder.wait_sealed();
    let ran = alder.run("status", &["--limit", "1"]).ok();
    assert!(
        ran.stdout.contains("0/1") && ran.stdout.contains("late"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("… 2 more"), "{ran:?}");
}

/// A hang-up ended the daemon, and every change of a setting needed a restart.
#[test]
fn sighup_takes_over_what_can_change_and_says_what_cannot() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    let file = alder.root().join("site.toml");
    let says = |text: &str| fs::write(&file, text).unwrap();
    says("max_file_bytes = \"1KiB\"\n");
    alder.mount(&["--config", text(&file)]).ok();
    let pid = alder.pid().unwrap();
    let logged = |words: &str| {
        wait_until(words, COMMAND, || {
            let log = fs::read_to_string(alder.state().join("meshbox.log"));
            log.is_ok_and(|log| log.contains(words))
        });
    };
    let write = |name: &str| fs::write(alder.outbox(name), bytes(1, 4096));
    assert!(write("refused").is_err(), "larger than max_file_bytes");

    says(
        "max_file_bytes = \"1MiB\"\nhistory = 5\nignore = [\"*.bak\"]\nallow_other = true\ninbox_mode = \"0640\"\n\
         [groups]\nhq = [\"birch\"]\n",
    );
    signal(pid, Signal::HUP);
    logged(
        "configuration read again: max_file_bytes = \"1MiB\", history = \"5\", routes and groups; \
         needs a remount: ignore, allow_other, inbox_mode",
    );
    write("taken").unwrap();

    // What does not hold together changes nothing.
    says("max_fil_bytes = \"1KiB\"\n");
    signal(pid, Signal::HUP);
    logged("the configuration stays as it was");
    logged("did you mean `max_file_bytes`?");
    write("taken too").unwrap();

    says("log = \"debug\"\nmax_file_bytes = \"1MiB\"\n");
    signal(pid, Signal::HUP);
    logged("log = \"debug\"");
    signal(pid, Signal::USR1);
    logged("state: alder at");
    assert!(is_running(pid));
    alder.stop();
}

/// A login that is cut off hangs up its terminal. Whoever wants the daemon to live on leaves out --foreground.
#[test]
fn in_foreground_it_ends_with_its_terminal_and_in_the_background_it_lives_on() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    let mount = |more: &str| {
        format!(
            "exec {BIN} mount {} --state {} --name alder --listen 127.0.0.1:0 --no-mdns {more}",
            text(&alder.mountpoint()),
            text(&alder.state())
        )
    };
    // `script` gives the command a terminal of its own, which is gone when it ends.
    let at_terminal = |line: &str| {
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command", line, "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    let mut login = at_terminal(&mount("--foreground")).spawn().unwrap();
    wait_until("it is mounted", COMMAND, || {
        alder.pid().is_some() && mounted_type(&alder.mountpoint()).is_some()
    });
    let pid = alder.pid().unwrap();
    login.kill().unwrap();
    login.wait().unwrap();
    wait_until("it has ended with its terminal", COMMAND, || {
        !is_running(pid)
    });
    assert_eq!(mounted_type(&alder.mountpoint()), None);

    let line = mount("").replace("exec ", "");
    run(&mut at_terminal(&line), COMMAND).ok();
    let pid = alder.pid().unwrap();
    assert!(is_running(pid));
    // With no terminal left to lose, a hang-up reads the configuration again.
    signal(pid, Signal::HUP);
    wait_until("it has read the configuration again", COMMAND, || {
        let log = fs::read_to_string(alder.state().join("meshbox.log"));
        log.is_ok_and(|log| log.contains("configuration read again"))
    });
    alder.stop();
}

#[test]
fn a_watchdog_hears_that_the_daemon_lives() {
    needs_mounts!();
    let alder = Node::prepare("alder", &[]);
    let path = alder.root().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(COMMAND)).unwrap();
    let mut command = meshbox(&["mount", text(&alder.mountpoint()), "--foreground"]);
    command
        .args(["--state", text(&alder.state()), "--listen", "127.0.0.1:0"])
        .args(["--no-mdns", "--name", "alder"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "100000")
        .env("TERM", "dumb")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 4096];
    while heard.matches("WATCHDOG=1").count() < 3 {
        let len = socket.recv(&mut buffer).unwrap();
        heard += &String::from_utf8_lossy(&buffer[..len]);
    }
    assert!(heard.starts_with("READY=1"), "{heard}");
    signal(child.id() as i32, Signal::TERM);
    assert_eq!(wait_child(&mut child, COMMAND), Some(0));
}

#[test]
fn identity_and_group_survive_a_restart() {
    needs_mounts!();
    let node = Node::start("alder");
    let before = node.status();
    node.stop();
    node.restart();
    let after = node.status();
    assert_eq!(
        (&before["id"], &before["group"]),
        (&after["id"], &after["group"])
    );
}

/// An empty variable counts as unset.
#[test]
fn settings_come_from_the_environment_and_flags_beat_it() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let mut command = meshbox(&[
        "mount",
        text(&node.mountpoint()),
        "--state",
        text(&node.state()),
    ]);
    command
        .args(["--listen", "127.0.0.1:0", "--no-mdns"])
        .env("MESHBOX_NAME", "cedar")
        .env("MESHBOX_SETTLE", "");
    run(&mut command, COMMAND).ok();
    assert_eq!(node.status()["name"], "cedar");
    node.stop();
    node.restart();
    assert_eq!(node.status()["name"], "alder");
}

#[test]
fn a_busy_mount_is_not_torn_from_under_its_reader_by_umount() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("open", &bytes(3, 100_000));
    birch.wait_arrived("open", &sha);
    let reader = fs::File::open(birch.inbox("open")).unwrap();
    let ran = run(Command::new("umount").arg(birch.mountpoint()), COMMAND);
    assert_ne!(ran.code, Some(0), "busy");
    assert_eq!(sha256_file(&birch.inbox("open")).unwrap(), sha);
    drop(reader);
    let pid = birch.pid();
    wait_until("umount succeeds when nobody uses it", ARRIVES, || {
        run(Command::new("umount").arg(birch.mountpoint()), COMMAND).code == Some(0)
    });
    birch.assert_gone(pid);
    assert!(alder.pid().is_some_and(is_running));
}

#[test]
fn commands_without_a_daemon_say_so() {
    let node = Node::prepare("alder", &[]);
    for command in ["status", "ticket", "peers"] {
        let ran = run(
            meshbox(&[command]).arg("--state").arg(node.state()),
            COMMAND,
        );
        assert_eq!(ran.code, Some(NO_DAEMON), "{ran:?}");
        ran.fails_saying(&["meshbox mount"]);
    }
}
