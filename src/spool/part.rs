//! A file on its way: what of it is here, and the SHA-256 that follows.
//!
//! # Invariants
//! 1. A chunk is written only if its hash is the manifest's; a file that travels inline only if its SHA-256 is.
//! 2. Runs of zeros are holes: nothing is written there, and what an earlier attempt or a copy left there is punched out
//!    before it counts. So the SHA-256 goes over them without reading.
//! 3. The SHA-256 goes over zeros only as far as it is let ([`super::zeros`]): they cost their sender nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use sha2::{Digest as _, Sha256};

use super::SpoolError;
use super::durable::OnPath;
use super::extents::Extents;
use crate::digest::{self, ChunkList, Digest, Holds, Stretch};

/// What a hasher reads back at once.
const READ_BYTES: usize = 256 * 1024;

/// How the SHA-256 may go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Followed {
    /// It is at the end, or at a chunk that is not here.
    AsFar,
    /// It is at zeros that it may not go over yet.
    AtZeros,
}

/// One file of a bundle that is arriving.
#[derive(Debug)]
pub(super) struct PartFile {
    pub(super) at: PathBuf,
    /// `None`: opened for each use.
    pub(super) kept: Option<Arc<File>>,
    pub(super) size: u64,
    pub(super) digest: Digest,
    stretches: Vec<Stretch>,
    /// The stretches that are asked for; chunks are numbered by their place here.
    pieces: Vec<usize>,
    pub(super) have: Vec<bool>,
    sha: Sha256,
    hashed: u64,
}

impl PartFile {
    pub(super) fn new(at: PathBuf, size: u64, digest: Digest, chunks: &ChunkList) -> Self {
        let stretches: Vec<Stretch> = chunks.stretches(size).collect();
        let asked = |(_, stretch): &(usize, &Stretch)| stretch.holds != Holds::Zeros;
        let pieces: Vec<usize> = stretches
            .iter()
            .enumerate()
            .filter(asked)
            .map(|(index, _)| index)
            .collect();
        Self {
            at,
            kept: None,
            size,
            digest,
            have: vec![false; pieces.len()],
            stretches,
            pieces,
            sha: Sha256::new(),
            hashed: 0,
        }
    }

    /// Whether its chunks were checked one by one, by what its origin says.
    pub(super) fn has_chunks(&self) -> bool {
        let inline = |stretch: &Stretch| stretch.holds == Holds::Inline;
        !self.stretches.is_empty() && !self.stretches.iter().any(inline)
    }

    /// Where the chunk of that number is.
    pub(super) fn range(&self, number: usize) -> Range<u64> {
        self.stretches[self.pieces[number]].range.clone()
    }

    /// The number of the chunk that begins at `offset`.
    pub(super) fn number_at(&self, offset: u64) -> Option<usize> {
        let begin = |index: &usize| self.stretches[*index].range.start;
        self.pieces.binary_search_by_key(&offset, begin).ok()
    }

    pub(super) fn matches(&self, number: usize, bytes: &[u8]) -> bool {
        match self.stretches[self.pieces[number]].holds {
            Holds::Chunk(hash) => digest::chunk_hash(bytes) == hash,
            Holds::Inline => Digest::of(bytes) == self.digest,
            Holds::Zeros => false,
        }
    }

    /// Byte ranges that are still to be fetched, in order.
    pub(super) fn missing(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for number in (0..self.have.len()).filter(|number| !self.have[*number]) {
            let range = self.range(number);
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                Some(_) | None => ranges.push(range),
            }
        }
        ranges
    }

    /// The file, made when it is not there yet.
    pub(super) fn open(&self) -> Result<Arc<File>, SpoolError> {
        if let Some(kept) = &self.kept {
            return Ok(Arc::clone(kept));
        }
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.at)
            .on("create", &self.at)?;
        Ok(Arc::new(file))
    }

    /// Takes into account what is in the file already, after hashing it again. What cannot be right is taken away.
    pub(super) fn recount(&mut self, file: &File) -> Result<(), SpoolError> {
        let len = file.metadata().on("stat", &self.at)?.len();
        if len == 0 {
            return Ok(());
        }
        if len > self.size || !self.punch(file, len).on("make holes in", &self.at)? {
            return file.set_len(0).on("truncate", &self.at);
        }
        self.recount_chunks(file, len).on("read", &self.at)
    }

    /// Makes runs of zeros holes, whatever is there. `false`: the file system cannot.
    fn punch(&self, file: &File, len: u64) -> io::Result<bool> {
        let mut extents = Extents::of(file);
        for stretch in self.stretches.iter().filter(|s| s.holds == Holds::Zeros) {
            let range = stretch.range.start..stretch.range.end.min(len);
            if range.is_empty() || extents.is_hole(&range) {
                continue;
            }
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let size = range.end - range.start;
            match rustix::fs::fallocate(file, flags, range.start, size) {
                Ok(()) => {}
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn recount_chunks(&mut self, file: &File, len: u64) -> io::Result<()> {
        let (mut extents, mut buffer) = (Extents::of(file), Vec::new());
        for number in 0..self.have.len() {
            let range = self.range(number);
            if range.end > len {
                break;
            }
            // What was not written yet: nothing of it is read.
            if extents.is_hole(&range) {
                continue;
            }
            buffer.resize((range.end - range.start) as usize, 0);
            file.read_exact_at(&mut buffer, range.start)?;
            self.have[number] = self.matches(number, &buffer);
            if self.have[number] && self.hashed == range.start {
                self.sha.update(&buffer);
                self.hashed = range.end;
            }
        }
        Ok(())
    }

    /// Writes a chunk that was checked.
    pub(super) fn put(&mut self, file: &File, number: usize, bytes: &[u8]) -> io::Result<()> {
        let offset = self.range(number).start;
        file.write_all_at(bytes, offset)?;
        self.have[number] = true;
        if self.hashed == offset {
            self.sha.update(bytes);
            self.hashed += bytes.len() as u64;
        }
        Ok(())
    }

    /// Lets the running SHA-256 follow: over chunks that are here, reading back those that came out of order, and over
    /// as many zeros as `zeros` gives when it is asked for some.
    pub(super) fn follow(
        &mut self,
        file: &File,
        zeros: &mut dyn FnMut(&mut Sha256, u64) -> u64,
    ) -> io::Result<Followed> {
        let mut buffer = Vec::new();
        let mut index = self
            .stretches
            .partition_point(|s| s.range.end <= self.hashed);
        while let Some(Stretch { range, holds }) = self.stretches.get(index) {
            if *holds == Holds::Zeros {
                let done = zeros(&mut self.sha, range.end - self.hashed);
                self.hashed += done;
                if self.hashed < range.end {
                    return Ok(Followed::AtZeros);
                }
            } else {
                let number = self.pieces.binary_search(&index);
                if !number.is_ok_and(|number| self.have[number]) {
                    break;
                }
                while self.hashed < range.end {
                    buffer.resize(READ_BYTES.min((range.end - self.hashed) as usize), 0);
                    file.read_exact_at(&mut buffer, self.hashed)?;
                    self.sha.update(&buffer);
                    self.hashed += buffer.len() as u64;
                }
            }
            index += 1;
        }
        Ok(Followed::AsFar)
    }

    /// Whether the SHA-256 is at the end.
    pub(super) fn is_hashed(&self) -> bool {
        self.hashed == self.size
    }

    /// Whether the SHA-256 has come to zeros.
    pub(super) fn waits_at_zeros(&self) -> bool {
        let index = self
            .stretches
            .partition_point(|s| s.range.end <= self.hashed);
        let next = self.stretches.get(index);
        next.is_some_and(|next| next.holds == Holds::Zeros)
    }

    /// Gives the file its length, if it ends with zeros.
    pub(super) fn stretch(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.len() < self.size {
            file.set_len(self.size)?;
        }
        Ok(())
    }

    /// The SHA-256, if it has come to the end.
    pub(super) fn found(&self) -> Option<Digest> {
        self.is_hashed()
            .then(|| Digest(self.sha.clone().finalize().into()))
    }
}
