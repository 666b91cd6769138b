//! `WatchConsents`: changes as they are applied, checkpoints between them, and a reset if changes were
//! missed.
//!
//! A stream is polled for its next message only while its client has room for it. Changes that a
//! client is too slow for stay in the bounded [`change_feed`](crate::change_feed), which all share.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::pb::watch_consents_response::{Changed, Checkpoint, Reset, TemplateChanged, What};
use super::{pb, status};
use crate::change_feed::{ChangeFeed, MissedChanges, PairChange, Subscription};
use crate::checker::{CheckError, Checker};
use crate::metrics::Metrics;
use consentd_core::id::BusinessId;
use consentd_core::record::Revision;
use consentd_core::template::{Subject, TemplateId};

/// The longest time without a message to a watcher, while what it watches is proven to be current.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long a watcher of one business waits for the checkpoint after changes of other businesses.
const OTHERS_CHECKPOINT_DELAY: Duration = Duration::from_millis(100);

/// The retry delay of a client that came while `--max-watchers` clients were watching.
const RETRY_FULL: Duration = Duration::from_secs(5);

/// The responses to a watcher.
pub(super) type WatchResponses =
    Pin<Box<dyn Stream<Item = Result<pb::WatchConsentsResponse, Status>> + Send>>;

/// Serves `WatchConsents` to a limited number of clients.
#[derive(Clone)]
pub struct WatchService {
    changes: ChangeFeed,
    max_watchers: usize,
}

impl WatchService {
    /// Serves these changes to at most `max_watchers` clients at once; 0 disables watching.
    #[must_use]
    pub fn new(changes: ChangeFeed, max_watchers: usize) -> Self {
        Self { changes, max_watchers }
    }

    /// Starts a stream, which ends once `ending` is cancelled.
    pub(super) fn watch(
        &self,
        request: pb::WatchConsentsRequest,
        ending: &CancellationToken,
        checker: &Checker,
        metrics: &Arc<Metrics>,
    ) -> Result<WatchResponses, Status> {
        let business_id = request.business_id;
        let invalid = |violation| status::invalid(&[violation]);
        if !business_id.is_empty() {
            BusinessId::parse(&business_id).map_err(invalid)?;
        }
        if self.max_watchers == 0 {
            return Err(watching_disabled());
        }
        if !checker.is_ready() {
            return Err(status::check_error(&CheckError::NotReady));
        }
        ensure_held(checker, &business_id)?;
        let Ok(subscription) = self.changes.subscribe(self.max_watchers) else {
            metrics.refused("watchers");
            return Err(self.full());
        };
        metrics.watcher_opened();
        // Read after subscribing, so that no change between the two is missed.
        let position = checker.revisions();
        let watch = WatchStream {
            subscription,
            business_id,
            checker: checker.clone(),
            metrics: Arc::clone(metrics),
            ending: ending.clone(),
            read: VecDeque::new(),
            next: Some(checkpoint(position.clone())),
            position,
            last_checkpoint: Instant::now(),
            pending: None,
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
        let message = format!("{} watch already, which is --max-watchers", self.max_watchers);
        let details = ErrorDetails::with_retry_info(Some(RETRY_FULL));
        Status::with_error_details(Code::ResourceExhausted, message, details)
    }
}

/// The status when watching is disabled.
pub(super) fn watching_disabled() -> Status {
    Status::unimplemented(
        "watching is disabled here (--max-watchers is 0): check right before each send",
    )
}

/// Refuses to watch a business that the table does not hold. Without one, all that it holds are watched.
fn ensure_held(checker: &Checker, business_id: &str) -> Result<(), Status> {
    let Ok(business) = BusinessId::parse(business_id) else { return Ok(()) };
    checker.ensure_held(business).map_err(|error| status::check_error(&error))
}

/// What a watcher is sent of a change: templates are not named as users.
fn change_of(change: &PairChange) -> What {
    let (business_id, revision) = (change.business_id.to_string(), change.revision);
    match Subject::of(&change.user_id) {
        Subject::Person => {
            let user_id = change.user_id.to_string();
            What::Changed(Changed { user_id, business_id, revision })
        }
        Subject::Template | Subject::Account => {
            let template = TemplateId::of_subject(&change.user_id).map(|template| pb::Template {
                name: template.name().to_owned(),
                language: template.language().to_owned(),
            });
            What::TemplateChanged(TemplateChanged { template, business_id, revision })
        }
    }
}

fn checkpoint(partition_revisions: Vec<Revision>) -> What {
    What::Checkpoint(Checkpoint { partition_revisions })
}

/// A checkpoint that is still to be sent. It says up to which revision the watcher knows everything.
#[derive(Clone, Copy)]
enum PendingCheckpoint {
    /// It follows changes that were sent.
    OwnChanges,
    /// It follows changes of other businesses, which were not sent.
    Others,
}

/// The stream of one watcher.
struct WatchStream {
    subscription: Subscription,
    /// The business whose changes are sent; if empty, all are.
    business_id: String,
    checker: Checker,
    metrics: Arc<Metrics>,
    ending: CancellationToken,
    /// Changes that were read from the feed and not sent yet.
    read: VecDeque<Arc<PairChange>>,
    /// Every change up to these revisions of the partitions was sent or skipped.
    position: Vec<Revision>,
    /// A message to be sent before anything else.
    next: Option<What>,
    /// When the last checkpoint was sent, or omitted because the table was not current.
    last_checkpoint: Instant,
    pending: Option<PendingCheckpoint>,
}

impl WatchStream {
    /// The next message, or the status that ends the stream.
    async fn next(&mut self) -> Result<What, Status> {
        loop {
            if self.ending.is_cancelled() {
                return Err(Status::unavailable(
                    "this connection is to end: watch again elsewhere",
                ));
            }
            // A business may be held no more; the gap that this leaves in the feed has woken us.
            ensure_held(&self.checker, &self.business_id)?;
            if let Some(next) = self.next.take() {
                return Ok(next);
            }
            if let Some(changed) = self.next_changed() {
                return Ok(changed);
            }
            if self.pending.is_some() && self.last_checkpoint.elapsed() >= HEARTBEAT {
                // Sent although more changes may be waiting: under a steady flow there are always more.
                return Ok(self.checkpoint());
            }
            match self.subscription.read(&mut self.read) {
                Err(missed) => return Ok(self.reset(missed)),
                // Changes of other businesses may be many, and sending none of them never waits.
                Ok(()) if !self.read.is_empty() => tokio::task::yield_now().await,
                Ok(()) => {
                    let due = self.due();
                    if due <= Instant::now() {
                        // What is not proven to be current gets no heartbeat.
                        if self.pending.is_some() || self.is_live() {
                            return Ok(self.checkpoint());
                        }
                        self.last_checkpoint = Instant::now();
                    } else {
                        self.wait(due).await?;
                    }
                }
            }
        }
    }

    /// The next change that was read and concerns the watcher.
    fn next_changed(&mut self) -> Option<What> {
        while let Some(change) = self.read.pop_front() {
            // It was applied between subscribing and reading the position, which covers it.
            let place = usize::try_from(change.partition).unwrap_or(usize::MAX);
            if let Some(position) = self.position.get_mut(place) {
                if change.revision <= *position {
                    continue;
                }
                *position = change.revision;
            }
            if self.business_id.is_empty() || *self.business_id == *change.business_id {
                self.pending = Some(PendingCheckpoint::OwnChanges);
                return Some(change_of(&change));
            }
            self.pending = self.pending.or(Some(PendingCheckpoint::Others));
        }
        None
    }

    /// Whether what is watched is proven to be current: the partitions of the business, or all of them.
    fn is_live(&self) -> bool {
        match BusinessId::parse(&self.business_id) {
            Ok(business) => self.checker.is_live_for(business),
            Err(_) => self.checker.is_live(),
        }
    }

    fn checkpoint(&mut self) -> What {
        self.last_checkpoint = Instant::now();
        self.pending = None;
        checkpoint(self.position.clone())
    }

    fn reset(&mut self, missed: MissedChanges) -> What {
        self.metrics.watch_reset(missed.cause.label());
        self.position = match self.position[..] {
            [_] => vec![missed.revision],
            // What was changed up to here is in the tables, which the client asks again after the reset.
            _ => self.checker.revisions(),
        };
        self.next = Some(self.checkpoint());
        What::Reset(Reset {})
    }

    /// When the next checkpoint is due, if nothing else is sent.
    fn due(&self) -> Instant {
        match self.pending {
            Some(PendingCheckpoint::OwnChanges) => self.last_checkpoint,
            Some(PendingCheckpoint::Others) => self.last_checkpoint + OTHERS_CHECKPOINT_DELAY,
            None => self.last_checkpoint + HEARTBEAT,
        }
    }

    async fn wait(&mut self, due: Instant) -> Result<(), Status> {
        tokio::select! {
            biased;
            () = self.ending.cancelled() => Ok(()),
            news = self.subscription.wait_for_changes() => {
                news.map_err(|_| Status::unavailable("the server shuts down: watch again elsewhere"))
            }
            () = sleep_until(due) => Ok(()),
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.metrics.watcher_closed();
    }
}
