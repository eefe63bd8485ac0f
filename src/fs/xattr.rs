//! Extended attributes: `user.*` is the backing file's, `user.meshbox.*` is answered from what the spool knows and is
//! never listed, so that no copy takes it along.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use super::Fs;
use super::beneath::beneath;
use super::bytes::renamed_behind_us;
use super::error::FsError;
use super::generated;
use super::kind::Kind;
use super::node::{Area, NodeId};
use crate::digest::Digest;

const USER: &[u8] = b"user.";
const VIRTUAL: &[u8] = b"user.meshbox.";

/// The kernel's limit for a value and for a list of names.
const VALUE_MAX: usize = 64 * 1024;

fn read(fd: &OwnedFd, name: &[u8]) -> Result<Vec<u8>, FsError> {
    let mut value = Vec::with_capacity(VALUE_MAX);
    fgetxattr(fd, name, rustix::buffer::spare_capacity(&mut value))?;
    Ok(value)
}

impl Fs {
    /// The value of an attribute.
    pub(crate) fn getxattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if let Some(field) = name.strip_prefix(VIRTUAL) {
            if let Some(directory) = self.routing_directory(id, name)? {
                return read(&directory, name);
            }
            return self.virtual_xattr(id, field);
        }
        if !name.starts_with(USER) {
            return Err(FsError::NotSupported);
        }
        if generated::is_generated(id) || !self.nodes.lock().backing(id)?.kind.travels() {
            return Err(FsError::NoAttribute);
        }
        read(&self.open_for_xattr(id)?, name)
    }

    /// The directory of the outbox that an attribute would route what is below of; `None`: it is not such an attribute,
    /// or no such directory.
    fn routing_directory(&self, id: NodeId, name: &[u8]) -> Result<Option<OwnedFd>, FsError> {
        if self.spool.group.check_route_xattr(name, b"").is_none() || generated::is_generated(id) {
            return Ok(None);
        }
        let backing = self.nodes.lock().backing(id)?;
        if backing.area != Area::Outbox || backing.kind != Kind::Directory {
            return Ok(None);
        }
        self.open_for_xattr(id).map(Some)
    }

    fn virtual_xattr(&self, id: NodeId, field: &[u8]) -> Result<Vec<u8>, FsError> {
        let state = self.file_state(id)?;
        let value = match field {
            b"state" => state.state.map(|stage| stage.to_string()),
            b"sha256" => state.sha256.map(Digest::to_hex),
            b"bundle" => state.bundle.map(|id| id.to_string()),
            b"from" => state.from,
            b"error" => state.error,
            b"progress" => state.progress.map(|(bytes, all)| format!("{bytes}/{all}")),
            _unknown => None,
        };
        value.map(String::into_bytes).ok_or(FsError::NoAttribute)
    }

    /// The names of all attributes, each ended by a NUL.
    pub(crate) fn listxattr(&self, id: NodeId) -> Result<Vec<u8>, FsError> {
        if generated::is_generated(id) || !self.nodes.lock().backing(id)?.kind.travels() {
            return Ok(Vec::new());
        }
        let fd = self.open_for_xattr(id)?;
        let mut names = Vec::with_capacity(VALUE_MAX);
        match flistxattr(&fd, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_len) => {}
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let shown = names.split_inclusive(|byte| *byte == 0);
        Ok(shown
            .filter(|name| name.starts_with(USER) && !name.starts_with(VIRTUAL))
            .flatten()
            .copied()
            .collect())
    }

    /// Sets an attribute; `flags` as in setxattr(2).
    pub(crate) fn setxattr(
        &self,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<(), FsError> {
        if let Some(directory) = self.routing_directory(id, name)? {
            if self.spool.group.check_route_xattr(name, value) != Some(true) {
                return Err(FsError::Invalid);
            }
            // First: what is sealed from here on looks.
            self.spool
                .group
                .note_routed(rustix::fs::fstat(&directory)?.st_ino);
            let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
            return Ok(fsetxattr(&directory, name, value, flags)?);
        }
        let fd = self.open_to_change(id, name)?;
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        self.recorded_with(id, || Ok(fsetxattr(&fd, name, value, flags)?))
    }

    /// Removes an attribute.
    pub(crate) fn removexattr(&self, id: NodeId, name: &[u8]) -> Result<(), FsError> {
        let fd = match self.routing_directory(id, name)? {
            Some(directory) => directory,
            None => self.open_to_change(id, name)?,
        };
        self.recorded_with(id, || Ok(fremovexattr(&fd, name)?))
    }

    /// Changes the attributes of a file of the outbox: what is recorded of it holds afterwards.
    fn recorded_with(
        &self,
        id: NodeId,
        act: impl FnOnce() -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let _tree = self.tree.read();
        let (backing, place) = {
            let nodes = self.nodes.lock();
            (nodes.backing(id)?, nodes.place(id))
        };
        match place {
            Ok(place) if backing.kind == Kind::File => {
                self.spool.keep_record(backing.ino, &place.rel()?, act)
            }
            Ok(_) | Err(_) => act(),
        }
    }

    fn open_to_change(&self, id: NodeId, name: &[u8]) -> Result<OwnedFd, FsError> {
        if self.is_read_only(id)? {
            return Err(FsError::ReadOnly);
        }
        if name.starts_with(VIRTUAL) {
            return Err(FsError::NotPermitted);
        }
        if !name.starts_with(USER) {
            return Err(FsError::NotSupported);
        }
        self.open_for_xattr(id)
    }

    fn open_for_xattr(&self, id: NodeId) -> Result<OwnedFd, FsError> {
        let _tree = self.tree.read();
        let (backing, place) = {
            let nodes = self.nodes.lock();
            (nodes.backing(id)?, nodes.place(id))
        };
        // The kernel lets nobody set `user.*` there; and a FIFO or device must not be opened.
        if !backing.kind.travels() {
            return Err(FsError::NotPermitted);
        }
        match place {
            Ok(place) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                beneath(self.root(&place)?, &place, flags)
                    .map_err(|error| renamed_behind_us(backing.area, error))
            }
            Err(_nameless) => {
                let open = self.nodes.lock().any_open(id).ok_or(FsError::Stale)?;
                Ok(open.file.try_clone()?.into())
            }
        }
    }
}
