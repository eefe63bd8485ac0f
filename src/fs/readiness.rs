//! Drives the state machine of [`crate::ready`]: feeds it what happened, wakes it when its time comes, and carries out
//! what it decides.
//!
//! Marks are made by whoever feeds, before the operation is answered: what a RELEASE decided must outlive a kill right
//! after it. Who holds the gate of the inode says so ([`Readiness::feed_held`]); for others an inode that is open stays
//! marked as such, and its close decides.
//!
//! # Threads
//! Feeding takes one short mutex, and is done under the gate or the tree lock, in the order of the operations; a mark is one
//! append to the journal's log, after that mutex. One thread, `ready-timer`, carries out all other actions in the order
//! they were decided; its queue holds at most the few actions that each file of the state machine has outstanding.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::bundle::RelPath;
use crate::ready::{Action, Event, Overview, Ready, Settings, Shown};
use crate::spool::Spool;

/// The state machine with its clock.
pub(crate) struct Readiness {
    spool: Arc<Spool>,
    start: Instant,
    state: Mutex<State>,
    bell: Condvar,
}

struct State {
    ready: Ready,
    actions: VecDeque<Action>,
    stopped: bool,
}

impl Readiness {
    pub(crate) fn new(settings: Settings, spool: Arc<Spool>) -> Self {
        let state = State {
            ready: Ready::new(settings),
            actions: VecDeque::new(),
            stopped: false,
        };
        Self {
            spool,
            start: Instant::now(),
            state: Mutex::new(state),
            bell: Condvar::new(),
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Another quiet time from now on.
    pub(crate) fn set_settle(&self, settle: Duration) {
        self.state.lock().ready.set_settle(settle);
    }

    /// Something happened to a file of the outbox whose gate the caller does not hold.
    pub(crate) fn feed(&self, event: Event) {
        for action in self.decide(event) {
            match action {
                Action::MarkClosed { ino, .. } => self.spool.outbox.mend_mark(ino),
                Action::Unmark { ino } => self.spool.outbox.unmark_closed(ino),
                Action::MarkTorn { .. }
                | Action::Seal { .. }
                | Action::SealTree { .. }
                | Action::DropTree { .. }
                | Action::CountRemoved { .. }
                | Action::CountIgnored { .. } => {}
            }
        }
    }

    /// Something happened to a file of the outbox whose gate the caller holds, or that nobody else can be at.
    pub(crate) fn feed_held(&self, event: Event) {
        for action in self.decide(event) {
            match action {
                Action::MarkClosed { ino, path } => self.spool.outbox.mark_closed(ino, &path),
                Action::MarkTorn { ino, path } => {
                    tracing::info!(%path, "its writer was killed, or a write failed: held back as incomplete");
                    self.spool.outbox.mark_torn(ino, &path);
                }
                Action::Unmark { ino } => self.spool.outbox.unmark(ino),
                Action::Seal { .. }
                | Action::SealTree { .. }
                | Action::DropTree { .. }
                | Action::CountRemoved { .. }
                | Action::CountIgnored { .. } => {}
            }
        }
    }

    /// Recovery found a file: it has made the mark that this needs, unless the machine knows better.
    pub(crate) fn feed_found(&self, event: Event) {
        for action in self.decide(event) {
            match action {
                Action::MarkTorn { ino, path } => self.spool.outbox.mark_torn(ino, &path),
                Action::Unmark { ino } => self.spool.outbox.unmark(ino),
                Action::MarkClosed { .. }
                | Action::Seal { .. }
                | Action::SealTree { .. }
                | Action::DropTree { .. }
                | Action::CountRemoved { .. }
                | Action::CountIgnored { .. } => {}
            }
        }
    }

    /// Feeds the machine and queues what the timer is to carry out; gives the marks to be made.
    fn decide(&self, event: Event) -> Vec<Action> {
        let mut state = self.state.lock();
        let before = state.ready.next_deadline();
        let now = self.now();
        let mut actions = state.ready.handle(event, now);
        let is_mark = |action: &Action| {
            matches!(
                action,
                Action::MarkClosed { .. } | Action::MarkTorn { .. } | Action::Unmark { .. }
            )
        };
        let marks = if actions.iter().any(is_mark) {
            let (marks, others) = actions.into_iter().partition(is_mark);
            actions = others;
            marks
        } else {
            Vec::new()
        };
        // Who waits for an earlier deadline finds a later one by itself.
        let sooner = match (state.ready.next_deadline(), before) {
            (Some(now), Some(before)) => now < before,
            (Some(_), None) => true,
            (None, Some(_) | None) => false,
        };
        let ring = !actions.is_empty() || sooner;
        state.actions.extend(actions);
        drop(state);
        if ring {
            self.bell.notify_one();
        }
        marks
    }

    /// What to show of a file that is not sealed; `None` if the spool knows it better.
    pub(crate) fn shown(&self, ino: u64, path: &RelPath) -> Option<Shown> {
        self.state.lock().ready.shown(ino, path)
    }

    /// What is not sealed.
    pub(crate) fn overview(&self, most: usize) -> Overview {
        self.state.lock().ready.overview(most)
    }

    /// Why a file is held back, if a write to it failed.
    pub(crate) fn failure(&self, ino: u64) -> Option<String> {
        let errno = self.state.lock().ready.failure(ino)?;
        let what = std::io::Error::from_raw_os_error(errno);
        Some(format!("a write failed: {what}"))
    }

    /// What to show of a directory that is to be sent as one bundle.
    pub(crate) fn shown_directory(&self, path: &RelPath) -> Option<Shown> {
        self.state.lock().ready.shown_directory(path)
    }

    /// Whether renaming a directory like this commits it as one bundle.
    pub(crate) fn is_commit(&self, from: &RelPath, to: &RelPath) -> bool {
        self.state.lock().ready.is_commit(from, to)
    }

    /// The directories waiting to be sent as one bundle that move when `from` becomes `to`.
    pub(crate) fn trees_below(&self, from: &RelPath, to: &RelPath) -> Vec<(u64, RelPath, RelPath)> {
        self.state.lock().ready.trees_below(from, to)
    }

    /// Waits for actions and hands them to `carry_out` until [`Self::stop`].
    pub(crate) fn run(&self, carry_out: impl Fn(Action)) {
        let mut state = self.state.lock();
        while !state.stopped {
            let now = self.now();
            if state
                .ready
                .next_deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                let actions = state.ready.tick(now);
                state.actions.extend(actions);
            }
            if let Some(action) = state.actions.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut state, || carry_out(action));
                continue;
            }
            match state.ready.next_deadline() {
                Some(deadline) => {
                    let _timed_out = self.bell.wait_for(&mut state, deadline.saturating_sub(now));
                }
                None => self.bell.wait(&mut state),
            }
        }
        // What was decided is done.
        while let Some(action) = state.actions.pop_front() {
            parking_lot::MutexGuard::unlocked(&mut state, || carry_out(action));
        }
    }

    /// Ends [`Self::run`]. What is still settling keeps its mark on disk.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.bell.notify_one();
    }
}
