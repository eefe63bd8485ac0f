//! The roll of a group: signed statements on who belongs to it, and what follows from them. Pure.
//!
//! A [`Statement`] is signed by the member that makes it and names the group by its [`Charter`]. Who is admitted any
//! member may say; who is removed, and what the next group key is, only the admin. [`Roll`] keeps the statements that
//! count; members give them to each other until their rolls have the same [`Roll::digest`].
//!
//! # Invariants
//! 1. What a roll keeps depends on the statements it was given, not on their order nor on how often.
//! 2. Nothing that is forged, of another group, or not its signer's to say changes a roll.
//! 3. A removal is never undone: who was removed by mistake joins again under a new id. The same goes for who left.
//! 4. A statement is passed on as the bytes that were signed, so there is one encoding of it, no longer than
//!    [`STATEMENT_MAX`]: what is longer or has more in it than it says counts for nobody.
//! 5. Of two keys of one generation (an admin whose state was copied) the one whose statement has the higher digest wins.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::closed::Closed;
use super::{GroupKey, Identity, PeerId, Signature};
use crate::encoding::{self, Malformed, at_most};

const CONTEXT: &[u8] = b"meshbox membership 1\0";

/// Admissions kept of the admin, and as many of all others: they are a record, a member that makes ids up must not fill
/// the others' disks, nor keep out whom the admin admits.
const ADMITTED_MAX: usize = 4096;

/// Removals kept. Only the admin makes them.
const REMOVED_MAX: usize = 16 * 1024;

/// Departures kept. Each is signed by the id that leaves, and whoever makes ids up must not fill the others' disks.
const LEFT_MAX: usize = 4096;

/// Members that one new key reaches, and removals kept: what a frame before the hello holds, and far more than a full
/// mesh of connections can have.
pub(crate) const MEMBERS_MAX: usize = 4096;

/// Longest encoded statement: a new key for [`MEMBERS_MAX`] members, each 128 bytes.
pub(crate) const STATEMENT_MAX: usize = 128 * MEMBERS_MAX + 256;

/// What never changes about a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Charter {
    /// The hash of its first key.
    pub root: [u8; 32],
    /// Who may remove members and change the key.
    pub admin: PeerId,
}

impl Charter {
    /// The charter of the group whose first key is `key`.
    pub(crate) fn of(key: &GroupKey, admin: PeerId) -> Self {
        let root = key.root();
        Self { root, admin }
    }
}

/// What is said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum What {
    /// This id came in by the signer's invitation.
    Admitted {
        /// Who.
        id: PeerId,
        /// The key generation it got.
        generation: u64,
    },
    /// This id is no member any more.
    Removed {
        /// Who.
        id: PeerId,
        /// The key generation of that time.
        generation: u64,
    },
    /// The group has a new key.
    Rekey(Rekey),
    /// The signer is no member any more, of its own accord.
    Left {
        /// The key generation of that time.
        generation: u64,
    },
}

/// A new group key for those who remain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Rekey {
    /// Its number; the first key of a group is 1.
    pub generation: u64,
    /// Hash of the key, so that all get the same one.
    pub key: [u8; 32],
    /// The key for each member, for its eyes only; in order of their ids.
    #[serde(deserialize_with = "at_most::<_, _, MEMBERS_MAX>")]
    pub closed: Vec<(PeerId, Closed)>,
}

impl Rekey {
    /// Closes `key` for each of `members`; ids that are no keys are left out.
    pub(crate) fn new(
        charter: &Charter,
        generation: u64,
        key: &GroupKey,
        members: &BTreeSet<PeerId>,
    ) -> Self {
        let purpose = purpose(charter, generation);
        let closed = members.iter().take(MEMBERS_MAX).filter_map(|id| {
            let closed = Closed::close(key.as_bytes(), *id, &purpose)?;
            Some((*id, closed))
        });
        Self {
            generation,
            key: key.commitment(),
            closed: closed.collect(),
        }
    }

    /// Whether `id` gets the key.
    pub(crate) fn includes(&self, id: PeerId) -> bool {
        self.closed.iter().any(|(to, _)| *to == id)
    }

    /// Whether the members are in order, each once: then there is one way to say it.
    fn is_in_order(&self) -> bool {
        self.closed.is_sorted_by(|(a, _), (b, _)| a < b)
    }

    /// The key, if it is for `me`.
    pub(crate) fn open(&self, charter: &Charter, me: &Identity) -> Option<GroupKey> {
        let (_, closed) = self.closed.iter().find(|(to, _)| *to == me.id())?;
        let key = closed.open(me, &purpose(charter, self.generation))?;
        let key = GroupKey::from_bytes(key).ok()?;
        (key.commitment() == self.key).then_some(key)
    }
}

fn purpose(charter: &Charter, generation: u64) -> Vec<u8> {
    [
        b"group key".as_slice(),
        &charter.root,
        charter.admin.as_bytes(),
        &generation.to_be_bytes(),
    ]
    .concat()
}

/// What one member says of the group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Statement {
    /// The group's [`Charter::root`].
    pub group: [u8; 32],
    /// Who says it.
    pub by: PeerId,
    /// What.
    pub what: What,
}

impl Statement {
    /// Signs it; `by` must be that identity.
    pub(crate) fn sign(&self, identity: &Identity) -> SignedStatement {
        // Postcard of plain owned data into a growing vector has no error to give.
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        let signature = identity.sign(CONTEXT, &bytes);
        SignedStatement { bytes, signature }
    }
}

/// A statement as it travels and is kept: the bytes that were signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SignedStatement {
    /// The encoded [`Statement`].
    #[serde(deserialize_with = "at_most::<_, _, STATEMENT_MAX>")]
    pub bytes: Vec<u8>,
    /// Of who makes it.
    pub signature: Signature,
}

impl SignedStatement {
    fn digest(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }

    /// Reads it and checks the signature, the group, and whether the signer may say that.
    pub(crate) fn verify(&self, charter: &Charter) -> Result<Statement, StatementError> {
        let statement: Statement = encoding::decode(&self.bytes, STATEMENT_MAX)?;
        if statement.group != charter.root {
            return Err(StatementError::OtherGroup);
        }
        if !statement.by.verify(CONTEXT, &self.bytes, &self.signature) {
            return Err(StatementError::Forged);
        }
        let admin = statement.by == charter.admin;
        match &statement.what {
            What::Admitted { .. } | What::Left { .. } => {}
            What::Removed { id, .. } if *id == charter.admin => {
                return Err(StatementError::RemovesAdmin);
            }
            What::Removed { .. } | What::Rekey(_) if !admin => {
                return Err(StatementError::NotAdmin);
            }
            What::Rekey(rekey) if rekey.generation < 2 || !rekey.is_in_order() => {
                return Err(StatementError::Unknown);
            }
            What::Removed { .. } | What::Rekey(_) => {}
        }
        Ok(statement)
    }
}

/// Why a statement does not count.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum StatementError {
    /// Of a newer version, or nonsense.
    #[error("a statement that this program does not know")]
    Unknown,
    /// Not the one encoding of a statement.
    #[error("a statement that is not as it should be: {0}")]
    Malformed(#[from] Malformed),
    /// About another group.
    #[error("a statement on another group")]
    OtherGroup,
    /// Not signed by whom it says.
    #[error("a forged statement")]
    Forged,
    /// Only the admin may say that.
    #[error("a removal or new key that is not signed by the group's admin")]
    NotAdmin,
    /// The admin cannot be removed.
    #[error("a removal of the admin")]
    RemovesAdmin,
}

/// What counts of all statements.
#[derive(Clone, Default, Debug)]
pub(crate) struct Roll {
    removed: BTreeMap<PeerId, (u64, SignedStatement)>,
    admitted: BTreeMap<PeerId, (PeerId, SignedStatement)>,
    left: BTreeMap<PeerId, SignedStatement>,
    rekey: Option<(Rekey, SignedStatement)>,
}

/// What a statement changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// Nothing: it is known, or beaten.
    None,
    /// Something worth keeping that changes nothing else.
    Recorded,
    /// This id is removed, or has left.
    Removed(PeerId),
    /// There is a new key.
    Rekey,
}

impl Roll {
    /// Takes a statement that [`SignedStatement::verify`] accepted.
    pub(crate) fn take(
        &mut self,
        charter: &Charter,
        statement: Statement,
        signed: SignedStatement,
    ) -> Change {
        let digest = signed.digest();
        match statement.what {
            What::Admitted { id, .. } => {
                // The admin's word first, then whatever all agree on.
                let rank = |by: PeerId, digest: [u8; 32]| (by != charter.admin, digest);
                let known = self.admitted.get(&id);
                let better = known.is_none_or(|(by, known)| {
                    rank(statement.by, digest) < rank(*by, known.digest())
                });
                let room = known.is_some() || self.has_room_for(charter, statement.by);
                if better && room {
                    self.admitted.insert(id, (statement.by, signed));
                    return Change::Recorded;
                }
                Change::None
            }
            What::Removed { id, generation } => {
                let known = self.removed.get(&id);
                if known.is_some_and(|(_, known)| known.digest() <= digest) {
                    return Change::None;
                }
                let new = known.is_none();
                if new && self.removed.len() >= REMOVED_MAX {
                    return Change::None;
                }
                self.removed.insert(id, (generation, signed));
                if new {
                    Change::Removed(id)
                } else {
                    Change::Recorded
                }
            }
            What::Left { .. } => {
                let known = self.left.get(&statement.by);
                let new = known.is_none();
                let beaten = known.is_some_and(|known| known.digest() <= digest);
                if beaten || (new && self.left.len() >= LEFT_MAX) {
                    return Change::None;
                }
                self.left.insert(statement.by, signed);
                if new {
                    Change::Removed(statement.by)
                } else {
                    Change::Recorded
                }
            }
            What::Rekey(rekey) => {
                let beaten = self.rekey.as_ref().is_some_and(|(known, by)| {
                    (known.generation, by.digest()) >= (rekey.generation, digest)
                });
                if beaten {
                    return Change::None;
                }
                self.rekey = Some((rekey, signed));
                Change::Rekey
            }
        }
    }

    /// Whether another admission by `by` is kept.
    fn has_room_for(&self, charter: &Charter, by: PeerId) -> bool {
        let of_admin = |by: PeerId| by == charter.admin;
        let same = |(other, _): &&(PeerId, SignedStatement)| of_admin(*other) == of_admin(by);
        self.admitted.len() < ADMITTED_MAX
            || self.admitted.values().filter(same).count() < ADMITTED_MAX
    }

    /// Whether `id` was removed.
    pub(crate) fn is_removed(&self, id: PeerId) -> bool {
        self.removed.contains_key(&id)
    }

    pub(crate) fn removed(&self) -> impl Iterator<Item = PeerId> {
        self.removed.keys().copied()
    }

    /// Whether `id` has left of its own accord.
    pub(crate) fn has_left(&self, id: PeerId) -> bool {
        self.left.contains_key(&id)
    }

    /// Who has left.
    pub(crate) fn left(&self) -> impl Iterator<Item = PeerId> {
        self.left.keys().copied()
    }

    /// Who admitted `id`, if that was recorded.
    pub(crate) fn admitted_by(&self, id: PeerId) -> Option<PeerId> {
        self.admitted.get(&id).map(|(by, _)| *by)
    }

    /// The newest key and the statement that brings it; `None` while the first key holds.
    pub(crate) fn rekey(&self) -> Option<(&Rekey, &SignedStatement)> {
        self.rekey.as_ref().map(|(rekey, signed)| (rekey, signed))
    }

    /// The number of the newest key.
    pub(crate) fn generation(&self) -> u64 {
        self.rekey.as_ref().map_or(1, |(rekey, _)| rekey.generation)
    }

    /// All statements that count: removals first, since they matter most.
    pub(crate) fn statements(&self) -> impl Iterator<Item = &SignedStatement> {
        let removed = self.removed.values().map(|(_, signed)| signed);
        let left = self.left.values();
        let rekey = self.rekey.iter().map(|(_, signed)| signed);
        let admitted = self.admitted.values().map(|(_, signed)| signed);
        removed.chain(left).chain(rekey).chain(admitted)
    }

    /// A hash of all that counts: equal rolls have equal ones.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for signed in self.statements() {
            hasher.update(&signed.digest());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Group {
        admin: Identity,
        key: GroupKey,
        charter: Charter,
    }

    fn group() -> Group {
        let (admin, key) = (Identity::generate(), GroupKey::generate());
        let charter = Charter::of(&key, admin.id());
        Group {
            admin,
            key,
            charter,
        }
    }

    fn say(group: &Group, by: &Identity, what: What) -> SignedStatement {
        let (group, id) = (group.charter.root, by.id());
        Statement {
            group,
            by: id,
            what,
        }
        .sign(by)
    }

    fn removed(id: PeerId) -> What {
        What::Removed { id, generation: 1 }
    }

    fn take(
        roll: &mut Roll,
        group: &Group,
        signed: &SignedStatement,
    ) -> Result<Change, StatementError> {
        let statement = signed.verify(&group.charter)?;
        Ok(roll.take(&group.charter, statement, signed.clone()))
    }

    #[test]
    fn the_admin_removes_and_nobody_else() {
        let (group, mut roll) = (group(), Roll::default());
        let (birch, cedar) = (Identity::generate(), Identity::generate());
        let usurped = say(&group, &birch, removed(cedar.id()));
        assert_eq!(
            take(&mut roll, &group, &usurped),
            Err(StatementError::NotAdmin)
        );
        let suicide = say(&group, &group.admin, removed(group.admin.id()));
        assert_eq!(
            take(&mut roll, &group, &suicide),
            Err(StatementError::RemovesAdmin)
        );
        let good = say(&group, &group.admin, removed(cedar.id()));
        assert_eq!(
            take(&mut roll, &group, &good),
            Ok(Change::Removed(cedar.id()))
        );
        assert_eq!(take(&mut roll, &group, &good), Ok(Change::None), "replayed");
        assert!(roll.is_removed(cedar.id()) && !roll.is_removed(birch.id()));
    }

    #[test]
    fn a_member_leaves_by_its_own_word_only_and_once() {
        let (group, mut roll) = (group(), Roll::default());
        let (birch, cedar) = (Identity::generate(), Identity::generate());
        let left = |generation| What::Left { generation };
        let leaves = |signed: &SignedStatement, roll: &mut Roll| take(roll, &group, signed);
        let first = say(&group, &birch, left(1));
        assert_eq!(leaves(&first, &mut roll), Ok(Change::Removed(birch.id())));
        assert_eq!(leaves(&first, &mut roll), Ok(Change::None), "replayed");
        assert!(roll.has_left(birch.id()) && !roll.has_left(cedar.id()));
        // In the name of another.
        let mut statement = Statement {
            group: group.charter.root,
            by: cedar.id(),
            what: left(1),
        };
        let forged = statement.sign(&birch);
        assert_eq!(leaves(&forged, &mut roll), Err(StatementError::Forged));
        // Of two of one id all keep the same one.
        statement.by = birch.id();
        statement.what = left(2);
        let second = statement.sign(&birch);
        let mut back = Roll::default();
        for signed in [&second, &first] {
            leaves(signed, &mut back).unwrap();
        }
        leaves(&second, &mut roll).unwrap();
        assert_eq!(roll.digest(), back.digest());
        assert!(!roll.is_removed(birch.id()), "nobody removed it");
    }

    #[test]
    fn departures_of_made_up_ids_are_bounded() {
        let (group, mut roll) = (group(), Roll::default());
        let signed = say(&group, &group.admin, What::Left { generation: 1 });
        for n in 0..LEFT_MAX as u64 + 10 {
            let mut id = [7; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            let statement = Statement {
                group: group.charter.root,
                by: PeerId::from_bytes(id),
                what: What::Left { generation: 1 },
            };
            roll.take(&group.charter, statement, signed.clone());
        }
        assert_eq!(roll.left().count(), LEFT_MAX);
    }

    #[test]
    fn forged_statements_and_those_of_another_group_change_nothing() {
        let (ours, theirs, cedar) = (group(), group(), Identity::generate());
        let mut roll = Roll::default();
        let before = roll.digest();
        let foreign = say(&theirs, &theirs.admin, removed(cedar.id()));
        assert_eq!(
            take(&mut roll, &ours, &foreign),
            Err(StatementError::OtherGroup)
        );
        // In our group's name, but by their admin; and with its own name replaced by our admin's.
        let mut statement = Statement {
            group: ours.charter.root,
            by: theirs.admin.id(),
            what: removed(cedar.id()),
        };
        let other = statement.sign(&theirs.admin);
        assert_eq!(
            take(&mut roll, &ours, &other),
            Err(StatementError::NotAdmin)
        );
        statement.by = ours.admin.id();
        let forged = statement.sign(&theirs.admin);
        assert_eq!(take(&mut roll, &ours, &forged), Err(StatementError::Forged));
        let mut changed = say(&ours, &ours.admin, removed(cedar.id()));
        let last = changed.bytes.len() - 1;
        changed.bytes[last] ^= 1;
        assert_eq!(
            take(&mut roll, &ours, &changed),
            Err(StatementError::Forged)
        );
        let nonsense = SignedStatement {
            bytes: vec![9; 70],
            ..changed
        };
        assert!(take(&mut roll, &ours, &nonsense).is_err());
        assert_eq!(roll.digest(), before);
    }

    /// A statement signed for one purpose never passes for a receipt, manifest or announcement: their contexts differ.
    #[test]
    fn the_signature_holds_for_statements_only() {
        let group = group();
        let good = say(&group, &group.admin, removed(PeerId::from_bytes([3; 32])));
        let elsewhere = group.admin.sign(b"", &good.bytes);
        let bad = SignedStatement {
            signature: elsewhere,
            ..good
        };
        assert_eq!(bad.verify(&group.charter), Err(StatementError::Forged));
    }

    #[test]
    fn a_new_key_reaches_those_it_is_for_and_nobody_else() {
        let group = group();
        let (birch, cedar) = (Identity::generate(), Identity::generate());
        let key = GroupKey::generate();
        let members = [group.admin.id(), birch.id()].into();
        let rekey = Rekey::new(&group.charter, 2, &key, &members);
        assert_eq!(rekey.open(&group.charter, &birch), Some(key.clone()));
        assert_eq!(rekey.open(&group.charter, &group.admin), Some(key.clone()));
        assert_eq!(rekey.open(&group.charter, &cedar), None);
        assert!(rekey.includes(birch.id()) && !rekey.includes(cedar.id()));
        // Put under another number, it opens nothing.
        let moved = Rekey {
            generation: 3,
            ..rekey.clone()
        };
        assert_eq!(moved.open(&group.charter, &birch), None);
        let other = Rekey {
            key: group.key.commitment(),
            ..rekey
        };
        assert_eq!(other.open(&group.charter, &birch), None);
    }

    #[test]
    fn of_two_new_keys_the_higher_wins_in_whatever_order_they_come() {
        let group = group();
        let members = [group.admin.id()].into();
        let make = |generation| {
            let rekey = Rekey::new(&group.charter, generation, &GroupKey::generate(), &members);
            say(&group, &group.admin, What::Rekey(rekey))
        };
        let statements = [make(2), make(2), make(3), make(3)];
        let mut ends = BTreeSet::new();
        for turn in 0..24_usize {
            let mut left: Vec<_> = statements.iter().collect();
            let (mut roll, mut n) = (Roll::default(), turn);
            while !left.is_empty() {
                let next = left.remove(n % left.len());
                n /= left.len() + 1;
                take(&mut roll, &group, next).unwrap();
            }
            assert_eq!(roll.generation(), 3);
            ends.insert(roll.digest());
        }
        assert_eq!(ends.len(), 1);
    }

    #[test]
    fn rolls_agree_whatever_the_order() {
        let group = group();
        let others: Vec<Identity> = (0..4).map(|_| Identity::generate()).collect();
        let mut statements = Vec::new();
        for (n, by) in others.iter().chain([&group.admin]).enumerate() {
            let what = What::Admitted {
                id: others[0].id(),
                generation: n as u64,
            };
            statements.push(say(&group, by, what));
        }
        statements.push(say(&group, &group.admin, removed(others[1].id())));
        let later = What::Removed {
            id: others[1].id(),
            generation: 2,
        };
        statements.push(say(&group, &group.admin, later));
        let (mut forth, mut back) = (Roll::default(), Roll::default());
        for signed in &statements {
            take(&mut forth, &group, signed).unwrap();
        }
        for signed in statements.iter().rev() {
            take(&mut back, &group, signed).unwrap();
        }
        assert_eq!(forth.digest(), back.digest());
        assert_eq!(forth.admitted_by(others[0].id()), Some(group.admin.id()));
    }

    /// A statement that says what it says and more was kept and passed on in frames that nobody takes.
    #[test]
    fn a_statement_has_one_encoding_and_a_longest_one() {
        let (group, birch) = (group(), Identity::generate());
        let sign = |bytes: Vec<u8>| SignedStatement {
            signature: group.admin.sign(CONTEXT, &bytes),
            bytes,
        };
        let good = say(&group, &group.admin, removed(birch.id()));
        assert!(good.verify(&group.charter).is_ok());
        let junk = sign([good.bytes.clone(), vec![0; 100]].concat());
        let malformed = |signed: &SignedStatement| match signed.verify(&group.charter) {
            Err(StatementError::Malformed(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(malformed(&junk), Malformed::NotCanonical);
        // The last byte is the generation: the same number in two bytes.
        let (last, rest) = good.bytes.split_last().unwrap();
        let padded = sign([rest, &[last | 0x80, 0]].concat());
        assert_eq!(malformed(&padded), Malformed::NotCanonical);
        let long = sign([good.bytes.clone(), vec![0; 20 << 20]].concat());
        assert!(matches!(malformed(&long), Malformed::TooLong { .. }));
        let row = postcard::to_stdvec(&long).unwrap();
        assert!(postcard::from_bytes::<SignedStatement>(&row).is_err());
    }

    #[test]
    fn a_key_for_as_many_as_there_can_be_fits_and_is_in_order() {
        let group = group();
        let closed = Closed::close(&[7; 32], group.admin.id(), b"x").unwrap();
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            PeerId::from_bytes(id)
        };
        let mut rekey = Rekey {
            generation: u64::MAX,
            key: [1; 32],
            closed: (0..MEMBERS_MAX).map(|n| (id(n), closed.clone())).collect(),
        };
        let full = say(&group, &group.admin, What::Rekey(rekey.clone()));
        assert!(full.bytes.len() <= STATEMENT_MAX);
        assert!(full.verify(&group.charter).is_ok());
        rekey.closed.swap(0, 1);
        let mixed = say(&group, &group.admin, What::Rekey(rekey.clone()));
        assert_eq!(mixed.verify(&group.charter), Err(StatementError::Unknown));
        rekey.closed.swap(0, 1);
        rekey.closed.push((id(MEMBERS_MAX), closed));
        let over = say(&group, &group.admin, What::Rekey(rekey));
        assert!(over.verify(&group.charter).is_err());
    }

    /// In listed mode the admin's word is what lets a member in.
    #[test]
    fn admissions_made_up_by_a_member_leave_room_for_those_of_the_admin() {
        let (group, mut roll) = (group(), Roll::default());
        let mallory = Identity::generate();
        let admit = |by: &Identity, n: u64| {
            let mut id = [9; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            let (id, generation) = (PeerId::from_bytes(id), 1);
            (id, say(&group, by, What::Admitted { id, generation }))
        };
        for n in 0..ADMITTED_MAX as u64 + 10 {
            let (_, signed) = admit(&mallory, n);
            let statement = Statement {
                group: group.charter.root,
                by: mallory.id(),
                what: What::Admitted {
                    id: admit(&mallory, n).0,
                    generation: 1,
                },
            };
            roll.take(&group.charter, statement, signed);
        }
        assert_eq!(roll.admitted.len(), ADMITTED_MAX);
        let (id, signed) = admit(&group.admin, 1 << 40);
        assert_eq!(take(&mut roll, &group, &signed), Ok(Change::Recorded));
        assert_eq!(roll.admitted_by(id), Some(group.admin.id()));
    }
}
