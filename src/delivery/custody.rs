//! Custody: what a recipient that holds a bundle of another does for the other recipients. Pure, one bundle at a time.
//!
//! Whoever has settled a bundle that is also for others *watches* it. When the origin says that it is closed (final for
//! every recipient) within [`DELAY`], as it does when all are online, nothing more happens. Else the custodian *carries*
//! it: it owes it to the others as if it were its own. Receipts of the others are kept and handed to the origin until
//! the origin says that the bundle is closed.
//!
//! ```text
//!              due, or the origin is away,                        last recipient has it
//!  Watching ─────────or it says "open"──────► Carrying ─────────────────────────────────► Relaying
//!     │  due, and the origin is there                 ▲    (no receipt to hand over: Ended)   │
//!     └──────────────────────────────────► Asked ─────┘                                       ▼
//!  any ── the origin says "closed", or cancelled ──────────────────────────────────────────► Ended
//!  Watching, Asked, Carrying ── no room ──► Relaying if there are receipts to hand over, else Ended
//! ```
//!
//! # Invariants
//! 1. Only the origin's word ends a bundle; a custodian merely ends its own custody, and only when nobody is left to
//!    give it to, when the origin says so, or when there is no room. In the last case the user is told.
//! 2. Content is needed exactly while Watching, Asked or Carrying: leaving these emits one [`Action::Release`].
//! 3. A receipt that was seen is handed to the origin each time it connects, until the origin says "closed" or that
//!    it does not know the bundle.
//! 4. Nothing is asked or said while the origin closes its bundles in time.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::peer::PeerId;

/// How long the origin has to close a bundle before those who hold it begin to help. Receipts of members that are there
/// take milliseconds; this is for transfers that take longer than ours did.
pub(crate) const DELAY: Duration = Duration::from_secs(10);

/// How long the origin's answer may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// How far custody of a bundle has come. Times are of any clock that never goes back; the journal keeps them only until
/// the next start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Until then the origin may close it.
    Watching(Duration),
    /// The origin was asked whether it is closed, and has until then to say so.
    Asked(Duration),
    /// It is owed to those who do not have it.
    Carrying,
    /// Nobody is left to give it to, the content is released; receipts wait for the origin.
    Relaying,
    /// Nothing is known of it any more.
    Ended,
}

/// Why content is not needed for others any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// Every other recipient has it, or never will.
    Complete,
    /// The origin says that it is final everywhere.
    Closed,
    /// The origin took it back.
    Cancelled,
    /// There is no room; the user is to be told.
    Quota,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A session with the origin began.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "the spool reads its rows then; the simulator keeps the machines"
        )
    )]
    OriginConnected,
    /// The origin says that the bundle is final for every recipient.
    OriginClosed,
    /// The origin says that somebody still waits for it.
    OriginOpen,
    /// The origin knows nothing of it: it forgot it long after its end, or its state is an older copy.
    OriginUnknown,
    /// This recipient's receipt, checked, was seen.
    Receipt(PeerId),
    /// This recipient will never take it: it refused it, or was forgotten or removed.
    Gone(PeerId),
    /// This member is a recipient too, and the content is here.
    Joined(PeerId),
    /// The origin took it back.
    Cancelled,
    /// There is no room to keep the content for others.
    QuotaFull,
    /// Time went by.
    Tick {
        /// Whether there is a session with the origin.
        origin_connected: bool,
    },
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Ask the origin whether it is closed.
    Ask,
    /// Owe it to these from now on.
    Owe(Vec<PeerId>),
    /// Hand this recipient's receipt to the origin, if it is connected.
    Relay(PeerId),
    /// The content is not needed for others any more, and nobody is owed it.
    Release(Why),
    /// Delete what is known of the custody, receipts included.
    Forget,
}

/// Custody of one bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Custody {
    stage: Stage,
    waiting: BTreeSet<PeerId>,
    receipts: BTreeSet<PeerId>,
}

impl Custody {
    /// A bundle was settled here at `now`, and is for `others` too (without the origin and this node).
    #[cfg(test)]
    pub(crate) fn settled(now: Duration, others: impl IntoIterator<Item = PeerId>) -> Self {
        Self {
            stage: Stage::Watching(now.saturating_add(DELAY)),
            waiting: others.into_iter().collect(),
            receipts: BTreeSet::new(),
        }
    }

    /// As it was recorded: `waiting` have no receipt here, the receipts of `receipts` are to be handed over.
    pub(crate) fn recorded(
        stage: Stage,
        waiting: impl IntoIterator<Item = PeerId>,
        receipts: impl IntoIterator<Item = PeerId>,
    ) -> Self {
        Self {
            stage,
            waiting: waiting.into_iter().collect(),
            receipts: receipts.into_iter().collect(),
        }
    }

    /// How far it has come.
    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Who is not known to have it.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = PeerId> {
        self.waiting.iter().copied()
    }

    /// Whose receipts are to be handed to the origin.
    pub(crate) fn receipts(&self) -> impl Iterator<Item = PeerId> {
        self.receipts.iter().copied()
    }

    /// Whether the content must be kept.
    pub(crate) fn needs_content(&self) -> bool {
        match self.stage {
            Stage::Watching(_) | Stage::Asked(_) | Stage::Carrying => true,
            Stage::Relaying | Stage::Ended => false,
        }
    }

    /// Takes one event at time `now` and appends what is to be done to `out`.
    pub(crate) fn handle(&mut self, now: Duration, event: Event, out: &mut Vec<Action>) {
        if self.stage == Stage::Ended {
            return;
        }
        match event {
            Event::OriginConnected => self.connected(now, out),
            Event::OriginClosed => self.end(Why::Closed, out),
            Event::Cancelled => self.end(Why::Cancelled, out),
            Event::OriginOpen => match self.stage {
                Stage::Watching(_) | Stage::Asked(_) => self.carry(out),
                Stage::Carrying | Stage::Relaying | Stage::Ended => {}
            },
            Event::OriginUnknown => match self.stage {
                Stage::Watching(_) | Stage::Asked(_) => self.carry(out),
                // Those who do not have it get it all the same.
                Stage::Carrying | Stage::Ended => {}
                // It has no use for the receipts.
                Stage::Relaying => self.end(Why::Closed, out),
            },
            Event::Receipt(peer) => {
                if self.receipts.insert(peer) {
                    out.push(Action::Relay(peer));
                }
                self.waiting.remove(&peer);
                self.complete(Why::Complete, out);
            }
            Event::Gone(peer) => {
                self.waiting.remove(&peer);
                self.complete(Why::Complete, out);
            }
            Event::Joined(peer) => self.joined(peer, out),
            Event::QuotaFull => {
                self.waiting.clear();
                self.complete(Why::Quota, out);
            }
            Event::Tick { origin_connected } => self.tick(now, origin_connected, out),
        }
    }

    fn connected(&mut self, now: Duration, out: &mut Vec<Action>) {
        out.extend(self.receipts.iter().copied().map(Action::Relay));
        match self.stage {
            // It is asked in time, if it must be.
            Stage::Watching(_) | Stage::Ended => {}
            Stage::Asked(_) => {
                self.stage = Stage::Asked(now.saturating_add(ANSWER));
                out.push(Action::Ask);
            }
            Stage::Carrying | Stage::Relaying => out.push(Action::Ask),
        }
    }

    fn joined(&mut self, peer: PeerId, out: &mut Vec<Action>) {
        if self.receipts.contains(&peer) || !self.waiting.insert(peer) {
            return;
        }
        match self.stage {
            Stage::Watching(_) | Stage::Asked(_) | Stage::Ended => {}
            Stage::Carrying | Stage::Relaying => {
                self.stage = Stage::Carrying;
                out.push(Action::Owe(vec![peer]));
            }
        }
    }

    fn tick(&mut self, now: Duration, origin_connected: bool, out: &mut Vec<Action>) {
        match self.stage {
            Stage::Watching(until) if origin_connected && until <= now => {
                self.stage = Stage::Asked(now.saturating_add(ANSWER));
                out.push(Action::Ask);
            }
            Stage::Asked(until) if origin_connected && until <= now => self.carry(out),
            Stage::Watching(_) | Stage::Asked(_) if !origin_connected => self.carry(out),
            Stage::Watching(_)
            | Stage::Asked(_)
            | Stage::Carrying
            | Stage::Relaying
            | Stage::Ended => {}
        }
    }

    fn carry(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::Carrying;
        if !self.waiting.is_empty() {
            out.push(Action::Owe(self.waiting.iter().copied().collect()));
        }
        self.complete(Why::Complete, out);
    }

    /// Goes on when nobody waits any more.
    fn complete(&mut self, why: Why, out: &mut Vec<Action>) {
        if !self.waiting.is_empty() {
            return;
        }
        if self.needs_content() {
            out.push(Action::Release(why));
        }
        if self.receipts.is_empty() {
            self.stage = Stage::Ended;
            out.push(Action::Forget);
        } else if self.stage != Stage::Relaying {
            self.stage = Stage::Relaying;
            // It may be closed by these receipts, or long since.
            out.push(Action::Ask);
        }
    }

    fn end(&mut self, why: Why, out: &mut Vec<Action>) {
        if self.needs_content() {
            out.push(Action::Release(why));
        }
        self.waiting.clear();
        self.receipts.clear();
        self.stage = Stage::Ended;
        out.push(Action::Forget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Duration = Duration::from_secs(1000);
    const LATER: Duration = Duration::from_secs(3000);

    fn peer(n: u8) -> PeerId {
        PeerId::from_bytes([n; 32])
    }

    const WATCHING: Stage = Stage::Watching(Duration::from_secs(1010));
    const ASKED: Stage = Stage::Asked(Duration::from_secs(1010));
    const STAGES: [Stage; 5] = [
        WATCHING,
        ASKED,
        Stage::Carrying,
        Stage::Relaying,
        Stage::Ended,
    ];

    /// Custody in that stage of a bundle for 1 and 2, of which 3 has given its receipt.
    fn in_stage(stage: Stage) -> Custody {
        match stage {
            Stage::Watching(_) | Stage::Asked(_) | Stage::Carrying => {
                Custody::recorded(stage, [peer(1), peer(2)], [peer(3)])
            }
            Stage::Relaying => Custody::recorded(stage, [], [peer(3)]),
            Stage::Ended => Custody::recorded(stage, [], []),
        }
    }

    fn step(custody: &mut Custody, now: Duration, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        custody.handle(now, event, &mut out);
        out
    }

    fn owe(peers: &[u8]) -> Action {
        Action::Owe(peers.iter().map(|n| peer(*n)).collect())
    }

    #[test]
    fn every_stage_and_every_event() {
        use Action::{Ask, Forget, Relay, Release};
        let tick = |origin_connected| Event::Tick { origin_connected };
        let asked_now = Stage::Asked(T0 + ANSWER);
        let asked_later = Stage::Asked(LATER + ANSWER);
        // For each event: when, and per stage what comes of it.
        type Rows = [(Stage, Vec<Action>); 5];
        let table: Vec<(Duration, Event, Rows)> = vec![
            (
                T0,
                Event::OriginConnected,
                [
                    (WATCHING, vec![Relay(peer(3))]),
                    (asked_now, vec![Relay(peer(3)), Ask]),
                    (Stage::Carrying, vec![Relay(peer(3)), Ask]),
                    (Stage::Relaying, vec![Relay(peer(3)), Ask]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::OriginClosed,
                [
                    (Stage::Ended, vec![Release(Why::Closed), Forget]),
                    (Stage::Ended, vec![Release(Why::Closed), Forget]),
                    (Stage::Ended, vec![Release(Why::Closed), Forget]),
                    (Stage::Ended, vec![Forget]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::Cancelled,
                [
                    (Stage::Ended, vec![Release(Why::Cancelled), Forget]),
                    (Stage::Ended, vec![Release(Why::Cancelled), Forget]),
                    (Stage::Ended, vec![Release(Why::Cancelled), Forget]),
                    (Stage::Ended, vec![Forget]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::OriginOpen,
                [
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::OriginUnknown,
                [
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![]),
                    (Stage::Ended, vec![Forget]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::Receipt(peer(1)),
                [
                    (WATCHING, vec![Relay(peer(1))]),
                    (ASKED, vec![Relay(peer(1))]),
                    (Stage::Carrying, vec![Relay(peer(1))]),
                    (Stage::Relaying, vec![Relay(peer(1))]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::Receipt(peer(3)),
                [
                    (WATCHING, vec![]),
                    (ASKED, vec![]),
                    (Stage::Carrying, vec![]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::Gone(peer(1)),
                [
                    (WATCHING, vec![]),
                    (ASKED, vec![]),
                    (Stage::Carrying, vec![]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::Joined(peer(4)),
                [
                    (WATCHING, vec![]),
                    (ASKED, vec![]),
                    (Stage::Carrying, vec![owe(&[4])]),
                    (Stage::Carrying, vec![owe(&[4])]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                Event::QuotaFull,
                [
                    (Stage::Relaying, vec![Release(Why::Quota), Ask]),
                    (Stage::Relaying, vec![Release(Why::Quota), Ask]),
                    (Stage::Relaying, vec![Release(Why::Quota), Ask]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                tick(true),
                [
                    (WATCHING, vec![]),
                    (ASKED, vec![]),
                    (Stage::Carrying, vec![]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                T0,
                tick(false),
                [
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
            (
                LATER,
                tick(true),
                [
                    (asked_later, vec![Ask]),
                    (Stage::Carrying, vec![owe(&[1, 2])]),
                    (Stage::Carrying, vec![]),
                    (Stage::Relaying, vec![]),
                    (Stage::Ended, vec![]),
                ],
            ),
        ];
        for (now, event, rows) in table {
            for (stage, (after, actions)) in STAGES.into_iter().zip(rows) {
                let mut custody = in_stage(stage);
                let done = step(&mut custody, now, event);
                assert_eq!(done, actions, "{event:?} while {stage:?}");
                assert_eq!(custody.stage(), after, "{event:?} while {stage:?}");
            }
        }
    }

    #[test]
    fn the_last_receipt_releases_the_content_and_waits_for_the_origin() {
        for stage in [WATCHING, ASKED, Stage::Carrying] {
            let mut custody = Custody::recorded(stage, [peer(1), peer(2)], []);
            assert_eq!(
                step(&mut custody, T0, Event::Receipt(peer(2))),
                [Action::Relay(peer(2))]
            );
            assert_eq!(
                step(&mut custody, T0, Event::Receipt(peer(1))),
                [
                    Action::Relay(peer(1)),
                    Action::Release(Why::Complete),
                    Action::Ask
                ]
            );
            assert_eq!(custody.stage(), Stage::Relaying);
            assert_eq!(
                step(&mut custody, T0, Event::OriginConnected),
                [Action::Relay(peer(1)), Action::Relay(peer(2)), Action::Ask]
            );
            assert_eq!(
                step(&mut custody, T0, Event::OriginClosed),
                [Action::Forget]
            );
        }
    }

    #[test]
    fn when_all_others_are_gone_nothing_is_left_to_do() {
        for stage in [WATCHING, ASKED, Stage::Carrying] {
            let mut custody = Custody::recorded(stage, [peer(1)], []);
            assert_eq!(
                step(&mut custody, T0, Event::Gone(peer(1))),
                [Action::Release(Why::Complete), Action::Forget]
            );
            assert_eq!(custody.stage(), Stage::Ended);
        }
    }

    #[test]
    fn without_room_and_without_receipts_custody_ends() {
        let mut custody = Custody::settled(T0, [peer(1)]);
        assert_eq!(
            step(&mut custody, T0, Event::QuotaFull),
            [Action::Release(Why::Quota), Action::Forget]
        );
        assert_eq!(custody.stage(), Stage::Ended);
    }

    #[test]
    fn an_origin_that_closes_in_time_hears_nothing() {
        let mut custody = Custody::settled(T0, [peer(1), peer(2)]);
        let connected = Event::Tick {
            origin_connected: true,
        };
        let almost = T0 + DELAY - Duration::from_millis(1);
        assert_eq!(step(&mut custody, almost, connected), []);
        assert_eq!(
            step(&mut custody, almost, Event::OriginClosed),
            [Action::Release(Why::Closed), Action::Forget]
        );
    }

    #[test]
    fn an_origin_that_does_not_answer_is_not_waited_for() {
        let mut custody = Custody::settled(T0, [peer(1)]);
        let tick = Event::Tick {
            origin_connected: true,
        };
        assert_eq!(step(&mut custody, T0 + DELAY, tick), [Action::Ask]);
        assert_eq!(step(&mut custody, T0 + DELAY, tick), []);
        assert_eq!(step(&mut custody, T0 + DELAY + ANSWER, tick), [owe(&[1])]);
    }

    #[test]
    fn whoever_gave_its_receipt_is_not_owed_it_again() {
        let mut custody = Custody::recorded(Stage::Relaying, [], [peer(1)]);
        assert_eq!(step(&mut custody, T0, Event::Joined(peer(1))), []);
        assert_eq!(custody.stage(), Stage::Relaying);
        let mut custody = Custody::recorded(Stage::Carrying, [peer(2)], [peer(1)]);
        assert_eq!(step(&mut custody, T0, Event::Joined(peer(2))), []);
    }

    /// Every sequence of up to four events: content is released once, and nothing is done after the end.
    #[test]
    fn any_sequence_releases_once_and_ends_once() {
        let events = [
            Event::OriginConnected,
            Event::OriginClosed,
            Event::OriginOpen,
            Event::OriginUnknown,
            Event::Receipt(peer(1)),
            Event::Receipt(peer(2)),
            Event::Gone(peer(1)),
            Event::Joined(peer(3)),
            Event::Cancelled,
            Event::QuotaFull,
            Event::Tick {
                origin_connected: true,
            },
            Event::Tick {
                origin_connected: false,
            },
        ];
        let most = events.len().pow(4);
        for mut number in 0..most {
            let mut custody = Custody::settled(T0, [peer(1), peer(2)]);
            let mut held = true;
            for at in 0..4_u32 {
                let event = events[number % events.len()];
                number /= events.len();
                let before = custody.clone();
                let now = T0 + DELAY.saturating_mul(at);
                let done = step(&mut custody, now, event);
                if before.stage() == Stage::Ended {
                    assert_eq!((done, &custody), (vec![], &before));
                    continue;
                }
                let released = done
                    .iter()
                    .filter(|action| matches!(action, Action::Release(_)))
                    .count();
                // Whoever joins afterwards is given what a name still shows: then it is held again.
                assert_eq!(
                    custody.needs_content(),
                    (held && released == 0) || done.iter().any(|a| matches!(a, Action::Owe(_))),
                    "{before:?} {event:?} {done:?}"
                );
                assert!(released <= usize::from(held));
                held = custody.needs_content();
                let forgotten = done.contains(&Action::Forget);
                assert_eq!(forgotten, custody.stage() == Stage::Ended);
                if custody.stage() == Stage::Relaying {
                    assert!(
                        custody.receipts().next().is_some() && custody.waiting().next().is_none()
                    );
                }
            }
        }
    }
}
