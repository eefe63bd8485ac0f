//! What is submitted to the journal together, and how it is written to the log.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::JournalError;
use super::key::Key;
use super::log::Record;
use super::table::Table;
use crate::disk::durable::Sync;

/// The number of its table, then the key itself.
pub(super) type FullKey = Vec<u8>;
/// `None`: deleted.
pub(super) type Value = Option<Arc<[u8]>>;
/// Whoever waits for durability.
pub(super) type Call = Box<dyn FnOnce() + Send + std::marker::Sync>;

/// Rows that become durable together.
#[derive(Default)]
pub(crate) struct Batch {
    pub(super) rows: Vec<(FullKey, Value)>,
    pub(super) syncs: Vec<Sync>,
    pub(super) on_durable: Vec<Call>,
}

impl Batch {
    /// Puts a row in the place of the one with this key, if there is one.
    pub(crate) fn insert<K, V: Serialize>(
        &mut self,
        table: Table<K, V>,
        key: &impl Key<Read = K>,
        value: &V,
    ) {
        // Postcard of plain owned data into a growing vector has no error to give.
        #[allow(clippy::expect_used)]
        let bytes = postcard::to_stdvec(value).expect("a row always encodes");
        self.rows.push((table.full(key), Some(bytes.into())));
    }

    /// Removes the row with this key, if there is one.
    pub(crate) fn remove<K, V>(&mut self, table: Table<K, V>, key: &impl Key<Read = K>) {
        self.rows.push((table.full(key), None));
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

#[derive(Serialize)]
pub(super) struct LogRecord<'a>(pub(super) &'a [(FullKey, Value)]);

impl LogRecord<'_> {
    pub(super) fn to_record(&self) -> Result<Record, JournalError> {
        // Encoding a vector of bytes has no error to give either.
        Record::new(|header| postcard::to_extend(self, header))
            .map_err(|error| JournalError::Record(error.to_string()))
    }
}

pub(super) fn decode<V: DeserializeOwned>(table: u8, bytes: &[u8]) -> Result<V, JournalError> {
    postcard::from_bytes(bytes).map_err(|error| JournalError::Row {
        table,
        why: error.to_string(),
    })
}

/// What some records put, without what they deleted. One that cannot be read ends it: what follows may build on it.
pub(super) fn rows_put(records: &[Vec<u8>]) -> BTreeMap<FullKey, Vec<u8>> {
    let mut put = BTreeMap::new();
    for record in records {
        let Ok(rows) = postcard::from_bytes::<Vec<(FullKey, Option<Vec<u8>>)>>(record) else {
            break;
        };
        let rows = rows.into_iter();
        put.extend(rows.filter_map(|(key, value)| Some((key, value?))));
    }
    put
}
