//! The world of one schedule: members, connections, time, and the queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use super::disk::Disk;
use super::intake::Fetch;
use super::oracle::{Flaw, Found, Rule, Stats};
use super::random::Random;
use super::{Bundle, Member, Time};
use crate::bundle::{BundleId, Cancel, CancelReason, DeliveryState, Priority, Receipt, Scope};
use crate::delivery::Limits;
use crate::peer::{PeerId, Signature};
use crate::protocol::care::Care;
use crate::protocol::frame::Frame;
use crate::protocol::session::{Action, Done, Input, Job, Lane, SessionCore};

/// A connection's number; each is used once.
pub(super) type Conn = usize;

/// What a schedule consists of; all else follows from its seed.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) members: usize,
    /// The last so many lie.
    pub(super) liars: usize,
    pub(super) bundles: usize,
    /// Connections exist between these first members and everybody, and between neighbours; between all if `None`.
    pub(super) hubs: Option<usize>,
    /// Troubles, which end with the time of trouble.
    pub(super) troubles: usize,
    pub(super) trouble_ends: Time,
    /// How long after that all must have what they are owed.
    pub(super) patience: Time,
    pub(super) limits: Limits,
    /// Fetches that run at once, of one peer and in all.
    pub(super) slots: (usize, usize),
    /// Whether recipients keep bundles for other recipients.
    pub(super) custody: bool,
    /// One in so many bundles ends by age.
    pub(super) lifetimes: bool,
    /// A deliberate mistake in the model, to see that it is found.
    pub(super) flaw: Option<Flaw>,
}

/// What travels on the control connection: a frame, or an offer, which is a real one but for what is in it.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Frame(Frame),
    Offer(BundleId),
}

/// What waits in one lane of a session, done in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) jobs: VecDeque<Job>,
    pub(super) runs: bool,
}

/// Something that will happen.
#[derive(Clone, Debug)]
pub(super) enum Ev {
    /// Without a connection: an echo of an earlier one.
    Frame {
        conn: Option<Conn>,
        from: Member,
        to: Member,
        said: Said,
    },
    Dial(Member, Member),
    Up {
        member: Member,
        peer: Member,
        conn: Conn,
    },
    Down {
        member: Member,
        peer: Member,
        conn: Conn,
    },
    Tick {
        member: Member,
        peer: Member,
        conn: Conn,
        at: Time,
    },
    Job {
        member: Member,
        peer: Member,
        conn: Conn,
        lane: Lane,
    },
    Letter {
        member: Member,
        peer: Member,
        conn: Conn,
        letter: Letter,
    },
    Intake {
        member: Member,
        run: u32,
        peer: Member,
        bundle: Bundle,
    },
    Publish {
        member: Member,
        run: u32,
        bundle: Bundle,
        step: u8,
        holders: Vec<Member>,
    },
    Chunk {
        member: Member,
        run: u32,
        bundle: Bundle,
        source: Member,
        conn: Conn,
    },
    Retry {
        member: Member,
        run: u32,
        bundle: Bundle,
    },
    Commit {
        member: Member,
        run: u32,
    },
    Custody {
        member: Member,
        run: u32,
        bundle: Bundle,
    },
    Start(Member),
    Expire(Bundle),
    Trouble,
    User,
    Lie(Member),
    Heal,
    Watch,
}

impl Ev {
    /// Whose doing it is; that waits while the member is frozen.
    fn of(&self) -> Option<Member> {
        match self {
            Ev::Frame { to, .. } => Some(*to),
            Ev::Up { member, .. }
            | Ev::Down { member, .. }
            | Ev::Tick { member, .. }
            | Ev::Job { member, .. }
            | Ev::Letter { member, .. }
            | Ev::Intake { member, .. }
            | Ev::Publish { member, .. }
            | Ev::Chunk { member, .. }
            | Ev::Retry { member, .. }
            | Ev::Commit { member, .. }
            | Ev::Custody { member, .. } => Some(*member),
            Ev::Dial(..)
            | Ev::Start(_)
            | Ev::Expire(_)
            | Ev::Trouble
            | Ev::User
            | Ev::Lie(_)
            | Ev::Heal
            | Ev::Watch => None,
        }
    }
}

/// What is on its way to a session: what others tell it, or what came of its jobs.
#[derive(Clone, Debug)]
pub(super) enum Letter {
    Input(Input),
    Done(Done),
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) conn: Conn,
    pub(super) started: Time,
    pub(super) core: SessionCore,
    pub(super) desk: Queue,
    pub(super) express: Queue,
    pub(super) missed: bool,
    pub(super) tick_at: Option<Time>,
    /// When the last of what others told it is taken out, and the last of what came of its jobs.
    pub(super) letters_at: [Time; 2],
    /// Offers in a row that were made while a more urgent one could have been.
    pub(super) passed_over: u32,
}

/// One member: its disk, and what a crash takes.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) lies: bool,
    /// How many times slower than the others.
    pub(super) slow: u64,
    pub(super) up: bool,
    pub(super) run: u32,
    pub(super) frozen_until: Time,
    /// The disk takes nothing from others, and commits nothing, until then.
    pub(super) full_until: Time,
    pub(super) stuck_until: Time,
    /// Rings are lost until then; nobody is told.
    pub(super) deaf_until: Time,
    /// Bulk connections fail until then.
    pub(super) bulk_until: Time,
    /// How long it ran before this start, and when that was.
    pub(super) ran: Time,
    pub(super) started: Time,
    /// What its clock on the wall is off by; nothing may depend on it.
    pub(super) wall: i128,
    pub(super) disk: Disk,
    pub(super) sessions: BTreeMap<Member, Session>,
    pub(super) fetches: BTreeMap<Bundle, Fetch>,
    pub(super) waiting: VecDeque<Bundle>,
    pub(super) arriving: BTreeSet<Bundle>,
    pub(super) volatile: BTreeSet<Bundle>,
    pub(super) blames: BTreeMap<(Bundle, Member), Time>,
    pub(super) progress: BTreeMap<(Bundle, Member), DeliveryState>,
    pub(super) intake_at: BTreeMap<(Member, usize), Time>,
    pub(super) commit_due: bool,
    /// It dies at its next step of that number of a publish (3: at its next commit); by power loss if true.
    pub(super) dies_at: Option<(u8, bool)>,
    pub(super) custody: BTreeMap<Bundle, crate::delivery::custody::Custody>,
    pub(super) care: Care,
}

/// What is true of a bundle, whoever says what.
#[derive(Clone, Debug)]
pub(super) struct Truth {
    pub(super) origin: Member,
    pub(super) recipients: Vec<Member>,
    pub(super) path: u32,
    pub(super) priority: Priority,
    pub(super) order: (u64, u64),
    pub(super) chunks: usize,
    /// Travels with the offer.
    pub(super) inline: bool,
    pub(super) sealed: Time,
    /// How long its origin had run.
    pub(super) sealed_age: Time,
    /// What the clock on its wall said.
    pub(super) sealed_wall: i128,
    pub(super) lifetime: Option<Time>,
    /// Chunks right, whole wrong.
    pub(super) contradicts: bool,
    /// The origin's journal has it for good.
    pub(super) durable: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    pub(super) conn: Option<Conn>,
    pub(super) cut_until: Time,
    pub(super) dialling: bool,
}

/// When the next frame arrives at the earliest, at the lower and at the higher member; then the same for urgent ones.
type Fifo = [[Time; 2]; 2];

struct Entry {
    at: Time,
    seq: u64,
    ev: Ev,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// All of it.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now: Time,
    pub(super) random: Random,
    queue: BinaryHeap<Reverse<Entry>>,
    seq: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) links: BTreeMap<(Member, Member), Link>,
    fifos: Vec<Fifo>,
    pub(super) truths: Vec<Truth>,
    pub(super) troubled: bool,
    pub(super) stats: Stats,
    pub(super) found: Option<Found>,
    pub(super) done: bool,
    /// Print everything that happens.
    trace: bool,
}

/// How long after it is cut a connection is given up.
pub(super) const DEAD_AFTER: Time = 10_000;

impl World {
    pub(super) fn new(plan: Plan) -> Self {
        let random = Random::new(plan.seed);
        let nodes = (0..plan.members).map(|_| Node::default()).collect();
        let mut world = Self {
            plan,
            now: 0,
            random,
            queue: BinaryHeap::new(),
            seq: 0,
            nodes,
            links: BTreeMap::new(),
            fifos: Vec::new(),
            truths: Vec::new(),
            troubled: true,
            stats: Stats::default(),
            found: None,
            done: false,
            trace: std::env::var_os("MESHBOX_SIM_TRACE").is_some(),
        };
        world.begin();
        world
    }

    /// Runs to the end, or to the first rule that is broken.
    pub(super) fn run(mut self) -> Result<Stats, Found> {
        self.run_until(Time::MAX);
        match self.found {
            Some(found) => Err(found),
            None => Ok(self.stats),
        }
    }

    /// Runs to a moment, if nothing ends it before.
    pub(super) fn run_until(&mut self, end: Time) {
        while !self.done && self.found.is_none() {
            let Some(Reverse(Entry { at, seq, ev })) = self.queue.pop() else {
                self.now = end;
                return;
            };
            if at > end {
                self.queue.push(Reverse(Entry { at, seq, ev }));
                self.now = end;
                return;
            }
            let frozen = ev.of().map_or(0, |member| self.nodes[member].frozen_until);
            let held = match &ev {
                Ev::Frame { from, to, .. } => self.link(*from, *to).cut_until.max(frozen),
                _ => frozen,
            };
            if held > at {
                // With its number, so that what is in order stays so.
                let at = held;
                self.queue.push(Reverse(Entry { at, seq, ev }));
                continue;
            }
            self.now = at;
            self.stats.events += 1;
            if self.trace {
                println!("{at} {ev:?}");
            }
            self.happen(ev);
            // A livelock without the passing of time shows itself here.
            if self.stats.events > 40_000_000 {
                let text = "events without end".to_owned();
                self.breaks(Rule::Stalls, text);
            }
        }
    }

    /// Notes the first rule that is broken.
    pub(super) fn breaks(&mut self, rule: Rule, text: String) {
        let (at, seed) = (self.now, self.plan.seed);
        self.found.get_or_insert(Found {
            rule,
            text,
            at,
            seed,
        });
    }

    pub(super) fn at(&mut self, delay: Time, ev: Ev) {
        self.seq += 1;
        let entry = Entry {
            at: self.now + delay,
            seq: self.seq,
            ev,
        };
        self.queue.push(Reverse(entry));
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Frame {
                conn,
                from,
                to,
                said,
            } => self.arrives(conn, from, to, said),
            Ev::Dial(a, b) => self.dial(a, b),
            Ev::Up { member, peer, conn } => self.session_begins(member, peer, conn),
            Ev::Down { member, peer, conn } => self.session_ends(member, peer, conn),
            Ev::Tick {
                member,
                peer,
                conn,
                at,
            } => self.tick(member, peer, conn, at),
            Ev::Job {
                member,
                peer,
                conn,
                lane,
            } => self.work(member, peer, conn, lane),
            Ev::Letter {
                member,
                peer,
                conn,
                letter,
            } => self.letter(member, peer, conn, letter),
            Ev::Intake {
                member,
                run,
                peer,
                bundle,
            } if self.runs(member, run) => self.intake(member, peer, bundle),
            Ev::Publish {
                member,
                run,
                bundle,
                step,
                holders,
            } if self.runs(member, run) => self.publish(member, bundle, step, holders),
            Ev::Chunk {
                member,
                run,
                bundle,
                source,
                conn,
            } if self.runs(member, run) => self.chunk(member, bundle, source, conn),
            Ev::Retry {
                member,
                run,
                bundle,
            } if self.runs(member, run) => self.fetch_on(member, bundle),
            Ev::Commit { member, run } if self.runs(member, run) => self.commit(member),
            Ev::Custody {
                member,
                run,
                bundle,
            } if self.runs(member, run) => self.custody_tick(member, bundle),
            // Of an earlier run of that member.
            Ev::Intake { .. }
            | Ev::Publish { .. }
            | Ev::Chunk { .. }
            | Ev::Retry { .. }
            | Ev::Commit { .. }
            | Ev::Custody { .. } => {}
            Ev::Start(member) => self.start(member),
            Ev::Expire(bundle) => self.expire(bundle),
            Ev::Trouble => self.trouble(),
            Ev::User => self.user(),
            Ev::Lie(member) => self.lie_unasked(member),
            Ev::Heal => self.heal(),
            Ev::Watch => self.watch(),
        }
    }

    fn runs(&self, member: Member, run: u32) -> bool {
        self.nodes[member].up && self.nodes[member].run == run
    }

    pub(super) fn run_of(&self, member: Member) -> u32 {
        self.nodes[member].run
    }

    /// A moment of the disk of `member`.
    pub(super) fn disk_time(&mut self, member: Member) -> Time {
        self.random.below(4) * self.nodes[member].slow
    }

    pub(super) fn flawed(&self, flaw: Flaw) -> bool {
        self.plan.flaw == Some(flaw)
    }

    pub(super) fn honest(&self, member: Member) -> bool {
        !self.nodes[member].lies
    }

    /// How long it has run in all: what it may count as age.
    pub(super) fn age_of(&self, member: Member) -> Time {
        let node = &self.nodes[member];
        node.ran + if node.up { self.now - node.started } else { 0 }
    }

    // Connections.

    pub(super) fn link(&self, a: Member, b: Member) -> Link {
        let key = (a.min(b), a.max(b));
        self.links.get(&key).copied().unwrap_or_default()
    }

    pub(super) fn link_mut(&mut self, a: Member, b: Member) -> &mut Link {
        self.links.entry((a.min(b), a.max(b))).or_default()
    }

    pub(super) fn dial_soon(&mut self, a: Member, b: Member, delay: Time) {
        let link = self.link_mut(a, b);
        if !link.dialling {
            link.dialling = true;
            self.at(delay, Ev::Dial(a, b));
        }
    }

    fn dial(&mut self, a: Member, b: Member) {
        self.link_mut(a, b).dialling = false;
        let link = self.link(a, b);
        if link.conn.is_some() {
            return;
        }
        let ready = |n: &Node| n.up && n.frozen_until <= self.now;
        if link.cut_until <= self.now && ready(&self.nodes[a]) && ready(&self.nodes[b]) {
            self.connect(a, b);
        } else {
            let again = self.random.between(1_000, 5_000);
            self.dial_soon(a, b, again);
        }
    }

    /// Also while an older connection lives on: both ends then go over to this one.
    pub(super) fn connect(&mut self, a: Member, b: Member) {
        let conn = self.fifos.len();
        let (first, later) = (self.random.between(1, 30), self.random.between(1, 120));
        let mut fifo = [self.now + first; 2];
        fifo[usize::from(b > a)] += later;
        self.fifos.push([fifo; 2]);
        self.link_mut(a, b).conn = Some(conn);
        self.stats.connections += 1;
        for (member, peer, delay) in [(a, b, first), (b, a, first + later)] {
            self.at(delay, Ev::Up { member, peer, conn });
        }
    }

    /// The connection breaks; each end notices when it does.
    pub(super) fn disconnect(&mut self, a: Member, b: Member, noticed: [Time; 2]) {
        let link = self.links.get_mut(&(a.min(b), a.max(b)));
        let Some(conn) = link.and_then(|link| link.conn.take()) else {
            return;
        };
        for (member, peer, delay) in [(a, b, noticed[0]), (b, a, noticed[1])] {
            self.at(delay, Ev::Down { member, peer, conn });
        }
        let again = self.random.between(200, 4_000);
        self.dial_soon(a, b, again);
    }

    /// Queues a frame on the connection that `from` has with `to`. What is urgent overtakes what is not.
    pub(super) fn send(&mut self, from: Member, to: Member, said: Said, urgent: bool) {
        let Some(conn) = self.nodes[from].sessions.get(&to).map(|s| s.conn) else {
            return;
        };
        for said in self.as_it_says(from, to, said) {
            self.check_frame(from, to, &said);
            let delay = self.random.between(1, 40) * self.nodes[from].slow;
            let fifo = &mut self.fifos[conn][usize::from(urgent)][usize::from(to > from)];
            *fifo = (*fifo + 1).max(self.now + delay);
            let delay = *fifo - self.now;
            // What a connection carried may come again on the next one.
            if self.troubled && self.random.chance(5) {
                let later = delay + self.random.between(1, 20_000);
                let said = said.clone();
                let conn = None;
                let echo = Ev::Frame {
                    conn,
                    from,
                    to,
                    said,
                };
                self.at(later, echo);
                self.stats.echoes += 1;
            }
            let conn = Some(conn);
            let ev = Ev::Frame {
                conn,
                from,
                to,
                said,
            };
            self.at(delay, ev);
        }
    }

    /// Lets the core of a session decide, and carries out what it says.
    pub(super) fn drive(
        &mut self,
        member: Member,
        peer: Member,
        decide: impl FnOnce(&mut SessionCore, Duration, &mut Care, &mut Vec<Action>),
    ) {
        let now = Duration::from_millis(self.now);
        let Node { sessions, care, .. } = &mut self.nodes[member];
        let Some(session) = sessions.get_mut(&peer) else {
            return;
        };
        let mut out = Vec::new();
        decide(&mut session.core, now, care, &mut out);
        self.check_machine(member, peer);
        for action in out {
            if self.trace {
                println!("    {member} for {peer}: {action:?}");
            }
            self.act(member, peer, action);
        }
        self.plan_tick(member, peer);
    }
}

/// The id of a bundle; liars also use ids that are nobody's.
pub(super) fn bundle_id(bundle: Bundle) -> BundleId {
    let mut bytes = [0xb; 32];
    bytes[..4].copy_from_slice(&(bundle as u32).to_be_bytes());
    BundleId(bytes)
}

pub(super) fn bundle_of(id: BundleId) -> Bundle {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&id.0[..4]);
    u32::from_be_bytes(bytes) as Bundle
}

pub(super) fn peer_id(member: Member) -> PeerId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(member as u64).to_be_bytes());
    PeerId::from_bytes(bytes)
}

pub(super) fn member_of(id: PeerId) -> Member {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.as_bytes()[..8]);
    u64::from_be_bytes(bytes) as Member
}

/// A receipt as only `recipient` can make it. Signatures are modelled: making real ones would be all the work.
pub(super) fn receipt(bundle: Bundle, origin: Member, recipient: Member) -> Receipt {
    let mut secret =
        Random::new(((recipient as u64) << 32) ^ ((origin as u64) << 48) ^ bundle as u64);
    let mut signature = [0; 64];
    signature[..8].copy_from_slice(&secret.next().to_be_bytes());
    Receipt {
        bundle: bundle_id(bundle),
        origin: peer_id(origin),
        recipient: peer_id(recipient),
        signature: Signature(signature),
    }
}

pub(super) fn is_genuine(it: &Receipt) -> bool {
    *it == receipt(
        bundle_of(it.bundle),
        member_of(it.origin),
        member_of(it.recipient),
    )
}

/// The statement that ends a bundle, as only its origin can make it.
pub(super) fn cancel(bundle: Bundle, origin: Member) -> Cancel {
    Cancel {
        bundle: bundle_id(bundle),
        origin: peer_id(origin),
        reason: CancelReason::Cancelled,
        scope: Scope::All { generation: 0 },
        lifetime_secs: 0,
        signature: receipt(bundle, origin, origin).signature,
    }
}
