//! Marks: what the next start makes of a file, by where its writer was when the daemon was killed.

use super::*;

impl Node {
    fn mark_of(&self, path: &str) -> Option<(MarkKind, String)> {
        let mark = self.spool().outbox.mark_of(self.ino(path)).unwrap();
        mark.map(|mark| (mark.kind, mark.path.to_string()))
    }

    fn moved(&self, from: &str, to: &str, directory: bool) {
        fs::rename(self.outbox(from), self.outbox(to)).unwrap();
        self.spool().outbox_renamed(&rel(from), &rel(to), directory);
    }

    /// What is found at the next start, and whether it is incomplete.
    fn found_after(&mut self, power_loss: bool) -> Vec<(String, bool)> {
        if power_loss {
            self.power_loss();
        } else {
            self.stop();
            self.start();
        }
        let found = self.spool().outbox.recovered().into_iter();
        let mut found: Vec<_> = found
            .map(|file| (file.path.to_string(), file.incomplete))
            .collect();
        found.sort();
        found
    }
}

fn found(files: &[(&str, bool)]) -> Vec<(String, bool)> {
    files
        .iter()
        .map(|(path, incomplete)| ((*path).to_owned(), *incomplete))
        .collect()
}

#[test]
fn what_was_open_is_incomplete_and_what_was_closed_is_sealed() {
    for power_loss in [false, true] {
        let mut alder = Node::new();
        alder.open("open", b"half");
        alder.open("closed", b"whole");
        alder.close("closed");
        alder.open("torn", b"half");
        alder
            .spool()
            .outbox
            .mark_torn(alder.ino("torn"), &rel("torn"));
        fs::write(alder.outbox("renamed into place"), b"whole").unwrap();
        alder.open("touched", b"");
        alder.close("touched");
        // Its CREATE was not answered, or its open failed.
        fs::write(alder.outbox("empty"), b"").unwrap();
        let expected = [
            ("closed", power_loss),
            ("empty", true),
            ("open", true),
            ("renamed into place", power_loss),
            ("torn", true),
            ("touched", power_loss),
        ];
        assert_eq!(alder.found_after(power_loss), found(&expected));
        // And the same at the start after that, when nobody has done anything about it.
        let held: Vec<_> = expected.iter().filter(|(_, held)| *held).copied().collect();
        let again = alder.found_after(false);
        let again: Vec<_> = again.into_iter().filter(|(_, held)| *held).collect();
        assert_eq!(again, found(&held));
    }
}

#[test]
fn an_old_version_is_not_superseded_by_what_was_truncated_and_not_written() {
    let (mut alder, _birch) = pair();
    let bundle = alder.drop_file("f", b"the old version");
    let gate = alder.spool().outbox.gate(alder.ino("f"));
    {
        let file = File::options().write(true).open(alder.outbox("f")).unwrap();
        let mut guard = gate.lock();
        if !alder
            .spool()
            .outbox
            .before_modify(&mut guard, &rel("f"))
            .unwrap()
        {
            alder
                .spool()
                .copy_out(&mut guard, &file, &rel("f"))
                .unwrap();
        }
        file.set_len(0).unwrap();
        guard.reshaped();
    }
    drop(gate);
    assert_eq!(alder.found_after(false), found(&[("f", true)]));
    assert!(alder.spool().ledger.is_pending(bundle, _birch.id()));
    _birch.fetch(&alder, bundle);
    assert_eq!(fs::read(_birch.inbox("f")).unwrap(), b"the old version");
}

#[test]
fn a_mark_moves_with_its_name() {
    let mut alder = Node::new();
    alder.open("f", b"half");
    alder.moved("f", "g", false);
    assert_eq!(alder.mark_of("g"), Some((MarkKind::Open, "g".into())));
    alder.open("d/e/f", b"half");
    alder.moved("d", "x", true);
    assert_eq!(
        alder.mark_of("x/e/f"),
        Some((MarkKind::Open, "x/e/f".into()))
    );
    alder.open("y/f", b"whole");
    alder.close("y/f");
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (x, y) = (alder.outbox("x"), alder.outbox("y"));
    renameat_with(CWD, x, CWD, y, RenameFlags::EXCHANGE).unwrap();
    alder.spool().outbox_exchanged(&rel("x"), &rel("y"));
    assert_eq!(
        alder.mark_of("y/e/f"),
        Some((MarkKind::Open, "y/e/f".into()))
    );
    assert_eq!(alder.mark_of("x/f"), Some((MarkKind::Closed, "x/f".into())));
    // What comes to the old name is another file.
    alder.drop_file("f", b"whole");
    let expected = [("g", true), ("x/f", false), ("y/e/f", true)];
    assert_eq!(alder.found_after(false), found(&expected));
}

#[test]
fn a_kill_between_a_rename_and_its_rows_makes_nothing_whole() {
    let mut alder = Node::new();
    for name in ["f", "d/f", "g", "h"] {
        alder.drop_file(name, name.as_bytes());
    }
    alder.open("f", b"half");
    alder.open("d/f", b"half");
    alder.open("g", b"half");
    alder.open("new", b"whole");
    alder.close("new");
    fs::rename(alder.outbox("f"), alder.outbox("f2")).unwrap();
    fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
    fs::rename(alder.outbox("new"), alder.outbox("new2")).unwrap();
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (g, h) = (alder.outbox("g"), alder.outbox("h"));
    renameat_with(CWD, g, CWD, h, RenameFlags::EXCHANGE).unwrap();
    let after = alder.found_after(false);
    for path in ["f2", "e/f"] {
        assert!(after.contains(&(path.into(), true)), "{path}: {after:?}");
    }
    assert!(after.contains(&("new2".into(), false)), "{after:?}");
    // Of the two that were exchanged the one that was being written stays incomplete; the other one is sent under its new
    // name when its digest is that of its row, not before; not either when the daemon is killed before it came to that.
    let again = alder.found_after(false);
    for (path, incomplete) in [("g", false), ("h", true)] {
        let found = (path.into(), incomplete);
        assert!(again.contains(&found), "{path}: {again:?}");
    }
    let sealed = alder.sealed("g");
    let manifest = alder.manifest(sealed);
    assert_eq!(manifest.manifest().renamed_from[0].path, rel("h"));
}

/// The same where the one that was whole was changed too, behind the daemon's back.
#[test]
fn a_kill_between_an_exchange_and_its_rows_lets_nothing_go_that_is_not_as_recorded() {
    let mut alder = Node::new();
    for name in ["g", "h"] {
        alder.drop_file(name, name.as_bytes());
    }
    alder.open("g", b"half");
    fs::write(alder.outbox("h"), b"other").unwrap();
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (g, h) = (alder.outbox("g"), alder.outbox("h"));
    renameat_with(CWD, g, CWD, h, RenameFlags::EXCHANGE).unwrap();
    for _ in 0..2 {
        let found = alder.found_after(false);
        for path in ["g", "h"] {
            assert!(found.contains(&(path.into(), false)), "{path}: {found:?}");
        }
    }
    for path in ["g", "h"] {
        match alder.seal(path) {
            SealOutcome::Incomplete => {}
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[test]
fn a_mark_counts_for_the_file_at_its_path_in_a_state_that_was_copied() {
    let (mut alder, _birch) = pair();
    alder.drop_file("done", b"done");
    alder.open("closed", b"whole, but who knows");
    alder.close("closed");
    // Sealed, and its mark came back from a backup of the journal.
    alder
        .spool()
        .outbox
        .mark_closed(alder.ino("done"), &rel("done"));
    alder.stop();
    for name in ["done", "closed"] {
        let copy = alder.outbox("copy");
        fs::copy(alder.outbox(name), &copy).unwrap();
        // The number is not to be used again.
        fs::rename(alder.outbox(name), alder.dir.path().join(name)).unwrap();
        fs::rename(&copy, alder.outbox(name)).unwrap();
    }
    alder.start();
    let after = alder.spool().outbox.recovered();
    let incomplete = |path: &str| after.iter().find(|file| file.path == rel(path)).unwrap();
    assert!(incomplete("closed").incomplete);
    assert!(!incomplete("done").incomplete);
    assert!(matches!(alder.seal("done"), SealOutcome::Sealed(_)));
    assert_eq!(alder.spool().counts().sealed, 0, "nothing is sent twice");
}

#[test]
fn who_does_not_hold_the_gate_changes_no_open_mark() {
    let alder = Node::new();
    alder.open("f", b"half");
    let ino = alder.ino("f");
    alder.spool().outbox.mend_mark(ino);
    alder.spool().outbox.unmark_closed(ino);
    assert_eq!(alder.mark_of("f"), Some((MarkKind::Open, "f".into())));
    alder.spool().outbox.mark_torn(ino, &rel("f"));
    alder.spool().outbox.mend_mark(ino);
    assert_eq!(alder.mark_of("f"), Some((MarkKind::Closed, "f".into())));
    alder.spool().outbox.unmark_closed(ino);
    assert_eq!(alder.mark_of("f"), None);
    alder.spool().outbox.mend_mark(ino);
    assert_eq!(alder.mark_of("f"), None, "nothing is marked anew");
}

#[test]
fn nothing_is_marked_once_the_last_name_is_gone() {
    let alder = Node::new();
    alder.open("f", b"half");
    let gate = alder.spool().outbox.gate(alder.ino("f"));
    let ino = gate.ino();
    fs::remove_file(alder.outbox("f")).unwrap();
    alder.spool().outbox_removed(&rel("f"), ino, 0);
    let rows = || alder.spool().outbox.all_marks().len();
    assert_eq!(rows(), 0);
    gate.set_marked(false);
    let mut guard = gate.lock();
    assert!(
        alder
            .spool()
            .outbox
            .before_modify(&mut guard, &rel("f"))
            .unwrap()
    );
    assert_eq!(rows(), 0);
}
