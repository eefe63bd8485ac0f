//! Closing a short secret so that only one peer can open it: X25519 with the peer's own key.
//!
//! A fresh key pair agrees with the recipient's key on a secret that is used once; BLAKE3 derives a mask and the key of
//! a tag from it, bound to both public keys and to what the caller says it is for. Who relays a closed secret learns
//! nothing from it and cannot change it. That it is genuine is for a signature to say.

use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::{Identity, PeerId, random};

const CONTEXT: &str = "meshbox 2026 closed for one peer";

/// 32 bytes that one peer can read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Closed {
    /// The key pair that was made for this, its public half.
    with: [u8; 32],
    masked: [u8; 32],
    tag: [u8; 32],
}

/// Key of the tag, and the mask.
fn derive(shared: &[u8; 32], with: &[u8; 32], to: PeerId, purpose: &[u8]) -> ([u8; 32], [u8; 32]) {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for part in [shared, with, to.as_bytes()] {
        hasher.update(part);
    }
    hasher.update(purpose);
    let (mut key, mut mask) = ([0; 32], [0; 32]);
    let mut stream = hasher.finalize_xof();
    stream.fill(&mut key);
    stream.fill(&mut mask);
    (key, mask)
}

/// What both ends agree on. `None` where the public key is none, or one that agrees on the same with everybody.
fn agree(secret: &SigningKey, public: &[u8; 32]) -> Option<[u8; 32]> {
    let key = VerifyingKey::from_bytes(public).ok()?;
    if key.is_weak() {
        return None;
    }
    let point = key.to_montgomery();
    Some(point.mul_clamped(secret.to_scalar_bytes()).to_bytes())
}

fn masked(secret: [u8; 32], mask: [u8; 32]) -> [u8; 32] {
    let mut bytes = secret;
    bytes.iter_mut().zip(mask).for_each(|(b, m)| *b ^= m);
    bytes
}

impl Closed {
    /// Closes `secret` for `to`. `None` if that id is no key.
    pub fn close(secret: &[u8; 32], to: PeerId, purpose: &[u8]) -> Option<Self> {
        let fresh = SigningKey::from_bytes(&random());
        let with = fresh.verifying_key().to_bytes();
        let shared = agree(&fresh, to.as_bytes())?;
        let (key, mask) = derive(&shared, &with, to, purpose);
        let masked = masked(*secret, mask);
        let tag = *blake3::keyed_hash(&key, &masked).as_bytes();
        Some(Self { with, masked, tag })
    }

    /// What was closed for `me` under the same purpose; `None` for anything else.
    pub fn open(&self, me: &Identity, purpose: &[u8]) -> Option<[u8; 32]> {
        let shared = agree(&me.0, &self.with)?;
        let (key, mask) = derive(&shared, &self.with, me.id(), purpose);
        // Compared in constant time.
        let good = blake3::keyed_hash(&key, &self.masked) == self.tag;
        good.then(|| masked(self.masked, mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_recipient_opens_it_and_only_for_its_purpose() {
        let (alder, birch) = (Identity::generate(), Identity::generate());
        let closed = Closed::close(&[7; 32], alder.id(), b"key 2").unwrap();
        assert_eq!(closed.open(&alder, b"key 2"), Some([7; 32]));
        assert_eq!(closed.open(&birch, b"key 2"), None);
        assert_eq!(closed.open(&alder, b"key 3"), None);
        let again = Closed::close(&[7; 32], alder.id(), b"key 2").unwrap();
        assert_ne!(closed, again, "nothing repeats");
        assert_ne!(closed.masked, [7; 32]);
    }

    #[test]
    fn a_changed_one_opens_nothing() {
        let alder = Identity::generate();
        let good = Closed::close(&[7; 32], alder.id(), b"x").unwrap();
        for at in 0..32 {
            for part in 0..3 {
                let mut bad = good.clone();
                [&mut bad.with, &mut bad.masked, &mut bad.tag][part][at] ^= 1;
                assert_eq!(bad.open(&alder, b"x"), None, "byte {at} of part {part}");
            }
        }
    }

    #[test]
    fn what_is_no_key_gets_nothing() {
        // The neutral point and one of order eight agree on the same secret with everybody.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(
            Closed::close(&[7; 32], PeerId::from_bytes(neutral), b"x"),
            None
        );
        assert_eq!(
            Closed::close(&[7; 32], PeerId::from_bytes([0; 32]), b"x"),
            None
        );
    }
}
