//! The state of the daemon in a few lines of the log, at SIGUSR1.

use std::time::Duration;

use crate::control::{Counts, PeerRow, Status};

/// Peers that get a line of their own: those with something to tell. More are counted only.
const MOST_PEERS: usize = 50;

/// What to log.
pub(super) fn lines(status: &Status, up: Duration) -> Vec<String> {
    let Counts {
        outbound_pending,
        unsealed,
        incomplete,
        sealed,
        published,
        held_bytes,
        ..
    } = status.counts;
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    let up = humantime::format_duration(Duration::from_secs(up.as_secs()));
    let mut lines = vec![format!(
        "state: {} at {}, up {up}, {} connected of {} peers; since start {sealed} sealed, {published} published; now \
         {outbound_pending} to deliver, {unsealed} not sealed yet, {incomplete} incomplete, {held_bytes} bytes kept for \
         others; {}",
        status.name,
        status.mountpoint,
        connected,
        status.peers.len(),
        of_process()
    )];
    if let Some(trouble) = &status.trouble {
        lines.push(format!("state: trouble: {trouble}"));
    }
    let telling = |peer: &&PeerRow| !peer.connected || peer.pending > 0 || peer.limited.is_some();
    let telling: Vec<&PeerRow> = status.peers.iter().filter(telling).collect();
    for peer in telling.iter().take(MOST_PEERS) {
        let link = match (peer.connected, &peer.error) {
            (true, _) => "connected",
            (false, Some(error)) => error,
            (false, None) => "not connected",
        };
        let id = peer.id.get(..10).unwrap_or(&peer.id);
        let (name, pending) = (&peer.name, peer.pending);
        lines.push(format!(
            "state: peer {name} ({id}): {link}, {pending} to deliver"
        ));
    }
    if telling.len() > MOST_PEERS {
        let more = telling.len() - MOST_PEERS;
        lines.push(format!(
            "state: {more} more peers are not connected or wait for something"
        ));
    }
    lines
}

/// Memory, descriptors and threads of this process.
fn of_process() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim).to_owned()
    };
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    format!(
        "{} resident, {} threads, {files} descriptors",
        field("VmRSS:"),
        field("Threads:")
    )
}
