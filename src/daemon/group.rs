//! Coming into the group: from what is in the state, else by a ticket or invitation, else by founding one.
//!
//! # Rules
//! 1. Whoever comes by a ticket, or with one that has a newer key, asks its maker first, if that can be reached, so that a
//!    refusal changes nothing.
//! 2. A start that fails before the mount serves gives up the group that it brought into the state. It was nobody's member,
//!    since the mesh speaks with nobody before that. Only whoever redeemed an invitation knows its id, and keeps that: the
//!    next start redeems it again, or joins another group.
//! 3. A node that is alone in its group leaves it for that of a ticket; see [`is_alone`].
//!
//! # Crash behaviour
//! A mark that says "we found this group" is on the disk before the group's key, and goes when the journal knows the
//! charter; so the founder is its admin wherever the first start is interrupted. An invitation that was redeemed by a
//! start that then died is redeemed again by the same id. When a group is given up its key goes first; what the journal
//! still has of it is forgotten before another is entered.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::keys::{self, KeyError};
use crate::config::{Config, IdentityKind};
use crate::mesh::{self, Asked};
use crate::peer::{Charter, GroupKey, Identity, Ticket, group_id};
use crate::spool::{Admission, Layout, Spool, is_alone};

/// This node's keys.
pub(super) struct Keys {
    pub(super) identity: Identity,
    pub(super) group: GroupKey,
    pub(super) made: Made,
    /// What whoever made the ticket answered, if this start asked.
    pub(super) asked: Option<Asked>,
}

impl Keys {
    /// Whether another member took our key for that of its group: this is where we belong.
    pub(super) fn proved(&self) -> bool {
        self.asked == Some(Asked::Proved)
    }
}

/// Which keys are this start's work.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Made {
    pub(super) group: bool,
    identity: bool,
}

/// This node's keys, made or fetched as needed. An invitation becomes a ticket in `config`. Call with the state's lock
/// held.
pub(super) fn keys(layout: &Layout, config: &mut Config) -> anyhow::Result<Keys> {
    let (ours, known) = (keys::load_group(layout)?, keys::load_identity(layout)?);
    if let Some(group) = ours.as_ref().filter(|ours| !leaves(layout, config, ours)) {
        return Ok(Keys {
            identity: match known {
                Some(identity) => identity,
                None => keys::store_identity(layout, &new_identity(config, group))?,
            },
            group: group.clone(),
            made: Made::default(),
            asked: None,
        });
    }
    // One that was derived from the group's key belongs to that group.
    let stays = ours.is_none() || config.identity == IdentityKind::Own;
    let known = known.filter(|_| stays);
    let mut made = Made {
        group: true,
        identity: known.is_none(),
    };
    let mut asked = None;
    if let Some(invitation) = config.invitation.clone() {
        if config.identity == IdentityKind::Derived && known.is_none() {
            return Err(KeyError::DerivedByInvitation.into());
        }
        // On the disk first: the invitation may hold for this id only.
        let identity = keys::load_or_create_identity(layout)?;
        let redeemed = mesh::redeem(&identity, &config.listen, &invitation);
        if redeemed.is_err() && ours.is_none() {
            keys::remove(layout, made.identity)?;
        }
        config.ticket = Some(redeemed?);
        // The inviter knows it by now: a start that fails later redeems the invitation again as the same.
        made.identity = false;
        asked = Some(Asked::Proved);
    }
    let known = keys::load_identity(layout)?.filter(|_| stays).or(known);
    let founding = config.ticket.is_none();
    let group = match &config.ticket {
        Some(ticket) => ticket.group.clone(),
        None => GroupKey::generate(),
    };
    let identity = known.unwrap_or_else(|| new_identity(config, &group));
    if let Some(ticket) = config.ticket.as_ref().filter(|_| asked.is_none()) {
        asked = Some(mesh::knock(&identity, &config.listen, ticket)?);
    }
    if ours.is_some() {
        tracing::info!("nobody else was in this node's group; it joins another");
        keys::remove(layout, !stays)?;
    }
    keys::store_group(layout, &group, founding)?;
    Ok(Keys {
        identity: keys::store_identity(layout, &identity)?,
        group,
        made,
        asked,
    })
}

/// Whether the ticket leads to another group, and nothing holds us in ours.
fn leaves(layout: &Layout, config: &Config, ours: &GroupKey) -> bool {
    let by_ticket = config.ticket.as_ref().is_some_and(|ticket| {
        let root = ticket.charter.map(|charter| charter.root);
        ticket.group != *ours && root != Some(ours.root())
    });
    let invited = config.invitation.as_ref();
    let by_invitation = invited.is_some_and(|invitation| invitation.group != ours.root());
    (by_ticket || by_invitation) && is_alone(layout)
}

fn new_identity(config: &Config, group: &GroupKey) -> Identity {
    match config.identity {
        IdentityKind::Own => Identity::generate(),
        IdentityKind::Derived => Identity::derived(group, &config.name),
    }
}

/// A start failed before the mount served. What it brought into the state goes again, unless somebody knows of it.
pub(super) fn give_up(layout: &Layout, spool: Option<&Spool>, made: Made) {
    if !made.group || !is_alone(layout) {
        return;
    }
    let removed = keys::remove(layout, made.identity);
    let forgotten = spool.map_or(Ok(()), |spool| spool.group.leave());
    if let Err(error) = removed.and(forgotten) {
        tracing::warn!("the group of this start is not given up: {error}");
    }
}

/// Tells the spool which group it is in. Gives what whoever made the ticket answered, if it was asked.
pub(super) fn enter(
    spool: &Arc<Spool>,
    key: GroupKey,
    made: Made,
    config: &Config,
) -> anyhow::Result<Option<Asked>> {
    let layout = spool.layout();
    let left_over = spool.group.charter().is_some() || !spool.group.members().is_empty();
    if made.group && left_over && is_alone(layout) {
        spool.group.leave()?;
    }
    let ticket = config.ticket.as_ref().filter(|ticket| ticket.group == key);
    let by_ticket = ticket.and_then(|ticket| ticket.charter);
    let founded = keys::is_founding(layout).then(|| Charter::of(&key, spool.identity().id()));
    let first_time = spool.group.charter().is_none();
    if let Some(ticket) = ticket.filter(|ticket| first_time && ticket.generation > 1) {
        spool
            .group
            .note_generation(ticket.generation, BTreeSet::new())?;
    }
    spool.group.enter(key, by_ticket.or(founded))?;
    if spool.group.admission(spool.identity().id()) == Admission::Left {
        let state = layout.state().to_owned();
        return Err(KeyError::Left { state }.into());
    }
    keys::founded(layout)?;
    same_group(spool, config)?;
    let mut asked = None;
    if let Some(ticket) = config.ticket.as_ref().filter(|it| brings_key(spool, it)) {
        let identity = spool.identity();
        asked = Some(mesh::knock(identity, &config.listen, ticket)?);
        if spool
            .group
            .adopt_key(ticket.group.clone(), ticket.generation)?
        {
            tracing::info!("took the newer group key of the ticket");
        }
    }
    let listed = config.listed.then(|| config.member.iter().copied());
    let peers = config.peers.iter().map(|(id, _)| *id);
    spool
        .group
        .set_listed(listed.map(|ids| ids.chain(peers).collect()));
    Ok(asked)
}

/// Whether a ticket of our group has a key that is newer than all we know.
fn brings_key(spool: &Spool, ticket: &Ticket) -> bool {
    is_ours(spool, ticket)
        && ticket.generation > spool.group.generation()
        && !spool.group.keys().contains(&ticket.group)
}

fn is_ours(spool: &Spool, ticket: &Ticket) -> bool {
    let root = spool.group.root();
    spool.group.keys().contains(&ticket.group)
        || ticket
            .charter
            .is_some_and(|charter| Some(charter.root) == root)
}

/// A ticket of another group is a mistake that must not pass unseen.
fn same_group(spool: &Spool, config: &Config) -> Result<(), KeyError> {
    let ticket = config
        .ticket
        .as_ref()
        .filter(|ticket| !is_ours(spool, ticket));
    let theirs = ticket.map(|ticket| {
        let root = ticket.charter.map(|charter| charter.root);
        root.unwrap_or_else(|| ticket.group.root())
    });
    let invited = config
        .invitation
        .as_ref()
        .map(|invitation| invitation.group);
    let invited = invited.filter(|root| spool.group.root() != Some(*root));
    match theirs.or(invited) {
        None => Ok(()),
        Some(theirs) => Err(KeyError::OtherGroup {
            state: spool.layout().state().to_owned(),
            ours: spool.group.name(),
            theirs: group_id(&theirs),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Inputs, Layer, Source, Surroundings, setting};
    use crate::peer::PeerName;
    use crate::spool::make_state_directory;

    fn config(state: &std::path::Path, more: &[(&'static str, String)]) -> Config {
        let mut flags = Layer::new(Source::Flag);
        flags.push(setting("state").unwrap(), state.into());
        for (name, value) in more {
            flags.push(setting(name).unwrap(), value.into());
        }
        let resolved = config::resolve(Inputs {
            flags,
            mount_options: Layer::new(Source::MountOption),
            env: Layer::new(Source::Env),
            config_file: None,
            mountpoint: None,
            surroundings: &Surroundings {
                processors: 1,
                ..Surroundings::default()
            },
        });
        resolved.unwrap().config
    }

    /// A plain ticket of another node, which cannot be reached.
    fn ticket() -> Ticket {
        let (group, inviter) = (GroupKey::generate(), Identity::generate().id());
        Ticket {
            charter: Some(Charter::of(&group, inviter)),
            group,
            inviter,
            name: PeerName::parse("birch").unwrap(),
            addrs: vec![],
            generation: 0,
        }
    }

    fn join(ticket: &Ticket) -> (&'static str, String) {
        ("join", ticket.to_string())
    }

    /// A state with the group that a start on it comes into.
    struct Node {
        _dir: tempfile::TempDir,
        layout: Layout,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::new(dir.path().join("state"));
            make_state_directory(&layout).unwrap();
            Self { _dir: dir, layout }
        }

        /// As the daemon starts, up to the mesh.
        fn start(
            &self,
            more: &[(&'static str, String)],
        ) -> anyhow::Result<(Arc<Spool>, GroupKey, Made)> {
            let mut config = config(self.layout.state(), more);
            let keys = keys(&self.layout, &mut config)?;
            let spool = Spool::open(config.spool(keys.identity))?;
            match enter(&spool, keys.group, keys.made, &config) {
                Ok(_) => {
                    let group = spool.group.keys().swap_remove(0);
                    Ok((spool, group, keys.made))
                }
                Err(error) => {
                    spool.close();
                    Err(error)
                }
            }
        }

        /// The group and id after a start that went well.
        fn started(&self, more: &[(&'static str, String)]) -> (GroupKey, crate::peer::PeerId) {
            let (spool, group, _) = self.start(more).unwrap();
            let id = spool.identity().id();
            spool.close();
            (group, id)
        }
    }

    #[test]
    fn who_is_alone_in_a_group_joins_another_without_ceremony() {
        let (node, first, second) = (Node::new(), ticket(), ticket());
        let (own, id) = node.started(&[]);
        assert_eq!(node.started(&[]), (own.clone(), id), "founded once");
        assert_ne!(own, first.group);
        // Nobody has met it in the first group either: it was never reached.
        for ticket in [&first, &second, &second] {
            assert_eq!(node.started(&[join(ticket)]), (ticket.group.clone(), id));
        }
        assert_eq!(node.started(&[]), (second.group.clone(), id));
        let (spool, ..) = node.start(&[]).unwrap();
        assert_eq!(spool.group.charter(), second.charter, "and no other's");
        spool.close();
    }

    #[test]
    fn who_is_bound_to_a_group_stays_in_it() {
        let binds: [fn(&Spool); 3] = [
            |spool| spool.group.bind().unwrap(),
            |spool| {
                spool.group.invite(None, false).unwrap();
            },
            |spool| {
                let (id, name) = (Identity::generate().id(), PeerName::parse("cedar").unwrap());
                spool.member_seen(id, &name, &[], true).unwrap();
            },
        ];
        for bind in binds {
            let (node, other) = (Node::new(), ticket());
            let (spool, own, _) = node.start(&[]).unwrap();
            let hearsay = PeerName::parse("elm").unwrap();
            let by_another = spool.member_seen(Identity::generate().id(), &hearsay, &[], false);
            by_another.unwrap();
            assert!(is_alone(&node.layout), "nobody but by another's word");
            bind(&spool);
            assert!(!is_alone(&node.layout));
            spool.close();
            let refused = node.start(&[join(&other)]).unwrap_err().to_string();
            assert!(refused.contains(&own.group_id()), "{refused}");
            assert!(refused.contains(&other.group.group_id()), "{refused}");
            assert!(
                refused.contains("--state") && refused.contains("--join"),
                "{refused}"
            );
            assert_eq!(node.started(&[]).0, own);
        }
    }

    #[test]
    fn what_binds_may_come_from_several_threads_at_once() {
        for _ in 0..20 {
            let node = Node::new();
            let (spool, ..) = node.start(&[]).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| spool.group.bind().unwrap());
                }
            });
            assert!(!is_alone(&node.layout));
            spool.close();
        }
    }

    #[test]
    fn a_start_that_fails_leaves_no_group() {
        for more in [vec![], vec![join(&ticket())]] {
            let (node, other) = (Node::new(), ticket());
            let (spool, group, made) = node.start(&more).unwrap();
            give_up(&node.layout, Some(&spool), made);
            spool.close();
            assert!(keys::load_group(&node.layout).unwrap().is_none());
            assert!(keys::load_identity(&node.layout).unwrap().is_none());
            let (joined, _) = node.started(&[join(&other)]);
            assert!(joined == other.group && joined != group);
            // The next one that fails takes nothing with it.
            let (spool, _, made) = node.start(&[]).unwrap();
            give_up(&node.layout, Some(&spool), made);
            spool.close();
            assert_eq!(node.started(&[]).0, other.group);
        }
    }

    #[test]
    fn killed_while_a_group_is_given_up_it_is_given_up_at_the_next_start() {
        let (node, other) = (Node::new(), ticket());
        node.started(&[join(&ticket())]);
        keys::remove(&node.layout, false).unwrap();
        let (spool, ..) = node.start(&[join(&other)]).unwrap();
        assert_eq!(spool.group.charter(), other.charter);
        assert!(spool.group.members().is_empty());
        spool.close();
    }

    #[test]
    fn a_derived_identity_goes_with_the_group_that_it_was_derived_from() {
        let (node, other) = (Node::new(), ticket());
        let derived = ("identity", "derived".to_owned());
        let name = ("name", "alder".to_owned());
        let as_alder =
            |group: &GroupKey| Identity::derived(group, &PeerName::parse("alder").unwrap()).id();
        let (own, id) = node.started(&[derived.clone(), name.clone()]);
        assert_eq!(id, as_alder(&own));
        let (group, id) = node.started(&[derived, name, join(&other)]);
        assert_eq!((group, id), (other.group.clone(), as_alder(&other.group)));
    }
}
