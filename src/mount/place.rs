//! What a mountpoint is called, and what became of one that was used before. Neither touches a mount.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::info::MountTable;
use super::resolve::{Kind, ResolveError, resolve};

/// The one name of the place that `path` means: absolute, its parent without links. The last part stays what it is
/// called, though it be a link, and need not exist.
pub(crate) fn place(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let table = MountTable::read()?;
    let resolved = |path: &Path| match resolve(path, &table) {
        Ok(found) => Ok(found.path),
        // It is refused later, with better words.
        Err(ResolveError::InsideMeshbox(_)) => Ok(path.to_owned()),
        Err(ResolveError::Io(error)) => Err(error),
    };
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => Ok(resolved(parent)?.join(name)),
        // The root, or it ends in `..`.
        _ => resolved(&absolute),
    }
}

/// Where the Meshbox mount is that `path` leads to or into.
pub(crate) fn mailbox_of(path: &Path, table: &MountTable) -> io::Result<Option<PathBuf>> {
    match resolve(path, table) {
        Ok(found) => {
            let top = table.top_at(&found.path);
            Ok(top.filter(|top| top.is_meshbox()).map(|_| found.path))
        }
        Err(ResolveError::InsideMeshbox(at)) => Ok(Some(at)),
        Err(ResolveError::Io(error)) => Err(error),
    }
}

/// What became of a place where something was mounted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// There is no such directory any more.
    Gone,
    /// It is the same directory.
    Same,
    /// It is there, or may be.
    Other,
}

/// What became of `before`, seen from the mountpoint `now`.
pub(crate) fn fate(before: &Path, now: &Path) -> Fate {
    let Ok(table) = MountTable::read() else {
        return Fate::Other;
    };
    fate_in(before, now, &table)
}

fn fate_in(before: &Path, now: &Path, table: &MountTable) -> Fate {
    let (Ok(before), Ok(now)) = (resolve(before, table), resolve(now, table)) else {
        return Fate::Other;
    };
    if before.path == now.path {
        return Fate::Same;
    }
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    match before.kind {
        // What is right below an automount comes and goes.
        Kind::Missing => {
            let below = before.path.ancestors().find_map(|dir| table.top_at(dir));
            if below.is_some_and(|mount| mount.fs_type == "autofs") {
                Fate::Other
            } else {
                Fate::Gone
            }
        }
        // Two names of one directory: a bind mount.
        Kind::Directory
            if now.kind == Kind::Directory && identity(&before.path) == identity(&now.path) =>
        {
            Fate::Same
        }
        Kind::Directory | Kind::NotADirectory | Kind::Mount => Fate::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::trial::scratch;
    use super::*;

    #[test]
    fn a_place_has_one_name_whichever_way_leads_to_it() {
        let (_dir, top) = scratch();
        fs::create_dir_all(top.join("home/al")).unwrap();
        symlink(top.join("home"), top.join("h")).unwrap();
        symlink("al", top.join("home/link")).unwrap();
        let share = top.join("home/al/share");
        for way in [
            "home/al/share",
            "h/al/share",
            "h/link/share",
            "home/al/./x/../share",
        ] {
            let made = fs::create_dir_all(top.join("home/al/x"));
            assert_eq!(place(&top.join(way)).unwrap(), share, "{way} {made:?}");
        }
        // Its own name stays.
        assert_eq!(place(&top.join("h/link")).unwrap(), top.join("home/link"));
        assert_eq!(place(&top.join("h/al/x/..")).unwrap(), top.join("home/al"));
        assert_eq!(place(&top.join("no/such")).unwrap(), top.join("no/such"));
        assert_eq!(place(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn a_place_is_gone_or_the_same_or_neither() {
        let (_dir, top) = scratch();
        fs::create_dir_all(top.join("bo/share")).unwrap();
        fs::create_dir_all(top.join("other")).unwrap();
        symlink(top.join("bo"), top.join("link")).unwrap();
        let now = top.join("bo/share");
        let fate = |before: &str| fate(&top.join(before), &now);
        assert_eq!(fate("al/share"), Fate::Gone);
        assert_eq!(fate("bo/share"), Fate::Same);
        assert_eq!(fate("link/share"), Fate::Same);
        assert_eq!(fate("other"), Fate::Other);
    }

    #[test]
    fn a_mailbox_is_found_from_within_and_by_a_link() {
        let (_dir, top) = scratch();
        fs::create_dir_all(top.join("box/outbox")).unwrap();
        symlink(top.join("box"), top.join("link")).unwrap();
        let text = format!(
            "1 0 0:9 / {} rw - fuse.meshbox x rw\n",
            top.join("box").display()
        );
        let table = MountTable::parse(text.as_bytes());
        for inside in ["box", "link", "box/outbox/gone/x", "link/inbox"] {
            let found = mailbox_of(&top.join(inside), &table).unwrap();
            assert_eq!(found, Some(top.join("box")), "{inside}");
        }
        assert_eq!(mailbox_of(&top, &table).unwrap(), None);
        assert_eq!(mailbox_of(&top.join("none"), &table).unwrap(), None);
    }

    #[test]
    fn what_an_automount_may_bring_back_is_not_gone_and_a_mount_is_not_touched() {
        let text = "1 0 0:9 / /nowhere rw - autofs x rw\n2 0 0:8 / /mnt rw - fuse.meshbox x rw\n";
        let table = MountTable::parse(text.as_bytes());
        let now = Path::new("/tmp");
        assert_eq!(fate_in(Path::new("/nowhere/al"), now, &table), Fate::Other);
        assert_eq!(fate_in(Path::new("/nowhere2/al"), now, &table), Fate::Gone);
        assert_eq!(fate_in(Path::new("/mnt"), now, &table), Fate::Other);
    }
}
