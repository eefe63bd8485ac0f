//! A lane: jobs that block on the disk, done one after another, in order, off the network threads.
//!
//! A lane has no thread while it has nothing to do. What bounds its length is stated where jobs are pushed. A job that
//! panics ends alone: the lane goes on with the next one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;

type Job = Box<dyn FnOnce() + Send>;

/// A serial queue of blocking jobs. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Lane(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    /// With whether [`Lane::clear`] leaves it.
    jobs: VecDeque<(bool, Job)>,
    running: bool,
}

impl Lane {
    /// Adds a job; it runs after all earlier ones. Call within the runtime.
    pub(crate) fn push(&self, job: impl FnOnce() + Send + 'static) {
        self.add(false, Box::new(job));
    }

    /// The same for a job that is done even if the lane is cleared before.
    pub(crate) fn push_kept(&self, job: impl FnOnce() + Send + 'static) {
        self.add(true, Box::new(job));
    }

    fn add(&self, kept: bool, job: Job) {
        let mut queue = self.0.lock();
        queue.jobs.push_back((kept, job));
        if !queue.running {
            queue.running = true;
            let lane = self.clone();
            tokio::task::spawn_blocking(move || lane.drain());
        }
    }

    /// Forgets jobs that did not start, save those that were pushed to be kept.
    pub(crate) fn clear(&self) {
        self.0.lock().jobs.retain(|(kept, _)| *kept);
    }

    fn drain(&self) {
        loop {
            let job = {
                let mut queue = self.0.lock();
                match queue.jobs.pop_front() {
                    Some((_, job)) => job,
                    None => {
                        queue.running = false;
                        return;
                    }
                }
            };
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a job of the mesh failed");
            }
        }
    }
}

/// One job off the network threads; `None` when it failed.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(|error| tracing::error!("a job of the mesh failed: {error}"))
        .ok()
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

    #[tokio::test]
    async fn a_job_that_panics_does_not_stop_those_after_it() {
        let lane = Lane::default();
        let (tx, mut rx) = tokio::sync::mpsc::channel(1);
        lane.push(|| panic!("on purpose"));
        lane.push(move || tx.blocking_send(1).unwrap());
        assert_eq!(rx.recv().await, Some(1));
    }

    #[tokio::test]
    async fn clearing_leaves_what_must_be_done() {
        let lane = Lane::default();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let (tx, mut rx) = tokio::sync::mpsc::channel(8);
        // The lane is busy until it is cleared.
        let (begin, begun) = tokio::sync::oneshot::channel();
        lane.push(move || {
            begin.send(()).unwrap();
            gone.recv().unwrap();
        });
        begun.await.unwrap();
        for (n, kept) in [(1, false), (2, true), (3, false)] {
            let tx = tx.clone();
            let job = move || tx.blocking_send(n).unwrap();
            if kept {
                lane.push_kept(job);
            } else {
                lane.push(job);
            }
        }
        drop(tx);
        lane.clear();
        go.send(()).unwrap();
        assert_eq!((rx.recv().await, rx.recv().await), (Some(2), None));
    }
}
