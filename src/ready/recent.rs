//! Names announced a moment ago: an append loop or autosave must not become a bundle per save.
//!
//! Time-bounded: a name is forgotten [`WINDOW`] after its announcement, or [`LONGEST_HOLD`] after its next version began
//! to wait. Names are kept as hashes; two that collide cost one of them a second of waiting.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::bundle::RelPath;

/// Directories announced as one that are remembered; their number within [`WINDOW`] is small.
const ROOTS_MAX: usize = 64;

/// A name announced less than this ago waits for quiet.
const WINDOW: Duration = Duration::from_secs(10);
/// How long such a name must be left alone.
const QUIET: Duration = Duration::from_secs(1);
/// A name never left alone is sent after this nevertheless.
const LONGEST_HOLD: Duration = Duration::from_secs(30);
/// Forgetting may be late by this, so that many names are forgotten in one wake-up.
const SWEEP_SLACK: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Recent {
    announced: Duration,
    /// Since when its next version waits.
    held_since: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct RecentNames {
    hasher: RandomState,
    names: HashMap<u64, Recent>,
    expiry: BTreeSet<(Duration, u64)>,
    /// Directories announced as one, the oldest first.
    roots: VecDeque<(Duration, RelPath)>,
}

impl RecentNames {
    /// `path` is announced at `now`.
    pub(super) fn note(&mut self, path: &RelPath, now: Duration) {
        let key = self.key(path);
        self.names.insert(
            key,
            Recent {
                announced: now,
                held_since: None,
            },
        );
        self.expiry.insert((now + WINDOW, key));
    }

    /// The seal that was begun is done.
    pub(super) fn sealed(&mut self, path: &RelPath, now: Duration) {
        let key = self.key(path);
        let recent = self.names.entry(key).or_insert(Recent {
            announced: now,
            held_since: None,
        });
        recent.announced = now;
        self.expiry.insert((now + WINDOW, key));
    }

    /// Everything below `root` was announced at `now`.
    pub(super) fn note_tree(&mut self, root: RelPath, now: Duration) {
        if self.roots.len() == ROOTS_MAX {
            self.roots.pop_front();
        }
        self.roots.push_back((now, root));
    }

    /// Whether `path` was announced a moment ago.
    pub(super) fn is_recent(&self, path: &RelPath, now: Duration) -> bool {
        let recent = |at: Duration| at + WINDOW > now;
        let name = self.names.get(&self.key(path));
        name.is_some_and(|name| recent(name.announced))
            || self
                .roots
                .iter()
                .any(|(at, root)| recent(*at) && path.starts_with(root))
    }

    /// The announcement came to nothing.
    pub(super) fn forget(&mut self, path: &RelPath) {
        let key = self.key(path);
        self.names.remove(&key);
    }

    /// When a version of `path` that would be due at `due` may go.
    pub(super) fn hold(&mut self, path: &RelPath, now: Duration, due: Duration) -> Duration {
        let key = self.key(path);
        match self.names.get_mut(&key) {
            Some(recent) if recent.expires() > now => {
                let since = *recent.held_since.get_or_insert(now);
                due.max((now + QUIET).min(since + LONGEST_HOLD))
            }
            Some(_) | None => due,
        }
    }

    /// When [`Self::sweep`] is worth calling.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let name = self.expiry.first().map(|(at, _)| *at + SWEEP_SLACK);
        let root = self.roots.front().map(|(at, _)| *at + WINDOW + SWEEP_SLACK);
        name.into_iter().chain(root).min()
    }

    /// Forgets what is old.
    pub(super) fn sweep(&mut self, now: Duration) {
        while let Some((at, key)) = self.expiry.first().copied().filter(|(at, _)| *at <= now) {
            self.expiry.remove(&(at, key));
            match self.names.get(&key).map(Recent::expires) {
                Some(later) if later > now => {
                    self.expiry.insert((later, key));
                }
                Some(_) => {
                    self.names.remove(&key);
                }
                None => {}
            }
        }
        self.roots.retain(|(at, _)| *at + WINDOW > now);
        if self.names.is_empty() {
            self.names.shrink_to_fit();
        }
    }

    fn key(&self, path: &RelPath) -> u64 {
        self.hasher.hash_one(path.as_bytes())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.expiry.is_empty() && self.roots.is_empty()
    }
}

impl Recent {
    fn expires(&self) -> Duration {
        let window = self.announced + WINDOW;
        self.held_since
            .map_or(window, |since| window.max(since + LONGEST_HOLD))
    }
}
