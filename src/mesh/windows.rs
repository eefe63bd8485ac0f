//! Windows: what the transport may hold of what a peer sent and we have not read, and of what it has not acknowledged.
//!
//! Before the proof of membership a connection has room for a proof and no more ([`BEFORE_PROOF`]). After it the room of
//! all connections is divided: each gets a part by how many there are when it is opened, so that a few have what long
//! and fast links need, and many do not add up. An honest peer's bytes are read at once and its window is a promise only;
//! this bounds what one can make us hold that sends what nobody asked for, or acknowledges nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use iroh::endpoint::{Connection, VarInt};

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// Unread bytes of a connection before the proof.
pub(super) const BEFORE_PROOF: u32 = 64 * KIB;

/// Streams that the other end may open before the proof: the one for it.
pub(super) const STREAMS_BEFORE_PROOF: u32 = 1;

/// Streams that a peer may have open at once on a bulk connection.
const STREAMS: u32 = 64;

/// A room that connections share: all of it, and the least and most that one gets.
struct Room {
    all: u32,
    least: u32,
    most: u32,
}

impl Room {
    fn part(&self, connections: u32) -> u32 {
        (self.all / connections.max(1)).clamp(self.least, self.most)
    }
}

/// Unread bytes of control connections. More than a stream's window of 1.25 MB has no effect.
const CONTROL: Room = Room {
    all: 8 * MIB,
    least: 128 * KIB,
    most: MIB + 256 * KIB,
};

/// Unread bytes of all streams of bulk connections: for a few, enough for 100 Mbit/s at 300 ms. Windows of single streams
/// stay at their default of 1.25 MB: above 2 MiB a slow reader makes noq 1.4.0 close the connection.
const BULK: Room = Room {
    all: 16 * MIB,
    least: 256 * KIB,
    most: 4 * MIB,
};

/// Sent and not acknowledged, or waiting for it, of any connection: for a few, enough for 100 Mbit/s at 300 ms. It cannot
/// be called back when something more urgent comes, so it is not more.
const UNACKNOWLEDGED: Room = Room {
    all: 32 * MIB,
    least: 256 * KIB,
    most: 4 * MIB,
};

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carries {
    Control,
    Bulk,
}

/// How many connections there are.
#[derive(Debug, Default)]
pub(super) struct Windows {
    control: AtomicU32,
    bulk: AtomicU32,
}

impl Windows {
    fn count(&self, carries: Carries) -> &AtomicU32 {
        match carries {
            Carries::Control => &self.control,
            Carries::Bulk => &self.bulk,
        }
    }

    /// Opens the windows of a connection whose other end has proved membership. Its part is free again when what is
    /// returned is dropped.
    pub(super) fn open(&self, conn: &Connection, carries: Carries) -> Open<'_> {
        let before = self.count(carries).fetch_add(1, Ordering::Relaxed);
        let part = match carries {
            Carries::Control => CONTROL.part(before + 1),
            Carries::Bulk => {
                conn.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS));
                BULK.part(before + 1)
            }
        };
        conn.set_receive_window(VarInt::from_u32(part));
        Open {
            windows: self,
            carries,
        }
    }

    /// What a new connection may have unacknowledged.
    pub(super) fn unacknowledged(&self) -> u64 {
        let count = |carries| self.count(carries).load(Ordering::Relaxed);
        let there = count(Carries::Control) + count(Carries::Bulk);
        UNACKNOWLEDGED.part(there + 1).into()
    }
}

/// A connection that has its part.
pub(super) struct Open<'a> {
    windows: &'a Windows,
    carries: Carries,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let count = self.windows.count(self.carries);
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_connections_get_what_long_links_need_and_many_do_not_add_up() {
        let long_link = 100_000_000 / 8 * 3 / 10;
        for few in 1..=4 {
            assert!(BULK.part(few) >= long_link && UNACKNOWLEDGED.part(2 * few) >= long_link);
        }
        for room in [CONTROL, BULK, UNACKNOWLEDGED] {
            let sum: u32 = (1..=60).map(|n| room.part(n)).sum();
            assert!(sum < 4 * room.all, "{sum}");
            assert_eq!(room.part(10_000), room.least);
        }
    }
}
