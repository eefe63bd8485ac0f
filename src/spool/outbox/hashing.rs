//! Hashing files: in slices, and without reading holes.
//!
//! # Invariants
//! 1. Between two slices no lock and no descriptor is held. What was hashed stands in the file's gate, as the hash of
//!    a beginning that nobody has written to since ([`crate::spool::outbox::gate`]): it is the next one's to go on with, whoever that is.
//!    The gate lives as long as somebody holds it, so whoever is to be called again does.
//! 2. A slice is over after [`SLICE`], but not before [`SMALL`] bytes: what is small is hashed in one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::bundle::RelPath;
use crate::digest::{Hashed, Hasher};
use crate::disk::keep_access_time;
use crate::spool::durable::OnPath;
use crate::spool::extents::Extents;
use crate::spool::{Gate, Spool, SpoolError};

/// What a hasher reads at once; as large as the L2 cache of small machines.
pub(in crate::spool) const READ_BYTES: usize = 256 * 1024;

/// Up to this many bytes to hash are little: some 10 ms where the processor has no instructions for it.
pub(in crate::spool) const SMALL: u64 = 4 << 20;

/// How long a slice is.
const SLICE: Duration = Duration::from_millis(50);

/// What one sealer does of one job before others may have their turn.
pub(in crate::spool) struct Slice<'a> {
    buffer: &'a mut [u8],
    until: Instant,
    hashed: u64,
    /// More than [`SMALL`] may be begun with.
    large: bool,
}

impl<'a> Slice<'a> {
    /// `large`: the job had its turn among the large ones, so it goes on whatever its size.
    pub(in crate::spool) fn new(buffer: &'a mut [u8], large: bool) -> Self {
        Self {
            buffer,
            until: Instant::now() + SLICE,
            hashed: 0,
            large,
        }
    }

    /// The next slice of somebody who has a thread to himself.
    pub(in crate::spool) fn again(&mut self) {
        self.until = Instant::now() + SLICE;
        self.hashed = 0;
    }

    fn is_over(&self) -> bool {
        self.hashed >= SMALL && Instant::now() >= self.until
    }

    /// Whether nothing new is to be begun in it.
    pub(in crate::spool) fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// What hashing a file came to.
pub(in crate::spool) enum Look {
    /// All of it, and the write generation for which that is right.
    Whole(Hashed, u64),
    /// So many bytes are left.
    Later(u64),
    /// A writer is at it.
    Open,
}

/// Hashes on from where `hasher` is. `false`: `over` said so before the end. Holes are not read.
pub(in crate::spool) fn hash_on(
    file: &File,
    hasher: &mut Hasher,
    buffer: &mut [u8],
    mut over: impl FnMut(u64) -> bool,
) -> io::Result<bool> {
    keep_access_time(file);
    let mut extents = Extents::of(file);
    loop {
        let at = hasher.len();
        let hole = extents.bytes_from(at).start.saturating_sub(at);
        if hole > 0 {
            let len = hole.min(READ_BYTES as u64);
            hasher.zeros(len);
            if over(len) {
                return Ok(false);
            }
            continue;
        }
        let n = match file.read_at(buffer, at) {
            Ok(0) => return Ok(true),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..n]);
        if over(n as u64) {
            return Ok(false);
        }
    }
}

/// Hashes a whole file.
pub(in crate::spool) fn hash_file(file: &File) -> io::Result<Hashed> {
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; READ_BYTES]);
    hash_on(file, &mut hasher, &mut buffer, |_| false)?;
    Ok(hasher.finish())
}

impl Spool {
    /// Hashes what a slice has room for; nothing if the digest is known from before, or if it is more than the slice may
    /// begin with.
    pub(in crate::spool) fn hash_slice(
        &self,
        gate: &Gate,
        file: &File,
        path: &RelPath,
        slice: &mut Slice<'_>,
    ) -> Result<Look, SpoolError> {
        let at = self.outbox.root.shown(path);
        let len = file.metadata().on("stat", &at)?.len();
        let doubted = self.outbox.recheck.lock().contains_key(&gate.ino());
        let (generation, mut hasher) = {
            let mut guard = gate.lock();
            if guard.writers() > 0 {
                return Ok(Look::Open);
            }
            let generation = guard.state().generation;
            // An inode that is still sealed needs no second hash: it was only renamed or linked.
            let known = guard.state().sealed.filter(|_| !doubted);
            if let Some(hashed) = known.and_then(|digest| self.hashed_before(digest, len)) {
                return Ok(Look::Whole(hashed, generation));
            }
            let left = len.saturating_sub(guard.tail_len());
            if left > SMALL && !slice.large {
                return Ok(Look::Later(left));
            }
            (generation, guard.take_tail())
        };
        let Slice { buffer, .. } = slice;
        let buffer = std::mem::take(buffer);
        let whole = hash_on(file, &mut hasher, buffer, |n| {
            slice.hashed += n;
            slice.is_over()
        });
        slice.buffer = buffer;
        if whole.on("read", &at)? {
            return Ok(Look::Whole(hasher.finish(), generation));
        }
        let left = len.saturating_sub(hasher.len());
        gate.lock().keep_tail(hasher, generation);
        Ok(Look::Later(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn holes_are_hashed_as_the_zeros_they_stand_for() {
        let file = tempfile::tempfile().unwrap();
        let mut whole = vec![0; 9 << 20];
        for at in [0, 3 << 20, (5 << 20) + 4096] {
            file.write_all_at(b"some bytes", at as u64).unwrap();
            whole[at..at + 10].copy_from_slice(b"some bytes");
        }
        file.set_len(whole.len() as u64).unwrap();
        let mut reader = Hasher::default();
        reader.update(&whole);
        assert_eq!(hash_file(&file).unwrap(), reader.finish());
        file.set_len(0).unwrap();
        assert_eq!(hash_file(&file).unwrap().digest, Digest::of(b""));
    }

    #[test]
    fn a_slice_ends_and_the_next_one_goes_on_where_it_was() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3 << 20], 4 << 20).unwrap();
        let whole = hash_file(&file).unwrap();
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; READ_BYTES]);
        let mut slices = 0;
        while !hash_on(&file, &mut hasher, &mut buffer, |_| true).unwrap() {
            slices += 1;
        }
        assert_eq!(slices, (7 << 20) / READ_BYTES);
        assert_eq!(hasher.finish(), whole);
    }
}
