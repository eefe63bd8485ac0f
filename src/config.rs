//! Configuration: what was typed, set and written, made into what holds.
//!
//! Every setting has one name in three places: `--flag`, `MESHBOX_FLAG` and the TOML key (an `-o` option counts as a
//! flag). [`resolve`] lays the sources over each other, remembers where each value came from, and parses each value
//! once into the type the program uses. Nothing here touches the mount or the network; it reads the configuration
//! file and the ticket file, no more.
//!
//! # Invariants
//! 1. Flag beats `-o`, `-o` beats environment, environment beats file, file beats what the state keeps ([`kept`]), that
//!    beats default; a list is replaced whole.
//! 2. An environment variable that is set but empty counts as unset.
//! 3. A secret is never part of what [`Resolved::held`] shows or of an error.

mod bounds;
mod home;
mod kept;
mod routes;
mod source;
#[cfg(test)]
mod tests;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use self::home::default_state;
pub use self::kept::Kept;
pub use self::source::{Kind, Layer, SETTINGS, Setting, setting};
pub use self::value::IdentityKind;
pub use self::value::{format_size, parse_duration, parse_peer, parse_size};
use crate::fs::FsConfig;
use crate::mesh::{Congestion, MeshConfig};
use crate::peer::{AnyTicket, GroupKey, Identity, Invitation, PeerId, PeerName, Ticket};
use crate::spool::{Dress, Layout, Limits, Routing, SpoolConfig};

/// Quiet time after the last close before a file is sent. Covers programs that rename right after closing
/// (measured: 0.2 ms to 3 ms on a busy machine), and is not felt.
pub const DEFAULT_SETTLE: Duration = Duration::from_millis(5);

/// How long a bundle waits for its recipients: longer than a holiday.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Sealers hash at disk speed; more than this only make the disk seek. One of them is for small files alone.
const SEALERS: (usize, usize) = (2, 4);

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The state's own file: it was given once, and belongs to the node.
    Kept(PathBuf),
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
            Self::Kept(path) => format!("kept in {}", path.display()),
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
    /// Where the mount is or will be, its parent without links; its path gives the default state.
    pub mountpoint: Option<&'a Path>,
    /// The rest of the world.
    pub surroundings: &'a Surroundings,
}

/// What holds, typed.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory, absolute.
    pub state: PathBuf,
    /// Where it is to be mounted, as in [`Inputs::mountpoint`].
    pub place: Option<PathBuf>,
    /// The directory with the states of all mounts, if this one's is there because nobody said otherwise.
    pub states: Option<PathBuf>,
    /// What the state is to keep when it serves.
    pub keep: String,
    /// Found a group though a state with this mountpoint's name waits for its own.
    pub new: bool,
    /// What we call ourselves.
    pub name: PeerName,
    /// The ticket to join with.
    pub ticket: Option<Ticket>,
    /// The ticket to redeem, if it is one of those that expire or hold once.
    pub invitation: Option<Invitation>,
    /// How this node gets its key pair at its first start.
    pub identity: IdentityKind,
    /// Whether only listed ids are members.
    pub listed: bool,
    /// The list.
    pub member: Vec<PeerId>,
    /// Who is the admin, in a group that does not know.
    pub admin: Option<PeerId>,
    /// Addresses to bind.
    pub listen: Vec<SocketAddr>,
    /// Static peers.
    pub peers: Vec<(PeerId, SocketAddr)>,
    /// Whether to look for members on the local network.
    pub mdns: bool,
    /// Congestion control.
    pub congestion: Congestion,
    /// URLs of relays.
    pub relay: Vec<String>,
    /// Quiet time before a file is sent.
    pub settle: Duration,
    /// How long a bundle waits for its recipients.
    pub lifetime: Duration,
    /// Whether members that join later get what is still shown.
    pub late_joiners: bool,
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
    /// How much of the disk may be used.
    pub limits: Limits,
    /// Modes and owner of what the mount shows.
    pub dress: Dress,
    /// Whom bundles go to, and how large they may be.
    pub routing: Routing,
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
            dress: self.dress,
            max_file_bytes: self.limits.max_file_bytes,
        }
    }

    /// The spool's part.
    pub fn spool(&self, identity: Identity) -> SpoolConfig {
        SpoolConfig {
            state: self.state.clone(),
            lifetime: self.lifetime,
            sealers: self.sealers,
            limits: self.limits,
            dress: self.dress,
            identity,
        }
    }

    /// The mesh's part.
    pub fn mesh(&self, group: GroupKey) -> MeshConfig {
        MeshConfig {
            name: self.name.clone(),
            group,
            listen: self.listen.clone(),
            wait_for_addresses: false,
            peers: self.peers.clone(),
            ticket: self.ticket.clone(),
            mdns: self.mdns,
            congestion: self.congestion,
            relays: self.relay.clone(),
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
    let (state, states) = match Stack(&layers).path("state") {
        Some(path) => (path?, None),
        None => (
            default_state(inputs.mountpoint, inputs.surroundings)?,
            inputs.surroundings.state_home(),
        ),
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
    layers.push(Kept::read(&Layout::new(state.clone()))?.settings);
    let keep = kept::text(&layers, inputs.mountpoint);
    let stack = Stack(&layers);
    let (ticket, invitation) = match stack.ticket()? {
        Some(AnyTicket::Key(ticket)) => (Some(ticket), None),
        Some(AnyTicket::Invitation(invitation)) => (None, Some(invitation)),
        None => (None, None),
    };
    let config = Config {
        place: inputs.mountpoint.map(Path::to_owned),
        states,
        keep,
        new: stack.switch("new")?,
        name: match stack.parsed("name", |text| {
            PeerName::parse(text).map_err(|err| err.to_string())
        })? {
            Some(name) => name,
            None => value::name_of_host(&inputs.surroundings.hostname),
        },
        ticket,
        invitation,
        identity: stack
            .parsed("identity", value::parse_identity)?
            .unwrap_or_default(),
        listed: stack
            .parsed("members", value::parse_members)?
            .unwrap_or(false),
        member: stack.list("member", value::parse_peer_id)?,
        admin: stack.parsed("admin", value::parse_peer_id)?,
        listen: stack.list("listen", |text| {
            text.parse()
                .map_err(|_| format!("{text:?} is not ADDR:PORT"))
        })?,
        peers: stack.list("peer", parse_peer)?,
        mdns: !stack.switch("no_mdns")?,
        congestion: stack.parsed("congestion", str::parse)?.unwrap_or_default(),
        relay: stack.list("relay", value::parse_relay)?,
        settle: stack
            .parsed("settle", parse_duration)?
            .unwrap_or(DEFAULT_SETTLE),
        late_joiners: stack
            .parsed("late_joiners", value::parse_late_joiners)?
            .unwrap_or(true),
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
        limits: stack.limits()?,
        dress: stack.dress(inputs.surroundings.root)?,
        routing: stack.routing()?,
        root: inputs.surroundings.root,
        sealers: inputs.surroundings.processors.clamp(SEALERS.0, SEALERS.1),
        state,
    };
    let held = SETTINGS
        .iter()
        .map(|setting| stack.held(setting, &config))
        .collect();
    Ok(Resolved { config, held })
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

    fn ticket(&self) -> Result<Option<AnyTicket>, ConfigError> {
        let (typed, file) = (self.rank("join"), self.rank("join_file"));
        if typed == file && typed < self.0.len() {
            let origin = self.0[typed].source().describe("join_file");
            return Err(ConfigError::Value {
                origin,
                why: "give either a ticket or a file with one".to_owned(),
            });
        }
        let read = |text: &str| AnyTicket::parse(text).map_err(|err| err.to_string());
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
            "identity" => text(config.identity.word()),
            "new" => Some(config.new.into()),
            "members" => text(if config.listed { "listed" } else { "open" }),
            "member" => list(config.member.iter().map(PeerId::to_string).collect()),
            "admin" => config.admin.and_then(|id| text(&id.to_string())),
            "no_mdns" => Some((!config.mdns).into()),
            "congestion" => text(&config.congestion.to_string()),
            "relay" => list(config.relay.clone()),
            "settle" => duration(config.settle),
            "lifetime" => duration(config.lifetime),
            "late_joiners" => text(value::show_late_joiners(config.late_joiners)),
            "foreground" => Some(config.foreground.into()),
            "allow_other" => Some(config.allow_other.into()),
            "log" => text(&config.log),
            "ignore" => list(config.ignore.clone()),
            "ignore_except" => list(config.ignore_except.clone()),
            other => bounds::shown(config, other).and_then(|shown| text(&shown)),
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
