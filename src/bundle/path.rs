//! Paths below `outbox/` and `inbox/`.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name of one path component in bytes (`NAME_MAX`).
pub(crate) const NAME_MAX: usize = 255;

/// Longest path in bytes: what the system takes (4,095) less `/proc/self/fd/99999/`, by which a node reaches it however
/// deep its state lies.
pub(crate) const PATH_MAX: usize = 4095 - 20;

/// Why bytes are not a usable relative path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PathError {
    /// Nothing at all.
    #[error("the path is empty")]
    Empty,
    /// Starts with `/`.
    #[error("the path is absolute")]
    Absolute,
    /// A component is empty, `.` or `..`.
    #[error("the path has a component that is empty, `.` or `..`")]
    Component,
    /// Contains a NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// A component has more than 255 bytes.
    #[error("a name in the path is longer than 255 bytes")]
    NameTooLong,
    /// The whole has more than 4,075 bytes.
    #[error("the path is longer than 4075 bytes")]
    TooLong,
}

/// A path below `outbox/` or `inbox/`: checked once, safe to join.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct RelPath(Box<[u8]>);

impl RelPath {
    /// Checks and takes `bytes`.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        if bytes[0] == b'/' {
            return Err(PathError::Absolute);
        }
        for name in bytes.split(|b| *b == b'/') {
            check_name(name)?;
        }
        Ok(Self(bytes.into()))
    }

    /// The path's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative `Path`, to be joined to a root of ours.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The components, first to last; never empty.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or(&self.0)
    }

    /// Everything before the last component; `None` at the top.
    pub fn parent(&self) -> Option<RelPath> {
        let at = self.0.iter().rposition(|b| *b == b'/')?;
        Some(Self(self.0[..at].into()))
    }

    /// `self/name`, where `name` is one component.
    pub fn child(&self, name: &[u8]) -> Result<RelPath, PathError> {
        check_name(name)?;
        let bytes = [&self.0, b"/".as_slice(), name].concat();
        if bytes.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        Ok(Self(bytes.into()))
    }

    /// Whether `self` is `dir` or lies somewhere below it.
    pub fn starts_with(&self, dir: &RelPath) -> bool {
        self.0
            .strip_prefix(&*dir.0)
            .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    /// What comes after `dir` and a slash; `None` unless it lies below `dir`.
    pub fn below(&self, dir: &RelPath) -> Option<&[u8]> {
        let rest = self.0.strip_prefix(&*dir.0)?;
        rest.strip_prefix(b"/")
    }

    /// `self` with its leading `from` replaced by `to`; `None` unless it starts with `from`.
    pub fn rebase(&self, from: &RelPath, to: &RelPath) -> Option<RelPath> {
        if !self.starts_with(from) {
            return None;
        }
        Self::parse([&to.0, &self.0[from.0.len()..]].concat()).ok()
    }
}

/// Checks one path component.
pub(crate) fn check_name(name: &[u8]) -> Result<(), PathError> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        Err(PathError::Component)
    } else if name.contains(&0) {
        Err(PathError::Nul)
    } else if name.len() > NAME_MAX {
        Err(PathError::NameTooLong)
    } else {
        Ok(())
    }
}

impl TryFrom<Vec<u8>> for RelPath {
    type Error = PathError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, PathError> {
        Self::parse(bytes)
    }
}

impl From<RelPath> for Vec<u8> {
    fn from(path: RelPath) -> Self {
        path.0.into_vec()
    }
}

impl Borrow<[u8]> for RelPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}
