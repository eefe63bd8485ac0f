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
mod error;
mod example;
mod home;
mod kept;
mod routes;
mod shown;
mod source;
mod stack;
mod surroundings;
mod table;
#[cfg(test)]
mod tests;
mod typed;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use self::error::ConfigError;
pub(crate) use self::example::example;
use self::home::default_state;
pub(crate) use self::kept::Kept;
pub(crate) use self::shown::{Held, Tables};
pub(crate) use self::source::{Layer, Source, refuse_slips};
use self::stack::Stack;
pub(crate) use self::surroundings::Surroundings;
#[cfg(test)]
pub(crate) use self::table::Topic;
pub(crate) use self::table::{Kind, SETTINGS, Setting, names, setting};
pub(crate) use self::typed::Config;
pub(crate) use self::value::IdentityKind;
pub(crate) use self::value::{parse_duration, parse_peer};
use crate::peer::{AnyTicket, PeerName};
use crate::spool::Layout;

/// Quiet time after the last close before a file is sent. Covers programs that rename right after closing
/// (measured: 0.2 ms to 3 ms on a busy machine), and is not felt.
pub(crate) const DEFAULT_SETTLE: Duration = Duration::from_millis(5);

/// How long a bundle waits for its recipients: longer than a holiday.
pub(crate) const DEFAULT_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Sealers hash at disk speed; more than this only make the disk seek. One of them is for small files alone.
const SEALERS: (usize, usize) = (2, 4);

/// Everything [`resolve`] looks at.
#[derive(Clone, Debug)]
pub(crate) struct Inputs<'a> {
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

/// What came of all sources.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// What holds.
    pub config: Config,
    /// Each setting in the order of [`SETTINGS`], for `meshbox config`.
    pub held: Vec<Held>,
    /// Routes and groups, if there are any.
    pub tables: Option<Tables>,
    /// What is to be told, though it holds.
    pub warnings: Vec<String>,
}

/// Lays all sources over each other and parses what holds.
pub(crate) fn resolve(inputs: Inputs<'_>) -> Result<Resolved, ConfigError> {
    resolve_with(inputs, |layer| layer)
}

/// The same for a daemon that has joined long ago: its ticket need not be there any more.
pub(crate) fn resolve_again(inputs: Inputs<'_>) -> Result<Resolved, ConfigError> {
    resolve_with(inputs, |layer| layer.without("join").without("join_file"))
}

fn resolve_with(
    inputs: Inputs<'_>,
    taken: impl Fn(Layer) -> Layer,
) -> Result<Resolved, ConfigError> {
    let (mountpoint, surroundings) = (inputs.mountpoint, inputs.surroundings);
    let mut layers = vec![inputs.flags, inputs.mount_options, inputs.env];
    if let Some(path) = inputs.config_file {
        layers.push(Layer::from_file(path)?);
    }
    layers = layers.into_iter().map(&taken).collect();
    let place = Place::find(&layers, mountpoint, surroundings)?;
    if inputs.config_file.is_none() {
        layers.extend(place.own_file()?.map(taken));
    }
    layers.push(Kept::read(&Layout::new(place.state.clone()))?.settings);
    let keep = kept::text(&layers, mountpoint);
    let stack = Stack::new(&layers);
    let config = parse(&stack, place, keep, mountpoint, surroundings)?;
    let held = SETTINGS
        .iter()
        .map(|setting| stack.held(setting, &config))
        .collect();
    let tables = stack.tables().map(|(tables, source)| Tables {
        tables: tables.clone(),
        source: source.clone(),
    });
    Ok(Resolved {
        config,
        held,
        tables,
        warnings: stack.into_warnings(),
    })
}

/// Where the state is.
struct Place {
    state: PathBuf,
    /// As in [`Config::states`].
    states: Option<PathBuf>,
}

impl Place {
    fn find(
        layers: &[Layer],
        mountpoint: Option<&Path>,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        Ok(match Stack::new(layers).path("state") {
            Some(path) => Self {
                state: path?,
                states: None,
            },
            None => Self {
                state: default_state(mountpoint, surroundings)?,
                states: surroundings.state_home(),
            },
        })
    }

    /// The configuration file in the state, if there is one.
    fn own_file(&self) -> Result<Option<Layer>, ConfigError> {
        let own = Layout::new(self.state.clone()).config();
        let exists = own.try_exists().map_err(|source| ConfigError::Read {
            path: own.clone(),
            source,
        })?;
        if !exists {
            return Ok(None);
        }
        Ok(Some(Layer::from_file(&own)?.without("state")))
    }
}

/// Parses what holds.
fn parse(
    stack: &Stack<'_>,
    place: Place,
    keep: String,
    mountpoint: Option<&Path>,
    surroundings: &Surroundings,
) -> Result<Config, ConfigError> {
    let (ticket, invitation) = match stack.ticket()? {
        Some(AnyTicket::Key(ticket)) => (Some(ticket), None),
        Some(AnyTicket::Invitation(invitation)) => (None, Some(invitation)),
        None => (None, None),
    };
    Ok(Config {
        place: mountpoint.map(Path::to_owned),
        states: place.states,
        keep,
        new: stack.switch("new")?,
        name: match stack.parsed("name", |text| {
            PeerName::parse(text).map_err(|err| err.to_string())
        })? {
            Some(name) => name,
            None => value::name_of_host(&surroundings.hostname),
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
        dress: stack.dress(surroundings.root)?,
        routing: stack.routing()?,
        root: surroundings.root,
        sealers: surroundings.processors.clamp(SEALERS.0, SEALERS.1),
        state: place.state,
    })
}
