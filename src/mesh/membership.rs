//! Who may talk to us, under which key: the mesh's side of the group's roll.
//!
//! Every connection of every protocol is admitted by [`Hub::prove`]: the present key must be proved, by an id that was
//! neither removed nor (in listed mode) unlisted. A member that was away while the key changed proves an older one; on
//! the control protocol, and only if the admin closed the new key for it, it is given that statement in place of a
//! hello, and nothing else. Who of the two dials does not matter: refused with the new key, a dialler proves the older
//! one to hand the statement over.
//!
//! # Invariants
//! 1. A session runs only while its peer is welcome: one is looked at when it begins, all are when the roll changes.
//! 2. Under an older key nothing travels but the statement that brings the new one.

use std::sync::Arc;

use iroh::endpoint::Connection;
use tokio::time::timeout;

use crate::mesh::endpoint;
use crate::mesh::hub::Hub;
use crate::mesh::member::{
    Channel, CloseCode, MemberError, Proving, Role, STEP_TIMEOUT, prove_any, refusal, remote,
};
use crate::mesh::roster::Peer;
use crate::mesh::wire::{CTL_ALPN, Frame, MemberFrame};
use crate::peer::GroupKey;
use crate::peer::roll::SignedStatement;
use crate::spool::Admission;

impl Hub {
    /// The group's key at present.
    pub(super) fn group(&self) -> GroupKey {
        // There is one from [`Mesh::bind`](crate::mesh::Mesh::bind) on.
        self.store.group.keys().swap_remove(0)
    }

    /// Proves membership on `conn`, in both directions, and says whether the peer may go on.
    pub(super) async fn prove(
        self: &Arc<Self>,
        conn: &Connection,
        role: Role,
    ) -> Result<Channel, MemberError> {
        let id = remote(conn);
        let mut keys = vec![self.group()];
        let refuse = refusal(self.store.group.admission(id));
        if role == Role::Acceptor && refuse.is_some() {
            // Whoever proves that it was a member once is told that it is none any more.
            keys = self.store.group.keys();
        } else if role == Role::Acceptor && conn.alpn() == CTL_ALPN {
            keys.extend(self.store.group.older_keys_for(id));
        }
        let proving = Proving {
            keys: &keys,
            me: self.me,
            refuse,
        };
        let (channel, which) = prove_any(conn, role, proving).await?;
        if which > 0 {
            self.hand_over(conn, channel).await;
            return Err(MemberError::OlderKey);
        }
        let (hub, key) = (self.clone(), keys.swap_remove(0));
        let proved = tokio::task::spawn_blocking(move || hub.store.group.proved(id, &key)).await;
        match proved {
            Ok(Ok(true)) => Ok(channel),
            Ok(Ok(false)) => {
                conn.close(CloseCode::Rekeyed.code(), b"the group key has just changed");
                Err(MemberError::Rekeyed)
            }
            Ok(Err(error)) => Err(MemberError::Lost(error.to_string())),
            Err(_) => Err(MemberError::Lost("the proof could not be recorded".into())),
        }
    }

    /// Gives a member that proved an older key the statement with the new one, and waits until it has it.
    async fn hand_over(&self, conn: &Connection, mut channel: Channel) {
        let Some(statement) = self.store.group.rekey_statement() else {
            return;
        };
        let frame = Frame::Member(MemberFrame::Statements(vec![statement]));
        if channel.send(&frame).await.is_ok() {
            let _ = channel.send.finish();
            drop(timeout(STEP_TIMEOUT, conn.closed()).await);
        }
        conn.close(CloseCode::Rekeyed.code(), b"the group has a new key");
    }

    /// `peer` refused our key. If the admin meant the new one for it, it may not have heard: proves older ones to it, and
    /// hands the statement over.
    pub(super) async fn bring_along(self: &Arc<Self>, peer: &Peer) {
        for key in self.store.group.older_keys_for(peer.id) {
            let addrs = peer.addrs();
            let Some(endpoint) = self.net.endpoint() else {
                return;
            };
            let connected = endpoint::connect(&endpoint, peer.id, &addrs, CTL_ALPN).await;
            let Ok(conn) = connected else { return };
            let proving = Proving {
                keys: &[key],
                me: self.me,
                refuse: None,
            };
            if let Ok((channel, _)) = prove_any(&conn, Role::Dialer, proving).await {
                self.hand_over(&conn, channel).await;
                return;
            }
        }
    }

    /// What a peer said in place of a hello: we proved an older key, and here is the new one.
    pub(super) async fn rekeyed(self: &Arc<Self>, told: Vec<SignedStatement>) -> MemberError {
        let hub = self.clone();
        let taken =
            tokio::task::spawn_blocking(move || hub.store.group.take_statements(told)).await;
        match taken {
            Ok(Ok(())) => MemberError::Rekeyed,
            Ok(Err(error)) => MemberError::Lost(error.to_string()),
            Err(_) => MemberError::Lost("the new key could not be recorded".into()),
        }
    }

    /// Ends the connections of those who are no members any more; wakes all diallers, since a new key opens other doors.
    pub(super) fn keep_out(&self) {
        let digest = self.store.group.roll_digest();
        if std::mem::replace(&mut *self.roll.digest.lock(), digest) == digest {
            return;
        }
        for peer in self.roster.all() {
            self.check(&peer);
            peer.wake.notify_one();
        }
        self.roll.changed.notify_one();
    }

    /// Ends the connections of `peer` if it is no member any more.
    pub(super) fn check(&self, peer: &Peer) {
        let admission = self.store.group.admission(peer.id);
        let why: &[u8] = match admission {
            Admission::Welcome => return,
            Admission::Removed => b"removed from the group",
            Admission::Left => b"left the group",
            Admission::Unlisted => b"not on the list of members",
            Admission::LeftOut => b"the group has a new key",
        };
        let code = refusal(admission).map_or(CloseCode::WrongKey, |e| e.close_code());
        let bulk = peer.bulk.borrow().clone();
        let control = peer.session().map(|session| session.conn);
        for conn in control.into_iter().chain(bulk) {
            conn.close(code.code(), why);
        }
    }
}
