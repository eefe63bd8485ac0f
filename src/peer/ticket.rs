//! Tickets: the group's key as one line of text.

use std::fmt;
use std::net::SocketAddr;

use data_encoding::DecodeKind;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::roll::Charter;
use super::{GroupKey, PeerId, PeerName};

/// An invitation: the group's key and where to find who invites. One line of text, a secret.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Ticket {
    /// The group's secret.
    pub group: GroupKey,
    /// Who invites.
    pub inviter: PeerId,
    /// What the inviter is called.
    pub name: PeerName,
    /// Where the inviter listens.
    pub addrs: Vec<SocketAddr>,
    /// The group's charter; `None` if the inviter's journal was lost.
    pub charter: Option<Charter>,
    /// The number of the group key, which grows with each new one; 0 if the inviter knows of none.
    pub generation: u64,
}

/// Why a text is not a ticket.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum TicketError {
    /// Does not start with `meshbox1`.
    #[error(
        "not a Meshbox ticket: it must start with `{TICKET_PREFIX}`; print one with `meshbox ticket` on a member"
    )]
    Prefix,
    /// Characters lost or changed.
    #[error("the ticket is damaged ({0}); copy the whole line again")]
    Damaged(&'static str),
}

const TICKET_PREFIX: &str = "meshbox1";

impl Ticket {
    /// Reads the line that `Display` prints; space around it is ignored.
    pub(crate) fn parse(text: &str) -> Result<Self, TicketError> {
        let body = ticket_bytes(text, TICKET_PREFIX)?;
        postcard::from_bytes(&body).map_err(|_| TicketError::Damaged("content"))
    }
}

/// What is in a line that begins with `prefix`.
pub(super) fn ticket_bytes(text: &str, prefix: &str) -> Result<Vec<u8>, TicketError> {
    let body = text
        .trim()
        .strip_prefix(prefix)
        .ok_or(TicketError::Prefix)?;
    let bytes = data_encoding::BASE32_NOPAD_NOCASE
        .decode(body.as_bytes())
        .map_err(|error| match error.kind {
            DecodeKind::Symbol => TicketError::Damaged("characters that no ticket has"),
            // By its length, or by what its last character leaves over.
            DecodeKind::Length | DecodeKind::Trailing | DecodeKind::Padding => {
                TicketError::Damaged("cut short")
            }
        })?;
    let (body, check) = bytes
        .split_last_chunk::<4>()
        .ok_or(TicketError::Damaged("too short"))?;
    if ticket_check(body) != *check {
        return Err(TicketError::Damaged("checksum"));
    }
    Ok(body.to_vec())
}

/// The line with `content`; `None` if it cannot be encoded, which does not happen.
pub(super) fn ticket_line(prefix: &str, content: &impl Serialize) -> Option<String> {
    let mut bytes = postcard::to_stdvec(content).ok()?;
    bytes.extend_from_slice(&ticket_check(&bytes));
    let text = data_encoding::BASE32_NOPAD_NOCASE.encode(&bytes);
    Some(format!("{prefix}{}", text.to_ascii_lowercase()))
}

fn ticket_check(body: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(body);
    let mut check = [0; 4];
    check.copy_from_slice(&hash.as_bytes()[..4]);
    check
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ticket_line(TICKET_PREFIX, self).ok_or(fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Identity;

    fn ticket() -> Ticket {
        Ticket {
            group: GroupKey::generate(),
            inviter: Identity::generate().id(),
            name: PeerName::parse("alder").unwrap(),
            addrs: vec![
                "127.0.0.1:4000".parse().unwrap(),
                "[::1]:4000".parse().unwrap(),
            ],
            charter: Some(Charter::of(
                &GroupKey::generate(),
                Identity::generate().id(),
            )),
            generation: 1,
        }
    }

    /// "characters that no ticket has" was said of a ticket that a terminal had cut.
    #[test]
    fn a_ticket_that_was_cut_short_is_told_from_one_with_foreign_characters() {
        let damage = |text: &str| match ticket_bytes(text, TICKET_PREFIX) {
            Err(TicketError::Damaged(what)) => what,
            other => panic!("{other:?}"),
        };
        let whole = format!("{TICKET_PREFIX}{}", "a".repeat(120));
        assert_eq!(damage(&whole[..TICKET_PREFIX.len() + 113]), "cut short");
        assert_eq!(
            damage(&whole.replacen("aa", "a!", 1)),
            "characters that no ticket has"
        );
    }

    #[test]
    fn a_ticket_is_one_line_and_reads_back_in_either_case() {
        let ticket = ticket();
        let line = ticket.to_string();
        assert!(!line.contains(char::is_whitespace));
        assert_eq!(Ticket::parse(&line), Ok(ticket.clone()));
        let shouted = format!(
            " meshbox1{}\n",
            line["meshbox1".len()..].to_ascii_uppercase()
        );
        assert_eq!(Ticket::parse(&shouted), Ok(ticket));
    }

    #[test]
    fn a_damaged_ticket_says_so() {
        let line = ticket().to_string();
        assert_eq!(Ticket::parse("hello"), Err(TicketError::Prefix));
        assert!(matches!(
            Ticket::parse(&line[..line.len() - 3]),
            Err(TicketError::Damaged(_))
        ));
        let swapped = line.replacen('a', "b", 5);
        assert!(matches!(
            Ticket::parse(&swapped),
            Err(TicketError::Damaged(_))
        ));
    }
}
