//! `meshbox send`: files sealed as one bundle under the user's own terms and, if wanted, the user's own id.
//!
//! The files lie below an ignored directory of the outbox, so that nothing of them is sent by itself. They get their
//! paths in the manifest only: the outbox shows no name for them, and their content is kept as that of any file that was
//! removed after its seal.
//!
//! # Crash behaviour
//! The rows of the bundle and of its id are one batch, durable when [`Spool::send_files`] returns. Killed before, nothing
//! was sent, and the same call can be made again.

use serde::{Deserialize, Serialize};

use super::journal::Batch;
use super::tables::SENT_IDS;
use super::{Spool, SpoolError};
use crate::bundle::BundleId;

/// What was sent under an id of the user's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SentRow {
    pub(super) bundle: BundleId,
    /// SHA-256 of paths, digests and recipients.
    pub(super) content: [u8; 32],
}

impl Spool {
    /// A bundle that was held has another id now.
    pub(super) fn moved_id(
        &self,
        old: BundleId,
        new: BundleId,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        for (key, row) in self
            .journal
            .scan::<SentRow>(SENT_IDS, &[], None, usize::MAX)?
        {
            if row.bundle == old {
                batch.put(SENT_IDS, &key, &SentRow { bundle: new, ..row });
            }
        }
        Ok(())
    }
}
