//! The settings as flags, made from the table of settings.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, ValueHint, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Kind, Layer, SETTINGS, Setting, Source};

/// The name of the one flag that is no setting: the file that has them.
const CONFIG: &str = "config";

/// The settings as typed. Text, since the same values come from files and variables; `config` gives them their types.
#[derive(Debug)]
pub(super) struct Settings {
    /// What was typed.
    layer: Layer,
    /// `--config`.
    config: Option<PathBuf>,
}

impl Settings {
    /// What was typed, as a layer, and the configuration file.
    pub(super) fn into_layer(self) -> (Layer, Option<PathBuf>) {
        (self.layer, self.config)
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(PathBufValueParser::new())
            .value_hint(ValueHint::FilePath)
            .help("Read settings from this file instead of config.toml in the state directory");
        SETTINGS
            .iter()
            .map(flag)
            .fold(command.arg(config), Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut layer = Layer::new(Source::Flag);
        for setting in SETTINGS {
            let typed = matches.get_many::<OsString>(setting.name);
            for value in typed.into_iter().flatten() {
                layer.push(setting, value.clone());
            }
        }
        Ok(Self {
            layer,
            config: matches.get_one(CONFIG).cloned(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn flag(setting: &Setting) -> Arg {
    let arg = Arg::new(setting.name)
        .long(setting.name.replace('_', "-"))
        .value_name(setting.value)
        .value_parser(ValueParser::os_string())
        .help(setting.help_line())
        .help_heading(setting.topic.title());
    let arg = match setting.kind {
        Kind::Text => arg,
        Kind::Path => arg.value_hint(ValueHint::AnyPath),
        Kind::List => arg.action(ArgAction::Append),
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    };
    match setting.name {
        "join" => arg.conflicts_with("join_file"),
        _ => arg,
    }
}
