//! The commands that ask a running daemon.

use std::path::{Path, PathBuf};

use super::args::{DaemonArgs, PlacedArgs};
use super::exit::Failure;
use super::output::print;
use super::show;
use super::which::{Daemon, find, find_at, real_path};
use crate::control::Layout;
use crate::control::{Client, ControlError, Reply, Request, Status};
use crate::daemon::keys;

/// An answer to another question than the one asked.
pub(super) fn unexpected() -> Failure {
    ControlError::Garbled("it answers another question".to_owned()).into()
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|err| Failure::failed(&err))?;
    print(&(text + "\n"))
}

impl PlacedArgs {
    /// The daemon that is meant.
    pub(super) fn find(self) -> Result<Daemon, Failure> {
        find_at(self.daemon.state, self.mountpoint.as_deref())
    }

    /// A connection to the daemon that is meant, by `path` if by nothing else, and where its mount is.
    pub(super) fn reach(self, path: &Path) -> Result<(Client, PathBuf), Failure> {
        match self.mountpoint {
            Some(_) => place_of(self.find()?),
            None => reach(self.daemon, path),
        }
    }
}

pub(super) fn status_of(client: &mut Client, limit: Option<usize>) -> Result<Box<Status>, Failure> {
    ask_status(client, limit, false)
}

pub(super) fn ask_status(
    client: &mut Client,
    limit: Option<usize>,
    unfinished_first: bool,
) -> Result<Box<Status>, Failure> {
    match client.call(&Request::Status {
        before: None,
        limit,
        unfinished_first,
    })? {
        Reply::Status(status) => Ok(status),
        _ => Err(unexpected()),
    }
}

pub(super) fn peers(daemon: PlacedArgs, as_json: bool) -> Result<(), Failure> {
    match daemon.find()?.connect()?.call(&Request::Peers)? {
        Reply::Peers { peers } if as_json => json(&peers),
        Reply::Peers { peers } => print(&show::peers(&peers, show::now())),
        _ => Err(unexpected()),
    }
}

/// The state is enough for the id: it works without a daemon too.
pub(super) fn id(daemon: PlacedArgs) -> Result<(), Failure> {
    let state = daemon.find()?.state;
    match keys::load_identity(&Layout::new(state.clone())).map_err(Failure::failed)? {
        Some(identity) => print(&format!("{}\n", identity.id())),
        None => Err(Failure::failed(format!(
            "{} has no identity yet; `meshbox mount` makes one",
            state.display()
        ))),
    }
}

/// A connection to the daemon that `path` belongs to, and where its mount is.
pub(super) fn reach(daemon: DaemonArgs, path: &Path) -> Result<(Client, PathBuf), Failure> {
    place_of(find(daemon.state, Some(&real_path(path)?))?)
}

/// A connection to `daemon`, and where its mount is.
pub(super) fn place_of(daemon: Daemon) -> Result<(Client, PathBuf), Failure> {
    let mut client = daemon.connect()?;
    let mountpoint = match daemon.mountpoint {
        Some(mountpoint) => mountpoint,
        None => status_of(&mut client, Some(0))?.mountpoint.clone().into(),
    };
    Ok((client, mountpoint))
}
