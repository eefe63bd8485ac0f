//! Directories: opening, listing, making them durable.
//!
//! A listing may be continued through another descriptor (the kernel's NFS server opens a directory anew for every
//! piece), and while names come and go. So the place of a name in a listing is a number made of the name alone: items
//! are listed in the order of their numbers, and what follows an offset is what has a larger one, in every descriptor,
//! whatever was made and removed meanwhile. The numbers are keyed by the mount, so that nobody can choose names that
//! share one.

pub(super) mod order;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags};

use self::order::DOTS;
use super::Fs;
use super::attr::{Caching, Entry, Item, Opened, kind_of};
use super::beneath::beneath;
use super::error::FsError;
use super::generated;
use super::handle::{DirStream, Handle};
use super::kind::Kind;
use super::node::{Area, NodeId, Place};
use crate::bundle::link;
use crate::spool::overlay::{Moved, MovedKind};

impl Fs {
    /// Opens a directory for listing.
    pub(crate) fn opendir(&self, id: NodeId) -> Result<Opened, FsError> {
        let fh = self.handles.number();
        let stream = DirStream {
            node: id,
            items: Mutex::new(None),
        };
        self.handles.insert(fh, Handle::Directory(Arc::new(stream)));
        Ok(Opened {
            fh,
            caching: Caching::Ordinary,
            reads_only: true,
        })
    }

    /// Closes a directory.
    pub(crate) fn releasedir(&self, fh: u64) {
        self.handles.remove(fh);
    }

    /// Lists names from `offset` on, until `add` says that its buffer is full.
    pub(crate) fn readdir(
        &self,
        fh: u64,
        offset: u64,
        mut add: impl FnMut(&Item) -> bool,
    ) -> Result<(), FsError> {
        let stream = self.handles.directory(fh)?;
        let (skip, items) = self.items_from(&stream, offset)?;
        for item in &items[skip..] {
            if add(item) {
                break;
            }
        }
        Ok(())
    }

    /// Lists names with their attributes from `offset` on. Each entry that `add` takes counts as a lookup, except `.`
    /// and `..`; a name that went away since the listing began is left out.
    pub(crate) fn readdirplus(
        &self,
        fh: u64,
        offset: u64,
        mut add: impl FnMut(&Item, &Entry) -> bool,
    ) -> Result<(), FsError> {
        let stream = self.handles.directory(fh)?;
        let (skip, items) = self.items_from(&stream, offset)?;
        for item in &items[skip..] {
            if item.offset <= DOTS {
                let attr = match self.getattr(NodeId(item.number), None) {
                    Ok(attr) => attr,
                    // The spool removed the directory while it is open: nothing is in it.
                    Err(FsError::Stale) => return Ok(()),
                    Err(error) => return Err(error),
                };
                let ttl = Duration::ZERO;
                if add(item, &Entry { attr, ttl }) {
                    break;
                }
                continue;
            }
            let Ok(entry) = self.lookup(stream.node, &item.name) else {
                continue;
            };
            if add(item, &entry) {
                self.forget(entry.attr.node, 1);
                break;
            }
        }
        Ok(())
    }

    /// The items of a listing after `offset`; a listing that starts over, or that another descriptor began, is taken
    /// anew.
    fn items_from(&self, stream: &DirStream, offset: u64) -> Result<(usize, Arc<[Item]>), FsError> {
        let mut kept = stream.items.lock();
        let items = match kept.as_ref() {
            Some(items) if offset != 0 => items.clone(),
            Some(_) | None => {
                let taken: Arc<[Item]> = Arc::from(self.snapshot(stream.node)?);
                kept.insert(taken).clone()
            }
        };
        drop(kept);
        let skip = items.partition_point(|item| item.offset <= offset);
        Ok((skip, items))
    }

    fn snapshot(&self, id: NodeId) -> Result<Vec<Item>, FsError> {
        let dot = |name: &[u8], number: NodeId| Item {
            name: name.to_vec(),
            number: number.0,
            backing: 0,
            kind: Kind::Directory,
            offset: 0,
        };
        if generated::is_generated(id) {
            let mut items = vec![dot(b".", id), dot(b"..", NodeId::ROOT)];
            items.extend(Self::status_items(id));
            // Always the same names.
            for (n, item) in items.iter_mut().enumerate() {
                item.offset = n as u64 + 1;
            }
            return Ok(items);
        }
        let _tree = self.tree.read();
        let parent = self.nodes.lock().parent(id).unwrap_or(id);
        let mut items = vec![dot(b".", id), dot(b"..", parent)];
        match self.place(id) {
            Ok(place) => {
                let _look = (place.area == Area::Inbox).then(|| self.switch.look());
                self.read_names(&place, &mut items)?;
            }
            // Removed while it was open: nothing is in it.
            Err(FsError::Stale) => {}
            Err(error) => return Err(error),
        }
        for (n, item) in items.iter_mut().enumerate() {
            item.offset = match n {
                0 => 1,
                1 => DOTS,
                _name => self.listing.number(&item.name),
            };
        }
        items.sort_unstable_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
        Ok(items)
    }

    /// Names in a directory of the inbox that are given and may not be on the disk.
    fn given_in(&self, place: &Place) -> BTreeMap<Vec<u8>, Item> {
        let given = match place.area {
            Area::Inbox => self.spool.inbox().overlay.list(&place.path),
            Area::Outbox => Vec::new(),
        };
        let item = |moved: Moved| Item {
            name: moved.name.file_name().to_vec(),
            number: 0,
            backing: moved.ino,
            kind: match moved.kind {
                MovedKind::File => Kind::File,
                MovedKind::Link => Kind::Symlink,
                MovedKind::Directory => Kind::Directory,
            },
            offset: 0,
        };
        let items = given.into_iter().map(item);
        items.map(|item| (item.name.clone(), item)).collect()
    }

    /// Appends what is in a backing directory; of the inbox only what can have been sent.
    pub(crate) fn read_names(&self, place: &Place, items: &mut Vec<Item>) -> Result<(), FsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = beneath(self.root(place)?, place, flags)?;
        let given = self.given_in(place);
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." || given.contains_key(name) {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => place
                    .child(name)
                    .and_then(|at| self.stat_at(&at))
                    .ok()
                    .and_then(|s| kind_of(&s)),
                known => Kind::of(known),
            };
            let shown = match kind {
                Some(kind) if kind.travels() || place.area == Area::Outbox => true,
                Some(Kind::Symlink) => {
                    let target = rustix::fs::readlinkat(&fd, name, Vec::new());
                    let path = place.child(name).and_then(|at| at.rel());
                    target.is_ok_and(|to| path.is_ok_and(|at| link::stays(&at, to.as_bytes())))
                }
                Some(_) | None => false,
            };
            if let Some(kind) = kind.filter(|_| shown) {
                found.push(Item {
                    name: name.to_vec(),
                    number: 0,
                    backing: entry.ino(),
                    kind,
                    offset: 0,
                });
            }
        }
        found.extend(given.into_values());
        let nodes = self.nodes.lock();
        for item in &mut found {
            item.number = nodes.number_of(item.backing);
        }
        items.append(&mut found);
        Ok(())
    }

    /// Makes the names in a directory durable; in the pool, since it waits for the disk.
    pub(crate) fn fsyncdir(
        self: &Arc<Self>,
        id: NodeId,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        if generated::is_generated(id) {
            return done(Ok(()));
        }
        let opened = {
            let _tree = self.tree.read();
            self.place(id).and_then(|place| {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                beneath(self.root(&place)?, &place, flags)
            })
        };
        match opened {
            Ok(fd) => self.pool.submit(Box::new(move || {
                done(rustix::fs::fsync(&fd).map_err(FsError::from));
            })),
            Err(error) => done(Err(error)),
        }
    }
}
