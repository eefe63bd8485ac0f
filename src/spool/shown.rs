//! What status shows: rows of bundles, and counters.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::outbox::MarkKind;
use super::{Counts, FileState, Spool};
use crate::bundle::{BundleId, CancelReason, DeliveryState, InboxStage, RelPath, Stage};
use crate::digest::Digest;
use crate::peer::PeerId;
use crate::spool::group::route::HeldRow;
use crate::spool::ledger::inbound::{InboundShown, InboundState};

/// Rows looked at for a count; more is shown as this many.
const COUNT_MAX: usize = 10_000;

/// How many of the newest bundles are looked through for one of a file that is gone: some 10 ms.
const LAST_LOOK: usize = 1000;

/// Counters since start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sealed: AtomicU64,
    pub(super) published: AtomicU64,
    pub(super) receipts: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    pub(super) bytes_twice: AtomicU64,
    pub(super) ignored: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) quarantined: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// One row of `outbound` in status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutboundRow {
    /// Path below `outbox/`, lossy text.
    pub path: String,
    /// The path's bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_b64: Option<String>,
    /// Bundle id as hex.
    pub bundle: String,
    /// Digest as hex.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
    /// When it was sealed, in seconds since 1970.
    #[serde(default)]
    pub sealed_at: u64,
    /// That of the recipient that is least far.
    pub state: Stage,
    /// Each recipient.
    pub recipients: Vec<RecipientRow>,
}

/// One recipient of an [`OutboundRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecipientRow {
    /// Its id as hex.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How far the delivery to it is.
    pub state: Stage,
    /// Bytes it has asked for so far.
    pub bytes: u64,
    /// Why it does not go on.
    pub error: Option<String>,
    /// It was not to get this any more when it was given up or stopped being a member: it counts for nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gone: bool,
}

impl OutboundRow {
    /// The recipients that count.
    pub(crate) fn living(&self) -> impl Iterator<Item = &RecipientRow> {
        self.recipients.iter().filter(|recipient| !recipient.gone)
    }
}

// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// One row of `inbound` in status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InboundRow {
    /// Path below `inbox/` (or as the origin calls it, while it arrives), lossy text.
    pub path: String,
    /// The path's bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path_b64: Option<String>,
    /// Bundle id as hex.
    pub bundle: String,
    /// Digest as hex.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
    /// Bytes of it that are here.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes in a second, while it arrives.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rate: u64,
    /// When its state changed last, in seconds since 1970; 0 while it arrives.
    #[serde(default)]
    pub at: u64,
    /// Name of the origin.
    pub from: String,
    /// How far it is here.
    pub state: InboxStage,
    /// Why it does not go on.
    pub error: Option<String>,
}

// As above.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Spool {
    /// Newest bundles of ours first; `before` is a cursor: the order of the last row of the page before.
    pub(crate) fn outbound(&self, before: Option<u64>, limit: usize) -> Vec<OutboundRow> {
        let bundles = self.ledger.outbound(before, limit).unwrap_or_default();
        bundles
            .into_iter()
            .filter_map(|bundle| self.outbound_row(bundle, None))
            .collect()
    }

    /// Bundles of ours that somebody still waits for, newest first, and how many further ones there are, counted
    /// as `count_open` does.
    pub(crate) fn outbound_unfinished(&self, limit: usize) -> (Vec<OutboundRow>, u64) {
        let newest = self.ledger.newest_open(limit).unwrap_or_default();
        let more = self.ledger.count_open();
        let more = more.saturating_sub(newest.len() as u64);
        let rows = newest.into_iter();
        let rows = rows.filter_map(|bundle| self.outbound_row(bundle, None));
        (rows.collect(), more)
    }

    /// Rows of each direction that are in status, counted up to [`COUNT_MAX`].
    pub(crate) fn shown_rows(&self) -> (u64, u64) {
        let inbound = self.ledger.inbound_rows(COUNT_MAX) as u64;
        (self.ledger.count_outbound(), inbound)
    }

    /// Bundles of ours from `path` and below, newest first, of the newest [`LAST_LOOK`].
    pub(crate) fn outbound_below(&self, path: &RelPath, limit: usize) -> Vec<OutboundRow> {
        let newest = self.ledger.outbound(None, LAST_LOOK).unwrap_or_default();
        let below = |bundle: &BundleId| {
            let manifest = self.ledger.shared_manifest(*bundle).ok().flatten();
            let title = manifest.and_then(|manifest| manifest.manifest().title());
            title.is_some_and(|title| title.starts_with(path))
        };
        let found = newest.into_iter().filter(below).take(limit);
        found
            .filter_map(|bundle| self.outbound_row(bundle, None))
            .collect()
    }

    /// Bundles of others that came as `path` or below it, newest first, of the newest [`LAST_LOOK`] and those arriving.
    pub(crate) fn inbound_below(&self, path: &RelPath, limit: usize) -> Vec<InboundRow> {
        let arriving: Vec<InboundShown> = self.ledger.arriving.lock().values().cloned().collect();
        let rows = self.ledger.inbound(None, LAST_LOOK);
        let rows = rows.unwrap_or_default().into_iter();
        let settled: Vec<InboundShown> = rows
            .filter(|row| !arriving.iter().any(|other| other.bundle == row.bundle))
            .collect();
        let below = arriving.iter().chain(&settled);
        let below = below.filter(|row| row.path.starts_with(path)).take(limit);
        below.map(|row| self.inbound_row(row)).collect()
    }

    /// The deliveries of the newest bundle that was sealed from `path`; `None` if there is none, or the file was
    /// modified since.
    pub(crate) fn outbound_of(&self, path: &RelPath) -> Option<OutboundRow> {
        use std::os::unix::fs::MetadataExt;
        let row = self.outbox.name(path).ok().flatten()?;
        let meta = self.outbox.root.metadata(path).ok()?;
        let marked = self.outbox.mark_of(meta.ino()).ok().flatten().is_some();
        if meta.ino() != row.stat.ino || marked || !self.is_current(&row) {
            return None;
        }
        self.outbound_row(row.bundle, Some(path))
    }

    /// The deliveries of the newest bundle of ours that had `path`, whatever the outbox shows there now; of those that are
    /// complete only the newest [`LAST_LOOK`] are looked through.
    pub(crate) fn outbound_last(&self, path: &RelPath) -> Option<OutboundRow> {
        let waiting = self.outbox.latest(path).ok().flatten();
        if let Some(bundle) = waiting {
            return self.outbound_row(bundle, Some(path));
        }
        let newest = self.ledger.outbound(None, LAST_LOOK);
        newest.unwrap_or_default().into_iter().find_map(|bundle| {
            let manifest = self.ledger.shared_manifest(bundle).ok().flatten()?;
            let entries = &manifest.manifest().entries;
            let has = entries.iter().any(|entry| entry.path == *path);
            has.then(|| self.outbound_row(bundle, Some(path))).flatten()
        })
    }

    /// The deliveries of a bundle of ours.
    pub(crate) fn outbound_bundle(&self, bundle: BundleId) -> Option<OutboundRow> {
        let ours = self.find_outbound(None, Some(bundle))?;
        self.outbound_row(ours, None)
    }

    fn outbound_row(&self, bundle: BundleId, path: Option<&RelPath>) -> Option<OutboundRow> {
        let manifest = self.ledger.shared_manifest(bundle).ok().flatten()?;
        let says = manifest.manifest();
        let title = says.title()?;
        let path = path.unwrap_or(&title);
        let sealed_only = self.ledger.volatile.lock().contains(&bundle);
        let (mut recipients, states) = self.recipients_of(bundle, says.total_size());
        let settled = !states.is_empty() && states.iter().all(DeliveryState::is_final);
        let held = self.ledger.held_for(bundle).filter(|_| states.is_empty());
        let held = held.map(|row| held_rows(&row));
        let ended = || self.ledger.ended(bundle, says.origin);
        let state = if let Some(reason) = ended().filter(|_| states.is_empty()) {
            reason.stage()
        } else if held.is_some() {
            Stage::Waiting
        } else if states.is_empty() && !self.ledger.is_orphan(bundle).unwrap_or(true) {
            // It was held for somebody, and a newer version of its name went instead.
            Stage::Superseded
        } else if sealed_only && !settled {
            Stage::Sealed
        } else {
            // What all have who are still there is delivered, whoever else was to have it.
            let living = recipients.iter().zip(&states);
            let living = living.filter(|(recipient, _)| !recipient.gone);
            let living: Vec<DeliveryState> = living.map(|(_, state)| state.clone()).collect();
            least(if living.is_empty() { &states } else { &living })
        };
        recipients.extend(held.into_iter().flatten());
        Some(OutboundRow {
            path: path.to_string(),
            path_b64: base64_of(path),
            bundle: bundle.to_string(),
            sha256: says.single_digest().map(Digest::to_hex).unwrap_or_default(),
            size: says.total_size(),
            sealed_at: self.ledger.sealed_at(bundle).ok().flatten().unwrap_or(0),
            state,
            recipients,
        })
    }

    /// Whom a bundle of `size` bytes is for, each with its state.
    fn recipients_of(
        &self,
        bundle: BundleId,
        size: u64,
    ) -> (Vec<RecipientRow>, Vec<DeliveryState>) {
        let deliveries = self.ledger.deliveries_shown(bundle).unwrap_or_default();
        let row = |(peer, state)| (self.recipient_row(peer, &state, size), state);
        deliveries.into_iter().map(row).unzip()
    }

    fn recipient_row(&self, peer: PeerId, state: &DeliveryState, size: u64) -> RecipientRow {
        let mut gone = false;
        let (bytes, error) = match state {
            DeliveryState::Sending(bytes) => (*bytes, None),
            DeliveryState::Deferred(why) | DeliveryState::Refused(why) => (0, Some(why.clone())),
            DeliveryState::Cancelled => {
                let why = self.group.why_cancelled(peer);
                gone = why.is_some();
                (0, why)
            }
            DeliveryState::Delivered => (size, None),
            DeliveryState::Queued
            | DeliveryState::Offered
            | DeliveryState::Superseded
            | DeliveryState::Expired => (0, None),
        };
        RecipientRow {
            id: peer.to_string(),
            name: self.group.name_of(peer),
            state: state.stage(),
            bytes,
            error,
            gone,
        }
    }

    /// Newest received bundles first; what is arriving right now comes before the first page.
    pub(crate) fn inbound(&self, before: Option<u64>, limit: usize) -> Vec<InboundRow> {
        let mut found = Vec::new();
        let arriving: Vec<InboundShown> = self
            .ledger
            .arriving
            .lock()
            .values()
            .take(limit)
            .cloned()
            .collect();
        if before.is_none() {
            found.extend(arriving.iter().map(|row| self.inbound_row(row)));
        }
        let rows = self.ledger.inbound(before, limit).unwrap_or_default();
        let settled = rows
            .iter()
            .filter(|row| !arriving.iter().any(|other| other.bundle == row.bundle));
        found.extend(settled.map(|row| self.inbound_row(row)));
        found.truncate(limit);
        found
    }

    fn inbound_row(&self, row: &InboundShown) -> InboundRow {
        let arrives = row.state == InboundState::Incoming;
        let (bytes, rate) = match self
            .content
            .arrival_progress(row.bundle)
            .filter(|_| arrives)
        {
            Some(progress) => progress,
            None if row.is_here() => (row.size, 0),
            None => (0, 0),
        };
        let published = row.state == InboundState::Received
            && self.ledger.volatile.lock().contains(&row.bundle);
        InboundRow {
            path: row.path.to_string(),
            path_b64: base64_of(&row.path),
            bundle: row.bundle.to_string(),
            sha256: row.digest.map(Digest::to_hex).unwrap_or_default(),
            size: row.size,
            bytes,
            rate,
            at: row.at,
            from: self.group.name_of(row.origin),
            state: inbox_stage(row.state, published),
            error: row.error.clone(),
        }
    }

    /// `queued`, `delivered 3/4`, … of a bundle of ours, for the attributes of its file.
    pub(super) fn bundle_state(&self, bundle: BundleId, digest: Digest) -> FileState {
        let mut shown = FileState {
            sha256: Some(digest),
            bundle: Some(bundle),
            ..FileState::default()
        };
        let Some(row) = self.outbound_row(bundle, None) else {
            shown.state = Some(FileStage::At(Stage::Delivered));
            return shown;
        };
        let done = row
            .recipients
            .iter()
            .filter(|recipient| recipient.state == Stage::Delivered)
            .count();
        let all = row.living().count();
        let delivering = matches!(
            row.state,
            Stage::Queued | Stage::Offered | Stage::Sending | Stage::Delivered
        );
        shown.state = Some(if delivering && done > 0 {
            FileStage::Delivered { done, all }
        } else {
            FileStage::At(row.state)
        });
        shown.error = row
            .recipients
            .iter()
            .filter(|r| !(r.gone && row.state == Stage::Delivered))
            .find_map(|r| Some(format!("{}: {}", r.name, r.error.as_ref()?)))
            .or_else(|| self.why_stuck(digest, row.size));
        let slowest = row
            .living()
            .map(|recipient| recipient.bytes)
            .min()
            .unwrap_or(0);
        shown.progress = Some((slowest, row.size));
        shown
    }

    /// Counters.
    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let marks = self.outbox.marks(None, COUNT_MAX).unwrap_or_default();
        let quarantine = std::fs::read_dir(self.layout.quarantine());
        let quarantined = quarantine.map_or(0, |entries| {
            entries.flatten().filter(|e| !has_reason(&e.path())).count()
        });
        Counts {
            outbound_pending: self.ledger.count_open(),
            sealed: read(&self.counters.sealed),
            published: read(&self.counters.published),
            receipts: read(&self.counters.receipts),
            bytes_sent: read(&self.counters.bytes_sent),
            bytes_received: read(&self.counters.bytes_received),
            bytes_twice: read(&self.counters.bytes_twice),
            incomplete: marks
                .iter()
                .filter(|(_, mark)| mark.kind == MarkKind::Torn)
                .count() as u64,
            unsealed: 0,
            ignored: read(&self.counters.ignored),
            removed: read(&self.counters.removed),
            quarantined: quarantined as u64,
            refused: read(&self.counters.refused),
            held_bytes: self.content.held_bytes(),
            unverified: self.doubts.left(),
        }
    }

    /// The newest bundle of ours that was sealed from `path`, or the one with this id in hex.
    pub(crate) fn find_outbound(
        &self,
        path: Option<&RelPath>,
        id: Option<BundleId>,
    ) -> Option<BundleId> {
        let ours = |bundle: &BundleId| {
            let place = self.ledger.place(*bundle);
            place.ok().flatten().is_some()
        };
        if let Some(bundle) = id.filter(ours) {
            return Some(bundle);
        }
        let path = path?;
        let row = self
            .outbound_of(path)
            .or_else(|| self.outbound_last(path))?;
        BundleId::from_hex(&row.bundle)
    }
}

fn has_reason(path: &std::path::Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "why" || extension == "new")
}

/// How far a bundle of another is; `published`: what was received is not durable yet.
fn inbox_stage(state: InboundState, published: bool) -> InboxStage {
    match state {
        InboundState::Incoming => InboxStage::Incoming,
        InboundState::Deferred => InboxStage::Deferred,
        InboundState::Quarantined => InboxStage::Quarantined,
        InboundState::Refused | InboundState::Contradicts => InboxStage::Refused,
        InboundState::Withdrawn => InboxStage::Withdrawn,
        InboundState::Ended(CancelReason::Cancelled) => InboxStage::Cancelled,
        InboundState::Ended(CancelReason::Expired) => InboxStage::Expired,
        InboundState::Received if published => InboxStage::Published,
        InboundState::Received => InboxStage::Received,
        InboundState::Consumed => InboxStage::Consumed,
        InboundState::Damaged => InboxStage::Damaged,
    }
}

/// How far a file is, with what its attribute says besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileStage {
    /// In the outbox.
    At(Stage),
    /// On its way, and some recipients have it.
    Delivered {
        /// How many have it.
        done: usize,
        /// How many are to have it.
        all: usize,
    },
    /// It is sent with the rest of its directory, which waits for the file with this path.
    WaitsFor(RelPath),
    /// Not sent, since its name matches this pattern.
    Ignored(String),
    /// In the inbox.
    Inbox(InboxStage),
}

#[cfg(test)]
impl FileState {
    /// What `user.meshbox.state` says.
    pub(crate) fn word(&self) -> String {
        self.state
            .as_ref()
            .map_or_else(String::new, FileStage::to_string)
    }
}

impl fmt::Display for FileStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(stage) => stage.fmt(f),
            Self::Delivered { done, all } => write!(f, "delivered {done}/{all}"),
            Self::WaitsFor(path) => write!(f, "waiting: {path}"),
            Self::Ignored(pattern) => write!(f, "ignored: matches {pattern}"),
            Self::Inbox(stage) => stage.fmt(f),
        }
    }
}

/// A bundle that is held back waits for each of the words that name nobody.
fn held_rows(row: &HeldRow) -> Vec<RecipientRow> {
    let waits = |(at, word): (usize, &String)| RecipientRow {
        id: String::new(),
        name: word.clone(),
        state: Stage::Waiting,
        bytes: 0,
        error: (at == 0).then(|| row.why.join("; ")),
        gone: false,
    };
    row.to.iter().enumerate().map(waits).collect()
}

/// The state of a bundle: that of the recipient that is least far.
fn least(states: &[DeliveryState]) -> Stage {
    let stages = states.iter().map(DeliveryState::stage);
    stages.min().unwrap_or(Stage::Queued)
}

fn base64_of(path: &RelPath) -> Option<String> {
    let bytes = path.as_bytes();
    std::str::from_utf8(bytes)
        .is_err()
        .then(|| data_encoding::BASE64.encode(bytes))
}
