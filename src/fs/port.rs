//! What `fs` needs of the spool, as a trait, so that the file system can be tested over a fake.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bundle::RelPath;
use crate::spool::{
    FileState, Gate, GateGuard, InboxObserver, RecoveredFile, RecoveredTree, SealRequest, Spool,
    SpoolError, TreeRequest,
};

/// The part of [`Spool`] that `fs` uses; each method means what its namesake there means.
pub(crate) trait SpoolPort: Send + Sync {
    fn outbox_root(&self) -> PathBuf;
    fn inbox_root(&self) -> PathBuf;
    fn observe_inbox(&self, observer: Arc<dyn InboxObserver>);
    fn gate(&self, ino: u64) -> Arc<Gate>;
    fn before_modify(&self, gate: &mut GateGuard<'_>, path: &RelPath) -> Result<bool, SpoolError>;
    fn copy_out(
        &self,
        gate: &mut GateGuard<'_>,
        file: &File,
        path: &RelPath,
    ) -> Result<(), SpoolError>;
    fn not_modified(&self, gate: &mut GateGuard<'_>);
    fn tail(&self, gate: &Arc<Gate>, file: File);
    fn mark_closed(&self, ino: u64, path: &RelPath);
    fn mark_torn(&self, ino: u64, path: &RelPath);
    fn unmark(&self, ino: u64);
    fn mend_mark(&self, ino: u64);
    fn unmark_closed(&self, ino: u64);
    fn seal(&self, request: SealRequest);
    fn tree_renaming(
        &self,
        from: &RelPath,
        to: &RelPath,
        ino: u64,
        files: &[(u64, RelPath)],
        directories: Vec<RelPath>,
    ) -> Result<u64, SpoolError>;
    fn tree_moving(&self, tree: u64, from: &RelPath, to: &RelPath) -> Result<(), SpoolError>;
    fn tree_dropped(&self, tree: u64);
    fn seal_tree(&self, request: TreeRequest);
    fn recovered_trees(&self) -> Vec<RecoveredTree>;
    fn outbox_renamed(&self, from: &RelPath, to: &RelPath, directory: bool);
    fn outbox_exchanged(&self, a: &RelPath, b: &RelPath);
    fn outbox_removed(&self, path: &RelPath, ino: u64, visible_links: u64);
    fn outbox_linked(&self, ino: u64, from: &RelPath, to: &RelPath);
    fn names_of(&self, ino: u64) -> Vec<RelPath>;
    fn visible_links(&self, ino: u64, st_nlink: u64) -> u64;
    fn keep_record(&self, ino: u64, path: &RelPath, act: &mut dyn FnMut());
    fn recovered(&self) -> Vec<RecoveredFile>;
    fn outbox_state(&self, path: &RelPath, ino: u64) -> FileState;
    fn count_ignored(&self);
    fn inbox_unlink(&self, path: &RelPath) -> Result<(), SpoolError>;
    fn inbox_rmdir(&self, path: &RelPath) -> Result<(), SpoolError>;
    fn inbox_to_outbox(
        &self,
        from: &RelPath,
        to: &RelPath,
        no_replace: bool,
    ) -> Result<(), SpoolError>;
    fn inbox_state(&self, path: &RelPath, ino: u64) -> FileState;
    fn room_for(&self, len: u64) -> Result<(), SpoolError>;
    fn min_free(&self) -> u64;
    fn may_remove(&self, ino: u64, len: u64) -> Result<(), SpoolError>;
    fn check_route_xattr(&self, _name: &[u8], _value: &[u8]) -> Option<bool> {
        None
    }
    fn note_routed(&self, _ino: u64) {}
}

impl SpoolPort for Spool {
    fn outbox_root(&self) -> PathBuf {
        self.layout().outbox()
    }
    fn inbox_root(&self) -> PathBuf {
        self.layout().inbox()
    }
    fn observe_inbox(&self, observer: Arc<dyn InboxObserver>) {
        self.observe_inbox(observer);
    }
    fn gate(&self, ino: u64) -> Arc<Gate> {
        self.gate(ino)
    }
    fn before_modify(&self, gate: &mut GateGuard<'_>, path: &RelPath) -> Result<bool, SpoolError> {
        self.before_modify(gate, path)
    }
    fn copy_out(
        &self,
        gate: &mut GateGuard<'_>,
        file: &File,
        path: &RelPath,
    ) -> Result<(), SpoolError> {
        self.copy_out(gate, file, path)
    }
    fn not_modified(&self, gate: &mut GateGuard<'_>) {
        self.not_modified(gate);
    }
    fn tail(&self, gate: &Arc<Gate>, file: File) {
        self.tail(gate, file);
    }
    fn mark_closed(&self, ino: u64, path: &RelPath) {
        self.mark_closed(ino, path);
    }
    fn mark_torn(&self, ino: u64, path: &RelPath) {
        self.mark_torn(ino, path);
    }
    fn unmark(&self, ino: u64) {
        self.unmark(ino);
    }
    fn mend_mark(&self, ino: u64) {
        self.mend_mark(ino);
    }
    fn unmark_closed(&self, ino: u64) {
        self.unmark_closed(ino);
    }
    fn seal(&self, request: SealRequest) {
        self.seal(request);
    }
    fn tree_renaming(
        &self,
        from: &RelPath,
        to: &RelPath,
        ino: u64,
        files: &[(u64, RelPath)],
        directories: Vec<RelPath>,
    ) -> Result<u64, SpoolError> {
        self.tree_renaming(from, to, ino, files, directories)
    }
    fn tree_moving(&self, tree: u64, from: &RelPath, to: &RelPath) -> Result<(), SpoolError> {
        self.tree_moving(tree, from, to)
    }
    fn tree_dropped(&self, tree: u64) {
        self.tree_dropped(tree);
    }
    fn seal_tree(&self, request: TreeRequest) {
        self.seal_tree(request);
    }
    fn recovered_trees(&self) -> Vec<RecoveredTree> {
        self.recovered_trees()
    }
    fn outbox_renamed(&self, from: &RelPath, to: &RelPath, directory: bool) {
        self.outbox_renamed(from, to, directory);
    }
    fn outbox_exchanged(&self, a: &RelPath, b: &RelPath) {
        self.outbox_exchanged(a, b);
    }
    fn outbox_removed(&self, path: &RelPath, ino: u64, visible_links: u64) {
        self.outbox_removed(path, ino, visible_links);
    }
    fn outbox_linked(&self, ino: u64, from: &RelPath, to: &RelPath) {
        self.outbox_linked(ino, from, to);
    }
    fn names_of(&self, ino: u64) -> Vec<RelPath> {
        self.names_of(ino)
    }
    fn visible_links(&self, ino: u64, st_nlink: u64) -> u64 {
        self.visible_links(ino, st_nlink)
    }
    fn keep_record(&self, ino: u64, path: &RelPath, act: &mut dyn FnMut()) {
        self.keep_record(ino, path, act);
    }
    fn recovered(&self) -> Vec<RecoveredFile> {
        self.recovered()
    }
    fn outbox_state(&self, path: &RelPath, ino: u64) -> FileState {
        self.outbox_state(path, ino)
    }
    fn count_ignored(&self) {
        self.count_ignored();
    }
    fn inbox_unlink(&self, path: &RelPath) -> Result<(), SpoolError> {
        self.inbox_unlink(path)
    }
    fn inbox_rmdir(&self, path: &RelPath) -> Result<(), SpoolError> {
        self.inbox_rmdir(path)
    }
    fn inbox_to_outbox(
        &self,
        from: &RelPath,
        to: &RelPath,
        no_replace: bool,
    ) -> Result<(), SpoolError> {
        self.inbox_to_outbox(from, to, no_replace)
    }
    fn inbox_state(&self, path: &RelPath, ino: u64) -> FileState {
        self.inbox_state(path, ino)
    }
    fn room_for(&self, len: u64) -> Result<(), SpoolError> {
        self.room_for(len)
    }
    fn min_free(&self) -> u64 {
        self.min_free()
    }
    fn may_remove(&self, ino: u64, len: u64) -> Result<(), SpoolError> {
        self.may_remove(ino, len)
    }
    fn check_route_xattr(&self, name: &[u8], value: &[u8]) -> Option<bool> {
        self.check_route_xattr(name, value)
    }
    fn note_routed(&self, ino: u64) {
        self.note_routed(ino);
    }
}
