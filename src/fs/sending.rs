//! Carries out what the state machine decided, through the spool.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Fs;
use super::attr::kind_of;
use super::beneath::beneath;
use super::error::FsError;
use super::kind::Kind;
use super::node::{Area, Place};
use crate::bundle::{Priority, RelPath};
use crate::ready::{Action, Due, Event, SealResult, Shown};
use crate::spool::{SealName, SealOutcome, SealRequest, TreeRequest};

impl Fs {
    /// `meshbox send`: sends a path below `outbox/` now, whatever `ready` says (incomplete, ignored).
    pub(crate) fn send_now(&self, path: &RelPath) -> Result<(), String> {
        let _tree = self.tree.read();
        let place = Place {
            area: Area::Outbox,
            path: path.as_bytes().to_vec(),
        };
        // The path is the user's own: a link on the way must not lead out of the outbox.
        let stat = beneath(&self.outbox, &place, OFlags::PATH)
            .and_then(|fd| Ok(rustix::fs::fstat(&fd)?))
            .map_err(|error| format!("outbox/{path}: {error}"))?;
        match kind_of(&stat) {
            Some(Kind::File) => {}
            Some(Kind::Directory) => {
                return Err(format!(
                    "outbox/{path}: is a directory; name the files in it"
                ));
            }
            Some(
                Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice,
            )
            | None => return Err(format!("outbox/{path}: is not a file; it cannot be sent")),
        }
        self.readiness.feed(Event::SendNow {
            ino: stat.st_ino,
            path: path.clone(),
        });
        Ok(())
    }

    /// The pattern for which a file of the outbox is not sent; `None` if it is, or was asked for with `meshbox send`.
    pub(crate) fn ignored_by(&self, path: &RelPath, ino: u64) -> Option<String> {
        match self.readiness.shown(ino, path) {
            Some(Shown::Ignored(pattern)) => Some(pattern),
            Some(
                Shown::Open
                | Shown::Settling
                | Shown::Sealing
                | Shown::Waiting(_)
                | Shown::Retrying
                | Shown::Incomplete,
            )
            | None => None,
        }
    }

    pub(crate) fn carry_out(self: &Arc<Self>, action: Action) {
        match action {
            Action::Seal { ino, names, more } => self.seal(ino, names, more),
            Action::SealTree {
                tree,
                root,
                files,
                directories,
            } => self.seal_tree(tree, root, files, directories),
            Action::DropTree { tree } => self.spool.outbox.tree_dropped(tree),
            // Made by whoever fed the machine.
            Action::MarkClosed { .. } | Action::MarkTorn { .. } | Action::Unmark { .. } => {}
            Action::CountRemoved { path } => {
                tracing::info!(%path, "removed before it was sent");
                self.spool.count_removed();
            }
            Action::CountIgnored { path } => {
                tracing::debug!(%path, "not sent: the name is on the ignore list");
                self.spool.count_ignored();
            }
        }
    }

    fn seal(self: &Arc<Self>, ino: u64, names: Vec<Due>, more: bool) {
        let names: Vec<SealName> = names
            .into_iter()
            .map(|Due { path, renamed_from }| {
                let renamed_from =
                    renamed_from.filter(|from| *from == path || !self.is_there(from));
                SealName { path, renamed_from }
            })
            .collect();
        let paths: Vec<RelPath> = names.iter().map(|name| name.path.clone()).collect();
        let readiness = self.readiness.clone();
        let done = Box::new(move |outcomes: Vec<SealOutcome>| {
            let results = paths.into_iter().zip(outcomes.iter().map(result_of));
            readiness.feed(Event::SealDone {
                ino,
                results: results.collect(),
            });
        });
        let gate = self.spool.outbox.gate(ino);
        self.spool.outbox.seal(SealRequest {
            gate,
            names,
            more,
            priority: Priority::Routine,
            done,
        });
    }

    /// Whether a name of the outbox shows anything.
    fn is_there(&self, path: &RelPath) -> bool {
        let _tree = self.tree.read();
        let place = Place {
            area: Area::Outbox,
            path: path.as_bytes().to_vec(),
        };
        !matches!(
            self.stat_at(&place),
            Err(FsError::NotFound | FsError::Os(Errno::NOENT | Errno::NOTDIR))
        )
    }

    fn seal_tree(
        self: &Arc<Self>,
        tree: u64,
        root: RelPath,
        files: Vec<(u64, RelPath)>,
        directories: Vec<RelPath>,
    ) {
        let readiness = self.readiness.clone();
        let done = Box::new(move |outcome| {
            let result = result_of(&outcome);
            readiness.feed(Event::TreeDone { tree, result });
        });
        self.spool.outbox.seal_tree(TreeRequest {
            tree,
            root,
            files,
            directories,
            priority: Priority::Routine,
            done,
        });
    }
}

fn result_of(outcome: &SealOutcome) -> SealResult {
    match outcome {
        SealOutcome::Sealed(_) => SealResult::Sealed,
        SealOutcome::Changed => SealResult::Changed,
        SealOutcome::Incomplete => SealResult::Incomplete,
        SealOutcome::Gone => SealResult::Gone,
        SealOutcome::Failed(_) => SealResult::Failed,
    }
}
