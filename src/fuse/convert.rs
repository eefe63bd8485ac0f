//! Between the types of fuser and ours.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::fs::{Attr, Caller, Device, Kind, Named, NodeId, SetTime, Time};

/// Who asks.
pub(super) fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        tid: req.pid(),
    }
}

/// A node by its number.
pub(super) fn id(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

/// A name in a directory.
pub(super) fn at(parent: INodeNo, name: &OsStr) -> Named<'_> {
    Named {
        parent: id(parent),
        name: name.as_bytes(),
    }
}

/// A time of ours for fuser.
pub(super) fn system_time(time: Time) -> SystemTime {
    let whole = if time.secs >= 0 {
        UNIX_EPOCH.checked_add(Duration::from_secs(time.secs.unsigned_abs()))
    } else {
        UNIX_EPOCH.checked_sub(Duration::from_secs(time.secs.unsigned_abs()))
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// A time of a request. The kernel counts nanoseconds forwards from whole seconds, also before 1970; fuser 0.18 takes them
/// for a fraction that goes further back, so that half a second before 1970 (-1 s and half a second) becomes one and a
/// half. Taken apart as it was put together, it is right again. To be dropped when fuser converts it right, of which the
/// tests of times on a mount tell.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time {
                secs: after.as_secs().cast_signed(),
                nanos: after.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                Time {
                    secs: 0_i64.wrapping_sub_unsigned(before.as_secs()),
                    nanos: before.subsec_nanos(),
                }
            }
        }),
    }
}

/// What a node is.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// A device number as the protocol has it: the kernel's `new_encode_dev`, 12 bits of major and 20 of minor.
pub(super) fn rdev(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// A device number of the protocol as ours.
pub(super) fn device(rdev: u32) -> Device {
    Device {
        major: (rdev & 0x000f_ff00) >> 8,
        minor: (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00),
    }
}

/// Attributes for a reply.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev(attr.device),
        blksize: attr.blksize,
        flags: 0,
    }
}
