//! Files with several names in the outbox, and what the next start makes of them.

use super::*;

impl Node {
    pub(super) fn link(&self, from: &str, to: &str) {
        fs::hard_link(self.outbox(from), self.outbox(to)).unwrap();
        self.spool()
            .outbox
            .linked(self.ino(to), &rel(from), &rel(to));
    }

    fn all_names(&self, path: &str) -> Vec<String> {
        let names = self.spool().outbox.names_of(self.ino(path));
        names.iter().map(RelPath::to_string).collect()
    }

    /// Writes through the gate and closes, without a seal.
    fn write(&self, path: &str, bytes: &[u8]) {
        self.open(path, bytes);
        self.close(path);
    }

    fn seal_all(&self, paths: &[&str], more: bool) -> Vec<SealOutcome> {
        let (done, outcome) = crossbeam_channel::bounded(1);
        let name = |path: &&str| SealName {
            path: rel(path),
            renamed_from: None,
        };
        self.spool().outbox.seal(SealRequest {
            gate: self.spool().outbox.gate(self.ino(paths[0])),
            names: paths.iter().map(name).collect(),
            more,
            priority: Priority::Routine,
            done: Box::new(move |outcomes| done.send(outcomes).unwrap()),
        });
        outcome.recv().unwrap()
    }

    fn is_marked(&self, path: &str) -> bool {
        let mark = self.spool().outbox.mark_of(self.ino(path));
        mark.unwrap().is_some()
    }

    fn link_rows(&self) -> usize {
        let (by_name, by_inode) = self.spool().outbox.link_rows();
        assert_eq!(by_name, by_inode, "the two tables have the same pairs");
        by_name
    }
}

fn sealed(outcome: &SealOutcome) -> BundleId {
    match outcome {
        SealOutcome::Sealed(bundle) => *bundle,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_changed_file_is_one_bundle_for_each_of_its_names_in_one_decision() {
    let (alder, birch) = pair();
    alder.drop_file("f", b"one");
    alder.link("f", "g");
    sealed(&alder.seal("g"));
    alder.write("g", b"two");
    for name in ["f", "g"] {
        assert!(alder.spool().outbound_of(&rel(name)).is_none(), "{name}");
    }
    let outcomes = alder.seal_all(&["f", "g"], false);
    let (f, g) = (sealed(&outcomes[0]), sealed(&outcomes[1]));
    assert_ne!(f, g);
    for (name, bundle) in [("f", f), ("g", g)] {
        assert_eq!(alder.manifest(bundle).manifest().entries.len(), 1);
        birch.fetch(&alder, bundle);
        assert_eq!(fs::read(birch.inbox(name)).unwrap(), b"two");
        let row = alder.spool().outbound_of(&rel(name)).unwrap();
        assert_eq!(row.bundle, bundle.to_string());
    }
    assert_ne!(birch.inbox_ino("f"), birch.inbox_ino("g"));
    assert!(!alder.is_marked("f"));
}

#[test]
fn a_name_that_is_gone_drops_out_and_the_mark_stays_while_names_follow() {
    let (alder, _birch) = pair();
    alder.drop_file("f", b"one");
    for name in ["g", "h"] {
        alder.link("f", name);
    }
    alder.write("f", b"two");
    fs::remove_file(alder.outbox("g")).unwrap();
    alder.spool().outbox_removed(&rel("g"), alder.ino("f"), 2);
    let outcomes = alder.seal_all(&["f", "g"], true);
    sealed(&outcomes[0]);
    assert!(matches!(outcomes[1], SealOutcome::Gone), "{outcomes:?}");
    assert!(alder.is_marked("h"));
    let gone = alder.spool().outbound_of(&rel("f"));
    assert!(gone.is_none(), "its other name is not sealed yet");
    sealed(&alder.seal_all(&["h"], false)[0]);
    assert!(!alder.is_marked("h"));
    assert!(alder.spool().outbound_of(&rel("f")).is_some());
}

/// As the state shows it after one of two names was sealed, without the mark that ought to be there.
#[test]
fn a_name_whose_bytes_are_newer_than_its_bundle_is_not_said_to_be_delivered() {
    let (alder, _birch) = pair();
    alder.drop_file("f", b"one");
    alder.link("f", "g");
    sealed(&alder.seal("g"));
    alder.write("g", b"two");
    sealed(&alder.seal("f"));
    assert!(!alder.is_marked("g"));
    assert!(alder.spool().outbound_of(&rel("g")).is_none());
    let state = alder.spool().outbox_state(&rel("g"), alder.ino("g"));
    assert_eq!(state.word(), "not sent");
}

#[test]
fn the_names_of_a_file_follow_what_is_done_to_them() {
    let mut alder = Node::new();
    alder.drop_file("d/f", b"x");
    alder.drop_file("alone", b"y");
    assert_eq!(alder.link_rows(), 0);
    alder.link("d/f", "d/g");
    alder.link("d/f", ".h");
    assert_eq!(alder.all_names("d/f"), [".h", "d/f", "d/g"]);
    fs::rename(alder.outbox("d"), alder.outbox("e")).unwrap();
    alder.spool().outbox_renamed(&rel("d"), &rel("e"), true);
    fs::rename(alder.outbox(".h"), alder.outbox("h")).unwrap();
    alder.spool().outbox_renamed(&rel(".h"), &rel("h"), false);
    assert_eq!(alder.all_names("h"), ["e/f", "e/g", "h"]);
    fs::create_dir(alder.outbox("k")).unwrap();
    alder.link("h", "k/f");
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let (e, k) = (alder.outbox("e"), alder.outbox("k"));
    renameat_with(CWD, e, CWD, k, RenameFlags::EXCHANGE).unwrap();
    alder.spool().outbox_exchanged(&rel("e"), &rel("k"));
    assert_eq!(alder.all_names("h"), ["e/f", "h", "k/f", "k/g"]);
    for (left, name) in [(3, "h"), (2, "e/f"), (1, "k/g")] {
        let ino = alder.ino(name);
        fs::remove_file(alder.outbox(name)).unwrap();
        alder.spool().outbox_removed(&rel(name), ino, left);
    }
    assert_eq!(alder.all_names("k/f"), [""; 0]);
    assert_eq!(alder.link_rows(), 0, "one name needs no row");
    alder.stop();
}

#[test]
fn a_start_finds_the_names_that_a_kill_kept_from_the_tables() {
    let mut alder = Node::new();
    alder.drop_file("f", b"x");
    fs::write(alder.outbox(".a"), b"not sealed").unwrap();
    // Killed before the rows of each.
    fs::hard_link(alder.outbox("f"), alder.outbox("g")).unwrap();
    fs::hard_link(alder.outbox(".a"), alder.outbox(".b")).unwrap();
    alder.stop();
    alder.start();
    assert_eq!(alder.all_names("f"), ["f", "g"]);
    assert_eq!(alder.all_names(".a"), [".a", ".b"]);
    fs::rename(alder.outbox("g"), alder.outbox("h")).unwrap();
    fs::remove_file(alder.outbox(".b")).unwrap();
    alder.stop();
    alder.start();
    assert_eq!(alder.all_names("f"), ["f", "h"]);
    assert_eq!(alder.all_names(".a"), [".a"; 0]);
    alder.drop_file("alone", b"y");
    alder.stop();
    alder.start();
    assert_eq!(alder.link_rows(), 2);
}

#[test]
fn a_file_changed_through_one_name_and_killed_is_found_under_all() {
    let (mut alder, _birch) = pair();
    alder.drop_file("f", b"one");
    alder.link("f", "g");
    sealed(&alder.seal("g"));
    alder.write("g", b"two");
    alder.stop();
    alder.start();
    let mut found = alder.spool().outbox.recovered();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let paths: Vec<String> = found.iter().map(|file| file.path.to_string()).collect();
    assert_eq!(paths, ["f", "g"]);
    assert!(found.iter().all(|file| !file.incomplete));
    for outcome in alder.seal_all(&["f", "g"], false) {
        sealed(&outcome);
    }
}
