//! Peers: ids, names, the node's own identity, the group key, and tickets.
//!
//! A [`PeerId`] is an ed25519 public key; the transport proves it, and manifests and receipts are signed with it.
//! A [`GroupKey`] is the secret every member knows; a [`Ticket`] carries it with the addresses of who invites.
//!
//! # Invariants
//! 1. A group key is never empty or all zero.
//! 2. Secrets print as `…` in `Debug`; they leave a process only in key files (0600), in tickets, closed for one peer
//!    ([`closed`]), and on a connection that proved a join secret ([`invitation`]).
//! 3. Every signature is over a context string and the message, so that one kind never passes for another.

pub(crate) mod closed;
pub(crate) mod invitation;
pub(crate) mod roll;
mod ticket;

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use self::invitation::{AnyTicket, Invitation};
pub(crate) use self::roll::Charter;
pub(crate) use self::ticket::Ticket;

/// A daemon's public key: 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct PeerId([u8; 32]);

impl PeerId {
    /// Takes the bytes of a public key; whether they are a point on the curve shows at the first signature.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten hex digits, for logs and lists.
    pub(crate) fn short(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..5])
    }

    /// Reads 64 hex digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(text.as_bytes())
            .ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// Whether `signature` is this peer's over `context` and `message`.
    pub(crate) fn verify(&self, context: &[u8], message: &[u8], signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else {
            return false;
        };
        let bytes: [u8; 64] = signature.0;
        key.verify_strict(
            &[context, message].concat(),
            &ed25519_dalek::Signature::from_bytes(&bytes),
        )
        .is_ok()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// An ed25519 signature: 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Signature(pub [u8; 64]);

impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (head, tail) = self.0.split_at(32);
        (
            <[u8; 32]>::try_from(head).unwrap_or_default(),
            <[u8; 32]>::try_from(tail).unwrap_or_default(),
        )
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (head, tail) = <([u8; 32], [u8; 32])>::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&head);
        bytes[32..].copy_from_slice(&tail);
        Ok(Self(bytes))
    }
}

/// This node's own key pair.
#[derive(Clone)]
pub(crate) struct Identity(SigningKey);

impl Identity {
    /// A new random identity.
    pub(crate) fn generate() -> Self {
        Self::from_secret(random())
    }

    /// The identity whose secret is `secret`.
    pub(crate) fn from_secret(secret: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&secret))
    }

    /// The identity of the node `name` in the group of `key`: made again from nothing else, and by any member.
    pub(crate) fn derived(key: &GroupKey, name: &PeerName) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("meshbox 2026 derived identity");
        hasher.update(key.as_bytes());
        hasher.update(name.as_str().as_bytes());
        Self::from_secret(*hasher.finalize().as_bytes())
    }

    /// The secret, to store it or to hand it to the transport.
    pub(crate) fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub(crate) fn id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` under `context`.
    pub(crate) fn sign(&self, context: &[u8], message: &[u8]) -> Signature {
        Signature(self.0.sign(&[context, message].concat()).to_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, …)", self.id().short())
    }
}

/// The secret that makes a peer a member: 32 bytes, never all zero.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[u8; 32]", into = "[u8; 32]")]
pub struct GroupKey([u8; 32]);

/// The short name of a group: ten hex digits.
pub(crate) fn group_id(root: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&root[..5])
}

/// The key of a group must not be empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the group key is empty")]
pub struct EmptyGroupKey;

impl GroupKey {
    /// A new random key.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Takes the key's bytes; all zero is refused.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, EmptyGroupKey> {
        if bytes == [0; 32] {
            Err(EmptyGroupKey)
        } else {
            Ok(Self(bytes))
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A public name of the group, from which the key cannot be found: ten hex digits.
    pub fn group_id(&self) -> String {
        group_id(&self.root())
    }

    /// The whole of that name. A group is called by that of its first key, whatever its key is now.
    pub fn root(&self) -> [u8; 32] {
        blake3::derive_key("meshbox 2026 group id", &self.0)
    }

    /// A hash that says which key is meant.
    pub fn commitment(&self) -> [u8; 32] {
        blake3::derive_key("meshbox 2026 group key commitment", &self.0)
    }
}

impl TryFrom<[u8; 32]> for GroupKey {
    type Error = EmptyGroupKey;
    fn try_from(bytes: [u8; 32]) -> Result<Self, EmptyGroupKey> {
        Self::from_bytes(bytes)
    }
}

impl From<GroupKey> for [u8; 32] {
    fn from(key: GroupKey) -> Self {
        key.0
    }
}

impl fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupKey({}, …)", self.group_id())
    }
}

/// What a person calls a node: 1 to 63 of letters, digits, `-`, `_` and `.`, not starting with `.` or `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerName(String);

/// Why a text is not a peer name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{0:?} is not a node name: use 1 to 63 letters, digits, `-`, `_` or `.`, beginning with a letter or digit"
)]
pub struct BadPeerName(pub String);

impl PeerName {
    /// Checks and takes `text`.
    pub fn parse(text: impl Into<String>) -> Result<Self, BadPeerName> {
        let text = text.into();
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        let good = (1..=63).contains(&text.len())
            && text.chars().all(allowed)
            && text.chars().next().is_some_and(char::is_alphanumeric);
        if good {
            Ok(Self(text))
        } else {
            Err(BadPeerName(text))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PeerName {
    type Error = BadPeerName;
    fn try_from(text: String) -> Result<Self, BadPeerName> {
        Self::parse(text)
    }
}

impl From<PeerName> for String {
    fn from(name: PeerName) -> Self {
        name.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 32 or 16 bytes from the kernel's generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness no key or salt is safe, and the kernel does not fail here once it has booted.
    #[allow(clippy::expect_used)]
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derived_identity_is_made_of_key_and_name_and_nothing_else() {
        let (key, other) = (GroupKey::generate(), GroupKey::generate());
        let (alder, birch) = (
            PeerName::parse("alder").unwrap(),
            PeerName::parse("birch").unwrap(),
        );
        let id = Identity::derived(&key, &alder).id();
        assert_eq!(Identity::derived(&key.clone(), &alder).id(), id);
        assert_ne!(Identity::derived(&key, &birch).id(), id);
        assert_ne!(Identity::derived(&other, &alder).id(), id);
    }

    #[test]
    fn an_empty_group_key_is_impossible_also_in_a_ticket() {
        assert_eq!(GroupKey::from_bytes([0; 32]), Err(EmptyGroupKey));
        assert!(postcard::from_bytes::<GroupKey>(&[0; 32]).is_err());
    }

    #[test]
    fn a_signature_holds_for_its_context_only() {
        let identity = Identity::generate();
        let signature = identity.sign(b"a", b"message");
        assert!(identity.id().verify(b"a", b"message", &signature));
        assert!(!identity.id().verify(b"b", b"message", &signature));
        assert!(!PeerId::from_bytes([9; 32]).verify(b"a", b"message", &signature));
    }

    #[test]
    fn node_names_are_short_and_plain() {
        for good in ["alder", "a", "node-1.lab", "möwe"] {
            assert!(PeerName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", ".x", "a b", "a/b", "a\n", &"x".repeat(64)] {
            assert!(PeerName::parse(bad).is_err(), "{bad}");
        }
    }
}
