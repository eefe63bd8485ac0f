//! Encoding: postcard, where each value has one encoding, and lists are counted while they are read.
//!
//! Whatever is signed is passed on as the bytes that were signed. If those could be longer than what they say (trailing
//! bytes, numbers written in more bytes than they need), a member could have others keep and pass on what nobody takes.
//! So [`decode`] accepts only what encoding the value gives, and no more bytes than its kind may have; and a list
//! declares how long it can be ([`at_most`]), so that no memory is taken for a longer one.

use std::fmt;
use std::marker::PhantomData;

use postcard::ser_flavors::Flavor;
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Room made for a list before its items are there.
const AHEAD: usize = 256;

/// Why bytes are not the encoding of a value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Malformed {
    /// More bytes than a value of that kind may have.
    #[error("it has {len} bytes, {max} are allowed")]
    TooLong {
        /// How many.
        len: usize,
        /// How many at most.
        max: usize,
    },
    /// No such value.
    #[error("it cannot be decoded: {0}")]
    Undecodable(String),
    /// A value, but other bytes than encoding it gives.
    #[error("it is not in canonical form")]
    NotCanonical,
}

/// Reads a value from its encoding of at most `max` bytes.
pub(crate) fn decode<T: DeserializeOwned + Serialize>(
    bytes: &[u8],
    max: usize,
) -> Result<T, Malformed> {
    let len = bytes.len();
    if len > max {
        return Err(Malformed::TooLong { len, max });
    }
    let value = postcard::from_bytes(bytes).map_err(|e| Malformed::Undecodable(e.to_string()))?;
    if is_encoding(&value, bytes) {
        Ok(value)
    } else {
        Err(Malformed::NotCanonical)
    }
}

/// How long the encoding of `value` is.
pub(crate) fn len_of(value: &impl Serialize) -> usize {
    postcard::experimental::serialized_size(value).unwrap_or(usize::MAX)
}

/// Whether `bytes` is the encoding of `value`; makes no copy of it.
fn is_encoding(value: &impl Serialize, bytes: &[u8]) -> bool {
    postcard::serialize_with_flavor(value, Compare { left: bytes }).unwrap_or(false)
}

/// Compares what is written with what should be.
struct Compare<'a> {
    left: &'a [u8],
}

impl Flavor for Compare<'_> {
    type Output = bool;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let rest = self.left.strip_prefix(bytes);
        self.left = rest.ok_or(postcard::Error::SerializeBufferFull)?;
        Ok(())
    }

    fn finalize(self) -> postcard::Result<bool> {
        Ok(self.left.is_empty())
    }
}

/// Reads a list of at most `MAX` items; a longer one is an error before its items are read.
pub(crate) fn at_most<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let mut items = Vec::new();
    let count = each::<_, T, MAX>(deserializer, |item, claimed| {
        if items.capacity() == 0 {
            items.reserve(claimed.min(AHEAD));
        }
        items.push(item);
    });
    count.map(|_| items)
}

/// Reads such a list item by item, and keeps none of them; gives how many they were. `see` is told how many the list
/// claims to have, too.
pub(crate) fn each<'de, D, T, const MAX: usize>(
    deserializer: D,
    see: impl FnMut(T, usize),
) -> Result<usize, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Counting::<T, _, MAX>(see, PhantomData))
}

struct Counting<T, F, const MAX: usize>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T, usize), const MAX: usize> Visitor<'de>
    for Counting<T, F, MAX>
{
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<usize, A::Error> {
        let claimed = seq.size_hint().unwrap_or(0);
        if claimed > MAX {
            return Err(A::Error::invalid_length(claimed, &self));
        }
        let mut count = 0;
        while let Some(item) = seq.next_element()? {
            if count == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            count += 1;
            (self.0)(item, claimed);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
    struct Said {
        number: u64,
        #[serde(deserialize_with = "at_most::<_, _, 3>")]
        list: Vec<u8>,
    }

    fn said(list: &[u8]) -> Said {
        Said {
            number: 5,
            list: list.to_vec(),
        }
    }

    #[test]
    fn a_value_has_one_encoding_and_no_byte_more() {
        let good = postcard::to_stdvec(&said(&[1, 2])).unwrap();
        assert_eq!(good, [5, 2, 1, 2]);
        assert_eq!(decode::<Said>(&good, 4), Ok(said(&[1, 2])));
        assert_eq!(len_of(&said(&[1, 2])), 4);
        let mut junk = good.clone();
        junk.push(0);
        assert_eq!(decode::<Said>(&junk, 5), Err(Malformed::NotCanonical));
        let long = [0x85, 0, 2, 1, 2];
        assert_eq!(decode::<Said>(&long, 5), Err(Malformed::NotCanonical));
        for cut in 0..good.len() {
            let error = decode::<Said>(&good[..cut], 4);
            assert!(matches!(error, Err(Malformed::Undecodable(_))), "{cut}");
        }
        let too_long = Malformed::TooLong { len: 4, max: 3 };
        assert_eq!(decode::<Said>(&good, 3), Err(too_long));
    }

    #[test]
    fn a_list_is_counted_before_it_is_read() {
        let full = postcard::to_stdvec(&said(&[1, 2, 3])).unwrap();
        assert_eq!(decode::<Said>(&full, 100), Ok(said(&[1, 2, 3])));
        let over = postcard::to_stdvec(&said(&[1, 2, 3, 4])).unwrap();
        assert!(decode::<Said>(&over, 100).is_err());
        // Its claim alone is enough.
        let claims = [5, 0xff, 0xff, 0xff, 0xff, 0xf];
        assert!(decode::<Said>(&claims, 100).is_err());
    }
}
