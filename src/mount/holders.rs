//! Who holds a mount that is gone from our mount namespace: a container, a service with a namespace of its own, `unshare -m`.
//!
//! A namespace that is made is a copy of the one it was made from, our mounts included, and an unmount reaches the copy
//! only where mounts are shared. The connection, and with it the daemon, lives until the last copy is gone.
//!
//! Best effort: root sees the namespaces of all processes, others see those of their own; a namespace that no process is
//! in any more (kept by a bind mount) is not found.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::info::{MountEntry, MountTable};

/// A process in another mount namespace that has the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The oldest process that was found in that namespace.
    pub pid: u32,
    /// Its program.
    pub command: String,
    /// Where that namespace has the mount.
    pub mountpoint: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// One process of each other mount namespace that has a Meshbox mount which `is_wanted`.
pub fn elsewhere(is_wanted: impl Fn(&MountEntry) -> bool) -> Vec<Holder> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace(Path::new("/proc/self")).into_iter().collect();
    let mut found = Vec::new();
    for pid in processes() {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Some(inside) = namespace(&process).filter(|inside| !seen.contains(inside)) else {
            continue;
        };
        let Ok(text) = fs::read(process.join("mountinfo")) else {
            continue;
        };
        seen.insert(inside);
        let table = MountTable::parse(&text);
        let held = table.meshbox().find(|mount| is_wanted(mount));
        found.extend(held.map(|mount| {
            Holder {
                pid,
                command: fs::read_to_string(process.join("comm"))
                    .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned()),
                mountpoint: mount.mountpoint.clone(),
            }
        }));
    }
    found
}

/// What holds the mount, and what to do about it; `None` if nobody is seen to hold it.
pub fn explain(holders: &[Holder]) -> Option<String> {
    let first = holders.first()?;
    let more = match holders.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more namespaces hold it"),
    };
    Some(format!(
        "{first} holds it in another mount namespace, at {at}{more}: end that process, or take the mount away there with \
         `nsenter -t {pid} -m umount {at}` as root",
        at = first.mountpoint.display(),
        pid = first.pid
    ))
}

/// All processes, in the order of their ids.
fn processes() -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.flatten().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_is_not_elsewhere_and_nobody_is_nothing_to_say() {
        let ours = MountTable::read().unwrap();
        let here: Vec<u64> = ours.meshbox().map(|mount| mount.id).collect();
        let found = elsewhere(|mount| here.contains(&mount.id));
        assert!(found.is_empty(), "ids are unique on a machine: {found:?}");
        assert_eq!(explain(&[]), None);
    }

    #[test]
    fn the_process_and_the_remedy_are_named() {
        let holder = |pid| Holder {
            pid,
            command: "sleep".into(),
            mountpoint: "/srv/share".into(),
        };
        let one = explain(&[holder(7)]).unwrap();
        assert!(one.starts_with("process 7 (sleep) holds it"), "{one}");
        assert!(one.contains("`nsenter -t 7 -m umount /srv/share`"), "{one}");
        assert!(!one.contains("more namespaces"), "{one}");
        let three = explain(&[holder(7), holder(8), holder(9)]).unwrap();
        assert!(three.contains("and 2 more namespaces"), "{three}");
    }
}
