//! Records: what tells whether a file is still the one whose bytes were hashed.
//!
//! A record is one [`Stat`] for each inode with known bytes, in the row that has its digest ([`InodeRow`]). It names no
//! device, since a state may be moved to another disk, and those have other numbers after a reboot; a moved file has
//! another inode, and its record does not match.
//!
//! # Invariants
//! 1. A record is taken after the last of our own calls that move the change time: link and unlink of `content/`, the
//!    rename that publishes, owner, mode and times; and again after each that a user makes through the mount
//!    ([`Spool::keep_record`]). So a file that nobody touched behind our back matches exactly.
//! 2. A record is durable only after the bytes of the inode are. So what matches after a power loss has these bytes, and
//!    is not another file that got the number of the inode.

use std::fs::File;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::Content;
use super::tables::INODES;
use super::uses::Uses;
use crate::bundle::RelPath;
use crate::digest::Digest;
use crate::peer::PeerId;
use crate::spool::journal::{Batch, JournalError};
use crate::spool::{Spool, SpoolError};

/// Seconds and nanoseconds since 1970.
type Time = (i64, i64);

/// Units of time, in nanoseconds, that file systems store: 100 ns, 1 µs, 1 ms, 10 ms, 1 s.
const STORED: [i64; 5] = [100, 1_000, 1_000_000, 10_000_000, 1_000_000_000];

/// What tells whether a file is still the one that was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct Stat {
    pub(in crate::spool) ino: u64,
    /// When the inode was made, where the file system knows.
    pub(in crate::spool) born: Option<Time>,
    pub(in crate::spool) size: u64,
    pub(in crate::spool) mtime: Time,
    pub(in crate::spool) ctime: Time,
}

/// An inode whose bytes had this digest when it looked like this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::spool) struct InodeRow {
    pub(in crate::spool) digest: Digest,
    pub(in crate::spool) stat: Stat,
    pub(super) uses: Uses,
}

impl InodeRow {
    /// Whether a file that looks like `found` has the bytes of `digest`, whatever happened to the machine since.
    pub(in crate::spool) fn vouches(&self, digest: Digest, found: &Stat) -> bool {
        self.digest == digest && self.stat.is(found)
    }

    /// Whether content that looks like `found` has the recorded bytes. Of a file in the outbox the change time may be
    /// another: users link it and set its mode. After a power loss that counts only for an inode that is certainly the same.
    pub(in crate::spool) fn holds(&self, found: &Stat, same_boot: bool) -> bool {
        let certain = same_boot || (self.stat.born.is_some() && found.born.is_some());
        self.stat.is(found) || (certain && !self.stat.is_doubted() && self.stat.same_bytes(found))
    }
}

impl Stat {
    pub(in crate::spool) fn of(meta: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            ino: meta.ino(),
            born: meta.created().ok().map(since_1970),
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// The same inode, with the same bytes if only times were set since: inode, size and modification time.
    pub(in crate::spool) fn same_bytes(&self, found: &Self) -> bool {
        self.same_inode(found) && self.size == found.size && same(self.mtime, found.mtime)
    }

    /// Nothing was done to the file since.
    pub(in crate::spool) fn is(&self, found: &Self) -> bool {
        self.same_bytes(found) && same(self.ctime, found.ctime)
    }

    /// A number alone does not make an inode: some file systems give it to the next file at once.
    fn same_inode(&self, found: &Self) -> bool {
        let born = match (self.born, found.born) {
            (Some(recorded), Some(found)) => same(recorded, found),
            _ => true,
        };
        self.ino == found.ino && born
    }

    /// The same, but for a change time that no file has: what it stands for is to be hashed at the next start.
    fn doubted(mut self) -> Self {
        self.ctime = (i64::MIN, 0);
        self
    }

    fn is_doubted(&self) -> bool {
        self.ctime.0 == i64::MIN
    }
}

/// Whether a time is the recorded one at the precision that the file system stores: while an inode is in memory some
/// show more of it.
fn same(recorded: Time, found: Time) -> bool {
    let cut = |unit: &i64| recorded.1 - recorded.1 % unit == found.1;
    recorded.0 == found.0 && (recorded.1 == found.1 || STORED.iter().any(cut))
}

fn since_1970(time: std::time::SystemTime) -> Time {
    let whole = |secs: u64| i64::try_from(secs).unwrap_or(i64::MAX);
    match time.duration_since(std::time::SystemTime::UNIX_EPOCH) {
        Ok(since) => (whole(since.as_secs()), i64::from(since.subsec_nanos())),
        Err(before) => {
            let before = before.duration();
            (-whole(before.as_secs()), -i64::from(before.subsec_nanos()))
        }
    }
}

impl Content {
    /// The record of an inode. One that cannot be read is none: its file is hashed.
    pub(in crate::spool) fn record_of(&self, ino: u64) -> Result<Option<InodeRow>, SpoolError> {
        match self.journal.row(INODES, &ino) {
            Err(JournalError::Row { why, .. }) => {
                tracing::error!(ino, why, "the record of an inode cannot be read");
                Ok(None)
            }
            found => Ok(found?),
        }
    }

    /// An inode that looks like this has these bytes.
    pub(in crate::spool) fn record(
        &self,
        digest: Digest,
        stat: &Stat,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        batch.insert(INODES, &stat.ino, &self.as_recorded(digest, stat)?);
        Ok(())
    }

    /// The row of an inode with these bytes, with what is known of them by the one it has.
    pub(super) fn as_recorded(&self, digest: Digest, stat: &Stat) -> Result<InodeRow, SpoolError> {
        let known = self.record_of(stat.ino)?.filter(|row| row.digest == digest);
        Ok(InodeRow {
            digest,
            stat: *stat,
            uses: known.map(|row| row.uses).unwrap_or_default(),
        })
    }

    /// The inode is taken for one with these bytes, until it is hashed.
    pub(in crate::spool) fn record_doubted(
        &self,
        digest: Digest,
        found: &Stat,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.record(digest, &found.doubted(), batch)
    }

    /// The inode is gone, or has other bytes now.
    pub(in crate::spool) fn forget_record(&self, ino: u64, batch: &mut Batch) {
        batch.remove(INODES, &ino);
    }
}

impl Spool {
    /// Does what changes nothing of the bytes of an inode of the outbox but moves its change time (mode, owner, times,
    /// attributes, names), and records it again if its record held until then: so the next start need not hash it. `path`
    /// is one of its names before that.
    ///
    /// The gate is held, and nobody writes: what is different afterwards is what `act` did. The bytes were durable before
    /// the first record was, so the new one vouches for the same after a power loss; if the change time gets lost and the
    /// row does not, or the other way round, they do not match, and the file is hashed.
    pub(crate) fn keep_record<T>(&self, ino: u64, path: &RelPath, act: impl FnOnce() -> T) -> T {
        let Ok(Some(record)) = self.content.record_of(ino) else {
            return act();
        };
        let gate = self.outbox.gate(ino);
        // Whoever holds it changes the file.
        let guard = gate.try_lock().filter(|guard| guard.writers() == 0);
        let file = self.outbox.root.open(path, OFlags::PATH).map(File::from);
        let (Some(_guard), Ok(file)) = (guard, file) else {
            return act();
        };
        let look = || file.metadata().map(|meta| Stat::of(&meta));
        let held = look().is_ok_and(|before| record.stat.is(&before));
        let done = act();
        let Ok(after) = look() else { return done };
        if !held || record.stat == after || record.stat.size != after.size {
            return done;
        }
        let _decide = self.decide();
        // It may have been forgotten meanwhile.
        let known = self.content.record_of(ino).ok().flatten();
        if known.is_none_or(|known| known.digest != record.digest) {
            return done;
        }
        let mut batch = Batch::default();
        let recorded = self.content.record(record.digest, &after, &mut batch);
        if let Err(error) = recorded.and_then(|()| Ok(self.journal.submit(batch)?)) {
            tracing::debug!(%path, %error, "not recorded again: the next start hashes it");
        }
        done
    }

    /// Records the inode that `name` of the inbox shows, if it is `ino`, with who gave its content. Call with the decision
    /// lock held.
    pub(in crate::spool) fn record_shown(
        &self,
        name: &RelPath,
        origin: PeerId,
        digest: Digest,
        ino: u64,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        // Removed since: nothing needs the record.
        let Some(meta) = self.inbox().look(name)? else {
            return Ok(());
        };
        let stat = Stat::of(&meta);
        if stat.ino != ino {
            return Ok(());
        }
        self.content.record_given(origin, digest, &stat, batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat() -> Stat {
        Stat {
            ino: 7,
            born: Some((100, 123_456_789)),
            size: 5,
            mtime: (200, 987_654_321),
            ctime: (300, 111_222_333),
        }
    }

    #[test]
    fn a_file_matches_its_record_at_the_precision_that_is_stored() {
        for unit in [1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000] {
            let cut = |(secs, nanos): Time| (secs, nanos - nanos % unit);
            let found = Stat {
                born: stat().born.map(cut),
                mtime: cut(stat().mtime),
                ctime: cut(stat().ctime),
                ..stat()
            };
            assert!(stat().is(&found), "{unit}");
        }
    }

    #[test]
    fn another_file_with_the_same_number_does_not_match() {
        let later = Stat {
            born: Some((100, 123_456_790)),
            ..stat()
        };
        assert!(!stat().same_bytes(&later) && !stat().is(&later));
        let longer = Stat { size: 6, ..stat() };
        assert!(!stat().same_bytes(&longer));
        let touched = Stat {
            ctime: (300, 111_222_334),
            ..stat()
        };
        assert!(stat().same_bytes(&touched) && !stat().is(&touched));
        assert!(!stat().doubted().is(&stat()));
        let unknown = Stat {
            born: None,
            ..stat()
        };
        assert!(stat().is(&unknown), "the kernel does not always know");
    }
}
