//! Publishing: all names of a bundle at one instant.
//!
//! What a bundle of many adds to the inbox is moved there by few renames or many: each topmost directory that is missing is
//! built in `partial/` and moved with all that is in it, every other file is moved by itself ([`staged`]).
//!
//! | step | decision lock | an error, or a kill, leaves |
//! |---|---|---|
//! | 1. names are chosen | for each slice | chosen names, as for any bundle that comes later |
//! | 2. rows of the intent say which file gets which name | no | those rows: the next start removes them |
//! | 3. the missing directories are built, and the kernel forgets the names that will show something else | no | the same, and files that go back to where they arrived |
//! | 4. the switch: the row that says so, and the renames if they are few, else a layer over the inbox that stands for them | once | after the row there is only forward |
//! | 5. the renames, what gave way, the rows of the names and the links to their content | for each slice of the rows | the bundle half recorded: the next offer, or start, goes on |
//! | 6. the row that settles it | once | a settled bundle |
//!
//! A bundle of one goes the same way under one hold of the lock ([`crate::spool::inbox`]).
//!
//! # What comes in between
//! - Something newer for one of the paths, before 4: noted ([`under_way`](crate::spool::inbox::under_way)), and left out.
//! - Anything else that changes a name or directory which the bundle needs, before 4: noted too, and the names are chosen
//!   anew. What has no bearing on them does not hold it up.
//! - Whoever looks at a name after 4, through the mount or in the spool, does its rename first
//!   ([`overlay`](crate::disk::overlay)). A directory in which a name is still to come cannot be removed.
//! - The user, its origin or another bundle does something with a name between 4 and 6: its rows are written first.
//! - A cancel, or the end of its lifetime, before 4: nothing is shown. After it: too late.
//! - An older file of the origin, or an empty directory, in the way of another kind: it gives way at 4, not before.
//!
//! # Crash behaviour
//! The rows of the intent lead every file to its name ([`forward`](crate::spool::inbox::forward)): after a kill past 4
//! recovery gives all names before anything is mounted, but for those that the user has taken away since.
//!
//! # Threads
//! Called by whoever finished the bundle. The decision lock is not held while the kernel is asked to forget names: it may
//! be waiting for a file operation that waits for the lock.

mod staged;

use std::path::PathBuf;

use crate::bundle::{BundleId, RelPath, VerifiedManifest};
use crate::journal::{Batch, Table};
use crate::spool::durable::SYNC_EACH_MAX;
use crate::spool::inbox::intake::Verified;
use crate::spool::inbox::naming::Naming;
use crate::spool::inbox::tables::{INTENTS, Intent};
use crate::spool::{Published, Spool, SpoolError};

/// A name that a publish gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewName {
    /// Path below `inbox/`.
    pub path: RelPath,
    /// A directory that was not there before; else a file.
    pub directory: bool,
    /// The inode the name showed before.
    pub replaced: Option<u64>,
}

/// Told by the spool when names in `inbox/` change other than through the mount. Implemented by `fs`; must not call back
/// into the spool.
pub(crate) trait InboxObserver: Send + std::marker::Sync {
    /// The names of `replaced` will soon show something else, together with other names: from here to
    /// [`Self::unprepare`] the kernel must not remember any name of the inbox, and it must have forgotten these when
    /// this returns. Called with no lock held; waits for the kernel.
    fn prepare(&self, replaced: &[RelPath]);
    /// Ends what [`Self::prepare`] began; called once for each.
    fn unprepare(&self);
    /// Runs `give`, which gives names by renames on the local disk: nobody who looks at the inbox through the mount sees
    /// a part of what it does.
    fn switch(&self, give: &mut dyn FnMut());
    /// These names were given; directories before what is in them. Must not block.
    fn published(&self, names: &[NewName]);
    /// The file at `from` is now at `to`, where the inode `replaced` was before, if one was. The same name: the file has
    /// another mode or time; called within [`Self::switch`]. Called with the decision lock held, so that two renames of
    /// one file are told in their order. Must not block.
    fn renamed(&self, from: &RelPath, to: &RelPath, replaced: Option<u64>);
    /// `path`, a file or a directory, is gone. Called with the decision lock held. Must not block.
    fn removed(&self, path: &RelPath);
}

/// A name that an entry gets: the number of the entry, the name, and the inode (0 for a directory).
pub(in crate::spool) type Given = (u32, RelPath, u64);

/// Bundle, number of a slice → the names of a publish that has begun, where there are many. They count if the bundle has a
/// row in [`INTENTS`], and as many as that says.
pub(in crate::spool) const INTENT_NAMES: Table<(BundleId, u64), Vec<Given>> = Table::new(93);

/// How often names are chosen anew because of what came in between. Then the bundle waits for its next offer.
const ATTEMPTS: usize = 8;

impl Spool {
    /// Where the bytes of one entry of a bundle arrive.
    pub(in crate::spool) fn staged_alone(&self, bundle: BundleId, index: u32) -> PathBuf {
        self.layout.partial().join(format!("{bundle}.{index}"))
    }

    /// Where the missing directories of a bundle are built. Each file in them has its chosen name below.
    pub(in crate::spool) fn staging_tree(&self, bundle: BundleId) -> PathBuf {
        self.layout.partial().join(format!("{bundle}.tree"))
    }

    pub(in crate::spool) fn publish_many(
        &self,
        verified: &Verified,
    ) -> Result<Published, SpoolError> {
        let mut begun = self.inbox.publishing.begin(&verified.manifest);
        for _ in 0..ATTEMPTS {
            begun.way.begin_anew();
            if self.show(verified, &begun.way)? {
                return self.finish(&mut begun);
            }
        }
        Err(SpoolError::Io {
            action: "find names that stay free for",
            path: verified.manifest.manifest().entries[0]
                .path
                .as_path()
                .to_path_buf(),
            source: std::io::Error::from_raw_os_error(libc::EBUSY),
        })
    }

    /// Goes on with a bundle that is shown and not settled, because our disk failed then; `false`: it is none.
    pub(in crate::spool) fn resume(&self, bundle: BundleId) -> Result<bool, SpoolError> {
        let Some(mut begun) = self.inbox.publishing.resume(bundle) else {
            return Ok(false);
        };
        self.finish(&mut begun).map(|_published| true)
    }

    /// Makes a directory of the inbox and those above it; notes those that were not there.
    pub(in crate::spool) fn make_directories(
        &self,
        path: &RelPath,
        made: &mut Vec<NewName>,
    ) -> Result<(), SpoolError> {
        let mut missing = Vec::new();
        for path in std::iter::successors(Some(path.clone()), RelPath::parent) {
            if self.inbox().look(&path)?.is_some_and(|meta| meta.is_dir()) {
                break;
            }
            missing.push(path);
        }
        while let Some(directory) = missing.pop() {
            self.make_inbox_directory(&directory)?;
            made.push(directory_made(&directory));
        }
        Ok(())
    }

    /// From this row on a publish goes forward, whatever happens. `slices`: so many rows have its names, if `names` do not.
    pub(super) fn intend(
        manifest: &VerifiedManifest,
        names: Vec<Given>,
        slices: u64,
        batch: &mut Batch,
    ) {
        let intent = Intent {
            signed: manifest.signed(),
            names,
            slices,
        };
        batch.insert(INTENTS, &manifest.id(), &intent);
    }

    /// What status calls a published bundle of many: the directory its title became.
    pub(in crate::spool) fn shown_root(
        &self,
        manifest: &VerifiedManifest,
        names: &[(u32, RelPath, u64)],
    ) -> Option<RelPath> {
        let title = manifest.manifest().title()?;
        let (index, name, _) = names.first()?;
        let said = &manifest.manifest().entries.get(*index as usize)?.path;
        let deeper =
            said.components().count() - title.components().count().min(said.components().count());
        std::iter::successors(Some(name.clone()), RelPath::parent).nth(deeper)
    }
}

/// Whether the files of these entries are synced one by one: they are few, and all of them are open. None is in a bundle
/// of many entries, however few of these get a name.
fn are_synced_singly(
    verified: &Verified,
    mut entries: impl ExactSizeIterator<Item = usize>,
) -> bool {
    let of = verified.manifest.manifest();
    entries.len() <= SYNC_EACH_MAX
        && entries.all(|entry| {
            let file = verified.files[entry].as_ref();
            of.entries[entry].digest().is_none() || file.is_none_or(|file| file.kept.is_some())
        })
}

pub(in crate::spool::inbox) fn given(verified: &Verified, naming: &Naming) -> Given {
    let file = verified.files[naming.entry].as_ref();
    let ino = file.map_or(0, |file| file.ino);
    (naming.entry as u32, naming.name.clone(), ino)
}

fn directory_made(path: &RelPath) -> NewName {
    NewName {
        path: path.clone(),
        directory: true,
        replaced: None,
    }
}
