//! A disk that fails in the middle of the switch, and what comes in between then.

use super::*;
use crate::spool::{InboxObserver, NewName};

/// Right before the renames of a switch it puts something in the way of a name, if there is one, so that this one's fails.
struct InTheWay(Option<PathBuf>);

impl InboxObserver for InTheWay {
    fn prepare(&self, _replaced: &[RelPath]) {}
    fn unprepare(&self) {}
    fn switch(&self, give: &mut dyn FnMut()) {
        if let Some(name) = &self.0 {
            fs::remove_file(name).unwrap();
            fs::create_dir(name).unwrap();
            fs::write(name.join("in the way"), b"").unwrap();
        }
        give();
    }
    fn published(&self, _names: &[NewName]) {}
    fn renamed(&self, _from: &RelPath, _to: &RelPath, _replaced: Option<u64>) {}
    fn removed(&self, _path: &RelPath) {}
}

/// `d/a` and `d/b` with this text, as a bundle that is merged into `d`.
fn pair_of_files(alder: &Node, text: &str) -> BundleId {
    let bytes = text.as_bytes();
    if alder.outbox("d").exists() {
        fs::rename(alder.outbox("d"), alder.outbox(&format!("aside {text}"))).unwrap();
    }
    alder.fill(".many", &[("a", bytes), ("b", bytes)]);
    alder.commit(".many", "d")
}

impl Node {
    /// Publishes a bundle; the second of its renames fails.
    fn fails_in_the_middle(&self, alder: &Self, bundle: BundleId) {
        let (verified, _) = self.whole(alder, bundle);
        let in_the_way = self.inbox("d/b");
        self.spool()
            .observe_inbox(Arc::new(InTheWay(Some(in_the_way.clone()))));
        verified.publish().unwrap_err();
        self.spool().observe_inbox(Arc::new(InTheWay(None)));
        fs::remove_dir_all(in_the_way).unwrap();
    }

    fn both_show(&self, text: &str) {
        for name in ["d/a", "d/b"] {
            assert_eq!(self.looked_at(name).as_deref(), Some(text), "{name}");
        }
    }

    /// The next offer, which asks for nothing and finishes what was shown.
    fn finished_by_an_offer(&self, alder: &Self, bundle: BundleId) {
        let offered = self.spool().offered(alder.manifest(bundle), alder.id());
        let offered = offered.unwrap();
        assert!(matches!(offered, Offered::AwaitingDurable), "{offered:?}");
        self.spool().journal.flush().unwrap();
        assert!(self.spool().ledger.receipt(bundle).is_some());
        self.nothing_left_over();
    }
}

#[test]
fn a_bundle_that_failed_in_the_middle_of_its_renames_is_finished_by_its_next_offer() {
    let (alder, birch) = pair();
    birch.fetch(&alder, pair_of_files(&alder, "old"));
    let bundle = pair_of_files(&alder, "new");
    birch.fails_in_the_middle(&alder, bundle);
    birch.finished_by_an_offer(&alder, bundle);
    birch.both_show("new");
}

#[test]
fn a_cancel_that_comes_too_late_does_not_keep_a_bundle_from_being_finished() {
    let (alder, birch) = pair();
    birch.fetch(&alder, pair_of_files(&alder, "old"));
    let bundle = pair_of_files(&alder, "new");
    birch.fails_in_the_middle(&alder, bundle);
    let scope = alder.manifest(bundle).manifest().scope.clone();
    let cancel = Cancel::sign(&alder.identity, bundle, CancelReason::Cancelled, scope, 60);
    birch.spool().take_cancel(&cancel, alder.id()).unwrap();
    birch.finished_by_an_offer(&alder, bundle);
    birch.both_show("new");
}

#[test]
fn an_older_bundle_does_not_go_over_a_newer_one_that_failed_in_the_middle() {
    let (alder, birch) = pair();
    birch.fetch(&alder, pair_of_files(&alder, "old"));
    let older = pair_of_files(&alder, "older");
    let newer = pair_of_files(&alder, "newer");
    let published = birch.publish_at(&alder, older, Step::Built, || {
        birch.fails_in_the_middle(&alder, newer);
        Go::On
    });
    published.unwrap().unwrap();
    birch.both_show("newer");
    birch.finished_by_an_offer(&alder, newer);
    birch.both_show("newer");
}

#[test]
fn a_newer_file_where_a_directory_was_removed_survives_a_kill_before_that_is_settled() {
    let (alder, mut birch) = pair();
    alder.fill(".many", &[("f", b"f"), ("g", b"g")]);
    let older = alder.commit(".many", "x");
    fs::rename(alder.outbox("x"), alder.outbox("aside")).unwrap();
    let newer = alder.drop_file("x", b"newer");
    let killed = birch.publish_at(&alder, older, Step::Recorded, || {
        for name in ["x/f", "x/g"] {
            birch.spool().inbox_unlink(&rel(name)).unwrap();
        }
        birch.spool().inbox_rmdir(&rel("x")).unwrap();
        birch.fetch(&alder, newer);
        birch.spool().journal.flush().unwrap();
        assert!(birch.spool().ledger.receipt(newer).is_some());
        Go::Killed
    });
    assert!(killed.is_err());
    birch.stop();
    birch.start();
    assert_eq!(birch.read_shown("x").as_deref(), Some("newer"));
}

#[test]
fn a_newer_file_where_an_empty_directory_was_removed_keeps_its_record() {
    let (alder, birch) = pair();
    alder.fill(".many", &[("f", b"f")]);
    fs::create_dir(alder.outbox(".many/empty")).unwrap();
    let older = alder.commit(".many", "x");
    fs::rename(alder.outbox("x"), alder.outbox("aside")).unwrap();
    let newer = alder.drop_file("x/empty", b"newer");
    let (mut ino, mut linked) = (0, None);
    let published = birch.publish_at(&alder, older, Step::Shown, || {
        birch.spool().inbox_rmdir(&rel("x/empty")).unwrap();
        birch.fetch(&alder, newer);
        ino = birch.inbox_ino("x/empty");
        linked = birch.spool().content.linked(ino);
        Go::On
    });
    published.unwrap().unwrap();
    assert_eq!(birch.read_shown("x/empty").as_deref(), Some("newer"));
    let record = birch.spool().content.record_of(ino).unwrap();
    assert!(record.is_some());
    assert_eq!(birch.spool().content.linked(ino), linked);
}

#[test]
fn an_empty_directory_that_is_removed_before_the_switch_is_made_again() {
    let (alder, birch) = pair();
    alder.fill(".many", &[("f", b"f")]);
    fs::create_dir(alder.outbox(".many/empty")).unwrap();
    birch.fetch(&alder, alder.commit(".many", "x"));
    fs::rename(alder.outbox("x"), alder.outbox("aside")).unwrap();
    alder.fill(".many", &[("g", b"g")]);
    fs::create_dir(alder.outbox(".many/empty")).unwrap();
    let bundle = alder.commit(".many", "x");
    let published = birch.publish_at(&alder, bundle, Step::Built, || {
        birch.spool().inbox_rmdir(&rel("x/empty")).unwrap();
        Go::On
    });
    published.unwrap().unwrap();
    assert!(birch.inbox("x/empty").is_dir());
    assert_eq!(birch.read_shown("x/g").as_deref(), Some("g"));
}
