//! Deltas: what a new version of a file has in common with the version that the inbox shows is not fetched again.
//!
//! The older version is compared chunk by chunk, at the same place, with the hashes of the new one; what is equal is
//! copied. So a change in place costs the chunks that it touches, while bytes that moved cost all that follows. The
//! older version came from the same origin under the same path, so nobody learns what we hold.
//!
//! # Crash behaviour
//! What was copied lies in `partial/` like what arrived, and is hashed again before it counts.

use std::io;

use crate::bundle::RelPath;
use crate::peer::PeerId;
use crate::spool::durable::OnPath;
use crate::spool::inbox::part::PartFile;
use crate::spool::inbox::tables::{IN_NAMES, InName};
use crate::spool::{Spool, SpoolError};

impl Spool {
    /// Copies chunks that are missing from the version of `path` of that origin which the inbox shows, if it does.
    pub(in crate::spool) fn take_from_older(
        &self,
        part: &mut PartFile,
        origin: PeerId,
        path: &RelPath,
    ) -> Result<(), SpoolError> {
        let Some(name) = self.chosen(origin, path)? else {
            return Ok(());
        };
        let shown: Option<InName> = self.journal.row(IN_NAMES, &name)?;
        if !shown.is_some_and(|shown| shown.origin == origin && shown.path == *path) {
            return Ok(());
        }
        let at = self.inbox().shown(&name);
        let older = match self.inbox().read(&name) {
            // Removed by the user meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // It was a link.
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Ok(()),
            opened => opened.on("open", &at)?,
        };
        let len = older.metadata().on("stat", &at)?.len();
        let mut buffer = Vec::new();
        for (number, piece) in part.chunks().asked(part.size).enumerate() {
            if piece.range.end > len {
                break;
            }
            if !part.have[number] {
                part.take_from(&older, (number, &piece), &mut buffer)?;
            }
        }
        Ok(())
    }
}
