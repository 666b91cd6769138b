//! Coalescing: concurrent questions become batches.
//!
//! A question that comes while nothing is under way is sent at once, by its own caller, as `CanSend`. One that comes
//! while something is under way is gathered; what is gathered goes as one `BatchCanSend` when an answer arrives, when
//! it is full, or 1 ms after the first of it came. Batches have tasks of their own, so that a caller who is cancelled
//! takes nobody else along.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prost::Message as _;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status};

use crate::calls::{Attempts, Calls, Failure};
use crate::error::Error;
use crate::observer::{Observer, guarded};
use crate::{pb, verdict};

/// The most questions of a batch, as sidecars take it unless `--max-batch` says otherwise.
const MAX_BATCH: usize = 1_000;
/// The most bytes of a batch's questions: half of what sidecars take.
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// A larger question goes by itself.
const MAX_QUESTION_BYTES: usize = 4 * 1024;
/// The longest that a question is gathered.
const MAX_WAIT: Duration = Duration::from_millis(1);

type Answer = Result<pb::CanSendResponse, Error>;

/// Gathers questions, and sends them as batches.
pub(crate) struct Coalescer {
    calls: Calls,
    runtime: Handle,
    observer: Option<Arc<dyn Observer>>,
    state: Mutex<State>,
    /// The most questions of a batch that the sidecar is known to take.
    max_batch: AtomicUsize,
    /// Wakes the task that sends what was gathered for [`MAX_WAIT`].
    gathering: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// Calls whose answer has not arrived.
    under_way: usize,
    gathered: Vec<Gathered>,
    /// The bytes of what is gathered.
    bytes: usize,
    /// When the first of it came.
    since: Option<Instant>,
}

/// A question whose caller waits for its answer.
struct Gathered {
    request: pb::CanSendRequest,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Counts a call as under way until its answer has arrived, however it ends.
struct UnderWay<'c>(&'c Arc<Coalescer>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.under_way -= 1;
        self.0.send(state);
    }
}

impl Coalescer {
    pub(crate) fn new(calls: Calls, observer: Option<Arc<dyn Observer>>) -> Arc<Self> {
        let gathering = Arc::new(Notify::new());
        let coalescer = Arc::new(Self {
            calls,
            runtime: Handle::current(),
            observer,
            state: Mutex::default(),
            max_batch: AtomicUsize::new(MAX_BATCH),
            gathering: Arc::clone(&gathering),
        });
        let weak = Arc::downgrade(&coalescer);
        // It ends with the coalescer, whose drop wakes it.
        drop(coalescer.runtime.spawn(send_in_time(weak, gathering)));
        coalescer
    }

    /// Whether a question may be coalesced: one that waits for its revision would hold up the others.
    pub(crate) fn takes(request: &pb::CanSendRequest) -> bool {
        request.min_revision == 0 && request.encoded_len() <= MAX_QUESTION_BYTES
    }

    /// Asks, alone or among others.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        request: pb::CanSendRequest,
        deadline: Instant,
    ) -> Answer {
        let answer = match self.gather(request, deadline) {
            Ok(answer) => answer,
            Err(alone) => {
                let _under_way = UnderWay(self);
                return self.calls.can_send(alone, deadline).await;
            }
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            // The batch's task is gone.
            Ok(Err(_)) => Err(Error::new(Code::Cancelled, "the client's runtime has ended")),
            Err(_) => Err(Error::late(None)),
        }
    }

    /// Gathers a question. Gives it back where nothing is under way, and counts it as under way then.
    #[allow(clippy::result_large_err, reason = "the question goes back to its caller")]
    fn gather(
        self: &Arc<Self>,
        request: pb::CanSendRequest,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Answer>, pb::CanSendRequest> {
        let mut state = self.lock();
        if state.under_way == 0 {
            state.under_way = 1;
            return Err(request);
        }
        let (answer, answered) = oneshot::channel();
        state.bytes += request.encoded_len();
        state.gathered.push(Gathered { request, deadline, answer });
        if state.since.is_none() {
            state.since = Some(Instant::now());
            self.gathering.notify_one();
        }
        if state.gathered.len() >= self.max_batch() || state.bytes >= MAX_BATCH_BYTES {
            self.send(state);
        }
        Ok(answered)
    }

    fn max_batch(&self) -> usize {
        self.max_batch.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is gathered, if anything is.
    fn send(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.gathered.is_empty() {
            return;
        }
        let capacity = state.gathered.len();
        let batch = mem::replace(&mut state.gathered, Vec::with_capacity(capacity));
        state.bytes = 0;
        state.since = None;
        state.under_way += 1;
        drop(state);
        self.spawn(batch);
    }

    /// Sends what has been gathered for [`MAX_WAIT`]; returns when that will be so, if it is not yet.
    fn send_due(self: &Arc<Self>) -> Option<Instant> {
        let state = self.lock();
        let due = state.since? + MAX_WAIT;
        if due > Instant::now() {
            return Some(due);
        }
        self.send(state);
        None
    }

    fn spawn(self: &Arc<Self>, batch: Vec<Gathered>) {
        drop(self.runtime.spawn(Arc::clone(self).run(batch)));
    }

    /// Asks a batch, and answers each of its callers.
    async fn run(self: Arc<Self>, mut batch: Vec<Gathered>) {
        let under_way = UnderWay(&self);
        let Some(answer) = self.ask_batch(&mut batch).await else { return };
        // What was gathered meanwhile goes before anything else is done.
        drop(under_way);
        match answer {
            Ok(response) if response.results.len() == batch.len() => {
                for (one, result) in batch.into_iter().zip(response.results) {
                    // A caller who was cancelled, or whose deadline has passed, is gone.
                    let _ = one.answer.send(verdict::of_batch(result));
                }
            }
            Ok(_) => {
                let why = "the sidecar's answer has not one result for each question";
                answer_all(batch, &Error::new(Code::Internal, why));
            }
            // One question may be what the sidecar refuses all of them for.
            Err(status) if batch.len() > 1 && status.code() == Code::InvalidArgument => {
                let most = batch.len().div_ceil(2);
                self.shrink_if_too_large(&status, most);
                while !batch.is_empty() {
                    let rest = batch.split_off(most.min(batch.len()));
                    self.lock().under_way += 1;
                    self.spawn(mem::replace(&mut batch, rest));
                }
            }
            Err(status) => answer_all(batch, &Error::of_status(&status)),
        }
    }

    /// Asks until there is an answer, or nobody waits for one any more.
    async fn ask_batch(
        &self,
        batch: &mut Vec<Gathered>,
    ) -> Option<Result<pb::BatchCanSendResponse, Status>> {
        let mut attempts = Attempts::new();
        loop {
            let now = Instant::now();
            batch.retain(|one| !one.answer.is_closed() && one.deadline > now);
            let deadline = batch.iter().map(|one| one.deadline).max()?;
            let requests = batch.iter().map(|one| one.request.clone()).collect();
            if let Some(observer) = &self.observer {
                guarded(|| observer.on_batch(batch.len()));
            }
            match self.calls.batch_can_send(pb::BatchCanSendRequest { requests }, deadline).await {
                Ok(response) => return Some(Ok(response)),
                Err(Failure::Status(status)) if attempts.may_repeat_check(&status) => {
                    if let Err(error) = attempts.pause_before(deadline).await {
                        answer_all(mem::take(batch), &error);
                        return None;
                    }
                }
                Err(Failure::Status(status)) => return Some(Err(status)),
                // Each caller's own deadline has passed as well.
                Err(Failure::Late) => {
                    answer_all(mem::take(batch), &attempts.late());
                    return None;
                }
            }
        }
    }

    /// Asks batches of this size from now on, if one was refused for its size.
    fn shrink_if_too_large(&self, status: &Status, size: usize) {
        if Error::of_status(status).violations().iter().any(|one| one.field == "requests") {
            self.max_batch.fetch_min(size, Ordering::Relaxed);
        }
    }
}

impl Drop for Coalescer {
    fn drop(&mut self) {
        self.gathering.notify_one();
    }
}

fn answer_all(batch: Vec<Gathered>, error: &Error) {
    for one in batch {
        let _ = one.answer.send(Err(error.clone()));
    }
}

/// Sends what was gathered for [`MAX_WAIT`], until the coalescer is gone.
async fn send_in_time(coalescer: Weak<Coalescer>, gathering: Arc<Notify>) {
    loop {
        gathering.notified().await;
        loop {
            let Some(coalescer) = coalescer.upgrade() else { return };
            let Some(due) = coalescer.send_due() else { break };
            drop(coalescer);
            sleep_until(due).await;
        }
    }
}
