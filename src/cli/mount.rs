//! `mount`, `umount` and `config`: the commands that work on settings and mountpoints, and the calls of mount(8).

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::{MountArgs, variable};
use super::exit::{ExitCode, Failure};
use super::output::{complain, print};
use super::settings::Settings;
use super::wait::{self, Awaited};
use super::which;
use crate::config::{self, Inputs, Layer, Resolved, Surroundings};
use crate::control::Client;
use crate::control::wait::WaitFor;
use crate::daemon::{self, Start};
use crate::mount::background::{self, Outcome, Patience, READY_LIMIT, ReadyPipe};
use crate::mount::info::MountEntry;
use crate::mount::options::{HelperCall, MountOptions, OPTIONS, OptionError, Source};
use crate::mount::{holders, place, signals, sys};
use crate::similar;

/// How long `umount` waits for the daemon: its own limit for open files, and a journal on a slow disk.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How often `umount` looks whether the daemon has ended.
const END_INTERVAL: Duration = Duration::from_millis(5);

/// How often `umount` looks for other mount namespaces that keep a daemon which does not end. It reads all of /proc.
const ELSEWHERE_AFTER: Duration = Duration::from_millis(500);

/// How long `umount` tries a mount that is in use: what announces arrivals in it is gone again within milliseconds.
const BUSY_LIMIT: Duration = Duration::from_millis(500);

/// How long a start with a ticket is quiet.
const SLOW: Duration = Duration::from_secs(1);

/// A wish to mount, however it was said.
struct Wish {
    mountpoint: PathBuf,
    flags: Layer,
    config_file: Option<PathBuf>,
    options: MountOptions,
    /// What mount(8) calls the source.
    source: Option<OsString>,
}

/// `MAJOR:MINOR`.
pub(super) fn parse_device(text: &str) -> Result<(u32, u32), String> {
    let numbers = text.split_once(':');
    numbers
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| "not MAJOR:MINOR".to_owned())
}

/// Which words after `-o` are flags of `meshbox mount`.
fn is_flag(name: &str) -> bool {
    name == "config" || config::setting(name).is_some()
}

/// What a mount option may have been meant to be.
fn refused(error: OptionError) -> Failure {
    let hint = match &error {
        OptionError::Unknown(name) => {
            let flags = config::names().chain(["config"]);
            similar::hint(
                &name.replace('-', "_"),
                flags.chain(OPTIONS.iter().copied()),
            )
        }
        _ => String::new(),
    };
    Failure::usage(format!("{error}{hint}"))
}

/// `meshbox mount`.
pub(super) fn mount(args: MountArgs, pipe: Option<ReadyPipe>) -> Result<(), Failure> {
    let options = MountOptions::parse(&args.options, &is_flag).map_err(refused)?;
    let (flags, config_file) = args.settings.into_layer();
    let wish = Wish {
        mountpoint: args.mountpoint,
        flags,
        config_file,
        options,
        source: None,
    };
    carry_out(wish, pipe)
}

/// A call by mount(8) or mount.fuse3.
pub(super) fn help_mount(call: HelperCall, pipe: Option<ReadyPipe>) -> Result<(), Failure> {
    let parse = if call.sloppy {
        MountOptions::parse_sloppy
    } else {
        MountOptions::parse
    };
    let options = parse(&call.options, &is_flag).map_err(refused)?;
    let mut flags = Layer::new(config::Source::MountOption);
    let mut config_file = None;
    match Source::classify(&call.source) {
        Source::Config(path) => config_file = Some(path),
        Source::State(path) => {
            if let Some(setting) = config::setting("state") {
                flags.push(setting, path.into());
            }
        }
        Source::Label(_) => {}
    }
    let source = Some(call.source).filter(|source| !source.is_empty());
    let wish = Wish {
        mountpoint: call.mountpoint,
        flags,
        config_file,
        options,
        source,
    };
    if call.fake {
        let (at, file) = (Some(&*wish.mountpoint), wish.config_file);
        let said = Said::gather(at, wish.flags, &wish.options, file)?;
        config::resolve(said.inputs())?;
        return Ok(());
    }
    carry_out(wish, pipe)
}

/// What the settings come from. It stays true when the process leaves its working directory.
#[derive(Clone)]
struct Said {
    flags: Layer,
    mount_options: Layer,
    env: Layer,
    config_file: Option<PathBuf>,
    /// Where the mount is or will be.
    place: Option<PathBuf>,
    surroundings: Surroundings,
}

impl Said {
    fn gather(
        mountpoint: Option<&Path>,
        flags: Layer,
        options: &MountOptions,
        config_file: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let from_option = options
            .flags
            .iter()
            .rev()
            .find(|(name, _)| name == "config")
            .and_then(|(_, file)| file.clone());
        let config_file = config_file
            .or(from_option.map(PathBuf::from))
            .or_else(|| variable("MESHBOX_CONFIG").map(PathBuf::from));
        let settings = options.flags.iter().filter(|(name, _)| name != "config");
        config::refuse_slips(std::env::vars_os())?;
        let mount_options = Layer::from_mount_options(
            settings.map(|(name, value)| (name.as_str(), value.as_deref().map(OsStr::new))),
        )?;
        Ok(Self {
            flags: flags.anchored(),
            mount_options: mount_options.anchored(),
            env: Layer::from_env(variable).anchored(),
            config_file: config_file.map(std::path::absolute).transpose()?,
            place: mountpoint.map(place::place).transpose()?,
            surroundings: Surroundings::of_process(),
        })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            flags: self.flags.clone(),
            mount_options: self.mount_options.clone(),
            env: self.env.clone(),
            config_file: self.config_file.as_deref(),
            mountpoint: self.place.as_deref(),
            surroundings: &self.surroundings,
        }
    }
}

fn carry_out(wish: Wish, pipe: Option<ReadyPipe>) -> Result<(), Failure> {
    let mountpoint = std::path::absolute(&wish.mountpoint)?;
    let (at, file) = (Some(&*mountpoint), wish.config_file);
    let said = Said::gather(at, wish.flags, &wish.options, file);
    let resolved = said.and_then(|said| Ok((config::resolve(said.inputs())?, said)));
    let (resolved, said) = match resolved {
        Ok(resolved) => resolved,
        Err(failure) => return tell(pipe, failure),
    };
    let config = resolved.config;
    if pipe.is_none() && !config.foreground {
        return in_background(asks_whom(&config).as_deref());
    }
    // Standard error is still that of the command.
    for warning in &resolved.warnings {
        complain(&format!("warning: {warning}"));
    }
    let fs_name = wish
        .options
        .fs_name
        .or(wish.source)
        .unwrap_or_else(|| config.state.clone().into());
    let start = Start {
        shown: wish.mountpoint,
        mountpoint,
        fs_name,
        read_only: wish.options.read_only,
        no_exec: wish.options.no_exec,
        no_atime: wish.options.no_atime,
        background: pipe.is_some(),
        config,
        held: resolved.held,
        again: Box::new(move || config::resolve_again(said.inputs())),
    };
    let blocked = signals::block()?;
    // Taken by whoever speaks first: the daemon when it serves, or we when it could not.
    let mut pipe = pipe;
    let result = daemon::run(start, &blocked, |said| match pipe.take() {
        Some(pipe) => pipe.ready(&said.text, &said.warnings),
        None => tell_ready(&said.text, &said.warnings)
            .map_err(|failure| std::io::Error::other(failure.message)),
    });
    match result {
        Ok(()) => Ok(()),
        Err(err) => tell(pipe, err.into()),
    }
}

/// Hands a failure to the parent, if there is one that still listens; it prints it, so we do not.
fn tell(pipe: Option<ReadyPipe>, failure: Failure) -> Result<(), Failure> {
    let told =
        pipe.is_some_and(|pipe| pipe.failed(failure.code.number(), &failure.message).is_ok());
    Err(if told {
        Failure {
            message: String::new(),
            ..failure
        }
    } else {
        failure
    })
}

/// Says that the mailbox serves, and what the user should know.
fn tell_ready(text: &str, warnings: &[String]) -> Result<(), Failure> {
    print(&format!("{text}\n"))?;
    for warning in warnings {
        complain(&format!("warning: {warning}"));
    }
    Ok(())
}

/// What to say when a start with a ticket takes longer than a moment.
fn asks_whom(config: &config::Config) -> Option<String> {
    let ticket = config.ticket.as_ref();
    let ticket = ticket.map(|ticket| (&ticket.name, &ticket.addrs));
    let invitation = config.invitation.as_ref();
    let (name, addrs) = ticket.or(invitation.map(|it| (&it.name, &it.addrs)))?;
    let at: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let at = match at.is_empty() {
        true => String::new(),
        false => format!(" at {}", at.join(", ")),
    };
    Some(format!(
        "no answer from {name}{at} yet; trying for a few more seconds"
    ))
}

/// Starts this program again in the background and waits until it serves. `slow` is said when that takes a while.
fn in_background(slow: Option<&str>) -> Result<(), Failure> {
    let patience = Patience {
        limit: READY_LIMIT,
        slow: SLOW,
        say: &|| {
            if let Some(words) = slow {
                complain(words);
            }
        },
    };
    match background::spawn(("--join", "MESHBOX_JOIN"), &patience)? {
        Outcome::Ready { text, warnings } => tell_ready(&text, &warnings),
        Outcome::Failed { code, message } => {
            let code = ExitCode::ALL
                .into_iter()
                .find(|known| known.number() == code)
                .unwrap_or(ExitCode::Failed);
            Err(Failure { code, message })
        }
        Outcome::Died { status } => Err(Failure::failed(format!(
            "the daemon died while it started ({status})"
        ))),
        Outcome::TimedOut { limit } => Err(Failure::failed(format!(
            "the daemon did not serve within {}; run it with --foreground to see why",
            humantime::format_duration(limit)
        ))),
    }
}

/// `meshbox umount --wait`: what is on its way is delivered first; if it is not, the mailbox stays mounted.
pub(super) fn umount_after_delivery(
    mountpoint: &Path,
    lazy: bool,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let daemon = which::find_at(None, Some(mountpoint))?;
    let all = Awaited::default();
    let waited = wait::follow(&mut daemon.connect()?, all, WaitFor::All, timeout)?;
    if let Some(failure) = wait::told(&waited, false) {
        let message = format!("{}\nit stays mounted", failure.message);
        return Err(Failure { message, ..failure });
    }
    umount(mountpoint, lazy)
}

/// `meshbox umount`: unmounts, and waits for the end of the daemon, so that the state is free afterwards.
pub(super) fn umount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    // Asked first: afterwards nothing leads from the mountpoint to the daemon.
    let mount = which::at(mountpoint);
    let state = mount.as_ref().and_then(|mount| which::state_of(mount).ok());
    let daemon = state.and_then(|state| Client::connect(&state).ok()?.daemon_pid());
    // `../../share` leads through the mount itself, which nothing may be looked up in from here on.
    let place = mount.as_ref().map(|mount| mount.mountpoint.clone());
    let mountpoint = place.as_deref().unwrap_or(mountpoint);
    let begun = Instant::now();
    while let Err(error) = sys::umount(mountpoint, lazy) {
        if !matches!(error, sys::UnmountError::Busy { .. }) || begun.elapsed() > BUSY_LIMIT {
            return Err(Failure::failed(gone_from_here(error)));
        }
        std::thread::sleep(END_INTERVAL);
    }
    match mount.filter(|_| !lazy) {
        Some(mount) => wait_for_end(Some(&mount), daemon),
        None => Ok(()),
    }
}

/// Waits until the daemon of a mount that goes away has ended, so that its state is free. `mount` is `None` where it is not
/// seen from here.
pub(super) fn wait_for_end(mount: Option<&MountEntry>, daemon: Option<u32>) -> Result<(), Failure> {
    let pid = daemon.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    let begun = Instant::now();
    let mut look = begun + ELSEWHERE_AFTER;
    while pid.is_some_and(runs) {
        if Instant::now() > look {
            mount.map_or(Ok(()), |mount| still_held(mount, pid))?;
            look = Instant::now() + ELSEWHERE_AFTER;
        }
        if begun.elapsed() > END_LIMIT {
            let pid = pid.map_or(0, |pid| pid.as_raw_nonzero().get());
            let unseen = mount.and_then(|mount| holders::explain_unseen(&mount.mountpoint));
            let unseen = unseen.map_or_else(String::new, |words| format!("; {words}"));
            return Err(Failure::failed(format!(
                "unmounted, but the daemon (process {pid}) has not ended yet; `kill {pid}` ends it{unseen}"
            )));
        }
        std::thread::sleep(END_INTERVAL);
    }
    match mount {
        Some(mount) if pid.is_none() => still_held(mount, None),
        _ => Ok(()),
    }
}

/// Fails if the mount is elsewhere too, here or in another mount namespace: its daemon goes on for that, and the state
/// stays in use.
fn still_held(mount: &MountEntry, daemon: Option<rustix::process::Pid>) -> Result<(), Failure> {
    let is_it = |other: &MountEntry| other.device == mount.device && other.source == mount.source;
    let bound = holders::here(is_it).map(|at| {
        let at = at.display();
        format!("it is also mounted at {at}: `meshbox umount {at}` takes it away there")
    });
    let Some(held) = bound.or_else(|| holders::explain(&holders::elsewhere(is_it))) else {
        return Ok(());
    };
    let end = daemon.map_or_else(String::new, |pid| {
        let pid = pid.as_raw_nonzero();
        format!("; or end the daemon itself with `kill {pid}`")
    });
    let at = mount.mountpoint.display();
    Err(Failure::failed(format!(
        "{at} is unmounted here, but its daemon goes on: {held}{end}"
    )))
}

/// What is not mounted here may be mounted in another mount namespace.
fn gone_from_here(error: sys::UnmountError) -> String {
    let held = match &error {
        sys::UnmountError::NotMounted { at } => {
            holders::explain(&holders::elsewhere(|other| other.mountpoint == *at))
        }
        _ => None,
    };
    match held {
        Some(held) => format!("{error}, but {held}"),
        None => error.to_string(),
    }
}

/// Whether the process is still at work. One that has ended holds nothing any more, also when nobody has reaped it yet;
/// where process 1 is no real init that can take seconds.
fn runs(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let state = stat.as_deref().map(|text| text.rsplit(") ").next());
    match state {
        Ok(Some(rest)) => !rest.starts_with(['Z', 'X']),
        Ok(None) => false,
        // Not to be read, for instance under hidepid.
        Err(_) => rustix::process::test_kill_process(pid).is_ok(),
    }
}

/// `meshbox config`.
pub(super) fn show_config(
    mountpoint: Option<PathBuf>,
    settings: Settings,
    json: bool,
) -> Result<(), Failure> {
    let (mut flags, config_file) = settings.into_layer();
    let says_state = flags.get("state").is_some() || variable("MESHBOX_STATE").is_some();
    if mountpoint.is_none() && config_file.is_none() && !says_state {
        // The settings of the one that runs.
        let running = which::find(None, None)?;
        if let Some(setting) = config::setting("state") {
            flags.push(setting, running.state.into());
        }
    }
    let place = mountpoint.as_deref();
    let said = Said::gather(place, flags, &MountOptions::default(), config_file)?;
    let resolved = config::resolve(said.inputs())?;
    if json {
        return print_json(&resolved);
    }
    let lines: String = resolved
        .held
        .iter()
        .map(|held| format!("{held}\n"))
        .collect();
    let tables = resolved
        .tables
        .map_or_else(String::new, |tables| tables.to_string());
    print(&(lines + &tables))
}

fn print_json(resolved: &Resolved) -> Result<(), Failure> {
    let settings = resolved.held.iter().map(|held| {
        let source = held.source.describe(held.name);
        let shown = serde_json::json!({
            "value": held.value, "source": source, "default": held.default
        });
        (held.name.to_owned(), shown)
    });
    let tables = resolved.tables.iter().flat_map(|held| {
        held.tables.iter().map(|(name, value)| {
            let source = held.source.describe(name);
            let shown = serde_json::json!({ "value": value, "source": source });
            (name.clone(), shown)
        })
    });
    let all: serde_json::Map<String, serde_json::Value> = settings.chain(tables).collect();
    let text = serde_json::to_string_pretty(&all).map_err(|err| Failure::failed(&err))?;
    print(&(text + "\n"))
}
