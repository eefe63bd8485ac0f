//! Leaving the group: what keeps a node from it, and who is told.
//!
//! # Crash behaviour
//! Once the statement is durable the node is out, whoever has heard of it: the next start is refused. Members that never
//! hear of it wait for the node until they forget it.

use std::time::{Duration, Instant};

use super::Backend;
use crate::bundle::RelPath;
use crate::control::wait::Delivery;
use crate::control::{ControlBackend, Left};
use crate::spool::GroupError;

/// How long the members have to take our word.
const TELL: Duration = Duration::from_secs(5);

/// How long a member may take to be connected.
const CONNECT: Duration = Duration::from_secs(3);

/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

impl Backend {
    /// Leaves, unless something speaks against it; then says what.
    pub(super) fn leave_group(&self, force: bool) -> Result<Left, String> {
        let facts = self.facts();
        let spool = &facts.spool;
        if !force {
            self.objection().map_or(Ok(()), Err)?;
        }
        let group = spool.group.name();
        let say = || match spool.group.say_left() {
            // Nobody would take it: without a charter no statement counts.
            Err(GroupError::NoAdmin) if force => Ok(()),
            said => said,
        };
        let mesh = self.mesh.read();
        let mesh = mesh.as_ref().ok_or("the daemon is stopping")?;
        let farewell = mesh.leave(TELL, say).map_err(|error| error.to_string())?;
        tracing::warn!("this node has left group {group}");
        (facts.stop)();
        Ok(Left {
            group,
            state: spool.layout().state().to_string_lossy().into_owned(),
            told: farewell.told,
            untold: farewell.untold,
        })
    }

    /// What is lost if it leaves now.
    fn objection(&self) -> Option<String> {
        let facts = self.facts();
        let spool = &facts.spool;
        let peers = ControlBackend::peers(self);
        if peers.is_empty() {
            return None;
        }
        // What is closed and not sealed yet is lost as well, but not what was never to be sent.
        let ignored = |path: &RelPath| matches!(self.delivery(path), Delivery::Ignored(_));
        let open = match spool.outbox.unfinished(None) {
            Ok(found) => {
                let unsealed = found.unsealed.iter().filter(|path| !ignored(path));
                found.bundles.len() + unsealed.count()
            }
            Err(error) => return Some(format!("what is on its way cannot be read: {error}")),
        };
        if open > 0 {
            return Some(format!(
                "{open} of what was sent is still on its way or not sealed yet, and nobody gets it any more when this node has \
                 left: `meshbox wait` waits for it, --force gives it up"
            ));
        }
        if !self.is_connected() {
            return Some(
                "no member is connected, so nobody can be told, and they would wait for this node until they `meshbox forget` it; \
                 connect it, or leave all the same with --force"
                    .to_owned(),
            );
        }
        let admin = spool.group.charter().map(|charter| charter.admin);
        (admin == Some(facts.id)).then(|| {
            "this node is the admin of the group: when it has left nobody can remove members or change the key; --force leaves all \
             the same"
                .to_owned()
        })
    }

    /// Whether a member is connected, or will be in a moment: right after a start, or where two connections met.
    fn is_connected(&self) -> bool {
        let deadline = Instant::now() + CONNECT;
        loop {
            if ControlBackend::peers(self)
                .iter()
                .any(|peer| peer.connected)
            {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }
}
