//! What is not sealed, at a glance: for status, and for whoever waits until all that was written is on its way.

use super::inode::Torn;
use super::{Inode, Ready};
use crate::bundle::RelPath;

/// What waits in the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overview {
    /// Files that are open for writing, settling or being sealed, and directories that are to be sent as one. When it is 0,
    /// every operation that has returned has had its effect: what was to be sealed is sealed.
    pub unsealed: u64,
    /// Files held back because their writer was killed, by name; sorted.
    pub incomplete: Vec<RelPath>,
}

impl Ready {
    /// What is not sealed, with at most `most` names.
    pub(crate) fn overview(&self, most: usize) -> Overview {
        let unsealed = self.inodes.values().filter(|inode| is_unsealed(inode));
        let mut incomplete: Vec<RelPath> = self
            .inodes
            .values()
            .filter(|inode| inode.torn != Torn::No && !is_unsealed(inode))
            .flat_map(|inode| inode.wanted())
            .map(|name| name.path.clone())
            .collect();
        incomplete.sort();
        incomplete.truncate(most);
        Overview {
            unsealed: (unsealed.count() + self.trees.len()) as u64,
            incomplete,
        }
    }
}

fn is_unsealed(inode: &Inode) -> bool {
    inode.writers > 0
        || inode.sealing.is_some()
        || inode.names.iter().any(|name| name.due.is_some())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ready::{Event, IgnoreList, SealResult, Settings};

    #[test]
    fn a_file_is_unsealed_from_its_creation_to_its_seal_and_a_torn_one_is_listed() {
        let mut ready = Ready::new(Settings::new(
            Duration::from_millis(5),
            IgnoreList::default(),
        ));
        let mut at = Duration::ZERO;
        let path = RelPath::parse("a/f").unwrap();
        let (ino, fh) = (1, 2);
        assert_eq!(ready.overview(9), Overview::default());
        let created = Event::Created {
            ino,
            path: path.clone(),
            fh,
            rdwr: false,
            excl: false,
            mode: 0o644,
        };
        let torn = Event::Flushed {
            ino,
            fh,
            torn: true,
        };
        for event in [created, Event::Wrote { ino, fh }, torn] {
            ready.handle(event, at);
            assert_eq!(ready.overview(9).unsealed, 1);
        }
        ready.handle(Event::Released { ino, fh }, at);
        let held = Overview {
            unsealed: 0,
            incomplete: vec![path.clone()],
        };
        assert_eq!(ready.overview(9), held);
        assert_eq!(ready.overview(0), Overview::default());

        let to = RelPath::parse("a/g").unwrap();
        let renamed = Event::Renamed {
            ino,
            from: path,
            to: to.clone(),
            replaced: None,
        };
        ready.handle(renamed, at);
        let waiting = Overview {
            unsealed: 1,
            incomplete: vec![],
        };
        assert_eq!(ready.overview(9), waiting, "settling");
        at += Duration::from_secs(5);
        ready.tick(at);
        assert_eq!(ready.overview(9), waiting, "being sealed");
        let done = Event::SealDone {
            ino,
            results: vec![(to, SealResult::Sealed)],
        };
        ready.handle(done, at);
        assert_eq!(ready.overview(9), Overview::default());
    }
}
