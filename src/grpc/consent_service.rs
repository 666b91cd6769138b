//! `ConsentService`: what message-sending workers call.
//!
//! Its hot methods read questions where they lie in the request's bytes (see [`fast_decode`](super::fast_decode)),
//! so it is routed here, and not by the generated server, which would decode them all.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::Grpc;
use tonic::{Extensions, Request, Response, Status};
use tower::service_fn;

use super::body::Metered;
use super::call_telemetry::{Notes, Watcher};
use super::codec::{self, Codec, MAX_FIELDS, Unread, Written};
use super::fast_decode::{Asked, Results};
use super::pb::batch_can_send_result::Result as Pb;
use super::watch_consents::{self, Watches};
use super::{MAX_BATCH_BYTES, MAX_REQUEST_BYTES, convert, deadline, pb, status};
use crate::budget::{Charge, Pool};
use crate::checker::{CheckError, CheckRequest, CheckResult, Checker, RevisionTimeout};
use crate::metrics::Metrics;
use consentd_core::Violation;
use consentd_core::decision::Form;
use consentd_os::clock;

/// How many questions are answered before others get their turn: some 0.05 ms, and what is known
/// of them meanwhile fits into a core's first cache.
pub(super) const AT_ONCE: usize = 128;

/// About the memory of an item of a batch beside the request's bytes: the question, and its answer.
const ITEM_BYTES: usize = size_of::<Asked<'_>>() + 64;

/// The paths of the methods that may have to wait for a place.
const CAN_SEND: &str = "/consent.v1.ConsentService/CanSend";
const BATCH: &str = "/consent.v1.ConsentService/BatchCanSend";

/// The methods of the service.
#[derive(Clone, Copy, Debug)]
pub(super) enum Method {
    CanSend,
    BatchCanSend,
    StreamCanSend,
    FilterRecipients,
    GetConsent,
    WatchConsents,
    GetStatus,
}

impl Method {
    /// The method of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "CanSend" => Self::CanSend,
            "BatchCanSend" => Self::BatchCanSend,
            "StreamCanSend" => Self::StreamCanSend,
            "FilterRecipients" => Self::FilterRecipients,
            "GetConsent" => Self::GetConsent,
            "WatchConsents" => Self::WatchConsents,
            "GetStatus" => Self::GetStatus,
            _ => return None,
        })
    }

    /// Whether the call lasts until its answers end.
    pub(super) fn is_stream(self) -> bool {
        matches!(self, Self::StreamCanSend | Self::FilterRecipients | Self::WatchConsents)
    }
}

/// Answers checks from a checker.
pub struct CheckService {
    pub(super) checker: Checker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: CheckLimits,
    ledger: String,
    watches: Option<Watches>,
    watcher: Watcher,
}

/// How many questions may come in one message.
#[derive(Clone, Copy, Debug)]
pub struct CheckLimits {
    /// Requests of a batch.
    pub batch: usize,
    /// Users of one message of a campaign.
    pub recipients: usize,
}

impl CheckService {
    /// The service. `ledger` is shown in its status.
    #[must_use]
    pub fn new(
        checker: Checker,
        ledger: String,
        limits: CheckLimits,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { checker, metrics, limits, ledger, watches: None, watcher: Watcher::new(None) }
    }

    /// Lets clients watch what changes, too.
    #[must_use]
    pub fn watched(mut self, watches: Watches) -> Self {
        self.watches = Some(watches);
        self
    }

    /// Has it told by `watcher` where a call meets a limit.
    pub(super) fn watched_by(mut self, watcher: Watcher) -> Self {
        self.watcher = watcher;
        self
    }

    /// A place among the checks that are being answered, and a charge for a request, which takes
    /// twice as many bytes once it is read.
    fn places(
        &self,
        path: &str,
        (metadata, extensions): (&MetadataMap, &Extensions),
        charge: &Charge,
        bytes: usize,
    ) -> Result<(Charge, Charge), Status> {
        let places = charge.of(Pool::Checking, 1);
        let places = places.and_then(|place| Ok((place, charge.of(Pool::Checks, 2 * bytes)?)));
        places.map_err(|full| {
            let status = status::of_full(full);
            // A call that is watched is told anyway.
            if extensions.get::<Notes>().is_none() {
                self.watcher.turned_away(path, metadata.as_ref(), &status);
            }
            status
        })
    }

    /// Answers a call of one of its methods that have one request and one answer. What it keeps
    /// of the request while it waits is charged beside `charge`.
    pub(super) async fn call(
        &self,
        method: Method,
        request: http::Request<Metered>,
        charge: &Charge,
    ) -> http::Response<Body> {
        match method {
            Method::CanSend => {
                let service = service_fn(|request| self.can_send(request, charge));
                grpc(Unread::small(), MAX_REQUEST_BYTES).unary(service, request).await
            }
            Method::BatchCanSend => {
                let service = service_fn(|request| self.batch_can_send(request, charge));
                grpc(Written, MAX_BATCH_BYTES).unary(service, request).await
            }
            Method::GetConsent => {
                let service = service_fn(|request| ready(self.get_consent(&request)));
                grpc(Codec::default(), MAX_REQUEST_BYTES).unary(service, request).await
            }
            _ => {
                let service =
                    service_fn(|_: Request<pb::GetStatusRequest>| ready(Ok(self.get_status())));
                grpc(Codec::default(), MAX_REQUEST_BYTES).unary(service, request).await
            }
        }
    }

    /// Answers a call of one of its streams, which end once `ending` is cancelled.
    pub(super) async fn call_stream(
        self: &Arc<Self>,
        method: Method,
        request: http::Request<Metered>,
        ending: &CancellationToken,
        charge: &Charge,
    ) -> http::Response<Body> {
        match method {
            Method::FilterRecipients => {
                let service = service_fn(|request| {
                    ready(Ok(self.filter_recipients(request, ending, charge)))
                });
                grpc(Unread::large(), MAX_BATCH_BYTES).streaming(service, request).await
            }
            Method::WatchConsents => {
                let service = service_fn(|request| ready(self.watch_consents(request, ending)));
                grpc(Codec::default(), MAX_REQUEST_BYTES).server_streaming(service, request).await
            }
            _ => {
                let service =
                    service_fn(|request| ready(Ok(self.stream_can_send(request, ending, charge))));
                grpc(Unread::large(), MAX_REQUEST_BYTES).streaming(service, request).await
            }
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
        let asked = if let Ok(asked) = Asked::read(&bytes) {
            asked
        } else {
            decoded = codec::decode(bytes.clone(), MAX_FIELDS)?;
            Asked::from(&decoded)
        };
        if asked.min_revision > self.checker.revision() && self.is_valid(&asked) {
            let _places = self.places(CAN_SEND, (&metadata, &extensions), charge, bytes.len())?;
            let reached =
                self.checker.wait_for_revision(asked.min_revision, deadline(&metadata)).await;
            reached.map_err(|error| status::of_revision_timeout(&error))?;
        }
        let answer = self.answer(&asked);
        if let Some(notes) = extensions.get::<Notes>()
            && let Ok(answer) = &answer
        {
            notes.decided(answer);
        }
        self.metrics.checked(clock::boot().saturating_sub(started));
        let answer = answer.map_err(|error| status::of_check(&error))?;
        Ok(Response::new(convert::answer(&answer)))
    }

    /// Whether a question has an answer: what is wrong with it is told without any waiting.
    pub(super) fn is_valid(&self, asked: &Asked<'_>) -> bool {
        question(asked).is_ok_and(|question| self.checker.is_valid(&question))
    }

    /// Answers one question.
    pub(super) fn answer(&self, asked: &Asked<'_>) -> Result<CheckResult, CheckError> {
        match question(asked) {
            Ok(question) => self.checker.check(&question),
            Err((question, of_form)) => match self.checker.check_unrecorded(&question) {
                Err(CheckError::Invalid(mut found)) => {
                    found.push(of_form);
                    Err(CheckError::Invalid(found))
                }
                Err(error @ CheckError::NotReady) => Err(error),
                Ok(_) => Err(CheckError::Invalid(vec![of_form])),
            },
        }
    }

    async fn batch_can_send(
        &self,
        request: Request<Bytes>,
        charge: &Charge,
    ) -> Result<Response<Vec<u8>>, Status> {
        let started = clock::boot();
        let (metadata, extensions, bytes) = request.into_parts();
        let (_place, mut held) =
            self.places(BATCH, (&metadata, &extensions), charge, bytes.len())?;
        let decoded: pb::BatchCanSendRequest;
        let mut item_bytes = ITEM_BYTES;
        let batch = if let Ok(batch) = Asked::read_batch(&bytes, self.limits.batch) {
            batch
        } else {
            item_bytes += size_of::<pb::CanSendRequest>();
            decoded = codec::decode(bytes.clone(), MAX_FIELDS)?;
            decoded.requests.iter().map(Asked::from).collect()
        };
        if batch.len() > self.limits.batch {
            let why = format!("{} requests; at most {}", batch.len(), self.limits.batch);
            return Err(status::invalid(&[Violation::new("requests", why)]));
        }
        // An item may have two bytes in the request: what it takes while it waits is charged, too.
        held.grow(batch.len() * item_bytes).map_err(status::of_full)?;
        if let Some(notes) = extensions.get::<Notes>() {
            notes.batch(batch.len());
        }
        let revision_timeout = self.reach_highest(&batch, deadline(&metadata)).await;
        let mut answers = Results::with_capacity(batch.len());
        for some in batch.chunks(AT_ONCE) {
            self.answer_some(some, revision_timeout, &mut answers)?;
            if batch.len() > AT_ONCE {
                // Whoever asks about one message is not kept waiting by those who ask about many.
                yield_now().await;
            }
        }
        self.metrics.batch_checked(clock::boot().saturating_sub(started));
        Ok(Response::new(answers.into_bytes()))
    }

    /// Waits for the highest revision that a batch asks for.
    async fn reach_highest(
        &self,
        batch: &[Asked<'_>],
        deadline: Option<Instant>,
    ) -> Option<RevisionTimeout> {
        let highest = batch.iter().map(|asked| asked.min_revision).max()?;
        if highest == 0 {
            return None;
        }
        self.checker.wait_for_revision(highest, deadline).await.err()
    }

    /// Answers some questions of a batch: each answer's bytes go to the end of `answers`.
    fn answer_some(
        &self,
        batch: &[Asked<'_>],
        revision_timeout: Option<RevisionTimeout>,
        answers: &mut Results,
    ) -> Result<(), Status> {
        let is_plain = |asked: &Asked<'_>| convert::form(asked.form).is_ok();
        if revision_timeout.is_none() && batch.iter().all(is_plain) {
            let questions = batch.iter().map(|asked| question(asked).unwrap_or_else(|(q, _)| q));
            let answered = self.checker.check_many(questions, |answer| match answer {
                Ok(answer) => answers.put_answer(&answer),
                Err(found) => answers.put(Pb::Error(status::item_of_check(&found))),
            });
            return answered.map_err(|error| status::of_check(&error));
        }
        for asked in batch {
            answers.put(self.result(asked, revision_timeout)?);
        }
        Ok(())
    }

    fn result(
        &self,
        asked: &Asked<'_>,
        revision_timeout: Option<RevisionTimeout>,
    ) -> Result<Pb, Status> {
        if let Some(missed) = revision_timeout
            && asked.min_revision > self.checker.revision()
        {
            let missed = RevisionTimeout { wanted: asked.min_revision, ..missed };
            return Ok(Pb::Error(status::item_of_revision_timeout(&missed)));
        }
        match self.answer(asked) {
            Ok(answer) => Ok(Pb::Response(convert::answer(&answer))),
            Err(CheckError::Invalid(found)) => Ok(Pb::Error(status::item_of_check(&found))),
            Err(error @ CheckError::NotReady) => Err(status::of_check(&error)),
        }
    }

    fn get_consent(
        &self,
        request: &Request<pb::GetConsentRequest>,
    ) -> Result<Response<pb::GetConsentResponse>, Status> {
        let pb::GetConsentRequest { user_id, business_id } = request.get_ref();
        let (summary, revision, staleness) =
            self.checker.summary(user_id, business_id).map_err(|error| status::of_check(&error))?;
        let key =
            self.checker.key(user_id, business_id).map_err(|error| status::of_check(&error))?;
        let names = |scopes: Vec<_>| scopes.iter().map(ToString::to_string).collect();
        Ok(Response::new(pb::GetConsentResponse {
            last_inbound_time: summary.last_inbound.map(convert::timestamp),
            opted_in: names(summary.opted_in),
            opted_out: names(summary.opted_out),
            platform_stopped: summary.platform_stopped,
            suppressed: summary.suppressed,
            revision,
            staleness: Some(convert::duration(staleness)),
            pair_key: convert::pair_key(key),
        }))
    }

    fn watch_consents(
        &self,
        request: Request<pb::WatchConsentsRequest>,
        ending: &CancellationToken,
    ) -> Result<Response<watch_consents::Answers>, Status> {
        let watches = self.watches.as_ref().ok_or_else(watch_consents::nobody_watches)?;
        let request = request.into_inner();
        Ok(Response::new(watches.watch(request, ending, &self.checker, &self.metrics)?))
    }

    fn get_status(&self) -> Response<pb::GetStatusResponse> {
        Response::new(convert::status(self.checker.status(), self.ledger.clone()))
    }
}

/// What speaks gRPC, and refuses messages of more than `limit` bytes.
fn grpc<C: tonic::codec::Codec>(codec: C, limit: usize) -> Grpc<C> {
    Grpc::new(codec).max_decoding_message_size(limit)
}

/// What is asked; with what is wrong with the form, where it is none.
fn question<'a>(asked: &Asked<'a>) -> Result<CheckRequest<'a>, (CheckRequest<'a>, Violation)> {
    let Asked { user_id, business_id, category, .. } = *asked;
    let question = CheckRequest { user_id, business_id, category, form: Form::Any };
    match convert::form(asked.form) {
        Ok(form) => Ok(CheckRequest { form, ..question }),
        Err(violation) => Err((question, violation)),
    }
}
