//! The modification times of directories that are sent as one, from the outbox into every inbox.
//!
//! They are what the directories had when the bundle was sealed. A later change of one alone is not sent.
//!
//! # Invariants
//! 1. A time is set after the last name in the directory was given, and follows no link.
//! 2. A time that cannot be set keeps no bundle from being published.
//!
//! # Crash behaviour
//! A publish that is cut off sets them again when it is completed.

use std::collections::{BTreeMap, HashSet};

use super::Spool;
use super::beneath::Root;
use super::durable::SYNC_EACH_MAX;
use super::journal::Batch;
use crate::bundle::{
    DirectoryTime, ENTRIES_BYTES_MAX, Entry, EntryKind, Listing, MAX_ENTRIES, Manifest, Mtime,
    RelPath, VerifiedManifest, directories,
};
use crate::encoding;
use crate::spool::inbox::intake::set_mtime;

/// What one manifest is to list.
#[derive(Default)]
struct Group {
    entries: Vec<Entry>,
    directories: BTreeMap<RelPath, Mtime>,
    bytes: usize,
}

impl Group {
    /// The times of the directories above `path` that are not listed yet.
    fn implied(&self, path: &RelPath, times: &[DirectoryTime]) -> Vec<DirectoryTime> {
        std::iter::successors(path.parent(), RelPath::parent)
            .take_while(|above| !self.directories.contains_key(above))
            .filter_map(|above| Some((directories::time_of(times, &above)?, above)))
            .map(|(time, above)| (above, time))
            .collect()
    }

    /// Takes an entry with the times it implies, or gives it back if there is no room. The first one has room; its times
    /// may have none.
    fn take(&mut self, entry: Entry, times: &[DirectoryTime]) -> Option<Entry> {
        let mut implied = self.implied(&entry.path, times);
        let own = encoding::len_of(&entry);
        let mut bytes = own + implied.iter().map(encoding::len_of).sum::<usize>();
        let first = self.entries.is_empty();
        if first && bytes > ENTRIES_BYTES_MAX {
            implied.clear();
            bytes = own;
        }
        let fits = self.bytes + bytes <= ENTRIES_BYTES_MAX
            && self.entries.len() < MAX_ENTRIES
            && self.directories.len() + implied.len() <= MAX_ENTRIES;
        if !fits && !first {
            return Some(entry);
        }
        self.bytes += bytes;
        self.directories.extend(implied);
        self.entries.push(entry);
        None
    }
}

/// As few groups as fit a manifest each. `times` are those of directories that entries may imply, in order.
pub(super) fn split(entries: Vec<Entry>, times: &[DirectoryTime]) -> Vec<Listing> {
    let mut groups: Vec<Group> = Vec::new();
    for entry in entries {
        let left = match groups.last_mut() {
            Some(group) => group.take(entry, times),
            None => Some(entry),
        };
        if let Some(entry) = left {
            let mut group = Group::default();
            group.take(entry, times);
            groups.push(group);
        }
    }
    let listing = |group: Group| Listing {
        entries: group.entries,
        directories: group.directories.into_iter().collect(),
    };
    groups.into_iter().map(listing).collect()
}

/// The times that a bundle gives directories of the inbox, the deepest first. `names` are the names of its entries by
/// their numbers.
pub(super) fn times_in_inbox<'a>(
    of: &Manifest,
    names: impl Iterator<Item = (usize, &'a RelPath)>,
) -> Vec<DirectoryTime> {
    let mut times: BTreeMap<RelPath, Mtime> = BTreeMap::new();
    let mut seen: HashSet<RelPath> = HashSet::new();
    for (index, name) in names {
        let Some(entry) = of.entries.get(index) else {
            continue;
        };
        if entry.kind == EntryKind::Directory {
            times.insert(name.clone(), entry.mtime);
        }
        if of.directories.is_empty() {
            continue;
        }
        // A name in the inbox has as many components as the path it stands for.
        let mut above = (entry.path.parent(), name.parent());
        while let (Some(path), Some(name)) = above {
            above = (path.parent(), name.parent());
            if !seen.insert(name.clone()) {
                break;
            }
            if let Some(time) = directories::time_of(&of.directories, &path) {
                times.insert(name, time);
            }
        }
    }
    times.into_iter().rev().collect()
}

/// Sets times of directories below `root`.
pub(super) fn set_times<'a>(root: &Root, times: impl IntoIterator<Item = &'a DirectoryTime>) {
    for (path, time) in times {
        let open = root.open_directory(Some(path));
        if let Err(error) = open.and_then(|directory| set_mtime(&directory, *time)) {
            tracing::debug!(%path, %error, "a directory keeps the time of its arrival");
        }
    }
}

impl Spool {
    /// Gives the directories in which these names of the inbox are, by the numbers of their entries, the times that the
    /// bundle says, and makes them durable with the batch.
    pub(super) fn set_inbox_times<'a>(
        &self,
        manifest: &VerifiedManifest,
        names: impl Iterator<Item = (usize, &'a RelPath)>,
        batch: &mut Batch,
    ) {
        let times = times_in_inbox(manifest.manifest(), names);
        set_times(self.inbox(), &times);
        // More than a few are made durable with everything.
        for (path, _) in times.into_iter().take(SYNC_EACH_MAX + 1) {
            batch.sync(self.inbox().sync(Some(path)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{ChunkList, Digest};

    fn file(path: String, chunks: usize) -> Entry {
        Entry {
            path: RelPath::parse(path).unwrap(),
            mtime: (0, 0),
            kind: EntryKind::File {
                size: 1,
                executable: false,
                digest: Digest([0; 32]),
                chunks: ChunkList::of_hashes(chunks),
            },
        }
    }

    fn counts(groups: &[Listing]) -> Vec<usize> {
        groups.iter().map(|group| group.entries.len()).collect()
    }

    fn fits(group: &Listing) -> bool {
        let entries = postcard::to_stdvec(&group.entries).unwrap();
        let directories = postcard::to_stdvec(&group.directories).unwrap();
        entries.len() + directories.len() <= ENTRIES_BYTES_MAX + 16
    }

    #[test]
    fn what_does_not_fit_one_manifest_is_split_and_nothing_is_lost() {
        let small: Vec<Entry> = (0..10_000).map(|n| file(format!("d/{n}"), 0)).collect();
        assert_eq!(split(small, &[]).len(), 1);
        let many: Vec<Entry> = (0..=MAX_ENTRIES)
            .map(|n| file(format!("d/{n}"), 0))
            .collect();
        assert_eq!(counts(&split(many, &[])), [MAX_ENTRIES, 1]);
        let long: Vec<Entry> = (0..300).map(|n| file(format!("d/{n}"), 4096)).collect();
        let groups = split(long, &[]);
        assert!(groups.len() > 1 && counts(&groups).iter().sum::<usize>() == 300);
        assert!(groups.iter().all(fits));
    }

    #[test]
    fn every_manifest_of_a_split_directory_has_the_times_its_entries_imply() {
        let (mut entries, mut times) = (Vec::new(), vec![(RelPath::parse("d").unwrap(), (7, 7))]);
        for n in 0..9000 {
            let directory = format!("d/{n:04}{}/{}", "x".repeat(240), "y".repeat(240));
            entries.push(file(format!("{directory}/f"), 0));
            let directory = RelPath::parse(directory).unwrap();
            times.push((directory.parent().unwrap(), (n, 1)));
            times.push((directory, (n, 2)));
        }
        let groups = split(entries, &times);
        assert!(groups.len() > 1 && counts(&groups).iter().sum::<usize>() == 9000);
        for group in &groups {
            assert!(fits(group));
            assert_eq!(
                group.directories,
                directories::above(&times, &group.entries)
            );
            assert_eq!(group.directories.len(), 1 + 2 * group.entries.len());
        }
    }

    #[test]
    fn an_entry_that_leaves_no_room_for_times_travels_without() {
        let deep = RelPath::parse(vec!["d"; 2000].join("/")).unwrap();
        let above = std::iter::successors(deep.parent(), RelPath::parent);
        let mut times: Vec<DirectoryTime> = above.map(|path| (path, (1, 1))).collect();
        times.reverse();
        for (chunks, listed) in [(0, 1999), (200_000, 0)] {
            let entry = file(deep.to_string(), chunks);
            let groups = split(vec![entry], &times);
            assert_eq!(groups[0].directories.len(), listed, "{chunks} chunks");
            assert!(fits(&groups[0]));
        }
    }
}
