//! `RecordService`: what records events.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use prost::Message;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::call_telemetry::Notes;
use super::convert::{self, NotAnEvent};
use super::{deadline, pb, status};
use crate::budget::{Charge, Connection, Pool};
use crate::checker::Checker;
use crate::metrics::Metrics;
use crate::recorder::{MAX_EVENTS, Recorded, Recorder, Refusal, Submission};
use consentd_core::Violation;
use consentd_core::event::What;

/// The longest that a recording may take, whatever the caller's deadline.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The longest that an erase may take: it may have to read all that was ever recorded.
const MAX_ERASE: Duration = Duration::from_mins(10);

/// The header that names the ledger: see `RecordEvents` in the contract.
pub const LEDGER_ID: &str = "consentd-ledger-id";

/// The header that has the ledger's last revision.
pub const REVISION: &str = "consentd-revision";

/// Records events, and answers once they are durable and this process' table holds them.
#[derive(Clone)]
pub struct RecordService {
    pub(super) recorder: Recorder,
    pub(super) checker: Checker,
    pub(super) draining: CancellationToken,
    metrics: Arc<Metrics>,
}

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl RecordService {
    /// The service. Its streams end when `draining` is cancelled.
    #[must_use]
    pub fn new(
        recorder: Recorder,
        checker: Checker,
        draining: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { recorder, checker, draining, metrics }
    }

    /// Records. The recorder waits for this process' own table, so that the next check here knows
    /// of it.
    async fn record(&self, submissions: &[Submission]) -> Vec<Recorded> {
        let _measured = (!submissions.is_empty()).then(|| self.metrics.recording());
        self.recorder.record(submissions).await
    }

    /// All that is wrong with an event that could be read in part alone.
    fn refusal(&self, mut found: Vec<Violation>, rest: Option<&What>) -> Refusal {
        self.metrics.recorded("refused");
        found.extend(rest.into_iter().flat_map(|what| self.recorder.violations(what)));
        Refusal::Invalid(found)
    }

    /// Says in which ledger events are recorded, and how far that is.
    async fn name_ledger(&self, headers: &mut MetadataMap) -> Result<(), Refusal> {
        let end = self.recorder.end().await?;
        if let Ok(id) = format!("{:032x}", u128::from_be_bytes(end.epoch)).parse() {
            headers.insert(LEDGER_ID, id);
        }
        headers.insert(REVISION, end.revision.into());
        Ok(())
    }

    async fn record_chunk(
        &self,
        requests: Vec<pb::RecordEventsRequest>,
        notes: Option<&Notes>,
    ) -> Vec<pb::RecordEventsResponse> {
        use pb::record_events_response::Result as Pb;
        let mut answers = Vec::with_capacity(requests.len());
        let mut submissions = Vec::with_capacity(requests.len());
        let mut places = Vec::with_capacity(requests.len());
        for (place, request) in requests.into_iter().enumerate() {
            let sequence = request.sequence;
            let result = match convert::submission(request.event, request.request_id) {
                Ok(submission) => {
                    submissions.push(submission);
                    places.push(place);
                    None
                }
                Err(NotAnEvent::Invalid { found, rest }) => {
                    let refusal = self.refusal(found, rest.as_deref());
                    Some(Pb::Error(status::item_of_refusal(&refusal)))
                }
            };
            answers.push(pb::RecordEventsResponse { sequence, result });
        }
        for (place, result) in places.into_iter().zip(self.record(&submissions).await) {
            if let Some(answer) = answers.get_mut(place) {
                answer.result = Some(match result {
                    Ok(outcome) => Pb::Response(convert::outcome(outcome)),
                    Err(refusal) => {
                        let error = status::item_of_refusal(&refusal);
                        if let Some(notes) = notes {
                            notes.item_failed(error.code.into(), &error.message);
                        }
                        Pb::Error(error)
                    }
                });
            }
        }
        answers
    }
}

/// The most bytes of the messages of a stream that are taken together, but for the last of them.
const CHUNK_BYTES: usize = 256 * 1024;

/// Messages of a stream that were taken together, and are charged until it is dropped.
pub(super) struct Chunk<T> {
    pub(super) requests: Vec<T>,
    /// What is wrong with what comes next: what a decoder makes of the bytes behind a fault is not
    /// what was sent.
    pub(super) broken: Option<Status>,
    _bytes: Charge,
    _place: Charge,
}

impl<T: Message> Chunk<T> {
    /// Waits for a message, and takes those that have arrived with it; nothing at the end.
    pub(super) async fn next(
        messages: &mut Streaming<T>,
        share: &Arc<Connection>,
    ) -> Option<Result<Self, Status>> {
        let mut next = messages.next().await?;
        let (mut requests, mut bytes) = (Vec::new(), 0_usize);
        let broken = loop {
            match next {
                Ok(request) => {
                    bytes = bytes.saturating_add(request.encoded_len());
                    requests.push(request);
                }
                Err(status) => break Some(status),
            }
            if requests.len() >= MAX_EVENTS || bytes >= CHUNK_BYTES {
                break None;
            }
            match messages.next().now_or_never() {
                Some(Some(another)) => next = another,
                _ => break None,
            }
        };
        // Once decoded their texts take about twice as much, and a message may be of few bytes.
        let decoded = requests.len().saturating_mul(2 * size_of::<T>());
        let charged = share.charge(Pool::Records, bytes.saturating_mul(2).saturating_add(decoded));
        let charged = charged.and_then(|bytes| Ok((bytes, share.charge(Pool::Recording, 1)?)));
        Some(match charged {
            Ok((bytes, place)) => Ok(Self { requests, broken, _bytes: bytes, _place: place }),
            Err(full) => Err(status::of_full(full)),
        })
    }
}

/// A place for a recording, and a charge for its message, which takes twice as much once decoded.
fn places<T: Message>(request: &Request<T>) -> Result<(Charge, Charge), Status> {
    let share = share(request)?;
    let place = share.charge(Pool::Recording, 1).map_err(status::of_full)?;
    let bytes = 2 * request.get_ref().encoded_len();
    Ok((place, share.charge(Pool::Records, bytes).map_err(status::of_full)?))
}

/// What the connection of a call is charged by.
pub(super) fn share<T>(request: &Request<T>) -> Result<Arc<Connection>, Status> {
    let share = request.extensions().get::<Arc<Connection>>();
    share.cloned().ok_or_else(|| Status::internal("the call has no connection"))
}

#[tonic::async_trait]
impl pb::record_service_server::RecordService for RecordService {
    async fn record_event(
        &self,
        request: Request<pb::RecordEventRequest>,
    ) -> Result<Response<pb::RecordEventResponse>, Status> {
        let limit = Instant::now() + MAX_WAIT;
        let limit = deadline(request.metadata()).map_or(limit, |deadline| deadline.min(limit));
        let (_place, _bytes) = places(&request)?;
        let pb::RecordEventRequest { event, request_id } = request.into_inner();
        let submission = match convert::submission(event, request_id) {
            Ok(submission) => submission,
            Err(NotAnEvent::Invalid { found, rest }) => {
                return Err(status::of_refusal(&self.refusal(found, rest.as_deref())));
            }
        };
        let submissions = [submission];
        let Ok(results) = timeout_at(limit, self.record(&submissions)).await else {
            return Err(Status::deadline_exceeded(
                "the event may or may not be recorded: repeat it with the same event_time or \
                 request_id",
            ));
        };
        match results.into_iter().next() {
            Some(Ok(outcome)) => Ok(Response::new(convert::outcome(outcome))),
            Some(Err(refusal)) => Err(status::of_refusal(&refusal)),
            None => Err(Status::internal("the event has no outcome")),
        }
    }

    type RecordEventsStream = Answers<pb::RecordEventsResponse>;

    async fn record_events(
        &self,
        request: Request<Streaming<pb::RecordEventsRequest>>,
    ) -> Result<Response<Self::RecordEventsStream>, Status> {
        // What has arrived is recorded together, and before what comes next is read: events of one
        // stream are applied in their order, and a client that does not read is not read from.
        let notes = request.extensions().get::<Notes>().cloned();
        let share = share(&request)?;
        let start = Some((self.clone(), request.into_inner(), notes, share));
        let answers = stream::unfold(start, |state| async move {
            let (service, mut messages, notes, share) = state?;
            let chunk = tokio::select! {
                biased;
                () = service.draining.cancelled() => {
                    let why = "draining: what was answered is recorded, send the rest elsewhere";
                    return Some((vec![Err(Status::unavailable(why))], None));
                }
                chunk = Chunk::next(&mut messages, &share) => chunk?,
            };
            let mut chunk = match chunk {
                Ok(chunk) => chunk,
                Err(status) => return Some((vec![Err(status)], None)),
            };
            let requests = std::mem::take(&mut chunk.requests);
            let answered = service.record_chunk(requests, notes.as_ref()).await;
            let mut answers: Vec<_> = answered.into_iter().map(Ok).collect();
            let next = if let Some(status) = chunk.broken.take() {
                answers.push(Err(status));
                None
            } else {
                Some((service, messages, notes, share))
            };
            Some((answers, next))
        });
        let mut response: Response<Self::RecordEventsStream> =
            Response::new(Box::pin(answers.flat_map(stream::iter)));
        let named = self.name_ledger(response.metadata_mut()).await;
        named.map_err(|refusal| status::of_refusal(&refusal))?;
        Ok(response)
    }

    type ListEventsStream = Answers<pb::ListEventsResponse>;

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<Self::ListEventsStream>, Status> {
        Ok(Response::new(self.list(request.into_inner()).await?))
    }

    type ExportEventsStream = Answers<pb::ExportEventsResponse>;

    async fn export_events(
        &self,
        request: Request<pb::ExportEventsRequest>,
    ) -> Result<Response<Self::ExportEventsStream>, Status> {
        Ok(Response::new(self.export(request.into_inner())?))
    }

    type CheckEventsStream = Answers<pb::CheckEventsResponse>;

    async fn check_events(
        &self,
        request: Request<Streaming<pb::CheckEventsRequest>>,
    ) -> Result<Response<Self::CheckEventsStream>, Status> {
        let share = share(&request)?;
        Ok(Response::new(self.check(request.into_inner(), share)))
    }

    type ListUserEventsStream = Answers<pb::ListUserEventsResponse>;

    async fn list_user_events(
        &self,
        request: Request<pb::ListUserEventsRequest>,
    ) -> Result<Response<Self::ListUserEventsStream>, Status> {
        Ok(Response::new(self.list_user(request.into_inner())))
    }

    type ListDueOptInsStream = Answers<pb::ListDueOptInsResponse>;

    async fn list_due_opt_ins(
        &self,
        request: Request<pb::ListDueOptInsRequest>,
    ) -> Result<Response<Self::ListDueOptInsStream>, Status> {
        Ok(Response::new(self.list_due(request.into_inner()).await?))
    }

    async fn erase_user(
        &self,
        request: Request<pb::EraseUserRequest>,
    ) -> Result<Response<pb::EraseUserResponse>, Status> {
        let limit = Instant::now() + MAX_ERASE;
        let limit = deadline(request.metadata()).map_or(limit, |deadline| deadline.min(limit));
        let (_place, _bytes) = places(&request)?;
        let pb::EraseUserRequest { user_id, business_id } = request.into_inner();
        let erased = timeout_at(limit, self.recorder.erase(&user_id, &business_id)).await;
        let Ok(erased) = erased else {
            return Err(Status::deadline_exceeded(
                "some of what is known of the user may be erased, and some not: ask again, with \
                 more time, to be sure",
            ));
        };
        let erased = erased.map_err(|refusal| match refusal {
            Refusal::Invalid(found) => status::invalid(&found),
            refusal => status::of_refusal(&refusal),
        })?;
        Ok(Response::new(pb::EraseUserResponse {
            erased_count: erased.erased,
            log_expire_time: erased.log_expire.map(convert::timestamp),
        }))
    }
}
