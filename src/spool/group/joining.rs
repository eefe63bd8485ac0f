//! What a new member is given: the bundles that the outbox still shows, whole or what is left of them, and those that were
//! sealed when there was nobody.
//!
//! # Crash behaviour
//! A row of the group says that a member has not been given all of it yet; the next start goes on.

use std::collections::{HashMap, HashSet};

use crate::bundle::{BundleId, Entry, RelPath, Rest, Scope};
use crate::peer::PeerId;
use crate::spool::journal::Batch;
use crate::spool::outbox::seal::Earlier;
use crate::spool::{Spool, SpoolError};

/// Rows given to a new member in one batch.
const JOIN_PAGE: usize = 500;

impl Spool {
    /// Goes on with members that had joined when the daemon was killed.
    pub(in crate::spool) fn resume_joins(&self) -> Result<(), SpoolError> {
        self.group
            .joining()?
            .into_iter()
            .try_for_each(|peer| self.give_current(peer))
    }

    /// Bundles that the outbox still shows, and those sealed when there was nobody, go to a new member too. Page by page:
    /// nobody waits for all of it.
    pub(in crate::spool) fn give_current(&self, peer: PeerId) -> Result<(), SpoolError> {
        let mut after: Option<RelPath> = None;
        let mut whole: HashMap<BundleId, bool> = HashMap::new();
        let mut rests: HashMap<BundleId, Vec<RelPath>> = HashMap::new();
        let current = self.custodian.late_joiners();
        if current {
            self.custodian.give_kept(peer)?;
        }
        loop {
            if !current {
                break;
            }
            let decide = self.decide();
            let page = self.outbox.names(after.as_ref(), JOIN_PAGE)?;
            let mut batch = Batch::default();
            let mut unlinked = Vec::new();
            for (path, name) in &page {
                if self.content.has(name.digest) {
                    let known = whole.get(&name.bundle).copied();
                    let is_whole = match known {
                        Some(known) => known,
                        None => self.is_whole(name.bundle)?,
                    };
                    whole.insert(name.bundle, is_whole);
                    if !is_whole {
                        rests.entry(name.bundle).or_default().push(path.clone());
                    } else if known.is_none() {
                        self.owe(peer, name.bundle, &mut batch)?;
                    }
                } else {
                    // Another file with equal bytes had the link, and is gone.
                    unlinked.push((path.clone(), name.stat.ino));
                }
            }
            self.journal.submit(batch)?;
            drop(decide);
            for (path, ino) in unlinked {
                self.look_again(path, ino);
            }
            match page.into_iter().next_back() {
                Some((path, _)) => after = Some(path),
                None => break,
            }
        }
        for (bundle, paths) in rests {
            self.give_rest(peer, bundle, &paths)?;
        }
        loop {
            let decide = self.decide();
            let page = self.ledger.orphans(JOIN_PAGE)?;
            let mut batch = Batch::default();
            if page.is_empty() {
                decide.group.joined(peer, &mut batch);
                return Ok(self.journal.submit(batch)?);
            }
            for (order, bundle) in &page {
                // To all: another first member may be joining at the same time.
                self.owe_everybody(*bundle, &mut batch)?;
                self.ledger.adopt(*order, &mut batch);
            }
            self.journal.submit(batch)?;
        }
    }

    /// Whether all content of a bundle of many is still here: a file of it may have been replaced since.
    fn is_whole(&self, bundle: BundleId) -> Result<bool, SpoolError> {
        let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
            return Ok(true);
        };
        let of = manifest.manifest();
        Ok(of.entries.len() == 1 || self.content.has_all(of))
    }

    /// What the outbox still shows of a bundle whose other files were replaced, as a bundle for this peer alone.
    fn give_rest(
        &self,
        peer: PeerId,
        bundle: BundleId,
        paths: &[RelPath],
    ) -> Result<(), SpoolError> {
        let _decide = self.decide();
        let Some(manifest) = self.ledger.shared_manifest(bundle)? else {
            return Ok(());
        };
        let shown: HashSet<&RelPath> = paths.iter().collect();
        let of = manifest.manifest();
        if !of.is_for(peer) {
            return Ok(());
        }
        let held = |entry: &Entry| {
            let digest = entry.digest();
            entry.target().is_some() || digest.is_some_and(|digest| self.content.has(digest))
        };
        let wanted = (0..).zip(&of.entries);
        let wanted = wanted.filter(|(_, entry)| shown.contains(&entry.path) && held(entry));
        let (places, entries): (Vec<u32>, Vec<Entry>) =
            wanted.map(|(place, entry)| (place, entry.clone())).unzip();
        if entries.is_empty() {
            return Ok(());
        }
        let earlier = Earlier {
            rest_of: Some(Rest {
                epoch: of.epoch,
                incarnation: of.incarnation,
                seq: of.seq,
                entries: places,
            }),
            ..Earlier::default()
        };
        let scope = Scope::Ids(vec![peer]);
        let lifetime = std::time::Duration::from_secs(of.lifetime_secs);
        let rest = of.listing_of(entries);
        let rest = self.scoped_manifest(rest, earlier, of.priority, scope, lifetime);
        let mut batch = Batch::default();
        self.bundle_rows_for(&rest, &[peer], false, &mut batch)?;
        Ok(self.journal.submit(batch)?)
    }
}
