//! What `user.meshbox.*` says of a file: what the state machine knows of it, else what the spool does.
//!
//! An attribute belongs to the inode, whatever name it is asked for by. Where a file has several names, the answer is that of
//! the name that is least far, among those that are sent; the command line answers for the path it is given.

use super::Fs;
use super::error::FsError;
use super::generated;
use super::kind::Kind;
use super::node::{Area, NodeId};
use crate::bundle::{RelPath, Stage};
use crate::ready::Shown;
use crate::spool::{FileStage, FileState};

/// Names of one inode that are looked at.
const NAMES_MAX: usize = 256;

fn of(shown: Shown) -> FileState {
    let stage = match shown {
        Shown::Open => FileStage::At(Stage::Open),
        Shown::Settling => FileStage::At(Stage::Settling),
        Shown::Sealing => FileStage::At(Stage::Sealing),
        Shown::Retrying => FileStage::At(Stage::Retrying),
        Shown::Incomplete => FileStage::At(Stage::Incomplete),
        Shown::Ignored(pattern) => FileStage::Ignored(pattern),
        Shown::Waiting(path) => FileStage::WaitsFor(path),
    };
    FileState {
        state: Some(stage),
        ..FileState::default()
    }
}

/// How far a file is: its stage, then the share of recipients that have it. What is not on its way is as far as can be.
fn rank(state: &FileState) -> (Stage, usize) {
    match &state.state {
        Some(FileStage::At(stage)) => (*stage, 0),
        Some(FileStage::Delivered { done, all }) => {
            let share = done.saturating_mul(1 << 20).checked_div(*all);
            (Stage::Delivered, share.unwrap_or(0))
        }
        Some(FileStage::WaitsFor(_)) => (Stage::Waiting, 0),
        Some(FileStage::Ignored(_) | FileStage::Inbox(_)) | None => (Stage::Delivered, 0),
    }
}

impl Fs {
    /// Empty for what is never sent, and for everything of ours.
    pub(super) fn file_state(&self, id: NodeId) -> Result<FileState, FsError> {
        if generated::is_generated(id) {
            return Ok(FileState::default());
        }
        let (backing, place) = {
            let nodes = self.nodes.lock();
            (nodes.backing(id)?, nodes.place(id)?)
        };
        if !matches!(backing.kind, Kind::File | Kind::Directory)
            || (backing.kind == Kind::Directory
                && (place.area == Area::Inbox || place.path.is_empty()))
        {
            return Ok(FileState::default());
        }
        let path = place.rel()?;
        if backing.kind == Kind::Directory {
            // Only one that is about to be sent as one bundle has a state of its own.
            let shown = self.readiness.shown_directory(&path);
            return Ok(shown.map_or_else(FileState::default, of));
        }
        if place.area == Area::Inbox {
            return Ok(self.spool.inbox_state(&path, backing.ino));
        }
        let names = self.spool.outbox.names_of(backing.ino);
        let sent = names
            .iter()
            .take(NAMES_MAX)
            .filter(|name| self.ignore.matches(name).is_none());
        let least = sent
            .map(|name| self.outbox_file_state(name, backing.ino))
            .min_by_key(rank);
        Ok(least.unwrap_or_else(|| self.outbox_file_state(&path, backing.ino)))
    }

    fn outbox_file_state(&self, path: &RelPath, ino: u64) -> FileState {
        match self.readiness.shown(ino, path) {
            Some(Shown::Ignored(pattern)) => {
                // Sent nevertheless, if it was in a directory that was sent as one bundle.
                let sent = self.spool.outbox_state(path, ino);
                match sent.bundle {
                    Some(_) => sent,
                    None => of(Shown::Ignored(pattern)),
                }
            }
            Some(shown) => FileState {
                error: self.readiness.failure(ino),
                ..of(shown)
            },
            None => self.spool.outbox_state(path, ino),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_is_least_far_is_the_one_that_counts() {
        let least = |stages: &[FileStage]| {
            let states = stages.iter().map(|stage| FileState {
                state: Some(stage.clone()),
                ..FileState::default()
            });
            let least = states.min_by_key(rank).unwrap().state.unwrap();
            least.to_string()
        };
        let at = FileStage::At;
        let delivered = |done| FileStage::Delivered { done, all: 2 };
        let waits = FileStage::WaitsFor(RelPath::parse("d/f").unwrap());
        for (stages, want) in [
            ([delivered(2), at(Stage::Queued)], "queued"),
            ([delivered(2), delivered(1)], "delivered 1/2"),
            ([at(Stage::Sending), at(Stage::Settling)], "settling"),
            ([waits, at(Stage::Sealed)], "waiting: d/f"),
            ([at(Stage::Delivered), at(Stage::NotSent)], "not sent"),
        ] {
            assert_eq!(least(&stages), want);
        }
    }
}
