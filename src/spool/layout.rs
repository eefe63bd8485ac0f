//! Where things are in the state directory.

use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Names below one state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    state: PathBuf,
}

impl Layout {
    /// The layout of `state`, an absolute path.
    pub fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// The state directory itself.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The plain tree behind `outbox/`.
    pub fn outbox(&self) -> PathBuf {
        self.state.join("outbox")
    }

    /// The plain tree behind `inbox/`.
    pub fn inbox(&self) -> PathBuf {
        self.state.join("inbox")
    }

    /// Bytes that are arriving.
    pub fn partial(&self) -> PathBuf {
        self.state.join("partial")
    }

    /// Bytes that failed, with the reason beside them.
    pub fn quarantine(&self) -> PathBuf {
        self.state.join("quarantine")
    }

    /// Files of the inbox that are hashed before they are shown again, under their names.
    pub fn unverified(&self) -> PathBuf {
        self.state.join("unverified")
    }

    /// What origins signed of the files that the inbox shows.
    pub fn proofs(&self) -> PathBuf {
        self.state.join("proofs")
    }

    /// Directories that must be writable while the daemon runs.
    pub fn written(&self) -> [PathBuf; 6] {
        [
            self.state.clone(),
            self.outbox(),
            self.inbox(),
            self.partial(),
            self.content_root(),
            self.state.join("wal"),
        ]
    }

    /// Root of the content tree.
    pub fn content_root(&self) -> PathBuf {
        self.state.join("content")
    }

    /// The link that names content by its digest.
    pub fn content(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_hex();
        self.state.join("content").join(&hex[..2]).join(&hex[2..])
    }

    /// The node's secret key.
    pub fn identity_key(&self) -> PathBuf {
        self.state.join("identity.key")
    }

    /// The group's secret key.
    pub fn group_key(&self) -> PathBuf {
        self.state.join("group.key")
    }

    /// What the node was told once and keeps, and where it was last mounted.
    pub fn node(&self) -> PathBuf {
        self.state.join("node.toml")
    }

    /// It is there as soon as the node is bound to its group.
    pub fn bound(&self) -> PathBuf {
        self.state.join("bound")
    }

    /// Configuration that `meshbox mount` reads when no `--config` is given.
    pub fn config(&self) -> PathBuf {
        self.state.join("config.toml")
    }

    /// The addresses that were last listened on, one a line.
    pub fn listen(&self) -> PathBuf {
        self.state.join("listen")
    }

    /// Held with flock(2) by the daemon.
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The daemon's socket for the command line.
    pub fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// The daemon's log in background.
    pub fn log(&self) -> PathBuf {
        self.state.join("meshbox.log")
    }
}
