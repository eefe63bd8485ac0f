//! From a value's text to its type. An error is a phrase that follows the setting's name.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::peer::{PeerId, PeerName};

/// Reads `5ms`, `1m 30s`, `30days`. A number needs its unit, except 0.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
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
pub fn parse_peer(text: &str) -> Result<(PeerId, SocketAddr), String> {
    let parts = text
        .split_once('@')
        .and_then(|(id, addr)| Some((PeerId::from_hex(id)?, addr.parse().ok()?)));
    parts.ok_or_else(|| {
        format!("{text:?} is not ID@ADDR:PORT; `meshbox id` prints the ID of a node")
    })
}

pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

pub(super) fn parse_log(text: &str) -> Result<String, String> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "{text:?} is not a log level; use error, warn, info, debug or trace"
        )),
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
        fn any_duration_reads_back_as_it_is_shown(ms in 1u64..10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&humantime::format_duration(duration).to_string()), Ok(duration));
        }
    }
}
