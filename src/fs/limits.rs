//! Limits of space and size, and what a write that failed means for its file.
//!
//! A write that fails for want of space leaves a file that is not what its program meant, even if the program then closes
//! it and ends well. Such a file is held back as `incomplete`, like one whose writer was killed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::Fs;
use super::error::FsError;
use super::handle::OpenFile;
use crate::ready::Event;

/// What a new file or directory takes of the disk, about.
const NEW_NAME_BYTES: u64 = 4096;

impl Fs {
    /// Takes over another limit of one file, and another quiet time after the last close.
    pub(crate) fn set_limits(&self, max_file_bytes: Option<u64>, settle: Duration) {
        let max = max_file_bytes.unwrap_or(u64::MAX);
        self.max_file_bytes.store(max, Ordering::Relaxed);
        self.readiness.set_settle(settle);
    }

    fn max_file_bytes(&self) -> Option<u64> {
        let max = self.max_file_bytes.load(Ordering::Relaxed);
        (max != u64::MAX).then_some(max)
    }

    /// How many of `len` bytes at `offset` may be written: all that fit under `max_file_bytes`, and none when the disk
    /// is full.
    pub(crate) fn admit_write(&self, offset: u64, len: usize) -> Result<usize, FsError> {
        let fits = match self.max_file_bytes() {
            Some(max) if offset >= max && len > 0 => return Err(FsError::TooLarge),
            Some(max) => usize::try_from(max - offset.min(max)).map_or(len, |left| left.min(len)),
            None => len,
        };
        self.spool.room_for(fits as u64)?;
        Ok(fits)
    }

    /// Whether a file may have this size; `now` is what it has.
    pub(crate) fn admit_size(&self, size: u64, now: u64) -> Result<(), FsError> {
        match self.max_file_bytes() {
            Some(max) if size > max && size > now => Err(FsError::TooLarge),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a range may be allocated.
    pub(crate) fn admit_range(
        &self,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
        size: u64,
    ) -> Result<(), FsError> {
        let frees = FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE;
        if flags.intersects(frees) {
            return Ok(());
        }
        let end = if flags.contains(FallocateFlags::INSERT_RANGE) {
            size.saturating_add(length)
        } else {
            offset.saturating_add(length)
        };
        self.admit_size(end, size)?;
        Ok(self.spool.room_for(length)?)
    }

    /// Whether one more name may be made.
    pub(crate) fn admit_name(&self) -> Result<(), FsError> {
        Ok(self.spool.room_for(NEW_NAME_BYTES)?)
    }

    /// Tells the state machine if a modification failed for want of space, or on the disk.
    pub(crate) fn note_failed(&self, ino: u64, fh: Option<u64>, error: &FsError) {
        let errno = error.errno();
        if matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EIO) {
            tracing::warn!(ino, %error, "a file could not be written");
            self.readiness.feed(Event::WriteFailed { ino, fh, errno });
        }
    }

    /// `done`, which first notes a failure.
    pub(crate) fn noting<T: 'static>(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        fh: Option<u64>,
        done: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) -> impl FnOnce(Result<T, FsError>) + Send + 'static {
        let (fs, ino) = (self.clone(), file.ino);
        move |result| {
            if let Err(error) = &result {
                fs.note_failed(ino, fh, error);
            }
            done(result);
        }
    }

    /// Who the shown directories belong to.
    pub(crate) fn shown_owner(&self) -> (u32, u32) {
        let dress = &self.config.dress;
        (
            dress.uid.unwrap_or(self.owner.0),
            dress.gid.unwrap_or(self.owner.1),
        )
    }
}
