//! A daemon that is stopped, killed, cut off or unmounted in the middle: what its callers see, and the next start.
//! The table "What callers see" in packaging/doc/semantics.md says the same.

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use common::{
    ARRIVES, COMMAND, Node, is_running, meshbox, mounted_type, processes_of, run, sha256, signal,
    wait_child, wait_until,
};
use rustix::process::Signal;

/// Runs `call` in a thread of its own, so that one that hangs fails the test and is not waited for.
#[track_caller]
fn answered<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, answer) = mpsc::sync_channel(1);
    thread::spawn(move || done.send(call()).ok());
    answer
        .recv_timeout(COMMAND)
        .unwrap_or_else(|e| panic!("{what} hangs: {e}"))
}

/// The file system is gone from under the caller.
fn is_cut_off(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV)
    )
}

fn state_of(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
    rest.unwrap_or_default().chars().take(1).collect()
}

/// A stopped daemon, continued on drop: else whoever waits for it hangs with the test, and whoever looks at those too.
struct Stopped(i32);

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

/// Stops the daemon as SIGSTOP does, and waits until all its threads stand. From here on the test must have no file of
/// the mount open: each program it starts would close a copy, which waits for the daemon inside execve.
fn stop(daemon: i32) -> Stopped {
    let stopped = Stopped(daemon);
    signal(daemon, Signal::STOP);
    wait_until("all threads of the daemon stand", COMMAND, || {
        let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    });
    stopped
}

/// A program that waits for an answer of the stopped mount.
fn waiting(command: &mut Command) -> Child {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id() as i32;
    // Asleep in the kernel, in a call to FUSE.
    wait_until("the program waits in the mount", COMMAND, || {
        assert!(is_running(pid), "it ended");
        let stack = fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
        let wchan = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        stack.contains("fuse") || wchan.contains("request_wait_answer")
    });
    child
}

fn end_of(child: &mut Child) -> (Option<i32>, String) {
    let code = wait_child(child, COMMAND);
    let mut said = String::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut said).ok();
    }
    (code, said)
}

#[test]
fn callers_of_a_stopped_daemon_wait_can_be_killed_and_go_on() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let daemon = alder.pid().unwrap();
    let source = alder.root().join("src").join("file");
    fs::write(&source, "sent after all").unwrap();
    let stopped = stop(daemon);
    let mut killed = waiting(Command::new("cp").arg(&source).arg(alder.outbox("killed")));
    let mut patient = waiting(Command::new("cp").arg(&source).arg(alder.outbox("patient")));
    signal(killed.id() as i32, Signal::KILL);
    assert_eq!(end_of(&mut killed).0, None, "ended by the signal");
    assert!(
        !is_running(killed.id() as i32),
        "a caller could not be killed"
    );
    assert!(is_running(patient.id() as i32));
    drop(stopped);
    assert_eq!(end_of(&mut patient), (Some(0), String::new()));
    birch.wait_arrived("patient", &sha256(b"sent after all"));
    assert!(!birch.inbox("killed").exists());
}

/// Writes, waits for the end of its input, writes again.
const WRITER: &str = r#"exec 3>"$FILE"; printf half >&3; echo open; read -r line
if printf more >&3; then echo wrote; else echo failed; fi"#;

#[test]
fn callers_of_a_killed_daemon_get_errors_and_the_next_start_takes_over() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let daemon = alder.pid().unwrap();
    let mut writer = Command::new("sh")
        .args(["-c", WRITER])
        .env("FILE", alder.outbox("interrupted"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "open");
    let stopped = stop(daemon);
    let mut caught = waiting(Command::new("mkdir").arg(alder.outbox("late")));
    signal(daemon, Signal::KILL);
    drop(stopped);
    wait_until("the daemon is gone", COMMAND, || !is_running(daemon));
    let (code, words) = end_of(&mut caught);
    assert_eq!(code, Some(1));
    assert!(
        words.contains("connection abort") || words.contains("not connected"),
        "{words}"
    );
    let at = alder.outbox("other");
    let error = answered("a new call", move || fs::write(at, "x").unwrap_err());
    assert!(is_cut_off(&error), "{error}");
    drop(writer.stdin.take());
    let next = answered("a call on an open file", move || said.next());
    assert_eq!(next.unwrap().unwrap(), "failed");
    assert_eq!(wait_child(&mut writer, COMMAND), Some(0));

    alder.restart();
    let at = alder.outbox("interrupted");
    assert_eq!(Node::attribute(&at, "state"), "incomplete");
    assert_eq!(fs::read(&at).unwrap(), b"half");
    alder.marker("marker", &birch);
    assert!(!birch.inbox("interrupted").exists());
    let sha = alder.put("interrupted", b"all of it");
    birch.wait_arrived("interrupted", &sha);
}

#[test]
fn a_lazy_unmount_lets_open_files_be_finished_then_ends_the_daemon() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let daemon = alder.pid();
    let mut open = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(alder.outbox("open"))
        .unwrap();
    open.write_all(b"begun, ").unwrap();
    run(
        Command::new("umount").arg("-l").arg(alder.mountpoint()),
        COMMAND,
    )
    .ok();
    assert_eq!(mounted_type(&alder.mountpoint()), None);
    assert_eq!(fs::read_dir(alder.mountpoint()).unwrap().count(), 0);
    let open = answered("a call on an open file", move || {
        open.write_all(b"finished").unwrap();
        open.rewind().unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "begun, finished");
        open
    });
    assert!(
        daemon.is_some_and(is_running),
        "it still serves an open file"
    );
    answered("closing it", move || drop(open));
    alder.assert_gone(daemon);
    let log = fs::read_to_string(alder.state().join("meshbox.log")).unwrap();
    assert!(log.contains("stopping: unmounted"), "{log}");
    alder.restart();
    birch.wait_arrived("open", &sha256(b"begun, finished"));
}

/// The control file system of FUSE, mounted for one test.
struct Control(tempfile::TempDir);

impl Control {
    fn mount() -> Self {
        let at = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        run(
            mount.args(["-t", "fusectl", "fusectl"]).arg(at.path()),
            COMMAND,
        )
        .ok();
        Self(at)
    }

    /// The directory of the connection that serves `mountpoint`.
    fn of(&self, mountpoint: &Path) -> PathBuf {
        let device = fs::metadata(mountpoint).unwrap().dev();
        self.0.path().join(rustix::fs::minor(device).to_string())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0.path()), COMMAND);
    }
}

#[test]
fn an_aborted_connection_ends_the_daemon_with_an_error_and_the_next_start_works() {
    needs_mounts!();
    let control = Control::mount();
    let node = Node::prepare("alder", &[]);
    let said = node.root().join("said");
    let mut daemon = meshbox(&["mount", "--foreground", "--no-mdns", "--name", "alder"])
        .args(["--listen", "127.0.0.1:0", "--state"])
        .arg(node.state())
        .arg(node.mountpoint())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said).unwrap())
        .spawn()
        .unwrap();
    wait_until("it serves", COMMAND, || node.status()["name"] == "alder");
    let mut open = File::create(node.outbox("interrupted")).unwrap();
    open.write_all(b"half of it").unwrap();
    fs::write(control.of(&node.mountpoint()).join("abort"), "1").unwrap();
    let error = answered("a call on an open file", move || {
        open.write_all(b"more")
            .and_then(|()| open.sync_all())
            .unwrap_err()
    });
    assert!(is_cut_off(&error), "{error}");
    assert_eq!(wait_child(&mut daemon, COMMAND), Some(1));
    let said = fs::read_to_string(said).unwrap();
    assert!(said.contains("connection was aborted"), "{said}");
    assert_eq!(mounted_type(&node.mountpoint()), None, "left mounted");
    wait_until("no process is left", COMMAND, || {
        processes_of(node.root()).is_empty()
    });
    node.restart();
    let at = node.outbox("interrupted");
    wait_until("it is shown as incomplete", ARRIVES, || {
        Node::attribute(&at, "state") == "incomplete"
    });
    assert_eq!(state_of(node.pid().unwrap()), "S");
}

/// Whoever starts a daemon while another one, stopped, holds the mount is told so and does not wait for ever.
#[test]
fn a_start_beside_a_stopped_daemon_fails_in_time() {
    needs_mounts!();
    let node = Node::start("alder");
    let daemon = node.pid().unwrap();
    let stopped = stop(daemon);
    node.mount(&[]).fails_saying(&["in use by another daemon"]);
    drop(stopped);
    // Its mount has been taken for a dead one.
    wait_until("the continued daemon has ended", COMMAND, || {
        !is_running(daemon)
    });
    node.restart();
}

/// The first column of the table in packaging/doc/semantics.md, in order; each row has its test above, or in `src/fuse/tests.rs` (the panic).
const ROWS: [&str; 6] = [
    "stopped (SIGSTOP), then continued",
    "killed (`kill -9`)",
    "a bug in it panics while it answers",
    "unmounted while files are open (`umount -l`)",
    "cut off by `/sys/fs/fuse/connections/N/abort` or `umount -f`",
    "stopped, and another `meshbox mount` is started",
];

#[test]
fn the_document_lists_what_is_tested_here() {
    let semantics = include_str!("../packaging/doc/semantics.md");
    let table = semantics.split("\n## What callers see").nth(1).unwrap();
    let rows = table.lines().skip_while(|line| !line.starts_with("|---"));
    let heads: Vec<&str> = rows
        .skip(1)
        .map_while(|line| line.strip_prefix("| ")?.split(" | ").next())
        .collect();
    assert_eq!(heads, ROWS);
}
