//! A sidecar: the real driver, machine, applier, table and gate, on clocks of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use consentd::clock::Moment;
use consentd::consent::time::Timestamp;
use consentd::decision::{Form, Policy};
use consentd::follower::apply::{Applier, Done};
use consentd::follower::driver::{BucketQuestion, Driver, NotRead, PageQuestion, Task};
use consentd::follower::machine::Action;
use consentd::gate::{Gate, Question};
use consentd::ledger::{Announcement, Bucket, Epoch, Page};
use consentd::metrics::Metrics;
use consentd::table::{Table, Validity};

use crate::ledger::{BUSINESS, CATEGORIES};
use crate::oracle::{Guards, Violation};

/// The clocks of a machine, beside the true time.
#[derive(Clone, Copy, Default)]
pub struct Clocks {
    /// By how much the time since boot is behind: an image that was restored has not run meanwhile.
    pub behind: Duration,
    /// By how many milliseconds the wall clock is off.
    pub wall: i64,
}

impl Clocks {
    pub fn moment(self, now: Duration) -> Moment {
        let wall = true_time(now).as_millis() + self.wall;
        Moment {
            boot: now.saturating_sub(self.behind),
            wall: Timestamp::saturating_from_millis(wall),
        }
    }
}

/// What clocks that are right say.
pub fn true_time(now: Duration) -> Timestamp {
    Timestamp::from_millis(1_750_000_000_000).unwrap().plus(now)
}

/// What the wire brings.
pub enum Brought {
    Page(u64, PageQuestion, Option<Page>),
    Bucket(u64, BucketQuestion, Option<Bucket>),
    Again,
    Tick,
    ScrubDue,
    Announced(Announcement),
    Missed,
}

/// What is to be asked.
pub enum Wanted {
    Page(u64, PageQuestion),
    Bucket(u64, BucketQuestion, Duration),
    Again,
}

pub struct Sidecar {
    driver: Driver,
    applier: Applier,
    pub table: Table,
    gate: Gate,
    pub bound: Duration,
    /// Questions that are neither answered nor timed out.
    open: HashSet<u64>,
    asked: u64,
    pub guards: Guards,
    /// How often the ledger that is followed had been accepted as it is.
    pub accepted: Option<(Epoch, u64)>,
    pub overflowed: bool,
    buckets: u32,
    /// Whether what is done to the table is printed.
    pub traced: bool,
}

impl Sidecar {
    /// A sidecar that was just started, and what it asks first.
    pub fn start(
        bound: Duration,
        most: usize,
        metrics: &Arc<Metrics>,
        now: Moment,
    ) -> (Self, Vec<Wanted>) {
        let (table, writer) = consentd::table::new();
        let gate = Gate::new(table.clone(), Policy::default(), bound, Arc::clone(metrics));
        let (driver, tasks) = Driver::new(now);
        let mut sidecar = Self {
            driver,
            applier: Applier::new(writer, most),
            table,
            gate,
            bound,
            open: HashSet::new(),
            asked: 0,
            guards: Guards::default(),
            accepted: None,
            overflowed: false,
            buckets: 0,
            traced: false,
        };
        let wanted = sidecar.perform(tasks);
        (sidecar, wanted)
    }

    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Takes what the wire brought; gives what to ask, and whether the table may have changed.
    pub fn on(&mut self, brought: Brought, now: Moment) -> Result<(Vec<Wanted>, bool), Violation> {
        let mut page_said = None;
        let tasks = match brought {
            Brought::Page(id, ..) | Brought::Bucket(id, ..) if !self.open.remove(&id) => {
                return Ok((Vec::new(), false)); // It has timed out, or been answered.
            }
            Brought::Page(_, question, page) => {
                page_said = page.as_ref().map(|page| {
                    (page.clock, page.identity.epoch, page.accepted, page.identity.buckets)
                });
                if let Some((clock, ..)) = page_said {
                    self.guards.on_clock(clock);
                }
                self.driver.on_page(question, page.ok_or(NotRead::Unanswered), now)
            }
            Brought::Bucket(_, question, bucket) => self.driver.on_bucket(question, bucket, now),
            Brought::Again => self.driver.on_again(now),
            Brought::Tick => self.driver.on_tick(now),
            Brought::ScrubDue => self.driver.on_scrub_due(now),
            Brought::Announced(announcement) => self.driver.on_announcement(announcement, now),
            Brought::Missed => self.driver.on_missed(now),
        };
        let touched = tasks.iter().any(|task| matches!(task, Task::Table(_)));
        let begin = tasks.iter().find_map(|task| match task {
            Task::Table(Action::Begin { forget, .. }) => Some(*forget),
            _ => None,
        });
        if let Some(forget) = begin {
            let (clock, epoch, accepted, buckets) =
                page_said.ok_or_else(|| Violation::new(2, "a snapshot was begun by no page"))?;
            self.buckets = buckets;
            let known = self.accepted.replace((epoch, accepted));
            let forgets = known.is_some_and(|known| known.0 == epoch && accepted > known.1);
            if forget != forgets {
                let why = format!("forget {forget}, accepted {known:?} then {accepted}");
                return Err(Violation::new(6, why));
            }
            self.guards.on_begin(clock, forgets, known.is_none());
        }
        let wanted = self.perform(tasks);
        let [held, claims, labels] = self.driver.machine().waiting();
        let buckets = usize::try_from(self.buckets).unwrap();
        if held > 4_096 || claims > 64 || labels > buckets.max(1) {
            let why = format!("{held} held, {claims} claims, {labels} labels");
            return Err(Violation::new(7, why));
        }
        Ok((wanted, touched))
    }

    fn perform(&mut self, tasks: Vec<Task>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for task in tasks {
            if let (true, Task::Table(action)) = (self.traced, &task) {
                let action = format!("{action:?}");
                println!("        {}", action.replace("LogBody { key: Key { high: ", "").replace("history_len: 0, chain: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], requests: []", ""));
            }
            match task {
                Task::Page(question) => wanted.push(Wanted::Page(self.ask(), question)),
                Task::Bucket { question, wait } => {
                    wanted.push(Wanted::Bucket(self.ask(), question, wait));
                }
                Task::Again => wanted.push(Wanted::Again),
                Task::Table(action) => match self.applier.perform(&action) {
                    Done::Valid { .. } => self.overflowed = false,
                    Done::Overflowed { .. } => self.overflowed = true,
                    Done::Done | Done::Compared { .. } => {}
                },
            }
        }
        wanted
    }

    fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.open.insert(self.asked);
        self.asked
    }

    /// Whether a template may be sent, as the gate says.
    pub fn allows(&self, user_id: &str, category: usize, now: Moment) -> Result<bool, Violation> {
        let category = CATEGORIES[category];
        let form = Form::Template;
        let question = Question { user_id, business_id: BUSINESS, category, form };
        let allowed =
            self.gate.look_by(&question, || now).is_ok_and(|answer| answer.decision.allowed());
        if allowed && !self.is_live(now) {
            let freshness = self.table.freshness();
            let why = format!("allowed while {:?}", freshness.validity);
            return Err(Violation::new(4, why));
        }
        Ok(allowed)
    }

    pub fn is_valid(&self) -> bool {
        self.table.freshness().validity == Validity::Valid
    }

    pub fn is_live(&self, now: Moment) -> bool {
        self.is_valid() && self.table.freshness().staleness(now) <= self.bound
    }
}
