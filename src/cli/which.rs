//! Which daemon a command means, and which path below `outbox/`.
//!
//! Running daemons are found in mountinfo; there is no registry that could be wrong. The source of a mount is its state
//! directory unless fstab or `fsname` says otherwise; then the mount itself is asked, with a time limit.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::args::variable;
use super::exit::{ExitCode, Failure};
use crate::bundle::RelPath;
use crate::control::Client;
use crate::control::Layout;
use crate::mount::info::{MountEntry, MountTable};
use crate::mount::place;

/// How long a mount may take to say where its state is. A healthy one answers from memory.
const ANSWER: Duration = Duration::from_secs(3);

/// A running daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    /// Its state directory.
    pub(super) state: PathBuf,
    /// Where it is mounted, if it was found by that.
    pub(super) mountpoint: Option<PathBuf>,
}

impl Daemon {
    pub(super) fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.state)?)
    }
}

/// The daemon of `state`, else the one that mounted at or above the place that is `named`, if one is.
pub(super) fn find_at(state: Option<PathBuf>, named: Option<&Path>) -> Result<Daemon, Failure> {
    let (Some(named), None) = (named, &state) else {
        return find(state, None);
    };
    let table = MountTable::read()?;
    let user = rustix::process::geteuid();
    let at = place::mailbox_of(named, &table)?;
    let mount = at.and_then(|at| table.top_at(&at));
    // Root is answered by everybody's daemon.
    let mount = mount
        .filter(|mount| user.is_root() || is_of(mount, user.as_raw()))
        .ok_or_else(|| Failure {
            code: ExitCode::NoDaemon,
            message: format!("no mailbox of yours is mounted at {}", named.display()),
        })?;
    Ok(Daemon {
        state: state_of(mount)?,
        mountpoint: Some(mount.mountpoint.clone()),
    })
}

/// The daemon of `state`, else the one whose mount holds `path`, or the working directory where there is none, else the only
/// one of this user.
pub(super) fn find(state: Option<PathBuf>, path: Option<&Path>) -> Result<Daemon, Failure> {
    if let Some(state) = state.or_else(|| variable("MESHBOX_STATE").map(PathBuf::from)) {
        // Links are followed, as the daemon does; a directory that is not there is named as it was typed.
        let state = state
            .canonicalize()
            .or_else(|_| std::path::absolute(&state))?;
        return Ok(Daemon {
            state,
            mountpoint: None,
        });
    }
    let here = std::env::current_dir().ok();
    let path = path.or(here.as_deref());
    let table = MountTable::read()?;
    let uid = rustix::process::geteuid().as_raw();
    let mounts: Vec<&MountEntry> = table.meshbox().filter(|mount| is_of(mount, uid)).collect();
    let mount = choose(&mounts, path)?;
    let state = state_of(mount)?;
    Ok(Daemon {
        state,
        mountpoint: Some(mount.mountpoint.clone()),
    })
}

/// Whether a mailbox is mounted exactly there. Does not look into it.
pub(super) fn is_mailbox(path: &Path) -> Result<bool, Failure> {
    let table = MountTable::read()?;
    let mailbox = place::mailbox_of(path, &table)?;
    let canonical = || {
        real_path(path)
            .ok()
            .and_then(|real| real.canonicalize().ok())
    };
    Ok(mailbox.is_some() && mailbox == canonical())
}

/// The Meshbox mount exactly at `mountpoint`.
pub(super) fn at(mountpoint: &Path) -> Option<MountEntry> {
    // Only the parent is looked up: the mountpoint itself may hang.
    let absolute = std::path::absolute(mountpoint).ok()?;
    let place = absolute
        .parent()?
        .canonicalize()
        .ok()?
        .join(absolute.file_name()?);
    let table = MountTable::read().ok()?;
    table
        .top_at(&place)
        .filter(|mount| mount.is_meshbox())
        .cloned()
}

fn is_of(mount: &MountEntry, uid: u32) -> bool {
    mount
        .super_options
        .split(',')
        .any(|option| option == format!("user_id={uid}"))
}

fn choose<'a>(mounts: &[&'a MountEntry], path: Option<&Path>) -> Result<&'a MountEntry, Failure> {
    let holds = |mount: &&&MountEntry| path.is_some_and(|path| path.starts_with(&mount.mountpoint));
    if let Some(mount) = mounts
        .iter()
        .filter(holds)
        .max_by_key(|mount| mount.mountpoint.as_os_str().len())
    {
        return Ok(mount);
    }
    let none = |message: String| Failure {
        code: ExitCode::NoDaemon,
        message,
    };
    match mounts {
        [] => Err(none(
            "no daemon of yours runs here; start one with `meshbox mount`".to_owned(),
        )),
        [mount] => Ok(mount),
        several => {
            let places = several.iter().map(|mount| {
                format!(
                    "\n  {} (source {})",
                    mount.mountpoint.display(),
                    mount.source.display()
                )
            });
            Err(none(format!(
                "several daemons run: name one by its mountpoint, or with --state:{}",
                places.collect::<String>()
            )))
        }
    }
}

/// The state directory behind a mount.
pub(super) fn state_of(mount: &MountEntry) -> Result<PathBuf, Failure> {
    let source = Path::new(&mount.source);
    if source.is_absolute() && Layout::new(source.to_owned()).control_socket().exists() {
        return Ok(source.to_owned());
    }
    // One answer from one thread; a mount that hangs costs that thread only.
    let (send, answer) = mpsc::sync_channel(1);
    let file = mount.mountpoint.join(".meshbox/status.json");
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = std::fs::File::open(file)
            .and_then(|file| file.take(crate::control::MAX_REPLY).read_to_end(&mut text));
        let state = read
            .ok()
            .and_then(|_| serde_json::from_slice::<serde_json::Value>(&text).ok());
        let _late =
            send.send(state.and_then(|status| Some(PathBuf::from(status.get("state")?.as_str()?))));
    });
    answer.recv_timeout(ANSWER).ok().flatten().ok_or_else(|| Failure {
        code: ExitCode::NoDaemon,
        message: format!(
            "the daemon of {at} does not answer; if it has died, `meshbox umount {at}` cleans up; \
             else name its state with --state",
            at = mount.mountpoint.display()
        ),
    })
}

/// The absolute path that `typed` leads to: links and `..` on the way are followed as far as directories are there, the last
/// part stays as it is, and what is gone keeps its name.
pub(super) fn real_path(typed: &Path) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(typed)?;
    let mut gone: Vec<&std::ffi::OsStr> = Vec::new();
    let mut rest = absolute.as_path();
    while let (Some(dir), Some(name)) = (rest.parent(), rest.file_name()) {
        gone.push(name);
        match dir.canonicalize() {
            Ok(mut real) => {
                real.extend(gone.iter().rev());
                return Ok(real);
            }
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => rest = dir,
            // A dead mount, or one that we may not enter: there is nothing to follow.
            Err(_) => break,
        }
    }
    if let Ok(real) = absolute.canonicalize() {
        return Ok(real);
    }
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    Ok(plain)
}

/// What a user calls a file in the outbox, as a path below it: a path into the mount, or already one below `outbox/`.
pub(super) fn below_outbox(typed: &Path, mountpoint: &Path) -> Result<RelPath, Failure> {
    let outbox = mountpoint.join("outbox");
    let real = real_path(typed)?;
    let inside = |path: &Path| path.strip_prefix(&outbox).map(Path::to_owned).ok();
    // Also by a link to the file itself.
    let linked = || inside(&real.canonicalize().ok()?);
    let plain = typed
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let relative: PathBuf = match inside(&real).or_else(linked) {
        Some(relative) => relative,
        None if plain && !real.starts_with(mountpoint) => typed.to_owned(),
        None => {
            return Err(Failure::usage(format!(
                "{} is not below {}",
                typed.display(),
                outbox.display()
            )));
        }
    };
    let named = |part: &Component<'_>| !matches!(part, Component::CurDir);
    let relative: PathBuf = relative.components().filter(named).collect();
    RelPath::parse(relative.as_os_str().as_bytes())
        .map_err(|err| Failure::usage(format!("{}: {err}", typed.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(at: &str, source: &str, uid: u32) -> MountEntry {
        let line =
            format!("40 22 0:30 / {at} rw - fuse.meshbox {source} rw,user_id={uid},group_id=0\n");
        MountTable::parse(line.as_bytes())
            .meshbox()
            .next()
            .unwrap()
            .clone()
    }

    #[test]
    fn only_mounts_of_this_user_count() {
        let entry = mount("/a", "/s", 1000);
        assert!(is_of(&entry, 1000));
        assert!(!is_of(&entry, 100));
        assert!(!is_of(&entry, 0));
    }

    #[test]
    fn a_path_in_a_mount_names_its_daemon_else_there_must_be_one() {
        let (outer, inner) = (mount("/a", "/s1", 0), mount("/a/b", "/s2", 0));
        let both = [&outer, &inner];
        let at =
            |path: &str| choose(&both, Some(Path::new(path))).map(|mount| mount.mountpoint.clone());
        assert_eq!(at("/a/b/outbox/x").unwrap(), Path::new("/a/b"));
        assert_eq!(at("/a/bc").unwrap(), Path::new("/a"));
        let several = choose(&both, Some(Path::new("/c"))).unwrap_err();
        assert_eq!(several.code, ExitCode::NoDaemon);
        assert!(
            several.message.contains("--state") && several.message.contains("/a/b"),
            "{}",
            several.message
        );
        assert_eq!(choose(&[], None).unwrap_err().code, ExitCode::NoDaemon);
        assert_eq!(choose(&[&outer], None).unwrap().source, "/s1");
    }

    #[test]
    fn files_are_named_by_the_mount_or_below_the_outbox() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("m/outbox/sub")).unwrap();
        std::os::unix::fs::symlink(root.join("m"), root.join("link")).unwrap();
        let below = |typed: &Path| {
            below_outbox(typed, &root.join("m")).map(|path| path.as_path().to_owned())
        };
        assert_eq!(
            below(&root.join("m/outbox/sub/gone")).unwrap(),
            Path::new("sub/gone")
        );
        assert_eq!(below(&root.join("link/outbox/x")).unwrap(), Path::new("x"));
        for (typed, path) in [
            ("m/outbox/sub/../x", "x"),
            ("m/inbox/../outbox/./sub/../../outbox/x", "x"),
            ("m/outbox/gone/deep/x", "gone/deep/x"),
            ("m/outbox/gone/../x", "x"),
            ("link/outbox/sub/..//gone/x", "gone/x"),
        ] {
            std::fs::create_dir_all(root.join("m/inbox")).unwrap();
            assert_eq!(
                below(&root.join(typed)).unwrap(),
                Path::new(path),
                "{typed}"
            );
        }
        std::fs::write(root.join("m/outbox/f"), "").unwrap();
        std::os::unix::fs::symlink(root.join("m/outbox/f"), root.join("to-f")).unwrap();
        assert_eq!(below(&root.join("to-f")).unwrap(), Path::new("f"));
        assert_eq!(below(Path::new("./a//b")).unwrap(), Path::new("a/b"));
        for bad in [
            root.join("m/inbox/x"),
            root.join("m/outbox"),
            "/etc/passwd".into(),
            "../x".into(),
            "a/../../x".into(),
            root.join("m/outbox/sub/../../x"),
        ] {
            assert_eq!(
                below(&bad).unwrap_err().code,
                ExitCode::Usage,
                "{}",
                bad.display()
            );
        }
    }
}
