//! Addresses that come and go under a running daemon, that are not there yet when it starts, and several of one family.

mod common;

use common::lan::{Lan, ip};
use common::{ARRIVES, COMMAND, Node, run, wait_until};

fn trouble(node: &Node) -> String {
    node.status()["trouble"].as_str().unwrap_or("").to_owned()
}

fn listens(node: &Node, addr: &str) -> bool {
    let listen = node.status()["listen"].clone();
    listen.as_array().unwrap().iter().any(|a| a == addr)
}

/// Both ways, so that neither side takes the other for gone.
fn exchange(nodes: [&Node; 2], name: &str) {
    for (from, to) in [(0, 1), (1, 0)] {
        let path = format!("{name}{from}");
        let sha = nodes[from].put(&path, name.as_bytes());
        nodes[to].wait_arrived(&path, &sha);
    }
}

#[test]
fn a_daemon_whose_address_went_away_says_so_and_is_back_when_the_address_is() {
    needs_networks!();
    for (addr, listen) in [
        ("10.77.0.1/24", "10.77.0.1:4433"),
        ("fd77::1/64", "[fd77::1]:4433"),
    ] {
        let lan = Lan::with_addresses(2);
        let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
        lan.mount(0, &alder, &["--no-mdns", "--listen", listen]);
        lan.mount(1, &birch, &["--no-mdns", "--join", &alder.ticket()]);
        exchange([&alder, &birch], "before");
        for round in 0..2 {
            let host = &lan.hosts[0];
            ip(&["-n", host, "addr", "del", addr, "dev", "eth"]);
            wait_until("it says what is missing", ARRIVES, || {
                trouble(&alder).contains(listen)
            });
            let waits = birch.put(&format!("waits{round}"), b"meanwhile");
            if round == 0 {
                ip(&["-n", host, "addr", "add", addr, "dev", "eth", "nodad"]);
            } else {
                // As a VPN is made anew: the whole interface goes and comes.
                ip(&["-n", host, "link", "set", "eth", "down"]);
                ip(&["-n", host, "link", "set", "eth", "up"]);
                ip(&["-n", host, "addr", "add", addr, "dev", "eth", "nodad"]);
            }
            alder.wait_arrived(&format!("waits{round}"), &waits);
            exchange([&alder, &birch], &format!("after{round}"));
            wait_until("no trouble is left", ARRIVES, || trouble(&alder).is_empty());
            assert!(listens(&alder, listen));
        }
    }
}

#[test]
fn a_daemon_that_listens_everywhere_survives_a_flap_of_its_link() {
    needs_networks!();
    let lan = Lan::with_addresses(2);
    let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
    lan.mount(0, &alder, &["--no-mdns"]);
    lan.mount(1, &birch, &["--no-mdns", "--join", &alder.ticket()]);
    exchange([&alder, &birch], "before");
    let host = &lan.hosts[0];
    ip(&["-n", host, "link", "set", "eth", "down"]);
    wait_until("it is noticed", ARRIVES, || {
        birch.status()["peers"][0]["connected"] == false
    });
    ip(&["-n", host, "link", "set", "eth", "up"]);
    lan.address6(0);
    exchange([&alder, &birch], "after");
}

#[test]
fn an_address_that_is_not_there_yet_is_waited_for_where_the_system_starts_us() {
    needs_networks!();
    let lan = Lan::with_addresses(2);
    let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
    let here = ["--no-mdns", "--listen", "10.77.0.1:4433"];
    lan.mount(0, &alder, &here);
    lan.mount(1, &birch, &["--no-mdns", "--join", &alder.ticket()]);
    exchange([&alder, &birch], "before");
    alder.stop();
    let host = &lan.hosts[0];
    ip(&["-n", host, "addr", "del", "10.77.0.1/24", "dev", "eth"]);
    // Known from the last start.
    lan.mount(0, &alder, &here);
    assert!(
        trouble(&alder).contains("10.77.0.1:4433"),
        "{}",
        trouble(&alder)
    );
    let sha = alder.put("early", b"before the network");
    ip(&["-n", host, "addr", "add", "10.77.0.1/24", "dev", "eth"]);
    birch.wait_arrived("early", &sha);
    wait_until("no trouble is left", ARRIVES, || trouble(&alder).is_empty());
    alder.stop();

    // Never seen: an error by hand, one to wait for under systemd.
    let cedar = Node::prepare("cedar", &[]);
    let never = ["--no-mdns", "--listen", "10.77.0.200:4433"];
    let mut by_hand = lan.mount_command(0, &cedar, &never);
    by_hand
        .env_remove("NOTIFY_SOCKET")
        .env_remove("INVOCATION_ID");
    run(&mut by_hand, COMMAND).fails_saying(&["cannot listen on 10.77.0.200:4433"]);
    let mut by_system = lan.mount_command(0, &cedar, &never);
    by_system
        .env("INVOCATION_ID", "0123456789abcdef")
        .env_remove("TERM");
    run(&mut by_system, COMMAND).ok();
    assert!(trouble(&cedar).contains("10.77.0.200:4433"));
    // What is taken is an error in any case.
    let socket = lan.on(1, || std::net::UdpSocket::bind("10.77.0.2:4433").unwrap());
    let dogwood = Node::prepare("dogwood", &[]);
    let taken = ["--no-mdns", "--listen", "10.77.0.2:4433"];
    let mut by_system = lan.mount_command(1, &dogwood, &taken);
    by_system
        .env("INVOCATION_ID", "0123456789abcdef")
        .env_remove("TERM");
    run(&mut by_system, COMMAND).fails_saying(&["cannot listen on 10.77.0.2:4433"]);
    drop(socket);
}

#[test]
fn several_addresses_of_one_family_are_listened_on() {
    needs_networks!();
    let lan = Lan::with_addresses(2);
    let host = &lan.hosts[0];
    ip(&["-n", host, "addr", "add", "10.78.0.1/24", "dev", "eth"]);
    let (alder, birch) = (Node::prepare("alder", &[]), Node::prepare("birch", &[]));
    let two = ["--listen", "10.78.0.1:4433", "--listen", "10.77.0.1:4433"];
    lan.mount(0, &alder, &[&["--no-mdns"][..], &two].concat());
    assert!(listens(&alder, "10.78.0.1:4433") && listens(&alder, "10.77.0.1:4433"));
    // Only the second can be reached from there.
    lan.mount(1, &birch, &["--no-mdns", "--join", &alder.ticket()]);
    exchange([&alder, &birch], "hello");
}
