//! Peers that break the rules, on the real wire, against a mesh over a real spool.
//!
//! What ends before the spool is reached (wrong group key, reflected proof, another version) is tested in the parent.

use std::borrow::Borrow;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use tempfile::TempDir;

use super::super::wire::{RangeRequest, RangeStatus};
use super::*;
use crate::bundle::{EntryKind, RelPath, SignedManifest, VerifiedManifest};
use crate::digest::{Digest, LEAF};
use crate::spool::{InboundRow, SealName, SealOutcome, SealRequest, Spool, SpoolConfig};

/// A spool in a directory of its own.
pub(super) struct Real {
    dir: TempDir,
    identity: Identity,
    spool: Option<Arc<Spool>>,
}

impl Real {
    pub(super) fn new() -> Self {
        let (dir, identity) = (tempfile::tempdir().unwrap(), Identity::generate());
        let spool = Some(Self::open(&dir, &identity));
        Self {
            dir,
            identity,
            spool,
        }
    }

    fn open(dir: &TempDir, identity: &Identity) -> Arc<Spool> {
        let spool = Spool::open(SpoolConfig {
            state: dir.path().join("state"),
            lifetime: Duration::from_secs(3600),
            sealers: 1,
            limits: crate::spool::Limits::default(),
            dress: crate::spool::Dress::default(),
            identity: identity.clone(),
        })
        .unwrap();
        // A scripted peer does not wait for what a first contact does once in a node's life.
        spool.group.bind().unwrap();
        spool
    }

    /// Closes the spool, lets `change` at its files, and opens it again.
    pub(super) fn reopen(&mut self, change: impl Fn(&std::path::Path)) {
        if let Some(spool) = self.spool.take() {
            spool.close();
        }
        change(&self.state());
        self.spool = Some(Self::open(&self.dir, &self.identity));
    }

    /// The same node once more, with a copy of its state.
    pub(super) fn twin(&self, backup: &std::path::Path) -> Self {
        let (dir, identity) = (tempfile::tempdir().unwrap(), self.identity.clone());
        fs::rename(backup, dir.path().join("state")).unwrap();
        let spool = Some(Self::open(&dir, &identity));
        Self {
            dir,
            identity,
            spool,
        }
    }

    pub(super) fn spool(&self) -> &Arc<Spool> {
        self.spool.as_ref().unwrap()
    }

    pub(super) fn start(&self, config: MeshConfig) -> Mesh {
        let mut mesh = self.bind(config).unwrap();
        mesh.open();
        mesh
    }

    /// A mesh that is not open yet.
    pub(super) fn bind(&self, config: MeshConfig) -> Result<Mesh, MeshError> {
        if self.spool().group.keys().is_empty() {
            self.spool()
                .group
                .enter(config.group.clone(), None)
                .unwrap();
        }
        Mesh::bind(self.spool().clone(), config.into())
    }

    pub(super) fn id(&self) -> PeerId {
        self.identity.id()
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity.clone()
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(super) fn inbox(&self, path: &str) -> PathBuf {
        self.state().join("inbox").join(path)
    }

    pub(super) fn names_in(&self, room: &str) -> Vec<String> {
        let entries = fs::read_dir(self.state().join(room)).unwrap();
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        entries.map(name).collect()
    }

    /// Puts a file into the outbox under `path`, as a new inode, and seals it.
    pub(super) fn put(&self, path: &str, content: &[u8]) -> BundleId {
        use std::os::unix::fs::MetadataExt;
        let temp = self.dir.path().join("new");
        fs::write(&temp, content).unwrap();
        let at = self.state().join("outbox").join(path);
        fs::rename(&temp, &at).unwrap();
        let rel = RelPath::parse(path).unwrap();
        let gate = self.spool().outbox.gate(fs::metadata(&at).unwrap().ino());
        self.spool()
            .outbox
            .before_modify(&mut gate.lock(), &rel)
            .unwrap();
        self.spool().outbox.mark_closed(gate.ino(), &rel);
        let (done, outcome) = crossbeam_channel::bounded(1);
        let name = SealName {
            path: rel,
            renamed_from: None,
        };
        let done = move |outcome| done.send(outcome).unwrap();
        self.spool()
            .outbox
            .seal(SealRequest::alone(gate, name, done));
        match outcome.recv_timeout(PATIENCE).unwrap() {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    /// Removes a name from the outbox.
    pub(super) fn remove(&self, path: &str) {
        use std::os::unix::fs::MetadataExt;
        let at = self.state().join("outbox").join(path);
        let ino = fs::metadata(&at).unwrap().ino();
        fs::remove_file(&at).unwrap();
        let rel = RelPath::parse(path).unwrap();
        self.spool().outbox_removed(&rel, ino, 0);
    }

    pub(super) fn row(&self, bundle: BundleId) -> Option<InboundRow> {
        let rows = self.spool().inbound(None, 100);
        rows.into_iter().find(|r| r.bundle == bundle.to_string())
    }

    pub(super) fn wait_row(&self, bundle: BundleId, state: &str) -> InboundRow {
        eventually(state, || self.row(bundle).is_some_and(|r| r.state == state));
        self.row(bundle).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if let Some(spool) = self.spool.take() {
            spool.close();
        }
    }
}

/// A real node with nobody in its group but those a test scripts.
pub(super) fn alone() -> (GroupKey, Real, Mesh) {
    let (group, alder) = (GroupKey::generate(), Real::new());
    let mesh = alder.start(config("alder", &group));
    (group, alder, mesh)
}

impl Scripted {
    pub(super) fn sign(&self, path: &str, content: &[u8]) -> VerifiedManifest {
        manifest_of(self.id(), path, content).sign(&self.identity)
    }

    /// A bulk connection on which the other end may ask.
    pub(super) fn bulk(&self, to: &impl Reached, group: &GroupKey) -> Connection {
        let conn = self.connect(to, BULK_ALPN);
        let proof = prove(&conn, group, self.id(), Role::Dialer);
        self.runtime.block_on(proof).unwrap();
        conn.set_max_concurrent_bi_streams(64u32.into());
        conn.set_receive_window((4u32 << 20).into());
        conn
    }

    /// A bulk connection on which ranges are answered with what `answer` gives. It may block.
    pub(super) fn serve(
        &self,
        to: &Mesh,
        group: &GroupKey,
        answer: impl Fn(RangeRequest) -> Vec<u8> + Send + 'static,
    ) -> Connection {
        let conn = self.bulk(to, group);
        let serving = conn.clone();
        self.runtime.spawn(async move {
            while let Ok((send, recv)) = serving.accept_bi().await {
                let mut channel = Channel {
                    send,
                    recv,
                    decoder: Decoder::new(100),
                };
                let Ok(Frame::Range(request)) = channel.frame().await else {
                    continue;
                };
                let bytes = tokio::task::block_in_place(|| answer(request));
                if channel.send.write_all(&bytes).await.is_ok() {
                    channel.send.finish().unwrap();
                }
            }
        });
        conn
    }

    /// Offers without content and waits for what becomes of it.
    pub(super) fn offer(
        &self,
        channel: &mut Channel,
        signed: impl Borrow<SignedManifest>,
    ) -> Verdict {
        let offer = Offer {
            age: 0,
            signed: signed.borrow().clone(),
            inline: vec![],
        };
        self.offer_inline(channel, offer)
    }

    pub(super) fn offer_inline(&self, channel: &mut Channel, offer: Offer) -> Verdict {
        let bundle = offer.signed.id();
        self.say(channel, &Frame::Offer(Box::new(offer)));
        loop {
            if let Frame::Verdicts(list) = self.hear(channel) {
                for (about, verdict) in list {
                    if about == bundle && verdict != Verdict::Working {
                        return verdict;
                    }
                }
            }
        }
    }

    pub(super) fn say(&self, channel: &mut Channel, frame: &Frame) {
        self.runtime.block_on(channel.send(frame)).unwrap();
    }

    pub(super) fn hear(&self, channel: &mut Channel) -> Frame {
        self.runtime.block_on(channel.heard())
    }

    /// The next question whether a bundle is still owed.
    pub(super) fn hear_owed(&self, channel: &mut Channel) -> Vec<BundleId> {
        loop {
            if let Frame::Owed(ids) = self.hear(channel) {
                return ids;
            }
        }
    }

    /// Returns when the peer has dealt with all that was said before.
    pub(super) fn settle(&self, channel: &mut Channel) {
        self.ask(channel, &Frame::Pending(vec![BundleId([5; 32])]));
    }
}

pub(super) fn range_of(content: &[u8], request: RangeRequest) -> Vec<u8> {
    let from = request.offset as usize;
    let mut answer = vec![RangeStatus::Ok as u8];
    answer.extend_from_slice(&content[from..from + request.len as usize]);
    answer
}

#[test]
fn wrong_bytes_by_range_stay_out_and_another_holder_gives_the_rest() {
    let (group, alder, a) = alone();
    let liar = Scripted::new();
    let (_conn, mut channel) = liar.join(&a, &group);
    let content = pattern(3 * LEAF as usize);
    let mut wrong = content.clone();
    wrong[LEAF as usize] ^= 1;
    let _bulk = liar.serve(&a, &group, move |request| range_of(&wrong, request));
    let manifest = liar.sign("f", &content);
    let verdict = liar.offer(&mut channel, manifest.signed());
    let told = |why: &str| why.contains("scripted sent wrong bytes");
    assert!(
        matches!(&verdict, Verdict::Deferred(why) if told(why)),
        "{verdict:?}"
    );
    let row = alder.wait_row(manifest.id(), "deferred");
    assert!(row.error.is_some_and(|why| told(&why)));
    assert_eq!(alder.names_in("inbox"), [""; 0]);

    let honest = Scripted::new();
    let (_conn, mut channel) = honest.join(&a, &group);
    let served = content.clone();
    let _bulk = honest.serve(&a, &group, move |request| range_of(&served, request));
    let verdict = honest.offer(&mut channel, manifest.signed());
    assert_eq!(verdict, Verdict::Taken);
    eventually("what was right is kept, and not fetched again", || {
        let counts = alder.spool().counts();
        counts.bytes_received - counts.bytes_twice == content.len() as u64
    });
    assert!(fs::read(alder.inbox("f")).unwrap() == content);
    assert_eq!(alder.wait_row(manifest.id(), "received").error, None);
}

#[test]
fn a_later_honest_offer_of_the_same_peer_is_taken() {
    let (group, alder, a) = alone();
    let peer = Scripted::new();
    let (_conn, mut channel) = peer.join(&a, &group);
    let content = pattern(LEAF as usize);
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, served) = (asked.clone(), content.clone());
    let _bulk = peer.serve(&a, &group, move |request| {
        let mut answer = range_of(&served, request);
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            answer[1] ^= 1;
        }
        answer
    });
    let manifest = peer.sign("f", &content);
    let verdict = peer.offer(&mut channel, manifest.signed());
    assert!(matches!(verdict, Verdict::Deferred(_)), "{verdict:?}");
    // It is blamed for a moment; after that it may offer again.
    while peer.offer(&mut channel, manifest.signed()) != Verdict::Taken {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(fs::read(alder.inbox("f")).unwrap() == content);
}

#[test]
fn a_path_that_leads_out_of_the_inbox_is_refused_and_nothing_else() {
    let (group, alder, a) = alone();
    let evil = Scripted::new();
    let (_conn, mut channel) = evil.join(&a, &group);
    for path in [
        "../evil",
        "a/../../evil",
        "/tmp/evil",
        "a//evil",
        "./evil",
        "ev\0il",
    ] {
        let holds = "x".repeat(path.len());
        let mut bytes = evil.sign(&holds, b"evil").signed().bytes.clone();
        let at = bytes
            .windows(path.len())
            .position(|window| window == holds.as_bytes())
            .unwrap();
        bytes[at..at + path.len()].copy_from_slice(path.as_bytes());
        let signature = evil.identity.sign(b"meshbox manifest 1\0", &bytes);
        let offer = Offer {
            age: 0,
            signed: SignedManifest { bytes, signature },
            inline: vec![Some(Bytes::from_static(b"evil"))],
        };
        let verdict = evil.offer_inline(&mut channel, offer);
        assert!(
            matches!(&verdict, Verdict::Refused(why) if why.contains("cannot be decoded")),
            "{path}: {verdict:?}"
        );
    }
    for room in ["inbox", "partial", "quarantine"] {
        assert_eq!(alder.names_in(room), [""; 0], "{room}");
    }
    assert!(!alder.state().join("evil").exists());
    let good = Offer {
        age: 0,
        signed: evil.sign("good", b"good").signed().clone(),
        inline: vec![Some(Bytes::from_static(b"good"))],
    };
    assert_eq!(evil.offer_inline(&mut channel, good), Verdict::Taken);
    assert_eq!(alder.names_in("inbox"), ["good"]);
}

#[test]
fn a_manifest_at_odds_with_itself_is_quarantined_once_and_never_fetched_again() {
    let (group, alder, a) = alone();
    let liar = Scripted::new();
    let (_conn, mut channel) = liar.join(&a, &group);
    let content = pattern(2 * LEAF as usize);
    let mut says = manifest_of(liar.id(), "f", &content);
    if let EntryKind::File { digest, .. } = &mut says.entries[0].kind {
        *digest = Digest([7; 32]);
    }
    let manifest = says.sign(&liar.identity);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let _bulk = liar.serve(&a, &group, move |request| {
        count.fetch_add(1, Ordering::Relaxed);
        range_of(&content, request)
    });
    for _ in 0..3 {
        let verdict = liar.offer(&mut channel, manifest.signed());
        assert!(
            matches!(&verdict, Verdict::Refused(why) if why.contains("contradicts itself")),
            "{verdict:?}"
        );
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "both chunks, once");
    assert_eq!(alder.spool().counts().quarantined, 1);
    let row = alder.wait_row(manifest.id(), "refused");
    assert_eq!(row.error.as_deref(), Some("manifest contradicts itself"));
    assert_eq!(alder.names_in("inbox"), [""; 0]);
    assert_eq!(alder.names_in("partial"), [""; 0]);
}

#[test]
fn forgeries_and_broken_frames_leave_nothing_behind() {
    let (group, alder, a) = alone();
    let forger = Scripted::new();
    let (conn, mut channel) = forger.join(&a, &group);
    let mut signed = forger.sign("forged", b"x").signed().clone();
    signed.signature.0[3] ^= 1;
    let offer = Offer {
        age: 0,
        signed,
        inline: vec![Some(Bytes::from_static(b"x"))],
    };
    let verdict = forger.offer_inline(&mut channel, offer);
    assert!(
        matches!(&verdict, Verdict::Refused(why) if why.contains("signature")),
        "{verdict:?}"
    );
    let wrong = forger.sign("wrong", b"x");
    let offer = Offer {
        age: 0,
        signed: wrong.signed().clone(),
        inline: vec![Some(Bytes::from_static(b"y"))],
    };
    let verdict = forger.offer_inline(&mut channel, offer);
    assert!(matches!(verdict, Verdict::Deferred(_)), "{verdict:?}");
    let row = alder.wait_row(wrong.id(), "deferred");
    assert!(
        row.error
            .is_some_and(|why| why.contains("sent wrong bytes"))
    );
    // A kind of frame from the future is passed over, one that is too long ends the session.
    let unknown = [0, 0, 0, 3, 200, 1, 2];
    forger
        .runtime
        .block_on(channel.send.write_all(&unknown))
        .unwrap();
    forger.settle(&mut channel);
    let long = (FRAME_MAX as u32 + 1).to_be_bytes();
    forger
        .runtime
        .block_on(channel.send.write_all(&long))
        .unwrap();
    let closed = forger.runtime.block_on(conn.closed());
    assert!(closed.to_string().contains("the limit is"), "{closed}");
    eventually("disconnected", || !connected(&a, forger.id()));
    assert_eq!(alder.names_in("inbox"), [""; 0]);
    assert!(alder.row(wrong.id()).is_some(), "and alder goes on");
}

#[test]
fn a_bundle_its_origin_no_longer_owes_is_not_waited_for() {
    let (group, alder, a) = alone();
    let origin = Scripted::new();
    let (conn, mut channel) = origin.join(&a, &group);
    let content = pattern(2 * LEAF as usize);
    let _bulk = origin.serve(&a, &group, move |request| {
        if request.offset == 0 {
            range_of(
                &content,
                RangeRequest {
                    len: LEAF,
                    ..request
                },
            )
        } else {
            vec![RangeStatus::NotHeld as u8]
        }
    });
    let manifest = origin.sign("f", &pattern(2 * LEAF as usize));
    let offer = Offer {
        age: 0,
        signed: manifest.signed().clone(),
        inline: vec![],
    };
    origin.say(&mut channel, &Frame::Offer(Box::new(offer)));
    assert_eq!(origin.hear_owed(&mut channel), [manifest.id()]);
    alder.wait_row(manifest.id(), "deferred");
    assert_eq!(alder.names_in("partial").len(), 1);
    // Nobody but the origin can end it.
    let other = Scripted::new();
    let (_other, mut theirs) = other.join(&a, &group);
    other.say(&mut theirs, &Frame::Withdrawn(vec![manifest.id()]));
    other.settle(&mut theirs);
    alder.wait_row(manifest.id(), "deferred");
    // Unanswered, it is asked again at the next connection.
    conn.close(0u32.into(), b"");
    let (_conn, mut channel) = origin.join(&a, &group);
    assert_eq!(origin.hear_owed(&mut channel), [manifest.id()]);
    origin.say(&mut channel, &Frame::Withdrawn(vec![manifest.id()]));
    assert_eq!(alder.wait_row(manifest.id(), "withdrawn").error, None);
    eventually("removed", || alder.names_in("partial").is_empty());
}

#[test]
fn who_asks_is_told_what_is_not_owed() {
    let (group, alder, a) = alone();
    let peer = Scripted::new();
    let (_conn, mut channel) = peer.join(&a, &group);
    let owed = alder.put("f", b"for everybody");
    let unknown = BundleId([3; 32]);
    peer.say(&mut channel, &Frame::Owed(vec![owed, unknown]));
    loop {
        if let Frame::Withdrawn(ids) = peer.hear(&mut channel) {
            assert_eq!(ids, [unknown]);
            break;
        }
    }
}
