//! The file system the user sees, on our own types: `outbox/`, `inbox/` and the generated `.meshbox/`.
//!
//! `fuse` converts requests and calls the methods of [`Fs`]; nothing here knows FUSE, so everything can be tested
//! without a mount. `outbox/` is a plain backing tree on which the user's system calls are repeated, with two additions:
//! every modifying operation passes the write gate of its inode (sealed bytes are copied out first), and every event is
//! told to the state machine that decides when a file is ready. `inbox/` is the spool's: here it is read, and names
//! are removed or moved out, through the spool.
//!
//! # Invariants
//! 1. A path is joined from names and used under the tree lock, which everything that changes outbox names holds for
//!    writing: no ancestor moves under a running system call. Nothing that may wait is done under it.
//! 2. Bytes or size of an outbox inode change only with its gate locked, after `before_modify` said yes or the old
//!    bytes were copied out. `ready` hears of it before the gate opens again.
//! 3. A FUSE loop never waits for a gate, the hasher or the journal: such operations go to the blocking pool with
//!    their reply.
//! 4. Every way to a name of the inbox goes through [`Fs::root`], which has the name's rename done if that is still to come.
//! 5. Lock order: tree, switch of the inbox, gate, readiness; node table and handle table are innermost and never held around a call.
//!
//! # Crash behaviour
//! The spool's markers say what was open or closed; [`Fs::new`] feeds what recovery found to the state machine.
//!
//! # Threads
//! FUSE loops call in. `fs-blocking-N` run deferred operations, `ready-timer` carries out what the state machine
//! decides, `fs-notifier` tells the kernel of replaced inbox names, `fs-announcer` has arrivals announced. [`Fs::stop`] joins them all.

mod announce;
mod arrivals;
mod attr;
mod beneath;
mod bytes;
mod error;
mod generated;
mod handle;
mod ignored;
mod inbox;
mod inode;
mod kind;
mod limits;
mod listing;
mod modes;
mod names;
mod node;
mod notices;
mod pool;
mod readiness;
mod reading;
mod renaming;
mod sending;
mod settle;
mod special;
mod state;
mod status;
mod switch;
#[cfg(test)]
pub(crate) mod tests;
mod times;
mod torn;
mod xattr;

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{CWD, Mode, OFlags, Stat, openat};

pub(crate) use self::arrivals::{Herald, Step};
pub(crate) use self::attr::{Attr, Caching, Caller, Entry, Opened, SetAttr, SetTime, Space, Time};
pub(crate) use self::bytes::WriteHow;
pub(crate) use self::error::FsError;
pub(crate) use self::generated::StatusFiles;
pub(crate) use self::ignored::found::Ignored;
pub(crate) use self::kind::{Device, Kind};
pub(crate) use self::node::{Named, NodeId};
pub(crate) use self::reading::Registration;

use self::arrivals::Announcements;
use self::attr::{OUTBOX_TTL, attr_of, backing_of, kind_of, links};
use self::handle::Handles;
use self::ignored::found::LastLook;
use self::inode::Nodes;
use self::listing::order::ListingOrder;
use self::node::{Area, Place};
use self::notices::Notices;
use self::pool::Pool;
use self::readiness::Readiness;
use self::switch::Switch;
use self::times::SetTimes;
use crate::ready::{Event, IgnoreList, Overview, Settings};
use crate::spool::beneath::At;
use crate::spool::{Dress, RecoveredFile, Spool};

/// What the file system is told at start.
#[derive(Clone, Debug)]
pub(crate) struct FsConfig {
    /// Quiet time after the last close of an ordinary writer before a file is sent.
    pub settle: Duration,
    /// Whether the daemon may give files to their writer's uid and gid (root only).
    pub chown_to_writer: bool,
    /// Patterns to add to the default ignore list.
    pub ignore_extra: Vec<String>,
    /// Patterns to take off the default ignore list.
    pub ignore_except: Vec<String>,
    /// Modes and owner of what is shown.
    pub dress: Dress,
    /// Most bytes of one file.
    pub max_file_bytes: Option<u64>,
}

/// The file system, on our own types.
pub(crate) struct Fs {
    spool: Arc<Spool>,
    config: FsConfig,
    /// That of the configuration, or what took its place; the largest number is no limit.
    max_file_bytes: AtomicU64,
    status: Arc<dyn StatusFiles>,
    outbox: OwnedFd,
    inbox: OwnedFd,
    /// Held for writing around every change of an outbox name, for reading around every use of a path.
    tree: RwLock<()>,
    nodes: Mutex<Nodes>,
    handles: Handles,
    pool: Pool,
    readiness: Arc<Readiness>,
    ignore: IgnoreList,
    last_look: Mutex<LastLook>,
    notices: Notices,
    switch: Switch,
    announcements: Announcements,
    listing: ListingOrder,
    set_times: SetTimes,
    timer: Mutex<Option<JoinHandle<()>>>,
    owner: (u32, u32),
    started: Time,
}

impl fmt::Debug for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// Builds the tree over the spool, feeds `ready` what recovery found, and starts the timer and blocking threads.
    pub(crate) fn new(
        spool: Arc<Spool>,
        config: FsConfig,
        status: Arc<dyn StatusFiles>,
    ) -> std::io::Result<Arc<Self>> {
        let owner = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        Self::over(spool, config, status, owner)
    }

    /// [`Self::new`] as the daemon of `owner` (user and group).
    fn over(
        spool: Arc<Spool>,
        config: FsConfig,
        status: Arc<dyn StatusFiles>,
        owner: (u32, u32),
    ) -> std::io::Result<Arc<Self>> {
        let ignore = IgnoreList::new(&config.ignore_extra, &config.ignore_except)
            .map_err(|bad| std::io::Error::new(std::io::ErrorKind::InvalidInput, bad))?;
        let settings = Settings::new(config.settle, ignore.clone());
        let unsent = ignore.clone();
        spool
            .outbox
            .set_unsent(move |path| unsent.matches(path).is_some());
        let readiness = Arc::new(Readiness::new(settings, spool.clone()));
        let outbox = open_root(&spool.layout().outbox())?;
        let inbox = open_root(&spool.layout().inbox())?;
        let nodes = Nodes::new(
            rustix::fs::fstat(&outbox)?.st_ino,
            rustix::fs::fstat(&inbox)?.st_ino,
        );
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let fs = Arc::new(Self {
            max_file_bytes: AtomicU64::new(config.max_file_bytes.unwrap_or(u64::MAX)),
            config,
            status,
            outbox,
            inbox,
            tree: RwLock::new(()),
            nodes: Mutex::new(nodes),
            handles: Handles::new(),
            pool: Pool::start()?,
            readiness: readiness.clone(),
            ignore,
            last_look: Mutex::default(),
            notices: Notices::new(),
            switch: Switch::default(),
            announcements: Announcements::new(),
            listing: ListingOrder::default(),
            set_times: SetTimes::default(),
            timer: Mutex::new(None),
            owner,
            started: Time {
                secs: since_1970.as_secs() as i64,
                nanos: since_1970.subsec_nanos(),
            },
            spool,
        });
        for file in fs.spool.outbox.recovered() {
            readiness.feed_found(Event::Recovered {
                ino: file.ino,
                path: file.path,
                incomplete: file.incomplete,
            });
        }
        for tree in fs.spool.outbox.recovered_trees() {
            let file = |file: RecoveredFile| (file.ino, file.path, file.incomplete);
            readiness.feed_found(Event::TreeRecovered {
                tree: tree.tree,
                root: tree.root,
                files: tree.files.into_iter().map(file).collect(),
                directories: tree.directories,
            });
        }
        fs.spool.observe_inbox(fs.observer());
        let weak = Arc::downgrade(&fs);
        let timer = thread::Builder::new()
            .name("ready-timer".into())
            .spawn(move || {
                readiness.run(|action| {
                    if let Some(fs) = weak.upgrade() {
                        fs.carry_out(action);
                    }
                });
            })?;
        *fs.timer.lock() = Some(timer);
        Ok(fs)
    }

    /// Returns when the lock of the names has been free for a moment.
    pub(crate) fn pass_through(&self) {
        drop(self.tree.write());
    }

    /// The mount is gone, and with it all its users: whatever is still open here was closed by them. The kernel tells of
    /// a close afterwards, and says nothing any more once the mount is gone.
    pub(crate) fn release_all(self: &Arc<Self>) {
        for fh in self.handles.numbers() {
            self.release(fh);
        }
    }

    /// What of the outbox is not sealed, with at most `most` names.
    pub(crate) fn overview(&self, most: usize) -> Overview {
        self.readiness.overview(most)
    }

    /// Why a file is held back, if a write to it failed.
    pub(crate) fn failure(&self, ino: u64) -> Option<String> {
        self.readiness.failure(ino)
    }

    /// Ends its threads; files that are only settling are left to their `closed` mark.
    pub(crate) fn stop(&self) {
        self.announcements.stop();
        self.pool.stop();
        self.readiness.stop();
        if let Some(timer) = self.timer.lock().take()
            && timer.join().is_err()
        {
            tracing::error!("the ready-timer thread panicked");
        }
        self.notices.stop();
    }

    /// The root of the tree that a place is in. What is given at that place of the inbox is on the disk by then.
    fn root(&self, place: &Place) -> Result<&OwnedFd, FsError> {
        match place.area {
            Area::Outbox => Ok(&self.outbox),
            Area::Inbox => {
                let given = self.spool.inbox().perform(&place.path);
                given.map_err(beneath::moved)?;
                Ok(&self.inbox)
            }
        }
    }

    /// Where a node is. The answer holds as long as the caller holds the tree lock.
    fn place(&self, id: NodeId) -> Result<Place, FsError> {
        self.nodes.lock().place(id)
    }

    /// A place in the outbox to change something at; elsewhere everything is read-only.
    fn outbox_place(&self, parent: NodeId, name: &[u8]) -> Result<Place, FsError> {
        if generated::is_generated(parent) {
            return Err(FsError::ReadOnly);
        }
        let place = self.place(parent)?;
        match place.area {
            Area::Outbox => place.child(name),
            Area::Inbox => Err(FsError::ReadOnly),
        }
    }

    /// A place for system calls: the directory, reached without resolving any link, and the name in it.
    fn at(&self, place: &Place) -> Result<At<'_>, FsError> {
        let root = self.root(place)?.as_fd();
        At::find(root, &place.path, PathBuf::new()).map_err(beneath::moved)
    }

    /// What is at a place; what cannot travel has no business in the inbox, and is not shown there.
    fn stat_at(&self, place: &Place) -> Result<Stat, FsError> {
        let stat = self.at(place)?.stat()?;
        match kind_of(&stat) {
            Some(kind) if kind.travels() || place.area == Area::Outbox => Ok(stat),
            Some(Kind::Symlink) if self.stays_at(place, &place.rel()?)? => Ok(stat),
            Some(_) | None => Err(FsError::NotFound),
        }
    }

    /// The present state of a node: by its name, or by an open handle when the name is gone or shows another file.
    fn stat_node(&self, id: NodeId) -> Result<Stat, FsError> {
        let (ino, place) = {
            let nodes = self.nodes.lock();
            (nodes.backing_ino(id)?, nodes.place(id))
        };
        let by_name = place.and_then(|place| self.stat_at(&place));
        match by_name {
            Ok(stat) if stat.st_ino == ino => Ok(stat),
            Ok(_) | Err(_) => {
                let nodes = self.nodes.lock();
                let (open, remains) = (nodes.any_open(id), nodes.remains(id));
                drop(nodes);
                match (open, remains) {
                    (Some(open), _) => Ok(rustix::fs::fstat(&open.file)?),
                    (None, Some(fd)) => Ok(rustix::fs::fstat(&fd)?),
                    (None, None) => Err(FsError::Stale),
                }
            }
        }
    }

    fn attr(&self, id: NodeId, stat: &Stat) -> Attr {
        let nlink = links(stat);
        let visible = match kind_of(stat) {
            Some(Kind::File) if nlink > 1 => self.spool.outbox.visible_links(stat.st_ino, nlink),
            Some(
                Kind::File
                | Kind::Directory
                | Kind::Symlink
                | Kind::Fifo
                | Kind::Socket
                | Kind::CharDevice
                | Kind::BlockDevice,
            )
            | None => nlink,
        };
        let not_given = self.bits_not_given(id, stat);
        let mut attr = attr_of(id, stat, visible);
        attr.perm &= !(not_given as u16);
        attr
    }

    /// Makes known to the kernel what was found at a name.
    fn entry(
        &self,
        parent: NodeId,
        name: &[u8],
        area: Area,
        stat: &Stat,
    ) -> Result<Entry, FsError> {
        let id = self
            .nodes
            .lock()
            .found(parent, name, backing_of(area, stat))?;
        let ttl = match area {
            Area::Outbox => OUTBOX_TTL,
            Area::Inbox => self.switch.ttl(),
        };
        Ok(Entry {
            attr: self.attr(id, stat),
            ttl,
        })
    }

    /// Looks up a name.
    pub(crate) fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry, FsError> {
        if generated::is_generated(parent) {
            return self.status_lookup(parent, name);
        }
        let _tree = self.tree.read();
        let place = self.place(parent)?.child(name)?;
        let _look = (place.area == Area::Inbox).then(|| self.switch.look());
        let stat = self.stat_at(&place)?;
        let mut entry = self.entry(parent, name, place.area, &stat)?;
        if place.area == Area::Inbox && self.announcements.covers(&place.path) {
            entry.ttl = Duration::ZERO;
        }
        Ok(entry)
    }

    /// The kernel drops `count` lookups of a node.
    pub(crate) fn forget(&self, id: NodeId, count: u64) {
        self.nodes.lock().forget(id, count);
    }

    /// Attributes of a node, through a handle if one is given.
    pub(crate) fn getattr(&self, id: NodeId, fh: Option<u64>) -> Result<Attr, FsError> {
        if generated::is_generated(id) {
            return self.status_attr(id);
        }
        if let Some(file) = fh.and_then(|fh| self.handles.file(fh).ok()) {
            return Ok(self.attr(id, &rustix::fs::fstat(&file.file)?));
        }
        let _tree = self.tree.read();
        Ok(self.attr(id, &self.stat_node(id)?))
    }

    /// How long the attributes of a node may be believed.
    pub(crate) fn ttl(&self, id: NodeId) -> Duration {
        // Root never changes, and the kernel asks for it on the way to every name.
        if generated::is_generated(id) && id != NodeId::ROOT {
            attr::STATUS_TTL
        } else {
            OUTBOX_TTL
        }
    }

    /// Free space: that of the spool's file system, less what is kept free. What is kept for others is used, so no quota
    /// makes it less for a program that writes.
    pub(crate) fn statfs(&self) -> Result<Space, FsError> {
        let stat = rustix::fs::fstatvfs(&self.outbox)?;
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let kept = self.spool.content.min_free().div_ceil(stat.f_frsize.max(1));
        Ok(Space {
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail.saturating_sub(kept),
            files: stat.f_files,
            files_free: stat.f_ffree,
            block_size: small(stat.f_bsize),
            fragment_size: small(stat.f_frsize),
            name_max: 255,
        })
    }
}

fn open_root(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}
