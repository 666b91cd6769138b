//! `WatchConsents`: changes as they are applied, checkpoints between them, resets where some were
//! missed.
//!
//! A watcher is asked for its next message only once its client has room for it. What it is too
//! slow for lies with all others' in [`changes`](crate::change_feed), which is bounded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::pb::watch_consents_response::{Changed, Checkpoint, Reset, What};
use super::{pb, status};
use crate::change_feed::{ChangeFeed, MissedChanges, PairChange, Subscription};
use crate::checker::{CheckError, Checker};
use crate::metrics::Metrics;
use consentd_core::id::BusinessId;
use consentd_core::record::Revision;

/// How long nothing may be said to a watcher while the table is proven to be current.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long changes of other businesses may be kept from a watcher of one, which learns of them by
/// a checkpoint alone.
const OTHERS: Duration = Duration::from_millis(100);

/// When a client may try again that came while as many watched as may.
const RETRY_FULL: Duration = Duration::from_secs(5);

/// What a watcher is sent.
pub(super) type Answers =
    Pin<Box<dyn Stream<Item = Result<pb::WatchConsentsResponse, Status>> + Send>>;

/// Lets so many at once watch what changes.
#[derive(Clone)]
pub struct Watches {
    changes: ChangeFeed,
    most: usize,
}

impl Watches {
    /// Lets at most `most` watch these changes at once; nobody, where that is 0.
    #[must_use]
    pub fn new(changes: ChangeFeed, most: usize) -> Self {
        Self { changes, most }
    }

    /// Begins to watch, until `ending` is cancelled.
    pub(super) fn watch(
        &self,
        request: pb::WatchConsentsRequest,
        ending: &CancellationToken,
        checker: &Checker,
        metrics: &Arc<Metrics>,
    ) -> Result<Answers, Status> {
        let business_id = request.business_id;
        if !business_id.is_empty()
            && let Err(violation) = BusinessId::parse(&business_id)
        {
            return Err(status::invalid(&[violation]));
        }
        if self.most == 0 {
            return Err(nobody_watches());
        }
        if !checker.is_ready() {
            return Err(status::of_check(&CheckError::NotReady));
        }
        let Ok(subscription) = self.changes.subscribe(self.most) else {
            metrics.refused("watchers");
            return Err(self.full());
        };
        metrics.watcher_opened();
        // After the subscription: what is applied from here on is told.
        let position = checker.revision();
        let watch = Watch {
            subscription,
            business_id,
            checker: checker.clone(),
            metrics: Arc::clone(metrics),
            ending: ending.clone(),
            read: VecDeque::new(),
            position,
            next: Some(checkpoint(position)),
            said: Instant::now(),
            owed: None,
        };
        Ok(Box::pin(stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            Some(match watch.next().await {
                Ok(what) => (Ok(pb::WatchConsentsResponse { what: Some(what) }), Some(watch)),
                Err(status) => (Err(status), None),
            })
        })))
    }

    fn full(&self) -> Status {
        let message = format!("{} watch already, which is --max-watchers", self.most);
        let details = ErrorDetails::with_retry_info(Some(RETRY_FULL));
        Status::with_error_details(Code::ResourceExhausted, message, details)
    }
}

/// What is answered where nobody may watch.
pub(super) fn nobody_watches() -> Status {
    Status::unimplemented(
        "nobody may watch here (--max-watchers is 0): check right before each send",
    )
}

fn checkpoint(revision: Revision) -> What {
    What::Checkpoint(Checkpoint { partition_revisions: vec![revision] })
}

/// What is owed to a watcher beside changes: to say up to where it was told of all.
#[derive(Clone, Copy)]
enum Owed {
    /// Behind changes that it was sent.
    ChangeFeed,
    /// Behind changes that are not its business.
    Others,
}

/// One who watches.
struct Watch {
    subscription: Subscription,
    /// Whose changes alone; everybody's, where it is empty.
    business_id: String,
    checker: Checker,
    metrics: Arc<Metrics>,
    ending: CancellationToken,
    /// What was read and not sent yet.
    read: VecDeque<Arc<PairChange>>,
    /// Everything up to here was sent, or is not to be.
    position: Revision,
    /// What is to be sent before anything else.
    next: Option<What>,
    /// When a checkpoint was sent last, or was left out.
    said: Instant,
    owed: Option<Owed>,
}

impl Watch {
    /// What is to be sent next, or why nothing more will be.
    async fn next(&mut self) -> Result<What, Status> {
        loop {
            if self.ending.is_cancelled() {
                return Err(Status::unavailable(
                    "this connection is to end: watch again elsewhere",
                ));
            }
            if let Some(next) = self.next.take() {
                return Ok(next);
            }
            if let Some(changed) = self.next_changed() {
                return Ok(changed);
            }
            if self.owed.is_some() && self.said.elapsed() >= HEARTBEAT {
                // Behind what was sent, though more has come already: it may go on coming.
                return Ok(self.checkpoint());
            }
            match self.subscription.read(&mut self.read) {
                Err(missed) => return Ok(self.reset(missed)),
                // Others' changes may be many, and send nothing that would have us wait.
                Ok(()) if !self.read.is_empty() => tokio::task::yield_now().await,
                Ok(()) => {
                    let due = self.due();
                    if due <= Instant::now() {
                        // Without a proof nobody is told that all is well.
                        if self.owed.is_some() || self.checker.is_live() {
                            return Ok(self.checkpoint());
                        }
                        self.said = Instant::now();
                    } else {
                        self.wait(due).await?;
                    }
                }
            }
        }
    }

    /// The next change, of those that were read, that is the watcher's business.
    fn next_changed(&mut self) -> Option<What> {
        while let Some(change) = self.read.pop_front() {
            // It came between the subscription and the look at the table, which had it.
            if change.revision <= self.position {
                continue;
            }
            self.position = change.revision;
            if self.business_id.is_empty() || *self.business_id == *change.business_id {
                self.owed = Some(Owed::ChangeFeed);
                return Some(What::Changed(Changed {
                    user_id: change.user_id.to_string(),
                    business_id: change.business_id.to_string(),
                    revision: change.revision,
                }));
            }
            self.owed = self.owed.or(Some(Owed::Others));
        }
        None
    }

    fn checkpoint(&mut self) -> What {
        self.said = Instant::now();
        self.owed = None;
        checkpoint(self.position)
    }

    fn reset(&mut self, missed: MissedChanges) -> What {
        self.metrics.watch_reset(missed.cause.label());
        self.position = missed.revision;
        self.next = Some(self.checkpoint());
        What::Reset(Reset {})
    }

    /// When the next checkpoint is to be sent, where nothing else is.
    fn due(&self) -> Instant {
        match self.owed {
            Some(Owed::ChangeFeed) => self.said,
            Some(Owed::Others) => self.said + OTHERS,
            None => self.said + HEARTBEAT,
        }
    }

    async fn wait(&mut self, due: Instant) -> Result<(), Status> {
        tokio::select! {
            biased;
            () = self.ending.cancelled() => Ok(()),
            news = self.subscription.wait_for_changes() => {
                news.map_err(|_| Status::unavailable("the server ends: watch again elsewhere"))
            }
            () = sleep_until(due) => Ok(()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.metrics.watcher_closed();
    }
}
