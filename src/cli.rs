//! The command line: what can be typed, and which command answers it.
//!
//! What was typed ([`Settings`], strings) is kept apart from what is true ([`crate::config::Config`]). One file per
//! larger command. The program also answers as `mount.meshbox`, `mount.fuse.meshbox` and the way mount.fuse3 calls a
//! file system: see [`crate::mount::options`].

mod act;
mod args;
mod ask;
mod bar;
mod completions;
#[cfg(test)]
mod documents;
mod exit;
mod member;
mod mount;
mod output;
mod settings;
mod show;
mod stage;
mod status;
mod wait;
mod which;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use self::args::{DaemonArgs, MountArgs, PlacedArgs, SendArgs, WaitArgs};
use self::completions::Shell;
pub use self::exit::{ExitCode, Failure};
use self::output::{complain, print};
use self::settings::Settings;
use crate::config::{self, parse_duration};
use crate::mount::announcer::{self, MountPlace, SUBCOMMAND};
use crate::mount::background::ReadyPipe;
use crate::mount::options::helper_args;

#[derive(Debug, Parser)]
#[command(name = "meshbox", version, about = "Mount a shared folder: what is closed in its outbox appears in the inbox of every other member", after_help = exit::table())]
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
    #[command(visible_alias = "unmount")]
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
        /// Detach it at once, though it is in use
        #[arg(long)]
        lazy: bool,
        /// First wait until all that is on its way is delivered; if it is not, leave it mounted
        #[arg(long)]
        wait: bool,
        /// Wait for so long at most, as in 30s or 5m
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "wait")]
        timeout: Option<Duration>,
    },
    /// Show what was sent and received, and who is connected; for a file of the mount, who has it
    #[command(visible_alias = "ls")]
    Status {
        #[command(flatten)]
        daemon: PlacedArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show at most so many bundles in each direction
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Go on showing what changes; with --json a line each time
        #[arg(long)]
        watch: bool,
    },
    /// Show the members of the group
    Peers {
        #[command(flatten)]
        daemon: PlacedArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a ticket: a secret that lets its holder join the group
    Ticket {
        /// Make it useless after this time, as in 1h; only this node can redeem it then
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires: Option<Duration>,
        /// Let it admit one node only; only this node can redeem it then
        #[arg(long)]
        once: bool,
        /// Write it to this file, which only you can read, instead of printing it
        #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
        out: Option<PathBuf>,
        #[command(flatten)]
        daemon: PlacedArgs,
    },
    /// Remove members from the group for good, and give the others a new key (admin only)
    Remove {
        /// Names or ids, as `meshbox peers` shows them; last, with a `/` in it, may stand the mountpoint
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
        daemon: PlacedArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Leave the group for good: nothing waits for this node any more; its mailbox is unmounted
    Leave {
        /// Leave though something is still on its way, nobody can be told, or this node is the admin
        #[arg(long)]
        force: bool,
        /// Remove the state directory, with all that was received
        #[arg(long)]
        delete_state: bool,
        #[command(flatten)]
        daemon: PlacedArgs,
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
    Wait(WaitArgs),
    /// Send files now: some of the outbox that are held back or ignored, or any files as one bundle
    Send(SendArgs),
    /// Cancel what was sent: whoever does not have it yet never gets it
    Cancel {
        /// A file in outbox/ or a path below it, or the id of a bundle
        #[arg(value_name = "PATH|BUNDLE")]
        what: PathBuf,
        #[command(flatten)]
        daemon: PlacedArgs,
    },
    /// Ask recipients that refused a bundle or put it off again, at once
    Retry {
        /// A file in outbox/ or a path below it, or the id of a bundle
        #[arg(value_name = "PATH|BUNDLE")]
        what: PathBuf,
        /// Only this one, by name or id
        #[arg(long = "for", value_name = "NAME")]
        to: Option<String>,
        #[command(flatten)]
        daemon: PlacedArgs,
    },
    /// Print the settings that hold and where each comes from
    Config {
        /// The mountpoint they are for
        mountpoint: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
        /// Print an example of a configuration file with every setting
        #[arg(long)]
        example: bool,
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
    /// Print the script that lets a shell complete commands and flags
    #[command(
        after_help = "In bash: eval \"$(meshbox completions bash)\". The Debian package installs them for all users."
    )]
    Completions {
        /// For which shell
        shell: Shell,
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

/// All that can be typed, for the manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// What there is to say of a setting beside the help of its flag, in sentences, for the manual page.
pub fn more_about(setting: &str) -> &'static str {
    config::setting(setting).map_or("", |known| known.more)
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
        .flat_map(|sub| [sub.get_name()].into_iter().chain(sub.get_all_aliases()))
        .map(str::to_owned)
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
        Command::Umount {
            mountpoint,
            lazy,
            wait: true,
            timeout,
        } => mount::umount_after_delivery(&mountpoint, lazy, timeout),
        Command::Umount {
            mountpoint, lazy, ..
        } => mount::umount(&mountpoint, lazy),
        Command::Status {
            daemon,
            json,
            limit,
            watch,
        } => status::status(daemon, json, limit, watch),
        Command::Peers { daemon, json } => ask::peers(daemon, json),
        Command::Ticket {
            expires,
            once,
            out,
            daemon,
        } => member::ticket(daemon, expires, once, out.as_deref()),
        Command::Remove {
            who,
            no_rekey,
            daemon,
            json,
        } => member::remove(daemon, who, no_rekey, json),
        Command::Forget { who, daemon, json } => member::forget(daemon, who, json),
        Command::Leave {
            force,
            delete_state,
            daemon,
            json,
        } => member::leave(daemon, force, delete_state, json),
        Command::Rekey { daemon, json } => member::rekey(daemon, json),
        Command::Wait(args) => wait::wait(args),
        Command::Send(args) => act::send(args),
        Command::Cancel { what, daemon } => act::cancel(&what, daemon),
        Command::Retry { what, to, daemon } => act::retry(&what, to, daemon),
        Command::Config { example: true, .. } => print(&config::example()),
        Command::Config {
            mountpoint,
            settings,
            example: false,
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
        Command::Completions { shell } => completions::completions(shell, &Cli::command()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Kind, Layer, SETTINGS, setting};
    use crate::control::wait::WaitFor;

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
    fn the_help_of_mount_stands_under_headings() {
        let mut command = Cli::command();
        let mount = command.find_subcommand_mut("mount").unwrap();
        let help = mount.render_long_help().to_string();
        let mut rest = help.as_str();
        for topic in config::Topic::ALL {
            let heading = format!("\n{}:\n", topic.title());
            let at = rest
                .find(&heading)
                .unwrap_or_else(|| panic!("{heading} in {help}"));
            rest = &rest[at + heading.len()..];
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
        let Command::Wait(WaitArgs {
            paths, to, timeout, ..
        }) = parse(&words).unwrap()
        else {
            panic!()
        };
        assert_eq!(
            (paths.len(), to, timeout),
            (2, WaitFor::Count(2), Some(Duration::from_millis(300)))
        );
        assert!(parse(&["wait"]).is_ok(), "all that is on its way");
        assert!(parse(&["wait", "--for-first", "--for", "2"]).is_err());
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
