//! Deliberate mistakes: each of them is found, so the rules are watched and the schedules go where it matters.

use super::oracle::{Flaw, Found, Rule};
use super::world::{Plan, World};
use crate::delivery::Limits;

/// Schedules within which a mistake must show itself.
const WITHIN: u64 = 400;

/// The first schedule that shows the mistake; the same schedule without it keeps all rules.
fn found(flaw: Flaw) -> Found {
    for seed in 1..=WITHIN {
        let mut plan = Plan::new(seed, 8);
        // Recipients that help each other would hide what one of them forgets.
        plan.custody = false;
        if flaw == Flaw::NoPriority {
            // Enough that they wait for each other.
            plan.bundles *= 8;
            plan.limits = Limits {
                window: 1,
                page: 3,
                ahead: 9,
                tracked: 15,
            };
        }
        let mut flawed = plan.clone();
        flawed.flaw = Some(flaw);
        flawed.lifetimes |= flaw == Flaw::WallClock;
        if let Err(found) = World::new(flawed).run() {
            println!("{flaw:?}: {found:?}");
            World::new(plan)
                .run()
                .unwrap_or_else(|found| panic!("{found:?}"));
            return found;
        }
    }
    panic!("{flaw:?} was not found in {WITHIN} schedules");
}

#[test]
fn a_receipt_before_the_bytes_are_durable_is_found() {
    assert_eq!(found(Flaw::EarlyReceipt).rule, Rule::EarlyReceipt);
}

#[test]
fn a_receipt_of_somebody_else_that_counts_is_found() {
    assert_eq!(found(Flaw::AnyReceipt).rule, Rule::FalseReceipt);
}

#[test]
fn a_bundle_that_is_published_again_is_found() {
    assert_eq!(found(Flaw::Republish).rule, Rule::ShownTwice);
}

#[test]
fn a_recovery_that_publishes_again_is_found() {
    assert_eq!(found(Flaw::RecoverTwice).rule, Rule::ShownTwice);
}

#[test]
fn a_cancel_that_is_not_looked_at_is_found() {
    assert_eq!(found(Flaw::IgnoreCancel).rule, Rule::ShownAfterEnd);
}

#[test]
fn bytes_that_are_not_checked_are_found() {
    assert_eq!(found(Flaw::NoHash).rule, Rule::WrongBytes);
}

#[test]
fn an_older_version_over_a_newer_one_is_found() {
    assert_eq!(found(Flaw::OldOverNew).rule, Rule::OldOverNew);
}

#[test]
fn an_age_told_by_the_wall_clock_is_found() {
    assert_eq!(found(Flaw::WallClock).rule, Rule::EndsEarly);
}

#[test]
fn a_crash_that_forgets_what_is_pending_is_found() {
    assert_eq!(found(Flaw::ForgetOnCrash).rule, Rule::WrongFate);
}

#[test]
fn a_trigger_without_a_second_look_is_found() {
    assert_eq!(found(Flaw::NoClock).rule, Rule::Stalls);
}

#[test]
fn a_machine_that_forgets_questions_for_ever_is_found() {
    assert_eq!(found(Flaw::NoRescan).rule, Rule::Stalls);
}

#[test]
fn priorities_that_are_ignored_are_found() {
    assert_eq!(found(Flaw::NoPriority).rule, Rule::Priority);
}

#[test]
fn a_batch_acknowledged_in_part_that_counts_as_a_whole_is_found() {
    assert_eq!(found(Flaw::PartOfBatch).rule, Rule::FalseReceipt);
}
