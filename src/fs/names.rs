//! Names in the outbox: making, moving and removing them, and the attributes that are not bytes.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    chownat, fchmod, fchown, fstat, futimens, linkat, mkdirat, openat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::Fs;
use super::attr::{Attr, Caller, Entry, Opened, SetAttr, SetTime, kind_of, links};
use super::error::FsError;
use super::handle::OpenFile;
use super::kind::{Device, Kind};
use super::node::{Area, Named, NodeId, Place};
use super::{generated, times};
use crate::bundle::RelPath;
use crate::ready::Event;
use crate::spool::beneath::At;

const S_ISGID: u32 = 0o2000;

/// What attributes are changed on.
pub(crate) enum Target<'a> {
    File(&'a File),
    Name(&'a At<'a>),
}

impl Fs {
    /// Makes a file and opens it.
    pub(crate) fn create(
        self: &Arc<Self>,
        at: Named<'_>,
        mode: u32,
        flags: i32,
        caller: Caller,
        done: impl FnOnce(Result<(Entry, Opened), FsError>) + Send + 'static,
    ) {
        match self.create_backing(at, mode, caller) {
            Ok((entry, file, path)) => {
                file.note_emptied(caller.tid);
                let event = Event::Created {
                    ino: file.ino,
                    path,
                    fh: file.fh,
                    rdwr: flags & libc::O_ACCMODE == libc::O_RDWR,
                    excl: flags & libc::O_EXCL != 0,
                    mode: mode & 0o7777,
                };
                self.opened_with(file, flags, Some(event), None, move |opened| {
                    done(opened.map(|opened| (entry, opened)));
                });
            }
            Err(FsError::Os(Errno::EXIST)) if flags & libc::O_EXCL == 0 => {
                match self.lookup(at.parent, at.name) {
                    Ok(entry) => {
                        let open = flags & !(libc::O_CREAT | libc::O_EXCL);
                        let fs = self.clone();
                        self.open(entry.attr.node, open, caller, move |opened| {
                            if opened.is_err() {
                                fs.forget(entry.attr.node, 1);
                            }
                            done(opened.map(|opened| (entry, opened)));
                        });
                    }
                    Err(error) => done(Err(error)),
                }
            }
            Err(error) => done(Err(error)),
        }
    }

    fn create_backing(
        &self,
        at: Named<'_>,
        mode: u32,
        caller: Caller,
    ) -> Result<(Entry, Arc<OpenFile>, RelPath), FsError> {
        let _tree = self.tree.read();
        let place = self.outbox_place(at.parent, at.name)?;
        let (file, stat) = self.make_file(at.parent, &place, mode, caller)?;
        let entry = self.entry(at.parent, at.name, Area::Outbox, &stat)?;
        let gate = self.spool.outbox.gate(stat.st_ino);
        let path = place.rel()?;
        let fh = self.handles.number();
        let open = OpenFile::new(
            fh,
            entry.attr.node,
            stat.st_ino,
            file,
            Some(path.clone()),
            Some(gate),
        );
        Ok((entry, Arc::new(open), path))
    }

    /// Makes an empty file that did not exist, with the owner and mode it should have.
    fn make_file(
        &self,
        parent: NodeId,
        place: &Place,
        mode: u32,
        caller: Caller,
    ) -> Result<(File, Stat), FsError> {
        self.admit_name()?;
        let (asked, mode) = (mode & 0o7777, self.kept_mode(mode & 0o7777, false));
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at = self.at(place)?;
        let made = openat(&at, at.name(), flags, Mode::from_raw_mode(mode))?;
        let file = File::from(made);
        let stat = fstat(&file)?;
        let target = Target::File(&file);
        let dressed = self.dress(&target, parent, &stat, mode, caller);
        let noted = if mode == asked {
            Ok(())
        } else {
            self.set_mode(&target, asked, false)
        };
        match noted.and(dressed) {
            Ok(true) => {
                let stat = fstat(&file)?;
                Ok((file, stat))
            }
            Ok(false) => Ok((file, stat)),
            Err(error) => {
                let _ = unlinkat(&at, at.name(), AtFlags::empty());
                Err(error)
            }
        }
    }

    /// Gives a new file or directory to its maker, and undoes our own umask. Says whether anything changed.
    pub(crate) fn dress(
        &self,
        target: &Target<'_>,
        parent: NodeId,
        stat: &Stat,
        mode: u32,
        caller: Caller,
    ) -> Result<bool, FsError> {
        let mut changed = false;
        if self.config.chown_to_writer && (stat.st_uid, stat.st_gid) != (caller.uid, caller.gid) {
            let inherits_group = self.stat_node(parent)?.st_mode & S_ISGID != 0;
            let gid = if inherits_group {
                stat.st_gid
            } else {
                caller.gid
            };
            if (stat.st_uid, stat.st_gid) != (caller.uid, gid) {
                target.chown(Some(caller.uid), Some(gid))?;
                changed = true;
            }
        }
        let inherited = if kind_of(stat) == Some(Kind::Directory) {
            stat.st_mode & S_ISGID
        } else {
            0
        };
        if changed || stat.st_mode & 0o7777 != mode | inherited {
            target.chmod(mode | inherited)?;
            changed = true;
        }
        Ok(changed)
    }

    /// Makes a regular file without opening it, or what only an ignored name may show.
    pub(crate) fn mknod(
        &self,
        at: Named<'_>,
        mode: u32,
        device: Device,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let _tree = self.tree.read();
        if !FileType::from_raw_mode(mode).is_file() && mode & libc::S_IFMT != 0 {
            return self.make_special(at, mode, device, caller);
        }
        let place = self.outbox_place(at.parent, at.name)?;
        let (_file, stat) = self.make_file(at.parent, &place, mode, caller)?;
        let entry = self.entry(at.parent, at.name, Area::Outbox, &stat)?;
        let (ino, fh) = (stat.st_ino, self.handles.number());
        let path = place.rel()?;
        let created = Event::Created {
            ino,
            path,
            fh,
            rdwr: false,
            excl: false,
            mode: mode & 0o7777,
        };
        // Nobody knows of it before the answer.
        let gate = self.spool.outbox.gate(ino);
        let _held = gate.try_lock();
        self.readiness.feed_held(created);
        self.readiness.feed_held(Event::Released { ino, fh });
        Ok(entry)
    }

    /// Makes a directory.
    pub(crate) fn mkdir(&self, at: Named<'_>, mode: u32, caller: Caller) -> Result<Entry, FsError> {
        let _tree = self.tree.read();
        let place = self.outbox_place(at.parent, at.name)?;
        // mkdir(2) takes the sticky bit; a setgid bit only comes from the parent.
        let (asked, mode) = (mode & 0o1777, self.kept_mode(mode & 0o1777, true));
        self.admit_name()?;
        let spot = self.at(&place)?;
        mkdirat(&spot, spot.name(), Mode::from_raw_mode(mode))?;
        let stat = spot.stat()?;
        let target = Target::Name(&spot);
        let dressed = self.dress(&target, at.parent, &stat, mode, caller);
        let noted = if mode == asked {
            Ok(())
        } else {
            self.set_mode(&target, asked | stat.st_mode & S_ISGID, true)
        };
        let stat = match noted.and(dressed) {
            Ok(true) => spot.stat()?,
            Ok(false) => stat,
            Err(error) => {
                let _ = unlinkat(&spot, spot.name(), AtFlags::REMOVEDIR);
                return Err(error);
            }
        };
        self.entry(at.parent, at.name, Area::Outbox, &stat)
    }

    /// Removes a file's name. In the inbox: consumed.
    pub(crate) fn unlink(
        self: &Arc<Self>,
        at: Named<'_>,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        match self.area_of(at.parent) {
            Ok(Area::Inbox) => self.inbox_remove(at, false, done),
            Ok(Area::Outbox) => done(self.outbox_unlink(at)),
            Err(error) => done(Err(error)),
        }
    }

    fn outbox_unlink(&self, at: Named<'_>) -> Result<(), FsError> {
        let _tree = self.tree.write();
        let place = self.outbox_place(at.parent, at.name)?;
        let stat = self.stat_at(&place)?;
        if kind_of(&stat) == Some(Kind::Directory) {
            return Err(FsError::IsDirectory);
        }
        // A link that a seal has just made is not a name, and it is its record that says so.
        let counted = self.spool.while_nobody_decides(|| {
            let stat = self.stat_at(&place)?;
            let names_left = self.names_left(&stat);
            Ok::<_, FsError>((stat, names_left))
        });
        let (stat, names_left) = counted?;
        self.may_lose_name(&stat)?;
        self.keep_remains(at.parent, at.name, &place, &stat);
        let spot = self.at(&place)?;
        let path = place.rel()?;
        let unlink = || Ok(unlinkat(&spot, spot.name(), AtFlags::empty())?);
        self.recorded_after(&stat, names_left, &path, unlink)?;
        self.nodes.lock().unname(at.parent, at.name);
        if !matches!(kind_of(&stat), Some(Kind::File | Kind::Symlink)) {
            return Ok(());
        }
        self.spool.outbox_removed(&path, stat.st_ino, names_left);
        self.readiness.feed(Event::Unlinked {
            ino: stat.st_ino,
            path,
            names_left,
        });
        Ok(())
    }

    /// Does what changes a name of a file: what is recorded of it holds afterwards, if it has names left.
    pub(crate) fn recorded_after(
        &self,
        stat: &Stat,
        names_left: u64,
        path: &RelPath,
        act: impl FnOnce() -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        if kind_of(stat) != Some(Kind::File) || names_left == 0 {
            return act();
        }
        self.spool.keep_record(stat.st_ino, path, act)
    }

    /// Whether one name of what `stat` tells of may go: there must be room for what somebody still waits for.
    pub(crate) fn may_lose_name(&self, stat: &Stat) -> Result<(), FsError> {
        if kind_of(stat) == Some(Kind::File) && self.names_left(stat) == 0 {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            self.spool.may_remove(stat.st_ino, size)?;
        }
        Ok(())
    }

    /// Visible names of an inode that just lost one of those in `stat`.
    pub(crate) fn names_left(&self, stat: &Stat) -> u64 {
        let left = links(stat).saturating_sub(1);
        if left == 0 {
            0
        } else {
            self.spool.outbox.visible_links(stat.st_ino, left)
        }
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(
        self: &Arc<Self>,
        at: Named<'_>,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        match self.area_of(at.parent) {
            Ok(Area::Inbox) => self.inbox_remove(at, true, done),
            Ok(Area::Outbox) => done(self.outbox_rmdir(at)),
            Err(error) => done(Err(error)),
        }
    }

    fn outbox_rmdir(&self, at: Named<'_>) -> Result<(), FsError> {
        let _tree = self.tree.write();
        let place = self.outbox_place(at.parent, at.name)?;
        self.keep_remains(at.parent, at.name, &place, &self.stat_at(&place)?);
        let spot = self.at(&place)?;
        unlinkat(&spot, spot.name(), AtFlags::REMOVEDIR)?;
        self.nodes.lock().unname(at.parent, at.name);
        Ok(())
    }

    /// Which tree a directory belongs to; removing from the root or from `.meshbox/` is not possible.
    pub(super) fn area_of(&self, parent: NodeId) -> Result<Area, FsError> {
        if generated::is_generated(parent) {
            return Err(FsError::ReadOnly);
        }
        self.nodes
            .lock()
            .backing(parent)
            .map(|backing| backing.area)
    }

    /// Gives a file of the outbox another name.
    pub(crate) fn link(&self, id: NodeId, to: Named<'_>) -> Result<Entry, FsError> {
        let _tree = self.tree.write();
        let to_place = self.outbox_place(to.parent, to.name)?;
        if generated::is_generated(id) {
            return Err(FsError::CrossDevice);
        }
        let from = {
            let nodes = self.nodes.lock();
            nodes.backing(id)?;
            nodes.place(id).map_err(|_nameless| FsError::NotFound)?
        };
        if from.area == Area::Inbox {
            return Err(FsError::CrossDevice);
        }
        self.may_be_named(&self.stat_at(&from)?, &from, &to_place)?;
        let (old, new) = (self.at(&from)?, self.at(&to_place)?);
        let link = || {
            Ok(linkat(
                &old,
                old.name(),
                &new,
                new.name(),
                AtFlags::empty(),
            )?)
        };
        self.recorded_after(&self.stat_at(&from)?, 1, &from.rel()?, link)?;
        let stat = self.stat_at(&to_place)?;
        let entry = self.entry(to.parent, to.name, Area::Outbox, &stat)?;
        let path = to_place.rel()?;
        let kind = kind_of(&stat);
        if matches!(kind, Some(Kind::File | Kind::Symlink)) {
            self.spool.outbox.linked(stat.st_ino, &from.rel()?, &path);
        }
        let told = match kind {
            Some(Kind::File) => true,
            Some(Kind::Symlink) => !self.is_ignored(&path, false),
            _other => false,
        };
        if told {
            let ino = stat.st_ino;
            self.readiness.feed(Event::Linked { ino, path });
        }
        Ok(entry)
    }

    /// Changes mode, owner and times.
    pub(crate) fn set_others(&self, id: NodeId, set: &SetAttr) -> Result<Attr, FsError> {
        if generated::is_generated(id) {
            return Err(FsError::ReadOnly);
        }
        let _tree = self.tree.read();
        let (backing, place) = {
            let nodes = self.nodes.lock();
            (nodes.backing(id)?, nodes.place(id))
        };
        if backing.area == Area::Inbox {
            return Err(FsError::ReadOnly);
        }
        // As everywhere on Linux.
        if backing.kind == Kind::Symlink && set.mode.is_some() {
            return Err(FsError::NotSupported);
        }
        let directory = backing.kind == Kind::Directory;
        let open = set.fh.and_then(|fh| self.handles.file(fh).ok());
        let unnamed = || self.nodes.lock().any_open(id).ok_or(FsError::Stale);
        let apply = || match (&open, &place) {
            (Some(open), _) => self.apply(&Target::File(&open.file), directory, set),
            (None, Ok(place)) => self.apply(&Target::Name(&self.at(place)?), directory, set),
            (None, Err(_nameless)) => self.apply(&Target::File(&unnamed()?.file), directory, set),
        };
        // Pages of a mapping that were changed before may be written back after this.
        let written = || {
            let open = self.nodes.lock().any_open(id);
            open.is_some_and(|open| open.writes())
        };
        let change = || {
            if set.mtime.is_some() && backing.kind == Kind::File && written() {
                let mtime = || Ok(times::mtime_of(&self.stat_node(id)?));
                self.set_times.set(backing.ino, apply, mtime, written)
            } else {
                apply()
            }
        };
        match &place {
            Ok(place) if backing.kind == Kind::File => {
                self.spool.keep_record(backing.ino, &place.rel()?, change)?;
            }
            Ok(_) | Err(_) => change()?,
        }
        let travels = set.mode.is_some() || set.mtime.is_some();
        if let Ok(place) = place
            && travels
            && matches!(backing.kind, Kind::File | Kind::Symlink)
        {
            let ino = backing.ino;
            let mut names = self.spool.outbox.names_of(ino);
            if names.is_empty() {
                names.push(place.rel()?);
            }
            self.readiness.feed(Event::Dressed { ino, names });
        }
        Ok(self.attr(id, &self.stat_node(id)?))
    }

    /// Owner first: changing it takes suid and sgid away.
    pub(crate) fn apply(
        &self,
        target: &Target<'_>,
        directory: bool,
        set: &SetAttr,
    ) -> Result<(), FsError> {
        if set.uid.is_some() || set.gid.is_some() {
            target.chown(set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            self.set_mode(target, mode & 0o7777, directory)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            target.set_times(&Timestamps {
                last_access: timespec(set.atime),
                last_modification: timespec(set.mtime),
            })?;
        }
        Ok(())
    }
}

impl Target<'_> {
    fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> rustix::io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Self::File(file) => fchown(file, uid, gid),
            Self::Name(at) => chownat(at, at.name(), uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    pub(crate) fn chmod(&self, mode: u32) -> rustix::io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Self::File(file) => fchmod(file, mode),
            Self::Name(at) => at.chmod(mode),
        }
    }

    fn set_times(&self, times: &Timestamps) -> rustix::io::Result<()> {
        match self {
            Self::File(file) => futimens(file, times),
            Self::Name(at) => utimensat(at, at.name(), times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.secs,
            tv_nsec: time.nanos.into(),
        },
    }
}
