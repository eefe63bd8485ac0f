use super::*;
use crate::peer::{PeerName, Signature};

const NOW: Duration = Duration::from_secs(7);

fn id(n: u8) -> BundleId {
    BundleId([n; 32])
}

fn peer(n: u8) -> PeerId {
    PeerId::from_bytes([n; 32])
}

fn receipt(bundle: u8, recipient: u8) -> Receipt {
    Receipt {
        bundle: id(bundle),
        origin: peer(1),
        recipient: peer(recipient),
        signature: Signature([4; 64]),
    }
}

/// A session with peer 9, and what it remembers beside.
struct Sitting {
    core: SessionCore,
    care: Care,
}

impl Sitting {
    /// Before the hellos.
    fn new() -> Self {
        Self {
            core: SessionCore::new(peer(9), Vec::new(), Delivery::new(1)),
            care: Care::default(),
        }
    }

    /// Begun, with a journal that owes nothing.
    fn idle() -> Self {
        let mut it = Self::new();
        it.of(|core, _, out| core.begin(NOW, out));
        it.page(vec![]);
        it
    }

    fn of(
        &mut self,
        step: impl FnOnce(&mut SessionCore, &mut Care, &mut Vec<Action>),
    ) -> Vec<Action> {
        let mut out = Vec::new();
        step(&mut self.core, &mut self.care, &mut out);
        out
    }

    fn frame(&mut self, frame: Frame) -> Vec<Action> {
        self.of(|core, care, out| core.heard(NOW, Heard::Frame(frame), care, out))
    }

    fn input(&mut self, input: Input) -> Vec<Action> {
        self.of(|core, _, out| core.input(NOW, input, out))
    }

    fn done(&mut self, done: Done) -> Vec<Action> {
        self.of(|core, care, out| core.done(NOW, done, care, out))
    }

    fn page(&mut self, rows: Vec<(BundleId, Priority)>) -> Vec<Action> {
        self.done(Done::Page {
            cursor: None,
            rows,
            end: true,
        })
    }
}

fn desk(job: Job) -> Action {
    Action::Do(Lane::Desk, job)
}

#[test]
fn what_ended_is_told_before_anything_is_offered() {
    let mut it = Sitting::new();
    let first = it.of(|core, _, out| core.begin(NOW, out));
    let jobs = [
        Action::Do(Lane::Now, Job::Roll(None)),
        desk(Job::TellCancels),
        desk(Job::Page(None)),
        desk(Job::Unfinished),
        desk(Job::HandOver),
    ];
    assert_eq!(first, jobs);
    let mut it = Sitting::idle();
    let again = it.input(Input::Rescan);
    assert_eq!(again, [desk(Job::TellCancels), desk(Job::Page(None))]);
}

#[test]
fn what_is_urgent_waits_in_no_lane_with_the_rest() {
    let mut it = Sitting::idle();
    for (n, priority, lane) in [
        (1, Priority::Bulk, Lane::Desk),
        (2, Priority::Routine, Lane::Desk),
        (3, Priority::Priority, Lane::Express),
        (4, Priority::Critical, Lane::Express),
    ] {
        let offer = Action::Do(lane, Job::Offer(id(n), priority));
        assert_eq!(it.input(Input::Sealed(id(n), priority)), [offer]);
    }
}

#[test]
fn priorities_that_a_page_tells_are_known_before_the_answers_to_it() {
    let mut it = Sitting::new();
    it.of(|core, _, out| core.begin(NOW, out));
    let rows = vec![(id(1), Priority::Critical), (id(2), Priority::Routine)];
    let asked = Frame::Pending(vec![id(1), id(2)]);
    assert_eq!(it.page(rows), [Action::Send(asked)]);
    let offered = it.frame(Frame::Verdicts(vec![
        (id(2), Verdict::Want),
        (id(1), Verdict::Want),
    ]));
    let offers = [
        desk(Job::Offer(id(2), Priority::Routine)),
        Action::Do(Lane::Express, Job::Offer(id(1), Priority::Critical)),
    ];
    assert_eq!(offered, offers);
}

#[test]
fn of_a_batch_that_is_acknowledged_in_part_the_rest_stays_owed() {
    let mut it = Sitting::new();
    it.of(|core, _, out| core.begin(NOW, out));
    it.page(vec![(id(1), Priority::Routine), (id(2), Priority::Routine)]);
    let settled = Verdict::Settled(Box::new(receipt(1, 9)));
    let checked = it.frame(Frame::Verdicts(vec![(id(1), settled)]));
    assert_eq!(checked, [desk(Job::Receipts(vec![receipt(1, 9)]))]);
    assert_eq!(it.done(Done::Receipts(vec![(id(1), peer(9))])), []);
    assert_eq!(it.core.delivery().tracked(), 1);
    let offered = it.frame(Frame::Verdicts(vec![(id(2), Verdict::Want)]));
    assert_eq!(offered, [desk(Job::Offer(id(2), Priority::Routine))]);
}

#[test]
fn a_receipt_counts_only_for_its_bundle_and_from_its_recipient() {
    let mut it = Sitting::idle();
    it.input(Input::Sealed(id(1), Priority::Routine));
    for foreign in [receipt(2, 9), receipt(1, 8)] {
        let settled = Verdict::Settled(Box::new(foreign));
        let done = it.frame(Frame::Verdicts(vec![(id(1), settled)]));
        assert_eq!(done, [Action::Tell(Word::ForeignReceipt(id(1)))]);
    }
    // One of another recipient, handed on: recorded, and no end of this delivery.
    assert_eq!(it.done(Done::Receipts(vec![(id(1), peer(8))])), []);
    assert_eq!(it.core.delivery().tracked(), 1);
    assert_eq!(it.done(Done::Receipts(vec![(id(1), peer(9))])), []);
    assert_eq!(it.core.delivery().tracked(), 0);
}

#[test]
fn an_offer_of_anothers_bundle_is_remembered_and_every_offer_is_taken() {
    let mut it = Sitting::idle();
    for (n, origin) in [(1, 9), (2, 7)] {
        let offered = Offered {
            bundle: id(n),
            origin: peer(origin),
            priority: Priority::Routine,
            renames: false,
            absent: false,
        };
        let taken = it.of(|core, care, out| core.heard(NOW, Heard::Offer(offered), care, out));
        assert_eq!(taken, [Action::Take(Way::Intake, offered)]);
    }
    assert_eq!(it.care.holders(id(1)), []);
    assert_eq!(it.care.holders(id(2)), [(peer(9), true)]);
}

#[test]
fn offers_that_are_none_or_find_no_room_are_answered() {
    let mut it = Sitting::idle();
    let bad = Heard::BadOffer(id(1), "forged".into());
    let said = it.of(|core, care, out| core.heard(NOW, bad, care, out));
    let refused = verdict(id(1), Verdict::Refused("forged".into()));
    let told = Action::Tell(Word::BadOffer(id(1), "forged".into()));
    assert_eq!(said, [told, refused]);
    let said = it.of(|core, care, out| core.heard(NOW, Heard::Later(id(1)), care, out));
    assert_eq!(said, [verdict(id(1), Verdict::Deferred(NO_ROOM.into()))]);
}

#[test]
fn of_two_that_could_give_a_bundle_the_second_is_put_off_for_a_while() {
    let mut it = Sitting::idle();
    let first = NOW.checked_sub(Duration::from_secs(5)).unwrap();
    it.care.put_off(id(1), peer(8), first);
    it.care.put_off(id(1), peer(9), first);
    it.care.put_off(id(1), peer(8), NOW);
    it.care.put_off(id(2), peer(8), NOW);
    let unknown = |n| Done::Standing(vec![(id(n), Standing::Unknown)]);
    let later = || Verdict::Deferred("another member is about to give it".into());
    assert_eq!(it.done(unknown(2)), [verdict(id(2), later())]);
    assert_eq!(it.done(unknown(2)), [verdict(id(2), later())]);
    assert_eq!(it.done(unknown(1)), [verdict(id(1), Verdict::Want)]);
}

#[test]
fn who_asks_for_what_is_published_gets_the_receipt_and_gave_nothing() {
    let mut it = Sitting::idle();
    let published = Done::Standing(vec![(id(1), Standing::Published)]);
    assert_eq!(it.done(published), [verdict(id(1), Verdict::Taken)]);
    assert_eq!(it.care.holders(id(1)), [(peer(9), false)]);
}

#[test]
fn a_roll_is_told_where_it_is_not_the_same_and_then_not_again() {
    let roll = |ours, theirs| Done::Roll { ours, theirs };
    let mut it = Sitting::new();
    let hash = Frame::Member(MemberFrame::Roll([1; 32]));
    assert_eq!(it.done(roll(Some([1; 32]), None)), [Action::Send(hash)]);
    assert_eq!(it.done(roll(Some([1; 32]), Some([1; 32]))), []);
    let statements = Action::Do(Lane::Now, Job::Statements);
    let other = it.done(roll(Some([1; 32]), Some([2; 32])));
    assert_eq!(other, std::slice::from_ref(&statements));
    assert_eq!(it.done(Done::Group(vec![], Some([1; 32]))), []);
    let changed = it.done(Done::Group(vec![], Some([3; 32])));
    assert_eq!(changed, [statements]);
    // A member without a roll has nothing to say.
    let mut it = Sitting::new();
    assert_eq!(it.done(roll(None, None)), []);
    assert_eq!(it.done(roll(None, Some([1; 32]))), []);
}

#[test]
fn members_are_told_when_they_changed_and_not_to_themselves() {
    let told = |n: u8| Told {
        id: peer(n),
        name: PeerName::parse("cedar").unwrap(),
        addrs: vec![],
    };
    let mut it = Sitting::idle();
    assert_eq!(it.done(Done::Group(vec![told(9)], None)), []);
    let all = Done::Group(vec![told(9), told(5), told(2)], None);
    let frame = Frame::Members(vec![told(2), told(5)]);
    assert_eq!(it.done(all.clone()), [Action::Send(frame)]);
    assert_eq!(it.done(all), []);
}

#[test]
fn frames_that_belong_to_no_session_end_it() {
    let mut it = Sitting::idle();
    let proof = Frame::Proof {
        version: 1,
        mac: [1; 32],
    };
    let denied = Frame::Member(MemberFrame::Denied(
        crate::peer::invitation::Denied::Unknown,
    ));
    for frame in [proof, denied] {
        let done = it.frame(frame);
        assert!(matches!(done[..], [Action::Close(_)]), "{done:?}");
    }
}

#[test]
fn empty_answers_are_not_sent_and_long_lists_are_cut() {
    let mut it = Sitting::idle();
    assert_eq!(it.done(Done::NotOwed(vec![])), []);
    assert_eq!(it.done(Done::Ended(vec![])), []);
    assert_eq!(it.done(Done::Unfinished(vec![])), []);
    let many = vec![id(1); LIST_MAX + 1];
    let said = it.done(Done::Unfinished(many));
    let pages: Vec<usize> = said
        .iter()
        .map(|action| match action {
            Action::Send(Frame::Owed(ids)) => ids.len(),
            _ => panic!("{action:?}"),
        })
        .collect();
    assert_eq!(pages, [LIST_MAX, 1]);
    let answer = it.done(Done::Open {
        closed: vec![id(1)],
        open: vec![],
        unknown: vec![id(2)],
    });
    let frames = [Frame::Closed(vec![id(1)]), Frame::Unknown(vec![id(2)])];
    assert_eq!(answer, frames.map(Action::Send));
}

#[test]
fn a_session_that_ended_shows_nothing_on_its_way_and_may_begin_again() {
    let mut it = Sitting::idle();
    it.input(Input::Sealed(id(1), Priority::Routine));
    let ended = it.of(|core, _, out| core.ended(NOW, out));
    assert_eq!(ended, [desk(Job::Show(id(1), DeliveryState::Queued))]);
    assert_eq!(it.of(|core, _, out| core.tick(NOW, out)), []);
    let again = it.of(|core, _, out| core.begin(NOW, out));
    assert!(again.contains(&desk(Job::Page(None))));
}
