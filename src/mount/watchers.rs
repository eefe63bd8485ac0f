//! Who watches a mount by inotify or fanotify, as far as `/proc` says.
//!
//! The kernel tells a file system nothing about watches, but it shows every watch to whoever may look at the watching
//! process: its descriptor's `fdinfo` names the device and the inode. Looking costs one `readlink` for each open
//! file of the machine, so it is for the caller to do it rarely; descriptors that were found are looked at first.
//!
//! Where processes are hidden from us, one of them may be watching: [`Watchers::any`] then says yes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Watches of one mount.
#[derive(Debug)]
pub(crate) struct Watchers {
    /// As fdinfo has it: ` sdev:2f `.
    device: String,
    /// Whether processes of other users could be watching.
    all_users: bool,
    /// `fdinfo` of the descriptors that watched it when we last looked.
    found: Vec<PathBuf>,
}

impl Watchers {
    /// Of the file system with this device, which other users may use too if `all_users`.
    pub(crate) fn new(device: (u32, u32), all_users: bool) -> Watchers {
        // The kernel's own encoding, not that of stat.
        let number = (device.0 << 20) | (device.1 & 0xf_ffff);
        Watchers {
            device: format!(" sdev:{number:x} "),
            all_users,
            found: Vec::new(),
        }
    }

    /// Whether anybody watches anything in it, or may do so unseen.
    pub(crate) fn any(&mut self) -> bool {
        let Watchers { found, device, .. } = self;
        found.retain(|fdinfo| watches(fdinfo, device));
        if !found.is_empty() {
            return true;
        }
        match self.look(Path::new("/proc")) {
            Ok(hidden) => !self.found.is_empty() || (hidden && self.all_users),
            // Without /proc nobody knows.
            Err(error) => {
                tracing::debug!(%error, "cannot see who watches the mount");
                true
            }
        }
    }

    /// Whether one of those who were found watches this inode.
    pub(crate) fn watch(&self, ino: u64) -> bool {
        let inode = format!(" ino:{ino:x}{}", self.device);
        self.found.iter().any(|fdinfo| watches(fdinfo, &inode))
    }

    /// Looks at all processes; says whether some are hidden.
    fn look(&mut self, proc: &Path) -> io::Result<bool> {
        let mut hidden = false;
        for process in fs::read_dir(proc)? {
            let process = process?;
            let name = process.file_name();
            if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            let process = process.path();
            let descriptors = match fs::read_dir(process.join("fd")) {
                Ok(descriptors) => descriptors,
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    hidden = true;
                    continue;
                }
                // Gone meanwhile.
                Err(_) => continue,
            };
            for descriptor in descriptors.map_while(Result::ok) {
                // Names differ between kernels by brackets.
                let watching = fs::read_link(descriptor.path()).is_ok_and(|target| {
                    let target = target.as_os_str().as_encoded_bytes();
                    target.starts_with(b"anon_inode:") && target.windows(6).any(|w| w == b"notify")
                });
                if !watching {
                    continue;
                }
                let fdinfo = process.join("fdinfo").join(descriptor.file_name());
                if watches(&fdinfo, &self.device) {
                    self.found.push(fdinfo);
                }
            }
        }
        Ok(hidden)
    }
}

fn watches(fdinfo: &Path, what: &str) -> bool {
    fs::read_to_string(fdinfo).is_ok_and(|text| text.contains(what))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const WATCHES: &str = "pos:\t0\nflags:\t00\nmnt_id:\t15\nino:\t1057\n\
        inotify wd:2 ino:8000000000000001 sdev:2f mask:fc6 ignored_mask:0 fhandle-bytes:8\n";

    fn process(proc: &Path, pid: &str, target: &str, fdinfo: &str) {
        let process = proc.join(pid);
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::create_dir_all(process.join("fdinfo")).unwrap();
        symlink("/etc/passwd", process.join("fd/3")).unwrap();
        symlink(target, process.join("fd/4")).unwrap();
        fs::write(process.join("fdinfo/4"), fdinfo).unwrap();
    }

    #[test]
    fn a_watch_is_found_by_its_device_and_its_inode() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        process(proc.path(), "7", "anon_inode:inotify", WATCHES);
        process(proc.path(), "8", "anon_inode:[eventpoll]", WATCHES);
        process(proc.path(), "9", "anon_inode:[fanotify]", WATCHES);
        let mut ours = Watchers::new((0, 0x2f), false);
        assert!(!ours.look(proc.path()).unwrap());
        assert_eq!(ours.found.len(), 2);
        assert!(ours.watch(0x8000_0000_0000_0001));
        assert!(!ours.watch(0x8000_0000_0000_0000) && !ours.watch(1));
        let mut other = Watchers::new((0, 0x2), false);
        other.look(proc.path()).unwrap();
        assert!(other.found.is_empty());
    }

    #[test]
    fn who_cannot_look_says_so_and_counts_as_watched() {
        let mut ours = Watchers::new((0, 0x2f), true);
        assert!(ours.look(Path::new("/nonexistent")).is_err());
    }
}
