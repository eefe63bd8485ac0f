//! `meshbox send`: files sealed as one bundle under the user's own terms and, if wanted, the user's own id.
//!
//! The files lie below an ignored directory of the outbox, so that nothing of them is sent by itself. They get their
//! paths in the manifest only: the outbox shows no name for them, and their content is kept as that of any file that was
//! removed after its seal.
//!
//! # Invariants
//! 1. An id stands for one content (paths, digests, recipients) for ever: the same again sends nothing.
//! 2. What cannot be sent as asked (larger than the limits, or under routes that contradict each other) is an error, and
//!    nothing of it is sent.
//!
//! # Crash behaviour
//! The rows of the bundle and of its id are one batch, durable when [`Spool::send_files`] returns. Killed before, nothing
//! was sent, and the same call can be made again.
//!
//! # Threads
//! Called by a thread of the control socket; hashes there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bundle::{
    BundleId, ENTRIES_BYTES_MAX, Entry, EntryKind, MAX_ENTRIES, Priority, RelPath,
};
use crate::digest::Digest;
use crate::encoding;
use crate::spool::group::route::{Target, Terms};
use crate::spool::outbox::Outbox;
use crate::spool::outbox::hashing::{READ_BYTES, Slice};
use crate::spool::outbox::seal::{Earlier, Gates, Looked, Member, Plan, Taken, gates_of};
use crate::spool::outbox::tables::SENT_IDS;
use crate::spool::{Spool, SpoolError};

/// How long a file may still be open for writing: close(2) returns before the file system hears of it.
const LAST_CLOSE: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Why files are not sent that changed under our hands.
const WRITTEN: &str = "a file was written while it was being read; send it again";

/// What was sent under an id of the user's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::spool) struct SentRow {
    pub(in crate::spool) bundle: BundleId,
    /// SHA-256 of paths, digests and recipients.
    pub(in crate::spool) content: Digest,
}

/// What is to be sent as one bundle.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct SendRequest {
    /// Where each file is below the outbox, and its path in the bundle.
    pub files: Vec<(RelPath, RelPath)>,
    /// Whom to; empty: as the routes say.
    pub to: Vec<String>,
    /// How urgently; else as the routes say.
    pub priority: Option<Priority>,
    /// The user's own id.
    pub id: Option<String>,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// It is sealed.
    Sealed(BundleId),
    /// It is sealed, and waits for this.
    Held(BundleId, String),
    /// The same was sent under that id before.
    Same(BundleId),
    /// Something else was sent under that id before.
    Conflict(BundleId),
    /// It cannot be sent.
    Refused(String),
}

impl Spool {
    /// Seals files as one bundle. Blocks until it is durable.
    pub(crate) fn send_files(&self, request: &SendRequest) -> Result<Sent, SpoolError> {
        if request.files.is_empty() || request.files.len() > MAX_ENTRIES {
            let why = format!("a bundle has 1 to {MAX_ENTRIES} files");
            return Ok(Sent::Refused(why));
        }
        let members = match self.look_at_files(request)? {
            Ok(members) => members,
            Err(why) => return Ok(Sent::Refused(why)),
        };
        let asked = entries_of(request, &members);
        let asked = asked.and_then(|entries| Ok((self.common_terms(request, &entries)?, entries)));
        let (terms, entries) = match asked {
            Ok(asked) => asked,
            Err(why) => return Ok(Sent::Refused(why)),
        };
        let gates = gates_of(&members);
        let mut gates = Gates::lock(&gates);
        if gates.are_written() || members.iter().any(|member| !gates.is_as_hashed(member)) {
            return Ok(Sent::Refused(WRITTEN.into()));
        }
        let plan = gates.link(self, &members)?.plan(self);
        let sent = self.send_members(request, plan, &members, terms, entries)?;
        self.journal.flush()?;
        Ok(sent)
    }

    /// What a bundle of these members comes to, and its rows if it is one.
    fn send_members(
        &self,
        request: &SendRequest,
        mut plan: Plan<'_>,
        members: &[Member],
        mut terms: Terms,
        entries: Vec<Entry>,
    ) -> Result<Sent, SpoolError> {
        let content = content_of(&entries, &request.to);
        if let Some(id) = &request.id
            && let Some(row) = self.journal.row(SENT_IDS, id)?
        {
            return Ok(if row.content == content {
                Sent::Same(row.bundle)
            } else {
                Sent::Conflict(row.bundle)
            });
        }
        if let Some(why) = self.group.over_limits(&entries) {
            return Ok(Sent::Refused(why));
        }
        for member in members {
            match plan.take_in(member)? {
                Taken::Here(_) => {}
                Taken::Gone => return Ok(Sent::Refused(format!("{} is gone", member.path))),
                Taken::Changed => return Ok(Sent::Refused(WRITTEN.into())),
            }
        }
        self.group.last_word(&entries, &mut terms);
        let replaces = plan.replaced_by(&entries, false)?;
        let bundle = plan
            .announce(&terms, entries, Earlier::default(), replaces)?
            .id();
        if let Some(id) = &request.id {
            let row = SentRow { bundle, content };
            plan.batch.insert(SENT_IDS, id, &row);
        }
        plan.commit(false)?;
        Ok(match &terms.target {
            Target::Held(row) => Sent::Held(bundle, row.why.join("; ")),
            Target::All | Target::Ids(_) => Sent::Sealed(bundle),
        })
    }

    /// The files, hashed; or why they cannot be.
    fn look_at_files(
        &self,
        request: &SendRequest,
    ) -> Result<Result<Vec<Member>, String>, SpoolError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut slice = Slice::new(&mut buffer, true);
        let mut members = Vec::with_capacity(request.files.len());
        let deadline = Instant::now() + LAST_CLOSE;
        for (from, _) in &request.files {
            match self.look_until(from, deadline, &mut slice)? {
                Some(member) => members.push(Member {
                    file: None,
                    ..member
                }),
                None if self.outbox.jobs.are_ending() => {
                    let why = "the daemon is ending; send it again when it runs";
                    return Ok(Err(why.into()));
                }
                None => {
                    let why = format!("{from} is not there, or still being written");
                    return Ok(Err(why));
                }
            }
        }
        Ok(Ok(members))
    }

    /// The file with its digest, once nobody writes it any more.
    fn look_until(
        &self,
        path: &RelPath,
        deadline: Instant,
        slice: &mut Slice<'_>,
    ) -> Result<Option<Member>, SpoolError> {
        let Some(ino) = self.outbox.root.inode(path)? else {
            return Ok(None);
        };
        // What a slice hashed stands there, for the next one.
        let gate = self.outbox.gate(ino);
        loop {
            slice.again();
            match self.look_at_member(&gate, path, slice)? {
                // Its name in the bundle is another than the one by which a link was found harmless.
                Looked::Member(member) if member.target.is_some() => return Ok(None),
                Looked::Member(member) => return Ok(Some(*member)),
                // Who asked is told that the daemon has gone; nothing was sent.
                Looked::Later(_) if self.outbox.jobs.are_ending() => return Ok(None),
                Looked::Later(_) => {}
                Looked::Gone => return Ok(None),
                Looked::Open if Instant::now() >= deadline => return Ok(None),
                Looked::Open => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// The terms of all entries; they must not contradict each other.
    fn common_terms(&self, request: &SendRequest, entries: &[Entry]) -> Result<Terms, String> {
        let of = |entry: &Entry| {
            self.group
                .terms_asked(&entry.path, &request.to, request.priority)
        };
        let first = of(&entries[0]);
        if let Some(other) = entries
            .iter()
            .find(|entry| of(entry).target != first.target)
        {
            return Err(format!(
                "{} and {} have routes to different recipients; say --to, or send them apart",
                entries[0].path, other.path
            ));
        }
        Ok(first)
    }
}

impl Outbox {
    /// The bundle that was sent under an id of the user's.
    pub(crate) fn sent_as(&self, id: &str) -> Option<BundleId> {
        let row: Option<SentRow> = self.journal.row(SENT_IDS, &id).ok()?;
        row.map(|row| row.bundle)
    }
}

/// What the bundle says of the files, in order; or why it cannot.
fn entries_of(request: &SendRequest, members: &[Member]) -> Result<Vec<Entry>, String> {
    let named = request.files.iter().zip(members);
    let mut entries: Vec<Entry> = named
        .map(|((_, name), member)| member.entry(name, &member.meta))
        .collect();
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    if let Some(twice) = entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
        return Err(format!(
            "two files would be {} in the bundle",
            twice[0].path
        ));
    }
    let listed: usize = entries.iter().map(encoding::len_of).sum();
    match listed > ENTRIES_BYTES_MAX {
        true => Err(format!(
            "the names and checksums of these files take {listed} bytes, a bundle has {ENTRIES_BYTES_MAX} for them: send them as several"
        )),
        false => Ok(entries),
    }
}

/// One digest of what a bundle says and to whom.
fn content_of(entries: &[Entry], to: &[String]) -> Digest {
    let said: Vec<(&RelPath, Option<Digest>, bool)> = entries
        .iter()
        .map(|entry| {
            let executable = matches!(entry.kind, EntryKind::File { executable, .. } if executable);
            (&entry.path, entry.digest(), executable)
        })
        .collect();
    let to: BTreeSet<&String> = to.iter().collect();
    // Postcard of plain owned data into a growing vector has no error to give.
    Digest::of(&postcard::to_stdvec(&(said, to)).unwrap_or_default())
}
