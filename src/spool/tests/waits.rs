//! No file operation waits for the journal's writer: not for a commit, not for what it syncs or calls back.

use super::super::journal::Batch;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

impl Node {
    /// The journal's writer is busy until the sender is dropped.
    pub(super) fn keep_writer_busy(&self) -> crossbeam_channel::Sender<()> {
        let (hold, held) = crossbeam_channel::bounded::<()>(0);
        let (enter, entered) = crossbeam_channel::bounded(1);
        let mut batch = Batch::default();
        batch.on_durable(move || {
            enter.send(()).unwrap();
            let _released = held.recv();
        });
        self.spool().journal.submit(batch).unwrap();
        entered.recv_timeout(PATIENCE).unwrap();
        hold
    }
}

/// Everything that `fs` asks of the spool while the kernel waits for the answer, and the seal itself.
fn every_operation(alder: &Node) {
    let spool = alder.spool();
    alder.drop_file("new", b"written while the writer is busy");
    // Sealed bytes that somebody waits for are copied out.
    alder.drop_file("sealed", b"overwritten");
    let (ino, path) = (alder.ino("sealed"), rel("sealed"));
    fs::rename(alder.outbox("sealed"), alder.outbox("moved")).unwrap();
    spool.outbox_renamed(&path, &rel("moved"), false);
    fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
    spool.outbox_renamed(&rel("d"), &rel("e"), true);
    spool.outbox.mark_torn(ino, &rel("moved"));
    spool.outbox.unmark(ino);
    assert_eq!(spool.outbox.visible_links(ino, 2), 1);
    spool.outbox_state(&rel("moved"), ino);
    fs::remove_file(alder.outbox("moved")).unwrap();
    spool.outbox_removed(&rel("moved"), ino, 0);
    spool.inbox_state(&rel("in/one"), ino);
    spool.inbox_unlink(&rel("in/one")).unwrap();
    spool
        .inbox_to_outbox(&rel("in/two"), &rel("two"), true)
        .unwrap();
    spool.inbox_rmdir(&rel("in")).unwrap();
    spool.outbound(None, 9);
    spool.inbound(None, 9);
    spool.counts();
}

#[test]
fn no_file_operation_waits_for_a_commit() {
    let (alder, birch) = pair();
    for path in ["in/one", "in/two"] {
        let bundle = birch.drop_file(path, path.as_bytes());
        alder.fetch(&birch, bundle);
    }
    alder.drop_file("sealed", b"first");
    alder.drop_file("d/f", b"below");
    let hold = alder.keep_writer_busy();
    let (done, ended) = crossbeam_channel::bounded(1);
    let alder = std::thread::scope(|scope| {
        let alder = &alder;
        scope.spawn(move || {
            every_operation(alder);
            done.send(()).unwrap();
        });
        let ended = ended.recv_timeout(PATIENCE);
        drop(hold);
        ended.expect("an operation waits for the journal's writer, or failed");
        alder
    });
    alder.spool().journal.flush().unwrap();
}
