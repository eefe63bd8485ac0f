//! Whose zeros are hashed when: of each origin one bundle at a time, and of all origins in turn.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::bundle::BundleId;
use crate::peer::PeerId;

/// Bundles of one origin that wait for the one whose zeros are being hashed. Others are offered again later.
const WAITING_MAX: usize = 8;

/// Whose turn it is.
pub(in crate::mesh::fetch) struct Turns {
    pub(in crate::mesh::fetch) all: Semaphore,
    origins: Mutex<HashMap<PeerId, Origin>>,
    /// What is hashed or waits for it, by whom, and the bell for its end.
    bundles: Mutex<HashMap<BundleId, (PeerId, Arc<Notify>)>>,
}

/// One that has bundles here.
struct Origin {
    turn: Arc<Semaphore>,
    bundles: usize,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            all: Semaphore::new(1),
            origins: Mutex::default(),
            bundles: Mutex::default(),
        }
    }
}

/// A bundle in the queue of its origin.
pub(in crate::mesh::fetch) struct Place<'a> {
    turns: &'a Turns,
    bundle: BundleId,
    origin: PeerId,
    pub(in crate::mesh::fetch) turn: Arc<Semaphore>,
    /// Rung when its origin does not owe it any more.
    pub(in crate::mesh::fetch) ended: Arc<Notify>,
}

impl Turns {
    /// `None`: too many wait.
    pub(in crate::mesh::fetch) fn place(
        &self,
        bundle: BundleId,
        origin: PeerId,
    ) -> Option<Place<'_>> {
        let mut origins = self.origins.lock();
        let of = origins.entry(origin).or_insert_with(|| Origin {
            turn: Arc::new(Semaphore::new(1)),
            bundles: 0,
        });
        if of.bundles > WAITING_MAX {
            return None;
        }
        of.bundles += 1;
        let (turn, ended) = (Arc::clone(&of.turn), Arc::new(Notify::new()));
        let row = (origin, Arc::clone(&ended));
        self.bundles.lock().insert(bundle, row);
        Some(Place {
            turns: self,
            bundle,
            origin,
            turn,
            ended,
        })
    }

    /// `origin` does not owe the bundle any more.
    pub(in crate::mesh::fetch) fn withdrawn(&self, bundle: BundleId, origin: PeerId) {
        if let Some((by, ended)) = self.bundles.lock().get(&bundle)
            && *by == origin
        {
            ended.notify_one();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.bundles.lock().remove(&self.bundle);
        if let Entry::Occupied(mut of) = self.turns.origins.lock().entry(self.origin) {
            of.get_mut().bundles -= 1;
            if of.get().bundles == 0 {
                of.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Identity;

    #[test]
    fn an_origin_with_many_bundles_keeps_only_itself_waiting() {
        let turns = Turns::default();
        let [hostile, honest] = [(); 2].map(|()| Identity::generate().id());
        let places: Vec<_> = (0..=WAITING_MAX)
            .map(|n| turns.place(BundleId([n as u8; 32]), hostile).unwrap())
            .collect();
        let other = BundleId([99; 32]);
        assert!(turns.place(other, hostile).is_none());
        assert!(places[0].turn.try_acquire().is_ok());
        let place = turns.place(other, honest).unwrap();
        let _mine = places[0].turn.try_acquire().unwrap();
        assert!(places[1].turn.try_acquire().is_err(), "one at a time");
        assert!(place.turn.try_acquire().is_ok(), "of each origin");
        drop(_mine);
        drop((places, place));
        assert!(turns.origins.lock().is_empty() && turns.bundles.lock().is_empty());
    }
}
