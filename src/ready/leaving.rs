//! Names that files were renamed away from, until that is announced: who has such a name now is announced later.
//!
//! Others replace the older file when they hear of a rename over its name. If they hear later that it was renamed itself,
//! they have to fetch it again.
//!
//! # Invariants
//! 1. A file that was renamed to a name is not sealed before the one that was renamed away from it, if that can be sealed;
//!    where files changed places, one of them is the first.
//! 2. Of one name, the last file that left it counts. What is no longer true is dropped when there is much of it.

use std::collections::HashMap;

use super::event::Ino;
use super::inode::Inode;
use crate::bundle::RelPath;

/// A map that was larger than this gives its memory back when it is empty.
pub(super) const KEPT_CAPACITY: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Leaving {
    by: HashMap<RelPath, Ino>,
    /// When what is no longer true is looked for, by how many there are.
    sweep_at: usize,
}

impl Leaving {
    /// `ino` was announced as `from`, and is there no more.
    pub(super) fn left(&mut self, from: &RelPath, ino: Ino, inodes: &HashMap<Ino, Inode>) {
        if self.by.len() >= self.sweep_at.max(KEPT_CAPACITY) {
            let is_true = |from: &RelPath, ino: &Ino| {
                let inode = inodes.get(ino);
                inode.is_some_and(|inode| inode.has_left(from))
            };
            self.by.retain(|from, ino| is_true(from, ino));
            self.sweep_at = 2 * self.by.len();
        }
        self.by.insert(from.clone(), ino);
    }

    /// Who left that name last.
    pub(super) fn last_at(&self, name: &RelPath) -> Option<Ino> {
        self.by.get(name).copied()
    }

    /// Its seal is asked for.
    pub(super) fn announced(&mut self, from: &RelPath) {
        self.by.remove(from);
    }

    /// No file waits for anything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Inode {
    /// Nobody writes to it, and no seal of it is under way.
    pub(super) fn may_be_sealed(&self) -> bool {
        self.writers == 0 && self.sealing.is_none()
    }

    /// Whether a name waits that is to say that the file was at `from` before.
    pub(super) fn has_left(&self, from: &RelPath) -> bool {
        self.names.iter().any(|name| {
            name.due.is_some() && name.path != *from && name.renamed_from.as_ref() == Some(from)
        })
    }
}
