//! The tail hasher: one thread that hashes behind the write heads, so that little is left to hash at the last close.
//!
//! It works for a file that is still being written, whose writer and whose FUSE loop hand each other the processor for
//! every WRITE. So it runs with the lowest priority: measured on two cores with a writer of 128 KiB or 1 MiB at a time, one
//! that competed as an equal cost the writer a twelfth of its speed at best and half of it at worst. What it did not
//! get to, a sealer hashes at the close with ordinary priority; what it holds just then, the sealer waits for only a
//! moment ([`crate::spool::GateGuard::take_tail`]).
//!
//! It gives up a file that was removed at once, since its descriptor keeps the space of that file taken; who finds the
//! disk full waits for that ([`TailHasher::let_go`]).
//!
//! # Threads
//! `tail-hasher`, fed by a bounded channel; a file is in it at most once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::{Condvar, Mutex};

use crate::disk::keep_access_time;
use crate::spool::Gate;
use crate::spool::background::give_way;
use crate::spool::outbox::Outbox;
use crate::spool::outbox::hashing::READ_BYTES;

/// Files whose writers are ahead of the hasher. Each holds a descriptor; those beyond it are hashed at their close.
const QUEUE_CAP: usize = 64;

/// How long somebody who finds the disk full waits for the descriptor of a removed file.
const LET_GO: Duration = Duration::from_millis(500);

struct Work {
    gate: Arc<Gate>,
    /// Open for reading too.
    file: File,
}

/// The file at which the thread is.
#[derive(Default)]
struct Current {
    gate: Mutex<Option<Arc<Gate>>>,
    changed: Condvar,
    ending: AtomicBool,
}

impl Current {
    fn set(&self, gate: Option<Arc<Gate>>) {
        *self.gate.lock() = gate;
        self.changed.notify_all();
    }
}

/// The thread and its queue.
pub(in crate::spool) struct TailHasher {
    current: Arc<Current>,
    queue: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl TailHasher {
    pub(in crate::spool) fn start() -> io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_CAP);
        let current = Arc::new(Current::default());
        let here = Arc::clone(&current);
        let thread = std::thread::Builder::new()
            .name("tail-hasher".into())
            .spawn(move || work_loop(&receiver, &here))?;
        Ok(Self {
            current,
            queue: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
        })
    }

    fn offer(&self, work: Work) {
        let sent = match &*self.queue.lock() {
            Some(queue) => queue.try_send(work),
            None => Err(TrySendError::Disconnected(work)),
        };
        if let Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) = sent {
            work.gate.tail_not_rung();
        }
    }

    /// Waits until no descriptor of a removed file is held here; not for long. Says whether one was.
    pub(in crate::spool) fn let_go(&self) -> bool {
        let deadline = Instant::now() + LET_GO;
        let mut gate = self.current.gate.lock();
        let mut held = false;
        while gate.as_ref().is_some_and(|gate| gate.is_retired()) {
            held = true;
            let waited = self.current.changed.wait_until(&mut gate, deadline);
            if waited.timed_out() {
                break;
            }
        }
        held
    }

    /// Ends the thread. What it did not get to is hashed at the close, or at the next start.
    pub(in crate::spool) fn stop(&self) {
        self.current.ending.store(true, Ordering::Release);
        self.queue.lock().take();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the tail hasher had panicked");
        }
    }
}

fn work_loop(queue: &Receiver<Work>, current: &Current) {
    give_way("tail hasher");
    let mut buffer = vec![0; READ_BYTES];
    for Work { gate, file } in queue {
        current.set(Some(Arc::clone(&gate)));
        follow(&gate, &file, &mut buffer, &current.ending);
        drop(file);
        current.set(None);
    }
}

/// Hashes what was written since the last time.
fn follow(gate: &Gate, file: &File, buffer: &mut [u8], ending: &AtomicBool) {
    keep_access_time(file);
    let given_up = || gate.is_retired() || ending.load(Ordering::Acquire);
    loop {
        let Some(mut work) = gate.lock().begin_tail() else {
            return;
        };
        while work.hasher.len() < work.until && !given_up() {
            let want = (work.until - work.hasher.len()).min(buffer.len() as u64) as usize;
            match file.read_at(&mut buffer[..want], work.hasher.len()) {
                Ok(0) => break,
                Ok(n) => work.hasher.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if !gate.lock().end_tail(work) || given_up() {
            return;
        }
    }
}

impl Outbox {
    /// Lets the tail hasher follow a writer; see [`crate::spool::GateGuard::wrote`]. `file` must be open for reading too.
    /// Never blocks.
    pub(crate) fn tail(&self, gate: &Arc<Gate>, file: File) {
        self.tails.offer(Work {
            gate: Arc::clone(gate),
            file,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_file_is_let_go_before_it_is_hashed_to_its_end() {
        const LEN: u64 = 8 << 30;
        let tails = TailHasher::start().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let gate = Arc::new(Gate::new(1, None));
        assert!(gate.lock().wrote(0, LEN));
        tails.offer(Work {
            gate: Arc::clone(&gate),
            file: file.try_clone().unwrap(),
        });
        while tails.current.gate.lock().is_none() {
            std::thread::yield_now();
        }
        gate.retire();
        while tails.let_go() {}
        assert!(tails.current.gate.lock().is_none());
        tails.stop();
        assert!(gate.lock().take_tail().len() < LEN);
    }
}
