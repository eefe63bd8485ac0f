//! The write gate of one inode: what stands between a writer and sealed bytes.
//!
//! `fs` locks the gate around every modifying operation; the sealer locks it to decide. Whoever holds the guard knows
//! that nobody else changes the inode or its seal.

use parking_lot::{Mutex, MutexGuard};

use crate::digest::Digest;

/// Shared by everybody who deals with one backing inode.
#[derive(Debug)]
pub struct Gate {
    ino: u64,
    state: Mutex<GateState>,
}

/// What the gate guards.
#[derive(Debug, Default)]
pub(crate) struct GateState {
    /// Open handles that may write.
    pub(crate) writers: u32,
    /// Grows with every modification.
    pub(crate) generation: u64,
    /// The digest of the inode's present bytes, while they are sealed.
    pub(crate) sealed: Option<Digest>,
    /// Whether the `open` marker is written.
    pub(crate) marked: bool,
}

/// The locked gate.
#[derive(Debug)]
pub struct GateGuard<'a> {
    pub(crate) ino: u64,
    pub(crate) state: MutexGuard<'a, GateState>,
}

impl Gate {
    /// The backing inode.
    pub fn ino(&self) -> u64 {
        self.ino
    }

    /// Locks, waiting if a copy-out is under way. Not for FUSE loops; those use [`Self::try_lock`].
    pub fn lock(&self) -> GateGuard<'_> {
        GateGuard { ino: self.ino, state: self.state.lock() }
    }

    /// Locks, or `None` while somebody else holds the gate: then hand the operation to a thread that may block.
    pub fn try_lock(&self) -> Option<GateGuard<'_>> {
        self.state.try_lock().map(|state| GateGuard { ino: self.ino, state })
    }
}

impl GateGuard<'_> {
    /// A writable handle was opened.
    pub fn add_writer(&mut self) {
        self.state.writers += 1;
    }

    /// A writable handle was released; returns how many are left.
    pub fn remove_writer(&mut self) -> u32 {
        self.state.writers = self.state.writers.saturating_sub(1);
        self.state.writers
    }

    /// Open writable handles.
    pub fn writers(&self) -> u32 {
        self.state.writers
    }

    /// To be called after each WRITE, with the gate still locked: `len` bytes at `offset` were written.
    pub fn wrote(&mut self, offset: u64, len: u64) {
        let _ = (offset, len);
        self.state.generation += 1;
    }

    /// To be called after any other modification (size change, FALLOCATE).
    pub fn reshaped(&mut self) {
        self.state.generation += 1;
    }
}
