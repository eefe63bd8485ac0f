//! The seal of an inode under its names: one bundle for each that is to be sent, all in one batch.
//!
//! # Invariants
//! 1. All names of a request are decided at one instant: all of them or none have the new bytes. A name that shows another
//!    file by then drops out by itself.
//! 2. The mark goes in the batch that seals the last name.

use std::collections::BTreeSet;

use super::Earlier;
use super::commit::Gates;
use super::plan::{Announced, Member, Plan, Replaces, Taken, gates_of};
use crate::bundle::{BundleId, link};
use crate::spool::decision::Decision;
use crate::spool::durable::OnPath;
use crate::spool::group::route::Terms;
use crate::spool::journal::Batch;
use crate::spool::outbox::tables::{MARKS, Mark, MarkKind, OUT_NAMES, OutName};
use crate::spool::{Recheck, SealName, SealOutcome, SealRequest, Spool, SpoolError};

impl Spool {
    /// Seals a file that was hashed under every name of the request that still shows it; one outcome for each.
    pub(super) fn seal_names(
        &self,
        request: &SealRequest,
        mut member: Member,
    ) -> Result<Vec<SealOutcome>, SpoolError> {
        let SealRequest { gate, names, .. } = request;
        let all = |outcome: SealOutcome| Ok(vec![outcome; names.len()]);
        let terms_of = |name: &SealName| self.group.terms_of(&name.path, request.priority);
        let terms: Vec<Terms> = names.iter().map(terms_of).collect();
        let gates = gates_of(std::slice::from_ref(&member));
        let mut gates = Gates::lock(&gates);
        if gates.are_written() || !gates.is_as_hashed(&member) {
            return all(SealOutcome::Changed);
        }
        if let Some(file) = &member.file {
            let at = self.outbox.root.shown(&member.path);
            member.meta = file.metadata().on("stat", &at)?;
        }
        // Its link is made when it is taken in: who counts its names meanwhile finds it with the record, or not at all.
        let mut plan = gates.link(self, &[])?.plan(self);
        // A name may have gone or moved while the bytes were hashed, and the inode's number to another file with it.
        let mut shown = Vec::with_capacity(names.len());
        for name in names {
            let there = self.outbox.root.inode(&name.path)?;
            shown.push(!gate.is_retired() && there == Some(gate.ino()));
        }
        if !shown.contains(&true) {
            return all(SealOutcome::Gone);
        }
        let here = || names.iter().zip(&shown).filter(|(_, shows)| **shows);
        let recheck = self.outbox.recheck.lock().get(&gate.ino()).copied();
        if let Some(recheck) = recheck
            && !self.is_not_torn(
                &plan.decision,
                &member,
                recheck,
                here().map(|(name, _)| name),
            )?
        {
            return all(SealOutcome::Incomplete);
        }
        match plan.take_in(&member)? {
            Taken::Here(_) => {}
            Taken::Gone => return all(SealOutcome::Gone),
            Taken::Changed => return all(SealOutcome::Changed),
        }
        let mut outcomes = Vec::with_capacity(names.len());
        for ((name, shows), terms) in names.iter().zip(&shown).zip(terms) {
            let sealed = match shows {
                true => plan.seal_name(&member, name, terms, recheck.is_some())?,
                false => None,
            };
            outcomes.push(sealed.map_or(SealOutcome::Gone, SealOutcome::Sealed));
        }
        if outcomes
            .iter()
            .any(|outcome| matches!(outcome, SealOutcome::Sealed(_)))
        {
            plan.commit(request.more)?;
        }
        Ok(outcomes)
    }

    /// Of an inode that is looked at again: whether it may be sent. What is recorded of bytes that it does not have is
    /// dropped; where a power loss may have torn those, it is held back.
    fn is_not_torn<'a>(
        &self,
        decide: &Decision<'_>,
        member: &Member,
        recheck: Recheck,
        names: impl Iterator<Item = &'a SealName>,
    ) -> Result<bool, SpoolError> {
        let ino = member.gate.ino();
        for SealName { path, .. } in names {
            let before: Option<OutName> = self.outbox.name(path)?;
            let Some(before) = before.filter(|before| before.digest != member.digest()) else {
                continue;
            };
            decide.content.disown(before.digest, ino)?;
            if recheck == Recheck::KeepIfChanged {
                let mark = Mark {
                    kind: MarkKind::Torn,
                    path: path.clone(),
                };
                let mut batch = Batch::default();
                batch.insert(MARKS, &ino, &mark);
                self.journal.submit(batch)?;
                self.outbox.recheck.lock().remove(&ino);
                tracing::warn!(%path, "its bytes are not those that were sealed: held back as incomplete");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Plan<'_> {
    /// One name of a file that was taken in; `None` if it may not be sent by that. `again`: it is compared with what was
    /// sealed before.
    fn seal_name(
        &mut self,
        member: &Member,
        name: &SealName,
        mut terms: Terms,
        again: bool,
    ) -> Result<Option<BundleId>, SpoolError> {
        let (spool, digest) = (self.spool, member.digest());
        let SealName { path, renamed_from } = name;
        let target = member.target.as_ref();
        if target.is_some_and(|target| !link::stays(path, target)) {
            return Ok(None);
        }
        let before: Option<OutName> = spool.outbox.name(path)?;
        let asked = renamed_from.as_ref() == Some(path);
        let same = |row: &&OutName| (asked || again) && row.digest == digest;
        let unchanged = before.as_ref().filter(same);
        let dressed = match unchanged {
            Some(row) => spool.dressed(row, path, &member.meta, asked)?,
            None => false,
        };
        if let Some(before) = unchanged.filter(|row| !dressed && row.formerly.is_none()) {
            // Found at start with other times but the same bytes, or dressed as it was announced: nothing to send.
            self.show_as_before(member, path, before)?;
            return Ok(Some(before.bundle));
        }
        // What had this path last, although renamed over or removed since, and what this file was before its rename.
        let latest: Option<BundleId> = spool.outbox.latest(path)?;
        let formers = spool.formers(before.as_ref(), digest, dressed.then_some(path))?;
        tracing::trace!(%path, ?renamed_from, ?formers, "sealing");
        let earlier = Earlier {
            supersedes: latest,
            moved_on: match formers.is_empty() {
                true => None,
                false => spool.outbox.moved_on(path)?,
            },
            renamed_from: formers,
            ..Earlier::default()
        };
        let superseded = before.as_ref().map(|row| row.bundle);
        let replaces = Replaces {
            bundles: superseded
                .into_iter()
                .chain(latest)
                .collect::<BTreeSet<_>>(),
            names: before.into_iter().collect(),
        };
        let entry = member.entry(path, &member.meta);
        spool
            .group
            .last_word(std::slice::from_ref(&entry), &mut terms);
        let of = Announced::from(self.announce(&terms, vec![entry], earlier, replaces)?);
        self.show(path, member, of);
        tracing::debug!(%path, bundle = %of.bundle.short(), "sealed");
        Ok(Some(of.bundle))
    }

    /// The name shows what it showed, by another stat.
    fn show_as_before(
        &mut self,
        member: &Member,
        path: &crate::bundle::RelPath,
        before: &OutName,
    ) -> Result<(), SpoolError> {
        let ino = member.gate.ino();
        let stat = self
            .records
            .get(&ino)
            .map_or(before.stat, |(_, stat)| *stat);
        let row = OutName {
            stat,
            ..before.clone()
        };
        self.batch.insert(OUT_NAMES, path, &row);
        if self.spool.custodian.late_joiners() {
            let owed = self.spool.owe_everybody(row.bundle, &mut self.batch)?;
            self.owed.extend(owed);
        }
        Ok(())
    }
}
