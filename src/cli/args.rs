//! What commands are given besides their own: which daemon is meant, and how to mount.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::settings::Settings;

/// Which daemon is meant.
#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// State directory of the daemon to ask; needed when several run
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
}

/// Which daemon is meant, where nothing else is named.
#[derive(Debug, Args)]
pub(super) struct PlacedArgs {
    /// The mountpoint, or any path in it; needed when several run
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

/// A variable of the environment; an empty one counts as unset.
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
