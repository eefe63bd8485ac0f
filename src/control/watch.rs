//! A wait under way: what it looks at, what of that is done, and who is still missing.
//!
//! # Invariants
//! 1. What is waited for is fixed when the wait begins: a directory, or all that is on its way, stands for what is in it then.
//! 2. A bundle that was sealed anew under another id is followed by its path.
//! 3. What was delivered once is not looked at again, so that a wait costs what is still open, not what there was.

use std::collections::{BTreeMap, BTreeSet};

use super::wait::{
    Delivery, Judged, Missing, Outcome, PathOutcome, Progress, Target, WaitFor, judge, judge_wide,
};
use super::{ControlBackend, Waited, WirePath};
use crate::bundle::{RelPath, Stage};
use crate::spool::OutboundRow;

/// Most members that are named as missing; the others are counted.
const NAMED: usize = 64;

/// What one argument stands for.
#[derive(Debug)]
struct Group {
    /// The argument; `None`: all that is on its way.
    asked: Option<WirePath>,
    /// It stands for many: what is ignored in it, or replaced meanwhile, is passed over.
    wide: bool,
    open: Vec<Open>,
    files: u64,
    done: u64,
    /// Bytes of what is done.
    bytes: u64,
    /// Of those that are open: not sealed yet.
    unsealed: u64,
    /// The first one that will not be delivered as asked, and why.
    failed: Option<String>,
    /// What is said of the one file that it stands for, or of the first that is open.
    detail: String,
}

/// What is open of an argument.
#[derive(Debug)]
struct Open {
    target: Target,
    /// Of a bundle: the path in its last row.
    path: Option<RelPath>,
}

impl Open {
    fn new(target: Target) -> Self {
        Self { target, path: None }
    }

    /// How it stands now.
    fn look(&mut self, backend: &dyn ControlBackend) -> Delivery {
        let id = match &self.target {
            Target::Path(path) => return backend.delivery(path),
            Target::Bundle(id) => id,
        };
        let mut delivery = backend.delivery_of(id);
        if let (Delivery::Unknown, Some(path)) = (&delivery, &self.path) {
            // One that was held for a name that nobody had is sealed anew when somebody has it.
            match backend.delivery(path) {
                Delivery::Sealed(row) if row.bundle != *id => {
                    self.target = Target::Bundle(row.bundle.clone());
                    delivery = Delivery::Sealed(row);
                }
                _ => {}
            }
        }
        if let Delivery::Sealed(row) = &delivery {
            self.path = RelPath::try_from(&path_of(row)).ok();
        }
        delivery
    }
}

/// A wait under way.
#[derive(Debug)]
pub(super) struct Watch {
    to: WaitFor,
    groups: Vec<Group>,
    progress: Progress,
}

impl Watch {
    /// Begins to wait for `paths` and `bundles`, or for all that is on its way if there are none.
    pub(super) fn new(
        paths: &[WirePath],
        bundles: &[String],
        to: WaitFor,
        backend: &dyn ControlBackend,
    ) -> Self {
        let mut groups: Vec<Group> = paths
            .iter()
            .map(|path| Group::of_path(path, backend))
            .collect();
        groups.extend(bundles.iter().map(|id| {
            let asked = Some(WirePath::Text(id.clone()));
            Group::new(asked, false, vec![Target::Bundle(id.clone())])
        }));
        if groups.is_empty() {
            groups.push(Group::new(None, true, backend.underway(None)));
        }
        Self {
            to,
            groups,
            progress: Progress::default(),
        }
    }

    /// Looks at all that is open. `Some` if the whole is decided; one failure decides it.
    pub(super) fn look(&mut self, backend: &dyn ControlBackend) -> Option<Outcome> {
        let alone = backend.is_alone();
        let mut seen = Seen::default();
        for group in &mut self.groups {
            group.look(&self.to, alone, backend, &mut seen);
        }
        let sum = |of: fn(&Group) -> u64| self.groups.iter().map(of).sum::<u64>();
        self.progress = Progress {
            files: sum(|group| group.files),
            files_done: sum(|group| group.done),
            bytes: seen.bytes + sum(|group| group.bytes),
            bytes_done: seen.bytes_done + sum(|group| group.bytes),
            unsealed: sum(|group| group.unsealed),
            missing: seen.missing(backend),
        };
        if self.groups.iter().any(|group| group.failed.is_some()) {
            Some(Outcome::Failed)
        } else if self.groups.iter().all(|group| group.open.is_empty()) {
            Some(Outcome::Delivered)
        } else {
            None
        }
    }

    /// How far it is, as of the last look.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What it came to, as of the last look.
    pub(super) fn outcome(self, outcome: Outcome) -> Waited {
        Waited {
            outcome,
            paths: self.groups.into_iter().map(Group::outcome).collect(),
            missing: self.progress.missing,
        }
    }
}

impl Group {
    fn new(asked: Option<WirePath>, wide: bool, open: Vec<Target>) -> Self {
        Self {
            asked,
            wide,
            files: open.len() as u64,
            open: open.into_iter().map(Open::new).collect(),
            done: 0,
            bytes: 0,
            unsealed: 0,
            failed: None,
            detail: String::new(),
        }
    }

    fn of_path(asked: &WirePath, backend: &dyn ControlBackend) -> Self {
        let path = match RelPath::try_from(asked) {
            Ok(path) => path,
            Err(error) => {
                let mut group = Self::new(Some(asked.clone()), false, Vec::new());
                group.failed = Some(error.to_string());
                return group;
            }
        };
        let asked = Some(asked.clone());
        match backend.delivery(&path) {
            Delivery::Directory => Self::new(asked, true, backend.underway(Some(&path))),
            // A directory that was removed, while what was in it is on its way.
            Delivery::Unknown => match backend.underway(Some(&path)) {
                below if below.is_empty() => Self::new(asked, false, vec![Target::Path(path)]),
                below => Self::new(asked, true, below),
            },
            _ => Self::new(asked, false, vec![Target::Path(path)]),
        }
    }

    fn look(&mut self, to: &WaitFor, alone: bool, backend: &dyn ControlBackend, seen: &mut Seen) {
        let mut open = std::mem::take(&mut self.open);
        self.unsealed = 0;
        open.retain_mut(|one| {
            let delivery = one.look(backend);
            let Judged { outcome, words } = match self.wide {
                true => judge_wide(&delivery, to, alone),
                false => judge(&delivery, to, alone),
            };
            match outcome {
                Some(Outcome::Delivered) => {
                    self.done += 1;
                    if let Delivery::Sealed(row) = &delivery {
                        self.bytes += weight(row);
                    }
                }
                Some(Outcome::Failed | Outcome::Timeout) => {
                    self.failed.get_or_insert_with(|| match self.wide {
                        true => format!("{}: {words}", called(&one.target, &delivery)),
                        false => words.clone(),
                    });
                }
                None if matches!(delivery, Delivery::Sealed(_)) => seen.take(&delivery),
                None => self.unsealed += 1,
            }
            if !self.wide {
                self.detail = words;
            }
            outcome.is_none()
        });
        self.open = open;
    }

    fn outcome(self) -> PathOutcome {
        let mut counted = format!("{} of {} delivered", self.done, self.files);
        if self.unsealed > 0 {
            counted.push_str(&format!(", {} not sealed yet", self.unsealed));
        }
        let (outcome, detail) = match (&self.failed, self.open.is_empty()) {
            (Some(why), _) => (Outcome::Failed, Some(why.clone())),
            (None, true) => (Outcome::Delivered, None),
            (None, false) => (Outcome::Timeout, None),
        };
        let nothing = detail.is_none() && self.wide && self.files == 0;
        let detail = match (detail, self.wide) {
            (Some(why), true) => format!("{counted}, {why}"),
            (Some(why), false) => why,
            (None, true) if nothing => "nothing is on its way".to_owned(),
            (None, true) => counted,
            (None, false) => self.detail,
        };
        PathOutcome {
            path: self.asked,
            outcome,
            detail,
            nothing,
        }
    }
}

fn path_of(row: &OutboundRow) -> WirePath {
    match &row.path_b64 {
        Some(path_b64) => WirePath::Bytes {
            path_b64: path_b64.clone(),
        },
        None => WirePath::Text(row.path.clone()),
    }
}

/// Bytes that are to be sent of it in all.
fn weight(row: &OutboundRow) -> u64 {
    row.size.saturating_mul(row.living().count() as u64)
}

/// What a target is called in words.
fn called(target: &Target, delivery: &Delivery) -> String {
    match (target, delivery) {
        (_, Delivery::Sealed(row)) => row.path.clone(),
        (Target::Path(path), _) => path.to_string(),
        (Target::Bundle(id), _) => id.clone(),
    }
}

/// What one look found to be open.
#[derive(Default)]
struct Seen {
    bytes: u64,
    bytes_done: u64,
    /// By id; those that are only words have none.
    missing: BTreeMap<(String, String), Missing>,
}

impl Seen {
    fn take(&mut self, delivery: &Delivery) {
        let Delivery::Sealed(row) = delivery else {
            return;
        };
        self.bytes += weight(row);
        for recipient in row.living() {
            self.bytes_done += recipient.bytes.min(row.size);
            if recipient.state == Stage::Delivered {
                continue;
            }
            let key = (recipient.id.clone(), recipient.name.clone());
            let missing = self.missing.entry(key).or_insert_with(|| Missing {
                id: recipient.id.clone(),
                name: recipient.name.clone(),
                ..Missing::default()
            });
            missing.files += 1;
            missing.bytes += row.size.saturating_sub(recipient.bytes);
            missing.states.insert(recipient.state);
            if missing.error.is_none() {
                missing.error.clone_from(&recipient.error);
            }
        }
    }

    fn missing(self, backend: &dyn ControlBackend) -> Vec<Missing> {
        let links = backend.links();
        let mut all: Vec<Missing> = self.missing.into_values().collect();
        for missing in &mut all {
            let Some(Some(away)) = links.get(&missing.id) else {
                continue;
            };
            missing.offline_since = Some(away.since);
            if missing.error.is_none() {
                missing.error.clone_from(&away.error);
            }
        }
        // Who is away first: that is what a wait waits for longest.
        all.sort_by_key(|missing| (missing.offline_since.is_none(), missing.name.clone()));
        if all.len() > NAMED {
            let rest = all.split_off(NAMED);
            let states: BTreeSet<Stage> = rest
                .iter()
                .flat_map(|missing| missing.states.clone())
                .collect();
            all.push(Missing {
                name: format!("{} others", rest.len()),
                files: rest.iter().map(|missing| missing.files).sum(),
                bytes: rest.iter().map(|missing| missing.bytes).sum(),
                states,
                ..Missing::default()
            });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::control::act::{Act, Acted};
    use crate::control::{PeerRow, Status};
    use crate::spool::RecipientRow;

    /// A daemon with the file `x`, which was sealed as this bundle and is in this state.
    struct Fake(Mutex<(&'static str, Stage)>);

    impl Fake {
        fn row(&self) -> OutboundRow {
            let (bundle, state) = *self.0.lock();
            OutboundRow {
                path: "x".into(),
                path_b64: None,
                bundle: bundle.into(),
                sha256: String::new(),
                size: 0,
                sealed_at: 0,
                state,
                recipients: vec![RecipientRow {
                    id: "bb".into(),
                    name: "birch".into(),
                    state,
                    bytes: 0,
                    error: None,
                    gone: false,
                }],
            }
        }
    }

    impl ControlBackend for Fake {
        fn status(&self, _before: Option<u64>, _limit: usize) -> Status {
            unreachable!()
        }
        fn peers(&self) -> Vec<PeerRow> {
            Vec::new()
        }
        fn ticket(&self) -> String {
            String::new()
        }
        fn delivery(&self, path: &RelPath) -> Delivery {
            assert_eq!(path.as_bytes(), b"x");
            Delivery::Sealed(self.row())
        }
        fn delivery_of(&self, bundle: &str) -> Delivery {
            let row = Some(self.row()).filter(|row| row.bundle == bundle);
            row.map_or(Delivery::Unknown, Delivery::Sealed)
        }
        fn underway(&self, _directory: Option<&RelPath>) -> Vec<Target> {
            vec![Target::Bundle(self.row().bundle)]
        }
        fn wait_change(&self, seen: u64, _at_most: Duration) -> u64 {
            seen
        }
        fn send(&self, _path: &RelPath) -> Result<(), String> {
            unreachable!()
        }
        fn act(&self, _act: Act) -> Acted {
            unreachable!()
        }
        fn stop(&self) {}
    }

    #[test]
    fn a_bundle_that_is_sealed_anew_is_waited_for_under_its_new_id() {
        let fake = Fake(Mutex::new(("held", Stage::Queued)));
        let mut watch = Watch::new(&[], &[], WaitFor::All, &fake);
        assert_eq!(watch.look(&fake), None);
        for bundle in ["first", "second"] {
            *fake.0.lock() = (bundle, Stage::Queued);
            assert_eq!(watch.look(&fake), None, "{bundle}");
        }
        *fake.0.lock() = ("second", Stage::Delivered);
        assert_eq!(watch.look(&fake), Some(Outcome::Delivered));
        assert_eq!(watch.progress().files_done, 1);
    }
}
