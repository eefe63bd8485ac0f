//! The kinds of frames, and the sizes that hold for all of them.
//!
//! A number is never used again for another kind.

use crate::bundle::{MANIFEST_MAX, MAX_ENTRIES};

pub(in crate::mesh) const PROOF: u8 = 1;
pub(in crate::mesh) const HELLO: u8 = 2;
pub(in crate::mesh) const PENDING: u8 = 3;
pub(in crate::mesh) const VERDICTS: u8 = 4;
pub(in crate::mesh) const OFFER: u8 = 5;
pub(in crate::mesh) const RECEIPTS: u8 = 6;
pub(in crate::mesh) const MEMBERS: u8 = 7;
pub(in crate::mesh) const RANGE: u8 = 8;
pub(in crate::mesh) const OWED: u8 = 9;
pub(in crate::mesh) const WITHDRAWN: u8 = 10;
pub(in crate::mesh) const CANCELS: u8 = 16;
pub(in crate::mesh) const CANCELS_SEEN: u8 = 17;
pub(in crate::mesh) const HAVE: u8 = 32;
pub(in crate::mesh) const GONE: u8 = 33;
pub(in crate::mesh) const CLOSED: u8 = 20;
pub(in crate::mesh) const OPEN: u8 = 21;
pub(in crate::mesh) const UNKNOWN: u8 = 22;
pub(in crate::mesh) const TWIN: u8 = 23;

pub(in crate::mesh) const STATEMENTS: u8 = 24;
pub(in crate::mesh) const ROLL: u8 = 25;
pub(in crate::mesh) const REDEEM: u8 = 27;
pub(in crate::mesh) const WELCOME: u8 = 28;
pub(in crate::mesh) const DENIED: u8 = 29;

/// Longest frame of somebody who has not proved membership.
pub(in crate::mesh) const PREFACE_MAX: usize = 64;

/// Longest hello.
pub(in crate::mesh) const HELLO_MAX: usize = 1024 * 1024;

/// Longest frame: the longest manifest, [`INLINE_TOTAL`] of content, and how long each piece of it is.
pub(in crate::mesh) const FRAME_MAX: usize = MANIFEST_MAX + INLINE_TOTAL + 4 * MAX_ENTRIES + 1024;

/// Most content bytes in one offer; what does not fit is fetched.
pub(in crate::mesh) const INLINE_TOTAL: usize = 1024 * 1024;

/// The buffer is made anew after a longer frame.
pub(super) const KEPT_BUFFER: usize = 64 * 1024;
