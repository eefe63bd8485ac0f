//! What tests of whole meshes say to a member and ask of it. Its spool is real, in a directory of its own.

use std::os::unix::fs::FileExt;

use super::faults::Real;
use super::*;
use crate::bundle::{
    Entry, EntryKind, MANIFEST_VERSION, Manifest, Priority, RelPath, Scope, VerifiedManifest,
};
use crate::digest::{Digest, hash_reader};
use crate::spool::{SendRequest, Sent};

/// What `origin` would say of a bundle of one file, for everybody.
pub(super) fn manifest_of(origin: PeerId, path: &str, content: &[u8]) -> Manifest {
    let hashed = hash_reader(content).unwrap();
    let kind = EntryKind::File {
        size: hashed.len,
        executable: false,
        digest: hashed.digest,
        chunks: hashed.chunks,
    };
    let entry = Entry {
        path: RelPath::parse(path).unwrap(),
        mtime: (0, 0),
        kind,
    };
    Manifest {
        version: MANIFEST_VERSION,
        origin,
        epoch: 1,
        incarnation: [1; 16],
        seq: 1,
        lifetime_secs: 60,
        scope: Scope::All { generation: 1 },
        priority: Priority::Routine,
        supersedes: None,
        renamed_from: Vec::new(),
        moved_on: None,
        rest_of: None,
        entries: vec![entry],
        directories: Vec::new(),
        salt: crate::peer::random(),
    }
}

impl Real {
    /// A signed bundle of one file, held nowhere.
    pub(super) fn bundle(&self, path: &str, content: &[u8]) -> VerifiedManifest {
        manifest_of(self.id(), path, content).sign(&self.identity())
    }

    /// Seals a file for `to`.
    pub(super) fn send(&self, path: &str, content: &[u8], to: &[PeerId]) -> BundleId {
        self.send_as(path, content, Priority::Routine, to)
    }

    /// Seals a file of that priority for `to`.
    pub(super) fn send_as(
        &self,
        path: &str,
        content: &[u8],
        priority: Priority,
        to: &[PeerId],
    ) -> BundleId {
        for id in to {
            let met = self.spool().group.members().iter().any(|m| m.id == *id);
            if !met {
                let called = name(&format!("m{}", &id.to_string()[..8]));
                self.spool().member_seen(*id, &called, &[], false).unwrap();
            }
        }
        let stage = self.state().join("outbox/.stage");
        std::fs::create_dir_all(&stage).unwrap();
        let staged = data_encoding::HEXLOWER.encode(&crate::peer::random::<8>());
        std::fs::write(stage.join(&staged), content).unwrap();
        let from = RelPath::parse(format!(".stage/{staged}")).unwrap();
        let sent = self.spool().send_files(&SendRequest {
            files: vec![(from, RelPath::parse(path).unwrap())],
            to: to.iter().map(PeerId::to_string).collect(),
            priority: Some(priority),
            id: None,
        });
        match sent.unwrap() {
            Sent::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    /// The disk changes the first byte of what is kept with these bytes; a second time undoes it.
    pub(super) fn damage(&self, content: &[u8]) {
        let at = self.spool().layout().content(Digest::of(content));
        let file = std::fs::File::options().read(true).write(true).open(at);
        let (file, mut byte) = (file.unwrap(), [0]);
        file.read_exact_at(&mut byte, 0).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
    }

    /// A file in the inbox, if it is there.
    pub(super) fn inbox_has(&self, path: &str) -> Option<Bytes> {
        std::fs::read(self.inbox(path)).ok().map(Bytes::from)
    }

    /// Waits for a file in the inbox.
    pub(super) fn wait_inbox(&self, path: &str) -> Bytes {
        eventually(path, || self.inbox(path).exists());
        self.inbox_has(path).unwrap()
    }

    /// Files in the inbox.
    pub(super) fn inbox_len(&self) -> usize {
        let (mut files, mut open) = (0, vec![self.inbox("")]);
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => open.push(entry.path()),
                    false => files += 1,
                }
            }
        }
        files
    }

    pub(super) fn wait_inbox_len(&self, len: usize) {
        eventually("the inbox", || self.inbox_len() >= len);
    }

    /// Waits until nothing is owed to `peer`.
    pub(super) fn wait_delivered(&self, peer: PeerId) {
        eventually("receipts", || self.spool().ledger.pending_count(peer) == 0);
    }

    /// Waits until status says `state` of a delivery; gives the reason that it shows.
    pub(super) fn wait_delivery(&self, bundle: BundleId, peer: PeerId, state: &str) -> String {
        let (bundle, peer) = (bundle.to_string(), peer.to_string());
        let shown = || {
            let rows = self.spool().outbound(None, 1000);
            let row = rows.into_iter().find(|row| row.bundle == bundle)?;
            let mut recipients = row.recipients.into_iter();
            recipients.find(|recipient| recipient.id == peer && recipient.state == state)
        };
        eventually(state, || shown().is_some());
        shown().and_then(|row| row.error).unwrap_or_default()
    }

    /// Content bytes sent and received since the start.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let counts = self.spool().counts();
        (counts.bytes_sent, counts.bytes_received)
    }
}
