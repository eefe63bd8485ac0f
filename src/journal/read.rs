//! Reading the journal: what is committed, under what is not yet.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use redb::{ReadOnlyTable, ReadableDatabase};
use serde::de::DeserializeOwned;

use super::batch::{FullKey, Value, decode};
use super::database::ROWS;
use super::key::Key;
use super::shared::Shared;
use super::table::{Rows, Table};
use super::{Journal, JournalError};

/// Rows looked at per step.
const PAGE: usize = 1000;

#[cfg(test)]
thread_local! {
    static READS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How often this thread has read rows.
#[cfg(test)]
pub(crate) fn reads_here() -> u64 {
    READS.get()
}

/// A row as it is stored.
type Row = (FullKey, Arc<[u8]>);

impl Shared {
    fn committed(&self) -> Result<ReadOnlyTable<&'static [u8], &'static [u8]>, JournalError> {
        let database = self.database()?;
        let read = database.begin_read().map_err(JournalError::database)?;
        read.open_table(ROWS).map_err(JournalError::database)
    }

    /// What `decode` makes of the row with this key.
    fn read<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, JournalError>,
    ) -> Result<Option<T>, JournalError> {
        #[cfg(test)]
        READS.set(READS.get() + 1);
        if let Some((_, value)) = self.fresh.read().overlay.get(key) {
            return value.as_deref().map(decode).transpose();
        }
        let rows = self.committed()?;
        let found = rows.get(key).map_err(JournalError::database)?;
        found.map(|guard| decode(guard.value())).transpose()
    }

    /// Rows whose key starts with `prefix` and comes after `after`, in key order, at most `limit`.
    fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, JournalError> {
        #[cfg(test)]
        READS.set(READS.get() + 1);
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        // The overlay first: a row that moves to the database in between is then seen twice, never missed.
        let mut fresh: BTreeMap<FullKey, Value> = BTreeMap::new();
        {
            let held = self.fresh.read();
            let mut live = 0;
            for (key, (_, value)) in held.overlay.range::<[u8], _>((start, Bound::Unbounded)) {
                if !key.starts_with(prefix) || live == limit {
                    break;
                }
                live += usize::from(value.is_some());
                fresh.insert(key.clone(), value.clone());
            }
        }
        let rows = self.committed()?;
        let mut merged: BTreeMap<FullKey, Arc<[u8]>> = BTreeMap::new();
        for row in rows
            .range::<&[u8]>((start, Bound::Unbounded))
            .map_err(JournalError::database)?
        {
            let (key, value) = row.map_err(JournalError::database)?;
            if !key.value().starts_with(prefix) || merged.len() == limit {
                break;
            }
            if !fresh.contains_key(key.value()) {
                merged.insert(key.value().to_vec(), value.value().into());
            }
        }
        for (key, value) in fresh {
            if let Some(value) = value {
                merged.insert(key, value);
            }
        }
        Ok(merged.into_iter().take(limit).collect())
    }
}

impl Journal {
    /// The row with this key, or `None`.
    pub(crate) fn row<K, V: DeserializeOwned>(
        &self,
        table: Table<K, V>,
        key: &impl Key<Read = K>,
    ) -> Result<Option<V>, JournalError> {
        let decode = |bytes: &[u8]| decode(table.number(), bytes);
        self.shared.read(&table.full(key), decode)
    }

    /// The first of these rows, in the order of their keys, at most `limit`. One that cannot be read is passed over and
    /// logged.
    pub(crate) fn rows<K: Key<Read = K>, V: DeserializeOwned>(
        &self,
        rows: Rows<K, V>,
        limit: usize,
    ) -> Result<Vec<(K, V)>, JournalError> {
        let table = rows.table;
        self.read_rows(rows, limit, |bytes| decode(table.number(), bytes))
    }

    /// The keys of [`Self::rows`], whatever the rows hold.
    pub(crate) fn keys<K: Key<Read = K>, V>(
        &self,
        rows: Rows<K, V>,
        limit: usize,
    ) -> Result<Vec<K>, JournalError> {
        let found = self.read_rows(rows, limit, |_| Ok(()))?;
        Ok(found.into_iter().map(|(key, ())| key).collect())
    }

    /// All rows of a table, page by page: what is inserted behind the place where it stands is met, too.
    pub(crate) fn each<K: Key<Read = K>, V: DeserializeOwned>(
        &self,
        table: Table<K, V>,
    ) -> impl Iterator<Item = Result<(K, V), JournalError>> {
        let mut page = Vec::new().into_iter();
        let mut rest = Some(table.all());
        std::iter::from_fn(move || {
            if page.len() == 0 {
                match self.rows(rest.take()?, PAGE) {
                    Ok(rows) => page = rows.into_iter(),
                    Err(error) => return Some(Err(error)),
                }
                let (last, _) = page.as_slice().last()?;
                rest = Some(table.all().after(Some(last)));
            }
            page.next().map(Ok)
        })
    }

    fn read_rows<K: Key<Read = K>, V, T>(
        &self,
        rows: Rows<K, V>,
        limit: usize,
        decode: impl Fn(&[u8]) -> Result<T, JournalError>,
    ) -> Result<Vec<(K, T)>, JournalError> {
        let Rows {
            table,
            prefix,
            after,
        } = rows;
        let mut found = Vec::new();
        for (key, value) in self.shared.range(&prefix, after.as_deref(), limit)? {
            match (table.key(&key), decode(&value)) {
                (Some(key), Ok(value)) => found.push((key, value)),
                (None, _) => tracing::error!(?table, "a journal row is passed over: its key"),
                (_, Err(error)) => tracing::error!(?table, %error, "a journal row is passed over"),
            }
        }
        Ok(found)
    }

    /// The keys of rows that cannot be read.
    pub(crate) fn unreadable<K: Key<Read = K>, V: DeserializeOwned>(
        &self,
        table: Table<K, V>,
    ) -> Result<Vec<K>, JournalError> {
        let mut bad = Vec::new();
        for key in self.keys(table.all(), usize::MAX)? {
            match self.row(table, &key) {
                Ok(_) => {}
                Err(JournalError::Row { .. }) => bad.push(key),
                Err(error) => return Err(error),
            }
        }
        Ok(bad)
    }

    /// Whether what was last inserted or removed there is readable, but lost at the next start, since a sync failed.
    pub(crate) fn is_lost<K, V>(&self, table: Table<K, V>, key: &impl Key<Read = K>) -> bool {
        let fresh = self.shared.fresh.read();
        fresh.halted && fresh.overlay.contains_key(&table.full(key))
    }

    /// Rows of `table` that the log had inserted when it was dropped at [`Journal::open`], whatever it said of them later.
    /// They may speak of bytes that are lost.
    pub(crate) fn dropped<K: Key<Read = K>, V: DeserializeOwned>(
        &self,
        table: Table<K, V>,
    ) -> Vec<(K, V)> {
        let prefix = table.all().prefix;
        let dropped = self.dropped.lock();
        let rows = dropped.range::<[u8], _>((Bound::Included(prefix.as_slice()), Bound::Unbounded));
        rows.take_while(|(key, _)| key.starts_with(&prefix))
            .filter_map(|(key, value)| Some((table.key(key)?, decode(table.number(), value).ok()?)))
            .collect()
    }
}
