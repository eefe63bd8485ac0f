//! Seals: which names of an inode are due, and what is done when the seal came to something or to nothing.

use std::time::Duration;

use super::inode::{Name, Sealing, Torn};
use super::{Action, CHANGED_RETRY, Due, FAILED_RETRY, Ino, NAMES_AT_ONCE, Ready, SealResult};
use crate::bundle::RelPath;

impl Ready {
    /// Seals what is due.
    pub(super) fn fire(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.fire_trees(now, out);
        while let Some((at, ino)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, ino));
            let mut waits_for: Option<RelPath> = None;
            for each in self.in_order(ino) {
                let earlier = waits_for.as_ref();
                if let Some(waiters) = earlier.and_then(|path| self.in_flight.get_mut(path)) {
                    wait(waiters, each);
                    self.stop_timer(each);
                } else {
                    waits_for = self.fire_inode(each, each == ino, now, out);
                }
            }
        }
    }

    fn stop_timer(&mut self, ino: Ino) {
        let inode = self.inodes.get_mut(&ino);
        if let Some(at) = inode.and_then(|inode| inode.timer.take()) {
            self.timers.remove(&(at, ino));
        }
    }

    /// Seals what is due of an inode; all that waits, unless it is its `turn`: then another one waits for it. Gives the path
    /// of which an earlier version comes first; its outcome sets the timer again.
    fn fire_inode(
        &mut self,
        ino: Ino,
        turn: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> Option<RelPath> {
        self.stop_timer(ino);
        let inode = self.inodes.get_mut(&ino)?;
        let forced = |name: &Name| name.forced && name.due.is_some();
        let any_forced = inode.names.iter().any(forced);
        let is_due = |name: &&mut Name| {
            let asked = !any_forced || name.forced;
            asked && name.due.is_some_and(|due| due <= now || !turn)
        };
        let mut due: Vec<&mut Name> = inode.names.iter_mut().filter(is_due).collect();
        due.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        due.truncate(NAMES_AT_ONCE);
        for name in &due {
            if let Some(waiters) = self.in_flight.get_mut(&name.path) {
                wait(waiters, ino);
                return Some(name.path.clone());
            }
        }
        let names: Vec<Due> = due
            .into_iter()
            .map(|name| {
                name.due = None;
                Due {
                    path: name.path.clone(),
                    renamed_from: name.renamed_from.take(),
                }
            })
            .collect();
        if names.is_empty() {
            return None;
        }
        let more = inode.names.iter().any(waits);
        for name in &names {
            self.in_flight.insert(name.path.clone(), Vec::new());
            self.recent.note(&name.path, now);
            if let Some(from) = &name.renamed_from {
                self.leaving.announced(from);
            }
        }
        inode.sealing = Some(Sealing(names.clone()));
        out.push(Action::Seal { ino, names, more });
        None
    }

    pub(super) fn seal_done(
        &mut self,
        ino: Ino,
        mut results: Vec<(RelPath, SealResult)>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        results.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        let asked = |sealing: &mut Sealing| {
            let paths = sealing.0.iter().map(|due| &due.path);
            paths.eq(results.iter().map(|(path, _)| path))
        };
        let Some(sealing) = inode.sealing.take_if(asked) else {
            return;
        };
        let of = |path: &RelPath| {
            let at = results
                .binary_search_by(|(other, _)| other.cmp(path))
                .ok()?;
            Some(results[at].1)
        };
        // What a seal under a name came to nothing for, no other name supersedes.
        for name in &mut inode.names {
            name.renamed_from
                .take_if(|from| of(from).is_some_and(|result| result != SealResult::Sealed));
        }
        inode
            .names
            .retain(|name| of(&name.path) != Some(SealResult::Gone));
        let mut come_to = results.iter().map(|(_, result)| *result);
        let come_to = come_to.rfind(|result| *result != SealResult::Gone);
        if let (true, None, Some((path, _))) = (inode.removed, come_to, results.first()) {
            out.push(Action::CountRemoved { path: path.clone() });
        }
        if come_to == Some(SealResult::Sealed) {
            for name in inode.names.iter_mut().filter(|name| name.due.is_none()) {
                name.forced &= of(&name.path).is_none();
            }
        }
        let waiters = self.end_flight(&results, now);
        self.go_on(ino, &sealing, come_to, now, out);
        for waiter in waiters {
            self.rearm(waiter, out);
        }
    }

    /// The paths are free for the next seal; gives who waited for that.
    fn end_flight(&mut self, results: &[(RelPath, SealResult)], now: Duration) -> Vec<Ino> {
        let mut waiters = Vec::new();
        for (path, result) in results {
            waiters.extend(self.in_flight.remove(path).into_iter().flatten());
            match result {
                SealResult::Sealed => self.recent.sealed(path, now),
                SealResult::Changed
                | SealResult::Incomplete
                | SealResult::Failed
                | SealResult::Gone => self.recent.forget(path),
            }
        }
        waiters
    }

    /// What is next for an inode of which a seal came to this under all names that are still there.
    fn go_on(
        &mut self,
        ino: Ino,
        sealing: &Sealing,
        come_to: Option<SealResult>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return;
        };
        match come_to {
            Some(SealResult::Sealed) => {
                inode.failures = 0;
                inode.marked = inode.dirty || inode.names.iter().any(waits);
                self.rearm(ino, out);
            }
            Some(SealResult::Changed) => {
                let dressed = |due: &Due| due.renamed_from.as_ref() == Some(&due.path);
                // Of one that was only dressed, writing decides what it is now; opening does not.
                if sealing.0.iter().all(dressed) {
                    for name in &mut inode.names {
                        if sealing.name(&name.path).is_some() {
                            name.due = Some(now);
                            name.renamed_from = Some(name.path.clone());
                        }
                    }
                } else {
                    inode.dirty = true;
                }
                self.decide(ino, now, CHANGED_RETRY, out);
            }
            Some(SealResult::Incomplete) => {
                inode.dirty = true;
                inode.torn = Torn::Past;
                self.decide(ino, now, Duration::ZERO, out);
            }
            Some(SealResult::Failed) => {
                let (first, longest) = FAILED_RETRY;
                let pause = first
                    .saturating_mul(1 << inode.failures.min(16))
                    .min(longest);
                inode.failures += 1;
                for name in &mut inode.names {
                    if let Some(due) = sealing.name(&name.path) {
                        name.renamed_from.clone_from(&due.renamed_from);
                        name.due = name.due.max(Some(now + pause));
                    }
                }
                self.rearm(ino, out);
            }
            Some(SealResult::Gone) | None => self.rearm(ino, out),
        }
    }
}

fn wait(waiters: &mut Vec<Ino>, ino: Ino) {
    if !waiters.contains(&ino) {
        waiters.push(ino);
    }
}

/// Its content or its name is to be sealed.
fn waits(name: &Name) -> bool {
    name.due.is_some() && !name.is_dressed()
}
