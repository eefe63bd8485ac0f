//! How long a frame of each kind may be, and what dealing with it takes.
//!
//! A limit covers the longest frame that an encoder makes, with room for fields that later versions add. What has lists of
//! long things is split by bytes where it is made.

use serde::Serialize;

use super::kind::{self, FRAME_MAX, HELLO_MAX, KEPT_BUFFER, PREFACE_MAX};
use crate::encoding;
use crate::mesh::limits::Kind;
use crate::protocol::frame::LIST_MAX;

/// Lists of ids: 256 of 32 bytes.
const IDS: usize = 16 * 1024;

/// Receipts: 256 of 160 bytes.
const RECEIPTS: usize = 64 * 1024;

/// Verdicts, each with a reason of 200 characters or a receipt; cancels, each with a scope of 4,096 ids; and bits for
/// 4,096 chunks of 256 entries.
const LISTS: usize = 256 * 1024;

/// What makers of cancels and statements put into one frame, unless a single one is longer.
const PAGE_BYTES: usize = 128 * 1024;

/// What a frame weighs at least, so that many small ones count too.
const WEIGHT_MIN: usize = 512;

/// What an id in a list may make us answer.
const ANSWER: usize = 6;

/// `items` in lists that fit a frame each, by their number and by their bytes.
pub(in crate::mesh) fn pages<T: Serialize>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut pages: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let len = encoding::len_of(&item);
        match pages.last_mut() {
            Some(page) if page.len() < LIST_MAX && bytes + len <= PAGE_BYTES => {
                bytes += len;
                page.push(item);
            }
            Some(_) | None => {
                bytes = len;
                pages.push(vec![item]);
            }
        }
    }
    pages
}

/// The longest frame of that kind.
pub(in crate::mesh) fn longest(kind: u8) -> usize {
    match kind {
        kind::PROOF | kind::RANGE | kind::TWIN | kind::REDEEM | kind::ROLL => PREFACE_MAX,
        kind::PENDING
        | kind::OWED
        | kind::WITHDRAWN
        | kind::CANCELS_SEEN
        | kind::GONE
        | kind::CLOSED
        | kind::OPEN
        | kind::UNKNOWN
        | kind::WELCOME
        | kind::DENIED => IDS,
        kind::RECEIPTS => RECEIPTS,
        kind::VERDICTS | kind::CANCELS | kind::HAVE => LISTS,
        kind::OFFER => FRAME_MAX,
        // And what a later version may say, which is passed over.
        _ => HELLO_MAX,
    }
}

/// The beginning of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mesh) struct Head {
    pub(super) kind: u8,
    /// Kind and body.
    pub(in crate::mesh) len: usize,
}

impl Head {
    /// What it counts as, besides as a frame.
    pub(in crate::mesh) fn counts_as(self) -> Option<Kind> {
        match self.kind {
            kind::OFFER => Some(Kind::Offer),
            kind::MEMBERS | kind::STATEMENTS | kind::ROLL => Some(Kind::Announcement),
            _ => None,
        }
    }

    /// Whether it is an offer.
    pub(in crate::mesh) fn is_offer(self) -> bool {
        self.kind == kind::OFFER
    }

    /// The memory it takes until it is dealt with: the frame, what is made of it, and the answer.
    pub(in crate::mesh) fn weight(self) -> usize {
        let weight = match self.kind {
            kind::PENDING | kind::OWED | kind::OPEN => self.len * (1 + ANSWER),
            // The frame goes as soon as it is read; the manifest is weighed then.
            kind::OFFER => self.len + self.len.min(KEPT_BUFFER),
            _ => self.len * 2,
        };
        weight.max(WEIGHT_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ADDRS_MAX, Have, Hello, MEMBERS_MAX, MemberFrame, Offer, REASON_MAX, Told};
    use super::super::{Decoder, Frame, INLINE_TOTAL};
    use super::*;
    use crate::bundle::{
        BundleId, Cancel, CancelReason, MANIFEST_MAX, MAX_ENTRIES, Receipt, SCOPE_MAX, Scope,
        SignedManifest,
    };
    use crate::delivery::Verdict;
    use crate::peer::roll::{STATEMENT_MAX, SignedStatement};
    use crate::peer::{PeerId, PeerName, Signature};

    const SIGNATURE: Signature = Signature([4; 64]);

    fn cancel() -> Cancel {
        Cancel {
            bundle: BundleId([1; 32]),
            origin: PeerId::from_bytes([2; 32]),
            reason: CancelReason::Expired,
            scope: Scope::Ids(vec![PeerId::from_bytes([3; 32]); SCOPE_MAX]),
            lifetime_secs: u64::MAX,
            signature: SIGNATURE,
        }
    }

    fn statement(len: usize) -> SignedStatement {
        SignedStatement {
            bytes: vec![1; len],
            signature: SIGNATURE,
        }
    }

    fn longest_frames() -> Vec<Frame> {
        let (bundle, peer) = (BundleId([1; 32]), PeerId::from_bytes([2; 32]));
        let ids = vec![bundle; LIST_MAX];
        let told = Told {
            id: peer,
            name: PeerName::parse("n".repeat(63)).unwrap(),
            addrs: vec!["[ffff::1]:65535".parse().unwrap(); ADDRS_MAX],
        };
        let members = vec![told.clone(); MEMBERS_MAX];
        let hello = Hello {
            name: told.name,
            epoch: u64::MAX,
            incarnation: [9; 16],
            seen: u64::MAX,
            addrs: told.addrs,
            members: members.clone(),
        };
        let receipt = Receipt {
            bundle,
            origin: peer,
            recipient: peer,
            signature: SIGNATURE,
        };
        let words = "\u{10ffff}".repeat(REASON_MAX + 1);
        let pieces = [bytes::Bytes::from(vec![0; 64 * 1024])];
        let pieces = pieces.iter().cycle().cloned().map(Some);
        let mut inline: Vec<_> = pieces.take(INLINE_TOTAL / (64 * 1024)).collect();
        inline.resize(MAX_ENTRIES, Some(bytes::Bytes::new()));
        let signed = SignedManifest {
            bytes: vec![1; MANIFEST_MAX],
            signature: SIGNATURE,
        };
        let have = Have {
            bundle,
            whole: false,
            entries: vec![(u32::MAX, vec![0xff; 512]); LIST_MAX],
        };
        let mut frames: Vec<Frame> = [
            Frame::Pending as fn(Vec<BundleId>) -> Frame,
            Frame::Owed,
            Frame::Withdrawn,
            Frame::CancelsSeen,
            Frame::Gone,
            Frame::Closed,
            Frame::Open,
            Frame::Unknown,
        ]
        .map(|frame| frame(ids.clone()))
        .into();
        frames.extend([
            Frame::Hello(Box::new(hello)),
            Frame::Members(members),
            Frame::Receipts(vec![receipt.clone(); LIST_MAX]),
            Frame::Verdicts(vec![(bundle, Verdict::Deferred(words)); LIST_MAX]),
            Frame::Verdicts(vec![
                (bundle, Verdict::Settled(Box::new(receipt)));
                LIST_MAX
            ]),
            Frame::Have(have),
            Frame::Offer(Box::new(Offer {
                age: 0,
                signed,
                inline,
            })),
        ]);
        let cancels = pages(vec![cancel(); 70]).into_iter().map(Frame::Cancels);
        frames.extend(cancels);
        let said = vec![statement(100); 2000];
        let said = [said, vec![statement(STATEMENT_MAX); 3]].concat();
        let said = pages(said).into_iter().map(MemberFrame::Statements);
        frames.extend(said.map(Frame::Member));
        frames
    }

    /// Two members that keep the rules must never lose each other over what one of them has to say.
    #[test]
    fn every_receiver_takes_the_longest_frame_that_is_made_of_each_kind() {
        for frame in longest_frames() {
            let bytes = frame.to_bytes();
            let (kind, len) = (bytes[4], bytes.len() - 4);
            assert!(len <= longest(kind), "kind {kind}: {len}");
            let mut decoder = Decoder::new(FRAME_MAX);
            decoder.push(&bytes);
            let read = decoder.next_frame().unwrap().unwrap().0;
            let words = matches!(&frame, Frame::Verdicts(list) if matches!(list[0].1, Verdict::Deferred(_)));
            assert!(read == frame || words, "kind {kind}");
        }
    }

    #[test]
    fn what_is_long_is_split_by_bytes_and_nothing_is_lost() {
        let many = vec![statement(1000); 1000];
        let split = pages(many.clone());
        assert!(split.len() > 1000 * 1000 / PAGE_BYTES);
        assert!(split.iter().all(|page| page.len() <= LIST_MAX));
        assert_eq!(split.concat(), many);
        assert_eq!(pages(vec![cancel(); 3]).len(), 3);
        assert!(pages(Vec::<Cancel>::new()).is_empty());
    }
}
