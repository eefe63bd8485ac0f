//! How long a frame of each kind may be, and what dealing with it takes.
//!
//! A limit covers the longest frame that an encoder makes, with room for fields that later versions add. What has lists of
//! long things is split by bytes where it is made.

use serde::Serialize;

use super::member::kind as on_members;
use super::{FRAME_MAX, HELLO_MAX, LIST_MAX, PREFACE_MAX, kind};
use crate::encoding;
use crate::mesh::limits::Kind;

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
        kind::PROOF | kind::RANGE | kind::TWIN | on_members::REDEEM | on_members::ROLL => {
            PREFACE_MAX
        }
        kind::PENDING
        | kind::OWED
        | kind::WITHDRAWN
        | kind::CANCELS_SEEN
        | kind::GONE
        | kind::CLOSED
        | kind::OPEN
        | kind::UNKNOWN
        | on_members::WELCOME
        | on_members::DENIED => IDS,
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
            kind::MEMBERS | on_members::STATEMENTS | on_members::ROLL => Some(Kind::Announcement),
            _ => None,
        }
    }

    /// The memory it takes until it is dealt with: the frame, what is made of it, and the answer.
    pub(in crate::mesh) fn weight(self) -> usize {
        let weight = match self.kind {
            kind::PENDING | kind::OWED | kind::OPEN => self.len * (1 + ANSWER),
            // The frame goes as soon as it is read; the manifest is weighed then.
            kind::OFFER => self.len + self.len.min(super::KEPT_BUFFER),
            _ => self.len * 2,
        };
        weight.max(WEIGHT_MIN)
    }
}
