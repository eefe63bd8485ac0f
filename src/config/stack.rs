//! The sources laid over each other.

use std::ffi::OsString;
use std::path::PathBuf;

use super::error::ConfigError;
use super::source::{Layer, Source};
use super::value::parse_switch;
use crate::peer::AnyTicket;

/// The layers, strongest first.
pub(super) struct Stack<'a>(pub(super) &'a [Layer]);

impl Stack<'_> {
    pub(super) fn raw(&self, name: &str) -> Option<(&Source, &[OsString])> {
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
}
