//! Telling those who watch the inbox (inotify, fanotify) of what arrived.
//!
//! Names in the inbox are given by a rename in the backing tree, of which the kernel tells nobody. So afterwards a
//! small process, the herald, does the same once more through the mount, where we answer without touching the disk:
//! it moves `.meshbox/STAGE/TOKEN` to the name of a published file, which raises `MOVED_TO` there, and makes the
//! directory that was made, which raises `CREATE,ISDIR`. The daemon itself never enters its own mount: killed in the
//! middle, it would wait for its own answer for ever.
//!
//! # How one announcement goes
//! 1. The arrival becomes *pending*: names it covers are given to the kernel without validity from now on, and if the
//!    kernel knows the name already, it is told to forget it.
//! 2. To the herald, and to nobody else, the name is missing now, and the stage and the token exist. The token shows
//!    the published file under its own node, so that `st_ino` stays what it is, whoever has looked already.
//! 3. The herald's call arrives here as RENAME or MKDIR. If the name still shows the announced inode, the answer is
//!    yes, and the kernel raises the event; else an error, and there is none.
//!
//! # Invariants
//! 1. Whoever is not the herald sees the same tree before, during and after.
//! 2. An announcement never changes anything on disk, and nothing waits for one but the next.
//! 3. Parents are announced before what lies in them.
//! 4. Whoever watched before a name was published is told of it, unless the queue was full.
//!
//! # Threads
//! `fs-announcer` decides and waits for the herald, holding no lock. FUSE loops answer the herald like any caller.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::Fs;
use super::arrivals::{Arrival, Herald, Pending, Step};
use super::attr::{Caller, Entry, kind_of};
use super::error::FsError;
use super::kind::Kind;
use super::node::{Area, Named, NodeId, Place};
use super::notices::Invalidator;
use crate::bundle::RelPath;

/// The directory below `.meshbox/` that only the herald finds.
const STAGE: &[u8] = b".arrivals";

/// Arrivals handed to the herald at once: enough to hide the way there and back, few enough that it is gone again from
/// the mount within milliseconds.
const BATCH: usize = 64;

/// How long files in a directory that was just announced wait until somebody watches that directory too: programs
/// that watch a tree add it when they hear of it. Halved down to the second each time that nobody does, since then those
/// who watch want no tree.
const JOIN_LIMIT: Duration = Duration::from_secs(1);
const JOIN_LEAST: Duration = Duration::from_millis(20);

/// How often we look whether they have.
const JOIN_INTERVAL: Duration = Duration::from_millis(2);

/// After a look that found no watcher the next one waits this long, and at least so many times as long as the look
/// took: looking costs more the more files are open on the machine.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const LOOK_SHARE: u32 = 25;

impl Fs {
    /// Sets who announces arrivals, and begins to.
    pub(crate) fn set_herald(self: &Arc<Self>, herald: Box<dyn Herald>) -> std::io::Result<()> {
        let invalidate = self.notices.invalidator();
        let fs = Arc::clone(self);
        self.announcements.queue.lock().running = true;
        let thread = thread::Builder::new()
            .name("fs-announcer".into())
            .spawn(move || fs.announce_all(herald, invalidate.as_ref()))?;
        *self.announcements.thread.lock() = Some(thread);
        Ok(())
    }

    /// Ends announcements, before the mount is taken away: the herald must not be in it.
    pub(crate) fn stop_announcing(&self) {
        self.announcements.stop();
    }

    fn announce_all(&self, mut herald: Box<dyn Herald>, invalidate: Option<&Invalidator>) {
        let mut not_before = Instant::now();
        let mut patience = JOIN_LIMIT;
        while let Some(mut arrivals) = self.announcements.take(not_before) {
            let begun = Instant::now();
            if !herald.is_watched() {
                let looked = begun.elapsed();
                not_before = begun + LOOK_INTERVAL.max(looked * LOOK_SHARE);
                continue;
            }
            not_before = begun;
            while !arrivals.is_empty() && !self.announcements.is_stopping() {
                let batch = next_batch(&mut arrivals);
                let directories = self.announce(&batch, &mut *herald, invalidate);
                if directories.is_empty() {
                    continue;
                }
                if self.are_joined(&directories, patience, &mut *herald) {
                    patience = JOIN_LIMIT;
                } else {
                    patience = (patience / 2).max(JOIN_LEAST);
                }
            }
        }
    }

    /// Announces a batch; gives the directories of which the kernel told.
    fn announce(
        &self,
        batch: &[Arrival],
        herald: &mut dyn Herald,
        invalidate: Option<&Invalidator>,
    ) -> Vec<RelPath> {
        let steps = self.begin(batch);
        for arrival in batch {
            let known = self.nodes.lock().known_at(Area::Inbox, &arrival.path);
            if let (Some((parent, _)), Some(invalidate)) = (known, invalidate) {
                invalidate(parent, arrival.path.file_name());
            }
        }
        let all = &self.announcements;
        if !steps.is_empty() {
            herald.perform(
                &steps,
                &|pid| all.admitted.store(pid, Ordering::Release),
                &|| all.is_stopping(),
            );
        }
        all.admitted.store(0, Ordering::Release);
        all.busy.store(false, Ordering::Release);
        let ended = std::mem::take(&mut *all.pending.lock());
        for pending in ended.iter().filter(|pending| !pending.done) {
            tracing::debug!(path = %pending.arrival.path, "an arrival could not be announced");
        }
        let directories = ended
            .into_iter()
            .filter(|pending| pending.done && pending.arrival.directory);
        directories.map(|pending| pending.arrival.path).collect()
    }

    /// Makes a batch pending. What has changed since it arrived is left out.
    fn begin(&self, batch: &[Arrival]) -> Vec<Step> {
        let all = &self.announcements;
        let mut steps = Vec::with_capacity(batch.len());
        let mut pending = Vec::with_capacity(batch.len());
        for arrival in batch {
            let place = Place {
                area: Area::Inbox,
                path: arrival.path.as_bytes().to_vec(),
            };
            let Ok(stat) = self.stat_at(&place) else {
                continue;
            };
            if (kind_of(&stat) == Some(Kind::Directory)) != arrival.directory {
                continue;
            }
            let number = all.tokens.fetch_add(1, Ordering::Relaxed);
            let token = number.to_string().into_bytes();
            let to = [b"inbox/", arrival.path.as_bytes()].concat();
            steps.push(if arrival.directory {
                Step::MakeDirectory(to)
            } else {
                let from = [b".meshbox/", STAGE, b"/", &token].concat();
                Step::Move(from, to)
            });
            pending.push(Pending {
                token,
                arrival: arrival.clone(),
                ino: stat.st_ino,
                done: false,
            });
        }
        *all.pending.lock() = pending;
        all.busy.store(true, Ordering::Release);
        steps
    }

    /// Whoever watches a tree hears of a new directory and then watches it too. Files in it are announced after that, or
    /// when the patience is at its end.
    fn are_joined(
        &self,
        directories: &[RelPath],
        patience: Duration,
        herald: &mut dyn Herald,
    ) -> bool {
        let end = Instant::now() + patience;
        directories.iter().all(|path| {
            loop {
                let known = self.nodes.lock().known_at(Area::Inbox, path);
                if known.is_none_or(|(_, node)| herald.is_watching(node.0)) {
                    return true;
                }
                if Instant::now() >= end || self.announcements.is_stopping() {
                    return false;
                }
                thread::sleep(JOIN_INTERVAL);
            }
        })
    }

    /// Looks up a name on behalf of `caller`: the herald sees what it needs, everybody else the tree.
    pub(crate) fn lookup_for(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Entry, FsError> {
        if !self.announcements.is_admitted(caller) {
            return self.lookup(parent, name);
        }
        if parent == NodeId::STAGE {
            return self.lookup_token(name);
        }
        if parent == NodeId::STATUS_DIR && name == STAGE {
            return Ok(Entry {
                attr: self.status_attr(NodeId::STAGE)?,
                ttl: Duration::ZERO,
            });
        }
        if let Some(path) = self.inbox_path(Named { parent, name })
            && self.announcements.covers(&path)
        {
            return Err(FsError::NotFound);
        }
        self.lookup(parent, name)
    }

    /// The path below the inbox of a name in it.
    fn inbox_path(&self, at: Named<'_>) -> Option<Vec<u8>> {
        if super::generated::is_generated(at.parent) {
            return None;
        }
        let place = self.place(at.parent).ok()?;
        (place.area == Area::Inbox)
            .then(|| place.child(at.name).ok())
            .flatten()
            .map(|place| place.path)
    }

    /// The published file that a token stands for.
    fn lookup_token(&self, token: &[u8]) -> Result<Entry, FsError> {
        let (path, ino) = {
            let pending = self.announcements.pending.lock();
            let found = pending.iter().find(|p| !p.done && p.token == token);
            let found = found.ok_or(FsError::NotFound)?;
            (found.arrival.path.clone(), found.ino)
        };
        // The herald's walk to the target came before, so its directory is known.
        let directory = match path.parent() {
            None => NodeId::INBOX,
            Some(directory) => {
                let known = self.nodes.lock().known_at(Area::Inbox, &directory);
                known.ok_or(FsError::NotFound)?.1
            }
        };
        self.check_shows(&path, ino)?;
        let entry = self.lookup(directory, path.file_name())?;
        Ok(Entry {
            ttl: Duration::ZERO,
            ..entry
        })
    }

    fn check_shows(&self, path: &RelPath, ino: u64) -> Result<(), FsError> {
        let place = Place {
            area: Area::Inbox,
            path: path.as_bytes().to_vec(),
        };
        if self.stat_at(&place)?.st_ino == ino {
            Ok(())
        } else {
            Err(FsError::Stale)
        }
    }

    /// [`Self::rename`] on behalf of `caller`; the herald's is the announcement of a file.
    pub(crate) fn rename_for(
        self: &Arc<Self>,
        caller: Caller,
        from: Named<'_>,
        to: Named<'_>,
        flags: u32,
        done: impl FnOnce(Result<(), FsError>) + Send + 'static,
    ) {
        if from.parent == NodeId::STAGE && self.announcements.is_admitted(caller) {
            return done(self.announced(to, false));
        }
        self.rename(from, to, flags, done);
    }

    /// [`Self::mkdir`] on behalf of `caller`; the herald's in the inbox is the announcement of a directory.
    pub(crate) fn mkdir_for(
        &self,
        caller: Caller,
        at: Named<'_>,
        mode: u32,
    ) -> Result<Entry, FsError> {
        if self.announcements.is_admitted(caller) {
            self.announced(at, true)?;
            return self.lookup(at.parent, at.name);
        }
        self.mkdir(at, mode, caller)
    }

    /// The herald's call has come: the kernel raises the event when this is no error.
    fn announced(&self, at: Named<'_>, directory: bool) -> Result<(), FsError> {
        let path = self.inbox_path(at).ok_or(FsError::ReadOnly)?;
        let ino = self.announcements.awaited(&path, directory);
        let ino = ino.ok_or(FsError::ReadOnly)?;
        self.check_shows(&RelPath::parse(path.clone())?, ino)?;
        self.announcements.finish(&path);
        Ok(())
    }
}

/// Takes files, or directories of one depth, off the front: those do not depend on each other.
fn next_batch(arrivals: &mut VecDeque<Arrival>) -> Vec<Arrival> {
    let rank = |arrival: &Arrival| arrival.directory.then(|| arrival.path.components().count());
    let mut batch: Vec<Arrival> = Vec::new();
    while let Some(next) = arrivals.front() {
        let fits = batch.first().is_none_or(|first| rank(first) == rank(next));
        // Two arrivals of one name are two announcements.
        if !fits || batch.len() == BATCH || batch.iter().any(|one| one.path == next.path) {
            break;
        }
        batch.extend(arrivals.pop_front());
    }
    batch
}

#[cfg(test)]
mod tests;
