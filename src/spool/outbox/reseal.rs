//! Seals whose rows were lost on their way to the disk, though their bytes were not.
//!
//! A bundle is offered as soon as it is sealed, a moment before its rows are durable. When the power fails, or a sync, in
//! that moment, a recipient may have it already while the journal does not know it; sealed again it would be another
//! bundle, and its file be shown a second time there. But the log that is dropped may still have the seal: where every
//! byte of the bundle is on the disk, it is taken up again as what it was, with its id and what is known of its recipients.
//!
//! # Invariants
//! 1. Nothing is believed of the log but bundles of our own with a valid signature all of whose bytes hash to what it says.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use crate::bundle::{EntryKind, RelPath, VerifiedManifest, link};
use crate::digest::Digest;
use crate::spool::durable::{self, OnPath, Sync};
use crate::spool::journal::Batch;
use crate::spool::ledger::sealed::LostSeal;
use crate::spool::outbox::hashing::hash_file;
use crate::spool::outbox::tables::{LATEST, MARKS, OUT_NAMES, OutName};
use crate::spool::start::LastRun;
use crate::spool::tables::Stat;
use crate::spool::{Spool, SpoolError};

/// Bytes hashed at one start, before anything is mounted. What is beyond is incomplete, as if it had not been sealed.
const HASHED_MAX: u64 = 1 << 30;

/// A file of a bundle, with the bytes that its manifest says.
struct Whole {
    entry: usize,
    digest: Digest,
    file: File,
}

impl Spool {
    /// Takes up seals that the dropped log has, and the journal has not.
    pub(in crate::spool) fn recover_seals(&self, last: LastRun) -> Result<(), SpoolError> {
        if last == LastRun::Whole {
            return Ok(());
        }
        let lost = self.ledger.lost_seals()?;
        if lost.is_empty() {
            return Ok(());
        }
        let names: HashMap<RelPath, OutName> =
            self.journal.dropped(OUT_NAMES).into_iter().collect();
        let mut budget = HASHED_MAX;
        for lost in lost {
            let Ok(manifest) = lost.signed().clone().verify() else {
                continue;
            };
            let bundle = manifest.id();
            let total = manifest.manifest().total_size();
            let ours = manifest.manifest().origin == self.identity.id();
            // Whom it is for is not known yet: it is sealed again when it is sent.
            if !ours || lost.held || total > budget {
                continue;
            }
            budget -= total;
            if let Some(files) = self.whole_files(&manifest, last)? {
                self.seal_as_before(&manifest, &lost, &files, &names)?;
                tracing::info!(bundle = %bundle.short(), "a seal whose rows were lost is taken up again");
            }
        }
        Ok(())
    }

    /// The files of the bundle, if all its bytes are here.
    fn whole_files(
        &self,
        manifest: &VerifiedManifest,
        last: LastRun,
    ) -> Result<Option<Vec<Whole>>, SpoolError> {
        let mut files = Vec::new();
        for (index, entry) in manifest.manifest().entries.iter().enumerate() {
            let EntryKind::File { size, digest, .. } = &entry.kind else {
                continue;
            };
            let content = self.layout.content(*digest);
            // What `send` sent has no name in the outbox.
            let opened = [self.outbox.root.read(&entry.path), File::open(&content)];
            let mut found = None;
            for file in opened.into_iter().flatten() {
                let meta = file.metadata().on("stat", &content)?;
                if !meta.is_file() || meta.len() != *size {
                    continue;
                }
                if last == LastRun::SyncFailed {
                    durable::read_from_disk(&file);
                }
                if hash_file(&file).on("read", &content)?.digest == *digest {
                    found = Some(file);
                    break;
                }
            }
            let Some(file) = found else { return Ok(None) };
            files.push(Whole {
                entry: index,
                digest: *digest,
                file,
            });
        }
        Ok(Some(files))
    }

    /// The rows of the seal, as they were.
    fn seal_as_before(
        &self,
        manifest: &VerifiedManifest,
        lost: &LostSeal,
        files: &[Whole],
        names: &HashMap<RelPath, OutName>,
    ) -> Result<(), SpoolError> {
        let (of, bundle) = (manifest.manifest(), manifest.id());
        let mut batch = Batch::default();
        self.ledger.seal_as_before(manifest, lost, &mut batch);
        let is_over = lost.is_over();
        if !is_over {
            self.ledger
                .set_deadline(bundle, of.lifetime_secs, &mut batch);
        }
        for Whole {
            entry,
            digest,
            file,
        } in files
        {
            let (path, digest) = (&of.entries[*entry].path, *digest);
            if !is_over {
                self.content.begin_need(bundle, [digest], &mut batch);
                batch.insert(LATEST, path, &bundle);
            }
            let at = self.outbox.root.shown(path);
            self.content.hold(file, digest, &mut batch)?;
            // After the link, which changes the change time.
            let stat = Stat::of(&file.metadata().on("stat", &at)?);
            self.content
                .record_sent(bundle, digest, &stat, &mut batch)?;
            let name = names.get(path);
            if let Some(name) = name.filter(|name| name.bundle == bundle)
                && self.outbox.root.inode(path)? == Some(stat.ino)
            {
                let name = OutName {
                    stat,
                    ..name.clone()
                };
                batch.insert(OUT_NAMES, path, &name);
                batch.remove(MARKS, &stat.ino);
                batch.sync(self.outbox.root.sync_above(path));
            }
            batch.sync(Sync::File(Arc::new(file.try_clone().on("open", &at)?)));
        }
        self.links_as_before(manifest, is_over, names, &mut batch)?;
        Ok(self.journal.submit(batch)?)
    }

    /// The same for the symbolic links of the bundle, which have no content.
    fn links_as_before(
        &self,
        manifest: &VerifiedManifest,
        is_over: bool,
        names: &HashMap<RelPath, OutName>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let (of, bundle) = (manifest.manifest(), manifest.id());
        for entry in &of.entries {
            let Some(digest) = entry.target().map(link::digest) else {
                continue;
            };
            let path = &entry.path;
            if !is_over {
                batch.insert(LATEST, path, &bundle);
            }
            let name = names.get(path);
            let Some(name) = name.filter(|name| name.bundle == bundle) else {
                continue;
            };
            if let Some((there, target)) = self.open_link(path, name.stat.ino)?
                && entry.target() == Some(target.as_slice())
            {
                let at = self.outbox.root.shown(path);
                let stat = Stat::of(&there.metadata().on("stat", &at)?);
                let name = OutName {
                    stat,
                    ..name.clone()
                };
                batch.insert(OUT_NAMES, path, &name);
                self.content.record(digest, &stat, batch)?;
                batch.remove(MARKS, &stat.ino);
                batch.sync(self.outbox.root.sync_above(path));
            }
        }
        Ok(())
    }
}
