//! The herald's process: the only one of ours that ever enters the mount.
//!
//! A daemon that waits inside its own mount when it is killed can never be killed: its own descriptor keeps the
//! connection alive that would have to answer. So what must go through the mount is done by this program started once
//! more, which holds no such descriptor: when the daemon dies, the connection ends, and so do all its calls.
//!
//! It is started when it is first needed. Jobs come and answers go over one socket, which is its standard input and
//! output: frames of a length and a list.
//!
//! # Invariants
//! 1. Between two jobs the process holds nothing in the mount; during one, two descriptors for some milliseconds.
//! 2. It touches nothing unless the mountpoint leads to the very mount it was started for.
//! 3. Nobody waits for it without a limit: one that does not answer is killed, and reaped whenever it has ended.
//!
//! # Crash behaviour
//! The process ends with its socket and with the thread that started it. One that died is started again, soon at first,
//! later after a growing pause.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, mkdirat, openat, renameat, statx};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

/// The hidden subcommand that is the process.
pub(crate) const SUBCOMMAND: &str = "announce-arrivals";

/// How the process shows in lists of processes.
const PROCESS_NAME: &std::ffi::CStr = c"meshbox-herald";

/// The longest frame: a batch of jobs with the longest possible paths is well below.
const FRAME_MAX: usize = 4 << 20;

/// How long one batch may take. It takes milliseconds; seconds mean that the process was stopped or the machine hangs.
const BATCH_LIMIT: Duration = Duration::from_secs(5);

/// How often a wait for an answer looks whether it is still wanted.
const ANSWER_INTERVAL: Duration = Duration::from_millis(50);

/// How often a batch is tried, each time by a new process.
const TRIES: u32 = 2;

/// The pause after a batch that failed in all its tries; doubled each time up to the second.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Killed processes that have not ended yet. With so many the machine is in trouble, and no other one is started.
const GRAVES: usize = 4;

/// How long the end of the daemon waits for the end of the process that it killed.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// One call through the mount; paths are below its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    /// mkdir(2).
    MakeDirectory(Vec<u8>),
    /// rename(2).
    Move(Vec<u8>, Vec<u8>),
}

/// Which mount is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlace {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// The kernel's id of the mount.
    pub id: u64,
    /// Its device, as `major:minor`.
    pub device: (u32, u32),
}

/// The daemon's side.
#[derive(Debug)]
pub(crate) struct Announcer {
    place: MountPlace,
    running: Option<Running>,
    graves: Vec<Child>,
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    socket: UnixStream,
}

impl Announcer {
    /// Nothing is started yet.
    pub(crate) fn new(place: MountPlace) -> Announcer {
        Announcer {
            place,
            running: None,
            graves: Vec::new(),
            failures: 0,
            not_before: None,
        }
    }

    /// Has `jobs` done in order. `admit` is told the id of the process before it gets them. A process that fails is
    /// killed, and another one gets the whole list once more. `give_up` ends the wait.
    pub(crate) fn perform(
        &mut self,
        jobs: &[Job],
        admit: &dyn Fn(u32),
        give_up: &dyn Fn() -> bool,
    ) {
        self.reap();
        if self.not_before.is_some_and(|time| Instant::now() < time) || self.graves.len() >= GRAVES
        {
            return;
        }
        for attempt in 1..=TRIES {
            match self.attempt(jobs, admit, give_up) {
                Ok(answers) => {
                    self.failures = 0;
                    self.not_before = None;
                    let failed = answers.iter().find(|errno| **errno != 0);
                    if let Some(errno) = failed {
                        let error = Errno::from_raw_os_error(*errno);
                        tracing::debug!(%error, "an arrival was not announced");
                    }
                    return;
                }
                Err(error) => {
                    self.bury();
                    if give_up() {
                        return;
                    }
                    tracing::warn!(%error, attempt, "the process that announces arrivals failed");
                }
            }
        }
        let pause = PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause.min(LONGEST_PAUSE));
    }

    fn attempt(
        &mut self,
        jobs: &[Job],
        admit: &dyn Fn(u32),
        give_up: &dyn Fn() -> bool,
    ) -> io::Result<Vec<i32>> {
        let running = match self.running.take() {
            Some(running) => running,
            None => start(&self.place)?,
        };
        let Running { child, socket } = self.running.insert(running);
        admit(child.id());
        send(socket, &jobs)?;
        let frame = receive_until(socket, Instant::now() + BATCH_LIMIT, give_up)?;
        let answers: Vec<i32> = postcard::from_bytes(&frame).map_err(io::Error::other)?;
        if answers.len() == jobs.len() {
            Ok(answers)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// Kills the process. It keeps its id until it is reaped, which is not now: it may still be admitted.
    fn bury(&mut self) {
        if let Some(mut running) = self.running.take() {
            if let Err(error) = running.child.kill() {
                tracing::debug!(%error, "cannot kill the process that announces arrivals");
            }
            self.graves.push(running.child);
        }
    }

    fn reap(&mut self) {
        self.graves
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.bury();
        let end = Instant::now() + LAST_WAIT;
        self.reap();
        while !self.graves.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
            self.reap();
        }
    }
}

fn start(place: &MountPlace) -> io::Result<Running> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(ANSWER_INTERVAL))?;
    ours.set_write_timeout(Some(BATCH_LIMIT))?;
    // This very program, also when its file has been replaced by a newer version meanwhile.
    let child = Command::new("/proc/self/exe")
        .arg0("meshbox")
        .arg(SUBCOMMAND)
        .arg(format!("--id={}", place.id))
        .arg(format!("--device={}:{}", place.device.0, place.device.1))
        .arg(&place.mountpoint)
        // Secrets may be in the environment, and Ctrl-C is not for it.
        .env_clear()
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()?;
    tracing::debug!(
        pid = child.id(),
        "started the process that announces arrivals"
    );
    Ok(Running {
        child,
        socket: ours,
    })
}

fn send(socket: &mut impl Write, content: &impl Serialize) -> io::Result<()> {
    let content = postcard::to_stdvec(content).map_err(io::Error::other)?;
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    socket.write_all(&[&length.to_le_bytes()[..], &content].concat())
}

/// Reads one frame; `fill` fills a buffer or fails.
fn receive(mut fill: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    fill(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = vec![0; length];
    fill(&mut content)?;
    Ok(content)
}

fn receive_until(
    socket: &mut UnixStream,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> io::Result<Vec<u8>> {
    receive(|mut buffer| {
        while !buffer.is_empty() {
            match socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => buffer = &mut buffer[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if give_up() || Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })
}

/// The process: performs jobs until its socket is closed.
pub(crate) fn serve(place: &MountPlace) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_name(PROCESS_NAME)?;
    std::env::set_current_dir("/")?;
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    loop {
        let frame = match receive(|buffer| input.read_exact(buffer)) {
            Ok(frame) => frame,
            // The daemon has ended or has given us up.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let jobs: Vec<Job> = postcard::from_bytes(&frame).map_err(io::Error::other)?;
        send(&mut output, &carry_out(place, &jobs))?;
        output.flush()?;
    }
}

/// The errno of each job, 0 for done.
fn carry_out(place: &MountPlace, jobs: &[Job]) -> Vec<i32> {
    let root = match enter(place) {
        Ok(root) => root,
        Err(errno) => return vec![errno.raw_os_error(); jobs.len()],
    };
    let mut stage: Option<(PathBuf, OwnedFd)> = None;
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        let done = match job {
            Job::MakeDirectory(path) => mkdirat(&root, path.as_slice(), Mode::from_raw_mode(0o755)),
            Job::Move(from, to) => announce(&root, &mut stage, from, to),
        };
        answers.push(done.err().map_or(0, Errno::raw_os_error));
    }
    answers
}

/// All jobs of a list move out of the same directory: it is walked to once.
fn announce(
    root: &OwnedFd,
    stage: &mut Option<(PathBuf, OwnedFd)>,
    from: &[u8],
    to: &[u8],
) -> rustix::io::Result<()> {
    let from = Path::new(OsStr::from_bytes(from));
    let (Some(directory), Some(token)) = (from.parent(), from.file_name()) else {
        return Err(Errno::INVAL);
    };
    let stage = match stage {
        Some((at, stage)) if at == directory => stage,
        Some(_) | None => {
            let opened = openat(root, directory, PLACE, Mode::empty())?;
            &stage.insert((directory.to_owned(), opened)).1
        }
    };
    renameat(stage, token, root, to)
}

/// Opens a place in the tree, not what is there: nobody is asked for permission, and nothing is read.
const PLACE: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The root of the mount, if the mountpoint still leads to it: it may have been unmounted, or something else been mounted
/// over it.
fn enter(place: &MountPlace) -> rustix::io::Result<OwnedFd> {
    let root = openat(CWD, &place.mountpoint, PLACE, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(root.as_fd(), c"", flags, StatxFlags::MNT_ID)?;
    let known = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    if known
        && stat.stx_mnt_id == place.id
        && (stat.stx_dev_major, stat.stx_dev_minor) == place.device
    {
        Ok(root)
    } else {
        Err(Errno::XDEV)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::info::MountTable;

    fn place_of(path: &Path) -> MountPlace {
        let table = MountTable::read().unwrap();
        let top = path.ancestors().find_map(|at| table.top_at(at)).unwrap();
        MountPlace {
            mountpoint: path.to_owned(),
            id: top.id,
            device: top.device,
        }
    }

    fn jobs() -> Vec<Job> {
        vec![
            Job::MakeDirectory(b"d".to_vec()),
            Job::Move(b"stage/1".to_vec(), b"d/one".to_vec()),
            Job::Move(b"stage/2".to_vec(), b"missing/two".to_vec()),
        ]
    }

    #[test]
    fn jobs_are_done_in_order_and_each_has_its_answer() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let top = dir.path();
        std::fs::create_dir(top.join("stage")).unwrap();
        std::fs::write(top.join("stage/1"), "1").unwrap();
        std::fs::write(top.join("stage/2"), "2").unwrap();
        assert_eq!(carry_out(&place_of(top), &jobs()), [0, 0, libc::ENOENT]);
        assert_eq!(std::fs::read(top.join("d/one")).unwrap(), b"1");
    }

    #[test]
    fn a_place_that_is_another_mount_now_is_not_touched() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let place = place_of(dir.path());
        let (other_id, other_device) = (place.id + 1, (place.device.0, place.device.1 + 1));
        for place in [
            MountPlace {
                id: other_id,
                ..place.clone()
            },
            MountPlace {
                device: other_device,
                ..place.clone()
            },
        ] {
            assert_eq!(carry_out(&place, &jobs()), [libc::EXDEV; 3]);
        }
        assert!(!dir.path().join("d").exists());
    }

    #[test]
    fn a_frame_is_cut_off_only_at_its_limit() {
        let mut frame = Vec::new();
        send(&mut frame, &jobs()).unwrap();
        let mut input = frame.as_slice();
        let got = receive(|buffer| input.read_exact(buffer)).unwrap();
        assert_eq!(postcard::from_bytes::<Vec<Job>>(&got).unwrap(), jobs());
        let mut endless = io::repeat(0xff);
        let error = receive(|buffer| endless.read_exact(buffer)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let far = Instant::now() + Duration::from_secs(600);
        let error = receive_until(&mut ours, far, &|| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = receive_until(&mut ours, Instant::now(), &|| false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
