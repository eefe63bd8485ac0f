//! The table of inodes the kernel knows, and the names under which it knows them.
//!
//! A node is one file or directory of the backing trees. It knows its names (parent and component each), how often
//! the kernel looked it up, and which handles are open on it; paths are joined from names at the moment of use. A
//! node holds no descriptor, so a hundred thousand known files cost memory only; but what was removed while the kernel
//! still knows it, and cannot be held open by a handle of ours, keeps one until the kernel forgets it.
//!
//! # Invariants
//! 1. `node.names` of a directory and `node.links` of its children mirror each other.
//! 2. A node lives while the kernel has it looked up, a handle is open on it, or a known child hangs below it.
//! 3. `by_ino` names a node only while the backing inode cannot have been reused: the node has a name or a handle.
//! 4. The number of a node is its backing inode number where that is free, so that `st_ino` survives a remount; it
//!    stays when the backing inode is swapped.
//! 5. A node that the kernel reads by itself never shows a file of the outbox: such a file leaves it behind, nameless,
//!    and gets another node.
//!
//! # Threads
//! One short mutex. Whoever changes names on disk holds the tree lock of [`super::Fs`] for writing around both.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::error::FsError;
use super::handle::OpenFile;
use super::kind::Kind;
use super::node::{Area, Backing, NodeId, OWN_NUMBERS, Place, Stamp};
use super::reading::{Reading, Registration};
use crate::bundle::RelPath;

type Name = Arc<[u8]>;

struct Node {
    backing: Backing,
    /// Nearly always one, so it is given no room for more.
    links: Vec<(NodeId, Name)>,
    lookups: u64,
    /// `None` for files and empty directories.
    #[expect(
        clippy::box_collection,
        reason = "an empty map is six words, in each file"
    )]
    names: Option<Box<HashMap<Name, NodeId>>>,
    open: Vec<Arc<OpenFile>>,
    /// What it was, once its last name is gone, where the kernel opens without asking us.
    remains: Option<Arc<OwnedFd>>,
    fixed: bool,
    reading: Reading,
    /// Its file was moved to the outbox without it.
    left_behind: bool,
    outdated: Option<Outdated>,
}

impl Node {
    fn new(backing: Backing, fixed: bool) -> Box<Self> {
        Box::new(Self {
            backing,
            links: Vec::new(),
            lookups: 0,
            names: None,
            open: Vec::new(),
            remains: None,
            fixed,
            reading: Reading::default(),
            left_behind: false,
            outdated: None,
        })
    }

    fn child(&self, name: &[u8]) -> Option<NodeId> {
        self.names.as_ref()?.get(name).copied()
    }

    fn remove_child(&mut self, name: &[u8]) -> Option<NodeId> {
        let names = self.names.as_mut()?;
        let id = names.remove(name)?;
        if names.is_empty() {
            self.names = None;
        }
        Some(id)
    }
}

/// The kernel may still believe that a name shows this node, although it shows another one. Who opens it by that name is
/// told ESTALE, and comes back with the other one. Who comes back with the same one did not come by a name (but by
/// `/proc/self/fd`) and may have it.
#[derive(Default)]
struct Outdated {
    /// Threads that were told.
    told: Vec<u32>,
}

/// More threads than this that reopen a replaced file by its descriptor at the same moment may get ESTALE.
const TOLD_CAP: usize = 64;

/// All nodes below the two area roots.
pub(crate) struct Nodes {
    /// Boxed, since a table that grows has up to twice the places it needs.
    nodes: HashMap<NodeId, Box<Node>>,
    by_ino: HashMap<u64, NodeId>,
    next: u64,
}

impl Nodes {
    /// A table with the two area roots, whose backing inodes are given.
    pub(crate) fn new(outbox_ino: u64, inbox_ino: u64) -> Self {
        let mut nodes = HashMap::new();
        let mut by_ino = HashMap::new();
        for (id, area, ino) in [
            (NodeId::OUTBOX, Area::Outbox, outbox_ino),
            (NodeId::INBOX, Area::Inbox, inbox_ino),
        ] {
            let backing = Backing {
                area,
                ino,
                kind: Kind::Directory,
                stamp: Stamp::default(),
            };
            nodes.insert(id, Node::new(backing, true));
            by_ino.insert(ino, id);
        }
        Self {
            nodes,
            by_ino,
            next: NodeId::COUNTER,
        }
    }

    fn node(&self, id: NodeId) -> Result<&Node, FsError> {
        self.nodes.get(&id).map(Box::as_ref).ok_or(FsError::Stale)
    }

    /// What backs the node. Of one that was left behind nothing more is to be had than its open handles give: the
    /// kernel came by a name that is another node's, and looks it up again when it is told so.
    pub(crate) fn backing(&self, id: NodeId) -> Result<Backing, FsError> {
        match self.node(id)? {
            node if node.left_behind => Err(FsError::Stale),
            node => Ok(node.backing),
        }
    }

    /// [`Self::backing`] for an open by the thread `tid`.
    pub(crate) fn backing_to_open(&mut self, id: NodeId, tid: u32) -> Result<Backing, FsError> {
        let node = self.nodes.get_mut(&id).ok_or(FsError::Stale)?;
        let Some(outdated) = &mut node.outdated else {
            return Ok(node.backing);
        };
        if let Some(at) = outdated.told.iter().position(|told| *told == tid) {
            outdated.told.remove(at);
            return Ok(node.backing);
        }
        if outdated.told.len() == TOLD_CAP {
            outdated.told.remove(0);
        }
        outdated.told.push(tid);
        Err(FsError::Stale)
    }

    /// A name of the inbox shows another file, without the kernel's doing. Says whether the name was known.
    pub(crate) fn replaced(&mut self, parent: NodeId, name: &[u8]) -> bool {
        let Some(id) = self.known(parent, name) else {
            return false;
        };
        if let Some(node) = self.nodes.get_mut(&id)
            && node.backing.kind != Kind::Directory
        {
            node.outdated = Some(Outdated::default());
        }
        self.unname(parent, name);
        true
    }

    /// The backing inode of the node, also of one that was left behind.
    pub(crate) fn backing_ino(&self, id: NodeId) -> Result<u64, FsError> {
        self.node(id).map(|node| node.backing.ino)
    }

    /// How the node is read, and the tree it is in.
    pub(crate) fn reading(&mut self, id: NodeId) -> Option<(Area, &mut Reading)> {
        let node = self.nodes.get_mut(&id)?;
        Some((node.backing.area, &mut node.reading))
    }

    /// The node's area and its path by its first name.
    pub(crate) fn place(&self, id: NodeId) -> Result<Place, FsError> {
        let area = self.node(id)?.backing.area;
        let mut components: Vec<&[u8]> = Vec::new();
        let mut length = 0;
        let mut at = id;
        loop {
            let node = self.node(at)?;
            if node.fixed {
                break;
            }
            let (parent, name) = node.links.first().ok_or(FsError::Stale)?;
            length += name.len() + 1;
            if length > libc::PATH_MAX as usize {
                return Err(FsError::NameTooLong);
            }
            components.push(name);
            at = *parent;
        }
        components.reverse();
        Ok(Place {
            area,
            path: components.join(&b'/'),
        })
    }

    /// The directory that the node is in, for `..`; that of a node without a name is nowhere.
    pub(crate) fn parent(&self, id: NodeId) -> Option<NodeId> {
        let node = self.nodes.get(&id)?;
        if node.fixed {
            return Some(NodeId::ROOT);
        }
        node.links.first().map(|(parent, _)| *parent)
    }

    /// The node known under a name.
    pub(crate) fn known(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes.get(&parent)?.child(name)
    }

    /// The node known at a path below an area.
    pub(crate) fn known_at(&self, area: Area, path: &RelPath) -> Option<(NodeId, NodeId)> {
        let mut parent = match area {
            Area::Outbox => NodeId::OUTBOX,
            Area::Inbox => NodeId::INBOX,
        };
        if let Some(directory) = path.parent() {
            for name in directory.components() {
                parent = self.known(parent, name)?;
            }
        }
        Some((parent, self.known(parent, path.file_name())?))
    }

    /// The number to show in a directory listing for a backing inode.
    pub(crate) fn number_of(&self, ino: u64) -> u64 {
        self.by_ino.get(&ino).map_or(ino, |id| id.0)
    }

    /// A system call found `backing` at `name`: gives its node one more lookup, making it when it is new.
    pub(crate) fn found(
        &mut self,
        parent: NodeId,
        name: &[u8],
        backing: Backing,
    ) -> Result<NodeId, FsError> {
        self.node(parent)?;
        let id = match self.by_ino.get(&backing.ino) {
            Some(id) if self.node(*id).is_ok_and(|node| node.backing == backing) => *id,
            Some(_) | None => {
                let id = self.number_for(backing.ino);
                self.by_ino.insert(backing.ino, id);
                self.nodes.insert(id, Node::new(backing, false));
                id
            }
        };
        if let Some(before) = self.known(parent, name)
            && before != id
        {
            match backing.area {
                Area::Inbox => {
                    self.replaced(parent, name);
                }
                Area::Outbox => {
                    self.unname(parent, name);
                }
            }
        }
        self.name(parent, name, id);
        if let Some(node) = self.nodes.get_mut(&id) {
            // The spool may have renamed a file of the inbox a moment ago: this is a name that it has.
            if backing.area == Area::Inbox
                && let Some(at) = node
                    .links
                    .iter()
                    .position(|(p, n)| (*p, &**n) == (parent, name))
            {
                node.links.swap(0, at);
            }
            node.lookups += 1;
            node.outdated = None;
        }
        Ok(id)
    }

    fn number_for(&mut self, ino: u64) -> NodeId {
        let wanted = NodeId(ino);
        if ino > NodeId::ROOT.0 && ino < OWN_NUMBERS && !self.nodes.contains_key(&wanted) {
            return wanted;
        }
        let id = NodeId(self.next);
        self.next += 1;
        id
    }

    fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        let Some(directory) = self.nodes.get_mut(&parent) else {
            return;
        };
        if directory.child(name).is_some() {
            return;
        }
        let name: Name = Arc::from(name);
        let names = directory.names.get_or_insert_default();
        names.insert(name.clone(), id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links.reserve_exact(1);
            node.links.push((parent, name));
        }
    }

    /// The name is gone from disk, or shows another inode. Returns the node that had it.
    pub(crate) fn unname(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let id = self.nodes.get_mut(&parent)?.remove_child(name)?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.links.retain(|(p, n)| (*p, &**n) != (parent, name));
        }
        self.settle(id);
        self.settle(parent);
        Some(id)
    }

    /// A name moved. Whatever had the new name before has lost it.
    pub(crate) fn renamed(&mut self, parent: NodeId, name: &[u8], to_parent: NodeId, to: &[u8]) {
        self.unname(to_parent, to);
        self.move_name(parent, name, to_parent, to);
    }

    /// Two names changed places.
    pub(crate) fn exchanged(&mut self, a_parent: NodeId, a: &[u8], b_parent: NodeId, b: &[u8]) {
        let (first, second) = (self.known(a_parent, a), self.known(b_parent, b));
        if first == second {
            return;
        }
        // Held up artificially, since both are nameless for a moment.
        for id in [first, second].into_iter().flatten() {
            self.hold(id);
        }
        self.unname(a_parent, a);
        self.unname(b_parent, b);
        if let Some(id) = first {
            self.name(b_parent, b, id);
        }
        if let Some(id) = second {
            self.name(a_parent, a, id);
        }
        for id in [first, second].into_iter().flatten() {
            self.restore(id);
        }
    }

    fn move_name(&mut self, parent: NodeId, name: &[u8], to_parent: NodeId, to: &[u8]) {
        if let Some(id) = self.known(parent, name) {
            self.hold(id);
            self.unname(parent, name);
            self.name(to_parent, to, id);
            self.restore(id);
        }
    }

    fn hold(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
        }
    }

    /// Takes back the lookup that [`Self::found`] counted: the kernel does not know of it. The node stays until the next
    /// change below it.
    pub(crate) fn unheld(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(1);
        }
    }

    /// Undoes [`Self::hold`], and finds the node by its inode again.
    fn restore(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(1);
            self.by_ino.insert(node.backing.ino, id);
        }
        self.settle(id);
    }

    /// The node at an inbox name went to an outbox name, where `backing` is behind it now.
    pub(crate) fn moved_out(
        &mut self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        backing: Backing,
    ) {
        self.unname(to.0, to.1);
        let Some(id) = self.known(from.0, from.1) else {
            return;
        };
        let mut left_behind = false;
        if let Some(node) = self.nodes.get_mut(&id) {
            if self.by_ino.get(&node.backing.ino) == Some(&id) {
                self.by_ino.remove(&node.backing.ino);
            }
            left_behind = node.reading.by_kernel();
            if left_behind {
                node.left_behind = true;
                node.outdated = Some(Outdated::default());
            } else {
                node.backing = backing;
            }
        }
        if left_behind {
            self.unname(from.0, from.1);
        } else {
            self.move_name(from.0, from.1, to.0, to.1);
        }
    }

    /// The file at an inbox name has another inbox name, without the kernel's doing; `backing` is what it is now.
    pub(crate) fn moved_inside(
        &mut self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        backing: Backing,
    ) {
        let Some(id) = self.known(from.0, from.1) else {
            return;
        };
        if self.backing_ino(id).ok() != Some(backing.ino) {
            // That of an older version: it is not what moved, and must not take its bytes.
            self.replaced(from.0, from.1);
            return;
        }
        // Who looked since may have found it under the new name already, and is about to open it.
        let found = self.known(to.0, to.1) == Some(id);
        self.unname(to.0, to.1);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.backing = backing;
            if !found {
                node.outdated = Some(Outdated::default());
            }
        }
        self.move_name(from.0, from.1, to.0, to.1);
    }

    /// A file of the inbox has another mode or time, and is the same still.
    pub(crate) fn dressed(&mut self, parent: NodeId, name: &[u8], backing: Backing) {
        let known = self.known(parent, name);
        if let Some(node) = known.and_then(|id| self.nodes.get_mut(&id))
            && node.backing.ino == backing.ino
        {
            node.backing = backing;
        }
    }

    /// The kernel forgets `count` lookups.
    pub(crate) fn forget(&mut self, id: NodeId, count: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.settle(id);
    }

    /// A handle was opened on the node.
    pub(crate) fn opened(&mut self, id: NodeId, file: &Arc<OpenFile>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open.push(file.clone());
        }
    }

    /// A handle was released; the caller still holds it, so that its inode cannot be reused before this returns. What
    /// is returned is to be dropped after unlocking: that calls the kernel.
    #[must_use]
    pub(crate) fn released(&mut self, id: NodeId, file: &Arc<OpenFile>) -> Option<Registration> {
        let mut unneeded = None;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.open.retain(|open| !Arc::ptr_eq(open, file));
            if node.open.is_empty() {
                node.open = Vec::new();
            }
            if file.is_settled() {
                unneeded = node.reading.leave();
            }
        }
        self.settle(id);
        unneeded
    }

    /// A handle that is open on the node, preferably one that may write.
    pub(crate) fn any_open(&self, id: NodeId) -> Option<Arc<OpenFile>> {
        let open = &self.nodes.get(&id)?.open;
        open.iter()
            .find(|file| file.writes())
            .or_else(|| open.first())
            .cloned()
    }

    /// The node is about to lose a name; `fd` refers to its inode. Dropped with the node, so with the kernel's last
    /// lookup.
    pub(crate) fn keep_remains(&mut self, id: NodeId, fd: OwnedFd) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.remains = Some(Arc::new(fd));
        }
    }

    /// What [`Self::keep_remains`] kept, once the node has no name.
    pub(crate) fn remains(&self, id: NodeId) -> Option<Arc<OwnedFd>> {
        let node = self.nodes.get(&id)?;
        node.remains.clone().filter(|_| node.links.is_empty())
    }

    /// Keeps invariants 2 and 3 after a node lost something, and drops ancestors that lived only for it.
    fn settle(&mut self, id: NodeId) {
        let mut at = Some(id);
        while let Some(id) = at.take() {
            let Some(node) = self.nodes.get(&id) else {
                return;
            };
            if node.fixed {
                return;
            }
            if node.links.is_empty()
                && node.open.is_empty()
                && self.by_ino.get(&node.backing.ino) == Some(&id)
            {
                self.by_ino.remove(&node.backing.ino);
            }
            if node.lookups > 0 || !node.open.is_empty() || node.names.is_some() {
                return;
            }
            let Some(node) = self.nodes.remove(&id) else {
                return;
            };
            if self.by_ino.get(&node.backing.ino) == Some(&id) {
                self.by_ino.remove(&node.backing.ino);
            }
            for (parent, name) in &node.links {
                if let Some(directory) = self.nodes.get_mut(parent) {
                    directory.remove_child(name);
                }
            }
            // Names in several directories are rare; each of those but the first is settled when it is next touched.
            for (parent, _) in node.links.iter().skip(1) {
                self.settle(*parent);
            }
            at = node.links.first().map(|(parent, _)| *parent);
        }
    }

    /// How many nodes are known, without the two roots.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64) -> Backing {
        Backing {
            area: Area::Outbox,
            ino,
            kind: Kind::File,
            stamp: Stamp::default(),
        }
    }

    fn dir(ino: u64) -> Backing {
        Backing {
            kind: Kind::Directory,
            ..file(ino)
        }
    }

    fn table() -> Nodes {
        Nodes::new(100, 101)
    }

    fn path(nodes: &Nodes, id: NodeId) -> String {
        String::from_utf8(nodes.place(id).unwrap().path).unwrap()
    }

    #[test]
    fn a_path_is_joined_from_names_and_follows_a_rename_of_an_ancestor() {
        let mut nodes = table();
        let a = nodes.found(NodeId::OUTBOX, b"a", dir(5)).unwrap();
        let b = nodes.found(a, b"b", dir(6)).unwrap();
        let f = nodes.found(b, b"f", file(7)).unwrap();
        assert_eq!(path(&nodes, f), "a/b/f");
        nodes.renamed(NodeId::OUTBOX, b"a", NodeId::OUTBOX, b"z");
        assert_eq!(path(&nodes, f), "z/b/f");
    }

    #[test]
    fn a_node_lives_until_every_lookup_is_forgotten() {
        let mut nodes = table();
        let f = nodes.found(NodeId::OUTBOX, b"f", file(7)).unwrap();
        assert_eq!(nodes.found(NodeId::OUTBOX, b"f", file(7)).unwrap(), f);
        nodes.forget(f, 1);
        assert_eq!(nodes.len(), 1);
        nodes.forget(f, 1);
        assert_eq!(nodes.len(), 0);
        assert!(matches!(nodes.place(f), Err(FsError::Stale)));
        assert_eq!(nodes.known(NodeId::OUTBOX, b"f"), None);
    }

    #[test]
    fn a_forgotten_directory_stays_for_its_children_and_goes_with_the_last() {
        let mut nodes = table();
        let a = nodes.found(NodeId::OUTBOX, b"a", dir(5)).unwrap();
        let f = nodes.found(a, b"f", file(7)).unwrap();
        nodes.forget(a, 1);
        assert_eq!(path(&nodes, f), "a/f");
        nodes.forget(f, 1);
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn hard_links_are_one_node_with_two_names() {
        let mut nodes = table();
        let f = nodes.found(NodeId::OUTBOX, b"f", file(7)).unwrap();
        assert_eq!(nodes.found(NodeId::OUTBOX, b"g", file(7)).unwrap(), f);
        nodes.unname(NodeId::OUTBOX, b"f");
        assert_eq!(path(&nodes, f), "g");
        nodes.unname(NodeId::OUTBOX, b"g");
        assert!(matches!(nodes.place(f), Err(FsError::Stale)));
    }

    #[test]
    fn a_name_that_was_just_found_in_the_inbox_is_the_one_that_a_node_has() {
        let mut nodes = table();
        let backing = Backing {
            area: Area::Inbox,
            ..file(7)
        };
        let f = nodes.found(NodeId::INBOX, b"f", backing).unwrap();
        // Renamed on disk, of which the table hears only later.
        assert_eq!(nodes.found(NodeId::INBOX, b"g", backing).unwrap(), f);
        assert_eq!(path(&nodes, f), "g");
        nodes.moved_inside((NodeId::INBOX, b"f"), (NodeId::INBOX, b"g"), backing);
        assert_eq!(path(&nodes, f), "g");
        assert_eq!(nodes.known(NodeId::INBOX, b"f"), None);
        assert!(nodes.backing_to_open(f, 1).is_ok(), "found by its new name");
    }

    #[test]
    fn the_node_of_an_older_version_is_not_what_moves() {
        let inbox = |ino| Backing {
            area: Area::Inbox,
            ..file(ino)
        };
        let mut nodes = table();
        let old = nodes.found(NodeId::INBOX, b"f", inbox(7)).unwrap();
        // Version 8 was put at `f` and renamed, and the table heard of neither.
        nodes.moved_inside((NodeId::INBOX, b"f"), (NodeId::INBOX, b"g"), inbox(8));
        let new = nodes.found(NodeId::INBOX, b"g", inbox(8)).unwrap();
        assert_ne!(new, old);
        nodes.forget(old, 1);
        assert!(nodes.found(NodeId::INBOX, b"h", inbox(7)).is_ok());
    }

    #[test]
    fn a_reused_inode_number_is_another_node() {
        let mut nodes = table();
        let old = nodes.found(NodeId::OUTBOX, b"f", file(7)).unwrap();
        nodes.unname(NodeId::OUTBOX, b"f");
        let new = nodes.found(NodeId::OUTBOX, b"g", file(7)).unwrap();
        assert_ne!(old, new);
        nodes.forget(old, 1);
        assert_eq!(path(&nodes, new), "g");
    }

    #[test]
    fn an_inbox_name_that_shows_another_inode_leaves_the_old_node() {
        let mut nodes = table();
        let old = nodes
            .found(
                NodeId::INBOX,
                b"f",
                Backing {
                    area: Area::Inbox,
                    ..file(7)
                },
            )
            .unwrap();
        let new = nodes
            .found(
                NodeId::INBOX,
                b"f",
                Backing {
                    area: Area::Inbox,
                    ..file(8)
                },
            )
            .unwrap();
        assert_ne!(old, new);
        assert!(matches!(nodes.place(old), Err(FsError::Stale)));
        assert_eq!(path(&nodes, new), "f");
        let stamp = Stamp {
            mtime: 1,
            mtime_nsec: 0,
            size: 3,
        };
        let reused = nodes
            .found(
                NodeId::INBOX,
                b"g",
                Backing {
                    area: Area::Inbox,
                    stamp,
                    ..file(8)
                },
            )
            .unwrap();
        assert_ne!(reused, new, "same inode number, other file");
    }

    #[test]
    fn exchange_swaps_names_and_keeps_nodes() {
        let mut nodes = table();
        let f = nodes.found(NodeId::OUTBOX, b"f", file(7)).unwrap();
        let d = nodes.found(NodeId::OUTBOX, b"d", dir(8)).unwrap();
        let inner = nodes.found(d, b"x", file(9)).unwrap();
        nodes.exchanged(NodeId::OUTBOX, b"f", NodeId::OUTBOX, b"d");
        assert_eq!(path(&nodes, f), "d");
        assert_eq!(path(&nodes, inner), "f/x");
        assert_eq!(nodes.found(NodeId::OUTBOX, b"d", file(7)).unwrap(), f);
    }

    #[test]
    fn a_file_moved_out_of_the_inbox_keeps_its_node_with_the_new_inode() {
        let mut nodes = table();
        let f = nodes
            .found(
                NodeId::INBOX,
                b"f",
                Backing {
                    area: Area::Inbox,
                    ..file(7)
                },
            )
            .unwrap();
        nodes.moved_out((NodeId::INBOX, b"f"), (NodeId::OUTBOX, b"g"), file(70));
        let place = nodes.place(f).unwrap();
        assert_eq!(
            (place.area, place.path.as_slice()),
            (Area::Outbox, b"g".as_slice())
        );
        assert_eq!(nodes.found(NodeId::OUTBOX, b"g", file(70)).unwrap(), f);
    }

    #[test]
    fn names_and_paths_have_limits() {
        let top = Place {
            area: Area::Outbox,
            path: Vec::new(),
        };
        assert!(matches!(top.child(&[b'x'; 256]), Err(FsError::NameTooLong)));
        assert!(top.child(&[b'x'; 255]).is_ok());
        let mut deep = top;
        for _ in 0..15 {
            deep = deep.child(&[b'x'; 255]).unwrap();
        }
        assert!(deep.child(&[b'x'; 235]).is_ok());
        assert!(matches!(
            deep.child(&[b'x'; 236]),
            Err(FsError::NameTooLong)
        ));
    }
}
