//! What the journal's rows are found by: ids, paths, numbers.

use crate::bundle::{BundleId, RelPath};
use crate::digest::Digest;
use crate::journal::{Below, Fixed, Key};
use crate::peer::PeerId;
use crate::spool::ledger::rank::Rank;

/// Types that are 32 bytes.
macro_rules! id_keys {
    ($($id:ty, $of:expr, $bytes:expr;)*) => {$(
        impl Key for $id {
            type Read = Self;

            fn write(&self, to: &mut Vec<u8>) {
                let bytes: fn(&$id) -> &[u8; 32] = $bytes;
                bytes(self).write(to);
            }

            fn read(from: &mut &[u8]) -> Option<Self> {
                <[u8; 32]>::read(from).map($of)
            }
        }

        impl Fixed for $id {}
    )*};
}

id_keys! {
    PeerId, PeerId::from_bytes, PeerId::as_bytes;
    BundleId, BundleId, |id| &id.0;
    Digest, Digest, |digest| &digest.0;
}

impl Key for RelPath {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.as_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        Self::parse(std::mem::take(from)).ok()
    }
}

/// The names below a directory, to be looked for by that.
#[derive(Debug)]
pub(super) struct Beneath<'a>(pub(super) &'a RelPath);

/// What [`Beneath`] is read back as: never, since it is no key but the beginning of some.
#[derive(Debug)]
pub(super) enum Directory {}

impl Key for Beneath<'_> {
    type Read = Directory;

    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        to.push(b'/');
    }

    fn read(_from: &mut &[u8]) -> Option<Directory> {
        None
    }
}

impl Below<Directory> for RelPath {}

/// The place where a name below a directory would be, whether there can be such a name or not.
#[derive(Debug)]
pub(super) struct At<'a>(pub(super) &'a RelPath, pub(super) &'a [u8]);

impl Key for At<'_> {
    type Read = RelPath;

    fn write(&self, to: &mut Vec<u8>) {
        Beneath(self.0).write(to);
        to.extend_from_slice(self.1);
    }

    fn read(from: &mut &[u8]) -> Option<RelPath> {
        RelPath::read(from)
    }
}

impl Key for Rank {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        u64::read(from).map(Self)
    }
}

impl Fixed for Rank {}

/// A place in an order of which the newest, the highest number, is read first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Newest(pub(super) u64);

impl Newest {
    /// The place after the newest that is in use.
    pub(super) fn next(newest: Option<&Self>) -> u64 {
        newest.map_or(1, |newest| newest.0 + 1)
    }
}

impl Key for Newest {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        (u64::MAX - self.0).write(to);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        u64::read(from).map(|number| Self(u64::MAX - number))
    }
}

impl Fixed for Newest {}

/// What has a deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Ends {
    /// A bundle that is open.
    Bundle(BundleId),
    /// A cancel that is remembered: of which bundle, and by whom.
    Cancel(BundleId, PeerId),
}

impl Ends {
    /// Nothing comes before it.
    pub(super) const FIRST: Self = Self::Bundle(BundleId([0; 32]));
}

impl Key for Ends {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Bundle(bundle) => bundle.write(to),
            Self::Cancel(bundle, origin) => (bundle, origin).write(to),
        }
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let bundle = BundleId::read(from)?;
        match from.is_empty() {
            true => Some(Self::Bundle(bundle)),
            false => Some(Self::Cancel(bundle, PeerId::read(from)?)),
        }
    }
}
