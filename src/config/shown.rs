//! Settings as `meshbox config` shows them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::source::Source;
use super::stack::Stack;
use super::table::Setting;
use super::typed::Config;
use super::value::{format_size, show_late_joiners};
use crate::peer::PeerId;

/// One setting as it holds, to be shown.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Held {
    /// The setting.
    pub name: &'static str,
    /// Its value as a TOML value; `None` when unset; a secret shows as `…`.
    pub value: Option<toml::Value>,
    /// Where it came from.
    pub source: Source,
    /// What holds when nobody says anything, in words; may be empty.
    pub default: &'static str,
}

/// `[groups]` and `[[route]]` as they hold.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Tables {
    /// As they stand in the file.
    pub tables: toml::Table,
    /// The file.
    pub source: Source,
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, table) in &self.tables {
            let one: toml::Table = [(name.clone(), table.clone())].into_iter().collect();
            write!(f, "\n# {}\n{one}", self.source.describe(name))?;
        }
        Ok(())
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}", self.name)?,
            None if self.default.is_empty() => return write!(f, "# {} is not set", self.name),
            None => return write!(f, "# {}: {}", self.name, self.default),
        }
        write!(f, "  # {}", self.source.describe(self.name))
    }
}

impl Stack<'_> {
    /// What `setting` shows.
    pub(super) fn held(&self, setting: &Setting, config: &Config) -> Held {
        let text = |text: &str| Some(toml::Value::String(text.to_owned()));
        let duration = |value: Duration| text(&humantime::format_duration(value).to_string());
        let list =
            |values: Vec<String>| Some(values.into()).filter(|_| self.raw(setting.name).is_some());
        let value = match setting.name {
            "state" => text(&config.state.to_string_lossy()),
            "name" => text(config.name.as_str()),
            "join" => self.raw("join").and_then(|_| text("…")),
            "join_file" => self
                .raw("join_file")
                .and_then(|(_, v)| text(&v.last()?.to_string_lossy())),
            "listen" => list(config.listen.iter().map(SocketAddr::to_string).collect()),
            "peer" => list(
                config
                    .peers
                    .iter()
                    .map(|(id, addr)| format!("{id}@{addr}"))
                    .collect(),
            ),
            "identity" => text(config.identity.word()),
            "new" => Some(config.new.into()),
            "members" => text(if config.listed { "listed" } else { "open" }),
            "member" => list(config.member.iter().map(PeerId::to_string).collect()),
            "no_mdns" => Some((!config.mdns).into()),
            "congestion" => text(&config.congestion.to_string()),
            "relay" => list(config.relay.clone()),
            "settle" => duration(config.settle),
            "lifetime" => duration(config.lifetime),
            "late_joiners" => text(show_late_joiners(config.late_joiners)),
            "foreground" => Some(config.foreground.into()),
            "allow_other" => Some(config.allow_other.into()),
            "log" => text(&config.log),
            "ignore" => list(config.ignore.clone()),
            "ignore_except" => list(config.ignore_except.clone()),
            other => bound(config, other).and_then(|shown| text(&shown)),
        };
        let source = self
            .raw(setting.name)
            .map_or(Source::Default, |(source, _)| source.clone());
        Held {
            name: setting.name,
            value,
            source,
            default: setting.default,
        }
    }
}

/// The text of one of the settings of [`super::bounds`] or of a limit of bundles; `None` for what is not set.
fn bound(config: &Config, name: &str) -> Option<String> {
    let Config {
        limits,
        dress,
        routing,
        ..
    } = config;
    let octal = |mode: u32| format!("{mode:04o}");
    match name {
        "max_bytes" => limits.max_bytes.map(format_size),
        "min_free" => limits.min_free.map(format_size),
        "max_file_bytes" => limits.max_file_bytes.map(format_size),
        "max_peer_bytes" => limits.max_peer_bytes.map(format_size),
        "history" => limits.history.map(|count| count.to_string()),
        "max_bundle_files" => routing.max_bundle_files.map(|max| max.to_string()),
        "max_bundle_bytes" => routing.max_bundle_bytes.map(format_size),
        "max_recipients" => routing.max_recipients.map(|max| max.to_string()),
        "inbox_mode" => dress.mode.map(octal),
        "umask" => dress.umask.map(octal),
        "uid" => dress.uid.map(|id| id.to_string()),
        "gid" => dress.gid.map(|id| id.to_string()),
        _ => None,
    }
}
