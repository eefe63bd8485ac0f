//! Programs that watch the inbox (inotify) hear of what arrives, and the process that makes the kernel tell them can be
//! stopped or killed, and so can the daemon, without harm.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{
    ARRIVES, COMMAND, Node, Seeded, is_running, processes_of, run, sha256, signal, wait_until,
};
use rustix::process::Signal;

/// The events that change a tree: what a watcher usually asks for, and what it must not get besides.
const EVENTS: &str =
    "create,moved_to,moved_from,move_self,delete,delete_self,modify,attrib,close_write,unmount";

/// A running program whose lines are collected; killed on drop.
struct Lines {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Lines {
    fn of(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let out: Box<dyn BufRead + Send> = Box::new(BufReader::new(child.stdout.take().unwrap()));
        let err: Box<dyn BufRead + Send> = Box::new(BufReader::new(child.stderr.take().unwrap()));
        let readers = [out, err].map(|from| {
            let lines = lines.clone();
            thread::spawn(move || {
                for line in from.lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                }
            })
        });
        Self {
            child,
            lines,
            readers: readers.into(),
        }
    }

    /// `inotifywait` below the inbox of `node`; returns when it watches.
    fn watching(node: &Node) -> Self {
        let mut command = Command::new("inotifywait");
        command.args(["-m", "-r", "-e", EVENTS, "--format", "%e %w%f"]);
        let watch = Self::of(command.arg(node.inbox("")));
        watch.wait(|lines| lines.iter().any(|line| line == "Watches established."));
        watch
    }

    fn get(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The events so far, as `EVENT PATH` with the path below the inbox.
    fn events(&self, node: &Node) -> Vec<String> {
        let below = format!(
            "{}/",
            node.inbox("").to_string_lossy().trim_end_matches('/')
        );
        let lines = self.get();
        let events = lines.iter().filter_map(|line| {
            let (event, path) = line.split_once(' ')?;
            Some(format!("{event} {}", path.strip_prefix(&below)?))
        });
        events.collect()
    }

    #[track_caller]
    fn wait(&self, done: impl Fn(&[String]) -> bool) {
        let end = std::time::Instant::now() + ARRIVES;
        loop {
            let seen = self.get();
            if done(&seen) {
                return;
            }
            assert!(std::time::Instant::now() < end, "not seen in {seen:#?}");
            thread::sleep(Duration::from_millis(3));
        }
    }

    #[track_caller]
    fn wait_event(&self, node: &Node, event: &str) {
        self.wait(|_| self.events(node).iter().any(|seen| seen == event));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        for reader in self.readers.drain(..) {
            reader.join().ok();
        }
    }
}

/// The process of `node`'s daemon that enters the mount.
fn herald(node: &Node) -> Option<i32> {
    let found = processes_of(node.root()).into_iter().filter(|pid| {
        let said = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_running(*pid) && String::from_utf8_lossy(&said).contains("announce-arrivals")
    });
    let found: Vec<i32> = found.collect();
    assert!(found.len() < 2, "two heralds: {found:?}");
    found.first().copied()
}

/// Like [`Node::put`], with a content that follows from the name.
fn put(from: &Node, name: &str) -> String {
    from.put(name, format!("content of {name}").as_bytes())
}

#[test]
fn inotifywait_hears_of_files_versions_and_directories_and_of_nothing_else() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let watch = Lines::watching(&birch);
    let mut want = vec!["MOVED_TO one".to_owned()];
    put(&alder, "one");
    watch.wait_event(&birch, &want[0]);

    put(&alder, "new/deep/two");
    watch.wait_event(&birch, "MOVED_TO new/deep/two");
    want.push("CREATE,ISDIR new".into());
    let events = watch.events(&birch);
    // Its own listing of the new directory can be faster than the event for what is in that.
    if events.iter().any(|event| event == "CREATE,ISDIR new/deep") {
        want.push("CREATE,ISDIR new/deep".into());
    }
    want.push("MOVED_TO new/deep/two".into());
    assert_eq!(watch.events(&birch), want);

    let sha = alder.put("one", b"a new version");
    wait_until("a second event for a new version", ARRIVES, || {
        watch.events(&birch).len() > want.len()
    });
    want.push("MOVED_TO one".into());
    birch.wait_arrived("one", &sha);
    put(&alder, "new/three");
    watch.wait_event(&birch, "MOVED_TO new/three");
    want.push("MOVED_TO new/three".into());
    assert_eq!(watch.events(&birch), want);

    birch.stop();
    watch.wait(|_| {
        watch
            .events(&birch)
            .iter()
            .any(|e| e.starts_with("UNMOUNT"))
    });
}

#[test]
fn a_name_that_is_being_looked_at_all_the_time_is_announced_once_and_never_vanishes() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let watch = Lines::watching(&birch);
    let names: Vec<String> = (0..60).map(|n| format!("d{}/f{n}", n % 3)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let looker = thread::spawn({
        let (stop, inbox, names) = (stop.clone(), birch.inbox(""), names.clone());
        move || {
            let mut seen: BTreeMap<&String, u64> = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                for name in &names {
                    match (fs::metadata(inbox.join(name)), seen.get(name)) {
                        (Ok(meta), None) => drop(seen.insert(name, meta.ino())),
                        (Ok(meta), Some(ino)) => assert_eq!(meta.ino(), *ino, "{name}"),
                        (Err(e), Some(_)) => panic!("{name} was there: {e}"),
                        (Err(_), None) => {}
                    }
                }
                let stage = inbox.join("../.meshbox/.arrivals");
                let hidden = fs::symlink_metadata(&stage).unwrap_err();
                assert_eq!(hidden.raw_os_error(), Some(libc::ENOENT));
                assert_eq!(fs::read_dir(inbox.join("../.meshbox")).unwrap().count(), 4);
            }
            seen.len()
        }
    });
    for name in &names {
        put(&alder, name);
    }
    let want: Vec<String> = names
        .iter()
        .map(|name| format!("MOVED_TO {name}"))
        .collect();
    watch.wait(|_| {
        let events = watch.events(&birch);
        want.iter().all(|want| events.contains(want))
    });
    put(&alder, "last");
    watch.wait_event(&birch, "MOVED_TO last");
    let events = watch.events(&birch);
    for want in &want {
        let times = events.iter().filter(|event| *event == want).count();
        assert_eq!(times, 1, "{want}");
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(looker.join().unwrap(), names.len());
}

#[test]
fn tail_follows_a_name_from_version_to_version() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    // Somebody watches, so that names are announced while tail looks at them.
    let _watch = Lines::watching(&birch);
    let mut command = Command::new("tail");
    let tail = Lines::of(
        command
            .args(["-s", "0.05", "-n", "+1", "-F"])
            .arg(birch.inbox("log")),
    );
    let said = |tail: &Lines| -> Vec<String> {
        let lines = tail.get().into_iter();
        lines.filter(|line| !line.starts_with("tail:")).collect()
    };
    let mut want = Vec::new();
    for version in 1..4 {
        let line = format!("line of version {version}");
        alder.put("log", format!("{line}\n").as_bytes());
        want.push(line);
        tail.wait(|_| said(&tail).len() >= want.len());
    }
    assert_eq!(said(&tail), want);
}

#[test]
fn nobody_watches_and_no_process_is_started() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    alder.marker("a", &birch);
    alder.marker("d/b", &birch);
    assert_eq!(herald(&birch), None);
    let watch = Lines::watching(&birch);
    put(&alder, "d/c");
    watch.wait_event(&birch, "MOVED_TO d/c");
    // What came shortly before the watch may be told too.
    let events = watch.events(&birch);
    assert_eq!(events.last().unwrap(), "MOVED_TO d/c");
    let herald = herald(&birch).expect("a process announces");
    let descriptors = fs::read_dir(format!("/proc/{herald}/fd")).unwrap();
    for descriptor in descriptors.map_while(Result::ok) {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        assert_ne!(
            target,
            Path::new("/dev/fuse"),
            "it would keep the mount alive"
        );
        assert!(!target.starts_with(birch.mountpoint()), "{target:?}");
    }
    let environment = fs::read(format!("/proc/{herald}/environ")).unwrap();
    assert!(environment.is_empty(), "secrets may be in it");
}

#[test]
fn a_killed_herald_is_replaced() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let watch = Lines::watching(&birch);
    put(&alder, "first");
    watch.wait_event(&birch, "MOVED_TO first");
    let first = herald(&birch).expect("a process announces");
    signal(first, Signal::KILL);
    wait_until("it is gone", COMMAND, || !is_running(first));
    put(&alder, "second");
    watch.wait_event(&birch, "MOVED_TO second");
    assert_ne!(herald(&birch), Some(first));
    let events = watch.events(&birch);
    assert_eq!(events, ["MOVED_TO first", "MOVED_TO second"]);
}

#[test]
fn a_stopped_herald_delays_neither_files_nor_the_end() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let watch = Lines::watching(&birch);
    put(&alder, "first");
    watch.wait_event(&birch, "MOVED_TO first");
    let stopped = herald(&birch).expect("a process announces");
    signal(stopped, Signal::STOP);
    let sha = put(&alder, "second");
    birch.wait_arrived("second", &sha);
    assert!(is_running(stopped), "it was waited for");
    // Given up after a while, and the next one announces.
    watch.wait_event(&birch, "MOVED_TO second");
    wait_until("the stopped one is gone", COMMAND, || !is_running(stopped));

    let stopped = herald(&birch).expect("another process announces");
    signal(stopped, Signal::STOP);
    let sha = put(&alder, "third");
    birch.wait_arrived("third", &sha);
    birch.stop();
    assert!(!is_running(stopped));
}

/// Also when the daemon is killed while its herald waits in the mount: no zombie that waits for itself, no hung mount.
#[test]
fn a_daemon_killed_while_it_announces_leaves_nothing_behind() {
    needs_mounts!();
    let mut random = Seeded::new();
    let (alder, birch) = Node::pair();
    for round in 0..8 {
        let watch = Lines::watching(&birch);
        let source = alder.root().join("src").join(format!("r{round}"));
        fs::create_dir(&source).unwrap();
        for n in 0..100 {
            fs::write(source.join(format!("f{n}")), format!("{round} {n}")).unwrap();
        }
        common::cp(&source, &alder.outbox(""));
        let begun = format!("MOVED_TO r{round}/");
        watch.wait(|_| watch.events(&birch).iter().any(|e| e.starts_with(&begun)));
        let (daemon, herald) = (birch.pid().unwrap(), herald(&birch));
        let after = random.pause(Duration::from_millis(20));
        signal(daemon, Signal::KILL);
        eprintln!("round {round}: killed {after:?} after the first event");
        // A zombie whose threads wait in its own mount would keep them.
        wait_until("the daemon and its threads are gone", COMMAND, || {
            let threads = fs::read_dir(format!("/proc/{daemon}/task"));
            !is_running(daemon) && threads.map_or(0, Iterator::count) <= 1
        });
        wait_until("the herald is gone", COMMAND, || {
            !herald.is_some_and(is_running)
        });
        birch.restart();
        for n in 0..100 {
            let sha = sha256(format!("{round} {n}").as_bytes());
            birch.wait_arrived(&format!("r{round}/f{n}"), &sha);
        }
    }
    let watch = Lines::watching(&birch);
    put(&alder, "last");
    watch.wait_event(&birch, "MOVED_TO last");
}

#[test]
fn what_lies_over_the_mount_is_left_alone() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let watch = Lines::watching(&birch);
    let mut over = Command::new("mount");
    over.args(["-t", "tmpfs", "over"]).arg(birch.mountpoint());
    run(&mut over, COMMAND).ok();
    fs::create_dir(birch.inbox("")).unwrap();
    alder.put("d/hidden", b"x");
    alder.wait_delivered("d/hidden");
    assert_eq!(common::files_below(&birch.mountpoint()).len(), 0);
    assert!(!birch.inbox("d").exists());
    run(Command::new("umount").arg(birch.mountpoint()), COMMAND).ok();
    put(&alder, "after");
    watch.wait_event(&birch, "MOVED_TO after");
}
