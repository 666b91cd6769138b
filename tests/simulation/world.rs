//! One history: a ledger, recorders, a sidecar, the wire between them, and what goes wrong.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use consentd::follower::scheduler::{
    BUCKET_TIMEOUT, BucketRequest, PageRequest, RETRY_INTERVAL, ReadFailure, period,
};
use consentd::metrics::Metrics;
use consentd_ledger::{Announcement, Epoch, FollowerPosition, Position};
use consentd_os::clock::Moment;

use crate::faults::Faults;
use crate::held::Held;
use crate::ledger::{CATEGORIES, Node, SECRETS, Server, USERS, user};
use crate::oracle::{Acks, Violation};
use crate::past::Past;
pub use crate::plan::{Features, Plan};
use crate::process::{OWN, Owed, PROCESSES, Process, WRITERS};
use crate::random::Random;
use crate::recorder::{Recorder, Step};
use crate::saved::Saver;
use crate::sidecar::{Brought, Clocks, Sidecar, Wanted};
use crate::wire::Wire;

pub const MILLI: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;

/// How long what was announced may take to be applied where all is well but for an announcement
/// that was lost before it: a poll that is under way, and some pages.
const APPLIED_WITHIN: u64 = 300 * MILLI;

/// What happens at some time.
pub enum Happening {
    /// A question reaches the ledger.
    AskedPage(u64, PageRequest),
    AskedBucket(u64, BucketRequest),
    /// Something reaches the sidecar, in that one of its lives.
    Brought(u64, Brought),
    Recorder(usize, u64, Step),
    /// The replica catches up.
    Synced,
    /// An operator repairs a bucket of that ledger.
    Repaired(Epoch, u32),
    /// Somebody asks about a user.
    Check(usize),
    /// What was announced past a gap, or behind what is applied, is applied by now.
    Expected(u64, Position),
    Fault,
    /// Something goes wrong while a snapshot is being read.
    Struck,
    /// A replica that lagged becomes the primary.
    Promoted,
    /// A process sees that the ledger lost something.
    Noticed(usize),
    /// A process looks for what it has to give back, unless its recorder has begun something since.
    LooksForLost(usize, u64),
    /// The table is to be saved, or what was begun of that to be ended.
    Saved,
    /// Other businesses may be held.
    Held,
}

/// A primary that was replaced and does not know: it answers reads, and refuses the rest.
pub struct Isolated {
    pub server: Server,
    /// Until when the sidecar reaches it.
    pub until: u64,
    /// Whether with all that it asks; else another connection has found the new primary, and buckets
    /// alone are read here.
    pub wholly: bool,
}

pub struct World {
    pub random: Random,
    /// In microseconds since the history began.
    pub now: u64,
    pub plan: Plan,
    queue: BTreeMap<(u64, u64), Happening>,
    order: u64,
    pub steps: u64,
    pub primary: Server,
    pub replica: Server,
    pub isolated: Option<Isolated>,
    pub backups: Vec<Server>,
    /// Until when no server answers.
    pub down_until: u64,
    pub replica_lags: bool,
    pub nodes: HashMap<(Epoch, [u8; 20]), Rc<Node>>,
    past: Past,
    pub acks: Acks,
    pub held: Held,
    pub saver: Option<Saver>,
    /// How often something was lost, or a pair was erased.
    pub losses: u64,
    /// How often something was lost.
    pub taken: u64,
    /// Where the sidecar's follower is, for the recorder of the same process.
    pub position: FollowerPosition,
    pub processes: Vec<Process>,
    /// What each process must give back, if the ledger lacks it.
    pub owed: Vec<(usize, Owed)>,
    /// Pairs that were written behind the log's back.
    pub loose: [bool; USERS],
    /// Pairs whose bucket was lost once: the table may deny them for that.
    pub doubted: [bool; USERS],
    pub unreadable_entry: bool,
    pub recorders: Vec<Recorder>,
    pub sidecar: Sidecar,
    pub life: u64,
    pub clocks: Clocks,
    pub frozen_until: u64,
    pub wire: Wire,
    pub faults: Faults,
    /// When the last announcement arrives, where the wire keeps their order.
    pub last_announced: u64,
    metrics: Arc<Metrics>,
    /// Whether all faults are over and done with.
    pub settled: bool,
    /// Whether recorders write, and whether faults happen.
    pub writing: bool,
    pub faulty: bool,
    /// Whether every step is printed.
    pub traced: bool,
}

impl World {
    pub fn new(seed: u64, features: Features, metrics: &Arc<Metrics>) -> Self {
        let mut random = Random::new(seed);
        let mut plan = Plan {
            bound: Duration::from_secs(random.pick(&[1, 5])),
            scrub_every: random.pick(&[50, 400, 2_000]) * MILLI,
            most_sticky: random.pick(&[100_000, 100_000, 100_000, 2]),
            page: usize::try_from(random.pick(&[1, 4, 8, 64])).unwrap(),
            write_every: random.pick(&[100, 400, 1_500]) * MILLI,
            confirmed: random.percent(50),
            buckets: random.pick(&[1, 4, 20]),
            log: random.pick(&[300, 1_000_000]),
            strikes: random.percent(50),
            people: features.people,
            some: features.some,
            memories: features.memories,
            erases: features.erases,
        };
        if plan.page == 1 {
            plan.write_every = plan.write_every.max(400 * MILLI); // Else no reader keeps up.
        }
        let held = Held::new(seed, features.some);
        let secret = random.index(SECRETS);
        let primary = Server::new(&mut random, secret, plan.buckets, None);
        let clocks = Clocks::default();
        let moment = clocks.moment(Duration::ZERO);
        let mut faults = Faults::new(&mut random, features);
        faults.lose_buckets(seed, features);
        if faults.are_out_of_band() {
            plan.most_sticky = 100_000; // A scrub would find too much at any time, and not at faults.
        }
        let (sidecar, wanted) =
            Sidecar::start(0, &plan, held.wanted.clone(), metrics, moment, None);
        let mut world = Self {
            random,
            now: 0,
            plan,
            queue: BTreeMap::new(),
            order: 0,
            steps: 0,
            replica: primary.clone(),
            primary,
            isolated: None,
            backups: Vec::new(),
            down_until: 0,
            replica_lags: false,
            nodes: HashMap::new(),
            past: Past::default(),
            acks: Acks::default(),
            held,
            saver: Saver::new(seed),
            losses: 0,
            taken: 0,
            position: FollowerPosition::default(),
            processes: (0..PROCESSES).map(|_| Process::default()).collect(),
            owed: Vec::new(),
            loose: [false; USERS],
            doubted: [false; USERS],
            unreadable_entry: false,
            recorders: Vec::new(),
            sidecar,
            life: 0,
            clocks,
            frozen_until: 0,
            wire: Wire::healthy(),
            faults,
            last_announced: 0,
            metrics: Arc::clone(metrics),
            settled: false,
            writing: true,
            faulty: false,
            traced: std::env::var_os("CONSENTD_TRACE").is_some(),
        };
        world.know();
        world.want(wanted);
        world.after(0, Happening::Brought(0, Brought::Tick));
        world.after(0, Happening::Brought(0, Brought::ScrubDue));
        world.after(0, Happening::Synced);
        world.after(0, Happening::Fault);
        if world.plan.some {
            world.after(0, Happening::Held);
        }
        if world.saver.is_some() {
            world.after(0, Happening::Saved);
        }
        let givers = if world.plan.memories { PROCESSES } else { 0 };
        world.recorders.resize_with(WRITERS + givers, Recorder::default);
        for index in 0..world.recorders.len() {
            world.recorder_starts(index);
        }
        world
    }

    pub fn time(&self) -> Duration {
        Duration::from_micros(self.now)
    }

    pub fn moment(&self) -> Moment {
        self.clocks.moment(self.time())
    }

    pub fn after(&mut self, wait: u64, happening: Happening) {
        self.order += 1;
        self.queue.insert((self.now + wait, self.order), happening);
    }

    /// The node at which the primary stands is one that the ledger had.
    pub fn know(&mut self) {
        let end = self.primary.end();
        self.nodes.insert((end.epoch, end.head), Rc::clone(&self.primary.node));
        self.past.stands(self.now, &self.primary.node);
    }

    /// A server that is not the primary any more stands at this node.
    pub fn know_branch(&mut self, node: &Rc<Node>) {
        self.nodes.insert((node.position.epoch, node.position.head), Rc::clone(node));
        self.past.forks();
    }

    /// Goes on until then, at the latest until `done`.
    pub fn run(
        &mut self,
        until: u64,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), Violation> {
        while !done(self) {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            if next.is_none_or(|at| at > until) {
                self.now = self.now.max(until);
                break;
            }
            let Some(((at, _), happening)) = self.queue.pop_first() else { break };
            if self.is_over(&happening) {
                continue;
            }
            self.now = self.now.max(at);
            self.steps += 1;
            if self.traced {
                println!(
                    "{:>6} {:>9.3} {}",
                    self.steps,
                    self.time().as_secs_f64(),
                    crate::trace::told(&happening)
                );
            }
            self.step(happening)?;
        }
        Ok(())
    }

    /// Whether nothing comes of it: a question that was answered long since does not time out.
    fn is_over(&self, happening: &Happening) -> bool {
        match happening {
            Happening::Brought(life, _) if *life != self.life => true,
            Happening::Brought(_, Brought::Page(id, _, None) | Brought::Bucket(id, _, Err(_))) => {
                !self.sidecar.is_open(*id)
            }
            Happening::Recorder(index, operation, _) => {
                self.recorders[*index].operation != *operation
            }
            _ => false,
        }
    }

    fn step(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::AskedPage(id, question) => self.answer_page(id, question),
            Happening::AskedBucket(id, question) => self.answer_bucket(id, question),
            Happening::Brought(life, brought) => {
                if life == self.life {
                    self.bring(brought)?;
                }
            }
            Happening::Recorder(index, operation, step) => self.recorder(index, operation, step),
            Happening::Synced => {
                if !self.replica_lags {
                    self.replica = self.primary.clone();
                }
                let wait = self.random.between(20, 400) * MILLI;
                self.after(wait, Happening::Synced);
            }
            Happening::Repaired(epoch, number) => self.repair(epoch, number),
            Happening::Check(number) => self.check(number)?,
            Happening::Saved => self.save(),
            Happening::Held => self.hold_others(),
            Happening::Expected(life, position) => self.expected(life, position)?,
            Happening::Fault => {
                if self.faulty {
                    self.fault();
                }
                let wait = self.random.between(20, 2_500) * MILLI;
                self.after(wait, Happening::Fault);
            }
            Happening::Struck => {
                if self.faulty {
                    self.fault();
                }
            }
            Happening::Noticed(process) => self.notices(process),
            Happening::LooksForLost(process, operation) => {
                let is_current = self.recorders[WRITERS + process].operation == operation;
                let frozen = self.frozen_until.saturating_sub(self.now);
                if is_current && process == OWN && frozen > 0 {
                    self.after(frozen, Happening::LooksForLost(process, operation));
                } else if is_current {
                    self.looks_for_lost(process);
                }
            }
            Happening::Promoted => {
                if self.faulty {
                    self.fail_over();
                    self.replica_lags = false;
                }
            }
        }
        let number = self.random.index(USERS);
        self.check(number)
    }

    /// Properties 3 and 4, for one user.
    fn check(&self, number: usize) -> Result<(), Violation> {
        if self.frozen_until > self.now {
            return Ok(());
        }
        let (name, moment) = (user(number), self.moment());
        let known: [Cell<Option<bool>>; CATEGORIES.len()] = Default::default();
        let allows = |category: usize| {
            if let Some(known) = known[category].get() {
                return Ok(known);
            }
            let allows = self.sidecar.allows(name, category, moment)?;
            known[category].set(Some(allows));
            Ok(allows)
        };
        self.acks.check(number, self.time(), self.plan.bound, allows)
    }

    fn bring(&mut self, brought: Brought) -> Result<(), Violation> {
        if self.frozen_until > self.now {
            let wait = self.frozen_until - self.now;
            let life = self.life;
            self.after(wait, Happening::Brought(life, brought));
            return Ok(());
        }
        let (life, every) = (self.life, period(self.plan.bound));
        match &brought {
            Brought::Tick => {
                let wait = u64::try_from(every.as_micros()).unwrap();
                self.after(wait, Happening::Brought(life, Brought::Tick));
            }
            Brought::ScrubDue => {
                let wait = self.plan.scrub_every;
                self.after(wait, Happening::Brought(life, Brought::ScrubDue));
            }
            Brought::Announced(Announcement { epoch, entries }) if self.settled => {
                let applied = self.sidecar.scheduler().state_machine().applied();
                for entry in entries.iter() {
                    let missing = entry.revision.saturating_sub(applied);
                    let pages = missing.div_ceil(u64::try_from(self.plan.page).unwrap());
                    let within = APPLIED_WITHIN + pages * 40 * MILLI;
                    let (revision, head) = (entry.revision, entry.head);
                    let position = Position { epoch: *epoch, revision, head };
                    if self.primary.has(position) {
                        self.after(within, Happening::Expected(life, position));
                    }
                }
            }
            _ => {}
        }
        let moment = self.moment();
        self.sidecar.traced = self.traced;
        let (wanted, touched) = self.sidecar.on(brought, moment)?;
        self.want(wanted);
        if std::mem::take(&mut self.sidecar.lost) {
            self.notices(OWN);
        }
        let machine = self.sidecar.scheduler().state_machine();
        self.position.advance(machine.position(), |revision| machine.head_at(revision));
        if touched {
            self.check_table()?;
        }
        if std::mem::take(&mut self.sidecar.unloaded) && self.past.is_whole() {
            return Err(Violation::new(2, "taken out, though nothing was ever lost"));
        }
        if std::mem::take(&mut self.sidecar.begun) && self.plan.strikes && self.random.percent(60) {
            let wait = self.random.between(1, 1_500) * MILLI;
            self.after(wait, Happening::Struck);
        }
        self.check_proofs()
    }

    /// Property 5: an announcement that is lost costs what comes behind it a poll, not a period.
    fn expected(&self, life: u64, position: Position) -> Result<(), Violation> {
        let at = self.sidecar.scheduler().state_machine().position();
        let gone = !self.settled || life != self.life || at.epoch != position.epoch;
        if gone || at.revision >= position.revision {
            return Ok(());
        }
        let why = format!("{} was announced, and {} is applied", position.revision, at.revision);
        Err(Violation::new(5, why))
    }

    /// Property 3, of what the table was just proven to be.
    fn check_proofs(&mut self) -> Result<(), Violation> {
        let Position { epoch, head, .. } = self.sidecar.scheduler().state_machine().position();
        for asked in std::mem::take(&mut self.sidecar.proven) {
            let node = self.nodes.get(&(epoch, head));
            let node =
                node.ok_or_else(|| Violation::new(2, "proven where no ledger ever stood"))?;
            self.past.proves(asked.boot, node)?;
        }
        Ok(())
    }

    /// Properties 2 and 6.
    fn check_table(&mut self) -> Result<(), Violation> {
        let position = self.sidecar.scheduler().state_machine().position();
        let node = self.nodes.get(&(position.epoch, position.head));
        if !self.sidecar.is_valid() {
            if let Some(node) = node {
                self.sidecar.guards.pass(&node.pairs);
            }
            return Ok(());
        }
        let Some(node) = node.filter(|node| node.position == position) else {
            return Err(Violation::new(2, format!("no ledger ever stood at {position:?}")));
        };
        let Sidecar { guards, table, checked, .. } = &mut self.sidecar;
        // What one page brought at once was said in an order.
        let from = checked.replace(position).filter(|from| from.epoch == position.epoch);
        if let Some(from) = from {
            node.way_from(from.revision).iter().for_each(|node| guards.pass(&node.pairs));
        }
        guards.check_remembered(table)?;
        guards.check(table, &node.pairs, self.loose, self.doubted)
    }

    fn want(&mut self, wanted: Vec<Wanted>) {
        let life = self.life;
        for wanted in wanted {
            match wanted {
                Wanted::Page(id, question) => {
                    self.past.asks(self.moment().boot, self.now);
                    let within = u64::try_from(period(self.plan.bound).as_micros()).unwrap();
                    let none = Brought::Page(id, question, None);
                    self.after(within, Happening::Brought(life, none));
                    if !self.random.percent(self.wire.page_loss) {
                        let wait = self.wire.page_delay(&mut self.random);
                        self.after(wait, Happening::AskedPage(id, question));
                    }
                }
                Wanted::Bucket(id, question, wait) => {
                    let wait = u64::try_from(wait.as_micros()).unwrap();
                    let within = u64::try_from(BUCKET_TIMEOUT.as_micros()).unwrap();
                    let none = Brought::Bucket(id, question, Err(ReadFailure::Unanswered));
                    self.after(wait + within, Happening::Brought(life, none));
                    if !self.random.percent(self.wire.bucket_loss) {
                        let wait = wait + self.wire.bucket_delay(&mut self.random);
                        self.after(wait, Happening::AskedBucket(id, question));
                    }
                }
                Wanted::Again => {
                    let wait = u64::try_from(RETRY_INTERVAL.as_micros()).unwrap();
                    self.after(wait, Happening::Brought(life, Brought::Again));
                }
            }
        }
    }

    /// Replaces the sidecar by one that was just started.
    pub fn restart(&mut self) {
        let gone = self.life;
        self.queue.retain(|_, it| !matches!(it, Happening::Brought(life, _) if *life == gone));
        self.life += 1;
        let (moment, held) = (self.moment(), self.held.wanted.clone());
        if let Some(saver) = &mut self.saver {
            saver.on_restart();
        }
        let file = self.saver.as_ref().and_then(|saver| saver.file.as_ref());
        let (sidecar, wanted) =
            Sidecar::start(self.life << 32, &self.plan, held, &self.metrics, moment, file);
        self.sidecar = sidecar;
        self.past.forget_questions();
        self.frozen_until = 0;
        self.process_restarts();
        for (number, loose) in self.loose.into_iter().enumerate() {
            if loose {
                self.sidecar.guards.may_deny(number);
            }
        }
        let life = self.life;
        self.after(0, Happening::Brought(life, Brought::Tick));
        self.after(0, Happening::Brought(life, Brought::ScrubDue));
        self.want(wanted);
    }
}
