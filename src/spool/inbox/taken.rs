//! Taken files: which files of which bundles the user took out of the inbox.
//!
//! A rename says under which bundle the file was announced before. That this bundle's file was shown here and is gone is
//! kept for each file of each bundle, for ever, in a bit: not for each path, which may have shown other files since.
//! What was replaced by a newer version, gave way to a directory, was renamed or never arrived has no bit.
//!
//! # Invariants
//! 1. The bit is in the batch that takes the name away.
//! 2. A row has at most [`BLOCK`] bits, so that each file that is taken writes little.
//!
//! # Crash behaviour
//! A name that is gone without its row is found at the next start, and gets its bit then.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;

use serde::{Deserialize, Serialize};

use crate::bundle::{Former, Manifest};
use crate::peer::PeerId;
use crate::spool::journal::{Batch, Table};
use crate::spool::ledger::settled::{BlockKey, Seq};
use crate::spool::{Spool, SpoolError};

/// Files that share a row.
const BLOCK: u64 = 512;

/// Bundles of one file that was consumed.
const TAKEN: Table<BlockKey, Bits> = Table::new(63);

/// Files of a bundle of many that were consumed: by origin, epoch, incarnation, seq, number of a block.
const TAKEN_OF: Table<(PeerId, u64, [u8; 16], u64, u64), Bits> = Table::new(64);

/// A row of one of the two.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Row {
    OfOne(BlockKey),
    OfMany((PeerId, u64, [u8; 16], u64, u64)),
}

/// Which file of which bundle of an origin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct Which {
    seq: Seq,
    /// Its place among the entries; `None`: it is the only one.
    entry: Option<u32>,
}

impl Which {
    /// The file of the entry `index`. One of a rest is that of the whole.
    pub(in crate::spool) fn of(manifest: &Manifest, index: u32) -> Self {
        if let Some(rest) = &manifest.rest_of {
            return Self {
                seq: Seq::of_whole(rest),
                entry: rest.entries.get(index as usize).copied(),
            };
        }
        Self {
            seq: Seq::of(manifest),
            entry: (manifest.entries.len() > 1).then_some(index),
        }
    }

    /// What had the former name.
    pub(in crate::spool) fn former(former: &Former) -> Self {
        Self {
            seq: Seq::of_former(former),
            entry: former.entry,
        }
    }

    /// The order of that version of its path.
    pub(in crate::spool) fn order(&self) -> (u64, u64) {
        self.seq.order()
    }

    /// Which row its bit is in, and where there.
    fn place(&self, origin: PeerId) -> (Row, usize) {
        let Some(entry) = self.entry.map(u64::from) else {
            let (key, at) = self.seq.block(origin, BLOCK);
            return (Row::OfOne(key), at);
        };
        let ((origin, epoch, incarnation, seq), _) = self.seq.block(origin, 1);
        let key = (origin, epoch, incarnation, seq, entry / BLOCK);
        (Row::OfMany(key), (entry % BLOCK) as usize)
    }
}

/// A bit for each file of a block; what lies beyond the end is not set.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
struct Bits(Vec<u8>);

impl Bits {
    fn has(&self, at: usize) -> bool {
        let byte = self.0.get(at / 8);
        byte.is_some_and(|byte| byte & (1 << (at % 8)) != 0)
    }

    fn set(&mut self, at: usize) {
        if self.0.len() <= at / 8 {
            self.0.resize(at / 8 + 1, 0);
        }
        self.0[at / 8] |= 1 << (at % 8);
    }
}

impl Spool {
    /// These files of `origin` are consumed. All of them that one batch holds are to be given at once. Call with the
    /// decision lock held.
    pub(in crate::spool) fn note_taken(
        &self,
        origin: PeerId,
        files: impl IntoIterator<Item = Which>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let mut rows: HashMap<Row, Bits> = HashMap::new();
        for file in files {
            let (row, at) = file.place(origin);
            let bits = match rows.entry(row) {
                MapEntry::Occupied(bits) => bits.into_mut(),
                MapEntry::Vacant(bits) => {
                    let known = self.taken_in(bits.key())?;
                    bits.insert(known)
                }
            };
            bits.set(at);
        }
        for (row, bits) in rows {
            match row {
                Row::OfOne(key) => batch.insert(TAKEN, &key, &bits),
                Row::OfMany(key) => batch.insert(TAKEN_OF, &key, &bits),
            }
        }
        Ok(())
    }

    fn taken_in(&self, row: &Row) -> Result<Bits, SpoolError> {
        let known = match row {
            Row::OfOne(key) => self.journal.row(TAKEN, key)?,
            Row::OfMany(key) => self.journal.row(TAKEN_OF, key)?,
        };
        Ok(known.unwrap_or_default())
    }

    /// Whether the file was shown here, and consumed.
    pub(in crate::spool) fn was_taken(
        &self,
        origin: PeerId,
        file: Which,
    ) -> Result<bool, SpoolError> {
        let (row, at) = file.place(origin);
        Ok(self.taken_in(&row)?.has(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Identity;

    #[test]
    fn no_two_files_share_a_bit() {
        let origin = Identity::generate().id();
        let mut seen = std::collections::HashSet::new();
        for seq in [0, 1, 511, 512, 1 << 40] {
            let seq = Seq::test(seq);
            for entry in [None, Some(0), Some(1), Some(511), Some(512), Some(99_999)] {
                let (row, at) = Which { seq, entry }.place(origin);
                assert!(at < BLOCK as usize);
                assert!(seen.insert((row, at)), "{seq:?} {entry:?}");
            }
        }
    }
}
