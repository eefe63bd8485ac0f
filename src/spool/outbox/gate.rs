//! The write gate of one inode: what stands between a writer and sealed bytes, and the tail hasher's place.
//!
//! `fs` locks the gate around every modifying operation; the sealer locks it to decide. Whoever holds the guard knows
//! that nobody else changes the inode or its seal. While writes only append, hashing follows the write head
//! ([`Tail`]), so that little is left to hash at the last close.
//!
//! # Invariants
//! 1. `generation` grows with every modification; a seal is given only if it did not change while hashing.
//! 2. A tail's hashed prefix was not written to since it was read: a write below `claimed` throws the tail away.
//!
//! Lock order: gate, then the spool's decisions, then the mark of an inode, then the journal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::digest::{Digest, Hasher};

/// Files shorter than this are hashed at the last close, in less than a millisecond or two.
const TAIL_FROM: u64 = 1 << 20;

/// The tail hasher is rung each time the head is this far in front of it.
const TAIL_STEP: u64 = 2 << 20;

/// The tail hasher takes this much at once, a few milliseconds of hashing ...
const CLAIM: u64 = 4 << 20;

/// ... or this share of the file: each claim copies a hash per MiB of what was hashed before.
const CLAIM_SHARE: u64 = 256;

/// How long a sealer waits for what the tail hasher has just claimed, before it hashes that itself: some claims when the
/// machine is idle. When it is busy the tail hasher, which has the lowest priority, may hold its claim for long.
const TAIL_PATIENCE: Duration = Duration::from_millis(20);

/// Shared by everybody who deals with one backing inode.
#[derive(Debug)]
pub(crate) struct Gate {
    ino: u64,
    state: Mutex<GateState>,
    /// Rung when a tail hasher comes back.
    tail_back: Condvar,
    /// The tail hasher was called and has not come yet.
    tail_rung: AtomicBool,
    /// Whether the journal has the `open` mark.
    marked: AtomicBool,
    /// Held around every change of the inode's mark; see `marks.rs`.
    marking: Mutex<()>,
    /// The inode has no name any more: its number may soon be another file's, with another gate.
    retired: AtomicBool,
}

/// What the gate guards.
#[derive(Debug, Default)]
pub(in crate::spool) struct GateState {
    writers: u32,
    pub(in crate::spool) generation: u64,
    /// The digest of the inode's present bytes, while they are sealed.
    pub(in crate::spool) sealed: Option<Digest>,
    /// The `open` mark is in the journal, there was none before, and nothing was modified since.
    pub(in crate::spool) untouched: bool,
    /// Bytes [0, head) were written in order from the start.
    head: u64,
    tail: Option<Box<Tail>>,
    /// Tells a hasher that comes back whether its tail is still the one wanted.
    tail_round: u64,
}

/// A hash of the first bytes of a file that is still being written.
#[derive(Debug, Default)]
struct Tail {
    /// Of what was hashed before the present claim.
    hasher: Hasher,
    /// A thread hashes on from there, with a copy.
    busy: bool,
    /// Everything below this was or is being read by the hasher.
    claimed: u64,
}

/// A stretch of the file for the tail hasher to read.
#[derive(Debug)]
pub(in crate::spool) struct TailWork {
    pub(in crate::spool) hasher: Hasher,
    pub(in crate::spool) until: u64,
    round: u64,
}

/// The locked gate.
#[derive(Debug)]
pub(crate) struct GateGuard<'a> {
    gate: &'a Gate,
    state: MutexGuard<'a, GateState>,
}

impl Gate {
    pub(in crate::spool) fn new(ino: u64, sealed: Option<Digest>) -> Self {
        let state = Mutex::new(GateState {
            sealed,
            ..GateState::default()
        });
        Self {
            ino,
            state,
            tail_back: Condvar::new(),
            tail_rung: AtomicBool::new(false),
            marked: AtomicBool::new(false),
            marking: Mutex::new(()),
            retired: AtomicBool::new(false),
        }
    }

    /// The backing inode.
    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    /// Locks, waiting if a copy-out is under way. Not for FUSE loops; those use [`Self::try_lock`].
    pub(crate) fn lock(&self) -> GateGuard<'_> {
        GateGuard {
            gate: self,
            state: self.state.lock(),
        }
    }

    /// Locks, or `None` while somebody else holds the gate: then hand the operation to a thread that may block.
    pub(crate) fn try_lock(&self) -> Option<GateGuard<'_>> {
        self.state
            .try_lock()
            .map(|state| GateGuard { gate: self, state })
    }

    /// The tail hasher was too busy to be called.
    pub(in crate::spool) fn tail_not_rung(&self) {
        self.tail_rung.store(false, Ordering::Release);
    }

    /// Held around every change of the inode's mark. Innermost: under it only the journal is called.
    pub(in crate::spool) fn marking(&self) -> MutexGuard<'_, ()> {
        self.marking.lock()
    }

    /// Nothing is sealed or marked through this gate from now on.
    pub(in crate::spool) fn retire(&self) {
        let _marking = self.marking();
        self.retired.store(true, Ordering::Release);
    }

    pub(in crate::spool) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Whether the `open` mark is in the journal.
    pub(in crate::spool) fn is_marked(&self) -> bool {
        self.marked.load(Ordering::Acquire)
    }

    /// Sets whether the `open` mark is in the journal.
    pub(in crate::spool) fn set_marked(&self, marked: bool) {
        self.marked.store(marked, Ordering::Release);
    }
}

impl<'a> GateGuard<'a> {
    /// The gate that is locked.
    pub(in crate::spool) fn shared(&self) -> &'a Gate {
        self.gate
    }
}

impl GateGuard<'_> {
    /// The gate that is locked.
    pub(crate) fn gate(&self) -> &Gate {
        self.gate
    }

    pub(in crate::spool) fn state(&mut self) -> &mut GateState {
        &mut self.state
    }

    /// A writable handle was opened.
    pub(crate) fn add_writer(&mut self) {
        self.state.writers += 1;
    }

    /// A writable handle was released; returns how many are left.
    pub(crate) fn remove_writer(&mut self) -> u32 {
        self.state.writers = self.state.writers.saturating_sub(1);
        self.state.writers
    }

    /// Open writable handles.
    pub(crate) fn writers(&self) -> u32 {
        self.state.writers
    }

    /// To be called after each WRITE, with the gate still locked: `len` bytes at `offset` were written. `true`: there
    /// is enough for the tail hasher, call `Spool::tail` (after unlocking).
    #[must_use]
    pub(crate) fn wrote(&mut self, offset: u64, len: u64) -> bool {
        let state = &mut *self.state;
        state.generation += 1;
        state.untouched = false;
        if let Some(tail) = &state.tail
            && offset < tail.claimed
        {
            state.tail = None;
            state.tail_round += 1;
        }
        if offset == state.head {
            state.head += len;
        } else if offset < state.head && offset + len > state.head {
            state.head = offset + len;
        }
        let claimed = state.tail.as_ref().map_or(0, |tail| tail.claimed);
        let idle = state.tail.as_ref().is_none_or(|tail| !tail.busy);
        idle && state.head >= TAIL_FROM
            && state.head - claimed >= TAIL_STEP
            && !self.gate.tail_rung.swap(true, Ordering::AcqRel)
    }

    /// To be called after any other modification (size change, FALLOCATE).
    pub(crate) fn reshaped(&mut self) {
        self.state.generation += 1;
        self.state.untouched = false;
        self.state.tail = None;
        self.state.tail_round += 1;
        self.state.head = 0;
    }

    /// Takes the next stretch for the tail hasher, if there is one and no thread is at it.
    pub(in crate::spool) fn begin_tail(&mut self) -> Option<TailWork> {
        self.gate.tail_rung.store(false, Ordering::Release);
        let state = &mut *self.state;
        let tail = state.tail.get_or_insert_default();
        if tail.busy || state.head <= tail.claimed {
            return None;
        }
        let most = CLAIM.max(tail.claimed / CLAIM_SHARE);
        tail.busy = true;
        tail.claimed = state.head.min(tail.claimed + most);
        Some(TailWork {
            hasher: tail.hasher.clone(),
            until: tail.claimed,
            round: state.tail_round,
        })
    }

    /// Gives the hasher back; it is dropped if the file changed below the claim meanwhile. `true`: go on with
    /// [`Self::begin_tail`].
    pub(in crate::spool) fn end_tail(&mut self, work: TailWork) -> bool {
        self.gate.tail_back.notify_all();
        let state = &mut *self.state;
        let complete = work.hasher.len() == work.until;
        match &mut state.tail {
            Some(tail) if state.tail_round == work.round && complete => {
                tail.hasher = work.hasher;
                tail.busy = false;
                state.head.saturating_sub(tail.claimed) >= TAIL_STEP
            }
            Some(_) if state.tail_round == work.round => {
                state.tail = None;
                state.tail_round += 1;
                false
            }
            Some(_) | None => false,
        }
    }

    /// How many of the first bytes are hashed.
    pub(in crate::spool) fn tail_len(&self) -> u64 {
        self.state.tail.as_ref().map_or(0, |tail| tail.hasher.len())
    }

    /// Keeps the hash of the first bytes, which [`Self::take_tail`] gave, for who goes on with it; not if the file was
    /// modified since it had `generation`.
    pub(in crate::spool) fn keep_tail(&mut self, hasher: Hasher, generation: u64) {
        let state = &mut *self.state;
        if state.generation == generation && state.tail.is_none() && !hasher.is_empty() {
            let claimed = hasher.len();
            state.tail = Some(Box::new(Tail {
                hasher,
                busy: false,
                claimed,
            }));
        }
    }

    /// The hash of the first bytes, to be continued to the end of the file; empty if there is none. Waits a moment for
    /// a thread that is hashing right now; its claim is given up when it takes longer.
    pub(in crate::spool) fn take_tail(&mut self) -> Hasher {
        let deadline = Instant::now() + TAIL_PATIENCE;
        while self.state.tail.as_ref().is_some_and(|tail| tail.busy) {
            let waited = self.gate.tail_back.wait_until(&mut self.state, deadline);
            if waited.timed_out() {
                break;
            }
        }
        let state = &mut *self.state;
        state.tail_round += 1;
        state.head = 0;
        state
            .tail
            .take()
            .map(|tail| tail.hasher)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(gate: &Gate, bytes: &[u8]) -> bool {
        let Some(mut work) = gate.lock().begin_tail() else {
            return false;
        };
        let from = work.hasher.len() as usize;
        work.hasher.update(&bytes[from..work.until as usize]);
        gate.lock().end_tail(work);
        true
    }

    #[test]
    fn the_tail_follows_an_appending_writer_and_agrees_with_the_whole() {
        let gate = Gate::new(1, None);
        let bytes = vec![5_u8; 6 << 20];
        let mut rings = 0;
        for at in (0..bytes.len()).step_by(128 << 10) {
            if gate.lock().wrote(at as u64, 128 << 10) && hash(&gate, &bytes) {
                rings += 1;
            }
        }
        assert!((2..=3).contains(&rings), "{rings}");
        let mut hasher = gate.lock().take_tail();
        assert!(hasher.len() >= 4 << 20);
        hasher.update(&bytes[hasher.len() as usize..]);
        assert_eq!(hasher.finish().digest, Digest::of(&bytes));
    }

    #[test]
    fn a_write_below_the_claim_throws_the_tail_away_also_while_a_thread_is_at_it() {
        let gate = Gate::new(1, None);
        assert!(gate.lock().wrote(0, 4 << 20));
        let mut work = gate.lock().begin_tail().unwrap();
        assert!(gate.lock().begin_tail().is_none(), "one thread at a time");
        let _ring = gate.lock().wrote(100, 1);
        work.hasher.update(&vec![0; 4 << 20]);
        assert!(!gate.lock().end_tail(work));
        assert!(gate.lock().take_tail().is_empty());
    }

    #[test]
    fn a_hasher_that_does_not_come_back_costs_only_its_claim() {
        let gate = Gate::new(1, None);
        let bytes = vec![9_u8; 9 << 20];
        assert!(gate.lock().wrote(0, 9 << 20));
        assert!(hash(&gate, &bytes), "all that it claimed");
        let mut late = gate.lock().begin_tail().unwrap();
        let mut hasher = gate.lock().take_tail();
        assert_eq!(hasher.len(), CLAIM);
        hasher.update(&bytes[CLAIM as usize..]);
        assert_eq!(hasher.finish().digest, Digest::of(&bytes));
        let from = late.hasher.len() as usize;
        late.hasher.update(&bytes[from..late.until as usize]);
        assert!(!gate.lock().end_tail(late), "nobody wants it any more");
        assert!(gate.lock().take_tail().is_empty());
    }

    #[test]
    fn the_tail_hasher_is_called_once_until_it_comes_or_cannot_be_called() {
        let gate = Gate::new(1, None);
        assert!(gate.lock().wrote(0, 2 << 20));
        assert!(!gate.lock().wrote(2 << 20, 2 << 20));
        gate.tail_not_rung();
        assert!(gate.lock().wrote(4 << 20, 2 << 20));
    }

    #[test]
    fn a_kept_tail_ends_with_the_first_write_below_it() {
        let bytes = vec![3_u8; 2 << 20];
        let kept = |modify: &dyn Fn(&mut GateGuard<'_>)| {
            let gate = Gate::new(1, None);
            let mut hasher = Hasher::default();
            hasher.update(&bytes);
            let generation = gate.lock().state().generation;
            gate.lock().keep_tail(hasher, generation);
            modify(&mut gate.lock());
            let len = gate.lock().tail_len();
            assert_eq!(gate.lock().take_tail().len(), len);
            len
        };
        assert_eq!(kept(&|_| {}), 2 << 20);
        assert_eq!(kept(&|gate| assert!(!gate.wrote(2 << 20, 1))), 2 << 20);
        assert_eq!(kept(&|gate| assert!(!gate.wrote((2 << 20) - 1, 1))), 0);
        assert_eq!(kept(&|gate| gate.reshaped()), 0);
        let gate = Gate::new(1, None);
        let generation = gate.lock().state().generation;
        let _ring = gate.lock().wrote(0, 1);
        let mut hasher = Hasher::default();
        hasher.update(&bytes);
        gate.lock().keep_tail(hasher, generation);
        assert_eq!(gate.lock().tail_len(), 0, "written while it was hashed");
    }

    #[test]
    fn a_truncation_starts_the_tail_anew() {
        let gate = Gate::new(1, None);
        let bytes = vec![1_u8; 4 << 20];
        assert!(gate.lock().wrote(0, 4 << 20));
        assert!(hash(&gate, &bytes));
        gate.lock().reshaped();
        assert!(gate.lock().take_tail().is_empty());
        assert!(gate.lock().wrote(0, 4 << 20), "from the start again");
    }

    #[test]
    fn a_write_past_a_hole_is_not_followed() {
        let gate = Gate::new(1, None);
        assert!(!gate.lock().wrote(8 << 20, 4 << 20));
        assert!(gate.lock().begin_tail().is_none());
    }

    #[test]
    fn every_modification_is_a_new_generation() {
        let gate = Gate::new(1, None);
        let before = gate.lock().state().generation;
        let _ring = gate.lock().wrote(0, 1);
        gate.lock().reshaped();
        assert_eq!(gate.lock().state().generation, before + 2);
    }
}
