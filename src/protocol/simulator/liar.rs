//! Members that say what is not so: of themselves, of others, of bundles that do not concern them.

use super::world::{Ev, Said, World, bundle_id, cancel, receipt};
use super::{Bundle, Member};
use crate::bundle::{BundleId, Cancel, Receipt};
use crate::delivery::Verdict;
use crate::peer::Signature;
use crate::protocol::frame::Frame;

impl World {
    /// What `from` says instead of `said`.
    pub(super) fn as_it_says(&mut self, from: Member, to: Member, said: Said) -> Vec<Said> {
        if self.honest(from) || self.random.chance(500) {
            return vec![said];
        }
        match said {
            Said::Frame(Frame::Verdicts(list)) => {
                let list = list.into_iter();
                let list = list.map(|(id, verdict)| match self.random.below(3) {
                    0 => (id, verdict),
                    1 => (id, self.any_verdict(id, from)),
                    _ => {
                        let other = self.any_bundle();
                        (other, self.any_verdict(other, from))
                    }
                });
                let list: Vec<(BundleId, Verdict)> = list.collect();
                vec![Said::Frame(Frame::Verdicts(list))]
            }
            // Taken, and never a receipt.
            Said::Frame(Frame::Receipts(_) | Frame::Cancels(_)) => Vec::new(),
            Said::Offer(id) => match self.random.below(3) {
                0 => vec![Said::Offer(id), Said::Offer(id)],
                1 => vec![Said::Offer(self.any_bundle())],
                _ => Vec::new(),
            },
            Said::Frame(_) => vec![self.any_frame(from, to)],
        }
    }

    /// A liar speaks up.
    pub(super) fn lie_unasked(&mut self, member: Member) {
        let peers: Vec<Member> = self.nodes[member].sessions.keys().copied().collect();
        if let Some(peer) = self.random.pick(&peers) {
            let frame = self.any_frame(member, peer);
            self.stats.lies += 1;
            self.send(member, peer, frame, false);
        }
        let delay = self.random.between(500, 8_000);
        self.at(delay, Ev::Lie(member));
    }

    fn any_bundle(&mut self) -> BundleId {
        if self.random.chance(50) {
            return BundleId([0xff; 32]);
        }
        bundle_id(self.random.below(self.truths.len() as u64) as Bundle)
    }

    /// A receipt: its own, somebody else's that it has seen, or a forged one.
    fn any_receipt(&mut self, id: BundleId, from: Member) -> Option<Receipt> {
        let bundle = super::world::bundle_of(id);
        let truth = self.truths.get(bundle)?;
        let origin = truth.origin;
        let other = self.random.pick(&self.truths[bundle].recipients)?;
        let seen = !self.honest(other)
            || self.nodes[other]
                .disk
                .is_safe(bundle, self.truths[bundle].chunks);
        Some(match self.random.below(3) {
            0 => receipt(bundle, origin, from),
            1 if seen => receipt(bundle, origin, other),
            _ => Receipt {
                signature: Signature([7; 64]),
                ..receipt(bundle, origin, other)
            },
        })
    }

    fn any_verdict(&mut self, id: BundleId, from: Member) -> Verdict {
        match self.random.below(6) {
            0 => Verdict::Want,
            1 => Verdict::Working,
            2 => Verdict::Taken,
            3 => Verdict::Refused("never".into()),
            4 => Verdict::Deferred("later".into()),
            _ => match self.any_receipt(id, from) {
                Some(receipt) => Verdict::Settled(Box::new(receipt)),
                None => Verdict::Want,
            },
        }
    }

    fn any_frame(&mut self, from: Member, _to: Member) -> Said {
        let id = self.any_bundle();
        Said::Frame(match self.random.below(10) {
            0 => Frame::Pending((0..4).map(|_| self.any_bundle()).collect()),
            1 => Frame::Verdicts(vec![(id, self.any_verdict(id, from))]),
            2 => Frame::Receipts(self.any_receipt(id, from).into_iter().collect()),
            3 => return Said::Offer(id),
            4 => Frame::Owed(vec![id]),
            5 => Frame::Withdrawn(vec![id]),
            6 => Frame::Cancels(self.any_cancel(id).into_iter().collect()),
            7 => Frame::Unknown(vec![id]),
            8 => Frame::Open(vec![id]),
            _ => Frame::Closed(vec![id]),
        })
    }

    /// A cancel: one that its origin may have made, or a forged one.
    fn any_cancel(&mut self, id: BundleId) -> Option<Cancel> {
        let bundle = super::world::bundle_of(id);
        let origin = self.truths.get(bundle)?.origin;
        let cancel = cancel(bundle, origin);
        Some(if self.random.chance(500) {
            Cancel {
                signature: Signature([7; 64]),
                ..cancel
            }
        } else {
            cancel
        })
    }

    /// Whether what it serves this time is not what it should be.
    pub(super) fn sends_wrong_bytes(&mut self, source: Member) -> bool {
        !self.honest(source) && self.random.chance(400)
    }
}
