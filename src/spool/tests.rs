//! Two spools in one process, joined by function calls instead of a mesh.

#[cfg(test)]
mod cancels;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod custody;
#[cfg(test)]
mod delta;
#[cfg(test)]
mod expiry;
#[cfg(test)]
mod failed_seals;
#[cfg(test)]
mod failed_sync;
#[cfg(test)]
mod growth;
#[cfg(test)]
mod hashing;
#[cfg(test)]
mod heal;
#[cfg(test)]
mod holes;
#[cfg(test)]
mod home;
#[cfg(test)]
mod leaving;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod linked;
#[cfg(test)]
mod links;
#[cfg(test)]
mod long;
#[cfg(test)]
mod marks;
#[cfg(test)]
mod membership;
#[cfg(test)]
mod names;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod publishing;
#[cfg(test)]
mod races;
#[cfg(test)]
mod rebuilt;
#[cfg(test)]
mod records;
#[cfg(test)]
mod renames;
#[cfg(test)]
mod rooms;
#[cfg(test)]
mod routes;

mod rows;
#[cfg(test)]
mod send;
#[cfg(test)]
mod taken_names;
#[cfg(test)]
mod tree_times;
#[cfg(test)]
mod trees;
#[cfg(test)]
mod waits;

use std::fs;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use std::path::Path;

use tempfile::TempDir;

use super::start::boot_id;
use super::*;
use crate::bundle::{DeliveryState, InboxStage, Stage, VerifiedManifest};
use crate::digest::{Digest, INLINE_MAX, LEAF};

/// A spool in a directory of its own, which outlives it.
struct Node {
    dir: TempDir,
    identity: Identity,
    limits: Limits,
    dress: Dress,
    spool: Option<Arc<Spool>>,
    receipts: crossbeam_channel::Receiver<Receipt>,
}

impl Node {
    fn new() -> Self {
        let (_, receipts) = crossbeam_channel::unbounded();
        let mut node = Self {
            dir: tempfile::tempdir().unwrap(),
            identity: Identity::generate(),
            limits: Limits::default(),
            dress: Dress::default(),
            spool: None,
            receipts,
        };
        node.start();
        node
    }

    fn start(&mut self) {
        let config = SpoolConfig {
            state: self.dir.path().join("state"),
            lifetime: Duration::from_secs(3600),
            sealers: 2,
            limits: self.limits,
            dress: self.dress,
            identity: self.identity.clone(),
        };
        let spool = Spool::open(config).unwrap();
        let (send, receipts) = crossbeam_channel::unbounded();
        spool.doorbell.subscribe(move |event| {
            if let Event::ReceiptReady(receipt) = event {
                send.send(receipt.clone()).unwrap();
            }
        });
        self.receipts = receipts;
        self.spool = Some(spool);
    }

    fn stop(&mut self) {
        if let Some(spool) = self.spool.take() {
            spool.close();
        }
    }

    fn spool(&self) -> &Arc<Spool> {
        self.spool.as_ref().unwrap()
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn id(&self) -> PeerId {
        self.identity.id()
    }

    fn knows(&self, other: &Self, name: &str) {
        self.spool()
            .member_seen(other.id(), &PeerName::parse(name).unwrap(), &[], true)
            .unwrap();
    }

    fn outbox(&self, path: &str) -> PathBuf {
        self.state().join("outbox").join(path)
    }

    fn inbox(&self, path: &str) -> PathBuf {
        self.state().join("inbox").join(path)
    }

    /// A file that is being written through the mount.
    fn open(&self, path: &str, bytes: &[u8]) {
        fs::create_dir_all(self.outbox(path).parent().unwrap()).unwrap();
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(self.outbox(path))
            .unwrap();
        let gate = self.spool().outbox.gate(self.ino(path));
        let mut guard = gate.lock();
        if !self
            .spool()
            .outbox
            .before_modify(&mut guard, &rel(path))
            .unwrap()
        {
            self.spool()
                .copy_out(&mut guard, &file, &rel(path))
                .unwrap();
        }
        file.set_len(0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        guard.reshaped();
    }

    fn close(&self, path: &str) {
        let gate = self.spool().outbox.gate(self.ino(path));
        let _held = gate.lock();
        self.spool().outbox.mark_closed(gate.ino(), &rel(path));
    }

    /// Writes as a program would through the mount, and seals.
    fn drop_file(&self, path: &str, bytes: &[u8]) -> BundleId {
        self.open(path, bytes);
        self.close(path);
        match self.seal(path) {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    fn seal(&self, path: &str) -> SealOutcome {
        self.ask_seal(path).recv().unwrap()
    }

    fn ask_seal(&self, path: &str) -> crossbeam_channel::Receiver<SealOutcome> {
        let gate = self
            .spool()
            .outbox
            .gate(fs::metadata(self.outbox(path)).unwrap().ino());
        let (done, outcome) = crossbeam_channel::bounded(1);
        let name = SealName {
            path: RelPath::parse(path).unwrap(),
            renamed_from: None,
        };
        let done = move |outcome| done.send(outcome).unwrap();
        self.spool()
            .outbox
            .seal(SealRequest::alone(gate, name, done));
        outcome
    }

    /// What is sealed was sealed an hour ago.
    fn an_hour_passes(&self) {
        self.spool().ledger.reclock(|sealed_at| sealed_at - 3600);
    }

    fn ino(&self, path: &str) -> u64 {
        fs::metadata(self.outbox(path)).unwrap().ino()
    }

    fn inbox_ino(&self, path: &str) -> u64 {
        fs::metadata(self.inbox(path)).unwrap().ino()
    }

    /// The machine lost its power: started again under another boot id.
    fn power_loss(&mut self) {
        self.stop();
        self.lost_power();
        self.start();
    }

    /// The machine lost its power while the state was as it is.
    fn lost_power(&self) {
        fs::write(self.state().join("boot"), "another boot").unwrap();
    }

    /// Waits until nothing of the inbox is in doubt any more.
    fn checked(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while self.spool().counts().unverified > 0 {
            assert!(std::time::Instant::now() < deadline, "still in doubt");
            std::thread::yield_now();
        }
    }

    fn manifest(&self, bundle: BundleId) -> VerifiedManifest {
        self.spool().ledger.manifest(bundle).unwrap().unwrap()
    }

    /// Takes a bundle from `origin` as a fetch would; returns how many bytes it asked for.
    fn fetch(&self, origin: &Self, bundle: BundleId) -> u64 {
        let manifest = origin.manifest(bundle).signed().clone().verify().unwrap();
        let mut asked = 0;
        match self.spool().offered(manifest, origin.id()).unwrap() {
            Offered::Wanted(mut incoming) => {
                for entry in 0..incoming.manifest().manifest().entries.len() {
                    // A directory, or a file that is here already, is not asked for.
                    if incoming.missing(entry).is_empty() {
                        continue;
                    }
                    let mut reader = origin
                        .spool()
                        .open_content(bundle, entry, self.id())
                        .unwrap();
                    for range in incoming.missing(entry) {
                        for offset in range.clone().step_by(LEAF as usize) {
                            let len = (range.end - offset).min(LEAF) as usize;
                            let bytes = reader.read(offset, len).unwrap();
                            asked += len as u64;
                            incoming.accept_chunk(entry, offset, &bytes).unwrap();
                        }
                    }
                }
                while let Some(wait) = incoming.hash_zeros().unwrap() {
                    std::thread::sleep(wait);
                }
                incoming.finish().unwrap().publish().unwrap();
            }
            // Only its name was new.
            Offered::AwaitingDurable => {}
            other => panic!("{other:?}"),
        }
        asked
    }

    /// Waits for the next receipt this node is ready to give.
    fn receipt(&self) -> Receipt {
        self.receipts.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

fn pair() -> (Node, Node) {
    let (alder, birch) = (Node::new(), Node::new());
    alder.knows(&birch, "birch");
    birch.knows(&alder, "alder");
    (alder, birch)
}

fn rel(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn a_file_goes_from_outbox_to_inbox_and_comes_back_as_a_receipt() {
    for size in [
        0,
        1,
        INLINE_MAX as usize,
        INLINE_MAX as usize + 1,
        LEAF as usize + 1,
        3 * LEAF as usize,
    ] {
        let (alder, birch) = pair();
        let bytes = pattern(size);
        let bundle = alder.drop_file("a/b.bin", &bytes);
        assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
        assert_eq!(birch.fetch(&alder, bundle), size as u64);
        assert_eq!(
            fs::read(birch.inbox("a/b.bin")).unwrap(),
            bytes,
            "size {size}"
        );
        let receipt = birch.receipt();
        assert!(alder.spool().take_receipt(&receipt).unwrap());
        assert!(!alder.spool().ledger.is_pending(bundle, birch.id()));
        assert_eq!(alder.spool().outbound(None, 9)[0].state, "delivered");
    }
}

#[test]
fn a_forged_receipt_changes_nothing() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    let stranger = Identity::generate();
    let mut receipt = Receipt::sign(&stranger, bundle, alder.id());
    receipt.recipient = birch.id();
    assert!(!alder.spool().take_receipt(&receipt).unwrap());
    assert!(alder.spool().ledger.is_pending(bundle, birch.id()));
}

#[test]
fn wrong_bytes_are_refused_before_they_are_written() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(3 * LEAF as usize));
    let Offered::Wanted(mut incoming) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("not wanted")
    };
    let wrong = incoming.accept_chunk(0, LEAF, &vec![9; LEAF as usize]);
    assert!(
        matches!(wrong, Err(IntakeError::WrongBytes { index: 1, .. })),
        "{wrong:?}"
    );
    assert_eq!(incoming.missing(0).first(), Some(&(0..3 * LEAF)));
    assert!(matches!(incoming.finish(), Err(FinishError::Incomplete(_))));
    assert!(!birch.inbox("a").exists());
}

#[test]
fn s10_the_digest_travels_and_a_manifest_that_contradicts_it_ends_in_quarantine() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", &pattern(2 * LEAF as usize));
    let mut lie = alder.manifest(bundle).manifest().clone();
    if let crate::bundle::EntryKind::File { digest, .. } = &mut lie.entries[0].kind {
        *digest = Digest([7; 32]);
    }
    let Offered::Wanted(mut incoming) = birch
        .spool()
        .offered(lie.sign(&alder.identity), alder.id())
        .unwrap()
    else {
        panic!("not wanted")
    };
    let bytes = pattern(2 * LEAF as usize);
    for offset in [0, LEAF] {
        incoming
            .accept_chunk(0, offset, &bytes[offset as usize..(offset + LEAF) as usize])
            .unwrap();
    }
    let Err(FinishError::Quarantined(quarantined)) = incoming.finish() else {
        panic!("not quarantined")
    };
    assert!(quarantined.manifest_contradicts_itself);
    assert!(quarantined.at.exists() && !birch.inbox("a").exists());
    assert_eq!(birch.spool().counts().quarantined, 1);
}

#[test]
fn content_is_a_link_and_goes_when_everybody_has_it_and_no_name_shows_it() {
    let (alder, birch) = pair();
    let bytes = pattern(100_000);
    let content = alder.spool().layout().content(Digest::of(&bytes));
    let bundle = alder.drop_file("a", &bytes);
    let meta = fs::metadata(alder.outbox("a")).unwrap();
    assert_eq!(meta.nlink(), 2);
    assert_eq!(
        alder.spool().outbox.visible_links(meta.ino(), 2),
        1,
        "the content link is not shown"
    );
    fs::remove_file(alder.outbox("a")).unwrap();
    let left = alder
        .spool()
        .outbox
        .visible_links(meta.ino(), meta.nlink() - 1);
    assert_eq!(left, 0, "the content link is no name");
    alder.spool().outbox_removed(&rel("a"), meta.ino(), left);
    assert!(content.exists(), "birch still waits");
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    assert!(!content.exists(), "nobody needs it");
}

#[test]
fn sealed_bytes_reach_the_receiver_although_the_file_was_modified_since() {
    let (alder, birch) = pair();
    let old = pattern(2 * LEAF as usize);
    let bundle = alder.drop_file("a", &old);
    let mut reader = alder.spool().open_content(bundle, 0, birch.id()).unwrap();
    assert_eq!(reader.read(0, 10).unwrap(), old[..10]);
    let at = alder.outbox("a");
    let file = File::options().read(true).write(true).open(&at).unwrap();
    let rel = RelPath::parse("a").unwrap();
    let gate = alder.spool().outbox.gate(file.metadata().unwrap().ino());
    {
        let mut guard = gate.lock();
        assert!(
            !alder
                .spool()
                .outbox
                .before_modify(&mut guard, &rel)
                .unwrap(),
            "the old bytes are needed"
        );
        alder.spool().copy_out(&mut guard, &file, &rel).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"new!", 0).unwrap();
        let _ring = guard.wrote(0, 4);
    }
    assert_eq!(
        reader.read(0, 10).unwrap(),
        old[..10],
        "a reader opened before goes on with the old bytes"
    );
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), old);
}

#[test]
fn a_modification_costs_no_copy_when_nobody_waits() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"old");
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let ino = fs::metadata(alder.outbox("a")).unwrap().ino();
    let gate = alder.spool().outbox.gate(ino);
    assert!(
        alder
            .spool()
            .outbox
            .before_modify(&mut gate.lock(), &RelPath::parse("a").unwrap())
            .unwrap()
    );
    assert_eq!(
        fs::metadata(alder.outbox("a")).unwrap().nlink(),
        1,
        "the link is gone before the bytes change"
    );
}

#[test]
fn a_writer_that_comes_back_while_hashing_spoils_the_seal() {
    let alder = Node::new();
    fs::write(alder.outbox("a"), b"x").unwrap();
    let gate = alder
        .spool()
        .outbox
        .gate(fs::metadata(alder.outbox("a")).unwrap().ino());
    gate.lock().add_writer();
    assert!(matches!(alder.seal("a"), SealOutcome::Changed));
    gate.lock().remove_writer();
    assert!(matches!(alder.seal("a"), SealOutcome::Sealed(_)));
}

#[test]
fn equal_content_moves_no_bytes_but_only_for_an_origin_that_had_to_do_with_it() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    let bytes = pattern(2 * LEAF as usize);
    let first = alder.drop_file("a", &bytes);
    assert_eq!(birch.fetch(&alder, first), 2 * LEAF);
    let again = alder.drop_file("other/name", &bytes);
    assert_eq!(birch.fetch(&alder, again), 0);
    assert_eq!(fs::read(birch.inbox("other/name")).unwrap(), bytes);
    let same_by_cedar = cedar.drop_file("c", &bytes);
    assert_eq!(
        birch.fetch(&cedar, same_by_cedar),
        2 * LEAF,
        "a digest alone buys nothing"
    );
}

#[test]
fn a_newer_version_replaces_and_an_older_one_that_comes_late_does_not() {
    let (alder, birch) = pair();
    let first = alder.drop_file("a", b"one");
    let old = alder.manifest(first);
    let Offered::Wanted(mut late) = birch.spool().offered(old, alder.id()).unwrap() else {
        panic!("not wanted")
    };
    late.accept_chunk(0, 0, b"one").unwrap();
    let second = alder.drop_file("a", b"two");
    birch.fetch(&alder, second);
    late.finish().unwrap().publish().unwrap();
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
    assert_eq!(alder.spool().outbound(None, 9)[1].state, "superseded");
}

#[test]
fn a_version_that_was_renamed_over_or_removed_is_superseded_by_the_next_of_its_path() {
    let (alder, birch) = pair();
    let first = alder.drop_file("a", b"one");
    alder.drop_file("temp", b"two");
    let ino = fs::metadata(alder.outbox("a")).unwrap().ino();
    fs::rename(alder.outbox("temp"), alder.outbox("a")).unwrap();
    alder.spool().outbox_removed(&rel("a"), ino, 0);
    alder.spool().outbox_renamed(&rel("temp"), &rel("a"), false);
    assert!(matches!(alder.seal("a"), SealOutcome::Sealed(_)));
    assert!(!alder.spool().ledger.is_pending(first, birch.id()));
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        1,
        "only the newest waits"
    );
}

#[test]
fn two_origins_of_one_path_are_both_kept_under_lasting_names() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&alder, alder.drop_file("d/a.txt", b"alder"));
    birch.fetch(&cedar, cedar.drop_file("d/a.txt", b"cedar"));
    assert_eq!(fs::read(birch.inbox("d/a.txt")).unwrap(), b"alder");
    assert_eq!(fs::read(birch.inbox("d/a~cedar.txt")).unwrap(), b"cedar");
    birch
        .spool()
        .inbox_unlink(&RelPath::parse("d/a.txt").unwrap())
        .unwrap();
    birch.fetch(&cedar, cedar.drop_file("d/a.txt", b"cedar 2"));
    assert_eq!(fs::read(birch.inbox("d/a~cedar.txt")).unwrap(), b"cedar 2");
    assert!(
        !birch.inbox("d/a.txt").exists(),
        "consumed, and nobody else's name"
    );
    birch.fetch(&alder, alder.drop_file("e", b"a file"));
    birch.fetch(&cedar, cedar.drop_file("e/f", b"a directory there"));
    assert_eq!(fs::read(birch.inbox("e")).unwrap(), b"a file");
    assert_eq!(
        fs::read(birch.inbox("e~cedar/f")).unwrap(),
        b"a directory there"
    );
}

#[test]
fn a_consumed_file_never_comes_back() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    birch.fetch(&alder, bundle);
    let receipt = birch.receipt();
    birch
        .spool()
        .inbox_unlink(&RelPath::parse("a").unwrap())
        .unwrap();
    for _ in 0..2 {
        match birch
            .spool()
            .offered(alder.manifest(bundle), alder.id())
            .unwrap()
        {
            Offered::Settled(again) => assert_eq!(again, receipt),
            other => panic!("{other:?}"),
        }
        birch.stop();
        birch.start();
        assert!(!birch.inbox("a").exists());
    }
    assert_eq!(birch.spool().inbound(None, 1)[0].state, "consumed");
}

#[test]
fn a_bundle_sealed_alone_reaches_the_first_member_although_its_name_is_gone() {
    let (alder, birch) = (Node::new(), Node::new());
    let bundle = alder.drop_file("a", b"alone");
    let ino = fs::metadata(alder.outbox("a")).unwrap().ino();
    fs::remove_file(alder.outbox("a")).unwrap();
    alder
        .spool()
        .outbox_removed(&RelPath::parse("a").unwrap(), ino, 0);
    assert_eq!(alder.spool().counts().outbound_pending, 1);
    birch.knows(&alder, "alder");
    alder.knows(&birch, "birch");
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        1
    );
    birch.fetch(&alder, bundle);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"alone");
}

#[test]
fn who_joins_later_gets_what_the_outbox_still_shows() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    birch.fetch(&alder, bundle);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    let cedar = Node::new();
    cedar.knows(&alder, "alder");
    alder.knows(&cedar, "cedar");
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(cedar.id(), None, 9)
            .unwrap()
            .len(),
        1
    );
    cedar.fetch(&alder, bundle);
    assert_eq!(
        alder.spool().outbound(None, 1)[0].state,
        "queued",
        "cedar's receipt is still out"
    );
}

#[test]
fn the_shown_trees_are_for_others_too_unless_they_could_reach_them_on_disk() {
    let mode = |path: PathBuf| path.metadata().unwrap().mode() & 0o777;
    let node = Node::new();
    assert_eq!(mode(node.state()), 0o700);
    assert_eq!(mode(node.outbox("")), 0o755);
    assert_eq!(mode(node.inbox("")), 0o755);
    let open = tempfile::tempdir().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = open.path().join("outbox");
    super::private::make_shown_root(&root, open.path()).unwrap();
    assert_eq!(mode(root), 0o700);
}

#[test]
fn after_a_restart_unchanged_files_are_not_sent_again_also_after_chmod_and_link() {
    let (mut alder, birch) = pair();
    for name in ["plain", "chmodded", "linked"] {
        alder.drop_file(name, name.as_bytes());
    }
    let sealed = alder.spool().outbound(None, 99).len();
    alder.an_hour_passes();
    alder.stop();
    fs::set_permissions(alder.outbox("chmodded"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(alder.outbox("linked"), alder.state().join("elsewhere")).unwrap();
    alder.start();
    for file in alder.spool().outbox.recovered() {
        assert!(!file.incomplete, "{file:?}");
        assert!(matches!(
            alder.seal(&file.path.to_string()),
            SealOutcome::Sealed(_)
        ));
    }
    assert_eq!(alder.spool().outbound(None, 99).len(), sealed);
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        3,
        "and what was queued is still queued"
    );
}

#[test]
fn after_a_restart_a_closed_file_is_sealed_and_an_open_one_is_incomplete() {
    let mut alder = Node::new();
    for (name, closed) in [("closed", true), ("open", false)] {
        fs::write(alder.outbox(name), name).unwrap();
        let ino = fs::metadata(alder.outbox(name)).unwrap().ino();
        let rel = RelPath::parse(name).unwrap();
        let gate = alder.spool().outbox.gate(ino);
        assert!(
            alder
                .spool()
                .outbox
                .before_modify(&mut gate.lock(), &rel)
                .unwrap()
        );
        if closed {
            alder.spool().outbox.mark_closed(ino, &rel);
        }
    }
    alder.stop();
    alder.start();
    let mut recovered = alder.spool().outbox.recovered();
    recovered.sort_by(|a, b| a.path.cmp(&b.path));
    let seen: Vec<_> = recovered
        .iter()
        .map(|file| (file.path.to_string(), file.incomplete))
        .collect();
    assert_eq!(
        seen,
        [("closed".to_owned(), false), ("open".to_owned(), true)]
    );
    assert_eq!(alder.spool().counts().incomplete, 1);
}

#[test]
fn s13_after_a_power_loss_what_was_not_sealed_is_incomplete_and_unrecorded_names_are_quarantined() {
    let (mut alder, birch) = pair();
    fs::write(alder.outbox("closed"), b"maybe torn").unwrap();
    let ino = fs::metadata(alder.outbox("closed")).unwrap().ino();
    alder
        .spool()
        .outbox
        .mark_closed(ino, &RelPath::parse("closed").unwrap());
    let bundle = birch.drop_file("from-birch", b"x");
    alder.fetch(&birch, bundle);
    alder.receipt();
    alder.stop();
    fs::write(alder.inbox("unrecorded"), b"torn").unwrap();
    fs::write(alder.state().join("boot"), "another boot").unwrap();
    alder.start();
    let recovered = alder.spool().outbox.recovered();
    assert!(
        recovered.len() == 1 && recovered[0].incomplete,
        "{recovered:?}"
    );
    assert!(!alder.inbox("unrecorded").exists());
    assert_eq!(alder.spool().counts().quarantined, 1);
    assert_eq!(
        fs::read(alder.inbox("from-birch")).unwrap(),
        b"x",
        "what was durable stays"
    );
}

#[test]
fn a_publish_cut_off_after_its_intent_is_rolled_forward_and_a_removed_name_counts_as_consumed() {
    for removed in [false, true] {
        let (alder, mut birch) = pair();
        let bundle = alder.drop_file("a", b"x");
        let manifest = alder.manifest(bundle);
        // What the disk shows right after the rename, before the rows of the publish.
        let staged = birch.state().join("partial").join(format!("{bundle}.0"));
        fs::write(&staged, b"x").unwrap();
        let ino = fs::metadata(&staged).unwrap().ino();
        let names = vec![(0, RelPath::parse("a").unwrap(), ino)];
        let mut batch = Batch::default();
        let intent = crate::spool::inbox::probe::Intent {
            signed: manifest.signed().clone(),
            slices: 0,
            names,
        };
        batch.insert(crate::spool::inbox::probe::INTENTS, &bundle, &intent);
        birch.spool().journal.submit(batch).unwrap();
        birch.stop();
        if removed {
            fs::remove_file(&staged).unwrap();
        }
        birch.start();
        assert_eq!(birch.inbox("a").exists(), !removed);
        birch.spool().journal.flush().unwrap();
        assert!(birch.spool().ledger.receipt(bundle).is_some());
    }
}

#[test]
fn an_interrupted_fetch_goes_on_with_what_is_there_after_hashing_it_again() {
    let (alder, mut birch) = pair();
    let bytes = pattern(4 * LEAF as usize);
    let bundle = alder.drop_file("a", &bytes);
    let Offered::Wanted(mut incoming) = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap()
    else {
        panic!("not wanted")
    };
    for offset in [0, LEAF, 3 * LEAF] {
        incoming
            .accept_chunk(0, offset, &bytes[offset as usize..(offset + LEAF) as usize])
            .unwrap();
    }
    incoming.park("connection lost".into());
    assert_eq!(birch.spool().inbound(None, 1)[0].state, "deferred");
    birch.stop();
    // One of the chunks was damaged on the disk meanwhile.
    let partial = birch.state().join("partial").join(format!("{bundle}.0"));
    let file = File::options().write(true).open(&partial).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damage", LEAF).unwrap();
    birch.start();
    assert_eq!(birch.fetch(&alder, bundle), 2 * LEAF);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), bytes);
}

#[test]
fn one_bundle_is_fetched_once_at_a_time() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    let first = birch
        .spool()
        .offered(alder.manifest(bundle), alder.id())
        .unwrap();
    assert!(matches!(
        birch
            .spool()
            .offered(alder.manifest(bundle), alder.id())
            .unwrap(),
        Offered::Busy
    ));
    drop(first);
    assert!(matches!(
        birch
            .spool()
            .offered(alder.manifest(bundle), alder.id())
            .unwrap(),
        Offered::Wanted(_)
    ));
}

#[test]
fn a_peer_that_is_no_recipient_gets_nothing() {
    let (alder, _birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    let stranger = Identity::generate().id();
    assert!(matches!(
        alder.spool().open_content(bundle, 0, stranger),
        Err(ServeError::NotHeld)
    ));
}

#[test]
fn moving_out_of_the_inbox_forwards_the_inode() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    birch.fetch(&alder, bundle);
    let ino = fs::metadata(birch.inbox("a")).unwrap().ino();
    let (from, to) = (RelPath::parse("a").unwrap(), RelPath::parse("b").unwrap());
    birch.spool().inbox_to_outbox(&from, &to, true).unwrap();
    assert_eq!(fs::metadata(birch.outbox("b")).unwrap().ino(), ino);
    assert!(matches!(birch.seal("b"), SealOutcome::Sealed(_)));
    let again = birch.spool().inbox_to_outbox(&from, &to, true).unwrap_err();
    assert_eq!(again.errno(), libc::EEXIST.min(libc::ENOENT), "{again}");
}

#[test]
fn the_state_is_locked_and_a_newer_format_is_refused() {
    let mut alder = Node::new();
    let config = || SpoolConfig {
        state: alder.state(),
        lifetime: Duration::from_secs(1),
        sealers: 1,
        limits: crate::spool::Limits::default(),
        dress: crate::spool::Dress::default(),
        identity: Identity::generate(),
    };
    let refused = Spool::open(config()).unwrap_err();
    assert!(matches!(refused, SpoolError::InUse { .. }));
    let holder = format!("process {}:", std::process::id());
    assert!(refused.to_string().contains(&holder), "{refused}");
    let config = config();
    alder.stop();
    fs::write(alder.state().join("format"), "2\n").unwrap();
    assert!(matches!(
        Spool::open(config),
        Err(SpoolError::NewerFormat { found: 2, .. })
    ));
}

#[test]
fn the_epoch_grows_with_each_start_and_above_what_a_peer_has_seen() {
    let mut alder = Node::new();
    let (first, incarnation) = alder.spool().epoch();
    alder.spool().raise_epoch(first + 10).unwrap();
    assert_eq!(alder.spool().epoch().0, first + 11);
    alder.stop();
    alder.start();
    assert_eq!(alder.spool().epoch().0, first + 12);
    assert_ne!(alder.spool().epoch().1, incarnation);
}
