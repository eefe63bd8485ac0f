//! History: bundles that are over are shown for a while, and then remembered in as little as a bit each.
//!
//! The newest [`HISTORY`] bundles of each direction keep their rows, for status and `wait`. What is older and over is
//! forgotten: of a bundle of ours all rows go, once no name in the outbox shows it; of a bundle of another stays one bit
//! under (origin, epoch, incarnation, seq), so that it is never published again and its receipt can be signed anew, or
//! that it stays refused.
//!
//! # Invariants
//! 1. What is not over is never forgotten: a delivery that is not final, a bundle nobody has yet, an offer that waits.
//! 2. Rows of one bundle go in one batch, and with them comes the bit that stands for them.
//! 3. One block of bits has at most [`BLOCK`] of them, so a row stays small whatever is missing in between.
//!
//! # Crash behaviour
//! Nothing to do: a bundle is in its rows or in the bits.
//!
//! # Threads
//! `sweeper`, of the lowest priority, woken after every [`History::every`] bundles whose end is durable: what is not is left
//! alone, and would be until the next ring. It holds the decision lock for one
//! page at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use crate::bundle::{BundleId, Receipt, VerifiedManifest};
use crate::spool::SpoolError;
use crate::spool::background::give_way;
use crate::spool::journal::{Batch, Table};
use crate::spool::keys::Newest;
use crate::spool::ledger::Ledger;
use crate::spool::ledger::inbound::{InboundShown, InboundState};
use crate::spool::ledger::settled::{BLOCK, Block, BlockKey};
use crate::spool::ledger::tables::{
    IN_ORDER, INBOUND, ORPHANS, OUT_ORDER, REFUSED_BITS, SCOPED, SETTLED_BITS,
};

/// Bundles of each direction that stay in status when they are over.
const HISTORY: u64 = 10_000;

/// Bundles looked at under one hold of the decision lock.
const PAGE: usize = 128;

/// Pages of one sweep and direction. What is left is the next sweep's, which goes on from there.
const PAGES: usize = 64;

/// When the sweeper is woken, and how far it is.
#[derive(Debug)]
pub(in crate::spool) struct History {
    kept: AtomicU64,
    /// Bundles that came to an end since the last sweep.
    ended: AtomicU64,
    /// While the names are looked through: bundles whose row of the outbox went to another name, which that may miss.
    moved: Mutex<Option<HashSet<BundleId>>>,
    bell: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    reached: Mutex<Reached>,
}

/// The last key looked at in each direction; `None`: begin with the newest that is old enough.
#[derive(Debug, Default)]
struct Reached {
    sent: Option<Newest>,
    received: Option<Newest>,
}

impl History {
    /// `kept` bundles stay in status; [`HISTORY`] if `None`.
    pub(in crate::spool) fn new(kept: Option<u64>) -> Self {
        Self {
            kept: AtomicU64::new(kept.unwrap_or(HISTORY).max(1)),
            ended: AtomicU64::new(0),
            moved: Mutex::default(),
            bell: Mutex::default(),
            thread: Mutex::default(),
            reached: Mutex::default(),
        }
    }

    fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// How many bundles end between two sweeps.
    fn every(&self) -> u64 {
        (self.kept() / 4).max(1)
    }

    /// Starts the thread, which calls `sweep` at each ring until that gives `None`. The first time is at once: the last run
    /// may have ended before its own.
    pub(in crate::spool) fn start(
        &self,
        sweep: impl Fn() -> Option<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let (bell, rung) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("sweeper".into())
            .spawn(move || {
                give_way("sweeper");
                for () in rung {
                    if sweep().is_none() {
                        return;
                    }
                }
            })?;
        // The channel is empty.
        bell.try_send(()).ok();
        *self.bell.lock() = Some(bell);
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends the thread after the page it is at.
    pub(in crate::spool) fn stop(&self) {
        self.bell.lock().take();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the sweeper had panicked");
        }
    }

    fn is_stopping(&self) -> bool {
        self.bell.lock().is_none()
    }

    /// A bundle came to an end, and that is durable.
    pub(in crate::spool) fn ended(&self) {
        let ended = self.ended.fetch_add(1, Ordering::Relaxed) + 1;
        if ended.is_multiple_of(self.every())
            && let Some(bell) = &*self.bell.lock()
        {
            // Full: it is about to begin anyway.
            bell.try_send(()).ok();
        }
    }

    #[cfg(test)]
    pub(in crate::spool) fn is_rung(&self) -> bool {
        self.bell.lock().as_ref().is_some_and(Sender::is_full)
    }

    /// A row of a name of the outbox that shows `bundle` is about to go to another name. Call with the decision lock held.
    pub(in crate::spool) fn name_moved(&self, bundle: BundleId) {
        if let Some(moved) = &mut *self.moved.lock() {
            moved.insert(bundle);
        }
    }
}

/// Blocks that a sweep changes, by the number of their table and their key.
type Blocks = HashMap<(u8, BlockKey), (Table<BlockKey, Block>, Block)>;

impl Ledger {
    /// So many finished bundles of each direction stay in status from now on. What is too old already goes with the next sweep.
    pub(crate) fn keep_history(&self, kept: Option<u64>) {
        let kept = kept.unwrap_or(HISTORY).max(1);
        if self.history.kept.swap(kept, Ordering::Relaxed) != kept {
            // A sweep goes on from where the last one was, which is behind what is old enough now.
            *self.history.reached.lock() = Reached::default();
        }
    }

    /// A bundle comes to an end with `batch`. It counts when that is durable: what is not is left alone by the sweeper, and
    /// nobody would ring again.
    pub(in crate::spool) fn ends_with(&self, batch: &mut Batch) {
        let history = Arc::clone(&self.history);
        batch.on_durable(move || history.ended());
    }

    /// Our receipt for a bundle that was settled, whether its rows are still there or not.
    pub(in crate::spool) fn receipt_again(
        &self,
        manifest: &VerifiedManifest,
    ) -> Result<Option<Receipt>, SpoolError> {
        if let Some(receipt) = self.settled(manifest.id())? {
            return Ok(Some(receipt));
        }
        let of = manifest.manifest();
        Ok(self
            .was_settled(of)?
            .then(|| Receipt::sign(&self.group.identity, manifest.id(), of.origin)))
    }

    /// Where to go on among rows with descending keys; `None`: nothing is old enough.
    fn sweep_from(&self, next: &AtomicU64, reached: Option<Newest>) -> Option<Newest> {
        let newest = next.load(Ordering::Relaxed);
        let old = newest.checked_sub(self.history.kept())?;
        Some(reached.unwrap_or(Newest(old)))
    }

    /// One page; `false` at the end.
    fn sweep_received_page(&self) -> Result<bool, SpoolError> {
        let reached = self.history.reached.lock().received.take();
        let Some(from) = self.sweep_from(&self.next_in, reached) else {
            return Ok(false);
        };
        let _decide = self.decide();
        let page = self.journal.rows(IN_ORDER.all().after(Some(&from)), PAGE)?;
        let mut batch = Batch::default();
        let mut blocks = Blocks::new();
        for (key, row) in &page {
            if self.forget_received(row, &mut batch, &mut blocks)? {
                batch.remove(IN_ORDER, key);
                batch.remove(INBOUND, &row.bundle);
            }
        }
        for ((_, key), (table, block)) in &blocks {
            batch.insert(*table, key, block);
        }
        self.journal.submit(batch)?;
        let last = page.into_iter().next_back().map(|(key, _)| key);
        let more = last.is_some();
        self.history.reached.lock().received = last;
        Ok(more)
    }

    /// `false`: it is not over, or what is needed to remember it is not there.
    fn forget_received(
        &self,
        row: &InboundShown,
        batch: &mut Batch,
        blocks: &mut Blocks,
    ) -> Result<bool, SpoolError> {
        let bundle = row.bundle;
        if self.volatile.lock().contains(&bundle) || self.arriving.lock().contains_key(&bundle) {
            return Ok(false);
        }
        let Some(known) = self.inbound_row(bundle)? else {
            return Ok(!row.is_open());
        };
        let table = if known.receipt.is_some() {
            SETTLED_BITS
        } else if row.state == InboundState::Contradicts {
            REFUSED_BITS
        } else {
            return Ok(!row.is_open());
        };
        let Some(seq) = known.seq else {
            return Ok(false);
        };
        let (key, at) = seq.block(row.origin, BLOCK);
        let (_, block) = match blocks.entry((table.number(), key)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let known = self.journal.row(table, &key)?;
                entry.insert((table, known.unwrap_or_default()))
            }
        };
        block.set(at);
        batch.remove(SCOPED, &bundle);
        Ok(true)
    }

    /// Forgets what is over and old of bundles of others, page by page.
    pub(in crate::spool) fn sweep_received(&self) -> Result<(), SpoolError> {
        for _ in 0..PAGES {
            if self.history.is_stopping() || !self.sweep_received_page()? {
                break;
            }
        }
        Ok(())
    }

    /// Forgets what is over and old of bundles of ours that no name of the outbox shows. `each_name` gives the bundle of each
    /// of these; with a bundle goes what `forget` takes away. The names are looked through once for all pages: there may be
    /// many more of them than bundles to forget.
    pub(in crate::spool) fn sweep_sent(
        &self,
        each_name: impl FnOnce(&mut dyn FnMut(BundleId)) -> Result<(), SpoolError>,
        forget: impl Fn(BundleId, &mut Batch) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let reached = self.history.reached.lock().sent.take();
        let Some(from) = self.sweep_from(&self.next_out, reached) else {
            return Ok(());
        };
        let decide = self.decide();
        *self.history.moved.lock() = Some(HashSet::new());
        drop(decide);
        let swept = self.sweep_sent_from(from, each_name, forget);
        *self.history.moved.lock() = None;
        swept
    }

    fn sweep_sent_from(
        &self,
        mut from: Newest,
        each_name: impl FnOnce(&mut dyn FnMut(BundleId)) -> Result<(), SpoolError>,
        forget: impl Fn(BundleId, &mut Batch) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let mut over: HashMap<BundleId, Newest> = HashMap::new();
        let mut more = true;
        for _ in 0..PAGES {
            let page = self
                .journal
                .rows(OUT_ORDER.all().after(Some(&from)), PAGE)?;
            let Some((last, _)) = page.last() else {
                more = false;
                break;
            };
            from = *last;
            for (key, bundle) in page {
                if self.is_over(bundle, key)? {
                    over.insert(bundle, key);
                }
            }
            if self.history.is_stopping() {
                return Ok(());
            }
        }
        self.history.reached.lock().sent = more.then_some(from);
        if !over.is_empty() {
            each_name(&mut |bundle| {
                over.remove(&bundle);
            })?;
        }
        let over: Vec<(BundleId, Newest)> = over.into_iter().collect();
        for some in over.chunks(PAGE) {
            let _decide = self.decide();
            let moved = self.history.moved.lock();
            let has_moved = |bundle| moved.as_ref().is_some_and(|moved| moved.contains(bundle));
            let mut batch = Batch::default();
            for (bundle, key) in some {
                // A name that changed its place may have been missed: its bundle is looked at again another time. Asked
                // again by the user meanwhile, it is not over.
                if !has_moved(bundle) && self.is_over(*bundle, *key)? {
                    forget(*bundle, &mut batch)?;
                    self.forget(*bundle, &mut batch)?;
                }
            }
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    /// Whether nobody waits for a bundle of ours any more. Only the user makes it wait again.
    fn is_over(&self, bundle: BundleId, order: Newest) -> Result<bool, SpoolError> {
        if self.volatile.lock().contains(&bundle) {
            return Ok(false);
        }
        let states = self.deliveries_of(bundle)?;
        if states.is_empty() {
            // Sealed when there was nobody, and not replaced since: somebody may join.
            let waits = self.journal.row(ORPHANS, &order.0)?;
            return Ok(waits.is_none() && self.held_for(bundle).is_none());
        }
        Ok(states.iter().all(|(_, state)| state.is_final()))
    }
}
