//! Two names that are exchanged, and the trees that they belong to.

use super::*;

fn file(ino: Ino) -> Moved {
    Moved::File { ino }
}

fn directory(files: &[&str]) -> Moved {
    Moved::Directory {
        files: members(files),
    }
}

fn tree(tree: u64, root: &str, files: &[&str]) -> Moved {
    Moved::Tree {
        tree,
        files: members(files),
        directories: vec![path(root)],
    }
}

/// Plays what comes before, then exchanges; each side with what it showed before under its new name.
fn exchanged(before: &str, at: u64, a: (&str, Moved), b: (&str, Moved)) -> (String, Player) {
    let mut player = Player::new(5);
    player.play(before);
    player.until(at);
    player.event(Event::Exchanged {
        a: (path(a.0), a.1),
        b: (path(b.0), b.1),
    });
    let sealed = player.sealed();
    assert!(player.is_empty(), "{sealed} leaves {:?}", player.ready);
    (sealed, player)
}

#[test]
fn a_directory_that_is_published_by_an_exchange_is_sealed_as_if_renamed() {
    for turned in [false, true] {
        let new = (".h", tree(9, "g", &["1=g/a", "2=g/.b"]));
        let old = ("g", directory(&["3=.h/a"]));
        let (a, b) = if turned { (old, new) } else { (new, old) };
        assert_eq!(exchanged("", 0, a, b).0, "g[g/.b,g/a]@5");
    }
}

#[test]
fn a_tree_that_waits_and_one_that_takes_its_place_change_places() {
    let before = "0 commit 8 .g g 3=g/a";
    let new = (".h", tree(9, "g", &["1=g/a"]));
    let (sealed, player) = exchanged(before, 1, new, ("g", directory(&["3=.h/a"])));
    assert_eq!(sealed, "g[g/a]@6");
    assert_eq!(player.count(|a| *a == Action::DropTree { tree: 8 }), 1);
    let (a, b) = (directory(&["3=k/a"]), directory(&["4=g/a"]));
    let (sealed, _) = exchanged(before, 1, ("g", a), ("k", b));
    assert_eq!(sealed, "k[k/a]@5 g/a@6");
}

#[test]
fn members_of_one_tree_that_are_exchanged_both_stay_members() {
    let before = "0 commit 9 .d d 1=d/a 2=d/b 3=d/x/f 4=d/y/f 5=d/y/g";
    let (sealed, _) = exchanged(before, 1, ("d/a", file(1)), ("d/b", file(2)));
    assert_eq!(sealed, "d[d/a,d/b,d/x/f,d/y/f,d/y/g]@5");
    let (x, y) = (directory(&["3=d/y/f"]), directory(&["4=d/x/f", "5=d/x/g"]));
    let (sealed, _) = exchanged(before, 1, ("d/x", x), ("d/y", y));
    assert_eq!(sealed, "d[d/a,d/b,d/x/f,d/x/g,d/y/f]@5");
}

#[test]
fn names_of_one_inode_below_both_stay_names() {
    let before = "0 create 1 d/f w; 0 link 1 e/f; 1 write 1";
    let mut player = Player::new(5);
    player.play(before);
    player.event(Event::Exchanged {
        a: (path("d"), directory(&["1=e/f"])),
        b: (path("e"), directory(&["1=d/f"])),
    });
    player.play("9 release 1");
    let sealed = player.sealed();
    assert!(sealed.contains("d/f") && sealed.contains("e/f"), "{sealed}");
    assert!(player.is_empty());
}
