//! `RecordService`: records events, and erases users.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::call_telemetry::CallNotes;
use super::connection_context::ConnectionContext;
use super::convert::{self, NotAnEvent};
use super::{deadline, pb, status};
use crate::budget::{Charge, ConnectionBudget, Pool};
use crate::history;
use crate::metrics::Metrics;
use crate::recorder::{MAX_EVENTS, Recorded, Recorder, Refusal};
use consentd_core::Violation;
use consentd_core::event::What;
use consentd_core::record::Revision;
use consentd_core::submission::Submission;
use consentd_ledger::{Ledger, LedgerError};

/// The longest that a recording may take, regardless of the caller's deadline.
const MAX_RECORDING: Duration = Duration::from_secs(30);

/// The longest that an erasure may take: it may have to read the whole ledger.
pub(super) const MAX_ERASE: Duration = Duration::from_mins(10);

/// The most searches of all businesses for a user at once. Each reads the whole ledger, and keeps the
/// names of all businesses meanwhile.
const MAX_SEARCHES: usize = 1;

/// How `RecordEvents` ends with its connection.
const RECORD_ELSEWHERE: &str =
    "the connection ends: what was answered is recorded, send the rest on another";

/// The header that names the ledger: see `RecordEvents` in the contract.
pub const LEDGER_ID: &str = "consentd-ledger-id";

/// The header with the ledger's last revision.
pub const REVISION: &str = "consentd-revision";

/// The header with the last revision of each partition of the ledger, in their order and separated by commas,
/// with nothing for one that could not be read. Only a caller that sends this header gets it, and only of a
/// ledger with several partitions: a thousand of them take more than some clients accept.
pub const PARTITION_REVISIONS: &str = "consentd-partition-revisions";

/// The header with the number of partitions that the pairs of a business are spread over; it comes with
/// [`PARTITION_REVISIONS`].
pub const PARTITION_SPREAD: &str = "consentd-partition-spread";

/// Records events, and acknowledges them once they are durable and in this process' table.
#[derive(Clone)]
pub struct RecordService {
    pub(super) ledger: Ledger,
    recorder: Recorder,
    /// The places of [`MAX_SEARCHES`].
    pub(super) searches: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

pub(super) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl RecordService {
    /// The service.
    #[must_use]
    pub fn new(ledger: Ledger, recorder: Recorder, metrics: Arc<Metrics>) -> Self {
        let searches = Arc::new(Semaphore::new(MAX_SEARCHES));
        Self { ledger, recorder, searches, metrics }
    }

    /// Records events. The recorder waits for this process' own table, so that the next check here
    /// sees them.
    async fn record(&self, submissions: &[Submission]) -> Vec<Recorded> {
        let _measured = (!submissions.is_empty()).then(|| self.metrics.recording());
        self.recorder.record(submissions).await
    }

    /// The refusal of an event that could be parsed only in part, with all of its violations.
    fn refusal(&self, mut found: Vec<Violation>, rest: Option<&What>) -> Refusal {
        self.metrics.recorded("refused");
        found.extend(rest.into_iter().flat_map(|what| self.recorder.violations(what)));
        Refusal::Invalid(found)
    }

    /// Adds the headers that name the ledger, by its first partition if that is known, and its last revision: the sum
    /// of those of its partitions. What cannot be read of a partition that is lost keeps nobody from recording in the
    /// others.
    async fn name_ledger(
        &self,
        headers: &mut MetadataMap,
        with_partitions: bool,
    ) -> Result<(), LedgerError> {
        let revisions = history::last_revisions(&self.ledger).await?;
        let layout = self.ledger.layout().await?;
        if let Ok(first) = self.ledger.identity().await
            && let Ok(id) = hex::encode(first.epoch).parse()
        {
            headers.insert(LEDGER_ID, id);
        }
        let sum = revisions.iter().flatten().fold(0_u64, |sum, one| sum.saturating_add(*one));
        headers.insert(REVISION, sum.into());
        if with_partitions && revisions.len() > 1 {
            let text =
                |revision: &Option<Revision>| revision.map_or_else(String::new, |r| r.to_string());
            let revisions: Vec<_> = revisions.iter().map(text).collect();
            if let Ok(revisions) = revisions.join(",").parse() {
                headers.insert(PARTITION_REVISIONS, revisions);
                headers.insert(PARTITION_SPREAD, layout.spread().into());
            }
        }
        Ok(())
    }

    async fn record_chunk(
        &self,
        requests: Vec<pb::RecordEventsRequest>,
        notes: Option<&CallNotes>,
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
                Err(NotAnEvent { found, rest }) => {
                    let refusal = self.refusal(found, rest.as_deref());
                    Some(Pb::Error(status::item_refusal(&refusal)))
                }
            };
            answers.push(pb::RecordEventsResponse { sequence, result });
        }
        for (place, result) in places.into_iter().zip(self.record(&submissions).await) {
            if let Some(answer) = answers.get_mut(place) {
                answer.result = Some(match result {
                    Ok(outcome) => Pb::Response(convert::outcome(outcome)),
                    Err(refusal) => {
                        let error = status::item_refusal(&refusal);
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

/// The bytes of a stream's messages at which a chunk is complete. The last message may exceed it.
const CHUNK_BYTES: usize = 256 * 1024;

/// Messages of a stream that are processed together.
struct Chunk<T> {
    requests: Vec<T>,
    /// The error of the next message, which ends the stream: bytes after a malformed message cannot be
    /// trusted.
    broken: Option<Status>,
    bytes: Charge,
    place: Charge,
}

impl<T: Message> Chunk<T> {
    /// Waits for a message, and takes those that have arrived with it. `None` at the end of the stream.
    async fn next(
        messages: &mut Streaming<T>,
        budget: &Arc<ConnectionBudget>,
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
        // Decoded texts take about twice the bytes; a short message takes the size of its struct.
        let decoded = requests.len().saturating_mul(2 * size_of::<T>());
        let bytes = bytes.saturating_mul(2).saturating_add(decoded);
        let charged = budget.charge(Pool::Records, bytes);
        let charged = charged.and_then(|bytes| Ok((bytes, budget.charge(Pool::Recording, 1)?)));
        Some(match charged {
            Ok((bytes, place)) => Ok(Self { requests, broken, bytes, place }),
            Err(full) => Err(status::limit_reached(full)),
        })
    }
}

/// The answers to a chunk, and the error that ends the stream behind them.
struct ChunkAnswers<T> {
    answers: std::vec::IntoIter<T>,
    end: Option<Status>,
    /// The charge for the chunk's messages. It covers their answers, until the client has taken them.
    _bytes: Option<Charge>,
}

impl<T> Iterator for ChunkAnswers<T> {
    type Item = Result<T, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        self.answers.next().map(Ok).or_else(|| self.end.take().map(Err))
    }
}

/// Answers the messages of a stream: those that have arrived together, before the next are read. So
/// they are processed in order, and a client that does not read its answers is not read from. When the
/// connection is to end, the stream ends with `UNAVAILABLE` and `farewell`.
pub(super) fn answer_chunks<Q, A, F>(
    messages: Streaming<Q>,
    connection: ConnectionContext,
    farewell: &'static str,
    answer: impl Fn(Vec<Q>) -> F + Send + 'static,
) -> ResponseStream<A>
where
    Q: Message + 'static,
    A: Send + 'static,
    F: Future<Output = Vec<A>> + Send,
{
    let start = Some((messages, connection, answer));
    let chunks = stream::unfold(start, move |state| async move {
        let (mut messages, connection, answer) = state?;
        let chunk = tokio::select! {
            biased;
            () = connection.ending.cancelled() => Err(Status::unavailable(farewell)),
            chunk = Chunk::next(&mut messages, &connection.budget) => chunk?,
        };
        let Chunk { requests, broken, bytes, place } = match chunk {
            Ok(chunk) => chunk,
            Err(end) => {
                let none = Vec::new().into_iter();
                return Some((ChunkAnswers { answers: none, end: Some(end), _bytes: None }, None));
            }
        };
        let answers = answer(requests).await.into_iter();
        drop(place);
        let next = broken.is_none().then_some((messages, connection, answer));
        Some((ChunkAnswers { answers, end: broken, _bytes: Some(bytes) }, next))
    });
    Box::pin(chunks.flat_map(stream::iter))
}

/// Charges a recording in flight, and its message, which takes twice as many bytes once decoded.
fn charge_recording<T: Message>(request: &Request<T>) -> Result<(Charge, Charge), Status> {
    let budget = ConnectionContext::of(request)?.budget;
    let place = budget.charge(Pool::Recording, 1).map_err(status::limit_reached)?;
    let bytes = 2 * request.get_ref().encoded_len();
    Ok((place, budget.charge(Pool::Records, bytes).map_err(status::limit_reached)?))
}

#[tonic::async_trait]
impl pb::record_service_server::RecordService for RecordService {
    async fn record_event(
        &self,
        request: Request<pb::RecordEventRequest>,
    ) -> Result<Response<pb::RecordEventResponse>, Status> {
        let limit = Instant::now() + MAX_RECORDING;
        let limit = deadline(request.metadata()).map_or(limit, |deadline| deadline.min(limit));
        let (_place, _bytes) = charge_recording(&request)?;
        let pb::RecordEventRequest { event, request_id } = request.into_inner();
        let submission = match convert::submission(event, request_id) {
            Ok(submission) => submission,
            Err(NotAnEvent { found, rest }) => {
                return Err(status::refusal_error(&self.refusal(found, rest.as_deref())));
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
            Some(Err(refusal)) => Err(status::refusal_error(&refusal)),
            None => Err(Status::internal("the event has no outcome")),
        }
    }

    type RecordEventsStream = ResponseStream<pb::RecordEventsResponse>;

    async fn record_events(
        &self,
        request: Request<Streaming<pb::RecordEventsRequest>>,
    ) -> Result<Response<Self::RecordEventsStream>, Status> {
        let notes = request.extensions().get::<CallNotes>().cloned();
        let (service, connection) = (self.clone(), ConnectionContext::of(&request)?);
        let with_partitions = request.metadata().contains_key(PARTITION_REVISIONS);
        let answers =
            answer_chunks(request.into_inner(), connection, RECORD_ELSEWHERE, move |chunk| {
                let (service, notes) = (service.clone(), notes.clone());
                async move { service.record_chunk(chunk, notes.as_ref()).await }
            });
        let mut response: Response<Self::RecordEventsStream> = Response::new(answers);
        let named = self.name_ledger(response.metadata_mut(), with_partitions).await;
        named.map_err(|error| status::read_error(error.into()))?;
        Ok(response)
    }

    type ListEventsStream = ResponseStream<pb::ListEventsResponse>;

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<Self::ListEventsStream>, Status> {
        let connection = ConnectionContext::of(&request)?;
        Ok(Response::new(self.list(request.into_inner(), connection).await?))
    }

    type ExportEventsStream = ResponseStream<pb::ExportEventsResponse>;

    async fn export_events(
        &self,
        request: Request<pb::ExportEventsRequest>,
    ) -> Result<Response<Self::ExportEventsStream>, Status> {
        let connection = ConnectionContext::of(&request)?;
        Ok(Response::new(self.export(request.into_inner(), connection).await?))
    }

    type CheckEventsStream = ResponseStream<pb::CheckEventsResponse>;

    async fn check_events(
        &self,
        request: Request<Streaming<pb::CheckEventsRequest>>,
    ) -> Result<Response<Self::CheckEventsStream>, Status> {
        let connection = ConnectionContext::of(&request)?;
        Ok(Response::new(self.check(request.into_inner(), connection)))
    }

    type ListUserEventsStream = ResponseStream<pb::ListUserEventsResponse>;

    async fn list_user_events(
        &self,
        request: Request<pb::ListUserEventsRequest>,
    ) -> Result<Response<Self::ListUserEventsStream>, Status> {
        let connection = ConnectionContext::of(&request)?;
        Ok(Response::new(self.list_user(request.into_inner(), connection)))
    }

    type ListDueOptInsStream = ResponseStream<pb::ListDueOptInsResponse>;

    async fn list_due_opt_ins(
        &self,
        request: Request<pb::ListDueOptInsRequest>,
    ) -> Result<Response<Self::ListDueOptInsStream>, Status> {
        let connection = ConnectionContext::of(&request)?;
        Ok(Response::new(self.list_due(request.into_inner(), connection).await?))
    }

    async fn erase_user(
        &self,
        request: Request<pb::EraseUserRequest>,
    ) -> Result<Response<pb::EraseUserResponse>, Status> {
        let limit = Instant::now() + MAX_ERASE;
        let limit = deadline(request.metadata()).map_or(limit, |deadline| deadline.min(limit));
        let (_place, _bytes) = charge_recording(&request)?;
        let connection = ConnectionContext::of(&request)?;
        let _long_call = connection.long_call();
        let pb::EraseUserRequest { user_id, business_id } = request.into_inner();
        let erased = timeout_at(limit, async {
            let _turn = if business_id.is_empty() {
                Some(connection.search_turn(&self.searches).await?)
            } else {
                None
            };
            let erased = self.recorder.erase(&user_id, &business_id).await;
            erased.map_err(|refusal| match refusal {
                Refusal::Invalid(found) => status::invalid(&found),
                refusal => status::refusal_error(&refusal),
            })
        });
        let Ok(erased) = erased.await else {
            return Err(Status::deadline_exceeded(
                "some of what is known of the user may be erased, and some not: ask again, with \
                 more time, to be sure",
            ));
        };
        let erased = erased?;
        Ok(Response::new(pb::EraseUserResponse {
            erased_count: erased.erased,
            log_expire_time: erased.log_expire.map(convert::timestamp),
        }))
    }
}
