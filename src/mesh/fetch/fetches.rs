//! The fetches that run or wait: who holds what is fetched, whose turn it is, and what is shared of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::activity::Activity;
use super::share::{Seeds, Share};
use super::turns::Turns;
use super::zeros::turns::Turns as ZeroTurns;
use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::roster::{Peer, Roster};
use crate::mesh::wire::{Have, RangeRequest};
use crate::peer::PeerId;
use crate::spool::{ContentReader, ServeError, Spool};

/// Holders remembered for a bundle being fetched.
const HOLDERS_MAX: usize = 16;

/// The fetches that run or wait.
pub(crate) struct Fetches {
    running: Mutex<HashMap<BundleId, Running>>,
    /// Taken after `running`, where both are.
    turns: Mutex<Turns>,
    begun: Instant,
    pub(super) activity: Activity,
    seeds: Seeds,
    pub(super) zeros: ZeroTurns,
}

/// Comes when it is a fetch's turn.
pub(super) type Turn = oneshot::Receiver<()>;

/// One of them.
struct Running {
    /// Who offered it.
    holders: Vec<PeerId>,
    share: Arc<Share>,
    /// Said when it is its turn.
    turn: Option<oneshot::Sender<()>>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            turns: Mutex::default(),
            begun: Instant::now(),
            activity: Activity::default(),
            seeds: Seeds::default(),
            zeros: ZeroTurns::default(),
        }
    }
}

impl Fetches {
    /// Whether the bundle is being fetched, or waits for it.
    pub(crate) fn is_running(&self, bundle: BundleId) -> bool {
        self.running.lock().contains_key(&bundle)
    }

    pub(super) fn holders(&self, bundle: BundleId) -> Vec<PeerId> {
        self.running
            .lock()
            .get(&bundle)
            .map(|running| running.holders.clone())
            .unwrap_or_default()
    }

    /// What is to be shared and when, if this offer of a bundle that ends then begins a fetch; else `peer` is noted as
    /// another holder.
    pub(super) fn begin(
        &self,
        manifest: &VerifiedManifest,
        peer: PeerId,
        end: u64,
    ) -> Option<(Arc<Share>, Turn)> {
        let (says, bundle) = (manifest.manifest(), manifest.id());
        let sizes = says.entries.iter().map(|entry| entry.size());
        let size = sizes.fold(0, u64::saturating_add);
        let mut running = self.running.lock();
        let begun = match running.entry(bundle) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.share.ends(end);
                if known.holders.contains(&peer) || known.holders.len() >= HOLDERS_MAX {
                    return None;
                }
                known.holders.push(peer);
                known.share.bell.notify_one();
                self.turns.lock().offered_too(bundle, peer);
                None
            }
            Entry::Vacant(free) => {
                let share = Share::new(manifest, end);
                let (turn, comes) = oneshot::channel();
                free.insert(Running {
                    holders: vec![peer],
                    share: share.clone(),
                    turn: Some(turn),
                });
                self.turns.lock().offered(bundle, peer, size, says.priority);
                Some((share, comes))
            }
        };
        let ready = self.turns.lock().begin();
        wake(&mut running, &ready);
        begun
    }

    /// All bytes are here: others may begin.
    pub(super) fn pulled(&self, bundle: BundleId) {
        let mut running = self.running.lock();
        let mut turns = self.turns.lock();
        turns.ended(bundle);
        wake(&mut running, &turns.begin());
    }

    /// A fetch is over: who else held the bundle.
    pub(super) fn end(&self, bundle: BundleId) -> Vec<PeerId> {
        let mut running = self.running.lock();
        let ended = running.remove(&bundle);
        let mut turns = self.turns.lock();
        turns.ended(bundle);
        wake(&mut running, &turns.begin());
        ended.map(|running| running.holders).unwrap_or_default()
    }

    /// Whether a piece may be asked of `peer` now; then it counts as on its way until it [`Self::landed`].
    pub(super) fn fly(&self, bundle: BundleId, peer: PeerId, len: u64) -> bool {
        let now = self.begun.elapsed();
        self.turns.lock().fly(bundle, peer, len, now)
    }

    /// A piece is on the disk, or does not come.
    pub(super) fn landed(&self, bundle: BundleId, peer: PeerId, len: u64) {
        let now = self.begun.elapsed();
        let next = self.turns.lock().landed(bundle, peer, len, now);
        if let Some(share) = next.and_then(|next| self.share(next)) {
            share.bell.notify_one();
        }
    }

    /// `origin` does not owe the bundle any more: its zeros are not hashed any further.
    pub(crate) fn withdrawn(&self, bundle: BundleId, origin: PeerId) {
        self.zeros.withdrawn(bundle, origin);
    }

    /// What is told about the bundle, if it is being fetched.
    fn share(&self, bundle: BundleId) -> Option<Arc<Share>> {
        let running = self.running.lock();
        running.get(&bundle).map(|running| running.share.clone())
    }

    /// The same, also of one that is whole here and still served.
    fn shared(&self, bundle: BundleId) -> Option<Arc<Share>> {
        self.share(bundle).or_else(|| self.seeds.get(bundle))
    }

    /// A peer says what it has of a bundle.
    pub(crate) fn told(&self, store: &Spool, peer: &Peer, have: Have) {
        if let Some(share) = self.shared(have.bundle) {
            share.told(store, peer, have);
        }
    }

    /// A peer serves nothing of these any more.
    pub(crate) fn gone(&self, peer: PeerId, bundles: &[BundleId]) {
        for share in bundles.iter().filter_map(|bundle| self.shared(*bundle)) {
            share.gone(peer);
        }
    }

    /// The fetch ended: who still fetches it is told that it is whole here, or that there is nothing to be had.
    pub(super) fn tell_end(&self, store: &Spool, roster: &Roster, share: &Arc<Share>, whole: bool) {
        if share.ended(roster, whole && !share.is_over(store)) {
            self.seeds.add(share.clone());
        }
    }

    /// Opens what arrived here of a bundle of another's, if `peer` may have it and every chunk of the range was checked.
    /// Blocks on disk.
    pub(crate) fn open(
        &self,
        store: &Spool,
        peer: PeerId,
        request: &RangeRequest,
    ) -> Result<ContentReader, ServeError> {
        let share = self.shared(request.bundle);
        share.ok_or(ServeError::NotHeld)?.open(store, peer, request)
    }
}

fn wake(running: &mut HashMap<BundleId, Running>, ready: &[BundleId]) {
    for bundle in ready {
        let turn = running.get_mut(bundle).and_then(|it| it.turn.take());
        if let Some(turn) = turn {
            // Whoever waits for it lives as long as the row.
            turn.send(()).ok();
        }
    }
}
