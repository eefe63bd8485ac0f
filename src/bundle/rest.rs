//! The rest of a bundle: for a member that joined when other files of it had been replaced.
//!
//! A rest is a bundle of its own, but its files are those of the whole, and it says which. Later renames name the whole;
//! who got only the rest follows them all the same, and what was consumed of the one is consumed of the other. A file that
//! comes with both, as when another member still has the whole, is shown once.
//!
//! # Invariants
//! 1. A rest has an entry of the whole for each of its own, in the same order, and renames nothing.
//! 2. The whole is older than its rest.

use serde::{Deserialize, Serialize};

use super::entry::MAX_ENTRIES;
use crate::encoding::at_most;

/// Which entries of which bundle of the same origin a bundle repeats.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Rest {
    /// Epoch of the whole.
    pub epoch: u64,
    /// Incarnation of the whole.
    pub incarnation: [u8; 16],
    /// Number of the whole within the epoch.
    pub seq: u64,
    /// The place in the whole of each entry.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ENTRIES>")]
    pub entries: Vec<u32>,
}

impl Rest {
    /// (epoch, seq): the order of the whole, which is that of its files.
    pub(crate) fn order(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }

    /// Whether a bundle of so many entries and this order may be the rest.
    pub(super) fn fits(&self, entries: usize, own: (u64, u64)) -> bool {
        let last = self.entries.last().map_or(0, |last| *last as usize);
        self.entries.len() == entries
            && self.entries.is_sorted_by(|a, b| a < b)
            && last < MAX_ENTRIES
            && self.order() < own
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, manifest};
    use super::super::{Manifest, ManifestError};
    use super::*;
    use crate::peer::Identity;

    #[test]
    fn a_rest_has_the_order_of_the_whole_and_one_that_cannot_be_is_refused() {
        let identity = Identity::generate();
        let mut sound = manifest(identity.id(), vec![file("d/a", 1), file("d/b", 1)]);
        sound.seq = 9;
        sound.rest_of = Some(Rest {
            epoch: 1,
            incarnation: [1; 16],
            seq: 8,
            entries: vec![1, 7],
        });
        let check = |manifest: &Manifest| {
            let signed = manifest.clone().sign(&identity).signed().clone();
            signed.verify().map(|verified| verified.manifest().order())
        };
        assert_eq!(check(&sound), Ok((1, 8)));
        let lies: [fn(&mut Rest); 5] = [
            |rest| rest.entries = vec![1],
            |rest| rest.entries = vec![7, 1],
            |rest| rest.entries = vec![1, 1],
            |rest| rest.entries = vec![1, MAX_ENTRIES as u32],
            |rest| rest.seq = 9,
        ];
        for lie in lies {
            let mut false_one = sound.clone();
            lie(false_one.rest_of.as_mut().unwrap());
            assert_eq!(check(&false_one), Err(ManifestError::Rest), "{false_one:?}");
        }
    }
}
