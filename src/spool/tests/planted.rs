//! Links planted in every component of both trees: no call of the spool resolves one. Whatever it answers, nothing
//! outside is read, changed, moved or even looked into.

use std::os::unix::fs::symlink;

use super::*;

const SECRET: &[u8] = b"the secret";

/// What a path of the tests is, with a link in the place of each of its components.
const PATH: &str = "a/b/f";
const COMPONENTS: [&str; 3] = ["a", "a/b", "a/b/f"];

/// A place outside of both trees where every path of the tests leads to something.
struct Outside {
    at: PathBuf,
    before: String,
}

impl Outside {
    fn new(node: &Node) -> Self {
        let at = node.dir.path().join("outside");
        fs::create_dir_all(at.join("a/b/empty")).unwrap();
        for name in ["f", "g", "h"] {
            fs::write(at.join("a/b").join(name), SECRET).unwrap();
        }
        let before = picture(&at);
        Self { at, before }
    }

    /// Puts a link in the place of `component` of `tree`, which leads to the same outside.
    fn plant(&self, tree: &Path, component: &str) {
        let place = tree.join(component);
        if place.symlink_metadata().is_ok() {
            let beside = tree.join(format!("moved-{}", component.replace('/', "-")));
            fs::rename(&place, beside).unwrap();
        }
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(self.at.join(component), place).unwrap();
    }

    #[track_caller]
    fn assert_untouched(&self, node: &Node, what: &str) {
        assert_eq!(picture(&self.at), self.before, "{what}");
        let content = node.spool().layout().content(Digest::of(SECRET));
        assert!(!content.exists(), "{what}: read, and taken for content");
    }
}

/// All that is below, with everything that any change of it changes.
fn picture(at: &Path) -> String {
    let meta = fs::symlink_metadata(at).unwrap();
    let (changed, nanos) = (meta.ctime(), meta.ctime_nsec());
    let mut all = format!(
        "{} {:o} {} {} {changed}.{nanos}\n",
        at.display(),
        meta.mode(),
        meta.nlink(),
        meta.len(),
    );
    if meta.is_dir() {
        let mut below: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap()).collect();
        below.sort_by_key(fs::DirEntry::file_name);
        for entry in below {
            all += &picture(&entry.path());
        }
    }
    all
}

/// [`Node::fetch`], whatever comes of it.
fn try_fetch(to: &Node, from: &Node, bundle: BundleId) {
    let manifest = from.manifest(bundle).signed().clone().verify().unwrap();
    let Ok(Offered::Wanted(mut incoming)) = to.spool().offered(manifest, from.id()) else {
        return;
    };
    for entry in 0..incoming.manifest().manifest().entries.len() {
        for range in incoming.missing(entry) {
            let mut reader = from.spool().open_content(bundle, entry, to.id()).unwrap();
            let bytes = reader
                .read(range.start, (range.end - range.start) as usize)
                .unwrap();
            incoming.accept_chunk(entry, range.start, &bytes).unwrap();
        }
    }
    if let Ok(verified) = incoming.finish() {
        let _refused = verified.publish();
    }
}

#[test]
fn no_link_in_any_component_of_the_outbox_is_resolved() {
    for component in COMPONENTS {
        let (mut alder, birch) = pair();
        alder.drop_file(PATH, b"own");
        alder.drop_file("a/b/g", b"other");
        let given = birch.drop_file("given", b"given");
        alder.fetch(&birch, given);
        let outside = Outside::new(&alder);
        outside.plant(&alder.state().join("outbox"), component);

        // Through the link the inode outside is found.
        assert_eq!(
            alder.ino(PATH),
            outside.at.join(PATH).metadata().unwrap().ino()
        );
        assert!(matches!(alder.seal(PATH), SealOutcome::Gone), "{component}");
        let seen = alder.spool().outbox.metadata(&rel(PATH));
        assert!(
            seen.is_err() || seen.is_ok_and(|meta| meta.is_symlink()),
            "{component}"
        );
        assert!(alder.spool().outbound_of(&rel(PATH)).is_none());
        let request = SendRequest {
            files: vec![(rel(PATH), rel("sent"))],
            ..SendRequest::default()
        };
        let sent = alder.spool().send_files(&request);
        assert!(matches!(sent, Ok(Sent::Refused(_)) | Err(_)), "{sent:?}");
        let (done, outcome) = crossbeam_channel::bounded(1);
        alder.spool().outbox.seal_tree(TreeRequest {
            tree: 1,
            root: rel("a"),
            files: vec![
                (alder.ino(PATH), rel(PATH)),
                (alder.ino("a/b/g"), rel("a/b/g")),
            ],
            directories: vec![rel("a"), rel("a/b"), rel("a/b/empty")],
            priority: Priority::Routine,
            done: Box::new(move |outcome| done.send(outcome).unwrap()),
        });
        let _whatever = outcome.recv().unwrap();
        let _refused = alder
            .spool()
            .inbox_to_outbox(&rel("given"), &rel("a/b/new"), false);
        let _refused = alder
            .spool()
            .inbox_to_outbox(&rel("given"), &rel(PATH), false);
        outside.assert_untouched(&alder, component);

        alder.stop();
        alder.start();
        let found = alder.spool().outbox.recovered();
        let inode = outside.at.join(PATH).metadata().unwrap().ino();
        assert!(found.iter().all(|file| file.ino != inode), "{component}");
        outside.assert_untouched(&alder, component);
        alder.power_loss();
        outside.assert_untouched(&alder, component);
    }
}

#[test]
fn no_link_in_any_component_of_the_inbox_is_resolved() {
    for component in COMPONENTS {
        let (alder, mut birch) = pair();
        for (path, bytes) in [(PATH, "one"), ("a/b/g", "two"), ("a/b/h", "three")] {
            let bundle = alder.drop_file(path, bytes.as_bytes());
            birch.fetch(&alder, bundle);
        }
        let outside = Outside::new(&birch);
        outside.plant(&birch.state().join("inbox"), component);

        // A new version, a new name, a tree that is merged, and a file where the link is.
        let bundle = alder.drop_file(PATH, b"a new version");
        try_fetch(&birch, &alder, bundle);
        let bundle = alder.drop_file("a/b/new", b"new");
        try_fetch(&birch, &alder, bundle);
        fs::create_dir_all(alder.outbox("a/b/more/empty")).unwrap();
        let bundle = alder.drop_file("a/b/more/x", b"x");
        try_fetch(&birch, &alder, bundle);
        fs::rename(alder.outbox("a/b/g"), alder.outbox("a/b/renamed")).unwrap();
        alder
            .spool()
            .outbox_renamed(&rel("a/b/g"), &rel("a/b/renamed"), false);
        if let SealOutcome::Sealed(bundle) = alder.seal("a/b/renamed") {
            try_fetch(&birch, &alder, bundle);
        }
        outside.assert_untouched(&birch, component);

        for name in ["a/b/h", "a/b/g", "a/b/f"] {
            let _refused = birch.spool().inbox_unlink(&rel(name));
        }
        for name in ["a/b/empty", "a/b", "a"] {
            let _refused = birch.spool().inbox_rmdir(&rel(name));
        }
        outside.assert_untouched(&birch, component);

        birch.stop();
        birch.start();
        outside.assert_untouched(&birch, component);
        birch.power_loss();
        outside.assert_untouched(&birch, component);
        let quarantine = birch.state().join("quarantine");
        for entry in fs::read_dir(quarantine).unwrap() {
            let at = entry.unwrap().path();
            // The link itself may be there: it has no record.
            if !at.is_symlink() {
                assert_ne!(fs::read(&at).unwrap(), SECRET, "{component}: {at:?}");
            }
        }
    }
}
