//! Bundles: what is delivered as one, and the signed manifest that says what it is.
//!
//! A [`Manifest`] is encoded canonically (postcard), signed by its origin, and named by the SHA-256 of the encoding
//! ([`BundleId`]). A [`SignedManifest`] is bytes from a disk or a peer; only [`SignedManifest::verify`] turns it into a
//! [`VerifiedManifest`], the one form the rest of the program acts on.
//!
//! # Invariants
//! 1. A [`RelPath`] never leaves the directory it is joined to: no absolute path, no empty, `.` or `..` component, no
//!    NUL, no component over 255 bytes, no path over 4,075 bytes. Names are bytes, not text.
//! 2. A `VerifiedManifest` has a good signature by its origin, at least one entry, entries with distinct paths none of
//!    which lies under a file or link of the same bundle, chunk lists that fit the sizes, no symbolic link that could lead
//!    out of its tree ([`link`]), and times of its own directories only ([`directories`]). What it says of being the [`rest`]
//!    of another may be true.

mod cancel;
pub(crate) mod directories;
mod entry;
pub(crate) mod link;
mod path;
mod rest;
mod stage;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

pub(crate) use self::cancel::{Cancel, CancelReason};
pub(crate) use self::directories::{DirectoryTime, Listing};
pub(crate) use self::entry::{Entry, EntryKind, MAX_ENTRIES, Mtime};
pub(crate) use self::path::{NAME_MAX, PATH_MAX, PathError, RelPath, check_name};
pub(crate) use self::rest::Rest;
pub(crate) use self::stage::{InboxStage, Stage};
use crate::digest::Digest;
use crate::encoding::{self, Malformed, at_most, each};
use crate::peer::{Identity, PeerId, Signature};

/// Version of the manifest encoding written here.
pub(crate) const MANIFEST_VERSION: u8 = 2;

/// Most bytes of one encoded manifest, so that an offer of it fits a frame: 100,000 files with names of 20 bytes.
pub(crate) const MANIFEST_MAX: usize = 8 * 1024 * 1024;

/// Most bytes of its entries and times of directories: what is left beside the longest scope and the most former names, or
/// the places of a rest.
pub(crate) const ENTRIES_BYTES_MAX: usize = MANIFEST_MAX - 320 * 1024;

/// A longer encoding is not kept beside what it says, which may be three times as much.
const ENCODED_KEPT: usize = 64 * 1024;

/// Most ids that a scope may name: a full mesh is not made for more.
pub(crate) const SCOPE_MAX: usize = 4096;

/// Most former names of a file that a manifest may list: the newest and the oldest of those that somebody had. Who had
/// another one, and missed more renames than that, keeps an older name too.
pub(crate) const FORMERS_MAX: usize = 16;

/// SHA-256 of an encoded manifest: 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct BundleId(pub [u8; 32]);

impl BundleId {
    /// The first ten hex digits, for logs.
    pub(crate) fn short(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..5])
    }

    /// Reads 64 hex digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        Digest::from_hex(text).map(|d| Self(d.0))
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Order of work at every queue; later is more urgent.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[allow(
    clippy::enum_variant_names,
    reason = "these are the words of the settings"
)]
pub(crate) enum Priority {
    /// Whenever nothing else is to be done.
    Bulk,
    /// Below the ordinary.
    Low,
    /// The default.
    #[default]
    Routine,
    /// Before the ordinary.
    Priority,
    /// Before everything.
    Critical,
}

/// Who a bundle is for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Scope {
    /// Every member of the group at this membership generation, and who joins later.
    All {
        /// The origin's membership generation when it sealed the bundle.
        generation: u64,
    },
    /// These members only.
    Ids(#[serde(deserialize_with = "at_most::<_, _, SCOPE_MAX>")] Vec<PeerId>),
}

impl Scope {
    /// Whether `peer` is meant.
    pub(crate) fn has(&self, peer: PeerId) -> bool {
        match self {
            Self::All { .. } => true,
            Self::Ids(ids) => ids.contains(&peer),
        }
    }

    /// Whether everybody that `other` means is meant here too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All { .. }, _) => true,
            (Self::Ids(_), Self::All { .. }) => false,
            (Self::Ids(_), Self::Ids(ids)) => ids.iter().all(|id| self.has(*id)),
        }
    }
}

/// A name that a file had before, with the bundle that announced it there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Former {
    /// The name.
    pub path: RelPath,
    /// Epoch of that bundle.
    pub epoch: u64,
    /// Incarnation of that bundle.
    pub incarnation: [u8; 16],
    /// Number of that bundle within the epoch.
    pub seq: u64,
    /// The place of the file among the entries of that bundle; `None`: it is the only one.
    pub entry: Option<u32>,
    pub bundle: BundleId,
    /// How many components of the path, from its end, are gone at the origin; 0 if another file has the name by now.
    pub gone: u16,
}

impl Former {
    /// (epoch, seq): the order of that version of the path.
    pub(crate) fn order(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }
}

/// What the origin says of a bundle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Encoding version, [`MANIFEST_VERSION`].
    pub version: u8,
    /// Who sealed it.
    pub origin: PeerId,
    /// Grows at each start of the origin's daemon.
    pub epoch: u64,
    /// 128 random bits of that start: two incarnations of one epoch are a clone.
    pub incarnation: [u8; 16],
    /// Number of this bundle within the epoch. (epoch, seq) orders versions of a path.
    pub seq: u64,
    /// How long after sealing it may still be delivered, in seconds.
    pub lifetime_secs: u64,
    /// Who it is for.
    pub scope: Scope,
    /// How urgent it is.
    pub priority: Priority,
    /// The version of this path the origin had announced before, if it knows one.
    pub supersedes: Option<BundleId>,
    /// The names under which the origin announced this very file before it renamed it, newest first; at most
    /// [`FORMERS_MAX`]: not all, if there are more. More than one for recipients that were away when it got those in between.
    #[serde(deserialize_with = "at_most::<_, _, FORMERS_MAX>")]
    pub renamed_from: Vec<Former>,
    /// In a bundle that renames a file: up to which version of its name, by their order, the files that had the name moved on
    /// to other names, and are told of elsewhere. Newer ones were replaced or removed. What shows one that moved on is not
    /// there for a consumed file to replace, in whatever order the bundles come.
    pub moved_on: Option<(u64, u64)>,
    /// What it repeats of an earlier bundle, if it is the rest of one.
    pub rest_of: Option<Rest>,
    /// The files and directories.
    #[serde(deserialize_with = "at_most::<_, _, MAX_ENTRIES>")]
    pub entries: Vec<Entry>,
    /// The times of directories that the entries imply, if they were sent as a whole; see [`directories`].
    #[serde(deserialize_with = "at_most::<_, _, MAX_ENTRIES>")]
    pub directories: Vec<DirectoryTime>,
    /// Random, so that a bundle id reveals nothing about guessable content.
    pub salt: [u8; 16],
}

impl Manifest {
    /// (epoch, seq): the order of versions of one path from one origin. A rest has that of the whole.
    pub(crate) fn order(&self) -> (u64, u64) {
        let own = (self.epoch, self.seq);
        self.rest_of.as_ref().map_or(own, Rest::order)
    }

    /// Sum of the sizes of all entries in bytes; a peer may claim more than the number holds.
    pub(crate) fn total_size(&self) -> u64 {
        self.entries
            .iter()
            .map(Entry::size)
            .fold(0, u64::saturating_add)
    }

    /// What to call it: the path of its one entry, or the deepest directory that holds all of them. A bundle of files
    /// without a common directory goes by its first one.
    pub(crate) fn title(&self) -> Option<RelPath> {
        let first = self.entries.first()?;
        if self.entries.len() == 1 {
            return Some(first.path.clone());
        }
        let mut common = match first.kind {
            EntryKind::Directory => Some(first.path.clone()),
            EntryKind::File { .. } | EntryKind::Link { .. } => first.path.parent(),
        };
        for entry in &self.entries {
            while let Some(directory) = &common
                && !entry.path.starts_with(directory)
            {
                common = directory.parent();
            }
        }
        Some(common.unwrap_or_else(|| first.path.clone()))
    }

    /// The digests of its files, in the order of the entries.
    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.entries.iter().filter_map(Entry::digest)
    }

    /// The digest of its one file; a bundle of many has none.
    pub(crate) fn single_digest(&self) -> Option<Digest> {
        match self.entries.as_slice() {
            [only] => only.digest(),
            _ => None,
        }
    }

    /// Whether `peer` may receive it: in scope and not the origin itself.
    pub(crate) fn is_for(&self, peer: PeerId) -> bool {
        peer != self.origin && self.scope.has(peer)
    }

    /// Encodes and signs.
    pub(crate) fn sign(self, identity: &Identity) -> VerifiedManifest {
        // Postcard of plain owned data into a growing vector has no error to give.
        #[allow(clippy::expect_used)]
        let bytes = postcard::to_stdvec(&self).expect("a manifest always encodes");
        let id = BundleId(Digest::of(&bytes).0);
        let signature = identity.sign(MANIFEST_CONTEXT, &id.0);
        VerifiedManifest::new(id, self, SignedManifest { bytes, signature })
    }

    /// Some of its entries with the times that they imply.
    pub(crate) fn listing_of(&self, entries: Vec<Entry>) -> Listing {
        Listing {
            directories: directories::above(&self.directories, &entries),
            entries,
        }
    }
}

const MANIFEST_CONTEXT: &[u8] = b"meshbox manifest 1\0";

/// An encoded manifest with its signature, not yet checked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SignedManifest {
    /// The canonical encoding.
    pub bytes: Vec<u8>,
    /// The origin's signature over the bundle's id, which is its hash.
    pub signature: Signature,
}

/// Why a manifest was refused.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum ManifestError {
    /// Not an encoded manifest, or a longer one than any may be.
    #[error("the manifest is refused: {0}")]
    Malformed(#[from] Malformed),
    /// A version this program does not know.
    #[error("the manifest has version {0}; this program knows {MANIFEST_VERSION}")]
    Version(u8),
    /// The signature is not the origin's.
    #[error("the manifest's signature is not by its origin {0}")]
    Signature(PeerId),
    /// It lists nothing, or more than [`MAX_ENTRIES`].
    #[error("the manifest has {0} entries; it must have 1 to {MAX_ENTRIES}")]
    EntryCount(usize),
    /// Two entries clash.
    #[error("the manifest names {0} twice, or as file and directory at once")]
    PathClash(RelPath),
    /// A symbolic link that could lead out of its tree.
    #[error("the symbolic link {0} could lead out of its tree")]
    Link(RelPath),
    /// The chunk list does not fit the size.
    #[error("the chunk list of {0} does not fit its size")]
    Chunks(RelPath),
    /// The time of a directory out of order, or of none that its entries imply.
    #[error("the time of the directory {0} is out of place")]
    Directory(RelPath),
    /// It cannot be the rest of the bundle that it names.
    #[error("the manifest does not say rightly what it is the rest of")]
    Rest,
}

impl SignedManifest {
    /// The bundle's id: SHA-256 of the encoding.
    pub(crate) fn id(&self) -> BundleId {
        BundleId(Digest::of(&self.bytes).0)
    }

    /// Checks signature and every rule a manifest must keep.
    pub(crate) fn verify(self) -> Result<VerifiedManifest, ManifestError> {
        // The version comes first in all of them.
        match self.bytes.first() {
            Some(&version) if version != MANIFEST_VERSION => {
                return Err(ManifestError::Version(version));
            }
            Some(_) | None => {}
        }
        let verified = self.verify_own()?;
        let (origin, id) = (verified.manifest().origin, verified.id());
        if origin.verify(MANIFEST_CONTEXT, &id.0, &verified.0.signature) {
            Ok(verified)
        } else {
            Err(ManifestError::Signature(origin))
        }
    }

    /// The same for one that this program signed or verified before it stored it; the journal's checks stand for the
    /// signature's.
    pub(crate) fn verify_own(self) -> Result<VerifiedManifest, ManifestError> {
        let manifest: Manifest = encoding::decode(&self.bytes, MANIFEST_MAX)?;
        check_entries(&manifest.entries, &manifest.directories)?;
        if let Some(rest) = &manifest.rest_of
            && !(rest.fits(manifest.entries.len(), (manifest.epoch, manifest.seq))
                && manifest.renamed_from.is_empty())
        {
            return Err(ManifestError::Rest);
        }
        Ok(VerifiedManifest::new(self.id(), manifest, self))
    }
}

fn check_entries(entries: &[Entry], directories: &[DirectoryTime]) -> Result<(), ManifestError> {
    if entries.is_empty() || entries.len() > MAX_ENTRIES {
        return Err(ManifestError::EntryCount(entries.len()));
    }
    let mut kinds: BTreeMap<&[u8], bool> = BTreeMap::new();
    for entry in entries {
        let is_dir = matches!(entry.kind, EntryKind::Directory);
        if kinds.insert(entry.path.as_bytes(), is_dir).is_some() {
            return Err(ManifestError::PathClash(entry.path.clone()));
        }
        if let EntryKind::Link { target } = &entry.kind
            && !link::stays(&entry.path, target)
        {
            return Err(ManifestError::Link(entry.path.clone()));
        }
        if let EntryKind::File { size, chunks, .. } = &entry.kind
            && !chunks.fits(*size)
        {
            return Err(ManifestError::Chunks(entry.path.clone()));
        }
    }
    for entry in entries {
        let mut above = entry.path.parent();
        while let Some(dir) = above {
            if kinds.get(dir.as_bytes()) == Some(&false) {
                return Err(ManifestError::PathClash(dir));
            }
            above = dir.parent();
        }
    }
    directories::check(directories, &kinds).map_err(ManifestError::Directory)
}

/// A manifest whose signature and shape were checked. A copy costs nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct VerifiedManifest(Arc<Checked>);

#[derive(PartialEq, Eq, Debug)]
struct Checked {
    id: BundleId,
    manifest: Manifest,
    signature: Signature,
    /// How long its encoding is; and that, unless it is long.
    len: usize,
    encoded: Option<Vec<u8>>,
}

impl VerifiedManifest {
    fn new(id: BundleId, manifest: Manifest, signed: SignedManifest) -> Self {
        let len = signed.bytes.len();
        Self(Arc::new(Checked {
            id,
            manifest,
            signature: signed.signature,
            len,
            encoded: (len <= ENCODED_KEPT).then_some(signed.bytes),
        }))
    }

    /// The bundle's id.
    pub(crate) fn id(&self) -> BundleId {
        self.0.id
    }

    /// What it says.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The bytes to store or send on. Made anew if they are many: a manifest has one encoding.
    pub(crate) fn signed(&self) -> SignedManifest {
        let encoded = self.0.encoded.clone();
        SignedManifest {
            // Postcard of plain owned data into a growing vector has no error to give.
            bytes: encoded
                .unwrap_or_else(|| postcard::to_stdvec(&self.0.manifest).unwrap_or_default()),
            signature: self.0.signature,
        }
    }

    /// How long its encoding is.
    pub(crate) fn encoded_len(&self) -> usize {
        self.0.len
    }

    /// About how much memory it takes, with what is kept for each entry and chunk while it is fetched.
    pub(crate) fn memory(&self) -> usize {
        let entries: usize = self.0.manifest.entries.iter().map(Weighs::weighs).sum();
        let directories = self.0.manifest.directories.iter();
        let directories: usize = directories.map(Weighs::weighs).sum();
        let encoded = self.0.encoded.as_ref().map_or(0, Vec::len);
        let places = places(self.0.manifest.rest_of.as_ref());
        size_of::<Checked>() + encoded + entries + directories + places
    }
}

impl SignedManifest {
    /// About how much memory it takes once it is verified, of which the most is that of entries and of times of
    /// directories; found without taking it. Of what is no manifest, anything.
    pub(crate) fn memory_verified(&self) -> usize {
        let shape = postcard::take_from_bytes::<Shape>(&self.bytes);
        shape.map_or(0, |(shape, _)| {
            shape.entries.0 + shape.directories.0 + places(shape.rest_of.as_ref())
        })
    }

    /// The priority that it says, found without decoding all of it. Of what is no manifest, the default.
    pub(crate) fn priority(&self) -> Priority {
        postcard::take_from_bytes::<Head>(&self.bytes)
            .map_or_else(|_| Priority::default(), |(head, _)| head.priority)
    }
}

fn places(rest: Option<&Rest>) -> usize {
    rest.map_or(0, |rest| size_of_val(rest.entries.as_slice()))
}

/// The beginning of a [`Manifest`], up to its priority.
#[derive(Deserialize)]
#[allow(dead_code, reason = "read over")]
struct Head {
    version: u8,
    origin: PeerId,
    epoch: u64,
    incarnation: [u8; 16],
    seq: u64,
    lifetime_secs: u64,
    scope: Scope,
    priority: Priority,
}

/// A [`Manifest`] of which nothing is kept but what it weighs.
#[derive(Deserialize)]
#[allow(dead_code, reason = "read over")]
struct Shape {
    head: Head,
    supersedes: Option<BundleId>,
    #[serde(deserialize_with = "at_most::<_, _, FORMERS_MAX>")]
    renamed_from: Vec<Former>,
    moved_on: Option<(u64, u64)>,
    rest_of: Option<Rest>,
    entries: Weight<Entry>,
    directories: Weight<DirectoryTime>,
}

/// What a list weighs.
struct Weight<T>(usize, PhantomData<T>);

impl<'de, T: Deserialize<'de> + Weighs> Deserialize<'de> for Weight<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut weight = 0;
        each::<_, T, MAX_ENTRIES>(deserializer, |item, _| weight += item.weighs())?;
        Ok(Self(weight, PhantomData))
    }
}

/// What takes memory.
trait Weighs {
    fn weighs(&self) -> usize;
}

impl Weighs for Entry {
    fn weighs(&self) -> usize {
        let more = match &self.kind {
            EntryKind::File { chunks, .. } => {
                chunks.memory() + FETCHED_CHUNK * chunks.data_count().max(1)
            }
            EntryKind::Directory => 0,
            EntryKind::Link { target } => ALLOCATED + target.len(),
        };
        size_of::<Self>() + ALLOCATED + self.path.as_bytes().len() + FETCHED_ENTRY + more
    }
}

impl Weighs for DirectoryTime {
    fn weighs(&self) -> usize {
        size_of::<Self>() + ALLOCATED + self.0.as_bytes().len()
    }
}

/// What an allocation costs beside its bytes.
const ALLOCATED: usize = 16;

/// What a fetch keeps for each entry, and for each chunk.
const FETCHED_ENTRY: usize = 24;
const FETCHED_CHUNK: usize = 56;

/// A recipient's statement that a bundle is verified and durable in its inbox.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// What was received.
    pub bundle: BundleId,
    /// Who sealed the bundle.
    pub origin: PeerId,
    /// Who received it, and signs.
    pub recipient: PeerId,
    /// Signature by the recipient.
    pub signature: Signature,
}

const RECEIPT_CONTEXT: &[u8] = b"meshbox receipt 1\0";

impl Receipt {
    /// Signs a receipt. Only `spool` calls this, after the journal says that the bundle is durable.
    pub(crate) fn sign(identity: &Identity, bundle: BundleId, origin: PeerId) -> Self {
        let recipient = identity.id();
        let signature = identity.sign(RECEIPT_CONTEXT, &receipt_bytes(bundle, origin, recipient));
        Self {
            bundle,
            origin,
            recipient,
            signature,
        }
    }

    /// Whether the signature is the recipient's.
    pub(crate) fn is_genuine(&self) -> bool {
        let bytes = receipt_bytes(self.bundle, self.origin, self.recipient);
        self.recipient
            .verify(RECEIPT_CONTEXT, &bytes, &self.signature)
    }
}

fn receipt_bytes(bundle: BundleId, origin: PeerId, recipient: PeerId) -> Vec<u8> {
    [bundle.0, *origin.as_bytes(), *recipient.as_bytes()].concat()
}

/// Where a bundle stands with one recipient.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum DeliveryState {
    /// Durable here, not yet offered on the present connection.
    Queued,
    /// Offered; the recipient has not answered.
    Offered,
    /// The recipient is fetching; bytes it has asked for so far.
    Sending(u64),
    /// The recipient's receipt is here.
    Delivered,
    /// Will be tried again by itself; says why not now.
    Deferred(String),
    /// The recipient will never take it; says why.
    Refused(String),
    /// Withdrawn by its origin.
    Cancelled,
    /// A newer version of every path in it went to this recipient instead.
    Superseded,
    /// Its lifetime ended.
    Expired,
}

impl DeliveryState {
    /// How far it is.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Queued => Stage::Queued,
            Self::Offered => Stage::Offered,
            Self::Sending(_) => Stage::Sending,
            Self::Delivered => Stage::Delivered,
            Self::Deferred(_) => Stage::Deferred,
            Self::Refused(_) => Stage::Refused,
            Self::Cancelled => Stage::Cancelled,
            Self::Superseded => Stage::Superseded,
            Self::Expired => Stage::Expired,
        }
    }

    /// Whether nothing more will happen.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Queued | Self::Offered | Self::Sending(_) | Self::Deferred(_) => false,
            Self::Delivered
            | Self::Refused(_)
            | Self::Cancelled
            | Self::Superseded
            | Self::Expired => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn path(text: &str) -> RelPath {
        RelPath::parse(text).unwrap()
    }

    pub(super) fn manifest(origin: PeerId, entries: Vec<Entry>) -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            origin,
            epoch: 1,
            incarnation: [1; 16],
            seq: 1,
            lifetime_secs: 60,
            scope: Scope::All { generation: 1 },
            priority: Priority::Routine,
            supersedes: None,
            renamed_from: Vec::new(),
            moved_on: None,
            rest_of: None,
            entries,
            directories: Vec::new(),
            salt: [2; 16],
        }
    }

    pub(super) fn file(name: &str, size: u64) -> Entry {
        let bytes = vec![1; size as usize];
        let hashed = crate::digest::hash_reader(bytes.as_slice()).unwrap();
        let kind = EntryKind::File {
            size,
            executable: false,
            digest: hashed.digest,
            chunks: hashed.chunks,
        };
        Entry {
            path: path(name),
            mtime: (0, 0),
            kind,
        }
    }

    /// Fields that a manifest gets must get into what is read over, too.
    #[test]
    fn what_a_manifest_weighs_is_known_before_it_is_decoded() {
        let identity = Identity::generate();
        let mut says = manifest(identity.id(), vec![file("d/a", 10), file("d/b", 20)]);
        says.moved_on = Some((7, 8));
        says.rest_of = Some(Rest {
            epoch: 1,
            incarnation: [3; 16],
            seq: 2,
            entries: vec![4, 5],
        });
        says.directories = vec![(path("d"), (5, 6))];
        let manifest = says.sign(&identity);
        let known = manifest.signed().memory_verified();
        let kept = size_of::<Checked>() + manifest.encoded_len();
        assert!(known > 0 && known + kept == manifest.memory());
    }

    #[test]
    fn paths_that_leave_their_directory_are_refused() {
        for (text, why) in [
            ("", PathError::Empty),
            ("/etc/passwd", PathError::Absolute),
            ("..", PathError::Component),
            ("a/../b", PathError::Component),
            ("a//b", PathError::Component),
            ("a/", PathError::Component),
            ("./a", PathError::Component),
            ("a\0b", PathError::Nul),
        ] {
            assert_eq!(RelPath::parse(text), Err(why), "{text:?}");
        }
        assert_eq!(RelPath::parse("x".repeat(256)), Err(PathError::NameTooLong));
        assert!(RelPath::parse("x".repeat(255)).is_ok());
        assert_eq!(
            RelPath::parse("x/".repeat(2048) + "x"),
            Err(PathError::TooLong)
        );
        assert!(
            RelPath::parse(b"\xff\xfe".to_vec()).is_ok(),
            "names are bytes"
        );
    }

    #[test]
    fn a_path_is_rebased_only_at_a_component_boundary() {
        assert_eq!(
            path("a/b/c").rebase(&path("a/b"), &path("x")),
            Some(path("x/c"))
        );
        assert_eq!(path("a/bc").rebase(&path("a/b"), &path("x")), None);
        assert_eq!(
            path("a").rebase(&path("a"), &path("b/c")),
            Some(path("b/c"))
        );
    }

    #[test]
    fn a_path_from_the_wire_is_checked_while_decoding() {
        let bytes = postcard::to_stdvec(&b"a/../../etc".to_vec()).unwrap();
        assert!(postcard::from_bytes::<RelPath>(&bytes).is_err());
    }

    #[test]
    fn a_signed_manifest_reads_back_and_any_changed_byte_is_noticed() {
        let identity = Identity::generate();
        let verified =
            manifest(identity.id(), vec![file("a/b", 70_000), file("a/c", 3)]).sign(&identity);
        assert_eq!(verified.signed().verify(), Ok(verified.clone()));
        for at in 0..verified.encoded_len() {
            let mut signed = verified.signed();
            signed.bytes[at] ^= 1;
            assert!(signed.verify().is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_member_cannot_sign_for_another() {
        let (alder, birch) = (Identity::generate(), Identity::generate());
        let forged = manifest(alder.id(), vec![file("a", 1)]).sign(&birch);
        assert_eq!(
            forged.signed().verify(),
            Err(ManifestError::Signature(alder.id()))
        );
    }

    #[test]
    fn entries_that_clash_or_lie_about_chunks_are_refused() {
        let identity = Identity::generate();
        let check = |entries| {
            manifest(identity.id(), entries)
                .sign(&identity)
                .signed()
                .clone()
                .verify()
        };
        assert_eq!(check(vec![]), Err(ManifestError::EntryCount(0)));
        assert_eq!(
            check(vec![file("a", 1), file("a", 1)]),
            Err(ManifestError::PathClash(path("a")))
        );
        assert_eq!(
            check(vec![file("a", 1), file("a/b", 1)]),
            Err(ManifestError::PathClash(path("a")))
        );
        let mut short = file("a", 70_000);
        if let EntryKind::File { size, .. } = &mut short.kind {
            *size = 5 << 20;
        }
        assert_eq!(check(vec![short]), Err(ManifestError::Chunks(path("a"))));
        let link = |name: &str, target: &str| Entry {
            path: path(name),
            mtime: (0, 0),
            kind: EntryKind::Link {
                target: target.into(),
            },
        };
        assert!(check(vec![link("a/l", "b"), file("a/b", 1)]).is_ok());
        for (name, target) in [("l", "b"), ("a/l", "../b"), ("a/l", "/b"), ("a/l", "")] {
            assert_eq!(
                check(vec![link(name, target)]),
                Err(ManifestError::Link(path(name)))
            );
        }
        assert_eq!(
            check(vec![link("a/l", "b"), file("a/l/x", 1)]),
            Err(ManifestError::PathClash(path("a/l")))
        );
        let dir = Entry {
            path: path("a"),
            mtime: (0, 0),
            kind: EntryKind::Directory,
        };
        assert!(check(vec![dir, file("a/b", 1)]).is_ok());
    }

    #[test]
    fn a_receipt_binds_bundle_origin_and_recipient() {
        let (alder, birch) = (Identity::generate(), Identity::generate());
        let receipt = Receipt::sign(&birch, BundleId([3; 32]), alder.id());
        assert!(receipt.is_genuine());
        assert!(
            !Receipt {
                bundle: BundleId([4; 32]),
                ..receipt.clone()
            }
            .is_genuine()
        );
        assert!(
            !Receipt {
                recipient: alder.id(),
                ..receipt
            }
            .is_genuine()
        );
    }
}
