//! The lock under which the spool decides, and the proof that it is held.
//!
//! Each owner (outbox, inbox, custody, content, ledger, group) has tables of its own, and what changes several rows of it at once, or
//! must see several of them unchanged, is a method of its [`Guard`]. Whoever has a guard holds the lock, so nothing needs to
//! be promised in a comment. A guard leads to those of the owners further right in the order outbox → inbox → content →
//! ledger → group, never to the left. What spans outbox and inbox takes a [`Decision`], and so does the inbox, which has no guard
//! of its own yet.
//!
//! Custody ([`super::custody`]) stands between the two left ones and content, and decides with the guard of content.
//!
//! It is one lock for all, and that of the group would do: a guard proves the locks to its right, so every two guards exclude
//! each other, with a mutex for each owner as well. To let one owner decide beside another, a guard has to take the
//! locks to its right only when it is asked for their guards, and whoever reads rows of another owner before that has to
//! read them again.
//!
//! # Threads
//! Any. Held briefly, over local disk only: file operations wait for it. Lock order: gate of an inode, this, mark of an
//! inode, journal. It does not nest: who has a guard calls nothing that decides.

use std::ops::Deref;
use std::rc::Rc;

use parking_lot::{Mutex, MutexGuard};

use super::Spool;
use super::content::Content;
use super::custody::Custodian;
use super::group::Group;
use super::ledger::Ledger;
use super::outbox::Outbox;

/// Proof that nobody else decides on what `T` owns, nor on what the owners to its right do. Its methods are those that
/// need that.
pub(super) struct Guard<'a, T> {
    owner: &'a T,
    held: Rc<Held<'a>>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.owner
    }
}

/// No row of any owner is changed by another thread while this lives.
pub(super) struct Decision<'a> {
    pub(super) outbox: Guard<'a, Outbox>,
    pub(super) content: Guard<'a, Content>,
    pub(super) group: Guard<'a, Group>,
}

/// The lock of all owners. The rightmost one has it.
#[derive(Debug, Default)]
pub(super) struct Deciding(Mutex<()>);

impl Deciding {
    fn lock(&self) -> Rc<Held<'_>> {
        let held = Held {
            _lock: self.0.lock(),
        };
        #[cfg(test)]
        NAMES.set((Some(0), NAMES.get().1));
        Rc::new(held)
    }
}

/// Held until the last guard of one decision is gone.
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

impl Group {
    /// Waits until nobody else decides.
    pub(super) fn decide(&self) -> Guard<'_, Self> {
        Guard {
            owner: self,
            held: self.deciding.lock(),
        }
    }
}

impl Ledger {
    /// Waits until nobody else decides.
    pub(super) fn decide(&self) -> Guard<'_, Self> {
        Guard {
            owner: self,
            held: self.group.deciding.lock(),
        }
    }
}

impl<'a> Guard<'a, Ledger> {
    pub(super) fn group(&self) -> Guard<'a, Group> {
        Guard {
            owner: &self.owner.group,
            held: Rc::clone(&self.held),
        }
    }
}

impl Content {
    /// Waits until nobody else decides.
    pub(super) fn decide(&self) -> Guard<'_, Self> {
        Guard {
            owner: self,
            held: self.ledger.group.deciding.lock(),
        }
    }
}

impl<'a> Guard<'a, Content> {
    pub(super) fn ledger(&self) -> Guard<'a, Ledger> {
        Guard {
            owner: &self.owner.ledger,
            held: Rc::clone(&self.held),
        }
    }
}

impl Custodian {
    /// Waits until nobody else decides.
    pub(super) fn decide(&self) -> Guard<'_, Content> {
        self.content.decide()
    }
}

impl Outbox {
    /// Waits until nobody else decides.
    pub(super) fn decide(&self) -> Guard<'_, Self> {
        Guard {
            owner: self,
            held: self.content.ledger.group.deciding.lock(),
        }
    }
}

impl<'a> Guard<'a, Outbox> {
    pub(super) fn content(&self) -> Guard<'a, Content> {
        Guard {
            owner: &self.owner.content,
            held: Rc::clone(&self.held),
        }
    }
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
        let outbox = self.outbox.decide();
        let content = outbox.content();
        Decision {
            outbox,
            group: content.ledger().group(),
            content,
        }
    }
}
