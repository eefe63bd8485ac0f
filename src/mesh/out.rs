//! What a session has to say, on its way to the control stream: bounded, and urgent offers before all else.
//!
//! Whoever puts frames here never waits for the network. The writer takes all that is urgent, else whole frames up to
//! [`SLICE`], so that something urgent waits behind no more than that and what the stream itself holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, SendStream};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::mesh::budget::Held;
use crate::mesh::member::CloseCode;
use crate::mesh::wire::{FRAME_MAX, Frame, longest};

/// Bytes waiting to be sent, beyond which the peer is not reading: an offer of the greatest length, and answers.
const OUTBOUND_MAX: usize = FRAME_MAX + 4 * 1024 * 1024;

/// With more than this unsent no further offer is built, and nothing more is read that may have to be answered.
const OUTBOUND_ROOM: usize = 1024 * 1024;

/// A peer that takes no [`SLICE`] for so long is not reading.
const PATIENCE: Duration = Duration::from_secs(120);

/// Written at once while more waits: what is urgent goes in between, and no more than this is before it.
const SLICE: usize = 256 * 1024;

/// Bytes on their way to the writer: urgent frames, and the others in order.
#[derive(Default)]
struct Unsent {
    urgent: BytesMut,
    rest: BytesMut,
    /// Where frames end in `rest`, counted from the first byte ever put there.
    ends: VecDeque<u64>,
    taken: u64,
    /// Room that is held for what is in `rest` until that byte.
    held: VecDeque<(u64, Held)>,
}

impl Unsent {
    fn len(&self) -> usize {
        self.urgent.len() + self.rest.len()
    }

    /// `false`: it is longer than any receiver takes, and not sent.
    fn push(&mut self, frame: &Frame, urgent: bool) -> bool {
        let buffer = if urgent {
            &mut self.urgent
        } else {
            &mut self.rest
        };
        let start = buffer.len();
        frame.encode(buffer);
        let len = buffer.len() - start - 4;
        if len > longest(buffer[start + 4]) {
            buffer.truncate(start);
            return false;
        }
        if !urgent {
            self.ends.push_back(self.taken + self.rest.len() as u64);
        }
        true
    }

    /// What to write next: all that is urgent, else whole frames up to [`SLICE`], one at least.
    fn next(&mut self) -> Bytes {
        if !self.urgent.is_empty() {
            return self.urgent.split().freeze();
        }
        let mut end = self.taken;
        while let Some(next) = self.ends.front().copied() {
            if end > self.taken && next - self.taken > SLICE as u64 {
                break;
            }
            end = next;
            self.ends.pop_front();
        }
        let len = (end - self.taken) as usize;
        self.taken = end;
        let next = self.rest.split_to(len).freeze();
        if self.rest.is_empty() {
            // Else it would keep the memory of what was sent.
            self.rest = BytesMut::new();
        }
        next
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The way to the writer.
#[derive(Clone)]
pub(crate) struct Out(Arc<Inner>);

struct Inner {
    unsent: Mutex<Unsent>,
    /// Rung for the writer.
    bell: Notify,
    conn: Connection,
    /// Rung when something was sent: for threads, and for tasks.
    sent: Condvar,
    room: Notify,
}

impl Out {
    /// With nothing to say yet.
    pub(super) fn new(conn: Connection) -> Self {
        Self(Arc::new(Inner {
            unsent: Mutex::default(),
            bell: Notify::new(),
            conn,
            sent: Condvar::new(),
            room: Notify::new(),
        }))
    }

    /// The connection.
    pub(super) fn conn(&self) -> &Connection {
        &self.0.conn
    }

    /// Queues a frame; the writer sends all that is queued at once.
    pub(super) fn push(&self, frame: &Frame) {
        self.push_held(frame, false, None);
    }

    /// Queues a frame; an urgent one goes before all that is not. `held` is given back when it is sent.
    pub(super) fn push_held(&self, frame: &Frame, urgent: bool, held: Option<Held>) {
        let Inner {
            unsent, bell, conn, ..
        } = &*self.0;
        let mut buffer = unsent.lock();
        if buffer.len() > OUTBOUND_MAX {
            buffer.clear();
            conn.close(CloseCode::Protocol.code(), b"not reading");
            return;
        }
        if !buffer.push(frame, urgent) {
            tracing::error!("a frame that nobody would take is not sent");
            return;
        }
        if let Some(held) = held {
            let end = buffer.taken + buffer.rest.len() as u64;
            buffer.held.push_back((end, held));
        }
        drop(buffer);
        bell.notify_one();
    }

    /// Waits until little is unsent, or the connection has ended. Blocks.
    pub(super) fn wait_room(&self) {
        let Inner {
            unsent, sent, conn, ..
        } = &*self.0;
        let mut buffer = unsent.lock();
        while buffer.len() > OUTBOUND_ROOM && conn.close_reason().is_none() {
            // Looks again by itself, for the end of the connection rings nothing.
            sent.wait_for(&mut buffer, LOOK);
        }
    }

    /// Waits until little is unsent.
    pub(super) async fn room(&self) {
        loop {
            let sent = self.0.room.notified();
            if self.0.unsent.lock().len() <= OUTBOUND_ROOM {
                return;
            }
            sent.await;
        }
    }

    pub(super) async fn write(self, mut send: SendStream) {
        let inner = &*self.0;
        loop {
            let mut bytes = inner.unsent.lock().next();
            inner.sent.notify_all();
            inner.room.notify_waiters();
            if bytes.is_empty() {
                inner.bell.notified().await;
            }
            while !bytes.is_empty() {
                let slice = bytes.split_to(bytes.len().min(SLICE));
                match timeout(PATIENCE, send.write_chunk(slice)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        let code = CloseCode::Protocol.code();
                        inner.conn.close(code, b"not reading");
                        return;
                    }
                }
            }
            let mut buffer = inner.unsent.lock();
            while buffer
                .held
                .front()
                .is_some_and(|(end, _)| *end <= buffer.taken)
            {
                buffer.held.pop_front();
            }
        }
    }
}

/// How often a thread that waits for room looks whether the connection has ended.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::BundleId;
    use crate::mesh::wire::Decoder;

    fn frame(n: u8, ids: usize) -> Frame {
        Frame::Owed(vec![BundleId([n; 32]); ids])
    }

    #[test]
    fn urgent_frames_overtake_at_the_end_of_a_frame_and_nothing_is_cut_or_lost() {
        let mut unsent = Unsent::default();
        assert!(unsent.next().is_empty());
        for n in 0..200 {
            assert!(unsent.push(&frame(n, 250), false));
        }
        let first = unsent.next();
        assert!(first.len() <= SLICE && first.len() > SLICE / 2);
        assert!(unsent.push(&frame(255, 1), true));
        let second = unsent.next();
        let mut decoder = Decoder::new(100_000);
        decoder.push(&first);
        let mut heard = Vec::new();
        while let Ok(Some((frame, _))) = decoder.next_frame() {
            heard.push(frame);
        }
        decoder.push(&second);
        assert_eq!(decoder.next_frame().unwrap().unwrap().0, frame(255, 1));
        while unsent.len() > 0 {
            decoder.push(&unsent.next());
        }
        while let Ok(Some((frame, _))) = decoder.next_frame() {
            heard.push(frame);
        }
        let all: Vec<Frame> = (0..200).map(|n| frame(n, 250)).collect();
        assert!(heard == all);
        assert!(unsent.ends.is_empty());
    }

    #[test]
    fn a_frame_longer_than_a_slice_goes_whole() {
        let mut unsent = Unsent::default();
        let signed = crate::bundle::SignedManifest {
            bytes: vec![7; 2 * SLICE],
            signature: crate::peer::Signature([1; 64]),
        };
        let inline = Vec::new();
        let long = Frame::Offer(Box::new(crate::mesh::wire::Offer {
            age: 0,
            signed,
            inline,
        }));
        assert!(unsent.push(&long, false) && unsent.push(&frame(2, 1), false));
        assert!(unsent.next().len() > SLICE);
        assert!(!unsent.next().is_empty() && unsent.next().is_empty());
    }

    #[test]
    fn what_no_receiver_takes_is_not_sent_and_the_rest_is() {
        for urgent in [false, true] {
            let mut unsent = Unsent::default();
            assert!(unsent.push(&frame(1, 1), urgent));
            assert!(!unsent.push(&frame(2, 10_000), urgent));
            assert!(unsent.push(&frame(3, 1), urgent));
            let mut decoder = Decoder::new(100_000);
            while unsent.len() > 0 {
                decoder.push(&unsent.next());
            }
            assert_eq!(decoder.next_frame().unwrap().unwrap().0, frame(1, 1));
            assert_eq!(decoder.next_frame().unwrap().unwrap().0, frame(3, 1));
        }
    }
}
