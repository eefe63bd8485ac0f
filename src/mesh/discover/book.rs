//! Which announcements are heard at present, and what they mean for each member.
//!
//! Of a member's announcements the one of the highest rank counts: it moved, or its network changed. The others are
//! kept in case that one goes. One that was withdrawn or not renewed counts, when there is none else, for [`GRACE`]
//! more: multicast is lost on radio, and anybody can send a withdrawal.
//!
//! # Invariants
//! 1. At most [`HELD_MAX`] announcements per member, each with at most [`ADDRS_MAX`] addresses.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::mesh::discover::seal::{Label, Rank};
use crate::mesh::wire::ADDRS_MAX;
use crate::peer::PeerId;

/// Announcements of one member kept at once: its newest and a few that it has just replaced.
const HELD_MAX: usize = 4;

/// How long an announcement counts after it was withdrawn.
pub(super) const GRACE: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Held {
    label: Label,
    rank: Rank,
    addrs: Vec<SocketAddr>,
    gone: Option<Instant>,
}

impl Held {
    /// What counts more is more.
    fn weight(&self) -> (bool, Rank) {
        (self.gone.is_none(), self.rank)
    }
}

/// All announcements heard.
#[derive(Debug, Default)]
pub(super) struct Book(HashMap<PeerId, Vec<Held>>);

impl Book {
    /// Notes an announcement of `id`.
    pub(super) fn heard(&mut self, id: PeerId, label: Label, rank: Rank, addrs: Vec<SocketAddr>) {
        let held = self.0.entry(id).or_default();
        held.retain(|h| h.label != label);
        let mut addrs = addrs;
        addrs.truncate(ADDRS_MAX);
        held.push(Held {
            label,
            rank,
            addrs,
            gone: None,
        });
        held.sort_by_key(|h| std::cmp::Reverse(h.weight()));
        held.truncate(HELD_MAX);
    }

    /// The announcement of that label was withdrawn or not renewed; gives the member whose it was.
    pub(super) fn gone(&mut self, label: &Label, now: Instant) -> Option<PeerId> {
        self.0.iter_mut().find_map(|(id, held)| {
            let held = held.iter_mut().find(|held| held.label == *label)?;
            held.gone.get_or_insert(now);
            Some(*id)
        })
    }

    /// Drops what has been gone for long; gives the members for whom another announcement, or none, counts now.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<PeerId> {
        let over = |held: &Held| held.gone.is_some_and(|gone| now >= gone + GRACE);
        let mut changed = Vec::new();
        for (id, held) in &mut self.0 {
            if held.iter().any(over) {
                held.retain(|h| !over(h));
                changed.push(*id);
            }
        }
        self.0.retain(|_, held| !held.is_empty());
        changed
    }

    /// Where the announcement of `id` that counts says that it listens.
    pub(super) fn addrs(&self, id: PeerId) -> &[SocketAddr] {
        self.0
            .get(&id)
            .and_then(|held| held.iter().max_by_key(|held| held.weight()))
            .map_or(&[], |held| &held.addrs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, 1], port))]
    }

    fn alder() -> PeerId {
        PeerId::from_bytes([1; 32])
    }

    #[test]
    fn the_newest_announcement_counts_whatever_is_heard_last() {
        let mut book = Book::default();
        assert!(book.addrs(alder()).is_empty());
        book.heard(alder(), [1; 16], (1, 0), at(1));
        book.heard(alder(), [2; 16], (2, 0), at(2));
        book.heard(alder(), [1; 16], (1, 0), at(1));
        assert_eq!(book.addrs(alder()), at(2), "an old one said again");
        book.heard(alder(), [3; 16], (2, 1), at(3));
        assert_eq!(book.addrs(alder()), at(3));
    }

    #[test]
    fn what_is_gone_counts_for_a_while_unless_there_is_another() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.heard(alder(), [2; 16], (2, 0), at(2));
        assert_eq!(book.gone(&[9; 16], now), None);
        assert_eq!(book.gone(&[2; 16], now), Some(alder()));
        assert_eq!(book.gone(&[2; 16], now + GRACE / 2), Some(alder()));
        assert_eq!(book.expire(now + GRACE / 2), []);
        assert_eq!(book.addrs(alder()), at(2));
        // Restored from a backup it counts its starts from an earlier one on.
        book.heard(alder(), [1; 16], (1, 0), at(1));
        assert_eq!(book.addrs(alder()), at(1));
        assert_eq!(book.expire(now + GRACE), [alder()]);
        assert_eq!(book.addrs(alder()), at(1));
        book.gone(&[1; 16], now);
        book.heard(alder(), [1; 16], (1, 0), at(1));
        assert_eq!(book.expire(now + GRACE), [], "it was heard again");
        book.gone(&[1; 16], now);
        assert_eq!(book.expire(now + GRACE), [alder()]);
        assert!(book.addrs(alder()).is_empty() && book.0.is_empty());
    }

    #[test]
    fn a_flood_of_announcements_is_bounded_and_keeps_the_newest() {
        let mut book = Book::default();
        for n in 0..200u8 {
            book.heard(alder(), [n; 16], (u64::from(n), 0), at(7).repeat(99));
        }
        let held = &book.0[&alder()];
        assert_eq!((held.len(), held[0].rank), (HELD_MAX, (199, 0)));
        assert_eq!(book.addrs(alder()).len(), ADDRS_MAX);
    }
}
