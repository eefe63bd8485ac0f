//! Asking the kernel to read backing files by itself (passthrough, Linux 6.9 and later, root only).
//!
//! What may be read so and when the ways must not mix is decided in `fs`; here is only what the kernel grants. Where it
//! refuses for good (no privilege, a backing file system it cannot stack on), it is not asked again, and says so once.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, InitFlags, KernelConfig, ReplyOpen};

use crate::fs::Registration;

/// How many file systems may lie on one another below the mount: the backing file system itself is at the bottom. With
/// two, the mount could not be a layer of an overlay.
const STACK_DEPTH: u32 = 1;

/// What the kernel said so far.
#[derive(Debug, Default)]
pub(super) struct Backings {
    offered: AtomicBool,
    coherent: AtomicBool,
    refused: AtomicBool,
    #[cfg(test)]
    pub(super) withheld: AtomicBool,
}

impl Backings {
    /// Asks for the capability when the session begins.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        self.offered.store(offered, Ordering::Relaxed);
        // Came with the same kernel (6.6) that drops cached pages when one handle writes past the cache. Not asked for.
        let newer = InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        let coherent = config.capabilities().contains(newer);
        self.coherent.store(coherent, Ordering::Relaxed);
        if !offered {
            tracing::debug!("this kernel cannot read backing files by itself");
        }
    }

    /// Whether opens are to be settled at all; the same for the whole session.
    pub(super) fn offered(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }

    /// Whether a file may be written past the cache while others read it through the cache.
    pub(super) fn coherent(&self) -> bool {
        self.coherent.load(Ordering::Relaxed)
    }

    /// Registers a backing file.
    pub(super) fn register(&self, reply: &ReplyOpen, file: &File) -> io::Result<Registration> {
        if self.refused.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        #[cfg(test)]
        if self.withheld.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        match reply.open_backing(file) {
            Ok(id) => Ok(Arc::new(id)),
            Err(error) => {
                if is_final(&error) && !self.refused.swap(true, Ordering::Relaxed) {
                    tracing::info!(%error, "the kernel does not read backing files by itself; they are read through us");
                }
                Err(error)
            }
        }
    }
}

/// The kernel's number of a registered file, if it is one of ours.
pub(super) fn backing_id(registration: &Registration) -> Option<&BackingId> {
    registration.downcast_ref()
}

/// Whether the same answer is to be expected for every other file. Anything else (no memory, no descriptor) holds for
/// one open only.
fn is_final(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EPERM
                | libc::EOPNOTSUPP
                | libc::ENOTTY
                | libc::EINVAL
                | libc::ENOSYS
                | libc::ELOOP
        )
    )
}
