//! Peers that are honest and slow, on the real wire: they have their share, and the others theirs.

use super::forwarder::{Forwarder, Quality};
use super::*;
use crate::bundle::Priority;

/// 1 Mbit/s.
const SLOW: Quality = Quality {
    delay: Duration::from_millis(5),
    lost_ppm: 0,
    rate: 125_000,
    queue: 64 * 1024,
};

/// A member that listens where only forwarders and IPv6 reach it.
fn receiver() -> (GroupKey, Member) {
    let group = GroupKey::generate();
    let birch = Real::new();
    let listening = MeshConfig {
        listen: vec!["[::1]:0".parse().unwrap()],
        ..config("birch", &group)
    };
    let b = start(&birch, listening);
    (group, (birch, b))
}

/// One that reaches `to` over a link of that quality only.
fn behind(quality: Quality, called: &str, group: &GroupKey, to: &Member) -> (Forwarder, Member) {
    let link = Forwarder::to(to.1.listen_addrs()[0], quality, 42);
    let member = Real::new();
    let dialling = MeshConfig {
        peers: vec![(to.0.id(), link.front())],
        ..config(called, group)
    };
    let mesh = start(&member, dialling);
    let id = to.0.id();
    eventually("connected", || connected(&mesh, id));
    (link, (member, mesh))
}

fn near(called: &str, group: &GroupKey, to: &Member) -> Member {
    let member = Real::new();
    let dialling = MeshConfig {
        listen: vec!["[::1]:0".parse().unwrap()],
        peers: vec![(to.0.id(), to.1.listen_addrs()[0])],
        ..config(called, group)
    };
    let mesh = start(&member, dialling);
    let id = to.0.id();
    eventually("connected", || connected(&mesh, id));
    (member, mesh)
}

fn sending(from: &Real, bundle: BundleId, to: PeerId) {
    from.wait_delivery(bundle, to, "sending");
}

#[test]
fn three_slow_peers_with_large_files_hold_up_nobody_elses_large_file() {
    let (group, birch) = receiver();
    let to = birch.0.id();
    let large = pattern(12 << 20);
    let mut slow = Vec::new();
    for called in ["alder", "cedar", "douglas"] {
        let (link, member) = behind(SLOW, called, &group, &birch);
        for priority in [Priority::Routine, Priority::Critical] {
            let first = format!("{called}/{priority:?}/0");
            let first = member.0.send_as(&first, &large, priority, &[to]);
            for n in 1..3 {
                let path = format!("{called}/{priority:?}/{n}");
                member.0.send_as(&path, &large, priority, &[to]);
            }
            sending(&member.0, first, to);
        }
        slow.push((link, member));
    }
    let fast = near("elm", &group, &birch);
    let content = pattern(8 << 20);
    fast.0.send_as("large", &content, Priority::Routine, &[to]);
    fast.0
        .send_as("urgent", &content[..1 << 20], Priority::Critical, &[to]);
    assert!(birch.0.wait_inbox("large") == content);
    assert!(birch.0.wait_inbox("urgent") == content[..1 << 20]);
    // Each of the others takes more than a minute at the least.
    assert_eq!(
        birch.0.inbox_len(),
        2,
        "while none of the slow ones is done"
    );
}

#[test]
fn a_critical_file_overtakes_larger_critical_ones_of_the_same_slow_peer() {
    let (group, birch) = receiver();
    let to = birch.0.id();
    let quality = Quality {
        rate: 1_000_000,
        ..SLOW
    };
    let (_link, (alder, _a)) = behind(quality, "alder", &group, &birch);
    let large = pattern(16 << 20);
    for n in 0..3 {
        let path = format!("large{n}");
        let bundle = alder.send_as(&path, &large, Priority::Critical, &[to]);
        if n < 2 {
            sending(&alder, bundle, to);
        }
    }
    let came = || birch.0.bytes().1;
    let (before, small) = (came(), 1 << 20);
    alder.send_as("small", &large[..small], Priority::Critical, &[to]);
    assert!(birch.0.wait_inbox("small") == large[..small]);
    let others = came() - before - small as u64;
    assert_eq!(birch.0.inbox_len(), 1, "before all of them");
    // Two are fetched beside it, and a link is shared by what is fetched, not by what was asked for before.
    assert!(others <= 3 << 20, "{others} bytes of others meanwhile");
}
