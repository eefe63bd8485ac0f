//! The members that we know: names, addresses, epochs, and whom the user gave up.
//!
//! # Invariants
//! 1. A name means the first id that this node itself heard claim it; whoever claims it later is nobody by that name.
//! 2. Only its own word brings a forgotten member back.
//! 3. Of members that we never met there are at most [`STRANGERS_MAX`]: each is owed all that is sealed, and a member that
//!    lies could invent any number of them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::Group;
use super::tables::{FORGOTTEN, JOINING, MEMBERS, NAMES};
use crate::journal::{Batch, Journal};
use crate::peer::{PeerId, PeerName};
use crate::spool::decision::Guard;
use crate::spool::{Member, SpoolError, now_secs};

/// Addresses kept for one member; the newest win.
const ADDRS_MAX: usize = 16;

/// So many, whoever speaks of them.
const STRANGERS_MAX: usize = 1024;

/// How long it holds that there are too many of them.
const COUNT_AGAIN: Duration = Duration::from_secs(10);

/// What of the members is kept in memory.
#[derive(Debug)]
pub(super) struct Known {
    /// Whom bundles for all go to.
    pub(super) ids: RwLock<BTreeSet<PeerId>>,
    /// When there were too many strangers.
    full: Mutex<Option<Instant>>,
}

impl Known {
    pub(super) fn load(journal: &Journal) -> Result<Self, SpoolError> {
        let rows = journal.rows(MEMBERS.all(), usize::MAX)?;
        Ok(Self {
            ids: RwLock::new(rows.into_iter().map(|(id, _)| id).collect()),
            full: Mutex::default(),
        })
    }
}

/// What became of a word about a member.
pub(in crate::spool) struct Seen {
    /// It is a member since.
    pub(in crate::spool) new: bool,
    /// Others are to be told.
    pub(in crate::spool) told: bool,
    /// It has a name now that nobody had.
    pub(in crate::spool) claimed: bool,
}

impl Group {
    /// All members but ourselves.
    pub(crate) fn members(&self) -> Vec<Member> {
        let rows = self.journal.rows(MEMBERS.all(), usize::MAX);
        let members = rows.unwrap_or_default().into_iter();
        let members = members.map(|(_, member)| member);
        members.filter(|member| !self.is_out(member.id)).collect()
    }

    /// Whom bundles for all go to: all members but ourselves.
    pub(in crate::spool) fn ids(&self) -> BTreeSet<PeerId> {
        self.known.ids.read().clone()
    }

    /// Whether bundles for all go to it.
    pub(in crate::spool) fn is_member(&self, id: PeerId) -> bool {
        self.known.ids.read().contains(&id)
    }

    fn member(&self, id: PeerId) -> Option<Member> {
        self.journal.row(MEMBERS, &id).ok().flatten()
    }

    /// The highest epoch we have seen of `peer`; 0 if none.
    pub(crate) fn epoch_seen_of(&self, peer: PeerId) -> u64 {
        self.member(peer).map_or(0, |member| member.epoch)
    }

    /// What a peer calls itself; the first digits of its id if it never said.
    pub(crate) fn name_of(&self, peer: PeerId) -> String {
        if peer == self.identity.id() {
            return "me".into();
        }
        let name = self.member(peer).map(|member| member.name);
        let name = name.or_else(|| self.journal.row(FORGOTTEN, &peer).ok().flatten());
        name.map_or_else(|| peer.short(), |name| name.to_string())
    }

    /// Who has this name.
    pub(in crate::spool) fn named(&self, name: &str) -> Option<PeerId> {
        self.journal.row(NAMES, &name).ok().flatten()
    }

    /// Whose name a member claims that is not its own.
    pub(crate) fn false_claim(&self, id: PeerId, name: &str) -> Option<PeerId> {
        self.named(name).filter(|owner| *owner != id)
    }

    /// Whether the user gave this member up.
    pub(crate) fn is_forgotten(&self, peer: PeerId) -> Result<bool, SpoolError> {
        Ok(self.journal.row(FORGOTTEN, &peer)?.is_some())
    }

    /// All whom the user gave up.
    pub(in crate::spool) fn forgotten(&self) -> Result<Vec<PeerId>, SpoolError> {
        Ok(self.journal.keys(FORGOTTEN.all(), usize::MAX)?)
    }

    /// Members that have not been given all of what is current yet.
    pub(in crate::spool) fn joining(&self) -> Result<Vec<PeerId>, SpoolError> {
        Ok(self.journal.keys(JOINING.all(), usize::MAX)?)
    }

    /// Why a delivery to `peer` was cancelled, if it was because it is no member any more.
    pub(in crate::spool) fn why_cancelled(&self, peer: PeerId) -> Option<String> {
        let forgotten = self.is_forgotten(peer).ok()?;
        let forgotten = forgotten.then(|| "forgotten".to_owned());
        forgotten.or_else(|| self.why_out(peer))
    }

    /// A peer said its epoch.
    pub(crate) fn note_epoch(&self, peer: PeerId, epoch: u64) -> Result<(), SpoolError> {
        self.decide().note_epoch(peer, epoch)
    }

    /// The last connection with `peer` has just ended.
    pub(crate) fn note_gone(&self, peer: PeerId) -> Result<(), SpoolError> {
        self.decide().note_gone(peer)
    }
}

impl Guard<'_, Group> {
    /// A peer proved membership (`contact`), or a member told us of one. Addresses replace the known ones on contact, and
    /// add to them otherwise. `None`: another's word makes it no member.
    pub(in crate::spool) fn seen(
        &self,
        id: PeerId,
        name: &PeerName,
        addrs: &[SocketAddr],
        contact: bool,
    ) -> Result<Option<Seen>, SpoolError> {
        let known: Option<Member> = self.journal.row(MEMBERS, &id)?;
        if known.is_none() && !contact && self.is_forgotten(id)? {
            return Ok(None);
        }
        if known.is_none() && !contact && self.is_full_of_strangers()? {
            tracing::debug!(peer = %name, "another says that this is a member; too many are known by hearsay only");
            return Ok(None);
        }
        let mut member = known.clone().unwrap_or_else(|| Member {
            id,
            name: name.clone(),
            addrs: Vec::new(),
            last_seen: 0,
            epoch: 0,
        });
        if contact {
            member.name = name.clone();
            member.last_seen = now_secs();
            if !addrs.is_empty() {
                member.addrs.clear();
            }
        }
        for addr in addrs {
            if !member.addrs.contains(addr) {
                member.addrs.insert(0, *addr);
            }
        }
        member.addrs.truncate(ADDRS_MAX);
        member.addrs.sort_unstable();
        let mut seen = Seen {
            new: known.is_none(),
            told: known
                .is_none_or(|known| known.addrs != member.addrs || known.name != member.name),
            claimed: false,
        };
        if seen.told || contact {
            let mut batch = Batch::default();
            if contact {
                seen.claimed = self.claim_name(id, name, &mut batch)?;
            }
            batch.insert(MEMBERS, &id, &member);
            if seen.new {
                batch.insert(JOINING, &id, &());
                batch.remove(FORGOTTEN, &id);
            }
            self.journal.submit(batch)?;
        }
        if seen.new {
            // From here on each new seal is for it too.
            self.known.ids.write().insert(id);
        }
        Ok(Some(seen))
    }

    /// A peer said its epoch.
    pub(in crate::spool) fn note_epoch(&self, peer: PeerId, epoch: u64) -> Result<(), SpoolError> {
        let Some(mut member) = self.journal.row(MEMBERS, &peer)? else {
            return Ok(());
        };
        if member.epoch >= epoch {
            return Ok(());
        }
        member.epoch = epoch;
        let mut batch = Batch::default();
        batch.insert(MEMBERS, &peer, &member);
        Ok(self.journal.submit(batch)?)
    }

    /// The last connection with it has just ended.
    pub(in crate::spool) fn note_gone(&self, peer: PeerId) -> Result<(), SpoolError> {
        let Some(mut member) = self.journal.row(MEMBERS, &peer)? else {
            return Ok(());
        };
        member.last_seen = now_secs();
        let mut batch = Batch::default();
        batch.insert(MEMBERS, &peer, &member);
        Ok(self.journal.submit(batch)?)
    }

    /// It has been given all of what is current.
    pub(in crate::spool) fn joined(&self, id: PeerId, batch: &mut Batch) {
        batch.remove(JOINING, &id);
    }

    /// The user gives this member up. Gives what it was called; `None`: there is no such member.
    pub(in crate::spool) fn forget(&self, id: PeerId) -> Result<Option<PeerName>, SpoolError> {
        let Some(member) = self.journal.row(MEMBERS, &id)? else {
            return Ok(None);
        };
        let mut batch = Batch::default();
        batch.insert(FORGOTTEN, &id, &member.name);
        batch.remove(MEMBERS, &id);
        batch.remove(JOINING, &id);
        self.release_names(id, &mut batch)?;
        self.journal.submit(batch)?;
        self.known.ids.write().remove(&id);
        Ok(Some(member.name))
    }

    /// It is no member any more: nothing more is for it.
    pub(in crate::spool) fn put_out(&self, id: PeerId, for_good: bool) -> Result<(), SpoolError> {
        self.known.ids.write().remove(&id);
        let mut batch = Batch::default();
        batch.remove(JOINING, &id);
        if for_good {
            self.release_names(id, &mut batch)?;
        }
        Ok(self.journal.submit(batch)?)
    }

    /// A peer says itself that it has this name: it gets it if nobody had it.
    fn claim_name(
        &self,
        id: PeerId,
        name: &PeerName,
        batch: &mut Batch,
    ) -> Result<bool, SpoolError> {
        let owner: Option<PeerId> = self.journal.row(NAMES, &name.as_str())?;
        match owner {
            Some(owner) if owner != id => {
                tracing::warn!(%name, id = %id.short(), owner = %owner.short(), "claims a name that another member had first: nothing is sent to it by that name");
                Ok(false)
            }
            Some(_) => Ok(false),
            None => {
                batch.insert(NAMES, &name.as_str(), &id);
                Ok(true)
            }
        }
    }

    /// The names of a member that is gone are free for others.
    fn release_names(&self, id: PeerId, batch: &mut Batch) -> Result<(), SpoolError> {
        for row in self.journal.each(NAMES) {
            let (name, owner) = row?;
            if owner == id {
                batch.remove(NAMES, &name);
            }
        }
        Ok(())
    }

    /// Whether another's word makes no more members.
    fn is_full_of_strangers(&self) -> Result<bool, SpoolError> {
        if self.known.ids.read().len() < STRANGERS_MAX {
            return Ok(false);
        }
        // Not counted for each of the thousands whom one frame may name: others wait for the decision lock.
        let mut full = self.known.full.lock();
        if full.is_some_and(|since| since.elapsed() < COUNT_AGAIN) {
            return Ok(true);
        }
        let mut strangers = 0;
        for row in self.journal.each(MEMBERS) {
            strangers += usize::from(row?.1.last_seen == 0);
        }
        *full = (strangers >= STRANGERS_MAX).then(Instant::now);
        Ok(full.is_some())
    }
}
