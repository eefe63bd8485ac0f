//! Recovery: makes the state whole when the spool is opened, before anything is mounted or offered.
//!
//! After a crash of the daemon the page cache lived on: the journal's log is replayed, publishes that had begun are
//! rolled forward, `closed` files are sealed, `open` ones are incomplete. After a power loss (another boot id) only what
//! was synced counts: the log is dropped, unrecorded names in the inbox go to quarantine, and what was not sealed in the
//! outbox is incomplete, since its bytes may be missing.
//!
//! Files in the outbox whose (inode, size, mtime) are as recorded are not looked at again; any other difference is
//! hashed, and only a different digest is sent.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::durable::{self, OnPath, Sync};
use super::hashing::hash_file;
use super::journal::Batch;
use super::tables::{
    IN_NAMES, INODES, INTENTS, InName, InodeRow, Intent, MARKS, Mark, MarkKind, OUT_NAMES, OutName,
    SETTLED, Stat, TREES, TreeRow,
};
use super::{Recheck, RecoveredFile, RecoveredTree, Spool, SpoolError, now_secs};
use crate::bundle::{BundleId, Receipt, RelPath, VerifiedManifest};
use crate::digest::Digest;

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
        self.recover_renames(same_boot)?;
        self.recover_inbox()?;
        let mut recovered = self.recover_outbox(same_boot)?;
        self.recover_trees(&mut recovered)?;
        if !recovered.is_empty() {
            tracing::info!(
                files = recovered.len(),
                "found files in the outbox that were not sealed"
            );
        }
        *self.recovered.lock() = recovered;
        self.sweep_kept()?;
        self.sweep(same_boot)
    }

    fn recover_intents(&self, same_boot: bool) -> Result<(), SpoolError> {
        for (key, intent) in self
            .journal
            .scan::<Intent>(INTENTS, &[], None, usize::MAX)?
        {
            let manifest = intent
                .signed
                .clone()
                .verify_own()
                .map_err(|e| SpoolError::Corrupted(e.to_string()));
            let mut batch = Batch::default();
            match manifest {
                Ok(manifest) if same_boot => match self.complete_publish(&manifest, &intent) {
                    Ok(rows) => batch = rows,
                    // Something else took the place meanwhile: the bundle is not settled, and will be offered again.
                    Err(SpoolError::Io {
                        source,
                        path,
                        action,
                    }) if is_in_the_way(&source) => {
                        tracing::warn!(path = %path.display(), %source, "cannot {action}: a publish that had begun is given up");
                        batch.delete(INTENTS, &key);
                    }
                    Err(error) => return Err(error),
                },
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

    fn complete_publish(
        &self,
        manifest: &VerifiedManifest,
        intent: &Intent,
    ) -> Result<Batch, SpoolError> {
        let mut batch = Batch::default();
        let of = manifest.manifest();
        let mut shown = Vec::new();
        let few = intent.names.len() <= durable::SYNC_EACH_MAX;
        if !few {
            batch.sync(Sync::Everything);
        }
        for (index, name, ino) in &intent.names {
            let Some(entry) = of.entries.get(*index as usize) else {
                continue;
            };
            let newest = self.version(of.origin, &entry.path)?;
            if newest.is_some_and(|newest| newest.order >= of.order()) {
                continue;
            }
            if self.roll_forward(manifest.id(), *index, name, *ino, few, &mut batch)? {
                shown.push((*index, name.clone(), *ino));
                if let Some(digest) = entry.digest() {
                    batch.put(INODES, &ino.to_be_bytes(), &InodeRow { digest });
                }
            }
        }
        self.settle(manifest, &shown, &mut batch)?;
        tracing::info!(bundle = %manifest.id().short(), "a publish that had begun is complete");
        Ok(batch)
    }

    /// `true`: the name shows the inode now. `false`: the user has removed it since.
    fn roll_forward(
        &self,
        bundle: BundleId,
        index: u32,
        name: &RelPath,
        ino: u64,
        few: bool,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        let at = self.at_inbox(name.as_path());
        let parent = at.parent().unwrap_or(&at).to_path_buf();
        if ino == 0 {
            self.make_inbox_directory(&at).on("create directory", &at)?;
            batch.sync(Sync::Directory(parent));
            return Ok(false);
        }
        let alone = self.layout.partial().join(format!("{bundle}.{index}"));
        let in_tree = self.staging_tree(bundle).join(name.as_path());
        for staged in [alone, in_tree] {
            if fs::symlink_metadata(&staged).is_ok_and(|meta| meta.ino() == ino) {
                self.make_inbox_directory(&parent)
                    .on("create directory", &parent)?;
                durable::rename(&staged, &at)?;
            }
        }
        if !fs::symlink_metadata(&at).is_ok_and(|meta| meta.ino() == ino) {
            return Ok(false);
        }
        if few {
            batch.sync(Sync::File(Arc::new(File::open(&at).on("open", &at)?)));
            batch.sync(Sync::Directory(parent));
        }
        Ok(true)
    }

    fn recover_inbox(&self) -> Result<(), SpoolError> {
        let gone = self.names_gone()?;
        walk(&|path| self.at_inbox(path), &mut |found| {
            let row: Option<InName> = self.journal.get(IN_NAMES, found.path.as_bytes())?;
            if row.is_some_and(|row| row.ino == found.stat.ino) {
                return Ok(());
            }
            if let Some((name, row)) = gone.get(&found.stat.ino)
                && self.take_back(&found.at, name, row)?
            {
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
            let at = spool.at_inbox(path_of(key));
            if fs::symlink_metadata(&at).is_ok_and(|meta| meta.ino() == row.ino) {
                return Ok(());
            }
            let mut batch = Batch::default();
            batch.delete(IN_NAMES, key);
            // Moved to the outbox, the inode may still be the one behind its digest.
            if spool.linked_digest(row.ino).is_none() {
                batch.delete(INODES, &row.ino.to_be_bytes());
            }
            spool.show_consumed(row.bundle, &mut batch)?;
            if let Ok(name) = RelPath::parse(key) {
                spool.name_consumed(row.origin, &row.path, &name, None, &mut batch)?;
            }
            spool.shown_no_more(row, &mut batch)?;
            spool.journal.submit(batch)
        })
    }

    fn recover_outbox(&self, same_boot: bool) -> Result<Vec<RecoveredFile>, SpoolError> {
        self.each_row::<OutName>(OUT_NAMES, |spool, key, row| {
            let at = spool.at_outbox(path_of(key));
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
        walk(&|path| self.at_outbox(path), &mut |found| {
            let ino = found.stat.ino;
            let mark: Option<Mark> = self.journal.get(MARKS, &ino.to_be_bytes())?;
            let row: Option<OutName> = self.journal.get(OUT_NAMES, found.path.as_bytes())?;
            if mark.is_some() {
                live_marks.insert(ino);
            }
            let unchanged = row
                .as_ref()
                .is_some_and(|row| row.stat.same_bytes(&found.stat));
            // Only its times differ: chmod, link, touch. What changes bytes through the mount leaves a mark; without one
            // the file is looked at again in the background, and its content link stays meanwhile.
            let same_size = row
                .as_ref()
                .is_some_and(|row| row.stat.ino == ino && row.stat.size == found.stat.size);
            if same_size && mark.is_none() {
                let known =
                    |row: &OutName| row.stat.ctime == found.stat.ctime && row.formerly.is_none();
                if unchanged && row.as_ref().is_some_and(known) {
                    return Ok(());
                }
                let recheck = if same_boot || unchanged {
                    Recheck::SendIfChanged
                } else {
                    Recheck::KeepIfChanged
                };
                self.recheck.lock().insert(ino, recheck);
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
                self.disown_content(row.digest, ino)?;
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
                self.recheck.lock().insert(ino, Recheck::SendIfChanged);
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

    /// Trees that were not sealed: what was in them and is below them now is taken out of the files that were found.
    fn recover_trees(&self, found: &mut Vec<RecoveredFile>) -> Result<(), SpoolError> {
        let rows = self.journal.scan::<TreeRow>(TREES, &[], None, usize::MAX)?;
        let mut trees = Vec::new();
        for (key, row) in rows {
            let tree = key.as_slice().try_into().map_or(0, u64::from_be_bytes);
            self.next_tree
                .fetch_max(tree.saturating_add(1), Ordering::Relaxed);
            let shows = |path: &RelPath| {
                let at = self.at_outbox(path.as_path());
                super::content::inode_at(&at) == Some(row.ino)
            };
            let root = if shows(&row.root) {
                row.root.clone()
            } else if row.begun && shows(&row.from) {
                row.from.clone()
            } else {
                // Renamed back or removed; or the rename that would have made it a tree was never done.
                let mut batch = Batch::default();
                batch.delete(TREES, &key);
                self.journal.submit(batch)?;
                continue;
            };
            let members: HashSet<u64> = row.files.iter().copied().collect();
            let is_member =
                |file: &RecoveredFile| members.contains(&file.ino) && file.path.starts_with(&root);
            let (files, others): (Vec<_>, Vec<_>) = found.drain(..).partition(is_member);
            *found = others;
            let below = row.directories.iter().filter_map(|directory| {
                RelPath::parse([root.as_bytes(), b"/", directory.as_bytes()].concat()).ok()
            });
            let directories = std::iter::once(root.clone()).chain(below).collect();
            trees.push(RecoveredTree {
                tree,
                root,
                files,
                directories,
            });
        }
        *self.recovered_trees.lock() = trees;
        Ok(())
    }

    pub(super) fn each_row<V: serde::de::DeserializeOwned>(
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
                        self.free_content(digest)?;
                        self.note_held(digest);
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
                Some(age > self.lifetime.as_secs())
            };
            let wanted = match bundle {
                Some(bundle) => {
                    self.journal.get::<Receipt>(SETTLED, &bundle.0)?.is_none()
                        && !old().unwrap_or(false)
                }
                None => false,
            };
            // A tree that was being built is rolled forward by now, or is fetched again.
            if !wanted || path.is_dir() {
                durable::remove_all(&path)?;
            }
        }
        Ok(())
    }

    /// A link is made before the rows that say so. One whose inode has no row, and another name through which it may be
    /// or has been changed, or that a power loss may have torn, does not stand for the digest unless it hashes to it.
    fn vouch(&self, digest: Digest, link: &Path, same_boot: bool) -> Result<(), SpoolError> {
        let meta = fs::symlink_metadata(link).on("stat", link)?;
        let row: Option<InodeRow> = self.journal.get(INODES, &meta.ino().to_be_bytes())?;
        let vouched = row.is_some_and(|row| row.digest == digest);
        // A copy made for who still waits has no row; it was synced before it got its only name.
        if vouched || (same_boot && meta.nlink() == 1) {
            return Ok(());
        }
        if self.content_needed(digest)? {
            let file = File::open(link).on("open", link)?;
            if hash_file(&file).on("read", link)?.digest == digest {
                let mut batch = Batch::default();
                batch.put(INODES, &meta.ino().to_be_bytes(), &InodeRow { digest });
                return self.journal.submit(batch);
            }
            tracing::error!(digest = %digest, "content that is still waited for is damaged");
        }
        durable::remove(link).map(drop)
    }
}

/// What says that another kind of file is where a directory or a file should go.
fn is_in_the_way(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOTDIR | libc::EEXIST | libc::EISDIR | libc::ENOTEMPTY)
    )
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

/// Made through the mount, where calls are relative, a path may be longer than an absolute call takes.
fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENAMETOOLONG | libc::EACCES)
    )
}

/// Shows every regular file of a tree; `reach` says where a path of it is. Anything else but directories is left alone.
fn walk(
    reach: &dyn Fn(&Path) -> PathBuf,
    look: &mut dyn FnMut(Found) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    use std::os::unix::ffi::OsStrExt;
    let mut open: Vec<PathBuf> = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let below = &directory;
        let directory = reach(below);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if is_out_of_reach(&e) && !below.as_os_str().is_empty() => {
                tracing::error!(at = %directory.display(), error = %e, "passed over");
                continue;
            }
            Err(e) => return Err(e).on("read", &directory),
        };
        for entry in entries {
            let below = below.join(entry.on("read", &directory)?.file_name());
            let at = reach(&below);
            let meta = match fs::symlink_metadata(&at) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if is_out_of_reach(&e) => {
                    tracing::error!(at = %at.display(), error = %e, "passed over");
                    continue;
                }
                Err(e) => return Err(e).on("stat", &at),
            };
            if meta.is_dir() {
                open.push(below);
            } else if meta.is_file() {
                match RelPath::parse(below.as_os_str().as_bytes().to_vec()) {
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
