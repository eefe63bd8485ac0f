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

use crate::mesh::member::CloseCode;
use crate::mesh::wire::Frame;

/// Bytes waiting to be sent, beyond which the peer is not reading: twice all offers of a full window.
const OUTBOUND_MAX: usize = 48 * 1024 * 1024;

/// With more than this unsent no further offer is built: a bundle of many files may be large.
const OUTBOUND_ROOM: usize = 8 * 1024 * 1024;

/// How long an offer waits for that. A peer that reads nothing for so long is found out by other means.
const ROOM_PATIENCE: Duration = Duration::from_secs(30);

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
}

impl Unsent {
    fn len(&self) -> usize {
        self.urgent.len() + self.rest.len()
    }

    fn push(&mut self, frame: &Frame, urgent: bool) {
        if urgent {
            frame.encode(&mut self.urgent);
        } else {
            frame.encode(&mut self.rest);
            self.ends.push_back(self.taken + self.rest.len() as u64);
        }
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
        self.rest.split_to(len).freeze()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The way to the writer.
#[derive(Clone)]
pub(crate) struct Out(Arc<(Mutex<Unsent>, Notify, Connection, Condvar)>);

impl Out {
    /// With nothing to say yet.
    pub(super) fn new(conn: Connection) -> Self {
        let unsent = Mutex::default();
        Self(Arc::new((unsent, Notify::new(), conn, Condvar::new())))
    }

    /// The connection.
    pub(super) fn conn(&self) -> &Connection {
        &self.0.2
    }

    /// Queues a frame; the writer sends all that is queued at once.
    pub(super) fn push(&self, frame: &Frame) {
        self.push_as(frame, false);
    }

    /// Queues a frame; an urgent one goes before all that is not.
    pub(super) fn push_as(&self, frame: &Frame, urgent: bool) {
        let (buffer, bell, conn, _) = &*self.0;
        let mut buffer = buffer.lock();
        if buffer.len() > OUTBOUND_MAX {
            buffer.clear();
            conn.close(CloseCode::Protocol.code(), b"not reading");
            return;
        }
        buffer.push(frame, urgent);
        drop(buffer);
        bell.notify_one();
    }

    /// Waits until little is unsent. Blocks.
    pub(super) fn wait_room(&self) {
        let (buffer, _, conn, room) = &*self.0;
        let until = std::time::Instant::now() + ROOM_PATIENCE;
        let mut buffer = buffer.lock();
        while buffer.len() > OUTBOUND_ROOM && conn.close_reason().is_none() {
            if room.wait_until(&mut buffer, until).timed_out() {
                break;
            }
        }
    }

    pub(super) async fn write(self, mut send: SendStream) {
        let (buffer, bell, _, room) = &*self.0;
        loop {
            let bytes = buffer.lock().next();
            room.notify_all();
            if bytes.is_empty() {
                bell.notified().await;
            } else if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

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
            unsent.push(&frame(n, 250), false);
        }
        let first = unsent.next();
        assert!(first.len() <= SLICE && first.len() > SLICE / 2);
        unsent.push(&frame(255, 1), true);
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
        unsent.push(&frame(1, 2 * SLICE / 32), false);
        unsent.push(&frame(2, 1), false);
        assert!(unsent.next().len() > SLICE);
        assert!(!unsent.next().is_empty() && unsent.next().is_empty());
    }
}
