//! Custody on the wire: bundles of others are offered to their other recipients, and receipts find their way back.
//!
//! The offers themselves are those of any bundle that is pending; who is owed what is decided in the spool. Here is what
//! goes beside: an origin says which of its bundles are closed (final for everybody), batched, to those who may be
//! keeping them; who keeps some asks for it when it connects and when its patience ends; receipts go to the origin and
//! to whoever offered the bundle.
//!
//! What an origin says counts only on its own session, so it needs no signature; receipts are signed by their recipient.
//!
//! # Threads
//! One task ([`run`]) that looks at the clock; disk is touched on blocking threads and in the sessions' desks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::bundle::{BundleId, Receipt};
use crate::mesh::hub::Hub;
use crate::mesh::out::Out;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Frame, LIST_MAX};
use crate::peer::PeerId;
use crate::protocol::session::{Done, Input};
use crate::spool::{OriginSays, SpoolError};

/// How often closed bundles are told, and the clock is looked at.
const TICK: Duration = Duration::from_millis(500);

/// Looks at the clock until the mesh stops.
pub(crate) async fn run(hub: Arc<Hub>) {
    let mut ticker = interval(TICK);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !hub.is_stopping() {
        ticker.tick().await;
        let closing = hub.care.take_closing();
        if closing.is_empty() && !hub.store.custodian.custody_due() {
            continue;
        }
        let hub = hub.clone();
        let pass = move || {
            tell_closed(&hub, &closing);
            look(&hub);
        };
        drop(tokio::task::spawn_blocking(pass).await);
    }
}

/// Our own receipt is durable: whoever has the bundle too gets it, and who gave it to us need not be given it.
pub(crate) async fn settled(hub: &Arc<Hub>, receipt: &Receipt) {
    let holders = hub.care.state().holders(receipt.bundle);
    for (holder, _) in &holders {
        hub.roster.ring(*holder, Input::Receipt(receipt.clone()));
    }
    let gave = holders.into_iter().filter(|(_, gave)| *gave);
    let givers: Vec<PeerId> = gave.map(|(peer, _)| peer).collect();
    if givers.is_empty() {
        return;
    }
    let (hub, bundle) = (hub.clone(), receipt.bundle);
    let noted = tokio::task::spawn_blocking(move || hub.store.custodian.given_by(bundle, &givers));
    if let Ok(Err(error)) = noted.await {
        tracing::error!("who gave {bundle:?} is not recorded: {error}");
    }
}

/// Tells those who may be keeping bundles of ours that they are closed. Blocks on disk.
fn tell_closed(hub: &Hub, closing: &[BundleId]) {
    let mut told: BTreeMap<PeerId, Vec<BundleId>> = BTreeMap::new();
    for bundle in closing {
        let recipients = hub.store.ledger.recipients(*bundle);
        let asker = recipients.first().copied().unwrap_or(hub.me);
        match hub.store.ledger.closed_of(asker, &[*bundle]) {
            Ok((closed, _)) if !closed.is_empty() => {
                for peer in recipients {
                    told.entry(peer).or_default().push(*bundle);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!("{bundle:?} cannot be looked up: {error}"),
        }
    }
    for (peer, bundles) in told {
        say(hub, peer, &bundles, Frame::Closed);
    }
}

/// Goes through what is watched. Blocks on disk.
fn look(hub: &Hub) {
    if !hub.store.custodian.custody_due() {
        return;
    }
    let connected = |peer| is_connected(hub, peer);
    match hub.store.custodian.custody_pass(&connected) {
        Ok(asks) => {
            for (origin, bundles) in asks {
                say(hub, origin, &bundles, Frame::Open);
            }
        }
        Err(error) => tracing::error!("custody cannot be looked through: {error}"),
    }
}

fn is_connected(hub: &Hub, peer: PeerId) -> bool {
    hub.roster.get(peer).is_some_and(|p| p.session().is_some())
}

fn say(hub: &Hub, to: PeerId, bundles: &[BundleId], frame: impl Fn(Vec<BundleId>) -> Frame) {
    let Some(session) = hub.roster.get(to).and_then(|peer| peer.session()) else {
        return;
    };
    for page in bundles.chunks(LIST_MAX) {
        session.ring(Input::Say(frame(page.to_vec())));
    }
}

/// A session with `peer` began: it gets receipts for its bundles, and is asked which of those that we carry are closed.
/// Blocks on disk.
pub(crate) fn connected(hub: &Hub, peer: &Peer, out: &Out) {
    if let Some(run) = hub.twins.other_of(peer.id) {
        out.push(&Frame::Twin(run));
    }
    let failed = |error: SpoolError| tracing::error!("custody cannot be read: {error}");
    let mut last: Option<Receipt> = None;
    while let Some(page) = hub
        .store
        .custodian
        .relays(peer.id, last.as_ref(), LIST_MAX)
        .map_err(failed)
        .ok()
        .filter(|page| !page.is_empty())
    {
        last = page.last().cloned();
        out.wait_room();
        out.push(&Frame::Receipts(page));
    }
    let mut last: Option<BundleId> = None;
    while let Some(page) = hub
        .store
        .custodian
        .carried(peer.id, last, LIST_MAX)
        .map_err(failed)
        .ok()
        .filter(|page| !page.is_empty())
    {
        last = page.last().copied();
        out.wait_room();
        out.push(&Frame::Open(page));
    }
}

/// `peer` says this of bundles of its own. Blocks on disk.
pub(crate) fn heard(hub: &Hub, peer: &Peer, bundles: &[BundleId], says: OriginSays) {
    if let Err(error) = hub.store.custodian.origin_says(peer.id, bundles, says) {
        tracing::error!("what {} says is not recorded: {error}", peer.label());
    }
}

/// `peer` asks whether bundles of ours are closed, or answers that some of its own are not. Blocks on disk.
pub(crate) fn heard_open(hub: &Hub, peer: &Peer, bundles: &[BundleId]) -> Option<Done> {
    let answer = || {
        let (closed, open) = hub.store.ledger.closed_of(peer.id, bundles)?;
        let not_ours: Vec<BundleId> = bundles
            .iter()
            .filter(|bundle| !closed.contains(bundle) && !open.contains(bundle))
            .copied()
            .collect();
        let unknown = hub
            .store
            .custodian
            .origin_says(peer.id, &not_ours, OriginSays::Open)?;
        Ok::<Done, SpoolError>(Done::Open {
            closed,
            open,
            unknown,
        })
    };
    answer()
        .map_err(|error| {
            tracing::error!("{} cannot be told what is closed: {error}", peer.label());
        })
        .ok()
}
