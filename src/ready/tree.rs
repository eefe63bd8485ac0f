//! A directory that was renamed from an ignored name to an ordinary one: one bundle of everything inside.
//!
//! Its members are what was in it at the rename; what is made in it later is sent file by file. The tree is due when no
//! member is open for writing or incomplete and the settle time has passed. Until it is sealed no member is sent on its
//! own; a member that changes while the seal is under way is sent once more afterwards, as a new version.
//!
//! Members that are moved within the directory stay members, those that are moved out of it or removed are none. The
//! directory itself may move too; back to an ignored name it is no tree any more.

pub(super) mod state;

use std::collections::BTreeMap;
use std::time::Duration;

use self::state::Tree;
use super::inode::Torn;
use super::{Action, CHANGED_RETRY, FAILED_RETRY, Ino, Ready, SealResult, Shown};
use crate::bundle::RelPath;

impl Ready {
    /// Whether renaming a directory like this commits it as one bundle.
    pub(crate) fn is_commit(&self, from: &RelPath, to: &RelPath) -> bool {
        let ignore = &self.settings.ignore;
        ignore.matches_directory(from).is_some() && ignore.matches_directory(to).is_none()
    }

    /// The trees that move when `from` becomes `to`, with the old and the new names of their directories.
    pub(crate) fn trees_below(&self, from: &RelPath, to: &RelPath) -> Vec<(u64, RelPath, RelPath)> {
        let moved = |(number, tree): (&u64, &Tree)| {
            Some((*number, tree.root.clone(), tree.root.rebase(from, to)?))
        };
        self.trees.iter().filter_map(moved).collect()
    }

    /// What to show of a directory; `None` if it is no tree that waits.
    pub(crate) fn shown_directory(&self, path: &RelPath) -> Option<Shown> {
        let tree = self.trees.values().find(|tree| tree.root == *path)?;
        Some(tree.shown())
    }

    /// The tree that has `ino` as a member under this name.
    pub(super) fn tree_with(&self, ino: Ino, path: &RelPath) -> Option<u64> {
        let number = *self.tree_of.get(&ino)?;
        let tree = self.trees.get(&number)?;
        (tree.files.get(path) == Some(&ino)).then_some(number)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin_tree(
        &mut self,
        number: u64,
        from: Option<&RelPath>,
        root: RelPath,
        files: Vec<(Ino, RelPath)>,
        directories: Vec<RelPath>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        for (ino, _) in &files {
            self.tree_of.insert(*ino, number);
        }
        let tree = Tree {
            root: root.clone(),
            files: files
                .iter()
                .map(|(ino, path)| (path.clone(), *ino))
                .collect(),
            directories: directories.into_iter().collect(),
            blockers: BTreeMap::new(),
            not_before: now + self.settings.settle,
            due: None,
            sealing: false,
            failures: 0,
        };
        self.trees.insert(number, tree);
        for (ino, path) in files {
            if !self.inodes.contains_key(&ino) {
                continue;
            }
            let old = from.and_then(|from| path.rebase(&root, from));
            let name = self.name(ino, path);
            if let Some(inode) = self.inodes.get_mut(&ino) {
                if let Some(old) = old {
                    inode.take_name(&old);
                }
                inode.torn = Torn::No;
                inode.names.retain(|other| other.path != name.path);
                inode.names.push(name);
            }
            self.decide(ino, now, Duration::ZERO, out);
        }
        self.rearm_tree(number);
    }

    /// Found at the start: which of its members are incomplete is said beside them.
    pub(super) fn tree_recovered(
        &mut self,
        number: u64,
        root: RelPath,
        files: Vec<(Ino, RelPath, bool)>,
        directories: Vec<RelPath>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let known = files.iter().map(|(ino, path, _)| (*ino, path.clone()));
        let known = known.collect();
        self.begin_tree(number, None, root, known, directories, now, out);
        for (ino, path, incomplete) in files {
            if incomplete {
                self.recovered(ino, path, true, now, out);
            }
        }
    }

    /// A member was opened, closed, removed or sent: does it hold its tree up?
    pub(super) fn tree_touched(&mut self, ino: Ino, now: Duration) {
        let Some(number) = self.tree_of.get(&ino).copied() else {
            return;
        };
        let blocker = self.inodes.get(&ino).and_then(|inode| {
            let name = inode.names.iter().find(|name| name.tree == Some(number))?;
            let torn = inode.dirty && inode.torn != Torn::No;
            (inode.writers > 0 || torn).then(|| name.path.clone())
        });
        let settle = self.settings.settle;
        let Some(tree) = self.trees.get_mut(&number) else {
            return;
        };
        match blocker {
            Some(path) => {
                tree.blockers.insert(ino, path);
            }
            None if tree.blockers.remove(&ino).is_some() => {
                tree.not_before = tree.not_before.max(now + settle);
            }
            None => {}
        }
        self.rearm_tree(number);
    }

    /// The inode is no member any more, whatever names it has.
    pub(super) fn leave_tree(&mut self, ino: Ino, now: Duration) {
        if !self.tree_of.contains_key(&ino) {
            return;
        }
        if let Some(inode) = self.inodes.get_mut(&ino) {
            for name in &mut inode.names {
                (name.tree, name.late) = (None, false);
            }
        }
        self.tree_touched(ino, now);
        self.tree_of.remove(&ino);
    }

    /// Takes a member out under the name it is about to lose; gives its tree.
    pub(super) fn lift_member(&mut self, ino: Ino, from: &RelPath) -> Option<u64> {
        let number = self.tree_with(ino, from)?;
        let tree = self.trees.get_mut(&number)?;
        tree.files.remove(from);
        Some(number)
    }

    /// Puts a member back under its new name, unless it left the directory of its tree.
    pub(super) fn set_member_down(&mut self, ino: Ino, to: &RelPath, number: Option<u64>) {
        if let Some(tree) = number.and_then(|number| self.trees.get_mut(&number))
            && to.starts_with(&tree.root)
        {
            tree.files.insert(to.clone(), ino);
        }
    }

    /// Directories moved, each path as `moved` says: trees in them or above them move along.
    pub(super) fn trees_moved(
        &mut self,
        moved: impl Fn(&RelPath) -> Option<RelPath>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let numbers: Vec<u64> = self.trees.keys().copied().collect();
        for number in numbers {
            let Some(tree) = self.trees.get_mut(&number) else {
                continue;
            };
            if let Some(root) = moved(&tree.root) {
                if self.settings.ignore.matches_directory(&root).is_some() {
                    self.end_tree(number, false, now, out);
                    out.push(Action::DropTree { tree: number });
                    continue;
                }
                tree.root = root;
            }
            // All are taken out before one is put back: an exchange moves each to where another was.
            let pairs: Vec<(RelPath, RelPath)> = tree
                .directories
                .iter()
                .filter_map(|old| Some((old.clone(), moved(old)?)))
                .collect();
            for (old, _) in &pairs {
                tree.directories.remove(old);
            }
            let stay = pairs.into_iter().map(|(_, new)| new);
            tree.directories
                .extend(stay.filter(|new| new.starts_with(&tree.root)));
        }
    }

    pub(super) fn tree_done(
        &mut self,
        number: u64,
        result: SealResult,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let Some(tree) = self.trees.get_mut(&number) else {
            return;
        };
        tree.sealing = false;
        match result {
            SealResult::Sealed | SealResult::Gone => {
                return self.end_tree(number, result == SealResult::Sealed, now, out);
            }
            SealResult::Changed | SealResult::Incomplete => tree.not_before = now + CHANGED_RETRY,
            SealResult::Failed => {
                let (first, longest) = FAILED_RETRY;
                let pause = first
                    .saturating_mul(1 << tree.failures.min(16))
                    .min(longest);
                tree.failures += 1;
                tree.not_before = now + pause;
            }
        }
        // The next seal takes what changed meanwhile.
        let members: Vec<Ino> = tree.files.values().copied().collect();
        for ino in members {
            if let Some(inode) = self.inodes.get_mut(&ino) {
                let names = inode.names.iter_mut();
                names
                    .filter(|name| name.tree == Some(number))
                    .for_each(|name| {
                        name.late = false;
                        name.renamed_from.take_if(|from| *from == name.path);
                    });
                self.rearm(ino, out);
            }
        }
        self.rearm_tree(number);
    }

    /// Forgets a tree. Its members are files like others from now on; what changed while it was being sealed is sent.
    fn end_tree(&mut self, number: u64, sealed: bool, now: Duration, out: &mut Vec<Action>) {
        let Some(tree) = self.trees.remove(&number) else {
            return;
        };
        if let Some(due) = tree.due {
            self.tree_timers.remove(&(due, number));
        }
        // Also of members that were moved away or replaced.
        self.tree_of.retain(|_, of| *of != number);
        if sealed {
            self.recent.note_tree(tree.root.clone(), now);
        }
        for ino in tree.files.into_values() {
            let Some(inode) = self.inodes.get_mut(&ino) else {
                continue;
            };
            let mut late = false;
            for name in &mut inode.names {
                if name.tree == Some(number) {
                    name.tree = None;
                    if std::mem::take(&mut name.late) {
                        late = true;
                        name.due = Some(now);
                    }
                }
            }
            inode.marked = late || inode.dirty || !sealed;
            self.decide(ino, now, Duration::ZERO, out);
        }
    }

    fn rearm_tree(&mut self, number: u64) {
        let Some(tree) = self.trees.get_mut(&number) else {
            return;
        };
        let free = !tree.sealing && tree.blockers.is_empty();
        let due = free.then_some(tree.not_before);
        if tree.due != due {
            if let Some(old) = tree.due {
                self.tree_timers.remove(&(old, number));
            }
            tree.due = due;
            self.tree_timers.extend(due.map(|due| (due, number)));
        }
    }

    /// Seals the trees that are due.
    pub(super) fn fire_trees(&mut self, now: Duration, out: &mut Vec<Action>) {
        while let Some((_, number)) = self
            .tree_timers
            .first()
            .copied()
            .filter(|(at, _)| *at <= now)
        {
            self.tree_timers.pop_first();
            let Some(tree) = self.trees.get_mut(&number) else {
                continue;
            };
            tree.due = None;
            tree.sealing = true;
            out.push(Action::SealTree {
                tree: number,
                root: tree.root.clone(),
                files: tree
                    .files
                    .iter()
                    .map(|(path, ino)| (*ino, path.clone()))
                    .collect(),
                directories: tree.directories.iter().cloned().collect(),
            });
        }
    }
}
