//! Starting in the background, and saying when it serves.
//!
//! The command starts its own program again with the same arguments and waits at a pipe. The child does all the work:
//! config, state, mount, endpoint. When everything serves it sends one line, or, when something failed, another one, which
//! the parent prints as if the error were its own. No fork without exec, so no thread is ever lost half-way.
//!
//! The pipe is the child's standard output, so no descriptor has to be passed by number. Standard error stays the
//! parent's until then: a panic during start is seen.
//!
//! # Crash behaviour
//! A child that dies without a word closes the pipe, and the parent reports how it died. A parent that is killed while it
//! waits makes [`ReadyPipe::ready`] fail, and the child stops: whoever gave up a start does not get a mount later.
#![allow(unsafe_code)] // dup2 onto the standard descriptors, and the removal of one environment variable

use std::env;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// Set for the child only; its value is the number of the descriptor that is the ready pipe.
pub(crate) const READY_FD_ENV: &str = "MESHBOX_READY_FD";

/// How long a start may take: recovery of a large state hashes what a crash left behind.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a child that is told to stop has to unmount.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How often a stopping child is looked at.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// How long to wait for a start.
pub(crate) struct Patience<'a> {
    /// In all.
    pub limit: Duration,
    /// Until something is said.
    pub slow: Duration,
    /// Says it.
    pub say: &'a dyn Fn(),
}

/// The one line that goes through the pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    Ready { text: String, warnings: Vec<String> },
    Failed { code: u8, message: String },
}

/// What became of a start in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It serves.
    Ready {
        /// What to print.
        text: String,
        /// What to say on standard error.
        warnings: Vec<String>,
    },
    /// It failed and said why.
    Failed {
        /// The exit code.
        code: u8,
        /// What to print as the error.
        message: String,
    },
    /// It died without a word. What it wrote to standard error has been seen already.
    Died {
        /// How.
        status: ExitStatus,
    },
    /// It did not answer in time, and was stopped.
    TimedOut { limit: Duration },
}

/// Starts this program again with the same arguments, and waits until it serves, fails, dies or takes longer than that.
///
/// The value of the flag `secret.0` goes by the environment variable `secret.1` instead: a daemon lives long, and its
/// arguments can be read by every user of the machine.
pub(crate) fn spawn(secret: (&str, &str), patience: &Patience<'_>) -> io::Result<Outcome> {
    let mut args = env::args_os();
    let name = args.next().unwrap_or_else(|| "meshbox".into());
    let mut command = Command::new(own_program());
    // The name decides how the arguments are read: `mount.meshbox`.
    command.arg0(name);
    let (args, value) = without_flag(args, secret.0);
    command.args(args);
    if let Some(value) = value {
        command.env(secret.1, value);
    }
    start(command, patience)
}

/// Takes `--flag VALUE` and `--flag=VALUE` out; the last value wins, as it does when they are read.
fn without_flag(
    args: impl Iterator<Item = OsString>,
    flag: &str,
) -> (Vec<OsString>, Option<OsString>) {
    let joined = format!("{flag}=");
    let (mut rest, mut value) = (Vec::new(), None);
    let mut args = args;
    while let Some(arg) = args.next() {
        if arg == flag {
            value = args.next();
        } else if let Some(given) = arg.as_bytes().strip_prefix(joined.as_bytes()) {
            value = Some(OsString::from_vec(given.to_vec()));
        } else {
            rest.push(arg);
        }
    }
    (rest, value)
}

/// The path makes a better process name than `exe`, but is gone when the program was replaced meanwhile.
fn own_program() -> PathBuf {
    env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

fn start(mut command: Command, patience: &Patience<'_>) -> io::Result<Outcome> {
    let (read, write) = io::pipe()?;
    command
        .env(READY_FD_ENV, libc::STDOUT_FILENO.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::from(write));
    let mut child = command.spawn()?;
    // It holds our copy of the pipe's write end, which would hide the child's death.
    drop(command);
    // One report from one child.
    let (report, reported) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("ready-pipe".to_owned())
        .spawn(move || {
            // What is not a report was printed by something that took the pipe for standard output.
            let found = BufReader::new(read)
                .split(b'\n')
                .map_while(Result::ok)
                .find_map(|line| serde_json::from_slice(&line).ok());
            // The receiver is gone after a timeout.
            drop(report.send(found));
        })?;
    let limit = patience.limit;
    let slow = patience.slow.min(limit);
    let report = reported.recv_timeout(slow).or_else(|_| {
        (patience.say)();
        reported.recv_timeout(limit.saturating_sub(slow))
    });
    match report {
        Ok(Some(Report::Ready { text, warnings })) => Ok(Outcome::Ready { text, warnings }),
        Ok(Some(Report::Failed { code, message })) => {
            child.wait()?;
            Ok(Outcome::Failed { code, message })
        }
        Ok(None) => Ok(Outcome::Died {
            status: stop(&mut child)?,
        }),
        Err(_) => {
            stop(&mut child)?;
            Ok(Outcome::TimedOut { limit })
        }
    }
}

/// Asks the child to stop, so that nothing stays mounted, and insists after a while.
fn stop(child: &mut Child) -> io::Result<ExitStatus> {
    // A child that closed the pipe is most often dead already. It gets a moment, so that its own status is what is seen.
    let mut asked = false;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if !asked && begun.elapsed() >= 5 * STOP_INTERVAL {
            asked = true;
            // Gone between the two calls: the next round sees it.
            let _ = rustix::process::kill_process(Pid::from_child(child), Signal::TERM);
        }
        if begun.elapsed() >= STOP_LIMIT {
            child.kill()?;
            return child.wait();
        }
        thread::sleep(STOP_INTERVAL);
    }
}

/// The child's end of the pipe.
#[derive(Debug)]
pub(crate) struct ReadyPipe {
    pipe: File,
}

impl ReadyPipe {
    /// In the child of [`spawn`], takes the pipe and leaves the terminal's session, so that neither Ctrl-C nor a closed
    /// terminal reaches it. Otherwise `None`. Must be called first in `main`, before there is a second thread.
    pub(crate) fn from_env() -> io::Result<Option<ReadyPipe>> {
        let Some(value) = env::var_os(READY_FD_ENV) else {
            return Ok(None);
        };
        // SAFETY: the caller promises that this is the only thread, so nobody reads the environment meanwhile.
        unsafe { env::remove_var(READY_FD_ENV) };
        if value != OsStr::new("1") || !is_pipe(&io::stdout()) {
            // Set by hand, or inherited through a chain we did not start.
            return Ok(None);
        }
        let pipe = rustix::io::fcntl_dupfd_cloexec(io::stdout(), libc::STDERR_FILENO + 1)?;
        to_null(libc::STDOUT_FILENO)?;
        // Fails only for the leader of a process group, which we are not, having just been started.
        rustix::process::setsid()?;
        Ok(Some(ReadyPipe {
            pipe: OwnedFd::into(pipe),
        }))
    }

    /// Says that everything serves; `text` is what the parent prints, `warnings` what it says on standard error. Then ours
    /// goes to /dev/null too: from here on the log is the only voice. An error means that the parent is gone and the start
    /// was given up: stop.
    pub(crate) fn ready(self, text: &str, warnings: &[String]) -> io::Result<()> {
        self.send(&Report::Ready {
            text: text.to_owned(),
            warnings: warnings.to_vec(),
        })?;
        to_null(libc::STDERR_FILENO)
    }

    /// Says that the start failed. The caller exits with the same code.
    pub(crate) fn failed(self, code: u8, message: &str) -> io::Result<()> {
        self.send(&Report::Failed {
            code,
            message: message.to_owned(),
        })
    }

    fn send(mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.pipe.write_all(&line)
    }
}

fn is_pipe(fd: &io::Stdout) -> bool {
    rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_fifo())
}

/// Points a standard descriptor at /dev/null. It is never closed: the next file opened would get its number.
fn to_null(standard: i32) -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // SAFETY: both descriptors are open, and nobody owns a standard descriptor in Rust's sense.
    if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Leaves the working directory, so that a daemon does not keep a file system busy. Every path the daemon holds must be
/// absolute by then.
pub(crate) fn leave_working_directory() -> io::Result<()> {
    env::set_current_dir(Path::new("/"))
}

/// Whether systemd runs us, as a service or for its mount unit, and not a shell below it.
pub(crate) fn is_started_by_system() -> bool {
    let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    (set("NOTIFY_SOCKET") || set("INVOCATION_ID")) && !set("TERM")
}

/// Tells systemd that the service is up, if it asked (`NOTIFY_SOCKET`); `status` is the line `systemctl status` shows.
pub(crate) fn notify_ready(status: &str) {
    notify(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(status),
    ]);
}

/// How often systemd wants to hear that we are alive, if it does (`WATCHDOG_USEC`).
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Tells systemd that we are alive.
pub(crate) fn notify_alive() {
    notify(&[sd_notify::NotifyState::Watchdog]);
}

/// Tells systemd that the service is on its way down.
pub(crate) fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_secret_flag_does_not_stay_among_the_arguments() {
        let split = |args: &[&str]| {
            let (rest, value) = without_flag(args.iter().map(OsString::from), "--join");
            (rest.join(" ".as_ref()), value)
        };
        let plain = |text: &str| OsString::from(text);
        assert_eq!(split(&["mount", "m"]), (plain("mount m"), None));
        assert_eq!(
            split(&["mount", "--join", "t", "m"]),
            (plain("mount m"), Some(plain("t")))
        );
        assert_eq!(
            split(&["mount", "m", "--join=t"]),
            (plain("mount m"), Some(plain("t")))
        );
        assert_eq!(
            split(&["mount", "--join-file", "f", "m"]),
            (plain("mount --join-file f m"), None)
        );
    }

    /// A start that nothing is said of.
    fn quiet(millis: u64) -> Patience<'static> {
        let limit = Duration::from_millis(millis);
        Patience {
            limit,
            slow: limit,
            say: &|| {},
        }
    }

    #[test]
    fn the_child_reports_readiness_and_lives_on() {
        let line = serde_json::to_string(&Report::Ready {
            text: "ready: \"x\"\nsecond".into(),
            warnings: vec!["alone".into()],
        })
        .unwrap();
        assert!(!line.contains('\n'));
        // The child goes on while a file of ours exists, and at its end says so in another one.
        let dir = tempfile::tempdir().unwrap();
        let serving = dir.path().join("serving");
        std::fs::write(&serving, "").unwrap();
        let mut command = shell(
            "test \"$MESHBOX_READY_FD\" = 1 || exit 9; printf '%s\\n' \"$LINE\"
            for i in $(seq 100); do test -e \"$SERVING\" || exit 0; sleep 0.1; done; echo > \"$SERVING.end\"",
        );
        command.env("LINE", line).env("SERVING", &serving);
        let outcome = start(command, &quiet(60_000)).unwrap();
        assert_eq!(
            outcome,
            Outcome::Ready {
                text: "ready: \"x\"\nsecond".into(),
                warnings: vec!["alone".into()],
            }
        );
        assert!(
            !dir.path().join("serving.end").exists(),
            "waited for the child's end"
        );
    }

    #[test]
    fn failure_and_death_are_told_apart() {
        let mut command = shell("printf '%s\\n' \"$LINE\"; exit 4");
        let failed = Report::Failed {
            code: 4,
            message: "no key".into(),
        };
        command.env("LINE", serde_json::to_string(&failed).unwrap());
        let outcome = start(command, &quiet(60_000)).unwrap();
        assert_eq!(
            outcome,
            Outcome::Failed {
                code: 4,
                message: "no key".into()
            }
        );

        let Outcome::Died { status } = start(shell("exit 7"), &quiet(60_000)).unwrap() else {
            panic!("a silent death must be seen");
        };
        assert_eq!(status.code(), Some(7));
        let Outcome::Died { status } = start(shell("echo {}; exit 8"), &quiet(60_000)).unwrap()
        else {
            panic!("nonsense is not a report");
        };
        assert_eq!(status.code(), Some(8));
    }

    #[test]
    fn a_child_that_never_answers_is_stopped() {
        let patience = quiet(50);
        assert_eq!(
            start(shell("exec sleep 600"), &patience).unwrap(),
            Outcome::TimedOut {
                limit: patience.limit
            }
        );
    }

    #[test]
    fn a_slow_start_is_said_once_and_a_quick_one_is_not() {
        let said = std::cell::Cell::new(0);
        let say = || said.set(said.get() + 1);
        let mut patience = Patience {
            limit: Duration::from_secs(60),
            slow: Duration::ZERO,
            say: &say,
        };
        start(shell("sleep 0.2; exit 7"), &patience).unwrap();
        assert_eq!(said.get(), 1);
        patience.slow = patience.limit;
        start(shell("exit 7"), &patience).unwrap();
        assert_eq!(said.get(), 1);
    }

    /// The other side of the next test, in a process of its own.
    #[test]
    #[ignore = "is the child of another test"]
    fn as_child() {
        let pipe = ReadyPipe::from_env().unwrap().unwrap();
        assert!(env::var_os(READY_FD_ENV).is_none());
        assert!(
            !is_pipe(&io::stdout()),
            "standard output must not be the pipe any more"
        );
        let own = rustix::process::getpid();
        assert_eq!(rustix::process::getsid(None).unwrap(), own);
        println!("this goes nowhere");
        match env::var("TRIAL").unwrap().as_str() {
            "ready" => pipe.ready("two\nlines", &[]).unwrap(),
            "failed" => pipe.failed(3, "no \"key\"").unwrap(),
            _ => drop(pipe),
        }
    }

    #[test]
    fn the_pipe_carries_what_a_real_child_says() {
        let run = |what: &str| {
            let mut command = Command::new(env::current_exe().unwrap());
            command
                .args([
                    "--exact",
                    "mount::background::tests::as_child",
                    "--ignored",
                    "--nocapture",
                ])
                .env("TRIAL", what);
            start(command, &quiet(60_000)).unwrap()
        };
        assert_eq!(
            run("ready"),
            Outcome::Ready {
                text: "two\nlines".into(),
                warnings: vec![],
            }
        );
        assert_eq!(
            run("failed"),
            Outcome::Failed {
                code: 3,
                message: "no \"key\"".into()
            }
        );
        assert!(matches!(run("silent"), Outcome::Died { status } if status.success()));
    }

    #[test]
    fn without_the_variable_there_is_no_pipe() {
        assert!(ReadyPipe::from_env().unwrap().is_none());
    }
}
