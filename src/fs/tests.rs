//! The rules of the file system, without a mount, over a spool whose decisions the test controls.

#[cfg(test)]
mod bundles;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod ignored;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod links;
#[cfg(test)]
mod listing;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod reading;
mod recorded;
#[cfg(test)]
mod renames;
#[cfg(test)]
mod special;
#[cfg(test)]
mod symlinks;
#[cfg(test)]
mod times;

use std::collections::HashSet;
use std::fs::{self as disk, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::fs::RenameFlags;
use tempfile::TempDir;

use super::*;
use crate::bundle::RelPath;
use crate::spool::{
    FileState, Gate, GateGuard, InboxObserver, NewName, RecoveredFile, RecoveredTree, SealName,
    SealOutcome, SealRequest, SpoolConfig, SpoolError, TreeRequest,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The fake panics when it is asked for the state of this name in the inbox, or to remove it there.
pub(crate) const PANICS: &[u8] = b"panics";

/// What the fake saw.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Saw {
    Seal(String, Option<String>),
    CopyOut(String),
    NotModified,
    Closed(String),
    Torn(String),
    Unmark,
    Mended,
    Renamed(String, String, bool),
    Exchanged(String, String),
    Removed(String, u64),
    Ignored,
    Consumed(String),
    TreeRenaming(String, String, usize),
    TreeMoving(String, String),
    TreeDropped,
    SealTree(Vec<String>, Vec<String>),
}

/// A spool that records. Gates and directories are a real one's.
pub(crate) struct FakeSpool {
    real: Arc<Spool>,
    sealed: AtomicBool,
    content_links: Mutex<HashSet<u64>>,
    saw: Mutex<Sender<Saw>>,
    /// Whose records were to hold.
    kept: Mutex<Vec<String>>,
    /// When set, a copy-out waits until the test sends.
    hold: Mutex<Option<Receiver<()>>>,
    observer: Mutex<Option<Arc<dyn InboxObserver>>>,
    /// Bytes left on the disk.
    free: Mutex<Option<u64>>,
    /// Inodes that may not be removed.
    stuck: Mutex<HashSet<u64>>,
}

impl FakeSpool {
    fn say(&self, saw: Saw) {
        self.saw.lock().send(saw).ok();
    }
}

impl SpoolPort for FakeSpool {
    fn outbox_root(&self) -> PathBuf {
        self.real.layout().outbox()
    }
    fn inbox_root(&self) -> PathBuf {
        self.real.layout().inbox()
    }
    fn observe_inbox(&self, observer: Arc<dyn InboxObserver>) {
        *self.observer.lock() = Some(observer);
    }
    fn gate(&self, ino: u64) -> Arc<Gate> {
        self.real.gate(ino)
    }
    fn before_modify(
        &self,
        _gate: &mut GateGuard<'_>,
        _path: &RelPath,
    ) -> Result<bool, SpoolError> {
        Ok(!self.sealed.load(Ordering::SeqCst))
    }
    fn copy_out(
        &self,
        _gate: &mut GateGuard<'_>,
        _file: &File,
        path: &RelPath,
    ) -> Result<(), SpoolError> {
        self.say(Saw::CopyOut(path.to_string()));
        if let Some(hold) = self.hold.lock().take() {
            let _ = hold.recv_timeout(PATIENCE);
        }
        self.sealed.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn not_modified(&self, _gate: &mut GateGuard<'_>) {
        self.say(Saw::NotModified);
    }
    fn tail(&self, _gate: &Arc<Gate>, _file: File) {}
    fn mark_closed(&self, _ino: u64, path: &RelPath) {
        self.say(Saw::Closed(path.to_string()));
    }
    fn mark_torn(&self, _ino: u64, path: &RelPath) {
        self.say(Saw::Torn(path.to_string()));
    }
    fn unmark(&self, _ino: u64) {
        self.say(Saw::Unmark);
    }
    fn mend_mark(&self, _ino: u64) {
        self.say(Saw::Mended);
    }
    fn unmark_closed(&self, _ino: u64) {
        self.say(Saw::Unmark);
    }
    fn outbox_linked(&self, ino: u64, from: &RelPath, to: &RelPath) {
        self.real.outbox_linked(ino, from, to);
    }
    fn names_of(&self, ino: u64) -> Vec<RelPath> {
        self.real.names_of(ino)
    }
    fn seal(&self, request: SealRequest) {
        let outcome = SealOutcome::Sealed(crate::bundle::BundleId([7; 32]));
        let outcomes = vec![outcome; request.names.len()];
        for SealName { path, renamed_from } in request.names {
            let from = renamed_from.map(|from| from.to_string());
            self.say(Saw::Seal(path.to_string(), from));
        }
        (request.done)(outcomes);
    }
    fn tree_renaming(
        &self,
        from: &RelPath,
        to: &RelPath,
        _ino: u64,
        files: &[(u64, RelPath)],
        _directories: Vec<RelPath>,
    ) -> Result<u64, SpoolError> {
        let (from, to) = (from.to_string(), to.to_string());
        self.say(Saw::TreeRenaming(from, to, files.len()));
        Ok(1)
    }
    fn tree_moving(&self, _tree: u64, from: &RelPath, to: &RelPath) -> Result<(), SpoolError> {
        self.say(Saw::TreeMoving(from.to_string(), to.to_string()));
        Ok(())
    }
    fn tree_dropped(&self, _tree: u64) {
        self.say(Saw::TreeDropped);
    }
    fn seal_tree(&self, request: TreeRequest) {
        let names = |path: &RelPath| path.to_string();
        self.say(Saw::SealTree(
            request.files.iter().map(|(_, path)| names(path)).collect(),
            request.directories.iter().map(names).collect(),
        ));
        (request.done)(SealOutcome::Sealed(crate::bundle::BundleId([7; 32])));
    }
    fn recovered_trees(&self) -> Vec<RecoveredTree> {
        Vec::new()
    }
    fn outbox_renamed(&self, from: &RelPath, to: &RelPath, directory: bool) {
        self.say(Saw::Renamed(from.to_string(), to.to_string(), directory));
    }
    fn outbox_exchanged(&self, a: &RelPath, b: &RelPath) {
        self.say(Saw::Exchanged(a.to_string(), b.to_string()));
    }
    fn outbox_removed(&self, path: &RelPath, ino: u64, visible_links: u64) {
        self.real.outbox_removed(path, ino, visible_links);
        self.say(Saw::Removed(path.to_string(), visible_links));
    }
    fn visible_links(&self, ino: u64, st_nlink: u64) -> u64 {
        st_nlink - u64::from(self.content_links.lock().contains(&ino))
    }
    fn keep_record(&self, _ino: u64, path: &RelPath, act: &mut dyn FnMut()) {
        act();
        self.kept.lock().push(path.to_string());
    }
    fn recovered(&self) -> Vec<RecoveredFile> {
        Vec::new()
    }
    fn outbox_state(&self, _path: &RelPath, _ino: u64) -> FileState {
        FileState {
            state: "queued".into(),
            sha256: Some("ab".into()),
            ..FileState::default()
        }
    }
    fn count_ignored(&self) {
        self.say(Saw::Ignored);
    }
    fn inbox_unlink(&self, path: &RelPath) -> Result<(), SpoolError> {
        assert_ne!(path.as_bytes(), PANICS, "injected");
        disk::remove_file(self.inbox_root().join(path.as_path())).ok();
        self.say(Saw::Consumed(path.to_string()));
        Ok(())
    }
    fn inbox_rmdir(&self, path: &RelPath) -> Result<(), SpoolError> {
        self.real.inbox_rmdir(path)
    }
    fn inbox_to_outbox(
        &self,
        from: &RelPath,
        to: &RelPath,
        no_replace: bool,
    ) -> Result<(), SpoolError> {
        self.real.inbox_to_outbox(from, to, no_replace)
    }
    fn room_for(&self, len: u64) -> Result<(), SpoolError> {
        match *self.free.lock() {
            Some(free) if free < len => Err(SpoolError::NoRoom { free, min_free: 0 }),
            Some(_) | None => Ok(()),
        }
    }
    fn min_free(&self) -> u64 {
        0
    }
    fn may_remove(&self, ino: u64, _len: u64) -> Result<(), SpoolError> {
        if self.stuck.lock().contains(&ino) {
            return Err(SpoolError::Quota {
                used: 1,
                max: 1,
                waiting: "birch".into(),
            });
        }
        Ok(())
    }
    fn inbox_state(&self, path: &RelPath, _ino: u64) -> FileState {
        assert_ne!(path.as_bytes(), PANICS, "injected");
        FileState {
            state: "received".into(),
            from: Some("birch".into()),
            ..FileState::default()
        }
    }
}

pub(crate) struct NoStatus;

impl StatusFiles for NoStatus {
    fn status(&self) -> Vec<u8> {
        b"{\"status\":1}".to_vec()
    }
    fn peers(&self) -> Vec<u8> {
        b"[]".to_vec()
    }
    fn metrics(&self) -> Vec<u8> {
        b"meshbox_up 1\n".to_vec()
    }
}

/// A file system over a fake spool in a directory of its own.
pub(crate) struct TestFs {
    pub(crate) fs: Arc<Fs>,
    pub(crate) spool: Arc<FakeSpool>,
    pub(crate) saw: Receiver<Saw>,
    _dir: TempDir,
}

impl Drop for TestFs {
    fn drop(&mut self) {
        self.fs.stop();
        self.spool.real.close();
    }
}

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};

/// No test but those of limits writes so much.
const MAX_FILE_BYTES: u64 = 1 << 40;

pub(crate) fn test_fs() -> TestFs {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    test_fs_of((uid.as_raw(), gid.as_raw()))
}

/// A file system whose daemon takes itself for that of `owner`.
fn test_fs_of(owner: (u32, u32)) -> TestFs {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let identity = crate::peer::Identity::generate();
    let real = Spool::open(SpoolConfig {
        state,
        lifetime: Duration::from_secs(3600),
        sealers: 1,
        limits: crate::spool::Limits::default(),
        dress: Dress::default(),
        identity,
    })
    .unwrap();
    let (sender, saw) = channel();
    let spool = Arc::new(FakeSpool {
        real,
        sealed: AtomicBool::new(false),
        content_links: Mutex::default(),
        saw: Mutex::new(sender),
        kept: Mutex::default(),
        hold: Mutex::new(None),
        observer: Mutex::new(None),
        free: Mutex::new(None),
        stuck: Mutex::default(),
    });
    let config = FsConfig {
        settle: Duration::ZERO,
        chown_to_writer: rustix::process::geteuid().is_root(),
        ignore_extra: Vec::new(),
        ignore_except: Vec::new(),
        dress: Dress::default(),
        max_file_bytes: Some(MAX_FILE_BYTES),
    };
    let fs = Fs::over(spool.clone(), config, Arc::new(NoStatus), owner).unwrap();
    TestFs {
        fs,
        spool,
        saw,
        _dir: dir,
    }
}

/// Waits for the answer of a deferred operation.
fn answer<T: Send + 'static>(
    op: impl FnOnce(Box<dyn FnOnce(Result<T, FsError>) + Send>),
) -> Result<T, FsError> {
    let (sender, receiver) = channel();
    op(Box::new(move |result| {
        sender.send(result).ok();
    }));
    receiver
        .recv_timeout(PATIENCE)
        .expect("an operation was not answered")
}

fn errno<T: fmt::Debug>(result: Result<T, FsError>) -> i32 {
    result.unwrap_err().errno()
}

fn at(parent: NodeId, name: &str) -> Named<'_> {
    Named {
        parent,
        name: name.as_bytes(),
    }
}

impl TestFs {
    fn create(&self, parent: NodeId, name: &str) -> Result<(Entry, Opened), FsError> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        answer(|done| self.fs.create(at(parent, name), 0o644, flags, ME, done))
    }
    fn open(&self, id: NodeId, flags: i32) -> Result<Opened, FsError> {
        answer(|done| self.fs.open(id, flags, ME, done))
    }
    fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32, FsError> {
        let how = WriteHow::default();
        answer(|done| self.fs.write(fh, offset, data, how, ME, done))
    }
    fn read(&self, fh: u64) -> Vec<u8> {
        self.fs
            .read(fh, 0, 1 << 16, &mut Vec::new(), <[u8]>::to_vec)
            .unwrap()
    }
    fn rename(&self, from: Named<'_>, to: Named<'_>, flags: RenameFlags) -> Result<(), FsError> {
        answer(|done| self.fs.rename(from, to, flags.bits(), done))
    }
    fn unlink(&self, parent: NodeId, name: &str) -> Result<(), FsError> {
        answer(|done| self.fs.unlink(at(parent, name), done))
    }
    fn rmdir(&self, parent: NodeId, name: &str) -> Result<(), FsError> {
        answer(|done| self.fs.rmdir(at(parent, name), done))
    }
    fn setattr(&self, id: NodeId, set: SetAttr) -> Result<Attr, FsError> {
        answer(|done| self.fs.setattr(id, set, ME, done))
    }
    fn put(&self, parent: NodeId, name: &str, data: &[u8]) -> Entry {
        let (entry, opened) = self.create(parent, name).unwrap();
        self.write(opened.fh, 0, data).unwrap();
        self.fs.release(opened.fh);
        entry
    }
    fn put_inbox(&self, name: &str, data: &[u8]) -> Entry {
        disk::write(self.spool.inbox_root().join(name), data).unwrap();
        self.fs.lookup(NodeId::INBOX, name.as_bytes()).unwrap()
    }
    /// Shows `data` under a name of the inbox as the spool does: renamed into place, then told.
    pub(crate) fn publish(&self, name: &str, data: &[u8]) {
        let (staged, shown) = (self._dir.path().join("staged"), self.inbox_file(name));
        disk::write(&staged, data).unwrap();
        let replaced = disk::metadata(&shown).ok().map(|meta| meta.ino());
        disk::rename(&staged, &shown).unwrap();
        let observer = self.spool.observer.lock().clone().unwrap();
        observer.published(&[NewName {
            path: RelPath::parse(name).unwrap(),
            directory: false,
            replaced,
        }]);
    }
    /// The backing file of a name in the inbox.
    pub(crate) fn inbox_file(&self, name: &str) -> PathBuf {
        self.spool.inbox_root().join(name)
    }
    /// Where inbox names lie on disk.
    pub(crate) fn fs_inbox_root(&self) -> PathBuf {
        self.spool.inbox_root()
    }
    /// The backing file of a name in the outbox.
    pub(crate) fn outbox(&self, name: &str) -> PathBuf {
        self.spool.outbox_root().join(name)
    }
    fn names(&self, id: NodeId) -> Vec<String> {
        let opened = self.fs.opendir(id).unwrap();
        let mut names = Vec::new();
        let list = |item: &Item| {
            names.push(String::from_utf8(item.name.clone()).unwrap());
            false
        };
        self.fs.readdir(opened.fh, 0, list).unwrap();
        self.fs.releasedir(opened.fh);
        names.split_off(2)
    }
    /// The next thing the spool saw that `want` picks.
    pub(crate) fn wait_for(&self, want: impl Fn(&Saw) -> bool) -> Saw {
        loop {
            let saw = self
                .saw
                .recv_timeout(PATIENCE)
                .expect("the spool did not see it");
            if want(&saw) {
                return saw;
            }
        }
    }
    pub(crate) fn wait_seal(&self) -> Saw {
        self.wait_for(|saw| matches!(saw, Saw::Seal(..)))
    }
}

#[test]
fn the_root_has_three_entries_and_takes_no_others() {
    let t = test_fs();
    assert_eq!(t.names(NodeId::ROOT), ["outbox", "inbox", ".meshbox"]);
    assert_eq!(
        t.fs.lookup(NodeId::ROOT, b"outbox").unwrap().attr.node,
        NodeId::OUTBOX
    );
    assert_eq!(errno(t.fs.lookup(NodeId::ROOT, b"x")), libc::ENOENT);
    assert_eq!(errno(t.create(NodeId::ROOT, "x")), libc::EROFS);
    assert_eq!(
        errno(t.fs.mkdir(at(NodeId::ROOT, "x"), 0o755, ME)),
        libc::EROFS
    );
    assert_eq!(errno(t.rmdir(NodeId::ROOT, "outbox")), libc::EROFS);
    let moved = t.rename(
        at(NodeId::ROOT, "outbox"),
        at(NodeId::ROOT, "o"),
        RenameFlags::empty(),
    );
    assert_eq!(errno(moved), libc::EROFS);
}

#[test]
fn generated_files_are_a_snapshot_taken_at_open() {
    let t = test_fs();
    let dir = t.fs.lookup(NodeId::ROOT, b".meshbox").unwrap().attr.node;
    assert_eq!(t.names(dir), ["status.json", "peers.json", "metrics"]);
    let entry = t.fs.lookup(dir, b"status.json").unwrap();
    assert_eq!(entry.attr.size, 12);
    let opened = t.open(entry.attr.node, libc::O_RDONLY).unwrap();
    assert_eq!(opened.caching, Caching::None);
    assert_eq!(t.read(opened.fh), b"{\"status\":1}");
    assert_eq!(errno(t.open(entry.attr.node, libc::O_RDWR)), libc::EROFS);
}

#[test]
fn a_written_file_is_sealed_after_its_last_close() {
    let t = test_fs();
    let (entry, first) = t.create(NodeId::OUTBOX, "f").unwrap();
    let second = t.open(entry.attr.node, libc::O_WRONLY).unwrap();
    t.write(first.fh, 0, b"hello").unwrap();
    t.fs.release(first.fh);
    assert_eq!(
        t.fs.getxattr(entry.attr.node, b"user.meshbox.state")
            .unwrap(),
        b"open"
    );
    t.fs.release(second.fh);
    assert_eq!(t.wait_seal(), Saw::Seal("f".into(), None));
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().size, 5);
}

#[test]
fn a_rename_before_the_last_close_is_sealed_under_the_new_name() {
    let t = test_fs();
    let (_, opened) = t.create(NodeId::OUTBOX, ".f.part").unwrap();
    t.write(opened.fh, 0, b"x").unwrap();
    t.rename(
        at(NodeId::OUTBOX, ".f.part"),
        at(NodeId::OUTBOX, "f"),
        RenameFlags::empty(),
    )
    .unwrap();
    t.fs.release(opened.fh);
    assert_eq!(t.wait_seal(), Saw::Seal("f".into(), None));
}

#[test]
fn an_ignored_name_is_counted_and_sent_when_its_directory_gets_a_normal_name() {
    let t = test_fs();
    let d =
        t.fs.mkdir(at(NodeId::OUTBOX, ".d"), 0o755, ME)
            .unwrap()
            .attr
            .node;
    let entry = t.put(d, "f", b"x");
    t.wait_for(|saw| *saw == Saw::Ignored);
    let state =
        t.fs.getxattr(entry.attr.node, b"user.meshbox.state")
            .unwrap();
    assert!(
        state.starts_with(b"ignored"),
        "{}",
        String::from_utf8_lossy(&state)
    );
    t.rename(
        at(NodeId::OUTBOX, ".d"),
        at(NodeId::OUTBOX, "d"),
        RenameFlags::empty(),
    )
    .unwrap();
    let sealed = t.wait_for(|saw| matches!(saw, Saw::SealTree(..) | Saw::Seal(..)));
    assert_eq!(sealed, Saw::SealTree(vec!["d/f".into()], vec!["d".into()]));
}

#[test]
fn a_busy_gate_defers_the_write_and_its_reply() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    let gate = t.spool.gate(
        disk::metadata(t.spool.outbox_root().join("f"))
            .unwrap()
            .ino(),
    );
    let guard = gate.lock();
    let (sender, receiver) = channel();
    let done = move |written: Result<u32, FsError>| sender.send(written.unwrap()).unwrap();
    t.fs.write(opened.fh, 0, b"late", WriteHow::default(), ME, done);
    assert!(
        receiver.try_recv().is_err(),
        "answered although the gate is locked"
    );
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().size, 0);
    drop(guard);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), 4);
    assert_eq!(t.read(opened.fh), b"late");
}

#[test]
fn sealed_bytes_are_copied_out_before_they_change_and_others_do_not_wait() {
    let t = test_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"sealed");
    let (_, other) = t.create(NodeId::OUTBOX, "other").unwrap();
    let opened = t.open(entry.attr.node, libc::O_RDWR).unwrap();
    let (release, hold) = channel();
    *t.spool.hold.lock() = Some(hold);
    t.spool.sealed.store(true, Ordering::SeqCst);
    let (sender, receiver) = channel();
    let done = move |written: Result<u32, FsError>| sender.send(written.unwrap()).unwrap();
    t.fs.write(opened.fh, 0, b"SEALED", WriteHow::default(), ME, done);
    t.wait_for(|saw| *saw == Saw::CopyOut("f".into()));
    assert_eq!(
        t.read(opened.fh),
        b"sealed",
        "changed before it was copied out"
    );
    t.spool.sealed.store(false, Ordering::SeqCst);
    assert_eq!(t.write(other.fh, 0, b"now").unwrap(), 3);
    release.send(()).unwrap();
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), 6);
    assert_eq!(t.read(opened.fh), b"SEALED");
}

#[test]
fn o_trunc_and_truncate_copy_sealed_bytes_out_too() {
    let t = test_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"sealed");
    t.wait_seal();
    t.spool.sealed.store(true, Ordering::SeqCst);
    let opened = t
        .open(entry.attr.node, libc::O_WRONLY | libc::O_TRUNC)
        .unwrap();
    t.wait_for(|saw| *saw == Saw::CopyOut("f".into()));
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().size, 0);
    t.write(opened.fh, 0, b"abc").unwrap();
    t.fs.release(opened.fh);
    t.wait_seal();
    t.spool.sealed.store(true, Ordering::SeqCst);
    let attr = t
        .setattr(
            entry.attr.node,
            SetAttr {
                size: Some(1),
                ..SetAttr::default()
            },
        )
        .unwrap();
    assert_eq!(attr.size, 1);
    t.wait_for(|saw| *saw == Saw::CopyOut("f".into()));
}

#[test]
fn an_unlinked_file_works_until_it_is_closed() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"abc").unwrap();
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    t.wait_for(|saw| *saw == Saw::Removed("f".into(), 0));
    assert_eq!(errno(t.fs.lookup(NodeId::OUTBOX, b"f")), libc::ENOENT);
    t.write(opened.fh, 3, b"def").unwrap();
    assert_eq!(t.read(opened.fh), b"abcdef");
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().nlink, 0);
    let set = SetAttr {
        mode: Some(0o600),
        size: Some(2),
        ..SetAttr::default()
    };
    assert_eq!(t.setattr(entry.attr.node, set).unwrap().size, 2);
    assert_eq!(t.fs.listxattr(entry.attr.node).unwrap(), b"");
    let again = t.open(entry.attr.node, libc::O_RDONLY).unwrap();
    assert_eq!(t.read(again.fh), b"ab");
    t.fs.release(again.fh);
    t.fs.release(opened.fh);
    assert_eq!(errno(t.fs.getattr(entry.attr.node, None)), libc::ESTALE);
}

#[test]
fn hard_links_share_a_node_and_the_link_in_content_is_not_counted() {
    let t = test_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"x");
    let linked = t.fs.link(entry.attr.node, at(NodeId::OUTBOX, "g")).unwrap();
    assert_eq!(linked.attr.node, entry.attr.node);
    assert_eq!(linked.attr.nlink, 2);
    let ino = disk::metadata(t.spool.outbox_root().join("f"))
        .unwrap()
        .ino();
    disk::hard_link(
        t.spool.outbox_root().join("f"),
        t.spool.real.layout().state().join("content-link"),
    )
    .unwrap();
    t.spool.content_links.lock().insert(ino);
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().nlink, 2);
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    t.wait_for(|saw| *saw == Saw::Removed("f".into(), 1));
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().nlink, 1);
}

#[test]
fn rename_knows_noreplace_and_exchange() {
    let t = test_fs();
    let f = t.put(NodeId::OUTBOX, "f", b"f").attr.node;
    let g = t.put(NodeId::OUTBOX, "g", b"gg").attr.node;
    let (from, to) = (at(NodeId::OUTBOX, "f"), at(NodeId::OUTBOX, "g"));
    assert_eq!(
        errno(t.rename(from, to, RenameFlags::NOREPLACE)),
        libc::EEXIST
    );
    t.rename(from, to, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(t.fs.lookup(NodeId::OUTBOX, b"f").unwrap().attr.node, g);
    assert_eq!(t.fs.getattr(f, None).unwrap().size, 1);
    assert_eq!(
        errno(t.rename(from, to, RenameFlags::WHITEOUT)),
        libc::EINVAL
    );
    t.rename(from, to, RenameFlags::empty()).unwrap();
    t.wait_for(|saw| *saw == Saw::Removed("g".into(), 0));
    assert_eq!(t.fs.lookup(NodeId::OUTBOX, b"g").unwrap().attr.node, g);
    assert_eq!(errno(t.fs.getattr(f, None)), libc::ESTALE);
}

#[test]
fn directories_answer_as_everywhere() {
    let t = test_fs();
    let d =
        t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME)
            .unwrap()
            .attr
            .node;
    t.put(d, "f", b"x");
    assert_eq!(
        errno(t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME)),
        libc::EEXIST
    );
    assert_eq!(errno(t.rmdir(NodeId::OUTBOX, "d")), libc::ENOTEMPTY);
    assert_eq!(errno(t.unlink(NodeId::OUTBOX, "d")), libc::EISDIR);
    assert_eq!(errno(t.rmdir(d, "f")), libc::ENOTDIR);
    assert_eq!(errno(t.fs.lookup(d, &[b'x'; 256])), libc::ENAMETOOLONG);
    t.unlink(d, "f").unwrap();
    t.rmdir(NodeId::OUTBOX, "d").unwrap();
    assert_eq!(
        t.names(d),
        Vec::<String>::new(),
        "a removed directory that is still open is empty"
    );
}

#[test]
fn a_listing_goes_on_where_it_stopped_while_names_go_away() {
    let t = test_fs();
    for n in 0..20 {
        t.put(NodeId::OUTBOX, &format!("f{n:02}"), b"x");
    }
    let opened = t.fs.opendir(NodeId::OUTBOX).unwrap();
    let (mut seen, mut offset) = (HashSet::new(), 0);
    loop {
        let (mut taken, before) = (0, offset);
        let page = |item: &Item, entry: &Entry| {
            if taken == 3 {
                return true;
            }
            taken += 1;
            offset = item.offset;
            assert!(seen.insert(item.name.clone()), "shown twice");
            assert!(item.name.starts_with(b".") || entry.attr.kind == Kind::File);
            false
        };
        t.fs.readdirplus(opened.fh, before, page).unwrap();
        if offset == before {
            break;
        }
        for name in &seen {
            if let name @ [b'f', ..] = name.as_slice() {
                t.unlink(NodeId::OUTBOX, std::str::from_utf8(name).unwrap())
                    .ok();
            }
        }
    }
    assert_eq!(seen.len(), 22);
}

#[test]
fn attributes_of_ours_are_answered_and_never_listed() {
    let t = test_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"x");
    t.wait_seal();
    let id = entry.attr.node;
    t.fs.setxattr(id, b"user.k", b"v", 0).unwrap();
    assert_eq!(t.fs.getxattr(id, b"user.k").unwrap(), b"v");
    assert_eq!(t.fs.listxattr(id).unwrap(), b"user.k\0");
    assert_eq!(t.fs.getxattr(id, b"user.meshbox.sha256").unwrap(), b"ab");
    assert_eq!(
        errno(t.fs.getxattr(id, b"user.meshbox.from")),
        libc::ENODATA
    );
    assert_eq!(
        errno(t.fs.getxattr(id, b"security.capability")),
        libc::EOPNOTSUPP
    );
    assert_eq!(
        errno(t.fs.setxattr(id, b"user.meshbox.state", b"v", 0)),
        libc::EPERM
    );
    assert_eq!(
        errno(t.fs.setxattr(id, b"trusted.k", b"v", 0)),
        libc::EOPNOTSUPP
    );
    t.fs.removexattr(id, b"user.k").unwrap();
    assert_eq!(errno(t.fs.getxattr(id, b"user.k")), libc::ENODATA);
}

#[test]
fn the_inbox_is_read_only_except_for_removing() {
    let t = test_fs();
    let entry = t.put_inbox("f", b"from birch");
    let id = entry.attr.node;
    let opened = t.open(id, libc::O_RDONLY).unwrap();
    assert_eq!(opened.caching, Caching::Keep);
    assert_eq!(t.read(opened.fh), b"from birch");
    assert_eq!(t.fs.getxattr(id, b"user.meshbox.from").unwrap(), b"birch");
    assert_eq!(errno(t.open(id, libc::O_WRONLY)), libc::EROFS);
    assert_eq!(
        errno(t.open(id, libc::O_RDONLY | libc::O_TRUNC)),
        libc::EROFS
    );
    assert_eq!(
        errno(t.setattr(
            id,
            SetAttr {
                size: Some(0),
                ..SetAttr::default()
            }
        )),
        libc::EROFS
    );
    assert_eq!(
        errno(t.setattr(
            id,
            SetAttr {
                mtime: Some(SetTime::Now),
                ..SetAttr::default()
            }
        )),
        libc::EROFS
    );
    assert_eq!(errno(t.create(NodeId::INBOX, "x")), libc::EROFS);
    assert_eq!(
        errno(t.fs.mkdir(at(NodeId::INBOX, "x"), 0o755, ME)),
        libc::EROFS
    );
    assert_eq!(
        errno(t.fs.symlink(at(NodeId::INBOX, "x"), b"y", ME)),
        libc::EROFS
    );
    assert_eq!(errno(t.fs.setxattr(id, b"user.k", b"v", 0)), libc::EROFS);
    assert_eq!(errno(t.fs.link(id, at(NodeId::OUTBOX, "x"))), libc::EXDEV);
    let within = t.rename(
        at(NodeId::INBOX, "f"),
        at(NodeId::INBOX, "g"),
        RenameFlags::empty(),
    );
    assert_eq!(errno(within), libc::EROFS);
    t.put(NodeId::OUTBOX, "o", b"x");
    let into = t.rename(
        at(NodeId::OUTBOX, "o"),
        at(NodeId::INBOX, "o"),
        RenameFlags::empty(),
    );
    assert_eq!(errno(into), libc::EROFS);
    t.unlink(NodeId::INBOX, "f").unwrap();
    t.wait_for(|saw| *saw == Saw::Consumed("f".into()));
    assert_eq!(t.read(opened.fh), b"from birch", "an open reader keeps it");
}

#[test]
fn a_file_moved_out_of_the_inbox_is_sent() {
    let t = test_fs();
    let id = t.put_inbox("f", b"forward me").attr.node;
    disk::create_dir(t.spool.inbox_root().join("d")).unwrap();
    let dir = t.rename(
        at(NodeId::INBOX, "d"),
        at(NodeId::OUTBOX, "d"),
        RenameFlags::empty(),
    );
    assert_eq!(errno(dir), libc::EXDEV);
    t.put(NodeId::OUTBOX, "taken", b"x");
    let taken = t.rename(
        at(NodeId::INBOX, "f"),
        at(NodeId::OUTBOX, "taken"),
        RenameFlags::NOREPLACE,
    );
    assert_eq!(errno(taken), libc::EEXIST);
    t.wait_seal();
    t.rename(
        at(NodeId::INBOX, "f"),
        at(NodeId::OUTBOX, "g"),
        RenameFlags::empty(),
    )
    .unwrap();
    assert_eq!(t.wait_seal(), Saw::Seal("g".into(), None));
    assert_eq!(t.fs.lookup(NodeId::OUTBOX, b"g").unwrap().attr.node, id);
    assert_eq!(errno(t.fs.lookup(NodeId::INBOX, b"f")), libc::ENOENT);
}

/// The kernel drops the RELEASE of a file that was closed just before the mount ended.
#[test]
fn what_is_open_when_the_mount_is_gone_was_closed() {
    let t = test_fs();
    let (_, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"whole").unwrap();
    t.fs.release_all();
    t.fs.stop();
    let marked = t.wait_for(|saw| matches!(saw, Saw::Closed(_)));
    assert_eq!(marked, Saw::Closed("f".into()));
}

#[test]
fn a_replaced_inbox_name_leaves_open_readers_theirs_and_is_told_to_the_kernel() {
    let t = test_fs();
    let (sender, told) = channel();
    let tell = Arc::new(move |parent, name: &[u8]| sender.send((parent, name.to_vec())).unwrap());
    t.fs.set_invalidator(tell).unwrap();
    let old = t.put_inbox("f", b"old").attr;
    let opened = t.open(old.node, libc::O_RDONLY).unwrap();
    let ino = disk::metadata(t.spool.inbox_root().join("f"))
        .unwrap()
        .ino();
    let staged = t.spool.real.layout().state().join("staged");
    disk::write(&staged, b"newer").unwrap();
    disk::rename(staged, t.spool.inbox_root().join("f")).unwrap();
    let path = RelPath::parse(*b"f").unwrap();
    let observer = t.spool.observer.lock().clone().unwrap();
    observer.published(&[NewName {
        path,
        directory: false,
        replaced: Some(ino),
    }]);
    assert_eq!(
        told.recv_timeout(PATIENCE).unwrap(),
        (NodeId::INBOX, b"f".to_vec())
    );
    let new = t.fs.lookup(NodeId::INBOX, b"f").unwrap().attr;
    assert_ne!(new.node, old.node);
    assert_eq!(t.read(opened.fh), b"old");
    assert_eq!(t.fs.getattr(old.node, None).unwrap().size, 3);
}

#[test]
fn writes_by_ordinary_users_take_suid_away() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    let suid = SetAttr {
        mode: Some(0o6755),
        ..SetAttr::default()
    };
    t.setattr(entry.attr.node, suid).unwrap();
    t.write(opened.fh, 0, b"x").unwrap();
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().perm, 0o6755);
    let how = WriteHow {
        kill_privileges: true,
        ..WriteHow::default()
    };
    answer(|done| t.fs.write(opened.fh, 0, b"x", how, ME, done)).unwrap();
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().perm, 0o755);
}

#[test]
fn send_now_names_files_only() {
    let t = test_fs();
    t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME).unwrap();
    t.put(NodeId::OUTBOX, "f.part", b"x");
    t.wait_for(|saw| *saw == Saw::Ignored);
    t.fs.send_now(&RelPath::parse(*b"f.part").unwrap()).unwrap();
    assert_eq!(t.wait_seal(), Saw::Seal("f.part".into(), None));
    assert!(t.fs.send_now(&RelPath::parse(*b"d").unwrap()).is_err());
    assert!(t.fs.send_now(&RelPath::parse(*b"none").unwrap()).is_err());
}

#[test]
fn every_lookup_that_is_forgotten_frees_its_node() {
    let t = test_fs();
    let d = t.fs.mkdir(at(NodeId::OUTBOX, "d"), 0o755, ME).unwrap();
    let f = t.put(d.attr.node, "f", b"x");
    t.fs.lookup(d.attr.node, b"f").unwrap();
    t.fs.forget(d.attr.node, 1);
    t.fs.forget(f.attr.node, 2);
    assert_eq!(t.fs.nodes.lock().len(), 0);
}
