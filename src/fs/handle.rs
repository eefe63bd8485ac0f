//! Open handles: backing files, directory listings, generated files.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::attr::Item;
use super::error::FsError;
use super::node::NodeId;
use super::torn;
use crate::bundle::RelPath;
use crate::spool::Gate;

/// Threads remembered as writers of one handle. More than a few write through one handle only in benchmarks; for
/// those a kill may go unnoticed.
const WRITERS_REMEMBERED: usize = 4;

/// An open backing file, once per open of the user.
pub(crate) struct OpenFile {
    pub(crate) fh: u64,
    pub(crate) node: NodeId,
    pub(crate) ino: u64,
    pub(crate) file: File,
    /// The name it was opened by, for when it has none any more.
    pub(crate) opened_as: Option<RelPath>,
    /// Present when the handle may write: the inode's gate.
    pub(crate) gate: Option<Arc<Gate>>,
    wrote: Mutex<Vec<Wrote>>,
    /// The thread that made the file, or emptied it, by opening it; 0 if none did.
    emptied_by: AtomicU32,
    /// Whether it counts in how its node is read.
    settled: AtomicBool,
}

/// A thread that wrote, and its process once that was worth a look.
struct Wrote {
    tid: u32,
    process: Option<u32>,
}

impl OpenFile {
    pub(crate) fn new(
        fh: u64,
        node: NodeId,
        ino: u64,
        file: File,
        opened_as: Option<RelPath>,
        gate: Option<Arc<Gate>>,
    ) -> Self {
        Self {
            fh,
            node,
            ino,
            file,
            opened_as,
            gate,
            wrote: Mutex::new(Vec::new()),
            emptied_by: AtomicU32::new(0),
            settled: AtomicBool::new(false),
        }
    }

    /// It counts in how its node is read; until its release.
    pub(crate) fn set_settled(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    pub(crate) fn writes(&self) -> bool {
        self.gate.is_some()
    }

    pub(crate) fn gate(&self) -> Result<&Arc<Gate>, FsError> {
        self.gate.as_ref().ok_or(FsError::BadHandle)
    }

    /// Remembers who writes. The process of a thread is looked up at its second write: it costs as much as the write
    /// of a small file, which is closed before anybody could interrupt it.
    pub(crate) fn note_writer(&self, tid: u32) {
        let mut wrote = self.wrote.lock();
        if let Some(known) = wrote.iter_mut().find(|w| w.tid == tid) {
            if known.process.is_none() {
                known.process = Some(torn::process_of(tid));
            }
            return;
        }
        if wrote.len() == WRITERS_REMEMBERED {
            wrote.remove(0);
        }
        wrote.push(Wrote { tid, process: None });
    }

    /// Remembers who made the file empty by opening it, to write it.
    pub(crate) fn note_emptied(&self, tid: u32) {
        self.emptied_by.store(tid, Ordering::Relaxed);
    }

    /// Whether the task that closes is being killed, and is one that wrote through this handle; or one that opened it to
    /// write a new file, of which nobody has written a byte (`sort big >f`).
    pub(crate) fn is_torn_by(&self, tid: u32) -> bool {
        let wrote = self.wrote.lock();
        let emptied = self.emptied_by.load(Ordering::Relaxed);
        if (wrote.is_empty() && emptied == 0) || !torn::is_being_killed(tid) {
            return false;
        }
        let process = torn::process_of(tid);
        if wrote.is_empty() {
            return emptied == tid || torn::process_of(emptied) == process;
        }
        wrote
            .iter()
            .any(|w| w.tid == tid || w.process == Some(process) || w.tid == process)
    }
}

/// An open directory: the names as they were when the listing began, or was taken up from another descriptor.
pub(crate) struct DirStream {
    pub(crate) node: NodeId,
    pub(crate) items: Mutex<Option<Arc<[Item]>>>,
}

/// What a handle stands for.
#[derive(Clone)]
pub(crate) enum Handle {
    File(Arc<OpenFile>),
    Directory(Arc<DirStream>),
    Generated(Arc<[u8]>),
}

/// All open handles by number.
pub(crate) struct Handles {
    next: AtomicU64,
    map: RwLock<HashMap<u64, Handle>>,
}

impl Handles {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(1),
            map: RwLock::new(HashMap::new()),
        }
    }

    /// A number for a handle that is about to be inserted.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn insert(&self, fh: u64, handle: Handle) {
        self.map.write().insert(fh, handle);
    }

    pub(crate) fn remove(&self, fh: u64) -> Option<Handle> {
        self.map.write().remove(&fh)
    }

    /// The numbers of all handles.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.map.read().keys().copied().collect()
    }

    pub(crate) fn any(&self, fh: u64) -> Result<Handle, FsError> {
        self.map.read().get(&fh).cloned().ok_or(FsError::BadHandle)
    }

    pub(crate) fn file(&self, fh: u64) -> Result<Arc<OpenFile>, FsError> {
        match self.any(fh)? {
            Handle::File(file) => Ok(file),
            Handle::Directory(_) | Handle::Generated(_) => Err(FsError::BadHandle),
        }
    }

    pub(crate) fn directory(&self, fh: u64) -> Result<Arc<DirStream>, FsError> {
        match self.any(fh)? {
            Handle::Directory(directory) => Ok(directory),
            Handle::File(_) | Handle::Generated(_) => Err(FsError::BadHandle),
        }
    }
}
