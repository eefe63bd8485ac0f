//! Doubt: files of the inbox that do not look like their record are hashed before they are shown again.
//!
//! At start a recorded name of the inbox is believed when its file matches its record ([`crate::spool::content::record`]). Any other was
//! restored from a backup, copied with the state to another disk, touched behind our back, or left by a power loss. It
//! moves from `inbox/` to the same path below `unverified/`, and is hashed while the mount serves: the smallest first, in
//! steps of size, so that nothing has to be kept in memory. With the right bytes it gets its name back, without an event,
//! since nothing arrived; with others it goes to quarantine, and status says so until somebody takes it from there.
//!
//! # Invariants
//! 1. While the mount serves, every file in the inbox matches its record or was hashed since it did not.
//! 2. A name whose file is in doubt keeps its rows: it is not consumed. A newer version of it takes its place at once.
//!
//! # Crash behaviour
//! The path below `unverified/` is the name. The next start finds it there and goes on.
//!
//! # Threads
//! `checker`, of the lowest priority, ends when nothing is left. It hashes without a lock and decides under the decision
//! lock.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bundle::{Manifest, RelPath, link};
use crate::digest::{Digest, Hasher};
use crate::spool::background::give_way;
use crate::spool::durable::{self, OnPath, Sync};
use crate::spool::inbox::tables::{IN_NAMES, InName};
use crate::spool::inbox::under_way::Note;
use crate::spool::journal::{Batch, Table};
use crate::spool::ledger::inbound::InboundState;
use crate::spool::outbox::hashing::READ_BYTES;
use crate::spool::recover::{Found, walk};
use crate::spool::start::LastRun;
use crate::spool::{Event, Spool, SpoolError};

/// Files up to these sizes are hashed one step after the other.
const STEPS: [u64; 5] = [64 << 10, 1 << 20, 16 << 20, 256 << 20, u64::MAX];

/// Damaged files that `trouble` looks at.
const DAMAGED_LISTED: usize = 100;

/// What is being checked.
#[derive(Debug, Default)]
pub(in crate::spool) struct Doubts {
    left: AtomicU64,
    stopping: AtomicBool,
    /// What can be read may be in memory only.
    distrusts_memory: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Names of the inbox whose file was not what had been received.
const DAMAGED: Table<RelPath, Damaged> = Table::new(71);

/// A name of the inbox whose file had other bytes than those that were received.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Damaged {
    digest: Digest,
    /// What it is called in quarantine.
    at: String,
}

impl Doubts {
    /// Ends the thread. What is left is the next start's.
    pub(in crate::spool) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the checker of the inbox had panicked");
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Files of the inbox that are not shown, because they are being checked.
    pub(in crate::spool) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }
}

/// The start.
impl Spool {
    /// Whether the file that a name of the inbox shows is the recorded one.
    pub(in crate::spool) fn is_as_recorded(
        &self,
        row: &InName,
        found: &Found,
    ) -> Result<bool, SpoolError> {
        if row.ino != found.stat.ino || row.size != found.stat.size {
            return Ok(false);
        }
        let record = self.content.record_of(row.ino)?;
        Ok(record.is_some_and(|record| record.vouches(row.digest, &found.stat)))
    }

    /// Takes the file of a recorded name out of the inbox, to be hashed. What was put aside there before is of an older
    /// version.
    pub(in crate::spool) fn doubt(&self, found: &Found) -> Result<(), SpoolError> {
        let put = || {
            if let Some(parent) = found.path.parent() {
                self.unverified().make_directories(&parent)?;
            }
            let to = self.unverified().at(&found.path)?;
            durable::rename(&self.inbox().at(&found.path)?, &to)
        };
        if put().is_err() {
            // A file is where a directory should be, or the other way round, of a version before.
            let above = found.path.components().next().unwrap_or_default();
            let top = RelPath::parse(above.to_vec());
            if let Ok(top) = top {
                durable::remove_all(&self.unverified().shown(&top))?;
            }
            put()?;
        }
        tracing::debug!(path = %found.path, "a file of the inbox does not match its record: it is hashed before it is shown");
        Ok(())
    }

    /// Whether the file of this name is in doubt.
    pub(in crate::spool) fn is_doubted(&self, name: &RelPath) -> bool {
        let there = self.unverified().metadata(name);
        there.is_ok_and(|meta| meta.is_file() || meta.is_symlink())
    }

    /// Whether a bundle renames a file that is in doubt: it waits until that is decided.
    pub(in crate::spool) fn renames_doubted(&self, of: &Manifest) -> Result<bool, SpoolError> {
        if self.doubts.left() == 0 {
            return Ok(false);
        }
        for former in &of.renamed_from {
            let name = self.chosen(of.origin, &former.path)?;
            if name.is_some_and(|name| self.is_doubted(&name)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Starts hashing what is in doubt, if anything is.
    pub(in crate::spool) fn start_checking(
        self: &Arc<Self>,
        last: LastRun,
    ) -> Result<(), SpoolError> {
        let mut left = 0;
        walk(self.unverified(), &mut |_| {
            left += 1;
            Ok(())
        })?;
        self.doubts.left.store(left, Ordering::Release);
        let distrusts = last == LastRun::SyncFailed;
        self.doubts
            .distrusts_memory
            .store(distrusts, Ordering::Release);
        self.forget_mended()?;
        if left == 0 {
            return Ok(());
        }
        tracing::warn!(
            files = left,
            "files of the inbox do not match their records, as after a restore: they are hashed, and shown as they prove right"
        );
        let weak = Arc::downgrade(self);
        let thread = std::thread::Builder::new()
            .name("checker".into())
            .spawn(move || {
                give_way("checker");
                for step in STEPS {
                    let Some(spool) = weak.upgrade() else { return };
                    if let Err(error) = spool.check_step(step) {
                        tracing::error!(%error, "cannot check files of the inbox; the next start goes on");
                        return;
                    }
                }
            })
            .on("start a thread for", self.layout.state())?;
        *self.doubts.thread.lock() = Some(thread);
        Ok(())
    }
}

/// The checker.
impl Spool {
    fn check_step(&self, up_to: u64) -> Result<(), SpoolError> {
        let mut buffer = vec![0; READ_BYTES];
        walk(self.unverified(), &mut |found| {
            if found.stat.size > up_to || self.doubts.is_stopping() {
                return Ok(());
            }
            match self.check(&found, &mut buffer) {
                Ok(true) => {
                    self.doubts.left.fetch_sub(1, Ordering::AcqRel);
                    self.doorbell.ring(&Event::StatusChanged);
                    Ok(())
                }
                Ok(false) => Ok(()),
                Err(error) => {
                    // One bad thing harms only itself.
                    tracing::error!(path = %found.path, %error, "a file of the inbox cannot be checked; the next start tries again");
                    Ok(())
                }
            }
        })?;
        if self.doubts.left() == 0 {
            let root = self.layout.unverified();
            for empty in fs::read_dir(&root).on("read", &root)? {
                durable::remove_all(&empty.on("read", &root)?.path())?;
            }
        }
        Ok(())
    }

    /// Decides on one file; `false`: the daemon stops.
    fn check(&self, found: &Found, buffer: &mut [u8]) -> Result<bool, SpoolError> {
        let at = self.unverified().shown(&found.path);
        let (file, digest) = if found.link {
            let target = self.unverified().read_link(&found.path).on("read", &at)?;
            (None, link::digest(&target))
        } else {
            let file = self.unverified().read(&found.path).on("open", &at)?;
            if self.doubts.distrusts_memory.load(Ordering::Acquire) {
                durable::read_from_disk(&file);
            }
            let Some(digest) = self.hash(&file, buffer).on("read", &at)? else {
                return Ok(false);
            };
            (Some(file), digest)
        };
        let _decide = self.decide();
        let row: Option<InName> = self.journal.row(IN_NAMES, &found.path)?;
        // Else a newer version is there by now, or another kind of file.
        let is_free = match self.inbox().metadata(&found.path) {
            Ok(_) => false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => false,
            Err(e) => return Err(e).on("stat", &self.inbox().shown(&found.path)),
        };
        let Some(row) = row.filter(|_| is_free) else {
            durable::remove(&self.unverified().at(&found.path)?)?;
            return Ok(true);
        };
        if digest == row.digest && found.stat.size == row.size {
            self.show_again(found, file, row)?;
        } else {
            self.damaged(found, &row, digest)?;
        }
        Ok(true)
    }

    /// `None`: the daemon stops.
    fn hash(&self, file: &File, buffer: &mut [u8]) -> io::Result<Option<Digest>> {
        let mut hasher = Hasher::default();
        loop {
            if self.doubts.is_stopping() {
                return Ok(None);
            }
            match file.read_at(buffer, hasher.len()) {
                Ok(0) => return Ok(Some(hasher.finish().digest)),
                Ok(n) => hasher.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The file, or else the link, is what its record says. Call with the decision lock held.
    fn show_again(&self, found: &Found, file: Option<File>, row: InName) -> Result<(), SpoolError> {
        if let Some(parent) = found.path.parent() {
            self.make_inbox_directories(&parent)?;
        }
        let to = self.inbox().at(&found.path)?;
        durable::rename_no_replace(&self.unverified().at(&found.path)?, &to)?;
        let publishing = &self.inbox.publishing;
        publishing.note(|| Note::Given(found.path.clone()));
        let mut batch = Batch::default();
        if let Some(file) = file {
            self.content.hold(&file, row.digest, &mut batch)?;
            // Copied with a state, it need not be on the disk yet.
            batch.sync(Sync::File(Arc::new(file)));
        }
        batch.sync(self.inbox().sync_above(&found.path));
        let (ino, origin, digest) = (found.stat.ino, row.origin, row.digest);
        batch.insert(IN_NAMES, &found.path, &InName { ino, ..row });
        self.record_shown(&found.path, origin, digest, ino, &mut batch)?;
        Ok(self.journal.submit(batch)?)
    }

    /// The file has other bytes than its record says. Call with the decision lock held.
    fn damaged(&self, found: &Found, row: &InName, digest: Digest) -> Result<(), SpoolError> {
        let why = format!(
            "path {}\nbundle {}\norigin {}\nsha256 received {}\nsha256 found {digest}\n",
            found.path, row.bundle, row.origin, row.digest
        );
        let at = self.quarantine_file(&self.unverified().at(&found.path)?, &why)?;
        let mut batch = Batch::default();
        batch.remove(IN_NAMES, &found.path);
        self.ledger
            .show_as(row.bundle, InboundState::Damaged, &mut batch)?;
        self.name_consumed(row.origin, &row.path, &found.path, None, &mut batch)?;
        self.custodian
            .shown_no_more(row.origin, row.bundle, row.size, &mut batch)?;
        let name = at.file_name().unwrap_or_default();
        let damaged = Damaged {
            digest: row.digest,
            at: name.to_string_lossy().into_owned(),
        };
        batch.insert(DAMAGED, &found.path, &damaged);
        self.journal.submit(batch)?;
        tracing::error!(path = %found.path, at = %at.display(), "a file of the inbox does not have the bytes that were received: it is in quarantine");
        Ok(())
    }
}

/// What was found.
impl Spool {
    /// A damaged file is past when somebody took it out of quarantine, or a newer version shows under its name.
    fn is_mended(&self, name: &RelPath, damaged: &Damaged) -> Result<bool, SpoolError> {
        let there = fs::symlink_metadata(self.layout.quarantine().join(&damaged.at)).is_ok();
        Ok(!there || self.journal.row(IN_NAMES, name)?.is_some())
    }

    fn forget_mended(&self) -> Result<(), SpoolError> {
        self.each_row(DAMAGED, |spool, name, damaged| {
            let mut batch = Batch::default();
            if spool.is_mended(name, damaged)? {
                batch.remove(DAMAGED, name);
            }
            Ok(spool.journal.submit(batch)?)
        })
    }

    /// Says which files of the inbox were damaged.
    pub(in crate::spool) fn damage_trouble(&self) -> Option<String> {
        let rows = self.journal.rows(DAMAGED.all(), DAMAGED_LISTED);
        let mut damaged = rows.ok()?.into_iter();
        let is_damaged =
            |(name, row): &(RelPath, Damaged)| !self.is_mended(name, row).unwrap_or(true);
        let (name, row) = damaged.find(|row| is_damaged(row))?;
        let more = match damaged.filter(is_damaged).count() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        Some(format!(
            "inbox/{name} did not have the bytes that were received (sha256 {}), and is in quarantine as {}{more}; ask for it again, and remove it there",
            row.digest,
            self.layout.quarantine().join(&row.at).display(),
        ))
    }
}
