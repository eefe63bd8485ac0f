//! Coming into the group: from what is in the state, else by a ticket or invitation, else by founding one.
//!
//! # Crash behaviour
//! A mark that says "we found this group" is on the disk before the group's key, and goes when the journal knows the
//! charter; so the founder is its admin wherever the first start is interrupted. An invitation that was redeemed by a
//! start that then died is redeemed again by the same id.

use std::sync::Arc;

use super::keys::{self, KeyError};
use crate::config::{Config, IdentityKind};
use crate::mesh;
use crate::peer::{Charter, GroupKey, Identity, Ticket, group_id};
use crate::spool::{Layout, Spool};

/// This node's keys, made or fetched as needed. An invitation becomes a ticket in `config`.
pub(super) fn keys(layout: &Layout, config: &mut Config) -> anyhow::Result<(Identity, GroupKey)> {
    if let Some(invitation) = &config.invitation
        && keys::load_group(layout)?.is_none()
    {
        if config.identity == IdentityKind::Derived && keys::load_identity(layout)?.is_none() {
            return Err(KeyError::DerivedByInvitation.into());
        }
        let identity = keys::load_or_create_identity(layout)?;
        config.ticket = Some(mesh::redeem(&identity, &config.listen, invitation)?);
    }
    let known = keys::load_identity(layout)?;
    let group = keys::load_or_create_group(layout, config.ticket.as_ref())?;
    let identity = match (known, config.identity) {
        (Some(identity), _) => identity,
        (None, IdentityKind::Own) => keys::load_or_create_identity(layout)?,
        (None, IdentityKind::Derived) => {
            keys::store_identity(layout, &Identity::derived(&group, &config.name))?
        }
    };
    Ok((identity, group))
}

/// Tells the spool which group it is in; gives the key that holds.
pub(super) fn enter(
    spool: &Arc<Spool>,
    key: GroupKey,
    config: &Config,
) -> anyhow::Result<GroupKey> {
    let layout = spool.layout();
    let ticket = config.ticket.as_ref().filter(|ticket| ticket.group == key);
    let by_ticket = ticket.and_then(|ticket| ticket.charter);
    let founded = keys::is_founding(layout).then(|| Charter::of(&key, spool.identity().id()));
    let configured = config.admin.map(|admin| {
        let root = spool
            .charter()
            .map_or_else(|| key.root(), |known| known.root);
        Charter { root, admin }
    });
    let first_time = spool.charter().is_none();
    let charter = if first_time {
        by_ticket.or(founded).or(configured)
    } else {
        configured
    };
    if let Some(ticket) = ticket.filter(|ticket| first_time && ticket.generation > 1) {
        spool.note_generation(ticket.generation)?;
    }
    let mut held = spool.enter_group(key, charter)?;
    keys::founded(layout)?;
    same_group(spool, config)?;
    if let Some(ticket) = &config.ticket
        && is_ours(spool, ticket)
        && spool.adopt_key(ticket.group.clone(), ticket.generation)?
    {
        tracing::info!("took the newer group key of the ticket");
        held = ticket.group.clone();
    }
    let listed = config.listed.then(|| config.member.iter().copied());
    let peers = config.peers.iter().map(|(id, _)| *id);
    spool.set_listed(listed.map(|ids| ids.chain(peers).collect()));
    Ok(held)
}

fn is_ours(spool: &Spool, ticket: &Ticket) -> bool {
    let root = spool.group_root();
    spool.group_keys().contains(&ticket.group)
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
    let invited = invited.filter(|root| spool.group_root() != Some(*root));
    match theirs.or(invited) {
        None => Ok(()),
        Some(theirs) => Err(KeyError::OtherGroup {
            state: spool.layout().state().to_owned(),
            ours: spool.group_name(),
            theirs: group_id(&theirs),
        }),
    }
}
