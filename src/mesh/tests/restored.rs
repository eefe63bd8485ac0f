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

fn notices(mesh: &Mesh, words: &str) -> bool {
    mesh.notices().iter().any(|notice| notice.contains(words))
}

#[test]
fn a_clone_of_the_state_is_reported_by_the_others_and_by_both_of_them() {
    let group = GroupKey::generate();
    let (mut alder, birch) = (Real::new(), Real::new());
    let b = birch.start(config("birch", &group));
    let at = MeshConfig {
        peers: vec![(birch.id(), b.listen_addrs()[0])],
        ..config("alder", &group)
    };
    let backup = alder.state().with_file_name("backup");
    alder.reopen(|state| copy(state, &backup));
    let a = alder.start(at.clone());
    eventually("connected", || connected(&a, birch.id()));
    let twin = alder.twin(&backup);
    assert_eq!(twin.spool().epoch().0, alder.spool().epoch().0);
    let t = twin.start(at);
    eventually("birch sees both", || {
        notices(&b, "alder (") && notices(&b, "runs twice")
    });
    let beside = |mesh: &Mesh, id: PeerId, words: &str| {
        let peers = mesh.peers();
        let row = peers.iter().find(|peer| peer.id == id.to_string());
        row.and_then(|row| row.error.as_ref())
            .is_some_and(|error| error.contains(words))
    };
    eventually("in peers of birch", || beside(&b, alder.id(), "runs twice"));
    for (mesh, which) in [(&a, "in peers of the one"), (&t, "and of the other")] {
        eventually(which, || {
            beside(mesh, birch.id(), "another daemon that uses a copy")
        });
    }
    for (mesh, which) in [(&a, "the one"), (&t, "the other")] {
        eventually(which, || {
            notices(mesh, "another daemon uses a copy of this state, says birch")
        });
    }
}

#[test]
fn what_an_older_copy_does_not_know_of_reaches_the_others_all_the_same() {
    let group = GroupKey::generate();
    let (mut alder, birch, cedar) = (Real::new(), Real::new(), Real::new());
    let b = birch.start(config("birch", &group));
    let to_birch = |called| MeshConfig {
        peers: vec![(birch.id(), b.listen_addrs()[0])],
        ..config(called, &group)
    };
    let a = alder.start(to_birch("alder"));
    let c = cedar.start(to_birch("cedar"));
    eventually("all are known", || {
        alder.spool().group.members().len() == 2 && birch.spool().group.members().len() == 2
    });
    c.stop();
    a.stop();
    let backup = alder.state().with_file_name("backup");
    alder.reopen(|state| copy(state, &backup));
    let a = alder.start(to_birch("alder"));
    alder.put("f", b"sealed after the backup");
    let arrived = |real: &Real| {
        let found = fs::read(real.inbox("f"));
        found.is_ok_and(|found| found == b"sealed after the backup")
    };
    eventually("birch has it", || arrived(&birch));
    a.stop();
    alder.reopen(|state| {
        fs::remove_dir_all(state).unwrap();
        copy(&backup, state);
    });
    let a = alder.start(to_birch("alder"));
    eventually("noticed", || notices(&a, "an older copy"));
    let _c = cedar.start(to_birch("cedar"));
    eventually("cedar has it", || arrived(&cedar));
    eventually("nothing waits for what alder does not know", || {
        birch.spool().custodian.custody_rows() == 0
    });
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
    assert_eq!(birch.spool().group.epoch_seen_of(alder.id()), lost);
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
    let a = start(&alder);
    let (epoch, _) = alder.spool().epoch();
    assert!(epoch > lost, "{epoch}");
    assert!(notices(&a, "an older copy (a restored backup?): birch"));
    assert_eq!(b.notices(), [""; 0], "one after the other is no clone");
    alder.put("f", b"third");
    arrives(b"third");
    eventually("seen", || {
        birch.spool().group.epoch_seen_of(alder.id()) == epoch
    });
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
    assert_eq!(alder.spool().epoch().0, 1);
}
