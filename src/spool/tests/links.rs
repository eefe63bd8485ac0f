//! Symbolic links that users made in the outbox, below names that are not sent: the daemon follows none of them.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn s24_a_seal_does_not_go_through_a_link() {
    let alder = Node::new();
    fs::create_dir(alder.outbox("d")).unwrap();
    fs::write(alder.outbox("d/f"), b"x").unwrap();
    symlink("d", alder.outbox(".l")).unwrap();
    symlink("d/f", alder.outbox(".f")).unwrap();
    // Through the link the very same inode is found.
    for path in [".l/f", ".f"] {
        assert_eq!(alder.ino(path), alder.ino("d/f"));
        assert!(matches!(alder.seal(path), SealOutcome::Gone), "{path}");
    }
    assert!(matches!(alder.seal("d/f"), SealOutcome::Sealed(_)));
}

#[test]
fn what_moves_out_of_the_inbox_does_not_leave_by_a_link() {
    let (alder, birch) = pair();
    let bundle = alder.drop_file("f", b"bytes");
    birch.fetch(&alder, bundle);
    let elsewhere = birch.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, birch.outbox(".l")).unwrap();
    let moved = birch
        .spool()
        .inbox_to_outbox(&rel("f"), &rel(".l/f"), false);
    assert_eq!(moved.unwrap_err().errno(), libc::ENOTDIR);
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    assert_eq!(fs::read(birch.inbox("f")).unwrap(), b"bytes");
    fs::create_dir(birch.outbox(".d")).unwrap();
    birch
        .spool()
        .inbox_to_outbox(&rel("f"), &rel(".d/f"), false)
        .unwrap();
    assert_eq!(fs::read(birch.outbox(".d/f")).unwrap(), b"bytes");
}

#[test]
fn a_fifo_in_the_place_of_a_directory_does_not_hold_up_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &at,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o600),
        0,
    )
    .unwrap();
    let synced = durable::sync_all(dir.path(), &[durable::Sync::Directory(at)]);
    synced.unwrap();
}

#[test]
fn a_start_passes_over_what_is_no_file_and_follows_no_link() {
    let mut alder = Node::new();
    let elsewhere = alder.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("secret"), b"x").unwrap();
    fs::write(alder.outbox("own"), b"x").unwrap();
    symlink(&elsewhere, alder.outbox(".l")).unwrap();
    symlink(alder.outbox(""), alder.outbox(".loop")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, alder.outbox(".fifo"), fifo, mode, 0).unwrap();
    alder.stop();
    alder.start();
    let found: Vec<String> = alder
        .spool()
        .outbox
        .recovered()
        .iter()
        .map(|file| file.path.to_string())
        .collect();
    assert_eq!(found, ["own"]);
    assert!(fs::symlink_metadata(alder.outbox(".loop")).is_ok());
}
