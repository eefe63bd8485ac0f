//! Tables: rows of one type, found by keys of one type.

use std::fmt;
use std::marker::PhantomData;

use super::key::{Below, Key};

/// A table with keys `K` and values `V`. Its number is part of the format.
pub(crate) struct Table<K, V> {
    number: u8,
    /// What all its keys begin with: tables of one row share a number, and are told apart by this.
    name: &'static str,
    of: PhantomData<fn() -> (K, V)>,
}

// Not derived: that would ask the same of keys and values.
impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Table<K, V> {}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}{}", self.number, self.name)
    }
}

impl<V> Table<(), V> {
    /// The table with one row that has this name among those with this number.
    pub(crate) const fn named(number: u8, name: &'static str) -> Self {
        Self {
            number,
            name,
            of: PhantomData,
        }
    }
}

impl<K, V> Table<K, V> {
    /// The table with this number.
    pub(crate) const fn new(number: u8) -> Self {
        Self {
            number,
            name: "",
            of: PhantomData,
        }
    }

    /// The same rows, of which only what they begin with is read.
    pub(crate) const fn heads<H>(self) -> Table<K, H> {
        Table {
            number: self.number,
            name: self.name,
            of: PhantomData,
        }
    }

    /// All its rows.
    pub(crate) fn all(self) -> Rows<K, V> {
        Rows {
            table: self,
            prefix: self.start(),
            after: None,
        }
    }

    /// The rows whose keys begin with `prefix`.
    pub(crate) fn below<P: Key>(self, prefix: &P) -> Rows<K, V>
    where
        K: Below<P::Read>,
    {
        let mut bytes = self.start();
        prefix.write(&mut bytes);
        Rows {
            table: self,
            prefix: bytes,
            after: None,
        }
    }

    pub(crate) fn number(self) -> u8 {
        self.number
    }

    fn start(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + self.name.len());
        bytes.push(self.number);
        bytes.extend_from_slice(self.name.as_bytes());
        bytes
    }

    /// The bytes of a key.
    pub(super) fn full(self, key: &impl Key<Read = K>) -> Vec<u8> {
        let mut bytes = self.start();
        key.write(&mut bytes);
        bytes
    }

    /// The key that has these bytes.
    pub(super) fn key(self, bytes: &[u8]) -> Option<K>
    where
        K: Key<Read = K>,
    {
        let mut rest = bytes.get(1 + self.name.len()..)?;
        let key = K::read(&mut rest)?;
        rest.is_empty().then_some(key)
    }
}

/// Rows of a table, in the order of their keys.
pub(crate) struct Rows<K, V> {
    pub(super) table: Table<K, V>,
    pub(super) prefix: Vec<u8>,
    pub(super) after: Option<Vec<u8>>,
}

impl<K, V> Rows<K, V> {
    /// Those after `key`; all of them if there is none.
    pub(crate) fn after(mut self, key: Option<&impl Key<Read = K>>) -> Self {
        self.after = key.map(|key| self.table.full(key));
        self
    }
}
