//! What an inode is.

use rustix::fs::{Dev, FileType, makedev};

/// What an inode is. All but the first three exist only in the outbox, at ignored names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket of the local machine.
    Socket,
    /// A character device.
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// `None` for what no file system of Linux has.
    pub(crate) fn of(kind: FileType) -> Option<Self> {
        match kind {
            FileType::RegularFile => Some(Self::File),
            FileType::Directory => Some(Self::Directory),
            FileType::Symlink => Some(Self::Symlink),
            FileType::Fifo => Some(Self::Fifo),
            FileType::Socket => Some(Self::Socket),
            FileType::CharacterDevice => Some(Self::CharDevice),
            FileType::BlockDevice => Some(Self::BlockDevice),
            FileType::Unknown => None,
        }
    }

    /// Whether it can be sent, as or in a bundle, wherever it is. A symbolic link can, where it stays in its tree.
    pub(crate) fn travels(self) -> bool {
        match self {
            Self::File | Self::Directory => true,
            Self::Symlink | Self::Fifo | Self::Socket | Self::CharDevice | Self::BlockDevice => {
                false
            }
        }
    }
}

/// A device's number, as mknod(2) takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

impl Device {
    /// As a system call takes it.
    pub(super) fn dev(self) -> Dev {
        makedev(self.major, self.minor)
    }
}
