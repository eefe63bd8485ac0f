//! A rename at the origin, and what the receiver shows of it.

#[cfg(test)]
mod any_order;
#[cfg(test)]
mod dressed;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rests;

use std::io::Read;

use super::super::inbox::naming::Choosing;
use super::super::journal::Batch;
use super::*;
use crate::spool::inbox::InName;
use crate::spool::inbox::probe::{IN_NAMES, RENAMES, Renaming};
use crate::spool::outbox::OutName;

const BIG: usize = 3 * LEAF as usize;

impl Node {
    /// Renames a file as a program would through the mount, and lets it be sealed.
    pub(super) fn rename(&self, from: &str, to: &str) -> BundleId {
        self.move_file(from, to);
        self.sealed(to)
    }

    pub(super) fn move_file(&self, from: &str, to: &str) {
        let (old, new) = (self.outbox(from), self.outbox(to));
        fs::create_dir_all(new.parent().unwrap()).unwrap();
        let replaced = fs::metadata(&new).ok().map(|meta| meta.ino());
        fs::rename(&old, &new).unwrap();
        if let Some(ino) = replaced {
            self.spool().outbox_removed(&rel(to), ino, 0);
        }
        self.spool().outbox_renamed(&rel(from), &rel(to), false);
    }

    pub(super) fn move_directory(&self, from: &str, to: &str) {
        fs::rename(self.outbox(from), self.outbox(to)).unwrap();
        self.spool().outbox_renamed(&rel(from), &rel(to), true);
    }

    pub(super) fn exchange(&self, a: &str, b: &str) {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let flags = RenameFlags::EXCHANGE;
        renameat_with(CWD, self.outbox(a), CWD, self.outbox(b), flags).unwrap();
        self.spool().outbox_exchanged(&rel(a), &rel(b));
    }

    pub(super) fn sealed(&self, path: &str) -> BundleId {
        match self.seal(path) {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn remove(&self, path: &str) {
        let ino = self.ino(path);
        fs::remove_file(self.outbox(path)).unwrap();
        self.spool().outbox_removed(&rel(path), ino, 0);
    }

    pub(super) fn consume(&self, path: &str) {
        self.spool().inbox_unlink(&rel(path)).unwrap();
    }

    /// Takes all that `origin` owes this node, oldest first; gives the bytes asked for.
    pub(super) fn take_all(&self, origin: &Self) -> u64 {
        let mut asked = 0;
        for (_, bundle) in origin.spool().ledger.pending(self.id(), None, 99).unwrap() {
            asked += self.take(origin, bundle);
        }
        asked
    }

    /// Takes one bundle and gives its receipt, whether something is to be fetched or not.
    pub(super) fn take(&self, origin: &Self, bundle: BundleId) -> u64 {
        let asked = self.fetch(origin, bundle);
        self.spool().journal.flush().unwrap();
        let receipt = self.spool().ledger.receipt(bundle).unwrap();
        assert!(origin.spool().take_receipt(&receipt).unwrap());
        asked
    }

    /// Offers a bundle; whether that alone settled it. Otherwise nothing was done.
    fn renames_only(&self, origin: &Self, bundle: BundleId) -> bool {
        let manifest = origin.manifest(bundle).signed().clone().verify().unwrap();
        match self.spool().offered(manifest, origin.id()).unwrap() {
            Offered::AwaitingDurable => true,
            Offered::Wanted(_) => false,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn shows(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut directories = vec![self.inbox("")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let at = entry.unwrap().path();
                if at.is_dir() {
                    directories.push(at);
                } else {
                    let below = at.strip_prefix(self.inbox("")).unwrap();
                    names.push(below.to_str().unwrap().to_owned());
                }
            }
        }
        names.sort();
        names
    }
}

/// What the file system is told.
#[derive(Default)]
pub(super) struct Heard(pub(super) parking_lot::Mutex<Vec<String>>);

impl InboxObserver for Heard {
    fn prepare(&self, _replaced: &[RelPath]) {}
    fn unprepare(&self) {}
    fn switch(&self, give: &mut dyn FnMut()) {
        give();
    }
    fn published(&self, names: &[NewName]) {
        for NewName {
            path, directory, ..
        } in names
        {
            let what = if *directory { "made" } else { "published" };
            self.0.lock().push(format!("{what} {path}"));
        }
    }
    fn renamed(&self, from: &RelPath, to: &RelPath, replaced: Option<u64>) {
        let over = if replaced.is_some() { " over it" } else { "" };
        self.0.lock().push(format!("renamed {from} to {to}{over}"));
    }
    fn removed(&self, path: &RelPath) {
        self.0.lock().push(format!("removed {path}"));
    }
}

pub(super) fn heard(node: &Node) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    node.spool().observe_inbox(heard.clone());
    heard
}

#[test]
fn a_renamed_file_is_renamed_where_it_is_untouched_and_keeps_its_inode_and_readers() {
    for size in [5, BIG] {
        let (alder, birch) = pair();
        let bytes = pattern(size);
        alder.drop_file("a", &bytes);
        birch.take_all(&alder);
        let ino = birch.inbox_ino("a");
        let mut reader = File::open(birch.inbox("a")).unwrap();
        let heard = heard(&birch);
        alder.rename("a", "d/b");
        assert_eq!(birch.take_all(&alder), 0, "no bytes");
        assert_eq!(birch.shows(), ["d/b"]);
        assert_eq!(birch.inbox_ino("d/b"), ino);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, bytes);
        assert_eq!(*heard.0.lock(), ["made d", "renamed a to d/b"]);
        assert_eq!(alder.spool().outbound(None, 9)[0].state, "delivered");
        assert_eq!(
            birch
                .spool()
                .inbox_state(&rel("d/b"), birch.inbox_ino("d/b"))
                .word(),
            "received"
        );
    }
}

#[test]
fn the_executable_bit_and_the_time_come_along() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"#!/bin/sh\n");
    birch.take_all(&alder);
    fs::set_permissions(alder.outbox("a"), fs::Permissions::from_mode(0o755)).unwrap();
    alder.rename("a", "b");
    birch.take_all(&alder);
    let meta = fs::metadata(birch.inbox("b")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o755);
    assert_eq!(
        meta.modified().unwrap(),
        fs::metadata(alder.outbox("b")).unwrap().modified().unwrap()
    );
}

#[test]
fn a_new_file_under_the_old_name_appears_again() {
    let (mut alder, mut birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    alder.rename("a", "b");
    birch.take_all(&alder);
    for restart in [false, true] {
        if restart {
            alder.stop();
            alder.start();
            birch.stop();
            birch.start();
            alder.remove("a");
        }
        let text = format!("again {restart}");
        alder.drop_file("a", text.as_bytes());
        birch.take_all(&alder);
        assert_eq!(birch.shows(), ["a", "b"]);
        assert_eq!(fs::read(birch.inbox("a")).unwrap(), text.as_bytes());
        assert_eq!(fs::read(birch.inbox("b")).unwrap(), b"one");
    }
}

#[test]
fn who_was_away_gets_only_the_last_name_of_a_chain_once_with_bytes() {
    let (alder, birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    alder.rename("a", "b");
    alder.rename("b", "c");
    assert_eq!(birch.take_all(&alder), BIG as u64);
    assert_eq!(birch.shows(), ["c"]);
}

#[test]
fn who_missed_a_part_of_a_chain_ends_with_the_last_name() {
    let (mut alder, birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    let ino = birch.inbox_ino("a");
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "d")] {
        alder.rename(from, to);
        // What is known of former names is on disk.
        alder.stop();
        alder.start();
    }
    assert_eq!(birch.take_all(&alder), 0);
    assert_eq!(birch.shows(), ["d"]);
    assert_eq!(birch.inbox_ino("d"), ino);
}

#[test]
fn a_rename_there_and_back_changes_nothing_for_who_was_away() {
    let (alder, birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    let ino = birch.inbox_ino("a");
    alder.rename("a", "b");
    alder.rename("b", "a");
    assert_eq!(birch.take_all(&alder), 0);
    assert_eq!(birch.shows(), ["a"]);
    assert_eq!(birch.inbox_ino("a"), ino);
}

#[test]
fn a_rename_while_the_old_name_waits_for_its_seal_is_no_rename_for_others() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    alder.move_file("a", "b");
    alder.move_file("b", "a");
    alder.sealed("a");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a"]);
}

#[test]
fn a_rename_over_a_published_name_leaves_one_file_with_the_new_content() {
    let (alder, birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    alder.drop_file("b", b"old");
    birch.take_all(&alder);
    let (ino, heard) = (birch.inbox_ino("a"), heard(&birch));
    let mut reader = File::open(birch.inbox("b")).unwrap();
    alder.rename("a", "b");
    assert_eq!(birch.take_all(&alder), 0);
    assert_eq!(birch.shows(), ["b"]);
    assert_eq!(birch.inbox_ino("b"), ino);
    assert_eq!(*heard.0.lock(), ["renamed a to b over it"]);
    let mut old = String::new();
    reader.read_to_string(&mut old).unwrap();
    assert_eq!(old, "old", "who had it open goes on reading it");
    let content = birch.spool().layout().content(Digest::of(b"old"));
    assert!(!content.exists(), "nobody needs the old one");
}

#[test]
fn a_changed_file_under_a_new_name_is_another_file() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    alder.move_file("a", "b");
    alder.drop_file("b", b"two");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a", "b"]);
    assert_eq!(fs::read(birch.inbox("b")).unwrap(), b"two");
}

#[test]
fn what_was_consumed_is_not_shown_under_its_new_names_but_settled() {
    let (alder, mut birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    birch.consume("a");
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "b")] {
        alder.rename(from, to);
        assert_eq!(birch.take_all(&alder), 0, "{to}");
        assert_eq!(birch.shows(), [""; 0], "{to}");
        assert_eq!(birch.spool().inbound(None, 1)[0].state, "consumed");
        assert_eq!(alder.spool().outbound(None, 1)[0].state, "delivered");
        birch.stop();
        birch.start();
    }
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    assert_eq!(
        birch.shows(),
        ["a"],
        "a new file with the same bytes is new"
    );
}

#[test]
fn consumed_and_renamed_over_another_file_is_a_new_version_of_that() {
    let (alder, birch) = pair();
    alder.drop_file("config", b"old");
    alder.drop_file("config.new1", b"new");
    birch.take_all(&alder);
    birch.consume("config.new1");
    alder.rename("config.new1", "config");
    birch.take_all(&alder);
    assert_eq!(fs::read(birch.inbox("config")).unwrap(), b"new");
}

#[test]
fn a_name_that_another_file_has_by_now_is_kept() {
    let (alder, birch) = pair();
    alder.drop_file("log", &pattern(BIG));
    birch.take_all(&alder);
    alder.move_file("log", "log.1");
    fs::write(alder.outbox("log"), b"being written").unwrap();
    alder.sealed("log.1");
    assert_eq!(birch.take_all(&alder), 0);
    assert_eq!(birch.shows(), ["log", "log.1"]);
    alder.drop_file("log", b"new");
    birch.take_all(&alder);
    assert_eq!(fs::read(birch.inbox("log")).unwrap(), b"new");
    assert_eq!(fs::read(birch.inbox("log.1")).unwrap(), pattern(BIG));
}

#[test]
fn a_file_that_was_replaced_before_its_rename_was_heard_of_is_not_lost() {
    let (alder, birch) = pair();
    alder.drop_file("log", b"one");
    birch.take_all(&alder);
    alder.move_file("log", "log.1");
    // The new one is announced first.
    alder.drop_file("log", b"two");
    birch.take_all(&alder);
    alder.sealed("log.1");
    birch.take_all(&alder);
    assert_eq!(fs::read(birch.inbox("log")).unwrap(), b"two");
    assert_eq!(fs::read(birch.inbox("log.1")).unwrap(), b"one");
}

#[test]
fn a_name_used_again_and_removed_before_the_rename_was_heard_of_is_another_file() {
    let (alder, birch) = pair();
    alder.drop_file("job", b"same");
    birch.take_all(&alder);
    alder.move_file("job", "job2");
    alder.drop_file("job", b"same");
    alder.remove("job");
    birch.take_all(&alder);
    alder.sealed("job2");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["job", "job2"], "two files were dropped");
}

#[test]
fn a_former_version_that_comes_late_is_not_shown() {
    let (alder, birch) = pair();
    let first = alder.drop_file("a", b"one");
    let old = alder.manifest(first);
    let Offered::Wanted(mut late) = birch.spool().offered(old, alder.id()).unwrap() else {
        panic!("not wanted")
    };
    late.accept_chunk(0, 0, b"one").unwrap();
    let second = alder.rename("a", "b");
    birch.take(&alder, second);
    late.finish().unwrap().publish().unwrap();
    assert_eq!(birch.shows(), ["b"]);
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(first).is_some());
}

#[test]
fn a_rename_that_overtook_its_file_is_followed_when_its_own_bytes_are_there() {
    let (alder, birch) = pair();
    let first = alder.drop_file("a", b"one");
    let manifest = alder.manifest(first);
    let second = alder.rename("a", "b");
    let offered = birch.spool().offered(alder.manifest(second), alder.id());
    let Offered::Wanted(mut renamed) = offered.unwrap() else {
        panic!("not wanted")
    };
    renamed.accept_chunk(0, 0, b"one").unwrap();
    let Offered::Wanted(mut file) = birch.spool().offered(manifest, alder.id()).unwrap() else {
        panic!("not wanted")
    };
    file.accept_chunk(0, 0, b"one").unwrap();
    file.finish().unwrap().publish().unwrap();
    let ino = birch.inbox_ino("a");
    let published = renamed.finish().unwrap().publish().unwrap();
    assert_eq!(published.names, [rel("b")]);
    assert_eq!(birch.shows(), ["b"]);
    assert_eq!(birch.inbox_ino("b"), ino);
    let left = fs::read_dir(birch.spool().layout().partial()).unwrap();
    assert_eq!(left.count(), 0, "what was fetched for nothing is gone");
}

#[test]
fn another_origins_file_is_never_touched_and_names_are_chosen_as_usual() {
    let (alder, birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    alder.drop_file("a", b"same");
    cedar.drop_file("b", b"same");
    cedar.drop_file("a", b"same");
    birch.take_all(&alder);
    birch.take_all(&cedar);
    assert_eq!(birch.shows(), ["a", "a~cedar", "b"]);
    alder.rename("a", "b");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a~cedar", "b", "b~alder"]);
    cedar.rename("a", "c");
    birch.take_all(&cedar);
    assert_eq!(birch.shows(), ["b", "b~alder", "c"]);
    assert_eq!(
        birch
            .spool()
            .inbox_state(&rel("c"), birch.inbox_ino("c"))
            .from
            .as_deref(),
        Some("cedar")
    );
}

#[test]
fn a_renamed_directory_is_renamed_file_by_file_and_goes_when_it_is_empty() {
    let (alder, birch) = pair();
    for name in ["d/x", "d/y", "d/sub/z", "keep/a"] {
        alder.drop_file(name, name.as_bytes());
    }
    birch.take_all(&alder);
    let heard = heard(&birch);
    alder.move_directory("d", "e");
    for name in ["e/x", "e/sub/z", "e/y"] {
        alder.sealed(name);
    }
    assert_eq!(birch.take_all(&alder), 0);
    assert_eq!(birch.shows(), ["e/sub/z", "e/x", "e/y", "keep/a"]);
    assert!(!birch.inbox("d").exists());
    let heard = std::mem::take(&mut *heard.0.lock());
    assert_eq!(
        heard,
        [
            "made e",
            "renamed d/x to e/x",
            "made e/sub",
            "renamed d/sub/z to e/sub/z",
            "removed d/sub",
            "renamed d/y to e/y",
            "removed d"
        ]
    );
    alder.move_file("keep/a", "e/a");
    alder.sealed("e/a");
    birch.take_all(&alder);
    assert!(
        birch.inbox("keep").exists(),
        "it is there at the origin too, and somebody may watch it"
    );
}

#[test]
fn an_ignored_name_in_between_does_not_hide_the_rename() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    // Not sealed under the name of a backup.
    alder.move_file("a", "a~");
    assert_eq!(birch.shows(), ["a"], "who has it keeps it");
    alder.rename("a~", "b");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["b"]);
}

#[test]
fn a_file_and_a_directory_on_the_way_to_it_change_places_without_a_loss() {
    let (alder, birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    alder.move_file("a", "temp");
    alder.move_file("temp", "a/a");
    alder.sealed("a/a");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a/a"]);
    assert_eq!(fs::read(birch.inbox("a/a")).unwrap(), pattern(BIG));
}

#[test]
fn a_file_that_gave_way_to_a_directory_is_shown_when_its_new_name_is_heard_of() {
    let (alder, birch) = pair();
    alder.drop_file("d", b"a file");
    birch.take_all(&alder);
    alder.move_file("d", "elsewhere");
    let heard = heard(&birch);
    let within = alder.drop_file("d/f", b"x");
    birch.take(&alder, within);
    assert_eq!(*heard.0.lock(), ["removed d", "made d", "published d/f"]);
    alder.sealed("elsewhere");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["d/f", "elsewhere"]);
}

#[test]
fn an_exchange_keeps_the_rows_of_both_names() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    alder.drop_file("b", b"two");
    birch.take_all(&alder);
    let row = |name: &str| {
        let row = alder.spool().outbox.name(&rel(name)).unwrap();
        row.map(|row| row.stat.ino)
    };
    alder.exchange("a", "b");
    assert_eq!(row("a"), Some(alder.ino("a")));
    assert_eq!(row("b"), Some(alder.ino("b")));
    alder.sealed("a");
    alder.sealed("b");
    birch.take_all(&alder);
    assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"two");
    assert_eq!(fs::read(birch.inbox("b")).unwrap(), b"one");
    assert_eq!(birch.shows(), ["a", "b"]);
}

#[test]
fn an_exchange_of_directories_moves_every_row_once_also_across_pages() {
    let alder = Node::new();
    let submit_row = |name: &str, ino| {
        let stat = tables::Stat {
            ino,
            born: None,
            size: 0,
            mtime: (0, 0),
            ctime: (0, 0),
        };
        let row = OutName {
            stat,
            digest: Digest([1; 32]),
            bundle: BundleId([2; 32]),
            order: (1, 1),
            formerly: None,
        };
        alder.spool().outbox.put_name(&rel(name), &row);
    };
    for index in 0..1500 {
        submit_row(&format!("d/{index:04}"), index);
    }
    for index in (0..4000).step_by(3) {
        submit_row(&format!("e/{index:04}"), 10_000 + index);
    }
    submit_row("e/sub/x", 7);
    submit_row("dd/x", 8);
    let rows = |directory: &str| {
        let rows = alder.spool().outbox.names_below(&rel(directory));
        let tail = |path: RelPath| path.as_bytes()[directory.len() + 1..].to_vec();
        let rows = rows.into_iter();
        rows.map(|(path, row)| (tail(path), row.stat.ino))
            .collect::<Vec<_>>()
    };
    let (d, e) = (rows("d"), rows("e"));
    alder.spool().outbox_exchanged(&rel("d"), &rel("e"));
    assert_eq!(rows("d"), e);
    assert_eq!(rows("e"), d);
    assert_eq!(rows("dd"), [(b"x".to_vec(), 8)]);
}

/// A rename here that is cut off; `done` says how far it had come.
fn cut_off(birch: &Node, alder: &Node, bundle: BundleId, from: &str, to: &str, done: bool) {
    let mut choosing = Choosing::of(&alder.manifest(bundle));
    birch.spool().choose_name(&rel(to), &mut choosing).unwrap();
    let renaming = Renaming {
        signed: alder.manifest(bundle).signed().clone(),
        from: rel(from),
        to: rel(to),
        ino: birch.inbox_ino(from),
        emptied: 0,
    };
    let mut batch = Batch::default();
    batch.insert(RENAMES, &bundle, &renaming);
    birch.spool().journal.submit(batch).unwrap();
    if done {
        fs::rename(birch.inbox(from), birch.inbox(to)).unwrap();
    }
}

#[test]
fn a_rename_cut_off_by_a_kill_is_completed_whatever_was_done() {
    for (done, over) in [(false, false), (true, false), (false, true), (true, true)] {
        let (alder, mut birch) = pair();
        alder.drop_file("a", &pattern(BIG));
        if over {
            alder.drop_file("b", b"old");
        }
        birch.take_all(&alder);
        let ino = birch.inbox_ino("a");
        let bundle = alder.rename("a", "b");
        cut_off(&birch, &alder, bundle, "a", "b", done);
        for _ in 0..2 {
            birch.stop();
            birch.start();
            assert_eq!(birch.shows(), ["b"], "done {done}, over {over}");
            assert_eq!(birch.inbox_ino("b"), ino);
        }
        birch.spool().journal.flush().unwrap();
        assert!(birch.spool().ledger.receipt(bundle).is_some());
        assert_eq!(
            birch
                .spool()
                .inbox_state(&rel("b"), birch.inbox_ino("b"))
                .word(),
            "received"
        );
        assert_eq!(birch.spool().counts().quarantined, 0);
        // And it goes on from there.
        alder.rename("b", "c");
        assert_eq!(birch.take_all(&alder), 0);
        assert_eq!(birch.shows(), ["c"]);
    }
}

#[test]
fn a_rename_that_reached_the_disk_alone_before_a_power_loss_is_undone_and_followed_again() {
    for row in [false, true] {
        let (alder, mut birch) = pair();
        alder.drop_file("a", &pattern(BIG));
        birch.take_all(&alder);
        let ino = birch.inbox_ino("a");
        let bundle = alder.rename("a", "b");
        if row {
            cut_off(&birch, &alder, bundle, "a", "b", true);
        } else {
            fs::rename(birch.inbox("a"), birch.inbox("b")).unwrap();
        }
        birch.power_loss();
        assert_eq!(birch.shows(), ["a"], "row {row}");
        assert_eq!(birch.spool().counts().quarantined, 0);
        assert_eq!(birch.take_all(&alder), 0);
        assert_eq!(birch.shows(), ["b"]);
        assert_eq!(birch.inbox_ino("b"), ino);
    }
}

#[test]
fn a_file_without_record_that_only_has_the_inode_number_of_a_consumed_one_is_put_aside() {
    let (alder, mut birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    let row: InName = birch
        .spool()
        .journal
        .row(IN_NAMES, &rel("a"))
        .unwrap()
        .unwrap();
    // The removal did not reach the journal, and the number went to a file of the same length.
    fs::rename(birch.inbox("a"), birch.inbox("other")).unwrap();
    fs::write(birch.inbox("other"), b"two").unwrap();
    assert_eq!(birch.inbox_ino("other"), row.ino);
    birch.power_loss();
    assert_eq!(birch.shows(), [""; 0]);
    assert_eq!(birch.spool().counts().quarantined, 1);
}

#[test]
fn a_rename_that_the_disk_refuses_leaves_the_old_name_and_no_trace() {
    let (alder, mut birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    let bundle = alder.rename("a", "b");
    // Something not ours is in the way.
    fs::create_dir_all(birch.inbox("b/full")).unwrap();
    assert!(birch.renames_only(&alder, bundle));
    assert_eq!(birch.shows(), ["b~alder"], "another name is found");
    let rows = birch.spool().journal.rows(RENAMES.all(), 9);
    assert_eq!(rows.unwrap().len(), 0);
    birch.stop();
    birch.start();
    assert_eq!(birch.shows(), ["b~alder"]);
}

#[test]
fn a_path_removed_and_made_again_is_a_new_version_and_the_old_one_is_shown_as_superseded() {
    let (alder, birch) = pair();
    alder.drop_file("job", b"1");
    alder.remove("job");
    alder.drop_file("job", b"2");
    alder.spool().journal.flush().unwrap();
    let rows = alder.spool().outbound(None, 9);
    let states: Vec<_> = rows.iter().map(|row| row.state.word()).collect();
    assert_eq!(states, ["queued", "superseded"]);
    birch.take_all(&alder);
    assert_eq!(fs::read(birch.inbox("job")).unwrap(), b"2");
}

#[test]
fn former_names_beyond_the_limit_are_refused() {
    let (alder, _birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    let mut manifest = alder.manifest(bundle).manifest().clone();
    let former = crate::bundle::Former {
        path: rel("b"),
        epoch: 1,
        incarnation: [0; 16],
        seq: 1,
        entry: None,
        bundle,
        gone: 1,
    };
    manifest.renamed_from = vec![former; crate::bundle::FORMERS_MAX];
    let sign = |manifest: &crate::bundle::Manifest| {
        let signed = manifest.clone().sign(&alder.identity).signed().clone();
        signed.verify().is_ok()
    };
    assert!(sign(&manifest));
    manifest.renamed_from.push(manifest.renamed_from[0].clone());
    assert!(!sign(&manifest));
}

#[test]
fn versions_of_a_path_that_was_renamed_away_never_go_back() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    let second = alder.drop_file("a", b"two");
    birch.take_all(&alder);
    alder.rename("a", "b");
    birch.take_all(&alder);
    let version = birch.spool().version(alder.id(), &rel("a"));
    let version = version.unwrap().unwrap();
    assert_eq!(version.order, alder.manifest(second).manifest().order());
}

#[test]
fn a_modification_that_failed_leaves_a_file_that_is_not_incomplete() {
    for written in [false, true] {
        let (mut alder, birch) = pair();
        let bundle = alder.drop_file("a", b"old");
        birch.take(&alder, bundle);
        let gate = alder.spool().outbox.gate(alder.ino("a"));
        {
            let mut guard = gate.lock();
            let spool = alder.spool();
            assert!(spool.outbox.before_modify(&mut guard, &rel("a")).unwrap());
            if written {
                guard.reshaped();
                assert!(spool.outbox.before_modify(&mut guard, &rel("a")).unwrap());
            }
            spool.outbox.not_modified(&mut guard);
        }
        alder.stop();
        alder.start();
        assert_eq!(alder.spool().counts().incomplete, u64::from(written));
        // Its content link is gone, so it is hashed once more; nothing is sent of it.
        let found = alder.spool().outbox.recovered();
        assert_eq!(found.iter().any(|file| file.incomplete), written);
        if !written {
            assert_eq!(alder.sealed("a"), bundle);
        }
    }
}

#[test]
fn what_was_sent_from_a_path_is_known_after_the_file_is_gone_and_delivered() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"x");
    alder.remove("a");
    let state = || alder.spool().outbound_last(&rel("a")).map(|row| row.state);
    alder.spool().journal.flush().unwrap();
    assert_eq!(state(), Some(Stage::Queued));
    birch.take(&alder, bundle);
    assert_eq!(state(), Some(Stage::Delivered));
    assert!(alder.spool().outbound_last(&rel("b")).is_none());
}
