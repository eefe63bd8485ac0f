//! The disk's calls, [`crate::disk::durable`], and what becomes of errors from below.

use std::io;
use std::path::Path;

use super::SpoolError;
pub(super) use crate::disk::durable::*;
use crate::disk::{self, DiskError};
use crate::journal::JournalError;

/// Adds the path to an I/O error.
pub(super) trait OnPath<T> {
    /// `action` is a verb: "open", "rename".
    fn on(self, action: &'static str, path: &Path) -> Result<T, SpoolError>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, SpoolError> {
        Ok(disk::OnPath::on(self, action, path)?)
    }
}

impl<T> OnPath<T> for rustix::io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, SpoolError> {
        Ok(disk::OnPath::on(self, action, path)?)
    }
}

impl From<DiskError> for SpoolError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Sync { path, source } => Self::Io {
                action: "sync",
                path,
                source,
            },
            DiskError::Call {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
        }
    }
}

impl From<JournalError> for SpoolError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Disk(error) => error.into(),
            JournalError::Damaged { path, why } => Self::Damaged { path, why },
            JournalError::Row { .. } | JournalError::Record(_) => {
                Self::Corrupted(error.to_string())
            }
            error => Self::Journal(error),
        }
    }
}

impl From<JournalError> for super::ServeError {
    fn from(error: JournalError) -> Self {
        Self::Disk(error.into())
    }
}

impl From<JournalError> for super::GroupError {
    fn from(error: JournalError) -> Self {
        Self::Disk(error.into())
    }
}
