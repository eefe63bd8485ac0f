//! Places of names in listings.

use std::hash::{BuildHasher, RandomState};

/// The offset after `.` and `..`.
pub(super) const DOTS: u64 = 2;

/// Gives names their places in listings.
#[derive(Debug, Default)]
pub(crate) struct ListingOrder {
    key: RandomState,
}

impl ListingOrder {
    /// Larger than [`DOTS`], and not negative as a file position. Of a million names two share one with a probability of
    /// one in ten million.
    pub(in crate::fs) fn number(&self, name: &[u8]) -> u64 {
        (self.key.hash_one(name) >> 1).max(DOTS + 1)
    }
}
