//! The sources of settings, as raw text: what each one says, before anything is parsed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::table::{Kind, SETTINGS, Setting, names, setting};
use crate::similar;

/// Where a value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
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
    pub(crate) fn describe(&self, setting: &str) -> String {
        match self {
            Self::Default => "default".to_owned(),
            Self::Kept(path) => format!("kept in {}", path.display()),
            Self::File(path) => format!("{setting} in {}", path.display()),
            Self::Env => env_name(setting),
            Self::MountOption => format!("-o {setting}"),
            Self::Flag => format!("--{}", setting.replace('_', "-")),
        }
    }
}

/// Settings that a file may also have in a table `[spool]`, under the same names.
const SPOOL_TABLE: [&str; 5] = [
    "max_peer_bytes",
    "max_bytes",
    "min_free",
    "max_file_bytes",
    "history",
];

/// Keys of the configuration file that are no settings: `[[route]]` and `[groups]`.
const TABLES: [&str; 2] = ["route", "groups"];

/// What the names of all our variables begin with.
const ENV_PREFIX: &str = "MESHBOX_";

/// The environment variable of a setting.
pub(super) fn env_name(setting: &str) -> String {
    format!("{ENV_PREFIX}{}", setting.to_ascii_uppercase())
}

/// What one source says.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    source: Source,
    values: BTreeMap<&'static str, Vec<OsString>>,
    /// `[[route]]` and `[groups]`.
    tables: toml::Table,
}

impl Layer {
    /// A layer that says nothing yet.
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            values: BTreeMap::new(),
            tables: toml::Table::new(),
        }
    }

    /// The tables of a file that are no settings.
    pub(super) fn tables(&self) -> &toml::Table {
        &self.tables
    }

    /// Where the values are from.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Adds a value.
    pub(crate) fn push(&mut self, setting: &'static Setting, value: OsString) {
        self.values.entry(setting.name).or_default().push(value);
    }

    /// The values of a setting, at least one, if this source says anything of it.
    pub(crate) fn get(&self, name: &str) -> Option<&[OsString]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// The same with every path absolute, for a process that is about to leave its working directory.
    #[must_use]
    pub(crate) fn anchored(mut self) -> Self {
        for setting in SETTINGS.iter().filter(|setting| setting.kind == Kind::Path) {
            for value in self.values.get_mut(setting.name).into_iter().flatten() {
                // It fails for an empty path only, which is refused where it is used.
                if let Ok(path) = std::path::absolute(&*value) {
                    *value = path.into();
                }
            }
        }
        self
    }

    /// The same without one setting.
    #[must_use]
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.values.remove(name);
        self
    }

    /// The environment; `lookup` gives a variable's value. See [`refuse_slips`] for what only looks like one of ours.
    pub(crate) fn from_env(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let mut layer = Self::new(Source::Env);
        for setting in SETTINGS {
            let Some(value) = lookup(&env_name(setting.name)).filter(|value| !value.is_empty())
            else {
                continue;
            };
            match (setting.kind, value.to_str()) {
                (Kind::List, Some(text)) => {
                    for part in text
                        .split(',')
                        .map(str::trim)
                        .filter(|part| !part.is_empty())
                    {
                        layer.push(setting, part.into());
                    }
                }
                (Kind::List | Kind::Text | Kind::Path | Kind::Switch, _) => {
                    layer.push(setting, value);
                }
            }
        }
        layer
    }

    /// `-o` options that are ours: a name and perhaps a value.
    pub(crate) fn from_mount_options<'a>(
        options: impl IntoIterator<Item = (&'a str, Option<&'a OsStr>)>,
    ) -> Result<Self, ConfigError> {
        let mut layer = Self::new(Source::MountOption);
        for (name, value) in options {
            let unknown = || unknown(name, "-o".to_owned());
            let known = setting(name).ok_or_else(unknown)?;
            match (value, known.kind) {
                (Some(value), _) => layer.push(known, value.to_owned()),
                (None, Kind::Switch) => layer.push(known, "true".into()),
                (None, Kind::Text | Kind::Path | Kind::List) => {
                    let origin = Source::MountOption.describe(known.name);
                    return Err(ConfigError::Value {
                        origin,
                        why: "it needs a value".to_owned(),
                    });
                }
            }
        }
        Ok(layer)
    }

    /// A TOML file.
    pub(crate) fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let path = std::path::absolute(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let table: toml::Table =
            text.parse()
                .map_err(|err: toml::de::Error| ConfigError::Toml {
                    path: path.clone(),
                    why: err.to_string(),
                })?;
        let source = Source::File(path.clone());
        let mut layer = Self::new(source.clone());
        for (key, value) in flat(table, &text, &path)? {
            if TABLES.contains(&key.as_str()) {
                layer.tables.insert(key, value);
                continue;
            }
            let Some(known) = setting(&key) else {
                let origin = place_of(&text, None, &key, &path);
                return Err(unknown(&key, origin));
            };
            if layer.get(known.name).is_some() {
                return Err(ConfigError::Value {
                    origin: source.describe(known.name),
                    why: "it is there twice, alone and in [spool]; keep one".to_owned(),
                });
            }
            let values = match (known.kind, value) {
                (Kind::List, toml::Value::Array(values)) => values,
                (_, value) => vec![value],
            };
            // An empty list is a value too: nothing is not the default of a lower layer.
            layer.values.entry(known.name).or_default();
            for value in values {
                let text = plain(value).map_err(|why| ConfigError::Value {
                    origin: source.describe(known.name),
                    why,
                })?;
                let value = match (known.kind, path.parent()) {
                    (Kind::Path, Some(dir)) => dir.join(text).into_os_string(),
                    (Kind::Path | Kind::Text | Kind::List | Kind::Switch, _) => text.into(),
                };
                layer.push(known, value);
            }
        }
        Ok(layer)
    }
}

/// A name that nobody knows, with the one that may be meant.
fn unknown(name: &str, origin: String) -> ConfigError {
    let known = names().chain(TABLES);
    ConfigError::Unknown {
        name: name.to_owned(),
        origin,
        hint: similar::hint(&name.replace('-', "_"), known),
    }
}

/// File and line of a key of the file's `text`, or of a table in it.
fn place_of(text: &str, table: Option<&str>, key: &str, path: &Path) -> String {
    let line = || {
        let parsed = toml::de::DeTable::parse(text).ok()?;
        let mut keys = parsed.get_ref();
        if let Some(table) = table {
            keys = keys.get(table)?.get_ref().as_table()?;
        }
        let (found, _) = keys.get_key_value(key)?;
        Some(text.get(..found.span().start)?.matches('\n').count() + 1)
    };
    match line() {
        Some(line) => format!("{}, line {line}", path.display()),
        None => path.display().to_string(),
    }
}

/// Refuses a variable that is set, is none of ours, and is called nearly like one: `MESHBOX_SETLE`. Others are left alone:
/// Kubernetes sets `MESHBOX_PORT` for a service called meshbox.
pub(crate) fn refuse_slips(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), ConfigError> {
    let ours: Vec<String> = names().chain(["config"]).map(env_name).collect();
    for (name, value) in variables {
        let name = name.to_string_lossy();
        let (Some(typed), false) = (name.strip_prefix(ENV_PREFIX), value.is_empty()) else {
            continue;
        };
        let meant = similar::nearest(typed, ours.iter().map(|name| &name[ENV_PREFIX.len()..]));
        if let Some(meant) = meant.filter(|meant| *meant != typed) {
            return Err(ConfigError::Unknown {
                name: name.to_string(),
                origin: "environment".to_owned(),
                hint: format!("; did you mean `{ENV_PREFIX}{meant}`?"),
            });
        }
    }
    Ok(())
}

/// The keys of a file with those of its `[spool]` table among them.
fn flat(
    table: toml::Table,
    text: &str,
    path: &Path,
) -> Result<Vec<(String, toml::Value)>, ConfigError> {
    let mut keys = Vec::with_capacity(table.len());
    for (key, value) in table {
        match (key.as_str(), value) {
            ("spool", toml::Value::Table(inner)) => {
                let foreign = |key: &&String| !SPOOL_TABLE.contains(&key.as_str());
                if let Some(key) = inner.keys().find(foreign) {
                    return Err(ConfigError::Unknown {
                        name: format!("spool.{key}"),
                        origin: place_of(text, Some("spool"), key, path),
                        hint: similar::hint(key, SPOOL_TABLE),
                    });
                }
                keys.extend(inner);
            }
            (_, value) => keys.push((key, value)),
        }
    }
    Ok(keys)
}

fn plain(value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(on) => Ok(on.to_string()),
        other => Err(format!("a {} does not fit here", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&'static str, Option<&'static str>)]) -> Result<Layer, ConfigError> {
        Layer::from_mount_options(pairs.iter().map(|(n, v)| (*n, v.map(OsStr::new))))
    }

    #[test]
    fn mount_options_take_dashes_or_underscores() {
        let layer = options(&[
            ("no-mdns", None),
            ("allow_other", None),
            ("join-file", Some("/t")),
        ])
        .unwrap();
        assert_eq!(layer.get("no_mdns"), Some(&["true".into()][..]));
        assert_eq!(layer.get("allow_other"), Some(&["true".into()][..]));
        assert_eq!(layer.get("join_file"), Some(&["/t".into()][..]));
    }

    #[test]
    fn a_mistyped_mount_option_is_refused() {
        assert!(matches!(
            options(&[("setle", Some("1s"))]),
            Err(ConfigError::Unknown { .. })
        ));
        assert!(matches!(
            options(&[("settle", None)]),
            Err(ConfigError::Value { .. })
        ));
    }

    #[test]
    fn names_are_made_alike_in_all_three_places() {
        assert_eq!(env_name("no_mdns"), "MESHBOX_NO_MDNS");
        assert_eq!(Source::Flag.describe("no_mdns"), "--no-mdns");
        assert_eq!(
            setting("no-mdns").map(|setting| setting.name),
            Some("no_mdns")
        );
    }
}
