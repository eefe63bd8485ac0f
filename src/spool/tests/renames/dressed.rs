//! A file whose mode or time was set after its seal.

use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::spool::outbox::seal::mtime_of;

const OLD: Duration = Duration::from_secs(1_000_000_000);

impl Node {
    /// `chmod` and `touch -d`, as `install` does.
    fn dress(&self, path: &str, mode: u32, after: Duration) {
        let file = File::open(self.outbox(path)).unwrap();
        file.set_permissions(fs::Permissions::from_mode(mode))
            .unwrap();
        file.set_modified(UNIX_EPOCH + after).unwrap();
    }

    /// What the state machine asks for some time later.
    fn announce_dress(&self, path: &str) -> BundleId {
        let (done, outcome) = crossbeam_channel::bounded(1);
        let name = SealName {
            path: rel(path),
            renamed_from: Some(rel(path)),
        };
        let done = move |outcome| done.send(outcome).unwrap();
        self.spool().outbox.seal(SealRequest::alone(
            self.spool().outbox.gate(self.ino(path)),
            name,
            done,
        ));
        match outcome.recv().unwrap() {
            SealOutcome::Sealed(bundle) => bundle,
            other => panic!("{other:?}"),
        }
    }

    fn shows_dress(&self, path: &str) -> (u32, Duration) {
        let meta = fs::metadata(self.inbox(path)).unwrap();
        let time = meta.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
        (meta.mode() & 0o777, time)
    }
}

#[test]
fn mode_and_time_are_changed_in_place_and_without_bytes() {
    for size in [5, BIG] {
        let (alder, mut birch) = pair();
        alder.drop_file("a", &pattern(size));
        birch.take_all(&alder);
        let ino = birch.inbox_ino("a");
        let heard = heard(&birch);
        for (mode, shown) in [(0o755, 0o755), (0o100, 0o755), (0o644, 0o644)] {
            let after = OLD + Duration::from_nanos(mode.into());
            alder.dress("a", mode | 0o400, after);
            let bundle = alder.announce_dress("a");
            assert!(birch.renames_only(&alder, bundle), "settled when offered");
            assert_eq!(birch.take_all(&alder), 0, "no bytes");
            assert_eq!(birch.shows_dress("a"), (shown, after));
            assert_eq!(birch.inbox_ino("a"), ino);
            assert_eq!(alder.spool().outbound(None, 9)[0].state, "delivered");
            assert_eq!(
                birch
                    .spool()
                    .inbox_state(&rel("a"), birch.inbox_ino("a"))
                    .word(),
                "received"
            );
        }
        assert_eq!(*heard.0.lock(), ["renamed a to a"; 3], "no arrival");
        birch.stop();
        birch.start();
        assert_eq!(birch.shows(), ["a"]);
        assert_eq!(birch.spool().counts().quarantined, 0);
        // Content after that is a new version as ever.
        alder.drop_file("a", b"new");
        birch.take_all(&alder);
        assert_eq!(fs::read(birch.inbox("a")).unwrap(), b"new");
    }
}

#[test]
fn what_is_as_it_was_announced_is_not_sent() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("a", b"one");
    birch.take_all(&alder);
    let meta = fs::metadata(alder.outbox("a")).unwrap();
    let (secs, nanos) = mtime_of(&meta);
    alder.dress("a", 0o600, Duration::new(secs as u64, nanos));
    assert_eq!(alder.announce_dress("a"), bundle);
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
    assert_eq!(alder.spool().outbound(None, 9).len(), 1);
}

#[test]
fn what_was_consumed_is_settled_and_not_shown_again() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    birch.consume("a");
    for mode in [0o755, 0o644] {
        alder.dress("a", mode, OLD);
        let bundle = alder.announce_dress("a");
        assert_eq!(birch.take_all(&alder), 0);
        assert_eq!(birch.shows(), [""; 0]);
        assert_eq!(birch.spool().ledger.receipt(bundle).unwrap().bundle, bundle);
    }
    // The same bytes sent once more are shown.
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a"]);
}

#[test]
fn who_was_away_gets_the_newest_only_and_who_missed_some_is_dressed_at_once() {
    let (alder, birch) = pair();
    alder.drop_file("had", &pattern(BIG));
    birch.take_all(&alder);
    let ino = birch.inbox_ino("had");
    alder.drop_file("new", &pattern(BIG + 1));
    for path in ["had", "new"] {
        for mode in [0o755, 0o644, 0o700] {
            alder.dress(path, mode, OLD);
            alder.announce_dress(path);
        }
    }
    assert_eq!(
        alder
            .spool()
            .ledger
            .pending(birch.id(), None, 9)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(birch.take_all(&alder), BIG as u64 + 1);
    assert_eq!(birch.shows_dress("had"), (0o755, OLD));
    assert_eq!(birch.shows_dress("new"), (0o755, OLD));
    assert_eq!(birch.inbox_ino("had"), ino);
}

#[test]
fn a_rename_after_it_goes_on_from_there() {
    let (alder, birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    let ino = birch.inbox_ino("a");
    alder.dress("a", 0o755, OLD);
    alder.announce_dress("a");
    alder.rename("a", "b");
    assert_eq!(birch.take_all(&alder), 0);
    assert_eq!(birch.shows(), ["b"]);
    assert_eq!(birch.shows_dress("b"), (0o755, OLD));
    assert_eq!(birch.inbox_ino("b"), ino);
}

#[test]
fn a_daemon_that_ended_before_the_announcement_makes_it_at_its_start() {
    for (power_loss, recorded) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut alder, birch) = pair();
        alder.drop_file("a", b"one");
        birch.take_all(&alder);
        alder.spool().journal.flush().unwrap();
        if recorded {
            // As through the mount.
            let dress = || alder.dress("a", 0o755, OLD);
            let spool = alder.spool();
            spool.keep_record(alder.ino("a"), &rel("a"), dress);
            spool.journal.flush().unwrap();
        } else {
            alder.dress("a", 0o755, OLD);
        }
        if power_loss {
            alder.power_loss();
        } else {
            alder.stop();
            alder.start();
        }
        let found = alder.spool().outbox.recovered();
        assert_eq!(found.len(), 1);
        assert!(!found[0].incomplete);
        alder.sealed("a");
        assert_eq!(birch.take_all(&alder), 0, "power loss {power_loss}");
        assert_eq!(birch.shows_dress("a"), (0o755, OLD));
    }
}

#[test]
fn what_was_set_long_after_the_seal_is_not_sent_at_a_start_either() {
    let (mut alder, birch) = pair();
    let bundle = alder.drop_file("a", b"one");
    birch.take_all(&alder);
    alder.an_hour_passes();
    alder.dress("a", 0o755, OLD);
    alder.stop();
    alder.start();
    assert_eq!(alder.spool().outbox.recovered().len(), 1);
    assert_eq!(alder.sealed("a"), bundle);
    assert_eq!(
        alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
        []
    );
    // Set through the mount it is recorded, and not even looked at.
    alder.an_hour_passes();
    let dress = || alder.dress("a", 0o600, OLD + Duration::from_secs(1));
    let spool = alder.spool();
    spool.keep_record(alder.ino("a"), &rel("a"), dress);
    alder.stop();
    alder.start();
    assert_eq!(alder.spool().outbox.recovered().len(), 0);
}

#[test]
fn one_cut_off_at_the_receiver_is_completed() {
    let (alder, mut birch) = pair();
    alder.drop_file("a", &pattern(BIG));
    birch.take_all(&alder);
    let ino = birch.inbox_ino("a");
    alder.dress("a", 0o755, OLD);
    let bundle = alder.announce_dress("a");
    cut_off(&birch, &alder, bundle, "a", "a", false);
    birch.stop();
    birch.start();
    birch.spool().journal.flush().unwrap();
    assert!(birch.spool().ledger.receipt(bundle).is_some());
    assert_eq!(birch.shows_dress("a"), (0o755, OLD));
    assert_eq!(birch.inbox_ino("a"), ino);
}

/// The same rule for a symbolic link, of which only the time travels.
mod links {
    use super::*;

    impl Node {
        fn make_link(&self, path: &str, target: &str) -> BundleId {
            std::os::unix::fs::symlink(target, self.outbox(path)).unwrap();
            self.sealed_link(path, None)
        }

        fn sealed_link(&self, path: &str, renamed_from: Option<&str>) -> BundleId {
            match self.ask(path, renamed_from) {
                SealOutcome::Sealed(bundle) => bundle,
                other => panic!("{other:?}"),
            }
        }

        /// `touch -h -d`.
        fn touch_link(&self, path: &str, secs: i64) {
            let time = rustix::fs::Timespec {
                tv_sec: secs,
                tv_nsec: 7,
            };
            let times = rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, self.outbox(path), &times, flags).unwrap();
        }

        fn link_ino(&self, path: &str) -> u64 {
            fs::symlink_metadata(self.inbox(path)).unwrap().ino()
        }

        fn link_time(&self, path: &str) -> (i64, i64) {
            let meta = fs::symlink_metadata(self.inbox(path)).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        }
    }

    fn pair_with_tree() -> (Node, Node) {
        let (alder, birch) = pair();
        fs::create_dir(alder.outbox("t")).unwrap();
        (alder, birch)
    }

    #[test]
    fn its_time_is_changed_in_place() {
        let (alder, mut birch) = pair_with_tree();
        alder.make_link("t/l", "x");
        birch.take_all(&alder);
        let ino = birch.link_ino("t/l");
        let heard = heard(&birch);
        for secs in [1_000_000_000, -5] {
            alder.touch_link("t/l", secs);
            let bundle = alder.sealed_link("t/l", Some("t/l"));
            assert!(birch.renames_only(&alder, bundle), "settled when offered");
            birch.take_all(&alder);
            assert_eq!(birch.link_time("t/l"), (secs, 7));
            assert_eq!(birch.link_ino("t/l"), ino);
        }
        assert_eq!(*heard.0.lock(), ["renamed t/l to t/l"; 2], "no arrival");
        birch.stop();
        birch.start();
        assert_eq!(birch.shows(), ["t/l"]);
        assert_eq!(birch.spool().counts().unverified, 0);
        // As it was announced: nothing to send.
        assert_eq!(
            alder.spool().ledger.pending(birch.id(), None, 9).unwrap(),
            []
        );
        let last = alder.sealed_link("t/l", Some("t/l"));
        assert_eq!(alder.spool().outbound(None, 9)[0].bundle, last.to_string());
        assert_eq!(alder.spool().outbound(None, 9).len(), 3);
    }

    #[test]
    fn a_consumed_one_is_not_shown_again() {
        let (alder, birch) = pair_with_tree();
        alder.make_link("t/l", "x");
        birch.take_all(&alder);
        birch.consume("t/l");
        alder.touch_link("t/l", 1_000_000_000);
        let bundle = alder.sealed_link("t/l", Some("t/l"));
        birch.take_all(&alder);
        assert_eq!(birch.shows(), [""; 0]);
        assert_eq!(birch.spool().ledger.receipt(bundle).unwrap().bundle, bundle);
    }

    #[test]
    fn a_daemon_that_ended_before_the_announcement_makes_it_at_its_start_unless_it_was_long_after()
    {
        for (power_loss, late) in [(false, false), (true, false), (false, true)] {
            let (mut alder, birch) = pair_with_tree();
            let first = alder.make_link("t/l", "x");
            birch.take_all(&alder);
            alder.spool().journal.flush().unwrap();
            if late {
                alder.an_hour_passes();
            }
            alder.touch_link("t/l", 1_000_000_000);
            if power_loss {
                alder.power_loss();
            } else {
                alder.stop();
                alder.start();
            }
            let found = alder.spool().outbox.recovered();
            assert_eq!(found.len(), 1);
            assert!(!found[0].incomplete);
            let bundle = alder.sealed_link("t/l", None);
            assert_eq!(bundle == first, late);
            birch.take_all(&alder);
            let is_told = birch.link_time("t/l") == (1_000_000_000, 7);
            assert_eq!(is_told, !late, "power loss {power_loss}, late {late}");
        }
    }
}
