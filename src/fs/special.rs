//! What does not travel: FIFOs, sockets and device nodes, and symbolic links that could lead out of their tree
//! ([`link::stays`]).
//!
//! Below an ignored name of the outbox (`.git/`, `.#lock`) nothing travels, so there they work as on any local file
//! system. Everywhere else they are refused with EPERM, so that the user knows; and so is what would bring one from an
//! ignored name to one that is sent: renaming or linking it, and renaming a directory that has one anywhere below. One
//! that is found at an ordinary name, put there behind our back or left by a shorter ignore list, is shown, and can be
//! removed. A link that stays in its tree is sent like a file; a rename that would have it lead out is refused.
//!
//! # Invariants
//! 1. No link of a user is ever followed here: the kernel resolves links before it asks. Paths are joined from names of
//!    directories and used under the tree lock, and no system call is given one as it is: see [`crate::spool::beneath`].
//! 2. None of these is ever opened, except as a mere reference (`O_PATH`): opening a FIFO wakes who waits for a reader,
//!    and opening a device may do anything.
//! 3. Neither the state machine of `ready` nor the spool hears of FIFOs, sockets and devices; and neither sends a link for
//!    its being made or moved at an ignored name.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, mknodat, readlinkat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::Fs;
use super::attr::{Caller, Entry, Item, kind_of};
use super::beneath::beneath;
use super::error::FsError;
use super::kind::{Device, Kind};
use super::names::Target;
use super::node::{Area, Named, NodeId, Place};
use crate::bundle::{RelPath, link};
use crate::ready::Event;

impl Fs {
    pub(crate) fn is_ignored(&self, path: &RelPath, directory: bool) -> bool {
        if directory {
            self.ignore.matches_directory(path).is_some()
        } else {
            self.ignore.matches(path).is_some()
        }
    }

    /// What cannot travel may only be where nothing does.
    fn special_place(&self, at: Named<'_>) -> Result<Place, FsError> {
        let place = self.outbox_place(at.parent, at.name)?;
        if self.is_ignored(&place.rel()?, false) {
            Ok(place)
        } else {
            Err(FsError::NotPermitted)
        }
    }

    /// Makes a symbolic link: any at an ignored name, elsewhere one that stays in its tree, which is sent.
    pub(crate) fn symlink(
        &self,
        at: Named<'_>,
        target: &[u8],
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let _tree = self.tree.read();
        let place = self.outbox_place(at.parent, at.name)?;
        let path = place.rel()?;
        let ignored = self.is_ignored(&path, false);
        if !ignored && !link::stays(&path, target) {
            return Err(FsError::NotPermitted);
        }
        self.admit_name()?;
        let spot = self.at(&place)?;
        symlinkat(target, &spot, spot.name())?;
        let entry = self.made(at, &place, None, caller)?;
        if !ignored {
            self.linked(spot.stat()?.st_ino, path);
        }
        Ok(entry)
    }

    /// A link was made, which is as good as written and closed. Neither a mark nor a record of it has recovery send it.
    fn linked(&self, ino: u64, path: RelPath) {
        let fh = self.handles.number();
        self.readiness.feed(Event::Created {
            ino,
            path,
            fh,
            rdwr: false,
            excl: false,
            mode: 0o777,
        });
        self.readiness.feed(Event::Wrote { ino, fh });
        self.readiness.feed(Event::Released { ino, fh });
    }

    /// Where the link at a place points.
    pub(crate) fn target_at(&self, place: &Place) -> Result<Vec<u8>, FsError> {
        let spot = self.at(place)?;
        Ok(readlinkat(&spot, spot.name(), Vec::new())?.into_bytes())
    }

    /// Whether the link at `from` may be sent, or shown, under the name `to`.
    pub(crate) fn stays_at(&self, from: &Place, to: &RelPath) -> Result<bool, FsError> {
        Ok(link::stays(to, &self.target_at(from)?))
    }

    /// Makes a FIFO, socket or device, at an ignored name. Call with the tree lock held. Whether the caller may make a
    /// device was checked by the kernel.
    pub(crate) fn make_special(
        &self,
        at: Named<'_>,
        mode: u32,
        device: Device,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let place = self.special_place(at)?;
        let mode = mode & (libc::S_IFMT | 0o7777);
        let kind = FileType::from_raw_mode(mode);
        let permissions = Mode::from_raw_mode(mode);
        let spot = self.at(&place)?;
        mknodat(&spot, spot.name(), kind, permissions, device.dev())?;
        self.made(at, &place, Some(mode & 0o7777), caller)
    }

    /// Gives what was just made to its maker; a symbolic link has no mode of its own.
    fn made(
        &self,
        at: Named<'_>,
        place: &Place,
        mode: Option<u32>,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let spot = self.at(place)?;
        let stat = spot.stat()?;
        let target = Target::Name(&spot);
        let mode = mode.unwrap_or(stat.st_mode & 0o7777);
        match self.dress(&target, at.parent, &stat, mode, caller) {
            Ok(_changed) => {
                let stat = self.stat_at(place)?;
                self.entry(at.parent, at.name, Area::Outbox, &stat)
            }
            Err(error) => {
                let _ = unlinkat(&spot, spot.name(), AtFlags::empty());
                Err(error)
            }
        }
    }

    /// Where a symbolic link points.
    pub(crate) fn readlink(&self, id: NodeId) -> Result<Vec<u8>, FsError> {
        let _tree = self.tree.read();
        let (backing, place, remains) = {
            let nodes = self.nodes.lock();
            (nodes.backing(id)?, nodes.place(id), nodes.remains(id))
        };
        if backing.kind != Kind::Symlink {
            return Err(FsError::Invalid);
        }
        let target = match (place, remains) {
            (Ok(place), _) => {
                let spot = self.at(&place)?;
                // A name of the inbox may show a file by now.
                let changed = |error| match error {
                    Errno::INVAL if backing.area == Area::Inbox => FsError::Stale,
                    other => FsError::Os(other),
                };
                readlinkat(&spot, spot.name(), Vec::new()).map_err(changed)?
            }
            (Err(_nameless), Some(fd)) => readlinkat(&*fd, c"", Vec::new())?,
            (Err(nameless), None) => return Err(nameless),
        };
        Ok(target.into_bytes())
    }

    /// Whether what is in `stat` may get the name `to`; `from` is where it is now. Call with the tree lock held for
    /// writing.
    pub(crate) fn may_be_named(
        &self,
        stat: &Stat,
        from: &Place,
        to: &Place,
    ) -> Result<(), FsError> {
        let to_path = to.rel()?;
        let directory = kind_of(stat) == Some(Kind::Directory);
        if self.is_ignored(&to_path, directory) {
            return Ok(());
        }
        let may = match kind_of(stat) {
            None | Some(Kind::File) => true,
            Some(Kind::Symlink) => self.stays_at(from, &to_path)?,
            Some(Kind::Directory) => {
                let from_path = from.rel()?;
                let depth = |path: &RelPath| path.components().count();
                let commits = self.is_ignored(&from_path, true);
                // Where neither what is sent nor the depth of any link changes there is nothing to be found.
                if commits || depth(&to_path) < depth(&from_path) {
                    let special = self.special_below(from, &to_path, commits)?;
                    if let Some(special) = &special {
                        let what = String::from_utf8_lossy(&special.path).into_owned();
                        tracing::info!(path = %what, "a directory is not sent: it holds what cannot be sent");
                    }
                    special.is_none()
                } else {
                    true
                }
            }
            Some(Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice) => false,
        };
        if may {
            return Ok(());
        }
        tracing::debug!(path = %to_path, "what cannot be sent stays at an ignored name");
        Err(FsError::NotPermitted)
    }

    /// The first thing below a directory that cannot travel once that has the name `to`; `all`: also at ignored names,
    /// since these are sent too. Where that cannot be found out, the directory stays.
    fn special_below(
        &self,
        directory: &Place,
        to: &RelPath,
        all: bool,
    ) -> Result<Option<Place>, FsError> {
        let mut pending = vec![(directory.clone(), to.clone())];
        while let Some((directory, to)) = pending.pop() {
            let mut items: Vec<Item> = Vec::new();
            self.read_names(&directory, &mut items)?;
            for item in items {
                let (place, to) = (directory.child(&item.name)?, to.child(&item.name)?);
                let is_directory = item.kind == Kind::Directory;
                if !all && self.is_ignored(&to, is_directory) {
                    continue;
                }
                match item.kind {
                    Kind::File => {}
                    Kind::Directory => pending.push((place, to)),
                    Kind::Symlink if self.stays_at(&place, &to)? => {}
                    // At an ordinary name they were put there behind our back, and stay what they are.
                    Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice if !all => {}
                    Kind::Symlink
                    | Kind::Fifo
                    | Kind::Socket
                    | Kind::CharDevice
                    | Kind::BlockDevice => return Ok(Some(place)),
                }
            }
        }
        Ok(None)
    }

    /// Before a name goes for which no handle can stand in: keeps a reference to what it shows, for who has it open
    /// past us (a FIFO, a working directory) and asks for its attributes.
    pub(crate) fn keep_remains(&self, parent: NodeId, name: &[u8], place: &Place, stat: &Stat) {
        let known = self.nodes.lock().known(parent, name);
        if let (Some(id), Some(kind)) = (known, kind_of(stat))
            && kind != Kind::File
            && let Ok(fd) = self
                .root(place)
                .and_then(|root| beneath(root, place, OFlags::PATH))
        {
            self.nodes.lock().keep_remains(id, fd);
        }
    }
}
