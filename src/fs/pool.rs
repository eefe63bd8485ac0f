//! Threads that may block: modifying operations that met a busy gate or sealed bytes come here, with their replies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

/// Threads of the pool. Copying out is bound by the disk; more threads only seek more.
const THREADS: usize = 4;

/// Operations waiting. Each carries at most one WRITE of 1 MiB, so this bounds memory to 64 MiB; when it is full the
/// FUSE loop that brings one more waits for local disk, as it would on any file system.
const QUEUE_CAP: usize = 64;

/// One deferred operation; it sends its own reply.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Pool {
    sender: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_CAP);
        let mut threads = Vec::with_capacity(THREADS);
        for n in 0..THREADS {
            let receiver = receiver.clone();
            threads.push(
                thread::Builder::new()
                    .name(format!("fs-blocking-{n}"))
                    .spawn(move || work(&receiver))?,
            );
        }
        Ok(Self {
            sender: Mutex::new(Some(sender)),
            threads: Mutex::new(threads),
        })
    }

    /// Hands over a job. After [`Self::stop`] it is dropped, and its reply with it, which answers EIO.
    pub(crate) fn submit(&self, job: Job) {
        let sender = self.sender.lock().clone();
        if let Some(sender) = sender
            && sender.send(job).is_err()
        {
            tracing::warn!("a file operation came after the end of the file system");
        }
    }

    /// Does what is queued, then ends the threads.
    pub(crate) fn stop(&self) {
        self.sender.lock().take();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the blocking pool panicked");
            }
        }
    }
}

fn work(receiver: &Receiver<Job>) {
    for job in receiver {
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a deferred file operation panicked; its caller got EIO");
        }
    }
}
