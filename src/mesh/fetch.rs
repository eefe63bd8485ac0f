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

mod activity;
#[cfg(test)]
mod busy;
mod disk;
mod fetches;
mod plan;
mod pull;
mod share;
mod tally;
mod turns;
mod zeros;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

pub(crate) use self::fetches::Fetches;
use self::pull::End;
use self::share::Share;
use crate::bundle::{BundleId, VerifiedManifest};
use crate::delivery::Verdict;
use crate::mesh::budget::Held;
use crate::mesh::hub::Hub;
use crate::mesh::intake;
use crate::mesh::lane::blocking;
use crate::mesh::roster::Peer;
use crate::protocol::session::{Input, NO_ROOM};

/// Offers of one peer waiting to be fetched.
const QUEUED_MAX: usize = 1024;

/// Starts fetching what is missing of an offer, for which `permit` was taken, and tells the peer so. Call within the
/// runtime.
pub(crate) fn start(
    hub: Arc<Hub>,
    peer: Arc<Peer>,
    manifest: VerifiedManifest,
    inline: Vec<Option<Bytes>>,
    permit: Held,
) {
    let bundle = manifest.id();
    let held = if permit.is_long() {
        Some(permit)
    } else {
        (peer.fetch_purse(&hub.budget)).try_take(intake::weight(&manifest, &inline))
    };
    let full = peer.fetching.load(Ordering::Relaxed) >= QUEUED_MAX || held.is_none();
    let first = if full {
        None
    } else {
        let end = hub.store.ledger.end_of(&manifest);
        hub.fetches.begin(&manifest, peer.id, end)
    };
    if first.is_some() {
        peer.fetching.fetch_add(1, Ordering::Relaxed);
    }
    tokio::spawn(async move {
        let answer = if full {
            Verdict::Deferred(NO_ROOM.into())
        } else {
            Verdict::Working
        };
        tell(&peer, bundle, answer).await;
        let (Some((share, turn)), Some(held)) = (first, held) else {
            return;
        };
        let verdict = tokio::select! {
            turn = turn => match turn {
                Ok(()) => fetch(&hub, &peer, &manifest, inline, &share, &held).await,
                Err(_) => Verdict::Deferred("stopping".into()),
            },
            () = held.wanted() => Verdict::Deferred(NO_ROOM.into()),
        };
        peer.fetching.fetch_sub(1, Ordering::Relaxed);
        let holders = hub.fetches.end(bundle);
        let (store, whole) = (&hub.store, matches!(verdict, Verdict::Taken));
        hub.fetches.tell_end(store, &hub.roster, &share, whole);
        // The memory first, then what was taken for it.
        drop((share, manifest));
        drop(held);
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
    held: &Held,
) -> Verdict {
    let opened = blocking({
        let (hub, peer, manifest) = (hub.clone(), peer.clone(), manifest.clone());
        move || {
            let mut arriving = intake::open(&hub, &peer, &manifest)?;
            match intake::feed_inline(&hub, &manifest, arriving.as_mut(), &inline) {
                Ok(()) => Ok(arriving),
                Err(error) => Err(intake::wrong_or_disk(
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
    let pulled = pull::pull(hub, manifest, arriving, share, held).await;
    let Some((back, end)) = pulled else {
        return Verdict::Deferred("the receiver failed".into());
    };
    arriving = back;
    let end = if matches!(end, End::Complete) {
        // Hashing zeros may take long, and keeps nobody from fetching.
        hub.fetches.pulled(manifest.id());
        let Some((back, end)) = zeros::hash(hub, manifest, arriving, held).await else {
            return Verdict::Deferred("the receiver failed".into());
        };
        arriving = back;
        end
    } else {
        end
    };
    let (hub, peer, manifest) = (hub.clone(), peer.clone(), manifest.clone());
    let done = match end {
        End::Complete => blocking(move || intake::publish(&hub, &peer, &manifest, *arriving)).await,
        End::Disk(error) => {
            blocking(move || intake::wrong_or_disk(&hub, &peer, &manifest, arriving, &error)).await
        }
        End::NoRoom(why) => blocking(move || intake::defer(&hub, &manifest, *arriving, why)).await,
        End::Stuck(why) => {
            let (bundle, origin) = (manifest.id(), manifest.manifest().origin);
            let parked = blocking({
                let hub = hub.clone();
                move || intake::defer(&hub, &manifest, *arriving, why)
            });
            let parked = parked.await;
            // The origin may have replaced it meanwhile: then nobody waits for it any more.
            hub.roster.ring(origin, Input::Owed(vec![bundle]));
            parked
        }
    };
    done.unwrap_or(Verdict::Deferred("the receiver failed".into()))
}
