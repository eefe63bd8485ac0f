//! Files with several names: what changes the file is sent under each of them.

use super::*;

#[rustfmt::skip] // As the table of programs.
const TRACES: &[(&str, &str, &str)] = &[
    ("written through one of two sent names", "0 open 1 f g; 1 write 1; 2 release 1", "f+g@7"),
    ("written through an ignored name", "0 open 1 .x f; 1 write 1; 2 release 1", "f@7"),
    ("only opened", "0 open 1 f g; 2 release 1", ""),
    ("truncated by its path", "0 truncpath 1 f 0 f g", "f+g@1000"),
    ("linked while open", "0 open 1 f; 1 write 1; 2 link 1 g; 3 release 1", "f+g@8"),
    ("linked and removed while open", "0 open 1 f h; 1 write 1; 2 link 1 g; 2 unlink 1 h 2; 3 release 1", "f+g@8"),
    ("renamed while open", "0 open 1 f g; 1 write 1; 2 rename 1 g h; 3 release 1", "f+h@8"),
    ("all but ignored names removed", "0 open 1 f .x; 1 write 1; 2 unlink 1 f 1; 3 release 1", ""),
    ("a name was sent a moment ago: all wait for the slowest", "0 create 1 f w; 1 write 1; 2 release 1; 50 link 1 g; 60 open 1 f g; 61 write 1; 62 release 1", "f@7 g@55 f+g@1062"),
    ("a name is linked to what waits", "0 open 1 f; 1 write 1; 2 release 1; 4 link 1 g; 5 link 1 h", "f+g+h@10"),
    ("its mode is set through one name", "0 create 1 f w; 1 write 1; 2 release 1; 50 link 1 g; 60 dress 1 f g", "f@7 g@55 f<f+g<g@1060"),
    ("its mode is set long after", "0 dress 1 f g", ""),
    ("truncated by its ignored name", "0 truncpath 1 .x 0 .x f", "f@1000"),
    ("its slowest name is removed", "0 create 1 tmpab12 rx6; 1 write 1; 2 release 1; 3 link 1 g; 50 unlink 1 tmpab12 1", "g@50"),
    ("its writer was killed", "0 open 1 f g; 1 write 1; 2 kill 1; 2 release 1; 900 send 1 g", "g@900 f@905"),
];

#[test]
fn what_changes_a_file_is_sent_under_each_of_its_names() {
    assert_traces(5, TRACES);
}

#[test]
fn what_is_held_back_is_shown_under_each_name_and_sent_under_all_when_one_is_renamed() {
    let mut player = Player::new(5);
    player.play("0 open 1 f g .x; 1 write 1; 2 kill 1; 2 release 1");
    let overview = player.ready.overview(9);
    assert_eq!(overview.incomplete, [path("f"), path("g")]);
    for name in ["f", "g"] {
        assert_eq!(player.ready.shown(1, &path(name)), Some(Shown::Incomplete));
    }
    player.play("500 rename 1 g h");
    assert_eq!(player.sealed(), "f+h@505");
    assert!(player.is_empty());
}

#[test]
fn a_name_that_drops_out_does_not_hold_the_others_up() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play("0 open 1 f g; 1 write 1; 2 release 1; 20 flush 1");
    let results = vec![
        (path("g"), SealResult::Gone),
        (path("f"), SealResult::Sealed),
    ];
    player.event(Event::SealDone { ino: 1, results });
    assert_eq!(player.sealed(), "f+g@7");
    assert!(player.is_empty());
}

#[test]
fn what_is_shown_of_a_name_that_nothing_is_to_be_done_about_is_for_the_spool_to_say() {
    let mut player = Player::new(5);
    player.play("0 create 1 f w; 1 write 1; 2 release 1; 100 link 1 g");
    assert_eq!(player.ready.shown(1, &path("g")), Some(Shown::Settling));
    assert_eq!(player.ready.shown(1, &path("f")), None);
}

#[test]
fn many_names_are_sealed_some_at_a_time_and_the_mark_stays_until_the_last() {
    let mut player = Player::new(5);
    let names: Vec<RelPath> = (0..NAMES_AT_ONCE * 2 + 1)
        .map(|n| path(&format!("n{n:04}")))
        .collect();
    let (ino, fh) = (1, 1);
    for event in [
        Event::Opened {
            ino,
            path: names[7].clone(),
            names: names.clone(),
            fh,
        },
        Event::Wrote { ino, fh },
        Event::Released { ino, fh },
    ] {
        player.event(event);
    }
    player.now = 5;
    let mut seen = Vec::new();
    let mut actions = player.ready.tick(ms(5));
    while let Some(Action::Seal { names, more, .. }) = actions.pop() {
        assert_eq!(more, seen.len() + names.len() < NAMES_AT_ONCE * 2 + 1);
        let paths: Vec<RelPath> = names.into_iter().map(|name| name.path).collect();
        seen.extend(paths.clone());
        actions = player
            .ready
            .handle(done(ino, paths, SealResult::Sealed), ms(5));
    }
    assert_eq!(seen, names);
    player.sealed();
    assert!(player.is_empty());
}

#[test]
fn what_the_spool_finds_torn_is_held_back() {
    let mut player = Player::new(5);
    player.results = vec![Some(SealResult::Incomplete)];
    player.play("0 open 1 f; 1 write 1; 2 release 1; 900 flush 1");
    assert_eq!(player.ready.shown(1, &path("f")), Some(Shown::Incomplete));
    player.play("1000 send 1 f");
    assert_eq!(player.sealed(), "f@7 f@1000");
}
