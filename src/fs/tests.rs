//! The rules of the file system, without a mount, over a spool in a temporary directory.

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
#[cfg(test)]
mod recorded;
#[cfg(test)]
mod renames;
#[cfg(test)]
mod special;
#[cfg(test)]
mod symlinks;
#[cfg(test)]
mod times;

use std::collections::{HashMap, HashSet};
use std::fs as disk;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::fs::RenameFlags;
use tempfile::TempDir;

use super::*;
use crate::bundle::{
    BundleId, Entry as Shipped, EntryKind, Former, MANIFEST_VERSION, Manifest, Priority, RelPath,
    Scope, VerifiedManifest,
};
use crate::digest::{Digest, LEAF, hash_reader};
use crate::peer::{Identity, PeerName};
use crate::spool::{Gate, InboxObserver, Limits, MarkKind, Offered, SpoolConfig};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than any test takes: what settles for so long is not sealed by itself.
const LONG: Duration = Duration::from_secs(3600);

/// A bundle that the spool sealed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// A file or link, and under which name it was announced last if it was renamed.
    One(String, Option<String>),
    /// A directory: the files and links in it, and it with the directories in it.
    Tree(Vec<String>, Vec<String>),
}

impl Sealed {
    fn of(manifest: &Manifest) -> Self {
        let directories = manifest.directories.iter();
        let mut directories: Vec<String> = directories.map(|(path, _)| path.to_string()).collect();
        let mut files = Vec::new();
        for entry in &manifest.entries {
            match entry.kind {
                EntryKind::Directory => directories.push(entry.path.to_string()),
                EntryKind::File { .. } | EntryKind::Link { .. } => {
                    files.push(entry.path.to_string());
                }
            }
        }
        if directories.is_empty() && files.len() == 1 {
            let former = manifest.renamed_from.first();
            return Self::One(files.remove(0), former.map(|f| f.path.to_string()));
        }
        files.sort();
        directories.sort();
        Self::Tree(files, directories)
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

/// What a test says of its file system.
struct Setup {
    /// Whom the daemon takes itself for.
    owner: (u32, u32),
    settle: Duration,
    limits: Limits,
}

impl Default for Setup {
    fn default() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self {
            owner: (uid.as_raw(), gid.as_raw()),
            settle: Duration::ZERO,
            limits: Limits::default(),
        }
    }
}

/// A file system over a spool in a directory of its own. Another member, birch, sends what the inbox shows.
pub(crate) struct TestFs {
    pub(crate) fs: Arc<Fs>,
    pub(crate) spool: Arc<Spool>,
    sealed: Receiver<BundleId>,
    spool_config: SpoolConfig,
    birch: Identity,
    /// Number of birch's last bundle.
    birch_seq: AtomicU64,
    /// What birch sent last under each name.
    birch_sent: Mutex<HashMap<String, VerifiedManifest>>,
    _dir: TempDir,
}

impl Drop for TestFs {
    fn drop(&mut self) {
        self.fs.stop();
        self.spool.close();
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
    test_fs_of(Setup::default())
}

/// A file system where nothing is sealed that was not asked for with [`TestFs::send`].
fn unsettled_fs() -> TestFs {
    test_fs_of(Setup {
        settle: LONG,
        ..Setup::default()
    })
}

fn test_fs_of(setup: Setup) -> TestFs {
    let dir = tempfile::tempdir().unwrap();
    let spool_config = SpoolConfig {
        state: dir.path().join("state"),
        lifetime: LONG,
        sealers: 1,
        limits: setup.limits,
        dress: Dress::default(),
        identity: Identity::generate(),
    };
    let spool = Spool::open(spool_config.clone()).unwrap();
    let (sender, sealed) = channel();
    spool.doorbell.subscribe(move |event| {
        if let crate::spool::Event::Sealed(bundle, _) = event {
            sender.send(*bundle).ok();
        }
    });
    let birch = Identity::generate();
    spool
        .member_seen(birch.id(), &PeerName::parse("birch").unwrap(), &[], true)
        .unwrap();
    let config = FsConfig {
        settle: setup.settle,
        chown_to_writer: rustix::process::geteuid().is_root(),
        ignore_extra: Vec::new(),
        ignore_except: Vec::new(),
        dress: Dress::default(),
        max_file_bytes: Some(MAX_FILE_BYTES),
    };
    let fs = Fs::over(spool.clone(), config, Arc::new(NoStatus), setup.owner).unwrap();
    TestFs {
        fs,
        spool,
        sealed,
        spool_config,
        birch,
        birch_seq: AtomicU64::new(0),
        birch_sent: Mutex::default(),
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
        self.publish(name, data);
        self.fs.lookup(NodeId::INBOX, name.as_bytes()).unwrap()
    }
    /// Birch sends `data` under a name, and the spool shows it.
    pub(crate) fn publish(&self, name: &str, data: &[u8]) {
        let hashed = hash_reader(data).unwrap();
        let kind = EntryKind::File {
            size: hashed.len,
            executable: false,
            digest: hashed.digest,
            chunks: hashed.chunks,
        };
        self.receive(self.shipped(name, kind, Vec::new()), data);
    }
    /// Birch sends a symbolic link.
    fn publish_link(&self, name: &str, target: &str) {
        let target = target.as_bytes().to_vec();
        let link = self.shipped(name, EntryKind::Link { target }, Vec::new());
        self.receive(link, b"");
    }
    /// Birch renames a file that it sent.
    fn publish_rename(&self, from: &str, to: &str) {
        let old = self.birch_sent.lock().get(from).cloned().unwrap();
        let (id, old) = (old.id(), old.manifest());
        let former = Former {
            path: rel(from),
            epoch: old.epoch,
            incarnation: old.incarnation,
            seq: old.seq,
            entry: None,
            bundle: id,
            gone: 1,
        };
        let renamed = self.shipped(to, old.entries[0].kind.clone(), vec![former]);
        self.receive(renamed, b"");
    }
    /// A bundle of birch with one entry.
    fn shipped(&self, name: &str, kind: EntryKind, renamed_from: Vec<Former>) -> VerifiedManifest {
        let entry = Shipped {
            path: rel(name),
            mtime: (0, 0),
            kind,
        };
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            origin: self.birch.id(),
            epoch: 1,
            incarnation: [1; 16],
            seq: 1 + self.birch_seq.fetch_add(1, Ordering::SeqCst),
            lifetime_secs: 3600,
            scope: Scope::All { generation: 1 },
            priority: Priority::Routine,
            supersedes: None,
            renamed_from,
            moved_on: None,
            rest_of: None,
            entries: vec![entry],
            directories: Vec::new(),
            salt: crate::peer::random(),
        };
        let manifest = manifest.sign(&self.birch);
        let sent = manifest.clone();
        self.birch_sent.lock().insert(name.to_owned(), sent);
        manifest
    }
    /// Takes a bundle of one entry as a fetch does.
    fn receive(&self, manifest: VerifiedManifest, data: &[u8]) {
        let offered = self.spool.offered(manifest, self.birch.id()).unwrap();
        let mut incoming = match offered {
            Offered::Wanted(incoming) => incoming,
            // It renames what is here.
            Offered::AwaitingDurable => return,
            other => panic!("{other:?}"),
        };
        for range in incoming.missing(0) {
            for at in range.clone().step_by(LEAF as usize) {
                let end = range.end.min(at + LEAF);
                let bytes = &data[at as usize..end as usize];
                incoming.accept_chunk(0, at, bytes).unwrap();
            }
        }
        while incoming.hash_zeros().unwrap().is_some() {
            thread::yield_now();
        }
        incoming.finish().unwrap().publish().unwrap();
    }
    /// Whether what birch sent last under a name is consumed: gone here, and not wanted again.
    fn is_consumed(&self, name: &str) -> bool {
        let manifest = self.birch_sent.lock().get(name).cloned().unwrap();
        let offered = self.spool.offered(manifest, self.birch.id()).unwrap();
        let settled = matches!(offered, Offered::Settled(_) | Offered::AwaitingDurable);
        settled && self.inbox_file(name).symlink_metadata().is_err()
    }
    /// What the spool tells of its inbox, for tests that stand between two of its steps.
    fn observer(&self) -> Arc<dyn InboxObserver> {
        self.fs.observer()
    }
    /// Where inbox names lie on disk.
    pub(crate) fn inbox_root(&self) -> PathBuf {
        self.spool.layout().inbox()
    }
    /// The backing file of a name in the inbox.
    pub(crate) fn inbox_file(&self, name: &str) -> PathBuf {
        self.inbox_root().join(name)
    }
    /// The backing file of a name in the outbox.
    pub(crate) fn outbox(&self, name: &str) -> PathBuf {
        self.spool.layout().outbox().join(name)
    }
    /// The inode behind a name of the outbox.
    fn ino(&self, name: &str) -> u64 {
        disk::symlink_metadata(self.outbox(name)).unwrap().ino()
    }
    /// The gate of a file of the outbox. While it is held, the spool forgets it only when it hears that the inode has no
    /// name any more.
    fn gate(&self, name: &str) -> Arc<Gate> {
        self.spool.outbox.gate(self.ino(name))
    }
    /// Whether the spool heard that the inode of `gate` has no name any more.
    fn is_removed(&self, gate: &Arc<Gate>) -> bool {
        !Arc::ptr_eq(gate, &self.spool.outbox.gate(gate.ino()))
    }
    /// The marks of the outbox.
    fn marks(&self) -> Vec<(MarkKind, String)> {
        let marks = self.spool.marks().into_iter();
        marks.map(|(kind, path)| (kind, path.to_string())).collect()
    }
    /// Whether the next start can tell by its record that a file is as it was sealed.
    fn is_recorded(&self, name: &str) -> bool {
        self.spool.has_record(&rel(name))
    }
    /// Sealed bytes as they are kept for recipients.
    fn content(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        disk::read(self.spool.layout().content(Digest::of(bytes))).ok()
    }
    /// `meshbox send`, to its end.
    fn send(&self, name: &str) -> Sealed {
        self.fs.send_now(&rel(name)).unwrap();
        self.wait_seal()
    }
    /// Ends file system and spool, and opens the spool again as the next start does.
    fn reopen(&mut self) {
        self.fs.stop();
        self.spool.close();
        self.spool = Spool::open(self.spool_config.clone()).unwrap();
    }
    fn names(&self, id: NodeId) -> Vec<String> {
        let opened = self.fs.opendir(id).unwrap();
        let mut names = Vec::new();
        let list = |item: &super::attr::Item| {
            names.push(String::from_utf8(item.name.clone()).unwrap());
            false
        };
        self.fs.readdir(opened.fh, 0, list).unwrap();
        self.fs.releasedir(opened.fh);
        names.split_off(2)
    }
    fn sealed_now(&self) -> Option<Sealed> {
        self.sealed.try_recv().ok().map(|id| self.sealed_as(id))
    }
    fn sealed_as(&self, bundle: BundleId) -> Sealed {
        Sealed::of(
            self.spool
                .ledger
                .manifest(bundle)
                .unwrap()
                .unwrap()
                .manifest(),
        )
    }
    /// The next bundle that is sealed.
    pub(crate) fn wait_seal(&self) -> Sealed {
        let bundle = self.sealed.recv_timeout(PATIENCE);
        self.sealed_as(bundle.expect("nothing was sealed"))
    }
    /// Waits for a bundle that `want` picks.
    pub(crate) fn wait_sealed(&self, want: impl Fn(&Sealed) -> bool) {
        while !want(&self.wait_seal()) {}
    }
    /// Waits until nothing is left to be sealed; what was since the last time.
    fn all_sealed(&self) -> Vec<Sealed> {
        wait_until("something is not sealed", || {
            self.fs.overview(0).unsealed == 0
        });
        std::iter::from_fn(|| self.sealed_now()).collect()
    }
    /// Waits until the seal of a file is durable.
    fn wait_queued(&self, id: NodeId) {
        wait_until("it is not queued", || {
            self.fs.file_state(id).unwrap().word() == "queued"
        });
    }
    /// Waits until a file of the outbox is held back because its writer failed or was killed; it is not sealed.
    pub(crate) fn wait_torn(&self, name: &str) {
        let torn = (MarkKind::Torn, name.to_owned());
        wait_until("it is not held back", || {
            if let Some(sealed) = self.sealed_now() {
                panic!("{sealed:?}");
            }
            self.marks().contains(&torn)
        });
    }
    /// Waits until a name was counted as ignored.
    fn wait_ignored(&self) {
        wait_until("nothing was counted", || self.spool.counts().ignored > 0);
    }
}

fn wait_until(failure: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{failure}");
        thread::yield_now();
    }
}

fn rel(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
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
    assert_eq!(
        t.names(dir),
        ["status.json", "peers.json", "metrics", "README"]
    );
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
    assert_eq!(t.wait_seal(), Sealed::One("f".into(), None));
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
    assert_eq!(t.wait_seal(), Sealed::One("f".into(), None));
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
    t.wait_ignored();
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
    assert_eq!(
        t.wait_seal(),
        Sealed::Tree(vec!["d/f".into()], vec!["d".into()])
    );
}

#[test]
fn a_busy_gate_defers_the_write_and_its_reply() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    let gate = t.gate("f");
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
    t.wait_seal();
    let (_, other) = t.create(NodeId::OUTBOX, "other").unwrap();
    let opened = t.open(entry.attr.node, libc::O_RDWR).unwrap();
    // Room for the copy is asked for on a thread of the pool, which waits there until the test lets it go on.
    let (here, copying) = channel();
    let (release, hold) = channel::<()>();
    let (here, hold) = (Mutex::new(here), Mutex::new(hold));
    t.spool.content.pretend_free(move || {
        let name = thread::current().name().unwrap_or_default().to_owned();
        if name.starts_with("fs-blocking") {
            here.lock().send(()).ok();
            hold.lock().recv_timeout(PATIENCE).ok();
        }
        u64::MAX
    });
    let (sender, receiver) = channel();
    let done = move |written: Result<u32, FsError>| sender.send(written.unwrap()).unwrap();
    t.fs.write(opened.fh, 0, b"SEALED", WriteHow::default(), ME, done);
    copying.recv_timeout(PATIENCE).expect("not copied out");
    assert_eq!(
        t.read(opened.fh),
        b"sealed",
        "changed before it was copied out"
    );
    assert_eq!(t.write(other.fh, 0, b"now").unwrap(), 3);
    assert!(receiver.try_recv().is_err(), "answered before it was done");
    drop(release);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), 6);
    assert_eq!(t.read(opened.fh), b"SEALED");
    assert_eq!(t.content(b"sealed").unwrap(), b"sealed");
}

#[test]
fn o_trunc_and_truncate_copy_sealed_bytes_out_too() {
    let t = test_fs();
    let entry = t.put(NodeId::OUTBOX, "f", b"sealed");
    t.wait_seal();
    let opened = t
        .open(entry.attr.node, libc::O_WRONLY | libc::O_TRUNC)
        .unwrap();
    assert_eq!(t.content(b"sealed").unwrap(), b"sealed");
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().size, 0);
    t.write(opened.fh, 0, b"abc").unwrap();
    t.fs.release(opened.fh);
    t.wait_seal();
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
    assert_eq!(t.content(b"abc").unwrap(), b"abc");
}

#[test]
fn an_unlinked_file_works_until_it_is_closed() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"abc").unwrap();
    let gate = t.gate("f");
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    assert!(t.is_removed(&gate));
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
    t.wait_seal();
    let linked = t.fs.link(entry.attr.node, at(NodeId::OUTBOX, "g")).unwrap();
    assert_eq!(linked.attr.node, entry.attr.node);
    assert_eq!(linked.attr.nlink, 2);
    let on_disk = disk::metadata(t.outbox("f")).unwrap();
    assert_eq!(on_disk.nlink(), 3, "one of them in content/");
    assert_eq!(t.fs.getattr(entry.attr.node, None).unwrap().nlink, 2);
    let gate = t.gate("f");
    t.unlink(NodeId::OUTBOX, "f").unwrap();
    assert!(!t.is_removed(&gate), "it has another name");
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
    let replaced = t.gate("g");
    t.rename(from, to, RenameFlags::empty()).unwrap();
    assert!(t.is_removed(&replaced));
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
        let page = |item: &super::attr::Item, entry: &Entry| {
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
    let id = entry.attr.node;
    // Until its seal is durable it is not said what it is.
    t.wait_queued(id);
    t.fs.setxattr(id, b"user.k", b"v", 0).unwrap();
    assert_eq!(t.fs.getxattr(id, b"user.k").unwrap(), b"v");
    assert_eq!(t.fs.listxattr(id).unwrap(), b"user.k\0");
    assert_eq!(
        t.fs.getxattr(id, b"user.meshbox.sha256").unwrap(),
        Digest::of(b"x").to_hex().as_bytes()
    );
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
    assert!(t.is_consumed("f"));
    assert_eq!(t.read(opened.fh), b"from birch", "an open reader keeps it");
}

#[test]
fn a_file_moved_out_of_the_inbox_is_sent() {
    let t = test_fs();
    let id = t.put_inbox("f", b"forward me").attr.node;
    disk::create_dir(t.inbox_root().join("d")).unwrap();
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
    assert_eq!(t.wait_seal(), Sealed::One("g".into(), None));
    assert_eq!(t.fs.lookup(NodeId::OUTBOX, b"g").unwrap().attr.node, id);
    assert_eq!(errno(t.fs.lookup(NodeId::INBOX, b"f")), libc::ENOENT);
}

/// The kernel drops the RELEASE of a file that was closed just before the mount ended.
#[test]
fn what_is_open_when_the_mount_is_gone_was_closed() {
    let t = unsettled_fs();
    let (_, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    t.write(opened.fh, 0, b"whole").unwrap();
    t.fs.release_all();
    t.fs.stop();
    assert_eq!(t.marks(), [(MarkKind::Closed, "f".into())]);
}

#[test]
fn a_replaced_inbox_name_leaves_open_readers_theirs_and_is_told_to_the_kernel() {
    let t = test_fs();
    let (sender, told) = channel();
    let tell = Arc::new(move |parent, name: &[u8]| sender.send((parent, name.to_vec())).unwrap());
    t.fs.set_invalidator(tell).unwrap();
    let old = t.put_inbox("f", b"old").attr;
    let opened = t.open(old.node, libc::O_RDONLY).unwrap();
    t.publish("f", b"newer");
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
    t.wait_ignored();
    t.fs.send_now(&rel("f.part")).unwrap();
    assert_eq!(t.wait_seal(), Sealed::One("f.part".into(), None));
    assert!(t.fs.send_now(&rel("d")).is_err());
    assert!(t.fs.send_now(&rel("none")).is_err());
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
