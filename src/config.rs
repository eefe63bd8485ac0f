//! Configuration: what was typed, set and written, made into what holds.
//!
//! Every setting has one name in three places: `--flag`, `MESHBOX_FLAG` and the TOML key (an `-o` option counts as a
//! flag). [`resolve`] lays the sources over each other, remembers where each value came from, and parses each value
//! once into the type the program uses. Nothing here touches the mount or the network; it reads the configuration
//! file and the ticket file, no more.
//!
//! # Invariants
//! 1. Flag beats `-o`, `-o` beats environment, environment beats file, file beats default; a list is replaced whole.
//! 2. An environment variable that is set but empty counts as unset.
//! 3. A secret is never part of what [`Resolved::held`] shows or of an error.

mod source;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub use self::source::{Kind, Layer, SETTINGS, Setting, setting};
pub use self::value::{parse_duration, parse_peer};
use crate::fs::FsConfig;
use crate::mesh::MeshConfig;
use crate::peer::{GroupKey, Identity, PeerId, PeerName, Ticket};
use crate::spool::{Layout, SpoolConfig};

/// Quiet time after the last close before a file is sent. Covers programs that rename right after closing
/// (measured: 0.2 ms to 3 ms on a busy machine), and is not felt.
pub const DEFAULT_SETTLE: Duration = Duration::from_millis(5);

/// How long a bundle waits for its recipients: longer than a holiday.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Sealers hash at disk speed; more than this only make the disk seek.
const MOST_SEALERS: usize = 4;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A key of this file.
    File(PathBuf),
    /// An environment variable.
    Env,
    /// `-o`.
    MountOption,
    /// The command line.
    Flag,
}

impl Source {
    /// The words for a value of `setting` from here: `--settle`, `MESHBOX_SETTLE`, `settle in /etc/x.toml`.
    pub fn describe(&self, setting: &str) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::File(path) => format!("{setting} in {}", path.display()),
            Self::Env => source::env_name(setting),
            Self::MountOption => format!("-o {setting}"),
            Self::Flag => format!("--{}", setting.replace('_', "-")),
        }
    }
}

/// Why the configuration does not hold together. The user's to correct.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The configuration file or the ticket file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{path}: {why}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        why: String,
    },
    /// A key or option nobody knows.
    #[error("unknown setting `{name}` ({origin})")]
    Unknown {
        /// As it was written.
        name: String,
        /// Where it stands.
        origin: String,
    },
    /// A value that does not fit its setting.
    #[error("{origin}: {why}")]
    Value {
        /// Where the value stands.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing says where the state is.
    #[error(
        "which state directory? name it with --state (neither $XDG_STATE_HOME nor $HOME is set)"
    )]
    NoState,
}

/// What the surroundings of the process say; a value so that tests can bring their own.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Whether we are root.
    pub root: bool,
    /// `$XDG_STATE_HOME`, if absolute.
    pub xdg_state_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// The machine's name.
    pub hostname: String,
    /// Processors that we may use.
    pub processors: usize,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let dir = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            root: rustix::process::geteuid().is_root(),
            xdg_state_home: dir("XDG_STATE_HOME"),
            home: dir("HOME"),
            hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Where the states of all mounts are, unless `--state` says otherwise.
    pub fn state_home(&self) -> Option<PathBuf> {
        if self.root {
            return Some(PathBuf::from("/var/lib/meshbox"));
        }
        let home = self
            .xdg_state_home
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".local/state")))?;
        Some(home.join("meshbox"))
    }
}

/// Everything [`resolve`] looks at.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// What was typed.
    pub flags: Layer,
    /// What `-o` said.
    pub mount_options: Layer,
    /// What the environment says.
    pub env: Layer,
    /// `--config`, or `MESHBOX_CONFIG`, or the source that mount(8) gave.
    pub config_file: Option<&'a Path>,
    /// Where the mount is or will be; its name gives the default state.
    pub mountpoint: Option<&'a Path>,
    /// The rest of the world.
    pub surroundings: &'a Surroundings,
}

/// What holds, typed.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory, absolute.
    pub state: PathBuf,
    /// What we call ourselves.
    pub name: PeerName,
    /// The ticket to join with.
    pub ticket: Option<Ticket>,
    /// Addresses to bind.
    pub listen: Vec<SocketAddr>,
    /// Static peers.
    pub peers: Vec<(PeerId, SocketAddr)>,
    /// Whether to look for members on the local network.
    pub mdns: bool,
    /// Quiet time before a file is sent.
    pub settle: Duration,
    /// How long a bundle waits for its recipients.
    pub lifetime: Duration,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Let other users use the mount.
    pub allow_other: bool,
    /// What is logged, as tracing directives.
    pub log: String,
    /// More patterns to ignore.
    pub ignore: Vec<String>,
    /// Default patterns not to ignore.
    pub ignore_except: Vec<String>,
    root: bool,
    sealers: usize,
}

impl Config {
    /// The file system's part.
    pub fn fs(&self) -> FsConfig {
        FsConfig {
            settle: self.settle,
            chown_to_writer: self.root,
            ignore_extra: self.ignore.clone(),
            ignore_except: self.ignore_except.clone(),
        }
    }

    /// The spool's part.
    pub fn spool(&self, identity: Identity) -> SpoolConfig {
        SpoolConfig {
            state: self.state.clone(),
            lifetime: self.lifetime,
            sealers: self.sealers,
            identity,
        }
    }

    /// The mesh's part.
    pub fn mesh(&self, group: GroupKey) -> MeshConfig {
        MeshConfig {
            name: self.name.clone(),
            group,
            listen: self.listen.clone(),
            peers: self.peers.clone(),
            ticket: self.ticket.clone(),
            mdns: self.mdns,
        }
    }
}

/// One setting as it holds, to be shown.
#[derive(Clone, PartialEq, Debug)]
pub struct Held {
    /// The setting.
    pub name: &'static str,
    /// Its value as a TOML value; `None` when unset; a secret shows as `…`.
    pub value: Option<toml::Value>,
    /// Where it came from.
    pub source: Source,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}", self.name)?,
            None => write!(f, "# {} is not set", self.name)?,
        }
        if self.source == Source::Default {
            Ok(())
        } else {
            write!(f, "  # {}", self.source.describe(self.name))
        }
    }
}

/// What came of all sources.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What holds.
    pub config: Config,
    /// Each setting in the order of [`SETTINGS`], for `meshbox config`.
    pub held: Vec<Held>,
}

/// Lays all sources over each other and parses what holds.
pub fn resolve(inputs: Inputs<'_>) -> Result<Resolved, ConfigError> {
    let mut layers = vec![inputs.flags, inputs.mount_options, inputs.env];
    if let Some(path) = inputs.config_file {
        layers.push(Layer::from_file(path)?);
    }
    let state = match Stack(&layers).path("state") {
        Some(path) => path?,
        None => default_state(inputs.mountpoint, inputs.surroundings)?,
    };
    if inputs.config_file.is_none() {
        let own = Layout::new(state.clone()).config();
        if own.try_exists().map_err(|source| ConfigError::Read {
            path: own.clone(),
            source,
        })? {
            layers.push(Layer::from_file(&own)?.without("state"));
        }
    }
    let stack = Stack(&layers);
    let config = Config {
        name: match stack.parsed("name", |text| {
            PeerName::parse(text).map_err(|err| err.to_string())
        })? {
            Some(name) => name,
            None => value::name_of_host(&inputs.surroundings.hostname),
        },
        ticket: stack.ticket()?,
        listen: stack.list("listen", |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not ADDR:PORT"))
        })?,
        peers: stack.list("peer", parse_peer)?,
        mdns: !stack.switch("no_mdns")?,
        settle: stack
            .parsed("settle", parse_duration)?
            .unwrap_or(DEFAULT_SETTLE),
        lifetime: stack
            .parsed("lifetime", parse_duration)?
            .unwrap_or(DEFAULT_LIFETIME),
        foreground: stack.switch("foreground")?,
        allow_other: stack.switch("allow_other")?,
        log: stack
            .parsed("log", value::parse_log)?
            .unwrap_or_else(|| "info".to_owned()),
        ignore: stack.list("ignore", |text| Ok(text.to_owned()))?,
        ignore_except: stack.list("ignore_except", |text| Ok(text.to_owned()))?,
        root: inputs.surroundings.root,
        sealers: inputs.surroundings.processors.clamp(1, MOST_SEALERS),
        state,
    };
    let held = SETTINGS
        .iter()
        .map(|setting| stack.held(setting, &config))
        .collect();
    Ok(Resolved { config, held })
}

fn default_state(
    mountpoint: Option<&Path>,
    surroundings: &Surroundings,
) -> Result<PathBuf, ConfigError> {
    let home = surroundings.state_home().ok_or(ConfigError::NoState)?;
    let name = mountpoint
        .and_then(Path::file_name)
        .ok_or(ConfigError::NoState)?;
    Ok(home.join(name))
}

/// The layers, strongest first.
struct Stack<'a>(&'a [Layer]);

impl Stack<'_> {
    fn raw(&self, name: &str) -> Option<(&Source, &[OsString])> {
        self.0
            .iter()
            .find_map(|layer| Some((layer.source(), layer.get(name)?)))
    }

    fn rank(&self, name: &str) -> usize {
        self.0
            .iter()
            .position(|layer| layer.get(name).is_some())
            .unwrap_or(self.0.len())
    }

    fn path(&self, name: &str) -> Option<Result<PathBuf, ConfigError>> {
        let (source, values) = self.raw(name)?;
        let path = values.last()?;
        Some(std::path::absolute(path).map_err(|err| ConfigError::Value {
            origin: source.describe(name),
            why: format!("{}: {err}", path.display()),
        }))
    }

    fn list<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some((source, values)) = self.raw(name) else {
            return Ok(Vec::new());
        };
        let one = |raw: &OsString| match raw.to_str() {
            Some(text) => parse(text),
            None => Err("the value is not UTF-8".to_owned()),
        };
        let origin = || source.describe(name);
        values
            .iter()
            .map(|raw| {
                one(raw).map_err(|why| ConfigError::Value {
                    origin: origin(),
                    why,
                })
            })
            .collect()
    }

    fn parsed<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        Ok(self.list(name, parse)?.pop())
    }

    fn switch(&self, name: &str) -> Result<bool, ConfigError> {
        Ok(self.parsed(name, value::parse_switch)?.unwrap_or(false))
    }

    fn ticket(&self) -> Result<Option<Ticket>, ConfigError> {
        let (typed, file) = (self.rank("join"), self.rank("join_file"));
        if typed == file && typed < self.0.len() {
            let origin = self.0[typed].source().describe("join_file");
            return Err(ConfigError::Value {
                origin,
                why: "give either a ticket or a file with one".to_owned(),
            });
        }
        let read = |text: &str| Ticket::parse(text).map_err(|err| err.to_string());
        if typed < file {
            return self.parsed("join", read);
        }
        let Some(path) = self.path("join_file").transpose()? else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let origin = || path.display().to_string();
        read(&text).map(Some).map_err(|why| ConfigError::Value {
            origin: origin(),
            why,
        })
    }

    fn held(&self, setting: &Setting, config: &Config) -> Held {
        let text = |text: &str| Some(toml::Value::String(text.to_owned()));
        let duration = |value: Duration| text(&humantime::format_duration(value).to_string());
        let list =
            |values: Vec<String>| Some(values.into()).filter(|_| self.raw(setting.name).is_some());
        let value = match setting.name {
            "state" => text(&config.state.to_string_lossy()),
            "name" => text(config.name.as_str()),
            "join" => self.raw("join").and_then(|_| text("…")),
            "join_file" => self
                .raw("join_file")
                .and_then(|(_, v)| text(&v.last()?.to_string_lossy())),
            "listen" => list(config.listen.iter().map(SocketAddr::to_string).collect()),
            "peer" => list(
                config
                    .peers
                    .iter()
                    .map(|(id, addr)| format!("{id}@{addr}"))
                    .collect(),
            ),
            "no_mdns" => Some((!config.mdns).into()),
            "settle" => duration(config.settle),
            "lifetime" => duration(config.lifetime),
            "foreground" => Some(config.foreground.into()),
            "allow_other" => Some(config.allow_other.into()),
            "log" => text(&config.log),
            "ignore" => list(config.ignore.clone()),
            "ignore_except" => list(config.ignore_except.clone()),
            other => self.raw(other).map(|_| toml::Value::String("…".to_owned())),
        };
        let source = self
            .raw(setting.name)
            .map_or(Source::Default, |(source, _)| source.clone());
        Held {
            name: setting.name,
            value,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings() -> Surroundings {
        Surroundings {
            root: false,
            xdg_state_home: None,
            home: Some("/home/u".into()),
            hostname: "alder.example.org\n".into(),
            processors: 2,
        }
    }

    fn flags(values: &[(&'static str, &str)]) -> Layer {
        let mut layer = Layer::new(Source::Flag);
        for (name, value) in values {
            layer.push(setting(name).unwrap(), (*value).into());
        }
        layer
    }

    fn env(values: &[(&str, &str)]) -> Layer {
        Layer::from_env(|name| {
            values
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| value.into())
        })
    }

    fn with(flags: Layer, env: Layer, file: Option<&Path>) -> Result<Resolved, ConfigError> {
        let surroundings = surroundings();
        resolve(Inputs {
            flags,
            mount_options: Layer::new(Source::MountOption),
            env,
            config_file: file,
            mountpoint: Some(Path::new("/srv/share")),
            surroundings: &surroundings,
        })
    }

    fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("site.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn held(resolved: &Resolved, name: &str) -> (Option<String>, Source) {
        let held = resolved.held.iter().find(|held| held.name == name).unwrap();
        (
            held.value.as_ref().map(ToString::to_string),
            held.source.clone(),
        )
    }

    #[test]
    fn flag_beats_option_beats_environment_beats_file_beats_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "settle = \"40ms\"\n");
        let surroundings = surroundings();
        let settle = |flag: bool, option: bool, var: bool, in_file: bool| {
            let some =
                |on: bool, value: &'static str| if on { vec![("settle", value)] } else { vec![] };
            let mut mount_options = Layer::new(Source::MountOption);
            if option {
                mount_options.push(setting("settle").unwrap(), "20ms".into());
            }
            let resolved = resolve(Inputs {
                flags: flags(&some(flag, "10ms")),
                mount_options,
                env: env(if var {
                    &[("MESHBOX_SETTLE", "30ms")]
                } else {
                    &[]
                }),
                config_file: in_file.then_some(path.as_path()),
                mountpoint: Some(Path::new("/srv/share")),
                surroundings: &surroundings,
            })
            .unwrap();
            (
                resolved.config.settle.as_millis(),
                held(&resolved, "settle").1,
            )
        };
        assert_eq!(settle(true, true, true, true), (10, Source::Flag));
        assert_eq!(settle(false, true, true, true), (20, Source::MountOption));
        assert_eq!(settle(false, false, true, true), (30, Source::Env));
        assert_eq!(
            settle(false, false, false, true),
            (40, Source::File(path.clone()))
        );
        assert_eq!(settle(false, false, false, false), (5, Source::Default));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let resolved = with(
            flags(&[]),
            env(&[("MESHBOX_NAME", ""), ("MESHBOX_LISTEN", "")]),
            None,
        )
        .unwrap();
        assert_eq!(resolved.config.name.as_str(), "alder");
        assert!(resolved.config.listen.is_empty());
    }

    #[test]
    fn a_list_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(
            &dir,
            "listen = [\"10.0.0.1:1\", \"10.0.0.2:2\"]\nno_mdns = true\n",
        );
        let from_file = with(flags(&[]), env(&[]), Some(&path)).unwrap().config;
        assert_eq!(from_file.listen.len(), 2);
        assert!(!from_file.mdns);
        let over = with(
            flags(&[("listen", "[::1]:3"), ("no_mdns", "false")]),
            env(&[]),
            Some(&path),
        )
        .unwrap();
        assert_eq!(over.config.listen, ["[::1]:3".parse().unwrap()]);
        assert!(over.config.mdns);
        let var = env(&[("MESHBOX_LISTEN", "127.0.0.1:4, 127.0.0.1:5")]);
        assert_eq!(with(flags(&[]), var, None).unwrap().config.listen.len(), 2);
    }

    #[test]
    fn the_state_is_named_after_the_mountpoint() {
        let mut around = surroundings();
        let state = |around: &Surroundings, mountpoint| default_state(mountpoint, around);
        let share = Some(Path::new("/srv/share"));
        assert_eq!(
            state(&around, share).unwrap(),
            Path::new("/home/u/.local/state/meshbox/share")
        );
        around.xdg_state_home = Some("/x".into());
        assert_eq!(
            state(&around, share).unwrap(),
            Path::new("/x/meshbox/share")
        );
        around.root = true;
        assert_eq!(
            state(&around, share).unwrap(),
            Path::new("/var/lib/meshbox/share")
        );
        assert!(matches!(
            state(&around, Some(Path::new("/"))),
            Err(ConfigError::NoState)
        ));
        assert!(matches!(
            state(&Surroundings::default(), share),
            Err(ConfigError::NoState)
        ));
    }

    #[test]
    fn the_states_own_file_is_read_only_without_config() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "name = \"birch\"\n").unwrap();
        let other = file(&dir, "lifetime = \"1h\"\n");
        let state = [("state", dir.path().to_str().unwrap())];
        assert_eq!(
            with(flags(&state), env(&[]), None)
                .unwrap()
                .config
                .name
                .as_str(),
            "birch"
        );
        let named = with(flags(&state), env(&[]), Some(&other)).unwrap().config;
        assert_eq!(
            (named.name.as_str(), named.lifetime.as_secs()),
            ("alder", 3600)
        );
    }

    #[test]
    fn paths_in_a_file_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "state = \"here\"\n");
        assert_eq!(
            with(flags(&[]), env(&[]), Some(&path))
                .unwrap()
                .config
                .state,
            dir.path().join("here")
        );
    }

    #[test]
    fn a_wrong_value_says_where_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, "settle = \"soon\"\n");
        let err = with(flags(&[]), env(&[]), Some(&path))
            .unwrap_err()
            .to_string();
        assert!(err.contains("settle in") && err.contains("soon"), "{err}");
        let err = with(flags(&[("listen", "here")]), env(&[]), None)
            .unwrap_err()
            .to_string();
        assert!(err.starts_with("--listen: "), "{err}");
        let err = with(flags(&[]), env(&[("MESHBOX_NO_MDNS", "maybe")]), None)
            .unwrap_err()
            .to_string();
        assert!(err.starts_with("MESHBOX_NO_MDNS: "), "{err}");
    }

    #[test]
    fn an_unknown_or_mistyped_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "setle = \"5ms\"",
            "[route]\npath = \"x\"",
            "listen = [[1]]",
            "config = \"x\"",
            "name =",
        ] {
            assert!(
                with(flags(&[]), env(&[]), Some(&file(&dir, text))).is_err(),
                "{text}"
            );
        }
    }

    fn ticket() -> Ticket {
        Ticket {
            group: GroupKey::generate(),
            inviter: Identity::generate().id(),
            name: PeerName::parse("birch").unwrap(),
            addrs: vec!["127.0.0.1:9".parse().unwrap()],
        }
    }

    #[test]
    fn a_ticket_comes_typed_or_from_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (typed, filed) = (ticket(), ticket());
        let path = dir.path().join("ticket");
        std::fs::write(&path, format!("{filed}\n")).unwrap();
        let (line, path) = (typed.to_string(), path.to_str().unwrap());
        let resolved = with(
            flags(&[("join", &line)]),
            env(&[("MESHBOX_JOIN_FILE", path)]),
            None,
        )
        .unwrap();
        assert_eq!(resolved.config.ticket, Some(typed));
        let shown: String = resolved
            .held
            .iter()
            .map(|held| format!("{held}\n"))
            .collect();
        assert!(
            shown.contains("join = \"…\"") && !shown.contains(&line),
            "{shown}"
        );
        assert_eq!(
            with(flags(&[("join_file", path)]), env(&[]), None)
                .unwrap()
                .config
                .ticket,
            Some(filed)
        );
        assert!(
            with(
                flags(&[("join", &line), ("join_file", path)]),
                env(&[]),
                None
            )
            .is_err()
        );
        let err = with(flags(&[("join", "secret-gone-wrong")]), env(&[]), None)
            .unwrap_err()
            .to_string();
        assert!(!err.contains("secret-gone-wrong"), "{err}");
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        let id = Identity::generate().id();
        let peer = format!("{id}@10.0.0.9:4000");
        let first = with(
            flags(&[
                ("peer", &peer),
                ("settle", "0"),
                ("ignore", "*.bak"),
                ("listen", "127.0.0.1:0"),
                ("log", "debug"),
            ]),
            env(&[("MESHBOX_ALLOW_OTHER", "1")]),
            None,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text: String = first.held.iter().map(|held| format!("{held}\n")).collect();
        let again = with(flags(&[]), env(&[]), Some(&file(&dir, &text))).unwrap();
        assert_eq!(
            format!("{:?}", again.config),
            format!("{:?}", first.config),
            "{text}"
        );
        assert_eq!(again.config.settle, Duration::ZERO);
    }

    #[test]
    fn every_setting_is_shown() {
        let resolved = with(flags(&[]), env(&[]), None).unwrap();
        assert_eq!(resolved.held.len(), SETTINGS.len());
        for setting in SETTINGS
            .iter()
            .filter(|setting| setting.kind == Kind::Switch)
        {
            assert_eq!(
                held(&resolved, setting.name).0.as_deref(),
                Some("false"),
                "{}",
                setting.name
            );
        }
    }
}
