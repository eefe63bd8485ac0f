//! The state directory: whose it is, who may look into it, who holds it, and which group it belongs to.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::*;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs `program` as a user who is nobody here.
fn as_other(uid: u32, program: &str, argument: &Path) -> Ran {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={uid}"))
        .args(["--clear-groups", program])
        .arg(argument);
    run(&mut command, COMMAND)
}

#[test]
fn other_users_of_a_mount_read_numbers_and_no_names() {
    needs_mounts!();
    let node = Node::prepare("alder", &["-o", "allow_other,uid=65534"]);
    set_mode(node.root(), 0o755);
    node.mount(&[]).ok();
    fs::create_dir(node.outbox("private")).unwrap();
    set_mode(&node.outbox("private"), 0o700);
    fs::write(node.outbox("private/merger.txt"), "x").unwrap();
    node.wait_sealed();
    let shown = node.mountpoint().join(".meshbox");
    for name in ["status.json", "peers.json"] {
        as_other(65533, "cat", &shown.join(name)).fails_saying(&["permission denied"]);
        as_other(65534, "cat", &shown.join(name)).ok();
    }
    let numbers = as_other(65533, "cat", &shown.join("metrics")).ok().stdout;
    assert!(numbers.contains("meshbox_sealed_total 1"), "{numbers}");
    assert!(!numbers.contains("merger"), "{numbers}");
    let owners = as_other(65534, "cat", &shown.join("status.json"));
    assert!(owners.stdout.contains("private/merger.txt"), "{owners:?}");
    assert!(
        fs::read_to_string(shown.join("status.json")).is_ok(),
        "root"
    );
}

#[test]
fn nobody_else_can_look_into_the_state_or_keep_the_daemon_from_starting() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    set_mode(node.root(), 0o755);
    // Made beforehand, as an installer does.
    fs::create_dir(node.state()).unwrap();
    set_mode(&node.state(), 0o755);
    node.mount(&[]).ok();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&node.state()), 0o700);
    node.stop();
    // The files are closed to others by themselves, too.
    set_mode(&node.state(), 0o755);
    for entry in fs::read_dir(node.state()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    }
    as_other(65534, "cat", &node.state().join("lock")).fails_saying(&["permission denied"]);
    node.mount(&[])
        .fails_saying(&["can be read by others", "chmod 700"]);
    assert_eq!(mode(&node.state()), 0o755, "it may be shared on purpose");
    assert_eq!(mounted_type(&node.mountpoint()), None);
    set_mode(&node.state(), 0o700);
    node.mount(&[]).ok();
}

/// `umount X && meshbox mount X`, with files on their way, and readers of the state that are late.
#[test]
fn a_mount_follows_an_unmount_at_once_however_often() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    for round in 0..20 {
        for file in 0..20 {
            fs::write(alder.outbox(&format!("{round}-{file}")), "x").unwrap();
        }
        let pid = alder.pid();
        let by_hand = round % 2 == 0;
        if by_hand {
            run(Command::new("umount").arg(alder.mountpoint()), COMMAND).ok();
        } else {
            signal(pid.unwrap(), rustix::process::Signal::TERM);
            wait_until("the mount is gone", COMMAND, || {
                mounted_type(&alder.mountpoint()).is_none()
            });
        }
        alder.restart();
        assert_ne!(alder.pid(), pid);
    }
    alder.wait_sealed();
    birch.wait_arrived("19-19", &sha256(b"x"));
    assert_eq!(alder.status()["trouble"], serde_json::Value::Null);
}

/// Leaves, in a mount namespace of its own, of the copies of tests' mounts only the one that is named.
const ONLY: &str = "findmnt -rno TARGET -t fuse.meshbox | grep -vxF \"$1\" | xargs -r umount -l;";

/// A process in a mount namespace of its own, which has a copy of one mount; ends when it is dropped.
struct Elsewhere(Child);

impl Elsewhere {
    fn new(node: &Node) -> Self {
        let script = format!("{ONLY} exec sleep 600");
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .arg(node.mountpoint())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let pid = child.id().to_string();
        wait_until("the namespace is made", COMMAND, || {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim() == "sleep" && namespace(&pid) != namespace("self")
        });
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_mount_that_another_namespace_holds_is_explained_with_what_to_do() {
    needs_mounts!();
    let node = Node::start("alder");
    let daemon = node.pid().unwrap();
    let elsewhere = Elsewhere::new(&node);
    let holder = format!("process {} (sleep)", elsewhere.pid());
    let at = node.mountpoint();
    let remedy = format!("nsenter -t {} -m umount {}", elsewhere.pid(), at.display());
    let kill = format!("kill {daemon}");
    let umount = || run(meshbox(&["umount"]).arg(node.mountpoint()), COMMAND);
    umount().fails_saying(&["unmounted here", &holder, &remedy, &kill]);
    // Neither advises the other.
    umount().fails_saying(&["nothing is mounted", &holder, &remedy]);
    let refused =
        node.mount(&[])
            .fails_saying(&["in use by another daemon", &holder, &remedy, &kill]);
    assert!(!refused.stderr.contains("meshbox umount"), "{refused:?}");
    // The advice works.
    let mut nsenter = Command::new("nsenter");
    nsenter
        .args(["-t", &elsewhere.pid(), "-m", "umount"])
        .arg(node.mountpoint());
    run(&mut nsenter, COMMAND).ok();
    node.mount(&[]).ok();
    assert_ne!(node.pid(), Some(daemon));
    // So does the end of the process, and the end of the daemon.
    let elsewhere = Elsewhere::new(&node);
    umount().fails_saying(&["unmounted here"]);
    drop(elsewhere);
    node.mount(&[]).ok();
    let elsewhere = Elsewhere::new(&node);
    umount().fails_saying(&["unmounted here"]);
    signal(node.pid().unwrap(), rustix::process::Signal::TERM);
    node.mount(&[]).ok();
    drop(elsewhere);
}

/// A mount namespace without processes, which a mount of its file keeps; gone when it is dropped.
struct Kept(tempfile::TempDir);

impl Kept {
    fn new(node: &Node) -> Self {
        let kept = Self(tempfile::tempdir().unwrap());
        let script = format!(
            "mount --bind \"$2\" \"$2\"; mount --make-private \"$2\"; touch \"$2/ns\"; \
             exec unshare --mount=\"$2/ns\" --propagation private sh -c '{ONLY}' sh \"$1\""
        );
        let mut sh = Command::new("sh");
        sh.args(["-euc", &script, "sh"]).arg(node.mountpoint());
        run(sh.arg(kept.0.path()), COMMAND).ok();
        kept
    }

    fn file(&self) -> String {
        self.0.path().join("ns").display().to_string()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for at in [&self.0.path().join("ns"), self.0.path()] {
            run(Command::new("umount").arg(at), COMMAND);
        }
    }
}

/// A process that has the file of another's mount namespace open; ends when it is dropped.
struct Holding(Child);

impl Holding {
    fn new(pid: &str) -> Self {
        let script = format!("exec 9</proc/{pid}/ns/mnt; exec sleep 600");
        let mut child = Command::new("sh");
        child.args(["-c", &script]).stdout(Stdio::null());
        let child = child.spawn().unwrap();
        let at = format!("/proc/{}/comm", child.id());
        wait_until("it is open", COMMAND, || {
            fs::read_to_string(&at).is_ok_and(|name| name.trim() == "sleep")
        });
        Self(child)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_mount_that_a_namespace_without_processes_holds_is_explained_with_what_to_do() {
    needs_mounts!();
    let node = Node::start("alder");
    let at = node.mountpoint().display().to_string();
    let umount = || run(meshbox(&["umount"]).arg(&at), COMMAND);
    // By a mount of its file. Each of the two remedies works, and neither command advises the other.
    for remedy in ["nsenter --mount={file} umount {at}", "umount {file}"] {
        let kept = Kept::new(&node);
        let pid = node.pid().unwrap();
        let remedy = remedy.replace("{file}", &kept.file()).replace("{at}", &at);
        let keeper = format!("kept by the mount at {}", kept.file());
        let kill = format!("kill {pid}");
        umount().fails_saying(&[
            "unmounted here",
            "without processes",
            &keeper,
            &remedy,
            &kill,
        ]);
        umount().fails_saying(&["nothing is mounted", &keeper, &remedy]);
        let refused = node.mount(&[]);
        let refused = refused.fails_saying(&["in use by another daemon", &keeper, &remedy, &kill]);
        assert!(!refused.stderr.contains("meshbox umount"), "{refused:?}");
        run(Command::new("sh").args(["-c", &remedy]), COMMAND).ok();
        node.mount(&[]).ok();
        assert_ne!(node.pid(), Some(pid));
    }
    // By an open descriptor.
    let elsewhere = Elsewhere::new(&node);
    let holding = Holding::new(&elsewhere.pid());
    drop(elsewhere);
    let keeper = format!("descriptor 9 of process {} (sleep)", holding.0.id());
    let remedy = format!("nsenter --mount=/proc/{}/fd/9 umount {at}", holding.0.id());
    umount().fails_saying(&["unmounted here", &keeper, &remedy]);
    let refused = node.mount(&[]).fails_saying(&[&keeper, &remedy]);
    assert!(!refused.stderr.contains("meshbox umount"), "{refused:?}");
    run(Command::new("sh").args(["-c", &remedy]), COMMAND).ok();
    node.mount(&[]).ok();
}

/// A bind mount; gone when it is dropped.
struct Bound(std::path::PathBuf);

impl Bound {
    fn new(node: &Node) -> Self {
        let at = node.root().join("second");
        fs::create_dir(&at).unwrap();
        let mut bind = Command::new("mount");
        run(bind.arg("--bind").arg(node.mountpoint()).arg(&at), COMMAND).ok();
        Self(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        run(
            Command::new("umount").args(["-q", "-l"]).arg(&self.0),
            COMMAND,
        );
    }
}

#[test]
fn a_mount_that_has_a_second_place_is_explained_with_what_to_do() {
    needs_mounts!();
    let node = Node::start("alder");
    let second = Bound::new(&node);
    let advice = format!("meshbox umount {}", second.0.display());
    let umount = |at: &Path| run(meshbox(&["umount"]).arg(at), COMMAND);
    umount(&node.mountpoint()).fails_saying(&["unmounted here", "also mounted at", &advice]);
    node.mount(&[])
        .fails_saying(&["in use by another daemon", &advice]);
    umount(&second.0).ok();
    node.mount(&[]).ok();
}

#[test]
fn a_state_that_is_in_use_says_by_whom_and_where() {
    needs_mounts!();
    let node = Node::start("alder");
    let other = node.root().join("other");
    let second = |node: &Node| {
        let mut mount = meshbox(&["mount"]);
        mount.arg(&other).arg("--state").arg(node.state());
        run(&mut mount, COMMAND)
    };
    let process = format!("process {}", node.pid().unwrap());
    let advice = format!("meshbox umount {}", node.mountpoint().display());
    second(&node).fails_saying(&["in use by another daemon", &process, &advice]);
    assert_eq!(mounted_type(&other), None);
    // Whoever can open the lock can hold it; only we can, and then it is said who does.
    node.stop();
    let mut flock = Command::new("flock");
    flock
        .arg(node.state().join("lock"))
        .args(["sleep", "600"])
        .stdout(Stdio::null());
    let mut holder = flock.spawn().unwrap();
    wait_until("the lock is held", COMMAND, || {
        run(
            Command::new("flock")
                .args(["-n"])
                .arg(node.state().join("lock"))
                .arg("true"),
            COMMAND,
        )
        .code
            != Some(0)
    });
    let refused = second(&node).fails_saying(&["in use by another daemon", "process"]);
    assert!(
        refused.stderr.contains(": flock") || refused.stderr.contains(": sleep"),
        "{refused:?}"
    );
    for pid in fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id()))
        .unwrap_or_default()
        .split_whitespace()
    {
        signal(pid.parse().unwrap(), rustix::process::Signal::KILL);
    }
    holder.kill().ok();
    holder.wait().ok();
    second(&node).ok();
    run(meshbox(&["umount"]).arg(&other), COMMAND).ok();
}

/// Mountpoints below one directory whose states are where they are by default.
struct Homes(tempfile::TempDir);

impl Homes {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("meshbox-homes-")
            .tempdir()
            .unwrap();
        Self(dir)
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.0.path().canonicalize().unwrap().join(path)
    }

    fn mount(&self, path: &str, more: &[&str]) -> Ran {
        let mut command = meshbox(&["mount"]);
        // Only the mountpoint itself is made.
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        command
            .arg(self.at(path))
            .args(["--no-mdns", "--log", "debug"])
            .args(more);
        run(&mut command, COMMAND)
    }

    fn umount(&self, path: &str) {
        run(meshbox(&["umount"]).arg(self.at(path)), COMMAND).ok();
    }

    fn status(&self, path: &str) -> serde_json::Value {
        let text = fs::read(self.at(path).join(".meshbox/status.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// The states that were made for these mountpoints.
    fn states(&self) -> Vec<std::path::PathBuf> {
        let name = self.0.path().file_name().unwrap().to_string_lossy();
        let escaped = name.replace('-', "\\x2d");
        let entries = fs::read_dir("/var/lib/meshbox")
            .into_iter()
            .flatten()
            .flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().contains(&escaped));
        ours.map(|entry| entry.path()).collect()
    }
}

impl Drop for Homes {
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = self.0.path().to_string_lossy().into_owned();
        for at in table.lines().filter_map(|line| line.split(' ').nth(4)) {
            if at.starts_with(&root) {
                run(meshbox(&["umount"]).arg(at), COMMAND);
            }
        }
        for state in self.states() {
            fs::remove_dir_all(state).ok();
        }
    }
}

#[test]
fn two_mountpoints_of_one_name_are_two_mailboxes_and_each_keeps_its_own_facts() {
    needs_mounts!();
    let homes = Homes::new();
    homes
        .mount("p1/share", &["--name", "alder", "--listen", "127.0.0.1:0"])
        .ok();
    fs::write(homes.at("p1/share/outbox/secret"), "x").unwrap();
    let first = homes.status("p1/share");
    homes.umount("p1/share");
    homes.mount("p2/share", &["--listen", "127.0.0.1:0"]).ok();
    let second = homes.status("p2/share");
    assert_ne!(first["id"], second["id"]);
    assert_ne!(first["group"], second["group"]);
    assert!(!homes.at("p2/share/outbox/secret").exists());
    // Through a link, and without what was said once.
    std::os::unix::fs::symlink(homes.at("p1"), homes.at("link")).unwrap();
    homes.mount("link/share", &[]).ok();
    let again = homes.status("p1/share");
    for fact in ["id", "group", "name", "listen"] {
        assert_eq!(again[fact], first[fact], "{fact}");
    }
    assert!(homes.at("p1/share/outbox/secret").exists());
    let said = run(meshbox(&["config"]).arg(homes.at("p1/share")), COMMAND)
        .ok()
        .stdout;
    let name = said
        .lines()
        .find(|line| line.starts_with("name = "))
        .unwrap();
    assert!(
        name.contains("\"alder\"") && name.contains("kept in"),
        "{said}"
    );
}

#[test]
fn a_mailbox_that_was_moved_is_not_founded_anew() {
    needs_mounts!();
    let homes = Homes::new();
    homes.mount("al/share", &["--listen", "127.0.0.1:0"]).ok();
    fs::write(homes.at("al/share/outbox/waiting"), "x").unwrap();
    let id = homes.status("al/share")["id"].clone();
    wait_until("it is sent", ARRIVES, || {
        homes.status("al/share")["counts"]["sealed"] == 1
    });
    homes.umount("al/share");
    fs::rename(homes.at("al"), homes.at("bo")).unwrap();
    let refused = homes.mount("bo/share", &[]).fails_saying(&[
        "was moved",
        "which is gone",
        "--new",
        "--state",
    ]);
    assert_eq!(homes.states().len(), 1, "nothing was founded");
    // What it advises works.
    let advice = refused
        .stderr
        .split('`')
        .nth(1)
        .unwrap()
        .replace('\\', "\\\\");
    run(Command::new("sh").args(["-c", &advice]), COMMAND).ok();
    homes.mount("bo/share", &[]).ok();
    assert_eq!(homes.status("bo/share")["id"], id);
    assert!(homes.at("bo/share/outbox/waiting").exists());
    homes.umount("bo/share");
    fs::rename(homes.at("bo"), homes.at("cy")).unwrap();
    homes
        .mount("cy/share", &["--new", "--listen", "127.0.0.1:0"])
        .ok();
    assert_ne!(homes.status("cy/share")["id"], id);
}

#[test]
fn a_first_mount_that_fails_or_is_refused_leaves_no_group() {
    needs_mounts!();
    let (alder, birch) = (Node::start("alder"), Node::prepare("birch", &[]));
    let group = || birch.state().join("group.key").exists();
    // The address is in use: no mount.
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    birch
        .mount(&["--listen", &listen])
        .fails_saying(&["cannot listen on"]);
    assert!(!group());
    // The ticket is void: asked first.
    let void = alder.ticket();
    alder.run("rekey", &[]).ok();
    birch.mount(&["--join", &void]).fails_saying(&[
        "alder",
        "does not take the ticket",
        "ask for a new one",
    ]);
    assert!(!group());
    assert_eq!(mounted_type(&birch.mountpoint()), None);
    birch.mount(&["--join", &alder.ticket()]).ok();
    birch.wait_connected(&alder);
}

/// What is below a directory, by name.
fn below(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_refused_join_leaves_nothing_behind() {
    needs_mounts!();
    let (alder, birch) = (Node::start("alder"), Node::prepare("birch", &[]));
    let once = |node: &Node| {
        let ticket = node.run("ticket", &["--once"]).ok().stdout;
        ticket.trim().to_owned()
    };
    let (void, used) = (alder.ticket(), once(&alder));
    alder.run("rekey", &[]).ok();
    let cedar = Node::prepare("cedar", &[]);
    cedar.mount(&["--join", &used]).ok();
    let (top, at) = (birch.root().join("top"), birch.root().join("made"));
    let mount = |ticket: &str| {
        let mut mount = meshbox(&["mount"]);
        mount.arg(&at).arg("--state");
        mount.arg(top.join("b/state")).args(["--join", ticket]);
        run(
            mount.args(["--listen", "127.0.0.1:0", "--no-mdns"]),
            COMMAND,
        )
    };
    for ticket in [&void, &used] {
        mount(ticket).fails_saying(&["ask for a new one"]);
        assert!(!top.exists() && !at.exists());
    }
    // What was there stays as it was.
    fs::create_dir_all(top.join("b/state")).unwrap();
    set_mode(&top.join("b/state"), 0o700);
    for ticket in [&void, &used] {
        mount(ticket).fails_saying(&["ask for a new one"]);
        assert_eq!(below(&top), ["b"]);
        assert!(!at.exists());
        assert!(below(&top.join("b/state")).is_empty());
    }
    mount(&once(&alder)).ok();
    run(meshbox(&["umount"]).arg(&at), COMMAND).ok();
}

/// The mount serves already when the control socket cannot be made: the last step of a start.
#[test]
fn a_start_that_fails_late_was_nobodys_member_and_joins_by_the_same_or_another_ticket() {
    needs_mounts!();
    let (alder, elm) = (Node::start("alder"), Node::start("elm"));
    let members = |node: &Node| node.status()["peers"].as_array().unwrap().len();
    for (kind, other) in [
        ("plain", false),
        ("plain", true),
        ("once", false),
        ("once", true),
    ] {
        let known_before = members(&alder);
        let node = Node::prepare("birch", &[]);
        let more: &[&str] = if kind == "once" { &["--once"] } else { &[] };
        let ticket = alder.run("ticket", more).ok().stdout.trim().to_owned();
        let in_the_way = node.state().join("control.sock");
        fs::create_dir_all(in_the_way.join("x")).unwrap();
        set_mode(&node.state(), 0o700);
        node.mount(&["--join", &ticket])
            .fails_saying(&["control.sock"]);
        assert_eq!(mounted_type(&node.mountpoint()), None);
        wait_until("nobody knows of it", ARRIVES, || {
            members(&alder) == known_before
        });
        fs::remove_dir_all(&in_the_way).unwrap();
        let (group, ticket) = match other {
            true => (&elm, elm.ticket()),
            false => (&alder, ticket),
        };
        node.mount(&["--join", &ticket]).ok();
        node.wait_connected(group);
        let sha = node.put(&format!("{kind}-{other}"), b"x");
        group.wait_arrived(&format!("{kind}-{other}"), &sha);
    }
}

#[test]
fn who_mounted_without_the_ticket_joins_with_it_afterwards() {
    needs_mounts!();
    let alder = Node::start("alder");
    let birch = Node::start("birch");
    let own = birch.status();
    birch.stop();
    birch.mount(&["--join", &alder.ticket()]).ok();
    birch.wait_connected(&alder);
    assert_eq!(birch.status()["id"], own["id"]);
    assert_eq!(birch.status()["group"], alder.status()["group"]);
    let sha = birch.put("f", b"x");
    alder.wait_arrived("f", &sha);
    // Not again: it belongs there now.
    let cedar = Node::start("cedar");
    birch.stop();
    birch.mount(&["--join", &cedar.ticket()]).fails_saying(&[
        "is in group",
        "not alone",
        "--state",
    ]);
    birch.restart();
    birch.wait_connected(&alder);
}

#[test]
fn a_path_to_a_file_or_a_mount_leads_where_it_leads_any_program() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    fs::create_dir(alder.outbox("d")).unwrap();
    let sha = alder.put("x", b"1");
    birch.wait_arrived("x", &sha);
    std::os::unix::fs::symlink(alder.mountpoint(), alder.root().join("link")).unwrap();
    let from = |dir: &Path, args: &[&str]| {
        let mut command = meshbox(args);
        command.current_dir(dir).args(["--timeout", "1m"]);
        run(&mut command, COMMAND)
    };
    from(&alder.outbox("d"), &["wait", "../x"]).ok();
    from(alder.root(), &["wait", "link/outbox/d/../x"]).ok();
    from(&alder.mountpoint(), &["wait", "outbox/./d/..//x"]).ok();
    from(&alder.outbox("d"), &["wait", "../../x"]).fails_saying(&["is not below"]);
    from(&alder.outbox("d"), &["wait", "../none"]).fails_saying(&["no such file"]);
    // Several run, and the path says which is meant.
    let at = |command: &str, place: &Path| run(meshbox(&[command]).arg(place), COMMAND);
    for (place, node) in [
        (alder.mountpoint(), &alder),
        (birch.inbox("x"), &birch),
        (alder.root().join("link"), &alder),
    ] {
        let id = at("id", &place).ok().stdout;
        assert_eq!(id.trim(), node.status()["id"], "{}", place.display());
        let peers = at("peers", &place).ok().stdout;
        let other = if node.name() == "alder" {
            "birch"
        } else {
            "alder"
        };
        assert!(peers.contains(other), "{peers}");
        at("ticket", &place).ok();
        at("status", &place).ok();
    }
    at("status", alder.root()).fails_saying(&["no mailbox of yours"]);
    at("ls", &alder.mountpoint()).ok();
}

#[test]
fn every_command_about_a_running_mailbox_takes_its_mountpoint() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let cedar = Node::join("cedar", &alder);
    // Several run, so each must be told which.
    let of = |words: &[&str], place: &Path| run(meshbox(words).arg(place), COMMAND);
    let mountpoint = alder.mountpoint();
    let file = alder.root().join("src/report");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let sent = of(&["send", "--wait", "--priority", "low", file], &mountpoint).ok();
    let bundle = sent.stdout.trim().to_owned();
    birch.wait_arrived("report", &sha256(b"x"));
    of(&["wait", &bundle], &mountpoint).ok();
    of(&["cancel", &bundle], &mountpoint).fails_saying(&["nothing left of it to cancel"]);
    of(&["retry", &bundle], &mountpoint).fails_saying(&["nobody to ask again"]);
    of(&["config"], &mountpoint).ok();
    birch.stop();
    of(&["forget", "birch"], &mountpoint).ok();
    of(&["remove", "cedar"], &mountpoint).ok();
    of(&["rekey"], &alder.outbox("")).ok();
    // From within it nothing need be said.
    let mut within = meshbox(&["id"]);
    let said = run(within.current_dir(alder.outbox("")), COMMAND)
        .ok()
        .stdout;
    assert_eq!(said.trim(), alder.status()["id"]);
    of(&["unmount"], &cedar.mountpoint()).ok();
}

#[test]
fn a_mistyped_mountpoint_makes_no_mailbox() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    let typed = node.root().join("sahre/box");
    let mut mount = meshbox(&["mount", "--no-mdns", "--state"]);
    let refused = run(mount.arg(node.state()).arg(&typed), COMMAND);
    let parent = format!("no directory {}", node.root().join("sahre").display());
    refused.fails_saying(&[&parent, "mkdir -p"]);
    assert!(!node.root().join("sahre").exists() && !node.state().exists());
}
