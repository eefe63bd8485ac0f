//! Proofs: what origins signed of the files that the inbox shows, kept beside the journal, so that the inbox outlives it.
//!
//! Each publish appends its signed manifest and the names it got. When the journal is missing at start, a file in the inbox
//! is still there with the bytes that its origin signed for this name, or it is not; so the rows of the inbox are made
//! again from the proofs, and every file is hashed before it is shown ([`crate::spool::inbox::doubt`]). What stays lost is what nobody
//! signed: which names were consumed whose proofs are gone, what was queued, and who is waiting.
//!
//! # Invariants
//! 1. Nothing is believed of a proof but what its origin signed, and no bytes that do not hash to it.
//! 2. The proofs of what is shown are kept; others go when the file has doubled since they last went.
//!
//! # Crash behaviour
//! A proof is appended before the rows of the publish, without sync, and is of no use without the file. A publish that
//! never was has a proof without a file, which is as if it had been consumed; its bundle is not settled by it, since it
//! counts only while the journal has never been used. Of a file that gets a free name it is appended before the rename, and
//! stands for the intent: a name of the inbox that has no row, but a proof that its file agrees with, gets its rows at the next
//! start. Segments are replaced by one rename.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::bundle::{RelPath, SignedManifest, VerifiedManifest};
use crate::journal::JournalError;
use crate::journal::log::{self, Log, Record, Segment};
use crate::spool::durable::{self, OnPath};
use crate::spool::inbox::publish::Given;
use crate::spool::inbox::tables::{IN_NAMES, InName};
use crate::spool::journal::Batch;
use crate::spool::recover::Found;
use crate::spool::start::LastRun;
use crate::spool::{Layout, Spool, SpoolError};

/// Proofs of fewer bytes than these are not looked through.
const SWEEP_FROM: u64 = 4 << 20;

/// About how many bytes of proofs are held at once while what a crash left is completed. A proof has the chunk list of its
/// file. Files beyond them are fetched again.
const PROVED_MAX: usize = 32 << 20;

/// What an origin signed, and the names that its entries got here.
#[derive(Debug, Serialize, Deserialize)]
struct Proof {
    signed: SignedManifest,
    names: Vec<Given>,
}

/// The file they are appended to.
#[derive(Debug)]
pub(in crate::spool) struct Proofs {
    at: PathBuf,
    log: Mutex<Log>,
    /// Bytes on the disk.
    size: AtomicU64,
    /// Bytes beyond which those that are past go.
    sweep_at: AtomicU64,
}

impl Proofs {
    pub(in crate::spool) fn open(layout: &Layout) -> Result<Self, SpoolError> {
        let at = layout.proofs();
        let log = Log::open(&at)?;
        let mut size = 0;
        for segment in log::segments(&at)? {
            let path = log::name(&at, segment);
            size += path.metadata().on("stat", &path)?.len();
        }
        Ok(Self {
            at,
            log: Mutex::new(log),
            size: AtomicU64::new(size),
            sweep_at: AtomicU64::new(SWEEP_FROM),
        })
    }

    fn append(&self, proof: &Proof) -> Result<(), SpoolError> {
        let record = Record::new(|header| postcard::to_extend(proof, header))
            .map_err(|e| JournalError::Record(e.to_string()))?;
        self.log.lock().append(&record)?;
        let len = record.len() as u64;
        self.size.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    #[cfg(test)]
    pub(in crate::spool) fn sweep_now(&self) {
        self.sweep_at.store(0, Ordering::Relaxed);
    }

    /// Goes through all of them in order; one that is damaged ends its segment.
    fn each(
        &self,
        look: &mut dyn FnMut(&[u8]) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        for segment in log::segments(&self.at)? {
            each_of(&log::name(&self.at, segment), look)?;
        }
        Ok(())
    }
}

fn each_of(
    path: &Path,
    look: &mut dyn FnMut(&[u8]) -> Result<(), SpoolError>,
) -> Result<(), SpoolError> {
    let mut reader = BufReader::new(File::open(path).on("open", path)?);
    while let Some(body) = log::next_record(&mut reader).on("read", path)? {
        look(&body)?;
    }
    Ok(())
}

impl Spool {
    /// Keeps what is about to be shown provable. Best effort, with an intent: without it the file is only not shown when the
    /// journal is lost. `false`: there is no proof.
    pub(in crate::spool) fn keep_proof(
        &self,
        manifest: &VerifiedManifest,
        names: &[Given],
    ) -> bool {
        if names.is_empty() {
            return false;
        }
        let proof = Proof {
            signed: manifest.signed(),
            names: names.to_vec(),
        };
        let kept = self.proofs.append(&proof);
        if let Err(error) = &kept {
            tracing::warn!(%error, "what was received is not kept for the case that the journal is lost");
        }
        kept.is_ok()
    }

    /// Completes the publishes of files that the inbox shows without a row, as far as there are proofs of them. Gives the
    /// others, which come again: none of them has a receipt. So no proof or file that cannot be read keeps the daemon from
    /// starting.
    pub(super) fn publish_proved(
        &self,
        found: Vec<Found>,
        last: LastRun,
    ) -> Result<Vec<Found>, SpoolError> {
        if found.is_empty() || last == LastRun::SyncFailed {
            return Ok(found);
        }
        let names: HashSet<&RelPath> = found.iter().map(|found| &found.path).collect();
        let mut proofs: HashMap<RelPath, Proof> = HashMap::new();
        let mut bytes = 0;
        let read = self.proofs.each(&mut |body| {
            if let Ok(proof) = postcard::from_bytes::<Proof>(body)
                && let [(_, name, _)] = &proof.names[..]
                && names.contains(name)
                && bytes < PROVED_MAX
            {
                bytes += body.len();
                proofs.insert(name.clone(), proof);
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(%error, "not all proofs of what was received can be read");
        }
        let mut others = Vec::new();
        for found in found {
            let done = match proofs.remove(&found.path) {
                Some(Proof { signed, names }) => self
                    .forward_proved(signed, names, last)
                    .unwrap_or_else(|error| {
                        tracing::warn!(path = %found.path, %error, "a file without a row is fetched again");
                        false
                    }),
                None => false,
            };
            if !done {
                others.push(found);
            }
        }
        Ok(others)
    }

    /// The rows of an inbox whose journal is missing, as far as origins signed what it shows.
    pub(in crate::spool) fn rebuild_inbox(&self) -> Result<(), SpoolError> {
        let mut names = 0_u64;
        self.proofs.each(&mut |body| {
            let Ok(proof) = postcard::from_bytes::<Proof>(body) else {
                tracing::warn!("a proof of what was received cannot be read");
                return Ok(());
            };
            match proof.signed.verify() {
                Ok(manifest) => {
                    names += self.rebuild_names(&manifest, proof.names)?;
                    self.journal.make_room();
                    Ok(())
                }
                Err(error) => {
                    tracing::warn!(%error, "a proof of what was received is not genuine");
                    Ok(())
                }
            }
        })?;
        tracing::warn!(
            names,
            "the journal was missing: names of the inbox are taken from what their origins signed"
        );
        Ok(())
    }

    fn rebuild_names(
        &self,
        manifest: &VerifiedManifest,
        names: Vec<Given>,
    ) -> Result<u64, SpoolError> {
        let of = manifest.manifest();
        if !of.is_for(self.identity.id()) {
            return Ok(0);
        }
        let mut batch = Batch::default();
        let mut given = Vec::with_capacity(names.len());
        for (index, name, _) in names {
            let Some(entry) = of.entries.get(index as usize) else {
                continue;
            };
            let newest = self.version(of.origin, &entry.path)?;
            if entry.mark().is_none() || newest.is_some_and(|newest| newest.order >= of.order()) {
                continue;
            }
            if entry.target().is_some() {
                self.may_show(entry, &name)?;
                self.claim_top(of.origin, &entry.path, &name, &mut batch)?;
            }
            self.choose(of.origin, &entry.path, &name, true, &mut batch);
            // No inode: the file is hashed before it is shown.
            given.push((index, name, 0));
        }
        self.settle(manifest, &given, &mut batch)?;
        self.journal.submit(batch)?;
        Ok(given.len() as u64)
    }

    /// Lets go the proofs of what is not shown any more, when they have become many.
    pub(in crate::spool) fn sweep_proofs(&self) -> Result<(), SpoolError> {
        let proofs = &self.proofs;
        if proofs.size.load(Ordering::Relaxed) < proofs.sweep_at.load(Ordering::Relaxed) {
            return Ok(());
        }
        let ended = {
            let mut log = proofs.log.lock();
            let next = Segment::after(&proofs.at, log.segment())?;
            log.rotate(next)
        };
        // Whoever wrote to what is looked through was about to write its rows, and has.
        drop(self.decide());
        let temp = proofs.at.join("sweeping");
        let mut new = BufWriter::new(File::create(&temp).on("create", &temp)?);
        let (mut before, mut after) = (0_u64, 0_u64);
        let old: Vec<u64> = log::segments(&proofs.at)?;
        for segment in old.iter().copied().filter(|segment| *segment <= ended) {
            each_of(&log::name(&proofs.at, segment), &mut |body| {
                before += Record::len_of(body);
                if self.still_shown(body)? {
                    after += Record::len_of(body);
                    let record = Record::of(body);
                    new.write_all(record.bytes()).on("write", &temp)?;
                }
                Ok(())
            })?;
        }
        new.flush().on("write", &temp)?;
        durable::rename(&temp, &log::name(&proofs.at, ended))?;
        for segment in old.into_iter().filter(|segment| *segment < ended) {
            durable::remove(&log::name(&proofs.at, segment))?;
        }
        proofs.size.fetch_sub(before - after, Ordering::Relaxed);
        let next = SWEEP_FROM.max(after.saturating_mul(2));
        proofs.sweep_at.store(next, Ordering::Relaxed);
        Ok(())
    }

    fn still_shown(&self, body: &[u8]) -> Result<bool, SpoolError> {
        let Ok(proof) = postcard::from_bytes::<Proof>(body) else {
            return Ok(false);
        };
        let bundle = proof.signed.id();
        for (_, name, _) in &proof.names {
            let row: Option<InName> = self.journal.row(IN_NAMES, name)?;
            if row.is_some_and(|row| row.bundle == bundle) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
