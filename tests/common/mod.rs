//! Real daemons for integration tests: the real binary, real mounts, loopback, fresh state in a temporary directory.
//!
//! # Hygiene
//! 1. Whatever a test starts ends with it: a dropped [`Node`] is killed and its mount detached, also when the test panics.
//! 2. Nothing waits for ever: subprocesses run under a time limit, and a [`Node`] older than [`NODE_LIFE`] is killed, which
//!    ends every system call that hangs in its mount.
//! 3. A live mountpoint is never removed: if detaching fails, the temporary directory stays.
//! 4. No sleeping for "long enough": [`wait_until`] looks at a condition until a deadline. That something does *not*
//!    happen is shown by sending a marker after it and waiting for the marker.
// Each test binary includes this module and uses its own part of it.
#![allow(dead_code, unreachable_pub)]

pub mod lan;
pub mod watcher;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The program under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_meshbox");

/// How long a file may take to arrive before a test fails: far more than it should, for loaded machines.
pub const ARRIVES: Duration = Duration::from_secs(60);

/// How long one command of the program may take.
pub const COMMAND: Duration = Duration::from_secs(60);

/// How long a node may live. Ends tests that hang in the mount; the longest crash test needs about a third of it.
pub const NODE_LIFE: Duration = Duration::from_secs(540);

/// Sizes at which something changes, with the reason.
pub const SIZES: [(&str, u64); 8] = [
    ("empty", 0),                 // never written: settles on another rule, has no chunk
    ("one", 1),                   // the smallest content
    ("inline-1", 64 * 1024 - 1),  // the largest but one inside an offer
    ("inline", 64 * 1024),        // the largest inside an offer
    ("inline+1", 64 * 1024 + 1),  // the smallest fetched by range
    ("chunk-1", 1024 * 1024 - 1), // one short chunk
    ("chunk", 1024 * 1024),       // exactly one chunk
    ("chunk+1", 1024 * 1024 + 1), // a second chunk of one byte
];

/// Ends the test with a printed reason where file systems cannot be mounted. With `MESHBOX_TESTS_MUST_MOUNT=1` (set by
/// `scripts/test`) it fails instead, so that a gate never passes by skipping.
#[macro_export]
macro_rules! needs_mounts {
    () => {
        if let Some(why) = $crate::common::cannot_mount() {
            assert!(
                std::env::var_os("MESHBOX_TESTS_MUST_MOUNT").is_none(),
                "this test must run here, but {why}"
            );
            eprintln!("skipped: {why}");
            return;
        }
    };
}

/// Why no file system can be mounted here, if so.
pub fn cannot_mount() -> Option<String> {
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        return Some("/dev/fuse is missing or not accessible".into());
    }
    if !is_root() {
        return Some("it is not running as root".into());
    }
    None
}

/// Whether this process may mount by itself.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Looks at `done` until it holds. Panics with `what` when the deadline is over.
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` when a signal ended it (ours, at the limit).
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Panics unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "the command failed: {self:#?}");
        self
    }

    /// Panics unless the command failed with an exit code and said each of `words` on standard error.
    #[track_caller]
    pub fn fails_saying(self, words: &[&str]) -> Self {
        assert!(
            !matches!(self.code, Some(0) | None),
            "should have failed: {self:#?}"
        );
        let said = self.stderr.to_lowercase();
        for word in words {
            assert!(
                said.contains(&word.to_lowercase()),
                "no {word:?} in: {self:#?}"
            );
        }
        self
    }
}

/// Runs `command` to its end, or kills it at the limit. Output goes through files: a daemon left in the background
/// that still holds a pipe could keep a reader waiting.
pub fn run(command: &mut Command, limit: Duration) -> Ran {
    let mut out = tempfile::tempfile().unwrap();
    let mut err = tempfile::tempfile().unwrap();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let code = wait_child(&mut child, limit);
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ran {
        code,
        stdout: text(&mut out),
        stderr: text(&mut err),
    }
}

/// Waits for a child; kills it at the limit.
pub fn wait_child(child: &mut Child, limit: Duration) -> Option<i32> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() >= end {
            child.kill().ok();
            // A process killed inside a hung mount ends only when the mount does; do not wait for it.
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The program with `args`, its settings from the environment taken away.
pub fn meshbox(args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    for (name, _) in std::env::vars_os() {
        let ours = name.to_string_lossy().starts_with("MESHBOX_");
        if ours {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

/// Copies with the ordinary `cp`, under a limit.
#[track_caller]
pub fn cp(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-r").arg(from).arg(to), ARRIVES).ok();
}

/// Bytes that look random, the same for the same seed.
pub fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(len as usize + 8);
    while (out.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len as usize);
    out
}

/// Random numbers from a printed seed; `MESHBOX_TEST_SEED` repeats a run.
#[derive(Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Takes the seed from the environment or the clock, and prints it.
    pub fn new() -> Self {
        let seed = std::env::var("MESHBOX_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap();
                now.as_nanos() as u64
            });
        eprintln!("to repeat: MESHBOX_TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Lets a random time below `bound` pass: the moment of a crash is the thing under test.
    pub fn pause(&mut self, bound: Duration) -> Duration {
        let pause = Duration::from_micros(self.below(bound.as_micros() as u64));
        thread::sleep(pause);
        pause
    }
}

/// SHA-256 as hex digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file as hex digits.
pub fn sha256_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, b| {
        write!(out, "{b:02x}").ok();
        out
    })
}

/// The file system type mounted at `path`, from mountinfo: never touches the mount itself.
pub fn mounted_type(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().rev().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let at = left.split(' ').nth(4)?;
        (Path::new(at) == path).then(|| right.split(' ').next().unwrap_or_default().to_owned())
    })
}

/// All regular files below `root` as relative paths.
pub fn files_below(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(_) => {
                    found.insert(entry.path().strip_prefix(root).unwrap().to_path_buf());
                }
                Err(_) => {}
            }
        }
    }
    found
}

/// Ids of the processes of the program under test that were started with something below `root`.
pub fn processes_of(root: &Path) -> Vec<i32> {
    let needle = root.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // First by what never blocks: `exe` waits for a process that is stuck in a file system, whoever's it is.
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !comm.starts_with("meshbox") {
            continue;
        }
        let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if !exe.to_string_lossy().starts_with(BIN) {
            continue;
        }
        let said = |file: &str| {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&needle)
        };
        if said("cmdline") || said("environ") {
            found.push(pid);
        }
    }
    found
}

/// Whether a process runs (a zombie does not).
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match stat.rsplit_once(") ") {
        Some((_, rest)) => !rest.starts_with('Z') && !rest.starts_with('X'),
        None => false,
    }
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        kill_process(pid, signal).ok();
    }
}

/// Kills every process of `root` and detaches the mount.
fn clear_away(root: &Path, mountpoint: &Path) {
    for pid in processes_of(root) {
        signal(pid, Signal::KILL);
    }
    while mounted_type(mountpoint).is_some() {
        if unmount(mountpoint, UnmountFlags::DETACH).is_err() {
            let mut helper = Command::new("fusermount3");
            if run(helper.arg("-uz").arg(mountpoint), Duration::from_secs(5)).code != Some(0) {
                break;
            }
        }
    }
}

/// Clears a node away when it has lived too long.
#[derive(Debug)]
struct Deadline {
    cancel: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Deadline {
    fn new(root: PathBuf, mountpoint: PathBuf) -> Self {
        let (cancel, cancelled) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            if cancelled.recv_timeout(NODE_LIFE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test took longer than {NODE_LIFE:?}: killing its daemon");
                clear_away(&root, &mountpoint);
            }
        });
        Self {
            cancel: Some(cancel),
            thread: Some(thread),
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.cancel.take();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// A daemon with its state and its mount.
#[derive(Debug)]
pub struct Node {
    name: String,
    options: Vec<String>,
    /// Where it listened at its first start: a later start takes the same address, as a real node's does, so that two
    /// nodes that both restart find each other.
    listen: OnceLock<String>,
    root: Option<TempDir>,
    deadline: Option<Deadline>,
}

impl Node {
    /// A node that is not started yet. `options` are added to every `meshbox mount`.
    pub fn prepare(name: &str, options: &[&str]) -> Self {
        let root = tempfile::Builder::new()
            .prefix(&format!("meshbox-{name}-"))
            .tempdir()
            .unwrap();
        fs::create_dir(root.path().join("mnt")).unwrap();
        fs::create_dir(root.path().join("src")).unwrap();
        let deadline = Deadline::new(root.path().to_path_buf(), root.path().join("mnt"));
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        Self {
            name: name.to_owned(),
            options,
            listen: OnceLock::new(),
            root: Some(root),
            deadline: Some(deadline),
        }
    }

    /// A node that begins a group.
    #[track_caller]
    pub fn start(name: &str) -> Self {
        let node = Self::prepare(name, &[]);
        node.mount(&[]).ok();
        node
    }

    /// A node that joins `first`'s group, and is connected to it.
    #[track_caller]
    pub fn join(name: &str, first: &Node) -> Self {
        let node = Self::prepare(name, &[]);
        node.mount(&["--join", &first.ticket()]).ok();
        node.wait_connected(first);
        first.wait_connected(&node);
        node
    }

    /// Two connected nodes.
    #[track_caller]
    pub fn pair() -> (Self, Self) {
        let alder = Self::start("alder");
        let birch = Self::join("birch", &alder);
        (alder, birch)
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its temporary directory.
    pub fn root(&self) -> &Path {
        self.root.as_ref().unwrap().path()
    }

    /// Its mountpoint.
    pub fn mountpoint(&self) -> PathBuf {
        self.root().join("mnt")
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// A path below its outbox.
    pub fn outbox(&self, path: &str) -> PathBuf {
        self.mountpoint().join("outbox").join(path)
    }

    /// A path below its inbox.
    pub fn inbox(&self, path: &str) -> PathBuf {
        self.mountpoint().join("inbox").join(path)
    }

    /// Runs `meshbox mount` for this node with `more` arguments.
    pub fn mount(&self, more: &[&str]) -> Ran {
        let (state, mountpoint) = (self.state(), self.mountpoint());
        let listen = self.listen.get().map_or("127.0.0.1:0", String::as_str);
        let mut command = meshbox(&["mount"]);
        command
            .arg(mountpoint)
            .arg("--state")
            .arg(state)
            .args(["--name", &self.name]);
        command
            .args(["--listen", listen, "--no-mdns"])
            .args(&self.options)
            .args(more)
            // What is sent twice would depend on how busy the machine is. By the environment: a test's own flag beats it.
            .env("MESHBOX_CONGESTION", "cubic");
        let ran = run(&mut command, COMMAND);
        if ran.code == Some(0) {
            self.listen.get_or_init(|| {
                self.status()["listen"][0]
                    .as_str()
                    .unwrap_or("127.0.0.1:0")
                    .to_owned()
            });
        }
        ran
    }

    /// Runs `meshbox COMMAND --state … MORE`.
    pub fn run(&self, command: &str, more: &[&str]) -> Ran {
        run(
            meshbox(&[command])
                .arg("--state")
                .arg(self.state())
                .args(more),
            COMMAND,
        )
    }

    /// The line that invites others.
    #[track_caller]
    pub fn ticket(&self) -> String {
        self.run("ticket", &[]).ok().stdout.trim().to_owned()
    }

    /// `meshbox status --json`; `Null` while the daemon does not answer.
    pub fn status(&self) -> Value {
        let ran = self.run("status", &["--json", "--limit", "1000"]);
        serde_json::from_str(&ran.stdout).unwrap_or(Value::Null)
    }

    /// One counter out of status.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        let status = self.status();
        status["counts"][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no counts.{name} in {status:#}"))
    }

    /// Waits until `other` has proved membership on a connection that is up.
    #[track_caller]
    pub fn wait_connected(&self, other: &Node) {
        wait_until(
            &format!("{} is connected to {}", self.name, other.name),
            ARRIVES,
            || {
                let status = self.status();
                let peers = status["peers"].as_array().cloned().unwrap_or_default();
                peers
                    .iter()
                    .any(|p| p["name"] == other.name.as_str() && p["connected"] == true)
            },
        );
    }

    /// The state that status shows for the newest bundle of `path`; empty if there is none.
    pub fn outbound_state(&self, path: &str) -> String {
        let status = self.status();
        let rows = status["outbound"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["path"] == path);
        row.and_then(|row| row["state"].as_str())
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until every recipient of `path` has given its receipt.
    #[track_caller]
    pub fn wait_delivered(&self, path: &str) {
        wait_until(
            &format!("{path} of {} is delivered", self.name),
            ARRIVES,
            || self.outbound_state(path) == "delivered",
        );
    }

    /// Waits until `path` in the inbox has this SHA-256.
    #[track_caller]
    pub fn wait_arrived(&self, path: &str, sha: &str) {
        let at = self.inbox(path);
        wait_until(
            &format!("{path} is whole in the inbox of {}", self.name),
            ARRIVES,
            || sha256_file(&at).is_ok_and(|found| found == sha),
        );
    }

    /// Sends bytes under `path` through `cp`; gives their SHA-256.
    #[track_caller]
    pub fn put(&self, path: &str, bytes: &[u8]) -> String {
        let source = self.root().join("src").join("put");
        fs::write(&source, bytes).unwrap();
        if let Some(parent) = Path::new(path).parent() {
            fs::create_dir_all(self.outbox("").join(parent)).unwrap();
        }
        cp(&source, &self.outbox(path));
        sha256(bytes)
    }

    /// Sends a small file from here to `to` and waits for it: whatever was to come before it has come.
    #[track_caller]
    pub fn marker(&self, name: &str, to: &Node) {
        let sha = self.put(name, format!("marker {name}").as_bytes());
        to.wait_arrived(name, &sha);
    }

    /// Waits until nothing is open for writing, settling or being sealed: what was to be sent is in status.
    #[track_caller]
    pub fn wait_sealed(&self) {
        let metrics = self.mountpoint().join(".meshbox/metrics");
        wait_until(
            &format!("all files of {} are closed and sealed", self.name),
            ARRIVES,
            || {
                let text = fs::read_to_string(&metrics).unwrap_or_default();
                let sealed = text.lines().any(|line| line == "meshbox_unsealed 0");
                if !sealed {
                    // Settle times are up to a second; do not take the processor from those who are waited for.
                    thread::sleep(Duration::from_millis(20));
                }
                sealed
            },
        );
    }

    /// `user.meshbox.NAME` of a path; empty if it has none.
    pub fn attribute(path: &Path, name: &str) -> String {
        let mut buffer = [0u8; 1024];
        match rustix::fs::getxattr(path, format!("user.meshbox.{name}"), &mut buffer[..]) {
            Ok(len) => String::from_utf8_lossy(&buffer[..len]).into_owned(),
            Err(_) => String::new(),
        }
    }

    /// The daemon's process id: who holds the lock of the state directory.
    pub fn pid(&self) -> Option<i32> {
        let ino = fs::metadata(self.state().join("lock")).ok()?.ino();
        let locks = fs::read_to_string("/proc/locks").ok()?;
        let ours = processes_of(self.root());
        locks.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let at = fields
                .iter()
                .position(|f| f.ends_with(&format!(":{ino}")))?;
            let pid: i32 = fields.get(at.checked_sub(1)?)?.parse().ok()?;
            ours.contains(&pid).then_some(pid)
        })
    }

    /// Kills the daemon as `kill -9` does; the mount stays behind, dead.
    #[track_caller]
    pub fn kill9(&self) {
        let pid = self.pid().expect("the daemon runs and holds its lock");
        signal(pid, Signal::KILL);
        wait_until("a killed daemon is gone", COMMAND, || !is_running(pid));
    }

    /// Stops the daemon as a user does.
    #[track_caller]
    pub fn stop(&self) {
        let pid = self.pid();
        run(meshbox(&["umount"]).arg(self.mountpoint()), COMMAND).ok();
        self.assert_gone(pid);
    }

    /// Waits until the daemon `pid` has ended and nothing is mounted.
    #[track_caller]
    pub fn assert_gone(&self, pid: Option<i32>) {
        wait_until("the daemon has ended", COMMAND, || {
            !pid.is_some_and(is_running)
        });
        wait_until("nothing is mounted", COMMAND, || {
            mounted_type(&self.mountpoint()).is_none()
        });
        wait_until("no process is left", COMMAND, || {
            processes_of(self.root()).is_empty()
        });
    }

    /// Starts the daemon again on the same state.
    #[track_caller]
    pub fn restart(&self) {
        self.mount(&[]).ok();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mountpoint = self.mountpoint();
        if thread::panicking() {
            let log = fs::read_to_string(self.state().join("meshbox.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the end of the log of {}", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        clear_away(self.root(), &mountpoint);
        self.deadline.take();
        if let Some(root) = self.root.take() {
            let usable = mounted_type(&mountpoint).is_none();
            if !usable || std::env::var_os("MESHBOX_TEST_KEEP").is_some() {
                eprintln!("kept: {}", root.keep().display());
            }
        }
    }
}
