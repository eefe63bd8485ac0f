//! Faults of the reference program, where the machine shows best that they are not repeated here.

use super::disk::Fate;
use super::oracle::Flaw;
use super::world::{Plan, Truth, World};
use super::{Bundle, Member, Time};
use crate::bundle::Priority;

const SECOND: Time = 1_000;

/// Members that have connected, and nothing else.
fn mesh(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.troubled = false;
    world.run_until(5 * SECOND);
    world
}

/// A small bundle for these, or one of so many chunks.
fn seal(world: &mut World, origin: Member, to: &[Member], chunks: usize) -> Bundle {
    world.seal_as(Truth {
        path: world.truths.len() as u32,
        inline: chunks == 0,
        chunks: chunks.max(1),
        ..Truth::small(origin, to.to_vec())
    })
}

fn fate(world: &World, bundle: Bundle, recipient: Member) -> Fate {
    let origin = world.truths[bundle].origin;
    world.nodes[origin].disk.rows.fates[&(bundle, recipient)]
}

fn delivered(world: &World, bundles: &[Bundle], recipient: Member) -> usize {
    let done = |bundle: &&Bundle| fate(world, **bundle, recipient) == Fate::Delivered;
    bundles.iter().filter(done).count()
}

/// Runs until all of these have all of those, and says how long that took.
fn until_delivered(world: &mut World, bundles: &[Bundle], to: &[Member], most: Time) -> Time {
    let (start, end) = (world.now, world.now + most);
    while to
        .iter()
        .any(|to| delivered(world, bundles, *to) < bundles.len())
    {
        assert!(world.now < end, "not delivered after {most} ms");
        let next = world.now + 100;
        world.run_until(next);
        assert_eq!(world.found, None);
    }
    world.now - start
}

/// Five files at once through one slot: all arrive, without waiting for a second look.
#[test]
fn s1_the_fifth_of_five_at_once_is_sent() {
    let mut plan = Plan::quiet(2);
    plan.slots = (1, 1);
    let mut world = mesh(plan);
    let five: Vec<Bundle> = (0..5).map(|_| seal(&mut world, 0, &[1], 3)).collect();
    let took = until_delivered(&mut world, &five, &[1], 600 * SECOND);
    assert!(took < 60 * SECOND, "{took} ms");
}

/// Even a receiver that drops what it said it was working on gets it in the end.
#[test]
fn s1_a_receiver_that_forgets_the_fifth_is_asked_again() {
    let mut plan = Plan::quiet(3);
    plan.slots = (1, 2);
    plan.flaw = Some(Flaw::DropBeyondCap);
    let mut world = mesh(plan);
    let mut five: Vec<Bundle> = (0..5).map(|_| seal(&mut world, 0, &[2], 3)).collect();
    five.extend((0..5).map(|_| seal(&mut world, 1, &[2], 3)));
    until_delivered(&mut world, &five, &[2], 900 * SECOND);
}

#[test]
fn s2_a_peer_that_is_offline_holds_up_nobody() {
    let mut world = mesh(Plan::quiet(3));
    world.crash(2, false, 10_000 * SECOND);
    let many: Vec<Bundle> = (0..1_000)
        .map(|_| seal(&mut world, 0, &[1, 2], 0))
        .collect();
    until_delivered(&mut world, &many, &[1], 60 * SECOND);
    assert_eq!(delivered(&world, &many, 2), 0);
    world.start(2);
    until_delivered(&mut world, &many, &[2], 120 * SECOND);
}

/// The connection breaks at the one moment when the receiver has everything and the sender does not know.
#[test]
fn s5_who_has_it_already_says_so_when_asked() {
    let mut world = mesh(Plan::quiet(2));
    let bundle = seal(&mut world, 0, &[1], 0);
    while !world.nodes[1].disk.rows.settled.contains(&bundle) {
        let next = world.now + 1;
        world.run_until(next);
        assert!(next < 60 * SECOND);
    }
    world.disconnect(0, 1, [0, 0]);
    assert_eq!(fate(&world, bundle, 1), Fate::Pending);
    until_delivered(&mut world, &[bundle], &[1], 60 * SECOND);
    assert_eq!(world.nodes[1].disk.rows.shown[&bundle], 1);
}

#[test]
fn s11_any_number_of_failed_fetches_from_the_only_holder_is_survived() {
    let mut world = mesh(Plan::quiet(2));
    world.nodes[0].bulk_until = world.now + 1_800 * SECOND;
    let bundle = seal(&mut world, 0, &[1], 8);
    let before = world.now + 1_800 * SECOND;
    world.run_until(before);
    assert!(world.stats.losses > 10, "{}", world.stats.losses);
    assert_eq!(fate(&world, bundle, 1), Fate::Pending);
    // The longest pause after a deferral, and a quarter.
    until_delivered(&mut world, &[bundle], &[1], 400 * SECOND);
}

#[test]
fn s16_one_that_refuses_does_not_fail_the_others() {
    let mut world = mesh(Plan::quiet(4));
    world.nodes[3].disk.rows.bad.insert(world.truths.len());
    let bundle = seal(&mut world, 0, &[1, 2, 3], 5);
    until_delivered(&mut world, &[bundle], &[1, 2], 60 * SECOND);
    assert_eq!(fate(&world, bundle, 3), Fate::Refused);
}

/// No ring ever arrives: the journal is looked at again and again.
#[test]
fn s25_a_lossy_trigger_delays_and_loses_nothing() {
    let mut world = mesh(Plan::quiet(7));
    for node in &mut world.nodes {
        node.deaf_until = Time::MAX;
    }
    let all: Vec<Member> = (0..7).collect();
    for origin in 0..7 {
        let to: Vec<Member> = all.iter().copied().filter(|to| *to != origin).collect();
        let bundles: Vec<Bundle> = (0..20).map(|_| seal(&mut world, origin, &to, 0)).collect();
        // The rescan, and the receipt that is asked for.
        until_delivered(&mut world, &bundles, &to, 30 * SECOND);
    }
}

/// Six peers with a backlog that never ends, two of them slow: the seventh still gets its file at once.
#[test]
fn s25_no_peer_starves_at_seven_nodes() {
    let mut world = mesh(Plan::quiet(8));
    for slow in [1, 2] {
        world.nodes[slow].slow = 50;
    }
    for to in 1..7 {
        for _ in 0..2_000 {
            seal(&mut world, 0, &[to], 0);
        }
    }
    for _ in 0..10 {
        let small = seal(&mut world, 0, &[7], 0);
        until_delivered(&mut world, &[small], &[7], 5 * SECOND);
    }
    let backlog = world.nodes[0].disk.rows.pending.len();
    assert!(backlog > 100, "there was none: {backlog}");
}

/// More critical files than the peer can take, for ever: bulk still gets through, in time.
#[test]
fn s25_strict_priority_does_not_starve_bulk() {
    let mut world = mesh(Plan::quiet(2));
    world.nodes[1].slow = 50;
    let seal_as = |world: &mut World, priority| {
        world.seal_as(Truth {
            path: world.truths.len() as u32,
            priority,
            ..Truth::small(0, vec![1])
        })
    };
    let first: Vec<Bundle> = (0..1_500)
        .map(|_| seal_as(&mut world, Priority::Critical))
        .collect();
    // The second when there is room for no more of them.
    for _ in 0..2 {
        let start = world.now;
        let bulk: Vec<Bundle> = (0..5)
            .map(|_| seal_as(&mut world, Priority::Bulk))
            .collect();
        while delivered(&world, &bulk, 1) < bulk.len() {
            assert!(world.now < start + 600 * SECOND, "bulk starves");
            for _ in 0..2 {
                seal_as(&mut world, Priority::Critical);
            }
            let next = world.now + 100;
            world.run_until(next);
        }
    }
    assert!(delivered(&world, &first, 1) > 100);
    let waiting = world.nodes[0].disk.rows.pending.len();
    assert!(waiting > 1_400, "there was no load: {waiting}");
}
