//! Modes and times that are set after the last close.

use super::*;

const COPIED: &str = "0 create 1 tool wx; 1 write 1; 2 release 1;";

fn played(settle: u64, rest: &str) -> Player {
    let mut player = Player::new(settle);
    player.play(&format!("{COPIED} {rest}"));
    player
}

#[test]
fn what_is_set_before_the_seal_is_sealed_with_it() {
    let mut player = played(5, "3 dress 1 tool; 4 dress 1 tool");
    assert_eq!(player.sealed(), "tool@7");
    assert!(player.is_empty());
}

#[test]
fn what_is_set_soon_after_the_seal_is_announced_once_when_it_is_quiet() {
    let mut player = played(5, "20 dress 1 tool; 21 dress 1 tool");
    assert_eq!(player.sealed(), "tool@7 tool<tool@1021");
    let marked = |action: &Action| !matches!(action, Action::MarkClosed { .. });
    assert_eq!(player.count(marked), 0, "{:?}", player.other);
    assert_eq!(
        player.other.len(),
        1,
        "only the first version leaves a mark"
    );
    assert!(player.is_empty());
}

#[test]
fn later_it_is_not_sent() {
    let mut player = played(5, "10100 dress 1 tool; 10200 dress 2 never_sent");
    assert_eq!(player.sealed(), "tool@7");
    assert!(player.is_empty());
}

#[test]
fn what_is_set_while_it_is_being_sealed_is_announced_afterwards() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play(&format!("{COPIED} 20000 dress 1 tool; 22000 dress 1 tool"));
    player.answer(SealResult::Sealed);
    assert_eq!(player.sealed(), "tool@7 tool<tool@23000");
    assert!(player.is_empty());
}

#[test]
fn a_long_seal_counts_from_its_end() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play(COPIED);
    player.until(30_000);
    player.answer(SealResult::Sealed);
    player.play("30001 dress 1 tool");
    assert_eq!(player.sealed(), "tool@7 tool<tool@31001");
    assert!(player.is_empty());
}

#[test]
fn what_is_set_through_a_handle_that_wrote_nothing_waits_for_its_close() {
    let mut player = played(5, "20 open 1 tool; 21 dress 1 tool; 3000 release 1");
    assert_eq!(player.sealed(), "tool@7 tool<tool@4000");
    assert!(player.is_empty());
}

#[test]
fn what_is_written_meanwhile_is_a_new_version() {
    for rest in [
        "20 dress 1 tool; 30 open 1 tool; 31 write 1; 32 release 1",
        "20 open 1 tool; 21 dress 1 tool; 31 write 1; 32 release 1",
        "20 open 1 tool; 21 write 1; 22 dress 1 tool; 32 release 1",
    ] {
        let mut player = played(5, rest);
        assert_eq!(player.sealed(), "tool@7 tool@1032", "{rest}");
        assert!(player.is_empty());
    }
}

#[test]
fn a_writer_that_comes_between_and_writes_nothing_changes_nothing() {
    let mut player = Player::new(5);
    player.results = vec![Some(SealResult::Sealed), Some(SealResult::Changed)];
    player.play(&format!("{COPIED} 20 dress 1 tool"));
    assert_eq!(player.sealed(), "tool@7 tool<tool@1020 tool<tool@1030");
    assert!(player.is_empty());
}

#[test]
fn a_rename_meanwhile_and_a_wish_to_send_are_what_they_are() {
    let mut player = played(5, "20 dress 1 tool; 30 rename 1 tool bin");
    assert_eq!(player.sealed(), "tool@7 bin<tool@35");
    assert!(player.is_empty());
    let mut player = played(5, "20 dress 1 tool; 30 send 1 tool");
    assert_eq!(player.sealed(), "tool@7 tool@30");
    assert!(player.is_empty());
}

#[test]
fn an_incomplete_file_stays_so() {
    let mut player = Player::new(5);
    player.play("0 create 1 tool wx; 1 write 1; 2 kill 1; 3 release 1; 4 dress 1 tool");
    assert_eq!(player.sealed(), "");
}

#[test]
fn a_member_of_a_directory_is_announced_alone() {
    let tree = "0 create 1 .d/x wx; 1 write 1; 2 release 1; 3 commit 9 .d d 1=d/x;";
    let mut player = Player::new(5);
    player.play(&format!("{tree} 4 dress 1 d/x; 20 dress 1 d/x"));
    assert_eq!(player.sealed(), "d[d/x]@8 d/x<d/x@1020");
    assert!(player.is_empty());

    let mut player = Player::new(5);
    player.tree_results = vec![None];
    player.play(&format!("{tree} 20 dress 1 d/x; 30 done 9 sealed"));
    assert_eq!(player.sealed(), "d[d/x]@8 d/x<d/x@35");
    assert!(player.is_empty());

    let mut player = Player::new(5);
    player.tree_results = vec![Some(SealResult::Sealed), None];
    player.play(&format!("{tree} 20 dress 1 d/x; 30 done 9 changed"));
    assert_eq!(player.sealed(), "d[d/x]@8 d[d/x]@40");
    assert!(player.is_empty());
}
