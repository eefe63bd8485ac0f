//! Custody and room: what is kept for others gives way before anything of the user's is refused.

use super::Custodian;
use super::tables::{CARRIED, WATCHED};
use crate::delivery::custody::{self};
use crate::digest::Digest;
use crate::spool::SpoolError;
#[cfg(doc)]
use crate::spool::content::Content;

/// Bundles of others looked at to make room, at once.
const SHED_MAX: usize = 4096;

impl Custodian {
    /// Whether a bundle of ours needs this content; otherwise only custody does, if anything.
    fn needed_for_own(&self, digest: Digest) -> Result<bool, SpoolError> {
        for bundle in self.content.needed_by(digest, usize::MAX)? {
            if self.ledger.place(bundle)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// [`Content::may_hold`] for the user's own act: custody gives way. Call without the decision lock.
    pub(in crate::spool) fn make_hold(&self, digest: Digest, len: u64) -> Result<(), SpoolError> {
        let Err(full) = self.content.may_hold(digest, len) else {
            return Ok(());
        };
        if !self.needed_for_own(digest)? {
            let users = self.content.needed_by(digest, usize::MAX)?;
            let ended = self.custody_events(None, &users, custody::Event::QuotaFull);
            return ended.map(drop);
        }
        if self.shed_custody(len)? == 0 {
            return Err(full);
        }
        self.content.may_hold(digest, len)
    }

    /// Gives up custody of what takes up room only for others, until so many bytes are free. Gives how many are. Call
    /// without the decision lock.
    pub(in crate::spool) fn shed_custody(&self, wanted: u64) -> Result<u64, SpoolError> {
        let mut freed = 0;
        if self.content.held_bytes() == 0 {
            return Ok(0);
        }
        let watched = self.journal.keys(WATCHED.all(), SHED_MAX)?;
        let carried = self.journal.keys(CARRIED.all(), SHED_MAX)?;
        let carried = carried.into_iter().map(|(_, bundle)| bundle);
        for bundle in carried.chain(watched) {
            let Some(manifest) = self.ledger.kept(bundle)? else {
                continue;
            };
            let before = self.content.held_bytes();
            let mut alone = false;
            for digest in manifest.manifest().digests() {
                alone |= self.content.is_unseen(digest) && !self.needed_for_own(digest)?;
            }
            if alone {
                self.custody_events(None, &[bundle], custody::Event::QuotaFull)?;
                freed += before.saturating_sub(self.content.held_bytes());
            }
            if freed >= wanted {
                break;
            }
        }
        Ok(freed)
    }
}
