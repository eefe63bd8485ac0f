//! Whether a group may be founded: not where another state waits for this very mailbox.
//!
//! The state of a mount is called by its path. After a home was moved, or a directory renamed, the same mailbox has another
//! path, and so no state; a new group would be founded there while files wait in the old one, unseen.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{Config, Kept};
use crate::mount::place::{Fate, fate};
use crate::spool::{Layout, is_alone};

/// A state that seems to be meant.
#[derive(Debug, Error)]
#[error(
    "{at} seems to be a mailbox that was moved: the state {other} was last mounted at {before}, {why}, and is not alone in its \
     group. To go on with it: `mv {other} {state}`, then mount again; or mount with --state {other}. To found a new group \
     all the same: --new",
    at = at.display(), other = other.display(), before = before.display(), state = state.display()
)]
pub(super) struct Moved {
    at: PathBuf,
    other: PathBuf,
    before: PathBuf,
    why: &'static str,
    state: PathBuf,
}

/// Refuses to found a group in the state that is named by the mountpoint, if the state of another name waits for it.
pub(super) fn check(layout: &Layout, config: &Config) -> Result<(), Moved> {
    let joins = config.ticket.is_some() || config.invitation.is_some();
    if joins || config.new || layout.group_key().exists() {
        return Ok(());
    }
    let (Some(states), Some(at)) = (&config.states, &config.place) else {
        return Ok(());
    };
    match waiting(states, &config.state, at) {
        None => Ok(()),
        Some((other, before, why)) => Err(Moved {
            at: at.clone(),
            other,
            before,
            why,
            state: config.state.clone(),
        }),
    }
}

fn waiting(states: &Path, ours: &Path, at: &Path) -> Option<(PathBuf, PathBuf, &'static str)> {
    let entries = std::fs::read_dir(states).ok()?;
    entries.flatten().find_map(|entry| {
        let layout = Layout::new(entry.path());
        if Some(entry.file_name().as_os_str()) == ours.file_name() || is_alone(&layout) {
            return None;
        }
        let before = Kept::read(&layout).ok()?.mountpoint?;
        if before.file_name() != at.file_name() {
            return None;
        }
        let why = match fate(&before, at) {
            Fate::Gone => "which is gone",
            Fate::Same => "which is this very directory",
            Fate::Other => return None,
        };
        Some((entry.path(), before, why))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_waits_for_a_mountpoint_of_its_name_that_is_gone_or_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let states = top.join("states");
        let layout = Layout::new(states.join("al-share"));
        std::fs::create_dir_all(layout.state()).unwrap();
        std::fs::create_dir_all(top.join("bo/share")).unwrap();
        let ours = states.join("bo-share");
        let last_at = |path: &Path| {
            let text = format!("mountpoint = {:?}\n", path.display().to_string());
            std::fs::write(layout.node(), text).unwrap();
        };
        let why = |at: &str| Some(waiting(&states, &ours, &top.join(at))?.2);
        last_at(&top.join("al/share"));
        assert_eq!(why("bo/share"), None, "nobody else is in its group");
        std::fs::write(layout.bound(), "").unwrap();
        assert_eq!(why("bo/share"), Some("which is gone"));
        assert_eq!(why("bo/other"), None, "called otherwise");
        last_at(&top.join("bo/share"));
        assert_eq!(why("bo/share"), Some("which is this very directory"));
        std::fs::create_dir_all(top.join("al/share")).unwrap();
        last_at(&top.join("al/share"));
        assert_eq!(why("bo/share"), None, "that one is still there");
        assert_eq!(waiting(&top.join("none"), &ours, &top), None);
    }
}
