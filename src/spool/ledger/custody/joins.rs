//! Bundles of others that a name still shows: kept for members that join later, after custody has ended.
//!
//! # Invariants
//! 1. A row of [`KEPT`] goes with the last name that shows the bundle; for a bundle of many, at the next start.

use super::{PAGE, Steps};
use crate::bundle::{BundleId, DeliveryState, Scope, VerifiedManifest};
use crate::delivery::custody::{self, Custody};
use crate::peer::PeerId;
use crate::spool::inbox::InName;
use crate::spool::journal::Batch;
use crate::spool::keys::Ends;
use crate::spool::ledger::tables::{CARRIED, DEADLINES, DELIVERIES, KEPT};
use crate::spool::{Spool, SpoolError};

impl Spool {
    /// A name in the inbox no longer shows `row`. Call with the decision lock held.
    pub(in crate::spool) fn shown_no_more(
        &self,
        row: &InName,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.content.room.allowance().less(row.origin, row.size);
        let key = (row.origin, row.bundle);
        if !self.ledger.is_watched(&row.bundle)?
            && self.journal.row(CARRIED, &key)?.is_none()
            && let Some(kept) = self.ledger.kept(row.bundle)?
            // Of a bundle of many another name may show something; the next start looks.
            && kept.manifest().entries.len() == 1
        {
            batch.remove(KEPT, &row.bundle);
            batch.remove(DEADLINES, &Ends::Bundle(row.bundle));
        }
        Ok(())
    }

    /// At start: bundles that are neither in custody nor shown any more are kept no longer, nor is what nobody would take.
    pub(in crate::spool) fn sweep_kept(&self) -> Result<(), SpoolError> {
        self.each_row(KEPT, |spool, bundle, row| {
            let manifest = match row.signed.clone().verify_own() {
                Ok(manifest) => manifest,
                Err(error) => {
                    tracing::error!("a bundle that was kept for others is dropped: {error}");
                    return spool.drop_kept(*bundle, row);
                }
            };
            if spool.custody_of(&manifest)?.is_none() && !spool.inbox.still_shows(&manifest)? {
                let mut batch = Batch::default();
                batch.remove(KEPT, bundle);
                batch.remove(DEADLINES, &Ends::Bundle(*bundle));
                spool.journal.submit(batch)?;
            }
            Ok(())
        })
    }

    /// What the inbox still shows of others goes to a new member too, by way of custody.
    pub(in crate::spool) fn give_kept(&self, peer: PeerId) -> Result<(), SpoolError> {
        let mut after: Option<BundleId> = None;
        loop {
            let decide = self.decide();
            let page = self.journal.rows(KEPT.all().after(after.as_ref()), PAGE)?;
            let mut steps = Steps::default();
            for (_, row) in &page {
                // One that does not verify goes at the next start.
                if let Ok(manifest) = row.signed.clone().verify_own() {
                    self.give_kept_one(&manifest, peer, &mut steps)?;
                }
            }
            self.record(&mut steps)?;
            drop(decide);
            self.tell(steps);
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => return Ok(()),
            }
        }
    }

    fn give_kept_one(
        &self,
        manifest: &VerifiedManifest,
        peer: PeerId,
        steps: &mut Steps,
    ) -> Result<(), SpoolError> {
        let of = manifest.manifest();
        if !matches!(of.scope, Scope::All { .. }) || !of.is_for(peer) {
            return Ok(());
        }
        if self.ledger.ended(manifest.id(), of.origin).is_some() {
            return Ok(());
        }
        let known = self.custody_of(manifest)?;
        if known.as_ref().is_some_and(Custody::needs_content) {
            self.step(manifest, custody::Event::Joined(peer), steps)?;
            return Ok(());
        }
        if !self.inbox.still_shows(manifest)? || !self.content.has_all(of) {
            return Ok(());
        }
        match known {
            Some(_) => {
                let needs = of.digests();
                self.content
                    .begin_need(manifest.id(), needs, &mut steps.batch);
                self.step(manifest, custody::Event::Joined(peer), steps)?;
            }
            None => {
                // Its origin may give it, if it is there.
                let key = (manifest.id(), peer);
                steps.batch.insert(DELIVERIES, &key, &DeliveryState::Queued);
                self.watch(manifest, &mut steps.batch);
            }
        }
        Ok(())
    }
}
