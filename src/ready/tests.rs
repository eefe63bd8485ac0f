//! Traces of real programs, the rules one by one, and random sequences against a model of the file system.

#[cfg(test)]
mod dressed;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod links;
mod order;
#[cfg(test)]
mod trees;

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

/// Plays traces and notes what is sealed when.
struct Player {
    ready: Ready,
    now: u64,
    seals: Vec<String>,
    /// What the next seals come to; `Sealed` when empty. `None`: no answer until `answer`.
    results: Vec<Option<SealResult>>,
    waiting: Vec<(Ino, Vec<RelPath>)>,
    /// The same for trees, the last first.
    tree_results: Vec<Option<SealResult>>,
    other: Vec<Action>,
}

impl Player {
    fn new(settle: u64) -> Self {
        let settings = Settings::new(ms(settle), IgnoreList::default());
        Self {
            ready: Ready::new(settings),
            now: 0,
            seals: vec![],
            results: vec![],
            waiting: vec![],
            tree_results: vec![],
            other: vec![],
        }
    }

    fn event(&mut self, event: Event) {
        let actions = self.ready.handle(event, ms(self.now));
        self.take(actions);
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let Action::SealTree {
                tree, root, files, ..
            } = &action
            {
                let names: Vec<String> = files.iter().map(|(_, path)| path.to_string()).collect();
                self.seals
                    .push(format!("{root}[{}]@{}", names.join(","), self.now));
                match self.tree_results.pop() {
                    Some(None) => {}
                    result => {
                        let result = result.flatten().unwrap_or(SealResult::Sealed);
                        self.event(Event::TreeDone {
                            tree: *tree,
                            result,
                        });
                    }
                }
                continue;
            }
            let Action::Seal { ino, names, .. } = action else {
                self.other.push(action);
                continue;
            };
            let named = |Due { path, renamed_from }: &Due| match renamed_from {
                Some(from) => format!("{path}<{from}"),
                None => path.to_string(),
            };
            let words: Vec<String> = names.iter().map(named).collect();
            self.seals.push(format!("{}@{}", words.join("+"), self.now));
            let paths: Vec<RelPath> = names.into_iter().map(|name| name.path).collect();
            let result = if self.results.is_empty() {
                Some(SealResult::Sealed)
            } else {
                self.results.remove(0)
            };
            match result {
                Some(result) => self.event(done(ino, paths, result)),
                None => self.waiting.push((ino, paths)),
            }
        }
    }

    fn answer(&mut self, result: SealResult) {
        let (ino, paths) = self.waiting.remove(0);
        self.event(done(ino, paths, result));
    }

    fn until(&mut self, then: u64) {
        while let Some(at) = self.ready.next_deadline().filter(|at| *at <= ms(then)) {
            self.now = self.now.max(at.as_millis() as u64);
            let actions = self.ready.tick(ms(self.now));
            self.take(actions);
        }
        self.now = then;
    }

    /// Plays `time op args; …`. An inode is a number, with `:handle` where the handle is not the same number.
    fn play(&mut self, trace: &str) {
        for step in trace
            .split(';')
            .map(str::trim)
            .filter(|step| !step.is_empty())
        {
            let words: Vec<&str> = step.split_whitespace().collect();
            self.until(words[0].parse().unwrap());
            let (ino, fh) = words[2].split_once(':').unwrap_or((words[2], words[2]));
            let (ino, fh): (Ino, u64) = (ino.parse().unwrap(), fh.parse().unwrap());
            let name = |at: usize| path(words[at]);
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            self.event(match words[1] {
                "create" => Event::Created {
                    ino,
                    path: name(3),
                    fh,
                    rdwr: words[4].contains('r'),
                    excl: words[4].contains('x'),
                    mode: if words[4].contains('6') {
                        0o100600
                    } else {
                        0o100644
                    },
                },
                // All its names, if it has several.
                "open" => Event::Opened {
                    ino,
                    path: name(3),
                    names: several(&words[3..]),
                    fh,
                },
                "write" => Event::Wrote { ino, fh },
                "trunc" => Event::Truncated {
                    ino,
                    path: name(3),
                    names: Vec::new(),
                    fh: Some(fh),
                    size: number(4),
                },
                "truncpath" => Event::Truncated {
                    ino,
                    path: name(3),
                    names: several(&words[5..]),
                    fh: None,
                    size: number(4),
                },
                "flush" => Event::Flushed {
                    ino,
                    fh,
                    torn: false,
                },
                "kill" => Event::Flushed {
                    ino,
                    fh,
                    torn: true,
                },
                "release" => Event::Released { ino, fh },
                "link" => Event::Linked { ino, path: name(3) },
                "rename" => Event::Renamed {
                    ino,
                    from: name(3),
                    to: name(4),
                    replaced: words.get(5).map(|_| Gone {
                        ino: number(5),
                        names_left: 0,
                    }),
                },
                "unlink" => Event::Unlinked {
                    ino,
                    path: name(3),
                    names_left: number(4),
                },
                // `commit TREE FROM TO INO=PATH…`: the directory and what is in it under its new name.
                "commit" => Event::TreeRenamed {
                    tree: ino,
                    from: name(3),
                    to: name(4),
                    files: members(&words[5..]),
                    directories: vec![name(4)],
                },
                "mvdir" => Event::DirRenamed {
                    from: name(3),
                    to: name(4),
                    files: members(&words[5..]),
                },
                "done" => Event::TreeDone {
                    tree: ino,
                    result: match words[3] {
                        "sealed" => SealResult::Sealed,
                        "changed" => SealResult::Changed,
                        "failed" => SealResult::Failed,
                        unknown => panic!("{unknown}"),
                    },
                },
                "dress" => Event::Dressed {
                    ino,
                    names: words[3..].iter().map(|word| path(word)).collect(),
                },
                "send" => Event::SendNow { ino, path: name(3) },
                unknown => panic!("{unknown}"),
            });
        }
    }

    fn sealed(&mut self) -> String {
        self.until(self.now + 200_000);
        std::mem::take(&mut self.seals).join(" ")
    }

    fn count(&self, wanted: impl Fn(&Action) -> bool) -> usize {
        self.other.iter().filter(|action| wanted(action)).count()
    }

    fn is_empty(&self) -> bool {
        let r = &self.ready;
        let files = r.inodes.is_empty() && r.timers.is_empty() && r.in_flight.is_empty();
        let trees = r.trees.is_empty() && r.tree_of.is_empty() && r.tree_timers.is_empty();
        files && trees && r.recent.is_empty()
    }
}

fn several(words: &[&str]) -> Vec<RelPath> {
    words.iter().map(|word| path(word)).collect()
}

fn done(ino: Ino, paths: Vec<RelPath>, result: SealResult) -> Event {
    Event::SealDone {
        ino,
        results: paths.into_iter().map(|path| (path, result)).collect(),
    }
}

fn members(words: &[&str]) -> Vec<(Ino, RelPath)> {
    let member = |word: &&str| {
        let (ino, name) = word.split_once('=').unwrap();
        (ino.parse().unwrap(), path(name))
    };
    words.iter().map(member).collect()
}

fn assert_traces(settle: u64, traces: &[(&str, &str, &str)]) {
    for (program, trace, want) in traces {
        let mut player = Player::new(settle);
        player.play(trace);
        assert_eq!(player.sealed(), *want, "{program}: {trace}");
        assert!(player.is_empty(), "{program} leaves {:?}", player.ready);
    }
}

/// Operations as the kernel sent them. `wx`: O_WRONLY|O_EXCL; `rx6`: O_RDWR|O_EXCL, mode 0600; `w`: O_WRONLY.
#[rustfmt::skip] // One trace a line is a table; the formatter makes it a thousand lines.
const TRACES: &[(&str, &str, &str)] = &[
    ("cp", "0 create 1 f wx; 1 write 1; 2 flush 1; 3 release 1", "f@8"),
    ("cp -p", "0 create 1 f wx6; 1 write 1; 2 flush 1; 3 release 1", "f@8"),
    ("cp over existing", "0 open 1 f; 0 trunc 1 f 0; 1 write 1; 2 flush 1; 3 release 1", "f@8"),
    ("cp of an empty file", "0 create 1 f wx; 1 flush 1; 2 release 1", "f@1002"),
    ("install, unzip, gcc", "0 create 1 f wx; 1 write 1; 2 flush 1; 2 release 1", "f@7"),
    ("wget, curl", "0 create 1 f w; 1 write 1; 900 write 1; 2000 write 1; 2001 flush 1; 2001 release 1", "f@2006"),
    ("tar x", "0 create 1 d/f wx; 1 write 1; 2 flush 1; 2 release 1; 3 create 2 d/g wx; 4 write 2; 5 release 2", "d/f@7 d/g@10"),
    ("shell >", "0 create 1 f w; 1 flush 1; 50 write 1; 51 flush 1; 51 release 1", "f@56"),
    ("shell >>", "0 open 1 f; 1 flush 1; 2 write 1; 3 flush 1; 3 release 1", "f@8"),
    ("touch new", "0 create 1 f w; 1 flush 1; 1 release 1", "f@1001"),
    ("touch old, emacs after a save", "0 open 1 f; 1 flush 1; 1 release 1", ""),
    (": > old", "0 open 1 f; 0 trunc 1 f 0; 1 flush 1; 1 release 1", "f@1001"),
    ("truncate -s, fallocate", "0 create 1 f w; 1 trunc 1 f 4096; 1 release 1", "f@6"),
    ("truncate(2) of a path", "0 truncpath 1 f 10", "f@1000"),
    ("truncate(2), then an open", "0 truncpath 1 f 0; 0 open 1 f; 1 write 1; 2 release 1", "f@7"),
    ("rsync", "0 create 1 .f.AbC123 rx6; 1 write 1; 2 flush 1; 2 release 1; 24 rename 1 .f.AbC123 f", "f@29"),
    ("rsync over existing", "0 create 1 .f.AbC123 rx6; 1 write 1; 2 release 1; 24 rename 1 .f.AbC123 f 9", "f@29"),
    ("rsync --inplace", "0 open 1 f; 1 write 1; 2 flush 1; 2 release 1", "f@7"),
    ("sed -i", "0 create 1 sedA1b2C3 rx6; 1 write 1; 2 flush 1; 2 release 1; 3 rename 1 sedA1b2C3 f 9", "f@8"),
    ("perl -i", "0 create 1 XXa1B2c3 rx6; 1 write 1; 2 release 1; 5 rename 1 XXa1B2c3 f 9", "f@10"),
    ("python tempfile", "0 create 1 tmpab12 rx6; 1 write 1; 2 release 1; 950 rename 1 tmpab12 out.json", "out.json@955"),
    ("mkstemp, kept", "0 create 1 tmpab12 rx6; 1 write 1; 2 release 1", "tmpab12@1002"),
    (
        "zip",
        "0 create 8 z.zip w; 0 release 8; 1 unlink 8 z.zip 0; 1 create 1 ziA1b2C3 rx6; 2 write 1; 3 release 1; 4 rename 1 ziA1b2C3 z.zip",
        "z.zip@9",
    ),
    ("patch", "0 create 1 f.osDBhJm wx; 1 write 1; 2 release 1; 3 rename 1 f.osDBhJm f 9", "f@8"),
    ("patch, slow", "0 create 1 f.osDBhJm wx; 1 write 1; 2 release 1; 500 rename 1 f.osDBhJm f 9", "f@505"),
    (
        "git in its directory",
        "0 create 1 .git/index.lock rx; 1 write 1; 2 release 1; 2 rename 1 .git/index.lock .git/index",
        "",
    ),
    (
        "git objects (a bare repository)",
        "0 create 1 objects/ab/tmp_obj_Q1 rx6; 1 write 1; 2 release 1; 2 link 1 objects/ab/cd12; 2 unlink 1 objects/ab/tmp_obj_Q1 1",
        "objects/ab/cd12@7",
    ),
    (
        "vim",
        "0 create 2 .f.swp rx6; 0 write 2; 1 create 3 4913 wx; 1 release 3; 1 unlink 3 4913 0; 2 rename 1 f f~; \
         3 create 4 f w; 4 write 4; 5 flush 4; 5 release 4; 6 unlink 1 f~ 0; 9 write 2; 9 release 2; 9 unlink 2 .f.swp 0",
        "f@10",
    ),
    (
        "nano -B",
        "0 create 2 .f.swp w; 0 write 2; 1 create 3 f~ w; 1 write 3; 1 release 3; 2 open 1 f; 2 trunc 1 f 0; 3 write 1; \
         4 release 1; 5 release 2; 5 unlink 2 .f.swp 0",
        "f@9",
    ),
    ("emacs, ed, sort -o", "0 open 1 f; 0 trunc 1 f 0; 1 write 1; 2 release 1; 3 open 1 f; 3 release 1", "f@8"),
    (
        "sqlite",
        "0 open 1 a.db; 1 create 2 a.db-journal w; 1 write 2; 2 write 1; 2 release 2; 2 unlink 2 a.db-journal 0; \
         60000 write 1; 90000 release 1",
        "a.db@90005",
    ),
    ("browser", "0 create 2 f.zip w; 0 release 2; 1 create 1 f.zip.part w; 2 write 1; 700 release 1; 701 rename 1 f.zip.part f.zip 2", "f.zip@706"),
    ("mmap: WRITE long after the close", "0 create 1 f rx; 1 write 1; 1 flush 1; 800 write 1; 801 release 1", "f@806"),
    ("fork: the child closes last", "0 create 1 f w; 1 write 1; 1 flush 1; 501 write 1; 502 flush 1; 502 release 1", "f@507"),
    ("RENAME handled before RELEASE", "0 create 1 sedA1b2C3 rx6; 1 write 1; 2 flush 1; 2 rename 1 sedA1b2C3 f; 3 release 1", "f@8"),
    ("mv of a sent file", "0 rename 1 f g", "g<f@5"),
    ("mv of a sent file, twice", "0 rename 1 f g; 1 rename 1 g h", "h<f@6"),
    ("mv within the settle time", "0 create 1 f w; 1 write 1; 2 release 1; 4 rename 1 f g", "g@9"),
    ("mv f f~", "0 create 1 f w; 1 write 1; 2 release 1; 3 rename 1 f f~", ""),
    ("mv of a file open but not written", "0 open 1 f; 1 rename 1 f g; 2 release 1", "g<f@7"),
    ("mv over a waiting file", "0 create 1 f w; 1 write 1; 2 release 1; 3 rename 2 g f 1", "f<g@8"),
    ("rm within the settle time", "0 create 1 f w; 1 write 1; 2 release 1; 3 unlink 1 f 0", ""),
    ("rm while open", "0 create 1 f w; 1 unlink 1 f 0; 2 write 1; 3 release 1", ""),
    ("reopen within the settle time", "0 create 1 f w; 1 write 1; 2 release 1; 4 open 1 f; 3000 release 1", "f@3005"),
    ("two writers", "0 create 1 f w; 1 open 1:7 f; 2 write 1; 3 release 1; 500 write 1:7; 501 release 1:7", "f@506"),
    ("ln of a sent file", "0 link 1 g", "g@5"),
    ("ln of a waiting file", "0 create 1 f w; 1 write 1; 2 release 1; 3 link 1 g", "f+g@8"),
    ("ln to an ignored name", "0 link 1 g.tmp", ""),
    ("write through one of two used names", "0 open 1 a; 0 write 1; 0 link 1 b; 1 release 1; 2000 open 1 a; 2000 release 1", "a+b@6"),
    ("pausing writer", "0 create 1 f w; 1 write 1; 10001 write 1; 10002 release 1", "f@10007"),
    ("cp killed", "0 create 1 f wx; 1 write 1; 2 kill 1; 2 release 1; 5000 unlink 1 f 0", ""),
    ("cp killed, copied again", "0 create 1 f wx; 1 write 1; 2 kill 1; 2 release 1; 5000 open 1 f; 5000 trunc 1 f 0; 5001 write 1; 5002 release 1", "f@5007"),
    ("cp killed, touched, renamed", "0 create 1 f wx; 1 write 1; 2 kill 1; 2 release 1; 50 open 1 f; 51 release 1; 900 rename 1 f g", "g@905"),
    ("cp killed, sent by the user", "0 create 1 f wx; 1 write 1; 2 kill 1; 2 release 1; 900 send 1 f", "f@900"),
    ("yes > f killed; the shell closes cleanly", "0 create 1 f w; 1 write 1; 2 kill 1; 3 flush 1; 3 release 1; 900 unlink 1 f 0", ""),
    ("killed, while another handle writes on", "0 create 1 f w; 0 open 1:2 f; 1 write 1; 2 kill 1; 2 release 1; 3 write 1:2; 4 release 1:2", "f@9"),
    ("killed after another handle wrote", "0 create 1 f w; 0 open 1:2 f; 1 write 1:2; 2 write 1; 2 kill 1; 3 release 1:2; 4 release 1; 9 unlink 1 f 0", ""),
    ("an ignored file sent by the user", "0 create 1 f.part w; 1 write 1; 2 release 1; 900 send 1 f.part", "f.part@900"),
    ("sent by the user while open", "0 create 1 .f w; 1 write 1; 2 send 1 .f; 900 release 1", ".f@900"),
];

#[test]
fn programs_are_understood() {
    assert_traces(5, TRACES);
}

#[test]
fn without_settle_time_the_last_close_itself_seals() {
    assert_traces(
        0,
        &[
            (
                "cp",
                "0 create 1 f wx; 1 write 1; 2 flush 1; 3 release 1",
                "f@3",
            ),
            (
                "sed -i",
                "0 create 1 sedA1b2C3 rx6; 1 write 1; 2 release 1; 3 rename 1 sedA1b2C3 f 9",
                "f@3",
            ),
        ],
    );
}

#[test]
fn a_long_settle_time_holds_for_every_file() {
    assert_traces(
        3000,
        &[
            ("cp", "0 create 1 f wx; 1 write 1; 3 release 1", "f@3003"),
            ("touch new", "0 create 1 f w; 1 release 1", "f@3001"),
        ],
    );
}

#[test]
fn a_version_storm_is_a_few_seals_and_the_last_content_wins() {
    let trace: String = (0..600)
        .map(|i| i * 100)
        .map(|t| format!("{t} open 1 f; {} write 1; {} release 1;", t + 1, t + 2))
        .collect();
    let mut player = Player::new(5);
    player.play(&trace);
    assert_eq!(player.sealed(), "f@7 f@30107 f@60202");
    assert!(player.is_empty());
}

#[test]
fn autosave_by_rename_is_held_by_name() {
    let trace: String = (0..20)
        .map(|i| (i * 400, i + 1))
        .map(|(t, i)| {
            format!(
                "{t} create {i} .t w; {t} write {i}; {t} release {i}; {t} rename {i} .t f {};",
                i - 1
            )
        })
        .collect();
    let mut player = Player::new(5);
    player.play(&trace);
    assert_eq!(player.sealed(), "f@5 f@8600");
    player.play("300000 open 20 f; 300000 write 20; 300000 release 20");
    assert_eq!(
        player.sealed(),
        "f@300005",
        "ten seconds later it is an ordinary file again"
    );
}

#[test]
fn a_file_modified_while_it_is_sealed_is_sealed_again_afterwards() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play("0 create 1 f w; 1 write 1; 2 release 1; 3000 open 1 f; 3001 write 1; 3002 release 1; 20000 flush 1");
    assert_eq!(player.seals, ["f@7"], "one at a time");
    assert_eq!(player.ready.shown(1, &path("f")), Some(Shown::Sealing));
    player.answer(SealResult::Changed);
    assert_eq!(player.sealed(), "f@7 f@20010");
    assert!(player.is_empty());
}

#[test]
fn a_seal_that_met_a_writer_waits_for_its_close() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play("0 create 1 f w; 1 write 1; 2 release 1; 9 open 1 f");
    player.answer(SealResult::Changed);
    player.play("5000 release 1");
    assert_eq!(
        player.sealed(),
        "f@7 f@5005",
        "the close of a writer that wrote nothing still decides"
    );
    assert!(player.is_empty());
}

#[test]
fn versions_of_a_path_are_sealed_in_order_also_by_different_inodes() {
    let mut player = Player::new(5);
    player.results = vec![None];
    player.play("0 create 1 f w; 1 write 1; 2 release 1; 9 unlink 1 f 0; 10 create 2 f w; 11 write 2; 12 release 2; 9000 flush 2");
    assert_eq!(player.seals, ["f@7"]);
    player.answer(SealResult::Sealed);
    assert_eq!(player.sealed(), "f@7 f@9000");
    assert!(player.is_empty());
}

#[test]
fn a_rename_during_the_seal_announces_the_new_name_after_it() {
    for (result, want) in [
        (SealResult::Sealed, "f@7 g<f@50"),
        (SealResult::Failed, "f@7 g@50"),
        (SealResult::Gone, "f@7 g@50"),
        (SealResult::Changed, "f@7 g@60"),
    ] {
        let mut player = Player::new(5);
        player.results = vec![None];
        player.play("0 create 1 f w; 1 write 1; 2 release 1; 9 rename 1 f g; 50 flush 1");
        player.answer(result);
        assert_eq!(player.sealed(), want, "{result:?}");
        assert!(player.is_empty());
    }
}

#[test]
fn a_failed_seal_is_tried_again_ever_more_slowly_and_never_dropped() {
    let mut player = Player::new(5);
    player.results = vec![Some(SealResult::Failed); 9];
    player.play("0 rename 1 f g; 500 flush 1");
    assert_eq!(player.ready.shown(1, &path("g")), Some(Shown::Retrying));
    player.until(400_000);
    let at = [
        5, 1005, 3005, 7005, 15005, 31005, 63005, 123005, 183005, 243005,
    ];
    assert_eq!(player.seals, at.map(|t| format!("g<f@{t}")));
    assert!(player.is_empty());
}

#[test]
fn a_name_gone_at_the_seal_is_let_go() {
    let mut player = Player::new(5);
    player.results = vec![Some(SealResult::Gone)];
    player.play("0 create 1 f w; 1 write 1; 2 release 1");
    assert_eq!(player.sealed(), "f@7");
    assert_eq!(player.other.last(), Some(&Action::Unmark { ino: 1 }));
    assert!(player.is_empty());
}

/// `cp f outbox/ && rm outbox/f` sends nothing, and nothing said so.
#[test]
fn a_file_that_is_removed_before_it_is_sent_is_counted() {
    let counted = |results: Vec<Option<SealResult>>, trace: &str| {
        let mut player = Player::new(5);
        player.results = results;
        player.play(trace);
        player.until(5_000);
        player.count(|action| matches!(action, Action::CountRemoved { .. }))
    };
    for (trace, times) in [
        // Within the settle, and while it is still open.
        ("0 create 1 f w; 1 write 1; 2 release 1; 3 unlink 1 f 0", 1),
        ("0 create 1 f w; 1 write 1; 2 unlink 1 f 0; 3 release 1", 1),
        // Sent before; has another name; ignored; an empty one that nobody wrote; torn.
        ("0 create 1 f w; 1 write 1; 2 release 1; 50 unlink 1 f 0", 0),
        (
            "0 create 1 f w; 1 write 1; 2 release 1; 3 link 1 g; 4 unlink 1 f 1",
            0,
        ),
        (
            "0 create 1 .f w; 1 write 1; 2 release 1; 3 unlink 1 .f 0",
            0,
        ),
        ("0 create 1 f w; 1 release 1; 2 unlink 1 f 0", 0),
        (
            "0 create 1 f w; 1 write 1; 2 kill 1; 2 release 1; 3 unlink 1 f 0",
            0,
        ),
        // Only the name is new.
        ("0 rename 1 f g; 2 unlink 1 g 0", 0),
    ] {
        assert_eq!(counted(vec![], trace), times, "{trace}");
    }
    // While it is being sealed: it depends on what the seal comes to.
    let trace = "0 create 1 f w; 1 write 1; 2 release 1; 20 unlink 1 f 0";
    for (result, times) in [(SealResult::Gone, 1), (SealResult::Sealed, 0)] {
        let mut player = Player::new(5);
        player.results = vec![None];
        player.play(trace);
        player.answer(result);
        player.until(5_000);
        let removed = |action: &Action| matches!(action, Action::CountRemoved { .. });
        assert_eq!(player.count(removed), times, "{result:?}");
    }
}

#[test]
fn exchange_announces_both_names() {
    let mut player = Player::new(5);
    player.event(Event::Exchanged {
        a: (path("f"), Moved::File { ino: 1 }),
        b: (path("g"), Moved::File { ino: 2 }),
    });
    player.event(Event::Exchanged {
        a: (path("x"), Moved::File { ino: 3 }),
        b: (path(".x"), Moved::File { ino: 4 }),
    });
    assert_eq!(player.sealed(), "g@5 f@5 x@5");
    assert!(player.is_empty());
}

#[test]
fn a_directory_rename_commits_its_files_except_open_and_ignored_ones() {
    let mut player = Player::new(5);
    player.play("0 create 1 .d/a w; 0 write 1; 0 release 1; 0 create 2 .d/b w; 0 write 2; 0 create 3 .d/.c w; 0 write 3; 0 release 3");
    let files = vec![(1, path("d/a")), (2, path("d/b")), (3, path("d/.c"))];
    player.now = 10;
    player.event(Event::DirRenamed {
        from: path(".d"),
        to: path("d"),
        files,
    });
    player.play("500 release 2");
    assert_eq!(player.sealed(), "d/a@15 d/b@505");
    let files = vec![(1, path("e/a")), (2, path("e/b"))];
    player.event(Event::DirRenamed {
        from: path("d"),
        to: path("e"),
        files,
    });
    let at = player.now + 5;
    assert_eq!(player.sealed(), format!("e/a<d/a@{at} e/b<d/b@{at}"));
    assert!(player.is_empty());
}

#[test]
fn marks_tell_recovery_at_once() {
    let mut player = Player::new(5);
    player.play("0 create 1 f w; 1 write 1; 2 release 1");
    assert_eq!(
        player.other,
        [Action::MarkClosed {
            ino: 1,
            path: path("f")
        }],
        "before the settle time"
    );
    player.play("4 unlink 1 f 0");
    assert_eq!(player.other.pop(), Some(Action::Unmark { ino: 1 }));

    player.play("10 create 2 g w; 11 write 2; 12 kill 2; 13 release 2");
    assert_eq!(
        player.other.pop(),
        Some(Action::MarkTorn {
            ino: 2,
            path: path("g")
        })
    );
    assert_eq!(player.ready.shown(2, &path("g")), Some(Shown::Incomplete));
    player.play("14 rename 2 g .g");
    assert_eq!(player.count(|a| *a == Action::Unmark { ino: 2 }), 1);
    assert_eq!(
        player.count(|a| *a == Action::CountIgnored { path: path(".g") }),
        1
    );
    assert!(player.is_empty());
}

#[test]
fn recovered_files_are_sealed_or_held() {
    let mut player = Player::new(5);
    player.event(Event::Recovered {
        ino: 1,
        path: path("f"),
        incomplete: false,
    });
    player.event(Event::Recovered {
        ino: 2,
        path: path("g"),
        incomplete: true,
    });
    player.event(Event::Recovered {
        ino: 3,
        path: path("h.tmp"),
        incomplete: true,
    });
    assert_eq!(player.sealed(), "f@5");
    assert_eq!(player.count(|a| *a == Action::Unmark { ino: 3 }), 1);
    assert_eq!(player.ready.shown(2, &path("g")), Some(Shown::Incomplete));
    player.event(Event::SendNow {
        ino: 2,
        path: path("g"),
    });
    let at = player.now;
    assert_eq!(player.sealed(), format!("g@{at}"));
    assert!(player.is_empty());
}

#[test]
fn what_is_shown() {
    let mut player = Player::new(5);
    let shown = |player: &Player, name: &str| player.ready.shown(1, &path(name));
    player.play("0 create 1 f w; 1 write 1");
    assert_eq!(shown(&player, "f"), Some(Shown::Open));
    player.play("2 release 1");
    assert_eq!(shown(&player, "f"), Some(Shown::Settling));
    assert_eq!(
        shown(&player, "d/f.part"),
        Some(Shown::Ignored("*.part".to_owned()))
    );
    player.until(10);
    assert_eq!(shown(&player, "f"), None);
}

#[test]
fn a_write_costs_no_allocation_and_no_action() {
    let mut player = Player::new(5);
    player.play("0 create 1 f w");
    for _ in 0..8192 {
        let actions = player.ready.handle(Event::Wrote { ino: 1, fh: 1 }, ms(1));
        assert_eq!(actions.capacity(), 0);
    }
    assert!(player.ready.timers.is_empty());
}

const NAMES: [&str; 6] = ["a", "b", "d/c", ".x", "y.tmp", "d/.z"];

#[derive(Default)]
struct File {
    names: Vec<RelPath>,
    /// Handles, and whether something was written through each.
    handles: Vec<(u64, bool)>,
    version: u64,
    torn: Torn,
    /// Had a second name at some time: of a name that is not to be sent anew the machine need not know.
    linked: bool,
}

/// The file system as it is, against which every action is checked.
struct Model {
    ready: Ready,
    ignore: IgnoreList,
    now: u64,
    next: u64,
    files: BTreeMap<Ino, File>,
    in_flight: Vec<(Ino, Vec<RelPath>, u64)>,
    sealed: BTreeMap<RelPath, (Ino, u64)>,
    marked: HashSet<Ino>,
}

impl Model {
    fn new(settle: u64) -> Self {
        let ignore = IgnoreList::default();
        let ready = Ready::new(Settings::new(ms(settle), ignore.clone()));
        let (in_flight, sealed, marked) = (vec![], BTreeMap::new(), HashSet::new());
        Self {
            ready,
            ignore,
            now: 0,
            next: 1,
            files: BTreeMap::new(),
            in_flight,
            sealed,
            marked,
        }
    }

    fn owner(&self, name: &RelPath) -> Option<Ino> {
        self.files
            .iter()
            .find(|(_, file)| file.names.contains(name))
            .map(|(ino, _)| *ino)
    }

    fn event(&mut self, event: Event) {
        let actions = self.ready.handle(event, ms(self.now));
        self.check(actions);
    }

    fn check(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action.clone() {
                Action::Seal { ino, names, .. } => {
                    let file = &self.files[&ino];
                    assert!(file.handles.is_empty(), "sealed {names:?} while open");
                    assert!(file.torn == Torn::No, "sealed the incomplete {names:?}");
                    for Due { path, .. } in &names {
                        assert!(
                            self.ignore.matches(path).is_none(),
                            "sealed the ignored {path}"
                        );
                        assert!(
                            file.names.contains(path),
                            "sealed {path}, which is not a name of {ino}"
                        );
                        assert!(
                            self.in_flight
                                .iter()
                                .all(|(i, p, _)| *i != ino && !p.contains(path)),
                            "two at once"
                        );
                    }
                    let paths = names.into_iter().map(|name| name.path).collect();
                    self.in_flight.push((ino, paths, file.version));
                }
                Action::MarkClosed { ino, path } | Action::MarkTorn { ino, path } => {
                    assert_eq!(self.owner(&path), Some(ino));
                    self.marked.insert(ino);
                }
                Action::Unmark { ino } => {
                    let file = &self.files[&ino];
                    let wanted = file
                        .names
                        .iter()
                        .any(|name| self.ignore.matches(name).is_none());
                    assert!(
                        file.linked || !wanted,
                        "nothing will be sent of {:?}",
                        file.names
                    );
                    self.marked.remove(&ino);
                }
                Action::CountRemoved { path } => assert!(self.ignore.matches(&path).is_none()),
                Action::CountIgnored { path } => assert!(self.ignore.matches(&path).is_some()),
                Action::SealTree { .. } | Action::DropTree { .. } => {
                    panic!("there is no tree here: {action:?}")
                }
            }
        }
    }

    fn answer(&mut self, pick: usize, fail: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let (ino, paths, version) = self.in_flight.remove(pick % self.in_flight.len());
        let file = &self.files[&ino];
        let result = if !file.handles.is_empty() || file.version != version {
            SealResult::Changed
        } else if fail {
            SealResult::Failed
        } else {
            for path in &paths {
                self.sealed.insert(path.clone(), (ino, version));
            }
            self.marked.remove(&ino);
            SealResult::Sealed
        };
        self.event(done(ino, paths, result));
    }

    /// Nothing is remembered of files with ignored names only.
    fn forget_ignored(&mut self, ino: Ino) {
        let ignored = |name: &RelPath| self.ignore.matches(name).is_some();
        if let Some(file) = self.files.get_mut(&ino)
            && file.handles.is_empty()
            && file.names.iter().all(ignored)
        {
            file.torn = Torn::No;
        }
    }

    fn modify(&mut self, ino: Ino, fh: Option<u64>) {
        self.marked.insert(ino);
        let file = self.files.get_mut(&ino).unwrap();
        file.version += 1;
        if fh.is_none() || fh.map(Torn::Held) != Some(file.torn) {
            file.torn = Torn::No;
        }
        for handle in file.handles.iter_mut().filter(|(h, _)| Some(*h) == fh) {
            handle.1 = true;
        }
    }

    fn close(&mut self, ino: Ino, at: usize) {
        let file = self.files.get_mut(&ino).unwrap();
        let (fh, _) = file.handles.remove(at);
        if file.torn == Torn::Held(fh) {
            file.torn = Torn::Past;
        }
        self.forget_ignored(ino);
        self.event(Event::Released { ino, fh });
    }

    fn unlink(&mut self, name: &RelPath) -> Option<Gone> {
        let ino = self.owner(name)?;
        let file = self.files.get_mut(&ino).unwrap();
        file.names.retain(|other| other != name);
        if file.names.is_empty() {
            file.torn = Torn::No;
        }
        let names_left = file.names.len() as u64;
        self.forget_ignored(ino);
        Some(Gone { ino, names_left })
    }

    fn step(&mut self, op: u8, a: usize, b: usize) {
        let (name, other) = (path(NAMES[a % NAMES.len()]), path(NAMES[b % NAMES.len()]));
        let owner = self.owner(&name);
        let open: Vec<(Ino, usize)> = self
            .files
            .iter()
            .flat_map(|(ino, f)| (0..f.handles.len()).map(|at| (*ino, at)))
            .collect();
        let handle = (!open.is_empty()).then(|| open[a % open.len().max(1)]);
        self.next += 1;
        let fresh = self.next;
        match (op, owner, handle) {
            (0 | 1, None, _) => {
                let file = File {
                    names: vec![name.clone()],
                    handles: vec![(fresh, true)],
                    version: 1,
                    ..File::default()
                };
                self.files.insert(fresh, file);
                self.marked.insert(fresh);
                let (rdwr, mode) = (
                    b.is_multiple_of(2),
                    if b.is_multiple_of(3) { 0o600 } else { 0o644 },
                );
                self.event(Event::Created {
                    ino: fresh,
                    path: name,
                    fh: fresh,
                    rdwr,
                    excl: true,
                    mode,
                });
            }
            (0..=2, Some(ino), _) => {
                self.files
                    .get_mut(&ino)
                    .unwrap()
                    .handles
                    .push((fresh, false));
                self.event(Event::Opened {
                    ino,
                    path: name,
                    names: self.files[&ino].names.clone(),
                    fh: fresh,
                });
            }
            (3 | 4, _, Some((ino, at))) => {
                let fh = self.files[&ino].handles[at].0;
                self.modify(ino, Some(fh));
                self.event(Event::Wrote { ino, fh });
            }
            (5..=7, _, Some((ino, at))) => self.close(ino, at),
            (8, _, Some((ino, at))) => {
                let file = self.files.get_mut(&ino).unwrap();
                let (fh, wrote) = file.handles[at];
                if wrote && !file.names.is_empty() {
                    file.torn = Torn::Held(fh);
                    self.event(Event::Flushed {
                        ino,
                        fh,
                        torn: true,
                    });
                }
            }
            (9, Some(ino), _) => {
                self.modify(ino, None);
                self.event(Event::Truncated {
                    ino,
                    path: name,
                    names: self.files[&ino].names.clone(),
                    fh: None,
                    size: b as u64 % 2,
                });
            }
            (10 | 11, Some(ino), _) if name != other && self.owner(&other) != Some(ino) => {
                let replaced = self.unlink(&other);
                let ignored = self.ignore.matches(&other).is_some();
                let file = self.files.get_mut(&ino).unwrap();
                file.names.retain(|n| *n != name);
                file.names.push(other.clone());
                if !ignored {
                    file.torn = Torn::No;
                }
                self.forget_ignored(ino);
                self.event(Event::Renamed {
                    ino,
                    from: name,
                    to: other,
                    replaced,
                });
            }
            (12, Some(ino), _)
                if self.owner(&other).is_none() && self.files[&ino].torn == Torn::No =>
            {
                let file = self.files.get_mut(&ino).unwrap();
                file.names.push(other.clone());
                file.linked = true;
                self.event(Event::Linked { ino, path: other });
            }
            (13, Some(_), _) => {
                if let Some(Gone { ino, names_left }) = self.unlink(&name) {
                    self.event(Event::Unlinked {
                        ino,
                        path: name,
                        names_left,
                    });
                }
            }
            (14, _, _) => self.answer(a, b.is_multiple_of(3)),
            (15, _, _) => self.pass([1, 4, 700, 3000, 20_000][a % 5]),
            (_, _, _) => {}
        }
    }

    fn pass(&mut self, time: u64) {
        let then = self.now + time;
        while let Some(at) = self.ready.next_deadline().filter(|at| *at <= ms(then)) {
            self.now = self.now.max(at.as_millis() as u64);
            let actions = self.ready.tick(ms(self.now));
            self.check(actions);
        }
        self.now = then;
    }

    fn quiet(&mut self) {
        for _ in 0..200 {
            self.pass(1000);
            while !self.in_flight.is_empty() {
                self.answer(0, false);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Never sealed while open, ignored or incomplete; in the end exactly the last content of every other name is.
    #[test]
    fn random_events_end_in_the_final_state(settle in 0u64..20, ops in prop::collection::vec((0u8..16, 0usize..60, 0usize..60), 1..80)) {
        let mut model = Model::new(settle);
        for (op, a, b) in ops {
            model.step(op, a, b);
        }
        let open: Vec<Ino> = model.files.keys().copied().collect();
        for ino in open {
            while !model.files[&ino].handles.is_empty() {
                model.close(ino, 0);
            }
        }
        model.quiet();
        for (ino, file) in &model.files {
            for name in file.names.iter().filter(|name| model.ignore.matches(name).is_none()) {
                let last = model.sealed.get(name);
                if file.torn == Torn::No {
                    prop_assert_eq!(last, Some(&(*ino, file.version)), "{}", name);
                } else {
                    prop_assert_ne!(last, Some(&(*ino, file.version)), "{}", name);
                }
            }
            let incomplete = file.torn != Torn::No;
            prop_assert!(file.linked || model.marked.contains(ino) == incomplete, "mark of {}", ino);
            prop_assert_eq!(model.ready.inodes.contains_key(ino), incomplete, "memory of {}", ino);
        }
        for name in NAMES {
            if let Some(Gone { ino, names_left }) = model.unlink(&path(name)) {
                model.event(Event::Unlinked { ino, path: path(name), names_left });
            }
        }
        prop_assert!(model.ready.inodes.is_empty() && model.ready.timers.is_empty());
        prop_assert!(model.ready.in_flight.is_empty() && model.ready.recent.is_empty());
    }
}
