//! The spool: all durable state, and every fsync and rename of it.
//!
//! `fs` and `mesh` meet here and nowhere else. The disk is the queue; [`Spool::subscribe`] is only a doorbell.
//! This file is the front door: the types and calls the rooms above use. The work is in the parts.

mod gate;
mod journal;
mod layout;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::gate::{Gate, GateGuard};
pub use self::layout::Layout;
use crate::bundle::{BundleId, DeliveryState, Manifest, Priority, Receipt, RelPath, VerifiedManifest};
use crate::digest::Digest;
use crate::peer::{Identity, PeerId, PeerName};

/// What the spool is opened with.
#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// The state directory; made when missing.
    pub state: PathBuf,
    /// How long a bundle may wait for its recipients.
    pub lifetime: Duration,
    /// Threads that hash and seal.
    pub sealers: usize,
    /// Our own key pair, whose file is in the state directory.
    pub identity: Identity,
}

/// Why the spool could not do something. Our own disk, never the peer's fault.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// A system call failed on a path of ours.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "open", "rename", "sync".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another daemon holds the lock.
    #[error("the state directory {0} is in use by another daemon; stop it with `meshbox umount`, or choose another --state")]
    InUse(PathBuf),
    /// Written by a newer program.
    #[error("the state directory {path} has format version {found}, this program knows {known}; update meshbox")]
    NewerFormat {
        /// The state directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The file system lacks something we cannot do without.
    #[error("the file system of {path} has no {what}; put the state on another one with --state")]
    Unsupported {
        /// The state directory.
        path: PathBuf,
        /// What is missing: "hard links".
        what: &'static str,
    },
    /// A key file others can read.
    #[error("{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file that is not a key.
    #[error("{path} is not a key file: {why}")]
    BadKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The journal's database failed.
    #[error("journal: {0}")]
    Journal(String),
    /// A stored record that cannot be read.
    #[error("damaged record in the journal: {0}")]
    Corrupted(String),
}

impl SpoolError {
    /// The errno a program should see.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        }
    }
}

/// Something changed that a listener may want to look at. Losing one costs a rescan interval, never a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A bundle of ours was sealed; its recipients have it pending.
    Sealed(BundleId),
    /// A bundle we received is durable; its receipt is ready to go to its origin.
    ReceiptReady(Receipt),
    /// Something new is pending for this peer beyond a single seal (it joined, a deferral ended): rescan.
    PendingChanged(PeerId),
    /// The set of members or their addresses changed.
    MembersChanged,
    /// Something `status` shows changed.
    StatusChanged,
}

/// A file to be sealed: what `ready` found complete.
pub struct SealRequest {
    /// The inode's write gate.
    pub gate: Arc<Gate>,
    /// The file, open for reading.
    pub file: File,
    /// Its name at this moment, below `outbox/`.
    pub path: RelPath,
    /// The name it had when it was last announced, if it was only renamed since.
    pub renamed_from: Option<RelPath>,
    /// Urgency.
    pub priority: Priority,
    /// Called once, on a sealer thread, with what came of it.
    pub done: Box<dyn FnOnce(SealOutcome) + Send>,
}

/// What came of a [`SealRequest`].
#[derive(Debug)]
pub enum SealOutcome {
    /// Sealed; offers are on their way, durability follows within a fraction of a second.
    Sealed(BundleId),
    /// A writer came in between; the result was thrown away. The next last close asks again.
    Changed,
    /// Our disk failed; the file stays marked and is tried again at the next start, or when asked again.
    Failed(SpoolError),
}

/// What the attributes of a file say (`user.meshbox.*`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileState {
    /// `queued`, `delivered 3/4`, `incomplete`, `received`, …
    pub state: String,
    /// Digest as hex, once sealed or received.
    pub sha256: Option<String>,
    /// Bundle id as hex.
    pub bundle: Option<String>,
    /// Name of the origin (inbox).
    pub from: Option<String>,
    /// Why it does not go on, if so.
    pub error: Option<String>,
    /// `bytes/bytes` of the slowest recipient.
    pub progress: Option<String>,
}

/// Told by the spool when names in `inbox/` change other than through the mount. Implemented by `fs`; must not block
/// and must not call back into the spool.
pub trait InboxObserver: Send + Sync {
    /// `path` now shows another inode, or is new. `replaced` is the inode it showed before.
    fn published(&self, path: &RelPath, replaced: Option<u64>);
}

/// What became of an offer from a peer.
#[derive(Debug)]
pub enum Offered {
    /// Settled before: here is the receipt to send again.
    Settled(Receipt),
    /// Published already; the receipt follows as [`Event::ReceiptReady`] when it is durable.
    AwaitingDurable,
    /// Being fetched by another session right now.
    Busy,
    /// Not for us, or not acceptable; will never be taken.
    Refused(String),
    /// Not now: our disk, for instance.
    Deferred(String),
    /// New: fetch what is missing.
    Wanted(Box<Incoming>),
}

/// Why arriving bytes were not taken.
#[derive(Debug, Error)]
pub enum IntakeError {
    /// The chunk does not hash to what the manifest says: the sender's fault.
    #[error("chunk {index} of {path} does not match the manifest")]
    WrongBytes {
        /// The entry's path.
        path: RelPath,
        /// Which chunk.
        index: u64,
    },
    /// Our disk.
    #[error(transparent)]
    Disk(#[from] SpoolError),
}

/// Bytes that failed their SHA-256 were put aside.
#[derive(Debug, Error)]
#[error("{path} does not have the SHA-256 its manifest says; quarantined as {at}")]
pub struct Quarantined {
    /// The entry's path.
    pub path: RelPath,
    /// Where the bytes are now.
    pub at: PathBuf,
    /// Whether all chunks matched: then the manifest contradicts itself and no holder can ever serve it.
    pub manifest_contradicts_itself: bool,
}

/// A bundle that is arriving. One fetch owns it. All calls block on local disk; call from a blocking thread.
#[derive(Debug)]
pub struct Incoming {
    manifest: VerifiedManifest,
}

impl Incoming {
    /// What is being received.
    pub fn manifest(&self) -> &VerifiedManifest {
        &self.manifest
    }

    /// Byte ranges of `entry` that are still to be fetched, in order, aligned to chunks; empty when all is here
    /// (equal content known locally, or left from an earlier attempt). A file that travels inline is one range.
    pub fn missing(&self, entry: usize) -> Vec<std::ops::Range<u64>> {
        let _ = entry;
        todo!()
    }

    /// Takes one whole chunk (the last may be short), or all of a file that travels inline. Checks it before writing.
    pub fn accept_chunk(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), IntakeError> {
        let _ = (entry, offset, bytes);
        todo!()
    }

    /// Checks length and SHA-256 of every entry. On failure the bytes are in quarantine, nothing is visible.
    pub fn finish(self) -> Result<Verified, FinishError> {
        todo!()
    }

    /// Gives up for now: what arrived stays in `partial/` for a later attempt; `why` shows in status.
    pub fn park(self, why: String) {
        let _ = why;
        todo!()
    }
}

/// Why an [`Incoming`] did not become [`Verified`].
#[derive(Debug, Error)]
pub enum FinishError {
    /// Something is still missing; the caller's mistake.
    #[error("{0} is not complete")]
    Incomplete(RelPath),
    /// The bytes are wrong.
    #[error(transparent)]
    Quarantined(#[from] Quarantined),
    /// Our disk.
    #[error(transparent)]
    Disk(#[from] SpoolError),
}

/// A bundle all of whose bytes hashed to the digests in its manifest. The only way to a name in the inbox.
#[derive(Debug)]
pub struct Verified {
    manifest: VerifiedManifest,
}

impl Verified {
    /// Gives every entry its name in the inbox. The receipt follows as [`Event::ReceiptReady`] once all is durable.
    pub fn publish(self) -> Result<Published, SpoolError> {
        let _ = self.manifest;
        todo!()
    }
}

/// A bundle that is visible in the inbox.
#[derive(Debug)]
pub struct Published {
    /// Which.
    pub bundle: BundleId,
    /// Names given, below `inbox/`.
    pub names: Vec<RelPath>,
}

/// Reads content for a peer that may have it. Cheap to make; holds no lock.
#[derive(Debug)]
pub struct ContentReader {
    len: u64,
}

impl ContentReader {
    /// Length of the content in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads exactly `len` bytes at `offset`; never bytes of a later version of the file. Blocks on local disk.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, ServeError> {
        let _ = (offset, len);
        todo!()
    }
}

/// Why content is not served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The peer is no recipient of such a bundle, or we do not have it: told alike, so that nothing leaks.
    #[error("no such content for this peer")]
    NotHeld,
    /// The range lies outside the content.
    #[error("range outside the content")]
    Range,
    /// Our disk.
    #[error(transparent)]
    Disk(#[from] SpoolError),
}

/// A member of the group as the journal knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: PeerId,
    /// What it calls itself.
    pub name: PeerName,
    /// Addresses it was last known to listen on.
    pub addrs: Vec<SocketAddr>,
    /// Seconds since 1970 of the last contact, by our clock; 0 if never.
    pub last_seen: u64,
    /// The highest epoch seen of it.
    pub epoch: u64,
}

/// One row of `outbound` in status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutboundRow {
    /// Path below `outbox/`, lossy text.
    pub path: String,
    /// The path's bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_b64: Option<String>,
    /// Bundle id as hex.
    pub bundle: String,
    /// Digest as hex.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
    /// `sealed` (not durable yet), `queued`, `delivered`, …: the least of all recipients.
    pub state: String,
    /// Each recipient.
    pub recipients: Vec<RecipientRow>,
}

/// One recipient of an [`OutboundRow`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecipientRow {
    /// Its id as hex.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The state's word.
    pub state: String,
    /// Bytes it has asked for so far.
    pub bytes: u64,
    /// Why it does not go on.
    pub error: Option<String>,
}

/// One row of `inbound` in status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InboundRow {
    /// Path below `inbox/` (or as the origin calls it, while it arrives), lossy text.
    pub path: String,
    /// The path's bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_b64: Option<String>,
    /// Bundle id as hex.
    pub bundle: String,
    /// Digest as hex.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
    /// Name of the origin.
    pub from: String,
    /// `incoming`, `published`, `received` (durable), `consumed`, `deferred`, `refused`, `quarantined`.
    pub state: String,
    /// Why it does not go on.
    pub error: Option<String>,
}

/// Counters since the daemon started, and sizes now. Bytes are bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Bundles of ours some recipient still waits for.
    pub outbound_pending: u64,
    /// Bundles sealed since start.
    pub sealed: u64,
    /// Bundles published since start.
    pub published: u64,
    /// Receipts taken since start.
    pub receipts: u64,
    /// Content bytes sent to peers since start (inline or by range).
    pub bytes_sent: u64,
    /// Content bytes taken from peers since start.
    pub bytes_received: u64,
    /// Files held back because their writer was killed.
    pub incomplete: u64,
    /// Names not sent because they match the ignore list, since start.
    pub ignored: u64,
    /// Entries in quarantine.
    pub quarantined: u64,
    /// Offers refused since start.
    pub refused: u64,
}

/// The spool. One per state directory and process; shared as `Arc`.
#[derive(Debug)]
pub struct Spool {
    layout: Layout,
    identity: Identity,
}

/// Lifecycle and facts.
impl Spool {
    /// Opens or makes the state, takes its lock, recovers, and starts the journal writer and the sealers.
    pub fn open(config: SpoolConfig) -> Result<Arc<Self>, SpoolError> {
        let _ = config;
        todo!()
    }

    /// Ends the threads and makes everything durable. Later calls on the spool fail.
    pub fn close(&self) {
        todo!()
    }

    /// Where things are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Our own key pair.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This start's epoch and incarnation.
    pub fn epoch(&self) -> (u64, [u8; 16]) {
        todo!()
    }

    /// A peer has seen `epoch` of us: go above it, durably, before the next seal.
    pub fn raise_epoch(&self, epoch: u64) -> Result<(), SpoolError> {
        let _ = epoch;
        todo!()
    }

    /// Calls `bell` at every event, from whatever thread. It must not block and not call back.
    pub fn subscribe(&self, bell: impl Fn(&Event) + Send + Sync + 'static) {
        let _ = bell;
        todo!()
    }

    /// Sets who is told of new inbox names.
    pub fn observe_inbox(&self, observer: Arc<dyn InboxObserver>) {
        let _ = observer;
        todo!()
    }
}

/// What `fs` uses for `outbox/`. `fs` itself makes the user's system calls on the outbox tree.
impl Spool {
    /// The write gate of a backing inode; the same one for everybody while anybody holds it.
    pub fn gate(&self, ino: u64) -> Arc<Gate> {
        let _ = ino;
        todo!()
    }

    /// To be called with the gate locked, before any modifying operation on the inode (WRITE, size change, FALLOCATE,
    /// O_TRUNC). Cheap: a flag test, after the first call since the last seal. Marks the inode `open` (durable
    /// against a crash of the daemon). `false`: the old bytes are still needed, call [`Self::copy_out`] first, on a
    /// thread that may block.
    pub fn before_modify(&self, gate: &mut GateGuard<'_>, path: &RelPath) -> Result<bool, SpoolError> {
        let _ = (gate, path);
        todo!()
    }

    /// Saves the sealed bytes of the inode to a content inode of their own, then lets the modification go on. Blocks.
    pub fn copy_out(&self, gate: &mut GateGuard<'_>, file: &File, path: &RelPath) -> Result<(), SpoolError> {
        let _ = (gate, file, path);
        todo!()
    }

    /// The last writer closed: after a crash of the daemon the file is sealed at start.
    pub fn mark_closed(&self, ino: u64, path: &RelPath) {
        let _ = (ino, path);
        todo!()
    }

    /// Its writer was killed: shown as `incomplete`, not sent, also after a restart.
    pub fn mark_torn(&self, ino: u64, path: &RelPath) {
        let _ = (ino, path);
        todo!()
    }

    /// Nothing is to be sent of this inode after all (removed, or its name is ignored).
    pub fn unmark(&self, ino: u64) {
        let _ = ino;
        todo!()
    }

    /// Queues a file for hashing and sealing. Never blocks on the hasher.
    pub fn seal(&self, request: SealRequest) {
        let _ = request;
        todo!()
    }

    /// A name in the outbox moved; `directory` says that everything below moved with it.
    pub fn outbox_renamed(&self, from: &RelPath, to: &RelPath, directory: bool) {
        let _ = (from, to, directory);
        todo!()
    }

    /// A name in the outbox is gone. `ino` had `visible_links` visible names left after that. What is queued stays
    /// queued.
    pub fn outbox_removed(&self, path: &RelPath, ino: u64, visible_links: u64) {
        let _ = (path, ino, visible_links);
        todo!()
    }

    /// `st_nlink` as the user should see it: without the link in `content/`.
    pub fn visible_links(&self, ino: u64, st_nlink: u64) -> u64 {
        let _ = (ino, st_nlink);
        todo!()
    }

    /// Files that recovery found closed but not sealed, and incomplete ones: to be fed to `ready` at start.
    pub fn recovered(&self) -> Vec<RecoveredFile> {
        todo!()
    }

    /// What is known of the file shown at `path` in the outbox.
    pub fn outbox_state(&self, path: &RelPath, ino: u64) -> FileState {
        let _ = (path, ino);
        todo!()
    }

    /// Counts a name that was not sent because it matches the ignore list.
    pub fn count_ignored(&self) {
        todo!()
    }
}

/// A file in the outbox that was not sealed when the daemon last ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredFile {
    /// Its inode.
    pub ino: u64,
    /// Its path below `outbox/`.
    pub path: RelPath,
    /// Whether its writer had not closed it: shown as incomplete, not sent.
    pub incomplete: bool,
}

/// What `fs` uses for `inbox/`. The spool makes these system calls, since they change what it knows.
impl Spool {
    /// Removes a file from the inbox: consumed, never shown again.
    pub fn inbox_unlink(&self, path: &RelPath) -> Result<(), SpoolError> {
        let _ = path;
        todo!()
    }

    /// Removes an empty directory from the inbox.
    pub fn inbox_rmdir(&self, path: &RelPath) -> Result<(), SpoolError> {
        let _ = path;
        todo!()
    }

    /// Moves a file from the inbox to the outbox: consumed there, a new file here. The caller then tells `ready`.
    /// `no_replace` fails with EEXIST when `to` exists.
    pub fn inbox_to_outbox(&self, from: &RelPath, to: &RelPath, no_replace: bool) -> Result<(), SpoolError> {
        let _ = (from, to, no_replace);
        todo!()
    }

    /// What is known of the file shown at `path` in the inbox.
    pub fn inbox_state(&self, path: &RelPath) -> FileState {
        let _ = path;
        todo!()
    }
}

/// What `mesh` uses. All calls block on local disk only, and briefly.
impl Spool {
    /// All members but ourselves.
    pub fn members(&self) -> Vec<Member> {
        todo!()
    }

    /// A peer proved membership, or a member told us of one (`contact` false). A new member gets what is current
    /// pending. Addresses replace the known ones on contact, and add to them otherwise.
    pub fn member_seen(&self, id: PeerId, name: &PeerName, addrs: &[SocketAddr], contact: bool) -> Result<(), SpoolError> {
        let _ = (id, name, addrs, contact);
        todo!()
    }

    /// The highest epoch we have seen of `peer`; 0 if none.
    pub fn epoch_seen_of(&self, peer: PeerId) -> u64 {
        let _ = peer;
        todo!()
    }

    /// Bundles we owe `peer`, oldest first, with a cursor: pass the last one's to go on. At most `limit`.
    pub fn pending(&self, peer: PeerId, after: Option<u64>, limit: usize) -> Result<Vec<(u64, BundleId)>, SpoolError> {
        let _ = (peer, after, limit);
        todo!()
    }

    /// How many bundles we owe `peer`.
    pub fn pending_count(&self, peer: PeerId) -> u64 {
        let _ = peer;
        todo!()
    }

    /// Whether we still owe this bundle to `peer`.
    pub fn is_pending(&self, bundle: BundleId, peer: PeerId) -> bool {
        let _ = (bundle, peer);
        todo!()
    }

    /// The manifest of a bundle we hold.
    pub fn manifest(&self, bundle: BundleId) -> Result<Option<VerifiedManifest>, SpoolError> {
        let _ = bundle;
        todo!()
    }

    /// Whether `peer` already gave a receipt for some bundle with this digest: then the content is not sent inline.
    pub fn peer_has(&self, peer: PeerId, digest: Digest) -> bool {
        let _ = (peer, digest);
        todo!()
    }

    /// Opens content for `peer`, which must be a recipient of `bundle`; `entry` is the index in its manifest.
    pub fn open_content(&self, bundle: BundleId, entry: usize, peer: PeerId) -> Result<ContentReader, ServeError> {
        let _ = (bundle, entry, peer);
        todo!()
    }

    /// A peer offers a bundle (its own, or one it holds).
    pub fn offered(self: &Arc<Self>, manifest: VerifiedManifest, from: PeerId) -> Result<Offered, SpoolError> {
        let _ = (manifest, from);
        todo!()
    }

    /// Our receipt for `bundle`, if it is settled and durable here.
    pub fn receipt(&self, bundle: BundleId) -> Option<Receipt> {
        let _ = bundle;
        todo!()
    }

    /// A recipient's receipt arrived. A forged one is an error of the peer: returns `false`.
    pub fn take_receipt(&self, receipt: &Receipt) -> Result<bool, SpoolError> {
        let _ = receipt;
        todo!()
    }

    /// How a delivery stands, other than delivered. Final states are made durable, others only shown.
    pub fn set_delivery(&self, bundle: BundleId, peer: PeerId, state: DeliveryState) -> Result<(), SpoolError> {
        let _ = (bundle, peer, state);
        todo!()
    }

    /// Shows that an offer was refused or could not be fetched, in status.
    pub fn note_inbound(&self, manifest: &Manifest, bundle: BundleId, state: &str, error: Option<String>) {
        let _ = (manifest, bundle, state, error);
        todo!()
    }

    /// Adds to the byte counters.
    pub fn count_bytes(&self, sent: u64, received: u64) {
        let _ = (sent, received);
        todo!()
    }
}

/// What `control` and the status files use.
impl Spool {
    /// Newest bundles of ours first; `before` is a cursor from the last page.
    pub fn outbound(&self, before: Option<u64>, limit: usize) -> Vec<OutboundRow> {
        let _ = (before, limit);
        todo!()
    }

    /// Newest received bundles first.
    pub fn inbound(&self, before: Option<u64>, limit: usize) -> Vec<InboundRow> {
        let _ = (before, limit);
        todo!()
    }

    /// The deliveries of the newest bundle that was sealed from `path`; `None` if there is none.
    pub fn outbound_of(&self, path: &RelPath) -> Option<OutboundRow> {
        let _ = path;
        todo!()
    }

    /// Counters.
    pub fn counts(&self) -> Counts {
        todo!()
    }

    /// Blocks until something that status shows has changed since `seen`, or the time is over; gives the new mark.
    pub fn wait_change(&self, seen: u64, at_most: Duration) -> u64 {
        let _ = (seen, at_most);
        todo!()
    }
}
