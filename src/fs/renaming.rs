//! Names of the outbox that move: rename, exchange, and what is told to the spool and to `ready` of it.
//!
//! A directory that moves from an ignored name to an ordinary one is one bundle of what is in it; the spool hears of that
//! before the rename, which a crash may cut off. An exchange is told as one event: told as two renames, the second would
//! be about what the first had just put there.

use std::sync::Arc;

use rustix::fs::{RenameFlags, Stat, renameat_with};
use rustix::io::Errno;

use super::Fs;
use super::attr::{Item, kind_of};
use super::error::FsError;
use super::kind::Kind;
use super::node::{Area, Named, Place};
use crate::bundle::RelPath;
use crate::ready::{Event, Gone, Moved};

/// A directory that a rename makes one bundle, with what is in it under the names it is about to have.
struct Begun {
    ino: u64,
    tree: u64,
    files: Vec<(u64, RelPath)>,
    directories: Vec<RelPath>,
}

/// What the spool was told of directories that are one bundle, before the rename that may be cut off by a crash.
#[derive(Default)]
struct Moving {
    begun: Vec<Begun>,
    moved: Vec<(u64, RelPath, RelPath)>,
}

impl Moving {
    /// Call with the tree lock held for writing: what is in the directory stays as it is.
    fn begin(&mut self, fs: &Fs, stat: &Stat, from: &RelPath, to: &RelPath) -> Result<(), FsError> {
        if kind_of(stat) != Some(Kind::Directory) {
            return Ok(());
        }
        for (tree, old, new) in fs.readiness.trees_below(from, to) {
            fs.spool.outbox.tree_moving(tree, &old, &new)?;
            self.moved.push((tree, old, new));
        }
        if !fs.readiness.is_commit(from, to) {
            return Ok(());
        }
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        fs.files_below(from, &mut files, &mut directories);
        let relative = |path: &RelPath| RelPath::parse(path.below(from)?).ok();
        let below = directories.iter().filter_map(relative).collect();
        let tree = fs
            .spool
            .outbox
            .tree_renaming(from, to, stat.st_ino, &files, below)?;
        let moved = |path: RelPath| path.rebase(from, to);
        let file = |(ino, path): (u64, RelPath)| Some((ino, path.rebase(from, to)?));
        self.begun.push(Begun {
            ino: stat.st_ino,
            tree,
            files: files.into_iter().filter_map(file).collect(),
            directories: std::iter::once(to.clone())
                .chain(directories.into_iter().filter_map(moved))
                .collect(),
        });
        Ok(())
    }

    /// The bundle that this directory became by the rename.
    fn take(&mut self, ino: u64) -> Option<Begun> {
        let at = self.begun.iter().position(|begun| begun.ino == ino)?;
        Some(self.begun.swap_remove(at))
    }

    /// The rename did not happen.
    fn undo(&mut self, fs: &Fs) {
        for begun in self.begun.drain(..) {
            fs.spool.outbox.tree_dropped(begun.tree);
        }
        for (tree, old, new) in self.moved.drain(..) {
            if let Err(error) = fs.spool.outbox.tree_moving(tree, &new, &old) {
                tracing::warn!(%error, path = %old, "cannot record where a directory is");
            }
        }
    }
}

impl Fs {
    /// Moves a name. A regular file may leave the inbox for the outbox; everything else stays in its tree.
    pub(crate) fn rename(
        self: &Arc<Self>,
        from: Named<'_>,
        to: Named<'_>,
        flags: u32,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return done(Err(FsError::Invalid));
        }
        match (self.area_of(from.parent), self.area_of(to.parent)) {
            (Ok(Area::Outbox), Ok(Area::Outbox)) => done(self.outbox_rename(from, to, flags)),
            (Ok(Area::Inbox), Ok(Area::Outbox)) => self.move_out(from, to, flags, done),
            (Ok(_), Ok(Area::Inbox)) => done(Err(FsError::ReadOnly)),
            (Err(error), _) | (_, Err(error)) => done(Err(error)),
        }
    }

    fn outbox_rename(
        &self,
        from: Named<'_>,
        to: Named<'_>,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let _tree = self.tree.write();
        let from_place = self.outbox_place(from.parent, from.name)?;
        let to_place = self.outbox_place(to.parent, to.name)?;
        let source = self.stat_at(&from_place)?;
        let exchanges = flags.contains(RenameFlags::EXCHANGE);
        let target = self.make_way(&source, &from_place, to, &to_place, flags)?;
        let (from_path, to_path) = (from_place.rel()?, to_place.rel()?);
        let mut trees = Moving::default();
        let back = target.as_ref().filter(|_target| exchanges);
        let renamed = trees
            .begin(self, &source, &from_path, &to_path)
            .and_then(|()| back.map_or(Ok(()), |b| trees.begin(self, b, &to_path, &from_path)))
            .and_then(|()| {
                let target = target.as_ref();
                self.rename_backing(&from_place, &to_place, &to_path, target, flags)
            });
        if let Err(error) = renamed {
            trees.undo(self);
            return Err(error);
        }
        if target
            .as_ref()
            .is_some_and(|target| target.st_ino == source.st_ino)
        {
            trees.undo(self);
            return Ok(());
        }
        let exchanged = target
            .as_ref()
            .filter(|_target| flags.contains(RenameFlags::EXCHANGE));
        if let Some(target) = exchanged {
            self.nodes
                .lock()
                .exchanged(from.parent, from.name, to.parent, to.name);
            self.tell_exchanged((&source, from_path), (target, to_path), &mut trees);
            return Ok(());
        }
        self.nodes
            .lock()
            .renamed(from.parent, from.name, to.parent, to.name);
        let gone = target
            .filter(|target| matches!(kind_of(target), Some(Kind::File | Kind::Symlink)))
            .map(|target| {
                let names_left = self.names_left(&target);
                self.spool
                    .outbox_removed(&to_path, target.st_ino, names_left);
                Gone {
                    ino: target.st_ino,
                    names_left,
                }
            });
        self.tell_renamed(&source, from_path, to_path, gone, &mut trees);
        Ok(())
    }

    /// Whether this may be renamed. Gives what has the name that it is to get; that may lose the name, or get the other.
    fn make_way(
        &self,
        source: &Stat,
        from_place: &Place,
        to: Named<'_>,
        to_place: &Place,
        flags: RenameFlags,
    ) -> Result<Option<Stat>, FsError> {
        let target = match self.stat_at(to_place) {
            Ok(stat) => Some(stat),
            Err(FsError::Os(Errno::NOENT)) => None,
            Err(error) => return Err(error),
        };
        self.may_be_named(source, from_place, to_place)?;
        let Some(target) = target else {
            return Ok(None);
        };
        if flags.contains(RenameFlags::EXCHANGE) {
            self.may_be_named(&target, to_place, from_place)?;
        } else if !flags.contains(RenameFlags::NOREPLACE) && target.st_ino != source.st_ino {
            self.may_lose_name(&target)?;
            self.keep_remains(to.parent, to.name, to_place, &target);
        }
        Ok(Some(target))
    }

    /// The rename itself.
    fn rename_backing(
        &self,
        from_place: &Place,
        to_place: &Place,
        to_path: &RelPath,
        target: Option<&Stat>,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let (old, new) = (self.at(from_place)?, self.at(to_place)?);
        let rename = || Ok(renameat_with(&old, old.name(), &new, new.name(), flags)?);
        let Some(target) = target else {
            return rename();
        };
        let left = if flags.contains(RenameFlags::EXCHANGE) {
            1
        } else {
            self.names_left(target)
        };
        self.recorded_after(target, left, to_path, rename)
    }

    fn tell_renamed(
        &self,
        stat: &Stat,
        from: RelPath,
        to: RelPath,
        replaced: Option<Gone>,
        trees: &mut Moving,
    ) {
        if let Some(kind @ (Kind::File | Kind::Symlink | Kind::Directory)) = kind_of(stat) {
            self.spool
                .outbox_renamed(&from, &to, kind == Kind::Directory);
        }
        self.feed_renamed(stat, from, to, replaced, trees);
    }

    /// [`Self::tell_renamed`] for the state machine only.
    fn feed_renamed(
        &self,
        stat: &Stat,
        from: RelPath,
        to: RelPath,
        replaced: Option<Gone>,
        trees: &mut Moving,
    ) {
        match self.moved(stat, &to, trees) {
            Moved::Tree {
                tree,
                files,
                directories,
            } => self.readiness.feed(Event::TreeRenamed {
                tree,
                from,
                to,
                files,
                directories,
            }),
            Moved::Directory { files } => {
                self.readiness.feed(Event::DirRenamed { from, to, files });
            }
            Moved::File { ino } => self.readiness.feed(Event::Renamed {
                ino,
                from,
                to,
                replaced,
            }),
            // Nobody but us knows of these; of the file that had the new name they do.
            Moved::Other => {
                if let Some(Gone { ino, names_left }) = replaced {
                    let path = to;
                    self.readiness.feed(Event::Unlinked {
                        ino,
                        path,
                        names_left,
                    });
                }
            }
        }
    }

    /// What has the name `to` now, as the state machine wants to know it.
    fn moved(&self, stat: &Stat, to: &RelPath, trees: &mut Moving) -> Moved {
        match kind_of(stat) {
            Some(Kind::Directory) => {
                if let Some(begun) = trees.take(stat.st_ino) {
                    return Moved::Tree {
                        tree: begun.tree,
                        files: begun.files,
                        directories: begun.directories,
                    };
                }
                let mut files = Vec::new();
                self.files_below(to, &mut files, &mut Vec::new());
                Moved::Directory { files }
            }
            Some(Kind::File | Kind::Symlink) => Moved::File { ino: stat.st_ino },
            Some(Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice) | None => {
                Moved::Other
            }
        }
    }

    fn tell_exchanged(&self, a: (&Stat, RelPath), b: (&Stat, RelPath), trees: &mut Moving) {
        self.spool.outbox_exchanged(&a.1, &b.1);
        let (at_b, at_a) = (self.moved(a.0, &b.1, trees), self.moved(b.0, &a.1, trees));
        self.readiness.feed(Event::Exchanged {
            a: (a.1, at_b),
            b: (b.1, at_a),
        });
    }

    /// Every regular file and symbolic link below a directory of the outbox, by its backing inode, and every directory. What cannot be
    /// listed is left out and logged: the rename itself is done.
    fn files_below(
        &self,
        directory: &RelPath,
        files: &mut Vec<(u64, RelPath)>,
        directories: &mut Vec<RelPath>,
    ) {
        let mut pending = vec![directory.clone()];
        while let Some(directory) = pending.pop() {
            let place = Place {
                area: Area::Outbox,
                path: directory.as_bytes().to_vec(),
            };
            let mut items: Vec<Item> = Vec::new();
            if let Err(error) = self.read_names(&place, &mut items) {
                tracing::warn!(path = %directory, %error, "cannot list a renamed directory");
            }
            for item in items {
                let Ok(path) = directory.child(&item.name) else {
                    continue;
                };
                match item.kind {
                    Kind::Directory => {
                        directories.push(path.clone());
                        pending.push(path);
                    }
                    Kind::File | Kind::Symlink => files.push((item.backing, path)),
                    Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {}
                }
            }
        }
    }
}
