//! What the mesh needs of the spool, and nothing else of it: the border at which tests put a fake.
//!
//! All calls may block on local disk. Those that read or write content are made from blocking threads only.

mod custody;
mod members;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub(crate) use self::custody::Custodian;
pub(crate) use self::members::Members;
use crate::bundle::{
    BundleId, Cancel, CancelReason, DeliveryState, Manifest, Priority, Receipt, RelPath,
    VerifiedManifest,
};
use crate::digest::Digest;
use crate::peer::{Identity, PeerId, PeerName};
use crate::spool::{self, Event, FinishError, IntakeError, Member, ServeError, Spool, SpoolError};
use std::net::SocketAddr;

/// Called at every event of the spool; must not block.
pub(crate) type Bell = Box<dyn Fn(&Event) + Send + Sync>;

/// A bundle that is arriving.
pub(crate) trait Arriving: Send {
    /// See [`spool::Incoming::missing`].
    fn missing(&self, entry: usize) -> Vec<Range<u64>>;
    /// See [`spool::Incoming::accept_chunk`].
    fn accept_chunk(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), IntakeError>;
    /// See [`spool::Incoming::hash_zeros`].
    fn hash_zeros(&mut self) -> Result<Option<Duration>, IntakeError> {
        Ok(None)
    }
    /// Checks every digest, then gives every entry its name in the inbox.
    fn publish(self: Box<Self>) -> Result<Vec<RelPath>, FinishError>;
    /// See [`spool::Incoming::park`].
    fn park(self: Box<Self>, why: String);
}

/// Content that is read for a peer.
pub(crate) trait Content: Send {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Reads exactly `len` bytes.
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, ServeError>;
}

/// What became of an offer; see [`spool::Offered`].
pub(crate) enum Offered {
    /// Settled before.
    Settled(Receipt),
    /// Published, not durable yet.
    AwaitingDurable,
    /// Another session is at it.
    Busy,
    /// Never.
    Refused(String),
    /// Not now.
    Deferred(String),
    /// Fetch what is missing.
    Wanted(Box<dyn Arriving>),
}

pub(crate) use crate::spool::PartRoom;

/// The spool as the mesh uses it; each call is the one of that name of [`Spool`].
#[allow(missing_docs)]
pub(crate) trait Store: Custodian + Members + Send + Sync + 'static {
    fn identity(&self) -> &Identity;
    fn epoch(&self) -> (u64, [u8; 16]);
    fn raise_epoch(&self, epoch: u64) -> Result<(), SpoolError>;
    fn remembered_listen(&self) -> Vec<SocketAddr>;
    fn remember_listen(&self, bound: &[SocketAddr]) -> Result<(), SpoolError>;
    fn subscribe(&self, bell: Bell);
    fn members(&self) -> Vec<Member>;
    fn member_seen(
        &self,
        id: PeerId,
        name: &PeerName,
        addrs: &[SocketAddr],
        contact: bool,
    ) -> Result<(), SpoolError>;
    fn epoch_seen_of(&self, peer: PeerId) -> u64;
    fn note_epoch(&self, peer: PeerId, epoch: u64) -> Result<(), SpoolError>;
    fn pending(
        &self,
        peer: PeerId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, BundleId)>, SpoolError>;
    fn pending_count(&self, peer: PeerId) -> u64;
    fn is_pending(&self, bundle: BundleId, peer: PeerId) -> bool;
    fn manifest(&self, bundle: BundleId) -> Result<Option<VerifiedManifest>, SpoolError>;
    /// Of a bundle that is held; asked for every range, so without a copy of its manifest.
    fn priority(&self, bundle: BundleId) -> Option<Priority>;
    fn peer_has(&self, peer: PeerId, digest: Digest) -> bool;
    fn open_content(
        &self,
        bundle: BundleId,
        entry: usize,
        peer: PeerId,
    ) -> Result<Box<dyn Content>, ServeError>;
    fn offered(&self, manifest: VerifiedManifest, from: PeerId) -> Result<Offered, SpoolError>;
    fn renamed_only(&self, manifest: &VerifiedManifest) -> Result<bool, SpoolError>;
    fn age_of(&self, manifest: &VerifiedManifest) -> u64;
    fn hear_age(&self, manifest: &VerifiedManifest, from: PeerId, age: u64);
    fn end_of(&self, manifest: &VerifiedManifest) -> u64;
    fn is_past(&self, end: u64) -> bool;
    fn take_receipt(&self, receipt: &Receipt) -> Result<bool, SpoolError>;
    fn set_delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
        state: DeliveryState,
    ) -> Result<(), SpoolError>;
    fn withdrawn(&self, bundle: BundleId, origin: PeerId) -> Result<bool, SpoolError>;
    fn unfinished(&self, origin: PeerId) -> Vec<BundleId>;
    fn note_inbound(
        &self,
        manifest: &Manifest,
        bundle: BundleId,
        state: &str,
        error: Option<String>,
    );
    fn count_bytes(&self, sent: u64, received: u64);
    fn ended_as_named(&self, _bundle: BundleId, _peer: PeerId) -> Option<CancelReason> {
        None
    }
    fn take_cancel(&self, _cancel: &Cancel, _from: PeerId) -> Result<bool, SpoolError> {
        Ok(false)
    }
    fn cancels_owed(
        &self,
        _peer: PeerId,
        _after: Option<&Cancel>,
        _limit: usize,
    ) -> Result<Vec<Cancel>, SpoolError> {
        Ok(Vec::new())
    }
    fn cancels_seen(&self, _peer: PeerId, _bundles: &[BundleId]) -> Result<(), SpoolError> {
        Ok(())
    }
    fn count_twice(&self, bytes: u64);
    /// See [`Spool::disk_failed`].
    fn disk_failed(&self, _error: &SpoolError) -> String {
        "the receiver's disk failed".into()
    }
    /// See [`Spool::disk_works`].
    fn disk_works(&self) {}
    /// See [`Spool::part_room`]. There is always room, unless a store says otherwise.
    fn part_room(&self, _bundle: BundleId, _least: u64, most: u64) -> PartRoom {
        PartRoom::Given(most)
    }
    /// See [`Spool::part_over`].
    fn part_over(&self, _bundle: BundleId, _bytes: u64) {}
    fn open_arrived(
        &self,
        manifest: &VerifiedManifest,
        entry: usize,
        peer: PeerId,
        end: u64,
    ) -> Result<Box<dyn Content>, ServeError>;
}

impl Store for Arc<Spool> {
    fn identity(&self) -> &Identity {
        Spool::identity(self)
    }
    fn epoch(&self) -> (u64, [u8; 16]) {
        Spool::epoch(self)
    }
    fn raise_epoch(&self, epoch: u64) -> Result<(), SpoolError> {
        Spool::raise_epoch(self, epoch)
    }
    fn remembered_listen(&self) -> Vec<SocketAddr> {
        Spool::remembered_listen(self)
    }
    fn remember_listen(&self, bound: &[SocketAddr]) -> Result<(), SpoolError> {
        Spool::remember_listen(self, bound)
    }
    fn subscribe(&self, bell: Bell) {
        Spool::subscribe(self, bell);
    }
    fn members(&self) -> Vec<Member> {
        Spool::members(self)
    }
    fn member_seen(
        &self,
        id: PeerId,
        name: &PeerName,
        addrs: &[SocketAddr],
        contact: bool,
    ) -> Result<(), SpoolError> {
        Spool::member_seen(self, id, name, addrs, contact)
    }
    fn epoch_seen_of(&self, peer: PeerId) -> u64 {
        Spool::epoch_seen_of(self, peer)
    }
    fn note_epoch(&self, peer: PeerId, epoch: u64) -> Result<(), SpoolError> {
        Spool::note_epoch(self, peer, epoch)
    }
    fn pending(
        &self,
        peer: PeerId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, BundleId)>, SpoolError> {
        Spool::pending(self, peer, after, limit)
    }
    fn pending_count(&self, peer: PeerId) -> u64 {
        Spool::pending_count(self, peer)
    }
    fn is_pending(&self, bundle: BundleId, peer: PeerId) -> bool {
        Spool::is_pending(self, bundle, peer)
    }
    fn manifest(&self, bundle: BundleId) -> Result<Option<VerifiedManifest>, SpoolError> {
        Spool::manifest(self, bundle)
    }
    fn priority(&self, bundle: BundleId) -> Option<Priority> {
        Spool::priority(self, bundle)
    }
    fn peer_has(&self, peer: PeerId, digest: Digest) -> bool {
        Spool::peer_has(self, peer, digest)
    }
    fn open_content(
        &self,
        bundle: BundleId,
        entry: usize,
        peer: PeerId,
    ) -> Result<Box<dyn Content>, ServeError> {
        Ok(Box::new(Spool::open_content(self, bundle, entry, peer)?))
    }
    fn age_of(&self, manifest: &VerifiedManifest) -> u64 {
        Spool::age_of(self, manifest)
    }
    fn hear_age(&self, manifest: &VerifiedManifest, from: PeerId, age: u64) {
        Spool::hear_age(self, manifest, from, age);
    }
    fn end_of(&self, manifest: &VerifiedManifest) -> u64 {
        Spool::end_of(self, manifest)
    }
    fn is_past(&self, end: u64) -> bool {
        Spool::is_past(self, end)
    }
    fn renamed_only(&self, manifest: &VerifiedManifest) -> Result<bool, SpoolError> {
        let refused = self.refuses_origin(manifest.manifest().origin).is_some();
        Ok(!refused && Spool::renamed_only(self, manifest)?)
    }
    fn offered(&self, manifest: VerifiedManifest, from: PeerId) -> Result<Offered, SpoolError> {
        if let Some(why) = self.refuses_origin(manifest.manifest().origin) {
            return Ok(Offered::Refused(why));
        }
        Ok(match Spool::offered(self, manifest, from)? {
            spool::Offered::Settled(receipt) => Offered::Settled(receipt),
            spool::Offered::AwaitingDurable => Offered::AwaitingDurable,
            spool::Offered::Busy => Offered::Busy,
            spool::Offered::Refused(why) => Offered::Refused(why),
            spool::Offered::Deferred(why) => Offered::Deferred(why),
            spool::Offered::Wanted(incoming) => Offered::Wanted(incoming),
        })
    }
    fn take_receipt(&self, receipt: &Receipt) -> Result<bool, SpoolError> {
        Spool::take_receipt(self, receipt)
    }
    fn set_delivery(
        &self,
        bundle: BundleId,
        peer: PeerId,
        state: DeliveryState,
    ) -> Result<(), SpoolError> {
        Spool::set_delivery(self, bundle, peer, state)
    }
    fn withdrawn(&self, bundle: BundleId, origin: PeerId) -> Result<bool, SpoolError> {
        Spool::withdrawn(self, bundle, origin)
    }
    fn unfinished(&self, origin: PeerId) -> Vec<BundleId> {
        Spool::unfinished(self, origin)
    }
    fn note_inbound(
        &self,
        manifest: &Manifest,
        bundle: BundleId,
        state: &str,
        error: Option<String>,
    ) {
        Spool::note_inbound(self, manifest, bundle, state, error);
    }
    fn count_bytes(&self, sent: u64, received: u64) {
        Spool::count_bytes(self, sent, received);
    }
    fn ended_as_named(&self, bundle: BundleId, peer: PeerId) -> Option<CancelReason> {
        Spool::ended_as_named(self, bundle, peer)
    }
    fn take_cancel(&self, cancel: &Cancel, from: PeerId) -> Result<bool, SpoolError> {
        Spool::take_cancel(self, cancel, from)
    }
    fn cancels_owed(
        &self,
        peer: PeerId,
        after: Option<&Cancel>,
        limit: usize,
    ) -> Result<Vec<Cancel>, SpoolError> {
        Spool::cancels_owed(self, peer, after, limit)
    }
    fn cancels_seen(&self, peer: PeerId, bundles: &[BundleId]) -> Result<(), SpoolError> {
        Spool::cancels_seen(self, peer, bundles)
    }
    fn disk_failed(&self, error: &SpoolError) -> String {
        Spool::disk_failed(self, error)
    }
    fn disk_works(&self) {
        Spool::disk_works(self);
    }
    fn part_room(&self, bundle: BundleId, least: u64, most: u64) -> PartRoom {
        Spool::part_room(self, bundle, least, most)
    }
    fn part_over(&self, bundle: BundleId, bytes: u64) {
        Spool::part_over(self, bundle, bytes);
    }
    fn count_twice(&self, bytes: u64) {
        Spool::count_twice(self, bytes);
    }
    fn open_arrived(
        &self,
        manifest: &VerifiedManifest,
        entry: usize,
        peer: PeerId,
        end: u64,
    ) -> Result<Box<dyn Content>, ServeError> {
        let opened = Spool::open_arrived(self, manifest, entry, peer, end)?;
        Ok(Box::new(opened))
    }
}

impl Arriving for spool::Incoming {
    fn missing(&self, entry: usize) -> Vec<Range<u64>> {
        spool::Incoming::missing(self, entry)
    }
    fn accept_chunk(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), IntakeError> {
        spool::Incoming::accept_chunk(self, entry, offset, bytes)
    }
    fn hash_zeros(&mut self) -> Result<Option<Duration>, IntakeError> {
        spool::Incoming::hash_zeros(self)
    }
    fn publish(self: Box<Self>) -> Result<Vec<RelPath>, FinishError> {
        let verified = spool::Incoming::finish(*self)?;
        let published = verified.publish().map_err(|error| match error {
            SpoolError::Ended(reason) => FinishError::Ended(reason),
            error => FinishError::Disk(error),
        });
        Ok(published?.names)
    }
    fn park(self: Box<Self>, why: String) {
        spool::Incoming::park(*self, why);
    }
}

impl Content for spool::ContentReader {
    fn len(&self) -> u64 {
        spool::ContentReader::len(self)
    }
    fn read(&mut self, offset: u64, len: usize) -> Result<Bytes, ServeError> {
        spool::ContentReader::read(self, offset, len)
    }
}
