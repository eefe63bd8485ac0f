//! The daemon's socket for the command line: what is asked and what is answered.
//!
//! The protocol is one line of JSON each way: a [`Request`], then a [`Reply`]; a connection may ask again. Only a wait may
//! have more than one answer: how far it is, as often as it asked for, before what it came to. The server
//! ([`Server`]) knows the daemon only as a [`ControlBackend`]; the client side is [`Client`]. `.meshbox/status.json`
//! and `status --json` are the same [`Status`].
//!
//! # Invariants
//! 1. Only the user the daemon runs as, and root, are answered: the socket is 0600 and the peer's uid is checked.
//! 2. A request has a length limit, reads and writes have a time limit, and connections are bounded: a stalled or
//!    hostile client costs one thread for a few seconds and never more memory than one request.
//! 3. `wait` looks at the state of the delivery each time something changed; a missed change costs one
//!    [`wait::LOOK_AGAIN`], never an answer.
//!
//! # Crash behaviour
//! Nothing durable but the socket's name, which the next daemon replaces; it holds the lock of the state by then.
//!
//! # Threads
//! One that accepts, one per connection; all joined when the [`Server`] is dropped.

pub(crate) mod act;
mod client;
pub(crate) mod follow;
mod path;
mod server;
pub(crate) mod wait;
mod watch;

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use self::client::Client;
pub(crate) use self::path::WirePath;
pub(crate) use self::server::Server;
use crate::bundle::RelPath;
pub(crate) use crate::spool::{
    Counts, InboundRow, Layout, OutboundRow, RecipientRow, remove_state_directory,
};
use wait::{Delivery, Target, WaitFor};

/// Longest request line. A `wait` for some thousand paths fits; a client that sends more is cut off.
pub(crate) const MAX_REQUEST: u64 = 1024 * 1024;

/// Longest reply line a client takes: a page of status with the longest paths stays far below.
pub(crate) const MAX_REPLY: u64 = 64 * 1024 * 1024;

/// Most rows of each list in one page of status.
pub(crate) const MAX_ROWS: usize = 1000;

/// Rows of each list when nobody says how many.
pub(crate) const DEFAULT_ROWS: usize = 100;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Everything that is going on.
    Status {
        /// Go on after this cursor.
        before: Option<u64>,
        /// Rows of each list.
        limit: Option<usize>,
        /// Bundles of ours that somebody still waits for come before the others.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unfinished_first: bool,
    },
    /// The same, and from then on what changes, until the client hangs up.
    Watch {
        /// Rows of each list.
        limit: Option<usize>,
    },
    /// What became of the file at a path, or of those below a directory.
    Of {
        /// Below `outbox/`, or below `inbox/`.
        path: WirePath,
        /// Which of them.
        inbox: bool,
    },
    /// Where the mount is.
    Place,
    /// Who is known.
    Peers,
    /// A ticket to this group.
    Ticket,
    /// A ticket that expires, or holds for one node only.
    Invite {
        /// For how long.
        seconds: Option<u64>,
        /// For one node only.
        once: bool,
    },
    /// Remove members from the group.
    Remove {
        /// Names or ids.
        who: Vec<String>,
        /// Do not give the others a new key.
        keep_key: bool,
    },
    /// Give all members a new key.
    Rekey,
    /// Come back when these files are delivered; without any, when all is that is on its way now.
    Wait {
        /// Files and directories below `outbox/`.
        #[serde(default)]
        paths: Vec<WirePath>,
        /// Ids of bundles as hex.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        bundles: Vec<String>,
        /// To whom.
        #[serde(rename = "for")]
        to: WaitFor,
        /// For how long at most.
        timeout_ms: Option<u64>,
        /// Answer [`Reply::Progress`] in between, at most once in this time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress_ms: Option<u64>,
    },
    /// Send a file now, whatever its state.
    Send {
        /// Below `outbox/`.
        path: WirePath,
    },
    /// Give a member up that is gone.
    Forget {
        /// Its name or id.
        who: String,
    },
    /// Leave the group for good, and end the daemon.
    Leave {
        /// Though something is still on its way, nobody can be told, or this node is the admin.
        force: bool,
    },
    /// Do something to bundles.
    Act {
        /// What.
        act: act::Act,
    },
    /// End the daemon.
    Stop,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// After the first answer to [`Request::Watch`], each time something has changed.
    News(Box<News>),
    /// To [`Request::Of`].
    Of(Of),
    /// To [`Request::Place`].
    Place {
        /// Where it was mounted; lossy text.
        mountpoint: String,
        /// The file system's device, by which the mount is found in mountinfo; absent while the daemon starts.
        device: Option<(u32, u32)>,
        /// The daemon was told to end, and gives its last users time to close their files.
        ending: bool,
    },
    /// To [`Request::Peers`].
    Peers {
        /// Each known peer.
        peers: Vec<PeerRow>,
    },
    /// To [`Request::Ticket`].
    Ticket {
        /// One line; a secret.
        ticket: String,
    },
    /// To [`Request::Remove`] and [`Request::Rekey`].
    Changed(MembershipChange),
    /// To [`Request::Forget`].
    Forgotten(Forgotten),
    /// To [`Request::Leave`].
    Left(Left),
    /// To [`Request::Wait`], any number of times before the answer.
    Progress(wait::Progress),
    /// To [`Request::Wait`].
    Waited(Waited),
    /// To [`Request::Act`].
    Acted(act::Acted),
    Done,
    /// It could not be done.
    Error {
        /// Why.
        message: String,
    },
}

/// What changed since the last answer to [`Request::Watch`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct News {
    /// Bundles of ours that are new, or stand otherwise than before.
    pub outbound: Vec<OutboundRow>,
    /// Bundles of others, the same.
    pub inbound: Vec<InboundRow>,
    /// Peers, the same.
    pub peers: Vec<PeerRow>,
    /// Counters.
    pub counts: Counts,
    /// As in [`Status`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What became of a file, or of those below a directory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Of {
    /// Why there is no bundle, or what is to be said besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Bundles of ours, newest first.
    pub outbound: Vec<OutboundRow>,
    /// Bundles of others, newest first.
    pub inbound: Vec<InboundRow>,
}

/// How the membership changed. Members are pairs of id and name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MembershipChange {
    /// Number of the group key that holds now.
    pub generation: u64,
    pub removed: Vec<(String, String)>,
    /// Who gets the new key; absent if the key stays.
    pub keyed: Option<Vec<(String, String)>>,
}

/// A member that was given up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Forgotten {
    /// Its id as hex.
    pub id: String,
    pub name: String,
    /// Bundles that it will not get any more.
    pub bundles: u64,
}

/// A node has left its group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Left {
    /// The group's public name.
    pub group: String,
    /// The state directory, which stays; lossy text.
    pub state: String,
    /// Names of the members that know it.
    pub told: Vec<String>,
    /// Names of those that were away.
    pub untold: Vec<String>,
}

/// How a wait ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Waited {
    /// In one word.
    pub outcome: wait::Outcome,
    /// Each path that was asked for, in that order, then each bundle.
    pub paths: Vec<wait::PathOutcome>,
    /// Who does not have everything yet, those first that are away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<wait::Missing>,
}

/// What `status --json` and `.meshbox/status.json` show. Other programs rely on this shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Of the program.
    pub version: String,
    /// Our id as hex.
    pub id: String,
    /// Our name.
    pub name: String,
    /// The group's public name.
    pub group: String,
    /// Where it is mounted; lossy text.
    pub mountpoint: String,
    /// Where the state is; lossy text.
    pub state: String,
    /// The daemon's process.
    pub pid: u32,
    /// Addresses really bound.
    pub listen: Vec<SocketAddr>,
    /// Every known peer.
    pub peers: Vec<PeerRow>,
    /// Bundles of ours, newest first.
    pub outbound: Vec<OutboundRow>,
    /// Bundles of others, newest first.
    pub inbound: Vec<InboundRow>,
    /// Bundles of ours that are not on this page; counted up to 10,000.
    #[serde(default)]
    pub outbound_more: u64,
    /// Bundles of others, the same.
    #[serde(default)]
    pub inbound_more: u64,
    /// Files held back because their writer was killed; at most a page of them.
    pub incomplete: Vec<WirePath>,
    /// Files that are not sent because of their names, by pattern, most first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<IgnoredRow>,
    /// There may be more of them: the outbox has more names than are looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored_more: bool,
    /// Counters.
    pub counts: Counts,
    /// What our own disk fails with at present, and copies of states that are in use; absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Files that are not sent because their names match one pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IgnoredRow {
    pub pattern: String,
    /// What has such names; absent for a pattern that was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// How many there are.
    pub count: u64,
    /// Some of them, below `outbox/`.
    pub examples: Vec<WirePath>,
}

/// One peer as `status` and `peers` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerRow {
    /// Its id as hex.
    pub id: String,
    /// Its name, empty if it never said.
    pub name: String,
    /// Whether its hello was accepted on a connection that is up.
    pub connected: bool,
    /// Bundles we owe it.
    pub pending: u64,
    /// Seconds since 1970 of the last contact; 0 if never.
    pub last_seen: u64,
    /// Addresses known.
    pub addrs: Vec<SocketAddr>,
    /// Seconds since 1970 of the last contact, if it is not connected and ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline_since: Option<u64>,
    /// Why it is not connected, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it is slowed, if it is: it sends too much of something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited: Option<String>,
    /// How often it was slowed since the start.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slowed: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A member that is not connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Away {
    /// Since when, in seconds since 1970; 0: it never was.
    pub since: u64,
    /// Why, if it is known.
    pub error: Option<String>,
}

/// The daemon, as the server sees it. Calls may block on local disk, briefly.
pub(crate) trait ControlBackend: Send + Sync + 'static {
    /// A page of status.
    fn status(&self, before: Option<u64>, limit: usize) -> Status;
    /// The first page, with bundles of ours that somebody still waits for before the others.
    fn unfinished(&self, limit: usize) -> Status {
        self.status(None, limit)
    }
    /// The answer to [`Request::Of`].
    fn of(&self, _path: &RelPath, _inbox: bool) -> Of {
        Of::default()
    }
    /// The answer to [`Request::Place`].
    fn place(&self) -> Reply {
        Reply::Error {
            message: "not available".to_owned(),
        }
    }
    /// Every known peer.
    fn peers(&self) -> Vec<PeerRow>;
    /// A ticket to this group, one line.
    fn ticket(&self) -> String;
    /// How the delivery of the file at `path` stands.
    fn delivery(&self, path: &RelPath) -> Delivery;
    /// How the delivery of a bundle of ours stands, by its id as hex.
    fn delivery_of(&self, _bundle: &str) -> Delivery {
        Delivery::Unknown
    }
    /// What is on its way and what is shown below a directory of the outbox, or all that is on its way.
    fn underway(&self, _directory: Option<&RelPath>) -> Vec<Target> {
        Vec::new()
    }
    /// Whether the group has no other member.
    fn is_alone(&self) -> bool {
        false
    }
    /// By id as hex, since when a member is not connected; `None`: it is.
    fn links(&self) -> HashMap<String, Option<Away>> {
        HashMap::new()
    }
    /// Blocks until something changed since `seen`, at most `at_most`; gives the new mark.
    fn wait_change(&self, seen: u64, at_most: Duration) -> u64;
    /// Sends a file now.
    fn send(&self, path: &RelPath) -> Result<(), String>;
    /// A ticket that expires or holds for one node only, one line.
    fn invite(&self, _lasts: Option<Duration>, _once: bool) -> Result<String, String> {
        Err("not available".to_owned())
    }
    /// Removes members.
    fn remove(&self, _who: &[String], _keep_key: bool) -> Result<MembershipChange, String> {
        Err("not available".to_owned())
    }
    /// Gives all members a new key.
    fn rekey(&self) -> Result<MembershipChange, String> {
        Err("not available".to_owned())
    }
    /// Gives a member up that is gone; by name or id.
    fn forget(&self, _who: &str) -> Result<Forgotten, String> {
        Err("not available".to_owned())
    }
    /// Leaves the group for good, tells the members, and begins to end the daemon.
    fn leave(&self, _force: bool) -> Result<Left, String> {
        Err("not available".to_owned())
    }
    /// Does something to bundles. Blocks until it is durable.
    fn act(&self, act: act::Act) -> act::Acted;
    /// Begins to end the daemon; returns at once.
    fn stop(&self);
}

/// Why the daemon could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no daemon runs on {}; start one with `meshbox mount`", .0.display())]
    NotRunning(PathBuf),
    /// The socket failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The daemon ended or is too slow.
    #[error("the daemon on {} does not answer", .0.display())]
    Silent(PathBuf),
    /// Not our protocol.
    #[error("cannot understand the daemon's answer ({0}); does it run another version?")]
    Garbled(String),
    /// The request is longer than the daemon takes.
    #[error("too much at once; ask for fewer paths")]
    TooLong,
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
}

/// Longest path that fits a socket address, without its NUL.
const SUN_PATH_MAX: usize = 107;

/// A name of the socket that fits an address: long ones go through a descriptor of their directory.
fn address_of(socket: &Path) -> std::io::Result<(Option<rustix::fd::OwnedFd>, PathBuf)> {
    use rustix::fd::AsRawFd;
    use rustix::fs::{Mode, OFlags};

    if socket.as_os_str().len() <= SUN_PATH_MAX {
        return Ok((None, socket.to_owned()));
    }
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut path = OsString::from_vec(format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes());
    path.push(std::ffi::OsStr::from_bytes(name.as_bytes()));
    Ok((Some(dir), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_has_the_shape_others_rely_on() {
        let status = Status {
            version: "0.1.0".into(),
            id: "aa".into(),
            name: "alder".into(),
            group: "0123456789".into(),
            mountpoint: "/srv/share".into(),
            state: "/var/lib/meshbox/share".into(),
            pid: 7,
            listen: vec!["127.0.0.1:4000".parse().unwrap()],
            peers: vec![PeerRow {
                id: "bb".into(),
                name: "birch".into(),
                connected: true,
                pending: 1,
                last_seen: 1_800_000_000,
                addrs: vec![],
                offline_since: None,
                error: None,
                limited: None,
                slowed: 0,
            }],
            outbound: vec![OutboundRow {
                path: "a/b.pdf".into(),
                path_b64: None,
                bundle: "cc".into(),
                sha256: "dd".into(),
                size: 4096,
                sealed_at: 0,
                state: crate::bundle::Stage::Sending,
                recipients: vec![crate::spool::RecipientRow {
                    id: "bb".into(),
                    name: "birch".into(),
                    state: crate::bundle::Stage::Sending,
                    bytes: 1024,
                    error: None,
                    gone: false,
                }],
            }],
            inbound: vec![],
            outbound_more: 0,
            inbound_more: 0,
            incomplete: vec![WirePath::Text("a/torn".into())],
            ignored: vec![IgnoredRow {
                pattern: ".*".into(),
                what: Some("dotfiles".into()),
                count: 1633,
                examples: vec![WirePath::Text("a/.gitignore".into())],
            }],
            ignored_more: false,
            trouble: None,
            counts: Counts {
                sealed: 1,
                ..Counts::default()
            },
        };
        let expected = serde_json::json!({
            "version": "0.1.0", "id": "aa", "name": "alder", "group": "0123456789",
            "mountpoint": "/srv/share", "state": "/var/lib/meshbox/share", "pid": 7,
            "listen": ["127.0.0.1:4000"],
            "peers": [{"id": "bb", "name": "birch", "connected": true, "pending": 1, "last_seen": 1_800_000_000u64,
                "addrs": []}],
            "outbound": [{"path": "a/b.pdf", "bundle": "cc", "sha256": "dd", "size": 4096, "sealed_at": 0, "state": "sending",
                "recipients": [{"id": "bb", "name": "birch", "state": "sending", "bytes": 1024, "error": null}]}],
            "inbound": [],
            "outbound_more": 0, "inbound_more": 0,
            "incomplete": ["a/torn"],
            "ignored": [{"pattern": ".*", "what": "dotfiles", "count": 1633, "examples": ["a/.gitignore"]}],
            "counts": {"outbound_pending": 0, "sealed": 1, "published": 0, "receipts": 0, "bytes_sent": 0,
                "bytes_received": 0, "incomplete": 0, "unsealed": 0, "ignored": 0, "quarantined": 0, "refused": 0,
                "held_bytes": 0, "bytes_twice": 0, "unverified": 0, "removed": 0},
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
    }

    /// Without the keys that may be left out.
    fn bare(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(map) => map
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, bare(value)))
                .collect(),
            other => other,
        }
    }

    #[test]
    fn the_document_shows_every_request_and_replies_as_they_are() {
        let document = include_str!("../packaging/doc/control-socket.md");
        let json = |line: &str| bare(serde_json::from_str(line).unwrap());
        for line in document.lines() {
            if let Some(line) = line.strip_prefix("> ") {
                let request: Request = serde_json::from_str(line).unwrap();
                let again = serde_json::to_string(&request).unwrap();
                assert_eq!(json(&again), json(line));
            }
            if let Some(line) = line.strip_prefix("< ") {
                let reply: Reply = serde_json::from_str(line).unwrap();
                let again = serde_json::to_string(&reply).unwrap();
                assert_eq!(json(&again), json(line));
            }
        }
        // Serde names all of them when it hears of another.
        let known = serde_json::from_str::<Request>(r#"{"ask":""}"#).unwrap_err();
        let known = known.to_string();
        let words: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(words.contains(&"status"), "{known}");
        for word in words.into_iter().filter(|word| !word.is_empty()) {
            let shown = format!("> {{\"ask\":\"{word}\"");
            assert!(document.contains(&shown), "{word}");
        }
    }

    #[test]
    fn any_path_goes_over_the_wire_and_a_bad_one_does_not() {
        for bytes in [b"a/b".as_slice(), "möwe".as_bytes(), b"not\xffutf8"] {
            let path = RelPath::parse(bytes).unwrap();
            let line = serde_json::to_string(&WirePath::from(&path)).unwrap();
            let back: WirePath = serde_json::from_str(&line).unwrap();
            assert_eq!(RelPath::try_from(&back), Ok(path), "{line}");
        }
        for bad in [
            "\"../x\"",
            "\"\"",
            "\"/x\"",
            "{\"path_b64\":\"!\"}",
            "{\"path_b64\":\"Li4=\"}",
        ] {
            let wire: WirePath = serde_json::from_str(bad).unwrap();
            assert!(RelPath::try_from(&wire).is_err(), "{bad}");
        }
    }
}
