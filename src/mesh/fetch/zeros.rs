//! Zeros that did not travel: who may hash them when.
//!
//! A run of zeros costs its origin one item of a manifest and its receiver the SHA-256 over all of it. So it is done
//! after all that travels is here, outside the places for fetches; of each origin one bundle at a time, and of all
//! origins in turn, at the pace that the store says. It ends with the bundle: when that is cancelled, expired or
//! superseded; since the origin may have put something newer in its place that waits behind it, it is asked from time to
//! time whether it still owes the bundle.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};

use super::pull::End;
use super::{Fetches, blocking};
use crate::bundle::{BundleId, VerifiedManifest};
use crate::mesh::Hub;
use crate::mesh::session::Input;
use crate::mesh::store::Arriving;
use crate::peer::PeerId;
use crate::spool::IntakeError;

/// Bundles of one origin that wait for the one whose zeros are being hashed. Others are offered again later.
const WAITING_MAX: usize = 8;

/// How often an origin is asked whether it still owes what is being hashed.
const ASK: Duration = Duration::from_secs(10);

/// Whose turn it is.
pub(super) struct Turns {
    all: Semaphore,
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
struct Place<'a> {
    turns: &'a Turns,
    bundle: BundleId,
    origin: PeerId,
    turn: Arc<Semaphore>,
    /// Rung when its origin does not owe it any more.
    ended: Arc<Notify>,
}

impl Turns {
    /// `None`: too many wait.
    fn place(&self, bundle: BundleId, origin: PeerId) -> Option<Place<'_>> {
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
    fn withdrawn(&self, bundle: BundleId, origin: PeerId) {
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

/// How it ended.
pub(super) enum Hashed {
    /// All of it, or as much as was here.
    Done,
    /// Not now.
    Later(String),
    Failed(IntakeError),
}

/// Hashes the zeros of a bundle of which all else is here. Gives it back with how it went; `None` when a task failed.
pub(super) async fn hash(
    hub: &Arc<Hub>,
    manifest: &VerifiedManifest,
    arriving: Box<dyn Arriving>,
) -> Option<(Box<dyn Arriving>, Hashed)> {
    let (mut arriving, mut left) = step(arriving).await?;
    let Ok(Some(_)) = left else {
        return Some((arriving, ended(left)));
    };
    let turns = &hub.fetches.zeros;
    let Some(place) = turns.place(manifest.id(), manifest.manifest().origin) else {
        let why = "zeros of its origin's other files are being hashed";
        return Some((arriving, Hashed::Later(why.into())));
    };
    ask(hub, manifest);
    let mut asked = Instant::now();
    let gone = || Hashed::Later("its origin does not owe it any more".into());
    let _turn = tokio::select! {
        turn = place.turn.acquire() => turn.ok()?,
        () = place.ended.notified() => return Some((arriving, gone())),
    };
    while let Ok(Some(wait)) = left {
        if hub.is_stopping() {
            return Some((arriving, Hashed::Later("stopping".into())));
        }
        if asked.elapsed() >= ASK {
            ask(hub, manifest);
            asked = Instant::now();
        }
        let _all = tokio::select! {
            all = turns.all.acquire() => all.ok()?,
            () = place.ended.notified() => return Some((arriving, gone())),
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = place.ended.notified() => return Some((arriving, gone())),
        }
        (arriving, left) = step(arriving).await?;
    }
    Some((arriving, ended(left)))
}

impl From<Hashed> for End {
    fn from(hashed: Hashed) -> Self {
        match hashed {
            Hashed::Done => Self::Complete,
            Hashed::Later(why) => Self::Stuck(why),
            Hashed::Failed(error) => Self::Disk(error),
        }
    }
}

/// Asks the origin, if it is connected, whether it still owes the bundle.
fn ask(hub: &Hub, manifest: &VerifiedManifest) {
    let origin = hub.roster.get(manifest.manifest().origin);
    if let Some(session) = origin.and_then(|origin| origin.session()) {
        session.ring(Input::Owed(vec![manifest.id()]));
    }
}

impl Fetches {
    /// `origin` does not owe the bundle any more: its zeros are not hashed any further.
    pub(crate) fn withdrawn(&self, bundle: BundleId, origin: PeerId) {
        self.zeros.withdrawn(bundle, origin);
    }
}

type Step = Result<Option<Duration>, IntakeError>;

async fn step(mut arriving: Box<dyn Arriving>) -> Option<(Box<dyn Arriving>, Step)> {
    blocking(move || {
        let left = arriving.hash_zeros();
        (arriving, left)
    })
    .await
}

fn ended(left: Step) -> Hashed {
    match left {
        Ok(_) => Hashed::Done,
        Err(error) => Hashed::Failed(error),
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
