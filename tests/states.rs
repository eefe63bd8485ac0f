//! The state directory and the mount: who may look into them, and who holds them.

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

/// A process in a mount namespace of its own, which has a copy of one mount; ends when it is dropped.
struct Elsewhere(Child);

impl Elsewhere {
    fn new(node: &Node) -> Self {
        // The copies of other tests' mounts are taken away again.
        let script = "findmnt -rno TARGET -t fuse.meshbox | grep -vxF \"$1\" | xargs -r umount -l; exec sleep 600";
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
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
