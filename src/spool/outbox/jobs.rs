//! The sealers: the queue of what they are to do, and the threads.
//!
//! Hashing goes in slices. Whoever has had one goes back into the queue with what is left of it; so the number of large
//! files that are hashed at once is not bounded by the number of sealers, and none of them holds a descriptor while it
//! waits.
//!
//! # Who is next
//! The one that has waited longest, where twice as much to hash weighs as much as having waited [`PER_DOUBLING`] less.
//! Small files therefore overtake large ones; large ones do not starve, since their waiting counts on; and what takes
//! less than some 14 seconds is not interrupted by others like it, which would only delay all of them.
//!
//! # Invariants
//! 1. One sealer of two or more takes small jobs only: a small file never waits for a slice of a large one.
//! 2. Files that were renamed are sealed one after another, in the order in which they were asked for: in another one others
//!    would fetch again what they show. One that turns out to have much to hash was changed, so it is no rename any
//!    more, and the next one does not wait for it.
//! 3. Everything enters as a small job: how much there is to hash is found out by a sealer, not by who asks.
//!
//! # Threads
//! `sealer-N`. At the end of the daemon small jobs are finished, for [`LAST_JOBS`] at most; the rest is dropped, and
//! begins again at the next start: its marks and rows are in the journal.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Outbox;
use crate::bundle::RelPath;
use crate::digest::Digest;
use crate::spool::outbox::hashing::{READ_BYTES, SMALL, Slice};
use crate::spool::outbox::tree::TreeWork;
use crate::spool::{Gate, SealOutcome, SealRequest, Spool, SpoolError, TreeRequest};

/// Jobs that may wait: a path and two pointers each, so some 20 MiB at the most. Beyond it `ready` keeps them.
const JOB_CAP: usize = 65_536;

/// How much waiting weighs as much as twice the bytes.
const PER_DOUBLING: Duration = Duration::from_secs(10);

/// How long small jobs are still finished when the daemon ends.
const LAST_JOBS: Duration = Duration::from_secs(5);

/// Files that were renamed while they were hashed, whose hash is kept until the new name is asked for.
const KEPT: usize = 16;

/// Which jobs a sealer takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    Any,
    Small,
}

/// What waits, in the order in which it is to be done. Time is passed in.
struct Queue<J> {
    small: BTreeMap<(Duration, u64), J>,
    large: BTreeMap<(Duration, u64), J>,
    renames: VecDeque<((Duration, u64), J)>,
    /// One of [`Self::renames`] is being worked at.
    renaming: bool,
    pushed: u64,
}

impl<J> Queue<J> {
    fn new() -> Self {
        Self {
            small: BTreeMap::new(),
            large: BTreeMap::new(),
            renames: VecDeque::new(),
            renaming: false,
            pushed: 0,
        }
    }

    fn len(&self) -> usize {
        self.small.len() + self.large.len() + self.renames.len()
    }

    /// A job with `left` bytes to hash that has waited since `since`; being worked at is not waiting.
    fn push(&mut self, job: J, left: u64, since: Duration) {
        self.pushed += 1;
        if left <= SMALL {
            self.small.insert((since, self.pushed), job);
        } else {
            let doublings = (left as f64 / SMALL as f64).log2();
            let rank = since.saturating_add(PER_DOUBLING.mul_f64(doublings));
            self.large.insert((rank, self.pushed), job);
        }
    }

    /// A rename, after all others that are here.
    fn push_rename(&mut self, job: J, since: Duration) {
        self.pushed += 1;
        self.renames.push_back(((since, self.pushed), job));
    }

    /// Who gets a rename is to call [`Self::renamed`] when it is sealed.
    fn pop(&mut self, lane: Lane) -> Option<J> {
        let small = self.small.first_key_value().map(|(rank, _)| *rank);
        let large = self.large.first_key_value().map(|(rank, _)| *rank);
        let rename = self.renames.front().map(|(rank, _)| *rank);
        let rename = rename.filter(|_| !self.renaming);
        let takes_rename = match (rename, small) {
            (Some(rename), Some(small)) => rename < small,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let small = if takes_rename { rename } else { small };
        let takes_large = match (small, large) {
            (_, None) => false,
            (None, Some(_)) => lane == Lane::Any,
            (Some(small), Some(large)) => lane == Lane::Any && large < small,
        };
        if takes_rename && !takes_large {
            self.renaming = true;
            return self.renames.pop_front().map(|(_, job)| job);
        }
        let from = if takes_large {
            &mut self.large
        } else {
            &mut self.small
        };
        from.pop_first().map(|(_, job)| job)
    }

    /// Whether another rename waits.
    fn renamed(&mut self) -> bool {
        self.renaming = false;
        !self.renames.is_empty()
    }
}

/// Work for a sealer.
enum Job {
    Seal(SealRequest),
    Tree(Box<TreeWork>),
    /// Content that some bundles no longer need, now that it is durable that they do not.
    Free(Vec<Digest>),
}

struct Waiting {
    job: Job,
    since: Duration,
    /// Its size is known: it was in the hands of a sealer before.
    ranked: bool,
    /// It is one of [`Queue::renames`].
    renames: bool,
}

/// What a sealer has done of a job.
pub(in crate::spool) enum Step {
    /// What came of each name, or of the whole tree.
    Done(Vec<SealOutcome>),
    /// So many bytes are left to hash.
    Later(u64),
}

struct State {
    queue: Queue<Waiting>,
    idle: usize,
    /// Nothing large is begun or gone on with.
    small_only: bool,
    /// When the rest is dropped.
    ends: Option<Instant>,
    kept: VecDeque<Arc<Gate>>,
}

/// The queue, shared by those who ask and the sealers.
pub(in crate::spool) struct Jobs {
    state: Mutex<State>,
    rung: Condvar,
    begun: Instant,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Jobs {
    pub(in crate::spool) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                queue: Queue::new(),
                idle: 0,
                small_only: false,
                ends: None,
                kept: VecDeque::new(),
            }),
            rung: Condvar::new(),
            begun: Instant::now(),
            workers: Mutex::default(),
        }
    }

    /// Starts the threads.
    pub(in crate::spool) fn start(
        &self,
        spool: &Arc<Spool>,
        sealers: usize,
    ) -> std::io::Result<()> {
        for number in 0..sealers {
            let lane = if sealers > 1 && number == 0 {
                Lane::Small
            } else {
                Lane::Any
            };
            let spool = Arc::downgrade(spool);
            let thread = std::thread::Builder::new().name(format!("sealer-{number}"));
            let worker = thread.spawn(move || work_loop(&spool, lane))?;
            self.workers.lock().push(worker);
        }
        Ok(())
    }

    /// The daemon ends: nothing large is begun or gone on with.
    pub(in crate::spool) fn end_large(&self) {
        self.state.lock().small_only = true;
        self.rung.notify_all();
    }

    /// Finishes small jobs, drops the others, and ends the threads.
    pub(in crate::spool) fn stop(&self) {
        self.end_large();
        self.state.lock().ends = Some(Instant::now() + LAST_JOBS);
        self.rung.notify_all();
        for worker in std::mem::take(&mut *self.workers.lock()) {
            if worker.join().is_err() {
                tracing::error!("a sealer had panicked");
            }
        }
        // What was dropped holds gates and callbacks.
        let dropped = std::mem::replace(&mut self.state.lock().queue, Queue::new());
        if dropped.len() > 0 {
            tracing::info!(files = dropped.len(), "hashing goes on at the next start");
        }
    }

    /// Whether the daemon ends.
    pub(in crate::spool) fn are_ending(&self) -> bool {
        self.state.lock().small_only
    }

    /// The job comes back if there are too many, or the daemon has ended.
    fn push(&self, job: Job, renames: bool) -> Result<(), Job> {
        let since = self.begun.elapsed();
        let mut state = self.state.lock();
        if state.queue.len() >= JOB_CAP || state.ends.is_some() {
            return Err(job);
        }
        let waiting = Waiting {
            job,
            since,
            ranked: false,
            renames,
        };
        if renames {
            state.queue.push_rename(waiting, since);
        } else {
            state.queue.push(waiting, 0, since);
        }
        if state.idle > 0 {
            self.rung.notify_one();
        }
        Ok(())
    }

    /// Some of it is done.
    fn push_back(&self, waiting: Waiting, left: u64) {
        let mut state = self.state.lock();
        if state.ends.is_some() {
            return;
        }
        let since = waiting.since;
        state.queue.push(waiting, left, since);
        if state.idle > 0 {
            // Not every sealer takes it.
            self.rung.notify_all();
        }
    }

    fn pop(&self, lane: Lane) -> Option<Waiting> {
        let mut state = self.state.lock();
        loop {
            let lane = match state.ends {
                Some(ends) if Instant::now() >= ends => return None,
                _ if state.small_only => Lane::Small,
                Some(_) | None => lane,
            };
            if let Some(waiting) = state.queue.pop(lane) {
                return Some(waiting);
            }
            if state.ends.is_some() {
                return None;
            }
            state.idle += 1;
            self.rung.wait(&mut state);
            state.idle -= 1;
        }
    }

    /// A rename is sealed, or is none.
    fn renamed(&self) {
        let mut state = self.state.lock();
        if state.queue.renamed() && state.idle > 0 {
            self.rung.notify_one();
        }
    }

    /// Keeps a gate, and with it what was hashed of its file, for who asks under another name.
    fn keep(&self, gate: Arc<Gate>) {
        let mut state = self.state.lock();
        state.kept.push_back(gate);
        let dropped = (state.kept.len() > KEPT).then(|| state.kept.pop_front());
        drop(state);
        drop(dropped);
    }
}

/// The rename that a sealer works at.
struct Renaming<'a>(&'a Jobs);

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        self.0.renamed();
    }
}

/// Carries out jobs until the end.
fn work_loop(spool: &Weak<Spool>, lane: Lane) {
    let mut buffer = vec![0; READ_BYTES];
    // The queue outlives the spool only as long as this.
    let Some(jobs) = spool.upgrade().map(|spool| Arc::clone(&spool.outbox.jobs)) else {
        return;
    };
    while let Some(waiting) = jobs.pop(lane) {
        let Some(spool) = spool.upgrade() else { return };
        let Waiting {
            job, since, ranked, ..
        } = waiting;
        // Also if this sealer panics.
        let renaming = waiting.renames.then(|| Renaming(&jobs));
        let begun = Instant::now();
        let mut slice = Slice::new(&mut buffer, ranked);
        let (job, step) = match job {
            Job::Free(digests) => {
                spool.free_all(&digests);
                continue;
            }
            Job::Tree(mut work) => {
                spool.journal.make_room();
                let step = spool.seal_tree_step(&mut work, &mut slice);
                (Job::Tree(work), step)
            }
            Job::Seal(request) => {
                spool.journal.make_room();
                let step = spool.seal_step(&request, &mut slice);
                (Job::Seal(request), step)
            }
        };
        drop(renaming);
        match step {
            Step::Later(left) => {
                let waiting = Waiting {
                    job,
                    since: since.saturating_add(begun.elapsed()),
                    ranked: true,
                    renames: false,
                };
                jobs.push_back(waiting, left);
            }
            Step::Done(outcomes) => finish(&jobs, job, outcomes),
        }
    }
}

fn finish(jobs: &Jobs, job: Job, outcomes: Vec<SealOutcome>) {
    match job {
        Job::Seal(request) => {
            let is_gone = |outcome: &SealOutcome| matches!(outcome, SealOutcome::Gone);
            if outcomes.iter().all(is_gone) && request.gate.lock().tail_len() > 0 {
                jobs.keep(Arc::clone(&request.gate));
            }
            (request.done)(outcomes);
        }
        Job::Tree(work) => {
            let outcome = outcomes.into_iter().next();
            (work.request.done)(outcome.unwrap_or(SealOutcome::Changed));
        }
        Job::Free(_) => {}
    }
}

fn too_many() -> SealOutcome {
    SealOutcome::Failed(Arc::new(SpoolError::SealsFull))
}

impl Step {
    pub(in crate::spool) fn done(outcome: SealOutcome) -> Self {
        Self::Done(vec![outcome])
    }
}

impl Outbox {
    /// The daemon is about to end: whoever hashes something large stops, so that nobody waits for him. What is small is
    /// sealed until [`Spool::close`].
    pub(crate) fn end_large_hashing(&self) {
        self.jobs.end_large();
    }

    /// Queues a file for hashing and sealing. Never blocks on the hasher.
    pub(crate) fn seal(&self, request: SealRequest) {
        let renames = request
            .names
            .iter()
            .any(|name| self.was_renamed(&name.path));
        if let Err(Job::Seal(request)) = self.jobs.push(Job::Seal(request), renames) {
            (request.done)(vec![too_many(); request.names.len()]);
        }
    }

    /// Whether what has this name was announced under another.
    fn was_renamed(&self, path: &RelPath) -> bool {
        let row = self.name(path);
        row.is_ok_and(|row| row.is_some_and(|row| row.formerly.is_some()))
    }

    /// Queues a tree for hashing and sealing. Never blocks on the hasher.
    pub(crate) fn seal_tree(&self, request: TreeRequest) {
        let work = Box::new(TreeWork::new(request));
        if let Err(Job::Tree(work)) = self.jobs.push(Job::Tree(work), false) {
            (work.request.done)(too_many());
        }
    }

    /// Frees content that nobody needs once that is durable. For the journal's writer, which must not wait.
    pub(in crate::spool) fn free_later(&self, freed: Vec<Digest>) {
        if !freed.is_empty() && self.jobs.push(Job::Free(freed), false).is_err() {
            tracing::debug!("content that nobody needs stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    /// One sealer that takes everything, with 1 GiB/s and slices of 50 ms, and files that come at a time: when each is
    /// done.
    fn run(files: &[(&'static str, u64, Duration)]) -> Vec<(&'static str, Duration)> {
        let slice = Duration::from_millis(50);
        let mut queue: Queue<(&str, u64, Duration)> = Queue::new();
        let mut coming = files.iter().rev().copied().collect::<Vec<_>>();
        let (mut now, mut done) = (Duration::ZERO, Vec::new());
        while done.len() < files.len() {
            while let Some((name, left, at)) = coming.pop_if(|(_, _, at)| *at <= now) {
                queue.push((name, left, at), left, at);
            }
            let Some((name, left, since)) = queue.pop(Lane::Any) else {
                now += slice;
                continue;
            };
            let most = (slice.as_secs_f64() * GIB as f64) as u64;
            let ran = slice.mul_f64(left.min(most) as f64 / most as f64);
            now += ran;
            match left.saturating_sub(most) {
                0 => done.push((name, now)),
                left => queue.push((name, left, since + ran), left, since + ran),
            }
        }
        done
    }

    #[test]
    fn a_small_file_overtakes_a_large_one_that_is_being_hashed() {
        let done = run(&[("large", 40 * GIB, secs(0)), ("small", 1 << 20, secs(3))]);
        assert_eq!(done[0].0, "small");
        assert!(done[0].1 < secs(3) + Duration::from_millis(200), "{done:?}");
    }

    #[test]
    fn a_file_that_is_smaller_overtakes_also_after_a_long_time() {
        let done = run(&[("large", 400 * GIB, secs(0)), ("gib", GIB, secs(100))]);
        assert_eq!(done[0].0, "gib");
        assert!(done[0].1 < secs(102), "{done:?}");
    }

    #[test]
    fn files_of_one_size_are_done_one_after_the_other_not_all_at_the_end() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let files = names.map(|name| (name, GIB, secs(0)));
        for (nth, (name, at)) in run(&files).into_iter().enumerate() {
            assert_eq!(name, names[nth]);
            let want = secs(nth as u64 + 1);
            assert!(at < want + Duration::from_millis(500), "{name} at {at:?}");
        }
    }

    #[test]
    fn a_large_file_does_not_starve_behind_a_stream_of_smaller_ones() {
        // The stream alone takes all there is.
        let mut files = vec![("large", 20 * GIB, secs(0))];
        files.extend((0..600).map(|second| ("of the stream", GIB, secs(second))));
        let done = run(&files);
        let large = done.iter().find(|(name, _)| *name == "large").unwrap();
        assert!(large.1 < secs(200), "{:?}", large.1);
    }

    #[test]
    fn the_sealer_for_small_jobs_takes_no_large_one() {
        let mut queue = Queue::new();
        queue.push("large", SMALL + 1, secs(0));
        assert_eq!(queue.pop(Lane::Small), None);
        queue.push("small", SMALL, secs(9));
        assert_eq!(queue.pop(Lane::Small), Some("small"));
        assert_eq!(queue.pop(Lane::Any), Some("large"));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn renames_are_done_one_at_a_time_and_nobody_else_waits_for_them() {
        let mut queue = Queue::new();
        queue.push_rename("first", secs(0));
        queue.push_rename("second", secs(0));
        queue.push("small", 1, secs(1));
        queue.push("large", GIB, secs(0));
        assert_eq!(queue.pop(Lane::Small), Some("first"));
        assert_eq!(queue.pop(Lane::Small), Some("small"));
        assert_eq!(queue.pop(Lane::Small), None);
        assert_eq!(queue.pop(Lane::Any), Some("large"));
        assert!(queue.renamed());
        assert_eq!(queue.pop(Lane::Any), Some("second"));
        assert!(!queue.renamed());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn small_jobs_go_in_the_order_in_which_they_came() {
        let mut queue = Queue::new();
        for (at, name) in ["first", "second", "third"].into_iter().enumerate() {
            queue.push(name, at as u64 % 2, secs(1));
        }
        let order = [(); 3].map(|()| queue.pop(Lane::Any).unwrap());
        assert_eq!(order, ["first", "second", "third"]);
    }
}
