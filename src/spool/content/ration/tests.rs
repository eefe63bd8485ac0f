//! Rations on a simulated disk: who goes on when it is nearly full, and what is removed.

use proptest::prelude::*;

use super::*;

const MB: u64 = 1_000_000;

fn file(n: u8) -> BundleId {
    BundleId([n; 32])
}

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A disk, and the bundles that arrive or are parked on it.
struct Disk {
    rations: Rations,
    size: u64,
    /// Bytes here and missing of each, with its origin.
    bundles: HashMap<BundleId, (PeerId, u64, u64)>,
    arriving: Vec<BundleId>,
    now: Duration,
}

impl Disk {
    fn new(size: u64) -> Self {
        Self {
            rations: Rations::default(),
            size,
            bundles: HashMap::new(),
            arriving: Vec::new(),
            now: at(100),
        }
    }

    fn free(&self) -> u64 {
        let used: u64 = self.bundles.values().map(|(_, here, _)| here).sum();
        self.size - used
    }

    /// As the spool does at an offer.
    fn offer(&mut self, bundle: BundleId, origin: PeerId, size: u64) -> bool {
        let (_, here, left) = *self.bundles.entry(bundle).or_insert((origin, 0, size));
        let room = self.free().saturating_sub(self.rations.given());
        if left > room && !self.rations.moves(self.now) {
            let parked = self.parked().into_iter().filter(|p| p.bundle != bundle);
            for victim in give_way(left, left - room, parked.collect()) {
                self.remove(victim);
            }
        }
        let fits = left <= self.free().saturating_sub(self.rations.given());
        if fits {
            self.rations.begin(bundle, origin, (here, left), self.now);
            self.arriving.push(bundle);
        }
        fits
    }

    fn parked(&self) -> Vec<Parked> {
        let parked = self.bundles.iter().filter(|(bundle, (_, here, left))| {
            !self.arriving.contains(bundle) && *here > 0 && *left > 0
        });
        parked
            .map(|(bundle, (origin, here, left))| Parked {
                bundle: *bundle,
                origin: *origin,
                here: *here,
                left: *left,
            })
            .collect()
    }

    fn remove(&mut self, bundle: BundleId) {
        let (_, here, left) = self.bundles.get_mut(&bundle).unwrap();
        *left += std::mem::take(here);
    }

    fn end(&mut self, bundle: BundleId) {
        self.arriving.retain(|other| *other != bundle);
        if self.rations.end(bundle) {
            self.remove(bundle);
        }
    }

    /// `bundle` gets so many bytes, if it is given room for them. Whether it was.
    fn get(&mut self, bundle: BundleId, bytes: u64) -> Option<Ration> {
        let bytes = bytes.min(self.bundles[&bundle].2);
        let (free, now) = (self.free(), self.now);
        let ration = self.rations.ask(bundle, (bytes, bytes), free, now);
        match ration {
            Ration::Given(_) => {
                let (_, here, left) = self.bundles.get_mut(&bundle).unwrap();
                *here += bytes;
                *left -= bytes;
                self.rations.wrote(bundle, bytes, now);
                self.rations.over(bundle, bytes);
            }
            Ration::Short => {
                let parked = self.parked();
                for victim in self.rations.make_room(bundle, free, &parked) {
                    if !self.arriving.contains(&victim) {
                        self.remove(victim);
                    }
                }
            }
            Ration::Removed => self.end(bundle),
            Ration::Wait => {}
        }
        Some(ration)
    }
}

#[test]
fn a_slow_large_arrival_leaves_room_to_all_that_fits_beside_what_is_here_of_it() {
    let mut disk = Disk::new(400 * MB);
    assert!(disk.offer(file(1), peer(1), 300 * MB));
    disk.get(file(1), 10 * MB);
    assert!(disk.offer(file(2), peer(2), 150 * MB));
    // All that is missing of both would not fit, and yet none waits for the other.
    assert!(disk.offer(file(3), peer(3), 200 * MB));
    for _ in 0..150 {
        assert!(matches!(disk.get(file(2), MB), Some(Ration::Given(_))));
    }
    disk.end(file(2));
}

#[test]
fn when_a_part_finds_no_room_who_is_done_first_goes_on_and_the_others_wait() {
    let mut disk = Disk::new(100 * MB);
    assert!(disk.offer(file(1), peer(1), 80 * MB));
    assert!(disk.offer(file(2), peer(2), 80 * MB));
    // The first is ahead; each second it gets twice as much.
    while disk.free() >= 3 * MB {
        disk.now += at(1);
        disk.get(file(1), 2 * MB);
        disk.get(file(2), MB);
    }
    let mut removed = false;
    for _ in 0..200 {
        if disk.bundles[&file(1)].2 == 0 {
            break;
        }
        disk.now += at(1);
        disk.get(file(1), 2 * MB);
        if disk.arriving.contains(&file(2)) {
            removed |= disk.get(file(2), MB) == Some(Ration::Removed);
        }
    }
    assert_eq!(disk.bundles[&file(1)].2, 0, "done");
    assert!(removed && disk.bundles[&file(2)].1 == 0, "it made room");
}

#[test]
fn who_has_more_than_its_share_makes_room_before_who_is_farther_from_done() {
    let mut disk = Disk::new(100 * MB);
    disk.bundles.insert(file(1), (peer(1), 40 * MB, 10 * MB));
    disk.bundles.insert(file(2), (peer(1), 25 * MB, 20 * MB));
    disk.bundles.insert(file(3), (peer(2), 5 * MB, 90 * MB));
    let parked = disk.parked();
    assert_eq!(give_way(MB, 20 * MB, parked.clone()), [file(2)]);
    assert_eq!(give_way(MB, 30 * MB, parked.clone()), [file(2), file(1)]);
    assert_eq!(
        give_way(MB, 68 * MB, parked.clone()),
        [file(2), file(1), file(3)]
    );
    assert_eq!(give_way(MB, 80 * MB, parked.clone()), [], "in vain");
    assert_eq!(
        give_way(30 * MB, 5 * MB, parked),
        [file(3)],
        "what is nearer its end stays"
    );
}

#[test]
fn three_halves_that_fill_the_disk_and_are_parked_do_not_block_each_other_for_ever() {
    let mut disk = Disk::new(100 * MB);
    for n in 1..=3 {
        disk.bundles.insert(file(n), (peer(n), 33 * MB, 33 * MB));
    }
    let mut done = HashSet::new();
    for round in 0..20 {
        disk.now += at(30);
        let n = 1 + (round % 3) as u8;
        if done.contains(&n) || !disk.offer(file(n), peer(n), 66 * MB) {
            continue;
        }
        while matches!(disk.get(file(n), MB), Some(Ration::Given(_)))
            && disk.bundles[&file(n)].2 > 0
        {}
        disk.end(file(n));
        if disk.bundles[&file(n)].2 == 0 {
            // Whoever reads the inbox takes it away.
            disk.bundles.remove(&file(n));
            done.insert(n);
        }
    }
    assert_eq!(done.len(), 3);
}

proptest! {
    /// Random sizes, speeds and orders; what is given up is offered again, what is whole is consumed.
    #[test]
    fn all_that_fits_alone_arrives_in_the_end_and_the_disk_is_never_overdrawn(
        sizes in prop::collection::vec((1_u64..100, 1_u64..8, 0_u8..4), 1..8),
        seed in any::<u64>(),
    ) {
        let mut disk = Disk::new(100 * MB);
        let all: Vec<BundleId> = (0..sizes.len()).map(|n| file(n as u8)).collect();
        let mut done = HashSet::new();
        let mut waits: HashMap<BundleId, (Duration, Option<Duration>)> = HashMap::new();
        let mut seed = seed | 1;
        for _ in 0..20_000 {
            if done.len() == all.len() {
                break;
            }
            disk.now += Duration::from_millis(100);
            let now = disk.now;
            for (n, bundle) in all.iter().enumerate() {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                if done.contains(bundle) || seed % 3 == 0 {
                    continue;
                }
                let (size, speed, origin) = sizes[n];
                let (again, none) = waits.get(bundle).copied().unwrap_or_default();
                if !disk.arriving.contains(bundle) {
                    if now >= again && !disk.offer(*bundle, peer(origin), size * MB) {
                        waits.insert(*bundle, (now + at(2 + seed % 30), None));
                    }
                    continue;
                }
                let got = disk.get(*bundle, speed * MB / 4);
                let since = none.unwrap_or(now);
                match got {
                    Some(Ration::Given(_)) => { waits.insert(*bundle, (again, None)); }
                    Some(Ration::Removed) => { waits.insert(*bundle, (now + at(2 + seed % 30), None)); }
                    _ if now >= since + MOVED => {
                        disk.end(*bundle);
                        waits.insert(*bundle, (now + at(2 + seed % 30), None));
                    }
                    _ => { waits.insert(*bundle, (again, Some(since))); }
                }
                prop_assert!(disk.bundles.values().map(|b| b.1).sum::<u64>() <= disk.size);
                if disk.bundles[bundle].2 == 0 {
                    disk.end(*bundle);
                    disk.bundles.remove(bundle);
                    done.insert(*bundle);
                }
            }
        }
        prop_assert_eq!(done.len(), all.len());
    }
}
