//! Invitations that this node made: secrets that expire, or that only the first id that redeems one can use.
//!
//! # Invariants
//! 1. A use is durable before it is answered: a crash in between never gives a second one to somebody else.
//! 2. A use belongs to an id. The same id may ask again, for it may never have heard the answer; others may not.
//!
//! # Crash behaviour
//! A row per invitation; one that can be used no more is kept for [`KEPT`], so that its error can say why.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Admission, Group};
use crate::peer::invitation::{Denied, JoinSecret, Welcome};
use crate::peer::{GroupKey, PeerId};
use crate::spool::journal::{Batch, Table};
use crate::spool::{SpoolError, now_secs};

/// By the name of the join secret.
const INVITATIONS: Table<[u8; 16], Row> = Table::new(49);

/// How long one that is over is remembered.
const KEPT: u64 = 30 * 24 * 3600;

/// How far our clock may go back before what depends on it is taken for expired.
const CLOCK_SLACK: u64 = 3600;

/// Ids that one invitation admits.
const USES_MAX: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Row {
    /// What knowledge of the secret is proved with.
    key: GroupKey,
    /// Seconds since 1970 by our clock.
    made: u64,
    /// The same; `None`: never.
    expires: Option<u64>,
    once: bool,
    used_by: Vec<PeerId>,
}

/// What the joiner is told when it is our disk.
fn disk(error: impl Into<SpoolError>) -> Denied {
    tracing::error!("an invitation cannot be redeemed: {}", error.into());
    Denied::Disk
}

impl Group {
    /// Makes an invitation. Durable when this returns.
    pub(crate) fn invite(
        &self,
        lasts: Option<Duration>,
        once: bool,
    ) -> Result<JoinSecret, SpoolError> {
        let (secret, made) = (JoinSecret::generate(), now_secs());
        let Some(key) = secret.key() else {
            return Err(SpoolError::Corrupted("a hash that is all zero".into()));
        };
        self.bind()?;
        let mut batch = Batch::default();
        let over = |row: &Row| row.expires.is_some_and(|at| at.saturating_add(KEPT) < made);
        for (name, row) in self.journal.rows(INVITATIONS.all(), usize::MAX)? {
            if over(&row) {
                batch.remove(INVITATIONS, &name);
            }
        }
        let row = Row {
            key,
            made,
            expires: lasts.map(|lasts| made.saturating_add(lasts.as_secs().max(1))),
            once,
            used_by: Vec::new(),
        };
        batch.insert(INVITATIONS, &secret.name(), &row);
        self.journal.submit(batch)?;
        self.journal.flush()?;
        Ok(secret)
    }

    /// With what the holder of the invitation of that name proves that it knows the secret.
    pub(crate) fn invitation_key(&self, name: [u8; 16]) -> Option<GroupKey> {
        let row: Row = self.journal.row(INVITATIONS, &name).ok().flatten()?;
        Some(row.key)
    }

    /// `joiner` uses the invitation of that name. Durable when this returns. Call with the change lock held.
    fn use_invitation(&self, name: [u8; 16], joiner: PeerId, now: u64) -> Result<(), Denied> {
        let row: Option<Row> = self.journal.row(INVITATIONS, &name).map_err(disk)?;
        let mut row = row.ok_or(Denied::Unknown)?;
        if matches!(self.admission(joiner), Admission::Removed | Admission::Left) {
            return Err(Denied::Removed);
        }
        // A clock set to long before it was made says nothing about its age.
        let young = |at: u64| now < at && now.saturating_add(CLOCK_SLACK) >= row.made;
        if !row.expires.is_none_or(young) {
            return Err(Denied::Expired);
        }
        let again = row.used_by.contains(&joiner);
        let full = row.used_by.len() >= if row.once { 1 } else { USES_MAX };
        if full && !again {
            return Err(Denied::Used);
        }
        if !again {
            row.used_by.push(joiner);
            let mut batch = Batch::default();
            batch.insert(INVITATIONS, &name, &row);
            self.journal.submit(batch).map_err(disk)?;
        }
        self.journal.flush().map_err(disk)
    }
}

impl Group {
    /// `joiner` proved that it knows the secret of that name. Waits for the disk.
    pub(crate) fn redeem(&self, name: [u8; 16], joiner: PeerId) -> Result<Welcome, Denied> {
        self.redeem_at(name, joiner, now_secs())
    }

    pub(in crate::spool) fn redeem_at(
        &self,
        name: [u8; 16],
        joiner: PeerId,
        now: u64,
    ) -> Result<Welcome, Denied> {
        let _one = self.change.lock();
        self.use_invitation(name, joiner, now)?;
        if let Some(admitted) = self.admit(joiner) {
            self.apply(vec![admitted]).map_err(disk)?;
        }
        let key = self.keys().into_iter().next();
        Ok(Welcome {
            key: key.ok_or(Denied::Disk)?,
            charter: self.charter(),
            generation: self.generation(),
        })
    }
}
