//! `status`: a page of it; one file or directory; or with `--watch` a page and then what changes, until the daemon ends or
//! nobody reads any more.

use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use super::args::PlacedArgs;
use super::ask::{ask_status, json, status_of, unexpected};
use super::exit::Failure;
use super::output::print;
use super::show::{self, Rates};
use super::which::real_path;
use crate::bundle::RelPath;
use crate::control::{Client, ControlError, DEFAULT_ROWS, Reply, Request, WirePath, follow};

/// Goes to the top left of a terminal and clears it.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(super) fn status(
    daemon: PlacedArgs,
    as_json: bool,
    limit: Option<usize>,
    follow: bool,
) -> Result<(), Failure> {
    let place = daemon.mountpoint.clone();
    let running = daemon.find()?;
    let mut client = running.connect()?;
    let named = match (&place, &running.mountpoint) {
        (Some(place), Some(mountpoint)) => in_mailbox(place, mountpoint)?,
        _ => None,
    };
    match named {
        Some(_) if follow => Err(Failure::usage(
            "--watch shows a whole mailbox: name its mountpoint",
        )),
        Some((path, inbox)) => {
            let path = WirePath::from(&path);
            let Reply::Of(of) = client.call(&Request::Of { path, inbox })? else {
                return Err(unexpected());
            };
            if as_json {
                json(&of)
            } else {
                print(&show::of(&of, show::now()))
            }
        }
        None if follow => watch(client, limit, as_json),
        None if as_json => json(&status_of(&mut client, limit)?),
        None => {
            let status = ask_status(&mut client, limit, true)?;
            print(&show::status(&status, show::now(), &Rates::default()))
        }
    }
}

/// Which file or directory below `outbox/` or `inbox/` is meant, if one is, and whether it is in the inbox.
fn in_mailbox(typed: &Path, mountpoint: &Path) -> Result<Option<(RelPath, bool)>, Failure> {
    let real = real_path(typed)?;
    for (dir, inbox) in [("outbox", false), ("inbox", true)] {
        let Ok(rest) = real.strip_prefix(mountpoint.join(dir)) else {
            continue;
        };
        if !rest.as_os_str().is_empty() {
            let path = RelPath::parse(rest.as_os_str().as_bytes())
                .map_err(|err| Failure::usage(format!("{}: {err}", typed.display())))?;
            return Ok(Some((path, inbox)));
        }
    }
    Ok(None)
}

/// Shows what changes.
fn watch(mut client: Client, limit: Option<usize>, as_json: bool) -> Result<(), Failure> {
    let Reply::Status(mut page) = client.call(&Request::Watch { limit })? else {
        return Err(unexpected());
    };
    let terminal = std::io::stdout().is_terminal();
    let mut rates = Rates::default();
    rates.look(&page.outbound, Instant::now());
    let screen = |page: &_, rates: &Rates| {
        format!("{CLEAR}{}", fitted(&show::status(page, show::now(), rates)))
    };
    let first = match (as_json, terminal) {
        (true, _) => line(&serde_json::json!({ "snapshot": &page })),
        (false, true) => screen(&page, &rates),
        (false, false) => show::status(&page, show::now(), &rates),
    };
    let mut is_read = say(&first)?;
    while is_read {
        let news = match client.next() {
            Ok(Reply::News(news)) => news,
            Ok(_) => return Err(unexpected()),
            Err(ControlError::Silent(_)) => return Err(Failure::failed("the daemon has ended")),
            Err(error) => return Err(error.into()),
        };
        let text = if as_json {
            line(&serde_json::json!({ "changes": &news }))
        } else {
            rates.look(&news.outbound, Instant::now());
            show::news(&news, show::now(), &rates)
        };
        follow::merge(&mut page, *news, limit.unwrap_or(DEFAULT_ROWS));
        is_read = if terminal && !as_json {
            say(&screen(&page, &rates))?
        } else {
            say(&text)?
        };
    }
    Ok(())
}

fn line(value: &serde_json::Value) -> String {
    format!("{value}\n")
}

/// The lines that the terminal has room for.
fn fitted(text: &str) -> String {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    let rows = size.map_or(0, |size| usize::from(size.ws_row));
    if rows < 2 {
        return text.to_owned();
    }
    let lines: Vec<&str> = text.lines().take(rows - 1).collect();
    lines.join("\n") + "\n"
}

/// Prints it; `false` when nobody reads any more.
fn say(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(err) => Err(err.into()),
    }
}
