//! What goes in and out of the file system: attributes, entries, requests to change them. No FUSE types, so that the
//! file system can be tested without a mount.

use std::time::Duration;

use rustix::fs::{FileType, Stat, major, minor};

use super::kind::{Device, Kind};
use super::node::{Area, Backing, NodeId, Stamp};

/// How long the kernel may believe names and attributes: all changes of the outbox pass through us.
pub(crate) const OUTBOX_TTL: Duration = Duration::from_secs(1);

/// Inbox names change under the kernel. It is told, but a lost notice must not be believed for long.
pub(crate) const INBOX_TTL: Duration = Duration::from_secs(1);

/// Generated files are new at every look.
pub(crate) const STATUS_TTL: Duration = Duration::ZERO;

/// Preferred transfer size: fewer and larger WRITEs from programs that follow it.
const BLKSIZE: u32 = 128 * 1024;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// User id of the request.
    pub uid: u32,
    /// Group id of the request.
    pub gid: u32,
    /// Thread id, 0 if unknown.
    pub tid: u32,
}

/// A point in time, as the backing file system has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Seconds since 1970; negative before.
    pub secs: i64,
    /// Nanoseconds after that.
    pub nanos: u32,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attr {
    /// The inode, also shown as `st_ino`.
    pub node: NodeId,
    /// Length in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the bytes.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// File, directory, or what else.
    pub kind: Kind,
    /// Which device it is, if it is one.
    pub device: Device,
    /// Permission bits with suid, sgid and sticky.
    pub perm: u16,
    /// Visible names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Preferred transfer size.
    pub blksize: u32,
}

/// A name that was found, and how long that may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The inode behind it.
    pub attr: Attr,
    /// Validity of name and attributes.
    pub ttl: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetTime {
    /// The present.
    Now,
    /// This one.
    At(Time),
}

/// Attributes to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// The handle it is asked through.
    pub fh: Option<u64>,
}

/// How the kernel may cache an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// Cache, dropped at each open.
    Ordinary,
    /// Cache, kept from open to open: the bytes never change.
    Keep,
    /// No cache: the bytes are made for this handle.
    None,
    /// Written past the cache, of which the kernel drops what was overwritten; if it cannot, [`Self::Ordinary`].
    Past,
}

/// An opened file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Its handle.
    pub fh: u64,
    /// How the kernel may cache it.
    pub caching: Caching,
    /// Nothing can be written through it, so that nobody need hear of its closing.
    pub reads_only: bool,
}

/// One line of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub name: Vec<u8>,
    /// The number to show as `d_ino`.
    pub number: u64,
    /// The backing inode; 0 if there is none.
    pub backing: u64,
    /// File, directory, or what else.
    pub kind: Kind,
    /// Where a listing goes on after this one, in any descriptor.
    pub offset: u64,
}

/// Sizes of the spool's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for ordinary users.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Transfer size.
    pub block_size: u32,
    /// Size of a block above.
    pub fragment_size: u32,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// The kind of a backing inode; `None` for what Meshbox does not show.
pub(crate) fn kind_of(stat: &Stat) -> Option<Kind> {
    Kind::of(FileType::from_raw_mode(stat.st_mode))
}

/// `st_nlink`, whose type differs between architectures.
#[allow(clippy::useless_conversion)]
pub(crate) fn links(stat: &Stat) -> u64 {
    u64::from(stat.st_nlink)
}

/// What the node table needs of a backing inode.
pub(crate) fn backing_of(area: Area, stat: &Stat) -> Backing {
    let kind = kind_of(stat).unwrap_or(Kind::File);
    let stamp = if area == Area::Inbox && kind != Kind::Directory {
        Stamp {
            mtime: stat.st_mtime,
            mtime_nsec: nanos(stat.st_mtime_nsec),
            size: stat.st_size,
        }
    } else {
        Stamp::default()
    };
    Backing {
        area,
        ino: stat.st_ino,
        kind,
        stamp,
    }
}

/// The attributes to show. `nlink` is the number of visible names.
pub(crate) fn attr_of(node: NodeId, stat: &Stat, nlink: u64) -> Attr {
    Attr {
        node,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: Time {
            secs: stat.st_atime,
            nanos: nanos(stat.st_atime_nsec),
        },
        mtime: Time {
            secs: stat.st_mtime,
            nanos: nanos(stat.st_mtime_nsec),
        },
        ctime: Time {
            secs: stat.st_ctime,
            nanos: nanos(stat.st_ctime_nsec),
        },
        kind: kind_of(stat).unwrap_or(Kind::File),
        device: Device {
            major: major(stat.st_rdev),
            minor: minor(stat.st_rdev),
        },
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        blksize: BLKSIZE,
    }
}

fn nanos(nanos: impl TryInto<u32>) -> u32 {
    nanos.try_into().unwrap_or(0)
}
