//! Unit tests of the follower for single steps, and for bounds that the simulation seldom reaches.

mod businesses;
mod losses;
mod report;
mod warm_start;

use std::sync::Arc;
use std::time::Duration;

use super::applier::{ActionOutcome, Applier, BucketOutcome};
use super::scheduler::{PageRequest, ReadFailure, Scheduler, Task};
use super::state_machine::{Action, Event, ResyncCause, StateMachine, pieces};
use crate::table::{Table, Validity};
use consentd_core::businesses::Businesses;
use consentd_core::id::{KEY_VERSION, Key, KeySecret};
use consentd_core::partition::Layout;
use consentd_core::record::{Record, Revision};
use consentd_core::scope::{Category, Scope};
use consentd_core::standing::Standing;
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Announcement, Bucket, Identity, LogBody, LogEntry, Page, Position, Tail, UndecodedEntry,
    bucket_of,
};
use consentd_os::clock::Moment;

const BUCKETS: u32 = 2;

/// A model of a ledger: its log.
#[derive(Clone)]
struct Model {
    epoch: u8,
    secret: u8,
    accepted: u64,
    seconds: u64,
    log: Vec<LogEntry>,
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::MIN.plus(Duration::from_secs(seconds))
}

fn moment(seconds: u64) -> Moment {
    Moment { boot: Duration::from_secs(seconds), wall: at(seconds) }
}

fn user(n: usize) -> String {
    format!("155500{n:04}")
}

/// The first users from here on are of the second business.
const OTHERS_FROM: usize = 50;

fn business(n: usize) -> &'static str {
    if n < OTHERS_FROM { "shop" } else { "stall" }
}

fn effect(denies: bool, seconds: u64) -> Effect {
    effect_of("marketing", denies, seconds)
}

fn effect_of(scope: &str, denies: bool, seconds: u64) -> Effect {
    let time = at(seconds);
    let choice = if denies { Choice::opt_out(time) } else { Choice::opt_in(time, None) };
    Effect::Choice(Scope::parse(scope).unwrap(), choice)
}

impl Model {
    /// A ledger in which so many users have opted in.
    fn new(users: usize) -> Self {
        let mut model = Self { epoch: 1, secret: 1, accepted: 0, seconds: 10, log: Vec::new() };
        for n in 0..users {
            model.append(n, false, 1);
        }
        model
    }

    fn key(&self, n: usize) -> Key {
        KeySecret::new(&[self.secret; 16]).read(&user(n), business(n)).unwrap()
    }

    fn end(&self) -> Position {
        let head = self.log.last().map_or([0; 20], |entry| entry.head);
        let revision = u64::try_from(self.log.len()).unwrap();
        Position { epoch: [self.epoch; 16], revision, head }
    }

    fn state(&self, key: Key) -> Option<State> {
        let bodies = self.log.iter().rev().filter_map(|entry| entry.body.as_ref().ok());
        let mut bodies = bodies.filter(|body| body.key == key);
        Some(bodies.next()?.record.clone().unwrap().state)
    }

    /// Appends an opt-in or an opt-out; its time determines the head.
    fn append(&mut self, n: usize, denies: bool, seconds: u64) -> LogEntry {
        self.append_of(n, "marketing", denies, seconds)
    }

    fn append_of(&mut self, n: usize, scope: &str, denies: bool, seconds: u64) -> LogEntry {
        let (end, key) = (self.end(), self.key(n));
        let mut state = self.state(key).unwrap_or_default();
        state.apply(&effect_of(scope, denies, seconds)).unwrap();
        let mut head = end.head;
        for byte in &mut head {
            *byte = byte.wrapping_mul(31).wrapping_add(u8::try_from(seconds % 251).unwrap() + 1);
        }
        let record = Ok(Record { state, ..Record::default() });
        let (user_id, business_id) = (user(n), business(n).to_owned());
        let body = Ok(LogBody { key, user_id, business_id, record, record_time: at(seconds) });
        let entry = LogEntry { revision: end.revision + 1, previous: end.head, head, body };
        self.log.push(entry.clone());
        entry
    }

    fn page(&self, after: Revision) -> Page {
        let entries = self.log.iter().filter(|entry| entry.revision > after).cloned().collect();
        let (epoch, secret) = ([self.epoch; 16], KeySecret::new(&[self.secret; 16]));
        let (key_version, buckets) = (KEY_VERSION, BUCKETS);
        Page {
            identity: Arc::new(Identity {
                epoch,
                secret,
                key_version,
                has_nameless: false,
                layout: Layout::SINGLE,
                buckets,
            }),
            end: self.end(),
            accepted: self.accepted,
            clock: at(self.seconds),
            tail: Tail::Entries(entries),
        }
    }

    fn bucket(&self, number: u32) -> Bucket {
        let mut keys: Vec<_> =
            self.log.iter().map(|entry| entry.body.as_ref().unwrap().key).collect();
        keys.sort();
        keys.dedup();
        let pairs = keys.into_iter().filter(|key| bucket_of(*key, BUCKETS) == number);
        let record = |key| Record { state: self.state(key).unwrap(), ..Record::default() };
        let pairs = pairs.map(|key| (key, Ok(record(key)))).collect();
        Bucket { number, label: self.end(), pairs }
    }

    fn announce(&self, entries: &[LogEntry]) -> Event {
        Event::Announced(Announcement { epoch: [self.epoch; 16], entries: entries.into() })
    }
}

/// A state machine, and the table that its actions are applied to.
struct Follower {
    machine: StateMachine,
    applier: Applier,
    table: Table,
    causes: Vec<ResyncCause>,
    done: Vec<ActionOutcome>,
    repairs: usize,
    polls: usize,
    buckets: Vec<u32>,
    added: Vec<u32>,
}

impl Follower {
    fn new(most: usize) -> Self {
        Self::holding(Businesses::All, most)
    }

    fn holding(businesses: Businesses, most: usize) -> Self {
        let (table, mut writer) = crate::table::new();
        writer.set_businesses(businesses.clone());
        let (machine, actions) = StateMachine::new();
        let machine = machine.holding(businesses);
        let mut follower = Self {
            machine,
            applier: Applier::new(writer, most),
            table,
            causes: Vec::new(),
            done: Vec::new(),
            repairs: 0,
            polls: 0,
            buckets: Vec::new(),
            added: Vec::new(),
        };
        follower.perform(actions);
        follower
    }

    fn live(model: &Model) -> Self {
        let mut follower = Self::new(100);
        follower.serve(model);
        assert!(follower.is_valid());
        follower
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match &action {
                Action::Poll => self.polls += 1,
                Action::ReadBucket(number) => self.buckets.push(*number),
                Action::ReadAdded(number) => self.added.push(*number),
                Action::GapRepaired => self.repairs += 1,
                Action::Invalidate(cause) => self.causes.push(*cause),
                _ => {}
            }
            self.done.push(self.applier.perform(&action));
        }
    }

    fn on(&mut self, event: Event) {
        let actions = self.machine.on(event);
        self.perform(actions);
    }

    fn page(&mut self, page: Page, after: Revision, seconds: u64) {
        self.polls = 0;
        let attempt = self.machine.attempt();
        self.on(Event::Page { attempt, asked: moment(seconds), after, page });
    }

    fn poll(&mut self, model: &Model, seconds: u64) {
        let after = self.machine.applied();
        self.page(model.page(after), after, seconds);
    }

    fn bucket(&mut self, bucket: Bucket, seconds: u64) {
        self.bucket_for(false, bucket, seconds);
    }

    fn bucket_for(&mut self, is_added: bool, bucket: Bucket, seconds: u64) {
        let (attempt, addition) = (self.machine.attempt(), self.machine.addition());
        let arrived = moment(seconds);
        self.on(Event::Bucket { attempt, addition, is_added, arrived, bucket });
    }

    /// Answers all reads until there are no more.
    fn serve(&mut self, model: &Model) {
        for _ in 0..100 {
            if let Some(number) = self.buckets.pop() {
                self.bucket(model.bucket(number), model.seconds);
            } else if let Some(number) = self.added.pop() {
                self.bucket_for(true, model.bucket(number), model.seconds);
            } else if self.polls > 0 {
                self.poll(model, model.seconds);
            } else {
                return;
            }
        }
        panic!("it wants for ever");
    }

    fn is_valid(&self) -> bool {
        self.table.freshness().validity == Validity::Valid
    }

    fn staleness(&self, seconds: u64) -> u64 {
        self.table.freshness().staleness(moment(seconds)).as_secs()
    }

    fn standing(&self, n: usize, category: &str) -> Standing {
        let pair = self.table.pair(&user(n), business(n)).unwrap();
        self.table.facts(pair, Category::parse(category).unwrap()).0.unwrap().standing
    }

    /// Whether marketing to the user is denied by an opt-out.
    fn denies(&self, n: usize) -> bool {
        self.denies_of(n, "marketing")
    }

    fn denies_of(&self, n: usize, category: &str) -> bool {
        matches!(self.standing(n, category), Standing::OptedOut | Standing::OptedOutAll { .. })
    }

    /// Whether the user opted in.
    fn stands(&self, n: usize, category: &str) -> bool {
        matches!(self.standing(n, category), Standing::OptedIn { .. })
    }

    fn mismatches(&self) -> Vec<usize> {
        let found = self.done.iter().filter_map(|done| match done.bucket {
            Some(BucketOutcome::Compared { mismatches }) => Some(mismatches),
            _ => None,
        });
        found.collect()
    }
}

#[test]
fn it_loads_and_then_follows_announcements() {
    let mut model = Model::new(5);
    let mut follower = Follower::live(&model);
    let entry = model.append(3, true, 20);
    follower.on(model.announce(std::slice::from_ref(&entry)));
    assert!(follower.denies(3) && !follower.denies(2));
    follower.on(model.announce(&[entry]));
    assert_eq!((follower.polls, follower.causes.as_slice()), (0, [ResyncCause::Start].as_slice()));
    let empty = Follower::live(&Model::new(0));
    assert_eq!(empty.table.pairs(), 0);
}

#[test]
fn a_lost_announcement_is_repaired_and_later_ones_are_held() {
    let mut model = Model::new(3);
    let mut follower = Follower::live(&model);
    model.append(0, true, 20);
    let next = model.append(1, true, 21);
    let page = model.page(3);
    let newest = model.append(2, true, 22);
    follower.on(model.announce(&[next]));
    follower.on(model.announce(&[newest]));
    assert_eq!((follower.machine.applied(), follower.polls), (3, 2), "nothing past a gap");
    follower.page(page, 3, 30);
    assert_eq!((follower.machine.applied(), follower.repairs), (6, 1));
    assert_eq!(follower.staleness(30), 0, "more than it claims satisfies a claim");
}

#[test]
fn a_part_of_a_page_proves_nothing_until_the_rest_is_there() {
    let mut model = Model::new(1);
    let mut follower = Follower::live(&model);
    for seconds in 20..24 {
        model.append(0, true, seconds);
    }
    let mut page = model.page(1);
    let Tail::Entries(entries) = &mut page.tail else { unreachable!() };
    entries.truncate(2);
    follower.page(page, 1, 30);
    assert_eq!((follower.staleness(30), follower.polls), (20, 1), "the next page follows at once");
    follower.poll(&model, 31);
    assert_eq!(follower.staleness(31), 0);
}

#[test]
fn every_loss_has_its_cause_and_is_read_anew() {
    type Change = fn(&mut Model);
    let changes: [(ResyncCause, Change); 4] = [
        (ResyncCause::Epoch, |model| model.epoch = 2),
        (ResyncCause::Fork, |model| {
            model.log.truncate(3);
            (40..44).for_each(|seconds| drop(model.append(1, false, seconds)));
        }),
        (ResyncCause::Fork, |model| model.log.truncate(3)),
        (ResyncCause::Accepted, |model| model.accepted = 1),
    ];
    for (cause, change) in changes {
        let mut model = Model::new(5);
        let mut follower = Follower::live(&model);
        change(&mut model);
        follower.poll(&model, 50);
        assert!(!follower.is_valid(), "{cause:?}");
        assert_eq!(follower.causes, [ResyncCause::Start, cause]);
        follower.serve(&model);
        assert!(follower.is_valid(), "{cause:?}");
        assert_eq!(follower.machine.position(), model.end());
    }
    let model = Model::new(5);
    let mut follower = Follower::live(&model);
    follower.page(Page { tail: Tail::Trimmed, ..model.page(5) }, 5, 50);
    assert_eq!(follower.causes, [ResyncCause::Start, ResyncCause::Trimmed]);
}

#[test]
fn an_unreadable_entry_is_never_skipped() {
    let mut model = Model::new(2);
    let mut follower = Follower::live(&model);
    model.append(0, true, 20);
    model.log[2].body = Err(UndecodedEntry::Unreadable);
    for seconds in 30..33 {
        follower.poll(&model, seconds);
        assert!(!follower.is_valid());
    }
    assert_eq!(follower.causes, [ResyncCause::Start, ResyncCause::Unreadable]);
    let other = Model { epoch: 2, ..Model::new(1) };
    follower.poll(&other, 40);
    follower.serve(&other);
    assert!(follower.is_valid(), "another ledger is none of that one's business");
}

#[test]
fn a_forged_announcement_only_wakes_the_poll() {
    let mut model = Model::new(3);
    let mut follower = Follower::live(&model);
    let mut forged = model.append(1, true, 70);
    model.log.pop();
    forged.previous = [9; 20];
    follower.on(model.announce(&[forged]));
    assert_eq!((follower.machine.applied(), follower.polls), (3, 1));
    follower.serve(&model);
    assert!(follower.is_valid() && !follower.denies(1));
    assert_eq!(follower.machine.waiting(), [0; 3], "the log does not know of it");
    let foreign = Announcement { epoch: [7; 16], entries: Vec::new().into() };
    follower.on(Event::Announced(foreign));
    follower.on(Event::Missed);
    assert_eq!(follower.polls, 2);
}

#[test]
fn what_waits_is_bounded() {
    let mut model = Model::new(1);
    let mut follower = Follower::live(&model);
    let announced: Vec<_> = (0..6_000).map(|n| model.append(0, n % 2 == 0, 20 + n)).collect();
    for entry in &announced[1..] {
        follower.on(model.announce(std::slice::from_ref(entry)));
    }
    assert_eq!(follower.machine.waiting()[0], 4_096);
    for seconds in 0..100 {
        let end = Position { revision: 7_000, ..model.end() };
        let page = Page { end, tail: Tail::Entries(Vec::new()), ..model.page(0) };
        // A page whose log ends far ahead, with one more entry.
        let next = usize::try_from(follower.machine.applied()).unwrap();
        let tail = Tail::Entries(vec![model.log[next].clone()]);
        follower.page(Page { tail, ..page }, 1, seconds);
        assert!(follower.machine.waiting()[1] <= 64);
    }
    follower.serve(&model);
    assert_eq!(follower.machine.applied(), 6_001);
}

#[test]
fn an_answer_to_a_question_of_before_a_resync_is_dropped() {
    let mut model = Model::new(4);
    let mut follower = Follower::live(&model);
    let (attempt, after) = (follower.machine.attempt(), follower.machine.applied());
    let page = model.page(after);
    model.epoch = 2;
    follower.poll(&model, 12);
    assert_eq!(follower.causes.last(), Some(&ResyncCause::Epoch));
    // The page is older than the loss, so the ledger must not be loaded from it.
    let actions = follower.machine.on(Event::Page { attempt, asked: moment(11), after, page });
    assert!(actions.is_empty(), "{actions:?}");
}

#[test]
fn a_ledger_that_does_not_answer_is_asked_no_more_often_for_that() {
    let now = moment(1);
    let (mut scheduler, tasks) = Scheduler::new(now);
    let mut pages: Vec<_> = tasks.iter().filter_map(page_of).collect();
    let mut retries = 0;
    // Every tick polls; all polls that fail share one retry.
    for _ in 0..100 {
        for question in std::mem::take(&mut pages) {
            let tasks = scheduler.on_page(question, Err(ReadFailure::Unanswered), now);
            retries += tasks.iter().filter(|task| matches!(task, Task::RetryPoll)).count();
            pages.extend(tasks.iter().filter_map(page_of));
        }
        assert!(pages.is_empty(), "refused at once, and asked again at once");
        for tasks in [scheduler.on_tick(now), scheduler.on_missed(now)] {
            pages.extend(tasks.iter().filter_map(page_of));
        }
        assert_eq!(pages.len(), 1);
    }
    assert_eq!(retries, 1);
    assert!(scheduler.on_retry_due(now).is_empty(), "it is being asked");
    let question = pages.pop().unwrap();
    assert!(matches!(
        scheduler.on_page(question, Err(ReadFailure::Missing), now)[..],
        [Task::RetryPoll]
    ));
}

fn page_of(task: &Task) -> Option<PageRequest> {
    match task {
        Task::Page(question) => Some(*question),
        _ => None,
    }
}

#[test]
fn a_bucket_that_is_not_answered_is_not_asked_for_beside_that() {
    let model = Model::new(8);
    let mut follower = Follower::live(&model);
    for _ in 0..3 {
        follower.on(Event::ScrubDue);
        assert_eq!(follower.buckets, [0]);
    }
    follower.serve(&model);
    follower.on(Event::ScrubDue);
    assert_eq!(follower.buckets, [1]);
}

#[test]
fn entries_change_only_buckets_that_were_read_and_only_past_where_they_were() {
    let mut model = Model::new(8);
    let in_bucket = |model: &Model, number| {
        (0..8).find(|n| bucket_of(model.key(*n), BUCKETS) == number).unwrap()
    };
    let (read, unread) = (in_bucket(&model, 0), in_bucket(&model, 1));
    let mut follower = Follower::new(100);
    follower.poll(&model, 11);
    let before = [model.append(unread, true, 20), model.append(read, true, 21)];
    let bucket = model.bucket(0);
    let behind = model.append(read, false, 22);
    follower.bucket(bucket, 23);
    let said = |actions: Vec<Action>| -> Vec<&'static str> {
        let said = actions.into_iter().filter_map(|action| match action {
            Action::Apply(_) => Some("apply"),
            Action::NoteIds(_) => Some("meet"),
            _ => None,
        });
        said.collect()
    };
    let actions = follower.machine.on(model.announce(&before));
    assert_eq!(said(actions), ["meet", "meet"]);
    let actions = follower.machine.on(model.announce(&[behind]));
    assert_eq!(said(actions), ["apply"]);
}

#[test]
fn a_large_announcement_comes_in_pieces() {
    let model = Model::new(10);
    let announcement = Announcement { epoch: [1; 16], entries: model.log.clone().into() };
    let sizes: Vec<_> = pieces(&announcement, 4).map(|piece| piece.entries.len()).collect();
    assert_eq!(sizes, [4, 4, 2]);
}
