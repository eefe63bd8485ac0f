//! Who holds a mount that is gone from our mount namespace: a container, a service with a namespace of its own, `unshare -m`.
//!
//! A namespace that is made is a copy of the one it was made from, our mounts included, and an unmount reaches the copy
//! only where mounts are shared. The connection, and with it the daemon, lives until the last copy is gone. How others are
//! found, and which are not: [`super::namespaces`].

use std::fmt;
use std::path::{Path, PathBuf};

use super::info::{MountEntry, MountTable};
use super::namespaces::{Keeper, Namespace, Search};

/// A mount namespace that has the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// What keeps it.
    pub keeper: Keeper,
    /// Where it has the mount.
    pub mountpoint: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.mountpoint.display();
        match &self.keeper {
            Keeper::Process { pid, command } => {
                write!(
                    f,
                    "process {pid} ({command}) holds it in another mount namespace, at {at}"
                )
            }
            Keeper::Mount { at: file } => write!(
                f,
                "a mount namespace without processes, kept by the mount at {}, holds it at {at}",
                file.display()
            ),
            Keeper::Descriptor { pid, command, fd } => write!(
                f,
                "a mount namespace without processes, kept by descriptor {fd} of process {pid} ({command}), holds it at {at}"
            ),
        }
    }
}

impl Holder {
    /// What ends the namespace, and what takes only the mount away.
    fn remedy(&self) -> String {
        let at = self.mountpoint.display();
        match &self.keeper {
            Keeper::Process { pid, .. } => format!(
                "end that process, or take the mount away there with `nsenter -t {pid} -m umount {at}` as root"
            ),
            Keeper::Mount { at: file } => format!(
                "take it away there with `nsenter --mount={file} umount {at}` as root, or let go of that namespace with \
                 `umount {file}`",
                file = file.display()
            ),
            Keeper::Descriptor { pid, fd, .. } => format!(
                "end that process, or take the mount away there with `nsenter --mount=/proc/{pid}/fd/{fd} umount {at}` as root"
            ),
        }
    }
}

/// Each other mount namespace that has a Meshbox mount which `is_wanted`.
pub(crate) fn elsewhere(is_wanted: impl Fn(&MountEntry) -> bool) -> Vec<Holder> {
    let held = |namespace: Namespace| {
        let mounts = namespace.mounts?;
        let mount = mounts.meshbox().find(|mount| is_wanted(mount))?;
        Some(Holder {
            keeper: namespace.keeper,
            mountpoint: mount.mountpoint.clone(),
        })
    };
    let mut search = Search::new();
    let found: Vec<Holder> = search.of_processes().into_iter().filter_map(held).collect();
    if !found.is_empty() {
        return found;
    }
    search.of_others().into_iter().filter_map(held).collect()
}

/// Where else our own namespace has the mount: a bind mount.
pub(crate) fn here(is_wanted: impl Fn(&MountEntry) -> bool) -> Option<PathBuf> {
    let table = MountTable::read().ok()?;
    let mount = table.meshbox().find(|mount| is_wanted(mount))?;
    Some(mount.mountpoint.clone())
}

/// A mount namespace that keeps mounts without a process, if there is one that we may not look into.
fn unseen() -> Option<PathBuf> {
    let mut search = Search::new();
    search.of_processes();
    let mut others = search.of_others().into_iter();
    others.find_map(|namespace| match namespace {
        Namespace {
            keeper: Keeper::Mount { at },
            mounts: None,
        } => Some(at),
        _ => None,
    })
}

/// What holds the mount, and what to do about it; `None` if nobody is seen to hold it.
pub(crate) fn explain(holders: &[Holder]) -> Option<String> {
    let first = holders.first()?;
    let more = match holders.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more namespaces hold it"),
    };
    Some(format!("{first}{more}: {}", first.remedy()))
}

/// What may hold a mount that nobody is seen to hold, at `at`; `None` if nothing may.
pub(crate) fn explain_unseen(at: &Path) -> Option<String> {
    let file = unseen()?;
    let (file, at) = (file.display(), at.display());
    Some(format!(
        "the mount namespace that is kept by the mount at {file} may hold it, only root can see: `nsenter --mount={file} umount {at}`"
    ))
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

    fn said(keepers: Vec<Keeper>) -> String {
        let holder = |keeper| Holder {
            keeper,
            mountpoint: "/srv/share".into(),
        };
        let holders: Vec<Holder> = keepers.into_iter().map(holder).collect();
        explain(&holders).unwrap()
    }

    #[test]
    fn the_process_and_the_remedy_are_named() {
        let process = |pid| Keeper::Process {
            pid,
            command: "sleep".into(),
        };
        let one = said(vec![process(7)]);
        assert!(one.starts_with("process 7 (sleep) holds it"), "{one}");
        assert!(one.contains("`nsenter -t 7 -m umount /srv/share`"), "{one}");
        assert!(!one.contains("more namespaces"), "{one}");
        let three = said(vec![process(7), process(8), process(9)]);
        assert!(three.contains("and 2 more namespaces"), "{three}");
    }

    #[test]
    fn what_keeps_a_namespace_without_processes_is_named_with_the_remedy() {
        let mount = said(vec![Keeper::Mount {
            at: "/run/ns".into(),
        }]);
        for words in [
            "kept by the mount at /run/ns",
            "`nsenter --mount=/run/ns umount /srv/share`",
            "`umount /run/ns`",
        ] {
            assert!(mount.contains(words), "{mount}");
        }
        let open = said(vec![Keeper::Descriptor {
            pid: 7,
            command: "keeper".into(),
            fd: "5".into(),
        }]);
        for words in [
            "descriptor 5 of process 7 (keeper)",
            "`nsenter --mount=/proc/7/fd/5 umount /srv/share`",
        ] {
            assert!(open.contains(words), "{open}");
        }
    }
}
