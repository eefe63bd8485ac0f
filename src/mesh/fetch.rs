//! Fetching: what an offer did not carry, by range requests to whoever offered the bundle.
//!
//! A bundle is fetched by one task ([`pull`]) from all who have something of it at once: those that offered it, and
//! other recipients that tell what they have so far ([`share`]). What is asked of whom is decided by [`plan`].
//! A holder that sends wrong bytes is not used again for that bundle; when nobody is left who has what is missing, the
//! bundle is deferred with the reason, and its origin asked whether it still owes it. What arrived stays parked.
//!
//! # Limits
//! Which fetches run, and how much of each is on its way, is decided by [`turns`]: by bytes, with a share for each peer
//! that no other can use up, however slow it is. Room on the disk is asked for as it is needed ([`pull`]). A fetch has no
//! thread of its own.

mod disk;
mod plan;
mod pull;
pub(crate) mod share;
mod turns;
mod zeros;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use self::pull::{Activity, End};
use self::share::{Seeds, Share};
use self::turns::Turns;
use crate::bundle::{BundleId, VerifiedManifest};
use crate::delivery::Verdict;
use crate::mesh::roster::Peer;
use crate::mesh::session::Input;
use crate::mesh::{Hub, offer, reader};
use crate::peer::PeerId;

/// Offers of one peer waiting to be fetched.
const QUEUED_MAX: usize = 1024;

/// Holders remembered for a bundle being fetched.
const HOLDERS_MAX: usize = 16;

/// What of one peer's offers waits to be fetched or is.
#[derive(Default)]
pub(crate) struct Queued {
    offers: AtomicUsize,
}

/// The fetches that run or wait.
pub(crate) struct Fetches {
    running: Mutex<HashMap<BundleId, Running>>,
    /// Taken after `running`, where both are.
    turns: Mutex<Turns>,
    begun: Instant,
    activity: Activity,
    pub(crate) seeds: Seeds,
    zeros: zeros::Turns,
}

/// Comes when it is a fetch's turn.
type Turn = oneshot::Receiver<()>;

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
            zeros: zeros::Turns::default(),
        }
    }
}

impl Fetches {
    /// Whether the bundle is being fetched, or waits for it.
    pub(crate) fn is_running(&self, bundle: BundleId) -> bool {
        self.running.lock().contains_key(&bundle)
    }

    fn holders(&self, bundle: BundleId) -> Vec<PeerId> {
        self.running
            .lock()
            .get(&bundle)
            .map(|running| running.holders.clone())
            .unwrap_or_default()
    }

    /// What is to be shared and when, if this offer begins a fetch; else `peer` is noted as another holder.
    fn begin(&self, manifest: &VerifiedManifest, peer: PeerId) -> Option<(Arc<Share>, Turn)> {
        let (says, bundle) = (manifest.manifest(), manifest.id());
        let sizes = says.entries.iter().map(|entry| entry.size());
        let size = sizes.fold(0, u64::saturating_add);
        let mut running = self.running.lock();
        let begun = match running.entry(bundle) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                if known.holders.contains(&peer) || known.holders.len() >= HOLDERS_MAX {
                    return None;
                }
                known.holders.push(peer);
                known.share.bell.notify_one();
                self.turns.lock().offered_too(bundle, peer);
                None
            }
            Entry::Vacant(free) => {
                let share = Share::new(manifest);
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
    fn pulled(&self, bundle: BundleId) {
        let mut running = self.running.lock();
        let mut turns = self.turns.lock();
        turns.ended(bundle);
        wake(&mut running, &turns.begin());
    }

    /// A fetch is over: who else held the bundle.
    fn end(&self, bundle: BundleId) -> Vec<PeerId> {
        let mut running = self.running.lock();
        let ended = running.remove(&bundle);
        let mut turns = self.turns.lock();
        turns.ended(bundle);
        wake(&mut running, &turns.begin());
        ended.map(|running| running.holders).unwrap_or_default()
    }

    /// Whether a piece may be asked of `peer` now; then it counts as on its way until it [`Self::landed`].
    fn fly(&self, bundle: BundleId, peer: PeerId, len: u64) -> bool {
        let now = self.begun.elapsed();
        self.turns.lock().fly(bundle, peer, len, now)
    }

    /// A piece is on the disk, or does not come.
    fn landed(&self, bundle: BundleId, peer: PeerId, len: u64) {
        let now = self.begun.elapsed();
        let next = self.turns.lock().landed(bundle, peer, len, now);
        if let Some(share) = next.and_then(|next| self.share(next)) {
            share.bell.notify_one();
        }
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

/// Starts fetching what is missing of an offer, and tells the peer so. Call within the runtime.
pub(crate) fn start(
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    manifest: VerifiedManifest,
    inline: Vec<Option<Bytes>>,
) {
    let bundle = manifest.id();
    let held = (peer.fetch_purse(&hub.budget)).try_take(reader::weight(&manifest, &inline));
    let full = peer.queued.offers.load(Ordering::Relaxed) >= QUEUED_MAX || held.is_none();
    let first = if full {
        None
    } else {
        hub.fetches.begin(&manifest, peer.id)
    };
    if first.is_some() {
        peer.queued.offers.fetch_add(1, Ordering::Relaxed);
    }
    tokio::spawn(async move {
        let answer = if full {
            Verdict::Deferred(offer::NO_ROOM.into())
        } else {
            Verdict::Working
        };
        tell(&peer, bundle, answer).await;
        let Some((share, turn)) = first else {
            return;
        };
        let verdict = match turn.await {
            Ok(()) => fetch(&hub, &peer, &manifest, inline, &share).await,
            Err(_) => Verdict::Deferred("stopping".into()),
        };
        peer.queued.offers.fetch_sub(1, Ordering::Relaxed);
        drop(held);
        let holders = hub.fetches.end(bundle);
        share::ended(&hub, &share, matches!(verdict, Verdict::Taken));
        for holder in holders {
            if let Some(holder) = hub.roster.get(holder) {
                tell(&holder, bundle, verdict.clone()).await;
            }
        }
    });
}

async fn tell(peer: &Peer, bundle: BundleId, verdict: Verdict) {
    if let Some(session) = peer.session() {
        drop(session.inputs.send(Input::Verdict(bundle, verdict)).await);
    }
}

async fn fetch(
    hub: &Arc<Hub>,
    peer: &Arc<Peer>,
    manifest: &VerifiedManifest,
    inline: Vec<Option<Bytes>>,
    share: &Arc<Share>,
) -> Verdict {
    let opened = blocking({
        let (hub, peer, manifest) = (hub.clone(), peer.clone(), manifest.clone());
        move || {
            let mut arriving = offer::open(&hub, &peer, &manifest)?;
            match offer::feed_inline(&hub, &manifest, arriving.as_mut(), &inline) {
                Ok(()) => Ok(arriving),
                Err(error) => Err(offer::wrong_or_disk(
                    &hub, &peer, &manifest, arriving, &error,
                )),
            }
        }
    });
    let mut arriving = match opened.await {
        Some(Ok(arriving)) => arriving,
        Some(Err(verdict)) => return verdict,
        None => return Verdict::Deferred("the receiver failed".into()),
    };
    let pulled = pull::pull(hub, manifest, arriving, share).await;
    let Some((back, end)) = pulled else {
        return Verdict::Deferred("the receiver failed".into());
    };
    arriving = back;
    let end = if matches!(end, End::Complete) {
        // Hashing zeros may take long, and keeps nobody from fetching.
        hub.fetches.pulled(manifest.id());
        let Some((back, hashed)) = zeros::hash(hub, manifest, arriving).await else {
            return Verdict::Deferred("the receiver failed".into());
        };
        arriving = back;
        hashed.into()
    } else {
        end
    };
    let (hub, peer, manifest) = (hub.clone(), peer.clone(), manifest.clone());
    let done = match end {
        End::Complete => blocking(move || offer::publish(&hub, &peer, &manifest, arriving)).await,
        End::Disk(error) => {
            blocking(move || offer::wrong_or_disk(&hub, &peer, &manifest, arriving, &error)).await
        }
        End::NoRoom(why) => blocking(move || offer::defer(&hub, &manifest, arriving, why)).await,
        End::Stuck(why) => {
            let (bundle, origin) = (manifest.id(), hub.roster.get(manifest.manifest().origin));
            let parked = blocking(move || offer::defer(&hub, &manifest, arriving, why)).await;
            // The origin may have replaced it meanwhile: then nobody waits for it any more.
            if let Some(session) = origin.and_then(|origin| origin.session()) {
                session.ring(Input::Owed(vec![bundle]));
            }
            parked
        }
    };
    done.unwrap_or(Verdict::Deferred("the receiver failed".into()))
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    spawn_blocking(job)
        .await
        .map_err(|error| tracing::error!("a job of the mesh failed: {error}"))
        .ok()
}
