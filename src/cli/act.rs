//! The commands that have something done to bundles: send, cancel, retry.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::exit::{ExitCode, Failure};
use super::which::below_outbox;
use super::{DaemonArgs, ask, print};
use crate::bundle::{BundleId, Priority, RelPath};
use crate::control::act::{Act, ActOutcome, Named, SendFiles, parse_priority};
use crate::control::{Client, Reply, Request, WirePath};
use crate::peer;

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
                super::complain(&acted.text);
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
    let stage = Stage::new(&outbox)?;
    let mut staged = Vec::new();
    for place in &places {
        stage.take(place, &mut staged)?;
    }
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
    stage.remove();
    sent
}

/// Something to be sent.
struct Place {
    at: PathBuf,
    /// What it is called in the bundle.
    name: RelPath,
    in_outbox: bool,
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

/// A directory of the outbox with an ignored name, for files that are to be sent as a bundle. Removed when it is dropped.
struct Stage {
    at: PathBuf,
    name: RelPath,
}

impl Stage {
    fn new(outbox: &Path) -> Result<Self, Failure> {
        let random = data_encoding::HEXLOWER.encode(&peer::random::<8>());
        let name = format!(".meshbox-send-{random}");
        let at = outbox.join(&name);
        fs::create_dir(&at).map_err(|err| said(&at, &err))?;
        let name = RelPath::parse(name).map_err(Failure::failed)?;
        Ok(Self { at, name })
    }

    /// Copies what is at `place` here, or links it if it is in the outbox already.
    fn take(&self, place: &Place, staged: &mut Vec<(WirePath, WirePath)>) -> Result<(), Failure> {
        let meta = fs::metadata(&place.at).map_err(|err| said(&place.at, &err))?;
        if meta.is_dir() {
            let mut entries: Vec<_> = fs::read_dir(&place.at)
                .and_then(Iterator::collect::<io::Result<_>>)
                .map_err(|err| said(&place.at, &err))?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let name = place.name.child(entry.file_name().as_bytes());
                let name = name
                    .map_err(|err| Failure::failed(format!("{}: {err}", entry.path().display())))?;
                let inner = Place {
                    at: entry.path(),
                    name,
                    in_outbox: place.in_outbox,
                };
                self.take(&inner, staged)?;
            }
            return Ok(());
        }
        if !meta.is_file() {
            return Err(Failure::failed(format!(
                "{} is not a file; only files and directories are sent",
                place.at.display()
            )));
        }
        let number = staged.len().to_string();
        let to = self.at.join(&number);
        let linked = place.in_outbox && fs::hard_link(&place.at, &to).is_ok();
        if !linked {
            copy(&place.at, &to, &meta).map_err(|err| said(&place.at, &err))?;
        }
        let from = self
            .name
            .child(number.as_bytes())
            .map_err(Failure::failed)?;
        staged.push((WirePath::from(&from), WirePath::from(&place.name)));
        Ok(())
    }

    fn remove(self) {}
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.at) {
            super::complain(&format!("cannot remove {}: {err}", self.at.display()));
        }
    }
}

fn copy(from: &Path, to: &Path, meta: &fs::Metadata) -> io::Result<()> {
    fs::copy(from, to)?;
    let times = FileTimes::new().set_modified(meta.modified()?);
    File::options().write(true).open(to)?.set_times(times)
}

fn said(at: &Path, err: &io::Error) -> Failure {
    Failure::failed(format!("{}: {err}", at.display()))
}
