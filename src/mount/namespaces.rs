//! Other mount namespaces: those of processes, and those that no process is in any more.
//!
//! A mount namespace lives as long as a process is in it, a mount of its file shows it (`unshare --mount=FILE`, as `ip
//! netns` keeps network namespaces), or somebody has that file open. The kernel has no list of them, but each of the three
//! can be found: in `/proc/PID/ns`, as a mount of type nsfs in the table of a namespace that was found before, in
//! `/proc/PID/fd`. The table of one without processes can be read from within only.
//!
//! Best effort: root finds the namespaces of all processes and may look into any, others those of their own processes. One
//! that is mounted only within a namespace that itself has no process is not found.
#![allow(unsafe_code)] // unshare(2) of what a thread shares with the others

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::info::{MountTable, is_namespace};

/// How long it may take to look into a namespace: on the way to its file may be a mount that hangs.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// What keeps a mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// A process, or a thread of it, that is in it: the oldest that was found.
    Process {
        /// Its id.
        pid: u32,
        /// Its program.
        command: String,
    },
    /// A mount of its file.
    Mount {
        /// Where, as we reach it.
        at: PathBuf,
    },
    /// A process that is not in it and has its file open.
    Descriptor {
        /// Its id.
        pid: u32,
        /// Its program.
        command: String,
        /// The descriptor.
        fd: String,
    },
}

/// A mount namespace that is not ours.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    /// What keeps it.
    pub keeper: Keeper,
    /// Its mounts; `None` if we may not look.
    pub mounts: Option<MountTable>,
}

/// Looks at each other mount namespace once.
#[derive(Debug)]
pub(super) struct Search {
    /// Namespaces that were looked at, as `mnt:[4026531841]`.
    seen: BTreeSet<PathBuf>,
    processes: BTreeSet<u32>,
    /// Files of namespaces, as mounts show them, and where we reach them.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Search {
    /// Begins a search.
    pub(super) fn new() -> Self {
        let mut search = Self {
            seen: namespace_of(Path::new("/proc/self")).into_iter().collect(),
            processes: processes(),
            files: Vec::new(),
        };
        if let Ok(ours) = MountTable::read() {
            search.note_files(&ours, Path::new("/"));
        }
        search
    }

    fn note_files(&mut self, table: &MountTable, root: &Path) {
        for entry in table.namespaces() {
            let below = entry.mountpoint.strip_prefix("/").unwrap_or(Path::new(""));
            self.files
                .push((entry.root.clone().into(), root.join(below)));
        }
    }

    /// Those that processes are in.
    pub(super) fn of_processes(&mut self) -> Vec<Namespace> {
        let mut found = Vec::new();
        for pid in self.processes.clone() {
            found.extend(self.of_task(pid, &PathBuf::from(format!("/proc/{pid}"))));
        }
        found
    }

    /// Those that only threads, mounts and open descriptors keep. Slower.
    pub(super) fn of_others(&mut self) -> Vec<Namespace> {
        let mut found = Vec::new();
        for pid in self.processes.clone() {
            for task in names(&PathBuf::from(format!("/proc/{pid}/task"))) {
                let task = PathBuf::from(format!("/proc/{pid}/task/{task}"));
                found.extend(self.of_task(pid, &task));
            }
        }
        for (id, at) in std::mem::take(&mut self.files) {
            if self.seen.insert(id) {
                let mounts = mounts_in(&at).ok();
                let keeper = Keeper::Mount { at };
                found.push(Namespace { keeper, mounts });
            }
        }
        for pid in self.processes.clone() {
            let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
            for fd in names(&descriptors) {
                let at = descriptors.join(&fd);
                let Ok(id) = fs::read_link(&at) else { continue };
                if !is_namespace(id.as_os_str()) || !self.seen.insert(id) {
                    continue;
                }
                let mounts = mounts_in(&at).ok();
                let command = command_of(pid);
                let keeper = Keeper::Descriptor { pid, command, fd };
                found.push(Namespace { keeper, mounts });
            }
        }
        found
    }

    fn of_task(&mut self, pid: u32, task: &Path) -> Option<Namespace> {
        let inside = namespace_of(task).filter(|inside| !self.seen.contains(inside))?;
        // A process that ends at this moment has none; another may be in the same namespace.
        let mounts = MountTable::parse(&fs::read(task.join("mountinfo")).ok()?);
        self.seen.insert(inside);
        self.note_files(&mounts, &task.join("root"));
        let command = command_of(pid);
        Some(Namespace {
            keeper: Keeper::Process { pid, command },
            mounts: Some(mounts),
        })
    }
}

fn namespace_of(task: &Path) -> Option<PathBuf> {
    fs::read_link(task.join("ns/mnt")).ok()
}

fn command_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

/// All processes, in the order of their ids.
fn processes() -> BTreeSet<u32> {
    let names = names(Path::new("/proc")).into_iter();
    names.filter_map(|name| name.parse().ok()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// The mounts of the namespace whose file this is. A thread goes there to look, and ends there.
fn mounts_in(namespace: &Path) -> io::Result<MountTable> {
    // One answer from one thread.
    let (answer, answered) = mpsc::sync_channel(1);
    let path = namespace.to_owned();
    thread::Builder::new()
        .name("mount-namespace".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            drop(answer.send(look_into(&path)));
        })?;
    let text = answered
        .recv_timeout(LOOK_LIMIT)
        .map_err(io::Error::other)??;
    Ok(MountTable::parse(&text))
}

/// Moves the calling thread into the namespace and reads its table.
fn look_into(namespace: &Path) -> io::Result<Vec<u8>> {
    // There it may be mounted elsewhere, or not at all.
    let proc = File::open("/proc")?;
    let file = File::open(namespace)?;
    // SAFETY: only the working directory and the root of this thread become its own; descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = openat(&proc, "thread-self/mountinfo", flags, Mode::empty())?;
    let mut text = Vec::new();
    File::from(table).read_to_end(&mut text)?;
    Ok(text)
}
