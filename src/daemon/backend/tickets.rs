//! The two kinds of ticket that the daemon gives out.

use std::net::SocketAddr;
use std::time::Duration;

use super::Backend;
use crate::mesh::Mesh;
use crate::peer::{Invitation, Ticket};

impl Backend {
    fn listen_addrs(&self) -> Vec<SocketAddr> {
        let mesh = self.mesh.read();
        mesh.as_ref().map_or_else(Vec::new, Mesh::listen_addrs)
    }

    /// With the group key; empty before the group was entered, which is before anybody can ask.
    pub(super) fn plain_ticket(&self) -> String {
        let spool = &self.facts.spool;
        let Some(group) = spool.group.keys().into_iter().next() else {
            return String::new();
        };
        if let Err(error) = spool.group.bind() {
            tracing::error!("it cannot be noted that a ticket was made: {error}");
        }
        let ticket = Ticket {
            group,
            inviter: self.facts.id,
            name: self.facts.name.clone(),
            addrs: self.listen_addrs(),
            charter: spool.group.charter(),
            generation: spool.group.generation(),
        };
        ticket.to_string()
    }

    /// With a secret that this node redeems.
    pub(super) fn make_invitation(
        &self,
        lasts: Option<Duration>,
        once: bool,
    ) -> Result<String, String> {
        let spool = &self.facts.spool;
        let secret = spool
            .group
            .invite(lasts, once)
            .map_err(|err| err.to_string())?;
        let group = spool.group.root().ok_or("the daemon is starting")?;
        let invitation = Invitation {
            secret,
            group,
            inviter: self.facts.id,
            name: self.facts.name.clone(),
            addrs: self.listen_addrs(),
        };
        Ok(invitation.to_string())
    }
}
