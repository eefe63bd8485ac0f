//! Machines on one switch: network namespaces on a bridge, without a default route.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{BIN, COMMAND, Node, Ran, run};

/// Machines on one switch. `ip netns exec` would hide the daemons' mounts, so programs enter by `nsenter`.
pub struct Lan {
    tag: String,
    pub hosts: Vec<String>,
}

/// A name for namespaces that nothing else has.
fn fresh_tag() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("mbx-disc-{}-{count}", std::process::id())
}

/// Why there can be no network namespaces here, if so.
pub fn cannot_make_networks() -> Option<String> {
    let probe = fresh_tag();
    let made = Command::new("ip").args(["netns", "add", &probe]).output();
    match made {
        Ok(made) if made.status.success() => {
            ip(&["netns", "del", &probe]);
            None
        }
        Ok(made) => Some(String::from_utf8_lossy(&made.stderr).into_owned()),
        Err(error) => Some(format!("ip: {error}")),
    }
}

#[macro_export]
macro_rules! needs_networks {
    () => {
        needs_mounts!();
        if let Some(why) = $crate::common::lan::cannot_make_networks() {
            assert!(
                std::env::var_os("MESHBOX_TESTS_MUST_MOUNT").is_none(),
                "this test must run here, but network namespaces cannot be made: {why}"
            );
            eprintln!("skipped: network namespaces cannot be made: {why}");
            return;
        }
    };
}

/// Runs `ip`, which must succeed.
#[track_caller]
pub fn ip(args: &[&str]) -> Ran {
    run(Command::new("ip").args(args), COMMAND).ok()
}

impl Lan {
    /// `hosts` machines named 0, 1, …, each with one interface `eth` that is down and has no address.
    pub fn new(hosts: usize) -> Self {
        let tag = fresh_tag();
        let names = (0..hosts).map(|n| format!("{tag}-{n}")).collect();
        let lan = Self { tag, hosts: names };
        let switch = lan.switch();
        ip(&["netns", "add", &switch]);
        let bridge = ["type", "bridge", "mcast_snooping", "0"];
        ip(&[&["-n", &switch, "link", "add", "br0"][..], &bridge].concat());
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        for (n, host) in lan.hosts.iter().enumerate() {
            ip(&["netns", "add", host]);
            ip(&["-n", host, "link", "set", "lo", "up"]);
            let port = format!("port{n}");
            let pair = ["type", "veth", "peer", "name", &port, "netns", &switch];
            ip(&[&["-n", host, "link", "add", "eth"][..], &pair].concat());
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        }
        lan
    }

    /// The same with every interface up and IPv4 addresses 10.77.0.1, 10.77.0.2, … and IPv6 ones
    pub fn with_addresses(hosts: usize) -> Self {
        let lan = Self::new(hosts);
        for host in 0..hosts {
            lan.up(host);
            lan.address(host, &format!("10.77.0.{}/24", host + 1));
            lan.address6(host);
        }
        lan
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.tag)
    }

    pub fn up(&self, host: usize) {
        ip(&["-n", &self.hosts[host], "link", "set", "eth", "up"]);
    }

    /// Gives `host` this IPv4 address and no other.
    pub fn address(&self, host: usize, addr: &str) {
        let host = &self.hosts[host];
        ip(&["-n", host, "-4", "addr", "flush", "dev", "eth"]);
        ip(&["-n", host, "addr", "add", addr, "dev", "eth"]);
    }

    /// Gives `host` an IPv6 address of a private network; without the wait for another machine that has it.
    pub fn address6(&self, host: usize) {
        let addr = format!("fd77::{}/64", host + 1);
        let host = &self.hosts[host];
        ip(&["-n", host, "addr", "add", &addr, "dev", "eth", "nodad"]);
    }

    /// `meshbox mount` on `host`, listening everywhere unless `more` says otherwise.
    pub fn mount(&self, host: usize, node: &Node, more: &[&str]) -> Ran {
        run(&mut self.mount_command(host, node, more), COMMAND).ok()
    }

    /// The command for that.
    pub fn mount_command(&self, host: usize, node: &Node, more: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MESHBOX_") {
                command.env_remove(name);
            }
        }
        command
            .arg(format!("--net=/run/netns/{}", self.hosts[host]))
            .args([BIN, "mount"])
            .arg(node.mountpoint())
            .arg("--state")
            .arg(node.state())
            .args(["--name", node.name(), "--log", "info,meshbox=debug"])
            .args(more);
        command
    }

    /// Runs `work` on a thread that lives on `host`.
    pub fn on<T: Send>(&self, host: usize, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.hosts[host]);
        let enter = || {
            let namespace = std::fs::File::open(path).unwrap();
            move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&namespace),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain([&self.switch()]) {
            let mut command = Command::new("ip");
            run(command.args(["netns", "del", name]), COMMAND);
        }
    }
}
