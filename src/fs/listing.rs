//! Directories: opening, listing, making them durable.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags};

use super::Fs;
use super::attr::{Caching, Entry, Item, Kind, Opened, kind_of};
use super::error::FsError;
use super::handle::{DirStream, Handle};
use super::inode::{Area, NodeId, Place};
use super::special::beneath;
use super::status;

impl Fs {
    /// Opens a directory for listing.
    pub fn opendir(&self, id: NodeId) -> Result<Opened, FsError> {
        let fh = self.handles.number();
        let stream = DirStream {
            node: id,
            items: Mutex::new(Arc::from([])),
        };
        self.handles.insert(fh, Handle::Directory(Arc::new(stream)));
        Ok(Opened {
            fh,
            caching: Caching::Ordinary,
            reads_only: true,
        })
    }

    /// Closes a directory.
    pub fn releasedir(&self, fh: u64) {
        self.handles.remove(fh);
    }

    /// Lists names from `offset` on, until `add` says that its buffer is full.
    pub fn readdir(
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
    pub fn readdirplus(
        &self,
        fh: u64,
        offset: u64,
        mut add: impl FnMut(&Item, &Entry) -> bool,
    ) -> Result<(), FsError> {
        let stream = self.handles.directory(fh)?;
        let (skip, items) = self.items_from(&stream, offset)?;
        for (n, item) in items.iter().enumerate().skip(skip) {
            if n < 2 {
                let attr = match self.getattr(stream.node, None) {
                    Ok(attr) => attr,
                    // The spool removed the directory while it is open: nothing is in it.
                    Err(FsError::Stale) => return Ok(()),
                    Err(error) => return Err(error),
                };
                if add(
                    item,
                    &Entry {
                        attr,
                        ttl: std::time::Duration::ZERO,
                    },
                ) {
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

    /// The items of a listing from `offset` on; a listing that starts over is taken anew.
    fn items_from(&self, stream: &DirStream, offset: u64) -> Result<(usize, Arc<[Item]>), FsError> {
        let mut items = stream.items.lock();
        if offset == 0 {
            *items = Arc::from(self.snapshot(stream.node)?);
        }
        let items = items.clone();
        let skip = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(items.len());
        Ok((skip, items))
    }

    fn snapshot(&self, id: NodeId) -> Result<Vec<Item>, FsError> {
        let dot = |name: &[u8]| Item {
            name: name.to_vec(),
            number: id.0,
            backing: 0,
            kind: Kind::Directory,
            offset: 0,
        };
        let mut items = vec![dot(b"."), dot(b"..")];
        if status::is_generated(id) {
            items.extend(Self::status_items(id));
        } else {
            let _tree = self.tree.read();
            match self.place(id) {
                Ok(place) => {
                    let _look = (place.area == Area::Inbox).then(|| self.switch.look());
                    self.read_names(&place, &mut items)?;
                }
                // Removed while it was open: nothing is in it.
                Err(FsError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
        for (n, item) in items.iter_mut().enumerate() {
            item.offset = n as u64 + 1;
        }
        Ok(items)
    }

    /// Appends what is in a backing directory; of the inbox only what can have been sent.
    pub(crate) fn read_names(&self, place: &Place, items: &mut Vec<Item>) -> Result<(), FsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = beneath(self.root(place.area), place, flags)?;
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
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
            if let Some(kind) = kind
                && (kind.travels() || place.area == Area::Outbox)
            {
                found.push(Item {
                    name: name.to_vec(),
                    number: 0,
                    backing: entry.ino(),
                    kind,
                    offset: 0,
                });
            }
        }
        let nodes = self.nodes.lock();
        for item in &mut found {
            item.number = nodes.number_of(item.backing);
        }
        items.append(&mut found);
        Ok(())
    }

    /// Makes the names in a directory durable; in the pool, since it waits for the disk.
    pub fn fsyncdir(
        self: &Arc<Self>,
        id: NodeId,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        if status::is_generated(id) {
            return done(Ok(()));
        }
        let opened = {
            let _tree = self.tree.read();
            self.place(id).and_then(|place| {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                beneath(self.root(place.area), &place, flags)
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
