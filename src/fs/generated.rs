//! What is generated below `.meshbox/`: which files there are, and which nodes are ours.

use super::node::NodeId;

/// Makes the generated files under `.meshbox/`.
pub(crate) trait StatusFiles: Send + Sync {
    /// `status.json`.
    fn status(&self) -> Vec<u8>;
    /// `peers.json`.
    fn peers(&self) -> Vec<u8>;
    /// `metrics`, in Prometheus text format.
    fn metrics(&self) -> Vec<u8>;
}

/// Names and digests are in it, also of what lies in directories that others may not enter.
const OWNERS: u16 = 0o400;

/// Numbers only.
const EVERYBODYS: u16 = 0o444;

/// One generated file.
pub(super) struct Generated {
    pub(super) name: &'static [u8],
    pub(super) perm: u16,
    pub(super) make: fn(&dyn StatusFiles) -> Vec<u8>,
}

/// For whoever tried to put a file beside `outbox/`.
const README: &str = "\
This is a mailbox of Meshbox.

  outbox/                put files here: each is sent to the other members when the
                         last program has closed it
  inbox/                 what the others sent, complete and verified; what you remove
                         here is done with and does not come back

Nothing can be made beside these two, and nothing changed in inbox/ but removed or
moved to outbox/: programs get \"Read-only file system\". So it is
`cp FILE outbox/`, not `cp FILE .`.

  .meshbox/status.json   what is sent and received (for the owner of the mount)
  .meshbox/peers.json    the other members (the same)
  .meshbox/metrics       counters, as Prometheus reads them

`meshbox status` shows all that for people, `meshbox wait FILE` waits until a file is
delivered, and `meshbox --help` lists the other commands.
";

pub(super) const FILES: [Generated; 4] = [
    Generated {
        name: b"status.json",
        perm: OWNERS,
        make: |files| files.status(),
    },
    Generated {
        name: b"peers.json",
        perm: OWNERS,
        make: |files| files.peers(),
    },
    Generated {
        name: b"metrics",
        perm: EVERYBODYS,
        make: |files| files.metrics(),
    },
    Generated {
        name: b"README",
        perm: EVERYBODYS,
        make: |_| README.as_bytes().to_vec(),
    },
];

pub(super) const OUTBOX: &[u8] = b"outbox";
pub(super) const INBOX: &[u8] = b"inbox";
pub(super) const STATUS_DIR: &[u8] = b".meshbox";

/// Whether the node is one of ours: the root, `.meshbox/`, the herald's stage or a generated file.
pub(crate) fn is_generated(id: NodeId) -> bool {
    matches!(id, NodeId::ROOT | NodeId::STATUS_DIR | NodeId::STAGE) || generated(id).is_some()
}

pub(super) fn generated(id: NodeId) -> Option<&'static Generated> {
    let index = id.0.checked_sub(NodeId::STATUS_FILES.0)?;
    FILES.get(usize::try_from(index).ok()?)
}
