//! A wait under way: what it looks at, what of that is done, and who is still missing.
//!
//! # Invariants
//! 1. What is waited for is fixed when the wait begins: a directory, or all that is on its way, stands for what is in it then.
//! 2. What was delivered once is not looked at again, so that a wait costs what is still open, not what there was.

use std::collections::{BTreeMap, BTreeSet};

use super::wait::{
    Delivery, Judged, Missing, Outcome, PathOutcome, Progress, Target, WaitFor, judge, judge_wide,
};
use super::{ControlBackend, Waited, WirePath};
use crate::bundle::RelPath;
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
    open: Vec<Target>,
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
            open,
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
        open.retain(|target| {
            let delivery = match target {
                Target::Path(path) => backend.delivery(path),
                Target::Bundle(id) => backend.delivery_of(id),
            };
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
                        true => format!("{}: {words}", called(target, &delivery)),
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
        let detail = match (detail, self.wide) {
            (Some(why), true) => format!("{counted}, {why}"),
            (Some(why), false) => why,
            (None, true) if self.files == 0 => "nothing is on its way".to_owned(),
            (None, true) => counted,
            (None, false) => self.detail,
        };
        PathOutcome {
            path: self.asked,
            outcome,
            detail,
        }
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
            if recipient.state == "delivered" {
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
            missing.states.insert(recipient.state.clone());
            if missing.error.is_none() {
                missing.error.clone_from(&recipient.error);
            }
        }
    }

    fn missing(self, backend: &dyn ControlBackend) -> Vec<Missing> {
        let links = backend.links();
        let mut all: Vec<Missing> = self.missing.into_values().collect();
        for missing in &mut all {
            missing.offline_since = links.get(&missing.id).copied().flatten();
        }
        // Who is away first: that is what a wait waits for longest.
        all.sort_by_key(|missing| (missing.offline_since.is_none(), missing.name.clone()));
        if all.len() > NAMED {
            let rest = all.split_off(NAMED);
            let states: BTreeSet<String> = rest
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
