//! Who reads the bytes of an inbox file: the kernel by itself, straight from the backing file (passthrough), or we,
//! through its page cache.
//!
//! The kernel knows one way per inode for as long as a handle is open. An open that is answered in the other way fails
//! with EIO, and so does one with a second registration of the backing file. So the first handle of a node decides, and
//! all others follow until the last one is gone; the kernel has ended a handle before it tells us of its release.
//!
//! Only inbox files may be read by the kernel: their bytes never change. In the outbox every write must pass us. A file
//! that is moved there while the kernel reads it leaves its node behind ([`super::inode::Nodes::moved_out`]): the open
//! handles keep that, and whoever comes by the new name is told ESTALE, upon which the kernel looks the name up again by
//! itself and finds another node. The same makes an open right after a new version was published see that version,
//! although the kernel has not yet been told that the name shows another file.
//!
//! # Threads
//! The state of a node is guarded by the node table. Registering calls the kernel, so it is done outside; of two that
//! register at the same time one finds the other's registration in place and drops its own.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// What stands for a backing file at the kernel, made by the adapter. The kernel forgets the file when it is dropped.
pub(crate) type Registration = Arc<dyn Any + Send + Sync>;

/// How a node is read while handles of it are open.
#[derive(Default)]
pub(crate) enum Reading {
    /// No handle that had to be settled is open.
    #[default]
    Undecided,
    /// The kernel reads the backing file.
    Kernel {
        registration: Registration,
        handles: u32,
    },
    /// Through us and the page cache.
    Cached { handles: u32 },
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecided => f.write_str("Undecided"),
            Self::Kernel { handles, .. } => write!(f, "Kernel({handles})"),
            Self::Cached { handles } => write!(f, "Cached({handles})"),
        }
    }
}

/// The way a handle was settled to: with the registration if the kernel reads.
pub(super) type Settled = Option<Registration>;

impl Reading {
    pub(crate) fn by_kernel(&self) -> bool {
        matches!(self, Self::Kernel { .. })
    }

    /// One more handle goes the way of those that are open; `None` if there are none.
    pub(super) fn follow(&mut self) -> Option<Settled> {
        match self {
            Self::Undecided => None,
            Self::Kernel {
                registration,
                handles,
            } => {
                *handles += 1;
                Some(Some(registration.clone()))
            }
            Self::Cached { handles } => {
                *handles += 1;
                Some(None)
            }
        }
    }

    /// One more handle; if it is the first, it decides by what the kernel granted.
    pub(super) fn follow_or_decide(&mut self, granted: Option<Registration>) -> Settled {
        if let Some(settled) = self.follow() {
            return settled;
        }
        *self = match granted.clone() {
            Some(registration) => Self::Kernel {
                registration,
                handles: 1,
            },
            None => Self::Cached { handles: 1 },
        };
        granted
    }

    /// A handle is gone. Gives the registration that nobody needs any more, to be dropped outside the lock.
    pub(crate) fn leave(&mut self) -> Settled {
        let (Self::Kernel { handles, .. } | Self::Cached { handles }) = self else {
            return None;
        };
        *handles -= 1;
        if *handles > 0 {
            return None;
        }
        match std::mem::take(self) {
            Self::Kernel { registration, .. } => Some(registration),
            Self::Undecided | Self::Cached { .. } => None,
        }
    }
}
