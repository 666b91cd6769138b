//! `ConsentService`: what message-sending workers call.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::call::Notes;
use super::watch::{self, Ending, Watches};
use super::{convert, deadline, pb, status};
use crate::clock;
use crate::consent::Violation;
use crate::gate::{CheckError, Gate, NotReached, Question};
use crate::metrics::Metrics;

/// Answers checks from a gate.
#[derive(Clone)]
pub struct CheckService {
    gate: Gate,
    ledger: String,
    max_batch: usize,
    watches: Option<Watches>,
    metrics: Arc<Metrics>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl CheckService {
    /// The service. `ledger` is shown in its status; a batch may have `max_batch` requests.
    #[must_use]
    pub fn new(gate: Gate, ledger: String, max_batch: usize, metrics: Arc<Metrics>) -> Self {
        Self { gate, ledger, max_batch, watches: None, metrics }
    }

    /// Lets clients watch what changes, too.
    #[must_use]
    pub fn watched(mut self, watches: Watches) -> Self {
        self.watches = Some(watches);
        self
    }

    fn answer(&self, request: &pb::CanSendRequest) -> Result<pb::CanSendResponse, CheckError> {
        let form = convert::form(request.form);
        let question = Question {
            user_id: &request.user_id,
            business_id: &request.business_id,
            category: &request.category,
            form: *form.as_ref().unwrap_or(&crate::decision::Form::Any),
        };
        match (self.gate.check(&question), form) {
            (Ok(answer), Ok(_)) => Ok(convert::answer(&answer)),
            (Err(CheckError::Invalid(mut found)), Err(violation)) => {
                found.push(violation);
                Err(CheckError::Invalid(found))
            }
            (Err(error), _) => Err(error),
            (Ok(_), Err(violation)) => Err(CheckError::Invalid(vec![violation])),
        }
    }

    /// Waits for the highest revision that a batch asks for.
    async fn reach_highest(
        &self,
        requests: &[pb::CanSendRequest],
        deadline: Option<Instant>,
    ) -> Option<NotReached> {
        let highest = requests.iter().map(|request| request.min_revision).max()?;
        if highest == 0 {
            return None;
        }
        self.gate.reach(highest, deadline).await.err()
    }

    fn result(
        &self,
        request: &pb::CanSendRequest,
        not_reached: Option<NotReached>,
    ) -> Result<pb::batch_can_send_result::Result, Status> {
        use pb::batch_can_send_result::Result as Pb;
        if let Some(missed) = not_reached
            && request.min_revision > self.gate.revision()
        {
            let missed = NotReached { wanted: request.min_revision, ..missed };
            return Ok(Pb::Error(status::item_of_not_reached(&missed)));
        }
        match self.answer(request) {
            Ok(response) => Ok(Pb::Response(response)),
            Err(CheckError::Invalid(found)) => Ok(Pb::Error(status::item_of_check(&found))),
            Err(error @ CheckError::NotReady) => Err(status::of_check(&error)),
        }
    }
}

#[tonic::async_trait]
impl pb::consent_service_server::ConsentService for CheckService {
    async fn can_send(
        &self,
        request: Request<pb::CanSendRequest>,
    ) -> Result<Response<pb::CanSendResponse>, Status> {
        let started = clock::boot();
        let min_revision = request.get_ref().min_revision;
        if min_revision > 0 {
            let deadline = deadline(request.metadata());
            let reached = self.gate.reach(min_revision, deadline).await;
            reached.map_err(|error| status::of_not_reached(&error))?;
        }
        let answer = self.answer(request.get_ref());
        if let Some(notes) = request.extensions().get::<Notes>()
            && let Ok(answer) = &answer
        {
            notes.decided(answer);
        }
        self.metrics.checked(clock::boot().saturating_sub(started));
        answer.map(Response::new).map_err(|error| status::of_check(&error))
    }

    async fn batch_can_send(
        &self,
        request: Request<pb::BatchCanSendRequest>,
    ) -> Result<Response<pb::BatchCanSendResponse>, Status> {
        let started = clock::boot();
        let deadline = deadline(request.metadata());
        let requests = &request.get_ref().requests;
        if requests.len() > self.max_batch {
            let why = format!("{} requests; at most {}", requests.len(), self.max_batch);
            return Err(status::invalid(&[Violation::new("requests", why)]));
        }
        if let Some(notes) = request.extensions().get::<Notes>() {
            notes.batch(requests.len());
        }
        let not_reached = self.reach_highest(requests, deadline).await;
        let mut results = Vec::with_capacity(requests.len());
        for request in requests {
            let result = self.result(request, not_reached)?;
            results.push(pb::BatchCanSendResult { result: Some(result) });
        }
        self.metrics.batch_checked(clock::boot().saturating_sub(started));
        Ok(Response::new(pb::BatchCanSendResponse { results }))
    }

    type StreamCanSendStream = Answers<pb::StreamCanSendResponse>;

    async fn stream_can_send(
        &self,
        _: Request<Streaming<pb::StreamCanSendRequest>>,
    ) -> Result<Response<Self::StreamCanSendStream>, Status> {
        Err(Status::unimplemented("StreamCanSend comes later; call CanSend or BatchCanSend"))
    }

    type FilterRecipientsStream = Answers<pb::FilterRecipientsResponse>;

    async fn filter_recipients(
        &self,
        _: Request<Streaming<pb::FilterRecipientsRequest>>,
    ) -> Result<Response<Self::FilterRecipientsStream>, Status> {
        Err(Status::unimplemented("FilterRecipients comes later; call BatchCanSend"))
    }

    async fn get_consent(
        &self,
        request: Request<pb::GetConsentRequest>,
    ) -> Result<Response<pb::GetConsentResponse>, Status> {
        let pb::GetConsentRequest { user_id, business_id } = request.get_ref();
        let (summary, revision, staleness) =
            self.gate.summary(user_id, business_id).map_err(|error| status::of_check(&error))?;
        let names = |scopes: Vec<_>| scopes.iter().map(ToString::to_string).collect();
        Ok(Response::new(pb::GetConsentResponse {
            last_inbound_time: summary.last_inbound.map(convert::timestamp),
            opted_in: names(summary.opted_in),
            opted_out: names(summary.opted_out),
            platform_stopped: summary.platform_stopped,
            suppressed: summary.suppressed,
            revision,
            staleness: Some(convert::duration(staleness)),
        }))
    }

    type WatchConsentsStream = Answers<pb::WatchConsentsResponse>;

    async fn watch_consents(
        &self,
        request: Request<pb::WatchConsentsRequest>,
    ) -> Result<Response<Self::WatchConsentsStream>, Status> {
        let watches = self.watches.as_ref().ok_or_else(watch::nobody_watches)?;
        let ending = request.extensions().get::<Ending>().cloned();
        let request = request.into_inner();
        let changes = watches.watch(request, ending.as_ref(), &self.gate, &self.metrics)?;
        Ok(Response::new(Box::pin(changes)))
    }

    async fn get_status(
        &self,
        _: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::GetStatusResponse>, Status> {
        let status = self.gate.status();
        Ok(Response::new(convert::status(status, self.ledger.clone())))
    }
}
