//! The command line: what can be typed, and which command answers it.
//!
//! What was typed ([`Settings`], strings) is kept apart from what is true ([`crate::config::Config`]). One file per
//! larger command. The program also answers as `mount.meshbox`, `mount.fuse.meshbox` and the way mount.fuse3 calls a
//! file system: see [`crate::mount::options`].

mod act;
mod ask;
mod exit;
mod member;
mod mount;
mod show;
mod stage;
mod which;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use self::exit::{ExitCode, Failure};
use crate::bundle::Priority;
use crate::config::{Layer, Source, parse_duration, setting};
use crate::control::wait::WaitFor;
use crate::mount::announcer::{self, MountPlace, SUBCOMMAND};
use crate::mount::background::ReadyPipe;
use crate::mount::options::helper_args;

#[derive(Debug, Parser)]
#[command(name = "meshbox", version, about = "Mount a directory that is a mesh mailbox", after_help = exit::table())]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a mailbox and serve it in the background
    #[command(
        after_help = "Every setting can be given in three ways, the first beats the next: --flag (or -o flag), the \
                            variable MESHBOX_FLAG, and the key `flag` in the configuration file."
    )]
    Mount(MountArgs),
    /// Unmount a mailbox and wait until its daemon has ended
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Detach it at once, though it is in use
        #[arg(long)]
        lazy: bool,
    },
    /// Show what was sent and received, and who is there
    Status {
        #[command(flatten)]
        daemon: PlacedArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show at most so many bundles in each direction
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show the members of the group
    Peers {
        #[command(flatten)]
        daemon: PlacedArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a ticket, a secret: who has it can join the group
    Ticket {
        /// Make it useless after this time, as in 1h; only this node can redeem it then
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires: Option<Duration>,
        /// Let it admit one node only; only this node can redeem it then
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        daemon: PlacedArgs,
    },
    /// Remove members from the group for good, and give the others a new key (admin only)
    Remove {
        /// Names or ids, as `meshbox peers` shows them
        #[arg(required = true, value_name = "NAME|ID")]
        who: Vec<String>,
        /// Keep the group key: a removed member that has it can come back under a new id
        #[arg(long)]
        no_rekey: bool,
        #[command(flatten)]
        daemon: DaemonArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give up a member that is gone: nothing waits for it any more
    Forget {
        /// Its name or id, as `meshbox peers` shows it
        #[arg(value_name = "NAME|ID")]
        who: String,
        #[command(flatten)]
        daemon: DaemonArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give all members a new group key: tickets made before let nobody in any more (admin only)
    Rekey {
        #[command(flatten)]
        daemon: PlacedArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait until files are delivered
    Wait {
        /// Files in outbox/, or paths below it
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// To whom: all, a number of peers, or the name of one
        #[arg(long = "for", value_name = "WHOM", default_value = "all")]
        to: WaitFor,
        /// Give up after this time, as in 30s or 5m
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        timeout: Option<Duration>,
        #[command(flatten)]
        daemon: DaemonArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Send files now: one of the outbox that is held back or ignored, or any files as one bundle
    Send {
        /// A file in outbox/ or a path below it; with one of the options below, or outside the outbox, any files and
        /// directories
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// To whom, whatever the routes say: names, ids, @groups, or all
        #[arg(long, value_name = "WHOM", value_delimiter = ',')]
        to: Vec<String>,
        /// How urgently: bulk, low, routine, priority, critical
        #[arg(long, value_name = "PRIORITY", value_parser = act::priority)]
        priority: Option<Priority>,
        /// Your own id for it: sent again with the same files it does nothing, with others it is an error
        #[arg(long, value_name = "ID")]
        bundle: Option<String>,
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Cancel what was sent: who does not have it yet never gets it
    Cancel {
        /// A file in outbox/ or a path below it, or the id of a bundle
        #[arg(value_name = "PATH|BUNDLE")]
        what: PathBuf,
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Ask again at once those who refused what was sent or put it off
    Retry {
        /// A file in outbox/ or a path below it, or the id of a bundle
        #[arg(value_name = "PATH|BUNDLE")]
        what: PathBuf,
        /// Only this one, by name or id
        #[arg(long = "for", value_name = "NAME")]
        to: Option<String>,
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Print the settings that hold and where each comes from
    Config {
        /// The mountpoint they are for
        mountpoint: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the id of this node
    Id {
        /// Print the id that a node of this name has with `identity = "derived"`
        #[arg(long, value_name = "NAME")]
        derive: Option<String>,
        #[command(flatten)]
        daemon: PlacedArgs,
    },
    /// The process that a daemon starts to enter its mount; of no use by hand
    #[command(name = SUBCOMMAND, hide = true)]
    Announce {
        #[arg(long)]
        id: u64,
        #[arg(long, value_parser = mount::parse_device)]
        device: (u32, u32),
        mountpoint: PathBuf,
    },
}

/// Which daemon is meant.
#[derive(Debug, Args)]
struct DaemonArgs {
    /// State directory of the daemon to ask; needed when several run
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Which daemon is meant, where nothing else is named.
#[derive(Debug, Args)]
struct PlacedArgs {
    /// The mountpoint, or any path in it; needed when several run
    #[arg(conflicts_with = "state")]
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, Args)]
struct MountArgs {
    /// Where to mount; made if missing
    mountpoint: PathBuf,
    /// Mount options, separated by commas; every flag below is one too
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    #[command(flatten)]
    settings: Settings,
}

/// The settings as typed. Text, since the same values come from files and variables; `config` gives them their types.
#[derive(Debug, Default, Args)]
struct Settings {
    /// Read settings from this file instead of config.toml in the state directory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the state in this directory
    #[arg(long, value_name = "DIR")]
    state: Option<OsString>,
    /// Use this name in the group instead of the machine's
    #[arg(long, value_name = "NAME")]
    name: Option<OsString>,
    /// Join the group of this ticket
    #[arg(long, value_name = "TICKET", conflicts_with = "join_file")]
    join: Option<OsString>,
    /// Join the group of the ticket in this file
    #[arg(long, value_name = "FILE")]
    join_file: Option<OsString>,
    /// Found a new group here, though another state of this name waits for a mountpoint that is gone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    new: Option<OsString>,
    /// Take the key pair at the first start from: own (random), derived (from group key and name) [default: own]
    #[arg(long, value_name = "KIND")]
    identity: Option<OsString>,
    /// Who may be a member: open (all who have the group key), listed [default: open]
    #[arg(long, value_name = "WHO")]
    members: Option<OsString>,
    /// With members=listed: this id is one (repeatable)
    #[arg(long, value_name = "ID")]
    member: Vec<OsString>,
    /// The group's admin, for a group made by an early version
    #[arg(long, value_name = "ID")]
    admin: Option<OsString>,
    /// Listen on this address (repeatable); port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<OsString>,
    /// Connect to this peer, besides those that are found (repeatable)
    #[arg(long, value_name = "ID@ADDR:PORT")]
    peer: Vec<OsString>,
    /// Do not announce this node on the local network, nor look for members there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_mdns: Option<OsString>,
    /// Congestion control: auto, cubic, bbr3 [default: auto]
    #[arg(long, value_name = "NAME")]
    congestion: Option<OsString>,
    /// Reach members through this relay where there is no direct way (repeatable; the same at all members)
    #[arg(long, value_name = "URL")]
    relay: Vec<OsString>,
    /// Send a file this long after its last writer closed it [default: 5ms]
    #[arg(long, value_name = "DURATION")]
    settle: Option<OsString>,
    /// Try this long to deliver a file [default: 30days]
    #[arg(long, value_name = "DURATION")]
    lifetime: Option<OsString>,
    /// What members get that join later: what is still shown (current), or none of it (none) [default: current]
    #[arg(long, value_name = "WHAT")]
    late_joiners: Option<OsString>,
    /// Stay in the foreground and log to standard error
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    foreground: Option<OsString>,
    /// Let other users use the mount
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_other: Option<OsString>,
    /// Log from this level on: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<OsString>,
    /// Do not send names that match, besides the usual temporary ones (repeatable)
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<OsString>,
    /// Send names although this usual pattern matches them (repeatable)
    #[arg(long, value_name = "PATTERN")]
    ignore_except: Vec<OsString>,
    /// Keep at most so many bytes of removed files for those who wait for them, arriving ones included
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<OsString>,
    /// Leave so much of the disk free [default: 64MiB, at most a twentieth of it]
    #[arg(long, value_name = "SIZE")]
    min_free: Option<OsString>,
    /// Take no larger file, neither from programs nor from peers
    #[arg(long, value_name = "SIZE")]
    max_file_bytes: Option<OsString>,
    /// Take no more from a member while so many bytes of it are in the inbox or arrive
    #[arg(long, value_name = "SIZE")]
    max_peer_bytes: Option<OsString>,
    /// Show so many finished bundles of each direction in status; older ones are forgotten [default: 10000]
    #[arg(long, value_name = "COUNT")]
    history: Option<OsString>,
    /// Send and take no bundle of more files and directories
    #[arg(long, value_name = "N")]
    max_bundle_files: Option<OsString>,
    /// Send and take no bundle of more bytes
    #[arg(long, value_name = "SIZE")]
    max_bundle_bytes: Option<OsString>,
    /// Send and take no bundle that names more recipients [default: 1024]
    #[arg(long, value_name = "N")]
    max_recipients: Option<OsString>,
    /// Give files in the inbox these permission bits [default: 0644]
    #[arg(long, value_name = "MODE")]
    inbox_mode: Option<OsString>,
    /// Let the inbox and the three top directories belong to this user (root only)
    #[arg(long, value_name = "UID")]
    uid: Option<OsString>,
    /// Let the inbox and the three top directories belong to this group (root only)
    #[arg(long, value_name = "GID")]
    gid: Option<OsString>,
    /// Take these permission bits off in the inbox and the top directories
    #[arg(long, value_name = "MASK")]
    umask: Option<OsString>,
}

impl Settings {
    /// What was typed, as a layer, and the configuration file.
    fn into_layer(self) -> (Layer, Option<PathBuf>) {
        let mut layer = Layer::new(Source::Flag);
        let one = |value: Option<OsString>| value.into_iter().collect::<Vec<_>>();
        let typed = [
            ("state", one(self.state)),
            ("name", one(self.name)),
            ("join", one(self.join)),
            ("join_file", one(self.join_file)),
            ("new", one(self.new)),
            ("identity", one(self.identity)),
            ("members", one(self.members)),
            ("member", self.member),
            ("admin", one(self.admin)),
            ("listen", self.listen),
            ("peer", self.peer),
            ("no_mdns", one(self.no_mdns)),
            ("congestion", one(self.congestion)),
            ("relay", self.relay),
            ("settle", one(self.settle)),
            ("lifetime", one(self.lifetime)),
            ("late_joiners", one(self.late_joiners)),
            ("foreground", one(self.foreground)),
            ("allow_other", one(self.allow_other)),
            ("log", one(self.log)),
            ("ignore", self.ignore),
            ("ignore_except", self.ignore_except),
            ("max_bytes", one(self.max_bytes)),
            ("min_free", one(self.min_free)),
            ("max_file_bytes", one(self.max_file_bytes)),
            ("max_peer_bytes", one(self.max_peer_bytes)),
            ("history", one(self.history)),
            ("max_bundle_files", one(self.max_bundle_files)),
            ("max_bundle_bytes", one(self.max_bundle_bytes)),
            ("max_recipients", one(self.max_recipients)),
            ("inbox_mode", one(self.inbox_mode)),
            ("uid", one(self.uid)),
            ("gid", one(self.gid)),
            ("umask", one(self.umask)),
        ];
        for (name, values) in typed {
            let Some(setting) = setting(name) else {
                continue;
            };
            for value in values {
                layer.push(setting, value);
            }
        }
        (layer, self.config)
    }
}

/// A variable of the environment; an empty one counts as unset.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Runs the program: the whole of `main`. Must be called before there is a second thread.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> std::process::ExitCode {
    let pipe = match ReadyPipe::from_env() {
        Ok(pipe) => pipe,
        Err(err) => {
            complain(&format!("cannot take the ready pipe: {err}"));
            return ExitCode::Failed.into();
        }
    };
    let argv: Vec<OsString> = argv.into_iter().collect();
    let names: Vec<String> = Cli::command()
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    if let Some(call) = helper_args(&argv, &|word| {
        word == "help" || names.iter().any(|name| name == word)
    }) {
        let result = call
            .map_err(Failure::usage)
            .and_then(|call| mount::help_mount(call, pipe));
        return report(result).for_mount_program().into();
    }
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version are errors to clap, but not to us; a closed pipe is nobody's fault.
            let _closed = err.print();
            return if err.use_stderr() {
                ExitCode::Usage.into()
            } else {
                ExitCode::Success.into()
            };
        }
    };
    report(dispatch(cli.command, pipe)).into()
}

fn dispatch(command: Command, pipe: Option<ReadyPipe>) -> Result<(), Failure> {
    match command {
        Command::Mount(args) => mount::mount(args, pipe),
        Command::Umount { mountpoint, lazy } => mount::umount(&mountpoint, lazy),
        Command::Status {
            daemon,
            json,
            limit,
        } => ask::status(daemon, json, limit),
        Command::Peers { daemon, json } => ask::peers(daemon, json),
        Command::Ticket {
            expires,
            once,
            daemon,
        } => member::ticket(daemon, expires, once),
        Command::Remove {
            who,
            no_rekey,
            daemon,
            json,
        } => member::remove(daemon, who, no_rekey, json),
        Command::Forget { who, daemon, json } => member::forget(daemon, who, json),
        Command::Rekey { daemon, json } => member::rekey(daemon, json),
        Command::Wait {
            paths,
            to,
            timeout,
            daemon,
            json,
        } => ask::wait(&paths, to, timeout, daemon, json),
        Command::Send {
            files,
            to,
            priority,
            bundle,
            daemon,
        } => act::send(&files, to, priority, bundle, daemon),
        Command::Cancel { what, daemon } => act::cancel(&what, daemon),
        Command::Retry { what, to, daemon } => act::retry(&what, to, daemon),
        Command::Config {
            mountpoint,
            settings,
            json,
        } => mount::show_config(mountpoint, settings, json),
        Command::Id {
            derive: Some(name),
            daemon,
        } => member::derived_id(daemon, &name),
        Command::Id {
            derive: None,
            daemon,
        } => ask::id(daemon),
        Command::Announce {
            id,
            device,
            mountpoint,
        } => Ok(announcer::serve(&MountPlace {
            mountpoint,
            id,
            device,
        })?),
    }
}

fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::Success,
        Err(failure) => {
            if !failure.message.is_empty() {
                complain(&failure.message);
            }
            failure.code
        }
    }
}

fn complain(message: &str) {
    // Nothing is left to be done where standard error is closed.
    let _closed = writeln!(std::io::stderr(), "meshbox: {message}");
}

/// Prints to standard output; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(err) if err.kind() != std::io::ErrorKind::BrokenPipe => Err(err.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Kind, SETTINGS};

    fn parse(words: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["meshbox"], words].concat()).map(|cli| cli.command)
    }

    fn settings(words: &[&str]) -> Layer {
        match parse(&[&["mount", "/m"], words].concat()).unwrap() {
            Command::Mount(args) => args.settings.into_layer().0,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed_and_documents_exit_codes() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        for code in ExitCode::ALL {
            assert!(help.contains(code.meaning()), "{help}");
        }
    }

    #[test]
    fn every_setting_is_a_flag_of_its_name_and_gets_through() {
        let command = Cli::command();
        let mount = command.find_subcommand("mount").unwrap();
        for setting in SETTINGS {
            let flag = setting.name.replace('_', "-");
            assert!(
                mount
                    .get_arguments()
                    .any(|arg| arg.get_long() == Some(&flag)),
                "--{flag}"
            );
            let typed = match setting.kind {
                Kind::Switch => format!("--{flag}"),
                Kind::Text | Kind::Path | Kind::List => format!("--{flag}=x"),
            };
            assert!(settings(&[&typed]).get(setting.name).is_some(), "--{flag}");
        }
        let flags = mount
            .get_arguments()
            .filter_map(|arg| arg.get_long())
            .filter(|flag| *flag != "config");
        for flag in flags {
            assert!(setting(flag).is_some(), "--{flag} has no setting");
        }
    }

    #[test]
    fn a_switch_can_be_turned_off_again_and_takes_no_next_word() {
        assert_eq!(
            settings(&["--no-mdns"]).get("no_mdns"),
            Some(&["true".into()][..])
        );
        assert_eq!(
            settings(&["--no-mdns=false"]).get("no_mdns"),
            Some(&["false".into()][..])
        );
        let Command::Mount(args) = parse(&["mount", "--foreground", "/m"]).unwrap() else {
            panic!()
        };
        assert_eq!(args.mountpoint, PathBuf::from("/m"));
    }

    #[test]
    fn lists_keep_their_order_and_options_may_repeat() {
        let layer = settings(&["--listen", "a:1", "--listen", "b:2"]);
        assert_eq!(layer.get("listen"), Some(&["a:1".into(), "b:2".into()][..]));
        let Command::Mount(args) = parse(&["mount", "/m", "-o", "rw,settle=0", "-oro"]).unwrap()
        else {
            panic!()
        };
        assert_eq!(args.options, ["rw,settle=0", "ro"]);
    }

    #[test]
    fn wait_says_for_whom_and_how_long() {
        let words = ["wait", "a", "b", "--for", "2", "--timeout", "300ms"];
        let Command::Wait {
            paths, to, timeout, ..
        } = parse(&words).unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (paths.len(), to, timeout),
            (2, WaitFor::Count(2), Some(Duration::from_millis(300)))
        );
        assert!(parse(&["wait"]).is_err());
        assert!(parse(&["wait", "a", "--timeout", "5"]).is_err());
    }

    #[test]
    fn a_mistyped_command_line_is_a_usage_error() {
        for words in [
            &["mount", "--nonsense", "/m"][..],
            &["nonsense"],
            &["mount"],
            &[],
        ] {
            assert!(
                parse(words).unwrap_err().use_stderr() || words.is_empty(),
                "{words:?}"
            );
        }
    }
}
