//! What is asked of the ledger, and when: what lies between the machine and the wire.
//!
//! Pure, like the machine: the task in [`super`] does what this says with sockets and timers, and
//! `tests/simulation.rs` with simulated ones, so that both do the same.

use std::time::Duration;

use super::state_machine::{Action, Attempt, Event, StateMachine, WarmStart};
use consentd_core::record::Revision;
use consentd_ledger::{Announcement, Bucket, LogHead, Page, Position};
use consentd_os::clock::Moment;

/// How long to wait before asking a ledger again that did not answer.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How long a bucket may take.
pub const BUCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the log is read, where nothing else asks for it, and how long that may take: two
/// polls in a row may fail before a check does.
#[must_use]
pub fn period(bound: Duration) -> Duration {
    bound.div_f64(3.0).max(Duration::from_millis(1))
}

/// What is to be done, in order.
#[derive(Debug)]
pub enum Task {
    /// Do this to the table.
    Table(Action),
    /// Read the log, and tell [`Scheduler::on_page`] what came of it within the [`period`].
    Page(PageRequest),
    /// Read a bucket after a while, and tell [`Scheduler::on_bucket`] what came of it within
    /// [`BUCKET_TIMEOUT`] from then on.
    Bucket {
        /// What is asked.
        question: BucketRequest,
        /// How long to wait before.
        wait: Duration,
    },
    /// Call [`Scheduler::on_retry_due`] once [`RETRY_INTERVAL`] has passed.
    RetryPoll,
}

/// What comes after a revision.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    attempt: Attempt,
    /// Before it is sent: what was appended later may be missing from the answer.
    asked: Moment,
    /// The revision.
    pub after: Revision,
    /// The log's hash at that revision.
    pub head: LogHead,
}

/// Why the log could not be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadFailure {
    /// There was no answer, or none that says anything.
    Unanswered,
    /// There is no ledger.
    Missing,
    /// The bucket was deleted or evicted, and what it held with it.
    Lost,
}

/// What a bucket holds.
#[derive(Clone, Copy, Debug)]
pub struct BucketRequest {
    attempt: Attempt,
    /// The bucket.
    pub number: u32,
}

/// The machine, and what was asked for it.
pub struct Scheduler {
    machine: StateMachine,
    /// Whether the log is being read.
    polling: bool,
    /// Whether it is to be read again once it was.
    again: bool,
    /// Whether [`RETRY_INTERVAL`] is being waited for: once, however often it fails meanwhile.
    waiting: bool,
}

impl Scheduler {
    /// A driver of a new machine, and what is to be done first.
    #[must_use]
    pub fn new(now: Moment) -> (Self, Vec<Task>) {
        Self::from(None, now)
    }

    /// The same, beside a table that was saved before.
    #[must_use]
    pub fn from(warm: Option<WarmStart>, now: Moment) -> (Self, Vec<Task>) {
        let (machine, actions) = StateMachine::from(warm);
        let mut driver = Self { machine, polling: false, again: false, waiting: false };
        let tasks = driver.tasks(actions, now);
        (driver, tasks)
    }

    /// The machine.
    #[must_use]
    pub fn state_machine(&self) -> &StateMachine {
        &self.machine
    }

    /// A [`period`] has passed.
    pub fn on_tick(&mut self, now: Moment) -> Vec<Task> {
        self.poll(now).into_iter().collect()
    }

    /// [`RETRY_INTERVAL`] has passed since the log could not be read.
    pub fn on_retry_due(&mut self, now: Moment) -> Vec<Task> {
        self.waiting = false;
        self.poll(now).into_iter().collect()
    }

    /// The log was read, or could not be.
    pub fn on_page(
        &mut self,
        question: PageRequest,
        page: Result<Page, ReadFailure>,
        now: Moment,
    ) -> Vec<Task> {
        self.polling = false;
        let again = std::mem::take(&mut self.again);
        let mut tasks = match page {
            Ok(page) => {
                let PageRequest { attempt, asked, after, .. } = question;
                let actions = self.machine.on(Event::Page { attempt, asked, after, page });
                self.tasks(actions, now)
            }
            Err(ReadFailure::Unanswered | ReadFailure::Lost) => {
                return self.retry().into_iter().collect();
            }
            Err(ReadFailure::Missing) => {
                let actions = self.machine.on(Event::Missing { attempt: question.attempt });
                // Not at once: a ledger that is gone does not come back that soon.
                let actions = actions.into_iter().filter(|action| !matches!(action, Action::Poll));
                let mut tasks = self.tasks(actions.collect(), now);
                tasks.extend(self.retry());
                return tasks;
            }
        };
        // Behind what this page brought, and where that itself did not ask for more.
        if again && !self.polling {
            tasks.extend(self.poll(now));
        }
        tasks
    }

    /// A bucket was read, or could not be.
    pub fn on_bucket(
        &mut self,
        question: BucketRequest,
        bucket: Result<Bucket, ReadFailure>,
        now: Moment,
    ) -> Vec<Task> {
        let attempt = question.attempt;
        match bucket {
            Ok(bucket) => {
                let actions = self.machine.on(Event::Bucket { attempt, arrived: now, bucket });
                self.tasks(actions, now)
            }
            // Whoever reads all of them waits for this one; else it is asked for in its turn.
            Err(ReadFailure::Lost) if self.machine.is_live() => {
                let actions = self.machine.on(Event::Lost { attempt, number: question.number });
                self.tasks(actions, now)
            }
            Err(_) if attempt == self.machine.attempt() => {
                vec![Task::Bucket { question, wait: RETRY_INTERVAL }]
            }
            Err(_) => Vec::new(),
        }
    }

    /// Somebody appended.
    pub fn on_announcement(&mut self, announcement: Announcement, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::Announced(announcement));
        self.tasks(actions, now)
    }

    /// Announcements were lost.
    pub fn on_missed(&mut self, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::Missed);
        self.tasks(actions, now)
    }

    /// It is time to compare a further bucket with the table.
    pub fn on_scrub_due(&mut self, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::ScrubDue);
        self.tasks(actions, now)
    }

    fn tasks(&mut self, actions: Vec<Action>, now: Moment) -> Vec<Task> {
        let attempt = self.machine.attempt();
        let task = |action| match action {
            Action::Poll => self.poll(now),
            Action::ReadBucket(number) => {
                let question = BucketRequest { attempt, number };
                Some(Task::Bucket { question, wait: Duration::ZERO })
            }
            action => Some(Task::Table(action)),
        };
        actions.into_iter().filter_map(task).collect()
    }

    /// Asks again after a while, also for those who have waited for this answer: a ledger that refuses
    /// at once must not be asked as often as it does.
    fn retry(&mut self) -> Option<Task> {
        (!std::mem::replace(&mut self.waiting, true)).then_some(Task::RetryPoll)
    }

    /// Asks where the log ends; one answer serves all who want it while none has been asked for.
    fn poll(&mut self, now: Moment) -> Option<Task> {
        if self.polling {
            self.again = true;
            return None;
        }
        self.polling = true;
        let (attempt, applied) = (self.machine.attempt(), self.machine.position());
        let Position { revision: after, head, .. } = applied;
        Some(Task::Page(PageRequest { attempt, asked: now, after, head }))
    }
}
