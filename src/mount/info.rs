//! What `/proc/self/mountinfo` says.
//!
//! Reading it never touches a mount, so it is the only safe first look at a path that may be a dead or hung one.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::FS_TYPE;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The kernel's id of this mount. Used again after an unmount.
    pub id: u64,
    /// Id of the mount this one lies on.
    pub parent: u64,
    /// Device of the file system as `major:minor`.
    pub device: (u32, u32),
    /// Which part of the file system is shown: a path in it; of nsfs, the namespace.
    pub root: OsString,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// `fuse.meshbox`, `tmpfs`, `autofs`, …
    pub fs_type: String,
    /// What was mounted: for us, a label.
    pub source: OsString,
    /// Per-mount options such as `rw` and `nosuid`.
    pub options: String,
    /// Options of the file system, such as `user_id=0`.
    pub super_options: String,
}

impl MountEntry {
    /// Whether this is a Meshbox mount, of whichever daemon.
    pub(crate) fn is_meshbox(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// All mounts that this process can see, in the order of mounting.
#[derive(Debug, Clone, Default)]
pub(crate) struct MountTable {
    entries: Vec<MountEntry>,
}

impl MountTable {
    /// Reads the mounts of this process' mount namespace.
    pub(crate) fn read() -> io::Result<MountTable> {
        Ok(MountTable::parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// Parses mountinfo text. Lines that do not have its shape are left out.
    pub(crate) fn parse(text: &[u8]) -> MountTable {
        let entries = text.split(|b| *b == b'\n').filter_map(parse_line).collect();
        MountTable { entries }
    }

    /// The mount that a lookup of `path` would reach, if something is mounted exactly there.
    ///
    /// `path` must be absolute and without symlinks.
    pub(crate) fn top_at(&self, path: &Path) -> Option<&MountEntry> {
        let here = || self.entries.iter().filter(|e| e.mountpoint == path);
        // Of several mounts stacked on one path, the top is the one on which no other of them lies. The order of lines
        // agrees with that on most kernels, and decides where a loop or a hidden branch leaves more than one.
        here().rfind(|e| !here().any(|other| other.parent == e.id && other.id != e.id))
    }

    /// The Meshbox mount of this device that can be reached, if there is one: its number is the connection's.
    pub(crate) fn of_device(&self, device: (u32, u32)) -> Option<&MountEntry> {
        self.meshbox().find(|entry| entry.device == device)
    }

    /// The files of mount namespaces that are mounted somewhere.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &MountEntry> {
        let entries = self.entries.iter();
        entries.filter(|entry| entry.fs_type == "nsfs" && is_namespace(&entry.root))
    }

    /// The Meshbox mounts that can be reached, in order of mounting.
    pub(crate) fn meshbox(&self) -> impl Iterator<Item = &MountEntry> {
        self.entries.iter().filter(|e| {
            e.is_meshbox() && self.top_at(&e.mountpoint).is_some_and(|top| top.id == e.id)
        })
    }
}

/// The mountpoints of all Meshbox mounts in this mount namespace.
#[cfg(test)]
pub(crate) fn meshbox_mountpoints() -> io::Result<Vec<PathBuf>> {
    Ok(MountTable::read()?
        .meshbox()
        .map(|e| e.mountpoint.clone())
        .collect())
}

/// Whether that is how the kernel calls a mount namespace.
pub(super) fn is_namespace(id: &OsStr) -> bool {
    id.as_bytes().starts_with(b"mnt:[")
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`, see proc(5).
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = text(fields.next()?)
        .split_once(':')
        .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))?;
    let root = OsString::from_vec(unescape(fields.next()?));
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let options = text(fields.next()?);
    // Optional fields such as `shared:5` end with a lone dash.
    fields.by_ref().find(|f| *f == b"-")?;
    let fs_type = text(&unescape(fields.next()?));
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = text(fields.next().unwrap_or_default());
    Some(MountEntry {
        id,
        parent,
        device: (major, minor),
        root,
        mountpoint,
        fs_type,
        source,
        options,
        super_options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    OsStr::from_bytes(field).to_string_lossy().into_owned()
}

/// Undoes the kernel's `\ooo` escapes of space, tab, newline, `#` and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:30 / /srv/a\\040b\\134c rw,nosuid,nodev - fuse.meshbox site,one rw,user_id=0
41 22 0:31 / /mnt/auto rw shared:3 master:2 - autofs systemd-1 rw
not a line
42 22 0:4 mnt:[4026532279] /run/ns/mnt rw - nsfs nsfs rw
43 22 0:4 net:[4026532280] /run/netns/x rw - nsfs nsfs rw
50 22 0:40 / /srv/x rw - fuse.meshbox m rw
51 50 0:41 / /srv/x rw - tmpfs tmpfs rw
";

    #[test]
    fn fields_are_read_and_octal_escapes_undone() {
        let table = MountTable::parse(SAMPLE.as_bytes());
        assert_eq!(table.entries.len(), 7);
        let kept: Vec<_> = table.namespaces().collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].root, "mnt:[4026532279]");
        assert_eq!(kept[0].mountpoint, Path::new("/run/ns/mnt"));
        let ours = table.top_at(Path::new("/srv/a b\\c")).unwrap();
        assert_eq!((ours.id, ours.parent, ours.device), (40, 22, (0, 30)));
        assert!(ours.is_meshbox());
        assert_eq!(ours.source, "site,one");
        assert_eq!(ours.super_options, "rw,user_id=0");
        assert_eq!(
            table.top_at(Path::new("/mnt/auto")).unwrap().fs_type,
            "autofs"
        );
        assert!(table.top_at(Path::new("/srv")).is_none());
    }

    /// A mount that lies under a foreign one must neither be listed nor be found: unmounting "it" would hit the other.
    #[test]
    fn the_top_of_a_stack_is_found_in_any_order_of_lines() {
        for text in [
            SAMPLE.to_owned(),
            SAMPLE.lines().rev().map(|l| format!("{l}\n")).collect(),
        ] {
            let table = MountTable::parse(text.as_bytes());
            assert_eq!(table.top_at(Path::new("/srv/x")).unwrap().id, 51);
            let ours: Vec<_> = table.meshbox().map(|e| e.id).collect();
            assert_eq!(ours, [40]);
        }
    }

    #[test]
    fn the_table_of_this_machine_has_a_root() {
        let table = MountTable::read().unwrap();
        assert!(table.top_at(Path::new("/")).is_some());
    }
}
