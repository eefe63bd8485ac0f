//! Carries out what the command line asks to be done to bundles.

use super::backend::Facts;
use crate::bundle::{BundleId, RelPath};
use crate::control::act::{Act, Acted, Named};
use crate::peer::PeerId;
use crate::spool::{Cancelled, Retried, Spool};

/// Does it. Blocks until it is durable.
pub(super) fn act(facts: &Facts, act: Act) -> Acted {
    let spool = &facts.spool;
    match act {
        Act::Cancel { what } => cancel(spool, &what),
        Act::Retry { what, to } => retry(spool, &what, to.as_deref()),
    }
}

fn bundle_of(spool: &Spool, what: &Named) -> Result<BundleId, Acted> {
    let path = match what.path.as_ref().map(RelPath::try_from).transpose() {
        Ok(path) => path,
        Err(error) => return Err(Acted::failed(error.to_string())),
    };
    let id = what.bundle.as_deref().and_then(BundleId::from_hex);
    spool.find_outbound(path.as_ref(), id).ok_or_else(|| {
        let called = path.map_or_else(
            || what.bundle.clone().unwrap_or_default(),
            |path| path.to_string(),
        );
        Acted::failed(format!("nothing was sent from here as {called}"))
    })
}

fn cancel(spool: &Spool, what: &Named) -> Acted {
    let bundle = match bundle_of(spool, what) {
        Ok(bundle) => bundle,
        Err(failed) => return failed,
    };
    match spool.cancel(bundle) {
        Ok(Cancelled::Ended(0)) => Acted::done("cancelled; nobody had been promised it"),
        Ok(Cancelled::Ended(1)) => Acted::done("cancelled for 1 recipient"),
        Ok(Cancelled::Ended(many)) => Acted::done(format!("cancelled for {many} recipients")),
        Ok(Cancelled::Over) if spool.ended(bundle, spool.identity().id()).is_some() => {
            Acted::done("it was cancelled before")
        }
        Ok(Cancelled::Over) => Acted::failed("there is nothing left of it to cancel"),
        Ok(Cancelled::Unknown) => Acted::failed("it is not a bundle of this node"),
        Err(error) => Acted::failed(error.to_string()),
    }
}

fn retry(spool: &Spool, what: &Named, to: Option<&str>) -> Acted {
    let bundle = match bundle_of(spool, what) {
        Ok(bundle) => bundle,
        Err(failed) => return failed,
    };
    let peer: Option<PeerId> = match to.map(|name| (name, spool.member_named(name))) {
        None => None,
        Some((_, Ok(peer))) => Some(peer),
        Some((_, Err(why))) => return Acted::failed(why.to_string()),
    };
    match spool.retry(bundle, peer) {
        Ok(Retried::Asked(1)) => Acted::done("1 recipient is asked again"),
        Ok(Retried::Asked(many)) => Acted::done(format!("{many} recipients are asked again")),
        Ok(Retried::Nothing) => Acted::failed("there is nobody to ask again"),
        Ok(Retried::ContentGone) => {
            Acted::failed("its content is not kept any more, as nobody waited for it: send it anew")
        }
        Ok(Retried::Unknown) => Acted::failed("it is not a bundle of this node"),
        Err(error) => Acted::failed(error.to_string()),
    }
}
