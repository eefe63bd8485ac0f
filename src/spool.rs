//! The spool: all durable state, and every fsync and rename of it.
//!
//! `fs` and `mesh` meet here and nowhere else. The disk is the queue; [`Doorbell`] only says that it is worth a look.
//! This file is the front door: the types and calls the rooms above use. The work is in the parts.

mod background;
mod content;
mod custody;
mod decision;
mod directories;
mod doorbell;
mod dress;
mod durable;
mod group;
mod inbox;
mod keys;
mod layout;
mod ledger;
mod outbox;
mod private;
#[cfg(test)]
mod probe;
mod recover;
mod shown;
mod start;
mod symlinks;
mod tables;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::content::room::Room;
pub(crate) use self::content::room::{Limits, PartRoom};
pub(crate) use self::content::{Content, ContentReader};
use self::custody::Custodian;
pub(crate) use self::custody::OriginSays;
use self::doorbell::Doorbell;
pub(crate) use self::doorbell::Event;
pub(crate) use self::dress::Dress;
use self::dress::Roots;
use self::durable::OnPath;
pub(crate) use self::group::Group;
pub(crate) use self::group::membership::{
    Admission, Changed, Denied, GroupError, Welcome, is_alone,
};
pub(crate) use self::group::route::{Route, Routing, parse_priority, split_targets};
use self::inbox::Inbox;
pub(crate) use self::inbox::intake::{CONTRADICTS, Incoming};
pub(crate) use self::inbox::publish::{InboxObserver, NewName};
pub(crate) use self::layout::Layout;
use self::ledger::Ledger;
pub(crate) use self::ledger::cancel::{Cancelled, Retried};
use self::ledger::history::History;
pub(crate) use self::ledger::inbound::InboundState;
pub(crate) use self::ledger::rank::Rank;
#[cfg(test)]
pub(crate) use self::outbox::MarkKind;
use self::outbox::Outbox;
pub(crate) use self::outbox::Unfinished;
pub(crate) use self::outbox::gate::{Gate, GateGuard};
pub(crate) use self::outbox::send::{SendRequest, Sent};
pub(crate) use self::outbox::tree::{RecoveredTree, TreeRequest};
pub(crate) use self::private::{make_state_directory, remove_state_directory};
use self::shown::Counters;
pub(crate) use self::shown::{FileStage, InboundRow, OutboundRow, RecipientRow};
pub(crate) use self::start::StateLock;
use self::start::{
    LastRun, check_format, check_hard_links, distrust_page_cache, is_in_use, last_run, save_boot,
    save_clean, seal,
};
use self::tables::META_EPOCH;
use crate::bundle::{BundleId, CancelReason, Priority, Receipt, RelPath};
use crate::digest::Digest;
use crate::disk::extents;
pub(crate) use crate::disk::{beneath, overlay};
use crate::journal::{self, Batch, Journal, JournalError, Reserve};
use crate::peer::{self, Identity, PeerId, PeerName};

/// How far one peer may push our epoch at once: more starts than a restored backup can have missed. The number is 64
/// bits wide, so that no series of lies reaches its end.
const EPOCH_LEAP: u64 = 1 << 32;

/// What is said from a start without a journal to the next.
const REBUILT: &str = "the journal was missing at the last start and was made again: what was queued is not known any more; \
    files of the outbox are incomplete, send those that are still to go with `meshbox send`";

/// What the spool is opened with.
#[derive(Clone, Debug)]
pub(crate) struct SpoolConfig {
    /// The state directory; made when missing.
    pub state: PathBuf,
    /// How long a bundle may wait for its recipients.
    pub lifetime: Duration,
    /// Threads that hash and seal.
    pub sealers: usize,
    /// How much of the disk may be used.
    pub limits: Limits,
    /// Modes and owner of what the mount shows.
    pub dress: Dress,
    /// Our own key pair.
    pub identity: Identity,
}

/// Why the spool could not do something. Our own disk, never the peer's fault.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum SpoolError {
    /// A system call failed on a path of ours.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "open", "rename", "sync".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another daemon holds the lock.
    #[error(
        "the state directory {state} is in use by another daemon ({process}); end it, or choose another --state"
    )]
    InUse {
        /// The state directory.
        state: PathBuf,
        /// Who holds it, in words.
        process: String,
    },
    /// Written by a newer program.
    #[error(
        "the state directory {path} has format version {found}, this program knows {known}; update meshbox"
    )]
    NewerFormat {
        /// The state directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The file system lacks something we cannot do without.
    #[error("the file system of {path} has no {what}; put the state on another one with --state")]
    Unsupported {
        /// The state directory.
        path: PathBuf,
        /// What is missing: "hard links".
        what: &'static str,
    },
    /// A key file others can read.
    #[error("{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A state directory that others can look into.
    #[error(
        "the state directory {path} can be read by others (mode {mode:04o}); run: chmod 700 {path}, or, if others use that directory \
         too, choose another one with --state"
    )]
    StateExposed {
        /// The state directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key file that is not a key.
    #[error("{path} is not a key file: {why}")]
    BadKey {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The journal's database is damaged.
    #[error(
        "the journal {path} is damaged ({why}). Check the disk. Then either put a copy of {path} from a backup in its place, or \
         set it aside and have it made again: mv {path} {path}.damaged, and start again. The inbox comes back as far as \
         its files prove right; files of the outbox are then incomplete, and `meshbox send` sends those that are still to go"
    )]
    Damaged {
        /// The database's file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The journal failed.
    #[error("journal: {0}")]
    Journal(JournalError),
    /// The file system has no more free than it is to keep.
    #[error("{free} bytes are free above min_free ({min_free})")]
    NoRoom {
        /// What is free above that.
        free: u64,
        /// What is kept free.
        min_free: u64,
    },
    /// Nothing more is kept for others.
    #[error(
        "max_bytes is full ({used} of {max} bytes are kept for others), and {waiting} still waits for this file"
    )]
    Quota {
        /// What is kept.
        used: u64,
        /// What may be kept.
        max: u64,
        /// Names of those who wait.
        waiting: String,
    },
    /// What is to be published was ended by its origin.
    #[error("{}", .0.refusal())]
    Ended(CancelReason),
    /// More files wait for their seal than are kept in memory; this one is looked at again later.
    #[error("too many files wait for their seal")]
    SealsFull,
    /// A stored record that cannot be read.
    #[error("damaged record in the journal: {0}")]
    Corrupted(String),
}

impl SpoolError {
    /// The errno a program should see.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::NoRoom { .. } => libc::ENOSPC,
            Self::Quota { .. } => libc::EDQUOT,
            _ => libc::EIO,
        }
    }
}

/// A file to be sealed: what `ready` found complete.
pub(crate) struct SealRequest {
    /// The inode's write gate.
    pub gate: Arc<Gate>,
    /// Its names that are to be sent at this moment; one bundle for each.
    pub names: Vec<SealName>,
    /// Further names follow in a request of their own: its mark stays until then.
    pub more: bool,
    /// Urgency.
    pub priority: Priority,
    /// Called once, on a sealer thread, with what came of each name; not if the daemon ends first.
    pub done: Box<dyn FnOnce(Vec<SealOutcome>) + Send>,
}

/// A name under which a file is to be sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealName {
    /// Below `outbox/`.
    pub path: RelPath,
    /// The name it had when it was last announced, if it was only renamed since; for the log. What the manifest says
    /// comes from the spool's own rows, which survive a restart. Its own name: only its mode or time may be new since; who
    /// shows it changes that in place, and nothing is sent if it is as it was announced.
    pub renamed_from: Option<RelPath>,
}

impl std::fmt::Debug for SealRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealRequest")
            .field("ino", &self.gate.ino())
            .field("names", &self.names)
            .field("priority", &self.priority)
            .finish_non_exhaustive()
    }
}

/// What came of one name of a [`SealRequest`]. Those that are not gone all have the same.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "for tests and the log")]
pub(crate) enum SealOutcome {
    /// Sealed; offers are on their way, durability follows within a fraction of a second.
    Sealed(BundleId),
    /// A writer came in between; the result was thrown away. The next last close asks again.
    Changed,
    /// Its bytes are not those that its writer closed: marked as torn.
    Incomplete,
    /// The name shows another inode by now, or nothing.
    Gone,
    /// Our disk failed; the file stays marked and is tried again at the next start, or when asked again.
    Failed(Arc<SpoolError>),
}

/// What the attributes of a file say (`user.meshbox.*`). Only a file that is never sent has no state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileState {
    /// How far it is.
    pub state: Option<FileStage>,
    /// Its digest, once sealed or received.
    pub sha256: Option<Digest>,
    /// Its bundle, once sealed or received.
    pub bundle: Option<BundleId>,
    /// Name of the origin (inbox).
    pub from: Option<String>,
    /// Why it does not go on, if so.
    pub error: Option<String>,
    /// Bytes that the slowest recipient has, of how many.
    pub progress: Option<(u64, u64)>,
}

/// What became of an offer from a peer.
#[derive(Debug)]
pub(crate) enum Offered {
    /// Settled before: here is the receipt to send again.
    Settled(Receipt),
    /// Published already; the receipt follows as [`Event::ReceiptReady`] when it is durable.
    AwaitingDurable,
    /// Being fetched by another session right now.
    Busy,
    /// Not for us, or not acceptable; will never be taken.
    Refused(String),
    /// Not now: our disk, for instance.
    Deferred(String),
    /// New: fetch what is missing.
    Wanted(Box<Incoming>),
}

/// Why arriving bytes were not taken.
#[derive(Debug, Error)]
pub(crate) enum IntakeError {
    /// The chunk does not hash to what the manifest says: the sender's fault.
    #[error("chunk {index} of {path} does not match the manifest")]
    WrongBytes {
        /// The entry's path.
        path: RelPath,
        /// Which chunk.
        index: u64,
    },
    /// Its origin has cancelled the bundle, or its lifetime is over.
    #[error("{}", .0.refusal())]
    Ended(CancelReason),
    /// Something newer of its origin was published under each of its paths, before it was checked.
    #[error("superseded by what is here already")]
    Superseded,
    /// Our disk.
    #[error(transparent)]
    Disk(#[from] SpoolError),
}

/// Bytes that failed their SHA-256 were put aside.
#[derive(Debug, Error)]
#[error("{path} does not have the SHA-256 its manifest says; quarantined as {at}")]
pub(crate) struct Quarantined {
    /// The entry's path.
    pub path: RelPath,
    /// Where the bytes are now.
    pub at: PathBuf,
    /// Whether all chunks matched: then the manifest contradicts itself and no holder can ever serve it.
    pub manifest_contradicts_itself: bool,
}

/// Why an [`Incoming`] did not become [`crate::spool::inbox::intake::Verified`].
#[derive(Debug, Error)]
pub(crate) enum FinishError {
    /// Something is still missing; the caller's mistake.
    #[error("{0} is not complete")]
    Incomplete(RelPath),
    /// The bytes are wrong.
    #[error(transparent)]
    Quarantined(#[from] Quarantined),
    /// Its origin has cancelled the bundle, or its lifetime is over.
    #[error("{}", .0.refusal())]
    Ended(CancelReason),
    /// Our disk.
    #[error(transparent)]
    Disk(SpoolError),
}

/// A bundle that is visible in the inbox.
#[derive(Debug)]
#[allow(dead_code, reason = "for tests and the log")]
pub(crate) struct Published {
    /// Which.
    pub bundle: BundleId,
    /// Names given, below `inbox/`.
    pub names: Vec<RelPath>,
}

/// Why content is not served.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    /// The peer is no recipient of such a bundle, or we do not have it: told alike, so that nothing leaks.
    #[error("no such content for this peer")]
    NotHeld,
    /// The range lies outside the content.
    #[error("range outside the content")]
    Range,
    /// Our disk.
    #[error(transparent)]
    Disk(#[from] SpoolError),
}

/// A member of the group as the journal knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its id.
    pub id: PeerId,
    /// What it calls itself.
    pub name: PeerName,
    /// Addresses it was last known to listen on.
    pub addrs: Vec<SocketAddr>,
    /// Seconds since 1970 of the last contact, by our clock; 0 if never.
    pub last_seen: u64,
    /// The highest epoch seen of it.
    pub epoch: u64,
}

/// Counters since the daemon started, and sizes now. Bytes are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Bundles of ours some recipient still waits for.
    pub outbound_pending: u64,
    /// Bundles sealed since start.
    pub sealed: u64,
    /// Bundles published since start.
    pub published: u64,
    /// Receipts taken since start.
    pub receipts: u64,
    /// Content bytes sent to peers since start (inline or by range).
    pub bytes_sent: u64,
    /// Content bytes taken from peers since start.
    pub bytes_received: u64,
    /// Those of them that were of no use: cut off before a chunk was whole, wrong, or here already.
    pub bytes_twice: u64,
    /// Files held back because their writer was killed.
    pub incomplete: u64,
    /// Files open for writing, settling or being sealed. Not known to the spool: the daemon fills it in.
    pub unsealed: u64,
    /// Names not sent because they match the ignore list, since start.
    pub ignored: u64,
    /// Files removed before they were sent, since start.
    #[serde(default)]
    pub removed: u64,
    /// Entries in quarantine.
    pub quarantined: u64,
    /// Bytes kept for recipients that no name shows any more.
    pub held_bytes: u64,
    /// Files of the inbox that are hashed before they are shown again, as after a restore.
    pub unverified: u64,
    /// Offers refused since start.
    pub refused: u64,
}

/// A file in the outbox that was not sealed when the daemon last ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecoveredFile {
    /// Its inode.
    pub ino: u64,
    /// Its path below `outbox/`.
    pub path: RelPath,
    /// Whether its writer had not closed it: shown as incomplete, not sent.
    pub incomplete: bool,
}

/// What to do with a file that was sealed before, if its digest is another one now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recheck {
    /// Send it.
    SendIfChanged,
    /// Keep it back as incomplete: a power loss may have torn it.
    KeepIfChanged,
}

/// The spool. One per state directory and process; shared as `Arc`.
pub(crate) struct Spool {
    me: Weak<Spool>,
    layout: Layout,
    roots: Roots,
    dress: Dress,
    identity: Identity,
    journal: Arc<Journal>,
    /// Rings at every change.
    pub(crate) doorbell: Arc<Doorbell>,
    /// What is in the outbox.
    pub(crate) outbox: Outbox,
    inbox: Inbox,
    /// What is kept by digest, and the room for it.
    pub(crate) content: Arc<Content>,
    /// What is kept for others.
    pub(crate) custodian: Arc<Custodian>,
    /// Bundles and deliveries.
    pub(crate) ledger: Arc<Ledger>,
    /// The group that this node is in.
    pub(crate) group: Arc<Group>,
    /// Whether there may be rows of names that wait: see `home`.
    provisional: AtomicBool,
    epoch: AtomicU64,
    incarnation: [u8; 16],
    next_seq: AtomicU64,
    observer: RwLock<Option<Arc<dyn InboxObserver>>>,
    counters: Arc<Counters>,
    doubts: inbox::doubt::Doubts,
    proofs: inbox::proofs::Proofs,
    /// The journal was missing at start.
    rebuilt: bool,
    /// Closing it releases the lock on the state directory.
    lock: Mutex<Option<StateLock>>,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool")
            .field("state", &self.layout.state())
            .finish_non_exhaustive()
    }
}

/// Lifecycle and facts.
impl Spool {
    /// Opens or makes the state whose lock is held, recovers, and starts the journal writer and the sealers.
    pub(crate) fn open_locked(
        config: SpoolConfig,
        lock: StateLock,
    ) -> Result<Arc<Self>, SpoolError> {
        let layout = Layout::new(config.state);
        let state = layout.state().to_path_buf();
        // Before anything else is written: the disk may be full.
        drop(Reserve::open(&state));
        check_format(&state)?;
        private::make_shown_root(&layout.outbox(), &state)?;
        private::make_shown_root(&layout.inbox(), &state)?;
        let rooms = [
            layout.partial(),
            layout.quarantine(),
            layout.unverified(),
            layout.content_root(),
        ];
        rooms
            .iter()
            .try_for_each(|room| durable::make_directory(room))?;
        for first in 0..=255_u8 {
            durable::make_directory(&layout.content_root().join(format!("{first:02x}")))?;
        }
        check_hard_links(&layout)?;
        config.dress.put_on_roots(&layout)?;
        let (roots, room) = (Roots::open(&layout)?, Room::new(config.limits, &state)?);
        let last = last_run(&state)?;
        let distrust = {
            let state = state.clone();
            move || distrust_page_cache(&state)
        };
        let journal = Arc::new(Journal::open(
            &state,
            last == LastRun::Whole,
            seal(&state),
            distrust,
        )?);

        let proofs = inbox::proofs::Proofs::open(&layout)?;
        let last_epoch = journal.row(META_EPOCH, &())?;
        // Every start that came to its end has written its epoch. After one that is not known anything above it will do.
        let rebuilt = last_epoch.is_none() && is_in_use(&layout)?;
        let unknown = if rebuilt { now_secs() } else { 0 };
        let epoch = last_epoch.unwrap_or(unknown).saturating_add(1);
        let doorbell: Arc<Doorbell> = Arc::default();
        let history = History::new(config.limits.history);
        let outbox_root = beneath::Root::open_at(layout.outbox())?;
        let group = Group::load(
            &journal,
            &layout,
            &outbox_root,
            &config.identity,
            config.lifetime,
            &doorbell,
        )?;
        let group = Arc::new(group);
        let ledger = Arc::new(Ledger::load(&journal, &group, &doorbell, history)?);
        let sealers = config.sealers.max(1);
        let content = Arc::new(Content::new(&journal, &layout, &ledger, room));
        let outbox = Outbox::new(&journal, &content, &outbox_root);
        let outbox = outbox.on("start a thread for", &state)?;
        let custodian = Arc::new(Custodian::new(&journal, &content, &doorbell));
        let inbox = Inbox::new(&journal);
        let spool = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            content,
            layout,
            roots,
            dress: config.dress,
            identity: config.identity,
            doorbell,
            outbox,
            inbox,
            ledger,
            journal,
            provisional: AtomicBool::new(true),
            epoch: AtomicU64::new(epoch),
            incarnation: peer::random(),
            next_seq: AtomicU64::new(1),
            group,
            observer: RwLock::default(),
            counters: Arc::default(),
            custodian,
            doubts: inbox::doubt::Doubts::default(),
            proofs,
            rebuilt,
            lock: Mutex::new(Some(lock)),
        });
        let me = Arc::downgrade(&spool);
        spool.custodian.ask_inbox(move |of| {
            me.upgrade()
                .map_or(Ok(true), |spool| spool.inbox.still_shows(of))
        });
        let me = Arc::downgrade(&spool);
        spool
            .group
            .on_expelled(move |id| me.upgrade().map_or(Ok(0), |spool| spool.end_all(id)));
        spool.group.begin_routes()?;
        spool.ledger.begin_age()?;
        spool.expire_due()?;
        spool.recover(last)?;
        spool.count_allowance()?;
        spool.resume_forgetting()?;
        spool.resume_joins()?;
        spool.write_epoch(epoch)?;
        save_boot(&state)?;
        let me = Arc::downgrade(&spool);
        let sweeper =
            (spool.ledger.history).start(move || me.upgrade().map(|spool| spool.sweep_now()));
        sweeper.on("start a thread for", &state)?;
        spool.start_checking(last)?;
        let sealing = spool.outbox.start_sealing(&spool, sealers);
        sealing.on("start a thread for", &state)?;
        let me = Arc::downgrade(&spool);
        let ager = (spool.ledger).start_ager(move || me.upgrade().map(|spool| spool.look_at_age()));
        ager.on("start a thread for", &state)?;
        Ok(spool)
    }

    /// Finishes small seals that are queued, makes everything durable, ends the threads, and gives the lock up.
    pub(crate) fn close(&self) {
        self.content.watch_disk();
        self.outbox.stop_hashing();
        self.doubts.stop();
        self.ledger.history.stop();
        self.ledger.stop_ager();
        self.outbox.stop_sealing();
        self.journal.close();
        if let Some(lock) = self.lock.lock().take() {
            if self.journal.trouble().is_none()
                && let Err(error) = save_clean(self.layout.state(), &self.journal)
            {
                tracing::warn!(%error, "the next start takes this stop for a crash");
            }
            drop(lock);
        }
    }

    /// Where things are.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Our own key pair.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This start's epoch and incarnation.
    pub(crate) fn epoch(&self) -> (u64, [u8; 16]) {
        (self.epoch.load(Ordering::Acquire), self.incarnation)
    }

    /// A peer has seen `epoch` of us: seals go above it from when this returns, durably.
    pub(crate) fn raise_epoch(&self, epoch: u64) -> Result<(), SpoolError> {
        let ours = self.epoch.load(Ordering::Acquire);
        if epoch < ours {
            return Ok(());
        }
        if epoch - ours >= EPOCH_LEAP {
            tracing::warn!(epoch, "a peer names an epoch that we cannot have reached");
            return Ok(());
        }
        let mut batch = Batch::default();
        {
            let _decide = self.decide();
            let written = self.journal.row(META_EPOCH, &())?.unwrap_or(0);
            batch.insert(META_EPOCH, &(), &written.max(epoch + 1));
            self.journal.submit(batch)?;
        }
        // Not under the lock: whoever decides must not wait for the disk.
        self.journal.flush()?;
        self.epoch.fetch_max(epoch + 1, Ordering::AcqRel);
        Ok(())
    }

    fn write_epoch(&self, epoch: u64) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        batch.insert(META_EPOCH, &(), &epoch);
        self.journal.submit(batch)?;
        Ok(self.journal.flush()?)
    }

    /// Ends what is too old.
    fn expire_due(&self) -> Result<(), SpoolError> {
        self.ledger.expire_due(|bundle| {
            self.end_bundle(bundle, CancelReason::Expired)?;
            // Of another: nobody is told, that is its origin's to do.
            match self.ledger.kept(bundle)? {
                Some(kept) => self.custodian.give_no_more(bundle, kept.manifest().origin),
                None => Ok(()),
            }
        })
    }

    /// Looks once at what comes with time.
    fn look_at_age(&self) {
        self.content.watch_disk();
        let aged = self.ledger.grow_older();
        if let Err(error) = self.look_home(true) {
            tracing::warn!(%error, "names that wait are looked at again later");
        }
        if let Err(error) = aged.and_then(|()| self.expire_due()) {
            tracing::error!(%error, "bundles whose lifetime is over stay for now");
        }
    }

    /// What the sweeper does at each ring.
    fn sweep_now(&self) {
        if let Err(error) = self.sweep_history() {
            tracing::warn!(%error, "cannot forget old bundles now");
        }
    }

    /// Forgets what is over and old.
    fn sweep_history(&self) -> Result<(), SpoolError> {
        self.ledger.sweep_received()?;
        let each_name = |look: &mut dyn FnMut(BundleId)| {
            self.outbox.each_name(|name| look(name.bundle))?;
            Ok(())
        };
        self.ledger.sweep_sent(each_name, |bundle, batch| {
            let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
                return Ok(());
            };
            let digests = manifest.manifest().digests();
            self.content.replace_sent(bundle, None, digests, batch)
        })?;
        self.sweep_proofs()
    }

    /// What is wrong with our own disk: commits of the journal fail, there is no room, received files were damaged, or the
    /// journal was missing.
    pub(crate) fn trouble(&self) -> Option<String> {
        // The kind of disk first: it is why the journal fails.
        let trouble = self
            .content
            .unwritable_trouble()
            .or_else(|| self.journal.trouble());
        let trouble = trouble.or_else(|| self.content.space_trouble());
        let trouble = trouble.or_else(|| self.content.failing_trouble());
        let trouble = trouble.or_else(|| self.seal_trouble());
        let trouble = trouble.or_else(|| self.damage_trouble());
        trouble.or_else(|| self.rebuilt.then(|| REBUILT.to_owned()))
    }

    /// Whether the journal was missing at start, though the state had been used.
    fn is_rebuilt(&self) -> bool {
        self.rebuilt
    }

    /// Sets who is told of new inbox names.
    pub(crate) fn observe_inbox(&self, observer: Arc<dyn InboxObserver>) {
        *self.observer.write() = Some(observer);
    }
}

/// Seconds since 1970 by this machine's clock; for display and for the age of leftovers only.
fn now_secs() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
