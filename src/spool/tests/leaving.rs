//! Removing from the inbox: in the journal first, so that a crash in between neither loses nor brings back anything. And
//! what is said when the disk takes nothing.

use super::super::journal::Batch;
use super::*;
use crate::spool::inbox::probe::LEAVING;

/// As a kill between the note and the removal leaves it.
fn note_leaving(node: &Node, path: &str, ino: u64) {
    let mut batch = Batch::default();
    batch.insert(LEAVING, &rel(path), &ino);
    node.spool().journal.submit(batch).unwrap();
}

#[test]
fn a_removal_that_a_kill_cut_short_comes_to_its_end_and_the_file_does_not_come_back() {
    let (alder, mut birch) = pair();
    let (kept, taken) = (
        alder.drop_file("kept", b"stays"),
        alder.drop_file("taken", b"goes"),
    );
    for bundle in [kept, taken] {
        birch.fetch(&alder, bundle);
        birch.receipt();
    }
    let ino = fs::metadata(birch.inbox("taken")).unwrap().ino();
    note_leaving(&birch, "taken", ino);
    birch.stop();
    birch.start();
    assert!(!birch.inbox("taken").exists() && birch.inbox("kept").exists());
    assert_eq!(birch.spool().counts().quarantined, 0);
    let manifest = alder.manifest(taken);
    match birch.spool().offered(manifest, alder.id()).unwrap() {
        Offered::Settled(_) => {}
        other => panic!("{other:?}"),
    }
    // Of another file at that name nothing was said.
    let again = alder.drop_file("taken", b"newer");
    birch.fetch(&alder, again);
    let ino = fs::metadata(birch.inbox("taken")).unwrap().ino();
    note_leaving(&birch, "taken", ino.wrapping_add(1 << 40));
    for _ in 0..2 {
        birch.stop();
        birch.start();
        assert_eq!(fs::read(birch.inbox("taken")).unwrap(), b"newer");
    }
}

#[test]
fn a_file_that_cannot_be_removed_is_not_taken_for_removed() {
    let (alder, mut birch) = pair();
    let bundle = alder.drop_file("d/a", b"stays");
    birch.fetch(&alder, bundle);
    assert!(birch.spool().inbox_unlink(&rel("d/b")).is_err());
    assert!(birch.spool().inbox_unlink(&rel("d")).is_err());
    birch.stop();
    birch.start();
    assert_eq!(fs::read(birch.inbox("d/a")).unwrap(), b"stays");
    birch.spool().inbox_unlink(&rel("d/a")).unwrap();
}

#[test]
fn each_kind_of_failure_is_called_by_its_name_on_both_sides_until_something_is_received() {
    let node = Node::new();
    for (code, word) in [
        (libc::ENOSPC, "disk is full"),
        (libc::EDQUOT, "quota"),
        (libc::EROFS, "read-only"),
        (libc::EACCES, "may not write"),
        (libc::EIO, "Input/output error"),
    ] {
        let error = SpoolError::Io {
            action: "create",
            path: PathBuf::from("/secret/place"),
            source: std::io::Error::from_raw_os_error(code),
        };
        let said = node.spool().content.disk_failed(&error);
        assert!(said.contains(word) && !said.contains("secret"), "{said}");
        let trouble = node.spool().trouble().unwrap();
        assert!(trouble.contains("/secret/place"), "{trouble}");
        node.spool().content.disk_works();
        assert_eq!(node.spool().trouble(), None);
    }
}

#[test]
fn what_cannot_be_sealed_says_why_until_it_is_or_is_gone() {
    let node = Node::new();
    let denied = || SpoolError::Io {
        action: "link",
        path: PathBuf::from("content/ab"),
        source: std::io::Error::from_raw_os_error(libc::EPERM),
    };
    for name in ["a", "b"] {
        fs::write(node.outbox(name), b"x").unwrap();
        node.spool().seal_failed(&rel(name), &denied());
    }
    let trouble = node.spool().trouble().unwrap();
    assert!(
        trouble.contains("outbox/a cannot be sent yet") && trouble.contains("content/ab"),
        "{trouble}"
    );
    node.sealed("a");
    assert_eq!(node.spool().trouble(), None);
    node.spool().seal_failed(&rel("b"), &denied());
    assert!(node.spool().trouble().unwrap().contains("outbox/b"));
    fs::rename(node.outbox("b"), node.outbox("c")).unwrap();
    assert_eq!(node.spool().trouble(), None, "it is asked for anew");
}
