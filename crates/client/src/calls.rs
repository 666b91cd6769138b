//! The calls below everything else, with their deadlines and their repetitions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::error::{Error, is_connection_failure, is_timeout};
use crate::pb;
use crate::pb::consent_service_client::ConsentServiceClient;
use crate::pb::record_service_client::RecordServiceClient;

/// The first pause before a check is repeated. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// What is done to each request before it is sent.
pub(crate) type Intercept = dyn Fn(Request<()>) -> Result<Request<()>, Status> + Send + Sync;

/// The interceptor of whoever made the client, if there is one.
#[derive(Clone)]
pub(crate) struct Intercepting(pub(crate) Option<Arc<Intercept>>);

impl Interceptor for Intercepting {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match &self.0 {
            Some(intercept) => intercept(request),
            None => Ok(request),
        }
    }
}

pub(crate) type Service = InterceptedService<Channel, Intercepting>;

/// The sidecar's services. Clones share one connection.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) checks: ConsentServiceClient<Service>,
    pub(crate) records: RecordServiceClient<Service>,
}

impl Calls {
    pub(crate) fn new(channel: Channel, intercepting: Intercepting) -> Self {
        let service = InterceptedService::new(channel, intercepting);
        // A batch of 1,000 answers has about 100 KiB; the default bound of a message is 4 MiB.
        let checks = ConsentServiceClient::new(service.clone());
        Self { checks, records: RecordServiceClient::new(service) }
    }

    /// Asks one question, again where the connection failed, until its deadline.
    pub(crate) async fn can_send(
        &self,
        request: pb::CanSendRequest,
        deadline: Instant,
    ) -> Result<pb::CanSendResponse, Error> {
        let mut attempts = Attempts::new();
        loop {
            let mut checks = self.checks.clone();
            let call = checks.can_send(with_timeout(request.clone(), deadline));
            match within(deadline, call).await {
                Ok(response) => return Ok(response),
                Err(Failure::Late) => return Err(attempts.late()),
                Err(Failure::Status(status)) if attempts.may_repeat_check(&status) => {
                    attempts.pause_before(deadline).await?;
                }
                Err(Failure::Status(status)) => return Err(Error::of_status(&status)),
            }
        }
    }

    /// Asks a batch once.
    pub(crate) async fn batch_can_send(
        &self,
        request: pb::BatchCanSendRequest,
        deadline: Instant,
    ) -> Result<pb::BatchCanSendResponse, Failure> {
        let mut checks = self.checks.clone();
        within(deadline, checks.batch_can_send(with_timeout(request, deadline))).await
    }
}

/// Sends the deadline to the sidecar, which abandons the call then.
pub(crate) fn with_timeout<T>(message: T, deadline: Instant) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    request
}

/// Why a call has no response.
pub(crate) enum Failure {
    /// There was no answer by the deadline.
    Late,
    Status(Status),
}

/// Waits for a response until the deadline, also while the client connects, when tonic's own timer does not run.
pub(crate) async fn within<T>(
    deadline: Instant,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) if !is_timeout(&status) => Err(Failure::Status(status)),
        Ok(Err(_)) | Err(_) => Err(Failure::Late),
    }
}

/// The attempts of one call.
pub(crate) struct Attempts {
    pause: Duration,
    last: Option<Error>,
}

impl Attempts {
    pub(crate) fn new() -> Self {
        Self { pause: FIRST_PAUSE, last: None }
    }

    /// Whether a check may be repeated, after [`pause_before`](Self::pause_before): its connection failed, and no answer
    /// came.
    pub(crate) fn may_repeat_check(&mut self, status: &Status) -> bool {
        let may = is_connection_failure(status);
        if may {
            self.failed(status);
        }
        may
    }

    /// Whether another call may be repeated, after [`pause`](Self::pause): also where the sidecar answers that it, or its
    /// ledger, cannot serve the call now.
    pub(crate) fn may_repeat(&mut self, status: &Status) -> bool {
        if [Code::Unavailable, Code::Aborted, Code::ResourceExhausted].contains(&status.code()) {
            self.failed(status);
            return true;
        }
        self.may_repeat_check(status)
    }

    /// Keeps what an attempt ended with.
    pub(crate) fn failed(&mut self, status: &Status) {
        self.last = Some(Error::of_status(status));
    }

    /// Waits before the next attempt. Where that would begin after the deadline, there is no sidecar, which is said at
    /// once.
    pub(crate) async fn pause_before(&mut self, deadline: Instant) -> Result<(), Error> {
        let now = Instant::now();
        let last = self.last.as_ref().filter(|last| last.code() == Code::Unavailable);
        if let Some(last) = last.filter(|_| now < deadline && now + self.pause >= deadline) {
            return Err(Error::new(Code::Unavailable, last.cause()));
        }
        self.pause(deadline).await;
        Ok(())
    }

    /// Waits before the next attempt, no longer than until the deadline.
    pub(crate) async fn pause(&mut self, deadline: Instant) {
        sleep_until((Instant::now() + self.pause).min(deadline)).await;
        self.pause = (self.pause * 2).min(Duration::from_secs(1));
    }

    /// The error of a call that has no answer by its deadline.
    pub(crate) fn late(&self) -> Error {
        Error::late(self.last.as_ref())
    }
}
