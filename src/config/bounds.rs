//! The settings of space and of how the inbox is dressed: sizes, modes, owners.

use super::error::ConfigError;
use super::stack::Stack;
use super::value;
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
