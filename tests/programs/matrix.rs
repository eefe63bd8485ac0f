//! One pair of daemons, many programs.
//!
//! Each program works in a directory of its own in the outbox, and does the same in an ordinary directory, which is the
//! reference. A step of a program is a shell script and the names that it sends. After the first step of every program
//! the matrix waits until nothing is open, settling or being sealed, and then asserts for each program:
//! 1. the tree in the outbox has the names of the reference, temporary ones included, and where it can be, the bytes;
//! 2. exactly the named files were sealed, each once, with the bytes that the outbox shows;
//! 3. the receiver has them with these bytes.
//!
//! Then come the second steps, and so on. At the end every name that the receiver was ever offered, or that was ever
//! visible in its inbox, must be one that was to be sent.
//!
//! Steps run at the same time of day for all programs, so the settle times of one second are waited for once a step and
//! not once a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::common::watcher::Watcher;
use crate::common::{Node, bytes, files_below, run, sha256, sha256_file};

/// How long one step of one program may take.
const STEP: Duration = Duration::from_secs(60);

/// One program: its name, the commands it needs, and its steps.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Found by `command -v`; a path must be an executable file.
    pub(crate) needs: &'static [&'static str],
    pub(crate) steps: &'static [Step],
}

impl Program {
    /// The name of its directories.
    fn directory(&self) -> String {
        self.name.replace([' ', ','], "_")
    }
}

/// A shell script, and what it sends: names below the program's directory. After a name, ` *` says that the bytes may
/// differ from those of the reference (they hold times or numbers of inodes); ` ?` says that it is announced again, with
/// its new time or mode, if the machine was fast enough to set that soon after the seal; and ` +`, after all others, that
/// the program sets its time or mode after its last close, and so may be overtaken by the seal: then it is announced twice.
pub(crate) type Step = (&'static str, &'static [&'static str]);

/// What every script may use: `$SRC` (files to copy from, on another file system, see [`sources`]), `$TMP` (its own,
/// on another file system), `$URL` (serves `$SRC`), `$KEYS` (types into a terminal), `$HERE` (`outbox` or `reference`).
const SHELL: &str = "set -euo pipefail; cd \"$AT\"; ";

/// Runs all steps of all programs; panics, naming the program, at the first thing that is not as it should be.
#[track_caller]
pub(crate) fn run_matrix(programs: &[Program]) {
    let mut matrix = Matrix::start();
    let programs: Vec<&Program> = programs.iter().filter(|p| matrix.can_run(p)).collect();
    let steps = programs.iter().map(|p| p.steps.len()).max().unwrap_or(0);
    for step in 0..steps {
        let now: Vec<&Program> = programs
            .iter()
            .copied()
            .filter(|p| p.steps.len() > step)
            .collect();
        for program in &now {
            matrix.work(program, program.steps[step].0);
        }
        matrix.settle(step);
        let mut sealed = matrix.sealed_since();
        for program in &now {
            let rows = sealed.remove(&program.directory()).unwrap_or_default();
            matrix.check(program, step, &rows);
        }
        assert!(
            sealed.is_empty(),
            "sent, although no program of step {step} is there: {sealed:#?}"
        );
    }
    matrix.finish();
}

/// Path below the program's directory and SHA-256, of every bundle.
type Sealed = Vec<(String, String)>;

struct Matrix {
    alder: Node,
    birch: Node,
    watcher: Watcher,
    server: Server,
    /// Ids of the bundles that were looked at.
    known: BTreeSet<String>,
    /// Everything ever sealed: path below the outbox, SHA-256.
    all: BTreeSet<(PathBuf, String)>,
}

impl Matrix {
    fn start() -> Self {
        let (alder, birch) = Node::pair();
        let watcher = Watcher::over(&birch);
        let server = Server::start(alder.root().join("src"));
        Self {
            alder,
            birch,
            watcher,
            server,
            known: BTreeSet::new(),
            all: BTreeSet::new(),
        }
    }

    /// Whether what it needs is installed, and if so gives it its directories. Where tests must not be skipped,
    /// nothing may be missing.
    fn can_run(&self, program: &Program) -> bool {
        for need in program.needs {
            let found = Command::new("sh")
                .args(["-c", "command -v \"$0\" >/dev/null", need])
                .status()
                .unwrap();
            if !found.success() {
                assert!(
                    std::env::var_os("MESHBOX_TESTS_MUST_MOUNT").is_none(),
                    "{}: {need} is not installed; scripts/setup does it",
                    program.name
                );
                eprintln!("skipped: {} ({need} is not installed)", program.name);
                return false;
            }
        }
        sources(&self.source(program), program.name);
        for here in HERE {
            fs::create_dir_all(self.place(here, &program.directory())).unwrap();
            fs::create_dir_all(self.scratch(here, &program.directory())).unwrap();
        }
        true
    }

    fn source(&self, program: &Program) -> PathBuf {
        self.alder.root().join("src").join(program.directory())
    }

    fn scratch(&self, here: &str, program: &str) -> PathBuf {
        self.alder.root().join(format!("tmp-{here}")).join(program)
    }

    fn place(&self, here: &str, program: &str) -> PathBuf {
        if here == HERE[0] {
            self.alder.root().join(here).join(program)
        } else {
            self.alder.outbox(program)
        }
    }

    fn work(&self, program: &Program, script: &str) {
        for here in HERE {
            let mut bash = Command::new("bash");
            bash.args(["-c", &format!("{SHELL}{script}")])
                .env("HERE", here)
                .env("AT", self.place(here, &program.directory()))
                .env("SRC", self.source(program))
                .env("TMP", self.scratch(here, &program.directory()))
                .env("HOME", self.scratch(here, &program.directory()))
                .env("URL", self.server.url(&program.directory()))
                .env("KEYS", Path::new(env!("CARGO_MANIFEST_DIR")).join(KEYS))
                .env("LC_ALL", "C")
                .env("TERM", "xterm")
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_CONFIG_SYSTEM", "/dev/null");
            for who in ["AUTHOR", "COMMITTER"] {
                bash.env(format!("GIT_{who}_NAME"), "A")
                    .env(format!("GIT_{who}_EMAIL"), "a@example.org")
                    .env(format!("GIT_{who}_DATE"), "2026-01-02T03:04:05Z");
            }
            let ran = run(&mut bash, STEP);
            assert_eq!(
                ran.code,
                Some(0),
                "{} in the {here}: {script}\n{}{}",
                program.name,
                ran.stdout,
                ran.stderr
            );
        }
    }

    /// Waits until all that the programs did is sent and delivered, and a fence behind it.
    fn settle(&self, step: usize) {
        self.alder.wait_sealed();
        self.alder.marker(&format!("fence-{step}"), &self.birch);
        self.alder.wait_sealed();
    }

    /// What was sealed since the last call, by program.
    fn sealed_since(&mut self) -> BTreeMap<String, Sealed> {
        let status = self.alder.status();
        let rows = rows(&status, "outbound");
        assert_eq!(
            rows.len() as u64,
            status["counts"]["sealed"].as_u64().unwrap(),
            "status shows every bundle sealed since start"
        );
        let mut sealed: BTreeMap<String, Sealed> = BTreeMap::new();
        for row in rows {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            if !self.known.insert(text("bundle")) {
                continue;
            }
            self.all.insert((text("path").into(), text("sha256")));
            if let Some((program, path)) = text("path").split_once('/') {
                sealed
                    .entry(program.to_owned())
                    .or_default()
                    .push((path.to_owned(), text("sha256")));
            }
        }
        sealed
    }

    fn check(&self, program: &Program, step: usize, sealed: &[(String, String)]) {
        let name = program.name;
        let (script, sends) = program.steps[step];
        let what = format!("{name}, step {}: {script}", step + 1);
        let [reference, outbox] = HERE.map(|here| self.place(here, &program.directory()));
        assert_eq!(
            files_below(&outbox),
            files_below(&reference),
            "{what}\nthe names in the outbox (left) and in an ordinary directory"
        );
        let mut want = Vec::new();
        for send in sends {
            let (send, dressed) = match send.strip_suffix(" +") {
                Some(send) => (send, true),
                None => (*send, false),
            };
            let maybe = send.strip_suffix(" ?");
            if maybe.is_some_and(|file| sealed.iter().all(|(sealed, _)| sealed != file)) {
                continue;
            }
            let send = maybe.unwrap_or(send);
            let (file, exact) = match send.strip_suffix(" *") {
                Some(file) => (file, false),
                None => (send, true),
            };
            let sha = sha256_file(&outbox.join(file)).unwrap();
            if exact {
                let native = sha256_file(&reference.join(file)).unwrap();
                assert_eq!(sha, native, "{what}\nthe bytes of {file}");
            }
            let row = (file.to_owned(), sha);
            if dressed && sealed.iter().filter(|one| **one == row).count() == 2 {
                want.push(row.clone());
            }
            want.push(row);
        }
        let sorted = |mut list: Sealed| {
            list.sort();
            list
        };
        assert_eq!(
            sorted(sealed.to_vec()),
            sorted(want.clone()),
            "{what}\nwhat was sent (left) and what is to be sent"
        );
        for (file, sha) in want {
            self.birch
                .wait_arrived(&format!("{}/{file}", program.directory()), &sha);
        }
    }

    fn finish(self) {
        let offered = rows(&self.birch.status(), "inbound");
        assert!(!offered.is_empty());
        let sent: BTreeSet<PathBuf> = self.all.iter().map(|(path, _)| path.clone()).collect();
        for row in offered {
            let path = row["path"].as_str().unwrap();
            assert!(sent.contains(Path::new(path)), "{path} was offered");
        }
        let shown = files_below(&self.birch.inbox(""));
        assert!(
            shown.is_subset(&sent),
            "in the inbox: {:?}",
            shown.difference(&sent)
        );
        let seen = self.watcher.finish_seen();
        assert!(
            seen.is_subset(&self.all),
            "seen in the inbox: {:?}",
            seen.difference(&self.all)
        );
    }
}

/// The two places where a program works, the ordinary directory first.
const HERE: [&str; 2] = ["reference", "outbox"];

/// Types into a program that wants a terminal.
const KEYS: &str = "tests/programs/keys.py";

fn rows(status: &Value, list: &str) -> Vec<Value> {
    let rows = status[list].as_array().cloned().unwrap();
    assert!(rows.len() < 1000, "one page of status no longer holds all");
    rows
}

/// What a program finds in `$SRC`: `data` (300,000 bytes), `more` (5,000), `text` (three lines) and `tree/`. Bytes
/// differ from program to program, so that none is spared its transfer.
fn sources(at: &Path, program: &str) {
    let seed = u64::from_str_radix(&sha256(program.as_bytes())[..15], 16).unwrap();
    fs::create_dir_all(at.join("tree/sub")).unwrap();
    fs::write(at.join("data"), bytes(seed, 300_000)).unwrap();
    fs::write(at.join("more"), bytes(seed + 1, 5_000)).unwrap();
    fs::write(
        at.join("text"),
        format!("alpha of {program}\nbeta\ngamma\n"),
    )
    .unwrap();
    fs::write(at.join("tree/one"), bytes(seed + 2, 70_000)).unwrap();
    fs::write(at.join("tree/sub/two"), bytes(seed + 3, 7_000)).unwrap();
    fs::write(at.join("tree/sub/three"), format!("three of {program}\n")).unwrap();
}

/// A web server for the files below a directory.
struct Server {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                // A client that hangs up is its own affair: its script fails.
                stream.and_then(|stream| serve(stream, &root)).ok();
            }
        });
        Self {
            port,
            stop,
            thread: Some(thread),
        }
    }

    fn url(&self, program: &str) -> String {
        format!("http://127.0.0.1:{}/{program}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(mut stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().is_some_and(|l| l.is_ok_and(|l| !l.is_empty())) {}
    let path = request.split(' ').nth(1).unwrap_or("/");
    let body = fs::read(root.join(path.trim_start_matches('/')))?;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    // In two parts, so that the client writes its file in more than one go.
    let (first, second) = body.split_at(body.len() / 2);
    stream.write_all(first)?;
    stream.flush()?;
    stream.write_all(second)
}
