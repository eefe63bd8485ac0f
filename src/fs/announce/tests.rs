//! What the herald and everybody else see while an arrival is announced; the kernel's part is in `tests/events.rs`.

use std::fs as disk;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};

use super::super::arrivals::{Announcements, QUEUE_CAP};
use super::*;
use crate::fs::tests::{TestFs, test_fs};
use crate::spool::NewName;

const PATIENCE: Duration = Duration::from_secs(60);

const HERALD: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 42,
};

const OTHER: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 43,
};

fn new_name(path: &str, directory: bool) -> NewName {
    NewName {
        path: rel(path),
        directory,
        replaced: None,
    }
}

/// A herald whose calls the test makes.
struct Fake<F> {
    watched: Arc<AtomicBool>,
    looked: std::sync::mpsc::Sender<()>,
    act: F,
}

impl<F: FnMut(&[Step]) + Send> Herald for Fake<F> {
    fn is_watched(&mut self) -> bool {
        let watched = self.watched.load(Ordering::Acquire);
        self.looked.send(()).unwrap();
        watched
    }

    fn is_watching(&mut self, _ino: u64) -> bool {
        true
    }

    fn perform(&mut self, steps: &[Step], admit: &dyn Fn(u32), _give_up: &dyn Fn() -> bool) {
        admit(HERALD.tid);
        (self.act)(steps);
    }
}

struct Setting {
    t: TestFs,
    watched: Arc<AtomicBool>,
    looked: Receiver<()>,
    steps: Receiver<Vec<Step>>,
}

/// A file system whose herald does `act`, then hands its steps to the test.
fn setting(act: impl Fn(&Arc<Fs>, &[Step]) + Send + 'static) -> Setting {
    let t = test_fs();
    let (said, steps) = channel();
    let (looked, looks) = channel();
    let watched = Arc::new(AtomicBool::new(true));
    let fs = Arc::clone(&t.fs);
    let herald = Fake {
        watched: watched.clone(),
        looked,
        act: move |steps: &[Step]| {
            act(&fs, steps);
            said.send(steps.to_vec()).unwrap();
        },
    };
    t.fs.set_herald(Box::new(herald)).unwrap();
    Setting {
        t,
        watched,
        looked: looks,
        steps,
    }
}

impl Setting {
    fn arrives(&self, path: &str, content: &str) {
        let at = self.t.inbox_root().join(path);
        disk::write(at, content).unwrap();
        self.t.fs.inbox_published(&[new_name(path, false)]);
    }

    fn made(&self, path: &str) {
        disk::create_dir(self.t.inbox_root().join(path)).unwrap();
        self.t.fs.inbox_published(&[new_name(path, true)]);
    }

    fn next(&self) -> Vec<Step> {
        self.steps.recv_timeout(PATIENCE).expect("no announcement")
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        self.t.fs.stop_announcing();
    }
}

fn rel(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes().to_vec()).unwrap()
}

fn at(parent: NodeId, name: &[u8]) -> Named<'_> {
    Named { parent, name }
}

fn errno<T: std::fmt::Debug>(result: Result<T, FsError>) -> i32 {
    result.unwrap_err().errno()
}

fn rename(fs: &Arc<Fs>, caller: Caller, from: Named<'_>, to: Named<'_>) -> Result<(), FsError> {
    let (answer, answered) = channel();
    fs.rename_for(caller, from, to, 0, move |done| answer.send(done).unwrap());
    answered.recv_timeout(PATIENCE).unwrap()
}

fn token_of(step: &Step) -> Vec<u8> {
    match step {
        Step::Move(from, _) => from.rsplit(|b| *b == b'/').next().unwrap().to_vec(),
        Step::MakeDirectory(_) => panic!("not a file: {step:?}"),
    }
}

#[test]
fn to_the_herald_a_file_is_missing_until_it_moves_it_there_and_nobody_else_notices() {
    let setting = setting(|fs, steps| {
        let token = token_of(&steps[0]);
        let seen = fs.lookup_for(OTHER, NodeId::INBOX, b"f").unwrap();
        assert_eq!(seen.ttl, Duration::ZERO, "the kernel would keep it");
        for hidden in [STAGE, b"status.json~"] {
            let found = fs.lookup_for(OTHER, NodeId::STATUS_DIR, hidden);
            assert_eq!(errno(found), libc::ENOENT);
        }
        assert_eq!(
            errno(fs.lookup_for(OTHER, NodeId::STAGE, &token)),
            libc::ENOTDIR
        );
        let (from, to) = (at(NodeId::STAGE, &token), at(NodeId::INBOX, b"f"));
        assert_eq!(errno(rename(fs, OTHER, from, to)), libc::EROFS);

        let stage = fs.lookup_for(HERALD, NodeId::STATUS_DIR, STAGE).unwrap();
        assert_eq!(stage.attr.node, NodeId::STAGE);
        let shown = fs.lookup_for(HERALD, NodeId::STAGE, &token).unwrap();
        assert_eq!(shown.attr.node, seen.attr.node, "st_ino would change");
        let missing = fs.lookup_for(HERALD, NodeId::INBOX, b"f");
        assert_eq!(errno(missing), libc::ENOENT);
        let elsewhere = at(NodeId::OUTBOX, b"f");
        assert_eq!(errno(rename(fs, HERALD, from, elsewhere)), libc::EROFS);
        rename(fs, HERALD, from, to).unwrap();

        fs.lookup_for(HERALD, NodeId::INBOX, b"f").unwrap();
        assert_eq!(
            errno(fs.lookup_for(HERALD, NodeId::STAGE, &token)),
            libc::ENOENT,
            "the event would be raised twice"
        );
    });
    setting.arrives("f", "1");
    let steps = setting.next();
    let from = [b".meshbox/.arrivals/", &token_of(&steps[0])[..]].concat();
    assert_eq!(steps, [Step::Move(from, b"inbox/f".to_vec())]);
    setting.t.fs.stop_announcing();
    let late = setting.t.fs.lookup_for(HERALD, NodeId::STATUS_DIR, STAGE);
    assert_eq!(errno(late), libc::ENOENT, "admitted for ever");
}

#[test]
fn a_new_directory_is_announced_as_made_before_what_is_in_it() {
    let setting = setting(|fs, steps| {
        if let Step::MakeDirectory(path) = &steps[0] {
            assert_eq!(path, b"inbox/d");
            let seen = fs.lookup_for(OTHER, NodeId::INBOX, b"d").unwrap();
            let made = at(NodeId::INBOX, b"d");
            assert_eq!(errno(fs.mkdir_for(OTHER, made, 0o755)), libc::EROFS);
            let missing = fs.lookup_for(HERALD, NodeId::INBOX, b"d");
            assert_eq!(errno(missing), libc::ENOENT);
            let entry = fs.mkdir_for(HERALD, made, 0o755).unwrap();
            assert_eq!(entry.attr.node, seen.attr.node);
            assert_eq!(errno(fs.mkdir_for(HERALD, made, 0o755)), libc::EROFS);
        } else {
            let token = token_of(&steps[0]);
            let directory = fs.lookup_for(HERALD, NodeId::INBOX, b"d").unwrap();
            fs.lookup_for(HERALD, NodeId::STAGE, &token).unwrap();
            let to = at(directory.attr.node, b"f");
            rename(fs, HERALD, at(NodeId::STAGE, &token), to).unwrap();
        }
    });
    setting.made("d");
    setting.arrives("d/f", "1");
    assert_eq!(setting.next(), [Step::MakeDirectory(b"inbox/d".to_vec())]);
    assert!(matches!(&setting.next()[..], [Step::Move(_, to)] if to == b"inbox/d/f"));
}

#[test]
fn what_was_replaced_meanwhile_is_not_announced() {
    let setting = setting(|fs, steps| {
        let inbox = fs.spool.layout().inbox();
        disk::write(inbox.join("other"), "2").unwrap();
        disk::rename(inbox.join("other"), inbox.join("f")).unwrap();
        let token = token_of(&steps[0]);
        assert_eq!(
            errno(fs.lookup_for(HERALD, NodeId::STAGE, &token)),
            libc::ESTALE
        );
        let (from, to) = (at(NodeId::STAGE, &token), at(NodeId::INBOX, b"f"));
        assert_eq!(errno(rename(fs, HERALD, from, to)), libc::ESTALE);
    });
    setting.arrives("f", "1");
    setting.next();
}

#[test]
fn without_a_watcher_nothing_is_announced_and_one_who_comes_hears_of_what_comes_after() {
    let setting = setting(|_, _| {});
    setting.watched.store(false, Ordering::Release);
    setting.arrives("before", "1");
    setting.looked.recv_timeout(PATIENCE).unwrap();
    setting.watched.store(true, Ordering::Release);
    setting.arrives("after", "1");
    assert!(matches!(&setting.next()[..], [Step::Move(_, to)] if to == b"inbox/after"));
}

#[test]
fn a_full_queue_drops_announcements_and_never_waits() {
    let all = Announcements::new();
    all.push(&rel("nobody/listens"), false);
    all.queue.lock().running = true;
    for _ in 0..QUEUE_CAP + 3 {
        all.push(&rel("f"), false);
    }
    assert_eq!(all.queue.lock().arrivals.len(), QUEUE_CAP);
    assert_eq!(all.dropped.load(Ordering::Relaxed), 3);
}

#[test]
fn a_batch_holds_what_does_not_depend_on_each_other() {
    let arrivals = ["a/", "b/", "b/c/", "a/1", "x", "a/1", "y"];
    let mut queue: VecDeque<Arrival> = arrivals
        .iter()
        .map(|path| Arrival {
            path: rel(path.trim_end_matches('/')),
            directory: path.ends_with('/'),
        })
        .collect();
    let mut batches = Vec::new();
    while !queue.is_empty() {
        let batch = next_batch(&mut queue);
        let paths = batch.iter().map(|arrival| arrival.path.to_string());
        batches.push(paths.collect::<Vec<_>>().join(" "));
    }
    assert_eq!(batches, ["a b", "b/c", "a/1 x", "a/1 y"]);
}

#[test]
fn a_file_renamed_by_its_origin_is_announced_under_its_new_name_whether_or_not_it_was_known() {
    for known in [false, true] {
        let setting = setting(|_fs, _steps| {});
        let fs = &setting.t.fs;
        let root = fs.spool.layout().inbox();
        disk::write(root.join("f"), "1").unwrap();
        if known {
            fs.lookup(NodeId::INBOX, b"f").unwrap();
        }
        disk::rename(root.join("f"), root.join("g")).unwrap();
        fs.observer().renamed(&rel("f"), &rel("g"), None);
        let steps = setting.next();
        assert!(
            matches!(&steps[..], [Step::Move(_, to)] if to == b"inbox/g"),
            "{steps:?}"
        );
    }
}
