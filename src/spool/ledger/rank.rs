//! The order in which what a peer is owed is read from the journal: the urgent first, then by age.
//!
//! A rank is the place of a bundle among all of ours (56 bits are more than any node will seal) below one byte for its
//! priority, as a signed number: routine is 0, so that ranks of routine bundles are plain places, urgent ones are
//! negative and lesser ones positive. As unsigned numbers, which is how keys sort, the urgent ones come last; so a
//! reading begins in the middle, at [`Rank::FIRST`], and goes on at 0.

use crate::bundle::Priority;

/// Place of a bundle in the queue of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rank(pub(crate) u64);

/// Bits of the place.
const PLACE_BITS: u32 = 56;

impl Rank {
    /// The least urgent rank there is as a key precedes this one: here a reading begins.
    pub(in crate::spool) const FIRST: u64 = 1 << 63;

    /// Of a bundle of that priority at that place.
    pub(crate) fn of(priority: Priority, place: u64) -> Self {
        let class: i8 = match priority {
            Priority::Critical => -2,
            Priority::Priority => -1,
            Priority::Routine => 0,
            Priority::Low => 1,
            Priority::Bulk => 2,
        };
        let place = place & ((1 << PLACE_BITS) - 1);
        Self(u64::from(class as u8) << PLACE_BITS | place)
    }

    /// The priority in it.
    pub(crate) fn priority(self) -> Priority {
        match (self.0 >> PLACE_BITS) as i8 {
            i8::MIN..=-2 => Priority::Critical,
            -1 => Priority::Priority,
            0 => Priority::Routine,
            1 => Priority::Low,
            2..=i8::MAX => Priority::Bulk,
        }
    }

    /// The place in it.
    pub(in crate::spool) fn place(self) -> u64 {
        self.0 & ((1 << PLACE_BITS) - 1)
    }

    /// Whether it lies in the half that is read first.
    pub(in crate::spool) fn is_urgent(self) -> bool {
        self.0 >= Self::FIRST
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bundle::{BundleId, DeliveryState, Entry, EntryKind, RelPath, Scope};
    use crate::peer::{Identity, PeerId, PeerName};
    use crate::spool::journal::Batch;
    use crate::spool::outbox::seal::Earlier;
    use crate::spool::{Dress, Limits, Spool, SpoolConfig};

    const ALL: [Priority; 5] = [
        Priority::Critical,
        Priority::Priority,
        Priority::Routine,
        Priority::Low,
        Priority::Bulk,
    ];

    #[test]
    fn ranks_sort_by_priority_and_then_by_age_from_where_a_reading_begins() {
        let read = |rank: Rank| (!rank.is_urgent(), rank.0);
        let mut before = None;
        for priority in ALL {
            for place in [0, 1, 1 << 40] {
                let rank = Rank::of(priority, place);
                assert_eq!(rank.place(), place);
                assert_eq!(rank.priority(), priority);
                assert!(before < Some(read(rank)), "{priority:?} {place}");
                before = Some(read(rank));
            }
        }
        assert_eq!(Rank::of(Priority::Routine, 7).0, 7);
    }

    fn sealed(spool: &Spool, priority: Priority) -> BundleId {
        let entry = Entry {
            path: RelPath::parse("d").unwrap(),
            mtime: (0, 0),
            kind: EntryKind::Directory,
        };
        let (scope, life) = (Scope::All { generation: 1 }, Duration::from_secs(60));
        let manifest =
            spool.scoped_manifest(vec![entry], Earlier::default(), priority, scope, life);
        assert_eq!(manifest.signed().priority(), priority);
        let mut batch = Batch::default();
        let members: Vec<PeerId> = spool.group.members().into_iter().map(|m| m.id).collect();
        spool
            .bundle_rows_for(&manifest, &members, members.is_empty(), &mut batch)
            .unwrap();
        spool.journal.submit(batch).unwrap();
        manifest.id()
    }

    #[test]
    fn what_is_owed_is_read_by_priority_and_no_row_stays_behind() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(SpoolConfig {
            state: dir.path().join("state"),
            lifetime: std::time::Duration::from_secs(3600),
            sealers: 1,
            limits: Limits::default(),
            dress: Dress::default(),
            identity: Identity::generate(),
        })
        .unwrap();
        let peer = Identity::generate().id();
        // Sealed while there was nobody: these rows are made when the first member comes.
        let orphan = sealed(&spool, Priority::Critical);
        let name = PeerName::parse("birch").unwrap();
        spool.member_seen(peer, &name, &[], true).unwrap();
        let bundles: Vec<(Priority, BundleId)> = (0..3)
            .flat_map(|_| ALL.map(|priority| (priority, sealed(&spool, priority))))
            .collect();
        let mut expected = vec![orphan];
        for priority in ALL {
            let same = bundles.iter().filter(|(p, _)| *p == priority);
            expected.extend(same.map(|(_, bundle)| *bundle));
        }
        for page in [1, 2, 4, 7, 100] {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let rows = spool.ledger.pending(peer, after, page).unwrap();
                assert!(rows.len() <= page);
                found.extend(rows.iter().map(|row| row.1));
                let last = rows.len() < page;
                after = rows.last().map(|row| row.0).or(after);
                if last {
                    break;
                }
            }
            assert_eq!(found, expected, "pages of {page}");
        }
        assert_eq!(spool.ledger.pending_count(peer), 16);
        for bundle in expected {
            let refused = DeliveryState::Refused("no".into());
            spool.set_delivery(bundle, peer, refused).unwrap();
        }
        assert_eq!(spool.ledger.pending(peer, None, 100).unwrap(), []);
        spool.close();
    }
}
