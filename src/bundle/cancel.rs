//! Cancels: an origin's signed word that a bundle of its own is to go to nobody any more.
//!
//! A cancel says for whom the bundle was, so that whoever holds it can pass it on to the other recipients, and to
//! nobody else, without holding the manifest. It outlives the bundle's lifetime.

use serde::{Deserialize, Serialize};

use super::{BundleId, DeliveryState, Scope, Stage};
use crate::peer::{Identity, PeerId, Signature};

/// Why an origin ends a bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum CancelReason {
    /// Somebody asked for it.
    Cancelled,
    /// Its lifetime is over.
    Expired,
}

impl CancelReason {
    /// How far a bundle is that ended for this reason.
    pub(crate) fn stage(self) -> Stage {
        match self {
            Self::Cancelled => Stage::Cancelled,
            Self::Expired => Stage::Expired,
        }
    }

    /// What an offer of such a bundle is refused with.
    pub(crate) fn refusal(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled by its origin",
            Self::Expired => "expired at its origin",
        }
    }

    /// What becomes of the deliveries that were open.
    pub(crate) fn state(self) -> DeliveryState {
        match self {
            Self::Cancelled => DeliveryState::Cancelled,
            Self::Expired => DeliveryState::Expired,
        }
    }
}

/// The signed word.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Cancel {
    pub bundle: BundleId,
    /// Who sealed it, and signs.
    pub origin: PeerId,
    /// Why.
    pub reason: CancelReason,
    /// Whom the bundle was for.
    pub scope: Scope,
    /// How long the bundle could have lived, in seconds: so long, and longer, the cancel is kept.
    pub lifetime_secs: u64,
    /// The origin's signature over all of it.
    pub signature: Signature,
}

const CANCEL_CONTEXT: &[u8] = b"meshbox cancel 1\0";

impl Cancel {
    /// Signs a cancel of a bundle of our own.
    pub(crate) fn sign(
        identity: &Identity,
        bundle: BundleId,
        reason: CancelReason,
        scope: Scope,
        lifetime_secs: u64,
    ) -> Self {
        let origin = identity.id();
        let signed = signed_bytes(bundle, origin, reason, &scope, lifetime_secs);
        Self {
            bundle,
            origin,
            reason,
            signature: identity.sign(CANCEL_CONTEXT, &signed),
            scope,
            lifetime_secs,
        }
    }

    /// Whether the signature is the origin's.
    pub(crate) fn is_genuine(&self) -> bool {
        let signed = signed_bytes(
            self.bundle,
            self.origin,
            self.reason,
            &self.scope,
            self.lifetime_secs,
        );
        self.origin.verify(CANCEL_CONTEXT, &signed, &self.signature)
    }

    /// Whether `peer` may learn of it: its origin and whom the bundle was for.
    pub(crate) fn concerns(&self, peer: PeerId) -> bool {
        peer == self.origin || self.scope.has(peer)
    }
}

fn signed_bytes(
    bundle: BundleId,
    origin: PeerId,
    reason: CancelReason,
    scope: &Scope,
    lifetime_secs: u64,
) -> Vec<u8> {
    // Postcard of plain owned data into a growing vector has no error to give.
    postcard::to_stdvec(&(bundle, origin, reason, scope, lifetime_secs)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_origin_can_cancel_and_nothing_in_it_can_be_changed() {
        let (alder, birch) = (Identity::generate(), Identity::generate());
        let scope = Scope::Ids(vec![birch.id()]);
        let bundle = BundleId([1; 32]);
        let good = Cancel::sign(&alder, bundle, CancelReason::Cancelled, scope, 60);
        assert!(good.is_genuine());
        let other = |change: &dyn Fn(&mut Cancel)| {
            let mut cancel = good.clone();
            change(&mut cancel);
            cancel.is_genuine()
        };
        assert!(!other(&|c| c.origin = birch.id()));
        assert!(!other(&|c| c.bundle = BundleId([2; 32])));
        assert!(!other(&|c| c.reason = CancelReason::Expired));
        assert!(!other(&|c| c.scope = Scope::All { generation: 1 }));
        assert!(!other(&|c| c.lifetime_secs = 61));
        let cedar = Identity::generate().id();
        assert!(good.concerns(birch.id()) && good.concerns(alder.id()) && !good.concerns(cedar));
    }
}
