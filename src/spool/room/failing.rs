//! What is wrong with our disk, in words: for whoever sent what cannot be received, and for our own user.
//!
//! Full, out of inodes, not writable and read-only look alike to a program, and ask for different things.

use std::io;

use rustix::fs::StatVfsMountFlags;

use crate::spool::{Spool, SpoolError};

impl Spool {
    /// The state's file system cannot take anything: why.
    pub(in crate::spool) fn disk_trouble(&self) -> Option<String> {
        let of_disk = rustix::fs::fstatvfs(&self.room.disk).ok().and_then(|stat| {
            if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
                Some("the file system of the state directory is read-only: nothing is received or sent".to_owned())
            } else if stat.f_files > 0 && stat.f_favail == 0 {
                Some("the disk is out of inodes: no file can be made, nothing is received".to_owned())
            } else {
                None
            }
        });
        of_disk.or_else(|| self.room.failing.lock().clone())
    }

    /// Something could not be received: what to tell whoever sent it. Status says the same, until something is received.
    pub fn disk_failed(&self, error: &SpoolError) -> String {
        let source = match error {
            SpoolError::Io { source, .. } => Some(source),
            _ => None,
        };
        let code = source.and_then(io::Error::raw_os_error);
        let inodes = rustix::fs::fstatvfs(&self.room.disk)
            .is_ok_and(|stat| stat.f_files > 0 && stat.f_favail == 0);
        let what = match code {
            Some(libc::ENOSPC) if inodes => {
                "no room here: the receiver's disk is out of inodes".to_owned()
            }
            Some(libc::ENOSPC) => "no room here: the receiver's disk is full".to_owned(),
            Some(libc::EDQUOT) => "no room here: the receiver's disk quota is used up".to_owned(),
            Some(libc::EROFS) => "the receiver's file system is read-only".to_owned(),
            Some(libc::EACCES | libc::EPERM) => {
                "the receiver's daemon may not write in its state directory".to_owned()
            }
            Some(code) => {
                let text = io::Error::from_raw_os_error(code);
                format!("the receiver's disk failed: {text}")
            }
            None => "the receiver's disk failed".to_owned(),
        };
        *self.room.failing.lock() = Some(format!("what arrives cannot be stored: {error}"));
        what
    }

    /// Something was received.
    pub fn disk_works(&self) {
        let mut failing = self.room.failing.lock();
        if failing.is_some() {
            *failing = None;
        }
    }
}
