//! Carries out what the state machine decided, through the spool.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Fs;
use super::attr::{Kind, kind_of};
use super::error::FsError;
use super::inode::{Area, Place};
use super::special::beneath;
use crate::bundle::{Priority, RelPath};
use crate::ready::{Action, Event, SealResult, Shown};
use crate::spool::{SealOutcome, SealRequest, TreeRequest};

/// A RELEASE feeds the state machine with its gate locked and opens it microseconds later: not worth another thread.
const GATE_PATIENCE: Duration = Duration::from_micros(200);

impl Fs {
    /// `meshbox send`: sends a path below `outbox/` now, whatever `ready` says (incomplete, ignored).
    pub fn send_now(&self, path: &RelPath) -> Result<(), String> {
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
    pub fn ignored_by(&self, path: &RelPath, ino: u64) -> Option<String> {
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
            Action::Seal {
                ino,
                path,
                renamed_from,
            } => self.seal(ino, path, renamed_from),
            Action::SealTree {
                tree,
                root,
                files,
                directories,
            } => self.seal_tree(tree, root, files, directories),
            Action::DropTree { tree } => self.spool.tree_dropped(tree),
            Action::MarkClosed { ino, path } => self.mark_closed(ino, path),
            Action::MarkTorn { ino, path } => {
                tracing::info!(%path, "its writer was killed, or a write failed: held back as incomplete");
                self.spool.mark_torn(ino, &path);
            }
            Action::Unmark { ino } => self.spool.unmark(ino),
            Action::CountIgnored { path } => {
                tracing::debug!(%path, "not sent: the name is on the ignore list");
                self.spool.count_ignored();
            }
        }
    }

    /// A late mark must not hide that the file is open again, so it is made under the gate; in the pool if somebody
    /// holds that for longer than the RELEASE that brought us here.
    fn mark_closed(self: &Arc<Self>, ino: u64, path: RelPath) {
        let gate = self.spool.gate(ino);
        if let Some(guard) = gate.lock_for(GATE_PATIENCE) {
            if guard.writers() == 0 {
                self.spool.mark_closed(ino, &path);
            }
            return;
        }
        let (fs, gate) = (self.clone(), gate.clone());
        self.pool.submit(Box::new(move || {
            let guard = gate.lock();
            if guard.writers() == 0 {
                fs.spool.mark_closed(ino, &path);
            }
        }));
    }

    fn seal(self: &Arc<Self>, ino: u64, path: RelPath, renamed_from: Option<RelPath>) {
        let renamed_from = renamed_from.filter(|from| {
            // Only its mode or time is new.
            if *from == path {
                return true;
            }
            let _tree = self.tree.read();
            let from = Place {
                area: Area::Outbox,
                path: from.as_bytes().to_vec(),
            };
            matches!(
                self.stat_at(&from),
                Err(FsError::NotFound | FsError::Os(Errno::NOENT | Errno::NOTDIR))
            )
        });
        let readiness = self.readiness.clone();
        let sealed_path = path.clone();
        let done = Box::new(move |outcome| {
            let path = sealed_path;
            let result = match outcome {
                SealOutcome::Sealed(bundle) => {
                    tracing::debug!(%path, ?bundle, "sealed");
                    SealResult::Sealed
                }
                SealOutcome::Changed => SealResult::Changed,
                SealOutcome::Gone => SealResult::Gone,
                SealOutcome::Failed(error) => {
                    tracing::warn!(%path, %error, "a file could not be sealed");
                    SealResult::Failed
                }
            };
            readiness.feed(Event::SealDone { ino, path, result });
        });
        let gate = self.spool.gate(ino);
        self.spool.seal(SealRequest {
            gate,
            path,
            renamed_from,
            priority: Priority::Routine,
            done,
        });
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
            let result = match outcome {
                SealOutcome::Sealed(_) => SealResult::Sealed,
                SealOutcome::Changed => SealResult::Changed,
                SealOutcome::Gone => SealResult::Gone,
                SealOutcome::Failed(_) => SealResult::Failed,
            };
            readiness.feed(Event::TreeDone { tree, result });
        });
        self.spool.seal_tree(TreeRequest {
            tree,
            root,
            files,
            directories,
            priority: Priority::Routine,
            done,
        });
    }
}
