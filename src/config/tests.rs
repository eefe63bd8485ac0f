//! How the sources of settings are laid over each other.

use super::*;
use crate::peer::{GroupKey, Identity, Ticket};

fn surroundings() -> Surroundings {
    Surroundings {
        root: false,
        xdg_state_home: None,
        home: Some("/home/u".into()),
        hostname: "alder.example.org\n".into(),
        processors: 2,
    }
}

fn flags(values: &[(&'static str, &str)]) -> Layer {
    let mut layer = Layer::new(Source::Flag);
    for (name, value) in values {
        layer.push(setting(name).unwrap(), (*value).into());
    }
    layer
}

fn env(values: &[(&str, &str)]) -> Layer {
    Layer::from_env(|name| {
        values
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.into())
    })
}

fn with(flags: Layer, env: Layer, file: Option<&Path>) -> Result<Resolved, ConfigError> {
    let surroundings = surroundings();
    resolve(Inputs {
        flags,
        mount_options: Layer::new(Source::MountOption),
        env,
        config_file: file,
        mountpoint: Some(Path::new("/srv/share")),
        surroundings: &surroundings,
    })
}

fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("site.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn held(resolved: &Resolved, name: &str) -> (Option<String>, Source) {
    let held = resolved.held.iter().find(|held| held.name == name).unwrap();
    (
        held.value.as_ref().map(ToString::to_string),
        held.source.clone(),
    )
}

#[test]
fn flag_beats_option_beats_environment_beats_file_beats_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "settle = \"40ms\"\n");
    let surroundings = surroundings();
    let settle = |flag: bool, option: bool, var: bool, in_file: bool| {
        let some =
            |on: bool, value: &'static str| if on { vec![("settle", value)] } else { vec![] };
        let mut mount_options = Layer::new(Source::MountOption);
        if option {
            mount_options.push(setting("settle").unwrap(), "20ms".into());
        }
        let resolved = resolve(Inputs {
            flags: flags(&some(flag, "10ms")),
            mount_options,
            env: env(if var {
                &[("MESHBOX_SETTLE", "30ms")]
            } else {
                &[]
            }),
            config_file: in_file.then_some(path.as_path()),
            mountpoint: Some(Path::new("/srv/share")),
            surroundings: &surroundings,
        })
        .unwrap();
        (
            resolved.config.settle.as_millis(),
            held(&resolved, "settle").1,
        )
    };
    assert_eq!(settle(true, true, true, true), (10, Source::Flag));
    assert_eq!(settle(false, true, true, true), (20, Source::MountOption));
    assert_eq!(settle(false, false, true, true), (30, Source::Env));
    assert_eq!(
        settle(false, false, false, true),
        (40, Source::File(path.clone()))
    );
    assert_eq!(settle(false, false, false, false), (5, Source::Default));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let resolved = with(
        flags(&[]),
        env(&[("MESHBOX_NAME", ""), ("MESHBOX_LISTEN", "")]),
        None,
    )
    .unwrap();
    assert_eq!(resolved.config.name.as_str(), "alder");
    assert!(resolved.config.listen.is_empty());
}

#[test]
fn a_list_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(
        &dir,
        "listen = [\"10.0.0.1:1\", \"10.0.0.2:2\"]\nno_mdns = true\n",
    );
    let from_file = with(flags(&[]), env(&[]), Some(&path)).unwrap().config;
    assert_eq!(from_file.listen.len(), 2);
    assert!(!from_file.mdns);
    let over = with(
        flags(&[("listen", "[::1]:3"), ("no_mdns", "false")]),
        env(&[]),
        Some(&path),
    )
    .unwrap();
    assert_eq!(over.config.listen, ["[::1]:3".parse().unwrap()]);
    assert!(over.config.mdns);
    let var = env(&[("MESHBOX_LISTEN", "127.0.0.1:4, 127.0.0.1:5")]);
    assert_eq!(with(flags(&[]), var, None).unwrap().config.listen.len(), 2);
}

#[test]
fn the_state_is_named_after_the_whole_path_of_the_mountpoint() {
    let mut around = surroundings();
    let state = |around: &Surroundings, mountpoint| default_state(mountpoint, around);
    let share = Some(Path::new("/srv/share"));
    assert_eq!(
        state(&around, share).unwrap(),
        Path::new("/home/u/.local/state/meshbox/srv-share")
    );
    around.xdg_state_home = Some("/x".into());
    assert_eq!(
        state(&around, share).unwrap(),
        Path::new("/x/meshbox/srv-share")
    );
    around.root = true;
    assert_eq!(
        state(&around, share).unwrap(),
        Path::new("/var/lib/meshbox/srv-share")
    );
    assert!(matches!(state(&around, None), Err(ConfigError::NoState)));
    assert!(matches!(
        state(&Surroundings::default(), share),
        Err(ConfigError::NoState)
    ));
}

#[test]
fn the_states_own_file_is_read_only_without_config() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.toml"), "name = \"birch\"\n").unwrap();
    let other = file(&dir, "lifetime = \"1h\"\n");
    let state = [("state", dir.path().to_str().unwrap())];
    assert_eq!(
        with(flags(&state), env(&[]), None)
            .unwrap()
            .config
            .name
            .as_str(),
        "birch"
    );
    let named = with(flags(&state), env(&[]), Some(&other)).unwrap().config;
    assert_eq!(
        (named.name.as_str(), named.lifetime.as_secs()),
        ("alder", 3600)
    );
}

#[test]
fn paths_in_a_file_are_relative_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "state = \"here\"\n");
    assert_eq!(
        with(flags(&[]), env(&[]), Some(&path))
            .unwrap()
            .config
            .state,
        dir.path().join("here")
    );
}

#[test]
fn a_wrong_value_says_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "settle = \"soon\"\n");
    let err = with(flags(&[]), env(&[]), Some(&path))
        .unwrap_err()
        .to_string();
    assert!(err.contains("settle in") && err.contains("soon"), "{err}");
    let err = with(flags(&[("listen", "here")]), env(&[]), None)
        .unwrap_err()
        .to_string();
    assert!(err.starts_with("--listen: "), "{err}");
    let err = with(flags(&[]), env(&[("MESHBOX_NO_MDNS", "maybe")]), None)
        .unwrap_err()
        .to_string();
    assert!(err.starts_with("MESHBOX_NO_MDNS: "), "{err}");
}

#[test]
fn an_unknown_or_mistyped_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "setle = \"5ms\"",
        "[route]\npath = \"x\"",
        "listen = [[1]]",
        "config = \"x\"",
        "name =",
    ] {
        assert!(
            with(flags(&[]), env(&[]), Some(&file(&dir, text))).is_err(),
            "{text}"
        );
    }
}

/// The error names file and line, and the setting that may be meant.
#[test]
fn a_slip_in_a_name_gets_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    for (text, says) in [
        (
            "name = \"a\"\n\nsetle = \"5ms\"",
            "site.toml, line 3); did you mean `settle`?",
        ),
        (
            "[spool]\n\n# x\nmax_bites = 1",
            "site.toml, line 4); did you mean `max_bytes`?",
        ),
        ("rout = 1", "line 1); did you mean `route`?"),
        ("\"no-mdn\" = true", "did you mean `no_mdns`?"),
        ("quite_another_thing = 1", "line 1)"),
        ("name = \"a\"\nname = \"b\"", "line 2"),
        (
            "[groups]\nhq = [\"birch\"]\n[[route]]\npath = \"/\"\nto = \"@hk\"",
            "did you mean `@hq`?",
        ),
    ] {
        let err = with(flags(&[]), env(&[]), Some(&file(&dir, text))).unwrap_err();
        assert!(err.to_string().contains(says), "{text}: {err}");
    }
    let said = |name: &str, value: &str| {
        refuse_slips([(name.into(), value.into())]).map_err(|err| err.to_string())
    };
    let err = said("MESHBOX_SETLE", "1s").unwrap_err();
    assert_eq!(
        err,
        "unknown setting `MESHBOX_SETLE` (environment); did you mean `MESHBOX_SETTLE`?"
    );
    for (name, value) in [
        ("MESHBOX_SETTLE", "1s"),
        ("MESHBOX_CONFIG", "/x"),
        ("MESHBOX_SETLE", ""),
        ("MESHBOX_PORT", "tcp://10.0.0.1:1"),
        ("MESHBOX_SERVICE_HOST", "10.0.0.1"),
        ("MESHBOX_READY_FD", "1"),
        ("SETLE", "1s"),
    ] {
        assert_eq!(said(name, value), Ok(()), "{name}");
    }
}

/// Without a configuration it is to be seen what holds; with one, all of it.
#[test]
fn defaults_routes_and_groups_are_shown() {
    let shown = |resolved: &Resolved| {
        let lines: String = resolved
            .held
            .iter()
            .map(|held| format!("{held}\n"))
            .collect();
        lines
            + &resolved
                .tables
                .as_ref()
                .map_or_else(String::new, ToString::to_string)
    };
    let text = shown(&with(flags(&[("settle", "1s")]), env(&[]), None).unwrap());
    for line in [
        "settle = \"1s\"  # --settle",
        "lifetime = \"30days\"  # default",
        "# listen: all interfaces, any port",
        "# min_free: 64MiB, at most a twentieth of the disk",
        "# history: 10000",
        "# max_file_bytes: no limit",
        "# peer is not set",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let tables = "[groups]\nhq = [\"birch\"]\n[[route]]\npath = \"ops\"\nto = [\"@hq\"]\n";
    let path = file(&dir, tables);
    let held = with(flags(&[]), env(&[]), Some(&path)).unwrap();
    let text = shown(&held);
    assert!(
        text.contains(&format!("# route in {}", path.display())),
        "{text}"
    );
    let again = with(flags(&[]), env(&[]), Some(&file(&dir, &text))).unwrap();
    assert_eq!(again.config.routing, held.config.routing);
    assert_eq!(again.config.routing.routes.len(), 1);
}

fn ticket() -> Ticket {
    Ticket {
        group: GroupKey::generate(),
        inviter: Identity::generate().id(),
        name: PeerName::parse("birch").unwrap(),
        addrs: vec!["127.0.0.1:9".parse().unwrap()],
        charter: None,
        generation: 0,
    }
}

#[test]
fn a_ticket_comes_typed_or_from_a_file_and_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (typed, filed) = (ticket(), ticket());
    let path = dir.path().join("ticket");
    std::fs::write(&path, format!("{filed}\n")).unwrap();
    let (line, path) = (typed.to_string(), path.to_str().unwrap());
    let resolved = with(
        flags(&[("join", &line)]),
        env(&[("MESHBOX_JOIN_FILE", path)]),
        None,
    )
    .unwrap();
    assert_eq!(resolved.config.ticket, Some(typed));
    let shown: String = resolved
        .held
        .iter()
        .map(|held| format!("{held}\n"))
        .collect();
    assert!(
        shown.contains("join = \"…\"") && !shown.contains(&line),
        "{shown}"
    );
    assert_eq!(
        with(flags(&[("join_file", path)]), env(&[]), None)
            .unwrap()
            .config
            .ticket,
        Some(filed)
    );
    assert!(
        with(
            flags(&[("join", &line), ("join_file", path)]),
            env(&[]),
            None
        )
        .is_err()
    );
    let err = with(flags(&[("join", "secret-gone-wrong")]), env(&[]), None)
        .unwrap_err()
        .to_string();
    assert!(!err.contains("secret-gone-wrong"), "{err}");
}

#[test]
fn a_ticket_that_others_can_read_is_a_warning_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    std::fs::write(&path, ticket().to_string()).unwrap();
    let warnings = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let typed = flags(&[("join_file", path.to_str().unwrap())]);
        with(typed, env(&[]), None).unwrap().warnings
    };
    assert_eq!(warnings(0o600), Vec::<String>::new());
    let [warning] = &warnings(0o640)[..] else {
        panic!("no warning")
    };
    let remedy = format!("run: chmod 600 {}", path.display());
    assert!(
        warning.contains("0640") && warning.ends_with(&remedy),
        "{warning}"
    );
}

#[test]
fn what_is_shown_can_be_read_back() {
    let id = Identity::generate().id();
    let peer = format!("{id}@10.0.0.9:4000");
    let first = with(
        flags(&[
            ("peer", &peer),
            ("settle", "0"),
            ("ignore", "*.bak"),
            ("listen", "127.0.0.1:0"),
            ("log", "debug"),
            ("max_bytes", "3GiB"),
            ("min_free", "7"),
            ("max_file_bytes", "1MB"),
            ("max_peer_bytes", "5GiB"),
            ("history", "500"),
            ("late_joiners", "none"),
            ("inbox_mode", "0640"),
            ("umask", "0007"),
        ]),
        env(&[("MESHBOX_ALLOW_OTHER", "1")]),
        None,
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text: String = first.held.iter().map(|held| format!("{held}\n")).collect();
    let mut again = with(flags(&[]), env(&[]), Some(&file(&dir, &text))).unwrap();
    // What a file says is not kept, and the state that it names is not the default.
    again.config.keep.clone_from(&first.config.keep);
    again.config.states.clone_from(&first.config.states);
    assert_eq!(
        format!("{:?}", again.config),
        format!("{:?}", first.config),
        "{text}"
    );
    assert_eq!(again.config.settle, Duration::ZERO);
}

#[test]
fn limits_may_stand_in_a_table_of_their_own_and_not_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "[spool]\nmax_bytes = \"10GiB\"\nmin_free = 1048576\n");
    let limits = with(flags(&[("max_file_bytes", "2GiB")]), env(&[]), Some(&path))
        .unwrap()
        .config
        .limits;
    assert_eq!(limits.max_bytes, Some(10 << 30));
    assert_eq!(limits.min_free, Some(1 << 20));
    assert_eq!(limits.max_file_bytes, Some(2 << 30));
    for (text, says) in [
        ("max_bytes = \"1G\"\n[spool]\nmax_bytes = \"2G\"\n", "twice"),
        ("[spool]\nname = \"x\"\n", "spool.name"),
        ("spool = 5\n", "spool"),
        ("history = 0\n", "whole number"),
        ("late_joiners = \"some\"\n", "current"),
        ("max_bytes = \"much\"\n", "64MiB"),
    ] {
        let err = with(flags(&[]), env(&[]), Some(&file(&dir, text))).unwrap_err();
        assert!(err.to_string().contains(says), "{text}: {err}");
    }
}

#[test]
fn only_root_gives_files_away() {
    let err = with(flags(&[("uid", "0")]), env(&[]), None).unwrap_err();
    assert!(err.to_string().contains("--uid: only root"), "{err}");
    let mut root = surroundings();
    root.root = true;
    let mut options = Layer::new(Source::MountOption);
    for (name, value) in [("uid", "1000"), ("gid", "100"), ("umask", "027")] {
        options.push(setting(name).unwrap(), value.into());
    }
    let dress = resolve(Inputs {
        flags: flags(&[("inbox_mode", "0660")]),
        mount_options: options,
        env: env(&[]),
        config_file: None,
        mountpoint: Some(Path::new("/srv/share")),
        surroundings: &root,
    })
    .unwrap()
    .config
    .dress;
    assert_eq!((dress.uid, dress.gid), (Some(1000), Some(100)));
    assert_eq!((dress.mode, dress.umask), (Some(0o660), Some(0o027)));
}

#[test]
fn every_setting_is_shown() {
    let resolved = with(flags(&[]), env(&[]), None).unwrap();
    assert_eq!(resolved.held.len(), SETTINGS.len());
    for setting in SETTINGS
        .iter()
        .filter(|setting| setting.kind == Kind::Switch)
    {
        assert_eq!(
            held(&resolved, setting.name).0.as_deref(),
            Some("false"),
            "{}",
            setting.name
        );
    }
}

#[test]
fn what_belongs_to_the_node_holds_until_it_is_given_anew() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let node = dir.path().join("node.toml");
    let mount = |more: &[(&'static str, &str)], vars: &[(&str, &str)], file: Option<&Path>| {
        let typed: Vec<_> = [("state", state)].iter().chain(more).copied().collect();
        let resolved = with(flags(&typed), env(vars), file).unwrap();
        std::fs::write(&node, &resolved.config.keep).unwrap();
        resolved
    };
    let first = [
        ("name", "birch"),
        ("listen", "127.0.0.1:7"),
        ("settle", "9ms"),
    ];
    mount(&first, &[("MESHBOX_IDENTITY", "derived")], None);
    let plain = mount(&[], &[], None);
    let (name, source) = held(&plain, "name");
    assert_eq!(
        (name.as_deref(), source),
        (Some("\"birch\""), Source::Kept(node.clone()))
    );
    assert_eq!(plain.config.listen, ["127.0.0.1:7".parse().unwrap()]);
    assert_eq!(plain.config.identity, IdentityKind::Derived);
    assert_eq!(plain.config.settle, DEFAULT_SETTLE, "that is of one start");
    let line = plain.held.iter().find(|held| held.name == "name").unwrap();
    let says = format!("kept in {}", node.display());
    assert!(line.to_string().contains(&says), "{line}");
    // A file is there at each start: it holds while it says so, and is not kept.
    let config = file(&dir, "name = \"cedar\"\n");
    assert_eq!(mount(&[], &[], Some(&config)).config.name.as_str(), "cedar");
    assert_eq!(mount(&[], &[], None).config.name.as_str(), "birch");
    mount(&[("name", "dogwood")], &[], Some(&config));
    assert_eq!(mount(&[], &[], None).config.name.as_str(), "dogwood");
    let kept = Kept::read(&Layout::new(dir.path().to_owned())).unwrap();
    assert_eq!(kept.mountpoint.as_deref(), Some(Path::new("/srv/share")));
}

#[test]
fn what_a_state_keeps_may_be_of_any_bytes_and_a_damaged_file_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().to_owned());
    for path in [&b"/srv/\xff \"x\""[..], "/srv/möwe\n".as_bytes()] {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        std::fs::write(layout.node(), kept::text(&[], Some(path))).unwrap();
        assert_eq!(
            Kept::read(&layout).unwrap().mountpoint.as_deref(),
            Some(path)
        );
    }
    std::fs::write(layout.node(), "= nonsense").unwrap();
    let said = Kept::read(&layout).unwrap_err().to_string();
    assert!(said.contains("node.toml"), "{said}");
}
