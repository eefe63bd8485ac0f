//! The generated files below `.meshbox/`, and the fixed entries of the root.
//!
//! Where other users may enter the mount, only its owner reads the files that have names in them; the kernel sees to
//! that by the modes shown here.

use std::sync::Arc;

use super::attr::{Attr, Caching, Entry, Item, Opened, STATUS_TTL, Time};

use super::Fs;
use super::error::FsError;
use super::generated::{FILES, INBOX, OUTBOX, STATUS_DIR, generated};
use super::handle::Handle;
use super::kind::{Device, Kind};
use super::node::NodeId;

impl Fs {
    pub(crate) fn status_lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry, FsError> {
        let id = if parent == NodeId::ROOT {
            match name {
                OUTBOX => return self.area_entry(NodeId::OUTBOX),
                INBOX => return self.area_entry(NodeId::INBOX),
                STATUS_DIR => NodeId::STATUS_DIR,
                _other => return Err(FsError::NotFound),
            }
        } else if parent == NodeId::STATUS_DIR {
            let index = FILES
                .iter()
                .position(|file| file.name == name)
                .ok_or(FsError::NotFound)?;
            NodeId(NodeId::STATUS_FILES.0 + index as u64)
        } else {
            return Err(FsError::NotDirectory);
        };
        Ok(Entry {
            attr: self.status_attr(id)?,
            ttl: STATUS_TTL,
        })
    }

    fn area_entry(&self, id: NodeId) -> Result<Entry, FsError> {
        Ok(Entry {
            attr: self.getattr(id, None)?,
            ttl: super::attr::OUTBOX_TTL,
        })
    }

    /// Attributes of the root, `.meshbox/` and the generated files. The size is that of a fresh snapshot; readers do
    /// not depend on it, since such files are opened without cache.
    pub(crate) fn status_attr(&self, id: NodeId) -> Result<Attr, FsError> {
        let (kind, perm, nlink, size) = match generated(id) {
            Some(file) => (
                Kind::File,
                file.perm,
                1,
                (file.make)(&*self.status).len() as u64,
            ),
            None if id == NodeId::ROOT => (Kind::Directory, 0o755, 5, 0),
            // The herald of a plain user moves out of it.
            None if id == NodeId::STAGE => (Kind::Directory, 0o700, 2, 0),
            None => (Kind::Directory, 0o555, 2, 0),
        };
        let Time { secs, nanos } = self.started;
        let time = Time { secs, nanos };
        let (uid, gid) = self.shown_owner();
        Ok(Attr {
            node: id,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            kind,
            device: Device::default(),
            perm,
            nlink,
            uid,
            gid,
            blksize: 4096,
        })
    }

    pub(crate) fn status_open(&self, id: NodeId) -> Result<Opened, FsError> {
        let file = generated(id).ok_or(FsError::IsDirectory)?;
        let fh = self.handles.number();
        self.handles
            .insert(fh, Handle::Generated(Arc::from((file.make)(&*self.status))));
        Ok(Opened {
            fh,
            caching: Caching::None,
            reads_only: true,
        })
    }

    /// The names in the root or in `.meshbox/`; offsets are filled in by the caller. The stage is not among them, and
    /// shows nothing.
    pub(crate) fn status_items(id: NodeId) -> Vec<Item> {
        if id == NodeId::STAGE {
            return vec![];
        }
        let item = |name: &[u8], id: NodeId, kind| Item {
            name: name.to_vec(),
            number: id.0,
            backing: 0,
            kind,
            offset: 0,
        };
        if id == NodeId::ROOT {
            vec![
                item(OUTBOX, NodeId::OUTBOX, Kind::Directory),
                item(INBOX, NodeId::INBOX, Kind::Directory),
                item(STATUS_DIR, NodeId::STATUS_DIR, Kind::Directory),
            ]
        } else {
            let numbered = FILES.iter().enumerate();
            numbered
                .map(|(n, file)| {
                    item(
                        file.name,
                        NodeId(NodeId::STATUS_FILES.0 + n as u64),
                        Kind::File,
                    )
                })
                .collect()
        }
    }
}
