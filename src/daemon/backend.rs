//! What the control socket and the generated files under `.meshbox/` show of the running daemon.

mod leaving;
mod metrics;
mod tickets;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::RwLock;

use self::metrics::metrics;
use super::facts::Facts;
use crate::bundle::{BundleId, RelPath, Stage};
use crate::control::act::{Act, Acted};
use crate::control::wait::{Delivery, Target};
use crate::control::{
    Away, ControlBackend, Counts, DEFAULT_ROWS, Forgotten, IgnoredRow, Left, MAX_ROWS,
    MembershipChange, Of, OutboundRow, PeerRow, Reply, Status, WirePath,
};
use crate::fs::{Fs, Ignored, StatusFiles};
use crate::mesh::{Mesh, PeerStatus};
use crate::peer::PeerId;
use crate::ready::Overview;
use crate::similar;
use crate::spool::{Changed, FileStage, Member, Unfinished};

/// So many digits of an id say which.
const ID_LEAST: usize = 8;

/// Sees all layers, for those who ask.
pub(super) struct Backend {
    facts: Facts,
    /// Taken when the daemon ends; it shows no peers from then on.
    mesh: RwLock<Option<Mesh>>,
    /// Weak, since the file system holds us for its generated files.
    fs: OnceLock<Weak<Fs>>,
    /// Of the mount, once it is there.
    device: OnceLock<(u32, u32)>,
    /// The daemon was told to end.
    ending: AtomicBool,
}

impl Backend {
    pub(super) fn new(facts: Facts) -> Self {
        Self {
            facts,
            mesh: RwLock::new(None),
            fs: OnceLock::new(),
            device: OnceLock::new(),
            ending: AtomicBool::new(false),
        }
    }

    pub(super) fn set_mesh(&self, mesh: Mesh) {
        *self.mesh.write() = Some(mesh);
    }

    pub(super) fn open_mesh(&self) {
        if let Some(mesh) = self.mesh.write().as_mut() {
            mesh.open();
        }
    }

    pub(super) fn take_mesh(&self) -> Option<Mesh> {
        self.mesh.write().take()
    }

    pub(super) fn set_fs(&self, fs: &Arc<Fs>) {
        // Called once, by the composition root.
        let _second = self.fs.set(Arc::downgrade(fs));
    }

    pub(super) fn set_device(&self, device: (u32, u32)) {
        // As above.
        let _second = self.device.set(device);
    }

    pub(super) fn set_ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    fn trouble(&self) -> Option<String> {
        let disk = self.facts.spool.trouble();
        let mesh = self.mesh.read();
        let copies = mesh.as_ref().map_or_else(Vec::new, Mesh::notices);
        let all: Vec<String> = disk.into_iter().chain(copies).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Waits until `id` is connected, at most for `limit`; says whether it is.
    pub(super) fn wait_connected(&self, id: PeerId, limit: Duration) -> bool {
        let mesh = self.mesh.read();
        mesh.as_ref()
            .is_some_and(|mesh| mesh.wait_connected(id, limit))
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }
}

impl Backend {
    /// Shows that a peer goes by a name which another had first: nothing is routed to it by that name.
    fn with_claim(&self, row: PeerRow) -> PeerRow {
        let owner = PeerId::from_hex(&row.id)
            .and_then(|id| self.facts.spool.group.false_claim(id, &row.name));
        let Some(owner) = owner else { return row };
        let claims = format!(
            "{} is the name of {}: nothing is sent to this one by it",
            row.name,
            owner.short()
        );
        PeerRow {
            error: Some(
                row.error
                    .map_or(claims.clone(), |error| format!("{error}; {claims}")),
            ),
            ..row
        }
    }
}

fn row(peer: PeerStatus) -> PeerRow {
    let PeerStatus {
        id,
        name,
        connected,
        pending,
        last_seen,
        addrs,
        error,
        limited,
        slowed,
        ..
    } = peer;
    PeerRow {
        id,
        name,
        connected,
        pending,
        last_seen,
        addrs,
        offline_since: Some(last_seen).filter(|at| !connected && *at > 0),
        error,
        limited,
        slowed,
    }
}

fn ignored_row(ignored: &Ignored) -> IgnoredRow {
    IgnoredRow {
        pattern: ignored.pattern.clone(),
        what: ignored.what.map(str::to_owned),
        count: ignored.count,
        examples: ignored.examples.iter().map(WirePath::from).collect(),
    }
}

/// The one member of that name, or with that id or beginning of an id.
fn find_member(members: &[Member], who: &str) -> Result<Member, String> {
    let by_id = |member: &&Member| who.len() >= ID_LEAST && member.id.to_string().starts_with(who);
    let mut found: Vec<&Member> = members.iter().filter(by_id).collect();
    if found.is_empty() {
        let named = |member: &&Member| member.name.as_str() == who;
        found = members.iter().filter(named).collect();
    }
    match found.as_slice() {
        [only] => Ok((*only).clone()),
        [] => {
            let hint = similar::hint(who, members.iter().map(|member| member.name.as_str()));
            Err(format!(
                "there is no member {who}; `meshbox peers` shows all{hint}"
            ))
        }
        many => {
            let ids: Vec<String> = many.iter().map(|member| member.id.to_string()).collect();
            Err(format!(
                "several members are called {who}; say which, by id: {}",
                ids.join(", ")
            ))
        }
    }
}

fn into_change(changed: Changed) -> MembershipChange {
    let row = |(id, name): (PeerId, String)| (id.to_string(), name);
    MembershipChange {
        generation: changed.generation,
        removed: changed.removed.into_iter().map(row).collect(),
        keyed: changed.keyed.map(|all| all.into_iter().map(row).collect()),
    }
}

impl ControlBackend for Backend {
    fn status(&self, before: Option<u64>, limit: usize) -> Status {
        let facts = &self.facts;
        // First: what is not counted here as unsealed is in the rows below.
        let fs = self.fs.get().and_then(Weak::upgrade);
        let waiting = match &fs {
            Some(fs) => fs.overview(limit),
            None => Overview::default(),
        };
        let ignored = fs.map(|fs| fs.ignored_names()).unwrap_or_default();
        let (outbound, inbound) = (
            facts.spool.outbound(before, limit),
            facts.spool.inbound(before, limit),
        );
        // Only a first page with rows says how many more there are.
        let (sent, came) = match (before, limit) {
            (None, 1..) => facts.spool.shown_rows(),
            (None, 0) | (Some(_), _) => (0, 0),
        };
        let more = |all: u64, here: usize| all.saturating_sub(here as u64);
        Status {
            outbound_more: more(sent, outbound.len()),
            inbound_more: more(came, inbound.len()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            id: facts.id.to_string(),
            name: facts.name.as_str().to_owned(),
            group: facts.spool.group.name(),
            mountpoint: facts.mountpoint.to_string_lossy().into_owned(),
            state: facts.spool.layout().state().to_string_lossy().into_owned(),
            pid: std::process::id(),
            listen: self
                .mesh
                .read()
                .as_ref()
                .map_or_else(Vec::new, Mesh::listen_addrs),
            peers: ControlBackend::peers(self),
            outbound,
            inbound,
            incomplete: waiting.incomplete.iter().map(WirePath::from).collect(),
            ignored: ignored.by_pattern.iter().map(ignored_row).collect(),
            ignored_more: ignored.more,
            counts: Counts {
                unsealed: waiting.unsealed,
                ..facts.spool.counts()
            },
            trouble: self.trouble(),
        }
    }

    fn unfinished(&self, limit: usize) -> Status {
        let mut status = ControlBackend::status(self, None, limit);
        let (mut first, more) = self.facts.spool.outbound_unfinished(limit);
        let is_new = |row: &OutboundRow| !first.iter().any(|other| other.bundle == row.bundle);
        let rest: Vec<OutboundRow> = status
            .outbound
            .iter()
            .filter(|row| is_new(row))
            .cloned()
            .collect();
        first.extend(rest);
        first.truncate(limit);
        status.outbound = first;
        status.outbound_more = status.outbound_more.max(more);
        status
    }

    fn of(&self, path: &RelPath, inbox: bool) -> Of {
        let spool = &self.facts.spool;
        if inbox {
            let inbound = spool.inbound_below(path, MAX_ROWS);
            let nothing = "nothing came under this name of late".to_owned();
            return Of {
                note: inbound.is_empty().then_some(nothing),
                inbound,
                ..Of::default()
            };
        }
        let (note, outbound) = match self.delivery(path) {
            Delivery::Sealed(row) => (None, vec![row]),
            Delivery::Unknown => {
                let note = "no such file in the outbox, and nothing was sent from there".to_owned();
                (Some(note), Vec::new())
            }
            Delivery::Unsealed(note) | Delivery::Ignored(note) | Delivery::Held(note) => {
                (Some(note), Vec::new())
            }
            Delivery::Directory => {
                let rows = spool.outbound_below(path, MAX_ROWS);
                let nothing = "nothing was sent from it of late".to_owned();
                (rows.is_empty().then_some(nothing), rows)
            }
        };
        Of {
            note,
            outbound,
            ..Of::default()
        }
    }

    fn place(&self) -> Reply {
        Reply::Place {
            mountpoint: self.facts.mountpoint.to_string_lossy().into_owned(),
            device: self.device.get().copied(),
            ending: self.ending.load(Ordering::Relaxed),
        }
    }

    fn peers(&self) -> Vec<PeerRow> {
        self.mesh.read().as_ref().map_or_else(Vec::new, |mesh| {
            let rows = mesh.peers().into_iter().map(row);
            rows.map(|row| self.with_claim(row)).collect()
        })
    }

    fn ticket(&self) -> String {
        self.plain_ticket()
    }

    /// What counts is the version that the path shows now: the spool gives no row for a file modified since its seal.
    fn delivery(&self, path: &RelPath) -> Delivery {
        let spool = &self.facts.spool;
        if let Some(row) = spool.outbound_of(path) {
            return Delivery::Sealed(row);
        }
        // The plain tree behind the mount, never the mount itself.
        let shown = spool.outbox.metadata(path);
        match shown {
            // Removed since: what was queued is still delivered.
            Err(_) => spool
                .outbound_last(path)
                .map_or(Delivery::Unknown, Delivery::Sealed),
            Ok(shown) if shown.is_dir() => Delivery::Directory,
            Ok(shown) => {
                let state = spool.outbox_state(path, shown.ino()).state;
                let fs = self.fs.get().and_then(Weak::upgrade);
                if let Some(pattern) = fs.and_then(|fs| fs.ignored_by(path, shown.ino())) {
                    Delivery::Ignored(format!(
                        "ignored: its name matches {pattern}; rename it, or `meshbox send` it"
                    ))
                } else if state == Some(FileStage::At(Stage::Incomplete)) {
                    let fs = self.fs.get().and_then(Weak::upgrade);
                    let why = fs.and_then(|fs| fs.failure(shown.ino()));
                    let why = why.unwrap_or_else(|| {
                        "its writer was killed, or its close was not heard of".to_owned()
                    });
                    Delivery::Held(format!(
                        "incomplete: {why}; write it again, or `meshbox send` sends it as it is"
                    ))
                } else {
                    let state = state.map_or_else(String::new, |stage| stage.to_string());
                    Delivery::Unsealed(format!("not sealed yet ({state})"))
                }
            }
        }
    }

    fn delivery_of(&self, bundle: &str) -> Delivery {
        let row = BundleId::from_hex(bundle).and_then(|id| self.facts.spool.outbound_bundle(id));
        row.map_or(Delivery::Unknown, Delivery::Sealed)
    }

    fn underway(&self, directory: Option<&RelPath>) -> Vec<Target> {
        let found = self.facts.spool.outbox.unfinished(directory);
        let found = found.unwrap_or_else(|error| {
            tracing::error!("what is on its way cannot be read: {error}");
            Unfinished::default()
        });
        let bundles = found
            .bundles
            .iter()
            .map(|id| Target::Bundle(id.to_string()));
        bundles
            .chain(found.unsealed.into_iter().map(Target::Path))
            .collect()
    }

    fn is_alone(&self) -> bool {
        self.facts.spool.group.members().is_empty()
    }

    fn links(&self) -> HashMap<String, Option<Away>> {
        let mesh = self.mesh.read();
        let links = mesh.as_ref().map_or_else(Vec::new, Mesh::links);
        links
            .into_iter()
            .map(|(id, away)| {
                let away = away.map(|(since, error)| Away { since, error });
                (id.to_string(), away)
            })
            .collect()
    }

    fn wait_change(&self, seen: u64, at_most: Duration) -> u64 {
        self.facts.spool.doorbell.wait_change(seen, at_most)
    }

    fn send(&self, path: &RelPath) -> Result<(), String> {
        match self.fs.get().and_then(Weak::upgrade) {
            Some(fs) => fs.send_now(path),
            None => Err("the daemon is starting or stopping".to_owned()),
        }
    }

    fn invite(&self, lasts: Option<Duration>, once: bool) -> Result<String, String> {
        self.make_invitation(lasts, once)
    }

    fn remove(&self, who: &[String], keep_key: bool) -> Result<MembershipChange, String> {
        let changed = self.facts.spool.group.remove_members(who, keep_key);
        changed.map(into_change).map_err(|err| err.to_string())
    }

    fn rekey(&self) -> Result<MembershipChange, String> {
        let changed = self.facts.spool.group.rekey();
        changed.map(into_change).map_err(|err| err.to_string())
    }

    fn forget(&self, who: &str) -> Result<Forgotten, String> {
        let peers = ControlBackend::peers(self);
        let member = find_member(&self.facts.spool.group.members(), who)?;
        let id = member.id.to_string();
        if peers.iter().any(|peer| peer.id == id && peer.connected) {
            return Err(format!(
                "{} is connected: only a member that is gone can be forgotten; `meshbox remove` takes one out of the group",
                member.name
            ));
        }
        let forgotten = self.facts.spool.forget(member.id);
        let bundles = forgotten.map_err(|err| err.to_string())?.unwrap_or(0);
        Ok(Forgotten {
            id,
            name: member.name.to_string(),
            bundles,
        })
    }

    fn leave(&self, force: bool) -> Result<Left, String> {
        self.leave_group(force)
    }

    fn act(&self, act: Act) -> Acted {
        super::act::act(&self.facts, act)
    }

    fn stop(&self) {
        (self.facts.stop)();
    }
}

impl StatusFiles for Backend {
    fn status(&self) -> Vec<u8> {
        line(serde_json::to_vec_pretty(&ControlBackend::status(
            self,
            None,
            DEFAULT_ROWS,
        )))
    }

    fn peers(&self) -> Vec<u8> {
        line(serde_json::to_vec_pretty(&ControlBackend::peers(self)))
    }

    fn metrics(&self) -> Vec<u8> {
        metrics(&ControlBackend::status(self, None, 0)).into_bytes()
    }
}

fn line(json: serde_json::Result<Vec<u8>>) -> Vec<u8> {
    // Plain structs with text keys always encode; an empty file would say that they did not.
    let mut text = json.unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::PeerName;

    #[test]
    fn a_member_is_found_by_name_or_id_and_never_guessed() {
        let member = |n, name: &str| Member {
            id: PeerId::from_bytes([n; 32]),
            name: PeerName::parse(name).unwrap(),
            addrs: vec![],
            last_seen: 0,
            epoch: 0,
        };
        let members = [member(1, "birch"), member(2, "cedar"), member(3, "cedar")];
        assert_eq!(find_member(&members, "birch").unwrap().id, members[0].id);
        let id = members[2].id.to_string();
        assert_eq!(find_member(&members, &id[..10]).unwrap().id, members[2].id);
        assert!(find_member(&members, "cedar").unwrap_err().contains(&id));
        assert!(
            find_member(&members, "brich")
                .unwrap_err()
                .ends_with("did you mean `birch`?")
        );
        for nobody in ["oak", "", &id[..3]] {
            assert!(find_member(&members, nobody).is_err(), "{nobody:?}");
        }
    }
}
