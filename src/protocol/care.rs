//! What is remembered of bundles of others while the mesh runs, across sessions: who offered one, and who was told to
//! offer one. Bounded; what is forgotten is asked for again. Times are of any clock that never goes back.

use std::collections::HashMap;
use std::time::Duration;

use crate::bundle::BundleId;
use crate::peer::PeerId;

/// Bundles of which it is remembered who offered them, or who is about to.
const OFFERS_MAX: usize = 8192;

/// How long somebody who was told to offer a bundle is believed to be about to.
const PROMISE: Duration = Duration::from_secs(5);

/// Who was told to offer a bundle, and who was put off because of that.
#[derive(Debug)]
struct Promise {
    by: PeerId,
    until: Duration,
    put_off: Vec<PeerId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Care {
    offered_by: HashMap<BundleId, Vec<PeerId>>,
    promises: HashMap<BundleId, Promise>,
}

impl Care {
    /// `peer` offers a bundle of another: it is to get our receipt too.
    pub(crate) fn offered(&mut self, bundle: BundleId, peer: PeerId) {
        if self.offered_by.len() >= OFFERS_MAX {
            // They ask, in time.
            self.offered_by.clear();
        }
        let by = self.offered_by.entry(bundle).or_default();
        if !by.contains(&peer) {
            by.push(peer);
        }
    }

    /// Who offered a bundle that is settled now.
    pub(crate) fn offerers(&mut self, bundle: BundleId) -> Vec<PeerId> {
        self.promises.remove(&bundle);
        self.offered_by.remove(&bundle).unwrap_or_default()
    }

    /// Whether `peer`, which could offer this bundle, is to be put off because another one was told to. Once only: the
    /// other one may not keep its word.
    pub(crate) fn put_off(&mut self, bundle: BundleId, peer: PeerId, now: Duration) -> bool {
        let promises = &mut self.promises;
        if promises.len() >= OFFERS_MAX {
            promises.retain(|_, promise| promise.until > now);
        }
        if promises.len() >= OFFERS_MAX {
            promises.clear();
        }
        let fresh = || Promise {
            by: peer,
            until: now + PROMISE,
            put_off: Vec::new(),
        };
        let promise = promises.entry(bundle).or_insert_with(fresh);
        if promise.until <= now || promise.by == peer {
            *promise = Promise {
                put_off: std::mem::take(&mut promise.put_off),
                ..fresh()
            };
            return false;
        }
        let first_time = !promise.put_off.contains(&peer);
        if first_time {
            promise.put_off.push(peer);
        }
        first_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_put_off_once_and_the_first_one_never() {
        let (mut care, now) = (Care::default(), Duration::from_secs(7));
        let (bundle, peer) = (BundleId([1; 32]), |n| PeerId::from_bytes([n; 32]));
        assert!(!care.put_off(bundle, peer(1), now));
        assert!(care.put_off(bundle, peer(2), now));
        assert!(care.put_off(bundle, peer(3), now));
        assert!(!care.put_off(bundle, peer(1), now));
        assert!(!care.put_off(bundle, peer(2), now), "its patience is over");
        let later = now + PROMISE;
        assert!(
            !care.put_off(bundle, peer(4), later),
            "the first one did not keep its word"
        );
        assert!(
            !care.put_off(bundle, peer(2), later),
            "nobody is put off twice"
        );
    }

    #[test]
    fn nobody_is_put_off_for_ever_by_one_who_asks_again_and_again() {
        let (mut care, now) = (Care::default(), Duration::from_secs(7));
        let (bundle, peer) = (BundleId([1; 32]), |n| PeerId::from_bytes([n; 32]));
        let put_off = (0..1000).filter(|_| {
            care.put_off(bundle, peer(9), now);
            care.put_off(bundle, peer(1), now)
        });
        assert_eq!(put_off.count(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut care, now) = (Care::default(), Duration::from_secs(7));
        let peer = PeerId::from_bytes([1; 32]);
        for n in 0..3 * OFFERS_MAX as u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            care.offered(BundleId(id), peer);
            care.put_off(BundleId(id), peer, now);
        }
        assert!(care.offered_by.len() <= OFFERS_MAX);
        assert!(care.promises.len() <= OFFERS_MAX);
    }
}
