//! Where things are in the state directory.

use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// Names below one state directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    state: PathBuf,
}

impl Layout {
    /// The layout of `state`, an absolute path.
    pub(crate) fn new(state: PathBuf) -> Self {
        Self { state }
    }

    /// The state directory itself.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// The plain tree behind `outbox/`.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.state.join("outbox")
    }

    /// The plain tree behind `inbox/`.
    pub(crate) fn inbox(&self) -> PathBuf {
        self.state.join("inbox")
    }

    /// Bytes that are arriving.
    pub(crate) fn partial(&self) -> PathBuf {
        self.state.join("partial")
    }

    /// Bytes that failed, with the reason beside them.
    pub(crate) fn quarantine(&self) -> PathBuf {
        self.state.join("quarantine")
    }

    /// Files of the inbox that are hashed before they are shown again, under their names.
    pub(crate) fn unverified(&self) -> PathBuf {
        self.state.join("unverified")
    }

    /// What origins signed of the files that the inbox shows.
    pub(crate) fn proofs(&self) -> PathBuf {
        self.state.join("proofs")
    }

    /// Directories that must be writable while the daemon runs.
    pub(crate) fn written(&self) -> [PathBuf; 6] {
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
    pub(crate) fn content_root(&self) -> PathBuf {
        self.state.join("content")
    }

    /// The link that names content by its digest.
    pub(crate) fn content(&self, digest: Digest) -> PathBuf {
        let hex = digest.to_hex();
        self.state.join("content").join(&hex[..2]).join(&hex[2..])
    }

    /// The node's secret key.
    pub(crate) fn identity_key(&self) -> PathBuf {
        self.state.join("identity.key")
    }

    /// The group's secret key.
    pub(crate) fn group_key(&self) -> PathBuf {
        self.state.join("group.key")
    }

    /// What the node was told once and keeps, and where it was last mounted.
    pub(crate) fn node(&self) -> PathBuf {
        self.state.join("node.toml")
    }

    /// It is there as soon as the node is bound to its group.
    pub(crate) fn bound(&self) -> PathBuf {
        self.state.join("bound")
    }

    /// Configuration that `meshbox mount` reads when no `--config` is given.
    pub(crate) fn config(&self) -> PathBuf {
        self.state.join("config.toml")
    }

    /// The addresses that were last listened on, one a line.
    pub(crate) fn listen(&self) -> PathBuf {
        self.state.join("listen")
    }

    /// Held with flock(2) by the daemon.
    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// The daemon's socket for the command line.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// The daemon's log in background.
    pub(crate) fn log(&self) -> PathBuf {
        self.state.join("meshbox.log")
    }
}
