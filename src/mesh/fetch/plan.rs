//! The plan of one fetch: which piece is asked of which source next. Pure: events in, decisions out, time passed in.
//!
//! A piece is one chunk of one entry. A *whole* source has all of the bundle (it offered it, or says so); any other has
//! the chunks it told of. The origin is asked last for what others have, since its uplink is what all receivers share;
//! what nobody else has is asked of it in an order of our own: the receivers cut the bundle into as many slices as they
//! are, and each begins with its own.
//!
//! # Invariants
//! 1. A piece is asked of one source at a time; only at the end, when a source would be idle otherwise, of a second one.
//! 2. A source that sent wrong bytes is not asked again.
//! 3. No source idles while it has a piece that is asked of nobody, except the origin for [`PATIENCE`].
//! 4. A piece longer than a leaf is never asked of two: it is written as it comes.
//! 5. A source that is silent for [`STALL`] loses what it was asked for as soon as another one has it.

mod source;
#[cfg(test)]
mod swarm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

pub(crate) use self::source::Bits;
pub(super) use self::source::Piece;
use self::source::Source;
use crate::digest::LEAF;
use crate::peer::PeerId;

/// Silence after which a source's pieces go to another one.
pub(super) const STALL: Duration = Duration::from_secs(2);

/// Silence after which a source is given up though no other one has the piece.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(20);

/// How long a source that stalled is not asked.
const REST: Duration = Duration::from_secs(5);

/// How long a piece that others have is left to them before the origin is asked for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes asked for and not yet on disk, in all: the memory of a fetch. And pieces, which bound the streams.
const FLIGHT_BYTES: u64 = 12 * 1024 * 1024;
const FLIGHT_PIECES: usize = 48;

/// Pieces asked of two sources at once.
const TWICE_MAX: usize = 2;

/// Connections lost in a row before a source is not used any more for this fetch.
const LOSSES_MAX: u32 = 3;

/// With more pieces missing it is not counted who has them: a bundle of very many files.
const COUNTED_MAX: usize = 8192;

/// Sources of one fetch.
const SOURCES_MAX: usize = 64;

/// Where a piece stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Todo,
    /// Asked of somebody, or on its way to the disk.
    Open,
    Done,
}

struct Slot {
    piece: Piece,
    /// Since when another source than the origin has it, in milliseconds; [`NEVER`].
    told: u32,
    state: State,
    /// Handed to the disk.
    landed: bool,
}

const NEVER: u32 = u32::MAX;

impl Slot {
    fn tell(&mut self, now: Duration) {
        if self.told == NEVER {
            self.told = now.as_millis().min((NEVER - 1).into()) as u32;
        }
    }

    fn told(&self) -> Option<Duration> {
        (self.told != NEVER).then(|| Duration::from_millis(self.told.into()))
    }
}

type Asked = Vec<(PeerId, Duration)>;

/// The plan of one fetch. Pieces are named by their number in it.
pub(super) struct Plan {
    me: PeerId,
    /// Chunks of the bundle, here or not.
    places: u64,
    slots: Vec<Slot>,
    /// Of whom each piece is asked that is open, and since when.
    asked: HashMap<usize, Asked>,
    todo: BTreeSet<usize>,
    sources: BTreeMap<PeerId, Source>,
    /// Who else fetches it.
    others: BTreeSet<PeerId>,
    flight_bytes: u64,
    flight: usize,
    done: usize,
}

impl Plan {
    /// A plan for `pieces`, in order of their place among the bundle's `places` chunks.
    pub(super) fn new(me: PeerId, places: u64, pieces: Vec<Piece>) -> Self {
        let slot = |piece| Slot {
            piece,
            told: NEVER,
            state: State::Todo,
            landed: false,
        };
        Self {
            me,
            places: places.max(1),
            todo: (0..pieces.len()).collect(),
            slots: pieces.into_iter().map(slot).collect(),
            asked: HashMap::new(),
            sources: BTreeMap::new(),
            others: BTreeSet::new(),
            flight_bytes: 0,
            flight: 0,
            done: 0,
        }
    }

    /// The piece of that number.
    pub(super) fn piece(&self, number: usize) -> Piece {
        self.slots[number].piece
    }

    /// Whether nothing is missing any more.
    pub(super) fn is_complete(&self) -> bool {
        self.done == self.slots.len()
    }

    /// A connected source. `whole` is remembered once said.
    pub(super) fn source(&mut self, peer: PeerId, origin: bool, whole: bool, now: Duration) {
        if !self.sources.contains_key(&peer) && self.sources.len() >= SOURCES_MAX {
            return;
        }
        let source = self.sources.entry(peer);
        let source = source.or_insert_with(|| Source::new(origin, now));
        if !source.up {
            source.up = true;
            source.heard = now;
        }
        if whole && !source.whole {
            source.whole = true;
            if !origin {
                for slot in &mut self.slots {
                    slot.tell(now);
                }
            }
        }
    }

    /// A source says which chunks of an entry it has.
    pub(super) fn told(&mut self, peer: PeerId, entry: usize, bits: Bits, now: Duration) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        if !source.origin {
            for slot in &mut self.slots {
                if slot.piece.entry as usize == entry && bits.has(slot.piece.index.into()) {
                    slot.tell(now);
                }
            }
        }
        source.lacks.clear();
        source.has.insert(entry, bits);
    }

    /// Who else is fetching the bundle now.
    pub(super) fn others(&mut self, others: impl IntoIterator<Item = PeerId>) {
        self.others = others.into_iter().collect();
    }

    /// Bytes came from `peer`, of this bundle or another.
    pub(super) fn heard(&mut self, peer: PeerId, at: Duration) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.heard = source.heard.max(at);
        }
    }

    /// How long a word takes to `peer` and back.
    pub(super) fn far(&mut self, peer: PeerId, rtt: Duration) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.rtt = rtt;
        }
    }

    /// The sources that may be asked for something, those with the least to do first.
    pub(super) fn idle(&self, now: Duration) -> Vec<PeerId> {
        let mut idle: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, source)| source.has_room(now))
            .map(|(peer, source)| (source.origin, source.open.len(), *peer))
            .collect();
        idle.sort();
        idle.into_iter().map(|(_, _, peer)| peer).collect()
    }

    /// What to ask `peer` for now, and how long it is.
    pub(super) fn choose(&self, peer: PeerId, now: Duration) -> Option<(usize, u64)> {
        let source = self.sources.get(&peer)?;
        if !source.has_room(now) || self.flight >= FLIGHT_PIECES {
            return None;
        }
        let found = if source.origin {
            self.next_of_origin(source, now)
        } else {
            self.next_of_helper(source)
        };
        let number = found.or_else(|| self.next_twice(peer, source, now))?;
        let piece = &self.slots[number].piece;
        if self.flight > 0 && self.flight_bytes + piece.held() > FLIGHT_BYTES {
            return None;
        }
        Some((number, piece.len))
    }

    /// `peer` is asked for that piece.
    pub(super) fn ask(&mut self, number: usize, peer: PeerId, now: Duration) {
        let Some(source) = self.sources.get_mut(&peer) else {
            return;
        };
        let slot = &mut self.slots[number];
        let len = slot.piece.len;
        self.flight += 1;
        self.flight_bytes += slot.piece.held();
        self.todo.remove(&number);
        slot.state = State::Open;
        self.asked.entry(number).or_default().push((peer, now));
        if source.open.is_empty() {
            // Silence counts from the question.
            source.heard = source.heard.max(now);
        }
        source.asked(number, len, now);
    }

    /// So much of what `peer` was asked for is here.
    pub(super) fn comes(&mut self, number: usize, peer: PeerId, bytes: u64) {
        let len = self.slots[number].piece.len;
        if let Some(source) = self.sources.get_mut(&peer) {
            source.comes(number, bytes.min(len));
        }
    }

    /// When so little is left of the piece that `peer` was just asked for, it may be asked for more.
    pub(super) fn nearly(&self, number: usize, peer: PeerId, now: Duration) -> u64 {
        let len = self.slots[number].piece.len;
        let source = self.sources.get(&peer);
        source.map_or(0, |source| source.nearly(len, now))
    }

    /// How quick `peer` was with other bundles, in bytes a second.
    pub(super) fn known(&mut self, peer: PeerId, rate: f64) {
        if let Some(source) = self.sources.get_mut(&peer)
            && source.rate == 0.0
        {
            source.rate = rate;
        }
    }

    /// How quick `peer` was with its last piece, in bytes a second; 0 while that is not known.
    pub(super) fn rate(&self, peer: PeerId) -> f64 {
        self.sources.get(&peer).map_or(0.0, |source| source.latest)
    }

    /// Bytes that are neither here nor asked for.
    pub(super) fn unasked(&self) -> u64 {
        let todo = self.todo.iter();
        todo.map(|number| self.slots[*number].piece.len).sum()
    }

    /// The slices of the bundle, ours first, as numbers of pieces.
    fn slices(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut ids: Vec<PeerId> = self.others.iter().copied().collect();
        ids.push(self.me);
        ids.sort();
        ids.dedup();
        let count = ids.len() as u64;
        let rank = ids.iter().position(|id| *id == self.me).unwrap_or(0) as u64;
        (0..count).map(move |turn| {
            let slice = (rank + turn) % count;
            let at = |slice: u64| {
                let place = slice * self.places / count;
                self.slots
                    .partition_point(|s| u64::from(s.piece.place) < place)
            };
            at(slice)..at(slice + 1)
        })
    }

    fn next_of_origin(&self, source: &Source, now: Duration) -> Option<usize> {
        let had = |slot: &Slot| slot.told().is_some();
        let ours = |number: &usize| source.has(*number, &self.slots[*number].piece);
        let fresh = |number: &usize| !had(&self.slots[*number]) && ours(number);
        for (turn, slice) in self.slices().enumerate() {
            // Others go forward through their slices, so what they come to last is taken first.
            let found = if turn == 0 {
                self.todo.range(slice).copied().find(fresh)
            } else {
                self.todo.range(slice).rev().copied().find(fresh)
            };
            if found.is_some() {
                return found;
            }
        }
        let helped = |number: &usize| {
            let helper = |source: &&Source| {
                !source.origin && source.usable() && source.has(*number, &self.slots[*number].piece)
            };
            self.sources.values().any(|source| helper(&source))
        };
        let waited = |number: &usize| {
            let told = self.slots[*number].told().unwrap_or_default();
            ours(number) && (now >= told + PATIENCE || !helped(number))
        };
        self.todo.iter().copied().find(waited)
    }

    fn next_of_helper(&self, source: &Source) -> Option<usize> {
        let begin = self.slices().next().map_or(0, |slice| slice.start);
        let has = |number: &usize| source.has(*number, &self.slots[*number].piece);
        let holders = |number: usize| {
            let piece = &self.slots[number].piece;
            self.sources
                .values()
                .filter(|s| !s.origin && s.has(number, piece))
                .count()
        };
        let alone = self.sources.values().filter(|s| !s.origin).count() < 2;
        if alone || self.todo.len() > COUNTED_MAX {
            let (before, after) = (self.todo.range(..begin), self.todo.range(begin..));
            return after.chain(before).copied().find(has);
        }
        // The rarest first, so that all have something to give.
        let mine = self.todo.iter().copied().filter(has);
        mine.min_by_key(|number| (holders(*number), *number < begin, *number))
    }

    /// A piece that another source is slow with, when nothing else is left for this one.
    fn next_twice(&self, peer: PeerId, source: &Source, now: Duration) -> Option<usize> {
        if !self.todo.is_empty() || !source.open.is_empty() {
            return None;
        }
        let twice = self.asked.values().filter(|asked| asked.len() > 1).count();
        if twice >= TWICE_MAX {
            return None;
        }
        let slow = source.typical * 2 + Duration::from_millis(500);
        let open = self.sources.values().flat_map(|s| s.open.keys().copied());
        let mut open: Vec<(Duration, usize)> = open
            .filter_map(|number| {
                let slot = &self.slots[number];
                let [(by, since)] = self.asked.get(&number)?[..] else {
                    return None;
                };
                let late = now >= since + slow && !slot.landed && slot.piece.len <= LEAF;
                (late && by != peer && source.has(number, &slot.piece)).then_some((since, number))
            })
            .collect();
        open.sort();
        open.first().map(|(_, number)| *number)
    }

    /// All bytes of the piece came from `peer` and go to the disk. `false`: not needed any more. Others that were asked
    /// for it are in `stop`.
    pub(super) fn landed(
        &mut self,
        number: usize,
        peer: PeerId,
        now: Duration,
        stop: &mut Vec<(usize, PeerId)>,
    ) -> bool {
        let slot = &mut self.slots[number];
        if slot.landed || slot.state != State::Open {
            return false;
        }
        slot.landed = true;
        let asked = self.asked.remove(&number).unwrap_or_default();
        for (by, since) in asked {
            if by == peer {
                self.asked.insert(number, vec![(by, since)]);
                let len = self.slots[number].piece.len;
                if let Some(source) = self.sources.get_mut(&peer) {
                    source.measured(number, len, now);
                }
                self.close(number, peer);
            } else {
                stop.push((number, by));
                self.close(number, by);
                self.fly_less(number);
            }
        }
        true
    }

    /// The piece is on the disk, and right.
    pub(super) fn done(&mut self, number: usize, peer: PeerId) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.losses = 0;
        }
        let slot = &mut self.slots[number];
        if slot.state != State::Done {
            slot.state = State::Done;
            self.asked.remove(&number);
            self.done += 1;
            self.fly_less(number);
        }
    }

    /// The piece that landed was wrong: `peer` is not asked any more. What else it was asked for is in `stop`.
    pub(super) fn wrong(&mut self, number: usize, peer: PeerId, stop: &mut Vec<(usize, PeerId)>) {
        self.fly_less(number);
        self.again(number);
        self.ban(peer, stop);
    }

    /// `peer` is not asked any more.
    pub(super) fn ban(&mut self, peer: PeerId, stop: &mut Vec<(usize, PeerId)>) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.banned = true;
        }
        self.take_all(peer, stop);
    }

    /// `peer` does not have the piece after all.
    pub(super) fn lacks(&mut self, number: usize, peer: PeerId) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.lacks.insert(number);
        }
        self.take(number, peer);
    }

    /// The connection with `peer` is gone, or it gave up a piece. After [`LOSSES_MAX`] in a row it is not asked any
    /// more; says whether that is so.
    pub(super) fn lost(&mut self, peer: PeerId, stop: &mut Vec<(usize, PeerId)>) -> bool {
        let Some(source) = self.sources.get_mut(&peer) else {
            return false;
        };
        source.up = false;
        if !source.open.is_empty() {
            source.losses += 1;
        }
        source.banned |= source.losses >= LOSSES_MAX;
        let banned = source.banned;
        self.take_all(peer, stop);
        banned
    }

    /// Looks for sources that are silent. What is taken from them is in `stop`; those given up are returned.
    pub(super) fn stalls(&mut self, now: Duration, stop: &mut Vec<(usize, PeerId)>) -> Vec<PeerId> {
        let mut given_up = Vec::new();
        let silent: Vec<(PeerId, Duration)> = self
            .sources
            .iter()
            .filter(|(_, s)| !s.open.is_empty() && now >= s.heard + STALL)
            .map(|(peer, s)| (*peer, s.heard))
            .collect();
        for (peer, heard) in silent {
            if now >= heard + SILENCE_MAX {
                given_up.push(peer);
                continue;
            }
            let open: Vec<usize> = self.sources[&peer].open.keys().copied().collect();
            for number in open {
                let piece = self.slots[number].piece;
                let free = |(other, source): (&PeerId, &Source)| {
                    *other != peer
                        && source.usable()
                        && now >= source.rests
                        && now < source.heard + STALL
                        && source.has(number, &piece)
                };
                if self.sources.iter().any(free) {
                    stop.push((number, peer));
                    self.take(number, peer);
                    if let Some(source) = self.sources.get_mut(&peer) {
                        source.rests = now + REST;
                        source.doubtful = true;
                    }
                }
            }
        }
        given_up
    }

    /// Nothing is on its way, and no source that could be asked has anything that is missing.
    pub(super) fn is_stuck(&self) -> bool {
        if self.flight > 0 {
            return false;
        }
        let has = |source: &Source| {
            let missing = |number: &usize| source.has(*number, &self.slots[*number].piece);
            source.usable() && self.todo.iter().any(missing)
        };
        !self.sources.values().any(has)
    }

    /// Whether `peer` is not asked any more.
    pub(super) fn is_banned(&self, peer: PeerId) -> bool {
        self.sources.get(&peer).is_some_and(|source| source.banned)
    }

    fn take_all(&mut self, peer: PeerId, stop: &mut Vec<(usize, PeerId)>) {
        let open: Option<Vec<usize>> = self
            .sources
            .get(&peer)
            .map(|s| s.open.keys().copied().collect());
        for number in open.unwrap_or_default() {
            stop.push((number, peer));
            self.take(number, peer);
        }
    }

    /// The piece is not asked of `peer` any more.
    fn take(&mut self, number: usize, peer: PeerId) {
        if !self.close(number, peer) {
            return;
        }
        self.fly_less(number);
        let mut left = self.asked.remove(&number).unwrap_or_default();
        left.retain(|(by, _)| *by != peer);
        if left.is_empty() {
            self.again(number);
        } else {
            self.asked.insert(number, left);
        }
    }

    fn again(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        slot.state = State::Todo;
        slot.landed = false;
        self.asked.remove(&number);
        self.todo.insert(number);
    }

    fn close(&mut self, number: usize, peer: PeerId) -> bool {
        let len = self.slots[number].piece.len;
        let Some(source) = self.sources.get_mut(&peer) else {
            return false;
        };
        let was = source.open.remove(&number).is_some();
        if was {
            source.open_bytes -= len;
        }
        was
    }

    fn fly_less(&mut self, number: usize) {
        self.flight -= 1;
        self.flight_bytes -= self.slots[number].piece.held();
    }
}
