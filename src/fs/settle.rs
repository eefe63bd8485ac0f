//! Settling how an opened file is read, before its open is answered; see [`super::reading`].

use std::fs::File;
use std::io;

use super::Fs;
use super::handle::OpenFile;
use super::inode::Nodes;
use super::node::Area;
use super::reading::{Registration, Settled};

/// Settles a handle in one step under the node table's lock. `None`: it is the first of its node, come with an answer
/// of the kernel.
fn settle(nodes: &mut Nodes, file: &OpenFile, granted: Option<Settled>) -> Option<Settled> {
    let Some((area, reading)) = nodes.reading(file.node) else {
        return Some(None);
    };
    if area == Area::Outbox {
        return Some(None);
    }
    let settled = match granted {
        None => reading.follow()?,
        Some(granted) => reading.follow_or_decide(granted),
    };
    file.set_settled();
    Some(settled)
}

impl Fs {
    /// Settles how an opened file is read, before its open is answered: with the registration if by the kernel itself.
    /// Once per open, and for every open or for none of the mount. `register` asks the kernel; an error means no.
    pub(crate) fn settle_reading(
        &self,
        fh: u64,
        register: impl FnOnce(&File) -> io::Result<Registration>,
    ) -> Option<Registration> {
        let file = self.handles.file(fh).ok().filter(|file| !file.writes())?;
        let followed = settle(&mut self.nodes.lock(), &file, None);
        if let Some(settled) = followed {
            return settled;
        }
        let granted = register(&file.file).ok();
        settle(&mut self.nodes.lock(), &file, Some(granted.clone())).flatten()
    }

    /// Whether the kernel reads a node by itself at present.
    #[cfg(test)]
    pub(crate) fn is_read_by_kernel(&self, id: super::NodeId) -> bool {
        self.nodes
            .lock()
            .reading(id)
            .is_some_and(|(_, reading)| reading.by_kernel())
    }
}
