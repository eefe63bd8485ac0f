//! Chunk lists: where a file has bytes and where only zeros, and the hash by which each chunk is checked on arrival.
//!
//! A chunk has 2^k MiB. Of every chunk that is not all zeros the list has a hash; a run of chunks of zeros is one item,
//! however long, and travels no further than the list.
//!
//! # Invariants
//! 1. k is the smallest for which the list has at most [`MAX_CHUNKS`] items. Who makes the list finds it in one pass,
//!    before the length is known: while there are too many items, two chunks become one. Memory stays that of the list.
//! 2. The hash of a chunk is a binary tree over leaves of [`LEAF`] bytes (BLAKE3; an inner node hashes its two halves).
//!    So the hash of a longer chunk follows from those of its halves, also where one of them is all zeros.
//! 3. A list has one encoding: no run is empty, no two runs touch, and a whole chunk of zeros has no hash.
//! 4. Nobody needs a whole chunk in memory: [`ChunkHasher`] takes it leaf by leaf.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::encoding::at_most;

/// Content up to this many bytes travels inside the offer and has no chunk list: 64 KiB.
pub(crate) const INLINE_MAX: u64 = 64 * 1024;

/// The piece the hasher works in, and the smallest chunk: 1 MiB.
pub(crate) const LEAF: u64 = 1024 * 1024;

/// What stands for the bytes of holes.
pub(super) static ZEROS: [u8; 256 * 1024] = [0; 256 * 1024];

/// Most items of a list; beyond it chunks get longer. 4,096 hashes are 132 KiB of manifest.
pub(crate) const MAX_CHUNKS: usize = 4096;

/// A list of longer chunks has at least this many hashes: with shorter chunks it would have been too long, and of its
/// items at least half have a hash, of which two become one.
const LONG_MIN: usize = MAX_CHUNKS / 4;

/// Most doublings of a chunk: more leaves than this a file cannot have.
const DOUBLINGS_MAX: u8 = 43;

/// The hash of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(crate) struct ChunkHash(pub [u8; 32]);

/// One item of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Run {
    /// A chunk with this hash.
    Data(ChunkHash),
    /// So many chunks of zeros, one after the other.
    Zeros(u64),
}

/// The chunks of one file, in order; empty for content that travels inline. A copy costs nothing, and an empty one takes
/// no memory of its own: a bundle may have 100,000 of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ChunkList(Option<Arc<Listed>>);

#[derive(PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Listed {
    /// A chunk has so many times twice a leaf.
    doublings: u8,
    #[serde(deserialize_with = "at_most::<_, _, MAX_CHUNKS>")]
    runs: Vec<Run>,
}

static NOTHING: Listed = Listed {
    doublings: 0,
    runs: Vec::new(),
};

impl From<Listed> for ChunkList {
    fn from(listed: Listed) -> Self {
        Self((listed != NOTHING).then(|| Arc::new(listed)))
    }
}

impl Serialize for ChunkList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.listed().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ChunkList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut listed = Listed::deserialize(deserializer)?;
        listed.runs.shrink_to_fit();
        Ok(listed.into())
    }
}

/// A stretch of a file as its list tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    /// Where it is.
    pub range: Range<u64>,
    /// What is there.
    pub holds: Holds,
}

/// What a [`Stretch`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holds {
    /// A chunk to be asked for, with its hash.
    Chunk(ChunkHash),
    /// All of a file that travels inline: its digest is its check.
    Inline,
    Zeros,
}

impl ChunkList {
    /// A list of so many zeros.
    #[cfg(test)]
    pub(crate) fn of_zeros(chunks: u64) -> Self {
        Self::of(0, vec![Run::Zeros(chunks)])
    }

    /// A list of so many hashes.
    #[cfg(test)]
    pub(crate) fn of_hashes(count: usize) -> Self {
        Self::of(0, vec![Run::Data(ChunkHash([7; 32])); count])
    }

    /// The list of some bytes in chunks that are longer than they need be.
    #[cfg(test)]
    pub(crate) fn of_chunks(doublings: u8, bytes: &[u8]) -> Self {
        let chunks = bytes.chunks((LEAF << doublings) as usize);
        Self::of(doublings, chunks.map(chunk_hash).map(Run::Data).collect())
    }

    /// A list of so many hashes of chunks of 2^`doublings` MiB.
    #[cfg(test)]
    pub(crate) fn of_long(doublings: u8, count: usize) -> Self {
        Self::of(doublings, vec![Run::Data(ChunkHash([7; 32])); count])
    }

    fn of(doublings: u8, runs: Vec<Run>) -> Self {
        Listed { doublings, runs }.into()
    }

    fn listed(&self) -> &Listed {
        self.0.as_deref().unwrap_or(&NOTHING)
    }

    /// Whether this is a list of a file of `size` bytes.
    pub(crate) fn fits(&self, size: u64) -> bool {
        if size <= INLINE_MAX {
            return *self == Self::default();
        }
        if self.listed().doublings > DOUBLINGS_MAX || self.listed().runs.len() > MAX_CHUNKS {
            return false;
        }
        let short = self.listed().doublings == 0;
        if !short && self.data_count() < LONG_MIN {
            return false;
        }
        let (mut chunks, mut after_zeros) = (0_u64, false);
        for run in &self.listed().runs {
            let count = match run {
                Run::Data(_) => 1,
                Run::Zeros(0) => return false,
                Run::Zeros(_) if after_zeros => return false,
                Run::Zeros(count) => *count,
            };
            after_zeros = matches!(run, Run::Zeros(_));
            let Some(sum) = chunks.checked_add(count) else {
                return false;
            };
            chunks = sum;
        }
        let last_is_whole = size.is_multiple_of(self.chunk_size());
        let zeros = Run::Data(ChunkHash(zero_hash(self.listed().doublings)));
        let whole =
            self.listed().runs.len() - usize::from(!last_is_whole).min(self.listed().runs.len());
        chunks == size.div_ceil(self.chunk_size()) && !self.listed().runs[..whole].contains(&zeros)
    }

    /// Size in bytes of every chunk but the last.
    pub(crate) fn chunk_size(&self) -> u64 {
        LEAF << self.listed().doublings.min(DOUBLINGS_MAX)
    }

    /// How many chunks have a hash.
    pub(crate) fn data_count(&self) -> usize {
        let data = |run: &&Run| matches!(run, Run::Data(_));
        self.listed().runs.iter().filter(data).count()
    }

    /// Whether there is none: the content travels inline.
    pub(crate) fn is_empty(&self) -> bool {
        self.listed().runs.is_empty()
    }

    /// Everything of a file of `size` bytes, in order.
    pub(crate) fn stretches(&self, size: u64) -> impl Iterator<Item = Stretch> + '_ {
        let inline = (self.listed().runs.is_empty() && size > 0).then_some(Stretch {
            range: 0..size,
            holds: Holds::Inline,
        });
        let (mut at, chunk) = (0_u64, self.chunk_size());
        let listed = self.listed().runs.iter().map(move |run| {
            let (count, holds) = match run {
                Run::Data(hash) => (1, Holds::Chunk(*hash)),
                Run::Zeros(count) => (*count, Holds::Zeros),
            };
            let begin = at;
            at = at.saturating_add(count.saturating_mul(chunk)).min(size);
            Stretch {
                range: begin..at,
                holds,
            }
        });
        inline.into_iter().chain(listed)
    }

    /// The stretches that a receiver has to ask for, in order. Chunks are numbered by their place here.
    pub(crate) fn asked(&self, size: u64) -> impl Iterator<Item = Stretch> + '_ {
        self.stretches(size)
            .filter(|stretch| stretch.holds != Holds::Zeros)
    }

    /// The memory it takes besides itself.
    pub(crate) fn memory(&self) -> usize {
        self.0.as_ref().map_or(0, |listed| {
            size_of::<Listed>() + listed.runs.capacity() * size_of::<Run>()
        })
    }

    /// Where these are.
    pub(crate) fn pieces(&self, size: u64) -> Vec<Range<u64>> {
        self.asked(size).map(|stretch| stretch.range).collect()
    }
}

/// The hash of one whole chunk, given its bytes.
pub(crate) fn chunk_hash(bytes: &[u8]) -> ChunkHash {
    let mut hasher = ChunkHasher::default();
    bytes
        .chunks(LEAF as usize)
        .for_each(|leaf| hasher.leaf(leaf));
    hasher.finish()
}

/// The hash of one chunk, taken leaf by leaf.
#[derive(Clone, Debug)]
pub(crate) struct ChunkHasher(Folder);

impl Default for ChunkHasher {
    fn default() -> Self {
        Self(Folder {
            doublings: u8::MAX,
            ..Folder::default()
        })
    }
}

impl ChunkHasher {
    /// The next leaf; only the last may be shorter than [`LEAF`].
    pub(crate) fn leaf(&mut self, bytes: &[u8]) {
        self.0.push(Node {
            hash: *blake3::hash(bytes).as_bytes(),
            zeros: false,
        });
    }

    /// The hash of all of them.
    pub(crate) fn finish(self) -> ChunkHash {
        let empty = || *blake3::hash(&[]).as_bytes();
        ChunkHash(self.0.rest().map_or_else(empty, |node| node.hash))
    }
}

/// The hash of 2^`doublings` leaves of zeros.
pub(super) fn zero_hash(doublings: u8) -> [u8; 32] {
    static HASHES: OnceLock<Vec<[u8; 32]>> = OnceLock::new();
    let hashes = HASHES.get_or_init(|| {
        let mut leaf = blake3::Hasher::new();
        for _ in 0..LEAF / ZEROS.len() as u64 {
            leaf.update(&ZEROS);
        }
        let leaf = *leaf.finalize().as_bytes();
        let double = |hash: &[u8; 32]| Some(join(hash, hash));
        let all = usize::from(DOUBLINGS_MAX) + 1;
        std::iter::successors(Some(leaf), double)
            .take(all)
            .collect()
    });
    hashes[usize::from(doublings.min(DOUBLINGS_MAX))]
}

fn join(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(left);
    hasher.update(right);
    *hasher.finalize().as_bytes()
}

/// The root over some leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Node {
    pub(super) hash: [u8; 32],
    /// Nothing but zeros below it.
    pub(super) zeros: bool,
}

impl Node {
    fn with(self, right: Self) -> Self {
        Self {
            hash: join(&self.hash, &right.hash),
            zeros: self.zeros && right.zeros,
        }
    }
}

/// Makes a list of leaves that come one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Folder {
    doublings: u8,
    runs: Vec<Run>,
    /// Of the chunk that is not whole yet: roots over 2^n leaves, each n smaller than the one before.
    pending: Vec<(u8, Node)>,
    /// What is left of the file after its last whole leaf.
    short: Option<Node>,
}

impl Folder {
    /// The next leaf.
    pub(super) fn push(&mut self, mut node: Node) {
        let mut level = 0;
        while level < self.doublings
            && let Some((_, left)) = self.pending.pop_if(|(of, _)| *of == level)
        {
            node = left.with(node);
            level += 1;
        }
        if level < self.doublings {
            self.pending.push((level, node));
            return;
        }
        self.list(node);
        while self.runs.len() > MAX_CHUNKS {
            self.double();
        }
    }

    /// The last leaf, a shorter one: zeros in it hash to something else.
    pub(super) fn push_short(&mut self, leaf: Node) {
        self.short = Some(leaf);
    }

    /// The list, with what is still in hand as its last chunk.
    pub(super) fn finish(mut self) -> ChunkList {
        while let Some(last) = self.rest() {
            let continues = last.zeros && matches!(self.runs.last(), Some(Run::Zeros(_)));
            if continues || self.runs.len() < MAX_CHUNKS {
                self.list(last);
                break;
            }
            self.double();
        }
        ChunkList::of(self.doublings, self.runs)
    }

    /// The root over what is in hand.
    fn rest(&self) -> Option<Node> {
        let pending = self.pending.iter().rev().map(|(_, node)| *node);
        let nodes = self.short.into_iter().chain(pending);
        nodes.reduce(|right, left| left.with(right))
    }

    fn list(&mut self, chunk: Node) {
        if !chunk.zeros {
            self.runs.push(Run::Data(ChunkHash(chunk.hash)));
        } else {
            self.list_zeros(1);
        }
    }

    fn list_zeros(&mut self, count: u64) {
        match self.runs.last_mut() {
            _ if count == 0 => {}
            Some(Run::Zeros(before)) => *before += count,
            Some(Run::Data(_)) | None => self.runs.push(Run::Zeros(count)),
        }
    }

    /// Two chunks become one. If their number is odd, the last is in hand again.
    fn double(&mut self) {
        let zeros = Node {
            hash: zero_hash(self.doublings),
            zeros: true,
        };
        let mut left: Option<Node> = None;
        for run in std::mem::take(&mut self.runs) {
            let (node, mut count) = match run {
                Run::Data(ChunkHash(hash)) => (Node { hash, zeros: false }, 1),
                Run::Zeros(count) => (zeros, count),
            };
            if let Some(left) = left.take() {
                self.list(left.with(node));
                count -= 1;
            }
            // More than one only of zeros.
            self.list_zeros(count / 2);
            left = (count % 2 == 1).then_some(node);
        }
        if let Some(left) = left {
            self.pending.insert(0, (self.doublings, left));
        }
        self.doublings += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of leaves that are zeros or not, as one pass makes it.
    fn list(leaves: impl IntoIterator<Item = bool>) -> ChunkList {
        let mut folder = Folder::default();
        for (number, data) in leaves.into_iter().enumerate() {
            folder.push(leaf(number, data));
        }
        folder.finish()
    }

    fn leaf(number: usize, data: bool) -> Node {
        if data {
            Node {
                hash: *blake3::hash(&number.to_le_bytes()).as_bytes(),
                zeros: false,
            }
        } else {
            Node {
                hash: zero_hash(0),
                zeros: true,
            }
        }
    }

    /// The same list, made of all leaves at once.
    fn list_of_whole(leaves: &[bool]) -> ChunkList {
        fn root(leaves: &[Node]) -> Node {
            match leaves {
                [one] => *one,
                many => {
                    let half = many.len().next_power_of_two() / 2;
                    root(&many[..half]).with(root(&many[half..]))
                }
            }
        }
        let nodes: Vec<Node> = (0..).zip(leaves).map(|(n, data)| leaf(n, *data)).collect();
        for doublings in 0.. {
            let mut folder = Folder::default();
            for chunk in nodes.chunks(1 << doublings) {
                folder.list(root(chunk));
            }
            if folder.runs.len() <= MAX_CHUNKS {
                return ChunkList::of(doublings, folder.runs);
            }
        }
        unreachable!()
    }

    #[test]
    fn one_pass_makes_the_list_with_the_shortest_chunks_that_fits() {
        let dense = |leaves: usize| vec![true; leaves];
        let every = |nth: usize, leaves: usize| (0..leaves).map(|n| n % nth == 0).collect();
        let cases: Vec<Vec<bool>> = vec![
            dense(1),
            dense(MAX_CHUNKS),
            dense(MAX_CHUNKS + 1),
            dense(2 * MAX_CHUNKS),
            dense(2 * MAX_CHUNKS + 1),
            dense(9 * MAX_CHUNKS + 5),
            every(2, MAX_CHUNKS),
            every(2, MAX_CHUNKS + 1),
            every(2, 3 * MAX_CHUNKS),
            every(3, 5 * MAX_CHUNKS + 1),
            every(100, 50 * MAX_CHUNKS),
            (0..30_000)
                .map(|n: usize| n.wrapping_mul(2_654_435_761) >> 13 & 7 == 0)
                .collect(),
            (0..30_000)
                .map(|n| !(10_000..25_001).contains(&n))
                .collect(),
            vec![false; 30_001],
        ];
        for (case, leaves) in cases.into_iter().enumerate() {
            let found = list(leaves.iter().copied());
            assert!(found == list_of_whole(&leaves), "case {case}");
            let size = leaves.len() as u64 * LEAF;
            assert!(found.fits(size), "case {case}");
            assert!(found.fits(size - 1), "case {case}");
            assert!(!found.fits(size + found.chunk_size()), "case {case}");
        }
    }

    #[test]
    fn the_hash_of_a_chunk_is_that_of_its_leaves() {
        let bytes: Vec<u8> = (0..3 * LEAF + 7).map(|i| (i * 31 % 251) as u8).collect();
        let leaves: Vec<[u8; 32]> = bytes
            .chunks(LEAF as usize)
            .map(|leaf| *blake3::hash(leaf).as_bytes())
            .collect();
        let right = join(&leaves[2], &leaves[3]);
        let whole = join(&join(&leaves[0], &leaves[1]), &right);
        assert_eq!(chunk_hash(&bytes), ChunkHash(whole));
        assert_eq!(
            chunk_hash(&bytes[..9]).0,
            *blake3::hash(&bytes[..9]).as_bytes()
        );
        let zeros = vec![0; 4 * LEAF as usize];
        assert_eq!(chunk_hash(&zeros).0, zero_hash(2));
    }

    #[test]
    fn the_longest_run_of_zeros_is_one_small_item() {
        let runs = vec![Run::Zeros(1 << 40)];
        let list = ChunkList::of(0, runs);
        assert!(list.fits(1 << 60));
        assert!(postcard::to_stdvec(&list).unwrap().len() < 16);
        let stretches: Vec<Stretch> = list.stretches(1 << 60).collect();
        assert_eq!(stretches.len(), 1);
        assert_eq!(stretches[0].range, 0..1 << 60);
        assert!(list.pieces(1 << 60).is_empty());
    }

    #[test]
    fn a_list_has_one_encoding() {
        let data = |byte| Run::Data(ChunkHash([byte; 32]));
        let zeros = Run::Data(ChunkHash(zero_hash(0)));
        let size = 10 * LEAF - 5;
        let fits = |runs: &[Run]| {
            let runs = runs.to_vec();
            ChunkList::of(0, runs).fits(size)
        };
        assert!(fits(&[data(1), Run::Zeros(8), data(2)]));
        assert!(fits(&[Run::Zeros(9), data(2)]));
        assert!(fits(&[Run::Zeros(10)]));
        // The last chunk is short, so the hash is not that of zeros.
        assert!(fits(&[Run::Zeros(9), zeros]));
        for wrong in [
            &[][..],
            &[data(1), Run::Zeros(8)],
            &[data(1), Run::Zeros(8), data(2), data(3)],
            &[data(1), Run::Zeros(4), Run::Zeros(4), data(2)],
            &[data(1), Run::Zeros(0), Run::Zeros(8), data(2)],
            &[data(1), Run::Zeros(8), Run::Zeros(0), data(2)],
            &[data(1), Run::Zeros(7), zeros, data(2)],
            &[zeros, Run::Zeros(8), data(2)],
            &[Run::Zeros(u64::MAX), Run::Zeros(1), Run::Zeros(10)],
            &[data(1), Run::Zeros(u64::MAX), data(2)],
        ] {
            assert!(!fits(wrong), "{wrong:?}");
        }
        let none = ChunkList::default();
        assert!(none.fits(0) && none.fits(INLINE_MAX) && !none.fits(INLINE_MAX + 1));
        let long = |doublings, count| ChunkList::of(doublings, vec![data(1); count]);
        // Chunks longer than they need be: a receiver holds one of them in memory.
        assert!(!long(10, 8).fits(8 << 30));
        assert!(!long(44, LONG_MIN).fits(u64::MAX));
        assert!(long(1, LONG_MIN).fits(LONG_MIN as u64 * 2 * LEAF));
        assert!(!long(0, 1).fits(INLINE_MAX));
    }

    #[test]
    fn a_list_reads_back_and_one_that_is_too_long_is_not_read_to_its_end() {
        let found = list((0..5000).map(|n| n % 3 == 0));
        let bytes = postcard::to_stdvec(&found).unwrap();
        assert_eq!(postcard::from_bytes::<ChunkList>(&bytes).unwrap(), found);
        let runs = vec![Run::Zeros(1); MAX_CHUNKS + 1];
        let long = postcard::to_stdvec(&ChunkList::of(0, runs)).unwrap();
        assert!(postcard::from_bytes::<ChunkList>(&long).is_err());
    }

    #[test]
    fn stretches_cover_the_file_and_pieces_leave_the_zeros_out() {
        let data = Run::Data(ChunkHash([1; 32]));
        let runs = vec![Run::Zeros(3), data, data, Run::Zeros(2), data];
        let list = ChunkList::of(0, runs);
        let size = 7 * LEAF + 5;
        assert!(list.fits(size));
        let stretches: Vec<Stretch> = list.stretches(size).collect();
        let mut at = 0;
        for stretch in &stretches {
            assert_eq!(stretch.range.start, at);
            at = stretch.range.end;
        }
        assert_eq!(at, size);
        let mib = |n: u64| n * LEAF;
        assert_eq!(
            list.pieces(size),
            [mib(3)..mib(4), mib(4)..mib(5), mib(7)..size],
            "the last one is short"
        );
        assert_eq!(ChunkList::default().pieces(9).first(), Some(&(0..9)));
        assert!(ChunkList::default().pieces(0).is_empty());
    }
}
