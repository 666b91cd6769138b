//! What keeps the table equal to the ledger: the only holder of the table's [`Writer`].
//!
//! [`state_machine`] decides, [`applier`] does it to the table, [`scheduler`] says what is asked of the ledger
//! and when, `change_publisher` what those who watch are told; the one task here asks, waits, and tells what
//! happened.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

pub mod applier;
mod change_publisher;
mod report;
pub mod scheduler;
mod snapshot_file;
mod snapshot_task;
pub mod state_machine;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::applier::{ActionOutcome, Applier, MAX_RETAINED_PAIRS};
use self::change_publisher::ChangePublisher;
use self::scheduler::{
    BUCKET_TIMEOUT, BucketRequest, PageRequest, RETRY_INTERVAL, ReadFailure, Scheduler, Task,
    period,
};
use self::snapshot_file::WrittenPairs;
use self::snapshot_task::{SnapshotError, SnapshotJob};
pub use self::snapshot_task::{SnapshotTarget, SnapshotTargetError, snapshot_files_in};
use self::state_machine::{Action, ResyncCause, pieces};
use crate::change_feed::{self, ChangeFeed};
use crate::metrics::Metrics;
use crate::synthetic::Synthetic;
use crate::table::Writer;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Bucket, DurabilityStatus, FollowerPosition, Ledger, LedgerError, Notification, Page,
};
use consentd_os::clock::{self, Moment};

/// How many announced entries are applied between two looks at what else there is to do.
const MAX_AT_ONCE: usize = 8;

/// How often a cause that lasts is logged again.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Follows one ledger.
pub struct Follower {
    ledger: Ledger,
    announcements: Option<Receiver<Notification>>,
    applier: Applier,
    metrics: Arc<Metrics>,
    bound: Duration,
    scrub_every: Option<Duration>,
    synthetic: Option<Synthetic>,
    saving: Option<SnapshotTarget>,
    snapshot_job: Option<SnapshotJob>,
    losses: watch::Sender<u64>,
    position: FollowerPosition,
    changes: ChangeFeed,
    change_publisher: ChangePublisher,
    /// Why the table could not be proven, as last logged, and when.
    said: Option<(String, Duration)>,
    /// When an offset between the clocks was last logged, while there is one.
    clocks_told: Option<Moment>,
    /// Whether the ledger may lack what was recorded, and recorders were not told yet.
    may_lack: bool,
    /// Why the table stays invalid though it holds the ledger; empty where it does not.
    overflow: String,
    /// How well the ledger keeps what it acknowledges, as last told.
    standing: Option<DurabilityStatus>,
    /// Why announcements are not heard, as last logged.
    unheard: Option<String>,
    /// Buckets that the ledger has lost, and that are not back.
    lost_buckets: HashSet<u32>,
}

/// What is being asked of the ledger.
type PendingOperation = Pin<Box<dyn Future<Output = Completion> + Send>>;

/// What is asked and not answered yet.
type PendingOperations = FuturesUnordered<PendingOperation>;

enum Completion {
    Page(PageRequest, Result<Page, LedgerError>),
    Bucket(BucketRequest, Result<Bucket, LedgerError>),
    /// It is time to ask again where the log ends.
    RetryDue,
    /// The pairs were written to a file.
    PairsWritten(Result<WrittenPairs, SnapshotError>),
    /// The table was saved.
    SnapshotSaved(Result<u64, SnapshotError>),
}

impl Follower {
    /// A follower that proves the table often enough for `bound`, the longest staleness at which
    /// checks are still answered.
    #[must_use]
    pub fn new(ledger: Ledger, writer: Writer, metrics: Arc<Metrics>, bound: Duration) -> Self {
        let (changes, publisher) = change_feed::new();
        Self {
            announcements: Some(ledger.listen()),
            ledger,
            applier: Applier::new(writer, MAX_RETAINED_PAIRS),
            metrics,
            bound,
            scrub_every: None,
            synthetic: None,
            saving: None,
            snapshot_job: None,
            losses: watch::Sender::new(0),
            position: FollowerPosition::default(),
            changes,
            change_publisher: ChangePublisher::new(publisher),
            said: None,
            clocks_told: None,
            may_lack: false,
            overflow: String::new(),
            standing: None,
            unheard: None,
            lost_buckets: HashSet::new(),
        }
    }

    /// Puts these pairs into the table as well, before the ledger's own.
    #[must_use]
    pub fn beside(mut self, synthetic: Option<Synthetic>) -> Self {
        self.synthetic = synthetic;
        self
    }

    /// Compares a bucket of the ledger with the table this often, and never where unset.
    #[must_use]
    pub fn scrubbing(mut self, every: Option<Duration>) -> Self {
        self.scrub_every = every;
        self
    }

    /// Begins with the table that was saved there, and saves it.
    #[must_use]
    pub fn saving(mut self, saving: Option<SnapshotTarget>) -> Self {
        self.saving = saving;
        self
    }

    /// Tells how often the ledger was seen to have lost changes.
    #[must_use]
    pub fn losses(&self) -> watch::Receiver<u64> {
        self.losses.subscribe()
    }

    /// Where the follower is, for recorders that wait for what they have appended.
    #[must_use]
    pub fn position(&self) -> FollowerPosition {
        self.position.clone()
    }

    /// Where one can watch what changes in the table.
    #[must_use]
    pub fn changes(&self) -> ChangeFeed {
        self.changes.clone()
    }

    /// Follows until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        // Notification since the follower was made: the first subscription is one of those counted.
        let Some(announcements) = self.announcements.take() else { return };
        let Some(warm) = stop.run_until_cancelled(self.read_snapshot()).await else { return };
        let (mut driver, tasks) = Scheduler::from(warm, Moment::now());
        let follow = self.follow(&mut driver, tasks, announcements);
        let _ = stop.run_until_cancelled(follow).await;
        self.save_final_snapshot(&driver).await;
    }

    async fn follow(
        &mut self,
        driver: &mut Scheduler,
        tasks: Vec<Task>,
        mut announcements: Receiver<Notification>,
    ) {
        let mut pending = PendingOperations::new();
        let mut ticks = every(period(self.bound));
        let mut scrub = self.scrub_every.map(every);
        let mut save = self.saving.as_ref().and_then(|saving| saving.every).map(every);
        if let Some(save) = &mut save {
            save.reset(); // The first tick is a period from now.
        }
        self.perform(&mut pending, tasks).await;
        let position = self.position.clone();
        loop {
            self.at(driver);
            tokio::select! {
                biased;
                Some(answer) = pending.next() => {
                    let tasks = self.on_answer(driver, &pending, answer);
                    self.perform(&mut pending, tasks).await;
                    tokio::task::yield_now().await;
                }
                _ = ticks.tick() => {
                    let tasks = driver.on_tick(Moment::now());
                    self.perform(&mut pending, tasks).await;
                }
                () = position.catch_up_requested() => {
                    let tasks = driver.on_tick(Moment::now());
                    self.perform(&mut pending, tasks).await;
                }
                () = next(&mut scrub) => {
                    let tasks = driver.on_scrub_due(Moment::now());
                    self.perform(&mut pending, tasks).await;
                }
                () = next(&mut save) => self.start_snapshot(driver, &pending),
                heard = announcements.recv() => match heard {
                    Ok(Notification::Announcement(announcement)) => {
                        for piece in pieces(&announcement, MAX_AT_ONCE) {
                            let tasks = driver.on_announcement(piece, Moment::now());
                            self.perform(&mut pending, tasks).await;
                            self.at(driver);
                            tokio::task::yield_now().await;
                        }
                    }
                    Ok(Notification::Missed) | Err(RecvError::Lagged(_)) => {
                        let tasks = driver.on_missed(Moment::now());
                        self.perform(&mut pending, tasks).await;
                    }
                    Ok(Notification::Subscribed) => {
                        self.metrics.subscribed("subscribed");
                        if self.unheard.take().is_some() {
                            info!("subscribed to the ledger's announcements again");
                        }
                        let tasks = driver.on_missed(Moment::now());
                        self.perform(&mut pending, tasks).await;
                    }
                    Ok(Notification::Unsubscribed { refused, why }) => self.unheard(refused, &*why),
                    // The ledger is gone; without proofs the table denies by itself.
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    /// Tells recorders that what was applied so far is in the table.
    fn at(&self, driver: &Scheduler) {
        let machine = driver.state_machine();
        self.position.advance(machine.position(), |revision| machine.head_at(revision));
    }

    fn on_answer(
        &mut self,
        driver: &mut Scheduler,
        pending: &PendingOperations,
        answer: Completion,
    ) -> Vec<Task> {
        match answer {
            Completion::PairsWritten(written) => {
                self.finish_snapshot(driver, pending, written);
                Vec::new()
            }
            Completion::SnapshotSaved(saved) => {
                self.on_snapshot_result(saved);
                Vec::new()
            }
            Completion::Page(question, page) => {
                let page = page.map_err(|error| {
                    self.unproven(&error.to_string());
                    if error.is_missing() { ReadFailure::Missing } else { ReadFailure::Unanswered }
                });
                driver.on_page(question, page, Moment::now())
            }
            Completion::Bucket(question, bucket) => {
                let bucket = bucket.map_err(|error| self.unread(driver, question.number, &error));
                driver.on_bucket(question, bucket, Moment::now())
            }
            Completion::RetryDue => driver.on_retry_due(Moment::now()),
        }
    }

    fn page(&self, question: PageRequest) -> PendingOperation {
        let (ledger, within) = (self.ledger.clone(), period(self.bound));
        Box::pin(async move {
            let PageRequest { after, head, .. } = question;
            let page = timeout(within, ledger.read_after_head(after, head)).await;
            Completion::Page(question, page.unwrap_or_else(|_| Err(no_answer())))
        })
    }

    fn bucket(&self, question: BucketRequest, wait: Duration) -> PendingOperation {
        let ledger = self.ledger.clone();
        Box::pin(async move {
            sleep(wait).await;
            let bucket = timeout(BUCKET_TIMEOUT, ledger.bucket(question.number)).await;
            Completion::Bucket(question, bucket.unwrap_or_else(|_| Err(no_answer())))
        })
    }

    /// Does what is to be done.
    async fn perform(&mut self, pending: &mut PendingOperations, tasks: Vec<Task>) {
        for task in tasks {
            match task {
                Task::Page(question) => pending.push(self.page(question)),
                Task::Bucket { question, wait } => pending.push(self.bucket(question, wait)),
                Task::RetryPoll => pending.push(Box::pin(async {
                    sleep(RETRY_INTERVAL).await;
                    Completion::RetryDue
                })),
                Task::Table(action) => {
                    let done = self.applier.perform(&action);
                    self.tell(&action, done);
                    let begun = matches!(action, Action::ResetTable { .. });
                    self.change_publisher.on(action, done);
                    if begun {
                        self.fill_in().await;
                    }
                }
            }
        }
        self.change_publisher.flush();
    }

    /// Puts in what is in no ledger.
    async fn fill_in(&mut self) {
        let Some(synthetic) = &self.synthetic else { return };
        for (number, next) in (0..synthetic.count()).zip(1_usize..) {
            if let Some((key, state)) = synthetic.pair(number) {
                self.applier.writer().apply(key, Ok(&state));
            }
            if next.is_multiple_of(MAX_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Tells that a bucket was not read, and remembers that it was lost.
    fn unread(&mut self, driver: &Scheduler, number: u32, error: &LedgerError) -> ReadFailure {
        if !error.is_lost_key() {
            self.unproven(&error.to_string());
            return ReadFailure::Unanswered;
        }
        if self.lost_buckets.insert(number) {
            error!(
                cause = %error,
                "a bucket of the ledger was deleted or evicted in Redis: messages to its users are \
                 denied until it is back; run `consentd ledger repair`, or restore a backup of Redis"
            );
        }
        if driver.state_machine().is_live() {
            self.check_ledger();
        } else {
            // Until it is back, all is denied: nobody knows what it held.
            self.unproven(&error.to_string());
        }
        ReadFailure::Lost
    }

    fn unproven(&mut self, why: &str) {
        self.check_ledger();
        let now = clock::boot();
        let known = self.said.as_ref();
        let again =
            |(said, at): &(String, Duration)| said != why || now.saturating_sub(*at) >= SAY_AGAIN;
        if known.is_none_or(again) {
            warn!(
                cause = why,
                "cannot prove that this sidecar has all of the ledger's changes: once the last proof is \
                 older than --max-staleness, every check is denied as STALE; retrying by itself"
            );
            self.said = Some((why.to_owned(), now));
        }
        self.applier.writer().set_cause(why);
    }

    /// Tells metrics, the log and the table's readers of what was done.
    fn tell(&mut self, action: &Action, done: ActionOutcome) {
        match action {
            Action::AdvanceRevision(_, recorded) if *recorded > Timestamp::MIN => {
                self.metrics.propagated(clock::wall().since(*recorded));
            }
            Action::SetProof(asked, ledger_clock) => {
                self.check_clocks(*asked, *ledger_clock);
                self.check_ledger();
                if self.said.take().is_some() {
                    info!(
                        "this sidecar has all of the ledger's changes again, and answers by them"
                    );
                }
                self.applier.writer().set_cause(self.overflow.clone());
            }
            Action::Invalidate(cause) => {
                // Where the log was trimmed past us it may be another branch's, too.
                let losses = [
                    ResyncCause::Fork,
                    ResyncCause::Epoch,
                    ResyncCause::Missing,
                    ResyncCause::Trimmed,
                ];
                self.may_lack |= losses.contains(cause);
                if *cause != ResyncCause::Start {
                    warn!(cause = cause.label(), "the table is not valid");
                }
                self.metrics.resynced(cause.label());
                if *cause == ResyncCause::Fork {
                    self.metrics.forked();
                }
                self.applier.writer().set_cause(cause.to_string());
            }
            Action::GapRepaired => self.metrics.gap_repaired(),
            Action::RejectWarmStart(unused) => self.refused(unused.label(), &unused.to_string()),
            _ => {}
        }
        if let Action::CompareBucket(bucket) = action
            && self.lost_buckets.remove(&bucket.number)
        {
            info!(
                bucket = bucket.number,
                "a lost bucket of the ledger is back, and was read again"
            );
            self.losses.send_modify(|losses| *losses = losses.wrapping_add(1));
        }
        match done {
            ActionOutcome::BucketDenied { pairs } => {
                warn!(
                    pairs,
                    "this many pairs are denied because their bucket of the ledger was lost: run \
                     `consentd ledger repair`, or restore a backup of Redis"
                );
            }
            ActionOutcome::BucketCompared { mismatches } if mismatches > 0 => {
                warn!(
                    pairs = mismatches,
                    "the table was not what the ledger holds, and was mended"
                );
                self.metrics.scrub_mismatched(mismatches);
            }
            ActionOutcome::Valid { retained } => {
                if matches!(action, Action::Validate) {
                    info!(remembered = retained, "the table holds the ledger");
                    self.lost();
                }
                if !std::mem::take(&mut self.overflow).is_empty() {
                    self.applier.writer().set_cause("");
                }
            }
            ActionOutcome::Overflowed { retained } => {
                self.overflow = format!(
                    "the ledger has lost denials of {retained} users, more than are remembered \
                     beside it: bring it back from a backup, or say that it is right as it is \
                     with `consentd ledger accept`"
                );
                error!(pairs = retained, "the ledger has lost too much: the table stays invalid");
                self.applier.writer().set_cause(self.overflow.clone());
                self.lost();
            }
            _ => {}
        }
    }

    /// Tells recorders of a loss, so that they give back what they know.
    fn lost(&mut self) {
        let is_back = !std::mem::take(&mut self.lost_buckets).is_empty();
        if std::mem::take(&mut self.may_lack) || is_back {
            self.losses.send_modify(|losses| *losses = losses.wrapping_add(1));
        }
    }
}

/// The ledger did not answer within the time that a poll, or a bucket, may take.
#[derive(Debug, thiserror::Error)]
#[error("it does not answer")]
struct NoAnswer;

fn no_answer() -> LedgerError {
    LedgerError::Unreachable(Arc::new(NoAnswer))
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The next tick, or never.
async fn next(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
