//! Bundles of ours, from their seal until they are forgotten.
//!
//! # Invariants
//! 1. A bundle of ours is owed to its recipients; or it waits for a first member, or for what it is held for to be known.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

use crate::bundle::{BundleId, DeliveryState, Scope, SignedManifest, VerifiedManifest};
use crate::journal::{Batch, JournalError};
use crate::peer::PeerId;
use crate::spool::group::route::HeldRow;
use crate::spool::keys::{Ends, Newest};
use crate::spool::ledger::Ledger;
use crate::spool::ledger::kept::is_ours;
use crate::spool::ledger::rank::Rank;
use crate::spool::ledger::tables::{
    BUNDLES, BundleHead, BundleRow, DEADLINES, DELIVERIES, HELD, ORPHANS, OUT_ORDER, PENDING, SMALL,
};
use crate::spool::{SpoolError, now_secs};

/// Rows looked at for a count; more is shown as this many.
const COUNT_MAX: usize = 10_000;

/// Rows read at once, and how often, when the newest that are not finished are looked for.
const PAGE: usize = if cfg!(test) { 2 } else { 250 };
const PAGES: usize = if cfg!(test) { 1 } else { 8 };

/// A seal that the dropped log has, and the journal has not.
pub(in crate::spool) struct LostSeal {
    row: BundleRow,
    /// Whom it was for, as far as is known.
    pub(in crate::spool) to: Vec<(PeerId, DeliveryState)>,
    /// Whom it is for was not known yet.
    pub(in crate::spool) held: bool,
}

impl LostSeal {
    pub(in crate::spool) fn signed(&self) -> &SignedManifest {
        &self.row.signed
    }

    /// Nobody waits for it any more.
    pub(in crate::spool) fn is_over(&self) -> bool {
        !self.to.is_empty() && self.to.iter().all(|(_, state)| state.is_final())
    }
}

impl Ledger {
    /// The rows of a new bundle of ours: what it is, whom it is for; `orphan`: for all, and there is nobody yet.
    /// `same_content`: the bundle before it with the content of its one file.
    pub(in crate::spool) fn seal(
        &self,
        manifest: &VerifiedManifest,
        recipients: &[PeerId],
        orphan: bool,
        same_content: Option<BundleId>,
        batch: &mut Batch,
    ) {
        let bundle = manifest.id();
        let of = manifest.manifest();
        let order = self.next_out.fetch_add(1, Ordering::Relaxed);
        let ends = self.deadline_after(Ends::Bundle(bundle), of.lifetime_secs.saturating_mul(1000));
        let rank = Rank::of(of.priority, order);
        let small = manifest.encoded_len() <= SMALL;
        if !small {
            batch.insert(DEADLINES, &Ends::Bundle(bundle), &ends);
        }
        let head = BundleHead {
            order,
            sealed_at: now_secs(),
            ends,
            same_content,
            to: self.queue_first((bundle, small), recipients, rank, ends, batch),
        };
        let signed = manifest.signed();
        batch.insert(BUNDLES, &bundle, &BundleRow { head, signed });
        batch.insert(OUT_ORDER, &Newest(order), &bundle);
        if orphan {
            batch.insert(ORPHANS, &order, &bundle);
        }
    }

    /// Seals that were lost with what was dropped of the log, the oldest first.
    pub(in crate::spool) fn lost_seals(&self) -> Result<Vec<LostSeal>, SpoolError> {
        let mut lost = Vec::new();
        for (key, row) in self.journal.dropped(BUNDLES) {
            if self.journal.row(BUNDLES, &key)?.is_none() {
                lost.push((key, row));
            }
        }
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        lost.sort_unstable_by_key(|(_, row)| row.head.order);
        let mut recipients: HashMap<BundleId, BTreeMap<PeerId, DeliveryState>> = HashMap::new();
        for (bundle, row) in &lost {
            let named = row.head.to.iter();
            let named = named.map(|peer| (*peer, DeliveryState::Queued));
            recipients.entry(*bundle).or_default().extend(named);
        }
        for ((bundle, peer), state) in self.journal.dropped(DELIVERIES) {
            recipients.entry(bundle).or_default().insert(peer, state);
        }
        let held = self.journal.dropped(HELD).into_iter();
        let held: HashSet<BundleId> = held.map(|(bundle, _)| bundle).collect();
        let lost = lost.into_iter().map(|(bundle, row)| LostSeal {
            row,
            to: recipients
                .remove(&bundle)
                .unwrap_or_default()
                .into_iter()
                .collect(),
            held: held.contains(&bundle),
        });
        Ok(lost.collect())
    }

    /// The rows of a seal that was lost, as they were.
    pub(in crate::spool) fn seal_as_before(
        &self,
        manifest: &VerifiedManifest,
        lost: &LostSeal,
        batch: &mut Batch,
    ) {
        let (bundle, row) = (manifest.id(), &lost.row);
        let (order, ends) = (row.head.order, row.head.ends);
        self.next_out.fetch_max(order + 1, Ordering::Relaxed);
        batch.insert(BUNDLES, &bundle, row);
        batch.insert(OUT_ORDER, &Newest(order), &bundle);
        for (peer, state) in &lost.to {
            batch.insert(DELIVERIES, &(bundle, *peer), state);
            if !state.is_final() {
                batch.insert(PENDING, &(*peer, row.rank()), &(bundle, ends));
            }
        }
        if lost.to.is_empty() && matches!(manifest.manifest().scope, Scope::All { .. }) {
            batch.insert(ORPHANS, &order, &bundle);
        }
    }

    /// A newer version for `scope` is sealed: who gets that needs `old` no longer, unless its transfer has begun. `false`:
    /// somebody still waits for `old`.
    pub(in crate::spool) fn supersede(
        &self,
        old: BundleId,
        scope: &Scope,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        let Some(row) = self.journal.row(BUNDLES, &old)? else {
            return Ok(false);
        };
        let mut complete = true;
        // Only who gets the newer one needs the old one no longer.
        if matches!(scope, Scope::All { .. }) {
            batch.remove(ORPHANS, &row.head.order);
        } else {
            complete = !self.is_orphan(old)?;
        }
        if self.held(old)?.is_some() {
            batch.remove(HELD, &old);
        }
        self.unfold(old, None, batch)?;
        for (peer, state) in self.deliveries_of(old)? {
            let begun = matches!(
                self.progress.lock().get(&(old, peer)),
                Some(DeliveryState::Sending(_))
            );
            let stays = begun || !scope.has(peer);
            complete &= state.is_final() || !stays;
            if !stays {
                let end = &DeliveryState::Superseded;
                self.end_delivery((old, peer), Some(row.rank()), &state, end, batch);
            }
        }
        Ok(complete)
    }

    /// Whether it was sealed when there was no other member, and no one has joined since.
    pub(in crate::spool) fn is_orphan(&self, bundle: BundleId) -> Result<bool, SpoolError> {
        let Some(head) = self.head(bundle)? else {
            return Ok(false);
        };
        Ok(self.journal.row(ORPHANS, &head.order)?.is_some())
    }

    /// Whether a bundle of ours is not complete: somebody waits for it, or nobody may have it yet.
    pub(in crate::spool) fn is_open(&self, bundle: BundleId) -> Result<bool, SpoolError> {
        let states = self.deliveries_of(bundle)?;
        match states.is_empty() {
            true => Ok(self.is_orphan(bundle)? || self.held(bundle)?.is_some()),
            false => Ok(states.iter().any(|(_, state)| !state.is_final())),
        }
    }

    /// The oldest bundles that wait for a first member, at most `limit`, each with its place.
    pub(in crate::spool) fn orphans(
        &self,
        limit: usize,
    ) -> Result<Vec<(u64, BundleId)>, SpoolError> {
        Ok(self.journal.rows(ORPHANS.all(), limit)?)
    }

    /// The bundle at this place waits for a first member no longer.
    pub(in crate::spool) fn adopt(&self, order: u64, batch: &mut Batch) {
        batch.remove(ORPHANS, &order);
    }

    /// The bundle goes to nobody until this is resolved.
    pub(in crate::spool) fn hold(&self, bundle: BundleId, held: &HeldRow, batch: &mut Batch) {
        batch.insert(HELD, &bundle, held);
    }

    /// What is in the way of a bundle that goes to nobody yet.
    pub(in crate::spool) fn held(&self, bundle: BundleId) -> Result<Option<HeldRow>, SpoolError> {
        Ok(self.journal.row(HELD, &bundle)?)
    }

    /// All bundles that go to nobody yet.
    pub(in crate::spool) fn all_held(&self) -> Result<Vec<BundleId>, SpoolError> {
        Ok(self.journal.keys(HELD.all(), usize::MAX)?)
    }

    /// When a bundle of ours was sealed, in seconds since 1970.
    pub(in crate::spool) fn sealed_at(&self, bundle: BundleId) -> Result<Option<u64>, SpoolError> {
        Ok(self.head(bundle)?.map(|head| head.sealed_at))
    }

    /// Its place among all bundles of ours: the greater, the newer.
    pub(in crate::spool) fn place(&self, bundle: BundleId) -> Result<Option<u64>, SpoolError> {
        Ok(self.head(bundle)?.map(|head| head.order))
    }

    /// How many bundles of ours there are, counted as far as [`COUNT_MAX`].
    pub(in crate::spool) fn count_outbound(&self) -> u64 {
        let keys = self.journal.keys(OUT_ORDER.all(), COUNT_MAX);
        keys.map_or(0, |keys| keys.len() as u64)
    }

    /// Bundles of ours, the newest first, at most `limit`, after the one at the place `before`.
    pub(in crate::spool) fn outbound(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<BundleId>, SpoolError> {
        let after = before.map(Newest);
        let rows = self
            .journal
            .rows(OUT_ORDER.all().after(after.as_ref()), limit)?;
        Ok(rows.into_iter().map(|(_, bundle)| bundle).collect())
    }

    /// How many bundles of ours are not with everybody they are for, counted as far as [`COUNT_MAX`] of each kind.
    pub(in crate::spool) fn count_open(&self) -> u64 {
        let owed: BTreeSet<BundleId> = self.owed().flatten().take(COUNT_MAX).collect();
        let orphans = self.journal.rows(ORPHANS.all(), COUNT_MAX);
        let held = self.journal.rows(HELD.all(), COUNT_MAX);
        let waiting = orphans.map_or(0, |rows| rows.len()) + held.map_or(0, |rows| rows.len());
        (owed.len() + waiting) as u64
    }

    /// Every bundle of ours that is not with everybody it is for; one that is for several may come several times.
    pub(in crate::spool) fn each_open(
        &self,
        mut look: impl FnMut(BundleId),
    ) -> Result<(), SpoolError> {
        // In the order in which a bundle goes from one table to the next.
        self.all_held()?.into_iter().for_each(&mut look);
        for row in self.journal.each(ORPHANS) {
            look(row?.1);
        }
        for bundle in self.owed() {
            look(bundle?);
        }
        Ok(())
    }

    /// The newest `limit` bundles of ours that are not with everybody they are for. There may be a hundred thousand of them,
    /// or of finished ones.
    pub(in crate::spool) fn newest_open(&self, limit: usize) -> Result<Vec<BundleId>, SpoolError> {
        let (mut newest, mut after) = (Vec::new(), None);
        for _ in 0..PAGES {
            let page = self
                .journal
                .rows(OUT_ORDER.all().after(after.as_ref()), PAGE)?;
            for (_, bundle) in &page {
                if newest.len() < limit && self.is_open(*bundle)? {
                    newest.push(*bundle);
                }
            }
            // A row that cannot be read is left out of a page.
            if newest.len() == limit || page.is_empty() {
                return Ok(newest);
            }
            after = page.into_iter().last().map(|(place, _)| place);
        }
        // Many newer ones are finished: those that are not are looked for where they are owed.
        let mut newest = BTreeMap::new();
        let mut look = |place, bundle| {
            newest.insert(place, bundle);
            if newest.len() > limit {
                newest.pop_first();
            }
        };
        for bundle in self.all_held()? {
            look(self.place(bundle)?.unwrap_or(0), bundle);
        }
        for row in self.journal.each(ORPHANS) {
            let (place, bundle) = row?;
            look(place, bundle);
        }
        for row in self.journal.each(PENDING) {
            let ((_, rank), (bundle, _)) = row?;
            if is_ours(rank.0) {
                look(rank.place(), bundle);
            }
        }
        Ok(newest.into_values().rev().collect())
    }

    /// Bundles of ours, once for each recipient that is owed them.
    fn owed(&self) -> impl Iterator<Item = Result<BundleId, JournalError>> {
        let rows = self.journal.each(PENDING);
        let ours = rows.filter(|row| !matches!(row, Ok(((_, rank), _)) if !is_ours(rank.0)));
        ours.map(|row| row.map(|(_, (bundle, _))| bundle))
    }

    /// All rows of a bundle of ours go, which nobody waits for.
    pub(in crate::spool) fn forget(
        &self,
        bundle: BundleId,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let Some(head) = self.head(bundle)? else {
            return Ok(());
        };
        for (peer, _) in self.deliveries_of(bundle)? {
            batch.remove(DELIVERIES, &(bundle, peer));
        }
        batch.remove(HELD, &bundle);
        batch.remove(BUNDLES, &bundle);
        batch.remove(OUT_ORDER, &Newest(head.order));
        batch.remove(DEADLINES, &Ends::Bundle(bundle));
        Ok(())
    }

    /// What is in the way of a bundle that is held.
    pub(in crate::spool) fn held_for(&self, bundle: BundleId) -> Option<HeldRow> {
        if !self.group.is_scoped() {
            return None;
        }
        self.held(bundle).ok().flatten()
    }
}
