//! Who is who, and where: what peers tell each other of themselves and of other members, in hellos and later.
//!
//! What a member says of itself is recorded. What it says of others introduces new members; where a known one can be
//! dialled by another's word is remembered while the mesh runs ([`Peer::told`]), and counts for a while only when that
//! other is gone.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::mesh::endpoint;
use crate::mesh::hub::Hub;
use crate::mesh::roster::Peer;
use crate::mesh::wire::{ADDRS_MAX, Hello, MEMBERS_MAX, Told};
use crate::peer::PeerId;
use crate::spool::Member;

impl Hub {
    /// Our side of the hello.
    pub(crate) fn hello(&self, to: PeerId) -> Hello {
        let (epoch, incarnation) = self.store.epoch();
        Hello {
            name: self.name.clone(),
            epoch,
            incarnation,
            seen: self.store.group.epoch_seen_of(to),
            addrs: first(self.net.listen_addrs()),
            members: self.members_to_tell(),
        }
    }

    /// All members we know, as told to others.
    pub(crate) fn members_to_tell(&self) -> Vec<Told> {
        let told = |m: Member| Told {
            id: m.id,
            name: m.name,
            addrs: first(m.addrs),
        };
        self.store
            .group
            .members()
            .into_iter()
            .take(MEMBERS_MAX)
            .map(told)
            .collect()
    }

    /// Records what a member said of itself and of others; `told` is the highest epoch we had told it before, `via`
    /// where we reached it, if we dialled. Blocks on disk.
    pub(crate) fn greeted(
        self: &Arc<Self>,
        id: PeerId,
        hello: &Hello,
        told: u64,
        via: Option<SocketAddr>,
    ) {
        // It saw an epoch that this start never told it: our state is an old copy, and another start had that epoch.
        let taken = hello.seen >= self.store.epoch().0 && hello.seen > told;
        if taken && let Err(error) = self.store.raise_epoch(hello.seen) {
            tracing::error!("the epoch cannot be raised: {error}");
        }
        if taken {
            let (name, seen) = (&hello.name, hello.seen);
            let text = format!(
                "this state is an older copy (a restored backup?): {name} has seen epoch {seen} of this node; what is sent from now on counts as newer"
            );
            self.twins.notice(self.me, "restored", text);
        }
        if self.twins.hello(id, hello.incarnation) {
            let text = format!(
                "{} ({}) runs twice: two daemons use copies of one state; stop one of them, and give it a state of its own",
                hello.name,
                id.short()
            );
            self.twins.notice(id, "twin", text);
            self.twins
                .mark(id, "runs twice: two daemons use copies of its state");
        }
        // Behind a forwarded port it does not know the address at which we found it.
        let mut addrs = usable(&hello.addrs);
        addrs.extend(via.filter(|via| !addrs.is_empty() && !addrs.contains(via)));
        if let Err(error) = self.store.member_seen(id, &hello.name, &addrs, true) {
            tracing::error!("member {} not recorded: {error}", hello.name);
        }
        self.saw_epoch(&self.known(id), hello.epoch);
        self.told(&hello.members, id);
        self.refresh();
    }

    /// `peer` has seen another run of this node.
    pub(crate) fn told_of_twin(&self, peer: &Peer, run: [u8; 16]) {
        if run != self.store.epoch().1 {
            let text = format!(
                "another daemon uses a copy of this state, says {}: stop one of them, and give it a state of its own",
                peer.label()
            );
            self.twins.notice(self.me, "twin", text);
            let words = "has met another daemon that uses a copy of this node's state";
            self.twins.mark(peer.id, words);
        }
    }

    /// Takes the word of `from` on who is a member and where. New members are recorded; where a known one is by
    /// another's word is not, since it says so itself when it is reached. Blocks on disk.
    pub(crate) fn told(self: &Arc<Self>, told: &[Told], from: PeerId) {
        let known: HashSet<PeerId> = self.store.group.members().iter().map(|m| m.id).collect();
        let mut changed = false;
        for member in told {
            if member.id == self.me || member.id == from || self.is_out(member.id) {
                continue;
            }
            let addrs = usable(&member.addrs);
            if known.contains(&member.id) {
                self.known(member.id).told(from, &addrs);
                continue;
            }
            match self
                .store
                .member_seen(member.id, &member.name, &addrs, false)
            {
                Ok(()) => changed = true,
                Err(error) => tracing::error!("member {} not recorded: {error}", member.name),
            }
        }
        if changed {
            self.refresh();
        }
    }

    /// A session ended: unless there is another, that peer's word on the others counts for a while only.
    pub(crate) fn teller_gone(&self, teller: &Peer) {
        if teller.session().is_none() {
            let now = Instant::now();
            for peer in self.roster.all() {
                peer.teller_gone(teller.id, now);
            }
        }
    }

    /// Takes over what the journal knows of the members, and dials new ones.
    pub(super) fn refresh(self: &Arc<Self>) {
        for member in self.store.group.members() {
            if member.id != self.me {
                self.known(member.id)
                    .learn(&member.name, &member.addrs, member.last_seen);
            }
        }
        for peer in self.roster.all() {
            if self.is_given_up(&peer) {
                peer.unlearn();
            }
        }
    }

    /// Whether the user gave up a peer that is not there.
    pub(super) fn is_given_up(&self, peer: &Peer) -> bool {
        peer.session().is_none() && self.store.group.is_forgotten(peer.id).unwrap_or(false)
    }
}

/// As many as may be told.
fn first(mut addrs: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addrs.truncate(ADDRS_MAX);
    addrs
}

/// Addresses that can be dialled at all, and not too many.
pub(super) fn usable(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let dialable = |a: &&SocketAddr| {
        let ip = a.ip();
        let nowhere = ip.is_unspecified() || ip.is_multicast() || endpoint::is_link_local(ip);
        a.port() != 0 && !nowhere
    };
    addrs
        .iter()
        .filter(dialable)
        .take(ADDRS_MAX)
        .copied()
        .collect()
}
