//! Facts as text for people. Pure: from values to strings.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bundle::{InboxStage, Stage};
use crate::control::{
    Counts, InboundRow, News, Of, OutboundRow, PeerRow, RecipientRow, Status, WirePath,
};

/// So far the daemon counts.
const COUNTED: u64 = 10_000;

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

/// Why a member is not connected, if that says more than "offline since".
pub(super) fn new_in(error: Option<&str>) -> Option<&str> {
    error.filter(|error| *error != "offline")
}

/// "1 file", "2 files".
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

pub(super) fn short(id: &str) -> &str {
    id.get(..10).unwrap_or(id)
}

pub(super) fn peers(peers: &[PeerRow], now: u64) -> String {
    let mut out = String::new();
    for peer in peers {
        // One that never proved the group's key and nobody spoke of: somebody with an old ticket, most often.
        let foreign = |error: &String| error.starts_with("wrong group key");
        let name = if peer.name.is_empty() && peer.error.as_ref().is_some_and(foreign) {
            "(not a member)".to_owned()
        } else if peer.name.is_empty() {
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
        if let Some(error) = new_in(peer.error.as_deref()) {
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

/// How fast deliveries of ours go, in bytes a second, by bundle and recipient.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<(String, String), Pace>);

/// What a delivery had at some time, and how fast it went before.
#[derive(Debug)]
struct Pace {
    at: Instant,
    bytes: u64,
    rate: f64,
}

impl Rates {
    /// Looks at deliveries anew.
    pub(super) fn look(&mut self, rows: &[OutboundRow], now: Instant) {
        let mut seen = HashMap::new();
        for row in rows {
            for to in row
                .recipients
                .iter()
                .filter(|to| to.state == Stage::Sending)
            {
                let key = (row.bundle.clone(), to.id.clone());
                let mut pace = self.0.remove(&key).unwrap_or(Pace {
                    at: now,
                    bytes: to.bytes,
                    rate: 0.0,
                });
                let passed = now.saturating_duration_since(pace.at).as_secs_f64();
                if to.bytes > pace.bytes && passed > 0.0 {
                    pace.rate = (to.bytes - pace.bytes) as f64 / passed;
                    (pace.at, pace.bytes) = (now, to.bytes);
                }
                seen.insert(key, pace);
            }
        }
        self.0 = seen;
    }

    fn of(&self, row: &OutboundRow, to: &RecipientRow) -> u64 {
        let key = (row.bundle.clone(), to.id.clone());
        self.0.get(&key).map_or(0, |pace| pace.rate as u64)
    }
}

/// "45%, 12.3 MiB/s, 20s left" of what has `bytes` of `all`.
fn progress(bytes: u64, all: u64, rate: u64) -> String {
    let percent = u128::from(bytes) * 100 / u128::from(all.max(1));
    let mut text = format!("{percent}%");
    if let Some(left) = all.saturating_sub(bytes).checked_div(rate) {
        let left = coarse(Duration::from_secs(left));
        let _fits = write!(text, ", {}/s, {left} left", size(rate));
    }
    text
}

/// A time span to its greatest unit: "3h".
fn coarse(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

fn ago(at: u64, now: u64) -> String {
    match at {
        0 => String::new(),
        at => format!(
            "{} ago",
            coarse(Duration::from_secs(now.saturating_sub(at)))
        ),
    }
}

fn outbound(row: &OutboundRow, now: u64, rates: &Rates) -> String {
    let done = row
        .recipients
        .iter()
        .filter(|recipient| recipient.state == Stage::Delivered)
        .count();
    let mut line = format!(
        "  {:<12} {done}/{}  {:>10}  {:>8}  {}",
        row.state,
        row.living().count(),
        size(row.size),
        ago(row.sealed_at, now),
        plain(&row.path)
    );
    let sending = row.living().filter(|to| to.state == Stage::Sending);
    if let Some(slowest) = sending.min_by_key(|to| to.bytes) {
        let shown = progress(slowest.bytes, row.size, rates.of(row, slowest));
        let _fits = write!(line, " ({shown})");
    }
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

fn inbound(row: &InboundRow, now: u64) -> String {
    let mut more = String::new();
    if row.state == InboxStage::Incoming {
        more = format!(" ({})", progress(row.bytes, row.size, row.rate));
    }
    if let Some(why) = &row.error {
        let _fits = write!(more, " ({})", plain(why));
    }
    format!(
        "  {:<12} {:>14}  {:>8}  {}  from {}{more}",
        row.state,
        size(row.size),
        ago(row.at, now),
        plain(&row.path),
        plain(&row.from)
    )
}

/// The rows of `status --watch` where no terminal shows them: those that changed.
pub(super) fn news(news: &News, now: u64, rates: &Rates) -> String {
    let out = news.outbound.iter();
    let out = out.map(|row| format!("out {}\n", outbound(row, now, rates).trim_start()));
    let inbound = news.inbound.iter();
    let inbound = inbound.map(|row| format!("in  {}\n", self::inbound(row, now).trim_start()));
    let peers = news.peers.iter();
    let peers = peers.map(|row| {
        format!(
            "peer {}\n",
            self::peers(std::slice::from_ref(row), now).trim()
        )
    });
    out.chain(inbound).chain(peers).collect()
}

/// What became of the file at one path, with each recipient.
pub(super) fn of(of: &Of, now: u64) -> String {
    let mut out = String::new();
    if let Some(note) = &of.note {
        let _fits = writeln!(out, "{}", plain(note));
    }
    for row in &of.outbound {
        let path = plain(&row.path);
        let sealed = ago(row.sealed_at, now);
        let _fits = writeln!(
            out,
            "{path}: {}, {}, sealed {sealed}",
            row.state,
            size(row.size)
        );
        let _fits = writeln!(out, "  bundle {}", row.bundle);
        if !row.sha256.is_empty() {
            let _fits = writeln!(out, "  sha256 {}", row.sha256);
        }
        for to in &row.recipients {
            let mut line = format!("  {:<16} {}", plain(&to.name), to.state);
            if to.state == Stage::Sending {
                let _fits = write!(line, " {}", progress(to.bytes, row.size, 0));
            }
            if let Some(why) = &to.error {
                let _fits = write!(line, " ({})", plain(why));
            }
            let _fits = writeln!(out, "{line}");
        }
    }
    for row in &of.inbound {
        let _fits = writeln!(out, "{}", inbound(row, now).trim_start());
        let _fits = writeln!(out, "  bundle {}", row.bundle);
        if !row.sha256.is_empty() {
            let _fits = writeln!(out, "  sha256 {}", row.sha256);
        }
    }
    out
}

/// "… 200 more", and "at least" where the daemon did not count further.
fn more(shown: usize, rows: u64) -> String {
    let least = match shown as u64 + rows {
        0..COUNTED => "",
        COUNTED.. => "at least ",
    };
    match rows {
        0 => String::new(),
        rows => format!("\n  … {least}{} more; --limit shows them", grouped(rows)),
    }
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

/// What was done since the start, and what is left to do.
fn counts(counts: &Counts) -> String {
    let mut out = format!(
        "\nSince start: {} sent, {} received; {} out, {} in; {} still to deliver",
        counts.sealed,
        counts.published,
        size(counts.bytes_sent),
        size(counts.bytes_received),
        counts.outbound_pending
    );
    for (count, one, many) in [
        (
            counts.unsealed,
            "file open for writing, or about to be sent",
            "files open for writing, or about to be sent",
        ),
        (counts.incomplete, "file incomplete", "files incomplete"),
        (
            counts.removed,
            "file removed before it was sent",
            "files removed before they were sent",
        ),
        (counts.refused, "offer refused", "offers refused"),
        (
            counts.quarantined,
            "file in quarantine",
            "files in quarantine",
        ),
        (
            counts.unverified,
            "file of the inbox is being checked before it is shown again",
            "files of the inbox are being checked before they are shown again",
        ),
    ] {
        if count > 0 {
            let _fits = write!(out, "\n  {}", counted(count, one, many));
        }
    }
    out
}

pub(super) fn status(status: &Status, now: u64, rates: &Rates) -> String {
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
            "Outbox, unfinished first",
            status
                .outbound
                .iter()
                .map(|row| outbound(row, now, rates))
                .collect::<Vec<_>>(),
            status.outbound_more,
        ),
        (
            "Incomplete: the writer was killed, a write failed, or the daemon ended before it heard of the close; \
             write them again, or `meshbox send` them as they are",
            status
                .incomplete
                .iter()
                .map(|path| format!("  {}", wire_path(path)))
                .collect(),
            0,
        ),
        (
            "Inbox, newest first",
            status.inbound.iter().map(|row| inbound(row, now)).collect(),
            status.inbound_more,
        ),
    ];
    let ignored = ignored(status);
    for (title, rows, left) in lists.iter().filter(|(_, rows, _)| !rows.is_empty()) {
        let _fits = write!(
            out,
            "\n{title}\n{}{}\n",
            rows.join("\n"),
            more(rows.len(), *left)
        );
    }
    out.push_str(&ignored);
    out.push_str(&counts(&status.counts));
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

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
                sealed_at: 0,
                state: Stage::Deferred,
                recipients: vec![RecipientRow {
                    id: "bb".into(),
                    name: "birch".into(),
                    state: Stage::Deferred,
                    bytes: 0,
                    error: Some("disk full".into()),
                    gone: false,
                }],
            }],
            inbound: vec![],
            outbound_more: 0,
            inbound_more: 0,
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
        let text = status(&example(), 1000, &Rates::default());
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

    /// "1 offers refused", "offline since …, offline", and a stranger with an old ticket as a member without a name.
    #[test]
    fn numbers_agree_nothing_is_said_twice_and_a_stranger_is_no_member() {
        let mut page = example();
        (page.counts.refused, page.counts.removed) = (1, 2);
        page.peers[0].error = Some("offline".into());
        let text = status(&page, 1000, &Rates::default());
        assert!(
            text.contains("\n  1 offer refused\n")
                && text.contains("\n  2 files removed before they")
        );
        assert!(!text.contains(", offline"), "{text}");
        let row = &mut page.peers[0];
        row.name.clear();
        assert!(peers(&page.peers, 1000).contains("(no name yet)"));
        page.peers[0].error = Some("wrong group key: it is not a member of this group".into());
        assert!(peers(&page.peers, 1000).contains("(not a member)"));
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        assert!(!status(&example(), 1000, &Rates::default()).contains('\x1b'));
        assert!(!wire_path(&WirePath::Text("a\nb".into())).contains('\n'));
    }

    #[test]
    fn what_is_on_its_way_says_how_far_and_how_fast() {
        let mut page = example();
        page.outbound_more = 1200;
        let row = &mut page.outbound[0];
        (row.state, row.size, row.sealed_at) = (Stage::Sending, 1000 << 20, 400);
        let to = &mut row.recipients[0];
        (to.state, to.bytes, to.error) = (Stage::Sending, 100 << 20, None);
        let (mut rates, begun) = (Rates::default(), Instant::now());
        rates.look(&page.outbound, begun);
        page.outbound[0].recipients[0].bytes = 200 << 20;
        rates.look(&page.outbound, begun + Duration::from_secs(10));
        page.inbound.push(InboundRow {
            path: "b".into(),
            path_b64: None,
            bundle: String::new(),
            sha256: String::new(),
            size: 10 << 20,
            bytes: 5 << 20,
            rate: 1 << 20,
            at: 0,
            from: "birch".into(),
            state: InboxStage::Incoming,
            error: None,
        });
        let text = status(&page, 1000, &rates);
        for part in [
            "10m ago  evil",
            "(20%, 10.0 MiB/s, 80s left)",
            "\n  … 1,200 more; --limit",
            "b  from birch (50%, 1.0 MiB/s, 5s left)",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(coarse(Duration::from_secs(3 * 86400)), "3d");
        assert!(more(100, 9_900).starts_with("\n  … at least 9,900 more"));
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
