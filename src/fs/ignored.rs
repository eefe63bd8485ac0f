//! What lies in the outbox and is not sent because of its name: for status.
//!
//! Looked up in the tree when somebody asks, so that it is what is there now and costs nothing otherwise; with a bound on
//! the names that are looked at, and not again before some time has passed.

pub(super) mod found;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::found::{Ignored, IgnoredNames};
use super::Fs;
use super::attr::Item;
use super::kind::Kind;
use super::node::{Area, Place};
use crate::bundle::RelPath;
use crate::ready::IgnoreList;

/// Names looked at: some 50 ms.
const LOOKED_MAX: usize = 50_000;

/// Names given of each pattern.
const EXAMPLES: usize = 3;

/// A look is good for this long, and for so many times what it took: those who look all the time cost a twentieth of a
/// core at most.
const GOOD_FOR: Duration = Duration::from_millis(500);
const GOOD_SHARE: u32 = 20;

/// A directory that is to be looked at, with the pattern for which nothing in it is sent.
struct Below {
    place: Place,
    pattern: Option<String>,
}

impl Fs {
    /// What is in the outbox and not sent because of its name, as of a moment ago.
    pub(crate) fn ignored_names(&self) -> Arc<IgnoredNames> {
        let mut last = self.last_look.lock();
        if let Some((at, took, names)) = &last.0
            && at.elapsed() < GOOD_FOR.max(*took * GOOD_SHARE)
        {
            return Arc::clone(names);
        }
        let begun = Instant::now();
        let names = Arc::new(self.look_for_ignored(LOOKED_MAX));
        last.0 = Some((Instant::now(), begun.elapsed(), Arc::clone(&names)));
        names
    }

    /// Breadth first, so that the examples are those that a user sees first. Takes no lock of the tree: what moves
    /// meanwhile may be missed.
    fn look_for_ignored(&self, most: usize) -> IgnoredNames {
        let mut found: BTreeMap<String, (u64, Vec<RelPath>)> = BTreeMap::new();
        let top = Below {
            place: Place {
                area: Area::Outbox,
                path: Vec::new(),
            },
            pattern: None,
        };
        let mut pending = std::collections::VecDeque::from([top]);
        let (mut looked, mut more) = (0, false);
        while let Some(below) = pending.pop_front() {
            let mut items: Vec<Item> = Vec::new();
            if looked >= most {
                more = true;
                break;
            }
            if self.read_names(&below.place, &mut items).is_err() {
                continue;
            }
            items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            for item in items {
                looked += 1;
                let Ok(place) = below.place.child(&item.name) else {
                    continue;
                };
                let Ok(path) = place.rel() else { continue };
                if item.kind == Kind::Directory {
                    if IgnoreList::is_stage(&item.name) {
                        continue;
                    }
                    let pattern = below.pattern.clone().or_else(|| {
                        let own = self.ignore.matches_directory(&path);
                        own.map(str::to_owned)
                    });
                    pending.push_back(Below { place, pattern });
                    continue;
                }
                let pattern = below.pattern.as_deref();
                let Some(pattern) = pattern.or_else(|| self.ignore.matches(&path)) else {
                    continue;
                };
                // What cannot be sent at all is not told of, nor what was sent all the same.
                let sent = || {
                    self.spool
                        .outbox_state(&path, item.backing)
                        .bundle
                        .is_some()
                };
                if item.kind != Kind::File || sent() {
                    continue;
                }
                let (count, examples) = found.entry(pattern.to_owned()).or_default();
                *count += 1;
                if examples.len() < EXAMPLES {
                    examples.push(path);
                }
            }
        }
        let of = |(pattern, (count, examples)): (String, (u64, Vec<RelPath>))| Ignored {
            what: self.ignore.what(&pattern),
            pattern,
            count,
            examples,
        };
        let mut by_pattern: Vec<Ignored> = found.into_iter().map(of).collect();
        by_pattern.sort_by_key(|ignored| std::cmp::Reverse(ignored.count));
        IgnoredNames { by_pattern, more }
    }
}
