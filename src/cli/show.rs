//! Facts as text for people. Pure: from values to strings.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::control::{InboundRow, OutboundRow};
use crate::control::{PeerRow, Status, WirePath};

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Control characters in names would steer the terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

pub(super) fn wire_path(path: &WirePath) -> String {
    match path {
        WirePath::Text(text) => plain(text),
        WirePath::Bytes { path_b64 } => {
            let bytes = data_encoding::BASE64
                .decode(path_b64.as_bytes())
                .unwrap_or_default();
            plain(&String::from_utf8_lossy(&bytes))
        }
    }
}

pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Since when a member is not connected; `at` 0: ever.
pub(super) fn offline(at: u64, now: u64) -> String {
    if at == 0 {
        return "never seen".to_owned();
    }
    let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at));
    // Seconds say nothing of what was hours ago.
    let ago = now.saturating_sub(at);
    let ago = if ago < 3600 { ago } else { ago - ago % 60 };
    let ago = humantime::format_duration(Duration::from_secs(ago));
    format!("offline since {since}, {ago} ago")
}

fn short(id: &str) -> &str {
    id.get(..10).unwrap_or(id)
}

pub(super) fn peers(peers: &[PeerRow], now: u64) -> String {
    let mut out = String::new();
    for peer in peers {
        let name = if peer.name.is_empty() {
            "(no name yet)".to_owned()
        } else {
            plain(&peer.name)
        };
        let link = match (peer.connected, peer.last_seen) {
            (true, _) => "connected".to_owned(),
            (false, at) => offline(at, now),
        };
        let _fits = write!(out, "  {name:<16} {}  {link}", short(&peer.id));
        if peer.pending > 0 {
            let _fits = write!(out, ", {} to deliver", peer.pending);
        }
        if let Some(error) = &peer.error {
            let _fits = write!(out, ", {}", plain(error));
        }
        if let Some(limited) = &peer.limited {
            let _fits = write!(out, ", {}", plain(limited));
        }
        out.push('\n');
    }
    if peers.is_empty() {
        out.push_str("  none yet; `meshbox ticket` prints an invitation\n");
    }
    out
}

fn outbound(row: &OutboundRow) -> String {
    let done = row
        .recipients
        .iter()
        .filter(|recipient| recipient.state == "delivered")
        .count();
    let mut line = format!(
        "  {:<12} {done}/{}  {:>10}  {}",
        row.state,
        row.living().count(),
        size(row.size),
        plain(&row.path)
    );
    for recipient in row
        .recipients
        .iter()
        .filter(|recipient| recipient.error.is_some())
    {
        let why = plain(recipient.error.as_deref().unwrap_or_default());
        let _fits = write!(
            line,
            "\n      {}: {} ({why})",
            plain(&recipient.name),
            recipient.state
        );
    }
    line
}

fn inbound(row: &InboundRow) -> String {
    let error = row
        .error
        .as_ref()
        .map_or_else(String::new, |why| format!(" ({})", plain(why)));
    format!(
        "  {:<12} {:>14}  {}  from {}{error}",
        row.state,
        size(row.size),
        plain(&row.path),
        plain(&row.from)
    )
}

/// What is not sent because of its name, and how to send it; empty if there is nothing.
fn ignored(status: &Status) -> String {
    if status.ignored.is_empty() {
        return String::new();
    }
    let mut out = "\nNot sent because of their names; `meshbox send PATH` sends one, `meshbox mount --ignore-except PATTERN` \
         all that match\n"
        .to_owned();
    for row in &status.ignored {
        let pattern = plain(&row.pattern);
        let what = match &row.what {
            Some(what) => format!("{what} (`{pattern}`)"),
            None => format!("`{pattern}`"),
        };
        let examples: Vec<String> = row.examples.iter().map(wire_path).collect();
        let examples = examples.join(", ");
        let dots = if row.count > row.examples.len() as u64 {
            ", …"
        } else {
            ""
        };
        let count = grouped(row.count);
        let _fits = writeln!(out, "  {count} not sent: {what}: {examples}{dots}");
    }
    if status.ignored_more {
        out.push_str("  and maybe more: the outbox has too many names to look at all of them\n");
    }
    out
}

/// "1,633".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

pub(super) fn status(status: &Status, now: u64) -> String {
    let listen: Vec<String> = status.listen.iter().map(ToString::to_string).collect();
    let mut out = format!(
        "{} ({})   group {}   mounted at {}\nlistening on {}\n\nPeers\n{}",
        plain(&status.name),
        short(&status.id),
        status.group,
        plain(&status.mountpoint),
        if listen.is_empty() {
            "nothing".to_owned()
        } else {
            listen.join(", ")
        },
        peers(&status.peers, now),
    );
    if let Some(trouble) = &status.trouble {
        let _fits = write!(out, "\nTROUBLE: {}\n", plain(trouble));
    }
    let lists = [
        (
            "Outbox, newest first",
            status.outbound.iter().map(outbound).collect::<Vec<_>>(),
        ),
        (
            "Incomplete: their writer was killed, or a write failed, or the daemon ended before it heard of their close; \
             write them again, or `meshbox send` them as they are",
            status
                .incomplete
                .iter()
                .map(|path| format!("  {}", wire_path(path)))
                .collect(),
        ),
        (
            "Inbox, newest first",
            status.inbound.iter().map(inbound).collect(),
        ),
    ];
    let ignored = ignored(status);
    for (title, rows) in lists.iter().filter(|(_, rows)| !rows.is_empty()) {
        let _fits = write!(out, "\n{title}\n{}\n", rows.join("\n"));
    }
    out.push_str(&ignored);
    let counts = &status.counts;
    let _fits = write!(
        out,
        "\nSince start: {} sent, {} received; {} out, {} in; {} still to deliver",
        counts.sealed,
        counts.published,
        size(counts.bytes_sent),
        size(counts.bytes_received),
        counts.outbound_pending
    );
    for (count, what) in [
        (counts.unsealed, "open for writing, or about to be sent"),
        (counts.incomplete, "incomplete"),
        (counts.removed, "removed before they were sent"),
        (counts.refused, "offers refused"),
        (counts.quarantined, "in quarantine"),
        (
            counts.unverified,
            "in the inbox that are being checked before they are shown again",
        ),
    ] {
        if count > 0 {
            let _fits = write!(out, "\n  {count} {what}");
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Counts;
    use crate::spool::RecipientRow;

    fn example() -> Status {
        Status {
            version: "0".into(),
            id: "0123456789abcdef".into(),
            name: "alder".into(),
            group: "9876543210".into(),
            mountpoint: "/srv/share".into(),
            state: "/s".into(),
            pid: 1,
            listen: vec!["127.0.0.1:4000".parse().unwrap()],
            peers: vec![PeerRow {
                id: "bbbbbbbbbbbbbbbb".into(),
                name: "birch".into(),
                connected: false,
                pending: 2,
                last_seen: 940,
                addrs: vec![],
                offline_since: Some(940),
                error: Some("wrong group key".into()),
                limited: Some("too many offers".into()),
                slowed: 1,
            }],
            outbound: vec![OutboundRow {
                path: "evil\x1b[2Jname".into(),
                path_b64: None,
                bundle: String::new(),
                sha256: String::new(),
                size: 1536,
                state: "deferred".into(),
                recipients: vec![RecipientRow {
                    id: "bb".into(),
                    name: "birch".into(),
                    state: "deferred".into(),
                    bytes: 0,
                    error: Some("disk full".into()),
                    gone: false,
                }],
            }],
            inbound: vec![],
            incomplete: vec![WirePath::Text("torn.bin".into())],
            ignored: vec![crate::control::IgnoredRow {
                pattern: ".*".into(),
                what: Some("dotfiles".into()),
                count: 1633,
                examples: vec![WirePath::Text("a/.gitignore".into())],
            }],
            ignored_more: true,
            trouble: Some("journal: no space".into()),
            counts: Counts {
                ignored: 3,
                ..Counts::default()
            },
        }
    }

    #[test]
    fn status_says_who_where_and_what_is_wrong() {
        let text = status(&example(), 1000);
        for part in [
            "alder (0123456789)",
            "/srv/share",
            "127.0.0.1:4000",
            "birch",
            "offline since 1970-01-01T00:15:40Z, 1m ago",
            "2 to deliver",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for part in [
            "wrong group key",
            "deferred     0/1",
            "1.5 KiB",
            "disk full",
            "TROUBLE: journal: no space",
            "as they are\n  torn.bin\n",
            "\n  1,633 not sent: dotfiles (`.*`): a/.gitignore, …\n",
            "`meshbox send PATH`",
            "--ignore-except",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("quarantine"), "{text}");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert!(!status(&example(), 1000).contains('\x1b'));
        assert!(!wire_path(&WirePath::Text("a\nb".into())).contains('\n'));
    }

    #[test]
    fn numbers_are_readable() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
