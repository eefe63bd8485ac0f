//! A member whose state is replaced by an older copy of itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::faults::Real;
use super::*;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn what_is_sealed_after_a_restored_backup_wins_at_the_receiver() {
    let group = GroupKey::generate();
    let (mut alder, birch) = (Real::new(), Real::new());
    let b = birch.start(config("birch", &group));
    let start = |alder: &Real| {
        let a = alder.start(MeshConfig {
            peers: vec![(birch.id(), b.listen_addrs()[0])],
            ..config("alder", &group)
        });
        eventually("connected", || connected(&a, birch.id()));
        a
    };
    let arrives = |content: &[u8]| {
        eventually("arrived", || {
            fs::read(birch.inbox("f")).is_ok_and(|found| found == content)
        });
    };
    let backup = alder.state().with_file_name("backup");

    let a = start(&alder);
    alder.put("f", b"first");
    arrives(b"first");
    a.stop();
    alder.reopen(|state| copy(state, &backup));
    let a = start(&alder);
    let (lost, _) = alder.spool().epoch();
    alder.put("f", b"second");
    arrives(b"second");
    assert_eq!(birch.spool().epoch_seen_of(alder.id()), lost);
    a.stop();

    alder.reopen(|state| {
        fs::remove_dir_all(state).unwrap();
        copy(&backup, state);
    });
    assert_eq!(
        alder.spool().epoch().0,
        lost,
        "the epoch comes a second time"
    );
    let _a = start(&alder);
    let (epoch, _) = alder.spool().epoch();
    assert!(epoch > lost, "{epoch}");
    alder.put("f", b"third");
    arrives(b"third");
    eventually("seen", || birch.spool().epoch_seen_of(alder.id()) == epoch);
}

#[test]
fn a_reconnection_raises_no_epoch() {
    let (group, (alder, a), (birch, b)) = pair();
    b.stop();
    eventually("disconnected", || !connected(&a, birch.id()));
    let invited = MeshConfig {
        ticket: Some(ticket(&alder, "alder", &a, &group)),
        ..config("birch", &group)
    };
    let _b = start(&birch, invited);
    eventually("connected", || connected(&a, birch.id()));
    assert_eq!(super::super::store::Store::epoch(&alder).0, 1);
}
