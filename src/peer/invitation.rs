//! Invitations: tickets that expire or hold once. They carry a secret that the inviter redeems, not the group key.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ticket::{Ticket, TicketError, ticket_bytes, ticket_line};
use super::{Charter, GroupKey, PeerId, PeerName, random};

/// How the line begins.
pub(super) const PREFIX: &str = "meshbox2";

/// What a ticket that expires or holds once says. One line of text, a secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// To be redeemed with the inviter, and with nobody else.
    pub secret: JoinSecret,
    /// The group's [`super::Charter::root`].
    pub group: [u8; 32],
    /// Who invites.
    pub inviter: PeerId,
    /// What the inviter is called.
    pub name: PeerName,
    /// Where the inviter listens.
    pub addrs: Vec<SocketAddr>,
}

/// A secret worth one admission.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinSecret([u8; 32]);

impl JoinSecret {
    /// A new one.
    pub(crate) fn generate() -> Self {
        Self(random())
    }

    /// Its public name, from which it cannot be found.
    pub(crate) fn name(&self) -> [u8; 16] {
        let hash = blake3::derive_key("meshbox 2026 join secret name", &self.0);
        let mut name = [0; 16];
        name.copy_from_slice(&hash[..16]);
        name
    }

    /// The key with which its knowledge is proved. A hash is never all zero.
    pub(crate) fn key(&self) -> Option<GroupKey> {
        let hash = blake3::derive_key("meshbox 2026 join secret proof", &self.0);
        GroupKey::from_bytes(hash).ok()
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

/// What the holder of an invitation gets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The group's key.
    pub key: GroupKey,
    /// Its charter, if the inviter knows it.
    pub charter: Option<Charter>,
    /// The key's number.
    pub generation: u64,
}

/// Why an invitation is not redeemed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error, Serialize, Deserialize)]
pub(crate) enum Denied {
    /// Not one of ours, or forgotten.
    #[error("whoever made this ticket does not know it; ask for a new one")]
    Unknown,
    /// Too late.
    #[error("the ticket has expired; ask for a new one")]
    Expired,
    /// Somebody was first.
    #[error("the ticket has been used already; ask for a new one")]
    Used,
    /// The id is out.
    #[error("this node was removed from the group")]
    Removed,
    /// The inviter's disk.
    #[error("whoever made this ticket cannot write to its disk; try again later")]
    Disk,
}

impl Invitation {
    /// Reads the line that `Display` prints; space around it is ignored.
    pub(crate) fn parse(text: &str) -> Result<Self, TicketError> {
        let body = ticket_bytes(text, PREFIX)?;
        postcard::from_bytes(&body).map_err(|_| TicketError::Damaged("content"))
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ticket_line(PREFIX, self).ok_or(fmt::Error)?)
    }
}

/// A ticket of either kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum AnyTicket {
    /// With the group key.
    Key(Ticket),
    /// With a secret to redeem.
    Invitation(Invitation),
}

impl AnyTicket {
    /// Reads either line.
    pub(crate) fn parse(text: &str) -> Result<Self, TicketError> {
        if text.trim().starts_with(PREFIX) {
            Invitation::parse(text).map(Self::Invitation)
        } else {
            Ticket::parse(text).map(Self::Key)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::*;

    #[test]
    fn an_invitation_is_one_line_that_reads_back_and_is_no_ticket_with_a_key() {
        let invitation = Invitation {
            secret: JoinSecret::generate(),
            group: [3; 32],
            inviter: Identity::generate().id(),
            name: PeerName::parse("alder").unwrap(),
            addrs: vec!["127.0.0.1:4000".parse().unwrap()],
        };
        let line = invitation.to_string();
        assert_eq!(
            AnyTicket::parse(&format!(" {line}\n")),
            Ok(AnyTicket::Invitation(invitation.clone()))
        );
        assert_eq!(Ticket::parse(&line), Err(TicketError::Prefix));
        assert!(matches!(
            AnyTicket::parse(&line[..line.len() - 2]),
            Err(TicketError::Damaged(_))
        ));
        assert!(!format!("{invitation:?}").contains(&format!("{:?}", invitation.secret.0)));
    }

    #[test]
    fn name_and_proof_of_a_secret_are_its_own() {
        let (one, two) = (JoinSecret::generate(), JoinSecret::generate());
        assert_ne!(one.name(), two.name());
        assert_ne!(one.key(), two.key());
        assert_eq!(one.name(), one.clone().name());
    }
}
