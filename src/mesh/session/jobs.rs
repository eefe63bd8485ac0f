//! What a session has to look up or write, done against the spool. Blocks on disk, but for what is done at once.
//!
//! `TellCancels` and `HandOver`, whose lists have no bound, say them page by page, when little is unsent, so that neither the
//! list nor what is to be sent of it is in memory whole.

use std::sync::Arc;

use crate::bundle::{BundleId, Priority, Receipt};
use crate::delivery::PAGE;
use crate::mesh::hub::Hub;
use crate::mesh::out::Out;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{Frame, MemberFrame, pages};
use crate::mesh::{cancel, custody, offer};
use crate::peer::PeerId;
use crate::protocol::offers::Standing;
use crate::protocol::session::{Done, Job, Lane, Saying};
use crate::spool::OriginSays;
use crate::spool::Rank;

/// What an offer counts for the pacer: what it is not known to be, small.
const OFFER: usize = 64 * 1024;

/// What jobs of one session need.
pub(super) struct Jobs {
    pub(super) hub: Arc<Hub>,
    pub(super) peer: Arc<Peer>,
    pub(super) out: Out,
}

impl Jobs {
    /// Does a job of that lane; what came of it, if that matters.
    pub(super) fn run(&self, job: Job, lane: Lane) -> Option<Done> {
        let (hub, peer, out) = (&self.hub, &self.peer, &self.out);
        match job {
            Job::Group => {
                return Some(Done::Group(
                    hub.members_to_tell(),
                    hub.store.group.roll_digest(),
                ));
            }
            Job::Roll(theirs) => {
                let ours = hub.store.group.roll_digest();
                return Some(Done::Roll { ours, theirs });
            }
            Job::Statements => {
                for page in pages(hub.store.group.statements()) {
                    out.push(&Frame::Member(MemberFrame::Statements(page)));
                }
            }
            Job::Page(after) => return Some(self.page(after)),
            Job::Offer(bundle, priority) => return self.offer(bundle, priority, lane),
            Job::Show(bundle, state) => {
                if let Err(error) = hub.store.set_delivery(bundle, peer.id, state) {
                    tracing::error!("state of {bundle:?} not recorded: {error}");
                }
            }
            Job::Answer(ids) => return Some(Done::Standing(self.standing(ids))),
            Job::Receipts(receipts) => return Some(Done::Receipts(self.take_receipts(receipts))),
            Job::Owed(mut ids) => {
                ids.retain(|bundle| !hub.store.ledger.is_pending(*bundle, peer.id));
                return Some(Done::NotOwed(ids));
            }
            Job::Withdrawn(ids) => self.withdrawn(ids),
            Job::Cancels(list) => return Some(Done::Ended(cancel::take(hub, peer, list))),
            Job::CancelsSeen(ids) => cancel::seen(hub, peer, &ids),
            Job::TellCancels => cancel::tell(hub, peer, out),
            Job::Unfinished => return Some(Done::Unfinished(hub.store.unfinished(peer.id))),
            Job::HandOver => custody::connected(hub, peer, out),
            Job::OriginSays(ids, Saying::Closed) => {
                custody::heard(hub, peer, &ids, OriginSays::Closed);
            }
            Job::OriginSays(ids, Saying::Unknown) => {
                custody::heard(hub, peer, &ids, OriginSays::Unknown);
            }
            Job::Open(ids) => return custody::heard_open(hub, peer, &ids),
            Job::Members(told) => hub.told(&told, peer.id),
            Job::TakeStatements(told) => {
                if let Err(error) = hub.store.group.take_statements(told) {
                    tracing::error!("statements on the group not recorded: {error}");
                }
            }
        }
        None
    }

    fn page(&self, after: Option<u64>) -> Done {
        let rows = self.hub.store.ledger.pending(self.peer.id, after, PAGE);
        let rows = rows.unwrap_or_else(|error| {
            tracing::error!("the journal cannot be read: {error}");
            Vec::new()
        });
        let ranked = |(rank, bundle): &(u64, BundleId)| (*bundle, Rank(*rank).priority());
        Done::Page {
            cursor: rows.last().map(|row| row.0).or(after),
            rows: rows.iter().map(ranked).collect(),
            end: rows.len() < PAGE,
        }
    }

    fn offer(&self, bundle: BundleId, priority: Priority, lane: Lane) -> Option<Done> {
        let urgent = lane == Lane::Express;
        if !urgent {
            self.out.wait_room();
        }
        if !offer::send(&self.hub, &self.peer, bundle, &self.out, urgent) {
            return Some(Done::Gone(bundle));
        }
        self.hub.pacer.note(self.out.conn(), priority, OFFER);
        None
    }

    fn standing(&self, ids: Vec<BundleId>) -> Vec<(BundleId, Standing)> {
        let (hub, peer) = (&self.hub, self.peer.id);
        let standing = |id| (id, offer::standing(hub, id, peer));
        ids.into_iter().map(standing).collect()
    }

    fn withdrawn(&self, ids: Vec<BundleId>) {
        for bundle in ids {
            self.hub.fetches.withdrawn(bundle, self.peer.id);
            if let Err(error) = self.hub.store.withdrawn(bundle, self.peer.id) {
                tracing::error!("{bundle:?} cannot be given up: {error}");
            }
        }
    }

    /// Of which bundles a receipt was recorded, and whose.
    fn take_receipts(&self, receipts: Vec<Receipt>) -> Vec<(BundleId, PeerId)> {
        let hub = &self.hub;
        let mut taken = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let bundle = receipt.bundle;
            let owed = hub.store.ledger.is_pending(bundle, receipt.recipient);
            let what = if owed {
                offer::describe_held(hub, bundle)
            } else {
                None
            };
            match hub.store.take_receipt(&receipt) {
                Ok(true) => {
                    if let Some(what) = what {
                        tracing::info!("delivered {what} to {}", hub.label_of(receipt.recipient));
                    }
                    taken.push((bundle, receipt.recipient));
                }
                Ok(false) => {
                    tracing::warn!(
                        "{} sent a receipt for {bundle:?} that is not genuine",
                        self.peer.label()
                    );
                }
                Err(error) => tracing::error!("receipt of {bundle:?} not recorded: {error}"),
            }
        }
        taken
    }
}
