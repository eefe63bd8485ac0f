//! What becomes of an offer, and what is answered to who could make one.

use crate::bundle::{BundleId, Priority, Receipt};
use crate::delivery::{Verdict, is_urgent};
use crate::peer::PeerId;

/// What a session has to know of an offer whose signature is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Offered {
    pub(crate) bundle: BundleId,
    /// Who sealed it.
    pub(crate) origin: PeerId,
    /// How urgent it is.
    pub(crate) priority: Priority,
    /// It gives new names to what was sent before.
    pub(crate) renames: bool,
    /// Content is missing that did not come with it.
    pub(crate) absent: bool,
}

/// Where an offer is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// By the layer that fetches, at once.
    Fetch,
    /// In the lane of its peer, one after another.
    Intake,
    /// In the lane for urgent ones.
    Express,
}

impl Offered {
    /// Where it is taken. Offers that rename go through the lane, one after another, whatever their priority: in their
    /// order the least is to be fetched.
    pub(crate) fn way(&self) -> Way {
        if self.absent && !self.renames {
            Way::Fetch
        } else if is_urgent(self.priority) && !self.renames {
            Way::Express
        } else {
            Way::Intake
        }
    }
}

/// How this node stands to a bundle that a peer says it owes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It is settled here.
    Settled(Receipt),
    /// Its origin ended it, for that reason.
    Ended(String),
    /// It is being fetched.
    Fetching,
    /// An offer of it that brought all its content is being taken.
    Taking,
    /// It is published here, and not durable yet.
    Published,
    /// None of these.
    Unknown,
}

impl Standing {
    /// The answer to "I owe you this". `put_off` says whether another one was told to give it.
    pub(crate) fn verdict(self, put_off: impl FnOnce() -> bool) -> Verdict {
        match self {
            Self::Settled(receipt) => Verdict::Settled(Box::new(receipt)),
            Self::Ended(why) => Verdict::Refused(why),
            Self::Fetching => Verdict::Working,
            // Nobody is told when that is over, so it is to ask again.
            Self::Taking => Verdict::Deferred("it is being taken".into()),
            Self::Published => Verdict::Taken,
            Self::Unknown if put_off() => {
                Verdict::Deferred("another member is about to give it".into())
            }
            Self::Unknown => Verdict::Want,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Signature;

    #[test]
    fn an_offer_is_fetched_unless_it_renames_and_waits_for_lesser_ones_only_if_it_is_not_urgent() {
        let way = |priority, renames, absent| {
            let (bundle, origin) = (BundleId([1; 32]), PeerId::from_bytes([2; 32]));
            let offered = Offered {
                bundle,
                origin,
                priority,
                renames,
                absent,
            };
            offered.way()
        };
        for priority in [Priority::Bulk, Priority::Routine, Priority::Critical] {
            assert_eq!(way(priority, false, true), Way::Fetch);
            assert_eq!(way(priority, true, true), Way::Intake);
            assert_eq!(way(priority, true, false), Way::Intake);
        }
        assert_eq!(way(Priority::Routine, false, false), Way::Intake);
        assert_eq!(way(Priority::Priority, false, false), Way::Express);
        assert_eq!(way(Priority::Critical, false, false), Way::Express);
    }

    #[test]
    fn only_who_offers_what_is_unknown_here_is_put_off() {
        let receipt = Receipt {
            bundle: BundleId([1; 32]),
            origin: PeerId::from_bytes([2; 32]),
            recipient: PeerId::from_bytes([3; 32]),
            signature: Signature([4; 64]),
        };
        let never = || panic!("nobody is asked");
        let settled = Standing::Settled(receipt.clone()).verdict(never);
        assert_eq!(settled, Verdict::Settled(Box::new(receipt)));
        let ended = Standing::Ended("expired".into()).verdict(never);
        assert_eq!(ended, Verdict::Refused("expired".into()));
        assert_eq!(Standing::Fetching.verdict(never), Verdict::Working);
        let taking = Standing::Taking.verdict(never);
        assert!(matches!(taking, Verdict::Deferred(_)));
        assert_eq!(Standing::Published.verdict(never), Verdict::Taken);
        assert_eq!(Standing::Unknown.verdict(|| false), Verdict::Want);
        let put_off = Standing::Unknown.verdict(|| true);
        assert!(matches!(put_off, Verdict::Deferred(_)));
    }
}
