//! The commands on who belongs to the group: `ticket`, `remove`, `forget`, `rekey`, `leave`, and `id --derive`.

use std::fs::{OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{DaemonArgs, PlacedArgs};
use super::ask::{json, place_of, unexpected};
use super::exit::Failure;
use super::output::print;
use super::which::Daemon;
use crate::control::{Layout, Left, MembershipChange, Reply, Request, remove_state_directory};
use crate::daemon::keys;
use crate::peer::{Identity, PeerName};

/// What tickets of every kind begin with.
const TICKETS: &str = "meshbox";

pub(super) fn ticket(
    daemon: PlacedArgs,
    expires: Option<Duration>,
    once: bool,
    out: Option<&Path>,
) -> Result<(), Failure> {
    let request = if expires.is_some() || once {
        let seconds = expires.map(|lasts| lasts.as_secs().max(1));
        Request::Invite { seconds, once }
    } else {
        Request::Ticket
    };
    match daemon.find()?.connect()?.call(&request)? {
        Reply::Ticket { ticket } => match out {
            None => print(&(ticket + "\n")),
            Some(file) => write_secret(file, &(ticket + "\n")).map_err(|error| {
                Failure::failed(format!("cannot write {}: {error}", file.display()))
            }),
        },
        _ => Err(unexpected()),
    }
}

/// Writes a file that only its owner can read, also where there was one that others could. What is there must be an
/// earlier ticket: a mistyped name must not cost a file.
fn write_secret(file: &Path, text: &str) -> std::io::Result<()> {
    let earlier = std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.len() > 0);
    if earlier && !begins_as_ticket(file)? {
        return Err(std::io::Error::other(
            "it is there already, and is no ticket; choose another name, or remove it",
        ));
    }
    let mut options = OpenOptions::new();
    let mut out = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    if out.metadata()?.is_file() {
        out.set_permissions(Permissions::from_mode(0o600))?;
    }
    out.write_all(text.as_bytes())
}

fn begins_as_ticket(file: &Path) -> std::io::Result<bool> {
    let mut begin = Vec::new();
    let read = std::fs::File::open(file)?;
    read.take(TICKETS.len() as u64).read_to_end(&mut begin)?;
    Ok(begin == TICKETS.as_bytes())
}

pub(super) fn remove(
    daemon: DaemonArgs,
    mut who: Vec<String>,
    keep_key: bool,
    as_json: bool,
) -> Result<(), Failure> {
    // Neither a name nor an id has a slash or begins with a dot.
    let is_path = |word: &String| word.contains('/') || word.starts_with('.');
    let mountpoint = who.pop_if(|last| is_path(last)).map(PathBuf::from);
    if who.is_empty() {
        return Err(Failure::usage("which member?"));
    }
    let running = PlacedArgs { mountpoint, daemon }.find()?;
    change(&running, &Request::Remove { who, keep_key }, as_json)
}

pub(super) fn rekey(daemon: PlacedArgs, as_json: bool) -> Result<(), Failure> {
    change(&daemon.find()?, &Request::Rekey, as_json)
}

pub(super) fn forget(daemon: PlacedArgs, who: String, as_json: bool) -> Result<(), Failure> {
    match daemon.find()?.connect()?.call(&Request::Forget { who })? {
        Reply::Forgotten(forgotten) if as_json => json(&forgotten),
        Reply::Forgotten(forgotten) => print(&format!(
            "forgotten: {} ({}…), {} bundles are not kept for it any more\n",
            forgotten.name,
            forgotten.id.get(..10).unwrap_or_default(),
            forgotten.bundles
        )),
        _ => Err(unexpected()),
    }
}

/// `meshbox leave`.
pub(super) fn leave(
    daemon: PlacedArgs,
    force: bool,
    delete_state: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let daemon = daemon.find()?;
    // Not what the daemon names: it may be in another mount namespace, where the path is another directory.
    let state = daemon.state.clone();
    let (mut client, mountpoint) = place_of(daemon)?;
    let mount = super::which::at(&mountpoint);
    let pid = client.daemon_pid();
    let Reply::Left(left) = client.call(&Request::Leave { force })? else {
        return Err(unexpected());
    };
    if as_json {
        json(&left)?;
    } else {
        print(&told_of_leaving(&left, delete_state.then_some(&*state)))?;
    }
    super::mount::wait_for_end(mount.as_ref(), pid)?;
    if delete_state {
        remove_state_directory(&Layout::new(state)).map_err(Failure::failed)?;
    }
    Ok(())
}

/// `removed`: the state directory, if it goes too.
fn told_of_leaving(left: &Left, removed: Option<&Path>) -> String {
    let mut text = format!("left group {}", left.group);
    if !left.told.is_empty() {
        text += &format!("; told: {}", left.told.join(", "));
    }
    if !left.untold.is_empty() {
        let from = match left.told.is_empty() {
            true => "they wait for this node until they `meshbox forget` it",
            false => "they hear of it from the others",
        };
        text += &format!("; not told: {} ({from})", left.untold.join(", "));
    }
    match removed {
        Some(state) => text += &format!("\nremoving {}\n", state.display()),
        None => {
            text += &format!(
                "\nwhat was received stays in {0}/inbox; remove {0} when you need it no more\n",
                left.state
            );
        }
    }
    text
}

fn change(daemon: &Daemon, request: &Request, as_json: bool) -> Result<(), Failure> {
    match daemon.connect()?.call(request)? {
        Reply::Changed(changed) if as_json => json(&changed),
        Reply::Changed(changed) => print(&told(&changed)),
        _ => Err(unexpected()),
    }
}

fn told(changed: &MembershipChange) -> String {
    let short = |id: &str| id.get(..10).unwrap_or_default().to_owned();
    let mut text = String::new();
    for (id, name) in &changed.removed {
        text += &format!("removed: {name} ({}…)\n", short(id));
    }
    match &changed.keyed {
        None => text += "the group key stays: who has it can come back under a new id\n",
        Some(all) => {
            text += &format!("group key {} is for this node", changed.generation);
            for (id, name) in all {
                text += &format!(", {name} ({}…)", short(id));
            }
            text += "\nif a name here is unknown to you, remove it; earlier tickets let nobody in any more\n";
        }
    }
    text
}

/// The state is enough: it works without a daemon too.
pub(super) fn derived_id(daemon: PlacedArgs, name: &str) -> Result<(), Failure> {
    let name = PeerName::parse(name).map_err(Failure::usage)?;
    let state = daemon.find()?.state;
    match keys::load_group(&Layout::new(state.clone())).map_err(Failure::failed)? {
        Some(key) => print(&format!("{}\n", Identity::derived(&key, &name).id())),
        None => Err(Failure::failed(format!(
            "{} has no group key yet; `meshbox mount` makes one or takes that of a ticket",
            state.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_in_a_file_is_its_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ticket");
        let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        write_secret(&file, "meshbox1one\n").unwrap();
        assert_eq!(mode(), 0o600);
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        write_secret(&file, "meshbox2\n").unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "meshbox2\n");
        assert!(write_secret(dir.path(), "x").is_err());
    }

    /// `meshbox ticket --out photo.jpg` replaced the photo.
    #[test]
    fn a_ticket_replaces_nothing_but_a_ticket() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("photo.jpg");
        std::fs::write(&file, "a photo").unwrap();
        let refused = write_secret(&file, "meshbox1one\n").unwrap_err();
        assert!(refused.to_string().contains("is no ticket"), "{refused}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a photo");
        std::fs::write(&file, "").unwrap();
        write_secret(&file, "meshbox1one\n").unwrap();
    }

    #[test]
    fn a_change_says_who_is_out_and_who_has_the_key() {
        let row = |c: &str, name: &str| (c.repeat(64), name.to_owned());
        let mut changed = MembershipChange {
            generation: 2,
            removed: vec![row("a", "cedar")],
            keyed: Some(vec![row("b", "birch")]),
        };
        let text = told(&changed);
        assert!(
            text.starts_with(
                "removed: cedar (aaaaaaaaaa…)\ngroup key 2 is for this node, birch (b"
            )
        );
        changed.keyed = None;
        assert!(told(&changed).contains("new id"));
    }
}
