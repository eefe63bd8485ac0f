//! Disks on which there is no room for anything: full, and out of inodes.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use common::{ARRIVES, Node, bytes, wait_until};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A file system of its own for a node's state. Dropped after the node.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(options: &str) -> Self {
        let at = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("{options},mode=0700")).unwrap();
        let flags = MountFlags::empty();
        mount("tmpfs", at.path(), "tmpfs", flags, Some(&*options)).unwrap();
        Self(at)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn holds(&self, node: &Node) {
        let state = self.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(state, node.state()).unwrap();
    }

    /// Takes all space that is left, as somebody else would.
    fn fill(&self) {
        let mut filler = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path().join("filler"))
            .unwrap();
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).ok();
    }
}

fn trouble(node: &Node) -> String {
    node.status()["trouble"].as_str().unwrap_or("").to_owned()
}

/// A sender, and a receiver on a disk of its own where room is set aside.
fn pair_on(options: &str) -> (SmallDisk, Node, Node) {
    let disk = SmallDisk::new(options);
    let alder = Node::start("alder");
    let birch = Node::prepare("birch", &[]);
    disk.holds(&birch);
    birch.mount(&["--join", &alder.ticket()]).ok();
    birch.wait_connected(&alder);
    (disk, alder, birch)
}

#[test]
fn on_a_full_disk_a_file_can_be_removed_from_the_inbox_and_a_killed_daemon_starts_again() {
    needs_mounts!();
    let (disk, alder, birch) = pair_on("size=48M");
    for n in 0..40 {
        let sha = alder.put(&format!("f{n}"), format!("content {n}").as_bytes());
        birch.wait_arrived(&format!("f{n}"), &sha);
    }
    let reserve = disk.path().join("state/reserve/0");
    wait_until("room is set aside", ARRIVES, || reserve.exists());
    disk.fill();
    for n in 0..20 {
        fs::remove_file(birch.inbox(&format!("f{n}"))).unwrap();
    }
    assert!(trouble(&birch).contains("min_free"), "{}", trouble(&birch));
    birch.kill9();
    birch.mount(&[]).ok();
    for n in 0..40 {
        assert_eq!(birch.inbox(&format!("f{n}")).exists(), n >= 20, "{n}");
    }
    fs::remove_file(disk.path().join("filler")).unwrap();
    alder.marker("all", &birch);
    assert!(!birch.inbox("f0").exists(), "it does not come back");
    wait_until("room is set aside again", ARRIVES, || {
        alder.marker("again", &birch);
        reserve.exists()
    });
    disk.fill();
    birch.kill9();
    birch.mount(&[]).ok();
    assert!(birch.inbox("f20").exists());
}

#[test]
fn a_disk_out_of_inodes_is_called_that_on_both_sides() {
    needs_mounts!();
    let (disk, alder, birch) = pair_on("size=64M,nr_inodes=500");
    alder.marker("before", &birch);
    let fillers = disk.path().join("fillers");
    fs::create_dir(&fillers).unwrap();
    let full = (0..).find(|n| fs::File::create(fillers.join(n.to_string())).is_err());
    assert!(full.is_some());
    let sha = alder.put("large", &bytes(1, 3 << 20));
    wait_until("the sender reads why", ARRIVES, || {
        // What the daemon gives up is taken, too.
        (1000..1010).for_each(|n| drop(fs::File::create(fillers.join(n.to_string()))));
        Node::attribute(&alder.outbox("large"), "error").contains("inodes")
    });
    assert!(trouble(&birch).contains("inodes"), "{}", trouble(&birch));
    fs::remove_dir_all(&fillers).unwrap();
    birch.wait_arrived("large", &sha);
    wait_until("no trouble is left", ARRIVES, || trouble(&birch).is_empty());
}
