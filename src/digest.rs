//! Digests: the SHA-256 that names content, and the BLAKE3 chunk list that locates damage in it.
//!
//! A [`Digest`] is the promise: bytes are shown only when they hash to it. A [`ChunkList`] lets a receiver check every
//! range on arrival, resume, and fetch from several holders; it is never a substitute for the digest.
//!
//! # Invariants
//! 1. Chunk hashes are taken over leaves of [`LEAF`] bytes. A chunk of one leaf is the BLAKE3 of its bytes; a chunk of
//!    2^k leaves is the BLAKE3 of the concatenated leaf hashes. So the chunk size can grow with the file while one pass
//!    over the bytes, begun before the size is known, is enough.
//! 2. The chunk size follows from the length alone ([`chunk_size`]), so both ends agree without negotiation.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Content up to this many bytes travels inside the offer and has no chunk list: 64 KiB.
pub const INLINE_MAX: u64 = 64 * 1024;

/// The piece the hasher works in, and the smallest chunk: 1 MiB.
pub const LEAF: u64 = 1024 * 1024;

/// Most chunks one file may have; beyond it the chunk size doubles. 4,096 hashes are 128 KiB of manifest.
pub const MAX_CHUNKS: u64 = 4096;

/// What stands for the bytes of holes.
static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// The SHA-256 of some content: 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes bytes that are already in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest as 64 lower-case hex digits.
    pub fn to_hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// Reads 64 hex digits of either case.
    pub fn from_hex(text: &str) -> Option<Self> {
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

/// The BLAKE3 of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

/// The chunk hashes of one file, in order; empty for content that travels inline.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ChunkList(pub Vec<ChunkHash>);

/// Size in bytes of every chunk but the last of a file of `len` bytes.
pub fn chunk_size(len: u64) -> u64 {
    let mut size = LEAF;
    while len.div_ceil(size) > MAX_CHUNKS {
        size *= 2;
    }
    size
}

/// How many chunks a file of `len` bytes has: none when it travels inline.
pub fn chunk_count(len: u64) -> u64 {
    if len <= INLINE_MAX {
        0
    } else {
        len.div_ceil(chunk_size(len))
    }
}

/// The hash of one whole chunk, given its bytes.
pub fn chunk_hash(bytes: &[u8]) -> ChunkHash {
    if bytes.len() as u64 <= LEAF {
        return ChunkHash(*blake3::hash(bytes).as_bytes());
    }
    let leaves: Vec<[u8; 32]> = bytes
        .chunks(LEAF as usize)
        .map(|leaf| *blake3::hash(leaf).as_bytes())
        .collect();
    fold(&leaves)
}

fn fold(leaves: &[[u8; 32]]) -> ChunkHash {
    match leaves {
        [one] => ChunkHash(*one),
        many => {
            let mut hasher = blake3::Hasher::new();
            for leaf in many {
                hasher.update(leaf);
            }
            ChunkHash(*hasher.finalize().as_bytes())
        }
    }
}

/// What hashing a whole file yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hashed {
    /// SHA-256 over all bytes.
    pub digest: Digest,
    /// Number of bytes hashed.
    pub len: u64,
    /// Chunk hashes; empty for content that travels inline.
    pub chunks: ChunkList,
}

/// SHA-256 and chunk hashes in one pass over the bytes, in order from the first.
#[derive(Clone, Debug)]
pub struct Hasher {
    sha: Sha256,
    leaf: blake3::Hasher,
    leaf_len: u64,
    leaves: Vec<[u8; 32]>,
    len: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Self {
            sha: Sha256::new(),
            leaf: blake3::Hasher::new(),
            leaf_len: 0,
            leaves: Vec::new(),
            len: 0,
        }
    }
}

impl Hasher {
    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.sha.update(bytes);
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = (LEAF - self.leaf_len) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.leaf.update(now);
            self.leaf_len += now.len() as u64;
            if self.leaf_len == LEAF {
                self.leaves.push(*self.leaf.finalize().as_bytes());
                self.leaf.reset();
                self.leaf_len = 0;
            }
            bytes = rest;
        }
    }

    /// Takes `len` zeros.
    pub fn zeros(&mut self, mut len: u64) {
        while len > 0 {
            let now = len.min(ZEROS.len() as u64);
            self.update(&ZEROS[..now as usize]);
            len -= now;
        }
    }

    /// Bytes taken so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no byte was taken yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends the pass.
    pub fn finish(mut self) -> Hashed {
        let digest = Digest(self.sha.finalize().into());
        if self.len <= INLINE_MAX {
            return Hashed {
                digest,
                len: self.len,
                chunks: ChunkList::default(),
            };
        }
        if self.leaf_len > 0 {
            self.leaves.push(*self.leaf.finalize().as_bytes());
        }
        let per_chunk = (chunk_size(self.len) / LEAF) as usize;
        let chunks = ChunkList(self.leaves.chunks(per_chunk).map(fold).collect());
        Hashed {
            digest,
            len: self.len,
            chunks,
        }
    }
}

/// Hashes everything `reader` yields, with a buffer of 256 KiB.
pub fn hash_reader(mut reader: impl Read) -> io::Result<Hashed> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
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

    #[test]
    fn one_pass_in_uneven_pieces_equals_hashing_whole_chunks() {
        for size in SIZES {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
            let mut hasher = Hasher::default();
            for piece in bytes.chunks(70_001) {
                hasher.update(piece);
            }
            let hashed = hasher.finish();
            assert_eq!(hashed.digest, Digest::of(&bytes), "size {size}");
            assert_eq!(
                hashed.chunks.0.len() as u64,
                chunk_count(size),
                "size {size}"
            );
            for (hash, chunk) in hashed
                .chunks
                .0
                .iter()
                .zip(bytes.chunks(chunk_size(size) as usize))
            {
                assert_eq!(*hash, chunk_hash(chunk), "size {size}");
            }
        }
    }

    #[test]
    fn chunk_size_grows_so_that_a_manifest_stays_small() {
        assert_eq!(chunk_size(4096 * LEAF), LEAF);
        assert_eq!(chunk_size(4096 * LEAF + 1), 2 * LEAF);
        assert!(chunk_count(1 << 50) <= MAX_CHUNKS);
    }

    #[test]
    fn a_chunk_of_many_leaves_is_the_hash_of_its_leaf_hashes() {
        let bytes = vec![7; 2 * LEAF as usize];
        let leaf = *blake3::hash(&bytes[..LEAF as usize]).as_bytes();
        assert_eq!(chunk_hash(&bytes), fold(&[leaf, leaf]));
    }

    #[test]
    fn hex_reads_back() {
        let digest = Digest::of(b"x");
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        assert_eq!(Digest::from_hex("12"), None);
    }
}
