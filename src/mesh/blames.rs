//! Blames: who served wrong bytes for what.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bundle::BundleId;
use crate::peer::PeerId;

/// How long an offer from a peer that served wrong bytes for it is not even looked at.
const BLAME_PAUSE: Duration = Duration::from_secs(1);

/// (bundle, peer) pairs blamed at once; more means that all are hostile, and the oldest are forgiven.
const BLAMED_MAX: usize = 1024;

/// Who served wrong bytes for what, for a while.
#[derive(Default)]
pub(crate) struct Blames(Mutex<HashMap<(BundleId, PeerId), (Instant, String)>>);

impl Blames {
    /// Blames `peer`.
    pub(crate) fn add(&self, bundle: BundleId, peer: PeerId, why: &str) {
        let mut blames = self.0.lock();
        if blames.len() >= BLAMED_MAX {
            blames.retain(|_, (since, _)| since.elapsed() < BLAME_PAUSE);
        }
        if blames.len() < BLAMED_MAX {
            blames.insert((bundle, peer), (Instant::now(), why.to_owned()));
        }
    }

    /// Why nothing is taken from `peer` for this bundle now.
    pub(crate) fn active(&self, bundle: BundleId, peer: PeerId) -> Option<String> {
        let blames = self.0.lock();
        let (since, why) = blames.get(&(bundle, peer))?;
        (since.elapsed() < BLAME_PAUSE).then(|| why.clone())
    }
}
