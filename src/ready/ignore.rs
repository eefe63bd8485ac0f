//! The ignore list: names that programs give to files which are not meant to be seen.
//!
//! A pattern is matched against each component of a path, as bytes. `*` is any run of bytes, `?` any one byte,
//! `[a-z]` one of a set, `[!a-z]` one not in it, and `\` takes the next byte as it is.

use thiserror::Error;

use crate::bundle::RelPath;

/// Ignored unless taken off by configuration. `*.lock` is not here: `Cargo.lock` and its kind are content.
const DEFAULT: &[&str] = &[
    ".*",
    "*~",
    "~$*",
    "~*.tmp",
    "*.tmp",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.crdownload",
    "*.download",
    "*.swp",
    "*.swx",
    "*.kate-swp",
    "*-journal",
    "*-wal",
    "*-shm",
    "4913",
    "#*#",
    "Thumbs.db",
    "desktop.ini",
];

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("ignore pattern {pattern:?}: {reason}")]
pub struct BadPattern {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Patterns of names that are not sent.
#[derive(Clone, Debug)]
pub struct IgnoreList(Vec<Pattern>);

impl IgnoreList {
    /// The built-in patterns and `extra`, without those whose text is in `except`.
    pub fn new(extra: &[String], except: &[String]) -> Result<Self, BadPattern> {
        let texts = || {
            DEFAULT
                .iter()
                .copied()
                .chain(extra.iter().map(String::as_str))
        };
        if let Some(unknown) = except.iter().find(|e| !texts().any(|t| t == e.as_str())) {
            return Err(BadPattern {
                pattern: unknown.clone(),
                reason: "is not in the list, so it cannot be taken off",
            });
        }
        texts()
            .filter(|t| !except.iter().any(|e| e == t))
            .map(Pattern::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The pattern that some component of `path` matches.
    pub fn matches(&self, path: &RelPath) -> Option<&str> {
        path.components().find_map(|name| self.matches_name(name))
    }

    /// The pattern that this single component matches.
    pub fn matches_name(&self, name: &[u8]) -> Option<&str> {
        self.0
            .iter()
            .find(|p| p.matches(name))
            .map(|p| p.text.as_str())
    }
}

impl Default for IgnoreList {
    fn default() -> Self {
        Self(
            DEFAULT
                .iter()
                .filter_map(|text| Pattern::parse(text).ok())
                .collect(),
        )
    }
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
enum Token {
    Run,
    One,
    Byte(u8),
    Set {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Token {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Token::Run | Token::One => true,
            Token::Byte(b) => *b == byte,
            Token::Set { negated, ranges } => {
                ranges.iter().any(|(lo, hi)| (*lo..=*hi).contains(&byte)) != *negated
            }
        }
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, BadPattern> {
        let bad = |reason| BadPattern {
            pattern: text.to_owned(),
            reason,
        };
        if text.is_empty() {
            return Err(bad("is empty"));
        }
        if text.contains('/') {
            return Err(bad(
                "holds a slash; a pattern is for one component of a path",
            ));
        }
        let mut tokens = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            tokens.push(match byte {
                b'*' => Token::Run,
                b'?' => Token::One,
                b'\\' => Token::Byte(bytes.next().ok_or_else(|| bad("ends with a backslash"))?),
                b'[' => parse_set(&mut bytes).ok_or_else(|| bad("has a [ that is not closed"))?,
                literal => Token::Byte(literal),
            });
        }
        Ok(Self {
            text: text.to_owned(),
            tokens,
        })
    }

    /// Goes back only to the last `*`, so the cost is at most pattern length times name length.
    fn matches(&self, name: &[u8]) -> bool {
        let (mut at, mut token) = (0, 0);
        let mut last_run = None;
        while at < name.len() {
            match self.tokens.get(token) {
                Some(Token::Run) => {
                    last_run = Some((token, at));
                    token += 1;
                }
                Some(one) if one.takes(name[at]) => {
                    at += 1;
                    token += 1;
                }
                Some(_) | None => {
                    let Some((run, from)) = last_run else {
                        return false;
                    };
                    last_run = Some((run, from + 1));
                    at = from + 1;
                    token = run + 1;
                }
            }
        }
        self.tokens[token..].iter().all(|t| matches!(t, Token::Run))
    }
}

/// What follows a `[`. A `]` that comes first is a member, as in the shell.
fn parse_set(bytes: &mut std::str::Bytes<'_>) -> Option<Token> {
    let mut next = bytes.next()?;
    let negated = matches!(next, b'!' | b'^');
    if negated {
        next = bytes.next()?;
    }
    let mut ranges = Vec::new();
    while next != b']' || ranges.is_empty() {
        let mut ahead = bytes.clone();
        let end = match (ahead.next(), ahead.next()) {
            (Some(b'-'), Some(end)) if end != b']' => {
                *bytes = ahead;
                end
            }
            (_, _) => next,
        };
        ranges.push((next, end));
        next = bytes.next()?;
    }
    Some(Token::Set { negated, ranges })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    #[test]
    fn default_list_knows_temporary_names_and_spares_content() {
        let list = IgnoreList::default();
        let cases = [
            (".f.a1B2c3", Some(".*")),
            ("a/.git/objects/x", Some(".*")),
            (".~lock.x.odt#", Some(".*")),
            ("dir/f~", Some("*~")),
            ("~$report.docx", Some("~$*")),
            ("x.crdownload", Some("*.crdownload")),
            ("x.tar.part", Some("*.part")),
            ("a.db-journal", Some("*-journal")),
            ("4913", Some("4913")),
            ("#notes#", Some("#*#")),
            ("Thumbs.db", Some("Thumbs.db")),
            ("Cargo.lock", None),
            ("partial", None),
            ("49130", None),
            ("#notes", None),
            ("a.b/c.d", None),
            ("~", Some("*~")),
        ];
        for (name, want) in cases {
            assert_eq!(list.matches(&path(name)), want, "{name}");
        }
        let all = IgnoreList::new(&[], &[]).unwrap();
        assert_eq!(all.0.len(), DEFAULT.len());
        assert_eq!(list.0.len(), DEFAULT.len(), "every default pattern parses");
    }

    #[test]
    fn names_are_bytes() {
        let list = IgnoreList::new(&["x?y".into()], &[]).unwrap();
        assert_eq!(list.matches_name(b"x\xffy"), Some("x?y"));
        assert_eq!(list.matches_name(b"\xff\xfe.part"), Some("*.part"));
    }

    #[test]
    fn patterns_are_added_and_taken_off() {
        let list = IgnoreList::new(&["*.bak".into()], &[".*".into()]).unwrap();
        assert_eq!(list.matches(&path("a.bak/b")), Some("*.bak"));
        assert_eq!(list.matches(&path(".profile")), None);
        assert_eq!(
            IgnoreList::new(&[], &["*.nothere".into()])
                .unwrap_err()
                .pattern,
            "*.nothere"
        );
    }

    #[test]
    fn glob_matches_like_the_shell() {
        let cases: [(&str, &str, bool); 15] = [
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXbcd", false),
            ("*", "", true),
            ("**", "x", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]x]", "]", true),
            ("[a-]", "-", true),
            ("[ab]*", "cab", false),
            (r"\*", "*", true),
            (r"\*", "x", false),
            ("*.o??????", "f.osDBhJm", true),
            ("*.o??????", "f.o", false),
        ];
        for (pattern, name, want) in cases {
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches(name.as_bytes()),
                want,
                "{pattern} on {name}"
            );
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for pattern in ["", "a/b", "[", "[]", "[a-", "[!", "x\\"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern:?}");
        }
    }

    #[test]
    fn many_stars_stay_cheap() {
        let name = [b'a'; 255];
        assert!(
            !Pattern::parse("*a*a*a*a*a*a*a*a*a*b")
                .unwrap()
                .matches(&name)
        );
    }
}
