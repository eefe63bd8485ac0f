//! Offers that are passed over: for which there is no memory, or which come too slowly while others want it.
//!
//! Of such a frame nothing is kept but the id of the bundle, so that the answer can name it: the manifest comes first in
//! an offer, and its hash is the id.

use bytes::{Buf, BytesMut};
use sha2::{Digest as _, Sha256};

use super::limit::Head;
use crate::bundle::BundleId;

/// An offer that is read over.
#[derive(Debug)]
pub(in crate::mesh) struct Passed {
    /// Bytes of the frame to come, with its length and kind.
    left: usize,
    at: At,
    sha: Sha256,
}

/// What comes next.
#[derive(Debug)]
enum At {
    /// Length and kind.
    Head(usize),
    /// How long the manifest is, as postcard writes numbers; what is known of it.
    Len { len: usize, bits: u32 },
    /// So many bytes of the manifest.
    Manifest(usize),
    /// What does not matter.
    Rest,
}

impl Passed {
    pub(in crate::mesh) fn new(head: Head) -> Self {
        Self {
            left: 4 + head.len,
            at: At::Head(5),
            sha: Sha256::new(),
        }
    }

    /// Takes what is here of it; the id when all of it was.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Option<BundleId> {
        while self.left > 0 && !buffer.is_empty() {
            let here = buffer.len().min(self.left);
            let taken = match &mut self.at {
                At::Head(left) => {
                    let taken = here.min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.at = At::Len { len: 0, bits: 0 };
                    }
                    taken
                }
                At::Len { len, bits } => {
                    let byte = buffer[0];
                    *len |= usize::from(byte & 0x7f)
                        .checked_shl(*bits)
                        .unwrap_or_default();
                    *bits += 7;
                    if byte < 0x80 {
                        self.at = At::Manifest(*len);
                    }
                    1
                }
                At::Manifest(left) => {
                    let taken = here.min(*left);
                    self.sha.update(&buffer[..taken]);
                    *left -= taken;
                    if *left == 0 {
                        self.at = At::Rest;
                    }
                    taken
                }
                At::Rest => here,
            };
            buffer.advance(taken);
            self.left -= taken;
        }
        (self.left == 0).then(|| BundleId(self.sha.clone().finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, FRAME_MAX, Frame, Offer, PROTOCOL};
    use super::*;
    use crate::bundle::SignedManifest;
    use crate::peer::Signature;

    #[test]
    fn an_offer_that_is_passed_over_is_known_by_its_id_however_it_is_cut() {
        for len in [0, 1, 127, 128, 70_000] {
            let signed = SignedManifest {
                bytes: (0..len).map(|n| (n * 7 % 251) as u8).collect(),
                signature: Signature([4; 64]),
            };
            let id = signed.id();
            let inline = vec![None, Some(bytes::Bytes::from(vec![1; 100]))];
            let age = PROTOCOL.into();
            let offer = Frame::Offer(Box::new(Offer {
                age,
                signed,
                inline,
            }));
            let after = Frame::Unknown(vec![id]);
            let bytes = [offer.to_bytes(), after.to_bytes()].concat();
            for cut in [1, 6, 1000, bytes.len()] {
                let mut decoder = Decoder::new(FRAME_MAX);
                let (mut passed, mut found) = (None, None);
                for piece in bytes.chunks(cut) {
                    decoder.push(piece);
                    if passed.is_none() && found.is_none() {
                        passed = decoder.head().unwrap().map(Passed::new);
                    }
                    if let Some(passing) = &mut passed {
                        found = decoder.pass_over(passing);
                        if found.is_some() {
                            passed = None;
                        }
                    }
                }
                assert_eq!(found, Some(id), "{len} in pieces of {cut}");
                assert_eq!(decoder.next_frame().unwrap().unwrap().0, after);
            }
        }
    }

    #[test]
    fn nonsense_is_passed_over_too() {
        let mut bytes = vec![0, 0, 0, 30, 5];
        bytes.resize(34, 0xff);
        let mut decoder = Decoder::new(FRAME_MAX);
        decoder.push(&bytes);
        let head = decoder.head().unwrap().unwrap();
        let mut passed = Passed::new(head);
        assert!(decoder.pass_over(&mut passed).is_some());
        assert_eq!(decoder.buffered(), 0);
    }
}
