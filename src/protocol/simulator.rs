//! Thousands of meshes on a virtual clock: the real core of each session, and around it a model of everything that can go
//! wrong.
//!
//! # Real and modelled
//! Real: [`super::session`] with all that it decides (one core per end of a connection), [`super::care`],
//! [`crate::delivery`] and its rules of custody. Modelled after `mesh::intake`, `mesh::fetch`, `spool::intake`,
//! `spool::publish` and `spool::recover`, step by step so that a crash fits between any two: the journal with its group
//! commit, log and power loss ([`disk`]), lanes and mailboxes, intake, fetch slots and holders, publishing, receipts,
//! versions, cancel and expiry by signed statements. Signatures and hashes are modelled as what only their owner can
//! make. Left out: encoding, flow control, names, the roll of the group.
//!
//! Frames of one connection keep their order, but for urgent offers, and are lost only with it; between connections, control and bulk nothing
//! keeps any order. Members crash, lose power, freeze, fill up, go deaf to rings, are cut off, connect twice, are slow,
//! and lie ([`liar`]).
//!
//! # Rules
//! [`oracle::Rule`]. Each is shown to be watched by a mistake that breaks it ([`flaws`]).
//!
//! # By hand
//! The same seed gives the same schedule, always. A failure prints its seed:
//!
//! ```text
//! MESHBOX_SIM_SEED=4711 MESHBOX_SIM_SCHEDULES=1 cargo test --release --lib simulator::schedules
//! MESHBOX_SIM_TRACE=1 MESHBOX_SIM_SEED=4711 MESHBOX_SIM_SCHEDULES=1 cargo test --release --lib simulator::schedules -- --nocapture
//! MESHBOX_SIM_SCHEDULES=100000 MESHBOX_SIM_MEMBERS=40 cargo test --release --lib simulator::schedules -- --nocapture
//! MESHBOX_SIM_SCHEDULES=20 cargo test --release --lib simulator::thousand_members -- --nocapture
//! ```

#[cfg(test)]
mod chaos;
#[cfg(test)]
mod custody;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod flaws;
#[cfg(test)]
mod intake;
#[cfg(test)]
mod liar;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod random;
#[cfg(test)]
mod session;
#[cfg(test)]
mod world;

use oracle::Stats;
use world::{Plan, World};

/// A member's number.
type Member = usize;

/// A bundle's number, in the order of sealing.
type Bundle = usize;

/// Virtual milliseconds.
type Time = u64;

/// Most chunks of one bundle.
const CHUNKS_MAX: usize = 8;

/// Schedules of up to [`MEMBERS`] members in CI.
const SCHEDULES: u64 = 2_000;

/// Threads that run them.
const WORKERS: usize = 2;

/// Members of those.
const MEMBERS: u64 = 12;

fn from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Runs a schedule; a broken rule fails with all that is needed to see it again.
fn run(plan: Plan) -> Stats {
    let members = plan.members;
    World::new(plan.clone()).run().unwrap_or_else(|found| {
        panic!(
            "seed {} with {members} members, after {} ms: {:?}: {}\nMESHBOX_SIM_SEED={} shows it again\n{plan:?}",
            found.seed, found.at, found.rule, found.text, found.seed
        )
    })
}

#[test]
fn schedules() {
    let first = from_environment("MESHBOX_SIM_SEED", 1);
    let count = from_environment("MESHBOX_SIM_SCHEDULES", SCHEDULES);
    let members = from_environment("MESHBOX_SIM_MEMBERS", MEMBERS) as usize;
    println!("seeds {first} to {}", first + count - 1);
    let next = std::sync::atomic::AtomicU64::new(first);
    let all: Vec<Stats> = std::thread::scope(|scope| {
        let work = || {
            let mut all = Vec::new();
            loop {
                let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if seed >= first + count {
                    return all;
                }
                all.push(run(Plan::new(seed, members)));
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined
            .flat_map(|stats| stats.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let sum = |of: fn(&Stats) -> u64| all.iter().map(of).sum::<u64>();
    println!("{} events", sum(|s| s.events));
    println!("last {:?}", all.last());
    println!("slowest {:?}", all.iter().map(|s| s.settled_after).max());
    if count < SCHEDULES {
        return;
    }
    // All of it happens, else the rules are kept by nobody doing anything.
    let happened: [(&str, u64); 19] = [
        ("sealed", sum(|s| s.sealed)),
        ("delivered", sum(|s| s.delivered)),
        ("superseded", sum(|s| s.superseded)),
        ("ended", sum(|s| s.ended)),
        ("stopped", sum(|s| s.stopped)),
        ("deferrals", sum(|s| s.deferrals)),
        ("refusals", sum(|s| s.refusals)),
        ("forgeries", sum(|s| s.forgeries)),
        ("lies", sum(|s| s.lies)),
        ("wrong bytes", sum(|s| s.wrong_bytes)),
        ("losses", sum(|s| s.losses)),
        ("withdrawn", sum(|s| s.withdrawn)),
        ("rings lost", sum(|s| s.rings_lost)),
        ("echoes", sum(|s| s.echoes)),
        ("crashes", sum(|s| s.crashes)),
        ("recovered", sum(|s| s.recovered)),
        ("carried", sum(|s| s.carried)),
        ("relayed", sum(|s| s.relayed)),
        ("tracked", sum(|s| s.tracked)),
    ];
    println!("{happened:?}");
    for (what, count) in happened {
        assert!(count > 20, "{what}: {count}");
    }
}

#[test]
fn thousand_members() {
    let first = from_environment("MESHBOX_SIM_SEED", 1);
    let count = from_environment("MESHBOX_SIM_SCHEDULES", 1);
    let members = from_environment("MESHBOX_SIM_MEMBERS", 1_000) as usize;
    for seed in first..first + count {
        let stats = run(Plan::large(seed, members));
        println!("seed {seed}: {stats:?}");
        assert!(stats.delivered > 5_000 || members < 1_000, "{stats:?}");
    }
}
