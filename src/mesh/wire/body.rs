//! Bodies of frames: postcard in and out, and why bytes are not a frame.

use bytes::{BufMut, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::encoding::at_most;
use crate::protocol::frame::LIST_MAX;

/// Why bytes are not a frame.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum WireError {
    /// A length over the limit.
    #[error("a frame of {len} bytes, the limit is {limit}")]
    TooLong {
        /// What the prefix says.
        len: usize,
        /// What is allowed here.
        limit: usize,
    },
    /// A length of zero: not even a kind.
    #[error("an empty frame")]
    Empty,
    /// The body of a known kind cannot be decoded.
    #[error("a frame of kind {kind} that cannot be decoded")]
    Body {
        /// Which.
        kind: u8,
    },
}

/// A list that is counted while it is read.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct Items<T, const MAX: usize>(
    #[serde(deserialize_with = "at_most::<_, _, MAX>")] pub(super) Vec<T>,
);

pub(super) fn put(out: &mut BytesMut, kind: u8, body: &impl Serialize) {
    out.put_u8(kind);
    let start = out.len();
    // Postcard of plain owned data into a growing buffer has no error to give.
    if postcard::serialize_with_flavor(body, Appends(out)).is_err() {
        out.truncate(start);
    }
}

/// Writes behind what is there, without a copy of its own: a manifest is long.
struct Appends<'a>(&'a mut BytesMut);

impl Flavor for Appends<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.put_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

pub(super) fn take<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, WireError> {
    // What follows the fields we know belongs to a newer version.
    postcard::take_from_bytes(body)
        .map(|(value, _)| value)
        .map_err(|_| WireError::Body { kind })
}

pub(super) fn list<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<Vec<T>, WireError> {
    let items: Items<T, LIST_MAX> = take(kind, body)?;
    Ok(items.0)
}
