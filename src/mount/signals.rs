//! Signals as events for an ordinary thread, and the limit of open files.
//!
//! The signals are blocked before there is a second thread, so every thread inherits that, and one thread reads them from
//! a signalfd. No handler ever runs, so nothing has to be async-signal-safe.
//!
//! # Threads
//! A [`Watch`] owns its thread, which ends when the watch is dropped.
#![allow(unsafe_code)] // pthread_sigmask, signalfd, sigaction and poll have no safe form in the crates at hand

use std::fs::File;
use std::io::{self, IsTerminal, PipeReader, PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process;
use std::ptr;
use std::thread::{self, JoinHandle};

use rustix::process::{Resource, Rlimit};

/// The exit code of a second Ctrl-C, as a shell reports it.
const INTERRUPTED: i32 = 128 + libc::SIGINT;

/// What a signal orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// SIGTERM, from systemd or kill: a clean end.
    Terminate,
    /// SIGINT, from Ctrl-C: the same.
    Interrupt,
    /// SIGHUP, and the terminal that we are in the foreground of is gone: the same.
    HangUp,
    /// SIGHUP otherwise: read the configuration again.
    Reload,
    /// SIGUSR1: say in the log how things are.
    Report,
}

/// Proof that the signals are blocked.
#[derive(Debug)]
pub(crate) struct Blocked {
    set: libc::sigset_t,
}

/// Blocks SIGTERM, SIGINT, SIGHUP and SIGUSR1 for this thread and all it starts. Call it before the first of them. Signals that were
/// ignored when we were started (nohup, `&` in a script) stay ignored. Child processes inherit the block.
pub(crate) fn block() -> io::Result<Blocked> {
    let mut set = empty_set();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
        if signal == libc::SIGTERM || !is_ignored(signal)? {
            // SAFETY: `set` is an initialised set and the signal number is valid.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
    }
    change_mask(libc::SIG_BLOCK, &set)?;
    Ok(Blocked { set })
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set, and cannot fail with a valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn change_mask(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is valid for reading, and no old mask is asked for.
    match unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given; the old one is written to our own memory, and read only after success.
    unsafe {
        if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(action.assume_init().sa_sigaction == libc::SIG_IGN)
    }
}

/// A thread that waits for signals.
#[derive(Debug)]
pub(crate) struct Watch {
    thread: Option<JoinHandle<()>>,
    /// Closing it ends the thread.
    quit: Option<PipeWriter>,
}

impl Blocked {
    /// Calls `on_signal` in a thread of its own at every signal. With `impatient`, for a daemon in the foreground, a
    /// second SIGINT ends the process at once, and leaves the mount to the recovery of the next start; and a SIGHUP of the
    /// terminal that it was started at is an end.
    pub(crate) fn watch(
        &self,
        impatient: bool,
        mut on_signal: impl FnMut(Order) + Send + 'static,
    ) -> io::Result<Watch> {
        // SAFETY: the set is valid; the result is checked before it is taken for a descriptor.
        let fd = unsafe {
            libc::signalfd(
                -1,
                &raw const self.set,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let signals = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let (quit_read, quit) = io::pipe()?;
        // One in the background gives its terminal up later, and outlives it.
        let at_terminal = impatient && io::stderr().is_terminal();
        let thread = thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let mut interrupts = 0;
                while let Some(mut signal) = next(&signals, &quit_read) {
                    // A terminal that was hung up is none any more.
                    if signal == Order::Reload && at_terminal && !io::stderr().is_terminal() {
                        signal = Order::HangUp;
                    }
                    if signal == Order::Interrupt {
                        interrupts += 1;
                        if impatient && interrupts > 1 {
                            process::exit(INTERRUPTED);
                        }
                    }
                    on_signal(signal);
                }
            })?;
        Ok(Watch {
            thread: Some(thread),
            quit: Some(quit),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the signal thread panicked");
        }
    }
}

/// The next signal, or `None` when it is time to quit.
fn next(mut signals: &File, quit: &PipeReader) -> Option<Order> {
    loop {
        let watched = |fd: i32| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [watched(signals.as_raw_fd()), watched(quit.as_raw_fd())];
        // SAFETY: `fds` is an array of two valid entries whose descriptors are borrowed for the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return None;
        }
        if fds[0].revents != 0 {
            let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
            match signals.read(&mut info) {
                // The first field is the signal's number.
                Ok(n) if n == info.len() => {
                    match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                        libc::SIGTERM => return Some(Order::Terminate),
                        libc::SIGINT => return Some(Order::Interrupt),
                        libc::SIGHUP => return Some(Order::Reload),
                        libc::SIGUSR1 => return Some(Order::Report),
                        other => tracing::debug!(other, "a signal nobody asked for"),
                    }
                }
                Ok(_) => return None,
                // Taken by another watch of the same signals.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => return None,
            }
        }
        if fds[1].revents != 0 {
            return None;
        }
    }
}

/// Raises the soft limit of open files to the hard one, since every file open in the mount is one here. Returns the limit
/// that holds; `None` is no limit.
pub(crate) fn raise_open_files() -> io::Result<Option<u64>> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(rustix::process::getrlimit(Resource::Nofile).current)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::process::{Pid, Signal};

    use super::*;

    /// A signal raised here is for this thread alone, so it is read here and not by a watch.
    #[test]
    fn each_signal_arrives_under_its_name() {
        thread::spawn(|| {
            let blocked = block().unwrap();
            // SAFETY: as in `watch`.
            let fd = unsafe {
                libc::signalfd(
                    -1,
                    &raw const blocked.set,
                    libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
                )
            };
            assert!(fd >= 0);
            // SAFETY: new, and ours.
            let signals = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
            let (quit_read, quit) = io::pipe().unwrap();
            for (number, want) in [
                (libc::SIGTERM, Order::Terminate),
                (libc::SIGINT, Order::Interrupt),
                (libc::SIGHUP, Order::Reload),
                (libc::SIGUSR1, Order::Report),
            ] {
                if is_ignored(number).unwrap() {
                    continue;
                }
                // SAFETY: a signal to the calling thread, which blocks it.
                unsafe { libc::raise(number) };
                assert_eq!(next(&signals, &quit_read), Some(want));
            }
            drop(quit);
            assert_eq!(next(&signals, &quit_read), None);
        })
        .join()
        .unwrap();
    }

    /// A daemon in the foreground, for the next test, which gives it the block to inherit: the test runner has threads of its own.
    #[test]
    #[ignore = "is the child of another test"]
    fn as_daemon() {
        let watch = block()
            .unwrap()
            .watch(true, |signal| println!("\n{signal:?}"))
            .unwrap();
        println!("\nup");
        thread::sleep(Duration::from_secs(60));
        drop(watch);
    }

    #[test]
    fn a_daemon_hears_every_signal_and_the_second_interrupt_ends_it() {
        let _blocked = block().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "mount::signals::tests::as_daemon",
                "--ignored",
                "--nocapture",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut say = |signal, want: &str| {
            if let Some(signal) = signal {
                rustix::process::kill_process(pid, signal).unwrap();
            }
            assert!(lines.any(|line| line == want), "{want} never came");
        };
        say(None, "up");
        say(Some(Signal::TERM), "Terminate");
        if !is_ignored(libc::SIGHUP).unwrap() {
            say(Some(Signal::HUP), "Reload");
        }
        say(Some(Signal::USR1), "Report");
        if is_ignored(libc::SIGINT).unwrap() {
            child.kill().unwrap();
            child.wait().unwrap();
            return;
        }
        say(Some(Signal::INT), "Interrupt");
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(INTERRUPTED));
    }

    #[test]
    fn a_dropped_watch_ends_its_thread() {
        thread::spawn(|| {
            let (ended, end) = mpsc::channel::<()>();
            let watch = block()
                .unwrap()
                .watch(false, move |_| {
                    let _ = &ended;
                })
                .unwrap();
            drop(watch);
            assert_eq!(
                end.recv_timeout(Duration::from_secs(60)),
                Err(mpsc::RecvTimeoutError::Disconnected)
            );
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_limit_of_open_files_is_the_hard_one() {
        let now = raise_open_files().unwrap();
        assert_eq!(now, rustix::process::getrlimit(Resource::Nofile).maximum);
    }
}
