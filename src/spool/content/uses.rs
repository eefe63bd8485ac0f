//! Who needs content, and whom we had it from or sent it as.
//!
//! # Invariants
//! 1. A bundle needs its content from its seal, or from when it is kept for others, until it is final for everybody. What
//!    no bundle needs and no visible name shows is freed ([`Content::free`]).
//! 2. Who gave content and as what it was sent is forgotten with it.

use serde::{Deserialize, Serialize};

use super::record::{InodeRow, Stat};
use super::tables::{INODES, USERS};
use super::{Content, inode_at};
use crate::bundle::{BundleId, DeliveryState};
use crate::digest::Digest;
use crate::journal::{Batch, JournalError};
use crate::peer::PeerId;
use crate::spool::SpoolError;

/// How many earlier bundles with the same content are asked whether a peer has them.
const SAME_CONTENT_DEPTH: usize = 8;

/// Origins of one content that are known; the last ones.
const GIVERS_MAX: usize = 16;

/// Who had to do with content. It stands in the record of the inode that `content/` shows: nothing can be copied from
/// content that is gone, and who gave it and as what it was sent is forgotten with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct Uses {
    /// A bundle of ours with it.
    sent_as: Option<BundleId>,
    /// Origins that gave it, so that a digest alone buys nothing.
    givers: Vec<PeerId>,
}

impl Uses {
    /// `false`: that was known.
    fn note_giver(&mut self, origin: PeerId) -> bool {
        let is_new = !self.givers.contains(&origin);
        if is_new {
            self.givers.insert(0, origin);
            self.givers.truncate(GIVERS_MAX);
        }
        is_new
    }
}

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

    /// The inode that `content/` shows, with its record, which knows where the content came from.
    fn held_as(&self, digest: Digest) -> Result<Option<InodeRow>, SpoolError> {
        let Some(ino) = inode_at(&self.layout.content(digest)) else {
            return Ok(None);
        };
        let row = self.record_of(ino)?;
        Ok(row.filter(|row| row.digest == digest))
    }

    /// Who had to do with content that is here.
    pub(super) fn uses_of(&self, digest: Digest) -> Result<Uses, SpoolError> {
        Ok(self
            .held_as(digest)?
            .map(|row| row.uses)
            .unwrap_or_default())
    }

    /// A bundle of ours with this content, as long as it is here.
    pub(in crate::spool) fn sent_as(&self, digest: Digest) -> Result<Option<BundleId>, SpoolError> {
        Ok(self.uses_of(digest)?.sent_as)
    }

    /// Whether this content, which is here, came under a bundle of that origin.
    pub(in crate::spool) fn was_given_by(
        &self,
        origin: PeerId,
        digest: Digest,
    ) -> Result<bool, SpoolError> {
        Ok(self.uses_of(digest)?.givers.contains(&origin))
    }

    /// An inode that looks like this has content that was sealed in a bundle of ours.
    pub(in crate::spool) fn record_sent(
        &self,
        bundle: BundleId,
        digest: Digest,
        stat: &Stat,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if let Some(mut held) = self.held_by_other(digest, stat)?
            && held.uses.sent_as.is_none()
        {
            held.uses.sent_as = Some(bundle);
            batch.insert(INODES, &held.stat.ino, &held);
        }
        let mut row = self.as_recorded(digest, stat)?;
        row.uses.sent_as = Some(bundle);
        batch.insert(INODES, &stat.ino, &row);
        Ok(())
    }

    /// An inode that looks like this has content that came under a bundle of that origin.
    pub(in crate::spool) fn record_given(
        &self,
        origin: PeerId,
        digest: Digest,
        stat: &Stat,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if let Some(mut held) = self.held_by_other(digest, stat)?
            && held.uses.note_giver(origin)
        {
            batch.insert(INODES, &held.stat.ino, &held);
        }
        let mut row = self.as_recorded(digest, stat)?;
        row.uses.note_giver(origin);
        batch.insert(INODES, &stat.ino, &row);
        Ok(())
    }

    /// The row of another inode with the same bytes, if that is the one that `content/` shows: uses are found by it.
    fn held_by_other(&self, digest: Digest, stat: &Stat) -> Result<Option<InodeRow>, SpoolError> {
        let held = self.held_as(digest)?;
        Ok(held.filter(|row| row.stat.ino != stat.ino))
    }

    /// The bundle takes the place of `old`, of which nothing is known any more; or nothing does.
    pub(in crate::spool) fn replace_sent(
        &self,
        old: BundleId,
        new: Option<BundleId>,
        digests: impl IntoIterator<Item = Digest>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for digest in digests {
            let held = self.held_as(digest)?;
            if let Some(mut row) = held.filter(|row| row.uses.sent_as == Some(old)) {
                row.uses.sent_as = new;
                batch.insert(INODES, &row.stat.ino, &row);
            }
        }
        Ok(())
    }

    /// Whether `peer` already gave a receipt for some bundle with this digest: then the content is not sent inline.
    pub(crate) fn peer_has(&self, peer: PeerId, digest: Digest) -> bool {
        let mut next: Option<BundleId> = self.sent_as(digest).ok().flatten();
        for _ in 0..SAME_CONTENT_DEPTH {
            let Some(bundle) = next else { return false };
            let state = self.ledger.delivery(bundle, peer);
            if state.ok().flatten() == Some(DeliveryState::Delivered) {
                return true;
            }
            // A bundle of many files names none before it.
            if self.ledger.has_large(bundle) {
                return false;
            }
            next = self.ledger.same_content(bundle).ok().flatten();
        }
        false
    }
}
