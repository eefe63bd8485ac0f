//! What is not sent because of its name, as status tells it.

use super::*;

#[test]
fn what_is_not_sent_is_counted_by_pattern_with_examples() {
    let t = test_fs();
    let mkdir = |parent, name: &str| {
        let made = t.fs.mkdir(at(parent, name), 0o755, ME).unwrap();
        made.attr.node
    };
    let project = mkdir(NodeId::OUTBOX, "project");
    let git = mkdir(project, ".git");
    let objects = mkdir(git, "objects");
    for n in 0..5 {
        t.put(objects, &format!("{n}.part"), b"x");
    }
    t.put(project, ".gitignore", b"x");
    t.put(project, "main.rs~", b"x");
    t.put(mkdir(project, "#1#"), "sent", b"x");
    t.put(mkdir(project, "lab-journal"), "1.pdf", b"x");
    t.put(mkdir(NodeId::OUTBOX, ".meshbox-send-1"), "0", b"x");
    t.fs.symlink(at(git, "link"), b"HEAD", ME).unwrap();
    let names = t.fs.ignored_names();
    let found: Vec<_> = names
        .by_pattern
        .iter()
        .map(|ignored| {
            let examples: Vec<String> = ignored.examples.iter().map(RelPath::to_string).collect();
            (
                ignored.pattern.as_str(),
                ignored.what,
                ignored.count,
                examples,
            )
        })
        .collect();
    let dotfiles = [
        "project/.gitignore",
        "project/.git/objects/0.part",
        "project/.git/objects/1.part",
    ];
    let want = [
        (
            ".*",
            Some("dotfiles"),
            6,
            dotfiles.map(String::from).to_vec(),
        ),
        (
            "*~",
            Some("backups of editors"),
            1,
            vec!["project/main.rs~".into()],
        ),
    ];
    assert_eq!(found, want);
    assert!(!names.more);
}
