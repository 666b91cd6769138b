//! The client.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};

use crate::builder::ClientBuilder;
use crate::calls::{Attempts, Calls, Failure, with_timeout, within};
use crate::coalesce::Coalescer;
use crate::error::Error;
use crate::event::{Event, Recorded};
use crate::filter::{Campaign, Filtered};
use crate::observer::{Observer, guarded};
use crate::pb;
use crate::question::Question;
#[cfg(feature = "testing")]
use crate::testing::Rules;
use crate::verdict::Verdict;
use crate::watch::Watch;

/// The deadline of a recording, repetitions included. It is acknowledged once it is durable.
pub const RECORD_DEADLINE: Duration = Duration::from_secs(5);

/// How long one question of the sidecar's status may take.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// A client of one sidecar. Clones share its connection and its batches, so a process needs one.
///
/// It belongs to the tokio runtime in which it was made, and works only as long as that runs.
#[derive(Clone)]
pub struct Client(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) backend: Backend,
    deadline: Duration,
    token: Token,
    observer: Option<Arc<dyn Observer>>,
}

#[allow(clippy::large_enum_variant, reason = "there is one for each client")]
pub(crate) enum Backend {
    Sidecar {
        calls: Calls,
        coalescer: Option<Arc<Coalescer>>,
    },
    #[cfg(feature = "testing")]
    Fake(Arc<Rules>),
}

/// The bearer token of recordings.
pub(crate) enum Token {
    None,
    Text(String),
    File(PathBuf),
}

impl Token {
    /// The header's value; none without a token.
    async fn value(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let invalid = |cause: String| Error::new(Code::Unauthenticated, cause);
        match self {
            Self::None => Ok(None),
            Self::Text(token) => Self::header(token).map(Some),
            Self::File(path) => {
                let text = tokio::fs::read_to_string(path).await;
                let text = text.map_err(|error| invalid(format!("{}: {error}", path.display())))?;
                let mut lines = text.lines().map(str::trim);
                let token = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
                let token =
                    token.ok_or_else(|| invalid(format!("{}: no token", path.display())))?;
                Self::header(token).map(Some)
            }
        }
    }

    pub(crate) fn header(token: &str) -> Result<MetadataValue<Ascii>, Error> {
        let value = format!("Bearer {token}").parse();
        let mut value: MetadataValue<Ascii> = value.map_err(|_| {
            Error::new(Code::InvalidArgument, "the token has characters that no header can hold")
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Client {
    /// Makes a client of the sidecar at `HOST:PORT`, `unix:PATH` or `unix:@NAME`, with the options' usual values.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT`, if that is no address. Whether a sidecar is there, [`ready`](Self::ready) says.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(address: impl Into<String>) -> Result<Self, Error> {
        Self::builder().address(address).build()
    }

    /// Makes a client with options.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn with(backend: Backend, deadline: Duration) -> Self {
        Self(Arc::new(Inner { backend, deadline, token: Token::None, observer: None }))
    }

    pub(crate) fn of_sidecar(
        calls: Calls,
        coalescer: Option<Arc<Coalescer>>,
        deadline: Duration,
        token: Token,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        // The connection is made now, so that the first check does not have to wait for it.
        let mut checks = calls.checks.clone();
        drop(tokio::runtime::Handle::current().spawn(async move {
            let request = with_timeout(pb::GetStatusRequest {}, Instant::now() + STATUS_DEADLINE);
            let _ = checks.get_status(request).await;
        }));
        let backend = Backend::Sidecar { calls, coalescer };
        Self(Arc::new(Inner { backend, deadline, token, observer }))
    }

    /// Whether a message may be sent now. Ask right before each send.
    ///
    /// It always comes back by its deadline, and every failure is a verdict that does not allow: see [`Verdict`].
    /// Dropping the future takes the question back.
    pub async fn may_send(&self, question: impl Into<Question>) -> Verdict {
        let Question { request, deadline } = question.into();
        let started = Instant::now();
        let deadline = deadline_after(started, deadline.unwrap_or(self.0.deadline));
        let verdict: Verdict = match &self.0.backend {
            Backend::Sidecar { calls, coalescer } => match coalescer {
                Some(coalescer) if Coalescer::takes(&request) => {
                    coalescer.ask(request, deadline).await
                }
                _ => calls.can_send(request, deadline).await,
            },
            #[cfg(feature = "testing")]
            Backend::Fake(rules) => rules.answer(&request),
        }
        .into();
        if let Some(observer) = &self.0.observer {
            guarded(|| observer.on_check(&verdict.outcome(), started.elapsed()));
        }
        verdict
    }

    /// The same, for whoever wants to handle the failure itself.
    ///
    /// # Errors
    ///
    /// Why nothing was decided. The message must not be sent then, either.
    pub async fn check(&self, question: impl Into<Question>) -> Result<Verdict, Error> {
        self.may_send(question).await.into_result()
    }

    /// Screens the users of a campaign: gives each with its verdict, in order. Screening is no check: ask again right
    /// before each send.
    ///
    /// At most four chunks of 1,000 users are under way, so the memory that it takes is bounded, however many users
    /// there are. It never ends early: a user without an answer within 5 s is `unavailable`.
    pub fn filter<I>(&self, users: I, campaign: Campaign) -> Filtered
    where
        I: IntoIterator<Item: Into<String> + 'static, IntoIter: Send + 'static>,
    {
        self.filter_stream(tokio_stream::iter(users.into_iter().map(Into::into)), campaign)
    }

    /// The same of users that come as a stream, such as from a database.
    pub fn filter_stream(
        &self,
        users: impl tokio_stream::Stream<Item = String> + Send + 'static,
        campaign: Campaign,
    ) -> Filtered {
        Filtered::new(self.clone(), Box::pin(users), campaign)
    }

    /// Watches what changes at a business, so that queued messages can be withdrawn; at every business where it is
    /// empty.
    ///
    /// It connects again by itself, and ends with an error only where that is of no use: see [`Watch::next`].
    pub fn watch(&self, business: impl Into<String>) -> Watch {
        Watch::new(self, business.into())
    }

    /// Records an event durably, within [`RECORD_DEADLINE`].
    ///
    /// The event has a request id, so it is repeated where the sidecar or its ledger cannot be reached, and counts
    /// once all the same.
    ///
    /// # Errors
    ///
    /// The event is not known to be recorded: record it again, unless the error
    /// [`is_invalid`](Error::is_invalid). An opt-out that is lost allows what must not be sent.
    pub async fn record(&self, event: Event) -> Result<Recorded, Error> {
        self.record_within(event, RECORD_DEADLINE).await
    }

    /// The same with a deadline of its own.
    ///
    /// # Errors
    ///
    /// As [`record`](Self::record).
    pub async fn record_within(&self, event: Event, deadline: Duration) -> Result<Recorded, Error> {
        let deadline = deadline_after(Instant::now(), deadline);
        let request = event.into_request();
        let calls = match &self.0.backend {
            Backend::Sidecar { calls, .. } => calls,
            #[cfg(feature = "testing")]
            Backend::Fake(rules) => return Ok(rules.record(request)),
        };
        let mut attempts = Attempts::new();
        loop {
            let mut records = calls.records.clone();
            let mut call = with_timeout(request.clone(), deadline);
            if let Some(token) = self.0.token.value().await? {
                call.metadata_mut().insert("authorization", token);
            }
            match within(deadline, records.record_event(call)).await {
                Ok(response) => return Ok(Recorded(response)),
                Err(Failure::Late) => return Err(attempts.late()),
                Err(Failure::Status(status)) if attempts.may_repeat(&status) => {
                    attempts.pause(deadline).await;
                }
                Err(Failure::Status(status)) => return Err(Error::of_status(&status)),
            }
        }
    }

    /// Waits until a sidecar is there and has loaded its table. For the start of a process, so that its first checks
    /// are answered.
    ///
    /// # Errors
    ///
    /// `DEADLINE_EXCEEDED`, if there is none `within` this time; or another answer of the sidecar, such as that this
    /// client may not ask.
    pub async fn ready(&self, within_time: Duration) -> Result<(), Error> {
        let calls = match &self.0.backend {
            Backend::Sidecar { calls, .. } => calls,
            #[cfg(feature = "testing")]
            Backend::Fake(_) => return Ok(()),
        };
        let end = deadline_after(Instant::now(), within_time);
        let mut attempts = Attempts::new();
        loop {
            let deadline = end.min(Instant::now() + STATUS_DEADLINE);
            let mut checks = calls.checks.clone();
            let call = checks.get_status(with_timeout(pb::GetStatusRequest {}, deadline));
            match within(deadline, call).await {
                Ok(status) if status.phase() != pb::get_status_response::Phase::Loading => {
                    return Ok(());
                }
                Err(Failure::Status(status)) if !attempts.may_repeat(&status) => {
                    return Err(Error::of_status(&status));
                }
                Ok(_) => attempts.failed(&Status::unavailable("the sidecar loads its table")),
                Err(_) => {}
            }
            if Instant::now() >= end {
                return Err(attempts.late());
            }
            attempts.pause(end).await;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("deadline", &self.0.deadline).finish_non_exhaustive()
    }
}

/// The end of a time that may be as long as it likes.
fn deadline_after(now: Instant, time: Duration) -> Instant {
    const LONGEST: Duration = Duration::from_hours(24);
    now + time.min(LONGEST)
}
