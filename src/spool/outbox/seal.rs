//! Sealing: a ready file gets its digest, its manifest and its journal rows; from then on it is a bundle.
//!
//! Files, directories sent as one and what `meshbox send` sends differ in what they announce; the way from hashed files to
//! a bundle is one ([`commit`]).
//!
//! # Invariants
//! 1. Hashing holds no lock. The result counts only if, under the inode's gate, there is no writer and the write
//!    generation is the one from before; else it is thrown away.
//! 2. The rows of a seal are readable, and safe from a crash of the daemon, before anybody is offered the bundle.
//!    They become durable after the bytes, the name in the outbox and the content link. After a failed sync nothing is
//!    sealed: its rows would be gone at the next start, and the file be sent a second time.
//!
//! # Crash behaviour
//! Killed before the rows are submitted: the `closed` mark has the file sealed at the next start. After: the bundle is
//! there, with the same id.
//!
//! # Threads
//! The sealers ([`crate::spool::outbox::jobs`]), which hash in slices ([`crate::spool::outbox::hashing`]).

mod commit;
mod names;
mod plan;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(in crate::spool) use self::commit::Gates;
pub(in crate::spool) use self::plan::{Looked, Member, Plan, Taken, gates_of};
use crate::bundle::{
    BundleId, Entry, EntryKind, Former, Listing, MANIFEST_VERSION, Manifest, Priority, RelPath,
    Rest, Scope, VerifiedManifest,
};
use crate::digest::{Digest, Hashed};
use crate::peer::{self, PeerId};
use crate::spool::journal::Batch;
use crate::spool::outbox::hashing::Slice;
use crate::spool::outbox::jobs::Step;
use crate::spool::outbox::moved_on::MovedOn;
use crate::spool::{Event, Gate, Recheck, SealName, SealOutcome, SealRequest, Spool, SpoolError};

/// What a new manifest says of bundles before it.
#[derive(Default)]
pub(in crate::spool) struct Earlier {
    pub(in crate::spool) supersedes: Option<BundleId>,
    pub(in crate::spool) renamed_from: Vec<Former>,
    /// See [`Outbox::moved_on`](crate::spool::outbox::Outbox::moved_on).
    pub(in crate::spool) moved_on: Option<MovedOn>,
    pub(in crate::spool) rest_of: Option<Rest>,
}

/// What a manifest says of a file.
pub(in crate::spool) fn file_entry(
    path: &RelPath,
    meta: &std::fs::Metadata,
    hashed: Hashed,
) -> Entry {
    Entry {
        path: path.clone(),
        mtime: mtime_of(meta),
        kind: EntryKind::File {
            size: hashed.len,
            executable: is_executable(meta),
            digest: hashed.digest,
            chunks: hashed.chunks,
        },
    }
}

pub(in crate::spool) fn is_executable(meta: &std::fs::Metadata) -> bool {
    meta.mode() & 0o111 != 0
}

pub(in crate::spool) fn mtime_of(meta: &std::fs::Metadata) -> (i64, u32) {
    (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0))
}

impl SealRequest {
    /// For a file with one name.
    pub(crate) fn alone(
        gate: Arc<Gate>,
        name: SealName,
        done: impl FnOnce(SealOutcome) + Send + 'static,
    ) -> Self {
        Self {
            gate,
            names: vec![name],
            more: false,
            priority: Priority::default(),
            done: Box::new(move |outcomes| {
                if let Some(outcome) = outcomes.into_iter().next() {
                    done(outcome);
                }
            }),
        }
    }

    /// The same for all names.
    fn came_to(&self, outcome: &SealOutcome) -> Step {
        Step::Done(vec![outcome.clone(); self.names.len()])
    }
}

impl Spool {
    /// Hashes a slice of the file, and seals it when that was the last.
    pub(in crate::spool) fn seal_step(&self, request: &SealRequest, slice: &mut Slice<'_>) -> Step {
        match self.seal_now(request, slice) {
            Ok(step) => {
                if matches!(step, Step::Done(_)) {
                    self.seal_ended(request.gate.ino());
                }
                step
            }
            Err(error) => {
                tracing::warn!(?request, %error, "cannot seal");
                if let Some(name) = request.names.first() {
                    self.seal_failed(&name.path, &error);
                }
                request.came_to(&SealOutcome::Failed(Arc::new(error)))
            }
        }
    }

    fn seal_now(&self, request: &SealRequest, slice: &mut Slice<'_>) -> Result<Step, SpoolError> {
        let mut failed = None;
        for name in &request.names {
            match self.look_at_member(&request.gate, &name.path, slice) {
                Ok(Looked::Member(member)) => {
                    return Ok(Step::Done(self.seal_names(request, *member)?));
                }
                Ok(Looked::Open) => return Ok(request.came_to(&SealOutcome::Changed)),
                Ok(Looked::Later(left)) => return Ok(Step::Later(left)),
                Ok(Looked::Gone) => {}
                // Another name may be reached.
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(request.came_to(&SealOutcome::Gone)),
        }
    }

    /// New bundles count as queued when `batch` is durable; what they replaced is needed until then, since a power loss
    /// would undo the new versions.
    fn sealed_when_durable(&self, bundles: Vec<BundleId>, freed: Vec<Digest>, batch: &mut Batch) {
        self.ledger.volatile.lock().extend(bundles.iter().copied());
        let me = self.me.clone();
        batch.on_durable(move || {
            if let Some(spool) = me.upgrade() {
                for bundle in &bundles {
                    spool.ledger.volatile.lock().remove(bundle);
                }
                spool.outbox.free_later(freed);
                spool.doorbell.ring(&Event::StatusChanged);
            }
        });
    }

    /// What an earlier bundle of ours says of content with this digest, so that it need not be hashed again.
    pub(in crate::spool) fn hashed_before(&self, digest: Digest, len: u64) -> Option<Hashed> {
        let bundle: BundleId = self.content.sent_as(digest).ok().flatten()?;
        let manifest = self.ledger.shared_manifest(bundle).ok().flatten()?;
        manifest
            .manifest()
            .entries
            .iter()
            .find_map(|entry| match &entry.kind {
                EntryKind::File {
                    size,
                    digest: found,
                    chunks,
                    ..
                } if *found == digest && *size == len => Some(Hashed {
                    digest,
                    len,
                    chunks: chunks.clone(),
                }),
                EntryKind::File { .. } | EntryKind::Directory | EntryKind::Link { .. } => None,
            })
    }

    pub(in crate::spool) fn scoped_manifest(
        &self,
        listing: impl Into<Listing>,
        earlier: Earlier,
        priority: Priority,
        scope: Scope,
        lifetime: std::time::Duration,
    ) -> VerifiedManifest {
        let (epoch, incarnation) = self.epoch();
        let listing = listing.into();
        let renames = !earlier.renamed_from.is_empty();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            origin: self.identity.id(),
            epoch,
            incarnation,
            seq: self.next_seq.fetch_add(1, Ordering::Relaxed),
            lifetime_secs: lifetime.as_secs(),
            scope,
            priority,
            supersedes: earlier.supersedes,
            renamed_from: earlier.renamed_from,
            moved_on: earlier.moved_on.filter(|_| renames).map(|it| it.order),
            rest_of: earlier.rest_of,
            entries: listing.entries,
            directories: listing.directories,
            salt: peer::random(),
        };
        manifest.sign(&self.identity)
    }

    /// The rows of a new bundle of ours: what it is, whom it is for; `orphan`: for all, and there is nobody yet. Call
    /// with the decision lock held.
    pub(in crate::spool) fn bundle_rows_for(
        &self,
        manifest: &VerifiedManifest,
        recipients: &[PeerId],
        orphan: bool,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.group.bind()?;
        let bundle = manifest.id();
        let same_content = match manifest.manifest().single_digest() {
            Some(digest) => self.content.sent_as(digest)?,
            None => None,
        };
        self.ledger
            .seal(manifest, recipients, orphan, same_content, batch);
        let digests = manifest.manifest().digests();
        self.content.begin_need(bundle, digests, batch);
        Ok(())
    }

    /// A newer version of the same path goes to everybody who still waits for `old`, unless its transfer has begun or
    /// `old` has another path whose newest version it still is: then it is delivered, and the receiver shows the newer
    /// of each. Call with the decision lock held, before the new version's own rows of the path are in `batch`. Gives
    /// the content that `old` no longer needs.
    pub(in crate::spool) fn supersede(
        &self,
        old: BundleId,
        newer: &VerifiedManifest,
        batch: &mut Batch,
    ) -> Result<Vec<Digest>, SpoolError> {
        if !self.is_superseded(old, newer)? {
            return Ok(Vec::new());
        }
        if self.ledger.supersede(old, &newer.manifest().scope, batch)? {
            self.release_rows(old, batch)
        } else {
            Ok(Vec::new())
        }
    }

    /// Whether every path of `old` has a newer version, counting those of `newer`.
    fn is_superseded(&self, old: BundleId, newer: &VerifiedManifest) -> Result<bool, SpoolError> {
        let Some(manifest) = self.ledger.shared_manifest(old)? else {
            return Ok(true);
        };
        let entries = &manifest.manifest().entries;
        if entries.len() == 1 {
            return Ok(true);
        }
        if self
            .ledger
            .deliveries_of(old)?
            .iter()
            .all(|(_, s)| s.is_final())
            && !self.ledger.is_orphan(old)?
        {
            return Ok(false);
        }
        let newer: std::collections::HashSet<&RelPath> = newer
            .manifest()
            .entries
            .iter()
            .map(|entry| &entry.path)
            .collect();
        // From the end: who changes file after file most likely goes through them in order.
        for entry in entries.iter().rev() {
            let latest = || self.outbox.latest(&entry.path);
            if !newer.contains(&entry.path) && latest()? == Some(old) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Frees content that nobody needs.
    pub(in crate::spool) fn free_all(&self, digests: &[Digest]) {
        for digest in digests {
            let _decide = self.decide();
            if let Err(error) = self.content.free(*digest) {
                tracing::warn!(%error, "content that nobody needs stays until the next start");
            }
        }
    }

    /// Queues a look at a file that was sealed before: its content link is made again, and who has not been promised its
    /// bundle yet is.
    pub(in crate::spool) fn look_again(&self, path: RelPath, ino: u64) {
        self.outbox
            .recheck
            .lock()
            .insert(ino, Recheck::SendIfChanged);
        let name = SealName {
            path,
            renamed_from: None,
        };
        self.outbox
            .seal(SealRequest::alone(self.outbox.gate(ino), name, |outcome| {
                tracing::debug!(?outcome, "looked again");
            }));
    }
}
