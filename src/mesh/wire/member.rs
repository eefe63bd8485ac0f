//! Frames on who belongs to the group: numbers 24 to 31.

use bytes::{BufMut, BytesMut};

use super::body::{WireError, list, put, take};
use super::kind;
use crate::protocol::frame::MemberFrame;

impl MemberFrame {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Statements(list) => put(out, kind::STATEMENTS, list),
            Self::Roll(digest) => put(out, kind::ROLL, digest),
            Self::Redeem { name, mac } => {
                out.put_u8(kind::REDEEM);
                out.put_slice(name);
                out.put_slice(mac);
            }
            Self::Welcome(welcome) => put(out, kind::WELCOME, welcome),
            Self::Denied(why) => put(out, kind::DENIED, why),
        }
    }

    /// `None` for a kind that is none of these.
    pub(super) fn decode(kind: u8, body: &[u8]) -> Result<Option<Self>, WireError> {
        Ok(Some(match kind {
            kind::STATEMENTS => Self::Statements(list(kind, body)?),
            kind::ROLL => Self::Roll(take(kind, body)?),
            kind::REDEEM => {
                let (name, rest) = body.split_first_chunk().ok_or(WireError::Body { kind })?;
                let (mac, _) = rest.split_first_chunk().ok_or(WireError::Body { kind })?;
                Self::Redeem {
                    name: *name,
                    mac: *mac,
                }
            }
            kind::WELCOME => Self::Welcome(take(kind, body)?),
            kind::DENIED => Self::Denied(take(kind, body)?),
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Frame, PREFACE_MAX};
    use super::*;
    use crate::peer::invitation::{Denied, Welcome};
    use crate::peer::roll::{Statement, What};
    use crate::peer::{Charter, GroupKey, Identity, PeerId};

    #[test]
    fn frames_read_back_and_cut_ones_do_not() {
        let (key, admin) = (GroupKey::generate(), Identity::generate());
        let charter = Charter::of(&key, admin.id());
        let removed = What::Removed {
            id: PeerId::from_bytes([7; 32]),
            generation: 3,
        };
        let statement = Statement {
            group: charter.root,
            by: admin.id(),
            what: removed,
        };
        let redeem = MemberFrame::Redeem {
            name: [1; 16],
            mac: [2; 32],
        };
        assert!(Frame::Member(redeem.clone()).to_bytes().len() <= PREFACE_MAX);
        let all = [
            MemberFrame::Statements(vec![statement.sign(&admin)]),
            MemberFrame::Roll([9; 32]),
            redeem,
            MemberFrame::Welcome(Welcome {
                key,
                charter: Some(charter),
                generation: 4,
            }),
            MemberFrame::Denied(Denied::Used),
        ];
        for frame in all.map(Frame::Member) {
            let bytes = frame.to_bytes().slice(4..);
            assert_eq!(Frame::decode(bytes.clone()), Ok(Some(frame.clone())));
            for len in 1..bytes.len() {
                assert!(
                    Frame::decode(bytes.slice(..len)).is_err(),
                    "{frame:?} cut at {len}"
                );
            }
        }
    }
}
