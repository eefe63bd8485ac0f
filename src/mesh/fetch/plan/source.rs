//! One source of a fetch: what it has, what it was asked for, and how much may be asked of it at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::digest::LEAF;

/// Beyond what fills the path twice, what is asked of a source only waits there, and would wait in front of smaller
/// bundles. This much more, for the holder's disk and our own delays.
const SLACK: Duration = Duration::from_millis(10);

/// Pieces asked of one source at once, at least, unless it is slow or not known; and at most (small files).
const DEPTH_MIN: usize = 2;
const DEPTH_MAX: usize = 32;

/// A source that takes so long for what it is asked for, in time and in round trips, is asked for more only when that is
/// nearly here: it serves all that it is asked for at once, so what waits there takes a share of its other bundles'.
const SLOW: (f64, f64) = (0.25, 5.0);

/// A source that is not known yet is asked for so much, or one piece; when so much is here, that shows how quick it is.
const SHOWS: u64 = 256 * 1024;

/// Bytes asked of one source at once, unless a single piece has more: a path of 300 ms at 100 Mbit/s and more.
const DEPTH_BYTES: u64 = 8 * 1024 * 1024;

/// One chunk to ask for. A manifest may list a quarter of a million.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::mesh::fetch) struct Piece {
    /// Index of the entry in the manifest.
    pub entry: u32,
    /// Number of the chunk in it.
    pub index: u32,
    /// Number of the chunk in the bundle.
    pub place: u32,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Piece {
    /// How much of it is in memory at once, at most: of a longer one a leaf that comes and one that is written.
    pub(in crate::mesh::fetch) fn held(&self) -> u64 {
        self.len.min(2 * LEAF)
    }
}

/// Which chunks of an entry somebody has: one bit each, lowest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Bits(pub(crate) Vec<u8>);

impl Bits {
    /// Whether the chunk is there.
    pub(crate) fn has(&self, index: u64) -> bool {
        self.0
            .get((index / 8) as usize)
            .is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    /// Notes a chunk.
    pub(crate) fn set(&mut self, index: u64) {
        let at = (index / 8) as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] |= 1 << (index % 8);
    }
}

/// What a source is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    since: Duration,
    /// What it had given before, of pieces that were not whole too.
    before: u64,
    /// Bytes that came of it.
    came: u64,
    /// Nothing else was on its way: the question took time in which nothing came.
    first: bool,
}

/// A source, and what it was asked for.
pub(super) struct Source {
    pub(super) origin: bool,
    pub(super) whole: bool,
    pub(super) has: HashMap<usize, Bits>,
    pub(super) lacks: HashSet<usize>,
    pub(super) open: BTreeMap<usize, Open>,
    pub(super) open_bytes: u64,
    pub(super) delivered: u64,
    /// Bytes in a second: the best of late, slowly forgotten.
    pub(super) rate: f64,
    /// The same of the last piece.
    pub(super) latest: f64,
    pub(super) rtt: Duration,
    /// It stalled, and has delivered nothing since.
    pub(super) doubtful: bool,
    pub(super) heard: Duration,
    /// Not asked before.
    pub(super) rests: Duration,
    /// What a piece takes, smoothed.
    pub(super) typical: Duration,
    pub(super) up: bool,
    pub(super) banned: bool,
    pub(super) losses: u32,
}

impl Source {
    pub(super) fn new(origin: bool, now: Duration) -> Self {
        Self {
            origin,
            whole: false,
            has: HashMap::new(),
            lacks: HashSet::new(),
            open: BTreeMap::new(),
            open_bytes: 0,
            delivered: 0,
            rate: 0.0,
            latest: 0.0,
            rtt: Duration::ZERO,
            doubtful: false,
            heard: now,
            rests: Duration::ZERO,
            typical: Duration::ZERO,
            up: true,
            banned: false,
            losses: 0,
        }
    }

    pub(super) fn usable(&self) -> bool {
        self.up && !self.banned
    }

    pub(super) fn has(&self, number: usize, piece: &Piece) -> bool {
        let told = || {
            self.has
                .get(&(piece.entry as usize))
                .is_some_and(|b| b.has(piece.index.into()))
        };
        (self.whole || told()) && !self.lacks.contains(&number)
    }

    pub(super) fn has_room(&self, now: Duration) -> bool {
        let (open, bytes) = (self.open.len(), self.open_bytes);
        let room = if open == 0 {
            true
        } else if self.doubtful || open >= DEPTH_MAX || bytes >= DEPTH_BYTES {
            false
        } else {
            let busy = bytes as f64 / self.rate;
            let slow = busy > SLOW.0.max(SLOW.1 * self.rtt.as_secs_f64());
            (open < DEPTH_MIN && !slow) || bytes - self.came() < self.fills(now)
        };
        self.usable() && now >= self.rests && room
    }

    /// How quick it is, if that is known or the first that it is asked for shows it.
    fn pace(&self, now: Duration) -> Option<f64> {
        if self.rate > 0.0 {
            return Some(self.rate);
        }
        let came = self.came();
        let since = self.open.values().map(|open| open.since).min()?;
        let took = self.without_question(now.saturating_sub(since));
        (came >= SHOWS).then(|| per_second(came, took))
    }

    fn without_question(&self, took: Duration) -> Duration {
        took.saturating_sub(self.rtt).max(took / 4)
    }

    fn came(&self) -> u64 {
        self.open.values().map(|open| open.came).sum()
    }

    /// What fills the path twice.
    pub(super) fn fills(&self, now: Duration) -> u64 {
        let twice = (self.rtt * 2 + SLACK).as_secs_f64();
        self.pace(now).map_or(SHOWS, |pace| (pace * twice) as u64)
    }

    /// It may be asked for more when so much is left of a piece of that length that it is asked for now.
    pub(super) fn nearly(&self, len: u64, now: Duration) -> u64 {
        match self.pace(now) {
            Some(_) => self.fills(now).min(len / 2),
            None => len.saturating_sub(SHOWS),
        }
    }

    /// It is asked for a piece.
    pub(super) fn asked(&mut self, number: usize, len: u64, now: Duration) {
        let open = Open {
            since: now,
            before: self.delivered + self.came(),
            came: 0,
            first: self.open.is_empty(),
        };
        self.open.insert(number, open);
        self.open_bytes += len;
    }

    /// So much of a piece is here.
    pub(super) fn comes(&mut self, number: usize, bytes: u64) {
        if let Some(open) = self.open.get_mut(&number) {
            open.came = bytes;
        }
    }

    /// A piece came.
    pub(super) fn measured(&mut self, number: usize, len: u64, now: Duration) {
        let Some(open) = self.open.get(&number).copied() else {
            return;
        };
        let took = now.saturating_sub(open.since);
        self.delivered += len;
        self.doubtful = false;
        let span = if open.first {
            self.without_question(took)
        } else {
            took
        };
        let given = self.delivered + self.came() - open.came;
        let rate = per_second(given.saturating_sub(open.before), span);
        self.latest = rate;
        self.rate = rate.max(self.rate * 0.95);
        self.typical = if self.typical.is_zero() {
            took
        } else {
            (self.typical * 3 + took) / 4
        };
    }
}

fn per_second(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.max(Duration::from_micros(1)).as_secs_f64()
}
