//! What arrived in the inbox and is to be announced; see [`super::announce`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::attr::Caller;
use crate::bundle::RelPath;

/// Arrivals waiting to be announced. When more are waiting, the newest are not announced: they are published all the
/// same, and a watcher that cannot keep up must list anyway.
pub(super) const QUEUE_CAP: usize = 65_536;

/// One call through the mount, by paths below its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    MakeDirectory(Vec<u8>),
    /// Move the first, a token, to the second.
    Move(Vec<u8>, Vec<u8>),
}

/// Who performs [`Step`]s in another process, and knows whether anybody watches the mount.
pub(crate) trait Herald: Send {
    /// Whether anybody may be watching anything in the mount.
    fn is_watched(&mut self) -> bool;
    /// Whether anybody is seen watching the inode with this `st_ino`.
    fn is_watching(&mut self, ino: u64) -> bool;
    /// Performs the steps in order, each once or not at all. `admit` is told which process does, before it does;
    /// `give_up` says that it does not matter any more.
    fn perform(&mut self, steps: &[Step], admit: &dyn Fn(u32), give_up: &dyn Fn() -> bool);
}

/// What appeared in the inbox.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) path: RelPath,
    pub(super) directory: bool,
}

/// An arrival that is being announced.
pub(super) struct Pending {
    pub(super) token: Vec<u8>,
    pub(super) arrival: Arrival,
    pub(super) ino: u64,
    pub(super) done: bool,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) arrivals: VecDeque<Arrival>,
    pub(super) running: bool,
}

/// Arrivals on their way to the herald.
pub(crate) struct Announcements {
    pub(super) queue: Mutex<Queue>,
    rung: Condvar,
    pub(super) stopping: AtomicBool,
    /// The herald's process, only while it has something to do.
    pub(super) admitted: AtomicU32,
    /// Whether `pending` has anything; spares everybody else its lock.
    pub(super) busy: AtomicBool,
    pub(super) pending: Mutex<Vec<Pending>>,
    pub(super) tokens: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Announcements {
    pub(crate) fn new() -> Self {
        Self {
            queue: Mutex::new(Queue::default()),
            rung: Condvar::new(),
            stopping: AtomicBool::new(false),
            admitted: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            pending: Mutex::new(Vec::new()),
            tokens: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            thread: Mutex::new(None),
        }
    }

    /// Remembers an arrival; never waits.
    pub(crate) fn push(&self, path: &RelPath, directory: bool) {
        let mut queue = self.queue.lock();
        if !queue.running {
            return;
        }
        if queue.arrivals.len() >= QUEUE_CAP {
            if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!("too much arrives at once; watchers are not told of all of it");
            }
            return;
        }
        queue.arrivals.push_back(Arrival {
            path: path.clone(),
            directory,
        });
        drop(queue);
        self.rung.notify_one();
    }

    /// Ends the thread; what was not announced is not.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.queue.lock().running = false;
        self.rung.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the fs-announcer thread panicked");
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Everything that waits, once something does and `not_before` has come; `None` at the end.
    pub(super) fn take(&self, not_before: Instant) -> Option<VecDeque<Arrival>> {
        let mut queue = self.queue.lock();
        loop {
            if !queue.running {
                return None;
            }
            if queue.arrivals.is_empty() {
                self.rung.wait(&mut queue);
            } else if Instant::now() >= not_before {
                return Some(std::mem::take(&mut queue.arrivals));
            } else {
                self.rung.wait_until(&mut queue, not_before);
            }
        }
    }

    pub(super) fn is_admitted(&self, caller: Caller) -> bool {
        caller.tid != 0 && self.admitted.load(Ordering::Acquire) == caller.tid
    }

    /// Whether the kernel must not keep this inbox name, because it is being announced.
    pub(crate) fn covers(&self, path: &[u8]) -> bool {
        self.busy.load(Ordering::Acquire)
            && self
                .pending
                .lock()
                .iter()
                .any(|pending| !pending.done && pending.arrival.path.as_bytes() == path)
    }

    /// What an arrival at `path` must show to be announced now.
    pub(super) fn awaited(&self, path: &[u8], directory: bool) -> Option<u64> {
        let pending = self.pending.lock();
        let found = pending.iter().find(|pending| {
            !pending.done
                && pending.arrival.directory == directory
                && pending.arrival.path.as_bytes() == path
        });
        found.map(|pending| pending.ino)
    }

    pub(super) fn finish(&self, path: &[u8]) {
        for pending in self.pending.lock().iter_mut() {
            if pending.arrival.path.as_bytes() == path {
                pending.done = true;
            }
        }
    }
}
