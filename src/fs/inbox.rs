//! What may be done to the inbox: removing, moving out, and hearing from the spool that a name shows another file.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use rustix::fs::RenameFlags;

use super::Fs;
use super::attr::{backing_of, kind_of};
use super::error::FsError;
use super::generated;
use super::kind::Kind;
use super::node::{Area, Backing, Named, NodeId, Place};
use super::notices::{Invalidator, Notice};
use crate::bundle::RelPath;
use crate::ready::Event;
use crate::spool::{InboxObserver, NewName};

/// Names looked up under one hold of the node table.
const SLICE: usize = 256;

/// What the spool holds of the file system; weak, since the file system holds the spool.
struct Observer(Weak<Fs>);

impl InboxObserver for Observer {
    fn prepare(&self, replaced: &[RelPath]) {
        if let Some(fs) = self.0.upgrade() {
            fs.prepare_inbox(replaced);
        }
    }

    fn unprepare(&self) {
        if let Some(fs) = self.0.upgrade() {
            fs.switch.prepared.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn switch(&self, give: &mut dyn FnMut()) {
        let fs = self.0.upgrade();
        let _nobody_looks = fs.as_ref().map(|fs| fs.switch.lock.write());
        give();
    }

    fn published(&self, names: &[NewName]) {
        if let Some(fs) = self.0.upgrade() {
            fs.inbox_published(names);
        }
    }

    fn renamed(&self, from: &RelPath, to: &RelPath, replaced: Option<u64>) {
        if let Some(fs) = self.0.upgrade() {
            fs.inbox_renamed(from, to, replaced);
        }
    }

    fn removed(&self, path: &RelPath) {
        if let Some(fs) = self.0.upgrade() {
            fs.inbox_gone(path);
        }
    }
}

impl Fs {
    /// What the spool tells of the inbox.
    pub(super) fn observer(self: &Arc<Self>) -> Arc<dyn InboxObserver> {
        Arc::new(Observer(Arc::downgrade(self)))
    }

    /// Sets how the kernel is told of names that show another file now.
    pub(crate) fn set_invalidator(&self, invalidate: Invalidator) -> std::io::Result<()> {
        self.notices.start(invalidate)
    }

    fn prepare_inbox(&self, replaced: &[RelPath]) {
        self.switch.prepared.fetch_add(1, Ordering::SeqCst);
        let mut known: Vec<(NodeId, Vec<u8>)> = Vec::new();
        for slice in replaced.chunks(SLICE) {
            let nodes = self.nodes.lock();
            known.extend(slice.iter().filter_map(|path| {
                let (parent, _) = nodes.known_at(Area::Inbox, path)?;
                Some((parent, path.file_name().to_vec()))
            }));
        }
        if !known.is_empty() {
            self.notices.forget(known);
        }
    }

    /// These names, files and new directories, were given and are visible.
    pub(super) fn inbox_published(&self, names: &[NewName]) {
        for name in names {
            if let Some(before) = name.replaced {
                self.inbox_replaced(&name.path, before);
            }
            self.announcements.push(&name.path, name.directory);
        }
    }

    /// A file of the inbox has another name: its node goes along, with its number, its open handles and the way they are
    /// read.
    fn inbox_renamed(&self, from: &RelPath, to: &RelPath, replaced: Option<u64>) {
        if from == to {
            return self.inbox_dressed(to);
        }
        if let Some(before) = replaced {
            self.inbox_replaced(to, before);
        }
        let known = self.nodes.lock().known_at(Area::Inbox, from);
        if let Some((parent, _)) = known {
            match self.new_place(to) {
                Ok((to_parent, backing)) => self.nodes.lock().moved_inside(
                    (parent, from.file_name()),
                    (to_parent, to.file_name()),
                    backing,
                ),
                Err(error) => {
                    // Gone again: the node lives on for its handles.
                    tracing::debug!(%to, %error, "a renamed file of the inbox was not found");
                    self.nodes.lock().unname(parent, from.file_name());
                }
            }
            self.notices
                .send(Notice::Name(parent, from.file_name().to_vec()));
        }
        self.announcements.push(to, false);
    }

    /// A file of the inbox has another mode or time: it is the same file, of which the kernel is to ask again.
    fn inbox_dressed(&self, path: &RelPath) {
        let known = self.nodes.lock().known_at(Area::Inbox, path);
        let Some((parent, _)) = known else {
            return;
        };
        if let Ok((_, backing)) = self.new_place(path) {
            let mut nodes = self.nodes.lock();
            nodes.dressed(parent, path.file_name(), backing);
        }
        self.notices
            .send(Notice::Name(parent, path.file_name().to_vec()));
    }

    /// What was at a name of the inbox is gone.
    fn inbox_gone(&self, path: &RelPath) {
        let known = {
            let mut nodes = self.nodes.lock();
            let known = nodes.known_at(Area::Inbox, path);
            if let Some((parent, _)) = known {
                nodes.replaced(parent, path.file_name());
            }
            known
        };
        if let Some((parent, _)) = known {
            self.notices
                .send(Notice::Name(parent, path.file_name().to_vec()));
        }
    }

    /// The directory of a path in the inbox, made known if it is not, and what backs the path.
    fn new_place(&self, path: &RelPath) -> Result<(NodeId, Backing), FsError> {
        let root = Place {
            area: Area::Inbox,
            path: Vec::new(),
        };
        let stat = self.stat_at(&Place {
            path: path.as_bytes().to_vec(),
            ..root
        })?;
        let (mut parent, mut place) = (NodeId::INBOX, root);
        for name in path.parent().iter().flat_map(RelPath::components) {
            place = place.child(name)?;
            let known = self.nodes.lock().known(parent, name);
            parent = match known {
                Some(id) => id,
                None => {
                    let backing = backing_of(Area::Inbox, &self.stat_at(&place)?);
                    let mut nodes = self.nodes.lock();
                    let id = nodes.found(parent, name, backing)?;
                    // Not the kernel's lookup: it lives for what is below it.
                    nodes.unheld(id);
                    id
                }
            };
        }
        Ok((parent, backing_of(Area::Inbox, &stat)))
    }

    /// The name of an inbox file shows another one: the node that had it lives on only for its open handles. A new
    /// name needs nothing, since the kernel does not remember that a name was missing.
    fn inbox_replaced(&self, path: &RelPath, before: u64) {
        let known = {
            let mut nodes = self.nodes.lock();
            let known = nodes.known_at(Area::Inbox, path);
            if let Some((parent, node)) = known {
                // Who looked since found the new file, whose node has the name by now.
                if nodes
                    .backing(node)
                    .is_ok_and(|backing| backing.ino == before)
                {
                    nodes.replaced(parent, path.file_name());
                }
            }
            known
        };
        if let Some((parent, _)) = known {
            self.notices
                .send(Notice::Name(parent, path.file_name().to_vec()));
        }
    }

    /// Removes a name from the inbox through the spool; in the pool, since the spool journals it.
    pub(crate) fn inbox_remove(
        self: &Arc<Self>,
        at: Named<'_>,
        directory: bool,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        let checked = self.inbox_target(at).and_then(|(path, kind)| {
            match (kind == Kind::Directory, directory) {
                (false, false) | (true, true) => Ok(path),
                (false, true) => Err(FsError::NotDirectory),
                (true, false) => Err(FsError::IsDirectory),
            }
        });
        let path = match checked {
            Ok(path) => path,
            Err(error) => return done(Err(error)),
        };
        let (fs, parent, name) = (self.clone(), at.parent, at.name.to_vec());
        self.pool.submit(Box::new(move || {
            let removed = if directory {
                fs.spool.inbox_rmdir(&path)
            } else {
                fs.spool.inbox_unlink(&path)
            };
            if removed.is_ok() {
                fs.nodes.lock().unname(parent, &name);
            }
            done(removed.map_err(FsError::from));
        }));
    }

    fn inbox_target(&self, at: Named<'_>) -> Result<(RelPath, Kind), FsError> {
        let place = self.place(at.parent)?.child(at.name)?;
        let stat = self.stat_at(&place)?;
        Ok((place.rel()?, kind_of(&stat).ok_or(FsError::NotFound)?))
    }

    /// Moves a file from the inbox to the outbox: consumed there, written here. Directories are answered as between
    /// two file systems, so that `mv` goes through them file by file.
    pub(crate) fn move_out(
        self: &Arc<Self>,
        from: Named<'_>,
        to: Named<'_>,
        flags: RenameFlags,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        let checked = self.inbox_target(from).and_then(|(path, kind)| {
            if flags.contains(RenameFlags::EXCHANGE) {
                return Err(FsError::ReadOnly);
            }
            // A link made anew is checked for where it is to be.
            if matches!(kind, Kind::Directory | Kind::Symlink) {
                return Err(FsError::CrossDevice);
            }
            let target = self.outbox_place(to.parent, to.name)?;
            let replaced = self.stat_at(&target).ok();
            match replaced.as_ref().and_then(kind_of) {
                Some(Kind::Directory) => Err(FsError::IsDirectory),
                Some(Kind::File | Kind::Symlink) => Ok((path, target, replaced)),
                Some(Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice) | None => {
                    Ok((path, target, None))
                }
            }
        });
        let (path, target, replaced) = match checked {
            Ok(checked) => checked,
            Err(error) => return done(Err(error)),
        };
        let no_replace = flags.contains(RenameFlags::NOREPLACE);
        let fs = self.clone();
        let (from_parent, from_name) = (from.parent, from.name.to_vec());
        let (to_parent, to_name) = (to.parent, to.name.to_vec());
        // The kernel holds both directories until the reply, so the two names stay ours without the tree lock, which
        // must not be held while the spool may be copying.
        self.pool.submit(Box::new(move || {
            let moved = target.rel().and_then(|to_path| {
                if let Some(replaced) = replaced.as_ref().filter(|_| !no_replace) {
                    fs.may_lose_name(replaced)?;
                }
                fs.spool.inbox_to_outbox(&path, &to_path, no_replace)?;
                let _tree = fs.tree.write();
                let stat = fs.stat_at(&target)?;
                let backing = backing_of(Area::Outbox, &stat);
                fs.nodes.lock().moved_out(
                    (from_parent, &from_name),
                    (to_parent, &to_name),
                    backing,
                );
                if let Some(replaced) = replaced {
                    let (ino, names_left) = (replaced.st_ino, fs.names_left(&replaced));
                    fs.spool.outbox_removed(&to_path, ino, names_left);
                    fs.readiness.feed(Event::Unlinked {
                        ino,
                        path: to_path.clone(),
                        names_left,
                    });
                }
                let (ino, fh) = (stat.st_ino, fs.handles.number());
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let path = to_path;
                fs.readiness.feed(Event::Opened {
                    ino,
                    path: path.clone(),
                    names: Vec::new(),
                    fh,
                });
                fs.readiness.feed(Event::Truncated {
                    ino,
                    path,
                    names: Vec::new(),
                    fh: Some(fh),
                    size,
                });
                fs.readiness.feed(Event::Released { ino, fh });
                Ok(())
            });
            done(moved);
        }));
    }

    /// Whether a node lies in the inbox or is generated: nothing of it can be changed.
    pub(crate) fn is_read_only(&self, id: NodeId) -> Result<bool, FsError> {
        if generated::is_generated(id) {
            return Ok(true);
        }
        Ok(self.nodes.lock().backing(id)?.area == Area::Inbox)
    }
}
