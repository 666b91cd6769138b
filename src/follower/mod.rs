//! What keeps the table equal to the ledger: the only holder of the table's [`Writer`].
//!
//! [`machine`] decides, [`apply`] does it to the table, [`driver`] says what is asked of the ledger
//! and when, `feed` what those who watch are told; the one task here asks, waits, and tells what
//! happened.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

pub mod apply;
pub mod driver;
mod feed;
pub mod machine;
mod report;
mod saved;
mod saving;
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

use self::apply::{Applier, Done, MAX_STICKY};
use self::driver::{
    BUCKET_TIMEOUT, BucketQuestion, Driver, NotRead, PageQuestion, RETRY, Task, period,
};
use self::feed::Feed;
use self::machine::{Action, Cause, pieces};
use self::saved::Written;
pub use self::saving::{CannotSave, Saving, saved_tables};
use self::saving::{NotSaved, Underway};
use crate::changes::{self, Changes};
use crate::metrics::Metrics;
use crate::synthetic::Synthetic;
use crate::table::Writer;
use consentd_core::time::Timestamp;
use consentd_ledger::{Bucket, FollowerPosition, Heard, Ledger, LedgerError, Page, Standing};
use consentd_os::clock::{self, Moment};

/// How many announced entries are applied between two looks at what else there is to do.
const MAX_AT_ONCE: usize = 8;

/// How often a cause that lasts is logged again.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Follows one ledger.
pub struct Follower {
    ledger: Ledger,
    announcements: Option<Receiver<Heard>>,
    applier: Applier,
    metrics: Arc<Metrics>,
    bound: Duration,
    scrub_every: Option<Duration>,
    synthetic: Option<Synthetic>,
    saving: Option<Saving>,
    underway: Option<Underway>,
    losses: watch::Sender<u64>,
    position: FollowerPosition,
    changes: Changes,
    feed: Feed,
    /// Why the table could not be proven, as last logged, and when.
    said: Option<(String, Duration)>,
    /// When an offset between the clocks was last logged, while there is one.
    clocks_told: Option<Moment>,
    /// Whether the ledger may lack what was recorded, and recorders were not told yet.
    may_lack: bool,
    /// Why the table stays invalid though it holds the ledger; empty where it does not.
    overflow: String,
    /// How well the ledger keeps what it acknowledges, as last told.
    standing: Option<Standing>,
    /// Why announcements are not heard, as last logged.
    unheard: Option<String>,
    /// Buckets that the ledger has lost, and that are not back.
    lost_buckets: HashSet<u32>,
}

/// What is being asked of the ledger.
type Question = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What is asked and not answered yet.
type Questions = FuturesUnordered<Question>;

enum Answer {
    Page(PageQuestion, Result<Page, LedgerError>),
    Bucket(BucketQuestion, Result<Bucket, LedgerError>),
    /// It is time to ask again where the log ends.
    Again,
    /// The pairs were written to a file.
    Written(Result<Written, NotSaved>),
    /// The table was saved.
    Saved(Result<u64, NotSaved>),
}

impl Follower {
    /// A follower that proves the table often enough for `bound`, the longest staleness at which
    /// checks are still answered.
    #[must_use]
    pub fn new(ledger: Ledger, writer: Writer, metrics: Arc<Metrics>, bound: Duration) -> Self {
        let (changes, publisher) = changes::new();
        Self {
            announcements: Some(ledger.listen()),
            ledger,
            applier: Applier::new(writer, MAX_STICKY),
            metrics,
            bound,
            scrub_every: None,
            synthetic: None,
            saving: None,
            underway: None,
            losses: watch::Sender::new(0),
            position: FollowerPosition::default(),
            changes,
            feed: Feed::new(publisher),
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
    pub fn saving(mut self, saving: Option<Saving>) -> Self {
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
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Follows until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        // Heard since the follower was made: the first subscription is one of those counted.
        let Some(announcements) = self.announcements.take() else { return };
        let Some(warm) = stop.run_until_cancelled(self.read_saved()).await else { return };
        let (mut driver, tasks) = Driver::from(warm, Moment::now());
        let follow = self.follow(&mut driver, tasks, announcements);
        let _ = stop.run_until_cancelled(follow).await;
        self.save_at_the_end(&driver).await;
    }

    async fn follow(
        &mut self,
        driver: &mut Driver,
        tasks: Vec<Task>,
        mut announcements: Receiver<Heard>,
    ) {
        let mut questions = Questions::new();
        let mut ticks = every(period(self.bound));
        let mut scrub = self.scrub_every.map(every);
        let mut save = self.saving.as_ref().and_then(|saving| saving.every).map(every);
        if let Some(save) = &mut save {
            save.reset(); // The first tick is a period from now.
        }
        self.perform(&mut questions, tasks).await;
        let position = self.position.clone();
        loop {
            self.at(driver);
            tokio::select! {
                biased;
                Some(answer) = questions.next() => {
                    let tasks = self.on_answer(driver, &questions, answer);
                    self.perform(&mut questions, tasks).await;
                    tokio::task::yield_now().await;
                }
                _ = ticks.tick() => {
                    let tasks = driver.on_tick(Moment::now());
                    self.perform(&mut questions, tasks).await;
                }
                () = position.wanted() => {
                    let tasks = driver.on_tick(Moment::now());
                    self.perform(&mut questions, tasks).await;
                }
                () = next(&mut scrub) => {
                    let tasks = driver.on_scrub_due(Moment::now());
                    self.perform(&mut questions, tasks).await;
                }
                () = next(&mut save) => self.begin_saving(driver, &questions),
                heard = announcements.recv() => match heard {
                    Ok(Heard::Announcement(announcement)) => {
                        for piece in pieces(&announcement, MAX_AT_ONCE) {
                            let tasks = driver.on_announcement(piece, Moment::now());
                            self.perform(&mut questions, tasks).await;
                            self.at(driver);
                            tokio::task::yield_now().await;
                        }
                    }
                    Ok(Heard::Missed) | Err(RecvError::Lagged(_)) => {
                        let tasks = driver.on_missed(Moment::now());
                        self.perform(&mut questions, tasks).await;
                    }
                    Ok(Heard::Subscribed) => {
                        self.metrics.subscribed("subscribed");
                        if self.unheard.take().is_some() {
                            info!("subscribed to the ledger's announcements again");
                        }
                        let tasks = driver.on_missed(Moment::now());
                        self.perform(&mut questions, tasks).await;
                    }
                    Ok(Heard::Unsubscribed { refused, why }) => self.unheard(refused, &*why),
                    // The ledger is gone; without proofs the table denies by itself.
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    /// Tells recorders that what was applied so far is in the table.
    fn at(&self, driver: &Driver) {
        let machine = driver.machine();
        self.position.follow(machine.position(), |revision| machine.head_at(revision));
    }

    fn on_answer(
        &mut self,
        driver: &mut Driver,
        questions: &Questions,
        answer: Answer,
    ) -> Vec<Task> {
        match answer {
            Answer::Written(written) => {
                self.finish_saving(driver, questions, written);
                Vec::new()
            }
            Answer::Saved(saved) => {
                self.on_saved(saved);
                Vec::new()
            }
            Answer::Page(question, page) => {
                let page = page.map_err(|error| {
                    self.unproven(&error.to_string());
                    if error.is_missing() { NotRead::Missing } else { NotRead::Unanswered }
                });
                driver.on_page(question, page, Moment::now())
            }
            Answer::Bucket(question, bucket) => {
                let bucket = bucket.map_err(|error| self.unread(driver, question.number, &error));
                driver.on_bucket(question, bucket, Moment::now())
            }
            Answer::Again => driver.on_again(Moment::now()),
        }
    }

    fn page(&self, question: PageQuestion) -> Question {
        let (ledger, within) = (self.ledger.clone(), period(self.bound));
        Box::pin(async move {
            let PageQuestion { after, head, .. } = question;
            let page = timeout(within, ledger.read_behind(after, head)).await;
            Answer::Page(question, page.unwrap_or_else(|_| Err(no_answer())))
        })
    }

    fn bucket(&self, question: BucketQuestion, wait: Duration) -> Question {
        let ledger = self.ledger.clone();
        Box::pin(async move {
            sleep(wait).await;
            let bucket = timeout(BUCKET_TIMEOUT, ledger.bucket(question.number)).await;
            Answer::Bucket(question, bucket.unwrap_or_else(|_| Err(no_answer())))
        })
    }

    /// Does what is to be done.
    async fn perform(&mut self, questions: &mut Questions, tasks: Vec<Task>) {
        for task in tasks {
            match task {
                Task::Page(question) => questions.push(self.page(question)),
                Task::Bucket { question, wait } => questions.push(self.bucket(question, wait)),
                Task::Again => questions.push(Box::pin(async {
                    sleep(RETRY).await;
                    Answer::Again
                })),
                Task::Table(action) => {
                    let done = self.applier.perform(&action);
                    self.tell(&action, done);
                    let begun = matches!(action, Action::Begin { .. });
                    self.feed.on(action, done);
                    if begun {
                        self.fill_in().await;
                    }
                }
            }
        }
        self.feed.tell();
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
    fn unread(&mut self, driver: &Driver, number: u32, error: &LedgerError) -> NotRead {
        if !error.is_lost_key() {
            self.unproven(&error.to_string());
            return NotRead::Unanswered;
        }
        if self.lost_buckets.insert(number) {
            error!(
                cause = %error,
                "a bucket of the ledger was deleted or evicted in Redis: messages to its users are \
                 denied until it is back; run `consentd ledger repair`, or restore a backup of Redis"
            );
        }
        if driver.machine().is_live() {
            self.check_ledger();
        } else {
            // Until it is back, all is denied: nobody knows what it held.
            self.unproven(&error.to_string());
        }
        NotRead::Lost
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
        self.applier.writer().explain(why);
    }

    /// Tells metrics, the log and the table's readers of what was done.
    fn tell(&mut self, action: &Action, done: Done) {
        match action {
            Action::Applied(_, recorded) if *recorded > Timestamp::MIN => {
                self.metrics.propagated(clock::wall().since(*recorded));
            }
            Action::Prove(asked, ledger_clock) => {
                self.check_clocks(*asked, *ledger_clock);
                self.check_ledger();
                if self.said.take().is_some() {
                    info!(
                        "this sidecar has all of the ledger's changes again, and answers by them"
                    );
                }
                self.applier.writer().explain(self.overflow.clone());
            }
            Action::Invalidate(cause) => {
                // Where the log was trimmed past us it may be another branch's, too.
                let losses = [Cause::Fork, Cause::Epoch, Cause::Missing, Cause::Trimmed];
                self.may_lack |= losses.contains(cause);
                if *cause != Cause::Start {
                    warn!(cause = cause.label(), "the table is not valid");
                }
                self.metrics.resynced(cause.label());
                if *cause == Cause::Fork {
                    self.metrics.forked();
                }
                self.applier.writer().explain(cause.to_string());
            }
            Action::GapRepaired => self.metrics.gap_repaired(),
            Action::Refuse(unused) => self.refused(unused.label(), &unused.to_string()),
            _ => {}
        }
        if let Action::Compare(bucket) = action
            && self.lost_buckets.remove(&bucket.number)
        {
            info!(
                bucket = bucket.number,
                "a lost bucket of the ledger is back, and was read again"
            );
            self.losses.send_modify(|losses| *losses = losses.wrapping_add(1));
        }
        match done {
            Done::Doubted { pairs } => {
                warn!(
                    pairs,
                    "this many pairs are denied because their bucket of the ledger was lost: run \
                     `consentd ledger repair`, or restore a backup of Redis"
                );
            }
            Done::Compared { mismatches } if mismatches > 0 => {
                warn!(
                    pairs = mismatches,
                    "the table was not what the ledger holds, and was mended"
                );
                self.metrics.scrub_mismatched(mismatches);
            }
            Done::Valid { sticky } => {
                if matches!(action, Action::Validate) {
                    info!(remembered = sticky, "the table holds the ledger");
                    self.lost();
                }
                if !std::mem::take(&mut self.overflow).is_empty() {
                    self.applier.writer().explain("");
                }
            }
            Done::Overflowed { sticky } => {
                self.overflow = format!(
                    "the ledger has lost denials of {sticky} users, more than are remembered \
                     beside it: bring it back from a backup, or say that it is right as it is \
                     with `consentd ledger accept`"
                );
                error!(pairs = sticky, "the ledger has lost too much: the table stays invalid");
                self.applier.writer().explain(self.overflow.clone());
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
