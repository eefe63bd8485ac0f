//! What a start says when it serves: who is there, and how the first word with whoever made the ticket went.

use std::path::Path;
use std::time::Duration;

use super::backend::Backend;
use super::facts::Facts;
use crate::control::ControlBackend;
use crate::mesh::Asked;
use crate::peer::Ticket;
use crate::spool::Admission;

/// How long a start waits for the session with a member that has just taken our key. It is up within milliseconds, and
/// within seconds on a slow link.
const SESSION: Duration = Duration::from_secs(5);

/// The same for a member that was not reached: it may be found on the local network.
const FOUND: Duration = Duration::from_secs(1);

/// What is said when everything serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    /// For standard output. The first line is for the service manager, too.
    pub text: String,
    /// For standard error: what the user should know or do, one line each.
    pub warnings: Vec<String>,
}

/// Waits for the session with whoever made the ticket, if it was asked at this start, and says how things stand.
pub(super) fn ready(
    shown: &Path,
    facts: &Facts,
    backend: &Backend,
    asked: Option<&Asked>,
    ticket: Option<&Ticket>,
) -> Ready {
    let mut warnings = Vec::new();
    let mut connected = String::new();
    if let (Some(asked), Some(ticket)) = (asked, ticket) {
        let limit = match asked {
            Asked::Proved => SESSION,
            Asked::Unanswered(_) => FOUND,
        };
        if backend.wait_connected(ticket.inviter, limit) {
            connected = format!("   connected to {}", ticket.name);
        } else {
            warnings.push(not_connected(ticket, asked, facts));
        }
    }
    if facts.spool.group.admission(facts.id) == Admission::Removed {
        warnings.push(format!(
            "this node ({}…) was removed from the group by its admin: nothing is sent or received any more. To join again, \
             mount with a new ticket and another --state",
            facts.id.short()
        ));
    }
    let text = format!(
        "ready: {}   you are: {} ({}…){connected}   peers: {}\ninvite others:   meshbox ticket",
        shown.display(),
        facts.name,
        facts.id.short(),
        peers(backend)
    );
    Ready { text, warnings }
}

/// "1 of 3 connected"; plainly "0" where nobody else is known.
fn peers(backend: &Backend) -> String {
    let peers = ControlBackend::peers(backend);
    let connected = peers.iter().filter(|peer| peer.connected).count();
    match peers.len() {
        0 => "0".to_owned(),
        known => format!("{connected} of {known} connected"),
    }
}

fn not_connected(ticket: &Ticket, asked: &Asked, facts: &Facts) -> String {
    let (name, id) = (&ticket.name, ticket.inviter.short());
    let at: Vec<String> = ticket.addrs.iter().map(ToString::to_string).collect();
    let at = match at.is_empty() {
        true => String::new(),
        false => format!(" at {}", at.join(", ")),
    };
    match asked {
        Asked::Proved => format!(
            "{name} ({id}…) took the ticket, but there is no connection with it yet; the daemon keeps trying, `meshbox peers` \
             shows how it goes"
        ),
        Asked::Unanswered(why) => format!(
            "not connected to {name} ({id}…){at} yet: {why}. The daemon keeps trying, and `meshbox peers` shows how it goes. \
             Check that meshbox runs there, and that UDP to that address gets through; if {name} asks who this is: {}",
            facts.id
        ),
    }
}
