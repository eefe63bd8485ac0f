//! Zeros that did not travel: who may hash them when.
//!
//! A run of zeros costs its origin one item of a manifest and its receiver the SHA-256 over all of it. So it is done
//! after all that travels is here, outside the places for fetches; of each origin one bundle at a time, and of all
//! origins in turn, at the pace that the store says. It ends with the bundle: when that is cancelled, expired or
//! superseded; since the origin may have put something newer in its place that waits behind it, it is asked from time to
//! time whether it still owes the bundle.

pub(super) mod turns;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::pull::{End, GIVES_WAY};
use crate::bundle::VerifiedManifest;
use crate::mesh::budget::Held;
use crate::mesh::hub::Hub;
use crate::mesh::lane::blocking;
use crate::protocol::session::Input;
use crate::spool::{Incoming, IntakeError};

/// How often an origin is asked whether it still owes what is being hashed.
const ASK: Duration = Duration::from_secs(10);

/// Hashes the zeros of a bundle of which all else is here. Gives it back with how it went; `None` when a task failed.
pub(super) async fn hash(
    hub: &Arc<Hub>,
    manifest: &VerifiedManifest,
    arriving: Box<Incoming>,
    held: &Held,
) -> Option<(Box<Incoming>, End)> {
    let (mut arriving, mut left) = step(arriving).await?;
    let Ok(Some(_)) = left else {
        return Some((arriving, ended(left)));
    };
    let turns = &hub.fetches.zeros;
    let Some(place) = turns.place(manifest.id(), manifest.manifest().origin) else {
        let why = "zeros of its origin's other files are being hashed";
        return Some((arriving, End::Stuck(why.into())));
    };
    ask(hub, manifest);
    let mut asked = Instant::now();
    let gone = || End::Stuck("its origin does not owe it any more".into());
    let _turn = tokio::select! {
        turn = place.turn.acquire() => turn.ok()?,
        () = place.ended.notified() => return Some((arriving, gone())),
        () = held.wanted() => return Some((arriving, End::Stuck(GIVES_WAY.into()))),
    };
    while let Ok(Some(wait)) = left {
        if hub.is_stopping() {
            return Some((arriving, End::Stuck("stopping".into())));
        }
        if held.is_wanted() {
            return Some((arriving, End::Stuck(GIVES_WAY.into())));
        }
        if asked.elapsed() >= ASK {
            ask(hub, manifest);
            asked = Instant::now();
        }
        let _all = tokio::select! {
            all = turns.all.acquire() => all.ok()?,
            () = place.ended.notified() => return Some((arriving, gone())),
            () = held.wanted() => continue,
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = place.ended.notified() => return Some((arriving, gone())),
        }
        (arriving, left) = step(arriving).await?;
    }
    Some((arriving, ended(left)))
}

/// Asks the origin, if it is connected, whether it still owes the bundle.
fn ask(hub: &Hub, manifest: &VerifiedManifest) {
    let origin = manifest.manifest().origin;
    hub.roster.ring(origin, Input::Owed(vec![manifest.id()]));
}

type Step = Result<Option<Duration>, IntakeError>;

async fn step(mut arriving: Box<Incoming>) -> Option<(Box<Incoming>, Step)> {
    blocking(move || {
        let left = arriving.hash_zeros();
        (arriving, left)
    })
    .await
}

fn ended(left: Step) -> End {
    match left {
        Ok(_) => End::Complete,
        Err(error) => End::Disk(error),
    }
}
