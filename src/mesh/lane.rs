//! A lane: jobs that block on the disk, done one after another, in order, off the network threads.
//!
//! A lane has no thread while it has nothing to do. What bounds its length is stated where jobs are pushed.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// A serial queue of blocking jobs. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Lane(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

impl Lane {
    /// Adds a job; it runs after all earlier ones. Call within the runtime.
    pub(crate) fn push(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.0.lock();
        queue.jobs.push_back(Box::new(job));
        if !queue.running {
            queue.running = true;
            let lane = self.clone();
            tokio::task::spawn_blocking(move || lane.drain());
        }
    }

    /// Forgets jobs that did not start.
    pub(crate) fn clear(&self) {
        self.0.lock().jobs.clear();
    }

    fn drain(&self) {
        loop {
            let job = {
                let mut queue = self.0.lock();
                match queue.jobs.pop_front() {
                    Some(job) => job,
                    None => {
                        queue.running = false;
                        return;
                    }
                }
            };
            job();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_in_order_also_when_pushed_while_running() {
        let lane = Lane::default();
        let (tx, mut rx) = tokio::sync::mpsc::channel(64);
        for n in 0..50u32 {
            let tx = tx.clone();
            lane.push(move || tx.blocking_send(n).unwrap());
            if n % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for n in 0..50 {
            assert_eq!(rx.recv().await, Some(n));
        }
    }
}
