//! Frames: what members say to each other. How they are encoded is in `mesh::wire`.

use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bundle::{BundleId, Cancel, Receipt, SignedManifest};
use crate::delivery::Verdict;
use crate::encoding::at_most;
use crate::peer::invitation::{Denied, Welcome};
use crate::peer::roll::SignedStatement;
use crate::peer::{PeerId, PeerName};

/// Most items of a list in a frame.
pub(crate) const LIST_MAX: usize = 256;

/// Most members told in one frame.
pub(crate) const MEMBERS_MAX: usize = 1024;

/// Most addresses of one member that are told.
pub(crate) const ADDRS_MAX: usize = 16;

/// What both sides say once membership is proved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// What the sender calls itself.
    pub name: PeerName,
    /// The sender's epoch.
    pub epoch: u64,
    /// The sender's incarnation.
    pub incarnation: [u8; 16],
    /// The highest epoch the sender has seen of the receiver.
    pub seen: u64,
    /// Where the sender listens.
    #[serde(deserialize_with = "at_most::<_, _, ADDRS_MAX>")]
    pub addrs: Vec<SocketAddr>,
    /// The members it knows.
    #[serde(deserialize_with = "at_most::<_, _, MEMBERS_MAX>")]
    pub members: Vec<Told>,
}

/// A member as another one tells of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub id: PeerId,
    pub name: PeerName,
    /// Where it was last known to listen.
    #[serde(deserialize_with = "at_most::<_, _, ADDRS_MAX>")]
    pub addrs: Vec<SocketAddr>,
}

/// A bundle with as much of its content as travels with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Offer {
    /// The manifest, not yet verified.
    pub signed: SignedManifest,
    /// Content of each entry, where sent; may be shorter than the list of entries.
    pub inline: Vec<Option<Bytes>>,
    /// How old the bundle is by what its giver knows, in milliseconds.
    pub age: u64,
}

/// A request for bytes, alone on its stream of the bulk connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct RangeRequest {
    pub bundle: BundleId,
    /// Index of the entry in its manifest.
    pub entry: u32,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// Which chunks of a bundle that it fetches the sender has checked, for other recipients to ask it for them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Have {
    pub bundle: BundleId,
    /// It has all, and is not fetching any more.
    pub whole: bool,
    /// One bit for each chunk of an entry, lowest first.
    #[serde(deserialize_with = "at_most::<_, _, LIST_MAX>")]
    pub entries: Vec<(u32, Vec<u8>)>,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    /// The membership proof, with the sender's protocol version.
    Proof {
        /// What the sender speaks.
        version: u16,
        /// See `member`.
        mac: [u8; 32],
    },
    /// Who speaks.
    Hello(Box<Hello>),
    /// "I owe you these": answered by [`Frame::Verdicts`].
    Pending(Vec<BundleId>),
    /// Answers to pending ids and offers.
    Verdicts(Vec<(BundleId, Verdict)>),
    /// A bundle.
    Offer(Box<Offer>),
    /// Receipts of bundles the receiver is the origin of, or offered.
    Receipts(Vec<Receipt>),
    /// Members whose addresses changed.
    Members(Vec<Told>),
    /// On a stream of the bulk connection.
    Range(RangeRequest),
    /// "I have parts of these bundles of yours: do you still owe them to me?" Answered by [`Frame::Withdrawn`].
    Owed(Vec<BundleId>),
    /// "I do not owe you these, and you need not wait for them."
    Withdrawn(Vec<BundleId>),
    /// Bundles that their origin has ended. Answered by [`Frame::CancelsSeen`].
    Cancels(Vec<Cancel>),
    /// "I know that these have ended."
    CancelsSeen(Vec<BundleId>),
    /// Told to other recipients of the bundle only.
    Have(Have),
    /// "What I told you that I have of these, I do not serve any more."
    Gone(Vec<BundleId>),
    /// "These bundles of mine are final for every recipient."
    Closed(Vec<BundleId>),
    /// Of bundles of the receiver: "are these closed?" Of bundles of the sender: "these are not."
    Open(Vec<BundleId>),
    /// "I know nothing of these."
    Unknown(Vec<BundleId>),
    /// "Another run of your node, this one, is alive too."
    Twin([u8; 16]),
    /// On who belongs to the group.
    Member(MemberFrame),
}

/// A message on membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MemberFrame {
    /// Signed statements. In place of a hello: the one with the newest key, for a member that proved an older one.
    Statements(Vec<SignedStatement>),
    /// A hash of all statements that count for the sender; answered by all of ours if it is not the same.
    Roll([u8; 32]),
    /// The first frame under the join protocol: "I know the secret of that name".
    Redeem {
        /// Name of the secret.
        name: [u8; 16],
        /// See `join`.
        mac: [u8; 32],
    },
    /// The answer: the group's key.
    Welcome(Welcome),
    /// The other answer.
    Denied(Denied),
}
