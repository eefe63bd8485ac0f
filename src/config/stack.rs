//! The sources laid over each other.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::source::{Layer, Source};
use super::value::parse_switch;
use crate::peer::AnyTicket;

/// The layers, strongest first.
pub(super) struct Stack<'a> {
    layers: &'a [Layer],
    /// What is to be told, though it holds.
    warnings: RefCell<Vec<String>>,
}

impl<'a> Stack<'a> {
    /// Lays them over each other.
    pub(super) fn new(layers: &'a [Layer]) -> Self {
        Self {
            layers,
            warnings: RefCell::default(),
        }
    }

    /// The layers, strongest first.
    pub(super) fn layers(&self) -> &'a [Layer] {
        self.layers
    }

    /// What was noticed while the values were parsed.
    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner()
    }
}

/// A file with a ticket that others can read: whoever has the ticket can join.
fn readable_by_others(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let mode = metadata.permissions().mode() & 0o777;
    (metadata.is_file() && mode & 0o077 != 0).then(|| {
        let at = path.display();
        format!(
            "the ticket in {at} can be read by others (mode {mode:04o}), who could join the group; run: chmod 600 {at}"
        )
    })
}

impl Stack<'_> {
    pub(super) fn raw(&self, name: &str) -> Option<(&Source, &[OsString])> {
        self.layers
            .iter()
            .find_map(|layer| Some((layer.source(), layer.get(name)?)))
    }

    fn rank(&self, name: &str) -> usize {
        self.layers
            .iter()
            .position(|layer| layer.get(name).is_some())
            .unwrap_or(self.layers.len())
    }

    pub(super) fn path(&self, name: &str) -> Option<Result<PathBuf, ConfigError>> {
        let (source, values) = self.raw(name)?;
        let path = values.last()?;
        Some(std::path::absolute(path).map_err(|err| ConfigError::Value {
            origin: source.describe(name),
            why: format!("{}: {err}", path.display()),
        }))
    }

    pub(super) fn list<T>(
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

    pub(super) fn parsed<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        Ok(self.list(name, parse)?.pop())
    }

    pub(super) fn switch(&self, name: &str) -> Result<bool, ConfigError> {
        Ok(self.parsed(name, parse_switch)?.unwrap_or(false))
    }

    pub(super) fn ticket(&self) -> Result<Option<AnyTicket>, ConfigError> {
        let (typed, file) = (self.rank("join"), self.rank("join_file"));
        if typed == file && typed < self.layers.len() {
            let origin = self.layers[typed].source().describe("join_file");
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
        if let Some(warning) = readable_by_others(&path) {
            self.warnings.borrow_mut().push(warning);
        }
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
}
