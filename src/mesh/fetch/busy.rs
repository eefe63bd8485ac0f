//! Several bundles of one busy peer: turns and plans together, on a simulated clock and link. The peer serves all that it
//! is asked for at once, a piece as much as another one, as our own does.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::plan::{Piece, Plan};
use super::pull::TICK;
use super::turns::Turns;
use crate::bundle::{BundleId, Priority};
use crate::peer::PeerId;

const CHUNK: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Link {
    /// Bytes a second.
    rate: u64,
    rtt: Duration,
}

impl Link {
    /// What so many bytes take when nothing else is asked for.
    fn alone(self, bytes: u64) -> Duration {
        2 * self.rtt + Duration::from_secs_f64(bytes as f64 / self.rate as f64)
    }

    fn step(self) -> Duration {
        let piece = Duration::from_secs_f64(CHUNK as f64 / self.rate as f64);
        (piece / 64).min(self.rtt / 4)
    }
}

struct Fetch {
    plan: Plan,
    size: u64,
    begun: bool,
    /// Something happened after which more may be asked for.
    rung: bool,
    /// Pieces on their way: since when, what came, and what is left when it is nearly here.
    open: BTreeMap<usize, (Duration, f64, u64)>,
    done: Option<Duration>,
}

/// One peer, and what it is asked for.
struct Busy {
    link: Link,
    now: Duration,
    ticked: Duration,
    turns: Turns,
    fetches: BTreeMap<BundleId, Fetch>,
    /// What was seen of the peer with any bundle.
    rate: f64,
}

fn peer() -> PeerId {
    PeerId::from_bytes([1; 32])
}

impl Busy {
    fn new(link: Link) -> Self {
        Self {
            link,
            now: Duration::ZERO,
            ticked: Duration::ZERO,
            turns: Turns::default(),
            fetches: BTreeMap::new(),
            rate: 0.0,
        }
    }

    fn offer(&mut self, n: u8, chunks: u64) -> BundleId {
        let bundle = BundleId([n; 32]);
        let piece = |index: u64| Piece {
            entry: 0,
            index: index as u32,
            offset: index * CHUNK,
            len: CHUNK,
            place: index as u32,
        };
        let me = PeerId::from_bytes([9; 32]);
        let mut plan = Plan::new(me, chunks, (0..chunks).map(piece).collect());
        plan.source(peer(), true, true, self.now);
        plan.far(peer(), self.link.rtt);
        let size = chunks * CHUNK;
        self.turns.offered(bundle, peer(), size, Priority::Critical);
        let fetch = Fetch {
            plan,
            size,
            begun: false,
            rung: true,
            open: BTreeMap::new(),
            done: None,
        };
        self.fetches.insert(bundle, fetch);
        self.begin();
        bundle
    }

    fn begin(&mut self) {
        for bundle in self.turns.begin() {
            if let Some(fetch) = self.fetches.get_mut(&bundle) {
                fetch.begun = true;
                fetch.rung = true;
            }
        }
    }

    fn ask(&mut self) {
        let now = self.now;
        let tick = now >= self.ticked + TICK;
        if tick {
            self.ticked = now;
        }
        for (bundle, fetch) in &mut self.fetches {
            if !fetch.begun || fetch.done.is_some() || !(std::mem::take(&mut fetch.rung) || tick) {
                continue;
            }
            fetch.plan.known(peer(), self.rate);
            for (number, (_, came, _)) in &fetch.open {
                fetch.plan.comes(*number, peer(), *came as u64);
            }
            while let Some((number, len)) = fetch.plan.choose(peer(), now) {
                if !self.turns.fly(*bundle, peer(), len, now) {
                    break;
                }
                fetch.plan.ask(number, peer(), now);
                let nearly = fetch.plan.nearly(number, peer(), now);
                fetch.open.insert(number, (now, 0.0, nearly));
            }
        }
    }

    fn step(&mut self) {
        self.ask();
        self.now += self.link.step();
        let (now, rtt) = (self.now, self.link.rtt);
        let served = |open: &&mut (Duration, f64, u64)| open.0 + rtt <= now;
        let all = self.fetches.values_mut().flat_map(|f| f.open.values_mut());
        let count = all.filter(served).count();
        let each = self.link.rate as f64 * self.link.step().as_secs_f64() / count as f64;
        let mut landed = Vec::new();
        for (bundle, fetch) in &mut self.fetches {
            for (number, open) in &mut fetch.open {
                if open.0 + rtt > now {
                    continue;
                }
                let nearly = (CHUNK - open.2) as f64;
                fetch.rung |= open.1 < nearly && nearly <= open.1 + each;
                open.1 += each;
                if open.1 >= CHUNK as f64 {
                    landed.push((*bundle, *number));
                }
            }
        }
        for (bundle, number) in landed {
            let fetch = self.fetches.get_mut(&bundle).unwrap();
            fetch.open.remove(&number);
            for (number, (_, came, _)) in &fetch.open {
                fetch.plan.comes(*number, peer(), *came as u64);
            }
            let mut stop = Vec::new();
            assert!(fetch.plan.landed(number, peer(), now, &mut stop));
            fetch.plan.done(number, peer());
            fetch.rung = true;
            self.rate = fetch.plan.rate(peer());
            let over = fetch.plan.is_complete();
            let next = self.turns.landed(bundle, peer(), CHUNK, now);
            if over {
                fetch.done = Some(now);
                self.turns.ended(bundle);
                self.begin();
            }
            if let Some(next) = next.and_then(|next| self.fetches.get_mut(&next)) {
                next.rung = true;
            }
        }
    }

    fn run_until(&mut self, until: Duration) {
        while self.now < until {
            self.step();
        }
    }

    /// Runs until the bundle is here; says how long that takes from now on, and what of others came meanwhile.
    fn finish(&mut self, bundle: BundleId) -> (Duration, u64) {
        let came = |busy: &Self| -> f64 {
            let all = busy.fetches.iter().filter(|(id, _)| **id != bundle);
            all.map(|(_, f)| {
                let missing = f.plan.unasked() as f64;
                let open: f64 = f.open.values().map(|open| CHUNK as f64 - open.1).sum();
                f.size as f64 - missing - open
            })
            .sum()
        };
        let (begun, before) = (self.now, came(self));
        while self.fetches[&bundle].done.is_none() {
            self.step();
        }
        (self.now - begun, (came(self) - before) as u64)
    }
}

fn link() -> impl Strategy<Value = Link> {
    // From 100 KB/s to 50 MB/s, each magnitude as often; from a LAN to the other side of the world.
    let rate = (5.0..7.7f64).prop_map(|power| 10f64.powf(power) as u64);
    let far = (rate, 1u64..300).prop_map(|(rate, rtt)| Link {
        rate,
        rtt: Duration::from_millis(rtt),
    });
    // What is on such a path is more than any fetch may have on its way.
    far.prop_filter("too long", |link| {
        link.rate as f64 * link.rtt.as_secs_f64() < 1.5e6
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The issue's: a small file behind two large ones of the same class, whenever it comes, and one more that waits.
    #[test]
    fn a_small_file_of_a_busy_peer_has_its_share_of_the_link_at_once(
        link in link(),
        late in 0.0..5.0f64,
        larges in 1u8..4,
    ) {
        let mut busy = Busy::new(link);
        for n in 0..larges {
            busy.offer(n, 64);
        }
        busy.run_until(link.alone(CHUNK).mul_f64(late));
        let small = busy.offer(100, 1);
        let (took, others) = busy.finish(small);
        let (alone, running) = (link.alone(CHUNK), u32::from(larges.min(2)));
        prop_assert!(took <= 2 * alone + running * alone, "{took:?} for {alone:?}");
        // Where waiting is felt each of the others has one share, and at most one more for the piece that is asked for
        // when the one before it is nearly here: on a long path that is early.
        if link.rate < 2_000_000 {
            let share = f64::from(running) * CHUNK as f64;
            let asking = link.rate as f64 * 2.0 * link.rtt.as_secs_f64();
            prop_assert!(others as f64 <= 2.0 * share + asking, "{others} of others");
        }
    }

    #[test]
    fn one_large_file_alone_has_most_of_the_link(link in link()) {
        let mut busy = Busy::new(link);
        let large = busy.offer(1, 32);
        let (took, _) = busy.finish(large);
        let alone = link.alone(32 * CHUNK);
        prop_assert!(took <= alone + alone / 2 + 6 * link.rtt, "{took:?} for {alone:?}");
        // Pieces that are served beside each other can come to end together, and then nothing is on its way for a round
        // trip. That is felt only where a round trip takes as long as a good part of a piece.
        if link.rtt.as_secs_f64() * link.rate as f64 <= CHUNK as f64 / 8.0 {
            prop_assert!(took <= alone + alone / 8 + 6 * link.rtt, "{took:?} for {alone:?}");
        }
    }

    #[test]
    fn small_files_that_never_end_leave_a_large_one_its_share(link in link()) {
        let mut busy = Busy::new(link);
        let large = busy.offer(0, 8);
        let mut n = 1;
        while busy.fetches[&large].done.is_none() {
            let waiting = busy.fetches.values().filter(|f| f.done.is_none()).count();
            for _ in waiting..=8 {
                busy.offer(n, 1);
                n = n % 250 + 1;
            }
            busy.step();
            let most = 2 * 9 * link.alone(8 * CHUNK);
            prop_assert!(busy.now < most, "more than {most:?}");
        }
    }
}
