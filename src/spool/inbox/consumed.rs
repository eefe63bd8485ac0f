//! Consumed names: what stays of a name in the inbox when the user has taken its file away.
//!
//! While a file is shown its name has three rows: which name was chosen, whose it is, and the newest version published
//! there. Once the file is consumed a small row takes their place, found by a hash of the name, as long as the name is
//! the path that the origin gave it (one chosen in a conflict keeps its rows). The next version of the path brings the
//! three rows back; the small one is past then, and replaced the next time.
//!
//! # Invariants
//! 1. Rows of a shown name are never looked for here first: a full row wins.
//! 2. A name belongs to one origin for ever, so a small row is never another origin's than the full rows' before it.

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, RelPath};
use crate::peer::PeerId;
use crate::spool::inbox::tables::{CHOSEN, InName, OWNED, VERSIONS, Version};
use crate::spool::journal::{Batch, Table};
use crate::spool::ledger::inbound::InboundState;
use crate::spool::{Spool, SpoolError};

/// By the hash of a name of the inbox: its file was consumed.
pub(in crate::spool) const CONSUMED: Table<[u8; KEY], Consumed> = Table::new(62);

/// Bytes of the hash of a name. Nobody gains by names that meet: they must be in one inbox, and only one's own
/// versions are compared.
const KEY: usize = 16;

/// What is left of a consumed name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct Consumed {
    /// The first bytes of the origin's id.
    origin: [u8; 8],
    order: (u64, u64),
}

/// Whose a name of the inbox is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::spool) enum Owner {
    /// Of this origin and path.
    Known(PeerId, RelPath),
    /// Of the origin whose id begins so; its path is the name itself, and nothing is shown there.
    Consumed([u8; 8]),
}

impl Owner {
    /// Whether it is the name that shows `path` of `origin`, where `name` is the name in question.
    pub(in crate::spool) fn is(&self, origin: PeerId, path: &RelPath, name: &RelPath) -> bool {
        match self {
            Self::Known(owner, its) => *owner == origin && its == path,
            Self::Consumed(head) => *head == head_of(origin.as_bytes()) && name == path,
        }
    }

    /// Whether it is a name of `origin`.
    pub(in crate::spool) fn is_of(&self, origin: PeerId) -> bool {
        match self {
            Self::Known(owner, _) => *owner == origin,
            Self::Consumed(head) => *head == head_of(origin.as_bytes()),
        }
    }
}

fn head_of(id: &[u8; 32]) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *id;
    [a, b, c, d, e, f, g, h]
}

fn key(name: &RelPath) -> [u8; KEY] {
    let hash = blake3::hash(name.as_bytes());
    let mut key = [0; KEY];
    key.copy_from_slice(&hash.as_bytes()[..KEY]);
    key
}

impl Spool {
    /// The newest version of a path of `origin` that was published here.
    pub(in crate::spool) fn version(
        &self,
        origin: PeerId,
        path: &RelPath,
    ) -> Result<Option<Version>, SpoolError> {
        if let Some(order) = self.inbox.publishing.pending_order(origin, path) {
            return Ok(Some(Version { order }));
        }
        if let Some(version) = self.journal.row(VERSIONS, &(origin, path))? {
            return Ok(Some(version));
        }
        let consumed: Option<Consumed> = self.journal.row(CONSUMED, &key(path))?;
        Ok(consumed
            .filter(|row| row.origin == head_of(origin.as_bytes()))
            .map(|row| Version { order: row.order }))
    }

    /// `bundle` has the newest version of a path. Call with the decision lock held.
    pub(in crate::spool) fn is_version(
        &self,
        bundle: BundleId,
        origin: PeerId,
        path: &RelPath,
        version: Version,
        batch: &mut Batch,
    ) {
        let publishing = &self.inbox.publishing;
        publishing.outdate(bundle, origin, path, version.order);
        batch.insert(VERSIONS, &(origin, path), &version);
    }

    /// Whose name this is, also while nothing is shown there.
    pub(in crate::spool) fn owner(&self, name: &RelPath) -> Result<Option<Owner>, SpoolError> {
        let known: Option<(PeerId, RelPath)> = self.journal.row(OWNED, name)?;
        if let Some((origin, path)) = known {
            return Ok(Some(Owner::Known(origin, path)));
        }
        let consumed: Option<Consumed> = self.journal.row(CONSUMED, &key(name))?;
        Ok(consumed.map(|row| Owner::Consumed(row.origin)))
    }

    /// The user took away what `name` shows; `row` is what that was. Call with the decision lock held.
    pub(in crate::spool) fn row_consumed(
        &self,
        row: &InName,
        name: &RelPath,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        self.note_taken(row.origin, [row.which], batch)?;
        self.ledger
            .show_as(row.bundle, InboundState::Consumed, batch)?;
        self.name_consumed(row.origin, &row.path, name, None, batch)?;
        self.shown_no_more(row, batch)
    }

    /// `name`, which shows `path` of `origin` no more, needs its rows no longer. `version`: the newest of the path, if
    /// it is not in the journal yet. Call with the decision lock held.
    pub(in crate::spool) fn name_consumed(
        &self,
        origin: PeerId,
        path: &RelPath,
        name: &RelPath,
        version: Option<Version>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if name != path {
            return Ok(());
        }
        let full = (origin, path);
        let version = match version {
            Some(version) => Some(version),
            None => self.journal.row(VERSIONS, &full)?,
        };
        let owned: Option<(PeerId, RelPath)> = self.journal.row(OWNED, name)?;
        let (Some(version), true) = (version, owned == Some((origin, path.clone()))) else {
            return Ok(());
        };
        let row = Consumed {
            origin: head_of(origin.as_bytes()),
            order: version.order,
        };
        batch.insert(CONSUMED, &key(name), &row);
        batch.remove(VERSIONS, &full);
        batch.remove(CHOSEN, &full);
        batch.remove(OWNED, name);
        Ok(())
    }
}
