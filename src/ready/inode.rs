//! What is remembered of one inode while something is to be done about it.

use std::time::Duration;

use super::event::{Due, Ino};
use crate::bundle::RelPath;

/// Whether a writer was killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Torn {
    #[default]
    No,
    /// Through this handle, which is still open: a shell that had opened it for the killed program closes it cleanly
    /// later, and that makes nothing whole.
    Held(u64),
    /// Through a handle that is closed.
    Past,
}

/// A seal that is under way, with its names in their order.
#[derive(Debug)]
pub(super) struct Sealing(pub(super) Vec<Due>);

impl Sealing {
    pub(super) fn name(&self, path: &RelPath) -> Option<&Due> {
        let at = self.0.binary_search_by(|due| due.path.cmp(path)).ok()?;
        self.0.get(at)
    }
}

#[derive(Debug)]
pub(super) struct Name {
    pub(super) path: RelPath,
    pub(super) ignored: bool,
    /// Created under this name in the way of temporary files.
    pub(super) temporary: bool,
    /// The user asked for it, whatever the rules say.
    pub(super) forced: bool,
    /// To be announced, not before then.
    pub(super) due: Option<Duration>,
    /// Where it was announced before, if only the name is new; the same name, if only mode or time may be.
    pub(super) renamed_from: Option<RelPath>,
    /// The tree that sends it, until that is sealed.
    pub(super) tree: Option<u64>,
    /// Changed while its tree was being sealed: sent once more afterwards.
    pub(super) late: bool,
}

/// A name that is being moved, between its old place and its new one.
#[derive(Debug)]
pub(super) struct Lifted {
    pub(super) ino: Ino,
    /// What was remembered of it.
    pub(super) name: Option<Name>,
    /// The tree that it was a member of under the old name.
    pub(super) tree: Option<u64>,
    /// The old name is ignored.
    pub(super) from_ignored: bool,
}

impl Name {
    /// Announced as it is, but for its mode or time.
    pub(super) fn is_dressed(&self) -> bool {
        self.renamed_from.as_ref() == Some(&self.path)
    }

    pub(super) fn is_ignored(&self) -> bool {
        self.ignored && !self.forced && self.tree.is_none()
    }
}

#[derive(Debug)]
pub(super) struct Inode {
    /// Open writable handles.
    pub(super) writers: u32,
    /// Modified since a last close decided.
    pub(super) dirty: bool,
    /// Not an empty file that nobody wrote.
    pub(super) written: bool,
    pub(super) torn: Torn,
    /// The error of the write that failed, if that is what made it torn.
    pub(super) failed: Option<i32>,
    /// All names of one that may be modified, else those that something is to be done about; nearly always one.
    pub(super) names: Vec<Name>,
    pub(super) sealing: Option<Sealing>,
    /// Seals that failed in a row.
    pub(super) failures: u32,
    /// Its last name was removed while it was being sealed.
    pub(super) removed: bool,
    /// A mark on disk says that something is to be sent.
    pub(super) marked: bool,
    pub(super) timer: Option<Duration>,
}

impl Default for Inode {
    fn default() -> Self {
        Self {
            writers: 0,
            dirty: false,
            // Of an inode met for the first time nothing is known; only its creation makes it an empty one.
            written: true,
            torn: Torn::No,
            failed: None,
            names: Vec::new(),
            sealing: None,
            failures: 0,
            removed: false,
            marked: false,
            timer: None,
        }
    }
}

impl Inode {
    /// Its content changed, through `fh` if that is known.
    pub(super) fn modified(&mut self, fh: Option<u64>) {
        self.dirty = true;
        self.marked = true;
        let same_handle = self.torn != Torn::No && fh.map(Torn::Held) == Some(self.torn);
        // Somebody beside the one whose write failed makes nothing whole; somebody after it may.
        let beside = self.failed.is_some() && matches!(self.torn, Torn::Held(_)) && fh.is_some();
        if !same_handle && !beside {
            self.mend();
        }
    }

    /// Nothing says any more that it is not what its writer meant.
    pub(super) fn mend(&mut self) {
        self.torn = Torn::No;
        self.failed = None;
    }

    pub(super) fn name_mut(&mut self, path: &RelPath) -> Option<&mut Name> {
        self.names.iter_mut().find(|name| name.path == *path)
    }

    pub(super) fn take_name(&mut self, path: &RelPath) -> Option<Name> {
        let at = self.names.iter().position(|name| name.path == *path)?;
        Some(self.names.remove(at))
    }

    /// When something is to be sealed: what the user asked for at once, the others together when the slowest of them has
    /// settled.
    pub(super) fn due(&self) -> Option<Duration> {
        let forced = self.names.iter().filter(|name| name.forced);
        let forced = forced.filter_map(|name| name.due).min();
        forced.or_else(|| self.names.iter().filter_map(|name| name.due).max())
    }

    /// Whether it has content that nobody was told of yet, and would be sent.
    pub(super) fn is_unsent(&self) -> bool {
        let sealing = self.sealing.as_ref();
        let of_new = |name: &Name| name.renamed_from.is_none();
        let due = self.wanted().any(|name| name.due.is_some() && of_new(name));
        let sealed = sealing
            .is_some_and(|Sealing(names)| names.iter().any(|due| due.renamed_from.is_none()));
        let open = self.dirty && self.wanted().next().is_some();
        self.written && self.torn == Torn::No && (due || sealed || open)
    }

    /// Names that are to be sent when the content is.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &Name> {
        self.names.iter().filter(|name| !name.is_ignored())
    }
}

/// Whether a file created like this is about to be renamed: `mkstemp` asks for 0600, `patch` does it by hand.
pub(super) fn is_temporary(path: &RelPath, rdwr: bool, excl: bool, mode: u32) -> bool {
    if !excl {
        return false;
    }
    if rdwr {
        return mode & 0o777 == 0o600;
    }
    let name = path.file_name();
    let Some((_, end)) = name.split_last_chunk::<8>() else {
        return false;
    };
    end.starts_with(b".o") && end[2..].iter().all(u8::is_ascii_alphanumeric)
}
