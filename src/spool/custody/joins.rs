//! Bundles of others that a name still shows: kept for members that join later, after custody has ended.
//!
//! # Invariants
//! 1. A bundle is kept no longer when the last name goes that shows it; one of many, at the next start.

use super::tables::{CARRIED, RELAYS, WATCHED};
use super::{Custodian, PAGE, Steps};
use crate::bundle::{BundleId, Scope, VerifiedManifest};
use crate::delivery::custody::{self, Custody};
use crate::journal::Batch;
use crate::peer::PeerId;
use crate::spool::SpoolError;

impl Custodian {
    /// A name in the inbox no longer shows a file of that size of the bundle. Call with the decision lock held.
    pub(in crate::spool) fn shown_no_more(
        &self,
        origin: PeerId,
        bundle: BundleId,
        size: u64,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.content.room.allowance().less(origin, size);
        let key = (origin, bundle);
        if !self.is_watched(&bundle)?
            && self.journal.row(CARRIED, &key)?.is_none()
            && let Some(kept) = self.ledger.kept(bundle)?
            // Of a bundle of many another name may show something; the next start looks.
            && kept.manifest().entries.len() == 1
        {
            self.ledger.keep_no_more(bundle, batch);
        }
        Ok(())
    }

    /// At start: bundles that are neither in custody nor shown any more are kept no longer, nor is what nobody would take.
    pub(in crate::spool) fn sweep_kept(&self) -> Result<(), SpoolError> {
        let mut after: Option<BundleId> = None;
        loop {
            let page = self.ledger.all_kept(after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            for (bundle, signed) in page {
                match signed.verify_own() {
                    Ok(manifest) => self.sweep_one(&manifest)?,
                    Err(error) => {
                        tracing::error!("a bundle that was kept for others is dropped: {error}");
                        self.drop_kept(bundle)?;
                    }
                }
            }
        }
    }

    fn sweep_one(&self, manifest: &VerifiedManifest) -> Result<(), SpoolError> {
        if self.custody_of(manifest)?.is_none() && !self.still_shows(manifest)? {
            let mut batch = Batch::default();
            self.ledger.keep_no_more(manifest.id(), &mut batch);
            self.journal.submit(batch)?;
        }
        Ok(())
    }

    /// What the inbox still shows of others goes to a new member too, by way of custody.
    pub(in crate::spool) fn give_kept(&self, peer: PeerId) -> Result<(), SpoolError> {
        let mut after: Option<BundleId> = None;
        loop {
            let decide = self.decide();
            let page = self.ledger.all_kept(after.as_ref(), PAGE)?;
            let mut steps = Steps::default();
            for (_, signed) in &page {
                // One that does not verify goes at the next start.
                if let Ok(manifest) = signed.clone().verify_own() {
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
        if !self.still_shows(manifest)? || !self.content.has_all(of) {
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
                self.ledger.promise(manifest.id(), peer, &mut steps.batch);
                self.watch(manifest, &mut steps.batch);
            }
        }
        Ok(())
    }

    /// Drops a bundle of another that was kept for further recipients, without its manifest: with all rows whose keys
    /// name it.
    pub(in crate::spool) fn drop_kept(&self, bundle: BundleId) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        self.ledger.keep_no_more(bundle, &mut batch);
        batch.remove(WATCHED, &bundle);
        let rank = self.ledger.kept_rank(bundle)?;
        for (peer, _) in self.ledger.deliveries_of(bundle)? {
            self.ledger.take_back(bundle, peer, rank, &mut batch);
        }
        for key in self.journal.keys(CARRIED.all(), usize::MAX)? {
            if key.1 == bundle {
                batch.remove(CARRIED, &key);
            }
        }
        self.content.end_all_needs(bundle, &mut batch)?;
        for key in self.journal.keys(RELAYS.all(), usize::MAX)? {
            if key.1 == bundle {
                batch.remove(RELAYS, &key);
            }
        }
        Ok(self.journal.submit(batch)?)
    }
}
