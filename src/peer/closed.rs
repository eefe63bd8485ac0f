//! Closing a short secret so that only one peer can open it: X25519 with the peer's own key, then ChaCha20-Poly1305.
//!
//! A fresh key pair agrees with the recipient's key on a secret that is used once; BLAKE3 derives the cipher's key from
//! it and both public keys. What the secret is for is authenticated beside it. Who relays a closed secret learns nothing
//! from it and cannot change it. Whether it is genuine is for a signature to say.
//!
//! NaCl's sealed box would be the same in one call, but has no place for a purpose, and its crate has no release on
//! today's curve25519.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::{Identity, PeerId, random};

const CONTEXT: &str = "meshbox 2026 closed for one peer";

/// 32 bytes that one peer can read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Closed {
    /// The key pair that was made for this, its public half.
    with: [u8; 32],
    encrypted: [u8; 32],
    tag: [u8; 16],
}

/// The cipher between the fresh key pair and the recipient.
fn cipher(shared: &[u8; 32], with: &[u8; 32], to: PeerId) -> ChaCha20Poly1305 {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for part in [shared, with, to.as_bytes()] {
        hasher.update(part);
    }
    ChaCha20Poly1305::new(hasher.finalize().as_bytes().into())
}

/// Each key encrypts one message only, so the nonce need not differ.
fn nonce() -> Nonce {
    Nonce::default()
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

impl Closed {
    /// Closes `secret` for `to`. `None` if that id is no key.
    pub(crate) fn close(secret: &[u8; 32], to: PeerId, purpose: &[u8]) -> Option<Self> {
        let fresh = SigningKey::from_bytes(&random());
        let with = fresh.verifying_key().to_bytes();
        let shared = agree(&fresh, to.as_bytes())?;
        let mut encrypted = *secret;
        let tag = cipher(&shared, &with, to)
            .encrypt_inout_detached(&nonce(), purpose, encrypted.as_mut_slice().into())
            .ok()?
            .into();
        Some(Self {
            with,
            encrypted,
            tag,
        })
    }

    /// What was closed for `me` under the same purpose; `None` for anything else.
    pub(crate) fn open(&self, me: &Identity, purpose: &[u8]) -> Option<[u8; 32]> {
        let shared = agree(&me.0, &self.with)?;
        let mut secret = self.encrypted;
        cipher(&shared, &self.with, me.id())
            .decrypt_inout_detached(
                &nonce(),
                purpose,
                secret.as_mut_slice().into(),
                &self.tag.into(),
            )
            .ok()?;
        Some(secret)
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
        assert_ne!(closed.encrypted, [7; 32]);
    }

    #[test]
    fn a_changed_one_opens_nothing() {
        let alder = Identity::generate();
        let good = Closed::close(&[7; 32], alder.id(), b"x").unwrap();
        let bytes = postcard::to_stdvec(&good).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let bad: Closed = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(bad.open(&alder, b"x"), None, "byte {at}");
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
