//! `[[route]]` and `[groups]`: tables of the configuration file, which have no flag and no variable.

use std::path::Path;

use super::error::ConfigError;
use super::source::Source;
use super::stack::Stack;
use super::value::parse_duration;
use crate::bundle::RelPath;
use crate::similar;
use crate::spool::{Route, Routing, parse_priority};

impl Stack<'_> {
    /// The tables of the strongest layer that has any.
    pub(super) fn tables(&self) -> Option<(&toml::Table, &Source)> {
        self.layers().iter().find_map(|layer| {
            let tables = layer.tables();
            (!tables.is_empty()).then(|| (tables, layer.source()))
        })
    }

    /// The routes of the strongest layer that has any, and the limits of bundles.
    pub(super) fn routing(&self) -> Result<Routing, ConfigError> {
        let mut routing = Routing::default();
        if let Some((tables, source)) = self.tables() {
            let file = match source {
                Source::File(path) => path.clone(),
                Source::Default
                | Source::Kept(_)
                | Source::Env
                | Source::MountOption
                | Source::Flag => Path::new("configuration").to_path_buf(),
            };
            routing = read(tables).map_err(|(origin, why)| ConfigError::Value {
                origin: format!("{origin} in {}", file.display()),
                why,
            })?;
        }
        let count = |text: &str| match text.parse::<usize>() {
            Ok(0) | Err(_) => Err(format!("{text:?} is not a number above 0")),
            Ok(count) => Ok(count),
        };
        routing.max_bundle_files = self.parsed("max_bundle_files", count)?;
        routing.max_bundle_bytes = self.parsed("max_bundle_bytes", super::value::parse_limit)?;
        routing.max_recipients = self.parsed("max_recipients", count)?;
        Ok(routing)
    }
}

/// What a route may say.
const ROUTE_KEYS: [&str; 4] = ["path", "to", "priority", "lifetime"];

type Wrong = (String, String);

fn words(value: &toml::Value) -> Result<Vec<String>, String> {
    let one = |value: &toml::Value| match value.as_str() {
        Some(word) if !word.is_empty() => Ok(word.to_owned()),
        Some(_) | None => Err("write names as text, as in [\"birch\", \"@hq\"]".to_owned()),
    };
    match value {
        toml::Value::Array(words) => words.iter().map(one).collect(),
        value => one(value).map(|word| vec![word]),
    }
}

fn read(tables: &toml::Table) -> Result<Routing, Wrong> {
    let mut routing = Routing::default();
    if let Some(groups) = tables.get("groups") {
        let wrong = |why: &str| ("[groups]".to_owned(), why.to_owned());
        let groups = groups
            .as_table()
            .ok_or_else(|| wrong("it is a table: [groups], then hq = [\"birch\", \"cedar\"]"))?;
        for (name, members) in groups {
            let members = words(members).map_err(|why| (format!("groups.{name}"), why))?;
            if let Some(nested) = members
                .iter()
                .find(|word| word.starts_with('@') || *word == "all")
            {
                let why = format!("{nested} is not a member; a group lists names and ids");
                return Err((format!("groups.{name}"), why));
            }
            for word in &members {
                routing
                    .check(word)
                    .map_err(|why| (format!("groups.{name}"), why.to_string()))?;
            }
            routing.groups.insert(name.clone(), members);
        }
    }
    let Some(routes) = tables.get("route") else {
        return Ok(routing);
    };
    let routes = routes.as_array().ok_or_else(|| {
        let why = "write it with double brackets: [[route]]".to_owned();
        ("route".to_owned(), why)
    })?;
    for (number, route) in routes.iter().enumerate() {
        let origin = format!("[[route]] number {}", number + 1);
        let route = one_route(route, &routing).map_err(|why| (origin.clone(), why))?;
        if routing.routes.iter().any(|other| other.path == route.path) {
            return Err((origin, "there is another route with this path".to_owned()));
        }
        routing.routes.push(route);
    }
    Ok(routing)
}

fn one_route(route: &toml::Value, routing: &Routing) -> Result<Route, String> {
    let table = route.as_table().ok_or("a route is a table")?;
    let mut read = Route {
        path: None,
        to: Vec::new(),
        priority: None,
        lifetime: None,
    };
    let mut has_path = false;
    for (key, value) in table {
        let text = || value.as_str().ok_or_else(|| format!("{key} is a text"));
        match key.as_str() {
            "path" => {
                has_path = true;
                let path = text()?.trim_matches('/');
                read.path = match path {
                    "" | "." => None,
                    path => {
                        Some(RelPath::parse(path).map_err(|err| format!("path {path:?}: {err}"))?)
                    }
                };
            }
            "to" => {
                read.to = words(value)?;
                for word in &read.to {
                    routing.check(word).map_err(|why| why.to_string())?;
                }
            }
            "priority" => {
                let text = text()?;
                let priority = parse_priority(text).ok_or_else(|| {
                    format!("{text:?} is not bulk, low, routine, priority or critical")
                })?;
                read.priority = Some(priority);
            }
            "lifetime" => read.lifetime = Some(parse_duration(text()?)?),
            other => {
                let hint = similar::hint(other, ROUTE_KEYS);
                return Err(format!(
                    "unknown key {other:?}; a route has {}{hint}",
                    ROUTE_KEYS.join(", ")
                ));
            }
        }
    }
    if has_path {
        Ok(read)
    } else {
        Err("it has no path; \"/\" is all of the outbox".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Priority;
    use std::time::Duration;

    fn parse(text: &str) -> Result<Routing, Wrong> {
        read(&text.parse().unwrap())
    }

    #[test]
    fn routes_and_groups_are_read() {
        let routing = parse(
            "[groups]\nhq = [\"birch\", \"cedar\"]\n\
             [[route]]\npath = \"/\"\npriority = \"low\"\n\
             [[route]]\npath = \"ops/now/\"\nto = [\"@hq\", \"dogwood\"]\npriority = \"critical\"\nlifetime = \"2h\"\n",
        )
        .unwrap();
        assert_eq!(routing.groups["hq"], ["birch", "cedar"]);
        let [general, ops] = &routing.routes[..] else {
            panic!("{routing:?}")
        };
        assert_eq!(
            (&general.path, general.priority),
            (&None, Some(Priority::Low))
        );
        assert_eq!(ops.path, RelPath::parse("ops/now").ok());
        assert_eq!(ops.to, ["@hq", "dogwood"]);
        assert_eq!(ops.priority, Some(Priority::Critical));
        assert_eq!(ops.lifetime, Some(Duration::from_secs(7200)));
    }

    #[test]
    fn a_mistake_in_a_route_is_named_with_its_remedy() {
        for (text, says) in [
            ("[[route]]\nto = \"birch\"", "has no path"),
            ("[[route]]\npath = \"a\"\nto = \"@hq\"", "no group @hq"),
            ("[[route]]\npath = \"a\"\nto = \"no one\"", "neither a name"),
            ("[[route]]\npath = \"../a\"", "component"),
            ("[[route]]\npath = \"a\"\npriority = \"urgent\"", "critical"),
            ("[[route]]\npath = \"a\"\nlifetime = \"5\"", "unit"),
            (
                "[[route]]\npath = \"a\"\npiority = \"low\"",
                "did you mean `priority`",
            ),
            (
                "[[route]]\npath = \"a\"\n[[route]]\npath = \"a/\"",
                "another route",
            ),
            ("[route]\npath = \"a\"", "[[route]]"),
            ("[groups]\nhq = [\"@other\"]", "@other is not a member"),
            ("groups = 1", "table"),
        ] {
            let (origin, why) = parse(text).unwrap_err();
            assert!(why.contains(says), "{text}: {origin}: {why}");
        }
    }
}
