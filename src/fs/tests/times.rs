//! Times that are set while pages of a mapping are still to be written back.

use super::*;

const BACK: WriteHow = WriteHow {
    kill_privileges: false,
    write_back: true,
};

const LONG_AGO: Time = Time {
    secs: -86_400,
    nanos: 500,
};

fn set_mtime(t: &TestFs, id: NodeId) {
    let set = SetAttr {
        mtime: Some(SetTime::At(LONG_AGO)),
        ..SetAttr::default()
    };
    assert_eq!(t.setattr(id, set).unwrap().mtime, LONG_AGO);
}

fn mtime(t: &TestFs, id: NodeId) -> Time {
    t.fs.getattr(id, None).unwrap().mtime
}

#[test]
fn a_time_set_before_pages_are_written_back_stays() {
    let t = test_fs();
    let (entry, opened) = t.create(NodeId::OUTBOX, "f").unwrap();
    let (id, fh) = (entry.attr.node, opened.fh);
    let back = || answer(|done| t.fs.write(fh, 0, b"stored", BACK, ME, done)).unwrap();
    back();
    set_mtime(&t, id);
    back();
    back();
    assert_eq!(mtime(&t, id), LONG_AGO);
    assert_eq!(disk::read(t.outbox("f")).unwrap(), b"stored");
    t.fs.release(fh);
    assert_eq!(mtime(&t, id), LONG_AGO);
    assert_eq!(
        t.fs.set_times.len(),
        0,
        "nothing is kept after the last close"
    );
}

type Change = fn(&TestFs, NodeId, u64);

#[test]
fn what_changes_bytes_afterwards_changes_the_time() {
    let t = test_fs();
    let change: [(&str, Change); 4] = [
        ("write", |t, _, fh| {
            t.write(fh, 0, b"x").unwrap();
        }),
        ("truncate", |t, id, fh| {
            let set = SetAttr {
                size: Some(1),
                fh: Some(fh),
                ..SetAttr::default()
            };
            t.setattr(id, set).unwrap();
        }),
        ("sync", |t, _, fh| {
            answer(|done| t.fs.fsync(fh, false, done)).unwrap();
            answer(|done| t.fs.write(fh, 0, b"stored", BACK, ME, done)).unwrap();
        }),
        ("reopen", |t, id, fh| {
            t.fs.release(fh);
            let again = t.open(id, libc::O_RDWR).unwrap().fh;
            answer(|done| t.fs.write(again, 0, b"stored", BACK, ME, done)).unwrap();
            t.fs.release(again);
        }),
    ];
    for (name, change) in change {
        let (entry, opened) = t.create(NodeId::OUTBOX, name).unwrap();
        let id = entry.attr.node;
        t.write(opened.fh, 0, b"bytes").unwrap();
        set_mtime(&t, id);
        change(&t, id, opened.fh);
        assert_ne!(mtime(&t, id), LONG_AGO, "{name}");
        t.fs.release(opened.fh);
        assert_eq!(t.fs.set_times.len(), 0, "{name}");
    }
}

#[test]
fn of_a_file_that_nobody_writes_nothing_is_kept() {
    let t = test_fs();
    let id = t.put(NodeId::OUTBOX, "f", b"x").attr.node;
    set_mtime(&t, id);
    assert_eq!(t.fs.set_times.len(), 0);
}
