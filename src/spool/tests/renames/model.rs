//! Random renames over names used before, with absences and kills, against a model of what the receiver shows.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::*;
use crate::bundle::{Manifest, VerifiedManifest};

const NAMES: [&str; 5] = ["a", "b", "c", "log", "log.1"];

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }
}

/// What became of a bundle at the receiver.
#[derive(Clone, PartialEq, Debug)]
enum Fate {
    Shown,
    /// Also without ever having been shown: its file had been consumed under another name.
    Consumed,
    Gone,
}

/// What a name shows.
#[derive(Clone, PartialEq, Debug)]
struct Shown {
    bundle: BundleId,
    digest: Digest,
    order: (u64, u64),
}

/// The receiver as packaging/doc/semantics.md describes it.
#[derive(Clone, Default)]
struct Model {
    shown: BTreeMap<String, Shown>,
    /// Names that wait for another file, while what they show has its new name too, or is out of date.
    left: HashSet<String>,
    fates: HashMap<BundleId, Fate>,
    newest: HashMap<String, (u64, u64)>,
    consumed: HashSet<Digest>,
    /// The same, and names that were consumed while another showed the same file.
    touched: HashSet<Digest>,
    came_back: bool,
}

impl Model {
    fn consume(&mut self, name: &str) {
        let Shown { bundle, digest, .. } = self.shown.remove(name).unwrap();
        self.left.remove(name);
        self.touched.insert(digest);
        self.fates.insert(bundle, Fate::Consumed);
        if self.shown.values().all(|shown| shown.digest != digest) {
            self.consumed.insert(digest);
        }
    }

    fn end(&mut self, name: &str) {
        self.left.remove(name);
        if let Some(shown) = self.shown.remove(name) {
            self.fates.insert(shown.bundle, Fate::Gone);
        }
    }

    /// `alive`: what was under any name of the origin when it sealed the bundle.
    fn process(&mut self, bundle: BundleId, of: &Manifest, alive: &HashSet<Digest>) {
        let (path, digest) = (of.entries[0].path.to_string(), of.single_digest().unwrap());
        let before = self.clone();
        let newest = self.newest.get(&path).copied().unwrap_or_default();
        let fate = match newest >= of.order() {
            true => self.outdated(of, &path),
            false => self.process_newest(bundle, of, &path, digest),
        };
        self.fates.insert(bundle, fate);
        for former in &of.renamed_from {
            let newest = self.newest.entry(former.path.to_string()).or_default();
            *newest = (*newest).max(former.order());
        }
        let newest = self.newest.entry(path.clone()).or_default();
        *newest = (*newest).max(of.order());
        // The promise itself, in other words: what comes back replaces a file that was replaced at its origin.
        let is_new = before.shown.values().all(|shown| shown.digest != digest);
        let shows = self.shown.values().any(|shown| shown.digest == digest);
        if is_new && shows && self.consumed.contains(&digest) {
            let replaced = before.shown.get(&path);
            let replaced = replaced.filter(|_| !before.left.contains(&path));
            self.came_back |= replaced.is_none_or(|shown| alive.contains(&shown.digest));
            self.consumed.remove(&digest);
        }
    }

    fn shows_as(&self, former: &crate::bundle::Former) -> bool {
        let shown = self.shown.get(&former.path.to_string());
        shown.is_some_and(|shown| shown.bundle == former.bundle)
    }

    fn was_consumed(&self, of: &Manifest) -> bool {
        let fates = of.renamed_from.iter();
        let mut fates = fates.filter_map(|former| self.fates.get(&former.bundle));
        fates.next() == Some(&Fate::Consumed)
    }

    fn has_newer(&self, former: &crate::bundle::Former) -> bool {
        let newest = self.newest.get(&former.path.to_string());
        newest.is_some_and(|newest| *newest > former.order())
    }

    /// Its name has something newer already.
    fn outdated(&mut self, of: &Manifest, path: &str) -> Fate {
        let shown = of
            .renamed_from
            .iter()
            .filter(|former| self.shows_as(former));
        let shown: Vec<String> = shown.map(|former| former.path.to_string()).collect();
        if shown.is_empty() && self.was_consumed(of) {
            return Fate::Consumed;
        }
        self.left
            .extend(shown.into_iter().filter(|name| name != path));
        Fate::Gone
    }

    fn process_newest(
        &mut self,
        bundle: BundleId,
        of: &Manifest,
        path: &str,
        digest: Digest,
    ) -> Fate {
        let shown = of.renamed_from.iter().find(|former| self.shows_as(former));
        if let Some(former) = shown {
            let from = former.path.to_string();
            if from == path || former.gone > 0 || self.has_newer(former) {
                self.end(&from);
            }
        } else if self.was_consumed(of) {
            let replaces = self
                .shown
                .get(path)
                .is_some_and(|shown| !self.left.contains(path) && Some(shown.order) > of.moved_on);
            if !replaces {
                if self.left.contains(path) {
                    self.end(path);
                }
                return Fate::Consumed;
            }
        }
        self.end(path);
        let order = of.order();
        let shown = Shown {
            bundle,
            digest,
            order,
        };
        self.shown.insert(path.to_owned(), shown);
        for former in &of.renamed_from {
            let name = former.path.to_string();
            let Some(shown) = self.shown.get(&name).filter(|_| name != path) else {
                continue;
            };
            if shown.bundle == former.bundle && former.gone == 0 {
                self.left.insert(name);
            } else if shown.order < former.order() {
                match self.has_newer(former) {
                    true => self.end(&name),
                    false => drop(self.left.insert(name)),
                }
            }
        }
        Fate::Shown
    }
}

/// A bundle that the receiver has not heard of.
struct Unheard {
    manifest: VerifiedManifest,
    alive: HashSet<Digest>,
}

struct Run {
    random: Random,
    alder: Node,
    birch: Node,
    model: Model,
    /// Moved or written, and not sealed yet.
    unsealed: Vec<&'static str>,
    /// Also what the origin has superseded by now: another holder may offer it all the same.
    unheard: Vec<Unheard>,
    texts: HashMap<Digest, Vec<u8>>,
    count: usize,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let (alder, birch) = pair();
        Self {
            random: Random(seed),
            alder,
            birch,
            model: Model::default(),
            unsealed: Vec::new(),
            unheard: Vec::new(),
            texts: HashMap::new(),
            count: 0,
            log: Vec::new(),
        }
    }

    fn exists(&self, name: &str) -> bool {
        self.alder.outbox(name).exists()
    }

    fn was_sealed(&mut self, name: &str, bundle: BundleId) {
        let names = NAMES.into_iter().filter(|name| self.exists(name));
        let alive = names.map(|name| Digest::of(&fs::read(self.alder.outbox(name)).unwrap()));
        let alive = alive.collect();
        let manifest = self.alder.manifest(bundle);
        let of = manifest.manifest();
        self.log.push(format!(
            "sealed {} {:?} {name} from {:?}, moved on {:?}",
            bundle.short(),
            of.order(),
            of.renamed_from,
            of.moved_on
        ));
        self.unheard.push(Unheard { manifest, alive });
    }

    /// Seals what is due, in any order; `all` of it, or some.
    fn seal(&mut self, all: bool) {
        while !self.unsealed.is_empty() && (all || self.random.chance(70)) {
            let at = self.random.below(self.unsealed.len());
            let name = self.unsealed.swap_remove(at);
            if self.exists(name) {
                let bundle = self.alder.sealed(name);
                self.was_sealed(name, bundle);
            }
        }
    }

    fn origin_step(&mut self) {
        let (a, b) = (self.random.name(), self.random.name());
        match self.random.below(10) {
            0..=3 => {
                self.count += 1;
                let text = format!("file {}", self.count);
                self.log.push(format!("write {a}: {text}"));
                // A file that waits for its seal is another one from here on.
                self.unsealed.retain(|name| *name != a);
                self.texts
                    .insert(Digest::of(text.as_bytes()), text.clone().into_bytes());
                let bundle = self.alder.drop_file(a, text.as_bytes());
                self.was_sealed(a, bundle);
            }
            4..=7 if a != b && self.exists(a) => {
                self.log.push(format!("mv {a} {b}"));
                self.alder.move_file(a, b);
                self.unsealed.retain(|name| *name != a && *name != b);
                self.unsealed.push(b);
            }
            8 if self.exists(a) => {
                self.log.push(format!("rm {a}"));
                self.alder.remove(a);
                self.unsealed.retain(|name| *name != a);
            }
            9 if a != b && self.exists(a) && self.exists(b) => {
                self.log.push(format!("exchange {a} {b}"));
                self.alder.exchange(a, b);
                self.unsealed.retain(|name| *name != a && *name != b);
                self.unsealed.extend([a, b]);
            }
            _ => {}
        }
        if self.random.chance(70) {
            self.seal(false);
        }
        if self.random.chance(5) {
            self.log.push("restart of the origin".to_owned());
            match self.random.chance(50) {
                true => {
                    self.alder.stop();
                    self.alder.start();
                }
                false => self.alder.power_loss(),
            }
        }
    }

    fn take(&mut self, at: usize) {
        let Unheard { manifest, alive } = self.unheard.remove(at);
        let (bundle, of) = (manifest.id(), manifest.manifest());
        let path = &of.entries[0].path;
        self.log.push(format!("{} taken: {path}", bundle.short()));
        let bytes = &self.texts[&of.single_digest().unwrap()];
        self.birch.feed(&manifest, &[bytes]);
        self.birch.spool().journal.flush().unwrap();
        let receipt = self.birch.spool().ledger.receipt(bundle).unwrap();
        self.alder.spool().take_receipt(&receipt).unwrap();
        self.model.process(bundle, of, &alive);
    }

    /// Offers of several holders, in the order of their seals or in any other; `all` that the origin has, or some.
    fn receive(&mut self, all: bool) {
        let in_order = self.random.chance(30);
        let mut left = self.unheard.len();
        while left > 0 {
            left -= 1;
            let at = match in_order {
                true => self.unheard.len() - left - 1,
                false => self.random.below(self.unheard.len()),
            };
            let bundle = self.unheard[at].manifest.id();
            let owed = self
                .alder
                .spool()
                .ledger
                .is_pending(bundle, self.birch.id());
            if owed && (all || self.random.chance(80)) || self.random.chance(10) {
                self.take(at);
                self.check();
            }
        }
        if all {
            let id = self.birch.id();
            let alder = Arc::clone(self.alder.spool());
            let owed = |row: &Unheard| alder.ledger.is_pending(row.manifest.id(), id);
            while let Some(at) = self.unheard.iter().position(owed) {
                self.take(at);
            }
        }
    }

    fn consume(&mut self) {
        let shown: Vec<String> = self.model.shown.keys().cloned().collect();
        if shown.is_empty() {
            return;
        }
        let name = &shown[self.random.below(shown.len())];
        self.log.push(format!("consumed {name}"));
        self.model.consume(name);
        if self.random.chance(20) {
            // Killed before the journal heard of it.
            fs::remove_file(self.birch.inbox(name)).unwrap();
            self.birch.stop();
            self.birch.start();
        } else {
            self.birch.consume(name);
        }
    }

    /// A rename of the receiver is cut off by a kill, and completed at its start.
    fn receive_cut_off(&mut self) {
        if self.unheard.is_empty() {
            return;
        }
        let at = self.random.below(self.unheard.len());
        let Unheard { manifest, alive } = &self.unheard[at];
        let (bundle, of) = (manifest.id(), manifest.manifest());
        let owed = self
            .alder
            .spool()
            .ledger
            .is_pending(bundle, self.birch.id());
        let (path, mut after) = (of.entries[0].path.to_string(), self.model.clone());
        after.process(bundle, of, alive);
        let digest = of.single_digest().unwrap();
        let shown = |model: &Model, name: &str| {
            let shown = model.shown.get(name);
            shown.is_some_and(|shown| shown.digest == digest)
        };
        let from = NAMES.into_iter().find(|name| {
            *name != path && shown(&self.model, name) && !after.shown.contains_key(*name)
        });
        let Some(from) = from.filter(|_| owed && shown(&after, &path)) else {
            return;
        };
        let done = self.random.chance(50);
        self.log
            .push(format!("killed in {from} to {path}, done {done}"));
        cut_off(&self.birch, &self.alder, bundle, from, &path, done);
        self.birch.stop();
        self.birch.start();
        self.birch.spool().journal.flush().unwrap();
        let receipt = self.birch.spool().ledger.receipt(bundle).unwrap();
        self.alder.spool().take_receipt(&receipt).unwrap();
        self.model = after;
        self.unheard.remove(at);
    }

    fn check(&self) {
        assert!(!self.model.came_back, "{}", self.log.join("\n"));
        let digest = |name: &str| Digest::of(&fs::read(self.birch.inbox(name)).unwrap());
        let shown = self.birch.shows().into_iter();
        let shown: Vec<(String, Digest)> =
            shown.map(|name| (name.clone(), digest(&name))).collect();
        let want = self.model.shown.iter();
        let want: Vec<(String, Digest)> = want
            .map(|(name, shown)| (name.clone(), shown.digest))
            .collect();
        assert_eq!(shown, want, "{}", self.log.join("\n"));
    }
}

impl Run {
    /// Nothing is lost: what the origin has is shown under that name, unless it was consumed. And nothing is left behind:
    /// where the origin has a file that was not consumed, no other one is shown.
    fn check_all_is_there(&self) {
        for name in NAMES.into_iter().filter(|name| self.exists(name)) {
            let digest = Digest::of(&fs::read(self.alder.outbox(name)).unwrap());
            let shown = self.model.shown.get(name).map(|shown| shown.digest);
            let there = shown == Some(digest) || self.model.touched.contains(&digest);
            assert!(there, "{name} is missing\n{}", self.log.join("\n"));
        }
    }

    /// What says that files moved on goes with the last who is to hear of it.
    fn check_nothing_waits(&self) {
        assert_eq!(
            self.alder.spool().outbox.left(),
            [],
            "{}",
            self.log.join("\n")
        );
    }
}

fn run(seed: u64, steps: usize) {
    let mut run = Run::new(seed);
    for _ in 0..steps {
        match run.random.below(10) {
            0..=4 => run.origin_step(),
            // Who does not look for a while was away.
            5..=6 => {
                if run.random.chance(20) {
                    run.receive_cut_off();
                } else {
                    run.receive(false);
                }
                run.check();
            }
            _ => {
                run.consume();
                run.check();
            }
        }
    }
    run.seal(true);
    run.receive(true);
    run.check();
    run.check_all_is_there();
    run.check_nothing_waits();
}

#[test]
fn random_renames_over_names_used_before_show_what_the_model_shows() {
    let first = std::env::var("MESHBOX_SEED").map_or_else(
        |_| u64::from_le_bytes(crate::peer::random()),
        |seed| seed.parse().unwrap(),
    );
    for seed in (0..6).map(|n| first.wrapping_add(n)) {
        eprintln!("MESHBOX_SEED={seed}");
        run(seed, 150);
    }
}

#[test]
fn a_consumed_file_does_not_come_back_by_a_rename_over_a_name_that_was_renamed_away() {
    let (alder, mut birch) = pair();
    alder.drop_file("t", b"old");
    birch.take_all(&alder);
    alder.rename("t", "t2");
    birch.take_all(&alder);
    alder.drop_file("c", b"job");
    birch.take_all(&alder);
    birch.consume("c");
    alder.rename("c", "t");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["t2"]);
    for (from, to) in [("t", "c"), ("c", "t")] {
        birch.stop();
        birch.start();
        alder.rename(from, to);
        birch.take_all(&alder);
        assert_eq!(birch.shows(), ["t2"]);
    }
}

#[test]
fn a_log_that_is_rotated_and_consumed_at_each_turn_never_comes_back() {
    for keep in [false, true] {
        let (alder, birch) = pair();
        let mut shown = Vec::new();
        for turn in 0..6 {
            if turn > 1 {
                alder.move_file("l.1", "l.2");
            }
            if turn > 0 {
                alder.move_file("l", "l.1");
            }
            for name in ["l.2", "l.1"] {
                if alder.outbox(name).exists() {
                    alder.sealed(name);
                }
            }
            birch.take_all(&alder);
            assert_eq!(birch.shows(), shown, "turn {turn}");
            alder.drop_file("l", format!("turn {turn}").as_bytes());
            birch.take_all(&alder);
            assert!(birch.shows().contains(&"l".to_owned()));
            if keep && turn == 2 {
                // One is left: it wanders on, and falls off the end.
                shown = vec!["l.1".to_owned()];
            } else {
                birch.consume("l");
                shown.iter_mut().for_each(|name| *name = "l.2".to_owned());
            }
        }
    }
}

#[test]
fn a_file_consumed_under_a_name_that_shows_another_by_now_stays_consumed() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    birch.consume("a");
    alder.move_file("a", "b");
    // The next file of that name is announced, and shown, before the rename is.
    alder.drop_file("a", b"two");
    birch.take_all(&alder);
    alder.sealed("b");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a"]);
}

#[test]
fn a_rename_there_and_back_that_nobody_was_told_of_shows_nothing_again() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    birch.consume("a");
    for away in ["b", "a~"] {
        alder.move_file("a", away);
        alder.move_file(away, "a");
        alder.sealed("a");
        assert_eq!(birch.take_all(&alder), 0);
        assert_eq!(birch.shows(), [""; 0]);
    }
    // Written again it is new, also with the same bytes.
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["a"]);
}

#[test]
fn what_was_replaced_and_never_consumed_is_shown_under_its_new_name() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    alder.move_file("a", "b");
    alder.drop_file("a", b"two");
    birch.take_all(&alder);
    birch.consume("a");
    alder.sealed("b");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["b"], "only the other file was consumed");
}

#[test]
fn each_file_of_a_bundle_of_many_is_consumed_by_itself() {
    let (alder, mut birch) = pair();
    alder.fill(".d", &[("x", b"x"), ("y", b"y")]);
    birch.take(&alder, alder.commit(".d", "d"));
    birch.consume("d/x");
    birch.stop();
    birch.start();
    for name in ["x", "y"] {
        alder.move_file(&format!("d/{name}"), name);
        alder.sealed(name);
    }
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["y"]);
}

#[test]
fn a_bundle_that_was_forgotten_down_to_a_bit_is_still_known_as_consumed() {
    let (alder, mut birch) = pair();
    birch.stop();
    birch.limits.history = Some(4);
    birch.start();
    alder.drop_file("a", b"one");
    alder.drop_file("b", b"two");
    birch.take_all(&alder);
    birch.consume("a");
    for n in 0..20 {
        alder.drop_file(&format!("{n}"), format!("{n}").as_bytes());
        birch.take_all(&alder);
        birch.consume(&format!("{n}"));
    }
    birch.spool().journal.flush().unwrap();
    for _ in 0..3 {
        birch.spool().sweep_history().unwrap();
    }
    alder.rename("a", "c");
    alder.rename("b", "d");
    birch.take_all(&alder);
    assert_eq!(birch.shows(), ["d"]);
}

#[test]
fn a_cancelled_rename_is_not_followed() {
    let (alder, birch) = pair();
    alder.drop_file("a", b"one");
    birch.take_all(&alder);
    let bundle = alder.rename("a", "b");
    let manifest = alder.manifest(bundle);
    alder.spool().cancel(bundle).unwrap();
    for cancel in alder
        .spool()
        .ledger
        .cancels_owed(birch.id(), None, 9)
        .unwrap()
    {
        assert!(birch.spool().take_cancel(&cancel, alder.id()).unwrap());
    }
    assert!(!birch.spool().renamed_only(&manifest).unwrap());
    assert_eq!(birch.shows(), ["a"]);
}
