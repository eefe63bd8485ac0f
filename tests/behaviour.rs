//! The table of file operations in packaging/doc/semantics.md, row by row, against a real mount.
//!
//! The table is read from there: a cell that does not say what happens fails here, and so does a row without a
//! check or a check without a row.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::SystemTime;

use common::{ARRIVES, Node, wait_until};
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, RenameFlags, XattrFlags};

/// A directory with `file`, `other` and `sub/inner` in it, and the like on the other side.
struct Place<'a> {
    here: &'a Path,
    there: &'a Path,
}

impl Place<'_> {
    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> io::Result<()> {
        let cwd = rustix::fs::CWD;
        Ok(rustix::fs::renameat_with(
            cwd,
            self.here.join(from),
            cwd,
            self.here.join(to),
            flags,
        )?)
    }

    fn write(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.here.join("file"))
    }

    fn set_attribute(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::setxattr(
            self.here.join("file"),
            name,
            b"value",
            XattrFlags::empty(),
        )?)
    }

    fn make_node(&self, name: &str, kind: FileType) -> io::Result<()> {
        Ok(rustix::fs::mknodat(
            rustix::fs::CWD,
            self.here.join(name),
            kind,
            Mode::from(0o600),
            0,
        )?)
    }
}

type Check = fn(&Place) -> io::Result<()>;

/// Every operation the table names.
const CHECKS: [(&str, Check); 31] = [
    ("list a directory", |p| fs::read_dir(p.here).map(drop)),
    ("read a file", |p| fs::read(p.here.join("file")).map(drop)),
    ("lock a file (flock)", |p| {
        Ok(rustix::fs::flock(
            File::open(p.here.join("file"))?,
            FlockOperation::LockExclusive,
        )?)
    }),
    ("create a file", |p| {
        File::create_new(p.here.join("new")).map(drop)
    }),
    ("open for writing, write, append", |p| {
        p.write()
            .and_then(|mut f| io::Write::write_all(&mut f, b"x"))
    }),
    ("truncate", |p| File::create(p.here.join("file")).map(drop)),
    ("allocate space (fallocate)", |p| {
        Ok(rustix::fs::fallocate(
            p.write()?,
            FallocateFlags::empty(),
            0,
            10_000,
        )?)
    }),
    ("make a directory", |p| fs::create_dir(p.here.join("dir"))),
    ("remove a file", |p| fs::remove_file(p.here.join("file"))),
    ("remove an empty directory", |p| {
        fs::remove_file(p.here.join("sub/inner"))?;
        fs::remove_dir(p.here.join("sub"))
    }),
    ("remove a directory that is not empty", |p| {
        fs::remove_dir(p.here.join("sub"))
    }),
    ("rename, replace", |p| {
        p.rename("file", "other", RenameFlags::empty())
    }),
    ("rename to a taken name with NOREPLACE", |p| {
        p.rename("file", "other", RenameFlags::NOREPLACE)
    }),
    ("exchange two names", |p| {
        p.rename("file", "other", RenameFlags::EXCHANGE)
    }),
    ("rename a directory", |p| {
        p.rename("sub", "sub2", RenameFlags::empty())
    }),
    ("rename a directory from an ignored name", |p| {
        p.rename("sub", ".sub", RenameFlags::empty())?;
        p.rename(".sub", "sub2", RenameFlags::empty())
    }),
    ("move a file to the other side", |p| {
        fs::rename(p.here.join("file"), p.there.join("moved"))
    }),
    ("move a directory to the other side", |p| {
        fs::rename(p.here.join("sub"), p.there.join("moved"))
    }),
    ("hard link beside it", |p| {
        fs::hard_link(p.here.join("file"), p.here.join("link"))
    }),
    ("hard link to the other side", |p| {
        fs::hard_link(p.here.join("file"), p.there.join("link"))
    }),
    ("symbolic link that stays in its tree", |p| {
        symlink("file", p.here.join("link"))?;
        fs::read_link(p.here.join("link")).map(drop)
    }),
    ("symbolic link that could lead out", |p| {
        let out = symlink("../file", p.here.join("out"));
        let absolute = symlink(p.here.join("file"), p.here.join("out"));
        assert_eq!(word(&out), word(&absolute));
        out
    }),
    ("FIFO, socket, device", |p| {
        p.make_node("node", FileType::Fifo)
    }),
    ("symbolic link at an ignored name", |p| {
        symlink("file", p.here.join(".link"))?;
        fs::read_link(p.here.join(".link")).map(drop)
    }),
    ("FIFO, socket, device at an ignored name", |p| {
        for (name, kind) in [
            (".fifo", FileType::Fifo),
            (".socket", FileType::Socket),
            (".device", FileType::CharacterDevice),
        ] {
            p.make_node(name, kind)?;
        }
        Ok(())
    }),
    (
        "rename one that could lead out, or an ignored directory with one in it, to an ordinary name",
        |p| {
            fs::create_dir_all(p.here.join(".dir/deep"))?;
            symlink("/x", p.here.join(".dir/deep/link"))?;
            let directory = p.rename(".dir", "dir", RenameFlags::empty());
            let link = p.rename(".dir/deep/link", "link", RenameFlags::empty());
            assert_eq!(word(&directory), word(&link));
            link
        },
    ),
    ("unnamed file (O_TMPFILE)", |p| {
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(p.here)
            .map(drop)
    }),
    ("change mode", |p| {
        fs::set_permissions(p.here.join("file"), fs::Permissions::from_mode(0o640))
    }),
    ("change times", |p| {
        File::open(p.here.join("file"))?
            .set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH))
    }),
    ("set a `user.*` attribute", |p| {
        p.set_attribute("user.colour")
    }),
    ("set a `user.meshbox.*` attribute", |p| {
        p.set_attribute("user.meshbox.state")
    }),
];

/// What an operation gave, in the words of the table.
fn word(result: &io::Result<()>) -> String {
    let Err(error) = result else {
        return "ok".into();
    };
    let names = [
        (libc::EROFS, "EROFS"),
        (libc::EPERM, "EPERM"),
        (libc::EXDEV, "EXDEV"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EACCES, "EACCES"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOENT, "ENOENT"),
    ];
    let code = error.raw_os_error();
    let known = names.iter().find(|(errno, _)| Some(*errno) == code);
    known.map_or_else(|| format!("{error}"), |(_, name)| (*name).to_owned())
}

/// The rows of the table under `## File operations`: operation → (outbox, inbox), each cell cut to its first word.
fn table() -> BTreeMap<String, (String, String)> {
    let semantics = include_str!("../packaging/doc/semantics.md");
    let section = semantics
        .split("\n## File operations")
        .nth(1)
        .expect("semantics.md has a section File operations");
    let section = section.split("\n## ").next().unwrap();
    let first = |cell: &str| {
        let word = cell
            .split([' ', ':', ',', ';'])
            .find(|w| !w.is_empty())
            .unwrap_or_default();
        word.trim_matches('`').to_owned()
    };
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .filter(|line| !line.starts_with("|--"))
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 3, "a row of three cells: {line}");
            (cells[0].to_owned(), (first(cells[1]), first(cells[2])))
        })
        .collect()
}

fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    for name in ["file", "other", "sub/inner"] {
        fs::write(dir.join(name), format!("{name} in {}", dir.display())).unwrap();
    }
}

#[test]
fn every_row_of_the_table_holds() {
    needs_mounts!();
    let (alder, birch) = Node::pair();
    for index in 0..CHECKS.len() {
        fill(&alder.outbox(&format!("row{index}")));
        fill(&birch.outbox(&format!("row{index}")));
    }
    for index in 0..CHECKS.len() {
        for name in ["file", "other", "sub/inner"] {
            let at = birch.inbox(&format!("row{index}/{name}"));
            wait_until(&format!("{} is there", at.display()), ARRIVES, || {
                at.exists()
            });
        }
    }
    let table = table();
    let mut wrong = Vec::new();
    for (index, (operation, check)) in CHECKS.iter().enumerate() {
        let Some((outbox, inbox)) = table.get(*operation) else {
            wrong.push(format!("semantics.md has no row `{operation}`"));
            continue;
        };
        let dir = format!("row{index}");
        let (out, inn) = (birch.outbox(&dir), birch.inbox(&dir));
        // The inbox first: an operation that moves between the sides finds its target directory untouched.
        for (side, here, there, said) in
            [("inbox", &inn, &out, inbox), ("outbox", &out, &inn, outbox)]
        {
            fill_again(side, here);
            let result = check(&Place { here, there });
            let got = word(&result);
            if got != *said {
                wrong.push(format!(
                    "{operation} in {side}: semantics.md says {said}, got {got} ({result:?})"
                ));
            }
        }
    }
    let rows: Vec<_> = table
        .keys()
        .filter(|row| !CHECKS.iter().any(|(name, _)| name == row))
        .collect();
    assert!(
        rows.is_empty(),
        "rows of semantics.md without a check: {rows:?}"
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the inbox's turn moved into the outbox goes before the outbox's turn.
fn fill_again(side: &str, here: &Path) {
    if side == "outbox" {
        fs::remove_file(here.join("moved")).ok();
        fs::remove_file(here.join("link")).ok();
    }
}

#[test]
fn the_root_takes_nothing_and_keeps_its_three_entries() {
    needs_mounts!();
    let node = Node::start("alder");
    let root = node.mountpoint();
    let errno = |result: io::Result<()>| word(&result);
    assert_eq!(errno(File::create(root.join("new")).map(drop)), "EROFS");
    assert_eq!(errno(fs::create_dir(root.join("dir"))), "EROFS");
    for dir in ["outbox", "inbox", ".meshbox"] {
        assert!(fs::remove_dir(root.join(dir)).is_err(), "{dir}");
        assert!(
            fs::rename(root.join(dir), root.join("outbox/elsewhere")).is_err(),
            "{dir}"
        );
    }
    assert!(File::create(root.join(".meshbox/status.json")).is_err());
    let names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn status_attributes_are_answered_but_never_listed() {
    needs_mounts!();
    let node = Node::start("alder");
    let sha = node.put("file", b"content");
    wait_until("it is sealed", ARRIVES, || {
        Node::attribute(&node.outbox("file"), "sha256") == sha
    });
    let mut buffer = [0u8; 1024];
    let len = rustix::fs::listxattr(node.outbox("file"), &mut buffer[..]).unwrap();
    assert!(!String::from_utf8_lossy(&buffer[..len]).contains("user.meshbox"));
}

#[test]
fn an_unlinked_open_file_keeps_working() {
    needs_mounts!();
    use std::io::{Read, Seek, Write};
    let node = Node::start("alder");
    let path = node.outbox("gone");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all(b"before ").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"after").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before after");
    assert_eq!(
        std::os::unix::fs::MetadataExt::nlink(&file.metadata().unwrap()),
        0
    );
}

#[test]
fn link_counts_show_visible_names_only() {
    needs_mounts!();
    use std::os::unix::fs::MetadataExt;
    let node = Node::start("alder");
    let sha = node.put("one", b"content");
    wait_until("it is sealed", ARRIVES, || {
        Node::attribute(&node.outbox("one"), "sha256") == sha
    });
    wait_until("one name, one link", ARRIVES, || {
        fs::metadata(node.outbox("one")).unwrap().nlink() == 1
    });
    fs::hard_link(node.outbox("one"), node.outbox("two")).unwrap();
    wait_until("two names, two links", ARRIVES, || {
        fs::metadata(node.outbox("one")).unwrap().nlink() == 2
    });
}

#[test]
fn statfs_tells_of_the_disk_behind_it() {
    needs_mounts!();
    let node = Node::start("alder");
    let (ours, disk) = (
        rustix::fs::statvfs(node.mountpoint()).unwrap(),
        rustix::fs::statvfs(node.state()).unwrap(),
    );
    assert_eq!(
        (ours.f_blocks * ours.f_frsize, ours.f_namemax),
        (disk.f_blocks * disk.f_frsize, disk.f_namemax)
    );
}
