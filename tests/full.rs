//! Disks that take nothing: full, out of inodes, turned read-only, unwritable.

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use common::{ARRIVES, COMMAND, Node, bytes, run, sha256, wait_until};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A file system of its own for a node's state. Dropped after the node.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        fs::create_dir(disk.path()).unwrap();
        disk
    }

    fn tmpfs(options: &str) -> Self {
        let disk = Self::new();
        let options = std::ffi::CString::new(format!("{options},mode=0700")).unwrap();
        let flags = MountFlags::empty();
        mount("tmpfs", disk.path(), "tmpfs", flags, Some(&*options)).unwrap();
        disk
    }

    /// On a loop device, with a directory that is damaged: whoever looks into that turns the file system read-only, as
    /// damage does in practice.
    fn ext4(options: &[&str]) -> Self {
        let disk = Self::new();
        let image = fs::File::create(disk.image()).unwrap();
        image.set_len(96 << 20).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        run(
            mkfs.args(["-q", "-F"]).args(options).arg(disk.image()),
            COMMAND,
        )
        .ok();
        disk.mount_image();
        fs::create_dir(disk.bait()).unwrap();
        unmount(disk.path(), UnmountFlags::empty()).unwrap();
        let mut debugfs = Command::new("debugfs");
        debugfs
            .args(["-w", "-R", "zap_block -f /bait -p 90 0"])
            .arg(disk.image());
        run(&mut debugfs, COMMAND).ok();
        disk.mount_image();
        disk
    }

    fn mount_image(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,errors=remount-ro"]);
        run(mount.arg(self.image()).arg(self.path()), COMMAND).ok();
    }

    fn turns_read_only(&self) {
        assert!(
            fs::read_dir(self.bait())
                .unwrap()
                .any(|entry| entry.is_err())
        );
        let made = fs::File::create(self.path().join("x")).unwrap_err();
        assert_eq!(made.raw_os_error(), Some(libc::EROFS));
    }

    /// As an administrator does. No daemon runs on it.
    fn is_repaired(&self) {
        // Its descriptors go a moment after the mount and the lock of a daemon that ended.
        wait_until("nobody uses the disk", COMMAND, || {
            unmount(self.path(), UnmountFlags::empty()).is_ok()
        });
        let mut fsck = Command::new("e2fsck");
        // 1: errors were corrected.
        let ran = run(fsck.arg("-fy").arg(self.image()), COMMAND);
        assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
        self.mount_image();
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn bait(&self) -> PathBuf {
        self.path().join("bait")
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
fn pair_on(disk: SmallDisk) -> (SmallDisk, Node, Node) {
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
    let (disk, alder, birch) = pair_on(SmallDisk::tmpfs("size=48M"));
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
    let (disk, alder, birch) = pair_on(SmallDisk::tmpfs("size=64M,nr_inodes=500"));
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

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// How often a name was given in the inbox, by what is recorded.
fn arrivals(node: &Node, path: &str) -> usize {
    let status = node.status();
    let rows = status["inbound"].as_array().cloned().unwrap_or_default();
    rows.iter().filter(|row| row["path"] == path).count()
}

/// Whether it is said in memory that the page cache of the state's disk is not to be trusted.
fn distrusts(node: &Node) -> bool {
    let state = fs::metadata(node.state()).unwrap();
    let born = state.created().unwrap();
    let born = born.duration_since(UNIX_EPOCH).unwrap();
    // Other tests have state directories with this number too.
    let (ino, secs, nanos) = (state.ino(), born.as_secs(), born.subsec_nanos());
    Path::new(&format!("/run/meshbox-sync-failed-{ino}-{secs}-{nanos}")).exists()
}

#[test]
fn a_receiver_whose_disk_turned_read_only_says_so_and_gets_everything_when_it_is_repaired() {
    needs_mounts!();
    let (disk, alder, birch) = pair_on(SmallDisk::ext4(&[]));
    let (kept, taken) = (alder.put("kept", b"stays"), alder.put("taken", b"goes"));
    birch.wait_arrived("kept", &kept);
    birch.wait_arrived("taken", &taken);
    fs::remove_file(birch.inbox("taken")).unwrap();
    for path in ["kept", "taken"] {
        alder.wait_delivered(path);
    }
    let pid = birch.pid();
    disk.turns_read_only();
    let late = [("small", bytes(1, 9)), ("large", bytes(2, 3 << 20))];
    let late = late.map(|(path, bytes)| (path, alder.put(path, &bytes)));
    for (path, _) in &late {
        wait_until("the sender reads why", ARRIVES, || {
            Node::attribute(&alder.outbox(path), "error").contains("read-only")
        });
    }
    assert!(trouble(&birch).contains("read-only"), "{}", trouble(&birch));
    // It serves what it has, and takes nothing away that it could not note.
    assert_eq!(fs::read(birch.inbox("kept")).unwrap(), b"stays");
    let removed = fs::remove_file(birch.inbox("kept"));
    assert_eq!(errno(removed), Some(libc::EROFS));
    assert!(birch.inbox("kept").exists());
    assert_eq!(birch.pid(), pid, "it goes on");
    birch.stop();
    disk.is_repaired();
    birch.mount(&[]).ok();
    for (path, sha) in &late {
        birch.wait_arrived(path, sha);
        alder.wait_delivered(path);
    }
    assert_eq!(trouble(&birch), "");
    assert!(birch.inbox("kept").exists() && !birch.inbox("taken").exists());
    assert_eq!(birch.count("quarantined"), 0);
}

#[test]
fn a_sender_whose_disk_turned_read_only_says_so_and_sends_everything_when_it_is_repaired() {
    needs_mounts!();
    for kill in [false, true] {
        let (disk, birch, alder) = pair_on(SmallDisk::ext4(&[]));
        let given = alder.put("given", b"once");
        birch.wait_arrived("given", &given);
        alder.wait_delivered("given");
        birch.stop();
        let queued = [("small", bytes(1, 9)), ("large", bytes(2, 3 << 20))];
        let queued = queued.map(|(path, bytes)| (path, alder.put(path, &bytes)));
        for (path, _) in &queued {
            wait_until("it is queued", ARRIVES, || {
                alder.outbound_state(path).starts_with("queued")
            });
        }
        let mut open = fs::File::create(alder.outbox("open")).unwrap();
        open.write_all(b"half").unwrap();
        let pid = alder.pid();
        // Sent a moment ago, it waits for a second before it is sent again: closed, and perhaps not on the disk.
        let again = bytes(3, 2 << 20);
        fs::write(alder.outbox("again"), b"first").unwrap();
        wait_until("it is queued", ARRIVES, || {
            alder.outbound_state("again").starts_with("queued")
        });
        fs::write(alder.outbox("again"), &again).unwrap();
        disk.turns_read_only();
        assert_eq!(
            errno(fs::File::create(alder.outbox("new"))),
            Some(libc::EROFS)
        );
        let more = open.write_all(b"of it").and_then(|()| open.sync_all());
        assert_eq!(errno(more), Some(libc::EROFS));
        drop(open);
        assert_eq!(
            errno(fs::rename(alder.outbox("small"), alder.outbox("moved"))),
            Some(libc::EROFS)
        );
        assert_eq!(
            errno(fs::remove_file(alder.outbox("small"))),
            Some(libc::EROFS)
        );
        assert!(trouble(&alder).contains("read-only"), "{}", trouble(&alder));
        assert_eq!(alder.pid(), pid, "it goes on");
        if kill {
            wait_until("the next start is told", ARRIVES, || distrusts(&alder));
            alder.kill9();
            run(
                Command::new("umount").arg("-l").arg(alder.mountpoint()),
                COMMAND,
            )
            .ok();
        } else {
            alder.stop();
        }
        disk.is_repaired();
        alder.mount(&[]).ok();
        birch.mount(&[]).ok();
        for (path, sha) in &queued {
            birch.wait_arrived(path, sha);
            alder.wait_delivered(path);
        }
        alder.marker("last", &birch);
        alder.wait_sealed();
        assert_eq!(trouble(&alder), "");
        assert!(!distrusts(&alder));
        let shown = fs::read(birch.inbox("again")).unwrap_or_default();
        assert!(shown == b"first" || shown == again, "{} bytes", shown.len());
        assert_eq!(arrivals(&birch, "given"), 1, "nothing is sent twice");
        assert!(!birch.inbox("open").exists(), "nor half a file");
    }
}

/// Forbids changes even to root.
fn set_immutable(path: &Path, on: bool) {
    let mut chattr = Command::new("chattr");
    run(chattr.arg(if on { "+i" } else { "-i" }).arg(path), COMMAND).ok();
}

#[test]
fn what_may_not_be_written_in_is_named_on_both_sides_until_it_may_again() {
    needs_mounts!();
    let (disk, alder, birch) = pair_on(SmallDisk::ext4(&[]));
    alder.marker("before", &birch);
    for room in ["partial", "inbox"] {
        let at = disk.path().join("state").join(room);
        set_immutable(&at, true);
        let late = [
            (format!("{room}-small"), 9),
            (format!("{room}-large"), 3 << 20),
        ];
        let late = late.map(|(path, size)| (alder.put(&path, &bytes(size, size)), path));
        for (_, path) in &late {
            wait_until("the sender reads why", ARRIVES, || {
                Node::attribute(&alder.outbox(path), "error").contains("may not write")
            });
        }
        let said = trouble(&birch);
        assert!(
            said.contains("may not write") && said.contains(room),
            "{said}"
        );
        set_immutable(&at, false);
        for (sha, path) in &late {
            birch.wait_arrived(path, sha);
        }
        wait_until("no trouble is left", ARRIVES, || trouble(&birch).is_empty());
    }
    // The other way round: birch sends.
    let outbox = disk.path().join("state/outbox");
    set_immutable(&outbox, true);
    let refused = fs::write(birch.outbox("mine"), "x");
    assert_eq!(errno(refused), Some(libc::EPERM));
    let said = trouble(&birch);
    assert!(
        said.contains("may not write") && said.contains("outbox"),
        "{said}"
    );
    set_immutable(&outbox, false);
    let content = fs::read_dir(disk.path().join("state/content")).unwrap();
    let rooms: Vec<PathBuf> = content.map(|entry| entry.unwrap().path()).collect();
    rooms.iter().for_each(|at| set_immutable(at, true));
    fs::write(birch.outbox("mine"), "mine").unwrap();
    wait_until("it says why it is not sent", ARRIVES, || {
        let said = trouble(&birch);
        said.contains("outbox/mine") && said.contains("not permitted")
    });
    rooms.iter().for_each(|at| set_immutable(at, false));
    alder.wait_arrived("mine", &sha256(b"mine"));
    assert_eq!(trouble(&birch), "");
}

#[test]
fn an_ext4_out_of_inodes_is_called_that_by_sender_and_receiver() {
    needs_mounts!();
    let (disk, alder, birch) = pair_on(SmallDisk::ext4(&["-N", "600"]));
    alder.marker("before", &birch);
    let fillers = disk.path().join("fillers");
    fs::create_dir(&fillers).unwrap();
    let make = |n: u32| fs::File::create(fillers.join(n.to_string()));
    let full = (0..).map(make).find_map(errno);
    assert_eq!(full, Some(libc::ENOSPC));
    let sha = alder.put("large", &bytes(1, 3 << 20));
    wait_until("the sender reads why", ARRIVES, || {
        // What the daemon gives up is taken, too.
        (1000..1010).for_each(|n| drop(make(n)));
        Node::attribute(&alder.outbox("large"), "error").contains("inodes")
    });
    assert!(trouble(&birch).contains("inodes"), "{}", trouble(&birch));
    assert_eq!(
        errno(fs::write(birch.outbox("mine"), "x")),
        Some(libc::ENOSPC)
    );
    fs::remove_dir_all(&fillers).unwrap();
    birch.wait_arrived("large", &sha);
    fs::write(birch.outbox("mine"), "x").unwrap();
    alder.wait_arrived("mine", &sha256(b"x"));
    wait_until("no trouble is left", ARRIVES, || trouble(&birch).is_empty());
}
