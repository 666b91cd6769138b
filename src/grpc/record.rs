//! `RecordService`: what records events.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::call::Notes;
use super::convert::{self, NotAnEvent};
use super::{deadline, pb, status};
use crate::consent::Violation;
use crate::consent::event::What;
use crate::consent::id::BusinessId;
use crate::consent::record::HistoryEntry;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::recorder::{MAX_EVENTS, Recorded, Recorder, Refusal, Submission};

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
    recorder: Recorder,
    gate: Gate,
    draining: CancellationToken,
    metrics: Arc<Metrics>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl RecordService {
    /// The service. Its streams end when `draining` is cancelled.
    #[must_use]
    pub fn new(
        recorder: Recorder,
        gate: Gate,
        draining: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { recorder, gate, draining, metrics }
    }

    /// Records, and waits for this process' own table, so that the next check here knows of it.
    async fn record(&self, submissions: &[Submission]) -> Vec<Recorded> {
        let _measured = (!submissions.is_empty()).then(|| self.metrics.recording());
        let results = self.recorder.record(submissions).await;
        let last = results.iter().flatten().map(|outcome| outcome.revision).max();
        if let Some(revision) = last {
            // A table that does not get there goes stale, and denies by itself.
            let _ = self.gate.reach(revision, None).await;
        }
        results
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
                Err(NotAnEvent::Unsupported(why)) => {
                    self.metrics.recorded("refused");
                    Some(Pb::Error(pb::ItemError {
                        code: tonic::Code::Unimplemented as i32,
                        field: "event.link".to_owned(),
                        message: why.to_owned(),
                    }))
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

#[tonic::async_trait]
impl pb::record_service_server::RecordService for RecordService {
    async fn record_event(
        &self,
        request: Request<pb::RecordEventRequest>,
    ) -> Result<Response<pb::RecordEventResponse>, Status> {
        let limit = Instant::now() + MAX_WAIT;
        let limit = deadline(request.metadata()).map_or(limit, |deadline| deadline.min(limit));
        let pb::RecordEventRequest { event, request_id } = request.into_inner();
        let submission = match convert::submission(event, request_id) {
            Ok(submission) => submission,
            Err(NotAnEvent::Invalid { found, rest }) => {
                return Err(status::of_refusal(&self.refusal(found, rest.as_deref())));
            }
            Err(NotAnEvent::Unsupported(why)) => {
                self.metrics.recorded("refused");
                return Err(Status::unimplemented(why));
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
        let chunks = request.into_inner().ready_chunks(MAX_EVENTS);
        let start = Some((self.clone(), Box::pin(chunks), notes));
        let answers = stream::unfold(start, |state| async move {
            let (service, mut chunks, notes) = state?;
            let chunk = tokio::select! {
                biased;
                () = service.draining.cancelled() => {
                    let why = "draining: what was answered is recorded, send the rest elsewhere";
                    return Some((vec![Err(Status::unavailable(why))], None));
                }
                chunk = chunks.next() => chunk?,
            };
            let mut requests = Vec::with_capacity(chunk.len());
            let mut broken = None;
            for item in chunk {
                match item {
                    Ok(request) => requests.push(request),
                    // What a decoder makes of the bytes behind a fault is not what was sent.
                    Err(status) => {
                        broken = Some(status);
                        break;
                    }
                }
            }
            let answered = service.record_chunk(requests, notes.as_ref()).await;
            let mut answers: Vec<_> = answered.into_iter().map(Ok).collect();
            let next = if let Some(status) = broken {
                answers.push(Err(status));
                None
            } else {
                Some((service, chunks, notes))
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
        let pb::ListEventsRequest { user_id, business_id } = request.get_ref();
        let history = match self.recorder.history(user_id, business_id).await {
            Ok(history) => history,
            Err(Refusal::Invalid(found)) => return Err(status::invalid(&found)),
            Err(refusal) => return Err(status::of_refusal(&refusal)),
        };
        // What is there is shown even where it was tampered with; the status then says so.
        let broken = (!history.intact).then(|| {
            Err(Status::data_loss(
                "the history's chain does not match: entries were changed, added or removed \
                 outside consentd",
            ))
        });
        let entries = history.entries.into_iter();
        let entries = entries.map(|(revision, entry)| Ok(convert::listed(revision, entry)));
        Ok(Response::new(Box::pin(stream::iter(entries.chain(broken)))))
    }

    type ExportEventsStream = Answers<pb::ExportEventsResponse>;

    async fn export_events(
        &self,
        request: Request<pb::ExportEventsRequest>,
    ) -> Result<Response<Self::ExportEventsStream>, Status> {
        let pb::ExportEventsRequest { business_id, since_time } = request.into_inner();
        let mut found = Vec::new();
        let since = convert::moment("since_time", since_time, &mut found);
        if !business_id.is_empty() {
            found.extend(BusinessId::parse(&business_id).err());
        }
        if !found.is_empty() {
            return Err(status::invalid(&found));
        }
        let wanted = move |entry: &HistoryEntry| {
            (business_id.is_empty() || entry.business_id == business_id)
                && since.is_none_or(|since| entry.record_time >= since)
        };
        // What is recorded meanwhile is not waited for: there might be no end to it.
        let end = self.gate.status().revision;
        let pages = stream::unfold(Some((self.clone(), 0)), move |state| async move {
            let (service, after) = state?;
            if service.draining.is_cancelled() {
                return Some((Err(Status::unavailable("draining: export again elsewhere")), None));
            }
            let page = match service.recorder.events_after(after).await {
                Ok(page) => page,
                Err(refusal) => return Some((Err(status::of_refusal(&refusal)), None)),
            };
            let next = page.next.filter(|next| !page.by_revision || *next < end);
            Some((Ok(page.entries), next.map(|next| (service, next))))
        });
        let answers = pages.flat_map(move |page| {
            let (entries, failed) = match page {
                Ok(entries) => (entries, None),
                Err(status) => (Vec::new(), Some(Err(status))),
            };
            let entries = entries.into_iter().filter(|(at, entry)| *at <= end && wanted(entry));
            let answers = entries.map(|(at, entry)| Ok(convert::exported(at, entry)));
            stream::iter(answers.chain(failed).collect::<Vec<_>>())
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn erase_user(
        &self,
        request: Request<pb::EraseUserRequest>,
    ) -> Result<Response<pb::EraseUserResponse>, Status> {
        let limit = Instant::now() + MAX_ERASE;
        let limit = deadline(request.metadata()).map_or(limit, |deadline| deadline.min(limit));
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
        if erased.revision > 0 {
            // As with events: the next check here knows of it.
            let _ = self.gate.reach(erased.revision, None).await;
        }
        Ok(Response::new(pb::EraseUserResponse {
            erased_count: erased.erased,
            log_expire_time: erased.log_expire.map(convert::timestamp),
        }))
    }
}
