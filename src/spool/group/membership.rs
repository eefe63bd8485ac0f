//! Who belongs to the group, and with which key: the durable side of [`crate::peer::roll`].
//!
//! # Invariants
//! 1. A statement counts only after it is durable. What follows from it (a new `group.key`, deliveries that end) is done
//!    afterwards and done again at the next start.
//! 2. `group.key` is replaced whole, and the key before it is kept in `old-keys/` first: members that were away still
//!    prove that one, and get the new one closed for them.
//! 3. Who was removed, is not on the list, or was left out by a new key is no member: not listed, owed nothing more.
//!
//! # Crash behaviour
//! A new key is in the journal, closed for us, before it is anywhere else; [`Group::enter`] goes on from there.

mod bound;
mod invitations;
mod keys;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use thiserror::Error;

pub(crate) use self::bound::is_alone;
use super::members::Known;
use super::route::Routes;
use super::tables::MEMBERS;
pub(crate) use crate::peer::invitation::{Denied, Welcome};
use crate::peer::roll::{Change, MEMBERS_MAX, Rekey, Roll, SignedStatement, Statement, What};
use crate::peer::{self, Charter, GroupKey, Identity, PeerId};
use crate::similar;
use crate::spool::beneath::Root;
use crate::spool::decision::Deciding;
use crate::spool::doorbell::{Doorbell, Event};
use crate::spool::journal::{Batch, Journal, Key, Table};
use crate::spool::tables::META;
use crate::spool::{Layout, Member, SpoolError};

/// Those statements that count.
const STATEMENTS: Table<About, SignedStatement> = Table::new(48);
/// Peer → (): members that a new key did not reach.
const LEFT_OUT: Table<PeerId, ()> = Table::new(50);
/// The group's charter.
const META_CHARTER: Table<(), Charter> = Table::named(META, "charter");
/// The generation of the key that a ticket brought.
const META_GENERATION: Table<(), u64> = Table::named(META, "generation");

/// The members that we knew when a ticket brought a newer key.
const META_KNOWN_BEFORE: Table<(), BTreeSet<PeerId>> = Table::named(META, "known_before");

/// Ends all that is owed to who is no member any more; gives how many deliveries that were.
type Expelled = Box<dyn Fn(PeerId) -> Result<u64, SpoolError> + Send + Sync>;

/// Who belongs to the group, and what is known of each.
pub(crate) struct Group {
    pub(super) journal: Arc<Journal>,
    pub(super) layout: Layout,
    pub(in crate::spool) identity: Identity,
    pub(super) known: Known,
    pub(super) routes: Routes,
    state: RwLock<State>,
    /// Held over a change, disk included. Lock order: this, `decide`, `state`.
    pub(in crate::spool) change: Mutex<()>,
    pub(in crate::spool) deciding: Deciding,
    doorbell: Arc<Doorbell>,
    /// See [`Self::on_expelled`].
    expelled: OnceLock<Expelled>,
    /// The file `bound` is known to be there.
    bound: AtomicBool,
    /// One at a time writes it; a leaf, taken last.
    binding: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    charter: Option<Charter>,
    roll: Roll,
    /// The generation that a ticket brought us to; statements of earlier ones do not change our key.
    ticketed: u64,
    /// The newest first; empty until the group is entered.
    keys: Vec<GroupKey>,
    left_out: BTreeSet<PeerId>,
    /// The members that we knew when a ticket brought a key newer than ours.
    known_before: BTreeSet<PeerId>,
    listed: Option<BTreeSet<PeerId>>,
}

impl State {
    fn generation(&self) -> u64 {
        self.roll.generation().max(self.ticketed)
    }

    fn admission(&self, id: PeerId) -> Admission {
        let admin = self.charter.map(|charter| charter.admin);
        let by_admin = admin.is_some() && self.roll.admitted_by(id) == admin;
        let on = |list: &BTreeSet<PeerId>| list.contains(&id) || Some(id) == admin || by_admin;
        if self.roll.is_removed(id) {
            Admission::Removed
        } else if self.roll.has_left(id) {
            Admission::Left
        } else if !self.listed.as_ref().is_none_or(on) {
            Admission::Unlisted
        } else if self.left_out.contains(&id) {
            Admission::LeftOut
        } else {
            Admission::Welcome
        }
    }
}

/// Whether an id may take part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    /// If it proves the group key.
    Welcome,
    /// Never again.
    Removed,
    /// Never again, since it left of its own accord.
    Left,
    /// `members = "listed"`, and it is not.
    Unlisted,
    /// When it proves the present key: the admin did not give it that.
    LeftOut,
}

/// Why the membership was not changed.
#[derive(Debug, Error)]
pub(crate) enum GroupError {
    /// Somebody else is the admin.
    #[error("only the admin of the group can do that: {name} ({id})")]
    NotAdmin {
        /// What the admin is called.
        name: String,
        /// Its id.
        id: PeerId,
    },
    /// The journal was lost, and the charter with it.
    #[error(
        "it is not known any more who is the admin of this group; start once with --join and a ticket of another member"
    )]
    NoAdmin,
    /// Nobody of that name or id; and who may be meant, as the end of a sentence.
    #[error("no member is called {0:?}; `meshbox peers` shows names, and with --json whole ids{1}")]
    Unknown(String, String),
    /// Several of them.
    #[error("{0:?} is the name of several members; give the id: {1}")]
    Ambiguous(String, String),
    /// Ourselves.
    #[error("the admin cannot remove itself")]
    Myself,
    /// So many have left already that no more statements are kept.
    #[error(
        "this node is still a member: the group keeps no more statements of members that leave; the admin can remove it"
    )]
    NotRecorded,
    /// A full mesh is not made for that many.
    #[error("a new key reaches {MEMBERS_MAX} members, and there are more")]
    TooMany,
    /// Our disk.
    #[error(transparent)]
    Disk(#[from] SpoolError),
}

/// What a change of the membership came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Changed {
    /// The number of the key that holds now.
    pub generation: u64,
    /// Who was removed, with names.
    pub removed: Vec<(PeerId, String)>,
    /// Who gets the new key, with names; `None` if the key stays.
    pub keyed: Option<Vec<(PeerId, String)>>,
}

impl Group {
    /// Reads what the journal has.
    pub(in crate::spool) fn load(
        journal: &Arc<Journal>,
        layout: &Layout,
        outbox: &Arc<Root>,
        identity: &Identity,
        lifetime: Duration,
        doorbell: &Arc<Doorbell>,
    ) -> Result<Self, SpoolError> {
        let charter = journal.row(META_CHARTER, &())?;
        let mut state = State {
            charter,
            ticketed: journal.row(META_GENERATION, &())?.unwrap_or(0),
            known_before: journal.row(META_KNOWN_BEFORE, &())?.unwrap_or_default(),
            ..State::default()
        };
        let left_out = journal.keys(LEFT_OUT.all(), usize::MAX)?;
        state.left_out = left_out.into_iter().collect();
        let rows = journal.rows(STATEMENTS.all(), usize::MAX)?;
        let mut bad = Batch::default();
        for key in journal.unreadable(STATEMENTS)? {
            tracing::error!("a statement in the journal is dropped: it cannot be read");
            bad.remove(STATEMENTS, &key);
        }
        for (key, signed) in rows {
            let Some(charter) = &charter else { break };
            match signed.verify(charter) {
                Ok(statement) => {
                    state.roll.take(charter, statement, signed);
                }
                // Passed on, others would refuse it, and us with it.
                Err(error) => {
                    tracing::error!("dropped from the journal: {error}");
                    bad.remove(STATEMENTS, &key);
                }
            }
        }
        if !bad.is_empty() {
            journal.submit(bad)?;
        }
        Ok(Self {
            journal: Arc::clone(journal),
            layout: layout.clone(),
            identity: identity.clone(),
            known: Known::load(journal)?,
            routes: Routes::new(outbox, lifetime),
            state: RwLock::new(state),
            change: Mutex::default(),
            deciding: Deciding::default(),
            doorbell: Arc::clone(doorbell),
            expelled: OnceLock::new(),
            bound: AtomicBool::new(false),
            binding: Mutex::default(),
        })
    }

    /// What is called when a member is one no longer, with the change lock held.
    pub(in crate::spool) fn on_expelled(
        &self,
        end: impl Fn(PeerId) -> Result<u64, SpoolError> + Send + Sync + 'static,
    ) {
        self.expelled.set(Box::new(end)).ok();
    }

    /// Whether `id` is no member, whatever it proves at present.
    pub(in crate::spool) fn is_out(&self, id: PeerId) -> bool {
        self.state.read().admission(id) != Admission::Welcome
    }
}

/// What a statement is about; the newer one of two about the same counts.
#[derive(Debug)]
enum About {
    Removed(PeerId),
    Admitted(PeerId),
    Left(PeerId),
    Key,
}

impl About {
    fn of(statement: &Statement) -> Self {
        match &statement.what {
            What::Removed { id, .. } => Self::Removed(*id),
            What::Admitted { id, .. } => Self::Admitted(*id),
            What::Left { .. } => Self::Left(statement.by),
            What::Rekey(_) => Self::Key,
        }
    }
}

impl Key for About {
    type Read = Self;

    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Removed(id) => (b"r", id).write(to),
            Self::Admitted(id) => (b"a", id).write(to),
            Self::Left(id) => (b"l", id).write(to),
            Self::Key => b"k".write(to),
        }
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        match &<[u8; 1]>::read(from)? {
            b"r" => PeerId::read(from).map(Self::Removed),
            b"a" => PeerId::read(from).map(Self::Admitted),
            b"l" => PeerId::read(from).map(Self::Left),
            b"k" => Some(Self::Key),
            _ => None,
        }
    }
}

/// Entering the group, once at each start.
impl Group {
    /// Says which group this node is in: its key as the key file has it, and the charter if somebody told, which counts
    /// only where none is known. Goes on with what a crash interrupted.
    pub(crate) fn enter(&self, key: GroupKey, charter: Option<Charter>) -> Result<(), SpoolError> {
        let _one = self.change.lock();
        let out = self.begin(key, charter)?;
        out.into_iter().try_for_each(|id| self.expel(id))
    }
}

impl Group {
    /// Gives who is to be no member any more.
    fn begin(&self, key: GroupKey, charter: Option<Charter>) -> Result<Vec<PeerId>, SpoolError> {
        let known = self.state.read().charter;
        let charter = match (known, charter) {
            (None, Some(told)) => {
                let mut batch = Batch::default();
                batch.insert(META_CHARTER, &(), &told);
                self.journal.submit(batch)?;
                self.journal.flush()?;
                Some(told)
            }
            (known, _) => known,
        };
        let mut keys = vec![key];
        keys.extend(self.old_keys()?);
        // Kept already, but not replaced yet when the daemon was killed.
        keys.dedup();
        let (newer, out) = {
            let mut state = self.state.write();
            state.charter = charter;
            state.keys = keys;
            let roll = &state.roll;
            let out: Vec<PeerId> = roll
                .removed()
                .chain(roll.left())
                .chain(state.left_out.iter().copied())
                .collect();
            (self.newer_key(&state), out)
        };
        if let Some(newer) = newer {
            self.change_key(newer)?;
        }
        Ok(out)
    }

    /// The key that the newest statement brings us, if we do not have it as ours.
    fn newer_key(&self, state: &State) -> Option<GroupKey> {
        let (rekey, _) = state.roll.rekey()?;
        let key = rekey.open(&state.charter?, &self.identity)?;
        (rekey.generation >= state.ticketed && state.keys.first() != Some(&key)).then_some(key)
    }

    /// A ticket of this group brings a newer key than ours: this node was away for too long, or left out.
    pub(crate) fn adopt_key(&self, key: GroupKey, generation: u64) -> Result<bool, SpoolError> {
        let _one = self.change.lock();
        {
            let state = self.state.read();
            if state.keys.contains(&key) || generation <= state.generation() {
                return Ok(false);
            }
        }
        self.note_generation(generation, self.ids())?;
        self.change_key(key)?;
        Ok(true)
    }

    /// A ticket brought the key of this generation, and we knew these members by then.
    pub(crate) fn note_generation(
        &self,
        generation: u64,
        known: BTreeSet<PeerId>,
    ) -> Result<(), SpoolError> {
        let mut batch = Batch::default();
        batch.insert(META_GENERATION, &(), &generation);
        batch.insert(META_KNOWN_BEFORE, &(), &known);
        self.journal.submit(batch)?;
        self.journal.flush()?;
        let mut state = self.state.write();
        state.ticketed = generation;
        state.known_before = known;
        Ok(())
    }

    /// From now on only these ids are members, besides the admin and those it admitted; `None`: all who prove the key.
    pub(crate) fn set_listed(&self, listed: Option<BTreeSet<PeerId>>) {
        self.state.write().listed = listed;
        self.known.ids.write().retain(|id| !self.is_out(*id));
    }
}

/// Questions.
impl Group {
    /// The group's charter, if it is known.
    pub(crate) fn charter(&self) -> Option<Charter> {
        self.state.read().charter
    }

    /// The number of the present key.
    pub(crate) fn generation(&self) -> u64 {
        self.state.read().generation()
    }

    /// The key that holds, and those before it; empty before [`Group::enter`].
    pub(crate) fn keys(&self) -> Vec<GroupKey> {
        self.state.read().keys.clone()
    }

    /// The hash that names the group; `None` before [`Group::enter`].
    pub(crate) fn root(&self) -> Option<[u8; 32]> {
        let state = self.state.read();
        let of_key = || state.keys.last().map(GroupKey::root);
        state.charter.map(|charter| charter.root).or_else(of_key)
    }

    /// Whether `id` may take part.
    pub(crate) fn admission(&self, id: PeerId) -> Admission {
        self.state.read().admission(id)
    }

    /// Earlier keys that `id` may prove to be given the newest statement: it is one of those the new key is for.
    pub(crate) fn older_keys_for(&self, id: PeerId) -> Vec<GroupKey> {
        let state = self.state.read();
        let rekey = state.roll.rekey();
        let entitled = rekey.is_some_and(|(rekey, _)| rekey.includes(id));
        if entitled && state.admission(id) == Admission::Welcome {
            state.keys.get(1..).unwrap_or_default().to_vec()
        } else {
            Vec::new()
        }
    }

    /// The statement with the newest key.
    pub(crate) fn rekey_statement(&self) -> Option<SignedStatement> {
        let state = self.state.read();
        state.roll.rekey().map(|(_, signed)| signed.clone())
    }

    /// All statements that count, to be told to members.
    pub(crate) fn statements(&self) -> Vec<SignedStatement> {
        self.state.read().roll.statements().cloned().collect()
    }

    /// A hash of them; `None` in a group without a charter.
    pub(crate) fn roll_digest(&self) -> Option<[u8; 32]> {
        let state = self.state.read();
        state.charter.map(|_| state.roll.digest())
    }

    /// Why nothing is owed to `id`, if it is no member any more.
    pub(in crate::spool) fn why_out(&self, id: PeerId) -> Option<String> {
        let why = match self.admission(id) {
            Admission::Welcome => return None,
            Admission::Removed => "removed from the group",
            Admission::Left => "left the group",
            Admission::Unlisted => "not on the list of members",
            Admission::LeftOut => "has not got the new group key",
        };
        Some(why.to_owned())
    }

    /// Why an offer of a bundle of `origin` is refused, whoever makes it.
    pub(in crate::spool) fn refuses_origin(&self, origin: PeerId) -> Option<String> {
        match self.admission(origin) {
            Admission::Removed => Some("its origin was removed from the group".into()),
            Admission::Unlisted => Some("its origin is not on this node's list of members".into()),
            // What it sent before, others may still pass on.
            Admission::Welcome | Admission::LeftOut | Admission::Left => None,
        }
    }
}

/// Changes.
impl Group {
    /// `id` proved `key` on a connection. `false`: that is not the key any more.
    pub(crate) fn proved(&self, id: PeerId, key: &GroupKey) -> Result<bool, SpoolError> {
        let _one = self.change.lock();
        let mut state = self.state.write();
        if state.keys.first().is_some_and(|current| current != key) {
            return Ok(false);
        }
        if state.left_out.remove(&id) {
            drop(state);
            let mut batch = Batch::default();
            batch.remove(LEFT_OUT, &id);
            // Known, it would count as told of before; it is to be given what is current again.
            batch.remove(MEMBERS, &id);
            self.journal.submit(batch)?;
        }
        Ok(true)
    }

    /// Records what counts of `told`; a new key is ours then. Gives who is to be no member any more, `None` if nothing
    /// counts. Call with the change lock held.
    fn record(&self, told: Vec<SignedStatement>) -> Result<Option<Vec<PeerId>>, SpoolError> {
        let (charter, mut roll) = {
            let state = self.state.read();
            (state.charter, state.roll.clone())
        };
        let Some(charter) = charter else {
            if !told.is_empty() {
                tracing::warn!(
                    "statements on the group are passed over: {}",
                    GroupError::NoAdmin
                );
            }
            return Ok(None);
        };
        let mut batch = Batch::default();
        let (mut out, mut rekeyed) = (Vec::new(), false);
        for signed in told {
            let statement = match signed.verify(&charter) {
                Ok(statement) => statement,
                Err(error) => {
                    tracing::warn!("refused {error}");
                    continue;
                }
            };
            let about = About::of(&statement);
            match roll.take(&charter, statement, signed.clone()) {
                Change::None => continue,
                Change::Recorded => {}
                Change::Removed(id) => out.push(id),
                Change::Rekey => rekeyed = true,
            }
            batch.insert(STATEMENTS, &about, &signed);
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.bind()?;
        let mut left_out = self.state.read().left_out.clone();
        if let Some((rekey, _)) = roll.rekey().filter(|_| rekeyed) {
            self.leave_out(rekey, &mut left_out, &mut batch)?;
        }
        self.journal.submit(batch)?;
        self.journal.flush()?;
        let newer = {
            let mut state = self.state.write();
            out.extend(left_out.difference(&state.left_out));
            state.left_out = left_out;
            state.roll = roll;
            self.newer_key(&state)
        };
        if let Some(key) = newer {
            self.change_key(key)?;
            tracing::info!(generation = self.generation(), "the group has a new key");
        }
        if self.admission(self.identity.id()) == Admission::Removed {
            tracing::warn!("this node was removed from the group by its admin");
        }
        Ok(Some(out))
    }

    /// Whoever we know and the new key is not for must prove it before it is a member again. Where a ticket brought us that
    /// key first, this holds only for those we knew before: of the others we heard from members that have the key.
    fn leave_out(
        &self,
        rekey: &Rekey,
        left_out: &mut BTreeSet<PeerId>,
        batch: &mut Batch,
    ) -> Result<(), SpoolError> {
        let by_ticket = {
            let state = self.state.read();
            (rekey.generation <= state.ticketed).then(|| state.known_before.clone())
        };
        for (_, member) in self.journal.rows(MEMBERS.all(), usize::MAX)? {
            let is_told_by_it = by_ticket
                .as_ref()
                .is_some_and(|before| !before.contains(&member.id));
            if !is_told_by_it && !rekey.includes(member.id) && left_out.insert(member.id) {
                batch.insert(LEFT_OUT, &member.id, &());
            }
        }
        for (id, _) in &rekey.closed {
            if left_out.remove(id) {
                batch.remove(LEFT_OUT, id);
            }
        }
        Ok(())
    }

    /// The charter, if we are the admin.
    fn as_admin(&self) -> Result<Charter, GroupError> {
        let charter = self.charter().ok_or(GroupError::NoAdmin)?;
        if charter.admin == self.identity.id() {
            Ok(charter)
        } else {
            Err(GroupError::NotAdmin {
                name: self.name_of(charter.admin),
                id: charter.admin,
            })
        }
    }

    /// The member that is called `who`, or the id that it is: whole, since a part of an id is easily made twice.
    fn member_called(&self, who: &str) -> Result<PeerId, GroupError> {
        if let Some(id) = PeerId::from_hex(who) {
            return Ok(id);
        }
        let members = self.members();
        let found: Vec<&Member> = members.iter().filter(|m| m.name.as_str() == who).collect();
        match found[..] {
            [] => {
                let names = members.iter().map(|member| member.name.as_str());
                let hint = similar::hint(who, names);
                Err(GroupError::Unknown(who.to_owned(), hint))
            }
            [one] => Ok(one.id),
            _ => {
                let ids: Vec<String> = found.iter().map(|m| m.id.to_string()).collect();
                Err(GroupError::Ambiguous(who.to_owned(), ids.join(", ")))
            }
        }
    }

    /// Our word that `id` came in by our invitation; `None` in a group without a charter.
    pub(in crate::spool) fn admit(&self, id: PeerId) -> Option<SignedStatement> {
        let charter = self.charter()?;
        let generation = self.generation();
        let statement = Statement {
            group: charter.root,
            by: self.identity.id(),
            what: What::Admitted { id, generation },
        };
        Some(statement.sign(&self.identity))
    }

    /// The short name of the group, the same for all its keys.
    pub(crate) fn name(&self) -> String {
        self.root()
            .map(|root| peer::group_id(&root))
            .unwrap_or_default()
    }
}

/// What spans the group and what is owed to its members.
impl Group {
    /// Statements of other members arrived: those that count are kept and acted on. Waits for the disk.
    pub(crate) fn take_statements(&self, told: Vec<SignedStatement>) -> Result<(), SpoolError> {
        let _one = self.change.lock();
        self.apply(told)
    }

    /// Records what counts of `told`, then does what follows from it. Call with the change lock held.
    fn apply(&self, told: Vec<SignedStatement>) -> Result<(), SpoolError> {
        let Some(out) = self.record(told)? else {
            return Ok(());
        };
        out.into_iter().try_for_each(|id| self.expel(id))?;
        self.doorbell.ring(&Event::MembersChanged);
        Ok(())
    }

    /// Ends all that is owed to `id`, page by page. Done again at the next start if interrupted.
    fn expel(&self, id: PeerId) -> Result<(), SpoolError> {
        let for_good = matches!(self.admission(id), Admission::Removed | Admission::Left);
        self.decide().put_out(id, for_good)?;
        let ended = self.expelled.get().map_or(Ok(0), |end| end(id))?;
        if ended > 0 {
            tracing::info!(
                "{ended} deliveries to {} are cancelled: it is no member",
                self.name_of(id)
            );
        }
        Ok(())
    }

    /// Removes members, and gives all others a new key unless `keep_key`.
    pub(crate) fn remove_members(
        &self,
        who: &[String],
        keep_key: bool,
    ) -> Result<Changed, GroupError> {
        let charter = self.as_admin()?;
        let called = who.iter().map(|who| self.member_called(who));
        let ids = called.collect::<Result<BTreeSet<PeerId>, GroupError>>()?;
        if ids.contains(&self.identity.id()) {
            return Err(GroupError::Myself);
        }
        self.change(&charter, &ids, !keep_key)
    }

    /// Says that this node is no member any more. Durable when this returns; there is no way back under this id.
    pub(crate) fn say_left(&self) -> Result<(), GroupError> {
        let charter = self.charter().ok_or(GroupError::NoAdmin)?;
        let _one = self.change.lock();
        let statement = Statement {
            group: charter.root,
            by: self.identity.id(),
            what: What::Left {
                generation: self.generation(),
            },
        };
        self.apply(vec![statement.sign(&self.identity)])?;
        match self.admission(self.identity.id()) {
            Admission::Left | Admission::Removed => Ok(()),
            Admission::Welcome | Admission::Unlisted | Admission::LeftOut => {
                Err(GroupError::NotRecorded)
            }
        }
    }

    /// Gives all members a new key.
    pub(crate) fn rekey(&self) -> Result<Changed, GroupError> {
        let charter = self.as_admin()?;
        self.change(&charter, &BTreeSet::new(), true)
    }

    fn change(
        &self,
        charter: &Charter,
        removed: &BTreeSet<PeerId>,
        new_key: bool,
    ) -> Result<Changed, GroupError> {
        let _one = self.change.lock();
        let generation = self.generation();
        let named = |id: PeerId| (id, self.name_of(id));
        let removed_named = removed.iter().map(|id| named(*id)).collect();
        let remain = |id: &PeerId| !removed.contains(id);
        let mut said: Vec<What> = Vec::new();
        said.extend(removed.iter().map(|id| What::Removed {
            id: *id,
            generation,
        }));
        let mut keyed = None;
        if new_key {
            let others = self.members().into_iter().map(|member| member.id);
            let others: BTreeSet<PeerId> = others.filter(remain).collect();
            keyed = Some(others.iter().map(|id| named(*id)).collect());
            let mut members = others;
            members.insert(self.identity.id());
            if members.len() > MEMBERS_MAX {
                return Err(GroupError::TooMany);
            }
            let key = GroupKey::generate();
            said.push(What::Rekey(Rekey::new(
                charter,
                generation + 1,
                &key,
                &members,
            )));
        }
        let sign = |what| {
            let (group, by) = (charter.root, self.identity.id());
            Statement { group, by, what }.sign(&self.identity)
        };
        self.apply(said.into_iter().map(sign).collect())?;
        Ok(Changed {
            generation: self.generation(),
            removed: removed_named,
            keyed,
        })
    }
}
