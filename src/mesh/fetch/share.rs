//! Sharing: receivers of one bundle tell each other what they have of it, and serve that.
//!
//! Only bundles with a file of [`SHARE_MIN`] or more take part. While one is fetched, every change is told to the other
//! recipients, at most four times a second; when it is whole, to those that fetch it still; when it is given up, that
//! there is nothing more to have. Nothing of it outlives the process: after a restart the origin, or who has custody,
//! serves alone.
//!
//! # Invariants
//! 1. Nothing is said to, taken from or served to a peer that is not a recipient of the bundle.
//! 2. A chunk is served only after its hash was checked here.
//! 3. From the end of the bundle's lifetime on nothing is told or served, whatever the store still knows of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::plan::Bits;
use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::roster::{Peer, Roster};
use crate::mesh::wire::{Frame, Have, LIST_MAX, RangeRequest};
use crate::peer::PeerId;
use crate::protocol::session::Input;
use crate::spool::{ContentReader, Incoming, ServeError, Spool};

/// Files below this are fetched before it could be told of them.
const SHARE_MIN: u64 = 4 * 1024 * 1024;

/// How often others are told of what is new, and what they are told in that time: more of it takes longer.
const TELL: Duration = Duration::from_millis(250);
const TELL_BYTES: usize = 64 * 1024;

/// Bundles that are whole here and still served to those that fetch them, and the memory of their manifests, which nobody's
/// budget is charged with.
const SEEDS_MAX: (usize, usize) = (64, 4 * 1024 * 1024);

/// Peers that tell of one bundle.
const TELLERS_MAX: usize = 64;

/// What is known of one bundle here and at others.
pub(super) struct Share {
    manifest: Arc<VerifiedManifest>,
    /// The chunks of entries that take part.
    chunks: BTreeMap<usize, Vec<Range<u64>>>,
    facts: Mutex<Facts>,
    /// When the bundle ends, in the age of the store.
    end: AtomicU64,
    /// Rung when a peer told something, or may be a source now.
    pub(super) bell: Notify,
}

#[derive(Default)]
struct Facts {
    /// Checked chunks of entries that are large enough.
    have: BTreeMap<usize, Bits>,
    whole: bool,
    /// Grows with every change of `have`.
    version: u64,
    others: HashMap<PeerId, Other>,
    told_at: Option<Instant>,
}

/// Another recipient.
#[derive(Default)]
struct Other {
    /// The version that it was told, over which of its sessions.
    told: Option<(u64, [u8; 16])>,
    says: Option<Says>,
}

/// What another recipient says that it has.
#[derive(Clone, Default)]
pub(super) struct Says {
    pub whole: bool,
    pub entries: Vec<(usize, Bits)>,
    /// Not looked at yet.
    new: bool,
}

impl Share {
    pub(super) fn new(manifest: &VerifiedManifest, end: u64) -> Arc<Self> {
        let entries = manifest.manifest().entries.iter().enumerate();
        let large = entries.filter(|(_, entry)| entry.size() >= SHARE_MIN);
        let chunks = large.take(LIST_MAX).map(|(at, entry)| (at, entry.pieces()));
        Arc::new(Self {
            chunks: chunks.collect(),
            manifest: Arc::new(manifest.clone()),
            facts: Mutex::default(),
            end: AtomicU64::new(end),
            bell: Notify::new(),
        })
    }

    /// It was offered again, by who may know better when it ends.
    pub(super) fn ends(&self, end: u64) {
        self.end.store(end, Ordering::Relaxed);
    }

    /// Whether its lifetime is over.
    pub(super) fn is_over(&self, store: &Spool) -> bool {
        store.ledger.is_past(self.end.load(Ordering::Relaxed))
    }

    /// Takes stock of what is here already.
    pub(super) fn begin(&self, arriving: &Incoming) {
        let mut have = BTreeMap::new();
        for (entry, chunks) in &self.chunks {
            let mut bits = Bits::default();
            let missing = arriving.missing(*entry);
            let absent = |at: u64| missing.iter().any(|range| range.contains(&at));
            (0..)
                .zip(chunks)
                .filter(|(_, chunk)| !absent(chunk.start))
                .for_each(|(index, _)| bits.set(index));
            have.insert(*entry, bits);
        }
        let mut facts = self.facts.lock();
        facts.have = have;
        facts.version += 1;
    }

    /// A chunk was checked and written.
    pub(super) fn got(&self, entry: usize, index: u64) {
        let mut facts = self.facts.lock();
        if let Some(bits) = facts.have.get_mut(&entry) {
            bits.set(index);
            facts.version += 1;
        }
    }

    fn is_recipient(&self, peer: PeerId) -> bool {
        self.manifest.manifest().is_for(peer)
    }

    /// What those that `is_up` accepts said since this was last asked.
    pub(super) fn news(&self, is_up: impl Fn(&PeerId) -> bool) -> Vec<(PeerId, Says)> {
        let mut facts = self.facts.lock();
        let up = facts.others.iter_mut().filter(|(peer, _)| is_up(peer));
        let says = up.filter_map(|(peer, other)| {
            let says = other.says.as_mut().filter(|says| says.new)?;
            says.new = false;
            Some((*peer, says.clone()))
        });
        says.collect()
    }

    /// Those that have something of it, and those that fetch it now.
    pub(super) fn tellers(&self) -> (Vec<PeerId>, Vec<PeerId>) {
        let facts = self.facts.lock();
        let tellers = || {
            let says = facts.others.iter();
            says.filter_map(|(peer, other)| Some((*peer, other.says.as_ref()?)))
        };
        let fetching = tellers().filter(|(_, says)| !says.whole);
        (
            tellers().map(|(peer, _)| peer).collect(),
            fetching.map(|(peer, _)| peer).collect(),
        )
    }

    /// Tells the other recipients what is new for them, if it is time.
    pub(super) fn tell(&self, store: &Spool, roster: &Roster) {
        let mut facts = self.facts.lock();
        let bits: usize = facts.have.values().map(|bits| bits.0.len()).sum();
        let pause = TELL * (1 + (bits * facts.others.len() / TELL_BYTES) as u32);
        let early = facts.told_at.is_some_and(|at| at.elapsed() < pause);
        if facts.have.is_empty() || early || self.is_over(store) {
            return;
        }
        facts.told_at = Some(Instant::now());
        let frame = self.frame(&facts);
        let version = facts.version;
        for (peer, session) in roster.sessions() {
            if !self.is_recipient(peer.id) || !facts.knows(peer.id) {
                continue;
            }
            let other = facts.others.entry(peer.id).or_default();
            let now = Some((version, session.incarnation));
            if other.told != now && other.says.as_ref().is_none_or(|says| !says.whole) {
                other.told = now;
                session.ring(Input::Say(frame.clone()));
            }
        }
    }

    fn frame(&self, facts: &Facts) -> Frame {
        let entries = facts.have.iter().filter(|_| !facts.whole);
        Frame::Have(Have {
            bundle: self.manifest.id(),
            whole: facts.whole,
            entries: entries
                .map(|(entry, bits)| (*entry as u32, bits.0.clone()))
                .collect(),
        })
    }

    /// Whether every byte of the range is of a checked chunk.
    fn holds(&self, request: &RangeRequest) -> bool {
        let facts = self.facts.lock();
        let entry = request.entry as usize;
        let (Some(bits), Some(chunks), Some(end)) = (
            facts.have.get(&entry),
            self.chunks.get(&entry),
            request.offset.checked_add(request.len),
        ) else {
            return facts.whole;
        };
        let mut at = request.offset;
        let first = chunks.partition_point(|chunk| chunk.end <= at);
        for (index, chunk) in (first as u64..).zip(&chunks[first..]) {
            if at >= end || chunk.start > at || !bits.has(index) {
                break;
            }
            at = chunk.end;
        }
        facts.whole || at >= end
    }

    /// A peer says what it has of the bundle.
    pub(super) fn told(&self, store: &Spool, peer: &Peer, have: Have) {
        if !self.is_recipient(peer.id) {
            tracing::debug!("{} tells of a bundle that is not for it", peer.label());
            return;
        }
        let fits = |(entry, bits): (u32, Vec<u8>)| {
            let most = self.chunks.get(&(entry as usize))?.len().div_ceil(8);
            (bits.len() <= most).then_some((entry as usize, Bits(bits)))
        };
        let says = Says {
            whole: have.whole,
            entries: have.entries.into_iter().filter_map(fits).collect(),
            new: true,
        };
        let mut facts = self.facts.lock();
        if !facts.knows(peer.id) {
            return;
        }
        let fetching = !says.whole;
        let whole = facts.whole;
        let other = facts.others.entry(peer.id).or_default();
        if other.says.is_none() {
            // It has just begun; what it was told before, it did not understand.
            other.told = None;
        }
        other.says = Some(says);
        if whole && fetching && other.told.is_none() && !self.is_over(store) {
            other.told = Some((u64::MAX, [0; 16]));
            let frame = self.frame(&facts);
            if let Some(session) = peer.session() {
                session.ring(Input::Say(frame));
            }
        }
        drop(facts);
        self.bell.notify_one();
    }

    /// A peer serves nothing of it any more.
    pub(super) fn gone(&self, peer: PeerId) {
        if let Some(other) = self.facts.lock().others.get_mut(&peer) {
            // Not a source; and told anew when it begins again.
            other.says = None;
            other.told = None;
        }
        self.bell.notify_one();
    }

    /// The fetch ended: tells those that still fetch it. Whether it is to be served on.
    pub(super) fn ended(&self, roster: &Roster, whole: bool) -> bool {
        let mut facts = self.facts.lock();
        if facts.have.is_empty() {
            return false;
        }
        facts.whole = whole;
        let frame = if whole {
            self.frame(&facts)
        } else {
            Frame::Gone(vec![self.manifest.id()])
        };
        for (peer, other) in &mut facts.others {
            let waits = other.says.as_ref().is_some_and(|says| !says.whole);
            let told = other.told.take().is_some();
            if (waits || (told && !whole))
                && let Some(session) = roster.get(*peer).and_then(|peer| peer.session())
            {
                other.told = Some((u64::MAX, [0; 16]));
                session.ring(Input::Say(frame.clone()));
            }
        }
        whole
    }

    /// Opens what arrived here, if `peer` may have it and every chunk of the range was checked. Blocks on disk.
    pub(super) fn open(
        &self,
        store: &Spool,
        peer: PeerId,
        request: &RangeRequest,
    ) -> Result<ContentReader, ServeError> {
        if !self.is_recipient(peer) || !self.holds(request) {
            return Err(ServeError::NotHeld);
        }
        let (entry, end) = (request.entry as usize, self.end.load(Ordering::Relaxed));
        store.open_arrived(&self.manifest, entry, peer, end)
    }
}

impl Facts {
    /// Whether there is room for that peer.
    fn knows(&self, peer: PeerId) -> bool {
        self.others.len() < TELLERS_MAX || self.others.contains_key(&peer)
    }
}

/// What is whole here and still served.
#[derive(Default)]
pub(super) struct Seeds(Mutex<VecDeque<Arc<Share>>>);

impl Seeds {
    pub(super) fn get(&self, bundle: BundleId) -> Option<Arc<Share>> {
        let seeds = self.0.lock();
        seeds.iter().find(|s| s.manifest.id() == bundle).cloned()
    }

    pub(super) fn add(&self, share: Arc<Share>) {
        let mut seeds = self.0.lock();
        seeds.push_front(share);
        let weight = |share: &Arc<Share>| share.manifest.memory();
        while seeds.len() > SEEDS_MAX.0 || seeds.iter().map(weight).sum::<usize>() > SEEDS_MAX.1 {
            seeds.pop_back();
        }
    }
}
