//! What commands are given besides their own: which daemon is meant, and how to mount.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::settings::Settings;
use crate::bundle::Priority;
use crate::config::parse_duration;
use crate::control::act::parse_priority;
use crate::control::wait::WaitFor;

/// Which daemon is meant.
#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// State directory of the daemon to ask; needed when several run
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
}

/// Which daemon is meant; after whatever else a command takes.
#[derive(Debug, Args)]
pub(super) struct PlacedArgs {
    /// The mountpoint, or any path in it; needed when several run and this directory is in none
    #[arg(conflicts_with = "state")]
    pub(super) mountpoint: Option<PathBuf>,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
}

#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// Where to mount; made if missing
    pub(super) mountpoint: PathBuf,
    /// Mount options, separated by commas; every flag below is one too
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(super) options: Vec<OsString>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// `meshbox wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Files and directories in outbox/, paths below it, or ids of bundles; none, or the mountpoint: all that is on its
    /// way now
    #[arg(value_name = "PATH|BUNDLE")]
    pub(super) paths: Vec<PathBuf>,
    /// To whom: all, a number of peers, or the name of one
    #[arg(long = "for", value_name = "WHOM", default_value = "all")]
    pub(super) to: WaitFor,
    /// To one of them, and where there is no other member yet, wait for the first
    #[arg(long, conflicts_with = "to")]
    pub(super) for_first: bool,
    /// Give up after this time, as in 30s or 5m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `meshbox send`.
#[derive(Debug, Args)]
pub(super) struct SendArgs {
    /// A file in outbox/ or a path below it; with one of the options below, or outside the outbox, any files and
    /// directories; last may stand the mountpoint
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// To whom, whatever the routes say: names, ids, @groups, or all
    #[arg(long, value_name = "WHOM", value_delimiter = ',')]
    pub(super) to: Vec<String>,
    /// How urgently: bulk, low, routine, priority, critical
    #[arg(long, value_name = "PRIORITY", value_parser = priority)]
    pub(super) priority: Option<Priority>,
    /// Your own id for it: sent again with the same files it does nothing, with others it is an error
    #[arg(long, value_name = "ID")]
    pub(super) bundle: Option<String>,
    /// Wait until it is delivered to all
    #[arg(long)]
    pub(super) wait: bool,
    /// Wait for so long at most, as in 30s or 5m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "wait")]
    pub(super) timeout: Option<Duration>,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
}

/// Reads `--priority`.
fn priority(text: &str) -> Result<Priority, String> {
    parse_priority(text).ok_or_else(|| "it is bulk, low, routine, priority or critical".to_owned())
}

/// A variable of the environment; an empty one counts as unset.
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
