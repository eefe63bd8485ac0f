//! Keys: values as bytes that sort as the values do, alone or one after the other.
//!
//! # Invariants
//! 1. No two values of a type are written alike, and one is read back as what was written.
//! 2. Only a key that has always the same length ([`Fixed`]) is followed by another: else the end of the first could be
//!    taken for the beginning of the second.

/// What can be a key, or a part of one.
pub(crate) trait Key {
    /// What it is read back as: itself, or what it borrows from.
    type Read;

    /// Appends its bytes.
    fn write(&self, to: &mut Vec<u8>);

    /// Takes it from the front of `from`; `None` if that does not begin with such a key.
    fn read(from: &mut &[u8]) -> Option<Self::Read>;
}

/// A key that has always the same length.
pub(crate) trait Fixed: Key {}

/// A key that begins with a `P`, so that rows can be looked for by that alone.
pub(crate) trait Below<P> {}

impl<K: Key + ?Sized> Key for &K {
    type Read = K::Read;

    fn write(&self, to: &mut Vec<u8>) {
        (**self).write(to);
    }

    fn read(from: &mut &[u8]) -> Option<Self::Read> {
        K::read(from)
    }
}

impl<K: Fixed + ?Sized> Fixed for &K {}

/// The only key of a table with one row.
impl Key for () {
    type Read = ();

    fn write(&self, _to: &mut Vec<u8>) {}

    fn read(_from: &mut &[u8]) -> Option<()> {
        Some(())
    }
}

impl Fixed for () {}

impl Key for u64 {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to_be_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        <[u8; 8]>::read(from).map(Self::from_be_bytes)
    }
}

impl Fixed for u64 {}

impl<const N: usize> Key for [u8; N] {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let (first, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(*first)
    }
}

impl<const N: usize> Fixed for [u8; N] {}

impl Key for str {
    type Read = String;

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.as_bytes());
    }

    fn read(from: &mut &[u8]) -> Option<String> {
        let text = std::str::from_utf8(std::mem::take(from)).ok()?;
        Some(text.to_owned())
    }
}

impl Key for String {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        self.as_str().write(to);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        str::read(from)
    }
}

/// Any key of any table.
#[cfg(test)]
impl Key for Vec<u8> {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(std::mem::take(from).to_vec())
    }
}

/// Two or more keys, one after the other. Rows can be looked for by the first of them.
macro_rules! joined {
    ($first:ident $(, $middle:ident)* ; $last:ident) => {
        impl<$first: Fixed, $($middle: Fixed,)* $last: Key> Key for ($first, $($middle,)* $last) {
            type Read = ($first::Read, $($middle::Read,)* $last::Read);

            #[allow(non_snake_case, reason = "each part is named by its type")]
            fn write(&self, to: &mut Vec<u8>) {
                let ($first, $($middle,)* $last) = self;
                $first.write(to);
                $($middle.write(to);)*
                $last.write(to);
            }

            fn read(from: &mut &[u8]) -> Option<Self::Read> {
                Some(($first::read(from)?, $($middle::read(from)?,)* $last::read(from)?))
            }
        }

        impl<$first: Fixed, $($middle: Fixed,)* $last: Fixed> Fixed for ($first, $($middle,)* $last) {}

        impl<$first, $($middle,)* $last> Below<$first> for ($first, $($middle,)* $last) {}
    };
}

joined!(A; B);
joined!(A, B; C);
joined!(A, B, C; D);
joined!(A, B, C, D; E);

impl<A, B, C> Below<(A, B)> for (A, B, C) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(key: &impl Key) -> Vec<u8> {
        let mut bytes = Vec::new();
        key.write(&mut bytes);
        bytes
    }

    fn read_back<K: Key<Read = K> + PartialEq + std::fmt::Debug>(key: K) {
        let bytes = bytes(&key);
        let mut rest = bytes.as_slice();
        assert_eq!(K::read(&mut rest), Some(key));
        assert!(rest.is_empty());
    }

    #[test]
    fn a_key_is_read_back_and_its_bytes_sort_as_it_does() {
        let numbers = [0, 1, 255, 256, 1 << 40, u64::MAX];
        for pair in numbers.windows(2) {
            assert!(bytes(&pair[0]) < bytes(&pair[1]));
            assert!(bytes(&(pair[0], "b")) < bytes(&(pair[1], "a")));
        }
        for number in numbers {
            read_back(number);
            read_back((number, [7_u8; 3], "text".to_owned()));
            read_back(([1_u8; 32], number, [2_u8; 16], number, number));
        }
        read_back(String::new());
        read_back(());
    }

    #[test]
    fn what_is_cut_short_is_no_key() {
        let whole = bytes(&(7_u64, [1_u8; 4]));
        for len in 0..whole.len() {
            assert_eq!(<(u64, [u8; 4])>::read(&mut &whole[..len]), None, "{len}");
        }
    }
}
