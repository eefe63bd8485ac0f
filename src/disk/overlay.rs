//! Names of a tree that are given already, while the renames that give them on the disk are still to come.
//!
//! Very many names are given at one instant by adding a [`Layer`] to the tree's [`Overlay`]. From then on whoever reaches
//! for one of these names, or for something below it, does its rename first ([`crate::disk::beneath::Root::perform`]), and a
//! listing shows them beside what is on the disk. Meanwhile the owner of the layer does one rename after another; when all
//! are done the layer goes.
//!
//! # Invariants
//! 1. The directory that a name of a layer is in exists, and is not removed as long as the layer is there: whoever removes a
//!    directory asks [`Overlay::is_below`] first.
//! 2. A name is in at most one layer.
//! 3. What is done stays done: the only way is forward.
//!
//! # Crash behaviour
//! Memory only. The owner has written down what is to be renamed.
//!
//! # Threads
//! Any. The lock of a layer is held around one rename at a time and is a leaf.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::bundle::RelPath;

/// What a name is going to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MovedKind {
    File,
    Link,
    /// With all that is in it.
    Directory,
}

/// A name that is given by one rename.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    pub(crate) name: RelPath,
    pub(crate) kind: MovedKind,
    pub(crate) ino: u64,
    /// By which the owner knows where it is until then.
    pub(crate) number: u32,
}

/// Does the rename of a name.
pub(crate) type Rename = Box<dyn Fn(&Moved) -> rustix::io::Result<()> + Send + Sync>;

/// Names that are given at one instant.
pub(crate) struct Layer {
    /// In the order of their bytes; none is below another.
    moved: Vec<Moved>,
    done: Vec<AtomicBool>,
    rename: Rename,
    renaming: Mutex<()>,
    withdrawn: AtomicBool,
}

impl Layer {
    /// `moved` in any order.
    pub(crate) fn new(mut moved: Vec<Moved>, rename: Rename) -> Self {
        moved.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Self {
            done: moved.iter().map(|_| AtomicBool::new(false)).collect(),
            moved,
            rename,
            renaming: Mutex::default(),
            withdrawn: AtomicBool::new(false),
        }
    }

    /// All its names.
    pub(crate) fn moved(&self) -> &[Moved] {
        &self.moved
    }

    /// The one that has `path`, or that is above it.
    pub(crate) fn at_or_above(&self, path: &[u8]) -> Option<usize> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends = slashes.map(|(at, _)| at).chain([path.len()]);
        ends.filter_map(|end| self.at(&path[..end])).next()
    }

    fn at(&self, path: &[u8]) -> Option<usize> {
        let by_name = |moved: &Moved| moved.name.as_bytes().cmp(path);
        self.moved.binary_search_by(by_name).ok()
    }

    /// The number of the first one below `directory`, and whether there is one. Empty: the root.
    fn first_below(&self, directory: &[u8]) -> Option<usize> {
        if directory.is_empty() {
            return (!self.moved.is_empty()).then_some(0);
        }
        let below = [directory, b"/"].concat();
        let is_before = |moved: &Moved| moved.name.as_bytes() < below.as_slice();
        let first = self.moved.partition_point(is_before);
        let there = self.moved.get(first)?;
        there.name.as_bytes().starts_with(&below).then_some(first)
    }

    /// Whether one of its names is below `directory`, done or not.
    pub(crate) fn is_below(&self, directory: &RelPath) -> bool {
        self.first_below(directory.as_bytes()).is_some()
    }

    fn undone_below(&self, directory: &RelPath) -> bool {
        let Some(first) = self.first_below(directory.as_bytes()) else {
            return false;
        };
        let below = |at: &usize| self.moved[*at].name.starts_with(directory);
        (first..self.moved.len())
            .take_while(below)
            .any(|at| !self.is_done(at))
    }

    /// Whether `name` is one of its names, above one or below one.
    pub(crate) fn touches(&self, name: &RelPath) -> bool {
        self.at_or_above(name.as_bytes()).is_some() || self.is_below(name)
    }

    /// Whether number `at` is `name`, and no directory.
    pub(crate) fn is_file(&self, at: usize, name: &RelPath) -> bool {
        let moved = &self.moved[at];
        moved.name == *name && moved.kind != MovedKind::Directory
    }

    /// Gives up the names, unless one is done: from now on none is given.
    pub(crate) fn withdraw(&self) -> bool {
        let _renaming = self.renaming.lock();
        let none = !(0..self.moved.len()).any(|at| self.is_done(at));
        self.withdrawn.fetch_or(none, Ordering::AcqRel);
        none
    }

    fn is_done(&self, at: usize) -> bool {
        self.done[at].load(Ordering::Acquire)
    }

    /// Renames one, unless that is done.
    pub(crate) fn perform(&self, at: usize) -> rustix::io::Result<()> {
        if self.is_done(at) {
            return Ok(());
        }
        let _renaming = self.renaming.lock();
        if self.is_done(at) || self.withdrawn.load(Ordering::Acquire) {
            return Ok(());
        }
        (self.rename)(&self.moved[at])?;
        self.done[at].store(true, Ordering::Release);
        Ok(())
    }

    /// Those directly in `directory` that are not done.
    fn list(&self, directory: &[u8], found: &mut Vec<Moved>) {
        let depth = if directory.is_empty() {
            0
        } else {
            directory.len() + 1
        };
        let Some(mut at) = self.first_below(directory) else {
            return;
        };
        while let Some(moved) = self.moved.get(at) {
            let name = moved.name.as_bytes();
            if depth > 0 && !(name.starts_with(directory) && name.get(depth - 1) == Some(&b'/')) {
                return;
            }
            match name[depth..].iter().position(|byte| *byte == b'/') {
                None => {
                    if !self.is_done(at) {
                        found.push(moved.clone());
                    }
                    at += 1;
                }
                // On to what is not in this directory.
                Some(len) => {
                    let past = [&name[..depth + len], &[b'/' + 1]].concat();
                    let is_before = |moved: &Moved| moved.name.as_bytes() < past.as_slice();
                    at += self.moved[at..].partition_point(is_before);
                }
            }
        }
    }
}

/// The layers of a tree.
#[derive(Default)]
pub(crate) struct Overlay {
    /// How many there are; looked at without the lock.
    count: AtomicUsize,
    layers: RwLock<Vec<Arc<Layer>>>,
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Overlay {
    /// From now on the names of `layer` are given.
    pub(crate) fn add(&self, layer: Arc<Layer>) {
        let mut layers = self.layers.write();
        layers.push(layer);
        self.count.store(layers.len(), Ordering::Release);
    }

    /// All of it is done, or nothing.
    pub(crate) fn remove(&self, layer: &Arc<Layer>) {
        let mut layers = self.layers.write();
        layers.retain(|other| !Arc::ptr_eq(other, layer));
        self.count.store(layers.len(), Ordering::Release);
    }

    fn layers(&self) -> Vec<Arc<Layer>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.layers.read().clone()
    }

    /// What is to be at `path`, or above it, comes to be there.
    pub(crate) fn perform(&self, path: &[u8]) -> rustix::io::Result<()> {
        for layer in self.layers() {
            if let Some(at) = layer.at_or_above(path) {
                layer.perform(at)?;
            }
        }
        Ok(())
    }

    /// Names in a directory that are given and may not be on the disk. To be asked before the disk. Empty: the root.
    pub(crate) fn list(&self, directory: &[u8]) -> Vec<Moved> {
        let mut found = Vec::new();
        for layer in self.layers() {
            layer.list(directory, &mut found);
        }
        found
    }

    /// Whether a name is given below `directory`, which must stay therefore.
    pub(crate) fn is_below(&self, directory: &RelPath) -> bool {
        let layers = self.layers();
        layers.iter().any(|layer| layer.undone_below(directory))
    }
}
