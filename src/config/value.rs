//! From a value's text to its type. An error is a phrase that follows the setting's name.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::peer::{PeerId, PeerName};
use crate::similar;

/// Reads `5ms`, `1m 30s`, `30days`. A number needs its unit, except 0.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|_| {
        format!(
            "{text:?} is not a duration; write a number with its unit, as in 5ms, 10s, 2h, 30days"
        )
    })
}

/// Reads `ID@ADDR:PORT`.
pub(crate) fn parse_peer(text: &str) -> Result<(PeerId, SocketAddr), String> {
    let parts = text
        .split_once('@')
        .and_then(|(id, addr)| Some((PeerId::from_hex(id)?, addr.parse().ok()?)));
    parts.ok_or_else(|| {
        format!("{text:?} is not ID@ADDR:PORT; `meshbox id` prints the ID of a node")
    })
}

/// What a unit stands for; `K` and `KiB` are 1,024, `KB` is 1,000.
const UNITS: [(&str, u64); 13] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("B", 1),
];

/// Reads `10GiB`, `500 MB`, `64M`, `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let lower = trimmed.to_ascii_lowercase();
    let unit = UNITS
        .iter()
        .find(|(unit, _)| lower.ends_with(&unit.to_ascii_lowercase()));
    let (digits, factor) = match unit {
        Some((unit, factor)) => (&trimmed[..trimmed.len() - unit.len()], *factor),
        None => (trimmed, 1),
    };
    let number: Option<u64> = digits.trim().parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| {
            format!(
                "{text:?} is not a size; write a whole number with a unit, as in 64MiB, 10GiB, 500MB"
            )
        })
}

/// A size as [`parse_size`] reads it, in the largest unit that shows it whole.
pub(crate) fn format_size(bytes: u64) -> String {
    let whole = UNITS[..4]
        .iter()
        .rev()
        .find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    match whole {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// A limit; one of 0 would let nothing through, which nobody can mean.
pub(super) fn parse_limit(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("0 would let nothing through; leave it out for no limit".to_owned()),
        limit => Ok(limit),
    }
}

/// What members get that join later: `true` is what is current.
pub(super) fn parse_late_joiners(text: &str) -> Result<bool, String> {
    match text {
        "current" => Ok(true),
        "none" => Ok(false),
        _ => Err(format!(
            "{text:?}: say current (they get what is still shown) or none"
        )),
    }
}

/// The word for it.
pub(super) fn show_late_joiners(current: bool) -> &'static str {
    if current { "current" } else { "none" }
}

/// URL of a relay.
pub(super) fn parse_relay(text: &str) -> Result<String, String> {
    let host = ["http://", "https://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    match host {
        Some(host) if !host.trim_matches('/').is_empty() => Ok(text.to_owned()),
        Some(_) | None => Err(format!(
            "{text:?} is not the URL of a relay, such as http://10.0.0.1:3340"
        )),
    }
}

/// A number of things, at least one.
pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        Ok(_) | Err(_) => Err(format!("{text:?} is not a whole number above 0")),
    }
}

fn parse_octal(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    octal
        .then(|| u32::from_str_radix(digits, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is not an octal mode such as 0640"))
}

/// Permission bits of files in the inbox.
pub(super) fn parse_inbox_mode(text: &str) -> Result<u32, String> {
    let mode = parse_octal(text)?;
    if mode & 0o7000 != 0 {
        Err(format!(
            "{text} has setuid, setgid or sticky, which no file in the inbox gets; write at most 0666"
        ))
    } else if mode & 0o111 != 0 {
        Err(format!(
            "{text} has execute bits, which travel with each file; write {:04o}",
            mode & 0o666
        ))
    } else if mode & 0o400 == 0 {
        Err(format!(
            "{text} keeps the owner from reading; write {:04o}",
            mode | 0o400
        ))
    } else {
        Ok(mode)
    }
}

/// Permission bits taken off.
pub(super) fn parse_umask(text: &str) -> Result<u32, String> {
    let mask = parse_octal(text)?;
    if mask & 0o7000 != 0 {
        Err(format!("{text} is not a umask; write at most 0077"))
    } else if mask & 0o700 != 0 {
        Err(format!(
            "{text} takes rights from the owner, who could not use the mount; write {:04o}",
            mask & 0o077
        ))
    } else {
        Ok(mask)
    }
}

/// A user or group as a number.
pub(super) fn parse_id(text: &str) -> Result<u32, String> {
    // The largest number means "no change" to chown(2).
    text.parse()
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| format!("{text:?} is not a number; `id NAME` prints those of a user"))
}

pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// The words for how much is logged.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Reads `debug`, or as RUST_LOG does `info,meshbox::mesh=debug`. A word alone that is no level would be taken for the name of a
/// module and turn everything else off, which nobody means.
pub(super) fn parse_log(text: &str) -> Result<String, String> {
    let wrong = |word: &str| {
        let hint = similar::hint(word, LEVELS);
        format!("{word:?} is not a log level; use error, warn, info, debug or trace{hint}")
    };
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let level = match part.rsplit_once('=') {
            Some((_, level)) => level,
            None if part.contains("::") || part.contains('[') || part == "meshbox" => continue,
            None => part,
        };
        level.parse::<LevelFilter>().map_err(|_| wrong(level))?;
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        Ok(_) | Err(_) => Err(wrong(text)),
    }
}

/// A node name from the machine's: its first label, with what no name may have left out.
pub(super) fn name_of_host(hostname: &str) -> PeerName {
    let label = hostname.trim().split('.').next().unwrap_or_default();
    let plain: String = label
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let name: String = plain
        .trim_start_matches(['-', '_'])
        .chars()
        .take(63)
        .collect();
    // "node" is a name by the rule of peer names, so the second parse cannot fail.
    #[allow(clippy::expect_used)]
    PeerName::parse(name)
        .or_else(|_| PeerName::parse("node"))
        .expect("a good name")
}

/// How a node gets its key pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum IdentityKind {
    /// A random one of its own.
    #[default]
    Own,
    /// Made from the group key and its name.
    Derived,
}

impl IdentityKind {
    /// As it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Derived => "derived",
        }
    }
}

/// `own` or `derived`.
pub(super) fn parse_identity(text: &str) -> Result<IdentityKind, String> {
    [IdentityKind::Own, IdentityKind::Derived]
        .into_iter()
        .find(|kind| kind.word() == text)
        .ok_or_else(|| format!("{text:?} is neither `own` nor `derived`"))
}

/// `open` or `listed`.
pub(super) fn parse_members(text: &str) -> Result<bool, String> {
    match text {
        "open" => Ok(false),
        "listed" => Ok(true),
        _ => Err(format!("{text:?} is neither `open` nor `listed`")),
    }
}

/// The id of a node.
pub(super) fn parse_peer_id(text: &str) -> Result<PeerId, String> {
    PeerId::from_hex(text)
        .ok_or_else(|| format!("{text:?} is not an id; `meshbox id` prints 64 hex digits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Identity;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit_except_zero() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms("0ms"), Ok(0));
        assert_eq!(ms("5ms"), Ok(5));
        assert_eq!(ms("1m 30s"), Ok(90_000));
        for bad in ["", "5", "-1s", "soon"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("10G", 10 << 30),
            ("500MB", 500_000_000),
            ("1KB", 1000),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5G", "lots", "99999999999TiB", "1 G B"] {
            let why = parse_size(bad).unwrap_err();
            assert!(why.contains("64MiB"), "{bad}: {why}");
        }
        assert!(parse_limit("0").is_err());
    }

    #[test]
    fn modes_are_octal_and_make_sense() {
        assert_eq!(parse_inbox_mode("0640"), Ok(0o640));
        assert_eq!(parse_inbox_mode("666"), Ok(0o666));
        for (bad, says) in [
            ("rw", "octal"),
            ("0648", "octal"),
            ("", "octal"),
            ("4644", "setuid"),
            ("0755", "write 0644"),
            ("0040", "write 0440"),
        ] {
            let why = parse_inbox_mode(bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
        assert_eq!(parse_umask("027"), Ok(0o027));
        assert!(parse_umask("0777").unwrap_err().contains("0077"));
        assert!(parse_umask("7000").is_err());
        assert_eq!(parse_id("1000"), Ok(1000));
        for bad in ["root", "-1", "4294967295", ""] {
            assert!(parse_id(bad).is_err(), "{bad}");
        }
    }

    /// `inof` was taken for a module, and nothing was logged any more.
    #[test]
    fn a_log_level_is_one_of_a_few_words() {
        for good in [
            "info",
            "DEBUG",
            "off",
            "warn,meshbox::mesh=debug",
            "info,meshbox::spool",
            "meshbox[{id=3}]=trace",
        ] {
            assert_eq!(parse_log(good).as_deref(), Ok(good));
        }
        for (bad, says) in [
            ("inof", "did you mean `info`"),
            ("loud", "is not a log level"),
            ("info,meshbox::mesh=dbug", "did you mean `debug`"),
            ("", "is not a log level"),
        ] {
            let why = parse_log(bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why}");
        }
    }

    #[test]
    fn a_peer_is_an_id_and_an_address() {
        let id = Identity::generate().id();
        assert_eq!(
            parse_peer(&format!("{id}@[::1]:7")),
            Ok((id, "[::1]:7".parse().unwrap()))
        );
        for bad in [
            format!("{id}"),
            format!("{id}@localhost"),
            "ab@1.2.3.4:5".into(),
            "@1.2.3.4:5".into(),
        ] {
            assert!(parse_peer(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_become_node_names() {
        for (host, name) in [
            ("alder.example.org\n", "alder"),
            ("my box", "my-box"),
            ("", "node"),
            ("---", "node"),
            ("-a", "a"),
        ] {
            assert_eq!(name_of_host(host).as_str(), name, "{host:?}");
        }
    }

    proptest! {
        #[test]
        fn any_host_name_gives_some_node_name(host in ".*") {
            prop_assert!(!name_of_host(&host).as_str().is_empty());
        }

        #[test]
        fn any_size_reads_back_as_it_is_shown(bytes in any::<u64>(), shift in 0_u32..64) {
            let bytes = bytes >> shift << (shift % 20);
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_duration_reads_back_as_it_is_shown(ms in 1u64..10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&humantime::format_duration(duration).to_string()), Ok(duration));
        }
    }
}
