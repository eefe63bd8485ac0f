//! Two names that were exchanged, each a file, a directory, or what is never sent; ignored or not.
//!
//! It counts as two renames at one instant. So all names are taken off before one is put on: what was at either name
//! moves to where the other was, down to each file below two directories, and a directory that becomes a tree by it is
//! not mistaken for what had its name before.

use std::time::Duration;

use super::{Action, Moved, Ready};
use crate::bundle::RelPath;

impl Ready {
    pub(super) fn exchanged(
        &mut self,
        (a, at_b): (RelPath, Moved),
        (b, at_a): (RelPath, Moved),
        now: Duration,
        out: &mut Vec<Action>,
    ) {
        let swapped = |path: &RelPath| path.rebase(&a, &b).or_else(|| path.rebase(&b, &a));
        self.trees_moved(swapped, now, out);
        let mut lifted = Vec::new();
        for (old, new, moved) in [(&a, &b, &at_b), (&b, &a, &at_a)] {
            for (ino, path) in moved.files(new) {
                let Some(from) = path.rebase(new, old) else {
                    continue;
                };
                let name = self.lift(ino, &from, now);
                if !matches!(moved, Moved::Tree { .. }) {
                    lifted.push((name, path));
                }
            }
        }
        for (new, moved) in [(b, at_b), (a, at_a)] {
            if let Moved::Tree {
                tree,
                files,
                directories,
            } = moved
            {
                self.begin_tree(tree, None, new, files, directories, now, out);
            }
        }
        // Both names stay in use, so neither is announced as left behind.
        for (lifted, path) in lifted {
            self.set_down(lifted, path, None, now, out);
        }
    }
}

impl Moved {
    /// The files that have a new name, of which `new` is the beginning.
    fn files(&self, new: &RelPath) -> Vec<(super::Ino, RelPath)> {
        match self {
            Self::File { ino } => vec![(*ino, new.clone())],
            Self::Directory { files } | Self::Tree { files, .. } => files.clone(),
            Self::Other => Vec::new(),
        }
    }
}
