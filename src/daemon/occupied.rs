//! Opening a state that another daemon has: waits for one that is about to end, and says of one that goes on where it is
//! and what ends it.
//!
//! A daemon that ends closes its control socket first and gives the state's lock up last, when the journal is closed. So
//! whoever holds the lock and answers on the socket is at work, and whoever holds it and does not is on its way: up or
//! down, or killed and still in its last system call.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::control::{Client, Reply, Request};
use crate::mount::holders;
use crate::mount::info::MountTable;
use crate::spool::{Layout, SpoolError, StateLock};

/// How long a daemon that does not answer is waited for. Its last seals and a sync on a slow disk take seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long one that runs may take to say where it is mounted. It may be stopped.
const ANSWER: Duration = Duration::from_secs(2);

/// Takes the lock of the state, as soon as the daemon before has given it up.
pub(super) fn lock(layout: &Layout) -> anyhow::Result<StateLock> {
    let until = Instant::now() + PATIENCE;
    loop {
        match StateLock::take(layout) {
            Err(SpoolError::InUse { state, process }) => {
                let words = Client::connect(&state)
                    .ok()
                    .and_then(|client| at_work(&state, client));
                if let Some(words) = words {
                    return Err(anyhow!("{words}"));
                }
                if Instant::now() > until {
                    return Err(SpoolError::InUse { state, process }.into());
                }
            }
            taken => return Ok(taken?),
        }
    }
}

/// What a daemon that answers is doing; `None`: it is about to end.
fn at_work(state: &Path, mut client: Client) -> Option<String> {
    let pid = client.daemon_pid().filter(|pid| *pid != 0);
    let process = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
    let kill = pid.map_or_else(
        || "its process runs in another pid namespace, end it there".to_owned(),
        |pid| format!("`kill {pid}` ends the daemon"),
    );
    let asked = Instant::now();
    let (place, device) = match client.call_within(&Request::Place, ANSWER) {
        Ok(Reply::Place { ending: true, .. }) => return None,
        Ok(Reply::Place {
            mountpoint, device, ..
        }) => (PathBuf::from(mountpoint), device),
        // It ends at this moment, or it is stopped.
        Err(_) if asked.elapsed() < ANSWER => return None,
        _ => {
            return Some(format!(
                "{}{process}, which does not answer: it is stopped or hangs; {kill}",
                in_use(state)
            ));
        }
    };
    let table = MountTable::read().unwrap_or_default();
    let here = device.and_then(|device| table.of_device(device));
    if let Some(here) = here {
        let at = here.mountpoint.display();
        return Some(format!(
            "{}{process}, mounted at {at}; `meshbox umount {at}` ends it, or choose another --state",
            in_use(state)
        ));
    }
    let others = holders::elsewhere(|mount| device == Some(mount.device));
    let seen = holders::explain(&others).or_else(|| holders::explain_unseen(&place));
    let held = seen.unwrap_or_else(|| {
        "programs still have files open in it, or it is about to end".to_owned()
    });
    Some(format!(
        "{}{process}; its mount at {} is gone from here, but {held}; {kill}",
        in_use(state),
        place.display()
    ))
}

fn in_use(state: &Path) -> String {
    format!(
        "the state directory {} is in use by another daemon",
        state.display()
    )
}
