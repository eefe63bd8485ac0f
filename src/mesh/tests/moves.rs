//! Members that are down at first, or listen elsewhere than they did, are found without mDNS.

use super::*;

/// Forgets at which port `member` listened, so that the next start takes another.
fn forget_port(member: &Real) {
    member.spool().group.remember_listen(&[]).unwrap();
}

fn addrs_of(mesh: &Mesh, peer: PeerId) -> Vec<std::net::SocketAddr> {
    let peers = mesh.peers();
    let row = peers.into_iter().find(|p| p.id == peer.to_string());
    row.unwrap().addrs
}

#[test]
fn a_static_peer_that_is_down_at_the_start_is_found_when_it_comes() {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let before = start(&birch, config("birch", &group));
    let at = before.listen_addrs()[0];
    before.stop();
    let knowing = MeshConfig {
        peers: vec![(birch.id(), at)],
        ..config("alder", &group)
    };
    let a = start(&alder, knowing);
    eventually("an attempt failed", || error_of(&a, birch.id()).is_some());
    let b = start(&birch, config("birch", &group));
    assert_eq!(b.listen_addrs(), [at], "the port of the last start");
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
}

#[test]
fn two_members_that_both_moved_find_each_other_by_the_word_of_a_third() {
    let (group, (alder, a), (birch, b)) = pair();
    let cedar = Real::new();
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("cedar", &group)
    };
    let c = start(&cedar, invited);
    eventually("all connected", || {
        connected(&b, cedar.id()) && connected(&c, birch.id()) && connected(&c, alder.id())
    });
    let old = [a.listen_addrs()[0], b.listen_addrs()[0]];
    a.stop();
    b.stop();
    // Held, so that the next starts take others.
    let _held = old.map(|addr| std::net::UdpSocket::bind(addr).ok());
    forget_port(&alder);
    forget_port(&birch);
    let a = start(&alder, config("alder", &group));
    let b = start(&birch, config("birch", &group));
    eventually("connected", || {
        connected(&a, birch.id()) && connected(&b, alder.id())
    });
    let new = [a.listen_addrs()[0], b.listen_addrs()[0]];
    assert!(new.iter().all(|addr| !old.contains(addr)));
    eventually("the old address is forgotten", || {
        addrs_of(&a, birch.id()) == [new[1]]
    });
}

#[test]
fn stale_addresses_of_a_ticket_are_forgotten_once_the_inviter_was_reached() {
    let group = GroupKey::generate();
    let (alder, birch) = (Real::new(), Real::new());
    let a = start(&alder, config("alder", &group));
    let mut ticket = ticket(&alder, "alder", &a, &group);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    ticket.addrs.insert(0, silent.local_addr().unwrap());
    let invited = MeshConfig {
        ticket: Some(ticket),
        ..config("birch", &group)
    };
    let b = start(&birch, invited);
    eventually("connected", || connected(&b, alder.id()));
    assert_eq!(addrs_of(&b, alder.id()), a.listen_addrs());
}
