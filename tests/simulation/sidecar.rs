//! A sidecar: the real scheduler, state machine, applier, table and checker, on clocks of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use consentd::checker::{CheckRequest, Checker};
use consentd::follower::applier::{ActionOutcome, Applier, Judgement};
use consentd::follower::scheduler::{BucketRequest, PageRequest, ReadFailure, Scheduler, Task};
use consentd::follower::state_machine::Action;
use consentd::metrics::Metrics;
use consentd::table::{Table, Validity};
use consentd_core::businesses::Businesses;
use consentd_core::decision::{Form, Policy};
use consentd_core::time::Timestamp;
use consentd_ledger::{Announcement, Bucket, Epoch, Identity, Page, Position};
use consentd_os::clock::Moment;

use crate::held::business_of_id;
use crate::ledger::CATEGORIES;
use crate::oracle::{Guards, Violation};
use crate::plan::Plan;
use crate::saved::File;

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
    Page(u64, PageRequest, Option<Page>),
    /// There is no ledger at the address.
    Gone(u64, PageRequest),
    Bucket(u64, BucketRequest, Result<Bucket, ReadFailure>),
    Again,
    Tick,
    /// A recorder of the same process waits for something that was not announced.
    Wanted,
    ScrubDue,
    Announced(Announcement),
    Missed,
    /// These businesses are to be held.
    Held(Businesses),
}

/// What is to be asked.
pub enum Wanted {
    Page(u64, PageRequest),
    Bucket(u64, BucketRequest, Duration),
    Again,
}

pub struct Sidecar {
    scheduler: Scheduler,
    applier: Applier,
    pub table: Table,
    checker: Checker,
    pub bound: Duration,
    /// Questions that are neither answered nor timed out, and when they were asked.
    open: HashMap<u64, Moment>,
    asked: u64,
    /// When the table was last said to be wrong.
    doubted: Moment,
    /// How many retries of the log are waited for.
    retries: usize,
    /// As of when the table was proven since this was taken last.
    pub proven: Vec<Moment>,
    pub guards: Guards,
    /// Where the table stood when it was checked last.
    pub checked: Option<Position>,
    /// The ledger that is followed, and how often it had been accepted as it is.
    followed: Option<(Arc<Identity>, u64)>,
    pub overflowed: bool,
    /// Whether a snapshot was begun since this was taken last.
    pub begun: bool,
    /// Whether a bucket was taken out since this was taken last.
    pub unloaded: bool,
    /// Whether the ledger may have lost something that the recorder does not know of yet.
    may_lack: bool,
    /// Buckets that the ledger has lost.
    lost_buckets: HashSet<u32>,
    /// Whether the recorder must be informed of a loss, since this was taken last.
    pub lost: bool,
    /// Whether what is done to the table is printed.
    pub traced: bool,
}

impl Sidecar {
    /// A sidecar that was just started, and what it asks first.
    ///
    /// Questions are numbered on from `asked`, so that answers to one that is gone are no answers.
    pub fn start(
        asked: u64,
        &Plan { bound, most_sticky, .. }: &Plan,
        held: Businesses,
        metrics: &Arc<Metrics>,
        now: Moment,
        file: Option<&File>,
    ) -> (Self, Vec<Wanted>) {
        let (table, mut writer) = consentd::table::new();
        writer.set_businesses(held.clone());
        let checker = Checker::new(table.clone(), Policy::default(), bound, Arc::clone(metrics));
        let (scheduler, tasks) = Scheduler::holding(held, file.map(|file| file.warm), now);
        let mut applier = Applier::new(writer, most_sticky);
        if let Some(file) = file {
            applier.keep(file.table(), file.seen);
        }
        let mut sidecar = Self {
            scheduler,
            applier,
            table,
            checker,
            bound,
            open: HashMap::new(),
            asked,
            doubted: now,
            retries: 0,
            proven: Vec::new(),
            guards: file.map(|file| file.guards.clone()).unwrap_or_default(),
            checked: None,
            followed: file.map(|file| (Arc::clone(&file.identity), file.warm.accepted)),
            overflowed: false,
            begun: false,
            unloaded: false,
            may_lack: false,
            lost_buckets: HashSet::new(),
            lost: false,
            traced: false,
        };
        let wanted = sidecar.perform(tasks, now);
        (sidecar, wanted)
    }

    /// Whether a question is neither answered nor timed out.
    pub fn is_open(&self, id: u64) -> bool {
        self.open.contains_key(&id)
    }

    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Takes what the wire brought; gives what to ask, and whether the table may have changed.
    pub fn on(&mut self, brought: Brought, now: Moment) -> Result<(Vec<Wanted>, bool), Violation> {
        let mut page_said = None;
        let asked = match &brought {
            Brought::Page(id, ..) | Brought::Gone(id, _) | Brought::Bucket(id, ..) => {
                let Some(asked) = self.open.remove(id) else {
                    return Ok((Vec::new(), false)); // It has timed out, or been answered.
                };
                asked
            }
            _ => now,
        };
        let tasks = match brought {
            Brought::Page(_, question, page) => {
                page_said = page
                    .as_ref()
                    .map(|page| (page.clock, page.accepted, Arc::clone(&page.identity)));
                if let Some((clock, ..)) = page_said {
                    self.guards.on_clock(clock);
                }
                self.scheduler.on_page(question, page.ok_or(ReadFailure::Unanswered), now)
            }
            Brought::Gone(_, question) => {
                self.scheduler.on_page(question, Err(ReadFailure::Missing), now)
            }
            Brought::Bucket(_, question, bucket) => self.scheduler.on_bucket(question, bucket, now),
            Brought::Again => {
                self.retries -= 1;
                self.scheduler.on_retry_due(now)
            }
            Brought::Tick | Brought::Wanted => self.scheduler.on_tick(now),
            Brought::ScrubDue => self.scheduler.on_scrub_due(now),
            Brought::Announced(announcement) => self.scheduler.on_announcement(announcement, now),
            Brought::Missed => self.scheduler.on_missed(now),
            Brought::Held(businesses) => self.scheduler.on_hold(businesses, now),
        };
        let touched = tasks.iter().any(|task| matches!(task, Task::Table(_)));
        for task in &tasks {
            match task {
                Task::Table(Action::ResetTable { forget, .. }) => {
                    let page = page_said.take();
                    let page = page.ok_or_else(|| Violation::new(2, "begun by no page"))?;
                    if asked.boot < self.doubted.boot {
                        let why = "begun by an answer that knows nothing of what was lost";
                        return Err(Violation::new(6, why));
                    }
                    self.begin(page, *forget)?;
                }
                Task::Table(Action::Invalidate(_)) => self.doubted = now,
                // What is not used is as if it had never been.
                Task::Table(Action::RejectWarmStart(_)) => {
                    self.guards = self.guards.forgotten();
                    self.followed = None;
                }
                Task::Table(Action::SetProof(asked, _)) => self.proven.push(*asked),
                Task::Table(Action::DropOthers) => {
                    self.guards.on_drop(self.scheduler.state_machine().held());
                }
                Task::Table(
                    Action::Apply(body)
                    | Action::ApplyAdded(body)
                    | Action::NoteIds(body)
                    | Action::Replay(body),
                ) => {
                    self.guards.on_named(&body.user_id);
                    self.guards.on_clock(body.record_time);
                    if let Ok(record) = &body.record {
                        self.guards.on_state(&record.state);
                    }
                }
                Task::Table(Action::LoadBucket(bucket) | Action::CompareBucket(bucket)) => {
                    for record in bucket.pairs.iter().filter_map(|(_, record)| record.as_ref().ok())
                    {
                        self.guards.on_state(&record.state);
                    }
                }
                // It was read on a dead branch. What it denied is remembered, too.
                Task::Table(Action::UnloadBucket(_)) => {
                    self.unloaded = true;
                    self.guards.on_unload();
                }
                _ => {}
            }
        }
        let wanted = self.perform(tasks, now);
        let [held, claims, labels] = self.scheduler.state_machine().waiting();
        let buckets =
            self.followed.as_ref().map_or(0, |(it, _)| usize::try_from(it.buckets).unwrap());
        let retries = self.retries;
        if held > 4_096 || claims > 64 || labels > buckets.max(1) || retries > 1 {
            let why = format!("{held} held, {claims} claims, {labels} labels, {retries} retries");
            return Err(Violation::new(7, why));
        }
        Ok((wanted, touched))
    }

    fn begin(
        &mut self,
        (clock, accepted, identity): (Timestamp, u64, Arc<Identity>),
        forget: bool,
    ) -> Result<(), Violation> {
        self.begun = true;
        self.overflowed = false; // Until this ledger is seen to have lost too much, too.
        let known = self.followed.replace((Arc::clone(&identity), accepted));
        let same = known.as_ref().filter(|(known, _)| known.epoch == identity.epoch);
        let forgets = same.is_some_and(|(_, known)| accepted > *known);
        if forget != forgets {
            let known = known.map(|(_, accepted)| accepted);
            let why = format!("forget {forget}, accepted {known:?} then {accepted}");
            return Err(Violation::new(6, why));
        }
        let other_keys =
            known.as_ref().is_some_and(|(k, _)| !k.secret.is_same_as(&identity.secret));
        self.guards.on_begin(clock, forgets, known.is_none(), other_keys);
        Ok(())
    }

    /// Whether this ledger, accepted that often, was the last to be read whole.
    pub fn knows(&self, epoch: Epoch, accepted: u64) -> bool {
        self.followed
            .as_ref()
            .is_some_and(|(known, times)| known.epoch == epoch && *times == accepted)
    }

    fn perform(&mut self, tasks: Vec<Task>, now: Moment) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for task in tasks {
            if let (true, Task::Table(action)) = (self.traced, &task) {
                println!("        {}", crate::trace::brief(action));
            }
            match task {
                Task::Page(question) => wanted.push(Wanted::Page(self.ask(now), question)),
                Task::Bucket { request: question, wait } => {
                    wanted.push(Wanted::Bucket(self.ask(now), question, wait));
                }
                Task::RetryPoll => {
                    self.retries += 1;
                    wanted.push(Wanted::Again);
                }
                Task::Table(action) => {
                    let done = self.applier.perform(&action);
                    if self.traced && done != ActionOutcome::default() {
                        println!("          {done:?}");
                    }
                    self.notice(&action, done);
                    if let Some(judgement) = done.judgement {
                        self.overflowed = matches!(judgement, Judgement::Overflowed { .. });
                    }
                }
            }
        }
        wanted
    }

    /// What tells the recorder of the same process that the ledger lost something, as the follower's
    /// task does.
    fn notice(&mut self, action: &Action, done: ActionOutcome) {
        match action {
            Action::Invalidate(cause) => {
                self.may_lack |= cause.may_be_loss();
            }
            Action::DenyBucket(number) => drop(self.lost_buckets.insert(*number)),
            Action::CompareBucket(bucket) => self.lost |= self.lost_buckets.remove(&bucket.number),
            _ => {}
        }
        let is_judged = match done.judgement {
            Some(Judgement::Valid { .. }) => matches!(action, Action::Validate),
            Some(Judgement::Overflowed { .. }) => true,
            None => false,
        };
        if is_judged {
            self.lost |= !std::mem::take(&mut self.lost_buckets).is_empty();
            self.lost |= std::mem::take(&mut self.may_lack);
        }
    }

    /// How often the ledger had been accepted, where the table may be saved.
    pub fn may_save(&mut self, now: Moment) -> Option<u64> {
        self.applier.may_save(self.scheduler.state_machine(), self.bound, now).ok()
    }

    /// What the ledger's clock said at the latest, and the table's bytes.
    pub fn saved(&mut self) -> (Timestamp, Vec<u8>) {
        let mut bytes = Vec::new();
        self.table.save(&mut bytes, || true).unwrap();
        (self.applier.latest_seen(), bytes)
    }

    /// The ledger that is followed.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.followed.as_ref().map(|(identity, _)| Arc::clone(identity))
    }

    fn ask(&mut self, now: Moment) -> u64 {
        self.asked += 1;
        self.open.insert(self.asked, now);
        self.asked
    }

    /// Whether a template may be sent, as the checker says.
    pub fn allows(&self, user_id: &str, category: usize, now: Moment) -> Result<bool, Violation> {
        let category = CATEGORIES[category];
        let form = Form::Template;
        let question = CheckRequest {
            user_id,
            business_id: business_of_id(user_id),
            category,
            form: Ok(form),
            min_revision: 0,
            template: None,
        };
        let allowed =
            self.checker.check_at(&question, || now).is_ok_and(|answer| answer.decision.allowed());
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
