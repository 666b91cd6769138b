//! Schedules the reads of the ledger that the state machine wants: at most one poll at a time, and
//! retries.
//!
//! Pure, like the state machine: the task in [`super`] executes its tasks with sockets and timers, and
//! `tests/simulation.rs` with simulated ones, so that the same logic is tested.

use std::time::Duration;

use super::state_machine::{Action, Attempt, Event, StateMachine, WarmStart};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_ledger::{Announcement, Bucket, LogHead, Page, Position};
use consentd_os::clock::Moment;

/// How long to wait before another read after one that failed.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The timeout of a read of a bucket.
pub const BUCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval of polls, and the timeout of each: a third of the longest staleness at which checks
/// are answered, so that two polls in a row may fail.
#[must_use]
pub fn period(bound: Duration) -> Duration {
    bound.div_f64(3.0).max(Duration::from_millis(1))
}

/// A task for the caller. The tasks of one call are performed in order.
#[derive(Debug)]
pub enum Task {
    /// Perform this action on the table.
    Table(Action),
    /// Read the log, and call [`Scheduler::on_page`] with the result within the [`period`].
    Page(PageRequest),
    /// Read a bucket after a wait, and call [`Scheduler::on_bucket`] with the result within
    /// [`BUCKET_TIMEOUT`] after it.
    Bucket {
        /// The request.
        request: BucketRequest,
        /// How long to wait before it.
        wait: Duration,
    },
    /// Call [`Scheduler::on_retry_due`] once [`RETRY_INTERVAL`] has passed.
    RetryPoll,
}

/// A read of the log behind a revision.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    attempt: Attempt,
    /// A moment before the request is sent: the page has everything that was appended before it.
    asked: Moment,
    /// The revision behind which the page starts.
    pub after: Revision,
    /// The log's head at that revision.
    pub head: LogHead,
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReadFailure {
    /// There was no usable answer.
    Unanswered,
    /// There is no ledger at the address.
    Missing,
    /// The bucket was deleted or evicted.
    Lost,
}

/// A read of a bucket.
#[derive(Clone, Copy, Debug)]
pub struct BucketRequest {
    attempt: Attempt,
    addition: u64,
    is_added: bool,
    /// The bucket's number.
    pub number: u32,
}

impl BucketRequest {
    /// Whether it is for the businesses that are being added to a table in use.
    #[must_use]
    pub fn is_added(&self) -> bool {
        self.is_added
    }
}

/// The state machine, and the reads that are going on for it.
pub struct Scheduler {
    machine: StateMachine,
    /// Whether the log is being read.
    polling: bool,
    /// Whether another poll was wanted since the one that is going on was sent.
    again: bool,
    /// Whether a [`Task::RetryPoll`] is pending. There is at most one, however many polls fail
    /// meanwhile.
    waiting: bool,
}

impl Scheduler {
    /// A scheduler of a new state machine, and its first tasks.
    #[must_use]
    pub fn new(now: Moment) -> (Self, Vec<Task>) {
        Self::from(None, now)
    }

    /// A scheduler that starts from a snapshot of the table, if there is one.
    #[must_use]
    pub fn from(warm: Option<WarmStart>, now: Moment) -> (Self, Vec<Task>) {
        Self::holding(Businesses::All, warm, now)
    }

    /// A scheduler of a table that holds these businesses, which starts from a snapshot of it, if there is one.
    #[must_use]
    pub fn holding(
        businesses: Businesses,
        warm: Option<WarmStart>,
        now: Moment,
    ) -> (Self, Vec<Task>) {
        let (machine, actions) = StateMachine::from(warm);
        let machine = machine.holding(businesses);
        let mut scheduler = Self { machine, polling: false, again: false, waiting: false };
        let tasks = scheduler.tasks(actions, now);
        (scheduler, tasks)
    }

    /// The state machine.
    #[must_use]
    pub fn state_machine(&self) -> &StateMachine {
        &self.machine
    }

    /// Handles that a [`period`] has passed.
    pub fn on_tick(&mut self, now: Moment) -> Vec<Task> {
        self.poll(now).into_iter().collect()
    }

    /// Handles that [`RETRY_INTERVAL`] has passed since a poll failed.
    pub fn on_retry_due(&mut self, now: Moment) -> Vec<Task> {
        self.waiting = false;
        self.poll(now).into_iter().collect()
    }

    /// Handles the result of a poll.
    pub fn on_page(
        &mut self,
        request: PageRequest,
        page: Result<Page, ReadFailure>,
        now: Moment,
    ) -> Vec<Task> {
        self.polling = false;
        let again = std::mem::take(&mut self.again);
        let mut tasks = match page {
            Ok(page) => {
                let PageRequest { attempt, asked, after, .. } = request;
                let actions = self.machine.on(Event::Page { attempt, asked, after, page });
                self.tasks(actions, now)
            }
            Err(ReadFailure::Unanswered | ReadFailure::Lost) => {
                return self.retry().into_iter().collect();
            }
            Err(ReadFailure::Missing) => {
                let actions = self.machine.on(Event::Missing { attempt: request.attempt });
                // The next poll waits for the retry: a ledger that is gone does not return at once.
                let actions = actions.into_iter().filter(|action| !matches!(action, Action::Poll));
                let mut tasks = self.tasks(actions.collect(), now);
                tasks.extend(self.retry());
                return tasks;
            }
        };
        // The other poll starts behind the entries of this page, unless the page started one already.
        if again && !self.polling {
            tasks.extend(self.poll(now));
        }
        tasks
    }

    /// Handles the result of a read of a bucket.
    pub fn on_bucket(
        &mut self,
        request: BucketRequest,
        bucket: Result<Bucket, ReadFailure>,
        now: Moment,
    ) -> Vec<Task> {
        let attempt = request.attempt;
        match bucket {
            Ok(bucket) => {
                let BucketRequest { addition, is_added, .. } = request;
                let event = Event::Bucket { attempt, addition, is_added, arrived: now, bucket };
                let actions = self.machine.on(event);
                self.tasks(actions, now)
            }
            // While the ledger is loaded, a lost bucket is retried like any failed read.
            Err(ReadFailure::Lost) if self.machine.is_live() && !request.is_added => {
                let actions = self.machine.on(Event::Lost { attempt, number: request.number });
                self.tasks(actions, now)
            }
            Err(_)
                if attempt == self.machine.attempt()
                    && request.addition == self.machine.addition() =>
            {
                vec![Task::Bucket { request, wait: RETRY_INTERVAL }]
            }
            Err(_) => Vec::new(),
        }
    }

    /// Handles an announcement of changes.
    pub fn on_announcement(&mut self, announcement: Announcement, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::Announced(announcement));
        self.tasks(actions, now)
    }

    /// Handles that announcements may have been lost.
    pub fn on_missed(&mut self, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::Missed);
        self.tasks(actions, now)
    }

    /// Handles that the table is to hold these businesses.
    pub fn on_hold(&mut self, businesses: Businesses, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::Hold(businesses));
        self.tasks(actions, now)
    }

    /// Handles that the next bucket is due to be compared with the table.
    pub fn on_scrub_due(&mut self, now: Moment) -> Vec<Task> {
        let actions = self.machine.on(Event::ScrubDue);
        self.tasks(actions, now)
    }

    fn tasks(&mut self, actions: Vec<Action>, now: Moment) -> Vec<Task> {
        let (attempt, addition) = (self.machine.attempt(), self.machine.addition());
        let task = |action| match action {
            Action::Poll => self.poll(now),
            Action::ReadBucket(number) => {
                let request = BucketRequest { attempt, addition, is_added: false, number };
                Some(Task::Bucket { request, wait: Duration::ZERO })
            }
            Action::ReadAdded(number) => {
                let request = BucketRequest { attempt, addition, is_added: true, number };
                Some(Task::Bucket { request, wait: Duration::ZERO })
            }
            action => Some(Task::Table(action)),
        };
        actions.into_iter().filter_map(task).collect()
    }

    /// Schedules another poll after a wait, even if one was wanted meanwhile: a ledger that refuses at
    /// once must not be polled in a busy loop.
    fn retry(&mut self) -> Option<Task> {
        (!std::mem::replace(&mut self.waiting, true)).then_some(Task::RetryPoll)
    }

    /// Starts a poll, or notes that another one is wanted after the one that is going on: that one may
    /// miss what was appended since it was sent.
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
