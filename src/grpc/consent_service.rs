//! `ConsentService`, which message-sending workers call.
//!
//! Its hot methods read requests in place (see [`fast_decode`](super::fast_decode)). The generated
//! server would decode every message, so this service dispatches its methods itself.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::body::MeteredBody;
use super::call_telemetry::{CallNotes, CallTelemetry};
use super::codec::{self, Codec, MAX_FIELDS, RawCodec, RawDecodeCodec};
use super::fast_decode::{BatchResponseEncoder, RawCheckRequest};
use super::method::Method;
use super::pb::batch_can_send_result::Result as Pb;
use super::watch_consents::{self, WatchService};
use super::{MAX_BATCH_BYTES, MAX_REQUEST_BYTES, convert, deadline, pb, status, table_status};
use crate::budget::{Charge, Pool};
use crate::checker::{CheckError, CheckRequest, CheckResult, Checker, KnownPair, RevisionTimeout};
use crate::metrics::Metrics;
use consentd_core::Violation;
use consentd_os::clock;

/// How many checks of a batch are answered before the task yields: some 0.05 ms of work, whose data
/// fits into a core's L1 cache.
pub(super) const CHECKS_PER_YIELD: usize = 128;

/// About the memory of a batch's item in addition to the request's bytes: the decoded request, and
/// its result.
const ITEM_BYTES: usize = size_of::<RawCheckRequest<'_>>() + 64;

/// Serves checks.
pub struct CheckService {
    pub(super) checker: Checker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: CheckLimits,
    ledger: String,
    watch: Option<WatchService>,
    pub(super) telemetry: CallTelemetry,
}

/// How many checks may be in one message.
#[derive(Clone, Copy, Debug)]
pub struct CheckLimits {
    /// Requests of a batch.
    pub batch: usize,
    /// Users in one message of `FilterRecipients`.
    pub recipients: usize,
}

impl CheckService {
    /// The service. `ledger` is the address that `GetStatus` reports.
    #[must_use]
    pub fn new(
        checker: Checker,
        ledger: String,
        limits: CheckLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { checker, metrics, limits, ledger, watch: None, telemetry: CallTelemetry::new(None) }
    }

    /// Serves `WatchConsents`, too.
    #[must_use]
    pub fn with_watch(mut self, watch: WatchService) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Reports requests of streams that are over a limit to `telemetry`.
    pub(super) fn with_telemetry(mut self, telemetry: CallTelemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// Answers a unary call. What it keeps of the request while it waits is charged in addition to
    /// `charge`.
    pub(super) async fn call(
        &self,
        method: Method,
        request: http::Request<MeteredBody>,
        charge: &Charge,
    ) -> http::Response<Body> {
        match method {
            Method::CanSend => {
                let service = service_fn(|request| self.can_send(request, charge));
                grpc(RawDecodeCodec::small(), MAX_REQUEST_BYTES).unary(service, request).await
            }
            Method::BatchCanSend => {
                let service = service_fn(|request| self.batch_can_send(request, charge));
                grpc(RawCodec, MAX_BATCH_BYTES).unary(service, request).await
            }
            Method::GetConsent => {
                let service = service_fn(|request| ready(self.get_consent(&request)));
                grpc(Codec::default(), MAX_REQUEST_BYTES).unary(service, request).await
            }
            Method::GetStatus => {
                let service =
                    service_fn(|_: Request<pb::GetStatusRequest>| ready(Ok(self.get_status())));
                grpc(Codec::default(), MAX_REQUEST_BYTES).unary(service, request).await
            }
            // Listed, so that a method that is added is served here, or is listed too.
            Method::StreamCanSend
            | Method::FilterRecipients
            | Method::WatchConsents
            | Method::RecordEvent
            | Method::RecordEvents
            | Method::ListEvents
            | Method::ExportEvents
            | Method::CheckEvents
            | Method::ListUserEvents
            | Method::ListDueOptIns
            | Method::EraseUser => misrouted(),
        }
    }

    /// Answers a streaming call, which ends once `ending` is cancelled.
    pub(super) async fn call_stream(
        self: &Arc<Self>,
        method: Method,
        request: http::Request<MeteredBody>,
        ending: &CancellationToken,
        charge: &Charge,
    ) -> http::Response<Body> {
        match method {
            Method::FilterRecipients => {
                let service = service_fn(|request| {
                    ready(Ok(self.filter_recipients(request, ending, charge)))
                });
                grpc(RawDecodeCodec::large(), MAX_BATCH_BYTES).streaming(service, request).await
            }
            Method::WatchConsents => {
                let service = service_fn(|request| ready(self.watch_consents(request, ending)));
                grpc(Codec::default(), MAX_REQUEST_BYTES).server_streaming(service, request).await
            }
            Method::StreamCanSend => {
                let service =
                    service_fn(|request| ready(Ok(self.stream_can_send(request, ending, charge))));
                grpc(RawDecodeCodec::large(), MAX_REQUEST_BYTES).streaming(service, request).await
            }
            // Listed, as in `call`.
            Method::CanSend
            | Method::BatchCanSend
            | Method::GetConsent
            | Method::GetStatus
            | Method::RecordEvent
            | Method::RecordEvents
            | Method::ListEvents
            | Method::ExportEvents
            | Method::CheckEvents
            | Method::ListUserEvents
            | Method::ListDueOptIns
            | Method::EraseUser => misrouted(),
        }
    }

    async fn can_send(
        &self,
        request: Request<Bytes>,
        charge: &Charge,
    ) -> Result<Response<pb::CanSendResponse>, Status> {
        let started = clock::boot();
        let (metadata, extensions, bytes) = request.into_parts();
        let decoded: pb::CanSendRequest;
        let asked = if let Ok(asked) = RawCheckRequest::read(&bytes) {
            asked
        } else {
            decoded = codec::decode(bytes.clone(), MAX_FIELDS)?;
            RawCheckRequest::from(&decoded)
        };
        let request = check_request(&asked);
        if self.checker.missing_revision(&request).is_some() {
            let _places = admit(charge, bytes.len())?;
            let reached = self.checker.wait_for_revision(&request, deadline(&metadata)).await;
            reached.map_err(|error| status::revision_timeout(&error))?;
        }
        let answer = self.answer(&asked);
        if let Some(notes) = extensions.get::<CallNotes>()
            && let Ok(answer) = &answer
        {
            notes.decided(answer);
        }
        self.metrics.checked(clock::boot().saturating_sub(started));
        let answer = answer.map_err(|error| status::check_error(&error))?;
        Ok(Response::new(convert::answer(&asked, &answer)))
    }

    /// Whether a request is valid, and names a revision that the table does not hold yet. An invalid one is refused
    /// without waiting for a revision.
    pub(super) fn must_wait(&self, asked: &RawCheckRequest<'_>) -> bool {
        self.checker.missing_revision(&check_request(asked)).is_some()
    }

    /// Waits until the table holds the revision that a request names.
    pub(super) async fn wait(
        &self,
        asked: &RawCheckRequest<'_>,
        deadline: Option<Instant>,
    ) -> Result<(), RevisionTimeout> {
        self.checker.wait_for_revision(&check_request(asked), deadline).await
    }

    /// Answers one check.
    pub(super) fn answer(&self, asked: &RawCheckRequest<'_>) -> Result<CheckResult, CheckError> {
        self.checker.check(&check_request(asked))
    }

    async fn batch_can_send(
        &self,
        request: Request<Bytes>,
        charge: &Charge,
    ) -> Result<Response<Vec<u8>>, Status> {
        let started = clock::boot();
        let (metadata, extensions, bytes) = request.into_parts();
        let (_place, mut held) = admit(charge, bytes.len())?;
        let decoded: pb::BatchCanSendRequest;
        let mut item_bytes = ITEM_BYTES;
        let batch = if let Ok(batch) = RawCheckRequest::read_batch(&bytes, self.limits.batch) {
            batch
        } else {
            item_bytes += size_of::<pb::CanSendRequest>();
            decoded = codec::decode(bytes.clone(), MAX_FIELDS)?;
            decoded.requests.iter().map(RawCheckRequest::from).collect()
        };
        if batch.len() > self.limits.batch {
            let why = format!("{} requests; at most {}", batch.len(), self.limits.batch);
            return Err(status::invalid(&[Violation::new("requests", why)]));
        }
        // An item may have as few as two bytes in the request, so its decoded size is charged, too.
        held.grow(batch.len() * item_bytes).map_err(status::limit_reached)?;
        if let Some(notes) = extensions.get::<CallNotes>() {
            notes.batch(batch.len());
        }
        let requests = batch.iter().map(check_request);
        let reached = self.checker.wait_for_revisions(requests, deadline(&metadata)).await;
        let is_late = reached.is_err();
        let mut answers = BatchResponseEncoder::with_capacity(batch.len());
        for some in batch.chunks(CHECKS_PER_YIELD) {
            self.answer_some(some, is_late, &mut answers)?;
            if batch.len() > CHECKS_PER_YIELD {
                // A single check must not wait for a whole batch.
                yield_now().await;
            }
        }
        self.metrics.batch_checked(clock::boot().saturating_sub(started));
        Ok(Response::new(answers.into_bytes()))
    }

    /// Answers some checks of a batch and appends the results to `answers`.
    fn answer_some(
        &self,
        batch: &[RawCheckRequest<'_>],
        is_late: bool,
        answers: &mut BatchResponseEncoder,
    ) -> Result<(), Status> {
        if !is_late {
            let requests = batch.iter().map(check_request);
            let mut batch = batch.iter();
            let answered =
                self.checker.check_many(requests, |answer| match (answer, batch.next()) {
                    (Ok(answer), Some(asked)) if asked.template.is_some() => {
                        answers.put(Pb::Response(convert::answer(asked, &answer)));
                    }
                    (Ok(answer), _) => answers.put_answer(&answer),
                    (Err(found), _) => answers.put(Pb::Error(status::item_check_error(&found))),
                });
            return answered.map_err(|error| status::check_error(&error));
        }
        for asked in batch {
            answers.put(self.late_result(asked));
        }
        Ok(())
    }

    /// The result of a check of a batch of which some revision did not arrive in time.
    fn late_result(&self, asked: &RawCheckRequest<'_>) -> Pb {
        if let Some(missed) = self.checker.missing_revision(&check_request(asked)) {
            return Pb::Error(status::item_revision_timeout(&missed));
        }
        match self.answer(asked) {
            Ok(answer) => Pb::Response(convert::answer(asked, &answer)),
            Err(error) => Pb::Error(status::item_check_error(&error)),
        }
    }

    fn get_consent(
        &self,
        request: &Request<pb::GetConsentRequest>,
    ) -> Result<Response<pb::GetConsentResponse>, Status> {
        let pb::GetConsentRequest { user_id, business_id } = request.get_ref();
        let KnownPair { summary, key, revision, staleness } = self
            .checker
            .summary(user_id, business_id)
            .map_err(|error| status::check_error(&error))?;
        let names = |scopes: Vec<_>| scopes.iter().map(ToString::to_string).collect();
        Ok(Response::new(pb::GetConsentResponse {
            last_inbound_time: summary.last_inbound.map(convert::timestamp),
            opted_in: names(summary.opted_in),
            opted_out: names(summary.opted_out),
            platform_stopped: !summary.stops.is_empty(),
            stopped_phone_number_ids: convert::stopped_numbers(&summary.stops),
            suppressed: summary.suppressed,
            revision,
            staleness: Some(convert::duration(staleness)),
            pair_key: convert::pair_key(key),
            failures: summary.failures.iter().map(convert::held_failure).collect(),
        }))
    }

    fn watch_consents(
        &self,
        request: Request<pb::WatchConsentsRequest>,
        ending: &CancellationToken,
    ) -> Result<Response<watch_consents::WatchResponses>, Status> {
        let watch = self.watch.as_ref().ok_or_else(watch_consents::watching_disabled)?;
        let request = request.into_inner();
        Ok(Response::new(watch.watch(request, ending, &self.checker, &self.metrics)?))
    }

    fn get_status(&self) -> Response<pb::GetStatusResponse> {
        Response::new(table_status::status(self.checker.status(), self.ledger.clone()))
    }
}

/// Charges a check in flight, and its request, which takes twice as many bytes once decoded.
fn admit(charge: &Charge, bytes: usize) -> Result<(Charge, Charge), Status> {
    let places = charge.charge(Pool::Checking, 1);
    let places = places.and_then(|place| Ok((place, charge.charge(Pool::Checks, 2 * bytes)?)));
    places.map_err(status::limit_reached)
}

/// The response to a call of a method that is served elsewhere.
fn misrouted() -> http::Response<Body> {
    Status::internal("the call was routed to the wrong service").into_http()
}

/// A gRPC handler that refuses messages of more than `limit` bytes.
fn grpc<C: tonic::codec::Codec>(codec: C, limit: usize) -> Grpc<C> {
    Grpc::new(codec).max_decoding_message_size(limit)
}

/// The request with its form parsed. The checker validates it and collects all violations.
fn check_request<'a>(asked: &RawCheckRequest<'a>) -> CheckRequest<'a> {
    let RawCheckRequest { user_id, business_id, category, form, min_revision, template } = *asked;
    let (form, template) = (convert::form(form), template.map(convert::template_name));
    CheckRequest { user_id, business_id, category, form, min_revision, template }
}
