//! Recovery: makes the state whole when the spool is opened, before anything is mounted or offered.
//!
//! After a crash of the daemon the page cache lived on: the journal's log is replayed, publishes that had begun are
//! rolled forward, `closed` files are sealed, `open` ones are incomplete. After a power loss (another boot id) only what
//! was synced counts: the log is dropped, unrecorded names in the inbox go to quarantine, and what was not sealed in the
//! outbox is incomplete, since its bytes may be missing.
//!
//! Files in the outbox whose (inode, size, mtime) are as recorded are not looked at again; any other difference is
//! hashed, and only a different digest is sent.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::durable::{self, OnPath, Sync};
use super::journal::Batch;
use super::tables::{
    IN_NAMES, INODES, INTENTS, InName, InodeRow, Intent, MARKS, Mark, MarkKind, OUT_NAMES, OutName,
    SETTLED, Stat,
};
use super::{RecoveredFile, Spool, SpoolError};
use crate::bundle::{BundleId, Receipt, RelPath};

/// Rows looked at per step.
const PAGE: usize = 1000;

/// One file found in a tree of ours.
struct Found {
    path: RelPath,
    at: PathBuf,
    stat: Stat,
}

impl Spool {
    /// Runs all of it. `same_boot`: what was in the page cache when the daemon ended is still there.
    pub(super) fn recover(&self, same_boot: bool) -> Result<(), SpoolError> {
        self.recover_intents(same_boot)?;
        self.recover_inbox()?;
        let recovered = self.recover_outbox(same_boot)?;
        if !recovered.is_empty() {
            tracing::info!(
                files = recovered.len(),
                "found files in the outbox that were not sealed"
            );
        }
        *self.recovered.lock() = recovered;
        self.sweep()
    }

    fn recover_intents(&self, same_boot: bool) -> Result<(), SpoolError> {
        for (key, intent) in self
            .journal
            .scan::<Intent>(INTENTS, &[], None, usize::MAX)?
        {
            let manifest = intent
                .signed
                .verify_own()
                .map_err(|e| SpoolError::Corrupted(e.to_string()));
            let mut batch = Batch::default();
            match manifest {
                Ok(manifest) if same_boot => {
                    let mut shown = Vec::new();
                    for (index, name, ino) in &intent.names {
                        if self.roll_forward(manifest.id(), *index, name, *ino, &mut batch)? {
                            shown.push((*index, name.clone(), *ino));
                        }
                    }
                    for (index, _, ino) in &shown {
                        if let Some(digest) = manifest
                            .manifest()
                            .entries
                            .get(*index as usize)
                            .and_then(|e| e.digest())
                        {
                            batch.put(INODES, &ino.to_be_bytes(), &InodeRow { digest });
                        }
                    }
                    self.settle(&manifest, &shown, &mut batch)?;
                    tracing::info!(bundle = %manifest.id().short(), "a publish that had begun is complete");
                }
                Ok(_) => batch.delete(INTENTS, &key),
                Err(error) => {
                    tracing::error!(%error, "a publish that had begun cannot be read");
                    batch.delete(INTENTS, &key);
                }
            }
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    /// `true`: the name shows the inode now. `false`: the user has removed it since.
    fn roll_forward(
        &self,
        bundle: BundleId,
        index: u32,
        name: &RelPath,
        ino: u64,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        let at = self.layout.inbox().join(name.as_path());
        let parent = at.parent().unwrap_or(&at).to_path_buf();
        if ino == 0 {
            fs::create_dir_all(&at).on("create directory", &at)?;
            batch.sync(Sync::Directory(parent));
            return Ok(false);
        }
        let staged = self.layout.partial().join(format!("{bundle}.{index}"));
        if fs::symlink_metadata(&staged).is_ok_and(|meta| meta.ino() == ino) {
            fs::create_dir_all(&parent).on("create directory", &parent)?;
            durable::rename(&staged, &at)?;
        }
        if !fs::symlink_metadata(&at).is_ok_and(|meta| meta.ino() == ino) {
            return Ok(false);
        }
        batch.sync(Sync::File(Arc::new(File::open(&at).on("open", &at)?)));
        batch.sync(Sync::Directory(parent));
        Ok(true)
    }

    fn recover_inbox(&self) -> Result<(), SpoolError> {
        let root = self.layout.inbox();
        walk(&root, &mut |found| {
            let row: Option<InName> = self.journal.get(IN_NAMES, found.path.as_bytes())?;
            if row.is_some_and(|row| row.ino == found.stat.ino) {
                return Ok(());
            }
            let why = format!(
                "path {}\nno durable record of this name in the inbox\n",
                found.path
            );
            let at = self.quarantine_file(&found.at, &why)?;
            tracing::warn!(path = %found.path, at = %at.display(), "a file in the inbox without a record was quarantined");
            Ok(())
        })?;
        self.each_row::<InName>(IN_NAMES, |spool, key, row| {
            let at = spool.layout.inbox().join(path_of(key));
            if fs::symlink_metadata(&at).is_ok_and(|meta| meta.ino() == row.ino) {
                return Ok(());
            }
            let mut batch = Batch::default();
            batch.delete(IN_NAMES, key);
            batch.delete(INODES, &row.ino.to_be_bytes());
            spool.show_consumed(row.bundle, &mut batch)?;
            spool.journal.submit(batch)
        })
    }

    fn recover_outbox(&self, same_boot: bool) -> Result<Vec<RecoveredFile>, SpoolError> {
        self.each_row::<OutName>(OUT_NAMES, |spool, key, row| {
            let at = spool.layout.outbox().join(path_of(key));
            if fs::symlink_metadata(&at).is_ok() {
                return Ok(());
            }
            let mut batch = Batch::default();
            batch.delete(OUT_NAMES, key);
            spool.journal.submit(batch)?;
            spool.free_content(row.digest)
        })?;
        let mut recovered = Vec::new();
        let mut live_marks = std::collections::HashSet::new();
        walk(&self.layout.outbox(), &mut |found| {
            let ino = found.stat.ino;
            let mark: Option<Mark> = self.journal.get(MARKS, &ino.to_be_bytes())?;
            let row: Option<OutName> = self.journal.get(OUT_NAMES, found.path.as_bytes())?;
            if mark.is_some() {
                live_marks.insert(ino);
            }
            let unchanged = row
                .as_ref()
                .is_some_and(|row| row.stat.same_bytes(&found.stat));
            if unchanged && mark.is_none() {
                // The change time alone says chmod, link or unlink of another name: look again, send only if changed.
                if row.is_some_and(|row| row.stat.ctime == found.stat.ctime) {
                    return Ok(());
                }
                self.recheck.lock().insert(ino);
                recovered.push(RecoveredFile {
                    ino,
                    path: found.path,
                    incomplete: false,
                });
                return Ok(());
            }
            if !unchanged
                && let Some(row) = &row
                && super::content::inode_at(&self.layout.content(row.digest)) == Some(ino)
            {
                // Changed behind our back: the link no longer shows what its name says.
                durable::remove(&self.layout.content(row.digest))?;
                let mut batch = Batch::default();
                batch.delete(INODES, &ino.to_be_bytes());
                self.journal.submit(batch)?;
            }
            let incomplete = match mark.map(|mark| mark.kind) {
                Some(MarkKind::Open | MarkKind::Torn) => true,
                Some(MarkKind::Closed) | None => !same_boot,
            };
            if incomplete {
                let mut batch = Batch::default();
                batch.put(
                    MARKS,
                    &ino.to_be_bytes(),
                    &Mark {
                        kind: MarkKind::Torn,
                        path: found.path.clone(),
                    },
                );
                self.journal.submit(batch)?;
                live_marks.insert(ino);
            } else if row.is_some() {
                self.recheck.lock().insert(ino);
            }
            recovered.push(RecoveredFile {
                ino,
                path: found.path,
                incomplete,
            });
            Ok(())
        })?;
        self.each_row::<Mark>(MARKS, |spool, key, _| {
            let ino = key.try_into().map(u64::from_be_bytes).unwrap_or(0);
            if live_marks.contains(&ino) {
                return Ok(());
            }
            let mut batch = Batch::default();
            batch.delete(MARKS, key);
            spool.journal.submit(batch)
        })?;
        Ok(recovered)
    }

    fn each_row<V: serde::de::DeserializeOwned>(
        &self,
        table: super::journal::Table,
        mut look: impl FnMut(&Self, &[u8], &V) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.journal.scan::<V>(table, &[], after.as_deref(), PAGE)?;
            for (key, row) in &page {
                look(self, key, row)?;
            }
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    /// Removes content that nobody needs, and arriving bytes nobody will ask for again.
    fn sweep(&self) -> Result<(), SpoolError> {
        let root = self.layout.content_root();
        for first in fs::read_dir(&root).on("read", &root)? {
            let directory = first.on("read", &root)?.path();
            for entry in fs::read_dir(&directory).on("read", &directory)? {
                let entry = entry.on("read", &directory)?;
                let name = format!("{}{}", text(&directory), text(&entry.path()));
                match crate::digest::Digest::from_hex(&name) {
                    Some(digest) => self.free_content(digest)?,
                    None => {
                        tracing::warn!(path = %entry.path().display(), "a foreign file under content/")
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
                let age = fs::symlink_metadata(&path)
                    .ok()?
                    .modified()
                    .ok()?
                    .elapsed()
                    .ok()?;
                Some(age > self.lifetime)
            };
            let wanted = match bundle {
                Some(bundle) => {
                    self.journal.get::<Receipt>(SETTLED, &bundle.0)?.is_none()
                        && !old().unwrap_or(false)
                }
                None => false,
            };
            if !wanted {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }
}

fn text(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn path_of(key: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(key))
}

/// Shows every regular file below `root`. Anything else but directories is left alone.
fn walk(
    root: &Path,
    look: &mut dyn FnMut(Found) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    use std::os::unix::ffi::OsStrExt;
    let mut open: Vec<PathBuf> = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).on("read", &directory)? {
            let at = entry.on("read", &directory)?.path();
            let meta = match fs::symlink_metadata(&at) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).on("stat", &at),
            };
            if meta.is_dir() {
                open.push(at);
            } else if meta.is_file() {
                let below = at
                    .strip_prefix(root)
                    .unwrap_or(&at)
                    .as_os_str()
                    .as_bytes()
                    .to_vec();
                match RelPath::parse(below) {
                    Ok(path) => look(Found {
                        path,
                        at,
                        stat: Stat::of(&meta),
                    })?,
                    Err(error) => tracing::warn!(at = %at.display(), %error, "passed over"),
                }
            }
        }
    }
    Ok(())
}
