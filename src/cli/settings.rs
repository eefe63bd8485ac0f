//! The settings as flags.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::config::{Layer, Source, setting};

/// The settings as typed. Text, since the same values come from files and variables; `config` gives them their types.
#[derive(Debug, Default, Args)]
pub(super) struct Settings {
    /// Read settings from this file instead of config.toml in the state directory
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the state in this directory
    #[arg(long, value_name = "DIR")]
    state: Option<OsString>,
    /// Use this name in the group instead of the machine's
    #[arg(long, value_name = "NAME")]
    name: Option<OsString>,
    /// Join the group of this ticket
    #[arg(long, value_name = "TICKET", conflicts_with = "join_file")]
    join: Option<OsString>,
    /// Join the group of the ticket in this file
    #[arg(long, value_name = "FILE")]
    join_file: Option<OsString>,
    /// Found a new group here, though another state of this name waits for a mountpoint that is gone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    new: Option<OsString>,
    /// Take the key pair at the first start from: own (random), derived (from group key and name) [default: own]
    #[arg(long, value_name = "KIND")]
    identity: Option<OsString>,
    /// Who may be a member: open (all who have the group key), listed [default: open]
    #[arg(long, value_name = "WHO")]
    members: Option<OsString>,
    /// With members=listed: this id is one (repeatable)
    #[arg(long, value_name = "ID")]
    member: Vec<OsString>,
    /// Listen on this address (repeatable); port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<OsString>,
    /// Connect to this peer, besides those that are found (repeatable)
    #[arg(long, value_name = "ID@ADDR:PORT")]
    peer: Vec<OsString>,
    /// Do not announce this node on the local network, nor look for members there
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    no_mdns: Option<OsString>,
    /// Congestion control: auto, cubic, bbr3 [default: auto]
    #[arg(long, value_name = "NAME")]
    congestion: Option<OsString>,
    /// Reach members through this relay where there is no direct way (repeatable; the same at all members)
    #[arg(long, value_name = "URL")]
    relay: Vec<OsString>,
    /// Send a file this long after its last writer closed it [default: 5ms]
    #[arg(long, value_name = "DURATION")]
    settle: Option<OsString>,
    /// Try this long to deliver a file [default: 30days]
    #[arg(long, value_name = "DURATION")]
    lifetime: Option<OsString>,
    /// What members get that join later: what is still shown (current), or none of it (none) [default: current]
    #[arg(long, value_name = "WHAT")]
    late_joiners: Option<OsString>,
    /// Stay in the foreground and log to standard error
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    foreground: Option<OsString>,
    /// Let other users use the mount
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_other: Option<OsString>,
    /// Log from this level on: error, warn, info, debug, trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log: Option<OsString>,
    /// Do not send names that match, besides the usual temporary ones (repeatable)
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<OsString>,
    /// Send names although this usual pattern matches them (repeatable)
    #[arg(long, value_name = "PATTERN")]
    ignore_except: Vec<OsString>,
    /// Keep at most so many bytes of removed files for those who wait for them, arriving ones included
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<OsString>,
    /// Leave so much of the disk free [default: 64MiB, at most a twentieth of it]
    #[arg(long, value_name = "SIZE")]
    min_free: Option<OsString>,
    /// Take no larger file, neither from programs nor from peers
    #[arg(long, value_name = "SIZE")]
    max_file_bytes: Option<OsString>,
    /// Take no more from a member while so many bytes of it are in the inbox or arrive
    #[arg(long, value_name = "SIZE")]
    max_peer_bytes: Option<OsString>,
    /// Show so many finished bundles of each direction in status; older ones are forgotten [default: 10000]
    #[arg(long, value_name = "COUNT")]
    history: Option<OsString>,
    /// Send and take no bundle of more files and directories
    #[arg(long, value_name = "N")]
    max_bundle_files: Option<OsString>,
    /// Send and take no bundle of more bytes
    #[arg(long, value_name = "SIZE")]
    max_bundle_bytes: Option<OsString>,
    /// Send and take no bundle that names more recipients [default: 1024]
    #[arg(long, value_name = "N")]
    max_recipients: Option<OsString>,
    /// Give files in the inbox these permission bits [default: 0644]
    #[arg(long, value_name = "MODE")]
    inbox_mode: Option<OsString>,
    /// Let the inbox and the three top directories belong to this user (root only)
    #[arg(long, value_name = "UID")]
    uid: Option<OsString>,
    /// Let the inbox and the three top directories belong to this group (root only)
    #[arg(long, value_name = "GID")]
    gid: Option<OsString>,
    /// Take these permission bits off in the inbox and the top directories
    #[arg(long, value_name = "MASK")]
    umask: Option<OsString>,
}

impl Settings {
    /// What was typed, as a layer, and the configuration file.
    pub(super) fn into_layer(self) -> (Layer, Option<PathBuf>) {
        let mut layer = Layer::new(Source::Flag);
        let one = |value: Option<OsString>| value.into_iter().collect::<Vec<_>>();
        let typed = [
            ("state", one(self.state)),
            ("name", one(self.name)),
            ("join", one(self.join)),
            ("join_file", one(self.join_file)),
            ("new", one(self.new)),
            ("identity", one(self.identity)),
            ("members", one(self.members)),
            ("member", self.member),
            ("listen", self.listen),
            ("peer", self.peer),
            ("no_mdns", one(self.no_mdns)),
            ("congestion", one(self.congestion)),
            ("relay", self.relay),
            ("settle", one(self.settle)),
            ("lifetime", one(self.lifetime)),
            ("late_joiners", one(self.late_joiners)),
            ("foreground", one(self.foreground)),
            ("allow_other", one(self.allow_other)),
            ("log", one(self.log)),
            ("ignore", self.ignore),
            ("ignore_except", self.ignore_except),
            ("max_bytes", one(self.max_bytes)),
            ("min_free", one(self.min_free)),
            ("max_file_bytes", one(self.max_file_bytes)),
            ("max_peer_bytes", one(self.max_peer_bytes)),
            ("history", one(self.history)),
            ("max_bundle_files", one(self.max_bundle_files)),
            ("max_bundle_bytes", one(self.max_bundle_bytes)),
            ("max_recipients", one(self.max_recipients)),
            ("inbox_mode", one(self.inbox_mode)),
            ("uid", one(self.uid)),
            ("gid", one(self.gid)),
            ("umask", one(self.umask)),
        ];
        for (name, values) in typed {
            let Some(setting) = setting(name) else {
                continue;
            };
            for value in values {
                layer.push(setting, value);
            }
        }
        (layer, self.config)
    }
}
