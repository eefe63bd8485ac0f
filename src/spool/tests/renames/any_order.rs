//! Renames that are heard of, or sealed, in another order than that in which they happened.

use super::*;

/// `t` moved on to `t2`, and what was consumed as `c` got its name: both are sealed, in the order of `t_first`.
fn moved_on_and_taken(t_first: bool, restart: bool) -> (Node, Node, [BundleId; 2]) {
    let (mut alder, birch) = pair();
    alder.drop_file("t", b"old");
    alder.drop_file("c", b"job");
    birch.take_all(&alder);
    birch.consume("c");
    alder.move_file("t", "t2");
    alder.move_file("c", "t");
    if restart {
        alder.stop();
        alder.start();
    }
    let mut names = ["t2", "t"];
    if !t_first {
        names.reverse();
    }
    let bundles = names.map(|name| alder.sealed(name));
    (alder, birch, bundles)
}

#[test]
fn renames_that_come_from_several_holders_in_any_order_show_nothing_that_was_consumed() {
    for reverse in [false, true] {
        let (alder, birch, mut bundles) = moved_on_and_taken(true, false);
        if reverse {
            bundles.reverse();
        }
        for bundle in bundles {
            birch.take(&alder, bundle);
        }
        assert_eq!(birch.shows(), ["t2"], "reverse {reverse}");
    }
}

#[test]
fn renames_sealed_in_another_order_after_a_restart_or_a_failure_show_nothing_that_was_consumed() {
    for (restart, t_first) in [(true, true), (true, false), (false, false)] {
        let (alder, birch, bundles) = moved_on_and_taken(t_first, restart);
        for bundle in bundles {
            birch.take(&alder, bundle);
        }
        assert_eq!(birch.shows(), ["t2"], "restart {restart}");
    }
}

#[test]
fn files_that_change_places_show_nothing_that_was_consumed_whatever_is_heard_of_first() {
    for third in [false, true] {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let (alder, birch) = pair();
            for name in ["a", "b", "c"] {
                alder.drop_file(name, name.as_bytes());
            }
            birch.take_all(&alder);
            birch.consume("a");
            if third {
                // a to b, b to c, c to a.
                for (from, to) in [("a", "x"), ("c", "a"), ("b", "c"), ("x", "b")] {
                    alder.move_file(from, to);
                }
            } else {
                alder.exchange("a", "b");
            }
            let names = order.map(|at| ["a", "b", "c"][at]);
            for name in names.into_iter().filter(|name| third || *name != "c") {
                alder.sealed(name);
                birch.take_all(&alder);
            }
            assert_eq!(birch.shows(), ["a", "c"], "{names:?}");
            for name in ["a", "c"] {
                let at = alder.outbox(name);
                assert_eq!(fs::read(birch.inbox(name)).unwrap(), fs::read(at).unwrap());
            }
        }
    }
}

#[test]
fn what_was_removed_or_got_an_ignored_name_is_replaced_also_by_a_consumed_file() {
    for end in [
        "removed",
        "ignored",
        "moved and removed",
        "moved and changed",
        "cancelled",
    ] {
        let (alder, birch) = pair();
        alder
            .spool()
            .outbox
            .set_unsent(|path| path.as_bytes().ends_with(b"~"));
        alder.drop_file("t", b"old");
        alder.drop_file("c", b"job");
        birch.take_all(&alder);
        birch.consume("c");
        match end {
            "removed" => alder.remove("t"),
            "ignored" => alder.move_file("t", "t~"),
            "moved and removed" => {
                alder.move_file("t", "t2");
                alder.remove("t2");
            }
            "moved and changed" => {
                alder.move_file("t", "t2");
                alder.drop_file("t2", b"changed");
            }
            _ => {
                let bundle = alder.rename("t", "t2");
                alder.spool().cancel(bundle).unwrap();
            }
        }
        alder.rename("c", "t");
        birch.take_all(&alder);
        assert_eq!(fs::read(birch.inbox("t")).unwrap(), b"job", "{end}");
    }
}

#[test]
fn an_old_version_that_was_missed_to_be_replaced_goes_when_its_name_has_another_file() {
    for reverse in [false, true] {
        let (alder, birch) = pair();
        alder.drop_file("t", b"old");
        alder.drop_file("c", b"job");
        birch.take_all(&alder);
        birch.consume("c");
        // birch misses the newer version of the file that moves on.
        alder.drop_file("t", b"newer");
        let mut bundles = [alder.rename("t", "t2"), alder.rename("c", "t")];
        if reverse {
            bundles.reverse();
        }
        for bundle in bundles {
            birch.take(&alder, bundle);
        }
        assert_eq!(birch.shows(), ["t2"], "reverse {reverse}");
        assert_eq!(fs::read(birch.inbox("t2")).unwrap(), b"newer");
    }
}

#[test]
fn a_rename_that_is_outdated_when_it_comes_still_says_that_its_file_was_consumed() {
    let (alder, birch) = pair();
    alder.drop_file("c", b"job");
    birch.take_all(&alder);
    birch.consume("c");
    let first = alder.manifest(alder.rename("c", "t"));
    alder.move_file("t", "z");
    let newer = alder.drop_file("t", b"newer");
    birch.take(&alder, newer);
    // By another holder, after it was superseded.
    birch.feed(&first, &[b"job"]);
    birch.spool().journal.flush().unwrap();
    let receipt = birch.spool().ledger.receipt(first.id()).unwrap();
    alder.spool().take_receipt(&receipt).unwrap();
    alder.sealed("z");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["t"]);
}

#[test]
fn a_version_that_comes_after_its_rename_is_not_shown_also_where_its_name_is_in_use() {
    let (alder, birch) = pair();
    let first = alder.drop_file("t", b"one");
    let first = alder.manifest(first);
    alder.move_file("t", "t2");
    fs::write(alder.outbox("t"), b"being written").unwrap();
    let moved = alder.sealed("t2");
    birch.take(&alder, moved);
    birch.consume("t2");
    birch.feed(&first, &[b"one"]);
    assert_eq!(birch.shows(), [""; 0]);
}

#[test]
fn a_rename_whose_rows_were_cut_off_by_a_kill_is_still_one() {
    for exchange in [false, true] {
        let (mut alder, birch) = pair();
        alder.drop_file("a", b"one");
        alder.drop_file("b", b"other");
        alder.drop_file("d/x", b"in d");
        birch.take_all(&alder);
        birch.consume("a");
        let ino = birch.inbox_ino("d/x");
        // The system call was done, and nobody was told of it.
        if exchange {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let (a, b) = (alder.outbox("a"), alder.outbox("b"));
            renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
        } else {
            fs::rename(alder.outbox("a"), alder.outbox("c")).unwrap();
        }
        fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
        alder.stop();
        alder.start();
        for file in alder.spool().outbox.recovered() {
            assert!(!file.incomplete, "{}", file.path);
            alder.sealed(&file.path.to_string());
        }
        birch.take_all(&alder);
        let want = if exchange { ["a", "e/x"] } else { ["b", "e/x"] };
        assert_eq!(birch.shows(), want, "exchange {exchange}");
        assert_eq!(fs::read(birch.inbox(want[0])).unwrap(), b"other");
        assert_eq!(birch.inbox_ino("e/x"), ino);
        assert_eq!(alder.spool().outbox.displaced(), []);
        assert_eq!(alder.spool().outbox.left(), []);
    }
}

#[test]
fn each_name_of_a_file_follows_a_rename_whose_rows_were_cut_off_by_a_kill() {
    for consumed in ["d/x", "d/y"] {
        let (mut alder, birch) = pair();
        alder.drop_file("d/x", b"one");
        alder.link("d/x", "d/y");
        alder.sealed("d/y");
        birch.take_all(&alder);
        birch.consume(consumed);
        // The system call was done, and nobody was told of it.
        fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
        alder.stop();
        alder.start();
        for file in alder.spool().outbox.recovered() {
            assert!(!file.incomplete, "{}", file.path);
            alder.sealed(&file.path.to_string());
        }
        birch.take_all(&alder);
        let want = if consumed == "d/x" { "e/y" } else { "e/x" };
        assert_eq!(birch.shows(), [want]);
        assert_eq!(alder.spool().outbox.displaced(), []);
    }
}

#[test]
fn rows_of_each_name_of_a_file_that_is_gone_go_at_the_start() {
    let (mut alder, birch) = pair();
    alder.drop_file("x", b"one");
    alder.link("x", "y");
    alder.sealed("y");
    birch.take_all(&alder);
    fs::remove_file(alder.outbox("x")).unwrap();
    fs::remove_file(alder.outbox("y")).unwrap();
    alder.stop();
    alder.start();
    assert_eq!(alder.spool().outbox.names(None, 9).unwrap(), []);
}

#[test]
fn a_file_that_took_the_inode_number_of_a_removed_one_is_a_new_file() {
    let (mut alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    // Written anew through the same inode, behind the journal's back.
    fs::rename(alder.outbox("a"), alder.outbox("b")).unwrap();
    fs::write(alder.outbox("b"), b"two").unwrap();
    alder.stop();
    alder.start();
    for file in alder.spool().outbox.recovered() {
        alder.sealed(&file.path.to_string());
    }
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a", "b"]);
    assert_eq!(fs::read(birch.inbox("b")).unwrap(), b"two");
}

#[test]
fn who_missed_many_renames_of_what_it_consumed_or_shows_follows_the_last_one() {
    for consumed in [false, true] {
        let (alder, birch) = pair();
        alder.drop_file("n0", &pattern(BIG));
        birch.take_all(&alder);
        if consumed {
            birch.consume("n0");
        }
        let many = 2 * crate::bundle::FORMERS_MAX;
        for n in 0..many {
            alder.rename(&format!("n{n}"), &format!("n{}", n + 1));
        }
        assert_eq!(birch.take_all(&alder), 0);
        let last = format!("n{many}");
        let want: &[String] = if consumed { &[] } else { &[last] };
        assert_eq!(birch.shows(), want);
    }
}
