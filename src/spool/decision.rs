//! The lock under which the spool decides, and the proof that it is held.
//!
//! Each owner (content, outbox, inbox, ledger, group) has tables of its own, and what changes several rows of it at once is
//! a method of its [`Guard`]. Whoever has a guard holds the lock, so nothing needs to be promised in a comment. The
//! guards come together, as a [`Decision`], for as long as the owners share one lock.
//!
//! # Threads
//! Any. Held briefly, over local disk only: file operations wait for it. Lock order: gate of an inode, this, mark of an
//! inode, journal.

use std::ops::Deref;

use parking_lot::MutexGuard;

use super::Spool;
use super::content::Content;
use super::group::Group;
use super::inbox::Inbox;
use super::ledger::Ledger;
use super::outbox::Outbox;

/// Proof that nobody else decides on what `T` owns. Its methods are those that need that.
pub(super) struct Guard<'a, T> {
    owner: &'a T,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.owner
    }
}

/// All owners, none of whose rows another thread changes while this lives.
#[allow(dead_code, reason = "the tables move to their owners one by one")]
pub(super) struct Decision<'a> {
    pub(super) content: Guard<'a, Content>,
    pub(super) outbox: Guard<'a, Outbox>,
    pub(super) inbox: Guard<'a, Inbox>,
    pub(super) ledger: Guard<'a, Ledger>,
    pub(super) group: Guard<'a, Group>,
    _held: Held<'a>,
}

/// The lock.
struct Held<'a> {
    _lock: MutexGuard<'a, ()>,
}

#[cfg(test)]
impl Drop for Held<'_> {
    fn drop(&mut self) {
        NAMES.set((None, NAMES.get().1));
    }
}

#[cfg(test)]
thread_local! {
    /// How many names this thread has handled since it got the lock, if it has it, and the most so far.
    static NAMES: std::cell::Cell<(Option<usize>, usize)> = const { std::cell::Cell::new((None, 0)) };
}

/// Another name of a bundle is handled.
pub(super) fn handles_name() {
    #[cfg(test)]
    if let (Some(names), most) = NAMES.get() {
        NAMES.set((Some(names + 1), most.max(names + 1)));
    }
}

/// The most names that this thread has handled under one hold of the lock.
#[cfg(test)]
pub(super) fn most_names() -> usize {
    NAMES.get().1
}

impl Spool {
    /// Returns when nobody decides for a moment.
    pub(crate) fn pass_through(&self) {
        drop(self.decide());
    }

    /// What `look` finds while nobody decides: no link of a single file without the record that tells of it.
    pub(crate) fn while_nobody_decides<T>(&self, look: impl FnOnce() -> T) -> T {
        let _decide = self.decide();
        look()
    }

    /// Waits until nobody else decides.
    pub(super) fn decide(&self) -> Decision<'_> {
        let held = Held {
            _lock: self.deciding.lock(),
        };
        #[cfg(test)]
        NAMES.set((Some(0), NAMES.get().1));
        Decision {
            content: Guard {
                owner: &self.content,
            },
            outbox: Guard {
                owner: &self.outbox,
            },
            inbox: Guard { owner: &self.inbox },
            ledger: Guard {
                owner: &self.ledger,
            },
            group: Guard { owner: &self.group },
            _held: held,
        }
    }
}
