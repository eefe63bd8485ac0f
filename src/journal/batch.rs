//! What is submitted to the journal together, and how it is written to the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::JournalError;
use super::log::Record;
use crate::disk::durable::Sync;

/// A table's number; part of the format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Table(pub(crate) u8);

/// The number of its table, then the key itself.
pub(super) type Key = Vec<u8>;
/// `None`: deleted.
pub(super) type Value = Option<Arc<[u8]>>;
/// Whoever waits for durability.
pub(super) type Call = Box<dyn FnOnce() + Send + std::marker::Sync>;

/// Rows that become durable together.
#[derive(Default)]
pub(crate) struct Batch {
    pub(super) rows: Vec<(Key, Value)>,
    pub(super) syncs: Vec<Sync>,
    pub(super) on_durable: Vec<Call>,
}

impl Batch {
    pub(crate) fn put<V: Serialize>(&mut self, table: Table, key: &[u8], value: &V) {
        // Postcard of plain owned data into a growing vector has no error to give.
        #[allow(clippy::expect_used)]
        let bytes = postcard::to_stdvec(value).expect("a row always encodes");
        self.rows.push((full_key(table, key), Some(bytes.into())));
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) {
        self.rows.push((full_key(table, key), None));
    }

    /// Bytes or names that must be durable before these rows.
    pub(crate) fn sync(&mut self, sync: Sync) {
        self.syncs.push(sync);
    }

    /// Called on the writer thread once the rows are durable.
    pub(crate) fn on_durable(&mut self, call: impl FnOnce() + Send + std::marker::Sync + 'static) {
        self.on_durable.push(Box::new(call));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.on_durable.is_empty()
    }
}

pub(super) fn full_key(table: Table, key: &[u8]) -> Key {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table.0);
    full.extend_from_slice(key);
    full
}

#[derive(Serialize)]
pub(super) struct LogRecord<'a>(pub(super) &'a [(Key, Value)]);

impl LogRecord<'_> {
    pub(super) fn to_record(&self) -> Result<Record, JournalError> {
        // Encoding a vector of bytes has no error to give either.
        Record::new(|header| postcard::to_extend(self, header))
            .map_err(|error| JournalError::Record(error.to_string()))
    }
}

pub(super) fn decode<V: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<V, JournalError> {
    postcard::from_bytes(bytes).map_err(|error| JournalError::Row {
        table: table.0,
        why: error.to_string(),
    })
}

/// What some records put, without what they deleted. One that cannot be read ends it: what follows may build on it.
pub(super) fn rows_put(records: &[Vec<u8>]) -> BTreeMap<Key, Vec<u8>> {
    let mut put = BTreeMap::new();
    for record in records {
        let Ok(rows) = postcard::from_bytes::<Vec<(Key, Option<Vec<u8>>)>>(record) else {
            break;
        };
        let rows = rows.into_iter();
        put.extend(rows.filter_map(|(key, value)| Some((key, value?))));
    }
    put
}
