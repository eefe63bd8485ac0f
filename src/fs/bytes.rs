//! Bytes: open handles, reading, and everything that changes bytes or size, which passes the write gate.
//!
//! A modifying operation tries its gate. If the gate is free and the bytes are not sealed, the operation runs at once
//! on the FUSE loop; otherwise it goes to the blocking pool, where the gate is waited for and sealed bytes are copied
//! out, and is answered from there. Either way `ready` is told before the gate opens.
//!
//! A handle that may only write is written past the kernel's cache ([`Caching::Past`]): its bytes are copied twice less,
//! and the page cache holds them once, as pages of the backing file. Whoever reads or maps the file goes through
//! the cache, of which the kernel drops what such a write changed.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, fchmod, fstat};
use rustix::io::Errno;

use super::Fs;
use super::attr::{Attr, Caching, Caller, Opened, SetAttr};
use super::beneath::beneath;
use super::error::FsError;
use super::generated;
use super::handle::{Handle, OpenFile};
use super::names::Target;
use super::node::{Area, NodeId, Place};
use crate::bundle::RelPath;
use crate::ready::Event;
use crate::spool::{Gate, GateGuard};

/// Bits of a mode that a change of the bytes by an ordinary user takes away.
const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// How a file is to be opened, from the flags of open(2).
#[derive(Clone, Copy)]
struct Access {
    writes: bool,
    reads: bool,
    truncates: bool,
    direct: bool,
}

impl Access {
    fn of(flags: i32) -> Self {
        let mode = flags & libc::O_ACCMODE;
        Self {
            writes: mode != libc::O_RDONLY,
            reads: mode != libc::O_WRONLY,
            truncates: flags & libc::O_TRUNC != 0,
            direct: flags & libc::O_DIRECT != 0,
        }
    }
}

/// What the kernel says of a WRITE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WriteHow {
    /// It asks for suid and sgid to be taken away.
    pub kill_privileges: bool,
    /// It writes back pages of a mapping, which may have been changed long ago.
    pub write_back: bool,
}

/// What a modifying operation needs, detached from the call that brought it.
struct Modify {
    file: Arc<OpenFile>,
    path: RelPath,
}

/// What a WRITE did.
struct Written {
    bytes: u32,
    /// Enough was appended for the tail hasher.
    tail: bool,
}

impl Fs {
    /// Opens a file. `O_TRUNC` in `flags` is carried out.
    pub(crate) fn open(
        self: &Arc<Self>,
        id: NodeId,
        flags: i32,
        caller: Caller,
        done: impl FnOnce(Result<Opened, FsError>) + Send + 'static,
    ) {
        let access = Access::of(flags);
        match self.open_backing(id, access, caller.tid) {
            Ok(None) => done(self.status_open(id)),
            Ok(Some(file)) => self.opened(file, flags, caller, done),
            Err(error) => done(Err(error)),
        }
    }

    /// Opens the backing file of a node; `None` for a generated file.
    fn open_backing(
        &self,
        id: NodeId,
        access: Access,
        tid: u32,
    ) -> Result<Option<Arc<OpenFile>>, FsError> {
        if generated::is_generated(id) {
            return if access.writes || access.truncates {
                Err(FsError::ReadOnly)
            } else {
                Ok(None)
            };
        }
        let _tree = self.tree.read();
        let (backing, place) = {
            let mut nodes = self.nodes.lock();
            (nodes.backing_to_open(id, tid)?, nodes.place(id))
        };
        if backing.area == Area::Inbox && (access.writes || access.truncates) {
            return Err(FsError::ReadOnly);
        }
        // The kernel opens these itself; it comes here only for a name that shows another file meanwhile.
        if !backing.kind.travels() {
            return Err(FsError::Stale);
        }
        let (fd, opened_as, shared) = match &place {
            Ok(place) => {
                let opened = open_at(self.root(place)?, place, access);
                let opened = opened.map_err(|error| renamed_behind_us(backing.area, error));
                (opened?, place.rel().ok(), None)
            }
            Err(_nameless) => {
                let open = self.nodes.lock().any_open(id).ok_or(FsError::Stale)?;
                let fd = reopen(&open.file, access)?;
                (fd, open.opened_as.clone(), open.gate.clone())
            }
        };
        // Inbox names change without us: the kernel asked for the file it knows, not for its successor.
        if backing.area == Area::Inbox && fstat(&fd)?.st_ino != backing.ino {
            return Err(FsError::Stale);
        }
        if backing.area == Area::Inbox && access.direct {
            // The kernel may read the backing file with the flags of the user, and would answer EIO if that cannot do it.
            let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
            rustix::fs::open(by_descriptor(&fd), flags, Mode::empty())?;
        }
        let gate = (backing.area == Area::Outbox && (access.writes || access.truncates))
            // The spool no longer knows the gate of a file without names; all its writers share the one there is.
            .then(|| shared.unwrap_or_else(|| self.spool.outbox.gate(backing.ino)));
        let fh = self.handles.number();
        Ok(Some(Arc::new(OpenFile::new(
            fh,
            id,
            backing.ino,
            fd.into(),
            opened_as,
            gate,
        ))))
    }

    /// The second half of opening: counts the writer, truncates if asked, and makes the handle known.
    pub(crate) fn opened_with(
        self: &Arc<Self>,
        file: Arc<OpenFile>,
        flags: i32,
        event: Option<Event>,
        truncate: Option<Caller>,
        done: impl FnOnce(Result<Opened, FsError>) + Send + 'static,
    ) {
        let caching = match self
            .nodes
            .lock()
            .backing(file.node)
            .map(|backing| backing.area)
        {
            Ok(Area::Inbox) => Caching::Keep,
            Ok(Area::Outbox) | Err(_) if !Access::of(flags).reads => Caching::Past,
            Ok(Area::Outbox) | Err(_) => Caching::Ordinary,
        };
        // Known to the node first: from here on the inode number cannot be reused.
        self.nodes.lock().opened(file.node, &file);
        let Some(gate) = file.gate.clone() else {
            self.handles.insert(file.fh, Handle::File(file.clone()));
            return done(Ok(Opened {
                fh: file.fh,
                caching,
                reads_only: true,
            }));
        };
        let fs = self.clone();
        self.gated(&gate, move |guard| {
            guard.add_writer();
            let created = matches!(event, Some(Event::Created { .. }));
            if let Some(Event::Created { path, .. }) = &event
                && let Err(error) = fs.spool.outbox.before_modify(guard, path)
            {
                // Without its mark a file that is made when the daemon is killed would be taken for an empty one.
                tracing::warn!(%path, %error, "a new file could not be marked as open");
            }
            if created {
                // It is new whether or not anything is written.
                guard.reshaped();
            }
            if let Some(mut event) = event {
                if let Event::Opened { names, .. } = &mut event {
                    // With the gate locked: what is linked meanwhile is not sealed before the machine hears of this.
                    *names = fs.spool.outbox.names_of(file.ino);
                }
                fs.readiness.feed_held(event);
            }
            fs.handles.insert(file.fh, Handle::File(file.clone()));
            let opened = Ok(Opened {
                fh: file.fh,
                caching,
                reads_only: false,
            });
            match truncate {
                Some(caller) if fstat(&file.file).is_ok_and(|stat| stat.st_size > 0) => {
                    file.note_emptied(caller.tid);
                    let after = fs.clone();
                    Some(Box::new(move || {
                        let truncated = after.clone();
                        let op = resize(0, caller);
                        after.modify(&file.clone(), op, move |result| match result {
                            Ok(()) => done(opened),
                            Err(error) => {
                                truncated.release(file.fh);
                                done(Err(error));
                            }
                        });
                    }))
                }
                Some(_) | None => {
                    done(opened);
                    None
                }
            }
        });
    }

    fn opened(
        self: &Arc<Self>,
        file: Arc<OpenFile>,
        flags: i32,
        caller: Caller,
        done: impl FnOnce(Result<Opened, FsError>) + Send + 'static,
    ) {
        // A file without a name is never sent, so `ready` need not hear of it.
        let named = self.nodes.lock().place(file.node).is_ok();
        let event = match (&file.gate, &file.opened_as) {
            (Some(_), Some(path)) if named => Some(Event::Opened {
                ino: file.ino,
                path: path.clone(),
                names: Vec::new(),
                fh: file.fh,
            }),
            (Some(_), Some(_) | None) | (None, _) => None,
        };
        let truncate = Access::of(flags).truncates.then_some(caller);
        self.opened_with(file, flags, event, truncate, done);
    }

    /// Runs `op` with the gate locked: at once, or in the pool when the gate is busy. What `op` returns runs after
    /// the gate is open again.
    fn gated(
        self: &Arc<Self>,
        gate: &Arc<Gate>,
        op: impl FnOnce(&mut GateGuard<'_>) -> Option<Box<dyn FnOnce() + Send>> + Send + 'static,
    ) {
        if let Some(mut guard) = gate.try_lock() {
            let after = op(&mut guard);
            drop(guard);
            if let Some(after) = after {
                after();
            }
            return;
        }
        let gate = gate.clone();
        self.pool.submit(Box::new(move || {
            let mut guard = gate.lock();
            let after = op(&mut guard);
            drop(guard);
            if let Some(after) = after {
                after();
            }
        }));
    }

    /// The gate, if it is free and the bytes may change at once.
    fn enter<'a>(&self, gate: &'a Gate, path: &RelPath) -> Result<Option<GateGuard<'a>>, FsError> {
        let Some(mut guard) = gate.try_lock() else {
            return Ok(None);
        };
        Ok(self
            .spool
            .outbox
            .before_modify(&mut guard, path)?
            .then_some(guard))
    }

    /// The gate, waited for, with sealed bytes copied out. Not for FUSE loops.
    fn enter_blocking<'a>(
        &self,
        gate: &'a Gate,
        modify: &Modify,
    ) -> Result<GateGuard<'a>, FsError> {
        let mut guard = gate.lock();
        if !self.spool.outbox.before_modify(&mut guard, &modify.path)? {
            self.spool
                .copy_out(&mut guard, &modify.file.file, &modify.path)?;
        }
        Ok(guard)
    }

    /// The name to give the spool for a file: its present one, or the one it was opened by.
    fn modify_path(&self, file: &OpenFile) -> Result<RelPath, FsError> {
        let now = self
            .nodes
            .lock()
            .place(file.node)
            .and_then(|place| place.rel());
        now.or_else(|_nameless| file.opened_as.clone().ok_or(FsError::Stale))
    }

    /// Runs a modifying operation through the gate of its file.
    fn modify<T: 'static>(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        op: impl FnOnce(&Fs, &Modify, &mut GateGuard<'_>) -> Result<T, FsError> + Send + 'static,
        done: impl FnOnce(Result<T, FsError>) + Send + 'static,
    ) {
        let (gate, modify) = match (file.gate(), self.modify_path(file)) {
            (Ok(gate), Ok(path)) => (
                gate.clone(),
                Modify {
                    file: file.clone(),
                    path,
                },
            ),
            (Err(error), _) | (_, Err(error)) => return done(Err(error)),
        };
        match self.enter(&gate, &modify.path) {
            Ok(Some(mut guard)) => {
                let result = op(self, &modify, &mut guard);
                if result.is_err() {
                    self.spool.outbox.not_modified(&mut guard);
                }
                drop(guard);
                done(result);
            }
            Ok(None) => {
                let (fs, gate) = (self.clone(), gate.clone());
                self.pool.submit(Box::new(move || {
                    let result = fs.enter_blocking(&gate, &modify).and_then(|mut guard| {
                        let result = op(&fs, &modify, &mut guard);
                        if result.is_err() {
                            fs.spool.outbox.not_modified(&mut guard);
                        }
                        result
                    });
                    done(result);
                }));
            }
            Err(error) => done(Err(error)),
        }
    }

    /// Reads at `offset`, until `size` bytes or the end.
    pub(crate) fn read<R>(
        &self,
        fh: u64,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
        give: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, FsError> {
        match self.handles.any(fh)? {
            Handle::Generated(bytes) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let to = from.saturating_add(size as usize).min(bytes.len());
                Ok(give(&bytes[from..to]))
            }
            Handle::File(file) => {
                buffer.resize((size as usize).max(buffer.len()), 0);
                let mut filled = 0;
                while filled < size as usize {
                    match file
                        .file
                        .read_at(&mut buffer[filled..size as usize], offset + filled as u64)
                    {
                        Ok(0) => break,
                        Ok(n) => filled += n,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(give(&buffer[..filled]))
            }
            Handle::Directory(_) => Err(FsError::IsDirectory),
        }
    }

    /// Writes all of `data` at `offset`.
    pub(crate) fn write(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        data: &[u8],
        how: WriteHow,
        caller: Caller,
        done: impl FnOnce(Result<u32, FsError>) + Send + 'static,
    ) {
        let found = self.handles.file(fh).and_then(|file| {
            let path = self.modify_path(&file)?;
            Ok((file.gate()?.clone(), Modify { file, path }))
        });
        let (gate, modify) = match found {
            Ok(found) => found,
            Err(error) => return done(Err(error)),
        };
        let done = self.noting(&modify.file, Some(fh), done);
        if caller.tid != 0 {
            modify.file.note_writer(caller.tid);
        }
        match self.enter(&gate, &modify.path) {
            Ok(Some(mut guard)) => {
                let written = self.write_gated(&modify, &mut guard, offset, data, how);
                drop(guard);
                done(self.after_write(&gate, &modify, written));
            }
            Ok(None) => {
                let (fs, gate, data) = (self.clone(), gate.clone(), data.to_vec());
                self.pool.submit(Box::new(move || {
                    let written = fs.enter_blocking(&gate, &modify).and_then(|mut guard| {
                        fs.write_gated(&modify, &mut guard, offset, &data, how)
                    });
                    done(fs.after_write(&gate, &modify, written));
                }));
            }
            Err(error) => done(Err(error)),
        }
    }

    fn write_gated(
        &self,
        modify: &Modify,
        guard: &mut GateGuard<'_>,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Result<Written, FsError> {
        let file = &modify.file;
        let admitted = match self.admit_write(offset, data.len()) {
            Ok(admitted) => admitted,
            Err(error) => {
                self.spool.outbox.not_modified(guard);
                return Err(error);
            }
        };
        if admitted < data.len() {
            // The rest gets its error when the program tries it; one that does not try has not written what it meant.
            self.note_failed(file.ino, Some(file.fh), &FsError::TooLarge);
        }
        let data = &data[..admitted];
        let mut written = 0;
        let mut tail = false;
        let mut failed = None;
        while written < data.len() {
            match file
                .file
                .write_at(&data[written..], offset + written as u64)
            {
                Ok(0) => failed = Some(FsError::Os(Errno::IO)),
                Ok(n) => written += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => failed = Some(error.into()),
            }
            if failed.is_some() {
                break;
            }
        }
        if written > 0 {
            tail = guard.wrote(offset, written as u64);
            self.readiness.feed_held(Event::Wrote {
                ino: file.ino,
                fh: file.fh,
            });
            if how.kill_privileges {
                strip_privileges(&file.file)?;
            }
            if how.write_back {
                self.set_times.written_back(file.ino, &file.file)?;
            } else {
                self.set_times.over(file.ino);
            }
        }
        match failed {
            Some(error) if written == 0 => {
                self.spool.outbox.not_modified(guard);
                Err(error)
            }
            failed => {
                if let Some(error) = failed {
                    self.note_failed(file.ino, Some(file.fh), &error);
                }
                let bytes = u32::try_from(written).map_err(|_too_many| FsError::Invalid)?;
                Ok(Written { bytes, tail })
            }
        }
    }

    /// Lets the tail hasher follow, once the gate is open again.
    fn after_write(
        &self,
        gate: &Arc<Gate>,
        modify: &Modify,
        written: Result<Written, FsError>,
    ) -> Result<u32, FsError> {
        let written = written?;
        if written.tail {
            match modify.file.file.try_clone() {
                Ok(file) => self.spool.outbox.tail(gate, file),
                Err(error) => tracing::debug!(%error, "no descriptor for the tail hasher"),
            }
        }
        Ok(written.bytes)
    }

    /// One descriptor of a handle was closed. The caller still exists, so this is where a killed writer is seen.
    pub(crate) fn flush(&self, fh: u64, caller: Caller) -> Result<(), FsError> {
        if let Handle::File(file) = self.handles.any(fh)?
            && file.writes()
            && file.is_torn_by(caller.tid)
        {
            self.readiness.feed(Event::Flushed {
                ino: file.ino,
                fh,
                torn: true,
            });
        }
        Ok(())
    }

    /// The last descriptor of a handle is gone.
    pub(crate) fn release(self: &Arc<Self>, fh: u64) {
        let Some(Handle::File(file)) = self.handles.remove(fh) else {
            return;
        };
        let Some(gate) = file.gate.clone() else {
            let unneeded = self.nodes.lock().released(file.node, &file);
            drop(unneeded);
            return;
        };
        let fs = self.clone();
        self.gated(&gate, move |guard| {
            guard.remove_writer();
            fs.readiness
                .feed_held(Event::Released { ino: file.ino, fh });
            let unneeded = fs.nodes.lock().released(file.node, &file);
            drop(unneeded);
            if guard.writers() == 0 {
                fs.set_times.over(file.ino);
            }
            None
        });
    }

    /// Makes bytes (and with `!data_only` attributes) durable; in the pool, since it waits for the disk.
    pub(crate) fn fsync(
        self: &Arc<Self>,
        fh: u64,
        data_only: bool,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        match self.handles.any(fh) {
            Ok(Handle::File(file)) => {
                // All pages that were changed before this were written back before it was asked for.
                self.set_times.over(file.ino);
                let done = self.noting(&file, Some(fh), done);
                self.pool.submit(Box::new(move || {
                    let synced = if data_only {
                        file.file.sync_data()
                    } else {
                        file.file.sync_all()
                    };
                    done(synced.map_err(FsError::from));
                }));
            }
            Ok(Handle::Generated(_) | Handle::Directory(_)) => done(Ok(())),
            Err(error) => done(Err(error)),
        }
    }

    /// Allocates, punches, zeroes or shifts a range, as far as the backing file system knows the mode.
    pub(crate) fn fallocate(
        self: &Arc<Self>,
        fh: u64,
        offset: u64,
        length: u64,
        mode: i32,
        caller: Caller,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        let file = match self.handles.file(fh) {
            Ok(file) => file,
            Err(error) => return done(Err(error)),
        };
        let op = move |fs: &Fs, modify: &Modify, guard: &mut GateGuard<'_>| {
            let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
            let size = size_of(&modify.file)?;
            fs.admit_range(flags, offset, length, size)?;
            if let Err(error) = rustix::fs::fallocate(&modify.file.file, flags, offset, length) {
                // It may have changed a part before it failed: what was hashed so far is not to be believed, and the
                // file is looked at again at its last close.
                if matches!(
                    error,
                    Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::INTR | Errno::FBIG
                ) {
                    fs.reshaped(modify, guard, Some(fh), caller)?;
                }
                return Err(error.into());
            }
            fs.reshaped(modify, guard, Some(fh), caller)
        };
        let done = self.noting(&file, Some(fh), done);
        self.modify(&file, op, done);
    }

    /// Finds the next data or hole.
    pub(crate) fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64, FsError> {
        let file = self.handles.file(fh)?;
        let offset = u64::try_from(offset).map_err(|_negative| FsError::Os(Errno::NXIO))?;
        let to = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _kernel_does_the_rest => return Err(FsError::Invalid),
        };
        let found = rustix::fs::seek(&file.file, to)?;
        i64::try_from(found).map_err(|_too_large| FsError::Invalid)
    }

    /// The end of every change of size: told to the gate and to `ready`, privileges taken away.
    fn reshaped(
        &self,
        modify: &Modify,
        guard: &mut GateGuard<'_>,
        fh: Option<u64>,
        caller: Caller,
    ) -> Result<(), FsError> {
        guard.reshaped();
        let file = &modify.file;
        self.set_times.over(file.ino);
        let size = size_of(file)?;
        self.readiness.feed_held(Event::Truncated {
            ino: file.ino,
            path: modify.path.clone(),
            names: match fh {
                Some(_) => Vec::new(),
                None => self.spool.outbox.names_of(file.ino),
            },
            fh,
            size,
        });
        // fuser hides the kernel's request to do so; it is made for every caller but root.
        if caller.uid != 0 {
            strip_privileges(&file.file)?;
        }
        Ok(())
    }

    /// Changes attributes; a new size goes through the gate.
    pub(crate) fn setattr(
        self: &Arc<Self>,
        id: NodeId,
        set: SetAttr,
        caller: Caller,
        done: impl FnOnce(Result<Attr, FsError>) + Send + 'static,
    ) {
        let Some(size) = set.size else {
            return done(self.set_others(id, &set));
        };
        let file = match self.file_to_resize(id, &set, caller.tid) {
            Ok(file) => file,
            Err(error) => return done(Err(error)),
        };
        let through = set.fh.filter(|fh| *fh == file.fh);
        let op = move |fs: &Fs, modify: &Modify, guard: &mut GateGuard<'_>| {
            fs.admit_size(size, size_of(&modify.file)?)?;
            rustix::fs::ftruncate(&modify.file.file, size)?;
            fs.reshaped(modify, guard, through, caller)?;
            fs.apply(&Target::File(&modify.file.file), false, &set)?;
            Ok(fs.attr(id, &fstat(&modify.file.file)?))
        };
        let done = self.noting(&file, through, done);
        self.modify(&file, op, done);
    }

    /// The open handle to truncate through, or a short-lived one that no user holds.
    fn file_to_resize(
        &self,
        id: NodeId,
        set: &SetAttr,
        tid: u32,
    ) -> Result<Arc<OpenFile>, FsError> {
        if let Some(fh) = set.fh
            && let Ok(file) = self.handles.file(fh)
            && file.writes()
        {
            return Ok(file);
        }
        if id == NodeId::OUTBOX {
            return Err(FsError::IsDirectory);
        }
        let access = Access {
            writes: true,
            reads: true,
            truncates: false,
            direct: false,
        };
        self.open_backing(id, access, tid)?.ok_or(FsError::ReadOnly)
    }
}

fn size_of(file: &OpenFile) -> Result<u64, FsError> {
    Ok(u64::try_from(fstat(&file.file)?.st_size).unwrap_or(0))
}

/// Changes the length of an open file.
fn resize(
    size: u64,
    caller: Caller,
) -> impl FnOnce(&Fs, &Modify, &mut GateGuard<'_>) -> Result<(), FsError> + Send + 'static {
    move |fs, modify, guard| {
        rustix::fs::ftruncate(&modify.file.file, size)?;
        fs.reshaped(modify, guard, Some(modify.file.fh), caller)
    }
}

/// Opens for reading and writing even where the user only writes: the sealer and the tail hasher read what is written.
fn open_at(root: &OwnedFd, place: &Place, access: Access) -> Result<OwnedFd, FsError> {
    let open = |flags| beneath(root, place, flags | OFlags::NONBLOCK);
    if !access.writes && !access.truncates {
        return open(OFlags::RDONLY);
    }
    match open(OFlags::RDWR) {
        Err(FsError::Os(Errno::ACCESS)) => open(OFlags::WRONLY),
        other => other,
    }
}

/// The spool renames and removes inbox names without the kernel, which asked for a file that it saw there: told ESTALE, it
/// looks the name up again and finds what there is.
pub(crate) fn renamed_behind_us(area: Area, error: FsError) -> FsError {
    match error {
        FsError::NotFound | FsError::Os(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
            if area == Area::Inbox =>
        {
            FsError::Stale
        }
        other => other,
    }
}

/// Opens a file again that has no name any more.
fn reopen(file: &File, access: Access) -> Result<OwnedFd, FsError> {
    let flags = if access.writes || access.truncates {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    Ok(rustix::fs::open(
        by_descriptor(file),
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn by_descriptor(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Takes suid away, and sgid from what the group may execute, as a write by an ordinary user does everywhere.
fn strip_privileges(file: &File) -> Result<(), FsError> {
    let mode = fstat(file)?.st_mode & 0o7777;
    let mut less = mode & !SUID;
    if mode & GROUP_EXEC != 0 {
        less &= !SGID;
    }
    if less != mode {
        fchmod(file, Mode::from_raw_mode(less))?;
    }
    Ok(())
}
