//! What writers do to a file: its bytes, mode and time; and what the user or the last start says of it.

use std::time::Duration;

use super::event::{Action, Ino};
use super::inode::{Name, Torn};
use super::{Ready, SLOW_SETTLE};
use crate::bundle::RelPath;

impl Ready {
    /// Bytes were written; `false` while they wait for a close.
    pub(super) fn wrote(
        &mut self,
        ino: Ino,
        fh: u64,
        now: Duration,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(inode) = self.inodes.get_mut(&ino) else {
            return false;
        };
        inode.modified(Some(fh));
        inode.written = true;
        if inode.writers > 0 {
            return false;
        }
        self.decide(ino, now, SLOW_SETTLE, out);
        true
    }

    pub(super) fn created(
        &mut self,
        ino: Ino,
        path: RelPath,
        temporary: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        self.leave_tree(ino, now);
        let name = Name {
            temporary,
            ..self.name(ino, path)
        };
        // A number comes back only when the old inode is gone, its handles included.
        let inode = self.inodes.entry(ino).or_default();
        inode.modified(None);
        inode.written = false;
        inode.writers = 1;
        inode.names = vec![name];
        self.rearm(ino, out);
    }

    pub(super) fn opened(&mut self, ino: Ino, path: RelPath, now: Duration, out: &mut Vec<Action>) {
        self.named(ino, path).writers += 1;
        self.rearm(ino, out);
        self.tree_touched(ino, now);
    }

    pub(super) fn truncated(
        &mut self,
        ino: Ino,
        path: RelPath,
        fh: Option<u64>,
        size: u64,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let inode = self.named(ino, path);
        inode.modified(fh);
        if size == 0 && inode.failed.is_some() {
            inode.mend();
        }
        inode.written = size > 0;
        self.decide(ino, now, SLOW_SETTLE, out);
    }

    pub(super) fn write_failed(&mut self, ino: Ino, fh: Option<u64>, errno: i32) {
        // A file that is already closed is complete; the failed write changed nothing.
        if let Some(inode) = self.inodes.get_mut(&ino).filter(|i| i.writers > 0) {
            inode.torn = fh.map_or(Torn::Past, Torn::Held);
            inode.failed = Some(errno);
        }
    }

    pub(super) fn flushed(&mut self, ino: Ino, fh: u64, torn: bool) {
        if let Some(inode) = self.inodes.get_mut(&ino).filter(|_| torn) {
            inode.torn = Torn::Held(fh);
        }
    }

    pub(super) fn released(&mut self, ino: Ino, fh: u64, now: Duration, out: &mut Vec<Action>) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.writers = inode.writers.saturating_sub(1);
            if inode.torn == Torn::Held(fh) {
                inode.torn = Torn::Past;
            }
            self.decide(ino, now, Duration::ZERO, out);
        }
    }

    /// Programs set mode and time after the last close (`install`, `unzip`, linkers), on a busy machine after the seal.
    /// Later than that it is not for the others. No mark: recovery compares the file with what was announced of it.
    pub(super) fn dressed(
        &mut self,
        ino: Ino,
        names: Vec<RelPath>,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let inode = self.inodes.get(&ino);
        let dirty = inode.is_some_and(|inode| inode.dirty);
        let sealing = inode.is_some_and(|inode| inode.sealing.is_some());
        let in_tree = |path: &RelPath| self.tree_with(ino, path);
        // They are those of all its names, if one of them was announced a moment ago.
        let recent = |path: &RelPath| in_tree(path).is_some() || self.recent.is_recent(path, now);
        if dirty || !(sealing || names.iter().any(recent)) {
            return;
        }
        for path in names {
            let in_tree = self.tree_with(ino, &path);
            let tree = in_tree.and_then(|tree| self.trees.get(&tree));
            let sealing = tree.is_some_and(|tree| tree.sealing);
            let inode = self.named(ino, path.clone());
            // What is still to be sealed is sealed as it is then.
            let Some(name) = inode
                .name_mut(&path)
                .filter(|name| !name.is_ignored() && (name.due.is_none() || name.is_dressed()))
            else {
                continue;
            };
            match in_tree {
                Some(_) if !sealing => continue,
                Some(_) => name.late = true,
                None => name.due = Some(now),
            }
            name.renamed_from = Some(path);
        }
        self.decide(ino, now, SLOW_SETTLE, out);
        // Nothing waits where a name is ignored.
        self.rearm(ino, out);
    }

    /// Found at the start, modified and not sealed.
    pub(super) fn recovered(
        &mut self,
        ino: Ino,
        path: RelPath,
        incomplete: bool,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let inode = self.named(ino, path);
        inode.modified(None);
        if incomplete {
            inode.torn = Torn::Past;
        }
        self.decide(ino, now, Duration::ZERO, out);
    }

    /// The user wants it sent, whatever the rules say.
    pub(super) fn send_now(
        &mut self,
        ino: Ino,
        path: RelPath,
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let inode = self.named(ino, path.clone());
        inode.mend();
        if let Some(name) = inode.name_mut(&path) {
            name.forced = true;
            name.renamed_from.take_if(|from| *from == path);
            name.due = Some(now);
        }
        self.decide(ino, now, Duration::ZERO, out);
    }
}
