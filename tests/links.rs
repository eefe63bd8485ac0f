//! Symbolic links with real daemons: trees that programs make arrive with their links, and no link leads out.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use common::{ARRIVES, COMMAND, Node, run, wait_until};

/// What a path shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
}

/// Everything below a directory but `.git`.
fn tree(root: &Path) -> BTreeMap<PathBuf, Shown> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let (at, kind) = (entry.path(), entry.file_type().unwrap());
            if entry.file_name() == ".git" {
                continue;
            }
            let shown = if kind.is_dir() {
                todo.push(at.clone());
                Shown::Directory
            } else if kind.is_symlink() {
                Shown::Link(fs::read_link(&at).unwrap_or_default())
            } else {
                Shown::File(fs::read(&at).unwrap_or_default())
            };
            found.insert(at.strip_prefix(root).unwrap().to_path_buf(), shown);
        }
    }
    found
}

/// A tree as programs make them: versions of a library, tools in `bin/`, links up, to directories and to nowhere.
fn make_source(at: &Path) {
    for directory in ["bin", "lib/pkg", "deep/a/b"] {
        fs::create_dir_all(at.join(directory)).unwrap();
    }
    fs::write(at.join("lib/libx.so.1.2"), "library").unwrap();
    fs::write(at.join("lib/pkg/cli.js"), "#!/bin/sh\necho tool").unwrap();
    fs::write(at.join("deep/x"), "x").unwrap();
    fs::set_permissions(at.join("lib/pkg/cli.js"), fs::Permissions::from_mode(0o755)).unwrap();
    for (target, link) in [
        ("libx.so.1.2", "lib/libx.so.1"),
        ("libx.so.1", "lib/libx.so"),
        ("../lib/pkg/cli.js", "bin/tool"),
        ("../../x", "deep/a/b/up"),
        ("pkg", "lib/current"),
        ("no/where", "broken"),
        (".", "deep/here"),
    ] {
        symlink(target, at.join(link)).unwrap();
        // Not one that a copy would get by itself.
        let mut touch = Command::new("touch");
        let touch = touch.args(["-h", "-d", "@1000000000"]).arg(at.join(link));
        run(touch, COMMAND).ok();
    }
}

/// The times of the links below a directory but `.git`: programs set them after they made the link, and perhaps after it
/// was sent.
fn link_times(root: &Path) -> Vec<(PathBuf, SystemTime)> {
    let links = tree(root).into_iter();
    let links = links.filter(|(_, shown)| matches!(shown, Shown::Link(_)));
    links
        .filter_map(|(path, _)| {
            let meta = fs::symlink_metadata(root.join(&path)).ok()?;
            Some((path, meta.modified().unwrap()))
        })
        .collect()
}

/// Everything that a program made under `name` of the outbox is there, the times of links too.
#[track_caller]
fn arrives_as_made(from: &Node, to: &Node, name: &str) {
    let (made, there) = (from.outbox(name), to.inbox(name));
    arrives(to, name, &tree(&made));
    wait_until(
        &format!("the links of {name} have their times"),
        ARRIVES,
        || link_times(&there) == link_times(&made),
    );
}

#[track_caller]
fn arrives(to: &Node, name: &str, wanted: &BTreeMap<PathBuf, Shown>) {
    wait_until(&format!("{name} as it is"), ARRIVES, || {
        tree(&to.inbox(name)) == *wanted
    });
}

fn sh(script: &str, directory: &Path) {
    let mut command = Command::new("sh");
    run(
        command.args(["-euc", script]).current_dir(directory),
        ARRIVES,
    )
    .ok();
}

#[test]
fn trees_with_links_arrive_as_cp_tar_git_and_npm_make_them() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    let source = alder.root().join("source");
    make_source(&source);
    let wanted = tree(&source);
    let outbox = alder.outbox("");

    let from = source.to_str().unwrap();
    sh(&format!("cp -a {from} copied"), &outbox);
    arrives(&birch, "copied", &wanted);
    arrives_as_made(&alder, &birch, "copied");
    let times = link_times(&source);
    assert!(times.len() > 5 && link_times(&birch.inbox("copied")) == times);
    let through = fs::read(birch.inbox("copied/bin/tool")).unwrap();
    assert_eq!(through, fs::read(source.join("lib/pkg/cli.js")).unwrap());
    assert_eq!(
        fs::read(birch.inbox("copied/lib/libx.so")).unwrap(),
        b"library"
    );

    sh(
        &format!("mkdir unpacked; tar -C {from} -c . | tar -C unpacked -x"),
        &outbox,
    );
    arrives(&birch, "unpacked", &wanted);
    arrives_as_made(&alder, &birch, "unpacked");
    assert_eq!(link_times(&birch.inbox("unpacked")), times);

    // As npm has it, tools are in a directory with an ignored name, so the whole is committed by a rename.
    let modules = alder.root().join("project");
    fs::create_dir_all(modules.join("node_modules/.bin")).unwrap();
    fs::create_dir_all(modules.join("node_modules/tool")).unwrap();
    fs::write(modules.join("node_modules/tool/cli.js"), "cli").unwrap();
    symlink("../tool/cli.js", modules.join("node_modules/.bin/tool")).unwrap();
    let project = modules.to_str().unwrap();
    sh(
        &format!("cp -a {project} .project; mv .project project"),
        &outbox,
    );
    arrives(&birch, "project", &tree(&modules));

    if Command::new("git").arg("--version").output().is_ok() {
        let git = "git -c user.name=x -c user.email=x@x -c init.defaultBranch=m";
        sh(
            &format!("{git} init -q . && {git} add -A && {git} commit -qm x"),
            &source,
        );
        sh(
            &format!("git clone -q --no-hardlinks {from} cloned"),
            &outbox,
        );
        arrives(&birch, "cloned", &tree(&source));
        arrives_as_made(&alder, &birch, "cloned");
    }

    // A directory that is renamed takes its links along; what is consumed stays so, also after a kill.
    fs::rename(alder.outbox("copied"), alder.outbox("renamed")).unwrap();
    arrives(&birch, "renamed", &wanted);
    wait_until("the old name is gone", ARRIVES, || {
        !birch.inbox("copied").exists()
    });
    fs::remove_file(birch.inbox("renamed/bin/tool")).unwrap();
    birch.kill9();
    birch.restart();
    let mut left = wanted.clone();
    left.remove(Path::new("bin/tool"));
    arrives(&birch, "renamed", &left);
    arrives(&birch, "unpacked", &wanted);
}

#[test]
fn no_link_that_leads_out_gets_an_ordinary_name() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    fs::create_dir_all(alder.outbox("d/e")).unwrap();
    for (link, target) in [
        ("top", "d"),
        ("d/l", "/etc/passwd"),
        ("d/l", "../x"),
        ("d/e/l", "../../x"),
        ("d/e/l", "x/../../y"),
    ] {
        let refused = symlink(target, alder.outbox(link)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc_eperm()), "{link}");
    }
    symlink("../x", alder.outbox("d/e/up")).unwrap();
    let refused = fs::rename(alder.outbox("d/e"), alder.outbox("e")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc_eperm()));
    let link = birch.inbox("d/e/up");
    wait_until("the link", ARRIVES, || {
        fs::read_link(&link).is_ok_and(|to| to == Path::new("../x"))
    });
    // It cannot be moved to where it would lead out; mv copies links, and that is refused too.
    let moved = run(
        Command::new("mv").args([&link, &birch.outbox("up")]),
        COMMAND,
    );
    assert_ne!(moved.code, Some(0));
    assert!(link.is_symlink());
}

fn libc_eperm() -> i32 {
    rustix::io::Errno::PERM.raw_os_error()
}
