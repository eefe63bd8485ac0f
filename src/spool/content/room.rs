//! Room: how much of the disk may be used, what is used for others, and what happens when it is full.
//!
//! What is arriving is given room as it needs it ([`parts`]).
//!
//! Three limits. `min_free` is left free whoever writes: programs get ENOSPC, arriving bundles are deferred. `max_bytes`
//! bounds what no name shows: content that was removed or changed while somebody still waits for it, bytes that
//! arrive, and quarantine; removing or changing one more such file gets EDQUOT. `max_file_bytes` bounds one file.
//!
//! # Invariants
//! 1. `held` is the size of every `content/` link that is the only name of its inode, each counted once.
//! 2. The budget never promises more than an eighth of what was free when it was measured, so that others who fill the
//!    disk meanwhile are noticed in time.
//!
//! # Crash behaviour
//! Nothing is stored; recovery counts again.

mod failing;
mod parts;
#[cfg(test)]
mod pretended;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use self::failing::Unsealed;
pub(crate) use self::parts::PartRoom;
use crate::digest::Digest;
use crate::spool::content::Content;
use crate::spool::content::ration::Rations;
use crate::spool::durable::OnPath;
use crate::spool::inbox::allowance::Allowance;
use crate::spool::{Spool, SpoolError};

/// Left free where nothing else is said: enough for the journal to work on, and for somebody to log in and clean up.
pub(crate) const DEFAULT_MIN_FREE: u64 = 64 << 20;

/// Of a small file system only this part is left free by default.
const DEFAULT_MIN_FREE_PART: u64 = 20;

/// Bytes that may be written before the free space is measured again.
const BUDGET_MAX: u64 = 16 << 20;

/// Names of peers that an error lists.
const NAMES_LISTED: usize = 3;

/// Bundles of one content that are asked who waits for them.
const BUNDLES_ASKED: usize = 16;

/// How much of the disk may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most bytes kept that no name shows; no limit if `None`.
    pub max_bytes: Option<u64>,
    /// Bytes left free; [`DEFAULT_MIN_FREE`], or a twentieth of a small file system, if `None`.
    pub min_free: Option<u64>,
    /// Most bytes of one file; no limit if `None`.
    pub max_file_bytes: Option<u64>,
    /// Most bytes of one member in the inbox and on their way there; no limit if `None`.
    pub max_peer_bytes: Option<u64>,
    /// Bundles of each direction that stay in status when they are over; 10,000 if `None`.
    pub history: Option<u64>,
}

/// The count of what is used, and the measure of what is free.
#[derive(Debug)]
pub(in crate::spool) struct Room {
    limits: RwLock<Limits>,
    state: PathBuf,
    disk: File,
    /// Bytes that may be written without measuring.
    budget: AtomicU64,
    held: Mutex<Held>,
    allowance: Allowance,
    /// Who may write what arrives.
    rations: Mutex<Rations>,
    begun: Instant,
    /// What the disk failed with when something was to be received, as long as nothing else was.
    failing: Mutex<Option<String>>,
    /// What could not be sealed, the first that is still there.
    unsealed: Mutex<Option<Unsealed>>,
    /// What the disk was when it was looked at last.
    read_only: AtomicBool,
    #[cfg(test)]
    pretended: pretended::Pretended,
}

/// Content without a name.
#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    /// The first bytes of each digest counted: eight bytes for a file tell them apart well enough to count.
    counted: HashSet<u64>,
}

fn short(digest: Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl Room {
    pub(in crate::spool) fn new(limits: Limits, state: &Path) -> Result<Self, SpoolError> {
        Ok(Self {
            limits: RwLock::new(limits),
            state: state.to_path_buf(),
            disk: File::open(state).on("open", state)?,
            budget: AtomicU64::new(0),
            held: Mutex::default(),
            allowance: Allowance::default(),
            rations: Mutex::default(),
            begun: Instant::now(),
            failing: Mutex::default(),
            unsealed: Mutex::default(),
            read_only: AtomicBool::new(false),
            #[cfg(test)]
            pretended: pretended::Pretended::default(),
        })
    }

    pub(in crate::spool) fn limits(&self) -> Limits {
        *self.limits.read()
    }

    pub(in crate::spool) fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// Bytes free above `min_free`, and `min_free`.
    fn measure(&self) -> Result<(u64, u64), SpoolError> {
        let stat = rustix::fs::fstatvfs(&self.disk).on("measure", &self.state)?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        let all = stat.f_blocks.saturating_mul(stat.f_frsize);
        let min_free = self
            .limits()
            .min_free
            .unwrap_or(DEFAULT_MIN_FREE.min(all / DEFAULT_MIN_FREE_PART));
        Ok((available.saturating_sub(min_free), min_free))
    }

    /// Bytes of the whole file system.
    pub(in crate::spool) fn whole(&self) -> Result<u64, SpoolError> {
        let stat = rustix::fs::fstatvfs(&self.disk).on("measure", &self.state)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }

    fn take(&self, len: u64) -> Result<(), SpoolError> {
        #[cfg(test)]
        if let Some(answer) = self.pretended.take(len) {
            return answer;
        }
        let within = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(len)
            });
        if within.is_ok() {
            return Ok(());
        }
        let (free, min_free) = self.measure()?;
        let free = free.saturating_sub(self.rations.lock().given());
        if free < len.max(1) {
            self.budget.store(0, Ordering::Relaxed);
            return Err(SpoolError::NoRoom { free, min_free });
        }
        let budget = (free / 8).min(BUDGET_MAX).saturating_sub(len);
        self.budget.store(budget, Ordering::Relaxed);
        Ok(())
    }

    /// Its only name is that in `content/`.
    pub(in crate::spool) fn count(&self, digest: Digest, len: u64) {
        let mut held = self.held.lock();
        if held.counted.insert(short(digest)) {
            held.bytes = held.bytes.saturating_add(len);
        }
    }

    /// It is gone, or has another name again.
    pub(in crate::spool) fn uncount(&self, digest: Digest, len: u64) {
        let mut held = self.held.lock();
        if held.counted.remove(&short(digest)) {
            held.bytes = held.bytes.saturating_sub(len);
        }
        if held.counted.is_empty() {
            held.counted.shrink_to_fit();
        }
    }
}

/// Space.
impl Content {
    /// Bytes that are left free, whoever writes.
    pub(crate) fn min_free(&self) -> u64 {
        self.room.measure().map_or(0, |(_, min_free)| min_free)
    }

    /// Bytes of content that no name shows any more and somebody still waits for.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.room.held.lock().bytes
    }

    /// What is wrong with the space, if programs and peers already feel it.
    pub(in crate::spool) fn space_trouble(&self) -> Option<String> {
        match self.room.measure() {
            Ok((0, min_free)) => Some(format!(
                "less than min_free ({min_free} bytes) is left on the disk: writes fail with ENOSPC, nothing is received"
            )),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// Everything `max_bytes` bounds, with what is given to arrivals and not written yet.
    fn used_for_others(&self) -> u64 {
        self.held_bytes()
            + bytes_in(&self.layout.partial(), |_| true)
            + bytes_in(&self.layout.quarantine(), |_| true)
            + self.room.rations.lock().given()
    }

    /// Takes over other limits. What is there already stays, whatever they are.
    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.room.limits.write() = limits;
        self.room.budget.store(0, Ordering::Relaxed);
    }

    /// Whether one more file of `len` bytes may be kept without a name; EDQUOT if not.
    pub(in crate::spool) fn may_hold(&self, digest: Digest, len: u64) -> Result<(), SpoolError> {
        let Some(max) = self.room.limits().max_bytes else {
            return Ok(());
        };
        let used = self.used_for_others();
        if used.saturating_add(len) <= max {
            return Ok(());
        }
        Err(SpoolError::Quota {
            used,
            max,
            waiting: self.waiting_for(digest),
        })
    }

    /// Who waits for this content, in words.
    fn waiting_for(&self, digest: Digest) -> String {
        let users = self.needed_by(digest, BUNDLES_ASKED);
        let mut names = std::collections::BTreeSet::new();
        for bundle in users.unwrap_or_default() {
            let deliveries = self.ledger.deliveries_of(bundle).unwrap_or_default();
            let open = deliveries.iter().filter(|(_, state)| !state.is_final());
            names.extend(open.map(|(peer, _)| self.ledger.group.name_of(*peer)));
        }
        let more = names.len().saturating_sub(NAMES_LISTED);
        let listed: Vec<String> = names.into_iter().take(NAMES_LISTED).collect();
        match (listed.is_empty(), more) {
            (true, _) => "a first member".to_owned(),
            (false, 0) => listed.join(", "),
            (false, more) => format!("{} and {more} more", listed.join(", ")),
        }
    }
}

impl Spool {
    /// Whether `len` more bytes may be written into the state: ENOSPC at `min_free`. Seldom more than an addition.
    pub(crate) fn room_for(&self, len: u64) -> Result<(), SpoolError> {
        match self.content.room.take(len) {
            Err(SpoolError::NoRoom { .. }) if self.outbox.let_go() => self.content.room.take(len),
            // What is kept for others goes first.
            Err(SpoolError::NoRoom { .. }) if self.custodian.shed_custody(len)? > 0 => {
                self.content.room.take(len)
            }
            taken => taken,
        }
    }

    /// Whether the last visible name of an inode may be removed: not if somebody waits for its content and there is no
    /// room to keep it.
    pub(crate) fn may_remove(&self, ino: u64, len: u64) -> Result<(), SpoolError> {
        if self.content.room.limits().max_bytes.is_none() {
            return Ok(());
        }
        match self.content.linked(ino) {
            Some(digest) if self.content.is_needed(digest)? => {
                self.custodian.make_hold(digest, len)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Why the file cannot be removed or changed now, for its attributes.
    pub(in crate::spool) fn why_stuck(&self, digest: Digest, len: u64) -> Option<String> {
        let needed = self.content.room.limits().max_bytes.is_some()
            && self.content.is_needed(digest).ok()?;
        needed
            .then(|| self.content.may_hold(digest, len).err())
            .flatten()
            .map(|error| error.to_string())
    }
}

/// Bytes on disk of the files in a directory whose names are wanted.
fn bytes_in(directory: &Path, wanted: impl Fn(&str) -> bool) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.blocks().saturating_mul(512))
        .sum()
}
