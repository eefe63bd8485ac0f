//! The name of a directory that becomes a file's, and back.

use super::renames::heard;
use super::*;

const FILES: usize = 20;

impl Node {
    fn drop_directory(&self, directory: &str) {
        for n in 0..FILES {
            self.drop_file(
                &format!("{directory}/{n}"),
                format!("{directory} {n}").as_bytes(),
            );
        }
    }

    fn seal_directory(&self, directory: &str) {
        for n in 0..FILES {
            self.sealed(&format!("{directory}/{n}"));
        }
    }

    /// Everything in the inbox, directories with a slash at their end.
    fn tree(&self) -> Vec<String> {
        let (mut found, mut open) = (Vec::new(), vec![self.inbox("")]);
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let at = entry.unwrap().path();
                let below = at.strip_prefix(self.inbox("")).unwrap();
                let below = below.to_str().unwrap().to_owned();
                if at.is_dir() {
                    found.push(format!("{below}/"));
                    open.push(at);
                } else {
                    found.push(below);
                }
            }
        }
        found.sort();
        found
    }

    fn read_inbox(&self, path: &str) -> String {
        fs::read_to_string(self.inbox(path)).unwrap()
    }
}

fn files_of(directory: &str) -> Vec<String> {
    let mut names: Vec<String> = (0..FILES).map(|n| format!("{directory}/{n}")).collect();
    names.push(format!("{directory}/"));
    names
}

fn sorted(lists: &[&[String]]) -> Vec<String> {
    let mut all: Vec<String> = lists.iter().flat_map(|list| list.iter().cloned()).collect();
    all.sort();
    all
}

#[test]
fn a_file_gets_the_name_of_a_directory_that_was_renamed_in_whatever_order_it_is_heard_of() {
    for first in [false, true] {
        let (alder, mut birch) = pair();
        alder.drop_directory("d");
        birch.take_all(&alder);
        alder.move_directory("d", "e");
        if first {
            let file = alder.drop_file("d", b"x");
            birch.take(&alder, file);
            assert!(birch.inbox("d~alder").exists(), "the tree is still there");
        } else {
            alder.seal_directory("e");
            alder.drop_file("d", b"x");
        }
        let ino = first.then(|| birch.inbox_ino("d~alder"));
        if first {
            alder.seal_directory("e");
        }
        let heard = heard(&birch);
        assert_eq!(birch.take_all(&alder), u64::from(!first), "no bytes twice");
        let want = sorted(&[&files_of("e"), &["d".to_owned()]]);
        assert_eq!(birch.tree(), want, "first {first}");
        if let Some(ino) = ino {
            assert_eq!(birch.inbox_ino("d"), ino);
            let heard = heard.0.lock();
            assert_eq!(
                heard[heard.len() - 2..],
                ["removed d", "renamed d~alder to d"]
            );
            let shown = birch.spool().inbound(None, 99);
            assert!(shown.iter().any(|row| row.path == "d"), "{shown:?}");
        }
        birch.stop();
        birch.start();
        assert_eq!(birch.tree(), want);
        alder.drop_file("d", b"next");
        birch.take_all(&alder);
        assert_eq!(birch.read_inbox("d"), "next");
        assert_eq!(birch.tree(), want);
        birch.consume("d");
        alder.drop_file("d", b"again");
        birch.take_all(&alder);
        assert_eq!(birch.read_inbox("d"), "again");
    }
}

#[test]
fn a_file_out_of_a_directory_takes_its_name() {
    let (alder, birch) = pair();
    alder.drop_file("d/d", &pattern(3 * LEAF as usize));
    birch.take_all(&alder);
    let ino = birch.inbox_ino("d/d");
    alder.move_directory("d", "t");
    alder.move_file("t/d", "d");
    fs::remove_dir(alder.outbox("t")).unwrap();
    alder.sealed("d");
    assert_eq!(birch.take_all(&alder), 0, "no bytes");
    assert_eq!(birch.tree(), ["d"]);
    assert_eq!(birch.inbox_ino("d"), ino);
    alder.drop_file("d", b"next");
    birch.take_all(&alder);
    assert_eq!(birch.tree(), ["d"]);
}

#[test]
fn a_file_and_a_directory_change_places_in_whatever_order_it_is_heard_of() {
    for (file_first, exchange) in [(false, false), (true, false), (false, true), (true, true)] {
        let (alder, birch) = pair();
        alder.drop_file("p", b"the file");
        alder.drop_directory("q");
        birch.take_all(&alder);
        if exchange {
            alder.exchange("p", "q");
        } else {
            alder.move_file("p", "t");
            alder.move_directory("q", "p");
            alder.move_file("t", "q");
        }
        if file_first {
            alder.sealed("q");
            birch.take_all(&alder);
        }
        alder.seal_directory("p");
        if !file_first {
            birch.take_all(&alder);
            alder.sealed("q");
        }
        birch.take_all(&alder);
        let want = sorted(&[&files_of("p"), &["q".to_owned()]]);
        assert_eq!(birch.tree(), want, "file first {file_first}");
        assert_eq!(birch.read_inbox("q"), "the file");
    }
}

#[test]
fn empty_directories_in_the_way_go_with_the_last_file() {
    for consumed in [false, true] {
        let (alder, birch) = pair();
        alder.fill(".d", &[("x", b"x"), ("sub/y", b"y")]);
        fs::create_dir_all(alder.outbox(".d/empty/more")).unwrap();
        birch.take(&alder, alder.commit(".d", "d"));
        if consumed {
            birch.consume("d/x");
            birch.consume("d/sub/y");
        }
        alder.move_directory("d", "e");
        let file = alder.drop_file("d", b"file");
        birch.take(&alder, file);
        alder.sealed("e/x");
        alder.sealed("e/sub/y");
        birch.take_all(&alder);
        if consumed {
            assert_eq!(birch.shows().len(), 1);
        } else {
            assert_eq!(birch.tree(), ["d", "e/", "e/sub/", "e/sub/y", "e/x"]);
        }
    }
}

#[test]
fn what_is_left_of_a_tree_keeps_its_name_until_it_is_consumed() {
    let (alder, mut birch) = pair();
    alder.drop_file("d/x", b"x");
    birch.take_all(&alder);
    // Removed, not renamed: nobody is told.
    alder.remove("d/x");
    fs::remove_dir(alder.outbox("d")).unwrap();
    alder.drop_file("d", b"file");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["d/x", "d~alder"]);
    birch.stop();
    birch.start();
    birch.consume("d/x");
    assert_eq!(
        birch.shows(),
        ["d~alder"],
        "the user may be about to remove it"
    );
    birch.spool().look_home(true).unwrap();
    assert_eq!(birch.tree(), ["d/", "d~alder"]);
    birch.spool().inbox_rmdir(&rel("d")).unwrap();
    assert_eq!(birch.tree(), ["d"]);
    assert_eq!(birch.read_inbox("d"), "file");
}

#[test]
fn an_emptied_directory_that_nobody_removes_gives_way_in_time() {
    let (alder, mut birch) = pair();
    alder.drop_file("d/x", b"x");
    birch.take_all(&alder);
    alder.remove("d/x");
    fs::remove_dir(alder.outbox("d")).unwrap();
    alder.drop_file("d", b"file");
    birch.take_all(&alder);
    birch.consume("d/x");
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(60);
    let directory = File::open(birch.inbox("d")).unwrap();
    directory.set_modified(long_ago).unwrap();
    birch.spool().look_home(true).unwrap();
    assert_eq!(birch.tree(), ["d"]);
    birch.stop();
    birch.start();
    assert_eq!(birch.tree(), ["d"]);
}

#[test]
fn a_provisional_name_whose_file_was_consumed_is_not_used_again() {
    let (alder, birch) = pair();
    alder.drop_file("d/x", b"x");
    birch.take_all(&alder);
    alder.move_file("d/x", "x");
    fs::remove_dir(alder.outbox("d")).unwrap();
    let file = alder.drop_file("d", b"file");
    birch.take(&alder, file);
    birch.consume("d~alder");
    alder.sealed("x");
    birch.take_all(&alder);
    assert_eq!(birch.tree(), ["x"]);
    alder.drop_file("d", b"next");
    birch.take_all(&alder);
    assert_eq!(birch.tree(), ["d", "x"]);
}

#[test]
fn a_name_chosen_for_anothers_sake_is_kept() {
    let (alder, mut birch) = pair();
    let cedar = Node::new();
    cedar.knows(&birch, "birch");
    birch.knows(&cedar, "cedar");
    alder.drop_file("d/x", b"x");
    cedar.drop_file("d/y", b"y");
    birch.take_all(&alder);
    birch.take_all(&cedar);
    alder.move_file("d/x", "x");
    fs::remove_dir(alder.outbox("d")).unwrap();
    let file = alder.drop_file("d", b"file");
    birch.take(&alder, file);
    alder.sealed("x");
    birch.take_all(&alder);
    cedar.rename("d/y", "y");
    birch.take_all(&cedar);
    birch.stop();
    birch.start();
    assert_eq!(birch.shows(), ["d~alder", "x", "y"]);
}

#[test]
fn a_way_home_that_a_power_loss_cut_off_is_gone_again() {
    for power in [false, true] {
        let (alder, mut birch) = pair();
        alder.drop_file("d/x", b"x");
        birch.take_all(&alder);
        alder.remove("d/x");
        fs::remove_dir(alder.outbox("d")).unwrap();
        alder.drop_file("d", b"file");
        birch.take_all(&alder);
        birch.consume("d/x");
        fs::remove_dir(birch.inbox("d")).unwrap();
        fs::rename(birch.inbox("d~alder"), birch.inbox("d")).unwrap();
        if power {
            birch.power_loss();
        } else {
            birch.stop();
            birch.start();
        }
        assert_eq!(birch.tree(), ["d"], "power {power}");
        assert_eq!(birch.spool().counts().quarantined, 0);
        alder.drop_file("d", b"next");
        birch.take_all(&alder);
        assert_eq!(birch.tree(), ["d"]);
        assert_eq!(birch.read_inbox("d"), "next");
    }
}
