//! Members that know no address of each other meet through iroh's own relay server, run here.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

/// The relay server that `scripts/setup` builds.
fn program() -> Option<PathBuf> {
    // The test program lies in target/debug/deps.
    let here = std::env::current_exe().unwrap();
    let found = here
        .ancestors()
        .map(|above| above.join("tools/bin/iroh-relay"))
        .find(|at| at.exists());
    if found.is_none() && std::env::var_os("MESHBOX_TESTS_MUST_MOUNT").is_some() {
        panic!("there is no iroh-relay; run scripts/setup");
    }
    found
}

struct Relay {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Relay {
    /// On a port that is free; if somebody else takes it in between, on another one.
    fn start(program: &PathBuf) -> Self {
        loop {
            let addr = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("relay.toml");
            let text = format!("http_bind_addr = \"{addr}\"\nenable_metrics = false\n");
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new(program)
                .arg("--dev")
                .arg("--config-path")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            eventually("the relay listens, or gave up", || {
                std::net::TcpStream::connect(addr).is_ok()
            });
            if child.try_wait().unwrap().is_none() {
                return Self {
                    child,
                    url: format!("http://{addr}"),
                    _dir: dir,
                };
            }
        }
    }
}

#[test]
fn members_without_a_way_to_each_other_meet_through_a_relay_of_their_own() {
    let Some(program) = program() else {
        return;
    };
    let relay = Relay::start(&program);
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let relayed = |called| MeshConfig {
        relays: vec![relay.url.clone()],
        ..config(called, &group)
    };
    let a = start(&alder, relayed("alder"));
    let nowhere = Ticket {
        addrs: vec![],
        ..ticket(&alder, "alder", &a, &group)
    };
    let b = start(
        &birch,
        MeshConfig {
            ticket: Some(nowhere),
            ..relayed("birch")
        },
    );
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
    alder.send("f", &pattern(300_000), &[birch.id()]);
    assert!(birch.wait_inbox("f") == pattern(300_000));
    alder.wait_delivered(birch.id());
}

#[test]
fn a_relay_that_is_no_url_is_refused_by_name() {
    let group = GroupKey::generate();
    let wrong = MeshConfig {
        relays: vec!["nonsense".into()],
        ..config("alder", &group)
    };
    let error = Real::new().bind(wrong).unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
}
