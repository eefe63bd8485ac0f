//! The commands that have something done to bundles: send, cancel, retry.

use std::io::ErrorKind::NotFound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::{DaemonArgs, PlacedArgs, SendArgs};
use super::ask;
use super::exit::{ExitCode, Failure};
use super::output::print;
use super::stage::{Place, Stage};
use super::wait::{self, Awaited};
use super::which::{self, below_outbox};
use crate::bundle::{BundleId, RelPath};
use crate::control::act::{Act, ActOutcome, Named, SendFiles};
use crate::control::wait::WaitFor;
use crate::control::{Client, Reply, Request, WirePath};

/// Has it done. Gives the id of the bundle, where there is one.
fn carry_out(client: &mut Client, act: Act) -> Result<Option<String>, Failure> {
    let Reply::Acted(acted) = client.call(&Request::Act { act })? else {
        return Err(ask::unexpected());
    };
    let code = match acted.outcome {
        ActOutcome::Done => {
            if !acted.text.is_empty() {
                // The id alone is for scripts.
                super::output::complain(&acted.text);
            }
            if let Some(id) = &acted.bundle {
                print(&format!("{id}\n"))?;
            }
            return Ok(acted.bundle);
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
fn named(what: &Path, daemon: PlacedArgs) -> Result<(Client, Named), Failure> {
    let text = what.to_str();
    let is_id = text.is_some_and(|text| BundleId::from_hex(text).is_some());
    let (client, mountpoint) = daemon.reach(what)?;
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

pub(super) fn cancel(what: &Path, daemon: PlacedArgs) -> Result<(), Failure> {
    let (mut client, what) = named(what, daemon)?;
    carry_out(&mut client, Act::Cancel { what }).map(drop)
}

pub(super) fn retry(what: &Path, to: Option<String>, daemon: PlacedArgs) -> Result<(), Failure> {
    let (mut client, what) = named(what, daemon)?;
    carry_out(&mut client, Act::Retry { what, to }).map(drop)
}

/// `meshbox send`.
pub(super) fn send(mut args: SendArgs) -> Result<(), Failure> {
    let mailbox = take_mailbox(&mut args.files)?;
    let Some(named) = mailbox.as_ref().or(args.files.first()) else {
        return Ok(());
    };
    let daemon = DaemonArgs {
        state: args.daemon.state.clone(),
    };
    let (mut client, mountpoint) = ask::reach(daemon, named)?;
    let (wait, timeout) = (args.wait, args.timeout);
    let sent = hand_over(&mut client, &mountpoint, args)?;
    if !wait {
        return Ok(());
    }
    let waited = wait::follow(&mut client, sent, WaitFor::All, timeout)?;
    wait::told(&waited, false).map_or(Ok(()), Err)
}

/// The mailbox to send with, if its mountpoint is named last.
fn take_mailbox(words: &mut Vec<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    match words.last() {
        Some(last) if words.len() > 1 && which::is_mailbox(last)? => Ok(words.pop()),
        _ => Ok(None),
    }
}

/// Has the files sent. Gives what they are to be waited for by.
fn hand_over(client: &mut Client, mountpoint: &Path, args: SendArgs) -> Result<Awaited, Failure> {
    let SendArgs {
        files,
        to,
        priority,
        bundle: id,
        ..
    } = args;
    let plain = to.is_empty() && priority.is_none() && id.is_none();
    let places: Vec<Place> = files
        .iter()
        .map(|typed| Place::of(typed, mountpoint))
        .collect::<Result<_, _>>()?;
    let mut sent = Awaited::default();
    if plain && places.iter().all(|place| place.in_outbox) {
        for place in places {
            let path = WirePath::from(&place.name);
            sent.paths.push(path.clone());
            match client.call(&Request::Send { path })? {
                Reply::Done => {}
                _ => return Err(ask::unexpected()),
            }
        }
        return Ok(sent);
    }
    if id
        .as_ref()
        .is_some_and(|id| id.is_empty() || id.len() > 255)
    {
        return Err(Failure::usage("a bundle's id has 1 to 255 bytes"));
    }
    let mut stage = Stage::new(&mountpoint.join("outbox"))?;
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
    let bundle = carry_out(client, act);
    drop(stage);
    sent.bundles.extend(bundle?);
    Ok(sent)
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
            let at = outbox.join(name.as_path());
            if at
                .symlink_metadata()
                .is_err_and(|error| error.kind() == NotFound)
            {
                let where_looked = match absolute.starts_with(&outbox) {
                    true => "",
                    false => ", neither here nor in outbox/",
                };
                return Err(Failure::failed(format!(
                    "{}: there is no such file{where_looked}",
                    typed.display()
                )));
            }
            return Ok(Self {
                at,
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
