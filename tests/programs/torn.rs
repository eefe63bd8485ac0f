//! Programs that are killed while they write.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::Signal;

use crate::common::{
    ARRIVES, COMMAND, Node, bytes, run, sha256_file, signal, wait_child, wait_until,
};
use crate::needs_mounts;

const SIGNALS: [(&str, Signal); 3] = [
    ("INT", Signal::INT),
    ("TERM", Signal::TERM),
    ("KILL", Signal::KILL),
];

const WRITERS: [&str; 4] = ["cp", "tee", "wget", "shell"];

/// Bytes that a writer has written when it is killed.
const PART: u64 = 150_000;

/// How a file that was held back is sent after all.
#[derive(Clone, Copy, Debug)]
enum Way {
    CleanWrite,
    Rename,
    Send,
}

const WAYS: [Way; 3] = [Way::CleanWrite, Way::Rename, Way::Send];

/// Kills what is left of a program at the end of a test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts `writer` with `to` as its output, feeds it [`PART`] bytes and no end, and when they are in the file, kills
/// it with `with`. Gives the program's exit code: none, as a signal ended it.
#[track_caller]
fn kill_while_writing(writer: &str, with: Signal, to: &Path) {
    let (mut child, part) = (Command::new("bash"), bytes(PART, PART));
    child
        .args(["-c", "exec \"$@\"", "bash"])
        .stdin(Stdio::piped());
    match writer {
        "cp" => child.args(["cp", "/dev/stdin"]).arg(to),
        "tee" => child.arg("tee").arg(to).stdout(Stdio::null()),
        "wget" => child
            .args(["wget", "-q", &stalling_server(part.clone()), "-O"])
            .arg(to),
        // The shell itself has the file open too, and closes it in good order when the killed program is gone.
        "shell" => child
            .args(["bash", "-c", "exec 3> \"$0\"; cat >&3; exit 0"])
            .arg(to),
        unknown => panic!("{unknown}"),
    };
    let mut child = Running(child.spawn().unwrap());
    let mut stdin = child.0.stdin.take().unwrap();
    if writer != "wget" {
        stdin.write_all(&part).unwrap();
    }
    wait_until("the first part is in the file", ARRIVES, || {
        // wget holds a few bytes back in its buffer.
        fs::metadata(to)
            .is_ok_and(|meta| meta.len() > PART / 2 && (writer == "wget" || meta.len() == PART))
    });
    let pid = child.0.id();
    if writer == "shell" {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        signal(children.trim().parse().unwrap(), with);
        assert_eq!(wait_child(&mut child.0, COMMAND), Some(0));
    } else {
        signal(pid.cast_signed(), with);
        assert_eq!(wait_child(&mut child.0, COMMAND), None, "a signal ended it");
    }
    drop(stdin);
}

/// The address of a server that sends a part of what it announced, and then nothing until the client is gone.
fn stalling_server(part: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/f", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * PART);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&part).unwrap();
        // Reads the request, and then waits for the end; the client may also reset the connection.
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
    });
    url
}

/// The paths that `list` of status shows.
fn paths(node: &Node, list: &str) -> Vec<String> {
    let status = node.status();
    let rows = status[list].as_array().cloned().unwrap_or_default();
    rows.iter()
        .map(|row| row.as_str().or(row["path"].as_str()).unwrap().to_owned())
        .collect()
}

#[test]
fn files_of_killed_programs_are_held_back_until_somebody_wants_them() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let mut torn = Vec::new();
    for (w, writer) in WRITERS.into_iter().enumerate() {
        for (s, (name, with)) in SIGNALS.into_iter().enumerate() {
            let path = format!("{writer}-{name}");
            kill_while_writing(writer, with, &alder.outbox(&path));
            torn.push((path, WAYS[(w + s) % WAYS.len()]));
        }
    }
    kill_while_writing("tee", Signal::KILL, &alder.outbox("removed"));

    let assert_held_back = |when: &str| {
        alder.wait_sealed();
        alder.marker(&format!("marker {when}"), &birch);
        let (sent, held) = (paths(&alder, "outbound"), paths(&alder, "incomplete"));
        let shown = alder.run("status", &[]).ok().stdout;
        for path in torn
            .iter()
            .map(|(path, _)| path.as_str())
            .chain(["removed"])
        {
            assert!(!sent.iter().any(|p| p == path), "{path} was sent, {when}");
            assert!(
                held.iter().any(|p| p == path),
                "{path} is not in {held:?}, {when}"
            );
            assert!(shown.contains(path), "no {path} in {shown}");
            let state = Node::attribute(&alder.outbox(path), "state");
            assert_eq!(state, "incomplete", "{path}, {when}");
        }
        assert_eq!(held.len(), torn.len() + 1, "{held:?}, {when}");
        assert_eq!(alder.count("incomplete"), held.len() as u64, "{when}");
        let wait = alder.run("wait", &["--timeout", "1m", &torn[0].0]);
        assert_eq!(wait.code, Some(5), "it will not be delivered: {wait:?}");
    };
    assert_held_back("at once");
    alder.kill9();
    alder.restart();
    alder.wait_connected(&birch);
    assert_held_back("after a restart");
    fs::remove_file(alder.outbox("removed")).unwrap();

    let mut want = Vec::new();
    for (path, way) in &torn {
        let at = alder.outbox(path);
        let mut content = fs::read(&at).unwrap();
        let mut now = path.clone();
        match way {
            Way::CleanWrite => {
                content.extend_from_slice(b"the rest");
                let mut file = OpenOptions::new().append(true).open(&at).unwrap();
                file.write_all(b"the rest").unwrap();
            }
            Way::Rename => {
                now.push_str("-as-it-is");
                fs::rename(&at, alder.outbox(&now)).unwrap();
            }
            Way::Send => {
                alder.run("send", &[path]).ok();
            }
        }
        want.push((now, crate::common::sha256(&content)));
    }
    alder.wait_sealed();
    for (path, sha) in &want {
        birch.wait_arrived(path, sha);
    }
    let sent = paths(&alder, "outbound");
    for (path, _) in &want {
        assert_eq!(
            sent.iter().filter(|p| *p == path).count(),
            1,
            "{path} is sent once"
        );
    }
    assert_eq!(paths(&alder, "incomplete"), Vec::<String>::new());
    assert_eq!(alder.count("incomplete"), 0);
    assert!(!sent.iter().any(|path| path == "removed"));
    assert_eq!(
        sent.len(),
        want.len() + 2,
        "only these and two markers: {sent:?}"
    );
}

/// The same program, not killed: what its parent still holds open decides when, not whether.
#[test]
fn a_program_that_ends_by_itself_is_not_torn_whatever_its_exit_code() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let at = alder.outbox("f");
    let script = "exec 3> \"$0\"; head -c 100000 /dev/zero >&3; exit 7";
    let ran = run(Command::new("bash").args(["-c", script]).arg(&at), COMMAND);
    assert_eq!(ran.code, Some(7));
    drop(File::open(&at).unwrap());
    birch.wait_arrived("f", &sha256_file(&at).unwrap());
}
