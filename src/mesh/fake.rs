//! A store in memory, for tests of the mesh: same contract as the spool, no disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::bundle::{
    BundleId, DeliveryState, Entry, EntryKind, MANIFEST_VERSION, Manifest, Priority, Receipt,
    RelPath, Scope, VerifiedManifest,
};
use crate::digest::{self, Digest};
use crate::mesh::store::{Arriving, Bell, Content, Custodian, Offered, Store};
use crate::peer::{Identity, PeerId, PeerName};
use crate::spool::rank::Rank;
use crate::spool::{Event, FinishError, IntakeError, Member, Quarantined, ServeError, SpoolError};

/// Longest wait for anything in these tests; they fail then.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Chunks by offset, for each entry.
type Got = Arc<Mutex<Vec<BTreeMap<u64, Bytes>>>>;

#[derive(Default)]
struct State {
    members: HashMap<PeerId, Member>,
    held: HashMap<BundleId, (VerifiedManifest, Vec<Bytes>)>,
    pending: HashMap<PeerId, BTreeMap<u64, BundleId>>,
    deliveries: HashMap<(BundleId, PeerId), DeliveryState>,
    receipts: HashMap<BundleId, Receipt>,
    inbox: HashMap<RelPath, Bytes>,
    partial: HashMap<BundleId, Vec<BTreeMap<u64, Bytes>>>,
    arriving: HashMap<BundleId, Got>,
    busy: HashSet<BundleId>,
    notes: Vec<(BundleId, String, Option<String>)>,
    seq: u64,
    listen: Vec<SocketAddr>,
}

pub(crate) struct Fake {
    identity: Identity,
    state: Mutex<State>,
    changed: Condvar,
    bells: Mutex<Vec<Bell>>,
    epoch: AtomicU64,
    /// Serve wrong bytes.
    pub corrupt: AtomicBool,
    /// Held by a test: no question is answered meanwhile.
    pub gate: Mutex<()>,
    /// Swallow events.
    pub mute: AtomicBool,
    pub sent: AtomicU64,
    pub received: AtomicU64,
    pub twice: AtomicU64,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            identity: Identity::generate(),
            state: Mutex::default(),
            changed: Condvar::new(),
            bells: Mutex::default(),
            epoch: AtomicU64::new(1),
            corrupt: AtomicBool::new(false),
            gate: Mutex::new(()),
            mute: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            twice: AtomicU64::new(0),
        })
    }

    pub(crate) fn id(&self) -> PeerId {
        self.identity.id()
    }

    fn ring(&self, event: &Event) {
        self.changed.notify_all();
        if !self.mute.load(Ordering::Relaxed) {
            self.bells.lock().iter().for_each(|bell| bell(event));
        }
    }

    /// A signed bundle of one file, held nowhere yet.
    pub(crate) fn bundle(&self, path: &str, content: &[u8]) -> VerifiedManifest {
        manifest_of(self.id(), path, content).sign(&self.identity)
    }

    /// Holds `manifest` with its content and owes it to `to`.
    pub(crate) fn owe(&self, manifest: &VerifiedManifest, content: &[u8], to: &[PeerId]) {
        let id = manifest.id();
        let mut state = self.state.lock();
        state.held.insert(
            id,
            (manifest.clone(), vec![Bytes::copy_from_slice(content)]),
        );
        for peer in to {
            state.seq += 1;
            let rank = Rank::of(manifest.manifest().priority, state.seq);
            state.pending.entry(*peer).or_default().insert(rank.0, id);
        }
        drop(state);
        self.ring(&Event::Sealed(id, manifest.manifest().priority));
    }

    /// Seals a file for `to`.
    pub(crate) fn send(&self, path: &str, content: &[u8], to: &[PeerId]) -> BundleId {
        let manifest = self.bundle(path, content);
        self.owe(&manifest, content, to);
        manifest.id()
    }

    /// Seals a file of that priority for `to`.
    pub(crate) fn send_as(
        &self,
        path: &str,
        content: &[u8],
        priority: Priority,
        to: &[PeerId],
    ) -> BundleId {
        let mut says = manifest_of(self.id(), path, content);
        says.priority = priority;
        let manifest = says.sign(&self.identity);
        self.owe(&manifest, content, to);
        manifest.id()
    }

    fn wait<T>(&self, what: &str, test: impl Fn(&State) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        loop {
            if let Some(found) = test(&state) {
                return found;
            }
            assert!(
                !self.changed.wait_until(&mut state, deadline).timed_out(),
                "waited in vain for {what}"
            );
        }
    }

    /// Waits for a file in the inbox.
    pub(crate) fn wait_inbox(&self, path: &str) -> Bytes {
        let path = RelPath::parse(path).unwrap();
        self.wait("inbox", |s| s.inbox.get(&path).cloned())
    }

    /// A file in the inbox, if it is there.
    pub(crate) fn inbox_has(&self, path: &str) -> Option<Bytes> {
        let path = RelPath::parse(path).unwrap();
        self.state.lock().inbox.get(&path).cloned()
    }

    pub(crate) fn inbox_len(&self) -> usize {
        self.state.lock().inbox.len()
    }

    pub(crate) fn wait_inbox_len(&self, len: usize) {
        self.wait("inbox", |s| (s.inbox.len() >= len).then_some(()));
    }

    /// Waits until nothing is owed to `peer`.
    pub(crate) fn wait_delivered(&self, peer: PeerId) {
        self.wait("receipts", |s| {
            s.pending
                .get(&peer)
                .is_none_or(BTreeMap::is_empty)
                .then_some(())
        });
    }

    /// Waits for a state that `wanted` accepts.
    pub(crate) fn wait_delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
        wanted: impl Fn(&DeliveryState) -> bool,
    ) -> DeliveryState {
        self.wait("delivery", |s| {
            s.deliveries
                .get(&(bundle, peer))
                .filter(|d| wanted(d))
                .cloned()
        })
    }

    /// Waits for a note on an inbound bundle.
    pub(crate) fn wait_note(&self, bundle: BundleId, word: &str) -> String {
        let found = |(b, w, e): &(BundleId, String, Option<String>)| {
            (*b == bundle && w == word).then(|| e.clone())
        };
        self.wait("note", |s| s.notes.iter().find_map(found))
            .unwrap_or_default()
    }
}

/// What `origin` would say of a bundle of one file, for everybody.
pub(super) fn manifest_of(origin: PeerId, path: &str, content: &[u8]) -> Manifest {
    let hashed = digest::hash_reader(content).unwrap();
    let kind = EntryKind::File {
        size: hashed.len,
        executable: false,
        digest: hashed.digest,
        chunks: hashed.chunks,
    };
    let entry = Entry {
        path: RelPath::parse(path).unwrap(),
        mtime: (0, 0),
        kind,
    };
    Manifest {
        version: MANIFEST_VERSION,
        origin,
        epoch: 1,
        incarnation: [1; 16],
        seq: 1,
        lifetime_secs: 60,
        scope: Scope::All { generation: 1 },
        priority: Priority::Routine,
        supersedes: None,
        renamed_from: Vec::new(),
        moved_on: None,
        rest_of: None,
        entries: vec![entry],
        directories: Vec::new(),
        salt: crate::peer::random(),
    }
}

impl Custodian for Arc<Fake> {
    fn receipt_for(&self, bundle: BundleId, _: PeerId) -> Option<Receipt> {
        drop(self.gate.lock());
        self.state.lock().receipts.get(&bundle).cloned()
    }
}
impl super::store::Members for Arc<Fake> {}

/// `Arc<Fake>` is what the mesh gets.
impl Store for Arc<Fake> {
    fn identity(&self) -> &Identity {
        &self.identity
    }
    fn epoch(&self) -> (u64, [u8; 16]) {
        (
            self.epoch.load(Ordering::Relaxed),
            [self.epoch.load(Ordering::Relaxed) as u8; 16],
        )
    }
    fn raise_epoch(&self, epoch: u64) -> Result<(), SpoolError> {
        self.epoch.fetch_max(epoch + 1, Ordering::Relaxed);
        Ok(())
    }
    fn remembered_listen(&self) -> Vec<SocketAddr> {
        self.state.lock().listen.clone()
    }
    fn remember_listen(&self, bound: &[SocketAddr]) -> Result<(), SpoolError> {
        self.state.lock().listen = bound.to_vec();
        Ok(())
    }
    fn subscribe(&self, bell: Bell) {
        self.bells.lock().push(bell);
    }
    fn members(&self) -> Vec<Member> {
        self.state.lock().members.values().cloned().collect()
    }
    fn member_seen(
        &self,
        id: PeerId,
        name: &PeerName,
        addrs: &[SocketAddr],
        contact: bool,
    ) -> Result<(), SpoolError> {
        let mut state = self.state.lock();
        let new = Member {
            id,
            name: name.clone(),
            addrs: vec![],
            last_seen: 0,
            epoch: 0,
        };
        let member = state.members.entry(id).or_insert(new);
        let before = member.clone();
        member.name = name.clone();
        if contact {
            member.addrs = addrs.to_vec();
        } else {
            member.addrs.extend_from_slice(addrs);
        }
        let changed = before != *member || before.addrs.is_empty();
        drop(state);
        if changed {
            self.ring(&Event::MembersChanged);
        }
        Ok(())
    }
    fn epoch_seen_of(&self, peer: PeerId) -> u64 {
        self.state.lock().members.get(&peer).map_or(0, |m| m.epoch)
    }
    fn note_epoch(&self, peer: PeerId, epoch: u64) -> Result<(), SpoolError> {
        if let Some(member) = self.state.lock().members.get_mut(&peer) {
            member.epoch = member.epoch.max(epoch);
        }
        Ok(())
    }
    fn pending(
        &self,
        peer: PeerId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, BundleId)>, SpoolError> {
        let state = self.state.lock();
        let Some(rows) = state.pending.get(&peer) else {
            return Ok(vec![]);
        };
        // As the spool has it: urgent ranks are the upper half of the numbers, and come first.
        let place = |rank: u64| rank.wrapping_add(1 << 63);
        let mut rows: Vec<(u64, BundleId)> = rows.iter().map(|(n, b)| (*n, *b)).collect();
        rows.sort_by_key(|(rank, _)| place(*rank));
        rows.retain(|(rank, _)| after.is_none_or(|after| place(*rank) > place(after)));
        rows.truncate(limit);
        Ok(rows)
    }
    fn pending_count(&self, peer: PeerId) -> u64 {
        self.state
            .lock()
            .pending
            .get(&peer)
            .map_or(0, BTreeMap::len) as u64
    }
    fn is_pending(&self, bundle: BundleId, peer: PeerId) -> bool {
        self.state
            .lock()
            .pending
            .get(&peer)
            .is_some_and(|p| p.values().any(|b| *b == bundle))
    }
    fn manifest(&self, bundle: BundleId) -> Result<Option<VerifiedManifest>, SpoolError> {
        Ok(self.state.lock().held.get(&bundle).map(|h| h.0.clone()))
    }
    fn priority(&self, bundle: BundleId) -> Option<Priority> {
        let held = &self.state.lock().held;
        held.get(&bundle).map(|held| held.0.manifest().priority)
    }
    fn peer_has(&self, _: PeerId, _: Digest) -> bool {
        false
    }
    fn open_content(
        &self,
        bundle: BundleId,
        entry: usize,
        peer: PeerId,
    ) -> Result<Box<dyn Content>, ServeError> {
        let state = self.state.lock();
        let (manifest, content) = state.held.get(&bundle).ok_or(ServeError::NotHeld)?;
        if !manifest.manifest().is_for(peer) {
            return Err(ServeError::NotHeld);
        }
        let bytes = content.get(entry).cloned().ok_or(ServeError::NotHeld)?;
        Ok(Box::new(FakeContent {
            bytes,
            corrupt: self.corrupt.load(Ordering::Relaxed),
        }))
    }
    fn age_of(&self, _: &VerifiedManifest) -> u64 {
        0
    }
    fn hear_age(&self, _: &VerifiedManifest, _: PeerId, _: u64) {}
    fn end_of(&self, _: &VerifiedManifest) -> u64 {
        u64::MAX
    }
    fn is_past(&self, _: u64) -> bool {
        false
    }
    fn renamed_only(&self, _: &VerifiedManifest) -> Result<bool, SpoolError> {
        Ok(false)
    }
    fn offered(&self, manifest: VerifiedManifest, _: PeerId) -> Result<Offered, SpoolError> {
        let id = manifest.id();
        let mut state = self.state.lock();
        if let Some(receipt) = state.receipts.get(&id) {
            return Ok(Offered::Settled(receipt.clone()));
        }
        if !manifest.manifest().is_for(self.id()) {
            return Ok(Offered::Refused("not for this node".into()));
        }
        if !state.busy.insert(id) {
            return Ok(Offered::Busy);
        }
        let entries = manifest.manifest().entries.len();
        let got = state
            .partial
            .remove(&id)
            .unwrap_or_else(|| vec![BTreeMap::new(); entries]);
        let got = Arc::new(Mutex::new(got));
        state.arriving.insert(id, got.clone());
        Ok(Offered::Wanted(Box::new(FakeArriving {
            store: self.clone(),
            manifest,
            got,
        })))
    }
    fn take_receipt(&self, receipt: &Receipt) -> Result<bool, SpoolError> {
        if !receipt.is_genuine() {
            return Ok(false);
        }
        let mut state = self.state.lock();
        if let Some(rows) = state.pending.get_mut(&receipt.recipient) {
            rows.retain(|_, b| *b != receipt.bundle);
        }
        state.deliveries.insert(
            (receipt.bundle, receipt.recipient),
            DeliveryState::Delivered,
        );
        self.changed.notify_all();
        Ok(true)
    }
    fn set_delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
        delivery: DeliveryState,
    ) -> Result<(), SpoolError> {
        let mut state = self.state.lock();
        if delivery.is_final()
            && let Some(rows) = state.pending.get_mut(&peer)
        {
            rows.retain(|_, b| *b != bundle);
        }
        state.deliveries.insert((bundle, peer), delivery);
        self.changed.notify_all();
        Ok(())
    }
    fn withdrawn(&self, bundle: BundleId, _: PeerId) -> Result<bool, SpoolError> {
        Ok(self.state.lock().partial.remove(&bundle).is_some())
    }
    fn unfinished(&self, _: PeerId) -> Vec<BundleId> {
        vec![]
    }
    fn note_inbound(&self, _: &Manifest, bundle: BundleId, word: &str, error: Option<String>) {
        self.state
            .lock()
            .notes
            .push((bundle, word.to_owned(), error));
        self.changed.notify_all();
    }
    fn count_bytes(&self, sent: u64, received: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
    }
    fn count_twice(&self, bytes: u64) {
        self.twice.fetch_add(bytes, Ordering::Relaxed);
    }
    fn open_arrived(
        &self,
        manifest: &VerifiedManifest,
        entry: usize,
        peer: PeerId,
        _: u64,
    ) -> Result<Box<dyn Content>, ServeError> {
        let (state, says) = (self.state.lock(), manifest.manifest());
        let got = state.arriving.get(&manifest.id());
        let got = got.filter(|_| says.is_for(peer)).cloned();
        Ok(Box::new(Arrived {
            got: got.ok_or(ServeError::NotHeld)?,
            entry,
            len: says.entries[entry].size(),
        }))
    }
}

/// What arrived of one entry, while the rest does.
struct Arrived {
    got: Got,
    entry: usize,
    len: u64,
}

impl Content for Arrived {
    fn len(&self) -> u64 {
        self.len
    }
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, ServeError> {
        let got = self.got.lock();
        let mut bytes = Vec::with_capacity(len);
        let (from, end) = (offset, offset + len as u64);
        let mut at = from;
        while at < end {
            let (begin, chunk) = got[self.entry]
                .range(..=at)
                .next_back()
                .ok_or(ServeError::NotHeld)?;
            let skip = (at - begin) as usize;
            let rest = chunk.get(skip..).filter(|rest| !rest.is_empty());
            let rest = rest.ok_or(ServeError::NotHeld)?;
            let take = rest.len().min((end - at) as usize);
            bytes.extend_from_slice(&rest[..take]);
            at += take as u64;
        }
        Ok(bytes.into())
    }
}

struct FakeContent {
    bytes: Bytes,
    corrupt: bool,
}

impl Content for FakeContent {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, ServeError> {
        let range = offset as usize..offset as usize + len;
        if range.end > self.bytes.len() {
            return Err(ServeError::Range);
        }
        let mut bytes = self.bytes.slice(range).to_vec();
        if self.corrupt && !bytes.is_empty() {
            bytes[0] ^= 1;
        }
        Ok(bytes.into())
    }
}

struct FakeArriving {
    store: Arc<Fake>,
    manifest: VerifiedManifest,
    got: Got,
}

impl Drop for FakeArriving {
    fn drop(&mut self) {
        self.store.state.lock().busy.remove(&self.manifest.id());
    }
}

impl FakeArriving {
    fn file(&self, entry: usize) -> (u64, Digest, digest::ChunkList) {
        match &self.manifest.manifest().entries[entry].kind {
            EntryKind::File {
                size,
                digest,
                chunks,
                ..
            } => (*size, *digest, chunks.clone()),
            EntryKind::Directory | EntryKind::Link { .. } => panic!("these tests send files"),
        }
    }
}

impl Arriving for FakeArriving {
    fn missing(&self, entry: usize) -> Vec<Range<u64>> {
        let got = &self.got.lock()[entry];
        let (size, _, _) = self.file(entry);
        if size == 0 && got.is_empty() {
            return std::iter::once(0..0).collect();
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for piece in self.manifest.manifest().entries[entry].pieces() {
            if got.contains_key(&piece.start) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => ranges.push(piece),
            }
        }
        ranges
    }
    fn accept_chunk(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), IntakeError> {
        let (size, digest, chunks) = self.file(entry);
        let index = offset / digest::LEAF;
        let is_at = |stretch: &digest::Stretch| stretch.range.start == offset;
        let holds = chunks.stretches(size).find(is_at).map(|s| s.holds);
        let good = match holds {
            Some(digest::Holds::Chunk(hash)) => digest::chunk_hash(bytes) == hash,
            _ => Digest::of(bytes) == digest,
        };
        if !good {
            let path = self.manifest.manifest().entries[entry].path.clone();
            return Err(IntakeError::WrongBytes { path, index });
        }
        self.got.lock()[entry].insert(offset, Bytes::copy_from_slice(bytes));
        Ok(())
    }
    fn publish(self: Box<Self>) -> Result<Vec<RelPath>, FinishError> {
        let mut files = Vec::new();
        for (entry, got) in self.got.lock().iter().enumerate() {
            let mut bytes = vec![0; self.file(entry).0 as usize];
            for (at, part) in got {
                bytes[*at as usize..][..part.len()].copy_from_slice(part);
            }
            let path = self.manifest.manifest().entries[entry].path.clone();
            let (_, digest, chunks) = self.file(entry);
            if Digest::of(&bytes) != digest {
                let manifest_contradicts_itself = !chunks.is_empty();
                return Err(Quarantined {
                    path,
                    at: PathBuf::from("q"),
                    manifest_contradicts_itself,
                }
                .into());
            }
            files.push((path, Bytes::from(bytes)));
        }
        let receipt = Receipt::sign(
            &self.store.identity,
            self.manifest.id(),
            self.manifest.manifest().origin,
        );
        let names = files.iter().map(|f| f.0.clone()).collect();
        let mut state = self.store.state.lock();
        state.inbox.extend(files);
        state.receipts.insert(self.manifest.id(), receipt.clone());
        drop(state);
        self.store.ring(&Event::ReceiptReady(receipt));
        Ok(names)
    }
    fn park(self: Box<Self>, _: String) {
        self.store
            .state
            .lock()
            .partial
            .insert(self.manifest.id(), self.got.lock().clone());
    }
}
