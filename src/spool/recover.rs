//! Recovery: makes the state whole when the spool is opened, before anything is mounted or offered.
//!
//! After a crash of the daemon the page cache lived on: the journal's log is replayed, publishes that had begun are
//! rolled forward ([`crate::spool::inbox::forward`]), `closed` files are sealed, `open` ones are incomplete. After a power loss (another
//! boot id) only what was synced counts: the log is dropped, unrecorded names in the inbox go to quarantine, and what was
//! not sealed in the outbox is incomplete, since its bytes may be missing.
//!
//! A file is believed to have the bytes of its row only if it matches the record of its inode ([`crate::spool::content::record`]): a number
//! of an inode alone may be another file's by now. In the inbox anything else is hashed before it is shown
//! ([`crate::spool::inbox::doubt`]); a name that shows nothing was consumed. In the outbox files of the recorded size are hashed in the
//! background, and only a different digest is sent, or after a power loss kept back.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::beneath::Root;
use super::durable::{self, OnPath, Sync};
use super::journal::{Batch, Key, Table};
use super::start::LastRun;
use super::tables::Stat;
use super::{Spool, SpoolError, now_secs};
use crate::bundle::{BundleId, RelPath};
use crate::digest::Digest;
use crate::spool::outbox::hashing::hash_file;

/// Rows looked at per step.
const PAGE: usize = 1000;

/// One file found in a tree of ours.
pub(super) struct Found {
    pub(super) path: RelPath,
    pub(super) stat: Stat,
    /// Its names, that in `content/` included.
    pub(super) nlink: u64,
    /// A symbolic link.
    pub(super) link: bool,
}

impl Spool {
    /// Runs all of it.
    pub(super) fn recover(&self, last: LastRun) -> Result<(), SpoolError> {
        let same_boot = last == LastRun::Whole;
        let rebuilds = self.is_rebuilt();
        if rebuilds {
            self.rebuild_inbox()?;
        }
        // Without the journal the log counts only as far as bytes agree with it.
        let last = match last {
            LastRun::Whole if rebuilds => LastRun::PowerLost,
            last => last,
        };
        self.recover_intents(last)?;
        self.recover_seals(last)?;
        self.journal.forget_dropped();
        self.recover_renames(same_boot)?;
        self.recover_leaving()?;
        self.recover_inbox(last)?;
        self.recover_outbox(same_boot && !rebuilds)?;
        self.ledger.drop_bad_cancels()?;
        self.look_home(false)?;
        self.custodian.sweep_kept()?;
        self.sweep(same_boot)
    }

    /// Looks at all rows of a table, page by page.
    pub(super) fn each_row<K: Key<Read = K>, V: serde::de::DeserializeOwned>(
        &self,
        table: Table<K, V>,
        mut look: impl FnMut(&Self, &K, &V) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let mut after = None;
        loop {
            let page = self.journal.rows(table.all().after(after.as_ref()), PAGE)?;
            for (key, row) in &page {
                look(self, key, row)?;
            }
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// The same of the keys only, whatever the rows hold.
    pub(super) fn each_key<K: Key<Read = K>, V>(
        &self,
        table: Table<K, V>,
        mut look: impl FnMut(&K),
    ) -> Result<(), SpoolError> {
        let mut after = None;
        loop {
            let page = self.journal.keys(table.all().after(after.as_ref()), PAGE)?;
            page.iter().for_each(&mut look);
            match page.into_iter().next_back() {
                Some(key) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// Removes content that nobody needs, and arriving bytes nobody will ask for again.
    fn sweep(&self, same_boot: bool) -> Result<(), SpoolError> {
        let root = self.layout.content_root();
        for first in fs::read_dir(&root).on("read", &root)? {
            let directory = first.on("read", &root)?.path();
            for entry in fs::read_dir(&directory).on("read", &directory)? {
                let entry = entry.on("read", &directory)?;
                let name = format!("{}{}", text(&directory), text(&entry.path()));
                match Digest::from_hex(&name) {
                    Some(digest) => {
                        self.vouch(digest, &entry.path(), same_boot)?;
                        self.content.free(digest)?;
                    }
                    None => {
                        tracing::warn!(path = %entry.path().display(), "a foreign file under content/");
                    }
                }
            }
        }
        let partial = self.layout.partial();
        for entry in fs::read_dir(&partial).on("read", &partial)? {
            let path = entry.on("read", &partial)?.path();
            let name = text(&path);
            let bundle = name.split('.').next().and_then(BundleId::from_hex);
            let old = || {
                // Not the modification time: a file that is complete has that of its origin.
                let changed = fs::symlink_metadata(&path).ok()?.ctime();
                let age = now_secs().saturating_sub(u64::try_from(changed).ok()?);
                Some(age > self.group.lifetime().as_secs())
            };
            let wanted = match bundle {
                Some(bundle) => self.ledger.settled(bundle)?.is_none() && !old().unwrap_or(false),
                None => false,
            };
            // A tree that was being built is rolled forward by now, or is fetched again.
            if !wanted || path.is_dir() {
                durable::remove_all(&path)?;
            }
        }
        Ok(())
    }

    /// A link is made before the rows that say so. One whose inode has no record that matches, and another name through
    /// which it may be or has been changed, or that a power loss may have torn, does not stand for the digest unless it
    /// hashes to it.
    fn vouch(&self, digest: Digest, link: &Path, same_boot: bool) -> Result<(), SpoolError> {
        let meta = fs::symlink_metadata(link).on("stat", link)?;
        let found = Stat::of(&meta);
        let record = self
            .content
            .record_of(found.ino)?
            .filter(|record| record.digest == digest);
        let vouched = record
            .as_ref()
            .is_some_and(|record| record.holds(&found, same_boot));
        // A copy made for who still waits was synced before it got its only name.
        if vouched || (same_boot && meta.nlink() == 1) {
            return Ok(());
        }
        // Its name in the outbox is hashed anyway.
        if record.is_some() && self.outbox.is_to_be_compared(found.ino) {
            return Ok(());
        }
        if self.content.is_needed(digest)? {
            let file = File::open(link).on("open", link)?;
            if hash_file(&file).on("read", link)?.digest == digest {
                let mut batch = Batch::default();
                self.content.record(digest, &found, &mut batch)?;
                batch.sync(Sync::File(Arc::new(file)));
                return Ok(self.journal.submit(batch)?);
            }
            tracing::error!(digest = %digest, "content that is still waited for is damaged");
        }
        Ok(durable::remove(link).map(drop)?)
    }
}

fn text(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// What the daemon may not read, or was removed meanwhile; the root must be readable.
fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EACCES)
    )
}

/// Shows every regular file and symbolic link of a tree. Anything else but directories is left alone.
pub(super) fn walk(
    root: &Root,
    look: &mut dyn FnMut(Found) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    let mut open: Vec<Option<RelPath>> = vec![None];
    while let Some(directory) = open.pop() {
        let at = root.shown_at(directory.as_ref());
        let entries = match root.list(directory.as_ref()) {
            Ok(entries) => entries,
            Err(e) if is_out_of_reach(&e) && directory.is_some() => {
                tracing::error!(at = %at.display(), error = %e, "passed over");
                continue;
            }
            Err(e) => return Err(e).on("read", &at),
        };
        for entry in entries {
            let (path, meta) = entry.on("read", &at)?;
            if meta.is_dir() {
                open.push(Some(path));
            } else if meta.is_file() || meta.is_symlink() {
                look(Found {
                    path,
                    stat: Stat::of(&meta),
                    nlink: meta.nlink(),
                    link: meta.is_symlink(),
                })?;
            }
        }
    }
    Ok(())
}
