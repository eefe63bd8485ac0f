//! Directories renamed from an ignored name to an ordinary one.

use super::*;

/// In words of [`Player::play`]; a tree is `ROOT[MEMBERS]@WHEN`.
#[rustfmt::skip] // As the table of programs.
const TRACES: &[(&str, &str, &str)] = &[
    (
        "cp -r d .d && mv .d d",
        "0 create 1 .d/a wx; 0 write 1; 1 release 1; 1 create 2 .d/.b wx; 1 write 2; 2 release 2; 3 commit 9 .d d 1=d/a 2=d/.b",
        "d[d/.b,d/a]@8",
    ),
    ("nothing of it is in memory", "0 commit 9 .d d 1=d/a 2=d/b", "d[d/a,d/b]@5"),
    ("an empty directory", "0 commit 9 .d d", "d[]@5"),
    (
        "a member is open at the rename",
        "0 create 1 .d/a wx; 0 write 1; 1 commit 9 .d d 1=d/a 2=d/b; 900 write 1; 901 release 1",
        "d[d/a,d/b]@906",
    ),
    (
        "two members are open, one twice",
        "0 create 1 .d/a wx; 0 open 1:7 .d/a; 0 open 2 .d/b; 1 commit 9 .d d 1=d/a 2=d/b; 10 write 1; 10 release 1; 20 release 2; 30 release 1:7",
        "d[d/a,d/b]@35",
    ),
    (
        "a member is opened before it is due",
        "0 commit 9 .d d 1=d/a 2=d/b; 2 open 1 d/a; 900 write 1; 901 release 1",
        "d[d/a,d/b]@906",
    ),
    (
        "a file that is made in it later goes alone",
        "0 create 1 .d/a wx; 0 write 1; 1 commit 9 .d d 1=d/a; 2 create 3 d/new wx; 2 write 3; 3 release 3; 50 release 1",
        "d/new@8 d[d/a]@55",
    ),
    (
        "a member that is removed holds nothing up",
        "0 create 1 .d/a wx; 0 write 1; 1 commit 9 .d d 1=d/a 2=d/b; 20 unlink 1 d/a 0; 90 release 1",
        "d[d/a,d/b]@25",
    ),
    (
        "a member moved out goes alone, one moved within stays",
        "0 open 3 .d/c; 0 commit 9 .d d 1=d/a 2=d/b 3=d/c; 2 rename 1 d/a x; 2 rename 2 d/b d/z; 90 release 3",
        "x<d/a@7 d[d/c,d/z]@95",
    ),
    (
        "its writer is killed, then it is written again",
        "0 create 1 .d/a wx; 0 write 1; 1 commit 9 .d d 1=d/a 2=d/b; 2 kill 1; 2 release 1; 500 open 1 d/a; 500 write 1; 501 release 1",
        "d[d/a,d/b]@506",
    ),
    (
        "its writer is killed, and the user sends it",
        "0 create 1 .d/a wx; 0 write 1; 1 commit 9 .d d 1=d/a 2=d/b; 2 kill 1; 2 release 1; 500 send 1 d/a",
        "d[d/a,d/b]@505",
    ),
    (
        "its writer was killed before the rename",
        "0 create 1 .d/a wx; 0 write 1; 1 kill 1; 1 release 1; 2 commit 9 .d d 1=d/a",
        "d[d/a]@7",
    ),
    (
        "renamed again before it is due",
        "0 commit 9 .d d 1=d/a 2=d/b; 2 mvdir 0 d e 1=e/a 2=e/b",
        "e[e/a,e/b]@5",
    ),
    (
        "a directory above it is renamed",
        "0 commit 9 p/.d p/d 1=p/d/a; 2 mvdir 0 p q 1=q/d/a 5=q/other",
        "q/d[q/d/a]@5 q/other<p/other@7",
    ),
    ("renamed back", "0 commit 9 .d d 1=d/a; 2 mvdir 0 d .d 1=.d/a", ""),
    (
        "changed after it was sent: that file alone",
        "0 commit 9 .d d 1=d/a 2=d/.b; 50 open 1 d/a; 51 write 1; 52 release 1; 60 open 2 d/.b; 61 write 2; 62 release 2",
        "d[d/.b,d/a]@5 d/a@57",
    ),
];

#[test]
fn a_directory_that_gets_an_ordinary_name_is_sealed_at_once_and_once() {
    assert_traces(5, TRACES);
}

#[test]
fn a_member_that_changes_while_the_tree_is_sealed_is_sent_afterwards_and_not_before() {
    let mut player = Player::new(5);
    player.tree_results = vec![None];
    player.play(
        "0 commit 9 .d d 1=d/a 2=d/b; 10 open 1 d/a; 11 write 1; 12 release 1; 900 done 9 sealed",
    );
    assert_eq!(player.sealed(), "d[d/a,d/b]@5 d/a@905");
    assert!(player.is_empty(), "{:?}", player.ready);
}

#[test]
fn a_seal_that_met_a_writer_is_tried_again_with_all_members() {
    let mut player = Player::new(5);
    player.tree_results = vec![None];
    player.play(
        "0 commit 9 .d d 1=d/a 2=d/b; 10 open 1 d/a; 11 write 1; 20 done 9 changed; 700 release 1",
    );
    assert_eq!(player.sealed(), "d[d/a,d/b]@5 d[d/a,d/b]@705");
    assert!(player.is_empty(), "{:?}", player.ready);
}

#[test]
fn a_seal_that_failed_is_tried_again() {
    let mut player = Player::new(5);
    player.tree_results = vec![Some(SealResult::Failed), Some(SealResult::Failed)];
    player.play("0 commit 9 .d d 1=d/a");
    assert_eq!(player.sealed(), "d[d/a]@5 d[d/a]@1005 d[d/a]@3005");
    assert!(player.is_empty(), "{:?}", player.ready);
}

#[test]
fn what_it_waits_for_is_shown() {
    let mut player = Player::new(5);
    player.play("0 create 1 .d/f w; 0 write 1; 1 commit 9 .d d 1=d/f 2=d/.g; 50 open 3 d/h");
    let shown = |player: &Player, ino, name: &str| player.ready.shown(ino, &path(name));
    assert_eq!(shown(&player, 1, "d/f"), Some(Shown::Open));
    assert_eq!(shown(&player, 2, "d/.g"), Some(Shown::Waiting(path("d/f"))));
    let directory = player.ready.shown_directory(&path("d"));
    assert_eq!(directory, Some(Shown::Waiting(path("d/f"))));
    player.play("60 kill 1; 61 release 1");
    assert_eq!(shown(&player, 1, "d/f"), Some(Shown::Incomplete));
    assert_eq!(shown(&player, 2, "d/.g"), Some(Shown::Waiting(path("d/f"))));
    player.play("70 send 1 d/f; 99 release 3");
    assert_eq!(player.sealed(), "d[d/.g,d/f]@75");
    assert_eq!(player.ready.shown_directory(&path("d")), None);
}

#[test]
fn a_recovered_tree_waits_for_what_is_incomplete() {
    let recovered = |incomplete| Event::TreeRecovered {
        tree: 4,
        root: path("d"),
        files: vec![(1, path("d/.a"), incomplete), (2, path("d/b"), false)],
        directories: vec![path("d")],
    };
    let mut player = Player::new(5);
    player.event(recovered(false));
    assert_eq!(player.sealed(), "d[d/.a,d/b]@5");
    assert!(player.is_empty(), "{:?}", player.ready);
    let mut player = Player::new(5);
    player.event(recovered(true));
    assert_eq!(player.sealed(), "");
    let torn = |action: &Action| matches!(action, Action::MarkTorn { ino: 1, .. });
    assert_eq!(player.count(torn), 1);
    player.play("900000 send 1 d/.a");
    assert_eq!(player.sealed(), "d[d/.a,d/b]@900005");
}

#[test]
fn a_tree_renamed_back_is_dropped() {
    let mut player = Player::new(5);
    player.play("0 commit 9 .d d 1=d/a; 2 mvdir 0 d .d 1=.d/a");
    assert_eq!(
        player.count(|action| *action == Action::DropTree { tree: 9 }),
        1
    );
    assert!(player.ready.is_commit(&path(".d"), &path("d")));
    assert!(player.ready.is_commit(&path(".tmp/d"), &path("d")));
    assert!(!player.ready.is_commit(&path("d"), &path("e")));
    assert!(!player.ready.is_commit(&path(".d"), &path(".e")));
}
