//! The commands that have something done to bundles: send, cancel, retry.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::DaemonArgs;
use super::ask;
use super::exit::{ExitCode, Failure};
use super::output::print;
use super::stage::{Place, Stage};
use super::which::below_outbox;
use crate::bundle::{BundleId, Priority, RelPath};
use crate::control::act::{Act, ActOutcome, Named, SendFiles, parse_priority};
use crate::control::{Client, Reply, Request, WirePath};

/// Reads `--priority`.
pub(super) fn priority(text: &str) -> Result<Priority, String> {
    parse_priority(text).ok_or_else(|| "it is bulk, low, routine, priority or critical".to_owned())
}

fn carry_out(client: &mut Client, act: Act) -> Result<(), Failure> {
    let Reply::Acted(acted) = client.call(&Request::Act { act })? else {
        return Err(ask::unexpected());
    };
    let code = match acted.outcome {
        ActOutcome::Done => {
            let bundle = acted
                .bundle
                .map_or_else(String::new, |id| format!("{id}\n"));
            if !acted.text.is_empty() {
                // The id alone is for scripts.
                super::output::complain(&acted.text);
            }
            return print(&bundle);
        }
        ActOutcome::Failed => ExitCode::Failed,
        ActOutcome::Conflict => ExitCode::Conflict,
    };
    Err(Failure {
        code,
        message: acted.text,
    })
}

/// The bundle that is meant, and the daemon to ask.
fn named(what: &Path, daemon: DaemonArgs) -> Result<(Client, Named), Failure> {
    let text = what.to_str();
    let is_id = text.is_some_and(|text| BundleId::from_hex(text).is_some());
    let (client, mountpoint) = ask::reach(daemon, what)?;
    let path = below_outbox(what, &mountpoint);
    let bundle = text.map(str::to_owned);
    match path {
        _ if is_id => Ok((client, Named { path: None, bundle })),
        Ok(path) => {
            let path = Some(WirePath::from(&path));
            Ok((client, Named { path, bundle }))
        }
        Err(failure) => Err(failure),
    }
}

pub(super) fn cancel(what: &Path, daemon: DaemonArgs) -> Result<(), Failure> {
    let (mut client, what) = named(what, daemon)?;
    carry_out(&mut client, Act::Cancel { what })
}

pub(super) fn retry(what: &Path, to: Option<String>, daemon: DaemonArgs) -> Result<(), Failure> {
    let (mut client, what) = named(what, daemon)?;
    carry_out(&mut client, Act::Retry { what, to })
}

pub(super) fn send(
    files: &[PathBuf],
    to: Vec<String>,
    priority: Option<Priority>,
    id: Option<String>,
    daemon: DaemonArgs,
) -> Result<(), Failure> {
    let Some(first) = files.first() else {
        return Ok(());
    };
    let (mut client, mountpoint) = ask::reach(daemon, first)?;
    let outbox = mountpoint.join("outbox");
    let plain = to.is_empty() && priority.is_none() && id.is_none();
    let places: Vec<Place> = files
        .iter()
        .map(|typed| Place::of(typed, &mountpoint))
        .collect::<Result<_, _>>()?;
    if plain && places.iter().all(|place| place.in_outbox) {
        for place in places {
            let path = WirePath::from(&place.name);
            match client.call(&Request::Send { path })? {
                Reply::Done => {}
                _ => return Err(ask::unexpected()),
            }
        }
        return Ok(());
    }
    if id
        .as_ref()
        .is_some_and(|id| id.is_empty() || id.len() > 255)
    {
        return Err(Failure::usage("a bundle's id has 1 to 255 bytes"));
    }
    let mut stage = Stage::new(&outbox)?;
    for place in &places {
        stage.take(place)?;
    }
    let staged = stage.staged();
    if staged.is_empty() {
        return Err(Failure::failed("there is no file in it"));
    }
    let act = Act::Send(SendFiles {
        files: staged,
        to,
        priority,
        id,
    });
    let sent = carry_out(&mut client, act);
    drop(stage);
    sent
}

impl Place {
    fn of(typed: &Path, mountpoint: &Path) -> Result<Self, Failure> {
        let outbox = mountpoint.join("outbox");
        let absolute = std::path::absolute(typed)?;
        let below = below_outbox(typed, mountpoint).ok();
        // A bare path is one below the outbox only if there is no such file here.
        let inside = below.filter(|_| {
            !absolute.exists()
                || absolute
                    .canonicalize()
                    .is_ok_and(|at| at.starts_with(&outbox))
        });
        if let Some(name) = inside {
            return Ok(Self {
                at: outbox.join(name.as_path()),
                name,
                in_outbox: true,
            });
        }
        let name = absolute.file_name().unwrap_or_default().as_bytes();
        let name = RelPath::parse(name)
            .map_err(|err| Failure::usage(format!("{}: {err}", typed.display())))?;
        Ok(Self {
            at: absolute,
            name,
            in_outbox: false,
        })
    }
}
