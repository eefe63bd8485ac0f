//! What is wrong with our disk, in words: for whoever sent what cannot be received, and for our own user.
//!
//! Full, out of inodes, not writable and read-only look alike to a program, and ask for different things. The kernel does
//! not always say which it is: a file system that turned read-only after an error may still call itself writable. So it
//! is tried, in ways that change nothing.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, StatVfs, StatVfsMountFlags, accessat};
use rustix::io::Errno;

use crate::bundle::RelPath;
use crate::spool::content::Content;
use crate::spool::{Spool, SpoolError, start};

/// A file or directory of the outbox that could not be sealed.
#[derive(Debug)]
pub(super) struct Unsealed {
    path: RelPath,
    ino: u64,
    why: String,
}

/// Why nothing can be written, or no file be made.
enum Unwritable {
    ReadOnly,
    OutOfInodes,
    /// The daemon may not write in this directory of the state.
    Denied(PathBuf),
}

impl Unwritable {
    /// For our own user.
    fn trouble(&self) -> String {
        match self {
            Self::ReadOnly => "the file system of the state directory is read-only: nothing is received or sent. The kernel's \
                log (dmesg) says why; repair it or mount it writable, then start the daemon again"
                .to_owned(),
            Self::OutOfInodes => {
                "the disk is out of inodes: no file can be made, nothing is received".to_owned()
            }
            Self::Denied(at) => format!(
                "the daemon may not write in {}: see to its owner, mode and attributes",
                at.display()
            ),
        }
    }

    /// For whoever sent something. Our paths are none of their business.
    fn refusal(&self) -> &'static str {
        match self {
            Self::ReadOnly => "the receiver's file system is read-only",
            Self::OutOfInodes => "no room here: the receiver's disk is out of inodes",
            Self::Denied(_) => "the receiver's daemon may not write in its state directory",
        }
    }
}

fn is_read_only(stat: &StatVfs, lock: rustix::io::Result<()>) -> bool {
    stat.f_flag.contains(StatVfsMountFlags::RDONLY) || lock == Err(Errno::ROFS)
}

impl Content {
    /// What the disk says of itself, and whether the lock, which is there as long as the daemon runs, can be opened for
    /// writing: some kernels tell only so that a file system turned read-only.
    fn probe(&self) -> Option<(StatVfs, rustix::io::Result<()>)> {
        let stat = rustix::fs::fstatvfs(&self.room.disk).ok()?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(self.layout.lock(), flags, Mode::empty());
        Some((stat, lock.map(drop)))
    }

    fn unwritable(&self) -> Option<Unwritable> {
        let (stat, lock) = self.probe()?;
        if is_read_only(&stat, lock) {
            return Some(Unwritable::ReadOnly);
        }
        if matches!(lock, Err(Errno::ACCESS | Errno::PERM)) {
            return Some(Unwritable::Denied(self.layout.lock()));
        }
        if stat.f_files > 0 && stat.f_favail == 0 {
            return Some(Unwritable::OutOfInodes);
        }
        let mut rooms = self.layout.written().into_iter();
        let denied = rooms.find(|room| {
            // Without flags: what asks with them is refused by older sandboxes, whoever asks.
            let may = accessat(CWD, room, Access::WRITE_OK, AtFlags::empty());
            matches!(may, Err(Errno::ACCESS | Errno::PERM))
        });
        denied.map(Unwritable::Denied)
    }

    /// The state's file system cannot take anything: why.
    pub(in crate::spool) fn unwritable_trouble(&self) -> Option<String> {
        self.unwritable().map(|why| why.trouble())
    }

    /// Tells the next start when the disk turns read-only: what was not on it by then is lost when it is taken down to be
    /// repaired, though this kernel runs on. Cheap; looked at each second, and at the end.
    pub(in crate::spool) fn watch_disk(&self) {
        let is_read_only = self
            .probe()
            .is_some_and(|(stat, lock)| is_read_only(&stat, lock));
        if self.room.read_only.swap(is_read_only, Ordering::AcqRel) == is_read_only {
            return;
        }
        let state = self.layout.state();
        let told = if is_read_only {
            tracing::error!("the file system of the state directory turned read-only");
            start::distrust_page_cache(state).map_err(SpoolError::from)
        } else if self.journal.still_keeps().is_ok() {
            tracing::info!("the file system of the state directory is writable again");
            start::save_boot(state)
        } else {
            Ok(())
        };
        if let Err(error) = told {
            tracing::warn!(%error, "the next start is not told how this run ends");
        }
    }

    /// What the last thing to be received failed with.
    pub(in crate::spool) fn failing_trouble(&self) -> Option<String> {
        self.room.failing.lock().clone()
    }

    /// Nothing is taken since a sync failed: what to tell whoever sent something.
    pub(in crate::spool) fn sync_refusal(&self) -> String {
        let why = self.unwritable().map(|why| why.refusal());
        let why = why.unwrap_or("a sync of its disk failed");
        format!("{why}: it takes nothing until it is started again")
    }

    /// Something could not be received: what to tell whoever sent it. Status says the same, until something is received.
    pub(crate) fn disk_failed(&self, error: &SpoolError) -> String {
        let source = match error {
            SpoolError::Io { source, .. } => Some(source),
            _ => None,
        };
        let code = source.and_then(io::Error::raw_os_error);
        let unwritable = self.unwritable();
        let what = match (code, &unwritable) {
            (Some(libc::ENOSPC) | None, Some(why)) => why.refusal().to_owned(),
            (Some(libc::ENOSPC), None) => "no room here: the receiver's disk is full".to_owned(),
            (Some(libc::EDQUOT), _) => {
                "no room here: the receiver's disk quota is used up".to_owned()
            }
            (Some(libc::EROFS), _) => Unwritable::ReadOnly.refusal().to_owned(),
            (Some(libc::EACCES | libc::EPERM), _) => {
                Unwritable::Denied(PathBuf::new()).refusal().to_owned()
            }
            (Some(code), _) => {
                let text = io::Error::from_raw_os_error(code);
                format!("the receiver's disk failed: {text}")
            }
            (None, None) => "the receiver's disk failed".to_owned(),
        };
        *self.room.failing.lock() = Some(format!("what arrives cannot be stored: {error}"));
        what
    }

    /// Something was received.
    pub(crate) fn disk_works(&self) {
        let mut failing = self.room.failing.lock();
        if failing.is_some() {
            *failing = None;
        }
    }
}

impl Spool {
    /// What the outbox shows at `path` could not be sealed, and is tried again: status says why.
    pub(in crate::spool) fn seal_failed(&self, path: &RelPath, error: &SpoolError) {
        let mut unsealed = self.content.room.unsealed.lock();
        let is_over = |known: &Unsealed| !self.is_still_there(known);
        if unsealed.as_ref().is_none_or(is_over)
            && let Ok(Some(ino)) = self.outbox.root.inode(path)
        {
            *unsealed = Some(Unsealed {
                path: path.clone(),
                ino,
                why: error.to_string(),
            });
        }
    }

    /// A seal of this inode came to its end.
    pub(in crate::spool) fn seal_ended(&self, ino: u64) {
        let mut unsealed = self.content.room.unsealed.lock();
        if unsealed.as_ref().is_some_and(|known| known.ino == ino) {
            *unsealed = None;
        }
    }

    fn is_still_there(&self, known: &Unsealed) -> bool {
        matches!(self.outbox.root.inode(&known.path), Ok(Some(ino)) if ino == known.ino)
    }

    /// What cannot be sealed, one of perhaps many.
    pub(in crate::spool) fn seal_trouble(&self) -> Option<String> {
        let unsealed = self.content.room.unsealed.lock();
        let known = unsealed
            .as_ref()
            .filter(|known| self.is_still_there(known))?;
        Some(format!(
            "outbox/{} cannot be sent yet, it is tried again: {}",
            known.path, known.why
        ))
    }
}
