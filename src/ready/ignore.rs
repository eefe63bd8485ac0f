//! The ignore list: names that programs give to files which are not meant to be seen.
//!
//! A pattern is matched against the name of a file, as bytes; some, and all that users add, also against the names of the
//! directories above it. `*` is any run of bytes, `?` any one byte, `[a-z]` one of a set, `[!a-z]` one not in it, and `\`
//! takes the next byte as it is.
//!
//! # What is in the default list
//! What programs really leave, as narrow as that can be said; a pattern counts for directories only where a program makes
//! such directories. An ordinary name that is not sent is worse than one file too many. `*.lock` is not in it: `Cargo.lock`
//! and its kind are content. Vim's probe (`4913`) is not in it: it is empty, and gone before it would be sent.

use thiserror::Error;

use crate::bundle::RelPath;

/// A pattern of the default list.
struct Known {
    text: &'static str,
    /// What has such names, in the plural.
    what: &'static str,
    directories: bool,
}

const fn files(text: &'static str, what: &'static str) -> Known {
    Known {
        text,
        what,
        directories: false,
    }
}

const fn both(text: &'static str, what: &'static str) -> Known {
    Known {
        text,
        what,
        directories: true,
    }
}

const DATABASE: &str = "journals of SQLite";
const DOWNLOAD: &str = "unfinished downloads";

/// Ignored unless taken off by configuration. The first that matches is shown, so the special ones of the dotfiles count
/// where `.*` is taken off.
const DEFAULT: &[Known] = &[
    both(".*", "dotfiles"),
    files(".*.sw?", "swap files of Vim"),
    files(".*.kate-swp", "swap files of Kate"),
    files(".#*", "locks of Emacs"),
    files(".~lock.*#", "locks of LibreOffice"),
    files("#*#", "auto-saves of Emacs"),
    files("*~", "backups of editors"),
    files("~$*", "locks of Microsoft Office"),
    // RocksDB makes a checkpoint as such a directory.
    both("*.tmp", "temporary files"),
    files("*.part", DOWNLOAD),
    files("*.partial", DOWNLOAD),
    files("*.filepart", DOWNLOAD),
    files("*.crdownload", DOWNLOAD),
    files("*.wkdownload", DOWNLOAD),
    files("*.db-journal", DATABASE),
    files("*.db-wal", DATABASE),
    files("*.db-shm", DATABASE),
    files("*.sqlite-journal", DATABASE),
    files("*.sqlite-wal", DATABASE),
    files("*.sqlite-shm", DATABASE),
    files("*.sqlite3-journal", DATABASE),
    files("*.sqlite3-wal", DATABASE),
    files("*.sqlite3-shm", DATABASE),
    files("Thumbs.db", "leftovers of Windows"),
    files("desktop.ini", "leftovers of Windows"),
];

/// Where `meshbox send` puts what it sends: never sent by itself, whatever is taken off the list.
const STAGE: Known = both(".meshbox-send-*", "files that are just being sent");

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("ignore pattern {pattern:?}: {reason}")]
pub(crate) struct BadPattern {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Patterns of names that are not sent.
#[derive(Clone, Debug)]
pub(crate) struct IgnoreList(Vec<Pattern>);

impl IgnoreList {
    /// The built-in patterns and `extra`, without those whose text is in `except`.
    pub(crate) fn new(extra: &[String], except: &[String]) -> Result<Self, BadPattern> {
        let known = |text: &str| {
            let default = DEFAULT.iter().any(|known| known.text == text);
            default || extra.iter().any(|extra| extra == text)
        };
        if let Some(unknown) = except.iter().find(|text| !known(text)) {
            return Err(BadPattern {
                pattern: unknown.clone(),
                reason: "is not in the list, so it cannot be taken off",
            });
        }
        let stays = |text: &str| !except.iter().any(|except| except == text);
        let mut patterns = Vec::new();
        for default in DEFAULT.iter().filter(|default| stays(default.text)) {
            patterns.push(Pattern::of(default)?);
        }
        for text in extra.iter().filter(|text| stays(text)) {
            patterns.push(Pattern::parse(text)?);
        }
        patterns.push(Pattern::of(&STAGE)?);
        Ok(Self(patterns))
    }

    /// The pattern for which the file at `path`, or what else is no directory, is not sent.
    pub(crate) fn matches(&self, path: &RelPath) -> Option<&str> {
        let above = path.parent();
        let above = above.and_then(|above| self.of_directory(&above));
        let pattern = above.or_else(|| self.of_file(path.file_name()));
        pattern.map(|pattern| pattern.text.as_str())
    }

    /// The pattern for which nothing below the directory at `path` is sent.
    pub(crate) fn matches_directory(&self, path: &RelPath) -> Option<&str> {
        self.of_directory(path).map(|pattern| pattern.text.as_str())
    }

    /// What has names like `pattern`, in the plural; `None` for one that was added.
    pub(crate) fn what(&self, pattern: &str) -> Option<&'static str> {
        let found = self.0.iter().find(|known| known.text == pattern);
        found.and_then(|found| found.what)
    }

    /// Whether a directory is one of `meshbox send`, by its name.
    pub(crate) fn is_stage(name: &[u8]) -> bool {
        STAGE
            .text
            .strip_suffix('*')
            .is_some_and(|begin| name.starts_with(begin.as_bytes()))
    }

    fn of_directory(&self, path: &RelPath) -> Option<&Pattern> {
        let named = |name: &[u8]| {
            let mut patterns = self.0.iter().filter(|pattern| pattern.directories);
            patterns.find(|pattern| pattern.matches(name))
        };
        path.components().find_map(named)
    }

    fn of_file(&self, name: &[u8]) -> Option<&Pattern> {
        self.0.iter().find(|pattern| pattern.matches(name))
    }
}

impl Default for IgnoreList {
    fn default() -> Self {
        let patterns = DEFAULT.iter().chain([&STAGE]);
        Self(patterns.filter_map(|of| Pattern::of(of).ok()).collect())
    }
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    what: Option<&'static str>,
    /// Whether it counts for directories too.
    directories: bool,
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
    fn of(known: &Known) -> Result<Self, BadPattern> {
        Ok(Self {
            what: Some(known.what),
            directories: known.directories,
            ..Self::parse(known.text)?
        })
    }

    /// One that a user gave.
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
            what: None,
            directories: true,
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
    fn default_list_knows_what_programs_leave_and_spares_content() {
        let list = IgnoreList::default();
        let cases = [
            (".f.a1B2c3", Some(".*")),
            ("a/.git/objects/x", Some(".*")),
            (".Trash-1000/files/x", Some(".*")),
            (".~lock.x.odt#", Some(".*")),
            ("dir/f~", Some("*~")),
            ("~", Some("*~")),
            ("~$report.docx", Some("~$*")),
            ("~WRD0001.tmp", Some("*.tmp")),
            ("checkpoint.tmp/000042.sst", Some("*.tmp")),
            ("x.crdownload", Some("*.crdownload")),
            ("x.tar.part", Some("*.part")),
            ("a.db-journal", Some("*.db-journal")),
            ("d/places.sqlite-wal", Some("*.sqlite-wal")),
            ("#notes#", Some("#*#")),
            ("Thumbs.db", Some("Thumbs.db")),
        ];
        for (name, want) in cases {
            assert_eq!(list.matches(&path(name)), want, "{name}");
        }
        for name in [
            "Cargo.lock",
            "partial",
            "#notes",
            "a.b/c.d",
            // Vim's probe has such a name, and so has the house at number 4913.
            "4913",
            "4913/bill.pdf",
            "travel-journal",
            "lab-journal/2026-11-30",
            "my.journal",
            "2026.11-journal",
            "wal-mart-wal",
            "x.download/x.pdf",
            "x.download",
            "#1#/a",
            "a~/b",
            "~$money/b",
            "novel.part/chapter",
            "shop.db-journal/x",
            "desktop.ini/x",
            "x.swp",
        ] {
            assert_eq!(list.matches(&path(name)), None, "{name}");
        }
        assert_eq!(list.matches_directory(&path("a/.git")), Some(".*"));
        assert_eq!(list.matches_directory(&path("#1#")), None);
        let all = IgnoreList::new(&[], &[]).unwrap();
        assert_eq!(all.0.len(), DEFAULT.len() + 1);
        assert_eq!(list.0.len(), all.0.len(), "every default pattern parses");
    }

    #[test]
    fn the_document_lists_every_pattern() {
        let semantics = include_str!("../../packaging/doc/semantics.md");
        let table = semantics.split("| not sent |").nth(1).unwrap();
        let table = table.split("\n\n").next().unwrap();
        for known in DEFAULT {
            let pattern = format!("`{}`", known.text);
            assert!(table.contains(&pattern), "{pattern}");
        }
        let listed = table.matches('`').count() / 2;
        assert_eq!(listed, DEFAULT.len(), "nothing else");
    }

    #[test]
    fn names_are_bytes() {
        let list = IgnoreList::new(&["x?y".into()], &[]).unwrap();
        let raw = |bytes: &[u8]| RelPath::parse(bytes).unwrap();
        assert_eq!(list.matches(&raw(b"x\xffy")), Some("x?y"));
        assert_eq!(list.matches(&raw(b"\xff\xfe.part")), Some("*.part"));
    }

    #[test]
    fn patterns_are_added_and_taken_off() {
        let list = IgnoreList::new(&["*.bak".into()], &[".*".into()]).unwrap();
        assert_eq!(list.matches(&path("a.bak/b")), Some("*.bak"));
        assert_eq!(list.what("*.bak"), None);
        assert_eq!(list.matches(&path(".profile")), None);
        assert_eq!(list.matches(&path(".notes.swp")), Some(".*.sw?"));
        assert_eq!(list.what("*.tmp"), Some("temporary files"));
        assert_eq!(
            IgnoreList::new(&[], &["*.nothere".into()])
                .unwrap_err()
                .pattern,
            "*.nothere"
        );
    }

    #[test]
    fn what_is_just_being_sent_is_not_sent_by_itself_whatever_is_taken_off() {
        let list = IgnoreList::new(&[], &[".*".into()]).unwrap();
        let staged = path(".meshbox-send-0123456789abcdef/0");
        assert!(list.matches(&staged).is_some());
        assert!(IgnoreList::new(&[], &[".meshbox-send-*".into()]).is_err());
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
