//! The words `fs` and the machine exchange: what happened, what is to be done, what is to be shown.

use crate::bundle::RelPath;

/// A backing inode.
pub(crate) type Ino = u64;

/// What happened to a regular file in the outbox. Events of one inode come in the order of the operations.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "some handles are for the log only")]
pub(crate) enum Event {
    /// A new file was created and opened.
    Created {
        /// The inode.
        ino: Ino,
        /// Its name.
        path: RelPath,
        /// The handle.
        fh: u64,
        /// Opened for reading too.
        rdwr: bool,
        /// With `O_EXCL`.
        excl: bool,
        /// With these permission bits.
        mode: u32,
    },
    /// A writable handle was opened. Read-only handles are never reported.
    Opened {
        /// The inode.
        ino: Ino,
        /// The name it was opened by.
        path: RelPath,
        /// All its names, if it has several.
        names: Vec<RelPath>,
        /// The handle.
        fh: u64,
    },
    /// Bytes were written.
    Wrote {
        /// The inode.
        ino: Ino,
        /// The handle.
        fh: u64,
    },
    /// The size or allocation was changed otherwise: truncate, `O_TRUNC` of a file that was not empty, fallocate.
    Truncated {
        /// The inode.
        ino: Ino,
        /// Its name.
        path: RelPath,
        /// All its names, if it has several; of one that is open they are known.
        names: Vec<RelPath>,
        /// The handle, if it was done through one.
        fh: Option<u64>,
        /// The size afterwards.
        size: u64,
    },
    /// Its mode or its time of modification was set.
    Dressed {
        /// The inode.
        ino: Ino,
        names: Vec<RelPath>,
    },
    /// A modification failed for want of space, or on the disk: the file is not what its writer meant.
    WriteFailed {
        /// The inode.
        ino: Ino,
        /// The handle, if it was tried through one.
        fh: Option<u64>,
        /// What its caller saw.
        errno: i32,
    },
    /// A descriptor was closed.
    Flushed {
        /// The inode.
        ino: Ino,
        /// The handle.
        fh: u64,
        /// A process that wrote through this handle is being killed by a signal.
        torn: bool,
    },
    /// A writable handle is gone.
    Released {
        /// The inode.
        ino: Ino,
        /// The handle.
        fh: u64,
    },
    /// The inode has one more name.
    Linked {
        /// The inode.
        ino: Ino,
        /// The new name.
        path: RelPath,
    },
    /// A name moved.
    Renamed {
        /// The inode.
        ino: Ino,
        /// The old name.
        from: RelPath,
        /// The new name.
        to: RelPath,
        /// The inode that had the new name before.
        replaced: Option<Gone>,
    },
    /// Two names were exchanged: each with what it showed before.
    Exchanged {
        /// One.
        a: (RelPath, Moved),
        /// The other.
        b: (RelPath, Moved),
    },
    /// A directory moved.
    DirRenamed {
        /// Its old name.
        from: RelPath,
        /// Its new name.
        to: RelPath,
        /// All regular files below, with their new names.
        files: Vec<(Ino, RelPath)>,
    },
    /// A directory moved from an ignored name to an ordinary one: what is in it is sent together.
    TreeRenamed {
        /// The number the spool has it under.
        tree: u64,
        /// Its old name.
        from: RelPath,
        /// Its new name.
        to: RelPath,
        /// All regular files below, with their new names.
        files: Vec<(Ino, RelPath)>,
        /// The directory itself and all directories below, with their new names.
        directories: Vec<RelPath>,
    },
    /// Recovery found a tree that was not sealed when the daemon last ended.
    TreeRecovered {
        /// The number the spool has it under.
        tree: u64,
        /// The directory.
        root: RelPath,
        /// What it had at its rename and is still below it; whether its writer had not closed it.
        files: Vec<(Ino, RelPath, bool)>,
        /// The directory itself and all directories below.
        directories: Vec<RelPath>,
    },
    /// What came of an [`Action::SealTree`]; exactly one for each.
    TreeDone {
        /// The tree of the action.
        tree: u64,
        /// What came of it.
        result: SealResult,
    },
    /// A name is gone.
    Unlinked {
        /// The inode.
        ino: Ino,
        /// The name.
        path: RelPath,
        /// How many names the user still sees.
        names_left: u64,
    },
    /// What came of an [`Action::Seal`]; exactly one for each.
    SealDone {
        /// The inode.
        ino: Ino,
        /// What came of each name of the action. Those that are not gone all have the same.
        results: Vec<(RelPath, SealResult)>,
    },
    /// Recovery found a file that was not sealed when the daemon last ended.
    Recovered {
        /// The inode.
        ino: Ino,
        /// Its name.
        path: RelPath,
        /// Its writer had not closed it, or was killed.
        incomplete: bool,
    },
    /// The user wants it sent, ignored and incomplete or not. An open writer still holds it until it closes.
    SendNow {
        /// The inode.
        ino: Ino,
        /// Its name.
        path: RelPath,
    },
}

/// What got another name by an exchange.
#[derive(Clone, Debug)]
pub(crate) enum Moved {
    /// A regular file.
    File {
        /// The inode.
        ino: Ino,
    },
    Directory {
        /// All regular files below, with their new names.
        files: Vec<(Ino, RelPath)>,
    },
    /// A directory that moved from an ignored name to an ordinary one: what is in it is sent together.
    Tree {
        /// The number the spool has it under.
        tree: u64,
        /// All regular files below, with their new names.
        files: Vec<(Ino, RelPath)>,
        /// The directory itself and all directories below, with their new names.
        directories: Vec<RelPath>,
    },
    /// What is never sent.
    Other,
}

/// An inode that lost a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    /// The inode.
    pub ino: Ino,
    /// How many names the user still sees.
    pub names_left: u64,
}

/// What came of a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SealResult {
    Sealed,
    /// A writer came in between; the next last close decides again.
    Changed,
    /// Its bytes are not what its writer meant: held back.
    Incomplete,
    /// Our disk failed; tried again later.
    Failed,
    /// The inode has no longer that name.
    Gone,
}

/// A name to be sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// The name to announce.
    pub path: RelPath,
    /// The name it was announced by before, if only the name is new. Not to be passed on if another file has that
    /// name by now. The same name: it was announced so, and only its mode or time may be new.
    pub renamed_from: Option<RelPath>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The file is ready: seal it under these names, in one decision.
    Seal {
        /// The inode.
        ino: Ino,
        /// The names, in their order.
        names: Vec<Due>,
        /// Further names follow: its mark stays.
        more: bool,
    },
    /// The tree is ready: seal all of it as one bundle.
    SealTree {
        /// The number the spool has it under.
        tree: u64,
        /// The directory.
        root: RelPath,
        files: Vec<(Ino, RelPath)>,
        /// The directory itself and the directories below it.
        directories: Vec<RelPath>,
    },
    /// The tree went back to an ignored name: nothing is to be sent of it.
    DropTree {
        /// The number the spool has it under.
        tree: u64,
    },
    /// The writers are done: from here on recovery seals it.
    MarkClosed {
        /// The inode.
        ino: Ino,
        /// Its name.
        path: RelPath,
    },
    /// Its writer was killed, or a write failed: incomplete, also after a restart.
    MarkTorn {
        /// The inode.
        ino: Ino,
        /// Its name.
        path: RelPath,
    },
    /// Nothing is to be sent of this inode.
    Unmark {
        /// The inode.
        ino: Ino,
    },
    /// A file that was to be sent was removed before.
    CountRemoved {
        /// Its last name.
        path: RelPath,
    },
    /// A file was written that is not sent because of its name.
    CountIgnored {
        /// Its name.
        path: RelPath,
    },
}

/// What is to be shown of a file that is not sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Open for writing.
    Open,
    /// Closed, waiting for the settle time.
    Settling,
    /// Being sealed.
    Sealing,
    /// Sealing failed and is tried again.
    Retrying,
    /// Its writer was killed, or a write failed.
    Incomplete,
    /// Its name matches this pattern.
    Ignored(String),
    /// It is sent with the rest of its directory, which waits for this file.
    Waiting(RelPath),
}
