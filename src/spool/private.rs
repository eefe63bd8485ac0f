//! Who may look into the state: nobody but the user that the daemon runs as.
//!
//! The trees in it are plain directories with the modes that programs gave them, and keys and journal lie beside them. All
//! of it is kept from other users by one thing, the mode of the state directory itself.
//!
//! # Rules
//! 1. A directory that is made here has mode 0700, and so has each of its parents that was missing.
//! 2. One that was there already and is ours and empty, but for what an installer puts there, is made 0700.
//! 3. Any other that is wider is refused. It is never changed: it may be somebody's home, or shared on purpose.
//! 4. Files that are opened by name have mode 0600 all the same; above all the lock, since whoever may open a file may
//!    hold a lock on it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::durable::{self, OnPath};
use super::{Layout, SpoolError, StateLock};

/// The bits of a mode that let others in.
const OTHERS: u32 = 0o077;

/// What may lie in a state directory before its first start: made by mkfs, or put there by whoever sets the node up.
const BEFOREHAND: [&str; 5] = [
    "lost+found",
    "config.toml",
    "identity.key",
    "group.key",
    "old-keys",
];

/// Removes a state directory with all that was received in it. Gives an error if a daemon uses it.
pub(crate) fn remove_state_directory(layout: &Layout) -> Result<(), SpoolError> {
    let _unused = StateLock::take(layout)?;
    Ok(durable::remove_all(layout.state())?)
}

/// Makes the state directory if it is missing; gives the directories that were made, the deepest first. Gives an error if
/// other users may look into it.
pub(crate) fn make_state_directory(layout: &Layout) -> Result<Vec<PathBuf>, SpoolError> {
    let state = layout.state();
    let missing = state.ancestors().take_while(|path| !path.exists());
    let missing = missing.map(Path::to_owned).collect();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(state);
    made.on("create", state)?;
    let found = File::open(state).on("open", state)?;
    let meta = found.metadata().on("look at", state)?;
    let mode = meta.mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(missing);
    }
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if ours && is_unused(state)? {
        let closed = found.set_permissions(Permissions::from_mode(mode & !OTHERS));
        closed.on("set the mode of", state)?;
        // A file system without modes says yes and changes nothing.
        if found.metadata().on("look at", state)?.mode() & OTHERS == 0 {
            return Ok(missing);
        }
    }
    Err(SpoolError::StateExposed {
        path: state.to_owned(),
        mode,
    })
}

fn is_unused(state: &Path) -> Result<bool, SpoolError> {
    let mut names = fs::read_dir(state).on("list", state)?;
    let beforehand = |entry: io::Result<fs::DirEntry>| {
        let name = entry.map(|entry| entry.file_name());
        name.map(|name| BEFOREHAND.iter().any(|known| name == *known))
    };
    loop {
        match names.next().map(beforehand).transpose().on("list", state)? {
            None => return Ok(true),
            Some(true) => {}
            Some(false) => return Ok(false),
        }
    }
}

/// Makes the root of a tree that the mount shows, unless it is there: open to all like any new directory, so that
/// `allow_other` means something. On disk its parent keeps others out; where that does not, it is made for us alone.
pub(super) fn make_shown_root(path: &Path, parent: &Path) -> Result<(), SpoolError> {
    let others = parent.metadata().on("look at", parent)?.mode() & OTHERS;
    if others != 0 || path.exists() {
        return Ok(durable::make_directory(path)?);
    }
    durable::make_directory(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).on("set the mode of", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("a/state"));
        (dir, layout)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_state_that_a_daemon_uses_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("state"));
        make_state_directory(&layout).unwrap();
        fs::write(layout.config(), "kept").unwrap();
        let used = StateLock::take(&layout).unwrap();
        assert!(matches!(
            remove_state_directory(&layout),
            Err(SpoolError::InUse { .. })
        ));
        assert!(layout.config().exists());
        drop(used);
        remove_state_directory(&layout).unwrap();
        assert!(!layout.state().exists());
    }

    #[test]
    fn a_state_directory_is_made_for_its_owner_only() {
        let (dir, layout) = place();
        make_state_directory(&layout).unwrap();
        for made in [layout.state(), &dir.path().join("a")] {
            assert_eq!(mode(made), 0o700, "{}", made.display());
        }
        make_state_directory(&layout).unwrap();
    }

    #[test]
    fn a_wide_one_that_was_made_beforehand_is_closed_while_it_is_unused() {
        let (_dir, layout) = place();
        fs::create_dir_all(layout.state()).unwrap();
        for wide in [0o755, 0o750, 0o701, 0o777, 0o1777] {
            set(layout.state(), wide);
            make_state_directory(&layout).unwrap();
            assert_eq!(mode(layout.state()), wide & 0o7700);
        }
        fs::create_dir(layout.state().join("lost+found")).unwrap();
        fs::write(layout.config(), "").unwrap();
        fs::write(layout.identity_key(), "").unwrap();
        set(layout.state(), 0o755);
        make_state_directory(&layout).unwrap();
        assert_eq!(mode(layout.state()), 0o700);
    }

    #[test]
    fn a_wide_one_with_anything_else_in_it_is_refused_with_the_remedy_and_left_alone() {
        for name in ["journal.redb", "notes.txt", ".bashrc"] {
            let (_dir, layout) = place();
            make_state_directory(&layout).unwrap();
            fs::write(layout.state().join(name), "").unwrap();
            make_state_directory(&layout).unwrap();
            set(layout.state(), 0o755);
            let said = make_state_directory(&layout).unwrap_err().to_string();
            assert!(said.contains("can be read by others"), "{said}");
            let remedy = format!("chmod 700 {}", layout.state().display());
            assert!(said.contains(&remedy) && said.contains("--state"), "{said}");
            assert_eq!(mode(layout.state()), 0o755, "{name}");
        }
    }
}
