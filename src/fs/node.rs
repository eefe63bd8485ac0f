//! Nodes and where they are: numbers, names and places, without the table that knows which is where.

use super::error::FsError;
use super::kind::Kind;
use crate::bundle::RelPath;

/// The number by which the kernel and `fs` name an inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct NodeId(pub u64);

/// Numbers from here on are ours; backing inode numbers stay below.
pub(super) const OWN_NUMBERS: u64 = 1 << 63;

impl NodeId {
    /// The root of the mount, fixed by FUSE.
    pub(crate) const ROOT: Self = Self(1);
    pub(crate) const OUTBOX: Self = Self(OWN_NUMBERS);
    pub(crate) const INBOX: Self = Self(OWN_NUMBERS + 1);
    /// `.meshbox/`.
    pub(crate) const STATUS_DIR: Self = Self(OWN_NUMBERS + 2);
    /// Where the herald finds what it announces; see [`super::announce`].
    pub(crate) const STAGE: Self = Self(OWN_NUMBERS + 3);
    /// The first of the generated files.
    pub(crate) const STATUS_FILES: Self = Self(OWN_NUMBERS + 16);
    /// The first number given to nodes whose inode number is taken.
    pub(super) const COUNTER: u64 = OWN_NUMBERS + 1024;
}

/// Which of the two backing trees.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Area {
    Outbox,
    Inbox,
}

/// What tells two uses of one inode number apart in the inbox, whose names change without the kernel's help.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stamp {
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) size: i64,
}

/// A backing inode as a system call just saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Backing {
    pub(crate) area: Area,
    pub(crate) ino: u64,
    pub(crate) kind: Kind,
    /// Zero outside the inbox and for directories.
    pub(crate) stamp: Stamp,
}

/// Where a node is now: a path below its area's root, empty for the root itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) area: Area,
    pub(crate) path: Vec<u8>,
}

impl Place {
    /// The path as the spool wants it; the root of an area has none.
    pub(crate) fn rel(&self) -> Result<RelPath, FsError> {
        Ok(RelPath::parse(self.path.clone())?)
    }

    /// The entry `name` of this directory.
    pub(crate) fn child(&self, name: &[u8]) -> Result<Self, FsError> {
        crate::bundle::check_name(name)?;
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        if !self.path.is_empty() {
            path.extend_from_slice(&self.path);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let child = Self {
            area: self.area,
            path,
        };
        child.rel()?;
        Ok(child)
    }
}

/// A name as the kernel gives it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    /// The directory.
    pub parent: NodeId,
    /// The component.
    pub name: &'a [u8],
}
