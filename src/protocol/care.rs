//! What is remembered of bundles of others while the mesh runs, across sessions: who has one, and who was told to
//! offer one. Bounded; what is forgotten is asked for again. Times are of any clock that never goes back.

use std::collections::HashMap;
use std::time::Duration;

use crate::bundle::BundleId;
use crate::peer::PeerId;

/// Bundles of which it is remembered who offered them, or who is about to.
const OFFERS_MAX: usize = 8192;

/// How long somebody who was told to offer a bundle is believed to be about to.
const PROMISE: Duration = Duration::from_secs(5);

/// Who was told to offer a bundle, and who was put off because of that, since when.
#[derive(Debug)]
struct Promise {
    by: PeerId,
    until: Duration,
    put_off: Vec<(PeerId, Duration)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Care {
    /// Who is to get our receipt of a bundle of another, and whether it offered the bundle before we had it.
    holders: HashMap<BundleId, Vec<(PeerId, bool)>>,
    promises: HashMap<BundleId, Promise>,
}

impl Care {
    /// `peer` offers a bundle of another: it is to get our receipt too.
    pub(crate) fn offered(&mut self, bundle: BundleId, peer: PeerId) {
        self.holds(bundle, peer, true);
    }

    /// `peer` has a bundle that is published here and not durable yet: it is to get our receipt too. It may have it from
    /// us, so its own receipt is still to be handed on.
    pub(crate) fn has_too(&mut self, bundle: BundleId, peer: PeerId) {
        self.holds(bundle, peer, false);
    }

    fn holds(&mut self, bundle: BundleId, peer: PeerId, gave: bool) {
        if self.holders.len() >= OFFERS_MAX && !self.holders.contains_key(&bundle) {
            // They ask, in time.
            self.holders.clear();
        }
        let of = self.holders.entry(bundle).or_default();
        if !of.iter().any(|(known, _)| *known == peer) {
            of.push((peer, gave));
        }
    }

    /// Who has a bundle that is settled now, and whether it offered it.
    pub(crate) fn holders(&mut self, bundle: BundleId) -> Vec<(PeerId, bool)> {
        self.promises.remove(&bundle);
        self.holders.remove(&bundle).unwrap_or_default()
    }

    /// `peer` is gone: it keeps none of its promises.
    pub(crate) fn gone(&mut self, peer: PeerId, now: Duration) {
        let its = self.promises.values_mut();
        its.filter(|promise| promise.by == peer)
            .for_each(|promise| promise.until = promise.until.min(now));
    }

    /// Whether `peer`, which could offer this bundle, is to be put off because another one was told to. For [`PROMISE`]
    /// in all: the other one may not keep its word.
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
        let known = promise.put_off.iter().find(|(other, _)| *other == peer);
        let since = known.map_or(now, |(_, since)| *since);
        if known.is_none() {
            promise.put_off.push((peer, now));
        }
        now < since + PROMISE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_put_off_while_the_first_may_keep_its_word_and_the_first_one_never() {
        let (mut care, now) = (Care::default(), Duration::from_secs(7));
        let (bundle, peer) = (BundleId([1; 32]), |n| PeerId::from_bytes([n; 32]));
        assert!(!care.put_off(bundle, peer(1), now));
        assert!(care.put_off(bundle, peer(2), now));
        assert!(care.put_off(bundle, peer(3), now));
        assert!(!care.put_off(bundle, peer(1), now));
        let later = now + PROMISE;
        let before = later - Duration::from_millis(1);
        assert!(
            care.put_off(bundle, peer(2), before),
            "it asks again sooner"
        );
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
        for n in 0..1000 {
            let now = now + n * PROMISE / 100;
            care.put_off(bundle, peer(9), now);
            assert_eq!(care.put_off(bundle, peer(1), now), n < 100, "{n}");
        }
    }

    #[test]
    fn who_is_gone_keeps_nobody_waiting_nor_by_coming_again_and_again() {
        let (mut care, now) = (Care::default(), Duration::from_secs(7));
        let (bundle, peer) = (BundleId([1; 32]), |n| PeerId::from_bytes([n; 32]));
        care.put_off(bundle, peer(9), now);
        assert!(care.put_off(bundle, peer(1), now));
        care.gone(peer(1), now);
        assert!(care.put_off(bundle, peer(1), now), "the other one is there");
        care.gone(peer(9), now);
        assert!(!care.put_off(bundle, peer(2), now), "whoever asks first");
        for n in 0..1000 {
            let now = now + n * PROMISE / 100;
            care.gone(peer(9), now);
            care.put_off(bundle, peer(9), now);
            let waits = care.put_off(bundle, peer(1), now);
            assert!(!waits || n < 100, "{n}");
        }
    }

    /// Who got it from us offers it back while ours is not durable yet. It was taken for the giver, and its receipt was
    /// lost: its origin never heard that it was delivered.
    #[test]
    fn who_has_what_is_published_here_already_gave_nothing() {
        let (mut care, bundle) = (Care::default(), BundleId([1; 32]));
        let peer = |n| PeerId::from_bytes([n; 32]);
        care.offered(bundle, peer(1));
        care.has_too(bundle, peer(1));
        care.has_too(bundle, peer(2));
        assert_eq!(care.holders(bundle), [(peer(1), true), (peer(2), false)]);
        assert_eq!(care.holders(bundle), [], "once");
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
        assert!(care.holders.len() <= OFFERS_MAX);
        assert!(care.promises.len() <= OFFERS_MAX);
    }
}
