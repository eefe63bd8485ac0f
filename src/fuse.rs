//! The adapter between the kernel's FUSE requests and [`Fs`]: converts, calls, replies once. No decisions here.
//!
//! # Invariants
//! 1. Every operation runs inside [`guarded`]: a panic ends one request with EIO (fuser answers EIO for a reply that is
//!    dropped), never the mount.
//! 2. Every errno leaves through [`failed`], which logs it.
//!
//! # Threads
//! fuser's event loops call in parallel. Replies of operations that may block are sent from the pool of [`Fs`].

mod backing;
mod convert;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};

use self::backing::{Backings, backing_id};
use self::convert::{at, caller, device, file_attr, file_type, id, set_time};
use crate::fs::{Caching, Entry, Fs, FsError, Opened, SetAttr, WriteHow};

/// What we ask of the kernel, each only if it offers it. Nothing that fuser 0.18 cannot honour.
const CAPABILITIES: [InitFlags; 6] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
];

/// The largest WRITE: what the kernel grants at its default of 256 pages per request.
const MAX_WRITE: u32 = 1024 * 1024;

/// Fewer loops than this could leave a request unserved while one waits for the kernel.
const MIN_THREADS: usize = 2;

/// Node numbers are never reused while the kernel knows them.
const GENERATION: Generation = Generation(0);

/// A served mount.
#[derive(Debug)]
pub(crate) struct Serving {
    session: BackgroundSession,
    #[cfg(test)]
    backings: Arc<Backings>,
}

impl Serving {
    /// Blocks until the mount is gone (unmounted from outside, or by us) and every loop has ended.
    pub(crate) fn join(self) -> io::Result<()> {
        ended(self.session.join())
    }
}

/// The end of a mount while a loop takes a request out of the queue (the last user of a mount that was detached closes a
/// file) is an aborted read, and no fault.
fn ended(session: io::Result<()>) -> io::Result<()> {
    match session {
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        session => session,
    }
}

/// Serves `fs` on an already mounted `/dev/fuse` descriptor with `threads` loops, in the background. `all_users` must
/// be true exactly when the mount has `allow_other`.
pub(crate) fn serve(
    fs: Arc<Fs>,
    fd: OwnedFd,
    threads: usize,
    all_users: bool,
) -> io::Result<Serving> {
    let mut config = Config::default();
    config.acl = if all_users {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(threads.max(MIN_THREADS));
    let acl = config.acl;
    let backings = Arc::new(Backings::default());
    let adapter = Adapter {
        fs: fs.clone(),
        backings: backings.clone(),
    };
    let session = Session::from_fd(adapter, fd, acl, config)?;
    let notifier = session.notifier();
    fs.set_invalidator(Arc::new(move |parent, name| {
        if let Err(error) = notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name)) {
            tracing::debug!(%error, "the kernel did not take a notice of a replaced name");
        }
    }))?;
    Ok(Serving {
        session: session.spawn()?,
        #[cfg(test)]
        backings,
    })
}

thread_local! {
    /// One read buffer per event loop, so that a READ allocates nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Adapter {
    fs: Arc<Fs>,
    backings: Arc<Backings>,
}

/// Runs one operation. If it panics, its reply is dropped on the way, which answers EIO.
fn guarded(op: &'static str, node: INodeNo, f: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(f)).is_err() {
        tracing::error!(
            op,
            node = node.0,
            "a file operation panicked; its caller got EIO"
        );
    }
}

/// The one place where an error becomes an errno for the kernel.
fn failed(op: &'static str, node: INodeNo, error: &FsError) -> Errno {
    let errno = error.errno();
    if errno == libc::EIO {
        tracing::warn!(op, node = node.0, errno, %error, "failed");
    } else {
        tracing::debug!(op, node = node.0, errno, %error, "failed");
    }
    Errno::from_i32(errno)
}

fn open_flags(opened: &Opened, backings: &Backings) -> FopenFlags {
    let caching = match opened.caching {
        Caching::Past if backings.coherent() => FopenFlags::FOPEN_DIRECT_IO,
        Caching::Ordinary | Caching::Past => FopenFlags::empty(),
        Caching::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        Caching::None => FopenFlags::FOPEN_DIRECT_IO,
    };
    caching | flush_flag(opened)
}

/// Saves the round trip of a FLUSH where there is nothing to flush.
fn flush_flag(opened: &Opened) -> FopenFlags {
    if opened.reads_only {
        FopenFlags::FOPEN_NOFLUSH
    } else {
        FopenFlags::empty()
    }
}

/// Answers an open, by which the kernel learns whether to read the file by itself.
fn reply_open(fs: &Arc<Fs>, backings: &Backings, node: INodeNo, opened: &Opened, reply: ReplyOpen) {
    let fh = FileHandle(opened.fh);
    let settled = backings
        .offered()
        .then(|| fs.settle_reading(opened.fh, |file| backings.register(&reply, file)))
        .flatten();
    match settled.as_ref().map(backing_id) {
        None => reply.opened(fh, open_flags(opened, backings)),
        // With any other flag than these the kernel would answer EIO.
        Some(Some(id)) => reply.opened_passthrough(fh, flush_flag(opened), id),
        Some(None) => {
            fs.release(opened.fh);
            tracing::error!(
                node = node.0,
                "a backing file was registered by somebody else"
            );
            reply.error(Errno::EIO);
        }
    }
}

/// Answers an operation that gives an entry.
fn reply_entry(op: &'static str, node: INodeNo, result: Result<Entry, FsError>, reply: ReplyEntry) {
    match result {
        Ok(entry) => reply.entry(&entry.ttl, &file_attr(&entry.attr), GENERATION),
        Err(error) => reply.error(failed(op, node, &error)),
    }
}

/// Answers an operation that gives nothing.
fn reply_empty(op: &'static str, node: INodeNo, result: Result<(), FsError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(failed(op, node, &error)),
    }
}

/// Answers an operation that gives an attribute value or a list, of which the caller takes at most `size` bytes.
fn reply_xattr(
    op: &'static str,
    node: INodeNo,
    result: Result<Vec<u8>, FsError>,
    size: u32,
    reply: ReplyXattr,
) {
    let checked = result.and_then(|value| match u32::try_from(value.len()) {
        Ok(len) if size == 0 || len <= size => Ok((value, len)),
        Ok(_) | Err(_) => Err(FsError::Range),
    });
    match checked {
        Ok((_, len)) if size == 0 => reply.size(len),
        Ok((value, _)) => reply.data(&value),
        Err(error) => reply.error(failed(op, node, &error)),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "not offered by this kernel");
            }
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            tracing::debug!(nearest, "the largest write was not accepted");
        }
        self.backings.negotiate(config);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded("lookup", parent, || {
            let found = self.fs.lookup_for(caller(req), id(parent), name.as_bytes());
            reply_entry("lookup", parent, found, reply);
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        guarded("forget", ino, || self.fs.forget(id(ino), nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        guarded("getattr", ino, || {
            match self.fs.getattr(id(ino), fh.map(|fh| fh.0)) {
                Ok(attr) => reply.attr(&self.fs.ttl(id(ino)), &file_attr(&attr)),
                Err(error) => reply.error(failed("getattr", ino, &error)),
            }
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        guarded("setattr", ino, || {
            let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
            let set = SetAttr {
                mode,
                uid,
                gid,
                size,
                atime,
                mtime,
                fh: fh.map(|fh| fh.0),
            };
            let ttl = self.fs.ttl(id(ino));
            self.fs
                .setattr(id(ino), set, caller(req), move |changed| match changed {
                    Ok(attr) => reply.attr(&ttl, &file_attr(&attr)),
                    Err(error) => reply.error(failed("setattr", ino, &error)),
                });
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        guarded("mknod", parent, || {
            let (mode, device) = (mode & !umask, device(rdev));
            let made = self.fs.mknod(at(parent, name), mode, device, caller(req));
            reply_entry("mknod", parent, made, reply);
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        guarded("mkdir", parent, || {
            let made = self
                .fs
                .mkdir_for(caller(req), at(parent, name), mode & !umask);
            reply_entry("mkdir", parent, made, reply);
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("unlink", parent, || {
            self.fs.unlink(at(parent, name), move |gone| {
                reply_empty("unlink", parent, gone, reply);
            });
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("rmdir", parent, || {
            self.fs.rmdir(at(parent, name), move |gone| {
                reply_empty("rmdir", parent, gone, reply);
            });
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        guarded("symlink", parent, || {
            let target = target.as_os_str().as_bytes();
            let made = self.fs.symlink(at(parent, link_name), target, caller(req));
            reply_entry("symlink", parent, made, reply);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        guarded("readlink", ino, || match self.fs.readlink(id(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(failed("readlink", ino, &error)),
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guarded("rename", parent, || {
            let done = move |moved| reply_empty("rename", parent, moved, reply);
            let (from, to) = (at(parent, name), at(newparent, newname));
            self.fs
                .rename_for(caller(req), from, to, flags.bits(), done);
        });
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        guarded("link", ino, || {
            let linked = self.fs.link(id(ino), at(newparent, newname));
            reply_entry("link", ino, linked, reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded("open", ino, || {
            let (fs, backings) = (self.fs.clone(), self.backings.clone());
            self.fs
                .open(id(ino), flags.0, caller(req), move |opened| match opened {
                    Ok(opened) => reply_open(&fs, &backings, ino, &opened, reply),
                    Err(error) => reply.error(failed("open", ino, &error)),
                });
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        guarded("create", parent, || {
            let backings = self.backings.clone();
            let done = move |made: Result<(Entry, Opened), FsError>| match made {
                Ok((entry, opened)) => {
                    let attr = file_attr(&entry.attr);
                    reply.created(
                        &entry.ttl,
                        &attr,
                        GENERATION,
                        FileHandle(opened.fh),
                        open_flags(&opened, &backings),
                    );
                }
                Err(error) => reply.error(failed("create", parent, &error)),
            };
            self.fs
                .create(at(parent, name), mode & !umask, flags, caller(req), done);
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded("read", ino, || {
            let mut reply = Some(reply);
            let read = BUFFER.with_borrow_mut(|buffer| {
                self.fs.read(fh.0, offset, size, buffer, |bytes| {
                    if let Some(reply) = reply.take() {
                        reply.data(bytes);
                    }
                })
            });
            if let (Err(error), Some(reply)) = (read, reply) {
                reply.error(failed("read", ino, &error));
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded("write", ino, || {
            let how = WriteHow {
                kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
                write_back: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            };
            self.fs.write(
                fh.0,
                offset,
                data,
                how,
                caller(req),
                move |written| match written {
                    Ok(written) => reply.written(written),
                    Err(error) => reply.error(failed("write", ino, &error)),
                },
            );
        });
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        guarded("flush", ino, || {
            reply_empty("flush", ino, self.fs.flush(fh.0, caller(req)), reply);
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        guarded("release", ino, || {
            self.fs.release(fh.0);
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        guarded("fsync", ino, || {
            self.fs.fsync(fh.0, datasync, move |synced| {
                reply_empty("fsync", ino, synced, reply);
            });
        });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        guarded("opendir", ino, || match self.fs.opendir(id(ino)) {
            Ok(opened) => reply.opened(FileHandle(opened.fh), FopenFlags::empty()),
            Err(error) => reply.error(failed("opendir", ino, &error)),
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        guarded("readdir", ino, || {
            let listed = self.fs.readdir(fh.0, offset, |item| {
                reply.add(
                    INodeNo(item.number),
                    item.offset,
                    file_type(item.kind),
                    OsStr::from_bytes(&item.name),
                )
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("readdir", ino, &error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        guarded("readdirplus", ino, || {
            let listed = self.fs.readdirplus(fh.0, offset, |item, entry| {
                let (name, attr) = (OsStr::from_bytes(&item.name), file_attr(&entry.attr));
                reply.add(attr.ino, item.offset, name, &entry.ttl, &attr, GENERATION)
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(failed("readdirplus", ino, &error)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        guarded("releasedir", ino, || {
            self.fs.releasedir(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        guarded("fsyncdir", ino, || {
            self.fs.fsyncdir(id(ino), move |synced| {
                reply_empty("fsyncdir", ino, synced, reply);
            });
        });
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        guarded("statfs", ino, || match self.fs.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free,
                s.available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.fragment_size,
            ),
            Err(error) => reply.error(failed("statfs", ino, &error)),
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        guarded("setxattr", ino, || {
            reply_empty(
                "setxattr",
                ino,
                self.fs.setxattr(id(ino), name.as_bytes(), value, flags),
                reply,
            );
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        guarded("getxattr", ino, || {
            reply_xattr(
                "getxattr",
                ino,
                self.fs.getxattr(id(ino), name.as_bytes()),
                size,
                reply,
            );
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", ino, || {
            reply_xattr("listxattr", ino, self.fs.listxattr(id(ino)), size, reply);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("removexattr", ino, || {
            reply_empty(
                "removexattr",
                ino,
                self.fs.removexattr(id(ino), name.as_bytes()),
                reply,
            );
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        guarded("fallocate", ino, || {
            let done = move |allocated| reply_empty("fallocate", ino, allocated, reply);
            self.fs
                .fallocate(fh.0, offset, length, mode, caller(req), done);
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded("lseek", ino, || match self.fs.lseek(fh.0, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(failed("lseek", ino, &error)),
        });
    }

    /// None is known here. Programs ask by it whether a file is a terminal; the default of fuser warns each time.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}

#[cfg(test)]
mod tests;
