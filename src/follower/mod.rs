//! Keeps the table equal to the ledger. The follower is the only holder of the table's [`Writer`].
//!
//! [`state_machine`] decides what to do, [`applier`] performs it on the table, [`scheduler`] decides
//! when to read the ledger, `change_publisher` publishes changes to watchers, and `report` writes the
//! log and the metrics. A [`Follower`] follows one partition; [`Followers`] follow those of a ledger. The
//! task in this module does the I/O: it reads, waits, and hands on what came.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

pub mod applier;
mod change_publisher;
mod partitions;
mod report;
pub mod scheduler;
mod shared_log;
mod snapshot_file;
mod snapshot_task;
pub mod state_machine;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::applier::{Applier, MAX_RETAINED_PAIRS};
use self::change_publisher::ChangePublisher;
pub use self::partitions::{Followers, by_partition, held_once_loaded};
use self::report::Report;
use self::scheduler::{
    BUCKET_TIMEOUT, BucketRequest, PageRequest, RETRY_INTERVAL, ReadFailure, Scheduler, Task,
    period,
};
use self::shared_log::SharedLog;
use self::snapshot_file::WrittenPairs;
use self::snapshot_task::{SnapshotError, SnapshotJob};
pub use self::snapshot_task::{SnapshotTarget, SnapshotTargetError, snapshot_files_in};
use self::state_machine::{Action, pieces};
use crate::change_feed::{self, Publisher};
use crate::metrics::Metrics;
use crate::table::Writer;
use consentd_core::businesses::Businesses;
use consentd_core::id::Key;
use consentd_core::partition::Layout;
use consentd_core::state::State;
use consentd_ledger::{
    Bucket, BucketReader, FollowerPosition, Ledger, LedgerError, Notification, Page, Partition,
};
use consentd_os::clock::Moment;

/// How many entries or pairs are applied before other tasks may run.
const ENTRIES_PER_YIELD: usize = 8;

/// Makes an iterator of pairs that are in no ledger, each time when the table is loaded.
pub type ExtraPairs = Arc<dyn Fn() -> Box<dyn Iterator<Item = (Key, State)> + Send> + Send + Sync>;

/// Follows one partition of a ledger.
pub struct Follower {
    partition: Partition,
    /// How the ledger is divided; unknown before the first page of a follower that is alone.
    layout: Option<Layout>,
    /// Notified when the table has come to be valid, or to hold other businesses.
    progress: Arc<Notify>,
    /// The moment that the periods of polls are counted from.
    began: Instant,
    announcements: Option<Receiver<Notification>>,
    applier: Applier,
    metrics: Arc<Metrics>,
    /// The longest staleness at which checks are answered.
    max_staleness: Duration,
    scrub_interval: Option<Duration>,
    extra_pairs: Option<ExtraPairs>,
    /// Reads the buckets of a ledger that is being loaded.
    bucket_reader: Option<Arc<BucketReader>>,
    snapshot_target: Option<SnapshotTarget>,
    snapshot_job: Option<SnapshotJob>,
    /// The businesses that the table is to hold.
    businesses: watch::Receiver<Businesses>,
    position: FollowerPosition,
    change_publisher: ChangePublisher,
    report: Report,
}

/// Where a follower publishes to, besides its table: the followers of a ledger's partitions share these.
struct Outlets {
    publisher: Publisher,
    losses: watch::Sender<u64>,
    progress: Arc<Notify>,
    /// The moment that their polls' periods are counted from.
    began: Instant,
    shared_log: SharedLog,
}

/// A read of the ledger, or of files, that is going on.
type PendingOperation = Pin<Box<dyn Future<Output = Completion> + Send>>;

/// All operations that are going on; polled concurrently.
type PendingOperations = FuturesUnordered<PendingOperation>;

enum Completion {
    Page(PageRequest, Result<Page, LedgerError>),
    Bucket(BucketRequest, Result<Bucket, LedgerError>),
    /// The wait before another poll is over.
    RetryDue,
    /// The pairs of a snapshot were written to a temporary file.
    PairsWritten(Result<WrittenPairs, SnapshotError>),
    /// The snapshot is in its place, with this size in bytes.
    SnapshotSaved(Result<u64, SnapshotError>),
}

impl Follower {
    /// A follower that polls often enough for `max_staleness`, the longest staleness at which checks
    /// are answered.
    #[must_use]
    pub fn new(
        partition: Partition,
        writer: Writer,
        metrics: Arc<Metrics>,
        max_staleness: Duration,
    ) -> Self {
        let (_, publisher) = change_feed::new();
        let (losses, progress) = (watch::Sender::new(0), Arc::default());
        let (began, shared_log) = (Instant::now(), SharedLog::default());
        let outlets = Outlets { publisher, losses, progress, began, shared_log };
        Self::with_outlets(partition, writer, metrics, max_staleness, outlets)
    }

    fn with_outlets(
        partition: Partition,
        writer: Writer,
        metrics: Arc<Metrics>,
        max_staleness: Duration,
        outlets: Outlets,
    ) -> Self {
        let Outlets { publisher, losses, progress, began, shared_log } = outlets;
        Self {
            announcements: Some(partition.listen()),
            report: Report::new(partition.clone(), Arc::clone(&metrics), losses, shared_log),
            partition,
            layout: None,
            progress,
            began,
            applier: Applier::new(writer, MAX_RETAINED_PAIRS),
            metrics,
            max_staleness,
            scrub_interval: None,
            extra_pairs: None,
            bucket_reader: None,
            snapshot_target: None,
            snapshot_job: None,
            businesses: watch::channel(Businesses::All).1,
            position: FollowerPosition::default(),
            change_publisher: ChangePublisher::new(publisher),
        }
    }

    /// Loads these pairs into the table before the ledger's own, for load tests.
    #[must_use]
    pub fn with_extra_pairs(mut self, pairs: Option<ExtraPairs>) -> Self {
        self.extra_pairs = pairs;
        self
    }

    /// Compares one bucket of the ledger with the table in each interval; never if it is `None`.
    #[must_use]
    pub fn with_scrub_interval(mut self, interval: Option<Duration>) -> Self {
        self.scrub_interval = interval;
        self
    }

    /// Starts from the snapshot in this file, and saves snapshots there.
    #[must_use]
    pub fn with_snapshots(mut self, target: Option<SnapshotTarget>) -> Self {
        self.snapshot_target = target;
        self
    }

    /// Holds these businesses alone, and whichever are sent later.
    #[must_use]
    pub fn with_businesses(mut self, businesses: watch::Receiver<Businesses>) -> Self {
        self.applier.writer().set_businesses(businesses.borrow().clone());
        self.partition.hold(businesses.borrow().clone());
        self.businesses = businesses;
        self
    }

    /// The position that is in the table, for recorders that wait for what they have appended.
    #[must_use]
    pub fn position(&self) -> FollowerPosition {
        self.position.clone()
    }

    /// Follows one of several partitions of a ledger that is divided like this.
    fn of_layout(mut self, layout: Layout) -> Self {
        self.layout = Some(layout);
        if layout.partitions() > 1 {
            self.report.name_partition();
        }
        self
    }

    /// Publishes changes there.
    fn publishing_to(mut self, publisher: Publisher) -> Self {
        self.change_publisher = ChangePublisher::new(publisher);
        self
    }

    /// Waits until it is known how the ledger is divided. The table says meanwhile why it is not.
    async fn learn_layout(&mut self, ledger: &Ledger) -> Layout {
        loop {
            match ledger.layout().await {
                Ok(layout) => return layout,
                Err(error) => self.report.on_read_error(self.applier.writer(), &error),
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Follows the ledger until `stop` is cancelled; then saves a last snapshot.
    pub async fn run(mut self, stop: CancellationToken) {
        // The receiver is as old as the follower, so that the first subscription is reported, too.
        let Some(announcements) = self.announcements.take() else { return };
        let Some(warm) = stop.run_until_cancelled(self.read_snapshot()).await else { return };
        let held = self.applier.writer().businesses();
        let (mut scheduler, tasks) = Scheduler::holding(held, warm, Moment::now());
        let follow = self.follow(&mut scheduler, tasks, announcements);
        let _ = stop.run_until_cancelled(follow).await;
        self.save_final_snapshot(&scheduler).await;
    }

    async fn follow(
        &mut self,
        scheduler: &mut Scheduler,
        tasks: Vec<Task>,
        mut announcements: Receiver<Notification>,
    ) {
        let mut pending = PendingOperations::new();
        let mut polls = self.poll_ticker();
        let mut scrubs = self.scrub_interval.map(|every| self.ticker(every, Duration::ZERO));
        let snapshots = self.snapshot_target.as_ref().and_then(|target| target.interval);
        let mut snapshots = snapshots.map(|every| self.ticker(every, every));
        self.perform(&mut pending, tasks).await;
        let position = self.position.clone();
        let mut businesses = self.businesses.clone();
        // They may have changed since the follower was made.
        businesses.mark_changed();
        loop {
            self.publish_position(scheduler);
            tokio::select! {
                biased;
                Some(completion) = pending.next() => {
                    let tasks = self.on_completion(scheduler, &pending, completion);
                    self.perform(&mut pending, tasks).await;
                    tokio::task::yield_now().await;
                }
                _ = polls.tick() => {
                    let tasks = scheduler.on_tick(Moment::now());
                    self.perform(&mut pending, tasks).await;
                }
                () = position.catch_up_requested() => {
                    let tasks = scheduler.on_tick(Moment::now());
                    self.perform(&mut pending, tasks).await;
                }
                () = next_tick(&mut scrubs) => {
                    let tasks = scheduler.on_scrub_due(Moment::now());
                    self.perform(&mut pending, tasks).await;
                }
                () = next_tick(&mut snapshots) => self.start_snapshot(scheduler, &pending),
                Ok(()) = businesses.changed() => {
                    let wanted = businesses.borrow_and_update().clone();
                    // What is read from now on has what is added.
                    self.partition.hold(wanted.clone());
                    let tasks = scheduler.on_hold(wanted, Moment::now());
                    self.report.on_wanted(scheduler.state_machine());
                    self.perform(&mut pending, tasks).await;
                }
                received = announcements.recv() => {
                    let flow = self.on_notification(scheduler, &mut pending, received).await;
                    if flow.is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Handles a notification of the ledger; breaks when the ledger was dropped. The table then is
    /// not proven any more, and denies.
    async fn on_notification(
        &mut self,
        scheduler: &mut Scheduler,
        pending: &mut PendingOperations,
        received: Result<Notification, RecvError>,
    ) -> ControlFlow<()> {
        match received {
            Ok(Notification::Announcement(announcement)) => {
                for piece in pieces(&announcement, ENTRIES_PER_YIELD) {
                    let tasks = scheduler.on_announcement(piece, Moment::now());
                    self.perform(pending, tasks).await;
                    self.publish_position(scheduler);
                    tokio::task::yield_now().await;
                }
            }
            Ok(Notification::Missed) | Err(RecvError::Lagged(_)) => {
                let tasks = scheduler.on_missed(Moment::now());
                self.perform(pending, tasks).await;
            }
            Ok(Notification::Subscribed) => {
                self.report.on_subscribed();
                // What was announced before is missing.
                let tasks = scheduler.on_missed(Moment::now());
                self.perform(pending, tasks).await;
            }
            Ok(Notification::Unsubscribed { refused, why }) => {
                self.report.on_unsubscribed(refused, &*why);
            }
            Err(RecvError::Closed) => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    /// Publishes to recorders which changes are in the table.
    fn publish_position(&self, scheduler: &Scheduler) {
        let machine = scheduler.state_machine();
        self.position.advance(machine.position(), |revision| machine.head_at(revision));
    }

    fn on_completion(
        &mut self,
        scheduler: &mut Scheduler,
        pending: &PendingOperations,
        completion: Completion,
    ) -> Vec<Task> {
        match completion {
            Completion::PairsWritten(written) => {
                self.finish_snapshot(scheduler, pending, written);
                Vec::new()
            }
            Completion::SnapshotSaved(saved) => {
                self.on_snapshot_result(saved);
                Vec::new()
            }
            Completion::Page(request, page) => {
                let page = match page {
                    Ok(page) => self.of_known_layout(page),
                    Err(error) => {
                        self.leave_turn();
                        self.report.on_read_error(self.applier.writer(), &error);
                        let is_missing = error.is_missing();
                        Err(if is_missing { ReadFailure::Missing } else { ReadFailure::Unanswered })
                    }
                };
                scheduler.on_page(request, page, Moment::now())
            }
            Completion::Bucket(request, bucket) => {
                let is_live = scheduler.state_machine().is_live();
                let bucket = bucket.map_err(|error| {
                    self.leave_turn();
                    if request.is_added() {
                        self.report.on_addition_error(&error);
                        return ReadFailure::Unanswered;
                    }
                    let writer = self.applier.writer();
                    self.report.on_bucket_error(writer, request.number, is_live, &error);
                    if error.is_lost_key() { ReadFailure::Lost } else { ReadFailure::Unanswered }
                });
                scheduler.on_bucket(request, bucket, Moment::now())
            }
            Completion::RetryDue => scheduler.on_retry_due(Moment::now()),
        }
    }

    /// The page, unless it is of a ledger that is divided otherwise than the tables are: its pairs are elsewhere.
    fn of_known_layout(&mut self, page: Page) -> Result<Page, ReadFailure> {
        let layout = page.identity.layout;
        if *self.layout.get_or_insert(layout) != layout {
            self.report.on_other_layout(self.applier.writer());
            return Err(ReadFailure::Unanswered);
        }
        Ok(page)
    }

    /// Lets other partitions be loaded first, where this one is being loaded and cannot be read.
    fn leave_turn(&self) {
        if let Some(reader) = &self.bucket_reader {
            reader.leave_turn();
        }
    }

    fn read_page(&self, request: PageRequest) -> PendingOperation {
        let (partition, page_timeout) = (self.partition.clone(), period(self.max_staleness));
        Box::pin(async move {
            let PageRequest { after, head, .. } = request;
            let page = timeout(page_timeout, partition.read_after_head(after, head)).await;
            Completion::Page(request, page.unwrap_or_else(|_| Err(timed_out())))
        })
    }

    fn read_bucket(&self, request: BucketRequest, wait: Duration) -> PendingOperation {
        let (partition, reader) = (self.partition.clone(), self.bucket_reader.clone());
        Box::pin(async move {
            sleep(wait).await;
            if let Some(reader) = &reader {
                // A load waits as long as it takes for those of other partitions that can be read.
                reader.turn().await;
            }
            let read = async {
                match reader {
                    Some(reader) => reader.bucket(request.number).await,
                    None => partition.bucket(request.number).await,
                }
            };
            let bucket = timeout(BUCKET_TIMEOUT, read).await;
            Completion::Bucket(request, bucket.unwrap_or_else(|_| Err(timed_out())))
        })
    }

    /// Performs tasks: changes the table, and starts reads.
    async fn perform(&mut self, pending: &mut PendingOperations, tasks: Vec<Task>) {
        for task in tasks {
            match task {
                Task::Page(request) => pending.push(self.read_page(request)),
                Task::Bucket { request, wait } => pending.push(self.read_bucket(request, wait)),
                Task::RetryPoll => pending.push(Box::pin(async {
                    sleep(RETRY_INTERVAL).await;
                    Completion::RetryDue
                })),
                Task::Table(action) => {
                    let outcome = self.applier.perform(&action);
                    self.report.on_action(self.applier.writer(), &action, outcome);
                    let is_reset = matches!(action, Action::ResetTable { .. });
                    if is_reset {
                        self.bucket_reader = Some(Arc::new(self.partition.bucket_reader()));
                    } else if matches!(action, Action::Validate) {
                        self.bucket_reader = None;
                    }
                    let is_progress = matches!(action, Action::Validate | Action::Hold(_));
                    self.change_publisher.on(action, outcome);
                    if is_progress {
                        self.progress.notify_one();
                    }
                    if is_reset {
                        self.load_extra_pairs().await;
                    }
                }
            }
        }
        self.change_publisher.flush();
    }

    /// The ticker of polls. Those of all partitions tick at the same moments: where others name the primary, one
    /// question to them then proves all of these polls.
    fn poll_ticker(&self) -> Interval {
        let mut ticker = interval_at(self.began, period(self.max_staleness));
        // It stays on these moments, even if one was missed.
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticker
    }

    /// A ticker whose first tick is after this time. Those of the partitions are spread over the period.
    fn ticker(&self, every: Duration, first: Duration) -> Interval {
        let partitions = self.layout.unwrap_or_default().partitions();
        let part = f64::from(self.partition.number()) / f64::from(partitions.max(1));
        let now = Instant::now();
        let first = now.checked_add(first.saturating_add(every.mul_f64(part))).unwrap_or(now);
        let mut ticker = interval_at(first, every);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticker
    }

    async fn load_extra_pairs(&mut self) {
        let Some(pairs) = &self.extra_pairs else { return };
        let businesses = self.applier.writer().businesses();
        let (layout, number) = (self.layout.unwrap_or_default(), self.partition.number());
        let is_here = |key: Key| layout.partition_of(key) == number && businesses.holds_key(key);
        let pairs = pairs().filter(|(key, _)| is_here(*key));
        for ((key, state), count) in pairs.zip(1_usize..) {
            self.applier.writer().apply(key, Ok(&state));
            if count.is_multiple_of(ENTRIES_PER_YIELD) {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The ledger did not answer a poll, or the read of a bucket, in time.
#[derive(Debug, thiserror::Error)]
#[error("it does not answer")]
struct TimedOut;

fn timed_out() -> LedgerError {
    LedgerError::Unreachable(Arc::new(TimedOut))
}

/// The next tick; never ready without a ticker.
async fn next_tick(ticker: &mut Option<Interval>) {
    match ticker {
        Some(ticker) => drop(ticker.tick().await),
        None => std::future::pending().await,
    }
}
