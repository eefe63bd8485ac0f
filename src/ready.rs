//! When a file in the outbox is ready: file events go in, "seal this inode under that name" comes out.
//!
//! `fs` calls [`Ready::handle`] after each operation that matters and [`Ready::tick`] at [`Ready::next_deadline`], both
//! with the present time, and carries out the [`Action`]s. Nothing here touches a file, a clock or a thread, and nothing
//! here knows FUSE, the spool or peers.
//!
//! # The rule
//! Everything is kept per inode, and the names are looked up when the seal is due, since a RENAME may be handled before
//! the RELEASE that precedes it. A name is sealed when no writable handle is open, the content or the name is new, no
//! writer was killed or had a write fail, no component of the path is ignored, and the settle time has passed since the last close of a
//! writable handle, truncate, rename or link. The last RELEASE decides; FLUSH comes with every `close` of a duplicate
//! and never does. The settle time is longer where the name is likely to vanish again: see [`SLOW_SETTLE`] and
//! `recent.rs`.
//!
//! Bytes, mode and time belong to the inode: when they change, every name of it that is not ignored is sealed again, in one
//! decision once the slowest of them has settled, at most [`NAMES_AT_ONCE`] at a time.
//!
//! A directory renamed from an ignored name to an ordinary one is a tree: what was in it is sealed together, and waits
//! until none of it is open or incomplete; see `tree.rs`.
//!
//! # Invariants
//! 1. No [`Action::Seal`] while a writable handle is open, and none for an ignored name unless the user asked for it.
//! 2. At most one seal is under way per inode, and at most one per path, so versions of a path are sealed in order.
//! 3. Memory holds only inodes that are open for writing, waiting to be sealed, being sealed or incomplete, and for a
//!    bounded time the names announced last.
//! 4. An inode that was modified leaves memory by a seal, or by [`Action::Unmark`].
//! 5. While an inode is open for writing or was modified, all its names are in memory: the event that brought it there says
//!    which it had, later ones what became of them.
//!
//! # Crash behaviour
//! All state is lost. [`Action::MarkClosed`] and [`Action::MarkTorn`] come at the operation that decided, not after the
//! settle time, so recovery can feed the same files back as [`Event::Recovered`].
//!
//! # Threads
//! One owner; `fs` keeps it behind a lock.

mod event;
mod exchange;
mod ignore;
mod inode;
mod leaving;
mod order;
mod overview;
mod recent;
mod seal;
#[cfg(test)]
mod tests;
mod tree;
mod writing;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

pub(crate) use self::event::{Action, Due, Event, Gone, Ino, Moved, SealResult, Shown};
pub(crate) use self::ignore::IgnoreList;
use self::inode::{Inode, Lifted, Name, Torn, is_temporary};
use self::leaving::{KEPT_CAPACITY, Leaving};
pub(crate) use self::overview::Overview;
use self::recent::RecentNames;
use self::tree::state::Tree;
use crate::bundle::RelPath;

/// Settle time of names that tend to vanish: `mkstemp` files (rsync renames up to 22 ms after the close on a busy
/// machine), empty files that nobody wrote (placeholders), and files changed without being open.
pub(crate) const SLOW_SETTLE: Duration = Duration::from_secs(1);
/// Names of one inode that are sealed in one decision.
pub(crate) const NAMES_AT_ONCE: usize = 256;
/// After a seal that met a writer of which no event has come yet.
const CHANGED_RETRY: Duration = Duration::from_millis(10);
/// First and longest pause after a seal that failed on our own disk; doubled in between. It never gives up: the file
/// was closed, and what was closed is promised to be sent.
const FAILED_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// What the machine is told at start.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Quiet time after the last close of an ordinary writer; may be zero.
    pub settle: Duration,
    /// Names that are not sent.
    pub ignore: IgnoreList,
}

impl Settings {
    /// Settings with these values.
    pub(crate) fn new(settle: Duration, ignore: IgnoreList) -> Self {
        Self { settle, ignore }
    }
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Ready {
    settings: Settings,
    inodes: HashMap<Ino, Inode>,
    /// When each waiting inode is due; mirrors `Inode::timer`.
    timers: BTreeSet<(Duration, Ino)>,
    /// Paths being sealed, and the inodes that wait for that.
    in_flight: HashMap<RelPath, Vec<Ino>>,
    leaving: Leaving,
    recent: RecentNames,
    /// Trees that wait or are being sealed, by the number the spool gave them.
    trees: BTreeMap<u64, Tree>,
    /// Which tree an inode belongs to.
    tree_of: HashMap<Ino, u64>,
    /// When each waiting tree is due; mirrors `Tree::due`.
    tree_timers: BTreeSet<(Duration, u64)>,
}

impl Ready {
    /// A machine that knows of no file yet.
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            inodes: HashMap::new(),
            timers: BTreeSet::new(),
            in_flight: HashMap::new(),
            leaving: Leaving::default(),
            recent: RecentNames::default(),
            trees: BTreeMap::new(),
            tree_of: HashMap::new(),
            tree_timers: BTreeSet::new(),
        }
    }

    /// Another quiet time from now on; what waits already keeps its own.
    pub(crate) fn set_settle(&mut self, settle: Duration) {
        self.settings.settle = settle;
    }

    /// Takes in what happened. `now` counts from any fixed start.
    pub(crate) fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        if self.take_in(event, now, &mut out) {
            self.fire(now, &mut out);
        }
        out
    }

    /// Notes what happened, and what is due when because of it. Whether it changed anything of that.
    fn take_in(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) -> bool {
        match event {
            Event::Wrote { ino, fh } => return self.wrote(ino, fh, now, out),
            Event::Created {
                ino,
                path,
                fh: _,
                rdwr,
                excl,
                mode,
            } => {
                let temporary = is_temporary(&path, rdwr, excl, mode);
                self.created(ino, path, temporary, now, out);
            }
            Event::Opened {
                ino,
                path,
                names,
                fh: _,
            } => {
                self.all_named(ino, names);
                self.opened(ino, path, now, out);
            }
            Event::Truncated {
                ino,
                path,
                names,
                fh,
                size,
            } => {
                self.all_named(ino, names);
                self.truncated(ino, path, fh, size, now, out);
            }
            Event::Dressed { ino, names } => self.dressed(ino, names, now, out),
            Event::WriteFailed { ino, fh, errno } => self.write_failed(ino, fh, errno),
            Event::Flushed { ino, fh, torn } => self.flushed(ino, fh, torn),
            Event::Released { ino, fh } => self.released(ino, fh, now, out),
            Event::Recovered {
                ino,
                path,
                incomplete,
            } => self.recovered(ino, path, incomplete, now, out),
            Event::SendNow { ino, path } => self.send_now(ino, path, now, out),
            Event::SealDone { ino, results } => self.seal_done(ino, results, now, out),
            Event::Linked { ino, path } => self.linked(ino, path, now, out),
            Event::Unlinked {
                ino,
                path,
                names_left,
            } => self.removed(Gone { ino, names_left }, &path, now, out),
            Event::Renamed {
                ino,
                from,
                to,
                replaced,
            } => return self.replaced(ino, &from, to, replaced, now, out),
            Event::Exchanged { a, b } => self.exchanged(a, b, now, out),
            Event::DirRenamed { from, to, files } => {
                self.directory_renamed(&from, &to, files, now, out);
            }
            Event::TreeRenamed {
                tree,
                from,
                to,
                files,
                directories,
            } => {
                self.trees_moved(|path| path.rebase(&from, &to), now, out);
                self.begin_tree(tree, Some(&from), to, files, directories, now, out);
            }
            Event::TreeRecovered {
                tree,
                root,
                files,
                directories,
            } => self.tree_recovered(tree, root, files, directories, now, out),
            Event::TreeDone { tree, result } => self.tree_done(tree, result, now, out),
        }
        true
    }

    /// Lets time pass; to be called at [`Self::next_deadline`].
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        self.recent.sweep(now);
        self.fire(now, &mut out);
        out
    }

    /// When [`Self::tick`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let due = self.timers.first().map(|(at, _)| *at);
        let tree = self.tree_timers.first().map(|(at, _)| *at);
        let recent = self.recent.deadline();
        due.into_iter().chain(tree).chain(recent).min()
    }

    /// What to show of `path`; `None` if this is for the spool to say.
    pub(crate) fn shown(&self, ino: Ino, path: &RelPath) -> Option<Shown> {
        let inode = self.inodes.get(&ino);
        if let Some(tree) = self.tree_with(ino, path) {
            let own = inode.filter(|inode| inode.writers > 0 || inode.torn != Torn::No);
            match own {
                Some(inode) if inode.writers > 0 => return Some(Shown::Open),
                Some(_) => return Some(Shown::Incomplete),
                None => return self.trees.get(&tree).map(Tree::shown),
            }
        }
        let forced = inode.is_some_and(|i| i.names.iter().any(|n| n.forced && n.path == *path));
        if let Some(pattern) = self.settings.ignore.matches(path).filter(|_| !forced) {
            return Some(Shown::Ignored(pattern.to_owned()));
        }
        let inode = inode?;
        let due = inode.dirty
            || inode
                .names
                .iter()
                .any(|n| n.due.is_some() && n.path == *path);
        Some(if inode.writers > 0 {
            Shown::Open
        } else if inode
            .sealing
            .as_ref()
            .is_some_and(|s| s.name(path).is_some())
        {
            Shown::Sealing
        } else if inode.torn != Torn::No {
            Shown::Incomplete
        } else if !due {
            // Something is to be done about another name only.
            return None;
        } else if inode.failures > 0 {
            Shown::Retrying
        } else {
            Shown::Settling
        })
    }

    /// The error that made a file incomplete, if a write failed.
    pub(crate) fn failure(&self, ino: Ino) -> Option<i32> {
        self.inodes.get(&ino)?.failed
    }

    fn name(&self, ino: Ino, path: RelPath) -> Name {
        let ignored = self.settings.ignore.matches(&path).is_some();
        let tree = self.tree_with(ino, &path);
        Name {
            path,
            ignored,
            temporary: false,
            forced: false,
            due: None,
            renamed_from: None,
            tree,
            late: false,
        }
    }

    /// The inode, which has this name from now on at the latest.
    fn named(&mut self, ino: Ino, path: RelPath) -> &mut Inode {
        let name = self.name(ino, path);
        let inode = self.inodes.entry(ino).or_default();
        if inode.name_mut(&name.path).is_none() {
            inode.names.push(name);
        }
        inode
    }

    /// The inode, if it has several names, has these; those that are made from now on are told as they are made.
    fn all_named(&mut self, ino: Ino, names: Vec<RelPath>) {
        for path in names {
            self.named(ino, path);
        }
    }

    /// Something was modified, named or closed: decides what is due when, unless a writer is open, whose close will.
    fn decide(&mut self, ino: Ino, now: Duration, at_least: Duration, out: &mut Vec<Action>) {
        self.decide_alone(ino, now, at_least, out);
        self.tree_touched(ino, now);
    }

    fn decide_alone(&mut self, ino: Ino, now: Duration, at_least: Duration, out: &mut Vec<Action>) {
        let Some(inode) = self.inodes.get_mut(&ino).filter(|inode| inode.writers == 0) else {
            return;
        };
        if inode.dirty && inode.torn != Torn::No && inode.wanted().next().is_some() {
            inode.names.iter_mut().for_each(|name| name.due = None);
            let path = inode.wanted().next().map(|name| name.path.clone());
            out.extend(path.map(|path| Action::MarkTorn { ino, path }));
            return self.rearm(ino, out);
        }
        let pending = inode.dirty || inode.names.iter().any(|name| name.due.is_some());
        let slow = if inode.written {
            Duration::ZERO
        } else {
            SLOW_SETTLE
        };
        let settle = self.settings.settle.max(at_least).max(slow);
        for name in &mut inode.names {
            if inode.dirty && name.is_dressed() {
                name.renamed_from = None;
            }
            if let Some(tree) = name.tree {
                // Its tree sends it; what changes while that is under way is the next version.
                let sealing = self.trees.get(&tree).is_some_and(|tree| tree.sealing);
                name.late |= inode.dirty && sealing;
                name.due = None;
            } else if name.is_ignored() {
                name.due = None;
            } else if name.forced {
                name.due = Some(now);
            } else if inode.dirty || name.due.is_some() {
                let settle = if name.temporary {
                    settle.max(SLOW_SETTLE)
                } else {
                    settle
                };
                name.due = Some(self.recent.hold(&name.path, now, now + settle));
            }
        }
        inode.dirty = false;
        inode.mend();
        inode.failures = 0;
        if let Some(path) = inode
            .names
            .iter()
            .find(|name| {
                let due = name.due.is_some() && !name.is_dressed();
                due || (pending && name.tree.is_some())
            })
            .map(|name| name.path.clone())
        {
            inode.marked = true;
            out.push(Action::MarkClosed { ino, path });
        } else if let Some(name) = inode
            .names
            .first()
            .filter(|_| pending && inode.wanted().next().is_none())
        {
            out.push(Action::CountIgnored {
                path: name.path.clone(),
            });
        }
        self.rearm(ino, out);
    }

    /// A name was made beside others.
    fn linked(&mut self, ino: Ino, path: RelPath, now: Duration, out: &mut Vec<Action>) {
        let inode = self.named(ino, path.clone());
        if let Some(name) = inode.name_mut(&path).filter(|name| !name.ignored) {
            name.due = Some(now);
        }
        self.decide(ino, now, Duration::ZERO, out);
    }

    /// A file has another name, in place of what was there; `false` if that was the file itself.
    fn replaced(
        &mut self,
        ino: Ino,
        from: &RelPath,
        to: RelPath,
        gone: Option<Gone>,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> bool {
        if gone.is_some_and(|gone| gone.ino == ino) {
            return false;
        }
        if let Some(gone) = gone {
            self.unlinked(gone, &to, now, out);
        }
        self.renamed(ino, from, to, now, out);
        true
    }

    fn directory_renamed(
        &mut self,
        from: &RelPath,
        to: &RelPath,
        files: Vec<(Ino, RelPath)>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.trees_moved(|path| path.rebase(from, to), now, out);
        for (ino, path) in files {
            if let Some(old) = path.rebase(to, from) {
                self.renamed(ino, &old, path, now, out);
            }
        }
    }

    fn renamed(
        &mut self,
        ino: Ino,
        from: &RelPath,
        to: RelPath,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let lifted = self.lift(ino, from, now);
        self.set_down(lifted, to, Some(from), now, out);
    }

    /// Takes a name off its inode, and the inode out of its tree under that name: it is about to get another one.
    fn lift(&mut self, ino: Ino, from: &RelPath, now: Duration) -> Lifted {
        let tree = self.lift_member(ino, from);
        let inode = self.inodes.get_mut(&ino);
        let name = inode.and_then(|inode| inode.take_name(from));
        if tree.is_some() {
            self.tree_touched(ino, now);
        }
        let from_ignored = self.settings.ignore.matches(from).is_some();
        Lifted {
            ino,
            name,
            tree,
            from_ignored,
        }
    }

    /// Gives what was lifted its new name; `announced` is the old one, if nothing has that any more.
    fn set_down(
        &mut self,
        lifted: Lifted,
        to: RelPath,
        announced: Option<&RelPath>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let Lifted { ino, name: old, .. } = lifted;
        self.set_member_down(ino, &to, lifted.tree);
        let mut name = self.name(ino, to);
        let silent = name.tree.is_some() || name.ignored;
        if silent && !self.inodes.contains_key(&ino) {
            return;
        }
        let inode = self.inodes.entry(ino).or_default();
        let waited = old.as_ref().is_some_and(|old| old.due.is_some());
        if let Some(from) = announced.filter(|_from| !inode.dirty) {
            name.renamed_from = match old {
                Some(old) if waited => old.renamed_from,
                Some(_) | None => (!lifted.from_ignored).then(|| from.clone()),
            };
        }
        if !name.is_ignored() {
            inode.mend();
        }
        if !name.is_ignored() || waited {
            name.due = Some(now);
        }
        inode.names.retain(|other| other.path != name.path);
        let left = name.renamed_from.clone().filter(|_| !name.is_dressed());
        inode.names.push(name);
        if let Some(from) = left {
            self.leaving.left(&from, ino, &self.inodes);
        }
        self.decide(ino, now, Duration::ZERO, out);
    }

    fn unlinked(&mut self, gone: Gone, path: &RelPath, now: Duration, out: &mut Vec<Action>) {
        self.unlinked_alone(gone, path, out);
        if gone.names_left == 0 {
            self.leave_tree(gone.ino, now);
        } else {
            self.tree_touched(gone.ino, now);
        }
    }

    /// A name is removed. With its last one goes a file that nobody was told of, which is counted.
    fn removed(&mut self, gone: Gone, path: &RelPath, now: Duration, out: &mut Vec<Action>) {
        let last = self.inodes.get_mut(&gone.ino);
        let last = last.filter(|inode| gone.names_left == 0 && inode.is_unsent());
        match last {
            // The seal that is under way may still come first.
            Some(inode) if inode.sealing.is_some() => inode.removed = true,
            Some(_) => out.push(Action::CountRemoved { path: path.clone() }),
            None => {}
        }
        self.unlinked(gone, path, now, out);
    }

    fn unlinked_alone(&mut self, gone: Gone, path: &RelPath, out: &mut Vec<Action>) {
        let Some(inode) = self.inodes.get_mut(&gone.ino) else {
            return;
        };
        inode
            .names
            .retain(|name| name.path != *path && gone.names_left > 0);
        if inode.names.is_empty() && gone.names_left > 0 {
            // A name we do not know shows it still: the mark lets recovery look.
            inode.marked = false;
        }
        self.rearm(gone.ino, out);
    }

    /// Sets the timer of an inode by what is due, or forgets the inode if nothing is left to do.
    fn rearm(&mut self, ino: Ino, out: &mut Vec<Action>) {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        let idle = inode.writers == 0 && inode.sealing.is_none();
        let due = inode.due().filter(|_| idle);
        if inode.timer != due {
            if let Some(old) = inode.timer {
                self.timers.remove(&(old, ino));
            }
            inode.timer = due;
        }
        if let Some(due) = due {
            self.timers.insert((due, ino));
        }
        let incomplete = inode.dirty && inode.wanted().next().is_some();
        let late = inode.names.iter().any(|name| name.late);
        if !idle || due.is_some() || incomplete || late {
            return;
        }
        // The seal of its tree takes the mark away.
        let in_tree = inode.names.iter().any(|name| name.tree.is_some());
        if inode.marked && !in_tree {
            out.push(Action::Unmark { ino });
        }
        self.inodes.remove(&ino);
        if self.inodes.is_empty() {
            self.leaving.clear();
        }
        if self.inodes.is_empty() && self.inodes.capacity() > KEPT_CAPACITY {
            self.inodes.shrink_to(KEPT_CAPACITY);
        }
    }
}
