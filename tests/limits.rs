//! Metadata, space and limits, and status in the tree, through real mounts and real programs.

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{ARRIVES, BIN, COMMAND, Node, Ran, bytes, run, sha256, wait_until};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

fn sh(script: &str, path: &Path) -> Ran {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(path);
    run(&mut command, COMMAND)
}

fn state_of(path: &Path) -> String {
    Node::attribute(path, "state")
}

/// What getxattr fails with.
fn attribute_error(path: &Path, name: &str) -> Option<Errno> {
    rustix::fs::getxattr(path, name, &mut [0_u8; 256][..]).err()
}

/// A node that joined `first` with options of its own.
fn join_with(name: &str, first: &Node, options: &[&str]) -> Node {
    let node = Node::prepare(name, options);
    node.mount(&["--join", &first.ticket()]).ok();
    node.wait_connected(first);
    first.wait_connected(&node);
    node
}

/// A file system of its own for a node's state. Dropped after the node.
struct SmallDisk {
    at: Option<TempDir>,
}

impl SmallDisk {
    fn new(size: &str) -> Self {
        let at = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size},mode=0700")).unwrap();
        mount(
            "tmpfs",
            at.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(&*options),
        )
        .unwrap();
        Self { at: Some(at) }
    }

    fn path(&self) -> &Path {
        self.at.as_ref().unwrap().path()
    }

    /// Lets `node` keep its state here.
    fn holds(&self, node: &Node) {
        let state = self.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(state, node.state()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).ok();
    }
}

#[test]
fn mtime_and_the_executable_bit_travel_and_nothing_else_does() {
    needs_mounts!();
    let alder = Node::start("alder");
    let birch = Node::prepare(
        "birch",
        &[
            "--inbox-mode",
            "0660",
            "-o",
            "allow_other,uid=12345,gid=54321,umask=007",
        ],
    );
    // As from a login shell with a tight umask.
    let joined = run(
        Command::new("sh")
            .args(["-c", "umask 077; exec \"$@\"", "sh", BIN, "mount"])
            .arg(birch.mountpoint())
            .arg("--state")
            .arg(birch.state())
            .args(["--name", "birch", "--listen", "127.0.0.1:0", "--no-mdns"])
            .args(["--join", &alder.ticket(), "--inbox-mode", "0660"])
            .args(["-o", "allow_other,uid=12345,gid=54321,umask=007"]),
        COMMAND,
    );
    joined.ok();
    let source = alder.root().join("src");
    let mut wanted = Vec::new();
    for (name, mode, shown) in [
        ("plain", 0o6644, 0o660),
        ("run", 0o7755, 0o770),
        ("closed", 0o600, 0o660),
        ("open", 0o777, 0o770),
    ] {
        let at = source.join(name);
        fs::write(&at, name).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(mode)).unwrap();
        run(
            Command::new("touch")
                .args(["-d", "2001-02-03 04:05:06.789 UTC"])
                .arg(&at),
            COMMAND,
        )
        .ok();
        wanted.push((name, shown));
    }
    run(
        Command::new("chown").args(["-R", "777:777"]).arg(&source),
        COMMAND,
    )
    .ok();
    run(
        Command::new("cp")
            .arg("-a")
            .arg(&source)
            .arg(alder.outbox("d")),
        ARRIVES,
    )
    .ok();
    for (name, shown) in wanted {
        let path = format!("d/{name}");
        birch.wait_arrived(&path, &sha256(name.as_bytes()));
        let meta = fs::metadata(birch.inbox(&path)).unwrap();
        assert_eq!(meta.mode() & 0o7777, shown, "{name}");
        assert_eq!((meta.uid(), meta.gid()), (12345, 54321), "{name}");
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (981_173_106, 789_000_000),
            "{name}"
        );
    }
    for (at, mode) in [
        ("inbox/d", 0o770),
        ("inbox", 0o770),
        ("outbox", 0o770),
        (".meshbox", 0o555),
    ] {
        let meta = fs::metadata(birch.mountpoint().join(at)).unwrap();
        let facts = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        assert_eq!(facts, (mode, 12345, 54321), "{at}");
    }
    // Root wrote it, so it is root's; the user the mount belongs to writes files of its own, and consumes.
    birch.put("mine", b"root");
    assert_eq!(fs::metadata(birch.outbox("mine")).unwrap().uid(), 0);
    let as_user = |script: &str| {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(birch.mountpoint());
        run(command.uid(12345).gid(54321), COMMAND)
    };
    // The temporary directory is root's alone; the mount was entered before.
    fs::set_permissions(birch.root(), fs::Permissions::from_mode(0o755)).unwrap();
    as_user("echo hello > outbox/theirs && rm inbox/d/plain").ok();
    let theirs = fs::metadata(birch.outbox("theirs")).unwrap();
    assert_eq!((theirs.uid(), theirs.gid()), (12345, 54321));
    assert!(!birch.inbox("d/plain").exists());
}

#[test]
fn a_setting_that_makes_no_sense_is_named_with_its_remedy() {
    needs_mounts!();
    let node = Node::prepare("alder", &[]);
    for (words, says) in [
        (["--inbox-mode", "4755"], ["--inbox-mode", "0666"]),
        (["--inbox-mode", "rw"], ["--inbox-mode", "0640"]),
        (
            ["--max-file-bytes", "0"],
            ["--max-file-bytes", "leave it out"],
        ),
        (["--min-free", "some"], ["--min-free", "64MiB"]),
        (["-o", "uid=nobody"], ["-o uid", "id NAME"]),
        (["-o", "umask=0700"], ["-o umask", "0000"]),
    ] {
        let ran = node.mount(&words);
        assert_eq!(ran.code, Some(2), "{words:?}: {ran:?}");
        ran.fails_saying(&says);
    }
}

#[test]
fn s23_a_file_above_max_file_bytes_is_stopped_where_it_passes_it() {
    needs_mounts!();
    let alder = Node::prepare("alder", &["--max-file-bytes", "1MiB"]);
    alder.mount(&[]).ok();
    let birch = join_with("birch", &alder, &["--max-file-bytes", "100K"]);
    for (name, script) in [
        ("head", "head -c 2M /dev/zero > \"$1\""),
        ("truncate", "truncate -s 2M \"$1\""),
        ("fallocate", "fallocate -l 2M \"$1\""),
    ] {
        let at = alder.outbox(name);
        sh(script, &at).fails_saying(&["File too large"]);
        wait_until("it is held back", ARRIVES, || state_of(&at) == "incomplete");
        let why = Node::attribute(&at, "error");
        assert!(why.contains("File too large"), "{name}: {why}");
    }
    assert_eq!(fs::metadata(alder.outbox("head")).unwrap().len(), 1 << 20);
    // What is allowed here may be too large there; the rest flows.
    alder.put("large", &bytes(1, 1 << 20));
    alder.marker("small", &birch);
    wait_until("birch refuses it", ARRIVES, || {
        alder.outbound_state("large") == "refused"
    });
    let why = Node::attribute(&alder.outbox("large"), "error");
    assert!(
        why.contains("birch") && why.contains("max_file_bytes"),
        "{why}"
    );
    let status = birch.status();
    let rows = status["inbound"].as_array().unwrap();
    assert!(
        rows.iter()
            .any(|row| row["path"] == "large" && row["state"] == "refused"),
        "{status:#}"
    );
    for name in ["head", "truncate", "fallocate", "large"] {
        assert!(!birch.inbox(name).exists(), "{name}");
    }
    // The same name again, whole.
    let sha = alder.put("head", b"whole");
    birch.wait_arrived("head", &sha);
}

#[test]
fn a_full_disk_stops_writers_and_defers_what_arrives() {
    needs_mounts!();
    let (small, tiny) = (SmallDisk::new("96M"), SmallDisk::new("40M"));
    let alder = Node::prepare("alder", &["--min-free", "32M"]);
    small.holds(&alder);
    alder.mount(&[]).ok();
    let birch = Node::prepare("birch", &["--min-free", "8M"]);
    tiny.holds(&birch);
    birch.mount(&["--join", &alder.ticket()]).ok();
    birch.wait_connected(&alder);

    let available = |path: &Path| {
        let stat = rustix::fs::statvfs(path).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    // The daemon may write between the two looks.
    wait_until("df shows what may be written", ARRIVES, || {
        available(&alder.mountpoint()) + (32 << 20) == available(small.path())
    });
    let source = alder.root().join("src/big");
    fs::write(&source, bytes(3, 80 << 20)).unwrap();
    run(
        Command::new("cp").arg(&source).arg(alder.outbox("big")),
        ARRIVES,
    )
    .fails_saying(&["No space left on device"]);
    let big = alder.outbox("big");
    wait_until("it is held back", ARRIVES, || {
        state_of(&big) == "incomplete"
    });
    assert!(Node::attribute(&big, "error").contains("No space left"));
    // But for what the daemon itself writes there: its database and its log.
    assert!(available(small.path()) >= 31 << 20);
    fs::remove_file(&big).unwrap();

    let sha = alder.put("middle", &bytes(4, 36 << 20));
    alder.marker("small", &birch);
    // It is tried again and again, and is not deferred meanwhile.
    wait_until("it is deferred, with the reason", ARRIVES, || {
        let why = Node::attribute(&alder.outbox("middle"), "error");
        alder.outbound_state("middle") == "deferred"
            && why.contains("birch")
            && why.contains("no room")
    });
    wait_until("birch shows it as deferred", ARRIVES, || {
        let status = birch.status();
        let rows = status["inbound"].as_array().unwrap();
        rows.iter()
            .any(|row| row["path"] == "middle" && row["state"] == "deferred")
    });
    assert!(available(tiny.path()) >= 8 << 20);
    // There is room now: the origin tries again by itself, soon.
    let grown = std::ffi::CString::new("size=160M").unwrap();
    rustix::mount::mount_remount(tiny.path(), MountFlags::empty(), &*grown).unwrap();
    birch.wait_arrived("middle", &sha);
}

#[test]
fn what_is_removed_undelivered_has_a_quota_that_says_for_whom_it_waits() {
    needs_mounts!();
    let alder = Node::prepare("alder", &["--max-bytes", "1MiB"]);
    alder.mount(&[]).ok();
    let birch = Node::join("birch", &alder);
    birch.stop();
    let first = alder.put("a", &bytes(1, 700 << 10));
    let second = alder.put("b", &bytes(2, 700 << 10));
    for name in ["a", "b"] {
        wait_until("it is queued", ARRIVES, || {
            ["queued", "deferred"].contains(&alder.outbound_state(name).as_str())
        });
    }
    fs::remove_file(alder.outbox("a")).unwrap();
    assert_eq!(alder.count("held_bytes"), 700 << 10);
    let b = alder.outbox("b");
    let full = fs::remove_file(&b).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc_edquot()));
    assert!(
        Node::attribute(&b, "error").contains("birch"),
        "{:?}",
        Node::attribute(&b, "error")
    );
    sh("cat /proc/version >> \"$1\"", &b).fails_saying(&["quota"]);
    sh("cp /proc/version \"$1\"", &b).fails_saying(&["quota"]);
    assert!(
        ["queued", "deferred"].contains(&state_of(&b).as_str()),
        "{}",
        state_of(&b)
    );
    alder.put("c", b"new files are written all the same");

    birch.restart();
    birch.wait_arrived("a", &first);
    birch.wait_arrived("b", &second);
    alder.wait_delivered("b");
    wait_until("nothing is kept", ARRIVES, || {
        alder.count("held_bytes") == 0
    });
    fs::remove_file(&b).unwrap();
}

fn libc_edquot() -> i32 {
    Errno::DQUOT.raw_os_error()
}

/// Opens the directory at the end of `names`, one at a time, made where missing: together they may be too long.
fn walk(root: &Path, names: &[Vec<u8>], make: bool) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, root, flags, Mode::empty())?;
    for name in names {
        let name = OsStr::from_bytes(name);
        if make {
            mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
        }
        at = openat(&at, name, flags, Mode::empty())?;
    }
    Ok(at)
}

#[test]
fn s23_long_names_odd_names_and_deep_paths_travel() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let long = vec![b'x'; 255];
    let deep: Vec<Vec<u8>> = vec![vec![b'd'; 255]; 15];
    let cases: [(&[Vec<u8>], Vec<u8>); 4] = [
        (&[], long.clone()),
        (&[], b"\xff\xfe \n'\"".to_vec()),
        (&deep, vec![b'f'; 160]),
        (&deep[..3], "ä".repeat(127).into_bytes()),
    ];
    for (directories, name) in &cases {
        let root = alder.outbox("");
        let at = walk(&root, directories, true)
            .or_else(|_there| walk(&root, directories, false))
            .unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = openat(
            &at,
            OsStr::from_bytes(name),
            flags,
            Mode::from_raw_mode(0o644),
        )
        .unwrap();
        rustix::io::write(&file, name).unwrap();
    }
    let too_long = vec![b'x'; 256];
    let error = fs::write(alder.outbox("").join(OsStr::from_bytes(&too_long)), b"").unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NAMETOOLONG));
    for (directories, name) in &cases {
        let name = OsStr::from_bytes(name);
        let mut found = Vec::new();
        wait_until(&format!("{name:?} arrives"), ARRIVES, || {
            found.clear();
            walk(&birch.inbox(""), directories, false)
                .and_then(|at| openat(&at, name, OFlags::RDONLY, Mode::empty()))
                .is_ok_and(|file| File::from(file).read_to_end(&mut found).is_ok())
        });
        assert_eq!(found, name.as_bytes());
    }
    // Gone, and not back after a restart of either.
    let at = walk(&birch.inbox(""), &deep, false).unwrap();
    unlinkat(&at, "f".repeat(160), rustix::fs::AtFlags::empty()).unwrap();
    drop(at);
    wait_until("all is delivered", ARRIVES, || {
        alder.count("outbound_pending") == 0
    });
    for node in [&alder, &birch] {
        node.stop();
        node.restart();
    }
    alder.wait_connected(&birch);
    alder.marker("after", &birch);
    let at = walk(&birch.inbox(""), &deep, false).unwrap();
    let gone = statat(&at, "f".repeat(160), rustix::fs::AtFlags::empty());
    assert_eq!(gone.unwrap_err(), Errno::NOENT);
    let at = walk(&alder.outbox(""), &deep, false).unwrap();
    assert!(statat(&at, "f".repeat(160), rustix::fs::AtFlags::empty()).is_ok());
}

#[test]
fn attributes_say_what_became_of_a_file_and_are_never_listed() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let sha = alder.put("d/report", b"report");
    birch.wait_arrived("d/report", &sha);
    alder.wait_delivered("d/report");
    let (sent, got) = (alder.outbox("d/report"), birch.inbox("d/report"));
    assert_eq!(state_of(&sent), "delivered 1/1");
    wait_until("it is durable", ARRIVES, || state_of(&got) == "received");
    assert_eq!(Node::attribute(&sent, "sha256"), sha);
    assert_eq!(Node::attribute(&got, "sha256"), sha);
    assert_eq!(
        Node::attribute(&sent, "bundle"),
        Node::attribute(&got, "bundle")
    );
    assert_eq!(Node::attribute(&sent, "bundle").len(), 64);
    assert_eq!(Node::attribute(&got, "from"), "alder");
    assert_eq!(Node::attribute(&sent, "progress"), "6/6");
    assert_eq!(Node::attribute(&got, "progress"), "6/6");
    let absent = [
        (&sent, "user.meshbox.from"),
        (&sent, "user.meshbox.error"),
        (&got, "user.meshbox.error"),
        (&sent, "user.meshbox.nothing"),
        (&alder.outbox("d"), "user.meshbox.state"),
        (&alder.mountpoint(), "user.meshbox.state"),
        (
            &alder.mountpoint().join(".meshbox/metrics"),
            "user.meshbox.state",
        ),
    ];
    for (path, name) in absent {
        assert_eq!(
            attribute_error(path, name),
            Some(Errno::NODATA),
            "{path:?} {name}"
        );
    }
    for path in [&sent, &got, &alder.outbox("d")] {
        let mut names = [0_u8; 4096];
        assert_eq!(
            rustix::fs::listxattr(path, &mut names[..]).unwrap(),
            0,
            "{path:?}"
        );
    }
}

#[test]
fn an_ignored_name_says_which_pattern_and_the_list_can_be_changed() {
    needs_mounts!();
    let alder = Node::prepare("alder", &["--ignore", "*.bak", "--ignore-except", "*.part"]);
    alder.mount(&[]).ok();
    let birch = Node::join("birch", &alder);
    for name in ["x.tmp", "x.bak", ".hidden"] {
        alder.put(name, b"x");
    }
    let sha = alder.put("x.part", b"not ignored any more");
    birch.wait_arrived("x.part", &sha);
    for (name, says) in [
        ("x.tmp", "ignored: matches *.tmp"),
        ("x.bak", "ignored: matches *.bak"),
        (".hidden", "ignored: matches .*"),
    ] {
        assert_eq!(state_of(&alder.outbox(name)), says);
        assert!(!birch.inbox(name).exists(), "{name}");
    }
    assert!(alder.count("ignored") >= 3);
    alder.stop();
    // By the file: without a flag, what it says holds.
    let config = alder.root().join("site.toml");
    fs::write(&config, "ignore = [\"*.new\"]\n").unwrap();
    birch.stop();
    birch.mount(&["--config", config.to_str().unwrap()]).ok();
    fs::write(birch.outbox("z.new"), b"stays").unwrap();
    assert_eq!(state_of(&birch.outbox("z.new")), "ignored: matches *.new");
}

/// Prometheus text: name, optional labels, value; each with HELP and TYPE before it.
fn parse_metrics(text: &str) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    let mut announced = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(["HELP", "TYPE"].contains(&what), "{line}");
            assert!(words.next().is_some_and(|rest| !rest.is_empty()), "{line}");
            *announced.entry(name.to_owned()).or_insert(0) += 1;
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let family = name.split('{').next().unwrap();
        assert!(
            family.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{line}"
        );
        assert_eq!(
            announced.get(family),
            Some(&2),
            "{line} has no HELP and TYPE"
        );
        found.push((
            name.to_owned(),
            value.parse().unwrap_or_else(|_| panic!("{line:?}")),
        ));
    }
    assert!(text.ends_with('\n'));
    found
}

#[test]
fn generated_files_read_alike_by_every_program_and_whole() {
    needs_mounts!();
    let alder = Node::start("alder");
    let dir = alder.mountpoint().join(".meshbox");
    let metrics = parse_metrics(&fs::read_to_string(dir.join("metrics")).unwrap());
    let guide = include_str!("../packaging/doc/guide.md");
    for (name, _) in &metrics {
        assert!(
            guide.contains(&format!("`{name}`")),
            "guide.md does not explain {name}"
        );
    }
    for i in 0..40 {
        alder.put(&format!("f{i}"), b"x");
    }
    let json = |text: &str| -> serde_json::Value {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let status = dir.join("status.json");
    for script in [
        "cat \"$1\"",
        "cp \"$1\" /tmp/$$.meshbox && cat /tmp/$$.meshbox; rm -f /tmp/$$.meshbox",
        "tail -c +1 \"$1\"",
        "dd if=\"$1\" bs=7 status=none",
        "grep '' \"$1\"",
    ] {
        let ran = sh(script, &status).ok();
        assert_eq!(json(&ran.stdout)["name"], "alder", "{script}");
    }
    assert!(
        fs::metadata(&status).unwrap().len() > 100,
        "stat shows a size"
    );
    // One open is one moment, however slowly it is read.
    let mut open = File::open(&status).unwrap();
    let (mut text, mut piece, mut i) = (Vec::new(), [0; 200], 0);
    loop {
        match open.read(&mut piece).unwrap() {
            0 => break,
            n => text.extend_from_slice(&piece[..n]),
        }
        fs::write(alder.outbox(&format!("g{}", i % 10)), b"x").unwrap();
        i += 1;
    }
    json(std::str::from_utf8(&text).unwrap());
    assert!(json(&fs::read_to_string(dir.join("peers.json")).unwrap()).is_array());
    wait_until("metrics count what was sealed", ARRIVES, || {
        let text = fs::read_to_string(dir.join("metrics")).unwrap();
        let value = |name: &str| parse_metrics(&text).into_iter().find(|(n, _)| n == name);
        value("meshbox_sealed_total").is_some_and(|(_, value)| value >= 40.0)
    });
    let write = fs::write(&status, b"x").unwrap_err();
    assert_eq!(Errno::from_io_error(&write), Some(Errno::ROFS));
}

#[test]
fn a_large_directory_is_listed_whole_and_removed() {
    needs_mounts!();
    const FILES: usize = 3000;
    let node = Node::start("alder");
    let dir: PathBuf = node.outbox("many");
    fs::create_dir(&dir).unwrap();
    for i in 0..FILES {
        File::create(dir.join(format!("file-{i}"))).unwrap();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES);
    // Removing while listing skips nothing.
    let mut removed = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, FILES);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    run(
        Command::new("rm").arg("-rf").arg(&dir),
        Duration::from_secs(60),
    )
    .ok();
    assert!(!dir.exists());
}
