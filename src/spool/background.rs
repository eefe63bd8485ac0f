//! Threads that work when nobody else has anything to do.

/// Of 0 (ordinary) to 19.
const NICE: i32 = 19;

/// The calling thread gets the lowest priority.
pub(in crate::spool) fn give_way(who: &str) {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "the {who} competes with others");
    }
}
