//! Routes: whom a bundle is for, how urgent it is and how long it lives, decided when it is sealed.
//!
//! What `meshbox send` says beats `user.meshbox.to` and `.priority` on the nearest directory above, that beats the
//! configured route with the longest path, and without any of them it is for all.
//!
//! # Invariants
//! 1. Whoever cannot be resolved is never replaced by somebody else, let alone by all: the whole bundle is held, with
//!    the reason in status, and sealed anew when the last name is known. A held bundle is offered to nobody.
//! 2. A manifest names earlier bundles and paths only if all its recipients were recipients of those.
//!
//! # Crash behaviour
//! What a bundle is held for goes in the batch of the seal, and is replaced by the rows of the final bundle in one batch. The
//! attributes of directories are on the directories themselves; which have some is found again at each start.
//!
//! # Threads
//! Without any route a seal costs two relaxed loads here.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::Group;
use crate::bundle::{
    BundleId, Entry, Listing, MAX_ENTRIES, Priority, RelPath, SCOPE_MAX, Scope, VerifiedManifest,
};
use crate::peer::{PeerId, PeerName};
use crate::similar;
use crate::spool::beneath::Root;
use crate::spool::journal::{Batch, Table};
use crate::spool::outbox::seal::Earlier;
use crate::spool::tables::META;
use crate::spool::{Event, Spool, SpoolError};

/// The attribute of a directory that says whom what is below goes to.
const XATTR_TO: &str = "user.meshbox.to";

/// The attribute of a directory that says how urgent what is below is.
const XATTR_PRIORITY: &str = "user.meshbox.priority";

/// Longest value of these attributes that is looked at.
const XATTR_MAX: usize = 64 * 1024;

/// Whether a bundle for some only was ever sealed here.
const META_SCOPED: Table<(), u64> = Table::named(META, "scoped");

/// Membership generation written into the scope of bundles for all.
const GENERATION: u64 = 1;

/// Recipients of one bundle unless the configuration says otherwise.
pub(in crate::spool) const DEFAULT_MAX_RECIPIENTS: usize = 1024;

/// One route of the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    /// Everything at and below this path of the outbox; `None`: everything.
    pub path: Option<RelPath>,
    /// Names, ids, `@group`s, or `all`; empty: all.
    pub to: Vec<String>,
    /// Else routine.
    pub priority: Option<Priority>,
    /// Else the general one.
    pub lifetime: Option<Duration>,
}

/// What the configuration says of bundles.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Routing {
    /// In any order.
    pub routes: Vec<Route>,
    /// Names or ids by group.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Most files and directories of one bundle.
    pub max_bundle_files: Option<usize>,
    /// Most bytes of one bundle.
    pub max_bundle_bytes: Option<u64>,
    /// Most recipients that a bundle may name.
    pub max_recipients: Option<usize>,
}

/// Why a word does not say whom to send to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// Nobody has that name; and the one that may be meant, as the end of a sentence.
    #[error("nobody known as {0}{1}")]
    Nobody(String, String),
    /// No such group; the same.
    #[error("no group {0} in the configuration{1}")]
    NoGroup(String, String),
    /// Not a name.
    #[error("{0:?} is neither a name, an id, a @group nor `all`")]
    Bad(String),
}

/// What was decided for a bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::spool) struct Terms {
    pub(in crate::spool) target: Target,
    pub(in crate::spool) priority: Priority,
    pub(in crate::spool) lifetime: Duration,
}

/// Whom a bundle goes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::spool) enum Target {
    All,
    Ids(Vec<PeerId>),
    /// To nobody as yet: whom it is meant for, and what is in the way.
    Held(HeldRow),
}

/// A bundle that is held.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct HeldRow {
    pub(in crate::spool) to: Vec<String>,
    pub(in crate::spool) why: Vec<String>,
}

/// Splits the value of `to` at commas and blanks.
pub(crate) fn split_targets(text: &str) -> Vec<String> {
    text.split([',', ' ', '\t', '\n'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Reads a priority.
pub(crate) fn parse_priority(text: &str) -> Option<Priority> {
    Some(match text.trim() {
        "bulk" => Priority::Bulk,
        "low" => Priority::Low,
        "routine" => Priority::Routine,
        "priority" => Priority::Priority,
        "critical" => Priority::Critical,
        _ => return None,
    })
}

impl Routing {
    /// Whether `word` can be meant at all: groups must be configured, names well formed.
    pub(crate) fn check(&self, word: &str) -> Result<(), TargetError> {
        if word == "all" || PeerId::from_hex(word).is_some() {
            return Ok(());
        }
        match word.strip_prefix('@') {
            Some(group) if self.groups.contains_key(group) => Ok(()),
            Some(group) => Err(self.no_group(group)),
            None => PeerName::parse(word)
                .map(drop)
                .map_err(|_| TargetError::Bad(word.to_owned())),
        }
    }

    /// That there is no such group.
    fn no_group(&self, group: &str) -> TargetError {
        let near = similar::nearest(group, self.groups.keys().map(String::as_str));
        let hint = near.map_or_else(String::new, |near| format!("; did you mean `@{near}`?"));
        TargetError::NoGroup(format!("@{group}"), hint)
    }

    /// The configured route with the longest path.
    fn route_of(&self, path: &RelPath) -> Option<&Route> {
        let covers = |route: &&Route| route.path.as_ref().is_none_or(|at| path.starts_with(at));
        let depth = |route: &&Route| route.path.as_ref().map_or(0, |at| at.as_bytes().len());
        self.routes.iter().filter(covers).max_by_key(depth)
    }
}

/// What the configuration and the directories of the outbox say of bundles. The flags spare those who use none of it a
/// look into the journal.
#[derive(Debug)]
pub(super) struct Routes {
    /// The tree whose directories may have attributes.
    outbox: Arc<Root>,
    /// How long bundles live where no route says otherwise.
    lifetime: RwLock<Duration>,
    /// Whether there is a route in the configuration.
    any_route: AtomicBool,
    /// Whether a directory may have an attribute that routes.
    any_routed: AtomicBool,
    /// Whether a bundle for some only was ever sealed.
    scoped: AtomicBool,
    /// Whether bundles have limits.
    limited: AtomicBool,
    routing: RwLock<Arc<Routing>>,
    /// Inodes of directories that may have such an attribute; the directory itself has the last word.
    routed: RwLock<BTreeSet<u64>>,
}

impl Routes {
    pub(super) fn new(outbox: &Arc<Root>, lifetime: Duration) -> Self {
        Self {
            outbox: Arc::clone(outbox),
            lifetime: RwLock::new(lifetime),
            any_route: AtomicBool::new(false),
            any_routed: AtomicBool::new(false),
            scoped: AtomicBool::new(false),
            limited: AtomicBool::new(false),
            routing: RwLock::default(),
            routed: RwLock::default(),
        }
    }
}

impl Group {
    /// Whether a bundle for some only was ever sealed; only then anything can be held.
    pub(in crate::spool) fn is_scoped(&self) -> bool {
        self.routes.scoped.load(Ordering::Relaxed)
    }

    /// How long bundles live where no route says otherwise.
    pub(in crate::spool) fn lifetime(&self) -> Duration {
        *self.routes.lifetime.read()
    }

    /// From now on this is the configuration.
    fn route_by(&self, routing: Routing) {
        let routes = &self.routes;
        routes
            .any_route
            .store(!routing.routes.is_empty(), Ordering::Release);
        let limited = routing.max_bundle_files.is_some() || routing.max_bundle_bytes.is_some();
        routes.limited.store(limited, Ordering::Release);
        *routes.routing.write() = Arc::new(routing);
    }

    /// Whether all these words can be meant at all; whether anybody is known by them is another question.
    pub(crate) fn check_targets(&self, to: &[String]) -> Result<(), TargetError> {
        let routing = self.routes.routing.read().clone();
        to.iter().try_for_each(|word| routing.check(word))
    }

    /// The member of this name or id.
    pub(crate) fn member_named(&self, word: &str) -> Result<PeerId, TargetError> {
        if let Some(id) = PeerId::from_hex(word) {
            return if self.is_forgotten(id).unwrap_or(false) {
                Err(TargetError::Nobody(word.to_owned(), String::new()))
            } else {
                Ok(id)
            };
        }
        self.named(word).ok_or_else(|| {
            let members = self.members();
            let hint = similar::hint(word, members.iter().map(|member| member.name.as_str()));
            TargetError::Nobody(word.to_owned(), hint)
        })
    }

    /// Checks the value of an attribute of a directory; `None`: it is not one of ours.
    pub(crate) fn check_route_xattr(&self, name: &[u8], value: &[u8]) -> Option<bool> {
        let text = std::str::from_utf8(value).ok();
        if name == XATTR_TO.as_bytes() {
            let routing = self.routes.routing.read().clone();
            let words = text.map(split_targets).unwrap_or_default();
            Some(!words.is_empty() && words.iter().all(|word| routing.check(word).is_ok()))
        } else if name == XATTR_PRIORITY.as_bytes() {
            Some(text.and_then(parse_priority).is_some())
        } else {
            None
        }
    }

    /// A directory of the outbox has such an attribute now.
    pub(crate) fn note_routed(&self, ino: u64) {
        self.routes.routed.write().insert(ino);
        self.routes.any_routed.store(true, Ordering::Release);
    }

    /// The ids that `to` means.
    pub(in crate::spool) fn resolve(&self, to: &[String], routing: &Routing) -> Target {
        let me = self.identity.id();
        let (mut ids, mut why) = (BTreeSet::new(), Vec::new());
        let mut all = false;
        let mut one = |word: &str| match self.member_named(word) {
            Ok(id) => {
                ids.insert(id);
            }
            Err(error) => why.push(error.to_string()),
        };
        let mut missing = Vec::new();
        for word in to {
            match (word.as_str(), word.strip_prefix('@')) {
                ("all", _) => all = true,
                (_, Some(group)) => match routing.groups.get(group) {
                    Some(members) => members.iter().for_each(|member| one(member)),
                    None => missing.push(routing.no_group(group).to_string()),
                },
                (word, None) => one(word),
            }
        }
        why.extend(missing);
        ids.remove(&me);
        let max = most_recipients(routing);
        if why.is_empty() && !all && ids.len() > max {
            why.push(format!("{} recipients, max_recipients is {max}", ids.len()));
        } else if why.is_empty() && !all && ids.is_empty() {
            why.push("nobody but this node".to_owned());
        }
        if !why.is_empty() {
            return Target::Held(HeldRow {
                to: to.to_vec(),
                why,
            });
        }
        if all {
            Target::All
        } else {
            Target::Ids(ids.into_iter().collect())
        }
    }

    /// The last word on the terms, with the decision lock held: a name may be known by now, and what is larger than a
    /// bundle may be is held.
    pub(in crate::spool) fn last_word(&self, entries: &[Entry], terms: &mut Terms) {
        if let Target::Held(row) = &terms.target {
            let routing = self.routes.routing.read().clone();
            terms.target = self.resolve(&row.to, &routing);
        }
        if let Some(why) = self.over_limits(entries) {
            let to = match &terms.target {
                Target::All => vec!["all".to_owned()],
                Target::Ids(ids) => ids.iter().map(PeerId::to_string).collect(),
                Target::Held(row) => row.to.clone(),
            };
            terms.target = Target::Held(HeldRow { to, why: vec![why] });
        }
    }

    /// Why that is more than a bundle may be.
    pub(in crate::spool) fn over_limits(&self, entries: &[Entry]) -> Option<String> {
        if !self.routes.limited.load(Ordering::Relaxed) {
            return None;
        }
        over_limit(&self.routes.routing.read(), entries)
    }

    /// Why a bundle of another is larger than we take.
    pub(in crate::spool) fn over_our_limits(&self, manifest: &VerifiedManifest) -> Option<String> {
        let of = manifest.manifest();
        self.too_many_recipients(&of.scope).or_else(|| {
            let why = over_limit(&self.routes.routing.read(), &of.entries);
            why.map(|why| why.replace(" is ", " here is "))
        })
    }

    /// Why a bundle or cancel of another is for more than we take.
    pub(in crate::spool) fn too_many_recipients(&self, scope: &Scope) -> Option<String> {
        let max = most_recipients(&self.routes.routing.read());
        match scope {
            Scope::Ids(ids) if ids.len() > max => Some(format!(
                "{} recipients, max_recipients here is {max}",
                ids.len()
            )),
            Scope::Ids(_) | Scope::All { .. } => None,
        }
    }

    /// Bundles live for so long from now on, where no route says otherwise.
    pub(crate) fn set_lifetime(&self, lifetime: Duration) {
        *self.routes.lifetime.write() = lifetime;
    }

    /// Finds the directories with such attributes.
    pub(in crate::spool) fn begin_routes(&self) -> Result<(), SpoolError> {
        let scoped = self.journal.row(META_SCOPED, &())?.is_some();
        self.routes.scoped.store(scoped, Ordering::Release);
        let mut found = BTreeSet::new();
        if let Some(root) = self.open_routed(None)
            && has_route(&root)
        {
            found.extend(rustix::fs::fstat(&root).map(|stat| stat.st_ino));
        }
        let mut open: Vec<Option<RelPath>> = vec![None];
        while let Some(directory) = open.pop() {
            let Ok(entries) = self.routes.outbox.list(directory.as_ref()) else {
                continue;
            };
            for (path, meta) in entries.flatten() {
                if !meta.is_dir() {
                    continue;
                }
                if self
                    .open_routed(Some(&path))
                    .is_some_and(|fd| has_route(&fd))
                {
                    found.insert(meta.ino());
                }
                open.push(Some(path));
            }
        }
        self.routes
            .any_routed
            .store(!found.is_empty(), Ordering::Release);
        *self.routes.routed.write() = found;
        Ok(())
    }

    /// A directory of the outbox; `None`: the outbox itself.
    fn open_routed(&self, path: Option<&RelPath>) -> Option<OwnedFd> {
        self.routes
            .outbox
            .open_directory(path)
            .ok()
            .map(OwnedFd::from)
    }

    /// What the nearest directories above `path` say: whom to, how urgently.
    fn attributes_above(&self, path: &RelPath) -> (Option<String>, Option<Priority>) {
        let (mut to, mut priority) = (None, None);
        let mut above = path.parent();
        loop {
            if !self.routes.routed.read().is_empty()
                && let Some(fd) = self.open_routed(above.as_ref())
                && rustix::fs::fstat(&fd)
                    .is_ok_and(|stat| self.routes.routed.read().contains(&stat.st_ino))
            {
                to = to.or_else(|| read_xattr(&fd, XATTR_TO));
                priority = priority
                    .or_else(|| read_xattr(&fd, XATTR_PRIORITY).and_then(|p| parse_priority(&p)));
            }
            match above {
                Some(directory) => above = directory.parent(),
                None => break,
            }
        }
        (to, priority)
    }

    /// Whom the file at `path` goes to, and how. `asked` is what whoever asks for the seal wants.
    pub(in crate::spool) fn terms_of(&self, path: &RelPath, asked: Priority) -> Terms {
        let (any_route, any_routed) = (
            self.routes.any_route.load(Ordering::Relaxed),
            self.routes.any_routed.load(Ordering::Relaxed),
        );
        let mut terms = Terms {
            target: Target::All,
            priority: asked,
            lifetime: self.lifetime(),
        };
        if !any_route && !any_routed {
            return terms;
        }
        let routing = self.routes.routing.read().clone();
        let mut to: Vec<String> = Vec::new();
        if let Some(route) = routing.route_of(path) {
            to.clone_from(&route.to);
            terms.priority = route.priority.unwrap_or(terms.priority);
            terms.lifetime = route.lifetime.unwrap_or(terms.lifetime);
        }
        if any_routed {
            let (said, priority) = self.attributes_above(path);
            if let Some(said) = said {
                to = split_targets(&said);
            }
            terms.priority = priority.unwrap_or(terms.priority);
        }
        if !to.is_empty() {
            terms.target = self.resolve(&to, &routing);
        }
        terms
    }

    /// What `meshbox send` asked for, where it said something, over the routes.
    pub(in crate::spool) fn terms_asked(
        &self,
        path: &RelPath,
        to: &[String],
        priority: Option<Priority>,
    ) -> Terms {
        let mut terms = self.terms_of(path, Priority::default());
        if !to.is_empty() {
            let routing = self.routes.routing.read().clone();
            terms.target = self.resolve(to, &routing);
        }
        terms.priority = priority.unwrap_or(terms.priority);
        terms
    }
}

impl Spool {
    /// Takes the configuration over; bundles that were held are looked at again.
    pub(crate) fn set_routing(&self, routing: Routing) -> Result<(), SpoolError> {
        self.group.route_by(routing);
        self.release_held()
    }

    /// The manifest under these terms.
    pub(in crate::spool) fn manifest_under(
        &self,
        terms: &Terms,
        listing: impl Into<Listing>,
        mut earlier: Earlier,
    ) -> VerifiedManifest {
        let scope = match &terms.target {
            Target::All => Scope::All {
                generation: GENERATION,
            },
            Target::Ids(ids) => Scope::Ids(ids.clone()),
            Target::Held(_) => Scope::Ids(Vec::new()),
        };
        if self.group.routes.scoped.load(Ordering::Relaxed) {
            let shown = |bundle: BundleId| {
                let before = self.ledger.shared_manifest(bundle).ok().flatten();
                before.is_some_and(|before| before.manifest().scope.covers(&scope))
            };
            // The later ones were in the first one's manifest, for recipients of all of them.
            let formers = &mut earlier.renamed_from;
            if formers.first().is_some_and(|former| !shown(former.bundle)) {
                formers.clear();
            }
            // That it is there is nothing for who never heard of it.
            earlier.moved_on = earlier.moved_on.filter(|it| shown(it.bundle));
            earlier.supersedes = earlier.supersedes.filter(|bundle| shown(*bundle));
        }
        self.scoped_manifest(listing, earlier, terms.priority, scope, terms.lifetime)
    }

    /// The rows of a new bundle under these terms. Call with the decision lock held.
    pub(in crate::spool) fn rows_under(
        &self,
        terms: &Terms,
        manifest: &VerifiedManifest,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let bundle = manifest.id();
        let recipients: Vec<PeerId> = match &terms.target {
            Target::All => self.group.ids().into_iter().collect(),
            Target::Ids(ids) => ids.clone(),
            Target::Held(_) => Vec::new(),
        };
        if !matches!(terms.target, Target::All)
            && !self.group.routes.scoped.swap(true, Ordering::AcqRel)
        {
            batch.insert(META_SCOPED, &(), &1u64);
        }
        let orphan = matches!(terms.target, Target::All) && recipients.is_empty();
        self.bundle_rows_for(manifest, &recipients, orphan, batch)?;
        if let Target::Held(row) = &terms.target {
            self.ledger.hold(bundle, row, batch);
            tracing::warn!(bundle = %bundle.short(), why = row.why.join("; "), "held");
        }
        Ok(())
    }

    /// Seals what was held and can be resolved now.
    pub(in crate::spool) fn release_held(&self) -> Result<(), SpoolError> {
        if !self.group.routes.scoped.load(Ordering::Relaxed) {
            return Ok(());
        }
        for bundle in self.ledger.all_held()? {
            self.try_release(bundle)?;
        }
        Ok(())
    }

    fn try_release(&self, old: BundleId) -> Result<(), SpoolError> {
        let decide = self.decide();
        let (Some(held), Some(manifest)) =
            (self.ledger.held(old)?, self.ledger.shared_manifest(old)?)
        else {
            return Ok(());
        };
        let of = manifest.manifest();
        let routing = self.group.routes.routing.read().clone();
        let mut terms = Terms {
            target: self.group.resolve(&held.to, &routing),
            priority: of.priority,
            lifetime: Duration::from_secs(of.lifetime_secs),
        };
        self.group.last_word(&of.entries, &mut terms);
        let mut batch = Batch::default();
        if let Target::Held(now) = &terms.target {
            if *now != held {
                self.ledger.hold(old, now, &mut batch);
                self.journal.submit(batch)?;
                self.doorbell.ring(&Event::StatusChanged);
            }
            return Ok(());
        }
        let listing = Listing {
            entries: of.entries.clone(),
            directories: of.directories.clone(),
        };
        // Who consumed a file is not to see it again because its new name was held.
        let earlier = Earlier {
            renamed_from: of.renamed_from.clone(),
            moved_on: self.outbox.moved_on(&of.entries[0].path)?,
            ..Earlier::default()
        };
        let new = self.manifest_under(&terms, listing, earlier);
        let bundle = new.id();
        self.rows_under(&terms, &new, &mut batch)?;
        self.outbox.tells_no_more(old, of, &mut batch)?;
        self.outbox.tells_moves(&new, &mut batch);
        self.outbox.sealed_anew(old, &new, &mut batch)?;
        self.content.end_need(old, of.digests(), &mut batch);
        let replaced = Some(bundle);
        self.content
            .replace_sent(old, replaced, of.digests(), &mut batch)?;
        self.ledger.forget(old, &mut batch)?;
        self.journal.submit(batch)?;
        drop(decide);
        tracing::info!(old = %old.short(), bundle = %bundle.short(), "what was held is sealed");
        self.doorbell.ring(&Event::Sealed(bundle, terms.priority));
        self.doorbell.ring(&Event::StatusChanged);
        Ok(())
    }
}

/// No scope names more than [`SCOPE_MAX`], whatever the setting.
fn most_recipients(routing: &Routing) -> usize {
    let max = routing.max_recipients.unwrap_or(DEFAULT_MAX_RECIPIENTS);
    max.min(SCOPE_MAX)
}

fn over_limit(routing: &Routing, entries: &[Entry]) -> Option<String> {
    let max = routing.max_bundle_files.unwrap_or(MAX_ENTRIES);
    if entries.len() > max {
        return Some(format!(
            "{} files, max_bundle_files is {max}",
            entries.len()
        ));
    }
    let bytes = entries.iter().map(Entry::size).fold(0, u64::saturating_add);
    let max = routing.max_bundle_bytes?;
    (bytes > max).then(|| format!("{bytes} bytes, max_bundle_bytes is {max}"))
}

fn has_route(fd: &OwnedFd) -> bool {
    [XATTR_TO, XATTR_PRIORITY]
        .iter()
        .any(|name| read_xattr(fd, name).is_some())
}

fn read_xattr(fd: &OwnedFd, name: &str) -> Option<String> {
    let mut value = Vec::with_capacity(XATTR_MAX);
    rustix::fs::fgetxattr(fd, name, rustix::buffer::spare_capacity(&mut value)).ok()?;
    String::from_utf8(value).ok()
}
