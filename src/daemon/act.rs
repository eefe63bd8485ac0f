//! Carries out what the command line asks to be done to bundles.

use super::facts::Facts;
use crate::bundle::{BundleId, RelPath};
use crate::control::act::{Act, ActOutcome, Acted, Named, SendFiles};
use crate::peer::PeerId;
use crate::spool::{Cancelled, Retried, SendRequest, Sent, Spool, split_targets};

/// Does it. Blocks until it is durable.
pub(super) fn act(facts: &Facts, act: Act) -> Acted {
    let spool = &facts.spool;
    match act {
        Act::Cancel { what } => cancel(spool, &what),
        Act::Retry { what, to } => retry(spool, &what, to.as_deref()),
        Act::Send(files) => send(spool, files),
    }
}

fn bundle_of(spool: &Spool, what: &Named) -> Result<BundleId, Acted> {
    let path = match what.path.as_ref().map(RelPath::try_from).transpose() {
        Ok(path) => path,
        Err(error) => return Err(Acted::failed(error.to_string())),
    };
    let named = what.bundle.as_deref();
    let found = spool
        .find_outbound(path.as_ref(), named.and_then(BundleId::from_hex))
        .or_else(|| spool.outbox.sent_as(named?));
    found.ok_or_else(|| {
        let called = path.map_or_else(
            || what.bundle.clone().unwrap_or_default(),
            |path| path.to_string(),
        );
        Acted::failed(format!("nothing was sent from here as {called}"))
    })
}

fn send(spool: &Spool, files: SendFiles) -> Acted {
    let SendFiles {
        files,
        to,
        priority,
        id,
    } = files;
    let mut parsed = Vec::with_capacity(files.len());
    for (from, name) in &files {
        match (RelPath::try_from(from), RelPath::try_from(name)) {
            (Ok(from), Ok(name)) => parsed.push((from, name)),
            (Err(error), _) | (_, Err(error)) => return Acted::failed(error.to_string()),
        }
    }
    let request = SendRequest {
        files: parsed,
        to: to.iter().flat_map(|words| split_targets(words)).collect(),
        priority,
        id,
    };
    if let Err(error) = spool.group.check_targets(&request.to) {
        return Acted::failed(error.to_string());
    }
    let with = |acted: Acted, bundle: BundleId| Acted {
        bundle: Some(bundle.to_string()),
        ..acted
    };
    match spool.send_files(&request) {
        Ok(Sent::Sealed(bundle)) => with(Acted::done(""), bundle),
        Ok(Sent::Held(bundle, why)) => with(Acted::done(format!("waiting: {why}")), bundle),
        Ok(Sent::Same(bundle)) => with(
            Acted::done("the same was sent under this id before"),
            bundle,
        ),
        Ok(Sent::Conflict(bundle)) => Acted {
            outcome: ActOutcome::Conflict,
            ..with(
                Acted::failed("something else was sent under this id before; take another one"),
                bundle,
            )
        },
        Ok(Sent::Refused(why)) => Acted::failed(why),
        Err(error) => Acted::failed(error.to_string()),
    }
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
        Ok(Cancelled::Over) if spool.ledger.ended(bundle, spool.identity().id()).is_some() => {
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
    let peer: Option<PeerId> = match to.map(|name| (name, spool.group.member_named(name))) {
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
