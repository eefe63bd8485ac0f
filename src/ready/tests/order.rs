//! Which of several renames is announced first.

use super::*;

#[test]
fn what_left_a_name_is_announced_before_what_has_it_now_also_when_it_is_held() {
    let mut player = Player::new(5);
    // A name announced a moment ago is held.
    player.play("0 rename 3 q t2; 100 rename 1 t t2 3; 100 rename 2 c t");
    assert_eq!(player.sealed(), "t2<q@5 t2<t@105 t<c@105");
    assert!(player.is_empty());
}

#[test]
fn a_rotation_of_logs_is_announced_in_its_order_at_each_turn() {
    let mut player = Player::new(5);
    player.play("0 rename 2 l.2 l.3; 1 rename 1 l.1 l.2; 2 rename 4 l l.1");
    assert_eq!(player.sealed(), "l.3<l.2@5 l.2<l.1@6 l.1<l@7");
    player.now = 2000;
    player.play(
        "2000 rename 2 l.3 l.4; 2001 rename 1 l.2 l.3; 2002 rename 4 l.1 l.2; 2003 rename 5 l l.1",
    );
    let order = player.sealed();
    let names: Vec<&str> = order
        .split(' ')
        .map(|seal| seal.split('@').next().unwrap())
        .collect();
    assert_eq!(names, ["l.4<l.3", "l.3<l.2", "l.2<l.1", "l.1<l"], "{order}");
}

#[test]
fn who_waits_for_an_earlier_version_is_waited_for() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play("0 rename 3 q t2; 100 rename 1 t t2 3; 100 rename 2 c t; 5000 flush 9");
    assert_eq!(player.seals, ["t2<q@5"]);
    player.answer(SealResult::Gone);
    assert_eq!(player.sealed(), "t2<q@5 t2<t@5000 t<c@5000");
    assert!(player.is_empty());
}

#[test]
fn files_that_changed_places_are_announced_once_each() {
    let mut player = Player::new(5);
    player.play("0 rename 1 a x; 1 rename 2 b a; 2 rename 1 x b");
    assert_eq!(player.sealed(), "b<a@6 a<b@6");
    assert!(player.is_empty());
}
