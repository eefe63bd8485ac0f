//! Who needs content, and whom we had it from or sent it as.
//!
//! # Invariants
//! 1. A bundle needs its content from its seal, or from when it is kept for others, until it is final for everybody. What
//!    no bundle needs and no visible name shows is freed ([`Content::free`]).
//! 2. Who gave content and as what it was sent is forgotten with it: nothing can be copied from what is gone.

use super::Content;
use super::tables::{GOT_FROM, SENT_AS, USERS};
use crate::bundle::BundleId;
use crate::digest::Digest;
use crate::journal::{Batch, JournalError};
use crate::peer::PeerId;

/// Origins of one content that are forgotten at once.
const GIVERS_MAX: usize = 256;

impl Content {
    /// Whether a recipient still waits for this content.
    pub(in crate::spool) fn is_needed(&self, digest: Digest) -> Result<bool, JournalError> {
        Ok(!self.needed_by(digest, 1)?.is_empty())
    }

    /// The bundles that need it, at most `most`.
    pub(in crate::spool) fn needed_by(
        &self,
        digest: Digest,
        most: usize,
    ) -> Result<Vec<BundleId>, JournalError> {
        let rows = self.journal.keys(USERS.below(&digest), most)?;
        Ok(rows.into_iter().map(|(_, bundle)| bundle).collect())
    }

    /// The bundle needs this content from now on; also if it did before.
    pub(in crate::spool) fn begin_need(
        &self,
        bundle: BundleId,
        digests: impl IntoIterator<Item = Digest>,
        batch: &mut Batch,
    ) {
        for digest in digests {
            batch.insert(USERS, &(digest, bundle), &());
        }
    }

    /// The bundle needs this content no longer. Gives what may be free once the batch is submitted.
    pub(in crate::spool) fn end_need(
        &self,
        bundle: BundleId,
        digests: impl IntoIterator<Item = Digest>,
        batch: &mut Batch,
    ) -> Vec<Digest> {
        let ended = digests.into_iter().inspect(|digest| {
            batch.remove(USERS, &(*digest, bundle));
        });
        ended.collect()
    }

    /// The same of all its content, when its manifest cannot be relied on. Goes over all rows.
    pub(in crate::spool) fn end_all_needs(
        &self,
        bundle: BundleId,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        for row in self.journal.each(USERS) {
            let (key, ()) = row?;
            if key.1 == bundle {
                batch.remove(USERS, &key);
            }
        }
        Ok(())
    }

    /// The newest bundle of ours with this content.
    pub(in crate::spool) fn sent_as(
        &self,
        digest: Digest,
    ) -> Result<Option<BundleId>, JournalError> {
        self.journal.row(SENT_AS, &digest)
    }

    /// This is now the newest bundle of ours with this content.
    pub(in crate::spool) fn note_sent(
        &self,
        bundle: BundleId,
        digests: impl IntoIterator<Item = Digest>,
        batch: &mut Batch,
    ) {
        for digest in digests {
            batch.insert(SENT_AS, &digest, &bundle);
        }
    }

    /// Nothing is known of this bundle of ours any more.
    pub(in crate::spool) fn forget_sent(
        &self,
        bundle: BundleId,
        digests: impl IntoIterator<Item = Digest>,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        for digest in digests {
            if self.sent_as(digest)? == Some(bundle) {
                batch.remove(SENT_AS, &digest);
            }
        }
        Ok(())
    }

    /// Whether we got this content under a bundle of that origin.
    pub(in crate::spool) fn was_given_by(
        &self,
        origin: PeerId,
        digest: Digest,
    ) -> Result<bool, JournalError> {
        Ok(self.journal.row(GOT_FROM, &(digest, origin))?.is_some())
    }

    /// This content came under a bundle of that origin.
    pub(in crate::spool) fn note_given(&self, origin: PeerId, digest: Digest, batch: &mut Batch) {
        batch.insert(GOT_FROM, &(digest, origin), &());
    }

    /// The content is gone.
    pub(super) fn forget_uses(
        &self,
        digest: Digest,
        batch: &mut Batch,
    ) -> Result<(), JournalError> {
        batch.remove(SENT_AS, &digest);
        for key in self.journal.keys(GOT_FROM.below(&digest), GIVERS_MAX)? {
            batch.remove(GOT_FROM, &key);
        }
        Ok(())
    }
}
