//! Directories to be sent as one whose seal did not come: what was in them, by inode, and is below them now.

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use crate::bundle::RelPath;
use crate::spool::journal::Batch;
use crate::spool::outbox::tables::{TREES, TreeFile, TreeRow, name_in_tree};
use crate::spool::{RecoveredFile, RecoveredTree, Spool, SpoolError};

impl Spool {
    /// Trees that were not sealed: what was in them and is below them now is taken out of the files that were found.
    pub(super) fn recover_trees(&self, found: &mut Vec<RecoveredFile>) -> Result<(), SpoolError> {
        let rows = self.journal.rows(TREES.all(), usize::MAX)?;
        let mut trees = Vec::new();
        for (tree, row) in rows {
            self.outbox
                .next_tree
                .fetch_max(tree.saturating_add(1), Ordering::Relaxed);
            let Some((root, files)) = self.tree_found(tree, &row, found)? else {
                // Renamed back or removed; or the rename that would have made it a tree was never done.
                let mut batch = Batch::default();
                batch.remove(TREES, &tree);
                self.journal.submit(batch)?;
                continue;
            };
            let below = row.directories.iter().filter_map(|directory| {
                RelPath::parse([root.as_bytes(), b"/", directory.as_bytes()].concat()).ok()
            });
            let directories = std::iter::once(root.clone()).chain(below).collect();
            trees.push(RecoveredTree {
                tree,
                root,
                files,
                directories,
            });
        }
        *self.outbox.recovered_trees.lock() = trees;
        Ok(())
    }

    /// Where a tree is, and its members, which are taken out of `found`. A copy of the state, as after a move or restore,
    /// has other inodes: there the name of the directory counts, if anything in it has the name of a member.
    fn tree_found(
        &self,
        tree: u64,
        row: &TreeRow,
        found: &mut Vec<RecoveredFile>,
    ) -> Result<Option<(RelPath, Vec<RecoveredFile>)>, SpoolError> {
        let places = [Some(&row.root), Some(&row.from).filter(|_| row.begun)];
        for root in places.into_iter().flatten() {
            if self.outbox.root.inode(root)? == Some(row.ino) {
                let members: HashSet<u64> = row.files.iter().map(|file| file.ino).collect();
                let files = take_out(found, |file| {
                    members.contains(&file.ino) && file.path.starts_with(root)
                });
                return Ok(Some((root.clone(), files)));
            }
        }
        let members: HashSet<u64> = row.files.iter().map(|file| file.name).collect();
        for root in places.into_iter().flatten() {
            let Some(there) = self.outbox.root.look(root)?.filter(Metadata::is_dir) else {
                continue;
            };
            let name = |file: &RecoveredFile| file.path.below(root).map(name_in_tree);
            let files = take_out(found, |file| {
                name(file).is_some_and(|name| members.contains(&name))
            });
            if files.is_empty() {
                continue;
            }
            let file = |file: &RecoveredFile| {
                let name = name(file)?;
                Some(TreeFile {
                    ino: file.ino,
                    name,
                })
            };
            let row = TreeRow {
                ino: there.ino(),
                files: files.iter().filter_map(file).collect(),
                ..row.clone()
            };
            let mut batch = Batch::default();
            batch.insert(TREES, &tree, &row);
            self.journal.submit(batch)?;
            return Ok(Some((root.clone(), files)));
        }
        Ok(None)
    }
}

/// Removes from `found` what is `wanted`, and gives it.
fn take_out(
    found: &mut Vec<RecoveredFile>,
    wanted: impl Fn(&RecoveredFile) -> bool,
) -> Vec<RecoveredFile> {
    let (taken, others) = found.drain(..).partition(wanted);
    *found = others;
    taken
}
