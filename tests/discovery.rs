//! Members on one local network find each other: real daemons in network namespaces on one bridge, without a default
//! route, each with addresses that are of no use.

mod common;

use std::time::Duration;

use common::lan::Lan;
use common::{ARRIVES, Node, wait_until};
use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo, TxtProperty};

const SERVICE: &str = "_meshbox._udp.local.";

#[track_caller]
fn wait_connected(nodes: [&Node; 2]) {
    nodes[0].wait_connected(nodes[1]);
    nodes[1].wait_connected(nodes[0]);
}

/// The addresses that status shows for a peer.
fn addrs(node: &Node, peer: &Node) -> Vec<String> {
    let ran = node.run("peers", &["--json"]).ok();
    let peers: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let list = peers.as_array().unwrap();
    let row = list.iter().find(|row| row["name"] == peer.name()).unwrap();
    let addrs = row["addrs"].as_array().unwrap();
    addrs
        .iter()
        .map(|a| a.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn two_members_with_only_a_stale_ticket_find_each_other_and_again_after_both_moved() {
    needs_networks!();
    let lan = Lan::with_addresses(2);
    let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
    lan.mount(0, &alder, &["--listen", "0.0.0.0:4001"]);
    let ticket = alder.ticket();
    alder.stop();
    lan.address(0, "10.77.0.99/24");
    lan.mount(0, &alder, &["--listen", "0.0.0.0:4002"]);
    lan.mount(1, &birch, &["--join", &ticket]);
    wait_connected([&alder, &birch]);
    let sha = birch.put("hello", b"found you");
    alder.wait_arrived("hello", &sha);

    alder.kill9();
    birch.kill9();
    lan.address(1, "10.77.0.98/24");
    lan.mount(0, &alder, &["--listen", "0.0.0.0:4003"]);
    lan.mount(1, &birch, &["--listen", "0.0.0.0:4004"]);
    wait_connected([&alder, &birch]);
    let sha = alder.put("again", b"and again");
    birch.wait_arrived("again", &sha);
    let known = addrs(&birch, &alder);
    assert!(known.contains(&"10.77.0.99:4003".to_owned()), "{known:?}");
    for stale in ["10.77.0.1:4001", "10.77.0.99:4002"] {
        assert!(!known.contains(&stale.to_owned()), "{known:?}");
    }
}

#[test]
fn members_find_each_other_over_ipv6_alone_also_when_the_network_comes_later() {
    needs_networks!();
    let lan = Lan::new(2);
    let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
    lan.mount(0, &alder, &[]);
    lan.mount(1, &birch, &["--join", &alder.ticket()]);
    for host in 0..2 {
        lan.up(host);
        lan.address6(host);
    }
    wait_connected([&alder, &birch]);
    let sha = alder.put("hello", b"over IPv6");
    birch.wait_arrived("hello", &sha);
    let known = addrs(&birch, &alder);
    assert!(
        known.iter().any(|a| a.starts_with("[fd77::1]")),
        "{known:?}"
    );
}

#[test]
fn a_member_with_both_families_finds_one_with_ipv4_and_one_with_ipv6_alone() {
    needs_networks!();
    let lan = Lan::with_addresses(3);
    let node = |name| Node::prepare(name, &[]);
    let (alder, birch, cedar) = (node("alder"), node("birch"), node("cedar"));
    lan.mount(
        0,
        &alder,
        &["--listen", "0.0.0.0:4001", "--listen", "[::]:4001"],
    );
    let ticket = alder.ticket();
    alder.stop();
    lan.mount(
        0,
        &alder,
        &["--listen", "0.0.0.0:4002", "--listen", "[::]:4003"],
    );
    lan.mount(1, &birch, &["--join", &ticket, "--listen", "0.0.0.0:4001"]);
    lan.mount(2, &cedar, &["--join", &ticket, "--listen", "[::]:4001"]);
    wait_connected([&alder, &birch]);
    wait_connected([&alder, &cedar]);
}

/// What somebody on the network without the group key hears of the first service that is announced.
fn overhear() -> ResolvedService {
    let listener = ServiceDaemon::new().unwrap();
    listener
        .disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])
        .unwrap();
    let heard = listener.browse(SERVICE).unwrap();
    let end = std::time::Instant::now() + ARRIVES;
    loop {
        match heard.recv_deadline(end).expect("something is announced") {
            ServiceEvent::ServiceResolved(found) => {
                listener.shutdown().unwrap().recv().unwrap();
                return *found;
            }
            _ => continue,
        }
    }
}

/// Says what was heard again, from here, and withdraws it; then many that nobody can open.
fn spoof(heard: &ResolvedService) -> ServiceDaemon {
    let liar = ServiceDaemon::new().unwrap();
    let text: Vec<TxtProperty> = heard.get_properties().iter().cloned().collect();
    let label = heard.get_fullname().split('.').next().unwrap().to_owned();
    let say = |label: &str, host: &str, text: Vec<TxtProperty>| {
        let mut lie = ServiceInfo::new(SERVICE, label, host, "10.77.0.3", 9, text).unwrap();
        lie.set_requires_probe(false);
        let name = lie.get_fullname().to_owned();
        // Its queue is short.
        wait_until("a lie is taken", ARRIVES, || {
            liar.register(lie.clone()).is_ok()
        });
        name
    };
    let name = say(&label, heard.get_hostname(), text);
    for n in 0..200u64 {
        let garbage = vec![TxtProperty::from(("m0", common::bytes(n, 200)))];
        say(&format!("{n:032x}"), &format!("{n}.local."), garbage);
    }
    let mut withdrawn = None;
    wait_until("the withdrawal is taken", ARRIVES, || {
        withdrawn = liar.unregister(&name).ok();
        withdrawn.is_some()
    });
    let withdrawn = withdrawn.unwrap();
    withdrawn.recv_timeout(Duration::from_secs(60)).unwrap();
    liar
}

#[test]
fn an_outsider_learns_no_name_and_its_announcements_keep_no_member_from_being_found() {
    needs_networks!();
    let lan = Lan::with_addresses(3);
    let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
    lan.mount(0, &alder, &["--listen", "0.0.0.0:4001"]);
    let ticket = alder.ticket();
    alder.stop();
    lan.mount(0, &alder, &["--listen", "0.0.0.0:4002"]);
    let heard = lan.on(2, overhear);
    let seen = format!("{heard:?}").to_lowercase();
    let status = alder.status();
    for secret in ["id", "name", "group"] {
        let secret = status[secret].as_str().unwrap();
        assert!(!seen.contains(&secret.to_lowercase()), "{secret} in {seen}");
    }
    let _liar = lan.on(2, || spoof(&heard));
    lan.mount(1, &birch, &["--join", &ticket]);
    wait_connected([&alder, &birch]);
    let sha = birch.put("hello", b"in spite of all");
    alder.wait_arrived("hello", &sha);
    wait_until("outsiders are no peers", ARRIVES, || {
        alder.status()["peers"]
            .as_array()
            .is_some_and(|p| p.len() == 1)
    });
}
