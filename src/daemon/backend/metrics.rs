//! Metrics in Prometheus text format.

use crate::control::Status;

/// Status as metrics.
pub(super) fn metrics(status: &Status) -> String {
    let (counts, peers) = (&status.counts, &status.peers);
    let connected = peers.iter().filter(|peer| peer.connected).count() as u64;
    let limited = peers.iter().filter(|peer| peer.limited.is_some());
    let limited = limited.count() as u64;
    let slowed = peers.iter().map(|peer| peer.slowed).sum();
    let known = peers.len() as u64;
    [
        counter("sealed", "Bundles sealed since start", counts.sealed),
        counter(
            "published",
            "Bundles published since start",
            counts.published,
        ),
        counter("receipts", "Receipts taken since start", counts.receipts),
        counter(
            "sent_bytes",
            "Content bytes sent since start",
            counts.bytes_sent,
        ),
        counter(
            "received_bytes",
            "Content bytes received since start",
            counts.bytes_received,
        ),
        counter(
            "received_twice_bytes",
            "Content bytes received in vain: cut off, wrong, or here already",
            counts.bytes_twice,
        ),
        counter(
            "ignored",
            "Names not sent since they match the ignore list",
            counts.ignored,
        ),
        counter(
            "removed",
            "Files removed before they were sent since start",
            counts.removed,
        ),
        counter("refused", "Offers refused since start", counts.refused),
        gauge(
            "outbound_pending",
            "Bundles some recipient still waits for",
            counts.outbound_pending,
        ),
        gauge(
            "unsealed",
            "Files open for writing, settling or being sealed",
            counts.unsealed,
        ),
        gauge(
            "incomplete",
            "Files held back because their writer was killed",
            counts.incomplete,
        ),
        gauge("quarantined", "Entries in quarantine", counts.quarantined),
        gauge(
            "unverified",
            "Files of the inbox that are being checked before they are shown again",
            counts.unverified,
        ),
        gauge(
            "held_bytes",
            "Bytes kept for recipients that no name shows any more",
            counts.held_bytes,
        ),
        gauge("peers", "Known peers", known),
        gauge("peers_connected", "Peers connected now", connected),
        gauge(
            "peers_limited",
            "Peers that send too much of something and are slowed",
            limited,
        ),
        counter("slowed", "Times a peer was slowed since start", slowed),
    ]
    .concat()
}

/// What only grows.
fn counter(name: &str, help: &str, value: u64) -> String {
    metric(&format!("{name}_total"), "counter", help, value)
}

/// What comes and goes.
fn gauge(name: &str, help: &str, value: u64) -> String {
    metric(name, "gauge", help, value)
}

fn metric(name: &str, kind: &str, help: &str, value: u64) -> String {
    let name = format!("meshbox_{name}");
    format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Counts;

    #[test]
    fn metrics_are_one_value_a_line_with_a_type() {
        let counts = Counts {
            ignored: 3,
            ..Counts::default()
        };
        let status = Status {
            version: String::new(),
            id: String::new(),
            name: String::new(),
            group: String::new(),
            mountpoint: String::new(),
            state: String::new(),
            pid: 1,
            listen: vec![],
            peers: vec![],
            outbound: vec![],
            inbound: vec![],
            outbound_more: 0,
            inbound_more: 0,
            incomplete: vec![],
            ignored: vec![],
            ignored_more: false,
            counts,
            trouble: None,
        };
        let text = metrics(&status);
        assert!(text.contains("\nmeshbox_ignored_total 3\n"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.split_once(' ').unwrap();
            assert!(
                text.contains(&format!("# TYPE {name} ")) && value.parse::<u64>().is_ok(),
                "{line}"
            );
        }
    }
}
