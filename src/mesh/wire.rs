//! The wire: protocol names, and how frames ([`crate::protocol::frame`]) are encoded.
//!
//! A frame is `length: u32 (big endian) | kind: u8 | body`, where `length` counts kind and body. Bodies are postcard;
//! an offer's inline content follows its postcard header as raw bytes. This file does no I/O: [`Decoder`] is fed bytes
//! as they arrive and gives frames.
//!
//! # Goals
//! - Nothing is allocated on the word of a length prefix: a length over the limit is an error, and below it the buffer
//!   grows only with bytes that are here.
//! - Decoding is total: any bytes give a frame, a skip or a [`WireError`], never a panic.
//! - Later versions can add kinds (unknown ones are skipped) and fields at the end of a body (the rest is ignored).
//!
//! # Limits
//! Before the membership proof a frame has at most [`PREFACE_MAX`] bytes; after it each kind has a longest frame of its own
//! ([`limit`]), which no encoder exceeds and every receiver takes. Lists have at most [`LIST_MAX`] items, except of members
//! ([`MEMBERS_MAX`]); they are counted while they are read.
//!
//! The proof frame is frozen: every version of the program can read it and the protocol version in it.

mod body;
mod kind;
mod limit;
mod member;
mod passed;

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

pub(crate) use self::body::WireError;
use self::body::{Items, list, put, take};
use self::kind::KEPT_BUFFER;
pub(super) use self::kind::{FRAME_MAX, HELLO_MAX, INLINE_TOTAL, PREFACE_MAX};
pub(super) use self::limit::{Head, longest, pages};
pub(super) use self::passed::Passed;
use crate::bundle::{BundleId, MAX_ENTRIES, Receipt, SignedManifest};
use crate::delivery::Verdict;
use crate::digest::INLINE_MAX;
use crate::encoding::at_most;
pub(crate) use crate::protocol::frame::{
    ADDRS_MAX, Frame, Have, Hello, LIST_MAX, MEMBERS_MAX, MemberFrame, Offer, RangeRequest, Told,
};

/// Name of the control protocol in the TLS handshake.
pub(super) const CTL_ALPN: &[u8] = b"meshbox/ctl/1";

/// Name of the bulk protocol in the TLS handshake.
pub(super) const BULK_ALPN: &[u8] = b"meshbox/bulk/1";

/// Name of the protocol in which an invitation is redeemed.
pub(super) const JOIN_ALPN: &[u8] = b"meshbox/join/1";

/// Version of what follows the proof.
pub(super) const PROTOCOL: u16 = 1;

/// Longest reason taken from a peer, in characters: it is shown in status and logs.
pub(super) const REASON_MAX: usize = 200;

/// First byte of the answer to a [`RangeRequest`]; only after `Ok` the bytes follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum RangeStatus {
    /// The bytes follow.
    Ok = 0,
    /// No such content for you.
    NotHeld = 1,
    /// The range lies outside the content.
    Range = 2,
    /// The holder's disk failed.
    Disk = 3,
}

impl RangeStatus {
    /// Reads the status byte.
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ok, Self::NotHeld, Self::Range, Self::Disk]
            .into_iter()
            .find(|s| *s as u8 == byte)
    }

    /// Why there are no bytes, in words.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotHeld => "the holder does not have the content any more",
            Self::Range => "the holder's content is shorter than its manifest says",
            Self::Disk => "the holder's disk failed",
        }
    }
}

/// [`Verdict`] as it travels.
#[derive(Serialize, Deserialize)]
enum WireVerdict {
    Want,
    Working,
    Taken,
    Settled(Receipt),
    Refused(String),
    Deferred(String),
}

#[derive(Serialize, Deserialize)]
struct OfferHead<'a> {
    signed: Cow<'a, SignedManifest>,
    age: u64,
    #[serde(deserialize_with = "at_most::<_, _, MAX_ENTRIES>")]
    lengths: Vec<Option<u32>>,
}

impl Frame {
    /// Appends the encoded frame to `out`.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        match self {
            Self::Proof { version, mac } => {
                out.put_u8(kind::PROOF);
                out.put_u16(*version);
                out.put_slice(mac);
            }
            Self::Hello(hello) => put(out, kind::HELLO, hello),
            Self::Pending(ids) => put(out, kind::PENDING, ids),
            Self::Verdicts(list) => {
                let list: Vec<(BundleId, WireVerdict)> =
                    list.iter().map(|(b, v)| (*b, v.clone().into())).collect();
                put(out, kind::VERDICTS, &list);
            }
            Self::Offer(offer) => {
                let lengths = offer
                    .inline
                    .iter()
                    .map(|i| i.as_ref().map(|b| b.len() as u32))
                    .collect();
                let head = OfferHead {
                    age: offer.age,
                    signed: Cow::Borrowed(&offer.signed),
                    lengths,
                };
                put(out, kind::OFFER, &head);
                for bytes in offer.inline.iter().flatten() {
                    out.put_slice(bytes);
                }
            }
            Self::Receipts(list) => put(out, kind::RECEIPTS, list),
            Self::Members(list) => put(out, kind::MEMBERS, list),
            Self::Range(request) => put(out, kind::RANGE, request),
            Self::Owed(ids) => put(out, kind::OWED, ids),
            Self::Withdrawn(ids) => put(out, kind::WITHDRAWN, ids),
            Self::Cancels(list) => put(out, kind::CANCELS, list),
            Self::CancelsSeen(ids) => put(out, kind::CANCELS_SEEN, ids),
            Self::Have(have) => put(out, kind::HAVE, have),
            Self::Gone(ids) => put(out, kind::GONE, ids),
            Self::Closed(ids) => put(out, kind::CLOSED, ids),
            Self::Open(ids) => put(out, kind::OPEN, ids),
            Self::Unknown(ids) => put(out, kind::UNKNOWN, ids),
            Self::Twin(run) => put(out, kind::TWIN, run),
            Self::Member(frame) => frame.encode(out),
        }
        let len = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }

    /// The frame as bytes of its own.
    pub(super) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Reads kind and body; `None` for a kind this version does not know.
    pub(super) fn decode(mut bytes: Bytes) -> Result<Option<Self>, WireError> {
        if bytes.is_empty() {
            return Err(WireError::Empty);
        }
        let kind = bytes.get_u8();
        let frame = match kind {
            kind::PROOF => {
                if bytes.len() < 34 {
                    return Err(WireError::Body { kind });
                }
                let version = bytes.get_u16();
                let mut mac = [0; 32];
                mac.copy_from_slice(&bytes[..32]);
                Self::Proof { version, mac }
            }
            kind::HELLO => Self::Hello(Box::new(take(kind, &bytes)?)),
            kind::PENDING => Self::Pending(list(kind, &bytes)?),
            kind::VERDICTS => {
                let items: Vec<(BundleId, WireVerdict)> = list(kind, &bytes)?;
                Self::Verdicts(items.into_iter().map(|(b, v)| (b, v.into())).collect())
            }
            kind::OFFER => Self::Offer(Box::new(offer(&bytes)?)),
            kind::RECEIPTS => Self::Receipts(list(kind, &bytes)?),
            kind::MEMBERS => {
                let members: Items<Told, MEMBERS_MAX> = take(kind, &bytes)?;
                Self::Members(members.0)
            }
            kind::RANGE => Self::Range(take(kind, &bytes)?),
            kind::OWED => Self::Owed(list(kind, &bytes)?),
            kind::WITHDRAWN => Self::Withdrawn(list(kind, &bytes)?),
            kind::CANCELS => Self::Cancels(list(kind, &bytes)?),
            kind::CANCELS_SEEN => Self::CancelsSeen(list(kind, &bytes)?),
            kind::HAVE => Self::Have(take(kind, &bytes)?),
            kind::GONE => Self::Gone(list(kind, &bytes)?),
            kind::CLOSED => Self::Closed(list(kind, &bytes)?),
            kind::OPEN => Self::Open(list(kind, &bytes)?),
            kind::UNKNOWN => Self::Unknown(list(kind, &bytes)?),
            kind::TWIN => Self::Twin(take(kind, &bytes)?),
            _ => return Ok(MemberFrame::decode(kind, &bytes)?.map(Self::Member)),
        };
        Ok(Some(frame))
    }
}

fn offer(bytes: &[u8]) -> Result<Offer, WireError> {
    let bad = WireError::Body { kind: kind::OFFER };
    let (head, rest): (OfferHead<'_>, &[u8]) =
        postcard::take_from_bytes(bytes).map_err(|_| bad.clone())?;
    let total: usize = head.lengths.iter().flatten().map(|len| *len as usize).sum();
    let small = |len: &u32| u64::from(*len) <= INLINE_MAX;
    if total > INLINE_TOTAL || !head.lengths.iter().flatten().all(small) {
        return Err(bad);
    }
    // A copy, so that a small file does not keep a long manifest in memory.
    let content = rest.get(..total).ok_or(bad)?;
    let mut rest = Bytes::copy_from_slice(content);
    let inline = |length: &Option<u32>| length.map(|length| rest.split_to(length as usize));
    Ok(Offer {
        age: head.age,
        signed: head.signed.into_owned(),
        inline: head.lengths.iter().map(inline).collect(),
    })
}

impl From<Verdict> for WireVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Want => Self::Want,
            Verdict::Working => Self::Working,
            Verdict::Taken => Self::Taken,
            Verdict::Settled(receipt) => Self::Settled(*receipt),
            Verdict::Refused(why) => Self::Refused(reason(&why)),
            Verdict::Deferred(why) => Self::Deferred(reason(&why)),
        }
    }
}

impl From<WireVerdict> for Verdict {
    fn from(verdict: WireVerdict) -> Self {
        match verdict {
            WireVerdict::Want => Self::Want,
            WireVerdict::Working => Self::Working,
            WireVerdict::Taken => Self::Taken,
            WireVerdict::Settled(receipt) => Self::Settled(Box::new(receipt)),
            WireVerdict::Refused(why) => Self::Refused(reason(&why)),
            WireVerdict::Deferred(why) => Self::Deferred(reason(&why)),
        }
    }
}

/// A peer's words made fit for logs and status: short, no control characters.
pub(super) fn reason(text: &str) -> String {
    text.chars()
        .take(REASON_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub(super) struct Decoder {
    buffer: BytesMut,
    limit: usize,
}

impl Decoder {
    /// A decoder that refuses frames over `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Sets another limit for the frames to come.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes taken and not decoded yet.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Takes bytes that arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What the next frame is, as soon as its beginning is here. An error if it is longer than its kind may be.
    pub(super) fn head(&self) -> Result<Option<Head>, WireError> {
        let Some(prefix) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        let kind = self.buffer.get(4).copied();
        let limit = kind.map_or(self.limit, |kind| self.limit.min(limit::longest(kind)));
        if len > limit {
            return Err(WireError::TooLong { len, limit });
        }
        if len == 0 {
            return Err(WireError::Empty);
        }
        Ok(kind.map(|kind| Head { kind, len }))
    }

    /// Whether all of that frame is here.
    pub(super) fn has(&self, head: Head) -> bool {
        self.buffer.len() >= 4 + head.len
    }

    /// That frame, all of which is here; `None` for a kind this version does not know.
    pub(super) fn pop(&mut self, head: Head) -> Result<Option<Frame>, WireError> {
        self.buffer.advance(4);
        let frame = Frame::decode(self.buffer.split_to(head.len).freeze());
        if head.len > KEPT_BUFFER {
            // Else the rest would keep the memory of all of it.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        frame
    }

    /// Reads over an offer, of which as much as there is; its id when that was all.
    pub(super) fn pass_over(&mut self, passed: &mut Passed) -> Option<BundleId> {
        let id = passed.take(&mut self.buffer);
        if id.is_some() || self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        id
    }

    /// The next frame with its encoded length, skipping unknown kinds; `None` until more bytes arrive.
    pub(super) fn next_frame(&mut self) -> Result<Option<(Frame, usize)>, WireError> {
        while let Some(head) = self.head()?.filter(|head| self.has(*head)) {
            if let Some(frame) = self.pop(head)? {
                return Ok(Some((frame, head.len)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bundle::{Cancel, CancelReason, Scope};
    use crate::peer::{PeerId, PeerName, Signature};

    fn told() -> Told {
        Told {
            id: PeerId::from_bytes([7; 32]),
            name: PeerName::parse("cedar").unwrap(),
            addrs: vec!["127.0.0.1:5".parse().unwrap()],
        }
    }

    fn receipt() -> Receipt {
        Receipt {
            bundle: BundleId([1; 32]),
            origin: PeerId::from_bytes([2; 32]),
            recipient: PeerId::from_bytes([3; 32]),
            signature: Signature([4; 64]),
        }
    }

    fn samples() -> Vec<(Frame, String)> {
        let b = BundleId([1; 32]);
        let (ones, twos, threes) = ("01".repeat(32), "02".repeat(32), "03".repeat(32));
        let receipt_hex = format!("{ones}{twos}{threes}{}", "04".repeat(64));
        let told_hex = format!("{}056365646172010{}", "07".repeat(32), "07f00000105");
        let hello = Hello {
            name: PeerName::parse("alder").unwrap(),
            epoch: 5,
            incarnation: [9; 16],
            seen: 300,
            addrs: vec!["[::1]:7".parse().unwrap()],
            members: vec![told()],
        };
        let hello_hex = format!(
            "05616c64657205{}ac020101{}0107",
            "09".repeat(16),
            "00".repeat(15)
        );
        let offer = Offer {
            age: 0,
            signed: SignedManifest {
                bytes: vec![0xaa; 3],
                signature: Signature([4; 64]),
            },
            inline: vec![Some(Bytes::from_static(b"hi")), None],
        };
        let range = RangeRequest {
            bundle: b,
            entry: 2,
            offset: 1 << 20,
            len: 8,
        };
        vec![
            (
                Frame::Proof {
                    version: 1,
                    mac: [1; 32],
                },
                format!("00000023010001{ones}"),
            ),
            (
                Frame::Hello(Box::new(hello)),
                format!("0000005b02{hello_hex}01{told_hex}"),
            ),
            (Frame::Pending(vec![b]), format!("000000220301{ones}")),
            (
                Frame::Verdicts(vec![
                    (b, Verdict::Want),
                    (b, Verdict::Working),
                    (b, Verdict::Taken),
                    (b, Verdict::Refused("no".into())),
                    (b, Verdict::Deferred("later".into())),
                ]),
                format!("000000b00405{ones}00{ones}01{ones}02{ones}04026e6f{ones}05056c61746572"),
            ),
            (
                Frame::Verdicts(vec![(b, Verdict::Settled(Box::new(receipt())))]),
                format!("000000c30401{ones}03{receipt_hex}"),
            ),
            (
                Frame::Offer(Box::new(offer)),
                format!("0000004c0503aaaaaa{}000201020068{}", "04".repeat(64), "69"),
            ),
            (
                Frame::Receipts(vec![receipt()]),
                format!("000000a20601{receipt_hex}"),
            ),
            (
                Frame::Members(vec![told()]),
                format!("0000002f0701{told_hex}"),
            ),
            (
                Frame::Range(range),
                format!("0000002608{ones}02{}08", "808040"),
            ),
            (
                Frame::Owed(vec![BundleId([1; 32])]),
                format!("000000220901{ones}"),
            ),
            (
                Frame::Withdrawn(vec![BundleId([1; 32])]),
                format!("000000220a01{ones}"),
            ),
            (
                Frame::Cancels(vec![Cancel {
                    bundle: b,
                    origin: PeerId::from_bytes([2; 32]),
                    reason: CancelReason::Expired,
                    scope: Scope::Ids(vec![PeerId::from_bytes([3; 32])]),
                    lifetime_secs: 300,
                    signature: Signature([4; 64]),
                }]),
                format!(
                    "000000a71001{ones}{twos}010101{threes}ac02{}",
                    "04".repeat(64)
                ),
            ),
            (Frame::CancelsSeen(vec![b]), format!("000000221101{ones}")),
            (
                Frame::Have(Have {
                    bundle: b,
                    whole: false,
                    entries: vec![(3, vec![0x81, 2])],
                }),
                format!("0000002720{ones}0001030281{}", "02"),
            ),
            (
                Frame::Gone(vec![BundleId([1; 32])]),
                format!("000000222101{ones}"),
            ),
        ]
    }

    #[test]
    fn every_message_has_its_golden_bytes_and_reads_back() {
        for (frame, golden) in samples() {
            let bytes = frame.to_bytes();
            assert_eq!(data_encoding::HEXLOWER.encode(&bytes), golden, "{frame:?}");
            let mut decoder = Decoder::new(FRAME_MAX);
            decoder.push(&bytes);
            assert_eq!(decoder.next_frame(), Ok(Some((frame, bytes.len() - 4))));
            assert_eq!(decoder.next_frame(), Ok(None));
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
        let mut decoder = Decoder::new(PREFACE_MAX);
        decoder.push(&u32::MAX.to_be_bytes());
        let error = WireError::TooLong {
            len: u32::MAX as usize,
            limit: PREFACE_MAX,
        };
        assert_eq!(decoder.next_frame(), Err(error));
        assert!(decoder.buffer.capacity() < 1024);
    }

    #[test]
    fn an_unknown_kind_and_unknown_fields_at_the_end_are_skipped() {
        let mut decoder = Decoder::new(FRAME_MAX);
        decoder.push(&[0, 0, 0, 3, 200, 1, 2]);
        let pending = Frame::Pending(vec![BundleId([1; 32])]);
        let mut longer = BytesMut::from(&pending.to_bytes()[..]);
        longer.put_slice(b"new field");
        let len = longer.len() as u32 - 4;
        longer[..4].copy_from_slice(&len.to_be_bytes());
        decoder.push(&longer);
        assert_eq!(decoder.next_frame(), Ok(Some((pending, len as usize))));
    }

    #[test]
    fn lists_are_limited_and_an_empty_frame_is_an_error() {
        let frame = Frame::Pending(vec![BundleId([1; 32]); LIST_MAX + 1]);
        let error = WireError::Body {
            kind: kind::PENDING,
        };
        assert_eq!(Frame::decode(frame.to_bytes().slice(4..)), Err(error));
        assert_eq!(Frame::decode(Bytes::new()), Err(WireError::Empty));
    }

    #[test]
    fn an_offer_that_claims_more_content_than_it_has_is_refused() {
        let offer = Offer {
            age: 0,
            signed: SignedManifest {
                bytes: vec![1],
                signature: Signature([4; 64]),
            },
            inline: vec![Some(Bytes::from_static(b"hello"))],
        };
        let bytes = Frame::Offer(Box::new(offer)).to_bytes();
        let cut = bytes.slice(4..bytes.len() - 1);
        assert_eq!(
            Frame::decode(cut),
            Err(WireError::Body { kind: kind::OFFER })
        );
    }

    #[test]
    fn a_peers_words_are_made_short_and_plain() {
        let text = format!("a\n\x1b[31m{}", "x".repeat(500));
        assert_eq!(reason(&text).chars().count(), REASON_MAX);
        assert!(!reason(&text).contains(char::is_control));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(kind in 0u8..40, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut body = vec![kind];
            body.extend(&bytes);
            Frame::decode(body.into()).ok();
            let mut decoder = Decoder::new(300);
            for piece in bytes.chunks(7) {
                decoder.push(piece);
                if decoder.next_frame().is_err() {
                    break;
                }
            }
        }

        #[test]
        fn any_cut_of_the_stream_gives_the_same_frames(cut in 1usize..50) {
            let mut bytes = BytesMut::new();
            let frames: Vec<Frame> = samples().into_iter().map(|s| s.0).collect();
            frames.iter().for_each(|f| f.encode(&mut bytes));
            let mut decoder = Decoder::new(FRAME_MAX);
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some((frame, _)) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
        }
    }
}
