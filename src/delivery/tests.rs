use std::collections::VecDeque;

use super::*;
use crate::peer::{PeerId, Signature};

const T0: Duration = Duration::from_secs(1000);

fn id(n: u64) -> BundleId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    BundleId(bytes)
}

fn receipt(bundle: BundleId) -> Box<Receipt> {
    let peer = PeerId::from_bytes([1; 32]);
    Box::new(Receipt {
        bundle,
        origin: peer,
        recipient: peer,
        signature: Signature([0; 64]),
    })
}

fn step(machine: &mut Delivery, now: Duration, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    machine.handle(now, event, &mut out);
    out
}

/// Lists every variant of an enum once, and names a value by its variant. A variant that is added and not listed does
/// not compile; one that is listed and not tested fails [`every_state_and_every_event`].
macro_rules! variants {
    ($all:ident, $of:ident, $type:ty, $($pattern:pat),+ $(,)?) => {
        const $all: &[&str] = &[$(stringify!($pattern)),+];
        fn $of(value: &$type) -> &'static str {
            match value {
                $($pattern => stringify!($pattern),)+
            }
        }
    };
}

variants!(
    PHASES,
    phase_name,
    Option<Phase>,
    None,
    Some(Phase::Asked),
    Some(Phase::Ready),
    Some(Phase::Offered),
    Some(Phase::Fetching),
    Some(Phase::Taken),
    Some(Phase::Waiting),
);

variants!(
    EVENTS,
    event_name,
    Event,
    Event::Connected,
    Event::Disconnected,
    Event::Sealed(..),
    Event::Ranked(..),
    Event::Rescan,
    Event::Page { .. },
    Event::Verdict(_, Verdict::Want),
    Event::Verdict(_, Verdict::Working),
    Event::Verdict(_, Verdict::Taken),
    Event::Verdict(_, Verdict::Settled(_)),
    Event::Verdict(_, Verdict::Refused(_)),
    Event::Verdict(_, Verdict::Deferred(_)),
    Event::Receipt(_),
    Event::Gone(_),
    Event::Serving(..),
    Event::Tick,
);

/// A machine that is connected and has read an empty journal.
fn idle() -> Delivery {
    let mut machine = Delivery::new(7);
    assert_eq!(
        step(&mut machine, T0, Event::Connected),
        [Action::Page(None)]
    );
    assert_eq!(
        step(
            &mut machine,
            T0,
            Event::Page {
                cursor: None,
                bundles: vec![],
                end: true
            }
        ),
        []
    );
    machine
}

/// A machine that tracks bundle 1 in `phase` and nothing else.
fn in_phase(phase: Option<Phase>) -> Delivery {
    let mut machine = idle();
    let b = id(1);
    let verdict = |v| Event::Verdict(b, v);
    let steps: Vec<Event> = match phase {
        None => vec![],
        Some(Phase::Asked) => {
            vec![
                Event::Rescan,
                Event::Page {
                    cursor: Some(1),
                    bundles: vec![b],
                    end: true,
                },
            ]
        }
        Some(Phase::Offered) => vec![Event::Sealed(b, Priority::Routine)],
        Some(Phase::Fetching) => vec![
            Event::Sealed(b, Priority::Routine),
            verdict(Verdict::Working),
        ],
        Some(Phase::Taken) => vec![Event::Sealed(b, Priority::Routine), verdict(Verdict::Taken)],
        Some(Phase::Waiting) => {
            vec![
                Event::Sealed(b, Priority::Routine),
                verdict(Verdict::Deferred("full".into())),
            ]
        }
        Some(Phase::Ready) => {
            // Ready lasts only while the window is full of others.
            machine.offered = WINDOW;
            vec![Event::Sealed(b, Priority::Routine)]
        }
    };
    for event in steps {
        step(&mut machine, T0, event);
    }
    assert_eq!(machine.tracks.get(&b).map(|t| t.phase.clone()), phase);
    machine
}

#[test]
fn every_state_and_every_event() {
    use Phase::*;
    let b = id(1);
    let show = |state| Action::Show(b, state);
    let queued = || vec![show(DeliveryState::Queued)];
    let why = || "why".to_owned();
    let all = [
        None,
        Some(Asked),
        Some(Ready),
        Some(Offered),
        Some(Fetching),
        Some(Taken),
        Some(Waiting),
    ];
    // For each event: the phase it leads to and the actions, per phase in the order of `all`.
    type Row = (Event, [(Option<Phase>, Vec<Action>); 7]);
    let page = || vec![Action::Page(None)];
    let rows: Vec<Row> = vec![
        (Event::Connected, [0; 7].map(|_| (None, page()))),
        (
            Event::Disconnected,
            [
                (None, vec![]),
                (None, vec![]),
                (None, vec![]),
                (None, queued()),
                (None, queued()),
                (None, queued()),
                (None, queued()),
            ],
        ),
        (
            Event::Sealed(b, Priority::Routine),
            [
                (Some(Offered), vec![Action::Offer(b)]),
                (Some(Asked), vec![]),
                (Some(Ready), vec![]),
                (Some(Offered), vec![]),
                (Some(Fetching), vec![]),
                (Some(Taken), vec![]),
                (Some(Waiting), vec![]),
            ],
        ),
        (
            Event::Sealed(b, Priority::Critical),
            [
                (Some(Offered), vec![Action::Offer(b)]),
                (Some(Asked), vec![]),
                (Some(Ready), vec![]),
                (Some(Offered), vec![]),
                (Some(Fetching), vec![]),
                (Some(Taken), vec![]),
                (Some(Waiting), vec![]),
            ],
        ),
        // There is room for what is urgent when there is none for others.
        (
            Event::Ranked(b, Priority::Critical),
            [
                (None, vec![]),
                (Some(Asked), vec![]),
                (Some(Offered), vec![Action::Offer(b)]),
                (Some(Offered), vec![]),
                (Some(Fetching), vec![]),
                (Some(Taken), vec![]),
                (Some(Waiting), vec![]),
            ],
        ),
        (Event::Rescan, all.clone().map(|p| (p, page()))),
        // No page was asked for: ignored.
        (
            Event::Page {
                cursor: None,
                bundles: vec![b],
                end: true,
            },
            all.clone().map(|p| (p, vec![])),
        ),
        (
            Event::Verdict(b, Verdict::Want),
            [
                (None, vec![]),
                (Some(Offered), vec![Action::Offer(b)]),
                (Some(Ready), vec![]),
                (Some(Offered), vec![]),
                (Some(Fetching), vec![]),
                (Some(Taken), vec![]),
                (Some(Waiting), vec![]),
            ],
        ),
        (
            Event::Verdict(b, Verdict::Working),
            [
                None,
                Some(Fetching),
                Some(Ready),
                Some(Fetching),
                Some(Fetching),
                Some(Taken),
                Some(Waiting),
            ]
            .map(|p| (p, vec![])),
        ),
        (
            Event::Verdict(b, Verdict::Taken),
            [
                None,
                Some(Taken),
                Some(Ready),
                Some(Taken),
                Some(Taken),
                Some(Taken),
                Some(Waiting),
            ]
            .map(|p| (p, vec![])),
        ),
        (
            Event::Verdict(b, Verdict::Settled(receipt(b))),
            [0; 7].map(|_| (None, vec![])),
        ),
        (Event::Verdict(b, Verdict::Refused(why())), {
            let mut row = [0; 7].map(|_| (None, vec![show(DeliveryState::Refused(why()))]));
            row[0].1.clear();
            row
        }),
        (Event::Verdict(b, Verdict::Deferred(why())), {
            let shown = || vec![show(DeliveryState::Deferred(why()))];
            [
                (None, vec![]),
                (Some(Waiting), shown()),
                (Some(Ready), vec![]),
                (Some(Waiting), shown()),
                (Some(Waiting), shown()),
                (Some(Waiting), shown()),
                (Some(Waiting), vec![]),
            ]
        }),
        (Event::Receipt(b), [0; 7].map(|_| (None, vec![]))),
        // Nothing of it is on its way any more.
        (
            Event::Gone(b),
            [
                (None, vec![]),
                (None, vec![]),
                (None, vec![]),
                (None, queued()),
                (None, queued()),
                (None, queued()),
                (None, queued()),
            ],
        ),
        (Event::Serving(b, 9), {
            let shown = || vec![show(DeliveryState::Sending(9))];
            [
                (None, vec![]),
                (Some(Asked), vec![]),
                (Some(Ready), vec![]),
                (Some(Fetching), shown()),
                (Some(Fetching), shown()),
                (Some(Taken), vec![]),
                (Some(Waiting), vec![]),
            ]
        }),
        (Event::Tick, all.clone().map(|p| (p, vec![]))),
    ];
    let phases: Vec<&str> = all.iter().map(phase_name).collect();
    assert_eq!(phases, PHASES, "each phase once, in order");
    let mut events: Vec<&str> = rows.iter().map(|(event, _)| event_name(event)).collect();
    // Some with two priorities.
    events.dedup();
    assert_eq!(events, EVENTS, "each event, in order");
    for (event, expected) in rows {
        for (phase, (after, actions)) in all.iter().zip(expected) {
            let mut machine = in_phase(phase.clone());
            assert_eq!(
                step(&mut machine, T0, event.clone()),
                actions,
                "{phase:?} {event:?}"
            );
            assert_eq!(
                machine.tracks.get(&b).map(|t| t.phase.clone()),
                after,
                "{phase:?} {event:?}"
            );
        }
    }
}

#[test]
fn every_state_is_asked_about_again_in_the_end() {
    let cases = [
        (Phase::Offered, ANSWER_TIMEOUT),
        (Phase::Fetching, FETCH_TIMEOUT),
        (Phase::Taken, RECEIPT_TIMEOUT),
        (Phase::Waiting, BACKOFF.0 * 2),
    ];
    for (phase, after) in cases {
        let mut machine = in_phase(Some(phase.clone()));
        machine.scan = Scan::Idle(Duration::MAX);
        assert_eq!(
            step(&mut machine, T0 + Duration::from_millis(1), Event::Tick),
            [],
            "{phase:?}"
        );
        assert_eq!(
            step(&mut machine, T0 + after, Event::Tick),
            [Action::Ask(vec![id(1)])],
            "{phase:?}"
        );
    }
}

/// Things that can never succeed (too large for the room there is) fill all the room: what comes after them is delivered.
#[test]
fn s14_what_is_deferred_for_ever_keeps_nobody_out() {
    let mut machine = Delivery::new(7);
    machine.limits = Limits {
        window: 2,
        page: 2,
        ahead: 4,
        tracked: 6,
    };
    let hopeless = 20;
    let mut offered = 0;
    let (mut now, mut queue) = (T0, VecDeque::from([Event::Connected]));
    for _ in 0..4_000 {
        let event = queue.pop_front().unwrap_or_else(|| {
            now += Duration::from_secs(1);
            Event::Tick
        });
        for action in step(&mut machine, now, event) {
            match action {
                Action::Page(after) => {
                    let from = after.map_or(0, |after| after + 1);
                    let rows: Vec<u64> = (from..=hopeless).take(2).collect();
                    queue.push_back(Event::Page {
                        cursor: rows.last().copied().or(after),
                        end: rows.len() < 2,
                        bundles: rows.into_iter().map(id).collect(),
                    });
                }
                Action::Ask(ids) => {
                    queue.extend(ids.into_iter().map(|b| Event::Verdict(b, Verdict::Want)));
                }
                Action::Offer(bundle) if bundle == id(hopeless) => return,
                Action::Offer(bundle) => {
                    offered += 1;
                    queue.push_back(Event::Verdict(bundle, Verdict::Deferred("full".into())));
                }
                Action::Show(..) => {}
            }
            check(&machine);
        }
    }
    panic!("never offered, after {offered} others");
}

/// Room for one page: a peer that never answers for one bundle gets the others, and is asked about that one again.
#[test]
fn a_question_without_answer_keeps_nobody_out() {
    let mut machine = Delivery::new(7);
    machine.limits = Limits {
        window: 1,
        page: 1,
        ahead: 1,
        tracked: 1,
    };
    let page = |n: u64| Event::Page {
        cursor: Some(n),
        bundles: vec![id(n)],
        end: false,
    };
    step(&mut machine, T0, Event::Connected);
    assert_eq!(
        step(&mut machine, T0, page(1)),
        [Action::Ask(vec![id(1)])],
        "no room for more"
    );
    assert_eq!(
        step(&mut machine, T0 + ANSWER_TIMEOUT, Event::Tick),
        [Action::Page(Some(1))]
    );
    let asked = step(&mut machine, T0 + ANSWER_TIMEOUT, page(2));
    assert_eq!(asked, [Action::Ask(vec![id(2)])]);
}

#[test]
fn the_journal_is_read_again_after_the_rescan_interval() {
    let mut machine = idle();
    assert_eq!(step(&mut machine, T0 + RESCAN / 2, Event::Tick), []);
    assert_eq!(
        step(&mut machine, T0 + RESCAN, Event::Tick),
        [Action::Page(None)]
    );
}

#[test]
fn deferrals_back_off_with_jitter_and_a_new_connection_forgets_them() {
    let mut machine = Delivery::new(7);
    let pauses: Vec<Duration> = (0..12).map(|n| machine.backoff(n)).collect();
    for (n, pause) in pauses.iter().enumerate() {
        let base = BACKOFF.0.saturating_mul(1 << n).min(BACKOFF.1);
        assert!(
            *pause >= base * 3 / 4 && *pause <= base * 5 / 4,
            "{n}: {pause:?}"
        );
    }
    assert_ne!(pauses[10], pauses[11], "jitter");

    let mut machine = in_phase(Some(Phase::Waiting));
    step(&mut machine, T0, Event::Disconnected);
    step(&mut machine, T0, Event::Connected);
    let page = Event::Page {
        cursor: Some(1),
        bundles: vec![id(1)],
        end: true,
    };
    assert_eq!(step(&mut machine, T0, page), [Action::Ask(vec![id(1)])]);
}

/// Ten thousand and more bundles flow through bounded memory, and every one is delivered though rings are lost.
#[test]
fn memory_stays_bounded_while_everything_is_delivered() {
    const ALL: u64 = 20_000;
    let mut journal: std::collections::BTreeMap<u64, BundleId> =
        (0..ALL).map(|n| (n, id(n))).collect();
    let mut machine = Delivery::new(3);
    let mut queue: VecDeque<Event> = VecDeque::from([Event::Connected]);
    // Seals ring while the scan runs; most do not fit and must be found again.
    queue.extend((0..ALL).map(|n| Event::Sealed(id(n), Priority::Routine)));
    let mut now = T0;
    let mut steps = 0;
    while !journal.is_empty() {
        let event = queue.pop_front().unwrap_or_else(|| {
            now += Duration::from_secs(1);
            Event::Tick
        });
        for action in step(&mut machine, now, event) {
            match action {
                Action::Page(after) => {
                    let from = after.map_or(0, |c| c + 1);
                    let rows: Vec<(u64, BundleId)> = journal
                        .range(from..)
                        .take(PAGE)
                        .map(|(n, b)| (*n, *b))
                        .collect();
                    queue.push_back(Event::Page {
                        cursor: rows.last().map(|r| r.0).or(after),
                        end: rows.len() < PAGE,
                        bundles: rows.into_iter().map(|r| r.1).collect(),
                    });
                }
                Action::Ask(ids) => {
                    assert!(ids.len() <= PAGE);
                    queue.extend(ids.into_iter().map(|b| Event::Verdict(b, Verdict::Want)));
                }
                Action::Offer(bundle) => {
                    journal.retain(|_, b| *b != bundle);
                    queue.push_back(Event::Verdict(bundle, Verdict::Taken));
                    queue.push_back(Event::Receipt(bundle));
                }
                Action::Show(..) => panic!("nothing is refused here"),
            }
        }
        assert!(machine.outstanding() <= WINDOW && machine.tracked() <= TRACKED_MAX);
        assert!(machine.ready.len() <= AHEAD_MAX + PAGE);
        steps += 1;
        assert!(steps < 200 * ALL, "no progress: {} left", journal.len());
    }
}

/// All that decides what a machine does next, but for times, priorities and the pause after a deferral.
type Shape = (
    bool,
    Vec<(BundleId, &'static str)>,
    Vec<BundleId>,
    &'static str,
    bool,
);

fn shape(machine: &Delivery) -> Shape {
    let tracks = machine.tracks.iter();
    let mut tracks: Vec<(BundleId, &'static str)> = tracks
        .map(|(bundle, track)| (*bundle, phase_name(&Some(track.phase.clone()))))
        .collect();
    tracks.sort_unstable();
    let scan = match machine.scan {
        Scan::Idle(_) => "idle",
        Scan::Due(None) => "due",
        Scan::Due(Some(_)) => "due further",
        Scan::Reading => "reading",
    };
    let ready = machine.ready.iter().collect();
    (machine.connected, tracks, ready, scan, machine.again)
}

/// What must hold in every state.
fn check(machine: &Delivery) {
    let in_phase = |phase| machine.tracks.values().filter(|t| t.phase == phase).count();
    assert_eq!(machine.asked, in_phase(Phase::Asked));
    assert_eq!(machine.offered, in_phase(Phase::Offered));
    let urgent = |t: &&Track| t.phase == Phase::Offered && is_urgent(t.priority);
    let urgent = machine.tracks.values().filter(urgent).count();
    assert_eq!(machine.urgent, urgent);
    assert!(machine.offered <= machine.limits.window + RESERVED);
    assert!(machine.tracks.len() <= machine.limits.tracked);
    for (bundle, track) in &machine.tracks {
        match track.phase {
            Phase::Ready => assert!(
                machine.ready.iter().any(|ready| ready == *bundle),
                "never offered"
            ),
            Phase::Asked | Phase::Offered | Phase::Fetching | Phase::Taken | Phase::Waiting => {
                assert!(track.until < Duration::MAX, "waits for ever");
            }
        }
    }
    if !machine.connected {
        assert!(machine.tracks.is_empty() && machine.ready.len() == 0);
    }
}

/// From any state a peer that behaves gets everything: within a few minutes, since a deferral may have to end.
fn completes(mut machine: Delivery, mut now: Duration, owed: &[BundleId]) -> bool {
    let mut owed: Vec<BundleId> = owed.to_vec();
    let mut queue: VecDeque<Event> = VecDeque::new();
    if !machine.connected {
        queue.push_back(Event::Connected);
    } else if machine.scan == Scan::Reading {
        let bundles = owed.first().copied().into_iter().collect();
        queue.push_back(Event::Page {
            cursor: Some(0),
            bundles,
            end: false,
        });
    }
    for _ in 0..2_000 {
        let event = queue.pop_front().unwrap_or_else(|| {
            now += Duration::from_secs(1);
            Event::Tick
        });
        for action in step(&mut machine, now, event) {
            match action {
                Action::Page(after) => {
                    let from = after.map_or(0, |after| after as usize + 1);
                    let bundles: Vec<BundleId> = owed.iter().skip(from).take(1).copied().collect();
                    queue.push_back(Event::Page {
                        cursor: Some(from as u64),
                        end: bundles.is_empty(),
                        bundles,
                    });
                }
                Action::Ask(ids) => {
                    queue.extend(ids.into_iter().map(|b| Event::Verdict(b, Verdict::Want)));
                }
                Action::Offer(bundle) => {
                    queue.push_back(Event::Verdict(bundle, Verdict::Taken));
                    queue.push_back(Event::Receipt(bundle));
                    owed.retain(|b| *b != bundle);
                }
                Action::Show(..) => {}
            }
        }
        if owed.is_empty() && queue.is_empty() && machine.tracks.is_empty() {
            return true;
        }
    }
    false
}

/// Every state that any order of events about three bundles leads to, with room for two: the rules hold in it, and the
/// way to the end is open from it.
#[test]
fn every_reachable_state_keeps_the_rules_and_leads_to_the_end() {
    let bundles = [id(1), id(2), id(3)];
    let events = |b: BundleId| {
        let verdict = |v| Event::Verdict(b, v);
        vec![
            Event::Connected,
            Event::Disconnected,
            Event::Sealed(b, Priority::Routine),
            Event::Sealed(b, Priority::Critical),
            Event::Ranked(b, Priority::Critical),
            Event::Rescan,
            Event::Page {
                cursor: Some(0),
                bundles: vec![b],
                end: false,
            },
            Event::Page {
                cursor: Some(1),
                bundles: vec![],
                end: true,
            },
            verdict(Verdict::Want),
            verdict(Verdict::Working),
            verdict(Verdict::Taken),
            verdict(Verdict::Settled(receipt(b))),
            verdict(Verdict::Refused("why".into())),
            verdict(Verdict::Deferred("why".into())),
            Event::Receipt(b),
            Event::Gone(b),
            Event::Serving(b, 1),
            Event::Tick,
        ]
    };
    let named: std::collections::BTreeSet<&str> =
        events(bundles[0]).iter().map(event_name).collect();
    assert_eq!(named.len(), EVENTS.len(), "every event");

    let mut first = Delivery::new(5);
    first.limits = Limits {
        window: 1,
        page: 1,
        ahead: 2,
        tracked: 2,
    };
    let mut seen = std::collections::HashSet::from([shape(&first)]);
    let mut todo = VecDeque::from([first]);
    while let Some(machine) = todo.pop_front() {
        // Nothing is overdue, or all is.
        for now in [T0, T0 + Duration::from_secs(3600)] {
            assert!(
                completes(machine.clone(), now, &bundles),
                "{:?}",
                shape(&machine)
            );
            for event in bundles.iter().flat_map(|b| events(*b)) {
                let mut next = machine.clone();
                step(&mut next, now, event.clone());
                check(&next);
                // A lying peer can fill the queue with the dead no further than this.
                if next.ready.len() <= 4 && seen.insert(shape(&next)) {
                    // Times count from the same moment again.
                    for track in next.tracks.values_mut() {
                        track.until = track.until.min(T0 + Duration::from_secs(600));
                    }
                    todo.push_back(next);
                }
            }
        }
    }
    assert!(seen.len() > 300, "{} states", seen.len());
}

/// What is asked about again because nobody answered was shown as offered.
#[test]
fn without_connection_nothing_is_shown_as_on_its_way() {
    for phase in [
        Phase::Offered,
        Phase::Fetching,
        Phase::Taken,
        Phase::Waiting,
    ] {
        let mut machine = in_phase(Some(phase));
        step(&mut machine, T0 + FETCH_TIMEOUT, Event::Tick);
        assert_eq!(machine.tracks[&id(1)].phase, Phase::Asked);
        assert_eq!(
            step(&mut machine, T0 + FETCH_TIMEOUT, Event::Disconnected),
            [Action::Show(id(1), DeliveryState::Queued)]
        );
    }
}
