//! What a member has on disk: rows that are readable at once and durable a moment later, and bytes.
//!
//! A killed daemon keeps every row (its log is replayed and committed at the next start). A power loss keeps what was
//! committed, and any part of the bytes that were not synced.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;
use super::{Bundle, CHUNKS_MAX, Member};

/// Where a bundle stands with one recipient, as far as the journal knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Pending,
    Delivered,
    Refused,
    Cancelled,
    Superseded,
    Expired,
}

/// Why an origin ended a bundle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    Cancelled,
    Expired,
}

/// One change of the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Row {
    /// The daemon started.
    Epoch,
    /// A bundle of ours was sealed.
    Own(Bundle),
    /// How it stands with one recipient; pending or final.
    Fate(Bundle, Member, Fate),
    /// A publish begins.
    Intent(Bundle),
    /// A publish is given up.
    NoIntent(Bundle),
    /// The name is in the inbox.
    Shown(Bundle),
    /// It is settled; ends the intent.
    Settled(Bundle),
    /// It contradicts itself and is never looked at again.
    Bad(Bundle),
    /// Its origin ended it: our own statement, or one we were given.
    Ended(Bundle, Ending),
    /// The newest version of a path of an origin that was published here.
    Newest(Member, u32, (u64, u64)),
    /// The newest bundle of a path of ours.
    Latest(u32, Bundle),
    /// We hold the receipt of that member for a bundle of another.
    Kept(Bundle, Member),
    /// Custody of it ended: nothing is owed by us, nothing is known.
    NoCustody(Bundle),
    /// That member knows that it ended.
    Seen(Bundle, Member),
}

/// All rows.
#[derive(Clone, Default, Debug)]
pub(super) struct Rows {
    pub(super) epoch: u64,
    pub(super) own: BTreeSet<Bundle>,
    pub(super) fates: BTreeMap<(Bundle, Member), Fate>,
    pub(super) pending: BTreeSet<(Member, Bundle)>,
    pub(super) intents: BTreeSet<Bundle>,
    pub(super) shown: BTreeMap<Bundle, u8>,
    pub(super) settled: BTreeSet<Bundle>,
    pub(super) bad: BTreeSet<Bundle>,
    pub(super) ended: BTreeMap<Bundle, Ending>,
    pub(super) newest: BTreeMap<(Member, u32), (u64, u64)>,
    pub(super) latest: BTreeMap<u32, Bundle>,
    pub(super) kept: BTreeSet<(Bundle, Member)>,
    pub(super) seen: BTreeSet<(Bundle, Member)>,
}

impl Rows {
    fn apply(&mut self, row: Row) {
        match row {
            Row::Epoch => self.epoch += 1,
            Row::Own(bundle) => drop(self.own.insert(bundle)),
            Row::Fate(bundle, member, fate) => {
                self.fates.insert((bundle, member), fate);
                if fate == Fate::Pending {
                    self.pending.insert((member, bundle));
                } else {
                    self.pending.remove(&(member, bundle));
                }
            }
            Row::Intent(bundle) => drop(self.intents.insert(bundle)),
            Row::NoIntent(bundle) => drop(self.intents.remove(&bundle)),
            Row::Shown(bundle) => *self.shown.entry(bundle).or_default() += 1,
            Row::Settled(bundle) => {
                self.intents.remove(&bundle);
                self.settled.insert(bundle);
            }
            Row::Bad(bundle) => drop(self.bad.insert(bundle)),
            Row::Ended(bundle, ending) => drop(self.ended.insert(bundle, ending)),
            Row::Newest(origin, path, order) => drop(self.newest.insert((origin, path), order)),
            Row::Latest(path, bundle) => drop(self.latest.insert(path, bundle)),
            Row::Kept(bundle, member) => drop(self.kept.insert((bundle, member))),
            Row::Seen(bundle, member) => drop(self.seen.insert((bundle, member))),
            Row::NoCustody(bundle) => {
                let all = (bundle, Member::MIN)..=(bundle, Member::MAX);
                let others: Vec<Member> = self.fates.range(all.clone()).map(|(k, _)| k.1).collect();
                for member in others {
                    self.fates.remove(&(bundle, member));
                    self.pending.remove(&(member, bundle));
                }
                let kept: Vec<_> = self.kept.range(all).copied().collect();
                for key in kept {
                    self.kept.remove(&key);
                }
            }
        }
    }
}

/// The state of each chunk of a bundle that is arriving.
pub(super) type Chunks = [Chunk; CHUNKS_MAX];

/// One chunk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Chunk {
    #[default]
    Missing,
    Right,
    Wrong,
}

/// The disk of one member.
#[derive(Clone, Default, Debug)]
pub(super) struct Disk {
    /// What is read.
    pub(super) rows: Rows,
    /// What a power loss leaves.
    pub(super) durable: Rows,
    log: Vec<Row>,
    /// Bytes of bundles of others.
    pub(super) bytes: BTreeMap<Bundle, Chunks>,
    synced: BTreeMap<Bundle, Chunks>,
}

impl Disk {
    /// Makes a row readable; it is durable after the next [`Self::commit`].
    pub(super) fn submit(&mut self, row: Row) {
        self.rows.apply(row);
        self.log.push(row);
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.log.is_empty()
    }

    /// Bytes first, then the rows that speak of them. Gives those.
    pub(super) fn commit(&mut self) -> Vec<Row> {
        for row in &self.log {
            if let Row::Settled(bundle) = row
                && let Some(chunks) = self.bytes.get(bundle)
            {
                self.synced.insert(*bundle, *chunks);
            }
            self.durable.apply(*row);
        }
        std::mem::take(&mut self.log)
    }

    /// Whether all bytes of it are safe, and the row that says so.
    pub(super) fn is_safe(&self, bundle: Bundle, chunks: usize) -> bool {
        let whole = |chunks_of: &Chunks| chunks_of[..chunks].iter().all(|c| *c == Chunk::Right);
        self.durable.settled.contains(&bundle) && self.synced.get(&bundle).is_some_and(whole)
    }

    /// The daemon is killed.
    pub(super) fn killed(&mut self) {
        self.commit();
    }

    pub(super) fn lost_power(&mut self, random: &mut Random) {
        self.rows = self.durable.clone();
        self.log.clear();
        // Names that no row settles go to quarantine.
        let Rows { shown, settled, .. } = &mut self.durable;
        shown.retain(|bundle, _| settled.contains(bundle));
        self.rows.shown.clone_from(shown);
        let synced = &self.synced;
        self.bytes
            .retain(|bundle, chunks| match synced.get(bundle) {
                Some(safe) => {
                    *chunks = *safe;
                    true
                }
                None => {
                    for chunk in chunks.iter_mut() {
                        *chunk = match random.below(3) {
                            0 => Chunk::Missing,
                            1 => Chunk::Wrong,
                            _ => *chunk,
                        };
                    }
                    true
                }
            });
    }

    /// What an earlier attempt left is hashed again before it counts.
    pub(super) fn recount(&mut self, bundle: Bundle) -> &mut Chunks {
        let chunks = self.bytes.entry(bundle).or_default();
        for chunk in chunks.iter_mut().filter(|c| **c == Chunk::Wrong) {
            *chunk = Chunk::Missing;
        }
        chunks
    }
}
