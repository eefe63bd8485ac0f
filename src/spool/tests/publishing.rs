//! What comes in between the steps of publishing a bundle of many.

#[cfg(test)]
mod failing;

use std::thread;

use super::super::decision::most_names;
use super::super::inbox::intake::Verified;
use super::super::inbox::publish::INTENT_NAMES;
use super::super::inbox::under_way::Step;
use super::*;
use crate::bundle::{Cancel, CancelReason};

/// How a publish goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    /// The daemon was killed there.
    Killed,
}

impl Node {
    fn drop_many(&self, directory: &str, files: usize) -> BundleId {
        let names: Vec<String> = (0..files).map(|n| format!("{}/f{n}", n % 10)).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), n.as_bytes())).collect();
        self.fill(".many", &files);
        self.commit(".many", directory)
    }

    /// All bytes of a bundle of small files; how many were asked for.
    fn whole(&self, origin: &Self, bundle: BundleId) -> (Verified, u64) {
        let manifest = origin.manifest(bundle);
        let offered = self.spool().offered(manifest, origin.id());
        let Offered::Wanted(mut incoming) = offered.unwrap() else {
            panic!("not wanted")
        };
        let mut asked = 0;
        for entry in 0..incoming.manifest().manifest().entries.len() {
            if incoming.missing(entry).is_empty() {
                continue;
            }
            let reader = origin.spool().open_content(bundle, entry, self.id());
            let mut reader = reader.unwrap();
            let len = reader.len() as usize;
            let bytes = reader.read(0, len).unwrap();
            incoming.accept_chunk(entry, 0, &bytes).unwrap();
            asked += len as u64;
        }
        (incoming.finish().unwrap(), asked)
    }

    /// Publishes a bundle; `act` comes in between, when it first is at `step`.
    fn publish_at(
        &self,
        origin: &Self,
        bundle: BundleId,
        step: Step,
        act: impl FnOnce() -> Go,
    ) -> thread::Result<Result<Published, SpoolError>> {
        let (reached, at) = crossbeam_channel::bounded(0);
        let (tell, go) = crossbeam_channel::bounded(0);
        let mut waits = true;
        self.spool().inbox.publishing.pause(move |now| {
            if now == step && std::mem::take(&mut waits) {
                reached.send(()).unwrap();
                assert!(go.recv().unwrap() == Go::On, "killed, as the test wants it");
            }
        });
        let (verified, _) = self.whole(origin, bundle);
        thread::scope(|scope| {
            let publish = scope.spawn(|| verified.publish());
            at.recv_timeout(Duration::from_secs(60)).unwrap();
            tell.send(act()).unwrap();
            publish.join()
        })
    }

    fn files_below(&self, directory: &str) -> usize {
        let mut open = vec![self.inbox(directory)];
        let mut files = 0;
        while let Some(directory) = open.pop() {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries {
                let at = entry.unwrap().path();
                if at.is_dir() {
                    open.push(at);
                } else {
                    files += 1;
                }
            }
        }
        files
    }

    fn read_shown(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.inbox(path)).ok()
    }

    fn nothing_left_over(&self) {
        let partial: Vec<_> = fs::read_dir(self.state().join("partial"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(partial.is_empty(), "{partial:?}");
        let rows = self.spool().journal.rows(INTENT_NAMES.all(), 9).unwrap();
        assert!(rows.is_empty(), "{rows:?}");
    }
}

const MANY: usize = 600;

const STEPS: [Step; 4] = [Step::Chosen, Step::Built, Step::Shown, Step::Recorded];

#[test]
fn no_hold_of_the_decision_lock_handles_more_names_than_a_slice() {
    let (alder, birch) = pair();
    let bundle = alder.drop_many("d", 1000);
    let (verified, _) = birch.whole(&alder, bundle);
    thread::spawn(move || {
        verified.publish().unwrap();
        assert!((1..=256).contains(&most_names()), "{}", most_names());
    })
    .join()
    .unwrap();
    assert_eq!(birch.files_below("d"), 1000);
    alder.spool().take_receipt(&birch.receipt()).unwrap();
    birch.nothing_left_over();
}

fn cut_off(step: Step, power_lost: bool) {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_many("d", MANY);
    let killed = birch.publish_at(&alder, bundle, step, || {
        if power_lost {
            birch.spool().journal.flush().unwrap();
        }
        Go::Killed
    });
    assert!(killed.is_err());
    birch.stop();
    if power_lost {
        birch.lost_power();
    }
    birch.start();
    birch.checked();
    let shown = matches!(step, Step::Shown | Step::Recorded);
    let case = format!("{step:?}, power lost: {power_lost}");
    assert_eq!(
        birch.files_below("d"),
        if shown { MANY } else { 0 },
        "{case}"
    );
    if !shown {
        let (verified, asked) = birch.whole(&alder, bundle);
        assert_eq!(asked, 0, "{case}: what was whole is not fetched again");
        verified.publish().unwrap();
    }
    assert_eq!(birch.files_below("d"), MANY, "{case}");
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(bundle).is_some(), "{case}");
    for name in ["d/0/f0", "d/9/f599"] {
        let state = birch.spool().inbox_state(&rel(name), birch.inbox_ino(name));
        assert_eq!(state.from.as_deref(), Some("alder"), "{case}");
    }
    birch.nothing_left_over();
}

#[test]
fn killed_at_any_step_a_bundle_is_shown_whole_or_not_at_all() {
    for step in STEPS {
        cut_off(step, false);
    }
}

#[test]
fn after_a_power_loss_at_any_step_a_bundle_is_shown_whole_or_not_at_all() {
    for step in STEPS {
        cut_off(step, true);
    }
}

#[test]
fn what_the_user_takes_before_it_has_its_rows_stays_away() {
    for step in [Step::Shown, Step::Recorded] {
        let (alder, mut birch) = pair();
        let bundle = alder.drop_many("d", MANY);
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.spool().inbox_unlink(&rel("d/0/f0")).unwrap();
            birch.spool().inbox_unlink(&rel("d/9/f599")).unwrap();
            let (from, to) = (rel("d/1/f1"), rel("mine"));
            birch.spool().inbox_to_outbox(&from, &to, false).unwrap();
            Go::On
        });
        published.unwrap().unwrap();
        let there = |birch: &Node| {
            let gone = ["d/0/f0", "d/9/f599", "d/1/f1"];
            assert!(gone.iter().all(|name| !birch.inbox(name).exists()));
            assert_eq!(birch.files_below("d"), MANY - 3);
        };
        there(&birch);
        birch.stop();
        birch.start();
        there(&birch);
        // A version that comes late does not bring it back, and a newer one does.
        assert!(birch.spool().ledger.receipt(bundle).is_some());
        alder.drop_file("d/0/f0", b"newer");
        birch.fetch(&alder, alder.drop_file("d/0/f0", b"newest"));
        assert_eq!(birch.read_shown("d/0/f0").as_deref(), Some("newest"));
    }
}

#[test]
fn a_directory_removed_before_it_has_its_rows_stays_away() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_many("d", MANY);
    let published = birch.publish_at(&alder, bundle, Step::Shown, || {
        for n in 0..MANY {
            let path = rel(&format!("d/{}/f{n}", n % 10));
            birch.spool().inbox_unlink(&path).unwrap();
        }
        for n in 0..10 {
            birch.spool().inbox_rmdir(&rel(&format!("d/{n}"))).unwrap();
        }
        birch.spool().inbox_rmdir(&rel("d")).unwrap();
        Go::On
    });
    published.unwrap().unwrap();
    birch.stop();
    birch.start();
    assert!(!birch.inbox("d").exists());
    assert!(birch.spool().ledger.receipt(bundle).is_some());
}

#[test]
fn something_newer_that_comes_in_between_is_what_is_shown() {
    for step in STEPS {
        let (alder, birch) = pair();
        let bundle = alder.drop_many("d", MANY);
        let newer = alder.drop_file("d/0/f0", b"newer");
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.fetch(&alder, newer);
            Go::On
        });
        published.unwrap().unwrap();
        assert_eq!(
            birch.read_shown("d/0/f0").as_deref(),
            Some("newer"),
            "{step:?}"
        );
        assert_eq!(birch.files_below("d"), MANY, "{step:?}");
        let state = birch.spool();
        let state = state.inbox_state(&rel("d/0/f0"), birch.inbox_ino("d/0/f0"));
        assert_eq!(state.bundle, Some(newer), "{step:?}");
        birch.nothing_left_over();
    }
}

#[test]
fn what_was_consumed_in_between_in_a_newer_version_does_not_come_back() {
    for step in [Step::Chosen, Step::Built] {
        let (alder, birch) = pair();
        let bundle = alder.drop_many("d", MANY);
        let newer = alder.drop_file("d/0/f0", b"newer");
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.fetch(&alder, newer);
            birch.spool().inbox_unlink(&rel("d/0/f0")).unwrap();
            birch.spool().inbox_rmdir(&rel("d/0")).unwrap();
            birch.spool().inbox_rmdir(&rel("d")).unwrap();
            Go::On
        });
        published.unwrap().unwrap();
        assert!(!birch.inbox("d/0/f0").exists(), "{step:?}");
        assert_eq!(birch.files_below("d"), MANY - 1, "{step:?}");
    }
}

#[test]
fn a_file_renamed_by_its_origin_before_it_has_its_rows_is_renamed_here() {
    for step in [Step::Shown, Step::Recorded] {
        let (alder, birch) = pair();
        let bundle = alder.drop_many("d", MANY);
        fs::rename(alder.outbox("d/9/f599"), alder.outbox("e")).unwrap();
        alder
            .spool()
            .outbox_renamed(&rel("d/9/f599"), &rel("e"), false);
        let SealOutcome::Sealed(renamed) = alder.ask("e", Some("d/9/f599")) else {
            panic!("not sealed")
        };
        let published = birch.publish_at(&alder, bundle, step, || {
            assert_eq!(birch.fetch(&alder, renamed), 0, "{step:?}");
            Go::On
        });
        published.unwrap().unwrap();
        assert_eq!(birch.read_shown("e").as_deref(), Some("9/f599"), "{step:?}");
        assert!(!birch.inbox("d/9/f599").exists(), "{step:?}");
        assert_eq!(birch.files_below("d"), MANY - 1, "{step:?}");
    }
}

#[test]
fn a_cancel_in_between_ends_it_before_the_switch_and_comes_too_late_after_it() {
    for step in STEPS {
        let (alder, birch) = pair();
        let bundle = alder.drop_many("d", MANY);
        let scope = alder.manifest(bundle).manifest().scope.clone();
        let cancel = Cancel::sign(&alder.identity, bundle, CancelReason::Cancelled, scope, 60);
        let published = birch.publish_at(&alder, bundle, step, || {
            assert!(birch.spool().take_cancel(&cancel, alder.id()).unwrap());
            Go::On
        });
        let shown = matches!(step, Step::Shown | Step::Recorded);
        assert_eq!(published.unwrap().is_ok(), shown, "{step:?}");
        assert_eq!(
            birch.files_below("d"),
            if shown { MANY } else { 0 },
            "{step:?}"
        );
        assert_eq!(birch.inbox("d").exists(), shown);
        let link = birch.spool().layout().content(Digest::of(b"9/f599"));
        assert_eq!(link.exists(), shown, "{step:?}");
        let kept = birch.spool().ledger.kept(bundle).unwrap();
        assert!(kept.is_none(), "{step:?}");
        birch.spool().journal.flush().unwrap();
        assert_eq!(
            birch.spool().ledger.receipt(bundle).is_some(),
            shown,
            "{step:?}"
        );
        birch.nothing_left_over();
    }
}

#[test]
fn what_another_puts_into_the_directory_in_between_is_beside_it() {
    for step in STEPS {
        let (alder, birch) = pair();
        let cedar = Node::new();
        cedar.knows(&birch, "birch");
        birch.knows(&cedar, "cedar");
        let bundle = alder.drop_many("d", MANY);
        let tree = cedar.drop_many("d", 20);
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.fetch(&cedar, tree);
            birch.fetch(&cedar, cedar.drop_file("d/of cedar", b"x"));
            Go::On
        });
        published.unwrap().unwrap();
        assert_eq!(birch.files_below("d"), MANY + 21, "{step:?}");
        assert!(birch.inbox("d/of cedar").exists(), "{step:?}");
        birch.nothing_left_over();
    }
}

#[test]
fn a_link_of_another_does_not_come_to_lie_in_a_tree_that_has_no_rows_yet() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    let bundle = alder.drop_many("d", MANY);
    let published = birch.publish_at(&alder, bundle, Step::Shown, || {
        birch.fetch(&cedar, cedar.drop_link("d/9/l", "f599"));
        Go::On
    });
    published.unwrap().unwrap();
    assert!(birch.inbox("d/9/l").symlink_metadata().is_err());
    assert!(birch.inbox("d~cedar/9/l").symlink_metadata().is_ok());
}

/// A directory that was consumed belongs to whoever sends something there first, not to whose links were in it before.
#[test]
fn a_top_directory_that_was_consumed_is_of_who_comes_first() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&alder, alder.drop_link("d/l", "secret"));
    birch.spool().inbox_unlink(&rel("d/l")).unwrap();
    birch.spool().inbox_rmdir(&rel("d")).unwrap();
    birch.fetch(&cedar, cedar.drop_file("d/secret", b"of cedar"));
    birch.fetch(&alder, alder.drop_link("d/m", "secret"));
    assert!(birch.inbox("d/secret").exists());
    assert!(birch.inbox("d/m").symlink_metadata().is_err());
    assert!(birch.inbox("d~alder/m").symlink_metadata().is_ok());
}

#[test]
fn a_bundle_of_which_the_user_took_a_file_before_it_was_settled_is_not_promised_to_others() {
    for taken in [false, true] {
        let (alder, birch) = pair();
        let cedar = Node::new();
        birch.knows(&cedar, "cedar");
        let bundle = alder.drop_many("d", MANY);
        let published = birch.publish_at(&alder, bundle, Step::Shown, || {
            if taken {
                birch.spool().inbox_unlink(&rel("d/9/f599")).unwrap();
            }
            Go::On
        });
        published.unwrap().unwrap();
        let kept = birch.spool().ledger.kept(bundle).unwrap();
        assert_eq!(kept.is_some(), !taken);
        let link = birch.spool().layout().content(Digest::of(b"9/f599"));
        assert_eq!(link.exists(), !taken);
    }
}

#[test]
fn two_trees_with_the_same_content_are_published_at_once() {
    for step in STEPS {
        let (alder, birch) = pair();
        let (bundle, other) = (alder.drop_many("d", MANY), alder.drop_many("e", MANY));
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.fetch(&alder, other);
            Go::On
        });
        published.unwrap().unwrap();
        let files = (birch.files_below("d"), birch.files_below("e"));
        assert_eq!(files, (MANY, MANY), "{step:?}");
        birch.nothing_left_over();
    }
}

#[test]
fn a_bundle_that_lost_names_with_the_power_is_not_settled_and_comes_again() {
    for slice in [0, 1, 2] {
        let (alder, mut birch) = pair();
        let bundle = alder.drop_many("d", MANY);
        let killed = birch.publish_at(&alder, bundle, Step::Shown, || Go::Killed);
        assert!(killed.is_err());
        let mut batch = journal::Batch::default();
        batch.remove(INTENT_NAMES, &(bundle, slice));
        birch.spool().journal.submit(batch).unwrap();
        birch.spool().journal.flush().unwrap();
        birch.stop();
        birch.lost_power();
        birch.start();
        birch.checked();
        assert!(birch.spool().ledger.receipt(bundle).is_none());
        assert_eq!(birch.files_below("d"), 0, "slice {slice}");
        let (verified, asked) = birch.whole(&alder, bundle);
        assert!(asked > 0, "slice {slice}");
        verified.publish().unwrap();
        assert_eq!(birch.files_below("d"), MANY, "slice {slice}");
        birch.spool().journal.flush().unwrap();
        assert!(birch.spool().ledger.receipt(bundle).is_some());
        birch.nothing_left_over();
    }
}

#[test]
fn a_file_gives_way_to_a_directory_at_the_instant_at_which_that_is_shown() {
    for step in STEPS {
        let (alder, birch) = pair();
        birch.fetch(&alder, alder.drop_file("d", b"a file"));
        fs::remove_file(alder.outbox("d")).unwrap();
        let bundle = alder.drop_many("d", MANY);
        let published = birch.publish_at(&alder, bundle, step, || {
            let shown = matches!(step, Step::Shown | Step::Recorded);
            assert_eq!(birch.read_shown("d").is_none(), shown, "{step:?}");
            assert_eq!(birch.files_below("d"), if shown { MANY } else { 0 });
            Go::On
        });
        published.unwrap().unwrap();
        assert_eq!(birch.files_below("d"), MANY);
        birch.nothing_left_over();
    }
}

#[test]
fn killed_at_any_step_a_directory_or_the_file_that_gives_way_to_it_is_there() {
    for step in STEPS {
        let (alder, mut birch) = pair();
        birch.fetch(&alder, alder.drop_file("d", b"a file"));
        fs::remove_file(alder.outbox("d")).unwrap();
        let bundle = alder.drop_many("d", MANY);
        let killed = birch.publish_at(&alder, bundle, step, || Go::Killed);
        assert!(killed.is_err());
        birch.stop();
        birch.start();
        birch.checked();
        if !matches!(step, Step::Shown | Step::Recorded) {
            assert_eq!(birch.read_shown("d").as_deref(), Some("a file"), "{step:?}");
            birch.fetch(&alder, bundle);
        }
        assert_eq!(birch.files_below("d"), MANY, "{step:?}");
        birch.spool().journal.flush().unwrap();
        assert!(birch.spool().ledger.receipt(bundle).is_some(), "{step:?}");
        birch.nothing_left_over();
    }
}

#[test]
fn a_file_that_takes_the_place_of_a_directory_above_the_tree_in_between_stays() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    birch.fetch(&alder, alder.drop_file("p/x", b"x"));
    let bundle = alder.drop_many("p/d", MANY);
    let published = birch.publish_at(&alder, bundle, Step::Built, || {
        birch.spool().inbox_unlink(&rel("p/x")).unwrap();
        birch.spool().inbox_rmdir(&rel("p")).unwrap();
        birch.fetch(&cedar, cedar.drop_file("p", b"of cedar"));
        Go::On
    });
    published.unwrap().unwrap();
    assert_eq!(birch.read_shown("p").as_deref(), Some("of cedar"));
    assert_eq!(birch.files_below("p~alder/d"), MANY);
    birch.nothing_left_over();
}

/// Files of [`drop_over`]'s first bundle that its second one does not replace.
const OLD: usize = 10;

fn name_over(n: usize) -> String {
    format!("{}/f{n}", n % 12)
}

fn commit_over(alder: &Node, what: &str) -> BundleId {
    let files: Vec<(String, String)> = (0..MANY)
        .map(|n| (name_over(n), format!("{what} {n}")))
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_bytes()))
        .collect();
    alder.fill(".many", &files);
    alder.commit(".many", "d")
}

/// A bundle for a directory that is there: of twenty files in it ten are replaced, two of its directories are new.
fn drop_over(alder: &Node, birch: &Node) -> BundleId {
    let old: Vec<String> = (0..20).map(|n| format!("{}/f{n}", n % 10)).collect();
    let old: Vec<(&str, &[u8])> = old
        .iter()
        .map(|n| (n.as_str(), b"old".as_slice()))
        .collect();
    alder.fill(".many", &old);
    birch.fetch(alder, alder.commit(".many", "d"));
    fs::rename(alder.outbox("d"), alder.outbox("aside")).unwrap();
    commit_over(alder, "new")
}

impl Node {
    /// As a program sees it that looks through the mount.
    fn looked_at(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        let mut file = self.spool().inbox().read(&rel(path)).ok()?;
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        Some(text)
    }

    fn shows_over(&self, what: &str, step: Step) {
        assert_eq!(self.files_below("d"), MANY + OLD, "{step:?}");
        for n in (0..MANY).step_by(37) {
            let path = format!("d/{}", name_over(n));
            let text = format!("{what} {n}");
            assert_eq!(self.read_shown(&path), Some(text), "{path}, {step:?}");
            let state = self.spool().inbox_state(&rel(&path), self.inbox_ino(&path));
            assert_eq!(state.from.as_deref(), Some("alder"), "{path}, {step:?}");
        }
        assert_eq!(self.read_shown("d/0/f10").as_deref(), Some("old"));
        self.nothing_left_over();
    }
}

#[test]
fn no_hold_handles_more_names_than_a_slice_of_a_bundle_that_is_merged() {
    let (alder, birch) = pair();
    let bundle = drop_over(&alder, &birch);
    let (verified, _) = birch.whole(&alder, bundle);
    let birch = thread::spawn(move || {
        verified.publish().unwrap();
        assert!((1..=256).contains(&most_names()), "{}", most_names());
        birch
    })
    .join()
    .unwrap();
    birch.shows_over("new", Step::Recorded);
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(bundle).is_some());
}

fn cut_off_over(step: Step, power_lost: bool) {
    let (alder, mut birch) = pair();
    let bundle = drop_over(&alder, &birch);
    let killed = birch.publish_at(&alder, bundle, step, || {
        if matches!(step, Step::Shown | Step::Recorded) {
            for n in [0, 11, 599] {
                let text = birch.looked_at(&format!("d/{}", name_over(n)));
                assert_eq!(text, Some(format!("new {n}")));
            }
        }
        if power_lost {
            birch.spool().journal.flush().unwrap();
        }
        Go::Killed
    });
    assert!(killed.is_err());
    birch.stop();
    if power_lost {
        birch.lost_power();
    }
    birch.start();
    birch.checked();
    let case = format!("{step:?}, power lost: {power_lost}");
    if !matches!(step, Step::Shown | Step::Recorded) {
        assert_eq!(birch.files_below("d"), 20, "{case}");
        assert_eq!(birch.read_shown("d/0/f0").as_deref(), Some("old"), "{case}");
        let (verified, asked) = birch.whole(&alder, bundle);
        assert_eq!(asked, 0, "{case}: what was whole is not fetched again");
        verified.publish().unwrap();
    }
    birch.shows_over("new", step);
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(bundle).is_some(), "{case}");
}

#[test]
fn killed_at_any_step_a_bundle_is_merged_whole_or_not_at_all() {
    for step in STEPS {
        cut_off_over(step, false);
    }
}

#[test]
fn after_a_power_loss_at_any_step_a_bundle_is_merged_whole_or_not_at_all() {
    for step in STEPS {
        cut_off_over(step, true);
    }
}

#[test]
fn what_the_user_does_with_names_that_are_to_be_renamed_yet_is_done_with_the_new_files() {
    for step in [Step::Shown, Step::Recorded] {
        let (alder, mut birch) = pair();
        let bundle = drop_over(&alder, &birch);
        let published = birch.publish_at(&alder, bundle, step, || {
            let spool = birch.spool();
            assert_eq!(birch.looked_at("d/3/f3").as_deref(), Some("new 3"));
            for name in ["d/9/f9", "d/9/f19", "d/11/f11"] {
                spool.inbox_unlink(&rel(name)).unwrap();
            }
            let (from, to) = (rel("d/8/f8"), rel("mine"));
            spool.inbox_to_outbox(&from, &to, false).unwrap();
            // Others are still to come into it.
            let refused = spool.inbox_rmdir(&rel("d/9")).unwrap_err();
            let SpoolError::Io { source, .. } = refused else {
                panic!("{refused}")
            };
            assert_eq!(source.raw_os_error(), Some(libc::ENOTEMPTY));
            Go::On
        });
        published.unwrap().unwrap();
        let mine = fs::read_to_string(birch.outbox("mine")).unwrap();
        assert_eq!(mine, "new 8");
        let there = |birch: &Node| {
            assert_eq!(birch.files_below("d"), MANY + OLD - 4);
            for name in ["d/9/f9", "d/9/f19", "d/11/f11", "d/8/f8"] {
                assert!(!birch.inbox(name).exists(), "{name}");
            }
        };
        there(&birch);
        birch.stop();
        birch.start();
        there(&birch);
        assert!(birch.spool().ledger.receipt(bundle).is_some());
    }
}

#[test]
fn of_two_bundles_for_the_same_names_the_newer_is_shown_whichever_comes_in_between() {
    for step in STEPS {
        for newer_first in [false, true] {
            let (alder, birch) = pair();
            let older = drop_over(&alder, &birch);
            fs::rename(alder.outbox("d"), alder.outbox("aside too")).unwrap();
            let newer = commit_over(&alder, "newer");
            let (first, second) = if newer_first {
                (newer, older)
            } else {
                (older, newer)
            };
            let published = birch.publish_at(&alder, first, step, || {
                birch.fetch(&alder, second);
                Go::On
            });
            published.unwrap().unwrap();
            birch.shows_over("newer", step);
        }
    }
}

#[test]
fn something_newer_in_between_is_what_a_merge_shows() {
    for step in STEPS {
        let (alder, birch) = pair();
        let bundle = drop_over(&alder, &birch);
        let newer = [
            alder.drop_file("d/0/f0", b"newer"),
            alder.drop_file("d/10/f10", b"newer"),
        ];
        let published = birch.publish_at(&alder, bundle, step, || {
            for newer in newer {
                birch.fetch(&alder, newer);
            }
            Go::On
        });
        published.unwrap().unwrap();
        for name in ["d/0/f0", "d/10/f10"] {
            assert_eq!(birch.read_shown(name).as_deref(), Some("newer"), "{step:?}");
        }
        assert_eq!(birch.files_below("d"), MANY + OLD, "{step:?}");
        birch.nothing_left_over();
    }
}

#[test]
fn a_cancel_ends_a_merge_before_the_switch_and_comes_too_late_after_it() {
    for step in STEPS {
        let (alder, birch) = pair();
        let bundle = drop_over(&alder, &birch);
        let scope = alder.manifest(bundle).manifest().scope.clone();
        let cancel = Cancel::sign(&alder.identity, bundle, CancelReason::Cancelled, scope, 60);
        let published = birch.publish_at(&alder, bundle, step, || {
            assert!(birch.spool().take_cancel(&cancel, alder.id()).unwrap());
            Go::On
        });
        let shown = matches!(step, Step::Shown | Step::Recorded);
        assert_eq!(published.unwrap().is_ok(), shown, "{step:?}");
        if shown {
            birch.shows_over("new", step);
        } else {
            assert_eq!(birch.files_below("d"), 20, "{step:?}");
            assert_eq!(birch.read_shown("d/0/f0").as_deref(), Some("old"));
            birch.nothing_left_over();
        }
    }
}

#[test]
fn what_another_puts_into_a_new_directory_of_a_merge_is_beside_it() {
    for step in STEPS {
        let (alder, birch) = pair();
        let cedar = Node::new();
        cedar.knows(&birch, "birch");
        birch.knows(&cedar, "cedar");
        let bundle = drop_over(&alder, &birch);
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.fetch(&cedar, cedar.drop_file("d/10/of cedar", b"x"));
            birch.fetch(&cedar, cedar.drop_file("d/1/of cedar", b"x"));
            Go::On
        });
        published.unwrap().unwrap();
        assert!(birch.inbox("d/10/of cedar").exists(), "{step:?}");
        assert!(birch.inbox("d/1/of cedar").exists(), "{step:?}");
        assert_eq!(birch.files_below("d"), MANY + OLD + 2, "{step:?}");
        birch.nothing_left_over();
    }
}

#[test]
fn a_link_of_another_does_not_come_to_lie_among_names_that_are_being_chosen() {
    for step in STEPS {
        let (alder, birch) = pair();
        let cedar = Node::new();
        cedar.knows(&birch, "birch");
        birch.knows(&cedar, "cedar");
        let bundle = alder.drop_many("d", MANY);
        let published = birch.publish_at(&alder, bundle, step, || {
            birch.fetch(&cedar, cedar.drop_link("d/l", "0/f0"));
            Go::On
        });
        published.unwrap().unwrap();
        let alone = birch.inbox("d~cedar/l").symlink_metadata().is_ok();
        let first = birch.inbox("d/l").symlink_metadata().is_ok();
        assert!(alone != first, "{step:?}");
        let of_alder = if first { "d~alder" } else { "d" };
        assert_eq!(birch.files_below(of_alder), MANY, "{step:?}");
        birch.nothing_left_over();
    }
}
