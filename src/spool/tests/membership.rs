//! The group's roll and keys on disk: kills in the middle, restarts, and tickets that are used up.

use std::collections::BTreeSet;

use super::*;
use crate::peer::{Charter, GroupKey};
use crate::spool::Admission;

/// What the key file says.
fn key_file(node: &Node) -> GroupKey {
    let text = fs::read_to_string(node.state().join("group.key")).unwrap();
    let bytes = data_encoding::HEXLOWER
        .decode(text.trim().as_bytes())
        .unwrap();
    GroupKey::from_bytes(bytes.try_into().unwrap()).unwrap()
}

fn write_key_file(node: &Node, key: &GroupKey) {
    let text = data_encoding::HEXLOWER.encode(key.as_bytes());
    fs::write(node.state().join("group.key"), text).unwrap();
}

struct Group {
    alder: Node,
    birch: Node,
    key: GroupKey,
    charter: Charter,
}

/// alder founded the group of which both are members.
fn group() -> Group {
    let (alder, birch) = pair();
    let key = GroupKey::generate();
    let charter = Charter::of(&key, alder.id());
    for node in [&alder, &birch] {
        write_key_file(node, &key);
        node.spool()
            .group
            .enter(key.clone(), Some(charter))
            .unwrap();
    }
    alder.knows(&birch, "birch");
    birch.knows(&alder, "alder");
    Group {
        alder,
        birch,
        key,
        charter,
    }
}

impl Group {
    fn spread(&self) {
        let told = self.alder.spool().group.statements();
        self.birch.spool().group.take_statements(told).unwrap();
    }
}

fn reenter(node: &mut Node) -> GroupKey {
    node.stop();
    node.start();
    enter(node)
}

/// Enters the group of the key file; gives the key that holds.
fn enter(node: &Node) -> GroupKey {
    node.spool().group.enter(key_file(node), None).unwrap();
    node.spool().group.keys().swap_remove(0)
}

#[test]
fn a_new_key_is_in_the_key_file_and_the_old_one_is_kept() {
    let mut group = group();
    let changed = group.alder.spool().group.rekey().unwrap();
    assert_eq!(changed.generation, 2);
    assert_eq!(
        changed.keyed,
        Some(vec![(group.birch.id(), "birch".to_owned())])
    );
    group.spread();
    let keys = group.alder.spool().group.keys();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[1], group.key);
    assert_eq!(group.birch.spool().group.keys(), keys);
    for node in [&mut group.alder, &mut group.birch] {
        assert_eq!(key_file(node), keys[0]);
        assert_eq!(reenter(node), keys[0]);
        assert_eq!(node.spool().group.keys(), keys);
        assert_eq!(node.spool().group.generation(), 2);
        assert_eq!(
            node.spool().group.name(),
            group.key.group_id(),
            "the name stays"
        );
        for dir in ["group.key", "old-keys"] {
            let path = node.state().join(dir);
            let file = if path.is_dir() {
                fs::read_dir(&path).unwrap().next().unwrap().unwrap().path()
            } else {
                path
            };
            assert_eq!(
                fs::metadata(file).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }
}

/// A kill between the journal and the key file, at the admin and at a member that follows: the state of the disk is made
/// as the kill leaves it.
#[test]
fn a_kill_in_the_middle_of_a_new_key_loses_nobody() {
    let mut group = group();
    group.alder.spool().group.rekey().unwrap();
    group.spread();
    let new = group.alder.spool().group.keys().swap_remove(0);
    for node in [&mut group.alder, &mut group.birch] {
        node.stop();
        write_key_file(node, &group.key);
        fs::remove_dir_all(node.state().join("old-keys")).unwrap();
        node.start();
        assert_eq!(enter(node), new);
        assert_eq!(key_file(node), new);
        assert_eq!(node.spool().group.keys(), [new.clone(), group.key.clone()]);
        // Or after the old key was kept, and before the new one was written.
        node.stop();
        write_key_file(node, &group.key);
        node.start();
        assert_eq!(enter(node), new);
        let keys = node.spool().group.keys();
        assert_eq!((&keys[0], &keys[1]), (&new, &group.key));
    }
}

#[test]
fn removal_ends_what_is_owed_also_when_it_was_interrupted() {
    let mut group = group();
    let bundle = group.alder.drop_file("f", b"x");
    assert!(
        group
            .alder
            .spool()
            .ledger
            .is_pending(bundle, group.birch.id())
    );
    let changed = group
        .alder
        .spool()
        .group
        .remove_members(&["birch".to_owned()], false)
        .unwrap();
    assert_eq!(changed.removed, [(group.birch.id(), "birch".to_owned())]);
    assert_eq!(changed.keyed, Some(vec![]));
    assert!(
        !group
            .alder
            .spool()
            .ledger
            .is_pending(bundle, group.birch.id())
    );
    let birch = group.birch.id();
    group.alder.knows(&group.birch, "birch");
    assert!(
        group.alder.spool().group.members().is_empty(),
        "and it stays out"
    );
    group.alder.drop_file("g", b"y");
    reenter(&mut group.alder);
    assert_eq!(group.alder.spool().ledger.pending_count(birch), 0);
    // Owed by a daemon that was killed before it had ended all.
    let late = group.alder.drop_file("h", b"z");
    assert!(!group.alder.spool().ledger.is_pending(late, birch));
    // birch hears that it is out, and keeps the key it has: the new one is not for it.
    group.spread();
    assert_eq!(group.birch.spool().group.keys(), [group.key]);
    let fenced = group.birch.spool().group.rekey().unwrap_err().to_string();
    assert!(
        fenced.contains("only the admin") && fenced.contains("alder"),
        "{fenced}"
    );
}

/// Not through another member either, and not as a new name of what is here.
#[test]
fn nothing_is_taken_of_an_origin_that_was_removed() {
    let group = group();
    let published = group.birch.drop_file("before", b"x");
    group.alder.fetch(&group.birch, published);
    let later = group.birch.drop_file("later", b"y");
    fs::rename(group.birch.outbox("before"), group.birch.outbox("after")).unwrap();
    let (before, after) = (rel("before"), rel("after"));
    group.birch.spool().outbox_renamed(&before, &after, false);
    let SealOutcome::Sealed(renamed) = group.birch.seal("after") else {
        panic!("not sealed");
    };
    let who = [group.birch.id().to_string()];
    group
        .alder
        .spool()
        .group
        .remove_members(&who, true)
        .unwrap();
    let cedar = Identity::generate().id();
    for bundle in [later, renamed] {
        let manifest = group.birch.manifest(bundle);
        let spool = group.alder.spool();
        assert!(!spool.renamed_only(&manifest).unwrap());
        let offered = spool.offered(manifest, cedar).unwrap();
        assert!(
            matches!(&offered, Offered::Refused(why) if why.contains("removed from the group")),
            "{offered:?}"
        );
    }
    assert!(group.alder.inbox("before").exists());
}

/// Ids that begin alike are different ids, in everything.
#[test]
fn s19_ids_count_whole() {
    let group = group();
    let mut twin = *group.birch.id().as_bytes();
    twin[31] ^= 1;
    let twin = PeerId::from_bytes(twin);
    let name = PeerName::parse("twin").unwrap();
    group
        .alder
        .spool()
        .member_seen(twin, &name, &[], true)
        .unwrap();
    let spool = group.alder.spool();
    for part in [8, 10, 63] {
        let who = [twin.to_string()[..part].to_owned()];
        let error = spool.group.remove_members(&who, true).unwrap_err();
        assert!(matches!(error, GroupError::Unknown(..)), "{error}");
    }
    let slip = spool.group.remove_members(&["twim".to_owned()], true);
    let said = slip.unwrap_err().to_string();
    assert!(said.ends_with("did you mean `twin`?"), "{said}");
    spool
        .group
        .remove_members(&[twin.to_string()], true)
        .unwrap();
    let left: Vec<PeerId> = spool.group.members().iter().map(|m| m.id).collect();
    assert_eq!(left, [group.birch.id()]);
}

#[test]
fn a_name_of_two_members_removes_neither() {
    let group = group();
    let name = PeerName::parse("birch").unwrap();
    let other = PeerId::from_bytes([9; 32]);
    group
        .alder
        .spool()
        .member_seen(other, &name, &[], true)
        .unwrap();
    let error = group
        .alder
        .spool()
        .group
        .remove_members(&["birch".to_owned()], false);
    assert!(matches!(error, Err(GroupError::Ambiguous(..))), "{error:?}");
    assert_eq!(group.alder.spool().group.members().len(), 2);
    let error = group
        .alder
        .spool()
        .group
        .remove_members(&[group.alder.id().to_string()], false);
    assert!(matches!(error, Err(GroupError::Myself)));
}

#[test]
fn two_new_keys_of_one_number_end_in_one_for_all() {
    let group = group();
    // The admin's state was copied: both copies change the key.
    let copy = crate::peer::roll::Rekey::new(
        &group.charter,
        2,
        &GroupKey::generate(),
        &[group.alder.id(), group.birch.id()].into(),
    );
    let copy = crate::peer::roll::Statement {
        group: group.charter.root,
        by: group.alder.id(),
        what: crate::peer::roll::What::Rekey(copy),
    };
    let copy = copy.sign(&group.alder.identity);
    group.alder.spool().group.rekey().unwrap();
    group
        .birch
        .spool()
        .group
        .take_statements(vec![copy.clone()])
        .unwrap();
    group.spread();
    group
        .alder
        .spool()
        .group
        .take_statements(vec![copy])
        .unwrap();
    let key = |node: &Node| node.spool().group.keys().swap_remove(0);
    assert_eq!(key(&group.alder), key(&group.birch));
    assert_eq!(
        group.alder.spool().group.roll_digest(),
        group.birch.spool().group.roll_digest()
    );
}

#[test]
fn a_ticket_for_one_is_used_up_durably_and_an_expired_one_says_so() {
    let mut group = group();
    let (one, two) = (Identity::generate().id(), Identity::generate().id());
    let once = group.alder.spool().group.invite(None, true).unwrap();
    let hour = Duration::from_secs(3600);
    let brief = group.alder.spool().group.invite(Some(hour), false).unwrap();
    assert!(group.alder.spool().group.redeem(once.name(), one).is_ok());
    // Killed right after: power is not even needed to tell.
    reenter(&mut group.alder);
    let spool = group.alder.spool();
    assert_eq!(spool.group.redeem(once.name(), two), Err(Denied::Used));
    assert!(spool.group.redeem(once.name(), one).is_ok());
    assert_eq!(spool.group.redeem([7; 16], two), Err(Denied::Unknown));
    assert!(spool.group.redeem(brief.name(), two).is_ok());
    let later = now_secs() + 3601;
    assert_eq!(
        spool.group.redeem_at(brief.name(), two, later),
        Err(Denied::Expired)
    );
    let long_ago = 1_000_000;
    assert_eq!(
        spool.group.redeem_at(brief.name(), two, long_ago),
        Err(Denied::Expired)
    );
    assert!(
        spool.group.redeem_at(once.name(), one, long_ago).is_ok(),
        "it has no time"
    );
}

#[test]
fn a_ticket_with_a_newer_key_brings_back_who_was_away_for_too_long() {
    let group = group();
    group.alder.spool().group.rekey().unwrap();
    let newer = group.alder.spool().group.keys().swap_remove(0);
    let birch = group.birch.spool();
    assert!(
        !birch.group.adopt_key(newer.clone(), 1).unwrap(),
        "an old ticket"
    );
    assert!(birch.group.adopt_key(newer.clone(), 2).unwrap());
    assert_eq!(birch.group.keys(), [newer, group.key.clone()]);
    assert!(!birch.group.adopt_key(group.key, 1).unwrap());
}

#[test]
fn members_that_another_invents_have_an_end_and_whoever_comes_himself_gets_in() {
    let node = Node::new();
    let name = PeerName::parse("somebody").unwrap();
    let seen = |contact| {
        let id = Identity::generate().id();
        let spool = node.spool();
        spool.member_seen(id, &name, &[], contact).unwrap();
        spool.group.members().iter().any(|member| member.id == id)
    };
    assert!(seen(true));
    let strangers = (0..1100).filter(|_| seen(false)).count();
    assert_eq!(strangers, 1024);
    assert!(seen(true));
    assert!(!seen(false));
}

/// A newcomer hears of the members before it hears the statement of a key that is older than they are: whoever joined after
/// that key was made counted as left out by it, and was sent nothing.
#[test]
fn who_joined_after_a_new_key_is_a_member_for_whoever_joins_later() {
    let group = group();
    group.alder.spool().group.rekey().unwrap();
    let key = group.alder.spool().group.keys().swap_remove(0);

    let dogwood = Node::new();
    write_key_file(&dogwood, &key);
    let spool = dogwood.spool();
    spool.group.note_generation(2, BTreeSet::new()).unwrap();
    spool.group.enter(key, Some(group.charter)).unwrap();
    let cedar = Identity::generate().id();
    let name = PeerName::parse("cedar").unwrap();
    spool.member_seen(cedar, &name, &[], false).unwrap();
    let told = group.alder.spool().group.statements();
    spool.group.take_statements(told).unwrap();

    assert_eq!(spool.group.admission(cedar), Admission::Welcome);
    assert!(spool.group.members().iter().any(|it| it.id == cedar));
}

/// It knew members from before, and the key is not for those that the admin had never heard of.
#[test]
fn whom_a_new_key_is_not_for_is_left_out_by_a_member_that_a_ticket_brought_back() {
    for restarted in [false, true] {
        let mut group = group();
        group.alder.spool().group.rekey().unwrap();
        let newer = group.alder.spool().group.keys().swap_remove(0);
        let birch = group.birch.spool();
        let unheard = Identity::generate().id();
        let name = PeerName::parse("unheard").unwrap();
        birch.member_seen(unheard, &name, &[], false).unwrap();
        assert!(birch.group.adopt_key(newer, 2).unwrap());
        if restarted {
            reenter(&mut group.birch);
        }
        group.spread();
        let birch = group.birch.spool();
        assert_eq!(birch.group.admission(unheard), Admission::LeftOut);
        assert_eq!(birch.group.admission(group.alder.id()), Admission::Welcome);
    }
}
