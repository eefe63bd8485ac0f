//! mount(8): the binary as a mount helper, and what other users see.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{BIN, COMMAND, Node, mounted_type, run};

/// A mount helper installed for one test.
struct Helper(PathBuf);

impl Helper {
    /// Installs `/sbin/mount.TYPE`, unless one is installed already that is not from a test.
    fn install(fs_type: &str) -> Option<Self> {
        let path = PathBuf::from(format!("/sbin/mount.{fs_type}"));
        if let Ok(target) = fs::read_link(&path)
            && target.ends_with("debug/meshbox")
        {
            fs::remove_file(&path).unwrap(); // left by a killed run
        }
        if path.exists() || symlink(BIN, &path).is_err() {
            eprintln!("skipped: {} cannot be installed here", path.display());
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

#[test]
fn mount_8_mounts_by_both_types_and_findmnt_and_umount_agree() {
    needs_mounts!();
    for fs_type in ["meshbox", "fuse.meshbox"] {
        let Some(_helper) = Helper::install(fs_type) else {
            return;
        };
        let node = Node::prepare("alder", &[]);
        let mut mount = Command::new("mount");
        mount
            .args(["-t", fs_type])
            .arg(node.state())
            .arg(node.mountpoint());
        mount.args([
            "-o",
            "_netdev,nofail,allow_other,name=alder,listen=127.0.0.1:0,no_mdns",
        ]);
        run(&mut mount, COMMAND).ok();
        let mut findmnt = Command::new("findmnt");
        let said = run(
            findmnt.args(["-n", "-o", "FSTYPE"]).arg(node.mountpoint()),
            COMMAND,
        )
        .ok();
        assert_eq!(said.stdout.trim(), "fuse.meshbox", "-t {fs_type}");
        assert_eq!(node.status()["name"], "alder", "-t {fs_type}");
        let pid = node.pid();
        run(Command::new("umount").arg(node.mountpoint()), COMMAND).ok();
        node.assert_gone(pid);
    }
}

#[test]
fn mount_8_shows_the_error_of_the_daemon_and_fails() {
    needs_mounts!();
    let Some(_helper) = Helper::install("meshbox") else {
        return;
    };
    let node = Node::prepare("alder", &[]);
    fs::write(node.mountpoint().join("precious"), b"").unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "meshbox"])
        .arg(node.state())
        .arg(node.mountpoint())
        .args(["-o", "no_mdns"]);
    run(&mut mount, COMMAND).fails_saying(&["empty"]);
    assert_eq!(mounted_type(&node.mountpoint()), None);
}

#[test]
fn other_users_see_a_mount_with_allow_other_only() {
    needs_mounts!();
    for (options, allowed) in [(&[][..], false), (&["-o", "allow_other"][..], true)] {
        let node = Node::prepare("alder", options);
        open_to_all(node.root());
        node.mount(&[]).ok();
        let mut list = Command::new("setpriv");
        list.args(["--reuid=65534", "--regid=65534", "--clear-groups", "ls"])
            .arg(node.mountpoint());
        let ran = run(&mut list, COMMAND);
        assert_eq!(ran.code == Some(0), allowed, "{options:?}: {ran:?}");
    }
}

/// mount(8) takes $HOME away before it calls a helper for a user, so that a line with `noauto,user` in fstab had no state.
#[test]
fn a_user_whose_environment_has_no_home_has_the_one_of_the_user_database() {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    let program = dir.path().join("meshbox");
    fs::copy(BIN, &program).unwrap();
    let (uid, mut command) = if common::is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(program);
        (65534, command)
    } else {
        let uid = rustix::process::getuid().as_raw();
        (uid, Command::new(program))
    };
    command.arg("config").arg(dir.path().join("box"));
    command.env_remove("HOME").env_remove("XDG_STATE_HOME");
    let said = run(&mut command, COMMAND).ok().stdout;
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let home = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[2] == uid.to_string())
        .map(|fields| fields[5].to_owned());
    let Some(home) = home else {
        eprintln!("skipped: {uid} is in another user database");
        return;
    };
    assert!(
        said.contains(&format!("{home}/.local/state/meshbox/")),
        "{said}"
    );
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
