//! Key files: made on first use, 0600, refused when others can read them.
//!
//! # Invariants
//! 1. A key file appears whole or not at all: it is written and fsynced under another name, then linked; the name is
//!    durable before the key is used. Two daemons on their first start agree on one key.
//! 2. A key file is never overwritten.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::peer::{GroupKey, Identity, random};
use crate::spool::{Layout, SpoolError};

/// Far more than a key in hex; a larger file is something else.
const MAX_KEY_FILE: u64 = 4096;

/// Why there is no key to start with.
#[derive(Debug, Error)]
pub(crate) enum KeyError {
    /// The disk, or a file that is not a key.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The ticket is for another group than this state.
    #[error(
        "the ticket is for group {theirs}, but the node of {} is in group {ours}, and not alone in it (a ticket was made, others \
         are known, or something was sent); leave out --join to stay, or choose another --state to join that group as well",
        state.display()
    )]
    OtherGroup {
        /// The state directory.
        state: PathBuf,
        /// Public name of the group it belongs to.
        ours: String,
        /// Public name of the ticket's group.
        theirs: String,
    },
    /// The node of this state has left its group.
    #[error(
        "the node of {state} has left its group; what it received is in {state}/inbox. Move or remove that directory to begin \
         anew, or choose another --state", state = state.display()
    )]
    Left {
        /// The state directory.
        state: PathBuf,
    },
    /// An identity made from the group key is needed before the group key is there.
    #[error(
        "with `identity = \"derived\"` a node cannot join by a ticket that expires or holds once, since the group key \
         is not in it; use one of plain `meshbox ticket`, or leave out --identity"
    )]
    DerivedByInvitation,
}

/// This node's key pair, made on first use.
pub(crate) fn load_or_create_identity(layout: &Layout) -> Result<Identity, SpoolError> {
    let path = layout.identity_key();
    match load(&path)? {
        Some(secret) => Ok(Identity::from_secret(secret)),
        None => create(&path, random()).map(Identity::from_secret),
    }
}

/// This node's key pair, if it was made already.
pub(crate) fn load_identity(layout: &Layout) -> Result<Option<Identity>, SpoolError> {
    Ok(load(&layout.identity_key())?.map(Identity::from_secret))
}

/// Makes `identity` this node's, unless it has one; gives the one it has.
pub(crate) fn store_identity(layout: &Layout, identity: &Identity) -> Result<Identity, SpoolError> {
    create(&layout.identity_key(), identity.secret()).map(Identity::from_secret)
}

/// The group's key, if there is one.
pub(crate) fn load_group(layout: &Layout) -> Result<Option<GroupKey>, SpoolError> {
    let path = layout.group_key();
    let key = load(&path)?.map(GroupKey::from_bytes).transpose();
    key.map_err(|err| bad(&path, err.to_string()))
}

fn founding_mark(layout: &Layout) -> PathBuf {
    layout.state().join("founding")
}

/// Whether this node made the group's key, and nothing else says so yet.
pub(crate) fn is_founding(layout: &Layout) -> bool {
    founding_mark(layout).exists()
}

/// The journal knows by now who is the admin.
pub(crate) fn founded(layout: &Layout) -> Result<(), SpoolError> {
    let mark = founding_mark(layout);
    match std::fs::remove_file(&mark) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &mark)(err)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn mark_founding(layout: &Layout) -> Result<(), SpoolError> {
    let mark = founding_mark(layout);
    File::create(&mark).map_err(io_error("create", &mark))?;
    // Its name is made durable with that of the key.
    Ok(())
}

/// Makes `key` the group's, unless there is one. `founding`: it is a new group, and this node its admin.
pub(crate) fn store_group(
    layout: &Layout,
    key: &GroupKey,
    founding: bool,
) -> Result<(), SpoolError> {
    match founding {
        true => mark_founding(layout)?,
        false => founded(layout)?,
    }
    create(&layout.group_key(), *key.as_bytes()).map(drop)
}

/// Removes the group's key, and with `identity` this node's own: there is no group then.
pub(crate) fn remove(layout: &Layout, identity: bool) -> Result<(), SpoolError> {
    let own = Some(layout.identity_key()).filter(|_| identity);
    for path in [layout.group_key(), founding_mark(layout)]
        .into_iter()
        .chain(own)
    {
        match std::fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &path)(err));
            }
            Ok(()) | Err(_) => {}
        }
    }
    sync_directory(layout.state())
}

fn load(path: &Path) -> Result<Option<[u8; 32]>, SpoolError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(io_error("open", path)(err)),
    };
    let mode = file.metadata().map_err(io_error("look at", path))?.mode();
    if mode & 0o077 != 0 {
        return Err(SpoolError::KeyExposed {
            path: path.to_owned(),
            mode: mode & 0o7777,
        });
    }
    let mut text = Vec::new();
    file.take(MAX_KEY_FILE)
        .read_to_end(&mut text)
        .map_err(io_error("read", path))?;
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(text.trim_ascii())
        .map_err(|_| bad(path, "it should be 64 hex digits".to_owned()))?;
    let found = bytes.len();
    match bytes.try_into() {
        Ok(key) => Ok(Some(key)),
        Err(_) => Err(bad(
            path,
            format!("it should be 64 hex digits, not {}", 2 * found),
        )),
    }
}

/// Writes a new key file; if another daemon was faster, gives the key it wrote.
fn create(path: &Path, key: [u8; 32]) -> Result<[u8; 32], SpoolError> {
    let draft = path.with_extension(format!(
        "new-{}",
        data_encoding::HEXLOWER.encode(&random::<8>())
    ));
    let written = write_draft(&draft, &key).and_then(|()| match std::fs::hard_link(&draft, path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(err) => Err(io_error("create", path)(err)),
    });
    let removed = std::fs::remove_file(&draft).map_err(io_error("remove", &draft));
    let ours = written?;
    removed?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))?;
    if ours {
        return Ok(key);
    }
    load(path)?.ok_or_else(|| io_error("open", path)(io::ErrorKind::NotFound.into()))
}

fn sync_directory(dir: &Path) -> Result<(), SpoolError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", dir))
}

fn write_draft(draft: &Path, key: &[u8; 32]) -> Result<(), SpoolError> {
    let line = format!("{}\n", data_encoding::HEXLOWER.encode(key));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)
        .map_err(io_error("create", draft))?;
    file.write_all(line.as_bytes())
        .map_err(io_error("write", draft))?;
    file.sync_all().map_err(io_error("sync", draft))
}

fn bad(path: &Path, why: String) -> SpoolError {
    SpoolError::BadKey {
        path: path.to_owned(),
        why,
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::make_state_directory;
    use std::os::unix::fs::PermissionsExt;

    fn state() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("a/state"));
        make_state_directory(&layout).unwrap();
        (dir, layout)
    }

    #[test]
    fn keys_are_made_once_and_for_their_owner_only() {
        let (_dir, layout) = state();
        assert!(load_identity(&layout).unwrap().is_none());
        let identity = load_or_create_identity(&layout).unwrap();
        let group = GroupKey::generate();
        store_group(&layout, &group, true).unwrap();
        assert!(is_founding(&layout));
        assert_eq!(
            load_or_create_identity(&layout).unwrap().id(),
            identity.id()
        );
        assert_eq!(
            load_identity(&layout).unwrap().map(|i| i.id()),
            Some(identity.id())
        );
        store_group(&layout, &GroupKey::generate(), false).unwrap();
        assert_eq!(
            load_group(&layout).unwrap(),
            Some(group),
            "never overwritten"
        );
        for path in [layout.identity_key(), layout.group_key()] {
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o7777,
                0o600
            );
        }
        assert_eq!(
            std::fs::metadata(layout.state())
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o700
        );
        let names = std::fs::read_dir(layout.state()).unwrap().count();
        assert_eq!(names, 2, "no draft is left");
        remove(&layout, false).unwrap();
        assert!(load_group(&layout).unwrap().is_none() && !is_founding(&layout));
        assert!(load_identity(&layout).unwrap().is_some());
        remove(&layout, true).unwrap();
        assert!(load_identity(&layout).unwrap().is_none());
    }

    #[test]
    fn two_first_starts_agree_on_one_key() {
        let (_dir, layout) = state();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| load_or_create_identity(&layout).unwrap().id()))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (_dir, layout) = state();
        load_or_create_identity(&layout).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            let path = layout.identity_key();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let err = load_or_create_identity(&layout).unwrap_err();
            assert!(
                matches!(err, SpoolError::KeyExposed { mode: found, .. } if found == mode),
                "{err}"
            );
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused_and_left_alone() {
        let (_dir, layout) = state();
        for text in [
            "",
            "hello",
            &"ab".repeat(31),
            &"ab".repeat(33),
            &"x".repeat(64),
        ] {
            let path = layout.identity_key();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(
                matches!(
                    load_or_create_identity(&layout),
                    Err(SpoolError::BadKey { .. })
                ),
                "{text}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let zero = layout.group_key();
        std::fs::write(&zero, "00".repeat(32)).unwrap();
        std::fs::set_permissions(&zero, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            load_group(&layout),
            Err(SpoolError::BadKey { .. })
        ));
    }
}
