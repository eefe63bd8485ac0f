//! Why the journal could not do something.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use redb::{DatabaseError, StorageError};
use thiserror::Error;

use crate::disk::{DiskError, is_full};

/// Why the journal could not do something.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum JournalError {
    /// A system call failed, on a file of the journal or on what a batch waits for.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The database is not what was written to it.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The database's file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The database failed, and is not known to be damaged.
    #[error(transparent)]
    Database(redb::Error),
    /// The database was closed after an error, and is not open again yet.
    #[error("the database is not open after an error")]
    NotOpen,
    /// A row cannot be read.
    #[error("table {table}: {why}")]
    Row {
        table: u8,
        /// What is wrong with it.
        why: String,
    },
    /// A record of the log cannot be read, though it is whole.
    #[error("{0}")]
    Record(String),
    /// A sync failed before, so that nothing becomes durable any more: see [`super::Journal::trouble`].
    #[error("{0}")]
    Halted(String),
    /// The thread that writes could not be started.
    #[error("cannot start its thread: {0}")]
    NoThread(io::Error),
    /// The thread that writes has ended, so that nothing becomes durable any more.
    #[error("the writer has ended")]
    NoWriter,
    /// After [`super::Journal::close`].
    #[error("the daemon ends: the journal is closed")]
    Closed,
}

impl JournalError {
    /// The database failed, or is damaged.
    pub(super) fn of_database(path: &Path, error: DatabaseError) -> Self {
        match error {
            DatabaseError::Storage(StorageError::Corrupted(why)) => Self::damaged(path, why),
            DatabaseError::Storage(StorageError::Io(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::damaged(path, error)
            }
            DatabaseError::UpgradeRequired(version) => {
                Self::damaged(path, format_args!("its format is {version}"))
            }
            other => Self::database(other),
        }
    }

    /// The database is damaged.
    pub(super) fn damaged(path: &Path, why: impl fmt::Display) -> Self {
        Self::Damaged {
            path: path.to_path_buf(),
            why: why.to_string(),
        }
    }

    /// The database failed.
    pub(super) fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(error.into())
    }

    /// Whether there is no room, of whatever kind.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Disk(error) => error.is_full(),
            Self::Database(redb::Error::Io(error)) => is_full(error),
            // Others keep the words only.
            Self::Database(error) => {
                let words = error.to_string();
                words.contains("os error 28") || words.contains("os error 122")
            }
            _ => false,
        }
    }

    /// Whether the disk refused to make something durable, see [`DiskError::Sync`].
    pub(super) fn is_failed_sync(&self) -> bool {
        matches!(self, Self::Disk(DiskError::Sync { .. }))
    }
}
