//! Looks at an inbox all the time and hashes every file it ever sees there.
//!
//! Promise under test: nothing unverified is ever visible. A file counts as seen wrong when it could be read to its end
//! and the bytes are none that were ever sent under that name. Errors of a dying mount are no finding.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::{Node, files_below, sha256, sha256_file};

#[derive(Debug, Default)]
struct Found {
    allowed: HashMap<PathBuf, HashSet<String>>,
    seen: BTreeSet<(PathBuf, String)>,
    wrong: Vec<String>,
    rounds: u64,
}

/// A running watch over one node's inbox.
#[derive(Debug)]
pub struct Watcher {
    found: Arc<Mutex<Found>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches the inbox of `node`, also across its restarts.
    pub fn over(node: &Node) -> Self {
        let found = Arc::new(Mutex::new(Found::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let inbox = node.mountpoint().join("inbox");
        let thread = thread::spawn({
            let (found, stop) = (found.clone(), stop.clone());
            move || {
                let mut hashed = HashSet::new();
                while !stop.load(Ordering::Relaxed) {
                    look(&inbox, &found, &mut hashed);
                    thread::yield_now();
                }
            }
        });
        Self {
            found,
            stop,
            thread: Some(thread),
        }
    }

    /// Allows `bytes` to appear under `path`. To be called before they are sent.
    pub fn allow(&self, path: &str, bytes: &[u8]) {
        let mut found = self.found.lock().unwrap();
        found
            .allowed
            .entry(path.into())
            .or_default()
            .insert(sha256(bytes));
    }

    /// Ends the watch; panics if anything wrong was ever visible, or if it never looked.
    #[track_caller]
    pub fn finish(mut self) {
        self.end();
        let found = self.found.lock().unwrap();
        assert!(found.rounds > 0, "the watcher never looked");
        assert!(
            found.wrong.is_empty(),
            "visible and wrong: {:#?}",
            found.wrong
        );
    }

    /// Ends the watch; gives every name ever seen with the SHA-256 of what was in it. Nothing need have been allowed.
    #[track_caller]
    pub fn finish_seen(mut self) -> BTreeSet<(PathBuf, String)> {
        self.end();
        let mut found = self.found.lock().unwrap();
        assert!(found.rounds > 0, "the watcher never looked");
        std::mem::take(&mut found.seen)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One look: hashes whatever was not hashed before in this very version.
fn look(inbox: &Path, found: &Mutex<Found>, hashed: &mut HashSet<(PathBuf, u64, u64, i64, i64)>) {
    for path in files_below(inbox) {
        let at = inbox.join(&path);
        let Ok(meta) = at.metadata() else { continue };
        let version = (
            path.clone(),
            meta.ino(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
        );
        if hashed.contains(&version) {
            continue;
        }
        let Ok(sha) = sha256_file(&at) else { continue };
        hashed.insert(version);
        let mut found = found.lock().unwrap();
        if !found
            .allowed
            .get(&path)
            .is_some_and(|allowed| allowed.contains(&sha))
        {
            found.wrong.push(format!(
                "{} ({} bytes, sha256 {sha})",
                path.display(),
                meta.size()
            ));
        }
        found.seen.insert((path, sha));
    }
    found.lock().unwrap().rounds += 1;
}
