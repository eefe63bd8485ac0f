//! Members that say what is not so: of themselves, of others, of bundles that do not concern them.

use super::world::{Ev, Frame, World, bundle_id, receipt};
use super::{Bundle, Member};
use crate::bundle::{BundleId, Receipt};
use crate::delivery::Verdict;
use crate::peer::Signature;

impl World {
    /// What `from` says instead of `frame`.
    pub(super) fn as_it_says(&mut self, from: Member, to: Member, frame: Frame) -> Vec<Frame> {
        if self.honest(from) || self.random.chance(500) {
            return vec![frame];
        }
        match frame {
            Frame::Verdicts(list) => {
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
                vec![Frame::Verdicts(list)]
            }
            // Taken, and never a receipt.
            Frame::Receipts(_) | Frame::Ended(_) => Vec::new(),
            Frame::Offer(id) => match self.random.below(3) {
                0 => vec![Frame::Offer(id), Frame::Offer(id)],
                1 => vec![Frame::Offer(self.any_bundle())],
                _ => Vec::new(),
            },
            Frame::Pending(_)
            | Frame::Owed(_)
            | Frame::Withdrawn(_)
            | Frame::Open(_)
            | Frame::Closed(_)
            | Frame::StillOpen(_) => {
                let frame = self.any_frame(from, to);
                vec![frame]
            }
        }
    }

    /// A liar speaks up.
    pub(super) fn lie_unasked(&mut self, member: Member) {
        let peers: Vec<Member> = self.nodes[member].sessions.keys().copied().collect();
        if let Some(peer) = self.random.pick(&peers) {
            let frame = self.any_frame(member, peer);
            self.stats.lies += 1;
            self.send(member, peer, frame);
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

    fn any_frame(&mut self, from: Member, _to: Member) -> Frame {
        let id = self.any_bundle();
        match self.random.below(8) {
            0 => Frame::Pending((0..4).map(|_| self.any_bundle()).collect()),
            1 => Frame::Verdicts(vec![(id, self.any_verdict(id, from))]),
            2 => Frame::Receipts(self.any_receipt(id, from).into_iter().collect()),
            3 => Frame::Offer(id),
            4 => Frame::Owed(vec![id]),
            5 => Frame::Withdrawn(vec![id]),
            6 => Frame::Ended(vec![id]),
            _ => Frame::Closed(vec![id]),
        }
    }

    /// Whether what it serves this time is not what it should be.
    pub(super) fn sends_wrong_bytes(&mut self, source: Member) -> bool {
        !self.honest(source) && self.random.chance(400)
    }
}
