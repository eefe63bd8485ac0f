//! The budget: how much memory all peers together can make us hold, and what of it each can count on.
//!
//! Whatever a peer makes us keep in memory (frames on their way in, bundles waiting to be fetched, pieces read for it) is
//! taken from its [`Purse`] first, and given back when the [`Held`] is dropped. A purse has a share that is its own alone;
//! what goes beyond is from the pool that all have in common, and of that one peer gets no more than [`POOL_OF_ONE`]. So
//! the sum never exceeds [`SHARES`] and [`POOL`] together, whatever anybody sends, and a peer that holds all it can get
//! leaves the others at least their shares. Pieces asked of a peer are bounded apart, in `fetch/turns.rs`: two idle peers
//! could hold the whole pool while others have less than one piece.
//!
//! The longest manifests weigh more than one may get of the pool. For them there is a room of its own ([`Long`]), for one
//! at a time: who has it for long and makes little of it gives way when another wants it.
//!
//! # Invariants
//! 1. The shares together are at most [`SHARES`], however many peers there are; the pool gives at most [`POOL`].
//! 2. Who waits for the pool is served in order, so that many small takers never starve a large one. Who is within its
//!    own share, or has reached the most that one may have, holds up nobody.
//! 3. What waits for the network for long (a fetch) is taken with [`Purse::try_take`] and never waited for while
//!    something else is held, so that nobody waits in a circle.
//!
//! Nothing here knows what the bytes are. No I/O; the one lock is held for a look at the queue.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// All of it.
#[cfg(test)]
pub(crate) const TOTAL: usize = SHARES + POOL;

/// The shares of all peers together.
const SHARES: usize = 8 * 1024 * 1024;

/// What all have in common.
const POOL: usize = 32 * 1024 * 1024;

/// The most that one purse gets of the pool, so that neither of a peer's two takes it all: a frame of the greatest length.
const POOL_OF_ONE: usize = 12 * 1024 * 1024;

/// The share of one peer is no larger than this, however few they are.
const SHARE_MAX: usize = 1024 * 1024;

/// The most that can be taken at once. What weighs more is one of the longest manifests, and has [`Long`].
pub(crate) const TAKE_MAX: usize = POOL_OF_ONE;

/// How long one may have the room for a long manifest in any case.
pub(crate) const LONG_KEEP: Duration = Duration::from_secs(10);

/// How long one waits for it at most: who has it for so long either gives way or is quick.
pub(crate) const LONG_WAIT: Duration = Duration::from_secs(20);

/// How often it is looked whether another waits for it.
const LOOK: Duration = Duration::from_secs(1);

/// The pool is thought to be wanted for so long after somebody found it empty.
const WANTED: Duration = Duration::from_secs(10);

/// The memory of all peers.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    /// For one manifest that weighs more than [`TAKE_MAX`].
    long: Arc<Semaphore>,
    long_wanted: AtomicUsize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            long: Arc::new(Semaphore::new(1)),
            long_wanted: AtomicUsize::new(0),
        }
    }
}

/// The room for one of the longest manifests, until this is dropped.
#[derive(Debug)]
struct Long {
    _permit: OwnedSemaphorePermit,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    purses: HashMap<u64, Account>,
    last: u64,
    /// What each of them has for itself.
    share: usize,
    /// What is taken beyond the shares, over all.
    pool: usize,
    waiting: VecDeque<Waiter>,
    /// When somebody found the pool empty.
    wanted: Option<Instant>,
}

#[derive(Debug, Default)]
struct Account {
    used: usize,
}

#[derive(Debug)]
struct Waiter {
    purse: u64,
    bytes: usize,
    bell: oneshot::Sender<()>,
}

/// Why a request is not granted now.
enum Denied {
    /// The peer has all that it can have.
    Own,
    /// The pool is empty.
    Pool,
}

impl State {
    /// The share follows from how many there are. What one has above it is from the pool.
    fn divide(&mut self) {
        let many = self.purses.len().max(1);
        self.share = (SHARES / many).min(SHARE_MAX);
        let above = |account: &Account| account.used.saturating_sub(self.share);
        self.pool = self.purses.values().map(above).sum();
    }

    fn grant(&mut self, purse: u64, bytes: usize) -> Result<(), Denied> {
        let share = self.share;
        let account = self.purses.get_mut(&purse).ok_or(Denied::Own)?;
        let before = account.used.saturating_sub(share);
        let after = (account.used + bytes).saturating_sub(share);
        if after > before && after > POOL_OF_ONE {
            return Err(Denied::Own);
        }
        if after > before && self.pool + after - before > POOL {
            self.wanted = Some(Instant::now());
            return Err(Denied::Pool);
        }
        account.used += bytes;
        self.pool += after - before;
        Ok(())
    }

    fn give_back(&mut self, purse: u64, bytes: usize) {
        self.release(purse, bytes);
        self.serve();
    }

    fn release(&mut self, purse: u64, bytes: usize) {
        let share = self.share;
        if let Some(account) = self.purses.get_mut(&purse) {
            let before = account.used.saturating_sub(share);
            account.used = account.used.saturating_sub(bytes);
            self.pool -= before - account.used.saturating_sub(share);
        }
    }

    /// Grants what can be granted to those who wait. Whoever does not listen any more gets nothing.
    fn serve(&mut self) {
        let mut left = VecDeque::new();
        let mut dry = false;
        while let Some(waiter) = self.waiting.pop_front() {
            if waiter.bell.is_closed() {
                continue;
            }
            let within = |state: &Self| {
                let used = state.purses.get(&waiter.purse).map_or(0, |a| a.used);
                used + waiter.bytes <= state.share
            };
            // Behind one who waits for the pool, only what takes nothing from it goes on.
            if dry && !within(self) {
                left.push_back(waiter);
                continue;
            }
            match self.grant(waiter.purse, waiter.bytes) {
                Ok(()) => {
                    if waiter.bell.send(()).is_err() {
                        // It left between the look and the grant.
                        self.release(waiter.purse, waiter.bytes);
                    }
                }
                Err(denied) => {
                    dry |= matches!(denied, Denied::Pool);
                    left.push_back(waiter);
                }
            }
        }
        self.waiting = left;
    }
}

impl Budget {
    /// A purse for a peer that connects. Its share is its own until the purse and all that was taken from it is gone.
    pub(crate) fn purse(self: &Arc<Self>) -> Arc<Purse> {
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        state.purses.insert(number, Account::default());
        state.divide();
        drop(state);
        Arc::new(Purse {
            budget: self.clone(),
            number,
        })
    }

    /// Whether others want more of the pool than there is.
    pub(crate) fn is_wanted(&self) -> bool {
        let wanted = self.state.lock().wanted;
        wanted.is_some_and(|at| at.elapsed() < WANTED)
    }

    /// What is taken at present.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.state.lock().purses.values().map(|a| a.used).sum()
    }
}

/// What one peer may make us hold.
#[derive(Debug)]
pub(crate) struct Purse {
    budget: Arc<Budget>,
    number: u64,
}

impl Purse {
    /// Takes `bytes`, at most [`TAKE_MAX`], as soon as they are there.
    pub(crate) async fn take(self: &Arc<Self>, bytes: usize) -> Held {
        let bytes = bytes.min(TAKE_MAX);
        let heard = {
            let mut state = self.budget.state.lock();
            let used = state.purses.get(&self.number).map_or(0, |a| a.used);
            let first = state.waiting.is_empty() || used + bytes <= state.share;
            if first && state.grant(self.number, bytes).is_ok() {
                return self.held(bytes);
            }
            let (bell, heard) = oneshot::channel();
            state.waiting.push_back(Waiter {
                purse: self.number,
                bytes,
                bell,
            });
            // Somebody who left may be all that was before it.
            state.serve();
            heard
        };
        let mut wait = Waiting {
            purse: self,
            bytes,
            heard,
            over: false,
        };
        // The sender is dropped only with the budget itself, which we hold.
        let _ = (&mut wait.heard).await;
        wait.over = true;
        drop(wait);
        self.held(bytes)
    }

    /// Takes `bytes` if they are there now; others who wait for the pool come first.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let mut state = self.budget.state.lock();
        let used = state.purses.get(&self.number).map_or(0, |a| a.used);
        let first = state.waiting.is_empty() || used + bytes <= state.share;
        let granted = first && state.grant(self.number, bytes).is_ok();
        drop(state);
        granted.then(|| self.held(bytes))
    }

    fn held(self: &Arc<Self>, bytes: usize) -> Held {
        Held {
            purse: self.clone(),
            bytes,
            long: None,
        }
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.purses.remove(&self.number);
        state.divide();
        state.serve();
    }
}

/// One who waits: if it is dropped after the grant and before it looked, the grant goes back.
struct Waiting<'a> {
    purse: &'a Purse,
    bytes: usize,
    heard: oneshot::Receiver<()>,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.heard.close();
        let granted = self.heard.try_recv().is_ok();
        let mut state = self.purse.budget.state.lock();
        if granted {
            state.give_back(self.purse.number, self.bytes);
        } else {
            state.serve();
        }
    }
}

/// Memory that was taken; it goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    purse: Arc<Purse>,
    bytes: usize,
    long: Option<Long>,
}

impl Held {
    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds the room for one of the longest manifests from now on, instead of what it held; waits for it at most
    /// [`LONG_WAIT`]. `false`: somebody else has it.
    pub(crate) async fn lengthen(&mut self) -> bool {
        let budget = self.purse.budget.clone();
        budget.long_wanted.fetch_add(1, Ordering::Relaxed);
        let permit = timeout(LONG_WAIT, budget.long.clone().acquire_owned()).await;
        budget.long_wanted.fetch_sub(1, Ordering::Relaxed);
        let Ok(Ok(permit)) = permit else {
            return false;
        };
        self.long = Some(Long {
            _permit: permit,
            since: Instant::now(),
        });
        self.resize(0);
        true
    }

    /// Whether it is the room for one of the longest manifests.
    pub(crate) fn is_long(&self) -> bool {
        self.long.is_some()
    }

    /// Whether another wants that room, which was held for long enough.
    pub(crate) fn is_wanted(&self) -> bool {
        let wanted = self.purse.budget.long_wanted.load(Ordering::Relaxed) > 0;
        let long = self.long.as_ref();
        wanted && long.is_some_and(|long| long.since.elapsed() >= LONG_KEEP)
    }

    /// Comes when it should be given up for another: see [`Self::is_wanted`].
    pub(crate) async fn wanted(&self) {
        while !self.is_wanted() {
            sleep(LOOK).await;
        }
    }

    /// Holds `bytes` from now on, at most [`TAKE_MAX`]; `false` if so much more is not there now.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        let bytes = bytes.min(TAKE_MAX);
        let Some(more) = bytes.checked_sub(self.bytes) else {
            let less = self.bytes - bytes;
            self.bytes = bytes;
            let budget = &self.purse.budget;
            budget.state.lock().give_back(self.purse.number, less);
            return true;
        };
        let Some(mut more) = self.purse.try_take(more) else {
            return false;
        };
        self.bytes += std::mem::take(&mut more.bytes);
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let budget = &self.purse.budget;
        budget.state.lock().give_back(self.purse.number, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_peer_gets_its_share_and_a_part_of_the_pool_and_the_others_notice_nothing() {
        let budget = Arc::new(Budget::default());
        let (greedy, other) = (budget.purse(), budget.purse());
        let mut held = Vec::new();
        while let Some(more) = greedy.try_take(MIB) {
            held.push(more);
        }
        assert_eq!(budget.used(), SHARE_MAX + POOL_OF_ONE);
        let mut waits = pin!(greedy.take(1));
        assert!(poll(waits.as_mut()).is_none());
        // Its waiting holds up nobody.
        let large = poll(pin!(other.take(TAKE_MAX))).unwrap();
        assert_eq!(large.bytes(), TAKE_MAX);
        held.pop();
        assert!(poll(waits.as_mut()).is_some());
    }

    #[test]
    fn when_the_pool_is_empty_everybody_still_has_its_share() {
        let budget = Arc::new(Budget::default());
        let greedy: Vec<_> = (0..6).map(|_| budget.purse()).collect();
        let late = budget.purse();
        let take_all = |purse: &Arc<Purse>| {
            std::iter::from_fn(|| purse.try_take(64 * 1024)).collect::<Vec<_>>()
        };
        let all: Vec<_> = greedy.iter().map(take_all).collect();
        assert!(budget.used() <= TOTAL);
        let mine = poll(pin!(late.take(SHARE_MAX))).unwrap();
        assert!(late.try_take(POOL).is_none());
        assert!(budget.used() <= TOTAL);
        drop((all, mine));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_large_taker_is_not_starved_by_small_ones_and_who_gives_up_is_passed_over() {
        let budget = Arc::new(Budget::default());
        let [a, b, c, d] = [(); 4].map(|()| budget.purse());
        let first = a.try_take(SHARE_MAX + POOL_OF_ONE).unwrap();
        let second = b.try_take(SHARE_MAX + POOL_OF_ONE - 2 * MIB).unwrap();
        let third = c.try_take(SHARE_MAX).unwrap();
        let fourth = d.try_take(SHARE_MAX + 4 * MIB).unwrap();
        let mut large = Box::pin(c.take(10 * MIB));
        assert!(poll(large.as_mut()).is_none());
        assert!(b.try_take(MIB).is_none(), "one waits before it");
        let mut small = pin!(b.take(MIB));
        assert!(poll(small.as_mut()).is_none());
        drop(large);
        let small = poll(small.as_mut()).expect("who was before it left");
        drop((first, small));
        let mut large = pin!(c.take(10 * MIB));
        let large = poll(large.as_mut()).unwrap();
        drop((second, third, fourth, large));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_grant_that_nobody_takes_goes_back() {
        let budget = Arc::new(Budget::default());
        let purse = budget.purse();
        let all = purse.try_take(SHARE_MAX + POOL_OF_ONE).unwrap();
        let mut waits = Box::pin(purse.take(MIB));
        assert!(poll(waits.as_mut()).is_none());
        drop(all);
        assert_eq!(budget.used(), MIB);
        drop(waits);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_given_back_in_part_is_there_for_others() {
        let budget = Arc::new(Budget::default());
        let purse = budget.purse();
        let mut held = purse.try_take(SHARE_MAX + POOL_OF_ONE).unwrap();
        let mut waits = pin!(purse.take(MIB));
        assert!(poll(waits.as_mut()).is_none());
        assert!(held.resize(TAKE_MAX));
        assert!(poll(waits.as_mut()).is_some());
        assert_eq!(budget.used(), TAKE_MAX);
        assert!(held.resize(MIB) && held.resize(3 * MIB));
        assert_eq!(budget.used(), 3 * MIB);
        let all = purse.try_take(TAKE_MAX - 2 * MIB).unwrap();
        assert!(!held.resize(4 * MIB) && held.bytes() == 3 * MIB);
        drop(all);
    }

    proptest! {
        /// Any order of coming, taking, giving back and leaving: never more than the total once the peers are all
        /// there, nothing lost, and at the end everybody gets what it waits for.
        #[test]
        fn the_sum_is_bounded_and_nothing_is_lost(
            steps in prop::collection::vec((0_usize..5, 1_usize..14 * MIB, any::<bool>()), 1..80)
        ) {
            let budget = Arc::new(Budget::default());
            let purses: Vec<_> = (0..5).map(|_| budget.purse()).collect();
            let (mut held, mut waiting) = (Vec::new(), Vec::new());
            for (who, bytes, gives) in steps {
                if gives && !held.is_empty() {
                    held.swap_remove(bytes % held.len());
                } else {
                    let purse = purses[who].clone();
                    waiting.push(Box::pin(async move { purse.take(bytes).await }));
                }
                let mut still = Vec::new();
                for mut wait in waiting {
                    match poll(wait.as_mut()) {
                        Some(got) => held.push(got),
                        None => still.push(wait),
                    }
                }
                waiting = still;
                prop_assert!(budget.used() <= TOTAL);
                prop_assert_eq!(budget.used(), held.iter().map(Held::bytes).sum::<usize>());
            }
            while !waiting.is_empty() {
                prop_assert!(!held.is_empty(), "somebody waits for nothing");
                held.pop();
                let mut still = Vec::new();
                for mut wait in waiting {
                    match poll(wait.as_mut()) {
                        Some(got) => held.push(got),
                        None => still.push(wait),
                    }
                }
                waiting = still;
            }
            held.clear();
            prop_assert_eq!(budget.used(), 0);
            prop_assert_eq!(budget.state.lock().pool, 0);
        }
    }
}
