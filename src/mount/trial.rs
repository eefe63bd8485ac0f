//! Tests with real mounts. They skip, and say why, where mounting is not possible. Every mount is detached on drop.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, INodeNo,
    ReplyAttr, ReplyDirectory, ReplyEntry, Request, Session, SessionACL,
};

use super::info::{MountTable, meshbox_mountpoints};
use super::prepare::{PrepareError, prepare, recover};
use super::probe::{Life, probe};
use super::sys::{self, MountRequest, Mounted, UnmountError};

/// Long enough for any answer that will come.
const LONG: Duration = Duration::from_secs(20);

/// A directory for a test, and its path without links.
pub(super) fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

/// An empty directory.
#[derive(Debug)]
struct Empty;

impl Filesystem for Empty {
    fn lookup(&self, _: &Request, _: INodeNo, _: &std::ffi::OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o755,
            nlink: 2,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::ZERO, &attr);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: ReplyDirectory) {
        reply.ok();
    }
}

fn serve(fd: OwnedFd) -> BackgroundSession {
    Session::from_fd(Empty, fd, SessionACL::Owner, Config::default())
        .unwrap()
        .spawn()
        .unwrap()
}

/// Waits for the end of a session whose mount is gone. A request that it took out of the queue at that moment is an aborted
/// read.
fn end(session: BackgroundSession) {
    if let Err(error) = session.join() {
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
    }
}

/// A place for one test's mounts. Whatever a failed test leaves there is detached.
struct Place {
    top: PathBuf,
    _dir: tempfile::TempDir,
}

impl Place {
    /// `None`, with the reason printed, where this process cannot mount.
    fn new() -> Option<Place> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return None;
        }
        let (dir, top) = scratch();
        let place = Place { top, _dir: dir };
        let check = place.top.join("check");
        fs::create_dir(&check).unwrap();
        match sys::mount(&MountRequest::new(check.clone(), "check")) {
            Ok((mounted, fd)) => {
                mounted.unmount().unwrap();
                drop(fd);
                fs::remove_dir(&check).unwrap();
                Some(place)
            }
            Err(e) => {
                eprintln!("skipped: {e}");
                None
            }
        }
    }

    fn at(&self) -> PathBuf {
        self.top.join("share")
    }

    fn prepare(&self) -> Result<super::prepare::Prepared, PrepareError> {
        prepare(&self.at(), &self.top.join("state"))
    }

    fn mount(&self) -> (Mounted, OwnedFd) {
        let prepared = self.prepare().unwrap();
        sys::mount(&MountRequest::new(prepared.mountpoint, "label,with comma")).unwrap()
    }

    fn type_at(&self) -> Option<String> {
        MountTable::read()
            .unwrap()
            .top_at(&self.at())
            .map(|e| e.fs_type.clone())
    }

    fn tmpfs(&self) {
        fs::create_dir_all(self.at()).unwrap();
        rustix::mount::mount(
            "foreign",
            self.at(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
        .unwrap();
    }

    fn detach(&self) {
        rustix::mount::unmount(self.at(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.type_at().is_some() {
            self.detach();
        }
    }
}

#[test]
fn a_mount_is_seen_by_its_type_and_ends_with_unmount() {
    let Some(place) = Place::new() else { return };
    let (mounted, fd) = place.mount();
    let session = serve(fd);
    let table = MountTable::read().unwrap();
    let entry = table.top_at(&place.at()).unwrap();
    assert_eq!(
        (entry.fs_type.as_str(), entry.source.to_str()),
        ("fuse.meshbox", Some("label,with comma"))
    );
    assert!(
        entry.options.contains("nosuid") && entry.options.contains("nodev"),
        "{entry:?}"
    );
    assert!(meshbox_mountpoints().unwrap().contains(&place.at()));
    if let Ok(out) = Command::new("findmnt")
        .args(["-n", "-o", "FSTYPE"])
        .arg(place.at())
        .output()
    {
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "fuse.meshbox");
    }
    assert!(fs::metadata(place.at()).unwrap().is_dir());

    assert!(
        matches!(place.prepare(), Err(PrepareError::AlreadyMounted { at }) if at == place.at())
    );
    let inside = prepare(&place.at().join("outbox"), &place.top.join("state"));
    assert!(matches!(inside, Err(PrepareError::InsideMeshbox { at, .. }) if at == place.at()));
    let state_inside = prepare(&place.top.join("other"), &place.at().join("state"));
    assert!(matches!(
        state_inside,
        Err(PrepareError::InsideMeshbox { .. })
    ));

    assert!(mounted.is_in_place().unwrap());
    mounted.unmount().unwrap();
    end(session);
    assert_eq!(place.type_at(), None);
    assert!(!mounted.is_in_place().unwrap());
    mounted.unmount().unwrap();
    assert_eq!(place.prepare().unwrap().recovered, 0);
}

#[test]
fn a_dead_mount_of_our_own_is_recovered() {
    let Some(place) = Place::new() else { return };
    for _ in 0..2 {
        // As after kill -9: nobody holds the descriptor, the mount stays. Twice, one on the other.
        fs::create_dir_all(place.top.join("share")).ok();
        let (mounted, fd) = sys::mount(&MountRequest::new(place.at(), "dead")).unwrap();
        mounted.abandon();
        drop(fd);
    }
    let error = fs::metadata(place.at()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(place.prepare().unwrap().recovered, 2);
    assert_eq!(place.type_at(), None);
    drop(place.mount());
}

#[test]
fn a_mount_that_does_not_answer_is_recovered() {
    let Some(place) = Place::new() else { return };
    // Nobody reads the descriptor, so no request is ever answered.
    let (mounted, fd) = place.mount();
    let limit = Duration::from_millis(50);
    assert_eq!(probe(&place.at(), limit), Life::Hung);
    let table = MountTable::read().unwrap();
    recover(table.top_at(&place.at()).unwrap(), limit).unwrap();
    assert_eq!(place.type_at(), None);
    mounted.unmount().unwrap();
    drop(fd);
}

#[test]
fn a_foreign_mount_is_refused_and_never_unmounted() {
    let Some(place) = Place::new() else { return };
    place.tmpfs();
    assert!(
        matches!(place.prepare(), Err(PrepareError::Foreign { fs_type, .. }) if fs_type == "tmpfs")
    );
    assert!(matches!(
        sys::umount(&place.at(), true),
        Err(UnmountError::NotOurs { .. })
    ));
    place.detach();
    assert!(matches!(
        sys::umount(&place.at(), true),
        Err(UnmountError::NotMounted { .. })
    ));

    // Somebody mounts over ours: our end must not take theirs away.
    let (mounted, fd) = place.mount();
    let session = serve(fd);
    place.tmpfs();
    mounted.unmount().unwrap();
    drop(mounted);
    assert_eq!(place.type_at().as_deref(), Some("tmpfs"));
    place.detach();
    sys::umount(&place.at(), false).unwrap();
    end(session);
}

/// Ids of mounts and devices are used again at once: after an `umount` from outside, the next daemon's mount has ours.
#[test]
fn the_next_daemons_mount_at_the_same_place_is_left_alone() {
    let Some(place) = Place::new() else { return };
    let (first, fd) = place.mount();
    let first_session = serve(fd);
    sys::umount(&place.at(), false).unwrap();
    end(first_session);

    let (second, fd) = place.mount();
    let second_session = serve(fd);
    first.unmount().unwrap();
    drop(first);
    assert!(second.is_in_place().unwrap());
    assert_eq!(probe(&place.at(), LONG), Life::Alive);
    drop(second);
    end(second_session);
}

#[test]
fn a_busy_mount_is_named_and_lazy_detaches_it() {
    let Some(place) = Place::new() else { return };
    let (mounted, fd) = place.mount();
    let session = serve(fd);
    let user = File::open(place.at()).unwrap();
    let error = sys::umount(&place.at(), false).unwrap_err();
    assert!(matches!(error, UnmountError::Busy { .. }));
    assert!(error.to_string().contains("--lazy"));
    assert_eq!(sys::umount(&place.at(), true).unwrap(), place.at());
    assert_eq!(place.type_at(), None);
    drop(user);
    end(session);
    drop(mounted);
}

/// The connection is over, but the mount is still there, and ours to take away.
#[test]
fn the_shell_of_an_aborted_connection_is_unmounted() {
    let Some(place) = Place::new() else { return };
    let (mounted, fd) = place.mount();
    let session = serve(fd);
    let user = File::open(place.at()).unwrap();
    let forced = rustix::mount::unmount(place.at(), rustix::mount::UnmountFlags::FORCE);
    assert_eq!(
        forced,
        Err(rustix::io::Errno::BUSY),
        "force aborts, and then finds it busy"
    );
    assert_eq!(probe(&place.at(), LONG), Life::Dead);
    assert!(mounted.is_in_place().unwrap());
    mounted.unmount().unwrap();
    assert_eq!(place.type_at(), None);
    drop(user);
    // The library reports the abort as an error or not; either way its loops have ended.
    drop(session.join());
}

/// What a plain user can do, run by [`a_plain_user_mounts_through_fusermount3`] in its own mount namespace.
#[test]
#[ignore = "needs the surroundings that the test below makes"]
fn as_plain_user() {
    assert!(!rustix::process::geteuid().is_root());
    let (_dir, top) = scratch();
    let state = top.join("state");
    let at = prepare(&top.join("share"), &state).unwrap().mountpoint;
    let mut request = MountRequest::new(at.clone(), "a,b\\c");
    request.allow_other = true;
    let error = sys::mount(&request).unwrap_err().to_string();
    assert!(error.contains("user_allow_other"), "{error}");
    request.allow_other = false;

    let (mounted, fd) = sys::mount(&request).unwrap();
    let session = serve(fd);
    let table = MountTable::read().unwrap();
    let entry = table.top_at(&at).unwrap();
    assert_eq!(entry.source, "a,b\\c");
    assert!(entry.is_meshbox());
    assert!(matches!(
        prepare(&at, &state),
        Err(PrepareError::AlreadyMounted { .. })
    ));
    let user = File::open(&at).unwrap();
    assert!(matches!(
        sys::umount(&at, false),
        Err(UnmountError::Busy { .. })
    ));
    drop(user);
    mounted.unmount().unwrap();
    end(session);

    let (mounted, fd) = sys::mount(&request).unwrap();
    mounted.abandon();
    drop(fd);
    assert_eq!(prepare(&at, &state).unwrap().recovered, 1);
    assert!(MountTable::read().unwrap().top_at(&at).is_none());
    println!("plain user: done");
}

#[test]
fn a_plain_user_mounts_through_fusermount3() {
    let Some(place) = Place::new() else { return };
    // A device that everybody may open, seen only in a namespace of its own, and this program where nobody may run it.
    let script = r#"set -e
        command -v fusermount3 runuser >/dev/null || { echo 'skipped: no fusermount3 or runuser'; exit 0; }
        chmod 755 "$TOP"; mkdir -m 1777 "$TOP/tmp"
        mount -t tmpfs none "$TOP/tmp"; chmod 1777 "$TOP/tmp"; touch "$TOP/tmp/program"
        mknod -m 666 "$TOP/tmp/fuse" c 10 229; mount --bind "$TOP/tmp/fuse" /dev/fuse
        mount --bind "$PROGRAM" "$TOP/tmp/program"
        cd /; TMPDIR="$TOP/tmp" exec runuser -u nobody -- \
            "$TOP/tmp/program" --exact mount::trial::as_plain_user --ignored --nocapture"#;
    let out = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script])
        .env("TOP", &place.top)
        .env("PROGRAM", std::env::current_exe().unwrap())
        .output();
    let out = match out {
        Ok(out) => out,
        Err(e) => {
            eprintln!("skipped: unshare: {e}");
            return;
        }
    };
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
    if !text.contains("plain user: done") {
        assert!(text.contains("skipped"), "{text}");
        eprintln!("{text}");
    }
    assert!(Path::new("/dev/fuse").exists());
}

/// `systemd-analyze verify` wants the program to exist, so another one stands in for it.
#[test]
fn the_units_in_packaging_verify() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        (
            "meshbox@.service",
            include_str!("../../packaging/systemd/meshbox@.service"),
        ),
        (
            "srv-share.mount",
            include_str!("../../packaging/systemd/srv-share.mount"),
        ),
    ] {
        fs::write(
            dir.path().join(name),
            text.replace("/usr/bin/meshbox", "/bin/true"),
        )
        .unwrap();
    }
    // An instance, so that the specifiers are expanded.
    let service = dir.path().join("meshbox@srv-share\\x20two.service");
    fs::copy(dir.path().join("meshbox@.service"), &service).unwrap();
    let out = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&service)
        .arg(dir.path().join("srv-share.mount"))
        .output();
    match out {
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{said}");
            assert!(
                !said.contains("meshbox@") && !said.contains("srv-share"),
                "{said}"
            );
        }
        Err(e) => eprintln!("skipped: systemd-analyze: {e}"),
    }
}

/// The lines of the example, with the options that mount(8) leaves to a helper.
#[test]
fn the_fstab_example_has_options_we_take() {
    let text = include_str!("../../packaging/fstab.example");
    let mut lines = 0;
    for line in text.lines().map(|l| l.trim_start_matches('#')) {
        let fields: Vec<_> = line.split_whitespace().collect();
        if let [_, _, "meshbox" | "fuse.meshbox", options, "0", "0"] = fields[..] {
            lines += 1;
            super::options::MountOptions::parse(&[options], &|n| ["name", "listen"].contains(&n))
                .unwrap();
        }
    }
    assert_eq!(lines, 3);
}
