//! Consumed names: what stays of a name in the inbox when the user has taken its file away.
//!
//! A name that was chosen in a conflict has three rows for good: which name was chosen, whose it is, and the newest version
//! published there. The name of a file that is called as its origin calls it needs none of them: while it is shown, its
//! row says all that. Once that file is consumed a small row takes its place, found by a hash of the name. The
//! next version of the path has a row as a shown name again; the small one is past then, and replaced the next time.
//!
//! # Invariants
//! 1. Rows of a shown name are never looked for here first: a full row wins.
//! 2. A name belongs to one origin for ever, so a small row is never another origin's than the full rows' before it.
//! 3. Between its choice and its row a name without the three rows is known only to who holds the decision lock. So a bundle of
//!    many, which lets go of that lock meanwhile, writes them for every name.

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
        if let Some(version) = self.full_version(origin, path)? {
            return Ok(Some(version));
        }
        let consumed: Option<Consumed> = self.journal.row(CONSUMED, &key(path))?;
        Ok(consumed
            .filter(|row| row.origin == head_of(origin.as_bytes()))
            .map(|row| Version { order: row.order }))
    }

    /// The same by full rows alone. What a name shows may be older than what is known to be past.
    fn full_version(&self, origin: PeerId, path: &RelPath) -> Result<Option<Version>, SpoolError> {
        let known: Option<Version> = self.journal.row(VERSIONS, &(origin, path))?;
        let shown = self.shown_at_home(origin, path)?;
        let shown = shown.map(|row| row.which.order());
        let order = known.map(|known| known.order).max(shown);
        Ok(order.map(|order| Version { order }))
    }

    /// What the inbox shows of `path` of `origin` under this very name.
    fn shown_at_home(&self, origin: PeerId, path: &RelPath) -> Result<Option<InName>, SpoolError> {
        let row = self.inbox.row_of(path)?;
        Ok(row.filter(|row| row.origin == origin && row.path == *path))
    }

    /// The name that was chosen for a path of `origin`, unless nothing was shown there, or its file was consumed.
    pub(in crate::spool) fn chosen(
        &self,
        origin: PeerId,
        path: &RelPath,
    ) -> Result<Option<RelPath>, SpoolError> {
        if let Some(name) = self.journal.row(CHOSEN, &(origin, path))? {
            return Ok(Some(name));
        }
        let shown = self.shown_at_home(origin, path)?;
        Ok(shown.map(|_| path.clone()))
    }

    /// `name` is the one of a path of `origin`. One that is the path itself says so by its row as a shown name, if that
    /// comes while the decision lock is held: `at_once`.
    pub(in crate::spool) fn choose(
        &self,
        origin: PeerId,
        path: &RelPath,
        name: &RelPath,
        at_once: bool,
        batch: &mut Batch,
    ) {
        if !at_once || name != path {
            batch.insert(CHOSEN, &(origin, path), name);
            batch.insert(OWNED, name, &(origin, path.clone()));
        }
    }

    /// `name` is to have `row`, which shows this version of its path. Call with the decision lock held.
    pub(in crate::spool) fn shows_version(
        &self,
        row: &InName,
        name: &RelPath,
        version: Version,
        batch: &mut Batch,
    ) {
        // What is left of a bundle of many is sent again as another one, and its files keep the order of the first.
        match *name == row.path && row.which.order() == version.order {
            true => self.outdates(row.bundle, row.origin, &row.path, version.order),
            false => self.is_version(row.bundle, row.origin, &row.path, version, batch),
        }
    }

    fn outdates(&self, bundle: BundleId, origin: PeerId, path: &RelPath, order: (u64, u64)) {
        let publishing = &self.inbox.publishing;
        publishing.outdate(bundle, origin, path, order);
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
        self.outdates(bundle, origin, path, version.order);
        batch.insert(VERSIONS, &(origin, path), &version);
    }

    /// Whose name this is, also while nothing is shown there.
    pub(in crate::spool) fn owner(&self, name: &RelPath) -> Result<Option<Owner>, SpoolError> {
        let known: Option<(PeerId, RelPath)> = self.journal.row(OWNED, name)?;
        if let Some((origin, path)) = known {
            return Ok(Some(Owner::Known(origin, path)));
        }
        if let Some(row) = self.inbox.row_of(name)? {
            return Ok(Some(Owner::Known(row.origin, row.path)));
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
        self.custodian
            .shown_no_more(row.origin, row.bundle, row.size, batch)
    }

    /// A version of a path was taken away before its name had a row. Call with the decision lock held.
    pub(in crate::spool) fn never_shown(
        &self,
        origin: PeerId,
        path: &RelPath,
        name: &RelPath,
        version: Version,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        if name == path && self.shown_at_home(origin, path)?.is_none() {
            return self.name_consumed(origin, path, name, Some(version), batch);
        }
        batch.insert(VERSIONS, &(origin, path), &version);
        Ok(())
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
        // One that is not in the journal yet may stand in the batch.
        let has_row = version.is_some() || self.journal.row(VERSIONS, &full)?.is_some();
        let version = match version {
            Some(version) => Some(version),
            None => self.full_version(origin, path)?,
        };
        let owned: Option<(PeerId, RelPath)> = self.journal.row(OWNED, name)?;
        let is_its = owned
            .as_ref()
            .is_none_or(|(owner, its)| *owner == origin && its == path);
        let (Some(version), true) = (version, is_its) else {
            return Ok(());
        };
        let row = Consumed {
            origin: head_of(origin.as_bytes()),
            order: version.order,
        };
        batch.insert(CONSUMED, &key(name), &row);
        if has_row {
            batch.remove(VERSIONS, &full);
        }
        if owned.is_some() {
            batch.remove(CHOSEN, &full);
            batch.remove(OWNED, name);
        }
        Ok(())
    }
}
