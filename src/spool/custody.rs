//! Custody: bundles of others that are kept for further recipients. What is to be done is decided by
//! [`crate::delivery::custody`]; here are its rows.
//!
//! A settled bundle is kept ([`Ledger::keep`]) when a further recipient may want it: one that is known now, or one that
//! joins while a name still shows it. While its origin may still close it, it is in [`WATCHED`]; after that in
//! [`CARRIED`], and owed through `DELIVERIES` and `PENDING` like a bundle of ours.
//!
//! # Invariants
//! 1. A bundle is in [`WATCHED`] or in [`CARRIED`], not in both, and only while it is kept.
//! 2. It is kept for longer than custody only while a name in the inbox shows it.
//! 3. A bundle of another needs its content exactly while its custody does, so that its removal by the
//!    user leaves the bytes; they count to the quota, and go before anything of the user's is refused.
//! 4. Only recipients in the bundle's scope are ever owed it, so only they are served.
//! 5. A watched bundle without rows in `DELIVERIES` is for all others; once one of them is gone, or one joins whom that
//!    does not mean, each has a row.
//!
//! # Crash behaviour
//! The rows of a settled bundle are in the batch that settles it; each further step is one batch.
//!
//! # Threads
//! Called by sessions and by the mesh's clock; each step under the decision lock, a page of bundles at a time.

mod joins;
#[cfg(test)]
pub(in crate::spool) mod probe;
mod room;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bundle::{BundleId, DeliveryState, Manifest, Receipt, Scope, VerifiedManifest};
use crate::delivery::custody::{self, Action, Custody, Stage, Why};
use crate::digest::Digest;
use crate::journal::{Batch, Journal};
use crate::peer::PeerId;
use crate::spool::SpoolError;
use crate::spool::content::Content;
use crate::spool::doorbell::{Doorbell, Event};
use crate::spool::group::Group;
use crate::spool::ledger::Ledger;

use self::tables::{CARRIED, RELAYS, WATCHED};

/// Rows looked at under one hold of the decision lock.
const PAGE: usize = 256;

/// What an origin says of a bundle of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OriginSays {
    /// It is final for everybody.
    Closed,
    /// Somebody waits for it.
    Open,
    /// It knows nothing of it.
    Unknown,
}

/// Says whether a name in the inbox still shows something of a bundle.
type StillShows = Box<dyn Fn(&VerifiedManifest) -> Result<bool, SpoolError> + Send + Sync>;

/// What is kept for others, and until when.
pub(crate) struct Custodian {
    journal: Arc<Journal>,
    pub(in crate::spool) content: Arc<Content>,
    ledger: Arc<Ledger>,
    group: Arc<Group>,
    doorbell: Arc<Doorbell>,
    /// See [`Self::ask_inbox`].
    still_shows: OnceLock<StillShows>,
    started: Instant,
    /// When the first watched bundle is due, in milliseconds since the start. Put off only under the decision lock, and
    /// only before all rows are read; brought forward by whoever is about to write a row.
    due: AtomicU64,
    /// How long the origin has, in milliseconds.
    delay: AtomicU64,
    /// Whether members that join later get what is still shown.
    late_joiners: AtomicBool,
    /// What is to be asked at the next pass. Bounded by what custody is told between two of them.
    asks: Mutex<BTreeMap<PeerId, Vec<BundleId>>>,
}

impl Custodian {
    pub(in crate::spool) fn new(
        journal: &Arc<Journal>,
        content: &Arc<Content>,
        doorbell: &Arc<Doorbell>,
    ) -> Self {
        let delay = millis(custody::DELAY);
        Self {
            journal: Arc::clone(journal),
            content: Arc::clone(content),
            ledger: Arc::clone(&content.ledger),
            group: Arc::clone(&content.ledger.group),
            doorbell: Arc::clone(doorbell),
            still_shows: OnceLock::new(),
            started: Instant::now(),
            // What is watched since before the start: its origin may be connected by then.
            due: AtomicU64::new(delay),
            delay: AtomicU64::new(delay),
            late_joiners: AtomicBool::new(true),
            asks: Mutex::default(),
        }
    }

    /// Who is asked whether a name in the inbox still shows a bundle. Whoever takes such a name away holds the decision
    /// lock until that is recorded, so that the answer holds for as long as it is held here.
    pub(in crate::spool) fn ask_inbox(
        &self,
        still_shows: impl Fn(&VerifiedManifest) -> Result<bool, SpoolError> + Send + Sync + 'static,
    ) {
        self.still_shows.set(Box::new(still_shows)).ok();
    }

    fn still_shows(&self, manifest: &VerifiedManifest) -> Result<bool, SpoolError> {
        match self.still_shows.get() {
            Some(still_shows) => still_shows(manifest),
            None => Ok(true),
        }
    }

    /// A bundle of another is given to nobody any more.
    pub(in crate::spool) fn give_no_more(
        &self,
        bundle: BundleId,
        origin: PeerId,
    ) -> Result<(), SpoolError> {
        self.end_custody(bundle, origin)?;
        let _decide = self.decide();
        let mut batch = Batch::default();
        self.ledger.keep_no_more(bundle, &mut batch);
        Ok(self.journal.submit(batch)?)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What steps of custody come to, to be recorded and told together.
#[derive(Default)]
struct Steps {
    batch: Batch,
    asks: BTreeMap<PeerId, Vec<BundleId>>,
    owed: BTreeSet<PeerId>,
    relays: Vec<Receipt>,
    freed: Vec<Digest>,
}

impl Custodian {
    fn relays_below(&self, carried: &(PeerId, BundleId)) -> Result<Vec<Receipt>, SpoolError> {
        let rows = self.journal.rows(RELAYS.below(carried), usize::MAX)?;
        Ok(rows.into_iter().map(|(_, receipt)| receipt).collect())
    }

    fn is_watched(&self, bundle: &BundleId) -> Result<bool, SpoolError> {
        let row: Option<(PeerId, Stage)> = self.journal.row(WATCHED, bundle)?;
        Ok(row.is_some())
    }

    /// Bundles of `origin` that we carry, for it to say which are closed; in order, after that one.
    pub(crate) fn carried(
        &self,
        origin: PeerId,
        after: Option<BundleId>,
        limit: usize,
    ) -> Result<Vec<BundleId>, SpoolError> {
        let after = after.map(|bundle| (origin, bundle));
        let rows = self
            .journal
            .keys(CARRIED.below(&origin).after(after.as_ref()), limit)?;
        Ok(rows.into_iter().map(|(_, bundle)| bundle).collect())
    }

    /// Receipts to be handed to `origin`; in order, after that one.
    pub(crate) fn relays(
        &self,
        origin: PeerId,
        after: Option<&Receipt>,
        limit: usize,
    ) -> Result<Vec<Receipt>, SpoolError> {
        let after = after.map(|last| (origin, last.bundle, last.recipient));
        let rows = self
            .journal
            .rows(RELAYS.below(&origin).after(after.as_ref()), limit)?;
        Ok(rows.into_iter().map(|(_, receipt)| receipt).collect())
    }
}

impl Custodian {
    /// Whether members that join later get what the outbox and the inbox still show.
    pub(crate) fn set_late_joiners(&self, current: bool) {
        self.late_joiners.store(current, Ordering::Relaxed);
    }

    pub(in crate::spool) fn late_joiners(&self) -> bool {
        self.late_joiners.load(Ordering::Relaxed)
    }

    /// Changes how long an origin has to close its bundles.
    #[cfg(test)]
    pub(crate) fn set_custody_delay(&self, delay: Duration) {
        self.delay.store(millis(delay), Ordering::Relaxed);
        self.due.store(0, Ordering::Relaxed);
    }

    /// How many rows of bundles in custody there are.
    #[cfg(test)]
    pub(crate) fn custody_rows(&self) -> usize {
        let watched = self.journal.keys(WATCHED.all(), usize::MAX);
        let carried = self.journal.keys(CARRIED.all(), usize::MAX);
        let relays = self.journal.keys(RELAYS.all(), usize::MAX);
        watched.unwrap().len() + carried.unwrap().len() + relays.unwrap().len()
    }

    fn custody_now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The rows of a bundle that is being settled, all of whose content is here. Call with the decision lock held.
    pub(in crate::spool) fn keep_for_others(
        &self,
        manifest: &VerifiedManifest,
        order: u64,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let of = manifest.manifest();
        let others = self.others(of)?;
        if others.is_empty() && !self.may_be_wanted_later(of) {
            return Ok(());
        }
        self.ledger.keep(manifest, order, batch);
        if !others.is_empty() {
            self.watch(manifest, batch);
        }
        if let Some(old) = of.supersedes.filter(|_| of.entries.len() == 1) {
            self.outdate_kept(old, of, batch)?;
        }
        Ok(())
    }

    fn may_be_wanted_later(&self, of: &Manifest) -> bool {
        self.late_joiners() && matches!(of.scope, Scope::All { .. })
    }

    /// For whom a bundle of another is, besides its origin and us.
    fn others(&self, of: &Manifest) -> Result<BTreeSet<PeerId>, SpoolError> {
        let me = self.group.identity.id();
        let mut others: BTreeSet<PeerId> = match &of.scope {
            Scope::All { .. } => self.group.ids(),
            Scope::Ids(ids) => {
                let mut ids: BTreeSet<PeerId> = ids.iter().copied().collect();
                for peer in ids.clone() {
                    if self.group.is_forgotten(peer)? || self.group.is_out(peer) {
                        ids.remove(&peer);
                    }
                }
                ids
            }
        };
        others.remove(&me);
        others.remove(&of.origin);
        Ok(others)
    }

    /// Call with the decision lock held until the batch is submitted.
    fn watch(&self, manifest: &VerifiedManifest, batch: &mut Batch) {
        let (of, bundle) = (manifest.manifest(), manifest.id());
        let delay = self.delay.load(Ordering::Relaxed);
        let until = self.custody_now() + Duration::from_millis(delay);
        batch.insert(WATCHED, &bundle, &(of.origin, Stage::Watching(until)));
        self.content.begin_need(bundle, of.digests(), batch);
        self.due.fetch_min(millis(until), Ordering::Relaxed);
    }

    /// A newer version of the one file of `old` is for the same recipients: nobody is given the old one any more.
    fn outdate_kept(
        &self,
        old: BundleId,
        newer: &Manifest,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let Some(manifest) = self.ledger.kept(old)? else {
            return Ok(());
        };
        let of = manifest.manifest();
        let same_file = match (of.entries.as_slice(), newer.entries.as_slice()) {
            ([old], [new]) => old.path == new.path,
            _ => false,
        };
        let covered = match (&of.scope, &newer.scope) {
            (_, Scope::All { .. }) => true,
            (Scope::Ids(old), Scope::Ids(new)) => old.iter().all(|id| new.contains(id)),
            (Scope::All { .. }, Scope::Ids(_)) => false,
        };
        if of.origin != newer.origin || of.order() >= newer.order() || !same_file || !covered {
            return Ok(());
        }
        let mut steps = Steps::default();
        if let Some(known) = self.custody_of(&manifest)? {
            for peer in known.waiting().collect::<Vec<_>>() {
                self.step(&manifest, custody::Event::Gone(peer), &mut steps)?;
                self.record(&mut steps)?;
            }
        }
        if self.custody_of(&manifest)?.is_none() {
            self.ledger.keep_no_more(old, batch);
        }
        Ok(())
    }

    fn custody_of(&self, manifest: &VerifiedManifest) -> Result<Option<Custody>, SpoolError> {
        let (of, bundle) = (manifest.manifest(), manifest.id());
        let watched: Option<(PeerId, Stage)> = self.journal.row(WATCHED, &bundle)?;
        let key = (of.origin, bundle);
        let stage = match watched {
            Some((_, stage)) => Some(stage),
            None => self.journal.row(CARRIED, &key)?,
        };
        let Some(stage) = stage else { return Ok(None) };
        let receipts = self.relays_below(&key)?;
        let deliveries = self.ledger.deliveries_of(bundle)?;
        let mut waiting: BTreeSet<PeerId> = if deliveries.is_empty() && watched.is_some() {
            self.others(of)?
        } else {
            let open = deliveries.iter().filter(|(_, state)| !state.is_final());
            open.map(|(peer, _)| *peer).collect()
        };
        for receipt in &receipts {
            waiting.remove(&receipt.recipient);
        }
        let given = receipts.iter().map(|receipt| receipt.recipient);
        Ok(Some(Custody::recorded(stage, waiting, given)))
    }

    /// One event of one bundle. `false`: it is not in custody here. Call with the decision lock held, and no second
    /// time for a bundle before [`Self::record`].
    fn step(
        &self,
        manifest: &VerifiedManifest,
        event: custody::Event,
        steps: &mut Steps,
    ) -> Result<bool, SpoolError> {
        self.step_as(manifest, event, &DeliveryState::Superseded, steps)
    }

    /// [`Self::step`]; `gone` is how the delivery to a recipient ends that is gone by it.
    fn step_as(
        &self,
        manifest: &VerifiedManifest,
        event: custody::Event,
        gone: &DeliveryState,
        steps: &mut Steps,
    ) -> Result<bool, SpoolError> {
        let Some(mut known) = self.custody_of(manifest)? else {
            return Ok(false);
        };
        let before = known.stage();
        let waited: BTreeSet<PeerId> = known.waiting().collect();
        let mut actions = Vec::new();
        known.handle(self.custody_now(), event, &mut actions);
        let (origin, bundle) = (manifest.manifest().origin, manifest.id());
        if known.stage() == Stage::Relaying && self.group.is_forgotten(origin)? {
            known.handle(self.custody_now(), custody::Event::Cancelled, &mut actions);
        }
        if known.stage() != before {
            let key = (origin, bundle);
            match known.stage() {
                stage @ (Stage::Watching(until) | Stage::Asked(until)) => {
                    steps.batch.insert(WATCHED, &bundle, &(origin, stage));
                    self.due.fetch_min(millis(until), Ordering::Relaxed);
                }
                stage @ (Stage::Carrying | Stage::Relaying) => {
                    steps.batch.remove(WATCHED, &bundle);
                    steps.batch.insert(CARRIED, &key, &stage);
                }
                Stage::Ended => {
                    steps.batch.remove(WATCHED, &bundle);
                    steps.batch.remove(CARRIED, &key);
                }
            }
        }
        // Otherwise what is to be released or forgotten takes the rows away.
        if known.needs_content() {
            self.note_waiting(bundle, &waited, &known, gone, &mut steps.batch)?;
        }
        for action in actions {
            self.act(manifest, action, steps)?;
        }
        Ok(true)
    }

    /// Who waits for it since this step, and who does so no more: the stage does not tell. Receipts have their own rows.
    fn note_waiting(
        &self,
        bundle: BundleId,
        waited: &BTreeSet<PeerId>,
        known: &Custody,
        gone: &DeliveryState,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let waiting: BTreeSet<PeerId> = known.waiting().collect();
        let given: BTreeSet<PeerId> = known.receipts().collect();
        let left = waited.iter().filter(|peer| !waiting.contains(peer));
        let left: Vec<PeerId> = left.filter(|peer| !given.contains(peer)).copied().collect();
        let mut queued: Vec<PeerId> = waiting.difference(waited).copied().collect();
        if left.is_empty() && queued.is_empty() {
            return Ok(());
        }
        if self.ledger.deliveries_of(bundle)?.is_empty() {
            // From now on the rows say who waits.
            queued = waiting.into_iter().collect();
        }
        for peer in queued {
            self.ledger.promise(bundle, peer, batch);
        }
        let rank = self.ledger.kept_rank(bundle)?;
        for peer in left {
            let waited = &DeliveryState::Queued;
            self.ledger
                .end_delivery((bundle, peer), rank, waited, gone, batch);
            self.ledger.moves_no_more(bundle, peer);
        }
        Ok(())
    }

    fn act(
        &self,
        manifest: &VerifiedManifest,
        action: Action,
        steps: &mut Steps,
    ) -> Result<(), SpoolError> {
        let (of, bundle) = (manifest.manifest(), manifest.id());
        match action {
            Action::Ask => steps.asks.entry(of.origin).or_default().push(bundle),
            Action::Owe(peers) => {
                let Some(rank) = self.ledger.kept_rank(bundle)? else {
                    return Ok(());
                };
                for peer in peers {
                    // When it ends its own row says.
                    self.ledger
                        .queue((bundle, peer), rank, u64::MAX, &mut steps.batch);
                    steps.owed.insert(peer);
                }
            }
            Action::Relay(peer) => {
                let key = (of.origin, bundle, peer);
                steps.relays.extend(self.journal.row(RELAYS, &key)?);
            }
            Action::Release(why) => {
                let rank = self.ledger.kept_rank(bundle)?;
                for (peer, state) in self.ledger.deliveries_of(bundle)? {
                    if !state.is_final() {
                        let batch = &mut steps.batch;
                        self.ledger.take_back(bundle, peer, rank, batch);
                    }
                }
                let freed = self
                    .content
                    .end_need(bundle, of.digests(), &mut steps.batch);
                steps.freed.extend(freed);
                if why == Why::Quota {
                    self.show_given_up(manifest, &mut steps.batch)?;
                }
            }
            Action::Forget => {
                for (peer, _) in self.ledger.deliveries_of(bundle)? {
                    self.ledger.take_back(bundle, peer, None, &mut steps.batch);
                }
                let key = (of.origin, bundle);
                for receipt in self.relays_below(&key)? {
                    let key = (of.origin, bundle, receipt.recipient);
                    steps.batch.remove(RELAYS, &key);
                }
                if !self.may_be_wanted_later(of) || !self.still_shows(manifest)? {
                    self.ledger.keep_no_more(bundle, &mut steps.batch);
                }
            }
        }
        Ok(())
    }

    fn show_given_up(
        &self,
        manifest: &VerifiedManifest,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let why = "not kept for the other members any more: there is no room (max_bytes, min_free)";
        let title = manifest.manifest().title();
        let path = title.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(%path, bundle = %manifest.id().short(), "{why}");
        if let Some(mut row) = self.ledger.inbound_shown(manifest.id())? {
            row.error = Some(why.to_owned());
            self.ledger.show_inbound(&row, batch)?;
        }
        Ok(())
    }

    /// Submits what was decided, and frees content. Call with the decision lock held.
    fn record(&self, steps: &mut Steps) -> Result<(), SpoolError> {
        self.journal.submit(std::mem::take(&mut steps.batch))?;
        std::mem::take(&mut steps.freed)
            .into_iter()
            .try_for_each(|digest| self.content.free(digest))
    }

    /// Tells who has to know; call without the decision lock.
    fn tell(&self, steps: Steps) {
        for peer in steps.owed {
            self.doorbell.ring(&Event::PendingChanged(peer));
        }
        for receipt in steps.relays {
            self.doorbell.ring(&Event::ReceiptReady(receipt));
        }
        if !steps.asks.is_empty() {
            let mut asks = self.asks.lock();
            for (origin, bundles) in steps.asks {
                asks.entry(origin).or_default().extend(bundles);
            }
            self.due.store(0, Ordering::Relaxed);
        }
        self.doorbell.ring(&Event::StatusChanged);
    }

    /// Whether [`Self::custody_pass`] has something to do.
    pub(crate) fn custody_due(&self) -> bool {
        self.due.load(Ordering::Relaxed) <= millis(self.custody_now())
    }

    /// An origin is gone: what is watched of it need not wait.
    pub(crate) fn custody_nudge(&self) {
        self.due.store(0, Ordering::Relaxed);
    }

    /// Looks at all that is watched. Gives what is to be asked of whom.
    pub(crate) fn custody_pass(
        &self,
        connected: &dyn Fn(PeerId) -> bool,
    ) -> Result<Vec<(PeerId, Vec<BundleId>)>, SpoolError> {
        {
            // What is being settled has said when it is due and has no row yet: it would be found by neither.
            let _decide = self.decide();
            self.due.store(u64::MAX, Ordering::Relaxed);
        }
        let mut after: Option<BundleId> = None;
        loop {
            let page = self
                .journal
                .rows(WATCHED.all().after(after.as_ref()), PAGE)?;
            let decide = self.decide();
            let (now, mut steps) = (self.custody_now(), Steps::default());
            let latest = now + Duration::from_millis(self.delay.load(Ordering::Relaxed));
            for (bundle, (origin, stage)) in &page {
                let origin_connected = connected(*origin);
                if let Stage::Watching(until) | Stage::Asked(until) = stage
                    && origin_connected
                    && *until > now
                {
                    let due = (*until).min(latest);
                    self.due.fetch_min(millis(due), Ordering::Relaxed);
                    // One from before this start may name any time.
                    if due < *until && self.is_watched(bundle)? {
                        let row = (*origin, Stage::Watching(due));
                        steps.batch.insert(WATCHED, bundle, &row);
                    }
                    continue;
                }
                let Some(manifest) = self.ledger.kept(*bundle)? else {
                    steps.batch.remove(WATCHED, bundle);
                    continue;
                };
                let event = if self.content.has_all(manifest.manifest()) {
                    custody::Event::Tick { origin_connected }
                } else {
                    custody::Event::Cancelled
                };
                self.step(&manifest, event, &mut steps)?;
            }
            self.record(&mut steps)?;
            drop(decide);
            let done = page.is_empty();
            after = page.into_iter().next_back().map(|(key, _)| key);
            if done {
                break;
            }
            self.tell(steps);
        }
        let asks = std::mem::take(&mut *self.asks.lock());
        Ok(asks.into_iter().collect())
    }

    /// What `origin` says of these bundles. Gives those that are not its own, or not kept.
    pub(crate) fn origin_says(
        &self,
        origin: PeerId,
        bundles: &[BundleId],
        says: OriginSays,
    ) -> Result<Vec<BundleId>, SpoolError> {
        let event = match says {
            OriginSays::Closed => custody::Event::OriginClosed,
            OriginSays::Open => custody::Event::OriginOpen,
            OriginSays::Unknown => custody::Event::OriginUnknown,
        };
        self.custody_events(Some(origin), bundles, event)
    }

    /// Nobody may be given this bundle any more: its origin took it back.
    pub(in crate::spool) fn end_custody(
        &self,
        bundle: BundleId,
        origin: PeerId,
    ) -> Result<(), SpoolError> {
        let ended = self.custody_events(Some(origin), &[bundle], custody::Event::Cancelled);
        ended.map(drop)
    }

    pub(in crate::spool) fn custody_events(
        &self,
        origin: Option<PeerId>,
        bundles: &[BundleId],
        event: custody::Event,
    ) -> Result<Vec<BundleId>, SpoolError> {
        let (mut steps, mut others) = (Steps::default(), Vec::new());
        let decide = self.decide();
        for bundle in bundles.iter().copied().collect::<BTreeSet<_>>() {
            match self.ledger.kept(bundle)? {
                Some(manifest)
                    if origin.is_none_or(|origin| origin == manifest.manifest().origin) =>
                {
                    self.step(&manifest, event, &mut steps)?;
                }
                Some(_) | None => others.push(bundle),
            }
        }
        self.record(&mut steps)?;
        drop(decide);
        self.tell(steps);
        Ok(others)
    }

    /// A receipt of another recipient of a bundle of another. `false`: it is forged.
    pub(in crate::spool) fn take_others_receipt(
        &self,
        receipt: &Receipt,
    ) -> Result<bool, SpoolError> {
        if !receipt.is_genuine() {
            return Ok(false);
        }
        let (bundle, peer) = (receipt.bundle, receipt.recipient);
        let decide = self.decide();
        let Some(manifest) = self.ledger.kept(bundle)? else {
            return Ok(true);
        };
        let of = manifest.manifest();
        let known = self.custody_of(&manifest)?;
        if of.origin != receipt.origin || !self.others(of)?.contains(&peer) || known.is_none() {
            return Ok(true);
        }
        let mut first = Batch::default();
        first.insert(RELAYS, &(of.origin, bundle, peer), receipt);
        if let Some(state) = self.ledger.delivery(bundle, peer)? {
            let (rank, end) = (self.ledger.kept_rank(bundle)?, &DeliveryState::Delivered);
            self.ledger
                .end_delivery((bundle, peer), rank, &state, end, &mut first);
        }
        self.journal.submit(first)?;
        let mut steps = Steps::default();
        self.step(&manifest, custody::Event::Receipt(peer), &mut steps)?;
        if !known.is_some_and(|known| known.receipts().any(|given| given == peer)) {
            steps.relays.push(receipt.clone());
        }
        self.record(&mut steps)?;
        self.ledger.moves_no_more(bundle, peer);
        drop(decide);
        self.tell(steps);
        Ok(true)
    }

    /// These recipients gave us the bundle: nobody need give it to them, nor tell its origin that they have it.
    pub(crate) fn given_by(&self, bundle: BundleId, holders: &[PeerId]) -> Result<(), SpoolError> {
        let decide = self.decide();
        let Some(manifest) = self.ledger.kept(bundle)? else {
            return Ok(());
        };
        let mut steps = Steps::default();
        for holder in holders {
            let Some(known) = self.custody_of(&manifest)? else {
                break;
            };
            let told = known.receipts().any(|peer| peer == *holder);
            if !told && !known.waiting().any(|peer| peer == *holder) {
                continue;
            }
            let mut rows = Batch::default();
            rows.remove(RELAYS, &(manifest.manifest().origin, bundle, *holder));
            if self.ledger.deliveries_of(bundle)?.is_empty() {
                for peer in known.waiting() {
                    self.ledger.promise(bundle, peer, &mut rows);
                }
            }
            let (key, rank) = ((bundle, *holder), self.ledger.kept_rank(bundle)?);
            let (waited, end) = (&DeliveryState::Queued, &DeliveryState::Delivered);
            self.ledger.end_delivery(key, rank, waited, end, &mut rows);
            self.journal.submit(rows)?;
            self.step(&manifest, custody::Event::Gone(*holder), &mut steps)?;
            self.record(&mut steps)?;
        }
        drop(decide);
        self.tell(steps);
        Ok(())
    }

    /// A recipient will never take a bundle of another that we owe it. `false`: it is not owed.
    pub(in crate::spool) fn carried_ended(
        &self,
        bundle: BundleId,
        peer: PeerId,
        state: DeliveryState,
    ) -> Result<bool, SpoolError> {
        let decide = self.decide();
        let (Some(manifest), Some(rank)) =
            (self.ledger.kept(bundle)?, self.ledger.kept_rank(bundle)?)
        else {
            return Ok(false);
        };
        let key = (bundle, peer);
        let known = self.ledger.delivery(bundle, peer)?;
        let Some(known) = known.filter(|known| !known.is_final()) else {
            return Ok(false);
        };
        let mut steps = Steps::default();
        self.ledger
            .end_delivery(key, Some(rank), &known, &state, &mut steps.batch);
        self.step_as(&manifest, custody::Event::Gone(peer), &state, &mut steps)?;
        self.record(&mut steps)?;
        self.ledger.moves_no_more(bundle, peer);
        drop(decide);
        self.tell(steps);
        Ok(true)
    }
}
