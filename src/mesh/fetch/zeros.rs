//! Zeros that did not travel: who may hash them when.
//!
//! A run of zeros costs its origin one item of a manifest and its receiver the SHA-256 over all of it. So it is done
//! after all that travels is here, outside the places for fetches; of each origin one bundle at a time, and of all
//! origins in turn, at the pace that the store says. It ends with the bundle: when that is cancelled, expired or
//! superseded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::blocking;
use super::pull::End;
use crate::bundle::VerifiedManifest;
use crate::mesh::Hub;
use crate::mesh::store::Arriving;
use crate::peer::PeerId;
use crate::spool::IntakeError;

/// Bundles of one origin that wait for the one whose zeros are being hashed. Others are offered again later.
const WAITING_MAX: usize = 8;

/// Whose turn it is.
pub(super) struct Turns {
    all: Semaphore,
    origins: Mutex<HashMap<PeerId, Origin>>,
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
        }
    }
}

/// A bundle in the queue of its origin.
struct Place<'a> {
    turns: &'a Turns,
    origin: PeerId,
    turn: Arc<Semaphore>,
}

impl Turns {
    /// `None`: too many wait.
    fn place(&self, origin: PeerId) -> Option<Place<'_>> {
        let mut origins = self.origins.lock();
        let of = origins.entry(origin).or_insert_with(|| Origin {
            turn: Arc::new(Semaphore::new(1)),
            bundles: 0,
        });
        if of.bundles > WAITING_MAX {
            return None;
        }
        of.bundles += 1;
        let turn = Arc::clone(&of.turn);
        Some(Place {
            turns: self,
            origin,
            turn,
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
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
    let Some(place) = turns.place(manifest.manifest().origin) else {
        let why = "zeros of its origin's other files are being hashed";
        return Some((arriving, Hashed::Later(why.into())));
    };
    let Ok(_turn) = place.turn.acquire().await else {
        return None;
    };
    while let Ok(Some(wait)) = left {
        if hub.is_stopping() {
            return Some((arriving, Hashed::Later("stopping".into())));
        }
        let Ok(_all) = turns.all.acquire().await else {
            return None;
        };
        sleep(wait).await;
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
            .map(|_| turns.place(hostile).unwrap())
            .collect();
        assert!(turns.place(hostile).is_none());
        assert!(places[0].turn.try_acquire().is_ok());
        let place = turns.place(honest).unwrap();
        let _mine = places[0].turn.try_acquire().unwrap();
        assert!(places[1].turn.try_acquire().is_err(), "one at a time");
        assert!(place.turn.try_acquire().is_ok(), "of each origin");
        drop(_mine);
        drop((places, place));
        assert!(turns.origins.lock().is_empty());
    }
}
