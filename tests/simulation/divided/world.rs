//! A history of a ledger in several partitions: its nodes, the sidecar that follows all of them, and what happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consentd::checker::Checker;
use consentd::follower::scheduler::{
    BUCKET_TIMEOUT, BucketRequest, PageRequest, RETRY_INTERVAL, ReadFailure, period,
};
use consentd::metrics::Metrics;
use consentd::table::Tables;
use consentd_core::businesses::Businesses;
use consentd_core::decision::Policy;
use consentd_core::partition::Layout;
use consentd_ledger::{Announcement, LogEntry, Page};
use consentd_os::clock::Moment;

use super::Features;
use super::checks::{Strong, Told};
use super::held::{decoded, decoded_bucket, decoded_page};
use super::partition::Partition;
use super::process;
use super::recorder::{Recorder, Step, WRITERS};
use crate::held::Held;
use crate::ledger::{SECRETS, Server, USERS};
use crate::oracle::{Acks, Violation};
use crate::plan::Plan;
use crate::process::{Owed, PROCESSES, Process};
use crate::random::Random;
use crate::saved::Saver;
use crate::sidecar::{Brought, Clocks, Sidecar, Wanted, true_time};
use crate::world::{MILLI, SECOND};

/// When a history begins, so that there is a time before it.
const BEGINS: u64 = 60 * SECOND;

/// One node of the cluster.
#[derive(Clone, Copy, Default)]
pub struct Machine {
    /// Until when it does not answer.
    pub down_until: u64,
    /// Its clock less the true time, in milliseconds.
    pub clock: i64,
}

/// What happens at some time, mostly to one partition.
pub enum Happening {
    AskedPage(usize, u64, PageRequest),
    AskedBucket(usize, u64, BucketRequest),
    /// Most nodes are asked who owns the partition, since the owner of this term answered.
    Confirmed(usize, u64, u64, PageRequest, Page),
    /// Something reaches the sidecar, in that one of its lives.
    Brought(usize, u64, Brought),
    /// The table of a partition is to be saved, or what was begun of that to be ended.
    Saved(usize),
    /// Other businesses may be held.
    Held,
    Recorder(usize, u64, Step),
    /// A process sees that a partition lost something.
    Noticed(usize),
    /// A process looks for what it has to give back, unless its recorder has begun something since.
    LooksForLost(usize, u64),
    Synced(usize),
    Check(usize),
    Fault,
    /// The replica becomes the owner, unless there is another one than of this term by now.
    Promoted(usize, u64),
    /// All keys are at another node, or all are back, unless the owner is another one by now.
    Migrated(usize, u64, bool),
    /// The owner is lost, with all that its replica does not have.
    TargetLost(usize, u64),
    /// A partition that was lost as a whole is restored from a backup.
    Restored(usize),
    /// The wire to the partition carries well again.
    Mended(usize),
}

pub struct World {
    pub random: Random,
    /// In microseconds.
    pub now: u64,
    pub plan: Plan,
    queue: BTreeMap<(u64, u64), Happening>,
    order: u64,
    pub steps: u64,
    pub machines: Vec<Machine>,
    pub partitions: Vec<Partition>,
    pub layout: Layout,
    /// The partition of each user.
    pub place: [usize; USERS],
    pub held: Held,
    pub tables: Tables,
    pub checker: Checker,
    pub acks: Acks,
    pub told: Vec<Told>,
    pub strong: Vec<Strong>,
    pub recorders: Vec<Recorder>,
    pub processes: Vec<Process>,
    /// What each process must give back, if the ledger lacks it.
    pub owed: Vec<(usize, Owed)>,
    /// How often a person was erased.
    pub erasures: u64,
    /// How often something was lost.
    pub taken: u64,
    pub life: u64,
    pub clocks: Clocks,
    pub frozen_until: u64,
    pub kinds: Vec<super::faults::Fault>,
    /// The partitions that faults of one partition are for.
    pub victims: Vec<usize>,
    pub metrics: Arc<Metrics>,
    pub writing: bool,
    pub faulty: bool,
    pub traced: bool,
}

fn plan(random: &mut Random, features: Features) -> Plan {
    Plan {
        bound: Duration::from_secs(random.pick(&[1, 5])),
        scrub_every: random.pick(&[400, 2_000, 4_000]) * MILLI,
        most_sticky: 100_000,
        page: usize::try_from(random.pick(&[4, 8, 64])).unwrap(),
        write_every: random.pick(&[100, 400, 1_500]) * MILLI,
        confirmed: random.percent(50),
        buckets: random.pick(&[1, 4]),
        log: random.pick(&[300, 1_000_000]),
        strikes: false,
        some: features.some,
        people: true,
        memories: features.memories,
        erases: features.erases,
    }
}

impl World {
    pub fn new(seed: u64, features: Features, metrics: &Arc<Metrics>) -> Self {
        let mut random = Random::new(seed);
        let plan = plan(&mut random, features);
        let held = Held::new(seed, features.some);
        let (partitions, spread) = random.pick(&[(2, 2), (4, 4), (4, 2)]);
        let layout = Layout::new(partitions, spread).unwrap();
        let count = random.index(4) + 3;
        let machine = |random: &mut Random| Machine {
            down_until: 0,
            clock: random.pick(&[-4_000, 0, 0, 700, 3_000]),
        };
        let machines: Vec<Machine> = (0..count).map(|_| machine(&mut random)).collect();
        let secret = random.index(SECRETS);
        let clocks = Clocks::default();
        let moment = clocks.moment(Duration::from_micros(BEGINS));
        let mut all = Vec::new();
        for number in 0..usize::try_from(partitions).unwrap() {
            let mut primary =
                Server::new(&mut random, secret, plan.buckets, None).in_layout(layout);
            let owner = number % count;
            primary.clock = machines[owner].clock;
            // It is replaced where the partition is followed.
            let (sidecar, _) = Sidecar::start(0, &plan, Businesses::All, metrics, moment, None);
            let mut partition = Partition::new(primary, owner, (owner + 1) % count, sidecar);
            let salt = u64::try_from(number + 1).unwrap() << 50;
            partition.saver = Saver::new(seed ^ salt).filter(|_| features.saves);
            all.push(partition);
        }
        let key = |user| layout.partition_of(all[0].primary.key_of(user));
        let place = std::array::from_fn(|user| usize::try_from(key(user)).unwrap());
        let tables = Tables::from(all[0].sidecar.table.clone());
        let checker = checker(&tables, plan.bound, metrics);
        let kinds = super::faults::kinds(&mut random);
        let mut world = Self {
            random,
            now: BEGINS,
            plan,
            queue: BTreeMap::new(),
            order: 0,
            steps: 0,
            machines,
            partitions: all,
            layout,
            place,
            held,
            tables,
            checker,
            acks: Acks::default(),
            told: Vec::new(),
            strong: Vec::new(),
            recorders: Vec::new(),
            processes: (0..PROCESSES).map(|_| Process::default()).collect(),
            owed: Vec::new(),
            erasures: 0,
            taken: 0,
            life: 0,
            clocks,
            frozen_until: 0,
            kinds,
            victims: Vec::new(),
            metrics: Arc::clone(metrics),
            writing: true,
            faulty: false,
            traced: std::env::var_os("CONSENTD_TRACE").is_some(),
        };
        for at in 0..world.partitions.len() {
            world.partitions[at].is_ill(BEGINS);
            world.after(0, Happening::Synced(at));
            if world.partitions[at].saver.is_some() {
                world.after(0, Happening::Saved(at));
            }
        }
        world.follow_all();
        if world.plan.some {
            world.after(0, Happening::Held);
        }
        world.after(0, Happening::Fault);
        let givers = if world.plan.memories { PROCESSES } else { 0 };
        world.recorders.resize_with(WRITERS + givers, Recorder::default);
        for index in 0..world.recorders.len() {
            world.recorder_starts(index);
        }
        world
    }

    /// The part of the sidecar that follows a partition begins.
    pub fn begin(&mut self, at: usize, asks: Vec<Wanted>) {
        let life = self.partitions[at].life;
        self.after(0, Happening::Brought(at, life, Brought::Tick));
        self.after(0, Happening::Brought(at, life, Brought::ScrubDue));
        self.want(at, asks);
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
                let told = super::trace::told(&happening);
                println!("{:>6} {:>9.3} {told}", self.steps, self.time().as_secs_f64());
            }
            self.step(happening)?;
        }
        Ok(())
    }

    /// Whether nothing comes of it.
    fn is_over(&self, happening: &Happening) -> bool {
        match happening {
            Happening::Brought(at, life, _) if !self.partitions[*at].is_in(*life) => true,
            Happening::Brought(
                at,
                _,
                Brought::Page(id, _, None) | Brought::Bucket(id, _, Err(_)),
            ) => !self.partitions[*at].sidecar.is_open(*id),
            Happening::Recorder(index, operation, _) => {
                self.recorders[*index].operation != *operation
            }
            _ => false,
        }
    }

    fn step(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::AskedPage(at, id, question) => self.answer_page(at, id, question),
            Happening::AskedBucket(at, id, question) => self.answer_bucket(at, id, question),
            Happening::Confirmed(at, term, id, question, page) => {
                self.confirm(at, term, id, question, page);
            }
            Happening::Brought(at, _, brought) => self.bring(at, brought)?,
            Happening::Saved(at) => self.save(at),
            Happening::Held => self.hold_others(),
            Happening::Noticed(process) => self.notices(process),
            Happening::LooksForLost(process, operation) => {
                self.looks_for_lost_when_awake(process, operation);
            }
            Happening::Recorder(index, _, step) => self.recorder(index, step)?,
            Happening::Synced(at) => {
                let partition = &mut self.partitions[at];
                if !partition.lags && !partition.is_missing {
                    partition.replica = partition.primary.clone();
                }
                let wait = self.random.between(20, 1_000) * MILLI;
                self.after(wait, Happening::Synced(at));
            }
            Happening::Check(user) => self.check(user)?,
            Happening::Fault => {
                if self.faulty {
                    self.fault();
                }
                let wait = self.random.between(50, 4_000) * MILLI;
                self.after(wait, Happening::Fault);
            }
            Happening::Promoted(at, term) => {
                if self.partitions[at].term == term {
                    self.fail_over(at);
                }
            }
            Happening::Migrated(at, term, completed) => self.migrated(at, term, completed),
            Happening::TargetLost(at, term) => self.target_lost(at, term),
            Happening::Restored(at) => self.restored(at),
            Happening::Mended(at) => {
                if self.now >= self.partitions[at].wire_until {
                    self.partitions[at].wire = crate::wire::Wire::healthy();
                }
            }
        }
        // A check reads several tables: it is asked at some of the steps, and where something is due.
        if self.random.percent(35) {
            let user = self.random.index(USERS);
            self.check(user)?;
        }
        Ok(())
    }

    fn bring(&mut self, at: usize, brought: Brought) -> Result<(), Violation> {
        let life = self.partitions[at].life;
        if self.frozen_until > self.now {
            let wait = self.frozen_until - self.now;
            self.after(wait, Happening::Brought(at, life, brought));
            return Ok(());
        }
        // Of what is wanted the latest counts.
        let wanted = self.partitions[at].wanted.clone();
        let brought = match brought {
            Brought::Held(_) => Brought::Held(wanted),
            brought => brought,
        };
        match &brought {
            Brought::Tick => {
                let wait = u64::try_from(period(self.plan.bound).as_micros()).unwrap();
                self.after(wait, Happening::Brought(at, life, Brought::Tick));
            }
            Brought::ScrubDue => {
                let wait = self.plan.scrub_every;
                self.after(wait, Happening::Brought(at, life, Brought::ScrubDue));
            }
            _ => {}
        }
        let moment = self.moment();
        let sidecar = &mut self.partitions[at].sidecar;
        sidecar.traced = self.traced;
        let (wanted, touched) = sidecar.on(brought, moment)?;
        let is_lost = std::mem::take(&mut sidecar.lost);
        self.want(at, wanted);
        self.hold_loaded();
        if is_lost {
            self.notices(process::OWN);
        }
        self.check_held()?;
        self.partitions[at].after_step(touched)
    }

    fn want(&mut self, at: usize, wanted: Vec<Wanted>) {
        let life = self.partitions[at].life;
        let wire = self.partitions[at].wire;
        for wanted in wanted {
            match wanted {
                Wanted::Page(id, question) => {
                    let (boot, now) = (self.moment().boot, self.now);
                    self.partitions[at].asks(boot, now);
                    let within = u64::try_from(period(self.plan.bound).as_micros()).unwrap();
                    let none = Brought::Page(id, question, None);
                    self.after(within, Happening::Brought(at, life, none));
                    if !self.random.percent(wire.page_loss) {
                        let wait = wire.page_delay(&mut self.random) / 2;
                        self.after(wait, Happening::AskedPage(at, id, question));
                    }
                }
                Wanted::Bucket(id, question, wait) => {
                    let wait = u64::try_from(wait.as_micros()).unwrap();
                    let within = u64::try_from(BUCKET_TIMEOUT.as_micros()).unwrap();
                    let none = Brought::Bucket(id, question, Err(ReadFailure::Unanswered));
                    self.after(wait + within, Happening::Brought(at, life, none));
                    if !self.random.percent(wire.bucket_loss) {
                        let wait = wait + wire.bucket_delay(&mut self.random);
                        self.after(wait, Happening::AskedBucket(at, id, question));
                    }
                }
                Wanted::Again => {
                    let wait = u64::try_from(RETRY_INTERVAL.as_micros()).unwrap();
                    self.after(wait, Happening::Brought(at, life, Brought::Again));
                }
            }
        }
    }

    /// The server that a client reaches, with its node and its term.
    pub fn reached(&mut self, at: usize) -> Option<(&Server, u64)> {
        let reaches_former = self.random.percent(40);
        let now = self.now;
        let partition = &self.partitions[at];
        if let Some(former) = partition.former(now).filter(|_| reaches_former) {
            let is_up = now >= self.machines[former.machine].down_until;
            return is_up.then_some((&former.server, former.term));
        }
        let is_up = now >= self.machines[partition.owner].down_until && !partition.is_silent(now);
        is_up.then_some((&partition.primary, partition.term))
    }

    fn answer_page(&mut self, at: usize, id: u64, question: PageRequest) {
        let (life, now) = (self.partitions[at].life, true_time(self.time()));
        let (most, wanted) = (self.plan.page, self.partitions[at].wanted.clone());
        let current = self.partitions[at].term;
        let Some((server, term)) = self.reached(at) else { return };
        let page = decoded_page(&wanted, server.page(question.after, most, now));
        let wire = self.partitions[at].wire;
        if self.random.percent(wire.page_loss) {
            return;
        }
        let wait = wire.page_delay(&mut self.random) / 2;
        if term == current && self.partitions[at].is_missing {
            return self.after(wait, Happening::Brought(at, life, Brought::Gone(id, question)));
        }
        self.after(wait, Happening::Confirmed(at, term, id, question, page));
    }

    /// An answer is a proof only by the word of most nodes, who are asked after it.
    fn confirm(&mut self, at: usize, term: u64, id: u64, question: PageRequest, page: Page) {
        let partition = &self.partitions[at];
        let (life, until) = (partition.life, partition.unconfirmed_until);
        if until > self.now {
            // It comes late, or never.
            if self.random.percent(50) {
                let wait = until - self.now + self.random.between(1, 50) * MILLI;
                self.after(wait, Happening::Confirmed(at, term, id, question, page));
            }
            return;
        }
        let page = (partition.term == term).then_some(page);
        self.after(0, Happening::Brought(at, life, Brought::Page(id, question, page)));
    }

    fn answer_bucket(&mut self, at: usize, id: u64, question: BucketRequest) {
        let (life, wanted) = (self.partitions[at].life, self.partitions[at].wanted.clone());
        let current = self.partitions[at].term;
        // Reading a bucket needs nobody's word: its label is compared with the log.
        let bucket = match self.reached(at) {
            None => Err(ReadFailure::Unanswered),
            Some((server, term)) => {
                Ok((decoded_bucket(&wanted, server.bucket(question.number)), term))
            }
        };
        let bucket = bucket.and_then(|(bucket, term)| {
            let is_missing = term == current && self.partitions[at].is_missing;
            if is_missing { Err(ReadFailure::Unanswered) } else { Ok(bucket) }
        });
        let wire = self.partitions[at].wire;
        if self.random.percent(wire.bucket_loss) {
            return;
        }
        let wait = wire.bucket_delay(&mut self.random);
        self.after(wait, Happening::Brought(at, life, Brought::Bucket(id, question, bucket)));
    }

    /// Tells the sidecar of an entry of a partition, as well as the wire does.
    pub fn announce(&mut self, at: usize, entry: &LogEntry) {
        let (life, wire) = (self.partitions[at].life, self.partitions[at].wire);
        let entry = &decoded(&self.partitions[at].wanted, entry);
        let epoch = self.partitions[at].primary.end().epoch;
        for _ in 0..=u64::from(self.random.percent(wire.twice)) {
            if self.random.percent(wire.announce_loss) {
                if self.random.percent(wire.loss_told) {
                    let wait = wire.announce_delay(&mut self.random);
                    self.after(wait, Happening::Brought(at, life, Brought::Missed));
                }
                continue;
            }
            let mut when = self.now + wire.announce_delay(&mut self.random);
            if !wire.reorders {
                when = when.max(self.partitions[at].last_announced);
                self.partitions[at].last_announced = when;
            }
            let announcement = Announcement { epoch, entries: [entry.clone()].into() };
            let brought = Brought::Announced(announcement);
            self.after(when - self.now, Happening::Brought(at, life, brought));
        }
    }

    /// Replaces the sidecar by one that was just started.
    pub fn restart(&mut self) {
        self.frozen_until = 0;
        for partition in &mut self.partitions {
            if let Some(saver) = &mut partition.saver {
                saver.on_restart();
            }
        }
        self.follow_all();
        self.process_restarts();
    }
}

pub fn checker(tables: &Tables, bound: Duration, metrics: &Arc<Metrics>) -> Checker {
    Checker::new(tables.clone(), Policy::default(), bound, Arc::clone(metrics))
}
