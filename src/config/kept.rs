//! What the state keeps of what was said once: the file `node.toml`, written by the daemon when it serves.
//!
//! Name, listen address and the kind of identity belong to the node, not to one start of it. Whoever gives them once, by a
//! flag, an option or a variable, need not give them again: they hold until they are given anew. A configuration file is
//! there at each start anyway; what it says beats what is kept, and is not kept.
//!
//! The file also says where the state was last mounted, so that a home that was moved is noticed; see
//! [`default_state`](super::home::default_state).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::source::{Layer, Source};
use super::table::setting;
use crate::spool::Layout;

/// The settings that belong to the node.
const KEPT: [&str; 3] = ["name", "identity", "listen"];

/// What is written above them.
const HEAD: &str = "\
# Written by meshbox: where this state was last mounted, and what `meshbox mount` was told once and keeps. Flags, variables
# and configuration files beat it.
";

/// What a state keeps.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Where it was last mounted.
    pub mountpoint: Option<PathBuf>,
    /// What it was told.
    pub(super) settings: Layer,
}

impl Kept {
    /// Reads what the state keeps; nothing if it never served.
    pub(crate) fn read(layout: &Layout) -> Result<Self, ConfigError> {
        let path = layout.node();
        let mut kept = Self {
            mountpoint: None,
            settings: Layer::new(Source::Kept(path.clone())),
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let table: toml::Table =
            text.parse()
                .map_err(|error: toml::de::Error| ConfigError::Toml {
                    path,
                    why: error.to_string(),
                })?;
        let text = |name: &str| table.get(name).and_then(toml::Value::as_str);
        let plain = text("mountpoint").map(PathBuf::from);
        kept.mountpoint = plain.or_else(|| {
            let bytes = data_encoding::BASE64.decode(text("mountpoint_b64")?.as_bytes());
            Some(OsString::from_vec(bytes.ok()?).into())
        });
        for known in KEPT.into_iter().filter_map(setting) {
            let values = match table.get(known.name) {
                Some(toml::Value::Array(values)) => values.as_slice(),
                Some(value) => std::slice::from_ref(value),
                None => &[],
            };
            for value in values.iter().filter_map(toml::Value::as_str) {
                kept.settings.push(known, value.into());
            }
        }
        Ok(kept)
    }
}

/// What is to be kept from now on: of each setting the strongest of `layers`, files aside. `mountpoint` is where the
/// state is being mounted.
pub(super) fn text(layers: &[Layer], mountpoint: Option<&Path>) -> String {
    let mut table = toml::Table::new();
    let of_text = |value: &OsStr| toml::Value::String(value.to_string_lossy().into_owned());
    if let Some(path) = mountpoint {
        let (name, value) = match path.to_str() {
            Some(text) => ("mountpoint", text.to_owned()),
            None => (
                "mountpoint_b64",
                data_encoding::BASE64.encode(path.as_os_str().as_bytes()),
            ),
        };
        table.insert(name.to_owned(), value.into());
    }
    for name in KEPT {
        let said = layers
            .iter()
            .filter(|layer| !matches!(layer.source(), Source::File(_)))
            .find_map(|layer| layer.get(name));
        let value = match said {
            None => continue,
            Some(values) if name == "listen" => {
                toml::Value::Array(values.iter().map(|value| of_text(value)).collect())
            }
            Some(values) => match values.last() {
                Some(value) => of_text(value),
                None => continue,
            },
        };
        table.insert(name.to_owned(), value);
    }
    format!("{HEAD}{table}")
}
