//! Reading the configuration again, at SIGHUP: what a running daemon can take over is taken over, what it cannot is named.
//!
//! A configuration that does not hold together changes nothing. What was typed and the environment stay what they were at the
//! start; the files are read again.
//!
//! # Threads
//! Called by the thread that waits for the end, so one at a time.

use std::fmt::Write;

use super::logging;
use crate::config::{Config, ConfigError, Held, Resolved, setting};
use crate::fs::Fs;
use crate::spool::{Spool, SpoolError};

/// Reads all sources again.
pub(crate) type Again = Box<dyn Fn() -> Result<Resolved, ConfigError> + Send>;

/// What holds, and how to find out what is to hold.
pub(super) struct Settings {
    held: Vec<Held>,
    config: Config,
    again: Again,
}

/// Settings that say how to join, and have done so.
const JOINED: [&str; 2] = ["join", "join_file"];

/// What a reload came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Taken over, as they are written.
    taken: Vec<String>,
    /// Changed, and only read at a start.
    later: Vec<&'static str>,
}

impl Settings {
    pub(super) fn new(held: Vec<Held>, config: Config, again: Again) -> Self {
        Self {
            held,
            config,
            again,
        }
    }

    /// Reads the configuration again and takes over what can change. Says in the log what came of it.
    pub(super) fn reload(&mut self, spool: &Spool, fs: &Fs) {
        let resolved = match (self.again)() {
            Ok(resolved) => resolved,
            Err(error) => {
                tracing::error!("the configuration stays as it was: {error}");
                return;
            }
        };
        let mut changes = compare(&self.held, &resolved.held);
        if let Err(error) = apply(&resolved.config, spool, fs) {
            tracing::error!("not all of the configuration was taken over: {error}");
            return;
        }
        let routes =
            |config: &Config| (config.routing.routes.clone(), config.routing.groups.clone());
        if routes(&self.config) != routes(&resolved.config) {
            changes.taken.push("routes and groups".to_owned());
        }
        tracing::info!("{}", changes.told());
        // What waits for a restart is compared with what holds, also the next time.
        let stays = |new: Held| {
            let old = self.held.iter().find(|old| old.name == new.name);
            match (is_live(new.name), old) {
                (false, Some(old)) => old.clone(),
                (true, _) | (false, None) => new,
            }
        };
        self.held = resolved.held.into_iter().map(stays).collect();
        self.config.routing = resolved.config.routing;
    }
}

fn is_live(name: &str) -> bool {
    setting(name).is_some_and(|setting| setting.live)
}

fn compare(old: &[Held], new: &[Held]) -> Changes {
    let mut changes = Changes::default();
    for (old, new) in old.iter().zip(new) {
        if old.value == new.value || JOINED.contains(&new.name) {
            continue;
        }
        if is_live(new.name) {
            changes.taken.push(match &new.value {
                Some(value) => format!("{} = {value}", new.name),
                None => format!("{}: {}", new.name, new.default),
            });
        } else {
            changes.later.push(new.name);
        }
    }
    changes
}

fn apply(config: &Config, spool: &Spool, fs: &Fs) -> Result<(), SpoolError> {
    logging::set_level(&config.log);
    spool.content.set_limits(config.limits);
    spool.ledger.keep_history(config.limits.history);
    spool.group.set_lifetime(config.lifetime);
    spool.custodian.set_late_joiners(config.late_joiners);
    fs.set_limits(config.limits.max_file_bytes, config.settle);
    spool.set_routing(config.routing.clone())
}

impl Changes {
    fn told(&self) -> String {
        let mut text = "configuration read again: ".to_owned();
        text += &if self.taken.is_empty() {
            "nothing new".to_owned()
        } else {
            self.taken.join(", ")
        };
        if !self.later.is_empty() {
            let _fits = write!(text, "; needs a remount: {}", self.later.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn what_changed_is_told_and_what_cannot_change_too() {
        let held = |name: &'static str, value: Option<&str>| Held {
            name,
            value: value.map(|text| toml::Value::String(text.to_owned())),
            source: Source::Default,
            default: "no limit",
        };
        let old = [
            held("settle", Some("5ms")),
            held("max_bytes", Some("1GiB")),
            held("name", Some("alder")),
            held("join_file", Some("/t")),
            held("log", Some("info")),
        ];
        assert_eq!(
            compare(&old, &old).told(),
            "configuration read again: nothing new"
        );
        let new = [
            held("settle", Some("1s")),
            held("max_bytes", None),
            held("name", Some("birch")),
            held("join_file", None),
            held("log", Some("info")),
        ];
        assert_eq!(
            compare(&old, &new).told(),
            "configuration read again: settle = \"1s\", max_bytes: no limit; needs a remount: name"
        );
    }
}
