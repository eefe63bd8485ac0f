//! The settings of space and of how the inbox is dressed: sizes, modes, owners.

use super::value::{self, format_size};
use super::{Config, ConfigError, Stack};
use crate::spool::{Dress, Limits};

impl Stack<'_> {
    /// The limits of disk use.
    pub(super) fn limits(&self) -> Result<Limits, ConfigError> {
        Ok(Limits {
            max_bytes: self.parsed("max_bytes", value::parse_limit)?,
            min_free: self.parsed("min_free", value::parse_size)?,
            max_file_bytes: self.parsed("max_file_bytes", value::parse_limit)?,
            max_peer_bytes: self.parsed("max_peer_bytes", value::parse_limit)?,
            history: self.parsed("history", value::parse_count)?,
        })
    }

    /// Modes and owner of what the mount shows. Only root can give files away.
    pub(super) fn dress(&self, root: bool) -> Result<Dress, ConfigError> {
        let dress = Dress {
            mode: self.parsed("inbox_mode", value::parse_inbox_mode)?,
            uid: self.parsed("uid", value::parse_id)?,
            gid: self.parsed("gid", value::parse_id)?,
            umask: self.parsed("umask", value::parse_umask)?,
        };
        for (name, given) in [("uid", dress.uid), ("gid", dress.gid)] {
            if let Some((source, _)) = self.raw(name).filter(|_| given.is_some() && !root) {
                return Err(ConfigError::Value {
                    origin: source.describe(name),
                    why: "only root can give files to others; leave it out, or mount as root"
                        .to_owned(),
                });
            }
        }
        Ok(dress)
    }
}

/// The text of one of these settings as it holds; `None` for what is not set.
pub(super) fn shown(config: &Config, name: &str) -> Option<String> {
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
