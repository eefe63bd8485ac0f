//! What the documents say of the command line and of settings: every command, flag, key and request in them is one of
//! the program.

use std::collections::BTreeSet;
use std::path::Path;

use clap::{CommandFactory, Parser};

use super::Cli;
use crate::config::{Inputs, Layer, SETTINGS, Source, Surroundings, resolve, setting};
use crate::control::{Reply, Request};

/// Flags in the documents that belong to other programs.
const OTHERS: [&str; 15] = [
    "cap-add",
    "device",
    "example",
    "flag", // stands for any
    "locked",
    "mount",
    "net",
    "now",
    "only-values",
    "path",
    "privileged",
    "release",
    "restart",
    "user",
    "no-install-recommends",
];

/// Variables in the documents that are no settings.
const VARIABLES: [&str; 3] = ["MESHBOX_FLAG", "MESHBOX_CONFIG", "MESHBOX_STATE"];

/// A document: where it is, and its text.
struct Document {
    name: String,
    text: String,
}

/// All that users read.
fn documents() -> Vec<Document> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md")];
    for dir in ["", "doc", "systemd", "systemd/user", "container"] {
        let dir = format!("packaging/{dir}");
        let entries = std::fs::read_dir(root.join(dir)).unwrap();
        found.extend(entries.map(|entry| entry.unwrap().path()));
    }
    let mut documents: Vec<Document> = found
        .into_iter()
        .filter(|path| path.is_file() && path.extension().is_some_and(|end| end != "rs"))
        .filter_map(|path| {
            Some(Document {
                name: path.strip_prefix(root).unwrap().display().to_string(),
                text: std::fs::read_to_string(path).ok()?,
            })
        })
        .collect();
    documents.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(documents.len() > 8, "the documents are where they were");
    documents
}

impl Document {
    fn is_markdown(&self) -> bool {
        self.name.ends_with(".md")
    }

    /// The fenced blocks of a language.
    fn blocks(&self, language: &str) -> Vec<&str> {
        let begin = format!("```{language}\n");
        let parts = self.text.split(&begin).skip(1);
        parts
            .map(|part| part.split("\n```").next().unwrap())
            .collect()
    }

    /// What stands in backticks outside of blocks.
    fn spans(&self) -> Vec<String> {
        let prose = self.text.split("\n```").step_by(2);
        prose
            .flat_map(|text| text.split('`').skip(1).step_by(2))
            .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// Command lines that can be typed as they stand.
    fn typed(&self) -> Vec<Vec<String>> {
        let blocks = self.blocks("console");
        let lines = blocks.iter().flat_map(|block| block.lines());
        lines
            .filter_map(|line| {
                let (prompt, rest) = line.split_once(['$', '#'])?;
                let is_host = prompt.bytes().all(|b| b.is_ascii_alphanumeric());
                is_host.then(|| rest.strip_prefix(' ')).flatten()
            })
            .flat_map(calls)
            .collect()
    }

    /// Command lines that may be cut short or have places to fill in.
    fn mentioned(&self) -> Vec<Vec<String>> {
        if self.is_markdown() {
            let spans = self.spans();
            return spans.iter().flat_map(|span| calls(span)).collect();
        }
        let lines = self.text.lines().filter(|line| line.contains("meshbox "));
        lines.flat_map(calls).collect()
    }
}

/// The calls of `meshbox` in a line of shell, each without the program's name.
fn calls(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" #").next().unwrap();
    let simple = line.split(['|', ';', '&', '(', ')', '>', '<']);
    simple
        .filter_map(|simple| {
            let words: Vec<&str> = simple.split_whitespace().collect();
            let at = words.iter().position(|word| {
                *word == "meshbox"
                    || word.ends_with("=/usr/bin/meshbox")
                    || word.ends_with("=-/usr/bin/meshbox")
            })?;
            let before = &words[..at];
            let is_call = before
                .iter()
                .all(|word| *word == "sudo" || word.ends_with('='));
            let words = words[at + 1..].iter().map(|word| (*word).to_owned());
            is_call.then(|| words.collect())
        })
        .collect()
}

/// The long flag that a word of a document names.
fn flag(word: &str) -> Option<&str> {
    let name = word.trim_start_matches('[').strip_prefix("--")?;
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    Some(&name[..end.unwrap_or(name.len())]).filter(|name| !name.is_empty())
}

fn flags_of(command: &clap::Command) -> BTreeSet<String> {
    let long = command.get_arguments().filter_map(|arg| arg.get_long());
    long.chain(["help", "version"]).map(str::to_owned).collect()
}

#[test]
fn every_command_line_in_the_documents_is_understood() {
    let mut seen = 0;
    for document in documents() {
        for words in document.typed() {
            seen += 1;
            let parsed = Cli::try_parse_from([&["meshbox".to_owned()], &words[..]].concat());
            if let Err(err) = parsed
                && err.use_stderr()
            {
                panic!("{}: meshbox {}: {err}", document.name, words.join(" "));
            }
        }
    }
    assert!(seen > 20, "the documents show the program in use: {seen}");
}

#[test]
fn every_command_and_flag_that_the_documents_mention_exists() {
    let cli = Cli::command();
    let mut all: BTreeSet<String> = flags_of(&cli);
    for command in cli.get_subcommands() {
        all.extend(flags_of(command));
    }
    for document in documents() {
        for words in document.mentioned() {
            let Some(name) = words.first().filter(|word| !word.starts_with('-')) else {
                continue;
            };
            let command = cli
                .find_subcommand(name)
                .unwrap_or_else(|| panic!("{}: there is no `meshbox {name}`", document.name));
            let flags = flags_of(command);
            for flag in words.iter().filter_map(|word| flag(word)) {
                assert!(
                    flags.contains(flag),
                    "{}: `meshbox {name}` has no --{flag}",
                    document.name
                );
            }
        }
        if !document.is_markdown() {
            continue;
        }
        for span in document.spans() {
            let words: Vec<&str> = span.split(' ').collect();
            // `send --to`: a command without the program's name.
            let own = cli.find_subcommand(words[0]).map(flags_of);
            let known = own.as_ref().unwrap_or(&all);
            for flag in words.iter().filter_map(|word| flag(word)) {
                assert!(
                    known.contains(flag) || OTHERS.contains(&flag),
                    "{}: there is no --{flag}: `{span}`",
                    document.name
                );
            }
        }
    }
}

#[test]
fn every_variable_in_the_documents_exists() {
    for document in documents() {
        for part in document.text.split("MESHBOX_").skip(1) {
            let end = part.find(|c: char| !c.is_ascii_uppercase() && c != '_');
            let name = &part[..end.unwrap_or(part.len())];
            let known = VARIABLES.contains(&format!("MESHBOX_{name}").as_str());
            assert!(
                known || setting(&name.to_ascii_lowercase()).is_some(),
                "{}: there is no MESHBOX_{name}",
                document.name
            );
        }
    }
}

/// `min_fre`, or `late_joinerz = "none"`, would send a reader into an error.
#[test]
fn every_setting_that_the_documents_mention_exists() {
    let mut seen = 0;
    for document in documents().iter().filter(|document| document.is_markdown()) {
        // That one is about JSON, and the next test is about it.
        if document.name.ends_with("control-socket.md") {
            continue;
        }
        for span in document.spans() {
            let is_snake = |word: &str| {
                word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            };
            let key = span.split_once(" = ").map(|(key, _)| key);
            let Some(name) = key.or_else(|| is_snake(&span).then_some(span.as_str())) else {
                continue;
            };
            seen += 1;
            // Counters of Prometheus.
            let is_metric = name.starts_with("meshbox_");
            assert!(
                is_metric || setting(name).is_some(),
                "{}: there is no setting {name}: `{span}`",
                document.name
            );
        }
    }
    assert!(seen > 20, "the documents mention settings: {seen}");
}

#[test]
fn every_request_and_reply_in_the_documents_is_one() {
    let documents = documents();
    let socket = documents
        .iter()
        .find(|document| document.name.ends_with("control-socket.md"))
        .unwrap();
    let blocks = socket.blocks("text");
    let mut seen = 0;
    for line in blocks.iter().flat_map(|block| block.lines()) {
        let (mark, json) = line.split_at(2);
        let error = match mark {
            "> " => serde_json::from_str::<Request>(json).err(),
            "< " => serde_json::from_str::<Reply>(json).err(),
            _ => panic!("neither a request nor a reply: {line}"),
        };
        assert!(error.is_none(), "{line}: {}", error.unwrap());
        seen += 1;
    }
    assert!(seen > 15, "the document shows the requests: {seen}");
}

#[test]
fn the_guide_explains_every_setting_and_nothing_else() {
    let documents = documents();
    let guide = documents
        .iter()
        .find(|document| document.name == "packaging/doc/guide.md");
    let table = guide
        .unwrap()
        .text
        .split("| setting | default |")
        .nth(1)
        .unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let explained: BTreeSet<&str> = rows
        .map(|row| row.split('|').nth(1).unwrap())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|name| !name.starts_with('['))
        .collect();
    let settings: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
    assert_eq!(explained, settings);
}

#[test]
fn every_configuration_in_the_documents_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for document in documents() {
        for block in document.blocks("toml") {
            seen += 1;
            let file = dir.path().join("x.toml");
            std::fs::write(&file, block).unwrap();
            let surroundings = Surroundings {
                root: false,
                xdg_state_home: None,
                home: Some("/home/u".into()),
                hostname: "alder".into(),
                processors: 2,
            };
            let resolved = resolve(Inputs {
                flags: Layer::new(Source::Flag),
                mount_options: Layer::new(Source::MountOption),
                env: Layer::new(Source::Env),
                config_file: Some(&file),
                mountpoint: Some(Path::new("/srv/share")),
                surroundings: &surroundings,
            });
            if let Err(err) = resolved {
                panic!("{}: {err}\n{block}", document.name);
            }
        }
    }
    assert!(seen > 0);
}

#[test]
fn calls_are_found_in_shell() {
    let found = |line| -> Vec<String> { calls(line).iter().map(|words| words.join(" ")).collect() };
    assert_eq!(found("(umask 077; meshbox ticket > ticket)"), ["ticket"]);
    assert_eq!(
        found("meshbox wait a --timeout 2s; echo $?"),
        ["wait a --timeout 2s"]
    );
    assert_eq!(found("sudo meshbox id # it"), ["id"]);
    assert_eq!(found("ExecStart=/usr/bin/meshbox mount %f"), ["mount %f"]);
    assert_eq!(found("rm -r meshbox"), Vec::<String>::new());
    assert_eq!(flag("[--to"), Some("to"));
    assert_eq!(flag("--listen=x"), Some("listen"));
}
