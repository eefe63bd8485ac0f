//! What an announcement says and how it is closed: readable by members, and by them only as its author wrote it.
//!
//! On the wire it is random bytes: XChaCha20-Poly1305 under a key derived from the group's, with the label as nonce.
//! Inside is the author's signature, so that no member announces for another. The label is random and new for every
//! announcement: it names no member and no group, and no two announcements can be told to belong together.
//!
//! # Invariants
//! 1. [`open`] gives only what the member of that id announced under that label; it never panics on other bytes.
//! 2. A label is used for one text only, since it is the cipher's nonce.

use std::net::{IpAddr, SocketAddr};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};

use crate::mesh::endpoint::is_link_local;
use crate::mesh::wire::ADDRS_MAX;
use crate::peer::{GroupKey, Identity, PeerId, Signature};

/// Name of one announcement.
pub(super) type Label = [u8; 16];

/// Order of the announcements of one member: its epoch, then a count within that start.
pub(super) type Rank = (u64, u32);

/// Far more than the longest announcement; what is longer is none.
const SEALED_MAX: usize = 1024;

/// What a member says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Announced {
    /// Who it is.
    pub id: PeerId,
    /// Which of its announcements is newer.
    pub rank: Rank,
    /// Where it listens.
    pub addrs: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    announced: Announced,
    signature: Signature,
}

/// What the signature and the ciphertext are for.
const CONTEXT: &[u8] = b"meshbox announcement 1\0";

/// Separates the announcements' key from other uses of the group key.
const KEY_CONTEXT: &str = "meshbox 2026 announcements of a group";

fn cipher(group: &GroupKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&blake3::derive_key(KEY_CONTEXT, group.as_bytes()).into())
}

/// The label, filled up with zeros: its 16 random bytes alone make it unique.
fn nonce(label: &Label) -> XNonce {
    let mut nonce = XNonce::default();
    nonce[..label.len()].copy_from_slice(label);
    nonce
}

fn message(label: &Label, announced: &Announced) -> Option<Vec<u8>> {
    postcard::to_stdvec(&(label, announced)).ok()
}

/// Closes `announced` under a label that was never used before. `None` if it cannot be written, which does not happen.
pub(super) fn seal(
    group: &GroupKey,
    identity: &Identity,
    label: &Label,
    announced: Announced,
) -> Option<Vec<u8>> {
    let signature = identity.sign(CONTEXT, &message(label, &announced)?);
    let signed = Signed {
        announced,
        signature,
    };
    let text = Payload {
        msg: &postcard::to_stdvec(&signed).ok()?,
        aad: CONTEXT,
    };
    cipher(group).encrypt(&nonce(label), text).ok()
}

/// What a member of the group announced under `label`; `None` for everything else.
pub(super) fn open(group: &GroupKey, label: &Label, sealed: &[u8]) -> Option<Announced> {
    if sealed.len() > SEALED_MAX {
        return None;
    }
    let text = Payload {
        msg: sealed,
        aad: CONTEXT,
    };
    let bytes = cipher(group).decrypt(&nonce(label), text).ok()?;
    let (signed, rest) = postcard::take_from_bytes::<Signed>(&bytes).ok()?;
    let announced = signed.announced;
    let whole = rest.is_empty() && announced.addrs.len() <= ADDRS_MAX;
    let said = message(label, &announced)?;
    let theirs = announced.id.verify(CONTEXT, &said, &signed.signature);
    (whole && theirs).then_some(announced)
}

/// Whether an address of this kind is worth telling others on the network.
pub(super) fn reaches_others(ip: IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(id: PeerId) -> Announced {
        Announced {
            id,
            rank: (7, 1),
            addrs: (1..=ADDRS_MAX as u16)
                .map(|n| SocketAddr::new([0xfe80, 0, 0, 0, 1, 2, 3, n].into(), 40_000))
                .collect(),
        }
    }

    fn closed(group: &GroupKey, identity: &Identity, label: &Label) -> Vec<u8> {
        seal(group, identity, label, announced(identity.id())).unwrap()
    }

    #[test]
    fn addresses_that_lead_nowhere_are_not_told() {
        for (text, good) in [
            ("10.0.0.1", true),
            ("169.254.7.7", true),
            ("fd00::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("224.0.0.251", false),
            ("fe80::1", false),
        ] {
            assert_eq!(reaches_others(text.parse().unwrap()), good, "{text}");
        }
    }

    #[test]
    fn a_member_reads_what_was_announced() {
        let (group, alder) = (GroupKey::generate(), Identity::generate());
        let bytes = closed(&group, &alder, &[1; 16]);
        assert!(bytes.len() <= SEALED_MAX, "{}", bytes.len());
        assert_eq!(
            open(&group, &[1; 16], &bytes),
            Some(announced(alder.id())),
            "the longest one"
        );
    }

    #[test]
    fn outsiders_other_labels_and_changed_bytes_open_nothing() {
        let (group, alder) = (GroupKey::generate(), Identity::generate());
        let bytes = closed(&group, &alder, &[1; 16]);
        assert_eq!(open(&GroupKey::generate(), &[1; 16], &bytes), None);
        assert_eq!(open(&group, &[2; 16], &bytes), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(open(&group, &[1; 16], &changed), None, "byte {at}");
            assert_eq!(open(&group, &[1; 16], &bytes[..at]), None, "cut at {at}");
        }
        assert_eq!(open(&group, &[1; 16], &vec![0; 100_000]), None);
    }

    #[test]
    fn a_member_cannot_announce_for_another() {
        let group = GroupKey::generate();
        let (alder, birch) = (Identity::generate(), Identity::generate());
        let forged = seal(&group, &birch, &[1; 16], announced(alder.id())).unwrap();
        assert_eq!(open(&group, &[1; 16], &forged), None);
    }

    /// Nothing of the id, the addresses or the group shows, and no bytes are the same twice.
    #[test]
    fn nothing_that_names_a_member_or_group_is_on_the_wire() {
        let (group, alder) = (GroupKey::generate(), Identity::generate());
        let (one, two) = (
            closed(&group, &alder, &[1; 16]),
            closed(&group, &alder, &[2; 16]),
        );
        for known in [&alder.id().as_bytes()[..8], &group.as_bytes()[..8]] {
            assert!(!one.windows(8).any(|w| w == known));
        }
        let same = one.windows(8).filter(|w| two.windows(8).any(|v| v == *w));
        assert_eq!(same.count(), 0);
    }
}
