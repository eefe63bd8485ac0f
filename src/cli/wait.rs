//! `wait`, and the waits at the end of `send` and before `umount`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::WaitArgs;
use super::ask::{json, place_of, reach, unexpected};
use super::bar::Bar;
use super::exit::{ExitCode, Failure};
use super::output::print;
use super::show;
use super::which::{below_outbox, find, real_path};
use crate::bundle::BundleId;
use crate::control::wait::{Missing, Outcome, WaitFor};
use crate::control::{Client, Reply, Request, Waited, WirePath};

/// What is waited for; if nothing is named, all that is on its way.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    pub(super) paths: Vec<WirePath>,
    pub(super) bundles: Vec<String>,
}

/// `meshbox wait`.
pub(super) fn wait(args: WaitArgs) -> Result<(), Failure> {
    let WaitArgs {
        paths: typed,
        timeout,
        daemon,
        json: as_json,
        ..
    } = args;
    let to = match args.for_first {
        true => WaitFor::First,
        false => args.to,
    };
    let (mut client, mountpoint) = match typed.iter().find(|typed| bundle_id(typed).is_none()) {
        Some(path) => reach(daemon, path)?,
        None => {
            let here = std::env::current_dir().ok();
            place_of(find(daemon.state, here.as_deref())?)?
        }
    };
    let awaited = named(&typed, &mountpoint)?;
    let waited = follow(&mut client, awaited, to, timeout)?;
    if as_json {
        json(&waited)?;
    }
    match told(&waited, as_json) {
        Some(failure) => Err(failure),
        None if as_json => Ok(()),
        None => print(&nothing(&waited)),
    }
}

/// What the arguments mean. The mount itself, and its outbox, stand for all that is on its way.
fn named(typed: &[PathBuf], mountpoint: &Path) -> Result<Awaited, Failure> {
    let outbox = mountpoint.join("outbox");
    let (mut awaited, mut all) = (Awaited::default(), false);
    for typed in typed {
        if let Some(id) = bundle_id(typed) {
            awaited.bundles.push(id);
            continue;
        }
        let real = real_path(typed)?;
        let real = real.canonicalize().unwrap_or(real);
        if real == mountpoint || real == outbox {
            all = true;
            continue;
        }
        let path = below_outbox(typed, mountpoint)?;
        awaited.paths.push(WirePath::from(&path));
    }
    // Beside the id of a bundle the mountpoint only says which daemon is meant.
    if all && awaited.bundles.is_empty() {
        return Ok(Awaited::default());
    }
    Ok(awaited)
}

/// The id of a bundle, if it is one and no file of that name is there.
fn bundle_id(typed: &Path) -> Option<String> {
    let text = typed.to_str()?;
    BundleId::from_hex(text)?;
    (!typed.exists()).then(|| text.to_owned())
}

/// Waits, with a bar on a terminal.
pub(super) fn follow(
    client: &mut Client,
    awaited: Awaited,
    to: WaitFor,
    timeout: Option<Duration>,
) -> Result<Waited, Failure> {
    let bar = Bar::of_delivery();
    let request = Request::Wait {
        paths: awaited.paths,
        bundles: awaited.bundles,
        to,
        timeout_ms: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        progress_ms: bar.every_ms(),
    };
    match client.wait(&request, |progress| bar.show(&progress, show::now()))? {
        Reply::Waited(waited) => Ok(waited),
        _ => Err(unexpected()),
    }
}

/// What to end with where it was not delivered as asked; `quiet` without words.
pub(super) fn told(waited: &Waited, quiet: bool) -> Option<Failure> {
    let (code, prefix) = match waited.outcome {
        Outcome::Delivered => return None,
        Outcome::Timeout => (ExitCode::Timeout, "time is over; "),
        Outcome::Failed => (ExitCode::NotDelivered, ""),
    };
    let open = waited
        .paths
        .iter()
        .filter(|path| path.outcome == waited.outcome);
    let mut lines: Vec<String> = open
        .map(|open| match &open.path {
            Some(path) => format!("{}: {}", show::wire_path(path), open.detail),
            None => open.detail.clone(),
        })
        .collect();
    lines.extend(missing_lines(&waited.missing, show::now()));
    let message = match quiet {
        true => String::new(),
        false => format!("{prefix}{}", lines.join("\n")),
    };
    Some(Failure { code, message })
}

/// A line for each; of several of one name also the beginning of the id.
fn missing_lines(all: &[Missing], now: u64) -> Vec<String> {
    let line = |one: &Missing| {
        let same = all.iter().filter(|other| other.name == one.name).count();
        let name = show::plain(&one.name);
        match same {
            1 => missing(one, &name, now),
            _ => missing(one, &format!("{name} ({})", show::short(&one.id)), now),
        }
    };
    all.iter().map(line).collect()
}

/// "  missing: birch: 3 files, 1.2 GiB; offline since …, 2h ago".
fn missing(missing: &Missing, name: &str, now: u64) -> String {
    let files = match missing.files {
        1 => "1 file".to_owned(),
        files => format!("{files} files"),
    };
    let mut line = format!("  missing: {name}: {files}, {}", show::size(missing.bytes));
    match missing.offline_since {
        Some(at) => line.push_str(&format!("; {}", show::offline(at, now))),
        None => {
            let states: Vec<&str> = missing.states.iter().map(|stage| stage.word()).collect();
            line.push_str(&format!("; {}", states.join(", ")));
        }
    }
    if let Some(error) = show::new_in(missing.error.as_deref()) {
        line.push_str(&format!(" ({})", show::plain(error)));
    }
    line
}

/// Said where there was nothing to wait for, which a typing error can look like.
fn nothing(waited: &Waited) -> String {
    let all = waited.paths.iter().find(|path| path.path.is_none());
    match all {
        Some(all) if all.nothing => format!("{}\n", all.detail),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Stage;

    #[test]
    fn who_is_missing_is_named_with_what_and_since_when() {
        let mut one = Missing {
            name: "birch".into(),
            files: 3,
            bytes: 1 << 30,
            states: [Stage::Deferred, Stage::Queued].into(),
            offline_since: Some(940),
            ..Missing::default()
        };
        let missing = |one: &Missing| missing_lines(std::slice::from_ref(one), 1000).concat();
        assert_eq!(
            missing(&one),
            "  missing: birch: 3 files, 1.0 GiB; offline since 1970-01-01T00:15:40Z, 1m ago"
        );
        one.offline_since = None;
        one.files = 1;
        one.error = Some("disk full".into());
        assert_eq!(
            missing(&one),
            "  missing: birch: 1 file, 1.0 GiB; deferred, queued (disk full)"
        );
        one.id = "0123456789abcdef".into();
        let two = [
            one.clone(),
            Missing {
                id: "fedcba98765".into(),
                ..one
            },
        ];
        let lines = missing_lines(&two, 1000);
        assert!(
            lines[0].starts_with("  missing: birch (0123456789): 1 file"),
            "{lines:?}"
        );
        assert!(
            lines[1].starts_with("  missing: birch (fedcba9876): 1 file"),
            "{lines:?}"
        );
    }

    #[test]
    fn an_id_of_a_bundle_is_no_path() {
        assert_eq!(bundle_id(Path::new(&"a".repeat(64))), Some("a".repeat(64)));
        for other in ["outbox/a", "a", &"A/".repeat(32)] {
            assert_eq!(bundle_id(Path::new(other)), None);
        }
    }
}
