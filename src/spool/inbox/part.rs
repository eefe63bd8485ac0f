//! A file on its way: what of it is here, and the SHA-256 that follows.
//!
//! # Invariants
//! 1. A chunk counts only if its hash is the manifest's; a file that travels inline only if its SHA-256 is. A chunk of one
//!    leaf is written after that was checked. A longer one is written leaf by leaf as it comes, so that nobody holds it in
//!    memory ([`Assembly`]); until the last of its leaves proves all of them, what is written of it is as good as nothing.
//! 2. Runs of zeros are holes: nothing is written there, and what an earlier attempt or a copy left there is punched out
//!    before it counts. So the SHA-256 goes over them without reading.
//! 3. The SHA-256 goes over zeros only as far as it is let ([`crate::spool::content::zeros`]): they cost their sender nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use sha2::{Digest as _, Sha256};

use crate::digest::{self, ChunkHasher, ChunkList, Digest, Holds, LEAF, Stretch};
use crate::spool::SpoolError;
use crate::spool::durable::OnPath;
use crate::spool::extents::Extents;

/// What a hasher reads back at once.
const READ_BYTES: usize = 256 * 1024;

/// Who brings chunks of an older version.
const COPIER: u64 = u64::MAX;

/// How the SHA-256 may go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::spool) enum Followed {
    /// It is at the end, or at a chunk that is not here.
    AsFar,
    /// It is at zeros that it may not go over yet.
    AtZeros,
}

/// One file of a bundle that is arriving.
#[derive(Debug)]
pub(in crate::spool) struct PartFile {
    pub(in crate::spool) at: PathBuf,
    /// `None`: opened for each use.
    pub(in crate::spool) kept: Option<Arc<File>>,
    pub(in crate::spool) size: u64,
    pub(in crate::spool) digest: Digest,
    /// The stretches of it that are asked for are numbered by their place among each other.
    chunks: ChunkList,
    pub(in crate::spool) have: Vec<bool>,
    /// Chunks that come leaf by leaf, and are not whole.
    assemblies: Vec<Assembly>,
    sha: Sha256,
    hashed: u64,
}

/// A chunk that comes leaf by leaf, all of it from one reader: what another one brings begins anew, and what the first
/// brings after that is not taken.
#[derive(Debug)]
struct Assembly {
    number: usize,
    by: u64,
    /// Where the next leaf belongs.
    at: u64,
    hasher: ChunkHasher,
    /// The SHA-256 of the file so far, if that had come to this chunk.
    sha: Option<Sha256>,
}

/// What became of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::spool) enum Leaf {
    /// It is the next one of its chunk.
    Taken,
    /// It was the last one, and the chunk is right.
    Whole,
    /// The chunk is not what its origin says.
    Wrong,
    /// It does not follow what is here of the chunk.
    Stale,
}

/// Byte ranges in order, those that touch made one.
pub(in crate::spool) fn joined(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            Some(_) | None => joined.push(range),
        }
    }
    joined
}

impl PartFile {
    pub(in crate::spool) fn new(
        at: PathBuf,
        size: u64,
        digest: Digest,
        chunks: &ChunkList,
    ) -> Self {
        let pieces = chunks.asked(size).count();
        Self {
            at,
            kept: None,
            size,
            digest,
            have: vec![false; pieces],
            chunks: chunks.clone(),
            assemblies: Vec::new(),
            sha: Sha256::new(),
            hashed: 0,
        }
    }

    fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        self.chunks.stretches(self.size)
    }

    /// Its chunks.
    pub(in crate::spool) fn chunks(&self) -> ChunkList {
        self.chunks.clone()
    }

    /// Whether its chunks were checked one by one, by what its origin says.
    pub(in crate::spool) fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// The chunk that begins at `offset`, and its number.
    pub(in crate::spool) fn piece_at(&self, offset: u64) -> Option<(usize, Stretch)> {
        let mut pieces = self.chunks.asked(self.size).enumerate();
        pieces.find(|(_, piece)| piece.range.start == offset)
    }

    pub(in crate::spool) fn matches(&self, piece: &Stretch, bytes: &[u8]) -> bool {
        match piece.holds {
            Holds::Chunk(hash) => digest::chunk_hash(bytes) == hash,
            Holds::Inline => Digest::of(bytes) == self.digest,
            Holds::Zeros => false,
        }
    }

    /// Byte ranges that are still to be fetched, in order.
    pub(in crate::spool) fn missing(&self) -> Vec<Range<u64>> {
        let pieces = self.chunks.asked(self.size).zip(&self.have);
        let missing = pieces.filter(|(_, here)| !**here);
        joined(missing.map(|(piece, _)| piece.range))
    }

    /// The file, made when it is not there yet.
    pub(in crate::spool) fn open(&self) -> Result<Arc<File>, SpoolError> {
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
    pub(in crate::spool) fn recount(&mut self, file: &File) -> Result<(), SpoolError> {
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
        for stretch in self.stretches().filter(|s| s.holds == Holds::Zeros) {
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
        for (number, piece) in self.chunks().asked(self.size).enumerate() {
            let range = &piece.range;
            if range.end > len {
                break;
            }
            // What was not written yet: nothing of it is read.
            if extents.is_hole(range) {
                continue;
            }
            let mut sha = (self.hashed == range.start).then(|| self.sha.clone());
            self.have[number] = self.is_in(file, &piece, &mut buffer, |bytes| {
                sha.iter_mut().for_each(|sha| sha.update(bytes));
            })?;
            if let Some(sha) = sha.filter(|_| self.have[number]) {
                (self.sha, self.hashed) = (sha, range.end);
            }
        }
        Ok(())
    }

    /// Whether a chunk is in `file` at its place. Each piece that is read is shown to `see`.
    fn is_in(
        &self,
        file: &File,
        piece: &Stretch,
        buffer: &mut Vec<u8>,
        mut see: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        let (range, mut hasher) = (&piece.range, ChunkHasher::default());
        let mut at = range.start;
        while at < range.end {
            buffer.resize(LEAF.min(range.end - at) as usize, 0);
            file.read_exact_at(buffer, at)?;
            see(buffer);
            if range.end - range.start <= LEAF {
                return Ok(self.matches(piece, buffer));
            }
            hasher.leaf(buffer);
            at += buffer.len() as u64;
        }
        Ok(piece.holds == Holds::Chunk(hasher.finish()))
    }

    /// Takes a chunk from an older version of the file, if it is at the same place there.
    pub(in crate::spool) fn take_from(
        &mut self,
        older: &File,
        (number, piece): (usize, &Stretch),
        buffer: &mut Vec<u8>,
    ) -> Result<(), SpoolError> {
        let len = piece.range.end - piece.range.start;
        let equal = self.is_in(older, piece, buffer, |_| ());
        if !equal.on("read", &self.at)? {
            return Ok(());
        }
        let file = self.open()?;
        if len <= LEAF {
            let put = self.put(&file, (number, piece), buffer);
            return put.on("copy", &self.at);
        }
        // Hashed once more on its way: the older version is the user's too.
        let mut at = piece.range.start;
        while at < piece.range.end {
            buffer.resize(LEAF.min(piece.range.end - at) as usize, 0);
            older.read_exact_at(buffer, at).on("read", &self.at)?;
            let leaf = self.put_leaf(&file, (number, piece), at, buffer, COPIER);
            if leaf.on("copy", &self.at)? != Leaf::Taken {
                break;
            }
            at += buffer.len() as u64;
        }
        Ok(())
    }

    /// Writes a chunk that was checked.
    pub(in crate::spool) fn put(
        &mut self,
        file: &File,
        (number, piece): (usize, &Stretch),
        bytes: &[u8],
    ) -> io::Result<()> {
        let offset = piece.range.start;
        file.write_all_at(bytes, offset)?;
        self.have[number] = true;
        if self.hashed == offset {
            self.sha.update(bytes);
            self.hashed += bytes.len() as u64;
        }
        Ok(())
    }

    /// Writes a leaf of a longer chunk, which is at `at` in the file and was brought by the reader `by`. With the last one
    /// the chunk counts, if it is right.
    pub(in crate::spool) fn put_leaf(
        &mut self,
        file: &File,
        (number, piece): (usize, &Stretch),
        at: u64,
        bytes: &[u8],
        by: u64,
    ) -> io::Result<Leaf> {
        let range = &piece.range;
        let len = LEAF.min(range.end.saturating_sub(at));
        if bytes.len() as u64 != len {
            return Ok(Leaf::Wrong);
        }
        if at == range.start {
            self.assemblies.retain(|assembly| assembly.number != number);
            self.assemblies.push(Assembly {
                number,
                by,
                at,
                hasher: ChunkHasher::default(),
                sha: (self.hashed == at).then(|| self.sha.clone()),
            });
        }
        let mut under_way = self.assemblies.iter_mut();
        let is =
            |assembly: &Assembly| (assembly.number, assembly.by, assembly.at) == (number, by, at);
        let Some(assembly) = under_way.find(|assembly| is(assembly)) else {
            return Ok(Leaf::Stale);
        };
        file.write_all_at(bytes, at)?;
        assembly.hasher.leaf(bytes);
        assembly.sha.iter_mut().for_each(|sha| sha.update(bytes));
        assembly.at += len;
        if assembly.at < range.end {
            return Ok(Leaf::Taken);
        }
        let which = self.assemblies.iter().position(|a| a.number == number);
        let Some(done) = which.map(|which| self.assemblies.swap_remove(which)) else {
            return Ok(Leaf::Stale);
        };
        if piece.holds != Holds::Chunk(done.hasher.finish()) {
            return Ok(Leaf::Wrong);
        }
        self.have[number] = true;
        if let Some(sha) = done.sha.filter(|_| self.hashed == range.start) {
            (self.sha, self.hashed) = (sha, range.end);
        }
        Ok(Leaf::Whole)
    }

    /// Lets the running SHA-256 follow: over chunks that are here, reading back those that came out of order, and over
    /// as many zeros as `zeros` gives when it is asked for some.
    pub(in crate::spool) fn follow(
        &mut self,
        file: &File,
        zeros: &mut dyn FnMut(&mut Sha256, u64) -> u64,
    ) -> io::Result<Followed> {
        let mut buffer = Vec::new();
        let (chunks, mut number) = (self.chunks(), 0);
        for Stretch { range, holds } in chunks.stretches(self.size) {
            let place = number;
            number += usize::from(holds != Holds::Zeros);
            if range.end <= self.hashed {
                continue;
            }
            if holds == Holds::Zeros {
                let done = zeros(&mut self.sha, range.end - self.hashed);
                self.hashed += done;
                if self.hashed < range.end {
                    return Ok(Followed::AtZeros);
                }
                continue;
            }
            if !self.have[place] {
                break;
            }
            while self.hashed < range.end {
                buffer.resize(READ_BYTES.min((range.end - self.hashed) as usize), 0);
                file.read_exact_at(&mut buffer, self.hashed)?;
                self.sha.update(&buffer);
                self.hashed += buffer.len() as u64;
            }
        }
        Ok(Followed::AsFar)
    }

    /// Whether the SHA-256 is at the end.
    pub(in crate::spool) fn is_hashed(&self) -> bool {
        self.hashed == self.size
    }

    /// Whether the SHA-256 has come to zeros.
    pub(in crate::spool) fn waits_at_zeros(&self) -> bool {
        let next = self.stretches().find(|s| s.range.end > self.hashed);
        next.is_some_and(|next| next.holds == Holds::Zeros)
    }

    /// Gives the file its length, if it ends with zeros.
    pub(in crate::spool) fn stretch(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.len() < self.size {
            file.set_len(self.size)?;
        }
        Ok(())
    }

    /// The SHA-256, if it has come to the end.
    pub(in crate::spool) fn found(&self) -> Option<Digest> {
        self.is_hashed()
            .then(|| Digest(self.sha.clone().finalize().into()))
    }
}
