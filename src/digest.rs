//! Digests: the SHA-256 that names content, and the BLAKE3 chunk list that locates damage in it.
//!
//! A [`Digest`] is the promise: bytes are shown only when they hash to it. A [`ChunkList`] lets a receiver check every
//! range on arrival, resume, and fetch from several holders; it is never a substitute for the digest.
//!
mod chunks;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

#[cfg(test)]
pub(crate) use self::chunks::MAX_CHUNKS;
pub(crate) use self::chunks::{
    ChunkHasher, ChunkList, Holds, INLINE_MAX, LEAF, Stretch, chunk_hash,
};
use self::chunks::{Folder, Node, ZEROS, zero_hash};

/// The SHA-256 of some content: 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes bytes that are already in memory.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest as 64 lower-case hex digits.
    pub(crate) fn to_hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// Reads 64 hex digits of either case.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", &self.to_hex()[..10])
    }
}

/// What hashing a whole file yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hashed {
    /// SHA-256 over all bytes.
    pub digest: Digest,
    /// Number of bytes hashed.
    pub len: u64,
    /// Chunk hashes; empty for content that travels inline.
    pub chunks: ChunkList,
}

/// SHA-256 and chunk list in one pass over the bytes, in order from the first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hasher {
    sha: Sha256,
    /// Of the leaf that is not whole yet; not fed while that is all zeros.
    leaf: blake3::Hasher,
    leaf_len: u64,
    leaf_has_bytes: bool,
    folder: Folder,
    len: u64,
}

impl Hasher {
    /// Takes the next bytes of the file.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.take(bytes, false);
    }

    /// Takes `len` zeros. They cost the SHA-256 and nothing else.
    pub(crate) fn zeros(&mut self, mut len: u64) {
        while len > 0 {
            let now = len.min(ZEROS.len() as u64);
            self.take(&ZEROS[..now as usize], true);
            len -= now;
        }
    }

    fn take(&mut self, mut bytes: &[u8], zeros: bool) {
        self.sha.update(bytes);
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = (LEAF - self.leaf_len) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            if !self.leaf_has_bytes && !zeros && !is_zeros(now) {
                self.leaf_has_bytes = true;
                feed_zeros(&mut self.leaf, self.leaf_len);
            }
            if self.leaf_has_bytes {
                self.leaf.update(now);
            }
            self.leaf_len += now.len() as u64;
            if self.leaf_len == LEAF {
                let leaf = self.leaf();
                self.folder.push(leaf);
                self.leaf.reset();
                (self.leaf_len, self.leaf_has_bytes) = (0, false);
            }
            bytes = rest;
        }
    }

    /// The leaf that is in hand.
    fn leaf(&self) -> Node {
        let hash = if self.leaf_has_bytes {
            *self.leaf.finalize().as_bytes()
        } else if self.leaf_len == LEAF {
            zero_hash(0)
        } else {
            let mut leaf = blake3::Hasher::new();
            feed_zeros(&mut leaf, self.leaf_len);
            *leaf.finalize().as_bytes()
        };
        Node {
            hash,
            zeros: !self.leaf_has_bytes,
        }
    }

    /// Bytes taken so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte was taken yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends the pass.
    pub(crate) fn finish(mut self) -> Hashed {
        let mut chunks = ChunkList::default();
        if self.len > INLINE_MAX {
            if self.leaf_len > 0 {
                let last = self.leaf();
                self.folder.push_short(last);
            }
            chunks = self.folder.finish();
        }
        Hashed {
            digest: Digest(self.sha.finalize().into()),
            len: self.len,
            chunks,
        }
    }
}

fn feed_zeros(hasher: &mut blake3::Hasher, mut len: u64) {
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..now as usize]);
        len -= now;
    }
}

/// Whether there is no other byte; as quick as memory, since most that is asked for is not.
fn is_zeros(bytes: &[u8]) -> bool {
    let (pieces, rest) = bytes.as_chunks::<64>();
    pieces.iter().all(|piece| *piece == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// SHA-256 over zeros.
pub(crate) fn sha_zeros(sha: &mut Sha256, mut len: u64) {
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        sha.update(&ZEROS[..now as usize]);
        len -= now;
    }
}

/// Hashes everything `reader` yields, with a buffer of 256 KiB.
#[cfg(test)]
pub(crate) fn hash_reader(mut reader: impl std::io::Read) -> std::io::Result<Hashed> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Around the inline limit and the leaf, where the layout of the chunk list changes.
    const SIZES: [u64; 9] = [
        0,
        1,
        INLINE_MAX - 1,
        INLINE_MAX,
        INLINE_MAX + 1,
        LEAF - 1,
        LEAF,
        LEAF + 1,
        3 * LEAF + 7,
    ];

    /// Hashed in pieces of that size.
    fn hashed(bytes: &[u8], piece: usize) -> Hashed {
        let mut hasher = Hasher::default();
        for piece in bytes.chunks(piece) {
            hasher.update(piece);
        }
        hasher.finish()
    }

    /// Every chunk has its hash, and what is said to be zeros is.
    fn check(bytes: &[u8], hashed: &Hashed) {
        let size = bytes.len() as u64;
        assert_eq!(hashed.digest, Digest::of(bytes), "size {size}");
        assert!(hashed.chunks.fits(size), "size {size}");
        for Stretch { range, holds } in hashed.chunks.stretches(size) {
            let bytes = &bytes[range.start as usize..range.end as usize];
            match holds {
                Holds::Chunk(hash) => assert_eq!(hash, chunk_hash(bytes), "size {size}"),
                Holds::Zeros => assert!(is_zeros(bytes), "size {size}"),
                Holds::Inline => assert!(size <= INLINE_MAX, "size {size}"),
            }
        }
    }

    #[test]
    fn one_pass_in_uneven_pieces_equals_hashing_whole_chunks() {
        for size in SIZES {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
            let found = hashed(&bytes, 70_001);
            check(&bytes, &found);
            let zeros = vec![0; size as usize];
            let found = hashed(&zeros, 70_001);
            check(&zeros, &found);
            let pieces = found.chunks.pieces(size);
            assert!(size <= INLINE_MAX || pieces.is_empty(), "size {size}");
            let mut holes = Hasher::default();
            holes.zeros(size);
            assert_eq!(holes.finish(), found, "size {size}");
        }
    }

    #[test]
    fn written_zeros_count_as_holes_wherever_they_are() {
        const MIB: usize = LEAF as usize;
        for begin in [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB - 1] {
            for end in [begin + 1, begin + MIB, 4 * MIB, 6 * MIB, 6 * MIB + 9] {
                let mut bytes = vec![9; 6 * MIB + 10];
                bytes[begin..end.max(begin)].fill(0);
                let found = hashed(&bytes, 300_007);
                check(&bytes, &found);
                let whole = (end / MIB).saturating_sub(begin.div_ceil(MIB)) as u64;
                let size = bytes.len() as u64;
                let asked: u64 = found
                    .chunks
                    .pieces(size)
                    .iter()
                    .map(|r| r.end - r.start)
                    .sum();
                assert_eq!(size - asked, whole * LEAF, "{begin}..{end}");
                // Told of as holes, or read.
                let mut holes = Hasher::default();
                holes.update(&bytes[..begin]);
                holes.zeros((end.max(begin) - begin) as u64);
                holes.update(&bytes[end.max(begin)..]);
                assert_eq!(holes.finish(), found, "{begin}..{end}");
            }
        }
    }

    #[test]
    fn hex_reads_back() {
        let digest = Digest::of(b"x");
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        assert_eq!(Digest::from_hex("12"), None);
    }
}
