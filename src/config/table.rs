//! The one table of settings. Flags and their help, variables, keys, `-o` options, `meshbox config` and the example
//! configuration are made from it.

/// What a value looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// One value; the last one given counts.
    Text,
    /// One path; in a file it is relative to that file.
    Path,
    /// Any number of values; in an environment variable they are separated by commas.
    List,
    /// On when given without a value.
    Switch,
}

/// What a setting is about: the headings of `meshbox mount --help` and of the example configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Topic {
    /// Who this node is, and which group it belongs to.
    Node,
    /// How members are reached.
    Network,
    /// What is sent, and for how long.
    Sending,
    /// How much of everything.
    Limits,
    /// What the mount shows to whom.
    Mount,
    /// The daemon's process.
    Process,
}

impl Topic {
    /// In the order they are shown.
    pub(crate) const ALL: [Self; 6] = [
        Self::Node,
        Self::Network,
        Self::Sending,
        Self::Limits,
        Self::Mount,
        Self::Process,
    ];

    /// The heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Node => "Node and group",
            Self::Network => "Network",
            Self::Sending => "Sending",
            Self::Limits => "Limits",
            Self::Mount => "Mount",
            Self::Process => "Process",
        }
    }
}

/// A setting: one name for the flag, the variable and the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Setting {
    /// The TOML key; with `-` for `_` the flag, in capitals after `MESHBOX_` the variable.
    pub name: &'static str,
    /// What its values look like.
    pub kind: Kind,
    /// What it is about.
    pub topic: Topic,
    /// What help calls a value.
    pub value: &'static str,
    /// One line of help, without a full stop.
    pub help: &'static str,
    /// More of it, in sentences, for the example configuration.
    pub more: &'static str,
    /// What holds when nobody says anything, in words or as a value.
    pub default: &'static str,
    /// What the example configuration has after the `=`.
    pub example: &'static str,
    /// Whether a running daemon takes it over at SIGHUP.
    pub live: bool,
}

impl Setting {
    const fn new(
        name: &'static str,
        kind: Kind,
        topic: Topic,
        value: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            topic,
            value,
            help,
            more: "",
            default: "",
            example: "",
            live: false,
        }
    }

    const fn more(mut self, more: &'static str) -> Self {
        self.more = more;
        self
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn example(mut self, example: &'static str) -> Self {
        self.example = example;
        self
    }

    const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    /// The help with the default after it.
    pub(crate) fn help_line(&self) -> String {
        let repeated = match self.kind {
            Kind::List => " (repeatable)",
            Kind::Text | Kind::Path | Kind::Switch => "",
        };
        if self.default.is_empty() {
            format!("{}{repeated}", self.help)
        } else {
            format!("{}{repeated} [default: {}]", self.help, self.default)
        }
    }
}

const fn text(
    name: &'static str,
    topic: Topic,
    value: &'static str,
    help: &'static str,
) -> Setting {
    Setting::new(name, Kind::Text, topic, value, help)
}

const fn path(
    name: &'static str,
    topic: Topic,
    value: &'static str,
    help: &'static str,
) -> Setting {
    Setting::new(name, Kind::Path, topic, value, help)
}

const fn list(
    name: &'static str,
    topic: Topic,
    value: &'static str,
    help: &'static str,
) -> Setting {
    Setting::new(name, Kind::List, topic, value, help).example("[]")
}

const fn switch(name: &'static str, topic: Topic, help: &'static str) -> Setting {
    Setting::new(name, Kind::Switch, topic, "BOOL", help).example("false")
}

/// All settings, in the order `meshbox config` shows them; those of one topic stand together.
pub(crate) const SETTINGS: &[Setting] = &[
    path("state", Topic::Node, "DIR", "Keep keys, journal and all files in this directory")
        .more("Never inside the mountpoint. NAME is the mountpoint's path as `systemd-escape --path` writes it.")
        .default("/var/lib/meshbox/NAME for root, else $XDG_STATE_HOME/meshbox/NAME")
        .example("\"/var/lib/meshbox/srv-share\""),
    text("name", Topic::Node, "NAME", "What the others see as the origin of files")
        .more("Once given it is kept in the state.")
        .default("the machine's name")
        .example("\"alder\""),
    text("join", Topic::Node, "TICKET", "Join the group of this ticket")
        .more("A ticket is a secret; `join_file` keeps it out of this file.")
        .example("\"meshbox1…\""),
    path("join_file", Topic::Node, "FILE", "Join the group of the ticket in this file")
        .more("Only its owner should be able to read it. Needed once.")
        .example("\"/etc/meshbox/ticket\""),
    switch(
        "new",
        Topic::Node,
        "Found a group though the state of a mailbox that was moved seems to be meant",
    ),
    text("identity", Topic::Node, "KIND", "Where the key pair comes from at the first start: own, derived")
        .more(
            "`own` is random. `derived` is made from the group key and the name, so every member can compute it. Once \
             given it is kept in the state.",
        )
        .default("own")
        .example("\"own\""),
    text("members", Topic::Node, "WHO", "Who may be a member: open, listed")
        .more(
            "`open`: whoever has the group key. `listed`: only those below, the admin, and nodes that the admin's \
             tickets with --expires or --once let in.",
        )
        .default("open")
        .example("\"open\""),
    list("member", Topic::Node, "ID", "With members=listed: the id of a member"),
    list("listen", Topic::Network, "ADDR:PORT", "Listen on this UDP address")
        .more("Port 0 picks a free one, another one at each start. Once given it is kept in the state.")
        .default("all interfaces, any port")
        .example("[\"0.0.0.0:4711\", \"[::]:4711\"]"),
    list("peer", Topic::Network, "ID@ADDR:PORT", "Always dial this member")
        .more("Besides those found by ticket, by other members and on the local network."),
    switch(
        "no_mdns",
        Topic::Network,
        "Do not announce this node on the local network, nor look for members there",
    ),
    text("congestion", Topic::Network, "NAME", "Congestion control: auto, cubic, bbr3")
        .more("`cubic` suits wired links, `bbr3` lossy or long ones; `auto` starts with one and changes to the other.")
        .default("auto")
        .example("\"auto\""),
    list("relay", Topic::Network, "URL", "Reach members through this relay where there is no direct way")
        .more("A relay of your own, the same at all members.")
        .example("[\"http://10.0.0.1:3340\"]"),
    text("settle", Topic::Sending, "DURATION", "Send a file this long after its last writer closed it")
        .more("A file that is removed before is not sent.")
        .default("5ms")
        .example("\"5ms\"")
    .live(),
    text("lifetime", Topic::Sending, "DURATION", "Try this long to deliver a file")
        .default("30days")
        .example("\"30days\"")
    .live(),
    text("late_joiners", Topic::Sending, "WHAT", "What members get that join later: current, none")
        .more("`current` is what is still shown, `none` only what is sent from then on.")
        .default("current")
        .example("\"current\"")
    .live(),
    list("ignore", Topic::Sending, "PATTERN", "Do not send names that match, besides the usual temporary ones")
        .example("[\"*.bak\"]"),
    list("ignore_except", Topic::Sending, "PATTERN", "Send names although this usual pattern matches them"),
    text("max_bytes", Topic::Limits, "SIZE", "Keep at most so many bytes that no name shows")
        .more(
            "These are files that were removed or changed while somebody waits for them, arriving and quarantined ones. \
             When that is full, removing an undelivered file fails with \"Disk quota exceeded\".",
        )
        .default("no limit but min_free")
        .example("\"10GiB\"")
    .live(),
    text("min_free", Topic::Limits, "SIZE", "Leave so much of the disk free")
        .more("Writes then fail with \"No space left on device\", and what arrives is put off.")
        .default("64MiB, at most a twentieth of the disk")
        .example("\"64MiB\"")
    .live(),
    text("max_file_bytes", Topic::Limits, "SIZE", "Take no larger file, neither from programs nor from members")
        .default("no limit")
        .example("\"100GiB\"")
    .live(),
    text("max_peer_bytes", Topic::Limits, "SIZE", "Take no more from a member that has so much in the inbox")
        .more("What is on its way counts too. The rest is put off, and both sides say so.")
        .default("no limit")
        .example("\"50GiB\"")
    .live(),
    text("history", Topic::Limits, "COUNT", "Show so many finished bundles of each direction in status")
        .default("10000")
        .example("10000")
    .live(),
    text("max_bundle_files", Topic::Limits, "N", "Send and take no bundle of more files and directories")
        .default("no limit")
        .example("100000")
    .live(),
    text("max_bundle_bytes", Topic::Limits, "SIZE", "Send and take no bundle of more bytes")
        .default("no limit")
        .example("\"100GiB\"")
    .live(),
    text("max_recipients", Topic::Limits, "N", "Send and take no bundle that names more recipients")
        .default("1024")
        .example("1024")
    .live(),
    switch("allow_other", Topic::Mount, "Let other users use the mount")
        .more("A plain user also needs `user_allow_other` in /etc/fuse.conf."),
    text("inbox_mode", Topic::Mount, "MODE", "Give files in the inbox these permission bits")
        .more("The executable bit is added where it travels.")
        .default("0644")
        .example("\"0644\""),
    text("uid", Topic::Mount, "UID", "Let the inbox and the top directories belong to this user (root only)")
        .default("who mounts")
        .example("1000"),
    text("gid", Topic::Mount, "GID", "Let the inbox and the top directories belong to this group (root only)")
        .default("who mounts")
        .example("1000"),
    text("umask", Topic::Mount, "MASK", "Take these permission bits off in the inbox and the top directories")
        .default("none")
        .example("\"0022\""),
    switch("foreground", Topic::Process, "Stay in the foreground and log to standard error"),
    text("log", Topic::Process, "LEVEL", "Log from this level on: error, warn, info, debug, trace")
        .more("Also per module, as RUST_LOG does: \"info,meshbox::mesh=debug\".")
        .default("info")
        .example("\"info\"")
    .live(),
];

/// The setting of this name, with dashes or underscores.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    let name = name.replace('-', "_");
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The names of all settings.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.name)
}
