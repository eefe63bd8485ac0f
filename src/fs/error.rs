//! Why a file operation failed, and the one place where that becomes an errno.

use rustix::io::Errno;
use thiserror::Error;

use crate::bundle::PathError;
use crate::spool::SpoolError;

/// Why a file operation failed.
#[derive(Debug, Error)]
pub(crate) enum FsError {
    /// No such name.
    #[error("no such entry")]
    NotFound,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// Only `outbox/` takes new and changed files.
    #[error("read-only outside outbox/")]
    ReadOnly,
    /// Symbolic links and special files do not travel; the three entries of the root stay.
    #[error("not permitted here")]
    NotPermitted,
    /// A name above 255 bytes or a path above 4,075.
    #[error("the name or path is too long")]
    NameTooLong,
    /// The file would have more than `max_file_bytes`.
    #[error("larger than max_file_bytes")]
    TooLarge,
    /// Inbox and outbox never share an inode, and directories do not move between them.
    #[error("inbox and outbox are apart")]
    CrossDevice,
    /// The inode has neither a name nor an open handle any more.
    #[error("the file is gone")]
    Stale,
    /// No such handle, or it does not allow this.
    #[error("bad file handle")]
    BadHandle,
    /// Only `user.*` attributes are kept.
    #[error("not supported")]
    NotSupported,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The buffer offered is too small for the attribute.
    #[error("the buffer is too small")]
    Range,
    /// Arguments that make no sense.
    #[error("invalid argument")]
    Invalid,
    /// A system call on the backing tree failed.
    #[error("backing file system: {0}")]
    Os(#[from] Errno),
    /// The spool failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl FsError {
    /// What the calling program sees.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::ReadOnly => libc::EROFS,
            Self::NotPermitted => libc::EPERM,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::TooLarge => libc::EFBIG,
            Self::CrossDevice => libc::EXDEV,
            Self::Stale => libc::ESTALE,
            Self::BadHandle => libc::EBADF,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::NoAttribute => libc::ENODATA,
            Self::Range => libc::ERANGE,
            Self::Invalid => libc::EINVAL,
            Self::Os(errno) => errno.raw_os_error(),
            Self::Spool(error) => error.errno(),
        }
    }
}

impl From<PathError> for FsError {
    fn from(error: PathError) -> Self {
        match error {
            PathError::NameTooLong | PathError::TooLong => Self::NameTooLong,
            PathError::Empty | PathError::Absolute | PathError::Component | PathError::Nul => {
                Self::Invalid
            }
        }
    }
}

impl From<std::io::Error> for FsError {
    fn from(error: std::io::Error) -> Self {
        Self::Os(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}
