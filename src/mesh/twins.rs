//! Copies of a node's state: a restored backup, which is an older state of a node, and a clone, which is a second daemon
//! with the same identity at the same time. Both are noticed by the incarnations that say hello, and shown in status.
//!
//! # Rules
//! 1. An incarnation is one run of one daemon. One that says hello again after another one of the same id did, lives
//!    beside it: a clone. Two in a row are a restart, or a restored backup.
//! 2. Whoever sees a clone tells it, so that it is shown on both sides; what a member says of us is shown with its name.
//! 3. `peers` shows it too: with the clone at those who see it, and at the clone with whoever told.
//!
//! Nothing here is durable: what goes on is noticed again.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use crate::peer::PeerId;

/// Runs of one peer that are remembered. More starts than this between two hellos of a clone are not worth the memory.
const SEEN_MAX: usize = 16;

/// Notices shown at once.
const NOTICES_MAX: usize = 16;

/// What was noticed.
#[derive(Default)]
pub(crate) struct Twins {
    seen: Mutex<HashMap<PeerId, Runs>>,
    notices: Mutex<BTreeMap<(PeerId, &'static str), String>>,
    marks: Mutex<BTreeMap<PeerId, &'static str>>,
}

/// The runs of one peer.
#[derive(Default)]
struct Runs {
    /// The last one at the end.
    incarnations: Vec<[u8; 16]>,
    /// Two of them live.
    cloned: bool,
}

impl Twins {
    /// `peer` says hello. `true`: another run of it is alive too.
    pub(crate) fn hello(&self, peer: PeerId, incarnation: [u8; 16]) -> bool {
        let mut seen = self.seen.lock();
        let runs = seen.entry(peer).or_default();
        if runs.incarnations.last() == Some(&incarnation) {
            return runs.cloned;
        }
        let before = runs.incarnations.iter().position(|run| *run == incarnation);
        if let Some(at) = before {
            runs.cloned = true;
            runs.incarnations.remove(at);
        }
        runs.incarnations.push(incarnation);
        if runs.incarnations.len() > SEEN_MAX {
            runs.incarnations.remove(0);
        }
        runs.cloned
    }

    /// Another run of a peer that was seen to be cloned than the one that said hello last.
    pub(crate) fn other_of(&self, peer: PeerId) -> Option<[u8; 16]> {
        let seen = self.seen.lock();
        let runs = seen.get(&peer).filter(|runs| runs.cloned)?;
        runs.incarnations.iter().rev().nth(1).copied()
    }

    /// Shows `text` from now on; `about` and `what` say which earlier one it takes the place of.
    pub(crate) fn notice(&self, about: PeerId, what: &'static str, text: String) {
        let mut notices = self.notices.lock();
        let known = notices.get(&(about, what)) == Some(&text);
        if known || notices.len() >= NOTICES_MAX {
            return;
        }
        tracing::warn!("{text}");
        notices.insert((about, what), text);
    }

    /// Shows `words` beside `peer` from now on.
    pub(crate) fn mark(&self, peer: PeerId, words: &'static str) {
        let mut marks = self.marks.lock();
        if marks.len() < NOTICES_MAX || marks.contains_key(&peer) {
            marks.insert(peer, words);
        }
    }

    /// What is shown beside `peer`.
    pub(crate) fn mark_of(&self, peer: PeerId) -> Option<&'static str> {
        self.marks.lock().get(&peer).copied()
    }

    /// What is shown.
    pub(crate) fn notices(&self) -> Vec<String> {
        self.notices.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: [[u8; 16]; 3] = [[1; 16], [2; 16], [3; 16]];

    #[test]
    fn a_restart_is_no_clone_and_one_that_comes_back_is() {
        let (twins, peer) = (Twins::default(), PeerId::from_bytes([1; 32]));
        for run in [0, 0, 1, 1, 2] {
            assert!(!twins.hello(peer, RUNS[run]), "run {run}");
        }
        assert_eq!(twins.other_of(peer), None);
        assert!(twins.hello(peer, RUNS[1]));
        assert_eq!(twins.other_of(peer), Some(RUNS[2]));
        assert!(twins.hello(peer, RUNS[1]));
        let other = PeerId::from_bytes([2; 32]);
        assert!(!twins.hello(other, RUNS[0]) && !twins.hello(other, RUNS[1]));
    }

    #[test]
    fn what_is_remembered_and_shown_is_bounded() {
        let twins = Twins::default();
        let peer = PeerId::from_bytes([1; 32]);
        for n in 0..100 {
            twins.hello(peer, [n; 16]);
            twins.notice(PeerId::from_bytes([n; 32]), "twin", format!("{n}"));
            twins.notice(peer, "twin", "again".into());
            twins.mark(PeerId::from_bytes([n; 32]), "twice");
        }
        assert_eq!(twins.marks.lock().len(), NOTICES_MAX);
        assert_eq!(twins.mark_of(PeerId::from_bytes([0; 32])), Some("twice"));
        assert_eq!(twins.seen.lock()[&peer].incarnations.len(), SEEN_MAX);
        assert_eq!(twins.notices().len(), NOTICES_MAX);
    }
}
