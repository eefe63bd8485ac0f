//! Fetching: what an offer did not carry, by range requests to whoever offered the bundle.
//!
//! A bundle is fetched by one task ([`pull`]) from all who have something of it at once: those that offered it, and
//! other recipients that tell what they have so far ([`share`]). What is asked of whom is decided by [`plan`].
//! A holder that sends wrong bytes is not used again for that bundle; when nobody is left who has what is missing, the
//! bundle is deferred with the reason, and its origin asked whether it still owes it. What arrived stays parked.
//!
//! # Limits
//! Per peer and in all, a few large fetches and more small ones run at once ([`Slots`]), so that a small bundle never
//! waits behind a large one, and urgent ones have places of their own. Memory per fetch: what [`plan`] lets be on its
//! way, and what the stream windows hold.

mod plan;
mod pull;
pub(crate) mod share;
mod zeros;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use self::pull::{Activity, End};
use self::share::{Seeds, Share};
use crate::bundle::{BundleId, Priority, VerifiedManifest};
use crate::delivery::{Verdict, is_urgent};
use crate::mesh::roster::Peer;
use crate::mesh::session::Input;
use crate::mesh::{Hub, offer};
use crate::peer::PeerId;

/// A bundle up to this size counts as small.
const SMALL: u64 = 4 * 1024 * 1024;

/// Offers of one peer waiting to be fetched, and bytes of their manifests.
const QUEUED_MAX: (usize, usize) = (1024, 16 * 1024 * 1024);

/// Holders remembered for a bundle being fetched.
const HOLDERS_MAX: usize = 16;

/// What may run at once.
pub(crate) struct Slots {
    small: Semaphore,
    large: Semaphore,
    urgent: Semaphore,
    queued: AtomicUsize,
    queued_bytes: AtomicUsize,
}

impl Slots {
    /// For one peer.
    pub(crate) fn of_peer() -> Self {
        Self::new(8, 3, 2)
    }

    /// For all peers together.
    fn of_all() -> Self {
        Self::new(24, 8, 4)
    }

    fn new(small: usize, large: usize, urgent: usize) -> Self {
        let [small, large, urgent] = [small, large, urgent].map(Semaphore::new);
        Self {
            small,
            large,
            urgent,
            queued: AtomicUsize::new(0),
            queued_bytes: AtomicUsize::new(0),
        }
    }

    fn class(&self, size: u64, priority: Priority) -> &Semaphore {
        if is_urgent(priority) {
            &self.urgent
        } else if size <= SMALL {
            &self.small
        } else {
            &self.large
        }
    }
}

/// The fetches that run or wait.
pub(crate) struct Fetches {
    running: Mutex<HashMap<BundleId, Running>>,
    slots: Slots,
    activity: Activity,
    /// Bytes asked for and not on the disk yet.
    flight: AtomicU64,
    pub(crate) seeds: Seeds,
    zeros: zeros::Turns,
}

/// One of them.
struct Running {
    /// Who offered it.
    holders: Vec<PeerId>,
    share: Arc<Share>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            slots: Slots::of_all(),
            activity: Activity::default(),
            flight: AtomicU64::new(0),
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

    /// What is to be shared, if this offer begins a fetch; else `peer` is noted as another holder.
    fn begin(&self, manifest: &VerifiedManifest, peer: PeerId) -> Option<Arc<Share>> {
        match self.running.lock().entry(manifest.id()) {
            Entry::Occupied(mut running) => {
                let Running { holders, share } = running.get_mut();
                if !holders.contains(&peer) && holders.len() < HOLDERS_MAX {
                    holders.push(peer);
                    share.bell.notify_one();
                }
                None
            }
            Entry::Vacant(free) => {
                let share = Share::new(manifest);
                free.insert(Running {
                    holders: vec![peer],
                    share: share.clone(),
                });
                Some(share)
            }
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
    let weight =
        manifest.signed().bytes.len() + inline.iter().flatten().map(Bytes::len).sum::<usize>();
    let full = peer.slots.queued.load(Ordering::Relaxed) >= QUEUED_MAX.0
        || peer.slots.queued_bytes.load(Ordering::Relaxed) > QUEUED_MAX.1;
    let first = if full {
        None
    } else {
        hub.fetches.begin(&manifest, peer.id)
    };
    if first.is_some() {
        peer.slots.queued.fetch_add(1, Ordering::Relaxed);
        peer.slots.queued_bytes.fetch_add(weight, Ordering::Relaxed);
    }
    tokio::spawn(async move {
        let answer = if full {
            Verdict::Deferred("too many offers at once".into())
        } else {
            Verdict::Working
        };
        tell(&peer, bundle, answer).await;
        let Some(share) = first else {
            return;
        };
        let verdict = fetch(&hub, &peer, &manifest, inline, &share).await;
        peer.slots.queued.fetch_sub(1, Ordering::Relaxed);
        peer.slots.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
        let ended = hub.fetches.running.lock().remove(&bundle);
        share::ended(&hub, &share, matches!(verdict, Verdict::Taken));
        for holder in ended.map(|running| running.holders).unwrap_or_default() {
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
    let size = manifest
        .manifest()
        .entries
        .iter()
        .map(|e| e.size())
        .fold(0, u64::saturating_add);
    let priority = manifest.manifest().priority;
    let (Ok(mine), Ok(all)) = (
        peer.slots.class(size, priority).acquire().await,
        hub.fetches.slots.class(size, priority).acquire().await,
    ) else {
        return Verdict::Deferred("stopping".into());
    };
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
        drop((mine, all));
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
