//! Names: what the inbox calls the files and directories of an origin.
//!
//! The name of (origin, path) is chosen once, kept for all versions, and never given to another origin. In a conflict the
//! first component that differs gets a suffix: `stem~who.ext`, `stem~who-2.ext`, …
//!
//! # Cost
//! A peer chooses the paths, and other peers the names that stand in their way, so nothing here is done for each pair of
//! them. A directory is looked for once in a bundle, whatever is below it. Of the numbers only the first few are tried in
//! their order; then numbers are drawn from ranges that double, which finds a free one after a handful of tries, however
//! many are taken and whoever took them: nobody can foresee what is drawn. The number drawn for a directory has a row, so
//! that later bundles find the same directory.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::bundle::{Entry, EntryKind, NAME_MAX, RelPath, VerifiedManifest};
use crate::peer::{self, PeerId};
use crate::spool::decision::handles_name;
use crate::spool::inbox::Left;
use crate::spool::inbox::consumed::Owner;
use crate::spool::inbox::tables::{IN_NAMES, InName};
use crate::spool::journal::{Batch, Table};
use crate::spool::{Spool, SpoolError};

/// Origin, and a name in the inbox that a directory of it would have → the number it has instead. Only for numbers that
/// were drawn; kept for good, as the names of files chosen in a conflict are.
const NUMBERED: Table<(PeerId, RelPath), u32> = Table::new(92);

/// How many numbers are tried in their order.
const TRIED_IN_ORDER: u32 = 8;

/// The first range that numbers are drawn from.
const FIRST_RANGE: u32 = 16;

/// How many are drawn. Each range is twice the one before, so the last has more numbers than anybody can take.
const DRAWS: u32 = 24;

/// Entries whose names are chosen, and recorded, at once.
pub(super) const SLICE: usize = 256;

/// Bytes of directories remembered while names are chosen. What is forgotten is looked for again.
const KNOWN_MAX: usize = 4 << 20;

/// One name about to be given.
pub(super) struct Naming {
    pub(super) entry: usize,
    pub(super) name: RelPath,
}

/// What is known while the names of one bundle are chosen.
pub(in crate::spool) struct Choosing {
    pub(super) origin: PeerId,
    order: (u64, u64),
    /// The decision lock is held from the choice until the names have their rows.
    at_once: bool,
    /// What the origin is called.
    who: Option<String>,
    /// The name it would have, but for a directory that stands in the way.
    pub(super) blocked: Option<RelPath>,
    directories: Directories,
    /// Names of files chosen and not yet in the journal, with the paths they stand for.
    chosen: HashMap<RelPath, RelPath>,
    /// Older files of the origin and empty directories that are in the way, and are to go when the names are given.
    pub(super) cleared: Vec<RelPath>,
    /// Top directories, as the origin calls them, that the bundle has links in.
    linked: HashSet<Vec<u8>>,
}

/// Directories that were looked for already.
#[derive(Default)]
struct Directories {
    /// Path of the origin → the directory it has in the inbox.
    found: HashMap<RelPath, RelPath>,
    /// Directory in the inbox → whether files of the origin may be below it.
    usable: HashMap<RelPath, bool>,
    bytes: usize,
}

impl Directories {
    fn know(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes > KNOWN_MAX {
            *self = Self::default();
        }
    }

    fn is_usable(&mut self, directory: &RelPath, may: bool) {
        self.know(directory.as_bytes().len());
        self.usable.insert(directory.clone(), may);
    }

    fn is_called(&mut self, said: &RelPath, directory: &RelPath) {
        self.know(said.as_bytes().len() + directory.as_bytes().len());
        self.found.insert(said.clone(), directory.clone());
    }
}

impl Choosing {
    pub(in crate::spool) fn of(manifest: &VerifiedManifest) -> Self {
        let entries = manifest.manifest().entries.iter();
        let links = entries.filter(|entry| entry.target().is_some());
        let linked = links.filter_map(|entry| entry.path.components().next());
        Self {
            linked: linked.map(<[u8]>::to_vec).collect(),
            origin: manifest.manifest().origin,
            order: manifest.manifest().order(),
            at_once: manifest.manifest().entries.len() == 1,
            who: None,
            blocked: None,
            directories: Directories::default(),
            chosen: HashMap::new(),
            cleared: Vec::new(),
        }
    }
}

impl Spool {
    /// Names for all entries but those of which something newer was published. The rows of the last ones are in `batch`,
    /// those of the others are submitted. Call with the decision lock held.
    pub(super) fn choose_names(
        &self,
        manifest: &VerifiedManifest,
        choosing: &mut Choosing,
        batch: &mut Batch,
    ) -> Result<Vec<Naming>, SpoolError> {
        let entries = &manifest.manifest().entries;
        let mut namings = Vec::with_capacity(entries.len());
        for (slice, said) in entries.chunks(SLICE).enumerate() {
            self.journal.submit(std::mem::take(batch))?;
            choosing.chosen.clear();
            self.choose_slice(slice * SLICE, said, choosing, &mut namings, batch)?;
        }
        Ok(namings)
    }

    /// [`Self::choose_names`], all rows submitted; the decision lock is held for one slice at a time.
    pub(super) fn choose_in_slices(
        &self,
        manifest: &VerifiedManifest,
        choosing: &mut Choosing,
    ) -> Result<Vec<Naming>, SpoolError> {
        let entries = &manifest.manifest().entries;
        let mut namings = Vec::with_capacity(entries.len());
        for (slice, said) in entries.chunks(SLICE).enumerate() {
            let _decide = self.decide();
            if let Some(reason) = self.ledger.ended(manifest.id(), choosing.origin) {
                return Err(SpoolError::Ended(reason));
            }
            let mut batch = Batch::default();
            self.choose_slice(slice * SLICE, said, choosing, &mut namings, &mut batch)?;
            self.journal.submit(batch)?;
            choosing.chosen.clear();
        }
        Ok(namings)
    }

    /// The names of the entries `said`, which are those from number `first` on.
    fn choose_slice(
        &self,
        first: usize,
        said: &[Entry],
        choosing: &mut Choosing,
        namings: &mut Vec<Naming>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let (origin, order) = (choosing.origin, choosing.order);
        for (entry, said) in said.iter().enumerate() {
            handles_name();
            let newest = self.version(origin, &said.path)?;
            if newest.is_some_and(|newest| newest.order >= order) {
                continue;
            }
            let name = match said.kind {
                EntryKind::Directory => self.name_directory(&said.path, choosing, batch)?,
                EntryKind::File { .. } | EntryKind::Link { .. } => {
                    self.name_file(&said.path, choosing, batch)?
                }
            };
            if said.target().is_some() {
                self.may_show(said, &name)?;
                self.claim_top(origin, &said.path, &name, batch)?;
            }
            namings.push(Naming {
                entry: first + entry,
                name,
            });
        }
        Ok(())
    }

    /// The name of one file. Call with the decision lock held.
    pub(in crate::spool) fn choose_name(
        &self,
        path: &RelPath,
        choosing: &mut Choosing,
    ) -> Result<RelPath, SpoolError> {
        let mut batch = Batch::default();
        let name = self.name_file(path, choosing, &mut batch)?;
        self.journal.submit(batch)?;
        choosing.chosen.clear();
        Ok(name)
    }

    fn name_file(
        &self,
        path: &RelPath,
        choosing: &mut Choosing,
        batch: &mut Batch,
    ) -> Result<RelPath, SpoolError> {
        if let Some(name) = self.name_kept(path, choosing)? {
            return Ok(name);
        }
        choosing.blocked = None;
        let said = path.parent();
        let above = match &said {
            Some(said) => self.directory_of(path, said, choosing, batch)?,
            None => None,
        };
        if said.is_some() && above.is_none() {
            return Err(no_name(path));
        }
        let other = match &said {
            Some(_) => None,
            None => self.other_top(choosing.origin, path.file_name())?,
        };
        let component = other.as_deref().unwrap_or(path.file_name());
        let who = self.who(choosing);
        let mut name = None;
        for number in (0..=TRIED_IN_ORDER).chain(drawn()) {
            let Some(candidate) = numbered(above.as_ref(), component, &who, number) else {
                break;
            };
            if self.may_take(path, &candidate, choosing)? {
                name = Some(candidate);
                break;
            }
        }
        let name = name.ok_or_else(|| no_name(path))?;
        let origin = choosing.origin;
        self.choose(origin, path, &name, choosing.at_once, batch);
        choosing.chosen.insert(name.clone(), path.clone());
        self.note_provisional(path, &name, choosing, batch)?;
        Ok(name)
    }

    /// The name that was chosen before, if the file may still have it.
    fn name_kept(
        &self,
        path: &RelPath,
        choosing: &mut Choosing,
    ) -> Result<Option<RelPath>, SpoolError> {
        let mut chosen = self.chosen(choosing.origin, path)?;
        if let Some(before) = &chosen
            && self.go_home_before(path, before)?
        {
            chosen = self.chosen(choosing.origin, path)?;
        }
        let Some(chosen) = chosen else {
            return Ok(None);
        };
        if let Some(above) = chosen.parent()
            && !self.may_be_below(path, &above, choosing)?
        {
            return Ok(None);
        }
        let may = self.may_take(path, &chosen, choosing)?;
        Ok(may.then_some(chosen))
    }

    fn name_directory(
        &self,
        path: &RelPath,
        choosing: &mut Choosing,
        batch: &mut Batch,
    ) -> Result<RelPath, SpoolError> {
        let found = self.directory_of(path, path, choosing, batch)?;
        found.ok_or_else(|| no_name(path))
    }

    /// The directory in the inbox for what the origin calls `said`, which is `path` or above it. `None`: no name is free.
    fn directory_of(
        &self,
        path: &RelPath,
        said: &RelPath,
        choosing: &mut Choosing,
        batch: &mut Batch,
    ) -> Result<Option<RelPath>, SpoolError> {
        let (mut built, mut unknown) = (None, Vec::new());
        for said in std::iter::successors(Some(said.clone()), RelPath::parent) {
            built = choosing.directories.found.get(&said).cloned();
            if built.is_some() {
                break;
            }
            unknown.push(said);
        }
        for said in unknown.into_iter().rev() {
            let found = self.directory_in(path, built.as_ref(), &said, choosing, batch)?;
            let Some(found) = found else {
                return Ok(None);
            };
            choosing.directories.is_called(&said, &found);
            built = Some(found);
        }
        Ok(built)
    }

    /// The directory below `above` for what the origin calls `said`.
    fn directory_in(
        &self,
        path: &RelPath,
        above: Option<&RelPath>,
        said: &RelPath,
        choosing: &mut Choosing,
        batch: &mut Batch,
    ) -> Result<Option<RelPath>, SpoolError> {
        let origin = choosing.origin;
        let other = match above {
            Some(_) => None,
            None => self.other_top(origin, said.file_name())?,
        };
        let component = other.as_deref().unwrap_or(said.file_name());
        let who = self.who(choosing);
        let name = |number| numbered(above, component, &who, number);
        for number in 0..=TRIED_IN_ORDER {
            match name(number) {
                None => return Ok(None),
                Some(name) if self.may_be_below(path, &name, choosing)? => return Ok(Some(name)),
                Some(_) => {}
            }
        }
        let Some(wanted) = name(0) else {
            return Ok(None);
        };
        if let Some(number) = self.journal.row(NUMBERED, &(origin, &wanted))?
            && let Some(name) = name(number)
            && self.may_be_below(path, &name, choosing)?
        {
            return Ok(Some(name));
        }
        // An older file of the origin gives way to its directory, also one that has a drawn number.
        let file = self.chosen(origin, said)?;
        if let Some(name) = file.filter(|file| file.parent().as_ref() == above)
            && self.may_be_below(path, &name, choosing)?
        {
            return Ok(Some(name));
        }
        for number in drawn() {
            let Some(name) = name(number) else {
                return Ok(None);
            };
            if self.may_be_below(path, &name, choosing)? {
                batch.insert(NUMBERED, &(origin, &wanted), &number);
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn who(&self, choosing: &mut Choosing) -> String {
        let who = choosing.who.take();
        let who = who.unwrap_or_else(|| self.group.name_of(choosing.origin));
        choosing.who.insert(who).clone()
    }

    /// Whether `path` may be somewhere below `directory`. An older file of the same origin gives way to it.
    fn may_be_below(
        &self,
        path: &RelPath,
        directory: &RelPath,
        choosing: &mut Choosing,
    ) -> Result<bool, SpoolError> {
        let (mut may, mut unknown) = (true, Vec::new());
        for at in std::iter::successors(Some(directory.clone()), RelPath::parent) {
            if let Some(known) = choosing.directories.usable.get(&at) {
                may = *known;
                break;
            }
            unknown.push(at);
        }
        for at in unknown.into_iter().rev() {
            may = may && self.may_be_directory(path, &at, choosing)?;
            choosing.directories.is_usable(&at, may);
        }
        Ok(may)
    }

    /// Whether `candidate`, above which all is well, may be a directory on the way to `path`.
    fn may_be_directory(
        &self,
        path: &RelPath,
        candidate: &RelPath,
        choosing: &mut Choosing,
    ) -> Result<bool, SpoolError> {
        let origin = choosing.origin;
        if candidate.components().count() == 1 {
            // It may have links of others in it.
            let top = path.components().next().unwrap_or_default();
            let links = choosing.linked.contains(top);
            if !self.may_use_top(origin, candidate, links)? {
                return Ok(false);
            }
        }
        let owner = self.owner_by_now(candidate, choosing)?;
        match self.inbox().look(candidate)? {
            Some(meta) if meta.is_dir() => Ok(true),
            Some(_) => match owner {
                Some(Owner::Known(owner, its_path)) if owner == origin => {
                    self.record_pending(candidate)?;
                    let newest = self.version(origin, &its_path)?;
                    let older = newest.is_none_or(|newest| newest.order < choosing.order);
                    if older {
                        choosing.cleared.push(candidate.clone());
                    }
                    Ok(older)
                }
                Some(Owner::Known(..) | Owner::Consumed(_)) | None => Ok(false),
            },
            None => Ok(owner.is_none_or(|owner| owner.is_of(origin))),
        }
    }

    /// Whether (origin, path) may have `candidate` as its file. An empty directory gives way to it.
    fn may_take(
        &self,
        path: &RelPath,
        candidate: &RelPath,
        choosing: &mut Choosing,
    ) -> Result<bool, SpoolError> {
        let origin = choosing.origin;
        let owner = self.owner_by_now(candidate, choosing)?;
        if owner.is_some_and(|owner| !owner.is(origin, path, candidate)) {
            return Ok(false);
        }
        match self.inbox().look(candidate)? {
            Some(meta) if meta.is_dir() => {
                let is_empty = self.is_empty_in_inbox(candidate);
                if is_empty {
                    choosing.cleared.push(candidate.clone());
                } else {
                    choosing.blocked.get_or_insert_with(|| candidate.clone());
                }
                Ok(is_empty)
            }
            Some(_) => {
                self.record_pending(candidate)?;
                let row: Option<InName> = self.journal.row(IN_NAMES, candidate)?;
                Ok(row.is_some_and(|row| row.origin == origin && row.path == *path))
            }
            None => Ok(true),
        }
    }

    fn owner_by_now(
        &self,
        name: &RelPath,
        choosing: &Choosing,
    ) -> Result<Option<Owner>, SpoolError> {
        match choosing.chosen.get(name) {
            Some(path) => Ok(Some(Owner::Known(choosing.origin, path.clone()))),
            None => self.owner(name),
        }
    }

    /// What is in the way of another kind of file gives way to it. For one name: who gives many has the kernel forget them
    /// first. Call with the decision lock held.
    pub(super) fn clear_the_way(&self, choosing: &Choosing) -> Result<(), SpoolError> {
        let observer = self.observer.read().clone();
        for path in &choosing.cleared {
            match self.inbox().look(path)? {
                Some(meta) if meta.is_dir() => self.remove_inbox_directory(path)?,
                Some(_) => self.remove_name(path, Left::GaveWay)?,
                None => {}
            }
            if let Some(observer) = &observer {
                observer.removed(path);
            }
        }
        Ok(())
    }
}

fn no_name(path: &RelPath) -> SpoolError {
    SpoolError::Io {
        action: "find a free name for",
        path: path.as_path().to_path_buf(),
        source: io::Error::from_raw_os_error(libc::EEXIST),
    }
}

/// Numbers above those that are tried in order, drawn from ranges that double.
fn drawn() -> impl Iterator<Item = u32> {
    (0..DRAWS).map(|draw| {
        let range = FIRST_RANGE << draw;
        TRIED_IN_ORDER + 1 + u32::from_le_bytes(peer::random()) % range
    })
}

/// `component` below `above`, with a number; 0 is without. `None`: the path would be too long.
fn numbered(above: Option<&RelPath>, component: &[u8], who: &str, number: u32) -> Option<RelPath> {
    let name = match number {
        0 => component.to_vec(),
        _ => conflict_name(component, who, number),
    };
    match above {
        None => RelPath::parse(name).ok(),
        Some(above) => above.child(&name).ok(),
    }
}

/// `stem~who.ext`, then `stem~who-2.ext`, …, cut so that it fits a name.
fn conflict_name(name: &[u8], who: &str, number: u32) -> Vec<u8> {
    let dot = name.iter().rposition(|b| *b == b'.').filter(|at| *at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let suffix = if number == 1 {
        format!("~{who}")
    } else {
        format!("~{who}-{number}")
    };
    let extension = &extension[..extension.len().min(NAME_MAX - suffix.len() - 1)];
    let mut keep = stem.len().min(NAME_MAX - suffix.len() - extension.len());
    // Never in the middle of a character: continuation bytes are 10xxxxxx.
    while keep > 0 && keep < stem.len() && stem[keep] & 0xC0 == 0x80 {
        keep -= 1;
    }
    [&stem[..keep], suffix.as_bytes(), extension].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_name_keeps_the_extension_and_fits() {
        let name = |text: &str, number| {
            String::from_utf8(conflict_name(text.as_bytes(), "birch", number)).unwrap()
        };
        assert_eq!(name("report.pdf", 1), "report~birch.pdf");
        assert_eq!(name("report.pdf", 2), "report~birch-2.pdf");
        assert_eq!(name("Makefile", 1), "Makefile~birch");
        assert_eq!(name(".bashrc", 1), ".bashrc~birch");
        let long = name(&format!("{}.txt", "ä".repeat(125)), 1);
        assert!(
            long.len() <= NAME_MAX && long.ends_with("ä~birch.txt"),
            "{long}"
        );
        let long = conflict_name(
            &[b"x.".as_slice(), &[b'y'; 250]].concat(),
            &"z".repeat(63),
            1,
        );
        assert!(long.len() <= NAME_MAX);
    }

    #[test]
    fn numbers_are_drawn_from_ranges_without_end_and_fit_the_room_kept_for_them() {
        let drawn: Vec<u32> = drawn().collect();
        assert!(drawn.iter().all(|number| *number > TRIED_IN_ORDER));
        let last = TRIED_IN_ORDER + (FIRST_RANGE << (DRAWS - 1));
        let who = "z".repeat(63);
        let suffix = conflict_name(b"d", &who, last).len() - 1;
        assert!(suffix <= crate::spool::inbox::intake::CONFLICT_ROOM);
    }
}
