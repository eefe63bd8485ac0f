//! The modification times of the directories of a bundle.
//!
//! A directory with nothing in it is an entry, which has its time. One that a path of an entry implies is none, so that it
//! counts to no limit and to no progress; if it was sent with all that is in it, its time is listed here.
//!
//! # Invariants
//! The list is in the order of the paths, each once. Each is above an entry and none itself: a time is said in one place.

use std::collections::BTreeMap;

use super::entry::{Entry, Mtime};
use super::path::RelPath;

/// A directory and its modification time.
pub(crate) type DirectoryTime = (RelPath, Mtime);

/// What a manifest is to list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Listing {
    /// The files and directories.
    pub entries: Vec<Entry>,
    /// The times of directories that they imply.
    pub directories: Vec<DirectoryTime>,
}

impl From<Vec<Entry>> for Listing {
    fn from(entries: Vec<Entry>) -> Self {
        Self {
            entries,
            directories: Vec::new(),
        }
    }
}

/// The time that a sorted list gives a directory.
pub(crate) fn time_of(directories: &[DirectoryTime], path: &RelPath) -> Option<Mtime> {
    let at = directories.binary_search_by(|(listed, _)| listed.cmp(path));
    at.ok().map(|at| directories[at].1)
}

/// Those of a sorted list that are above one of the entries.
pub(crate) fn above(directories: &[DirectoryTime], entries: &[Entry]) -> Vec<DirectoryTime> {
    let paths = entries.iter().map(|entry| (entry.path.as_bytes(), ()));
    let paths: BTreeMap<&[u8], ()> = paths.collect();
    let directories = directories.iter();
    let kept = directories.filter(|(path, _)| is_above(path, &paths));
    kept.cloned().collect()
}

/// Whether something lies below the directory.
fn is_above<T>(directory: &RelPath, paths: &BTreeMap<&[u8], T>) -> bool {
    let below = [directory.as_bytes(), b"/"].concat();
    let mut after = paths.range::<&[u8], _>(below.as_slice()..);
    after
        .next()
        .is_some_and(|(path, _)| path.starts_with(&below))
}

/// Refuses a list that breaks the invariants, and says where; `entries` are the paths of the entries.
pub(super) fn check<T>(
    directories: &[DirectoryTime],
    entries: &BTreeMap<&[u8], T>,
) -> Result<(), RelPath> {
    let mut before: Option<&RelPath> = None;
    for (path, _) in directories {
        let follows = before.is_none_or(|before| before < path);
        if !follows || entries.contains_key(path.as_bytes()) || !is_above(path, entries) {
            return Err(path.clone());
        }
        before = Some(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, manifest, path};
    use super::*;
    use crate::bundle::{EntryKind, MAX_ENTRIES, Manifest, ManifestError, VerifiedManifest};
    use crate::peer::Identity;

    fn with(directories: &[(&str, Mtime)]) -> (Manifest, Identity) {
        let identity = Identity::generate();
        let empty = Entry {
            path: path("d/empty"),
            mtime: (5, 5),
            kind: EntryKind::Directory,
        };
        let entries = vec![file("d/a", 1), empty, file("d/sub/b", 1)];
        let mut says = manifest(identity.id(), entries);
        let directories = directories.iter();
        says.directories = directories.map(|(at, time)| (path(at), *time)).collect();
        (says, identity)
    }

    fn check(directories: &[(&str, Mtime)]) -> Result<VerifiedManifest, ManifestError> {
        let (says, identity) = with(directories);
        says.sign(&identity).signed().clone().verify()
    }

    #[test]
    fn times_of_directories_read_back_also_before_1970() {
        let listed = [("d", (-1, 999_999_999)), ("d/sub", (1 << 40, 1))];
        let read = check(&listed).unwrap();
        let said = &read.manifest().directories;
        assert_eq!(time_of(said, &path("d")), Some((-1, 999_999_999)));
        assert_eq!(time_of(said, &path("d/sub")), Some((1 << 40, 1)));
        assert_eq!(time_of(said, &path("d/a")), None);
        // All, some or none of them.
        assert!(check(&listed[1..]).is_ok() && check(&[]).is_ok());
        assert!(read.memory() > check(&[]).unwrap().memory());
        let below_a = above(said, &[file("d/a", 1)]);
        assert_eq!(below_a, [(path("d"), (-1, 999_999_999))]);
    }

    #[test]
    fn a_list_that_is_unsorted_or_says_a_thing_twice_or_of_others_is_refused() {
        for (listed, wrong) in [
            (vec!["d/sub", "d"], "d"),
            (vec!["d", "d"], "d"),
            (vec!["d", "e"], "e"),
            (vec!["d/s"], "d/s"),
            // A file, an entry that has its time, and one in which nothing is.
            (vec!["d/a"], "d/a"),
            (vec!["d/empty"], "d/empty"),
            (vec!["d/empty/x"], "d/empty/x"),
        ] {
            let times: Vec<(&str, Mtime)> = listed.iter().map(|at| (*at, (1, 1))).collect();
            let refused = ManifestError::Directory(path(wrong));
            assert_eq!(check(&times), Err(refused), "{listed:?}");
        }
    }

    #[test]
    fn the_list_is_counted_while_it_is_read() {
        let (mut says, identity) = with(&[]);
        says.directories = vec![(path("d"), (0, 0)); MAX_ENTRIES + 1];
        let refused = says.sign(&identity).signed().clone().verify();
        assert!(
            matches!(refused, Err(ManifestError::Malformed(_))),
            "{refused:?}"
        );
    }
}
