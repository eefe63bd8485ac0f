//! What a start makes before it has keys, and takes away again when it is refused: directories, the lock and the log.
//!
//! # Invariants
//! 1. Nothing goes that was there before, and no directory that holds anything else by now.
//! 2. The lock goes while it is held: whoever waits for it finds that it is another's by then, and takes a new one.

use std::fs;
use std::path::PathBuf;

use crate::spool::Layout;

/// What this start made, in the order in which it goes. Dropped, it goes, unless it is to stay.
#[derive(Debug)]
pub(super) struct Traces {
    files: Vec<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Traces {
    /// Begins with directories that were made for the mountpoint, the deepest first. In the state nothing was made yet.
    pub(super) fn of(directories: Vec<PathBuf>, layout: &Layout) -> Self {
        let files = [layout.lock(), layout.log()].into_iter();
        let files = files.filter(|path| !path.exists()).collect();
        Self { files, directories }
    }

    /// So were these, the deepest first.
    pub(super) fn made(&mut self, directories: Vec<PathBuf>) {
        // Both may be below one that was made for the mountpoint.
        self.directories.splice(0..0, directories);
    }

    /// All of it stays.
    pub(super) fn stay(&mut self) {
        self.files.clear();
        self.directories.clear();
    }

    /// All of it goes.
    pub(super) fn take_away(&mut self) {
        // Best effort: what cannot go, or holds something else, stays.
        for file in self.files.drain(..) {
            let _stays = fs::remove_file(file);
        }
        for directory in self.directories.drain(..) {
            let _stays = fs::remove_dir(directory);
        }
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.take_away();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::make_state_directory;

    #[test]
    fn what_was_made_goes_and_what_was_there_or_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("a/b/state"));
        let mut traces = Traces::of(Vec::new(), &layout);
        traces.made(make_state_directory(&layout).unwrap());
        fs::write(layout.lock(), "").unwrap();
        fs::write(layout.log(), "refused").unwrap();
        drop(traces);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        make_state_directory(&layout).unwrap();
        fs::write(layout.lock(), "").unwrap();
        let mut traces = Traces::of(Vec::new(), &layout);
        traces.made(make_state_directory(&layout).unwrap());
        fs::write(layout.log(), "refused").unwrap();
        drop(traces);
        assert!(layout.lock().exists() && !layout.log().exists());

        fs::remove_dir_all(dir.path().join("a")).unwrap();
        let mut traces = Traces::of(Vec::new(), &layout);
        traces.made(make_state_directory(&layout).unwrap());
        fs::write(layout.config(), "").unwrap();
        drop(traces);
        assert!(layout.config().exists());

        fs::remove_dir_all(dir.path().join("a")).unwrap();
        let mountpoint = dir.path().join("a/mnt");
        fs::create_dir_all(&mountpoint).unwrap();
        let mut traces = Traces::of(vec![mountpoint, dir.path().join("a")], &layout);
        traces.made(make_state_directory(&layout).unwrap());
        drop(traces);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let mut traces = Traces::of(Vec::new(), &layout);
        traces.made(make_state_directory(&layout).unwrap());
        traces.stay();
        drop(traces);
        assert!(layout.state().exists());
    }
}
